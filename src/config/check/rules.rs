//! `busy`, `debounce` and `reset`: how the sessions of a webhook or a platform take messages.

use std::time::Duration;

use super::super::Problem;
use super::super::section::{Section, parse_duration};
use super::super::tree::Value;
use super::MINUTE;
use crate::policy::session::{Busy, Reset, Rules};

/// Reads them.
pub fn check(section: &mut Section<'_>, problems: &mut Vec<Problem>) -> Rules {
    let busy = section.parsed("busy", "queue, interrupt or steer", problems, |value| match value {
        Value::Text(word) => Busy::ALL.into_iter().find(|busy| busy.label() == word),
        _ => None,
    });
    let reset = section.parsed("reset", "\"never\", \"idle 24h\" or \"daily 4\"", problems, |value| match value {
        Value::Text(text) => reset(text),
        _ => None,
    });
    let debounce = section.duration("debounce", Duration::ZERO..=5 * MINUTE, Duration::ZERO, problems);
    Rules { busy: busy.unwrap_or_default(), debounce, reset: reset.unwrap_or_default() }
}

fn reset(text: &str) -> Option<Reset> {
    match text.split_once(' ') {
        None => (text == "never").then_some(Reset::Never),
        Some(("idle", silence)) => parse_duration(silence).filter(|s| !s.is_zero()).map(Reset::Idle),
        Some(("daily", hour)) => hour.parse().ok().filter(|hour| (0..24).contains(hour)).map(Reset::Daily),
        Some(_) => None,
    }
}
