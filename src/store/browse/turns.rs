//! Turns, as people look at them.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{DeliveryView, Page, excerpt, follow, load, outbox};
use crate::model::id::{SessionId, TurnId};
use crate::model::message::Message;
use crate::model::time::Timestamp;
use crate::store::sessions::messages_of;
use crate::store::{Store, StoreError};

/// The words for where a turn is and how it ended.
pub const TURN_STATES: [&str; 9] =
    ["queued", "running", "completed", "failed", "cancelled", "interrupted", "parked", "superseded", "absorbed"];

/// Which turns are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TurnFilter {
    /// Of this session.
    pub session: Option<SessionId>,
    /// In this state: `queued`, `running`, or the word for how they ended.
    pub state: Option<String>,
}

/// A turn, as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnView {
    /// Its id.
    pub id: String,
    /// Its session.
    pub session: String,
    /// Its place in its session, from 1.
    pub seq: i64,
    /// The agent it was given to.
    pub agent: String,
    /// The name that the client gave for the agent.
    pub model: String,
    /// `chat`, `responses`, `control` or `platform`.
    pub origin: String,
    /// `queued`, `running`, or the word for how it ended.
    pub state: String,
    /// How often it was started.
    pub attempts: u32,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Why the reply ends there, or who failed.
    pub finish: Option<String>,
    /// Tokens read.
    pub input_tokens: Option<i64>,
    /// Tokens written.
    pub output_tokens: Option<i64>,
    /// What went wrong.
    pub error: Option<String>,
    /// The turn that it continued, or that took it up.
    pub parent: Option<String>,
    /// Where its reply goes by itself: PLATFORM:CHAT.
    pub deliver: Option<String>,
    /// The beginning of what was asked.
    pub asked: String,
}

/// A turn with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnDetail {
    /// The turn.
    #[serde(flatten)]
    pub turn: TurnView,
    /// Instructions for this turn only.
    pub instructions: Option<String>,
    /// What was said in it; the reply comes last.
    pub messages: Vec<Message>,
    /// What goes out, with the beginning of each text.
    pub deliveries: Vec<DeliveryView>,
}

impl Store {
    /// Turns, newest first, before this one.
    pub async fn list_turns(
        &self,
        filter: TurnFilter,
        before: Option<TurnId>,
        limit: usize,
    ) -> Result<Page<TurnView>, StoreError> {
        self.read(move |connection| list(connection, &filter, before, limit)).await
    }

    /// A turn with all that belongs to it.
    pub async fn show_turn(&self, id: TurnId) -> Result<Option<TurnDetail>, StoreError> {
        self.read(move |connection| {
            let Some(turn) = one(connection, id.as_bytes())? else { return Ok(None) };
            let sql = "SELECT instructions FROM turns WHERE id = ?1";
            let instructions = connection.prepare_cached(sql)?.query_row([id.as_bytes()], |row| row.get(0))?;
            let messages = messages_of(connection, id.as_bytes())?;
            Ok(Some(TurnDetail { turn, instructions, messages, deliveries: outbox::of_turn(connection, id)? }))
        })
        .await
    }
}

// Each follows an index; those of the states are partial, so the query says again what is in them.
pub(super) const ALL: &str = "SELECT id, state FROM turns WHERE id < ?1 ORDER BY id DESC";
pub(super) const UNFINISHED: &str = "SELECT id, state FROM turns WHERE id < ?1 AND state = ?2 \
                          AND state IN ('queued', 'running') ORDER BY id DESC";
pub(super) const FAILED: &str = "SELECT id, state FROM turns WHERE id < ?1 AND state = ?2 AND state IN \
                      ('failed', 'cancelled', 'interrupted', 'parked', 'superseded', 'absorbed') ORDER BY id DESC";
pub(super) const OF_SESSION: &str = "SELECT t.id, t.state FROM turns t WHERE t.session = (SELECT id FROM sessions WHERE name = ?2) \
                          AND t.seq < coalesce((SELECT seq FROM turns WHERE id = ?1), 9223372036854775807) \
                          ORDER BY t.seq DESC";

fn list(
    connection: &Connection,
    filter: &TurnFilter,
    before: Option<TurnId>,
    limit: usize,
) -> Result<Page<TurnView>, StoreError> {
    let state = filter.state.as_deref();
    // Behind all ids.
    let before = before.map_or([0xff; 16], |id| *id.as_bytes());
    let (sql, second) = match (&filter.session, state) {
        (Some(session), _) => (OF_SESSION, Some(session.as_str())),
        (None, Some("queued" | "running")) => (UNFINISHED, state),
        (None, None | Some("completed")) => (ALL, None),
        (None, Some(_)) => (FAILED, state),
    };
    let mut statement = connection.prepare_cached(sql)?;
    let rows = match second {
        Some(second) => statement.query(params![before, second])?,
        None => statement.query([before])?,
    };
    let (ids, next) = follow(rows, limit, |row| {
        let is: String = row.get(1)?;
        Ok((row.get::<_, [u8; 16]>(0)?, state.is_none_or(|state| state == is)))
    })?;
    let next = next.map(|id| TurnId::from_bytes(id).to_string());
    Ok(Page { items: load(connection, &ids, one)?, next })
}

/// A turn by the bytes of its id.
pub(super) fn one(connection: &Connection, id: &[u8; 16]) -> Result<Option<TurnView>, StoreError> {
    let asked = excerpt("content");
    let sql = format!(
        "SELECT t.id, s.name AS session, t.seq, t.agent, t.model, t.origin, t.state, t.attempts, t.accepted, t.ended, \
         t.finish, t.input_tokens, t.output_tokens, t.error, t.parent, t.deliver, \
         (SELECT {asked} FROM messages WHERE turn = t.id AND role = 'user' ORDER BY position LIMIT 1) AS asked \
         FROM turns t JOIN sessions s ON s.id = t.session WHERE t.id = ?1"
    );
    Ok(connection.prepare_cached(&sql)?.query_row([id], view).optional()?)
}

fn view(row: &Row<'_>) -> rusqlite::Result<TurnView> {
    let parent: Option<[u8; 16]> = row.get("parent")?;
    let asked: Option<String> = row.get("asked")?;
    Ok(TurnView {
        id: TurnId::from_bytes(row.get("id")?).to_string(),
        session: row.get("session")?,
        seq: row.get("seq")?,
        agent: row.get("agent")?,
        model: row.get("model")?,
        origin: row.get("origin")?,
        state: row.get("state")?,
        attempts: row.get("attempts")?,
        accepted: Timestamp::from_millis(row.get("accepted")?),
        ended: row.get::<_, Option<i64>>("ended")?.map(Timestamp::from_millis),
        finish: row.get("finish")?,
        input_tokens: row.get("input_tokens")?,
        output_tokens: row.get("output_tokens")?,
        error: row.get("error")?,
        parent: parent.map(|id| TurnId::from_bytes(id).to_string()),
        deliver: row.get("deliver")?,
        asked: asked.unwrap_or_default(),
    })
}
