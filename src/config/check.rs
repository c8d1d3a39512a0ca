//! From what is written to what can be acted on. Each section is read to its end, whatever is wrong with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tracing::Level;

use super::section::Section;
use super::tree::{Node, Origin, Table, Value};
use super::{Config, Listen, Problem};
use crate::agent::{self, echo, openai};
use crate::secret::Source;
use crate::{gateway, http};

mod platforms;
mod programs;
mod retention;
mod rules;
mod webhooks;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The name of the embedded agent.
const ECHO: &str = "echo";

/// Checks everything; where something is wrong, the default stands in, so that checking can go on.
pub fn check(root: &Table, problems: &mut Vec<Problem>) -> Config {
    let mut root = Section::root(root);
    let mut http = root.section("http", problems);
    let listen = listen(&mut http, problems);
    let key = secret(&mut http, problems);
    let http_config = http::Config {
        max_body: http.size("max_body", 1 << 10..=1 << 30, 10 << 20, problems),
        max_connections: http.number("max_connections", 1..=100_000, 1024, problems),
        header_timeout: http.duration("header_timeout", SECOND..=10 * MINUTE, 10 * SECOND, problems),
        body_timeout: http.duration("body_timeout", SECOND..=60 * MINUTE, MINUTE, problems),
    };
    http.finish(problems);

    let mut turns = root.section("turns", problems);
    let turns_config = gateway::Config {
        max_running: turns.number("max_running", 1..=10_000, 64, problems),
        max_queued: turns.number("max_queued", 1..=1_000_000, 10_000, problems),
        timeout: turns.duration("timeout", SECOND..=7 * DAY, 30 * MINUTE, problems),
        max_attempts: u32::try_from(turns.number("max_attempts", 1..=1_000_000, 3, problems)).unwrap_or(u32::MAX),
    };
    turns.finish(problems);

    let retention = retention::check(&mut root, problems);
    let (default_agent, agents) = agents(&mut root, problems);
    let platforms = platforms::check(&mut root, problems);
    let webhooks = webhooks::check(&mut root, &agents, &platforms, problems);

    let mut log = root.section("log", problems);
    let level = log.parsed("level", "error, warn, info, debug or trace", problems, level);
    log.finish(problems);

    let mut stop = root.section("stop", problems);
    let stop_grace = stop.duration("grace", Duration::ZERO..=60 * MINUTE, 30 * SECOND, problems);
    stop.finish(problems);

    root.finish(problems);
    let log_level = level.unwrap_or(Level::INFO);
    Config {
        listen,
        key,
        http: http_config,
        turns: turns_config,
        retention,
        default_agent,
        agents,
        platforms,
        webhooks,
        log_level,
        stop_grace,
    }
}

fn listen(http: &mut Section<'_>, problems: &mut Vec<Problem>) -> Option<Vec<Listen>> {
    let expected = "a list of addresses like \"127.0.0.1:8642\", \"[::1]:8642\" or \"unix:/run/me/http.sock\"";
    http.parsed("listen", expected, problems, |value| match value {
        Value::List(places) if !places.is_empty() => places.iter().map(place).collect(),
        _ => None,
    })
}

fn place(node: &Node) -> Option<Listen> {
    let Value::Text(text) = &node.value else { return None };
    match text.strip_prefix("unix:") {
        Some(path) => path.starts_with('/').then(|| Listen::Unix(path.into())),
        None => text.parse().ok().map(Listen::Tcp),
    }
}

/// `key_credential` or `key_file`, not both.
fn secret(section: &mut Section<'_>, problems: &mut Vec<Problem>) -> Option<Source> {
    let plain_name = |value: &Value| match value {
        Value::Text(name) if !name.is_empty() && !name.starts_with('.') && !name.contains('/') => Some(name.clone()),
        _ => None,
    };
    let absolute = |value: &Value| match value {
        Value::Text(path) if path.starts_with('/') => Some(PathBuf::from(path)),
        _ => None,
    };
    let place = section.node("key_file").map(|node| node.origin.clone());
    let credential = section.parsed("key_credential", "the name of a systemd credential", problems, plain_name);
    let file = section.parsed("key_file", "an absolute path", problems, absolute);
    match (credential, file, place) {
        (Some(_), Some(_), Some(place)) => {
            section.note("key_file", &place, "is given beside key_credential; leave one out".into(), problems);
            None
        }
        (Some(name), ..) => Some(Source::Credential(name)),
        (None, file, _) => file.map(Source::File),
    }
}

