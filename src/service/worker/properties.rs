//! What a worker's unit is asked to be, as properties of a transient unit.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use zbus::{Fd, Variant};

use super::Spec;
use crate::service::directories::Scope;

/// All workers of a manager, so that they can be seen and limited together.
const SLICE: &str = "hermes-agents.slice";
/// Largest file that a worker can write, in bytes, its spool included: the last wall, far behind [`super::Limits::output`].
const LARGEST_FILE: u64 = 64 << 30;
/// After SIGTERM from the manager, before SIGKILL. Whoever stops a worker through us has a patience of their own.
const STOP_USEC: u64 = 10_000_000;
/// Scratch space that each worker has for itself.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];
/// Variables that systemd itself gives to what it starts. Some would make a worker, or what it starts, believe that
/// systemd supervises it.
const FROM_SYSTEMD: [&str; 22] = [
    "CREDENTIALS_DIRECTORY",
    "EXIT_CODE",
    "EXIT_STATUS",
    "FDSTORE",
    "HOME",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LOGNAME",
    "MAINPID",
    "MANAGERPID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NOTIFY_SOCKET",
    "SHELL",
    "SYSTEMD_EXEC_PID",
    "USER",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "XDG_RUNTIME_DIR",
];

/// A property and its value.
pub(super) type Property = (&'static str, Variant<'static>);

/// What the worker sees of the file system. All paths exist and are free of links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct View {
    pub(super) writable: Vec<PathBuf>,
    pub(super) hidden_directories: Vec<PathBuf>,
    pub(super) hidden_files: Vec<PathBuf>,
}

/// The properties that hold wherever a unit runs: seccomp, prctl, rlimits and control groups.
pub(super) fn plain(spec: &Spec, program: &Path, stdin: OwnedFd, stdout: OwnedFd) -> Vec<Property> {
    let argv: Vec<String> = spec.command.clone();
    // Neither "$" nor "%" in an argument means anything.
    let flags = vec!["no-env-expand".to_owned()];
    let mut properties: Vec<Property> = vec![
        ("Description", spec.description.clone().into()),
        ("Slice", SLICE.into()),
        // Started is what runs its program: a missing one is a failed start, not an end.
        ("Type", "exec".into()),
        ("ExecStartEx", vec![(text(program), argv, flags)].into()),
        ("WorkingDirectory", text(&spec.directory).into()),
        ("StandardInputFileDescriptor", Fd::from(stdin).into()),
        ("StandardOutputFileDescriptor", Fd::from(stdout).into()),
        // Says nothing of stdout, which is the spool. But where both say "journal", stderr becomes what stdout is.
        ("StandardOutput", "null".into()),
        ("StandardError", "journal".into()),
        ("SyslogIdentifier", "hermes-agent".into()),
        // How it ended can still be asked for when nobody was there at the moment; whoever asked clears it away.
        ("RemainAfterExit", true.into()),
        ("KillMode", "control-group".into()),
        ("TimeoutStopUSec", STOP_USEC.into()),
        // One process over the limit takes the rest along, and the end is told from a plain SIGKILL.
        ("OOMPolicy", "kill".into()),
        ("NoNewPrivileges", true.into()),
        ("RestrictSUIDSGID", true.into()),
        ("RestrictRealtime", true.into()),
        ("LockPersonality", true.into()),
        ("UMask", 0o077u32.into()),
        ("LimitFSIZE", LARGEST_FILE.into()),
    ];
    let limits = &spec.limits;
    if let Some(bytes) = limits.memory {
        properties.extend([("MemoryMax", bytes.into()), ("MemorySwapMax", 0u64.into())]);
    }
    properties.extend(limits.tasks.map(|tasks| ("TasksMax", tasks.into())));
    // Microseconds of CPU for each second.
    properties.extend(limits.cpu_percent.map(|percent| ("CPUQuotaPerSecUSec", (u64::from(percent) * 10_000).into())));
    properties.extend(limits.cpu_weight.map(|weight| ("CPUWeight", u64::from(weight).into())));
    let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX - 1);
    properties.extend(limits.runtime.map(|time| ("RuntimeMaxUSec", micros(time).into())));
    if !spec.sandbox.network {
        // Holds also where users can make no network of their own.
        properties.push(("RestrictAddressFamilies", (true, vec!["AF_UNIX".to_owned()]).into()));
    }
    properties
}

/// The environment: exactly what is given, out of a file, for properties can be read by other users.
pub(super) fn environment(given: &BTreeMap<String, String>, file: &Path, of_manager: Vec<String>) -> Vec<Property> {
    let mut unset: Vec<_> = FROM_SYSTEMD.map(str::to_owned).into_iter().chain(of_manager).collect();
    unset.retain(|name| !given.contains_key(name));
    unset.sort_unstable();
    unset.dedup();
    vec![("EnvironmentFiles", vec![(pattern(file), false)].into()), ("UnsetEnvironment", unset.into())]
}

/// A path where systemd expects a glob pattern.
fn pattern(path: &Path) -> String {
    let is_special = |c| matches!(c, '\\' | '*' | '?' | '[' | ']');
    let escaped = |c| is_special(c).then_some('\\').into_iter().chain([c]);
    text(path).chars().flat_map(escaped).collect()
}

