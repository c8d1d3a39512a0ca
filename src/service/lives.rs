//! The memory of earlier lives: a few bytes in the service manager's descriptor store.
//!
//! It outlives SIGKILL, OOM and crashes of this process, ends with the unit, and cannot go stale on a disk. What it
//! holds only ever lengthens a wait (see [`crate::policy::lives`]); nothing in it can stop a start.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::time::ClockId;

use super::notify::Notifier;
use super::sockets::LIVES;
use crate::policy::lives::Life;

/// How many lives are remembered; more than the policy ever looks at.
const REMEMBERED: usize = 64;
/// Bytes of one life: two times in microseconds, little-endian; zero is "never".
const RECORD: usize = 16;

/// The lives before this one, and the place for this one.
#[derive(Debug)]
pub struct Lives {
    memory: OwnedFd,
    records: Vec<Life>,
}

impl Lives {
    /// Opens the memory that was passed on, or gives a fresh one to the service manager.
    ///
    /// # Errors
    /// When the kernel gives no memory; the start can go on without.
    pub fn recall(passed: Option<OwnedFd>, notifier: &Notifier) -> std::io::Result<Self> {
        if let Some(memory) = passed {
            let records = load(&memory);
            return Ok(Self { memory, records });
        }
        let memory = rustix::fs::memfd_create("hermes-gateway-lives", MemfdFlags::CLOEXEC)?;
        notifier.keep_descriptor(LIVES, memory.as_fd());
        Ok(Self { memory, records: Vec::new() })
    }

    /// The lives before this one, oldest first.
    pub fn predecessors(&self) -> &[Life] {
        &self.records
    }

    /// Notes that this life begins what could kill it.
    pub fn begin(&mut self, now: Duration) {
        self.records.push(Life { began: now, ready: None });
        let surplus = self.records.len().saturating_sub(REMEMBERED);
        self.records.drain(..surplus);
        self.write();
    }

    /// Notes that this life became ready.
    pub fn ready(&mut self, now: Duration) {
        if let Some(life) = self.records.last_mut() {
            life.ready = Some(now);
            self.write();
        }
    }

    fn write(&self) {
        let bytes: Vec<u8> = self.records.iter().flat_map(encode).collect();
        if let Err(e) = rustix::io::pwrite(&self.memory, &bytes, 0) {
            tracing::warn!(error = %e, "cannot note this start for the next one");
        }
    }
}

/// Time since boot, the clock of all lives.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn load(memory: impl AsFd) -> Vec<Life> {
    let mut bytes = [0u8; REMEMBERED * RECORD];
    let length = rustix::io::pread(memory, &mut bytes, 0).unwrap_or(0);
    bytes[..length].chunks_exact(RECORD).map_while(decode).collect()
}

fn encode(life: &Life) -> [u8; RECORD] {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&micros(life.began).to_le_bytes());
    record[8..].copy_from_slice(&life.ready.map_or(0, micros).to_le_bytes());
    record
}

fn decode(record: &[u8]) -> Option<Life> {
    let time = |bytes: &[u8]| Some(Duration::from_micros(u64::from_le_bytes(bytes.try_into().ok()?)));
    let (began, ready) = (time(&record[..8])?, time(&record[8..])?);
    (!began.is_zero()).then_some(Life { began, ready: (!ready.is_zero()).then_some(ready) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::handshake::Supervisor;

    #[test]
    fn what_one_life_notes_the_next_one_reads() {
        let notifier = Notifier::new(Supervisor::StandAlone).expect("no thread is needed");
        let mut first = Lives::recall(None, &notifier).expect("memory");
        assert!(first.predecessors().is_empty());
        first.begin(Duration::from_secs(1));
        first.ready(Duration::from_secs(2));
        first.begin(Duration::from_secs(3));
        let copy = first.memory.try_clone().expect("a copy, as the service manager keeps it");
        let second = Lives::recall(Some(copy), &notifier).expect("memory");
        let expected = [
            Life { began: Duration::from_secs(1), ready: Some(Duration::from_secs(2)) },
            Life { began: Duration::from_secs(3), ready: None },
        ];
        assert_eq!(second.predecessors(), expected);
    }

    #[test]
    fn it_forgets_the_oldest_and_survives_garbage() {
        let notifier = Notifier::new(Supervisor::StandAlone).expect("no thread is needed");
        let mut lives = Lives::recall(None, &notifier).expect("memory");
        (1..=200).for_each(|n| lives.begin(Duration::from_secs(n)));
        assert_eq!(load(&lives.memory).len(), REMEMBERED);
        assert_eq!(load(&lives.memory).last().map(|l| l.began), Some(Duration::from_secs(200)));
        rustix::io::pwrite(&lives.memory, &[0u8; 8], 0).expect("write");
        assert!(load(&lives.memory).len() <= REMEMBERED);
    }
}
