//! Agents that speak the Agent Client Protocol: Hermes, Codex, OpenCode, Gemini ... as programs that keep a conversation.
//!
//! One worker for each session, kept between turns ([`keeper`]). A worker that was stopped for being idle, or that died, is
//! followed by another one which restores the conversation (`session/resume`, else `session/load`). When a turn is
//! dropped, its worker is told to cancel it, so that nobody pays for what nobody reads; when the gateway dies in the middle
//! of a turn and the worker lives on, the next life reads on from where the answer begins and asks nothing twice.
//!
//! What the agent asks for is answered by configuration: it may do what it needs no permission for, and one thing at a time
//! beyond that if `permission` says so. It has no editor: files and terminals are its own.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::DropGuard;

use super::memory::{Memory, Running};
use super::program::{self, Program, Run, halt, reject, retry};
use super::{Events, Prompt, Surroundings};
use crate::model::disposition::Disposition;
use crate::model::turn::{AgentError, Finish, TurnEnd, Usage};
use crate::service::worker::Input;
use crate::web::clip;

mod connection;
mod keeper;
mod narrator;
mod wire;

use connection::{Broken, Connection, Failed};
use keeper::{Keeper, Seat, Then};
use narrator::Narrator;
use wire::Incoming;

/// How long an agent may take until it can be asked: some load a model list or a long conversation first.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes of output that a worker's spool holds.
const MAX_OUTPUT: u64 = 256 * 1024 * 1024;
/// A worker that has said this much is followed by a fresh one before its next turn, so that no turn meets the bound.
const RECYCLE_AT: u64 = MAX_OUTPUT / 2;
/// Restores of a conversation that end with the agent's death, one after the other, until it begins anew.
const MAX_DEADLY_RESTORES: u32 = 2;

/// How an agent is run and asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How it is run.
    pub program: program::Config,
    /// What it is answered when it asks for permission.
    pub permission: Permission,
    /// How long its worker is kept without a turn.
    pub idle: Duration,
    /// Most workers at the same time.
    pub max_live: usize,
    /// Longest silence in a turn.
    pub timeout: Duration,
}

/// What an agent is answered that asks for permission.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Permission {
    /// No.
    #[default]
    Deny,
    /// Yes, this once.
    AllowOnce,
}

/// An agent that keeps its conversations.
#[derive(Debug)]
pub struct Acp {
    config: Config,
    program: Program,
    keeper: Keeper,
    /// Ends the keeper with the agent.
    _closes: DropGuard,
}

impl Acp {
    /// An agent; nothing is started yet.
    pub fn new(name: &str, config: Config, surroundings: Surroundings) -> Self {
        let (tasks, stop) = (surroundings.tasks.clone(), surroundings.stop.clone());
        let (keeper, _closes) = Keeper::new(config.max_live, config.idle, tasks, stop);
        Self { program: Program::new(name, config.program.clone(), surroundings), config, keeper, _closes }
    }

    /// Asks the agent, or goes on with what it was asked in an earlier life.
    pub async fn turn(&self, prompt: Prompt, events: Events) -> Result<TurnEnd, AgentError> {
        let mut memory = Memory::of(&prompt);
        let mut seat = self.keeper.seat(&prompt.session).await;
        let request = match self.left_behind(&mut seat, &memory, &prompt).await? {
            Some(request) => {
                events.resumed().await?;
                request
            }
            None => self.ask(&mut seat, &mut memory, &prompt, &events).await?,
        };
        let Some(connection) = seat.connection() else { return Err(reject("the agent is gone".into())) };
        match self.listen(connection, request, &events).await {
            Ok(end) => {
                seat.leave(Then::Keep);
                end
            }
            Err(Unfinished::Unheard(error)) => Err(error),
            Err(Unfinished::Broken(broken)) => {
                seat.leave(Then::Stop);
                Err(reject(broken.to_string()))
            }
        }
    }

    /// Takes up the worker that is at work on this very turn since an earlier life; the number of what it was asked.
    async fn left_behind(&self, seat: &mut Seat, memory: &Memory, prompt: &Prompt) -> Result<Option<u64>, AgentError> {
        let (Some(running), None) = (memory.running(prompt.turn), seat.connection()) else { return Ok(None) };
        let found = self.program.surroundings().workers.find(&running.worker).await;
        let found = found.map_err(|e| retry(format!("cannot look for the agent's program: {e}")))?;
        let Some(worker) = found else { return Ok(None) };
        let session = memory.session.clone().unwrap_or_default();
        let again = |permit| Connection::again(worker.clone(), running, session.clone(), permit);
        let connection = again(self.keeper.free_permit());
        // What died without an answer would only be half of one.
        if connection.has_ended() && !again(None).has_answer_to(running.request).await {
            return Ok(None);
        }
        seat.put(connection);
        seat.then = Then::Cancel(running.request);
        Ok(Some(running.request))
    }

