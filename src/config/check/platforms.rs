//! `[platforms.NAME]`: where replies can go.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::Problem;
use super::super::section::Section;
use super::super::tree::{Origin, Value};
use super::{DAY, MINUTE, SECOND, secret, url};
use crate::platform::{self, Limits, callback};
use crate::policy::split::{Limit, Unit};

/// Names that mean something else in a target.
const RESERVED: [&str; 1] = ["none"];

/// Reads all of them.
pub fn check(root: &mut Section<'_>, problems: &mut Vec<Problem>) -> BTreeMap<String, platform::Config> {
    let section = root.section("platforms", problems);
    let mut platforms = BTreeMap::new();
    for (name, node) in section.entries() {
        let mut entry = section.below(name, Some(node), problems);
        if !matches!(node.value, Value::Table(_)) {
            continue;
        }
        if !is_name(name) {
            let message = "is not a name that a platform can have: A-Z a-z 0-9 _ -, and not 'none'";
            section.note(name, &node.origin, message.into(), problems);
        }
        if let Some(config) = platform(&mut entry, &node.origin, problems) {
            platforms.insert(name.clone(), config);
            entry.finish(problems);
        }
    }
    platforms
}

/// Whether it can stand before the colon of a target, and in a path.
pub fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !RESERVED.contains(&name)
}

fn platform(entry: &mut Section<'_>, place: &Origin, problems: &mut Vec<Problem>) -> Option<platform::Config> {
    match entry.needed_text("kind", place, problems).as_str() {
        "callback" => Some(platform::Config::Callback(callback::Config {
            url: url("url", entry, place, problems),
            secret: secret(entry, problems),
            timeout: entry.duration("timeout", SECOND..=10 * MINUTE, 30 * SECOND, problems),
            limits: limits(entry, problems),
        })),
        "" => None,
        other => {
            let message = format!("expected \"callback\", found \"{}\"", other.escape_debug());
            let place = entry.node("kind").map_or(place, |node| &node.origin);
            entry.note("kind", place, message, problems);
            None
        }
    }
}

fn limits(entry: &mut Section<'_>, problems: &mut Vec<Problem>) -> Limits {
    let max = entry.number("max_length", 0..=10_000_000, 0, problems);
    let per_second = entry.number("per_second", 0..=10_000, 0, problems);
    Limits {
        text: (max > 0).then_some(Limit { max, unit: Unit::Chars }),
        idempotent: entry.flag("idempotent", true, problems),
        per_second: u32::try_from(per_second).ok().filter(|n| *n > 0),
        in_flight: entry.number("max_in_flight", 1..=1024, 64, problems),
        horizon: entry.duration("horizon", Duration::ZERO..=30 * DAY, DAY, problems),
    }
}
