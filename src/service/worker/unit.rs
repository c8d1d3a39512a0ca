//! Workers as transient units of the service manager.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::OnceCell;
use tokio::time::sleep;

use super::descriptors::waitable;
use super::manager::{Manager, Status};
use super::place::{Ends, Place, environment_file};
use super::properties::{self, Property, View};
use super::running::Hold;
use super::{End, Spec, Told, WorkerError};
use crate::service::directories::Scope;
use crate::service::systemd::ManagerError;

/// Between two looks at a worker's spool while nobody reads it.
const TICK: Duration = Duration::from_secs(1);
/// Between two questions to the manager for an end that it has not seen yet: it hears of it at the same time as we, so
/// the first wait is short, and each further one twice as long, up to the second.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));
/// Exit statuses of systemd itself, for a step before the program (systemd.exec(5)): its working directory, the program
/// itself, a user namespace, capabilities in it, a network, mounts.
const CHDIR: i32 = 200;
const EXEC: i32 = 203;
const NEEDS_NAMESPACES: [i32; 4] = [217, 218, 225, 226];

/// A worker's unit.
#[derive(Debug)]
pub(super) struct Unit {
    manager: Manager,
    told: Arc<Told>,
    name: String,
    main: OnceCell<Option<Main>>,
}

/// The main process, in hand: the kernel tells of its end, whatever the manager is about.
#[derive(Debug)]
struct Main {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Unit {
    pub(super) fn new(manager: Manager, told: Arc<Told>, name: String) -> Self {
        Self { manager, told, name, main: OnceCell::new() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Starts it; where users can make no namespaces, without what needs them.
    pub(super) async fn start(
        &self,
        spec: &Spec,
        program: &Path,
        scope: Scope,
        place: &Place,
        ends: &Ends,
    ) -> Result<(), WorkerError> {
        let io = |source| WorkerError::Directory { path: place.path().to_owned(), source };
        place.write_environment(&environment_file(spec.environment.iter())).map_err(io)?;
        let of_manager = self.manager.variables().await?;
        let view = view(spec, scope, place);
        let make = |namespaces: bool| -> io::Result<Vec<Property>> {
            let mut all = properties::plain(spec, program, ends.stdin.try_clone()?, ends.stdout.try_clone()?);
            all.extend(properties::environment(&spec.environment, &place.environment(), of_manager.clone()));
            if namespaces {
                all.extend(properties::namespaces(scope, &view, spec.sandbox.network));
            }
            Ok(all)
        };
        let mut started = self.try_start(&make(true).map_err(io)?).await;
        if let Err(WorkerError::NotStarted { status: Some(status), .. }) = &started
            && NEEDS_NAMESPACES.contains(status)
        {
            Told::once(&self.told.no_namespaces, || {
                tracing::warn!(
                    unit = self.name,
                    systemd_step = *status,
                    "this machine lets us make no namespaces: agents run without a sandbox of the file system"
                );
            });
            started = self.try_start(&make(false).map_err(io)?).await;
        }
        started?;
        let _gone = fs::remove_file(place.environment());
        if let Ok(Some(status)) = self.manager.status(&self.name).await {
            self.tell_what_is_not_held(spec, &status);
        }
        Ok(())
    }

    async fn try_start(&self, properties: &[Property]) -> Result<(), WorkerError> {
        match self.manager.start(&self.name, properties).await {
            Ok(()) => Ok(()),
            Err(ManagerError::Job { result, .. }) => {
                let ended = self.manager.status(&self.name).await?.map(|status| status.end);
                self.manager.collect(&self.name).await?;
                let status = ended.filter(|end| end.code == 1).map(|end| end.status);
                let why = match status {
                    Some(CHDIR) => "its working directory cannot be entered".to_owned(),
                    Some(EXEC) => "its program cannot be executed".to_owned(),
                    Some(status) => format!("systemd could not prepare it (status {status})"),
                    None => format!("its start ended with '{result}'"),
                };
                Err(WorkerError::NotStarted { name: self.name.clone(), why, status })
            }
            Err(e) => Err(e.into()),
        }
    }

    /// What the machine's control groups cannot do, said once.
    fn tell_what_is_not_held(&self, spec: &Spec, status: &Status) {
        let file = format!("/sys/fs/cgroup{}/cgroup.controllers", status.control_group);
        let Ok(controllers) = fs::read_to_string(file) else { return };
        let limits = &spec.limits;
        let wanted = [
            ("memory", limits.memory.is_some()),
            ("pids", limits.tasks.is_some()),
            ("cpu", limits.cpu_percent.is_some() || limits.cpu_weight.is_some()),
        ];
        let has = |name: &str| controllers.split_ascii_whitespace().any(|controller| controller == name);
        let missing: Vec<_> = wanted.iter().filter(|(name, wanted)| *wanted && !has(name)).map(|(n, _)| *n).collect();
        if !missing.is_empty() {
            Told::once(&self.told.no_controllers, || {
                tracing::warn!(
                    unit = self.name,
                    missing = missing.join(" "),
                    "the service manager has no such control group controllers: these limits of agents do not hold"
                );
            });
        }
    }

    /// The main process while it lives.
    pub(super) async fn pid(&self) -> Option<u32> {
        let main = self.main().await?;
        let mut polled = [PollFd::new(main.pidfd.get_ref(), PollFlags::IN)];
        let ended = rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
        (!ended).then_some(main.pid)
    }

    async fn main(&self) -> Option<&Main> {
        let find = || async {
            let pid = self.manager.status(&self.name).await.ok()??.main_pid;
            let pidfd = pidfd(pid)?;
            // Asked again with the process in hand: a manager that still names it has not seen it end, so it is the one.
            let still = self.manager.status(&self.name).await.ok()??.main_pid == pid;
            still.then_some(())?;
            Some(Main { pid, pidfd: waitable(pidfd).ok()? })
        };
        self.main.get_or_init(find).await.as_ref()
    }

    /// Waits for the end of the main process, and sees now and then to what it writes.
    pub(super) async fn ended(&self, hold: &Hold) -> End {
        if let Some(main) = self.main().await {
            while tokio::time::timeout(TICK, main.pidfd.readable()).await.is_err() {
                self.hold(hold).await;
            }
        }
        let mut told = false;
        let mut pause = LOOK.0;
        loop {
            match self.manager.status(&self.name).await {
                Ok(None) => return End::Gone,
                Ok(Some(status)) if status.has_ended() => {
                    // What the main process left behind ends with it. After a failure systemd has seen to that.
                    if let Err(e) = self.manager.kill(&self.name, Signal::KILL.as_raw()).await {
                        tracing::debug!(unit = self.name, error = %e, "cannot end what a worker left behind");
                    }
                    return status.end.end(&hold.bounds);
                }
                Ok(Some(_)) => self.hold(hold).await,
                Err(e) if !std::mem::replace(&mut told, true) => {
                    tracing::warn!(unit = self.name, error = %e, "cannot learn how a worker ended; asking on");
                }
                Err(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK.1);
        }
    }

    /// Kills it if more than it may is unread.
    pub(super) async fn hold(&self, hold: &Hold) {
        if hold.is_overrun()
            && let Err(e) = self.signal(Signal::KILL).await
        {
            tracing::warn!(unit = self.name, error = %e, "cannot end a worker that writes more than is read");
        }
    }

    /// Signals all of it.
    pub(super) async fn signal(&self, signal: Signal) -> Result<(), ManagerError> {
        self.manager.kill(&self.name, signal.as_raw()).await
    }

    /// Ends whatever is left of it and makes the manager forget it.
    pub(super) async fn collect(&self) -> Result<(), ManagerError> {
        self.manager.collect(&self.name).await
    }
}

fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// What a worker sees: what the specification says; not our state; and not the way to the service manager, which would
/// start anything for it outside of the sandbox.
fn view(spec: &Spec, scope: Scope, place: &Place) -> View {
    let real = |path: &PathBuf| path.canonicalize().ok();
    let mut view = View::default();
    view.writable.extend([&spec.directory].into_iter().chain(&spec.sandbox.writable).filter_map(real));
    let mut hidden = spec.sandbox.hidden.clone();
    hidden.extend(place.path().ancestors().nth(2).map(Path::to_owned));
    if scope == Scope::User {
        hidden.push(PathBuf::from(format!("/run/user/{}", rustix::process::getuid().as_raw())));
    }
    let hidden = hidden.iter().filter_map(real).filter(|path| !view.writable.contains(path));
    let (directories, files): (Vec<_>, Vec<_>) = hidden.partition(|path| path.is_dir());
    (view.hidden_directories, view.hidden_files) = (directories, files);
    view
}
