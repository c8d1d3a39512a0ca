//! The watchdog's ping as proof of work.
//!
//! A timer that pings for as long as it ticks proves that the timer ticks. This one asks, from a plain thread outside
//! the runtime: did the runtime run a task just now, and did every part that the task asked give an answer? Only then
//! is systemd told that we live. If not, it kills us after `WatchdogSec=` and starts us anew.

use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::notify::Notifier;
use crate::stop::Stop;

/// Starts the thread. `probe` is spawned on the runtime for each ping and is to end when all parts have answered.
pub fn spawn<F, P>(every: Duration, notifier: Notifier, runtime: Handle, stop: Stop, probe: P) -> std::io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
    P: Fn() -> F + Send + 'static,
{
    // A third: one lost or late ping is no death, and the first comes at once.
    let pause = every / 3;
    let watch = move || {
        while !stop.is_hard() {
            let (alive, answer) = mpsc::channel();
            let work = probe();
            runtime.spawn(async move {
                work.await;
                let _nobody_waits = alive.send(());
            });
            match answer.recv() {
                Ok(()) => notifier.alive(),
                // The runtime is gone or the probe panicked: no proof, no ping.
                Err(mpsc::RecvError) => tracing::error!("a part of the gateway could not say that it works"),
            }
            std::thread::sleep(pause);
        }
    };
    std::thread::Builder::new().name("watchdog".into()).spawn(watch).map(drop)
}
