//! hermes-gateway
pub mod agent;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod exit;
pub mod gateway;
pub mod http;
pub mod journal;
pub mod meter;
pub mod model;
pub mod policy;
pub mod secret;
pub mod service;
pub mod stop;
pub mod store;
