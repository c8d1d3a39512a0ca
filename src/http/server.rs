//! Listening and serving: one accept loop for each listener, one task for each connection.
//!
//! A permit is taken before a connection is accepted, so what is too much waits in the kernel's queue instead of being
//! refused. The listener is never unlinked or shut down: it may be systemd's, and the successor accepts from it.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::{Config, refusal};
use crate::meter::Meters;
use crate::service::sockets;
use crate::stop::{Stop, Tasks};

mod connection;

/// The pause when the process is out of descriptors or memory: accepting again at once would spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// How long a finished or refused connection may take to swallow its last words.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Who may speak on a listener, beyond what the router asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// Anybody who can connect.
    Any,
    /// Processes of our own user and of root, by the kernel's word.
    SameUserOrRoot,
}

/// What a listener serves.
#[derive(Debug, Clone)]
pub struct Service {
    /// What answers.
    pub router: Router,
    /// Who may speak.
    pub peers: Peers,
    /// The bounds, as they are now.
    pub config: watch::Receiver<Config>,
    /// What is counted.
    pub meters: Arc<Meters>,
    /// Where connections run.
    pub tasks: Tasks,
    /// When they end.
    pub stop: Stop,
}

/// Asks an accept loop for a sign of life; it answers between two connections.
pub type Probe = mpsc::Sender<oneshot::Sender<()>>;

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Service {
    /// Accepts on `listener` until the soft stop.
    ///
    /// # Errors
    /// When the runtime cannot take the socket over.
    pub fn listen(self, listener: sockets::Listener) -> io::Result<Probe> {
        let name = listener.to_string();
        listener.set_nonblocking()?;
        let listener = match listener {
            sockets::Listener::Tcp(tcp) => Listener::Tcp(TcpListener::from_std(tcp)?),
            sockets::Listener::Unix(unix) => Listener::Unix(UnixListener::from_std(unix)?),
        };
        let (probe, probes) = mpsc::channel(1);
        let tasks = self.tasks.clone();
        tasks.spawn("accept", self.accept(listener, name, probes));
        Ok(probe)
    }

    async fn accept(self, listener: Listener, name: String, mut probes: mpsc::Receiver<oneshot::Sender<()>>) {
        let places = Arc::new(Semaphore::new(self.config.borrow().max_connections));
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.softened() => return,
                Some(reply) = probes.recv() => {
                    let _watchdog_gave_up = reply.send(());
                    continue;
                }
                accepted = self.next(&listener, &places) => accepted,
            };
            if let Err(error) = accepted {
                match Errno::from_io_error(&error) {
                    // The peer was gone before we looked.
                    Some(Errno::CONNABORTED | Errno::INTR | Errno::AGAIN | Errno::PROTO) => {}
                    _ => {
                        tracing::error!(listener = name, error = %error, "cannot accept connections; trying again");
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    }
                }
            }
        }
    }

    async fn next(&self, listener: &Listener, places: &Arc<Semaphore>) -> io::Result<()> {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        match listener {
            Listener::Tcp(tcp) => {
                let (stream, _) = tcp.accept().await?;
                // Small pieces of a stream are to arrive when they are said.
                stream.set_nodelay(true)?;
                self.serve(stream, place);
            }
            Listener::Unix(unix) => {
                let (stream, _) = unix.accept().await?;
                if self.admits(&stream) {
                    self.serve(stream, place);
                } else {
                    self.tasks.spawn("refusal", turn_away(stream, place));
                }
            }
        }
        Ok(())
    }

    fn admits(&self, stream: &UnixStream) -> bool {
        if self.peers == Peers::Any {
            return true;
        }
        let ours = rustix::process::geteuid().as_raw();
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == ours || peer.uid() == 0 => true,
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused a stranger at the control socket");
                false
            }
            Err(error) => {
                tracing::warn!(error = %error, "refused a peer at the control socket that the kernel does not know");
                false
            }
        }
    }

    fn serve<S>(&self, stream: S, place: OwnedSemaphorePermit)
    where
        S: AsFd + AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let header_timeout = self.config.borrow().header_timeout;
        let serving = connection::serve(stream, self.router.clone(), header_timeout, self.stop.clone());
        let meters = self.meters.clone();
        self.tasks.spawn("connection", async move {
            meters.http_connections.inc();
            serving.await;
            meters.http_connections.dec();
            drop(place);
        });
    }
}

async fn turn_away(mut stream: UnixStream, _place: OwnedSemaphorePermit) {
    say(&mut stream, &refusal::stranger()).await;
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), answer: &str) {
    let words = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    // A peer that is gone or does not read has chosen not to know.
    let _unheard = tokio::time::timeout(LAST_WORDS, words).await;
}
