//! The figures: of a round, of all rounds of a server, of the comparison; as a table and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::Result;
use crate::clients::Stats;
use crate::process::Cpu;
use crate::progress;
use crate::publish::Outcome;
use crate::redis::Usage;
use crate::series::{Chart, Series};
use crate::sheet::Sheet;
use crate::svg::PERCENTILE;

/// What is counted and divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Messages that clients received; Redis commands count by message published.
    Delivery,
    /// Clients that came, were bound, and went.
    Cycle,
}

/// What a server's processes have used.
#[derive(Debug, Clone)]
pub(crate) struct Spent {
    /// The gateway's nodes together, or the bare server, if known.
    pub(crate) nodes: Option<Cpu>,
    /// Their Redis.
    pub(crate) redis: Option<Usage>,
    /// Resident memory of the processes, bytes, if known: what they have, and no sum of anything.
    pub(crate) resident: Option<u64>,
}

impl Spent {
    /// What was used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            nodes: self.nodes.zip(before.nodes).map(|(now, before)| now.since(before)),
            redis: self.redis.as_ref().zip(before.redis.as_ref()).map(|(now, before)| now.since(before)),
            resident: self.resident,
        }
    }
}

/// What one round with one server gave.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    /// Messages sent.
    published: u64,
    /// Deliveries that should follow.
    expected: u64,
    /// Deliveries that did, each counted once.
    delivered: u64,
    /// Of those that should.
    ratio_delivered: f64,
    messages_per_second: f64,
    deliveries_per_second: f64,
    /// Deliveries beyond the first of a message to a client.
    duplicates: u64,
    /// How often a client got a message before one that was sent earlier, or instead of it.
    gaps: u64,
    /// Deliveries after a later message of the same topic.
    order_violations: u64,
    /// Whether there should be none: tasks run side by side.
    ordered: bool,
    /// Deliveries to a client that is not in the topic, or with contents that nobody sent.
    misdelivered: u64,
    /// Connections that ended.
    closed: u64,
    /// Why the first of them did.
    first_close: Option<String>,
    /// Requests answered with an error.
    errors: u64,
    /// The first of them.
    first_error: Option<String>,
    /// Deliveries stopped before all had arrived.
    gave_up: bool,
    /// From the first request to the last delivery.
    seconds: f64,
    /// Server CPU (of all nodes, without Redis), user and system, µs per delivery or cycle.
    server_cpu_us: Option<f64>,
    /// Of it in user space.
    server_user_us: Option<f64>,
    /// Server CPU in all.
    server_cpu_seconds: Option<f64>,
    /// CPU of Redis, user and system, µs per delivery or cycle.
    redis_cpu_us: Option<f64>,
    /// Of it in user space.
    redis_user_us: Option<f64>,
    /// Of a Redis Cluster: the busiest master's share of its CPU.
    redis_busiest_share: Option<f64>,
    /// Bytes that Redis received from programs, per message published or per cycle.
    redis_received_bytes: Option<f64>,
    /// Bytes that it sent them.
    redis_sent_bytes: Option<f64>,
    /// Server and Redis, µs per delivery or cycle.
    together_cpu_us: Option<f64>,
    /// Resident memory of the nodes together at the end of the round.
    resident_mib: Option<f64>,
    /// Which Redis that is.
    redis_version: Option<String>,
    /// Commands that Redis carried out, by name, per message published or per cycle.
    redis_commands: BTreeMap<String, f64>,
    /// From sending to reading (of a cycle: from connecting to the answer that it is bound).
    latency_ms: Option<Latency>,
    /// The tester's own CPU, µs per delivery or cycle.
    tester_cpu_us: f64,
    /// Share of a core that its busiest thread used; with `--pin`, all of them of theirs.
    tester_core: f64,
    /// With a rate: how late the tester itself sent, 99th percentile, ms.
    tester_lag_p99_ms: Option<f64>,
    /// Seconds since the first request, and deliveries or cycles per second up to there.
    throughput: Vec<(f64, f64)>,
}

