//! The life of a node among the nodes: entering, its lease, leaving; judging and sweeping the dead is in `sweep`.
//!
//! One task owns the connection for commands. It connects, checks what answers, enters or confirms its lease, and only
//! then lets others use the connection; when that ends, it begins anew. A node whose lease was not renewed for its whole
//! time, in the eyes of a node that was itself in touch all that time, is dead. Whoever sees that first sweeps: it sets the
//! tombstone, has Redis cut the dead node's connections, so that nothing more of it can arrive, and then takes its clients
//! out of everything, its name last. Every step may be repeated, by this node or another. Tombstones stand for a day,
//! and a run that has one can enter no more: it closes its clients and goes on as a new run.

mod sweep;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::bus::{BEAT, Bus};
use super::directory::Directory;
use super::envelope::{self, Header};
use super::keys::Channel;
use super::redis::{Address, Alive, Command, ConnectError, Connection, NO_RING, RedisError, Reply};
use super::{Backoff, CannotListen, Identity, OpenLan, Refused, Shared, Tell};
use crate::config::ClusterConfig;
use crate::event::Origin;
use crate::hub::Hub;
use crate::message::Close;
use crate::metrics::ConsumerGroup;

/// A judge that has not looked for longer begins to watch anew, as one does that has connected anew.
const IN_TOUCH: Duration = Duration::from_secs(2);

/// Tombstones stand for so long: longer than any frozen process is worth waiting for.
const TOMBSTONE: Duration = Duration::from_hours(24);

/// A node says that it is there this often, so that one in another database of the same Redis is found out.
pub(super) const FACTS: Duration = Duration::from_secs(5);

/// Of so many consumer groups it is told how far they have come.
const MOST_GROUPS: usize = 100;

/// So many ports are tried for the LAN address.
const MOST_PORTS: u16 = 1000;

/// What entering came to.
enum Entered {
    In,
    /// Another process has the node id.
    NameTaken,
    /// This node has the LAN address.
    LanTaken(String),
    /// Whoever has the node id or the LAN address is dead and not swept to the end yet.
    BeingSwept,
    Swept,
}

/// When a lease was last seen to change.
struct Seen {
    lease: u64,
    since: Instant,
    /// It was seen to change: somebody renews it.
    renewed: bool,
}

/// The life of this node.
pub(super) struct Members {
    shared: Arc<Shared>,
    bus: Arc<Bus>,
    directory: Arc<Directory>,
    hub: Arc<Hub>,
    address: Address,
    ttl: Duration,
    fixed_id: bool,
    fixed_port: bool,
    first_port: u16,
    open_lan: OpenLan,
    /// Where the clients of the dead are told.
    tell: Tell,
    stop: CancellationToken,
    state: Mutex<State>,
    /// Held while the lease is renewed, and while it is given up.
    has_left: tokio::sync::Mutex<bool>,
    sweeps: Mutex<JoinSet<()>>,
    leaving: AtomicBool,
}

#[derive(Default)]
struct State {
    /// End of the lease as it was last written; 0 before the first.
    lease: u64,
    /// The server process that it was written to.
    run_id: Arc<str>,
    watched: HashMap<String, Seen>,
    /// Runs after which this node is sweeping.
    sweeping: HashSet<String>,
    last_look: Option<Instant>,
    /// When Redis last took this node's lease, or said that its place is another's.
    last_entered: Option<Instant>,
    last_facts: Option<Instant>,
    last_second_pass: Option<Instant>,
}

