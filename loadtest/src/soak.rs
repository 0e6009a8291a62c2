//! `soak`: for an hour and more, a crowd that stays and gets messages over HTTP and through Redis, visitors that come and
//! go, and samples of what the processes use: does memory grow, and does everything still arrive once and in order?

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::churn::{Crowd, Stretch, slots};
use crate::clients::{self, Pool, Stats};
use crate::floor::Floor;
use crate::output::OutputArgs;
use crate::process::{self, Cpu};
use crate::progress;
use crate::publish::{Kind, Outcome, PIPELINE, Pace, Plan, Publisher, Route};
use crate::redis::Redis;
use crate::report::{Latency, Spent, Spread};
use crate::series::{Chart, Series};
use crate::server::{Server, home, members};
use crate::sheet::Sheet;
use crate::target::{Door, TargetArgs};
use crate::{Result, message, parse_duration};

/// Options of `soak`.
#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Connections that stay, each bound to a uid of its own and in one group
    #[arg(long, default_value_t = 2000)]
    clients: usize,
    /// Groups to which they are dealt
    #[arg(long, default_value_t = 100)]
    groups: usize,
    /// How long
    #[arg(long = "for", value_name = "TIME", default_value = "60m", value_parser = parse_duration)]
    length: Duration,
    /// Messages a second, in equal parts to groups and to uids, and through every door (HTTP and, if there is one, Redis),
    /// on a fixed schedule from which latency counts
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Visitors a second, who connect, are bound to a uid and put into one of the groups, and leave; 0 is none
    #[arg(long, default_value_t = 20.0)]
    churn: f64,
    /// Between samples
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    every: Duration,
    /// Bytes of a message
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// Receiving threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Without a delivery (or a visitor's goodbye) for so long, what is missing counts as lost
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    deadline: Duration,
    /// Do the same with the built-in bare server, at the same time
    #[arg(long)]
    floor: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What visitors found, and the CPU time of their thread, µs.
type Visits = (Outcome, Stats, u64);

/// What was found at the end of an interval.
#[derive(Debug, Clone, Serialize)]
struct Sample {
    /// Since the first message.
    seconds: f64,
    /// Resident memory of the nodes together.
    resident_mib: f64,
    /// `used_memory` of Redis.
    redis_mib: Option<f64>,
    /// Clients that the gateway lists, visitors included.
    listed: u64,
    /// Open descriptors of the nodes together.
    descriptors: u64,
    /// Threads of the nodes together.
    threads: u64,
    /// Deliveries that should have followed from the messages of the interval.
    expected: u64,
    /// Those that did, within it.
    delivered: u64,
    deliveries_per_second: f64,
    latency_ms: Option<Latency>,
    /// CPU of the nodes together, of one core.
    server_cpu_percent: f64,
    redis_cpu_percent: Option<f64>,
}

/// How a figure went, in its own unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Trend {
    /// Median of the second tenth of the samples: the first is left to the start.
    began: f64,
    /// Median of the last tenth.
    ended: f64,
    max: f64,
    /// By least squares over the second half of the samples.
    slope_per_hour: f64,
}

impl Trend {
    /// Of points in time (seconds) and value; `None` without any.
    fn of(points: &[(f64, f64)]) -> Option<Self> {
        let tenth = (points.len() / 10).max(1);
        let after = tenth.min(points.len().saturating_sub(1));
        let second = points.get(after..(after + tenth).min(points.len()))?;
        let last = points.get(points.len().saturating_sub(tenth)..)?;
        Some(Self {
            began: median(second)?,
            ended: median(last)?,
            max: points.iter().map(|(_, value)| *value).reduce(f64::max)?,
            slope_per_hour: 3600.0 * slope(points.get(points.len() / 2..)?),
        })
    }

    /// What it ended with more than it began with, in percent.
    fn percent(&self) -> f64 {
        if self.began == 0.0 { 0.0 } else { 100.0 * (self.ended - self.began) / self.began }
    }

    fn words(&self, digits: usize) -> Vec<String> {
        let Self { began, ended, max, .. } = self;
        let change = format!("{:+.1} %", self.percent());
        vec![format!("{began:.digits$}"), format!("{ended:.digits$}"), change, format!("{max:.digits$}")]
    }
}

