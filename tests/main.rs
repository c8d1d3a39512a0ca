//! The gateway as its users meet it: the real binary, real sockets, a real systemd.
//!
//! Tests wait for facts. What needs root or systemd says so loudly when it skips, and never skips in CI.

mod backup;
mod clients;
mod gateway;
mod http_input;
mod inside;
mod layers;
mod machine;
mod notify;
mod openai_agent;
mod pid_fallback;
mod reload;
mod retention;
mod store_faults;
mod systemd;
