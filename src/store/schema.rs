//! The tables, and how an older store becomes a newer one. A released step is never edited; a new one is appended.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, ffi};

use super::error::OpenError;

/// "HgwS" in the file header: a database without it is not ours.
pub const APPLICATION_ID: i64 = 0x4867_7753;

/// Step n takes a store from version n to n + 1.
const STEPS: [&str; 2] = [include_str!("schema/1.sql"), include_str!("schema/2.sql")];

/// The version that this program writes.
pub const KNOWN: i64 = STEPS.len() as i64;

/// How long a statement waits for a lock. Only backups and curious people ever hold one: the directory is ours.
const BUSY: Duration = Duration::from_secs(5);
/// Page cache of a connection, in KiB.
const CACHE_KIB: i64 = 2048;

/// Opens the writing connection; refuses before it changes anything.
pub fn open(path: &Path) -> Result<Connection, OpenError> {
    let failed = |e| OpenError::from_sqlite(path, e);
    let exists = path.metadata().is_ok_and(|meta| meta.len() > 0);
    let found = if exists { inspect(path)? } else { 0 };
    if !exists {
        sync_way_to(path);
    }
    let connection = Connection::open(path).map_err(failed)?;
    if connection.is_readonly("main").map_err(failed)? {
        // SQLite would go on with what can only be read, and not notice when the disk can be written to again.
        return Err(OpenError::ReadOnly { path: path.to_owned() });
    }
    connection.busy_timeout(BUSY).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Otherwise statements are compiled anew for other values bound to them, for plans that would be the same.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(failed)?;
    // journal_mode answers with a row; the others do not.
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(failed)?;
    let settings = format!("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -{CACHE_KIB};");
    connection.execute_batch(&settings).map_err(failed)?;
    migrate(&connection, found).map_err(failed)?;
    // Savepoints undo from memory: a batch is small, and a file for each would cost more than all the rest. Not for a
    // migration, which sorts all that there is.
    connection.execute_batch("PRAGMA temp_store = MEMORY").map_err(failed)?;
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

/// Makes the names durable that lead to a new store: its directory may be as new, whoever made it, and SQLite syncs only
/// that one, not the names above.
fn sync_way_to(path: &Path) {
    let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
    for directory in directory.iter().flat_map(|directory| directory.ancestors()) {
        // What we may not open we did not make.
        let _not_ours = File::open(directory).and_then(|directory| directory.sync_all());
    }
}

/// The schema version of an existing file, found without writing to it.
pub fn inspect(path: &Path) -> Result<i64, OpenError> {
    let found = match header(path, OpenFlags::SQLITE_OPEN_READ_ONLY) {
        // A life that was killed while it made the store left a transaction half done. To read is to undo it first, and
        // that is to write; SQLite does it for every connection that may.
        Err(e) if is_half_done(&e) => header(path, OpenFlags::SQLITE_OPEN_READ_WRITE),
        found => found,
    };
    let (version, application, tables) = found.map_err(|e| OpenError::from_sqlite(path, e))?;
    // A crash right after the file was made leaves an empty database, which is anybody's.
    if application != APPLICATION_ID && tables > 0 {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    if version > KNOWN {
        return Err(OpenError::Newer { path: path.to_owned(), found: version, known: KNOWN });
    }
    Ok(version)
}

/// Schema version, application id and the number of tables.
fn header(path: &Path, access: OpenFlags) -> rusqlite::Result<(i64, i64, i64)> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get(0));
    let tables = "SELECT count(*) FROM sqlite_schema";
    Ok((number("PRAGMA user_version")?, number("PRAGMA application_id")?, number(tables)?))
}

fn is_half_done(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|e| e.extended_code == ffi::SQLITE_READONLY_ROLLBACK)
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
