//! What a gateway holds for life: sockets and locks. An in-place restart hands all of it to its successor.
//!
//! Locks are given up by the kernel alone, when the last thread of the process is gone: one that hangs in a write to a
//! disk that does not answer outlives `main`, and whoever came meanwhile would write beside it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::service::lock::DirectoryLock;
use crate::service::pidfile::PidFile;
use crate::service::sockets::{self, Listener, Passed};

/// Sockets and locks. Dropped, it keeps the locks.
#[derive(Debug, Default)]
pub struct Hold {
    /// Passed by a supervisor.
    pub(super) passed: Vec<Listener>,
    /// Bound by us.
    pub(super) bound: Vec<Listener>,
    pub(super) control: Option<Listener>,
    pub(super) state: Option<DirectoryLock>,
    pub(super) pid_file: Option<PidFile>,
}

impl Hold {
    /// Takes over the sockets that were passed.
    pub(super) fn adopt_sockets(&mut self, passed: &mut Passed) {
        self.passed = std::mem::take(&mut passed.http);
        self.control = passed.control.take();
    }

    /// The listening sockets for HTTP.
    pub fn http(&self) -> impl Iterator<Item = &Listener> {
        self.passed.iter().chain(&self.bound)
    }

    /// All listening sockets.
    pub fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.http().chain(&self.control)
    }

    /// Leaves everything open for the program that is executed next in this process, and gives the variables that
    /// tell it what is what. To be called when nothing else runs any more.
    pub fn keep_for_successor(&self) -> io::Result<Vec<(&'static str, String)>> {
        let passed = self.passed.iter().map(|listener| (sockets::HTTP, listener.as_fd()));
        let bound = self.bound.iter().map(|listener| (sockets::KEPT_HTTP, listener.as_fd()));
        let http = passed.chain(bound);
        let control = self.control.iter().map(|listener| (sockets::CONTROL, listener.as_fd()));
        let state = self.state.iter().map(|lock| (sockets::STATE_LOCK, lock.as_fd()));
        let pid_file = self.pid_file.iter().map(|file| (sockets::PID_LOCK, file.as_fd()));
        let all: Vec<(&str, BorrowedFd<'_>)> = http.chain(control).chain(state).chain(pid_file).collect();
        sockets::keep_for_successor(&all)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        std::mem::forget(self.state.take());
        std::mem::forget(self.pid_file.take());
    }
}
