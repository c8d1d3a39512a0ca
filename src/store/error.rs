//! What can be wrong with a store, in kinds that callers decide by.

use std::io;
use std::path::PathBuf;

use rusqlite::{ErrorCode, ffi};

/// Why a piece of work left nothing in the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No room, or the file system is read-only; works again when that is mended.
    #[error("the disk takes no more data: {0}")]
    NoRoom(String),
    /// What lies on some page cannot be read or changed; the rest can. Only a person can mend it.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// Anything else that SQLite says.
    #[error("the store failed: {0}")]
    Failed(String),
}

impl StoreError {
    /// The store's threads are gone: the process stops.
    pub(super) fn closed() -> Self {
        Self::Failed("it is closed".into())
    }

    /// Whether it is a trouble of the disk, not of this piece of work: others have it, too, and the store tells of it
    /// once, not each time.
    pub fn lasts(&self) -> bool {
        matches!(self, Self::NoRoom(_) | Self::Damaged(_))
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::ReadOnly | ErrorCode::CannotOpen) => Self::NoRoom(error.to_string()),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            Some(ErrorCode::SystemIoFailure) if is_of_reading(&error) => Self::Failed(format!("cannot read, {error}")),
            // The WAL grows by plain writes, so a full disk shows there as a failed write.
            Some(ErrorCode::SystemIoFailure) => Self::NoRoom(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

fn is_of_reading(error: &rusqlite::Error) -> bool {
    let of_reading = [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_IOERR_CORRUPTFS];
    error.sqlite_error().is_some_and(|error| of_reading.contains(&error.extended_code))
}

/// Why a store cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Written by a newer version.
    #[error("{path} has schema version {found}, and this version knows up to {known}: install the newer version again")]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A database, but not of a gateway.
    #[error("{path} is not a gateway's store: move it away or choose another --state-dir")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Damaged, or no database at all.
    #[error("{path} is damaged ({detail}); it was left as it is: restore a backup, or move it away to start empty")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// The disk or the file can only be read.
    #[error("{path} can only be read, not written to: is its disk mounted read-only, or the file somebody else's?")]
    ReadOnly {
        /// The database.
        path: PathBuf,
    },
    /// The system or SQLite failed; trying again may help.
    #[error("cannot open {path}")]
    Failed {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// No thread to be had.
    #[error("cannot start a thread for the store")]
    Thread(#[source] io::Error),
}

impl OpenError {
    /// Whether trying again cannot help before a person acts.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Newer { .. } | Self::Foreign { .. } | Self::Corrupt { .. })
    }

    pub(super) fn from_sqlite(path: &std::path::Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                Self::Corrupt { path, detail: source.to_string() }
            }
            _ => Self::Failed { path, source },
        }
    }
}
