//! The life of a node among the nodes: entering, its lease, judging and sweeping the dead, leaving.
//!
//! One task owns the connection for commands. It connects, checks what answers, enters or confirms its lease, and only
//! then lets others use the connection; when that ends, it begins anew. A node whose lease was not renewed for its whole
//! time, in the eyes of a node that was itself in touch all that time, is dead. Whoever sees that first sweeps: it sets the
//! tombstone, has Redis cut the dead node's connections, so that nothing more of it can arrive, and then takes its clients
//! out of everything, its name last. Every step may be repeated, by this node or another. Tombstones stand for a day,
//! and a run that has one can enter no more: it closes its clients and goes on as a new run.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::bus::{BEAT, Bus};
use super::directory::{Directory, Entry, read_facts, removal};
use super::envelope::{self, Header};
use super::keys::Channel;
use super::redis::{Address, Alive, Command, ConnectError, Connection, NO_RING, RedisError, Reply};
use super::{Backoff, Identity, Refused, Shared, Tell};
use crate::client::Departed;
use crate::config::ClusterConfig;
use crate::hub::Hub;
use crate::message::Close;
use crate::metrics::Reason;

/// A judge that lost Redis for longer begins to watch anew.
const IN_TOUCH: Duration = Duration::from_secs(2);

/// Tombstones stand for so long: longer than any frozen process is worth waiting for.
const TOMBSTONE: Duration = Duration::from_hours(24);

/// A sweeper that has not renewed its claim for so long has died itself.
const SWEEPER: Duration = Duration::from_secs(3);

/// Clients swept in one go.
const SWEPT_AT_ONCE: usize = 500;

/// The public facts of a node are written this often.
pub(super) const FACTS: Duration = Duration::from_secs(5);

