//! What platforms bring: each message once, and how far they have read.

use rusqlite::{Connection, OptionalExtension, params};

use super::turns::{insert, say_more};
use super::{Store, StoreError};
use crate::model::address::{Cursor, Source};
use crate::model::id::TurnId;
use crate::model::message::Message;
use crate::model::time::Timestamp;
use crate::model::turn::NewTurn;

/// A message that a platform brought, and what is to become of it.
#[derive(Debug, Clone)]
pub enum Arrival {
    /// It begins a turn, which counts as started if it can start right away.
    Begins {
        /// Which message it is.
        source: Source,
        /// The turn.
        turn: Box<NewTurn>,
        /// Whether it starts right away.
        started: bool,
        /// Whether the conversation begins anew with it.
        fresh: bool,
    },
    /// It belongs to a turn that has not started yet.
    Joins {
        /// Which message it is.
        source: Source,
        /// The turn.
        turn: TurnId,
        /// What is said.
        message: Message,
    },
}

/// What became of a message that a platform brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// It is on disk.
    New,
    /// It was brought before, and belongs to this turn.
    Known(TurnId),
}

impl Store {
    /// Puts what a platform brought on disk, in one transaction with how far it has read.
    pub async fn receive(
        &self,
        arrivals: Vec<Arrival>,
        cursor: Option<Cursor>,
        now: Timestamp,
    ) -> Result<Vec<Received>, StoreError> {
        self.write(move |connection| {
            let received = arrivals.iter().map(|arrival| receive(connection, arrival, now)).collect();
            if let Some(Cursor { platform, account, value }) = &cursor {
                let sql = "INSERT INTO cursors (platform, account, value) VALUES (?1, ?2, ?3) \
                           ON CONFLICT DO UPDATE SET value = excluded.value";
                connection.prepare_cached(sql)?.execute([platform, account, value])?;
            }
            received
        })
        .await
    }

    /// How far an account has read; `None` before its first message.
    pub async fn cursor(&self, platform: String, account: String) -> Result<Option<String>, StoreError> {
        self.read(move |connection| {
            let sql = "SELECT value FROM cursors WHERE platform = ?1 AND account = ?2";
            Ok(connection.prepare_cached(sql)?.query_row([platform, account], |row| row.get(0)).optional()?)
        })
        .await
    }
}

fn receive(connection: &Connection, arrival: &Arrival, now: Timestamp) -> Result<Received, StoreError> {
    let (source, turn) = match arrival {
        Arrival::Begins { source, turn, .. } => (source, turn.id),
        Arrival::Joins { source, turn, .. } => (source, *turn),
    };
    let sql = "SELECT turn FROM inbox WHERE platform = ?1 AND account = ?2 AND message = ?3";
    let known = connection
        .prepare_cached(sql)?
        .query_row([&source.platform, &source.account, &source.message], |row| row.get::<_, [u8; 16]>(0))
        .optional()?;
    if let Some(turn) = known {
        return Ok(Received::Known(TurnId::from_bytes(turn)));
    }
    let sql = "INSERT INTO inbox (platform, account, message, turn, received) VALUES (?1, ?2, ?3, ?4, ?5)";
    let Source { platform, account, message } = source;
    connection.prepare_cached(sql)?.execute(params![platform, account, message, turn.as_bytes(), now.as_millis()])?;
    match arrival {
        Arrival::Begins { turn, started, fresh, .. } => insert(connection, turn, *started, *fresh)?,
        Arrival::Joins { turn, message, .. } => say_more(connection, *turn, message)?,
    }
    Ok(Received::New)
}
