//! `idle`: what a connection costs that only is there, bound to a uid and in one group.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::clients::Pool;
use crate::output::OutputArgs;
use crate::process::{self, Cpu};
use crate::progress;
use crate::publish::{Kind, Pace, Plan, Publisher};
use crate::redis::{Redis, Usage};
use crate::scenario::{enter, home, members};
use crate::series::{Chart, Series};
use crate::sheet::Sheet;
use crate::target::TargetArgs;

/// Options of `idle`.
#[derive(Debug, Args)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Connections, each bound to a uid of its own and in one group
    #[arg(long, default_value_t = 10_000)]
    clients: usize,
    /// Groups to which they are dealt
    #[arg(long, default_value_t = 100)]
    groups: usize,
    /// How long to watch the CPU; whole heartbeat intervals
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds between setting up and measuring
    #[arg(long, default_value_t = 2)]
    settle: u64,
    /// Receiving threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct IdleReport {
    title: String,
    /// Resident memory of the server before the clients, bytes.
    resident_before: u64,
    /// With all of them, settled.
    resident_after: u64,
    /// The difference for each client, bytes.
    pub(crate) resident_per_connection: f64,
    /// µs of server CPU per connection and second.
    pub(crate) cpu_us_per_connection_second: f64,
    /// The same of Redis.
    redis_cpu_us_per_connection_second: Option<f64>,
    /// µs of server CPU per connection for connecting, binding and joining.
    setup_cpu_us_per_connection: f64,
    /// The same of Redis.
    redis_setup_cpu_us_per_connection: Option<f64>,
    /// Pings that the clients answered while watched.
    pings: u64,
    /// Connections that ended.
    closed: u64,
    /// Why the first of them did.
    first_close: Option<String>,
    /// Deliveries of a last message to each group, to see that everyone is still reached.
    delivered: u64,
    /// As many as clients.
    expected: u64,
    charts: Vec<Chart>,
    /// Which Redis there was.
    redis_version: Option<String>,
    /// Nobody lost.
    pass: bool,
    /// Connections, and resident memory in MiB.
    #[serde(skip)]
    memory: Vec<(f64, f64)>,
}

const SIZE: usize = 64;
/// How often memory is looked at while the clients come.
const PARTS: usize = 20;

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

impl IdleArgs {
    /// Runs it.
    pub(crate) fn run(&self) -> Result<IdleReport> {
        let Self { clients, groups, .. } = *self;
        if clients == 0 || groups == 0 || groups > clients {
            return Err("at least one client in each group is needed".into());
        }
        process::raise_descriptors(clients as u64 + 64)?;
        let epoch = Instant::now();
        let cluster = self.target.cluster()?.ok_or("name a gateway: --spawn, or --ws and --api with --pid")?;
        let target = self.target.open(&cluster)?;
        if target.meter.pids.is_empty() {
            return Err("--pid: without the server's process nothing can be measured".into());
        }

        // one visitor on each node first: what the server allocates once for all is no cost of a connection
        let mut callers = target.callers()?;
        let nodes = callers.len();
        let topics = |client| [(client % groups) as u32, client as u32];
        let visitors = target.connect(0..nodes, 64, |client| client, 1)?;
        enter(&mut callers, &visitors, topics)?;
        drop(visitors);
        std::thread::sleep(Duration::from_millis(200));

        let redis = || target.redis.as_deref().map(Redis::usage).transpose();
        let (resident_before, setup, redis_setup) = (target.meter.resident()?, target.meter.cpu()?, redis()?);
        let (mut connected, mut memory) = (Vec::with_capacity(clients), vec![(0.0, mib(resident_before))]);
        for part in 1..=PARTS {
            let numbers = connected.len()..clients * part / PARTS;
            let first = numbers.start;
            let came = target.connect(numbers, 64, |client| home(client, groups, nodes), 1)?;
            enter(&mut callers, &came, |client| topics(first + client))?;
            connected.extend(came);
            memory.push((connected.len() as f64, mib(target.meter.resident()?)));
        }
        let redis_version = redis_setup.as_ref().and_then(|redis| redis.version.clone());
        let (setup, redis_setup) = (target.meter.cpu()?.since(setup), since(redis()?, redis_setup));

        let mut publisher = Publisher::new(&target.wire(Kind::Group)?, 1, 1, members(clients, groups), epoch)?;
        let dealt =
            connected.into_iter().enumerate().map(|(index, client)| (client, [(index % groups) as u32; 2])).collect();
        let pool = Pool::start(dealt, self.threads, SIZE, epoch, publisher.gate())?;
        pause(self.settle)?;
        let resident_after = target.meter.resident()?;
        let before_settle = pool.take()?;
        let (watched, redis_watched, begin) = (target.meter.cpu()?, redis()?, Instant::now());
        pause(self.seconds)?;
        let (cpu, seconds) = (target.meter.cpu()?.since(watched), begin.elapsed().as_secs_f64());
        let redis_cpu = since(redis()?, redis_watched);
        let pings = pool.take()?;

        let deadline = Duration::from_secs(10);
        let plan = Plan {
            messages: groups as u64,
            pace: Pace::Window(1),
            size: SIZE,
            binary: false,
            joined: false,
            deadline,
            from: None,
        };
        let outcome = publisher.run(&plan)?;
        let mut stats = pool.take()?;
        let delivered = stats.delivered;
        stats.add(&before_settle)?;
        stats.add(&pings)?;

        let over = if target.trust.is_some() { " over TLS" } else { "" };
        let on = if nodes > 1 { format!(" on {nodes} nodes") } else { String::new() };
        let each = |value: f64| value / clients as f64;
        let wrong = stats.duplicates + stats.reordered + stats.misdelivered + stats.closed + outcome.errors;
        let mut report = IdleReport {
            title: format!("idle: {clients} clients{over}{on}, each with a uid and in one of {groups} groups"),
            resident_before,
            resident_after,
            resident_per_connection: each(resident_after as f64 - resident_before as f64),
            cpu_us_per_connection_second: each(cpu.total() as f64) / seconds.max(1e-9),
            redis_cpu_us_per_connection_second: redis_cpu.map(|cpu| each(cpu.total() as f64) / seconds.max(1e-9)),
            setup_cpu_us_per_connection: each(setup.total() as f64),
            redis_setup_cpu_us_per_connection: redis_setup.map(|cpu| each(cpu.total() as f64)),
            pings: pings.pings,
            closed: stats.closed,
            first_close: stats.first_close,
            delivered,
            expected: outcome.expected,
            charts: Vec::new(),
            redis_version,
            pass: wrong == 0 && delivered == clients as u64,
            memory,
        };
        report.charts = report.charts();
        Ok(report)
    }
}

