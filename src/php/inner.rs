//! The inner listener: connections of PHP applications and of workers.
//!
//! A PHP application opens a connection for each command, writes, and closes without waiting for an answer; what it sends
//! over the next connection must find the first command done. So one task reads all connections in the order in which
//! they became readable (see `ready`), and carries out what it reads one after the other.
//!
//! Answers are written by a task for each connection that asks (see `link`), so that nobody waits for them here.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use mio::Token;
use mio::net::TcpStream;
use secrecy::SecretString;
use serde::Deserialize;
use socket2::SockRef;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::PATIENCE;
use super::commands::Commands;
use super::link::{self, Link};
use super::packet::{Packet, command};
use super::ready::Ready;
use super::workers::{Registration, Workers};
use crate::accept::{AcceptFailures, keep_alive};
use crate::hub::Stopped;
use crate::metrics::Reason;

/// What is read at once.
const READ: usize = 64 * 1024;

/// What one connection may say before others have their turn: more than the kernel holds for it, or the order would be lost.
const MOST_READ: usize = 16 << 20;

/// So many may be about to say the key: many more than are let in before what they have said is read.
const MOST_UNKNOWN: usize = 8192;

/// Connections that are let in at once.
const MOST_ACCEPTED: usize = 512;

/// And this is the longest packet with a key.
const LONGEST_KEY: usize = 4 * 1024;

/// Workers hear from us this often.
const PING: Duration = Duration::from_secs(25);

const LISTENER: Token = Token(0);

/// A listener that is bound, and what is connected to it.
pub(super) struct Inner {
    commands: Arc<Commands>,
    workers: Arc<Workers>,
    key: Option<SecretString>,
    ready: Ready,
    listener: mio::net::TcpListener,
    connections: HashMap<Token, Connection>,
    last: Token,
    /// Those that have not said the key, in order of connecting, and since when.
    unknown: BTreeMap<Token, Instant>,
    writers: JoinSet<()>,
    /// What has more to say than a turn is long.
    unfinished: Vec<Token>,
    /// Somebody waits to be let in; not before then.
    accept_after: Option<Instant>,
    read: Vec<u8>,
    failures: AcceptFailures,
}

struct Connection {
    socket: TcpStream,
    peer: IpAddr,
    is_known: bool,
    /// The beginning of a packet whose end has not come.
    unread: BytesMut,
    /// Where answers and events are written.
    link: Option<Link>,
    /// It is a worker.
    worker: Option<Registration>,
}

/// Where answers and events are written, from the first one on.
fn link_of<'a>(socket: &TcpStream, link: &'a mut Option<Link>, writers: &mut JoinSet<()>) -> Option<&'a Link> {
    if link.is_none() {
        *link = Link::new(socket, writers).ok();
    }
    link.as_ref()
}

/// What became of a connection that was read.
enum Turn {
    /// There is nothing more to read.
    Over,
    /// There is more.
    Again,
    /// It has ended.
    Ended,
    /// It is to be ended, and why.
    Refused(&'static str),
}

/// What a packet with a key says.
#[derive(Deserialize)]
struct Key<'a> {
    #[serde(borrow)]
    secret_key: Cow<'a, str>,
    #[serde(borrow, default)]
    worker_key: Cow<'a, str>,
}

impl Inner {
    pub(super) fn new(
        listener: std::net::TcpListener,
        commands: Arc<Commands>,
        workers: Arc<Workers>,
        key: Option<SecretString>,
    ) -> io::Result<Self> {
        let mut listener = mio::net::TcpListener::from_std(listener);
        let ready = Ready::new()?;
        ready.add(&mut listener, LISTENER)?;
        Ok(Self {
            commands,
            workers,
            key,
            ready,
            listener,
            connections: HashMap::new(),
            last: LISTENER,
            unknown: BTreeMap::new(),
            writers: JoinSet::new(),
            unfinished: Vec::new(),
            accept_after: None,
            read: vec![0; READ],
            failures: AcceptFailures::default(),
        })
    }

