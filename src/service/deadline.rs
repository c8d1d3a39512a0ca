//! The last resort of a stop: a plain thread that ends the process when nothing else did.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::mask;

/// How long a stop may take before the configuration says otherwise.
const BEFORE_CONFIGURED: Duration = Duration::from_secs(30);

/// The end that comes in any case; clones share it.
#[derive(Debug, Clone)]
pub struct Deadline {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    millis: AtomicU64,
    armed: AtomicBool,
}

impl Default for Deadline {
    fn default() -> Self {
        let millis = AtomicU64::new(BEFORE_CONFIGURED.as_millis() as u64);
        Self { inner: Arc::new(Inner { millis, armed: AtomicBool::new(false) }) }
    }
}

impl Deadline {
    /// Sets how long a stop may take from its beginning.
    pub fn set(&self, patience: Duration) {
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.inner.millis.store(millis, Ordering::Relaxed);
    }

    /// Begins to count; further calls change nothing. The process ends with `code` if it has not ended before.
    pub fn arm(&self, code: u8) {
        if self.inner.armed.swap(true, Ordering::Relaxed) {
            return;
        }
        let patience = Duration::from_millis(self.inner.millis.load(Ordering::Relaxed));
        let wait = move || {
            thread::sleep(patience);
            tracing::error!(patience_s = patience.as_secs(), "the stop got stuck; ending the process as it is");
            end(code)
        };
        // It is still there when the process restarts in place: the signals that come then are for the successor.
        let spawned = mask::held(|| thread::Builder::new().name("deadline".into()).spawn(wait));
        if let Err(e) = spawned {
            tracing::error!(error = %e, "a stop that gets stuck will not be ended by us");
        }
    }
}

#[expect(clippy::exit, reason = "everything else has had its time; the store is made for this")]
fn end(code: u8) -> ! {
    std::process::exit(code.into())
}
