//! The gateway as its users meet it: the real binary, real sockets, a real systemd.
//!
//! Tests wait for facts. What needs root or systemd says so loudly when it skips, and never skips in CI.

mod acp;
mod backup;
mod clients;
mod clock;
mod crashes;
mod disk;
mod drain;
mod gateway;
mod http_input;
mod inside;
mod layers;
mod machine;
mod notify;
mod openai_agent;
mod pid_fallback;
mod power_loss;
mod receiver;
mod reload;
mod retention;
mod store_faults;
mod streams;
mod systemd;
mod webhooks;
