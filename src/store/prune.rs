//! Taking away what is too old: in small steps, each a transaction, so that nobody waits long for one.
//!
//! Never touched: turns that have not ended and the chains that they continue, deliveries that wait or are being sent,
//! and whatever turn a delivery that is kept belongs to. Else a chain gets shorter from its old end, as any history does.

use std::collections::{BTreeSet, HashSet};

use rusqlite::{Connection, params};

use super::sessions::{MAX_TURNS, forget};
use super::{Store, StoreError};
use crate::model::time::Timestamp;

/// Rows that a step takes away, about: it ends behind the turn that makes it so many.
const ROWS: usize = 200;
/// The same in bytes of text: each page of a long one is looked at to be freed.
const BYTES: i64 = 1 << 20;
/// Turns that a step looks at.
const LOOK: usize = 200;
/// Writers that wait before the store counts as busy; group commit always has a few.
const BUSY: usize = 16;

/// What a step took away, or several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Turns.
    pub turns: usize,
    /// Messages of those turns.
    pub messages: usize,
    /// Deliveries that were sent or given up.
    pub deliveries: usize,
    /// So many of those had been given up.
    pub dead: usize,
    /// Sessions that had no turn left.
    pub sessions: usize,
    /// What platforms brought.
    pub inbox: usize,
}

impl std::ops::AddAssign for Pruned {
    fn add_assign(&mut self, other: Self) {
        self.turns += other.turns;
        self.messages += other.messages;
        self.deliveries += other.deliveries;
        self.dead += other.dead;
        self.sessions += other.sessions;
        self.inbox += other.inbox;
    }
}

/// Which turns may go.
#[derive(Debug, Clone, Copy)]
pub struct PruneTurns {
    /// Those that ended until then.
    pub ended_by: Timestamp,
    /// With their deliveries, if all of them were settled until then; `None`: only those without any.
    pub settled_by: Option<Timestamp>,
    /// At most so many.
    pub at_most: usize,
}

/// How far a search for turns has come: where the last one ended, and its id.
#[derive(Debug, Clone, Copy)]
pub struct Place(i64, [u8; 16]);

impl Place {
    /// Before all.
    pub const BEGIN: Self = Self(i64::MIN, [0; 16]);
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Turns that have ended.
    pub turns: usize,
    /// Deliveries that were sent or given up.
    pub deliveries: usize,
    /// Messages that platforms brought, by their ids.
    pub inbox: usize,
}

impl Store {
    /// Whether writers are waiting: what can wait should.
    pub fn is_busy(&self) -> bool {
        self.writes.max_capacity() - self.writes.capacity() > BUSY
    }

    /// How large the store is in use, and how much room it has for new things before its file grows, in bytes.
    pub async fn size(&self) -> Result<(u64, u64), StoreError> {
        self.read(|connection| {
            let number = |pragma: &str| {
                let number: i64 = connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))?;
                Ok::<_, StoreError>(number.max(0) as u64)
            };
            let (page, pages, free) = (number("page_size")?, number("page_count")?, number("freelist_count")?);
            Ok((pages.saturating_sub(free) * page, free * page))
        })
        .await
    }

    /// How much there is that may grow old. Counts, so it takes some milliseconds for a million rows.
    pub async fn amount(&self) -> Result<Amount, StoreError> {
        self.read(|connection| {
            let count = |what: &str| -> Result<usize, StoreError> {
                let sql = format!("SELECT count(*) FROM {what}");
                let count: i64 = connection.prepare_cached(&sql)?.query_row([], |row| row.get(0))?;
                Ok(count.max(0) as usize)
            };
            Ok(Amount {
                turns: count("turns WHERE ended IS NOT NULL")?,
                deliveries: count("outbox WHERE settled IS NOT NULL")?,
                inbox: count("inbox")?,
            })
        })
        .await
    }

    /// A step through the turns that may go, oldest first, behind this place. Where to go on, unless it came to the end.
    pub async fn prune_turns(&self, which: PruneTurns, after: Place) -> Result<(Pruned, Option<Place>), StoreError> {
        self.write(move |connection| prune_turns(connection, which, after)).await
    }

    /// A step through the deliveries that were settled until then, oldest first; at most so many. Took none: there is none.
    pub async fn prune_deliveries(&self, settled_by: Timestamp, at_most: usize) -> Result<Pruned, StoreError> {
        self.write(move |connection| {
            let mut statement = connection.prepare_cached(DELIVERIES)?;
            let limit = at_most.min(ROWS) as i64;
            let dead = statement.query_map(params![settled_by.as_millis(), limit], |row| row.get::<_, bool>(0))?;
            let dead: Vec<_> = dead.collect::<Result<_, _>>()?;
            let given_up = dead.iter().filter(|dead| **dead).count();
            Ok(Pruned { deliveries: dead.len(), dead: given_up, ..Pruned::default() })
        })
        .await
    }

    /// A step through what platforms brought until then, oldest first; at most so many. Took none: there is none.
    pub async fn prune_inbox(&self, received_by: Timestamp, at_most: usize) -> Result<Pruned, StoreError> {
        self.write(move |connection| {
            let limit = at_most.min(ROWS) as i64;
            let inbox = connection.prepare_cached(INBOX)?.execute(params![received_by.as_millis(), limit])?;
            Ok(Pruned { inbox, ..Pruned::default() })
        })
        .await
    }
}

