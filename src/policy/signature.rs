//! Whether a webhook comes from whom it should: signatures of the senders that people use, and of our own callbacks.
//!
//! The scheme is what the configuration says; nothing in a request chooses it. A signature is checked before its
//! timestamp, so that who cannot sign learns nothing about this machine's clock, and a refusal over the timestamp means
//! that one of both clocks is wrong or the request is old. Every comparison takes the same time wherever two values
//! differ. No text of a [`Refused`] holds anything of the secret, nor of what was sent but the names of headers.
//!
//! Headers come as a closure from a name, in any case, to the first value of that name.

use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::model::time::{Timestamp, in_words};

mod event;

pub use event::{EventType, delivery_id_in_body, event_type};

/// How a sender proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// `X-Hub-Signature-256`: HMAC-SHA256 of the body. Gitea and Forgejo send it, too.
    GitHub,
    /// `X-Gitlab-Token`: the secret itself. GitLab's newer signing tokens (`whsec_...`) are [`Self::Standard`].
    GitLab,
    /// `Stripe-Signature`: HMAC-SHA256 of a timestamp and the body.
    Stripe,
    /// `X-Slack-Signature` and `X-Slack-Request-Timestamp`: HMAC-SHA256 of the timestamp and the body.
    Slack,
    /// `webhook-id`, `webhook-timestamp` and `webhook-signature` of standardwebhooks.com, or the same named `svix-...`:
    /// HMAC-SHA256 of id, timestamp and body.
    Standard,
    /// Anybody else's HMAC-SHA256, in hexadecimal, with or without `sha256=` before it.
    Hmac {
        /// The header that has the signature; [`Self::SIGNATURE_HEADER`] where nothing else is configured.
        signature_header: String,
        /// The header that has the time of signing, in seconds since 1970. With it `timestamp.body` is signed and an
        /// old request is refused; without it the body alone is, and who records a request can send it again.
        timestamp_header: Option<String>,
    },
}

impl Scheme {
    /// The usual header of those who follow no scheme.
    pub const SIGNATURE_HEADER: &'static str = "X-Webhook-Signature";
}

/// A request that comes from whom it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How the sender names this delivery, the same for each of its attempts, if its headers say; see also
    /// [`delivery_id_in_body`]. At most [`MAX_DELIVERY_ID`] printable ASCII characters.
    pub delivery_id: Option<String>,
}

/// The longest delivery id, in characters. A longer one stands as its SHA-256, so that it fits a key and a log line.
pub const MAX_DELIVERY_ID: usize = 200;
/// How many signatures of one request are looked at. While a secret is changed there are two.
const MAX_SIGNATURES: usize = 16;

/// Why a request is not taken for genuine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Our side is at fault.
    #[error("the configured secret cannot be used")]
    Secret(#[from] InvalidSecret),
    /// A header is not there.
    #[error("header {0} is missing")]
    Missing(String),
    /// A header is not what it should be.
    #[error("header {header} is malformed: expected {expected}")]
    Malformed {
        /// Its name.
        header: String,
        /// What it should be.
        expected: &'static str,
    },
    /// None of its signatures is the right one: another secret, or another body.
    #[error("the signature does not match")]
    Mismatch,
    /// Rightly signed, but too long ago.
    #[error("it was signed {} ago, more than {} are not accepted", in_words(*.age), in_words(*.tolerance))]
    Old {
        /// How long ago.
        age: Duration,
        /// How long ago it may be.
        tolerance: Duration,
    },
    /// Rightly signed, but by a clock that is ahead of ours.
    #[error("it was signed {} in the future, more than {} are not accepted", in_words(*.ahead), in_words(*.tolerance))]
    Early {
        /// How far ahead.
        ahead: Duration,
        /// How far ahead it may be.
        tolerance: Duration,
    },
}

/// Why a secret cannot be used with a scheme. Never contains any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// Anybody could sign with it.
    #[error("the secret is empty")]
    Empty,
    /// It was copied with something around it.
    #[error("the secret begins or ends with a space")]
    Spaced,
    /// Its key is written in base64, and this is none.
    #[error("the secret is not base64 behind whsec_")]
    NotBase64,
    /// It is something else that the sender's side also has.
    #[error("the secret begins with {found}, but a webhook's signing secret {expected}")]
    WrongKind {
        /// How it begins.
        found: &'static str,
        /// What is told of the right one.
        expected: &'static str,
    },
}

