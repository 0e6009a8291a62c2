//! Load tester of the Moongate push gateway: what a delivery, a message to one uid, a client's coming and going, and an idle
//! connection cost the server, and how that compares with what the kernel charges a bare server for the same in the same minute.

mod bench;
mod certificate;
mod churn;
mod clients;
mod fanout;
mod floor;
mod frame;
mod html;
mod http;
mod idle;
mod machine;
mod message;
mod output;
mod process;
mod progress;
mod publish;
mod redis;
mod report;
mod results;
mod scenario;
mod series;
mod server;
mod session;
mod sheet;
mod soak;
mod socket;
mod storm;
mod svg;
mod target;
mod unicast;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::idle::IdleReport;
use crate::output::OutputArgs;
use crate::report::Report;
use crate::sheet::Sheet;
use crate::soak::SoakReport;
use crate::storm::StormReport;
use crate::target::TargetArgs;

/// Errors are sentences for the person at the terminal; nobody distinguishes them.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long a single step of setting up may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Fails once SIGINT or SIGTERM came, so that a started gateway is stopped on the way out.
pub(crate) fn interrupted() -> Result<()> {
    if STOP.load(Ordering::Relaxed) { Err("interrupted".into()) } else { Ok(()) }
}

/// Reads `10s`, `500ms`, `2m` or `1h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration> {
    const EXAMPLES: &str = "such as 500ms, 10s, 2m or 1h";
    let split = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(split).unwrap_or_default();
    let number: u64 = number.parse().map_err(|_| EXAMPLES)?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_mins(number)),
        "h" => Ok(Duration::from_hours(number)),
        _ => Err(EXAMPLES.into()),
    }
}

#[derive(Debug, Parser)]
#[command(name = "loadtest", about = "Load tester of the Moongate push gateway", version)]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Messages to groups: cost and latency per delivery
    Fanout(fanout::FanoutArgs),
    /// Messages to single uids: cost and latency per message
    Unicast(unicast::UnicastArgs),
    /// Clients that come, are bound, and go: cost of a cycle
    Churn(churn::ChurnArgs),
    /// Connections that only are there: memory and heartbeats
    Idle(idle::IdleArgs),
    /// Everyone is cut off and comes back: how long it takes, and what it costs
    Storm(storm::StormArgs),
    /// An hour and more of everything together: whether memory grows, and whether anything is lost
    Soak(soak::SoakArgs),
    /// The standard set: all of it, one after another, as Markdown, pictures and pages
    Bench(bench::BenchArgs),
    /// The bare server (started by --floor)
    #[command(hide = true)]
    FloorServer,
}

fn main() -> ExitCode {
    let mode = Cli::parse().mode;
    let outcome = if let Mode::FloorServer = mode { floor::serve().map(|()| true) } else { run(&mode) };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            progress::clear();
            eprintln!("loadtest: {error}");
            ExitCode::from(2)
        }
    }
}

/// What a mode found.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Findings {
    Rounds(Report),
    Idle(IdleReport),
    Storm(StormReport),
    Soak(Box<SoakReport>),
}

impl Findings {
    fn sheet(&self) -> Sheet {
        match self {
            Self::Rounds(report) => report.sheet(),
            Self::Idle(report) => report.sheet(),
            Self::Storm(report) => report.sheet(),
            Self::Soak(report) => report.sheet(),
        }
    }
}

impl Mode {
    /// Where its report goes, and what it tests.
    fn options(&self) -> Option<(&OutputArgs, &TargetArgs)> {
        match self {
            Self::Fanout(args) => Some((&args.run.sitting.output, &args.run.sitting.target)),
            Self::Unicast(args) => Some((&args.run.sitting.output, &args.run.sitting.target)),
            Self::Churn(args) => Some((&args.sitting.output, &args.sitting.target)),
            Self::Idle(args) => Some((&args.output, &args.target)),
            Self::Storm(args) => Some((&args.output, &args.target)),
            Self::Soak(args) => Some((&args.output, &args.target)),
            Self::Bench(_) | Self::FloorServer => None,
        }
    }

    fn run(&self) -> Result<Findings> {
        match self {
            Self::Fanout(args) => args.run().map(Findings::Rounds),
            Self::Unicast(args) => args.run().map(Findings::Rounds),
            Self::Churn(args) => args.run().map(Findings::Rounds),
            Self::Idle(args) => args.run().map(Findings::Idle),
            Self::Storm(args) => args.run().map(Findings::Storm),
            Self::Soak(args) => args.run().map(|report| Findings::Soak(Box::new(report))),
            Self::Bench(_) | Self::FloorServer => Err("not a mode that reports".into()),
        }
    }
}

/// Runs a mode and shows what it found; `false` when messages were lost, doubled or out of order.
fn run(mode: &Mode) -> Result<bool> {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&STOP))?;
    }
    if let Mode::Bench(args) = mode {
        return args.run();
    }
    let Some((output, target)) = mode.options() else {
        return Ok(true);
    };
    let file = output.create()?;
    let findings = mode.run()?;
    let sheet = findings.sheet();
    let gateway = target.version().map(|version| ("gateway", version));
    let command = ("command", output::command(std::env::args()));
    output.show(file, &findings, &sheet, gateway.into_iter().chain([command]).collect())?;
    Ok(sheet.fault.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_mins(2));
        assert!(parse_duration("10").is_err() && parse_duration("s").is_err() && parse_duration("1d").is_err());
        assert_eq!(parse_duration("2h").unwrap(), Duration::from_hours(2));
    }
}
