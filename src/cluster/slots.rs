//! Redis Cluster: which master has which keys and channels, and what it says when that changes:
//! <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.
//!
//! Every key and channel is in one of 16,384 slots, and every slot has one master. A [`Connection`] to a Cluster is one
//! socket to each master. A slot that has moved to another of them is followed at once, for good or, while its keys are
//! on their way, for one command. One that has moved to a server we do not know makes the whole connection old: whoever
//! owns it makes a new one, as where a master has gone. So for commands a Cluster is there or it is away, as a single
//! Redis is; while a slot has no master, Redis itself takes no commands by default (`cluster-require-full-coverage`).
//!
//! The library's own support is not used: it is silent when channels move with their slots, and asks one server only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::redis::{Command, ConnectError, Connection, NO_RING, Place, RedisError, Reply, Server, slot};
use crate::metrics::Metrics;

/// How many slots there are.
const SLOTS: u16 = 16_384;

/// What a server may take to be connected to and to say who has what; then the next one is asked.
const ITS_ANSWER: Duration = Duration::from_secs(1);

/// Of so many servers of a Cluster it is remembered that they can be asked, beside those that the URL names.
const MOST_KNOWN: usize = 1000;

/// The name of a key in the slot of another: in the usual case `{key}:rest`.
pub(super) fn beside(key: &str, rest: &str) -> String {
    if !key.contains(['{', '}']) {
        return format!("{{{key}}}:{rest}");
    }
    // Braces are part of this name, and others would be taken for those that say what counts. The tag begins as the key
    // does, which is what a user of Redis may be allowed.
    let (wanted, prefix) = (slot(key.as_bytes()), key.split([':', '{', '}']).next().unwrap_or_default());
    // One in 16,384 fits.
    let tag = |number: &u32| format!("{prefix}:{number}");
    let number = (0..1_u32 << 24).find(|number| slot(tag(number).as_bytes()) == wanted).unwrap_or_default();
    format!("{{{}}}:{key}:{rest}", tag(&number))
}

/// Some slots: first and last of each row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Slots(Vec<(u16, u16)>);

impl Slots {
    pub(super) fn contain(&self, slot: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&slot))
    }

    pub(super) fn contain_name(&self, name: &str) -> bool {
        self.contain(slot(name.as_bytes()))
    }

    /// Puts something at each of them in what has a place for every slot.
    fn fill<T: Clone>(&self, places: &mut [T], with: &T) {
        for (first, last) in &self.0 {
            if let Some(row) = places.get_mut(usize::from(*first)..=usize::from(*last)) {
                row.fill(with.clone());
            }
        }
    }
}

/// Each master with its slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Map(pub(super) Vec<(Place, Slots)>);

impl Map {
    /// Reads what `CLUSTER SLOTS` answers; `asked` stands for a server that does not know its own address. With the
    /// places of all servers, replicas too.
    pub(super) fn read(reply: Reply, asked: &Place) -> Result<(Self, Vec<Place>), ConnectError> {
        let (mut map, mut known) = (Self::default(), Vec::new());
        for row in reply.list() {
            let mut parts = row.list().into_iter();
            let (first, last) = (parts.next(), parts.next());
            let number = |part: Option<Reply>| part.and_then(|part| u16::try_from(part.number()).ok());
            let (Some(first), Some(last)) = (number(first), number(last)) else { continue };
            if first > last || last >= SLOTS {
                continue;
            }
            let places: Vec<Place> = parts.filter_map(|server| read_place(server, asked)).collect();
            let Some(master) = places.first().cloned() else { continue };
            known.extend(places);
            match map.0.iter_mut().find(|(place, _)| *place == master) {
                Some((_, slots)) => slots.0.push((first, last)),
                None => map.0.push((master, Slots(vec![(first, last)]))),
            }
        }
        let mut have_masters = vec![false; usize::from(SLOTS)];
        for (_, slots) in &map.0 {
            slots.fill(&mut have_masters, &true);
        }
        let lonely = have_masters.iter().filter(|has_master| !**has_master).count();
        if lonely > 0 {
            return Err(ConnectError::Away(format!("{lonely} of the {SLOTS} slots of the Cluster have no master")));
        }
        for (_, slots) in &mut map.0 {
            slots.0.sort_unstable();
        }
        map.0.sort_by(|(one, _), (other, _)| (&one.host, one.port).cmp(&(&other.host, other.port)));
        known.sort_by(|one, other| (&one.host, one.port).cmp(&(&other.host, other.port)));
        known.dedup();
        Ok((map, known))
    }
}

fn read_place(server: Reply, asked: &Place) -> Option<Place> {
    let mut parts = server.list().into_iter();
    let host = parts.next()?.text().filter(|host| !host.is_empty() && host != "?");
    let port = u16::try_from(parts.next()?.number()).ok()?;
    Some(Place { host: host.unwrap_or_else(|| asked.host.clone()), port })
}