/// Whether `secret` can be one of `scheme`, for the check of a configuration.
pub fn check_secret(scheme: &Scheme, secret: &str) -> Result<(), InvalidSecret> {
    if secret.trim() != secret {
        return Err(InvalidSecret::Spaced);
    }
    // What people mistake for it, by how it begins.
    let (beginnings, expected): (&[_], _) = match scheme {
        Scheme::Stripe => (&["sk_", "rk_", "pk_"], "begins with whsec_"),
        Scheme::Slack => (&["xox", "xapp-"], "is the one among the app's credentials"),
        Scheme::Standard => (&["whsk_", "whpk_"], "begins with whsec_"),
        Scheme::GitHub | Scheme::GitLab | Scheme::Hmac { .. } => (&[], ""),
    };
    if let Some(found) = beginnings.iter().find(|beginning| secret.starts_with(**beginning)) {
        return Err(InvalidSecret::WrongKind { found, expected });
    }
    key(scheme, secret.as_bytes()).map(drop)
}

/// Verifies a request by `secret`, as it is configured, with `tolerance` for its timestamp where the scheme has one.
pub fn verify<'h>(
    scheme: &Scheme,
    secret: &[u8],
    headers: &impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
    now: Timestamp,
    tolerance: Duration,
) -> Result<Verified, Refused> {
    let key = key(scheme, secret)?;
    let key = key.expose_secret();
    let needed = |name: &str| headers(name).ok_or_else(|| Refused::Missing(name.to_owned()));
    match scheme {
        Scheme::GitHub => {
            const SIGNATURE: &str = "X-Hub-Signature-256";
            let signature = hex_signature(SIGNATURE, needed(SIGNATURE)?, "sha256=")?;
            compare(&mac(key, &[body])?, [signature])?;
        }
        Scheme::GitLab => {
            // Digests, since a comparison of the texts would tell the length of the right one.
            let token = Sha256::digest(needed("X-Gitlab-Token")?);
            compare(&Sha256::digest(key).into(), [token.into()])?;
        }
        Scheme::Stripe => {
            const SIGNATURE: &str = "Stripe-Signature";
            let (timestamp, signatures) = stripe_signatures(SIGNATURE, needed(SIGNATURE)?)?;
            compare(&mac(key, &[timestamp.as_bytes(), b".", body])?, signatures)?;
            fresh(SIGNATURE, timestamp, now, tolerance)?;
        }
        Scheme::Slack => {
            const SIGNATURE: &str = "X-Slack-Signature";
            const TIMESTAMP: &str = "X-Slack-Request-Timestamp";
            let signature = hex_signature(SIGNATURE, needed(SIGNATURE)?, "v0=")?;
            let timestamp = needed(TIMESTAMP)?;
            compare(&mac(key, &[b"v0:", timestamp.as_bytes(), b":", body])?, [signature])?;
            fresh(TIMESTAMP, timestamp, now, tolerance)?;
        }
        Scheme::Standard => {
            let [id, timestamp, signature] = standard_headers(headers);
            let signatures = standard_signatures(signature, needed(signature)?)?;
            compare(&standard_mac(key, needed(id)?, needed(timestamp)?, body)?, signatures)?;
            fresh(timestamp, needed(timestamp)?, now, tolerance)?;
        }
        Scheme::Hmac { signature_header, timestamp_header } => {
            let given = needed(signature_header)?;
            let signature = hex_signature(signature_header, given.strip_prefix("sha256=").unwrap_or(given), "")?;
            match timestamp_header {
                None => compare(&mac(key, &[body])?, [signature])?,
                Some(name) => {
                    let timestamp = needed(name)?;
                    compare(&mac(key, &[timestamp.as_bytes(), b".", body])?, [signature])?;
                    fresh(name, timestamp, now, tolerance)?;
                }
            }
        }
    }
    Ok(Verified { delivery_id: event::delivery_id(scheme, headers, body) })
}

/// The value of `webhook-signature` for a callback of ours. `webhook-id` is then `id`, and `webhook-timestamp` is
/// `timestamp` in whole seconds ([`Timestamp::as_secs`]). `id` must not contain a dot, which divides what is signed.
pub fn sign_standard(secret: &[u8], id: &str, timestamp: Timestamp, body: &[u8]) -> Result<String, InvalidSecret> {
    let key = key(&Scheme::Standard, secret)?;
    let seconds = timestamp.as_secs().to_string();
    Ok(format!("v1,{}", BASE64.encode(standard_mac(key.expose_secret(), id, &seconds, body)?)))
}

/// Base64 with or without its padding, for senders do both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

type Signature = [u8; 32];

/// The bytes that `scheme` keys its HMAC with.
fn key(scheme: &Scheme, secret: &[u8]) -> Result<SecretSlice<u8>, InvalidSecret> {
    let key = match scheme {
        Scheme::Standard => {
            let base64 = secret.strip_prefix(b"whsec_").unwrap_or(secret);
            BASE64.decode(base64).map_err(|_| InvalidSecret::NotBase64)?
        }
        _ => secret.to_vec(),
    };
    if key.is_empty() { Err(InvalidSecret::Empty) } else { Ok(SecretSlice::from(key)) }
}

