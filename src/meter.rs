//! Layer 1: what is counted, in one place; `GET /metrics` shows it. Names follow the Prometheus conventions.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::service::process;

/// Labels of [`Meters::turns`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TurnLabels {
    /// The agent's name.
    pub agent: String,
    /// How it ended.
    pub outcome: &'static str,
}

/// Labels of [`Meters::http_requests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route's pattern, never the path as sent.
    pub route: String,
    /// The status code.
    pub code: u16,
}

/// Labels of [`Meters::deliveries`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeliveryLabels {
    /// The platform's name.
    pub platform: String,
    /// `sent`, `retried` or `dead`.
    pub outcome: &'static str,
}

/// Labels of [`Meters::inbound`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct InboundLabels {
    /// The platform's name.
    pub platform: String,
    /// `new` or `duplicate`.
    pub outcome: &'static str,
}

/// All meters of the process.
#[derive(Debug)]
pub struct Meters {
    /// Turns that ended.
    pub turns: Family<TurnLabels, Counter>,
    /// Turns whose agent works.
    pub turns_running: Gauge,
    /// Turns that wait for their session or for a free place.
    pub turns_queued: Gauge,
    /// From acceptance to end, in seconds.
    pub turn_seconds: Histogram,
    /// Messages that platforms brought.
    pub inbound: Family<InboundLabels, Counter>,
    /// Attempts to deliver.
    pub deliveries: Family<DeliveryLabels, Counter>,
    /// Deliveries that wait or are being sent, as they were counted last.
    pub deliveries_waiting: Gauge,
    /// Deliveries that were given up and are kept, as they were counted last.
    pub deliveries_dead: Gauge,
    /// Requests answered.
    pub http_requests: Family<RequestLabels, Counter>,
    /// Connections open.
    pub http_connections: Gauge,
    /// Time of one commit with its fsync, in seconds.
    pub store_commit_seconds: Histogram,
    /// Callers that shared one commit.
    pub store_batch_size: Histogram,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            turns: Family::default(),
            turns_running: Gauge::default(),
            turns_queued: Gauge::default(),
            turn_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 10)),
            inbound: Family::default(),
            deliveries: Family::default(),
            deliveries_waiting: Gauge::default(),
            deliveries_dead: Gauge::default(),
            http_requests: Family::default(),
            http_connections: Gauge::default(),
            store_commit_seconds: Histogram::new(exponential_buckets(0.0001, 4.0, 9)),
            store_batch_size: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
        }
    }
}

impl Meters {
    /// Everything in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut registry = Registry::with_prefix("hermes");
        registry.register("turns", "Turns that ended", self.turns.clone());
        registry.register("turns_running", "Turns whose agent works", self.turns_running.clone());
        registry.register("turns_queued", "Turns that wait", self.turns_queued.clone());
        let seconds = || Unit::Seconds;
        registry.register_with_unit("turn", "From acceptance to end", seconds(), self.turn_seconds.clone());
        registry.register("inbound_messages", "Messages that platforms brought", self.inbound.clone());
        registry.register("deliveries", "Attempts to deliver", self.deliveries.clone());
        let (waiting, dead) = (self.deliveries_waiting.clone(), self.deliveries_dead.clone());
        registry.register("deliveries_waiting", "Deliveries that wait or are being sent", waiting);
        registry.register("deliveries_dead", "Deliveries that were given up and are kept", dead);
        registry.register("http_requests", "Requests answered", self.http_requests.clone());
        registry.register("http_connections", "Connections open", self.http_connections.clone());
        let commit = self.store_commit_seconds.clone();
        registry.register_with_unit("store_commit", "Time of one commit with its fsync", seconds(), commit);
        registry.register("store_batch_size", "Callers that shared one commit", self.store_batch_size.clone());
        let gauge = |value: u64| {
            let gauge = Gauge::<u64, AtomicU64>::default();
            gauge.set(value);
            gauge
        };
        let resident = gauge(process::resident_bytes().unwrap_or(0));
        registry.register_with_unit("process_resident_memory", "Resident memory", Unit::Bytes, resident);
        let descriptors = gauge(process::open_descriptors().unwrap_or(0) as u64);
        registry.register("process_open_fds", "Open descriptors", descriptors);
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _infallible = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_shown() {
        let meters = Meters::default();
        meters.turns.get_or_create(&TurnLabels { agent: "echo".into(), outcome: "completed" }).inc();
        let text = meters.render();
        assert!(text.contains("hermes_turns_total{agent=\"echo\",outcome=\"completed\"} 1"), "{text}");
        assert!(text.contains("hermes_process_resident_memory_bytes ") && text.ends_with("# EOF\n"), "{text}");
    }
}
