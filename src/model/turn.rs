//! A turn: what it is asked with, what happens in it, how it ends.

use serde::{Deserialize, Serialize};

use super::address::Target;
use super::disposition::Disposition;
use super::id::{SessionId, TurnId};
use super::message::Message;
use super::time::Timestamp;

/// Where a turn came from; it decides the shape in which its result can be asked for later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/responses`.
    Responses,
    /// The control socket (`hermes-gateway send`).
    Control,
    /// A message that a platform brought; its reply goes out as deliveries.
    Platform,
}

impl Origin {
    /// Every origin, for look-ups by label.
    pub const ALL: [Self; 4] = [Self::Chat, Self::Responses, Self::Control, Self::Platform];

    /// The word in the store, in logs and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Responses => "responses",
            Self::Control => "control",
            Self::Platform => "platform",
        }
    }
}

/// Which past messages the agent is shown before the new ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum History {
    /// These, given with the request.
    Given(Vec<Message>),
    /// What the session has said so far, from the store.
    Session,
    /// The chain of turns that ends with this one, from the store (`previous_response_id`).
    Chain(TurnId),
}

/// A repeated request is recognised by its key; the fingerprint tells whether it really is the same request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The client's `Idempotency-Key`.
    pub key: String,
    /// SHA-256 of what was asked.
    pub fingerprint: [u8; 32],
}

/// What is asked of a turn, before anything of it is stored.
#[derive(Debug, Clone)]
pub struct NewTurn {
    /// The turn's id, made by whoever asks.
    pub id: TurnId,
    /// The conversation it belongs to.
    pub session: SessionId,
    /// The agent that shall answer, by its configured name.
    pub agent: String,
    /// The name that the client gave for the agent (`model`), to be told again.
    pub model: String,
    /// Where it came from.
    pub origin: Origin,
    /// When it came.
    pub accepted: Timestamp,
    /// Instructions for this turn only; they are not part of the session.
    pub instructions: Option<String>,
    /// What the agent is shown first.
    pub history: History,
    /// What is newly said; at least one message.
    pub input: Vec<Message>,
    /// How a repetition is recognised, if the client wants that.
    pub idempotency: Option<Idempotency>,
    /// Whether the result can be asked for after the asking connection is gone: such a turn is finished even when
    /// nobody waits, and run again after a crash. What was asked at a terminal ([`Origin::Control`]) is only run again:
    /// whoever leaves the terminal takes it back.
    pub keep: bool,
    /// Where the reply goes by itself.
    pub deliver: Option<Target>,
}

/// What an agent reports while it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnEvent {
    /// A piece of the reply, to be appended.
    Text(String),
    /// A piece of what the agent thinks aloud; not part of the reply.
    Thought(String),
}

/// How many tokens a turn used. Agents that do not count report characters / 4, rounded up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
}

impl Usage {
    /// The estimate for agents that do not count: four characters to a token.
    pub fn estimate<'a>(read: impl Iterator<Item = &'a str>, written: &str) -> Self {
        let tokens = |text: &str| (text.chars().count() as u64).div_ceil(4);
        Self { input_tokens: read.map(tokens).sum(), output_tokens: tokens(written) }
    }
}

/// Why a completed reply ends where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The agent had said everything.
    Stop,
    /// A length limit cut it.
    Length,
}

/// What an agent hands back when it is through; its text went before, as events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnEnd {
    /// Why the text ends here.
    pub finish: Finish,
    /// What it used, if the agent counts.
    pub usage: Option<Usage>,
}

/// An agent's failure, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AgentError {
    /// What to do next.
    pub disposition: Disposition,
    /// What happened, for the person who asked and for the log: a lowercase fragment without secrets.
    pub message: String,
}

/// Who failed when a turn failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The agent.
    Agent,
    /// The agent was not through in time.
    Timeout,
    /// The store: the reply could not be made durable, so it was not given.
    Store,
}

/// How a turn ended, as it is stored and told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The agent replied.
    Completed {
        /// The whole reply.
        text: String,
        /// Why it ends there.
        finish: Finish,
        /// What it used.
        usage: Usage,
    },
    /// It could not be answered; the message says why.
    Failed {
        /// Who failed.
        failure: Failure,
        /// For the person who asked.
        message: String,
    },
    /// Somebody no longer wanted it.
    Cancelled,
    /// The gateway stopped or died before it was through, and nobody could have asked for the result.
    Interrupted,
    /// It was running at each of too many crashes and is not tried again.
    Parked,
    /// A newer message of the same session took its place; what was asked still belongs to the conversation.
    Superseded,
    /// What was asked was added to this turn, which was running; the answer is there.
    Absorbed(TurnId),
}

impl Outcome {
    /// The word for it in the store, in logs and in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Completed { .. } => "completed",
            Self::Failed { .. } => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
            Self::Parked => "parked",
            Self::Superseded => "superseded",
            Self::Absorbed(_) => "absorbed",
        }
    }
}

/// A turn as the store knows it.
#[derive(Debug, Clone)]
pub struct TurnRecord {
    /// Its id.
    pub id: TurnId,
    /// Its session.
    pub session: SessionId,
    /// The agent it was given to.
    pub agent: String,
    /// The name that the client gave for the agent.
    pub model: String,
    /// Where it came from.
    pub origin: Origin,
    /// Whether its result can be asked for.
    pub keep: bool,
    /// Instructions for this turn only.
    pub instructions: Option<String>,
    /// How often it was started.
    pub attempts: u32,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// How it ended; `None` while it is queued or running.
    pub outcome: Option<Outcome>,
    /// The lengths of the pieces in which its reply was said, in bytes; empty where that was not kept.
    pub pieces: Vec<usize>,
    /// SHA-256 of what was asked, where an idempotency key was given.
    pub fingerprint: Option<[u8; 32]>,
    /// The turn it continued (`previous_response_id`), or that took it up.
    pub parent: Option<TurnId>,
    /// Where its reply goes by itself.
    pub deliver: Option<Target>,
}