/// The HMAC-SHA256 of `pieces` in a row. HMAC takes a key of any length, so the error never comes.
fn mac(key: &[u8], pieces: &[&[u8]]) -> Result<Signature, InvalidSecret> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| InvalidSecret::Empty)?;
    for piece in pieces {
        mac.update(piece);
    }
    Ok(mac.finalize().into_bytes().into())
}

/// The names of the headers for id, timestamp and signature that this request uses.
fn standard_headers<'h>(headers: &impl Fn(&str) -> Option<&'h str>) -> [&'static str; 3] {
    if headers("webhook-signature").is_none() && headers("svix-signature").is_some() {
        ["svix-id", "svix-timestamp", "svix-signature"]
    } else {
        ["webhook-id", "webhook-timestamp", "webhook-signature"]
    }
}

fn standard_mac(key: &[u8], id: &str, timestamp: &str, body: &[u8]) -> Result<Signature, InvalidSecret> {
    mac(key, &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body])
}

/// Whether one of `given` is `right`. All of them are compared, whichever matches.
fn compare(right: &Signature, given: impl IntoIterator<Item = Signature>) -> Result<(), Refused> {
    let matches = given.into_iter().fold(Choice::from(0), |matches, given| matches | given.ct_eq(right));
    if matches.into() { Ok(()) } else { Err(Refused::Mismatch) }
}

fn fresh(header: &str, timestamp: &str, now: Timestamp, tolerance: Duration) -> Result<(), Refused> {
    // Twelve digits reach for 30,000 years and cannot overflow as milliseconds.
    let plausible = (1..=12).contains(&timestamp.len()) && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    let malformed = || malformed(header, "a time in seconds since 1970");
    let seconds: i64 = timestamp.parse().ok().filter(|_| plausible).ok_or_else(malformed)?;
    let age = now.as_millis().saturating_sub(seconds * 1000);
    let off = Duration::from_millis(age.unsigned_abs());
    match off > tolerance {
        true if age > 0 => Err(Refused::Old { age: off, tolerance }),
        true => Err(Refused::Early { ahead: off, tolerance }),
        false => Ok(()),
    }
}

fn malformed(header: &str, expected: &'static str) -> Refused {
    Refused::Malformed { header: header.to_owned(), expected }
}

fn hex_signature(header: &str, value: &str, prefix: &str) -> Result<Signature, Refused> {
    let expected = match prefix {
        "sha256=" => "sha256= and 64 hexadecimal digits",
        "v0=" => "v0= and 64 hexadecimal digits",
        _ => "64 hexadecimal digits",
    };
    value.strip_prefix(prefix).and_then(unhex).ok_or_else(|| malformed(header, expected))
}

fn unhex(text: &str) -> Option<Signature> {
    let mut bytes = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// The timestamp and the signatures of `t=...,v1=...,v1=...`; signatures of other versions do not count.
fn stripe_signatures<'v>(header: &str, value: &'v str) -> Result<(&'v str, Vec<Signature>), Refused> {
    let malformed = || malformed(header, "t=<seconds>,v1=<64 hexadecimal digits>");
    let items = || value.split(',').filter_map(|item| item.trim().split_once('='));
    let mut timestamps = items().filter(|(name, _)| *name == "t").map(|(_, timestamp)| timestamp);
    // With two of them there is no telling which is signed.
    let (Some(timestamp), None) = (timestamps.next(), timestamps.next()) else { return Err(malformed()) };
    let signatures = items().filter(|(name, _)| *name == "v1").filter_map(|(_, signature)| unhex(signature));
    let signatures: Vec<_> = signatures.take(MAX_SIGNATURES).collect();
    if signatures.is_empty() { Err(malformed()) } else { Ok((timestamp, signatures)) }
}

/// The signatures of `v1,... v1,...`; those of other versions, which need other keys, do not count.
fn standard_signatures(header: &str, value: &str) -> Result<Vec<Signature>, Refused> {
    let signatures = value.split_ascii_whitespace().filter_map(|item| item.strip_prefix("v1,"));
    let signatures = signatures.filter_map(|base64| BASE64.decode(base64).ok()?.try_into().ok());
    let signatures: Vec<_> = signatures.take(MAX_SIGNATURES).collect();
    if signatures.is_empty() { Err(malformed(header, "v1,<base64 of 32 bytes>")) } else { Ok(signatures) }
}

#[cfg(test)]
mod tests;
