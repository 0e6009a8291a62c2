//! `idle`: what a connection costs that only is there, bound to a uid and in one group.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::clients::Pool;
use crate::floor::{Floor, Heartbeat};
use crate::output::OutputArgs;
use crate::process::{self, Cpu};
use crate::progress;
use crate::publish::{Kind, Plan, Publisher};
use crate::redis::{Redis, Usage};
use crate::series::{Chart, Series};
use crate::server::{Server, home, members};
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
    /// Run the same against the built-in bare server afterwards; it pings as often as a started gateway is told to
    #[arg(long)]
    floor: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct IdleReport {
    title: String,
    /// The gateway, and the bare server where it was wanted.
    servers: Vec<Idle>,
    charts: Vec<Chart>,
    /// Nobody lost.
    pass: bool,
}

/// What a server's connections cost it.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    name: &'static str,
    /// Resident memory of the server before the clients, bytes.
    resident_before: u64,
    /// With all of them, settled.
    resident_after: u64,
    /// The difference for each client, bytes.
    pub(crate) resident_per_connection: f64,
    /// `used_memory` of Redis for each client, bytes.
    redis_memory_per_connection: Option<f64>,
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
    /// Which Redis there was.
    redis_version: Option<String>,
    /// Nobody lost.
    #[serde(skip)]
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
        let cluster = self.target.cluster()?.ok_or("name a gateway: --spawn, or --ws and --api with --pid")?;
        let heartbeat = self.target.heartbeat()?;
        let gateway = Server::measured(self.target.open(&cluster)?)?;
        let over = if cluster.tls { " over TLS" } else { "" };
        let on = if gateway.nodes() > 1 { format!(" on {} nodes", gateway.nodes()) } else { String::new() };
        let title = format!("idle: {clients} clients{over}{on}, each with a uid and in one of {groups} groups");
        let mut servers = vec![self.measure("gateway", &gateway, None)?];
        drop(gateway);
        if self.floor {
            let floor = Floor::spawn()?;
            let beats = heartbeat.map(|every| (floor.control, every));
            servers.push(self.measure("floor", &Server::Floor(floor), beats)?);
        }
        let pass = servers.iter().all(|idle| idle.pass);
        let mut report = IdleReport { title, servers, charts: Vec::new(), pass };
        report.charts = report.charts();
        Ok(report)
    }

    fn measure(&self, name: &'static str, server: &Server, beats: Option<(SocketAddr, Duration)>) -> Result<Idle> {
        let Self { clients, groups, .. } = *self;
        let epoch = Instant::now();
        let nodes = server.nodes();
        // the bare server's topics are numbered through
        let topics = |client| [(client % groups) as u32, (groups + client) as u32];
        let home = |client| home(client, groups, nodes);

        // one visitor on each node first: what the server allocates once for all is no cost of a connection
        let visitors = server.connect(0..nodes, 64, |client| client, 1)?;
        server.enter(&visitors, topics)?;
        drop(visitors);
        std::thread::sleep(Duration::from_millis(200));

        let meter = server.meter();
        let redis_memory = || server.redis().map(Redis::memory).transpose();
        let (resident_before, redis_before, before) = (meter.resident()?, redis_memory()?, server.spent()?);
        let (mut connected, mut memory) = (Vec::with_capacity(clients), vec![(0.0, mib(resident_before))]);
        for part in 1..=PARTS {
            let numbers = connected.len()..clients * part / PARTS;
            let first = numbers.start;
            let came = server.connect(numbers, 64, home, 1)?;
            server.enter(&came, |client| topics(first + client))?;
            connected.extend(came);
            memory.push((connected.len() as f64, mib(meter.resident()?)));
        }
        let setup = server.spent()?.since(&before);

        let mut publisher = Publisher::new(&server.wire(Kind::Group)?, 1, 1, members(clients, groups), epoch)?;
        let dealt =
            connected.into_iter().enumerate().map(|(index, client)| (client, [(index % groups) as u32; 2])).collect();
        let pool = Pool::start(dealt, self.threads, SIZE, epoch, publisher.gate())?;
        let mut heartbeat = beats.map(|(control, every)| Heartbeat::new(control, groups, every)).transpose()?;
        pause(self.settle, heartbeat.as_mut())?;
        let (resident_after, redis_after) = (meter.resident()?, redis_memory()?);
        let before_settle = pool.take()?;
        let (before, begin) = (server.spent()?, Instant::now());
        pause(self.seconds, heartbeat.as_mut())?;
        let (watched, seconds) = (server.spent()?.since(&before), begin.elapsed().as_secs_f64());
        let pings = pool.take()?;

        let outcome = publisher.run(&Plan::to_each(groups as u64, SIZE, Duration::from_secs(10)))?;
        let mut stats = pool.take()?;
        let delivered = stats.delivered;
        stats.add(&before_settle)?;
        stats.add(&pings)?;

        let each = |value: f64| value / clients as f64;
        let micros = |cpu: Option<Cpu>| each(cpu.unwrap_or_default().total() as f64);
        let redis_cpu = |redis: &Option<Usage>| redis.as_ref().map(|redis| each(redis.cpu().total() as f64));
        let wrong = stats.duplicates + stats.reordered + stats.misdelivered + stats.closed + outcome.errors;
        Ok(Idle {
            name,
            resident_before,
            resident_after,
            resident_per_connection: each(resident_after as f64 - resident_before as f64),
            redis_memory_per_connection: redis_after
                .zip(redis_before)
                .map(|(after, before)| each(after as f64 - before as f64)),
            cpu_us_per_connection_second: micros(watched.nodes) / seconds.max(1e-9),
            redis_cpu_us_per_connection_second: redis_cpu(&watched.redis).map(|micros| micros / seconds.max(1e-9)),
            setup_cpu_us_per_connection: micros(setup.nodes),
            redis_setup_cpu_us_per_connection: redis_cpu(&setup.redis),
            pings: pings.pings,
            closed: stats.closed,
            first_close: stats.first_close,
            delivered,
            expected: outcome.expected,
            redis_version: before.redis.and_then(|redis| redis.version),
            pass: wrong == 0 && delivered == clients as u64,
            memory,
        })
    }
}