fn median(points: &[(f64, f64)]) -> Option<f64> {
    Some(Spread::of(points.iter().map(|(_, value)| *value))?.median)
}

/// By least squares; 0 of a single point.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len().max(1) as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (middle, level) = (mean(|point| point.0), mean(|point| point.1));
    let (mut along, mut square) = (0.0, 0.0);
    for (at, value) in points {
        along += (at - middle) * (value - level);
        square += (at - middle) * (at - middle);
    }
    if square > 0.0 { along / square } else { 0.0 }
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct SoakReport {
    title: String,
    /// Why it did not last as long as it should have.
    ended_early: Option<String>,
    seconds: f64,
    /// Resident memory of the nodes, MiB.
    memory: Option<Trend>,
    /// `used_memory` of Redis, MiB.
    redis_memory: Option<Trend>,
    published: u64,
    expected: u64,
    delivered: u64,
    duplicates: u64,
    /// How often a client got a message before one that was sent earlier, or instead of it.
    gaps: u64,
    order_violations: u64,
    /// Whether there should be none: tasks run side by side.
    ordered: bool,
    misdelivered: u64,
    /// Clients that should have stayed and did not.
    closed: u64,
    first_close: Option<String>,
    /// Requests of messages that were answered with an error.
    errors: u64,
    first_error: Option<String>,
    /// From the scheduled time to reading.
    latency_ms: Option<Latency>,
    /// Visitors that came.
    visitors: u64,
    /// Of these, who did not come, was not bound, or was cut off.
    visitors_failed: u64,
    first_failure: Option<String>,
    /// From a visitor's connecting to the answer that it is bound.
    visit_latency_ms: Option<Latency>,
    /// Clients that the gateway lists after the last visitor has gone.
    listed: Option<u64>,
    /// Those that are there.
    clients: u64,
    /// Server CPU for everything together, µs per delivery.
    server_cpu_us: f64,
    /// The same of Redis.
    redis_cpu_us: Option<f64>,
    /// Commands that Redis carried out, by name, for each message and each visitor.
    redis_commands: BTreeMap<String, f64>,
    /// Share of a core that the tester's busiest thread used.
    tester_busiest_thread: f64,
    /// How late the tester itself sent, 99th percentile, ms.
    tester_lag_p99_ms: f64,
    samples: Vec<Sample>,
    charts: Vec<Chart>,
    /// What the bare server had to do for the same.
    floor: Option<Box<SoakReport>>,
    /// Why there is nothing to be told of it.
    floor_failed: Option<String>,
    /// Everything delivered, once and in order, nobody cut off, nobody listed who is gone.
    pass: bool,
}

/// What runs, and what was seen of it so far.
struct Soak<'a> {
    args: &'a SoakArgs,
    server: &'a Server,
    publisher: Publisher,
    pool: Pool,
    /// The tester's first moment.
    epoch: Instant,
    /// What was used up to the last sample.
    spent: Spent,
    sampled: Instant,
    stats: Stats,
    published: u64,
    expected: u64,
    errors: u64,
    first_error: Option<String>,
    lag: Histogram<u64>,
    ordered: bool,
    samples: Vec<Sample>,
}

impl SoakArgs {
    fn check(&self) -> Result<()> {
        let Self { clients, groups, rate, churn, .. } = self;
        message::check_size(self.size, 1)?;
        let messages = Duration::try_from_secs_f64(rate * self.length.as_secs_f64())?.as_secs();
        message::check_form(self.size, false, groups + clients, messages)?;
        if *clients == 0 || *groups == 0 || groups > clients {
            return Err("at least one client in each group is needed".into());
        }
        if !(rate.is_finite() && *rate >= 0.1) {
            return Err("--rate: at least 0.1 is wanted".into());
        }
        // so that the connections which bind are never silent for so long that the server cuts them
        if !(*churn == 0.0 || churn.is_finite() && *churn >= 0.1) {
            return Err("--churn: 0 or at least 0.1 is wanted".into());
        }
        if self.length.is_zero() || self.every.is_zero() {
            return Err("--for, --every: more than nothing is wanted".into());
        }
        Ok(())
    }

