//! What fan-out and unicast have in common: the same clients on each gateway, on the floor, and on bare Redis, rounds in
//! turn, and the figures of each round. Churn shares the sitting: what is opened, and whose turn it is.

use std::time::{Duration, Instant};

use clap::Args;

use crate::clients::{self, Connected, Pool, Stats};
use crate::floor::{self, Floor};
use crate::message;
use crate::output::OutputArgs;
use crate::process::{self, Pin};
use crate::progress;
use crate::publish::{Kind, PIPELINE, Pace, Plan, Publisher, Wire};
use crate::redis::Redis;
use crate::report::{Contestant, Report, Role, Round, Unit};
use crate::server::{Server, home, members, memberships};
use crate::target::{Door, TargetArgs};
use crate::{Result, parse_duration};

/// Options of every mode that compares.
#[derive(Debug, Args)]
pub(crate) struct SittingArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Run the same against the built-in bare server, in turn; without a gateway, only that
    #[arg(long)]
    pub(crate) floor: bool,
    /// Keep the tester on the last processor and started servers off it: steadier figures, as the kernel then cannot
    /// place the two differently from round to round
    #[arg(long)]
    pub(crate) pin: bool,
    /// How often; 3 where something is compared, else 1
    #[arg(long)]
    pub(crate) rounds: Option<usize>,
    /// Messages (or cycles) before the first round that are checked but not measured; a tenth of a round's by default
    #[arg(long)]
    pub(crate) warmup: Option<u64>,
    /// Without a delivery (or a cycle's end) for so long, what is missing counts as lost
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(crate) deadline: Duration,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Options of every mode that publishes.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) sitting: SittingArgs,
    /// Bytes of a message
    #[arg(long, default_value_t = 128)]
    pub(crate) size: usize,
    /// Send what is no text: as base64 over HTTP, as bytes through Redis; it must arrive in binary frames
    #[arg(long)]
    pub(crate) binary: bool,
    /// Receiving threads for each server under test
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
    /// Run the same without a gateway, in turn: from the publisher through the same Redis to subscribers in the tester
    #[arg(long)]
    pub(crate) raw_redis: bool,
}

impl RunArgs {
    /// How a message looks, for the reader.
    pub(crate) fn form(&self) -> String {
        format!("{} B{}", self.size, if self.binary { " binary" } else { "" })
    }
}

/// Who does a round when it is its turn: a side by number, and how.
pub(crate) struct Turn {
    /// Its rounds so far.
    pub(crate) contestant: Contestant,
    /// Number of the side.
    pub(crate) side: usize,
    /// For the floor: gather what waits for one socket.
    pub(crate) joined: bool,
}

impl SittingArgs {
    /// Starts or finds all that is to be compared, with one more gateway for `slow` clients, if there are any. `each` is the
    /// descriptors that each needs of ours.
    pub(crate) fn open(&self, raw: bool, slow: usize, each: usize) -> Result<Vec<(Role, String, Server)>> {
        let clusters = self.target.clusters()?;
        if raw && clusters.iter().any(|cluster| cluster.masters > 0) {
            return Err("--raw-redis: not with --masters, as its subscribers in the tester know no slots".into());
        }
        let others = usize::from(self.floor) + usize::from(raw) + usize::from(slow > 0);
        process::raise_descriptors((each * (clusters.len() + others) + slow) as u64)?;
        let pin = if self.pin { Some(Pin::new()?) } else { None };
        pin.as_ref().map_or(Ok(()), Pin::as_server)?;
        let mut servers = Vec::new();
        let mut redis = None;
        for cluster in clusters {
            let target = self.target.open(&cluster)?;
            redis = redis.or_else(|| target.redis.clone());
            let role = if cluster.tls { Role::Tls } else { Role::Gateway };
            servers.push((role, cluster.name, Server::Gateway(target)));
        }
        if slow > 0 {
            let cluster = self.target.again()?;
            let name = format!("{}, beside {slow} slow", cluster.name);
            servers.push((Role::Slow, name, Server::Gateway(self.target.open(&cluster)?)));
        }
        if self.floor {
            servers.push((Role::Floor, "floor, plain".to_owned(), Server::Floor(Floor::spawn()?)));
        }
        if raw {
            let redis = if redis.is_some() { redis } else { self.target.redis(0)? };
            let redis = redis.ok_or("--raw-redis: name one, --redis or --redis-spawn")?;
            servers.push((Role::Raw, "raw Redis".to_owned(), Server::Raw(redis)));
        }
        pin.as_ref().map_or(Ok(()), Pin::as_tester)?;
        if servers.is_empty() {
            return Err("name a gateway (--spawn, or --ws and --api), or --floor, or both".into());
        }
        Ok(servers)
    }

