//! Layer 3: the gateway itself. A turn comes in, waits for its session, is given to its agent, and its reply goes out.
//!
//! Order of things for each turn: its place in the session's lane is taken, it is written to the store, and only then
//! does anybody act on it. When it ends, the store knows first. So whatever a client was told is on disk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use crate::agent::Agents;
use crate::meter::Meters;
use crate::model::id::{SessionId, TurnId};
use crate::model::time::Timestamp;
use crate::model::turn::{NewTurn, TurnRecord};
use crate::policy::session::Busy;
use crate::stop::{Stop, Tasks};
use crate::store::{Store, StoreError, Unfinished};

mod again;
mod chats;
mod gathering;
mod inbox;
mod lanes;
mod live;
mod mark;
mod outbox;
mod pace;
mod reply;
pub mod retention;
mod turn;

use gathering::Gatherings;
pub use inbox::{Inbound, Taken};
use lanes::Lanes;
use live::Live;
pub use live::{Progress, Resumed, Watch};
pub use mark::{Mark, Told};
pub use outbox::Outbox;
pub use reply::PARKED_NOTICE;
pub use retention::Retention;
use turn::Assignment;

/// The bounds of the gateway's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Turns whose agents work at the same time.
    pub max_running: usize,
    /// Turns that wait, over all sessions; one more is refused.
    pub max_queued: usize,
    /// Longest time that an agent may work on a turn.
    pub timeout: Duration,
    /// How many times a turn is started before it is taken for the reason why the gateway dies.
    pub max_attempts: u32,
}

/// Why a turn was not taken. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// No agent of this name.
    #[error("there is no agent '{0}'")]
    UnknownAgent(String),
    /// The queue is full.
    #[error("{0} turns are waiting already")]
    Full(usize),
    /// The gateway stops; its successor will take it.
    #[error("the gateway is stopping")]
    Stopping,
    /// The idempotency key was used for another request.
    #[error("this idempotency key was used for a different request")]
    KeyReused,
    /// It could not be made durable.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A turn that was taken, or that was known already.
#[derive(Debug)]
pub struct Ticket {
    /// Its id.
    pub id: TurnId,
    /// Its session.
    pub session: SessionId,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// How it goes.
    pub watch: Watch,
}

/// A handle to the gateway; clones share it.
#[derive(Debug, Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    tasks: Tasks,
    stop: Stop,
    meters: Arc<Meters>,
    lanes: Lanes,
    gatherings: Gatherings,
    outbox: Outbox,
    settings: RwLock<Settings>,
    live: Mutex<HashMap<TurnId, Arc<Live>>>,
}

/// What a reload may change.
#[derive(Debug, Clone)]
struct Settings {
    config: Config,
    agents: Agents,
    /// One permit for each turn that may run.
    places: Arc<Semaphore>,
}

