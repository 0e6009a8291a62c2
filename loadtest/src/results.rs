//! What came of the standard set: Markdown with its tables, the goals beside them, and pictures.

use std::fmt::Write as _;
use std::time::Duration;

use crate::Findings;
use crate::bench::Section;
use crate::report::{BEYOND, CPU, Contestant, P50, P99, Report, Spread, Unit};
use crate::sheet::Sheet;
use crate::svg::{self, Place};

/// A row of the set, run.
pub(crate) struct Done {
    /// Of its files.
    pub(crate) name: &'static str,
    /// For the reader.
    pub(crate) words: String,
    /// To be pasted.
    pub(crate) command: String,
    /// Or why there are none.
    pub(crate) findings: Result<Findings, String>,
}

/// A section and its rows.
pub(crate) type Table = (&'static Section, Vec<Done>);

const PLAIN: &str = "floor, plain";
const JOINED: &str = "floor, joined";
const RAW: &str = "raw Redis";
/// Rows whose charts are pictures in Markdown.
const PICTURES: [&str; 5] = ["fan-1000", "rate", "latency", "storm", "idle"];

impl Done {
    fn rounds(&self) -> Option<&Report> {
        match &self.findings {
            Ok(Findings::Rounds(report)) => Some(report),
            _ => None,
        }
    }

    fn sheet(&self) -> Option<Sheet> {
        self.findings.as_ref().ok().map(Findings::sheet)
    }
}

fn ratio(report: &Report, figure: &str, server: &str, divisor: &str) -> Option<Spread> {
    let mut ratios = report.ratios.iter();
    let found = ratios.find(|ratio| ratio.figure == figure && ratio.server == server && ratio.divisor == divisor);
    found.map(|comparison| comparison.ratio)
}

/// What is wanted of a figure, at most, and what it is.
struct Goal {
    what: String,
    must: Option<f64>,
    aim: Option<f64>,
    unit: &'static str,
    measured: Option<Spread>,
    /// Over a figure that was not measured in this run.
    derived: bool,
}

impl Goal {
    fn new(what: impl Into<String>, must: f64, aim: impl Into<Option<f64>>, unit: &'static str) -> Self {
        Self { what: what.into(), must: Some(must), aim: aim.into(), unit, measured: None, derived: false }
    }

    fn is(self, measured: Option<Spread>) -> Self {
        Self { measured, ..self }
    }
}

impl Spread {
    fn times(self, factor: f64) -> Self {
        Self { median: self.median * factor, min: self.min * factor, max: self.max * factor }
    }
}

/// The rows by name.
struct Rows<'a>(Vec<&'a Done>);

