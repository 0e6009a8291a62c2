//! The receiving connections, of WebSocket clients and of Redis subscribers: opening them, and threads that read, check
//! and count what arrives.
//!
//! They must cost less than the server, as both share the machine: raw sockets, one large read buffer per thread, no copy
//! of a frame unless it was cut, one clock reading per `read(2)`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token, Waker};
use rustls::ClientConfig;
use socket2::Socket;

use crate::frame::{self, Front};
use crate::http;
use crate::message::{self, Arrival, Header, Seen};
use crate::session::Session;
use crate::{Result, process, progress, redis, socket};

/// The key and the answer to it of RFC 6455's own example: a tester needs no secrecy, so nobody here computes SHA-1.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// See [`KEY`].
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// From here on, one source address may run out of ports on the way to one destination.
const PORTS: usize = 28_000;
/// Clients for each source address when several are needed.
const PER_SOURCE: usize = 20_000;
const WAKE: Token = Token(usize::MAX);

/// A socket and, over TLS, the session on it; boxed, as plain clients shall not carry its room.
#[derive(Debug)]
struct Link {
    stream: Socket,
    tls: Option<Box<Session>>,
}

impl Link {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.tls {
            None => self.stream.write_all(bytes),
            Some(session) => session.write(bytes, &mut self.stream),
        }
    }
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    WebSocket,
    /// A subscriber's RESP2.
    Redis,
}

/// A connection after its handshake and the server's first message.
#[derive(Debug)]
pub(crate) struct Connected {
    link: Link,
    dialect: Dialect,
    /// By which the server knows it.
    pub(crate) client_id: String,
    /// Number of its node.
    pub(crate) home: usize,
    /// What arrived behind the first message.
    rest: Vec<u8>,
}

impl Connected {
    /// Of a socket from which `input` has come, beginning with the answer to the handshake.
    pub(crate) fn new(stream: Socket, input: &[u8], home: usize) -> Result<Self> {
        let (client_id, rest) = greeting(input)?.ok_or("no init message yet")?;
        let (client_id, rest, link) = (client_id.to_owned(), rest.to_owned(), Link { stream, tls: None });
        Ok(Self { link, dialect: Dialect::WebSocket, client_id, home, rest })
    }

    /// Has the kernel take next to nothing for it, as nobody is going to read.
    pub(crate) fn ignore(&self) -> Result<()> {
        Ok(self.link.stream.set_recv_buffer_size(4096)?)
    }
}

/// Opens connections for these clients, client `i` to `servers[home(i)]`, and waits for each one's `init` message. `side` keeps the
/// source addresses of several servers under test apart; with `trust` they are TLS connections.
pub(crate) fn connect(
    servers: &[SocketAddr],
    numbers: Range<usize>,
    home: impl Fn(usize) -> usize,
    side: u8,
    trust: Option<&Arc<ClientConfig>>,
) -> Result<Vec<Connected>> {
    let mut clients = Vec::with_capacity(numbers.len());
    let many = numbers.end / servers.len().max(1) > PORTS;
    let mut opened = numbers.start;
    progress::phase("connecting", numbers.end as u64);
    while opened < numbers.end {
        crate::interrupted()?;
        // some dozens at a time, so that neither side waits for the other
        let mut links = Vec::new();
        for index in opened..numbers.end.min(opened + 64) {
            let server = servers.get(home(index)).ok_or("no server to connect to")?;
            let source = Ipv4Addr::new(127, 0, side, 1 + (index / PER_SOURCE) as u8);
            let stream = socket::tcp(*server, (many && server.ip().is_loopback()).then_some(source));
            let stream = stream.map_err(|error| format!("client {index} to {server}: {error}"))?;
            let tls = trust.map(Session::new).transpose()?.map(Box::new);
            let mut link = Link { stream, tls };
            link.write(handshake(*server).as_bytes())?;
            links.push((link, home(index)));
        }
        for (link, home) in links {
            clients.push(greet(link, home).map_err(|error| format!("client {opened}: {error}"))?);
            opened += 1;
        }
        progress::at(opened as u64);
    }
    Ok(clients)
}

/// What a client says first.
pub(crate) fn handshake(server: SocketAddr) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: {server}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

