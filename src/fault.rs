//! Layer 0: places where a test may end the process, or make it do wrong. In a release build there is nothing here.
//!
//! `HERMES_FAULT=NAME=N` kills the process when it comes to the place NAME for the Nth time, as a power cut would.
//! `HERMES_SABOTAGE=NAME` turns an order of steps around, so that the tests can show that they would notice.

/// Dies here, if a test said so.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    // The count is of the process, as its death is; it exists in debug builds only.
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let Some(wish) = std::env::var_os("HERMES_FAULT") else { return };
    let wish = wish.to_string_lossy();
    let Some((place, count)) = wish.split_once('=') else { return };
    if place == name && count.parse() == Ok(PASSED.fetch_add(1, Ordering::Relaxed) + 1) {
        let _cannot_fail = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // It takes effect before anything else happens.
        std::thread::park();
    }
}

/// Whether a test wants this to go wrong.
#[cfg(debug_assertions)]
pub fn is_sabotaged(name: &str) -> bool {
    std::env::var_os("HERMES_SABOTAGE").is_some_and(|wish| wish == name)
}

/// Dies here in a debug build, if a test said so.
#[cfg(not(debug_assertions))]
#[inline]
pub fn point(_name: &str) {}

/// Whether a test wants this to go wrong; never in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub fn is_sabotaged(_name: &str) -> bool {
    false
}
