//! Server-sent events as a model's endpoint sends them: `data:` lines, in any chunking, of any length up to a bound.

use std::time::Duration;

use axum::body::Bytes;
use reqwest::Response;

use super::retry;
use crate::model::turn::AgentError;
use crate::web::cause;

/// Longest line of a stream, in bytes; a model's chunk is a few hundred.
const MAX_LINE: usize = 1024 * 1024;

/// The body of an answer, line by line.
pub struct Lines {
    response: Response,
    patience: Duration,
    buffer: LineBuffer,
}

impl Lines {
    /// Reads `response`; a silence longer than `patience` is an error.
    pub fn new(response: Response, patience: Duration) -> Self {
        Self { response, patience, buffer: LineBuffer::default() }
    }

    /// The next piece of the body as it came.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, AgentError> {
        let silence = |_| retry(format!("the model's endpoint fell silent for {:?}", self.patience));
        let chunk = tokio::time::timeout(self.patience, self.response.chunk()).await.map_err(silence)?;
        chunk.map_err(|e| retry(format!("the model's endpoint broke off: {}", cause(&e))))
    }

    /// The next `data:` line's value; `None` at the end of the body.
    pub async fn next_data(&mut self) -> Result<Option<String>, AgentError> {
        loop {
            while let Some(line) = self.buffer.next_line() {
                // Comments, `event:` and `id:` lines carry nothing here.
                if let Some(data) = line.strip_prefix("data:") {
                    return Ok(Some(data.trim().to_owned()));
                }
            }
            match self.next_chunk().await? {
                None => return Ok(None),
                Some(chunk) => {
                    self.buffer.extend(&chunk).map_err(|TooLong| {
                        retry(format!("the model's endpoint sent a line of more than {MAX_LINE} bytes"))
                    })?;
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct LineBuffer {
    bytes: Vec<u8>,
    /// Where the next line begins.
    start: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct TooLong;

impl LineBuffer {
    fn extend(&mut self, chunk: &[u8]) -> Result<(), TooLong> {
        self.bytes.drain(..self.start);
        self.start = 0;
        if self.bytes.len() + chunk.len() > MAX_LINE && !chunk.contains(&b'\n') {
            return Err(TooLong);
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// The next whole line, without its end (LF or CRLF). What is no UTF-8 is replaced: it cannot be JSON anyway.
    fn next_line(&mut self) -> Option<String> {
        let rest = &self.bytes[self.start..];
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end_matches('\r').to_owned();
        self.start += end + 1;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(chunks: impl IntoIterator<Item = Vec<u8>>) -> Vec<String> {
        let mut buffer = LineBuffer::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            buffer.extend(&chunk).expect("short");
            lines.extend(std::iter::from_fn(|| buffer.next_line()));
        }
        lines
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_arrive(text in "([a-zäö:{} ]{0,20}\r?\n){0,20}", size in 1usize..40) {
            let whole = lines([text.clone().into_bytes()]);
            let pieces = lines(text.as_bytes().chunks(size).map(<[u8]>::to_vec));
            prop_assert_eq!(whole, pieces);
        }
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_eats_the_memory() {
        let mut buffer = LineBuffer::default();
        let refused = (0..100).any(|_| buffer.extend(&[b'x'; 64 * 1024]) == Err(TooLong));
        assert!(refused && buffer.bytes.len() <= MAX_LINE);
    }
}
