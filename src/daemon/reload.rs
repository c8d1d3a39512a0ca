//! Reload: parse, check, compare, apply what can be applied, name what cannot. A bad file changes nothing.

use std::sync::Arc;

use super::birth::Frame;
use super::{Parts, STOP_MARGIN, life, read_key};
use crate::agent::Agents;
use crate::config::{self, Config};
use crate::http::control::ReloadReport;
use crate::http::webhooks::Webhooks;
use crate::journal::LifeEvent;
use crate::platform::Platforms;
use crate::secret::{ExposeSecret, SecretString};

/// Reads the configuration again and applies it.
pub fn reload(frame: &Frame, running: &mut Config, parts: &Parts) -> ReloadReport {
    frame.notifier.reloading();
    let report = match check(frame) {
        Ok((new, key)) => apply(frame, running, new, key, parts),
        Err(problems) => ReloadReport { problems, ..ReloadReport::default() },
    };
    tell(frame, parts, &report);
    report
}

/// Everything that can fail, before anything is changed.
fn check(frame: &Frame) -> Result<(Config, Arc<SecretString>), Vec<String>> {
    let config = config::load(&frame.directories).map_err(|problems| problems.lines())?;
    let key = read_key(&config, &frame.directories.state).map_err(|e| vec![super::chain(&e)])?;
    Ok((config, key))
}

fn apply(frame: &Frame, running: &mut Config, new: Config, key: Arc<SecretString>, parts: &Parts) -> ReloadReport {
    let (mut applied, needs_restart) = running.changes(&new);
    // A rotated key has the same place and another content.
    let known = parts.api.key.borrow().clone();
    if known.expose_secret() != key.expose_secret() && !applied.iter().any(|name| name == "http.key") {
        applied.push("http.key".into());
    }
    parts.key.send_replace(key);
    // What is compared next time is what is in force: sockets are not.
    let http = crate::http::Config { max_connections: running.http.max_connections, ..new.http.clone() };
    parts.http.send_replace(http.clone());
    let before = parts.api.gateway.agents();
    let agents = Agents::new(&new.default_agent, &new.agents, &parts.around, Some(&before));
    parts.api.gateway.reconfigure(new.turns.clone(), agents);
    parts.retention.reconfigure(new.retention.clone());
    let outbox = parts.api.gateway.outbox();
    outbox.reconfigure(Platforms::new(&new.platforms, Some(&outbox.platforms())));
    let webhooks = Webhooks::new(&new.webhooks, Some(&parts.webhooks.borrow()));
    parts.webhooks.send_replace(webhooks);
    frame.journal.set_level(new.log_level);
    frame.deadline.set(new.stop_grace + STOP_MARGIN);
    *running = Config { listen: running.listen.clone(), http, ..new };
    ReloadReport { applied, needs_restart, problems: Vec::new() }
}

fn tell(frame: &Frame, parts: &Parts, report: &ReloadReport) {
    let list = |keys: &[String]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
    let (event, text) = if report.problems.is_empty() {
        let waiting = match report.needs_restart.as_slice() {
            [] => String::new(),
            keys => format!("; waiting for a restart: {}", keys.join(", ")),
        };
        (LifeEvent::Reloaded, format!("reloaded, changed: {}{waiting}", list(&report.applied)))
    } else {
        let text = format!("reload refused, the running configuration stays: {}", report.problems.join("; "));
        (LifeEvent::ReloadRefused, text)
    };
    parts.api.vitals.set_last_reload(text.clone());
    frame.journal.life(event, &text, &[("REASON", list(&report.problems))]);
    // READY=1 ends the reload for systemd, whichever way it went.
    let status = life::status(parts);
    frame.notifier.ready(&if report.problems.is_empty() { status } else { text });
}
