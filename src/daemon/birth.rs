//! Birth: wait if the last starts went nowhere, take locks, bind, open the store, serve, say READY.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Hold, Parts, Ready, StartError, is_supervised, key_source, meters, opening, places, read_key};
use crate::agent::{Agents, Surroundings, worker_of};
use crate::config::{Config, Listen};
use crate::gateway::{Gateway, Outbox, PARKED_NOTICE, Retention};
use crate::http::health::{Identity, Vitals};
use crate::http::server::{Peers, Probe, Service};
use crate::http::webhooks::Webhooks;
use crate::http::{self, Api};
use crate::journal::{Journal, LifeEvent};
use crate::model::id::InstanceName;
use crate::model::time::in_words;
use crate::platform::Platforms;
use crate::policy;
use crate::service::deadline::Deadline;
use crate::service::directories::{Directories, Scope};
use crate::service::handshake::{Handshake, Supervisor};
use crate::service::lives::{Lives, since_boot};
use crate::service::lock::{self, DirectoryLock};
use crate::service::notify::Notifier;
use crate::service::pidfile::{LiveGateway, PidFile, PidFileError};
use crate::service::record::Record;
use crate::service::signals::{Request, Signals};
use crate::service::sockets::{BindError, Listener};
use crate::service::worker::Workers;
use crate::service::{process, sockets, watchdog};
use crate::stop::{Stop, Tasks};
use crate::store::{self, OpenError, Store, StoreError, Unfinished};

/// Where a gateway listens when neither systemd nor the configuration says: Hermes' API port, so its clients find it.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8642";
/// How long a gateway that is replaced may drain.
const REPLACE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// Commands that may wait; each caller waits for its own anyway.
const COMMAND_QUEUE: usize = 8;
/// Where the workers' output is, below the state directory.
const SPOOLS: &str = "workers";
/// How long the agents of the last life are looked for.
const SWEEP_PATIENCE: Duration = Duration::from_secs(10);
/// How often a waiting start tells systemd that it is not stuck.
pub const EXTEND_EVERY: Duration = Duration::from_secs(5);

/// What surrounds the parts for the whole life.
pub struct Frame {
    pub instance: InstanceName,
    pub scope: Scope,
    pub directories: Directories,
    pub journal: Journal,
    pub notifier: Notifier,
    pub deadline: Deadline,
}

/// The memory of earlier lives, where there is one.
pub struct Memory(Option<Lives>);

impl Memory {
    /// Notes that this life serves.
    pub fn ready(&mut self) {
        if let Some(lives) = &mut self.0 {
            lives.ready(since_boot());
        }
    }
}

/// Recalls earlier lives. Stand-alone nobody starts us again, so nothing needs slowing down.
pub fn remember_lives(passed: Option<OwnedFd>, notifier: &Notifier, _journal: &Journal) -> Memory {
    if notifier.is_silent() {
        return Memory(None);
    }
    let lives = Lives::recall(passed, notifier);
    if let Err(error) = &lives {
        tracing::warn!(error = %error, "crashes at start will not slow down later starts");
    }
    Memory(lives.ok())
}

/// Waits if the last starts died before they were ready. `None` if a stop comes meanwhile.
pub async fn wait_our_turn(
    mut memory: Memory,
    notifier: &Notifier,
    journal: &Journal,
    signals: &mut Signals,
) -> Option<Memory> {
    let Some(lives) = &mut memory.0 else { return Some(memory) };
    let wait = policy::lives::wait(lives.predecessors(), since_boot());
    if !wait.is_zero() {
        let reason = "the last starts died early".to_owned();
        let text = format!("waiting {} before this start: {reason}", in_words(wait));
        notifier.status(&text);
        journal.life(LifeEvent::StartDelayed, &text, &[("REASON", reason), ("DELAY_MS", wait.as_millis().to_string())]);
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            notifier.extend(EXTEND_EVERY * 3);
            let pause = deadline.min(tokio::time::Instant::now() + EXTEND_EVERY);
            tokio::select! {
                () = tokio::time::sleep_until(pause) => {}
                received = signals.next() => {
                    if matches!(received.request, Request::Stop(_)) {
                        return None;
                    }
                }
            }
            if tokio::time::Instant::now() >= deadline {
                break;
            }
        }
    }
    lives.begin(since_boot());
    Some(memory)
}

