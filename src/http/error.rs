//! Errors in the shape that OpenAI's clients understand: `{"error": {"message", "type", "param", "code"}}`.

use std::fmt;
use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::gateway::SubmitError;
use crate::model::turn::{Failure, Outcome};
use crate::store::StoreError;
use crate::store::backup::CopyError;

/// When what is busy or in trouble is worth another try.
const SOON: Duration = Duration::from_secs(1);

/// When what a person has to mend is worth another try.
const LATER: Duration = Duration::from_secs(60);

/// The body of an error answer.
#[derive(Debug, Clone, Serialize)]
pub struct Body {
    error: Detail,
}

#[derive(Debug, Clone, Serialize)]
struct Detail {
    message: String,
    r#type: &'static str,
    param: Option<String>,
    code: &'static str,
}

impl Body {
    /// An error of this type and code.
    pub fn new(r#type: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { error: Detail { message: message.into(), r#type, param: None, code } }
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Strings and an Option: serialising them cannot fail.
        f.write_str(&serde_json::to_string(self).unwrap_or_default())
    }
}

/// An error with its status.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    body: Body,
    /// When to try again, where that helps.
    retry: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, r#type: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, body: Body::new(r#type, code, message), retry: None }
    }

    /// The request is wrong, at `param` if one place can be named.
    pub fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_value", message);
        error.body.error.param = param.map(str::to_owned);
        error
    }

    /// The body is larger than `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the request body is larger than the limit of {limit} bytes (http.max_body)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "body_too_large", message)
    }

    /// The body did not come in time.
    pub fn too_slow() -> Self {
        let message = "the request body did not arrive in time (http.body_timeout)";
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "request_timeout", message)
    }

    /// No key, or the wrong one.
    pub fn unauthorized() -> Self {
        let message = "a valid key is needed: send 'Authorization: Bearer KEY'; \
                       'hermes-gateway status' names the file that holds it";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key", message)
    }

    /// The signature of a webhook is missing or wrong.
    pub fn unsigned(why: &dyn fmt::Display) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_signature", why.to_string())
    }

    /// More than the configuration lets through.
    pub fn too_many(per_minute: usize, wait: Duration) -> Self {
        let message = format!("more than {per_minute} messages a minute (webhooks.*.per_minute)");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded", message);
        Self { retry: Some(wait), ..error }
    }

    /// Nothing there.
    pub fn missing(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", code, message)
    }

    /// The fault is ours.
    pub fn internal() -> Self {
        let message = "the gateway failed while it answered; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal_error", message)
    }

    /// The gateway stops; its successor will answer.
    pub fn stopping() -> Self {
        let message = "the gateway is stopping or restarting: try again";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "gateway_stopping", message);
        Self { retry: Some(SOON), ..error }
    }

    /// The body alone, for a stream that has begun with status 200.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// What the end of a turn means for a client that wants a reply; `None` when there is one.
    pub fn of_outcome(outcome: &Outcome) -> Option<Self> {
        Some(match outcome {
            Outcome::Completed { .. } => return None,
            Outcome::Failed { failure: Failure::Agent, message } => {
                Self::new(StatusCode::BAD_GATEWAY, "server_error", "agent_failed", message)
            }
            Outcome::Failed { failure: Failure::Timeout, message } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", "agent_timeout", message)
            }
            Outcome::Failed { failure: Failure::Store, message } => Self::no_room(message),
            Outcome::Cancelled => {
                Self::new(StatusCode::CONFLICT, "server_error", "turn_cancelled", "this turn was cancelled")
            }
            Outcome::Interrupted => Self::stopping(),
            Outcome::Superseded => {
                let message = "a newer message of this session took this turn's place";
                Self::new(StatusCode::CONFLICT, "server_error", "turn_superseded", message)
            }
            Outcome::Absorbed(by) => {
                let message = format!("this message was added to the turn {by}, which was running");
                Self::new(StatusCode::CONFLICT, "server_error", "turn_absorbed", message)
            }
            Outcome::Parked => {
                let message = "this turn was running at each of several crashes and is not tried again";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "turn_parked", message)
            }
        })
    }

    fn no_room(message: &str) -> Self {
        let error = Self::new(StatusCode::INSUFFICIENT_STORAGE, "server_error", "store_full", message);
        Self { retry: Some(SOON), ..error }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::UnknownAgent(_) => {
                let mut error = Self::missing("model_not_found", format!("{message}; GET /v1/models lists them"));
                error.body.error.param = Some("model".into());
                error
            }
            SubmitError::Full(_) => {
                let busy = StatusCode::TOO_MANY_REQUESTS;
                Self { retry: Some(SOON), ..Self::new(busy, "rate_limit_error", "rate_limit_exceeded", message) }
            }
            SubmitError::Stopping => Self::stopping(),
            SubmitError::KeyReused => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Self::new(status, "invalid_request_error", "idempotency_key_reused", message)
            }
            SubmitError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NoRoom(_) => Self::no_room(&error.to_string()),
            StoreError::Damaged(_) => {
                let (status, message) = (StatusCode::SERVICE_UNAVAILABLE, "the store is damaged; the log says more");
                Self { retry: Some(LATER), ..Self::new(status, "server_error", "store_damaged", message) }
            }
            StoreError::Failed(_) => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self { retry: Some(SOON), ..Self::new(status, "server_error", "store_failed", error.to_string()) }
            }
        }
    }
}

impl From<CopyError> for ApiError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Store(error) => error.into(),
            CopyError::Busy => {
                let message = error.to_string();
                Self::new(StatusCode::CONFLICT, "invalid_request_error", "backup_running", message)
            }
            // Nobody is there to be told, but when the gateway stops.
            CopyError::GivenUp => Self::stopping(),
            CopyError::Damaged(_) => Self::internal(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut response = (self.status, [json], self.body.to_string()).into_response();
        if let Some(wait) = self.retry {
            // Whole seconds, and never too early.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// No such path.
pub async fn not_found(uri: Uri) -> ApiError {
    ApiError::missing("unknown_url", format!("there is nothing at {}", uri.path()))
}

/// The path is right and the method is not.
pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed", message)
}
