//! One connection as others hold it: its id, its socket, and its bounded outbox.
//!
//! **The write path.** Whoever delivers appends a ready-made frame to the outbox and writes it with a non-blocking
//! write, on its own thread. Only when the socket is full (`blocked`) is the owning task woken, to wait until there is
//! room and to drain. What waits for one socket leaves in one write, gathered into a scratch buffer of the thread.
//! `hub::shard` tells the whole story of a delivery, with the gain of each trick.
//!
//! These writes go past tokio's own knowledge of whether the socket is ready. A socket that turns out to be full is
//! given to its owner, who asks tokio, and waits.
//!
//! With TLS the records are made under the same lock by the same thread.
//!
//! The owning task (`edge`) reads the socket; nobody else does. The mutex is never held across an await.

#[cfg(test)]
pub(crate) mod model;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::config::SlowConsumer;
use crate::id::{ClientId, Group, Uid};
use crate::message::{Close, Message, Protocol};
use crate::session::Session;

/// What is gathered for one write at the most. The kernel's own default send buffer is of this order.
const GATHER: usize = 64 * 1024;

/// What a waiting frame costs beside its bytes: many small messages shall not slip through under the limit.
const OVERHEAD: usize = size_of::<Bytes>();

/// An emptied queue keeps room for so many frames; a larger one is given back, or a burst would stay for ever.
const KEEP_CAPACITY: usize = 4;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(GATHER));
}

/// How much may wait for one client, and what happens beyond it; shared by all clients of a node.
#[derive(Debug)]
pub struct SendLimit {
    /// Unsent bytes; one message is taken whatever its size when nothing waits.
    pub bytes: usize,
    /// What happens beyond.
    pub policy: SlowConsumer,
    /// Messages dropped under [`SlowConsumer::Drop`].
    pub dropped: Counter,
}

/// Where a client came from, and when.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Its address.
    pub peer: SocketAddr,
    /// The port it has connected to.
    pub port: u16,
    /// Unix milliseconds.
    pub connected_at: u64,
}

/// What became of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// Written, or waiting in the outbox.
    Taken,
    /// As `Taken`, and the outbox became dirty: the caller owes it one [`Client::flush`].
    TakenFirst,
    /// The outbox is full and the policy is to drop.
    Dropped,
    /// The outbox is full and the policy is to close: whoever sees this has the client leave, and then closes it.
    Overflowed,
    /// The client is closing or gone.
    Closed,
}

/// What a client had when it left.
#[derive(Debug)]
pub struct Departed {
    /// Its id.
    pub id: ClientId,
    /// Its last uid.
    pub uid: Option<Uid>,
    /// Its last groups.
    pub groups: Vec<Group>,
    /// Its last session.
    pub session: Option<Session>,
    /// How it ended.
    pub close: Close,
}

/// The hub's last word to a client's owner.
#[derive(Debug)]
pub struct LetGo {
    /// How it ended.
    pub close: Close,
    /// What it had, if the owner is to tell of it; among other nodes that waits until they know that it has left.
    pub departed: Option<Departed>,
}

/// A connection; others hold it by `Arc`.
pub struct Client {
    outbox: Mutex<Outbox>,
    socket: TcpStream,
    protocol: Protocol,
    id: ClientId,
    arrival: Arrival,
    /// A sign of life since the last heartbeat tick.
    heard: AtomicBool,
    /// It is not read from, as what it has said cannot be told yet.
    held_back: AtomicBool,
    limit: Arc<SendLimit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    /// A close frame is queued; nothing more is taken.
    Closing,
    /// No more writes: destroyed, or the socket failed.
    Gone,
}

struct Outbox {
    /// Frames in order; of the first only what is not yet written.
    waiting: VecDeque<Bytes>,
    /// Bytes in `waiting`, and [`OVERHEAD`] for each frame.
    bytes: usize,
    stage: Stage,
    /// The socket took no more, or the first message is not out: only the owner writes, when there is room.
    blocked: bool,
    /// Somebody owes a flush.
    dirty: bool,
    /// More than the limit waited: to be closed. Nothing more is taken.
    overflowed: bool,
    /// Why we are closing it, when it is we who do.
    close: Option<Close>,
    /// Left here by the hub when it let the client go; taken by the owner.
    let_go: Option<Box<LetGo>>,
    /// The owning task.
    owner: Option<Waker>,
    tls: Option<Box<ServerConnection>>,
}

