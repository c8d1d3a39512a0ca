//! What all ways of asking have in common: a bounded JSON body, a session, an idempotency key, messages.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::{Api, telling};
use crate::gateway::{Gateway, Mark, SubmitError, Ticket};
use crate::model::id::SessionId;
use crate::model::message::{Message, Role};
use crate::model::turn::{Idempotency, NewTurn};

/// The header that names the session, in requests and answers. Hermes' own name for it.
pub const SESSION: HeaderName = HeaderName::from_static("x-hermes-session-id");
/// The header that names a request, so that a repetition is recognised.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest idempotency key, in bytes.
const MAX_KEY: usize = 255;
/// The name under which Hermes' clients ask for the default agent.
pub const DEFAULT_MODEL: &str = "hermes-agent";

/// A request that was read: its head, its body as it came and as it was understood.
pub struct Asked<T> {
    /// The headers.
    pub headers: HeaderMap,
    /// The body, parsed.
    pub body: T,
    /// SHA-256 of endpoint and body, independent of spaces and the order of keys.
    fingerprint: [u8; 32],
}

impl<T: DeserializeOwned> Asked<T> {
    /// Reads a JSON request within the bounds of the configuration.
    pub async fn read(api: &Api, request: Request<Body>) -> Result<Self, ApiError> {
        let (limit, patience) = {
            let config = api.config.borrow();
            (config.max_body, config.body_timeout)
        };
        let (parts, body) = request.into_parts();
        let bytes = read_body(&parts.headers, body, limit, patience).await?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| ApiError::invalid(None, format!("the request body is not JSON: {e}")))?;
        let mut hash = Sha256::new();
        hash.update(parts.uri.path());
        // Keys of a `Value` are sorted, so equal requests have equal texts.
        hash.update(value.to_string());
        let body = serde_path_to_error::deserialize(&value).map_err(|e| {
            let (path, reason) = (e.path().to_string(), e.inner().to_string());
            match path.as_str() {
                "." => ApiError::invalid(None, reason),
                path => ApiError::invalid(Some(path), format!("{path}: {reason}")),
            }
        })?;
        Ok(Self { headers: parts.headers, body, fingerprint: hash.finalize().into() })
    }

    /// The session that the client named.
    pub fn session(&self) -> Result<Option<SessionId>, ApiError> {
        let Some(value) = self.headers.get(SESSION) else { return Ok(None) };
        let session = value.to_str().map_err(|_| ()).and_then(|text| text.parse().map_err(|_| ()));
        session.map(Some).map_err(|()| {
            let rule = crate::model::id::InvalidId::Session;
            ApiError::invalid(Some("X-Hermes-Session-Id"), format!("X-Hermes-Session-Id: {rule}"))
        })
    }

    /// What the client has of the reply already.
    pub fn has(&self) -> Option<Mark> {
        telling::has(&self.headers)
    }

    /// How a repetition of this request is recognised.
    pub fn idempotency(&self) -> Result<Option<Idempotency>, ApiError> {
        let Some(value) = self.headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
        match value.to_str() {
            Ok(key) if !key.is_empty() && key.len() <= MAX_KEY => {
                Ok(Some(Idempotency { key: key.to_owned(), fingerprint: self.fingerprint }))
            }
            _ => Err(ApiError::invalid(
                Some("Idempotency-Key"),
                format!("Idempotency-Key: must have 1 to {MAX_KEY} visible ASCII characters"),
            )),
        }
    }
}

/// Reads a body within its bounds.
pub async fn read_body(headers: &HeaderMap, body: Body, limit: usize, patience: Duration) -> Result<Bytes, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::too_large(limit));
    }
    let collected = tokio::time::timeout(patience, Limited::new(body, limit).collect()).await;
    match collected.map_err(|_| ApiError::too_slow())? {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(ApiError::too_large(limit)),
        Err(e) => Err(ApiError::invalid(None, format!("the request body broke off: {e}"))),
    }
}

