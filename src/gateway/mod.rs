//! The one place where a command is carried out.
//!
//! Every door parses to a [`Command`] and says it to [`Gateway::execute`]. One node alone is the whole cluster: the
//! hub's own truth answers everything. (Several nodes will be an addition here: `execute` decides by target whether a
//! command is ours, another node's or everyone's, and what arrives from other nodes is delivered, never passed on.)

mod change;
mod listing;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::client::{Client, Departed, SendLimit};
use crate::command::{self, Command, Reply, Sent};
use crate::config::ClientConfig;
use crate::hub::{Delivered, Except, Hub, Stopped, Target, TooManyGroups};
use crate::id::{ClientId, ConnectionIds, Group, LanAddress, Uid};
use crate::json::Invalid;
use crate::message::{Close, Message};
use crate::metrics::{Metrics, Outcome, Reason};
use crate::session::Session;
use crate::template::{Filling, Template};
use change::Change;

pub use change::BatchFailure;

/// Why a command was not carried out, per decision of a caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The request is wrong; repeating it is no use.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The client is not connected.
    #[error("no client {0} is connected")]
    ClientNotFound(ClientId),
    /// The request or its answer is too large.
    #[error("{0}")]
    TooLarge(String),
    /// The node stops or its time is over: not known to be done.
    #[error("{0}")]
    Unreachable(&'static str),
}

impl Failure {
    /// The stable `code`; the README lists them.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_request",
            Self::ClientNotFound(_) => "client_not_found",
            Self::TooLarge(_) => "payload_too_large",
            Self::Unreachable(_) => "node_unreachable",
        }
    }
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        Self::Unreachable("this node is stopping")
    }
}

impl From<TooManyGroups> for Failure {
    fn from(error: TooManyGroups) -> Self {
        Invalid::field("group", error).into()
    }
}

/// Carries out commands; owns what a node knows of its clients.
pub struct Gateway {
    hub: Hub,
    lan: LanAddress,
    ids: ConnectionIds,
    limits: Limits,
    send_limit: Arc<SendLimit>,
    init: Option<Template>,
    leave: Option<Template>,
    leave_max_group: usize,
    /// Of two `single` binds at once exactly the later stays: one after the other.
    single_binds: tokio::sync::Mutex<()>,
    metrics: Arc<Metrics>,
}

/// What a client may have.
#[derive(Debug, Clone, Copy)]
struct Limits {
    groups: usize,
    session: usize,
}

impl Gateway {
    /// A gateway over a hub.
    pub fn new(
        hub: Hub,
        lan: LanAddress,
        config: &ClientConfig,
        time_zone: &jiff::tz::TimeZone,
        metrics: Arc<Metrics>,
    ) -> Self {
        let send_limit =
            SendLimit { bytes: config.send_buffer, policy: config.slow_consumer, dropped: metrics.dropped.clone() };
        Self {
            hub,
            lan,
            ids: ConnectionIds::new(),
            limits: Limits { groups: config.max_groups, session: config.max_session_size },
            send_limit: Arc::new(send_limit),
            init: Template::new(&config.init_message, time_zone),
            leave: Template::new(&config.leave_message, time_zone),
            leave_max_group: config.leave_max_group,
            single_binds: tokio::sync::Mutex::default(),
            metrics,
        }
    }

    /// Who is here.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    // --- the life of a client ---

    /// A fresh client id.
    pub(crate) fn next_client_id(&self) -> ClientId {
        ClientId { lan: self.lan, connection: self.ids.next() }
    }

    /// How much may wait for a client.
    pub(crate) fn send_limit(&self) -> Arc<SendLimit> {
        Arc::clone(&self.send_limit)
    }

    /// A client is there. The first message it gets is `INIT_MESSAGE`, when a query finds it already.
    pub(crate) async fn connected(&self, client: Arc<Client>) -> Result<(), Stopped> {
        self.metrics.connections.inc();
        let filling = Filling { client_id: client.id(), uid: None, group: None, session: None };
        let init = self.init.as_ref().and_then(|template| template.render(filling, true).ok());
        self.hub.insert(client, init.map(|text| Message::text(&text))).await
    }

    /// A client sent a message. Nobody takes events out yet, so it is a sign of life and nothing else.
    pub(crate) fn received(&self) {
        self.metrics.received.inc();
    }

    /// A client has left the hub, for whatever reason: the same tail for all.
    pub(crate) async fn departed(&self, departed: Departed) -> Result<(), Stopped> {
        self.metrics.closed.get_or_create(&Reason { reason: kind(&departed.close) }).inc();
        let Some(template) = &self.leave else { return Ok(()) };
        for group in &departed.groups {
            if self.hub.group_size(group) > self.leave_max_group {
                continue;
            }
            let filling = Filling {
                client_id: departed.id,
                uid: departed.uid.as_ref(),
                group: Some(group),
                session: departed.session.as_ref(),
            };
            if let Ok(text) = template.render(filling, false) {
                self.hub.deliver(Target::Groups([group.clone()].into()), None, Message::text(&text), false).await?;
            }
        }
        Ok(())
    }

