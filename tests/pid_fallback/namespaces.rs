//! Containers: pids begin at 1 in each, and mean nothing in the next.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use super::{NO_UNIT, await_fact, can_run, ended, holders, said};
use crate::gateway::{BINARY, Gateway, Home};

/// A pid namespace of its own, with a /proc that shows it, gone with `unshare`.
pub const UNSHARE: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];
/// Makes the program the second process of its namespace.
const SECOND: [&str; 4] = ["sh", "-c", "\"$@\"; exit $?", "sh"];

pub fn can_unshare() -> bool {
    let probe = [&["unshare"][..], &UNSHARE, &["true"]].concat();
    can_run("pid namespaces", &probe)
}

/// Starts a gateway as pid 1 or 2 of a new namespace.
pub fn start(home: &Home, pid: u64) -> Gateway {
    let wrapper: &[&str] = if pid == 1 { &[] } else { &SECOND };
    let arguments = [&UNSHARE, wrapper, &[BINARY]].concat();
    let gateway = home.start_by(home.wrapped("unshare", &arguments, "run"));
    assert_eq!(gateway.status().expect("a status")["identity"]["pid"], pid, "its pid in its namespace");
    gateway
}

/// Its pid in our namespace.
fn pid_here(home: &Home) -> u32 {
    let holders = holders(&home.pid_file());
    assert_eq!(holders.len(), 1, "{holders:?}");
    holders[0]
}

#[test]
fn a_record_of_another_container_with_our_own_number_blocks_nothing() {
    if !can_unshare() {
        return;
    }
    let home = Home::new();
    for pid in [1, 1, 2, 2, 1] {
        let mut gateway = start(&home, pid);
        assert_eq!(gateway.ask("hello"), "hello");
        let record: serde_json::Value =
            serde_json::from_slice(&fs::read(home.pid_file()).expect("the record")).expect("JSON");
        assert_eq!(record["pid"], pid);
        // The whole container is killed: nobody in it tidies up.
        let inside = pid_here(&home);
        kill_process(Pid::from_raw(inside.cast_signed()).expect("a pid"), Signal::KILL).expect("it is ours");
        gateway.wait();
        await_fact("the kernel has let go", || holders(&home.pid_file()).is_empty());
    }
    let mut gateway = home.start();
    assert!(gateway.terminate().success());
}

#[test]
fn stop_reaches_pid_1_of_a_container_by_its_socket_and_not_by_its_number() {
    if !can_unshare() {
        return;
    }
    let home = Home::new();
    // From the host: the record's number is the host's own init.
    let mut gateway = start(&home, 1);
    let stopped = super::stop(&home);
    assert!(stopped.status.success(), "{}", said(&stopped));
    assert!(gateway.wait().success());
    assert_stopped_by_command(&gateway);
    // From within, as `docker exec` does: the number is right, and 1.
    let mut gateway = start(&home, 1);
    let inside = pid_here(&home).to_string();
    let mut within = home.wrapped("nsenter", &["--target", &inside, "--pid", "--mount", BINARY], "stop");
    within.args(NO_UNIT);
    // The command dies with its namespace, whose pid 1 it ends; whether it was quicker to say so is no matter.
    let stopped = ended(within);
    assert!(stopped.status.success() || stopped.status.signal() == Some(9), "{}", said(&stopped));
    assert!(gateway.wait().success());
    assert_stopped_by_command(&gateway);
}

fn assert_stopped_by_command(gateway: &Gateway) {
    let log = gateway.log();
    let last = log.lines().rfind(|line| line.contains("gateway stopping")).expect("it has told why it stops");
    assert!(last.contains("hermes-gateway stop"), "{last}");
}

/// A command that sees this home at `at`, in a mount namespace of its own.
pub fn mounted(at: &Path, home: &Home, verb: &str) -> std::process::Command {
    let script = r#"mount --bind "$1" "$2" && shift 2 && exec "$@""#;
    let (source, at) = (home.path().display().to_string(), at.display().to_string());
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", &source, &at, BINARY, verb]);
    for (flag, name) in [("--config", "gateway.toml"), ("--state-dir", "state"), ("--runtime-dir", "run")] {
        command.arg(flag).arg(format!("{at}/{name}"));
    }
    command.env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    command
}
