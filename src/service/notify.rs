//! What the supervisor is told: readiness, status, reload, stop, proof of life, descriptors to keep.
//!
//! Sending never fails the caller. The kernel queues the datagram or says no; a "no" is logged once and life goes on,
//! for a service that dies because nobody listened to its status would be absurd.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

use super::handshake::Supervisor;

/// Longest status line, in characters; `systemctl status` shows one line.
const STATUS_MAX: usize = 300;

/// Speaks to the supervisor, or to nobody when there is none. Clones speak with one voice.
#[derive(Debug, Clone)]
pub struct Notifier {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    listening: bool,
    failed_before: AtomicBool,
    status: Mutex<String>,
}

impl Notifier {
    /// A voice to this supervisor.
    pub fn new(supervisor: Supervisor) -> Self {
        let listening = supervisor == Supervisor::Systemd;
        Self { inner: Arc::new(Inner { listening, failed_before: AtomicBool::new(false), status: Mutex::default() }) }
    }

    /// Whether there is nobody to speak to.
    pub fn is_silent(&self) -> bool {
        !self.inner.listening
    }

    /// `READY=1`: what is configured is open and answers.
    pub fn ready(&self, status: &str) {
        let status = self.remember(status);
        self.send(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// `STATUS=`: one line for `systemctl status`.
    pub fn status(&self, status: &str) {
        let status = self.remember(status);
        self.send(&[NotifyState::Status(&status)]);
    }

    /// `RELOADING=1` with the time at which it began, as `Type=notify-reload` wants it; ends with [`Self::ready`].
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(e) => tracing::warn!(error = %e, "cannot read the clock, so systemd is not told of the reload"),
        }
    }

    /// `STOPPING=1`: from here on systemd counts the stop time-out.
    pub fn stopping(&self, status: &str) {
        let status = self.remember(status);
        self.send(&[NotifyState::Stopping, NotifyState::Status(&status)]);
    }

    /// `EXTEND_TIMEOUT_USEC=`: start or stop goes on for at least this long and is not stuck.
    pub fn extend(&self, by: Duration) {
        let micros = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
        self.send(&[NotifyState::ExtendTimeoutUsec(micros)]);
    }

    /// `WATCHDOG=1`: work got done since the last time.
    pub fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// `FDSTORE=1`: the supervisor keeps a copy of `fd` for our successor, under `name`.
    pub fn keep_descriptor(&self, name: &str, fd: BorrowedFd<'_>) {
        if self.inner.listening {
            let name = one_line(name, 255);
            let states = [NotifyState::FdStore, NotifyState::FdName(&name), NotifyState::Custom("FDPOLL=0")];
            self.note(sd_notify::notify_with_fds(&states, &[fd]));
        }
    }

    /// The status line that was last sent, or would have been.
    pub fn last_status(&self) -> String {
        self.inner.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, status: &str) -> String {
        let status = one_line(status, STATUS_MAX);
        self.inner.status.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&status);
        status
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        if self.inner.listening {
            self.note(send(states));
        }
    }

    fn note(&self, sent: io::Result<()>) {
        if let Err(e) = sent
            && !self.inner.failed_before.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(error = %e, "systemd cannot be notified; going on without (told once)");
        }
    }
}

/// Sends one datagram. sd-notify takes an abstract address (`@...`, as some container managers pass) for a file name;
/// libsystemd knows better.
fn send(states: &[NotifyState<'_>]) -> io::Result<()> {
    let is_abstract = std::env::var_os("NOTIFY_SOCKET").is_some_and(|s| s.as_encoded_bytes().starts_with(b"@"));
    if !is_abstract {
        return sd_notify::notify(states);
    }
    let lines: Vec<_> = states.iter().map(|state| libsystemd_state(&state.to_string())).collect();
    #[expect(clippy::disallowed_methods, reason = "the one place for abstract addresses")]
    libsystemd::daemon::notify(false, &lines).map(drop).map_err(io::Error::other)
}

fn libsystemd_state(line: &str) -> libsystemd::daemon::NotifyState {
    libsystemd::daemon::NotifyState::Other(line.to_owned())
}

/// Text for one assignment of the protocol. The crates do not escape: a line break in a status (which may quote an
/// agent or a platform) would become an assignment of its own, `STOPPING=1` say.
fn one_line(text: &str, max: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_can_never_become_a_second_assignment() {
        assert_eq!(one_line("bad\nSTOPPING=1\r\0x", 99), "bad STOPPING=1  x");
        assert_eq!(one_line("äöü", 2), "äö");
    }

    #[test]
    fn without_a_supervisor_the_status_is_still_known() {
        let notifier = Notifier::new(Supervisor::StandAlone);
        notifier.ready("serving");
        assert_eq!(notifier.last_status(), "serving");
    }
}
