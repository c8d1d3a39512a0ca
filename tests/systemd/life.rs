//! Installed, started, asked, reloaded, restarted, stopped, removed.

use serde_json::Value;

use super::{installed, machine};

#[test]
fn install_makes_a_service_that_answers_and_uninstall_takes_it_back() {
    let Some(machine) = machine() else { return };
    let told = machine.person(&["hermes-gateway", "install"]).ok();
    assert!(told.contains("started hermes-gateway.service: active (running)"), "{told}");
    assert!(
        machine.shown("StatusText").starts_with("serving 127.0.0.1:8642; agent echo"),
        "{}",
        machine.shown("StatusText")
    );
    assert_eq!(machine.ask("hello there"), "hello there");
    assert_eq!(machine.person(&["hermes-gateway", "send", "from the terminal"]).ok(), "from the terminal");
    let status = machine.person(&["hermes-gateway", "status"]).ok();
    assert!(status.starts_with("hermes-gateway (default) is running\n"), "{status}");
    assert!(status.contains("hermes-gateway.service is active (running), enabled"), "{status}");
    let json: Value =
        serde_json::from_str(&machine.person(&["hermes-gateway", "status", "--json"]).ok()).expect("JSON");
    assert_eq!(json["process"]["identity"]["unit"], "hermes-gateway.service");
    assert_eq!(
        json["process"]["identity"]["pid"].to_string(),
        machine.shown("MainPID"),
        "the main process itself answers"
    );
    let runtime = machine.person_sh("ls -A /run/user/1000/hermes-gateway/default").ok();
    assert_eq!(runtime, "control.sock", "under systemd there is no pid file");

    let again = machine.person(&["hermes-gateway", "install"]).ok();
    assert!(again.contains("active (running)"), "installing twice is installing once: {again}");

    machine.person(&["hermes-gateway", "uninstall"]).ok();
    assert_eq!(machine.shown("LoadState"), "not-found");
    assert_eq!(machine.person_sh("find ~/.config/systemd -name 'hermes*'").ok(), "");
    let status = machine.person(&["hermes-gateway", "status"]);
    assert_eq!(status.status_code(), Some(3), "{}", status.stdout());
}

#[test]
fn start_returns_when_it_serves_and_stop_is_no_failure() {
    let Some(machine) = installed() else { return };
    for round in 0..20 {
        machine.person(&["systemctl", "--user", "stop", "hermes-gateway"]).ok();
        assert_eq!((machine.shown("ActiveState"), machine.shown("Result")), ("inactive".into(), "success".into()));
        machine.person(&["systemctl", "--user", "start", "hermes-gateway"]).ok();
        assert_eq!(machine.ask(&round.to_string()), round.to_string(), "READY=1 means that it answers");
    }
    machine.person(&["hermes-gateway", "stop"]).ok();
    assert_eq!(machine.shown("ActiveState"), "inactive");
    let status = machine.person(&["hermes-gateway", "status"]);
    assert!(status.stdout().contains("is stopped") && status.status_code() == Some(3), "{}", status.stdout());
    assert_eq!(machine.shown("ActiveState"), "inactive", "asking for the status starts nothing");
}

#[test]
fn the_first_connection_starts_it_on_either_socket() {
    let Some(machine) = installed() else { return };
    machine.person(&["systemctl", "--user", "stop", "hermes-gateway"]).ok();
    assert_eq!(machine.ask("wake up"), "wake up");
    assert!(machine.is_active());
    machine.person(&["systemctl", "--user", "stop", "hermes-gateway"]).ok();
    assert_eq!(machine.person(&["hermes-gateway", "send", "wake up"]).ok(), "wake up");
    assert!(machine.is_active());
}

