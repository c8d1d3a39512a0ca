//! Killed again and again, started in every order, crashing at start: always back, never a storm, never given up.

use std::io::Write;
use std::process::Child;
use std::time::Duration;

use serde_json::Value;

use super::{PATIENCE, installed, machine};
use crate::machine::Machine;

/// A client that sends all the time, until its standard input closes; then it prints what it saw.
const CLIENT: &str = include_str!("client.py");
/// Forty clients, half of them on kept connections, with two hundred turns a second each half.
const LOAD: &str = include_str!("load.py");

struct Client(Child);

impl Client {
    fn start(machine: &Machine, script: &str) -> Self {
        Self(machine.spawn_person(&["python3", "-c", script, "8642"]))
    }

    fn end(mut self) -> Value {
        self.0.stdin.take().expect("piped").flush().expect("open");
        let output = self.0.wait_with_output().expect("the client ends");
        serde_json::from_slice(&output.stdout).expect("the client reports")
    }
}

/// Pseudo-random and the same in each run.
fn jitter(n: u64, below: u64) -> Duration {
    Duration::from_millis(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 33)
        .min(Duration::from_millis((n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % below))
}

#[test]
fn a_hundred_kills_under_a_client_refuse_nobody() {
    let Some(machine) = installed() else { return };
    let client = Client::start(&machine, CLIENT);
    for n in 0..100 {
        // Random moments are the point here, not a wait for anything: some hit a start, some a running turn.
        std::thread::sleep(jitter(n, 700));
        machine.person(&["systemctl", "--user", "kill", "-s", "KILL", "hermes-gateway.service"]);
    }
    machine.await_active("it is back after the last kill");
    assert_eq!(machine.ask("back"), "back");
    let seen = client.end();
    println!("100 kills: {seen}, restarts {}", machine.shown("NRestarts"));
    assert_eq!(seen["refused"], 0, "{seen}");
    assert!(seen["answered"].as_u64().is_some_and(|n| n > 100), "{seen}");
    for socket in ["hermes-gateway.socket", "hermes-gateway-control.socket"] {
        assert_eq!(machine.person(&["systemctl", "--user", "is-active", socket]).ok(), "active");
    }
}

#[test]
fn restarts_under_a_client_refuse_nobody() {
    let Some(machine) = installed() else { return };
    let client = Client::start(&machine, CLIENT);
    for _ in 0..10 {
        machine.person(&["systemctl", "--user", "restart", "hermes-gateway"]).ok();
        machine.person(&["hermes-gateway", "restart"]).ok();
    }
    let seen = client.end();
    assert_eq!(seen["refused"], 0, "{seen}");
}

#[test]
fn restarts_under_load_fail_no_request() {
    let Some(machine) = installed() else { return };
    let load = Client::start(&machine, LOAD);
    let answered = || machine.person_sh("curl -sS http://127.0.0.1:8642/health").success();
    for _ in 0..10 {
        machine.person(&["systemctl", "--user", "restart", "hermes-gateway"]).ok();
        machine.await_fact("it serves again", PATIENCE, answered);
        // A while of load between two restarts; there is no fact to wait for.
        std::thread::sleep(Duration::from_millis(500));
    }
    let seen = load.end();
    println!("10 restarts under load: {seen}");
    assert_eq!(seen["failed"], Value::Array(Vec::new()), "{seen}");
    assert!(seen["answered"].as_u64().is_some_and(|n| n > 1000), "{seen}");
}

#[test]
fn every_order_of_sockets_and_service_ends_serving() {
    let Some(machine) = installed() else { return };
    let orders = [
        "stop hermes-gateway.socket; start hermes-gateway.service",
        "stop hermes-gateway.service; start hermes-gateway.socket; start hermes-gateway.service",
        "stop hermes-gateway.service hermes-gateway.socket; start hermes-gateway.service hermes-gateway.socket",
        "restart hermes-gateway.socket hermes-gateway.service",
        "restart hermes-gateway.service; restart hermes-gateway.socket; start hermes-gateway.service",
        "stop hermes-gateway-control.socket hermes-gateway.socket; start hermes-gateway.service",
    ];
    for order in orders.iter().cycle().take(30) {
        let script: String = order.split("; ").map(|step| format!("systemctl --user {step}\n")).collect();
        machine.person_sh(&script).ok();
        assert_eq!(machine.ask("hi"), "hi", "{order}");
        let states =
            "systemctl --user is-active hermes-gateway.socket hermes-gateway-control.socket hermes-gateway.service";
        assert_eq!(machine.person_sh(states).ok().replace('\n', " "), "active active active", "{order}");
    }
}

/// Processor time of the user's manager and of journald, and journal lines, in a while of crashing.
fn cost_of(machine: &Machine, during: Duration) -> (f64, usize) {
    let cpu = || -> f64 {
        let ticks = "cat /proc/1/stat /proc/$(pidof systemd-journald)/stat /proc/$(systemctl show --value -p MainPID user@1000)/stat \
                     | awk '{ s += $14 + $15 + $16 + $17 } END { print s }'";
        machine.root_sh(ticks).ok().parse().expect("ticks")
    };
    let lines = || machine.journal("-u hermes-gateway.service").len();
    let before = (cpu(), lines());
    // A rate is measured over a time; there is no fact to wait for.
    std::thread::sleep(during);
    let after = (cpu(), lines());
    ((after.0 - before.0) / 100.0 / during.as_secs_f64() * 100.0, after.1 - before.1)
}

#[test]
fn a_crash_at_start_is_cheap_and_heals_within_a_minute() {
    let Some(machine) = machine() else { return };
    machine.person(&["hermes-gateway", "install", "--no-start"]).ok();
    // The state's parent is read-only: each start gets as far as that, and fails.
    machine.person_sh("mkdir -p ~/.local/state && chmod 500 ~/.local/state").ok();
    machine.person_sh("systemctl --user start --no-block hermes-gateway").ok();
    let restarted = || machine.shown("NRestarts").parse::<u32>().is_ok_and(|n| n >= 2);
    machine.await_fact("it has been tried again", PATIENCE, restarted);
    let (percent, lines) = cost_of(&machine, Duration::from_secs(20));
    println!("crashing at start: {percent:.1} % of a core, {lines} journal lines in 20 s");
    assert!(percent < 5.0 && lines < 60, "{percent:.1} %, {lines} lines");
    machine.person_sh("chmod 700 ~/.local/state").ok();
    machine.await_active("it heals by itself");
    assert_eq!(machine.ask("well again"), "well again");
}

#[test]
fn a_binary_that_cannot_run_is_cheap_and_heals_within_a_minute() {
    let Some(machine) = machine() else { return };
    machine.person(&["hermes-gateway", "install", "--no-start"]).ok();
    machine.root(&["mv", "/usr/local/bin/hermes-gateway", "/usr/local/bin/away"]).ok();
    machine.person_sh("systemctl --user start --no-block hermes-gateway").ok();
    let (percent, lines) = cost_of(&machine, Duration::from_secs(20));
    println!("no binary: {percent:.1} % of a core, {lines} journal lines in 20 s");
    assert!(percent < 5.0 && lines < 60, "{percent:.1} %, {lines} lines");
    machine.root(&["mv", "/usr/local/bin/away", "/usr/local/bin/hermes-gateway"]).ok();
    machine.await_active("it heals by itself");
}
