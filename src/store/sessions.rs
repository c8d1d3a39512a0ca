//! Conversations: their rows, and what has been said in them.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Store, StoreError};
use crate::model::id::{SessionId, TurnId};
use crate::model::message::{Message, Role};
use crate::model::time::Timestamp;

/// Most turns of history that are read for an agent; older ones fall silent.
pub(super) const MAX_TURNS: u32 = 200;

impl Store {
    /// What the completed turns of a session said since its last reset, and what was asked in turns that gave way to
    /// newer messages; oldest first.
    pub async fn session_history(&self, session: SessionId) -> Result<Vec<Message>, StoreError> {
        self.read(move |connection| {
            let sql = "SELECT t.id FROM turns t JOIN sessions s ON s.id = t.session \
                       WHERE s.name = ?1 AND t.seq >= s.fresh_from AND t.state IN ('completed', 'superseded') \
                       ORDER BY t.seq DESC LIMIT ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let turns = statement.query_map(params![session.as_str(), MAX_TURNS], |row| row.get::<_, [u8; 16]>(0))?;
            let turns: Vec<_> = turns.collect::<Result<_, _>>()?;
            said_in(connection, turns.iter().rev())
        })
        .await
    }

    /// What the chain of turns that ends with `last` said, oldest first; each turn names the one that it continues.
    pub async fn chain_history(&self, last: TurnId) -> Result<Vec<Message>, StoreError> {
        self.read(move |connection| {
            let sql = "WITH RECURSIVE chain (id, parent, depth) AS ( \
                           SELECT id, parent, 0 FROM turns WHERE id = ?1 UNION ALL \
                           SELECT t.id, t.parent, depth + 1 FROM turns t JOIN chain c ON t.id = c.parent \
                           WHERE depth < ?2) \
                       SELECT id FROM chain ORDER BY depth DESC";
            let mut statement = connection.prepare_cached(sql)?;
            let turns = statement.query_map(params![last.as_bytes(), MAX_TURNS], |row| row.get::<_, [u8; 16]>(0))?;
            let turns: Vec<_> = turns.collect::<Result<_, _>>()?;
            said_in(connection, turns.iter())
        })
        .await
    }

    /// Keeps a text for an agent in a session, in place of what it kept there before.
    pub async fn remember(&self, session: SessionId, agent: String, content: String) -> Result<(), StoreError> {
        self.write(move |connection| {
            let sql = "INSERT INTO memories (session, agent, content) \
                       SELECT id, ?2, ?3 FROM sessions WHERE name = ?1 \
                       ON CONFLICT DO UPDATE SET content = excluded.content";
            match connection.prepare_cached(sql)?.execute(params![session.as_str(), agent, content])? {
                0 => Err(StoreError::Failed(format!("there is no session {session}"))),
                _ => Ok(()),
            }
        })
        .await
    }

    /// What an agent keeps in a session.
    pub async fn memory(&self, session: SessionId, agent: String) -> Result<Option<String>, StoreError> {
        self.read(move |connection| {
            let sql = "SELECT m.content FROM memories m JOIN sessions s ON s.id = m.session \
                       WHERE s.name = ?1 AND m.agent = ?2";
            let found = connection.prepare_cached(sql)?.query_row([session.as_str(), &agent], |row| row.get(0));
            Ok(found.optional()?)
        })
        .await
    }

    /// When a session's newest turn was accepted; `None` for a session without one.
    pub async fn last_active(&self, session: SessionId) -> Result<Option<Timestamp>, StoreError> {
        self.read(move |connection| {
            let sql = "SELECT t.accepted FROM turns t JOIN sessions s ON s.id = t.session \
                       WHERE s.name = ?1 ORDER BY t.seq DESC LIMIT 1";
            let last = connection.prepare_cached(sql)?.query_row([session.as_str()], |row| row.get(0)).optional()?;
            Ok(last.map(Timestamp::from_millis))
        })
        .await
    }
}

/// The row of a session, made if it is new.
pub(super) fn row(connection: &Connection, session: &SessionId, now: Timestamp) -> Result<i64, StoreError> {
    let mut find = connection.prepare_cached("SELECT id FROM sessions WHERE name = ?1")?;
    if let Some(id) = find.query_row([session.as_str()], |row| row.get(0)).optional()? {
        return Ok(id);
    }
    let mut insert = connection.prepare_cached("INSERT INTO sessions (name, created) VALUES (?1, ?2)")?;
    Ok(insert.insert(params![session.as_str(), now.as_millis()])?)
}

/// What agents keep of a session goes with what was said in it.
pub(super) fn forget(connection: &Connection, session: i64) -> Result<(), StoreError> {
    connection.prepare_cached("DELETE FROM memories WHERE session = ?1")?.execute([session])?;
    Ok(())
}

fn said_in<'a>(connection: &Connection, turns: impl Iterator<Item = &'a [u8; 16]>) -> Result<Vec<Message>, StoreError> {
    let mut messages = Vec::new();
    for turn in turns {
        messages.extend(messages_of(connection, turn)?);
    }
    Ok(messages)
}

/// The messages of one turn, in their order.
pub(super) fn messages_of(connection: &Connection, turn: &[u8; 16]) -> Result<Vec<Message>, StoreError> {
    let sql = "SELECT role, content FROM messages WHERE turn = ?1 ORDER BY position";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([turn], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    rows.map(|row| {
        let (role, content) = row?;
        Ok(Message { role: role_of(&role)?, content })
    })
    .collect()
}

fn role_of(word: &str) -> Result<Role, StoreError> {
    let known = [Role::System, Role::User, Role::Assistant].into_iter().find(|role| role.to_string() == word);
    known.ok_or_else(|| StoreError::Failed(format!("unknown role '{word}' in a message")))
}
