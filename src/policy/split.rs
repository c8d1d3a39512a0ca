//! Stub, to be replaced.

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// How much.
    pub max: usize,
    /// Of what.
    pub unit: Unit,
}

/// A unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Characters.
    Chars,
    /// UTF-16 units.
    Utf16,
}

/// A part.
#[derive(Debug)]
pub struct Part {
    /// Its text.
    pub text: String,
}

/// Splits.
pub fn split(text: &str, limit: Limit) -> Vec<Part> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(limit.max).map(|c| Part { text: c.iter().collect() }).collect()
}
