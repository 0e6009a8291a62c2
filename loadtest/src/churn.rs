//! `churn`: clients come, are bound to a uid of their own and put into a group, and go.
//!
//! Each slot does one cycle after another and keeps a connection to the API. All slots share a thread and a poll, in which a
//! slot has the token 2 n for its client and 2 n + 1 for the API.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use hdrhistogram::Histogram;
use mio::event::Event;
use mio::{Events, Interest, Poll, Token};
use socket2::Socket;

use crate::clients::{self, Connected, Stats};
use crate::progress::Watch;
use crate::publish::{Outcome, TICK, Wire};
use crate::report::{Contestant, Report, Round, Unit};
use crate::scenario::{SittingArgs, Turn};
use crate::server::Server;
use crate::{Result, frame, process, socket};

/// Options of `churn`.
#[derive(Debug, Args)]
pub(crate) struct ChurnArgs {
    /// Cycles in each round: connect, bind and join in one batch, leave
    #[arg(long, default_value_t = 20_000, value_parser = value_parser!(u64).range(1..))]
    cycles: u64,
    /// Cycles at a time, each with a kept connection to the API of its node
    #[arg(long, default_value_t = 64)]
    parallel: usize,
    /// As many at each node, instead of in all
    #[arg(long)]
    each_node: bool,
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
    /// Those that came to stay.
    stayed: Vec<Stayed>,
    /// Numbers of clients that did not get in, and when they try again.
    again: VecDeque<(Instant, u64)>,
    /// From connecting to the server's first message.
    greeted: Histogram<u64>,
}

/// A client that was bound, and stays.
pub(crate) struct Stayed {
    /// The number of its uid.
    pub(crate) number: u64,
    /// When it was bound, counted as [`Stretch::stay`] says.
    pub(crate) after: Duration,
    pub(crate) client: Connected,
}

/// One stretch of coming and going.
pub(crate) struct Stretch<'a> {
    /// Cycles, at most.
    pub(crate) cycles: u64,
    /// So many a second, else as fast as slots become free.
    pub(crate) rate: Option<f64>,
    /// Clients stay once they are bound, and try again until they are, and times count from this moment. Else each leaves
    /// at once, and its time counts from its connecting, or from when it should have connected.
    pub(crate) stay: Option<Instant>,
    /// No further cycle begins once this is set.
    pub(crate) over: &'a AtomicBool,
    /// Without the end of a cycle for so long, the rest counts as lost.
    pub(crate) deadline: Duration,
}

/// One client at a time.
struct Slot {
    /// Number of the node.
    home: usize,
    /// Where its clients connect.
    server: SocketAddr,
    /// How they are bound.
    wire: Wire,
    api: Socket,
    /// The client, while there is one.
    client: Option<Socket>,
    step: Step,
    /// Why the client ended while the API has yet to answer; the answer must not meet the next client.
    lost: Option<String>,
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
    Connection,
    Greeting,
    Bound,
    Goodbye,
}

/// How far a client is after an event.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Waits,
    /// It is bound; inside is what went wrong with that, which does not keep it from leaving in peace.
    Bound(Option<String>),
    Left,
    Failed(String),
}

impl ChurnArgs {
    /// Runs it.
    pub(crate) fn run(&self) -> Result<Report> {
        let Self { cycles, parallel, each_node, groups, sitting } = self;
        if *parallel == 0 || *groups == 0 {
            return Err("--parallel, --groups: at least 1".into());
        }
        let clusters = sitting.target.clusters()?;
        if clusters.iter().any(|cluster| cluster.tls) {
            return Err("--tls: not in this mode".into());
        }
        let nodes = clusters.iter().map(|cluster| cluster.nodes.into()).max().filter(|_| *each_node).unwrap_or(1);
        let mut sides = Vec::new();
        let mut turns = Vec::new();
        for (number, (role, name, server)) in sitting.open(false, 0, 2 * parallel * nodes + 64)?.into_iter().enumerate()
        {
            turns.push(Turn { contestant: Contestant::new(role, &name)?, side: number, joined: false });
            sides.push(Side::new(server, *parallel, *each_node, *groups, number as u8)?);
        }
        let contestants = sitting.rounds(turns, *cycles, |turn, cycles| {
            sides.get_mut(turn.side).ok_or("no such side")?.round(cycles, sitting.deadline)
        })?;
        let each = if *each_node { " at each node" } else { "" };
        let title =
            format!("churn: connect, bind + join, leave; {cycles} cycles, {parallel} at a time{each}, {groups} groups");
        Ok(Report::new(&title, Unit::Cycle, contestants))
    }
}

