//! The service manager over D-Bus: install, start, stop, and what it says of our unit. [`super::worker`] builds on it.
//!
//! A user's manager is reached also where a login left no `DBUS_SESSION_BUS_ADDRESS` (ssh, `su -`, cron): its bus has a
//! fixed place. Its private socket is of no use to us: it signs its messages with a name that zbus takes for a forgery.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::Connection;
use zbus::OwnedObjectPath;
use zbus::Variant;
use zbus::connection::Builder;

use super::directories::Scope;

/// Where every machine has its system bus.
const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";
/// Longest time for one call; a job is waited for separately.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);
/// Longest time for a job; a stop may drain for as long as its time-outs allow.
const JOB_TIMEOUT: Duration = Duration::from_secs(300);

/// Name, description, load, active and sub state, what it follows, its object, its job, the job's kind and object.
pub(super) type ListedUnit =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub(super) trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn reload(&self) -> zbus::Result<()>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        auxiliary: &[(&str, &[(&str, Variant<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn list_units_by_patterns(&self, states: &[&str], patterns: &[&str]) -> zbus::Result<Vec<ListedUnit>>;
    fn enable_unit_files(
        &self,
        files: &[&str],
        runtime: bool,
        force: bool,
    ) -> zbus::Result<(bool, Vec<(String, String, String)>)>;
    fn disable_unit_files(&self, files: &[&str], runtime: bool) -> zbus::Result<Vec<(String, String, String)>>;

    #[zbus(property(emits_changed_signal = "false"))]
    fn environment(&self) -> zbus::Result<Vec<String>>;

    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

#[zbus::proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
pub(super) trait Unit {
    #[zbus(property)]
    fn load_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn sub_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn unit_file_state(&self) -> zbus::Result<String>;
}

#[zbus::proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
pub(super) trait Service {
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn n_restarts(&self) -> zbus::Result<u32>;
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn status_text(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn exec_main_code(&self) -> zbus::Result<i32>;
    #[zbus(property)]
    fn exec_main_status(&self) -> zbus::Result<i32>;
    #[zbus(property)]
    fn control_group(&self) -> zbus::Result<String>;
}

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Login {
    fn set_user_linger(&self, uid: u32, enable: bool, interactive: bool) -> zbus::Result<()>;
}

/// Why the service manager did not do as asked, with what helps.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// This machine was not booted with systemd.
    #[error("systemd does not run this machine: start the gateway with 'hermes-gateway run' under your own supervisor")]
    NotBooted,
    /// The user has no service manager.
    #[error("user {0} has no service manager now: log in, or run 'sudo loginctl enable-linger {0}' to have one always")]
    NoUserManager(u32),
    /// It runs, and there is no bus to reach it by.
    #[error(
        "user {0}'s service manager has no message bus: install Debian's dbus-user-session (or your distribution's \
         like), then log in again"
    )]
    NoUserBus(u32),
    /// It is there and does not let us in.
    #[error("the service manager cannot be reached at any of: {}", .0.join("; "))]
    Unreachable(Vec<String>),
    /// It is busy with itself (`daemon-reexec`), or its bus is gone; it may be back in a moment.
    #[error("the service manager does not answer now: {0}")]
    Away(String),
    /// It has no such unit loaded.
    #[error("{0}")]
    NoSuchUnit(String),
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// A job ended otherwise than done.
    #[error("the job for {unit} ended with '{result}': see '{systemctl} status {unit}'")]
    Job {
        /// The unit.
        unit: String,
        /// `failed`, `canceled`, `timeout`, `dependency` ...
        result: String,
        /// How to call systemctl for it.
        systemctl: &'static str,
    },
}

impl From<zbus::Error> for ManagerError {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, text, _) if name == "org.freedesktop.systemd1.NoSuchUnit" => {
                Self::NoSuchUnit(text.unwrap_or_else(|| name.to_string()))
            }
            // A unit that went while it was looked at.
            zbus::Error::FDO(error) if matches!(*error, zbus::fdo::Error::UnknownObject(_)) => {
                Self::NoSuchUnit(error.to_string())
            }
            zbus::Error::MethodError(name, text, _) => Self::Refused(text.unwrap_or_else(|| name.to_string())),
            zbus::Error::FDO(error) if is_away(&error) => Self::Away(error.to_string()),
            zbus::Error::InputOutput(error) => Self::Away(error.to_string()),
            other => Self::Refused(other.to_string()),
        }
    }
}

/// Whether the bus says that nobody answered, rather than the manager that it will not.
fn is_away(error: &zbus::fdo::Error) -> bool {
    use zbus::fdo::Error::{Disconnected, NameHasNoOwner, NoReply, NoServer, ServiceUnknown, TimedOut, Timeout};
    matches!(
        error,
        Disconnected(_) | NameHasNoOwner(_) | NoReply(_) | NoServer(_) | ServiceUnknown(_) | TimedOut(_) | Timeout(_)
    )
}

/// What the service manager says of a service.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct UnitReport {
    /// The unit.
    pub unit: String,
    /// `loaded`, `not-found`, `masked` ...
    pub load_state: String,
    /// `active`, `activating`, `deactivating`, `inactive`, `failed`, `reloading`.
    pub active_state: String,
    /// `running`, `auto-restart`, `dead` ...
    pub sub_state: String,
    /// `enabled`, `disabled`, `static` or empty.
    pub enabled: String,
    /// `success`, `exit-code`, `signal`, `watchdog` ...
    pub result: String,
    /// The exit status of the last main process.
    pub exit_status: i32,
    /// Automatic restarts since it was last started by hand.
    pub restarts: u32,
    /// The main process; 0 if there is none.
    pub main_pid: u32,
    /// What the process last said with `STATUS=`.
    pub status_text: String,
}

