//! `POST /webhooks/{name}`: a program tells something, an agent is asked what to make of it, and the answer goes where
//! the configuration says.
//!
//! Who may speak is decided by a signature, by the scheme that the configuration names and never by one that the sender
//! chooses. A message is on disk when it is answered with 202. One that was delivered before, by its delivery id, is
//! answered with 200 and its turn; one that the filter leaves out with 200 and "ignored".

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Api;
use super::ask::read_body;
use super::error::ApiError;
use crate::fault;
use crate::gateway::Inbound;
use crate::model::address::{Source, Target};
use crate::model::id::SessionId;
use crate::model::time::Timestamp;
use crate::policy::session::Rules;
use crate::policy::signature::{self, EventType, Refused, Scheme};
use crate::policy::template::Template;
use crate::secret::{self, ExposeSecret};

mod quota;

use quota::Quota;

/// The platform that webhooks are, in the inbox, in logs and in metrics.
pub const PLATFORM: &str = "webhook";

/// One webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How its sender signs.
    pub scheme: Scheme,
    /// What it signs with.
    pub secret: secret::Source,
    /// How far the sender's clock may be off, where the scheme has a time.
    pub tolerance: Duration,
    /// The events that are wanted; none named: all of them.
    pub events: Vec<String>,
    /// What the agent is asked.
    pub prompt: Template,
    /// Which agent; `None`: the default one.
    pub agent: Option<String>,
    /// Which session an event belongs to.
    pub session: Sessions,
    /// Where the reply goes; `None`: nowhere.
    pub deliver: Option<Deliver>,
    /// How its sessions take messages.
    pub rules: Rules,
    /// Messages a minute; what is more is answered with 429.
    pub per_minute: usize,
    /// Largest body, in bytes.
    pub max_body: usize,
}

/// Which session an event belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sessions {
    /// Each event is a conversation of its own.
    Event,
    /// All are one conversation.
    Shared,
    /// Those for which this text is the same.
    By(Template),
}

/// Where a reply goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deliver {
    /// To this chat.
    Chat(Target),
    /// To this platform, with the session as the chat.
    Platform(String),
}

/// The webhooks that are configured; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Webhooks {
    by_name: Arc<BTreeMap<String, Arc<Webhook>>>,
}

#[derive(Debug)]
struct Webhook {
    name: String,
    config: Config,
    quota: Quota,
}

impl Webhooks {
    /// The webhooks; those in `before` whose configuration is unchanged keep their count.
    pub fn new(configs: &BTreeMap<String, Config>, before: Option<&Self>) -> Self {
        let make = |(name, config): (&String, &Config)| {
            let kept = before.and_then(|b| b.by_name.get(name)).filter(|kept| kept.config == *config);
            let quota = Quota::per_minute(config.per_minute);
            let new = || Arc::new(Webhook { name: name.clone(), config: config.clone(), quota });
            (name.clone(), kept.cloned().unwrap_or_else(new))
        };
        Self { by_name: Arc::new(configs.iter().map(make).collect()) }
    }
}

/// Takes what a program tells.
pub async fn receive(
    State(api): State<Api>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let hook = api.webhooks.borrow().by_name.get(&name).cloned();
    let hook = hook.ok_or_else(|| ApiError::missing("webhook_not_found", "there is no such webhook"))?;
    let patience = api.config.borrow().body_timeout;
    let (parts, body) = request.into_parts();
    let body = read_body(&parts.headers, body, hook.config.max_body, patience).await?;
    fault::point("webhook.read");
    let delivery_id = hook.verify(&parts.headers, &body)?;
    // Counted when it is known who speaks: a stranger cannot use up what the sender may.
    hook.quota.take().map_err(|wait| ApiError::too_many(hook.config.per_minute, wait))?;
    let payload = payload(&parts.headers, &body)?;
    if let Some(answer) = handshake(&hook.config.scheme, &payload) {
        return Ok(answer);
    }
    let event = signature::event_type(&hook.config.scheme, &|name: &str| text(&parts.headers, name), &payload);
    if !hook.wants(event.as_ref()) {
        let event = event.map(|event| event.name);
        return Ok(Json(json!({ "status": "ignored", "event": event })).into_response());
    }
    let inbound = hook.inbound(delivery_id, event.as_ref().map_or("", |event| &event.name), &payload, &body);
    let session = inbound.session.clone();
    let taken = api.gateway.receive(vec![inbound], None).await?;
    let taken = taken.first().ok_or_else(ApiError::internal)?;
    let (code, status) = match taken.new {
        true => (StatusCode::ACCEPTED, "accepted"),
        false => (StatusCode::OK, "duplicate"),
    };
    tracing::info!(webhook = name, turn = %taken.turn, session = %session, status, "webhook");
    Ok((code, Json(json!({ "status": status, "turn": taken.turn.to_string(), "session": session.as_str() })))
        .into_response())
}