/// Opens a connection for each channel and subscribes to it, on a Redis that is no Cluster.
pub(crate) fn subscribe(redis: &redis::Servers, channels: impl Iterator<Item = String>) -> Result<Vec<Connected>> {
    let subscribe = |channel: String| {
        crate::interrupted()?;
        let mut stream = redis.connect(0)?;
        redis::ask(&mut stream, &["SUBSCRIBE", &channel])?;
        let link = Link { stream, tls: None };
        Ok(Connected { link, dialect: Dialect::Redis, client_id: channel, home: 0, rest: Vec::new() })
    };
    channels.map(subscribe).collect()
}

fn greet(mut link: Link, home: usize) -> Result<Connected> {
    let mut input = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        let read = match &mut link.tls {
            None => link.stream.read(&mut buffer),
            Some(session) => session.read(&mut buffer, &mut link.stream),
        };
        let count = match read {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err("no init message in time; is INIT_MESSAGE the default?".into());
            }
            Err(error) => return Err(error.into()),
        };
        if count == 0 {
            return Err(format!("closed in the handshake, after {:?}", String::from_utf8_lossy(&input)).into());
        }
        input.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if let Some((client_id, rest)) = greeting(&input)? {
            let (client_id, rest) = (client_id.to_owned(), rest.to_owned());
            return Ok(Connected { link, dialect: Dialect::WebSocket, client_id, home, rest });
        }
    }
}

/// Reads the answer to the handshake and the `init` message; gives the client id and what follows, or `None` while
/// incomplete.
pub(crate) fn greeting(input: &[u8]) -> Result<Option<(&str, &[u8])>> {
    let Some(end) = http::head_end(input) else {
        return Ok(None);
    };
    let (head, mut rest) = input.split_at_checked(end).unwrap_or_default();
    if http::status(head) != Some(101) || http::header(head, "sec-websocket-accept") != Some(ACCEPT) {
        let first = String::from_utf8_lossy(head).lines().next().unwrap_or_default().to_owned();
        return Err(format!("refused: {first}; does a gateway listen there for clients?").into());
    }
    loop {
        match frame::front(rest) {
            Front::Partial => return Ok(None),
            Front::Foreign => return Err("a frame that no gateway sends".into()),
            // a ping this early may go unanswered
            Front::Whole(frame) if frame.opcode == frame::PING => rest = frame.rest,
            Front::Whole(frame) => {
                let text = std::str::from_utf8(frame.payload)?;
                let after = text.split_once("\"client_id\":\"").and_then(|(_, after)| after.split_once('"'));
                let (client_id, _) = after.ok_or_else(|| format!("no client_id in the first message: {text}"))?;
                return Ok(Some((client_id, frame.rest)));
            }
        }
    }
}

/// Counts deliveries for the publisher and wakes it when the one arrives that it waits for.
#[derive(Debug)]
pub(crate) struct Gate {
    delivered: AtomicU64,
    wake_at: AtomicU64,
    waker: Waker,
}

impl Gate {
    /// A gate that wakes the poll of `waker`.
    pub(crate) fn new(waker: Waker) -> Self {
        Self { delivered: AtomicU64::new(0), wake_at: AtomicU64::new(u64::MAX), waker }
    }

    /// First-time deliveries so far.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::SeqCst)
    }

    /// Asks to be woken when `delivered` reaches `count`; look at it again afterwards, before sleeping.
    pub(crate) fn wake_at(&self, count: u64) {
        self.wake_at.store(count, Ordering::SeqCst);
    }

    fn add(&self, count: u64) {
        if count == 0 {
            return;
        }
        let before = self.delivered.fetch_add(count, Ordering::SeqCst);
        let wake_at = self.wake_at.load(Ordering::SeqCst);
        if before < wake_at && wake_at <= before + count {
            // a lost wake-up costs the publisher one tick of its timeout
            self.waker.wake().ok();
        }
    }
}

