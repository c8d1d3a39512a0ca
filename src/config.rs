//! Layer 4: the configuration. Parsed ([`tree`]), checked ([`check`]), and only then anybody acts on it.
//!
//! One file and its drop-ins, each key of a later one replacing that of an earlier one. Loading opens nothing but these
//! files; all problems are found at once, each with its file, line, key and what was expected.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing::Level;

use crate::model::time::in_words;
use crate::secret;
use crate::service::directories::Directories;
use crate::{agent, gateway, http, platform};

mod check;
mod section;
mod tree;

/// Every key with its default, commented out; a test loads it.
pub const DEFAULT_FILE: &str = include_str!("config/default.toml");

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A socket of the file system.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A configuration that can be acted on.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where to listen for HTTP; `None`: where systemd says, else at the instance's usual place.
    pub listen: Option<Vec<Listen>>,
    /// Where the API's key is; `None`: the credential `api-key`, else one that is made on first start.
    pub key: Option<secret::Source>,
    /// The bounds of the HTTP side.
    pub http: http::Config,
    /// The bounds of the gateway's work.
    pub turns: gateway::Config,
    /// How long things are kept.
    pub retention: gateway::retention::Config,
    /// Who answers when nobody says.
    pub default_agent: String,
    /// Who can answer.
    pub agents: BTreeMap<String, agent::Config>,
    /// Where replies can go.
    pub platforms: BTreeMap<String, platform::Config>,
    /// Programs that tell something.
    pub webhooks: BTreeMap<String, http::webhooks::Config>,
    /// What is logged.
    pub log_level: Level,
    /// How long running turns may go on at a stop.
    pub stop_grace: Duration,
}

/// What is wrong with a configuration: all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// In which file.
    pub file: PathBuf,
    /// Line and column, from 1; `None` if it is about the whole file.
    pub place: Option<(usize, usize)>,
    /// The key, with its section: `http.max_body`.
    pub key: String,
    /// What was expected and what was found.
    pub message: String,
}

impl Problems {
    /// Each problem as a line.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(Problem::to_string).collect()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

impl std::error::Error for Problems {}

/// Loads the configuration of these places. A file that is not there counts as empty, unless it was named.
pub fn load(directories: &Directories) -> Result<Config, Problems> {
    let mut problems = Vec::new();
    let root = tree::read(directories, &mut problems);
    let config = check::check(&root, &mut problems);
    if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
}

impl Config {
    /// Every key with its value as text, by which two configurations are compared.
    fn facts(&self) -> BTreeMap<String, String> {
        let sized = |bytes: usize| format!("{bytes} bytes");
        let named = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        let listen = self.listen.as_ref().map(|l| l.iter().map(Listen::to_string).collect::<Vec<_>>().join(", "));
        let key = self.key.as_ref().map(secret::Source::to_string);
        let mut facts = BTreeMap::from([
            ("http.listen".into(), named(&listen)),
            ("http.key".into(), named(&key)),
            ("http.max_body".into(), sized(self.http.max_body)),
            ("http.max_connections".into(), self.http.max_connections.to_string()),
            ("http.header_timeout".into(), in_words(self.http.header_timeout)),
            ("http.body_timeout".into(), in_words(self.http.body_timeout)),
            ("turns.max_running".into(), self.turns.max_running.to_string()),
            ("turns.max_queued".into(), self.turns.max_queued.to_string()),
            ("turns.max_attempts".into(), self.turns.max_attempts.to_string()),
            ("turns.timeout".into(), in_words(self.turns.timeout)),
            ("retention.keep".into(), in_words(self.retention.keep)),
            ("retention.max_size".into(), named(&self.retention.max_size.map(|bytes| format!("{bytes} bytes")))),
            ("agents.default".into(), self.default_agent.clone()),
            ("log.level".into(), self.log_level.to_string()),
            ("stop.grace".into(), in_words(self.stop_grace)),
        ]);
        // Its debug form names where a key is and never the key.
        facts.extend(
            self.platforms.iter().map(|(name, platform)| (format!("platforms.{name}"), format!("{platform:?}"))),
        );
        facts.extend(self.webhooks.iter().map(|(name, webhook)| (format!("webhooks.{name}"), format!("{webhook:?}"))));
        facts.extend(self.agents.iter().map(|(name, agent)| (format!("agents.{name}"), format!("{agent:?}"))));
        facts
    }

    /// The keys whose values differ: those that a reload can apply, and those that need a restart.
    pub fn changes(&self, new: &Self) -> (Vec<String>, Vec<String>) {
        let (before, after) = (self.facts(), new.facts());
        let keys = before.keys().chain(after.keys()).collect::<std::collections::BTreeSet<_>>();
        let changed = keys.into_iter().filter(|key| before.get(*key) != after.get(*key)).cloned();
        // Sockets are bound, and their connection limits made, once.
        changed.partition(|key| !matches!(key.as_str(), "http.listen" | "http.max_connections"))
    }
}

#[cfg(test)]
mod tests;
