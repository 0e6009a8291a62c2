//! The publisher: keeps connections to the gateway's API, to Redis, or to the floor's control port, sends one request at a
//! time on each, or pipelines, and decides when the next is due.
//!
//! A topic always goes through the same connection, so its messages are sent in order. All of it runs in one thread on one
//! poll, also with hundreds of connections.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::Socket;

use crate::clients::{self, Gate};
use crate::http::{self, Api};
use crate::message::{self, Header};
use crate::progress::Watch;
use crate::redis::{self, Servers, Value};
use crate::server::memberships;
use crate::{Result, floor, socket};

const WAKE: Token = Token(usize::MAX);
/// Longest sleep: how late a lost wake-up or an interrupt may be noticed.
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// Requests on the way on one connection, at most, where they are pipelined.
pub(crate) const PIPELINE: u32 = 4096;

/// What a topic is to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Topic 7 is the group `g7`.
    Group,
    /// Topic 7 is the uid `u7`.
    Uid,
    /// Topic 7 is the groups `g7`, `g7+topics` and so on, each with one of its clients; a message names them all.
    Apart {
        /// All of them.
        topics: u32,
        /// On all of them.
        clients: u32,
    },
}

impl Kind {
    /// Name in a command and in a channel, and what names of topics begin with.
    fn names(self) -> (&'static str, char) {
        match self {
            Self::Group | Self::Apart { .. } => ("group", 'g'),
            Self::Uid => ("uid", 'u'),
        }
    }

    /// The command that sends.
    fn op(self) -> &'static str {
        match self {
            Self::Group | Self::Apart { .. } => "sendToGroup",
            Self::Uid => "sendToUid",
        }
    }

    /// Appends that command for a message, as JSON.
    fn command(self, out: &mut Vec<u8>, header: Header, plan: &Plan) {
        out.extend_from_slice(b"{\"op\":\"");
        out.extend_from_slice(self.op().as_bytes());
        out.extend_from_slice(b"\",");
        self.fields(out, header, plan);
        out.push(b'}');
    }

    /// Appends its fields: to whom, and the message.
    fn fields(self, out: &mut Vec<u8>, header: Header, plan: &Plan) {
        let (field, _) = self.names();
        let form = if plan.binary { "binary" } else { "message" };
        let names = self.targets(header.topic);
        let to = if let Self::Apart { .. } = self { format!("[{names}]") } else { names };
        out.extend_from_slice(format!("\"{field}\":{to},\"{form}\":\"").as_bytes());
        if plan.binary {
            let mut bytes = Vec::with_capacity(plan.size);
            plan.payload(&mut bytes, header);
            out.extend_from_slice(BASE64_STANDARD.encode(bytes).as_bytes());
        } else {
            plan.payload(out, header);
        }
        out.push(b'"');
    }

    /// The names of a topic, in JSON, with commas between.
    fn targets(self, topic: u32) -> String {
        let (_, letter) = self.names();
        match self {
            Self::Group | Self::Uid => format!("\"{letter}{topic}\""),
            Self::Apart { topics, clients } => {
                let groups = (topic..clients).step_by(topics as usize);
                groups.map(|group| format!("\"{letter}{group}\"")).collect::<Vec<_>>().join(",")
            }
        }
    }

    /// The channel of a topic: that of its target, or, if it has several, that of commands.
    pub(crate) fn channel(self, prefix: &str, topic: u32) -> String {
        let (kind, letter) = self.names();
        if let Self::Apart { .. } = self { format!("{prefix}:cmd") } else { format!("{prefix}:{kind}:{letter}{topic}") }
    }
}

/// How a publisher talks.
#[derive(Debug, Clone)]
pub(crate) enum Wire {
    /// `POST /api/…`.
    Http(Api, Kind),
    /// `PUBLISH`, on a Cluster `SPUBLISH`, to channels with this prefix.
    Redis(Servers, String, Kind),
    /// `XADD` to the task stream under this prefix; tasks run side by side, so nothing arrives in order for sure.
    Tasks(Servers, String, Kind),
    /// `GatewayWorker`'s inner protocol, which answers no message.
    Php(SocketAddr, Kind),
    /// Orders to the bare server.
    Floor(SocketAddr),
}

impl Wire {
    /// The number of the server that takes the messages to a topic: there are several where there is a Redis Cluster.
    fn server_of(&self, topic: u32) -> usize {
        match self {
            Self::Redis(servers, prefix, kind) => servers.owner(&kind.channel(prefix, topic)),
            Self::Tasks(servers, prefix, _) => servers.owner(&stream(prefix)),
            Self::Http(..) | Self::Php(..) | Self::Floor(_) => 0,
        }
    }

