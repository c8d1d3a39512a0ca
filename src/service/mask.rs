//! Signals that the kernel keeps for later.
//!
//! They are held while nobody can hear them: from the first line of `main` until there are handlers, and across an
//! in-place restart, since `execve` keeps the mask and what is pending. A process that serves holds none, whatever mask
//! its parent left it: it can be stopped, and its children, who inherit the mask, can.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// Makes signals that ask for something wait in the kernel, as far as it is up to this thread and those it starts.
pub fn hold() {
    let _only_fails_on_bad_arguments = asking().thread_block();
}

/// Starts a thread that holds them from its first instruction to its last.
pub fn held<T>(start: impl FnOnce() -> T) -> T {
    let before = asking().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let started = start();
    let _only_fails_on_bad_arguments = before.and_then(|before| before.thread_set_mask());
    started
}

/// Lets them come to this thread and those it starts, first what has waited.
pub fn release() {
    let _only_fails_on_bad_arguments = asking().thread_unblock();
}

/// The signals that somebody sends who wants something. Those of a fault are never held.
fn asking() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}