    // --- commands ---

    /// Carries a command out. When it answers, it is done.
    pub async fn execute(&self, command: Command) -> Result<Reply, Failure> {
        let op = command.name();
        let result = Box::pin(self.carry_out(command)).await;
        self.count(op, &result);
        result
    }

    fn count<T>(&self, op: &'static str, result: &Result<T, Failure>) {
        let outcome = result.as_ref().map_or_else(Failure::code, |_| "ok");
        self.metrics.commands.get_or_create(&Outcome { op, outcome }).inc();
    }

    async fn carry_out(&self, command: Command) -> Result<Reply, Failure> {
        let command = match Change::of(command) {
            Ok((client, change)) => return self.change(client, vec![change]).await.pop().unwrap_or(Ok(Reply::DONE)),
            Err(command) => command,
        };
        match command {
            Command::SendToAll(c) => {
                let message = command::payload(c.message, c.binary)?;
                let to = c.client_ids.map_or(Target::All, |ids| Target::Clients(ids.0.into()));
                self.send(to, except(c.exclude, c.exclude_uid), message, c.confirm).await
            }
            Command::SendToClient(c) => {
                let message = command::payload(c.message, c.binary)?;
                self.send(Target::Clients([c.client_id].into()), None, message, c.confirm).await
            }
            Command::SendToUid(c) => {
                let message = command::payload(c.message, c.binary)?;
                let uids: Arc<[Uid]> = c.uid.items().into();
                let delivered = self.hub.deliver(Target::Uids(Arc::clone(&uids)), None, message, c.confirm).await?;
                let offline = uids.iter().enumerate().filter(|(place, _)| !delivered.held.contains(place));
                let offline = c.uid.is_array().then(|| offline.map(|(_, uid)| uid.clone()).collect());
                Ok(Reply::Sent(Sent { offline, ..sent(&delivered, c.confirm) }))
            }
            Command::SendToGroup(c) => {
                let message = command::payload(c.message, c.binary)?;
                self.send(
                    Target::Groups(c.group.into_items().into()),
                    except(c.exclude, c.exclude_uid),
                    message,
                    c.confirm,
                )
                .await
            }
            Command::CloseClient(c) => {
                let (last, close) = (command::optional_payload(c.message, c.binary)?, command::close(c.code, c.reason));
                let id = c.client_id;
                Ok(heard(self.hub.at_client(id, move |shard| shard.close(id, last.as_ref(), &close)).await?))
            }
            Command::DestroyClient(c) => {
                Ok(heard(self.hub.at_client(c.client_id, move |shard| shard.destroy(c.client_id)).await?))
            }
            Command::CloseUid(c) => {
                let last = command::optional_payload(c.message, c.binary)?;
                let close = command::close(c.code, c.reason);
                Ok(heard(self.close_uids(c.uid.into_items(), None, last, close).await?))
            }
            Command::JoinGroup(c) => {
                let (uid, groups, most) =
                    (command::uid_alone(c.client_id, c.uid)?, c.group.into_items(), self.limits.groups);
                let bound = uid.clone();
                let results = self.hub.at_uids(&[uid], move |shard| shard.join_uid(&bound, &groups, most)).await?;
                results.into_iter().collect::<Result<(), TooManyGroups>>()?;
                Ok(Reply::DONE)
            }
            Command::LeaveGroup(c) => {
                let (uid, groups) = (command::uid_alone(c.client_id, c.uid)?, c.group.into_items());
                let bound = uid.clone();
                self.hub.at_uids(&[uid], move |shard| shard.leave_uid(&bound, &groups)).await?;
                Ok(Reply::DONE)
            }
            Command::Ungroup(c) => {
                let group = c.group.clone();
                self.hub.at_groups(&[c.group], move |shard| shard.ungroup(&group)).await?;
                Ok(Reply::DONE)
            }
            Command::Batch(_) => Err(Invalid::field("op", "a batch cannot stand in a batch").into()),

            Command::IsOnline(c) => {
                let online = self.hub.at_client(c.client_id, move |shard| shard.view(c.client_id).is_some()).await?;
                Ok(Reply::Flag(online))
            }
            Command::IsUidOnline(c) => Ok(Reply::Flag(self.hub.holds_uid(&c.uid))),
            Command::IsUidsOnline(c) => {
                let flags = c.uid.into_items().into_iter().map(|uid| (uid.clone(), self.hub.holds_uid(&uid)));
                Ok(Reply::UidFlags(flags.collect()))
            }
            Command::GetSession(c) => {
                let session = self.hub.at_client(c.client_id, move |shard| {
                    shard.view(c.client_id).map(|client| client.session.cloned().unwrap_or_default())
                });
                Ok(Reply::Session(session.await?))
            }
            Command::GetUidByClientId(c) => {
                let uid = self.hub.at_client(c.client_id, move |shard| {
                    shard.view(c.client_id).and_then(|client| client.uid.cloned())
                });
                Ok(Reply::Uid(uid.await?))
            }
            Command::GetClientIdByUid(c) => {
                let mut clients = self.clients_of(&[c.uid]).await?;
                Ok(Reply::ClientIds(clients.pop_first().map(|(_, ids)| ids).unwrap_or_default()))
            }
            Command::BatchGetClientIdByUid(c) => Ok(Reply::UidClients(self.clients_of(c.uid.items()).await?)),
            Command::GetClientIdCountByGroup(c) => match c.group.items() {
                [group] => Ok(Reply::Count(self.hub.group_size(group) as u64)),
                groups => Ok(Reply::Count(self.group_members(groups).await?.len() as u64)),
            },
            Command::BatchGetClientIdCountByGroup(c) => {
                let counts =
                    c.group.into_items().into_iter().map(|group| (group.clone(), self.hub.group_size(&group) as u64));
                Ok(Reply::GroupCounts(counts.collect()))
            }
            Command::GetAllClientIdCount(_) => Ok(Reply::Count(self.hub.clients() as u64)),
            Command::GetAllUidCount(_) => Ok(Reply::Count(self.hub.uid_count() as u64)),
            listing => self.list(listing).await,
        }
    }

