//! Deliveries, as people look at them.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{Page, excerpt, follow, load};
use crate::model::delivery::State;
use crate::model::id::TurnId;
use crate::model::time::Timestamp;
use crate::store::{Store, StoreError};

/// Counting stops here: beyond it the exact number helps nobody, and counting takes time.
const MAX_COUNTED: u64 = 100_000;

/// How much is on its way, and how much was given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Deliveries that wait; at most 100,000 are counted, of each kind.
    pub pending: u64,
    /// Deliveries being sent.
    pub leased: u64,
    /// Deliveries given up.
    pub dead: u64,
    /// When the first of those that wait was stored.
    pub oldest_pending: Option<Timestamp>,
}

/// Which deliveries are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// In this state.
    pub state: Option<State>,
    /// To this target.
    pub target: Option<String>,
}

/// A delivery, as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryView {
    /// Its number.
    pub number: i64,
    /// The key by which its platform recognises a repetition.
    pub key: String,
    /// `pending`, `leased`, `sent` or `dead`.
    pub state: String,
    /// Where it goes: PLATFORM:CHAT.
    pub target: String,
    /// `reply` or `notice`.
    pub kind: String,
    /// Which part of how many, from 1.
    pub part: u32,
    /// How many parts there are.
    pub parts: u32,
    /// The turn that it answers.
    pub turn: Option<String>,
    /// The session of that turn, as long as the turn is kept.
    pub session: Option<String>,
    /// Attempts that failed.
    pub attempts: u32,
    /// How long it has waited between them, in milliseconds.
    pub waited_ms: i64,
    /// It may arrive, or have arrived, more than once.
    pub repeated: bool,
    /// The platform's name for it.
    pub receipt: Option<String>,
    /// What went wrong last.
    pub reason: Option<String>,
    /// When it was stored.
    pub created: Timestamp,
    /// Not to be sent before; counts only while it is pending.
    pub due: Timestamp,
    /// When it was sent or given up.
    pub settled: Option<Timestamp>,
    /// What is said; in lists the beginning of it.
    pub text: String,
}

impl Store {
    /// Deliveries, newest first, before this number.
    pub async fn list_deliveries(
        &self,
        filter: DeliveryFilter,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Page<DeliveryView>, StoreError> {
        self.read(move |connection| list(connection, &filter, before.unwrap_or(i64::MAX), limit)).await
    }

    /// A delivery with all its text.
    pub async fn show_delivery(&self, number: i64) -> Result<Option<DeliveryView>, StoreError> {
        self.read(move |connection| one(connection, number, "o.content")).await
    }

    /// How much is on its way, and how much was given up.
    pub async fn count_deliveries(&self) -> Result<Census, StoreError> {
        self.read(|connection| {
            let count = |state: State| -> Result<u64, StoreError> {
                let mut statement = connection.prepare_cached(COUNT)?;
                let count: i64 = statement.query_row(params![state.label(), MAX_COUNTED as i64], |row| row.get(0))?;
                Ok(count as u64)
            };
            let mut oldest = connection.prepare_cached(OLDEST)?;
            let oldest = oldest.query_row([], |row| row.get(0)).optional()?;
            Ok(Census {
                pending: count(State::Pending)?,
                leased: count(State::Leased)?,
                dead: count(State::Dead)?,
                oldest_pending: oldest.map(Timestamp::from_millis),
            })
        })
        .await
    }
}

// The index is partial, so each query says again what is in it.
pub(super) const COUNT: &str = "SELECT count(*) FROM (SELECT 1 FROM outbox WHERE state = ?1 \
                     AND state IN ('pending', 'leased', 'dead') LIMIT ?2)";
pub(super) const OLDEST: &str = "SELECT created FROM outbox WHERE state = 'pending' AND state IN ('pending', 'leased', 'dead') \
                      ORDER BY number LIMIT 1";
pub(super) const UNSENT: &str = "SELECT number, state, target FROM outbox WHERE number < ?1 AND state = ?2 \
                      AND state IN ('pending', 'leased', 'dead') ORDER BY number DESC";
pub(super) const ALL: &str = "SELECT number, state, target FROM outbox WHERE number < ?1 ORDER BY number DESC";
pub(super) const OF_TURN: &str = "SELECT number FROM outbox WHERE turn = ?1 ORDER BY number LIMIT ?2";

fn list(
    connection: &Connection,
    filter: &DeliveryFilter,
    before: i64,
    limit: usize,
) -> Result<Page<DeliveryView>, StoreError> {
    let state = filter.state.map(State::label);
    let unsent = state.filter(|_| filter.state != Some(State::Sent));
    let mut statement = connection.prepare_cached(unsent.map_or(ALL, |_| UNSENT))?;
    let rows = match unsent {
        Some(state) => statement.query(params![before, state])?,
        None => statement.query([before])?,
    };
    let (numbers, next) = follow(rows, limit, |row| {
        let (is, to): (String, String) = (row.get(1)?, row.get(2)?);
        let wanted = state.is_none_or(|state| state == is) && filter.target.as_ref().is_none_or(|target| *target == to);
        Ok((row.get::<_, i64>(0)?, wanted))
    })?;
    let text = excerpt("o.content");
    let items = load(connection, &numbers, |connection, number| one(connection, *number, &text))?;
    Ok(Page { items, next: next.map(|number| number.to_string()) })
}

/// The deliveries of a turn, in their order; at most a page of them.
pub(super) fn of_turn(connection: &Connection, turn: TurnId) -> Result<Vec<DeliveryView>, StoreError> {
    let mut statement = connection.prepare_cached(OF_TURN)?;
    let numbers = statement.query_map(params![turn.as_bytes(), super::MAX_PAGE as i64], |row| row.get(0))?;
    let numbers: Vec<i64> = numbers.collect::<Result<_, _>>()?;
    let text = excerpt("o.content");
    load(connection, &numbers, |connection, number| one(connection, *number, &text))
}

fn one(connection: &Connection, number: i64, text: &str) -> Result<Option<DeliveryView>, StoreError> {
    let sql = format!(
        "SELECT o.number, o.key, o.state, o.target, o.kind, o.part, o.parts, o.turn, o.attempts, o.waited, o.repeated, \
         o.receipt, o.reason, o.created, o.due, o.settled, {text} AS text, s.name AS session \
         FROM outbox o LEFT JOIN turns t ON t.id = o.turn LEFT JOIN sessions s ON s.id = t.session WHERE o.number = ?1"
    );
    Ok(connection.prepare_cached(&sql)?.query_row([number], view).optional()?)
}

fn view(row: &Row<'_>) -> rusqlite::Result<DeliveryView> {
    let turn: Option<[u8; 16]> = row.get("turn")?;
    let settled: Option<i64> = row.get("settled")?;
    Ok(DeliveryView {
        number: row.get("number")?,
        key: row.get("key")?,
        state: row.get("state")?,
        target: row.get("target")?,
        kind: row.get("kind")?,
        part: row.get("part")?,
        parts: row.get("parts")?,
        turn: turn.map(|id| TurnId::from_bytes(id).to_string()),
        session: row.get("session")?,
        attempts: row.get("attempts")?,
        waited_ms: row.get("waited")?,
        repeated: row.get("repeated")?,
        receipt: row.get("receipt")?,
        reason: row.get("reason")?,
        created: Timestamp::from_millis(row.get("created")?),
        due: Timestamp::from_millis(row.get("due")?),
        settled: settled.map(Timestamp::from_millis),
        text: row.get("text")?,
    })
}