impl Client {
    /// A client over a socket. What is sent to it waits for [`Client::open`].
    pub fn new(
        id: ClientId,
        arrival: Arrival,
        protocol: Protocol,
        socket: TcpStream,
        limit: Arc<SendLimit>,
    ) -> Arc<Self> {
        let outbox = Outbox {
            waiting: VecDeque::new(),
            bytes: 0,
            stage: Stage::Open,
            blocked: true,
            dirty: false,
            overflowed: false,
            close: None,
            let_go: None,
            owner: None,
            tls: None,
        };
        let (heard, held_back) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { outbox: Mutex::new(outbox), socket, protocol, id, arrival, heard, held_back, limit })
    }

    /// Its name in the cluster.
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// Where it came from, and when.
    pub fn arrival(&self) -> Arrival {
        self.arrival
    }

    /// What it speaks.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Has the processor fetch what a delivery will need, so that it need not wait for one client after the other.
    pub(crate) fn prefetch(&self) {
        std::hint::black_box((self.heard.load(Ordering::Relaxed), self.socket.as_raw_fd(), self.outbox.is_locked()));
    }

    /// Sends in one touch: written at once when nothing waits, else queued behind what does.
    pub fn send(&self, message: &Message) -> Pushed {
        let outbox = &mut *self.outbox.lock();
        if outbox.stage != Stage::Open || outbox.overflowed {
            return Pushed::Closed;
        }
        let Some(frame) = message.encoded(self.protocol) else { return Pushed::Taken };
        let frame = &*frame;
        if outbox.waiting.is_empty() && !outbox.blocked && outbox.tls.is_none() {
            match write_now(&self.socket, frame) {
                Ok(written) if written == frame.len() => return Pushed::Taken,
                Ok(written) => outbox.push(frame.slice(written..)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => outbox.push(frame.clone()),
                Err(_) => return outbox.fail(),
            }
            outbox.block();
            return Pushed::Taken;
        }
        match self.admit(outbox, frame) {
            Pushed::Taken if !outbox.blocked => {
                self.drain(outbox);
                Pushed::Taken
            }
            pushed => pushed,
        }
    }

    /// Queues without writing; on [`Pushed::TakenFirst`] the caller owes a flush, so that several messages leave in one write.
    pub fn append(&self, message: &Message) -> Pushed {
        let outbox = &mut *self.outbox.lock();
        if outbox.stage != Stage::Open || outbox.overflowed {
            return Pushed::Closed;
        }
        let Some(frame) = message.encoded(self.protocol) else { return Pushed::Taken };
        match self.admit(outbox, &frame) {
            Pushed::Taken if !outbox.blocked && !outbox.dirty => {
                outbox.dirty = true;
                Pushed::TakenFirst
            }
            pushed => pushed,
        }
    }

    /// Writes what waits.
    pub fn flush(&self) {
        let outbox = &mut *self.outbox.lock();
        outbox.dirty = false;
        if !outbox.blocked {
            self.drain(outbox);
        }
    }

    /// Lets messages out; `first` goes before all that came in the meantime. Called once, by the owner.
    pub fn open(&self, first: Option<&Message>) {
        let outbox = &mut *self.outbox.lock();
        if outbox.stage == Stage::Gone {
            return;
        }
        if let Some(first) = first.and_then(|first| first.encoded(self.protocol)) {
            outbox.bytes += first.len() + OVERHEAD;
            outbox.waiting.push_front(first.into_owned());
        }
        outbox.blocked = false;
        self.drain(outbox);
    }

    /// Whether it still takes messages.
    pub fn is_open(&self) -> bool {
        self.outbox.lock().stage == Stage::Open
    }

    /// Ends the connection in order: what is queued, `last`, then, on a WebSocket, a close frame. False when it is ending already.
    pub fn close(&self, last: Option<&Message>, close: Close) -> bool {
        let outbox = &mut *self.outbox.lock();
        if outbox.stage != Stage::Open {
            return false;
        }
        if let Some(last) = last.and_then(|last| last.encoded(self.protocol)) {
            outbox.push(last.into_owned());
        }
        self.start_closing(outbox, close);
        true
    }

    /// Ends the connection at once; what is unsent is lost.
    pub fn destroy(&self) {
        let outbox = &mut *self.outbox.lock();
        outbox.close.get_or_insert(Close::DESTROYED);
        outbox.fail();
    }

    /// Whether there was a sign of life since the last call. Of one that is not read from none can come.
    pub fn take_heard(&self) -> bool {
        self.heard.swap(false, Ordering::Relaxed) || self.held_back.load(Ordering::Relaxed)
    }

    /// Whether it is read from.
    pub(crate) fn hold_back(&self, held_back: bool) {
        self.held_back.store(held_back, Ordering::Relaxed);
    }

    /// Whether it has hung up while it is not read from.
    pub(crate) fn has_hung_up(&self) -> bool {
        let closed = || self.socket.ready(Interest::READABLE).now_or_never();
        self.held_back.load(Ordering::Relaxed)
            && matches!(closed(), Some(Ok(ready)) if ready.is_read_closed() || ready.is_error())
    }

    /// The hub has let the client go; its owner is told.
    pub(crate) fn let_go(&self, let_go: LetGo) {
        let outbox = &mut *self.outbox.lock();
        outbox.let_go = Some(Box::new(let_go));
        outbox.wake();
    }

    /// Checks the limit and queues; never returns `TakenFirst`.
    fn admit(&self, outbox: &mut Outbox, frame: &Bytes) -> Pushed {
        let full = |outbox: &Outbox| outbox.bytes > 0 && outbox.bytes + frame.len() + OVERHEAD > self.limit.bytes;
        if full(outbox) {
            // What waits may only be waiting for its flush.
            if !outbox.blocked {
                self.drain(outbox);
            }
            if outbox.stage == Stage::Gone {
                return Pushed::Closed;
            }
            if full(outbox) {
                return self.overflow(outbox);
            }
        }
        outbox.push(frame.clone());
        Pushed::Taken
    }

    /// A first frame may be whole still, and is sent then.
    fn overflow(&self, outbox: &mut Outbox) -> Pushed {
        match self.limit.policy {
            SlowConsumer::Drop => {
                self.limit.dropped.inc();
                Pushed::Dropped
            }
            SlowConsumer::Close => {
                // The close frame shall not wait behind what the client does not read; but a frame begun is finished.
                outbox.waiting.truncate(1);
                outbox.bytes = outbox.waiting.front().map_or(0, |frame| frame.len() + OVERHEAD);
                outbox.overflowed = true;
                Pushed::Overflowed
            }
        }
    }

    fn start_closing(&self, outbox: &mut Outbox, close: Close) {
        if self.protocol == Protocol::WebSocket {
            outbox.push(close.to_message().frame().clone());
        }
        outbox.close = Some(close);
        outbox.stage = Stage::Closing;
        if !outbox.blocked {
            self.drain(outbox);
        }
        outbox.wake();
    }

    /// Writes until nothing waits or the socket is full.
    fn drain(&self, outbox: &mut Outbox) {
        outbox.drain(|bytes| write_now(&self.socket, bytes));
    }
}

