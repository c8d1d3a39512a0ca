//! Where within a line a text may be cut: behind a sentence, behind a word, or anywhere.

use super::Rank;

/// Ends a sentence where a space follows.
const ENDS: [char; 6] = ['.', '!', '?', '…', '؟', '।'];
/// Ends a sentence whatever follows: these scripts write no spaces.
const WIDE_ENDS: [char; 4] = ['。', '！', '？', '｡'];
/// May stand between a sentence's end and the space: quotes, brackets, emphasis.
const CLOSERS: [char; 16] = ['"', '\'', ')', ']', '}', '»', '”', '’', '*', '_', '`', '」', '』', '）', '】', '›'];

/// What is known of a line behind the graphemes that were stepped over.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// Something else than space was seen.
    visible: bool,
    /// Only digits were seen: a full stop makes that the number of a list item, not a sentence.
    number: bool,
    /// The last word ended a sentence.
    ended: bool,
    /// It did so in a script without spaces.
    wide: bool,
}

impl Words {
    /// Steps over `grapheme`, with `rest` of the line behind it, and says what a cut between them would be.
    pub fn step(&mut self, grapheme: &str, rest: &str) -> Rank {
        let first = grapheme.chars().next().unwrap_or(' ');
        let space = breakable(first);
        let before_space = rest.chars().next().is_none_or(breakable);
        if !space {
            self.see(first);
            // "e.g. this" goes on.
            if before_space && self.ended && rest.trim_start().chars().next().is_some_and(char::is_lowercase) {
                self.ended = false;
            }
        }
        let word_end = self.visible && (space || before_space);
        let goes_on = || rest.starts_with(|next| is_end(next) || CLOSERS.contains(&next));
        if self.ended && (word_end || self.wide && !goes_on()) {
            Rank::Sentence
        } else if word_end {
            Rank::Word
        } else {
            Rank::Grapheme
        }
    }

    fn see(&mut self, first: char) {
        if is_end(first) {
            self.ended = !self.number;
            self.wide = WIDE_ENDS.contains(&first);
        } else if !CLOSERS.contains(&first) {
            self.ended = false;
        }
        self.number = first.is_ascii_digit() && (self.number || !self.visible);
        self.visible = true;
    }
}

fn is_end(first: char) -> bool {
    ENDS.contains(&first) || WIDE_ENDS.contains(&first)
}

/// White space where a line may be broken.
fn breakable(first: char) -> bool {
    first.is_whitespace() && !matches!(first, '\u{a0}' | '\u{2007}' | '\u{202f}')
}