/// Makes the directories ours, or names whose they are.
pub fn take_locks(
    hold: &mut Hold,
    handshake: &mut Handshake,
    directories: &Directories,
    instance: &InstanceName,
    replace: bool,
) -> Result<(), StartError> {
    if handshake.supervisor == Supervisor::StandAlone {
        let make = lock::create_private(&directories.runtime);
        make.map_err(StartError::system("create the runtime directory"))?;
        let record = Record::of_this_process(instance.as_str());
        hold.pid_file = Some(match handshake.passed.pid_lock.take() {
            Some(inherited) => PidFile::inherited(inherited, record.as_ref()),
            None => take_pid_file(directories, record.as_ref(), replace)?,
        });
    }
    hold.state = Some(match handshake.passed.state_lock.take() {
        Some(inherited) => DirectoryLock::inherited(inherited),
        None => DirectoryLock::take(&directories.state)?,
    });
    Ok(())
}

fn take_pid_file(places: &Directories, record: Option<&Record>, replace: bool) -> Result<PidFile, StartError> {
    let path = places.pid_file();
    let held = match PidFile::take(&path, record) {
        Err(held @ PidFileError::Held { .. }) if replace => held,
        other => return Ok(other?),
    };
    let cannot = |reason: String| StartError::Replace(format!("{held}; {reason}"));
    let gateway = LiveGateway::find(&path).map_err(|e| cannot(e.to_string()))?;
    let pid = gateway.record.pid;
    tracing::warn!(pid, "replacing the gateway that runs");
    let signalled = gateway.terminate().and_then(|()| gateway.wait(REPLACE_PATIENCE));
    if !signalled.map_err(|e| cannot(e.to_string()))? {
        tracing::warn!(pid, "it did not end in time and is killed");
        let killed = gateway.kill().and_then(|()| gateway.wait(KILL_PATIENCE));
        if !killed.map_err(|e| cannot(e.to_string()))? {
            return Err(cannot(format!("pid {pid} does not end")));
        }
    }
    Ok(PidFile::take(&path, record)?)
}

/// Binds what is configured and was not passed.
pub fn bind(
    hold: &mut Hold,
    config: &Config,
    places: &Directories,
    instance: &InstanceName,
    handshake: &mut Handshake,
) -> Result<(), StartError> {
    // What of it is not wanted any more is closed at the end.
    let mut kept = std::mem::take(&mut handshake.passed.kept_http);
    let supervised = is_supervised(handshake);
    let usual = || match instance.is_default() {
        true => DEFAULT_ADDRESS.parse().map(Listen::Tcp).into_iter().collect(),
        false => vec![Listen::Unix(places.runtime.join("http.sock"))],
    };
    let wanted = match &config.listen {
        Some(listen) => listen.clone(),
        None if hold.passed.is_empty() => usual(),
        None => Vec::new(),
    };
    // Without a word of the configuration, what systemd did not pass may be a matter of the moment.
    let unasked = supervised && config.listen.is_none();
    let bound = move |result: Result<Listener, BindError>| match unasked {
        true => result.map_err(StartError::NotPassed),
        false => result.map_err(StartError::Bind),
    };
    let passed: BTreeSet<String> = hold.passed.iter().map(ToString::to_string).collect();
    for listen in wanted.into_iter().filter(|listen| !passed.contains(&listen.to_string())) {
        if let Some(index) = kept.iter().position(|listener| serves(listener, &listen)) {
            hold.bound.push(kept.swap_remove(index));
            continue;
        }
        hold.bound.push(match listen {
            Listen::Tcp(address) => {
                if !address.ip().is_loopback() {
                    tracing::warn!(%address, "clients on the network reach this without TLS; see http.listen");
                }
                bound(sockets::bind_tcp(address))?
            }
            Listen::Unix(path) => bound(sockets::bind_unix(&path))?,
        });
    }
    if hold.control.is_none() {
        let path = places.control_socket();
        let parent = lock::create_private(&places.runtime);
        parent.map_err(StartError::system("create the runtime directory"))?;
        hold.control = Some(bound(sockets::bind_unix(&path))?);
    }
    Ok(())
}

/// Whether a socket that we have is what the configuration wants. Port 0 is whichever port the kernel chose.
fn serves(listener: &Listener, wanted: &Listen) -> bool {
    match wanted {
        Listen::Tcp(wanted) => listener.address().is_some_and(|address| {
            address.ip() == wanted.ip() && (wanted.port() == 0 || wanted.port() == address.port())
        }),
        Listen::Unix(path) => listener.path().as_ref() == Some(path),
    }
}