    /// Everyone's warm-up, then the rounds, by turns; `round` is told whose it is, and how many messages or cycles.
    pub(crate) fn rounds(
        &self,
        mut turns: Vec<Turn>,
        count: u64,
        mut round: impl FnMut(&Turn, u64) -> Result<(Round, Stats)>,
    ) -> Result<Vec<Contestant>> {
        let warmup = self.warmup.unwrap_or(count / 10);
        let rounds = self.rounds.unwrap_or(if turns.len() > 1 { 3 } else { 1 });
        progress::phase("warm-up", (warmup + rounds as u64 * count) * turns.len() as u64);
        let mut done = 0;
        if warmup > 0 {
            for turn in &mut turns {
                progress::stretch(format!("warm-up, {}", turn.contestant.name()), done);
                let (figures, _) = round(turn, warmup)?;
                done += warmup;
                turn.contestant.warm_up(figures);
            }
        }
        'rounds: for number in 1..=rounds {
            for turn in &mut turns {
                if turn.contestant.gave_up() {
                    break 'rounds;
                }
                progress::stretch(format!("round {number} of {rounds}, {}", turn.contestant.name()), done);
                let (figures, stats) = round(turn, count)?;
                done += count;
                turn.contestant.add(figures, &stats)?;
            }
        }
        Ok(turns.into_iter().map(|turn| turn.contestant).collect())
    }
}

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Scenario<'a> {
    /// Options.
    pub(crate) args: &'a RunArgs,
    /// One line for the reader.
    pub(crate) title: String,
    /// Groups or uids.
    pub(crate) kind: Kind,
    /// Connections per server.
    pub(crate) clients: usize,
    /// Number of groups or uids; client `i` is in topic `i % topics`.
    pub(crate) topics: usize,
    /// Further clients of one more gateway, who never read.
    pub(crate) slow: usize,
    /// Messages in each round.
    pub(crate) messages: u64,
    /// When.
    pub(crate) pace: Pace,
    /// Connections that publish.
    pub(crate) lanes: usize,
}

/// One server with its clients and its publisher.
struct Side {
    publisher: Publisher,
    pool: Pool,
    /// Those who never read, open as long as the rest.
    _slow: Vec<Connected>,
    /// What each client takes of Redis, bytes.
    redis_memory: Option<f64>,
    // after the pool: the clients say goodbye before the server goes
    server: Server,
}

