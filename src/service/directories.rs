//! Where things are: what the command line says, else what systemd made for the unit, else the XDG base directories
//! (user scope) or the file system hierarchy (system scope).

use std::ffi::OsString;
use std::path::PathBuf;

use super::handshake::UnitDirectories;
use crate::model::id::InstanceName;

/// The name of our directories under each base.
const NAME: &str = "hermes-gateway";

/// Whose service manager it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The user's: `systemctl --user`.
    User,
    /// The machine's: `systemctl`.
    System,
}

impl Scope {
    /// How to call systemctl for it.
    pub fn systemctl(self) -> &'static str {
        match self {
            Self::User => "systemctl --user",
            Self::System => "systemctl",
        }
    }
}

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// Which gateway.
    pub instance: InstanceName,
    /// Whose.
    pub scope: Scope,
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--state-dir`
    pub state: Option<PathBuf>,
    /// `--runtime-dir`
    pub runtime: Option<PathBuf>,
}

/// The places of one gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// The main configuration file.
    pub config_file: PathBuf,
    /// Whether that file must exist: it was named.
    pub config_named: bool,
    /// The directory of drop-ins, `*.toml` in the order of their names.
    pub config_drop_ins: PathBuf,
    /// The store and the keys.
    pub state: PathBuf,
    /// The control socket and the pid file.
    pub runtime: PathBuf,
}

impl Directories {
    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// The pid file of the stand-alone mode.
    pub fn pid_file(&self) -> PathBuf {
        self.runtime.join(super::pidfile::FILE_NAME)
    }
}

/// There is no telling where this user's files are.
#[derive(Debug, thiserror::Error)]
#[error("neither HOME nor {0} is set: set one, or name the place with {1}")]
pub struct NoHome(&'static str, &'static str);

/// Finds the places of a gateway.
///
/// # Errors
/// When nothing says where this user's files are.
pub fn resolve(wishes: &Wishes, unit: &UnitDirectories) -> Result<Directories, NoHome> {
    let uid = rustix::process::getuid().as_raw();
    resolve_with(wishes, unit, &|name| std::env::var_os(name), uid, &|path| path.is_dir())
}

fn resolve_with(
    wishes: &Wishes,
    unit: &UnitDirectories,
    vars: &dyn Fn(&str) -> Option<OsString>,
    uid: u32,
    is_dir: &dyn Fn(&PathBuf) -> bool,
) -> Result<Directories, NoHome> {
    // The XDG specification: a relative path is to be ignored.
    let absolute = |name: &str| vars(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = |variable: &'static str, in_home: &str, in_system: &str, flag: &'static str| match wishes.scope {
        Scope::System => Ok(PathBuf::from(in_system)),
        Scope::User => {
            absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(in_home))).ok_or(NoHome(variable, flag))
        }
    };
    let instance = wishes.instance.as_str();
    let state = match wishes.state.clone().or_else(|| unit.state.clone()) {
        Some(state) => state,
        None => base("XDG_STATE_HOME", ".local/state", "/var/lib", "--state-dir")?.join(NAME).join(instance),
    };
    let runtime = match wishes.runtime.clone().or_else(|| unit.runtime.clone()) {
        Some(runtime) => runtime,
        None => runtime_base(wishes.scope, &absolute, uid, is_dir)
            .map_or_else(|| state.join("run"), |base| base.join(NAME).join(instance)),
    };
    let (config_file, config_named) = match (&wishes.config, &unit.configuration) {
        (Some(file), _) => (file.clone(), true),
        (None, Some(directory)) => (directory.join("gateway.toml"), false),
        (None, None) => {
            let mut directory = base("XDG_CONFIG_HOME", ".config", "/etc", "--config")?.join(NAME);
            if !wishes.instance.is_default() {
                directory.push(instance);
            }
            (directory.join("gateway.toml"), false)
        }
    };
    // `gateway.toml` has `gateway.d`, `other.toml` has `other.d`.
    let config_drop_ins = config_file.with_extension("d");
    Ok(Directories { config_file, config_named, config_drop_ins, state, runtime })
}

fn runtime_base(
    scope: Scope,
    absolute: &dyn Fn(&str) -> Option<PathBuf>,
    uid: u32,
    is_dir: &dyn Fn(&PathBuf) -> bool,
) -> Option<PathBuf> {
    let system = PathBuf::from("/run");
    let of_user = PathBuf::from(format!("/run/user/{uid}"));
    match scope {
        Scope::System => Some(system),
        // Set by a login; without one (su, cron, a container) the user manager's place is known all the same.
        Scope::User => absolute("XDG_RUNTIME_DIR")
            .or_else(|| is_dir(&of_user).then_some(of_user))
            .or_else(|| (uid == 0).then_some(system)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(instance: &str, scope: Scope, unit: &UnitDirectories, vars: &[(&str, &str)]) -> Directories {
        let instance = instance.parse().expect("an instance name");
        let wishes = Wishes { instance, scope, config: None, state: None, runtime: None };
        let vars = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
        resolve_with(&wishes, unit, &vars, 1000, &|_| false).expect("resolved")
    }

    #[test]
    fn each_instance_has_places_of_its_own() {
        let vars = [("HOME", "/home/p"), ("XDG_RUNTIME_DIR", "/run/user/1000")];
        let plain = find("default", Scope::User, &UnitDirectories::default(), &vars);
        assert_eq!(plain.config_file, PathBuf::from("/home/p/.config/hermes-gateway/gateway.toml"));
        assert_eq!(plain.config_drop_ins, PathBuf::from("/home/p/.config/hermes-gateway/gateway.d"));
        assert_eq!(plain.state, PathBuf::from("/home/p/.local/state/hermes-gateway/default"));
        assert_eq!(plain.control_socket(), PathBuf::from("/run/user/1000/hermes-gateway/default/control.sock"));
        let named = find("work", Scope::User, &UnitDirectories::default(), &vars);
        assert_eq!(named.config_file, PathBuf::from("/home/p/.config/hermes-gateway/work/gateway.toml"));
        assert_eq!(named.state, PathBuf::from("/home/p/.local/state/hermes-gateway/work"));
        let system = find("work", Scope::System, &UnitDirectories::default(), &[]);
        assert_eq!(system.state, PathBuf::from("/var/lib/hermes-gateway/work"));
        assert_eq!(system.runtime, PathBuf::from("/run/hermes-gateway/work"));
    }

    #[test]
    fn what_systemd_made_wins_and_relative_variables_count_for_nothing() {
        let unit =
            UnitDirectories { state: Some("/var/lib/x".into()), configuration: Some("/etc/x".into()), runtime: None };
        let found = find("default", Scope::System, &unit, &[]);
        assert_eq!((found.state, found.config_file), ("/var/lib/x".into(), "/etc/x/gateway.toml".into()));
        let vars = [("HOME", "/home/p"), ("XDG_STATE_HOME", "relative")];
        let found = find("default", Scope::User, &UnitDirectories::default(), &vars);
        assert_eq!(found.state, PathBuf::from("/home/p/.local/state/hermes-gateway/default"));
        assert_eq!(found.runtime, PathBuf::from("/home/p/.local/state/hermes-gateway/default/run"));
    }
}
