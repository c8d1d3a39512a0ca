//! Who keeps the workers of one agent: one for each session, at most so many, none longer idle than it may.
//!
//! A turn has a [`Seat`]; what becomes of its worker is settled when the seat is dropped, however that comes: kept for the
//! next turn, stopped, or told to cancel what it does. That goes on in a task which holds the seat's place, so the next
//! turn of the session waits for it. Idle workers are stopped by a task of the agent's own, which ends with the agent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connection::{Broken, Connection};
use super::wire::{self, Incoming};
use crate::agent::program::STOP_GRACE;
use crate::model::id::SessionId;
use crate::stop::{Stop, Tasks};

/// How long an agent has to end a turn that it was told to cancel; then it is stopped.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);

/// What is in a session's place.
#[derive(Debug, Default)]
struct Slot {
    connection: Option<Connection>,
    /// When the last turn ended.
    idle_since: Option<Instant>,
}

type Place = Arc<tokio::sync::Mutex<Slot>>;

/// The workers of an agent; clones share them.
#[derive(Debug, Clone)]
pub struct Keeper {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    places: Mutex<HashMap<SessionId, Place>>,
    /// One permit for each worker that may live.
    living: Arc<Semaphore>,
    /// Told when a worker becomes idle.
    freed: Notify,
    idle: Duration,
    /// Whether the task that stops idle workers was started.
    watched: AtomicBool,
    closed: CancellationToken,
    tasks: Tasks,
    stop: Stop,
}

/// What becomes of a seat's worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It waits for the next turn.
    Keep,
    /// It is stopped: nobody knows what it does, or it is of no use.
    Stop,
    /// It is told that nobody wants its answer to the request of this number; then it waits for the next turn.
    Cancel(u64),
}

/// A session's place, taken by a turn.
#[derive(Debug)]
pub struct Seat {
    keeper: Keeper,
    slot: Option<OwnedMutexGuard<Slot>>,
    /// What becomes of the worker when the seat is left.
    pub then: Then,
}

impl Keeper {
    /// Nobody yet. The guard closes it: its workers are stopped as soon as they are idle.
    pub fn new(max_live: usize, idle: Duration, tasks: Tasks, stop: Stop) -> (Self, DropGuard) {
        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        let inner = Inner {
            places: Mutex::default(),
            living: Arc::new(Semaphore::new(max_live)),
            freed: Notify::new(),
            idle,
            watched: AtomicBool::new(false),
            closed,
            tasks,
            stop,
        };
        (Self { inner: Arc::new(inner) }, guard)
    }

    /// Takes a session's place; waits while its last turn is being cancelled.
    pub async fn seat(&self, session: &SessionId) -> Seat {
        if !self.inner.watched.swap(true, Ordering::Relaxed) {
            self.inner.tasks.spawn("idle agents", self.clone().watch_the_idle());
        }
        let place = {
            let mut places = self.lock();
            // Whoever holds or waits for a place has a handle on it; an empty one without them is of no use.
            places.retain(|_, place| {
                Arc::strong_count(place) > 1 || place.try_lock().is_ok_and(|slot| slot.connection.is_some())
            });
            places.entry(session.clone()).or_default().clone()
        };
        Seat { keeper: self.clone(), slot: Some(place.lock_owned().await), then: Then::Keep }
    }

