//! The one place where a command is carried out.
//!
//! Every door parses to a [`Command`] and says it to [`Gateway::execute`]: it reached only us. A node that is alone does
//! it at once. Among others it is said on the bus, once, also when its target is here, so that no short cut overtakes;
//! and what is on the bus (`heard`) is done by each node for its own clients, and never passed on. One path, one order.
//! Queries are answered by the hub of a node that is alone, else by the directory in Redis.

mod change;
mod console;
mod facts;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod heard;
mod listing;
mod part;
mod queue;
mod tail;
mod unbound;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::access::Grant;
use crate::client::{Client, Departed, LetGo, SendLimit};
use crate::cluster::{Answer, Channel, Cluster, Php, Readiness, Standing, Unavailable};
use crate::command::{Command, Reply, Sent};
use crate::config::ClientConfig;
use crate::event::{Consent, Kind, Request};
use crate::hub::{Event, Hub, Listener, Shard, Stopped, Target, TooManyGroups, Topic, Whom};
use crate::id::{ClientId, ConnectionIds, LanAddress, Uid};
use crate::json::Invalid;
use crate::message::{Close, Message};
use crate::metrics::{Metrics, Outcome, Reason};
use crate::session::Session;
use crate::template::{Filling, Template};
use crate::trace::{Context, Tracer};
use crate::vitals::{self, Monitor, Node, Nodes};
use change::Change;
use part::{Done, Job, Part};
use unbound::Unbound;

pub use change::BatchFailure;
pub(crate) use console::{Profile, Sizes};
pub(crate) use queue::Queue;
pub(crate) use tail::MOST_TAILS;
use tail::Tailing;

/// What another node may take for an answer.
const ASK_TIME: Duration = Duration::from_secs(2);

/// What a node that was asked may take, so that its answer is there in time, if only to say that Redis is slow.
const ANSWER_TIME: Duration = Duration::from_millis(1700);

/// What nodes may take to say which of many targets they hold; those that nobody names are offline.
const ROLL_CALL: Duration = Duration::from_secs(1);

/// So many leave at a time. When a crowd is cut off, a newcomer waits until others are told of those before it, and of
/// itself: of 10,000 at once that took 300 ms (p99, two nodes on two cores), of so many it takes 120. Fewer cost more commands.
const MOST_LEAVING: usize = 512;

/// They wait so long for each other, as it takes a moment to notice that Redis is away.
const LEAVE_TIME: Duration = Duration::from_millis(100);

/// Why a command was not carried out, per decision of a caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// A node did not answer, stops, or its time is over: not known to be done.
    #[error("{0}")]
    Unreachable(Cow<'static, str>),
    /// Redis is away: not known to be done.
    #[error("{0}")]
    RedisUnavailable(String),
}

impl Failure {
    /// The stable `code`; [`ERRORS`](crate::outcome::ERRORS) lists them.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_request",
            Self::ClientNotFound(_) => "client_not_found",
            Self::TooLarge(_) => "payload_too_large",
            Self::Unreachable(_) => "node_unreachable",
            Self::RedisUnavailable(_) => "redis_unavailable",
        }
    }
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        Self::Unreachable("this node is stopping".into())
    }
}

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        Self::RedisUnavailable(error.0)
    }
}

impl From<TooManyGroups> for Failure {
    fn from(error: TooManyGroups) -> Self {
        Invalid::field("group", error).into()
    }
}

/// A client that is let in.
#[derive(Default)]
pub(crate) struct Admission {
    /// What it has come with, where that is told.
    pub(crate) request: Option<Arc<Request>>,
    /// The application's word, if it was asked.
    pub(crate) consent: Option<Consent>,
    /// What its token gives it.
    pub(crate) grant: Option<Grant>,
}