    /// Opens a connection to the server with this number.
    pub(crate) fn connect(&self, number: usize) -> Result<Socket> {
        let socket = match self {
            Self::Http(api, _) => {
                socket::tcp(api.address, None).and_then(|mut socket| greet(&mut socket).map(|()| socket))
            }
            Self::Redis(servers, ..) | Self::Tasks(servers, ..) => servers.connect(number),
            Self::Php(address, _) | Self::Floor(address) => socket::tcp(*address, None),
        };
        socket.map_err(|error| format!("connecting to {} failed: {error}", self.server(number)).into())
    }

    /// Who answers there.
    fn server(&self, number: usize) -> String {
        match self {
            Self::Http(api, _) => format!("the API, {},", api.address),
            Self::Redis(servers, ..) | Self::Tasks(servers, ..) => format!("Redis, {},", servers.name(number)),
            Self::Php(address, _) => format!("the door for PHP, {address},"),
            Self::Floor(_) => "the floor server".to_owned(),
        }
    }

    /// Appends a request that sends `count` messages, the first of which is `first`, in one go.
    fn request(&self, out: &mut Vec<u8>, first: Header, count: u32, plan: &Plan) {
        let headers = (0..count).map(|index| Header { seq: first.seq.wrapping_add(index), ..first });
        let mut body = Vec::new();
        match self {
            Self::Http(api, kind) => {
                if count == 1 {
                    body.push(b'{');
                    kind.fields(&mut body, first, plan);
                    body.push(b'}');
                    return api.post(out, kind.op(), &body);
                }
                body.extend_from_slice(b"{\"commands\":[");
                for (index, header) in headers.enumerate() {
                    body.extend_from_slice(if index == 0 { b"" } else { b"," });
                    kind.command(&mut body, header, plan);
                }
                body.extend_from_slice(b"]}");
                api.post(out, "batch", &body);
            }
            Self::Redis(servers, prefix, kind) => {
                let (publish, channel) = (servers.publish(), kind.channel(prefix, first.topic));
                for header in headers {
                    body.clear();
                    if let Kind::Apart { .. } = kind {
                        kind.command(&mut body, header, plan);
                    } else {
                        plan.payload(&mut body, header);
                    }
                    redis::command(out, &[publish.as_bytes(), channel.as_bytes(), &body]);
                }
            }
            Self::Tasks(_, prefix, kind) => {
                let stream = stream(prefix);
                for header in headers {
                    body.clear();
                    kind.command(&mut body, header, plan);
                    redis::command(out, &[b"XADD", stream.as_bytes(), b"*", b"command", &body]);
                }
            }
            Self::Php(_, kind) => {
                let names = kind.targets(first.topic);
                let (command, ext) = match kind {
                    Kind::Group | Kind::Apart { .. } => (22, format!("{{\"group\":[{names}],\"exclude\":null}}")),
                    Kind::Uid => (14, format!("[{names}]")),
                };
                for header in headers {
                    body.clear();
                    plan.payload(&mut body, header);
                    php_packet(out, command, ext.as_bytes(), &body);
                }
            }
            Self::Floor(_) => {
                for header in headers {
                    body.extend_from_slice(&(plan.size as u32).to_le_bytes());
                    plan.payload(&mut body, header);
                }
                floor::order(out, if plan.joined { b'G' } else { b'S' }, first.topic, &body);
            }
        }
    }

    /// Whether requests are answered.
    fn answers(&self) -> bool {
        !matches!(self, Self::Php(..))
    }

    /// Whether the messages to a topic should arrive in order.
    fn is_ordered(&self) -> bool {
        !matches!(self, Self::Tasks(..))
    }

    /// Appends a request that binds a client to a uid and puts it into a group.
    pub(crate) fn bind(&self, out: &mut Vec<u8>, client_id: &str, uid: u32, group: u32) -> Result<()> {
        let command = |topic, kind| memberships([(client_id, topic)].into_iter(), kind).concat();
        match self {
            Self::Http(api, _) => {
                let (bind, join) = (command(uid, Kind::Uid), command(group, Kind::Group));
                api.post(out, "batch", format!("{{\"commands\":[{bind},{join}]}}").as_bytes());
            }
            Self::Redis(..) | Self::Tasks(..) | Self::Php(..) => {
                return Err("what is bound there is not answered".into());
            }
            Self::Floor(_) => floor::order(out, b'J', group, &u32::from_str_radix(client_id, 16)?.to_le_bytes()),
        }
        Ok(())
    }

