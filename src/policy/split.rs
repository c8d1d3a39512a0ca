//! Splits a text into parts that a platform takes, without losing a character of it.
//!
//! - The parts, without what was added to them, are the text: no space is lost, indentation stays with its line.
//! - Each part is within the limit, and none is empty; an empty text has no parts. A part can be blank, for white
//!   space is not lost either; platforms refuse such a message, so whoever sends may skip it ([`Part::is_blank`]).
//! - A cut is where the last paragraph within the limit ends, else where a line ends, else a sentence, else a word. A
//!   code block counts as a paragraph, which a blank line in it divides only when it does not fit as a whole.
//! - No grapheme cluster is cut, unless it is larger than the limit: then it is cut between characters.
//! - A cut in a fenced code block closes the fence and opens it again in the next part, with its info string. Where
//!   both fences would take more than half of the limit, nothing is added.
//! - A text within the limit is one part, unchanged.
//!
//! Time is linear in the text's length: what a part looks at beyond its cut is bounded by the limit, a line's end is
//! searched once for all parts within it, and so is the end of a grapheme cluster that is larger than the limit.

use unicode_segmentation::UnicodeSegmentation;

mod fence;
mod words;

use fence::{Fence, Kind, Line};
use words::Words;

/// How long a platform's message may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The longest part, in units. A single character that is longer than that is a part of its own nonetheless, so
    /// to be held always it must be at least 4 bytes, 1 character or 2 UTF-16 code units.
    pub max: usize,
    /// What the platform counts.
    pub unit: Unit,
}

/// What a platform counts when it counts a message's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of UTF-8.
    Bytes,
    /// Characters (Unicode scalar values).
    Chars,
    /// UTF-16 code units.
    Utf16,
}

/// A piece of the text, as it is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What to send.
    pub text: String,
    /// How many bytes at its start are not of the text: the fence that is opened again.
    pub added_front: usize,
    /// How many bytes at its end are not of the text: the fence that is closed.
    pub added_back: usize,
}

impl Part {
    /// What of it is of the text.
    pub fn original(&self) -> &str {
        &self.text[self.added_front..self.text.len() - self.added_back]
    }

    /// Whether there is nothing to see in it.
    pub fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }
}

/// Splits `text` into parts within `limit`; see the module for the rules.
pub fn split(text: &str, limit: Limit) -> Vec<Part> {
    let splitter = Splitter { text, limit, visible_end: text.trim_end().len() };
    let mut parts = Vec::new();
    let mut place = Place { at: 0, fence: None, line: Line::read(text, 0, None), cluster_end: 0 };
    while place.at < text.len() {
        let cut = splitter
            .cut(&place, true)
            .or_else(|| splitter.cut(&place, false))
            .unwrap_or_else(|| splitter.cut_cluster(&place));
        let original = &text[place.at..cut.next.at];
        let text = [cut.front.as_str(), original, cut.back.as_str()].concat();
        parts.push(Part { text, added_front: cut.front.len(), added_back: cut.back.len() });
        place = cut.next;
    }
    parts
}

/// How good a place for a cut is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The part or all of the rest would be blank, or one of both would have an empty code block.
    Resort,
    /// Between two grapheme clusters.
    Grapheme,
    /// A word ends.
    Word,
    /// A sentence ends.
    Sentence,
    /// A line ends.
    Line,
    /// A blank line in a code block.
    Gap,
    /// A paragraph ends, or a code block begins or ends.
    Paragraph,
}

/// Where a part begins.
#[derive(Debug)]
struct Place<'t> {
    /// In bytes.
    at: usize,
    /// The code block around it.
    fence: Option<Fence<'t>>,
    /// The line it is in.
    line: Line<'t>,
    /// Where the grapheme cluster ends that was cut here; nothing when it is not behind `at`.
    cluster_end: usize,
}

/// How a part ends.
#[derive(Debug)]
struct Cut<'t> {
    front: String,
    back: String,
    next: Place<'t>,
}

