//! What each command does, with this node's clients alone: whoever sends one asks every node itself.
//!
//! All commands of all connections come here one after the other, and what they do is put into the shards' inboxes in
//! this order; so a command sees whatever was received before it, on whichever connection. Answers are made later.
//!
//! PHP's end is told of no mistake. What cannot be done (a name that is not UTF-8, a session beyond its limit) is
//! ignored, counted, and said in the log.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::ext::Json;
use super::packet::{Packet, RAW, SCALAR, command};
use super::{serialize, session};
use crate::gateway::Gateway;
use crate::hub::{Begun, Except, Shard, Stopped, Target, View};
use crate::id::{ClientId, Group, Uid};
use crate::message::{Close, Message};
use crate::metrics::{Outcome, Reason};
use crate::session::Session;
use crate::throttle::Throttle;

/// The payload of an answer, when the shards have said their part; none when this node stops.
pub(super) type Answer = BoxFuture<'static, Option<Vec<u8>>>;

/// What PHP calls empty: no uid or group has such a name.
fn is_empty(name: &[u8]) -> bool {
    matches!(name, b"" | b"0")
}

/// Carries commands out.
pub(super) struct Commands {
    pub(super) gateway: Arc<Gateway>,
    complain: Throttle,
    were_used: AtomicBool,
}

