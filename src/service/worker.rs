//! Stand-in for the workers to come: plain child processes whose stdout goes into a spool file. Nothing of it outlives the
//! gateway; limits other than time and output, and the sandbox, are not applied.

#![expect(clippy::disallowed_methods, reason = "a stand-in, which has no tasks of its own")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, fs, io};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use super::directories::Scope;
use super::handshake::Supervisor;
use super::lock;
use crate::model::id::InstanceName;

/// Bytes of stderr that are kept.
const TAIL: usize = 2048;
/// Bytes that are read at once.
const CHUNK: usize = 64 * 1024;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name; unique in the instance.
    pub name: String,
    /// For people.
    pub description: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The whole environment.
    pub environment: BTreeMap<String, String>,
    /// Where it runs.
    pub directory: PathBuf,
    /// What is on its stdin.
    pub input: Input,
    /// Its bounds.
    pub limits: Limits,
    /// What it may see.
    pub sandbox: Sandbox,
}

/// What is on a worker's stdin.
#[derive(Debug, Clone)]
pub enum Input {
    /// What is said to it.
    Open,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
}

/// Bounds of a worker.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// Percent of one processor.
    pub cpu_percent: Option<u32>,
    /// Its share where processors are scarce; 100 is usual.
    pub cpu_weight: Option<u32>,
    /// Longest life.
    pub runtime: Option<Duration>,
    /// Bytes of output.
    pub output: u64,
}

/// What a worker may see and change.
#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    /// Where it may write.
    pub writable: Vec<PathBuf>,
    /// What it cannot see.
    pub hidden: Vec<PathBuf>,
    /// Whether it reaches the network.
    pub network: bool,
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It needed more memory than it may have.
    OutOfMemory,
    /// It took longer than it may.
    TimedOut,
    /// It said more than it may.
    TooMuchOutput,
    /// Nobody knows how.
    Gone,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "ended with status {status}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::OutOfMemory => f.write_str("ran out of memory"),
            Self::TimedOut => f.write_str("took too long"),
            Self::TooMuchOutput => f.write_str("said too much"),
            Self::Gone => f.write_str("is gone"),
        }
    }
}

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {program}: {source}")]
pub struct WorkerError {
    program: String,
    source: io::Error,
}

/// All workers of an instance; clones share them.
#[derive(Debug, Clone)]
pub struct Workers {
    directory: PathBuf,
    all: All,
}

type All = Arc<Mutex<HashMap<String, Worker>>>;

fn lock_all(all: &All) -> MutexGuard<'_, HashMap<String, Worker>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program that runs or ran; clones share it.
#[derive(Debug, Clone)]
pub struct Worker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    pid: u32,
    spool: PathBuf,
    all: All,
    stdin: tokio::sync::Mutex<Option<ChildStdin>>,
    /// Bytes spooled; and the end, once everything is spooled.
    state: watch::Sender<(u64, Option<End>)>,
    tail: Mutex<Vec<u8>>,
}

impl Workers {
    /// Workers whose spools are in `directory`.
    pub fn new(_supervisor: Supervisor, _scope: Scope, _instance: &InstanceName, directory: PathBuf) -> Self {
        Self { directory, all: All::default() }
    }

    /// Starts a program.
    pub async fn start(&self, spec: Spec) -> Result<Worker, WorkerError> {
        let program = spec.command.first().cloned().unwrap_or_default();
        self.try_start(spec).map_err(|source| WorkerError { program, source })
    }

    fn try_start(&self, spec: Spec) -> io::Result<Worker> {
        lock::create_private(&self.directory)?;
        let [program, arguments @ ..] = spec.command.as_slice() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let spool = self.directory.join(format!("{}.out", spec.name));
        let file = fs::File::create(&spool)?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&spec.environment).current_dir(&spec.directory);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
        let mut stdin = child.stdin.take();
        let open = match &spec.input {
            Input::Open => stdin.take(),
            Input::Bytes(_) => None,
        };
        let worker = Worker {
            inner: Arc::new(Inner {
                name: spec.name.clone(),
                pid: child.id().unwrap_or(0),
                spool,
                all: self.all.clone(),
                stdin: tokio::sync::Mutex::new(open),
                state: watch::Sender::new((0, None)),
                tail: Mutex::default(),
            }),
        };
        lock_all(&self.all).insert(spec.name, worker.clone());
        if let (Input::Bytes(bytes), Some(mut stdin)) = (spec.input, stdin) {
            tokio::spawn(async move { stdin.write_all(&bytes).await });
        }
        tokio::spawn(pump(worker.clone(), child, file, spec.limits));
        Ok(worker)
    }

    /// A worker by its name.
    pub async fn find(&self, name: &str) -> Result<Option<Worker>, WorkerError> {
        Ok(lock_all(&self.all).get(name).cloned())
    }

    /// Ends all but these; the names of those ended.
    pub async fn sweep(&self, keep: &BTreeSet<String>) -> Result<Vec<String>, WorkerError> {
        let unwanted: Vec<_> = lock_all(&self.all).values().filter(|w| !keep.contains(w.name())).cloned().collect();
        for worker in &unwanted {
            worker.stop(Duration::ZERO).await;
        }
        Ok(unwanted.iter().map(|worker| worker.name().to_owned()).collect())
    }
}