    /// How many bytes the answer at the front of `input`, to a request of `count` messages or commands, has, or `None` while
    /// it is incomplete; an error in it is the inner one.
    pub(crate) fn answer(&self, input: &[u8], count: u32) -> Result<Option<(usize, Option<String>)>> {
        match self {
            Self::Http(..) => Ok(http::answer(input)?.map(|answer| {
                let failed =
                    answer.status != 200 || count > 1 && answer.body.windows(8).any(|bytes| bytes == b"\"error\":");
                (answer.length, failed.then(|| answer.words()))
            })),
            Self::Redis(..) | Self::Tasks(..) => {
                let (mut rest, mut error) = (input, None);
                for _ in 0..count {
                    let Some((value, after)) = redis::front(rest)? else {
                        return Ok(None);
                    };
                    rest = after;
                    match (self, value) {
                        (Self::Redis(..), Value::Integer(1..)) | (Self::Tasks(..), Value::Text(_)) => {}
                        (Self::Redis(servers, ..), Value::Integer(_)) => {
                            error = Some(format!("{}: nobody is subscribed", servers.publish()));
                        }
                        (Self::Redis(servers, ..), other) => error = Some(format!("{}: {other:?}", servers.publish())),
                        (_, other) => error = Some(format!("XADD: {other:?}")),
                    }
                }
                Ok(Some((input.len() - rest.len(), error)))
            }
            Self::Php(..) => Err("the door for PHP answered what is not answered".into()),
            Self::Floor(_) => match input.first() {
                Some(b'K') => Ok(Some((1, None))),
                Some(_) => Err("the floor server did not answer K".into()),
                None => Ok(None),
            },
        }
    }
}

/// The task stream.
fn stream(prefix: &str) -> String {
    format!("{prefix}:tasks")
}

/// Appends a packet of `GatewayWorker`'s inner protocol.
fn php_packet(out: &mut Vec<u8>, command: u8, ext: &[u8], body: &[u8]) {
    out.extend_from_slice(&((28 + ext.len() + body.len()) as u32).to_be_bytes());
    out.push(command);
    out.extend_from_slice(&[0; 16]);
    // the body is a scalar
    out.extend_from_slice(&[1, 0, 0]);
    out.extend_from_slice(&(ext.len() as u32).to_be_bytes());
    out.extend_from_slice(ext);
    out.extend_from_slice(body);
}

/// When the next message is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// As soon as a connection is free.
    Free,
    /// So many messages undelivered at most, filled up when half of them have arrived: else each that arrives would call
    /// forth one, alone in its write, and a pipeline would be none.
    Window(u32),
    /// So many at once in one request, when all before were delivered.
    Backlog(u32),
    /// So many a second on a fixed schedule, whatever the server does; send times are the scheduled ones, so that a
    /// message which had to wait for its turn counts with that wait.
    Rate(f64),
}

/// One stretch of publishing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// How many messages; rounded up to whole bursts.
    pub(crate) messages: u64,
    /// When.
    pub(crate) pace: Pace,
    /// Bytes of a payload.
    pub(crate) size: usize,
    /// In binary frames instead of text.
    pub(crate) binary: bool,
    /// For the floor: gather what waits for one socket.
    pub(crate) joined: bool,
    /// Without a delivery for so long, the rest counts as lost.
    pub(crate) deadline: Duration,
    /// With a rate: when the schedule begins, in nanoseconds since the start of the tester; also in the past, for one that
    /// goes on from an earlier stretch. Else now.
    pub(crate) from: Option<u64>,
}

impl Plan {
    /// One message to each of so many groups, one after the other: whether everyone is reached.
    pub(crate) fn to_each(groups: u64, size: usize, deadline: Duration) -> Self {
        let pace = Pace::Window(1);
        Self { messages: groups, pace, size, binary: false, joined: false, deadline, from: None }
    }

    /// Appends the payload of a message.
    fn payload(&self, out: &mut Vec<u8>, header: Header) {
        header.write(out, self.size);
        if self.binary {
            message::make_binary(out);
        }
    }
}

/// What came of a stretch.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Messages sent.
    pub(crate) published: u64,
    /// Deliveries that should follow from them.
    pub(crate) expected: u64,
    /// Requests that were answered with an error.
    pub(crate) errors: u64,
    /// The first of them.
    pub(crate) first_error: Option<String>,
    /// How late the tester itself was, in ns: from the moment when a request was due and its connection free, to sending.
    pub(crate) lag: Histogram<u64>,
    /// From the first request to the last delivery.
    pub(crate) wall: Duration,
    /// Whether the run was given up because deliveries stopped.
    pub(crate) gave_up: bool,
    /// Whether the messages to a topic should have arrived in order.
    pub(crate) ordered: bool,
    /// Seconds since the first request, and deliveries until then.
    pub(crate) samples: Vec<(f64, u64)>,
}

/// A connection and what goes through it; on a Redis Cluster one to each master.
#[derive(Debug)]
pub(crate) struct Route {
    /// How.
    pub(crate) wire: Wire,
    /// Requests that may be on the way.
    pub(crate) depth: u32,
    /// The topics, in turn; no other route has them. At least one.
    pub(crate) topics: Vec<u32>,
}

