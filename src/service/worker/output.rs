//! Reading along in a worker's spool.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::FallocateFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use super::Worker;
use super::descriptors::waitable;
use super::place::Place;

/// Most that is read at once, in bytes.
const CHUNK: usize = 64 * 1024;
/// Between two looks at the spool while the kernel tells of each write.
const SLOW_LOOK: Duration = Duration::from_secs(5);
/// Between two looks where it does not: a user may have used up the share of inotify instances (128 in most places).
const LOOK: Duration = Duration::from_millis(100);

/// What a worker writes to stdout, from some offset on. Several may read the same; each has its own place.
#[derive(Debug)]
pub struct Output {
    worker: Worker,
    offset: u64,
    spool: Option<Spool>,
}

#[derive(Debug)]
struct Spool {
    file: File,
    writes: Option<Writes>,
}

impl Output {
    pub(super) fn new(worker: Worker, offset: u64) -> Self {
        Self { worker, offset, spool: None }
    }

    /// The next bytes, as soon as there are some; `None` once the worker has ended and all is read. A call that is
    /// dropped has taken nothing.
    ///
    /// # Errors
    /// When the spool cannot be read, or was cleared away by [`Worker::stop`].
    pub async fn next_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            self.worker.hold_to_its_output().await;
            // Asked before the spool is read: what is written before an end is there once the end is known.
            let ended = self.worker.end_if_known().is_some();
            let spool = match &mut self.spool {
                Some(spool) => spool,
                empty => empty.insert(Spool::open(self.worker.place())?),
            };
            let mut chunk = vec![0; CHUNK];
            let length = spool.file.read_at(&mut chunk, self.offset)?;
            if length > 0 {
                chunk.truncate(length);
                self.offset += length as u64;
                self.worker.has_read(self.offset);
                return Ok(Some(chunk));
            }
            if ended {
                return Ok(None);
            }
            tokio::select! {
                () = spool.written() => {}
                _ = self.worker.ended() => {}
            }
        }
    }

    /// Where the next chunk begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Gives back the disk under everything before `up_to`; it reads as zeros from then on. Offsets stay.
    ///
    /// # Errors
    /// When the spool is gone, or its file system knows no holes.
    pub fn forget(&self, up_to: u64) -> io::Result<()> {
        if up_to == 0 {
            return Ok(());
        }
        let file = File::options().write(true).open(self.worker.place().out())?;
        rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, up_to)?;
        Ok(())
    }
}

impl Spool {
    fn open(place: &Place) -> io::Result<Self> {
        let file = File::open(place.out())?;
        let writes = Writes::watch(place).inspect_err(|e| {
            tracing::debug!(error = %e, "the kernel does not tell of writes; looking again and again");
        });
        Ok(Self { file, writes: writes.ok() })
    }

    /// Waits until there may be more.
    async fn written(&self) {
        let Some(writes) = &self.writes else { return tokio::time::sleep(LOOK).await };
        // A write that the kernel does not tell of (a network file system) is found late, but it is found.
        let _late = tokio::time::timeout(SLOW_LOOK, writes.next()).await;
    }
}

/// The kernel's word of each write to a spool.
struct Writes(AsyncFd<OwnedFd>);

impl fmt::Debug for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writes")
    }
}

impl Writes {
    fn watch(place: &Place) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&inotify, place.out(), WatchFlags::MODIFY)?;
        Ok(Self(waitable(inotify)?))
    }

    async fn next(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return };
            // Only that there was a write counts, so the events are thrown away, all of them.
            let mut events = [0u8; 4096];
            match ready.try_io(|inotify| Ok(rustix::io::read(inotify, &mut events)?)) {
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Ok(_) => return,
                Err(_nothing_new) => {}
            }
        }
    }
}
