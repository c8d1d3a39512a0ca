//! What workers need of the service manager. It may go away for a moment (`daemon-reexec`), its bus may be restarted:
//! questions wait for it, up to [`PATIENCE`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use zbus::Variant;
use zbus::proxy::CacheProperties;

use super::end::UnitEnd;
use crate::service::directories::Scope;
use crate::service::systemd::{ManagerError, ServiceManager, ServiceProxy, UnitProxy};

/// Longest time to wait for a manager that is away.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two tries to reach it.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest time for a unit to start, or to be cleared away.
const JOB: Duration = Duration::from_secs(30);

/// The manager of this scope, connected when it is first needed.
#[derive(Debug, Clone)]
pub(super) struct Manager {
    scope: Scope,
    connected: Arc<Mutex<Option<Arc<ServiceManager>>>>,
}

/// What a manager says of a worker's unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    /// `ActiveState` and `SubState`.
    pub(super) active: String,
    pub(super) sub: String,
    /// The main process; 0 if there is none.
    pub(super) main_pid: u32,
    /// Its control group, below the tree's root.
    pub(super) control_group: String,
    /// What is known of the end of the main process.
    pub(super) end: UnitEnd,
}

impl Status {
    /// Whether the main process has ended, and the manager is done with it.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.active.as_str(), "failed" | "inactive") || self.sub == "exited"
    }
}

/// Runs a question again for as long as the manager is away.
macro_rules! ask {
    ($self:expr, $manager:ident => $question:expr) => {{
        let until = Instant::now() + PATIENCE;
        loop {
            let answer: Result<_, ManagerError> = match $self.connected().await {
                Ok($manager) => $question.await.map_err(ManagerError::from),
                Err(e) => Err(e),
            };
            match answer {
                Err(e @ (ManagerError::Away(_) | ManagerError::Unreachable(_))) if Instant::now() < until => {
                    tracing::debug!(error = %e, "waiting for the service manager");
                    $self.disconnect().await;
                    sleep(PAUSE).await;
                }
                answer => break answer,
            }
        }
    }};
}

impl Manager {
    pub(super) fn new(scope: Scope) -> Self {
        Self { scope, connected: Arc::default() }
    }

    async fn connected(&self) -> Result<Arc<ServiceManager>, ManagerError> {
        let mut connected = self.connected.lock().await;
        if let Some(manager) = &*connected {
            return Ok(manager.clone());
        }
        let manager = Arc::new(ServiceManager::connect(self.scope).await?);
        *connected = Some(manager.clone());
        Ok(manager)
    }

    async fn disconnect(&self) {
        *self.connected.lock().await = None;
    }

    /// Whether it can be reached at all.
    pub(super) async fn reach(&self) -> Result<(), ManagerError> {
        self.connected().await.map(drop)
    }

    /// Starts a transient unit and waits until its program runs, or could not be run.
    pub(super) async fn start(&self, unit: &str, properties: &[(&str, Variant<'_>)]) -> Result<(), ManagerError> {
        let manager = self.connected().await?;
        let call = manager.manager.start_transient_unit(unit, "fail", properties, &[]);
        let late = |_| Err(ManagerError::Away(format!("{unit} did not start within {JOB:?}")));
        match tokio::time::timeout(JOB, manager.job(unit, call)).await.unwrap_or_else(late) {
            // The word of its start may have been lost, the unit not.
            Err(ManagerError::Away(why)) => {
                self.disconnect().await;
                match self.status(unit).await? {
                    Some(status) if status.active != "failed" => Ok(()),
                    _ => Err(ManagerError::Away(why)),
                }
            }
            other => other,
        }
    }

    /// What it says of a unit; `None` if it knows none of that name.
    pub(super) async fn status(&self, unit: &str) -> Result<Option<Status>, ManagerError> {
        match ask!(self, manager => status_of(&manager, unit)) {
            Err(ManagerError::NoSuchUnit(_)) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Signals all processes of a unit; one that is not there has none.
    pub(super) async fn kill(&self, unit: &str, signal: i32) -> Result<(), ManagerError> {
        match ask!(self, manager => manager.manager.kill_unit(unit, "all", signal)) {
            Err(ManagerError::NoSuchUnit(_) | ManagerError::Refused(_)) => Ok(()),
            other => other,
        }
    }

    /// Stops a unit with all that is left in it, and makes the manager forget how it ended.
    pub(super) async fn collect(&self, unit: &str) -> Result<(), ManagerError> {
        let stopped = ask!(self, manager => async {
            let stop = manager.stop(unit);
            let late = |_| Err(ManagerError::Away(format!("{unit} did not stop within {JOB:?}")));
            tokio::time::timeout(JOB, stop).await.unwrap_or_else(late)
        });
        // What is not loaded (any more) can neither be stopped nor reset, and needs neither.
        match stopped {
            Ok(()) | Err(ManagerError::NoSuchUnit(_) | ManagerError::Refused(_) | ManagerError::Job { .. }) => {}
            Err(e) => return Err(e),
        }
        match ask!(self, manager => manager.manager.reset_failed_unit(unit)) {
            Err(ManagerError::NoSuchUnit(_) | ManagerError::Refused(_)) => Ok(()),
            other => other,
        }
    }

    /// The names of all loaded units that match.
    pub(super) async fn units(&self, pattern: &str) -> Result<Vec<String>, ManagerError> {
        let listed = ask!(self, manager => manager.manager.list_units_by_patterns(&[], &[pattern]))?;
        Ok(listed.into_iter().map(|unit| unit.0).collect())
    }

    /// The names of the variables that it gives to everything it starts.
    pub(super) async fn variables(&self) -> Result<Vec<String>, ManagerError> {
        let block = ask!(self, manager => manager.manager.environment())?;
        Ok(block.into_iter().filter_map(|line| Some(line.split_once('=')?.0.to_owned())).collect())
    }
}

async fn status_of(manager: &ServiceManager, unit: &str) -> zbus::Result<Status> {
    let path = manager.manager.get_unit(unit).await?;
    let no_cache = CacheProperties::No;
    let of_unit = UnitProxy::builder(&manager.connection).path(path.clone()).cache_properties(no_cache).build().await?;
    let of_service = ServiceProxy::builder(&manager.connection).path(path).cache_properties(no_cache).build().await?;
    // The state first: once that says ended, the rest is final.
    let (active, sub) = (of_unit.active_state().await?, of_unit.sub_state().await?);
    Ok(Status {
        active,
        sub,
        main_pid: of_service.main_pid().await?,
        control_group: of_service.control_group().await?,
        end: UnitEnd {
            result: of_service.result().await?,
            code: of_service.exec_main_code().await?,
            status: of_service.exec_main_status().await?,
        },
    })
}
