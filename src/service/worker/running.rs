//! A worker that was started, by this life of the gateway or an earlier one.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::{Mutex, OnceCell};

use super::child::Child;
use super::output::Output;
use super::place::Place;
use super::speech::{self, Speech};
use super::start::Registry;
use super::unit::Unit;
use super::{Bounds, End, child, holders};

/// After SIGKILL, for the kernel to take everything away; a process that hangs in a broken disk or network takes longer.
const KILL: Duration = Duration::from_secs(10);

/// A worker. Clones are the same one; dropping all of them leaves it running.
#[derive(Debug, Clone)]
pub struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    place: Place,
    hold: Arc<Hold>,
    how: How,
    end: OnceCell<End>,
    speech: Mutex<Speech>,
    registry: Registry,
}

/// What it is to the system.
#[derive(Debug)]
pub(super) enum How {
    /// A unit of the service manager.
    Unit(Unit),
    /// A child of this process, or an orphan of an earlier one.
    Child(Child),
    /// No more: how it ended.
    Past(End),
}

/// Holds a worker to the length of its output.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) place: Place,
    pub(super) bounds: Bounds,
    /// How far the foremost reader is.
    pub(super) read: AtomicU64,
    /// Why we ended it, if we did.
    pub(super) cause: Arc<OnceLock<End>>,
}

impl Hold {
    pub(super) fn new(place: Place, bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { place, bounds, read: AtomicU64::new(0), cause: Arc::default() })
    }

    /// Whether more than it may is unread; then that is the cause of its end, also for a later life.
    pub(super) fn is_overrun(&self) -> bool {
        let Ok(spool) = self.place.out().metadata() else { return false };
        // A later life does not know how far an earlier one had read; but what was read and punched out takes no room.
        let unread = spool.len().saturating_sub(self.read.load(Ordering::Relaxed)).min(spool.blocks() * 512);
        if unread <= self.bounds.output || self.cause.get().is_some() {
            return false;
        }
        let cause = End::TooMuchOutput(self.bounds.output);
        if let Some(record) = self.place.record() {
            let _told_by_this_life_only = self.place.write(&super::place::Record { end: Some(cause), ..record });
        }
        self.cause.set(cause).is_ok()
    }
}

impl Worker {
    pub(super) fn new(name: String, hold: Arc<Hold>, how: How, registry: Registry) -> Self {
        let place = hold.place.clone();
        let (end, speech) = (OnceCell::new(), Mutex::default());
        Self(Arc::new(Inner { name, place, hold, how, end, speech, registry }))
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its unit, if it is one.
    pub fn unit(&self) -> Option<&str> {
        match &self.0.how {
            How::Unit(unit) => Some(unit.name()),
            How::Child(_) | How::Past(_) => None,
        }
    }

    /// Its main process, while it runs.
    pub async fn pid(&self) -> Option<u32> {
        if self.end_if_known().is_some() {
            return None;
        }
        match &self.0.how {
            How::Unit(unit) => unit.pid().await,
            How::Child(child) => Some(child.pid()),
            How::Past(_) => None,
        }
    }

    /// Writes to its stdin; what several say at once goes one after the other. If this future is dropped midway, what it
    /// began is ended by the next call. If the gateway dies midway, a message of up to 1 MiB is there as a whole or not
    /// at all, unless the worker was behind.
    ///
    /// # Errors
    /// When the worker has ended, has closed its stdin, was given [`super::Input::Bytes`], or takes nothing for 10 s.
    pub async fn say(&self, bytes: &[u8]) -> io::Result<()> {
        let said = async {
            let waited = tokio::time::timeout(speech::PATIENCE, self.0.speech.lock()).await;
            let mut speech =
                waited.map_err(|_| io::Error::new(ErrorKind::TimedOut, "others are still talking to it"))?;
            speech.say(&self.0.place, bytes).await
        };
        tokio::select! {
            biased;
            end = self.ended() => Err(io::Error::new(ErrorKind::BrokenPipe, end.to_string())),
            said = said => said,
        }
    }

    /// What it writes to stdout, from this offset on.
    pub fn output(&self, from: u64) -> Output {
        self.has_read(from);
        Output::new(self.clone(), from)
    }

    /// What it said last on stderr, as far as it is with us: a unit's is in the journal.
    pub async fn complaints(&self) -> Option<String> {
        if self.unit().is_some() {
            return None;
        }
        let file = File::open(self.0.place.err()).ok()?;
        let from = file.metadata().ok()?.len().saturating_sub(child::LAST_WORDS);
        let mut tail = vec![0; child::LAST_WORDS as usize];
        let read = file.read_at(&mut tail, from).ok()?;
        let text =
            String::from_utf8_lossy(&tail[..read]).trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Waits for its end; how it was. What it had started itself has ended, too, or is about to.
    pub async fn ended(&self) -> End {
        let wait = || async {
            let seen = match &self.0.how {
                How::Unit(unit) => unit.ended(&self.0.hold).await,
                How::Child(child) => child.ended().await,
                How::Past(end) => *end,
            };
            // Whoever ends well in spite of us has ended well.
            let cause = self.0.hold.cause.get().copied().filter(|_| !seen.is_success());
            cause.unwrap_or(seen)
        };
        *self.0.end.get_or_init(wait).await
    }

    /// Ends it: SIGTERM to all of it, after `grace` SIGKILL; then its unit and its files are cleared away. For one that
    /// has ended it is only the latter. How it ended, if that could be learned in time.
    pub async fn stop(&self, grace: Duration) -> End {
        let mut end = self.end_if_known();
        for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, KILL)] {
            if end.is_none() {
                // One that has ended already, and whom nobody has asked yet, gets a signal that it does not see.
                self.signal(signal).await;
                end = tokio::time::timeout(patience, self.ended()).await.ok();
            }
        }
        if let How::Unit(unit) = &self.0.how
            && let Err(e) = unit.collect().await
        {
            tracing::warn!(unit = unit.name(), error = %e, "cannot clear a worker's unit away; the next sweep will");
        }
        holders::kill(self.0.place.path());
        if let Err(e) = self.0.place.clear() {
            tracing::warn!(worker = self.name(), error = %e, "cannot clear a worker's files away; the next sweep will");
        }
        self.0.registry.remove(self);
        end.unwrap_or(End::Gone)
    }

    async fn signal(&self, signal: Signal) {
        match &self.0.how {
            How::Unit(unit) => {
                if let Err(e) = unit.signal(signal).await {
                    tracing::warn!(unit = unit.name(), error = %e, "cannot signal a worker");
                }
            }
            How::Child(child) => child.signal(signal),
            How::Past(_) => {}
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.0.place
    }

    pub(super) fn end_if_known(&self) -> Option<End> {
        self.0.end.get().copied()
    }

    /// Whether it is the same worker, and not another one of that name.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn has_read(&self, offset: u64) {
        self.0.hold.read.fetch_max(offset, Ordering::Relaxed);
    }

    /// Kills it if more than it may is unread.
    pub(super) async fn hold_to_its_output(&self) {
        match &self.0.how {
            How::Unit(unit) => unit.hold(&self.0.hold).await,
            How::Child(child) if self.0.hold.is_overrun() => child.signal(Signal::KILL),
            How::Child(_) | How::Past(_) => {}
        }
    }
}
