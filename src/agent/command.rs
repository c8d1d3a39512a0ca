//! Any program, once for each turn: the message is on its stdin or among its arguments, its stdout is the reply.
//!
//! What it is to be told apart by is in its environment: `HERMES_SESSION`, `HERMES_TURN`, `HERMES_INSTANCE`, and the turn's
//! instructions in `HERMES_INSTRUCTIONS`. Status 0 is a reply, 75 (`EX_TEMPFAIL`) asks for another attempt while nothing
//! was said, anything else is a failure. A gateway that dies leaves it at work under systemd; the next one reads what it
//! said from its beginning, and runs it again only if it is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Semaphore;

use super::memory::{Memory, Running};
use super::program::{self, Program, fit, obituary, reject, retry};
use super::{Events, Prompt, Surroundings};
use crate::model::turn::{AgentError, Finish, TurnEnd, TurnEvent};
use crate::service::worker::{End, Input, Worker};

mod reply;

use reply::{Piece, Reply};

/// Most bytes that a program may say: beyond the longest reply, with what JSON puts around it.
const MAX_OUTPUT: u64 = 32 * 1024 * 1024;
/// What stands for the message among the arguments.
pub const PLACEHOLDER: &str = "{message}";
/// The status that asks for another attempt; sysexits(3).
const TEMPORARY_FAILURE: i32 = 75;
/// How long what a program said is kept after its end: until then the end of its turn is on disk.
const LINGER: Duration = Duration::from_secs(60);
/// Ended programs whose output is kept at the same time.
const MAX_LINGERING: usize = 256;

/// How a program is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How it is run.
    pub program: program::Config,
    /// Where the message goes.
    pub input: InputBy,
    /// What its stdout is.
    pub output: OutputAs,
    /// Longest time for one turn.
    pub timeout: Duration,
}

/// Where the message goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InputBy {
    /// On stdin, which then ends.
    #[default]
    Stdin,
    /// In place of [`PLACEHOLDER`] in the arguments.
    Argument,
}

/// What a program's stdout is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutputAs {
    /// The reply.
    #[default]
    Text,
    /// A JSON object a line: `{"text": ""}`, `{"thought": ""}`, `{"error": ""}`, `{"usage": {"input_tokens": 1,
    /// "output_tokens": 2}}`.
    Json,
}

/// A program for each turn.
#[derive(Debug)]
pub struct Command {
    config: Config,
    program: Program,
    /// Places for ended programs whose turns may not be on disk yet.
    lingering: Arc<Semaphore>,
}

impl Command {
    /// A program; nothing is started yet.
    pub fn new(name: &str, config: Config, surroundings: Surroundings) -> Self {
        let program = Program::new(name, config.program.clone(), surroundings);
        Self { config, program, lingering: Arc::new(Semaphore::new(MAX_LINGERING)) }
    }

    /// Runs the program, or goes on with one that an earlier life started for this turn.
    pub async fn turn(&self, prompt: Prompt, events: Events) -> Result<TurnEnd, AgentError> {
        let worker = match self.left_behind(&prompt).await? {
            Some(worker) => {
                events.resumed().await?;
                worker
            }
            None => self.start(&prompt, &events).await?,
        };
        let mut work = Work { command: self, worker: Some(worker.clone()) };
        let result = self.listen(&worker, &events).await;
        if work.worker.take().is_some() {
            self.tidy_later(worker);
        }
        if result.as_ref().is_err_and(AgentError::may_be_repeated) {
            // Another attempt of this turn is to be a new one.
            Memory::default().keep(&events).await?;
        }
        result
    }

    async fn left_behind(&self, prompt: &Prompt) -> Result<Option<Worker>, AgentError> {
        let memory = Memory::of(prompt);
        let Some(running) = memory.running(prompt.turn) else { return Ok(None) };
        let found = self.program.surroundings().workers.find(&running.worker).await;
        let found = found.map_err(|e| retry(format!("cannot look for the agent's program: {e}")))?;
        // What was killed while nobody looked, in a reboot say, has said half of its reply at most.
        let is_cut_off = |worker: &Worker| matches!(worker.ended().now_or_never(), Some(End::Killed(_) | End::Gone));
        Ok(found.filter(|worker| !is_cut_off(worker)))
    }

