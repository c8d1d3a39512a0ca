//! Programs run as workers: agents, above all. What they are given, what they write, and how they end.
//!
//! Under systemd a worker is no child of ours. It is a transient unit of its own, with its own limits, sandbox and log,
//! and goes on while the gateway is killed and started again. Its stdout is a regular file, the spool, so nothing that
//! it wrote is ever lost with us, and a reader's place in it is a number that can be kept. Its stdin is a FIFO that it
//! holds open itself. A later life of the gateway finds it by name and reads on.
//!
//! | | units | children |
//! |---|---|---|
//! | where | user scope, or root's system scope, under systemd | everywhere else |
//! | when the gateway dies | goes on, and its end can be asked for | goes on if the supervisor lets it; its end is [`End::Gone`] |
//! | memory, tasks, CPU | held by its control group | not held |
//! | runtime | held by the manager | held while a gateway lives |
//! | output | held while somebody reads or waits for the end | held while a gateway lives |
//! | sandbox | seccomp always, the file system where users can make namespaces | no new privileges |
//! | stderr | the journal, under its unit | our log at debug level |
//!
//! The gateway of the machine runs as a user of its own, whom the system manager starts nothing for. To let it (by
//! polkit) would be to make it root, so its workers are children, inside its own sandbox.
//!
//! There is one [`Workers`] for a process, and clones of it: two that do not know of each other would both wait for the
//! same children, and only one learns how they end.
//!
//! Every worker must be stopped by [`Worker::stop`] in the end, also one that has ended, or swept by
//! [`Workers::sweep`]: only these clear units and files away. A worker runs as our user. It can signal us, and what it
//! cannot see of our files depends on the sandbox.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::service::systemd::ManagerError;

mod child;
mod descriptors;
mod end;
mod holders;
mod manager;
mod name;
mod output;
mod place;
mod properties;
mod running;
mod speech;
mod start;
mod unit;

pub use end::End;
pub use output::Output;
pub use running::Worker;
use start::Told;
pub use start::Workers;

/// What is to be run, and within which bounds.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Tells the workers of an instance apart, and is how a later life finds it; becomes part of the unit's name.
    pub name: String,
    /// For people, in `systemctl status`.
    pub description: String,
    /// Program (an absolute path, or found on the PATH of `environment`) and arguments; never empty.
    pub command: Vec<String>,
    /// All of its variables: nothing is inherited.
    pub environment: BTreeMap<String, String>,
    /// Where it works; made for our user alone if missing. It may write there.
    pub directory: PathBuf,
    /// What it reads.
    pub input: Input,
    /// What it may use up.
    pub limits: Limits,
    /// What it may see and change.
    pub sandbox: Sandbox,
}

/// A worker's stdin.
#[derive(Debug, Clone)]
pub enum Input {
    /// It can be written to for the worker's whole life, and never ends.
    Open,
    /// These, then end of file.
    Bytes(Vec<u8>),
}

/// What a worker may use up. See the table above for who holds it to that.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Memory, in bytes, of all its processes together; no swap beyond that.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// CPU time, in percent of one processor.
    pub cpu_percent: Option<u32>,
    /// Share of the CPU when others want it, too: 1 to 10000, 100 is everybody's.
    pub cpu_weight: Option<u32>,
    /// Longest time from start to end.
    pub runtime: Option<Duration>,
    /// Longest output that nobody has read, in bytes.
    pub output: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: None, tasks: None, cpu_percent: None, cpu_weight: None, runtime: None, output: 64 << 20 }
    }
}

/// What a worker may see and change. It reads what our user can read, minus what is hidden, and writes into its
/// directory and a `/tmp` of its own.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Where else it may write; what does not exist is left out.
    pub writable: Vec<PathBuf>,
    /// What it does not see. Always hidden are the gateway's state directory (the parent of [`Workers`]' own) and the
    /// user's runtime directory, where the way to the service manager is: it would start anything outside of the
    /// sandbox. What is to be seen of them all the same has to be `writable`.
    pub hidden: Vec<PathBuf>,
    /// Whether it reaches any network, this machine's loopback included.
    pub network: bool,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self { writable: Vec::new(), hidden: Vec::new(), network: true }
    }
}

/// What a worker is held to after its start, by whoever is there then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Bounds {
    memory: Option<u64>,
    runtime: Option<Duration>,
    output: u64,
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self { memory: limits.memory, runtime: limits.runtime, output: limits.output }
    }
}

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Nothing to execute.
    #[error("there is no program '{0}' that can be executed; a name without '/' is looked up on the agent's own PATH")]
    NoProgram(String),
    /// What the system cannot take for a variable.
    #[error("'{0}' cannot be a variable of the environment")]
    Variable(String),
    /// One of that name still runs.
    #[error("a worker '{0}' is running already")]
    Running(String),
    /// A directory or file of it cannot be made or read.
    #[error("cannot use {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not get as far as running its program.
    #[error("{name} did not start: {why}")]
    NotStarted {
        /// The unit, or the program.
        name: String,
        /// For people.
        why: String,
        /// The exit status of the step that failed, if systemd did it (systemd.exec(5)).
        status: Option<i32>,
    },
    /// The service manager did not do as asked.
    #[error(transparent)]
    Manager(#[from] ManagerError),
}

#[cfg(test)]
mod tests;
