//! The pid file of the stand-alone mode, done so that it can never block a start.
//!
//! `gateway.pid` is a rendezvous, not a flag: it is opened, locked with `flock`, and held for life. Its existence means
//! nothing, its content is for people, and nobody ever removes it. Whatever else lies under its name (a directory, a
//! link, a file that we may not open) is moved aside.
//!
//! Starters take turns, by the lock of the runtime directory's own descriptor: an obstacle cannot lie in its place, and
//! every death gives it up. So what one has seen lie there is still what lies there when it is moved or locked.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::lock::{self, Holder};
use super::process;
use super::record::{Here, Record, Stale};

/// The file's name in the runtime directory.
pub const FILE_NAME: &str = "gateway.pid";
/// Longest content that is looked at, in bytes.
const MAX_RECORD: usize = 4096;
/// Attempts to find a stable file while somebody who is no gateway moves things about.
const MAX_ATTEMPTS: u32 = 16;
/// How long other starters may be ahead of us. A turn takes less than a millisecond; who has the directory for longer
/// is frozen, or has it for life, as its state say.
const TURN_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks whether it is our turn.
const TURN_LOOK: Duration = Duration::from_millis(1);

/// The pid file, ours for as long as this value lives.
#[derive(Debug)]
pub struct PidFile {
    descriptor: OwnedFd,
}

/// Why the pid file is not ours.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Another gateway holds it, or holds up all starters.
    #[error("{path} is held by {holder}")]
    Held {
        /// The file, or its directory.
        path: PathBuf,
        /// Who holds it.
        holder: Holder,
    },
    /// The runtime directory does not let us have a file.
    #[error("cannot use {path}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl PidFile {
    /// Takes the file, or fails at once if another living process has it.
    pub fn take(path: &Path, record: Option<&Record>) -> Result<Self, PidFileError> {
        let unusable = |source| PidFileError::Unusable { path: path.to_owned(), source };
        let held = |holder| PidFileError::Held { path: path.to_owned(), holder };
        let _turn = await_turn(path)?;
        for _ in 0..MAX_ATTEMPTS {
            let descriptor = match open(path) {
                Ok(descriptor) => descriptor,
                Err(Blocked::By(obstacle)) => {
                    set_aside(path, obstacle).map_err(unusable)?;
                    continue;
                }
                Err(Blocked::Closed) => {
                    // A file that we may not open can be held all the same, by somebody who may.
                    let lockers = rustix::fs::lstat(path).map(|stat| lock::lockers_of(stat.st_ino));
                    if let Some(pid) = lockers.unwrap_or_default().into_iter().next() {
                        return Err(held(Holder::named(Some(pid))));
                    }
                    set_aside(path, "a file that may not be opened").map_err(unusable)?;
                    continue;
                }
                Err(Blocked::Failed(e)) => return Err(unusable(e)),
            };
            if !lock::try_lock(&descriptor).map_err(unusable)? {
                return Err(held(Holder::of(&descriptor)));
            }
            // No gateway has moved it since it was opened, but people may.
            if same_file(&descriptor, path) {
                let file = Self { descriptor };
                file.write(record).map_err(unusable)?;
                return Ok(file);
            }
        }
        Err(unusable(io::Error::other("the file keeps changing under us")))
    }

    /// The lock that an earlier image of this process took and passed on.
    pub fn inherited(descriptor: OwnedFd, record: Option<&Record>) -> Self {
        let file = Self { descriptor };
        if let Err(e) = file.write(record) {
            tracing::warn!(error = %e, "cannot write the pid file's record; the lock holds all the same");
        }
        file
    }

    fn write(&self, record: Option<&Record>) -> io::Result<()> {
        rustix::fs::ftruncate(&self.descriptor, 0)?;
        if let Some(record) = record {
            let mut line = serde_json::to_vec(record)?;
            line.push(b'\n');
            rustix::io::pwrite(&self.descriptor, &line, 0)?;
        }
        Ok(())
    }
}

