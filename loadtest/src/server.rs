//! What is under test: a gateway, the bare server, or Redis alone, and what the modes ask of any of them.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::clients::{self, Connected};
use crate::floor::{self, Floor};
use crate::process::Meter;
use crate::publish::{Kind, Wire};
use crate::redis::Redis;
use crate::report::Spent;
use crate::target::{Door, Target};

/// Something under test.
pub(crate) enum Server {
    /// A gateway and its Redis.
    Gateway(Target),
    /// The bare server.
    Floor(Floor),
    /// Only a Redis.
    Raw(Arc<Redis>),
}

/// What is not asked of Redis alone.
const NO_CLIENTS: &str = "Redis alone has no clients to bind";

impl Server {
    /// The one gateway of a mode that needs to measure its processes.
    pub(crate) fn measured(target: Target) -> Result<Self> {
        if target.meter.pids.is_empty() {
            return Err("--pid: without the server's process nothing can be measured".into());
        }
        Ok(Self::Gateway(target))
    }

    /// How many nodes it has.
    pub(crate) fn nodes(&self) -> usize {
        if let Self::Gateway(target) = self { target.nodes.len() } else { 1 }
    }

    /// For the accounting of its processes, without Redis.
    pub(crate) fn meter(&self) -> Meter {
        let pids = match self {
            Self::Gateway(target) => target.meter.pids.clone(),
            Self::Floor(floor) => vec![floor.pid()],
            Self::Raw(_) => Vec::new(),
        };
        Meter { pids }
    }

    /// Its Redis, if it has one that we know.
    pub(crate) fn redis(&self) -> Option<&Redis> {
        match self {
            Self::Gateway(target) => target.redis.as_deref(),
            Self::Floor(_) => None,
            Self::Raw(redis) => Some(redis),
        }
    }

    /// What it used so far.
    pub(crate) fn spent(&self) -> Result<Spent> {
        let meter = self.meter();
        let known = !meter.pids.is_empty();
        let nodes = known.then(|| meter.cpu()).transpose()?;
        let resident = known.then(|| meter.resident()).transpose()?;
        Ok(Spent { nodes, redis: self.redis().map(Redis::usage).transpose()?, resident })
    }

    /// Where the clients of each node connect, and how they are bound.
    pub(crate) fn doors(&self) -> Result<Vec<(SocketAddr, Wire)>> {
        match self {
            Self::Gateway(target) => {
                Ok(target.nodes.iter().map(|node| (node.clients, Wire::Http(node.api.clone(), Kind::Uid))).collect())
            }
            Self::Floor(floor) => Ok(vec![(floor.clients, Wire::Floor(floor.control))]),
            Self::Raw(_) => Err(NO_CLIENTS.into()),
        }
    }

    /// How to publish to it.
    pub(crate) fn wire(&self, kind: Kind) -> Result<Wire> {
        match self {
            Self::Gateway(target) => target.wire(kind),
            other => other.wire_through(Door::Http, kind),
        }
    }

    /// How to publish to it through this door, which must be there; the bare server has one for all.
    pub(crate) fn wire_through(&self, door: Door, kind: Kind) -> Result<Wire> {
        match self {
            Self::Gateway(target) => target.wire_through(door, kind),
            Self::Floor(floor) => Ok(Wire::Floor(floor.control)),
            Self::Raw(_) => Err(NO_CLIENTS.into()),
        }
    }

    /// Opens connections for these clients, client `i` to node `home(i)`, and makes sure that the nodes may hold them, those
    /// before them, and `spare` more. `side` is as for [`clients::connect`].
    pub(crate) fn connect(
        &self,
        numbers: Range<usize>,
        spare: usize,
        home: impl Fn(usize) -> usize,
        side: u8,
    ) -> Result<Vec<Connected>> {
        match self {
            Self::Gateway(target) => {
                target.meter.check_descriptors((numbers.end.div_ceil(target.nodes.len().max(1)) + spare) as u64)?;
                let servers: Vec<SocketAddr> = target.nodes.iter().map(|node| node.clients).collect();
                clients::connect(&servers, numbers, home, side, target.trust.as_ref())
            }
            Self::Floor(floor) => clients::connect(&[floor.clients], numbers, |_| 0, side, None),
            Self::Raw(_) => Err(NO_CLIENTS.into()),
        }
    }

