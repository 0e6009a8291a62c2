//! What is heard on the bus: it is on the bus already, so this node does its own part and passes nothing on.
//!
//! One task takes what is heard, in order, and puts it into the shards' inboxes; it waits for nothing but room there.
//! What is to be answered is finished in tasks of its own.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::part::{Done, Job, NotAJob, Part, Started};
use super::{ANSWER_TIME, Failure, Gateway};
use crate::cluster::{Back, Channel, Departure, Do, Heard, Inbox, Said};
use crate::command::{Command, MAX_BATCH};
use crate::hub::{Stopped, Target, Topic};
use crate::id::ClientId;
use crate::json::Invalid;
use crate::metrics::Reason;
use crate::throttle::Throttle;

/// Jobs that may wait for Redis at once; beyond it nothing more is taken from the bus.
const MOST_UNFINISHED: usize = 10_000;

/// Clients whose departure is told at once.
const MOST_FAREWELLS: usize = 64;

impl Gateway {
    /// Does what is heard, until the bus or the hub ends.
    pub(crate) async fn hear(self: Arc<Self>, mut inbox: Inbox) {
        let mut ear = Ear { gateway: self, unfinished: JoinSet::new(), complain: Throttle::default() };
        while let Some(heard) = inbox.next().await {
            if ear.take(heard).await.is_err() {
                return;
            }
            while ear.unfinished.try_join_next().is_some() {}
            if ear.unfinished.len() >= MOST_UNFINISHED {
                ear.unfinished.join_next().await;
            }
        }
    }

    /// Tells of those who have left, when all nodes know that they have: clients of this node, and of dead ones.
    pub(crate) async fn mourn(self: Arc<Self>, mut departed: mpsc::Receiver<Departure>) {
        let mut telling = JoinSet::new();
        while let Some(departure) = departed.recv().await {
            while telling.try_join_next().is_some() {}
            if telling.len() >= MOST_FAREWELLS {
                telling.join_next().await;
            }
            let gateway = Arc::clone(&self);
            telling.spawn(async move {
                // It counts as told when it is dropped.
                gateway.departed(&departure.departed).await;
            });
        }
        // The last ones, of a node that stops.
        telling.join_all().await;
    }
}

struct Ear {
    gateway: Arc<Gateway>,
    unfinished: JoinSet<()>,
    complain: Throttle,
}

impl Ear {
    async fn take(&mut self, heard: Heard) -> Result<(), Stopped> {
        let Heard { channel, said, .. } = heard;
        match said {
            Said::Message(message) => {
                if let Some(to) = target(&channel) {
                    // Nobody asks what became of it.
                    drop(self.gateway.hub.begin_delivery(to, None, message, false).await?);
                }
                Ok(())
            }
            Said::Part(part, message) => self.part(&channel, part, &message).await,
            Said::Command(json) => self.command(&json).await,
            Said::Tail(tailed, Back { to, id }) => {
                self.gateway.hub.tails().watch(tailed, to, id, Instant::now());
                Ok(())
            }
            Said::Copy(id, line) => {
                self.gateway.tailing.heard(id, line);
                Ok(())
            }
        }
    }

    /// A part of a command that a node said.
    async fn part(&mut self, channel: &Channel, part: Do, message: &Bytes) -> Result<(), Stopped> {
        let Do { part, back, until } = part;
        if until.is_some_and(|until| self.gateway.cluster.as_ref().is_some_and(|cluster| cluster.is_over(until))) {
            self.lost("late", &"its time is over");
            return Ok(());
        }
        let mut job = match Job::read(part.get(), message) {
            Ok(job) => job,
            Err(NotAJob::Unknown(word)) if target(channel).is_none() => {
                self.lost("unknown", &word);
                if let Some(cluster) = &self.gateway.cluster {
                    cluster.heard_unknown();
                }
                return Ok(());
            }
            Err(error) => {
                self.lost("garbage", &error);
                return Ok(());
            }
        };
        // On a target's channel it can only be a send, and to this target.
        if let Some(target) = target(channel) {
            match &mut job.part {
                Part::Send { to, .. } => *to = target,
                _ => {
                    self.lost("garbage", &"this may not be said to a target");
                    return Ok(());
                }
            }
        }
        let started = self.gateway.begin(job).await?;
        self.finish(started, back);
        Ok(())
    }

