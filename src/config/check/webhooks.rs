//! `[webhooks.NAME]`: programs that tell something.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::Problem;
use super::super::section::Section;
use super::super::tree::{Origin, Value};
use super::{MINUTE, platforms, rules, secret};
use crate::http::webhooks::{Config, Deliver, Sessions};
use crate::policy::signature::Scheme;
use crate::policy::template::Template;
use crate::{agent, platform};

/// What else the configuration has, for what a webhook names.
struct Known<'a> {
    agents: &'a BTreeMap<String, agent::Config>,
    platforms: &'a BTreeMap<String, platform::Config>,
}

/// Reads all of them.
pub fn check(
    root: &mut Section<'_>,
    agents: &BTreeMap<String, agent::Config>,
    platforms: &BTreeMap<String, platform::Config>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Config> {
    let known = Known { agents, platforms };
    let section = root.section("webhooks", problems);
    let mut webhooks = BTreeMap::new();
    for (name, node) in section.entries() {
        let mut entry = section.below(name, Some(node), problems);
        if !matches!(node.value, Value::Table(_)) {
            continue;
        }
        if !platforms::is_name(name) {
            section.note(name, &node.origin, "is not a name that a webhook can have: A-Z a-z 0-9 _ -".into(), problems);
        }
        if let Some(config) = webhook(&mut entry, &node.origin, &known, problems) {
            webhooks.insert(name.clone(), config);
        }
        entry.finish(problems);
    }
    webhooks
}

fn webhook(entry: &mut Section<'_>, place: &Origin, known: &Known<'_>, problems: &mut Vec<Problem>) -> Option<Config> {
    let scheme = scheme(entry, place, problems);
    let secret = secret(entry, problems);
    let silent = ["key_file", "key_credential"].into_iter().all(|key| entry.node(key).is_none());
    if silent {
        let message = "is needed here (or key_file): a webhook without a secret would let everybody in";
        entry.note("key_credential", place, message.into(), problems);
    }
    let tolerance = entry.duration("tolerance", Duration::ZERO..=60 * MINUTE, 5 * MINUTE, problems);
    let events = entry.parsed("events", "a list of event names", problems, |value| match value {
        Value::List(names) => names.iter().map(|node| text(&node.value)).collect(),
        _ => None,
    });
    let prompt = template(entry, "prompt", problems).or_else(|| Template::parse("{__raw__}").ok());
    let agent = named(entry, "agent", known.agents.keys(), problems);
    let session = sessions(entry, problems);
    let deliver = deliver(entry, known, problems);
    let rules = rules::check(entry, problems);
    let per_minute = entry.number("per_minute", 1..=1_000_000, 60, problems);
    let max_body = entry.size("max_body", 1 << 10..=64 << 20, 1 << 20, problems);
    Some(Config {
        scheme: scheme?,
        secret: secret?,
        tolerance,
        events: events.unwrap_or_default(),
        prompt: prompt?,
        agent,
        session,
        deliver,
        rules,
        per_minute,
        max_body,
    })
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    }
}

fn scheme(entry: &mut Section<'_>, place: &Origin, problems: &mut Vec<Problem>) -> Option<Scheme> {
    let word = entry.needed_text("scheme", place, problems);
    let header = |value: &Value| text(value).filter(|name| axum::http::HeaderName::try_from(name.as_str()).is_ok());
    let plain = match word.as_str() {
        "github" => Some(Scheme::GitHub),
        "gitlab" => Some(Scheme::GitLab),
        "stripe" => Some(Scheme::Stripe),
        "slack" => Some(Scheme::Slack),
        "standard" => Some(Scheme::Standard),
        "hmac" => {
            let signature = entry.parsed("header", "the name of a header", problems, header);
            let timestamp_header = entry.parsed("timestamp_header", "the name of a header", problems, header);
            let signature_header = signature.unwrap_or_else(|| Scheme::SIGNATURE_HEADER.into());
            return Some(Scheme::Hmac { signature_header, timestamp_header });
        }
        "" => None,
        other => {
            let known = "expected \"github\", \"gitlab\", \"stripe\", \"slack\", \"standard\" or \"hmac\"";
            let place = entry.node("scheme").map_or(place, |node| &node.origin);
            entry.note("scheme", place, format!("{known}, found \"{}\"", other.escape_debug()), problems);
            None
        }
    };
    for key in ["header", "timestamp_header"] {
        if let Some(node) = entry.node(key).filter(|_| plain.is_some()) {
            entry.note(key, &node.origin, "is for the scheme \"hmac\" only".into(), problems);
        }
    }
    plain
}

fn template(entry: &mut Section<'_>, key: &'static str, problems: &mut Vec<Problem>) -> Option<Template> {
    let text = entry.text(key, problems)?;
    match Template::parse(&text) {
        Ok(template) => Some(template),
        Err(e) => {
            if let Some(node) = entry.node(key) {
                entry.note(key, &node.origin, format!("is no template: {e}"), problems);
            }
            None
        }
    }
}

fn sessions(entry: &mut Section<'_>, problems: &mut Vec<Problem>) -> Sessions {
    let word = entry.node("session").and_then(|node| text(&node.value));
    match word.as_deref() {
        Some("event") => Sessions::Event,
        Some("shared") => Sessions::Shared,
        _ => template(entry, "session", problems).map_or(Sessions::Event, Sessions::By),
    }
}

/// A name of something that is configured elsewhere.
fn named<'a>(
    entry: &mut Section<'_>,
    key: &'static str,
    known: impl Iterator<Item = &'a String>,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let name = entry.text(key, problems)?;
    let known: Vec<_> = known.map(String::as_str).collect();
    if !known.contains(&name.as_str())
        && let Some(node) = entry.node(key)
    {
        let message = format!("there is no {key} '{name}'; there is: {}", known.join(", "));
        entry.note(key, &node.origin, message, problems);
    }
    Some(name)
}

fn deliver(entry: &mut Section<'_>, known: &Known<'_>, problems: &mut Vec<Problem>) -> Option<Deliver> {
    let word = entry.text("deliver", problems)?;
    if word == "none" {
        return None;
    }
    let platform = word.split(':').next().unwrap_or_default();
    let node = entry.node("deliver")?;
    if !known.platforms.contains_key(platform) {
        let names: Vec<_> = known.platforms.keys().map(String::as_str).collect();
        let known =
            if names.is_empty() { "none is configured".to_owned() } else { format!("there is: {}", names.join(", ")) };
        entry.note("deliver", &node.origin, format!("there is no platform '{platform}'; {known}"), problems);
        return None;
    }
    if word.contains(':') {
        return match word.parse() {
            Ok(target) => Some(Deliver::Chat(target)),
            Err(e) => {
                entry.note("deliver", &node.origin, format!("{e}"), problems);
                None
            }
        };
    }
    Some(Deliver::Platform(word))
}
