//! Workers as plain children, where no service manager starts them for us.
//!
//! Each has a thread that starts it, holds it to its limits, logs its stderr and learns how it ended, so that nothing
//! depends on whether somebody waits. It leads a process group of its own, and gets the descriptors 0, 1, 2 and nothing
//! else. When the gateway dies hard it goes on: its files are where its successor finds them, and adopts or sweeps it.
//! That is why nothing makes the kernel kill it with us, and why its stderr is no pipe.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FallocateFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::sync::{oneshot, watch};

use super::descriptors::keep_from_children;
use super::place::{Ends, Place, ProcessRecord};
use super::running::Hold;
use super::{End, Spec, holders};
use crate::service::process;
use crate::service::record::Here;

/// Between two looks at spool and stderr.
const TICK: Duration = Duration::from_millis(250);
/// From SIGTERM for running too long to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// Most of its stderr that is logged with one look, in bytes; it may be half a line then.
const LOGGED: usize = 16 * 1024;
/// What is kept of its stderr when it is logged, in bytes.
pub(super) const LAST_WORDS: u64 = 4096;
/// Most of its stderr that waits to be logged, in bytes; what is older is skipped.
const UNLOGGED: u64 = 256 * 1024;

/// A child, or what an earlier life of ours started.
#[derive(Debug)]
pub(super) struct Child {
    leader: Arc<Leader>,
    end: watch::Receiver<Option<End>>,
}

/// The leader of a process group. The number is good for signals until it is reaped.
#[derive(Debug)]
struct Leader {
    pid: Pid,
    pidfd: OwnedFd,
    reaped: Mutex<bool>,
}

/// What the thread needs to know.
pub(super) struct Keeping {
    pub(super) name: String,
    pub(super) hold: Arc<Hold>,
    /// When its time is up.
    pub(super) deadline: Option<Instant>,
}

impl Child {
    /// Starts one.
    pub(super) async fn start(spec: &Spec, program: PathBuf, ends: Ends, keeping: Keeping) -> io::Result<Self> {
        let mut command = Command::new(&program);
        command.args(&spec.command[1..]).env_clear().envs(&spec.environment).current_dir(&spec.directory);
        command.stdin(ends.stdin).stdout(ends.stdout).stderr(keeping.hold.place.open_err()?).process_group(0);
        keep_from_children()?;
        let (started, told) = oneshot::channel();
        let (send, end) = watch::channel(None);
        spawn_thread(move || {
            // Of this thread only, and inherited: no program gains rights that we have not.
            let _unsupported = rustix::thread::set_no_new_privs(true);
            let leader = command.spawn().and_then(|child| Leader::open(child.id())).map(Arc::new);
            // Its ends of the streams are the child's alone from here on.
            drop(command);
            match leader {
                Ok(leader) => {
                    let _starter_is_gone = started.send(Ok(leader.clone()));
                    let _nobody_waits = send.send(Some(leader.keep(&keeping)));
                }
                Err(e) => drop(started.send(Err(e))),
            }
        })?;
        let leader = told.await.map_err(|_| io::Error::other("the thread that starts it is gone"))??;
        Ok(Self { leader, end })
    }

    /// Finds one that an earlier life started; `None` if it is no more.
    pub(super) fn adopt(record: &ProcessRecord, keeping: Keeping) -> io::Result<Option<Self>> {
        let here = Here::now();
        if record.boot_id != here.boot_id || record.pid_namespace != here.pid_namespace || record.pid <= 1 {
            return Ok(None);
        }
        let Ok(leader) = Leader::open(record.pid) else { return Ok(None) };
        // Looked at with the process in hand: the number may be another's by now.
        if process::birth(record.pid).is_none_or(|birth| birth.start_ticks != record.start_ticks) {
            return Ok(None);
        }
        let leader = Arc::new(leader);
        let (send, end) = watch::channel(None);
        let kept = leader.clone();
        spawn_thread(move || {
            let _nobody_waits = send.send(Some(kept.keep(&keeping)));
        })?;
        Ok(Some(Self { leader, end }))
    }

