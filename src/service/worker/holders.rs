//! Who has a worker's files open as a standard stream: its processes, whatever they did to get out of sight.
//!
//! A process that left its process group, or whose parent is gone, is still found by the spool that it writes to. That
//! is the kernel's own word, where a pid on disk would be hearsay.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal};

/// Processes that have a file below `directory` as stdin, stdout or stderr; never our own.
pub(super) fn of(directory: &Path) -> Vec<u32> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != std::process::id() && holds(*pid, &directory)).collect()
}

fn holds(pid: u32, directory: &Path) -> bool {
    let open = |stream: u8| fs::read_link(format!("/proc/{pid}/fd/{stream}"));
    (0..=2).any(|stream| open(stream).is_ok_and(|file| file.starts_with(directory)))
}

/// Kills them all, those too that come up meanwhile; how many there were.
pub(super) fn kill(directory: &Path) -> usize {
    /// A process that forks faster than we look would keep us for ever.
    const ROUNDS: usize = 20;
    let Ok(resolved) = directory.canonicalize() else { return 0 };
    let mut killed = 0;
    for _ in 0..ROUNDS {
        let found = of(&resolved);
        if found.is_empty() {
            break;
        }
        killed += found.into_iter().filter(|pid| kill_one(*pid, &resolved)).count();
    }
    killed
}

fn kill_one(pid: u32, directory: &Path) -> bool {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    let Ok(pidfd) = rustix::process::pidfd_open(number, PidfdFlags::empty()) else { return false };
    // Looked at again with the process in hand: the number may have gone to another one.
    holds(pid, directory) && rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
}
