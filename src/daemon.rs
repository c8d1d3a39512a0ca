//! Layer 5: the life of the process, as straight-line code: [`birth`], [`life`], [`death`].
//!
//! A plain thread holds the frame: it takes locks and sockets while there is one thread, builds the runtime, and after
//! it gives everything back in order, or hands it to a successor in the same process.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::config::{self, Config, Problems};
use crate::exit::Exit;
use crate::http::refusal;
use crate::journal::{Journal, LifeEvent};
use crate::meter::Meters;
use crate::model::id::InstanceName;
use crate::secret::SecretError;
use crate::service::deadline::Deadline;
use crate::service::directories::{Directories, Scope};
use crate::service::handshake::{Handshake, Supervisor};
use crate::service::lock::LockError;
use crate::service::notify::Notifier;
use crate::service::pidfile::PidFileError;
use crate::service::signals::Signals;
use crate::service::sockets::{BindError, Listener};
use crate::store::OpenError;

mod birth;
mod death;
mod hold;
mod life;
mod opening;
mod predecessor;
mod reload;

pub use hold::Hold;

/// How long the part of a stop may take that is not the configured grace. Longer than the tasks', the runtime's and the
/// store's share in it together: each tells who is late, which an end in the middle would cut off.
const STOP_MARGIN: Duration = Duration::from_secs(12);
/// Threads that run tasks. The work is waiting for others, and each thread costs memory.
const WORKERS: usize = 2;

/// What a gateway is started with.
#[derive(Debug)]
pub struct Start {
    /// What the supervisor said.
    pub handshake: Handshake,
    /// Which gateway.
    pub instance: InstanceName,
    /// Whose service manager runs it, or would.
    pub scope: Scope,
    /// Its places.
    pub directories: Directories,
    /// Whether to take over from a stand-alone gateway that runs.
    pub replace: bool,
    /// The log.
    pub journal: Journal,
    /// What is asked by signals.
    pub signals: Signals,
    /// Ends a stop that takes too long.
    pub deadline: Deadline,
}

/// Where a gateway can be reached, once it is ready.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Its listeners for HTTP.
    pub http: Vec<String>,
    /// Where its key is.
    pub key_source: String,
}

/// How a life ended that began well.
#[derive(Debug)]
pub enum Ending {
    /// Stopped as asked.
    Stopped,
    /// To be followed by a successor; stand-alone, what it needs to go on without a gap.
    Restart(Option<Hold>),
}

/// Why a life did not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("the configuration is wrong:\n{0}")]
    Config(Problems),
    /// A secret that is needed cannot be read.
    #[error(transparent)]
    Secret(SecretError),
    /// The directory is somebody else's.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Another stand-alone gateway runs.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// Another gateway runs and could not be replaced.
    #[error("cannot replace the running gateway: {0}")]
    Replace(String),
    /// An address cannot be had.
    #[error(transparent)]
    Bind(BindError),
    /// systemd passed no socket for HTTP, and its place is taken. Its socket unit may be back at the next start.
    #[error("systemd passed no socket for HTTP (has its socket unit failed?), and we cannot have it ourselves")]
    NotPassed(#[source] BindError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The store does not work.
    #[error("cannot take up the work of the last life")]
    Recover(#[from] crate::store::StoreError),
    /// The system refused something.
    #[error("cannot {step}")]
    System {
        /// What.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StartError {
    fn system(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { step, source }
    }

    /// The exit status that tells the supervisor whether another start can help.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Lock(LockError::Held { .. }) | Self::PidFile(PidFileError::Held { .. }) | Self::Replace(_) => {
                Exit::Held
            }
            Self::Secret(SecretError::Create { .. }) => Exit::Failure,
            Self::Config(_) | Self::Secret(_) | Self::Bind(_) => Exit::Config,
            Self::Store(error) if error.is_permanent() => Exit::Config,
            Self::NotPassed(_) | Self::Lock(_) | Self::PidFile(_) | Self::Store(_) => Exit::Failure,
            Self::Recover(_) | Self::System { .. } => Exit::Failure,
        }
    }
}

/// Runs a gateway from its birth to its death. `on_ready` is called when it serves.
pub fn run(mut start: Start, on_ready: impl FnOnce(&Ready)) -> Result<Ending, StartError> {
    let notifier = Notifier::new(start.handshake.supervisor);
    let notifier = notifier.map_err(StartError::system("start a thread"))?;
    let journal = start.journal.clone();
    journal.life(LifeEvent::Started, "gateway started", &[("VERSION", env!("CARGO_PKG_VERSION").into())]);
    let mut hold = Hold::default();
    let ended = live(&mut start, &mut hold, &notifier, on_ready);
    let stopped = |text: &str, exit: Exit| {
        journal.life(LifeEvent::Stopped, text, &[("STATUS", (exit as u8).to_string())]);
    };
    match ended {
        Ok(Ended::Stopped) => {
            stopped("gateway stopped", Exit::Ok);
            Ok(Ending::Stopped)
        }
        Ok(Ended::Restart) if notifier.is_silent() && start.signals.close() => {
            stopped("gateway stopped: a stop overtook the restart", Exit::Ok);
            Ok(Ending::Stopped)
        }
        Ok(Ended::Restart) => {
            stopped("gateway stopped, to be followed by its successor", Exit::Restart);
            Ok(Ending::Restart(notifier.is_silent().then_some(hold)))
        }
        Err(error) => {
            tell_failure(&error, &notifier, &journal);
            notifier.flush();
            if error.exit() != Exit::Failure {
                refusal::refuse_waiting(&hold.listeners().collect::<Vec<_>>(), &chain(&error));
            }
            Err(error)
        }
    }
}

