//! How workers come to be: started, found again, swept.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::process::Signal;
use rustix::time::ClockId;

use super::child::{Child, Keeping};
use super::manager::Manager;
use super::name;
use super::place::{self, Place, ProcessRecord, Record};
use super::running::{Hold, How};
use super::unit::Unit;
use super::{Bounds, End, Spec, Worker, WorkerError, holders};
use crate::model::id::InstanceName;
use crate::service::directories::Scope;
use crate::service::handshake::Supervisor;
use crate::service::systemd::ManagerError;

/// What is swept has nobody who waits for its last words.
const SWEEP_GRACE: Duration = Duration::from_secs(2);

/// How long an earlier worker of the same name may take to turn out to have ended.
const STILL_RUNNING: Duration = Duration::from_millis(500);

/// How workers are run here.
#[derive(Debug, Clone)]
pub struct Workers {
    units: bool,
    scope: Scope,
    instance: InstanceName,
    directory: PathBuf,
    manager: Manager,
    registry: Registry,
    told: Arc<Told>,
}

/// What was logged and need not be said again.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) no_units: AtomicBool,
    pub(super) no_limits: AtomicBool,
    pub(super) no_namespaces: AtomicBool,
    pub(super) no_controllers: AtomicBool,
}

impl Told {
    /// Says it the first time.
    pub(super) fn once(told: &AtomicBool, say: impl FnOnce()) {
        if !told.swap(true, Ordering::Relaxed) {
            say();
        }
    }
}

/// The workers that this life knows, by slug, until they are cleared away: so that each is waited for once.
#[derive(Debug, Clone, Default)]
pub(super) struct Registry(Arc<Mutex<BTreeMap<String, Worker>>>);

impl Registry {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Worker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, slug: &str) -> Option<Worker> {
        self.lock().get(slug).cloned()
    }

    fn add(&self, slug: String, worker: &Worker) {
        self.lock().insert(slug, worker.clone());
    }

    /// Forgets it; a successor of its name stays.
    pub(super) fn remove(&self, worker: &Worker) {
        self.lock().retain(|_, known| !known.is(worker));
    }
}

impl Workers {
    /// Workers of this instance, whose spools are under `directory` (`<state>/workers`). Does no I/O.
    pub fn new(supervisor: Supervisor, scope: Scope, instance: &InstanceName, directory: PathBuf) -> Self {
        let mine = scope == Scope::User || rustix::process::geteuid().is_root();
        Self {
            units: supervisor == Supervisor::Systemd && mine,
            scope,
            instance: instance.clone(),
            directory,
            manager: Manager::new(scope),
            registry: Registry::default(),
            told: Arc::default(),
        }
    }

