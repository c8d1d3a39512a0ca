//! Layer 1: where log records go. The journal's native protocol when stderr is the journal's, plain lines otherwise.
//!
//! Records carry fields: `HERMES_INSTANCE` on all, `HERMES_SESSION`, `HERMES_TURN`, `HERMES_AGENT` and so on from the
//! spans and events they belong to. Life-cycle events have a `MESSAGE_ID`, which `journalctl -x` explains from our
//! catalog. Secrets and what people say never appear at info level or above.

use std::io::{self, IsTerminal};

use libsystemd::logging::{Priority, journal_send};
use tracing::{Level, Metadata};
use tracing_journald::PriorityMappings;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

/// What `SYSLOG_IDENTIFIER=` says, for `journalctl -t`.
const IDENTIFIER: &str = "hermes-gateway";

/// A moment in the life of the process that people look for. The ids are ours for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifeEvent {
    /// The process began.
    Started,
    /// It serves.
    Ready,
    /// A reload was applied.
    Reloaded,
    /// A reload was refused; the running configuration stays.
    ReloadRefused,
    /// It begins to stop.
    Stopping,
    /// It has stopped in order.
    Stopped,
    /// It could not start.
    StartFailed,
    /// It waits before it starts, because the last starts went nowhere.
    StartDelayed,
    /// It found work that its predecessor left unfinished.
    WorkRecovered,
}

impl LifeEvent {
    /// All of them, for the test that holds the catalog against them.
    pub const ALL: [Self; 9] = [
        Self::Started,
        Self::Ready,
        Self::Reloaded,
        Self::ReloadRefused,
        Self::Stopping,
        Self::Stopped,
        Self::StartFailed,
        Self::StartDelayed,
        Self::WorkRecovered,
    ];

    /// The `MESSAGE_ID`.
    pub fn message_id(self) -> &'static str {
        match self {
            Self::Started => "6f1c5bd1a6ef4d0e9b0d4f2c8e7a1101",
            Self::Ready => "6f1c5bd1a6ef4d0e9b0d4f2c8e7a1102",
            Self::Reloaded => "6f1c5bd1a6ef4d0e9b0d4f2c8e7a1103",
            Self::ReloadRefused => "6f1c5bd1a6ef4d0e9b0d4f2c8e7a1104",
            Self::Stopping => "6f1c5bd1a6ef4d0e9b0d4f2c8e7a1105",
            Self::Stopped => "6f1c5bd1a6ef4d0e9b0d4f2c8e7a1106",
            Self::StartFailed => "6f1c5bd1a6ef4d0e9b0d4f2c8e7a1107",
            Self::StartDelayed => "6f1c5bd1a6ef4d0e9b0d4f2c8e7a1108",
            Self::WorkRecovered => "6f1c5bd1a6ef4d0e9b0d4f2c8e7a1109",
        }
    }

    fn priority(self) -> Priority {
        match self {
            Self::StartFailed | Self::ReloadRefused => Priority::Error,
            Self::StartDelayed | Self::WorkRecovered => Priority::Warning,
            _ => Priority::Info,
        }
    }
}

/// The log of this process, once it is set up.
#[derive(Debug, Clone)]
pub struct Journal {
    instance: String,
    native: bool,
    filter: reload::Handle<Threshold, Registry>,
    /// What the command line or `RUST_LOG` asked for; it outranks the configuration.
    forced: Option<Targets>,
}

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Not a filter.
    #[error("RUST_LOG is not a list like 'info' or 'warn,hermes_gateway=debug': {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// A logger is there already.
    #[error(transparent)]
    Taken(#[from] tracing_subscriber::util::TryInitError),
}

impl Journal {
    /// Sets up the log of the process; once.
    pub fn open(instance: &str, verbosity: u8) -> Result<Self, JournalError> {
        let forced = match (verbosity, std::env::var("RUST_LOG")) {
            (0, Ok(filter)) if !filter.is_empty() => Some(filter.parse::<Targets>()?),
            (0, _) => None,
            (1, _) => Some(Targets::new().with_default(Level::INFO).with_target("hermes_gateway", Level::DEBUG)),
            (2, _) => Some(Targets::new().with_default(Level::DEBUG).with_target("hermes_gateway", Level::TRACE)),
            (_, _) => Some(Targets::new().with_default(Level::TRACE)),
        };
        let (filter, handle) = reload::Layer::new(Threshold(forced.clone().unwrap_or_else(default_filter)));
        let native = libsystemd::logging::connected_to_journal().then(|| journald(instance)).and_then(Result::ok);
        let is_native = native.is_some();
        match native {
            Some(layer) => tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?,
            None => tracing_subscriber::registry().with(lines().with_filter(filter)).try_init()?,
        }
        Ok(Self { instance: instance.to_owned(), native: is_native, filter: handle, forced })
    }

    /// Applies the level of a configuration, unless the command line or `RUST_LOG` said otherwise.
    pub fn set_level(&self, level: Level) {
        if self.forced.is_none() {
            let filter = Targets::new().with_default(Level::WARN).with_target("hermes_gateway", level);
            // The subscriber lives as long as the process.
            drop(self.filter.reload(Threshold(filter)));
        }
    }

    /// Logs a moment of the life cycle. Field names are upper case and get the prefix `HERMES_`.
    pub fn life(&self, event: LifeEvent, message: &str, fields: &[(&str, String)]) {
        if self.native && self.send(event, message, fields).is_ok() {
            return;
        }
        // The message says it all; the fields are for queries.
        match event.priority() {
            Priority::Error => tracing::error!("{message}"),
            Priority::Warning => tracing::warn!("{message}"),
            _ => tracing::info!("{message}"),
        }
    }

    fn send(&self, event: LifeEvent, message: &str, fields: &[(&str, String)]) -> Result<(), impl std::error::Error> {
        let fixed = [
            ("MESSAGE_ID".to_owned(), event.message_id().to_owned()),
            ("SYSLOG_IDENTIFIER".to_owned(), IDENTIFIER.to_owned()),
            ("HERMES_INSTANCE".to_owned(), self.instance.clone()),
        ];
        let own = fields.iter().map(|(name, value)| (format!("HERMES_{name}"), value.clone()));
        journal_send(event.priority(), message, fixed.into_iter().chain(own))
    }
}

/// The filter, as a type of its own because [`Targets`] is filter and layer in one.
#[derive(Debug)]
struct Threshold(Targets);

impl<S> Filter<S> for Threshold {
    fn enabled(&self, meta: &Metadata<'_>, _: &tracing_subscriber::layer::Context<'_, S>) -> bool {
        self.0.would_enable(meta.target(), meta.level())
    }
}

fn default_filter() -> Targets {
    Targets::new().with_default(Level::WARN).with_target("hermes_gateway", Level::INFO)
}

fn journald(instance: &str) -> io::Result<tracing_journald::Layer> {
    // The layer's own mapping puts info at "notice" and debug at "info", one above what administrators filter by.
    let priorities = PriorityMappings {
        info: tracing_journald::Priority::Informational,
        debug: tracing_journald::Priority::Debug,
        ..PriorityMappings::new()
    };
    Ok(tracing_journald::layer()?
        .with_priority_mappings(priorities)
        .with_syslog_identifier(IDENTIFIER.into())
        // A prefix also keeps a field of ours from posing as MESSAGE or PRIORITY.
        .with_field_prefix(Some("HERMES".into()))
        .with_custom_fields([("HERMES_INSTANCE", instance)]))
}

fn lines<S>() -> impl Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).with_target(false)
}
