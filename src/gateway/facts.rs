//! Where queries have their facts from: this node's hub when it is alone, else the directory in Redis.

use super::{Failure, Gateway};
use crate::cluster::{Entry, Facts};
use crate::hub::{Shard, View};
use crate::id::{ClientId, Group, Uid};

impl Gateway {
    /// The clients of each of these uids.
    pub(super) async fn clients_of_uids(&self, uids: &[Uid]) -> Result<Vec<Vec<ClientId>>, Failure> {
        if let Some(cluster) = &self.cluster {
            return Ok(cluster.clients_of_uids(uids).await?);
        }
        let named = uids.to_vec();
        let of = move |shard: &mut Shard| {
            named.iter().map(|uid| shard.of_uid(uid).filter(is_known).map(|client| client.id).collect()).collect()
        };
        Ok(merged(uids.len(), self.hub.begin_at_uids(uids, of).await?.all().await?))
    }

    /// The clients of a uid.
    pub(super) async fn clients_of_uid(&self, uid: &Uid) -> Result<Vec<ClientId>, Failure> {
        Ok(self.clients_of_uids(std::slice::from_ref(uid)).await?.into_iter().flatten().collect())
    }

    /// How many clients each of these uids has.
    pub(super) async fn uid_sizes(&self, uids: &[Uid]) -> Result<Vec<u64>, Failure> {
        match &self.cluster {
            Some(cluster) => Ok(cluster.uid_sizes(uids).await?),
            None => Ok(uids.iter().map(|uid| self.hub.uid_size(uid) as u64).collect()),
        }
    }

    /// Which of these uids are online.
    pub(super) async fn uids_online(&self, uids: &[Uid]) -> Result<Vec<bool>, Failure> {
        Ok(self.uid_sizes(uids).await?.into_iter().map(|size| size > 0).collect())
    }

    /// The members of each of these groups.
    pub(super) async fn members(&self, groups: &[Group]) -> Result<Vec<Vec<ClientId>>, Failure> {
        if let Some(cluster) = &self.cluster {
            return Ok(cluster.members(groups).await?);
        }
        let named = groups.to_vec();
        let of = move |shard: &mut Shard| {
            named.iter().map(|group| shard.of_group(group).filter(is_known).map(|client| client.id).collect()).collect()
        };
        Ok(merged(groups.len(), self.hub.begin_at_groups(groups, of).await?.all().await?))
    }

    /// How many members each of these groups has.
    pub(super) async fn group_sizes(&self, groups: &[Group]) -> Result<Vec<u64>, Failure> {
        match &self.cluster {
            Some(cluster) => Ok(cluster.group_sizes(groups).await?),
            None => Ok(groups.iter().map(|group| self.hub.group_size(group) as u64).collect()),
        }
    }

    /// The uids of these clients, of those that have one.
    pub(super) async fn uids_of(&self, ids: &[ClientId]) -> Result<Vec<Option<Uid>>, Failure> {
        match &self.cluster {
            Some(cluster) => Ok(cluster.uids_of(ids).await?),
            None => self
                .views(ids, |client| client.uid.cloned())
                .await
                .map(|uids| uids.into_iter().map(Option::flatten).collect()),
        }
    }

    /// What is known of each of these clients; none of those that are not online.
    pub(super) async fn facts(&self, ids: &[ClientId]) -> Result<Vec<Option<Facts>>, Failure> {
        match &self.cluster {
            Some(cluster) => Ok(cluster.facts(ids).await?),
            None => {
                let node = self.hub.events().origin().node.clone();
                let facts = move |client: View<'_>| {
                    let (uid, session) = (client.uid.cloned(), client.session.cloned());
                    let (ip, connected_at) = (client.arrival.peer.ip(), client.arrival.connected_at);
                    Facts { uid, session, node: node.clone(), ip: Some(ip), connected_at: Some(connected_at) }
                };
                self.views(ids, facts).await
            }
        }
    }

    /// The groups of each of these clients.
    pub(super) async fn groups_of(&self, ids: &[ClientId]) -> Result<Vec<Vec<Group>>, Failure> {
        match &self.cluster {
            Some(cluster) => Ok(cluster.groups_of(ids).await?),
            None => {
                let groups = self.views(ids, |client| client.groups.to_vec()).await?;
                Ok(groups.into_iter().map(Option::unwrap_or_default).collect())
            }
        }
    }

    /// How many clients there are.
    pub(super) async fn client_count(&self) -> Result<u64, Failure> {
        match &self.cluster {
            Some(cluster) => Ok(cluster.client_count().await?),
            None => {
                // Whoever was let in before this is asked is counted: the shards have come so far then.
                self.hub.at_all(|_| ()).await?;
                Ok(self.hub.clients() as u64)
            }
        }
    }

    /// All clients with their uids and groups.
    pub(super) async fn everyone(&self) -> Result<Vec<Entry>, Failure> {
        if let Some(cluster) = &self.cluster {
            return Ok(cluster.everyone().await?);
        }
        let entry =
            |client: View<'_>| Entry { id: client.id, uid: client.uid.cloned(), groups: client.groups.to_vec() };
        let found = self.hub.at_all(move |shard| shard.all().filter(is_known).map(entry).collect::<Vec<_>>()).await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Something of each of these clients of the hub.
    async fn views<T: Send + 'static>(
        &self,
        ids: &[ClientId],
        of: impl Fn(View<'_>) -> T + Send + Sync + 'static,
    ) -> Result<Vec<Option<T>>, Failure> {
        if let [id] = *ids {
            let found = self.hub.begin_at_client(id, move |shard| shard.view(id).filter(is_known).map(of)).await?;
            return Ok(vec![found.one().await?]);
        }
        let named = ids.to_vec();
        let found = self
            .hub
            .at_all(move |shard| named.iter().map(|id| shard.view(*id).filter(is_known).map(&of)).collect::<Vec<_>>());
        let mut answer: Vec<Option<T>> = ids.iter().map(|_| None).collect();
        for found in found.await? {
            for (place, found) in answer.iter_mut().zip(found) {
                *place = found.or(place.take());
            }
        }
        Ok(answer)
    }
}

/// Whoever is still shaking hands is known to PHP's workers alone.
fn is_known(client: &View<'_>) -> bool {
    !client.is_guest
}

/// Puts together what the shards found for each name.
fn merged(names: usize, shards: Vec<Vec<Vec<ClientId>>>) -> Vec<Vec<ClientId>> {
    let mut merged = vec![Vec::new(); names];
    for shard in shards {
        for (place, found) in merged.iter_mut().zip(shard) {
            place.extend(found);
        }
    }
    merged
}