impl AsFd for PidFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The lock of the file's directory. While it lives, no other gateway takes the file or moves anything aside.
fn await_turn(path: &Path) -> Result<OwnedFd, PidFileError> {
    let unusable = |source| PidFileError::Unusable { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptor = rustix::fs::open(directory, flags, Mode::empty()).map_err(|e| unusable(e.into()))?;
    let deadline = Instant::now() + TURN_PATIENCE;
    // Not by a lock that waits: it would wait for ever for somebody who is frozen.
    while !lock::try_lock(&descriptor).map_err(unusable)? {
        if Instant::now() >= deadline {
            return Err(PidFileError::Held { path: directory.to_owned(), holder: Holder::of(&descriptor) });
        }
        thread::sleep(TURN_LOOK);
    }
    Ok(descriptor)
}

enum Blocked {
    /// What lies there is no file, so it is no gateway's.
    By(&'static str),
    /// A file, but not for us.
    Closed,
    Failed(io::Error),
}

fn open(path: &Path) -> Result<OwnedFd, Blocked> {
    // NONBLOCK: a FIFO under this name must not hang us.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let descriptor = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| match e {
        Errno::ISDIR => Blocked::By("a directory"),
        Errno::LOOP => Blocked::By("a symbolic link"),
        Errno::ACCESS | Errno::PERM => Blocked::Closed,
        Errno::NXIO => Blocked::By("a socket or pipe"),
        other => Blocked::Failed(other.into()),
    })?;
    let stat = rustix::fs::fstat(&descriptor).map_err(|e| Blocked::Failed(e.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(descriptor),
        _ => Err(Blocked::By("something that is no regular file")),
    }
}

/// Moves what lies there to the first free name beside it. There is always one: no number of earlier obstacles may
/// block a start.
fn set_aside(path: &Path, obstacle: &str) -> io::Result<()> {
    let target = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".set-aside.{n}"));
        PathBuf::from(name)
    };
    for target in (1..=u32::MAX).map(target) {
        let moved = match rustix::fs::renameat_with(CWD, path, CWD, &target, RenameFlags::NOREPLACE) {
            // Not every file system can promise to replace nothing; among gateways it is our turn.
            Err(Errno::INVAL | Errno::NOSYS) if target.symlink_metadata().is_ok() => continue,
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::rename(path, &target),
            Err(Errno::EXIST) => continue,
            moved => moved,
        };
        return match moved {
            Ok(()) => {
                let (path, target) = (path.display(), target.display());
                tracing::warn!(%path, obstacle, %target, "moved aside what lay in place of the pid file");
                Ok(())
            }
            // Gone by itself.
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        };
    }
    Err(io::Error::other("no name is free beside it"))
}

fn same_file(descriptor: &OwnedFd, path: &Path) -> bool {
    match (rustix::fs::fstat(descriptor), rustix::fs::lstat(path)) {
        (Ok(ours), Ok(there)) => (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino),
        _ => false,
    }
}

/// A living gateway that may be signalled: its record is true and it holds the lock. Signals go through a pidfd that
/// was opened before the record was held against the process, so they can reach no other.
#[derive(Debug)]
pub struct LiveGateway {
    /// What it wrote about itself.
    pub record: Record,
    pidfd: OwnedFd,
}

/// Why there is nobody to signal.
#[derive(Debug, thiserror::Error)]
pub enum NoGateway {
    /// No file, or nobody holds it.
    #[error("no gateway runs on {0}")]
    NotRunning(PathBuf),
    /// Somebody holds the file, and its record does not say truly who.
    #[error("{path} is held by {holder}, but cannot be trusted to name it: {reason}")]
    Unproven {
        /// The file.
        path: PathBuf,
        /// Who holds the lock, by the kernel's table.
        holder: Holder,
        /// What is wrong with the record.
        reason: Stale,
    },
}

