//! `bench`: the standard set, one run after another, each a command line of this very program, and what came of it as
//! Markdown, pictures and pages.

use std::path::{Path, PathBuf};

use clap::{Args, Parser as _};
use rustix::process::Resource;

use crate::results::{self, Done};
use crate::{Cli, Result, html, machine, output, progress, target};

/// Options of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The gateway to start for each run
    #[arg(long, value_name = "PATH")]
    spawn: PathBuf,
    /// Start a private Redis for the runs that need one; without this option they are left out
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "redis-server")]
    redis_spawn: Option<PathBuf>,
    /// Where RESULTS.md goes, and its pictures into `results`
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where each run's page goes
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pages: PathBuf,
    /// Far fewer clients, messages and seconds: to try the set, not to publish it
    #[arg(long)]
    quick: bool,
}

/// What the rows of one table have in common.
pub(crate) struct Section {
    /// Its heading.
    pub(crate) title: &'static str,
    /// What the reader of the table needs.
    pub(crate) words: &'static str,
    rows: &'static [Row],
}

/// One run.
pub(crate) struct Row {
    /// Of its files, and by which goals ask for it.
    pub(crate) name: &'static str,
    /// For the reader.
    words: &'static str,
    /// The command line, without the gateway.
    line: &'static str,
}

const fn row(name: &'static str, words: &'static str, line: &'static str) -> Row {
    Row { name, words, line }
}

