//! Layer 0: the words of the domain as plain types. No I/O, no clock of its own, no knowledge of who uses them.

pub mod address;
pub mod delivery;
pub mod disposition;
pub mod id;
pub mod message;
pub mod time;
pub mod turn;
