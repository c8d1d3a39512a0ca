//! The way to a worker's stdin: whole messages, one after the other, and never a hang.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::descriptors::waitable;
use super::place::Place;

/// Longest time without a byte taken, before a worker counts as deaf.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Our end of a worker's stdin.
#[derive(Debug, Default)]
pub(super) struct Speech {
    fifo: Option<AsyncFd<OwnedFd>>,
    /// What is left of a message that was begun: half a message would spoil the next one, so it is ended first.
    begun: Vec<u8>,
}

impl Speech {
    /// Writes `bytes`. If this future is dropped midway, the next call first ends what was begun.
    pub(super) async fn say(&mut self, place: &Place, bytes: &[u8]) -> io::Result<()> {
        if self.fifo.is_none() {
            self.fifo = Some(open(place)?);
        }
        let Some(fifo) = &self.fifo else { return Ok(()) };
        drain(fifo, &mut self.begun).await?;
        let written = write(fifo, bytes).await?;
        self.begun.extend_from_slice(&bytes[written..]);
        drain(fifo, &mut self.begun).await
    }
}

async fn drain(fifo: &AsyncFd<OwnedFd>, begun: &mut Vec<u8>) -> io::Result<()> {
    while !begun.is_empty() {
        let written = write(fifo, begun).await?;
        begun.drain(..written);
    }
    Ok(())
}

/// Writes what the pipe takes, when it takes some. Nothing was written if the future is dropped.
async fn write(fifo: &AsyncFd<OwnedFd>, bytes: &[u8]) -> io::Result<usize> {
    let written = async {
        loop {
            let mut ready = fifo.writable().await?;
            match ready.try_io(|fifo| Ok(rustix::io::write(fifo, bytes)?)) {
                Ok(result) => return result,
                Err(_not_yet) => {}
            }
        }
    };
    let deaf = |_| io::Error::new(ErrorKind::TimedOut, format!("it has read nothing for {PATIENCE:?}"));
    tokio::time::timeout(PATIENCE, written).await.map_err(deaf)?
}

fn open(place: &Place) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fifo = rustix::fs::open(place.input(), flags, Mode::empty()).map_err(|e| match e {
        // No process has it open for reading.
        Errno::NXIO => io::Error::new(ErrorKind::BrokenPipe, "it has closed its input"),
        Errno::NOENT => io::Error::new(ErrorKind::BrokenPipe, "it is gone"),
        other => other.into(),
    })?;
    match FileType::from_raw_mode(rustix::fs::fstat(&fifo)?.st_mode) {
        FileType::Fifo => waitable(fifo),
        _ => Err(io::Error::new(ErrorKind::Unsupported, "its input was all given at its start")),
    }
}