impl Commands {
    pub(super) fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway, complain: Throttle::default(), were_used: AtomicBool::new(false) }
    }

    /// Whether there was any.
    pub(super) fn were_used(&self) -> bool {
        self.were_used.load(Ordering::Relaxed)
    }

    /// Begins a command; returns what a question will be answered with. Waits for nothing but room in the inboxes.
    pub(super) async fn begin(&self, packet: Packet<'_>) -> Result<Option<Answer>, Stopped> {
        let Some(op) = op(packet.command) else { return Ok(None) };
        self.were_used.store(true, Ordering::Relaxed);
        let answer = Box::pin(self.carry_out(packet)).await?;
        self.gateway.metrics().commands.get_or_create(&Outcome { op, outcome: "ok" }).inc();
        Ok(answer)
    }

    async fn carry_out(&self, packet: Packet<'_>) -> Result<Option<Answer>, Stopped> {
        let Packet { ext, connection, .. } = packet;
        match packet.command {
            command::SEND_TO_ONE => self.send(&packet, Target::Clients([self.id(connection)].into()), None).await?,
            command::SEND_TO_ALL => self.send_to_all(&packet).await?,
            command::SEND_TO_UID => {
                for uid in Json::of(ext).values().filter_map(|uid| Uid::from_str(uid).ok()) {
                    self.send(&packet, Target::Uids([uid].into()), None).await?;
                }
            }
            command::SEND_TO_GROUP => {
                let json = Json::of(ext);
                let except = json.get("exclude").and_then(|exclude| self.except(exclude));
                let groups = json.get("group").into_iter().flat_map(Json::values);
                for group in groups.filter_map(|group| Group::from_str(group).ok()) {
                    self.send(&packet, Target::Groups([group].into()), except.clone()).await?;
                }
            }
            command::KICK => {
                let last = self.message(&packet);
                self.change(connection, move |shard, id| shard.close(id, last.as_ref(), &Close::CLOSED)).await?;
            }
            command::DESTROY => self.change(connection, Shard::destroy).await?,
            command::BIND_UID => {
                if let Some(uid) = self.name::<Uid>(ext) {
                    self.change(connection, move |shard, id| shard.bind(id, &uid, false)).await?;
                }
            }
            command::UNBIND_UID => self.change(connection, |shard, id| shard.unbind(id, None)).await?,
            command::JOIN_GROUP => {
                if let Some(group) = self.name::<Group>(ext) {
                    let (most, refused) = (self.gateway.max_groups(), self.gateway.metrics().php_ignored.clone());
                    let join = move |shard: &mut Shard, id: ClientId| {
                        if shard.join(id, &[group], most).is_err() {
                            refused.get_or_create(&Reason { reason: "too_many_groups" }).inc();
                        }
                    };
                    self.change(connection, join).await?;
                }
            }
            command::LEAVE_GROUP => {
                if let Some(group) = self.name::<Group>(ext) {
                    self.change(connection, move |shard, id| shard.leave(id, &[group])).await?;
                }
            }
            command::UNGROUP => {
                if let Some(group) = self.name::<Group>(ext) {
                    let named = group.clone();
                    let ungroup = move |shard: &mut Shard| shard.ungroup(&named);
                    // What comes of it, nobody asks.
                    drop(self.gateway.hub().begin_at_groups(&[group], ungroup).await?);
                }
            }
            command::SET_SESSION => {
                if let Some(session) = self.session(ext) {
                    let set = move |shard: &mut Shard, id: ClientId| {
                        shard.change_session(id, |_| Ok::<_, ()>(session));
                    };
                    self.change(connection, set).await?;
                }
            }
            command::UPDATE_SESSION => self.update_session(connection, ext).await?,
            _ => return self.question(packet).await.map(Some),
        }
        Ok(None)
    }

    // --- sending ---

    async fn send_to_all(&self, packet: &Packet<'_>) -> Result<(), Stopped> {
        let json = Json::of(packet.ext);
        let (to, except) = match json.get("connections") {
            Some(connections) => {
                (Target::Clients(connections.values().filter_map(|id| self.client(id)).collect()), None)
            }
            None => (Target::All, json.get("exclude").and_then(|exclude| self.except(exclude))),
        };
        self.send(packet, to, except).await
    }

    async fn send(&self, packet: &Packet<'_>, to: Target, except: Option<Arc<Except>>) -> Result<(), Stopped> {
        if let Some(message) = self.message(packet) {
            self.gateway.hub().send_to_guests_too(to, except, message).await?;
        }
        Ok(())
    }

    /// A packet's message; none of a null that says "no message", nor of what cannot be sent.
    fn message(&self, packet: &Packet<'_>) -> Option<Message> {
        let Packet { body, flags, .. } = *packet;
        let message = match (flags & SCALAR != 0, flags & RAW != 0) {
            (true, false) => return Some(Message::text_of(body)),
            (true, true) => (!body.is_empty()).then(|| Message::raw(body)),
            (false, true) => None,
            (false, false) => match serialize::parse(body) {
                Ok(serialize::Value::Null) if packet.command == command::KICK => return None,
                Ok(serialize::Value::Bytes(text)) => Some(Message::text_of(&text)),
                Ok(value @ (serialize::Value::Null | serialize::Value::Array(_))) => {
                    serialize::message_json(&value).map(|json| Message::text(&json).only_websocket())
                }
                _ => None,
            },
        };
        if message.is_none() {
            self.ignored("message", "a message that cannot be written as JSON, or is nothing");
        }
        message
    }

    fn except(&self, exclude: &Json<'_>) -> Option<Arc<Except>> {
        let clients: Vec<ClientId> = exclude.keys().filter_map(|id| self.client(id)).collect();
        (!clients.is_empty()).then(|| Arc::new(Except { clients, uids: Vec::new() }))
    }

    // --- changes ---

    /// Changes a client that may or may not be here; nobody waits for it.
    async fn change<T: Send + 'static>(
        &self,
        connection: u32,
        change: impl FnOnce(&mut Shard, ClientId) -> T + Send + 'static,
    ) -> Result<(), Stopped> {
        let id = self.id(connection);
        drop(self.gateway.hub().begin_at_client(id, move |shard| change(shard, id)).await?);
        Ok(())
    }

    /// PHP's session as it is kept; none when it is too large. Of an empty one nothing is kept.
    #[allow(clippy::option_option)] // "ignore it" and "clear it"
    fn session(&self, php: &[u8]) -> Option<Option<Session>> {
        if php.is_empty() {
            return Some(None);
        }
        let session = Session::of_compact(session::to_json(php));
        if self.gateway.check_session(&session).is_err() {
            self.ignored("session", "a session beyond MOONGATE_MAX_SESSION_SIZE");
            return None;
        }
        Some(Some(session))
    }

    async fn update_session(&self, connection: u32, update: &[u8]) -> Result<(), Stopped> {
        let Some(as_it_is) = self.session(update) else { return Ok(()) };
        let (update, gateway) = (update.to_vec(), Arc::clone(&self.gateway));
        self.change(connection, move |shard, id| {
            let updated = shard.change_session::<()>(id, |stored| {
                let stored = stored.map(|stored| session::to_php(stored.as_str())).unwrap_or_default();
                if is_empty(&stored) {
                    return Ok(as_it_is);
                }
                let merged = merged(&stored, &update).ok_or(())?;
                let merged = Session::of_compact(session::to_json(&merged));
                gateway.check_session(&merged).map_err(drop)?;
                Ok(Some(merged))
            });
            if updated == Some(Err(())) {
                gateway.metrics().php_ignored.get_or_create(&Reason { reason: "session" }).inc();
            }
        })
        .await
    }

    // --- questions ---

    async fn question(&self, packet: Packet<'_>) -> Result<Answer, Stopped> {
        let Packet { ext, connection, .. } = packet;
        let id = self.id(connection);
        let hub = self.gateway.hub();
        Ok(match packet.command {
            command::IS_ONLINE => {
                let online = hub.begin_at_client(id, move |shard| shard.view(id).is_some()).await?;
                answer(online, |online| write(|out| serialize::write_int(online.contains(&true).into(), out)))
            }
            command::GET_SESSION_BY_CLIENT_ID => {
                let stored = move |shard: &mut Shard| shard.view(id).map(|client| session_of(&client));
                let stored = hub.begin_at_client(id, stored).await?;
                answer(stored, |stored| match stored.into_iter().next().flatten() {
                    None => write(serialize::write_null),
                    Some(session) if is_empty(&session) => EMPTY_ARRAY.to_vec(),
                    // As it is stored, and not as a string.
                    Some(session) => session,
                })
            }
            command::GET_CLIENT_ID_BY_UID => {
                let uid = if is_empty(ext) { None } else { std::str::from_utf8(ext).ok() };
                let found = self.clients_of_uids(uid.into_iter().collect()).await?;
                found.map(|found| Some(found?.into_iter().next().map_or(EMPTY_ARRAY.to_vec(), |(_, ids)| ids))).boxed()
            }
            command::BATCH_GET_CLIENT_ID_BY_UID => {
                let json = Json::of(ext);
                let found = self.clients_of_uids(json.values().collect()).await?;
                found.map(|found| Some(map(found?))).boxed()
            }
            command::GET_CLIENT_COUNT_BY_GROUP if ext.is_empty() => {
                let counts = hub.begin_at_all(|shard| shard.all().count()).await?;
                answer(counts, |counts| write(|out| serialize::write_int(sum(counts), out)))
            }
            command::GET_CLIENT_COUNT_BY_GROUP => {
                let group = std::str::from_utf8(ext).ok();
                let counts = self.counts(group.into_iter().collect()).await?;
                let count = |counts: Vec<(String, Vec<u8>)>| counts.into_iter().next().map(|(_, count)| count);
                counts.map(move |counts| Some(count(counts?).unwrap_or_else(|| b"i:0;".to_vec()))).boxed()
            }
            command::BATCH_GET_CLIENT_COUNT_BY_GROUP => {
                let json = Json::of(ext);
                let counts = self.counts(json.values().collect()).await?;
                counts.map(|counts| Some(map(counts?))).boxed()
            }
            command::GET_GROUP_ID_LIST => self.groups().await?,
            command::GET_ALL_CLIENT_SESSIONS => {
                let sessions = hub.begin_at_all(|shard| shard.all().map(session_entry).collect::<Vec<_>>()).await?;
                self.by_client(sessions)
            }
            command::GET_CLIENT_SESSIONS_BY_GROUP => {
                let Some(group) = std::str::from_utf8(ext).ok().and_then(|group| Group::from_str(group).ok()) else {
                    return Ok(nothing());
                };
                let named = group.clone();
                let sessions = move |shard: &mut Shard| shard.of_group(&named).map(session_entry).collect::<Vec<_>>();
                self.by_client(hub.begin_at_groups(&[group], sessions).await?)
            }
            // The last one: `op` lets no other through.
            _ => self.select(ext).await?,
        })
    }

    /// Of each of these uids, in order and once: its connections, as PHP's list.
    async fn clients_of_uids(&self, names: Vec<&str>) -> Result<BoxFuture<'static, Option<Named>>, Stopped> {
        let names = once(names);
        let uids: Vec<Option<Uid>> = names.iter().map(|name| name.parse().ok()).collect();
        let known: Vec<Uid> = uids.iter().flatten().cloned().collect();
        let find = move |shard: &mut Shard| {
            let ids = |uid: &Option<Uid>| -> Vec<u32> {
                uid.iter().flat_map(|uid| shard.of_uid(uid)).map(|client| client.id.connection).collect()
            };
            uids.iter().map(ids).collect::<Vec<_>>()
        };
        let begun = self.gateway.hub().begin_at_uids(&known, find).await?;
        let gateway = Arc::clone(&self.gateway);
        Ok(answer(begun, move |shards| {
            let mut found: Vec<Vec<u32>> = vec![Vec::new(); names.len()];
            for shard in shards {
                found.iter_mut().zip(shard).for_each(|(found, more)| found.extend(more));
            }
            let list = |mut ids: Vec<u32>| {
                ids.sort_by_cached_key(|id| gateway.place_of(*id));
                write(|out| list(ids.len(), ids.iter(), |id, out| serialize::write_int((*id).into(), out), out))
            };
            names.into_iter().zip(found.into_iter().map(list)).collect()
        }))
    }

    /// Of each of these groups, in order and once: its size, as PHP's number.
    async fn counts(&self, names: Vec<&str>) -> Result<BoxFuture<'static, Option<Named>>, Stopped> {
        let names = once(names);
        let groups: Vec<Option<Group>> = names.iter().map(|name| name.parse().ok()).collect();
        let known: Vec<Group> = groups.iter().flatten().cloned().collect();
        let count = move |shard: &mut Shard| {
            let size = |group: &Option<Group>| group.as_ref().map_or(0, |group| shard.of_group(group).count());
            groups.iter().map(size).collect::<Vec<_>>()
        };
        let begun = self.gateway.hub().begin_at_groups(&known, count).await?;
        Ok(answer(begun, move |shards| {
            let mut sizes = vec![0; names.len()];
            for shard in shards {
                sizes.iter_mut().zip(shard).for_each(|(size, more)| *size += more);
            }
            let number = |size| write(|out| serialize::write_int(sum([size]), out));
            names.into_iter().zip(sizes.into_iter().map(number)).collect()
        }))
    }

    /// The names of all groups.
    async fn groups(&self) -> Result<Answer, Stopped> {
        let names = |shard: &mut Shard| shard.group_names().cloned().collect::<Vec<_>>();
        let names = self.gateway.hub().begin_at_all(names).await?;
        Ok(answer(names, |shards| {
            let mut names: Vec<Group> = shards.into_iter().flatten().collect();
            names.sort();
            names.dedup();
            let item = |name: &Group, out: &mut Vec<u8>| serialize::write_key(name.as_str().as_bytes(), out);
            write(|out| list(names.len(), names.iter(), item, out))
        }))
    }

    async fn select(&self, ext: &[u8]) -> Result<Answer, Stopped> {
        let json = Json::of(ext);
        if json.entries().is_empty() {
            return Ok(nothing());
        }
        let fields: Vec<String> = json.get("fields").into_iter().flat_map(Json::values).map(str::to_owned).collect();
        let conditions = json.get("where").map(Json::entries).unwrap_or_default();
        if conditions.is_empty() {
            if fields.is_empty() {
                return Ok(nothing());
            }
            let everyone = move |shard: &mut Shard| {
                shard.all().map(|client| (lacks(&client, &fields), selected(client, &fields))).collect::<Vec<_>>()
            };
            let (begun, gateway) = (self.gateway.hub().begin_at_all(everyone).await?, Arc::clone(&self.gateway));
            return Ok(answer(begun, move |shards| {
                let mut found: Vec<_> = shards.into_iter().flatten().collect();
                // Those who lack something come last: PHP's end stops reading there.
                found.sort_by_cached_key(|(lacks, (id, _))| (*lacks, gateway.place_of(*id)));
                clients(found.into_iter().map(|(_, entry)| entry).collect())
            }));
        }
        let mut wanted = Vec::new();
        for (key, values) in conditions {
            for value in values.values() {
                wanted.extend(match &**key {
                    "groups" => value.parse().ok().map(Wanted::Group),
                    "uid" => value.parse().ok().map(Wanted::Uid),
                    "connection_id" => self.client(value).map(Wanted::Client),
                    _ => None,
                });
            }
        }
        let some = move |shard: &mut Shard| {
            let mut found: HashMap<u32, (usize, Vec<u8>)> = HashMap::new();
            for (rank, wanted) in wanted.iter().enumerate() {
                let mut add = |client: View<'_>| {
                    let (connection, entry) = (client.id.connection, || (rank, selected(client, &fields).1));
                    found.entry(connection).or_insert_with(entry);
                };
                match wanted {
                    Wanted::Group(group) => shard.of_group(group).for_each(add),
                    Wanted::Uid(uid) => shard.of_uid(uid).for_each(add),
                    Wanted::Client(id) => shard.view(*id).into_iter().for_each(&mut add),
                }
            }
            found
        };
        let (begun, gateway) = (self.gateway.hub().begin_at_all(some).await?, Arc::clone(&self.gateway));
        Ok(answer(begun, move |shards| {
            let mut found: Vec<_> = shards.into_iter().flatten().collect();
            found.sort_by_cached_key(|(id, (rank, _))| (*rank, gateway.place_of(*id)));
            clients(found.into_iter().map(|(id, (_, entry))| (id, entry)).collect())
        }))
    }

    /// An answer of one entry for each client, in the order in which they have connected.
    fn by_client(&self, begun: Begun<Vec<Entry>>) -> Answer {
        let gateway = Arc::clone(&self.gateway);
        answer(begun, move |shards| {
            let mut entries: Vec<Entry> = shards.into_iter().flatten().collect();
            entries.sort_by_cached_key(|(id, _)| gateway.place_of(*id));
            clients(entries)
        })
    }

    // --- names ---

    fn id(&self, connection: u32) -> ClientId {
        ClientId { lan: self.gateway.lan(), connection }
    }

    /// A connection id as JSON has it.
    fn client(&self, id: &str) -> Option<ClientId> {
        id.parse().ok().map(|connection| self.id(connection))
    }

    /// A uid or group that is to be bound or joined; none of what PHP calls empty, or what cannot be one.
    fn name<N: FromStr>(&self, bytes: &[u8]) -> Option<N> {
        if is_empty(bytes) {
            return None;
        }
        let name = std::str::from_utf8(bytes).ok().and_then(|name| name.parse().ok());
        if name.is_none() {
            self.ignored("name", "a uid or group that is not UTF-8, or longer than 256 bytes");
        }
        name
    }

    fn ignored(&self, reason: &'static str, what: &'static str) {
        self.gateway.metrics().php_ignored.get_or_create(&Reason { reason }).inc();
        if self.complain.allows() {
            tracing::warn!("ignored what PHP has sent: {what} (said at most once a second)");
        }
    }
}

