//! How nodes do, in numbers: for people who look at all of them at once (`GET /nodes`, `moongate top`, the page).
//!
//! Each node writes its own into its hash in Redis with every heartbeat, so whoever looks asks Redis, and no node is
//! kept from its work. Counters only grow while a node lives: a reader makes rates of two looks, and of the time between
//! them as the node's own `uptime_ms` says it.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::hub::Hub;
use crate::metrics::Metrics;

/// The kernel counts processor time for programs in hundredths of a second (`USER_HZ`), whatever its own clock is.
const TICK_MS: u64 = 10;

/// The numbers of one node. What is counted is counted since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vitals {
    /// Its release.
    pub version: String,
    /// Where PHP reaches it, and the first part of its client ids, as `ip:port`.
    pub lan: String,
    /// Unix time, ms.
    pub started_at: u64,
    /// `ready`, or why it is not.
    pub ready: String,
    /// Clients connected now.
    pub clients: u64,
    /// Uids that clients of this node have now.
    pub uids: u64,
    /// Groups that have members here now.
    pub groups: u64,
    /// Messages from clients.
    pub messages_in: u64,
    /// Messages that clients' sockets took.
    pub deliveries: u64,
    /// Clients that left.
    pub closed: u64,
    /// Messages dropped because a client's outbox was full.
    pub dropped: u64,
    /// Resident memory of its process, bytes; none where the system does not say it as Linux does.
    pub memory: Option<u64>,
    /// Processor time of its process, ms; none as above.
    pub cpu_ms: Option<u64>,
    /// For how long it runs, ms.
    pub uptime_ms: u64,
}

impl Vitals {
    /// As fields of a hash.
    pub(crate) fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("version", self.version.clone()),
            ("lan", self.lan.clone()),
            ("started_at", self.started_at.to_string()),
            ("ready", self.ready.clone()),
            ("clients", self.clients.to_string()),
            ("uids", self.uids.to_string()),
            ("groups", self.groups.to_string()),
            ("messages_in", self.messages_in.to_string()),
            ("deliveries", self.deliveries.to_string()),
            ("closed", self.closed.to_string()),
            ("dropped", self.dropped.to_string()),
            ("uptime_ms", self.uptime_ms.to_string()),
        ];
        fields.extend(self.memory.map(|memory| ("memory", memory.to_string())));
        fields.extend(self.cpu_ms.map(|cpu_ms| ("cpu_ms", cpu_ms.to_string())));
        fields
    }

    /// What `field` finds in a hash; a node of another release may say less, or more.
    pub(crate) fn read<'a>(field: impl Fn(&str) -> Option<&'a str>) -> Self {
        let text = |name: &str| field(name).unwrap_or_default().to_owned();
        let maybe = |name: &str| field(name).and_then(|value| value.parse().ok());
        let number = |name: &str| maybe(name).unwrap_or_default();
        Self {
            version: text("version"),
            lan: text("lan"),
            started_at: number("started_at"),
            ready: text("ready"),
            clients: number("clients"),
            uids: number("uids"),
            groups: number("groups"),
            messages_in: number("messages_in"),
            deliveries: number("deliveries"),
            closed: number("closed"),
            dropped: number("dropped"),
            memory: maybe("memory"),
            cpu_ms: maybe("cpu_ms"),
            uptime_ms: number("uptime_ms"),
        }
    }
}

/// All nodes, as one of them sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Nodes {
    /// Unix time of the look, ms.
    pub at: u64,
    /// In the order of their ids; while Redis is away, only the one that was asked.
    pub nodes: Vec<Node>,
    /// None where a node is alone.
    pub redis: Option<Redis>,
}

/// One node of [`Nodes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its id.
    pub node: String,
    /// How long ago it wrote the rest, ms: less than a second while it lives and has Redis.
    pub age_ms: u64,
    /// How it did then.
    #[serde(flatten)]
    pub vitals: Vitals,
}