impl Round {
    /// Divides by the deliveries. Of the CPU of the `tester`, so many µs were on `one_core`.
    pub(crate) fn new(outcome: &Outcome, stats: &Stats, spent: Spent, tester: Cpu, one_core: u64) -> Self {
        let each = |micros: u64| micros as f64 / stats.delivered.max(1) as f64;
        let Spent { nodes, redis, resident } = spent;
        let redis_cpu = redis.as_ref().map(Usage::cpu);
        let redis_version = redis.as_ref().and_then(|redis| redis.version.clone());
        let per_message = |count: u64| count as f64 / outcome.published.max(1) as f64;
        let per_second = |count: u64| count as f64 / outcome.wall.as_secs_f64().max(1e-9);
        Self {
            published: outcome.published,
            expected: outcome.expected,
            delivered: stats.delivered,
            ratio_delivered: stats.delivered as f64 / outcome.expected.max(1) as f64,
            messages_per_second: per_second(outcome.published),
            deliveries_per_second: per_second(stats.delivered),
            duplicates: stats.duplicates,
            gaps: stats.gaps,
            order_violations: stats.reordered,
            ordered: outcome.ordered,
            misdelivered: stats.misdelivered,
            closed: stats.closed,
            first_close: stats.first_close.clone(),
            errors: outcome.errors,
            first_error: outcome.first_error.clone(),
            gave_up: outcome.gave_up,
            seconds: outcome.wall.as_secs_f64(),
            server_cpu_us: nodes.map(|cpu| each(cpu.total())),
            server_user_us: nodes.map(|cpu| each(cpu.user)),
            server_cpu_seconds: nodes.map(|cpu| cpu.total() as f64 / 1e6),
            redis_cpu_us: redis_cpu.map(|cpu| each(cpu.total())),
            redis_user_us: redis_cpu.map(|cpu| each(cpu.user)),
            redis_busiest_share: redis.as_ref().and_then(Usage::busiest),
            redis_received_bytes: redis.as_ref().map(|redis| per_message(redis.received)),
            redis_sent_bytes: redis.as_ref().map(|redis| per_message(redis.sent)),
            resident_mib: resident.map(|bytes| bytes as f64 / 1024.0 / 1024.0),
            together_cpu_us: nodes.map(|cpu| each(cpu.total() + redis_cpu.map_or(0, Cpu::total))),
            redis_version,
            redis_commands: redis
                .into_iter()
                .flat_map(|redis| redis.calls)
                .map(|(name, calls)| (name, per_message(calls)))
                .collect(),
            latency_ms: Latency::of(&stats.latency),
            tester_cpu_us: each(tester.total()),
            tester_core: one_core as f64 / 1e6 / outcome.wall.as_secs_f64().max(1e-9),
            tester_lag_p99_ms: (!outcome.lag.is_empty()).then(|| outcome.lag.value_at_quantile(0.99) as f64 / 1e6),
            throughput: progress::rates(&outcome.samples),
        }
    }

    /// Adds what was wrong before it or after it.
    pub(crate) fn blame(&mut self, stats: Stats) {
        self.duplicates += stats.duplicates;
        self.order_violations += stats.reordered;
        self.misdelivered += stats.misdelivered;
        self.closed += stats.closed;
        self.first_close = self.first_close.take().or(stats.first_close);
    }

    fn faulty(&self) -> bool {
        self.delivered != self.expected
            || self.duplicates + self.misdelivered + self.closed + self.errors > 0
            || self.ordered && self.order_violations > 0
    }
}

/// Latency in ms.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Latency {
    /// The median.
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    /// 99 % are faster.
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Latency {
    /// Of a histogram in nanoseconds; `None` of an empty one.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        (!histogram.is_empty()).then(|| Self::new(histogram))
    }

    /// Of a histogram in nanoseconds.
    pub(crate) fn new(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() as f64 / 1e6 }
    }
}

/// Median and range of a figure over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// In the middle.
    pub(crate) median: f64,
    /// The lowest.
    pub(crate) min: f64,
    /// The highest.
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without values.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }

    /// As text.
    pub(crate) fn words(self, digits: usize) -> String {
        let Self { median, min, max } = self;
        if max > min {
            let to = if min < 0.0 { " to " } else { "–" };
            format!("{median:.digits$} ({min:.digits$}{to}{max:.digits$})")
        } else {
            format!("{median:.digits$}")
        }
    }
}

/// What a server is in the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A gateway; the first is the one that the others are compared with.
    Gateway,
    /// A gateway whose clients speak TLS.
    Tls,
    /// A gateway some of whose clients never read.
    Slow,
    /// The bare server.
    Floor,
    /// Redis without a gateway.
    Raw,
}

/// All rounds of one server.
#[derive(Debug, Serialize)]
pub(crate) struct Contestant {
    #[serde(skip)]
    role: Role,
    name: String,
    rounds: Vec<Round>,
    latency_ms: Option<Latency>,
    /// What each client that came before the first round takes of Redis, bytes of `used_memory`.
    redis_memory_per_client: Option<f64>,
    /// Before the first round; its faults count, its figures do not.
    warm_up: Option<Round>,
    #[serde(skip)]
    latency: Histogram<u64>,
}

