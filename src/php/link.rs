//! What is written to an inner connection, in order, by a task of its own.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::commands::Answer;
use super::packet;
use crate::accept::UNREAD;

/// Bytes that may wait for one connection, as in PHP (`sendToWorkerBufferSize`). The last packet may exceed it.
pub(super) const MOST_WAITING: usize = 10_240_000;

/// What a question counts while its answer is not known.
const QUESTION: usize = 2500;

/// So long events may stay unread, which a busy worker may let wait; behind that is a machine that was lost.
const BUSY: Duration = Duration::from_mins(5);

/// What is written at once.
const GATHER: usize = 256 * 1024;

/// Where what is written to one connection goes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link(Arc<Queue>);

struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    items: VecDeque<Item>,
    /// What they count together.
    size: usize,
    /// Nothing more comes.
    has_ended: bool,
}

enum Item {
    Answer(Answer),
    Packet(Vec<u8>),
}

impl Item {
    fn size(&self) -> usize {
        match self {
            Self::Answer(_) => QUESTION,
            Self::Packet(packet) => packet.len(),
        }
    }
}

impl Link {
    /// A link over a socket that somebody else reads.
    pub(super) fn new(socket: &mio::net::TcpStream, writers: &mut JoinSet<()>) -> io::Result<Self> {
        let socket = socket2::SockRef::from(socket).try_clone()?;
        socket.set_tcp_user_timeout(Some(UNREAD))?;
        let socket = TcpStream::from_std(socket.into())?;
        let queue = Arc::new(Queue { waiting: Mutex::default(), changed: Notify::new() });
        writers.spawn(write(socket, Arc::clone(&queue)));
        Ok(Self(queue))
    }

    /// Has a question answered in its turn; false when too much is waiting.
    pub(super) fn answer(&self, answer: Answer) -> bool {
        self.push(Item::Answer(answer))
    }

    /// Has a packet written in its turn; false when too much is waiting.
    pub(super) fn send(&self, packet: Vec<u8>) -> bool {
        self.push(Item::Packet(packet))
    }

    /// Ends the connection when all is written that waits.
    pub(super) fn end(&self) {
        self.0.waiting.lock().has_ended = true;
        self.0.changed.notify_one();
    }

    /// Whether two are of the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn push(&self, item: Item) -> bool {
        let mut waiting = self.0.waiting.lock();
        if waiting.has_ended || waiting.size >= MOST_WAITING {
            return false;
        }
        waiting.size += item.size();
        waiting.items.push_back(item);
        drop(waiting);
        self.0.changed.notify_one();
        true
    }
}

/// Has a socket wait longer for its reader: it is a worker.
pub(super) fn be_patient(socket: &mio::net::TcpStream) {
    // A socket that refuses has ended.
    drop(socket2::SockRef::from(socket).set_tcp_user_timeout(Some(BUSY)));
}

async fn write(mut socket: TcpStream, queue: Arc<Queue>) {
    let mut bytes = Vec::new();
    loop {
        let (items, has_ended) = {
            let mut waiting = queue.waiting.lock();
            (std::mem::take(&mut waiting.items), waiting.has_ended)
        };
        if items.is_empty() {
            if has_ended {
                break;
            }
            queue.changed.notified().await;
            continue;
        }
        if write_items(&mut socket, &queue, items, &mut bytes).await.is_none() {
            break;
        }
    }
    // Nothing more is taken.
    *queue.waiting.lock() = Waiting { has_ended: true, ..Waiting::default() };
    // For whoever reads it, too.
    drop(socket2::SockRef::from(&socket).shutdown(std::net::Shutdown::Both));
}

/// None when the connection is to end.
async fn write_items(socket: &mut TcpStream, queue: &Queue, items: VecDeque<Item>, bytes: &mut Vec<u8>) -> Option<()> {
    let mut size = 0;
    let mut items = items.into_iter().peekable();
    while let Some(item) = items.next() {
        size += item.size();
        match item {
            // A stopping node answers no more; a question without an answer is one whose connection ends.
            Item::Answer(answer) => bytes.extend(packet::reply(&answer.await?)),
            Item::Packet(packet) => bytes.extend(packet),
        }
        if bytes.len() >= GATHER || items.peek().is_none() {
            socket.write_all(bytes).await.ok()?;
            bytes.clear();
            bytes.shrink_to(GATHER);
            queue.waiting.lock().size -= std::mem::take(&mut size);
        }
    }
    Some(())
}