/// Opens the store, puts everything together, serves, and says so.
pub async fn assemble(frame: &Frame, config: &Config, handshake: &Handshake, hold: &Hold) -> Result<Parts, StartError> {
    let key = read_key(config, &frame.directories.state).map_err(StartError::Secret)?;
    let meters = meters();
    let (store, owner) = opening::open(&frame.directories.state, meters.clone(), &frame.notifier)?;
    let (tasks, stop) = (Tasks::new(), Stop::new());
    let around = surroundings(frame, handshake, &tasks, &stop);
    let agents = Agents::new(&config.default_agent, &config.agents, &around, None);
    let platforms = Platforms::new(&config.platforms, None);
    let outbox = Outbox::new(store.clone(), platforms, tasks.clone(), stop.clone(), meters.clone());
    let turns = config.turns.clone();
    let gateway =
        Gateway::new(store.clone(), outbox.clone(), turns, agents, tasks.clone(), stop.clone(), meters.clone());
    let recovered = recover(frame, &store, &gateway, &around.workers, config.turns.max_attempts).await;
    recovered.map_err(|error| match error {
        // Another start finds the same pages.
        StartError::Recover(StoreError::Damaged(detail)) => {
            StartError::Store(OpenError::Corrupt { path: frame.directories.state.join(store::FILE_NAME), detail })
        }
        other => other,
    })?;
    outbox.census().await?;
    tasks.spawn("census", outbox.clone().keep_count());
    tasks.spawn("outbox", outbox.run());
    let retention = Retention::new(store.clone(), config.retention.clone(), stop.clone());
    tasks.spawn("retention", retention.clone().run());
    let vitals = Vitals::new(identity(frame, config, handshake, hold), frame.notifier.clone());
    let (http, http_config) = watch::channel(config.http.clone());
    let (key, api_key) = watch::channel(key);
    let (webhooks, api_webhooks) = watch::channel(Webhooks::new(&config.webhooks, None));
    let (commands, command_queue) = mpsc::channel(COMMAND_QUEUE);
    let api = Api {
        gateway,
        store,
        config: http_config,
        key: api_key,
        webhooks: api_webhooks,
        vitals: vitals.clone(),
        meters,
        tasks: tasks.clone(),
        commands,
    };
    let probes = serve(hold, &api, &stop)?;
    if let Some(interval) = handshake.watchdog {
        watch_over(interval, frame, &api, &stop, probes)?;
    }
    let ready =
        Ready { http: places(hold.http()), key_source: key_source(config, &frame.directories.state).0.to_string() };
    Ok(Parts { api, tasks, stop, owner, commands: command_queue, around, http, key, webhooks, retention, ready })
}

/// What agents that are programs get from us.
fn surroundings(frame: &Frame, handshake: &Handshake, tasks: &Tasks, stop: &Stop) -> Surroundings {
    let Directories { state, runtime, .. } = &frame.directories;
    let workers = Workers::new(handshake.supervisor, frame.scope, &frame.instance, state.join(SPOOLS));
    let database = ["", "-wal", "-shm"].map(|suffix| state.join(format!("{}{suffix}", store::FILE_NAME)));
    // What people say and the keys are not theirs; who has the control socket is master of the gateway.
    let hidden = [state.join("api-key"), state.join(SPOOLS), runtime.clone()].into_iter().chain(database).collect();
    let (instance, workspaces) = (frame.instance.clone(), state.join("workspaces"));
    Surroundings { workers, tasks: tasks.clone(), stop: stop.clone(), instance, workspaces, hidden }
}

/// Ends the workers that no unfinished turn will ask for.
async fn sweep(frame: &Frame, store: &Store, workers: &Workers, unfinished: &[Unfinished]) -> Result<(), StartError> {
    // Without it there never was a worker, and most gateways need not ask anybody.
    if !frame.directories.state.join(SPOOLS).exists() {
        return Ok(());
    }
    let mut keep = BTreeSet::new();
    for Unfinished { turn, .. } in unfinished {
        let memory = store.memory(turn.session.clone(), turn.agent.clone()).await?;
        keep.extend(memory.and_then(|memory| worker_of(&memory, turn.id)));
    }
    match tokio::time::timeout(SWEEP_PATIENCE, workers.sweep(&keep)).await {
        Ok(Ok(ended)) if ended.is_empty() => {}
        Ok(Ok(ended)) => tracing::info!(workers = ended.join(", "), "ended agents that the last life left behind"),
        Ok(Err(e)) => tracing::warn!(error = %e, "agents of the last life may still be at work"),
        Err(_) => tracing::warn!("agents of the last life may still be at work: looking for them took too long"),
    }
    Ok(())
}