    /// Asks the session's worker, which is started if there is none; the number of the request.
    async fn ask(
        &self,
        seat: &mut Seat,
        memory: &mut Memory,
        prompt: &Prompt,
        events: &Events,
    ) -> Result<u64, AgentError> {
        // Another conversation than the remembered one is an old one: the session has begun anew.
        let usable = |c: &mut Connection| {
            !c.has_ended() && c.position() < RECYCLE_AT && memory.session.as_ref() == Some(&c.session)
        };
        if !seat.connection().is_some_and(usable) {
            self.renew(seat, memory, prompt, events).await?;
        }
        // Half a request is worse than none: until it is out, leaving means stopping.
        seat.then = Then::Stop;
        let Some(connection) = seat.connection() else { return Err(retry("the agent is gone".into())) };
        connection.forget_the_past();
        let offset = connection.position();
        let texts = prompt.instructions.iter().chain(prompt.messages.iter().map(|message| &message.content));
        let blocks: Vec<_> = texts.map(|text| json!({ "type": "text", "text": text })).collect();
        let params = json!({ "sessionId": connection.session, "prompt": blocks });
        let request = connection.ask("session/prompt", &params).await.map_err(|broken| retry(broken.to_string()))?;
        memory.session = Some(connection.session.clone());
        memory.deadly_restores = 0;
        let worker = connection.worker().name().to_owned();
        memory.running = Some(Running { turn: prompt.turn.to_string(), worker, request, offset });
        seat.then = Then::Cancel(request);
        // Stored when it is out, not before: what is remembered is then surely being answered, and a turn that a crash
        // cut off in between is asked again, with the note that it was cut off, instead of waiting for ever.
        match memory.keep(events).await {
            Err(e) if e.may_be_repeated() => {
                tracing::warn!(error = %e, "a crash during this turn will cost it its answer");
                Ok(request)
            }
            kept => kept.map(|()| request),
        }
    }

    /// A fresh worker with the session's conversation.
    async fn renew(
        &self,
        seat: &mut Seat,
        memory: &mut Memory,
        prompt: &Prompt,
        events: &Events,
    ) -> Result<(), AgentError> {
        if let Some(connection) = seat.connection() {
            connection.worker().stop(program::STOP_GRACE).await;
        }
        seat.clear();
        let Some(permit) = self.keeper.permit().await else { return Err(retry("the gateway stops".into())) };
        let run = Run {
            worker: self.program.session_worker(&prompt.session),
            command: program::into_a_pipe(&self.config.program.command),
            session: prompt.session.clone(),
            variables: BTreeMap::new(),
            input: Input::Open,
            runtime: None,
            output: MAX_OUTPUT,
        };
        seat.put(Connection::new(self.program.start(run).await?, permit));
        let Some(connection) = seat.connection() else { return Err(retry("the agent is gone".into())) };
        let opened = self.open(connection, memory, events).await;
        opened.map_err(|failed| match failed {
            Closed::Failed(Failed::Broken(broken)) => retry(broken.to_string()),
            Closed::Failed(Failed::Refused(refusal)) if refusal.wants_login() => {
                halt(format!("the agent wants somebody to log in first: {}", refusal.text()))
            }
            Closed::Failed(Failed::Refused(refusal)) => {
                retry(format!("the agent does not begin a session: {}", refusal.text()))
            }
            Closed::Other(error) => error,
        })
    }

    /// Introduces us and finds or begins the conversation.
    async fn open(&self, connection: &mut Connection, memory: &mut Memory, events: &Events) -> Result<(), Closed> {
        let hello = connection.call("initialize", &wire::introduction(), START_PATIENCE).await?;
        if hello["protocolVersion"] != json!(wire::VERSION) {
            let version = &hello["protocolVersion"];
            let message = format!("the agent speaks version {version} of the protocol, not {}", wire::VERSION);
            return Err(Closed::Other(halt(message)));
        }
        if let Some(session) = memory.session.clone() {
            if self.restore(connection, &hello["agentCapabilities"], &session, memory, events).await? {
                connection.session = session;
                return Ok(());
            }
            tracing::warn!("the agent cannot restore what was said before; the conversation begins anew");
        }
        let begun = connection.call("session/new", &self.place(), START_PATIENCE).await?;
        let Some(session) = begun["sessionId"].as_str().filter(|session| !session.is_empty()) else {
            return Err(Closed::Other(halt("the agent began a session without a name".into())));
        };
        connection.session = session.to_owned();
        Ok(())
    }