    pub(super) fn pid(&self) -> u32 {
        self.leader.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// What a later life needs to recognise it.
    pub(super) fn record(&self) -> Option<ProcessRecord> {
        let here = Here::now();
        let start_ticks = process::birth(self.pid())?.start_ticks;
        Some(ProcessRecord { pid: self.pid(), start_ticks, boot_id: here.boot_id, pid_namespace: here.pid_namespace })
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) -> End {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await;
        ended.map_or(End::Gone, |end| end.unwrap_or(End::Gone))
    }

    /// Signals its process group.
    pub(super) fn signal(&self, signal: Signal) {
        self.leader.signal(signal);
    }
}

fn spawn_thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("worker".into()).spawn(work).map(drop)
}

impl Leader {
    fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd, reaped: Mutex::new(false) })
    }

    fn signal(&self, signal: Signal) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped {
            let _all_have_ended = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    /// Lives as long as the process does.
    fn keep(&self, keeping: &Keeping) -> End {
        let mut kill_at = None;
        let mut stderr = Stderr::open(&keeping.hold.place);
        while !self.has_ended(TICK) {
            stderr.log(&keeping.name);
            if keeping.hold.is_overrun() {
                self.signal(Signal::KILL);
            }
            let now = Instant::now();
            if keeping.deadline.is_some_and(|deadline| now >= deadline) && kill_at.is_none() {
                let _other_cause = keeping.hold.cause.set(End::TimedOut(keeping.hold.bounds.runtime));
                kill_at = Some(now + GRACE);
                self.signal(Signal::TERM);
            }
            if kill_at.is_some_and(|at| now >= at) {
                self.signal(Signal::KILL);
            }
        }
        let end = self.reap(keeping.hold.place.path());
        stderr.log(&keeping.name);
        end
    }

    fn has_ended(&self, within: Duration) -> bool {
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let within = Timespec { tv_sec: 0, tv_nsec: i64::from(within.subsec_nanos()) };
        matches!(rustix::event::poll(&mut polled, Some(&within)), Ok(ready) if ready > 0)
    }

    /// Ends what it left behind, then learns how it ended: as long as it is not reaped nobody else has its number.
    fn reap(&self, place: &Path) -> End {
        self.signal(Signal::KILL);
        let mut reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        let status = rustix::process::waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED);
        *reaped = true;
        drop(reaped);
        holders::kill(place);
        let Ok(Some(status)) = status else {
            // Not our child: an earlier life's, which was not this very process before an in-place restart.
            return End::Gone;
        };
        let signal = status.terminating_signal();
        status.exit_status().map(End::Exited).or(signal.map(End::Killed)).unwrap_or(End::Gone)
    }
}

/// A child's stderr on its way to our log.
struct Stderr {
    file: Option<File>,
    offset: u64,
}

impl Stderr {
    fn open(place: &Place) -> Self {
        let file = File::options().read(true).write(true).open(place.err()).ok();
        // What an earlier life has logged is gone from the file; what it has not is still there.
        let length = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.len());
        Self { file, offset: length.saturating_sub(UNLOGGED) }
    }

    fn log(&mut self, worker: &str) {
        let Some(file) = &self.file else { return };
        let length = file.metadata().map_or(0, |meta| meta.len());
        if length.saturating_sub(self.offset) > UNLOGGED {
            tracing::debug!(worker, "it says more on stderr than is logged");
            self.offset = length - LOGGED as u64;
        }
        let mut text = vec![0; LOGGED];
        let Ok(read @ 1..) = file.read_at(&mut text, self.offset) else { return };
        self.offset += read as u64;
        for line in text[..read].split(|byte| *byte == b'\n') {
            // A hole is zeros.
            let line = String::from_utf8_lossy(line.trim_ascii());
            let line = line.trim_matches('\0');
            if !line.is_empty() {
                tracing::debug!(worker, stderr = line.escape_debug().to_string(), "a worker says");
            }
        }
        // All but its last words, which tell why it ended.
        if let Some(logged @ 1..) = self.offset.checked_sub(LAST_WORDS) {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _no_holes_here = rustix::fs::fallocate(file, flags, 0, logged);
        }
    }
}