impl Webhook {
    /// Whether the sender is who it has to be; the id that it gave the delivery in a header.
    fn verify(&self, headers: &HeaderMap, body: &Bytes) -> Result<Option<String>, ApiError> {
        let config = &self.config;
        // Read for each message, so that a rotated secret counts at once.
        let secret = secret::read(&config.secret).map_err(|e| {
            tracing::error!(webhook = self.name, error = %e, "the webhook has no secret, so nobody can be let in");
            ApiError::internal()
        })?;
        let secret = secret.expose_secret().as_bytes();
        let lookup = |name: &str| text(headers, name);
        let verified = signature::verify(&config.scheme, secret, &lookup, body, Timestamp::now(), config.tolerance);
        let verified = verified.map_err(|refused| match refused {
            Refused::Secret(e) => {
                tracing::error!(webhook = self.name, error = %e, "the webhook's secret is of no use: nobody is let in");
                ApiError::internal()
            }
            refused => {
                tracing::warn!(webhook = self.name, reason = %refused, "refused a webhook");
                ApiError::unsigned(&refused)
            }
        })?;
        Ok(verified.delivery_id)
    }

    fn wants(&self, event: Option<&EventType>) -> bool {
        // GitHub asks whether anybody is there; that is nothing for an agent.
        let ping = self.config.scheme == Scheme::GitHub && event.is_some_and(|event| event.name == "ping");
        let wanted = &self.config.events;
        !ping && (wanted.is_empty() || event.is_some_and(|event| wanted.iter().any(|name| event.matches(name))))
    }

    fn inbound(&self, delivery_id: Option<String>, event: &str, payload: &Value, body: &Bytes) -> Inbound {
        let config = &self.config;
        let in_body = || signature::delivery_id_in_body(&config.scheme, payload);
        // Who names nothing is known by what they say.
        let message = delivery_id.or_else(in_body).unwrap_or_else(|| hex(&Sha256::digest(body)));
        let session = match &config.session {
            Sessions::Event => SessionId::derived(&["webhook", &self.name, &message]),
            Sessions::Shared => SessionId::derived(&["webhook", &self.name]),
            Sessions::By(template) => SessionId::derived(&["webhook", &self.name, &template.fill(event, payload)]),
        };
        let deliver = config.deliver.as_ref().and_then(|deliver| match deliver {
            Deliver::Chat(target) => Some(target.clone()),
            // A session's name has nothing that a chat's cannot have.
            Deliver::Platform(platform) => Target::new(platform, session.as_str()).ok(),
        });
        Inbound {
            source: Source { platform: PLATFORM.into(), account: self.name.clone(), message },
            session,
            agent: config.agent.clone(),
            text: config.prompt.fill(event, payload),
            deliver,
            rules: config.rules,
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What is told, as JSON, whatever its type says: `curl -d` calls everything a form. A form becomes an object, in which a
/// field `payload` that is JSON stands for all.
fn payload(headers: &HeaderMap, body: &Bytes) -> Result<Value, ApiError> {
    let error = match serde_json::from_slice(body) {
        Ok(payload) => return Ok(payload),
        Err(error) => error,
    };
    let kind = text(headers, header::CONTENT_TYPE.as_str()).unwrap_or_default();
    if kind.starts_with("application/x-www-form-urlencoded") {
        let fields: BTreeMap<String, String> = form_urlencoded::parse(body).into_owned().collect();
        let whole = fields.get("payload").and_then(|payload| serde_json::from_str(payload).ok());
        return Ok(whole.unwrap_or_else(|| json!(fields)));
    }
    if kind.starts_with("text/plain") {
        return Ok(String::from_utf8_lossy(body).into_owned().into());
    }
    Err(ApiError::invalid(None, format!("the request body is not JSON: {error}")))
}

/// Slack asks for its own words back before it sends anything.
fn handshake(scheme: &Scheme, payload: &Value) -> Option<Response> {
    let asks = *scheme == Scheme::Slack && payload["type"] == "url_verification";
    let challenge = payload["challenge"].as_str().filter(|_| asks)?;
    Some(Json(json!({ "challenge": challenge })).into_response())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
