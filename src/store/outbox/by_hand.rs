//! What people do to deliveries: take up again what was given up, and drop what shall not be sent.

use std::ops::AddAssign;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::model::address::Target;
use crate::model::time::Timestamp;
use crate::store::{Store, StoreError};

/// Rows that one transaction handles at most, so that nobody waits long for it.
pub const MAX_BY_HAND: usize = 200;

/// What became of the deliveries that somebody named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandReport {
    /// Given up before, and now on their way again.
    pub again: u64,
    /// So many of those may arrive twice: they were tried before, and their platform knows no repetition as such.
    pub maybe_repeated: u64,
    /// On their way already, and now due at once.
    pub due_now: u64,
    /// Dropped.
    pub dropped: u64,
    /// Left as they were, and why.
    pub refused: Vec<Refused>,
}

/// A delivery that was left as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its number.
    pub number: i64,
    /// Why.
    pub why: String,
}

impl AddAssign for HandReport {
    fn add_assign(&mut self, other: Self) {
        self.again += other.again;
        self.maybe_repeated += other.maybe_repeated;
        self.due_now += other.due_now;
        self.dropped += other.dropped;
        self.refused.extend(other.refused);
    }
}

impl Store {
    /// Takes deliveries up again that were given up, with their attempts and waits counted anew, and makes those due at
    /// once that wait, with everything that waits before and behind them in their chats. `idempotent` platforms know a
    /// repetition as such. At most [`MAX_BY_HAND`] numbers.
    pub async fn retry_deliveries(
        &self,
        numbers: Vec<i64>,
        idempotent: Vec<String>,
        now: Timestamp,
    ) -> Result<HandReport, StoreError> {
        self.write(move |connection| {
            let mut report = HandReport::default();
            for number in numbers {
                retry(connection, number, &idempotent, now, &mut report)?;
            }
            Ok(report)
        })
        .await
    }

    /// Drops deliveries that wait or were given up: they are gone. What their agents said stays in their turns. At most
    /// [`MAX_BY_HAND`] numbers.
    pub async fn drop_deliveries(&self, numbers: Vec<i64>, now: Timestamp) -> Result<HandReport, StoreError> {
        self.write(move |connection| {
            let mut report = HandReport::default();
            for number in numbers {
                drop_one(connection, number, now, &mut report)?;
            }
            Ok(report)
        })
        .await
    }

    /// The numbers of deliveries that were given up, in their order, behind this one; at most [`MAX_BY_HAND`].
    pub async fn dead_deliveries(&self, after: i64) -> Result<Vec<i64>, StoreError> {
        self.read(move |connection| {
            let sql = "SELECT number FROM outbox WHERE state = 'dead' AND state IN ('pending', 'leased', 'dead') \
                       AND number > ?1 ORDER BY number LIMIT ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let numbers = statement.query_map([after, MAX_BY_HAND as i64], |row| row.get(0))?;
            Ok(numbers.collect::<Result<_, _>>()?)
        })
        .await
    }
}

/// A delivery's state and target; `None` if it is left as it is, which the report says then.
fn find(connection: &Connection, number: i64, report: &mut HandReport) -> Result<Option<(String, String)>, StoreError> {
    let sql = "SELECT state, target FROM outbox WHERE number = ?1";
    let found = connection.prepare_cached(sql)?.query_row([number], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let why = match &found {
        None => "there is no such delivery",
        Some((state, _)) if state == "leased" => "it is being sent at this moment; look again when that is through",
        Some((state, _)) if state == "sent" => "it was sent",
        Some(_) => return Ok(found),
    };
    report.refused.push(Refused { number, why: why.into() });
    Ok(None)
}

fn retry(
    connection: &Connection,
    number: i64,
    idempotent: &[String],
    now: Timestamp,
    report: &mut HandReport,
) -> Result<(), StoreError> {
    let Some((state, target)) = find(connection, number, report)? else { return Ok(()) };
    if state == "dead" {
        let platform = target.parse::<Target>().map(|target| target.platform().to_owned()).unwrap_or_default();
        // A platform that did not answer in time may have taken it.
        let sql = "UPDATE outbox SET state = 'pending', due = ?2, waited = 0, settled = NULL, \
                   repeated = repeated OR (?3 AND attempts > 0), attempts = 0, \
                   reason = 'taken up again by hand' || coalesce('; before that: ' || reason, '') \
                   WHERE number = ?1 RETURNING repeated";
        let values = params![number, now.as_millis(), !idempotent.contains(&platform)];
        let repeated: bool = connection.prepare_cached(sql)?.query_row(values, |row| row.get(0))?;
        report.again += 1;
        report.maybe_repeated += u64::from(repeated);
    } else {
        report.due_now += 1;
    }
    hurry(connection, &target, now)
}

fn drop_one(connection: &Connection, number: i64, now: Timestamp, report: &mut HandReport) -> Result<(), StoreError> {
    let Some((state, target)) = find(connection, number, report)? else { return Ok(()) };
    connection.prepare_cached("DELETE FROM outbox WHERE number = ?1")?.execute([number])?;
    report.dropped += 1;
    // What waited behind it has nothing to wait for any more.
    if state == "pending" { hurry(connection, &target, now) } else { Ok(()) }
}

/// Makes everything due that waits in a chat: each waits for those before it, and those behind it wait as long as it.
fn hurry(connection: &Connection, target: &str, now: Timestamp) -> Result<(), StoreError> {
    let sql = "UPDATE outbox SET due = ?2 WHERE target = ?1 AND state = 'pending' AND state IN ('pending', 'leased') \
               AND due > ?2";
    connection.prepare_cached(sql)?.execute(params![target, now.as_millis()])?;
    Ok(())
}
