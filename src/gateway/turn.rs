//! The life of one turn: wait, claim, ask the agent, store the end, tell.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::Instrument;

use super::lanes::{Lane, Place};
use super::live::Live;
use super::{Gateway, Settings, SubmitError, Ticket};
use crate::agent::{Agent, Events, Prompt};
use crate::meter::TurnLabels;
use crate::model::disposition::Disposition;
use crate::model::time::in_words;
use crate::model::turn::{AgentError, Failure, Finish, History, NewTurn, Outcome, TurnEnd, Usage};
use crate::policy::backoff::Backoff;
use crate::stop::panic_text;
use crate::store::{Recorded, StoreError};

/// The right to be among the turns that run.
pub type Permit = OwnedSemaphorePermit;

/// An agent that says "later" is asked again a few times, while the person waits.
const AGENT_BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(20), attempts: 4 };

/// An end that cannot be stored is tried again; after that the next life finds the turn unfinished.
const STORE_BACKOFF: Backoff = Backoff { first: Duration::from_millis(250), cap: Duration::from_secs(2), attempts: 4 };

/// How the work on a turn went.
enum Work {
    /// This is its end.
    Ended(Outcome),
    /// The gateway stops; the turn stays unfinished in the store, and the next life takes it up.
    LeftOver,
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
        let live = self.add_live(&turn);
        // Watching from here on, so that a caller who left is noticed as the last watcher.
        let watch = live.watch();
        match self.inner.store.record_turn(turn.clone(), permit.is_some()).await {
            Ok(Recorded::New) => {
                let ticket = Ticket { id: turn.id, session: turn.session.clone(), accepted: turn.accepted, watch };
                let _caller_left = reply.send(Ok(ticket));
                self.run(turn, live, place, permit).await;
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
    pub(super) async fn run(self, turn: NewTurn, live: Arc<Live>, place: Place, permit: Option<Permit>) {
        let span = tracing::info_span!("turn", turn = %turn.id, session = %turn.session, agent = turn.agent);
        let work = async {
            let began = Instant::now();
            let started = permit.is_some();
            let work = match self.wait(&live, place, permit).await {
                Some((lane, permit)) => {
                    let work = self.work(&turn, &live, started).await;
                    drop((lane, permit));
                    work
                }
                None if live.is_unwanted() => Work::Ended(Outcome::Cancelled),
                None => self.cut_off(&turn),
            };
            self.end(&turn, &live, work).await;
            self.inner.meters.turn_seconds.observe(began.elapsed().as_secs_f64());
        };
        work.instrument(span).await;
    }

    /// Waits for the session's lane and a place among the running; `None` if that is no longer wanted.
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
        tokio::select! {
            biased;
            () = live.unwanted() => None,
            () = self.inner.stop.hardened() => None,
            () = self.inner.stop.softened() => None,
            both = both => both,
        }
    }

    async fn work(&self, turn: &NewTurn, live: &Arc<Live>, started: bool) -> Work {
        let settings = self.settings();
        if !started && let Err(e) = self.inner.store.claim_turn(turn.id).await {
            return Work::Ended(store_failed(&e));
        }
        let Some(agent) = settings.agents.get(&turn.agent) else {
            let message = format!("there is no agent '{}' any more", turn.agent);
            return Work::Ended(Outcome::Failed { failure: Failure::Agent, message });
        };
        let _running = Counted::new(&self.inner.meters.turns_running);
        tokio::select! {
            biased;
            () = live.unwanted() => Work::Ended(Outcome::Cancelled),
            () = self.inner.stop.hardened() => self.cut_off(turn),
            outcome = self.answer(turn, live, agent, &settings) => Work::Ended(outcome),
        }
    }

    /// What a stop makes of a turn that is not through.
    fn cut_off(&self, turn: &NewTurn) -> Work {
        if turn.keep { Work::LeftOver } else { Work::Ended(Outcome::Interrupted) }
    }

    async fn answer(&self, turn: &NewTurn, live: &Live, agent: &Agent, settings: &Settings) -> Outcome {
        let timeout = settings.config.timeout;
        let prompt = match self.prompt(turn, agent).await {
            Ok(prompt) => prompt,
            Err(e) => return store_failed(&e),
        };
        match tokio::time::timeout(timeout, ask_patiently(agent, &prompt, live)).await {
            Err(_) => {
                let message = format!("the agent took longer than {}", in_words(timeout));
                Outcome::Failed { failure: Failure::Timeout, message }
            }
            Ok(Err(error)) => Outcome::Failed { failure: Failure::Agent, message: error.message },
            Ok(Ok(TurnEnd { finish, usage })) => {
                let text = live.text();
                let read = prompt.messages.iter().map(|message| message.content.as_str());
                let usage = usage.unwrap_or_else(|| Usage::estimate(read, &text));
                Outcome::Completed { text, finish, usage }
            }
        }
    }

    async fn prompt(&self, turn: &NewTurn, agent: &Agent) -> Result<Prompt, StoreError> {
        let mut messages = match &turn.history {
            _ if !agent.wants_history() => Vec::new(),
            History::Given(messages) => messages.clone(),
            History::Session => self.inner.store.session_history(turn.session.clone()).await?,
            History::Chain(last) => self.inner.store.chain_history(*last).await?,
        };
        messages.extend(turn.input.iter().cloned());
        Ok(Prompt { instructions: turn.instructions.clone(), messages })
    }

    /// Stores the end, then tells it.
    async fn end(&self, turn: &NewTurn, live: &Live, work: Work) {
        let outcome = match work {
            Work::Ended(outcome) => match self.store_end(turn, &outcome).await {
                Ok(()) => outcome,
                // The reply is not on disk, so it was not given: the person is told what is wrong instead.
                Err(e) => store_failed(&e),
            },
            Work::LeftOver => Outcome::Interrupted,
        };
        log(&outcome);
        let labels = TurnLabels { agent: turn.agent.clone(), outcome: outcome.label() };
        self.inner.meters.turns.get_or_create(&labels).inc();
        live.end(outcome);
        self.remove_live(turn.id);
    }

    async fn store_end(&self, turn: &NewTurn, outcome: &Outcome) -> Result<(), StoreError> {
        for attempt in 1.. {
            match self.inner.store.end_turn(turn.id, outcome.clone()).await {
                Ok(()) => break,
                Err(e) => {
                    tracing::error!(error = %e, attempt, "the end of a turn could not be stored");
                    let Some(wait) = STORE_BACKOFF.after(attempt, None, dice()) else { return Err(e) };
                    tokio::time::sleep(wait).await;
                }
            }
        }
        Ok(())
    }
}

/// Asks again while the agent says "later" and has not begun to speak.
async fn ask_patiently(agent: &Agent, prompt: &Prompt, live: &Live) -> Result<TurnEnd, AgentError> {
    for attempt in 1.. {
        let error = match ask(agent, prompt, live).await {
            Ok(end) => return Ok(end),
            Err(error) => error,
        };
        let wait = match error.disposition {
            Disposition::Retry { after } if !live.has_spoken() => AGENT_BACKOFF.after(attempt, after, dice()),
            _ => None,
        };
        let Some(wait) = wait else { return Err(error) };
        tracing::warn!(error = %error, attempt, wait_ms = wait.as_millis() as u64, "the agent is asked again");
        tokio::time::sleep(wait).await;
    }
    unreachable!("attempts are counted for ever")
}

/// One attempt: the agent's events go to the watchers; its panic is an error of this turn only.
async fn ask(agent: &Agent, prompt: &Prompt, live: &Live) -> Result<TurnEnd, AgentError> {
    let (events, mut heard) = Events::channel();
    let work = std::panic::AssertUnwindSafe(agent.turn(prompt.clone(), events)).catch_unwind();
    tokio::pin!(work);
    let mut end = None;
    loop {
        // The pipe is closed when the agent is through, and it is emptied before the end counts.
        tokio::select! {
            result = &mut work, if end.is_none() => end = Some(result),
            event = heard.recv() => {
                let Some(event) = event else { break };
                if !live.add(event) {
                    return Ok(TurnEnd { finish: Finish::Length, usage: None });
                }
            }
        }
    }
    let result = match end {
        Some(result) => result,
        None => work.await,
    };
    result.unwrap_or_else(|panic| {
        tracing::error!(panic = panic_text(panic.as_ref()), "an agent panicked");
        Err(AgentError { disposition: Disposition::Reject, message: "the agent failed inside the gateway".into() })
    })
}

/// A number in `0.0..1.0` for jitter; its quality matters to nobody.
fn dice() -> f64 {
    let random = uuid::Uuid::now_v7().as_u64_pair().1 & 0xffff_ffff;
    random as f64 / f64::from(u32::MAX)
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