/// What entering came to.
enum Entered {
    Renewed,
    /// There was no lease, or not the one last written.
    Anew,
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
    /// Where the clients of the dead are told.
    tell: Tell,
    stop: CancellationToken,
    state: Mutex<State>,
    /// Held while the lease is renewed, and while it is given up.
    has_left: tokio::sync::Mutex<bool>,
    sweeps: Mutex<JoinSet<()>>,
    leaving: AtomicBool,
    started_at: u64,
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
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            bus: Arc::clone(bus),
            directory: Arc::clone(directory),
            hub,
            address,
            ttl: config.node_ttl,
            fixed_id: config.node_id.is_some(),
            fixed_port: config.lan_port_is_set,
            first_port: config.lan_port,
            tell,
            stop,
            state: Mutex::default(),
            has_left: tokio::sync::Mutex::default(),
            sweeps: Mutex::default(),
            leaving: AtomicBool::new(false),
            started_at: jiff::Timestamp::now().as_millisecond().unsigned_abs(),
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
                Err(error @ ConnectError::Unfit(_)) if !has_entered => return Some(super::refused_url(&error)),
                Err(error) => {
                    if backoff.attempts().is_multiple_of(20) {
                        tracing::warn!(%error, "no connection to Redis; trying again");
                    }
                    self.pause(backoff.next()).await;
                    continue;
                }
            };
            if self.shared.identity().lan.ip.is_unspecified() {
                let ip = super::lan_ip(&self.address).await;
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
                Ok(Ok(entered @ (Entered::Renewed | Entered::Anew))) => {
                    backoff.begin();
                    self.is_member(&connection, &entered, has_entered);
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
        loop {
            match self.enter(connection).await? {
                entered @ (Entered::Renewed | Entered::Anew | Entered::Swept) => return Ok(Ok(entered)),
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

    fn next_port(&self) {
        self.change_identity(|identity| {
            identity.lan.port = identity.lan.port.checked_add(1).unwrap_or(self.first_port);
        });
    }

    fn change_identity(&self, change: impl FnOnce(&mut Identity)) {
        let mut identity = self.shared.identity.write();
        let mut next = Identity::clone(&identity);
        change(&mut next);
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
        let script =
            Command::script(include_str!("scripts/lease.lua"), [keys.nodes(), keys.runs(), keys.lan(), keys.swept()]);
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
            1 => Entered::Renewed,
            2 => Entered::Anew,
            4 => Entered::LanTaken(reply.get(3).cloned().and_then(Reply::text).unwrap_or_default()),
            5 => Entered::Swept,
            6 => Entered::BeingSwept,
            _ => Entered::NameTaken,
        };
        self.state.lock().last_entered = Some(asked);
        if matches!(entered, Entered::Renewed | Entered::Anew) {
            {
                let mut state = self.state.lock();
                state.lease = number(2);
                if matches!(entered, Entered::Anew) {
                    state.last_facts = None;
                }
            }
            self.write_facts(connection, &identity).await?;
            self.directory.may_write(Some(asked + self.ttl));
            self.shared.metrics.lease_end.set(number(2) as f64 / 1000.0);
        }
        Ok(entered)
    }

    fn is_member(&self, connection: &Connection, entered: &Entered, before: bool) {
        let other_server = {
            let mut state = self.state.lock();
            let other = state.run_id != connection.mark.run_id;
            state.run_id = Arc::clone(&connection.mark.run_id);
            other
        };
        let identity = self.shared.identity();
        if before && (other_server || matches!(entered, Entered::Anew)) {
            tracing::warn!("Redis is another one, has lost data, or has a lease that this node did not know");
            self.directory.compare();
        }
        self.shared.link.set(Some(connection.clone()));
        self.bus.hurry();
        self.shared.metrics.redis_up.set(1);
        self.directory.may_write(Some(Instant::now() + self.ttl));
        self.shared.member.send_replace(true);
        tracing::info!(node = %identity.node_id, lan = %format_args!("{}:{}", identity.lan.ip, identity.lan.port), "in touch with Redis");
    }

    /// Stays until the connection ends; says why.
    async fn stay(self: &Arc<Self>, connection: &Connection, mut alive: Alive) -> &'static str {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = alive.ended() => return "it was closed",
                () = self.stop.cancelled() => return "this node stops",
                _ = beats.tick() => {}
            }
            match self.enter(connection).await {
                Ok(Entered::Renewed) => {}
                Ok(Entered::Anew) => {
                    tracing::warn!("the lease was not the one last written");
                    self.directory.compare();
                }
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

    /// What anybody may know of this node.
    async fn write_facts(&self, connection: &Connection, identity: &Identity) -> Result<(), RedisError> {
        {
            let mut state = self.state.lock();
            if state.last_facts.is_some_and(|at| at.elapsed() < FACTS) {
                return Ok(());
            }
            state.last_facts = Some(Instant::now());
        }
        let Identity { node_id, lan, .. } = identity;
        let facts = [
            ("lan", format!("{}:{}", lan.ip, lan.port)),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("started_at", self.started_at.to_string()),
            ("clients", self.hub.clients().to_string()),
            ("uids", self.hub.uid_count().to_string()),
            ("groups", self.hub.group_count().to_string()),
        ];
        let facts = facts.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let command = Command::hset(self.shared.keys.node(node_id)).args(facts);
        connection.call(command).await?;
        let said = envelope::seal(Header::Node(node_id.clone()), b"");
        let channel = self.shared.keys.channel(&Channel::Ask);
        connection.call(Command::publish(channel).arg(said)).await.map(drop)
    }

    // --- the others ---

    /// Looks whether others renew their leases, and sweeps after those that do not.
    async fn judge(self: &Arc<Self>, connection: &Connection) -> Result<(), RedisError> {
        let keys = &self.shared.keys;
        let look =
            vec![Command::zrange(keys.nodes()).arg(0).arg("-1").arg("WITHSCORES"), Command::hgetall(keys.runs())];
        let mut replies = connection.pipeline(look).await?.into_iter();
        let mut next = || replies.next().unwrap_or_else(|| Err(RedisError::Away("no answer".to_owned())));
        let leases = next()?.scores();
        let runs: HashMap<String, String> = next()?.pairs().into_iter().collect();
        let own = self.shared.identity();
        let now = self.shared.clock.now().unwrap_or_default();
        let known: HashSet<&str> = leases.iter().map(|(id, _)| id.as_str()).collect();
        for foreign in self.shared.peers.foreign(|id| known.contains(id), self.ttl) {
            tracing::error!(
                node = foreign,
                "a foreign node speaks under this MOONGATE_PREFIX: it is in another database of the same Redis, and hears all we say"
            );
            self.shared.metrics.foreign_nodes.inc();
        }
        let dead: Vec<(String, u64)> = {
            let mut state = self.state.lock();
            // While Redis takes no writes, nobody can renew.
            if [state.last_look, state.last_entered].iter().any(|at| at.is_none_or(|at| at.elapsed() > IN_TOUCH)) {
                state.watched.clear();
            }
            state.last_look = Some(Instant::now());
            state.watched.retain(|id, _| known.contains(id.as_str()));
            let others = leases.iter().filter(|(id, _)| runs.get(id) != Some(&own.run));
            let mut dead = Vec::new();
            for (id, lease) in others {
                let seen = state.watched.entry(id.clone()).or_insert_with(|| Seen {
                    lease: *lease,
                    since: Instant::now(),
                    renewed: false,
                });
                if seen.lease != *lease {
                    *seen = Seen { lease: *lease, since: Instant::now(), renewed: true };
                }
                if seen.since.elapsed() >= self.ttl && now > *lease {
                    dead.push((id.clone(), *lease));
                }
            }
            dead
        };
        self.shared.metrics.nodes.set(i64::try_from(leases.len()).unwrap_or(i64::MAX));
        for (id, lease) in dead {
            let run = runs.get(&id).cloned().unwrap_or_default();
            self.sweep_apart(connection, run, Some((id, lease)));
        }
        self.second_pass(connection).await
    }

    /// Sweeps in a task of its own, as it may take longer than our own lease; one for each run. Without a name, what a run
    /// that was swept has written late.
    fn sweep_apart(self: &Arc<Self>, connection: &Connection, run: String, name: Option<(String, u64)>) {
        let mut sweeps = self.sweeps.lock();
        while sweeps.try_join_next().is_some() {}
        if self.leaving.load(Ordering::Acquire) || !self.state.lock().sweeping.insert(run.clone()) {
            return;
        }
        let (members, connection) = (Arc::clone(self), connection.clone());
        sweeps.spawn(async move {
            let swept = match &name {
                Some((id, lease)) => members.sweep(&connection, id, &run, *lease).await,
                None => members.sweep_late(&connection, &run).await,
            };
            if let Err(error) = swept {
                tracing::warn!(%error, run, "cannot sweep after a dead node; trying again");
            }
            members.state.lock().sweeping.remove(&run);
        });
    }

    /// Takes a dead node out of everything.
    async fn sweep(&self, connection: &Connection, id: &str, run: &str, lease: u64) -> Result<(), RedisError> {
        let keys = &self.shared.keys;
        if !self.claim(connection, run, true).await? {
            return Ok(());
        }
        let fence = Command::script(include_str!("scripts/fence.lua"), [keys.nodes(), keys.runs(), keys.swept()]);
        let fence = fence.arg(id).arg(run).arg(lease).arg(TOMBSTONE.as_millis() as u64);
        if !run.is_empty() && connection.call(fence).await?.number() == 0 {
            return Ok(());
        }
        tracing::warn!(node = id, "a node is dead: sweeping after it");
        // Nothing more of it shall arrive: its connections bear its run for a name, from their first moment on.
        let list = connection.call(Command::client("LIST")).await?.text().unwrap_or_default();
        let name = super::redis::connection_name(run);
        for line in list.lines() {
            let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            if let (Some(Ok(id)), true) = (field("id").map(str::parse), field("name") == Some(name.as_str())) {
                connection.kill(id).await?;
            }
        }
        let swept = self.sweep_index(connection, run).await?;
        connection.call(Command::del(keys.node(id))).await?;
        let leave = Command::script(include_str!("scripts/leave.lua"), [keys.nodes(), keys.runs(), keys.lan()]);
        let gone = if run.is_empty() {
            // Remnants that no script made: a name without a run.
            connection.call(Command::zrem(keys.nodes()).arg(id)).await?
        } else {
            connection.call(leave.arg(id).arg(run)).await?
        };
        connection.call(Command::del(keys.sweeper(run))).await?;
        // Of two sweepers, the one that took the name out counts it.
        if gone.number() > 0 {
            self.shared.metrics.swept_nodes.inc();
        }
        tracing::warn!(node = id, clients = swept, "swept after a dead node");
        Ok(())
    }

    /// What came late: a node that was cut off between two writes, or frozen in the middle of one.
    async fn second_pass(self: &Arc<Self>, connection: &Connection) -> Result<(), RedisError> {
        {
            let mut state = self.state.lock();
            if state.last_second_pass.is_some_and(|at| at.elapsed() < self.ttl) {
                return Ok(());
            }
            state.last_second_pass = Some(Instant::now());
        }
        let keys = &self.shared.keys;
        let tombstones = Command::zrange(keys.swept()).arg(0).arg("-1").arg("WITHSCORES");
        let runs: Vec<String> = connection.call(tombstones).await?.scores().into_iter().map(|(run, _)| run).collect();
        let indexes: Vec<Command> = runs.iter().map(|run| Command::exists(keys.index(run))).collect();
        for (run, exists) in runs.into_iter().zip(connection.pipeline(indexes).await?) {
            if exists?.number() > 0 {
                self.sweep_apart(connection, run, None);
            }
        }
        Ok(())
    }

    async fn sweep_late(&self, connection: &Connection, run: &str) -> Result<(), RedisError> {
        if self.claim(connection, run, true).await? {
            let clients = self.sweep_index(connection, run).await?;
            connection.call(Command::del(self.shared.keys.sweeper(run))).await?;
            tracing::warn!(clients, "swept what a dead node wrote late");
        }
        Ok(())
    }

    /// Claims the right to sweep after a run; or renews the claim.
    async fn claim(&self, connection: &Connection, run: &str, first: bool) -> Result<bool, RedisError> {
        let claim = Command::set(self.shared.keys.sweeper(run)).arg(self.shared.identity().run.as_str());
        let claim = claim.arg(if first { "NX" } else { "XX" }).arg("PX").arg(SWEEPER.as_millis() as u64);
        Ok(connection.call(claim).await?.text().is_some())
    }

    /// Takes the clients in a dead run's index out of everything, the index last; returns how many there were.
    async fn sweep_index(&self, connection: &Connection, run: &str) -> Result<usize, RedisError> {
        let keys = &self.shared.keys;
        let index = keys.index(run);
        let (mut swept, mut cursor) = (0, "0".to_owned());
        loop {
            let scan = Command::hscan(index.as_str()).arg(cursor).arg("COUNT").arg(SWEPT_AT_ONCE as u64);
            let mut found = connection.call(scan).await?.list().into_iter();
            // Only the cursor says when it is over: of a large hash, what a step finds may be nothing.
            cursor = found.next().and_then(Reply::text).unwrap_or_else(|| "0".to_owned());
            let pairs = found.next().map(Reply::pairs).unwrap_or_default();
            self.claim(connection, run, false).await?;
            let (entries, unreadable): (Vec<_>, Vec<_>) =
                pairs.iter().map(|(id, value)| Entry::read(id, value).ok_or(id)).partition(Result::is_ok);
            let entries: Vec<Entry> = entries.into_iter().flatten().collect();
            for id in unreadable.into_iter().filter_map(Result::err) {
                tracing::error!(client = id, "a dead node's index is damaged here");
                connection.call(Command::hdel(index.as_str()).arg(id.as_str())).await?;
            }
            // A small hash is told all at once.
            for entries in entries.chunks(SWEPT_AT_ONCE) {
                if self.leaving.load(Ordering::Acquire) {
                    return Err(RedisError::Away("this node stops".to_owned()));
                }
                self.sweep_clients(connection, run, entries).await?;
                swept += entries.len();
            }
            if cursor == "0" {
                return Ok(swept);
            }
        }
    }

    async fn sweep_clients(&self, connection: &Connection, run: &str, entries: &[Entry]) -> Result<(), RedisError> {
        let keys = &self.shared.keys;
        let index = keys.index(run);
        let index = index.as_str();
        // What they had, for their farewell.
        let hashes = entries.iter().map(|entry| Command::hgetall(keys.client(entry.id))).collect();
        let hashes = connection.pipeline(hashes).await?;
        // A key of a wrong type is somebody else's doing; the others go on.
        for refused in connection.pipeline(removal(keys, entries)).await?.into_iter().filter_map(Result::err) {
            if refused.is_server_wide() {
                return Err(refused);
            }
            tracing::error!(error = %refused, "sweeping after a dead node");
        }
        // There is room for all of them before the first is taken out: what was taken out is told.
        let mut room = loop {
            tokio::select! {
                room = self.tell.room(entries.len()) => break room,
                () = sleep(SWEEPER / 3) => drop(self.claim(connection, run, false).await?),
            }
        };
        // What a client had goes last, with its name: a sweeper that is interrupted leaves all of it to the next one.
        let out =
            entries.iter().flat_map(|entry| [Command::del(keys.client(entry.id)), Command::hdel(index).arg(entry.id)]);
        let out = connection.pipeline(out.collect()).await;
        for (place, (entry, hash)) in entries.iter().zip(hashes).enumerate() {
            // Of two sweepers, the one that took it out tells; where that is not known, better both.
            let is_taken = |out: &Vec<Result<Reply, RedisError>>| matches!(out.get(2 * place + 1), Some(Ok(out)) if out.number() > 0);
            if !out.as_ref().map_or(true, is_taken) {
                continue;
            }
            let session = hash.ok().and_then(read_facts).and_then(|facts| facts.session);
            let Entry { id, uid, groups } = entry.clone();
            self.shared.metrics.closed.get_or_create(&Reason { reason: "node" }).inc();
            // Nobody listens when this node stops.
            if let Some(untold) = room.as_mut().and_then(|room| room.split(1)) {
                self.tell.tell_now(Departed { id, uid, groups, session, close: Close::NODE }, untold);
            }
        }
        out.map(drop)
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
            let close = |shard: &mut crate::hub::Shard| shard.close_some(usize::MAX, &Close::DRAIN);
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
        if self.hub.clients() > 0 || connection.call(Command::exists(index)).await?.number() > 0 {
            return Ok(false);
        }
        // No renewal is under way now, and none follows.
        let mut has_left = self.has_left.lock().await;
        connection.call(Command::del(keys.node(&identity.node_id))).await?;
        let leave = Command::script(include_str!("scripts/leave.lua"), [keys.nodes(), keys.runs(), keys.lan()]);
        connection.call(leave.arg(identity.node_id.as_str()).arg(identity.run.as_str())).await?;
        *has_left = true;
        self.shared.member.send_replace(false);
        Ok(true)
    }
}
