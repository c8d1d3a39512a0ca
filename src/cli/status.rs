//! `hermes-gateway status`: two live witnesses, the supervisor and the process, and never a file.

use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::words::one_line;
use super::{Failure, Which};
use crate::exit::Exit;
use crate::model::time::in_words;
use crate::service::pidfile::{LiveGateway, NoGateway};
use crate::service::systemd::{ManagerError, ServiceManager, UnitReport};
use crate::service::units::UnitNames;

/// How long a running process may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    which: Which,
    /// Everything, as JSON
    #[arg(long)]
    json: bool,
}

pub async fn execute(status: &Status) -> Result<Exit, Failure> {
    let places = status.which.places()?;
    let unit = ask_supervisor(&status.which).await;
    let process = ask_process(&Client::new(places.control_socket()), &unit).await;
    let pid_file = LiveGateway::find(&places.pid_file());
    let word = word(&unit, &process, &pid_file);
    if status.json {
        let report = json!({
            "state": word.text(),
            "supervisor": unit.as_ref().map_err(ToString::to_string).map_or_else(|e| json!({ "error": e }), |u| json!(u)),
            "process": match &process {
                Answer::Told(report) => report.clone(),
                Answer::Nobody => Value::Null,
                Answer::Silent(e) => json!({ "error": e }),
            },
        });
        println!("{report:#}");
    } else {
        print(word, &status.which, &unit, &process, &pid_file);
    }
    Ok(word.exit())
}

/// How a gateway is, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Running,
    Starting,
    Draining,
    Stopped,
    Failed,
    Unknown,
}

