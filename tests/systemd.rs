//! The gateway under a real systemd as PID 1, in user and system scope.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::gateway::BINARY;
use crate::machine::Machine;

mod failures;
mod hung_disk;
mod life;
mod scopes;
mod storms;
mod units;

/// Longest time for anything to become true inside.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine with the gateway's binary, or `None` with a loud word where none can be booted.
fn machine() -> Option<Machine> {
    Machine::boot_if_available(Path::new(BINARY))
}

/// A machine on which `person` has installed and started the gateway.
fn installed() -> Option<Machine> {
    let machine = machine()?;
    machine.person(&["hermes-gateway", "install"]).ok();
    Some(machine)
}

impl Machine {
    /// A property of the user's service.
    fn shown(&self, property: &str) -> String {
        self.person(&["systemctl", "--user", "show", "--value", "-p", property, "hermes-gateway.service"]).ok()
    }

    fn is_active(&self) -> bool {
        self.shown("ActiveState") == "active"
    }

    fn await_active(&self, what: &str) {
        self.await_fact(what, PATIENCE, || self.is_active());
    }

    /// The journal of the user's service as JSON records.
    fn journal(&self, filter: &str) -> Vec<Value> {
        let lines = self.person_sh(&format!(
            "journalctl --user --sync >/dev/null 2>&1 || true; journalctl --user -o json {filter}"
        ));
        lines.ok().lines().map(|line| serde_json::from_str(line).expect("a record of the journal is JSON")).collect()
    }

    /// Asks over the API, as a client of this machine; the reply.
    fn ask(&self, text: &str) -> String {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#);
        let answer = self.person_sh(&format!(
            "key=$(cat ~/.local/state/hermes-gateway/default/api-key)\n\
             curl -sS --fail-with-body http://127.0.0.1:8642/v1/chat/completions -H \"Authorization: Bearer $key\" -d '{body}'"
        ));
        let answer: Value = serde_json::from_str(&answer.ok()).expect("JSON");
        answer["choices"][0]["message"]["content"].as_str().expect("a reply").to_owned()
    }

    /// Puts a drop-in beside the user's service.
    fn drop_in(&self, text: &str) {
        self.person_sh(&format!(
            "mkdir -p ~/.config/systemd/user/hermes-gateway.service.d\n\
             cat > ~/.config/systemd/user/hermes-gateway.service.d/test.conf <<'END'\n{text}\nEND\n\
             systemctl --user daemon-reload"
        ))
        .ok();
    }

    fn configure(&self, toml: &str) {
        self.person_sh(&format!(
            "mkdir -p ~/.config/hermes-gateway\ncat > ~/.config/hermes-gateway/gateway.toml <<'END'\n{toml}\nEND"
        ))
        .ok();
    }
}
