//! `POST /v1/responses` and `GET /v1/responses/{id}`, plain and streaming.
//!
//! <https://platform.openai.com/docs/api-reference/responses>. A response that is stored (the default) is finished even
//! if its client leaves, survives a crash, and can be asked for and continued by its id. A stream that broke off goes on
//! with `GET ?stream=true&starting_after=N` or the `Last-Event-ID` that came last.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Request, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;

use super::ask::{self, Asked, Conversation, DEFAULT_MODEL, agent_of, with_session};
use super::error::ApiError;
use super::{Api, sse, telling};
use crate::model::id::{SessionId, TurnId};
use crate::model::message::Message;
use crate::model::time::Timestamp;
use crate::model::turn::{History, NewTurn, Origin, TurnRecord};

mod answer;
mod stream;

use answer::Answer;
use stream::Has;

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
    let streams = asked.body.stream == Some(true);
    let has = streams.then(|| asked.has()).flatten();
    let mut ticket = ask::submit(&api.gateway, turn, has.as_ref()).await?;
    let session = ticket.session.clone();
    // A repeated request is answered with what the first one was given.
    let answer = Answer { id: ticket.id, created: ticket.accepted.as_secs(), ..answer };
    let response = if streams {
        sse::response(&api.tasks, move |events| stream::stream(events, ticket.watch, has.into(), answer))
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
pub async fn show(
    State(api): State<Api>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (streams, after) = wanted(uri.query().unwrap_or_default())?;
    let unknown = || ApiError::missing("response_not_found", format!("there is no response '{}'", id.escape_debug()));
    let turn = parse_id(&id).ok_or_else(unknown)?;
    let (record, watch) = api.gateway.find(turn).await?.ok_or_else(unknown)?;
    if !record.keep || record.origin != Origin::Responses {
        return Err(unknown());
    }
    let answer = Answer::from(&record);
    let response = if streams {
        // Who comes back by itself repeats the address, so the header is what it got last.
        let has = telling::has(&headers).map(Has::Mark).or(after.map(Has::Number)).unwrap_or(Has::Nothing);
        sse::response(&api.tasks, move |events| stream::stream(events, watch, has, answer))
    } else {
        Json(answer.response(watch.outcome_now().as_ref())).into_response()
    };
    Ok(with_session(response, &record.session))
}

/// Whether a stream is wanted, and after which event; what else can be asked for is nothing that we have.
fn wanted(query: &str) -> Result<(bool, Option<u64>), ApiError> {
    let (mut streams, mut after) = (false, None);
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let invalid = |what: &str| ApiError::invalid(Some(key), format!("{key}: must be {what}"));
        match key {
            "stream" => streams = value.parse().map_err(|_| invalid("true or false"))?,
            "starting_after" => after = Some(value.parse().map_err(|_| invalid("the number of an event"))?),
            _ => {}
        }
    }
    Ok((streams, after))
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