impl Contestant {
    /// Without rounds yet.
    pub(crate) fn new(role: Role, name: &str) -> Result<Self> {
        let (name, latency) = (name.to_owned(), crate::clients::histogram()?);
        let (rounds, latency_ms, redis_memory_per_client, warm_up) = (Vec::new(), None, None, None);
        Ok(Self { role, name, rounds, latency_ms, redis_memory_per_client, warm_up, latency })
    }

    /// With what each client takes of Redis, if that is known.
    pub(crate) fn with_redis_memory(self, bytes_per_client: Option<f64>) -> Self {
        Self { redis_memory_per_client: bytes_per_client, ..self }
    }

    /// For the reader.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Notes the warm-up.
    pub(crate) fn warm_up(&mut self, round: Round) {
        self.warm_up = Some(round);
    }

    /// Adds a round.
    pub(crate) fn add(&mut self, round: Round, stats: &Stats) -> Result<()> {
        self.rounds.push(round);
        self.latency.add(&stats.latency)?;
        self.latency_ms = Some(Latency::new(&self.latency));
        Ok(())
    }

    /// Adds what was wrong after the last round.
    pub(crate) fn blame(&mut self, stats: Stats) {
        if let Some(last) = self.rounds.last_mut().or(self.warm_up.as_mut()) {
            last.blame(stats);
        }
    }

    /// Whether deliveries stopped, so that further rounds make no sense.
    pub(crate) fn gave_up(&self) -> bool {
        self.all().any(|round| round.gave_up)
    }

    /// The rounds, and the warm-up.
    fn all(&self) -> impl Iterator<Item = &Round> {
        self.warm_up.iter().chain(&self.rounds)
    }

    fn sum(&self, figure: impl Fn(&Round) -> u64) -> u64 {
        self.all().map(figure).sum()
    }

    /// Whether it is a gateway, over TLS or not.
    pub(crate) fn is_gateway(&self) -> bool {
        matches!(self.role, Role::Gateway | Role::Tls)
    }

    /// Its CPU without Redis, µs per delivery or cycle.
    pub(crate) fn cpu(&self) -> Option<Spread> {
        self.spread(|round| round.server_cpu_us)
    }

    /// Of it in user space.
    pub(crate) fn user(&self) -> Option<Spread> {
        self.spread(|round| round.server_user_us)
    }

    /// CPU of its Redis.
    pub(crate) fn redis(&self) -> Option<Spread> {
        self.spread(|round| round.redis_cpu_us)
    }

    /// Its CPU and that of Redis.
    pub(crate) fn together(&self) -> Option<Spread> {
        self.spread(|round| round.together_cpu_us)
    }

    /// Of all rounds.
    pub(crate) fn latency(&self) -> Option<&Latency> {
        self.latency_ms.as_ref()
    }

    fn spread(&self, figure: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(figure))
    }

    /// Commands of Redis by name, the median of the rounds.
    fn commands(&self) -> Vec<(&str, f64)> {
        let names: BTreeSet<&String> = self.rounds.iter().flat_map(|round| round.redis_commands.keys()).collect();
        let median = |name: &String| self.spread(|round| Some(round.redis_commands.get(name).copied().unwrap_or(0.0)));
        names.into_iter().filter_map(|name| Some((name.as_str(), median(name)?.median))).collect()
    }

    /// Latency in ms of all rounds, over 1 ÷ (1 − p), as far as there were deliveries enough to tell.
    fn percentiles(&self) -> Vec<(f64, f64)> {
        let highest = (self.latency.len() as f64).min(10_000.0);
        let steps = (0..=60).map(|step| 2.0 * 5000f64.powf(f64::from(step) / 60.0));
        let at = |place: f64| (place, self.latency.value_at_quantile(1.0 - 1.0 / place) as f64 / 1e6);
        steps.filter(|place| *place <= highest * 1.0001).map(at).collect()
    }

    /// Per second, over the seconds of the rounds, one behind the other.
    fn throughput(&self) -> Vec<(f64, f64)> {
        let mut before = 0.0;
        let mut points = Vec::new();
        for round in &self.rounds {
            points.extend(round.throughput.iter().map(|(seconds, rate)| (before + seconds, *rate)));
            before = points.last().map_or(before, |(seconds, _)| *seconds);
        }
        points
    }

    fn faulty(&self) -> bool {
        self.rounds.is_empty() || self.all().any(Round::faulty)
    }
}

