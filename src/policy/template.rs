//! Prompts with gaps, filled from the JSON of a webhook.
//!
//! `{pull_request.title}` goes into objects by name and into arrays by number, `{event_type}` is the event's name and
//! `{__raw__}` the whole payload; `{{` and `}}` are braces. Texts go in as they are, everything else as compact JSON.
//! What a payload does not have stays as it is written. What is filled in is never looked at again, so a payload
//! cannot have anything filled in.
//!
//! The result is bounded, and it is the payload that gives way: the template's own words are always all there, since a
//! long text from outside must not push the instructions behind it out. Of the values only the longest are clipped.

use std::borrow::Cow;
use std::fmt;
use std::io;

use serde_json::Value;

/// The longest template, in bytes. It leaves three quarters of [`MAX_FILLED`] for values.
pub const MAX_TEMPLATE: usize = 16 * 1024;
/// The most gaps of one template: far more than a prompt has, and few enough to hold all values in memory.
pub const MAX_GAPS: usize = 256;
/// The longest filled prompt, in bytes: some 16,000 tokens, which each model takes.
pub const MAX_FILLED: usize = 64 * 1024;
/// How much is shown of an object or array, in characters.
pub const MAX_JSON: usize = 2_000;
/// How much is shown of the whole payload, in characters.
pub const MAX_RAW: usize = 4_000;

/// Stands where something was clipped.
const CLIPPED: &str = "…";

/// A place in a template, counted in lines and characters from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in it.
    pub column: usize,
}

impl Position {
    fn of(at: usize, text: &str) -> Self {
        let before = &text[..at];
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        Self { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, character {}", self.line, self.column)
    }
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A gap begins and does not end.
    #[error("the brace at {0} is not closed; write {{{{ for a brace")]
    Unclosed(Position),
    /// One ends that did not begin.
    #[error("the brace at {0} closes nothing; write }}}} for a brace")]
    Unopened(Position),
    /// What stands between the braces names nothing.
    #[error("between the braces at {0} stands no path like pull_request.title; write {{{{ and }}}} for braces")]
    NoPath(Position),
    /// Too many gaps.
    #[error("it has more than {MAX_GAPS} gaps")]
    TooManyGaps,
    /// Too long.
    #[error("it has {0} bytes, more than {MAX_TEMPLATE}")]
    TooLong(usize),
}

/// A prompt with gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    /// Its own words.
    Text(String),
    /// What stands between two braces.
    Gap(String),
}

impl Template {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_TEMPLATE {
            return Err(TemplateError::TooLong(text.len()));
        }
        let position = |rest: &str| Position::of(text.len() - rest.len(), text);
        let mut pieces = Vec::new();
        let mut words = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            words.push_str(&rest[..at]);
            rest = &rest[at..];
            if rest.starts_with("{{") || rest.starts_with("}}") {
                words.push_str(&rest[..1]);
                rest = &rest[2..];
                continue;
            }
            let inside = rest.strip_prefix('{').ok_or_else(|| TemplateError::Unopened(position(rest)))?;
            let end = inside.find(['{', '}']).filter(|end| inside[*end..].starts_with('}'));
            let gap = &inside[..end.ok_or_else(|| TemplateError::Unclosed(position(rest)))?];
            if !is_path(gap) {
                return Err(TemplateError::NoPath(position(rest)));
            }
            pieces.extend([Piece::Text(std::mem::take(&mut words)), Piece::Gap(gap.to_owned())]);
            rest = &inside[gap.len() + 1..];
        }
        words.push_str(rest);
        pieces.push(Piece::Text(words));
        // Words and gaps take turns, words at both ends.
        if pieces.len() / 2 > MAX_GAPS { Err(TemplateError::TooManyGaps) } else { Ok(Self { pieces }) }
    }

    /// The prompt for an event of this type and with this payload, at most [`MAX_FILLED`] bytes.
    pub fn fill(&self, event_type: &str, payload: &Value) -> String {
        let mut fixed = 0;
        let mut values = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(words) => fixed += words.len(),
                Piece::Gap(path) => match value(path, event_type, payload) {
                    Some(value) => values.push(Some(value)),
                    None => {
                        fixed += path.len() + 2;
                        values.push(None);
                    }
                },
            }
        }
        // A template is never longer than MAX_TEMPLATE, so there is something left.
        let longest = fair_share(values.iter().flatten().map(|value| value.len()), MAX_FILLED.saturating_sub(fixed));
        let mut values = values.into_iter();
        let mut filled = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(words) => filled.push_str(words),
                Piece::Gap(path) => match values.next().flatten() {
                    Some(value) => push_clipped(&mut filled, &value, longest),
                    None => filled.extend(["{", path, "}"]),
                },
            }
        }
        filled
    }
}

