//! What the supervisor is told: readiness, status, reload, stop, proof of life, descriptors to keep.
//!
//! Telling never fails the caller and never makes it wait: a thread sends, in order. The kernel's queue may be full
//! because the supervisor itself is stuck; a gateway that stops with it would be absurd. A "no" is logged once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

use super::handshake::Supervisor;

/// Longest status line, in characters; `systemctl status` shows one line.
const STATUS_MAX: usize = 300;
/// Datagrams that may wait for a supervisor that does not read; what comes then is dropped, and said once.
const QUEUE: usize = 64;
/// How long the end of the process waits for what is queued.
const FLUSH: Duration = Duration::from_secs(1);

/// Speaks to the supervisor, or to nobody when there is none. Clones speak with one voice.
#[derive(Debug, Clone)]
pub struct Notifier {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `None` if there is nobody to speak to.
    queue: Option<SyncSender<Message>>,
    dropped_before: AtomicBool,
    status: Mutex<String>,
}

#[derive(Debug)]
enum Message {
    /// The assignments of one datagram, and a descriptor to go with it.
    Datagram(Vec<String>, Option<OwnedFd>),
    /// Say when everything before is sent.
    Flush(mpsc::Sender<()>),
}

impl Notifier {
    /// A voice to this supervisor.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn new(supervisor: Supervisor) -> io::Result<Self> {
        let queue = match supervisor {
            Supervisor::StandAlone => None,
            Supervisor::Systemd => {
                let (send, receive) = mpsc::sync_channel(QUEUE);
                std::thread::Builder::new().name("notify".into()).spawn(move || send_all(&receive))?;
                Some(send)
            }
        };
        let (dropped_before, status) = (AtomicBool::new(false), Mutex::default());
        Ok(Self { inner: Arc::new(Inner { queue, dropped_before, status }) })
    }

    /// Waits until what was told so far is sent, but not for ever.
    pub fn flush(&self) {
        let (done, sent) = mpsc::channel();
        if self.inner.queue.as_ref().is_some_and(|queue| queue.try_send(Message::Flush(done)).is_ok()) {
            let _in_time = sent.recv_timeout(FLUSH);
        }
    }

    /// Whether there is nobody to speak to.
    pub fn is_silent(&self) -> bool {
        self.inner.queue.is_none()
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
        let copy = match fd.try_clone_to_owned() {
            Ok(copy) => copy,
            Err(e) => return tracing::warn!(error = %e, "systemd cannot be given a descriptor to keep"),
        };
        let name = one_line(name, 255);
        self.queue(&[NotifyState::FdStore, NotifyState::FdName(&name), NotifyState::Custom("FDPOLL=0")], Some(copy));
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
        self.queue(states, None);
    }

    fn queue(&self, states: &[NotifyState<'_>], fd: Option<OwnedFd>) {
        let Some(queue) = &self.inner.queue else { return };
        let message = Message::Datagram(states.iter().map(ToString::to_string).collect(), fd);
        if queue.try_send(message).is_err() && !self.inner.dropped_before.swap(true, Ordering::Relaxed) {
            tracing::warn!("systemd does not read what it is told; going on without (told once)");
        }
    }
}

fn send_all(queue: &Receiver<Message>) {
    let mut failed_before = false;
    for message in queue {
        match message {
            Message::Flush(done) => {
                let _gave_up = done.send(());
            }
            Message::Datagram(lines, fd) => {
                if let Err(e) = send(&lines, fd.as_ref())
                    && !std::mem::replace(&mut failed_before, true)
                {
                    tracing::warn!(error = %e, "systemd cannot be notified; going on without (told once)");
                }
            }
        }
    }
}

/// Sends one datagram. sd-notify takes an abstract address (`@...`, as some container managers pass) for a file name;
/// libsystemd knows better.
fn send(lines: &[String], fd: Option<&OwnedFd>) -> io::Result<()> {
    let is_abstract = std::env::var_os("NOTIFY_SOCKET").is_some_and(|s| s.as_encoded_bytes().starts_with(b"@"));
    let states: Vec<_> = lines.iter().map(|line| NotifyState::Custom(line)).collect();
    match fd {
        Some(fd) if !is_abstract => sd_notify::notify_with_fds(&states, &[fd.as_fd()]),
        // Container managers keep no descriptors.
        Some(_) => Ok(()),
        None if !is_abstract => sd_notify::notify(&states),
        None => {
            let states: Vec<_> = lines.iter().cloned().map(libsystemd::daemon::NotifyState::Other).collect();
            #[expect(clippy::disallowed_methods, reason = "the one place for abstract addresses")]
            libsystemd::daemon::notify(false, &states).map(drop).map_err(io::Error::other)
        }
    }
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
        let notifier = Notifier::new(Supervisor::StandAlone).expect("no thread is needed");
        notifier.ready("serving");
        assert_eq!(notifier.last_status(), "serving");
    }
}
