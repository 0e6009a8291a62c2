//! `moongate top`: all nodes, live, from any node's `GET /nodes`.
//!
//! At a terminal one table is drawn in place, each second, until Ctrl-C; elsewhere one table follows the other. Rates are
//! between two looks, by each node's own clock.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use reqwest::Method;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use unicode_width::UnicodeWidthStr as _;

use super::{COLUMNS, Caller, CannotPrint, Failed, GAP, cut, failed, padded, print, span, visible};
use crate::config::CallerConfig;
use crate::vitals::{Node, Nodes, Vitals};

/// What `--help` says at its end.
pub const HELP: &str = "\
The node that is asked is at MOONGATE_API_LISTEN (127.0.0.1:7273), its token is MOONGATE_API_TOKEN; it tells of all.
IN/S: messages from clients; OUT/S: messages that clients' sockets took; CPU: of one core.
Exit code 0: ended by Ctrl-C, or --once was shown; 1: the node gives no answer, or refuses.";

/// Between two looks.
const TURN: Duration = Duration::from_secs(1);

/// What a look may take.
const LOOK: Duration = Duration::from_secs(5);

/// A node writes its numbers each 0.7 s; one that has not for so long is dead, stuck or without Redis.
const SILENT: Duration = Duration::from_secs(5);

/// Of a node's id so much is shown, however narrow the terminal.
const LEAST_NODE: usize = 8;

/// Of what keeps it from being ready, too.
const LEAST_READY: usize = 5;

/// A screen of its own and no cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// How it is watched.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Show one table, with the rates of one second, and end.
    #[arg(long)]
    once: bool,
}

/// Shows all nodes until a signal, or until the node that is asked says no more.
pub async fn run(options: &Options, config: &CallerConfig) -> ExitCode {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else { return failed("cannot wait for signals") };
    // What is dropped by a signal has left the terminal as it was.
    let ended = tokio::select! {
        ended = watch(options, config) => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Failed(error)) => failed(&error.to_string()),
        Err(Ended::CannotPrint) => ExitCode::FAILURE,
    }
}

enum Ended {
    Failed(Failed),
    CannotPrint,
}

impl From<Failed> for Ended {
    fn from(error: Failed) -> Self {
        Self::Failed(error)
    }
}

impl From<CannotPrint> for Ended {
    fn from(_: CannotPrint) -> Self {
        Self::CannotPrint
    }
}

async fn watch(options: &Options, config: &CallerConfig) -> Result<(), Ended> {
    let caller = Caller::new(config, LOOK, LOOK)?;
    let is_live = std::io::stdout().is_terminal() && !options.once;
    let mut earlier = Earlier::default();
    let mut turns = interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    turns.tick().await;
    let mut nodes = look(&caller).await?;
    earlier.take(&nodes);
    // A node that gives no answer is told of where the caller reads it.
    let screen = is_live.then(Screen::enter).transpose()?;
    loop {
        if let Some(screen) = &screen {
            screen.draw(&Table::of(&nodes, &earlier))?;
        }
        turns.tick().await;
        nodes = look(&caller).await?;
        earlier.take(&nodes);
        if screen.is_none() {
            let more = if options.once { "" } else { "\n" };
            print(&format!("{}\n{more}", Table::of(&nodes, &earlier).lines(usize::MAX).join("\n")))?;
        }
        if options.once {
            return Ok(());
        }
    }
}

async fn look(caller: &Caller<'_>) -> Result<Nodes, Failed> {
    let (status, body) = caller.ask(Method::GET, "/nodes", None).await?;
    if !status.is_success() {
        return Err(caller.refusal(status, &body));
    }
    serde_json::from_slice(&body).map_err(|_| Failed::Foreign(caller.address, status))
}

/// The terminal, while it is ours.
struct Screen;

impl Screen {
    fn enter() -> Result<Self, CannotPrint> {
        // From here on it is to be left.
        let screen = Self;
        print(ENTER)?;
        Ok(screen)
    }

