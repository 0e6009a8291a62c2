//! `churn`: clients come, are bound to a uid of their own and put into a group, and go.
//!
//! Each slot does one cycle after another and keeps a connection to the API. All slots share a thread and a poll, in which a
//! slot has the token 2 n for its client and 2 n + 1 for the API.

use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use clap::Args;
use mio::event::Event;
use mio::{Events, Interest, Poll, Token};
use socket2::Socket;

use crate::clients::{self, Stats};
use crate::progress::Watch;
use crate::publish::{Kind, Outcome, TICK, Wire};
use crate::report::{Contestant, Report, Round, Unit};
use crate::scenario::{Server, SittingArgs, Turn};
use crate::{PATIENCE, Result, frame, process, socket};

/// Options of `churn`.
#[derive(Debug, Args)]
pub(crate) struct ChurnArgs {
    /// Cycles in each round: connect, bind and join in one batch, leave
    #[arg(long, default_value_t = 20_000)]
    cycles: u64,
    /// Cycles at a time, each with a kept connection to the API of its node
    #[arg(long, default_value_t = 64)]
    parallel: usize,
    /// Groups to which the clients are dealt
    #[arg(long, default_value_t = 100)]
    groups: u32,
    #[command(flatten)]
    pub(crate) sitting: SittingArgs,
}

/// One server and the clients that come and go.
struct Side {
    poll: Poll,
    slots: Vec<Slot>,
    /// Cycles begun so far.
    begun: u64,
    groups: u32,
    /// Keeps source addresses of the sides apart.
    number: u8,
    server: Server,
}

/// One client at a time.
struct Slot {
    /// Where its clients connect.
    server: SocketAddr,
    /// How they are bound.
    wire: Wire,
    api: Socket,
    /// The client, while there is one.
    client: Option<Socket>,
    step: Step,
    cycle: u64,
    began: Instant,
    /// From the client, not understood yet.
    input: Vec<u8>,
    /// From the API.
    answer: Vec<u8>,
}

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Greeting,
    Bound,
    Goodbye,
}

impl ChurnArgs {
    /// Runs it.
    pub(crate) fn run(&self) -> Result<Report> {
        let Self { cycles, parallel, groups, sitting } = self;
        if *parallel == 0 || *groups == 0 {
            return Err("--parallel, --groups: at least 1".into());
        }
        if sitting.target.clusters()?.iter().any(|cluster| cluster.tls) {
            return Err("--tls: not in this mode".into());
        }
        let mut sides = Vec::new();
        let mut turns = Vec::new();
        for (number, (role, name, server)) in sitting.open(false, 2 * parallel + 64)?.into_iter().enumerate() {
            turns.push(Turn { contestant: Contestant::new(role, &name)?, side: number, joined: false });
            sides.push(Side::new(server, *parallel, *groups, number as u8)?);
        }
        let contestants = sitting.rounds(turns, *cycles, |turn, cycles| {
            sides.get_mut(turn.side).ok_or("no such side")?.round(cycles, sitting.deadline)
        })?;
        let title =
            format!("churn: connect, bind + join, leave; {cycles} cycles, {parallel} at a time, {groups} groups");
        Ok(Report::new(&title, Unit::Cycle, contestants))
    }
}

impl Side {
    fn new(server: Server, parallel: usize, groups: u32, number: u8) -> Result<Self> {
        let poll = Poll::new()?;
        let mut slots = Vec::new();
        for index in 0..parallel {
            let (clients, wire) = match &server {
                Server::Gateway(target) => {
                    let node = target.nodes.iter().cycle().nth(index).ok_or("no node to connect to")?;
                    (node.clients, Wire::Http(node.api.clone(), Kind::Uid))
                }
                Server::Floor(floor) => (floor.clients, Wire::Floor(floor.control)),
                Server::Raw(_) => return Err("Redis alone has no clients to bind".into()),
            };
            let api = wire.connect()?;
            socket::register(poll.registry(), &api, Token(2 * index + 1), Interest::READABLE)?;
            slots.push(Slot {
                server: clients,
                wire,
                api,
                client: None,
                step: Step::Greeting,
                cycle: 0,
                began: Instant::now(),
                input: Vec::new(),
                answer: Vec::new(),
            });
        }
        Ok(Self { poll, slots, begun: 0, groups, number, server })
    }

