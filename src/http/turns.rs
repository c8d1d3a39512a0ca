//! `GET /v1/turns/{id}`: how a turn goes or went, for whoever was told its id, by the answer to a webhook say.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Api;
use super::ask::with_session;
use super::error::ApiError;
use crate::model::turn::Outcome;
use crate::store::browse::DeliveryView;

/// A turn and what became of it.
pub async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let turn = id.parse().map_err(|_| unknown(&id))?;
    let look = async || api.store.show_turn(turn).await?.ok_or_else(|| unknown(&id));
    let mut detail = look().await?;
    let record = api.store.turn(turn).await?.ok_or_else(|| unknown(&id))?;
    if record.outcome.is_some() && detail.turn.ended.is_none() {
        // It ended between the two looks, and an end is for ever.
        detail = look().await?;
    }
    let seen = &detail.turn;
    let deliveries: Vec<_> = detail.deliveries.iter().map(delivery).collect();
    let error =
        record.outcome.as_ref().and_then(ApiError::of_outcome).map(|error| json!(error.body())["error"].clone());
    let (reply, usage) = match &record.outcome {
        Some(Outcome::Completed { text, usage, .. }) => (Some(text), Some(usage)),
        _ => (None, None),
    };
    let absorbed_by = match &record.outcome {
        Some(Outcome::Absorbed(by)) => Some(by.to_string()),
        _ => None,
    };
    let state = record.outcome.as_ref().map_or(seen.state.as_str(), |outcome| outcome.label());
    let body = json!({
        "id": seen.id,
        "object": "turn",
        "session": seen.session,
        "agent": seen.agent,
        "model": seen.model,
        "origin": seen.origin,
        "state": state,
        "attempts": seen.attempts,
        "accepted": seen.accepted,
        "ended": seen.ended,
        "reply": reply,
        "finish": reply.and(seen.finish.clone()),
        "usage": usage,
        "error": error.map(|e| json!({ "code": e["code"], "message": e["message"] })),
        "absorbed_by": absorbed_by,
        "deliveries": deliveries,
    });
    Ok(with_session(Json(body).into_response(), &record.session))
}

fn delivery(delivery: &DeliveryView) -> Value {
    json!({
        "number": delivery.number,
        "target": delivery.target,
        "kind": delivery.kind,
        "part": delivery.part,
        "parts": delivery.parts,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "possibly_repeated": delivery.repeated,
        "receipt": delivery.receipt,
        "error": delivery.reason,
        "created": delivery.created,
        "settled": delivery.settled,
    })
}

/// No such turn.
pub fn unknown(id: &str) -> ApiError {
    ApiError::missing("turn_not_found", format!("there is no turn '{}'", id.escape_debug()))
}
