//! Server-sent events as a model's endpoint sends them: `data:` lines, in any chunking, of any length up to a bound.

use std::time::Duration;

use axum::body::Bytes;
use reqwest::Response;

use super::retry;
use crate::agent::lines::{self, TooLong};
use crate::model::turn::AgentError;
use crate::web::cause;

/// Longest line of a stream, in bytes; a model's chunk is a few hundred.
const MAX_LINE: usize = 1024 * 1024;

/// The body of an answer, line by line.
pub struct Lines {
    response: Response,
    patience: Duration,
    buffer: lines::Lines,
}

impl Lines {
    /// Reads `response`; a silence longer than `patience` is an error.
    pub fn new(response: Response, patience: Duration) -> Self {
        Self { response, patience, buffer: lines::Lines::new(MAX_LINE) }
    }

    /// The next piece of the body as it came.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, AgentError> {
        let silence = |_| retry(format!("the model's endpoint fell silent for {:?}", self.patience));
        let chunk = tokio::time::timeout(self.patience, self.response.chunk()).await.map_err(silence)?;
        chunk.map_err(|e| retry(format!("the model's endpoint broke off: {}", cause(&e))))
    }

    /// The next `data:` line's value; `None` at the end of the body.
    pub async fn next_data(&mut self) -> Result<Option<String>, AgentError> {
        let too_long = |TooLong| retry(format!("the model's endpoint sent a line of more than {MAX_LINE} bytes"));
        loop {
            while let Some(line) = self.buffer.next_line().map_err(too_long)? {
                // Comments, `event:` and `id:` lines carry nothing here. What is no UTF-8 cannot be JSON anyway.
                if let Some(data) = String::from_utf8_lossy(line).strip_prefix("data:") {
                    return Ok(Some(data.trim().to_owned()));
                }
            }
            match self.next_chunk().await? {
                None => return Ok(None),
                Some(chunk) => self.buffer.extend(&chunk),
            }
        }
    }
}