fn since(now: Option<Usage>, before: Option<Usage>) -> Option<Cpu> {
    now.zip(before).map(|(now, before)| now.cpu.since(before.cpu))
}

fn pause(seconds: u64) -> Result<()> {
    let begin = Instant::now();
    progress::phase("watching", seconds);
    while begin.elapsed() < Duration::from_secs(seconds) {
        crate::interrupted()?;
        progress::at(begin.elapsed().as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

impl IdleReport {
    /// Memory over the number of connections, while they came.
    pub(crate) fn charts(&self) -> Vec<Chart> {
        let line = Series { name: "nodes, resident".to_owned(), unit: "MiB", points: self.memory.clone() };
        vec![Chart { title: "idle: memory".to_owned(), across: "connections", lines: vec![line] }]
    }

    /// All of it for a reader.
    pub(crate) fn sheet(&self) -> Sheet {
        let or_dash =
            |figure: Option<f64>, digits| figure.map_or("–".to_owned(), |figure| format!("{figure:.digits$}"));
        let rows = [
            ("resident before, KiB", vec![format!("{:.0}", self.resident_before as f64 / 1024.0)]),
            ("resident after, KiB", vec![format!("{:.0}", self.resident_after as f64 / 1024.0)]),
            ("resident per connection, bytes", vec![format!("{:.0}", self.resident_per_connection)]),
            ("CPU per connection, µs/s", vec![format!("{:.3}", self.cpu_us_per_connection_second)]),
            ("    Redis, for each, µs/s", vec![or_dash(self.redis_cpu_us_per_connection_second, 3)]),
            ("connect + bind + join, µs", vec![format!("{:.1}", self.setup_cpu_us_per_connection)]),
            ("    Redis, for each, µs", vec![or_dash(self.redis_setup_cpu_us_per_connection, 1)]),
            ("pings answered", vec![self.pings.to_string()]),
            ("connections lost", vec![self.closed.to_string()]),
            ("reached at the end", vec![format!("{} of {}", self.delivered, self.expected)]),
        ];
        Sheet {
            title: self.title.clone(),
            facts: self.redis_version.iter().map(|version| ("Redis", version.clone())).collect(),
            rows: rows.map(|(label, cells)| (label.to_owned(), cells)).into(),
            lines: Vec::new(),
            notes: self.first_close.iter().map(|close| format!("the first lost connection: {close}")).collect(),
            fault: (!self.pass).then_some("not everyone was still there"),
            charts: self.charts.clone(),
        }
    }
}