/// For the owning task alone.
impl Client {
    /// Notes a sign of life.
    pub(crate) fn note_heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// What is written from now on goes through this session.
    pub(crate) fn speak_tls(&self, session: ServerConnection) {
        self.outbox.lock().tls = Some(Box::new(session));
    }

    /// Ready as soon as it is to end at once.
    pub(crate) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        let outbox = &mut *self.outbox.lock();
        outbox.owner_is(cx);
        if outbox.stage == Stage::Gone { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether more than the limit waited.
    pub(crate) fn has_overflowed(&self) -> bool {
        self.outbox.lock().overflowed
    }

    /// Drains a blocked outbox when the socket has room; ready as soon as it is to end.
    pub(crate) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        let outbox = &mut *self.outbox.lock();
        outbox.owner_is(cx);
        if outbox.blocked {
            self.poll_drain(outbox, cx);
        }
        let ended = outbox.stage != Stage::Open || outbox.overflowed || outbox.let_go.is_some();
        if ended { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready when nothing waits any more.
    pub(crate) fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let outbox = &mut *self.outbox.lock();
        outbox.owner_is(cx);
        self.poll_drain(outbox, cx);
        if outbox.waiting.is_empty() && !outbox.blocked || outbox.stage == Stage::Gone {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Ready when the hub has let the client go.
    pub(crate) fn poll_let_go(&self, cx: &mut Context<'_>) -> Poll<Box<LetGo>> {
        let outbox = &mut *self.outbox.lock();
        outbox.owner_is(cx);
        outbox.let_go.take().map_or(Poll::Pending, Poll::Ready)
    }

    /// Why we are closing it, when it is we who do.
    pub(crate) fn our_close(&self) -> Option<Close> {
        self.outbox.lock().close.clone()
    }

    /// Whether nothing can be written any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.outbox.lock().stage == Stage::Gone
    }

    /// Has the socket end with a reset, so that the kernel keeps nothing for a peer that does not read.
    pub(crate) fn reset(&self) {
        drop(socket2::SockRef::from(&self.socket).set_linger(Some(std::time::Duration::ZERO)));
    }

    fn poll_drain(&self, outbox: &mut Outbox, cx: &mut Context<'_>) {
        while outbox.stage != Stage::Gone {
            match self.socket.poll_write_ready(cx) {
                Poll::Pending => return,
                Poll::Ready(Err(_)) => {
                    outbox.fail();
                }
                Poll::Ready(Ok(())) => {
                    // Through tokio, which so learns that the socket is full.
                    outbox.drain(|bytes| self.socket.try_write(bytes));
                    if !outbox.blocked {
                        return;
                    }
                }
            }
        }
    }

    /// Whole frames that the WebSocket library made by itself (pongs, the answer to a close) take the same way as
    /// all others, so order and framing stay right. After our own close frame nothing may follow.
    pub(crate) fn push_control(&self, frame: &[u8]) {
        let outbox = &mut *self.outbox.lock();
        if outbox.stage != Stage::Open || outbox.overflowed {
            return;
        }
        let closes = Close::is_close_frame(frame);
        let frame = Bytes::copy_from_slice(frame);
        if closes {
            outbox.push(frame);
            outbox.stage = Stage::Closing;
        } else if self.admit(outbox, &frame) != Pushed::Taken {
            return;
        }
        if !outbox.blocked {
            self.drain(outbox);
        }
    }

    /// Reads into `buffer`; 0 is the end.
    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            // A TLS session may hold plaintext that the socket will not announce again.
            if let Some(read) = self.read_tls_plaintext(buffer) {
                return Poll::Ready(read);
            }
            ready!(self.socket.poll_read_ready(cx))?;
            let outbox = &mut *self.outbox.lock();
            let read = match &mut outbox.tls {
                None => self.socket.try_read(buffer),
                Some(tls) => match tls.read_tls(&mut NonBlocking(&self.socket)) {
                    Ok(0) => Ok(0),
                    Ok(_) => {
                        tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                        if tls.wants_write() && !outbox.blocked {
                            self.drain(outbox);
                        }
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }

    fn read_tls_plaintext(&self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        let outbox = &mut *self.outbox.lock();
        match outbox.tls.as_mut()?.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            read => Some(read),
        }
    }

    /// Tells the peer that nothing more comes.
    pub(crate) fn finish_writing(&self) {
        let outbox = &mut *self.outbox.lock();
        if let Some(tls) = &mut outbox.tls {
            tls.send_close_notify();
            self.drain(outbox);
        }
        outbox.stage = Stage::Gone;
        shut_down(&self.socket, std::net::Shutdown::Write);
    }

    /// Ends the socket for whoever still holds the client, and gives its memory back.
    pub(crate) fn release(&self) {
        let outbox = &mut *self.outbox.lock();
        outbox.fail();
        outbox.owner = None;
        outbox.tls = None;
        shut_down(&self.socket, std::net::Shutdown::Both);
    }
}

/// A client's socket for its handshake, before anything is sent to it.
pub(crate) struct Handshaking(pub(crate) Arc<Client>);

impl AsyncRead for Handshaking {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.socket.poll_read_ready(cx))?;
            match self.0.socket.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|read| buffer.advance(read))),
            }
        }
    }
}

