//! `storm`: everyone is cut off at once, as when a load balancer restarts, and comes back as fast as the gateway lets them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::churn::{Crowd, Stayed, Stretch, slots};
use crate::clients::{Pool, Stats};
use crate::floor::Floor;
use crate::output::OutputArgs;
use crate::process::{self, Cpu, Meter};
use crate::progress;
use crate::publish::{Kind, Outcome, Plan, Publisher};
use crate::report::{Latency, Spread};
use crate::series::{Chart, Series};
use crate::server::{Server, members};
use crate::sheet::Sheet;
use crate::target::TargetArgs;
use crate::{Result, parse_duration};

/// Options of `storm`.
#[derive(Debug, Args)]
pub(crate) struct StormArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Connections, each bound to a uid of its own and in one group
    #[arg(long, default_value_t = 5000)]
    clients: usize,
    /// Groups to which they are dealt
    #[arg(long, default_value_t = 100)]
    groups: u32,
    /// How many come back at a time, each with a kept connection to the API of its node
    #[arg(long, default_value_t = 256)]
    parallel: usize,
    /// Storms
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Others a second, who meanwhile connect for the first time, are bound, and leave
    #[arg(long, default_value_t = 0.0)]
    newcomers: f64,
    /// Run the same against the built-in bare server, in turn
    #[arg(long)]
    floor: bool,
    /// Receiving threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// If nobody comes back for so long, or no message, the rest counts as lost
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    deadline: Duration,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Those who come for the first time in the middle of a storm.
#[derive(Debug, Serialize)]
struct Newcomers {
    came: u64,
    /// Of these, who was refused, cut off, or not bound.
    failed: u64,
    first_failure: Option<String>,
    /// From the scheduled time of connecting to the gateway's first message.
    handshake_ms: Option<Latency>,
    /// To the answer that the client is bound and in its group.
    bound_ms: Option<Latency>,
}

/// One storm.
#[derive(Debug, Serialize)]
struct Storm {
    server: &'static str,
    /// Which of its storms this is, from 1.
    number: usize,
    /// Those who were cut off.
    clients: u64,
    /// Those who came back.
    back: u64,
    /// Attempts to come back that were refused or cut off; each was tried again.
    failed_attempts: u64,
    first_failure: Option<String>,
    /// From the cut to the answer that the client is bound and in its group.
    back_ms: Option<Latency>,
    newcomers: Option<Newcomers>,
    /// µs of server CPU for each return (and newcomer), the leaving before it included.
    server_cpu_us: f64,
    /// The same of Redis.
    redis_cpu_us: Option<f64>,
    /// Commands that Redis carried out for each return, by name.
    redis_commands: BTreeMap<String, f64>,
    /// Resident memory of the nodes together before the cut.
    resident_before_mib: f64,
    /// The most that was seen, looking every 50 ms until all were back.
    resident_peak_mib: f64,
    /// Once all were back and those who left were forgotten.
    resident_after_mib: f64,
    /// Deliveries of a message to each group after that.
    delivered: u64,
    /// As many as clients.
    expected: u64,
    /// Deliveries beyond the first, or to the wrong client.
    misdelivered: u64,
    /// Connections that ended again, and requests answered with an error.
    errors: u64,
    first_error: Option<String>,
    /// Clients that the gateway lists: who was cut off should be forgotten, who is back should not.
    listed: u64,
    /// Share of a core that the tester's busiest thread used.
    tester_busiest_thread: f64,
    #[serde(skip)]
    lines: Lines,
}