fn pause(seconds: u64, mut heartbeat: Option<&mut Heartbeat>) -> Result<()> {
    let begin = Instant::now();
    progress::phase("watching", seconds);
    while begin.elapsed() < Duration::from_secs(seconds) {
        crate::interrupted()?;
        progress::at(begin.elapsed().as_secs());
        heartbeat.as_mut().map_or(Ok(()), |heartbeat| heartbeat.beat())?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

impl IdleReport {
    /// What the gateway's connections cost it.
    pub(crate) fn gateway(&self) -> Option<&Idle> {
        self.servers.first()
    }

    /// Memory over the number of connections, while they came.
    pub(crate) fn charts(&self) -> Vec<Chart> {
        let line =
            |idle: &Idle| Series { name: format!("{}, resident", idle.name), unit: "MiB", points: idle.memory.clone() };
        let lines = self.servers.iter().map(line).collect();
        vec![Chart { title: "idle: memory".to_owned(), across: "connections", lines }]
    }

    /// All of it for a reader.
    pub(crate) fn sheet(&self) -> Sheet {
        let mut rows: Vec<(String, Vec<String>)> = Vec::new();
        let mut row = |label: &str, figure: &dyn Fn(&Idle) -> String| {
            rows.push((label.to_owned(), self.servers.iter().map(figure).collect()));
        };
        let or_dash =
            |figure: Option<f64>, digits| figure.map_or("–".to_owned(), |figure| format!("{figure:.digits$}"));
        if self.servers.len() > 1 {
            row("", &|idle| idle.name.to_owned());
        }
        row("resident before, KiB", &|idle| format!("{:.0}", idle.resident_before as f64 / 1024.0));
        row("resident after, KiB", &|idle| format!("{:.0}", idle.resident_after as f64 / 1024.0));
        row("resident per connection, bytes", &|idle| format!("{:.0}", idle.resident_per_connection));
        row("    Redis, memory for each, bytes", &|idle| or_dash(idle.redis_memory_per_connection, 0));
        row("CPU per connection, µs/s", &|idle| format!("{:.3}", idle.cpu_us_per_connection_second));
        row("    Redis, for each, µs/s", &|idle| or_dash(idle.redis_cpu_us_per_connection_second, 3));
        row("connect + bind + join, µs", &|idle| format!("{:.1}", idle.setup_cpu_us_per_connection));
        row("    Redis, for each, µs", &|idle| or_dash(idle.redis_setup_cpu_us_per_connection, 1));
        row("pings answered", &|idle| idle.pings.to_string());
        row("connections lost", &|idle| idle.closed.to_string());
        row("reached at the end", &|idle| format!("{} of {}", idle.delivered, idle.expected));
        let note = |idle: &Idle| {
            idle.first_close.as_ref().map(|close| format!("{}, the first lost connection: {close}", idle.name))
        };
        let version = self.servers.iter().find_map(|idle| idle.redis_version.clone());
        Sheet {
            title: self.title.clone(),
            facts: version.into_iter().map(|version| ("Redis", version)).collect(),
            rows,
            lines: self.ratios(),
            notes: self.servers.iter().filter_map(note).collect(),
            fault: (!self.pass).then_some("not everyone was still there"),
            charts: self.charts.clone(),
        }
    }

    /// The gateway, and its Redis, beside the bare server.
    fn ratios(&self) -> Vec<String> {
        let [gateway, floor] = self.servers.as_slice() else {
            return Vec::new();
        };
        let together = |nodes: f64, redis: Option<f64>| nodes + redis.unwrap_or(0.0);
        let cpu = |idle: &Idle| together(idle.cpu_us_per_connection_second, idle.redis_cpu_us_per_connection_second);
        let setup = |idle: &Idle| together(idle.setup_cpu_us_per_connection, idle.redis_setup_cpu_us_per_connection);
        let figures = [
            ("resident per connection", gateway.resident_per_connection, floor.resident_per_connection),
            ("CPU per connection and second", cpu(gateway), cpu(floor)),
            ("connect + bind + join", setup(gateway), setup(floor)),
        ];
        // to a figure that is below what the kernel counts there is no ratio
        let told = figures.into_iter().filter(|(_, _, floor)| *floor > 0.0);
        told.map(|(what, gateway, floor)| format!("gateway ÷ floor, {what}: {:.2}", gateway / floor)).collect()
    }
}
