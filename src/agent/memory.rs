//! What an agent that is a program has to find again after a crash: its conversation, and the work that goes on.

use serde::{Deserialize, Serialize};

use super::{Events, Prompt};
use crate::model::id::TurnId;
use crate::model::turn::AgentError;

/// What is kept of a session, as JSON. What cannot be read counts as nothing: the agent begins anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The agent's own name of the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// How often restoring it ended with the agent's death, one after the other.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deadly_restores: u32,
    /// What was asked last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Running>,
}

/// A turn that is with a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The turn, as text.
    pub turn: String,
    /// The worker's name.
    pub worker: String,
    /// The number of the request that the turn is, where the agent counts them.
    #[serde(default)]
    pub request: u64,
    /// Where in the worker's output the answer begins, in bytes.
    #[serde(default)]
    pub offset: u64,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Memory {
    /// What is remembered for this prompt.
    pub fn of(prompt: &Prompt) -> Self {
        prompt.memory.as_deref().map(Self::parse).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The work on this very turn that an earlier life left behind.
    pub fn running(&self, turn: TurnId) -> Option<&Running> {
        self.running.as_ref().filter(|running| running.turn == turn.to_string())
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it could not be stored, or nobody listens any more.
    pub async fn keep(&self, events: &Events) -> Result<(), AgentError> {
        let text = serde_json::to_string(self).unwrap_or_default();
        events.remember(text).await
    }
}

/// The worker that may still be at work on a turn, if what was remembered for it names one.
pub fn worker_of(memory: &str, turn: TurnId) -> Option<String> {
    Memory::parse(memory).running(turn).map(|running| running.worker.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_work_on_the_same_turn_is_taken_up_again() {
        let (turn, other) = (TurnId::new(), TurnId::new());
        let running = Running { turn: turn.to_string(), worker: "w".into(), request: 3, offset: 7 };
        let memory = Memory { session: Some("s".into()), deadly_restores: 0, running: Some(running) };
        let text = serde_json::to_string(&memory).expect("JSON");
        assert_eq!(Memory::parse(&text), memory);
        assert_eq!((worker_of(&text, turn), worker_of(&text, other)), (Some("w".into()), None));
        assert_eq!(worker_of("not JSON", turn), None);
    }
}
