//! Lines of Markdown, as far as fenced code blocks go (CommonMark 4.5): what opens a block, what closes it.
//!
//! A fence that is indented by more than three spaces is code, not a fence. Containers (a list, a quote) are not
//! followed: a fence deeper inside of them is taken for text, and then nothing is added around it.

/// The line that opened a code block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fence<'t> {
    /// The whole line, with its info string, without its line end.
    pub line: &'t str,
    /// What stands before the fence: up to three spaces.
    indent: &'t str,
    /// The fence itself: three or more backticks or tildes.
    marks: &'t str,
}

/// Where a fence may stand: after at most three spaces. The indent, the run of marks, and what follows them.
fn marked(line: &str) -> Option<(&str, &str, &str)> {
    let rest = line.trim_start_matches(' ');
    let indent = &line[..line.len() - rest.len()];
    let mark = rest.chars().next().filter(|mark| matches!(mark, '`' | '~'))?;
    let info = rest.trim_start_matches(mark);
    let marks = &rest[..rest.len() - info.len()];
    (indent.len() <= 3 && marks.len() >= 3).then_some((indent, marks, info))
}

impl<'t> Fence<'t> {
    /// The fence that `line`, which stands outside of a block, opens.
    fn opened_by(line: &'t str) -> Option<Self> {
        let (indent, marks, info) = marked(line)?;
        // Three backticks with more of them behind are inline code.
        let inline = marks.starts_with('`') && info.contains('`');
        (!inline).then_some(Self { line, indent, marks })
    }

    /// Whether `line`, which stands in this block, ends it.
    fn closed_by(&self, line: &str) -> bool {
        let long_enough = |marks: &str| marks.starts_with(self.marks);
        marked(line).is_some_and(|(_, marks, info)| long_enough(marks) && info.trim().is_empty())
    }

    /// What opens this block again, as a line of its own.
    pub fn opening(&self) -> String {
        format!("{}\n", self.line)
    }

    /// What ends this block, behind text that ends a line or that does not.
    pub fn closing(&self, ends_line: bool) -> String {
        let line_end = if ends_line { "" } else { "\n" };
        format!("{line_end}{}{}", self.indent, self.marks)
    }

    /// The length of [`Self::closing`], in any unit, for all of it is ASCII.
    pub fn closing_len(&self, ends_line: bool) -> usize {
        usize::from(!ends_line) + self.indent.len() + self.marks.len()
    }
}

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing to see.
    Blank,
    /// It opens a code block.
    Opening,
    /// It ends one.
    Closing,
    /// Everything else, also in a block.
    Text,
}

/// One line of the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'t> {
    /// Where its line end begins, in bytes of the text.
    pub body_end: usize,
    /// Where the next line begins.
    pub end: usize,
    /// What it is.
    pub kind: Kind,
    /// The block that it stands in, its closing line included.
    pub within: Option<Fence<'t>>,
    /// The block that the next line stands in.
    pub after: Option<Fence<'t>>,
}

impl<'t> Line<'t> {
    /// The line that begins at `start`, in the block `within`.
    pub fn read(text: &'t str, start: usize, within: Option<Fence<'t>>) -> Self {
        let end = text[start..].find('\n').map_or(text.len(), |at| start + at + 1);
        let line = text[start..end].trim_end_matches('\n');
        let body = line.strip_suffix('\r').filter(|_| start + line.len() < end).unwrap_or(line);
        let (kind, after) = match within {
            _ if body.trim().is_empty() => (Kind::Blank, within),
            Some(fence) if fence.closed_by(body) => (Kind::Closing, None),
            Some(_) => (Kind::Text, within),
            None => match Fence::opened_by(body) {
                Some(fence) => (Kind::Opening, Some(fence)),
                None => (Kind::Text, None),
            },
        };
        Self { body_end: start + body.len(), end, kind, within, after }
    }

    /// The line after this one.
    pub fn next(&self, text: &'t str) -> Self {
        Self::read(text, self.end, self.after)
    }
}
