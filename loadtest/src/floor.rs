//! The floor: a bare server in a process of its own, which shows what the kernel alone charges for the same deliveries.
//!
//! One thread, one epoll. It answers WebSocket handshakes (with the `init` message of a gateway, so that the clients are
//! the same), and takes orders on control connections: "write this frame to the members of topic t". It knows no HTTP, no
//! JSON, no uids, and checks nothing. Do not build on it.
//!
//! An order is `[length of the rest: u32][op: u8][topic: u32][payload]`, numbers little-endian, and is answered by the
//! byte `K` when its frames were written:
//! `J` puts the client, whose number is the payload (u32), into the topic; `S` sends `[length: u32][message]…`, each as a
//! frame of its own with one `write(2)` per member; `G` gathers these frames into one `write(2)` per member; `P` pings each
//! member.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};

use crate::clients::ACCEPT;
use crate::{Result, frame, http, message};

/// The bare server as a child process; it ends with this value.
#[derive(Debug)]
pub(crate) struct Floor {
    child: Child,
    /// Where clients connect.
    pub(crate) clients: SocketAddr,
    /// Where orders go.
    pub(crate) control: SocketAddr,
}

impl Floor {
    /// Starts this very binary as `floor-server`.
    pub(crate) fn spawn() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("floor-server")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().ok_or("the floor server has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let mut ports = line.split_whitespace().map(str::parse::<u16>);
        let (Some(Ok(clients)), Some(Ok(control))) = (ports.next(), ports.next()) else {
            child.kill().ok();
            child.wait().ok();
            return Err(format!("the floor server did not start: {line}").into());
        };
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Self { child, clients: at(clients), control: at(control) })
    }

    /// Process id, for its CPU time.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Appends an order.
pub(crate) fn order(out: &mut Vec<u8>, op: u8, topic: u32, payload: &[u8]) {
    let length = (5 + payload.len()) as u32;
    out.extend_from_slice(&length.to_le_bytes());
    out.push(op);
    out.extend_from_slice(&topic.to_le_bytes());
    out.extend_from_slice(payload);
}

/// Puts the clients with these ids into their topics.
pub(crate) fn join(control: SocketAddr, members: impl Iterator<Item = (String, u32)>) -> Result<()> {
    let mut out = Vec::new();
    let mut count = 0;
    for (client_id, topic) in members {
        let number = u32::from_str_radix(&client_id, 16)?;
        order(&mut out, b'J', topic, &number.to_le_bytes());
        count += 1;
    }
    let mut stream = std::net::TcpStream::connect_timeout(&control, crate::PATIENCE)?;
    stream.set_read_timeout(Some(crate::PATIENCE))?;
    // in pieces, so that answers never pile up unread
    let mut answers = vec![0; count];
    let mut answers = answers.chunks_mut(1000);
    for piece in out.chunks(1000 * (4 + 5 + 4)) {
        stream.write_all(piece)?;
        stream.read_exact(answers.next().ok_or("more orders than clients")?)?;
    }
    Ok(())
}

/// Has the members of the topics 0 to `topics` pinged, each once in an interval, and the topics evenly over it.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    control: std::net::TcpStream,
    topics: u64,
    interval: Duration,
    began: Instant,
    /// Topics pinged so far.
    done: u64,
}

impl Heartbeat {
    /// Begins now.
    pub(crate) fn new(control: SocketAddr, topics: usize, interval: Duration) -> Result<Self> {
        let control = std::net::TcpStream::connect_timeout(&control, crate::PATIENCE)?;
        control.set_read_timeout(Some(crate::PATIENCE))?;
        Ok(Self { control, topics: topics as u64, interval, began: Instant::now(), done: 0 })
    }

    /// Whatever is due; to be called some dozens of times a second.
    pub(crate) fn beat(&mut self) -> Result<()> {
        let topics = self.began.elapsed().as_nanos() * u128::from(self.topics);
        let due = (topics / self.interval.as_nanos().max(1)) as u64;
        let (mut out, mut answers) = (Vec::new(), vec![0; due.saturating_sub(self.done) as usize]);
        while self.done < due {
            order(&mut out, b'P', (self.done % self.topics) as u32, &[]);
            self.done += 1;
        }
        self.control.write_all(&out)?;
        Ok(self.control.read_exact(&mut answers)?)
    }
}

