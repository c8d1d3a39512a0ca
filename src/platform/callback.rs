//! An HTTP endpoint of the user's own that is called with each reply: `POST` with a JSON body, signed by the Standard
//! Webhooks scheme (<https://www.standardwebhooks.com>) if a secret is configured.
//!
//! `Idempotency-Key` and `webhook-id` name the delivery and stay the same when it is sent again. Any 2xx answer takes
//! it; `id` in a JSON answer is kept as the receipt.

use std::time::Duration;

use axum::body::Bytes;
use serde_json::{Value, json};

use super::Limits;
use crate::model::delivery::{Delivery, Receipt, SendError};
use crate::model::disposition::Disposition;
use crate::model::time::Timestamp;
use crate::policy::signature;
use crate::secret::{self, ExposeSecret};
use crate::web::{self, LazyClient, cause, clip};

/// Longest answer that is read for a receipt or a reason, in bytes.
const MAX_ANSWER: usize = 16 * 1024;

/// Where to call and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What is called.
    pub url: String,
    /// What the calls are signed with; `None`: they are not.
    pub secret: Option<secret::Source>,
    /// Longest time for a call, from the connection to the answer.
    pub timeout: Duration,
    /// What it can take.
    pub limits: Limits,
}

/// An endpoint that is called.
#[derive(Debug)]
pub struct Callback {
    config: Config,
    client: LazyClient,
}

impl Callback {
    /// An endpoint; nothing is read or connected yet.
    pub fn new(config: Config) -> Self {
        Self { client: LazyClient::new(config.timeout), config }
    }

    /// Calls the endpoint with one delivery.
    pub async fn send(&self, delivery: &Delivery) -> Result<Receipt, SendError> {
        let url = &self.config.url;
        let late = |_| retry(format!("{url} gave no answer within {:?}", self.config.timeout));
        tokio::time::timeout(self.config.timeout, self.call(delivery)).await.map_err(late)?
    }

    async fn call(&self, delivery: &Delivery) -> Result<Receipt, SendError> {
        let (url, key) = (&self.config.url, &delivery.key);
        let body = body(delivery).to_string();
        let mut request = self.client.client().map_err(retry)?.post(url);
        request = request.header("content-type", "application/json").header("idempotency-key", key);
        if let Some(source) = &self.config.secret {
            let halt = |message| SendError { disposition: Disposition::Halt, message };
            let secret = secret::read(source).map_err(|e| halt(format!("the callback has no secret: {e}")))?;
            let now = Timestamp::now();
            let secret = secret.expose_secret().as_bytes();
            let signature = signature::sign_standard(secret, key, now, body.as_bytes());
            let signature = signature.map_err(|e| halt(format!("the callback's secret cannot be used: {e}")))?;
            request = request.header("webhook-id", key).header("webhook-timestamp", now.as_secs());
            request = request.header("webhook-signature", signature);
        }
        let sent = request.body(body).send().await;
        let mut response = sent.map_err(|e| retry(format!("cannot reach {url}: {}", cause(&e))))?;
        let (status, disposition) = (response.status(), web::disposition(response.status(), response.headers()));
        let mut answer = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await
            && answer.len() < MAX_ANSWER
        {
            let chunk: Bytes = chunk;
            answer.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(Receipt(name_of(&answer)));
        }
        // Not found and not allowed are mistakes of a moment more often than for ever: the endpoint is the user's own.
        let disposition = match status.as_u16() {
            404 | 405 => Disposition::Halt,
            _ if status.is_redirection() => Disposition::Halt,
            _ => disposition,
        };
        let message = format!("{url} answered {status}: {}", clip(&String::from_utf8_lossy(&answer)));
        Err(SendError { disposition, message })
    }
}

fn body(delivery: &Delivery) -> Value {
    let mut body = json!({
        "id": delivery.key,
        "kind": delivery.kind,
        "turn": delivery.turn.map(|turn| turn.to_string()),
        "session": delivery.session.as_ref().map(ToString::to_string),
        "chat": delivery.target.chat(),
        "part": delivery.part.0,
        "parts": delivery.part.1,
        "text": delivery.text,
    });
    if delivery.repeated {
        body["possibly_repeated"] = true.into();
    }
    body
}

/// What the endpoint calls the delivery.
fn name_of(answer: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let id = answer.get("id")?;
    id.as_str().map(str::to_owned).or_else(|| id.as_i64().map(|id| id.to_string())).map(|id| clip(&id))
}

fn retry(message: String) -> SendError {
    SendError { disposition: Disposition::Retry { after: None }, message }
}
