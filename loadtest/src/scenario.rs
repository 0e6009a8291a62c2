//! What fan-out and unicast have in common: the same clients on the gateway, plain and over TLS, and on the floor, rounds in turn, and the
//! figures of each round.

use std::time::{Duration, Instant};

use clap::Args;

use crate::clients::{self, Pool, Stats};
use crate::floor::{self, Floor};
use crate::http::Caller;
use crate::message;
use crate::publish::{Kind, Pace, Plan, Publisher, Wire};
use crate::report::{Contestant, Report, Role, Round};
use crate::target::{self, Cpu, Meter, Pin, Target, TargetArgs};
use crate::{Result, parse_duration};

/// Options of every mode that publishes.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Bytes of a message
    #[arg(long, default_value_t = 128)]
    pub(crate) size: usize,
    /// Run the same against the built-in bare server, in turn; without a gateway, only that
    #[arg(long)]
    pub(crate) floor: bool,
    /// Keep the tester on the last processor and started servers off it: steadier figures, as the kernel then cannot
    /// place the two differently from round to round
    #[arg(long)]
    pub(crate) pin: bool,
    /// How often; 3 with --floor or --tls, else 1
    #[arg(long)]
    pub(crate) rounds: Option<usize>,
    /// Messages before the first round that are checked but not measured; a tenth of --messages by default
    #[arg(long)]
    pub(crate) warmup: Option<u64>,
    /// Receiving threads for each server under test
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
    /// Without a delivery for so long, what is missing counts as lost
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(crate) deadline: Duration,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
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
    /// Messages in each round.
    pub(crate) messages: u64,
    /// When.
    pub(crate) pace: Pace,
    /// Connections that publish.
    pub(crate) lanes: usize,
}

/// One server with its clients and its publisher.
pub(crate) struct Side {
    /// Sends.
    pub(crate) publisher: Publisher,
    /// Receives.
    pub(crate) pool: Pool,
    meter: Meter,
    // after the pool: the clients say goodbye before the server goes
    _server: Server,
}

enum Server {
    Gateway { _target: Target },
    Floor { _floor: Floor },
}

/// The commands that put clients, given as ids, into their topics.
pub(crate) fn memberships<'a>(ids: impl Iterator<Item = (&'a str, u32)>, kind: Kind) -> Vec<String> {
    let command = |(id, topic): (&str, u32)| match kind {
        Kind::Group => {
            format!("{{\"op\":\"joinGroup\",\"client_id\":\"{id}\",\"group\":\"g{topic}\"}}")
        }
        Kind::Uid => format!("{{\"op\":\"bindUid\",\"client_id\":\"{id}\",\"uid\":\"u{topic}\"}}"),
    };
    ids.map(command).collect()
}

/// How many of `clients` are in each of `topics`.
pub(crate) fn members(clients: usize, topics: usize) -> Vec<u32> {
    (0..topics).map(|topic| (clients / topics + usize::from(topic < clients % topics)) as u32).collect()
}