/// What the receivers saw.
#[derive(Debug, Clone)]
pub(crate) struct Stats {
    /// Messages that a client got for the first time.
    pub(crate) delivered: u64,
    /// Messages that a client had got before.
    pub(crate) duplicates: u64,
    /// Messages that came while earlier ones of their topic had not; each jump counts once.
    pub(crate) gaps: u64,
    /// Messages that came after a later one of their topic.
    pub(crate) reordered: u64,
    /// Messages of a topic that the client is not in, or with a payload that nobody sent.
    pub(crate) misdelivered: u64,
    /// Pings answered.
    pub(crate) pings: u64,
    /// Connections that ended.
    pub(crate) closed: u64,
    /// Why the first one ended.
    pub(crate) first_close: Option<String>,
    /// From sending to reading, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Stats {
    /// Nothing seen.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            delivered: 0,
            duplicates: 0,
            gaps: 0,
            reordered: 0,
            misdelivered: 0,
            pings: 0,
            closed: 0,
            first_close: None,
            latency: histogram()?,
        })
    }

    /// Adds what another saw.
    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.delivered += other.delivered;
        self.duplicates += other.duplicates;
        self.gaps += other.gaps;
        self.reordered += other.reordered;
        self.misdelivered += other.misdelivered;
        self.pings += other.pings;
        self.closed += other.closed;
        if self.first_close.is_none() {
            self.first_close.clone_from(&other.first_close);
        }
        self.latency.add(&other.latency)?;
        Ok(())
    }

    fn clear(&mut self) {
        (self.delivered, self.duplicates, self.gaps, self.reordered) = (0, 0, 0, 0);
        (self.misdelivered, self.pings, self.closed) = (0, 0, 0);
        self.first_close = None;
        self.latency.reset();
    }

    fn ended(&mut self, why: impl FnOnce() -> String) {
        self.closed += 1;
        self.first_close.get_or_insert_with(why);
    }
}

/// A histogram of nanoseconds between 1 µs and 2 minutes, three digits precise.
pub(crate) fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1_000, 120_000_000_000, 3)?)
}

struct Shared {
    stats: Mutex<Stats>,
    stop: AtomicBool,
    /// At the end the connections are closed without a word.
    mute: AtomicBool,
    /// Kernel id, told by the thread itself.
    thread: OnceLock<i32>,
    waker: Waker,
}

/// The threads that read for the clients of one server.
pub(crate) struct Pool {
    threads: Vec<(Arc<Shared>, JoinHandle<()>)>,
}

impl Pool {
    /// Starts `threads` threads for `clients`, each with its two topics, which may be the same. `size` is that of every message, `epoch` the moment
    /// from which send times count.
    pub(crate) fn start(
        clients: Vec<(Connected, [u32; 2])>,
        threads: usize,
        size: usize,
        epoch: Instant,
        gate: &Arc<Gate>,
    ) -> Result<Self> {
        let threads = threads.clamp(1, 64);
        let mut pool = Self { threads: Vec::new() };
        let mut shares: Vec<Vec<(Connected, [u32; 2])>> = (0..threads).map(|_| Vec::new()).collect();
        for (index, client) in clients.into_iter().enumerate() {
            if let Some(share) = shares.get_mut(index % threads) {
                share.push(client);
            }
        }
        for share in shares {
            let poll = Poll::new()?;
            let shared = Arc::new(Shared {
                stats: Mutex::new(Stats::new()?),
                stop: AtomicBool::new(false),
                mute: AtomicBool::new(false),
                thread: OnceLock::new(),
                waker: Waker::new(poll.registry(), WAKE)?,
            });
            let mut clients = Vec::with_capacity(share.len());
            for (index, (connected, topics)) in share.into_iter().enumerate() {
                let Connected { link, dialect, rest, .. } = connected;
                socket::register(poll.registry(), &link.stream, Token(index), Interest::READABLE)?;
                let topics = topics.map(|topic| (topic, Seen::default()));
                clients.push(Client { link, dialect, topics, open: true, rest });
            }
            // at least twice a message: a read always finds room behind the longest unfinished frame
            let buffer = vec![0; (256 * 1024).max(2 * size + 64 * 1024)];
            let (plain, gate) = (Vec::new(), gate.clone());
            let reader = Reader { poll, clients, buffer, plain, size, epoch, shared: shared.clone(), gate };
            let thread = std::thread::Builder::new().name("receiver".to_owned()).spawn(move || reader.run())?;
            pool.threads.push((shared, thread));
        }
        Ok(pool)
    }

    /// What was seen since the last call.
    pub(crate) fn take(&self) -> Result<Stats> {
        let mut sum = Stats::new()?;
        for (shared, _) in &self.threads {
            let mut stats = shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
            sum.add(&stats)?;
            stats.clear();
        }
        Ok(sum)
    }

