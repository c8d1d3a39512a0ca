//! Turns: listed and shown.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::Uri;

use super::query::Query;
use crate::http::Api;
use crate::http::error::ApiError;
use crate::http::turns::unknown;
use crate::store::browse::{Page, TURN_STATES, TurnDetail, TurnFilter, TurnView};

/// Turns, newest first.
pub async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<Page<TurnView>>, ApiError> {
    let query = Query::of(&uri, &["session", "state", "limit", "before"])?;
    let state = query.text("state").map(str::to_owned);
    if let Some(state) = &state
        && !TURN_STATES.contains(&state.as_str())
    {
        let message = format!("state: expected one of {}", TURN_STATES.join(", "));
        return Err(ApiError::invalid(Some("state"), message));
    }
    let filter = TurnFilter { session: query.parsed("session")?, state };
    Ok(Json(api.store.list_turns(filter, query.parsed("before")?, query.limit()?).await?))
}

/// A turn with all that belongs to it.
pub async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<TurnDetail>, ApiError> {
    let turn = id.parse().map_err(|_| unknown(&id))?;
    api.store.show_turn(turn).await?.map(Json).ok_or_else(|| unknown(&id))
}
