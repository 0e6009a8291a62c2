//! The publisher: keeps connections to the gateway's API (or the floor's control port), sends one request at a time on
//! each, and decides when the next is due.
//!
//! A topic always goes through the same connection, so its messages are sent in order. All of it runs in one thread on one
//! poll, also with hundreds of connections.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::clients::{self, Gate};
use crate::http::{self, Api};
use crate::message::Header;
use crate::{Result, floor};

const WAKE: Token = Token(usize::MAX);
/// Longest sleep: how late a lost wake-up or an interrupt may be noticed.
const TICK: Duration = Duration::from_millis(50);

/// What a topic is to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Topic 7 is the group `g7`.
    Group,
    /// Topic 7 is the uid `u7`.
    Uid,
}

/// How a publisher talks.
#[derive(Debug, Clone)]
pub(crate) enum Wire {
    /// `POST /api/…`.
    Http(Api, Kind),
    /// Orders to the bare server.
    Floor(SocketAddr),
}

impl Wire {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Http(api, _) => api.address,
            Self::Floor(address) => *address,
        }
    }

    /// Appends a request that sends `count` messages, the first of which is `first`, in one go.
    fn request(&self, out: &mut Vec<u8>, first: Header, count: u32, size: usize, joined: bool) {
        let headers = (0..count).map(|index| Header { seq: first.seq.wrapping_add(index), ..first });
        let mut body = Vec::new();
        match self {
            Self::Http(api, kind) => {
                let (op, field, letter) = match kind {
                    Kind::Group => ("sendToGroup", "group", 'g'),
                    Kind::Uid => ("sendToUid", "uid", 'u'),
                };
                let target = format!("\"{field}\":\"{letter}{}\",\"message\":\"", first.topic);
                if count == 1 {
                    body.push(b'{');
                    body.extend_from_slice(target.as_bytes());
                    first.write(&mut body, size);
                    body.extend_from_slice(b"\"}");
                    return api.post(out, op, &body);
                }
                body.extend_from_slice(b"{\"commands\":[");
                for (index, header) in headers.enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    body.extend_from_slice(format!("{comma}{{\"op\":\"{op}\",{target}").as_bytes());
                    header.write(&mut body, size);
                    body.extend_from_slice(b"\"}");
                }
                body.extend_from_slice(b"]}");
                api.post(out, "batch", &body);
            }
            Self::Floor(_) => {
                for header in headers {
                    body.extend_from_slice(&(size as u32).to_le_bytes());
                    header.write(&mut body, size);
                }
                floor::order(out, if joined { b'G' } else { b'S' }, first.topic, &body);
            }
        }
    }

    /// How many bytes the answer at the front of `input` has, or `None` while it is incomplete; an error in it is the
    /// inner one.
    fn answer(&self, input: &[u8], count: u32) -> Result<Option<(usize, Option<String>)>> {
        match self {
            Self::Http(..) => Ok(http::answer(input)?.map(|answer| {
                let failed =
                    answer.status != 200 || count > 1 && answer.body.windows(8).any(|bytes| bytes == b"\"error\":");
                (answer.length, failed.then(|| answer.words()))
            })),
            Self::Floor(_) => match input.first() {
                Some(b'K') => Ok(Some((1, None))),
                Some(_) => Err("the floor server did not answer K".into()),
                None => Ok(None),
            },
        }
    }
}

/// When the next message is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// As soon as a connection is free.
    Free,
    /// As soon as so many messages or fewer are undelivered, itself included.
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
    /// For the floor: gather what waits for one socket.
    pub(crate) joined: bool,
    /// Without a delivery for so long, the rest counts as lost.
    pub(crate) deadline: Duration,
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
}

/// The connections, and the state that outlives a stretch.
pub(crate) struct Publisher {
    wire: Wire,
    poll: Poll,
    gate: Arc<Gate>,
    lanes: Vec<Lane>,
    /// Lanes that wait for work, the longest first.
    free: VecDeque<usize>,
    /// Members of each topic.
    members: Vec<u32>,
    /// Next sequence number of each topic.
    seqs: Vec<u32>,
    /// Deliveries that should have happened since the beginning, lost ones taken off.
    expected: u64,
    epoch: Instant,
}

/// One connection with at most one request on the way.
struct Lane {
    stream: TcpStream,
    output: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    /// Messages in the request on the way.
    count: u32,
    /// The topics are `first`, `first + lanes`, …; this is the next one.
    topic: usize,
    free_at: u64,
}

/// Asks something at once: a connection that has never said anything is cut after a while, and some runs begin with a pause.
fn greet(stream: &mut std::net::TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(crate::PATIENCE))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
    while !answer.ends_with(b"ok\n") {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err("the API closed the connection at the first request".into());
        }
        answer.extend(buffer.iter().take(read));
    }
    Ok(())
}