/// The connections, and the state that outlives a stretch.
pub(crate) struct Publisher {
    poll: Poll,
    gate: Arc<Gate>,
    lanes: Vec<Lane>,
    /// The connections of all lanes.
    links: Vec<Link>,
    /// Lanes that may take a request, in turn.
    free: VecDeque<usize>,
    /// Requests on the way on all of them.
    waiting: u64,
    /// Members of each topic.
    members: Vec<u32>,
    /// Next sequence number of each topic.
    seqs: Vec<u32>,
    /// Deliveries that should have happened since the beginning, lost ones taken off.
    expected: u64,
    epoch: Instant,
}

/// A route that takes its turn.
struct Lane {
    route: Route,
    /// Of each of its topics the connection, by index.
    links: Vec<usize>,
    /// Requests on the way.
    waiting: u32,
    /// Index of the next topic.
    next: usize,
    /// When it last became free after it had not been.
    free_at: u64,
}

/// One connection.
struct Link {
    /// Index of its lane.
    lane: usize,
    /// Number of the server at its end.
    server: usize,
    stream: Socket,
    output: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    /// Requests on the way.
    waiting: u32,
    /// Whether there may be several.
    pipelined: bool,
}

/// Asks something at once: a connection that has never said anything is cut after a while, and some runs begin with a pause.
fn greet(stream: &mut Socket) -> Result<()> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok\n") {
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err("the API closed the connection at the first request".into());
        }
        answer.extend(buffer.iter().take(read));
    }
    Ok(())
}

impl Publisher {
    /// Opens `lanes` connections (not more than topics) of one kind, each of which may have `depth` requests on the way, and
    /// deals the topics to them. `members` counts the receivers of each topic.
    pub(crate) fn new(wire: &Wire, lanes: usize, depth: u32, members: Vec<u32>, epoch: Instant) -> Result<Self> {
        let lanes = lanes.clamp(1, members.len().max(1));
        let topics = |lane| (lane..members.len()).step_by(lanes).map(|topic| topic as u32).collect();
        let routes = (0..lanes).map(|lane| Route { wire: wire.clone(), depth: depth.max(1), topics: topics(lane) });
        Self::through(routes.collect(), members, epoch)
    }

    /// Opens these connections, which take turns.
    pub(crate) fn through(routes: Vec<Route>, members: Vec<u32>, epoch: Instant) -> Result<Self> {
        let poll = Poll::new()?;
        let gate = Arc::new(Gate::new(Waker::new(poll.registry(), WAKE)?));
        let (mut lanes, mut links) = (Vec::new(), Vec::new());
        for (lane, route) in routes.into_iter().enumerate() {
            let mut of_servers = BTreeMap::new();
            let mut of_topics = Vec::with_capacity(route.topics.len());
            for &topic in &route.topics {
                let server = route.wire.server_of(topic);
                let link = *of_servers.entry(server).or_insert(links.len());
                if link == links.len() {
                    let stream = route.wire.connect(server)?;
                    let both = Interest::READABLE | Interest::WRITABLE;
                    socket::register(poll.registry(), &stream, Token(link), both)?;
                    let (output, input, pipelined) = (Vec::new(), Vec::new(), route.depth > 1);
                    links.push(Link { lane, server, stream, output, written: 0, input, waiting: 0, pipelined });
                }
                of_topics.push(link);
            }
            lanes.push(Lane { route, links: of_topics, waiting: 0, next: 0, free_at: 0 });
        }
        let (free, seqs) = ((0..lanes.len()).collect(), vec![0; members.len()]);
        Ok(Self { poll, gate, lanes, links, free, waiting: 0, members, seqs, expected: 0, epoch })
    }