/// A place where a part could end.
#[derive(Debug)]
struct Candidate<'t> {
    rank: Rank,
    end: usize,
    /// The line that it is in or at the end of.
    line: Line<'t>,
    /// The block that is to be closed.
    frame: Option<Fence<'t>>,
}

#[derive(Debug)]
struct Splitter<'t> {
    text: &'t str,
    limit: Limit,
    /// Behind this there is only white space.
    visible_end: usize,
}

impl<'t> Splitter<'t> {
    /// The best cut for the part that begins at `place`, with fences or without. `None` when not even one grapheme
    /// cluster fits.
    fn cut(&self, place: &Place<'t>, fences: bool) -> Option<Cut<'t>> {
        let worth = |fence: Option<Fence<'t>>| fence.filter(|fence| fences && self.worth_adding(fence));
        let mut frame = worth(place.fence);
        let front = frame.map(|fence| fence.opening()).unwrap_or_default();
        let mut used = self.limit.measure(&front);
        let mut best: Option<Candidate<'t>> = None;
        let mut offer = |used: usize, ends_line: bool, mut candidate: Candidate<'t>| {
            if candidate.end >= self.visible_end {
                candidate.rank = Rank::Resort;
            }
            let closing = candidate.frame.map_or(0, |fence| fence.closing_len(ends_line));
            let fits = used + closing <= self.limit.max;
            if fits && best.as_ref().is_none_or(|best| candidate.rank >= best.rank) {
                best = Some(candidate);
            }
            fits
        };
        let mut visible = false;
        let (mut line, mut from) = (place.line, place.at);
        // The first line that does not fit together with the fence behind it, and what stands before it.
        let mut tight = None;
        // Line by line while they fit without it, for the block may end.
        let last = loop {
            let start = (line, from, used, frame);
            let body_end = line.body_end.max(from);
            let Some(with_body) = self.limit.add(used, &self.text[from..body_end]) else { break start };
            visible |= !self.text[from..body_end].trim().is_empty();
            let next = line.next(self.text);
            let rank = if visible { rank(&line, &next) } else { Rank::Resort };
            // The last line of a part may end without its line end. An opening line needs it.
            if body_end > from && line.kind != Kind::Opening {
                let frame = frame.filter(|_| line.kind != Kind::Closing);
                offer(with_body, false, Candidate { rank, end: body_end, line, frame });
            }
            let Some(with_line) = self.limit.add(with_body, &self.text[body_end..line.end]) else { break start };
            if line.end == self.text.len() {
                // What the text leaves open stays open.
                return Some(Cut { front, back: String::new(), next: self.place(&line, line.end, 0) });
            }
            used = with_line;
            if matches!(line.kind, Kind::Opening | Kind::Closing) {
                frame = worth(line.after);
            }
            let fits = offer(used, true, Candidate { rank, end: line.end, line, frame });
            if !fits && tight.is_none() {
                tight = Some(start);
            }
            (line, from) = (next, line.end);
        };
        // Then within the line that does not fit. Fences are not cut while there is another way.
        let (line, from, used, frame) = tight.unwrap_or(last);
        let poor =
            best.as_ref().is_none_or(|best| best.rank == Rank::Resort && matches!(line.kind, Kind::Text | Kind::Blank));
        if poor && let Some((rank, end)) = self.within(&line, from, used, frame, place.cluster_end) {
            best = Some(Candidate { rank, end, line, frame });
        }
        let best = best?;
        let ends_line = self.text[..best.end].ends_with('\n');
        let back = best.frame.map(|fence| fence.closing(ends_line)).unwrap_or_default();
        let cluster_end = place.cluster_end;
        Some(Cut { front, back, next: self.place(&best.line, best.end, cluster_end) })
    }

