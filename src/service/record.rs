//! What a stand-alone gateway writes about itself, and whether a record names a process that may be signalled.
//!
//! A record is for people and for `stop`. It never decides who may run: the lock on the file does. Pids are reused,
//! containers all start at 1, files outlive boots; so a record counts only if everything in it is true right now.

use serde::{Deserialize, Serialize};

use super::process::{self, Birth};

/// One line of JSON in `gateway.pid`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The gateway's pid, in its pid namespace.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// The boot it belongs to.
    pub boot_id: String,
    /// The inode of its pid namespace.
    pub pid_namespace: u64,
    /// Its instance name.
    pub instance: String,
    /// The systemd unit it was started in (a terminal's scope, say), for people.
    pub unit: Option<String>,
    /// Its version.
    pub version: String,
}

/// Why a record names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// Empty, torn, garbage, or somebody else's format.
    #[error("it is not a gateway's record")]
    Unreadable,
    /// The machine was booted since.
    #[error("it is from another boot")]
    OtherBoot,
    /// The pid means another process here.
    #[error("it is from another pid namespace")]
    OtherNamespace,
    /// The pid is our own: a predecessor had the same number.
    #[error("it names this very process")]
    Ourselves,
    /// Pid 1 is init, or the first process of a container: never to be signalled on a file's word.
    #[error("it names pid 1")]
    Init,
    /// There is no such process, or it is a mere thread.
    #[error("its process is gone")]
    Gone,
    /// The process is dead and waits to be reaped.
    #[error("its process is a zombie")]
    Zombie,
    /// Another process has the pid now.
    #[error("its pid was given to another process")]
    Recycled,
    /// The process lives but does not hold the lock, so it is no gateway of this directory.
    #[error("its process does not hold the lock")]
    NotHolder,
}

/// What a record is held against.
#[derive(Debug, Clone)]
pub struct Here {
    /// Our own pid.
    pub pid: u32,
    /// This boot.
    pub boot_id: Option<String>,
    /// Our pid namespace.
    pub pid_namespace: Option<u64>,
}

impl Here {
    /// This process, now.
    pub fn now() -> Self {
        Self { pid: std::process::id(), boot_id: process::boot_id(), pid_namespace: process::pid_namespace() }
    }
}

impl Record {
    /// The record of this process.
    pub fn of_this_process(instance: &str) -> Option<Self> {
        let here = Here::now();
        Some(Self {
            pid: here.pid,
            start_ticks: process::birth(here.pid)?.start_ticks,
            boot_id: here.boot_id?,
            pid_namespace: here.pid_namespace?,
            instance: instance.to_owned(),
            unit: process::unit(here.pid),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Reads a record from a file's content.
    pub fn parse(content: &[u8]) -> Result<Self, Stale> {
        serde_json::from_slice(content).map_err(|_| Stale::Unreadable)
    }

    /// Whether this record is true of a living process: the one with this birth, among those who hold the lock.
    pub fn judge(&self, here: &Here, birth: Option<Birth>, lockers: &[u32]) -> Result<(), Stale> {
        if Some(&self.boot_id) != here.boot_id.as_ref() {
            return Err(Stale::OtherBoot);
        }
        if Some(self.pid_namespace) != here.pid_namespace {
            return Err(Stale::OtherNamespace);
        }
        if self.pid == here.pid {
            return Err(Stale::Ourselves);
        }
        if self.pid <= 1 {
            return Err(Stale::Init);
        }
        match birth {
            None => Err(Stale::Gone),
            Some(birth) if birth.start_ticks != self.start_ticks => Err(Stale::Recycled),
            Some(Birth { zombie: true, .. }) => Err(Stale::Zombie),
            Some(_) if !lockers.contains(&self.pid) => Err(Stale::NotHolder),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            pid: 4711,
            start_ticks: 99,
            boot_id: "boot".into(),
            pid_namespace: 7,
            instance: "default".into(),
            unit: None,
            version: "0".into(),
        }
    }

    #[test]
    fn only_the_one_true_record_passes() {
        let here = Here { pid: 42, boot_id: Some("boot".into()), pid_namespace: Some(7) };
        let alive = Some(Birth { start_ticks: 99, zombie: false });
        let holder = [4711];
        let judge = |change: &dyn Fn(&mut Record), birth, lockers: &[u32]| {
            let mut record = record();
            change(&mut record);
            record.judge(&here, birth, lockers)
        };
        assert_eq!(judge(&|_| (), alive, &holder), Ok(()));
        assert_eq!(judge(&|r| r.boot_id = "other".into(), alive, &holder), Err(Stale::OtherBoot));
        assert_eq!(judge(&|r| r.pid_namespace = 8, alive, &holder), Err(Stale::OtherNamespace));
        assert_eq!(judge(&|r| r.pid = 42, alive, &[42]), Err(Stale::Ourselves));
        assert_eq!(judge(&|r| r.pid = 1, alive, &[1]), Err(Stale::Init));
        assert_eq!(judge(&|r| r.pid = 0, alive, &[0]), Err(Stale::Init));
        assert_eq!(judge(&|_| (), None, &holder), Err(Stale::Gone));
        assert_eq!(judge(&|r| r.start_ticks = 98, alive, &holder), Err(Stale::Recycled));
        let zombie = Some(Birth { start_ticks: 99, zombie: true });
        assert_eq!(judge(&|_| (), zombie, &holder), Err(Stale::Zombie));
        assert_eq!(judge(&|_| (), alive, &[]), Err(Stale::NotHolder));
        assert_eq!(judge(&|_| (), alive, &[4712]), Err(Stale::NotHolder));
    }

    #[test]
    fn other_formats_are_unreadable_and_ours_survives_the_file() {
        let hermes = br#"{"pid":4711,"kind":"hermes-gateway","argv":["hermes"],"start_time":99}"#;
        for foreign in [&b""[..], b"4711\n", b"{\"pid\":", b"\xff\x00", hermes] {
            assert_eq!(Record::parse(foreign), Err(Stale::Unreadable));
        }
        let written = serde_json::to_vec(&record()).expect("serialises");
        assert_eq!(Record::parse(&written), Ok(record()));
    }
}