    /// Where receivers count.
    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Publishes as planned, and waits for the answers and the deliveries.
    pub(crate) fn run(&mut self, plan: &Plan) -> Result<Outcome> {
        let mut outcome = Outcome {
            published: 0,
            expected: 0,
            errors: 0,
            first_error: None,
            lag: clients::histogram()?,
            wall: Duration::ZERO,
            gave_up: false,
            ordered: self.lanes.iter().all(|lane| lane.route.wire.is_ordered()),
            samples: Vec::new(),
        };
        let began = plan.from.unwrap_or_else(|| self.now());
        let mut watch = Watch::default();
        let start = self.expected;
        let before = self.gate.delivered();
        let largest = u64::from(self.members.iter().copied().max().unwrap_or(0));
        let burst = if let Pace::Backlog(count) = plan.pace { count.max(1) } else { 1 };
        if let Pace::Rate(_) = plan.pace {
            // else the kernel ends each sleep some 50 µs late, which would be in the latency
            rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).ok();
        }
        let mut events = Events::with_capacity(512);
        let mut answered = 0u64;
        let mut filling = true;
        let mut progress = (self.gate.delivered(), answered, Instant::now());
        loop {
            crate::interrupted()?;
            let now = self.now();
            let delivered = self.gate.delivered();
            watch.look(now.saturating_sub(began), delivered - before, outcome.published);
            // the next may go at the time `due`, and when `enough` was delivered
            let mut due = 0;
            let mut enough = 0;
            let sending = outcome.published < plan.messages;
            if sending {
                match plan.pace {
                    Pace::Free => {}
                    Pace::Window(window) => {
                        let (most, half) =
                            (largest * u64::from(window.saturating_sub(1)), largest * u64::from(window / 2));
                        let ahead = self.expected.saturating_sub(delivered);
                        filling = ahead <= half || filling && ahead <= most;
                        enough = if filling { 0 } else { self.expected.saturating_sub(half) };
                    }
                    Pace::Backlog(_) => enough = self.expected,
                    Pace::Rate(rate) => {
                        let after = Duration::from_secs_f64(outcome.published as f64 / rate);
                        due = began + after.as_nanos() as u64;
                    }
                }
                if due <= now
                    && delivered >= enough
                    && let Some(index) = self.free.pop_front()
                {
                    self.send(index, due, now, burst, plan, &mut outcome)?;
                    continue;
                }
            } else if self.waiting == 0 {
                enough = self.expected;
                if delivered >= enough {
                    break;
                }
            }
            if (delivered, answered) != (progress.0, progress.1) || due > now {
                progress = (delivered, answered, Instant::now());
            } else if progress.2.elapsed() > plan.deadline {
                if self.waiting > 0 {
                    let silent = self.links.iter().find(|link| link.waiting > 0);
                    let silent = silent.and_then(|link| Some((self.lanes.get(link.lane)?, link.server)));
                    let server = silent.map_or_else(String::new, |(lane, server)| lane.route.wire.server(server));
                    return Err(format!("no answer from {server} within {:?}", plan.deadline).into());
                }
                outcome.gave_up = true;
                break;
            }
            // what became due together leaves in one write
            self.links.iter_mut().filter(|link| link.pipelined).try_for_each(Link::flush)?;
            let blocked = delivered < enough;
            self.gate.wake_at(if blocked { enough } else { u64::MAX });
            let timeout = if blocked && self.gate.delivered() >= enough { Duration::ZERO } else { TICK };
            let alarm = (sending && due > now && !self.free.is_empty()).then_some(due);
            self.wait(&mut events, timeout, alarm)?;
            for event in &events {
                answered += self.answers(event, burst, &mut outcome)?;
            }
        }
        outcome.samples = watch.end(self.now().saturating_sub(began), self.gate.delivered() - before);
        outcome.expected = self.expected - start;
        outcome.wall = Duration::from_nanos(self.now().saturating_sub(began));
        if outcome.gave_up {
            outcome.wall = outcome.wall.saturating_sub(plan.deadline);
            // what is lost stays lost: the next stretch waits for its own deliveries only
            self.expected = self.gate.delivered();
        }
        Ok(outcome)
    }

    /// Sleeps until something happens, but for `timeout` at most, and not beyond the time `alarm` (ns).
    fn wait(&mut self, events: &mut Events, mut timeout: Duration, alarm: Option<u64>) -> Result<()> {
        if let Some(due) = alarm {
            // epoll counts whole milliseconds: the last ones are slept exactly, and answers meanwhile can wait
            let left = Duration::from_nanos(due.saturating_sub(self.now()));
            if left > Duration::from_millis(2) {
                timeout = timeout.min(left.saturating_sub(Duration::from_millis(1)));
            } else {
                std::thread::sleep(left);
                timeout = Duration::ZERO;
            }
        }
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn send(&mut self, index: usize, due: u64, now: u64, burst: u32, plan: &Plan, outcome: &mut Outcome) -> Result<()> {
        let lane = self.lanes.get_mut(index).ok_or("no such lane")?;
        let topic = *lane.route.topics.get(lane.next).ok_or("no such topic")?;
        let link = lane.links.get(lane.next).and_then(|&link| self.links.get_mut(link)).ok_or("no such connection")?;
        lane.next = (lane.next + 1) % lane.route.topics.len();
        let seq = self.seqs.get_mut(topic as usize).ok_or("no such topic")?;
        let sent = if let Pace::Rate(_) = plan.pace { due } else { now };
        let first = Header { topic, seq: *seq, sent };
        *seq = seq.checked_add(burst).ok_or("more than 2³² messages to one topic")?;
        if link.written == link.output.len() {
            link.output.clear();
            link.written = 0;
        }
        lane.route.wire.request(&mut link.output, first, burst, plan);
        if lane.route.wire.answers() {
            link.waiting += 1;
            lane.waiting += 1;
            self.waiting += 1;
        }
        if lane.waiting < lane.route.depth {
            self.free.push_back(index);
        }
        if let Pace::Rate(_) = plan.pace {
            outcome.lag.saturating_record(now.saturating_sub(due.max(lane.free_at)));
        }
        outcome.published += u64::from(burst);
        self.expected += u64::from(burst) * u64::from(self.members.get(topic as usize).copied().unwrap_or(0));
        if link.pipelined { Ok(()) } else { link.flush() }
    }

    /// Looks at a connection; gives the number of its requests that were answered.
    fn answers(&mut self, event: &mio::event::Event, burst: u32, outcome: &mut Outcome) -> Result<u64> {
        let Some(link) = self.links.get_mut(event.token().0) else {
            return Ok(0);
        };
        if event.is_writable() {
            link.flush()?;
        }
        if !event.is_readable() {
            return Ok(0);
        }
        let open = socket::receive(&mut link.stream, &mut link.input, event.is_read_closed());
        if !open.map_err(|error| format!("publishing: {error}"))? {
            return Err("publishing: the server closed the connection".into());
        }
        let lane = self.lanes.get_mut(link.lane).ok_or("no such lane")?;
        let (mut used, mut answered) = (0, 0);
        while let Some(rest) = link.input.get(used..)
            && !rest.is_empty()
        {
            if link.waiting == 0 {
                return Err("more answers than requests".into());
            }
            let Some((length, error)) = lane.route.wire.answer(rest, burst)? else {
                break;
            };
            used += length;
            answered += 1;
            if lane.waiting == lane.route.depth {
                lane.free_at = self.epoch.elapsed().as_nanos() as u64;
                self.free.push_back(link.lane);
            }
            link.waiting -= 1;
            lane.waiting -= 1;
            self.waiting -= 1;
            if error.is_some() {
                outcome.errors += 1;
                outcome.first_error = outcome.first_error.take().or(error);
            }
        }
        link.input.drain(..used);
        Ok(answered)
    }
}

