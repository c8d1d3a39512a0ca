//! One turn at a time in each session, in the order of their arrival; sessions beside each other.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::model::id::SessionId;

/// The lanes of all sessions that have a turn.
#[derive(Debug, Clone, Default)]
pub struct Lanes {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Who waits behind the turn that has the lane. No entry: the lane is free.
    queues: HashMap<SessionId, VecDeque<oneshot::Sender<Lane>>>,
    waiting: usize,
}

/// The right to run a turn in a session; its end passes it on.
#[derive(Debug)]
pub struct Lane {
    /// `None` once it is passed on.
    held: Option<(Lanes, SessionId)>,
}

/// A place in a lane, kept from the moment of arrival. Dropping it gives it up.
#[derive(Debug)]
pub enum Place {
    /// The lane was free.
    Free(Lane),
    /// Others are before us.
    Behind(oneshot::Receiver<Lane>),
}

impl Place {
    /// Whether there is nobody to wait for.
    pub fn is_free(&self) -> bool {
        matches!(self, Self::Free(_))
    }

    /// Waits until all who came before are through.
    pub async fn reached(self) -> Option<Lane> {
        match self {
            Self::Free(lane) => Some(lane),
            Self::Behind(turn) => turn.await.ok(),
        }
    }
}

impl Lanes {
    /// Takes the next place in the session's lane.
    pub fn enter(&self, session: &SessionId) -> Place {
        let mut inner = self.lock();
        if let Some(queue) = inner.queues.get_mut(session) {
            let (call, wait) = oneshot::channel();
            queue.push_back(call);
            inner.waiting += 1;
            return Place::Behind(wait);
        }
        inner.queues.insert(session.clone(), VecDeque::new());
        Place::Free(Lane { held: Some((self.clone(), session.clone())) })
    }

    /// How many wait, over all sessions; who gave up is counted until the lane reaches them.
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Who comes next in the session; forgets the session when nobody does.
    fn next(&self, session: &SessionId) -> Option<oneshot::Sender<Lane>> {
        let mut inner = self.lock();
        let next = inner.queues.get_mut(session).and_then(VecDeque::pop_front);
        match next {
            Some(_) => inner.waiting -= 1,
            None => drop(inner.queues.remove(session)),
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let Some((lanes, session)) = self.held.take() else { return };
        let mut held = (lanes.clone(), session.clone());
        while let Some(next) = lanes.next(&session) {
            match next.send(Self { held: Some(held) }) {
                Ok(()) => return,
                // That one gave up; the lane comes back and goes to the one behind.
                Err(mut lane) => match lane.held.take() {
                    Some(back) => held = back,
                    None => return,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_of_a_session_follow_each_other_and_those_who_gave_up_are_passed_over() {
        let lanes = Lanes::default();
        let session: SessionId = "s".parse().expect("an id");
        let first = lanes.enter(&session);
        assert!(first.is_free() && lanes.enter(&"other".parse().expect("an id")).is_free());
        let (second, third, fourth) = (lanes.enter(&session), lanes.enter(&session), lanes.enter(&session));
        assert_eq!(lanes.waiting(), 3);
        drop(second);
        drop(third);
        drop(first);
        let lane = fourth.reached().await.expect("the lane");
        assert_eq!(lanes.waiting(), 0);
        drop(lane);
        assert!(lanes.enter(&session).is_free(), "an empty lane is free again");
        assert!(lanes.lock().queues.is_empty(), "and leaves nothing behind");
    }
}