async fn recover(
    frame: &Frame,
    store: &Store,
    gateway: &Gateway,
    workers: &Workers,
    max_attempts: u32,
) -> Result<(), StartError> {
    let released = store.release_unfinished(max_attempts, PARKED_NOTICE).await?;
    sweep(frame, store, workers, &released.again).await?;
    let platforms = gateway.outbox().platforms();
    let idempotent = platforms.all().filter(|(_, _, limits)| limits.idempotent).map(|(name, ..)| name.to_owned());
    let (leases, repeated) = store.release_leases(idempotent.collect()).await?;
    let (again, interrupted, parked) = (released.again.len(), released.interrupted, released.parked);
    if again + interrupted + parked + leases > 0 {
        let text = format!(
            "the last life left work unfinished: {again} turns are run again, {interrupted} were given up with their \
             clients, {parked} are parked after {max_attempts} attempts; {leases} deliveries are sent again, \
             {repeated} of them may have arrived before"
        );
        let count = |n: usize| n.to_string();
        let fields = [
            ("AGAIN", count(again)),
            ("INTERRUPTED", count(interrupted)),
            ("PARKED", count(parked)),
            ("DELIVERIES", count(leases)),
            ("MAYBE_REPEATED", count(repeated)),
        ];
        frame.journal.life(LifeEvent::WorkRecovered, &text, &fields);
    }
    gateway.resume(released.again);
    Ok(())
}

fn identity(frame: &Frame, config: &Config, handshake: &Handshake, hold: &Hold) -> Identity {
    let pid = std::process::id();
    Identity {
        instance: frame.instance.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        life: uuid::Uuid::now_v7().simple().to_string(),
        pid,
        supervisor: handshake.supervisor.label().into(),
        unit: is_supervised(handshake).then(|| process::unit(pid)).flatten(),
        generation: handshake.generation,
        listeners: places(hold.listeners()),
        config_file: frame.directories.config_file.display().to_string(),
        state_directory: frame.directories.state.display().to_string(),
        key_source: key_source(config, &frame.directories.state).0.to_string(),
    }
}

/// Serves on copies: the originals stay with the process, for a successor in its place.
fn serve(hold: &Hold, api: &Api, stop: &Stop) -> Result<Vec<Probe>, StartError> {
    let service = |router, peers| Service {
        router,
        peers,
        config: api.config.clone(),
        meters: api.meters.clone(),
        tasks: api.tasks.clone(),
        stop: stop.clone(),
    };
    let failed = || StartError::system("serve a socket");
    let public = service(http::api_router(api.clone()), Peers::Any);
    let control = service(http::control_router(api.clone()), Peers::SameUserOrRoot);
    let http = hold.http().map(|listener| (listener, public.clone()));
    let all = http.chain(hold.control.iter().map(|listener| (listener, control.clone())));
    all.map(|(listener, service)| service.listen(listener.try_clone().map_err(failed())?).map_err(failed())).collect()
}

/// Each ping needs an answer of every accept loop and of both threads of the store.
fn watch_over(interval: Duration, frame: &Frame, api: &Api, stop: &Stop, probes: Vec<Probe>) -> Result<(), StartError> {
    let store = api.store.clone();
    let stopping = stop.clone();
    let probe = move || {
        let (probes, store, stopping) = (probes.clone(), store.clone(), stopping.clone());
        async move {
            if stopping.is_soft() {
                // The loops have ended; from here on the stop's own time-outs count.
                return;
            }
            for probe in &probes {
                let (reply, answer) = oneshot::channel();
                if probe.send(reply).await.is_ok() {
                    let _ended_meanwhile = answer.await;
                }
            }
            if let Err(e) = store.ping().await {
                tracing::error!(error = %e, "the store does not answer");
                std::future::pending::<()>().await;
            }
        }
    };
    let notifier = frame.notifier.clone();
    let started = watchdog::spawn(interval, Handle::current(), stop.clone(), probe, move || notifier.alive());
    started.map_err(StartError::system("start the watchdog"))
}
