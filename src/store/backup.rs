//! Copies of the store, made while it is used: SQLite's online backup, on connections of its own.
//!
//! The copy is one moment of the store, whatever is written meanwhile: it is read in one transaction, which in WAL mode
//! holds up nobody. The log cannot be emptied as long as that lasts, so a copy goes to a file first and from there to
//! whoever reads slowly.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::OwnedSemaphorePermit;

use super::schema::{self, APPLICATION_ID};
use super::{FILE_NAME, OpenError, Store, StoreError};

/// Pages between two looks whether the copy is still wanted; 1 MiB, some milliseconds.
const STEP: i32 = 256;

/// Why there is no copy. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One at a time: each takes as much room as the store.
    #[error("another backup is being made or fetched")]
    Busy,
    /// Nobody wants it any more.
    #[error("the backup was given up")]
    GivenUp,
    /// It is not whole, or no copy of a store.
    #[error("the copy is not whole: {0}")]
    Damaged(String),
    /// The store, or the disk that takes the copy, failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for CopyError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<OpenError> for CopyError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Failed { source, .. } => source.into(),
            other => Self::Store(StoreError::Failed(other.to_string())),
        }
    }
}

/// A copy in a file that has no name and is gone with this value.
#[derive(Debug)]
pub struct Copied {
    /// The file, at its beginning.
    pub file: File,
    /// Its length, in bytes.
    pub length: u64,
    /// The right to have a copy.
    _only: OwnedSemaphorePermit,
}

impl Store {
    /// Copies the store as it is now into a nameless file in its own directory. Blocks for as long as that takes, so it
    /// wants a thread that may; looks now and then whether the copy `is_wanted`.
    pub fn copy(&self, is_wanted: impl Fn() -> bool) -> Result<Copied, CopyError> {
        let only = self.copies.clone().try_acquire_owned().map_err(|_| CopyError::Busy)?;
        let failed = |e: std::io::Error| CopyError::Store(StoreError::NoRoom(e.to_string()));
        // Mode 0600, as all of tempfile's.
        let target = tempfile::Builder::new().prefix(".backup-").tempfile_in(&self.directory).map_err(failed)?;
        let (file, path) = target.into_parts();
        let named = path.to_path_buf();
        // The name is gone as soon as SQLite has the file open, so no death leaves it behind.
        copy(&self.directory.join(FILE_NAME), &named, move || drop(path), is_wanted)?;
        settle(&file).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        Ok(Copied { file, length, _only: only })
    }
}

/// Copies the store of a gateway that does not run, or of one that starts meanwhile, into an empty file that is there.
///
/// The state directory's lock is not taken: a start that met it would leave it at that (exit status 73), and SQLite's
/// own locks suffice.
pub fn copy_file(state: &Path, target: &Path) -> Result<(), CopyError> {
    copy(&state.join(FILE_NAME), target, || (), || true)?;
    let file = File::options().write(true).open(target);
    file.and_then(|file| settle(&file)).map_err(|e| CopyError::Store(StoreError::NoRoom(e.to_string())))
}

/// Says in the header that there is no log to look for (<https://www.sqlite.org/fileformat2.html#file_format_version_numbers>):
/// what was copied is all there is. So a copy opens without anything being written beside it.
fn settle(file: &File) -> std::io::Result<()> {
    file.write_all_at(&[1, 1], 18)
}

fn copy(source: &Path, target: &Path, opened: impl FnOnce(), is_wanted: impl Fn() -> bool) -> Result<(), CopyError> {
    let mut copy = Connection::open_with_flags(target, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    opened();
    // A file that nobody else sees needs no journal. A copy that fails is thrown away.
    copy.query_row("PRAGMA journal_mode = OFF", [], |_| Ok(()))?;
    copy.execute_batch("PRAGMA synchronous = OFF;")?;
    let store = schema::open_reader(source)?;
    // A transaction that has begun to read stays at its moment: without it every commit would start the copy anew.
    store.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;")?;
    let backup = Backup::new(&store, &mut copy)?;
    loop {
        if !is_wanted() {
            return Err(CopyError::GivenUp);
        }
        match backup.step(STEP)? {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            _ => return Err(StoreError::Failed("the store is locked".into()).into()),
        }
    }
}

/// Checks that a file is a whole copy of a store, without writing beside it. Reads all of it.
pub fn check_copy(path: &Path) -> Result<(), CopyError> {
    let damaged = |e: rusqlite::Error| CopyError::Damaged(e.to_string());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    // Immutable: it needs no log, though the store that it is a copy of has one.
    let uri = format!("file:{}?immutable=1", encoded(path));
    let copy = Connection::open_with_flags(uri, flags).map_err(damaged)?;
    let application: i64 = copy.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(damaged)?;
    if application != APPLICATION_ID {
        return Err(CopyError::Damaged("it is not a gateway's store".into()));
    }
    let verdict: String = copy.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(damaged)?;
    if verdict == "ok" { Ok(()) } else { Err(CopyError::Damaged(verdict)) }
}

/// A path in a URI: every byte that could mean something else is written as its number.
fn encoded(path: &Path) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
    let byte = |b: &u8| if plain(*b) { char::from(*b).to_string() } else { format!("%{b:02X}") };
    path.as_os_str().as_encoded_bytes().iter().map(byte).collect()
}

/// Copies that may be there at the same time.
pub(super) fn places() -> Arc<tokio::sync::Semaphore> {
    Arc::new(tokio::sync::Semaphore::new(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_copy_at_a_time_and_none_of_what_nobody_wants() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (store, _owner) = Store::open(dir.path(), Arc::default()).expect("opens");
        assert!(matches!(store.copy(|| false), Err(CopyError::GivenUp)));
        let first = store.copy(|| true).expect("a copy");
        assert!(first.length > 0 && matches!(store.copy(|| true), Err(CopyError::Busy)));
        drop(first);
        store.copy(|| true).expect("another copy");
        let left = std::fs::read_dir(dir.path()).expect("read").map(|entry| entry.expect("an entry").file_name());
        assert!(left.into_iter().all(|name| name.to_string_lossy().starts_with("gateway.db")), "no copy has a name");
    }
}
