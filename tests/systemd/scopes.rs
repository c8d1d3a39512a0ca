//! The machine's gateway, named gateways, and people without a session.

use super::{PATIENCE, installed, machine};

#[test]
fn the_system_service_runs_as_its_own_user_in_its_sandbox() {
    let Some(machine) = machine() else { return };
    let told = machine.root(&["hermes-gateway", "install", "--system"]).ok();
    assert!(told.contains("started hermes-gateway.service: active (running)"), "{told}");
    let key = "$(cat /var/lib/private/hermes-gateway/default/api-key)";
    let ask = format!(
        "curl -sS --fail-with-body http://127.0.0.1:8642/v1/chat/completions -H \"Authorization: Bearer {key}\" \
         -d '{{\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'"
    );
    assert!(machine.root_sh(&ask).ok().contains("\"content\":\"hello\""));
    assert_eq!(machine.root(&["hermes-gateway", "send", "--system", "hi"]).ok(), "hi");
    let status = machine.root(&["hermes-gateway", "status", "--system"]).ok();
    assert!(status.contains("is running") && status.contains("/var/lib/hermes-gateway/default"), "{status}");
    let user = machine.root_sh("ps -o user= -p $(systemctl show --value -p MainPID hermes-gateway)").ok();
    assert_ne!(user, "root");
    let stranger = machine.person(&["hermes-gateway", "status", "--system"]);
    assert_ne!(stranger.status_code(), Some(0), "the control socket is root's: {}", stranger.stdout());

    machine
        .root_sh(
            "mkdir -p /etc/hermes-gateway; echo '[agents.two]\nkind = \"echo\"' > /etc/hermes-gateway/gateway.toml",
        )
        .ok();
    machine.root(&["systemctl", "reload", "hermes-gateway"]).ok();
    machine.root_sh("echo '[turns]\nmax_running = 0' > /etc/hermes-gateway/gateway.toml").ok();
    assert!(!machine.root(&["systemctl", "reload", "hermes-gateway"]).success());
    machine.root_sh("rm /etc/hermes-gateway/gateway.toml").ok();
    machine.root(&["hermes-gateway", "restart", "--system"]).ok();
    machine.root(&["systemctl", "kill", "-s", "KILL", "hermes-gateway"]).ok();
    assert!(machine.root_sh(&ask).ok().contains("\"content\":\"hello\""), "a client waits over a SIGKILL");

    let warnings =
        machine.root_sh("journalctl -u hermes-gateway -o cat -p warning SYSLOG_IDENTIFIER=hermes-gateway").stdout();
    assert!(!warnings.contains("cannot"), "the sandbox allows all that it does by itself: {warnings}");
    let explained =
        machine.root_sh("journalctl -x -u hermes-gateway -o short MESSAGE_ID=6f1c5bd1a6ef4d0e9b0d4f2c8e7a1102").ok();
    assert!(explained.contains("answers on its sockets"), "`journalctl -x` explains it: {explained}");

    machine.root(&["systemctl", "stop", "hermes-gateway"]).ok();
    assert_eq!(machine.root(&["systemctl", "show", "--value", "-p", "Result", "hermes-gateway"]).ok(), "success");
    machine.root(&["hermes-gateway", "uninstall", "--system"]).ok();
    assert_eq!(machine.root_sh("find /etc/systemd/system -name 'hermes*'").ok(), "");
}

#[test]
fn named_instances_live_beside_each_other() {
    let Some(machine) = installed() else { return };
    machine.person(&["hermes-gateway", "install", "--instance", "work", "--listen", "127.0.0.1:8700"]).ok();
    machine.person(&["hermes-gateway", "install", "--instance", "play"]).ok();
    for instance in ["work", "play"] {
        assert_eq!(machine.person(&["hermes-gateway", "send", "--instance", instance, "hi"]).ok(), "hi");
        let status = machine.person(&["hermes-gateway", "status", "--instance", instance]).ok();
        assert!(status.contains(&format!("/home/person/.local/state/hermes-gateway/{instance}, ok")), "{status}");
        assert!(status.contains(&format!("hermes-gateway@{instance}.service is active")), "{status}");
    }
    let by_port = machine.person_sh("curl -sS http://127.0.0.1:8700/health").ok();
    let by_path =
        machine.person_sh("curl -sS --unix-socket /run/user/1000/hermes-gateway/play/http.sock http://x/health").ok();
    assert!(by_port.contains("\"ok\"") && by_path.contains("\"ok\""), "{by_port} {by_path}");
    let removed = machine.person(&["hermes-gateway", "uninstall", "--instance", "work"]).ok();
    assert!(removed.contains("kept the templates for hermes-gateway@play.service"), "{removed}");
    assert_eq!(machine.person(&["hermes-gateway", "send", "--instance", "play", "still"]).ok(), "still");
    machine.person(&["hermes-gateway", "uninstall", "--instance", "play"]).ok();
    assert_eq!(machine.person_sh("find ~/.config/systemd -name '*@*'").ok(), "");
    assert_eq!(machine.ask("untouched"), "untouched");
}

#[test]
fn without_a_session_everything_works_all_the_same() {
    let Some(machine) = machine() else { return };
    let told = machine.person_bare(&["hermes-gateway", "install"]).ok();
    assert!(told.contains("active (running)"), "{told}");
    assert_eq!(machine.person_bare(&["hermes-gateway", "send", "hi"]).ok(), "hi");
    assert!(machine.person_bare(&["hermes-gateway", "status"]).ok().contains("is running"));
    machine.person_bare(&["hermes-gateway", "restart"]).ok();
    machine.person_bare(&["hermes-gateway", "stop"]).ok();
    let status = machine.person_bare(&["hermes-gateway", "status"]);
    assert!(status.stdout().contains("is stopped") && status.status_code() == Some(3), "{}", status.stdout());
}

#[test]
fn units_that_somebody_wrote_or_edited_are_left_alone() {
    let Some(machine) = installed() else { return };
    let unit = "/home/person/.config/systemd/user/hermes-gateway.service";
    machine.person_sh(&format!("sed -i 's/WatchdogSec=30s/WatchdogSec=60s/' {unit}")).ok();
    let refused = machine.person(&["hermes-gateway", "install"]);
    assert!(!refused.success() && refused.stderr().contains("- WatchdogSec=60s"), "{}", refused.stderr());
    assert!(refused.stderr().contains("+ WatchdogSec=30s"), "{}", refused.stderr());
    assert!(!machine.person(&["hermes-gateway", "uninstall"]).success());
    assert!(machine.person_sh(&format!("grep -c WatchdogSec=60s {unit}")).success(), "it is as it was");
    machine.person(&["hermes-gateway", "install", "--force"]).ok();
    assert!(machine.person_sh(&format!("grep -c WatchdogSec=60s {unit}.before")).success(), "it was kept beside");
    machine.await_fact("it serves", PATIENCE, || machine.ask("ok") == "ok");
}