/// The standard set. A round should use a second of the server's CPU or more.
const SET: &[Section] = &[
    Section {
        title: "One node alone, messages over HTTP",
        words: "Server CPU per delivery.",
        rows: &[
            row("fan-1000", "1,000 clients in one group", "fanout --floor --pin --clients 1000 --messages 1000"),
            row("fan-5000", "5,000 clients in one group", "fanout --floor --pin --clients 5000 --messages 250"),
            row("fan-10000", "10,000 clients in one group", "fanout --floor --pin --clients 10000 --messages 120"),
            row("groups-100", "100 groups of 10", "fanout --floor --pin --clients 1000 --groups 100 --messages 40000"),
            row(
                "groups-10000",
                "10,000 groups of one",
                "fanout --floor --pin --clients 10000 --groups 10000 --publishers 64 --window 64 --messages 60000",
            ),
            row(
                "groups-apart",
                "10,000 groups of one, about 100 in a message",
                "fanout --floor --pin --clients 10000 --groups 100 --apart --messages 2000",
            ),
            row("uid-5000", "one uid of 5,000, 256 in flight", "unicast --floor --pin --clients 5000 --messages 60000"),
        ],
    },
    Section {
        title: "Messages that wait for the same client",
        words: "One node alone. The joined floor gathers them into one write, as the gateway does.",
        rows: &[
            row("backlog-4", "1,000 clients, 4 waiting", "fanout --floor --pin --backlog 4 --messages 1600"),
            row("backlog-16", "1,000 clients, 16 waiting", "fanout --floor --pin --backlog 16 --messages 4500"),
            row(
                "backlog-4-5000",
                "5,000 clients, 4 waiting",
                "fanout --floor --pin --clients 5000 --backlog 4 --messages 320",
            ),
        ],
    },
    Section {
        title: "Messages of 16 B to 64 KiB, over HTTP",
        words: "To 1,000 clients in one group; 128 B are in the first table.",
        rows: &[
            row("http-16", "HTTP, 16 B", "fanout --floor --pin --size 16 --messages 600"),
            row("http-binary", "HTTP, 128 B, binary", "fanout --floor --pin --binary --messages 600"),
            row("http-1k", "HTTP, 1 KiB", "fanout --floor --pin --size 1024 --messages 600"),
            row("http-16k", "HTTP, 16 KiB", "fanout --floor --pin --size 16384 --messages 330"),
            row("http-64k", "HTTP, 64 KiB", "fanout --floor --pin --size 65536 --messages 120"),
        ],
    },
    Section {
        title: "Messages of 16 B to 64 KiB, through Redis",
        words: "The same, on one node with a Redis.",
        rows: &[
            row("redis-16", "Redis, 16 B", "fanout --redis-spawn --floor --pin --size 16 --messages 600"),
            row("redis-binary", "Redis, 128 B, binary", "fanout --redis-spawn --floor --pin --binary --messages 600"),
            row("redis-1k", "Redis, 1 KiB", "fanout --redis-spawn --floor --pin --size 1024 --messages 600"),
            row("redis-16k", "Redis, 16 KiB", "fanout --redis-spawn --floor --pin --size 16384 --messages 330"),
            row("redis-64k", "Redis, 64 KiB", "fanout --redis-spawn --floor --pin --size 65536 --messages 120"),
        ],
    },
    Section {
        title: "One node, commands as PHP sends them",
        words: "In GatewayWorker's inner protocol, pipelined on one connection.",
        rows: &[
            row("php-group", "`sendToGroup`, 1,000 members", "fanout --door php --floor --pin --messages 1000"),
            row(
                "php-uid",
                "`sendToUid`, one uid of 5,000",
                "unicast --door php --floor --pin --clients 5000 --messages 300000",
            ),
        ],
    },
    Section {
        title: "Through Redis, on one node and on two",
        words: "A private Redis for each cluster; one `PUBLISH` for each message, pipelined. Ratios are those of nodes and \
                Redis together.",
        rows: &[
            row(
                "redis-1000",
                "1,000 clients in one group, Redis",
                "fanout --redis-spawn --nodes 1,2 --floor --pin --messages 1000",
            ),
            row(
                "redis-backlog-4",
                "1,000 clients, 4 waiting, Redis",
                "fanout --redis-spawn --nodes 1,2 --floor --pin --backlog 4 --messages 1600",
            ),
            row(
                "redis-uid-5000",
                "one uid of 5,000, Redis",
                "unicast --redis-spawn --nodes 1,2 --floor --pin --clients 5000 --messages 200000",
            ),
            row(
                "redis-uid-500",
                "one uid of 500, Redis",
                "unicast --redis-spawn --nodes 1 --floor --pin --clients 500 --messages 250000",
            ),
            row(
                "redis-groups-1000",
                "1,000 groups of one, Redis",
                "fanout --redis-spawn --nodes 1 --floor --pin --groups 1000 --window 256 --messages 250000",
            ),
            row(
                "redis-groups-10000",
                "10,000 groups of one, Redis",
                "fanout --redis-spawn --nodes 1 --floor --pin --clients 10000 --groups 10000 --window 256 --messages 160000",
            ),
            row(
                "redis-groups-apart",
                "10,000 groups of one, about 100 in a message, Redis",
                "fanout --redis-spawn --nodes 1 --floor --pin --clients 10000 --groups 100 --apart --messages 2000",
            ),
        ],
    },
    Section {
        title: "Through the task stream",
        words: "One `XADD` for each message, which then survives whatever dies. Tasks run side by side, in no order.",
        rows: &[row(
            "tasks-uid-5000",
            "one uid of 5,000, tasks",
            "unicast --redis-spawn --door tasks --nodes 1,2 --pin --clients 5000 --messages 60000",
        )],
    },
    Section {
        title: "Over TLS",
        words: "Beside the same gateway without it.",
        rows: &[
            row("tls-1000", "1,000 clients in one group", "fanout --tls --pin --messages 800"),
            row("tls-backlog-4", "the same, 4 waiting for each", "fanout --tls --pin --backlog 4 --messages 1600"),
        ],
    },
    Section {
        title: "Latency under a given load",
        words: "From the scheduled time of each message. Two nodes stand beside bare Redis; a gateway one of whose clients never \
                reads stands beside one without it.",
        rows: &[
            row("rate", "50 messages a second to 1,000 clients", "fanout --floor --rate 50 --messages 400"),
            row(
                "slow",
                "20 messages a second to 5,000 clients",
                "fanout --slow 1 --env MOONGATE_SLOW_CONSUMER=drop --env MOONGATE_SEND_BUFFER=64KiB --clients 5000 --size 1024 --rate 20 \
                 --messages 400",
            ),
            row(
                "latency",
                "1,000 messages a second to a uid each, Redis",
                "unicast --redis-spawn --nodes 2 --raw-redis --rate 1000 --clients 1000 --messages 10000 --rounds 5",
            ),
        ],
    },
    Section {
        title: "Coming and going",
        words: "Connect, bind and join in one batch, leave. The floor's cycle is a handshake, a message and a close. What changes \
                at the same time shares commands and writes, so the same clients are dearer on two nodes.",
        rows: &[
            row("churn", "64 at a time", "churn --redis-spawn --nodes 1,2 --floor --pin --cycles 30000"),
            row(
                "churn-each",
                "64 at a time at each node",
                "churn --redis-spawn --nodes 1,2 --each-node --pin --cycles 30000",
            ),
        ],
    },
    Section {
        title: "Everyone is cut off, and comes back",
        words: "All connections of two nodes at once, each with a uid and a group; 256 at a time come back, and meanwhile 100 \
                newcomers a second find their way in.",
        rows: &[
            row("storm", "5,000 clients", "storm --redis-spawn --nodes 2 --newcomers 100 --floor"),
            row(
                "storm-10000",
                "10,000 clients",
                "storm --redis-spawn --nodes 2 --newcomers 100 --clients 10000 --repeat 2",
            ),
        ],
    },
    Section {
        title: "Connections that only are there",
        words: "Each bound to a uid and in a group. The kernel's 4–5 KB for a socket are not in it.",
        rows: &[
            row("idle", "alone", "idle --clients 10000 --floor"),
            row(
                "idle-heartbeats",
                "heartbeats of 25 s",
                "idle --clients 9500 --floor --env MOONGATE_PING_INTERVAL=25s --seconds 50",
            ),
            row("idle-tls", "over TLS", "idle --tls --clients 5000"),
            row("idle-redis", "with Redis", "idle --redis-spawn --clients 9500"),
        ],
    },
];

