//! A throwaway machine with a real systemd as PID 1, made of Linux namespaces by `systemd/boot.sh`.
//!
//! Contract: [`Machine::boot`] returns once systemd and the user manager of `person` (uid 1000, lingering) are up.
//! Commands run inside as root or as `person`, with a clean environment and within [`COMMAND`]. Nothing outlives the
//! machine: dropping it powers it off, and when the test process dies in any other way, the keeper's stdin ends and it
//! kills the machine. The host keeps no process, mount, cgroup or file of it. Several may run at once.

use std::{
    env, fmt, fs,
    fs::File,
    os::unix::{
        fs::{FileExt, MetadataExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long a boot may take, until the user's manager is up.
const BOOT: Duration = Duration::from_secs(60);

/// How long a machine may take to power off before it is killed.
const POWEROFF: Duration = Duration::from_secs(10);

/// How long one command inside may run: a hung one fails its test instead of hanging it.
const COMMAND: &str = "120";

/// Between two looks at a fact.
const LOOK: Duration = Duration::from_millis(20);

/// Inside, as on a fresh Debian.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs of the host that booting and entering a machine need, with the Debian package of each.
const TOOLS: [(&str, &str); 8] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("ip", "iproute2"),
    ("useradd", "passwd"),
    ("systemctl", "systemd"),
    ("dbus-daemon", "dbus"),
    ("timeout", "coreutils"),
];

/// Files of the host that a boot to a user's bus needs, with the Debian package of each.
const FILES: [(&str, &str); 3] = [
    ("/lib/systemd/systemd", "systemd"),
    ("/usr/lib/systemd/user/dbus.socket", "dbus-user-session"),
    ("/usr/share/pam-configs/systemd", "libpam-systemd"),
];

/// A booted machine. Dropping it powers it off and waits until it is gone.
pub struct Machine {
    /// `boot.sh`, which runs until the machine has ended and is cleared away. Its stdin is the machine's leash.
    keeper: Child,
    /// What the keeper and the early systemd print. Already unlinked.
    log: File,
    /// The machine's cgroup on the host.
    cgroup: PathBuf,
    /// The pid of the machine's systemd, on the host.
    init: u32,
}

impl Machine {
    /// Boots a machine in which a copy of `binary` is in `/usr/local/bin`.
    ///
    /// # Panics
    ///
    /// When it is not up within a minute, with the boot's log, the failed units and the last journal lines.
    pub fn boot(binary: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("machine-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup_tree().expect("a cgroup v2 tree is mounted").join(&name);
        let scratch = env::temp_dir().join(&name);
        let binary = binary.canonicalize().unwrap_or_else(|e| panic!("the binary {}: {e}", binary.display()));

        let log = unlinked(&scratch.with_extension("log"));
        let writer = || log.try_clone().expect("the boot log is duplicated");
        let keeper = Command::new("bash")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd/boot.sh"))
            .args([&cgroup, &scratch, &binary])
            // Out of the terminal's reach: Ctrl-C ends the test, whose end ends the keeper in its own order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(writer())
            .stderr(writer())
            .spawn()
            .expect("bash runs boot.sh");

        let mut machine = Self { keeper, log, cgroup, init: 0 };
        machine.await_boot();
        machine
    }

    /// Boots a machine, or says on stderr why this host cannot and returns `None`.
    ///
    /// # Panics
    ///
    /// In CI (`CI` is set), where a missing requirement must not pass for success.
    pub fn boot_if_available(binary: &Path) -> Option<Self> {
        match Self::available() {
            Ok(()) => Some(Self::boot(binary)),
            Err(why) if env::var_os("CI").is_some() => panic!("no machine in CI: {why}"),
            Err(why) => {
                eprintln!("SKIPPED: no test under a real systemd: {why}");
                None
            }
        }
    }

    /// Whether this host can boot one.
    ///
    /// # Errors
    ///
    /// What is missing, and from which Debian package it comes.
    pub fn available() -> Result<(), String> {
        let uid = fs::metadata("/proc/self").map_err(|e| format!("/proc/self: {e}"))?.uid();
        if uid != 0 {
            return Err(format!("needs root to make namespaces, is uid {uid}"));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        for (tool, package) in TOOLS {
            if !env::split_paths(&path).any(|dir| dir.join(tool).is_file()) {
                return Err(format!("no `{tool}` on PATH: install {package}"));
            }
        }
        for (file, package) in FILES {
            if !Path::new(file).exists() {
                return Err(format!("no {file}: install {package}"));
            }
        }
        cgroup_tree().map(drop).ok_or_else(|| "no cgroup v2 tree is mounted".to_owned())
    }

    /// Runs a command inside as root and waits for its end.
    pub fn root(&self, command: &[&str]) -> Output {
        self.run(Who::Root, command)
    }

    /// Runs a command inside as `person`, with the two variables of a login session that lead to its user manager.
    pub fn person(&self, command: &[&str]) -> Output {
        self.run(Who::Person, command)
    }

    /// Runs a command inside as `person` without `XDG_RUNTIME_DIR` and `DBUS_SESSION_BUS_ADDRESS`, as under plain `su`.
    pub fn person_bare(&self, command: &[&str]) -> Output {
        self.run(Who::PersonBare, command)
    }

    /// Runs a bash script inside as root; the first failure ends it.
    pub fn root_sh(&self, script: &str) -> Output {
        self.root(&["bash", "-euo", "pipefail", "-c", script])
    }

    /// Runs a bash script inside as `person`; the first failure ends it.
    pub fn person_sh(&self, script: &str) -> Output {
        self.person(&["bash", "-euo", "pipefail", "-c", script])
    }

    /// Starts a command inside as `person`, stdin and stdout piped. Killing the child kills the command itself inside.
    pub fn spawn_person(&self, command: &[&str]) -> Child {
        self.spawn(Who::Person, command)
    }

    /// Waits until `fact` holds, asking again and again.
    ///
    /// # Panics
    ///
    /// When it does not within `within`, with `what` was awaited and the last journal lines.
    pub fn await_fact(&self, what: &str, within: Duration, mut fact: impl FnMut() -> bool) {
        let end = Instant::now() + within;
        while !fact() {
            assert!(Instant::now() < end, "not within {within:?}: {what}\n{}", self.last_words());
            thread::sleep(LOOK);
        }
    }

    /// Waits for systemd, then for the manager and the bus of `person`.
    fn await_boot(&mut self) {
        let end = Instant::now() + BOOT;
        // As soon as systemd rules its cgroup tree it moves into this one: from then on its namespaces are complete.
        let procs = self.cgroup.join("init.scope/cgroup.procs");
        self.init = loop {
            if let Some(pid) = fs::read_to_string(&procs).ok().and_then(|pids| pids.lines().next()?.parse().ok()) {
                break pid;
            }
            let ended = self.keeper.try_wait().expect("the keeper is a child of this process");
            assert!(ended.is_none() && Instant::now() < end, "no systemd: {ended:?}\n{}", self.boot_log());
            thread::sleep(LOOK);
        };
        let left = || end.saturating_duration_since(Instant::now());
        self.await_fact("systemd listens", left(), || self.root(&["test", "-S", "/run/systemd/private"]).success());

        let state = self.root(&["timeout", &left().as_secs().to_string(), "systemctl", "is-system-running", "--wait"]);
        match state.stdout().as_str() {
            "running" => {}
            "degraded" => eprintln!("the machine is degraded:\n{}", self.failed_units()),
            _ => panic!("systemd is not up: {state}\n{}\n{}", self.failed_units(), self.last_words()),
        }
        self.await_fact("the user manager of person is active", left(), || {
            self.root(&["systemctl", "is-active", "--quiet", "user@1000.service"]).success()
        });
        self.await_fact("the bus of person is there", left(), || {
            self.root(&["test", "-S", "/run/user/1000/bus"]).success()
        });
    }

    fn run(&self, who: Who, command: &[&str]) -> Output {
        let bounded = [&["timeout", "--kill-after=5", COMMAND], command].concat();
        let result = self.enter(who, &bounded).stdin(Stdio::null()).output().expect("nsenter runs");
        Output { command: format!("{who:?}: {}", command.join(" ")), result }
    }

    fn spawn(&self, who: Who, command: &[&str]) -> Child {
        let mut entered = self.enter(who, command);
        entered.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("nsenter runs")
    }

    /// The way in: all namespaces of the machine's systemd, then the user.
    fn enter(&self, who: Who, command: &[&str]) -> Command {
        let mut entry = Command::new("nsenter");
        entry.args(["-t", &self.init.to_string(), "-m", "-p", "-u", "-i", "-C", "-n", "--"]);
        // nsenter stays outside as the parent. Its death must be the command's, or a killed child would live on inside.
        entry.args(["setpriv", "--pdeathsig", "KILL"]);
        // PATH also finds nsenter itself on the host.
        entry.env_clear().envs([("PATH", PATH), ("LANG", "C.UTF-8")]);
        match who {
            Who::Root => entry.envs([("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root")]),
            Who::Person | Who::PersonBare => entry
                .args(["--reuid=1000", "--regid=1000", "--init-groups", "env", "--chdir=/home/person"])
                .envs([("HOME", "/home/person"), ("USER", "person"), ("LOGNAME", "person")]),
        };
        if matches!(who, Who::Person) {
            entry.env("XDG_RUNTIME_DIR", "/run/user/1000");
            entry.env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/user/1000/bus");
        }
        entry.args(command);
        entry
    }

    fn boot_log(&self) -> String {
        // Read at an offset of its own: the keeper writes through the same open file.
        let mut text = vec![0; 64 * 1024];
        let length = self.log.read_at(&mut text, 0).unwrap_or(0);
        format!("--- boot log\n{}", String::from_utf8_lossy(&text[..length]))
    }

    fn failed_units(&self) -> String {
        format!("--- failed units\n{}", self.root(&["systemctl", "list-units", "--failed", "--plain", "--no-legend"]))
    }

    fn last_words(&self) -> String {
        let journal = self.root(&["journalctl", "--no-pager", "--lines=60", "--output=short-precise"]);
        format!("{}\n--- journal\n{journal}", self.boot_log())
    }
}

impl Drop for Machine {
    /// Powers off, and kills what has not ended in time.
    fn drop(&mut self) {
        if self.init != 0 {
            self.root(&["systemctl", "poweroff", "--no-block"]);
            let end = Instant::now() + POWEROFF;
            while matches!(self.keeper.try_wait(), Ok(None)) && Instant::now() < end {
                thread::sleep(LOOK);
            }
        }
        // Waiting closes the leash first, on which the keeper kills a machine that still runs.
        if let Err(e) = self.keeper.wait() {
            eprintln!("the keeper of {}: {e}", self.cgroup.display());
        }
    }
}

/// As whom a command runs inside.
#[derive(Clone, Copy, Debug)]
enum Who {
    Root,
    Person,
    PersonBare,
}

/// What a command inside returned.
pub struct Output {
    command: String,
    result: process::Output,
}

impl Output {
    /// Its stdout, trimmed.
    ///
    /// # Panics
    ///
    /// When the command failed, with all it said.
    pub fn ok(&self) -> String {
        assert!(self.success(), "{self}");
        self.stdout()
    }

    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.result.status.success()
    }

    /// Its exit code; `None` when a signal ended it. 124 means it ran into the time bound.
    pub fn status_code(&self) -> Option<i32> {
        self.result.status.code()
    }

    /// What it printed on stdout, trimmed.
    pub fn stdout(&self) -> String {
        trimmed(&self.result.stdout)
    }

    /// What it printed on stderr, trimmed.
    pub fn stderr(&self) -> String {
        trimmed(&self.result.stderr)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, result } = self;
        write!(f, "{command}\n{}\nstdout: {}\nstderr: {}", result.status, self.stdout(), self.stderr())
    }
}

fn trimmed(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// A file that only its handles keep: no way to end leaves it behind.
fn unlinked(path: &Path) -> File {
    let file = File::options().read(true).append(true).create_new(true).open(path);
    let file = file.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    fs::remove_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file
}

/// Where the host has mounted cgroup v2. A machine's cgroup is made at the top of it: only there do all controllers
/// that the host gives away reach it.
fn cgroup_tree() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    });
    points.next()
}
