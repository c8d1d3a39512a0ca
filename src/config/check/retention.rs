//! `[retention]`: how long things are kept.

use super::super::Problem;
use super::super::section::{Section, parse_size};
use super::super::tree::Value;
use super::{DAY, HOUR};
use crate::gateway::retention::Config;

/// Smallest bound of the store's size, in bytes: less than that is taken by its tables and a handful of turns.
const MIN_SIZE: u64 = 1 << 20;

/// Reads it.
pub fn check(root: &mut Section<'_>, problems: &mut Vec<Problem>) -> Config {
    let mut section = root.section("retention", problems);
    let keep = section.duration("keep", HOUR..=36_500 * DAY, 90 * DAY, problems);
    let expected = "\"0\" for any size, or a size of at least \"1MiB\", like \"2GiB\"";
    let max_size = section.parsed("max_size", expected, problems, |value| match value {
        Value::Text(text) if text == "0" => Some(None),
        Value::Text(text) => parse_size(text).filter(|size| *size >= MIN_SIZE).map(Some),
        _ => None,
    });
    section.finish(problems);
    Config { keep, max_size: max_size.flatten() }
}
