//! Conversations: listed, shown, begun anew, exported.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::query::{DEFAULT_PAGE, Query};
use crate::http::Api;
use crate::http::error::ApiError;
use crate::model::id::SessionId;
use crate::store::browse::{Page, SessionDetail, SessionView};
use crate::store::{Store, StoreError};

/// Pieces of an export that may wait for a slow reader; each is at most one step of the store.
const PIECES: usize = 2;

/// Conversations, the latest active first.
pub async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<Page<SessionView>>, ApiError> {
    let query = Query::of(&uri, &["limit", "before"])?;
    Ok(Json(api.store.list_sessions(query.parsed("before")?, query.limit()?).await?))
}

/// A conversation with its newest turns.
pub async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<SessionDetail>, ApiError> {
    let found = api.store.show_session(session(&id)?, DEFAULT_PAGE).await?;
    found.map(Json).ok_or_else(|| unknown(&id))
}

/// Lets a conversation begin anew.
pub async fn reset(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let session = session(&id)?;
    if !api.store.reset_session(session.clone()).await? {
        return Err(unknown(&id));
    }
    tracing::info!(%session, "the conversation begins anew, by hand");
    Ok(Json(json!({ "session": session.as_str(), "reset": true })))
}

/// All turns of a conversation, oldest first, each a JSON object on a line of its own.
pub async fn export(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let session = session(&id)?;
    if api.store.show_session(session.clone(), 1).await?.is_none() {
        return Err(unknown(&id));
    }
    let (send, receive) = mpsc::channel(PIECES);
    let store = api.store.clone();
    api.tasks.spawn("export", async move {
        if let Err(error) = write(&store, session, &send).await {
            tracing::warn!(error = %error, "an export broke off");
            // A body that ends with an error is not taken for a whole one.
            let _reader_left = send.send(Err(error)).await;
        }
    });
    let body = stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) });
    let lines = [(header::CONTENT_TYPE, HeaderValue::from_static("application/jsonl"))];
    Ok((lines, Body::from_stream(body)).into_response())
}

async fn write(
    store: &Store,
    session: SessionId,
    out: &mpsc::Sender<Result<Bytes, StoreError>>,
) -> Result<(), StoreError> {
    let mut after = 0;
    loop {
        let turns = store.export_session(session.clone(), after).await?;
        let Some(last) = turns.last() else { return Ok(()) };
        after = last.turn.seq;
        let mut lines = Vec::new();
        for turn in &turns {
            serde_json::to_writer(&mut lines, turn).map_err(|e| StoreError::Failed(e.to_string()))?;
            lines.push(b'\n');
        }
        if out.send(Ok(lines.into())).await.is_err() {
            tracing::debug!("the reader of an export left");
            return Ok(());
        }
    }
}

fn session(id: &str) -> Result<SessionId, ApiError> {
    id.parse().map_err(|_| unknown(id))
}

fn unknown(id: &str) -> ApiError {
    ApiError::missing("session_not_found", format!("there is no session '{}'", id.escape_debug()))
}