    /// Starts a worker: its program runs when this returns. What an ended one of that name left behind is cleared away.
    ///
    /// # Errors
    /// When one of that name runs, or this one cannot be run.
    pub async fn start(&self, spec: Spec) -> Result<Worker, WorkerError> {
        let program = check(&spec)?;
        if let Some(earlier) = self.find(&spec.name).await? {
            if tokio::time::timeout(STILL_RUNNING, earlier.ended()).await.is_err() {
                return Err(WorkerError::Running(spec.name));
            }
            earlier.stop(Duration::ZERO).await;
        }
        let slug = name::slug(&spec.name);
        let place = Place::of(&self.directory, &slug);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| WorkerError::Directory { path, source }
        };
        place::make_directory(&spec.directory).map_err(failed(&spec.directory))?;
        let ends = place.make(&spec.input).map_err(failed(place.path()))?;
        let unit = self.starts_units().await.then(|| name::unit(&self.instance, &slug));
        let record = Record {
            name: spec.name.clone(),
            unit: unit.clone(),
            process: None,
            started_ms: since_boot(),
            bounds: Bounds::from(&spec.limits),
            end: None,
        };
        // Before there is anything to be found.
        place.write(&record).map_err(failed(place.path()))?;
        let hold = Hold::new(place.clone(), record.bounds);
        let how = match unit {
            Some(unit) => {
                let unit = Unit::new(self.manager.clone(), self.told.clone(), unit);
                unit.start(&spec, &program, self.scope, &place, &ends).await.map(|()| How::Unit(unit))
            }
            None => {
                let started = Child::start(&spec, program, ends, self.keeping(&record, &hold)).await;
                let not_started = |e: io::Error| WorkerError::NotStarted {
                    name: spec.command[0].clone(),
                    why: e.to_string(),
                    status: None,
                };
                started.map(How::Child).map_err(not_started)
            }
        };
        let how = how.inspect_err(|_| drop(place.clear()))?;
        if let How::Child(child) = &how {
            // Without it a later life finds its files, and by them its processes; it only cannot read on.
            let written = place.write(&Record { process: child.record(), ..record });
            if let Err(e) = written {
                tracing::warn!(worker = spec.name, error = %e, "cannot write down who a worker is");
            }
        }
        let worker = Worker::new(spec.name, hold, how, self.registry.clone());
        self.registry.add(slug, &worker);
        Ok(worker)
    }

    /// A worker that this or an earlier life started and that still runs, or has ended and was not cleared away yet.
    ///
    /// # Errors
    /// When the service manager cannot be asked.
    pub async fn find(&self, name: &str) -> Result<Option<Worker>, WorkerError> {
        self.find_slug(&name::slug(name)).await
    }

    async fn find_slug(&self, slug: &str) -> Result<Option<Worker>, WorkerError> {
        if let Some(known) = self.registry.find(slug) {
            return Ok(Some(known));
        }
        let place = Place::of(&self.directory, slug);
        let Some(record) = place.record() else { return Ok(None) };
        let hold = Hold::new(place.clone(), record.bounds);
        if let Some(end) = record.end {
            let _new = hold.cause.set(end);
        }
        let how = match (&record.unit, &record.process) {
            (Some(unit), _) => self.found_unit(unit).await?,
            (None, Some(process)) => self.found_child(process, &record, &hold),
            (None, None) => None,
        };
        let how = how.unwrap_or(How::Past(record.end.unwrap_or(End::Gone)));
        let worker = Worker::new(record.name, hold, how, self.registry.clone());
        self.registry.add(slug.to_owned(), &worker);
        Ok(Some(worker))
    }

    async fn found_unit(&self, unit: &str) -> Result<Option<How>, WorkerError> {
        let known = self.manager.status(unit).await?;
        Ok(known.map(|_| How::Unit(Unit::new(self.manager.clone(), self.told.clone(), unit.to_owned()))))
    }

    fn found_child(&self, process: &ProcessRecord, record: &Record, hold: &Arc<Hold>) -> Option<How> {
        let adopted = Child::adopt(process, self.keeping(record, hold));
        adopted
            .unwrap_or_else(|e| {
                tracing::warn!(worker = record.name, error = %e, "cannot look after a worker of an earlier life");
                None
            })
            .map(How::Child)
    }

    /// Stops and clears away whatever is ours and not in `keep`, by name; what it was.
    ///
    /// # Errors
    /// When our directory or the service manager cannot be asked what there is.
    pub async fn sweep(&self, keep: &BTreeSet<String>) -> Result<Vec<String>, WorkerError> {
        let failed = |source| WorkerError::Directory { path: self.directory.clone(), source };
        let mut slugs: BTreeSet<String> = Place::all(&self.directory).map_err(failed)?.into_iter().collect();
        if self.starts_units().await {
            let units = self.manager.units(&name::pattern(&self.instance)).await?;
            slugs.extend(units.iter().filter_map(|unit| name::slug_of_unit(&self.instance, unit)).map(str::to_owned));
        }
        let keep: BTreeSet<_> = keep.iter().map(|name| name::slug(name)).collect();
        let swept = join_all(slugs.difference(&keep).map(|slug| self.sweep_one(slug))).await;
        swept.into_iter().collect()
    }

    async fn sweep_one(&self, slug: &str) -> Result<String, WorkerError> {
        if let Some(worker) = self.find_slug(slug).await? {
            worker.stop(SWEEP_GRACE).await;
            return Ok(worker.name().to_owned());
        }
        // Files without a word on whose they are, or a unit without files.
        let unit = name::unit(&self.instance, slug);
        if self.units {
            self.manager.kill(&unit, Signal::KILL.as_raw()).await?;
            self.manager.collect(&unit).await?;
        }
        let place = Place::of(&self.directory, slug);
        holders::kill(place.path());
        place.clear().map_err(|source| WorkerError::Directory { path: place.path().to_owned(), source })?;
        Ok(unit)
    }

    /// Whether new workers are units. If not, says why, and what that means.
    async fn starts_units(&self) -> bool {
        let reached = match self.units {
            true => self.manager.reach().await,
            false => Err(ManagerError::NotBooted),
        };
        let Err(e) = reached else { return true };
        if self.units {
            Told::once(&self.told.no_units, || {
                tracing::warn!(error = %e, "agents cannot be units of their own: they end with the gateway");
            });
        }
        Told::once(&self.told.no_limits, || {
            tracing::info!(
                "agents run as child processes: limits of memory, tasks and CPU do not hold, there is no sandbox"
            );
        });
        false
    }

    fn keeping(&self, record: &Record, hold: &Arc<Hold>) -> Keeping {
        let passed = Duration::from_millis(since_boot().saturating_sub(record.started_ms));
        let left = record.bounds.runtime.map(|runtime| runtime.saturating_sub(passed));
        Keeping {
            name: record.name.clone(),
            hold: hold.clone(),
            deadline: left.and_then(|left| Instant::now().checked_add(left)),
        }
    }
}

/// Milliseconds since the machine was booted, time asleep included.
fn since_boot() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0)
}

/// What is wrong with it, as far as can be seen beforehand; the program to execute.
fn check(spec: &Spec) -> Result<PathBuf, WorkerError> {
    for (name, value) in &spec.environment {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty()
            || !name.chars().all(good)
            || name.starts_with(|c: char| c.is_ascii_digit())
            || value.contains('\0')
        {
            return Err(WorkerError::Variable(name.clone()));
        }
    }
    let wanted = spec.command.first().cloned().unwrap_or_default();
    let is_program = |path: &PathBuf| {
        path.is_absolute() && path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let found = match wanted.contains('/') {
        true => Some(PathBuf::from(&wanted)).filter(is_program),
        false => {
            let path = spec.environment.get("PATH").map_or("/usr/local/bin:/usr/bin:/bin", String::as_str);
            env::split_paths(path).map(|directory| directory.join(&wanted)).find(is_program)
        }
    };
    found.ok_or(WorkerError::NoProgram(wanted))
}