    async fn send(
        &self,
        to: Target,
        except: Option<Arc<Except>>,
        message: Message,
        confirm: bool,
    ) -> Result<Reply, Failure> {
        let delivered = self.hub.deliver(to, except, message, confirm).await?;
        Ok(Reply::Sent(sent(&delivered, confirm)))
    }

    /// Ends the connections of these uids but `spared`; returns whether there were any.
    async fn close_uids(
        &self,
        uids: Vec<Uid>,
        spared: Option<ClientId>,
        last: Option<Message>,
        close: Close,
    ) -> Result<bool, Stopped> {
        let named = uids.clone();
        let closed = self.hub.at_uids(&uids, move |shard| {
            let close = |uid: &&Uid| shard.close_uid(uid, spared, last.as_ref(), &close);
            named.iter().filter(close).count() > 0
        });
        Ok(closed.await?.contains(&true))
    }

    async fn clients_of(&self, uids: &[Uid]) -> Result<BTreeMap<Uid, Vec<ClientId>>, Stopped> {
        let named = uids.to_vec();
        let found = self.hub.at_uids(uids, move |shard| {
            let ids = |uid| shard.of_uid(uid).map(|client| client.id).collect::<Vec<_>>();
            named.iter().map(|uid| (uid.clone(), ids(uid))).collect::<Vec<_>>()
        });
        let mut clients: BTreeMap<_, _> = uids.iter().map(|uid| (uid.clone(), Vec::new())).collect();
        for (uid, ids) in found.await?.into_iter().flatten() {
            clients.entry(uid).or_insert_with(Vec::new).extend(ids);
        }
        Ok(clients)
    }

    /// The members of any of these groups, each once.
    async fn group_members(&self, groups: &[Group]) -> Result<std::collections::HashSet<ClientId>, Stopped> {
        let named = groups.to_vec();
        let members = self.hub.at_groups(groups, move |shard| {
            named.iter().flat_map(|group| shard.of_group(group)).map(|client| client.id).collect::<Vec<_>>()
        });
        Ok(members.await?.into_iter().flatten().collect())
    }
}

fn sent(delivered: &Delivered, confirm: bool) -> Sent {
    let nodes = u64::from(!delivered.held.is_empty());
    Sent { nodes, offline: None, clients: confirm.then_some(delivered.clients) }
}

fn heard(held: bool) -> Reply {
    Reply::Sent(Sent { nodes: held.into(), offline: None, clients: None })
}

fn except(clients: Option<command::List<ClientId>>, uids: Option<command::List<Uid>>) -> Option<Arc<Except>> {
    let except = Except {
        clients: clients.map(|list| list.0).unwrap_or_default(),
        uids: uids.map(|list| list.0).unwrap_or_default(),
    };
    (!except.clients.is_empty() || !except.uids.is_empty()).then(|| Arc::new(except))
}

/// The label under which an end is counted; few, whatever clients send.
fn kind(close: &Close) -> &'static str {
    if *close == Close::DESTROYED {
        return "destroyed";
    }
    match close.code {
        1006 => "lost",
        1002 => "protocol",
        1007 => "not_utf8",
        1009 => "too_big",
        1012 => "drain",
        1013 => "slow",
        4000 => "closed",
        4001 => "replaced",
        4002 => "idle",
        1000 | 1001 | 1005 => "normal",
        _ => "other",
    }
}

impl Limits {
    fn check(self, session: &Session) -> Result<(), Failure> {
        if session.as_str().len() > self.session {
            return Err(Failure::TooLarge(format!("session: takes at most {} bytes of JSON", self.session)));
        }
        Ok(())
    }
}
