//! Reading a section key by key: what is not understood is noted, and reading goes on with the default.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Problem;
use super::tree::{Node, Origin, Table, Value};

/// How alike a known key must be to be suggested for an unknown one; 1 is equal.
const SUGGESTION: f64 = 0.8;

/// A table being read.
pub struct Section<'a> {
    table: Option<&'a Table>,
    /// `http.`, or empty at the root.
    prefix: String,
    known: BTreeSet<&'static str>,
}

impl<'a> Section<'a> {
    /// The whole configuration.
    pub fn root(table: &'a Table) -> Self {
        Self { table: Some(table), prefix: String::new(), known: BTreeSet::new() }
    }

    /// The section `[key]`; empty if it is not there.
    pub fn section(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Self {
        let node = self.node(key);
        self.below(key, node, problems)
    }

    /// A table in this section, under a name that the user chose.
    pub fn below(&self, key: &str, node: Option<&'a Node>, problems: &mut Vec<Problem>) -> Self {
        let table = match node {
            Some(Node { value: Value::Table(table), .. }) => Some(table),
            Some(other) => {
                self.problem(key, other, "a section", problems);
                None
            }
            None => None,
        };
        Section { table, prefix: format!("{}{key}.", self.prefix), known: BTreeSet::new() }
    }

    /// Every key and value, for sections whose keys the user chooses.
    pub fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Node)> {
        self.table.into_iter().flatten()
    }

    /// The value of a key.
    pub fn node(&mut self, key: &'static str) -> Option<&'a Node> {
        self.known.insert(key);
        self.table?.get(key)
    }

    /// A string.
    pub fn text(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Option<String> {
        self.parsed(key, "a string", problems, |value| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        })
    }

    /// A string that must be there.
    pub fn needed_text(&mut self, key: &'static str, place: &Origin, problems: &mut Vec<Problem>) -> String {
        let missing = !self.table.is_some_and(|table| table.contains_key(key));
        if missing {
            self.note(key, place, "is needed here and missing".into(), problems);
        }
        self.text(key, problems).unwrap_or_default()
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str, default: bool, problems: &mut Vec<Problem>) -> bool {
        let flag = self.parsed(key, "true or false", problems, |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        });
        flag.unwrap_or(default)
    }

    /// A whole number in a range.
    pub fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<usize>,
        default: usize,
        problems: &mut Vec<Problem>,
    ) -> usize {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let number = self.parsed(key, &expected, problems, |value| match value {
            Value::Integer(number) => usize::try_from(*number).ok().filter(|number| range.contains(number)),
            _ => None,
        });
        number.unwrap_or(default)
    }

    /// A duration like `"30s"`, in a range.
    pub fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: Duration,
        problems: &mut Vec<Problem>,
    ) -> Duration {
        let words = crate::model::time::in_words;
        let bounds = (words(*range.start()), words(*range.end()));
        let expected = format!("a duration from \"{}\" to \"{}\", like \"30s\"", bounds.0, bounds.1);
        let duration = self.parsed(key, &expected, problems, |value| match value {
            Value::Text(text) => parse_duration(text).filter(|duration| range.contains(duration)),
            _ => None,
        });
        duration.unwrap_or(default)
    }

    /// A size like `"10MiB"`, in bytes.
    pub fn size(
        &mut self,
        key: &'static str,
        range: RangeInclusive<usize>,
        default: usize,
        problems: &mut Vec<Problem>,
    ) -> usize {
        let expected = format!("a size from {} to {} bytes, like \"10MiB\"", range.start(), range.end());
        let size = self.parsed(key, &expected, problems, |value| match value {
            Value::Text(text) => {
                parse_size(text).and_then(|size| size.try_into().ok()).filter(|size| range.contains(size))
            }
            _ => None,
        });
        size.unwrap_or(default)
    }

    /// Anything that `parse` understands; else a problem that says what was expected.
    pub fn parsed<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        problems: &mut Vec<Problem>,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let node = self.node(key)?;
        let parsed = parse(&node.value);
        if parsed.is_none() {
            self.problem(key, node, expected, problems);
        }
        parsed
    }

    /// Notes a problem at a place that is known to be wrong.
    pub fn note(&self, key: &str, origin: &Origin, message: String, problems: &mut Vec<Problem>) {
        let (file, place) = (origin.file.to_path_buf(), Some(origin.place));
        problems.push(Problem { file, place, key: format!("{}{key}", self.prefix), message });
    }

    /// Notes what was expected and what was found instead.
    pub fn problem(&self, key: &str, node: &Node, expected: &str, problems: &mut Vec<Problem>) {
        let found = match &node.value {
            Value::Text(text) => format!("\"{}\"", text.escape_debug()),
            Value::Integer(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
            other => other.kind().to_owned(),
        };
        self.note(key, &node.origin, format!("expected {expected}, found {found}"), problems);
    }

    /// Notes every key that nobody asked for: a typing error must not pass for a setting.
    pub fn finish(self, problems: &mut Vec<Problem>) {
        for (key, node) in self.entries().filter(|(key, _)| !self.known.contains(key.as_str())) {
            let alike = |known: &&&str| strsim::jaro_winkler(key, known);
            let closest = self.known.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
            let message = match closest.filter(|known| alike(known) > SUGGESTION) {
                Some(known) => format!("there is no such key; did you mean '{known}'?"),
                None => "there is no such key".into(),
            };
            self.note(key, &node.origin, message, problems);
        }
    }
}

/// `"30s"`; `None` if it is none.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    match text[digits..].trim() {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        "d" => number.checked_mul(86_400).map(Duration::from_secs),
        _ => None,
    }
}

/// A size like `10MiB`, in bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}
