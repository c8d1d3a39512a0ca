//! How much of a reply somebody has, in so few bytes that each event of a stream can say it.
//!
//! A position counts bytes of the reply's text. It does not depend on how the text was cut into pieces, so it means the
//! same in the next life of the gateway, where the text may come from the store or from a second attempt of the agent.
//! The check tells whether it is the same text at all: an agent that is asked again may say something else.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::model::id::TurnId;

/// How much of a turn's reply somebody has; as text `TURN.POSITION.CHECK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The turn.
    pub turn: TurnId,
    /// Bytes of its reply.
    pub position: usize,
    /// The first 32 bits of their SHA-256.
    check: u32,
}

/// A text that is no mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not of the form TURN.POSITION.CHECK")]
pub struct InvalidMark;

impl Mark {
    /// Whether this is what it was made of.
    pub fn is_of(&self, start: &str) -> bool {
        start.len() == self.position && check(&Sha256::new_with_prefix(start)) == self.check
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{:08x}", self.turn, self.position, self.check)
    }
}

impl FromStr for Mark {
    type Err = InvalidMark;

    fn from_str(text: &str) -> Result<Self, InvalidMark> {
        let mut fields = text.split('.');
        let mut field = || fields.next().ok_or(InvalidMark);
        let (turn, position, check) = (field()?, field()?, field()?);
        if fields.next().is_some() || check.len() != 8 {
            return Err(InvalidMark);
        }
        Ok(Self {
            turn: turn.parse().map_err(|_| InvalidMark)?,
            position: position.parse().map_err(|_| InvalidMark)?,
            check: u32::from_str_radix(check, 16).map_err(|_| InvalidMark)?,
        })
    }
}

/// What of a turn's reply was told so far.
#[derive(Debug, Clone)]
pub struct Told {
    turn: TurnId,
    position: usize,
    hash: Sha256,
}

impl Told {
    /// Nothing yet.
    pub fn nothing(turn: TurnId) -> Self {
        Self { turn, position: 0, hash: Sha256::new() }
    }

    /// Further text was told.
    pub fn add(&mut self, text: &str) {
        self.position += text.len();
        self.hash.update(text);
    }

    /// The mark of all that was told.
    pub fn mark(&self) -> Mark {
        Mark { turn: self.turn, position: self.position, check: check(&self.hash) }
    }
}

fn check(hash: &Sha256) -> u32 {
    let [a, b, c, d, ..]: [u8; 32] = hash.clone().finalize().into();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_text_and_knows_its_own() {
        let turn = TurnId::new();
        let mut told = Told::nothing(turn);
        assert!(told.mark().is_of(""));
        told.add("Grüß ");
        told.add("Gott");
        let mark: Mark = told.mark().to_string().parse().expect("a mark");
        assert_eq!(mark, told.mark());
        assert!(mark.is_of("Grüß Gott") && !mark.is_of("Grüß Goth") && !mark.is_of("Grüß Gott!") && !mark.is_of(""));
        for bad in [
            "",
            "7",
            "..",
            &format!("{turn}.1"),
            &format!("{turn}.-1.00000000"),
            &format!("{turn}.1.0000000"),
            &format!("{turn}.1.00000000.x"),
            "x.1.00000000",
        ] {
            assert_eq!(bad.parse::<Mark>(), Err(InvalidMark), "{bad}");
        }
    }
}