const CLIENTS: Token = Token(usize::MAX);
const CONTROL: Token = Token(usize::MAX - 1);
/// Tokens of control connections begin here, those of clients at 0.
const ORDERS: usize = 1 << 40;

/// The main function of the child process; ends when its input does, so it cannot outlive the tester.
pub(crate) fn serve() -> Result<()> {
    std::thread::spawn(|| {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        std::process::exit(0);
    });
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut clients = TcpListener::bind(any)?;
    let mut control = TcpListener::bind(any)?;
    println!("{} {}", clients.local_addr()?.port(), control.local_addr()?.port());
    let mut poll = Poll::new()?;
    poll.registry().register(&mut clients, CLIENTS, Interest::READABLE)?;
    poll.registry().register(&mut control, CONTROL, Interest::READABLE)?;
    let mut server = Server::default();
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            match event.token() {
                CLIENTS => server.members.accept(&clients, poll.registry(), 0)?,
                CONTROL => server.orders.accept(&control, poll.registry(), ORDERS)?,
                Token(index) if index >= ORDERS => {
                    server.order(index - ORDERS, &mut buffer, event.is_read_closed(), poll.registry());
                }
                Token(index) => {
                    if event.is_writable() {
                        server.members.flush(index);
                    }
                    if event.is_readable() {
                        server.client(index, &mut buffer, event.is_read_closed(), poll.registry());
                    }
                }
            }
        }
    }
}

#[derive(Default)]
struct Server {
    members: Streams,
    orders: Streams,
    topics: Vec<Vec<usize>>,
    /// Frames of the order at hand, one after another, and where each ends.
    frames: Vec<u8>,
    ends: Vec<usize>,
}

/// Connections of one kind by number; a number is never used again.
#[derive(Default)]
struct Streams(Vec<Option<Stream>>);

struct Stream {
    socket: TcpStream,
    /// Read and not understood yet.
    input: Vec<u8>,
    /// Not written yet, as the socket was full.
    output: Vec<u8>,
    greeted: bool,
}

