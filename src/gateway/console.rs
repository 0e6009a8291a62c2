//! What the console shows and no command answers: names by size, and all about a client.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use serde::Serialize;
use utoipa::ToSchema;

use super::{Failure, Gateway};
use crate::cluster::Entry;
use crate::id::{ClientId, Group, Uid};
use crate::session::Session;

/// Of so many clients the names are counted; where there are more, of as many on each node.
const MOST_COUNTED: usize = 100_000;

/// A uid or group, and how many clients it has.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Size {
    /// The uid or group.
    pub(crate) name: String,
    /// Its clients, on all nodes.
    pub(crate) clients: u64,
}

/// Uids or groups, those with the most clients first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Sizes {
    /// A page of them.
    pub(crate) items: Vec<Size>,
    /// For the next page; null at the end.
    pub(crate) cursor: Option<String>,
    /// How many there are among the clients that were looked at.
    pub(crate) total: u64,
    /// Whether all clients were looked at. Beyond 100,000 it is a part of them; then small ones may be missing, and the
    /// order is that of the part. `clients` are those of all nodes all the same.
    pub(crate) complete: bool,
}

/// All about a client.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Profile {
    client_id: ClientId,
    /// The node that holds it.
    node: String,
    uid: Option<Uid>,
    groups: Vec<Group>,
    /// Null when none was set.
    session: Option<Session>,
    #[schema(value_type = Option<String>)]
    ip: Option<IpAddr>,
    /// Unix ms.
    connected_at: Option<u64>,
}

impl Gateway {
    /// All about those of these clients that are online.
    pub(crate) async fn profiles(&self, ids: &[ClientId]) -> Result<Vec<Profile>, Failure> {
        let (facts, groups) = tokio::try_join!(self.facts(ids), self.groups_of(ids))?;
        let profile = |((client_id, facts), mut groups): ((&ClientId, Option<_>), Vec<Group>)| {
            let crate::cluster::Facts { uid, session, node, ip, connected_at } = facts?;
            groups.sort_unstable();
            Some(Profile { client_id: *client_id, node, uid, groups, session, ip, connected_at })
        };
        Ok(ids.iter().zip(facts).zip(groups).filter_map(profile).collect())
    }

    /// The groups by size: so many after the first `from`.
    pub(crate) async fn groups_by_size(&self, from: usize, limit: usize) -> Result<Sizes, Failure> {
        let here = |counts: &mut HashMap<_, _>| {
            self.hub.for_each_group(|group, clients| counts.extend([(group.clone(), clients)]));
        };
        let (counts, complete) = self.counted(|entry| entry.groups, here).await?;
        let (names, total) = largest(counts, from, limit);
        let sizes = self.group_sizes(&names).await?;
        let names = names.iter().map(Group::as_str).zip(sizes);
        Ok(sizes_of(names, from + limit, total, complete))
    }

    /// The uids by size: so many after the first `from`.
    pub(crate) async fn uids_by_size(&self, from: usize, limit: usize) -> Result<Sizes, Failure> {
        let here = |counts: &mut HashMap<_, _>| {
            self.hub.for_each_uid(|uid, clients| counts.extend([(uid.clone(), clients)]));
        };
        let (counts, complete) = self.counted(|entry| entry.uid, here).await?;
        let (names, total) = largest(counts, from, limit);
        let sizes = self.uid_sizes(&names).await?;
        let names = names.iter().map(Uid::as_str).zip(sizes);
        Ok(sizes_of(names, from + limit, total, complete))
    }

    /// How often each name comes among the clients of all nodes, and whether these are all; on a node that is alone it
    /// counts by itself.
    async fn counted<N: Hash + Eq, I: IntoIterator<Item = N>>(
        &self,
        names: impl Fn(Entry) -> I,
        here: impl FnOnce(&mut HashMap<N, usize>),
    ) -> Result<(HashMap<N, usize>, bool), Failure> {
        let mut counts = HashMap::new();
        let Some(cluster) = &self.cluster else {
            here(&mut counts);
            return Ok((counts, true));
        };
        let (entries, complete) = cluster.some(MOST_COUNTED).await?;
        for name in entries.into_iter().flat_map(names) {
            *counts.entry(name).or_insert(0) += 1;
        }
        Ok((counts, complete))
    }
}

/// The `limit` largest after the `from` largest, and how many there are in all.
fn largest<N: Ord + Clone>(counts: HashMap<N, usize>, from: usize, limit: usize) -> (Vec<N>, usize) {
    let (total, end) = (counts.len(), from.saturating_add(limit));
    let mut names: Vec<(Reverse<usize>, N)> =
        counts.into_iter().map(|(name, clients)| (Reverse(clients), name)).collect();
    // Only what is shown is sorted.
    if end < total {
        names.select_nth_unstable(end);
        names.truncate(end);
    }
    names.sort_unstable();
    (names.into_iter().skip(from).map(|(_, name)| name).collect(), total)
}

fn sizes_of<'a>(names: impl Iterator<Item = (&'a str, u64)>, end: usize, total: usize, complete: bool) -> Sizes {
    // Those that have gone meanwhile are left out.
    let sizes = names.filter(|(_, clients)| *clients > 0);
    let items = sizes.map(|(name, clients)| Size { name: name.to_owned(), clients }).collect();
    Sizes { items, cursor: (end < total).then(|| end.to_string()), total: total as u64, complete }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_by_size_hold_each_name_once_the_largest_first() {
        let counts: HashMap<String, usize> = (0..25).map(|n| (format!("{n:02}"), n / 3)).collect();
        let mut pages = Vec::new();
        for from in [0, 10, 20, 30] {
            let (names, total) = largest(counts.clone(), from, 10);
            assert_eq!(total, 25);
            pages.extend(names);
        }
        let mut all: Vec<String> = counts.keys().cloned().collect();
        all.sort_by_key(|name| (Reverse(counts[name]), name.clone()));
        assert_eq!(pages, all);
    }
}
