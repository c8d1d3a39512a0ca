//! The life of one turn: wait, claim, ask the agent, store the end, tell.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::Instrument;

use super::gathering::Gathering;
use super::lanes::{Lane, Place};
use super::live::{Cut, Live};
use super::{Gateway, SubmitError, Ticket, dice, reply};
use crate::fault;
use crate::meter::TurnLabels;
use crate::model::id::TurnId;
use crate::model::turn::{Failure, NewTurn, Origin, Outcome};
use crate::policy::backoff::Backoff;
use crate::policy::session::Busy;
use crate::stop::Stop;
use crate::store::{Ending, Recorded, StoreError};

mod asking;

/// The right to be among the turns that run.
pub type Permit = OwnedSemaphorePermit;

/// An end that cannot be stored is tried again; after that the next life finds the turn unfinished.
const STORE_BACKOFF: Backoff = Backoff { first: Duration::from_millis(250), cap: Duration::from_secs(2), attempts: 4 };

/// How the work on a turn went.
enum Work {
    /// This is its end.
    Ended(Outcome, Vec<TurnId>),
    /// It has ended already, in the store and for all who watch.
    Absorbed(TurnId),
    /// The gateway stops; the turn stays unfinished in the store, and the next life takes it up.
    LeftOver {
        /// Whether its agent had begun.
        begun: bool,
    },
}

/// A turn that is on disk, with all that it needs to run.
#[derive(Debug)]
pub struct Assignment {
    /// What is asked.
    pub turn: NewTurn,
    /// Who watches.
    pub live: Arc<Live>,
    /// Its place in its session's lane.
    pub place: Place,
    /// Its place among those that run, if there was a free one; then it counts as started.
    pub permit: Option<Permit>,
    /// The burst whose end it waits for.
    pub gathering: Option<Gathering>,
    /// What it does to a turn that runs before it.
    pub busy: Busy,
    /// How often it was started before.
    pub attempts: u32,
}

impl Gateway {
    /// Puts a turn on disk, says so, and runs it. A task of its own from the start: a client that leaves in between
    /// must not leave a turn behind that nobody runs.
    pub(super) async fn accept(
        self,
        turn: NewTurn,
        place: Place,
        permit: Option<Permit>,
        reply: oneshot::Sender<Result<Ticket, SubmitError>>,
    ) {
        let live = self.add_live(&turn, 0);
        // Watching from here on, so that a caller who left is noticed as the last watcher.
        let watch = live.watch();
        match self.inner.store.record_turn(turn.clone(), permit.is_some()).await {
            Ok(Recorded::New) => {
                fault::point("turn.recorded");
                let ticket = Ticket { id: turn.id, session: turn.session.clone(), accepted: turn.accepted, watch };
                let _caller_left = reply.send(Ok(ticket));
                let (gathering, busy, attempts) = (None, Busy::Queue, 0);
                self.run(Assignment { turn, live, place, permit, gathering, busy, attempts }).await;
            }
            Ok(Recorded::Known(known)) => {
                self.remove_live(turn.id);
                drop((place, permit));
                let same = known.fingerprint == turn.idempotency.map(|i| i.fingerprint);
                let attached = if same { self.attach(*known).await } else { Err(SubmitError::KeyReused) };
                let _caller_left = reply.send(attached);
            }
            Err(e) => {
                self.remove_live(turn.id);
                let _caller_left = reply.send(Err(e.into()));
            }
        }
    }

    /// Runs a turn from its place in the lane to its end.
    pub(super) async fn run(self, assignment: Assignment) {
        let Assignment { mut turn, live, place, permit, gathering, busy, attempts } = assignment;
        let span = tracing::info_span!("turn", turn = %turn.id, session = %turn.session, agent = turn.agent);
        let work = async {
            let began = Instant::now();
            let started = permit.is_some();
            if let Some(gathering) = gathering {
                self.gather(&mut turn, &live, gathering).await;
            }
            if busy == Busy::Steer && !place.is_free() {
                self.steer(&turn);
            }
            let work = match self.wait(&live, place, permit).await {
                Some((lane, permit)) => {
                    let work = self.work(&turn, &live, started, attempts).await;
                    self.end(&turn, &live, work).await;
                    drop((lane, permit));
                    return began.elapsed();
                }
                None => cut_off(&turn, &live, &self.inner.stop, started),
            };
            self.end(&turn, &live, work).await;
            began.elapsed()
        };
        let took = work.instrument(span).await;
        self.inner.meters.turn_seconds.observe(took.as_secs_f64());
    }