    /// Brings back a conversation; whether the agent can. A conversation that kills the agent is given up in the end, or
    /// the session would be stuck.
    async fn restore(
        &self,
        connection: &mut Connection,
        capabilities: &Value,
        session: &str,
        memory: &mut Memory,
        events: &Events,
    ) -> Result<bool, Closed> {
        let can_resume = !capabilities["sessionCapabilities"]["resume"].is_null();
        let can_load = capabilities["loadSession"] == json!(true);
        let methods = [(can_resume, "session/resume"), (can_load, "session/load")];
        if memory.deadly_restores >= MAX_DEADLY_RESTORES || !(can_resume || can_load) {
            return Ok(false);
        }
        memory.deadly_restores += 1;
        memory.running = None;
        memory.keep(events).await.map_err(Closed::Other)?;
        let mut params = self.place();
        params["sessionId"] = json!(session);
        for (_, method) in methods.into_iter().filter(|(can, _)| *can) {
            // What is replayed meanwhile was said in other turns; `call` passes over it.
            match connection.call(method, &params, START_PATIENCE).await {
                Ok(_) => return Ok(true),
                Err(Failed::Refused(refusal)) => tracing::warn!(method, error = refusal.text(), "the agent refused"),
                Err(broken) => return Err(broken.into()),
            }
        }
        Ok(false)
    }

    /// Where a session works, and what is lent to it: nothing.
    fn place(&self) -> Value {
        json!({ "cwd": self.program.directory(), "mcpServers": [] })
    }

    /// Passes on what the agent tells until its answer. The inner result is the agent's, and leaves it usable.
    async fn listen(
        &self,
        connection: &mut Connection,
        request: u64,
        events: &Events,
    ) -> Result<Result<TurnEnd, AgentError>, Unfinished> {
        let mut narrator = Narrator::default();
        loop {
            let told = match connection.receive(self.config.timeout).await? {
                Incoming::Response(Some(id), result) if id == request => {
                    return Ok(match result {
                        Ok(result) => end(&result),
                        Err(refusal) => {
                            let message = format!("the agent failed: {}", refusal.text());
                            let disposition =
                                if refusal.wants_login() { Disposition::Halt } else { Disposition::Reject };
                            Err(AgentError { disposition, message })
                        }
                    });
                }
                Incoming::Response(..) => None,
                Incoming::Notification(method, params) => {
                    let ours = method == "session/update" && params["sessionId"] == json!(connection.session);
                    if ours { narrator.hear(&params["update"]) } else { None }
                }
                Incoming::Request(id, method, params) if method == "session/request_permission" => {
                    let (outcome, word) = self.config.permission.answer(&params["options"]);
                    connection.say(&wire::answer(&id, &json!({ "outcome": outcome }))).await?;
                    let title = params["toolCall"]["title"].as_str().unwrap_or("a tool");
                    narrator.note(&format!("permission: {} ({word})", clip(title)))
                }
                Incoming::Request(id, method, _) => {
                    connection.say(&wire::no_such_method(&id, &method)).await?;
                    None
                }
            };
            if let Some(event) = told {
                events.send(event).await.map_err(Unfinished::Unheard)?;
            }
        }
    }
}

/// Why a turn has no end.
enum Unfinished {
    /// The worker is of no more use.
    Broken(Broken),
    /// Nobody listens; the worker does not know that yet.
    Unheard(AgentError),
}

impl From<Broken> for Unfinished {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// Why there is no conversation.
enum Closed {
    Failed(Failed),
    Other(AgentError),
}

impl From<Failed> for Closed {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl Permission {
    /// The outcome for these options, and the word for it.
    fn answer(self, options: &Value) -> (Value, &'static str) {
        let options = options.as_array().map(Vec::as_slice).unwrap_or_default();
        let of_kind = |kind: &str| options.iter().find(|option| option["kind"] == kind).map(|o| &o["optionId"]);
        let selected = |id: &Value| json!({ "outcome": "selected", "optionId": id });
        let allowed = match self {
            Self::AllowOnce => of_kind("allow_once"),
            Self::Deny => None,
        };
        match (allowed, of_kind("reject_once").or_else(|| of_kind("reject_always"))) {
            (Some(id), _) => (selected(id), "allowed"),
            (None, Some(id)) => (selected(id), "denied"),
            (None, None) => (json!({ "outcome": "cancelled" }), "denied"),
        }
    }
}

/// What the agent says about the end of a turn.
fn end(result: &Value) -> Result<TurnEnd, AgentError> {
    let count = |key: &str| result["usage"][key].as_u64();
    let usage = count("inputTokens").zip(count("outputTokens"));
    let usage = usage.map(|(input_tokens, output_tokens)| Usage { input_tokens, output_tokens });
    match result["stopReason"].as_str() {
        Some("refusal") => Err(reject("the agent refuses to go on with this".into())),
        Some("cancelled") => Err(reject("the agent says that the turn was cancelled".into())),
        Some("max_tokens" | "max_turn_requests") => Ok(TurnEnd { finish: Finish::Length, usage }),
        _ => Ok(TurnEnd { finish: Finish::Stop, usage }),
    }
}

#[cfg(test)]
mod tests;