/// A service manager.
#[derive(Debug)]
pub struct ServiceManager {
    scope: Scope,
    pub(super) connection: Connection,
    pub(super) manager: ManagerProxy<'static>,
}

impl ServiceManager {
    /// Connects to the manager of this scope.
    pub async fn connect(scope: Scope) -> Result<Self, ManagerError> {
        if !libsystemd::daemon::booted() {
            return Err(ManagerError::NotBooted);
        }
        let connection = match scope {
            Scope::System => first_that_answers(vec![SYSTEM_BUS.into()]).await?,
            Scope::User => first_that_answers(ways_to_user_manager()?).await?,
        };
        let manager = ManagerProxy::new(&connection).await?;
        Ok(Self { scope, connection, manager })
    }

    /// Makes the manager read unit files again.
    pub async fn reload(&self) -> Result<(), ManagerError> {
        Ok(self.manager.reload().await?)
    }

    /// Enables units: they start at login or boot.
    pub async fn enable(&self, units: &[&str]) -> Result<(), ManagerError> {
        self.manager.enable_unit_files(units, false, false).await?;
        Ok(())
    }

    /// Disables units.
    pub async fn disable(&self, units: &[&str]) -> Result<(), ManagerError> {
        self.manager.disable_unit_files(units, false).await?;
        Ok(())
    }

    /// Starts a unit and waits until that is done or has failed.
    pub async fn start(&self, unit: &str) -> Result<(), ManagerError> {
        self.job(unit, self.manager.start_unit(unit, "replace")).await
    }

    /// Stops a unit and waits until that is done or has failed.
    pub async fn stop(&self, unit: &str) -> Result<(), ManagerError> {
        self.job(unit, self.manager.stop_unit(unit, "replace")).await
    }

    pub(super) async fn job(
        &self,
        unit: &str,
        call: impl Future<Output = zbus::Result<OwnedObjectPath>>,
    ) -> Result<(), ManagerError> {
        // Subscribed before the job exists, so that its end cannot be missed. A second subscription is an error.
        let _already_subscribed = self.manager.subscribe().await;
        let mut removed = self.manager.receive_job_removed().await?;
        let job = call.await?;
        let ended = async {
            while let Some(signal) = removed.next().await {
                let Ok(args) = signal.args() else { continue };
                if args.job == job {
                    return args.result.clone();
                }
            }
            "lost: the manager closed the connection".to_owned()
        };
        let result = tokio::time::timeout(JOB_TIMEOUT, ended).await.unwrap_or_else(|_| "no end in sight".into());
        match result.as_str() {
            "done" | "skipped" => Ok(()),
            _ => Err(ManagerError::Job { unit: unit.to_owned(), result, systemctl: self.scope.systemctl() }),
        }
    }

    /// What the manager says of a service, whether or not it is installed.
    pub async fn report(&self, unit: &str) -> Result<UnitReport, ManagerError> {
        let path = self.manager.load_unit(unit).await?;
        let of_unit = UnitProxy::builder(&self.connection).path(path.clone()).build().await?;
        let of_service = ServiceProxy::builder(&self.connection).path(path).build().await?;
        Ok(UnitReport {
            unit: unit.to_owned(),
            load_state: of_unit.load_state().await?,
            active_state: of_unit.active_state().await?,
            sub_state: of_unit.sub_state().await?,
            enabled: of_unit.unit_file_state().await.unwrap_or_default(),
            result: of_service.result().await?,
            exit_status: of_service.exec_main_status().await?,
            restarts: of_service.n_restarts().await?,
            main_pid: of_service.main_pid().await?,
            status_text: of_service.status_text().await?,
        })
    }
}

/// Lets the user's services run without a login; needs no password for oneself on most machines.
pub async fn enable_linger() -> Result<(), ManagerError> {
    let uid = rustix::process::getuid().as_raw();
    let bus = first_that_answers(vec![SYSTEM_BUS.into()]).await?;
    Ok(LoginProxy::new(&bus).await?.set_user_linger(uid, true, false).await?)
}

fn ways_to_user_manager() -> Result<Vec<String>, ManagerError> {
    let uid = rustix::process::getuid().as_raw();
    let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let runtime = set("XDG_RUNTIME_DIR").map_or_else(|| PathBuf::from(format!("/run/user/{uid}")), PathBuf::from);
    let bus = runtime.join("bus");
    let mut ways: Vec<_> = set("DBUS_SESSION_BUS_ADDRESS").into_iter().collect();
    ways.extend(bus.exists().then(|| format!("unix:path={}", bus.display())));
    match ways.is_empty() {
        false => Ok(ways),
        true if runtime.join("systemd/private").exists() => Err(ManagerError::NoUserBus(uid)),
        true => Err(ManagerError::NoUserManager(uid)),
    }
}

async fn first_that_answers(ways: Vec<String>) -> Result<Connection, ManagerError> {
    let mut failures = Vec::new();
    for address in ways {
        match Builder::address(address.as_str()).method_timeout(CALL_TIMEOUT).build().await {
            Ok(connection) => return Ok(connection),
            Err(e) => failures.push(format!("{address} ({e})")),
        }
    }
    Err(ManagerError::Unreachable(failures))
}
