//! `GET /v1/models`: the agents, under the names by which a request chooses one.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::Api;
use super::ask::DEFAULT_MODEL;
use super::error::ApiError;
use crate::gateway::SubmitError;

/// All of them; the name that stands for the default one comes first.
pub async fn list(State(api): State<Api>) -> Json<Value> {
    let models: Vec<_> = names(&api).iter().map(|name| model(&api, name)).collect();
    Json(json!({ "object": "list", "data": models }))
}

/// One of them.
pub async fn show(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    if names(&api).contains(&name) { Ok(Json(model(&api, &name))) } else { Err(SubmitError::UnknownAgent(name).into()) }
}

fn names(api: &Api) -> Vec<String> {
    let agents = api.gateway.agents();
    let mut names = vec![DEFAULT_MODEL.to_owned()];
    names.extend(agents.kinds().map(|(name, _)| name.to_owned()).filter(|name| name != DEFAULT_MODEL));
    names
}

fn model(api: &Api, name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": api.vitals.started().as_secs(), "owned_by": "hermes-gateway" })
}