    /// Runs it.
    pub(crate) fn run(&self) -> Result<SoakReport> {
        self.check()?;
        let cluster = self.target.cluster()?.ok_or("name a gateway: --spawn, or --ws and --api with --pid")?;
        if cluster.tls && self.churn > 0.0 {
            return Err("--tls: only with --churn 0, as visitors do not speak it".into());
        }
        process::raise_descriptors(((self.clients + self.spare()) * (1 + usize::from(self.floor))) as u64)?;
        let gateway = Server::measured(self.target.open(&cluster)?)?;
        let floor = if self.floor { Some(Server::Floor(Floor::spawn()?)) } else { None };
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let floor = floor.as_ref().map(|floor| {
                scope.spawn(|| {
                    progress::aside();
                    self.soak(floor, 1, &over)
                })
            });
            let report = self.soak(&gateway, 0, &AtomicBool::new(false));
            over.store(true, Ordering::Relaxed);
            let floor = floor.map(|floor| floor.join().unwrap_or_else(|_| Err("the floor's thread panicked".into())));
            let mut report = report?;
            match floor.transpose() {
                Ok(floor) => {
                    report.pass &= floor.as_ref().is_none_or(|floor| floor.pass);
                    report.floor = floor.map(Box::new);
                }
                // what was found of the gateway is told all the same
                Err(error) => (report.pass, report.floor_failed) = (false, Some(error.to_string())),
            }
            Ok(report)
        })
    }

    /// Descriptors beside those of the clients.
    fn spare(&self) -> usize {
        2 * slots(self.churn) + 64
    }

    /// Does it all with one server, until it is `over`; `number` keeps source addresses of several apart.
    fn soak(&self, server: &Server, number: u8, over: &AtomicBool) -> Result<SoakReport> {
        let (Self { clients, groups, .. }, parallel, nodes) = (self, slots(self.churn), server.nodes());
        let (clients, groups, epoch) = (*clients, *groups, Instant::now());
        let others = server.listed()?;
        // topics are numbered through: the groups, then the uids
        let topics = |client: usize| [(client % groups) as u32, (groups + client) as u32];
        let connected = server.connect(0..clients, self.spare(), |client| home(client, groups, nodes), 1 + number)?;
        server.enter(&connected, topics)?;
        let dealt = connected.into_iter().enumerate().map(|(index, client)| (client, topics(index))).collect();
        let ways = self.target.doors()?;
        let routes = routes(server, &ways, groups as u32, clients as u32)?;
        let of_topics = [members(clients, groups), vec![1; clients]].concat();
        let publisher = Publisher::through(routes, of_topics, epoch)?;
        let pool = Pool::start(dealt, self.threads, self.size, epoch, publisher.gate())?;
        let mut crowd = Crowd::new(&server.doors()?, parallel, groups as u32, number, (groups + clients) as u64)?;

        let spent = server.spent()?;
        let mut soak = Soak {
            args: self,
            server,
            publisher,
            pool,
            epoch,
            spent: spent.clone(),
            sampled: Instant::now(),
            stats: Stats::new()?,
            published: 0,
            expected: 0,
            errors: 0,
            first_error: None,
            lag: clients::histogram()?,
            ordered: true,
            samples: Vec::new(),
        };
        let (began, threads) = (Instant::now(), soak.threads()?);
        let left = AtomicBool::new(false);
        let stretch =
            Stretch { cycles: u64::MAX, rate: Some(self.churn), stay: None, over: &left, deadline: self.deadline };
        let (ended, visits) = std::thread::scope(|scope| {
            let visits = (parallel > 0).then(|| {
                scope.spawn(|| {
                    progress::aside();
                    let (outcome, stats, ended) = crowd.run_as_far_as_it_goes(&stretch)?;
                    Ok(((outcome, stats, process::own_thread_cpu()?), ended))
                })
            });
            let going = || visits.as_ref().is_none_or(|visits| !visits.is_finished());
            let ended = soak.run(going, over);
            left.store(true, Ordering::Relaxed);
            let visits: Option<Result<(Visits, Result<()>)>> = visits
                .map(|visits| visits.join().unwrap_or_else(|_| Err("the thread of the visitors panicked".into())));
            (ended, visits.transpose())
        });
        let seconds = began.elapsed().as_secs_f64();
        let busiest = soak.threads()?.iter().zip(&threads).map(|(now, before)| now.saturating_sub(*before)).max();
        let (visits, cut) = match visits {
            Ok(None) => (None, None),
            Ok(Some((visits, ended))) => (Some(visits), ended.err().map(|error| error.to_string())),
            Err(error) => (None, Some(error.to_string())),
        };
        // what ended the visits ended all
        let ended_early = cut.or_else(|| ended.err().map(|error| error.to_string()));
        if soak.samples.is_empty() {
            return Err(ended_early.unwrap_or_else(|| "not a single sample was taken".to_owned()).into());
        }
        let used = soak.spent.since(&spent);
        // one that did not last may have nobody to ask any more
        let listed = if ended_early.is_none() { Some(server.settled(others, clients as u64)?) } else { None };
        let mut stats = soak.pool.take()?;
        if ended_early.is_some() {
            // of a stretch that was cut nobody knows what was to follow
            stats.delivered = 0;
        }
        soak.stats.add(&stats)?;
        let title = self.title(nodes, &ways);
        Ok(soak.report(title, ended_early, seconds, visits.as_ref(), listed, &used, busiest.unwrap_or(0)))
    }

    fn title(&self, nodes: usize, ways: &[Door]) -> String {
        let Self { clients, groups, rate, churn, size, .. } = self;
        let on = if nodes > 1 { format!(" on {nodes} nodes") } else { String::new() };
        let ways: Vec<&str> = ways.iter().map(|door| door.name()).collect();
        format!(
            "soak: {clients} clients{on}, each with a uid and in one of {groups} groups, {rate} messages/s of {size} B \
             ({}), {churn} visitors/s",
            ways.join(", ")
        )
    }
}