    async fn start(&self, prompt: &Prompt, events: &Events) -> Result<Worker, AgentError> {
        let said: Vec<_> = prompt.messages.iter().map(|message| message.content.as_str()).collect();
        let message = said.join("\n\n");
        let mut command = self.config.program.command.clone();
        let input = match self.config.input {
            InputBy::Stdin => Input::Bytes(message.into_bytes()),
            InputBy::Argument => {
                fit("the message", &message)?;
                command.iter_mut().for_each(|argument| *argument = argument.replace(PLACEHOLDER, &message));
                Input::Bytes(Vec::new())
            }
        };
        let mut variables = BTreeMap::from([("HERMES_TURN".to_owned(), prompt.turn.to_string())]);
        if let Some(instructions) = &prompt.instructions {
            fit("the text of the instructions", instructions)?;
            variables.insert("HERMES_INSTRUCTIONS".into(), instructions.clone());
        }
        let worker = self.program.turn_worker(prompt.turn);
        // Stored before it starts: what is found by this name works on this turn, and what is not found never began.
        let running = Running { turn: prompt.turn.to_string(), worker: worker.clone(), request: 0, offset: 0 };
        Memory { running: Some(running), ..Memory::default() }.keep(events).await?;
        let (session, runtime) = (prompt.session.clone(), Some(self.config.timeout));
        self.program
            .start(program::Run { worker, command, session, variables, input, runtime, output: MAX_OUTPUT })
            .await
    }

    async fn listen(&self, worker: &Worker, events: &Events) -> Result<TurnEnd, AgentError> {
        let (mut output, mut reply) = (worker.output(0), Reply::new(self.config.output));
        let (mut usage, mut complaint) = (None, None);
        loop {
            let chunk = output.next_chunk().await;
            let chunk = chunk.map_err(|e| reject(format!("cannot read what the agent's program said: {e}")))?;
            let pieces = match &chunk {
                Some(chunk) => reply.hear(chunk),
                None => reply.end(),
            };
            let pieces = match pieces {
                Ok(pieces) => pieces,
                Err(e) => {
                    self.program.stop_later(worker.clone());
                    return Err(reject(e.to_string()));
                }
            };
            for piece in pieces {
                match piece {
                    Piece::Text(text) => events.send(TurnEvent::Text(text)).await?,
                    Piece::Thought(text) => events.send(TurnEvent::Thought(text)).await?,
                    Piece::Usage(counted) => usage = Some(counted),
                    Piece::Error(text) => complaint = complaint.or(Some(text)),
                }
            }
            if chunk.is_none() {
                break;
            }
        }
        let end = worker.ended().await;
        match (complaint, end) {
            (Some(complaint), _) => Err(reject(format!("the agent's program failed: {complaint}"))),
            (None, End::Exited(0)) => Ok(TurnEnd { finish: Finish::Stop, usage }),
            (None, End::Exited(TEMPORARY_FAILURE)) => Err(retry(obituary(worker, end).await)),
            (None, _) => Err(reject(obituary(worker, end).await)),
        }
    }

    /// Forgets what programs said whose turns are long over.
    /// Clears an ended program away when its turn's end is surely on disk. A stop leaves it to the next life, which sweeps.
    fn tidy_later(&self, worker: Worker) {
        let place = self.lingering.clone().try_acquire_owned().ok();
        let around = self.program.surroundings();
        let stop = around.stop.clone();
        around.tasks.spawn("agent leftovers", async move {
            // Where too many linger already, this one has to go now.
            if let Some(_place) = place {
                tokio::select! {
                    biased;
                    () = stop.softened() => return,
                    () = tokio::time::sleep(LINGER) => {}
                }
            }
            worker.stop(Duration::ZERO).await;
        });
    }
}

/// A program at work. Dropped before its end it is stopped, unless the gateway's next life goes on with it.
struct Work<'a> {
    command: &'a Command,
    worker: Option<Worker>,
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take()
            && !self.command.program.goes_on_without_us(&worker)
        {
            self.command.program.stop_later(worker);
        }
    }
}

#[cfg(test)]
mod tests;
