//! The bearer key.

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;

use super::Api;
use super::error::ApiError;
use crate::secret;

/// Lets a request through that shows the key.
pub async fn require_key(State(api): State<Api>, request: Request, next: Next) -> Result<Response, ApiError> {
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
    let key = api.key.borrow().clone();
    match shown {
        Some(shown) if secret::matches(&key, shown) => Ok(next.run(request).await),
        _ => Err(ApiError::unauthorized()),
    }
}

/// The scheme's name is case-insensitive (RFC 9110, section 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_key_is_a_key() {
        assert_eq!(bearer("Bearer k"), Some("k"));
        assert_eq!(bearer("bearer  k "), Some("k"));
        assert_eq!(bearer("Basic k"), None);
        assert_eq!(bearer("Bearer"), None);
    }
}
