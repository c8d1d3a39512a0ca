//! Where messages come from and where replies go.

use std::fmt;
use std::str::FromStr;

/// Longest address, in bytes; ids of chats are a few dozen.
const MAX_LEN: usize = 512;

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a target is PLATFORM:CHAT, at most {MAX_LEN} bytes without spaces and control characters")]
pub struct InvalidTarget;

/// Where a reply goes: a chat on a platform. Written `telegram:12345`; the platform is a name from the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    platform: String,
    chat: String,
}

impl Target {
    /// A chat on a platform.
    ///
    /// # Errors
    /// When one of them is empty, or together they are too long or hold what would not survive a log line.
    pub fn new(platform: &str, chat: &str) -> Result<Self, InvalidTarget> {
        let plain = |text: &str| !text.is_empty() && !text.chars().any(|c| c.is_control() || c.is_whitespace());
        if !plain(platform) || platform.contains(':') || !plain(chat) || platform.len() + chat.len() > MAX_LEN {
            return Err(InvalidTarget);
        }
        Ok(Self { platform: platform.to_owned(), chat: chat.to_owned() })
    }

    /// The platform, by its configured name.
    pub fn platform(&self) -> &str {
        &self.platform
    }

    /// The chat, in the platform's own words.
    pub fn chat(&self) -> &str {
        &self.chat
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.platform, self.chat)
    }
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let (platform, chat) = text.split_once(':').ok_or(InvalidTarget)?;
        Self::new(platform, chat)
    }
}

/// What makes a message of a platform that message and no other: it may be brought more than once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// The platform, by its configured name.
    pub platform: String,
    /// The account on it that received the message: another bot counts its messages anew.
    pub account: String,
    /// The platform's own id of the message.
    pub message: String,
}

/// How far an account has read; what a platform is asked to go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The platform, by its configured name.
    pub platform: String,
    /// The account on it.
    pub account: String,
    /// In the platform's own words: an offset, a sync token.
    pub value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_survive_text() {
        for good in ["telegram:-100123", "ops:github:42/x", "m:!room:example.org"] {
            assert_eq!(good.parse::<Target>().map(|target| target.to_string()), Ok(good.to_owned()));
        }
        let room: Target = "m:!room:example.org".parse().expect("a target");
        assert_eq!((room.platform(), room.chat()), ("m", "!room:example.org"));
        for bad in ["", "telegram", ":1", "telegram:", "a b:1", "a:1\n2", &format!("a:{}", "x".repeat(600))] {
            assert_eq!(bad.parse::<Target>(), Err(InvalidTarget), "{bad:?}");
        }
    }
}