/// What is drawn of a storm, over the seconds since the cut.
#[derive(Debug, Default)]
struct Lines {
    back: Vec<(f64, f64)>,
    resident: Vec<(f64, f64)>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct StormReport {
    title: String,
    storms: Vec<Storm>,
    charts: Vec<Chart>,
    /// Everyone came back, is reached once, and is listed, and nobody else is.
    pass: bool,
}

const SIZE: usize = 64;
const MIB: f64 = 1024.0 * 1024.0;
/// Between looks at the memory.
const LOOK: Duration = Duration::from_millis(50);

impl StormArgs {
    /// Runs it.
    pub(crate) fn run(&self) -> Result<StormReport> {
        let Self { clients, groups, parallel, repeat, .. } = *self;
        if groups == 0 || groups as usize > clients {
            return Err("at least one client in each group is needed".into());
        }
        if parallel == 0 || repeat == 0 {
            return Err("--parallel, --repeat: at least 1".into());
        }
        if !(self.newcomers == 0.0 || self.newcomers.is_finite() && self.newcomers >= 0.1) {
            return Err("--newcomers: 0 or at least 0.1 is wanted".into());
        }
        let cluster = self.target.cluster()?.ok_or("name a gateway: --spawn, or --ws and --api with --pid")?;
        if cluster.tls {
            return Err("--tls: not in this mode".into());
        }
        let spare = 2 * (parallel + slots(self.newcomers)) + 64;
        process::raise_descriptors(((clients + spare) * (1 + usize::from(self.floor))) as u64)?;
        let gateway = Server::measured(self.target.open(&cluster)?)?;
        let nodes = gateway.nodes();
        // those who are cut off may still be there when the first are back
        gateway.meter().check_descriptors((2 * clients.div_ceil(nodes.max(1)) + spare) as u64)?;
        let mut sides = vec![self.side("gateway", gateway, 0)?];
        if self.floor {
            sides.push(self.side("floor", Server::Floor(Floor::spawn()?), 1)?);
        }
        let mut storms = Vec::new();
        'storms: for round in 1..=repeat {
            for side in &mut sides {
                let storm = side.storm(round)?;
                let is_over = storm.back < storm.clients;
                storms.push(storm);
                if is_over {
                    break 'storms;
                }
            }
        }
        let on = if nodes > 1 { format!(" on {nodes} nodes") } else { String::new() };
        let title = format!(
            "storm: {clients} clients{on}, each with a uid and in one of {groups} groups, are cut off and come back, \
             {parallel} at a time"
        );
        let newcomers = match self.newcomers {
            0.0 => String::new(),
            rate => format!(", beside {rate} newcomers/s"),
        };
        let pass = !storms.iter().any(Storm::is_faulty);
        let mut report = StormReport { title: title + &newcomers, storms, charts: Vec::new(), pass };
        report.charts = report.charts();
        Ok(report)
    }

    /// Lets everyone come for the first time.
    fn side(&self, name: &'static str, server: Server, number: u8) -> Result<Side<'_>> {
        let others = server.listed()?;
        let mut side = Side { args: self, name, server, number, others, epoch: Instant::now(), pool: None };
        let (outcome, stats, arrived) = side.gather(0, Instant::now)?;
        if outcome.gave_up {
            let (why, clients) = (stats.first_close.map_or(String::new(), |why| format!(": {why}")), self.clients);
            return Err(format!("{name}: only {} of {clients} clients came at all{why}", stats.delivered).into());
        }
        side.settle(arrived)?;
        side.server.settled(others, self.clients as u64)?;
        Ok(side)
    }
}

/// One server with its clients.
struct Side<'a> {
    args: &'a StormArgs,
    name: &'static str,
    server: Server,
    /// Keeps source addresses of the sides apart.
    number: u8,
    /// Clients that it lists beside ours.
    others: u64,
    epoch: Instant,
    /// Those who are there.
    pool: Option<Pool>,
}

