//! A live tail of a uid, a group or a client, for the console.
//!
//! Whoever tails must not subscribe to what it tails: the number of those who hear a channel is the application's answer to
//! "is anybody there?". So the node of the tail asks all nodes, every [`RENEW`], to watch for a while; each node's shards
//! note what they see (`hub::tails`), and the node tells the one that asked, on its own channel. On a single Redis what is
//! said after the asking is seen, as both come over one connection; on a Cluster the first moments may be missing.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::Gateway;
use crate::hub::{Clip, Seen, Sighting, Tailed};
use crate::id::{ClientId, Group, Uid};

/// Tails on one node.
pub(crate) const MOST_TAILS: usize = 16;

/// All nodes are asked again after so long.
const RENEW: Duration = Duration::from_secs(5);

/// Copies that may wait for whoever reads a tail.
const UNREAD: usize = 1000;

/// The tails of this node, by their names.
pub(super) struct Tailing {
    tails: Mutex<HashMap<u64, Arc<Reader>>>,
    next: AtomicU64,
}

struct Reader {
    copies: mpsc::Sender<Bytes>,
    /// What it did not read in time.
    skipped: AtomicU64,
}

impl Default for Tailing {
    fn default() -> Self {
        // Copies for an earlier process with this address shall find nobody.
        Self { tails: Mutex::default(), next: AtomicU64::new(uuid::Uuid::new_v4().as_u64_pair().0 >> 16) }
    }
}

impl Tailing {
    /// What was seen for a tail; it may have ended.
    pub(super) fn heard(&self, id: u64, line: Bytes) {
        let reader = self.tails.lock().get(&id).cloned();
        if let Some(reader) = reader
            && let Err(unread) = reader.copies.try_send(line)
        {
            reader.skipped.fetch_add(stands_for(&unread.into_inner()), Ordering::Relaxed);
        }
    }
}

/// A tail; it ends when it is dropped.
pub(crate) struct Tail {
    gateway: Arc<Gateway>,
    id: u64,
    tailed: Tailed,
    copies: mpsc::Receiver<Bytes>,
    reader: Arc<Reader>,
    renew: Interval,
    /// What is to be told before anything else.
    untold: Option<Bytes>,
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.gateway.tailing.tails.lock().remove(&self.id);
    }
}

impl Tail {
    /// The next thing that was seen, a line of JSON; every [`RENEW`] it is how many nodes watch.
    pub(crate) async fn next(&mut self) -> Bytes {
        if let Some(line) = self.untold.take() {
            return line;
        }
        tokio::select! {
            biased;
            _ = self.renew.tick() => {}
            // The sender is in `self`.
            Some(line) = self.copies.recv() => return line,
        }
        let watching = Line::of(&match self.gateway.watch(&self.tailed, self.id).await {
            Ok(nodes) => Told::Tailing { nodes },
            Err(error) => Told::Away { error },
        });
        match self.reader.skipped.swap(0, Ordering::Relaxed) {
            0 => watching,
            count => {
                self.untold = Some(watching);
                Line::of(&Told::Skipped { count })
            }
        }
    }
}

impl Gateway {
    /// Begins to tail somebody; none where there are too many tails already.
    pub(crate) fn tail(self: &Arc<Self>, tailed: Tailed) -> Option<Tail> {
        let (copies, unread) = mpsc::channel(UNREAD);
        let reader = Arc::new(Reader { copies, skipped: AtomicU64::new(0) });
        let id = self.tailing.next.fetch_add(1, Ordering::Relaxed);
        let mut tails = self.tailing.tails.lock();
        if tails.len() >= MOST_TAILS {
            return None;
        }
        tails.insert(id, Arc::clone(&reader));
        drop(tails);
        let mut renew = interval(RENEW);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Some(Tail { gateway: Arc::clone(self), id, tailed, copies: unread, reader, renew, untold: None })
    }

    /// Has all nodes watch; returns how many do.
    async fn watch(&self, tailed: &Tailed, id: u64) -> Result<u64, String> {
        // This one also while Redis is away.
        self.hub.tails().watch(tailed.clone(), self.lan(), id, Instant::now());
        match &self.cluster {
            Some(cluster) => cluster.tail(tailed.clone(), id).await.map_err(|error| error.to_string()),
            None => Ok(1),
        }
    }

