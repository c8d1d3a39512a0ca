//! Descriptors that were passed to us, and sockets that we bind ourselves.
//!
//! systemd passes descriptors by number and says what they are by name (`FileDescriptorName=`). The order is not
//! defined across several socket units, so only the name counts. sd-notify reads the names and makes every passed
//! descriptor close-on-exec; listenfd turns each into an owned, checked socket.

use std::collections::VecDeque;
use std::env;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use libsystemd::activation::IsType;
use listenfd::ListenFd;
use rustix::fs::Mode;

/// `FileDescriptorName=` of the HTTP sockets.
pub const HTTP: &str = "http";
/// HTTP sockets that an earlier image of this process bound; the configuration may have changed since.
pub const KEPT_HTTP: &str = "kept-http";
/// `FileDescriptorName=` of the control socket.
pub const CONTROL: &str = "control";
/// The memory of earlier lives, kept by the service manager.
pub const LIVES: &str = "lives";
/// The lock of the state directory, across an in-place restart.
pub const STATE_LOCK: &str = "state-lock";
/// The lock of the pid file, across an in-place restart.
pub const PID_LOCK: &str = "pid-lock";

/// A socket that accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// On an IP address.
    Tcp(TcpListener),
    /// On a path of the file system.
    Unix(UnixListener),
}

impl Listener {
    /// Readies it for the runtime: systemd passes blocking sockets unless the unit says `NonBlocking=yes`.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    /// A second descriptor of the same socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.try_clone()?),
            Self::Unix(listener) => Self::Unix(listener.try_clone()?),
        })
    }

    /// The path, if it is a socket of the file system.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(listener) => listener.local_addr().ok()?.as_pathname().map(Path::to_owned),
        }
    }

    /// The IP address, if it has one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address(), self.path()) {
            (Some(address), _) => write!(f, "{address}"),
            (_, Some(path)) => write!(f, "unix:{}", path.display()),
            _ => f.write_str("unnamed socket"),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// What was passed to us, by name. Whatever is not known here is closed, and named in `refused`.
#[derive(Debug, Default)]
pub struct Passed {
    /// Listening sockets for HTTP.
    pub http: Vec<Listener>,
    /// Listening sockets for HTTP that an earlier image of this process bound.
    pub kept_http: Vec<Listener>,
    /// The listening control socket.
    pub control: Option<Listener>,
    /// The memory of earlier lives.
    pub lives: Option<OwnedFd>,
    /// The locked state directory, after an in-place restart.
    pub state_lock: Option<OwnedFd>,
    /// The locked pid file, after an in-place restart.
    pub pid_lock: Option<OwnedFd>,
    /// What was passed and is not ours, and why.
    pub refused: Vec<String>,
}

impl Passed {
    /// Takes the passed descriptors and listenfd's variables out of the environment. Single-threaded use only.
    pub(super) fn take() -> io::Result<Self> {
        let names: VecDeque<(RawFd, String)> = sd_notify::listen_fds_with_names()?.collect();
        // Without LISTEN_PID, as systemfd passes a socket in development, sd-notify sees nothing and listenfd does.
        let unaddressed = env::var_os("LISTEN_PID").is_none() && env::var_os("LISTEN_FDS").is_some();
        let mut sockets = ListenFd::from_env();
        let mut passed = Self::default();
        for index in 0..sockets.len() {
            let name = names.get(index).map_or("unknown", |(_, name)| name.as_str());
            let (name, number) = match names.get(index) {
                None if !unaddressed => break,
                // One socket without a name can only be the one that every client wants.
                _ if name == "unknown" && sockets.len() == 1 => (HTTP, index),
                _ => (name, index),
            };
            if let Err(reason) = passed.adopt(&mut sockets, number, name) {
                passed.refused.push(format!("descriptor {} '{name}': {reason}", number + 3));
            }
        }
        Ok(passed)
    }

    fn adopt(&mut self, sockets: &mut ListenFd, index: usize, name: &str) -> Result<(), String> {
        match name {
            HTTP => self.http.push(listener(sockets, index)?),
            KEPT_HTTP => self.kept_http.push(listener(sockets, index)?),
            CONTROL => match listener(sockets, index)? {
                Listener::Tcp(_) => return Err("the control socket must be a Unix socket".into()),
                _ if self.control.is_some() => return Err("there is a control socket already".into()),
                unix => self.control = Some(unix),
            },
            LIVES => self.lives = Some(plain(sockets, index)?),
            STATE_LOCK => self.state_lock = Some(plain(sockets, index)?),
            PID_LOCK => self.pid_lock = Some(plain(sockets, index)?),
            _ => {
                drop(plain(sockets, index)?);
                return Err("no such name is known; see FileDescriptorName= in the socket unit".into());
            }
        }
        Ok(())
    }
}

