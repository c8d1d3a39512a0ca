//! Answers without a server: for connections that are not served, and for those that wait while we cannot start.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use super::error::Body;
use crate::service::sockets::Listener;

/// Most waiting connections that are answered; systemd's default backlog holds no more.
const MAX_PENDING: usize = 4096;
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
/// must therefore leave none behind, or "one attempt" becomes a storm.
pub fn refuse_waiting<'a>(listeners: impl Iterator<Item = &'a Listener>, why: &str) {
    let answer = unavailable(why);
    for listener in listeners {
        if listener.set_nonblocking().is_err() {
            continue;
        }
        let refused = (0..MAX_PENDING).take_while(|_| refuse_one(listener, &answer)).count();
        if refused > 0 {
            tracing::warn!(listener = %listener, refused, "answered waiting clients that the gateway cannot start");
        }
    }
}

/// Whether there was one.
fn refuse_one(listener: &Listener, answer: &str) -> bool {
    match listener {
        Listener::Tcp(tcp) => match tcp.accept() {
            Ok((stream, _)) => {
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(PATIENCE));
                let _ = stream.set_write_timeout(Some(PATIENCE));
                tell(&stream, answer);
                true
            }
            Err(e) => e.kind() == ErrorKind::ConnectionAborted,
        },
        Listener::Unix(unix) => match unix.accept() {
            Ok((stream, _)) => {
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(PATIENCE));
                let _ = stream.set_write_timeout(Some(PATIENCE));
                tell(&stream, answer);
                true
            }
            Err(e) => e.kind() == ErrorKind::ConnectionAborted,
        },
    }
}

/// The request is read first: closing with unread bytes resets the connection, and the answer is lost with it.
fn tell<S>(stream: &S, answer: &str)
where
    for<'s> &'s S: Read + Write,
{
    let mut request = [0; 16 * 1024];
    let _unread = { stream }.read(&mut request);
    let _unheard = { stream }.write_all(answer.as_bytes());
}