    /// Closes all connections without a close frame, as when what was between them and the gateway has gone.
    pub(crate) fn forsake(self) {
        self.threads.iter().for_each(|(shared, _)| shared.mute.store(true, Ordering::SeqCst));
    }

    /// Kernel ids of the threads, for their CPU time.
    pub(crate) fn thread_ids(&self) -> Vec<i32> {
        self.threads.iter().map(|(shared, _)| *shared.thread.wait()).collect()
    }
}

impl Drop for Pool {
    /// Says goodbye on every connection.
    fn drop(&mut self) {
        for (shared, _) in &self.threads {
            shared.stop.store(true, Ordering::SeqCst);
            shared.waker.wake().ok();
        }
        for (_, thread) in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

struct Client {
    link: Link,
    dialect: Dialect,
    /// Which it is in, and what it saw of each.
    topics: [(u32, Seen); 2],
    open: bool,
    /// The beginning of a frame that a read cut; mostly empty.
    rest: Vec<u8>,
}

struct Reader {
    poll: Poll,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    /// What TLS clients' records held, behind the beginning of a cut frame.
    plain: Vec<u8>,
    size: usize,
    epoch: Instant,
    shared: Arc<Shared>,
    gate: Arc<Gate>,
}

impl Reader {
    fn run(mut self) {
        self.shared.thread.get_or_init(process::own_thread);
        let mut events = Events::with_capacity(1024);
        loop {
            if let Err(error) = self.poll.poll(&mut events, None)
                && error.kind() != ErrorKind::Interrupted
            {
                eprintln!("loadtest: a receiving thread ended: {error}");
                return;
            }
            if self.shared.stop.load(Ordering::SeqCst) {
                return self.goodbye();
            }
            let mut fresh = 0;
            let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
            for event in &events {
                if let Some(client) = self.clients.get_mut(event.token().0) {
                    let check = Check { size: self.size, epoch: self.epoch, stats: &mut stats };
                    fresh += client.read(&mut self.buffer, &mut self.plain, event.is_read_closed(), check);
                }
            }
            drop(stats);
            self.gate.add(fresh);
        }
    }

    fn goodbye(mut self) {
        if self.shared.mute.load(Ordering::SeqCst) {
            return;
        }
        let mut bye = Vec::new();
        frame::from_client(&mut bye, frame::CLOSE, &1000u16.to_be_bytes());
        for client in self.clients.iter_mut().filter(|client| client.dialect == Dialect::WebSocket) {
            client.link.write(&bye).ok();
        }
    }
}

struct Check<'a> {
    size: usize,
    epoch: Instant,
    stats: &'a mut Stats,
}

impl Client {
    /// Reads all there is; gives the number of first-time deliveries. Events are edge-triggered, yet a short read means
    /// that nothing is left (epoll(7)), unless the end of the stream is behind it: so one read per event and not two.
    fn read(&mut self, buffer: &mut [u8], plain: &mut Vec<u8>, ends: bool, mut check: Check<'_>) -> u64 {
        let mut fresh = 0;
        while self.open {
            let kept = self.rest.len();
            let Some((front, room)) = buffer.split_at_mut_checked(kept) else {
                self.end(&mut check, || "a frame larger than any that was sent".to_owned());
                break;
            };
            front.copy_from_slice(&self.rest);
            let space = room.len();
            let count = match self.link.stream.read(room) {
                Ok(0) => {
                    self.end(&mut check, || "the server ended the connection without a close frame".to_owned());
                    break;
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.end(&mut check, || error.to_string());
                    break;
                }
            };
            let input = match &mut self.link.tls {
                None => buffer.get(..kept + count).unwrap_or_default(),
                Some(session) => {
                    let records = buffer.get(kept..kept + count).unwrap_or_default();
                    plain.clear();
                    plain.extend_from_slice(&self.rest);
                    if let Err(error) = session.decipher(records, plain, &mut self.link.stream) {
                        self.end(&mut check, || error.to_string());
                        break;
                    }
                    plain.as_slice()
                }
            };
            fresh += self.take(input, &mut check);
            if count < space && !ends {
                break;
            }
        }
        fresh
    }

    /// Checks what `input`, which begins with what was kept, has of messages, and keeps what is incomplete.
    fn take(&mut self, input: &[u8], check: &mut Check<'_>) -> u64 {
        let now = check.epoch.elapsed().as_nanos() as u64;
        let (fresh, rest) = match self.dialect {
            Dialect::WebSocket => self.frames(input, now, check),
            Dialect::Redis => self.messages(input, now, check),
        };
        self.rest.clear();
        self.rest.extend_from_slice(rest);
        fresh
    }