/// A Cluster, as its servers tell of it.
pub(super) struct Shards {
    /// Those that the URL names.
    seeds: Vec<Server>,
    /// Those that were told of last.
    known: Mutex<Vec<Place>>,
    /// Whose turn it is.
    next: AtomicUsize,
}

impl Shards {
    pub(super) fn new(seeds: Vec<Server>) -> Self {
        Self { seeds, known: Mutex::default(), next: AtomicUsize::new(0) }
    }

    /// A server of this Cluster; it lets in whom all let in.
    pub(super) fn at(&self, place: &Place) -> Option<Server> {
        self.seeds.first().map(|seed| seed.at(place))
    }

    /// Where the URL says that some of it is.
    pub(super) fn place(&self) -> Option<Place> {
        self.seeds.first().and_then(Server::place)
    }

    /// Asks who has what: one server after another, until one of them knows.
    pub(super) async fn map(&self, metrics: &Arc<Metrics>) -> Result<Map, ConnectError> {
        let known = self.known.lock().clone();
        let places: Vec<Place> = self.seeds.iter().filter_map(Server::place).collect();
        let others = known.into_iter().filter(|place| !places.contains(place)).filter_map(|place| self.at(&place));
        let servers: Vec<Server> = self.seeds.iter().cloned().chain(others).collect();
        let first = self.next.load(Ordering::Relaxed);
        let (mut words, mut may_change) = (Vec::new(), false);
        for turn in 0..servers.len() {
            let number = first.wrapping_add(turn) % servers.len();
            let Some(server) = servers.get(number) else { continue };
            let asked = timeout(ITS_ANSWER, async {
                let (connection, _alive) = Connection::connect(server, metrics, NO_RING, ITS_ANSWER).await?;
                self.ask(&connection).await
            });
            let error = match asked.await {
                Ok(Ok(map)) => {
                    self.next.store(number, Ordering::Relaxed);
                    return Ok(map);
                }
                Ok(Err(error)) => error,
                Err(_) => ConnectError::Away("no answer".to_owned()),
            };
            may_change |= !matches!(error, ConnectError::Unfit(_));
            words.push(server.place().map_or_else(String::new, |place| format!("{place}: {error}")));
        }
        let words = words.join("; ");
        Err(if may_change { ConnectError::Away(words) } else { ConnectError::Unfit(words) })
    }

    /// Asks who has what, where there is a connection.
    pub(super) async fn ask(&self, connection: &Connection) -> Result<Map, ConnectError> {
        let asked = connection.place().unwrap_or(Place { host: String::new(), port: 0 });
        let reply = connection.call(Command::cluster("SLOTS")).await.map_err(|error| match error {
            RedisError::Refused { error, .. } if error.contains("cluster support disabled") => {
                ConnectError::Unfit("this is no Redis Cluster; its URL begins with redis://".to_owned())
            }
            RedisError::Refused { error, .. } if error.starts_with("NOPERM") => ConnectError::Unfit(error),
            error => ConnectError::Away(error.to_string()),
        })?;
        let (map, mut known) = Map::read(reply, &asked)?;
        known.truncate(MOST_KNOWN);
        *self.known.lock() = known;
        Ok(map)
    }

    /// What one of them said led nowhere: another may know better.
    pub(super) fn was_wrong(&self) {
        self.next.fetch_add(1, Ordering::Relaxed);
    }
}

/// To which of a connection's sockets a command goes.
pub(super) struct Routes {
    /// By slot, the number of the socket.
    of: Box<[AtomicU16]>,
    /// A slot has moved to a server to which there is no socket.
    pub(super) old: CancellationToken,
}

impl Routes {
    /// The sockets are in the order of the map.
    pub(super) fn new(map: &Map) -> Self {
        let mut of = vec![0; usize::from(SLOTS)];
        for (socket, (_, slots)) in map.0.iter().enumerate() {
            slots.fill(&mut of, &(socket as u16));
        }
        Self { of: of.into_iter().map(AtomicU16::new).collect(), old: CancellationToken::new() }
    }

    pub(super) fn socket_of(&self, slot: u16) -> usize {
        self.of.get(usize::from(slot)).map_or(0, |socket| usize::from(socket.load(Ordering::Relaxed)))
    }

    pub(super) fn has_moved(&self, slot: u16, socket: usize) {
        if let Some(of) = self.of.get(usize::from(slot)) {
            of.store(socket as u16, Ordering::Relaxed);
        }
    }
}

/// Why a server of a Cluster did not do what it was told, and who will.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Redirection {
    /// The slot is another master's.
    Moved(Place),
    /// It is about to be, and what is asked for is there already.
    Ask(Place),
    /// Some of the keys are there already, some are not.
    TryAgain,
}

impl Redirection {
    /// Reads the words of an error; `asked` stands for a server that does not know its own address.
    pub(super) fn read(words: &str, asked: Option<&Place>) -> Option<Self> {
        let mut parts = words.split(' ');
        let kind = parts.next()?;
        if kind == "TRYAGAIN" {
            return Some(Self::TryAgain);
        }
        if kind != "MOVED" && kind != "ASK" {
            return None;
        }
        let (host, port) = parts.nth(1)?.rsplit_once(':')?;
        let host = if host.is_empty() || host == "?" { asked?.host.clone() } else { host.to_owned() };
        let place = Place { host, port: port.parse().ok()? };
        Some(if kind == "ASK" { Self::Ask(place) } else { Self::Moved(place) })
    }
}

