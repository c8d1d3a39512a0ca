//! Workers as units of a real user manager: they go on while the process that started them is killed.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::Child;

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
    let line = |line: &str| Some(line.split_once(driver::TOLD)?.1.to_owned());
    stdout.lines().filter_map(line).collect()
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

    fn worker_property(&self, name: &str, property: &str) -> String {
        let unit = format!("hermes-agent-default-{name}.service");
        self.person(&["systemctl", "--user", "show", "--value", "-p", property, &unit]).ok()
    }

    /// A life that stays, and what it has told in its first `lines` lines.
    fn stay(&self, order: &str, lines: usize) -> (Child, Vec<String>) {
        let command = life(order, &[]);
        let mut child = self.spawn_person(&command.iter().map(String::as_str).collect::<Vec<_>>());
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let seen = stdout.lines().map(|line| line.expect("a line"));
        let seen = seen.filter(|line| line.contains(driver::TOLD)).take(lines).collect::<Vec<_>>().join("\n");
        (child, told(&seen))
    }
}

#[test]
fn a_worker_goes_on_over_a_kill_and_nothing_of_its_output_is_missing() {
    let Some(machine) = machine() else { return };
    // Writes "1" to "5", each when it is told to.
    let script = "for n in 1 2 3 4 5; do read word; echo $n $word; done; exit 7";
    let started = machine.order(&format!("start w/1 {script}"), &[]);
    assert_eq!(started, ["hermes-agent-default-w\\\\x2f1.service true"], "{started:?}");
    assert_eq!(machine.order("say w/1 a", &[]), ["Ok(())"]);
    let (mut reader, read) = machine.stay("follow w/1 4", 2);
    assert_eq!(read, ["4", "1 a\\n"]);
    reader.kill().and_then(|()| reader.wait()).expect("ours");

    machine.order("say w/1 b", &[]);
    machine.person(&["systemctl", "--user", "daemon-reload"]).ok();
    machine.order("say w/1 c", &[]);
    machine.person(&["systemctl", "--user", "daemon-reexec"]).ok();
    machine.order("say w/1 d", &[]);
    machine.order("say w/1 e", &[]);
    assert_eq!(machine.order("read w/1 4", &[]), ["20", "2 b\\n3 c\\n4 d\\n5 e\\n"], "from its offset on, to the end");
    assert_eq!(machine.order("end w/1", &[]), ["the agent has failed with exit status 7"]);
    assert_eq!(machine.order("forget w/1 20", &[]), ["true"]);
    assert_eq!(machine.order("stop w/1", &[]), ["the agent has failed with exit status 7"]);
    assert_eq!(machine.worker_units(), "");
    assert_eq!(machine.person_sh("ls -A ~/state/workers").ok(), "");
}
