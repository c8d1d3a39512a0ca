//! Conversations, as people look at them, and the one thing that they do to them.

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::turns::{self, TurnView};
use super::{Page, follow, load};
use crate::model::id::SessionId;
use crate::model::message::Message;
use crate::model::time::Timestamp;
use crate::store::sessions::{forget, messages_of};
use crate::store::{Store, StoreError};

/// Turns that one step of an export reads at most.
const EXPORT_TURNS: usize = 64;
/// A step of an export ends behind the turn that makes it this long, in bytes of text.
const EXPORT_BYTES: usize = 256 * 1024;

/// A conversation, as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Its id.
    pub id: String,
    /// When it was first heard of.
    pub created: Timestamp,
    /// When its newest turn was accepted.
    pub active: Timestamp,
    /// How many turns it has had, with those that are not kept any more.
    pub turns: i64,
    /// The place of the turn with which the conversation begins, where it was begun anew; earlier ones are silent.
    pub fresh_from: Option<i64>,
    /// The agent of its newest turn.
    pub agent: String,
    /// The state of its newest turn.
    pub state: String,
    /// The beginning of what was asked last.
    pub asked: String,
}

/// A conversation with its newest turns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDetail {
    /// The conversation.
    #[serde(flatten)]
    pub session: SessionView,
    /// Its turns, newest first, and where earlier ones are.
    pub latest: Page<TurnView>,
}

/// A turn as it is exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedTurn {
    /// The turn.
    #[serde(flatten)]
    pub turn: TurnView,
    /// Instructions for this turn only.
    pub instructions: Option<String>,
    /// Whether the conversation still hears it: it was not begun anew since.
    pub heard: bool,
    /// What was said in it; the reply comes last.
    pub messages: Vec<Message>,
}

impl Store {
    /// Conversations, the latest active first, before this one.
    pub async fn list_sessions(
        &self,
        before: Option<SessionId>,
        limit: usize,
    ) -> Result<Page<SessionView>, StoreError> {
        self.read(move |connection| list(connection, before.as_ref(), limit)).await
    }

    /// A conversation with its newest turns.
    pub async fn show_session(&self, session: SessionId, limit: usize) -> Result<Option<SessionDetail>, StoreError> {
        let filter = super::TurnFilter { session: Some(session.clone()), state: None };
        let latest = self.list_turns(filter, None, limit).await?;
        self.read(move |connection| {
            let row = row_of(connection, &session)?;
            let found = row.map(|(_, row)| one(connection, &row)).transpose()?.flatten();
            Ok(found.map(|session| SessionDetail { session, latest }))
        })
        .await
    }

    /// Lets a conversation begin anew: what was said so far is kept and falls silent, and what agents keep of it is
    /// forgotten. Whether there is one.
    ///
    /// A turn that runs has read its history already. `previous_response_id` still leads to what it names.
    pub async fn reset_session(&self, session: SessionId) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let Some((_, row)) = row_of(connection, &session)? else { return Ok(false) };
            let sql = "UPDATE sessions SET fresh_from = max(fresh_from, \
                       1 + coalesce((SELECT max(seq) FROM turns WHERE session = ?1), 0)) WHERE id = ?1";
            connection.prepare_cached(sql)?.execute([row])?;
            forget(connection, row)?;
            Ok(true)
        })
        .await
    }

    /// The turns of a conversation behind the one at this place, oldest first; none at its end.
    pub async fn export_session(&self, session: SessionId, after: i64) -> Result<Vec<ExportedTurn>, StoreError> {
        self.read(move |connection| export(connection, &session, after)).await
    }
}

pub(super) const ALL: &str = "SELECT id FROM sessions WHERE (active, id) < (?1, ?2) ORDER BY active DESC, id DESC";
pub(super) const EXPORT: &str = "SELECT t.id, t.instructions, t.seq >= s.fresh_from FROM sessions s JOIN turns t ON t.session = s.id \
                      WHERE s.name = ?1 AND t.seq > ?2 ORDER BY t.seq LIMIT ?3";

fn list(connection: &Connection, before: Option<&SessionId>, limit: usize) -> Result<Page<SessionView>, StoreError> {
    let end = match before {
        Some(session) => row_of(connection, session)?.unwrap_or((i64::MIN, 0)),
        None => (i64::MAX, i64::MAX),
    };
    let mut statement = connection.prepare_cached(ALL)?;
    let (rows, next) = follow(statement.query(params![end.0, end.1])?, limit, |row| Ok((row.get(0)?, true)))?;
    let next = next.map(|row: i64| {
        let sql = "SELECT name FROM sessions WHERE id = ?1";
        connection.prepare_cached(sql)?.query_row([row], |row| row.get(0))
    });
    Ok(Page { items: load(connection, &rows, one)?, next: next.transpose()? })
}

/// When a conversation was active, and its row.
fn row_of(connection: &Connection, session: &SessionId) -> Result<Option<(i64, i64)>, StoreError> {
    let sql = "SELECT active, id FROM sessions WHERE name = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_row([session.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

fn one(connection: &Connection, row: &i64) -> Result<Option<SessionView>, StoreError> {
    let sql = "SELECT s.name, s.created, s.active, s.fresh_from, t.id FROM sessions s \
               LEFT JOIN turns t ON t.session = s.id AND t.seq = (SELECT max(seq) FROM turns WHERE session = s.id) \
               WHERE s.id = ?1";
    let found = connection.prepare_cached(sql)?.query_row([row], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, i64>(3)?, row.get::<_, Option<[u8; 16]>>(4)?))
    });
    let Some((id, created, active, fresh_from, newest)) = found.optional()? else { return Ok(None) };
    let newest = newest.map(|id| turns::one(connection, &id)).transpose()?.flatten();
    Ok(Some(SessionView {
        id,
        created: Timestamp::from_millis(created),
        active: Timestamp::from_millis(active),
        turns: newest.as_ref().map_or(0, |turn| turn.seq),
        fresh_from: (fresh_from > 0).then_some(fresh_from),
        agent: newest.as_ref().map(|turn| turn.agent.clone()).unwrap_or_default(),
        state: newest.as_ref().map(|turn| turn.state.clone()).unwrap_or_default(),
        asked: newest.map(|turn| turn.asked).unwrap_or_default(),
    }))
}

fn export(connection: &Connection, session: &SessionId, after: i64) -> Result<Vec<ExportedTurn>, StoreError> {
    let mut statement = connection.prepare_cached(EXPORT)?;
    let mut rows = statement.query(params![session.as_str(), after, EXPORT_TURNS as i64])?;
    let (mut turns, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let id: [u8; 16] = row.get(0)?;
        let Some(turn) = turns::one(connection, &id)? else { continue };
        let messages = messages_of(connection, &id)?;
        bytes += messages.iter().map(|message| message.content.len()).sum::<usize>();
        turns.push(ExportedTurn { turn, instructions: row.get(1)?, heard: row.get(2)?, messages });
        if bytes >= EXPORT_BYTES {
            break;
        }
    }
    Ok(turns)
}