    /// The right to start one more worker. If there are too many, the one that is idle for longest is stopped; if all
    /// work, this waits.
    pub async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            let freed = self.inner.freed.notified();
            if let Some(permit) = self.free_permit() {
                return Some(permit);
            }
            self.stop_idle(|idle| idle.len().min(1));
            tokio::select! {
                permit = self.inner.living.clone().acquire_owned() => return permit.ok(),
                () = freed => {}
            }
        }
    }

    /// The same where it does not matter: the worker lives already.
    pub fn free_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.inner.living.clone().try_acquire_owned().ok()
    }

    /// Whether nothing is kept any more.
    fn is_closing(&self) -> bool {
        self.inner.closed.is_cancelled() || self.inner.stop.is_soft()
    }

    /// Stops as many idle workers as `count` says of the times since which they are, the longest first; since when the
    /// next one is idle. One at a time, so that nobody takes a worker for busy that is only being looked at.
    fn stop_idle(&self, count: impl FnOnce(&[Instant]) -> usize) -> Option<Instant> {
        let places = self.lock();
        let mut idle: Vec<_> = places
            .values()
            .filter_map(|place| place.clone().try_lock_owned().ok())
            .filter_map(|slot| slot.connection.is_some().then_some(slot.idle_since?).map(|since| (since, slot)))
            .collect();
        idle.sort_by_key(|(since, _)| *since);
        let times: Vec<_> = idle.iter().map(|(since, _)| *since).collect();
        let count = count(&times);
        for (_, slot) in idle.into_iter().take(count) {
            Seat { keeper: self.clone(), slot: Some(slot), then: Then::Stop }.leave(Then::Stop);
        }
        times.get(count).copied()
    }

    async fn watch_the_idle(self) {
        let mut next = Instant::now() + self.inner.idle;
        loop {
            tokio::select! {
                biased;
                () = self.inner.closed.cancelled() => break,
                () = self.inner.stop.softened() => break,
                () = tokio::time::sleep_until(next) => {}
            }
            // What becomes idle from now on is not too long idle before this.
            let (now, idle) = (Instant::now(), self.inner.idle);
            let first = self.stop_idle(|since| since.partition_point(|since| *since + idle <= now));
            next = first.unwrap_or(now) + idle;
        }
        // Turns that still run see to their workers themselves: everything is closing.
        self.stop_idle(<[_]>::len);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Place>> {
        self.inner.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// The worker, if there is one.
    pub fn connection(&mut self) -> Option<&mut Connection> {
        self.slot.as_mut().and_then(|slot| slot.connection.as_mut())
    }

    /// Gives the session a worker, which is stopped if the seat is left before anything else is said.
    pub fn put(&mut self, connection: Connection) {
        self.then = Then::Stop;
        if let Some(slot) = self.slot.as_mut() {
            slot.connection = Some(connection);
        }
    }

    /// Lets go of a worker that was stopped.
    pub fn clear(&mut self) {
        if let Some(slot) = self.slot.as_mut() {
            slot.connection = None;
        }
    }

    /// Leaves, and settles what becomes of the worker.
    pub fn leave(mut self, then: Then) {
        self.then = then;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(mut slot) = self.slot.take() else { return };
        let Some(connection) = slot.connection.as_ref() else { return };
        let (stop, is_unit) = (&self.keeper.inner.stop, connection.worker().unit().is_some());
        let then = match self.then {
            // The gateway's next life goes on with a worker that outlives this one.
            Then::Cancel(_) if stop.is_hard() && is_unit => return,
            Then::Cancel(_) if stop.is_hard() => Then::Stop,
            Then::Keep if self.keeper.is_closing() => Then::Stop,
            then => then,
        };
        slot.idle_since = Some(Instant::now());
        match then {
            Then::Keep => {
                drop(slot);
                self.keeper.inner.freed.notify_one();
                // It may have been closed in between, when nobody could see that this worker is idle.
                if self.keeper.is_closing() {
                    self.keeper.stop_idle(<[_]>::len);
                }
            }
            Then::Stop => self.keeper.inner.tasks.spawn("agent stop", async move { stop_worker(&mut slot).await }),
            Then::Cancel(request) => {
                let keeper = self.keeper.clone();
                self.keeper.inner.tasks.spawn("agent cancel", async move {
                    match cancel(&mut slot, request).await {
                        Ok(()) => Seat { keeper, slot: Some(slot), then: Then::Keep }.leave(Then::Keep),
                        Err(e) => {
                            tracing::warn!(error = %e, "a turn could not be cancelled; its agent is stopped");
                            stop_worker(&mut slot).await;
                        }
                    }
                });
            }
        }
    }
}

async fn stop_worker(slot: &mut Slot) {
    // Its permit is given back when it is gone.
    if let Some(connection) = slot.connection.take() {
        connection.worker().stop(STOP_GRACE).await;
    }
}

/// Tells the agent that nobody wants the answer any more, and reads up to its end of that.
async fn cancel(slot: &mut Slot, request: u64) -> Result<(), Broken> {
    let Some(connection) = slot.connection.as_mut() else { return Ok(()) };
    connection.take_over();
    let params = json!({ "sessionId": connection.session });
    connection.say(&wire::notification("session/cancel", &params)).await?;
    let ended = async {
        loop {
            match connection.receive(CANCEL_PATIENCE).await? {
                Incoming::Response(Some(id), _) if id == request => return Ok(()),
                Incoming::Request(id, method, _) if method == "session/request_permission" => {
                    connection.say(&wire::answer(&id, &json!({ "outcome": { "outcome": "cancelled" } }))).await?;
                }
                Incoming::Request(id, method, _) => connection.say(&wire::no_such_method(&id, &method)).await?,
                Incoming::Response(..) | Incoming::Notification(..) => {}
            }
        }
    };
    tokio::time::timeout(CANCEL_PATIENCE, ended).await.unwrap_or(Err(Broken::Silent(CANCEL_PATIENCE)))
}
