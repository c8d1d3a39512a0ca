//! Taking away what is too old, or too much, a little at a time, while nobody else wants to write.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::fault;
use crate::model::time::Timestamp;
use crate::policy::retention::{EVERY, MIN_AGE, forgotten, share, too_old};
use crate::stop::Stop;
use crate::store::{Place, PruneTurns, Pruned, Store, StoreError};

/// A start has better things to do.
const FIRST: Duration = Duration::from_secs(60);
/// Least pause between two steps; a step that took longer is followed by a pause that is longer, too.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between two steps, however long the one before took.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// A pause is so many times as long as the step before it: at most a fifth of the writing thread's time goes into this.
const PAUSES: u32 = 4;
/// How often a busy store is looked at.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// How long things are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Turns that ended longer ago go, and so do deliveries that were sent or given up.
    pub keep: Duration,
    /// If the store is larger, in bytes, the oldest turns go before their time; `None`: however large it is.
    pub max_size: Option<u64>,
}

/// A handle to the task that does it; clones share it.
#[derive(Debug, Clone)]
pub struct Retention {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    stop: Stop,
    config: RwLock<Config>,
    changed: Notify,
}

/// Why a run ended before it was through.
enum Cut {
    /// The gateway stops; the next life goes on.
    Stopped,
    /// The store failed; the next run tries again.
    Failed(StoreError),
}

impl From<StoreError> for Cut {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl Retention {
    /// Keeps things in `store` as long as configured.
    pub fn new(store: Store, config: Config, stop: Stop) -> Self {
        let inner = Inner { store, stop, config: RwLock::new(config), changed: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Applies a new configuration, at once if it is another one.
    pub fn reconfigure(&self, config: Config) {
        let mut known = self.inner.config.write().unwrap_or_else(PoisonError::into_inner);
        if *known != config {
            *known = config;
            self.inner.changed.notify_one();
        }
    }

    /// Looks things through every hour, until the soft stop.
    pub async fn run(self) {
        let mut next = Instant::now() + FIRST;
        loop {
            tokio::select! {
                biased;
                () = self.inner.stop.softened() => return,
                () = self.inner.changed.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
            next = Instant::now() + EVERY;
            self.run_once(Timestamp::now()).await;
        }
    }

    async fn run_once(&self, now: Timestamp) {
        let config = self.inner.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut pruned = Pruned::default();
        match self.prune(&config, now, &mut pruned).await {
            Ok(()) | Err(Cut::Stopped) => {}
            Err(Cut::Failed(error)) => tracing::warn!(error = %error, "cannot take away what is too old; later again"),
        }
        if pruned != Pruned::default() {
            tracing::info!(
                turns = pruned.turns,
                messages = pruned.messages,
                deliveries = pruned.deliveries,
                given_up = pruned.dead,
                inbox = pruned.inbox,
                sessions = pruned.sessions,
                "what was kept long enough is gone: {} turns, {} deliveries, {} sessions; see [retention]",
                pruned.turns,
                pruned.deliveries,
                pruned.sessions
            );
        }
    }

    async fn prune(&self, config: &Config, now: Timestamp, pruned: &mut Pruned) -> Result<(), Cut> {
        let store = &self.inner.store;
        let there = store.amount().await?;
        // Deliveries first: a turn goes after the last of its own.
        let mut left = share(there.deliveries, config.keep);
        while left > 0 {
            let step = self.step(store.prune_deliveries(too_old(config.keep, now), left), pruned).await?;
            left = if step.deliveries > 0 { left.saturating_sub(step.deliveries) } else { 0 };
        }
        let (mut left, mut place) = (share(there.turns, config.keep), Some(Place::BEGIN));
        while let (Some(after), 1..) = (place, left) {
            let which = PruneTurns { ended_by: too_old(config.keep, now), settled_by: None, at_most: left };
            let (step, next) = self.step_turns(which, after, pruned).await?;
            (left, place) = (left.saturating_sub(step.turns), next);
        }
        let mut left = share(there.inbox, config.keep);
        while left > 0 {
            let step = self.step(store.prune_inbox(forgotten(config.keep, now), left), pruned).await?;
            left = if step.inbox > 0 { left.saturating_sub(step.inbox) } else { 0 };
        }
        match config.max_size {
            Some(max_size) => self.shrink(max_size, now, pruned).await,
            None => Ok(()),
        }
    }

    /// Makes room: the oldest turns go with all that was settled of them. A clock that is wrong costs nothing here, for
    /// the order is the same by any clock.
    async fn shrink(&self, max_size: u64, now: Timestamp, pruned: &mut Pruned) -> Result<(), Cut> {
        let mut place = Some(Place::BEGIN);
        let by = now.before(MIN_AGE);
        let which = PruneTurns { ended_by: by, settled_by: Some(by), at_most: usize::MAX };
        loop {
            let (used, _) = self.inner.store.size().await?;
            if used <= max_size {
                return Ok(());
            }
            let Some(after) = place else {
                tracing::warn!(
                    used,
                    max_size,
                    "the store is larger than retention.max_size, and nothing that is left is old enough to go"
                );
                return Ok(());
            };
            place = self.step_turns(which, after, pruned).await?.1;
        }
    }

    async fn step(
        &self,
        step: impl Future<Output = Result<Pruned, StoreError>>,
        pruned: &mut Pruned,
    ) -> Result<Pruned, Cut> {
        let began = self.begin().await?;
        let step = step.await?;
        self.end(began, step, pruned).await;
        Ok(step)
    }

    async fn step_turns(
        &self,
        which: PruneTurns,
        after: Place,
        pruned: &mut Pruned,
    ) -> Result<(Pruned, Option<Place>), Cut> {
        let began = self.begin().await?;
        let (step, next) = self.inner.store.prune_turns(which, after).await?;
        self.end(began, step, pruned).await;
        Ok((step, next))
    }

    /// Waits until nobody else wants to write.
    async fn begin(&self) -> Result<Instant, Cut> {
        loop {
            if self.inner.stop.is_soft() {
                return Err(Cut::Stopped);
            }
            if !self.inner.store.is_busy() {
                return Ok(Instant::now());
            }
            self.pause(BUSY_PAUSE).await;
        }
    }

    async fn end(&self, began: Instant, step: Pruned, pruned: &mut Pruned) {
        fault::point("retention.step");
        *pruned += step;
        self.pause((began.elapsed() * PAUSES).clamp(PAUSE, MAX_PAUSE)).await;
    }

    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = self.inner.stop.softened() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests;
