//! Layer 3: everything that speaks HTTP. The API for clients, the control socket for the command line, health, metrics.
//!
//! One router for each listener's trust: the API wants a bearer key on everything but `/health` and the webhooks, which
//! are signed; the control socket has been checked by the kernel (see [`server`]) and wants none.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post};
use tokio::sync::{mpsc, watch};

use crate::gateway::Gateway;
use crate::meter::Meters;
use crate::secret::SecretString;
use crate::stop::Tasks;
use crate::store::Store;

mod ask;
pub use ask::DEFAULT_MODEL;
mod auth;
mod chat;
pub mod control;
mod error;
pub mod health;
mod models;
mod observe;
pub mod refusal;
mod responses;
pub mod server;
mod sse;
mod telling;
mod turns;
pub mod webhooks;

use control::Command;
use health::Vitals;
use webhooks::Webhooks;

/// The bounds of the HTTP side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Largest request body, in bytes.
    pub max_body: usize,
    /// Connections that may be open at the same time, on each listener; more wait in the kernel's queue.
    pub max_connections: usize,
    /// Longest time for the head of a request, and for a kept connection to bring the next one.
    pub header_timeout: Duration,
    /// Longest time for the body of a request.
    pub body_timeout: Duration,
}

/// What every handler works with.
#[derive(Debug, Clone)]
pub struct Api {
    /// The gateway.
    pub gateway: Gateway,
    /// The store, for asking how it is.
    pub store: Store,
    /// The bounds, as they are now.
    pub config: watch::Receiver<Config>,
    /// The key that clients must show, as it is now.
    pub key: watch::Receiver<Arc<SecretString>>,
    /// Who may tell something, as it is now.
    pub webhooks: watch::Receiver<Webhooks>,
    /// How the process is.
    pub vitals: Vitals,
    /// What is counted.
    pub meters: Arc<Meters>,
    /// For streams, which outlive their handlers.
    pub tasks: Tasks,
    /// What the control socket asks of the process.
    pub commands: mpsc::Sender<Command>,
}

/// What clients reach: the OpenAI-compatible API, health and metrics.
pub fn api_router(api: Api) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model}", get(models::show))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::show))
        .route("/v1/turns/{id}", get(turns::show))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route_layer(middleware::from_fn_with_state(api.clone(), auth::require_key));
    let open = Router::new()
        .route("/health", get(health::alive))
        .route("/v1/health", get(health::alive))
        // Signed, each by its own scheme.
        .route("/webhooks/{name}", post(webhooks::receive));
    finish(guarded.merge(open), api)
}

/// What the command line reaches through the control socket.
pub fn control_router(api: Api) -> Router {
    let router = Router::new()
        .route("/status", get(control::status))
        .route("/turns", post(control::send).get(control::turns::list))
        .route("/turns/{id}", get(control::turns::show))
        .route("/outbox", get(control::outbox::list))
        .route("/outbox/{number}", get(control::outbox::show))
        .route("/outbox/retry", post(control::outbox::retry))
        .route("/outbox/drop", post(control::outbox::drop_them))
        .route("/backup", get(control::backup::backup))
        .route("/sessions", get(control::sessions::list))
        .route("/sessions/{id}", get(control::sessions::show))
        .route("/sessions/{id}/reset", post(control::sessions::reset))
        .route("/sessions/{id}/export", get(control::sessions::export))
        .route("/stop", post(control::stop))
        .route("/restart", post(control::restart))
        .route("/reload", post(control::reload))
        .route("/health", get(health::alive))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(health::metrics));
    finish(router, api)
}

fn finish(router: Router<Api>, api: Api) -> Router {
    router
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        // Bodies are read and bounded in one place, `ask::json`, with a limit that a reload can change.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(api.clone(), observe::each_request))
        .with_state(api)
}
