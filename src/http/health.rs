//! How the process is: alive, ready, and every part's state. One struct feeds `/health/ready`, the control socket's
//! `/status` and, through it, `hermes-gateway status`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Api;
use crate::model::time::Timestamp;
use crate::service::notify::Notifier;
use crate::store::StoreError;
use crate::store::browse::Census;

/// How long the store may take to answer before it counts as not ready.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// What is fixed for the life of a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The instance's name.
    pub instance: String,
    /// The version that runs.
    pub version: String,
    /// Another for every start, so that a successor can be told from its predecessor with the same pid.
    pub life: String,
    /// The process.
    pub pid: u32,
    /// `systemd` or `stand-alone`.
    pub supervisor: String,
    /// The unit it runs in, if any.
    pub unit: Option<String>,
    /// In-place restarts behind it.
    pub generation: u32,
    /// Where it listens.
    pub listeners: Vec<String>,
    /// The configuration file; it need not exist.
    pub config_file: String,
    /// The state directory.
    pub state_directory: String,
    /// Where the API's key is, never the key.
    pub key_source: String,
}

/// How the process is; clones share it.
#[derive(Debug, Clone)]
pub struct Vitals {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    identity: Identity,
    started: Timestamp,
    since: Instant,
    notifier: Notifier,
    ready: AtomicBool,
    last_reload: Mutex<Option<String>>,
}

impl Vitals {
    /// A process that begins.
    pub fn new(identity: Identity, notifier: Notifier) -> Self {
        let (started, since) = (Timestamp::now(), Instant::now());
        let (ready, last_reload) = (AtomicBool::new(false), Mutex::default());
        Self { inner: Arc::new(Inner { identity, started, since, notifier, ready, last_reload }) }
    }

    /// It serves now.
    pub fn set_ready(&self) {
        self.inner.ready.store(true, Ordering::Relaxed);
    }

    /// How the last reload went, for people.
    pub fn set_last_reload(&self, result: String) {
        *self.inner.last_reload.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    }

    /// When it began.
    pub fn started(&self) -> Timestamp {
        self.inner.started
    }

    /// What is fixed.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// `starting`, `running` or `draining`.
    fn word(&self, stopping: bool) -> &'static str {
        match (stopping, self.inner.ready.load(Ordering::Relaxed)) {
            (true, _) => "draining",
            (false, true) => "running",
            (false, false) => "starting",
        }
    }
}

/// Alive: this very answer is the proof. Needs no key and tells nothing else.
pub async fn alive() -> Json<Value> {
    Json(json!({ "status": "ok", "platform": "hermes-gateway", "version": env!("CARGO_PKG_VERSION") }))
}

/// Ready, with every part's state; 503 if a new turn could not be taken.
pub async fn ready(State(api): State<Api>) -> impl IntoResponse {
    let report = report(&api).await;
    let ready = report["state"] == "running" && report["parts"]["store"]["ok"] == true;
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(report))
}

/// Everything that is counted, for Prometheus.
pub async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, HeaderValue::from_static(format))], api.meters.render())
}

/// Every part's state.
pub async fn report(api: &Api) -> Value {
    let inner = &api.vitals.inner;
    let began = Instant::now();
    let asked = async {
        api.store.ping().await?;
        api.store.trouble().await.map_or(Ok(()), Err)?;
        let answered = began.elapsed().as_micros() as u64;
        Ok::<_, StoreError>((answered, api.gateway.outbox().census().await?))
    };
    let (store, outbox) = match tokio::time::timeout(STORE_PATIENCE, asked).await {
        Ok(Ok((answered, census))) => (json!({ "ok": true, "answered_in_us": answered }), outbox(&census)),
        Ok(Err(e)) => failing(&e.to_string()),
        Err(_) => failing(&format!("no answer within {STORE_PATIENCE:?}")),
    };
    let agents = api.gateway.agents();
    let kinds: serde_json::Map<_, _> = agents.kinds().map(|(name, kind)| (name.into(), json!(kind))).collect();
    let (running, queued) = api.gateway.load();
    json!({
        "state": api.vitals.word(api.gateway.is_stopping()),
        "status": inner.notifier.last_status(),
        "started": inner.started.as_secs(),
        "uptime_seconds": inner.since.elapsed().as_secs(),
        "identity": inner.identity,
        "last_reload": *inner.last_reload.lock().unwrap_or_else(PoisonError::into_inner),
        "parts": {
            "store": store,
            "turns": { "ok": true, "running": running, "queued": queued },
            "agents": { "ok": true, "default": agents.default_name(), "kinds": kinds },
            "outbox": outbox,
            "platforms": platforms(api),
            "http": { "ok": true, "connections": api.meters.http_connections.get() },
        },
    })
}

/// The store, and what only the store knows.
fn failing(error: &str) -> (Value, Value) {
    let part = json!({ "ok": false, "error": error });
    (part.clone(), part)
}

fn outbox(census: &Census) -> Value {
    let oldest = census.oldest_pending.map(|oldest| Timestamp::now().since(oldest).as_secs());
    json!({
        "ok": true,
        "pending": census.pending,
        "leased": census.leased,
        "dead": census.dead,
        "oldest_pending_seconds": oldest,
    })
}

/// Each platform with its kind, which is null where deliveries wait for one that is not configured.
fn platforms(api: &Api) -> Value {
    let outbox = api.gateway.outbox();
    let configured = outbox.platforms();
    let kind = |name: &str| configured.all().find(|(known, ..)| *known == name).map(|(_, kind, _)| kind);
    let platform = |(name, trouble): (String, Option<String>)| {
        let state = json!({ "kind": kind(&name), "ok": trouble.is_none(), "trouble": trouble });
        (name, state)
    };
    Value::Object(outbox.troubles().into_iter().map(platform).collect())
}
