//! `POST /v1/responses`, plain and streaming, and `GET /v1/responses/{id}`.
//!
//! <https://platform.openai.com/docs/api-reference/responses>. A response that is stored (the default) is finished even
//! if its client leaves, survives a crash, and can be asked for and continued by its id.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::ask::{Asked, Conversation, DEFAULT_MODEL, agent_of, with_session};
use super::error::ApiError;
use super::sse::{self, Events, Gone};
use crate::gateway::{Progress, Ticket};
use crate::model::id::{SessionId, TurnId};
use crate::model::message::Message;
use crate::model::time::Timestamp;
use crate::model::turn::{Finish, History, NewTurn, Origin, Outcome, TurnRecord, Usage};

/// What of the request counts.
#[derive(Debug, Deserialize)]
pub struct ResponsesRequest {
    model: Option<String>,
    input: Value,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    store: Option<bool>,
    stream: Option<bool>,
}

/// Answers an input.
pub async fn create(State(api): State<Api>, request: Request<Body>) -> Result<Response, ApiError> {
    let asked: Asked<ResponsesRequest> = Asked::read(&api, request).await?;
    let turn = turn(&api, &asked).await?;
    let answer = Answer {
        id: turn.id,
        created: turn.accepted.as_secs(),
        model: turn.model.clone(),
        instructions: turn.instructions.clone(),
        previous: match turn.history {
            History::Chain(previous) => Some(previous),
            _ => None,
        },
    };
    let mut ticket = api.gateway.submit(turn).await?;
    let session = ticket.session.clone();
    // A repeated request is answered with what the first one was given.
    let answer = Answer { id: ticket.id, created: ticket.accepted.as_secs(), ..answer };
    let response = if asked.body.stream == Some(true) {
        sse::response(&api.tasks, move |events| stream(events, ticket, answer))
    } else {
        let outcome = ticket.watch.outcome().await;
        if let Some(error) = ApiError::of_outcome(&outcome) {
            return Err(error);
        }
        Json(answer.response(Some(&outcome))).into_response()
    };
    Ok(with_session(response, &session))
}

/// A stored response, finished or not.
pub async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let unknown = || ApiError::missing("response_not_found", format!("there is no response '{}'", id.escape_debug()));
    let turn = parse_id(&id).ok_or_else(unknown)?;
    let (record, watch) = api.gateway.find(turn).await?.ok_or_else(unknown)?;
    if !record.keep || record.origin != Origin::Responses {
        return Err(unknown());
    }
    let response = Json(Answer::from(&record).response(watch.outcome_now().as_ref())).into_response();
    Ok(with_session(response, &record.session))
}

fn parse_id(id: &str) -> Option<TurnId> {
    id.strip_prefix("resp_")?.parse().ok()
}

async fn turn(api: &Api, asked: &Asked<ResponsesRequest>) -> Result<NewTurn, ApiError> {
    let body = &asked.body;
    let conversation = input(&body.input)?;
    let instructions: Vec<_> = body.instructions.clone().into_iter().chain(conversation.instructions()).collect();
    let (id, named) = (TurnId::new(), named_session(asked)?);
    let previous = previous(api, body.previous_response_id.as_deref()).await?;
    let (before, last) = conversation.split();
    let (session, history, input) = match (previous, named) {
        // Everything in the input is new to a conversation that the store knows.
        (Some(previous), named) => {
            let history = History::Chain(previous.id);
            (named.unwrap_or(previous.session), history, join(before, last))
        }
        (None, Some(named)) => (named, History::Session, join(before, last)),
        (None, None) => (own_session(id), History::Given(before), last),
    };
    let model = body.model.clone().unwrap_or_else(|| DEFAULT_MODEL.to_owned());
    let idempotency = asked.idempotency()?;
    Ok(NewTurn {
        id,
        session,
        agent: agent_of(api, Some(&model)),
        model,
        origin: Origin::Responses,
        accepted: Timestamp::now(),
        instructions: (!instructions.is_empty()).then(|| instructions.join("\n\n")),
        history,
        input,
        keep: body.store != Some(false) || idempotency.is_some(),
        idempotency,
        deliver: None,
    })
}

fn join(mut before: Vec<Message>, last: Vec<Message>) -> Vec<Message> {
    before.extend(last);
    before
}

fn input(input: &Value) -> Result<Conversation, ApiError> {
    match input {
        Value::String(text) => Ok(Conversation { instructions: Vec::new(), said: vec![Message::user(text)] }),
        Value::Array(messages) => Conversation::read(messages, "input"),
        _ => Err(ApiError::invalid(Some("input"), "input: must be a string or a list of messages")),
    }
}

/// By the header, or by OpenAI's `conversation`, which is an id or an object with one.
fn named_session(asked: &Asked<ResponsesRequest>) -> Result<Option<SessionId>, ApiError> {
    let by_header = asked.session()?;
    let Some(conversation) = &asked.body.conversation else { return Ok(by_header) };
    let invalid = |what: &str| ApiError::invalid(Some("conversation"), format!("conversation: {what}"));
    if asked.body.previous_response_id.is_some() {
        return Err(invalid("cannot be given together with previous_response_id"));
    }
    let id = conversation.as_str().or_else(|| conversation.get("id")?.as_str());
    let id = id.ok_or_else(|| invalid("must be an id or an object with one"))?;
    id.parse().map(Some).map_err(|e: crate::model::id::InvalidId| invalid(&e.to_string()))
}

