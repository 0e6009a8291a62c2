//! `storm`: everyone is cut off at once, as when a load balancer restarts, and comes back as fast as the gateway lets them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::churn::{Crowd, Stayed, Stretch, doors};
use crate::clients::{Pool, Stats};
use crate::output::OutputArgs;
use crate::process::{self, Meter};
use crate::progress;
use crate::publish::{Kind, Outcome, Pace, Plan, Publisher};
use crate::report::Latency;
use crate::scenario::members;
use crate::series::{Chart, Series};
use crate::sheet::Sheet;
use crate::target::{Target, TargetArgs};
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
    /// Receiving threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// If nobody comes back for so long, or no message, the rest counts as lost
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    deadline: Duration,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// One storm.
#[derive(Debug, Serialize)]
struct Storm {
    /// Those who were cut off.
    clients: u64,
    /// Those who came back.
    back: u64,
    /// Attempts to come back that were refused or cut off; each was tried again.
    failed_attempts: u64,
    first_failure: Option<String>,
    /// From the cut to the answer that the client is bound and in its group.
    back_ms: Option<Latency>,
    /// µs of server CPU for each return, the leaving before it included.
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
        let cluster = self.target.cluster()?.ok_or("name a gateway: --spawn, or --ws and --api with --pid")?;
        if cluster.tls {
            return Err("--tls: not in this mode".into());
        }
        let spare = 2 * parallel + 64;
        process::raise_descriptors((clients + spare) as u64)?;
        let epoch = Instant::now();
        let target = self.target.open(&cluster)?;
        if target.meter.pids.is_empty() {
            return Err("--pid: without the server's process nothing can be measured".into());
        }
        // those who are cut off may still be there when the first are back
        let nodes = target.nodes.len();
        target.meter.check_descriptors((2 * clients.div_ceil(nodes.max(1)) + spare) as u64)?;
        let others = target.listed()?;

        let (outcome, stats, arrived) = self.gather(&target, 0, Instant::now)?;
        if outcome.gave_up {
            let why = stats.first_close.map_or(String::new(), |why| format!(": {why}"));
            return Err(format!("only {} of {clients} clients came at all{why}", stats.delivered).into());
        }
        let (mut pool, _) = self.settle(&target, arrived, epoch)?;
        target.settled(others, clients as u64)?;
        let mut storms = Vec::new();
        for round in 1..=repeat {
            let (storm, back) = self.storm(&target, round, pool, epoch, others)?;
            pool = back;
            let is_over = storm.back < storm.clients;
            storms.push(storm);
            if is_over {
                break;
            }
        }
        let on = if nodes > 1 { format!(" on {nodes} nodes") } else { String::new() };
        let title = format!(
            "storm: {clients} clients{on}, each with a uid and in one of {groups} groups, are cut off and come back, \
             {parallel} at a time"
        );
        let pass = !storms.iter().any(Storm::is_faulty);
        let mut report = StormReport { title, storms, charts: Vec::new(), pass };
        report.charts = report.charts();
        Ok(report)
    }

    /// Lets everyone come; times count from what `cut` gives, once all is ready for them.
    fn gather(
        &self,
        target: &Target,
        round: usize,
        cut: impl FnOnce() -> Instant,
    ) -> Result<(Outcome, Stats, Vec<Stayed>)> {
        let mut crowd = Crowd::new(&doors(target), self.parallel, self.groups, (round % 250) as u8, 0)?;
        let over = AtomicBool::new(false);
        let (cycles, deadline) = (self.clients as u64, self.deadline);
        progress::phase("connecting", cycles);
        let stretch = Stretch { cycles, rate: None, stay: Some(cut()), over: &over, deadline };
        let (outcome, stats) = crowd.run(&stretch)?;
        Ok((outcome, stats, crowd.take()))
    }

    /// Reads for those who came, and sends one message to each group.
    fn settle(&self, target: &Target, came: Vec<Stayed>, epoch: Instant) -> Result<(Pool, (Outcome, Stats))> {
        let members = members(self.clients, self.groups as usize);
        let mut publisher = Publisher::new(&target.wire(Kind::Group)?, 1, 1, members, epoch)?;
        let group = |number: u64| (number % u64::from(self.groups)) as u32;
        let dealt = came.into_iter().map(|came| (came.client, [group(came.number); 2])).collect();
        let pool = Pool::start(dealt, self.threads, SIZE, epoch, publisher.gate())?;
        let plan = Plan {
            messages: u64::from(self.groups),
            pace: Pace::Window(1),
            size: SIZE,
            binary: false,
            joined: false,
            deadline: self.deadline,
            from: None,
        };
        let outcome = publisher.run(&plan)?;
        let stats = pool.take()?;
        Ok((pool, (outcome, stats)))
    }

    /// Cuts everyone off and waits until they are back.
    fn storm(&self, target: &Target, round: usize, pool: Pool, epoch: Instant, others: u64) -> Result<(Storm, Pool)> {
        // for what the server does behind the last message
        std::thread::sleep(Duration::from_millis(500));
        let (before, spent) = (target.meter.resident()?, target.spent()?);
        let busy = process::own_thread_cpu()?;
        let (mut cut, over) = (Instant::now(), AtomicBool::new(false));
        let (gathered, resident) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| watch(&target.meter, &over));
            let gathered = self.gather(target, round, || {
                cut = Instant::now();
                pool.forsake();
                cut
            });
            over.store(true, Ordering::Relaxed);
            (gathered, watch.join().unwrap_or_default())
        });
        let (outcome, stats, came) = gathered?;
        let busiest = (process::own_thread_cpu()? - busy) as f64 / 1e6 / outcome.wall.as_secs_f64().max(1e-9);
        let mut after: Vec<Duration> = came.iter().map(|came| came.after).collect();
        after.sort();
        let clients = self.clients as u64;
        let listed = target.settled(others, clients)?;
        let used = target.spent()?.since(&spent);
        let resident_after = target.meter.resident()?;
        let (pool, (reached, heard)) = self.settle(target, came, epoch)?;

        let each = |value: u64| value as f64 / stats.delivered.max(1) as f64;
        let resident: Vec<(f64, f64)> = resident
            .into_iter()
            .filter_map(|(at, bytes)| Some((at.checked_duration_since(cut)?.as_secs_f64(), bytes as f64 / MIB)))
            .collect();
        let most = |most: f64, (_, mib): &(f64, f64)| most.max(*mib);
        let storm = Storm {
            clients,
            back: stats.delivered,
            failed_attempts: stats.closed,
            first_failure: stats.first_close,
            back_ms: Latency::of(&stats.latency),
            server_cpu_us: each(used.nodes.map_or(0, process::Cpu::total)),
            redis_cpu_us: used.redis.as_ref().map(|redis| each(redis.cpu.total())),
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
        };
        Ok((storm, pool))
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
    fn is_faulty(&self) -> bool {
        self.back != self.clients
            || self.delivered != self.expected
            || self.listed != self.clients
            || self.misdelivered + self.errors > 0
    }
}