impl Side<'_> {
    /// Clients that come in this round, from addresses of their own; no more than 83 rounds share some.
    fn crowd(&self, round: usize, parallel: usize, number: u8, first: u64) -> Result<Crowd> {
        let address = 3 * (round % 80) as u8 + number;
        Crowd::new(&self.server.doors()?, parallel, self.args.groups, address, first)
    }

    /// Lets everyone come; times count from what `cut` gives, once all is ready for them.
    fn gather(&self, round: usize, cut: impl FnOnce() -> Instant) -> Result<(Outcome, Stats, Vec<Stayed>)> {
        let StormArgs { parallel, clients, deadline, .. } = *self.args;
        let mut crowd = self.crowd(round, parallel, self.number, 0)?;
        let over = AtomicBool::new(false);
        progress::phase("connecting", clients as u64);
        let stretch = Stretch { cycles: clients as u64, rate: None, stay: Some(cut()), over: &over, deadline };
        let (outcome, stats) = crowd.run(&stretch)?;
        Ok((outcome, stats, crowd.take()))
    }

    /// Reads for those who came, and sends one message to each group.
    fn settle(&mut self, came: Vec<Stayed>) -> Result<(Outcome, Stats)> {
        let StormArgs { clients, groups, threads, deadline, .. } = *self.args;
        let members = members(clients, groups as usize);
        let mut publisher = Publisher::new(&self.server.wire(Kind::Group)?, 1, 1, members, self.epoch)?;
        let group = |number: u64| (number % u64::from(groups)) as u32;
        let dealt = came.into_iter().map(|came| (came.client, [group(came.number); 2])).collect();
        let pool = Pool::start(dealt, threads, SIZE, self.epoch, publisher.gate())?;
        let outcome = publisher.run(&Plan::to_each(u64::from(groups), SIZE, deadline))?;
        let stats = pool.take()?;
        self.pool = Some(pool);
        Ok((outcome, stats))
    }

    /// Cuts everyone off and waits until they are back.
    fn storm(&mut self, round: usize) -> Result<Storm> {
        let StormArgs { clients, newcomers, deadline, .. } = *self.args;
        // for what the server does behind the last message
        std::thread::sleep(Duration::from_millis(500));
        let pool = self.pool.take().ok_or("nobody is there to be cut off")?;
        let meter = self.server.meter();
        let (before, spent) = (meter.resident()?, self.server.spent()?);
        let busy = process::own_thread_cpu()?;
        let (mut cut, over) = (Instant::now(), AtomicBool::new(false));
        let mut visitors =
            if newcomers > 0.0 { Some(self.crowd(round, slots(newcomers), 2, clients as u64)?) } else { None };
        let stretch = Stretch { cycles: u64::MAX, rate: Some(newcomers), stay: None, over: &over, deadline };
        let (gathered, resident, visits) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| watch(&meter, &over));
            let mut visits = None;
            let gathered = self.gather(round, || {
                visits = visitors.as_mut().map(|visitors| {
                    scope.spawn(|| {
                        progress::aside();
                        visitors.run(&stretch)
                    })
                });
                cut = Instant::now();
                pool.forsake();
                cut
            });
            over.store(true, Ordering::Relaxed);
            let visits =
                visits.map(|visits| visits.join().unwrap_or_else(|_| Err("the newcomers' thread panicked".into())));
            (gathered, watch.join().unwrap_or_default(), visits.transpose())
        });
        let ((outcome, stats, came), visits) = (gathered?, visits?);
        let busiest = (process::own_thread_cpu()? - busy) as f64 / 1e6 / outcome.wall.as_secs_f64().max(1e-9);
        let mut after: Vec<Duration> = came.iter().map(|came| came.after).collect();
        after.sort();
        let clients = clients as u64;
        let listed = self.server.settled(self.others, clients)?;
        let used = self.server.spent()?.since(&spent);
        let resident_after = meter.resident()?;
        let (reached, heard) = self.settle(came)?;

        let newcomers = visits.zip(visitors).map(|((outcome, stats), visitors)| Newcomers {
            came: outcome.published,
            failed: outcome.errors.max(outcome.published.saturating_sub(stats.delivered)),
            first_failure: outcome.first_error.or(stats.first_close),
            handshake_ms: Latency::of(visitors.handshakes()),
            bound_ms: Latency::of(&stats.latency),
        });
        let bound = stats.delivered + newcomers.as_ref().map_or(0, |newcomers| newcomers.came);
        let each = |value: u64| value as f64 / bound.max(1) as f64;
        let resident: Vec<(f64, f64)> = resident
            .into_iter()
            .filter_map(|(at, bytes)| Some((at.checked_duration_since(cut)?.as_secs_f64(), bytes as f64 / MIB)))
            .collect();
        let most = |most: f64, (_, mib): &(f64, f64)| most.max(*mib);
        Ok(Storm {
            server: self.name,
            number: round,
            clients,
            back: stats.delivered,
            failed_attempts: stats.closed,
            first_failure: stats.first_close,
            back_ms: Latency::of(&stats.latency),
            newcomers,
            server_cpu_us: each(used.nodes.map_or(0, Cpu::total)),
            redis_cpu_us: used.redis.as_ref().map(|redis| each(redis.cpu().total())),
            redis_commands: used
                .redis
                .into_iter()
                .flat_map(|redis| redis.calls)
                .map(|(name, calls)| (name, each(calls)))
                .collect(),
            resident_before_mib: before as f64 / MIB,
            resident_peak_mib: resident.iter().fold(resident_after as f64 / MIB, most),
            resident_after_mib: resident_after as f64 / MIB,
            delivered: heard.delivered,
            expected: clients,
            misdelivered: heard.duplicates + heard.reordered + heard.misdelivered,
            errors: reached.errors + heard.closed,
            first_error: reached.first_error.or(heard.first_close),
            listed,
            tester_busiest_thread: busiest,
            lines: Lines { back: thinned(&after), resident },
        })
    }
}

/// Looks at the memory until it is `over`, and then once more.
fn watch(meter: &Meter, over: &AtomicBool) -> Vec<(Instant, u64)> {
    let mut seen = Vec::new();
    loop {
        let last = over.load(Ordering::Relaxed);
        // a node that has gone is noticed by others
        seen.extend(meter.resident().ok().map(|bytes| (Instant::now(), bytes)));
        if last {
            return seen;
        }
        std::thread::sleep(LOOK);
    }
}

