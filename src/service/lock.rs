//! Locks that the kernel gives up when their owner dies, and the question who has one.
//!
//! `flock` on an open descriptor: held until the last copy of the descriptor is closed, which the kernel does for every
//! dead process. Nothing on disk says "locked", so nothing on disk can be stale.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::process;

/// A directory that belongs to this process for as long as this value lives.
#[derive(Debug)]
pub struct DirectoryLock {
    descriptor: OwnedFd,
}

/// Why a directory could not be made ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another gateway works in it.
    #[error("{path} is in use by {holder}")]
    Held {
        /// The directory.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// It cannot be made, opened or locked.
    #[error("cannot {step} {path}")]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DirectoryLock {
    /// Makes the directory (mode 0700) if it is missing, and takes its lock, or fails at once.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let unusable = |step, source: io::Error| LockError::Unusable { path: path.to_owned(), step, source };
        create_private(path).map_err(|e| unusable("create", e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| unusable("open", e.into()))?;
        match try_lock(&descriptor) {
            Ok(true) => Ok(Self { descriptor }),
            Ok(false) => Err(LockError::Held { path: path.to_owned(), holder: Holder::of(&descriptor) }),
            Err(e) => Err(unusable("lock", e)),
        }
    }

    /// The lock that an earlier image of this process took and passed on.
    pub fn inherited(descriptor: OwnedFd) -> Self {
        Self { descriptor }
    }
}

impl AsFd for DirectoryLock {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Makes a directory and its parents; what is made new is for us alone.
pub fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Takes the exclusive lock if nobody has it; whether that worked.
pub fn try_lock(fd: impl AsFd) -> io::Result<bool> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Who has a lock, as far as the kernel's table tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    /// The process; `None` when it lives in another pid namespace.
    pub pid: Option<u32>,
    /// Its command name.
    pub command: Option<String>,
    /// Its systemd unit.
    pub unit: Option<String>,
    /// The user whose service manager runs the unit; `None` for the system's.
    pub user: Option<u32>,
}

impl Holder {
    /// The holder of the lock on this open file or directory.
    pub fn of(fd: impl AsFd) -> Self {
        Self::named(lockers(fd).into_iter().next())
    }

    /// What can be said of the holder with this pid.
    pub fn named(pid: Option<u32>) -> Self {
        Self {
            pid,
            command: pid.and_then(process::command),
            unit: pid.and_then(process::unit),
            user: pid.and_then(manager_of),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(pid) = self.pid else { return f.write_str("a process that cannot be seen from here") };
        match &self.command {
            Some(command) => write!(f, "{command}, pid {pid}")?,
            None => write!(f, "pid {pid}")?,
        }
        match (&self.unit, self.user) {
            (Some(unit), Some(user)) => write!(f, ", {unit} of user {user}"),
            (Some(unit), None) => write!(f, ", system unit {unit}"),
            (None, _) => Ok(()),
        }
    }
}

/// The processes that have a `flock` on this file, by /proc/locks. Pids are translated to our namespace by the kernel.
pub fn lockers(fd: impl AsFd) -> Vec<u32> {
    rustix::fs::fstat(fd).map(|stat| lockers_of(stat.st_ino)).unwrap_or_default()
}

/// The same for a file that is only known by its inode.
pub fn lockers_of(inode: u64) -> Vec<u32> {
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    table.lines().filter_map(|line| locker(line, inode)).collect()
}

/// `1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF`. The device is not compared: layered file systems report another
/// one to fstat than to the lock table; a chance match of the inode costs a wrong name in a message, nothing else,
/// because whoever acts on a pid validates it first.
fn locker(line: &str, inode: u64) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (kind, pid, place) = (fields.next()?, fields.nth(2)?, fields.next()?);
    let same = place.rsplit(':').next()?.parse() == Ok(inode);
    (kind == "FLOCK" && same).then(|| pid.parse().ok()).flatten().filter(|pid| *pid > 0)
}

/// The user whose service manager a process runs under.
fn manager_of(pid: u32) -> Option<u32> {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    cgroup.split('/').find_map(|part| part.strip_prefix("user@")?.strip_suffix(".service")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_is_told_who_was_first() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("state");
        let first = DirectoryLock::take(&path).expect("taken");
        match DirectoryLock::take(&path) {
            Err(LockError::Held { holder, .. }) => assert_eq!(holder.pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        DirectoryLock::take(&path).expect("free again");
    }

    #[test]
    fn only_locks_on_this_inode_count() {
        assert_eq!(locker("1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF", 131), Some(4711));
        assert_eq!(locker("1: FLOCK  ADVISORY  WRITE 4711 08:01:1310 0 EOF", 131), None);
        assert_eq!(locker("1: POSIX  ADVISORY  WRITE 4711 08:01:131 0 EOF", 131), None);
        assert_eq!(locker("1: FLOCK  ADVISORY  WRITE 0 08:01:131 0 EOF", 131), None);
        assert_eq!(locker("garbage", 131), None);
    }
}
