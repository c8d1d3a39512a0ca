//! Signals, from the first line of `main` to the last, on a thread that no wedged runtime can hold up.
//!
//! SIGTERM and SIGINT ask for a stop, a second one for a hard stop, a third ends the process on the spot. SIGHUP asks
//! for a reload. What arrives before anybody can act on it is kept, by the kernel while there are no handlers ([`mask`]).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook::iterator::{Handle, SignalsInfo};
use signal_hook::low_level::siginfo::Origin;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::deadline::Deadline;
use super::{mask, process};

/// A signal and who sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// What is asked.
    pub request: Request,
    /// The sender, for the log.
    pub sender: Sender,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Stop; the signal's name.
    Stop(&'static str),
    /// Reload the configuration.
    Reload,
}

/// Who sent a signal, as far as the kernel tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sender {
    /// Its pid and user id; `None` for the kernel and for a terminal's Ctrl-C.
    pub process: Option<(i32, u32)>,
    /// Its command name, if it still lived when we looked.
    pub command: Option<String>,
    /// Its systemd unit, if it runs in one.
    pub unit: Option<String>,
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((pid, uid)) = self.process else { return f.write_str("the kernel or a terminal") };
        write!(f, "pid {pid}")?;
        if let Some(command) = &self.command {
            write!(f, " ({command})")?;
        }
        write!(f, ", uid {uid}")?;
        if let Some(unit) = &self.unit {
            write!(f, ", in {unit}")?;
        }
        Ok(())
    }
}

/// The signals of the process, in their order.
#[derive(Debug)]
pub struct Signals {
    received: UnboundedReceiver<Received>,
    handle: Handle,
    thread: Option<JoinHandle<SignalsInfo<WithOrigin>>>,
    /// From now on nobody hears a stop that reaches a handler.
    unheard: Arc<AtomicBool>,
}

impl Signals {
    /// The next signal.
    pub async fn next(&mut self) -> Received {
        match self.received.recv().await {
            Some(received) => received,
            // The thread has ended, so there will be no more.
            None => std::future::pending().await,
        }
    }

    /// Ends the thread, and says whether a stop was asked for and not yet heard. What comes later is held for the
    /// program that is executed next in this thread.
    pub fn close(&mut self) -> bool {
        mask::hold();
        self.handle.close();
        let signals = self.thread.take().map(JoinHandle::join);
        // A thread that was left behind stuck can still be given a signal. The order matters: what it is given after
        // this line ends the process, as a stop should; what came before is found below.
        self.unheard.store(true, Ordering::SeqCst);
        if let Some(Ok(mut signals)) = signals
            && signals.pending().any(|origin| matches!(request(&origin), Request::Stop(_)))
        {
            return true;
        }
        std::iter::from_fn(|| self.received.try_recv().ok()).any(|r| matches!(r.request, Request::Stop(_)))
    }
}

/// Installs the handlers, lets signals come that were held, and starts the thread. A stop that takes longer than
/// `deadline` ends the process. To be called while there is one thread: others keep their masks.
///
/// # Errors
/// When the kernel refuses a handler or a thread.
pub fn listen(deadline: Deadline) -> io::Result<Signals> {
    let mut signals = SignalsInfo::<WithOrigin>::new([SIGTERM, SIGINT, SIGHUP])?;
    // Unbounded, but fed by at most three pending signals at a time, and emptied by the third stop.
    let (send, receive) = mpsc::unbounded_channel();
    let handle = signals.handle();
    let unheard = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register_conditional_default(signal, unheard.clone())?;
    }
    // Not in the thread alone: whatever is started from any other is to inherit a mask that holds nothing.
    mask::release();
    let watch = move || {
        let mut stops = 0;
        for origin in signals.forever() {
            let request = request(&origin);
            if let Request::Stop(_) = request {
                stops += 1;
                // Counted from here, not from where the runtime gets round to it.
                deadline.arm(0);
            }
            if stops >= 3 || send.send(Received { request, sender: sender(&origin) }).is_err() {
                end_now();
            }
        }
        signals
    };
    let thread = thread::Builder::new().name("signals".into()).spawn(watch)?;
    Ok(Signals { received: receive, handle, thread: Some(thread), unheard })
}

#[expect(clippy::exit, reason = "the third signal: whoever sends it wants an end, not a story")]
fn end_now() -> ! {
    std::process::exit(128 + SIGTERM)
}

fn request(origin: &Origin) -> Request {
    match origin.signal {
        SIGHUP => Request::Reload,
        SIGINT => Request::Stop("SIGINT"),
        _ => Request::Stop("SIGTERM"),
    }
}

fn sender(origin: &Origin) -> Sender {
    let process = origin.process.filter(|p| p.pid > 0).map(|p| (p.pid, p.uid));
    let pid = process.and_then(|(pid, _)| u32::try_from(pid).ok());
    Sender { process, command: pid.and_then(process::command), unit: pid.and_then(process::unit) }
}
