//! The tables, and how an older store becomes a newer one. A released step is never edited; a new one is appended.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::error::OpenError;

/// "HgwS" in the file header: a database without it is not ours.
pub const APPLICATION_ID: i64 = 0x4867_7753;

/// Step n takes a store from version n to n + 1.
const STEPS: [&str; 2] = [include_str!("schema/1.sql"), include_str!("schema/2.sql")];

/// How long a statement waits for a lock. Only backups and curious people ever hold one: the directory is ours.
const BUSY: Duration = Duration::from_secs(5);
/// Page cache of a connection, in KiB.
const CACHE_KIB: i64 = 2048;

/// Opens the writing connection; refuses before it changes anything.
pub fn open(path: &Path) -> Result<Connection, OpenError> {
    let failed = |e| OpenError::from_sqlite(path, e);
    let exists = path.metadata().is_ok_and(|meta| meta.len() > 0);
    let found = if exists { inspect(path)? } else { 0 };
    let connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    // journal_mode answers with a row; the others do not.
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(failed)?;
    let settings = format!("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -{CACHE_KIB};");
    connection.execute_batch(&settings).map_err(failed)?;
    migrate(&connection, found).map_err(failed)?;
    Ok(connection)
}

/// Opens a connection that only reads.
pub fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let failed = |e| OpenError::from_sqlite(path, e);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.execute_batch(&format!("PRAGMA cache_size = -{CACHE_KIB};")).map_err(failed)?;
    Ok(connection)
}

/// The schema version of an existing file, found without writing to it.
fn inspect(path: &Path) -> Result<i64, OpenError> {
    let failed = |e| OpenError::from_sqlite(path, e);
    let reader = open_reader(path)?;
    let number = |pragma: &str| reader.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
    let (version, application) = (number("user_version").map_err(failed)?, number("application_id").map_err(failed)?);
    // A crash right after the file was made leaves an empty database, which is anybody's.
    let tables: i64 = reader.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if application != APPLICATION_ID && tables > 0 {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    let known = STEPS.len() as i64;
    if version > known {
        return Err(OpenError::Newer { path: path.to_owned(), found: version, known });
    }
    Ok(version)
}

fn migrate(connection: &Connection, found: i64) -> rusqlite::Result<()> {
    for (version, step) in (found + 1..).zip(&STEPS[usize::try_from(found).unwrap_or(0)..]) {
        // One transaction a step: a crash leaves the version before or the version after.
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {step}; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version}; COMMIT;"
        ))?;
    }
    Ok(())
}