/// A figure of one server beside that of another in the same round.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// By name.
    pub(crate) server: String,
    /// By name.
    pub(crate) divisor: String,
    /// `cpu` (Redis included), `latency p50`, `latency p99`: the first ÷ the second; `p99 beyond 2 ×`: the first − 2 × the
    /// second, ms.
    pub(crate) figure: &'static str,
    /// Of the rounds.
    pub(crate) ratio: Spread,
}

impl Comparison {
    fn new(
        figure: &'static str,
        server: &Contestant,
        divisor: &Contestant,
        of: impl Fn(&Round, &Round) -> Option<f64>,
    ) -> Option<Self> {
        let values = server.rounds.iter().zip(&divisor.rounds).filter_map(|(over, under)| of(over, under));
        let ratio = Spread::of(values.filter(|value| value.is_finite()))?;
        Some(Self { server: server.name.clone(), divisor: divisor.name.clone(), figure, ratio })
    }

    fn words(&self) -> String {
        let Self { server, divisor, figure, ratio } = self;
        let ratio = ratio.words(2);
        match *figure {
            CPU => format!("{server} ÷ {divisor}: {ratio}"),
            BEYOND => format!("{server}, latency p99 beyond 2 × that of {divisor}: {ratio} ms"),
            figure => format!("{server} ÷ {divisor}, {figure}: {ratio}"),
        }
    }
}

/// A figure of [`Comparison`].
pub(crate) const CPU: &str = "cpu";
/// A figure of [`Comparison`].
pub(crate) const P50: &str = "latency p50";
/// A figure of [`Comparison`].
pub(crate) const P99: &str = "latency p99";
/// A figure of [`Comparison`].
pub(crate) const BEYOND: &str = "p99 beyond 2 ×";

/// A whole run that compared.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    title: String,
    /// What is counted.
    #[serde(skip)]
    pub(crate) unit: Unit,
    /// All that were compared.
    pub(crate) servers: Vec<Contestant>,
    /// Of each gateway to the others.
    pub(crate) ratios: Vec<Comparison>,
    /// What casts doubt on the figures.
    notes: Vec<String>,
    /// Everything delivered, once, in order.
    pass: bool,
}

impl Report {
    /// Compares each gateway with the first, with each floor, and with bare Redis; the one over TLS only with the first.
    pub(crate) fn new(title: &str, unit: Unit, servers: Vec<Contestant>) -> Self {
        let of = |role| servers.iter().filter(move |server| server.role == role);
        let first = of(Role::Gateway).next();
        let mut ratios = Vec::new();
        for gateway in of(Role::Gateway).chain(of(Role::Tls)).chain(of(Role::Slow)) {
            let plain = (gateway.role == Role::Gateway).then_some(());
            let others = first.into_iter().filter(|first| !std::ptr::eq(*first, gateway));
            for other in others.chain(plain.into_iter().flat_map(|()| of(Role::Floor))) {
                let ratio = |over: &Round, under: &Round| Some(over.together_cpu_us? / under.together_cpu_us?);
                ratios.extend(Comparison::new(CPU, gateway, other, ratio));
            }
            let figure = |round: &Round, figure: fn(&Latency) -> f64| round.latency_ms.as_ref().map(figure);
            let ratio = |of| move |over: &Round, under: &Round| Some(figure(over, of)? / figure(under, of)?);
            let p99 = |latency: &Latency| latency.p99;
            if gateway.role == Role::Slow {
                let others = first.into_iter();
                ratios.extend(others.filter_map(|first| Comparison::new(P99, gateway, first, ratio(p99))));
            }
            for raw in of(Role::Raw) {
                let beyond = |over: &Round, under: &Round| Some(figure(over, p99)? - 2.0 * figure(under, p99)?);
                ratios.extend(Comparison::new(P50, gateway, raw, ratio(|latency| latency.p50)));
                ratios.extend(Comparison::new(P99, gateway, raw, ratio(p99)));
                ratios.extend(Comparison::new(BEYOND, gateway, raw, beyond));
            }
        }
        let notes = servers.iter().flat_map(|server| notes(server, unit)).collect();
        let pass = !servers.iter().any(Contestant::faulty);
        Self { title: title.to_owned(), unit, servers, ratios, notes, pass }
    }

