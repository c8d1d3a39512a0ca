//! What is on its way out: stored with the turn that it answers, leased while it is sent, settled when its platform has
//! it or will never take it.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Store, StoreError};
use crate::model::address::Target;
use crate::model::delivery::{Delivery, Kind, NewDelivery, Settlement};
use crate::model::id::TurnId;
use crate::model::time::Timestamp;

mod by_hand;

pub use by_hand::{HandReport, MAX_BY_HAND, Refused};

/// Nothing waits longer than this for its next attempt, in milliseconds: what is due later was put off by a clock that
/// has jumped back since. Backoff and `Retry-After` stay below it.
pub const MAX_AHEAD_MS: i64 = 3_600_000;

// The indexes are partial, so these say again what is in them: without that each is a look at every row.
pub(super) const LEASED: &str = "SELECT number, target FROM outbox \
                                 WHERE state = 'leased' AND state IN ('pending', 'leased', 'dead') ORDER BY number";
pub(super) const PUT_OFF: &str = "UPDATE outbox SET due = max(due, ?2) \
                                  WHERE target = ?1 AND state = 'pending' AND state IN ('pending', 'leased')";

/// Which chats have something to send.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Now; at most as many as were asked for.
    pub targets: Vec<Target>,
    /// When the next one has.
    pub next: Option<Timestamp>,
}

impl Store {
    /// Leases the next delivery of a chat, if its time has come.
    pub async fn lease_next(&self, target: Target, now: Timestamp) -> Result<Option<Delivery>, StoreError> {
        self.write(move |connection| lease_next(connection, &target, now)).await
    }

    /// Settles a leased delivery. If it is `on` with the chat, leases the next one in the same transaction.
    pub async fn settle(
        &self,
        delivery: &Delivery,
        settlement: Settlement,
        on: bool,
        now: Timestamp,
    ) -> Result<Option<Delivery>, StoreError> {
        let (number, target) = (delivery.number, delivery.target.clone());
        self.write(move |connection| {
            settle(connection, number, &target, &settlement, now)?;
            if on { lease_next(connection, &target, now) } else { Ok(None) }
        })
        .await
    }

    /// Chats that have something to send at `now`, at most `limit`.
    pub async fn due_deliveries(&self, now: Timestamp, limit: usize) -> Result<Due, StoreError> {
        self.read(move |connection| {
            let (from, to) = (now.as_millis(), now.as_millis() + MAX_AHEAD_MS);
            let sql = "SELECT DISTINCT target FROM outbox WHERE state = 'pending' AND (due <= ?1 OR due > ?2) LIMIT ?3";
            let mut statement = connection.prepare_cached(sql)?;
            let targets = statement.query_map(params![from, to, limit as i64], |row| row.get::<_, String>(0))?;
            let targets = targets.map(|target| target_of(&target?)).collect::<Result<_, StoreError>>()?;
            let sql = "SELECT min(due) FROM outbox WHERE state = 'pending' AND due > ?1 AND due <= ?2";
            let next: Option<i64> = connection.prepare_cached(sql)?.query_row([from, to], |row| row.get(0))?;
            Ok(Due { targets, next: next.map(Timestamp::from_millis) })
        })
        .await
    }

    /// Takes back the leases of the last life. What may have arrived is marked so, unless its platform recognises a
    /// repetition; how many were taken back, and how many are marked.
    pub async fn release_leases(&self, idempotent: Vec<String>) -> Result<(usize, usize), StoreError> {
        // Looked at first, so that a start with nothing to release costs no fsync.
        if !self.read(|connection| Ok(connection.prepare_cached(LEASED)?.exists([])?)).await? {
            return Ok((0, 0));
        }
        self.write(move |connection| {
            let mut statement = connection.prepare_cached(LEASED)?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
            let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
            let sql = "UPDATE outbox SET state = 'pending', repeated = repeated OR ?2 WHERE number = ?1";
            let mut marked = 0;
            for (number, target) in &rows {
                let target = target_of(target)?;
                let repeated = !idempotent.iter().any(|platform| platform == target.platform());
                marked += usize::from(repeated);
                connection.prepare_cached(sql)?.execute(params![number, repeated])?;
            }
            Ok((rows.len(), marked))
        })
        .await
    }
}