/// The slot that a command is about; none where it is about a server.
pub(super) fn slot_of(name: &str, args: &[Bytes]) -> Option<u16> {
    let key = match name {
        "CLIENT" | "CLUSTER" | "CONFIG" | "INFO" | "SENTINEL" => None,
        // A script, how many keys it has, and those.
        "EVAL" => args.get(2).filter(|_| args.get(1).is_some_and(|keys| keys != "0")),
        // What it is about, and a key or a channel.
        "PUBSUB" | "XGROUP" | "XINFO" => args.get(1),
        "XREADGROUP" => args.iter().skip_while(|arg| *arg != "STREAMS").nth(1),
        _ => args.first(),
    };
    key.map(|key| slot(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(port: u16) -> Place {
        Place { host: "10.0.0.1".to_owned(), port }
    }

    #[test]
    fn a_redirection_names_who_has_the_slot() {
        let read = |words: &str| Redirection::read(words, Some(&place(1)));
        assert_eq!(read("MOVED 3999 10.0.0.1:6381"), Some(Redirection::Moved(place(6381))));
        assert_eq!(read("ASK 3999 10.0.0.1:6381"), Some(Redirection::Ask(place(6381))));
        assert_eq!(read("MOVED 3999 :6381"), Some(Redirection::Moved(place(6381))));
        let ipv6 = Place { host: "::1".to_owned(), port: 6381 };
        assert_eq!(read("MOVED 3999 ::1:6381"), Some(Redirection::Moved(ipv6)));
        assert_eq!(read("TRYAGAIN Multiple keys request during rehashing of slot"), Some(Redirection::TryAgain));
        for other in ["", "ERR unknown", "MOVED", "MOVED 1", "MOVED 1 host", "MOVED 1 host:port", "CLUSTERDOWN x"] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn a_command_goes_where_its_key_is() {
        let slot_of = |command: &str| {
            let mut words = command.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes()));
            let name = words.next().unwrap();
            super::slot_of(std::str::from_utf8(&name).unwrap(), &words.collect::<Vec<_>>())
        };
        let key = Some(slot(b"key"));
        for command in [
            "HSET key a b",
            "SPUBLISH key hello",
            "EVAL return 1 key other",
            "XGROUP CREATE key g 0",
            "PUBSUB SHARDNUMSUB key",
            "XREADGROUP GROUP g c COUNT 1 STREAMS key >",
        ] {
            // A script has spaces in life.
            assert_eq!(slot_of(command), key, "{command}");
        }
        assert_eq!(slot_of("CLIENT ID"), None);
        assert_eq!(slot_of("EVAL return 0 argument"), None);
        assert_eq!(slot(b"123456789"), 12_739);
    }

    #[test]
    fn a_cluster_without_all_slots_is_away() {
        assert!(matches!(Map::read(Reply::made_of(b"*\0"), &place(1)), Err(ConnectError::Away(_))));
    }

    /// What `CLUSTER SLOTS` answers: first and last slot of each row, and the port of its master.
    fn answer(rows: &[(u16, u16, u16)]) -> Reply {
        let number = |number: u16| [&b":\0"[..], &u64::from(number).to_be_bytes()].concat();
        let row = |(first, last, port): &(u16, u16, u16)| {
            [&b"*\x03"[..], &number(*first), &number(*last), b"*\x02$\x0810.0.0.1", &number(*port)].concat()
        };
        let rows: Vec<Vec<u8>> = rows.iter().map(row).collect();
        Reply::made_of(&[&[b'*', rows.len() as u8], &*rows.concat()].concat())
    }

    #[test]
    fn each_slot_leads_to_its_master_and_those_of_nobody_are_counted() {
        let rows = [(0, 99, 3), (100, 100, 2), (101, 9000, 1), (9001, 9003, 3), (9004, 16_383, 2)];
        let (map, known) = Map::read(answer(&rows), &place(9)).unwrap();
        assert_eq!(known, [place(1), place(2), place(3)]);
        let routes = Routes::new(&map);
        for (first, last, port) in rows {
            for slot in first..=last {
                let (master, slots) = &map.0[routes.socket_of(slot)];
                assert!(*master == place(port) && slots.contain(slot), "{slot} leads to {master}");
            }
        }
        let some = Map::read(answer(&rows[..3]), &place(9)).unwrap_err().to_string();
        assert!(some.starts_with("7383 of the 16384 slots"), "{some}");
    }

    proptest! {
        #[test]
        fn a_key_beside_another_is_in_its_slot(name in "[a{}:]{1,12}") {
            let beside = beside(&name, "seq");
            prop_assert_eq!(slot(name.as_bytes()), slot(beside.as_bytes()), "{}", beside);
        }
    }
}