fn agents(root: &mut Section<'_>, problems: &mut Vec<Problem>) -> (String, BTreeMap<String, agent::Config>) {
    let mut section = root.section("agents", problems);
    let default_place = section.node("default").map(|node| node.origin.clone());
    let default = section.text("default", problems);
    // The embedded agent is always there, so that a gateway without any configuration answers.
    let mut agents = BTreeMap::from([(ECHO.to_owned(), agent::Config::Echo(echo::Config::default()))]);
    for (name, node) in section.entries().filter(|(name, _)| *name != "default") {
        let mut entry = section.below(name, Some(node), problems);
        if !matches!(node.value, Value::Table(_)) {
            continue;
        }
        if name == http_default_model() || name.is_empty() || name.chars().any(char::is_whitespace) {
            section.note(name, &node.origin, "is not a name that an agent can have".into(), problems);
        }
        if let Some(config) = agent_config(&mut entry, name, &node.origin, problems) {
            agents.insert(name.clone(), config);
            entry.finish(problems);
        }
    }
    let default = default.unwrap_or_else(|| ECHO.to_owned());
    if let (false, Some(place)) = (agents.contains_key(&default), default_place) {
        let names: Vec<_> = agents.keys().map(String::as_str).collect();
        let message = format!("there is no agent '{default}'; there is: {}", names.join(", "));
        section.note("default", &place, message, problems);
    }
    (default, agents)
}

/// Stands for the default agent in requests, so no agent may be called so.
fn http_default_model() -> &'static str {
    http::DEFAULT_MODEL
}

fn agent_config(
    agent: &mut Section<'_>,
    name: &str,
    place: &Origin,
    problems: &mut Vec<Problem>,
) -> Option<agent::Config> {
    match agent.needed_text("kind", place, problems).as_str() {
        "echo" => {
            let delay = agent.duration("delay", Duration::ZERO..=MINUTE, Duration::ZERO, problems);
            Some(agent::Config::Echo(echo::Config { delay }))
        }
        "openai" => Some(agent::Config::OpenAi(openai::Config {
            base_url: url("base_url", agent, place, problems).trim_end_matches('/').to_owned(),
            model: agent.needed_text("model", place, problems),
            key: secret(agent, problems),
            system_prompt: agent.text("system_prompt", problems),
            connect_timeout: agent.duration("connect_timeout", SECOND..=5 * MINUTE, 10 * SECOND, problems),
            idle_timeout: agent.duration("idle_timeout", SECOND..=60 * MINUTE, 2 * MINUTE, problems),
        })),
        "command" => Some(agent::Config::Command(programs::command(agent, name, place, problems))),
        "acp" => Some(agent::Config::Acp(programs::acp(agent, name, place, problems))),
        "" => None,
        other => {
            let message =
                format!("expected \"echo\", \"openai\", \"command\" or \"acp\", found \"{}\"", other.escape_debug());
            let place = agent.node("kind").map_or(place, |node| &node.origin);
            agent.note("kind", place, message, problems);
            None
        }
    }
}

/// An address to be called.
fn url(key: &'static str, section: &mut Section<'_>, place: &Origin, problems: &mut Vec<Problem>) -> String {
    let text = section.needed_text(key, place, problems);
    let usable = reqwest::Url::parse(&text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https") && url.has_host() && url.password().is_none() && url.query().is_none()
    });
    if let (false, Some(node)) = (usable, section.node(key)) {
        section.problem(key, node, "an http or https URL without password and query", problems);
    }
    text
}

fn level(value: &Value) -> Option<Level> {
    match value {
        Value::Text(word) => match word.as_str() {
            "error" => Some(Level::ERROR),
            "warn" => Some(Level::WARN),
            "info" => Some(Level::INFO),
            "debug" => Some(Level::DEBUG),
            "trace" => Some(Level::TRACE),
            _ => None,
        },
        _ => None,
    }
}
