//! The watchdog's ping as proof of work.
//!
//! A timer that pings for as long as it ticks proves that the timer ticks. This one asks, from a plain thread outside
//! the runtime: did the runtime run a task just now, and did every part that the task asked give an answer? Only then
//! is systemd told that we live. If not, it kills us after `WatchdogSec=` and starts us anew.

use std::convert::Infallible;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::stop::Stop;

/// Starts the thread. For each ping, `probe` is spawned on the runtime; when it ends, all parts have answered, and
/// `ping` is called. The thread goes with the hard stop, and with it what `probe` has.
///
/// # Errors
/// When there is no thread to be had.
pub fn spawn<F>(
    interval: Duration,
    runtime: Handle,
    stop: Stop,
    probe: impl Fn() -> F + Send + 'static,
    ping: impl Fn() + Send + 'static,
) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    // A third: one lost or late ping is no death, and the first comes at once.
    let pause = interval / 3;
    // Nothing is ever sent: that there is nobody left to send wakes the thread. It must not sleep into the end, for
    // what `probe` has keeps the store open.
    let (awake, ended) = mpsc::channel::<Infallible>();
    let hard = stop.clone();
    runtime.spawn(async move {
        hard.hardened().await;
        drop(awake);
    });
    let watch = move || {
        while !stop.is_hard() {
            let (done, answer) = mpsc::channel();
            let work = probe();
            runtime.spawn(async move {
                work.await;
                let _nobody_waits = done.send(());
            });
            // Without an answer this waits for ever, and systemd draws the conclusion.
            match answer.recv() {
                Ok(()) => ping(),
                Err(mpsc::RecvError) => tracing::error!("a part of the gateway could not say that it works"),
            }
            if ended.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    };
    thread::Builder::new().name("watchdog".into()).spawn(watch).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(30);

    /// Pings while `wedge` works on a runtime of two threads: whether one came.
    fn pings_under(wedge: impl Fn(&Handle), answers: bool) -> bool {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
        wedge(runtime.handle());
        let (ping, pinged) = mpsc::channel();
        let stop = Stop::new();
        let probe = move || async move {
            if !answers {
                std::future::pending::<()>().await;
            }
        };
        let ping = move || {
            let _test_is_over = ping.send(());
        };
        spawn(INTERVAL, runtime.handle().clone(), stop.clone(), probe, ping).expect("a thread");
        let alive = pinged.recv_timeout(INTERVAL * 20).is_ok();
        stop.harden();
        runtime.shutdown_background();
        alive
    }

    fn block_workers(count: usize) -> impl Fn(&Handle) {
        move |runtime| {
            let blocked = std::sync::Arc::new(std::sync::Barrier::new(count + 1));
            for _ in 0..count {
                let blocked = blocked.clone();
                runtime.spawn(async move {
                    blocked.wait();
                    loop {
                        thread::park();
                    }
                });
            }
            blocked.wait();
        }
    }

    #[test]
    fn it_does_not_sleep_into_the_end() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let stop = Stop::new();
        let (ping, pinged) = mpsc::channel();
        let (held, released) = mpsc::channel::<()>();
        let probe = move || {
            let _like_the_store = &held;
            std::future::ready(())
        };
        let ping = move || ping.send(()).expect("the test waits for it");
        spawn(Duration::from_secs(3600), runtime.handle().clone(), stop.clone(), probe, ping).expect("a thread");
        pinged.recv().expect("the first ping comes at once");
        stop.harden();
        let gone = released.recv_timeout(Duration::from_secs(20));
        assert_eq!(gone, Err(RecvTimeoutError::Disconnected), "what the probe had is given back");
    }

    #[test]
    fn it_pings_while_work_gets_done_and_stops_when_none_does() {
        assert!(pings_under(|_| (), true), "all is well");
        assert!(pings_under(block_workers(1), true), "one worker is stuck, the other works");
        assert!(!pings_under(block_workers(2), true), "the runtime is stuck");
        assert!(!pings_under(|_| (), false), "a part does not answer");
    }
}
