//! What can be counted, for `/metrics`. Handles in a struct: two nodes can live in one process.
//! No uid, group or client id is ever a label.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The label of a counter by reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// Why.
    pub reason: &'static str,
}

/// The label of a counter by operation and outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// Name in the vocabulary.
    pub op: &'static str,
    /// `ok`, or the `code` of the error.
    pub outcome: &'static str,
}

/// All series of a node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    clients: Gauge,
    uids: Gauge,
    groups: Gauge,
    /// Clients whose handshake succeeded.
    pub connections: Counter,
    /// Handshakes that did not, by reason.
    pub refused: Family<Reason, Counter>,
    /// Clients that left, by how.
    pub closed: Family<Reason, Counter>,
    /// Messages from clients.
    pub received: Counter,
    /// Messages taken by sockets.
    pub deliveries: Counter,
    /// Messages dropped because a client's outbox was full.
    pub dropped: Counter,
    /// Commands carried out, by operation and outcome.
    pub commands: Family<Outcome, Counter>,
    /// Connections that could not be accepted.
    pub accept_errors: Counter,
    /// Certificates that were changed but could not be loaded.
    pub tls_reload_errors: Counter,
}

impl Metrics {
    /// All series at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("moongate");
        macro_rules! series {
            ($name:literal, $help:literal) => {{
                let series = Default::default();
                registry.register($name, $help, Clone::clone(&series));
                series
            }};
        }
        Self {
            clients: series!("clients", "Clients connected now"),
            uids: series!("uids", "Uids online now"),
            groups: series!("groups", "Groups with members now"),
            connections: series!("connections", "Clients whose handshake succeeded"),
            refused: series!("handshakes_refused", "Handshakes that did not succeed, by reason"),
            closed: series!("disconnections", "Clients that left, by how"),
            received: series!("messages_received", "Messages from clients"),
            deliveries: series!("deliveries", "Messages taken by sockets"),
            dropped: series!("deliveries_dropped", "Messages dropped because a client's outbox was full"),
            commands: series!("commands", "Commands carried out, by operation and outcome"),
            accept_errors: series!("accept_errors", "Connections that could not be accepted"),
            tls_reload_errors: series!("tls_reload_errors", "Changed certificates that could not be loaded"),
            registry,
        }
    }

    /// The page in the Prometheus text format.
    pub fn page(&self, clients: usize, uids: usize, groups: usize) -> String {
        let gauge = |gauge: &Gauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge(&self.clients, clients);
        gauge(&self.uids, uids);
        gauge(&self.groups, groups);
        let mut page = String::new();
        // Writing to a string cannot fail.
        text::encode(&mut page, &self.registry).ok();
        page
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