    /// Waits for the end of the burst that the turn began, and takes what came with it.
    async fn gather(&self, turn: &mut NewTurn, live: &Live, gathering: Gathering) {
        let grew = tokio::select! {
            biased;
            () = live.is_cut() => return,
            () = self.inner.stop.softened() => return,
            grew = gathering.ended() => grew,
        };
        if !grew {
            return;
        }
        match self.inner.store.turn_input(turn.id).await {
            Ok(input) => turn.input = input,
            // Without the rest it would be half a question, so it waits for the next life.
            Err(e) => tracing::error!(error = %e, "cannot read the rest of a burst; its first message goes alone"),
        }
    }

    /// Waits for the session's lane and a place among the running; `None` if that is no longer wanted. A stop lets
    /// those go on for whom somebody waits; the others are the successor's.
    async fn wait(&self, live: &Live, place: Place, permit: Option<Permit>) -> Option<(Lane, Permit)> {
        let _queued = permit.is_none().then(|| Counted::new(&self.inner.meters.turns_queued));
        let both = async {
            let lane = place.reached().await?;
            let permit = match permit {
                Some(permit) => permit,
                None => self.settings().places.acquire_owned().await.ok()?,
            };
            Some((lane, permit))
        };
        let stopped = async {
            self.inner.stop.softened().await;
            live.unwatched().await;
        };
        tokio::select! {
            biased;
            () = live.is_cut() => None,
            () = self.inner.stop.hardened() => None,
            () = stopped => None,
            both = both => both,
        }
    }

    async fn work(&self, turn: &NewTurn, live: &Arc<Live>, started: bool, attempts: u32) -> Work {
        let settings = self.settings();
        if !started && let Err(e) = self.inner.store.claim_turn(turn.id).await {
            return Work::Ended(store_failed(&e), Vec::new());
        }
        fault::point("turn.claimed");
        let Some(agent) = settings.agents.get(&turn.agent) else {
            let message = format!("there is no agent '{}' any more", turn.agent);
            return Work::Ended(Outcome::Failed { failure: Failure::Agent, message }, Vec::new());
        };
        let _running = Counted::new(&self.inner.meters.turns_running);
        let work = tokio::select! {
            biased;
            () = live.is_cut() => cut_off(turn, live, &self.inner.stop, true),
            () = self.inner.stop.hardened() => cut_off(turn, live, &self.inner.stop, true),
            (outcome, absorbed) = self.answer(turn, live, agent, &settings, attempts) => Work::Ended(outcome, absorbed),
        };
        live.set_steering(None);
        work
    }

    /// Stores the end, then tells it.
    async fn end(&self, turn: &NewTurn, live: &Live, work: Work) {
        let outcome = match work {
            Work::Ended(outcome, absorbed) => match self.store_end(turn, live, &outcome, &absorbed).await {
                Ok(()) => {
                    absorbed.iter().filter_map(|id| self.live().get(id).cloned()).for_each(|taken_up| {
                        taken_up.cut(Cut::Absorbed(turn.id));
                    });
                    outcome
                }
                // The reply is not on disk, so it was not given: the person is told what is wrong instead.
                Err(e) => store_failed(&e),
            },
            Work::Absorbed(by) => Outcome::Absorbed(by),
            Work::LeftOver { begun } => {
                if begun && let Err(e) = self.inner.store.defer_turn(turn.id).await {
                    tracing::warn!(error = %e, "a turn that the stop cut off will count as one that a crash cut off");
                }
                Outcome::Interrupted
            }
        };
        log(&outcome);
        let labels = TurnLabels { agent: turn.agent.clone(), outcome: outcome.label() };
        self.inner.meters.turns.get_or_create(&labels).inc();
        live.end(outcome);
        self.remove_live(turn.id);
    }

