//! A worker that speaks the protocol: requests out, messages in, and every way in which that can break.

use std::io;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::wire::{self, Breach, Incoming, MAX_LINE, Refusal};
use crate::agent::lines::{Lines, TooLong};
use crate::agent::memory::Running;
use crate::agent::program::obituary;
use crate::model::time::in_words;
use crate::service::worker::{End, Output, Worker};

/// How long a worker may take to take up what is said to it.
const SAY_PATIENCE: Duration = Duration::from_secs(30);

/// Why a connection cannot be used any more; its worker is to be stopped.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It said something else.
    #[error(transparent)]
    Breach(#[from] Breach),
    /// It says too much at once.
    #[error("the agent said a line of more than {MAX_LINE} bytes")]
    TooLong,
    /// It says nothing.
    #[error("the agent said nothing for {}", in_words(*.0))]
    Silent(Duration),
    /// It does not listen.
    #[error("the agent does not read what is said to it")]
    Deaf,
    /// It is no more.
    #[error("{0}")]
    Ended(String),
    /// Its output cannot be read.
    #[error("cannot read what the agent said: {0}")]
    Unreadable(io::Error),
}

/// Why a request has no result.
#[derive(Debug)]
pub enum Failed {
    /// The connection is of no more use.
    Broken(Broken),
    /// The agent says no; the connection is fine.
    Refused(Refusal),
}

impl From<Broken> for Failed {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// A worker with a conversation.
#[derive(Debug)]
pub struct Connection {
    worker: Worker,
    output: Output,
    lines: Lines,
    /// Where `lines` begin in the output.
    base: u64,
    next_request: u64,
    /// The agent's name of the conversation; empty until it has one.
    pub session: String,
    /// Its place among the agent's workers.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// A connection to a worker that nobody has spoken to.
    pub fn new(worker: Worker, permit: OwnedSemaphorePermit) -> Self {
        Self::at(worker, 0, 1, String::new(), Some(permit))
    }

    /// A connection to a worker that an earlier life asked something: what it says is read from there again.
    pub fn again(worker: Worker, asked: &Running, session: String, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self::at(worker, asked.offset, asked.request + 1, session, permit)
    }

    fn at(
        worker: Worker,
        base: u64,
        next_request: u64,
        session: String,
        _permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let (output, lines) = (worker.output(base), Lines::new(MAX_LINE));
        Self { worker, output, lines, base, next_request, session, _permit }
    }

    /// Who is at the other end.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Whether the worker has ended.
    pub fn has_ended(&self) -> bool {
        self.worker.ended().now_or_never().is_some()
    }

    /// Up to where its output was read, in whole lines.
    pub fn position(&self) -> u64 {
        self.base + self.lines.taken()
    }

    /// Gives up what was read: it belongs to what is over.
    pub fn forget_the_past(&self) {
        if let Err(e) = self.output.forget(self.position()) {
            tracing::warn!(error = %e, worker = self.worker.name(), "the output of an agent cannot be given up");
        }
    }

    /// Reads on after a reader that was dropped, wherever that was.
    pub fn take_over(&mut self) {
        self.base = self.position();
        self.output = self.worker.output(self.base);
        self.lines = Lines::new(MAX_LINE);
    }

    /// Asks something; the number by which its answer is known.
    pub async fn ask(&mut self, method: &str, params: &Value) -> Result<u64, Broken> {
        let number = self.next_request;
        self.next_request += 1;
        self.say(&wire::request(number, method, params)).await?;
        Ok(number)
    }

    /// Says something that is no question.
    pub async fn say(&self, bytes: &[u8]) -> Result<(), Broken> {
        match tokio::time::timeout(SAY_PATIENCE, self.worker.say(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) if self.has_ended() => Err(self.ended(self.worker.ended().await).await),
            Ok(Err(_)) | Err(_) => Err(Broken::Deaf),
        }
    }

    /// The next message; a silence longer than `patience` is an error.
    pub async fn receive(&mut self, patience: Duration) -> Result<Incoming, Broken> {
        loop {
            while let Some(line) = self.lines.next_line().map_err(|TooLong| Broken::TooLong)? {
                if let Some(message) = wire::parse(line)? {
                    return Ok(message);
                }
            }
            let chunk = tokio::time::timeout(patience, self.output.next_chunk()).await;
            match chunk.map_err(|_| Broken::Silent(patience))?.map_err(Broken::Unreadable)? {
                Some(chunk) => self.lines.extend(&chunk),
                None => return Err(self.ended(self.worker.ended().await).await),
            }
        }
    }

    /// Whether what a worker said that has ended has the answer to this request in it. To be asked of a reader that is not
    /// needed for anything else.
    pub async fn has_answer_to(mut self, request: u64) -> bool {
        loop {
            match self.receive(SAY_PATIENCE).await {
                Ok(Incoming::Response(Some(id), _)) if id == request => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// Asks something outside of a turn and waits for the answer, at most for `patience`. What the agent tells meanwhile is
    /// nobody's, and what it asks for is not there.
    pub async fn call(&mut self, method: &str, params: &Value, patience: Duration) -> Result<Value, Failed> {
        let call = async {
            let number = self.ask(method, params).await?;
            loop {
                match self.receive(patience).await? {
                    Incoming::Response(Some(id), result) if id == number => return result.map_err(Failed::Refused),
                    Incoming::Response(None, Err(refusal)) => return Err(Failed::Refused(refusal)),
                    Incoming::Response(..) | Incoming::Notification(..) => {}
                    Incoming::Request(id, method, _) => self.say(&wire::no_such_method(&id, &method)).await?,
                }
            }
        };
        let answered = tokio::time::timeout(patience, call).await;
        answered.unwrap_or(Err(Failed::Broken(Broken::Silent(patience))))
    }

    async fn ended(&self, end: End) -> Broken {
        Broken::Ended(obituary(&self.worker, end).await)
    }
}
