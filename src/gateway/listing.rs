//! Queries that list: whole up to [`MAX_ITEMS`], or in pages.
//!
//! A page is the `limit` smallest names behind the cursor, which is simply the last name of the page before: what is
//! there throughout is on exactly one page, whatever comes and goes meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::{Failure, Gateway};
use crate::cluster::Entry;
use crate::command::{Command, Limit, Reply};
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

    /// The names of the answer, and the cursor behind them.
    fn choose(&self, names: impl IntoIterator<Item = K>) -> Result<(Vec<K>, Option<K>), Failure> {
        let behind = |name: &K| self.after.as_ref().is_none_or(|after| name > after);
        let mut names: Vec<K> = names.into_iter().filter(behind).collect();
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
    /// Does not even begin to read what is too much for one answer.
    async fn are_few(&self, window: &Window<ClientId>) -> Result<(), Failure> {
        match window.limit {
            None if self.client_count().await? > MAX_ITEMS as u64 => Err(too_many()),
            _ => Ok(()),
        }
    }

    pub(super) async fn list(&self, query: Command) -> Result<Reply, Failure> {
        match query {
            Command::GetAllClientIdList(c) => {
                let window = Window::new(c.limit, c.cursor.as_ref())?;
                self.are_few(&window).await?;
                let (ids, cursor) = window.choose(self.everyone().await?.into_iter().map(|entry| entry.id))?;
                Ok(window.page(Reply::ClientIds(ids), cursor.as_ref()))
            }
            Command::GetClientIdListByGroup(c) => {
                let window = Window::new(c.limit, c.cursor.as_ref())?;
                let (ids, cursor) = window.choose(self.members(c.group.items()).await?.concat())?;
                Ok(window.page(Reply::ClientIds(ids), cursor.as_ref()))
            }
            Command::GetAllClientSessions(c) => {
                let window = Window::new(c.limit, c.cursor.as_ref())?;
                self.are_few(&window).await?;
                let ids = self.everyone().await?.into_iter().map(|entry| entry.id).collect();
                self.sessions(ids, &window).await
            }
            Command::GetClientSessionsByGroup(c) => {
                let window = Window::new(c.limit, c.cursor.as_ref())?;
                self.sessions(self.members(&[c.group]).await?.concat(), &window).await
            }
            Command::GetUidListByGroup(c) => {
                let window = Window::<Uid>::new(c.limit, c.cursor.as_ref())?;
                let (uids, cursor) = window.choose(self.uids_in(c.group.items()).await?)?;
                Ok(window.page(Reply::Uids(uids), cursor.as_ref().map(Uid::as_str).as_ref()))
            }
            Command::GetUidCountByGroup(c) => Ok(Reply::Count(self.uids_in(&[c.group]).await?.len() as u64)),
            Command::GetAllUidList(c) => {
                let window = Window::<Uid>::new(c.limit, c.cursor.as_ref())?;
                let (uids, cursor) = window.choose(self.everyone().await?.into_iter().filter_map(|entry| entry.uid))?;
                Ok(window.page(Reply::Uids(uids), cursor.as_ref().map(Uid::as_str).as_ref()))
            }
            Command::GetAllUidCount(_) => {
                let uids: BTreeSet<Uid> = self.everyone().await?.into_iter().filter_map(|entry| entry.uid).collect();
                Ok(Reply::Count(uids.len() as u64))
            }
            Command::GetAllGroupIdList(c) => {
                let window = Window::new(c.limit, c.cursor.as_ref())?;
                let (groups, cursor) =
                    window.choose(self.everyone().await?.into_iter().flat_map(|entry| entry.groups))?;
                Ok(window.page(Reply::Groups(groups), cursor.as_ref().map(Group::as_str).as_ref()))
            }
            Command::GetAllGroupClientIdCount(_) => {
                let (clients, _) = self.by_group(&WHOLE, |entry| Some(entry.id), false).await?;
                Ok(Reply::GroupCounts(counts(&clients)))
            }
            Command::GetAllGroupUidCount(_) => {
                let (uids, _) = self.by_group(&WHOLE, |entry| entry.uid.clone(), false).await?;
                Ok(Reply::GroupCounts(counts(&uids)))
            }
            Command::GetAllGroupUidList(c) => {
                let window = Window::new(c.limit, c.cursor.as_ref())?;
                let (uids, cursor) = self.by_group(&window, |entry| entry.uid.clone(), true).await?;
                Ok(window.page(Reply::GroupUids(uids), cursor.as_ref().map(Group::as_str).as_ref()))
            }
            Command::GetAllGroupClientIdList(c) => {
                let window = Window::new(c.limit, c.cursor.as_ref())?;
                let (clients, cursor) = self.by_group(&window, |entry| Some(entry.id), true).await?;
                Ok(window.page(Reply::GroupClients(clients), cursor.as_ref().map(Group::as_str).as_ref()))
            }
            other => Err(Invalid::field("op", format_args!("{} cannot be run by itself", other.name())).into()),
        }
    }

    /// The uids in any of these groups.
    async fn uids_in(&self, groups: &[Group]) -> Result<BTreeSet<Uid>, Failure> {
        let members: BTreeSet<ClientId> = self.members(groups).await?.into_iter().flatten().collect();
        let members: Vec<ClientId> = members.into_iter().collect();
        Ok(self.uids_of(&members).await?.into_iter().flatten().collect())
    }

    /// The sessions of those of these clients that the window shows.
    async fn sessions(&self, ids: Vec<ClientId>, window: &Window<ClientId>) -> Result<Reply, Failure> {
        let (ids, cursor) = window.choose(ids)?;
        let facts = self.facts(&ids).await?;
        let shown = ids.into_iter().zip(facts).filter_map(|(id, facts)| Some((id, facts?.session.unwrap_or_default())));
        Ok(window.page(Reply::Sessions(shown.collect()), cursor.as_ref()))
    }

    /// Something of each client by group, each once; `bounded`: the items of an answer without pages are counted.
    async fn by_group<T: Ord>(
        &self,
        window: &Window<Group>,
        of: impl Fn(&Entry) -> Option<T>,
        bounded: bool,
    ) -> Result<(BTreeMap<Group, Vec<T>>, Option<Group>), Failure> {
        let everyone = self.everyone().await?;
        let (groups, cursor) = window.choose(everyone.iter().flat_map(|entry| entry.groups.iter().cloned()))?;
        let mut answer: BTreeMap<Group, Vec<T>> = groups.into_iter().map(|group| (group, Vec::new())).collect();
        for entry in &everyone {
            for group in &entry.groups {
                if let Some(items) = answer.get_mut(group) {
                    items.extend(of(entry));
                }
            }
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
}

/// Everything.
const WHOLE: Window<Group> = Window { after: None, limit: None };

fn counts<T>(by_group: &BTreeMap<Group, Vec<T>>) -> BTreeMap<Group, u64> {
    by_group.iter().map(|(group, items)| (group.clone(), items.len() as u64)).collect()
}