async fn pump(worker: Worker, mut child: Child, file: fs::File, limits: Limits) {
    let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else { return };
    let inner = worker.inner.clone();
    let complaints = tokio::spawn(async move {
        let mut chunk = vec![0; TAIL];
        while let Ok(length @ 1..) = stderr.read(&mut chunk).await {
            let mut tail = inner.tail.lock().unwrap_or_else(PoisonError::into_inner);
            tail.extend_from_slice(&chunk[..length]);
            let excess = tail.len().saturating_sub(TAIL);
            tail.drain(..excess);
        }
    });
    let spool = async {
        let mut chunk = vec![0; CHUNK];
        let mut spooled = 0;
        while let Ok(length @ 1..) = stdout.read(&mut chunk).await {
            if io::Write::write_all(&mut &file, &chunk[..length]).is_err() {
                return None;
            }
            spooled += length as u64;
            worker.inner.state.send_modify(|state| state.0 = spooled);
            if spooled > limits.output {
                return Some(End::TooMuchOutput);
            }
        }
        None
    };
    let runtime = limits.runtime.unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
    let work = tokio::time::timeout(runtime, async {
        match spool.await {
            Some(end) => end,
            None => child.wait().await.map_or(End::Gone, of_status),
        }
    });
    let end = work.await.unwrap_or(End::TimedOut);
    worker.signal(Signal::KILL);
    let _reaped = child.wait().await;
    let _all_said = tokio::time::timeout(Duration::from_secs(1), complaints).await;
    worker.inner.state.send_modify(|state| state.1 = Some(end));
}

fn of_status(status: ExitStatus) -> End {
    status.code().map(End::Exited).or(status.signal().map(End::Killed)).unwrap_or(End::Gone)
}

impl Worker {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its unit; none here.
    pub fn unit(&self) -> Option<&str> {
        None
    }

    /// Its process.
    pub async fn pid(&self) -> Option<u32> {
        self.inner.state.borrow().1.is_none().then_some(self.inner.pid)
    }

    /// Writes to its stdin.
    pub async fn say(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdin = self.inner.stdin.lock().await;
        let stdin = stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(bytes).await?;
        stdin.flush().await
    }

    /// What it says, from this byte on.
    pub fn output(&self, from: u64) -> Output {
        Output { inner: self.inner.clone(), state: self.inner.state.subscribe(), offset: from }
    }

    /// Waits for its end.
    pub async fn ended(&self) -> End {
        let mut state = self.inner.state.subscribe();
        let ended = state.wait_for(|state| state.1.is_some()).await;
        ended.ok().and_then(|state| state.1).unwrap_or(End::Gone)
    }

    /// What it said last on stderr.
    pub async fn complaints(&self) -> Option<String> {
        let tail = self.inner.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&tail).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Ends it, and forgets what it said.
    pub async fn stop(&self, grace: Duration) -> End {
        self.inner.stdin.lock().await.take();
        self.signal(Signal::TERM);
        let end = match tokio::time::timeout(grace, self.ended()).await {
            Ok(end) => end,
            Err(_) => {
                self.signal(Signal::KILL);
                self.ended().await
            }
        };
        lock_all(&self.inner.all).remove(&self.inner.name);
        let _gone_already = fs::remove_file(&self.inner.spool);
        end
    }

    fn signal(&self, signal: Signal) {
        let ended = self.inner.state.borrow().1.is_some();
        if let (false, Some(pid)) = (ended, i32::try_from(self.inner.pid).ok().and_then(Pid::from_raw)) {
            let _gone_already = kill_process_group(pid, signal);
        }
    }
}

/// A reader of what a worker says.
#[derive(Debug)]
pub struct Output {
    inner: Arc<Inner>,
    state: watch::Receiver<(u64, Option<End>)>,
    offset: u64,
}

impl Output {
    /// The next bytes; `None` when it has ended and all is read.
    pub async fn next_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let from = self.offset;
        let state = self.state.wait_for(|(spooled, end)| *spooled > from || end.is_some()).await;
        let spooled = state.map_or(0, |state| state.0);
        if spooled <= from {
            return Ok(None);
        }
        let file = fs::File::open(&self.inner.spool)?;
        let mut bytes = vec![0; usize::try_from(spooled - from).unwrap_or(CHUNK).min(CHUNK)];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, from)?;
        self.offset += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// Where the next byte is.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Gives up what is before this byte.
    pub fn forget(&self, _up_to: u64) -> io::Result<()> {
        Ok(())
    }
}
