//! Where PHP finds all gateways: this node, the others, and PHP's own that have registered at one of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Entrance, Workers};
use crate::gateway::Gateway;

/// How often the other nodes are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// When Redis has lost data, the others have said theirs again after this.
const PATIENCE: Duration = Duration::from_secs(5);

/// Lists that a worker may be behind; whoever is further behind gets the last one.
const MOST_BEHIND: usize = 64;

/// The list, and whoever has to know of it.
pub(super) struct Gateways {
    gateway: Arc<Gateway>,
    entrance: Arc<Entrance>,
    workers: Arc<Workers>,
    state: Mutex<State>,
    /// A gateway of PHP has come or gone.
    changed: Notify,
    /// This node leaves.
    leaving: AtomicBool,
    lines: broadcast::Sender<Arc<str>>,
}

#[derive(Default)]
struct State {
    /// PHP's gateways that have registered here, in order of registering: of which connection, and where.
    registered: Vec<(u64, String)>,
    last_connection: u64,
    /// All there were when last looked at.
    all: Vec<String>,
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
            gateway,
            entrance,
            workers,
            state: Mutex::default(),
            changed: Notify::new(),
            leaving: AtomicBool::new(false),
            lines: broadcast::Sender::new(MOST_BEHIND),
        }
    }

    /// The list, as the Register says it.
    pub(super) fn line(&self) -> Arc<str> {
        let ours = self.ours();
        let mut state = self.state.lock();
        for address in ours {
            // Known before the others have been looked at.
            if !state.all.contains(&address) {
                state.all.insert(0, address);
            }
        }
        line(&state.all)
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
        self.say_alone();
        self.changed.notify_one();
    }

    /// Where this node is; none when PHP cannot reach it, or not any more.
    pub(super) fn own(&self) -> Option<String> {
        let is_here = self.gateway.has_place() && !self.leaving.load(Ordering::Relaxed);
        is_here.then(|| self.entrance.announced(self.gateway.lan())).flatten()
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

    fn set(&self, connection: u64, address: Option<&str>) {
        {
            let mut state = self.state.lock();
            let before = state.registered.len();
            match state.registered.iter().position(|(other, _)| *other == connection) {
                None if address.is_none() => return,
                Some(place) if address.is_none() => drop(state.registered.remove(place)),
                Some(place) => {
                    if let (Some((_, old)), Some(address)) = (state.registered.get_mut(place), address) {
                        address.clone_into(old);
                    }
                }
                None => state.registered.extend(address.map(|address| (connection, address.to_owned()))),
            }
            tracing::info!(address, gateways = state.registered.len(), before, "a PHP gateway has come or gone");
        }
        self.say_alone();
        self.changed.notify_one();
    }

    /// Where there are no others, everybody is told at once.
    fn say_alone(&self) {
        if !self.gateway.has_others() {
            self.say(self.ours(), true);
        }
    }

    /// Tells everybody of the list; without need only if it is another than before.
    fn say(&self, all: Vec<String>, anyway: bool) {
        let mut state = self.state.lock();
        if anyway || state.all != all {
            state.all = all;
            // Perhaps nobody is there.
            self.lines.send(line(&state.all)).ok();
        }
    }

    /// Looks at the others again and again.
    pub(super) async fn run(&self) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What this node had said when it was last all there, and how long the others are given to say theirs again.
        let (mut told, mut doubt) = (Vec::new(), Instant::now());
        loop {
            let has_changed = tokio::select! {
                _ = looks.tick() => false,
                () = self.changed.notified() => true,
            };
            let said = self.ours();
            match self.gateway.php(&said, self.workers.had_any()).await {
                Some(Ok(php)) => {
                    if php.had_workers {
                        self.workers.need();
                    }
                    if php.is_told {
                        told = said;
                    } else if said == told {
                        // It was there, and is not: Redis has lost data.
                        doubt = Instant::now() + PATIENCE;
                    }
                    let ours = self.ours();
                    let mut others = php.gateways;
                    if doubt > Instant::now() {
                        others.extend(self.state.lock().all.iter().cloned());
                    }
                    others.retain(|address| !ours.contains(address));
                    others.sort();
                    others.dedup();
                    self.say([ours, others].concat(), has_changed);
                }
                // As it was: who is there is not known now.
                Some(Err(error)) => tracing::debug!(%error, "the other gateways are not known"),
                None => self.say(self.ours(), false),
            }
        }
    }
}

fn line(addresses: &[String]) -> Arc<str> {
    let said = Broadcast { event: "broadcast_addresses", addresses };
    // Strings in a list: this cannot fail.
    let json = serde_json::to_string(&said).unwrap_or_default();
    format!("{json}\n").into()
}
