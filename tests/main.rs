//! The gateway as its users meet it: the real binary, real sockets, a real systemd.
//!
//! Tests wait for facts. What needs root or systemd says so loudly when it skips, and never skips in CI.

mod gateway;
mod machine;