    /// The best cut within `line`, behind `from`, with `used` of the limit gone and `frame` to be closed.
    fn within(
        &self,
        line: &Line<'t>,
        from: usize,
        used: usize,
        frame: Option<Fence<'t>>,
        cluster_end: usize,
    ) -> Option<(Rank, usize)> {
        let room = self.limit.max.checked_sub(used + frame.map_or(0, |fence| fence.closing_len(false)))?;
        let (rest_of_cluster, rest) = self.text[from..line.end].split_at(cluster_end.saturating_sub(from));
        let clusters = [rest_of_cluster].into_iter().filter(|rest| !rest.is_empty()).chain(rest.graphemes(true));
        let mut words = Words::default();
        let (mut best, mut used, mut end) = (None, 0, from);
        for cluster in clusters {
            let room_left = Limit { max: room, ..self.limit }.add(used, cluster);
            let Some(with_cluster) = room_left else { break };
            (used, end) = (with_cluster, end + cluster.len());
            let rank = words.step(cluster, self.text.get(end..line.body_end).unwrap_or_default());
            let rank = if end < self.visible_end { rank } else { Rank::Resort };
            if best.is_none_or(|(best, _)| rank >= best) {
                best = Some((rank, end));
            }
        }
        best
    }

    /// As many characters as fit of a grapheme cluster that does not fit, at least one.
    fn cut_cluster(&self, place: &Place<'t>) -> Cut<'t> {
        let cluster_end = if place.cluster_end > place.at {
            place.cluster_end
        } else {
            let rest = &self.text[place.at..place.line.end];
            place.at + rest.graphemes(true).next().map_or(rest.len(), str::len)
        };
        let (mut used, mut end) = (0, place.at);
        for character in self.text[place.at..cluster_end].chars() {
            used += self.limit.unit.of(character);
            if used > self.limit.max && end > place.at {
                break;
            }
            end += character.len_utf8();
        }
        Cut { front: String::new(), back: String::new(), next: self.place(&place.line, end, cluster_end) }
    }

    /// The place `at`, which is in `line` or at its end.
    fn place(&self, line: &Line<'t>, at: usize, cluster_end: usize) -> Place<'t> {
        if at >= line.end {
            return Place { at, fence: line.after, line: line.next(self.text), cluster_end };
        }
        let closed = line.kind == Kind::Closing && at >= line.body_end;
        Place { at, fence: line.within.filter(|_| !closed), line: *line, cluster_end }
    }

    fn worth_adding(&self, fence: &Fence<'t>) -> bool {
        let half = Limit { max: self.limit.max / 2, ..self.limit };
        half.add(fence.closing_len(false) + 1, fence.line).is_some()
    }
}

/// How good a cut at the end of `line` is, with something to see before it and `next` behind it.
fn rank(line: &Line<'_>, next: &Line<'_>) -> Rank {
    let between = line.kind == Kind::Blank || next.kind == Kind::Blank;
    match line.after {
        Some(_) if line.kind == Kind::Opening || next.kind == Kind::Closing => Rank::Resort,
        Some(_) if between => Rank::Gap,
        None if between || line.kind == Kind::Closing || next.kind == Kind::Opening => Rank::Paragraph,
        _ => Rank::Line,
    }
}

impl Limit {
    fn measure(&self, text: &str) -> usize {
        match self.unit {
            Unit::Bytes => text.len(),
            Unit::Chars => text.chars().count(),
            Unit::Utf16 => text.encode_utf16().count(),
        }
    }

    /// `used` and the length of `text`, if that is within the limit. Does not look at more text than fits.
    fn add(&self, used: usize, text: &str) -> Option<usize> {
        let room = self.max.checked_sub(used)?;
        // No character has more than four bytes to a unit.
        let fits = text.len() / 4 <= room;
        fits.then(|| used + self.measure(text)).filter(|used| *used <= self.max)
    }
}

impl Unit {
    fn of(self, character: char) -> usize {
        match self {
            Self::Bytes => character.len_utf8(),
            Self::Chars => 1,
            Self::Utf16 => character.len_utf16(),
        }
    }
}

#[cfg(test)]
mod tests;
