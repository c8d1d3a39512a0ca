//! What a program says, as pieces of a reply: in any chunking the same.

use serde::Deserialize;

use super::OutputAs;
use crate::agent::lines::{Lines, TooLong};
use crate::model::turn::Usage;
use crate::web::clip;

/// Longest line of JSON, in bytes.
const MAX_LINE: usize = 1024 * 1024;

/// A piece of what a program says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    Thought(String),
    Usage(Usage),
    Error(String),
}

/// Why what it said is no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoReply {
    #[error("the agent's program said a line that is no JSON object of its kind ({reason}): {line}")]
    Malformed { reason: String, line: String },
    #[error("the agent's program said a line of more than {MAX_LINE} bytes")]
    TooLong,
}

impl From<TooLong> for NoReply {
    fn from(TooLong: TooLong) -> Self {
        Self::TooLong
    }
}

/// A reply that is being said.
#[derive(Debug)]
pub enum Reply {
    Text(Text),
    Json(Lines),
}

impl Reply {
    pub fn new(kind: OutputAs) -> Self {
        match kind {
            OutputAs::Text => Self::Text(Text::default()),
            OutputAs::Json => Self::Json(Lines::new(MAX_LINE)),
        }
    }

    /// The pieces that these bytes complete.
    pub fn hear(&mut self, chunk: &[u8]) -> Result<Vec<Piece>, NoReply> {
        match self {
            Self::Text(text) => Ok(text.hear(chunk).map(Piece::Text).into_iter().collect()),
            Self::Json(lines) => {
                lines.extend(chunk);
                let mut pieces = Vec::new();
                while let Some(line) = lines.next_line()? {
                    pieces.extend(parse(line)?);
                }
                Ok(pieces)
            }
        }
    }

    /// What is left when nothing comes any more.
    pub fn end(&mut self) -> Result<Vec<Piece>, NoReply> {
        match self {
            Self::Text(text) => Ok(text.end().map(Piece::Text).into_iter().collect()),
            Self::Json(lines) => parse(lines.rest()),
        }
    }
}

/// Text in the making: characters stay whole, and line ends at the very end are no part of the reply.
#[derive(Debug, Default)]
pub struct Text {
    /// The beginning of a character; at most three bytes.
    torn: Vec<u8>,
    /// Line ends that count only if something follows.
    line_ends: usize,
}

impl Text {
    fn hear(&mut self, chunk: &[u8]) -> Option<String> {
        let mut bytes = std::mem::take(&mut self.torn);
        bytes.extend_from_slice(chunk);
        self.torn = bytes.split_off(bytes.len() - torn_end(&bytes));
        self.say(&String::from_utf8_lossy(&bytes))
    }

    fn end(&mut self) -> Option<String> {
        let torn = std::mem::take(&mut self.torn);
        self.say(&String::from_utf8_lossy(&torn))
    }

    fn say(&mut self, text: &str) -> Option<String> {
        let kept = text.trim_end_matches('\n');
        let after = text.len() - kept.len();
        if kept.is_empty() {
            self.line_ends += after;
            return None;
        }
        let before = std::mem::replace(&mut self.line_ends, after);
        Some(format!("{}{kept}", "\n".repeat(before)))
    }
}

/// How many bytes at the end are the beginning of a character whose rest may still come.
fn torn_end(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let Some(lead) = tail.iter().rposition(|byte| byte & 0xc0 != 0x80) else { return 0 };
    match std::str::from_utf8(&tail[lead..]) {
        Err(e) if e.error_len().is_none() => tail.len() - lead,
        _ => 0,
    }
}

#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    thought: Option<String>,
    error: Option<String>,
    usage: Option<Usage>,
}

fn parse(line: &[u8]) -> Result<Vec<Piece>, NoReply> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let malformed =
        |e: serde_json::Error| NoReply::Malformed { reason: e.to_string(), line: clip(&String::from_utf8_lossy(line)) };
    let Line { text, thought, error, usage } = serde_json::from_slice(line).map_err(malformed)?;
    let pieces = [
        thought.map(Piece::Thought),
        text.map(Piece::Text),
        usage.map(Piece::Usage),
        error.map(|text| Piece::Error(clip(&text))),
    ];
    Ok(pieces.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heard<'a>(kind: OutputAs, chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Piece>, NoReply> {
        let mut reply = Reply::new(kind);
        let mut pieces = Vec::new();
        for chunk in chunks {
            pieces.extend(reply.hear(chunk)?);
        }
        pieces.extend(reply.end()?);
        Ok(pieces)
    }

    fn text<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> String {
        let pieces = heard(OutputAs::Text, chunks).expect("text is text");
        let text = pieces.into_iter().map(|piece| match piece {
            Piece::Text(text) => text,
            other => panic!("no text: {other:?}"),
        });
        text.collect()
    }

    proptest! {
        #[test]
        fn text_does_not_depend_on_how_it_arrives(
            said in "[aäö€😀\n]{0,40}", garbage in proptest::collection::vec(any::<u8>(), 0..6), size in 1usize..9) {
            let bytes = [said.as_bytes(), &garbage, said.as_bytes()].concat();
            let whole = text([bytes.as_slice()]);
            prop_assert_eq!(text(bytes.chunks(size)), whole.clone());
            let expected = String::from_utf8_lossy(&bytes);
            prop_assert_eq!(whole, expected.trim_end_matches('\n'));
        }

        #[test]
        fn garbage_is_refused_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 1usize..9) {
            let whole = heard(OutputAs::Json, [bytes.as_slice()]);
            prop_assert_eq!(heard(OutputAs::Json, bytes.chunks(size)), whole);
        }
    }

    #[test]
    fn lines_of_json_are_events_and_what_is_unknown_is_ignored() {
        let said = b"{\"text\":\"a\"}\n\n{\"thought\":\"t\",\"new\":1}\r\n{\"usage\":{\"input_tokens\":1,\"output_tokens\":2}}\n\
            {\"later\":[]}\n{\"error\":\"no\"}";
        let pieces = heard(OutputAs::Json, [said.as_slice()]).expect("events");
        let expected = [
            Piece::Text("a".into()),
            Piece::Thought("t".into()),
            Piece::Usage(Usage { input_tokens: 1, output_tokens: 2 }),
            Piece::Error("no".into()),
        ];
        assert_eq!(pieces, expected);
        for bad in ["hello", "{\"text\": 1}", "[]x", "{\"text\":\"a\"} {}"] {
            assert!(heard(OutputAs::Json, [bad.as_bytes()]).is_err(), "{bad}");
        }
    }
}