impl Scenario<'_> {
    fn plan(&self, messages: u64, joined: bool) -> Plan {
        Plan { messages, pace: self.pace, size: self.args.size, joined, deadline: self.args.deadline }
    }

    /// Sets everything up, runs the rounds in turn, and reports.
    pub(crate) fn run(&self) -> Result<Report> {
        let burst = if let Pace::Backlog(count) = self.pace { count as usize } else { 1 };
        message::check_size(self.args.size, burst)?;
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
        let each = self.clients + self.lanes + 64;
        let (tls, floor) = (self.args.target.tls()?, self.args.floor);
        target::raise_descriptors((each * (1 + usize::from(tls) + usize::from(floor))) as u64)?;
        let pin = if self.args.pin { Some(Pin::new()?) } else { None };
        let epoch = Instant::now();
        let mut sides = Vec::new();
        let mut turns = Vec::new();
        pin.as_ref().map_or(Ok(()), Pin::as_server)?;
        let target = self.args.target.open(false)?;
        let over_tls = if tls { self.args.target.open(true)? } else { None };
        let floor = if floor { Some(Floor::spawn()?) } else { None };
        pin.as_ref().map_or(Ok(()), Pin::as_tester)?;
        if let Some(target) = target {
            turns.push((Role::Gateway, if tls { "gateway plain" } else { "gateway" }, sides.len(), false));
            sides.push(self.gateway(target, 1, epoch)?);
        }
        if let Some(target) = over_tls {
            turns.push((Role::Tls, "gateway over TLS", sides.len(), false));
            sides.push(self.gateway(target, 3, epoch)?);
        }
        if let Some(floor) = floor {
            turns.push((Role::Floor, "floor, plain", sides.len(), false));
            if burst > 1 {
                turns.push((Role::Floor, "floor, joined", sides.len(), true));
            }
            sides.push(self.floor(floor, epoch)?);
        }
        if sides.is_empty() {
            return Err("name a gateway (--spawn, or --ws and --api), or --floor, or both".into());
        }

        let mut contestants: Vec<Contestant> = Vec::new();
        for &(role, name, side, joined) in &turns {
            let mut contestant = Contestant::new(role, name)?;
            let side = sides.get_mut(side).ok_or("no such side")?;
            let messages = self.args.warmup.unwrap_or(self.messages / 10);
            if messages > 0 {
                let (round, _) = side.round(&self.plan(messages, joined))?;
                contestant.warm_up(round);
            }
            contestants.push(contestant);
        }
        let rounds = self.args.rounds.unwrap_or(if self.args.floor || tls { 3 } else { 1 });
        'rounds: for _ in 0..rounds {
            for (&(_, _, side, joined), contestant) in turns.iter().zip(&mut contestants) {
                if contestant.gave_up() {
                    break 'rounds;
                }
                let side = sides.get_mut(side).ok_or("no such side")?;
                let (round, stats) = side.round(&self.plan(self.messages, joined))?;
                contestant.add(round, &stats)?;
            }
        }
        Ok(Report::new(&self.title, contestants))
    }

    fn gateway(&self, target: Target, number: u8, epoch: Instant) -> Result<Side> {
        target.meter.check_descriptors((self.clients / target.clients.len().max(1) + self.lanes + 64) as u64)?;
        let connected = clients::connect(&target.clients, self.clients, number, target.trust.as_ref())?;
        let ids = connected.iter().enumerate().map(|(index, client)| (&*client.client_id, self.topic(index)));
        Caller::new(&target.api)?.batch(&memberships(ids, self.kind))?;
        let wire = Wire::Http(target.api.clone(), self.kind);
        let meter = target.meter.clone();
        self.side(connected, wire, meter, Server::Gateway { _target: target }, epoch)
    }

    fn floor(&self, floor: Floor, epoch: Instant) -> Result<Side> {
        let connected = clients::connect(&[floor.clients], self.clients, 2, None)?;
        let ids = connected.iter().enumerate();
        floor::join(floor.control, ids.map(|(index, client)| (client.client_id.clone(), self.topic(index))))?;
        let meter = Meter { pids: vec![floor.pid()] };
        self.side(connected, Wire::Floor(floor.control), meter, Server::Floor { _floor: floor }, epoch)
    }

    fn topic(&self, client: usize) -> u32 {
        (client % self.topics) as u32
    }

    fn side(
        &self,
        connected: Vec<clients::Connected>,
        wire: Wire,
        meter: Meter,
        server: Server,
        epoch: Instant,
    ) -> Result<Side> {
        let publisher = Publisher::new(wire, self.lanes, members(self.clients, self.topics), epoch)?;
        let clients = connected.into_iter().enumerate().map(|(index, client)| (client, self.topic(index))).collect();
        let pool = Pool::start(clients, self.args.threads, self.args.size, epoch, publisher.gate())?;
        Ok(Side { publisher, pool, meter, _server: server })
    }
}

impl Side {
    /// Publishes as planned and measures.
    fn round(&mut self, plan: &Plan) -> Result<(Round, Stats)> {
        self.pool.take()?;
        let (server, own, before) = (self.meter.cpu()?, target::own_cpu()?, self.threads()?);
        let outcome = self.publisher.run(plan)?;
        let (tester, after) = (target::own_cpu()?.since(own), self.threads()?);
        // for what the server does behind the last delivery, and for duplicates
        std::thread::sleep(Duration::from_millis(50));
        let cpu = self.meter.cpu()?.since(server);
        let stats = self.pool.take()?;
        let busiest = before.iter().zip(&after).map(|(before, after)| after.saturating_sub(*before)).max();
        let round = Round::new(&outcome, &stats, self.measured(cpu), tester, busiest.unwrap_or(0));
        Ok((round, stats))
    }

    /// CPU time of each of our threads that work for this side; the publisher is the caller.
    fn threads(&self) -> Result<Vec<u64>> {
        let publisher = rustix::thread::gettid().as_raw_nonzero().get();
        let ids = self.pool.thread_ids().into_iter().chain([publisher]);
        ids.map(|id| Ok(target::thread_cpu(id)?.total())).collect()
    }

    fn measured(&self, cpu: Cpu) -> Option<Cpu> {
        (!self.meter.pids.is_empty()).then_some(cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_dealt_to_topics() {
        assert_eq!(members(10, 3), [4, 3, 3]);
        assert_eq!(members(5, 5), [1; 5]);
        assert_eq!(members(7, 1), [7]);
    }

    #[test]
    fn membership_commands() {
        let commands = memberships([("ab", 3)].into_iter(), Kind::Uid);
        assert_eq!(commands, [r#"{"op":"bindUid","client_id":"ab","uid":"u3"}"#]);
        let commands = memberships([("ab", 3)].into_iter(), Kind::Group);
        assert_eq!(commands, [r#"{"op":"joinGroup","client_id":"ab","group":"g3"}"#]);
    }
}
