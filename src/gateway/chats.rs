//! One delivery at a time in each chat: who sends there, and whether there is more to send when they are through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::address::Target;

/// Most chats that are sent to at the same time; each is a task. What is more waits in the store.
const MAX_BUSY: usize = 1024;

/// The chats that are being sent to.
#[derive(Debug, Clone, Default)]
pub struct Chats {
    /// For each of them, whether something was stored since its sender last looked.
    busy: Arc<Mutex<HashMap<Target, bool>>>,
}

/// The right to send to a chat. Nobody else has it; dropping it gives it up.
#[derive(Debug)]
pub struct Chat {
    chats: Chats,
    target: Target,
    /// Until it is given up.
    held: bool,
}

impl Chats {
    /// The right to send to a chat; `None` if somebody has it, or too many chats are being sent to.
    pub fn claim(&self, target: &Target) -> Option<Chat> {
        let mut busy = self.lock();
        if busy.len() >= MAX_BUSY || busy.contains_key(target) {
            return None;
        }
        busy.insert(target.clone(), false);
        Some(Chat { chats: self.clone(), target: target.clone(), held: true })
    }

    /// Says that something for the chat was stored: its sender will look again. If it has none, the right to send.
    pub fn notice(&self, target: &Target) -> Option<Chat> {
        if let Some(more) = self.lock().get_mut(target) {
            *more = true;
            return None;
        }
        self.claim(target)
    }

    /// Whether no more chats can be sent to now.
    pub fn are_full(&self) -> bool {
        self.lock().len() >= MAX_BUSY
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Target, bool>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chat {
    /// The chat.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Gives the right up, unless something was stored meanwhile: then the sender is to look again.
    pub fn finish(mut self) -> Option<Self> {
        {
            let mut busy = self.chats.lock();
            match busy.get_mut(&self.target) {
                Some(more) if *more => *more = false,
                _ => {
                    // In one step with the look: who stores after it finds the chat free.
                    busy.remove(&self.target);
                    self.held = false;
                }
            }
        }
        self.held.then_some(self)
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        if self.held {
            self.chats.lock().remove(&self.target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_has_one_sender_who_misses_nothing() {
        let chats = Chats::default();
        let target: Target = "p:1".parse().expect("a target");
        let chat = chats.claim(&target).expect("free");
        assert!(chats.claim(&target).is_none() && chats.claim(&"p:2".parse().expect("a target")).is_some());
        assert!(chats.notice(&target).is_none(), "its sender is told");
        let chat = chat.finish().expect("there is more");
        assert!(chat.finish().is_none());
        assert!(chats.notice(&target).is_some(), "nobody sends there, so whoever stored may");
        assert!(chats.lock().is_empty());
    }
}