    /// All of it for a reader.
    pub(crate) fn sheet(&self) -> Sheet {
        let mut rows: Vec<(String, Vec<String>)> = Vec::new();
        let mut row = |label: &str, figure: &dyn Fn(&Contestant) -> String| {
            rows.push((label.to_owned(), self.servers.iter().map(figure).collect()));
        };
        let spread = |server: &Contestant, digits, figure: &dyn Fn(&Round) -> Option<f64>| {
            server.spread(figure).map_or("–".to_owned(), |spread| spread.words(digits))
        };
        let (unit, units, action, latency_of, rate) = match self.unit {
            Unit::Delivery => ("delivery", "deliveries", "message", "latency", "deliveries/s"),
            Unit::Cycle => ("cycle", "cycles", "cycle", "connect to bound", "cycles/s"),
        };
        row("", &|server| server.name.clone());
        row(units, &|server| {
            let delivered: u64 = server.rounds.iter().map(|round| round.delivered).sum();
            delivered.to_string()
        });
        let done = if self.unit == Unit::Delivery { "ratio delivered" } else { "ratio completed" };
        row(done, &|server| {
            let (delivered, expected) = (server.sum(|round| round.delivered), server.sum(|round| round.expected));
            // not rounded up to 1 while one is missing
            let ratio = delivered as f64 / expected.max(1) as f64;
            if delivered == expected {
                "1".to_owned()
            } else {
                format!("{ratio:.6} ({} lost)", expected.saturating_sub(delivered))
            }
        });
        if self.unit == Unit::Delivery {
            row("duplicates", &|server| server.sum(|round| round.duplicates).to_string());
            row("gaps", &|server| server.sum(|round| round.gaps).to_string());
            row("order violations", &|server| server.sum(|round| round.order_violations).to_string());
            row("misdelivered", &|server| server.sum(|round| round.misdelivered).to_string());
        }
        if self.unit == Unit::Delivery {
            row("messages/s", &|server| spread(server, 0, &|round| Some(round.messages_per_second)));
        }
        row(&format!("{units}/s"), &|server| spread(server, 0, &|round| Some(round.deliveries_per_second)));
        let latency = |server: &Contestant, figure: &dyn Fn(&Latency) -> f64| {
            server.latency_ms.as_ref().map_or("–".to_owned(), |latency| format!("{:.3}", figure(latency)))
        };
        row(&format!("{latency_of} p50, ms"), &|server| latency(server, &|latency| latency.p50));
        row("        p90", &|server| latency(server, &|latency| latency.p90));
        row("        p99", &|server| latency(server, &|latency| latency.p99));
        row("        p99.9", &|server| latency(server, &|latency| latency.p999));
        row("        max", &|server| latency(server, &|latency| latency.max));
        row(&format!("server CPU, µs/{unit}"), &|server| spread(server, 3, &|round| round.server_cpu_us));
        row("        of it user", &|server| spread(server, 3, &|round| round.server_user_us));
        if self.servers.iter().flat_map(|server| &server.rounds).any(|round| round.redis_cpu_us.is_some()) {
            row(&format!("Redis CPU, µs/{unit}"), &|server| spread(server, 3, &|round| round.redis_cpu_us));
            row("        of it user", &|server| spread(server, 3, &|round| round.redis_user_us));
            if self.servers.iter().flat_map(|server| &server.rounds).any(|round| round.redis_busiest_share.is_some()) {
                row("        of it the busiest master, %", &|server| {
                    spread(server, 0, &|round| Some(round.redis_busiest_share? * 100.0))
                });
            }
            row("together", &|server| spread(server, 3, &|round| round.together_cpu_us));
            row(&format!("Redis commands/{action}"), &|server| {
                spread(server, 2, &|round| round.redis_cpu_us.map(|_| round.redis_commands.values().sum()))
            });
            row(&format!("Redis received, bytes/{action}"), &|server| {
                spread(server, 0, &|round| round.redis_received_bytes)
            });
            row(&format!("Redis sent, bytes/{action}"), &|server| spread(server, 0, &|round| round.redis_sent_bytes));
        }
        if self.servers.iter().any(|server| server.redis_memory_per_client.is_some()) {
            row("Redis memory, bytes/client", &|server| {
                server.redis_memory_per_client.map_or("–".to_owned(), |bytes| format!("{bytes:.0}"))
            });
        }
        row("server, resident, MiB", &|server| spread(server, 1, &|round| round.resident_mib));
        row(&format!("tester CPU, µs/{unit}"), &|server| spread(server, 3, &|round| Some(round.tester_cpu_us)));
        row("        on one core, %", &|server| spread(server, 0, &|round| Some(round.tester_core * 100.0)));
        let mut lines = Vec::new();
        for server in &self.servers {
            // what heartbeats and the like add is left to the sum
            let commands = server.commands().into_iter().filter(|(_, count)| *count >= 0.005);
            let commands: Vec<String> = commands.map(|(name, count)| format!("{name} {count:.2}")).collect();
            if !commands.is_empty() {
                lines.push(format!("{}, Redis commands per {action}: {}", server.name, commands.join(", ")));
            }
        }
        lines.extend(self.ratios.iter().map(Comparison::words));
        let fault = match self.unit {
            Unit::Delivery => "not everything was delivered, once and in order",
            Unit::Cycle => "not every client came, was bound, and left",
        };
        let mut rounds = self.servers.iter().flat_map(Contestant::all);
        let redis = rounds.find_map(|round| round.redis_version.clone());
        Sheet {
            title: self.title.clone(),
            facts: redis.into_iter().map(|version| ("Redis", version)).collect(),
            rows,
            lines,
            notes: self.notes.clone(),
            fault: (!self.pass).then_some(fault),
            charts: vec![
                self.chart(format!("Percentiles of {latency_of}"), PERCENTILE, "ms", Contestant::percentiles),
                self.chart(
                    format!("Throughput: {units} per second"),
                    "seconds of all rounds",
                    rate,
                    Contestant::throughput,
                ),
            ],
        }
    }

