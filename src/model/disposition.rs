//! What is to be done about a failure. The one who saw it decides; nobody above guesses from texts or status codes.

use std::time::Duration;

/// What the caller of a failed operation should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Try the same thing again, not before `after` if the other side named a delay.
    Retry {
        /// The delay the other side asked for (`Retry-After`), if it did.
        after: Option<Duration>,
    },
    /// This piece of work can never succeed; others can.
    Reject,
    /// Nothing of this kind can succeed until a person acts (a revoked key, say).
    Halt,
}