/// How many there were at some of these times.
fn thinned(times: &[Duration]) -> Vec<(f64, f64)> {
    let step = times.len().div_ceil(100).max(1);
    let points = times.iter().zip(1u32..).filter(|(_, count)| (*count as usize).is_multiple_of(step) || *count == 1);
    let last = times.last().map(|time| (time.as_secs_f64(), times.len() as f64));
    let mut points: Vec<(f64, f64)> = points.map(|(time, count)| (time.as_secs_f64(), f64::from(count))).collect();
    points.extend(last.filter(|last| points.last() != Some(last)));
    points
}

impl Storm {
    /// For the reader, who need not be told of the gateway where there is nothing else.
    fn name(&self) -> String {
        let Self { server, number, .. } = self;
        if *server == "gateway" { format!("storm {number}") } else { format!("{server}, storm {number}") }
    }

    /// µs for each return, Redis included.
    fn together(&self) -> f64 {
        self.server_cpu_us + self.redis_cpu_us.unwrap_or(0.0)
    }

    /// Until the last was back, ms.
    fn all_back(&self) -> Option<f64> {
        Some(self.back_ms.as_ref()?.max)
    }

    fn is_faulty(&self) -> bool {
        self.back != self.clients
            || self.delivered != self.expected
            || self.listed != self.clients
            || self.misdelivered + self.errors > 0
            || self.newcomers.as_ref().is_some_and(|newcomers| newcomers.failed > 0)
    }
}

impl StormReport {
    /// p99 of the newcomers' handshakes with the gateway, storm by storm, ms.
    pub(crate) fn handshake_p99(&self) -> Option<Spread> {
        let storms = self.storms.iter().filter(|storm| storm.server == "gateway");
        Spread::of(storms.filter_map(|storm| Some(storm.newcomers.as_ref()?.handshake_ms.as_ref()?.p99)))
    }

    /// Over the seconds since the cut: how many are back, and the memory of the nodes.
    pub(crate) fn charts(&self) -> Vec<Chart> {
        let chart = |title: &str, unit, line: fn(&Lines) -> &Vec<(f64, f64)>| {
            let lines = self.storms.iter().map(|storm| {
                let points = line(&storm.lines).clone();
                Series { name: storm.name(), unit, points }
            });
            let lines: Vec<Series> = lines.filter(|line| !line.points.is_empty()).collect();
            (!lines.is_empty()).then(|| Chart { title: format!("storm: {title}"), across: "seconds", lines })
        };
        let back = chart("clients that are back", "", |lines| &lines.back);
        back.into_iter().chain(chart("memory of the nodes, resident", "MiB", |lines| &lines.resident)).collect()
    }

