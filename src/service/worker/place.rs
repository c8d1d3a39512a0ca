//! A worker's directory: its spool, its input, and what a later life of the gateway has to know of it.
//!
//! | file | what |
//! |---|---|
//! | `out` | all that it wrote to stdout; what was read is punched out, so that offsets stay |
//! | `in` | its stdin: a FIFO that never ends, or a file |
//! | `err` | a child's stderr until it is in our log; a unit's is in the journal |
//! | `environment` | a unit's variables until it has started: properties of units can be read by others |
//! | `worker.json` | who it is: [`Record`] |
//!
//! Nothing is synced: no worker survives the machine. Directories are 0700 and files 0600.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::{Bounds, End, Input};

/// What the pipe to a worker may hold, in bytes; the most that a user may ask for. A message that fits is in there as a
/// whole, or not at all, whenever the gateway dies.
const PIPE: usize = 1 << 20;

/// The process of a worker that is no unit: enough to recognise it later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessRecord {
    pub(super) pid: u32,
    /// Clock ticks between boot and its start.
    pub(super) start_ticks: u64,
    pub(super) boot_id: Option<String>,
    pub(super) pid_namespace: Option<u64>,
}

/// What a later life has to know of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its name, which the directory's may only resemble.
    pub(super) name: String,
    /// Its unit, if it was to be one.
    pub(super) unit: Option<String>,
    /// Its process, if it is none.
    pub(super) process: Option<ProcessRecord>,
    /// Milliseconds from the machine's boot to its start, time asleep included.
    pub(super) started_ms: u64,
    /// What it is held to.
    pub(super) bounds: Bounds,
    /// How it ended, where nobody else would remember.
    pub(super) end: Option<End>,
}

/// A worker's ends of its standard streams.
pub(super) struct Ends {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
}

/// A worker's directory.
#[derive(Debug, Clone)]
pub(super) struct Place(PathBuf);

impl Place {
    /// Where the worker of this slug is, under the directory of all workers.
    pub(super) fn of(workers: &Path, slug: &str) -> Self {
        Self(workers.join(slug))
    }

    /// All that there are under `workers`, by slug.
    pub(super) fn all(workers: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(workers) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let slug = |entry: io::Result<fs::DirEntry>| entry.map(|e| e.file_name().into_string().ok()).transpose();
        entries.filter_map(slug).collect()
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn out(&self) -> PathBuf {
        self.0.join("out")
    }

    pub(super) fn input(&self) -> PathBuf {
        self.0.join("in")
    }

    pub(super) fn err(&self) -> PathBuf {
        self.0.join("err")
    }

    pub(super) fn environment(&self) -> PathBuf {
        self.0.join("environment")
    }

    /// Makes it, new and empty, and opens the worker's ends.
    pub(super) fn make(&self, input: &Input) -> io::Result<Ends> {
        self.clear()?;
        make_directory(&self.0)?;
        let stdin = match input {
            // For reading and writing: so it never sees an end of file, not even while no gateway lives.
            Input::Open => {
                rustix::fs::mknodat(CWD, self.input(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
                let fifo = rustix::fs::open(self.input(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
                // Past the user's share of pipe memory it stays small, which is no reason not to start.
                let _smaller = rustix::pipe::fcntl_setpipe_size(&fifo, PIPE);
                fifo
            }
            Input::Bytes(bytes) => {
                new_file(&self.input())?.write_all(bytes)?;
                File::open(self.input())?.into()
            }
        };
        Ok(Ends { stdin, stdout: append(&self.out())? })
    }

    /// Where a child's stderr goes.
    pub(super) fn open_err(&self) -> io::Result<OwnedFd> {
        append(&self.err())
    }

    /// What is written of this worker; `None` if nothing is, or nothing that can be read.
    pub(super) fn record(&self) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.0.join("worker.json")).ok()?).ok()
    }

    /// Writes it, as a whole or not at all.
    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".worker-").tempfile_in(&self.0)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.persist(self.0.join("worker.json")).map_err(|e| e.error)?;
        Ok(())
    }

    /// Writes the variables of a unit, in the format of `EnvironmentFile=`.
    pub(super) fn write_environment(&self, text: &str) -> io::Result<()> {
        new_file(&self.environment())?.write_all(text.as_bytes())
    }

    /// Takes it away with all that is in it.
    pub(super) fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// Makes a directory for our user alone, with those above it; one that is there stays as it is.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn append(path: &Path) -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?.into())
}

/// Variables in the format of `EnvironmentFile=`: in double quotes, where a backslash keeps four characters as they are.
pub(super) fn environment_file<'a>(variables: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let mut text = String::new();
    for (name, value) in variables {
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            if matches!(c, '"' | '\\' | '$' | '`') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push_str("\"\n");
    }
    text
}