async fn previous(api: &Api, id: Option<&str>) -> Result<Option<TurnRecord>, ApiError> {
    let Some(id) = id else { return Ok(None) };
    let unknown = || {
        let message = format!("previous_response_id: there is no response '{}'", id.escape_debug());
        ApiError::missing("previous_response_not_found", message)
    };
    let found = api.gateway.find(parse_id(id).ok_or_else(unknown)?).await?;
    found.map(|(record, _)| record).filter(|record| record.keep).map(Some).ok_or_else(unknown)
}

/// A conversation that begins with this response.
fn own_session(id: TurnId) -> SessionId {
    match format!("resp-{id}").parse() {
        Ok(session) => session,
        Err(_) => unreachable!("hexadecimal digits make a session id"),
    }
}

struct Answer {
    id: TurnId,
    created: i64,
    model: String,
    instructions: Option<String>,
    previous: Option<TurnId>,
}

impl From<&TurnRecord> for Answer {
    fn from(record: &TurnRecord) -> Self {
        Self {
            id: record.id,
            created: record.accepted.as_secs(),
            model: record.model.clone(),
            instructions: record.instructions.clone(),
            previous: record.parent,
        }
    }
}

impl Answer {
    /// The response object; without an outcome it is in progress.
    fn response(&self, outcome: Option<&Outcome>) -> Value {
        let (status, output) = match outcome {
            None => ("in_progress", json!([])),
            Some(Outcome::Completed { text, finish: Finish::Stop, .. }) => {
                ("completed", json!([self.item("completed", Some(text))]))
            }
            Some(Outcome::Completed { text, finish: Finish::Length, .. }) => {
                ("incomplete", json!([self.item("incomplete", Some(text))]))
            }
            Some(Outcome::Cancelled) => ("cancelled", json!([])),
            Some(Outcome::Failed { .. } | Outcome::Interrupted | Outcome::Parked) => ("failed", json!([])),
            Some(Outcome::Superseded | Outcome::Absorbed(_)) => ("cancelled", json!([])),
        };
        let error = outcome.and_then(ApiError::of_outcome).map(|error| json!(error.body())["error"].clone());
        let usage = match outcome {
            Some(Outcome::Completed { usage, .. }) => wire_usage(*usage),
            _ => Value::Null,
        };
        let incomplete = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        json!({
            "id": format!("resp_{}", self.id),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": error.map(|e| json!({ "code": "server_error", "message": e["message"] })),
            "incomplete_details": incomplete,
            "model": self.model,
            "instructions": self.instructions,
            "previous_response_id": self.previous.map(|id| format!("resp_{id}")),
            "output": output,
            "parallel_tool_calls": true,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage,
        })
    }

    fn item(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<_> = text.map(part).into_iter().collect();
        let id = self.item_id();
        json!({ "type": "message", "id": id, "role": "assistant", "status": status, "content": content })
    }

    fn item_id(&self) -> String {
        format!("msg_{}", self.id)
    }
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [] })
}

fn wire_usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens,
        "input_tokens_details": { "cached_tokens": 0, "cache_write_tokens": 0 },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": usage.input_tokens + usage.output_tokens,
    })
}

/// A stream of events, each with its type and its number.
struct Numbered {
    events: Events,
    next: u64,
}

impl Numbered {
    async fn send(&mut self, name: &str, mut event: Value) -> Result<(), Gone> {
        event["type"] = name.into();
        event["sequence_number"] = self.next.into();
        self.next += 1;
        self.events.send(Some(name), &event).await
    }
}

async fn stream(events: Events, mut ticket: Ticket, answer: Answer) -> Result<(), Gone> {
    let item_id = answer.item_id();
    let at = |mut event: Value| {
        event["item_id"] = item_id.clone().into();
        event["output_index"] = 0.into();
        event["content_index"] = 0.into();
        event
    };
    let mut out = Numbered { events, next: 0 };
    let begun = answer.response(None);
    out.send("response.created", json!({ "response": begun })).await?;
    out.send("response.in_progress", json!({ "response": begun })).await?;
    let item = answer.item("in_progress", None);
    out.send("response.output_item.added", json!({ "output_index": 0, "item": item })).await?;
    out.send("response.content_part.added", at(json!({ "part": part("") }))).await?;
    let outcome = loop {
        match out.events.next(&mut ticket.watch).await? {
            Progress::Text(text) => {
                let delta = at(json!({ "delta": text, "logprobs": [] }));
                out.send("response.output_text.delta", delta).await?;
            }
            // The Responses API knows no event for raw thoughts that all of its clients accept.
            Progress::Thought(_) => {}
            Progress::Ended(outcome) => break outcome,
        }
    };
    let Outcome::Completed { text, finish, .. } = &outcome else {
        return out.send("response.failed", json!({ "response": answer.response(Some(&outcome)) })).await;
    };
    out.send("response.output_text.done", at(json!({ "text": text, "logprobs": [] }))).await?;
    out.send("response.content_part.done", at(json!({ "part": part(text) }))).await?;
    let (name, status) = match finish {
        Finish::Stop => ("response.completed", "completed"),
        Finish::Length => ("response.incomplete", "incomplete"),
    };
    let item = answer.item(status, Some(text));
    out.send("response.output_item.done", json!({ "output_index": 0, "item": item })).await?;
    out.send(name, json!({ "response": answer.response(Some(&outcome)) })).await
}