impl Rows<'_> {
    fn find(&self, name: &str) -> Option<&Done> {
        self.0.iter().copied().find(|done| done.name == name)
    }

    /// Of the first gateway of a row that is compared with `divisor`.
    fn ratio(&self, name: &str, figure: &str, divisor: &str) -> Option<Spread> {
        let mut ratios = self.find(name)?.rounds()?.ratios.iter();
        Some(ratios.find(|ratio| ratio.figure == figure && ratio.divisor == divisor)?.ratio)
    }

    fn floor(&self, name: &str) -> Option<Spread> {
        self.ratio(name, CPU, PLAIN)
    }

    /// The largest, if all were measured, with the words of its row.
    fn worst(&self, names: &[&str]) -> Option<(Spread, &str)> {
        let rows = names.iter().map(|name| Some((self.floor(name)?, &*self.find(name)?.words)));
        let rows: Option<Vec<(Spread, &str)>> = rows.collect();
        rows?.into_iter().max_by(|(one, _), (other, _)| one.median.total_cmp(&other.median))
    }

    /// Of the first gateway of a row.
    fn gateway(&self, name: &str, figure: impl Fn(&Contestant) -> Option<Spread>) -> Option<Spread> {
        let mut servers = self.find(name)?.rounds()?.servers.iter();
        figure(servers.find(|server| server.is_gateway())?)
    }

    /// Bytes and µs/s of an idle connection.
    fn idle(&self, name: &str) -> Option<(Spread, Spread)> {
        match self.find(name)?.findings.as_ref().ok()? {
            Findings::Idle(report) => {
                let gateway = report.gateway()?;
                Some((
                    Spread::of([gateway.resident_per_connection].into_iter())?,
                    Spread::of([gateway.cpu_us_per_connection_second].into_iter())?,
                ))
            }
            _ => None,
        }
    }

    /// p99 of their handshakes, storm by storm, ms.
    fn newcomers(&self, name: &str) -> Option<Spread> {
        match self.find(name)?.findings.as_ref().ok()? {
            Findings::Storm(report) => report.handshake_p99(),
            _ => None,
        }
    }

    /// What is fast here, and whether it is so.
    fn goals(&self) -> Vec<Goal> {
        let (delivery, two) = (|what: &str| Goal::new(what, 1.3, 1.15, "×"), |what| Goal::new(what, 1.15, 1.05, "×"));
        let worst = |what: &str, names: &[&str]| {
            let worst = self.worst(names);
            let which = worst.map_or(String::new(), |(_, words)| format!(" ({words})"));
            delivery(&format!("the worst of {what} ÷ floor{which}")).is(worst.map(|(ratio, _)| ratio))
        };
        let nodes = |name| self.ratio(name, CPU, "gateway, 1 node");
        // what others cost beside a floor like ours, when they were measured in November 2026: see ANALYSIS.md
        let others = |what: &str, must, aim, name, theirs: f64, floor: f64| Goal {
            derived: true,
            ..Goal::new(what, must, aim, "×").is(self.floor(name).map(|ratio| ratio.times(floor / theirs)))
        };
        let grown = |large, small| {
            let words = |name| self.find(name).map_or(name, |done| &*done.words);
            let ratio = self.floor(large).zip(self.floor(small)).map(|(large, small)| large.times(1.0 / small.median));
            Goal::new(format!("{} beside {}, ratios to the floor", words(large), words(small)), 1.2, None, "×")
                .is(ratio)
        };
        let idle = |what: &str, name| Goal::new(what, 4096.0, 2560.0, "bytes").is(self.idle(name).map(|idle| idle.0));
        let faults = self.0.iter().filter(|done| done.sheet().is_none_or(|sheet| sheet.fault.is_some())).count();
        vec![
            delivery("a delivery, 1,000 in one group ÷ floor").is(self.floor("fan-1000")),
            delivery("a delivery, 5,000 in one group ÷ floor").is(self.floor("fan-5000")),
            delivery("a delivery, 100 groups of 10 ÷ floor").is(self.floor("groups-100")),
            delivery("a delivery, the largest group ÷ floor").is(self.floor("fan-10000")),
            worst("all sizes and forms over HTTP", &["http-16", "http-binary", "http-1k", "http-16k", "http-64k"]),
            worst(
                "all sizes and forms through Redis",
                &["redis-16", "redis-binary", "redis-1000", "redis-1k", "redis-16k", "redis-64k"],
            ),
            delivery("groups of one, about 100 in a message, over HTTP ÷ floor").is(self.floor("groups-apart")),
            delivery("groups of one, about 100 in a message, through Redis ÷ floor")
                .is(self.floor("redis-groups-apart")),
            delivery("groups of one, each a message of its own, over HTTP ÷ floor ²").is(self.floor("groups-10000")),
            delivery("groups of one, each a message of its own, through Redis ÷ floor ²")
                .is(self.floor("redis-groups-10000")),
            others("1,000 in one group ÷ GatewayWorker 4 ¹", 1.0, 0.85, "fan-1000", 5.29, 3.98),
            others("5,000 in one group ÷ GatewayWorker 4 ¹", 1.0, 0.85, "fan-5000", 7.67, 5.96),
            others("1,000 in one group ÷ sockudo 5 ¹", 0.65, 0.5, "fan-1000", 7.90, 3.98),
            others("5,000 in one group ÷ sockudo 5 ¹", 0.65, 0.5, "fan-5000", 11.9, 5.96),
            Goal::new("one uid, Redis and all ÷ GatewayWorker 4: in ANALYSIS.md", 1.0, 0.8, "×"),
            Goal::new("4 messages waiting ÷ floor", 1.0, None, "×").is(self.floor("backlog-4")),
            Goal {
                must: None,
                ..Goal::new("4 messages waiting ÷ joined floor", 0.0, 1.3, "×").is(self.ratio("backlog-4", CPU, JOINED))
            },
            Goal::new("user-space part of a delivery", 0.5, 0.3, "µs").is(self.gateway("fan-1000", Contestant::user)),
            two("two nodes ÷ one: 1,000 in one group, Redis").is(nodes("redis-1000")),
            two("two nodes ÷ one: 4 waiting, Redis").is(nodes("redis-backlog-4")),
            two("two nodes ÷ one: one uid of 5,000, Redis").is(nodes("redis-uid-5000")),
            two("two nodes ÷ one: coming and going, 64 at each").is(nodes("churn-each")),
            two("the same, 64 in all").is(nodes("churn")),
            Goal::new("coming and going, with Redis", 130.0, 90.0, "µs")
                .is(self.gateway("churn", Contestant::together)),
            idle("an idle connection", "idle"),
            idle("an idle connection, Redis", "idle-redis"),
            Goal::new("CPU of an idle connection, 25 s heartbeats", 2.0, 1.0, "µs/s")
                .is(self.idle("idle-heartbeats").map(|idle| idle.1)),
            Goal::new("a delivery over TLS ÷ plain", 2.0, 1.5, "×").is(self.ratio("tls-1000", CPU, "gateway plain")),
            Goal::new("to another node, 1,000/s, p50 ÷ bare Redis", 2.0, 1.5, "×").is(self.ratio("latency", P50, RAW)),
            Goal::new("the same, p99 beyond 2 × bare Redis", 1.0, None, "ms").is(self.ratio("latency", BEYOND, RAW)),
            Goal::new("p99 beside a client that never reads ÷ without it", 1.2, None, "×")
                .is(self.ratio("slow", P99, "gateway")),
            Goal::new("handshake of newcomers while 10,000 come back, p99", 250.0, None, "ms")
                .is(self.newcomers("storm-10000")),
            grown("fan-10000", "fan-1000"),
            grown("redis-uid-5000", "redis-uid-500"),
            grown("redis-groups-10000", "redis-groups-1000"),
            Goal::new("runs with anything lost, doubled or out of order", 0.0, None, "")
                .is(Spread::of([faults as f64].into_iter())),
        ]
    }
}

