//! Layer 2: platforms, where people and programs get their replies. One file for each kind.
//!
//! An adapter is dumb: it sends one delivery and says what came of it. It never retries, waits, spawns, stores or keeps
//! order; `gateway::outbox` does that for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::model::delivery::{Delivery, Receipt, SendError};
use crate::policy::split::Limit;

pub mod callback;

/// What a platform can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest text of one delivery; `None`: any.
    pub text: Option<Limit>,
    /// Whether a delivery that is sent twice with the same key arrives once.
    pub idempotent: bool,
    /// Deliveries a second, over all chats; `None`: as fast as it takes them.
    pub per_second: Option<u32>,
    /// Deliveries under way at the same time.
    pub in_flight: usize,
    /// How long a delivery is tried before it is given up, as the sum of the waits between attempts.
    pub horizon: Duration,
}

/// How a platform is configured, by its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// An HTTP endpoint that is called with each reply.
    Callback(callback::Config),
}

impl Config {
    /// The word in the configuration, in logs and in status.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Callback(_) => "callback",
        }
    }

    /// What it can take.
    pub fn limits(&self) -> Limits {
        match self {
            Self::Callback(config) => config.limits,
        }
    }
}

/// A platform that can be sent to.
#[derive(Debug)]
pub enum Platform {
    /// An HTTP endpoint that is called with each reply.
    Callback(callback::Callback),
}

impl Platform {
    /// Makes a platform; does no I/O.
    pub fn new(config: &Config) -> Self {
        match config {
            Config::Callback(config) => Self::Callback(callback::Callback::new(config.clone())),
        }
    }

    /// Sends one delivery.
    ///
    /// # Errors
    /// When the platform did not take it, with what to do about it.
    pub async fn send(&self, delivery: &Delivery) -> Result<Receipt, SendError> {
        match self {
            Self::Callback(callback) => callback.send(delivery).await,
        }
    }
}

/// All platforms by name.
#[derive(Debug, Clone, Default)]
pub struct Platforms {
    by_name: BTreeMap<String, (Config, Arc<Platform>)>,
}

impl Platforms {
    /// Makes the platforms; those in `before` whose configuration is unchanged are kept with their connections.
    pub fn new(configs: &BTreeMap<String, Config>, before: Option<&Self>) -> Self {
        let make = |(name, config): (&String, &Config)| {
            let kept = before.and_then(|b| b.by_name.get(name)).filter(|(old, _)| old == config);
            let platform = kept.map_or_else(|| Arc::new(Platform::new(config)), |(_, platform)| platform.clone());
            (name.clone(), (config.clone(), platform))
        };
        Self { by_name: configs.iter().map(make).collect() }
    }

    /// The platform of this name, and what it can take.
    pub fn get(&self, name: &str) -> Option<(&Arc<Platform>, Limits)> {
        self.by_name.get(name).map(|(config, platform)| (platform, config.limits()))
    }

    /// All names with their kinds and limits, sorted by name.
    pub fn all(&self) -> impl Iterator<Item = (&str, &'static str, Limits)> {
        self.by_name.iter().map(|(name, (config, _))| (name.as_str(), config.kind(), config.limits()))
    }
}
