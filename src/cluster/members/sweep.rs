//! Judging whether other nodes live, and sweeping after those that do not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{IN_TOUCH, Members, Seen, TOMBSTONE};
use crate::client::Departed;
use crate::cluster::directory::{Entry, Facts, add_event, read_facts, read_uid_change, rebound_event, removal};
use crate::cluster::redis::{Command, Connection, RedisError, Reply};
use crate::event::{About, Event, Kind, Number, Origin, Room, What};
use crate::message::Close;
use crate::metrics::Reason;

/// A sweeper that has not renewed its claim for so long has died itself.
const SWEEPER: Duration = Duration::from_secs(3);

/// Clients swept in one go.
const SWEPT_AT_ONCE: usize = 500;

impl Members {
    /// Looks whether others renew their leases, and sweeps after those that do not.
    pub(super) async fn judge(self: &Arc<Self>, connection: &Connection) -> Result<(), RedisError> {
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
        let fence = Command::script(include_str!("../scripts/fence.lua"), [keys.nodes(), keys.runs(), keys.swept()]);
        let fence = fence.arg(id).arg(run).arg(lease).arg(TOMBSTONE.as_millis() as u64);
        if !run.is_empty() && connection.call(fence).await?.number() == 0 {
            return Ok(());
        }
        tracing::warn!(node = id, "a node is dead: sweeping after it");
        // Nothing more of it shall arrive: its connections bear its run for a name, from their first moment on.
        connection.end_all_of(run).await?;
        let swept = self.sweep_index(connection, run).await?;
        connection.call(Command::del(keys.node(id))).await?;
        let gone = if run.is_empty() {
            // Remnants that no script made: a name without a run.
            connection.call(Command::zrem(keys.nodes()).arg(id)).await?
        } else {
            connection.call(self.leaving_of(id, run)).await?
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

    /// A node that stops leaves the rest to others.
    fn may_go_on(&self) -> Result<(), RedisError> {
        if self.leaving.load(Ordering::Acquire) {
            return Err(RedisError::Away("this node stops".to_owned()));
        }
        Ok(())
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
                self.may_go_on()?;
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
        let (index, events) = (keys.index(run), self.hub.events());
        let index = index.as_str();
        // What they had, for their farewell.
        let hashes = entries.iter().map(|entry| Command::hgetall(keys.client(entry.id))).collect();
        let facts = connection.pipeline(hashes).await?.into_iter().map(|hash| hash.ok().and_then(read_facts));
        let gone: Vec<(Entry, About)> = entries.iter().cloned().zip(facts).map(|gone| about(gone, run)).collect();
        let (commands, unbound) = removal(keys, events, &gone);
        // A key of a wrong type is somebody else's doing; the others go on.
        for refused in connection.pipeline(commands).await?.into_iter().filter_map(Result::err) {
            if refused.is_server_wide() {
                return Err(refused);
            }
            tracing::error!(error = %refused, "sweeping after a dead node");
        }
        let unbound = connection.pipeline(unbound).await?;
        server_wide(&unbound)?;
        let mut unbound = unbound.into_iter();
        let mut unbound = gone.iter().map(|(entry, _)| entry.uid.as_ref().and_then(|_| unbound.next()));
        let unbound: Vec<Option<What>> =
            unbound.by_ref().map(|reply| Some(read_uid_change(Kind::Unbound, &reply?.ok()?.list()).1)).collect();
        // There is room for all of them before the first is taken out: what was taken out is told.
        let mut room = loop {
            tokio::select! {
                room = self.tell.room(entries.len()) => break room,
                () = sleep(SWEEPER / 3) => {
                    self.may_go_on()?;
                    self.claim(connection, run, false).await?;
                }
            }
        };
        // It is told before nobody else would tell it; told twice, it has the same id.
        let mut told = Vec::new();
        for ((entry, about), what) in gone.iter().zip(&unbound) {
            // On one server the script has told it.
            if let (Some(uid), Some(what)) = (&entry.uid, what)
                && keys.are_sharded()
                && events.is_for_stream(Kind::Unbound)
            {
                let about = About { number: Number::LastUnbound, ..about.clone() };
                told.push(add_event(keys, events, rebound_event(&about, uid, what.clone()).to_fields()));
            }
            if events.is_for_stream(Kind::Close) {
                told.push(add_event(keys, events, close(entry, about).to_fields()));
            }
        }
        if !told.is_empty() {
            server_wide(&connection.pipeline(told).await?)?;
        }
        // What a client had goes last, with its name: a sweeper that is interrupted leaves all of it to the next one.
        let hashes = entries.iter().map(|entry| Command::del(keys.client(entry.id))).collect();
        let names = entries.iter().map(|entry| Command::hdel(index).arg(entry.id)).collect();
        let out = connection.pipeline_in_steps(vec![hashes, names]).await;
        // Of two sweepers, the one that took a client out tells; where that is not known, better both.
        let tells = |place: usize| match &out {
            Ok(out) => matches!(out.get(entries.len() + place), Some(Ok(out)) if out.number() > 0),
            Err(_) => true,
        };
        for (place, ((entry, about), unbound)) in gone.into_iter().zip(unbound).enumerate() {
            if !tells(place) {
                continue;
            }
            if let (Some(what), Some(room)) = (unbound, events.room(Kind::Unbound, about.length())) {
                let about = About { number: Number::LastUnbound, ..about.clone() };
                events.tell(Event { about, uid: entry.uid.clone(), what, room });
            }
            if events.has(Kind::Close)
                && let Some(room) = events.room(Kind::Close, about.length())
            {
                events.tell(Event { room, ..close(&entry, &about) });
            }
            let Entry { id, uid, groups } = entry;
            self.shared.metrics.closed.get_or_create(&Reason { reason: "node" }).inc();
            // Nobody listens when this node stops.
            if let Some(untold) = room.as_mut().and_then(|room| room.split(1)) {
                let departed = Departed { id, uid, groups, session: about.session, close: Close::NODE };
                self.tell.tell_now(departed, untold);
            }
        }
        match out?.into_iter().find_map(|out| out.err().filter(RedisError::is_server_wide)) {
            Some(refused) => Err(refused),
            None => Ok(()),
        }
    }
}

/// What the server takes from nobody now is tried again, before those it is about are forgotten.
fn server_wide(replies: &[Result<Reply, RedisError>]) -> Result<(), RedisError> {
    for refused in replies.iter().filter_map(|reply| reply.as_ref().err()) {
        if refused.is_server_wide() {
            return Err(refused.clone());
        }
        tracing::error!(error = %refused, "telling of a dead node's clients");
    }
    Ok(())
}

/// Whom the end of a dead node's client is told of.
fn about((entry, facts): (Entry, Option<Facts>), run: &str) -> (Entry, About) {
    let (session, node) = facts.map(|facts| (facts.session, facts.node)).unwrap_or_default();
    let about = About {
        client_id: entry.id,
        origin: Arc::new(Origin { node, run: run.to_owned() }),
        number: Number::Close,
        session,
        groups: entry.groups.clone(),
        at: jiff::Timestamp::now().as_millisecond().unsigned_abs(),
    };
    (entry, about)
}

fn close(entry: &Entry, about: &About) -> Event {
    Event { about: about.clone(), uid: entry.uid.clone(), what: What::Close(Close::NODE), room: Room::default() }
}