/// The connections for messages: one for each door and kind. Each has a share of the topics of its own, for between doors
/// there is no order.
fn routes(server: &Server, ways: &[Door], groups: u32, clients: u32) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for (number, door) in ways.iter().enumerate() {
        let depth = if *door == Door::Http { 1 } else { PIPELINE };
        for (kind, topics) in [(Kind::Group, 0..groups), (Kind::Uid, groups..groups + clients)] {
            let topics: Vec<u32> = share(topics, number as u32, ways.len() as u32).collect();
            if !topics.is_empty() {
                routes.push(Route { wire: server.wire_through(*door, kind)?, depth, topics });
            }
        }
    }
    Ok(routes)
}

/// The part `number` of `parts` of a range.
fn share(range: Range<u32>, number: u32, parts: u32) -> Range<u32> {
    let cut = |number: u32| {
        let offset = u64::from(range.end - range.start) * u64::from(number) / u64::from(parts.max(1));
        range.start + offset as u32
    };
    cut(number)..cut(number + 1)
}

impl Soak<'_> {
    /// Publishes and samples for the whole time, or until it is `over`; that `going` says no ends it early.
    fn run(&mut self, going: impl Fn() -> bool, over: &AtomicBool) -> Result<()> {
        let SoakArgs { rate, size, deadline, .. } = *self.args;
        // an interval has whole messages, and at least one
        let messages = Duration::try_from_secs_f64(rate * self.args.every.as_secs_f64())?.as_secs().max(1);
        let interval = Duration::try_from_secs_f64(messages as f64 / rate)?;
        let began = self.epoch.elapsed();
        self.sampled = Instant::now();
        let mut from = began;
        let all = Duration::try_from_secs_f64(rate * self.args.length.as_secs_f64())?.as_secs();
        progress::phase("messages", all.max(messages));
        while from < began + self.args.length && !over.load(Ordering::Relaxed) {
            if !going() {
                return Err("the visitors no longer come and go".into());
            }
            let plan = Plan {
                messages,
                pace: Pace::Rate(rate),
                size,
                binary: false,
                joined: false,
                deadline,
                from: Some(from.as_nanos() as u64),
            };
            let memory =
                self.samples.last().map_or(String::new(), |sample| format!(", {:.1} MiB", sample.resident_mib));
            progress::stretch(format!("messages{memory}"), self.published);
            let outcome = self.publisher.run(&plan)?;
            let end = from + interval;
            while let Some(left) = end.checked_sub(self.epoch.elapsed()) {
                crate::interrupted()?;
                std::thread::sleep(left.min(Duration::from_millis(50)));
            }
            let late = self.epoch.elapsed().saturating_sub(end);
            let delivered = self.sample(&outcome, self.epoch.elapsed().saturating_sub(began))?;
            if outcome.gave_up && delivered == 0 {
                return Err("nothing is delivered any more".into());
            }
            // what a slow server held up stays late; sampling, and the wait for what is lost, do not count against it
            let late = if outcome.gave_up { Duration::ZERO } else { late };
            from = end.max(self.epoch.elapsed().saturating_sub(late));
        }
        Ok(())
    }

    /// Notes how things stand `at` this time; gives the deliveries of the interval.
    fn sample(&mut self, outcome: &Outcome, at: Duration) -> Result<u64> {
        const MIB: f64 = 1024.0 * 1024.0;
        let stats = self.pool.take()?;
        let (meter, redis) = (self.server.meter(), self.server.redis());
        let spent = self.server.spent()?;
        let seconds = self.sampled.elapsed().as_secs_f64().max(1e-9);
        let used = spent.since(&self.spent);
        let percent = |cpu: Cpu| cpu.total() as f64 / 1e4 / seconds;
        let sample = Sample {
            seconds: at.as_secs_f64(),
            resident_mib: meter.resident()? as f64 / MIB,
            redis_mib: redis.map(Redis::memory).transpose()?.map(|bytes| bytes as f64 / MIB),
            listed: self.server.listed()?,
            descriptors: meter.descriptors()?,
            threads: meter.threads()?,
            expected: outcome.expected,
            delivered: stats.delivered,
            deliveries_per_second: stats.delivered as f64 / seconds,
            latency_ms: Latency::of(&stats.latency),
            server_cpu_percent: percent(used.nodes.unwrap_or_default()),
            redis_cpu_percent: used.redis.map(|redis| percent(redis.cpu())),
        };
        (self.spent, self.sampled) = (spent, Instant::now());
        self.samples.push(sample);
        self.stats.add(&stats)?;
        self.lag.add(&outcome.lag)?;
        self.published += outcome.published;
        self.expected += outcome.expected;
        self.errors += outcome.errors;
        self.ordered &= outcome.ordered;
        if self.first_error.is_none() {
            self.first_error.clone_from(&outcome.first_error);
        }
        Ok(stats.delivered)
    }

    /// CPU time of our threads so far, but for that of the visitors.
    fn threads(&self) -> Result<Vec<u64>> {
        let ids = self.pool.thread_ids().into_iter().chain([process::own_thread()]);
        ids.map(|id| Ok(process::thread_cpu(id)?.total())).collect()
    }

    #[expect(clippy::too_many_arguments, reason = "each is one figure, and there is one caller")]
    fn report(
        self,
        title: String,
        ended_early: Option<String>,
        seconds: f64,
        visits: Option<&Visits>,
        listed: Option<u64>,
        used: &Spent,
        busiest: u64,
    ) -> SoakReport {
        let Self { args, stats, published, expected, errors, first_error, lag, ordered, samples, .. } = self;
        let each = |cpu: Cpu| cpu.total() as f64 / stats.delivered.max(1) as f64;
        let (came, gone, thread) = match visits {
            Some((outcome, stats, thread)) => (outcome.published, Some((outcome, stats)), *thread),
            None => (0, None, 0),
        };
        let visitors_failed =
            gone.map_or(0, |(outcome, stats)| outcome.errors.max(outcome.published.saturating_sub(stats.delivered)));
        let first_failure =
            gone.and_then(|(outcome, stats)| outcome.first_error.clone().or_else(|| stats.first_close.clone()));
        let disorder = if ordered { stats.reordered } else { 0 };
        let faults = stats.duplicates + disorder + stats.misdelivered + stats.closed + errors + visitors_failed;
        let clients = args.clients as u64;
        let actions = (published + came).max(1) as f64;
        let calls = used.redis.iter().flat_map(|redis| &redis.calls);
        let mut report = SoakReport {
            title,
            seconds,
            memory: Trend::of(&points(&samples, |sample| Some(sample.resident_mib))),
            redis_memory: Trend::of(&points(&samples, |sample| sample.redis_mib)),
            published,
            expected,
            delivered: stats.delivered,
            duplicates: stats.duplicates,
            gaps: stats.gaps,
            order_violations: stats.reordered,
            ordered,
            misdelivered: stats.misdelivered,
            closed: stats.closed,
            errors,
            first_error,
            latency_ms: Latency::of(&stats.latency),
            visitors: came,
            visitors_failed,
            first_failure,
            visit_latency_ms: gone.and_then(|(_, stats)| Latency::of(&stats.latency)),
            listed,
            clients,
            server_cpu_us: each(used.nodes.unwrap_or_default()),
            redis_cpu_us: used.redis.as_ref().map(|redis| each(redis.cpu())),
            redis_commands: calls.map(|(name, calls)| (name.clone(), *calls as f64 / actions)).collect(),
            tester_busiest_thread: busiest.max(thread) as f64 / 1e6 / seconds.max(1e-9),
            tester_lag_p99_ms: lag.value_at_quantile(0.99) as f64 / 1e6,
            samples,
            charts: Vec::new(),
            floor: None,
            floor_failed: None,
            pass: ended_early.is_none() && stats.delivered == expected && faults == 0 && listed == Some(clients),
            ended_early,
            first_close: stats.first_close,
        };
        report.charts = report.charts();
        report
    }
}