impl Gateway {
    /// A gateway that works on `store` and delivers through `outbox`.
    pub fn new(
        store: Store,
        outbox: Outbox,
        config: Config,
        agents: Agents,
        tasks: Tasks,
        stop: Stop,
        meters: Arc<Meters>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(config.max_running));
        let settings = RwLock::new(Settings { config, agents, places });
        let (lanes, gatherings, live) = (Lanes::default(), Gatherings::default(), Mutex::default());
        Self { inner: Arc::new(Inner { store, tasks, stop, meters, lanes, gatherings, outbox, settings, live }) }
    }

    /// Applies a new configuration: running turns keep what they have, later ones get the new.
    pub fn reconfigure(&self, config: Config, agents: Agents) {
        let mut settings = self.inner.settings.write().unwrap_or_else(PoisonError::into_inner);
        // Turns that run under the old number keep their permits; for a moment there may be more than either.
        if config.max_running != settings.config.max_running {
            settings.places = Arc::new(Semaphore::new(config.max_running));
        }
        settings.config = config;
        settings.agents = agents;
    }

    /// The agents as they are configured now.
    pub fn agents(&self) -> Agents {
        self.settings().agents
    }

    /// How many turns run and how many wait.
    pub fn load(&self) -> (i64, i64) {
        (self.inner.meters.turns_running.get(), self.inner.meters.turns_queued.get())
    }

    /// Whether nothing new is started any more.
    pub fn is_stopping(&self) -> bool {
        self.inner.stop.is_soft()
    }

    /// What goes out.
    pub fn outbox(&self) -> &Outbox {
        &self.inner.outbox
    }

    /// Takes a turn: returns when it is on disk. A stop lets in who is connected already; whoever asks has no other
    /// chance to be answered.
    pub async fn submit(&self, turn: NewTurn) -> Result<Ticket, SubmitError> {
        let settings = self.settings();
        if self.inner.stop.is_hard() {
            return Err(SubmitError::Stopping);
        }
        if settings.agents.get(&turn.agent).is_none() {
            return Err(SubmitError::UnknownAgent(turn.agent));
        }
        let place = self.inner.lanes.enter(&turn.session);
        if !place.is_free() && self.inner.lanes.waiting() > settings.config.max_queued {
            return Err(SubmitError::Full(settings.config.max_queued));
        }
        // It counts as started if it can start right away; that saves a commit.
        let permit = place.is_free().then(|| settings.places.clone().try_acquire_owned().ok()).flatten();
        let (reply, answer) = oneshot::channel();
        self.inner.tasks.spawn("turn", self.clone().accept(turn, place, permit, reply));
        // The task tells before it ends, unless it panicked.
        answer.await.unwrap_or(Err(SubmitError::Stopping))
    }

    /// Runs again what a crash left unfinished and somebody can still ask for.
    pub fn resume(&self, unfinished: Vec<Unfinished>) {
        for Unfinished { turn, attempts } in unfinished {
            tracing::info!(turn = %turn.id, session = %turn.session, attempts, "taking up a turn that a crash cut off");
            let (place, live) = (self.inner.lanes.enter(&turn.session), self.add_live(&turn, attempts));
            self.give_up_unclaimed(&turn, &live);
            let (permit, gathering, busy) = (None, None, Busy::Queue);
            let assignment = Assignment { turn, live, place, permit, gathering, busy, attempts };
            self.inner.tasks.spawn("turn", self.clone().run(assignment));
        }
    }

    /// A turn by its id, and how it goes or went.
    pub async fn find(&self, id: TurnId) -> Result<Option<(TurnRecord, Watch)>, StoreError> {
        let Some(record) = self.inner.store.turn(id).await? else { return Ok(None) };
        Ok(self.watch(&record).await?.map(|watch| (record, watch)))
    }

    async fn attach(&self, known: TurnRecord) -> Result<Ticket, SubmitError> {
        let watch = self.watch(&known).await?.ok_or(SubmitError::Stopping)?;
        Ok(Ticket { id: known.id, session: known.session, accepted: known.accepted, watch })
    }

    /// `None` if it neither runs nor ended: its end could not be stored, and the next life takes it up.
    async fn watch(&self, record: &TurnRecord) -> Result<Option<Watch>, StoreError> {
        if let Some(ended) = Watch::ended(record) {
            return Ok(Some(ended));
        }
        if let Some(live) = self.live().get(&record.id) {
            return Ok(Some(live.watch()));
        }
        // It ended between the two looks: the store knows before the map forgets.
        let again = self.inner.store.turn(record.id).await?;
        Ok(again.as_ref().and_then(Watch::ended))
    }

    fn settings(&self) -> Settings {
        self.inner.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add_live(&self, turn: &NewTurn, attempts: u32) -> Arc<Live> {
        let live = Arc::new(Live::new(turn, attempts));
        self.live().insert(turn.id, live.clone());
        live
    }

    fn remove_live(&self, id: TurnId) {
        self.live().remove(&id);
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<TurnId, Arc<Live>>> {
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number in `0.0..=1.0` for jitter; its quality matters to nobody.
fn dice() -> f64 {
    let random = uuid::Uuid::now_v7().as_u64_pair().1 & 0xffff_ffff;
    random as f64 / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
