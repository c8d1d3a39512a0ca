//! `POST /v1/chat/completions`, plain and streaming.
//!
//! Without a session header the conversation is what the request says, and is stored for looking things up. With one,
//! the conversation is what the store says, and of the request only the newest message counts.
//!
//! A stream that broke off goes on where the same request is sent again with the `Last-Event-ID` that came last. With
//! an `Idempotency-Key` it goes on with the same turn, also after a crash; without one, a turn that was cut off with
//! its client is run anew. A chunk with a role begins a reply, and voids what came before.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Api;
use super::ask::{self, Asked, Conversation, DEFAULT_MODEL, agent_of, with_session};
use super::error::ApiError;
use super::sse::{self, Events, Gone};
use super::telling::{Begun, Telling};
use crate::gateway::{Mark, Progress, Watch};
use crate::model::id::{SessionId, TurnId};
use crate::model::time::Timestamp;
use crate::model::turn::{Finish, History, NewTurn, Origin, Outcome, Usage};

/// What of the request counts; sampling parameters are the agent's own business.
#[derive(Debug, Deserialize)]
pub struct ChatRequest {
    model: Option<String>,
    messages: Vec<Value>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// Answers a conversation.
pub async fn create(State(api): State<Api>, request: Request<Body>) -> Result<Response, ApiError> {
    let asked: Asked<ChatRequest> = Asked::read(&api, request).await?;
    if asked.body.n.is_some_and(|n| n != 1) {
        return Err(ApiError::invalid(Some("n"), "n: one reply a request, so n must be 1"));
    }
    let conversation = Conversation::read(&asked.body.messages, "messages")?;
    let model = asked.body.model.clone().unwrap_or_else(|| DEFAULT_MODEL.to_owned());
    let instructions = conversation.instructions();
    let named = asked.session()?;
    let session = named.clone().unwrap_or_else(|| derived_session(&conversation));
    let (before, input) = conversation.split();
    let idempotency = asked.idempotency()?;
    let turn = NewTurn {
        id: TurnId::new(),
        session,
        agent: agent_of(&api, Some(&model)),
        model: model.clone(),
        origin: Origin::Chat,
        accepted: Timestamp::now(),
        instructions,
        history: if named.is_some() { History::Session } else { History::Given(before) },
        input,
        keep: idempotency.is_some(),
        idempotency,
        deliver: None,
    };
    let streams = asked.body.stream == Some(true);
    let has = streams.then(|| asked.has()).flatten();
    let mut ticket = ask::submit(&api.gateway, turn, has.as_ref()).await?;
    let session = ticket.session.clone();
    let answer = Answer { id: ticket.id, created: ticket.accepted.as_secs(), model };
    let response = if streams {
        let usage = asked.body.stream_options.and_then(|options| options.include_usage) == Some(true);
        sse::response(&api.tasks, move |events| stream(events, ticket.watch, has, answer, usage))
    } else {
        let outcome = ticket.watch.outcome().await;
        answer.whole(&outcome)?.into_response()
    };
    Ok(with_session(response, &session))
}

/// The same conversation has the same session, as in Hermes: it is named by how it began.
fn derived_session(conversation: &Conversation) -> SessionId {
    let mut hash = Sha256::new();
    hash.update(conversation.instructions().unwrap_or_default());
    hash.update([0]);
    hash.update(conversation.said.first().map(|message| message.content.as_str()).unwrap_or_default());
    let name: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    match format!("api-{name}").parse() {
        Ok(session) => session,
        Err(_) => unreachable!("hexadecimal digits make a session id"),
    }
}

struct Answer {
    id: TurnId,
    created: i64,
    model: String,
}

impl Answer {
    fn whole(&self, outcome: &Outcome) -> Result<Json<Value>, ApiError> {
        let Outcome::Completed { text, finish, usage } = outcome else {
            return Err(ApiError::of_outcome(outcome).unwrap_or_else(ApiError::internal));
        };
        let message = json!({ "role": "assistant", "content": text });
        Ok(Json(json!({
            "id": format!("chatcmpl-{}", self.id),
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{ "index": 0, "message": message, "finish_reason": word(*finish) }],
            "usage": wire_usage(*usage),
        })))
    }

    fn chunk(&self, choices: Value) -> Value {
        json!({
            "id": format!("chatcmpl-{}", self.id),
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    fn delta(&self, delta: Value, finish: Option<Finish>) -> Value {
        self.chunk(json!([{ "index": 0, "delta": delta, "finish_reason": finish.map(word) }]))
    }
}

async fn stream(events: Events, watch: Watch, has: Option<Mark>, answer: Answer, with_usage: bool) -> Result<(), Gone> {
    let (mut out, begun) = Telling::begin(events, watch, has).await?;
    if begun == Begun::FromStart {
        out.send(None, &answer.delta(json!({ "role": "assistant", "content": "" }), None)).await?;
    }
    let outcome = loop {
        match out.next().await? {
            Progress::Text(text) => out.send(None, &answer.delta(json!({ "content": text }), None)).await?,
            // The name that vLLM, DeepSeek and OpenRouter gave it; clients that do not know it pass it over.
            Progress::Thought(text) => {
                out.send(None, &answer.delta(json!({ "reasoning_content": text }), None)).await?;
            }
            Progress::Ended(outcome) => break outcome,
        }
    };
    match &outcome {
        Outcome::Completed { finish, usage, .. } => {
            out.send(None, &answer.delta(json!({}), Some(*finish))).await?;
            if with_usage {
                let mut last = answer.chunk(json!([]));
                last["usage"] = wire_usage(*usage);
                out.send(None, &last).await?;
            }
        }
        failed => {
            let error = ApiError::of_outcome(failed).unwrap_or_else(ApiError::internal);
            out.remark(None, error.body()).await?;
            // The successor has the rest.
            if *failed == Outcome::Interrupted {
                return Ok(());
            }
        }
    }
    out.done().await
}

fn word(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

fn wire_usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    })
}