/// A figure over the time, where it is known.
fn points(samples: &[Sample], figure: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    samples.iter().filter_map(|sample| Some((sample.seconds, figure(sample)?))).collect()
}

impl SoakReport {
    /// Over the seconds: memory, latency, deliveries, and what is open.
    pub(crate) fn charts(&self) -> Vec<Chart> {
        let line = |name: &str, unit, figure: &dyn Fn(&Sample) -> Option<f64>| Series {
            name: name.to_owned(),
            unit,
            points: points(&self.samples, figure),
        };
        let latency = |of: fn(&Latency) -> f64| move |sample: &Sample| sample.latency_ms.as_ref().map(of);
        let charts = [
            (
                "memory",
                vec![
                    line("nodes, resident", "MiB", &|sample| Some(sample.resident_mib)),
                    line("Redis, used", "MiB", &|sample| sample.redis_mib),
                ],
            ),
            (
                "latency",
                vec![
                    line("p50", "ms", &latency(|latency| latency.p50)),
                    line("p99", "ms", &latency(|latency| latency.p99)),
                ],
            ),
            ("deliveries", vec![line("deliveries", "1/s", &|sample| Some(sample.deliveries_per_second))]),
            (
                "what is open",
                vec![
                    line("clients listed", "", &|sample| Some(sample.listed as f64)),
                    line("descriptors of the nodes", "", &|sample| Some(sample.descriptors as f64)),
                ],
            ),
        ];
        let chart = |(title, mut lines): (&str, Vec<Series>)| {
            lines.retain(|line| !line.points.is_empty());
            Chart { title: format!("soak: {title}"), across: "seconds", lines }
        };
        charts.map(chart).into_iter().filter(|chart| !chart.lines.is_empty()).collect()
    }