impl Side {
    fn new(server: Server, parallel: usize, each_node: bool, groups: u32, number: u8) -> Result<Self> {
        let doors = server.doors()?;
        let parallel = if each_node { parallel * doors.len() } else { parallel };
        Ok(Self { crowd: Crowd::new(&doors, parallel, groups, number, 0)?, server })
    }

    /// Runs some cycles and measures.
    fn round(&mut self, cycles: u64, deadline: Duration) -> Result<(Round, Stats)> {
        let others = self.server.listed()?;
        let (server, own, thread) = (self.server.spent()?, process::own_cpu()?, process::own_thread_cpu()?);
        let stretch = Stretch { cycles, rate: None, stay: None, over: &AtomicBool::new(false), deadline };
        let (mut outcome, stats) = self.crowd.run(&stretch)?;
        let (tester, busiest) = (process::own_cpu()?.since(own), process::own_thread_cpu()? - thread);
        // for what the server does behind the last goodbye
        std::thread::sleep(Duration::from_millis(200));
        let spent = self.server.spent()?.since(&server);
        let left = self.server.settled(others, 0)?;
        if left > 0 {
            outcome.errors += left;
            outcome.first_error.get_or_insert(format!("{left} clients that left are still listed"));
        }
        let round = Round::new(&outcome, &stats, spent, tester, busiest);
        Ok((round, stats))
    }
}

