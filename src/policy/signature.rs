//! Stub, to be replaced.

use crate::model::time::Timestamp;

/// Signs.
pub fn sign_standard(_secret: &[u8], _id: &str, _timestamp: Timestamp, _body: &[u8]) -> String {
    String::new()
}