    fn chart(
        &self,
        title: String,
        across: &'static str,
        unit: &'static str,
        points: impl Fn(&Contestant) -> Vec<(f64, f64)>,
    ) -> Chart {
        let line = |server: &Contestant| Series { name: server.name.clone(), unit, points: points(server) };
        Chart { title, across, lines: self.servers.iter().map(line).collect() }
    }
}

/// Lays out rows of a label and cells.
pub(crate) fn table(rows: &[(&str, Vec<String>)]) -> String {
    let width = |text: &str| text.chars().count();
    let labels = rows.iter().map(|(label, _)| width(label)).max().unwrap_or(0);
    let columns = rows.iter().map(|(_, cells)| cells.len()).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |(_, cells)| cells.get(column));
    let widths: Vec<usize> =
        (0..columns).map(|column| cells(column).map(|cell| width(cell)).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for (label, cells) in rows {
        let mut line = format!("{label:labels$}");
        for (cell, &width) in cells.iter().zip(&widths) {
            write!(line, "  {cell:<width$}").ok();
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// What a reader must know before believing the figures of a server.
fn notes(server: &Contestant, unit: Unit) -> Vec<String> {
    let mut notes = Vec::new();
    let name = &server.name;
    if server.gave_up() {
        notes.push(format!("{name}: deliveries stopped; the run was ended after the --deadline"));
    }
    if let Some(error) = server.all().find_map(|round| round.first_error.as_ref()) {
        let errors = server.sum(|round| round.errors);
        notes.push(format!("{name}: {errors} requests were answered with an error, the first: {error}"));
    }
    if let Some(close) = server.all().find_map(|round| round.first_close.as_ref()) {
        let closed = server.sum(|round| round.closed);
        notes.push(format!("{name}: {closed} connections ended, the first: {close}"));
    }
    if server.all().any(|round| !round.ordered && round.order_violations > 0) {
        notes.push(format!("{name}: tasks run side by side and may overtake each other: order is not asked for"));
    }
    let busiest = server.rounds.iter().map(|round| round.tester_core).fold(0.0, f64::max);
    if busiest > 0.9 {
        notes.push(format!(
            "{name}: THE TESTER WAS THE BOTTLENECK, its busiest thread, or with --pin all of them, used {:.0} % of a \
             core: throughput and latency are its own, CPU per delivery still counts; try more --threads, no --pin, or a \
             machine of its own",
            busiest * 100.0
        ));
    }
    let lag = server.rounds.iter().filter_map(|round| round.tester_lag_p99_ms).fold(0.0, f64::max);
    if lag > 1.0 {
        notes.push(format!(
            "{name}: THE TESTER LAGGED, 1 % of the messages left more than {lag:.1} ms after they could: these \
             milliseconds are in the latency"
        ));
    }
    let shortest = server.rounds.iter().filter_map(|round| round.server_cpu_seconds).fold(f64::INFINITY, f64::min);
    if shortest < 1.0 {
        // accounting steps of 10 ms, one lost at either end
        notes.push(format!(
            "{name}: a round used only {shortest:.2} s of server CPU, accounted in steps of 10 ms (± {:.0} %): more --{}",
            2.0 / shortest.max(0.01),
            if unit == Unit::Cycle { "cycles" } else { "messages" }
        ));
    }
    if server.role != Role::Raw && server.rounds.iter().any(|round| round.server_cpu_us.is_none()) {
        notes.push(format!("{name}: without --pid nothing is known about the server's CPU"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([].into_iter()), None);
        let spread = Spread::of([3.0, 1.0, 2.0].into_iter()).unwrap();
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(spread.words(1), "2.0 (1.0–3.0)");
        assert_eq!(Spread::of([4.0, 1.0].into_iter()).unwrap().words(2), "2.50 (1.00–4.00)");
        assert_eq!(Spread::of([4.0].into_iter()).unwrap().words(2), "4.00");
        assert_eq!(Spread::of([-4.0, -1.0].into_iter()).unwrap().words(1), "-2.5 (-4.0 to -1.0)");
    }

    fn round(cpu: f64) -> Round {
        Round {
            published: 10,
            expected: 10,
            delivered: 10,
            ratio_delivered: 1.0,
            messages_per_second: 10.0,
            deliveries_per_second: 10.0,
            duplicates: 0,
            gaps: 0,
            order_violations: 0,
            ordered: true,
            misdelivered: 0,
            closed: 0,
            first_close: None,
            errors: 0,
            first_error: None,
            gave_up: false,
            seconds: 1.0,
            server_cpu_us: Some(cpu),
            server_user_us: Some(0.0),
            server_cpu_seconds: Some(2.0),
            redis_cpu_us: None,
            redis_user_us: None,
            redis_busiest_share: None,
            redis_received_bytes: None,
            redis_sent_bytes: None,
            resident_mib: None,
            together_cpu_us: Some(cpu),
            redis_version: None,
            redis_commands: BTreeMap::new(),
            latency_ms: None,
            tester_cpu_us: 1.0,
            tester_core: 0.5,
            tester_lag_p99_ms: None,
            throughput: vec![(0.5, 10.0), (1.0, 20.0)],
        }
    }

    fn contestant(role: Role, name: &str, cpu: impl IntoIterator<Item = f64>) -> Contestant {
        let mut contestant = Contestant::new(role, name).unwrap();
        for cpu in cpu {
            contestant.add(round(cpu), &Stats::new().unwrap()).unwrap();
        }
        contestant
    }

    #[test]
    fn ratios_pair_rounds() {
        let servers = vec![
            contestant(Role::Gateway, "gateway", [2.0, 9.0, 4.0]),
            contestant(Role::Floor, "floor, plain", [1.0, 3.0, 4.0]),
        ];
        let report = Report::new("title", Unit::Delivery, servers);
        assert_eq!(report.ratios[0].ratio, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert!(report.pass && report.notes.is_empty(), "{:?}", report.notes);
        assert!(report.sheet().text().contains("gateway ÷ floor, plain: 2.00 (1.00–3.00)"));
    }

    #[test]
    fn tls_is_compared_with_plain() {
        let servers = vec![
            contestant(Role::Gateway, "gateway plain", [1.0, 2.0, 4.0]),
            contestant(Role::Tls, "gateway over TLS", [1.5, 4.0, 10.0]),
            contestant(Role::Floor, "floor, plain", [1.0; 3]),
        ];
        let table = Report::new("title", Unit::Delivery, servers).sheet().text();
        assert!(table.contains("gateway over TLS ÷ gateway plain: 2.00 (1.50–2.50)"), "{table}");
        assert!(table.contains("gateway plain ÷ floor, plain: 2.00 (1.00–4.00)"), "{table}");
        assert_eq!(table.matches('÷').count(), 2, "{table}");
    }

    #[test]
    fn two_nodes_are_compared_with_one() {
        let servers = vec![
            contestant(Role::Gateway, "one", [2.0, 2.0, 4.0]),
            contestant(Role::Gateway, "two", [3.0, 2.0, 8.0]),
            contestant(Role::Floor, "floor", [1.0; 3]),
        ];
        let table = Report::new("title", Unit::Delivery, servers).sheet().text();
        assert!(table.contains("two ÷ one: 1.50 (1.00–2.00)"), "{table}");
        assert!(table.contains("one ÷ floor: 2.00 (2.00–4.00)") && table.contains("two ÷ floor: 3.00 (2.00–8.00)"));
        assert_eq!(table.matches('÷').count(), 3, "{table}");
    }

    #[test]
    fn latency_is_compared_with_raw_redis() {
        let with = |role, name, p50, p99| {
            let mut contestant = contestant(role, name, [1.0; 3]);
            for round in &mut contestant.rounds {
                round.latency_ms = Some(Latency { p50, p90: p50, p99, p999: p99, max: p99 });
            }
            contestant
        };
        let servers = vec![with(Role::Gateway, "gateway", 0.3, 3.5), with(Role::Raw, "raw", 0.2, 1.0)];
        let table = Report::new("title", Unit::Delivery, servers).sheet().text();
        assert!(table.contains("gateway ÷ raw, latency p50: 1.50\n"), "{table}");
        assert!(table.contains("gateway ÷ raw, latency p99: 3.50\n"), "{table}");
        assert!(table.contains("gateway, latency p99 beyond 2 × that of raw: 1.50 ms\n"), "{table}");
        assert_eq!(table.matches('÷').count(), 2, "{table}");
    }

    #[test]
    fn redis_counts_apart_and_together() {
        let outcome = Outcome {
            published: 10,
            expected: 20,
            errors: 0,
            first_error: None,
            lag: crate::clients::histogram().unwrap(),
            wall: std::time::Duration::from_secs(1),
            gave_up: false,
            ordered: true,
            samples: vec![(0.5, 5), (1.0, 20)],
        };
        let stats = Stats { delivered: 20, ..Stats::new().unwrap() };
        let cpu = |user, system| Cpu { user, system };
        let usage = |cpu, publish| Usage {
            version: None,
            servers: vec![cpu, Cpu::default()],
            calls: [("publish".to_owned(), publish)].into(),
            received: publish * 200,
            sent: publish * 300,
        };
        let before = Spent { nodes: Some(cpu(10, 10)), redis: Some(usage(cpu(5, 5), 7)), resident: None };
        let after = Spent { nodes: Some(cpu(30, 50)), redis: Some(usage(cpu(25, 25), 17)), resident: None };
        let round = Round::new(&outcome, &stats, after.since(&before), Cpu::default(), 0);
        assert_eq!((round.server_cpu_us, round.server_user_us), (Some(3.0), Some(1.0)));
        assert_eq!((round.redis_cpu_us, round.redis_user_us, round.together_cpu_us), (Some(2.0), Some(1.0), Some(5.0)));
        assert_eq!(round.redis_commands, [("publish".to_owned(), 1.0)].into());
        assert_eq!((round.redis_received_bytes, round.redis_sent_bytes), (Some(200.0), Some(300.0)));
        assert_eq!((round.messages_per_second, round.deliveries_per_second), (10.0, 20.0));
        let mut server = contestant(Role::Gateway, "gateway", []).with_redis_memory(Some(1234.5));
        server.add(round, &stats).unwrap();
        let table = Report::new("title", Unit::Delivery, vec![server]).sheet().text();
        assert!(table.contains("\ngateway, Redis commands per message: publish 1.00\n"), "{table}");
        assert!(table.contains("\ntogether") && table.contains("\nRedis CPU, µs/delivery"), "{table}");
        for row in [
            "        of it the busiest master, %  100\n",
            "Redis received, bytes/message        200\n",
            "Redis memory, bytes/client           1234\n",
            "messages/s                           10\n",
        ] {
            assert!(table.contains(row), "{row}: {table}");
        }
    }

    #[test]
    fn faults_fail() {
        let faults: [fn(&mut Round); 5] = [
            |round| round.delivered = 9,
            |round| round.duplicates = 1,
            |round| round.order_violations = 1,
            |round| round.misdelivered = 1,
            |round| round.errors = 1,
        ];
        for fault in faults {
            let mut server = contestant(Role::Gateway, "gateway", [1.0; 3]);
            fault(&mut server.rounds[1]);
            assert!(!Report::new("", Unit::Delivery, vec![server]).pass);
        }
    }

    #[test]
    fn what_comes_after_the_last_round_fails_it() {
        let faults: [fn(&mut Stats); 4] = [
            |stats| stats.duplicates = 1,
            |stats| stats.reordered = 1,
            |stats| stats.misdelivered = 1,
            |stats| (stats.closed, stats.first_close) = (1, Some("cut".to_owned())),
        ];
        for fault in faults {
            let (mut server, mut stats) = (contestant(Role::Gateway, "gateway", [1.0; 3]), Stats::new().unwrap());
            server.blame(Stats::new().unwrap());
            assert!(!server.faulty());
            fault(&mut stats);
            server.blame(stats);
            assert!(server.faulty());
        }
    }

    #[test]
    fn tasks_may_overtake_each_other() {
        let mut server = contestant(Role::Gateway, "gateway", [1.0; 3]);
        (server.rounds[1].ordered, server.rounds[1].order_violations) = (false, 3);
        let report = Report::new("", Unit::Delivery, vec![server]);
        assert!(report.pass && report.notes[0].contains("side by side"), "{:?}", report.notes);
    }

    #[test]
    fn doubts_are_told() {
        let mut server = contestant(Role::Gateway, "gateway", [1.0; 3]);
        server.rounds[0].tester_core = 0.97;
        server.rounds[0].tester_lag_p99_ms = Some(5.0);
        server.rounds[0].server_cpu_seconds = Some(0.1);
        assert_eq!(notes(&server, Unit::Delivery).len(), 3);
    }
}