/// Redis, as the node that was asked sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Redis {
    /// It answers.
    pub up: bool,
}

/// Where a node reads its own vitals.
pub struct Monitor {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    started: Instant,
    /// Unix time, ms.
    started_at: u64,
}

impl Monitor {
    /// Of a node that starts now.
    pub fn new(hub: &Arc<Hub>, metrics: &Arc<Metrics>) -> Self {
        let (hub, metrics) = (Arc::clone(hub), Arc::clone(metrics));
        Self { hub, metrics, started: Instant::now(), started_at: now() }
    }

    /// How the node does now.
    pub(crate) fn look(&self, lan: String, ready: &str) -> Vitals {
        let process = Process::look();
        Vitals {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            lan,
            started_at: self.started_at,
            ready: ready.to_owned(),
            clients: self.hub.clients() as u64,
            uids: self.hub.uid_count() as u64,
            groups: self.hub.group_count() as u64,
            messages_in: self.metrics.received.get(),
            deliveries: self.metrics.deliveries.get(),
            closed: self.metrics.left.get(),
            dropped: self.metrics.dropped.get(),
            memory: process.memory,
            cpu_ms: process.cpu_ms,
            uptime_ms: self.started.elapsed().as_millis() as u64,
        }
    }
}

/// Unix time, ms.
pub(crate) fn now() -> u64 {
    jiff::Timestamp::now().as_millisecond().unsigned_abs()
}

/// What the kernel says of this process; see proc(5). Reading it waits for nothing: no disk is behind it.
#[derive(Debug, Default)]
struct Process {
    memory: Option<u64>,
    cpu_ms: Option<u64>,
}

impl Process {
    fn look() -> Self {
        let read = |file| std::fs::read_to_string(file).unwrap_or_default();
        Self { memory: resident(&read("/proc/self/status")), cpu_ms: cpu_ms(&read("/proc/self/stat")) }
    }
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn cpu_ms(stat: &str) -> Option<u64> {
    // The second field is the program's name, in which anything may stand; user and system time are the 14th and 15th.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) * TICK_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_into_a_hash_is_read_again() {
        let vitals = Vitals {
            version: "0.1.0".to_owned(),
            lan: "10.0.0.1:2900".to_owned(),
            started_at: 1,
            ready: "no PHP worker is connected".to_owned(),
            clients: 2,
            uids: 3,
            groups: 4,
            messages_in: 5,
            deliveries: u64::MAX,
            closed: 7,
            dropped: 8,
            memory: Some(9),
            cpu_ms: Some(10),
            uptime_ms: 11,
        };
        for written in [vitals.clone(), Vitals { memory: None, cpu_ms: None, ..vitals }] {
            let fields = written.fields();
            let field = |wanted: &str| fields.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str());
            assert_eq!(Vitals::read(field), written);
        }
        // Another release says less, or something else.
        let some =
            |name: &str| [("clients", "many"), ("uids", "1")].into_iter().find_map(|(n, v)| (n == name).then_some(v));
        assert_eq!(Vitals::read(some), Vitals { uids: 1, ..Vitals::default() });
    }

    #[test]
    fn the_kernels_words_on_a_process_are_read() {
        assert_eq!(resident("Name:\tmoongate\nVmHWM:\t   99 kB\nVmRSS:\t   12340 kB\nThreads:\t3\n"), Some(12_636_160));
        assert_eq!(cpu_ms("7 (a) b) S 1 7 7 0 -1 4194560 9 0 0 0 250 17 0 0 20 0 3 0 100"), Some(2670));
        for strange in ["", "VmRSS: lots", "7 (x) S 1"] {
            assert_eq!((resident(strange), cpu_ms(strange)), (None, None));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory_and_uses_the_processor() {
        let process = Process::look();
        assert!(process.memory > Some(100 << 10) && process.cpu_ms.is_some(), "{process:?}");
    }
}
