//! Who supervises this process, and what was passed to it.
//!
//! Variables are inherited by every descendant of a unit, so the presence of one proves nothing: a shell in a desktop
//! terminal has them, and so has an agent's tool. systemd addresses the process that it starts itself by its pid
//! (`SYSTEMD_EXEC_PID=`, `LISTEN_PID=`), and only what is addressed to us counts. See systemd.exec(5).

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::sockets::Passed;

/// Who keeps this process running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervisor {
    /// systemd started us and wants to be told how we are.
    Systemd,
    /// Nobody we know of: a shell, a container, another init.
    StandAlone,
}

impl Supervisor {
    /// The word for people and for JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::StandAlone => "stand-alone",
        }
    }
}

/// Directories that systemd made for the unit (`StateDirectory=` and so on).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitDirectories {
    /// `STATE_DIRECTORY`
    pub state: Option<PathBuf>,
    /// `RUNTIME_DIRECTORY`
    pub runtime: Option<PathBuf>,
    /// `CONFIGURATION_DIRECTORY`
    pub configuration: Option<PathBuf>,
}

/// Everything that the supervisor said by way of the environment, read once.
#[derive(Debug)]
pub struct Handshake {
    /// Who supervises us.
    pub supervisor: Supervisor,
    /// How often the supervisor wants to hear that work gets done, if it does.
    pub watchdog: Option<Duration>,
    /// The directories of our unit; empty stand-alone.
    pub directories: UnitDirectories,
    /// Descriptors that were passed to us.
    pub passed: Passed,
    /// How many in-place restarts this process has behind it.
    pub generation: u32,
}

/// Counts the in-place restarts of a stand-alone process; set only by our own `execve`.
pub const GENERATION: &str = "HERMES_GATEWAY_GENERATION";

impl Handshake {
    /// Reads the environment and takes the passed descriptors out of it.
    ///
    /// To be called first thing in `main`, while there is one thread: listenfd removes its variables.
    ///
    /// # Errors
    /// When descriptors were passed in a way that cannot be understood; they are not touched then.
    pub fn take() -> io::Result<Self> {
        let vars = |name: &str| env::var_os(name);
        let supervisor = supervisor(std::process::id(), &vars);
        let (watchdog, directories) = match supervisor {
            Supervisor::Systemd => (sd_notify::watchdog_enabled(), unit_directories(&vars)),
            Supervisor::StandAlone => (None, UnitDirectories::default()),
        };
        let generation = vars(GENERATION).and_then(|v| v.to_str()?.parse().ok()).unwrap_or(0);
        Ok(Self {
            supervisor,
            // An interval of zero would mean a ping without end; systemd never sends it, a careless wrapper might.
            watchdog: watchdog.filter(|interval| !interval.is_zero()),
            directories,
            passed: Passed::take()?,
            generation,
        })
    }
}

type Vars<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn supervisor(pid: u32, vars: Vars) -> Supervisor {
    let addressed = vars("SYSTEMD_EXEC_PID").is_some_and(|value| value.to_str() == Some(&pid.to_string()));
    let listens = vars("NOTIFY_SOCKET").is_some_and(|value| !value.is_empty());
    if addressed && listens { Supervisor::Systemd } else { Supervisor::StandAlone }
}

fn unit_directories(vars: Vars) -> UnitDirectories {
    // A unit may list several, separated by colons; the first one is ours.
    let first = |name: &str| {
        let value = vars(name)?.into_string().ok()?;
        value.split(':').next().filter(|path| path.starts_with('/')).map(PathBuf::from)
    };
    UnitDirectories {
        state: first("STATE_DIRECTORY"),
        runtime: first("RUNTIME_DIRECTORY"),
        configuration: first("CONFIGURATION_DIRECTORY"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_systemd_addressed_to_this_pid_counts() {
        let cases = [
            (Some("42"), Some("/run/notify"), Supervisor::Systemd),
            (Some("42"), Some("@abstract"), Supervisor::Systemd),
            (Some("42"), Some(""), Supervisor::StandAlone),
            (Some("42"), None, Supervisor::StandAlone),
            (Some("41"), Some("/run/notify"), Supervisor::StandAlone),
            (Some("garbage"), Some("/run/notify"), Supervisor::StandAlone),
            (None, Some("/run/notify"), Supervisor::StandAlone),
        ];
        for (exec_pid, socket, expected) in cases {
            let vars = |name: &str| match name {
                "SYSTEMD_EXEC_PID" => exec_pid.map(OsString::from),
                "NOTIFY_SOCKET" => socket.map(OsString::from),
                _ => None,
            };
            assert_eq!(supervisor(42, &vars), expected, "{exec_pid:?} {socket:?}");
        }
    }

    #[test]
    fn the_first_of_several_directories_is_ours() {
        let vars = |name: &str| match name {
            "STATE_DIRECTORY" => Some("/var/lib/a:/var/lib/b".into()),
            "RUNTIME_DIRECTORY" => Some("relative".into()),
            _ => None,
        };
        let found = unit_directories(&vars);
        assert_eq!(found.state, Some("/var/lib/a".into()));
        assert_eq!((found.runtime, found.configuration), (None, None));
    }
}