/// Whether a gap can name something: names or numbers with dots between them.
fn is_path(gap: &str) -> bool {
    let odd = |char: char| char.is_whitespace() || char.is_control() || matches!(char, '"' | '\'' | '`');
    gap.split('.').all(|name| !name.is_empty() && !name.contains(odd))
}

/// What belongs into the gap `path`, if there is such a thing.
fn value<'v>(path: &str, event_type: &'v str, payload: &'v Value) -> Option<Cow<'v, str>> {
    match path {
        "event_type" => return Some(event_type.into()),
        "__raw__" => return Some(json(payload, MAX_RAW).into()),
        _ => {}
    }
    let value = path.split('.').try_fold(payload, |value, name| match value {
        Value::Object(fields) => fields.get(name),
        Value::Array(items) if name.bytes().all(|byte| byte.is_ascii_digit()) => items.get(name.parse::<usize>().ok()?),
        _ => None,
    });
    Some(match value? {
        Value::String(text) => text.into(),
        value => json(value, MAX_JSON).into(),
    })
}

/// How long the longest value may be when all of them shall fit into `room`: as long as possible, and the same for all.
fn fair_share(lengths: impl Iterator<Item = usize>, mut room: usize) -> usize {
    let mut lengths: Vec<_> = lengths.collect();
    lengths.sort_unstable();
    for (at, length) in lengths.iter().enumerate() {
        let share = room / (lengths.len() - at);
        if *length > share {
            return share;
        }
        room -= length;
    }
    usize::MAX
}

/// Appends `value`, or of a longer one as much as fits into `longest` bytes with the mark behind it.
fn push_clipped(filled: &mut String, value: &str, longest: usize) {
    if value.len() <= longest {
        filled.push_str(value);
    } else {
        let end = value.floor_char_boundary(longest.saturating_sub(CLIPPED.len()));
        filled.extend([&value[..end], CLIPPED]);
    }
}

/// `value` as compact JSON, of which `max` characters are shown.
fn json(value: &Value, max: usize) -> String {
    // No character has more than four bytes. Nothing is written that would not be shown.
    let mut start = Start { bytes: Vec::new(), room: 4 * (max + 1) };
    let whole = serde_json::to_writer(&mut start, value).is_ok();
    let text = start.bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    match text.char_indices().nth(max) {
        None if whole => text.to_owned(),
        None => [text, CLIPPED].concat(),
        Some((end, _)) => [&text[..end], CLIPPED].concat(),
    }
}

/// Takes the start of what is written, then fails.
#[derive(Debug)]
struct Start {
    bytes: Vec<u8>,
    room: usize,
}