/// Adds the session's name to an answer.
pub fn with_session(mut response: Response, session: &SessionId) -> Response {
    // The alphabet of session ids fits into a header.
    if let Ok(value) = HeaderValue::from_str(session.as_str()) {
        response.headers_mut().insert(SESSION, value);
    }
    response
}

/// The agent that a model's name stands for.
pub fn agent_of(api: &Api, model: Option<&str>) -> String {
    match model {
        None | Some(DEFAULT_MODEL) => api.gateway.agents().default_name().to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// Takes a turn, or goes on with the one of which the client has a part.
pub async fn submit(gateway: &Gateway, turn: NewTurn, has: Option<&Mark>) -> Result<Ticket, SubmitError> {
    match has {
        Some(has) => gateway.submit_again(turn, has.turn).await,
        None => gateway.submit(turn).await,
    }
}

/// A conversation as a client gives it, taken apart.
#[derive(Debug, Default)]
pub struct Conversation {
    /// System and developer messages, in their order.
    pub instructions: Vec<String>,
    /// What people and agents said, in its order.
    pub said: Vec<Message>,
}

impl Conversation {
    /// Reads wire messages; `param` names their list in errors.
    pub fn read(messages: &[Value], param: &str) -> Result<Self, ApiError> {
        let mut conversation = Self::default();
        for (index, message) in messages.iter().enumerate() {
            conversation.add(message, &format!("{param}[{index}]"))?;
        }
        match conversation.said.last() {
            Some(Message { role: Role::User, .. }) => Ok(conversation),
            Some(_) => Err(ApiError::invalid(Some(param), format!("{param}: the last message must be a user's"))),
            None => Err(ApiError::invalid(Some(param), format!("{param}: must hold at least one user message"))),
        }
    }

    fn add(&mut self, message: &Value, place: &str) -> Result<(), ApiError> {
        let invalid = |part: &str, what: String| {
            let place = format!("{place}{part}");
            ApiError::invalid(Some(&place), format!("{place}: {what}"))
        };
        let Some(fields) = message.as_object() else {
            return Err(invalid("", "must be an object with role and content".into()));
        };
        let role = fields.get("role").and_then(Value::as_str).unwrap_or_default();
        let content =
            text_of(fields.get("content").unwrap_or(&Value::Null), role).map_err(|what| invalid(".content", what))?;
        match role {
            "system" | "developer" => self.instructions.push(content),
            "user" => self.said.push(Message { role: Role::User, content }),
            "assistant" => self.said.push(Message { role: Role::Assistant, content }),
            other => {
                let roles = "must be system, developer, user or assistant";
                return Err(invalid(".role", format!("{roles}, not '{}'", other.escape_debug())));
            }
        }
        Ok(())
    }

    /// All instructions as one text.
    pub fn instructions(&self) -> Option<String> {
        (!self.instructions.is_empty()).then(|| self.instructions.join("\n\n"))
    }

    /// The last message, and what came before it.
    pub fn split(mut self) -> (Vec<Message>, Vec<Message>) {
        let new = self.said.split_off(self.said.len().saturating_sub(1));
        (self.said, new)
    }
}

/// Text, or a list of text parts.
fn text_of(content: &Value, role: &str) -> Result<String, String> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Null if role == "assistant" => Ok(String::new()),
        Value::Array(parts) => parts.iter().map(part_text).collect(),
        _ => Err("must be a string or a list of text parts".into()),
    }
}

fn part_text(part: &Value) -> Result<String, String> {
    match part.get("type").and_then(Value::as_str) {
        Some("text" | "input_text" | "output_text") => {
            part.get("text").and_then(Value::as_str).map(str::to_owned).ok_or_else(|| "a text part needs 'text'".into())
        }
        Some(other) => Err(format!("parts of type '{}' are not supported, only text", other.escape_debug())),
        None => Err("each part must be an object with a type".into()),
    }
}
