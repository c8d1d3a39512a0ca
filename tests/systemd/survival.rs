//! An agent under a real systemd is a unit of its own: it goes on while the gateway is killed and restarted, and whoever
//! asked it gets one uninterrupted reply.

use std::time::Duration;

use serde_json::{Value, json};

use super::{PATIENCE, machine};
use crate::machine::Machine;

/// Says its pid, 200 numbered events at 20 ms each, and its pid again.
const COUNTER: &str =
    "echo pid $$; i=1; while [ $i -le 200 ]; do echo event $i; sleep 0.02; i=$((i+1)); done; echo pid $$";

/// A machine whose default agent is that program.
fn counting() -> Option<Machine> {
    let machine = machine()?;
    // A stop does not wait for it: that is what this is about.
    machine.configure(&format!(
        "[stop]\ngrace = \"0s\"\n[agents]\ndefault = \"counter\"\n[agents.counter]\nkind = \"command\"\n\
         command = [\"/bin/sh\", \"-c\", \"{COUNTER}\"]\n"
    ));
    machine.person(&["hermes-gateway", "install"]).ok();
    Some(machine)
}

impl Machine {
    /// Asks for a stored response under a key, and waits as long as it takes; its JSON, or whatever came instead.
    fn response(&self, session: &str) -> Value {
        let body = json!({ "input": "count", "conversation": session }).to_string();
        let answer = self.person_sh(&format!(
            "key=$(cat ~/.local/state/hermes-gateway/default/api-key)\n\
             curl -sS -m 60 http://127.0.0.1:8642/v1/responses -H \"Authorization: Bearer $key\" \
             -H 'Idempotency-Key: {session}' -d '{body}' || true"
        ));
        serde_json::from_str(&answer.stdout()).unwrap_or(Value::Null)
    }

    /// The units of agents that there are.
    fn agents(&self) -> String {
        self.person(&["systemctl", "--user", "list-units", "--all", "--plain", "--no-legend", "hermes-agent-*"]).ok()
    }
}

/// The reply, if the response is complete.
fn reply(response: &Value) -> Option<&str> {
    (response["status"] == "completed").then(|| response["output"][0]["content"][0]["text"].as_str())?
}

fn assert_uninterrupted(reply: &str) {
    let lines: Vec<_> = reply.lines().collect();
    let expected: Vec<_> = (1..=200).map(|n| format!("event {n}")).collect();
    assert_eq!(lines.len(), 202, "{reply}");
    assert_eq!(lines[1..201], expected, "each event once, in order");
    assert!(lines[0].starts_with("pid ") && lines[0] == lines[201], "it was one program: {} {}", lines[0], lines[201]);
}

#[test]
fn a_turn_goes_on_over_ten_kills_and_five_restarts() {
    let Some(machine) = counting() else { return };
    // The first one waits for the turn, is cut off, and leaves; the turn is not its own.
    let mut asking = machine.spawn_person(&["sh", "-c", &asking_in_the_background("one")]);
    machine.await_fact("the agent works", PATIENCE, || machine.agents().contains("running"));
    for n in 0..15 {
        // Moments all over the turn, which takes four seconds and more.
        std::thread::sleep(Duration::from_millis(100 + (n * 37) % 120));
        match n % 3 {
            2 => machine.person(&["systemctl", "--user", "restart", "hermes-gateway"]),
            _ => machine.person(&["systemctl", "--user", "kill", "-s", "KILL", "hermes-gateway.service"]),
        };
    }
    let _cut_off = asking.wait();
    let mut response = Value::Null;
    machine.await_fact("the reply is whole", PATIENCE, || {
        response = machine.response("one");
        reply(&response).is_some()
    });
    assert_uninterrupted(reply(&response).expect("whole"));
    machine.await_fact("nothing is left of it", Duration::from_secs(90), || machine.agents().is_empty());
}

fn asking_in_the_background(session: &str) -> String {
    let body = json!({ "input": "count", "conversation": session }).to_string();
    format!(
        "key=$(cat ~/.local/state/hermes-gateway/default/api-key)\n\
         curl -sS -m 60 http://127.0.0.1:8642/v1/responses -H \"Authorization: Bearer $key\" \
         -H 'Idempotency-Key: {session}' -d '{body}' >/dev/null 2>&1 || true"
    )
}

#[test]
fn twenty_turns_at_once_go_on_and_those_that_ended_unwatched_are_whole() {
    let Some(machine) = counting() else { return };
    let sessions: Vec<_> = (0..20).map(|n| format!("many-{n}")).collect();
    let mut asking: Vec<_> =
        sessions.iter().map(|s| machine.spawn_person(&["sh", "-c", &asking_in_the_background(s)])).collect();
    let running = || machine.agents().lines().filter(|line| line.contains("running")).count();
    machine.await_fact("all of them work", PATIENCE, || running() == 20);
    machine.person(&["systemctl", "--user", "kill", "-s", "KILL", "hermes-gateway.service"]);
    machine.await_active("it is back");
    // Stopped for good: the rest is said while nobody looks.
    machine.person(&["systemctl", "--user", "stop", "hermes-gateway.service", "hermes-gateway.socket"]).ok();
    for client in &mut asking {
        let _cut_off = client.wait();
    }
    machine.await_fact("all of them end", PATIENCE, || running() == 0);
    machine.person(&["systemctl", "--user", "start", "hermes-gateway.socket", "hermes-gateway.service"]).ok();
    for session in &sessions {
        let mut response = Value::Null;
        machine.await_fact("a reply is whole", PATIENCE, || {
            response = machine.response(session);
            reply(&response).is_some()
        });
        assert_uninterrupted(reply(&response).expect("whole"));
    }
}