impl io::Write for Start {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room);
        self.bytes.extend_from_slice(&bytes[..taken]);
        self.room -= taken;
        // Nothing taken of something is what write_all fails with.
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn fill(template: &str, payload: &Value) -> String {
        Template::parse(template).expect("a template").fill("issues", payload)
    }

    #[test]
    fn gaps_are_filled_by_path() {
        let payload = json!({
            "action": "opened", "issue": {"number": 7, "title": "It breaks", "draft": false, "milestone": null},
            "commits": [{"message": "first"}, {"message": "second"}], "a-b": {"x:y": "odd"}, "0": "zero",
        });
        let cases = [
            ("#{issue.number}: {issue.title} ({action})", "#7: It breaks (opened)"),
            ("{commits.0.message}, {commits.1.message}", "first, second"),
            ("{issue.draft} {issue.milestone} {0} {a-b.x:y}", "false null zero odd"),
            ("{commits}", r#"[{"message":"first"},{"message":"second"}]"#),
            ("{event_type}", "issues"),
            ("no gap", "no gap"),
            ("", ""),
        ];
        for (template, filled) in cases {
            assert_eq!(fill(template, &payload), filled);
        }
    }

    #[test]
    fn doubled_braces_are_braces() {
        let payload = json!({"a": "x"});
        assert_eq!(fill(r#"{{"k": "{a}"}}"#, &payload), r#"{"k": "x"}"#);
        assert_eq!(fill("{{{a}}} {{}} {{a}}", &payload), "{x} {} {a}");
    }

    #[test]
    fn what_the_payload_does_not_have_stays_as_it_is_written() {
        let payload = json!({"a": {"b": "x"}, "list": ["x"]});
        let unknown =
            "{b} {a.c} {a.b.c} {list.1} {list.x} {list.+0} {list.99999999999999999999} {__raw__.a} {event_type.a}";
        assert_eq!(fill(unknown, &payload), unknown);
        assert_eq!(fill("{a.b}", &json!("text")), "{a.b}");
    }

    #[test]
    fn what_is_filled_in_is_not_filled_again() {
        let payload = json!({"a": "{secret} {{a}} {__raw__} {", "secret": "x", "list": ["{secret}"]});
        assert_eq!(fill("{a}{secret} {list}", &payload), r#"{secret} {{a}} {__raw__} {x ["{secret}"]"#);
        let template = Template::parse("{event_type}").expect("a template");
        assert_eq!(template.fill("{secret}", &payload), "{secret}");
    }

    #[test]
    fn the_payload_and_its_objects_are_clipped() {
        let payload = json!({"a": ["ü".repeat(5_000)]});
        let raw = fill("{__raw__}", &payload);
        assert_eq!((raw.chars().count(), raw.ends_with("ü…")), (MAX_RAW + 1, true));
        let list = fill("{a}", &payload);
        assert_eq!((list.chars().count(), list.ends_with("ü…")), (MAX_JSON + 1, true));
        // Around the text there are two quotes and two brackets.
        let fits = json!(["🎉".repeat(MAX_RAW - 4)]);
        assert_eq!(fill("{__raw__}", &fits), fits.to_string());
        let too_long = json!(["🎉".repeat(MAX_RAW - 3)]);
        assert_eq!(fill("{__raw__}", &too_long).chars().count(), MAX_RAW + 1);
        assert_eq!(fill("{a}", &json!({"a": "x".repeat(50_000)})).len(), 50_000);
    }

    #[test]
    fn the_longest_values_give_way_to_the_instructions_and_to_short_ones() {
        let payload = json!({"body": "ü".repeat(100_000), "other": "x".repeat(100_000), "title": "Short"});
        let filled = fill("{body} {other} {title} Reply in German.", &payload);
        assert!(filled.ends_with("x… Short Reply in German."), "{}", &filled[filled.len() - 40..]);
        assert!((MAX_FILLED - 2..=MAX_FILLED).contains(&filled.len()), "{}", filled.len());
        let half = MAX_FILLED / 2 - 100;
        assert!(filled.matches('ü').count() * 2 > half && filled.matches('x').count() > half);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let cases = [
            ("Hi\nüü {a", "the brace at line 2, character 4 is not closed; write {{ for a brace"),
            ("{a {b}", "the brace at line 1, character 1 is not closed; write {{ for a brace"),
            ("{a}}", "the brace at line 1, character 4 closes nothing; write }} for a brace"),
            (
                "{}",
                "between the braces at line 1, character 1 stands no path like pull_request.title; \
                    write {{ and }} for braces",
            ),
        ];
        for (template, told) in cases {
            assert_eq!(Template::parse(template).expect_err(template).to_string(), told);
        }
        for no_path in ["{a..b}", "{.a}", "{a.}", "{a b}", "{\"a\": 1}", "{\n}"] {
            assert!(matches!(Template::parse(no_path), Err(TemplateError::NoPath(_))), "{no_path}");
        }
        assert_eq!(Template::parse(&"{a}".repeat(257)), Err(TemplateError::TooManyGaps));
        assert!(Template::parse(&"{a}".repeat(256)).is_ok());
        assert_eq!(Template::parse(&"x".repeat(MAX_TEMPLATE + 1)), Err(TemplateError::TooLong(MAX_TEMPLATE + 1)));
    }

    fn payloads() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-c{}. \\PC]{0,12}".prop_map(Value::from),
            (0usize..30_000, "\\PC").prop_map(|(count, char)| Value::from(char.repeat(count))),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map("[a-c0-2]", inner, 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn filling_never_panics_and_is_bounded(
            template in "([a-c0-2. {}\\n]|\\{[a-c0-2](\\.[a-c0-2]){0,3}\\}|\\{__raw__\\}|\\PC){0,40}",
            payload in payloads(),
        ) {
            if let Ok(template) = Template::parse(&template) {
                prop_assert!(template.fill("push", &payload).len() <= MAX_FILLED);
            }
        }

        #[test]
        fn any_text_is_a_template_once_its_braces_are_doubled(text in any::<String>()) {
            prop_assert_eq!(fill(&text.replace('{', "{{").replace('}', "}}"), &json!({"a": "x"})), text);
        }

        #[test]
        fn the_text_of_a_payload_is_filled_in_as_it_is(
            text in "([{}]|\\{(a|b|__raw__|event_type)\\}|\\PC){0,40}", other in "[{}a-z_]{0,9}",
        ) {
            let payload = json!({"a": text.clone(), "b": other.clone()});
            prop_assert_eq!(fill("{a}|{b}|{a}", &payload), format!("{text}|{other}|{text}"));
        }
    }
}
