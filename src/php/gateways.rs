//! Where PHP finds all gateways: this node, the others, and PHP's own that have registered at one of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{Entrance, Workers};
use crate::gateway::Gateway;

/// How often the other nodes are looked at: twice in the time in which one that has crashed is to be gone.
const LOOK: Duration = Duration::from_millis(800);

/// When Redis was away or has lost data, the others have said theirs again after this.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whoever asks a node that has just started waits so long for the first list: less than PHP does.
const FIRST_LOOK: Duration = Duration::from_secs(4);

/// Lists that a worker may be behind; whoever is further behind gets the last one.
const MOST_BEHIND: usize = 64;

/// The list, and whoever has to know of it.
pub(super) struct Gateways {
    gateway: Arc<Gateway>,
    entrance: Arc<Entrance>,
    workers: Arc<Workers>,
    state: Mutex<State>,
    /// A gateway of PHP has come or gone, or this node leaves.
    changed: Notify,
    leaving: AtomicBool,
    /// The others have been looked at.
    has_looked: watch::Sender<bool>,
    lines: broadcast::Sender<Arc<str>>,
}

#[derive(Default)]
struct State {
    /// PHP's gateways that have registered here, in order of registering: of which connection, and where.
    registered: Vec<(u64, String)>,
    last_connection: u64,
    /// Those that others tell of, as last seen.
    others: Vec<String>,
    /// The list as it was last told to workers.
    told: Vec<String>,
}

/// What the Register says.
#[derive(Serialize)]
struct Broadcast<'a> {
    event: &'static str,
    addresses: &'a [String],
}

/// A connection at which a gateway of PHP may register; it is gone with it.
pub(super) struct Place {
    gateways: Arc<Gateways>,
    connection: u64,
}

impl Place {
    /// A gateway is there; one that this connection had told of before is not any more.
    pub(super) fn register(&self, address: &str) {
        self.gateways.set(self.connection, Some(address));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gateways.set(self.connection, None);
    }
}

impl Gateways {
    pub(super) fn new(gateway: Arc<Gateway>, entrance: Arc<Entrance>, workers: Arc<Workers>) -> Self {
        Self {
            has_looked: watch::Sender::new(gateway.membership().is_none()),
            gateway,
            entrance,
            workers,
            state: Mutex::default(),
            changed: Notify::new(),
            leaving: AtomicBool::new(false),
            lines: broadcast::Sender::new(MOST_BEHIND),
        }
    }

    /// The list, as the Register says it; of a node that has just started, as soon as it knows of the others.
    pub(super) async fn line(&self) -> Arc<str> {
        // The sender is here.
        drop(timeout(FIRST_LOOK, self.has_looked.subscribe().wait_for(|has_looked| *has_looked)).await);
        line(&self.all())
    }

    /// The lists from now on.
    pub(super) fn lines(&self) -> broadcast::Receiver<Arc<str>> {
        self.lines.subscribe()
    }

    /// A place for a connection.
    pub(super) fn place(self: &Arc<Self>) -> Place {
        let mut state = self.state.lock();
        state.last_connection += 1;
        Place { gateways: Arc::clone(self), connection: state.last_connection }
    }

    /// This node is not listed any more.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        self.say(false);
        self.changed.notify_one();
    }

    /// Where this node is; none when PHP cannot reach it, or not any more.
    pub(super) fn own(&self) -> Option<String> {
        let is_here = self.gateway.has_place() && !self.leaving.load(Ordering::Relaxed);
        is_here.then(|| self.entrance.announced(self.gateway.lan())).flatten()
    }

    /// Nobody serves PHP here any more.
    pub(super) fn close(&self) {
        self.entrance.close();
        self.changed.notify_one();
    }

    /// This node, and PHP's gateways that have registered at it.
    fn ours(&self) -> Vec<String> {
        let mut ours: Vec<String> = self.own().into_iter().collect();
        for (_, address) in &self.state.lock().registered {
            if !ours.contains(address) {
                ours.push(address.clone());
            }
        }
        ours
    }

    /// All gateways there are.
    fn all(&self) -> Vec<String> {
        let mut all = self.ours();
        for address in &self.state.lock().others {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }

    fn set(&self, connection: u64, address: Option<&str>) {
        {
            let mut state = self.state.lock();
            let before = state.registered.len();
            let place = state.registered.iter().position(|(other, _)| *other == connection);
            match (place.and_then(|place| state.registered.get_mut(place)), address) {
                (None, None) => return,
                (None, Some(address)) => state.registered.push((connection, address.to_owned())),
                (Some((_, old)), Some(address)) => address.clone_into(old),
                (Some(_), None) => state.registered.retain(|(other, _)| *other != connection),
            }
            tracing::info!(address, gateways = state.registered.len(), before, "a PHP gateway has come or gone");
        }
        self.say(true);
        self.changed.notify_one();
    }

    /// Tells all workers of the list; without need only if it is another than before.
    fn say(&self, anyway: bool) {
        let all = self.all();
        let mut state = self.state.lock();
        if anyway || state.told != all {
            state.told = all;
            // Perhaps nobody is there.
            self.lines.send(line(&state.told)).ok();
        }
    }

    /// Looks at the others again and again.
    pub(super) async fn run(&self) {
        let mut membership = self.gateway.membership();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Until then nobody is missed.
        let mut doubt = Instant::now();
        let mut missed: Vec<String> = Vec::new();
        loop {
            let entered = async {
                match &mut membership {
                    Some(membership) => drop(membership.changed().await),
                    None => std::future::pending().await,
                }
            };
            let is_due = tokio::select! {
                _ = looks.tick() => true,
                () = self.changed.notified() => false,
                () = entered => false,
            };
            match self.gateway.php(&self.ours(), self.workers.had_any()).await {
                Some(Ok(php)) => {
                    // Where no worker finds this node, none is needed.
                    let is_found = self.entrance.announced(self.gateway.lan()).is_some();
                    self.workers.learn(php.had_workers && is_found);
                    if php.is_in_doubt {
                        doubt = Instant::now() + PATIENCE;
                    }
                    let mut others = php.others;
                    {
                        let mut state = self.state.lock();
                        // One that falls silent is gone when it is so twice; one that nobody tells of any more, at once.
                        let stays = |address: &String| {
                            doubt > Instant::now() || php.silent.contains(address) && !missed.contains(address)
                        };
                        let known = std::mem::take(&mut state.others);
                        let kept = known.into_iter().filter(|address| !others.contains(address) && stays(address));
                        others.extend(kept.collect::<Vec<_>>());
                        others.sort();
                        state.others = others;
                    }
                    if is_due {
                        missed = php.silent;
                    }
                    self.has_looked.send_replace(true);
                }
                // As it was: who is there is not known now.
                Some(Err(error)) => tracing::debug!(%error, "the other gateways are not known"),
                None => {}
            }
            self.say(false);
        }
    }
}

fn line(addresses: &[String]) -> Arc<str> {
    let said = Broadcast { event: "broadcast_addresses", addresses };
    // Strings in a list: this cannot fail.
    let json = serde_json::to_string(&said).unwrap_or_default();
    format!("{json}\n").into()
}
