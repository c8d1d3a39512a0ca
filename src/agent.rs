//! Layer 2: agents, the ones who answer. One file for each kind.
//!
//! An agent is asked with a [`Prompt`], reports what it says through [`Events`] while it works, and ends with a
//! [`TurnEnd`] or an [`AgentError`]. It never retries, stores or logs what was said: whoever called it does.
//! Dropping the future is how a turn is cancelled.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::model::disposition::Disposition;
use crate::model::id::{SessionId, TurnId};
use crate::model::message::Message;
use crate::model::turn::{AgentError, TurnEnd, TurnEvent};

pub mod echo;
pub mod openai;

/// Events that may wait for their reader; an agent that is faster waits.
pub const EVENT_QUEUE: usize = 64;

/// What an agent reports while it works.
#[derive(Debug)]
pub enum Report {
    /// Something for everybody who watches.
    Said(TurnEvent),
    /// Something that it wants to find again; told when it is on disk.
    Remember(String, oneshot::Sender<()>),
    /// It goes on where it was when the gateway stopped or died.
    Resumed,
}

/// Where an agent reports what it says.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Report>);

impl Events {
    /// A pipe from an agent to its turn.
    pub fn channel() -> (Self, mpsc::Receiver<Report>) {
        let (send, receive) = mpsc::channel(EVENT_QUEUE);
        (Self(send), receive)
    }

    /// Reports an event; waits while the reader is behind.
    ///
    /// # Errors
    /// When nobody listens any more: the turn is over for everybody but the agent.
    pub async fn send(&self, event: TurnEvent) -> Result<(), AgentError> {
        self.report(Report::Said(event)).await
    }

    /// Keeps a text, in place of what was kept before, for the agent's next turn in this session, or for this turn if it
    /// is asked again: [`Prompt::memory`]. Returns when it is on disk.
    ///
    /// # Errors
    /// When it could not be stored, or nobody listens any more.
    pub async fn remember(&self, text: String) -> Result<(), AgentError> {
        let (stored, told) = oneshot::channel();
        self.report(Report::Remember(text, stored)).await?;
        let message = "what the agent has to remember could not be stored".to_owned();
        told.await.map_err(|_| AgentError { disposition: Disposition::Retry { after: None }, message })
    }

    /// Says that the agent goes on where it was when the gateway stopped or died: that attempt was nobody's fault.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub async fn resumed(&self) -> Result<(), AgentError> {
        self.report(Report::Resumed).await
    }

    async fn report(&self, report: Report) -> Result<(), AgentError> {
        let gone = |_| AgentError { disposition: Disposition::Reject, message: "nobody listens any more".into() };
        self.0.send(report).await.map_err(gone)
    }
}

/// Messages that may wait for an agent that is told more than it takes up.
const STEERING_QUEUE: usize = 16;

/// Where an agent hears what is said while it works.
#[derive(Debug)]
pub struct Steering {
    heard: mpsc::Receiver<(TurnId, Vec<Message>)>,
    taken: Vec<TurnId>,
}

/// The other end of [`Steering`].
#[derive(Debug, Clone)]
pub struct SteeringSender(mpsc::Sender<(TurnId, Vec<Message>)>);

impl Steering {
    /// A pipe to an agent at work.
    pub fn channel() -> (SteeringSender, Self) {
        let (send, heard) = mpsc::channel(STEERING_QUEUE);
        (SteeringSender(send), Self { heard, taken: Vec::new() })
    }

    /// What was said since the last look. Whoever takes it answers it in this turn.
    pub fn take(&mut self) -> Option<Vec<Message>> {
        let (turn, messages) = self.heard.try_recv().ok()?;
        self.taken.push(turn);
        Some(messages)
    }

    /// The turns whose messages were taken.
    pub fn taken(self) -> Vec<TurnId> {
        self.taken
    }
}

impl SteeringSender {
    /// Offers what another turn asks; whether there was room.
    pub fn offer(&self, turn: TurnId, messages: Vec<Message>) -> bool {
        self.0.try_send((turn, messages)).is_ok()
    }
}

/// What an agent is asked.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The conversation.
    pub session: SessionId,
    /// The turn: the same when it is asked again after a crash.
    pub turn: TurnId,
    /// What this agent remembered of the conversation last, by [`Events::remember`].
    pub memory: Option<String>,
    /// Instructions for this turn.
    pub instructions: Option<String>,
    /// What was said before, then what is new; never empty.
    pub messages: Vec<Message>,
}

/// How an agent is configured, by its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// Repeats what it is told.
    Echo(echo::Config),
    /// Any OpenAI-compatible endpoint.
    OpenAi(openai::Config),
}

impl Config {
    /// The word in the configuration, in logs and in status.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Echo(_) => "echo",
            Self::OpenAi(_) => "openai",
        }
    }
}

/// An agent that can be asked.
#[derive(Debug)]
pub enum Agent {
    /// Repeats what it is told.
    Echo(echo::Echo),
    /// Any OpenAI-compatible endpoint.
    OpenAi(openai::OpenAi),
}

impl Agent {
    /// Makes an agent; does no I/O.
    pub fn new(config: &Config) -> Self {
        match config {
            Config::Echo(config) => Self::Echo(echo::Echo::new(config.clone())),
            Config::OpenAi(config) => Self::OpenAi(openai::OpenAi::new(config.clone())),
        }
    }

    /// Whether it is shown what was said before; if not, nobody needs to read it from the store.
    pub fn wants_history(&self) -> bool {
        matches!(self, Self::OpenAi(_))
    }

    /// Whether it keeps something of a session for its next turn; if not, nobody needs to read it from the store.
    pub fn remembers(&self) -> bool {
        match self {
            Self::Echo(_) | Self::OpenAi(_) => false,
        }
    }

    /// Whether it can be told more while it works.
    pub fn can_be_steered(&self) -> bool {
        matches!(self, Self::Echo(_))
    }

    /// Answers `prompt`, reporting through `events` as it goes, and what comes by `steering` if it can.
    pub async fn turn(&self, prompt: Prompt, events: Events, steering: &mut Steering) -> Result<TurnEnd, AgentError> {
        match self {
            Self::Echo(echo) => echo.turn(prompt, events, steering).await,
            Self::OpenAi(openai) => openai.turn(prompt, events).await,
        }
    }
}

/// All agents by name, and which one answers when nobody says.
#[derive(Debug, Clone)]
pub struct Agents {
    default: String,
    by_name: BTreeMap<String, (Config, Arc<Agent>)>,
}

impl Agents {
    /// Makes the agents; those in `before` whose configuration is unchanged are kept with what they know.
    ///
    /// # Panics
    /// When `default` is none of `configs`; the configuration's check refuses that.
    pub fn new(default: &str, configs: &BTreeMap<String, Config>, before: Option<&Self>) -> Self {
        assert!(configs.contains_key(default), "the default agent is configured");
        let make = |(name, config): (&String, &Config)| {
            let kept = before.and_then(|b| b.by_name.get(name)).filter(|(old, _)| old == config);
            let agent = kept.map_or_else(|| Arc::new(Agent::new(config)), |(_, agent)| agent.clone());
            (name.clone(), (config.clone(), agent))
        };
        Self { default: default.to_owned(), by_name: configs.iter().map(make).collect() }
    }

    /// The name of the agent that answers when nobody says.
    pub fn default_name(&self) -> &str {
        &self.default
    }

    /// The agent of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Agent>> {
        self.by_name.get(name).map(|(_, agent)| agent)
    }

    /// All names with their kinds, sorted by name.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.by_name.iter().map(|(name, (config, _))| (name.as_str(), config.kind()))
    }
}
