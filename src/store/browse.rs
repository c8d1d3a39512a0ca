//! Looking inside: what people list and look up. All of it runs on the reading connection, so each call is bounded: it
//! follows an index, looks at no more than [`MAX_LOOKED`] rows, and says where to go on.

use rusqlite::{Connection, Row, Rows};
use serde::{Deserialize, Serialize};

use super::StoreError;

mod outbox;
mod sessions;
mod turns;

pub use outbox::{Census, DeliveryFilter, DeliveryView};
pub use sessions::{ExportedTurn, SessionDetail, SessionView};
pub use turns::{TURN_STATES, TurnDetail, TurnFilter, TurnView};

/// Most items of one page.
pub const MAX_PAGE: usize = 1000;
/// Rows that one call looks at, in search of those that are wanted; a few milliseconds.
const MAX_LOOKED: usize = 10_000;
/// How much of a text is shown in a list, in characters.
const EXCERPT: usize = 200;
/// Texts beyond this size, in bytes, are not read for a list, which would have to read all of each.
const EXCERPT_MAX_READ: usize = 64 * 1024;

/// Some items of a list, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// At most as many as were asked for. Fewer do not mean that there are no more.
    pub items: Vec<T>,
    /// What to go on before; `None`: this was all.
    pub next: Option<String>,
}

/// The keys of the first `limit` rows that are wanted, and the key to go on before, if there may be more. `look` gives a
/// row's key and whether it is wanted.
fn follow<K: Clone>(
    mut rows: Rows<'_>,
    limit: usize,
    look: impl Fn(&Row<'_>) -> rusqlite::Result<(K, bool)>,
) -> Result<(Vec<K>, Option<K>), StoreError> {
    let mut found = Vec::new();
    let mut looked = 0;
    while let Some(row) = rows.next()? {
        let (key, wanted) = look(row)?;
        let full = found.len() >= limit;
        looked += 1;
        if (full && wanted) || looked >= MAX_LOOKED {
            let next = if full { found.last().cloned() } else { Some(key.clone()) };
            found.extend((wanted && !full).then_some(key));
            return Ok((found, next));
        }
        found.extend(wanted.then_some(key));
    }
    Ok((found, None))
}

/// SQL for the beginning of a text.
fn excerpt(column: &str) -> String {
    format!(
        "iif(octet_length({column}) <= {EXCERPT_MAX_READ}, substr({column}, 1, {EXCERPT}), \
         '(a text of ' || (octet_length({column}) / 1024) || ' KiB)')"
    )
}

/// One row for each key, in the order of the keys; what has vanished in between is left out.
fn load<K, T>(
    connection: &Connection,
    keys: &[K],
    one: impl Fn(&Connection, &K) -> Result<Option<T>, StoreError>,
) -> Result<Vec<T>, StoreError> {
    keys.iter().filter_map(|key| one(connection, key).transpose()).collect()
}

#[cfg(test)]
mod tests;
