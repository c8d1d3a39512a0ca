//! A delivery: one message on its way out, from the moment its turn ends to the moment its platform has it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::address::Target;
use super::disposition::Disposition;
use super::id::{SessionId, TurnId};
use super::time::Timestamp;

/// What a delivery is to the person who gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// What the agent said.
    Reply,
    /// What the gateway has to say: that a turn failed, say.
    Notice,
}

impl Kind {
    /// Every kind, for look-ups by label.
    pub const ALL: [Self; 2] = [Self::Reply, Self::Notice];

    /// The word in the store and on the wire.
    pub fn label(self) -> &'static str {
        match self {
            Self::Reply => "reply",
            Self::Notice => "notice",
        }
    }
}

/// A message to be delivered, before it is stored; each part of a long one is a delivery of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDelivery {
    /// Where it goes.
    pub target: Target,
    /// What it is.
    pub kind: Kind,
    /// The session that it belongs to.
    pub session: Option<SessionId>,
    /// Its parts in their order; never empty.
    pub parts: Vec<String>,
}

/// A delivery as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its number; in each chat deliveries go out in the order of their numbers.
    pub number: i64,
    /// Names it to platforms that recognise a repetition: 32 hexadecimal digits.
    pub key: String,
    /// The turn that it answers.
    pub turn: Option<TurnId>,
    /// The session of that turn.
    pub session: Option<SessionId>,
    /// Where it goes.
    pub target: Target,
    /// What it is.
    pub kind: Kind,
    /// Which part of how many, from 1.
    pub part: (u32, u32),
    /// What is said.
    pub text: String,
    /// Attempts that failed.
    pub attempts: u32,
    /// How long it has waited between them, in all.
    pub waited: Duration,
    /// The gateway died while it was sent, so the platform may have it already.
    pub repeated: bool,
    /// When it was stored.
    pub created: Timestamp,
}

/// Where a delivery is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// To be sent, when its time and its place in its chat have come.
    Pending,
    /// Being sent.
    Leased,
    /// The platform has it.
    Sent,
    /// Given up; kept for people to look at.
    Dead,
}

impl State {
    /// Every state, for look-ups by label.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Leased, Self::Sent, Self::Dead];

    /// The word in the store, in JSON and on the command line.
    pub fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Leased => "leased",
            Self::Sent => "sent",
            Self::Dead => "dead",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A word that is no state of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a delivery is pending, leased, sent or dead")]
pub struct InvalidState;

impl FromStr for State {
    type Err = InvalidState;

    fn from_str(word: &str) -> Result<Self, InvalidState> {
        Self::ALL.into_iter().find(|state| state.label() == word).ok_or(InvalidState)
    }
}

/// What came of an attempt to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The platform has it.
    Sent(Receipt),
    /// To be tried again.
    Retry {
        /// Not before this moment.
        due: Timestamp,
        /// How long that is from now; waits add up to the horizon.
        wait: Duration,
        /// What went wrong.
        reason: String,
    },
    /// Given up.
    Dead(String),
}

/// The platform has it; its own name for it, if it gave one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt(pub Option<String>);

/// A delivery that a platform did not take, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SendError {
    /// What to do next.
    pub disposition: Disposition,
    /// What happened: a lowercase fragment without secrets.
    pub message: String,
}