    /// Puts each client into its group and binds it to its uid, as `topics` says for its number, through the API of its
    /// node. The bare server has topics for both.
    pub(crate) fn enter(&self, connected: &[Connected], topics: impl Fn(usize) -> [u32; 2]) -> Result<()> {
        match self {
            Self::Gateway(target) => target.callers()?.iter_mut().enumerate().try_for_each(|(node, caller)| {
                let here = connected.iter().enumerate().filter(|(_, client)| client.home == node);
                let commands = here.flat_map(|(number, client)| {
                    let [group, uid] = topics(number);
                    let command = |topic, kind| memberships([(&*client.client_id, topic)].into_iter(), kind);
                    [command(uid, Kind::Uid), command(group, Kind::Group)].into_iter().flatten()
                });
                caller.batch(&commands.collect::<Vec<String>>())
            }),
            Self::Floor(floor) => {
                let members = connected.iter().enumerate();
                let members =
                    members.flat_map(|(number, client)| topics(number).map(|topic| (client.client_id.clone(), topic)));
                floor::join(floor.control, members)
            }
            Self::Raw(_) => Err(NO_CLIENTS.into()),
        }
    }

    /// How many clients the gateway says it has, on all nodes; 0 of the others, which do not say.
    pub(crate) fn listed(&self) -> Result<u64> {
        if let Self::Gateway(target) = self { target.listed() } else { Ok(0) }
    }

    /// How many it lists beside `others`, given time to forget who left until they are no more than `clients`; as many of
    /// the others, which do not say.
    pub(crate) fn settled(&self, others: u64, clients: u64) -> Result<u64> {
        if let Self::Gateway(target) = self { target.settled(others, clients) } else { Ok(clients) }
    }
}

/// The commands that put clients, given as ids, into their topics.
pub(crate) fn memberships<'a>(ids: impl Iterator<Item = (&'a str, u32)>, kind: Kind) -> Vec<String> {
    let command = |(id, topic): (&str, u32)| match kind {
        Kind::Group | Kind::Apart { .. } => {
            format!("{{\"op\":\"joinGroup\",\"client_id\":\"{id}\",\"group\":\"g{topic}\"}}")
        }
        Kind::Uid => format!("{{\"op\":\"bindUid\",\"client_id\":\"{id}\",\"uid\":\"u{topic}\"}}"),
    };
    ids.map(command).collect()
}

/// How many of `clients` are in each of `topics`.
pub(crate) fn members(clients: usize, topics: usize) -> Vec<u32> {
    (0..topics).map(|topic| (clients / topics + usize::from(topic < clients % topics)) as u32).collect()
}

/// The node of a client: those of one topic are spread over all nodes.
pub(crate) fn home(client: usize, topics: usize, nodes: usize) -> usize {
    (client / topics + client % topics) % nodes.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_dealt_to_topics() {
        assert_eq!(members(10, 3), [4, 3, 3]);
        assert_eq!(members(5, 5), [1; 5]);
        assert_eq!(members(7, 1), [7]);
    }

    #[test]
    fn clients_of_each_topic_are_dealt_to_nodes() {
        for (clients, topics, nodes) in [(8, 1, 2), (8, 2, 2), (12, 4, 3), (9, 9, 3)] {
            let mut on = vec![0; nodes];
            (0..clients).for_each(|client| on[home(client, topics, nodes)] += 1);
            assert_eq!(on, vec![clients / nodes; nodes], "{clients} clients, {topics} topics");
            let of_first = (0..clients).step_by(topics).map(|client| home(client, topics, nodes));
            let used: std::collections::BTreeSet<usize> = of_first.collect();
            assert_eq!(used.len(), nodes.min(clients / topics), "{clients} clients, {topics} topics");
        }
    }

    #[test]
    fn membership_commands() {
        let commands = memberships([("ab", 3)].into_iter(), Kind::Uid);
        assert_eq!(commands, [r#"{"op":"bindUid","client_id":"ab","uid":"u3"}"#]);
        let commands = memberships([("ab", 3)].into_iter(), Kind::Group);
        assert_eq!(commands, [r#"{"op":"joinGroup","client_id":"ab","group":"g3"}"#]);
    }
}