    /// Serves until the node stops.
    pub(super) async fn run(mut self) {
        let (mut patience, mut pings) = (Instant::now(), Instant::now() + PING);
        loop {
            let now = Instant::now();
            if patience <= now {
                patience = now + PATIENCE / 10;
                self.end_unknown();
            }
            if pings <= now {
                pings = now + PING;
                self.workers.ping(self.commands.gateway.lan().ip);
            }
            while self.writers.try_join_next().is_some() {}
            let batch = if !self.unfinished.is_empty() {
                // Whoever has more to say goes on, and then those who have something to say by now.
                tokio::task::yield_now().await;
                let mut batch = std::mem::take(&mut self.unfinished);
                self.ready.now().map(|more| {
                    batch.extend(more);
                    batch
                })
            } else if self.accept_after.is_some_and(|after| after <= now) {
                // Who waits to be let in does not wait for the others to be silent.
                tokio::task::yield_now().await;
                self.ready.now()
            } else {
                let due = patience.min(pings).min(self.accept_after.unwrap_or(pings));
                tokio::select! {
                    () = sleep_until(due) => Ok(Vec::new()),
                    batch = self.ready.next() => batch,
                }
            };
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::error!(%error, "the inner listener cannot be read any more");
                    return;
                }
            };
            for token in batch {
                if token == LISTENER {
                    self.accept_after.get_or_insert(now);
                    continue;
                }
                match self.read(token).await {
                    Ok(Turn::Over) => {}
                    Ok(Turn::Again) if self.unfinished.contains(&token) => {}
                    Ok(Turn::Again) => self.unfinished.push(token),
                    Ok(Turn::Ended) => self.end(token),
                    Ok(Turn::Refused(reason)) => {
                        self.refused(reason);
                        self.end(token);
                    }
                    Err(Stopped) => return,
                }
            }
            if self.accept_after.is_some_and(|after| after <= Instant::now()) {
                self.accept();
                self.end_unknown();
            }
        }
    }

    /// Lets in who waits, not too many at once. Nothing is read yet: others may have said something before.
    fn accept(&mut self) {
        for _ in 0..MOST_ACCEPTED {
            let (mut socket, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.accept_after = None;
                    return;
                }
                Err(error) => {
                    // What is out may come back, such as descriptors; those who are in go on meanwhile.
                    let pause = self.failures.note(&error, self.commands.gateway.metrics());
                    self.accept_after = Some(Instant::now() + pause);
                    return;
                }
            };
            self.last.0 += 1;
            let token = self.last;
            let is_fit = keep_alive(&SockRef::from(&socket)).is_ok();
            if !is_fit || self.ready.add(&mut socket, token).is_err() {
                continue;
            }
            let is_known = self.key.is_none();
            if !is_known {
                self.unknown.insert(token, Instant::now());
            }
            let peer = peer.ip();
            let connection = Connection { socket, peer, is_known, unread: BytesMut::new(), link: None, worker: None };
            self.connections.insert(token, connection);
        }
    }

    /// Reads what a connection has said, and carries it out.
    async fn read(&mut self, token: Token) -> Result<Turn, Stopped> {
        // Whoever has ended may have been in the list still.
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(Turn::Over) };
        let mut most = MOST_READ;
        while most > 0 {
            let read = match connection.socket.read(&mut self.read) {
                Ok(0) => return Ok(Turn::Ended),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Over),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Ok(Turn::Ended),
            };
            most = most.saturating_sub(read);
            connection.unread.extend_from_slice(self.read.get(..read).unwrap_or_default());
            loop {
                let (packet, length) = match Packet::split(&connection.unread) {
                    Ok(Some(packet)) => packet,
                    Ok(None) if connection.is_known || connection.unread.len() < LONGEST_KEY => break,
                    Ok(None) => return Ok(Turn::Refused("key")),
                    Err(_) => return Ok(Turn::Refused("packet")),
                };
                match packet.command {
                    command::WORKER_CONNECT | command::GATEWAY_CLIENT_CONNECT => {
                        let Some(said) = said_key(self.key.as_ref(), packet.body) else {
                            return Ok(Turn::Refused("key"));
                        };
                        connection.is_known = true;
                        self.unknown.remove(&token);
                        if packet.command == command::WORKER_CONNECT {
                            let name = format!("{}:{}", connection.peer, said.worker_key);
                            if !self.workers.are_welcome() {
                                return Ok(Turn::Refused("worker"));
                            }
                            let Some(link) = link_of(&connection.socket, &mut connection.link, &mut self.writers)
                            else {
                                return Ok(Turn::Ended);
                            };
                            // The one before, of this same connection, goes first.
                            connection.worker = None;
                            connection.worker = Some(self.workers.register(&name, link));
                            link::be_patient(&connection.socket);
                        }
                    }
                    _ if !connection.is_known => return Ok(Turn::Refused("key")),
                    _ => {
                        if let Some(answer) = self.commands.begin(packet).await? {
                            match link_of(&connection.socket, &mut connection.link, &mut self.writers) {
                                Some(link) if link.answer(answer) => {}
                                _ => return Ok(Turn::Refused("unread")),
                            }
                        }
                    }
                }
                connection.unread.advance(length);
            }
            if connection.unread.is_empty() {
                // A large packet shall not be remembered for ever.
                connection.unread = BytesMut::new();
            }
        }
        Ok(Turn::Again)
    }

    /// Lets a connection go. What it has asked is still answered.
    fn end(&mut self, token: Token) {
        self.unknown.remove(&token);
        if let Some(mut connection) = self.connections.remove(&token) {
            // A link has a descriptor of its own for the same socket, which would keep this registered.
            self.ready.remove(&mut connection.socket);
            if let Some(link) = &connection.link {
                link.end();
            }
        }
    }

    /// Ends those who should have said the key by now, and the oldest where they are too many.
    fn end_unknown(&mut self) {
        while let Some((token, since)) = self.unknown.first_key_value() {
            if since.elapsed() < PATIENCE && self.unknown.len() <= MOST_UNKNOWN {
                return;
            }
            self.refused("key");
            self.end(*token);
        }
    }

    fn refused(&self, reason: &'static str) {
        self.commands.gateway.metrics().php_refused.get_or_create(&Reason { reason }).inc();
    }
}

/// What a packet says that says the right key; with none set, the empty one.
fn said_key<'a>(key: Option<&SecretString>, body: &'a [u8]) -> Option<Key<'a>> {
    let said: Key<'_> = serde_json::from_slice(body).ok()?;
    super::is_key(key, &said.secret_key).then_some(said)
}
