//! What happens around every request: an id, a count, and a wall that a panic does not pass.

use std::panic::AssertUnwindSafe;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;

use super::Api;
use super::error::ApiError;
use crate::meter::RequestLabels;
use crate::stop::panic_text;

/// OpenAI's clients show it in their errors; the log has it too.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Runs a request.
pub async fn each_request(State(api): State<Api>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    // Unknown paths share one label: a label for each would be memory for whoever asks.
    let route = route.unwrap_or_else(|| "other".into());
    let id = uuid::Uuid::now_v7().simple().to_string();
    let mut response = AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|panic| {
        tracing::error!(request = id, route, panic = panic_text(panic.as_ref()), "a request handler panicked");
        ApiError::internal().into_response()
    });
    let code = response.status().as_u16();
    tracing::debug!(request = id, route, code, "answered");
    api.meters.http_requests.get_or_create(&RequestLabels { route, code }).inc();
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
