//! Load tester of the Moongate push gateway: what a delivery, a message to one uid, a client's coming and going, and an idle
//! connection cost the server, and how that compares with what the kernel charges a bare server for the same in the same minute.

mod certificate;
mod churn;
mod clients;
mod fanout;
mod floor;
mod frame;
mod http;
mod idle;
mod message;
mod process;
mod publish;
mod redis;
mod report;
mod scenario;
mod series;
mod session;
mod soak;
mod socket;
mod storm;
mod target;
mod unicast;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

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
            eprintln!("loadtest: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs a mode and prints; `false` when messages were lost, doubled or out of order.
fn run(mode: &Mode) -> Result<bool> {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&STOP))?;
    }
    let (report, json) = match mode {
        Mode::Fanout(args) => (args.run()?, args.run.sitting.json),
        Mode::Unicast(args) => (args.run()?, args.run.sitting.json),
        Mode::Churn(args) => (args.run()?, args.sitting.json),
        Mode::Idle(args) => {
            let report = args.run()?;
            print(&report, &report.table(), args.json)?;
            return Ok(report.pass());
        }
        Mode::Storm(args) => {
            let report = args.run()?;
            print(&report, &report.table(), args.json)?;
            return Ok(report.pass());
        }
        Mode::Soak(args) => {
            let report = args.run()?;
            print(&report, &report.table(), args.json)?;
            return Ok(report.pass());
        }
        Mode::FloorServer => return Ok(true),
    };
    print(&report, &report.table(), json)?;
    Ok(report.pass())
}

fn print(report: &impl Serialize, table: &str, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        print!("{table}");
    }
    Ok(())
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
