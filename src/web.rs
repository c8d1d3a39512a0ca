//! Layer 1: HTTP out, as everybody here does it: how a client is made, what an error means, how long to wait.

use std::error::Error;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode};

use crate::model::disposition::Disposition;

/// Longest piece of what another side said that is passed on, in characters.
const MAX_QUOTE: usize = 300;

/// An HTTP client that is made when it is first needed: TLS roots cost megabytes that an idle gateway need not have.
#[derive(Debug)]
pub struct LazyClient {
    connect_timeout: Duration,
    client: OnceLock<Client>,
}

impl LazyClient {
    /// A client that gives up on a connection after `connect_timeout`; nothing is made yet.
    pub fn new(connect_timeout: Duration) -> Self {
        Self { connect_timeout, client: OnceLock::new() }
    }

    /// The client.
    ///
    /// # Errors
    /// When TLS cannot be set up; the text says why.
    pub fn client(&self) -> Result<&Client, String> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // Only the first call of the process can succeed, and it need not be ours.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let client = Client::builder()
            .connect_timeout(self.connect_timeout)
            .user_agent(concat!("hermes-gateway/", env!("CARGO_PKG_VERSION")))
            // A redirect would carry keys to another host.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| format!("cannot set up an HTTP client: {}", cause(&e)))?;
        Ok(self.client.get_or_init(|| client))
    }
}

/// What an answer that is no success means, as most services mean it.
pub fn disposition(status: StatusCode, headers: &HeaderMap) -> Disposition {
    let after = headers.get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT => {
            Disposition::Retry { after }
        }
        _ if status.is_server_error() => Disposition::Retry { after },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Disposition::Halt,
        _ => Disposition::Reject,
    }
}

/// The innermost cause of a client error: reqwest's own text repeats the URL and hides the reason.
pub fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What another side said, on one line and short.
pub fn clip(text: &str) -> String {
    let mut clipped: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_QUOTE).collect();
    if clipped.len() < text.len() {
        clipped.push('…');
    }
    clipped
}

/// `Retry-After` in its two forms: seconds, or an HTTP date.
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<f64>() {
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    }
    let then = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(then.saturating_sub(SystemTime::now().duration_since(UNIX_EPOCH).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_retry_after_are_understood() {
        assert_eq!(retry_after("3"), Some(Duration::from_secs(3)));
        assert_eq!(retry_after("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(retry_after("-1"), Some(Duration::ZERO));
        assert_eq!(retry_after("Thu, 01 Jan 1970 00:00:10 GMT"), Some(Duration::ZERO));
        assert!(retry_after("Fri, 31 Dec 2100 23:59:59 GMT").is_some_and(|wait| wait > Duration::from_secs(1)));
        assert_eq!(retry_after("soon"), None);
    }
}