/// Carries out commands; owns what a node knows of its clients.
pub struct Gateway {
    hub: Arc<Hub>,
    /// The other nodes; none when this one is alone.
    cluster: Option<Cluster>,
    lan: LanAddress,
    listener: Arc<dyn Listener>,
    ids: ConnectionIds,
    limits: Limits,
    send_limit: Arc<SendLimit>,
    init: Option<Template>,
    leave: Option<Template>,
    leave_max_group: usize,
    /// On a node that is alone, of two `single` binds at once exactly the later stays: one after the other. Among others
    /// Redis has the order.
    single_binds: tokio::sync::Mutex<()>,
    queue: Queue,
    /// Those who may leave at a time.
    leaving: Semaphore,
    /// None: clients need no uid.
    unbound: Option<Unbound>,
    tailing: Tailing,
    metrics: Arc<Metrics>,
    monitor: Arc<Monitor>,
    standing: Standing,
    tracer: Tracer,
}

/// What a client may have.
#[derive(Debug, Clone, Copy)]
struct Limits {
    groups: usize,
    session: usize,
}

impl Gateway {
    /// A gateway over a hub, and the other nodes, if there are any. `lan` and `standing` are for one without.
    #[allow(clippy::too_many_arguments)] // all that it is made of; called once
    pub fn new(
        hub: Arc<Hub>,
        cluster: Option<Cluster>,
        lan: LanAddress,
        listener: Arc<dyn Listener>,
        config: &ClientConfig,
        time_zone: &jiff::tz::TimeZone,
        has_webhook: bool,
        metrics: Arc<Metrics>,
        monitor: Arc<Monitor>,
        standing: Standing,
        tracer: Tracer,
    ) -> Self {
        let send_limit =
            SendLimit { bytes: config.send_buffer, policy: config.slow_consumer, dropped: metrics.dropped.clone() };
        let queue = Queue::new(cluster.as_ref(), has_webhook, &metrics);
        Self {
            hub,
            cluster,
            lan,
            listener,
            ids: ConnectionIds::new(),
            limits: Limits { groups: config.max_groups, session: config.max_session_size },
            send_limit: Arc::new(send_limit),
            init: Template::new(&config.init_message, time_zone),
            leave: Template::new(&config.leave_message, time_zone),
            leave_max_group: config.leave_max_group,
            single_binds: tokio::sync::Mutex::default(),
            queue,
            leaving: Semaphore::new(MOST_LEAVING),
            unbound: config.unauthed_timeout.map(Unbound::new),
            tailing: Tailing::default(),
            metrics,
            monitor,
            standing,
            tracer,
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

    /// What begins spans.
    pub(crate) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// The same, to keep.
    pub(crate) fn shared_metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Whether this node has a place among others, and when that changes; none where it is alone.
    pub(crate) fn membership(&self) -> Option<tokio::sync::watch::Receiver<bool>> {
        self.cluster.as_ref().map(Cluster::membership)
    }

    /// Looks at what the nodes know of PHP, and says what this one knows; none where there are no others.
    pub(crate) async fn php(&self, ours: &[String], had_workers: bool) -> Option<Result<Php, Unavailable>> {
        Some(self.cluster.as_ref()?.php(ours, had_workers).await)
    }

    // --- the life of a client ---

    /// Whether this node is to get new clients.
    pub(crate) fn readiness(&self) -> Readiness {
        self.cluster.as_ref().map_or_else(|| (self.standing)(Readiness::Ready), Cluster::readiness)
    }

    /// All nodes with their numbers: this one as it is now, the others as they have told Redis of late.
    pub(crate) async fn nodes(&self) -> Nodes {
        let lan = self.lan();
        let lan = format!("{}:{}", lan.ip, lan.port);
        let own = Node {
            node: self.hub.events().origin().node.clone(),
            age_ms: 0,
            vitals: self.monitor.look(lan, self.readiness().words()),
        };
        let others = match &self.cluster {
            Some(cluster) => Some(Box::pin(cluster.vitals()).await),
            None => None,
        };
        let redis = others.as_ref().map(|others| vitals::Redis { up: others.is_ok() });
        let mut nodes = others.and_then(Result::ok).unwrap_or_default();
        nodes.retain(|node| node.node != own.node);
        nodes.push(own);
        nodes.sort_unstable_by(|a, b| a.node.cmp(&b.node));
        Nodes { at: vitals::now(), nodes, redis }
    }

    /// Whether clients can be let in: this node has an address to make client ids from.
    pub(crate) fn has_place(&self) -> bool {
        self.cluster.as_ref().is_none_or(Cluster::is_member)
    }

    /// Whether a newcomer waits until others are told of it: they are told through Redis, and it is there.
    fn has_redis(&self) -> bool {
        self.cluster.as_ref().is_some_and(Cluster::has_redis)
    }

    /// A fresh client id; none as long as this node has no place among the others.
    pub(crate) fn next_client_id(&self) -> Option<ClientId> {
        self.has_place().then(|| ClientId { lan: self.lan(), connection: self.ids.next() })
    }

    /// The first part of this node's client ids.
    pub(crate) fn lan(&self) -> LanAddress {
        self.cluster.as_ref().map_or(self.lan, Cluster::lan)
    }

    /// The place of a client of this node in the order in which they have connected.
    pub(crate) fn place_of(&self, connection: u32) -> u32 {
        self.ids.place(connection)
    }

    /// In how many groups a client may be.
    pub(crate) fn max_groups(&self) -> usize {
        self.limits.groups
    }

    /// What a token gives that no client may have.
    pub(crate) fn refuses(&self, grant: &Grant) -> Option<String> {
        if grant.groups.as_ref().is_some_and(|groups| groups.0.len() > self.limits.groups) {
            return Some(format!("groups: a client may be in {} at most", self.limits.groups));
        }
        let check = grant.session.as_ref().and_then(|session| self.limits.check(session).err());
        check.map(|failure| failure.to_string())
    }

    /// Refuses a session that is too large.
    pub(crate) fn check_session(&self, session: &Session) -> Result<(), Failure> {
        self.limits.check(session)
    }

    /// How much may wait for a client.
    pub(crate) fn send_limit(&self) -> Arc<SendLimit> {
        Arc::clone(&self.send_limit)
    }

    /// A client is there. The first message it gets is `INIT_MESSAGE`, when a query on any node finds it; while Redis is
    /// away it gets it at once, and Redis follows.
    pub(crate) async fn connected(
        &self,
        client: Arc<Client>,
        is_guest: bool,
        admission: Option<Box<Admission>>,
    ) -> Result<(), Stopped> {
        self.metrics.connections.inc();
        let id = client.id();
        let Admission { request, consent, grant } = admission.map(|admission| *admission).unwrap_or_default();
        let is_there = if is_guest {
            self.hub.begin_at_client(id, move |shard| shard.welcome(id, request)).await?.one().await?
        } else {
            self.hub.insert(Arc::clone(&client), false, request).await?;
            true
        };
        // Before it is known to be there no command can name it: nothing comes before this.
        let (uid, session) = grant.as_ref().map(|grant| (grant.uid.clone(), grant.session.clone())).unwrap_or_default();
        if let Some(grant) = grant {
            let (changes, limits) = (Change::granted(grant), self.limits);
            let granting = move |shard: &mut Shard| {
                for change in &changes {
                    // It fits, or it had not been let in; and a client that has gone needs nothing.
                    drop(change.apply(shard, id, limits));
                }
            };
            self.hub.begin_at_client(id, granting).await?.one().await?;
        }
        // A guest may have been let go while the application was asked.
        if let (Some(consent), true) = (consent, is_there) {
            consent.used();
        }
        if let (Some(unbound), None) = (&self.unbound, &uid) {
            unbound.watch(id);
        }
        if self.has_redis() {
            let receipt = self.hub.begin_at_client(id, move |shard| shard.receipt([id])).await?.one().await?;
            drop(timeout(ASK_TIME, receipt.wait()).await);
        }
        let filling = Filling { client_id: id, uid: uid.as_ref(), group: None, session: session.as_ref() };
        let init = self.init.as_ref().and_then(|template| template.render(filling, true).ok());
        client.open(init.map(|text| Message::text(&text)).as_ref());
        Ok(())
    }

    /// A client sent a message.
    pub(crate) fn received(&self) {
        self.metrics.received.inc();
    }

    /// Whether somebody is to be told what clients do.
    pub(crate) fn listens(&self) -> bool {
        self.listener.listens()
    }

    /// Whether somebody is to be told what clients say.
    pub(crate) fn hears(&self) -> bool {
        self.listener.listens() || self.hub.events().has(Kind::Message) || self.hub.tails().any()
    }

    /// Whether no client is served, as nobody is there to be told.
    pub(crate) fn lacks_listener(&self) -> bool {
        self.listener.is_missing()
    }

    /// A client's handshake has come, and is to be answered. False when it is not served.
    pub(crate) async fn shook_hands(&self, client: &Client, head: &[u8]) -> bool {
        let (id, request) = (client.id(), self.listener.describe(head, client.arrival()));
        let told = self.hub.begin_at_client(id, move |shard| shard.shook_hands(id, &request)).await;
        match told {
            Ok(told) => told.one().await.unwrap_or(false),
            Err(Stopped) => false,
        }
    }

    /// Has a client leave the hub whose connection has ended, if it is not the hub that let it go; returns what it had.
    pub(crate) async fn leave(&self, client: &Client, close: Close) -> Result<Box<LetGo>, Stopped> {
        let mut let_go = pin!(poll_fn(|cx| client.poll_let_go(cx)));
        let turn = async { if self.has_redis() { self.leaving.acquire().await.ok() } else { None } };
        let turn = tokio::select! {
            biased;
            let_go = &mut let_go => return Ok(let_go),
            turn = turn => turn,
        };
        self.hub.ended(client.id(), close).await?;
        // Redis may have gone while it waited: then the whole queue goes on at once.
        if turn.is_some()
            && self.has_redis()
            && let Ok(let_go) = timeout(LEAVE_TIME, &mut let_go).await
        {
            return Ok(let_go);
        }
        drop(turn);
        Ok(let_go.await)
    }

    /// A client of this node has ended.
    pub(crate) fn ended(&self, close: &Close) {
        self.metrics.closed.get_or_create(&Reason { reason: kind(close) }).inc();
        self.metrics.left.inc();
    }

    /// A client has left, for whatever reason, and all nodes know: the same tail for all.
    pub(crate) async fn departed(&self, departed: &Departed) {
        if departed.close == Close::NODE && self.listener.listens() {
            let about = Whom { id: departed.id, arrival: None, session: departed.session.as_ref() };
            self.listener.tell(Event::Ended, about, &mut None);
        }
        let Some(template) = &self.leave else { return };
        for group in &departed.groups {
            let size = self.group_sizes(std::slice::from_ref(group)).await.map(|sizes| sizes.first().copied());
            if size.is_ok_and(|size| size > Some(self.leave_max_group as u64)) {
                continue;
            }
            let filling = Filling {
                client_id: departed.id,
                uid: departed.uid.as_ref(),
                group: Some(group),
                session: departed.session.as_ref(),
            };
            let Ok(text) = template.render(filling, false) else { continue };
            if let Err(failure) = self.send(Target::Groups([group.clone()].into()), Message::text(&text)).await {
                tracing::debug!(%failure, "LEAVE_MESSAGE was not sent");
            }
        }
    }

    // --- commands ---

    /// Carries a command out, as a step of a trace, if there is one. When it answers, it is done.
    pub async fn execute(&self, command: Command, trace: Option<&Context>) -> Result<Reply, Failure> {
        let op = command.name();
        let result = Box::pin(self.carry_out(command, trace)).await;
        self.count(op, &result);
        result
    }

    fn count<T>(&self, op: &'static str, result: &Result<T, Failure>) {
        let outcome = result.as_ref().map_or_else(Failure::code, |_| "ok");
        self.metrics.commands.get_or_create(&Outcome { op, outcome }).inc();
    }

    async fn carry_out(&self, command: Command, trace: Option<&Context>) -> Result<Reply, Failure> {
        let names = Names::of(&command);
        let query = match Job::of(command) {
            Ok(job) => return self.do_job(job?.of_trace(trace), names).await,
            Err(query) => query,
        };
        let query = match Box::pin(self.about_tasks(query, trace)).await {
            Ok(done) => return done,
            Err(query) => *query,
        };
        match query {
            Command::IsOnline(c) => Ok(Reply::Flag(self.fact(c.client_id).await?.is_some())),
            Command::GetSession(c) => {
                Ok(Reply::Session(self.fact(c.client_id).await?.map(|facts| facts.session.unwrap_or_default())))
            }
            Command::GetUidByClientId(c) => Ok(Reply::Uid(self.fact(c.client_id).await?.and_then(|facts| facts.uid))),
            Command::IsUidOnline(c) => Ok(Reply::Flag(self.uids_online(&[c.uid]).await?.contains(&true))),
            Command::IsUidsOnline(c) => {
                let uids = c.uid.into_items();
                let online = self.uids_online(&uids).await?;
                Ok(Reply::UidFlags(uids.into_iter().zip(online).collect()))
            }
            Command::GetClientIdByUid(c) => Ok(Reply::ClientIds(self.clients_of_uid(&c.uid).await?)),
            Command::BatchGetClientIdByUid(c) => {
                let uids = c.uid.into_items();
                let clients = self.clients_of_uids(&uids).await?;
                Ok(Reply::UidClients(uids.into_iter().zip(clients).collect()))
            }
            Command::GetClientIdCountByGroup(c) => match c.group.items() {
                group @ [_] => Ok(Reply::Count(self.group_sizes(group).await?.iter().sum())),
                groups => {
                    let members: BTreeSet<ClientId> = self.members(groups).await?.into_iter().flatten().collect();
                    Ok(Reply::Count(members.len() as u64))
                }
            },
            Command::BatchGetClientIdCountByGroup(c) => {
                let groups = c.group.into_items();
                let sizes = self.group_sizes(&groups).await?;
                Ok(Reply::GroupCounts(groups.into_iter().zip(sizes).collect()))
            }
            Command::GetAllClientIdCount(_) => Ok(Reply::Count(self.client_count().await?)),
            Command::GetAllUidCount(_) if self.cluster.is_none() => Ok(Reply::Count(self.hub.uid_count() as u64)),
            listing => self.list(listing).await,
        }
    }

    async fn fact(&self, id: ClientId) -> Result<Option<crate::cluster::Facts>, Failure> {
        Ok(self.facts(&[id]).await?.pop().flatten())
    }

    /// Does a job wherever its clients are, and says what came of it.
    async fn do_job(&self, job: Job, names: Names) -> Result<Reply, Failure> {
        let deadline = Instant::now() + ASK_TIME;
        match &job.part {
            Part::Send { confirm, .. } => {
                let confirm = *confirm;
                let sent = self.send_job(job).await?;
                let offline = |(place, uid): (usize, Uid)| (!sent.held.contains(&place)).then_some(uid);
                let offline = names.0.map(|uids| uids.into_iter().enumerate().filter_map(offline).collect());
                Ok(Reply::Sent(Sent { nodes: sent.nodes, offline, clients: confirm.then_some(sent.clients) }))
            }
            Part::Close { client_id, .. } | Part::Destroy { client_id } | Part::Replace { client_id, .. } => {
                let done = self.at_its_node(*client_id, job, deadline).await?;
                Ok(nodes(done.is_some_and(|done| !done.held.is_empty()).into()))
            }
            Part::Change { client_id, .. } => {
                let id = *client_id;
                let Some(done) = self.at_its_node(id, job, deadline).await? else {
                    return Err(Failure::ClientNotFound(id));
                };
                done.changes.into_iter().collect::<Result<Vec<()>, Failure>>()?;
                Ok(Reply::DONE)
            }
            Part::CloseUids { .. } => {
                let done = self.at_every_node(job, deadline).await?;
                Ok(nodes(done.iter().filter(|done| !done.held.is_empty()).count() as u64))
            }
            Part::JoinUid { .. } | Part::LeaveUid { .. } | Part::Ungroup { .. } => {
                self.at_every_node(job, deadline).await?;
                Ok(Reply::DONE)
            }
        }
    }

    /// Does a job on the node that holds a client; none when there is no such node.
    async fn at_its_node(&self, id: ClientId, job: Job, deadline: Instant) -> Result<Option<Done>, Failure> {
        let Some(cluster) = &self.cluster else {
            let _turn = if job.single_uid().is_some() { Some(self.single_binds.lock().await) } else { None };
            return Ok(Some(self.finish(self.begin(job).await?, deadline).await?));
        };
        let (part, message) = job.written()?;
        let within = deadline.saturating_duration_since(Instant::now());
        let (heard, answers) = cluster.ask(&Channel::Node(id.lan), part, &message, within).await?;
        match answers.first() {
            Some(answer) => Ok(Some(read_answer(answer)?)),
            None if heard == 0 && !in_redis_time(deadline, cluster.has_node(id.lan)).await? => Ok(None),
            None => Err(no_answer(id)),
        }
    }

    /// Does a job on every node.
    async fn at_every_node(&self, job: Job, deadline: Instant) -> Result<Vec<Done>, Failure> {
        let Some(cluster) = &self.cluster else {
            return Ok(vec![self.finish(self.begin(job).await?, deadline).await?]);
        };
        let (part, message) = job.written()?;
        let within = deadline.saturating_duration_since(Instant::now());
        let nodes = async { in_redis_time(deadline, cluster.nodes()).await };
        let asked = async { Ok(cluster.ask(&Channel::Ask, part, &message, within).await?) };
        let (nodes, (heard, answers)) = tokio::try_join!(nodes, asked)?;
        if (answers.len() as u64) < heard {
            return Err(unanswered(heard, answers.len()));
        }
        let answered = |lan: &LanAddress| answers.iter().any(|answer| answer.from == *lan);
        if !nodes.iter().all(answered) {
            // A node that does not hear at this moment matters if it has some of those whom this is about.
            let concerned = in_redis_time(deadline, job.concerned(cluster)).await?;
            if let Some(id) = concerned.iter().find(|id| nodes.contains(&id.lan) && !answered(&id.lan)) {
                return Err(no_answer(*id));
            }
        }
        answers.iter().map(read_answer).collect()
    }

    /// Sends a message that is no more than a message.
    async fn send(&self, to: Target, message: Message) -> Result<(), Failure> {
        self.send_job(Job::send(to, None, message, false)).await.map(drop)
    }

    /// Sends a message to all who are meant.
    async fn send_job(&self, job: Job) -> Result<Delivered, Failure> {
        let Some(cluster) = &self.cluster else {
            let done = self.finish(self.begin(job).await?, Instant::now() + ASK_TIME).await?;
            return Ok(Delivered { nodes: u64::from(!done.held.is_empty()), held: done.held, clients: done.clients });
        };
        let Part::Send { to, except, binary, confirm, trace } = &job.part else { return Ok(Delivered::default()) };
        let (plain, confirm) = (except.is_none() && trace.is_none(), *confirm);
        // Each node answers what it holds of many.
        let channel = match to {
            Target::All => Channel::Topic(Topic::All),
            Target::Uids(uids) => match &**uids {
                [] => return Ok(Delivered::default()),
                [uid] => Channel::Topic(Topic::Uid(uid.clone())),
                _ => Channel::Ask,
            },
            Target::Groups(groups) => match &**groups {
                [] => return Ok(Delivered::default()),
                [group] => Channel::Topic(Topic::Group(group.clone())),
                _ => Channel::Ask,
            },
            Target::Clients(ids) => match **ids {
                [] => return Ok(Delivered::default()),
                [id] => Channel::Topic(Topic::Client(id)),
                _ => Channel::Ask,
            },
        };
        let is_many = channel == Channel::Ask;
        let payload = job.payload()?;
        // As a foreign program would say it, if that says all.
        let says_all = plain && !Cluster::is_ambiguous(&payload) && *binary == std::str::from_utf8(&payload).is_err();
        if !confirm && !is_many {
            let payload = if says_all { payload } else { Cluster::seal(job.written()?.0, &payload) };
            let nodes = match channel {
                Channel::Topic(Topic::Client(id)) => u64::from(cluster.publish_to_client(id, payload).await?),
                channel => cluster.publish(&channel, payload).await?,
            };
            let held = if nodes > 0 { BTreeSet::from([0]) } else { BTreeSet::new() };
            return Ok(Delivered { nodes, held, clients: 0 });
        }
        let within = if confirm { ASK_TIME } else { ROLL_CALL };
        let (part, message) = job.written()?;
        let (heard, answers) = cluster.ask(&channel, part, &message, within).await?;
        if confirm && (answers.len() as u64) < heard {
            return Err(unanswered(heard, answers.len()));
        }
        let mut sent = Delivered::default();
        for answer in answers {
            let done = read_answer(&answer)?;
            sent.nodes += u64::from(!done.held.is_empty());
            sent.clients += done.clients;
            sent.held.extend(done.held);
        }
        Ok(sent)
    }
}

/// What became of a send.
#[derive(Default)]
struct Delivered {
    nodes: u64,
    /// Places in the target's list that some node holds.
    held: BTreeSet<usize>,
    /// With `confirm`, sockets that took it.
    clients: u64,
}

/// The uids of a send to an array of them.
struct Names(Option<Vec<Uid>>);

impl Names {
    fn of(command: &Command) -> Self {
        match command {
            Command::SendToUid(c) if c.uid.is_array() => Self(Some(c.uid.items().to_vec())),
            _ => Self(None),
        }
    }
}

fn nodes(nodes: u64) -> Reply {
    Reply::Sent(Sent { nodes, offline: None, clients: None })
}

async fn in_redis_time<T>(
    deadline: Instant,
    asked: impl Future<Output = Result<T, Unavailable>>,
) -> Result<T, Failure> {
    match timeout_at(deadline, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::RedisUnavailable("Redis did not answer in time".to_owned())),
    }
}

fn read_answer(answer: &Answer) -> Result<Done, Failure> {
    let done: Result<Result<Done, Failure>, _> = serde_json::from_str(answer.done.get());
    done.unwrap_or_else(|_| Err(Failure::Unreachable("a node's answer cannot be read".into())))
}

fn no_answer(id: ClientId) -> Failure {
    Failure::Unreachable(format!("the node of client {id} did not answer").into())
}

fn unanswered(heard: u64, answered: usize) -> Failure {
    Failure::Unreachable(format!("{answered} of {heard} nodes answered in time").into())
}

/// The label under which an end is counted; few, whatever clients send. Ours are told from those of others that have our
/// codes by their words.
fn kind(close: &Close) -> &'static str {
    const OURS: &[(Close, &str)] = &[
        (Close::CLOSED, "closed"),
        (Close::DESTROYED, "destroyed"),
        (Close::REPLACED, "replaced"),
        (Close::DRAIN, "drain"),
        (Close::FENCED, "drain"),
        (Close::IDLE, "idle"),
        (Close::SLOW, "slow"),
        (Close::UNBOUND, "unbound"),
        (Close::TOO_MANY, "too_many"),
        (Close::TOO_BIG, "too_big"),
        (Close::PROTOCOL, "protocol"),
        (Close::NOT_UTF8, "not_utf8"),
        (Close::NO_WORKER, "no_worker"),
        (Close::NODE, "node"),
    ];
    if let Some((_, kind)) = OURS.iter().find(|(ours, _)| ours == close) {
        return kind;
    }
    match close.code {
        1006 => "lost",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Arrival;
    use crate::config::Config;
    use crate::event::{Events, Origin};
    use crate::hub::Others;
    use crate::message::Protocol;
    use crate::php::Workers;

    #[test]
    fn an_end_with_our_code_and_the_words_of_others_is_not_counted_as_ours() {
        for (close, counted) in [
            (Close::SLOW, "slow"),
            (Close::IDLE, "idle"),
            (Close::FENCED, "drain"),
            (Close::LOST, "lost"),
            (Close::new(1000, "bye"), "normal"),
            // A page's `close(4002)`, and an application's `closeClient` with 1012 or 1013.
            (Close::new(4002, ""), "other"),
            (Close::new(1012, ""), "other"),
            (Close::new(1013, "try again later"), "other"),
        ] {
            assert_eq!(kind(&close), counted, "{close:?}");
        }
    }

    #[tokio::test]
    async fn a_client_leaves_without_a_turn_where_redis_is_away_or_not_needed() {
        // Nobody listens there.
        for settings in [&[][..], &[("MOONGATE_REDIS_URL", "redis://127.0.0.1:1")]] {
            let config = Config::read(settings.iter().map(|(name, value)| (name.into(), value.into()))).unwrap();
            let metrics = Arc::new(Metrics::new());
            let events = Arc::new(Events::new(config.events, Origin::default(), Arc::clone(&metrics)));
            let others = config.cluster.is_some().then(Others::default);
            let (hub, _shards) = Hub::start(1, None, &metrics, others, None, &events);
            let hub = Arc::new(hub);
            let monitor = Arc::new(Monitor::new(&hub, &metrics));
            let standing: Standing = Arc::new(|among_others| among_others);
            let cluster = config.cluster.map(|config| {
                Cluster::start(&config, &hub, &metrics, &monitor, &standing, Box::new(|_| Ok(()))).unwrap()
            });
            let (cluster, _rest) =
                cluster.map_or((None, None), |(cluster, told, tasks)| (Some(cluster), Some((told, tasks))));
            let workers = Arc::new(Workers::new(config.php.workers, false, Arc::clone(&metrics)));
            let lan = LanAddress { ip: [127, 0, 0, 1].into(), port: 2900 };
            let gateway = Gateway::new(
                hub,
                cluster,
                lan,
                workers,
                &config.clients,
                &config.time_zone,
                false,
                metrics,
                monitor,
                standing,
                Tracer::default(),
            );

            let door = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (peer, accepted) =
                tokio::join!(tokio::net::TcpStream::connect(door.local_addr().unwrap()), door.accept());
            let (_peer, (socket, peer)) = (peer.unwrap(), accepted.unwrap());
            let arrival = Arrival { peer, port: 7272, connected_at: 0 };
            let id = ClientId { lan, connection: 1 };
            let client = Client::new(id, arrival, Protocol::WebSocket, socket, gateway.send_limit());
            gateway.connected(Arc::clone(&client), false, None).await.unwrap();

            let _all_turns = gateway.leaving.acquire_many(MOST_LEAVING as u32).await.unwrap();
            let left = timeout(Duration::from_secs(10), gateway.leave(&client, Close::LOST)).await;
            let left = left.unwrap_or_else(|_| panic!("it waits for a turn, with {settings:?}")).unwrap();
            assert_eq!((left.close, gateway.hub().clients()), (Close::LOST, 0));
        }
    }
}