pub(super) const TURNS: &str = "SELECT id, ended, session FROM turns WHERE ended IS NOT NULL AND ended <= ?1 \
                                AND (ended, id) > (?2, ?3) ORDER BY ended, id LIMIT ?4";
pub(super) const KEPT_DELIVERY: &str =
    "SELECT 1 FROM outbox WHERE turn = ?1 AND (settled IS NULL OR settled > ?2) LIMIT 1";
pub(super) const CHAINS: &str = "WITH RECURSIVE chain (id, depth) AS ( \
        SELECT parent, 1 FROM turns WHERE state IN ('queued', 'running') AND parent IS NOT NULL UNION \
        SELECT t.parent, depth + 1 FROM chain c CROSS JOIN turns t ON t.id = c.id \
        WHERE t.parent IS NOT NULL AND depth < ?1) \
    SELECT DISTINCT id FROM chain";
pub(super) const DELIVERIES: &str = "DELETE FROM outbox WHERE number IN ( \
        SELECT number FROM outbox WHERE settled IS NOT NULL AND settled <= ?1 ORDER BY settled LIMIT ?2) \
    RETURNING state = 'dead'";
pub(super) const INBOX: &str = "DELETE FROM inbox WHERE (platform, account, message) IN ( \
        SELECT platform, account, message FROM inbox WHERE received <= ?1 ORDER BY received LIMIT ?2)";

fn prune_turns(
    connection: &Connection,
    which: PruneTurns,
    after: Place,
) -> Result<(Pruned, Option<Place>), StoreError> {
    let mut statement = connection.prepare_cached(TURNS)?;
    let values = params![which.ended_by.as_millis(), after.0, after.1, LOOK as i64];
    let turns = statement.query_map(values, |row| Ok((Place(row.get(1)?, row.get(0)?), row.get(2)?)))?;
    let turns: Vec<(Place, i64)> = turns.collect::<Result<_, _>>()?;
    let chains = chains(connection)?;
    let (mut pruned, mut sessions, mut place) = (Pruned::default(), BTreeSet::new(), after);
    let (mut all, mut bytes) = (turns.len() < LOOK, 0);
    for (turn, session) in turns {
        let rows = pruned.turns + pruned.messages + pruned.deliveries;
        if pruned.turns >= which.at_most || rows >= ROWS || bytes >= BYTES {
            all = false;
            break;
        }
        place = turn;
        let id = turn.1;
        // Without a moment until which they may be settled, any delivery keeps its turn.
        let settled_by = which.settled_by.map_or(i64::MIN, Timestamp::as_millis);
        let kept = chains.contains(&id) || connection.prepare_cached(KEPT_DELIVERY)?.exists(params![id, settled_by])?;
        if !kept {
            bytes += prune_turn(connection, &id, &mut pruned)?;
            sessions.insert(session);
        }
    }
    for session in sessions {
        if !connection.prepare_cached("SELECT 1 FROM turns WHERE session = ?1")?.exists([session])? {
            forget(connection, session)?;
            pruned.sessions += connection.prepare_cached("DELETE FROM sessions WHERE id = ?1")?.execute([session])?;
        }
    }
    Ok((pruned, (!all).then_some(place)))
}

/// Takes a turn away with all that belongs to it; how many bytes of text that was.
fn prune_turn(connection: &Connection, id: &[u8; 16], pruned: &mut Pruned) -> Result<i64, StoreError> {
    let bytes = "SELECT coalesce(sum(octet_length(content)), 0) FROM messages WHERE turn = ?1";
    let bytes = connection.prepare_cached(bytes)?.query_row([id], |row| row.get(0))?;
    let sql = "DELETE FROM outbox WHERE turn = ?1 RETURNING state = 'dead'";
    let mut statement = connection.prepare_cached(sql)?;
    for dead in statement.query_map([id], |row| row.get::<_, bool>(0))? {
        pruned.dead += usize::from(dead?);
        pruned.deliveries += 1;
    }
    pruned.messages += connection.prepare_cached("DELETE FROM messages WHERE turn = ?1")?.execute([id])?;
    pruned.turns += connection.prepare_cached("DELETE FROM turns WHERE id = ?1")?.execute([id])?;
    Ok(bytes)
}

/// The turns that are continued by one that has not ended: its agent is to be shown them.
fn chains(connection: &Connection) -> Result<HashSet<[u8; 16]>, StoreError> {
    let mut statement = connection.prepare_cached(CHAINS)?;
    let chains = statement.query_map([MAX_TURNS], |row| row.get(0))?;
    Ok(chains.collect::<Result<_, _>>()?)
}
