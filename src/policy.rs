//! Layer 1: decisions as pure functions of what is known and what time it is.

pub mod backoff;
pub mod lives;
pub mod retention;
pub mod session;
pub mod signature;
pub mod split;
pub mod template;