#[test]
fn restart_and_reload_return_when_they_are_done() {
    let Some(machine) = installed() else { return };
    let mut pids = vec![machine.shown("MainPID")];
    for way in ["hermes-gateway restart", "systemctl --user restart hermes-gateway"] {
        machine.person_sh(way).ok();
        pids.push(machine.shown("MainPID"));
        assert_eq!(machine.ask(way), way);
    }
    pids.dedup();
    assert_eq!(pids.len(), 3, "each restart is another process");
    assert_eq!(machine.shown("Result"), "success");

    machine.configure("[agents.other]\nkind = \"echo\"");
    machine.person(&["systemctl", "--user", "reload", "hermes-gateway"]).ok();
    assert!(machine.shown("StatusText").contains("agent echo and 1 more"), "live when reload returns");
    machine.configure("[agents.other]\nkind = \"odd\"");
    let refused = machine.person(&["systemctl", "--user", "reload", "hermes-gateway"]);
    assert!(!refused.success(), "a refused reload fails");
    assert!(machine.shown("StatusText").contains("agents.other.kind"), "{}", machine.shown("StatusText"));
    assert_eq!((machine.shown("ActiveState"), machine.ask("still here")), ("active".into(), "still here".into()));
    assert_eq!(machine.shown("MainPID"), pids[2], "and by the same process");
}

#[test]
fn the_journal_has_the_fields_the_priorities_and_the_events() {
    let Some(machine) = installed() else { return };
    machine.ask("do not log me");
    machine.configure("[agents.broken]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\nmodel = \"m\"\n[turns]\ntimeout = \"1s\"");
    machine.person(&["hermes-gateway", "reload"]).ok();
    let failed =
        machine.person(&["hermes-gateway", "send", "--agent", "broken", "--session", "s1", "do not log me either"]);
    assert!(!failed.success() && failed.stderr().contains("the agent took longer than 1s"), "{}", failed.stderr());

    let records = machine.journal("-u hermes-gateway.service");
    let ours: Vec<_> = records.iter().filter(|record| record["SYSLOG_IDENTIFIER"] == "hermes-gateway").collect();
    assert!(ours.len() >= 6 && ours.iter().all(|record| record["HERMES_INSTANCE"] == "default"), "{ours:#?}");
    assert!(ours.iter().all(|record| record["MESSAGE"].is_string()), "no colours, no line breaks");
    assert!(!ours.iter().any(|record| record.to_string().contains("do not log me")), "what people say stays out");
    let with_id = |id: &str| {
        ours.iter().filter(|record| record["MESSAGE_ID"] == format!("6f1c5bd1a6ef4d0e9b0d4f2c8e7a{id}")).count()
    };
    assert_eq!((with_id("1101"), with_id("1102"), with_id("1103")), (1, 1, 1));
    let turn = ours.iter().find(|record| record["MESSAGE"] == "turn completed").expect("the turn");
    assert_eq!((&turn["PRIORITY"], &turn["HERMES_AGENT"]), (&Value::from("6"), &Value::from("echo")));
    assert!(turn["HERMES_TURN"].is_string() && turn["HERMES_SESSION"].is_string() && turn["CODE_FILE"].is_string());

    let errors = machine.journal("-u hermes-gateway.service -p err SYSLOG_IDENTIFIER=hermes-gateway");
    let texts: Vec<_> = errors.iter().map(|record| record["MESSAGE"].as_str().expect("text")).collect();
    assert_eq!(texts, ["turn failed"], "`-p err` shows exactly the errors");
    assert_eq!((&errors[0]["PRIORITY"], &errors[0]["HERMES_SESSION"]), (&Value::from("3"), &Value::from("s1")));

    machine.root(&["systemctl", "restart", "systemd-journald"]).ok();
    machine.ask("again");
    machine.await_fact("logging goes on after journald restarted", super::PATIENCE, || {
        machine.journal("-u hermes-gateway.service").iter().filter(|r| r["MESSAGE"] == "turn completed").count() >= 2
    });
}

#[test]
fn who_stopped_it_is_known() {
    let Some(machine) = installed() else { return };
    machine.person_sh("kill -TERM $(systemctl --user show --value -p MainPID hermes-gateway)").ok();
    machine.await_fact("the stop is logged with its sender", super::PATIENCE, || {
        machine.journal("MESSAGE_ID=6f1c5bd1a6ef4d0e9b0d4f2c8e7a1105").iter().any(|record| {
            record["HERMES_REASON"].as_str().is_some_and(|r| r.starts_with("SIGTERM from pid"))
                && record["HERMES_SENDER"].is_string()
        })
    });
    machine.await_active("a kill by hand is no `systemctl stop`: it comes back");
}
