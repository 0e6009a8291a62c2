//! Sentinels: they watch a master and its replicas, make a replica the master when that one has died, and say which it
//! is: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>.
//!
//! Every connection to Redis is made to whom a sentinel names at that moment, and checked to be a master: what a sentinel
//! says may be old. So sentinels are asked in turn, beginning with the one that answered last; the turn is the next one's
//! when nobody was found where a sentinel has led us.
//!
//! While a connection is there, one sentinel is asked every beat whether it still leads to the master. In a failover by
//! hand, or when the old master was only cut off from the sentinels, it goes on answering as a master for ten seconds and
//! more, until they make it a replica: what is written to it then is lost, and what is published elsewhere is not heard.
//! A node that no sentinel reaches any more stays where it is; `min-replicas-to-write` is what bounds that.
//!
//! The library's own support is not used: it asks no other sentinel where one knows no master, or a wrong one, and says
//! nothing of why.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::bus::BEAT;
use super::redis::{Alive, Command, ConnectError, Connection, NO_RING, Place, RedisError, Server};
use crate::metrics::Metrics;

/// What a sentinel may take to be connected to and to answer; then it is the next one's turn.
const ITS_ANSWER: Duration = Duration::from_secs(1);

/// Who knows where Redis is.
pub(super) struct Sentinels {
    /// The master's name among them.
    service: String,
    all: Vec<Server>,
    /// Whom a master lets in.
    master: Server,
    /// Whose turn it is.
    first: AtomicUsize,
    /// Who answered last.
    last: AtomicUsize,
}

/// What a sentinel says.
pub(super) struct Master {
    pub(super) server: Server,
    pub(super) place: Place,
    said_by: usize,
}

impl Sentinels {
    /// `master` is a server that lets in whom masters do, wherever it may be.
    pub(super) fn new(service: String, all: Vec<Server>, master: Server) -> Self {
        Self { service, all, master, first: AtomicUsize::new(0), last: AtomicUsize::new(usize::MAX) }
    }

    /// The master's name.
    pub(super) fn service(&self) -> &str {
        &self.service
    }

    /// Asks who is the master now.
    pub(super) async fn master(&self, metrics: &Arc<Metrics>) -> Result<Master, ConnectError> {
        let Asked { place, said_by, .. } = self.ask(metrics).await?;
        Ok(self.at(place, said_by))
    }

    /// A server that they watch.
    pub(super) fn server(&self, place: &Place) -> Server {
        self.master.at(place)
    }

    fn at(&self, place: Place, said_by: usize) -> Master {
        Master { server: self.server(&place), place, said_by }
    }

    /// There was no master, and why; another sentinel may know better.
    pub(super) fn was_wrong(&self, master: &Master, error: &ConnectError) -> ConnectError {
        self.first.store(master.said_by.wrapping_add(1), Ordering::Relaxed);
        let words =
            format!("{}, the master {} as {} says: {error}", master.place, self.service, self.name(master.said_by));
        match error {
            ConnectError::Unfit(_) => ConnectError::Unfit(words),
            ConnectError::Away(_) | ConnectError::Replica => ConnectError::Away(words),
        }
    }

    /// Asks every now and then, until another master is named than this one.
    pub(super) async fn name_another(&self, than: &Place, metrics: &Arc<Metrics>) -> Master {
        loop {
            sleep(BEAT).await;
            let Ok(Asked { mut place, said_by, sentinel, _alive }) = self.ask(metrics).await else { continue };
            while place == *than {
                sleep(BEAT).await;
                let Ok(now) = self.ask_one(&sentinel).await else { break };
                place = now;
            }
            if place != *than {
                return self.at(place, said_by);
            }
        }
    }

    /// Asks one after another, until one of them knows.
    async fn ask(&self, metrics: &Arc<Metrics>) -> Result<Asked, ConnectError> {
        let first = self.first.load(Ordering::Relaxed);
        let (mut words, mut may_change) = (Vec::new(), false);
        for turn in 0..self.all.len() {
            let said_by = first.wrapping_add(turn) % self.all.len();
            let Some(server) = self.all.get(said_by) else { continue };
            let asked = timeout(ITS_ANSWER, async {
                let (sentinel, alive) = Connection::connect(server, metrics, NO_RING, ITS_ANSWER).await?;
                let place = self.ask_one(&sentinel).await?;
                Ok(Asked { place, said_by, sentinel, _alive: alive })
            });
            let error = match asked.await {
                Ok(Ok(asked)) => {
                    // Said once, though it be passed over each time.
                    if self.last.swap(said_by, Ordering::Relaxed) != said_by && !words.is_empty() {
                        tracing::warn!(
                            answers = self.name(said_by),
                            others = words.join("; "),
                            "asking another sentinel"
                        );
                    }
                    self.first.store(said_by, Ordering::Relaxed);
                    return Ok(asked);
                }
                Ok(Err(error)) => error,
                Err(_) => ConnectError::Away("no answer".to_owned()),
            };
            may_change |= !matches!(error, ConnectError::Unfit(_));
            words.push(format!("{}: {error}", self.name(said_by)));
        }
        let words = format!("no sentinel says where the master {} is: {}", self.service, words.join("; "));
        Err(if may_change { ConnectError::Away(words) } else { ConnectError::Unfit(words) })
    }

    async fn ask_one(&self, sentinel: &Connection) -> Result<Place, ConnectError> {
        let command = Command::sentinel("GET-MASTER-ADDR-BY-NAME").arg(self.service.as_str());
        let reply = sentinel.call(command).await.map_err(|error| match error {
            RedisError::Away(words) => ConnectError::Away(words),
            RedisError::Refused { error, .. } if error.contains("unknown command") => {
                ConnectError::Unfit("this is no sentinel".to_owned())
            }
            RedisError::Refused { error, .. } => ConnectError::Unfit(error),
        })?;
        let mut parts = reply.texts();
        match (parts.next(), parts.next().and_then(|port| port.parse().ok())) {
            (Some(host), Some(port)) => Ok(Place { host, port }),
            _ => Err(ConnectError::Away(format!("it knows no master of the name {}", self.service))),
        }
    }

    /// A sentinel's place, for people.
    fn name(&self, number: usize) -> String {
        self.all.get(number).and_then(Server::place).map_or_else(String::new, |place| place.to_string())
    }
}

/// A sentinel that knows a master.
struct Asked {
    place: Place,
    said_by: usize,
    sentinel: Connection,
    _alive: Alive,
}
