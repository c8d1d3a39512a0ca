//! What comes in from platforms. A message is on disk before its platform is told so; then it becomes a turn of its
//! session, or part of one.

use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::sync::oneshot;

use super::gathering::Joining;
use super::turn::Assignment;
use super::{Gateway, SubmitError};
use crate::fault;
use crate::meter::InboundLabels;
use crate::model::address::{Cursor, Source, Target};
use crate::model::id::{SessionId, TurnId};
use crate::model::message::Message;
use crate::model::time::Timestamp;
use crate::model::turn::{History, NewTurn, Origin};
use crate::policy::session::{Busy, Reset, Rules};
use crate::store::{Arrival, Received};

/// A message that a platform brings.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Which message it is.
    pub source: Source,
    /// The session that it belongs to.
    pub session: SessionId,
    /// The agent that shall answer; `None`: the default one.
    pub agent: Option<String>,
    /// What is said.
    pub text: String,
    /// Where the reply goes.
    pub deliver: Option<Target>,
    /// How its session takes messages.
    pub rules: Rules,
}

/// A message that was taken: it is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The turn that it belongs to.
    pub turn: TurnId,
    /// Whether it was brought for the first time.
    pub new: bool,
}

/// A message on its way to the store.
struct Prepared {
    arrival: Arrival,
    next: Next,
}

/// What happens with it when it is there.
enum Next {
    /// Its turn is run.
    Run(Box<Assignment>),
    /// Its turn waits for it.
    Join(Joining),
}

impl Gateway {
    /// Takes messages from a platform, together with how far it has read: returns when they are on disk, and not one of
    /// them is if that fails. A message that was brought before is told as such.
    pub async fn receive(&self, messages: Vec<Inbound>, cursor: Option<Cursor>) -> Result<Vec<Taken>, SubmitError> {
        let (reply, answer) = oneshot::channel();
        // A task of its own: who brought it may leave in between.
        self.inner.tasks.spawn("inbox", self.clone().take_in(messages, cursor, reply));
        answer.await.unwrap_or(Err(SubmitError::Stopping))
    }

    async fn take_in(
        self,
        messages: Vec<Inbound>,
        cursor: Option<Cursor>,
        reply: oneshot::Sender<Result<Vec<Taken>, SubmitError>>,
    ) {
        let mut prepared = Vec::with_capacity(messages.len());
        for message in messages {
            match self.prepare(message).await {
                Ok(ready) => prepared.push(ready),
                Err(e) => return drop(reply.send(Err(e))),
            }
        }
        let arrivals: Vec<_> = prepared.iter().map(|p| p.arrival.clone()).collect();
        fault::point("inbox.before");
        if fault::is_sabotaged("inbox.ack-first") {
            let told = prepared.iter().map(|p| Taken { turn: turn_of(&p.arrival), new: true }).collect();
            drop(reply.send(Ok(told)));
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _lost = self.inner.store.receive(arrivals, cursor, Timestamp::now()).await;
            return prepared.into_iter().for_each(|ready| self.go_on_with(ready));
        }
        let received = match self.inner.store.receive(arrivals, cursor, Timestamp::now()).await {
            Ok(received) => received,
            Err(e) => return drop(reply.send(Err(e.into()))),
        };
        fault::point("inbox.recorded");
        let mut taken = Vec::with_capacity(prepared.len());
        for (ready, received) in prepared.into_iter().zip(received) {
            self.count(&ready.arrival, received);
            taken.push(match received {
                Received::New => {
                    let turn = turn_of(&ready.arrival);
                    self.go_on_with(ready);
                    Taken { turn, new: true }
                }
                Received::Known(turn) => {
                    self.forget(ready);
                    Taken { turn, new: false }
                }
            });
        }
        let _caller_left = reply.send(Ok(taken));
    }

    /// Finds out what a message is to become, and takes its place in its session's lane.
    async fn prepare(&self, message: Inbound) -> Result<Prepared, SubmitError> {
        let settings = self.settings();
        let agent = message.agent.unwrap_or_else(|| settings.agents.default_name().to_owned());
        if settings.agents.get(&agent).is_none() {
            return Err(SubmitError::UnknownAgent(agent));
        }
        let (source, rules, said) = (message.source, message.rules, Message::user(message.text));
        if !rules.debounce.is_zero()
            && let Some(joining) = self.inner.gatherings.join(&message.session, &agent, message.deliver.as_ref())
        {
            let arrival = Arrival::Joins { source, turn: joining.turn(), message: said };
            return Ok(Prepared { arrival, next: Next::Join(joining) });
        }
        let fresh = self.is_over(&message.session, rules.reset).await?;
        let place = self.inner.lanes.enter(&message.session);
        if !place.is_free() && self.inner.lanes.waiting() > settings.config.max_queued {
            return Err(SubmitError::Full(settings.config.max_queued));
        }
        let turn = NewTurn {
            id: TurnId::new(),
            session: message.session,
            agent: agent.clone(),
            model: agent,
            origin: Origin::Platform,
            accepted: Timestamp::now(),
            instructions: None,
            history: History::Session,
            input: vec![said],
            idempotency: None,
            keep: true,
            deliver: message.deliver,
        };
        let at_once = place.is_free() && rules.debounce.is_zero() && !self.is_stopping();
        let permit = at_once.then(|| settings.places.clone().try_acquire_owned().ok()).flatten();
        let gathering = (!rules.debounce.is_zero()).then(|| self.inner.gatherings.begin(&turn, rules.debounce));
        let arrival = Arrival::Begins { source, turn: Box::new(turn.clone()), started: permit.is_some(), fresh };
        let live = self.add_live(&turn, 0);
        let assignment = Assignment { turn, live, place, permit, gathering, busy: rules.busy, attempts: 0 };
        Ok(Prepared { arrival, next: Next::Run(Box::new(assignment)) })
    }

    /// Whether a session's conversation has ended by itself.
    async fn is_over(&self, session: &SessionId, reset: Reset) -> Result<bool, SubmitError> {
        if reset == Reset::Never {
            return Ok(false);
        }
        let last = self.inner.store.last_active(session.clone()).await?;
        Ok(last.is_some_and(|last| reset.is_over(last, Timestamp::now(), &TimeZone::system())))
    }

    fn go_on_with(&self, ready: Prepared) {
        match ready.next {
            Next::Join(joining) => joining.joined(),
            // The successor finds it in the store.
            Next::Run(assignment) if self.is_stopping() => self.remove_live(assignment.turn.id),
            Next::Run(assignment) => {
                if assignment.busy == Busy::Interrupt {
                    self.supersede(&assignment.turn);
                }
                self.inner.tasks.spawn("turn", self.clone().run(*assignment));
            }
        }
    }

    fn count(&self, arrival: &Arrival, received: Received) {
        let (Arrival::Begins { source, .. } | Arrival::Joins { source, .. }) = arrival;
        let outcome = if received == Received::New { "new" } else { "duplicate" };
        let labels = InboundLabels { platform: source.platform.clone(), outcome };
        self.inner.meters.inbound.get_or_create(&labels).inc();
    }

    fn forget(&self, ready: Prepared) {
        if let Next::Run(assignment) = ready.next {
            self.remove_live(assignment.turn.id);
        }
    }
}

fn turn_of(arrival: &Arrival) -> TurnId {
    match arrival {
        Arrival::Begins { turn, .. } => turn.id,
        Arrival::Joins { turn, .. } => *turn,
    }
}
