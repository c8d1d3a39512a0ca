//! A turn in flight: what it has said so far, for everybody who watches, from the first word on.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::SteeringSender;
use crate::model::address::Target;
use crate::model::id::{SessionId, TurnId};
use crate::model::message::Message;
use crate::model::turn::{NewTurn, Outcome, TurnEvent};

/// Longest reply, in bytes; an agent that says more is cut off there.
pub const MAX_REPLY: usize = 8 * 1024 * 1024;

/// A turn in flight. It is held by the task that runs it; watchers come and go.
#[derive(Debug)]
pub struct Live {
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

/// What a watcher sees next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The next piece of the reply.
    Text(String),
    /// The next piece of what the agent thinks aloud.
    Thought(String),
    /// The end; there is no more.
    Ended(Outcome),
}

/// Somebody who watches a turn. The last one to leave cancels it, unless its result can be asked for later.
#[derive(Debug)]
pub struct Watch {
    live: Arc<Live>,
    changed: watch::Receiver<u64>,
    /// Pieces seen, and bytes of each kind.
    seen: usize,
    text_seen: usize,
    thoughts_seen: usize,
}

impl Live {
    /// A turn that has said nothing yet.
    pub fn new(turn: &NewTurn) -> Self {
        Self::of(turn.keep, turn.session.clone(), turn.deliver.clone())
    }

    fn of(keep: bool, session: SessionId, deliver: Option<Target>) -> Self {
        Self {
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
        Watch { live: self.clone(), changed: self.changed.subscribe(), seen: 0, text_seen: 0, thoughts_seen: 0 }
    }

    /// Adds what the agent said; whether there is room for more.
    pub fn add(&self, event: TurnEvent) -> bool {
        let mut said = self.lock();
        let piece = match event {
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

    /// Whether anything was said yet; what was said cannot be taken back by trying again.
    pub fn has_spoken(&self) -> bool {
        !self.lock().text.is_empty()
    }

    /// Tells everybody that it is over. To be called when the store knows.
    pub fn end(&self, outcome: Outcome) {
        self.lock().outcome = Some(outcome);
        self.tell();
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

impl Watch {
    /// A watch on a turn that ended before.
    pub fn ended(session: SessionId, outcome: Outcome) -> Self {
        let live = Arc::new(Live::of(true, session, None));
        if let Outcome::Completed { text, .. } = &outcome {
            live.add(TurnEvent::Text(text.clone()));
        }
        live.end(outcome);
        live.watch()
    }

    /// What comes next; after [`Progress::Ended`] the same again.
    pub async fn next(&mut self) -> Progress {
        loop {
            if let Some(progress) = self.look() {
                return progress;
            }
            // The sender lives in `self.live`, so this ends only when something changed.
            if self.changed.changed().await.is_err() {
                return Progress::Ended(Outcome::Interrupted);
            }
        }
    }

    /// How it ends; passes over what is said until then.
    pub async fn outcome(&mut self) -> Outcome {
        loop {
            if let Progress::Ended(outcome) = self.next().await {
                return outcome;
            }
        }
    }

    /// The outcome if it has ended.
    pub fn outcome_now(&self) -> Option<Outcome> {
        self.live.lock().outcome.clone()
    }

    fn look(&mut self) -> Option<Progress> {
        let said = self.live.lock();
        let Some(piece) = said.pieces.get(self.seen) else { return said.outcome.clone().map(Progress::Ended) };
        self.seen += 1;
        // Each piece was added whole, so these ends are character boundaries.
        Some(match *piece {
            Piece::Text(end) => Progress::Text(said.text[mem::replace(&mut self.text_seen, end)..end].to_owned()),
            Piece::Thought(end) => {
                Progress::Thought(said.thoughts[mem::replace(&mut self.thoughts_seen, end)..end].to_owned())
            }
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.live.watchers.send_modify(|count| *count -= 1);
        let ended = self.live.lock().outcome.is_some();
        if *self.live.watchers.borrow() == 0 && !self.live.keep && !ended {
            self.live.cut(Cut::Unwanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::turn::{Finish, Usage};

    fn live(keep: bool) -> Arc<Live> {
        Arc::new(Live::of(keep, "s".parse().expect("an id"), None))
    }

    fn completed(text: &str) -> Outcome {
        Outcome::Completed { text: text.into(), finish: Finish::Stop, usage: Usage::default() }
    }

    #[tokio::test]
    async fn early_and_late_watchers_see_the_same_story() {
        let live = live(false);
        let mut early = live.watch();
        live.add(TurnEvent::Thought("hm".into()));
        live.add(TurnEvent::Text("Grüß ".into()));
        assert_eq!(early.next().await, Progress::Thought("hm".into()));
        assert_eq!(early.next().await, Progress::Text("Grüß ".into()));
        live.add(TurnEvent::Text("Gott".into()));
        live.end(completed("Grüß Gott"));
        assert_eq!(early.next().await, Progress::Text("Gott".into()));
        let mut late = live.watch();
        assert_eq!(late.next().await, Progress::Thought("hm".into()));
        assert_eq!(late.next().await, Progress::Text("Grüß ".into()));
        assert_eq!(late.next().await, Progress::Text("Gott".into()));
        assert_eq!(early.outcome().await, late.outcome().await);
    }

    #[tokio::test]
    async fn the_last_to_leave_cancels_what_cannot_be_asked_for_later() {
        let live = live(false);
        let (first, second) = (live.watch(), live.watch());
        drop(first);
        assert_eq!(live.why_cut(), None);
        drop(second);
        live.is_cut().await;
        live.unwatched().await;
        assert_eq!(live.why_cut(), Some(Cut::Unwanted));
        let kept = self::live(true);
        drop(kept.watch());
        assert_eq!(kept.why_cut(), None);
    }
}