impl Link {
    /// Writes what the socket takes.
    fn flush(&mut self) -> Result<()> {
        while let Some(rest) = self.output.get(self.written..)
            && !rest.is_empty()
        {
            match self.stream.write(rest) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("publishing: {error}").into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(out: &[u8]) -> serde_json::Value {
        let end = http::head_end(out).unwrap();
        let length: usize = http::header(&out[..end], "content-length").unwrap().parse().unwrap();
        assert_eq!(out.len(), end + length);
        serde_json::from_slice(&out[end..]).unwrap()
    }

    fn plan(binary: bool) -> Plan {
        let deadline = Duration::from_secs(10);
        Plan { messages: 1, pace: Pace::Free, size: 64, binary, joined: false, deadline, from: None }
    }

    #[test]
    fn a_binary_message_is_base64_over_http_and_bytes_through_redis() {
        let api = Api { address: "127.0.0.1:7273".parse().unwrap(), token: None };
        let first = Header { topic: 17, seq: 5, sent: 9 };
        let mut out = Vec::new();
        Wire::Http(api, Kind::Uid).request(&mut out, first, 1, &plan(true));
        let body = body(&out);
        assert_eq!((&body["uid"], &body["message"]), (&"u17".into(), &serde_json::Value::Null));
        let bytes = BASE64_STANDARD.decode(body["binary"].as_str().unwrap()).unwrap();
        assert!(message::is_binary(&bytes));
        assert_eq!(Header::read(&bytes, 64), Some(first));
        out.clear();
        redis("127.0.0.1:1", Kind::Uid).request(&mut out, first, 1, &plan(true));
        assert!(out.ends_with(&[&bytes[..], b"\r\n"].concat()));
    }

    #[test]
    fn one_message_is_one_command() {
        let api = Api { address: "127.0.0.1:7273".parse().unwrap(), token: Some("secret".into()) };
        let mut out = Vec::new();
        let first = Header { topic: 17, seq: 5, sent: 9 };
        Wire::Http(api, Kind::Uid).request(&mut out, first, 1, &plan(false));
        let text = String::from_utf8_lossy(&out);
        assert!(
            text.starts_with("POST /api/sendToUid HTTP/1.1\r\n")
                && text.contains("\r\nAuthorization: Bearer secret\r\n")
        );
        let body = body(&out);
        assert_eq!(body["uid"], "u17");
        assert_eq!(Header::read(body["message"].as_str().unwrap().as_bytes(), 64), Some(first));
    }

    #[test]
    fn several_are_one_batch() {
        let api = Api { address: "127.0.0.1:7273".parse().unwrap(), token: None };
        let mut out = Vec::new();
        let first = Header { topic: 2, seq: 5, sent: 9 };
        Wire::Http(api, Kind::Group).request(&mut out, first, 3, &plan(false));
        let body = body(&out);
        let commands = body["commands"].as_array().unwrap();
        let seqs: Vec<u32> = commands
            .iter()
            .map(|command| {
                assert_eq!((&command["op"], &command["group"]), (&"sendToGroup".into(), &"g2".into()));
                Header::read(command["message"].as_str().unwrap().as_bytes(), 64).unwrap().seq
            })
            .collect();
        assert_eq!(seqs, [5, 6, 7]);
    }

    #[test]
    fn errors_are_found_in_answers() {
        let wire = Wire::Http(Api { address: "127.0.0.1:1".parse().unwrap(), token: None }, Kind::Group);
        let bad = b"HTTP/1.1 503 X\r\nContent-Length: 2\r\n\r\n{}";
        assert!(wire.answer(bad, 1).unwrap().unwrap().1.is_some());
        let mixed = b"HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n{\"results\":[{\"error\":{}}";
        assert!(wire.answer(mixed, 2).unwrap().unwrap().1.is_some());
        let good = b"HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{\"result\":{\"nodes\":1}}";
        assert_eq!(wire.answer(good, 1).unwrap(), Some((good.len(), None)));
    }

    #[test]
    fn binding_is_one_batch() {
        let wire = Wire::Http(Api { address: "127.0.0.1:1".parse().unwrap(), token: None }, Kind::Uid);
        let mut out = Vec::new();
        wire.bind(&mut out, "7f", 12, 3).unwrap();
        let body = body(&out);
        assert_eq!(body["commands"][0], serde_json::json!({"op": "bindUid", "client_id": "7f", "uid": "u12"}));
        assert_eq!(body["commands"][1], serde_json::json!({"op": "joinGroup", "client_id": "7f", "group": "g3"}));
        let floor = Wire::Floor("127.0.0.1:1".parse().unwrap());
        let (mut order, mut expected) = (Vec::new(), Vec::new());
        floor.bind(&mut order, "7f", 12, 3).unwrap();
        floor::order(&mut expected, b'J', 3, &[0x7f, 0, 0, 0]);
        assert_eq!(order, expected);
    }

    fn redis(address: &str, kind: Kind) -> Wire {
        Wire::Redis(Servers::single(redis::Address::Tcp(address.parse().unwrap())), "mg".to_owned(), kind)
    }

    #[test]
    fn over_redis_each_message_is_a_publish() {
        let mut out = Vec::new();
        let first = Header { topic: 2, seq: 5, sent: 9 };
        redis("127.0.0.1:1", Kind::Group).request(&mut out, first, 3, &plan(false));
        let mut rest = out.as_slice();
        for seq in 5..8 {
            let (value, after) = redis::front(rest).unwrap().unwrap();
            let Value::Array(words) = value else { panic!("{value:?}") };
            let [Value::Text(b"PUBLISH"), Value::Text(b"mg:group:g2"), Value::Text(payload)] = &*words else {
                panic!("{words:?}")
            };
            assert_eq!(Header::read(payload, 64), Some(Header { seq, ..first }));
            rest = after;
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn to_php_each_message_is_a_packet() {
        let (mut out, first) = (Vec::new(), Header { topic: 2, seq: 5, sent: 9 });
        Wire::Php("127.0.0.1:1".parse().unwrap(), Kind::Group).request(&mut out, first, 2, &plan(false));
        let ext = br#"{"group":["g2"],"exclude":null}"#;
        let length = 28 + ext.len() + 64;
        assert_eq!(out.len(), 2 * length);
        let (packet, _) = out.split_at(length);
        assert_eq!((packet[3] as usize, packet[4], packet[21], packet[27] as usize), (length, 22, 1, ext.len()));
        assert!(packet[28..].starts_with(ext));
        assert_eq!(Header::read(&packet[28 + ext.len()..], 64), Some(first));
    }

    #[test]
    fn each_task_is_an_entry_with_a_command() {
        let (mut out, first) = (Vec::new(), Header { topic: 2, seq: 5, sent: 9 });
        let Wire::Redis(servers, prefix, kind) = redis("127.0.0.1:1", Kind::Group) else { panic!("not Redis") };
        let wire = Wire::Tasks(servers, prefix, kind);
        wire.request(&mut out, first, 2, &plan(false));
        let mut rest = out.as_slice();
        for seq in 5..7 {
            let (value, after) = redis::front(rest).unwrap().unwrap();
            let Value::Array(words) = value else { panic!("{value:?}") };
            let [
                Value::Text(b"XADD"),
                Value::Text(b"mg:tasks"),
                Value::Text(b"*"),
                Value::Text(b"command"),
                Value::Text(command),
            ] = &*words
            else {
                panic!("{words:?}")
            };
            let command: serde_json::Value = serde_json::from_slice(command).unwrap();
            assert_eq!((&command["op"], &command["group"]), (&"sendToGroup".into(), &"g2".into()));
            let message = command["message"].as_str().unwrap();
            assert_eq!(Header::read(message.as_bytes(), 64), Some(Header { seq, ..first }));
            rest = after;
        }
        assert!(rest.is_empty() && !wire.is_ordered());
        assert_eq!(wire.answer(b"$3\r\n1-0\r\n$3\r\n2-0\r\n", 2).unwrap(), Some((18, None)));
        assert!(wire.answer(b"-OOM no\r\n", 1).unwrap().unwrap().1.unwrap().contains("XADD"));
    }

    #[test]
    fn redis_answers_how_many_heard() {
        let wire = redis("127.0.0.1:1", Kind::Uid);
        assert_eq!(wire.answer(b":1\r\n:2\r\n:", 1).unwrap(), Some((4, None)));
        assert_eq!(wire.answer(b":1\r\n:2\r\n:", 2).unwrap(), Some((8, None)));
        assert_eq!(wire.answer(b":1\r\n:2\r\n:", 3).unwrap(), None);
        let error = |input: &[u8]| wire.answer(input, 1).unwrap().unwrap().1.unwrap();
        assert!(error(b":0\r\n").contains("nobody"));
        assert!(error(b"-NOPERM no\r\n").contains("NOPERM"));
        assert!(wire.answer(b"HTTP/1.1 400 Bad Request\r\n", 1).is_err());
    }

    #[test]
    fn what_is_published_through_redis_arrives_once_and_in_order() {
        let server =
            redis::Redis::spawn("redis-server".as_ref(), 0).expect("these tests need redis-server: apt install it");
        let epoch = Instant::now();
        let members = vec![2, 1, 1];
        let wire = Wire::Redis(server.servers.clone(), "mg".to_owned(), Kind::Uid);
        let mut publisher = Publisher::new(&wire, 2, PIPELINE, members, epoch).unwrap();
        let topics = [0, 0, 1, 2];
        let channels = topics.iter().map(|&topic| Kind::Uid.channel("mg", topic));
        let clients = clients::subscribe(&server.servers, channels).unwrap();
        let pool = clients::Pool::start(
            clients.into_iter().zip(topics.map(|topic| [topic; 2])).collect(),
            1,
            64,
            epoch,
            publisher.gate(),
        )
        .unwrap();
        let before = server.usage().unwrap();
        for pace in [Pace::Window(256), Pace::Window(1), Pace::Backlog(10), Pace::Rate(10_000.0), Pace::Free] {
            let deadline = Duration::from_secs(10);
            let outcome = publisher.run(&Plan { messages: 3000, pace, deadline, ..plan(false) }).unwrap();
            let stats = pool.take().unwrap();
            assert_eq!((outcome.published, outcome.errors, outcome.gave_up), (3000, 0, false), "{pace:?}");
            assert_eq!((stats.delivered, stats.duplicates, stats.reordered), (outcome.expected, 0, 0), "{pace:?}");
            assert_eq!((stats.misdelivered, stats.closed), (0, 0), "{pace:?}");
        }
        assert_eq!(server.usage().unwrap().since(&before).calls.get("publish"), Some(&15_000));
    }

    #[test]
    fn on_a_cluster_each_message_goes_to_the_master_of_its_channel() {
        let server =
            redis::Redis::spawn("redis-server".as_ref(), 3).expect("these tests need redis-server: apt install it");
        let topics = 30;
        let wire = Wire::Redis(server.servers.clone(), "mg".to_owned(), Kind::Group);
        let mut publisher = Publisher::new(&wire, 2, PIPELINE, vec![0; topics], Instant::now()).unwrap();
        assert_eq!(publisher.links.len(), 6, "two lanes, each with a connection to each master");
        let before = server.usage().unwrap();
        let outcome = publisher.run(&Plan { messages: 300, ..plan(false) }).unwrap();
        // from elsewhere it would be told where to go
        assert_eq!((outcome.errors, outcome.first_error.as_deref()), (300, Some("SPUBLISH: nobody is subscribed")));
        let used = server.usage().unwrap().since(&before);
        assert_eq!(used.calls, [("spublish".to_owned(), 300)].into());
        assert!(used.received > 300 * 64 && used.busiest().is_some(), "{used:?}");

        for wire in [
            Wire::Redis(server.servers.clone(), "mg".to_owned(), Kind::Apart { topics: 3, clients: 9 }),
            Wire::Tasks(server.servers.clone(), "mg".to_owned(), Kind::Group),
        ] {
            let mut publisher = Publisher::new(&wire, 1, 1, vec![0; 3], Instant::now()).unwrap();
            assert_eq!(publisher.links.len(), 1, "commands have one channel, and tasks one stream");
            let outcome = publisher.run(&Plan { messages: 3, ..plan(false) }).unwrap();
            assert!(outcome.first_error.is_none_or(|error| error.contains("nobody")), "{wire:?}");
        }
    }
}