    /// A command that a program said to all nodes.
    async fn command(&mut self, json: &[u8]) -> Result<(), Stopped> {
        let commands = match commands(json) {
            Ok(commands) => commands,
            Err(error) => {
                self.lost("invalid", &error);
                return Ok(());
            }
        };
        for job in commands {
            match job {
                Ok(job) if self.concerns_us(&job) => {
                    // Whom it replaces Redis says: those that were bound before must be there.
                    if let Some(uid) = job.single_uid() {
                        self.gateway.has_told_who_is_bound(uid).await?;
                    }
                    let started = self.gateway.begin(job).await?;
                    self.finish(started, None);
                }
                Ok(_) => {}
                Err(error) => self.lost("invalid", &error),
            }
        }
        Ok(())
    }

    /// What is done with one client is done by its node.
    fn concerns_us(&self, job: &Job) -> bool {
        let is_ours = |id: ClientId| self.gateway.cluster.as_ref().is_some_and(|cluster| cluster.lan() == id.lan);
        job.part.client_id().is_none_or(is_ours)
    }

    /// Finishes a job in its own time, and answers.
    fn finish(&mut self, started: Started, back: Option<Back>) {
        if back.is_none() && matches!(started, Started::Delivering(_)) {
            return;
        }
        let gateway = Arc::clone(&self.gateway);
        self.unfinished.spawn(async move {
            let done = gateway.finish(started, Instant::now() + ANSWER_TIME).await;
            match (back, &gateway.cluster) {
                (Some(back), Some(cluster)) => {
                    // Whoever asked waits no longer than it wants to.
                    if let Err(error) = cluster.answer(back, written(&done)).await {
                        tracing::debug!(%error, "an answer to another node was not sent");
                    }
                }
                _ => {
                    if let Err(failure) = done {
                        tracing::debug!(%failure, "a command from the bus failed");
                    }
                }
            }
        });
    }

    fn lost(&self, reason: &'static str, why: &dyn std::fmt::Display) {
        self.gateway.metrics.bus_lost.get_or_create(&Reason { reason }).inc();
        if self.complain.allows() {
            tracing::warn!(%why, "what was said on the bus is refused (said at most once a second)");
        }
    }
}

fn written(done: &Result<Done, Failure>) -> Box<RawValue> {
    // Our own structs of strings and numbers: this cannot fail.
    to_raw_value(done).unwrap_or_default()
}

/// Whom a channel names.
fn target(channel: &Channel) -> Option<Target> {
    Some(match channel {
        Channel::Topic(Topic::All) => Target::All,
        Channel::Topic(Topic::Uid(uid)) => Target::Uids([uid.clone()].into()),
        Channel::Topic(Topic::Group(group)) => Target::Groups([group.clone()].into()),
        Channel::Topic(Topic::Client(id)) => Target::Clients([*id].into()),
        Channel::Command | Channel::Ask | Channel::Node(_) => return None,
    })
}

/// The jobs of a command or a batch; neighbouring changes of one client are one.
pub(super) fn commands(json: &[u8]) -> Result<Vec<Result<Job, String>>, String> {
    let json = std::str::from_utf8(json).map_err(|_| "a command is JSON, and this is not even text")?;
    let commands = match Command::parse_object(json).map_err(|error| error.to_string())? {
        Command::Batch(batch) if batch.commands.len() > MAX_BATCH => {
            return Err(Invalid::field("commands", format_args!("takes at most {MAX_BATCH} commands")).to_string());
        }
        Command::Batch(batch) => {
            let read = |value: &crate::command::Value| Command::parse_object(value.0.get());
            batch.commands.iter().map(read).collect()
        }
        command => vec![Ok(command)],
    };
    let mut jobs: Vec<Result<Job, String>> = Vec::with_capacity(commands.len());
    for command in commands {
        let job = command.map_err(|error| error.to_string()).and_then(|command| {
            let name = command.name();
            match Job::of(command) {
                Ok(job) => job.map_err(|failure| failure.to_string()),
                Err(
                    Command::AddTask(_)
                    | Command::CancelTask(_)
                    | Command::RetryTask(_)
                    | Command::GetTask(_)
                    | Command::ListTasks(_),
                ) => Err(format!("{name} is not taken here, where nobody is answered: say it over HTTP or as a task")),
                Err(_) => Err(format!("{name} is a question: it has no answer here")),
            }
        });
        match (jobs.last_mut(), job) {
            (Some(Ok(last)), Ok(job)) => {
                if let Err(job) = last.join(job) {
                    jobs.push(Ok(job));
                }
            }
            (_, job) => jobs.push(job),
        }
    }
    Ok(jobs)
}
