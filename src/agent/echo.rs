//! The embedded agent: says again what it is told, word by word, as an agent that streams does.
//!
//! It needs no account, no network and no key, so a fresh gateway answers, and a broken setup can be told from a broken
//! agent.

use std::time::Duration;

use super::{Events, Prompt};
use crate::model::turn::{AgentError, Finish, TurnEnd, TurnEvent};

/// How the echo behaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The pause before each word.
    pub delay: Duration,
}

/// The echo.
#[derive(Debug)]
pub struct Echo {
    config: Config,
}

impl Echo {
    /// An echo.
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Repeats the last message.
    pub async fn turn(&self, prompt: Prompt, events: Events) -> Result<TurnEnd, AgentError> {
        let said = prompt.messages.last().map(|message| message.content.as_str()).unwrap_or_default();
        for word in said.split_inclusive(char::is_whitespace) {
            if !self.config.delay.is_zero() {
                tokio::time::sleep(self.config.delay).await;
            }
            events.send(TurnEvent::Text(word.to_owned())).await?;
        }
        Ok(TurnEnd { finish: Finish::Stop, usage: None })
    }
}
