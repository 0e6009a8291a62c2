//! Queries that list: whole up to [`MAX_ITEMS`], or in pages.
//!
//! A page is the `limit` smallest names behind the cursor, which is simply the last name of the page before: what is
//! there throughout is on exactly one page, whatever comes and goes meanwhile.

use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;

use super::{Failure, Gateway};
use crate::command::{Command, Limit, Reply};
use crate::hub::{Shard, View};
use crate::id::{ClientId, Group, Uid};
use crate::json::Invalid;

/// The most items of an answer that was not asked for in pages.
const MAX_ITEMS: usize = 100_000;

/// What part of a listing is asked for.
#[derive(Debug, Clone)]
struct Window<K> {
    after: Option<K>,
    limit: Option<usize>,
}

impl<K: FromStr + Ord + Clone> Window<K> {
    fn new(limit: Option<Limit>, cursor: Option<&String>) -> Result<Self, Failure> {
        if limit.is_none() && cursor.is_some() {
            return Err(Invalid::field("cursor", "goes with limit").into());
        }
        let after = cursor
            .map(|text| text.parse().map_err(|_| Invalid::field("cursor", "is not from an answer of this query")))
            .transpose()?;
        Ok(Self { after, limit: limit.map(|limit| limit.0) })
    }

    /// The smallest names of the window, and one more than will be shown, so that the end can be told.
    fn smallest(&self, names: impl Iterator<Item = K>) -> Vec<K> {
        let most = self.limit.unwrap_or(MAX_ITEMS) + 1;
        let mut chosen: Vec<K> = names.filter(|name| self.after.as_ref().is_none_or(|after| name > after)).collect();
        if chosen.len() > most {
            chosen.select_nth_unstable(most - 1);
            chosen.truncate(most);
        }
        chosen
    }

    /// Puts what the shards chose together: the names of the answer, and the cursor behind them.
    fn merge(&self, mut names: Vec<K>) -> Result<(Vec<K>, Option<K>), Failure> {
        names.sort_unstable();
        names.dedup();
        match self.limit {
            None if names.len() > MAX_ITEMS => Err(too_many()),
            None => Ok((names, None)),
            Some(limit) => {
                let more = names.len() > limit;
                names.truncate(limit);
                let cursor = names.last().filter(|_| more).cloned();
                Ok((names, cursor))
            }
        }
    }

    fn page(&self, items: Reply, cursor: Option<&impl ToString>) -> Reply {
        match self.limit {
            None => items,
            Some(_) => Reply::Page { items: Box::new(items), cursor: cursor.map(ToString::to_string) },
        }
    }
}

fn too_many() -> Failure {
    Failure::TooLarge(format!("the answer has more than {MAX_ITEMS} items; ask for pages with limit"))
}

impl Gateway {
    pub(super) async fn list(&self, query: Command) -> Result<Reply, Failure> {
        match query {
            Command::GetAllClientIdList(c) => self.client_ids(None, &Window::new(c.limit, c.cursor.as_ref())?).await,
            Command::GetClientIdListByGroup(c) => {
                let window = Window::new(c.limit, c.cursor.as_ref())?;
                self.client_ids(Some(c.group.into_items()), &window).await
            }
            Command::GetAllClientSessions(c) => self.sessions(None, &Window::new(c.limit, c.cursor.as_ref())?).await,
            Command::GetClientSessionsByGroup(c) => {
                self.sessions(Some(vec![c.group]), &Window::new(c.limit, c.cursor.as_ref())?).await
            }
            Command::GetUidListByGroup(c) => {
                let window = Window::<Uid>::new(c.limit, c.cursor.as_ref())?;
                let (groups, chosen) = (c.group.into_items(), window.clone());
                let named = groups.clone();
                let uids = self
                    .hub
                    .at_groups(&groups, move |shard| chosen.smallest(uids_of(shard, &named).into_iter()))
                    .await?;
                let (uids, cursor) = window.merge(uids.concat())?;
                Ok(window.page(Reply::Uids(uids), cursor.as_ref().map(Uid::as_str).as_ref()))
            }
            Command::GetUidCountByGroup(c) => {
                let group = c.group.clone();
                let uids =
                    self.hub.at_groups(&[c.group], move |shard| uids_of(shard, std::slice::from_ref(&group))).await?;
                Ok(Reply::Count(uids.into_iter().flatten().collect::<HashSet<_>>().len() as u64))
            }
            Command::GetAllUidList(c) => {
                let window = Window::<Uid>::new(c.limit, c.cursor.as_ref())?;
                let mut uids = Vec::new();
                self.hub.for_each_uid(|uid, _| uids.push(uid.clone()));
                let (uids, cursor) = window.merge(window.smallest(uids.into_iter()))?;
                Ok(window.page(Reply::Uids(uids), cursor.as_ref().map(Uid::as_str).as_ref()))
            }
            Command::GetAllGroupIdList(c) => {
                let window = Window::new(c.limit, c.cursor.as_ref())?;
                let (groups, cursor) = self.groups(&window)?;
                Ok(window.page(Reply::Groups(groups), cursor.as_ref().map(Group::as_str).as_ref()))
            }
            Command::GetAllGroupClientIdCount(_) => {
                let mut counts = BTreeMap::new();
                self.hub.for_each_group(|group, members| {
                    counts.insert(group.clone(), members as u64);
                });
                if counts.len() > MAX_ITEMS { Err(too_many()) } else { Ok(Reply::GroupCounts(counts)) }
            }
            Command::GetAllGroupUidCount(_) => {
                let uids =
                    self.by_group(&Window { after: None, limit: None }, |client| client.uid.cloned(), false).await?.0;
                Ok(Reply::GroupCounts(uids.into_iter().map(|(group, uids)| (group, uids.len() as u64)).collect()))
            }
            Command::GetAllGroupUidList(c) => {
                let window = Window::new(c.limit, c.cursor.as_ref())?;
                let (uids, cursor) = self.by_group(&window, |client| client.uid.cloned(), true).await?;
                Ok(window.page(Reply::GroupUids(uids), cursor.as_ref().map(Group::as_str).as_ref()))
            }
            Command::GetAllGroupClientIdList(c) => {
                let window = Window::new(c.limit, c.cursor.as_ref())?;
                let (clients, cursor) = self.by_group(&window, |client| Some(client.id), true).await?;
                Ok(window.page(Reply::GroupClients(clients), cursor.as_ref().map(Group::as_str).as_ref()))
            }
            other => Err(Invalid::field("op", format_args!("{} cannot be run by itself", other.name())).into()),
        }
    }

