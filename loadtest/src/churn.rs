//! `churn`: clients come, are bound to a uid of their own and put into a group, and go.
//!
//! Each slot does one cycle after another and keeps a connection to the API. All slots share a thread and a poll, in which a
//! slot has the token 2 n for its client and 2 n + 1 for the API.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use mio::event::Event;
use mio::{Events, Interest, Poll, Token};
use socket2::Socket;

use crate::clients::{self, Stats};
use crate::publish::{Kind, Outcome, TICK, Wire};
use crate::report::{Contestant, Report, Round, Unit};
use crate::scenario::{Server, SittingArgs, Turn};
use crate::target::Target;
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
    crowd: Crowd,
    server: Server,
}

/// Clients that come and go, on one thread.
pub(crate) struct Crowd {
    poll: Poll,
    slots: Vec<Slot>,
    /// Slots without a client, in turn.
    free: VecDeque<usize>,
    /// Cycles begun so far, and the number of the next.
    begun: u64,
    groups: u32,
    /// Keeps source addresses of the sides apart.
    number: u8,
}

/// One stretch of coming and going.
pub(crate) struct Stretch<'a> {
    /// Cycles, at most.
    pub(crate) cycles: u64,
    /// So many a second, else as fast as slots become free.
    pub(crate) rate: Option<f64>,
    /// No further cycle begins once this is set.
    pub(crate) over: &'a AtomicBool,
    /// Without the end of a cycle for so long, the rest counts as lost.
    pub(crate) deadline: Duration,
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
        let doors = match &server {
            Server::Gateway(target) => doors(target),
            Server::Floor(floor) => vec![(floor.clients, Wire::Floor(floor.control))],
            Server::Raw(_) => return Err("Redis alone has no clients to bind".into()),
        };
        Ok(Self { crowd: Crowd::new(&doors, parallel, groups, number, 0)?, server })
    }

    /// Runs some cycles and measures.
    fn round(&mut self, cycles: u64, deadline: Duration) -> Result<(Round, Stats)> {
        let others = self.online()?;
        let (server, own, thread) = (self.server.spent()?, process::own_cpu()?, own_thread()?);
        let stretch = Stretch { cycles, rate: None, over: &AtomicBool::new(false), deadline };
        let (mut outcome, stats) = self.crowd.run(&stretch)?;
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
}

/// Where the clients of each node connect, and how they are bound.
pub(crate) fn doors(target: &Target) -> Vec<(SocketAddr, Wire)> {
    target.nodes.iter().map(|node| (node.clients, Wire::Http(node.api.clone(), Kind::Uid))).collect()
}

impl Crowd {
    /// Opens a connection that binds for each of `parallel` slots, which take the `doors` in turn. The first client gets the
    /// uid `first`, and the next ones those that follow; they are dealt to the groups 0 to `groups` (at least 1).
    pub(crate) fn new(
        doors: &[(SocketAddr, Wire)],
        parallel: usize,
        groups: u32,
        number: u8,
        first: u64,
    ) -> Result<Self> {
        let poll = Poll::new()?;
        let mut slots = Vec::new();
        for (index, (server, wire)) in doors.iter().cycle().take(parallel).enumerate() {
            let api = wire.connect()?;
            socket::register(poll.registry(), &api, Token(2 * index + 1), Interest::READABLE)?;
            slots.push(Slot {
                server: *server,
                wire: wire.clone(),
                api,
                client: None,
                step: Step::Greeting,
                cycle: 0,
                began: Instant::now(),
                input: Vec::new(),
                answer: Vec::new(),
            });
        }
        let free = (0..slots.len()).collect();
        Ok(Self { poll, slots, free, begun: first, groups, number })
    }

    /// Lets clients come and go, and waits until the last has gone.
    pub(crate) fn run(&mut self, stretch: &Stretch<'_>) -> Result<(Outcome, Stats)> {
        let mut outcome = Outcome {
            published: 0,
            expected: 0,
            errors: 0,
            first_error: None,
            lag: clients::histogram()?,
            wall: Duration::ZERO,
            gave_up: false,
            ordered: true,
        };
        let mut stats = Stats::new()?;
        let began = Instant::now();
        let mut events = Events::with_capacity(512);
        let mut progress = (0, Instant::now());
        loop {
            crate::interrupted()?;
            let mut timeout = TICK;
            while outcome.published < stretch.cycles && !stretch.over.load(Ordering::Relaxed) {
                let due = stretch.rate.map_or(0.0, |rate| outcome.published as f64 / rate);
                let wait = Duration::from_secs_f64(due).saturating_sub(began.elapsed());
                if !wait.is_zero() {
                    timeout = timeout.min(wait);
                    break;
                }
                let Some(index) = self.free.pop_front() else {
                    break;
                };
                self.begin(index)?;
                outcome.published += 1;
            }
            if self.free.len() == self.slots.len() {
                if outcome.published == stretch.cycles || stretch.over.load(Ordering::Relaxed) {
                    break;
                }
                progress.1 = Instant::now();
            }
            match self.poll.poll(&mut events, Some(timeout)) {
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
                    self.free.push_back(index);
                }
            }
            let done = stats.delivered + stats.closed;
            if done > progress.0 {
                progress = (done, Instant::now());
            } else if progress.1.elapsed() > stretch.deadline {
                outcome.gave_up = true;
                break;
            }
        }
        outcome.expected = outcome.published;
        outcome.wall = began.elapsed();
        Ok((outcome, stats))
    }

    /// Lets the next client connect, in a free slot.
    fn begin(&mut self, index: usize) -> Result<()> {
        let slot = self.slots.get_mut(index).ok_or("no such slot")?;
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