impl BenchArgs {
    /// Runs the set and writes what came of it; whether all went well.
    pub(crate) fn run(&self) -> Result<bool> {
        let begin = std::time::Instant::now();
        let pictures = self.out.join("results");
        for directory in [&self.pages, &pictures] {
            std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        }
        let limit = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let version = target::version(&self.spawn).ok_or_else(|| {
            format!("{}: does not say its version; build it first, as `make bench` does", self.spawn.display())
        })?;
        let wanted = |row: &&Row| self.redis_spawn.is_some() || !row.line.contains("--redis-spawn");
        let count = SET.iter().flat_map(|section| section.rows).filter(wanted).count();
        let mut number = 0;
        let mut sections = Vec::new();
        for section in SET {
            let mut rows = Vec::new();
            for row in section.rows.iter().filter(wanted) {
                number += 1;
                progress::prefix(format!("{number}/{count} {}, ", row.name));
                rows.push(self.row(row, limit, &version)?);
            }
            if !rows.is_empty() {
                sections.push((section, rows));
            }
        }
        progress::clear();
        let mut facts = machine::facts();
        facts.push(("gateway", version));
        let all = || sections.iter().flat_map(|(_, rows)| rows);
        facts.extend(all().filter_map(|done| done.findings.as_ref().ok()).flat_map(|found| found.sheet().facts).next());
        let text = results::markdown(&sections, &facts, self.quick, begin.elapsed());
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        for (name, svg) in results::pictures(&sections) {
            write(&pictures.join(name), &svg)?;
        }
        let path = self.out.join("RESULTS.md");
        write(&path, &text)?;
        println!("\n{} has it all, {} a page of each run.", path.display(), self.pages.display());
        if self.quick {
            println!("These were few messages in short rounds: a try, nothing to publish.");
        }
        let well = |done: &Done| done.findings.as_ref().is_ok_and(|findings| findings.sheet().fault.is_none());
        Ok(all().all(well))
    }