    #[allow(clippy::unused_self)] // without one there is nowhere to draw
    fn draw(&self, table: &Table) -> Result<(), CannotPrint> {
        let size = terminal_size::terminal_size();
        let (width, height) = size.map_or((COLUMNS, 24), |(width, height)| (width.0.into(), height.0.into()));
        let mut lines = table.lines(width);
        if lines.len() > height {
            let more = format!("… {} lines more: the terminal is too low", lines.len() - height + 1);
            lines.truncate(height.saturating_sub(1));
            lines.push(cut(&more, width));
        }
        // Each line takes the place of the one that was there; nothing is blank in between.
        let lines: Vec<String> = lines.into_iter().map(|line| line + "\x1b[K").collect();
        print(&format!("\x1b[H{}\x1b[J", lines.join("\n")))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut stdout = std::io::stdout();
        // Where it fails nobody looks.
        stdout.write_all(LEAVE.as_bytes()).and_then(|()| stdout.flush()).ok();
    }
}

// --- rates -----------------------------------------------------------------------------------------------------------

/// What was seen before, by node.
#[derive(Default)]
struct Earlier(HashMap<String, (Vitals, Option<Rates>)>);

/// Of one node, between two looks.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rates {
    /// A second.
    messages_in: f64,
    /// A second.
    deliveries: f64,
    /// Processor time, of one core's; none where it is not told.
    cpu: Option<f64>,
}

impl Earlier {
    fn take(&mut self, nodes: &Nodes) {
        let mut before = std::mem::take(&mut self.0);
        for Node { node, vitals, .. } in &nodes.nodes {
            let rates = before.remove(node).and_then(|(before, rates)| {
                // It has written nothing since: what was seen still holds.
                if before == *vitals { rates } else { Rates::between(&before, vitals) }
            });
            self.0.insert(node.clone(), (vitals.clone(), rates));
        }
    }

    fn rates(&self, node: &Node) -> Option<Rates> {
        self.0.get(&node.node).and_then(|(_, rates)| *rates).filter(|_| !is_silent(node))
    }
}

impl Rates {
    /// None where it is another process by now.
    fn between(before: &Vitals, now: &Vitals) -> Option<Self> {
        let since = now.uptime_ms.checked_sub(before.uptime_ms).filter(|since| *since > 0)?;
        let seconds = since as f64 / 1000.0;
        let more = |before: u64, now: u64| Some(now.checked_sub(before)? as f64 / seconds);
        (now.started_at == before.started_at).then_some(())?;
        Some(Self {
            messages_in: more(before.messages_in, now.messages_in)?,
            deliveries: more(before.deliveries, now.deliveries)?,
            cpu: before.cpu_ms.zip(now.cpu_ms).and_then(|(before, now)| Some(more(before, now)? / 1000.0)),
        })
    }
}

fn is_silent(node: &Node) -> bool {
    Duration::from_millis(node.age_ms) > SILENT
}

// --- the table -------------------------------------------------------------------------------------------------------

const TITLES: [&str; 10] = ["NODE", "CLIENTS", "UIDS", "GROUPS", "IN/S", "OUT/S", "CPU", "MEMORY", "UPTIME", "READY"];

/// What is shown: a line about all, and a row for each node.
struct Table {
    about: String,
    rows: Vec<[String; TITLES.len()]>,
}

impl Table {
    fn of(nodes: &Nodes, earlier: &Earlier) -> Self {
        let redis = match nodes.redis {
            None => "",
            Some(crate::vitals::Redis { up: true }) => ", Redis answers",
            Some(crate::vitals::Redis { up: false }) => ", Redis is away: others are not known",
        };
        let list = &nodes.nodes;
        let some = if let [_] = &list[..] { "1 node".to_owned() } else { format!("{} nodes", list.len()) };
        let ready = list.iter().filter(|node| !is_silent(node) && node.vitals.ready.starts_with("ready")).count();
        let mut rows = vec![TITLES.map(str::to_owned)];
        rows.extend(list.iter().map(|node| row(node, earlier.rates(node))));
        if list.len() > 1 {
            rows.push(totals(list, earlier));
        }
        Self { about: format!("{some}, {ready} ready{redis}"), rows }
    }

