//! What cannot start, what must not run twice, and what is wedged.

use super::{PATIENCE, installed, machine};
use crate::machine::Machine;

/// Attempts to start, by systemd's own records.
fn attempts(machine: &Machine) -> usize {
    let records = machine.journal("-u hermes-gateway.service");
    records.iter().filter(|record| record["MESSAGE"].as_str().is_some_and(|text| text.starts_with("Starting "))).count()
}

#[test]
fn a_wrong_configuration_makes_one_attempt_and_says_why() {
    let Some(machine) = machine() else { return };
    machine.person(&["hermes-gateway", "install", "--no-start"]).ok();
    machine.configure("[http]\nmax_bdy = \"1MiB\"\n[turns]\nmax_running = 0");
    let started = machine.person(&["systemctl", "--user", "start", "hermes-gateway"]);
    assert!(!started.success());
    machine.await_fact("the unit is failed", PATIENCE, || machine.shown("ActiveState") == "failed");
    assert_eq!((machine.shown("NRestarts"), machine.shown("ExecMainStatus")), ("0".into(), "78".into()));
    assert_eq!(attempts(&machine), 1);
    let shown = machine.person(&["systemctl", "--user", "status", "hermes-gateway"]).stdout();
    for problem in
        ["http.max_bdy: there is no such key; did you mean 'max_body'?", "turns.max_running: expected a whole number"]
    {
        assert!(shown.contains(problem), "{shown}");
    }
    let status = machine.person(&["hermes-gateway", "status"]);
    assert!(status.stdout().contains("is failed") && status.status_code() == Some(3), "{}", status.stdout());
    assert!(status.stdout().contains("http.max_bdy"), "{}", status.stdout());
    machine.configure("");
    machine.person(&["systemctl", "--user", "start", "hermes-gateway"]).ok();
    assert_eq!(machine.ask("mended"), "mended");
}

#[test]
fn clients_of_a_misconfigured_service_are_told_and_cause_no_storm() {
    let Some(machine) = machine() else { return };
    machine.person(&["hermes-gateway", "install", "--no-start"]).ok();
    machine.person_sh("systemctl --user start hermes-gateway.socket hermes-gateway-control.socket").ok();
    machine.configure("[turns]\nmax_running = 0");
    let told = machine.person_sh("for n in $(seq 50); do curl -sS http://127.0.0.1:8642/v1/models; echo; done").ok();
    let refused =
        told.lines().filter(|line| line.contains("gateway_cannot_start") && line.contains("turns.max_running")).count();
    assert_eq!(refused, 50, "{told}");
    machine.await_fact("the unit is failed in the end", PATIENCE, || machine.shown("ActiveState") == "failed");
    assert!(attempts(&machine) <= 3, "{} attempts for 50 clients", attempts(&machine));
    let socket = machine.person(&["systemctl", "--user", "is-active", "hermes-gateway.socket"]).ok();
    assert_eq!(socket, "active");
    machine.configure("");
    machine.person_sh("curl -sS --fail http://127.0.0.1:8642/health").ok();
    assert_eq!(machine.ask("mended"), "mended", "the next connection heals it");
}

#[test]
fn a_wrong_command_line_in_a_drop_in_is_not_retried() {
    let Some(machine) = machine() else { return };
    machine.person(&["hermes-gateway", "install", "--no-start"]).ok();
    machine.drop_in("[Service]\nExecStart=\nExecStart=/usr/local/bin/hermes-gateway run --no-such-flag");
    assert!(!machine.person(&["systemctl", "--user", "start", "hermes-gateway"]).success());
    assert_eq!((machine.shown("ActiveState"), machine.shown("NRestarts")), ("failed".into(), "0".into()));
}

#[test]
fn a_frozen_process_is_killed_by_the_watchdog_and_comes_back() {
    let Some(machine) = installed() else { return };
    machine.drop_in("[Service]\nWatchdogSec=2s");
    machine.person(&["systemctl", "--user", "restart", "hermes-gateway"]).ok();
    let frozen = machine.shown("MainPID");
    machine.person(&["kill", "-STOP", &frozen]).ok();
    machine
        .await_fact("another process serves", PATIENCE, || machine.is_active() && machine.shown("MainPID") != frozen);
    assert_eq!(machine.ask("back"), "back");
    let killed = machine.journal("-u hermes-gateway.service");
    let watchdog = |text: &str| text.contains("Watchdog timeout");
    assert!(killed.iter().any(|record| record["MESSAGE"].as_str().is_some_and(watchdog)));
    assert_eq!(machine.shown("NRestarts"), "1");
}

#[test]
fn one_state_directory_in_two_scopes_has_one_gateway_and_the_other_names_it() {
    let Some(machine) = installed() else { return };
    let state = "/home/person/.local/state/hermes-gateway/default";
    machine.root(&["hermes-gateway", "install", "--system", "--no-start", "--instance", "rival"]).ok();
    machine
        .root_sh(&format!(
            "mkdir -p /etc/systemd/system/hermes-gateway@rival.service.d\n\
             cat > /etc/systemd/system/hermes-gateway@rival.service.d/test.conf <<'END'\n\
             [Service]\nDynamicUser=no\nUser=person\nProtectHome=no\nPrivateUsers=no\nProtectProc=default\nExecStart=\n\
             ExecStart=/usr/local/bin/hermes-gateway run --system --instance rival --state-dir {state}\nEND\n\
             systemctl daemon-reload"
        ))
        .ok();
    let winner = machine.shown("MainPID");
    assert!(!machine.root(&["systemctl", "start", "hermes-gateway@rival"]).success());
    let shown = |property| machine.root(&["systemctl", "show", "--value", "-p", property, "hermes-gateway@rival"]).ok();
    assert_eq!(
        (shown("ActiveState"), shown("ExecMainStatus"), shown("NRestarts")),
        ("failed".into(), "73".into(), "0".into())
    );
    let told = shown("StatusText");
    assert!(told.contains(&format!("pid {winner}")) && told.contains("hermes-gateway.service of user 1000"), "{told}");
    assert_eq!((machine.shown("MainPID"), machine.ask("undisturbed")), (winner, "undisturbed".into()));
}

#[test]
fn a_taken_port_is_told_and_heals_when_it_is_free() {
    let Some(machine) = machine() else { return };
    let mut thief = machine.spawn_person(&["python3", "-m", "http.server", "--bind", "127.0.0.1", "8642"]);
    machine
        .await_fact("the port is taken", PATIENCE, || !machine.person_sh("ss -Hltn 'sport = :8642'").ok().is_empty());
    let installed = machine.person(&["hermes-gateway", "install"]);
    assert!(!installed.success() && installed.stderr().contains("is in use"), "{}", installed.stderr());
    machine.await_fact("the port's holder is blamed", PATIENCE, || {
        machine
            .journal("-p err")
            .iter()
            .any(|r| r["MESSAGE"].as_str().is_some_and(|t| t.contains("127.0.0.1:8642 is in use")))
    });
    thief.kill().and_then(|()| thief.wait()).expect("ours");
    machine.person_sh("systemctl --user start --no-block hermes-gateway").ok();
    machine.await_active("it heals by itself once the port is free");
    assert_eq!(machine.ask("here"), "here");
}
