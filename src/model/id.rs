//! Identities, each a type of its own: an id that parses is valid everywhere it can go (a file name, a header, a log field).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Why a text is no id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Not a turn's id.
    #[error("'{0}' is not a turn id (32 hexadecimal digits)")]
    Turn(String),
    /// Not a session's id.
    #[error("a session id has 1 to {} characters out of A-Z a-z 0-9 . _ : @ / + = -", SessionId::MAX_LEN)]
    Session,
    /// Not an instance's name.
    #[error(
        "an instance name has 1 to {} characters out of A-Z a-z 0-9 _ . - and starts with a letter or digit",
        InstanceName::MAX_LEN
    )]
    Instance,
}

/// One turn: a message in, an agent's work, a reply. Ids sort by the time they were made (UUID version 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TurnId(Uuid);

impl TurnId {
    /// A fresh id.
    #[expect(clippy::new_without_default, reason = "two defaults would differ")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The 16 bytes that the store keeps.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From the 16 bytes that the store keeps.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl FromStr for TurnId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId::Turn(text.chars().take(64).collect());
        if text.len() != 32 {
            return Err(invalid());
        }
        Uuid::try_parse(text).map(Self).map_err(|_| invalid())
    }
}

/// A session: the conversation that a message belongs to. Safe in headers, logs and SQL by its alphabet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

impl SessionId {
    /// Longest session id, in characters (all ASCII).
    pub const MAX_LEN: usize = 128;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An id from parts that others chose, joined by colons. What an id cannot hold is replaced, and what is too long is
    /// cut; then a few digits of a hash are added, so that different parts have different ids.
    pub fn derived(parts: &[&str]) -> Self {
        let whole = parts.join(":");
        let kept: String = whole.chars().map(|c| if is_session_char(c) { c } else { '-' }).collect();
        if kept == whole && (1..=Self::MAX_LEN).contains(&whole.len()) {
            return Self(whole);
        }
        let hash: String = Sha256::digest(&whole).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let kept: String = kept.chars().take(Self::MAX_LEN - hash.len() - 1).collect();
        Self(format!("{kept}={hash}"))
    }
}

fn is_session_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._:@/+=-".contains(c)
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SessionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if text.is_empty() || text.len() > Self::MAX_LEN || !text.chars().all(is_session_char) {
            return Err(InvalidId::Session);
        }
        Ok(Self(text.to_owned()))
    }
}

/// A named gateway: its own directories, sockets, store and unit. The unnamed one is [`InstanceName::DEFAULT`].
///
/// The alphabet is what a unit name takes as it is, so `systemctl start hermes-gateway@NAME` means what it says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceName(String);

impl InstanceName {
    /// The instance that plain `hermes-gateway.service` runs.
    pub const DEFAULT: &'static str = "default";
    /// Longest name, in characters (all ASCII).
    pub const MAX_LEN: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the instance that the plain units run.
    pub fn is_default(&self) -> bool {
        self.0 == Self::DEFAULT
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InstanceName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if !starts_well || text.len() > Self::MAX_LEN || !text.bytes().all(allowed) {
            return Err(InvalidId::Instance);
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_ids_survive_text_and_bytes_and_sort_by_age() {
        let (first, second) = (TurnId::new(), TurnId::new());
        assert!(first < second);
        assert_eq!(first.to_string().parse(), Ok(first));
        assert_eq!(TurnId::from_bytes(*first.as_bytes()), first);
        assert!("turn".parse::<TurnId>().is_err());
        assert!("é".repeat(16).parse::<TurnId>().is_err());
    }

    #[test]
    fn session_ids_cannot_carry_anything_into_a_header_or_a_log_line() {
        for good in ["a", "telegram:bot/42", "api-0123456789abcdef", "me@example.org"] {
            assert_eq!(good.parse::<SessionId>().map(|id| id.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "a b", "a\r\nSet-Cookie: x", "ü", "a\0", &"x".repeat(129)] {
            assert_eq!(bad.parse::<SessionId>(), Err(InvalidId::Session), "{bad:?}");
        }
    }

    #[test]
    fn derived_session_ids_are_valid_and_as_different_as_their_parts() {
        assert_eq!(SessionId::derived(&["webhook", "ci", "42"]).as_str(), "webhook:ci:42");
        let odd = ["a b", "a\u{fc}b", "a-b", &"x".repeat(200), &format!("{}y", "x".repeat(199))];
        let ids: std::collections::BTreeSet<_> = odd.iter().map(|part| SessionId::derived(&["w", part])).collect();
        assert_eq!(ids.len(), odd.len());
        assert!(ids.iter().all(|id| id.as_str().parse::<SessionId>().as_ref() == Ok(id)), "{ids:?}");
    }

    #[test]
    fn instance_names_are_plain_file_and_unit_names() {
        for good in ["default", "work", "my-bot.2"] {
            assert!(good.parse::<InstanceName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-x", "a/b", "a@b", "a b", "%i"] {
            assert_eq!(bad.parse::<InstanceName>(), Err(InvalidId::Instance), "{bad:?}");
        }
    }
}