impl Publisher {
    /// Opens `lanes` connections (not more than topics). `members` counts the receivers of each topic.
    pub(crate) fn new(wire: Wire, lanes: usize, members: Vec<u32>, epoch: Instant) -> Result<Self> {
        let poll = Poll::new()?;
        let gate = Arc::new(Gate::new(Waker::new(poll.registry(), WAKE)?));
        let mut publisher = Self {
            wire,
            poll,
            gate,
            lanes: Vec::new(),
            free: VecDeque::new(),
            seqs: vec![0; members.len()],
            members,
            expected: 0,
            epoch,
        };
        for index in 0..lanes.clamp(1, publisher.members.len().max(1)) {
            let mut stream = std::net::TcpStream::connect_timeout(&publisher.wire.address(), crate::PATIENCE)?;
            stream.set_nodelay(true)?;
            if let Wire::Http(..) = publisher.wire {
                greet(&mut stream)?;
            }
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            let both = Interest::READABLE | Interest::WRITABLE;
            publisher.poll.registry().register(&mut stream, Token(index), both)?;
            publisher.lanes.push(Lane {
                stream,
                output: Vec::new(),
                written: 0,
                input: Vec::new(),
                count: 0,
                topic: index,
                free_at: 0,
            });
            publisher.free.push_back(index);
        }
        Ok(publisher)
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
        };
        let began = self.now();
        let start = self.expected;
        let largest = u64::from(self.members.iter().copied().max().unwrap_or(0));
        let burst = if let Pace::Backlog(count) = plan.pace { count.max(1) } else { 1 };
        let mut events = Events::with_capacity(512);
        let mut answered = 0u64;
        let mut progress = (self.gate.delivered(), answered, Instant::now());
        loop {
            crate::interrupted()?;
            let now = self.now();
            let delivered = self.gate.delivered();
            // the next may go at the time `due`, and when `enough` was delivered
            let mut due = 0;
            let mut enough = 0;
            let sending = outcome.published < plan.messages;
            if sending {
                match plan.pace {
                    Pace::Free => {}
                    Pace::Window(window) => {
                        enough = self.expected.saturating_sub(largest * u64::from(window.saturating_sub(1)));
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
            } else if self.free.len() == self.lanes.len() {
                enough = self.expected;
                if delivered >= enough {
                    break;
                }
            }
            if (delivered, answered) != (progress.0, progress.1) || due > now {
                progress = (delivered, answered, Instant::now());
            } else if progress.2.elapsed() > plan.deadline {
                if self.free.len() < self.lanes.len() {
                    return Err(format!("no answer from {} within {:?}", self.wire.address(), plan.deadline).into());
                }
                outcome.gave_up = true;
                break;
            }
            let blocked = delivered < enough;
            self.gate.wake_at(if blocked { enough } else { u64::MAX });
            let timeout = if blocked && self.gate.delivered() >= enough { Duration::ZERO } else { TICK };
            let alarm = (sending && due > now && !self.free.is_empty()).then_some(due);
            self.wait(&mut events, timeout, alarm)?;
            for event in &events {
                if let Some(index) = self.answers(event, &mut outcome)? {
                    answered += 1;
                    self.free.push_back(index);
                }
            }
        }
        outcome.expected = self.expected - start;
        outcome.wall = Duration::from_nanos(self.now() - began);
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
        let lanes = self.lanes.len();
        let lane = self.lanes.get_mut(index).ok_or("no such lane")?;
        let topic = lane.topic;
        lane.topic = if topic + lanes < self.members.len() { topic + lanes } else { index };
        let seq = self.seqs.get_mut(topic).ok_or("no such topic")?;
        let sent = if let Pace::Rate(_) = plan.pace { due } else { now };
        let first = Header { topic: topic as u32, seq: *seq, sent };
        *seq = seq.checked_add(burst).ok_or("more than 2³² messages to one topic")?;
        lane.output.clear();
        lane.written = 0;
        self.wire.request(&mut lane.output, first, burst, plan.size, plan.joined);
        lane.count = burst;
        if let Pace::Rate(_) = plan.pace {
            outcome.lag.saturating_record(now.saturating_sub(due.max(lane.free_at)));
        }
        outcome.published += u64::from(burst);
        self.expected += u64::from(burst) * u64::from(self.members.get(topic).copied().unwrap_or(0));
        lane.flush()
    }

    /// Looks at a connection; gives its number when its request was answered.
    fn answers(&mut self, event: &mio::event::Event, outcome: &mut Outcome) -> Result<Option<usize>> {
        let index = event.token().0;
        let Some(lane) = self.lanes.get_mut(index) else {
            return Ok(None);
        };
        if event.is_writable() {
            lane.flush()?;
        }
        if !event.is_readable() || !lane.read()? {
            return Ok(None);
        }
        let Some((length, error)) = self.wire.answer(&lane.input, lane.count)? else {
            return Ok(None);
        };
        if lane.count == 0 || length != lane.input.len() {
            return Err("more answers than requests".into());
        }
        lane.input.clear();
        lane.count = 0;
        lane.free_at = self.epoch.elapsed().as_nanos() as u64;
        if error.is_some() {
            outcome.errors += 1;
            outcome.first_error = outcome.first_error.take().or(error);
        }
        Ok(Some(index))
    }
}

impl Lane {
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

    /// Reads all there is; `false` when that is nothing.
    fn read(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        let mut some = false;
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err("publishing: the server closed the connection".into()),
                Ok(count) => {
                    some = true;
                    self.input.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    if count < buffer.len() {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(some),
                Err(error) => return Err(format!("publishing: {error}").into()),
            }
        }
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

    #[test]
    fn one_message_is_one_command() {
        let api = Api { address: "127.0.0.1:7273".parse().unwrap(), token: Some("secret".into()) };
        let mut out = Vec::new();
        let first = Header { topic: 17, seq: 5, sent: 9 };
        Wire::Http(api, Kind::Uid).request(&mut out, first, 1, 64, false);
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
        Wire::Http(api, Kind::Group).request(&mut out, first, 3, 64, false);
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
}
