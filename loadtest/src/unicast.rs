//! `unicast`: every message goes to one uid out of many.

use clap::{Args, value_parser};

use crate::Result;
use crate::publish::{Kind, Pace};
use crate::report::Report;
use crate::scenario::{RunArgs, Scenario};
use crate::target::Door;

/// Options of `unicast`.
#[derive(Debug, Args)]
pub(crate) struct UnicastArgs {
    /// Connections, each bound to a uid of its own
    #[arg(long, default_value_t = 5000)]
    clients: usize,
    /// Messages in each round
    #[arg(long, default_value_t = 200_000, value_parser = value_parser!(u64).range(1..))]
    messages: u64,
    /// Connections that publish, each with one request on the way; through Redis, messages that are published on one
    /// connection and not delivered yet
    #[arg(long, default_value_t = 256)]
    inflight: usize,
    /// So many messages a second, on a fixed schedule from which latency counts; else as fast as answers come
    #[arg(long)]
    rate: Option<f64>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

impl UnicastArgs {
    /// Runs it.
    pub(crate) fn run(&self) -> Result<Report> {
        let Self { clients, messages, inflight, run, .. } = self;
        if *inflight == 0 {
            return Err("--inflight: at least 1".into());
        }
        let (pace, lanes, door) = match run.sitting.target.door()? {
            Door::Http => (Pace::Free, (*inflight).min(*clients), ""),
            Door::Redis => (Pace::Window(u32::try_from(*inflight)?), 1, ", through Redis"),
            Door::Tasks => (Pace::Window(u32::try_from(*inflight)?), 1, ", as tasks"),
            Door::Php => (Pace::Window(u32::try_from(*inflight)?), 1, ", as PHP"),
        };
        let words = self.rate.map_or(format!("{inflight} in flight"), |rate| format!("{rate} messages/s"));
        let title = format!("unicast: to one uid of {clients}, {}, {messages} messages, {words}{door}", run.form());
        let pace = self.rate.map_or(pace, Pace::Rate);
        let kind = Kind::Uid;
        Scenario {
            args: run,
            title,
            kind,
            clients: *clients,
            topics: *clients,
            slow: 0,
            messages: *messages,
            pace,
            lanes,
        }
        .run()
    }
}
