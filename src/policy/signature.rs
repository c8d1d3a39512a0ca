//! Stub, to be replaced.

use std::time::Duration;

use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;

use crate::model::time::Timestamp;

/// Scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs)]
pub enum Scheme {
    GitHub,
    GitLab,
    Stripe,
    Slack,
    Standard,
    Hmac { header: String, timestamp_header: Option<String> },
}

/// V.
#[derive(Debug)]
pub struct Verified {
    /// Id.
    pub delivery_id: Option<String>,
}

/// Refused.
#[derive(Debug, thiserror::Error)]
#[error("the signature does not match")]
pub struct Refused;

/// Verifies.
pub fn verify<'a>(
    _scheme: &Scheme,
    secret: &[u8],
    headers: impl Fn(&str) -> Option<&'a str>,
    body: &[u8],
    _now: Timestamp,
    _tolerance: Duration,
) -> Result<Verified, Refused> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|_| Refused)?;
    mac.update(body);
    let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    if headers("x-webhook-signature") != Some(hex.as_str()) {
        return Err(Refused);
    }
    Ok(Verified { delivery_id: headers("x-webhook-id").map(str::to_owned) })
}

/// Id.
pub fn delivery_id_in_body(_scheme: &Scheme, _body: &Value) -> Option<String> {
    None
}

/// Events.
pub fn event_types<'a>(_scheme: &Scheme, headers: impl Fn(&str) -> Option<&'a str>, _body: &Value) -> Vec<String> {
    headers("x-webhook-event").into_iter().map(str::to_owned).collect()
}

/// Signs.
pub fn sign_standard(_secret: &[u8], _id: &str, _timestamp: Timestamp, _body: &[u8]) -> String {
    String::new()
}
