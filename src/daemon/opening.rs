//! Opening the store. Bringing an old one up to date takes as long as it takes; whoever waits is told that it goes on.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::meter::Meters;
use crate::model::time::in_words;
use crate::service::notify::Notifier;
use crate::store::{OpenError, Store, StoreOwner};

/// How often systemd is told that a start goes on. It is well below the units' `TimeoutStartSec=`.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Opens the store in `directory`. Blocks; `notifier` is told if it takes long.
pub fn open(directory: &Path, meters: Arc<Meters>, notifier: &Notifier) -> Result<(Store, StoreOwner), OpenError> {
    let tell = |since: Duration| {
        let (first, since) = (since < 2 * TELL_EVERY, in_words(Duration::from_secs(since.as_secs())));
        let doing = match Store::outdated(directory) {
            Some((from, to)) => format!("bringing the store from schema version {from} to {to}"),
            None => "opening the store".to_owned(),
        };
        notifier.extend(TELL_EVERY * 3);
        notifier.status(&format!("starting: {doing}, for {since} now"));
        if first {
            tracing::info!("{doing} takes a while; a stop would only make it begin again");
        }
    };
    while_telling(TELL_EVERY, tell, || Store::open(directory, meters))
}

/// Does `work` and meanwhile, every now and then, tells how long that has taken.
fn while_telling<T>(every: Duration, mut tell: impl FnMut(Duration) + Send, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let (done, over) = mpsc::channel::<()>();
        let telling = move || {
            while let Err(RecvTimeoutError::Timeout) = over.recv_timeout(every) {
                tell(began.elapsed());
            }
        };
        // Without a thread it is done all the same, and nobody is told.
        let _told = std::thread::Builder::new().name("opening".into()).spawn_scoped(scope, telling);
        let result = work();
        // The thread ends with this; also where the work panics.
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_work_is_told_of_until_it_is_done_and_short_work_never() {
        let (told, heard) = mpsc::channel();
        let every = Duration::from_millis(1);
        let result = while_telling(
            every,
            |since| told.send(since).expect("heard"),
            || {
                // Not done before it was told of three times.
                heard.iter().take(3).collect::<Vec<_>>()
            },
        );
        assert!(result.len() == 3 && result[0] >= every && result.is_sorted(), "{result:?}");
        while_telling(Duration::from_secs(3600), |_| panic!("told of nothing"), || ());
        let panicked = std::panic::catch_unwind(|| while_telling(every, |_| (), || panic!("on purpose")));
        panicked.expect_err("a panic passes, and nobody waits for ever");
    }
}