/// Names with what was found for each.
type Named = Vec<(String, Vec<u8>)>;

/// A connection id with what is said of it.
type Entry = (u32, Vec<u8>);

/// Whom `SELECT` asks of.
enum Wanted {
    Group(Group),
    Uid(Uid),
    Client(ClientId),
}

/// PHP's session with an update laid over it; none where one of them is no array.
pub(super) fn merged(stored: &[u8], update: &[u8]) -> Option<Vec<u8>> {
    let (mut stored, update) = (serialize::parse(stored).ok()?, serialize::parse(update).ok()?);
    if !matches!((&stored, &update), (serialize::Value::Array(_), serialize::Value::Array(_))) {
        return None;
    }
    serialize::merge(&mut stored, update);
    Some(write(|out| stored.write(out)))
}

const EMPTY_ARRAY: &[u8] = b"a:0:{}";

fn nothing() -> Answer {
    std::future::ready(Some(EMPTY_ARRAY.to_vec())).boxed()
}

fn answer<T: Send + 'static, U: 'static>(
    begun: Begun<T>,
    then: impl FnOnce(Vec<T>) -> U + Send + 'static,
) -> BoxFuture<'static, Option<U>> {
    async move { begun.all().await.ok().map(then) }.boxed()
}

fn write(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

/// A PHP list.
fn list<T>(count: usize, items: impl Iterator<Item = T>, item: impl Fn(T, &mut Vec<u8>), out: &mut Vec<u8>) {
    serialize::begin_array(count, out);
    for (place, value) in (0..).zip(items) {
        serialize::write_int(place, out);
        item(value, out);
    }
    serialize::end_array(out);
}

/// A PHP array of what is written already.
fn array<K>(entries: Vec<(K, Vec<u8>)>, write_key: impl Fn(K, &mut Vec<u8>)) -> Vec<u8> {
    write(|out| {
        serialize::begin_array(entries.len(), out);
        for (key, value) in entries {
            write_key(key, out);
            out.extend(value);
        }
        serialize::end_array(out);
    })
}

/// By name.
fn map(entries: Named) -> Vec<u8> {
    array(entries, |name, out| serialize::write_key(name.as_bytes(), out))
}

/// By connection id.
fn clients(entries: Vec<Entry>) -> Vec<u8> {
    array(entries, |connection, out| serialize::write_int(connection.into(), out))
}

fn session_of(client: &View<'_>) -> Vec<u8> {
    client.session.map(|session| session::to_php(session.as_str())).unwrap_or_default()
}

fn session_entry(client: View<'_>) -> Entry {
    (client.id.connection, write(|out| serialize::write_bytes(&session_of(&client), out)))
}

/// Whether a client has nothing to say to one of these.
fn lacks(client: &View<'_>, fields: &[String]) -> bool {
    fields.iter().any(|field| match field.as_str() {
        "uid" => client.uid.is_none(),
        "groups" => client.groups.is_empty(),
        _ => false,
    })
}

/// What a client says to these.
fn selected(client: View<'_>, fields: &[String]) -> Entry {
    let entry = write(|out| {
        serialize::begin_array(fields.len(), out);
        for field in fields {
            serialize::write_key(field.as_bytes(), out);
            match field.as_str() {
                "uid" => match client.uid {
                    Some(uid) => serialize::write_bytes(uid.as_str().as_bytes(), out),
                    None => serialize::write_null(out),
                },
                "groups" if client.has_joined => {
                    serialize::begin_array(client.groups.len(), out);
                    for group in client.groups {
                        serialize::write_key(group.as_str().as_bytes(), out);
                        serialize::write_bytes(group.as_str().as_bytes(), out);
                    }
                    serialize::end_array(out);
                }
                "session" => serialize::write_bytes(&session_of(&client), out),
                _ => serialize::write_null(out),
            }
        }
        serialize::end_array(out);
    });
    (client.id.connection, entry)
}

/// Each name once, in order of first mention.
fn once(names: Vec<&str>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    names.into_iter().filter(|name| seen.insert(*name)).map(str::to_owned).collect()
}

fn sum(counts: impl IntoIterator<Item = usize>) -> i64 {
    i64::try_from(counts.into_iter().sum::<usize>()).unwrap_or(i64::MAX)
}

/// What a command is counted as; none of what no gateway knows.
fn op(command: u8) -> Option<&'static str> {
    Some(match command {
        command::SEND_TO_ONE => "sendToClient",
        command::SEND_TO_ALL => "sendToAll",
        command::SEND_TO_UID => "sendToUid",
        command::SEND_TO_GROUP => "sendToGroup",
        command::KICK => "closeClient",
        command::DESTROY => "destroyClient",
        command::BIND_UID => "bindUid",
        command::UNBIND_UID => "unbindUid",
        command::JOIN_GROUP => "joinGroup",
        command::LEAVE_GROUP => "leaveGroup",
        command::UNGROUP => "ungroup",
        command::SET_SESSION => "setSession",
        command::UPDATE_SESSION => "updateSession",
        command::IS_ONLINE => "isOnline",
        command::GET_SESSION_BY_CLIENT_ID => "getSession",
        command::GET_CLIENT_ID_BY_UID => "getClientIdByUid",
        command::BATCH_GET_CLIENT_ID_BY_UID => "batchGetClientIdByUid",
        command::GET_CLIENT_COUNT_BY_GROUP => "getClientIdCountByGroup",
        command::BATCH_GET_CLIENT_COUNT_BY_GROUP => "batchGetClientIdCountByGroup",
        command::GET_GROUP_ID_LIST => "getAllGroupIdList",
        command::GET_ALL_CLIENT_SESSIONS => "getAllClientSessions",
        command::GET_CLIENT_SESSIONS_BY_GROUP => "getClientSessionsByGroup",
        command::SELECT => "select",
        _ => return None,
    })
}