    /// Hands over what is seen of those who are watched here, for ever.
    pub(crate) async fn tell_tails(&self) {
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                now = second.tick() => self.hub.tails().tick(now),
                sightings = self.hub.tails().next() => {
                    join_all(sightings.iter().map(|sighting| self.tell_tail(sighting))).await;
                }
            }
        }
    }

    async fn tell_tail(&self, Sighting { watch, at, seen }: &Sighting) {
        let origin = self.hub.events().origin();
        let line = Line::of(&Line { at: *at, node: &origin.node, told: Told::of(seen) });
        match &self.cluster {
            Some(cluster) if watch.to != self.lan() => {
                // A tail shows that Redis is away by itself.
                if let Err(error) = cluster.copy(watch.to, watch.id, &line).await {
                    tracing::debug!(%error, "what was seen was not told to the node that tails");
                }
            }
            _ => self.tailing.heard(watch.id, line),
        }
    }
}

/// A line of a tail.
#[derive(Serialize)]
struct Line<'a> {
    at: u64,
    node: &'a str,
    #[serde(flatten)]
    told: Told<'a>,
}

/// For how much a line stands that nobody reads: itself, or what it says was skipped where it comes from.
fn stands_for(line: &[u8]) -> u64 {
    /// No other line has a count.
    #[derive(Deserialize)]
    struct Skipped {
        count: u64,
    }
    serde_json::from_slice(line).map_or(1, |Skipped { count }| count)
}

impl Line<'_> {
    fn of(line: &impl Serialize) -> Bytes {
        // Our own structs of strings and numbers: this cannot fail.
        serde_json::to_vec(line).unwrap_or_default().into()
    }
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Told<'a> {
    /// So many nodes watch.
    Tailing {
        nodes: u64,
    },
    /// Others than this node cannot be asked.
    Away {
        error: String,
    },
    Skipped {
        count: u64,
    },
    Message {
        clients: u64,
        #[serde(flatten)]
        data: Data<'a>,
    },
    Said {
        client_id: ClientId,
        #[serde(flatten)]
        data: Data<'a>,
    },
    Connect {
        client_id: ClientId,
    },
    Bound {
        client_id: ClientId,
        uid: &'a Uid,
    },
    Unbound {
        client_id: ClientId,
        uid: &'a Uid,
    },
    Joined {
        client_id: ClientId,
        group: &'a Group,
    },
    Left {
        client_id: ClientId,
        group: &'a Group,
    },
    Close {
        client_id: ClientId,
        code: u16,
        reason: &'a str,
    },
}

/// The beginning of a message, as text or in base64.
#[derive(Serialize)]
struct Data<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binary: Option<String>,
    /// Bytes of all of it.
    length: usize,
}

impl<'a> From<&'a Clip> for Data<'a> {
    fn from(clip: &'a Clip) -> Self {
        let length = clip.length;
        if clip.is_binary {
            return Self { text: None, binary: Some(BASE64_STANDARD.encode(&clip.bytes)), length };
        }
        // It may be cut within a character.
        let whole = match std::str::from_utf8(&clip.bytes) {
            Err(error) if error.error_len().is_none() => clip.bytes.get(..error.valid_up_to()),
            _ => None,
        };
        Self { text: Some(String::from_utf8_lossy(whole.unwrap_or(&clip.bytes))), binary: None, length }
    }
}

impl<'a> Told<'a> {
    fn of(seen: &'a Seen) -> Self {
        match seen {
            Seen::Message(clip, clients) => Self::Message { clients: *clients, data: clip.into() },
            Seen::Said(id, clip) => Self::Said { client_id: *id, data: clip.into() },
            Seen::Connect(id) => Self::Connect { client_id: *id },
            Seen::Bound(id, uid) => Self::Bound { client_id: *id, uid },
            Seen::Unbound(id, uid) => Self::Unbound { client_id: *id, uid },
            Seen::Joined(id, group) => Self::Joined { client_id: *id, group },
            Seen::Left(id, group) => Self::Left { client_id: *id, group },
            Seen::Close(id, close) => Self::Close { client_id: *id, code: close.code, reason: &close.reason },
            Seen::Skipped(count) => Self::Skipped { count: *count },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_in_time_is_counted_with_all_that_it_stands_for() {
        let (tailing, (copies, _unread)) = (Tailing::default(), mpsc::channel(1));
        let reader = Arc::new(Reader { copies, skipped: AtomicU64::new(0) });
        tailing.tails.lock().insert(7, Arc::clone(&reader));
        let connect = || Told::Connect { client_id: ClientId::NOBODY };
        for told in [connect(), connect(), Told::Skipped { count: 40 }] {
            tailing.heard(7, Line::of(&Line { at: 1, node: "a", told }));
        }
        assert_eq!(reader.skipped.load(Ordering::Relaxed), 41);
    }
}