/// Stores the parts of a delivery, behind whatever its chat still has to send. With `lease` the first one is leased at
/// once, for a caller that knows that nothing else of the chat is on its way: it is given back.
pub(super) fn insert(
    connection: &Connection,
    turn: Option<TurnId>,
    delivery: &NewDelivery,
    lease: bool,
    now: Timestamp,
) -> Result<Option<Delivery>, StoreError> {
    let target = delivery.target.to_string();
    let last = "SELECT due FROM outbox WHERE target = ?1 AND state IN ('pending', 'leased') \
                ORDER BY number DESC LIMIT 1";
    let before: Option<i64> = connection.prepare_cached(last)?.query_row([&target], |row| row.get(0)).optional()?;
    // A chat that waits before its next attempt makes all wait that are behind.
    let due = before.unwrap_or(0).max(now.as_millis());
    let lease = lease && before.is_none();
    let sql = "INSERT INTO outbox (key, turn, target, kind, part, parts, content, state, due, created) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    let mut first = None;
    for (index, text) in delivery.parts.iter().enumerate() {
        let key = uuid::Uuid::now_v7().simple().to_string();
        let part = (index as u32 + 1, delivery.parts.len() as u32);
        let leased = lease && index == 0;
        let number = connection.prepare_cached(sql)?.insert(params![
            key,
            turn.as_ref().map(TurnId::as_bytes),
            target,
            delivery.kind.label(),
            part.0,
            part.1,
            text,
            if leased { "leased" } else { "pending" },
            due,
            now.as_millis(),
        ])?;
        if leased {
            first = Some(Delivery {
                number,
                key,
                turn,
                session: delivery.session.clone(),
                target: delivery.target.clone(),
                kind: delivery.kind,
                part,
                text: text.clone(),
                attempts: 0,
                waited: Duration::ZERO,
                repeated: false,
                created: now,
            });
        }
    }
    Ok(first)
}

fn lease_next(connection: &Connection, target: &Target, now: Timestamp) -> Result<Option<Delivery>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM {JOINED} WHERE o.target = ?1 AND o.state IN ('pending', 'leased') \
         ORDER BY o.number LIMIT 1"
    );
    let head = connection.prepare_cached(&sql)?.query_row([target.to_string()], |row| {
        Ok((row.get::<_, String>("state")?, row.get::<_, i64>("due")?, delivery(row)))
    });
    let Some((state, due, delivery)) = head.optional()? else { return Ok(None) };
    let later = due > now.as_millis() && due <= now.as_millis() + MAX_AHEAD_MS;
    if state != "pending" || later {
        return Ok(None);
    }
    let delivery = delivery?;
    let sql = "UPDATE outbox SET state = 'leased' WHERE number = ?1";
    connection.prepare_cached(sql)?.execute([delivery.number])?;
    Ok(Some(delivery))
}

fn settle(
    connection: &Connection,
    number: i64,
    target: &Target,
    settlement: &Settlement,
    now: Timestamp,
) -> Result<(), StoreError> {
    let settled = match settlement {
        Settlement::Sent(receipt) => {
            let sql =
                "UPDATE outbox SET state = 'sent', receipt = ?2, settled = ?3 WHERE number = ?1 AND state = 'leased'";
            connection.prepare_cached(sql)?.execute(params![number, receipt.0, now.as_millis()])?
        }
        Settlement::Dead(reason) => {
            let sql = "UPDATE outbox SET state = 'dead', reason = ?2, settled = ?3, attempts = attempts + 1 \
                       WHERE number = ?1 AND state = 'leased'";
            connection.prepare_cached(sql)?.execute(params![number, reason, now.as_millis()])?
        }
        Settlement::Retry { due, wait, reason } => {
            connection.prepare_cached(PUT_OFF)?.execute(params![target.to_string(), due.as_millis()])?;
            let sql = "UPDATE outbox SET state = 'pending', due = ?2, waited = waited + ?3, reason = ?4, \
                       attempts = attempts + 1 WHERE number = ?1 AND state = 'leased'";
            let waited = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
            connection.prepare_cached(sql)?.execute(params![number, due.as_millis(), waited, reason])?
        }
    };
    match settled {
        1 => Ok(()),
        _ => Err(StoreError::Failed(format!("delivery {number} is not leased"))),
    }
}

const COLUMNS: &str = "o.number, o.key, o.turn, s.name AS session, o.target, o.kind, o.part, o.parts, o.content, \
                       o.state, o.due, o.attempts, o.waited, o.repeated, o.created";
const JOINED: &str = "outbox o LEFT JOIN turns t ON t.id = o.turn LEFT JOIN sessions s ON s.id = t.session";

fn delivery(row: &Row<'_>) -> Result<Delivery, StoreError> {
    let number = row.get("number")?;
    let (target, kind): (String, String) = (row.get("target")?, row.get("kind")?);
    let known = Kind::ALL.into_iter().find(|known| known.label() == kind);
    let session: Option<String> = row.get("session")?;
    let session = session.map(|name| name.parse()).transpose();
    Ok(Delivery {
        number,
        session: session.map_err(|_| StoreError::Failed(format!("delivery {number} has a damaged session")))?,
        key: row.get("key")?,
        turn: row.get::<_, Option<[u8; 16]>>("turn")?.map(TurnId::from_bytes),
        target: target_of(&target)?,
        kind: known.ok_or_else(|| StoreError::Failed(format!("delivery {number} is of unknown kind '{kind}'")))?,
        part: (row.get("part")?, row.get("parts")?),
        text: row.get("content")?,
        attempts: row.get("attempts")?,
        waited: Duration::from_millis(u64::try_from(row.get::<_, i64>("waited")?).unwrap_or(0)),
        repeated: row.get("repeated")?,
        created: Timestamp::from_millis(row.get("created")?),
    })
}

fn target_of(text: &str) -> Result<Target, StoreError> {
    text.parse().map_err(|_| StoreError::Failed(format!("'{}' in the store is no target", text.escape_debug())))
}