impl StormReport {
    /// Over the seconds since the cut: how many are back, and the memory of the nodes.
    pub(crate) fn charts(&self) -> Vec<Chart> {
        let chart = |title: &str, unit, line: fn(&Lines) -> &Vec<(f64, f64)>| {
            let lines = self.storms.iter().zip(1..).map(|(storm, number)| {
                let points = line(&storm.lines).clone();
                Series { name: format!("storm {number}"), unit, points }
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
        let numbers = (1..=self.storms.len()).map(|number| format!("storm {number}")).collect();
        let latency = |storm: &Storm, figure: fn(&Latency) -> f64| {
            storm.back_ms.as_ref().map_or("–".to_owned(), |latency| format!("{:.0}", figure(latency)))
        };
        row("back", &|storm| format!("{} of {}", storm.back, storm.clients));
        row("failed attempts", &|storm| storm.failed_attempts.to_string());
        row("cut to bound p50, ms", &|storm| latency(storm, |latency| latency.p50));
        row("        p99", &|storm| latency(storm, |latency| latency.p99));
        row("        max", &|storm| latency(storm, |latency| latency.max));
        row("returns/s", &|storm| {
            let seconds = storm.back_ms.as_ref().map_or(f64::INFINITY, |latency| latency.max / 1e3);
            format!("{:.0}", storm.back as f64 / seconds)
        });
        row("server CPU, µs/return", &|storm| format!("{:.1}", storm.server_cpu_us));
        if self.storms.iter().any(|storm| storm.redis_cpu_us.is_some()) {
            row("Redis CPU, µs/return", &|storm| {
                storm.redis_cpu_us.map_or("–".to_owned(), |micros| format!("{micros:.1}"))
            });
            row("Redis commands/return", &|storm| format!("{:.2}", storm.redis_commands.values().sum::<f64>()));
        }
        row("nodes, resident before, MiB", &|storm| format!("{:.1}", storm.resident_before_mib));
        row("        most", &|storm| format!("{:.1}", storm.resident_peak_mib));
        row("        after", &|storm| format!("{:.1}", storm.resident_after_mib));
        row("reached at the end", &|storm| format!("{} of {}", storm.delivered, storm.expected));
        row("doubled or misdelivered", &|storm| storm.misdelivered.to_string());
        row("listed at the end", &|storm| format!("{} of {}", storm.listed, storm.clients));
        row("tester's busiest thread, %", &|storm| format!("{:.0}", storm.tester_busiest_thread * 100.0));
        rows.insert(0, ("", numbers));
        let commands = |(storm, number): (&Storm, usize)| {
            let commands = storm.redis_commands.iter().filter(|(_, count)| **count >= 0.005);
            let commands: Vec<String> = commands.map(|(name, count)| format!("{name} {count:.2}")).collect();
            (!commands.is_empty())
                .then(|| format!("storm {number}, Redis commands per return: {}", commands.join(", ")))
        };
        let notes = |(storm, number): (&Storm, usize)| {
            storm.notes().into_iter().map(move |note| format!("storm {number}: {note}"))
        };
        Sheet {
            title: self.title.clone(),
            facts: Vec::new(),
            rows: rows.into_iter().map(|(label, cells)| (label.to_owned(), cells)).collect(),
            lines: self.storms.iter().zip(1..).filter_map(commands).collect(),
            notes: self.storms.iter().zip(1..).flat_map(notes).collect(),
            fault: (!self.pass).then_some("not everyone is back, reached once, and listed"),
            charts: self.charts.clone(),
        }
    }
}

impl Storm {
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(failure) = &self.first_failure {
            notes.push(format!("{} attempts failed, the first: {failure}", self.failed_attempts));
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
