//! What nodes say to one another, one to one: questions and answers.
//!
//! To each node one `PUBLISH` is under way at a time, and what is to be said to it meanwhile goes together in the next.
//! Nobody waits for company: what finds nothing under way goes at once.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::bus::{Bus, MAX_PAYLOAD};
use super::envelope;
use super::keys::Channel;
use super::redis::{ANSWER, RedisError};
use crate::id::LanAddress;

/// Letters that are not delivered yet, to all nodes.
const WAITING: usize = 10_000;

/// Letters in one `PUBLISH`.
const LOT: usize = 256;

/// An envelope, to whom it goes, and who waits to hear how many have got it.
pub(super) struct Letter {
    to: LanAddress,
    sealed: Bytes,
    posted: oneshot::Sender<Result<u64, RedisError>>,
    /// Given back when it is delivered, or given up.
    _room: OwnedSemaphorePermit,
}

/// Where letters are posted.
pub(super) struct Post {
    letters: mpsc::Sender<Letter>,
    room: Arc<Semaphore>,
}

/// What was posted, in order.
pub(super) struct Letters(mpsc::Receiver<Letter>);

impl Post {
    pub(super) fn new() -> (Self, Letters) {
        let (letters, posted) = mpsc::channel(WAITING);
        (Self { letters, room: Arc::new(Semaphore::new(WAITING)) }, Letters(posted))
    }

    /// Says an envelope to a node; returns how many heard it. An error means that this is not known.
    pub(super) async fn say(&self, to: LanAddress, sealed: Bytes) -> Result<u64, RedisError> {
        let (posted, heard) = oneshot::channel();
        let away = |words: &str| RedisError::Away(words.to_owned());
        let room = Arc::clone(&self.room).try_acquire_owned();
        let room = room.map_err(|_| away("too much is waiting to be said to other nodes"))?;
        let stopping = || away("this node is stopping");
        // There are as many places as permits.
        self.letters.try_send(Letter { to, sealed, posted, _room: room }).map_err(|_| stopping())?;
        // It may be behind others, each lot of which Redis may take as long to answer.
        let heard = timeout(ANSWER * 2, heard).await.map_err(|_| away("no answer"))?;
        heard.unwrap_or_else(|_| Err(stopping()))
    }
}

impl Letters {
    /// Carries them, as long as this is polled: the bus itself posts.
    pub(super) async fn carry(mut self, bus: Arc<Bus>) {
        // A node is in it as long as something is under way to it.
        let mut held: HashMap<LanAddress, VecDeque<Letter>> = HashMap::new();
        let (mut under_way, mut come, mut idle) = (FuturesUnordered::new(), Vec::new(), Vec::new());
        loop {
            tokio::select! {
                count = self.0.recv_many(&mut come, LOT) => if count == 0 { return },
                Some(node) = under_way.next(), if !under_way.is_empty() => idle.push(node),
            }
            for letter in come.drain(..) {
                let node = letter.to;
                let waiting = held.entry(node);
                if matches!(waiting, Entry::Vacant(_)) {
                    idle.push(node);
                }
                waiting.or_default().push_back(letter);
            }
            for node in idle.drain(..) {
                match held.get_mut(&node).map(next_lot) {
                    Some(lot) if !lot.is_empty() => under_way.push(deliver(&bus, node, lot)),
                    _ => drop(held.remove(&node)),
                }
            }
        }
    }
}

/// What goes together next. Those who do not wait any more have their letters not sent.
fn next_lot(waiting: &mut VecDeque<Letter>) -> Vec<Letter> {
    let (mut lot, mut size) = (Vec::new(), 0);
    while let Some(letter) = waiting.front() {
        size += letter.sealed.len();
        if lot.len() == LOT || (size > MAX_PAYLOAD && !lot.is_empty()) {
            break;
        }
        lot.extend(waiting.pop_front().filter(|letter| !letter.posted.is_closed()));
    }
    lot
}

async fn deliver(bus: &Bus, node: LanAddress, lot: Vec<Letter>) -> LanAddress {
    let payload = envelope::pack(lot.iter().map(|letter| &letter.sealed));
    let heard = bus.publish(&Channel::Node(node), payload).await;
    for letter in lot {
        // Whoever waited may have gone.
        letter.posted.send(heard.clone()).ok();
    }
    node
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    type Heard = oneshot::Receiver<Result<u64, RedisError>>;

    fn letters(sizes: impl IntoIterator<Item = usize>) -> (VecDeque<Letter>, Vec<Heard>) {
        let (to, room) = ("7f0000010b54".parse().unwrap(), Arc::new(Semaphore::new(WAITING)));
        let letter = |size: usize| {
            let (posted, heard) = oneshot::channel();
            let room = Arc::clone(&room).try_acquire_owned().unwrap();
            (Letter { to, sealed: vec![0; size].into(), posted, _room: room }, heard)
        };
        sizes.into_iter().map(letter).unzip()
    }

    #[tokio::test]
    async fn what_is_taken_up_and_not_delivered_still_has_its_place() {
        let (post, Letters(mut letters)) = Post::new();
        let to = "7f0000010b54".parse().unwrap();
        let mut waiting: Vec<_> = (0..WAITING).map(|_| Box::pin(post.say(to, Bytes::new()))).collect();
        assert!(waiting.iter_mut().all(|say| say.now_or_never().is_none()));
        let mut taken = Vec::new();
        assert_eq!(letters.recv_many(&mut taken, WAITING).await, WAITING);
        let full = Err(RedisError::Away("too much is waiting to be said to other nodes".to_owned()));
        assert_eq!(post.say(to, Bytes::new()).now_or_never(), Some(full));

        let Letter { posted, .. } = taken.pop().unwrap();
        posted.send(Ok(1)).unwrap();
        assert_eq!(waiting.pop().unwrap().await, Ok(1));
        assert_eq!(post.say(to, Bytes::new()).now_or_never(), None);
    }

    #[test]
    fn what_waits_goes_together_in_lots_of_some_hundreds() {
        let (mut waiting, _heard) = letters([8; LOT * 2 + 3]);
        assert_eq!([(); 4].map(|()| next_lot(&mut waiting).len()), [LOT, LOT, 3, 0]);
    }

    #[test]
    fn a_large_letter_goes_alone_and_in_its_turn() {
        let (mut waiting, _heard) = letters([8, MAX_PAYLOAD, 8, MAX_PAYLOAD * 2]);
        let lots: [Vec<usize>; 4] =
            [(); 4].map(|()| next_lot(&mut waiting).iter().map(|letter| letter.sealed.len()).collect());
        assert_eq!(lots, [vec![8], vec![MAX_PAYLOAD], vec![8], vec![MAX_PAYLOAD * 2]]);
    }

    #[test]
    fn who_waits_no_longer_has_nothing_sent() {
        let (mut waiting, mut heard) = letters([1, 2, 3]);
        drop(heard.remove(1));
        assert_eq!(next_lot(&mut waiting).iter().map(|letter| letter.sealed.len()).collect::<Vec<_>>(), [1, 3]);
    }
}
