//! The embedded agent: says again what it is told, word by word, as an agent that streams does.
//!
//! It needs no account, no network and no key, so a fresh gateway answers, and a broken setup can be told from a broken
//! agent.

use std::time::Duration;

use super::{Events, Prompt, Steering};
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

    /// Repeats the last message, and what is said meanwhile on lines of its own.
    pub async fn turn(&self, prompt: Prompt, events: Events, steering: &mut Steering) -> Result<TurnEnd, AgentError> {
        let mut said = prompt.messages.last().map(|message| message.content.clone()).unwrap_or_default();
        loop {
            for word in said.split_inclusive(char::is_whitespace) {
                if !self.config.delay.is_zero() {
                    tokio::time::sleep(self.config.delay).await;
                }
                events.send(TurnEvent::Text(word.to_owned())).await?;
            }
            let Some(more) = steering.take() else { break };
            said = more.iter().map(|message| format!("\n{}", message.content)).collect();
        }
        Ok(TurnEnd { finish: Finish::Stop, usage: None })
    }
}
