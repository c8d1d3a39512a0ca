//! A predecessor that was killed and cannot die: no signal ends who waits for a disk that hangs.
//!
//! systemd gives up on such a process after a while and starts the next one beside it. That one must not touch a store
//! that may still be written to. Nor may it leave as it does before a rival, which is for good: then nobody would start
//! the gateway when the disk is well again. So it waits, and says for whom.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::birth::EXTEND_EVERY;
use crate::service::lock::{self, Holder};
use crate::service::notify::Notifier;
use crate::service::process;
use crate::service::signals::{Request, Signals};

/// How often it is looked whether the predecessor is gone. Clients wait, and a look costs less than a millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Waits while another process of our own unit holds the state directory; whether to go on, for a stop may come
/// meanwhile. Stand-alone there is no unit of our own: whoever holds it is a rival.
pub async fn outlive(state: &Path, notifier: &Notifier, signals: &mut Signals) -> bool {
    if notifier.is_silent() {
        return true;
    }
    let mut extended: Option<Instant> = None;
    while let Some(predecessor) = predecessor(state) {
        if extended.is_none() {
            let text = format!("waiting for {predecessor}: it was killed and has not ended; does its disk hang?");
            notifier.status(&text);
            tracing::warn!("{text}");
        }
        if extended.is_none_or(|last| last.elapsed() >= EXTEND_EVERY) {
            notifier.extend(EXTEND_EVERY * 3);
            extended = Some(Instant::now());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            received = signals.next() => {
                if matches!(received.request, Request::Stop(_)) {
                    return false;
                }
            }
        }
    }
    true
}

/// Another process of our unit that holds the directory.
fn predecessor(state: &Path) -> Option<Holder> {
    let directory = rustix::fs::stat(state).ok()?;
    let holder = lock::lockers_of(directory.st_ino).into_iter().find(|pid| *pid != std::process::id())?;
    process::of_own_group().contains(&holder).then(|| Holder::named(Some(holder)))
}