    /// All of it for a reader.
    pub(crate) fn sheet(&self) -> Sheet {
        let mut rows = vec![("", ["began", "ended", "change", "highest", "per hour"].map(str::to_owned).to_vec())];
        let mut row = |label, digits, figure: &dyn Fn(&Sample) -> Option<f64>| {
            if let Some(trend) = Trend::of(&points(&self.samples, figure)) {
                rows.push((label, trend.words(digits)));
            }
        };
        let latency = |of: fn(&Latency) -> f64| move |sample: &Sample| sample.latency_ms.as_ref().map(of);
        row("nodes, resident, MiB", 2, &|sample| Some(sample.resident_mib));
        row("Redis, used, MiB", 2, &|sample| sample.redis_mib);
        row("clients listed", 0, &|sample| Some(sample.listed as f64));
        row("descriptors of the nodes", 0, &|sample| Some(sample.descriptors as f64));
        row("threads of the nodes", 0, &|sample| Some(sample.threads as f64));
        row("deliveries/s", 0, &|sample| Some(sample.deliveries_per_second));
        row("latency p50, ms", 3, &latency(|latency| latency.p50));
        row("        p99", 3, &latency(|latency| latency.p99));
        row("nodes, CPU, % of a core", 1, &|sample| Some(sample.server_cpu_percent));
        row("Redis, CPU, % of a core", 1, &|sample| sample.redis_cpu_percent);
        for (label, trend) in [("nodes", &self.memory), ("Redis", &self.redis_memory)] {
            let of = rows.iter_mut().find(|(row, _)| row.starts_with(label) && row.ends_with("MiB"));
            // of some minutes it would say nothing
            if let (Some((_, cells)), Some(trend), true) = (of, trend, self.seconds > 900.0) {
                cells.push(format!("{:+.0} KiB", trend.slope_per_hour * 1024.0));
            }
        }
        let memory = |name: &str, trend: &Option<Trend>| {
            trend.map(|trend| {
                let Trend { began, ended, .. } = trend;
                format!("{name}: began {began:.2} MiB, ended {ended:.2} MiB ({:+.1} %)", trend.percent())
            })
        };
        let totals = self.totals().into_iter().map(|(label, figure)| format!("{label}: {figure}"));
        let memories = [memory("memory", &self.memory), memory("memory of Redis", &self.redis_memory)];
        let commands = self.redis_commands.iter().filter(|(_, count)| **count >= 0.005);
        let commands: Vec<String> = commands.map(|(name, count)| format!("{name} {count:.2}")).collect();
        let commands = (!commands.is_empty())
            .then(|| format!("Redis commands for each message and visitor: {}", commands.join(", ")));
        let floor = self.floor.as_ref().map(|floor| {
            let ratio = (self.server_cpu_us + self.redis_cpu_us.unwrap_or(0.0)) / floor.server_cpu_us;
            format!("gateway ÷ floor, CPU for all: {ratio:.2} (floor: {:.3} µs/delivery)", floor.server_cpu_us)
        });
        Sheet {
            title: self.title.clone(),
            facts: Vec::new(),
            rows: rows.into_iter().map(|(label, cells)| (label.to_owned(), cells)).collect(),
            lines: totals.chain(commands).chain(memories.into_iter().flatten()).chain(floor).collect(),
            notes: self.notes(),
            fault: match (self.pass, &self.ended_early) {
                (true, _) => None,
                (false, Some(_)) => Some("it did not last"),
                (false, None) => {
                    Some("not everything was delivered once and in order, or not everyone is listed who is there")
                }
            },
            charts: self.charts.clone(),
        }
    }