    /// Runs some cycles and measures.
    fn round(&mut self, cycles: u64, deadline: Duration) -> Result<(Round, Stats)> {
        let others = self.online()?;
        let (server, own, thread) = (self.server.spent()?, process::own_cpu()?, own_thread()?);
        let (mut outcome, stats) = self.cycles(cycles, deadline)?;
        let (tester, busiest) = (process::own_cpu()?.since(own), own_thread()? - thread);
        // for what the server does behind the last goodbye
        std::thread::sleep(Duration::from_millis(200));
        let spent = self.server.spent()?.since(&server);
        let end = Instant::now() + PATIENCE;
        let left = loop {
            let left = self.online()?.saturating_sub(others);
            if left == 0 || Instant::now() > end {
                break left;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if left > 0 {
            outcome.errors += left;
            outcome.first_error.get_or_insert(format!("{left} clients that left are still listed"));
        }
        let round = Round::new(&outcome, &stats, spent, tester, busiest);
        Ok((round, stats))
    }

    /// How many clients the gateway says it has.
    fn online(&self) -> Result<u64> {
        match &self.server {
            Server::Gateway(target) => target.callers()?.into_iter().next().map_or(Ok(0), |mut node| node.clients()),
            _ => Ok(0),
        }
    }

    fn cycles(&mut self, cycles: u64, deadline: Duration) -> Result<(Outcome, Stats)> {
        let mut outcome = Outcome {
            published: cycles,
            expected: cycles,
            errors: 0,
            first_error: None,
            lag: clients::histogram()?,
            wall: Duration::ZERO,
            gave_up: false,
            samples: Vec::new(),
        };
        let mut stats = Stats::new()?;
        let began = Instant::now();
        let last = self.begun + cycles;
        for index in 0..self.slots.len() {
            self.begin(index, last)?;
        }
        let mut events = Events::with_capacity(512);
        let mut progress = (0, Instant::now());
        let mut watch = Watch::default();
        while self.slots.iter().any(|slot| slot.client.is_some()) {
            crate::interrupted()?;
            match self.poll.poll(&mut events, Some(TICK)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                let index = event.token().0 / 2;
                let Some(slot) = self.slots.get_mut(index) else {
                    continue;
                };
                if slot.hear(event, self.groups, &mut outcome, &mut stats)? {
                    slot.client = None;
                    self.begin(index, last)?;
                }
            }
            let done = stats.delivered + stats.closed;
            watch.look(began.elapsed().as_nanos() as u64, stats.delivered, done);
            if done > progress.0 {
                progress = (done, Instant::now());
            } else if progress.1.elapsed() > deadline {
                outcome.gave_up = true;
                break;
            }
        }
        outcome.wall = began.elapsed();
        outcome.samples = watch.end(outcome.wall.as_nanos() as u64, stats.delivered);
        Ok((outcome, stats))
    }

    /// Lets the next client connect, up to cycle `last`.
    fn begin(&mut self, index: usize, last: u64) -> Result<()> {
        let Some(slot) = self.slots.get_mut(index).filter(|_| self.begun < last) else {
            return Ok(());
        };
        slot.cycle = self.begun;
        self.begun += 1;
        let server = slot.server;
        // a source address of its own for some cycles: else the ports run out that wait after a goodbye
        let source = Ipv4Addr::new(127, 1, self.number, 1 + (slot.cycle % 250) as u8);
        slot.began = Instant::now();
        slot.input.clear();
        slot.step = Step::Greeting;
        let mut client = socket::tcp(server, server.ip().is_loopback().then_some(source))?;
        socket::register(self.poll.registry(), &client, Token(2 * index), Interest::READABLE)?;
        client.write_all(clients::handshake(server).as_bytes())?;
        slot.client = Some(client);
        Ok(())
    }
}

impl Slot {
    /// Goes on with the cycle; whether it has ended.
    fn hear(&mut self, event: &Event, groups: u32, outcome: &mut Outcome, stats: &mut Stats) -> Result<bool> {
        let Some(client) = &mut self.client else {
            return Ok(false);
        };
        if event.token().0 % 2 == 1 {
            if !socket::receive(&mut self.api, &mut self.answer, event.is_read_closed())? {
                return Err("the server closed the connection that binds".into());
            }
            let Some((length, error)) = self.wire.answer(&self.answer, 2)? else {
                return Ok(false);
            };
            if self.step != Step::Bound || length != self.answer.len() {
                return Err("more answers than requests".into());
            }
            self.answer.clear();
            if error.is_some() {
                outcome.errors += 1;
                outcome.first_error = outcome.first_error.take().or(error);
            }
            stats.latency.saturating_record(self.began.elapsed().as_nanos() as u64);
            self.step = Step::Goodbye;
            let mut bye = Vec::new();
            frame::from_client(&mut bye, frame::CLOSE, &1000u16.to_be_bytes());
            // one that was closed in the meantime is noticed when it is read
            client.write_all(&bye).ok();
            return Ok(false);
        }
        let open = socket::receive(client, &mut self.input, event.is_read_closed());
        if self.step == Step::Greeting
            && let Some((client_id, _)) = clients::greeting(&self.input)?
        {
            let mut out = Vec::new();
            let group = (self.cycle % u64::from(groups)) as u32;
            self.wire.bind(&mut out, client_id, self.cycle as u32, group)?;
            self.api.write_all(&out)?;
            self.step = Step::Bound;
        }
        match open {
            Ok(true) => Ok(false),
            Ok(false) if self.step == Step::Goodbye => {
                stats.delivered += 1;
                Ok(true)
            }
            ended => {
                let why =
                    ended.map_or_else(|error| error.to_string(), |_| "the server ended the connection".to_owned());
                stats.closed += 1;
                stats.first_close.get_or_insert(format!("{why}, while {:?} was awaited", self.step));
                // an answer that is on its way must not meet the next client
                if self.step == Step::Bound { Err(why.into()) } else { Ok(true) }
            }
        }
    }
}

fn own_thread() -> Result<u64> {
    Ok(process::thread_cpu(process::own_thread())?.total())
}