impl Goal {
    fn line(&self) -> String {
        let median = self.measured.map(|measured| measured.median);
        let digits = if median.is_some_and(|value| value.abs() >= 20.0 || self.unit.is_empty()) { 0 } else { 2 };
        let unit = |words: String| format!("{words} {}", self.unit).trim_end().to_owned();
        let limit = |limit: Option<f64>| limit.map_or("–".to_owned(), |limit| unit(format!("≤ {limit:.digits$}")));
        let is_met = |limit: Option<f64>| limit.map(|limit| median.map(|value| value <= limit));
        let verdict = match (is_met(self.must), is_met(self.aim)) {
            (Some(None), _) | (_, Some(None)) | (None, None) => "not measured",
            (Some(Some(false)), _) => "**missed**",
            (_, Some(Some(false))) => "aim missed",
            (_, Some(Some(true))) => "met, the aim too",
            (Some(Some(true)), None) => "met",
        };
        let verdict = if self.derived { format!("derived: {verdict}") } else { verdict.to_owned() };
        let measured = self.measured.map_or("–".to_owned(), |measured| unit(measured.words(digits)));
        format!("| {} | {} | {} | {measured} | {verdict} |\n", cell(&self.what), limit(self.must), limit(self.aim))
    }
}

/// The whole document.
pub(crate) fn markdown(sections: &[Table], facts: &[(&'static str, String)], quick: bool, took: Duration) -> String {
    let mut out = String::from("# Results\n\n");
    if quick {
        out.push_str(
            "**A quick try with few clients and messages: its figures say nothing, its labels promise more.**\n\n",
        );
    }
    out.push_str(
        "Written by `make bench`: one node alone, and one and two nodes with a Redis of their own, beside the bare server of \
         `--floor` and bare\nRedis, in turns, in one sitting. **Read the ratios**: absolute figures of a shared machine drift by \
         a third between two runs of the same binary;\nhow to read them is told [in the README](README.md#how-to-read-the-ratio), \
         what dominates them, and what was tried, [in ANALYSIS.md](ANALYSIS.md).\n\n| | |\n| --- | --- |\n",
    );
    let minutes = format!("{:.0} minutes", took.as_secs_f64() / 60.0);
    for (name, value) in facts.iter().chain([&("took", minutes)]) {
        writeln!(out, "| {name} | {} |", cell(value)).ok();
    }
    out.push_str(
        "\nGateway, Redis, floor and tester share the processors, over loopback. With `--pin` the tester has the last one to \
         itself, and the servers the others: on two\nprocessors a node then has one shard, and two nodes share one processor. \
         Messages have 128 bytes unless a row says otherwise. Redis keeps nothing on disk.\n`make bench` builds the gateway as \
         its image has it, but for the C library. Each figure: median (range) of the rounds; latency is that of all\nrounds; \
         where the notes at the end say that the tester was the bottleneck, as it is where both sides' price of a message is the \
         same and each has one processor, it\nis the tester's own: *Latency under a given load* tells the gateway's. CPU is that of the server, user and system, for each delivery or cycle. *÷ floor* and *÷ the first*, the first server \
         of the same run, compare\nnodes and Redis together.\n\n",
    );
    let rows = Rows(sections.iter().flat_map(|(_, rows)| rows).collect());
    let faulty: Vec<String> = rows.0.iter().filter_map(|done| fault(done)).collect();
    if faulty.is_empty() {
        out.push_str("Nothing was lost or doubled in any run, nor out of order where an order is promised.\n");
    } else {
        writeln!(out, "**Not all is well:**\n\n{}", faulty.join("\n")).ok();
    }
    out.push_str("\n## The goals\n\n| | must | aim | measured | |\n| --- | --- | --- | --- | --- |\n");
    rows.goals().iter().for_each(|goal| out.push_str(&goal.line()));
    out.push_str(
        "\n¹ By way of the floor: the ratio to the floor in this run, over theirs when they were measured beside a floor like \
         it, as [ANALYSIS.md](ANALYSIS.md#the-others) tells;\nit has figures of both in turns, too.\n² Here each delivery has a message of its own to read, and so \
         a `POST` or a `PUBLISH`; the floor has a few bytes, and Redis is\nin the ratio.\n\n",
    );
    image(&mut out, BARS_TITLE, "ratios.svg");
    for (section, rows) in sections {
        write!(out, "\n## {}\n\n{}\n\n", section.title, section.words).ok();
        if rows.iter().any(|done| done.rounds().is_some()) {
            out.push_str(&comparing(rows));
        } else {
            out.push_str(&telling(rows));
        }
        for done in rows.iter().filter(|done| PICTURES.contains(&done.name)) {
            for (number, chart) in done.sheet().map_or(Vec::new(), |sheet| sheet.charts).iter().enumerate() {
                out.push('\n');
                image(&mut out, &format!("{}, {}", chart.title, done.words), &picture(done, number));
            }
        }
    }
    out.push_str(
        "\n## The runs\n\n<details><summary>Command lines to paste, and what casts doubt on figures</summary>\n\n",
    );
    for done in &rows.0 {
        writeln!(out, "- {}: `{}`", done.words, done.command).ok();
        for note in done.sheet().map_or(Vec::new(), |sheet| sheet.notes) {
            writeln!(out, "  - {}", cell(&note)).ok();
        }
    }
    out.push_str("\n</details>\n");
    out
}

fn fault(done: &Done) -> Option<String> {
    match &done.findings {
        Ok(findings) => findings.sheet().fault.map(|fault| format!("- {}: {fault}", done.words)),
        Err(error) => Some(format!("- {}: not measured: {}", done.words, cell(error))),
    }
}

/// Text that is no markup in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

/// What a column tells of a gateway, if anything.
type Figure = fn(&Report, &Contestant) -> Option<String>;

/// Those of a table that compares, as far as they say something in it. CPU is per delivery or cycle.
const COLUMNS: [(&str, Figure); 13] = [
    ("server", |_, server| (server.name() != "gateway").then(|| server.name().to_owned())),
    ("CPU, µs", |_, server| Some(server.cpu()?.words(2))),
    ("of it user", |_, server| Some(format!("{:.2}", server.user()?.median))),
    ("Redis, µs", |_, server| Some(format!("{:.2}", server.redis()?.median))),
    ("floor, µs", |report, _| Some(report.servers.iter().find(|server| server.name() == PLAIN)?.cpu()?.words(2))),
    ("÷ floor", |report, server| Some(bold(ratio(report, CPU, server.name(), PLAIN)?))),
    ("÷ floor, joined", |report, server| Some(ratio(report, CPU, server.name(), JOINED)?.words(2))),
    ("÷ the first", |report, server| Some(bold(ratio(report, CPU, server.name(), report.servers.first()?.name())?))),
    ("p50, ms", |_, server| Some(format!("{:.3}", server.latency()?.p50))),
    ("p99, ms", |_, server| Some(format!("{:.3}", server.latency()?.p99))),
    ("p99 ÷ the first", |report, server| {
        Some(bold(ratio(report, P99, server.name(), report.servers.first()?.name())?))
    }),
    ("p50 ÷ bare Redis", |report, server| Some(bold(ratio(report, P50, server.name(), RAW)?))),
    ("p99 beyond 2 × bare Redis, ms", |report, server| Some(ratio(report, BEYOND, server.name(), RAW)?.words(2))),
];

/// The median in bold.
fn bold(spread: Spread) -> String {
    let words = spread.words(2);
    let (median, range) = words.split_once(' ').unwrap_or((&words, ""));
    format!("**{median}** {range}").trim_end().to_owned()
}

/// A line for each gateway.
fn comparing(rows: &[Done]) -> String {
    let reports = rows.iter().filter_map(|done| Some((done, done.rounds()?)));
    let gateways = reports.flat_map(|(done, report)| {
        let gateways = report.servers.iter().filter(|server| server.is_gateway());
        gateways.map(move |server| (done, report, server))
    });
    let lines: Vec<(&Done, &Report, &Contestant)> = gateways.collect();
    let speaks =
        |(_, figure): &&(&str, Figure)| lines.iter().any(|(_, report, server)| figure(report, server).is_some());
    let columns: Vec<&(&str, Figure)> = COLUMNS.iter().filter(speaks).collect();
    let heads: Vec<&str> = columns.iter().map(|(head, _)| *head).collect();
    let mut out = format!("| | {} |\n|{}\n", heads.join(" | "), " --- |".repeat(1 + heads.len()));
    for (done, report, server) in &lines {
        let cells = columns.iter().map(|(_, figure)| figure(report, server).unwrap_or_default());
        writeln!(out, "| {} | {} |", done.words, cells.collect::<Vec<_>>().join(" | ")).ok();
    }
    out
}

/// What modes that compare nothing tell, a column for each row of the set.
fn telling(rows: &[Done]) -> String {
    let sheets: Vec<(&Done, Sheet)> = rows.iter().filter_map(|done| Some((done, done.sheet()?))).collect();
    let row = |sheet: &Sheet, label: &str| {
        let row = sheet.rows.iter().find(|(other, _)| other == label);
        row.map_or(Vec::new(), |(_, cells)| cells.clone())
    };
    let heads = sheets.iter().flat_map(|(done, sheet)| match row(sheet, "").as_slice() {
        [] => vec![done.words.clone()],
        names => names.iter().map(|name| format!("{}: {name}", done.words)).collect(),
    });
    let heads: Vec<String> = heads.collect();
    let mut out = format!("| | {} |\n|{}\n", heads.join(" | "), " --- |".repeat(1 + heads.len()));
    let mut labels: Vec<&str> = Vec::new();
    for (label, _) in sheets.iter().flat_map(|(_, sheet)| &sheet.rows) {
        if !label.is_empty() && !labels.contains(&&**label) {
            labels.push(label);
        }
    }
    for label in labels {
        let cells = sheets.iter().flat_map(|(_, sheet)| {
            let mut cells = row(sheet, label);
            cells.resize(row(sheet, "").len().max(1), String::new());
            cells
        });
        let cells: Vec<String> = cells.map(|figure| cell(&figure)).collect();
        writeln!(out, "| {} | {} |", label.trim(), cells.join(" | ")).ok();
    }
    for (done, sheet) in &sheets {
        for line in sheet.lines.iter().filter(|line| line.contains('÷')) {
            write!(out, "\n{}: {}\n", done.words, cell(line)).ok();
        }
    }
    out
}

const BARS_TITLE: &str = "CPU of a delivery, Redis included, over that of the floor";

fn picture(done: &Done, number: usize) -> String {
    format!("{}-{}.svg", done.name, number + 1)
}

fn image(out: &mut String, title: &str, file: &str) {
    writeln!(out, "![{title}](results/{file})").ok();
}

/// Files to lie in `results` beside the document.
pub(crate) fn pictures(sections: &[Table]) -> Vec<(String, String)> {
    let rows = || sections.iter().flat_map(|(_, rows)| rows);
    let mut bars = Vec::new();
    let deliveries = rows().filter_map(|done| Some((done, done.rounds()?)));
    for (done, report) in deliveries.filter(|(_, report)| report.unit == Unit::Delivery) {
        let gateways: Vec<&Contestant> = report.servers.iter().filter(|server| server.is_gateway()).collect();
        for gateway in &gateways {
            let label = done.words.replace('`', "");
            let nodes = gateway.name().strip_prefix("gateway, ").filter(|_| gateways.len() > 1);
            let label = nodes.map_or(label.clone(), |nodes| format!("{label}, {nodes}"));
            bars.extend(ratio(report, CPU, gateway.name(), PLAIN).map(|ratio| (label, ratio)));
        }
    }
    let mut files = vec![("ratios.svg".to_owned(), svg::ratios(BARS_TITLE, &bars, Place::File).into_string())];
    for done in rows().filter(|done| PICTURES.contains(&done.name)) {
        for (number, mut chart) in done.sheet().map_or(Vec::new(), |sheet| sheet.charts).into_iter().enumerate() {
            chart.title = format!("{}, {}", chart.title, done.words);
            files.push((picture(done, number), svg::lines(&chart, Place::File).into_string()));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench;
    use crate::clients::Stats;
    use crate::process::Cpu;
    use crate::publish::Outcome;
    use crate::report::{Role, Round, Spent};

    fn contestant(role: Role, name: &str, cpu: u64, lost: u64) -> Contestant {
        let (latency, wall) = (crate::clients::histogram().unwrap(), Duration::from_secs(1));
        let samples = vec![(0.5, 500_000), (1.0, 1_000_000)];
        let (published, expected, lag) = (1000, 1_000_000, latency.clone());
        let outcome = Outcome {
            published,
            expected,
            errors: 0,
            first_error: None,
            lag,
            wall,
            gave_up: false,
            ordered: true,
            samples,
        };
        let mut stats = Stats { delivered: expected - lost, ..Stats::new().unwrap() };
        stats.latency.record_n(2_000_000, 1_000_000).unwrap();
        let mut contestant = Contestant::new(role, name).unwrap();
        for _ in 0..3 {
            let nodes = Some(Cpu { user: 0, system: cpu * 1_000_000 });
            let round = Round::new(&outcome, &stats, Spent { nodes, redis: None, resident: None }, Cpu::default(), 0);
            contestant.add(round, &stats).unwrap();
        }
        contestant
    }

    fn done(name: &'static str, words: &str, servers: Vec<Contestant>) -> Done {
        let findings = Ok(Findings::Rounds(Report::new(words, Unit::Delivery, servers)));
        Done { name, words: words.to_owned(), command: "loadtest fanout".to_owned(), findings }
    }

    fn document(rows: Vec<Done>) -> String {
        markdown(&[(bench::first(), rows)], &[("processors", "2 × a | b".to_owned())], false, Duration::from_mins(10))
    }

    #[test]
    fn a_table_has_a_line_for_each_gateway_and_the_columns_that_say_something() {
        let two = vec![
            contestant(Role::Gateway, "gateway, 1 node", 2, 0),
            contestant(Role::Gateway, "gateway, 2 nodes", 4, 0),
            contestant(Role::Floor, PLAIN, 1, 0),
        ];
        let text = document(vec![done("some", "some clients", two)]);
        assert!(
            text.contains(
                "| | server | CPU, µs | of it user | floor, µs | ÷ floor | ÷ the first | p50, ms | p99, ms |\n"
            ),
            "{text}"
        );
        for line in [
            "gateway, 1 node | 2.00 | 0.00 | 1.00 | **2.00** |  | 2.0",
            "gateway, 2 nodes | 4.00 | 0.00 | 1.00 | **4.00** | **2.00** | 2.0",
        ] {
            assert!(text.contains(&format!("| some clients | {line}")), "{text}");
        }
        assert!(text.contains("| processors | 2 × a \\| b |") && text.contains("| took | 10 minutes |"), "{text}");
        assert!(text.contains("Nothing was lost") && text.contains("`loadtest fanout`"), "{text}");
    }

    #[test]
    fn goals_are_met_or_missed_or_not_measured() {
        let run = |name, cpu| {
            done(name, name, vec![contestant(Role::Gateway, "gateway", cpu, 0), contestant(Role::Floor, PLAIN, 10, 0)])
        };
        let text = document(vec![run("fan-1000", 11), run("fan-5000", 12), run("groups-100", 14), run("backlog-4", 5)]);
        for line in [
            "| a delivery, 1,000 in one group ÷ floor | ≤ 1.30 × | ≤ 1.15 × | 1.10 × | met, the aim too |",
            "| a delivery, 5,000 in one group ÷ floor | ≤ 1.30 × | ≤ 1.15 × | 1.20 × | aim missed |",
            "| a delivery, 100 groups of 10 ÷ floor | ≤ 1.30 × | ≤ 1.15 × | 1.40 × | **missed** |",
            "| 1,000 in one group ÷ GatewayWorker 4 ¹ | ≤ 1.00 × | ≤ 0.85 × | 0.83 × | derived: met, the aim too |",
            "| the worst of all sizes and forms over HTTP ÷ floor | ≤ 1.30 × | ≤ 1.15 × | – | not measured |",
            "| fan-10000 beside fan-1000, ratios to the floor | ≤ 1.20 × | – | – | not measured |",
            "| 4 messages waiting ÷ floor | ≤ 1.00 × | – | 0.50 × | met |",
            "| 4 messages waiting ÷ joined floor | – | ≤ 1.30 × | – | not measured |",
            "| runs with anything lost, doubled or out of order | ≤ 0 | – | 0 | met |",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn what_went_wrong_is_told_first() {
        let lossy = done("fan-1000", "lossy", vec![contestant(Role::Gateway, "gateway", 1, 7)]);
        let broken = Done { findings: Err("no such\nfile".to_owned()), ..done("fan-5000", "broken", Vec::new()) };
        let text = document(vec![lossy, broken]);
        let faults = "- lossy: not everything was delivered, once and in order\n- broken: not measured: no such file\n";
        assert!(text.contains(&format!("**Not all is well:**\n\n{faults}")), "{text}");
        assert!(
            text.contains("| runs with anything lost, doubled or out of order | ≤ 0 | – | 2 | **missed** |"),
            "{text}"
        );
    }

    #[test]
    fn every_picture_in_the_document_is_a_file() {
        let servers = || vec![contestant(Role::Gateway, "gateway", 1, 0), contestant(Role::Floor, PLAIN, 1, 0)];
        let sections = [(bench::first(), vec![done("fan-1000", "a", servers()), done("rate", "b", servers())])];
        let text = markdown(&sections, &[], false, Duration::ZERO);
        let mut wanted: Vec<&str> =
            text.split("](results/").skip(1).filter_map(|rest| rest.split(')').next()).collect();
        let files = pictures(&sections);
        let mut names: Vec<&str> = files.iter().map(|(name, _)| &**name).collect();
        wanted.sort_unstable();
        names.sort_unstable();
        assert_eq!(wanted, names);
        assert_eq!(names.len(), 5);
    }
}
