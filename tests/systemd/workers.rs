//! Workers as units of a real user manager: they go on while the process that started them is killed.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout};

use super::PATIENCE;
use crate::machine::{Machine, Output};

mod driver;

/// A machine in which the driver is installed, which is this test binary.
fn machine() -> Option<Machine> {
    Machine::boot_if_available(&env::current_exe().expect("this test binary"))
}

/// The command line of one life of the gateway.
fn life(order: &str, variables: &[&str]) -> Vec<String> {
    let binary = env::current_exe().expect("this test binary");
    let name = binary.file_name().expect("a name").to_string_lossy();
    let mut command = vec!["env".to_owned(), format!("WORKER_DO={order}")];
    command.extend(variables.iter().map(|&variable| variable.to_owned()));
    command.push(format!("/usr/local/bin/{name}"));
    command.extend(["--exact", "systemd::workers::driver::driver", "--ignored", "--nocapture"].map(str::to_owned));
    command
}

fn told(stdout: &str) -> Vec<String> {
    // The harness prints the test's name and no line end before the first line.
    let line = |line: &str| Some(serde_json::from_str(line.split_once(driver::TOLD)?.1).expect("a JSON string"));
    stdout.lines().filter_map(line).collect()
}

/// A life that goes on.
struct Life {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Life {
    /// The next lines that it tells.
    fn tells(&mut self, lines: usize) -> Vec<String> {
        let seen = self.stdout.by_ref().lines().map(|line| line.expect("a line"));
        told(&seen.filter(|line| line.contains(driver::TOLD)).take(lines).collect::<Vec<_>>().join("\n"))
    }

    fn kill(mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("ours");
    }
}

impl Machine {
    /// One life that carries out one order; what it told.
    fn order(&self, order: &str, variables: &[&str]) -> Vec<String> {
        let output: Output = self.person(&life(order, variables).iter().map(String::as_str).collect::<Vec<_>>());
        told(&output.ok())
    }

    /// All units of workers that the user's manager knows, in whatever state.
    fn worker_units(&self) -> String {
        self.person_sh("systemctl --user list-units 'hermes-agent-*' --all --plain --no-legend").ok()
    }