impl Scenario<'_> {
    fn plan(&self, messages: u64, joined: bool) -> Plan {
        let RunArgs { size, binary, sitting, .. } = self.args;
        let (size, binary, deadline) = (*size, *binary, sitting.deadline);
        Plan { messages, pace: self.pace, size, binary, joined, deadline, from: None }
    }

    /// Sets everything up, runs the rounds in turn, and reports.
    pub(crate) fn run(&self) -> Result<Report> {
        let burst = if let Pace::Backlog(count) = self.pace { count as usize } else { 1 };
        message::check_size(self.args.size, burst)?;
        message::check_form(self.args.size, self.args.binary, self.topics, self.messages)?;
        if self.args.binary && self.args.sitting.target.door()? == Door::Php {
            return Err("--binary: not with --door php, which sends everything as text".into());
        }
        if burst > 1000 {
            return Err("--backlog: at most 1000, the gateway's limit for one batch".into());
        }
        if self.clients == 0 || self.topics == 0 || self.topics > self.clients {
            return Err("at least one client in each topic is needed".into());
        }
        if let Pace::Rate(rate) = self.pace
            && !(rate.is_finite() && rate >= 0.001)
        {
            return Err("--rate: at least 0.001 is wanted".into());
        }
        let epoch = Instant::now();
        let mut sides = Vec::new();
        let mut turns = Vec::new();
        let servers = self.args.sitting.open(self.args.raw_redis, self.slow, self.clients + self.spare())?;
        for (number, (role, name, server)) in servers.into_iter().enumerate() {
            let slow = if role == Role::Slow { self.slow } else { 0 };
            let side = self.side(server, slow, 1 + number as u8, epoch)?;
            let mut turn = |name: &str, joined| -> Result<()> {
                let contestant = Contestant::new(role, name)?.with_redis_memory(side.redis_memory);
                turns.push(Turn { contestant, side: number, joined });
                Ok(())
            };
            turn(&name, false)?;
            if role == Role::Floor && burst > 1 {
                turn("floor, joined", true)?;
            }
            sides.push(side);
        }
        let whose: Vec<usize> = turns.iter().map(|turn| turn.side).collect();
        let pinned = self.args.sitting.pin;
        let mut contestants = self.args.sitting.rounds(turns, self.messages, |turn, messages| {
            let side = sides.get_mut(turn.side).ok_or("no such side")?;
            side.round(&self.plan(messages, turn.joined), pinned)
        })?;
        for (contestant, side) in contestants.iter_mut().zip(whose) {
            contestant.blame(sides.get(side).ok_or("no such side")?.pool.take()?);
        }
        Ok(Report::new(&self.title, Unit::Delivery, contestants))
    }

    /// Descriptors beside those of the clients.
    fn spare(&self) -> usize {
        self.lanes + 64
    }

    fn side(&self, server: Server, slow: usize, number: u8, epoch: Instant) -> Result<Side> {
        let memory = || server.redis().map(Redis::memory).transpose();
        let empty = memory()?;
        let (mut connected, wire) = match &server {
            Server::Gateway(target) => {
                let home = |client| home(client, self.topics, target.nodes.len());
                let connected = server.connect(0..self.clients + slow, self.spare(), home, number)?;
                let group =
                    |number| if let Kind::Apart { .. } = self.kind { number as u32 } else { self.topic(number) };
                for (node, mut caller) in target.callers()?.into_iter().enumerate() {
                    let ids = connected.iter().enumerate().filter(|(_, client)| client.home == node);
                    let ids = ids.map(|(number, client)| (&*client.client_id, group(number)));
                    caller.batch(&memberships(ids, self.kind))?;
                }
                (connected, target.wire(self.kind)?)
            }
            Server::Floor(floor) => {
                let connected = server.connect(0..self.clients, self.spare(), |_| 0, number)?;
                let ids = connected.iter().enumerate();
                let ids = ids.map(|(number, client)| (client.client_id.clone(), self.topic(number)));
                floor::join(floor.control, ids)?;
                (connected, Wire::Floor(floor.control))
            }
            Server::Raw(redis) => {
                const PREFIX: &str = "loadtest-raw";
                let channels = (0..self.clients).map(|client| self.kind.channel(PREFIX, self.topic(client)));
                let connected = clients::subscribe(&redis.servers, channels)?;
                (connected, Wire::Redis(redis.servers.clone(), PREFIX.to_owned(), self.kind))
            }
        };
        let redis_memory =
            memory()?.zip(empty).map(|(full, empty)| (full as f64 - empty as f64) / connected.len() as f64);
        let slow = connected.split_off(self.clients);
        slow.iter().try_for_each(Connected::ignore)?;
        // the floor is driven as the gateway is
        let depth = if self.args.sitting.target.door()? == Door::Http { 1 } else { PIPELINE };
        let publisher = Publisher::new(&wire, self.lanes, depth, members(self.clients, self.topics), epoch)?;
        let clients =
            connected.into_iter().enumerate().map(|(index, client)| (client, [self.topic(index); 2])).collect();
        let pool = Pool::start(clients, self.args.threads, self.args.size, epoch, publisher.gate())?;
        Ok(Side { publisher, pool, _slow: slow, redis_memory, server })
    }

    fn topic(&self, client: usize) -> u32 {
        (client % self.topics) as u32
    }
}

impl Side {
    /// Publishes as planned and measures. A tester that is `pinned` has one core for all its threads.
    fn round(&mut self, plan: &Plan, pinned: bool) -> Result<(Round, Stats)> {
        let between = self.pool.take()?;
        let (server, own, before) = (self.server.spent()?, process::own_cpu()?, self.threads()?);
        let outcome = self.publisher.run(plan)?;
        let (tester, after) = (process::own_cpu()?.since(own), self.threads()?);
        // for what the server does behind the last delivery, and for duplicates
        std::thread::sleep(Duration::from_millis(50));
        let spent = self.server.spent()?.since(&server);
        let stats = self.pool.take()?;
        let busiest = before.iter().zip(&after).map(|(before, after)| after.saturating_sub(*before)).max();
        let one_core = if pinned { tester.total() } else { busiest.unwrap_or(0) };
        let mut round = Round::new(&outcome, &stats, spent, tester, one_core);
        round.blame(between);
        Ok((round, stats))
    }

    /// CPU time of each of our threads that work for this side; the publisher is the caller.
    fn threads(&self) -> Result<Vec<u64>> {
        let ids = self.pool.thread_ids().into_iter().chain([process::own_thread()]);
        ids.map(|id| Ok(process::thread_cpu(id)?.total())).collect()
    }
}