/// Tells everybody who looks why there is no gateway.
fn tell_failure(error: &StartError, notifier: &Notifier, journal: &Journal) {
    let reason = chain(error);
    notifier.status(&format!("cannot start: {}", reason.replace('\n', "; ")));
    let fields = [("REASON", reason.clone()), ("STATUS", (error.exit() as u8).to_string())];
    journal.life(LifeEvent::StartFailed, &format!("gateway cannot start: {reason}"), &fields);
}

/// An error with all its causes, each once, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

enum Ended {
    Stopped,
    Restart,
}

fn live(
    start: &mut Start,
    hold: &mut Hold,
    notifier: &Notifier,
    on_ready: impl FnOnce(&Ready),
) -> Result<Ended, StartError> {
    let Start { handshake, instance, scope, directories, replace, journal, signals, deadline } = start;
    for refused in &handshake.passed.refused {
        tracing::error!(refused, "a passed descriptor is not ours");
    }
    hold.adopt_sockets(&mut handshake.passed);
    let config = config::load(directories).map_err(StartError::Config)?;
    journal.set_level(config.log_level);
    deadline.set(config.stop_grace + STOP_MARGIN);
    harden();
    let runtime = runtime().map_err(StartError::system("start the runtime"))?;
    if !runtime.block_on(predecessor::outlive(&directories.state, notifier, signals)) {
        return Ok(Ended::Stopped);
    }
    let lives = birth::remember_lives(handshake.passed.lives.take(), notifier, journal);
    let Some(mut lives) = runtime.block_on(birth::wait_our_turn(lives, notifier, journal, signals)) else {
        return Ok(Ended::Stopped);
    };
    birth::take_locks(hold, handshake, directories, instance, *replace)?;
    birth::bind(hold, &config, directories, instance, handshake)?;
    let frame = birth::Frame {
        instance: instance.clone(),
        scope: *scope,
        directories: directories.clone(),
        journal: journal.clone(),
        notifier: notifier.clone(),
        deadline: deadline.clone(),
    };
    let parts = runtime.block_on(birth::assemble(&frame, &config, handshake, hold))?;
    lives.ready();
    on_ready(&parts.ready);
    let (ended, owner) = runtime.block_on(life::live(frame, config, parts, signals));
    // What is late is dropped with the runtime; then nobody holds the store any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    death::close_store(owner);
    Ok(ended)
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()
}

/// What a process can do for its own safety, wherever it runs. None of it is needed to work.
fn harden() {
    // What people say is theirs: whatever we make is for our user alone.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
    // Agents run as the same user: they are not to read our memory or environment.
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(error = %e, "cannot keep other processes of this user from reading our memory");
    }
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Our units set both, and their seccomp filter knows no reason to change a limit.
    if limit != raised
        && let Err(e) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(error = %e, "cannot raise the limit of open files");
    }
}

/// Everything that a life works with.
struct Parts {
    api: crate::http::Api,
    tasks: crate::stop::Tasks,
    stop: crate::stop::Stop,
    owner: crate::store::StoreOwner,
    around: crate::agent::Surroundings,
    commands: tokio::sync::mpsc::Receiver<crate::http::control::Command>,
    http: tokio::sync::watch::Sender<crate::http::Config>,
    key: tokio::sync::watch::Sender<Arc<crate::secret::SecretString>>,
    retention: crate::gateway::Retention,
    webhooks: tokio::sync::watch::Sender<crate::http::webhooks::Webhooks>,
    ready: Ready,
}

/// Where the key is that clients show.
fn key_source(config: &Config, state: &std::path::Path) -> (crate::secret::Source, bool) {
    use crate::secret::{Source, has_credential};
    const CREDENTIAL: &str = "api-key";
    let made_by_us: PathBuf = state.join("api-key");
    match &config.key {
        Some(source) => (source.clone(), false),
        None if has_credential(CREDENTIAL) => (Source::Credential(CREDENTIAL.into()), false),
        None => (Source::File(made_by_us), true),
    }
}

fn read_key(config: &Config, state: &std::path::Path) -> Result<Arc<crate::secret::SecretString>, SecretError> {
    match key_source(config, state) {
        (crate::secret::Source::File(path), true) => crate::secret::read_or_create_key(&path).map(Arc::new),
        (source, _) => crate::secret::read(&source).map(Arc::new),
    }
}

/// For errors and status: where somebody listens.
fn places<'a>(listeners: impl Iterator<Item = &'a Listener>) -> Vec<String> {
    listeners.map(Listener::to_string).collect()
}

/// What is counted, from birth to death.
fn meters() -> Arc<Meters> {
    Arc::default()
}

/// Whether systemd is told how we are.
fn is_supervised(handshake: &Handshake) -> bool {
    handshake.supervisor == Supervisor::Systemd
}