    /// All of it for a reader.
    pub(crate) fn sheet(&self) -> Sheet {
        let mut rows: Vec<(&str, Vec<String>)> = Vec::new();
        let mut row = |label, figure: &dyn Fn(&Storm) -> String| {
            rows.push((label, self.storms.iter().map(figure).collect()));
        };
        let names = self.storms.iter().map(Storm::name).collect();
        let millis = |latency: Option<&Latency>, figure: fn(&Latency) -> f64| {
            latency.map_or("–".to_owned(), |latency| format!("{:.0}", figure(latency)))
        };
        let latency = |storm: &Storm, figure| millis(storm.back_ms.as_ref(), figure);
        row("back", &|storm| format!("{} of {}", storm.back, storm.clients));
        row("failed attempts", &|storm| storm.failed_attempts.to_string());
        row("cut to bound p50, ms", &|storm| latency(storm, |latency| latency.p50));
        row("        p99", &|storm| latency(storm, |latency| latency.p99));
        row("        max", &|storm| latency(storm, |latency| latency.max));
        row("returns/s", &|storm| {
            let seconds = storm.back_ms.as_ref().map_or(f64::INFINITY, |latency| latency.max / 1e3);
            format!("{:.0}", storm.back as f64 / seconds)
        });
        if self.storms.iter().any(|storm| storm.newcomers.is_some()) {
            let handshake = |storm: &Storm, figure| {
                millis(storm.newcomers.as_ref().and_then(|newcomers| newcomers.handshake_ms.as_ref()), figure)
            };
            row("newcomers", &|storm| {
                storm.newcomers.as_ref().map_or("–".to_owned(), |newcomers| newcomers.came.to_string())
            });
            row("    their handshake p50, ms", &|storm| handshake(storm, |latency| latency.p50));
            row("        p99", &|storm| handshake(storm, |latency| latency.p99));
            row("        max", &|storm| handshake(storm, |latency| latency.max));
        }
        row("server CPU, µs/return", &|storm| format!("{:.1}", storm.server_cpu_us));
        if self.storms.iter().any(|storm| storm.redis_cpu_us.is_some()) {
            row("Redis CPU, µs/return", &|storm| {
                storm.redis_cpu_us.map_or("–".to_owned(), |micros| format!("{micros:.1}"))
            });
            row("Redis commands/return", &|storm| {
                let commands = || format!("{:.2}", storm.redis_commands.values().sum::<f64>());
                storm.redis_cpu_us.map_or("–".to_owned(), |_| commands())
            });
        }
        row("nodes, resident before, MiB", &|storm| format!("{:.1}", storm.resident_before_mib));
        row("        most", &|storm| format!("{:.1}", storm.resident_peak_mib));
        row("        after", &|storm| format!("{:.1}", storm.resident_after_mib));
        row("reached at the end", &|storm| format!("{} of {}", storm.delivered, storm.expected));
        row("doubled or misdelivered", &|storm| storm.misdelivered.to_string());
        row("listed at the end", &|storm| format!("{} of {}", storm.listed, storm.clients));
        row("tester's busiest thread, %", &|storm| format!("{:.0}", storm.tester_busiest_thread * 100.0));
        rows.insert(0, ("", names));
        let commands = |storm: &Storm| {
            let commands = storm.redis_commands.iter().filter(|(_, count)| **count >= 0.005);
            let commands: Vec<String> = commands.map(|(name, count)| format!("{name} {count:.2}")).collect();
            (!commands.is_empty())
                .then(|| format!("{}, Redis commands per return: {}", storm.name(), commands.join(", ")))
        };
        let notes = |storm: &Storm| {
            let name = storm.name();
            storm.notes().into_iter().map(move |note| format!("{name}: {note}"))
        };
        Sheet {
            title: self.title.clone(),
            facts: Vec::new(),
            rows: rows.into_iter().map(|(label, cells)| (label.to_owned(), cells)).collect(),
            lines: self.storms.iter().filter_map(commands).chain(self.ratios()).collect(),
            notes: self.storms.iter().flat_map(notes).collect(),
            fault: (!self.pass).then_some("not everyone is back, reached once, and listed"),
            charts: self.charts.clone(),
        }
    }
}

impl StormReport {
    /// The gateway and its Redis beside the bare server, storm by storm.
    fn ratios(&self) -> Vec<String> {
        let of = |server| self.storms.iter().filter(move |storm| storm.server == server);
        let ratio = |what: &str, figure: &dyn Fn(&Storm) -> Option<f64>| {
            let pairs = of("gateway").zip(of("floor"));
            let ratios = pairs.filter_map(|(gateway, floor)| Some(figure(gateway)? / figure(floor)?));
            Some(format!("gateway ÷ floor, {what}: {}", Spread::of(ratios.filter(|ratio| ratio.is_finite()))?.words(2)))
        };
        let cpu = ratio("CPU per return", &|storm| Some(storm.together()));
        cpu.into_iter().chain(ratio("until everyone was back", &Storm::all_back)).collect()
    }
}

impl Storm {
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(failure) = &self.first_failure {
            notes.push(format!("{} attempts failed, the first: {failure}", self.failed_attempts));
        }
        if let Some((newcomers, failure)) =
            self.newcomers.as_ref().and_then(|newcomers| Some((newcomers, newcomers.first_failure.as_ref()?)))
        {
            notes.push(format!("{} newcomers failed, the first: {failure}", newcomers.failed));
        }
        if let Some(error) = &self.first_error {
            notes.push(format!("{} errors behind it, the first: {error}", self.errors));
        }
        if self.tester_busiest_thread > 0.9 {
            notes.push(format!(
                "THE TESTER WAS THE BOTTLENECK, a thread of it used {:.0} % of a core: the times are its own, CPU per return \
                 still counts",
                self.tester_busiest_thread * 100.0
            ));
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_those_who_are_back_ends_with_the_last() {
        assert_eq!(thinned(&[]), []);
        let second = Duration::from_secs;
        assert_eq!(thinned(&[second(1), second(3)]), [(1.0, 1.0), (3.0, 2.0)]);
        let many: Vec<Duration> = (1..=1005).map(Duration::from_secs).collect();
        let points = thinned(&many);
        assert!(points.len() < 110, "{}", points.len());
        assert_eq!((points[0], points.last()), ((1.0, 1.0), Some(&(1005.0, 1005.0))));
    }
}