    fn frames<'a>(&mut self, mut input: &'a [u8], now: u64, check: &mut Check<'_>) -> (u64, &'a [u8]) {
        let mut fresh = 0;
        loop {
            match frame::front(input) {
                Front::Partial => break,
                Front::Foreign => {
                    self.end(check, || "a frame that no gateway sends".to_owned());
                    break;
                }
                Front::Whole(frame) => {
                    input = frame.rest;
                    match frame.opcode {
                        frame::TEXT | frame::BINARY
                            if message::is_binary(frame.payload) != (frame.opcode == frame::BINARY) =>
                        {
                            check.stats.misdelivered += 1;
                        }
                        frame::TEXT | frame::BINARY => {
                            fresh += u64::from(self.deliver(frame.payload, now, check));
                        }
                        frame::PING => {
                            check.stats.pings += 1;
                            let mut pong = Vec::new();
                            frame::from_client(&mut pong, frame::PONG, frame.payload);
                            self.link.write(&pong).ok();
                        }
                        frame::CLOSE => self.end(check, || closing(frame.payload)),
                        _ => {}
                    }
                }
            }
        }
        (fresh, input)
    }

    fn messages<'a>(&mut self, mut input: &'a [u8], now: u64, check: &mut Check<'_>) -> (u64, &'a [u8]) {
        let mut fresh = 0;
        loop {
            match redis::message(input) {
                Ok(None) => break,
                Ok(Some((payload, rest))) => {
                    input = rest;
                    fresh += u64::from(self.deliver(payload, now, check));
                }
                Err(error) => {
                    self.end(check, || error.to_string());
                    break;
                }
            }
        }
        (fresh, input)
    }

    /// Whether this was a first-time delivery.
    fn deliver(&mut self, payload: &[u8], now: u64, check: &mut Check<'_>) -> bool {
        let topics = &mut self.topics;
        let header = Header::read(payload, check.size);
        let known =
            header.and_then(|header| Some((header, topics.iter_mut().find(|(topic, _)| *topic == header.topic)?)));
        let Some((header, (_, seen))) = known else {
            check.stats.misdelivered += 1;
            return false;
        };
        match seen.note(header.seq) {
            Arrival::Duplicate => {
                check.stats.duplicates += 1;
                return false;
            }
            Arrival::Ahead => check.stats.gaps += 1,
            Arrival::Late => check.stats.reordered += 1,
            Arrival::Next => {}
        }
        check.stats.delivered += 1;
        check.stats.latency.saturating_record(now.saturating_sub(header.sent));
        true
    }

    fn end(&mut self, check: &mut Check<'_>, why: impl FnOnce() -> String) {
        if self.open {
            self.open = false;
            check.stats.ended(why);
            self.link.stream.shutdown(std::net::Shutdown::Both).ok();
        }
    }
}

