//! The control socket: what the command line asks of a running gateway.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::Api;
use super::ask::{Asked, agent_of};
use super::error::ApiError;
use super::health;
use super::sse::{self, Events, Gone};
use super::telling::{Begun, Telling};
use crate::gateway::{Mark, Progress, Watch};
use crate::model::id::{SessionId, TurnId};
use crate::model::message::Message;
use crate::model::time::Timestamp;
use crate::model::turn::{History, NewTurn, Origin, Outcome};

pub mod backup;
pub mod outbox;
mod query;
pub mod sessions;
pub mod turns;

pub use query::DEFAULT_PAGE;

/// The session of `send` when none is named.
const DEFAULT_SESSION: &str = "cli";

/// What the process is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Stop.
    Stop,
    /// Give way to a successor.
    Restart,
    /// Read the configuration again and say what came of it.
    Reload(oneshot::Sender<ReloadReport>),
}

/// What came of a reload.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Keys whose new values are in force.
    pub applied: Vec<String>,
    /// Keys whose new values wait for a restart.
    pub needs_restart: Vec<String>,
    /// What is wrong with the new configuration; if anything is, nothing of it is in force.
    pub problems: Vec<String>,
}

/// The request of `hermes-gateway send`.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendRequest {
    /// What is said.
    pub text: String,
    /// In which session.
    pub session: Option<String>,
    /// To which agent.
    pub agent: Option<String>,
}

/// How everything is.
pub async fn status(State(api): State<Api>) -> Json<Value> {
    Json(health::report(&api).await)
}

/// Says something and streams the reply: events `text`, then `end` or `error`. Who leaves takes back what they asked. With
/// an `Idempotency-Key` the turn outlives the gateway, and the same request with the `Last-Event-ID` that came last
/// gets the rest; `again` comes first if what came before is void.
pub async fn send(State(api): State<Api>, request: Request<Body>) -> Result<Response, ApiError> {
    let asked: Asked<SendRequest> = Asked::read(&api, request).await?;
    let session = asked.body.session.as_deref().unwrap_or(DEFAULT_SESSION);
    let session: SessionId =
        session.parse().map_err(|e| ApiError::invalid(Some("session"), format!("session: {e}")))?;
    let agent = agent_of(&api, asked.body.agent.as_deref());
    let (idempotency, has) = (asked.idempotency()?, asked.has());
    let turn = NewTurn {
        id: TurnId::new(),
        session,
        model: agent.clone(),
        agent,
        origin: Origin::Control,
        accepted: Timestamp::now(),
        instructions: None,
        history: History::Session,
        input: vec![Message::user(asked.body.text)],
        keep: idempotency.is_some(),
        idempotency,
        deliver: None,
    };
    let ticket = api.gateway.submit(turn).await?;
    Ok(sse::response(&api.tasks, move |events| stream(events, ticket.watch, has)))
}

async fn stream(events: Events, watch: Watch, has: Option<Mark>) -> Result<(), Gone> {
    let returns = has.is_some();
    let (mut out, begun) = Telling::begin(events, watch, has).await?;
    if returns && begun == Begun::FromStart {
        out.send(Some("again"), &json!({})).await?;
    }
    loop {
        match out.next().await? {
            Progress::Text(text) => out.send(Some("text"), &json!({ "text": text })).await?,
            Progress::Thought(_) => {}
            Progress::Ended(Outcome::Completed { .. }) => return out.send(Some("end"), &json!({})).await,
            Progress::Ended(outcome) => {
                let error = ApiError::of_outcome(&outcome).unwrap_or_else(ApiError::internal);
                return out.remark(Some("error"), error.body()).await;
            }
        }
    }
}

/// Begins to stop; the answer comes first.
pub async fn stop(State(api): State<Api>) -> Result<impl IntoResponse, ApiError> {
    command(&api, Command::Stop).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "stopping": api.vitals.identity() }))))
}

/// Begins to give way to a successor; the answer comes first.
pub async fn restart(State(api): State<Api>) -> Result<impl IntoResponse, ApiError> {
    command(&api, Command::Restart).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "restarting": api.vitals.identity() }))))
}

/// Reads the configuration again; answers when the new one is in force or refused.
pub async fn reload(State(api): State<Api>) -> Result<Json<ReloadReport>, ApiError> {
    let (reply, answer) = oneshot::channel();
    command(&api, Command::Reload(reply)).await?;
    answer.await.map(Json).map_err(|_| ApiError::stopping())
}

async fn command(api: &Api, command: Command) -> Result<(), ApiError> {
    api.commands.send(command).await.map_err(|_| ApiError::stopping())
}