    /// Clients of any of these groups, or all.
    async fn client_ids(&self, groups: Option<Vec<Group>>, window: &Window<ClientId>) -> Result<Reply, Failure> {
        let chosen = window.clone();
        let ids =
            self.at(groups, move |shard, groups| chosen.smallest(views(shard, groups).map(|client| client.id))).await?;
        let (ids, cursor) = window.merge(ids.concat())?;
        Ok(window.page(Reply::ClientIds(ids), cursor.as_ref()))
    }

    /// Sessions of the clients of any of these groups, or of all.
    async fn sessions(&self, groups: Option<Vec<Group>>, window: &Window<ClientId>) -> Result<Reply, Failure> {
        let chosen = window.clone();
        let found = self.at(groups, move |shard, groups| {
            let ids = chosen.smallest(views(shard, groups).map(|client| client.id));
            let session = |id| shard.view(id).and_then(|client| client.session).cloned().unwrap_or_default();
            ids.into_iter().map(|id| (id, session(id))).collect::<Vec<_>>()
        });
        let mut sessions: BTreeMap<_, _> = found.await?.into_iter().flatten().collect();
        let (ids, cursor) = window.merge(sessions.keys().copied().collect())?;
        let shown = ids.into_iter().filter_map(|id| sessions.remove_entry(&id)).collect();
        Ok(window.page(Reply::Sessions(shown), cursor.as_ref()))
    }

    fn groups(&self, window: &Window<Group>) -> Result<(Vec<Group>, Option<Group>), Failure> {
        let mut groups = Vec::new();
        self.hub.for_each_group(|group, _| groups.push(group.clone()));
        window.merge(window.smallest(groups.into_iter()))
    }

    /// Something of each client by group, each once; `bounded`: the items of an answer without pages are counted.
    async fn by_group<T: Ord + std::hash::Hash + Send + 'static>(
        &self,
        window: &Window<Group>,
        of: impl Fn(&View<'_>) -> Option<T> + Send + Sync + 'static,
        bounded: bool,
    ) -> Result<(BTreeMap<Group, Vec<T>>, Option<Group>), Failure> {
        let (groups, cursor) = self.groups(window)?;
        let named = groups.clone();
        let found = self.hub.at_groups(&groups, move |shard| {
            let members = |group: &Group| shard.of_group(group).filter_map(|client| of(&client)).collect::<Vec<_>>();
            named.iter().map(|group| (group.clone(), members(group))).collect::<Vec<_>>()
        });
        let found = found.await?;
        let mut answer: BTreeMap<Group, Vec<T>> = groups.into_iter().map(|group| (group, Vec::new())).collect();
        for (group, items) in found.into_iter().flatten() {
            answer.entry(group).or_default().extend(items);
        }
        for items in answer.values_mut() {
            items.sort_unstable();
            items.dedup();
        }
        if bounded && window.limit.is_none() && answer.values().map(Vec::len).sum::<usize>() > MAX_ITEMS {
            return Err(too_many());
        }
        Ok((answer, cursor))
    }

    /// Asks the shards that hold any of these groups, or all.
    async fn at<T: Send + 'static>(
        &self,
        groups: Option<Vec<Group>>,
        ask: impl Fn(&Shard, Option<&[Group]>) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Failure> {
        Ok(match groups {
            None => self.hub.at_all(move |shard| ask(shard, None)).await?,
            Some(groups) => {
                let named = groups.clone();
                self.hub.at_groups(&groups, move |shard| ask(shard, Some(&named))).await?
            }
        })
    }
}

/// The clients of any of these groups, or all; a client of several groups comes several times.
fn views<'a>(shard: &'a Shard, groups: Option<&'a [Group]>) -> Box<dyn Iterator<Item = View<'a>> + 'a> {
    match groups {
        None => Box::new(shard.all()),
        Some([group]) => Box::new(shard.of_group(group)),
        Some(groups) => {
            let mut seen = HashSet::new();
            Box::new(groups.iter().flat_map(|group| shard.of_group(group)).filter(move |client| seen.insert(client.id)))
        }
    }
}

fn uids_of(shard: &Shard, groups: &[Group]) -> HashSet<Uid> {
    groups.iter().flat_map(|group| shard.of_group(group)).filter_map(|client| client.uid.cloned()).collect()
}
