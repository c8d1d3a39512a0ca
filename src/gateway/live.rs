//! A turn in flight: what it has said so far, for everybody who watches, from the first word on.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::SteeringSender;
use crate::model::address::Target;
use crate::model::id::{SessionId, TurnId};
use crate::model::message::Message;
use crate::model::turn::{NewTurn, Origin, Outcome, TurnEvent};

mod watching;
pub use watching::{Progress, Resumed, Watch};

/// Longest reply, in bytes; an agent that says more is cut off there.
pub const MAX_REPLY: usize = 8 * 1024 * 1024;

/// A turn in flight. It is held by the task that runs it; watchers come and go.
#[derive(Debug)]
pub struct Live {
    turn: TurnId,
    /// Which attempt this is, from 1; another one may say something else.
    attempt: u32,
    said: Mutex<Said>,
    /// Counts changes; whoever watches looks again.
    changed: watch::Sender<u64>,
    /// Who watches.
    watchers: watch::Sender<usize>,
    /// Set when it is not to go on, with the reason.
    cut: CancellationToken,
    reason: OnceLock<Cut>,
    /// Whether it is wanted even when nobody watches.
    keep: bool,
    /// While an agent works that can be told more.
    steering: Mutex<Option<SteeringSender>>,
    session: SessionId,
    deliver: Option<Target>,
}

/// Why a turn does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nobody wants it any more.
    Unwanted,
    /// A newer message takes its place.
    Superseded,
    /// What it asks was added to this turn; that is in the store already.
    Absorbed(TurnId),
}

#[derive(Debug, Default)]
struct Said {
    text: String,
    thoughts: String,
    /// What was said, piece by piece, as the agent said it.
    pieces: Vec<Piece>,
    outcome: Option<Outcome>,
}

/// Where a piece ends, in bytes of its text.
#[derive(Debug, Clone, Copy)]
enum Piece {
    Text(usize),
    Thought(usize),
}

impl Live {
    /// A turn that has said nothing yet, and was started `attempts` times before.
    pub fn new(turn: &NewTurn, attempts: u32) -> Self {
        // Whoever leaves the terminal takes back what they asked there; only the gateway's own end does not count.
        let keep = turn.keep && turn.origin != Origin::Control;
        Self::of(turn.id, attempts + 1, keep, turn.session.clone(), turn.deliver.clone())
    }

    fn of(turn: TurnId, attempt: u32, keep: bool, session: SessionId, deliver: Option<Target>) -> Self {
        Self {
            turn,
            attempt,
            said: Mutex::default(),
            changed: watch::Sender::new(0),
            watchers: watch::Sender::new(0),
            cut: CancellationToken::new(),
            reason: OnceLock::new(),
            keep,
            steering: Mutex::default(),
            session,
            deliver,
        }
    }

    /// A new watcher, who will see everything from the beginning.
    pub fn watch(self: &Arc<Self>) -> Watch {
        self.watchers.send_modify(|count| *count += 1);
        Watch::new(self.clone())
    }

    /// Adds what the agent said; whether there is room for more.
    pub fn add(&self, event: TurnEvent) -> bool {
        let mut said = self.lock();
        let piece = match event {
            TurnEvent::Text(text) | TurnEvent::Thought(text) if text.is_empty() => return true,
            TurnEvent::Text(text) => {
                said.text.push_str(&text);
                Piece::Text(said.text.len())
            }
            TurnEvent::Thought(text) => {
                said.thoughts.push_str(&text);
                Piece::Thought(said.thoughts.len())
            }
        };
        said.pieces.push(piece);
        let room = said.text.len().max(said.thoughts.len()) < MAX_REPLY;
        drop(said);
        self.tell();
        room
    }

    /// The reply so far.
    pub fn text(&self) -> String {
        self.lock().text.clone()
    }

    /// The lengths of the pieces in which it was said, in bytes.
    pub fn pieces(&self) -> Vec<usize> {
        let mut before = 0;
        let said = self.lock();
        let ends = said.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(end) => Some(*end),
            Piece::Thought(_) => None,
        });
        ends.map(|end| end - mem::replace(&mut before, end)).collect()
    }

    /// Whether anything was said yet; what was said cannot be taken back by trying again.
    pub fn has_spoken(&self) -> bool {
        !self.lock().text.is_empty()
    }

    /// Tells everybody that it is over. To be called when the store knows.
    pub fn end(&self, outcome: Outcome) {
        self.lock().outcome = Some(outcome);
        self.tell();
    }

    /// Waits until it is over.
    pub async fn is_over(&self) {
        let mut changed = self.changed.subscribe();
        // The sender lives in `self`.
        while self.lock().outcome.is_none() && changed.changed().await.is_ok() {}
    }

    /// Makes the turn not go on. The first reason counts.
    pub fn cut(&self, why: Cut) {
        let _first_counts = self.reason.set(why);
        self.cut.cancel();
    }

    /// Waits until it is not to go on.
    pub async fn is_cut(&self) {
        self.cut.cancelled().await;
    }

    /// Why it does not go on, if it does not.
    pub fn why_cut(&self) -> Option<Cut> {
        self.reason.get().copied()
    }

    /// Makes it not go on if nobody watches and it is not wanted for its own sake.
    pub fn cut_if_unwatched(&self) {
        // Under the lock of the count: who comes to watch finds it cut, or keeps it.
        self.watchers.send_if_modified(|count| {
            if *count == 0 && !self.keep && self.lock().outcome.is_none() {
                self.cut(Cut::Unwanted);
            }
            false
        });
    }

    /// Waits until nobody watches.
    pub async fn unwatched(&self) {
        let mut watchers = self.watchers.subscribe();
        // The sender lives in `self`, so this ends only when it is true.
        drop(watchers.wait_for(|count| *count == 0).await);
    }

    /// The session.
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// An agent works that can be told more, or does not any longer.
    pub fn set_steering(&self, steering: Option<SteeringSender>) {
        *self.steering.lock().unwrap_or_else(PoisonError::into_inner) = steering;
    }

    /// Offers the working agent the messages of another turn that has the same way back; whether it may take them. If
    /// it does, that turn ends with this one, else it is run by itself.
    pub fn steer(&self, turn: TurnId, messages: &[Message], deliver: Option<&Target>) -> bool {
        let steering = self.steering.lock().unwrap_or_else(PoisonError::into_inner);
        let same_way = self.deliver.as_ref() == deliver;
        steering.as_ref().filter(|_| same_way).is_some_and(|steering| steering.offer(turn, messages.to_vec()))
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
