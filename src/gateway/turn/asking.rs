//! Asking an agent: what it is shown, what it reports while it works, and how often it is asked.

use std::time::Duration;

use futures_util::FutureExt;

use super::store_failed;
use crate::agent::{Agent, Events, Prompt, Report, Steering};
use crate::gateway::live::Live;
use crate::gateway::{Gateway, Settings, dice};
use crate::model::disposition::Disposition;
use crate::model::id::TurnId;
use crate::model::time::in_words;
use crate::model::turn::{AgentError, Failure, Finish, History, NewTurn, Outcome, TurnEnd, Usage};
use crate::policy::backoff::Backoff;
use crate::stop::panic_text;
use crate::store::StoreError;

/// An agent that says "later" is asked again a few times, while the person waits.
const AGENT_BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(20), attempts: 4 };

/// What an agent is told whose turn was cut off before.
const CUT_OFF_BEFORE: &str = "Note from the gateway: an earlier attempt at this message was cut off when the gateway \
    stopped or crashed, and what came of it is unknown. Before you repeat an action that must not be done twice, check \
    whether it was done already.";

impl Gateway {
    /// What the agent makes of a turn that was started `attempts` times before, and the turns that it took up.
    pub(super) async fn answer(
        &self,
        turn: &NewTurn,
        live: &Live,
        agent: &Agent,
        settings: &Settings,
        attempts: u32,
    ) -> (Outcome, Vec<TurnId>) {
        let timeout = settings.config.timeout;
        let prompt = match self.prompt(turn, agent, attempts).await {
            Ok(prompt) => prompt,
            Err(e) => return (store_failed(&e), Vec::new()),
        };
        match tokio::time::timeout(timeout, self.ask_patiently(agent, &prompt, turn, live)).await {
            Err(_) => {
                let message = format!("the agent took longer than {}", in_words(timeout));
                (Outcome::Failed { failure: Failure::Timeout, message }, Vec::new())
            }
            Ok(Err(error)) => (Outcome::Failed { failure: Failure::Agent, message: error.message }, Vec::new()),
            Ok(Ok((TurnEnd { finish, usage }, absorbed))) => {
                let text = live.text();
                let read = prompt.messages.iter().map(|message| message.content.as_str());
                let usage = usage.unwrap_or_else(|| Usage::estimate(read, &text));
                (Outcome::Completed { text, finish, usage }, absorbed)
            }
        }
    }

    async fn prompt(&self, turn: &NewTurn, agent: &Agent, attempts: u32) -> Result<Prompt, StoreError> {
        let mut messages = match &turn.history {
            _ if !agent.wants_history() => Vec::new(),
            History::Given(messages) => messages.clone(),
            History::Session => self.inner.store.session_history(turn.session.clone()).await?,
            History::Chain(last) => self.inner.store.chain_history(*last).await?,
        };
        messages.extend(turn.input.iter().cloned());
        let note = (attempts > 0).then(|| CUT_OFF_BEFORE.to_owned());
        let instructions: Vec<_> = turn.instructions.clone().into_iter().chain(note).collect();
        let instructions = (!instructions.is_empty()).then(|| instructions.join("\n\n"));
        let memory = match agent.remembers() {
            true => self.inner.store.memory(turn.session.clone(), turn.agent.clone()).await?,
            false => None,
        };
        Ok(Prompt { session: turn.session.clone(), turn: turn.id, memory, instructions, messages })
    }

    /// Asks again while the agent says "later" and has not begun to speak.
    async fn ask_patiently(
        &self,
        agent: &Agent,
        prompt: &Prompt,
        turn: &NewTurn,
        live: &Live,
    ) -> Result<(TurnEnd, Vec<TurnId>), AgentError> {
        for attempt in 1.. {
            let error = match self.ask(agent, prompt, turn, live).await {
                Ok(end) => return Ok(end),
                Err(error) => error,
            };
            let wait = match error.disposition {
                Disposition::Retry { after } if !live.has_spoken() => AGENT_BACKOFF.after(attempt, after, dice()),
                _ => None,
            };
            let Some(wait) = wait else { return Err(error) };
            tracing::warn!(error = %error, attempt, wait_ms = wait.as_millis() as u64, "the agent is asked again");
            tokio::time::sleep(wait).await;
        }
        unreachable!("attempts are counted for ever")
    }

    /// One attempt: the agent's events go to the watchers; its panic is an error of this turn only. Its end, and the
    /// turns that it took up.
    async fn ask(
        &self,
        agent: &Agent,
        prompt: &Prompt,
        turn: &NewTurn,
        live: &Live,
    ) -> Result<(TurnEnd, Vec<TurnId>), AgentError> {
        let (steer, mut steering) = Steering::channel();
        live.set_steering(agent.can_be_steered().then_some(steer));
        let end = self.listen(agent, prompt, turn, live, &mut steering).await?;
        Ok((end, steering.taken()))
    }

    async fn listen(
        &self,
        agent: &Agent,
        prompt: &Prompt,
        turn: &NewTurn,
        live: &Live,
        steering: &mut Steering,
    ) -> Result<TurnEnd, AgentError> {
        let (events, mut heard) = Events::channel();
        let work = std::panic::AssertUnwindSafe(agent.turn(prompt.clone(), events, steering)).catch_unwind();
        let mut work = Box::pin(work);
        let mut end = None;
        loop {
            // The pipe is closed when the agent is through, and it is emptied before the end counts.
            tokio::select! {
                result = &mut work, if end.is_none() => end = Some(result),
                report = heard.recv() => {
                    let Some(report) = report else { break };
                    if !self.hear(report, turn, live).await {
                        return Ok(TurnEnd { finish: Finish::Length, usage: None });
                    }
                }
            }
        }
        let result = match end {
            Some(result) => result,
            None => work.await,
        };
        result.unwrap_or_else(|panic| {
            tracing::error!(panic = panic_text(panic.as_ref()), "an agent panicked");
            Err(AgentError { disposition: Disposition::Reject, message: "the agent failed inside the gateway".into() })
        })
    }

    /// Takes what an agent reports; whether there is room for more.
    async fn hear(&self, report: Report, turn: &NewTurn, live: &Live) -> bool {
        match report {
            Report::Said(event) => return live.add(event),
            Report::Remember(text, stored) => {
                match self.inner.store.remember(turn.session.clone(), turn.agent.clone(), text).await {
                    Ok(()) => drop(stored.send(())),
                    // Dropping the sender tells the agent.
                    Err(e) => tracing::error!(error = %e, "what an agent has to remember could not be stored"),
                }
            }
            Report::Resumed => {
                if let Err(e) = self.inner.store.forgive_turn(turn.id).await {
                    tracing::warn!(error = %e, "an attempt that goes on will count as one that failed");
                }
            }
        }
        true
    }
}