impl Word {
    fn text(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    fn exit(self) -> Exit {
        match self {
            Self::Running | Self::Starting | Self::Draining => Exit::Ok,
            Self::Stopped | Self::Failed => Exit::NotRunning,
            Self::Unknown => Exit::Unknown,
        }
    }
}

/// What came of asking the process.
enum Answer {
    Told(Value),
    /// There is no process to ask.
    Nobody,
    /// There may be one, and it does not say.
    Silent(String),
}

type Unit = Result<UnitReport, ManagerError>;

async fn ask_supervisor(which: &Which) -> Unit {
    let manager = ServiceManager::connect(which.scope()).await?;
    manager.report(&UnitNames::of(&which.instance).service).await
}

async fn ask_process(client: &Client, unit: &Unit) -> Answer {
    // Asking through a socket that systemd holds would start the service: a question must not do that.
    if let Ok(unit) = unit
        && unit.load_state == "loaded"
        && matches!(unit.active_state.as_str(), "inactive" | "failed" | "activating")
    {
        return Answer::Nobody;
    }
    match tokio::time::timeout(PATIENCE, client.call(Method::GET, "/status")).await {
        Ok(Ok(report)) => Answer::Told(report),
        Ok(Err(ClientError::NotRunning { .. })) => Answer::Nobody,
        Ok(Err(e)) => Answer::Silent(e.to_string()),
        Err(_) => Answer::Silent(format!("no answer on {} within {PATIENCE:?}", client.socket().display())),
    }
}

fn word(unit: &Unit, process: &Answer, pid_file: &Result<LiveGateway, NoGateway>) -> Word {
    match process {
        Answer::Told(report) => match report["state"].as_str() {
            Some("running") => Word::Running,
            Some("starting") => Word::Starting,
            Some("draining") => Word::Draining,
            _ => Word::Unknown,
        },
        Answer::Silent(_) => Word::Unknown,
        Answer::Nobody => match unit {
            Ok(unit) if unit.load_state == "loaded" => match unit.active_state.as_str() {
                "failed" => Word::Failed,
                "activating" | "reloading" => Word::Starting,
                "deactivating" => Word::Draining,
                // Active without a control socket: it cannot be asked.
                "active" => Word::Unknown,
                _ => stand_alone(pid_file),
            },
            // No unit, or no manager to ask: whoever runs stand-alone holds the pid file.
            Ok(_) | Err(ManagerError::NotBooted | ManagerError::NoUserManager(_) | ManagerError::NoUserBus(_)) => {
                stand_alone(pid_file)
            }
            Err(_) => match stand_alone(pid_file) {
                Word::Stopped => Word::Unknown,
                word => word,
            },
        },
    }
}

fn stand_alone(pid_file: &Result<LiveGateway, NoGateway>) -> Word {
    match pid_file {
        Ok(_) => Word::Starting,
        Err(NoGateway::NotRunning(_)) => Word::Stopped,
        Err(NoGateway::Unproven { .. }) => Word::Unknown,
    }
}

fn print(word: Word, which: &Which, unit: &Unit, process: &Answer, pid_file: &Result<LiveGateway, NoGateway>) {
    println!("hermes-gateway ({}) is {}", which.instance, word.text());
    match process {
        Answer::Told(report) => print_process(report),
        Answer::Silent(e) => line("process", e),
        Answer::Nobody => {
            if let Ok(gateway) = pid_file {
                line("process", &format!("pid {}, not yet answering", gateway.record.pid));
            }
        }
    }
    match unit {
        Ok(unit) if unit.load_state == "not-found" => {
            line("unit", &format!("{} is not installed; 'hermes-gateway install' does it", unit.unit));
        }
        Ok(unit) => print_unit(unit, which),
        Err(e) => line("unit", &e.to_string()),
    }
}

fn line(name: &str, value: &str) {
    println!("  {name:<9} {value}");
}

fn print_process(report: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let identity = &report["identity"];
    let up = in_words(Duration::from_secs(number(&report["uptime_seconds"])));
    let (pid, version) = (number(&identity["pid"]), text(&identity["version"]));
    line("process", &format!("pid {pid}, version {version}, up {up}, {}", text(&identity["supervisor"])));
    line("status", &text(&report["status"]));
    let listeners: Vec<_> = identity["listeners"].as_array().into_iter().flatten().map(text).collect();
    line("listens", &listeners.join(", "));
    let parts = &report["parts"];
    let store = match parts["store"]["ok"].as_bool() {
        Some(true) => format!("{}, ok", text(&identity["state_directory"])),
        _ => format!("{}, FAILING: {}", text(&identity["state_directory"]), text(&parts["store"]["error"])),
    };
    line("store", &store);
    let kinds = parts["agents"]["kinds"].as_object().into_iter().flatten();
    let agents: Vec<_> = kinds.map(|(name, kind)| format!("{name} ({})", text(kind))).collect();
    line("agents", &format!("{}; default {}", agents.join(", "), text(&parts["agents"]["default"])));
    let turns = &parts["turns"];
    line("turns", &format!("{} running, {} waiting", number(&turns["running"]), number(&turns["queued"])));
    print_deliveries(parts);
    line("config", &text(&identity["config_file"]));
    line("API key", &text(&identity["key_source"]));
    if let Some(reload) = report["last_reload"].as_str() {
        line("reload", reload);
    }
}

/// Only where there is something to say.
fn print_deliveries(parts: &Value) {
    let number = |name: &str| parts["outbox"][name].as_u64().unwrap_or(0);
    let (pending, leased, dead) = (number("pending"), number("leased"), number("dead"));
    let mut told = Vec::new();
    if pending > 0 {
        let oldest = in_words(Duration::from_secs(number("oldest_pending_seconds")));
        told.push(format!("{pending} waiting, the first of them for {oldest}"));
    }
    told.extend((leased > 0).then(|| format!("{leased} being sent")));
    told.extend((dead > 0).then(|| format!("{dead} given up; 'hermes-gateway outbox list --state dead' names them")));
    if !told.is_empty() {
        line("outbox", &told.join("; "));
    }
    let platforms = parts["platforms"].as_object().into_iter().flatten();
    for (name, platform) in platforms {
        let kind = platform["kind"].as_str().unwrap_or("not configured");
        let state = match platform["trouble"].as_str() {
            Some(trouble) => format!("TROUBLE: {}", one_line(trouble, None)),
            None => "ok".to_owned(),
        };
        line("platform", &format!("{name} ({kind}), {state}"));
    }
}

fn print_unit(unit: &UnitReport, which: &Which) {
    let mut text = format!("{} is {} ({})", unit.unit, unit.active_state, unit.sub_state);
    if !unit.enabled.is_empty() {
        text.push_str(&format!(", {}", unit.enabled));
    }
    if unit.restarts > 0 {
        text.push_str(&format!(", restarted {} times", unit.restarts));
    }
    line("unit", &text);
    if unit.active_state == "failed" {
        line("failure", &format!("{}, exit status {}", unit.result, unit.exit_status));
        if !unit.status_text.is_empty() {
            line("said", &unit.status_text);
        }
        line("see", &format!("{} status {}", which.scope().systemctl(), unit.unit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(load: &str, active: &str) -> Unit {
        Ok(UnitReport {
            unit: "hermes-gateway.service".into(),
            load_state: load.into(),
            active_state: active.into(),
            sub_state: String::new(),
            enabled: String::new(),
            result: "success".into(),
            exit_status: 0,
            restarts: 0,
            main_pid: 0,
            status_text: String::new(),
        })
    }

    #[test]
    fn unknown_is_never_told_as_stopped_nor_stopped_as_running() {
        let nobody = || Err(NoGateway::NotRunning("/x".into()));
        let told = |state: &str| Answer::Told(json!({ "state": state }));
        let not_there = || Err(ManagerError::Unreachable(vec![]));
        let cases = [
            (unit("loaded", "active"), told("running"), Word::Running, 0),
            (unit("loaded", "active"), told("draining"), Word::Draining, 0),
            (unit("loaded", "active"), Answer::Silent("frozen".into()), Word::Unknown, 4),
            (unit("loaded", "activating"), Answer::Nobody, Word::Starting, 0),
            (unit("loaded", "failed"), Answer::Nobody, Word::Failed, 3),
            (unit("loaded", "inactive"), Answer::Nobody, Word::Stopped, 3),
            (unit("not-found", "inactive"), Answer::Nobody, Word::Stopped, 3),
            (unit("not-found", "inactive"), told("running"), Word::Running, 0),
            (not_there(), Answer::Nobody, Word::Unknown, 4),
            (not_there(), told("running"), Word::Running, 0),
            (Err(ManagerError::NotBooted), Answer::Nobody, Word::Stopped, 3),
        ];
        for (unit, process, expected, code) in cases {
            let found = word(&unit, &process, &nobody());
            assert_eq!((found, found.exit() as u8), (expected, code), "{unit:?}");
        }
    }
}