    /// Stores the end with what goes out, and sends it on its way.
    async fn store_end(
        &self,
        turn: &NewTurn,
        live: &Live,
        outcome: &Outcome,
        absorbed: &[TurnId],
    ) -> Result<(), StoreError> {
        let outbox = &self.inner.outbox;
        // Only a response can be read again event by event.
        let is_numbered = turn.keep && turn.origin == Origin::Responses && matches!(outcome, Outcome::Completed { .. });
        let pieces = if is_numbered { live.pieces() } else { Vec::new() };
        let delivery = turn.deliver.as_ref().and_then(|target| {
            let limit = outbox.limits(target.platform()).and_then(|limits| limits.text);
            reply::delivery(turn.session.clone(), target, outcome, limit)
        });
        fault::point("turn.ending");
        for attempt in 1.. {
            let claimed = delivery.as_ref().and_then(|delivery| outbox.claim(&delivery.target));
            let (lease, absorbed) = (claimed.is_some(), absorbed.to_vec());
            let ending = Ending { delivery: delivery.clone(), lease, absorbed, pieces: pieces.clone() };
            match self.inner.store.end_turn(turn.id, outcome.clone(), ending).await {
                Ok(leased) => {
                    fault::point("turn.ended");
                    if let Some(delivery) = &delivery {
                        outbox.go_on(&delivery.target, claimed, leased);
                    }
                    break;
                }
                Err(e) => {
                    tracing::error!(error = %e, attempt, "the end of a turn could not be stored");
                    let Some(wait) = STORE_BACKOFF.after(attempt, None, dice()) else { return Err(e) };
                    drop(claimed);
                    tokio::time::sleep(wait).await;
                }
            }
        }
        Ok(())
    }

    /// Offers a turn's messages to the agent that works in its session.
    fn steer(&self, turn: &NewTurn) {
        let in_session: Vec<_> = self.in_session(turn).collect();
        if in_session.iter().any(|live| live.steer(turn.id, &turn.input, turn.deliver.as_ref())) {
            tracing::debug!("offered to the turn that runs");
        }
    }

    /// Makes a turn take the place of all that were there before it in its session.
    pub(super) fn supersede(&self, turn: &NewTurn) {
        self.in_session(turn).for_each(|live| live.cut(Cut::Superseded));
    }

    /// The other turns of the same session that have not ended.
    fn in_session(&self, turn: &NewTurn) -> impl Iterator<Item = Arc<Live>> + use<> {
        let live = self.live();
        let others = live.iter().filter(|(id, live)| **id < turn.id && *live.session() == turn.session);
        others.map(|(_, live)| live.clone()).collect::<Vec<_>>().into_iter()
    }
}

/// What becomes of a turn that does not go on.
fn cut_off(turn: &NewTurn, live: &Live, stop: &Stop, begun: bool) -> Work {
    match live.why_cut() {
        // With a hard stop everybody leaves; that does not mean that nobody wants it.
        Some(Cut::Unwanted) if turn.keep && stop.is_hard() => Work::LeftOver { begun },
        Some(Cut::Unwanted) => Work::Ended(Outcome::Cancelled, Vec::new()),
        Some(Cut::Superseded) => Work::Ended(Outcome::Superseded, Vec::new()),
        Some(Cut::Absorbed(by)) => Work::Absorbed(by),
        // The gateway stops.
        None if turn.keep => Work::LeftOver { begun },
        None => Work::Ended(Outcome::Interrupted, Vec::new()),
    }
}

fn store_failed(error: &StoreError) -> Outcome {
    Outcome::Failed { failure: Failure::Store, message: error.to_string() }
}

fn log(outcome: &Outcome) {
    match outcome {
        Outcome::Completed { text, usage, .. } => tracing::info!(
            bytes = text.len(),
            input_tokens = usage.input_tokens,
            output_tokens = usage.output_tokens,
            "turn completed"
        ),
        Outcome::Failed { message, .. } => tracing::error!(error = message, "turn failed"),
        other => tracing::info!(outcome = other.label(), "turn ended without a reply"),
    }
}

/// A gauge that is one higher for as long as this lives.
struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