    /// A life that stays, and what it has told in its first `lines` lines.
    fn stay(&self, order: &str, lines: usize) -> (Life, Vec<String>) {
        let command = life(order, &[]);
        let mut child = self.spawn_person(&command.iter().map(String::as_str).collect::<Vec<_>>());
        let mut life = Life { stdout: BufReader::new(child.stdout.take().expect("piped")), child };
        let told = life.tells(lines);
        (life, told)
    }
}

#[test]
fn a_worker_goes_on_over_a_kill_and_nothing_of_its_output_is_missing() {
    let Some(machine) = machine() else { return };
    // Writes "1" to "5", each when it is told to.
    let script = "for n in 1 2 3 4 5; do read word; echo $n $word; done; exit 7";
    let started = machine.order(&format!("start w/1 {script}"), &[]);
    assert_eq!(started, ["hermes-agent-default-w\\x2f1.service true"]);
    assert_eq!(machine.order("say w/1 a", &[]), ["Ok(())"]);
    let (reader, read) = machine.stay("follow w/1 4", 2);
    assert_eq!(read, ["4", "1 a\n"]);
    reader.kill();

    let (mut waiting, told) = machine.stay("await w/1", 1);
    assert_eq!(told, ["true"]);
    machine.order("say w/1 b", &[]);
    machine.person(&["systemctl", "--user", "daemon-reload"]).ok();
    machine.order("say w/1 c", &[]);
    machine.person(&["systemctl", "--user", "daemon-reexec"]).ok();
    machine.order("say w/1 d", &[]);
    machine.order("say w/1 e", &[]);
    assert_eq!(machine.order("read w/1 4", &[]), ["20", "2 b\n3 c\n4 d\n5 e\n"], "from its offset on, to the end");
    assert_eq!(waiting.tells(1), ["the agent has failed with exit status 7"], "who waited all the time is told");
    waiting.kill();
    assert_eq!(machine.order("end w/1", &[]), ["the agent has failed with exit status 7"]);
    assert_eq!(machine.order("forget w/1 20", &[]), ["true"]);
    assert_eq!(machine.order("stop w/1", &[]), ["the agent has failed with exit status 7"]);
    assert_eq!(machine.worker_units(), "");
    assert_eq!(machine.person_sh("ls -A ~/state/workers").ok(), "");
}

#[test]
fn ends_are_told_apart_and_a_whole_tree_is_ended() {
    let Some(machine) = machine() else { return };
    let end = |name: &str, script: &str, variables: &[&str]| {
        let started = machine.order(&format!("start {name} {script}"), variables);
        assert!(started[0].contains(".service"), "{started:?}");
        let end = machine.order(&format!("end {name}"), &[]);
        machine.order(&format!("stop {name}"), &[]);
        end[0].clone()
    };
    assert_eq!(end("well", "cat", &["WORKER_INPUT=x"]), "the agent has ended");
    assert_eq!(end("ill", "exit 203", &[]), "the agent has failed with exit status 203");
    assert_eq!(end("killed", "kill -SEGV $$", &[]), "the agent was ended by SIGSEGV");
    assert_eq!(end("slow", "exec sleep 1000", &["WORKER_SECONDS=1"]), "the agent ran for too long (1s)");
    let chatty = end("chatty", "exec yes", &["WORKER_OUTPUT=65536"]);
    assert_eq!(chatty, "the agent wrote more than can be read (64 KiB)");

    let flood = machine.order("start flood exec yes", &["WORKER_OUTPUT=65536"]);
    assert!(flood[0].ends_with("true"), "{flood:?}");
    machine.order("read flood 0", &[]);
    let flood = machine.order("stop flood", &[]);
    assert_eq!(flood, ["the agent wrote more than can be read (64 KiB)"], "who reads more slowly than it writes");

    // Each level ignores SIGTERM and is in a session of its own.
    let tree = "trap '' TERM; setsid sh -c 'trap \"\" TERM; setsid sleep 4711 & sleep 4711' & echo up; sleep 4711";
    machine.order(&format!("start tree {tree}"), &[]);
    machine.await_fact("the tree is up", PATIENCE, || sleepers(&machine, "4711") == 3);
    assert_eq!(machine.order("stop tree", &[]), ["the agent was ended by SIGKILL"]);
    assert_eq!(sleepers(&machine, "4711"), 0);

    // What outlives the main process ends with it, in success and in failure.
    assert_eq!(end("left", "setsid sleep 4712 & exit 0", &[]), "the agent has ended");
    assert_eq!(end("behind", "setsid sleep 4712 & exit 1", &[]), "the agent has failed with exit status 1");
    assert_eq!(sleepers(&machine, "4712"), 0);

    assert_eq!(machine.worker_units(), "");
    assert_eq!(machine.person_sh("systemctl --user list-units --failed --plain --no-legend").ok(), "");
}

fn sleepers(machine: &Machine, seconds: &str) -> usize {
    machine.root_sh(&format!("pgrep -c -x -f 'sleep {seconds}' || true")).ok().parse().expect("a number")
}

#[test]
fn what_cannot_start_says_why_and_leaves_nothing() {
    let Some(machine) = machine() else { return };
    let refused = |variables: &[&str]| machine.order("start w true", variables).concat();
    let missing = refused(&["WORKER_PROGRAM=no-such"]);
    assert!(missing.contains("no program \'no-such\'"), "{missing}");
    machine.person_sh("mkdir -p bin; printf '#!/no/such/interpreter\n' > bin/broken; chmod +x bin/broken").ok();
    let broken = refused(&["WORKER_PROGRAM=/home/person/bin/broken"]);
    assert!(broken.contains("its program cannot be executed"), "{broken}");
    machine.order("start twice sleep 1000", &[]);
    let twice = machine.order("start twice sleep 1000", &[]).concat();
    assert!(twice.contains("is running already"), "{twice}");
    assert_eq!(machine.order("sweep - ", &[]), ["twice"]);
    assert_eq!(machine.worker_units(), "");
    assert_eq!(machine.person_sh("ls -A ~/state/workers").ok(), "");
}

#[test]
fn a_sweep_takes_what_is_not_kept_and_only_that() {
    let Some(machine) = machine() else { return };
    for name in ["one", "two", "three/a-b"] {
        machine.order(&format!("start {name} sleep 1000"), &[]);
    }
    // Not ours: another instance's, whose name begins like our own.
    machine.person_sh("systemd-run --user --unit=hermes-agent-default-b-one sleep 1000").ok();
    // Ours, and its files are lost.
    machine.person_sh("systemd-run --user --unit=hermes-agent-default-lost sleep 1000").ok();
    assert_eq!(machine.order("sweep - two", &[]), ["hermes-agent-default-lost.service one three/a-b"]);
    let left = machine.worker_units();
    assert_eq!(left.lines().count(), 2, "{left}");
    assert!(left.contains("hermes-agent-default-two.service") && left.contains("hermes-agent-default-b-one"), "{left}");
    assert_eq!(machine.order("find one", &[]), ["none"]);
    assert_eq!(machine.order("find two", &[]), ["two"]);
    machine.person(&["systemctl", "--user", "stop", "hermes-agent-default-two.service"]).ok();
    assert_eq!(machine.order("end two", &[]), ["the agent is gone, and nothing is known of its end"]);
    assert_eq!(machine.order("sweep - ", &[]), ["two"]);
}

#[test]
fn a_worker_sees_its_own_and_nothing_of_ours() {
    let Some(machine) = machine() else { return };
    machine.person_sh("mkdir -p keys open state; echo secret > keys/key; echo secret > state/secret").ok();
    let script = "env | sort; echo err >&2; ls /proc/self/fd | tr '\n' ' '; echo; \
        cat ~person/state/secret ~person/keys/key; echo mine > ~person/work/a && echo open > ~person/open/a; \
        echo no > ~person/no; echo tmp > /tmp/a && ls /tmp; ls /run/user/1000; umask; \
        grep -h -E 'NoNewPrivs|CapBnd' /proc/self/status; \
        python3 -c 'import socket; socket.socket()' || echo no-network";
    let variables = ["WORKER_HIDDEN=/home/person/keys", "WORKER_WRITABLE=/home/person/open", "WORKER_NO_NETWORK=1"];
    machine.order(&format!("start w {script}"), &variables);
    let seen = machine.order("read w 0", &[])[1].clone();
    let expected = [
        "ODD=a \"b\" $HOME `c` \\n %h",
        "second line",
        "PATH=/usr/bin:/bin",
        "PWD=/home/person/work",
        "a",
        "0077",
        "NoNewPrivs:\t1",
        "CapBnd:\t0000000000000000",
        "no-network",
    ];
    let mut lines: Vec<_> = seen.lines().collect();
    let streams = lines.iter().position(|line| line.starts_with("0 1 2")).expect("the open descriptors");
    // `ls` itself has the directory open.
    assert_eq!(lines.remove(streams), "0 1 2 3 ");
    lines.sort_unstable();
    let mut sorted = expected.to_vec();
    sorted.sort_unstable();
    assert_eq!(lines, sorted, "the whole environment is what was given; {seen}");
    assert!(machine.person_sh("cat work/a open/a").ok().contains("open"));
    let log = machine.person_sh("journalctl --user -o cat -t hermes-agent -u 'hermes-agent-default-w.service'").ok();
    assert!(log.contains("err"), "stderr is in the journal under the unit: {log}");
    assert!(!seen.contains("secret") && !machine.person(&["test", "-e", "/tmp/a"]).success());
    machine.order("stop w", &[]);
}

#[test]
fn a_worker_that_eats_all_memory_is_ended_alone() {
    let Some(machine) = machine() else { return };
    if !machine.root_sh("cat /sys/fs/cgroup/cgroup.controllers").ok().split_whitespace().any(|name| name == "memory") {
        // Also in CI: the kernel has given the controller to cgroup v1, and no test can take it from there.
        eprintln!("SKIPPED: this machine's cgroup v2 tree has no memory controller, so no limit of memory holds");
        return;
    }
    machine.order("start greedy tail /dev/zero; sleep 1000", &["WORKER_MEMORY=67108864"]);
    machine.order("start modest sleep 1000", &["WORKER_MEMORY=67108864"]);
    assert_eq!(machine.order("end greedy", &[]), ["the agent ran out of memory (64 MiB)"]);
    assert_eq!(machine.order("sweep - modest", &[]), ["greedy"]);
    assert!(machine.worker_units().contains("hermes-agent-default-modest.service loaded active running"));
}

#[test]
fn where_users_make_no_namespaces_workers_run_without() {
    let Some(machine) = machine() else { return };
    machine
        .root_sh(
            "mkdir -p /etc/systemd/system/user@.service.d\n\
             printf '[Service]\\nRestrictNamespaces=yes\\n' > /etc/systemd/system/user@.service.d/test.conf\n\
             systemctl daemon-reload; systemctl restart user@1000.service",
        )
        .ok();
    machine.await_fact("the bus of person is there", PATIENCE, || {
        machine.person(&["systemctl", "--user", "is-system-running"]).stdout() == "running"
    });
    machine.person_sh("mkdir -p state; echo ours > state/ours").ok();
    let started = machine.order("start w cat ~person/state/ours; grep NoNewPrivs /proc/self/status", &[]);
    assert!(started[0].starts_with("hermes-agent-default-w.service"), "{started:?}");
    assert_eq!(machine.order("read w 0", &[])[1], "ours\nNoNewPrivs:\t1\n", "what needs no namespace still holds");
    machine.order("stop w", &[]);
    assert_eq!(machine.worker_units(), "");
}

#[test]
fn of_the_system_only_root_makes_units() {
    let Some(machine) = machine() else { return };
    let system = "WORKER_SYSTEM=1";
    let as_root = |order: &str| {
        let command = life(order, &[system]);
        told(&machine.root(&command.iter().map(String::as_str).collect::<Vec<_>>()).ok())
    };
    assert_eq!(
        as_root("start w read word; echo $word; cat ~/state/workers/w/worker.json; exit 2"),
        ["hermes-agent-default-w.service true"]
    );
    as_root("say w hello");
    assert_eq!(as_root("read w 0"), ["6", "hello\n"]);
    assert_eq!(as_root("stop w"), ["the agent has failed with exit status 2"]);
    assert_eq!(machine.root_sh("systemctl list-units 'hermes-agent-*' --all --plain --no-legend").ok(), "");

    assert_eq!(machine.order("start w exec sleep 1000", &[system]), ["child true"]);
    assert_eq!(machine.order("sweep -", &[system]), ["w"]);
}

/// The sandbox of a gateway's unit as options of systemd-run.
fn sandbox(unit: &str) -> String {
    let kinds =
        ["System", "Restrict", "Lock", "MemoryDeny", "NoNew", "Protect", "Private", "Capability", "UMask", "Dynamic"];
    let lines = unit.lines().filter(|line| kinds.iter().any(|kind| line.starts_with(kind)));
    lines.map(|line| format!("-p '{line}' ")).collect()
}

#[test]
fn the_gateways_own_sandbox_is_no_obstacle() {
    let Some(machine) = machine() else { return };
    let user = sandbox(include_str!("../../units/user/hermes-gateway@.service"));
    let system = sandbox(include_str!("../../units/system/hermes-gateway@.service"));
    assert!(user.contains("SystemCallFilter") && system.contains("DynamicUser"), "{user} {system}");
    let quoted = |order: &str, variables: &[&str]| {
        life(order, variables).iter().map(|word| format!("'{word}' ")).collect::<String>()
    };
    let run = "systemd-run --quiet --pipe --wait";
    for (order, expected) in [
        ("start w cat", "hermes-agent-default-w.service true"),
        ("say w hello", "Ok(())"),
        ("forget w 1", "true"),
        ("stop w", "the agent was ended by SIGTERM"),
    ] {
        let command = quoted(order, &[]);
        let output = machine.person_sh(&format!("{run} --user {user} {command}"));
        assert_eq!(told(&output.ok()), [expected], "{order}");
    }
    // One life only, for children do not outlive the gateway's unit.
    let command = quoted("converse w cat", &["WORKER_SYSTEM=1", "HOME=/var/lib/test"]);
    let output = machine.root_sh(&format!("{run} -p StateDirectory=test {system} {command}"));
    assert_eq!(told(&output.ok()), ["child true", "hello\n", "true", "the agent was ended by SIGTERM"]);
}