    /// What counts over the whole time.
    fn totals(&self) -> Vec<(&'static str, String)> {
        let quantiles = |latency: &Option<Latency>| {
            latency.as_ref().map_or("–".to_owned(), |latency| {
                let Latency { p50, p90, p99, p999, max } = latency;
                format!("{p50:.3} / {p90:.3} / {p99:.3} / {p999:.3} / {max:.3}")
            })
        };
        let ratio = self.delivered as f64 / self.expected.max(1) as f64;
        let ratio = if self.delivered == self.expected { "1".to_owned() } else { format!("{ratio:.6}") };
        vec![
            ("minutes", (format!("{:.1}", self.seconds / 60.0))),
            ("messages", (self.published.to_string())),
            ("deliveries", (format!("{} of {}", self.delivered, self.expected))),
            ("ratio delivered", (ratio)),
            ("duplicates", (self.duplicates.to_string())),
            ("gaps", (self.gaps.to_string())),
            ("order violations", (self.order_violations.to_string())),
            ("misdelivered", (self.misdelivered.to_string())),
            ("latency p50 / p90 / p99 / p99.9 / max, ms", (quantiles(&self.latency_ms))),
            ("connections lost", (self.closed.to_string())),
            ("visitors", (format!("{}, {} of them failed", self.visitors, self.visitors_failed))),
            ("of these connect to bound p50 / p90 / p99 / p99.9 / max, ms", (quantiles(&self.visit_latency_ms))),
            ("listed at the end", {
                self.listed.map_or("–".to_owned(), |listed| format!("{listed} of {}", self.clients))
            }),
            ("server CPU for all, µs/delivery", (format!("{:.3}", self.server_cpu_us))),
            ("Redis CPU for all, µs/delivery", {
                self.redis_cpu_us.map_or("–".to_owned(), |micros| format!("{micros:.3}"))
            }),
            ("tester's busiest thread, %", (format!("{:.0}", self.tester_busiest_thread * 100.0))),
        ]
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(why) = &self.ended_early {
            notes.push(format!("it ended early: {why}"));
        }
        if let Some(error) = &self.first_error {
            notes.push(format!("{} requests were answered with an error, the first: {error}", self.errors));
        }
        if let Some(close) = &self.first_close {
            notes.push(format!("the first lost connection: {close}"));
        }
        if let Some(failure) = &self.first_failure {
            notes.push(format!("the first visitor that failed: {failure}"));
        }
        if !self.ordered && self.order_violations > 0 {
            notes.push("tasks run side by side and may overtake each other: order is not asked for".to_owned());
        }
        if let Some(why) = &self.floor_failed {
            notes.push(format!("the floor failed: {why}"));
        }
        if let Some(floor) = self.floor.as_ref().filter(|floor| !floor.pass) {
            notes.push(format!("the floor did not deliver all, either: {} of {}", floor.delivered, floor.expected));
        }
        if self.samples.len() < 20 {
            notes.push(
                "of fewer than 20 samples, a tenth is one or none: began and ended are single samples".to_owned(),
            );
        }
        if self.tester_busiest_thread > 0.9 {
            notes.push(format!(
                "THE TESTER WAS THE BOTTLENECK, a thread of it used {:.0} % of a core: latency is its own",
                self.tester_busiest_thread * 100.0
            ));
        }
        if self.tester_lag_p99_ms > 1.0 {
            notes.push(format!(
                "THE TESTER LAGGED, 1 % of the messages left more than {:.1} ms after they could: these milliseconds are in \
                 the latency",
                self.tester_lag_p99_ms
            ));
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trend_leaves_out_the_start() {
        let points: Vec<(f64, f64)> = (0..100)
            .map(|index| {
                let seconds = 36.0 * f64::from(index);
                // it settles after five samples, then grows by 2 in an hour
                (seconds, if index < 5 { 500.0 } else { 10.0 + seconds / 1800.0 })
            })
            .collect();
        let trend = Trend::of(&points).unwrap();
        assert!((trend.began - 10.29).abs() < 1e-9, "{trend:?}");
        assert!((trend.ended - 11.89).abs() < 1e-9, "{trend:?}");
        assert!((trend.slope_per_hour - 2.0).abs() < 1e-9, "{trend:?}");
        assert!((trend.max - 500.0).abs() < 1e-9 && (trend.percent() - 15.549).abs() < 0.001, "{trend:?}");
    }

    #[test]
    fn a_trend_of_few_points() {
        assert_eq!(Trend::of(&[]), None);
        let one = Trend { began: 7.0, ended: 7.0, max: 7.0, slope_per_hour: 0.0 };
        assert_eq!(Trend::of(&[(1.0, 7.0)]), Some(one));
        let trend = Trend::of(&[(0.0, 9.0), (3600.0, 7.0), (7200.0, 8.0)]).unwrap();
        assert_eq!(trend, Trend { began: 7.0, ended: 8.0, max: 9.0, slope_per_hour: 1.0 });
    }

    #[test]
    fn topics_are_dealt_to_doors() {
        assert_eq!([share(0..7, 0, 2), share(0..7, 1, 2)], [0..3, 3..7]);
        assert_eq!([share(7..8, 0, 2), share(7..8, 1, 2)], [7..7, 7..8]);
        assert_eq!(share(3..9, 0, 1), 3..9);
    }
}