fn listener(sockets: &mut ListenFd, index: usize) -> Result<Listener, String> {
    let text = |e: io::Error| e.to_string();
    let raw = index as RawFd + 3;
    let listener = if raw.is_unix() {
        sockets.take_unix_listener(index).map_err(text)?.map(Listener::Unix)
    } else {
        sockets.take_tcp_listener(index).map_err(text)?.map(Listener::Tcp)
    };
    let listener = listener.ok_or("already taken")?;
    match rustix::net::sockopt::socket_acceptconn(&listener) {
        Ok(true) => Ok(listener),
        Ok(false) => Err("it is not listening (a connected socket? Accept=yes is not for us)".into()),
        Err(e) => Err(e.to_string()),
    }
}

#[expect(unsafe_code, reason = "listenfd hands out what is no socket as a bare number")]
fn plain(sockets: &mut ListenFd, index: usize) -> Result<OwnedFd, String> {
    let raw = sockets.take_raw_fd(index).map_err(|e| e.to_string())?.ok_or("already taken")?;
    // SAFETY: the service manager (or our own execve) passed this descriptor to this process, sd-notify found it open,
    // and listenfd hands each number out once.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Why an address of ours could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("{place} is in use by another process: stop it or configure another address")]
    Busy {
        /// Address or path.
        place: String,
    },
    /// The system said no.
    #[error("cannot listen on {place}")]
    Refused {
        /// Address or path.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Listens on an IP address; fails rather than take another one.
pub fn bind_tcp(address: SocketAddr) -> Result<Listener, BindError> {
    match TcpListener::bind(address) {
        Ok(listener) => Ok(Listener::Tcp(listener)),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(BindError::Busy { place: address.to_string() }),
        Err(source) => Err(BindError::Refused { place: address.to_string(), source }),
    }
}

/// Listens on a Unix socket of mode 0600. What a dead process left at `path` is replaced; what somebody listens on,
/// systemd included, is not.
pub fn bind_unix(path: &Path) -> Result<Listener, BindError> {
    let place = || path.display().to_string();
    let refused = |source| BindError::Refused { place: place(), source };
    if path.symlink_metadata().is_ok() {
        // The kernel's table first: to connect to what systemd holds would start a gateway. But a name in it may be
        // another file of that name, in another container say; only then the file itself is tried.
        if is_listening(path).map_err(refused)? && UnixStream::connect(path).is_ok() {
            return Err(BindError::Busy { place: place() });
        }
        std::fs::remove_file(path).map_err(refused)?;
    }
    // The mode comes with the socket, so there is no moment in which others could connect.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = bound.map_err(refused)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(refused)?;
    Ok(Listener::Unix(listener))
}

/// Whether any process listens on the Unix socket at `path`, by the kernel's own table.
fn is_listening(path: &Path) -> io::Result<bool> {
    const ACCEPTS_CONNECTIONS: u32 = 0x10000; // __SO_ACCEPTCON
    let table = std::fs::read_to_string("/proc/net/unix")?;
    let wanted = path.as_os_str().to_string_lossy();
    Ok(table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let flags = fields.nth(3).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0);
        flags & ACCEPTS_CONNECTIONS != 0 && fields.nth(3) == Some(&wanted)
    }))
}

/// The descriptors of `keep`, moved to 3, 4, 5 ... and left open across `execve`, for a successor in this very process
/// that finds them by [`Passed`] as if systemd had passed them. To be called when nothing else runs any more.
#[expect(unsafe_code, reason = "descriptor numbers are the protocol here")]
pub fn keep_for_successor(keep: &[(&str, BorrowedFd<'_>)]) -> io::Result<Vec<(&'static str, String)>> {
    const FIRST: RawFd = 3;
    let last = FIRST + keep.len() as RawFd;
    // First out of the way, so that no target number is also a source.
    let moved: Vec<OwnedFd> =
        keep.iter().map(|(_, fd)| rustix::io::fcntl_dupfd_cloexec(fd, last)).collect::<Result<_, _>>()?;
    for (target, source) in (FIRST..last).zip(&moved) {
        // SAFETY: whatever had this number belongs to a process image that is about to be replaced, and is never used
        // or closed by its owner again: the caller execs or exits next.
        let mut place = unsafe { OwnedFd::from_raw_fd(target) };
        rustix::io::dup2(source, &mut place)?;
        debug_assert_eq!(place.as_raw_fd(), target);
        std::mem::forget(place);
    }
    let names: Vec<_> = keep.iter().map(|(name, _)| *name).collect();
    Ok(vec![
        ("LISTEN_PID", std::process::id().to_string()),
        ("LISTEN_FDS", keep.len().to_string()),
        ("LISTEN_FDNAMES", names.join(":")),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("control.sock");
        let first = bind_unix(&path).expect("bound");
        assert_eq!(path.metadata().expect("metadata").permissions().mode() & 0o777, 0o600);
        assert!(matches!(bind_unix(&path), Err(BindError::Busy { .. })));
        drop(first);
        assert!(path.exists(), "the dead socket's file is still there");
        bind_unix(&path).expect("bound over the dead socket");
    }

    #[test]
    fn a_busy_port_is_an_error_and_never_another_port() {
        let first = bind_tcp("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let address = first.address().expect("an address");
        let error = bind_tcp(address).expect_err("busy").to_string();
        assert!(error.contains(&address.to_string()) && error.contains("in use"), "{error}");
    }
}