/// Clients at a time where so many a second come and go: a second for each is plenty.
pub(crate) fn slots(rate: f64) -> usize {
    (0..64).find(|slots| *slots as f64 >= rate).unwrap_or(64)
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
        for (index, (home, (server, wire))) in doors.iter().enumerate().cycle().take(parallel).enumerate() {
            let api = wire.connect(0)?;
            socket::register(poll.registry(), &api, Token(2 * index + 1), Interest::READABLE)?;
            slots.push(Slot {
                home,
                server: *server,
                wire: wire.clone(),
                api,
                client: None,
                step: Step::Connection,
                lost: None,
                cycle: 0,
                began: Instant::now(),
                input: Vec::new(),
                answer: Vec::new(),
            });
        }
        let free = (0..slots.len()).collect();
        let (stayed, again, greeted) = (Vec::new(), VecDeque::new(), clients::histogram()?);
        Ok(Self { poll, slots, free, begun: first, groups, number, stayed, again, greeted })
    }

    /// Those that came to stay, so far.
    pub(crate) fn take(&mut self) -> Vec<Stayed> {
        std::mem::take(&mut self.stayed)
    }

    /// How long handshakes took, counted as times of clients that leave again.
    pub(crate) fn handshakes(&self) -> &Histogram<u64> {
        &self.greeted
    }

    /// Lets clients come, and go or stay, and waits for the last.
    pub(crate) fn run(&mut self, stretch: &Stretch<'_>) -> Result<(Outcome, Stats)> {
        let (outcome, stats, ended) = self.run_as_far_as_it_goes(stretch)?;
        ended.map(|()| (outcome, stats))
    }

    /// The same; what was found up to an error is told beside it.
    pub(crate) fn run_as_far_as_it_goes(&mut self, stretch: &Stretch<'_>) -> Result<(Outcome, Stats, Result<()>)> {
        let mut outcome = Outcome {
            published: 0,
            expected: 0,
            errors: 0,
            first_error: None,
            lag: clients::histogram()?,
            wall: Duration::ZERO,
            gave_up: false,
            ordered: true,
            samples: Vec::new(),
        };
        let mut stats = Stats::new()?;
        let (began, mut watch) = (Instant::now(), Watch::default());
        let ended = self.come_and_go(stretch, began, &mut outcome, &mut stats, &mut watch);
        outcome.expected = outcome.published;
        outcome.wall = began.elapsed();
        outcome.samples = watch.end(outcome.wall.as_nanos() as u64, stats.delivered);
        Ok((outcome, stats, ended))
    }

    fn come_and_go(
        &mut self,
        stretch: &Stretch<'_>,
        began: Instant,
        outcome: &mut Outcome,
        stats: &mut Stats,
        watch: &mut Watch,
    ) -> Result<()> {
        let mut events = Events::with_capacity(512);
        let mut progress = (0, Instant::now());
        loop {
            crate::interrupted()?;
            let mut timeout = TICK;
            let over = stretch.over.load(Ordering::Relaxed);
            while let Some(&index) = self.free.front() {
                let again = self.again.front().filter(|(due, _)| *due <= Instant::now());
                if let Some((_, cycle)) = again.copied() {
                    self.again.pop_front();
                    self.begin(index, cycle, Instant::now(), stretch, stats)?;
                    continue;
                }
                if over || outcome.published == stretch.cycles {
                    break;
                }
                let due = stretch.rate.map_or(0.0, |rate| outcome.published as f64 / rate);
                let wait = Duration::from_secs_f64(due).saturating_sub(began.elapsed());
                if !wait.is_zero() {
                    timeout = timeout.min(wait);
                    break;
                }
                let cycle = self.begun;
                self.begun += 1;
                outcome.published += 1;
                // with a rate, who has to wait for a slot has waited
                let since = stretch.rate.map_or_else(Instant::now, |_| began + Duration::from_secs_f64(due));
                self.begin(index, cycle, since, stretch, stats)?;
            }
            if self.free.len() == self.slots.len() && self.again.is_empty() {
                if over || outcome.published == stretch.cycles {
                    break;
                }
                progress.1 = Instant::now();
            }
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                self.hear(event, stretch, outcome, stats)?;
            }
            let done = stats.delivered + if stretch.stay.is_some() { 0 } else { stats.closed };
            watch.look(began.elapsed().as_nanos() as u64, stats.delivered, done);
            if done > progress.0 {
                progress = (done, Instant::now());
            } else if progress.1.elapsed() > stretch.deadline {
                outcome.gave_up = true;
                break;
            }
        }
        Ok(())
    }

    /// Lets a client connect in the first free slot, `index`; its time counts from `since`.
    fn begin(
        &mut self,
        index: usize,
        cycle: u64,
        since: Instant,
        stretch: &Stretch<'_>,
        stats: &mut Stats,
    ) -> Result<()> {
        let slot = self.slots.get_mut(index).ok_or("no such slot")?;
        let server = slot.server;
        // a source address of its own for some cycles: else the ports run out that wait after a goodbye
        let source = Ipv4Addr::new(127, 1, self.number, 1 + (cycle % 250) as u8);
        (slot.cycle, slot.began, slot.step, slot.lost) = (cycle, since, Step::Connection, None);
        slot.input.clear();
        self.free.pop_front();
        match socket::begin_tcp(server, server.ip().is_loopback().then_some(source)) {
            Ok(client) => {
                let both = Interest::READABLE | Interest::WRITABLE;
                socket::register(self.poll.registry(), &client, Token(2 * index), both)?;
                slot.client = Some(client);
            }
            Err(error) => self.fail(index, socket::explained(&error), stretch, stats),
        }
        Ok(())
    }

    /// Notes a client that did not get in, or was cut off; one that came to stay tries again.
    fn fail(&mut self, index: usize, why: String, stretch: &Stretch<'_>, stats: &mut Stats) {
        stats.closed += 1;
        stats.first_close.get_or_insert(why);
        if let Some(slot) = self.slots.get_mut(index) {
            slot.client = None;
            if stretch.stay.is_some() {
                self.again.push_back((Instant::now() + TICK, slot.cycle));
            }
        }
        self.free.push_back(index);
    }

    /// Goes on with the client that an event is about.
    fn hear(&mut self, event: &Event, stretch: &Stretch<'_>, outcome: &mut Outcome, stats: &mut Stats) -> Result<()> {
        let index = event.token().0 / 2;
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(());
        };
        let before = slot.step;
        let progress = if event.token().0 % 2 == 1 { slot.answered(event)? } else { slot.heard(event, self.groups)? };
        if (before, slot.step) == (Step::Greeting, Step::Bound) {
            self.greeted.saturating_record(slot.began.elapsed().as_nanos() as u64);
        }
        match (progress, stretch.stay) {
            (Progress::Waits, _) => {}
            (Progress::Failed(why) | Progress::Bound(Some(why)), Some(_)) | (Progress::Failed(why), None) => {
                self.fail(index, why, stretch, stats);
            }
            (Progress::Bound(error), None) => {
                stats.latency.saturating_record(slot.began.elapsed().as_nanos() as u64);
                if error.is_some() {
                    outcome.errors += 1;
                    outcome.first_error = outcome.first_error.take().or(error);
                }
                slot.leave();
            }
            (Progress::Bound(None), Some(since)) => {
                let after = since.elapsed();
                stats.latency.saturating_record(after.as_nanos() as u64);
                stats.delivered += 1;
                if let Some(client) = slot.client.take() {
                    socket::deregister(self.poll.registry(), &client)?;
                    let client = Connected::new(client, &slot.input, slot.home)?;
                    self.stayed.push(Stayed { number: slot.cycle, after, client });
                }
                self.free.push_back(index);
            }
            (Progress::Left, _) => {
                stats.delivered += 1;
                slot.client = None;
                self.free.push_back(index);
            }
        }
        Ok(())
    }
}

