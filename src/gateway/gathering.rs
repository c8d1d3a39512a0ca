//! Bursts: messages that follow each other quickly become one turn, which waits for the end of the burst.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::model::address::Target;
use crate::model::id::{SessionId, TurnId};
use crate::model::turn::NewTurn;

/// Most messages of a burst that become one turn.
const MAX_BURST: usize = 100;
/// A burst that does not end is cut after this many times its pause.
const MAX_PAUSES: u32 = 10;

/// The turns that wait for the end of a burst.
#[derive(Debug, Clone, Default)]
pub struct Gatherings {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The one of each session that a message may still join.
    joinable: HashMap<SessionId, TurnId>,
    bursts: HashMap<TurnId, Burst>,
}

#[derive(Debug)]
struct Burst {
    agent: String,
    deliver: Option<Target>,
    pause: Duration,
    /// It is over when nothing came until then.
    until: Instant,
    /// It is over then in any case.
    end: Instant,
    messages: usize,
    /// Messages on their way to the store.
    joining: usize,
    changed: Arc<Notify>,
}

/// A turn that waits for the end of a burst. Dropping it ends the burst.
#[derive(Debug)]
pub struct Gathering {
    all: Gatherings,
    session: SessionId,
    turn: TurnId,
}

/// A message on its way into a turn that waits for it. Dropping it says that it did not get there.
#[derive(Debug)]
pub struct Joining {
    all: Gatherings,
    turn: TurnId,
}

impl Gatherings {
    /// A burst begins with this turn.
    pub fn begin(&self, turn: &NewTurn, pause: Duration) -> Gathering {
        let now = Instant::now();
        let burst = Burst {
            agent: turn.agent.clone(),
            deliver: turn.deliver.clone(),
            pause,
            until: now + pause,
            end: now + pause * MAX_PAUSES,
            messages: 1,
            joining: 0,
            changed: Arc::default(),
        };
        let mut inner = self.lock();
        inner.joinable.insert(turn.session.clone(), turn.id);
        inner.bursts.insert(turn.id, burst);
        Gathering { all: self.clone(), session: turn.session.clone(), turn: turn.id }
    }

    /// A message for a burst that goes on in its session, for the same agent and with the same way back.
    pub fn join(&self, session: &SessionId, agent: &str, deliver: Option<&Target>) -> Option<Joining> {
        let mut inner = self.lock();
        let turn = *inner.joinable.get(session)?;
        let burst = inner.bursts.get_mut(&turn)?;
        if burst.agent != agent || burst.deliver.as_ref() != deliver || burst.messages >= MAX_BURST {
            return None;
        }
        burst.messages += 1;
        burst.joining += 1;
        Some(Joining { all: self.clone(), turn })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn close(&mut self, session: &SessionId, turn: TurnId) {
        self.bursts.remove(&turn);
        if self.joinable.get(session) == Some(&turn) {
            self.joinable.remove(session);
        }
    }
}

impl Gathering {
    /// Waits for the end of the burst; whether more than the first message may have come.
    pub async fn ended(self) -> bool {
        loop {
            let (until, changed) = {
                let mut inner = self.all.lock();
                let Some(burst) = inner.bursts.get(&self.turn) else { return true };
                let until = burst.until.min(burst.end);
                if burst.joining == 0 && Instant::now() >= until {
                    let grew = burst.messages > 1;
                    // Under the lock of the look: no message can join in between.
                    inner.close(&self.session, self.turn);
                    return grew;
                }
                // A message on its way to the store is waited for, however long that takes.
                ((burst.joining == 0).then_some(until), burst.changed.clone())
            };
            match until {
                None => changed.notified().await,
                Some(until) => drop(tokio::time::timeout_at(until, changed.notified()).await),
            }
        }
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        self.all.lock().close(&self.session, self.turn);
    }
}

impl Joining {
    /// The turn.
    pub fn turn(&self) -> TurnId {
        self.turn
    }

    /// It got there: the burst goes on from now.
    pub fn joined(self) {
        if let Some(burst) = self.all.lock().bursts.get_mut(&self.turn) {
            burst.until = Instant::now() + burst.pause;
        }
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        if let Some(burst) = self.all.lock().bursts.get_mut(&self.turn) {
            burst.joining = burst.joining.saturating_sub(1);
            burst.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::message::Message;
    use crate::model::time::Timestamp;
    use crate::model::turn::{History, Origin};

    const PAUSE: Duration = Duration::from_secs(2);

    fn turn() -> NewTurn {
        NewTurn {
            id: TurnId::new(),
            session: "s".parse().expect("an id"),
            agent: "a".into(),
            model: "a".into(),
            origin: Origin::Platform,
            accepted: Timestamp::now(),
            instructions: None,
            history: History::Session,
            input: vec![Message::user("x")],
            idempotency: None,
            keep: true,
            deliver: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_ends_when_nothing_comes_for_a_while() {
        let (all, turn, began) = (Gatherings::default(), turn(), Instant::now());
        let gathering = all.begin(&turn, PAUSE);
        let ended = async move { (gathering.ended().await, began.elapsed()) };
        let talk = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                all.join(&turn.session, "a", None).expect("open").joined();
            }
            assert!(all.join(&turn.session, "another", None).is_none());
        };
        let ((grew, took), ()) = tokio::join!(ended, talk);
        assert!(grew && took.as_secs() == 5, "{took:?}");
        assert!(all.join(&turn.session, "a", None).is_none(), "it is over");
        assert!(all.lock().bursts.is_empty() && all.lock().joinable.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_burst_is_cut_and_a_lost_message_does_not_hold_it() {
        let (all, turn, began) = (Gatherings::default(), turn(), Instant::now());
        let gathering = all.begin(&turn, PAUSE);
        let endless = async {
            while let Some(joining) = all.join(&turn.session, "a", None) {
                joining.joined();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let ended = async { (gathering.ended().await, began.elapsed()) };
        let ((_, took), ()) = tokio::join!(ended, endless);
        assert!(took >= PAUSE * MAX_PAUSES && took <= PAUSE * (MAX_PAUSES + 1), "{took:?}");
        let gathering = all.begin(&turn, PAUSE);
        let joining = all.join(&turn.session, "a", None).expect("open");
        let lose = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(joining);
        };
        let began = Instant::now();
        let ((), _) = tokio::join!(lose, gathering.ended());
        assert_eq!(began.elapsed().as_secs(), 60, "the end waits for what is on its way");
    }
}