impl Members {
    #[allow(clippy::too_many_arguments)] // all that a node is made of; called once
    pub(super) fn new(
        config: &ClusterConfig,
        shared: &Arc<Shared>,
        bus: &Arc<Bus>,
        directory: &Arc<Directory>,
        hub: Arc<Hub>,
        address: Address,
        tell: Tell,
        stop: CancellationToken,
        open_lan: OpenLan,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            bus: Arc::clone(bus),
            directory: Arc::clone(directory),
            hub,
            address,
            ttl: config.node_ttl,
            fixed_id: config.node_id.is_some(),
            fixed_port: config.lan.port_is_set,
            first_port: config.lan.port,
            open_lan,
            tell,
            stop,
            state: Mutex::default(),
            has_left: tokio::sync::Mutex::default(),
            sweeps: Mutex::default(),
            leaving: AtomicBool::new(false),
        }
    }

    /// Lives until `stop`; returns early when there is no place for this node.
    pub(super) async fn live(self: &Arc<Self>) -> Option<Refused> {
        let mut backoff = Backoff::up_to(self.ttl / 4);
        let (mut has_entered, mut last) = (false, None);
        loop {
            let connected = tokio::select! {
                () = self.stop.cancelled() => return None,
                connected = Connection::open(&self.address, &self.shared.metrics, NO_RING) => connected,
            };
            let (connection, alive) = match connected {
                Ok(connected) => connected,
                Err(error @ (ConnectError::Unfit(_) | ConnectError::Replica)) if !has_entered => {
                    return Some(super::refused_url(Some(&self.address), &error));
                }
                Err(error) => {
                    if backoff.attempts().is_multiple_of(20) {
                        tracing::warn!(%error, "no connection to Redis; trying again");
                    }
                    self.pause(backoff.next()).await;
                    continue;
                }
            };
            // What others did while this node was away it has not seen: they have their whole time from here on.
            self.state.lock().last_look = None;
            if self.shared.identity().lan.ip.is_unspecified() {
                let ip = super::lan_ip(connection.place()).await;
                self.change_identity(|identity| identity.lan.ip = ip);
            }
            let entered = async {
                connection.bear_the_name_of(&self.shared.identity().run).await?;
                // What was not answered is repeated, and shall not be done once more after that.
                connection.take_over_from(&mut last).await?;
                self.find_place(&connection).await
            };
            let entered = entered.await;
            match entered {
                Ok(Ok(Entered::In)) => {
                    backoff.begin();
                    self.is_member(&connection, has_entered);
                    has_entered = true;
                    let why = self.stay(&connection, alive).await;
                    self.shared.link.set(None);
                    self.directory.may_write(None);
                    self.shared.metrics.redis_up.set(0);
                    if self.stop.is_cancelled() {
                        return None;
                    }
                    tracing::warn!(reason = why, "the connection to Redis ended");
                }
                Ok(Ok(_)) => self.fence().await,
                Ok(Err(refused)) if !has_entered => return Some(refused),
                Ok(Err(refused)) => tracing::error!(%refused, "no place among the nodes"),
                Err(error) => {
                    tracing::warn!(%error, "cannot enter the cluster; trying again");
                    self.pause(backoff.next()).await;
                }
            }
        }
    }

    /// Enters, or waits for whoever has the name or address to be gone; says if it lives on. On one connection, as a sweep
    /// after it may take long.
    async fn find_place(self: &Arc<Self>, connection: &Connection) -> Result<Result<Entered, Refused>, RedisError> {
        let is_member = *self.shared.member.borrow();
        let mut since = Instant::now();
        let mut waits = false;
        loop {
            if let Err(refused) = self.open_lan(is_member) {
                return Ok(Err(refused));
            }
            match self.enter(connection).await? {
                entered @ (Entered::In | Entered::Swept) => return Ok(Ok(entered)),
                Entered::LanTaken(_) if !self.fixed_port && !is_member => {
                    self.next_port();
                    continue;
                }
                Entered::BeingSwept => since = Instant::now(),
                _ if since.elapsed() <= self.ttl + IN_TOUCH => {}
                // Somebody came in between while Redis had lost its data, and client ids of this address are theirs now.
                _ if is_member => return Ok(Ok(Entered::Swept)),
                taken if self.lives(&taken) => return Ok(Err(self.taken(&taken))),
                // A dead one is waited for until it is swept: by this node, if need be. So it is where a snapshot has
                // brought back an earlier life of ours.
                _ => {}
            }
            if !std::mem::replace(&mut waits, true) {
                let Identity { node_id, lan, .. } = &*self.shared.identity();
                tracing::warn!(
                    node = node_id,
                    lan = %format_args!("{}:{}", lan.ip, lan.port),
                    "another node has this name or LAN address: waiting until it is dead and swept"
                );
            }
            self.judge(connection).await?;
            self.pause(BEAT / 2).await;
            if self.stop.is_cancelled() {
                return Err(RedisError::Away("this node stops".to_owned()));
            }
        }
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = sleep(time) => {}
        }
    }

    /// Whether the one who has what we need was seen to renew its lease of late.
    fn lives(&self, taken: &Entered) -> bool {
        let identity = self.shared.identity();
        let id = if let Entered::LanTaken(other) = taken { other } else { &identity.node_id };
        self.state.lock().watched.get(id).is_some_and(|seen| seen.renewed && seen.since.elapsed() < self.ttl)
    }

    fn taken(&self, taken: &Entered) -> Refused {
        let Identity { node_id, lan, .. } = &*self.shared.identity();
        match taken {
            Entered::LanTaken(other) => Refused {
                variable: "MOONGATE_LAN_PORT",
                why: format!(
                    "{}:{} is the LAN address of node {other}, which lives; node {node_id} needs another",
                    lan.ip, lan.port
                ),
            },
            _ => Refused { variable: "MOONGATE_NODE_ID", why: format!("another process named {node_id} lives") },
        }
    }

    /// Has this node's LAN address listened at, if need be at another port.
    fn open_lan(&self, is_member: bool) -> Result<(), Refused> {
        let mut attempts = 0;
        loop {
            match (self.open_lan)(self.shared.identity().lan) {
                Ok(()) => return Ok(()),
                Err(CannotListen::PortTaken(_)) if !self.fixed_port && !is_member && attempts < MOST_PORTS => {
                    attempts += 1;
                    self.next_port();
                }
                Err(CannotListen::PortTaken(refused) | CannotListen::Never(refused)) => return Err(refused),
            }
        }
    }

    fn next_port(&self) {
        self.change_identity(|identity| {
            identity.lan.port = identity.lan.port.checked_add(1).unwrap_or(self.first_port);
        });
    }

    fn change_identity(&self, change: impl FnOnce(&mut Identity)) {
        let mut identity = self.shared.identity.write();
        let mut next = Identity::clone(&identity);
        change(&mut next);
        self.hub.events().set_origin(Origin { node: next.node_id.clone(), run: next.run.clone() });
        *identity = Arc::new(next);
    }

    /// Enters, or renews the lease; on a new connection and every now and then.
    async fn enter(&self, connection: &Connection) -> Result<Entered, RedisError> {
        let has_left = self.has_left.lock().await;
        if *has_left {
            // What has left does not come back; it is about to stop.
            return std::future::pending().await;
        }
        let identity = self.shared.identity();
        let (keys, last) = (&self.shared.keys, self.state.lock().lease);
        let script = Command::script(
            include_str!("../scripts/lease.lua"),
            [keys.nodes(), keys.runs(), keys.lan(), keys.swept()],
        );
        let script = script
            .arg(identity.node_id.as_str())
            .arg(identity.run.as_str())
            .arg(identity.lan.to_string())
            .arg(self.ttl.as_millis() as u64)
            .arg(last)
            .arg(TOMBSTONE.as_millis() as u64);
        let asked = Instant::now();
        let reply = connection.call(script).await?.list();
        let number = |place: usize| reply.get(place).map_or(0, Reply::number);
        self.shared.clock.set(asked, number(1));
        let entered = match number(0) {
            1 | 2 => Entered::In,
            4 => Entered::LanTaken(reply.get(3).cloned().and_then(Reply::text).unwrap_or_default()),
            5 => Entered::Swept,
            6 => Entered::BeingSwept,
            _ => Entered::NameTaken,
        };
        self.state.lock().last_entered = Some(asked);
        if matches!(entered, Entered::In) {
            self.state.lock().lease = number(2);
            if number(0) == 2 && last > 0 {
                tracing::warn!("the lease was not the one last written: Redis has lost data, or has older data back");
                self.state.lock().last_facts = None;
                self.directory.compare();
            }
            self.write_vitals(connection, &identity, number(1)).await?;
            self.write_facts(connection, &identity).await?;
            self.directory.may_write(Some(asked + self.ttl));
            self.shared.metrics.lease_end.set(number(2) as f64 / 1000.0);
        }
        Ok(entered)
    }

    fn is_member(&self, connection: &Connection, before: bool) {
        let other_server = {
            let mut state = self.state.lock();
            let other = state.run_id != connection.mark.run_id;
            state.run_id = Arc::clone(&connection.mark.run_id);
            other
        };
        let identity = self.shared.identity();
        if before && other_server {
            tracing::warn!("Redis was restarted or replaced");
            self.directory.compare();
        }
        self.shared.link.set(Some(connection.clone()));
        self.bus.hurry();
        self.shared.metrics.redis_up.set(1);
        self.directory.may_write(Some(Instant::now() + self.ttl));
        self.shared.member.send_replace(true);
        tracing::info!(
            node = %identity.node_id,
            lan = %format_args!("{}:{}", identity.lan.ip, identity.lan.port),
            redis = connection.place().map(tracing::field::display),
            "in touch with Redis"
        );
    }

    /// Stays until the connection ends; says why.
    async fn stay(self: &Arc<Self>, connection: &Connection, mut alive: Alive) -> &'static str {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut left = Box::pin(self.address.left(connection));
        loop {
            tokio::select! {
                biased;
                () = alive.ended() => return "it was closed",
                () = &mut left => return "Redis is at another place now",
                () = self.stop.cancelled() => return "this node stops",
                _ = beats.tick() => {}
            }
            match self.enter(connection).await {
                Ok(Entered::In) => {}
                Ok(Entered::Swept | Entered::BeingSwept | Entered::NameTaken | Entered::LanTaken(_)) => {
                    // Stands outside from now on; entering anew finds out more.
                    return "this node lost its place";
                }
                Err(RedisError::Away(_)) => return "Redis did not answer",
                Err(error) if error.is_of_a_replica() => return "it is a replica now",
                Err(error) => {
                    // Full memory, say: then others cannot renew theirs either, and nobody shall be taken for dead.
                    tracing::error!(%error, "cannot renew the lease");
                    self.state.lock().last_look = None;
                }
            }
            if self.bus.beat().await.is_err() || self.look_around(connection).await.is_err() {
                return "Redis did not answer";
            }
        }
    }

    async fn look_around(self: &Arc<Self>, connection: &Connection) -> Result<(), RedisError> {
        match self.judge(connection).await {
            Err(error @ RedisError::Refused { .. }) => {
                tracing::error!(%error, "cannot look after the other nodes");
                Ok(())
            }
            result => result,
        }
    }

    /// What anybody may know of this node, at this time by Redis' clock.
    async fn write_vitals(&self, connection: &Connection, identity: &Identity, at: u64) -> Result<(), RedisError> {
        let Identity { node_id, lan, .. } = identity;
        let ready = self.shared.readiness(&self.bus);
        let vitals = self.shared.monitor.look(format!("{}:{}", lan.ip, lan.port), ready.words());
        let fields = vitals.fields().into_iter().chain([("at", at.to_string())]);
        let fields = fields.flat_map(|(name, value)| [name.to_owned(), value]);
        connection.call(Command::hset(self.shared.keys.node(node_id)).args(fields)).await.map(drop)
    }

    /// What need not be told with every heartbeat: that this node is there, and how long the stream of events is.
    async fn write_facts(&self, connection: &Connection, identity: &Identity) -> Result<(), RedisError> {
        {
            let mut state = self.state.lock();
            if state.last_facts.is_some_and(|at| at.elapsed() < FACTS) {
                return Ok(());
            }
            state.last_facts = Some(Instant::now());
        }
        self.look_at_events(connection).await?;
        let said = envelope::seal(Header::Node(identity.node_id.clone()), b"");
        let channel = self.shared.keys.channel(&Channel::Ask);
        connection.call(connection.publication(channel, said)).await.map(drop)
    }

    /// How long the stream of events is, and how far each of those who read it has come.
    async fn look_at_events(&self, connection: &Connection) -> Result<(), RedisError> {
        if !self.hub.events().has_stream() {
            return Ok(());
        }
        let (stream, metrics) = (self.shared.keys.events(), &self.shared.metrics);
        let looks = vec![Command::xlen(stream.as_str()), Command::xinfo("GROUPS").arg(stream)];
        let mut replies = connection.pipeline(looks).await?.into_iter();
        let as_gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        if let Some(Ok(length)) = replies.next() {
            metrics.events_length.set(as_gauge(length.number()));
        }
        // It is refused as long as there is no stream. Before Redis 7 nothing is known of a lag.
        metrics.events_lag.clear();
        let groups = replies.next().and_then(Result::ok).map(Reply::list).unwrap_or_default();
        for group in groups.into_iter().take(MOST_GROUPS) {
            let fields: HashMap<String, String> = group.pairs().into_iter().collect();
            if let (Some(name), Some(Ok(lag))) = (fields.get("name"), fields.get("lag").map(|lag| lag.parse())) {
                metrics.events_lag.get_or_create(&ConsumerGroup { group: name.clone() }).set(lag);
            }
        }
        Ok(())
    }

    // --- the end ---

    /// This run was swept: its clients are gone for all others, and are told so.
    async fn fence(&self) {
        let before = self.shared.identity();
        tracing::error!(
            node = %before.node_id,
            clients = self.hub.clients(),
            "this node was taken for dead and swept: closing its clients, and going on as a new node"
        );
        self.shared.metrics.fenced.inc();
        self.shared.member.send_replace(false);
        self.shared.link.set(None);
        self.directory.may_write(None);
        loop {
            let close = |shard: &mut crate::hub::Shard| shard.close_some(usize::MAX, &Close::FENCED);
            // Nobody is told any more: others have told it.
            if self.hub.at_all(close).await.is_err()
                || self.hub.at_all(crate::hub::Shard::forget_changes).await.is_err()
            {
                break;
            }
            if self.hub.clients() == 0 {
                break;
            }
            self.pause(Duration::from_millis(20)).await;
        }
        self.change_identity(|identity| {
            identity.run = uuid::Uuid::new_v4().to_string();
            if !self.fixed_id {
                identity.node_id.clone_from(&identity.run);
            }
            if !self.fixed_port {
                identity.lan.port = self.first_port;
            }
        });
        let mut state = self.state.lock();
        (state.lease, state.last_facts) = (0, None);
    }

    /// Leaves: what this node has written is gone, its name last.
    pub(super) async fn leave(&self) {
        let identity = self.shared.identity();
        // Whom a sweep took out is told; what it leaves, another node takes.
        self.leaving.store(true, Ordering::Release);
        let mut sweeps = std::mem::take(&mut *self.sweeps.lock());
        while sweeps.join_next().await.is_some() {}
        loop {
            self.tell.all_told().await;
            let quiet = self.hub.others().topics.count();
            self.bus.confirmed(quiet).await;
            let result = match self.shared.link.get() {
                Ok(connection) => self.try_to_leave(&connection, &identity).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "cannot leave yet"),
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.stop.cancel();
    }

    async fn try_to_leave(&self, connection: &Connection, identity: &Identity) -> Result<bool, RedisError> {
        let keys = &self.shared.keys;
        let index = keys.index(&identity.run);
        let is_told = self.hub.at_all(|shard| shard.is_told()).await.unwrap_or_default();
        if self.hub.clients() > 0
            || is_told.contains(&false)
            || connection.call(Command::exists(index)).await?.number() > 0
        {
            return Ok(false);
        }
        // No renewal is under way now, and none follows.
        let mut has_left = self.has_left.lock().await;
        connection.call(Command::del(keys.node(&identity.node_id))).await?;
        connection.call(self.leaving_of(&identity.node_id, &identity.run)).await?;
        *has_left = true;
        Ok(true)
    }

    /// Takes a run's name out.
    fn leaving_of(&self, node_id: &str, run: &str) -> Command {
        let keys = &self.shared.keys;
        let keys = [keys.nodes(), keys.runs(), keys.lan(), keys.php()];
        let leave = Command::script(include_str!("../scripts/leave.lua"), keys);
        leave.arg(node_id).arg(run)
    }
}
