//! Answers without a server: for connections that are not served, and for those that wait while we cannot start.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::error::Body;
use crate::service::sockets::Listener;

/// Most connections that are answered on one listener before the other has its turn: our units' backlog.
const MAX_PENDING: u32 = 4096;
/// Nobody for this long: nobody waits any more.
const QUIET: Duration = Duration::from_secs(1);
/// Longest stay for clients that keep coming; below the start time-out of our units.
const LONGEST: Duration = Duration::from_secs(20);
/// How long one waiting client may take to hand over its request and take its answer.
const PATIENCE: Duration = Duration::from_millis(100);

/// For a client whose request does not arrive.
pub fn too_slow() -> String {
    raw(
        "408 Request Timeout",
        &Body::new("invalid_request_error", "request_timeout", "the request did not arrive in time"),
    )
}

/// For a stranger at the control socket.
pub fn stranger() -> String {
    let message = "the control socket answers its own user and root only";
    raw("403 Forbidden", &Body::new("permission_error", "not_your_gateway", message))
}

/// For a client that waits while the gateway cannot start.
fn unavailable(why: &str) -> String {
    raw("503 Service Unavailable", &Body::new("server_error", "gateway_cannot_start", why))
}

fn raw(status: &str, body: &Body) -> String {
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// Answers everybody who waits on `listeners` with the reason why we cannot start.
///
/// systemd starts the service again for as long as connections wait on its socket. A service that gives up for good
/// must therefore leave none behind, or "one attempt" becomes a storm. If somebody waits, others may follow, who would
/// each cost a start: so it stays while they come, but not for ever. If nobody waits, it does not stay at all.
pub fn refuse_waiting(listeners: &[&Listener], why: &str) {
    let answer = unavailable(why);
    let until = Instant::now() + LONGEST;
    let (mut refused, mut patience) = (0_u32, Duration::ZERO);
    while Instant::now() < until && someone_waits(listeners, patience) {
        refused += listeners.iter().map(|listener| refuse_all(listener, &answer)).sum::<u32>();
        patience = QUIET;
    }
    if refused > 0 {
        tracing::warn!(refused, "answered waiting clients that the gateway cannot start");
    }
}

/// Whether a connection waits, now or within `patience`.
fn someone_waits(listeners: &[&Listener], patience: Duration) -> bool {
    let mut polled: Vec<_> = listeners.iter().map(|listener| PollFd::new(*listener, PollFlags::IN)).collect();
    let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
    rustix::event::poll(&mut polled, Some(&patience)).is_ok_and(|waiting| waiting > 0)
}

/// Answers all who wait on one listener; how many.
fn refuse_all(listener: &Listener, answer: &str) -> u32 {
    let mut refused = 0;
    while listener.set_nonblocking().is_ok() && refused < MAX_PENDING {
        let told = match listener {
            Listener::Tcp(tcp) => tcp.accept().map(|(stream, _)| tell(stream.into(), answer)),
            Listener::Unix(unix) => unix.accept().map(|(stream, _)| tell(stream.into(), answer)),
        };
        match told {
            Ok(()) => refused += 1,
            Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
            Err(_) => break,
        }
    }
    refused
}

/// The request is read first: closing with unread bytes resets the connection, and the answer is lost with it. The
/// stream is taken for a Unix one, for what is done with it is the same for both kinds.
fn tell(stream: OwnedFd, answer: &str) {
    let mut stream = UnixStream::from(stream);
    let set = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(PATIENCE)));
    if set.and_then(|()| stream.set_write_timeout(Some(PATIENCE))).is_err() {
        return;
    }
    let _unread = stream.read(&mut [0; 16 * 1024]);
    let _unheard = stream.write_all(answer.as_bytes());
}