/// The properties that need namespaces, which some machines let no user make.
pub(super) fn namespaces(scope: Scope, view: &View, network: bool) -> Vec<Property> {
    let below = |path: &PathBuf, above: &Path| path.starts_with(above);
    let covers = |path: &PathBuf| {
        TEMPORARY.iter().any(|temporary| below(path, Path::new(temporary)))
            || view.hidden_directories.iter().any(|hidden| below(path, hidden))
    };
    let (bound, open): (Vec<_>, Vec<_>) = view.writable.iter().partition(|path| covers(path));
    let texts = |paths: Vec<&PathBuf>| paths.into_iter().map(|path| text(path)).collect::<Vec<_>>();
    // An empty directory rather than an inaccessible one: something below it may be brought back.
    let emptied = view.hidden_directories.iter().map(|path| (text(path), "ro".to_owned()));
    let brought_back = texts(bound).into_iter().map(|path| (path.clone(), path, false, 0u64));
    let mut properties: Vec<Property> = vec![
        ("ProtectSystem", "strict".into()),
        ("PrivateTmp", true.into()),
        // Or it could leave its own control group, and its limits.
        ("ProtectControlGroups", true.into()),
        ("ProtectKernelTunables", true.into()),
        ("ReadWritePaths", texts(open).into()),
        ("InaccessiblePaths", texts(view.hidden_files.iter().collect()).into()),
        ("TemporaryFileSystem", emptied.collect::<Vec<_>>().into()),
        ("BindPaths", brought_back.collect::<Vec<_>>().into()),
    ];
    if scope == Scope::User {
        // What gives a user the right to make the other namespaces; and no more rights than that.
        properties.extend([("PrivateUsers", true.into()), ("CapabilityBoundingSet", 0u64.into())]);
    }
    if !network {
        properties.push(("PrivateNetwork", true.into()));
    }
    properties
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::worker::{Input, Limits, Sandbox};

    fn spec() -> Spec {
        Spec {
            name: "n".into(),
            description: "d".into(),
            command: vec!["sh".into(), "$HOME %h".into()],
            environment: BTreeMap::from([("HOME".into(), "/h".into())]),
            directory: "/h/work".into(),
            input: Input::Open,
            limits: Limits { memory: Some(1 << 20), cpu_percent: Some(50), ..Limits::default() },
            sandbox: Sandbox::default(),
        }
    }

    fn shown(properties: &[Property], name: &str) -> Option<String> {
        properties.iter().find(|(n, _)| *n == name).map(|(_, value)| format!("{value:?}"))
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("/dev/null").into()
    }

    #[test]
    fn only_the_limits_that_are_wanted_are_set() {
        let properties = plain(&spec(), Path::new("/bin/sh"), null(), null());
        assert_eq!(shown(&properties, "MemoryMax").as_deref(), Some("U64(1048576)"));
        assert_eq!(shown(&properties, "MemorySwapMax").as_deref(), Some("U64(0)"));
        assert_eq!(shown(&properties, "CPUQuotaPerSecUSec").as_deref(), Some("U64(500000)"));
        for absent in ["TasksMax", "RuntimeMaxUSec", "CPUWeight", "RestrictAddressFamilies"] {
            assert_eq!(shown(&properties, absent), None, "{absent}");
        }
        let mut isolated = spec();
        isolated.sandbox.network = false;
        let properties = plain(&isolated, Path::new("/bin/sh"), null(), null());
        assert!(shown(&properties, "RestrictAddressFamilies").is_some());
    }

    #[test]
    fn what_is_given_stays_in_the_environment_and_the_managers_own_goes() {
        let file = Path::new("/s/[x]/a\\x2f/environment");
        let properties = environment(&spec().environment, file, vec!["MINE".into(), "HOME".into()]);
        let unset = shown(&properties, "UnsetEnvironment").expect("set");
        assert!(
            unset.contains("\"MINE\"") && unset.contains("\"NOTIFY_SOCKET\"") && !unset.contains("\"HOME\""),
            "{unset}"
        );
        assert_eq!(pattern(file), "/s/\\[x\\]/a\\\\x2f/environment", "the file's name is a pattern to systemd");
    }

    #[test]
    fn what_lies_in_a_hidden_or_private_directory_is_brought_back() {
        let paths = |texts: &[&str]| texts.iter().map(PathBuf::from).collect::<Vec<_>>();
        let view = View {
            writable: paths(&["/h/state/work", "/tmp/x", "/h/code"]),
            hidden_directories: paths(&["/h/state"]),
            hidden_files: paths(&["/h/key"]),
        };
        let properties = namespaces(Scope::User, &view, false);
        let bound = shown(&properties, "BindPaths").expect("set");
        assert!(bound.contains("/h/state/work") && bound.contains("/tmp/x") && !bound.contains("/h/code"), "{bound}");
        assert!(shown(&properties, "ReadWritePaths").expect("set").contains("/h/code"));
        assert!(shown(&properties, "InaccessiblePaths").expect("set").contains("/h/key"));
        assert!(shown(&properties, "PrivateUsers").is_some() && shown(&properties, "PrivateNetwork").is_some());
        let of_root = namespaces(Scope::System, &view, true);
        assert!(shown(&of_root, "PrivateUsers").is_none() && shown(&of_root, "PrivateNetwork").is_none());
    }
}