impl Slot {
    /// Looks at the API's answer.
    fn answered(&mut self, event: &Event) -> Result<Progress> {
        if !socket::receive(&mut self.api, &mut self.answer, event.is_read_closed())? {
            return Err("a node closed the connection that binds: it died, or let nobody bind".into());
        }
        if self.answer.is_empty() {
            return Ok(Progress::Waits);
        }
        let Some((length, error)) = self.wire.answer(&self.answer, 2)? else {
            return Ok(Progress::Waits);
        };
        if self.step != Step::Bound || length != self.answer.len() {
            return Err("more answers than requests".into());
        }
        self.answer.clear();
        Ok(self.lost.take().map_or(Progress::Bound(error), Progress::Failed))
    }

    fn leave(&mut self) {
        self.step = Step::Goodbye;
        let mut bye = Vec::new();
        frame::from_client(&mut bye, frame::CLOSE, &1000u16.to_be_bytes());
        // one that was closed in the meantime is noticed when it is read
        self.client.as_mut().map(|client| client.write_all(&bye).ok());
    }

    /// Looks at the client.
    fn heard(&mut self, event: &Event, groups: u32) -> Result<Progress> {
        let Some(client) = &mut self.client else {
            return Ok(Progress::Waits);
        };
        if self.step == Step::Connection {
            if let Some(error) = client.take_error()? {
                return Ok(Progress::Failed(socket::explained(&error)));
            }
            if !event.is_writable() {
                return Ok(Progress::Waits);
            }
            self.step = Step::Greeting;
            // a failure is noticed when it is read
            client.write_all(clients::handshake(self.server).as_bytes()).ok();
        }
        let open = socket::receive(client, &mut self.input, event.is_read_closed());
        if self.step == Step::Greeting {
            match clients::greeting(&self.input) {
                Ok(None) => {}
                Ok(Some((client_id, _))) => {
                    let mut out = Vec::new();
                    let group = (self.cycle % u64::from(groups)) as u32;
                    self.wire.bind(&mut out, client_id, self.cycle as u32, group)?;
                    self.api.write_all(&out)?;
                    self.step = Step::Bound;
                }
                Err(error) => return Ok(Progress::Failed(error.to_string())),
            }
        }
        let why = match open {
            Ok(true) => return Ok(Progress::Waits),
            Ok(false) if self.step == Step::Goodbye => return Ok(Progress::Left),
            Ok(false) => "the server ended the connection".to_owned(),
            Err(error) => error.to_string(),
        };
        let why = format!("{why}, while {:?} was awaited", self.step);
        if self.step == Step::Bound {
            self.lost = Some(why);
            return Ok(Progress::Waits);
        }
        Ok(Progress::Failed(why))
    }
}