    /// At most so wide, if need be with less of ids, and of why nodes are not ready.
    fn lines(&self, width: usize) -> Vec<String> {
        let mut widths = [0; TITLES.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        let [node, numbers @ .., ready] = &mut widths;
        let room = width.saturating_sub(numbers.iter().map(|width| width + GAP).sum::<usize>() + GAP);
        let for_node = room.saturating_sub((*ready).min(LEAST_READY)).max(LEAST_NODE);
        *node = for_node.min(*node);
        *ready = room.saturating_sub(*node).min(*ready);
        let line = |row: &[String; TITLES.len()]| {
            let mut line = String::new();
            for (place, (cell, width)) in row.iter().zip(widths).enumerate() {
                // Numbers stand below each other.
                if (1..TITLES.len() - 1).contains(&place) {
                    line.push_str(&" ".repeat(width.saturating_sub(cell.width())));
                    line.push_str(cell);
                } else {
                    line.push_str(&padded(cell, width));
                }
                line.push_str(&" ".repeat(GAP));
            }
            cut(line.trim_end(), width)
        };
        std::iter::once(cut(&self.about, width)).chain(self.rows.iter().map(line)).collect()
    }
}

fn row(node: &Node, rates: Option<Rates>) -> [String; TITLES.len()] {
    let Vitals { clients, uids, groups, memory, uptime_ms, ready, .. } = &node.vitals;
    let ready = if is_silent(node) { format!("silent for {}", span(node.age_ms / 1000)) } else { visible(ready) };
    [
        visible(&node.node),
        clients.to_string(),
        uids.to_string(),
        groups.to_string(),
        maybe(rates.map(|rates| rate(rates.messages_in))),
        maybe(rates.map(|rates| rate(rates.deliveries))),
        maybe(rates.and_then(|rates| rates.cpu).map(percent)),
        maybe(memory.map(size)),
        span(uptime_ms / 1000),
        ready,
    ]
}

/// A uid or group may be on several nodes: how many there are in all is not known from these.
fn totals(nodes: &[Node], earlier: &Earlier) -> [String; TITLES.len()] {
    let rates: Vec<Rates> = nodes.iter().filter_map(|node| earlier.rates(node)).collect();
    let sum = |of: fn(&Rates) -> f64| maybe((!rates.is_empty()).then(|| rate(rates.iter().map(of).sum())));
    let cpu: Vec<f64> = rates.iter().filter_map(|rates| rates.cpu).collect();
    let memory: Vec<u64> = nodes.iter().filter_map(|node| node.vitals.memory).collect();
    [
        "all".to_owned(),
        nodes.iter().map(|node| node.vitals.clients).sum::<u64>().to_string(),
        String::new(),
        String::new(),
        sum(|rates| rates.messages_in),
        sum(|rates| rates.deliveries),
        maybe((!cpu.is_empty()).then(|| percent(cpu.iter().sum()))),
        maybe((!memory.is_empty()).then(|| size(memory.iter().sum()))),
        String::new(),
        String::new(),
    ]
}

fn maybe(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn rate(each_second: f64) -> String {
    if each_second > 0.0 && each_second < 10.0 { format!("{each_second:.1}") } else { format!("{each_second:.0}") }
}

fn percent(of_a_core: f64) -> String {
    format!("{:.0}%", of_a_core * 100.0)
}

fn size(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1024.0 { format!("{mebibytes:.0} MiB") } else { format!("{:.1} GiB", mebibytes / 1024.0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vitals::Redis;

    fn node(name: &str, seconds: u64, each_second: u64) -> Node {
        let vitals = Vitals {
            version: "0.1.0".to_owned(),
            lan: "10.0.0.1:2900".to_owned(),
            started_at: 1,
            ready: "ready".to_owned(),
            clients: 12_000,
            uids: 11_000,
            groups: 40,
            messages_in: seconds * each_second,
            deliveries: seconds * each_second * 1000,
            closed: 0,
            dropped: 0,
            memory: Some(150 << 20),
            cpu_ms: Some(seconds * 370),
            uptime_ms: seconds * 1000,
        };
        Node { node: name.to_owned(), age_ms: 300, vitals }
    }

    fn nodes(nodes: Vec<Node>) -> Nodes {
        Nodes { at: 0, nodes, redis: Some(Redis { up: true }) }
    }

    #[test]
    fn rates_are_between_two_looks_by_the_nodes_own_clocks() {
        let mut earlier = Earlier::default();
        let first = nodes(vec![node("gate-a", 7200, 3), node("gate-b", 90_000, 0)]);
        earlier.take(&first);
        let mut late = node("gate-c", 59, 3);
        (late.age_ms, late.vitals.memory, late.vitals.cpu_ms) = (42_000, None, None);
        let second = nodes(vec![node("gate-a", 7202, 3), node("gate-b", 90_000, 0), late]);
        earlier.take(&second);
        let expected = "\
3 nodes, 2 ready, Redis answers
NODE    CLIENTS   UIDS  GROUPS  IN/S  OUT/S  CPU   MEMORY  UPTIME  READY
gate-a    12000  11000      40   3.0   3000  37%  150 MiB   2h00m  ready
gate-b    12000  11000      40     -      -    -  150 MiB   1d01h  ready
gate-c    12000  11000      40     -      -    -        -     59s  silent for 42s
all       36000                  3.0   3000  37%  300 MiB";
        assert_eq!(Table::of(&second, &earlier).lines(usize::MAX).join("\n"), expected);
        // What was written once is seen twice: the rates still hold.
        earlier.take(&second);
        assert_eq!(Table::of(&second, &earlier).lines(usize::MAX).join("\n"), expected);
        // Another process of that name.
        let mut again = node("gate-a", 7203, 3);
        again.vitals.started_at = 2;
        let third = nodes(vec![again]);
        earlier.take(&third);
        let lines = Table::of(&third, &earlier).lines(usize::MAX);
        assert!(lines[0].starts_with("1 node, 1 ready") && lines.len() == 3 && lines[2].contains(" - "), "{lines:?}");
    }

    #[test]
    fn while_redis_is_away_it_is_said_that_others_are_not_known() {
        let alone = Nodes { redis: Some(Redis { up: false }), ..nodes(vec![node("a", 1, 0)]) };
        assert!(Table::of(&alone, &Earlier::default()).about.contains("Redis is away"));
        let standalone = Nodes { redis: None, ..alone };
        assert_eq!(Table::of(&standalone, &Earlier::default()).about, "1 node, 1 ready");
    }

    #[test]
    fn rates_and_sizes_are_short() {
        for (number, text) in
            [(0.0, "0"), (0.04, "0.0"), (0.7, "0.7"), (9.99, "10.0"), (12.3, "12"), (65_000.4, "65000")]
        {
            assert_eq!(rate(number), text);
        }
        assert_eq!([size(0), size(150 << 20), size(3 << 29)], ["0 MiB", "150 MiB", "1.5 GiB"]);
        assert_eq!([percent(0.004), percent(1.5)], ["0%", "150%"]);
    }

    proptest! {
        #[test]
        fn any_table_fits(width in 1_usize..200, names in prop::collection::vec("\\PC{0,40}", 0..4), ready in "\\PC{0,60}") {
            let named = names.iter().map(|name| {
                let mut node = node(name, 1_000_000, 5);
                node.vitals.ready.clone_from(&ready);
                node
            });
            for line in Table::of(&nodes(named.collect()), &Earlier::default()).lines(width) {
                prop_assert!(line.width() <= width, "{}: {}", width, line);
                prop_assert!(!line.contains(char::is_control), "{:?}", line);
            }
        }
    }
}