    /// Runs a row as if it had been typed.
    fn row(&self, row: &'static Row, limit: u64, version: &str) -> Result<Done> {
        let (mut words, label) = fit(row, limit);
        if self.quick {
            shorten(&mut words);
        }
        for word in &mut words {
            if let ("--redis-spawn", Some(path)) = (&**word, &self.redis_spawn)
                && path.as_os_str() != "redis-server"
            {
                *word = format!("--redis-spawn={}", path.display());
            }
        }
        words.insert(0, "loadtest".to_owned());
        words.extend(["--spawn".to_owned(), self.spawn.display().to_string()]);
        let command = output::command(words.iter().cloned());
        println!("\n$ {command}");
        let mode = Cli::try_parse_from(&words)?.mode;
        // in a thread of its own, which takes with it where it may run, and how exactly it sleeps
        let findings = std::thread::scope(|scope| scope.spawn(|| mode.run()).join());
        let findings = findings.unwrap_or_else(|_| Err("the tester panicked".into()));
        crate::interrupted()?;
        progress::clear();
        let findings = findings.map_err(|error| error.to_string());
        match &findings {
            Ok(findings) => {
                let sheet = findings.sheet();
                print!("{}", sheet.text());
                let facts = [("gateway", version.to_owned()), ("command", command.clone())];
                let page = html::page(&sheet, &[machine::facts().as_slice(), &facts].concat());
                let path = self.pages.join(format!("{}.html", row.name));
                std::fs::write(&path, page).map_err(|error| format!("{}: {error}", path.display()))?;
            }
            Err(error) => println!("not measured: {error}"),
        }
        Ok(Done { name: row.name, words: label, command, findings })
    }
}

/// The words of a row's line and its label, with as many clients as `limit` descriptors of this process allow: one for each
/// client of each server under test.
fn fit(row: &Row, limit: u64) -> (Vec<String>, String) {
    let mut words: Vec<String> = row.line.split_whitespace().map(str::to_owned).collect();
    // there one server comes after the other
    let idle = row.line.starts_with("idle");
    let others = words.iter().filter(|word| match &***word {
        "--floor" | "--raw-redis" | "--slow" | "1,2" | "--tls" => !idle,
        _ => false,
    });
    let most = limit.saturating_sub(512) / (1 + others.count() as u64);
    let mut label = row.words.to_owned();
    numbers(&mut words, &["--clients", "--groups"], |count| {
        if count <= most {
            return count;
        }
        let fewer = most / 500 * 500;
        label = label.replace(&thousands(count), &thousands(fewer));
        fewer
    });
    (words, label)
}

/// Makes a run short.
fn shorten(words: &mut [String]) {
    numbers(words, &["--clients", "--groups"], |count| if count > 2000 { count / 5 } else { count });
    numbers(words, &["--messages", "--cycles"], |count| (count / 20).max(20));
    numbers(words, &["--seconds"], |count| count.min(2));
}

/// Changes the numbers behind some options.
fn numbers(words: &mut [String], options: &[&str], mut change: impl FnMut(u64) -> u64) {
    let mut option = false;
    for word in words {
        if option && let Ok(number) = word.parse() {
            *word = change(number).to_string();
        }
        option = options.contains(&&**word);
    }
}

/// Such as 10,000.
fn thousands(number: u64) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", number / 1000, number % 1000) }
}

/// Of the set, for tests of what is written about it.
#[cfg(test)]
pub(crate) fn first() -> &'static Section {
    &SET[0]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rows() -> impl Iterator<Item = &'static Row> {
        SET.iter().flat_map(|section| section.rows)
    }

    #[test]
    fn every_row_is_a_command_line_with_a_name_of_its_own() {
        for row in rows() {
            for quick in [false, true] {
                let (mut words, _) = fit(row, 20_000);
                if quick {
                    shorten(&mut words);
                }
                let words = ["loadtest".to_owned()].into_iter().chain(words);
                let line = words.chain(["--spawn".to_owned(), "moongate".to_owned()]);
                assert!(Cli::try_parse_from(line).is_ok(), "{}", row.line);
            }
        }
        let names: BTreeSet<&str> = rows().map(|row| row.name).collect();
        assert_eq!(names.len(), rows().count());
    }

    #[test]
    fn a_row_has_as_many_clients_as_descriptors_allow() {
        let row = rows().find(|row| row.name == "groups-10000").unwrap();
        let (words, label) = fit(row, 1 << 20);
        assert!(words.join(" ").contains("--clients 10000 --groups 10000") && label == "10,000 groups of one");
        let (words, label) = fit(row, 20_000);
        assert!(words.join(" ").contains("--clients 9500 --groups 9500") && label == "9,500 groups of one", "{label}");
    }

    #[test]
    fn a_quick_row_is_a_short_one() {
        let mut words: Vec<String> =
            "fanout --clients 5000 --messages 400 --rate 50".split(' ').map(str::to_owned).collect();
        shorten(&mut words);
        assert_eq!(words.join(" "), "fanout --clients 1000 --messages 20 --rate 50");
    }
}
