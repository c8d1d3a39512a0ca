//! hermes-gateway: the gateway between people's chats and their AI agents, at home in systemd.
//!
//! # Layers
//!
//! A row imports only from rows below it; `tests/layers.rs` holds this table against the sources.
//!
//! | layer | modules | what |
//! |---|---|---|
//! | 6 | `main` | the binary |
//! | 6 | `cli` | parse, one file a command; the only place that prints |
//! | 5 | `daemon` | birth, life, reload and death of the process as straight-line code |
//! | 4 | `config` | as written -> checked, all problems at once; each module below owns its own `Config` |
//! | 3 | `http` | the API for clients, the control socket, health, metrics |
//! | 3 | `gateway` | a turn's way: accepted, its session's lane, its agent, its end |
//! | 2 | `platform`, `agent`, `store` | one platform and one agent kind a file; what must survive. They do not know each other |
//! | 1 | `meter` | what is counted |
//! | 1 | `service` | systemd's protocols, and the stand-alone fallback |
//! | 1 | `policy`, `stop`, `secret`, `journal`, `web` | pure decisions; cancellation and tasks; secrets; the log; HTTP out |
//! | 0 | `model`, `exit`, `fault` | plain types: ids, messages, turns, time; what the exit status says; where tests kill |
//!
//! # Life of a message
//!
//! A request comes in ([`http`]) -> a place in its session's lane -> the turn is on disk ([`store`]) -> only now anybody
//! acts on it ([`gateway`]) -> lane and permit are reached -> the agent works, its pieces reach everybody who watches
//! ([`agent`]) -> the end and the reply are on disk, in one transaction -> only now they are told. A crash anywhere
//! leaves a row that the next life finds: what somebody can still ask for is run again, with its attempt counted.
//!
//! # Life of the process
//!
//! [`cli::main`], one thread: signals are held -> what systemd addressed to this pid ([`service::handshake`]) -> command
//! line -> signals are heard -> log. [`daemon::run`]: configuration -> the last life has ended -> locks -> sockets ->
//! store -> serve -> `READY=1` -> until a stop -> `STOPPING=1` -> what runs may end -> everything is given back.
//! Stand-alone, a restart is `execve` with sockets and locks kept, and signals held; under systemd it is exit status 75.
//!
//! What is durable is in [`store`]; what may be lost at any instruction is everything else, and that is a supported way
//! to stop.

pub mod agent;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod exit;
pub mod fault;
pub mod gateway;
pub mod http;
pub mod journal;
pub mod meter;
pub mod model;
pub mod platform;
pub mod policy;
pub mod secret;
pub mod service;
pub mod stop;
pub mod store;
pub mod web;