impl AsyncWrite for Handshaking {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.socket.poll_write_ready(cx))?;
            match self.0.socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        shut_down(&self.0.socket, std::net::Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}

/// The socket may be shut down by the peer already; then there is nothing to do.
fn shut_down(socket: &TcpStream, how: std::net::Shutdown) {
    drop(socket2::SockRef::from(socket).shutdown(how));
}

impl Outbox {
    fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len() + OVERHEAD;
        self.waiting.push_back(frame);
    }

    /// Writes until nothing waits or the socket is full.
    fn drain(&mut self, write: impl Fn(&[u8]) -> io::Result<usize>) {
        let result = match &mut self.tls {
            None => drain_plain(write, &mut self.waiting, &mut self.bytes),
            Some(tls) => drain_tls(write, tls, &mut self.waiting, &mut self.bytes),
        };
        match result {
            Ok(()) => {
                self.blocked = false;
                if self.waiting.capacity() > KEEP_CAPACITY {
                    self.waiting = VecDeque::new();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.block(),
            Err(_) => {
                self.fail();
            }
        }
    }

    fn block(&mut self) {
        if !self.blocked {
            self.blocked = true;
            self.wake();
        }
    }

    fn fail(&mut self) -> Pushed {
        self.stage = Stage::Gone;
        self.waiting = VecDeque::new();
        self.bytes = 0;
        self.blocked = false;
        self.wake();
        Pushed::Closed
    }

    fn wake(&self) {
        if let Some(owner) = &self.owner {
            owner.wake_by_ref();
        }
    }

    fn owner_is(&mut self, cx: &Context<'_>) {
        match &mut self.owner {
            Some(owner) => owner.clone_from(cx.waker()),
            None => self.owner = Some(cx.waker().clone()),
        }
    }
}

/// One non-blocking write.
fn write_now(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    socket2::SockRef::from(socket).send(bytes)
}

/// The socket as a `std::io::Read` that never blocks.
struct NonBlocking<'a>(&'a TcpStream);