impl LiveGateway {
    /// Finds the gateway that holds the pid file at `path`. Reads only; takes no lock, not even for a moment.
    pub fn find(path: &Path) -> Result<Self, NoGateway> {
        let not_running = || NoGateway::NotRunning(path.to_owned());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|_| not_running())?;
        let lockers = lock::lockers(&file);
        if lockers.is_empty() {
            return Err(not_running());
        }
        let mut content = [0; MAX_RECORD];
        let length = rustix::io::pread(&file, &mut content, 0).unwrap_or(0);
        Self::prove(&content[..length], &lockers).map_err(|reason| NoGateway::Unproven {
            path: path.to_owned(),
            holder: Holder::of(&file),
            reason,
        })
    }

    fn prove(content: &[u8], lockers: &[u32]) -> Result<Self, Stale> {
        let record = Record::parse(content)?;
        let pid = i32::try_from(record.pid).ok().and_then(Pid::from_raw).ok_or(Stale::Gone)?;
        // The order matters: a pid that is recycled after this line belongs to nobody we can reach.
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty());
        record.judge(&Here::now(), process::birth(record.pid), lockers)?;
        Ok(Self { record, pidfd: pidfd.map_err(|_| Stale::Gone)? })
    }

    /// Asks it to stop.
    pub fn terminate(&self) -> io::Result<()> {
        Ok(rustix::process::pidfd_send_signal(&self.pidfd, Signal::TERM)?)
    }

    /// Ends it.
    pub fn kill(&self) -> io::Result<()> {
        Ok(rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL)?)
    }

    /// Waits until it is gone (a zombie is), at most for `patience`; whether it is.
    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut poll = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut poll, Some(&left)) {
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
                Ok(ready) => return Ok(ready > 0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join(FILE_NAME);
        (dir, path)
    }

    #[test]
    fn the_lock_decides_and_the_file_stays() {
        let (_dir, path) = place();
        let record = Record::of_this_process("default");
        let first = PidFile::take(&path, record.as_ref()).expect("taken");
        match PidFile::take(&path, record.as_ref()) {
            Err(PidFileError::Held { holder, .. }) => assert_eq!(holder.pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        let error = LiveGateway::find(&path).expect_err("we are not to be signalled");
        assert!(matches!(error, NoGateway::Unproven { reason: Stale::Ourselves, .. }), "{error}");
        drop(first);
        assert!(path.exists());
        assert!(matches!(LiveGateway::find(&path), Err(NoGateway::NotRunning(_))));
        PidFile::take(&path, record.as_ref()).expect("taken again");
    }

    type Plant = fn(&Path);
    const OBSTACLES: [(&str, Plant); 4] = [
        ("directory", |p| std::fs::create_dir_all(p.join("inside")).expect("mkdir")),
        ("link", |p| std::os::unix::fs::symlink("/dev/null", p).expect("symlink")),
        ("fifo", |p| {
            rustix::fs::mknodat(CWD, p, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("mkfifo");
        }),
        ("socket", |p| drop(std::os::unix::net::UnixListener::bind(p).expect("bind"))),
    ];

    #[test]
    fn obstacles_are_moved_aside_and_kept() {
        let (dir, path) = place();
        for (n, (what, plant)) in (1..).zip(OBSTACLES) {
            plant(&path);
            PidFile::take(&path, None).unwrap_or_else(|e| panic!("{what}: {e}"));
            std::fs::remove_file(&path).expect("a file is there");
            let kept = dir.path().join(format!("gateway.pid.set-aside.{n}")).symlink_metadata().expect("it was kept");
            assert!(!kept.is_file(), "{what} was kept under the next free name");
        }
    }

    #[test]
    fn of_many_takers_at_once_one_wins_whatever_lies_there() {
        const TAKERS: usize = 8;
        for round in 0..50 {
            for (what, plant) in OBSTACLES {
                let (dir, path) = place();
                plant(&path);
                let begin = std::sync::Barrier::new(TAKERS);
                let taken: Vec<_> = thread::scope(|scope| {
                    let take = || {
                        begin.wait();
                        PidFile::take(&path, None)
                    };
                    let takers: Vec<_> = (0..TAKERS).map(|_| scope.spawn(take)).collect();
                    takers.into_iter().map(|taker| taker.join().expect("no panic")).collect()
                });
                let winners: Vec<_> = taken.iter().filter_map(|taken| taken.as_ref().ok()).collect();
                assert_eq!(winners.len(), 1, "{what}, round {round}: {taken:?}");
                assert!(same_file(&winners[0].descriptor, &path), "{what}, round {round}: the winner holds the file");
                let lost = |taken: &Result<PidFile, _>| matches!(taken, Ok(_) | Err(PidFileError::Held { .. }));
                assert!(taken.iter().all(lost), "{what}, round {round}: {taken:?}");
                let entries = std::fs::read_dir(dir.path()).expect("readable").count();
                assert_eq!(entries, 2, "{what}, round {round}: the file and what was moved aside");
            }
        }
    }

    #[test]
    fn who_never_ends_its_turn_is_named() {
        let (dir, path) = place();
        let turn = lock::DirectoryLock::take(dir.path()).expect("taken");
        match PidFile::take(&path, None) {
            Err(PidFileError::Held { path, holder }) => {
                assert_eq!((path.as_path(), holder.pid), (dir.path(), Some(std::process::id())));
            }
            other => panic!("{other:?}"),
        }
        drop(turn);
        PidFile::take(&path, None).expect("taken");
    }
}
