//! `fanout`: every message goes to all clients of a group.

use clap::{Args, value_parser};

use crate::Result;
use crate::publish::{Kind, Pace};
use crate::report::Report;
use crate::scenario::{RunArgs, Scenario};
use crate::target::Door;

/// The most groups that a command takes.
const MOST_GROUPS: usize = 10_000;

/// Options of `fanout`.
#[derive(Debug, Args)]
pub(crate) struct FanoutArgs {
    /// Connections
    #[arg(long, default_value_t = 1000)]
    clients: usize,
    /// Groups to which they are dealt
    #[arg(long, default_value_t = 1)]
    groups: usize,
    /// Each client in a group of its own instead; a message names all groups of a former one
    #[arg(long)]
    apart: bool,
    /// Messages in each round
    #[arg(long, default_value_t = 2000, value_parser = value_parser!(u64).range(1..))]
    messages: u64,
    /// At most so many messages undelivered, filled up when half of them have reached everyone
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..), conflicts_with_all = ["rate", "backlog"])]
    window: u32,
    /// So many messages a second, on a fixed schedule from which latency counts
    #[arg(long, conflicts_with = "backlog")]
    rate: Option<f64>,
    /// So many messages to a group in one batch (through Redis, in one write), the next when all were delivered
    #[arg(long)]
    backlog: Option<u32>,
    /// Connections that publish; each group keeps to one of them
    #[arg(long, default_value_t = 1)]
    publishers: usize,
    /// Run the same against one more gateway, in turn, where so many further members never read
    #[arg(long, default_value_t = 0, conflicts_with_all = ["apart", "raw_redis", "tls"])]
    slow: usize,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

impl FanoutArgs {
    /// Runs it.
    pub(crate) fn run(&self) -> Result<Report> {
        let (pace, words) = match (self.rate, self.backlog) {
            (Some(rate), _) => (Pace::Rate(rate), format!("{rate} messages/s")),
            (None, Some(backlog)) => (Pace::Backlog(backlog), format!("{backlog} waiting per client")),
            (None, None) => (Pace::Window(self.window), format!("window {}", self.window)),
        };
        let Self { clients, groups, messages, publishers, slow, run, .. } = self;
        let door = run.sitting.target.door()?;
        if self.apart && run.raw_redis {
            return Err("--apart: not with --raw-redis, where a message has one channel".into());
        }
        let together = clients.div_ceil((*groups).max(1));
        if self.apart && together > MOST_GROUPS {
            return Err(format!(
                "--apart: a command names {MOST_GROUPS} groups at most, not {together}: more --groups"
            )
            .into());
        }
        let door = match door {
            Door::Http => "",
            Door::Redis => ", through Redis",
            Door::Tasks => ", as tasks",
            Door::Php => ", as PHP",
        };
        let (into, kind) = if self.apart {
            let kind = Kind::Apart { topics: u32::try_from(*groups)?, clients: u32::try_from(*clients)? };
            (format!("groups of one, {together} in a message"), kind)
        } else {
            (format!("{groups} group(s)"), Kind::Group)
        };
        let title = format!("fanout: {clients} clients in {into}, {}, {messages} messages, {words}{door}", run.form());
        let lanes = (*publishers).min(*groups);
        let (clients, topics, messages, slow) = (*clients, *groups, *messages, *slow);
        Scenario { args: run, title, kind, clients, topics, slow, messages, pace, lanes }.run()
    }
}