impl Read for NonBlocking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

/// A non-blocking write as a `std::io::Write`.
struct Writer<F>(F);

impl<F: Fn(&[u8]) -> io::Result<usize>> Write for Writer<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the waiting frames with as few calls as possible.
fn drain_plain(
    write: impl Fn(&[u8]) -> io::Result<usize>,
    waiting: &mut VecDeque<Bytes>,
    bytes: &mut usize,
) -> io::Result<()> {
    while !waiting.is_empty() {
        let written = with_gathered(waiting, &write)?;
        consume(waiting, bytes, written);
    }
    Ok(())
}

/// As [`drain_plain`], through records. What rustls has taken counts as sent: it holds at most its own 64 KiB.
fn drain_tls(
    write: impl Fn(&[u8]) -> io::Result<usize>,
    tls: &mut ServerConnection,
    waiting: &mut VecDeque<Bytes>,
    bytes: &mut usize,
) -> io::Result<()> {
    let mut writer = Writer(write);
    loop {
        while tls.wants_write() {
            tls.write_tls(&mut writer)?;
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let taken = with_gathered(waiting, |ready| tls.writer().write(ready))?;
        consume(waiting, bytes, taken);
    }
}

/// Shows `write` the front of the queue as one slice: a single or a large frame as it is, small ones gathered.
fn with_gathered<T>(waiting: &VecDeque<Bytes>, write: impl FnOnce(&[u8]) -> T) -> T {
    let mut frames = waiting.iter();
    match frames.next() {
        Some(first) if waiting.len() > 1 && first.len() < GATHER => SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            scratch.extend_from_slice(first);
            for frame in frames {
                if scratch.len() + frame.len() > GATHER {
                    break;
                }
                scratch.extend_from_slice(frame);
            }
            write(scratch)
        }),
        first => write(first.map_or(&[][..], |frame| &frame[..])),
    }
}

fn consume(waiting: &mut VecDeque<Bytes>, bytes: &mut usize, mut written: usize) {
    *bytes -= written;
    while let Some(first) = waiting.front_mut() {
        if written < first.len() {
            first.advance(written);
            return;
        }
        written -= first.len();
        *bytes -= OVERHEAD;
        waiting.pop_front();
    }
}