impl Streams {
    fn accept(&mut self, listener: &TcpListener, registry: &Registry, base: usize) -> Result<()> {
        loop {
            match listener.accept() {
                Ok((mut socket, _)) => {
                    socket.set_nodelay(true)?;
                    registry.register(&mut socket, Token(base + self.0.len()), Interest::READABLE)?;
                    self.0.push(Some(Stream { socket, input: Vec::new(), output: Vec::new(), greeted: false }));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn get(&mut self, index: usize) -> Option<&mut Stream> {
        self.0.get_mut(index)?.as_mut()
    }

    /// The one write per delivery.
    fn write(&mut self, index: usize, bytes: &[u8], base: usize, registry: &Registry) {
        let Some(stream) = self.get(index) else {
            return;
        };
        if !stream.output.is_empty() {
            stream.output.extend_from_slice(bytes);
            return;
        }
        let written = match stream.socket.write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => return self.end(index),
        };
        if let Some(rest) = bytes.get(written..)
            && !rest.is_empty()
        {
            stream.output.extend_from_slice(rest);
            let both = Interest::READABLE | Interest::WRITABLE;
            registry.reregister(&mut stream.socket, Token(base + index), both).ok();
        }
    }

    fn flush(&mut self, index: usize) {
        let Some(stream) = self.get(index) else {
            return;
        };
        while !stream.output.is_empty() {
            match stream.socket.write(&stream.output) {
                Ok(written) => drop(stream.output.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.end(index),
            }
        }
    }

    /// Appends what there is to the stream's input; `false` when it has ended.
    fn read(&mut self, index: usize, buffer: &mut [u8], ends: bool) -> bool {
        let Some(stream) = self.get(index) else {
            return false;
        };
        loop {
            match stream.socket.read(buffer) {
                Ok(0) => break,
                Ok(count) => {
                    stream.input.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    if count < buffer.len() && !ends {
                        return true;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => break,
            }
        }
        self.end(index);
        false
    }

    fn end(&mut self, index: usize) {
        if let Some(stream) = self.0.get_mut(index) {
            *stream = None;
        }
    }
}

impl Server {
    /// A client spoke: the handshake and a goodbye are answered, all else ignored.
    fn client(&mut self, index: usize, buffer: &mut [u8], ends: bool, registry: &Registry) {
        if !self.members.read(index, buffer, ends) {
            return;
        }
        let Some(stream) = self.members.get(index) else {
            return;
        };
        if stream.greeted {
            let leaves = stream.input.first() == Some(&(0x80 | frame::CLOSE));
            stream.input.clear();
            if leaves {
                let mut bye = Vec::new();
                frame::from_server(&mut bye, frame::CLOSE, &[]);
                self.members.write(index, &bye, 0, registry);
                self.members.end(index);
            }
        } else if http::head_end(&stream.input).is_some() {
            stream.greeted = true;
            stream.input = Vec::new();
            let mut out = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
            )
            .into_bytes();
            let init = format!("{{\"type\":\"init\",\"client_id\":\"{index:020x}\"}}");
            frame::from_server(&mut out, frame::TEXT, init.as_bytes());
            self.members.write(index, &out, 0, registry);
        }
    }

    /// A control connection spoke.
    fn order(&mut self, index: usize, buffer: &mut [u8], ends: bool, registry: &Registry) {
        if !self.orders.read(index, buffer, ends) {
            return;
        }
        let Some(stream) = self.orders.get(index) else {
            return;
        };
        let input = std::mem::take(&mut stream.input);
        let mut rest = input.as_slice();
        let mut answers = Vec::new();
        while let Some((order, after)) = split(rest) {
            rest = after;
            self.obey(order, registry);
            answers.push(b'K');
        }
        let used = input.len() - rest.len();
        if let Some(stream) = self.orders.get(index) {
            stream.input = input;
            stream.input.drain(..used);
            if stream.socket.write(&answers).is_err() {
                self.orders.end(index);
            }
        }
    }

    fn obey(&mut self, order: &[u8], registry: &Registry) {
        let Some((&op, order)) = order.split_first() else {
            return;
        };
        let Some((topic, mut payload)) = order.split_first_chunk() else {
            return;
        };
        let topic = u32::from_le_bytes(*topic) as usize;
        if op == b'J' {
            if let Some(number) = payload.first_chunk() {
                if self.topics.len() <= topic {
                    self.topics.resize_with(topic + 1, Vec::new);
                }
                if let Some(members) = self.topics.get_mut(topic) {
                    members.push(u32::from_le_bytes(*number) as usize);
                }
            }
            return;
        }
        self.frames.clear();
        self.ends.clear();
        if op == b'P' {
            frame::from_server(&mut self.frames, frame::PING, &[]);
            self.ends.push(self.frames.len());
        }
        while let Some((message, after)) = split(payload) {
            payload = after;
            let opcode = if message::is_binary(message) { frame::BINARY } else { frame::TEXT };
            frame::from_server(&mut self.frames, opcode, message);
            self.ends.push(self.frames.len());
        }
        let Some(members) = self.topics.get(topic) else {
            return;
        };
        if op == b'G' {
            for &member in members {
                self.members.write(member, &self.frames, 0, registry);
            }
            return;
        }
        let mut start = 0;
        for &end in &self.ends {
            let frame = self.frames.get(start..end).unwrap_or_default();
            start = end;
            for &member in members {
                self.members.write(member, frame, 0, registry);
            }
        }
    }
}

/// Splits off a block with its length (u32) in front.
fn split(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = input.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_whole_and_cut() {
        let mut out = Vec::new();
        order(&mut out, b'S', 258, b"payload");
        for cut in 0..out.len() {
            assert_eq!(split(&out[..cut]), None, "cut at {cut}");
        }
        let end = out.len();
        out.extend_from_slice(b"next");
        assert_eq!(split(&out), Some((&b"S\x02\x01\0\0payload"[..], &out[end..])));
    }
}
