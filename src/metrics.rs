//! What can be counted, for `/metrics`. Handles in a struct: two nodes can live in one process.
//! No uid, group or client id is ever a label.

use prometheus_client::encoding::{EncodeLabelSet, text};
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The label of a counter by reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// Why.
    pub reason: &'static str,
}

/// The label of a counter by kind of channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// `uid`, `group`, `client`, `all`, `cmd`, or `ask`, `node` between nodes.
    pub kind: &'static str,
}

/// The label of a counter by Redis command.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RedisCommand {
    /// Its name.
    pub command: &'static str,
}

/// The label of a counter by operation and outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// Name in the vocabulary.
    pub op: &'static str,
    /// `ok`, or the `code` of the error.
    pub outcome: &'static str,
}

/// The labels of a counter by event and where it was told.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EventLabel {
    /// Its name.
    pub event: &'static str,
    /// `stream` or `webhook`.
    pub to: &'static str,
}

/// The label of a gauge by consumer group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConsumerGroup {
    /// Its name.
    pub group: String,
}

/// The label of a counter by what came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Attempt {
    /// Of a task `done`, `dead` or `again`; of a request `ok`, or what kind of refusal.
    pub outcome: &'static str,
}

/// What others count, when the page is asked for.
#[derive(Debug, Default)]
pub struct Held {
    /// Clients of this node.
    pub clients: usize,
    /// Their uids.
    pub uids: usize,
    /// Their groups.
    pub groups: usize,
    /// What this node must hear: uids, groups and "everyone", and on Redis Cluster each client.
    pub topics: usize,
    /// Bytes of events that wait to be told.
    pub events_waiting: usize,
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
    /// Clients of this node that left, however: no series, as the one above can be summed.
    pub left: Counter,
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
    /// Messages said to other nodes and to this one, by kind of channel.
    pub bus_published: Family<Kind, Counter>,
    /// Messages of which it is not known whether they were said.
    pub bus_publish_errors: Family<Kind, Counter>,
    /// Messages heard, by kind of channel.
    pub bus_heard: Family<Kind, Counter>,
    /// Messages heard and not delivered, by reason.
    pub bus_lost: Family<Reason, Counter>,
    /// Times in which nothing could be heard.
    pub bus_gaps: Counter,
    /// How long they were together, seconds.
    pub bus_gap_seconds: Counter<f64, AtomicU64>,
    /// Times this node did not hear its own heartbeat though Redis took it.
    pub bus_deaf: Counter,
    /// Topics that are held here and subscribed to, as Redis has confirmed.
    pub subscriptions_confirmed: Gauge,
    subscriptions_wanted: Gauge,
    /// Commands to Redis.
    pub redis_commands: Family<RedisCommand, Counter>,
    /// How long they took, seconds; those of a pipeline together count as one.
    pub redis_seconds: Histogram,
    /// Whether there is a connection to Redis.
    pub redis_up: Gauge,
    /// Unix time, by Redis' clock, at which this node's lease ends.
    pub lease_end: Gauge<f64, AtomicU64>,
    /// Nodes that have a lease.
    pub nodes: Gauge,
    /// Lots of changes that had to be written again.
    pub directory_retries: Counter,
    /// Changes that Redis refused.
    pub directory_refused: Counter,
    /// Times all was compared with Redis.
    pub directory_compared: Counter,
    /// Dead nodes that this one has swept after.
    pub swept_nodes: Counter,
    /// Times this node was swept itself.
    pub fenced: Counter,
    /// Foreign nodes heard under our prefix.
    pub foreign_nodes: Counter,
    /// Connections of PHP that were ended, by reason.
    pub php_refused: Family<Reason, Counter>,
    /// What PHP has sent and could not be done, by reason.
    pub php_ignored: Family<Reason, Counter>,
    /// PHP workers that are connected.
    pub php_workers: Gauge,
    /// Events that no PHP worker was told, by reason.
    pub php_events_lost: Family<Reason, Counter>,
    /// Events that were told, by event and where.
    pub events_told: Family<EventLabel, Counter>,
    /// Events that were not, by reason.
    pub events_lost: Family<Reason, Counter>,
    /// Entries on the stream of events.
    pub events_length: Gauge,
    /// Entries that a consumer group has not read yet.
    pub events_lag: Family<ConsumerGroup, Gauge>,
    events_waiting: Gauge,
    /// Requests to the webhook, by outcome.
    pub webhook_requests: Family<Attempt, Counter>,
    /// How long they took, seconds.
    pub webhook_seconds: Histogram,
    /// Requests under way.
    pub webhook_in_flight: Gauge,
    /// Queued tasks that no node has taken.
    pub tasks_waiting: Gauge,
    /// Queued tasks that a node has taken.
    pub tasks_in_hand: Gauge,
    /// Queued tasks and crons that are due later.
    pub tasks_delayed: Gauge,
    /// Dead letters.
    pub tasks_dead: Gauge,
    /// How long the oldest task has waited that no node has taken, seconds.
    pub tasks_oldest: Gauge<f64, AtomicU64>,
    /// Attempts of queued tasks, by what came of them.
    pub task_attempts: Family<Attempt, Counter>,
    /// How long they took, seconds.
    pub task_seconds: Histogram,
    /// Tasks that were given up.
    pub dead_letters: Counter,
    /// Spans that the collector has taken.
    pub spans_exported: Counter,
    /// Spans that it was not told of, or has refused, by reason.
    pub spans_dropped: Family<Reason, Counter>,
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
        let metrics = Self {
            clients: series!("clients", "Clients connected now"),
            uids: series!("uids", "Uids online now"),
            groups: series!("groups", "Groups with members now"),
            connections: series!("connections", "Clients whose handshake succeeded"),
            refused: series!("handshakes_refused", "Handshakes that did not succeed, by reason"),
            closed: series!("disconnections", "Clients that left, by how"),
            left: Counter::default(),
            received: series!("messages_received", "Messages from clients"),
            deliveries: series!("deliveries", "Messages taken by sockets"),
            dropped: series!("deliveries_dropped", "Messages dropped because a client's outbox was full"),
            commands: series!("commands", "Commands carried out, by operation and outcome"),
            accept_errors: series!("accept_errors", "Connections that could not be accepted"),
            tls_reload_errors: series!("tls_reload_errors", "Changed certificates that could not be loaded"),
            bus_published: series!("bus_published", "Messages published to Redis, by kind of channel"),
            bus_publish_errors: series!(
                "bus_publish_errors",
                "Publishes of which it is not known whether they were heard"
            ),
            bus_heard: series!("bus_heard", "Messages heard through Redis, by kind of channel"),
            bus_lost: series!("bus_lost", "Messages heard and not delivered, by reason"),
            bus_gaps: series!("bus_gaps", "Times in which nothing could be heard from Redis"),
            bus_gap_seconds: series!("bus_gap_seconds", "How long nothing could be heard from Redis"),
            bus_deaf: series!("bus_deaf", "Times this node did not hear its own heartbeat"),
            subscriptions_confirmed: series!("subscriptions_confirmed", "Targets held here that Redis has confirmed"),
            subscriptions_wanted: series!("subscriptions_wanted", "Targets held here"),
            redis_commands: series!("redis_commands", "Commands to Redis"),
            redis_seconds: {
                let histogram = Histogram::new(exponential_buckets(0.0001, 2.0, 16));
                registry.register("redis_seconds", "How long Redis took to answer", histogram.clone());
                histogram
            },
            redis_up: series!("redis_up", "Whether there is a connection to Redis"),
            lease_end: series!("lease_end_seconds", "Unix time at which the lease of this node ends, by Redis' clock"),
            nodes: series!("nodes", "Nodes that have a lease"),
            directory_retries: series!("directory_retries", "Lots of changes that had to be written again"),
            directory_refused: series!("directory_refused", "Changes that Redis refused"),
            directory_compared: series!("directory_compared", "Times all was compared with Redis"),
            swept_nodes: series!("swept_nodes", "Dead nodes that this one has swept after"),
            fenced: series!("fenced", "Times this node was swept itself"),
            foreign_nodes: series!("foreign_nodes", "Foreign nodes heard under our prefix"),
            php_refused: series!("php_refused", "Connections of PHP that were ended, by reason"),
            php_workers: series!("php_workers", "PHP workers connected now"),
            php_events_lost: series!("php_events_lost", "Events that no PHP worker was told, by reason"),
            tasks_waiting: series!("tasks_waiting", "Queued tasks that no node has taken; all nodes tell the same"),
            tasks_in_hand: series!("tasks_in_hand", "Queued tasks that a node has taken; all nodes tell the same"),
            tasks_delayed: series!("tasks_delayed", "Queued tasks and crons due later; all nodes tell the same"),
            tasks_dead: series!("tasks_dead", "Tasks among the dead letters; all nodes tell the same"),
            tasks_oldest: series!(
                "tasks_oldest_seconds",
                "How long the oldest task has waited that no node has taken; all nodes tell the same"
            ),
            task_attempts: series!("task_attempts", "Attempts of queued tasks on this node, by what came of them"),
            task_seconds: {
                let histogram = Histogram::new(exponential_buckets(0.0005, 2.0, 16));
                registry.register("task_seconds", "How long attempts of queued tasks took", histogram.clone());
                histogram
            },
            dead_letters: series!("dead_letters", "Tasks that this node has given up"),
            php_ignored: series!("php_ignored", "What PHP has sent and could not be done, by reason"),
            events_told: series!("events", "Events told, by event and where"),
            events_lost: series!("events_lost", "Events that could not be told, by reason"),
            events_length: series!("events_length", "Entries on the stream of events; all nodes tell the same"),
            events_lag: series!("events_lag", "Entries that a consumer group has not read; all nodes tell the same"),
            events_waiting: series!("events_waiting_bytes", "Memory of events that wait to be told"),
            webhook_requests: series!("webhook_requests", "Requests to the webhook, by outcome"),
            webhook_seconds: {
                let histogram = Histogram::new(exponential_buckets(0.001, 2.0, 15));
                registry.register("webhook_seconds", "How long the webhook took to answer", histogram.clone());
                histogram
            },
            webhook_in_flight: series!("webhook_in_flight", "Requests to the webhook under way"),
            spans_exported: series!("spans_exported", "Spans of traces that the collector has taken"),
            spans_dropped: series!("spans_dropped", "Spans of traces that the collector has not taken, by reason"),
            registry,
        };
        // What must not be missed once is there from the start: Prometheus sees no increase to a first sample.
        let lost = [
            (&metrics.bus_lost, &["overload", "lagged", "late", "too_large", "invalid", "garbage", "unknown"][..]),
            (&metrics.events_lost, &["memory", "too_old", "refused", "stopped", "node"]),
            (&metrics.php_events_lost, &["slow_worker", "no_worker"]),
            (&metrics.spans_dropped, &["full", "refused", "stopped"]),
        ];
        for (family, reasons) in lost {
            for reason in reasons {
                drop(family.get_or_create(&Reason { reason }));
            }
        }
        metrics
    }

    /// The page in the Prometheus text format.
    pub fn page(&self, held: &Held) -> String {
        let gauge = |gauge: &Gauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge(&self.clients, held.clients);
        gauge(&self.uids, held.uids);
        gauge(&self.groups, held.groups);
        gauge(&self.subscriptions_wanted, held.topics);
        gauge(&self.events_waiting, held.events_waiting);
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
