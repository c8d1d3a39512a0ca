//! Bytes in, whole lines out: in any chunking the same lines, and never more in memory than one line and one chunk.

/// What a line buffer refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// Bytes that wait for the end of their line.
#[derive(Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to where there is no end of a line.
    searched: usize,
    /// Bytes of all lines that were taken, with their ends.
    taken: u64,
    /// Longest line, in bytes without its end.
    limit: usize,
}

impl Lines {
    /// Nothing yet; a line longer than `limit` bytes is refused.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, searched: 0, taken: 0, limit }
    }

    /// Takes bytes in. All whole lines are to be taken out before the next ones come.
    pub fn extend(&mut self, chunk: &[u8]) {
        self.bytes.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(chunk);
    }

    /// The next whole line, without its end (LF or CRLF); `None` until there is more.
    ///
    /// # Errors
    /// When the line is too long; nothing is to be expected of this buffer afterwards.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let end = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| self.searched + at);
        let length = end.unwrap_or(self.bytes.len()) - self.start;
        if length > self.limit {
            return Err(TooLong);
        }
        let Some(end) = end else {
            self.searched = self.bytes.len();
            return Ok(None);
        };
        let line = &self.bytes[self.start..end];
        self.start = end + 1;
        self.searched = self.start;
        self.taken += length as u64 + 1;
        Ok(Some(line.strip_suffix(b"\r").unwrap_or(line)))
    }

    /// Bytes of all lines that were taken, with their ends.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// What came after the last whole line.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The lines, whether one was too long, and what is left.
    fn lines<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> (Vec<Vec<u8>>, bool, Vec<u8>) {
        let mut buffer = Lines::new(limit);
        let mut lines = Vec::new();
        for chunk in chunks {
            buffer.extend(chunk);
            loop {
                match buffer.next_line() {
                    Ok(Some(line)) => lines.push(line.to_vec()),
                    Ok(None) => break,
                    Err(TooLong) => return (lines, true, Vec::new()),
                }
            }
            assert!(buffer.bytes.len() <= limit + chunk.len(), "memory is bounded");
        }
        (lines, false, buffer.rest().to_vec())
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_arrive(bytes in proptest::collection::vec(
            prop_oneof![3 => any::<u8>(), 1 => Just(b'\n'), 1 => Just(b'\r')], 0..400), size in 1usize..40) {
            let whole = lines([bytes.as_slice()], 30);
            let pieces = lines(bytes.chunks(size), 30);
            prop_assert_eq!(&whole, &pieces);
            if let (lines, false, rest) = whole {
                let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
                prop_assert_eq!(lines.len(), ends);
                prop_assert!(rest.len() <= 30);
            }
        }
    }

    #[test]
    fn what_was_taken_is_counted_with_its_ends() {
        let mut buffer = Lines::new(10);
        buffer.extend(b"one\r\n\ntwo\nthr");
        while buffer.next_line().expect("short").is_some() {}
        assert_eq!((buffer.taken(), buffer.rest()), (10, &b"thr"[..]));
    }
}