fn closing(payload: &[u8]) -> String {
    match payload.split_first_chunk() {
        Some((code, reason)) => {
            format!("closed with {} {}", u16::from_be_bytes(*code), String::from_utf8_lossy(reason))
        }
        None => "closed without a code".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    #[test]
    fn greetings_whole_and_cut() {
        let mut input = HEAD.as_bytes().to_vec();
        frame::from_server(&mut input, frame::TEXT, br#"{"type":"init","client_id":"7f000001"}"#);
        for cut in 0..input.len() {
            assert!(greeting(&input[..cut]).unwrap().is_none(), "cut at {cut}");
        }
        frame::from_server(&mut input, frame::PING, b"");
        assert_eq!(greeting(&input).unwrap(), Some(("7f000001", &[0x89, 0][..])));
    }

    #[test]
    fn greetings_that_are_none() {
        assert!(greeting(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
        assert!(greeting(b"HTTP/1.1 101 X\r\nSec-WebSocket-Accept: wrong\r\n\r\n").is_err());
        let mut input = HEAD.as_bytes().to_vec();
        frame::from_server(&mut input, frame::TEXT, b"welcome");
        assert!(greeting(&input).is_err());
    }

    /// A client whose stream is never used.
    fn client() -> Client {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let link = Link { stream: socket::tcp(listener.local_addr().unwrap(), None).unwrap(), tls: None };
        let (dialect, topics) = (Dialect::WebSocket, [7, 7].map(|topic| (topic, Seen::default())));
        Client { link, dialect, topics, open: true, rest: Vec::new() }
    }

    fn message(topic: u32, seq: u32) -> Vec<u8> {
        let (mut payload, mut out) = (Vec::new(), Vec::new());
        Header { topic, seq, sent: 0 }.write(&mut payload, 200);
        frame::from_server(&mut out, frame::TEXT, &payload);
        out
    }

    #[test]
    fn payloads_are_checked() {
        let mut stats = Stats::new().unwrap();
        let mut client = client();
        let mut input = Vec::new();
        for (topic, seq) in [(7, 0), (7, 2), (7, 1), (7, 2), (8, 3)] {
            input.extend_from_slice(&message(topic, seq));
        }
        frame::from_server(&mut input, frame::TEXT, b"who said this?");
        let fresh = client.take(&input, &mut Check { size: 200, epoch: Instant::now(), stats: &mut stats });
        assert_eq!((fresh, stats.delivered, stats.latency.len()), (3, 3, 3));
        assert_eq!((stats.gaps, stats.reordered, stats.duplicates, stats.misdelivered), (1, 1, 1, 2));
    }

    #[test]
    fn a_message_in_the_wrong_kind_of_frame_is_none() {
        let mut stats = Stats::new().unwrap();
        let mut client = client();
        let mut input = Vec::new();
        for (seq, (binary, opcode)) in
            (0..).zip([(false, frame::TEXT), (true, frame::BINARY), (false, frame::BINARY), (true, frame::TEXT)])
        {
            let mut payload = Vec::new();
            Header { topic: 7, seq, sent: 0 }.write(&mut payload, 64);
            if binary {
                message::make_binary(&mut payload);
            }
            frame::from_server(&mut input, opcode, &payload);
        }
        let fresh = client.take(&input, &mut Check { size: 64, epoch: Instant::now(), stats: &mut stats });
        assert_eq!((fresh, stats.delivered, stats.misdelivered), (2, 2, 2));
    }

    #[test]
    fn cut_frames_are_kept() {
        let mut stats = Stats::new().unwrap();
        let mut client = client();
        let whole: Vec<u8> = (0..3).flat_map(|seq| message(7, seq)).collect();
        let mut fresh = 0;
        for piece in whole.chunks(33) {
            let input = [client.rest.as_slice(), piece].concat();
            fresh += client.take(&input, &mut Check { size: 200, epoch: Instant::now(), stats: &mut stats });
        }
        assert_eq!((fresh, stats.reordered, stats.misdelivered, client.rest.len()), (3, 0, 0, 0));
    }

    #[test]
    fn subscribers_hear_messages_whole_and_cut() {
        let mut stats = Stats::new().unwrap();
        let mut client = Client { dialect: Dialect::Redis, ..client() };
        let mut whole = Vec::new();
        for seq in 0..3 {
            let mut payload = Vec::new();
            Header { topic: 7, seq, sent: 0 }.write(&mut payload, 200);
            redis::command(&mut whole, &[b"message", b"raw:uid:u7", &payload]);
        }
        let mut fresh = 0;
        for piece in whole.chunks(33) {
            let input = [client.rest.as_slice(), piece].concat();
            fresh += client.take(&input, &mut Check { size: 200, epoch: Instant::now(), stats: &mut stats });
        }
        assert_eq!((fresh, stats.reordered, stats.misdelivered, client.rest.len(), client.open), (3, 0, 0, 0, true));
        client.take(b"-ERR gone\r\n", &mut Check { size: 200, epoch: Instant::now(), stats: &mut stats });
        assert!(!client.open && stats.first_close.unwrap().contains("ERR gone"));
    }

    #[test]
    fn closes_are_told() {
        let mut stats = Stats::new().unwrap();
        let mut client = client();
        let mut input = Vec::new();
        frame::from_server(&mut input, frame::CLOSE, b"\x03\xf5slow");
        client.take(&input, &mut Check { size: 200, epoch: Instant::now(), stats: &mut stats });
        assert_eq!(
            (stats.closed, stats.first_close.as_deref(), client.open),
            (1, Some("closed with 1013 slow"), false)
        );
    }
}
