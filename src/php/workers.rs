//! `BusinessWorker`s: who is connected, which of them hears of a client, and what they are told.
//!
//! A client is told of to one worker, the one with the fewest at its first event, and stays with it as long as that is
//! connected, or one is that bears the same name. This is `GatewayWorker`'s own rule, with its counters.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::link::{Link, MOST_WAITING};
use super::packet::{self, HEADER, MAX_PACKET, Origin, SCALAR, command};
use super::{request, session};
use crate::client::Arrival;
use crate::config::WorkersPolicy;
use crate::hub::{Event, Fate, Listener, Route, Whom};
use crate::metrics::{Metrics, Reason};
use crate::throttle::Throttle;

/// Bytes of ends of clients that wait for a worker, where none is connected: what one connection takes.
const MOST_UNTOLD: usize = MOST_WAITING;

/// The workers of a node.
pub struct Workers {
    policy: WorkersPolicy,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// Some are connected, or needed.
    listens: AtomicBool,
    /// Some are needed, and none is connected; or it is not known yet whether some are.
    is_missing: AtomicBool,
    complain: Throttle,
}

#[derive(Default)]
struct State {
    workers: HashMap<Arc<str>, Worker>,
    /// How many have ever been connected.
    registered: u64,
    needed: bool,
    /// The other nodes have not said yet whether there were workers.
    is_unsure: bool,
    /// Ends that are to be told when a worker comes: nobody else would learn of them.
    untold: VecDeque<Vec<u8>>,
    untold_bytes: usize,
}

struct Worker {
    link: Link,
    /// Place in the order of registering.
    place: u64,
    /// Clients that were given to it, less those that have ended since.
    clients: u64,
}

/// A connection that is a worker; until it is dropped.
pub(super) struct Registration {
    workers: Arc<Workers>,
    name: Arc<str>,
    link: Link,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.workers.leave(&self.name, &self.link);
    }
}

impl Workers {
    /// Nobody yet. `is_unsure`: other nodes will say whether there were any.
    pub fn new(policy: WorkersPolicy, is_unsure: bool, metrics: Arc<Metrics>) -> Self {
        let is_unsure = is_unsure && policy == WorkersPolicy::Auto;
        let state = State { needed: policy == WorkersPolicy::Required, is_unsure, ..State::default() };
        let workers = Self {
            policy,
            metrics,
            state: Mutex::default(),
            listens: AtomicBool::default(),
            is_missing: AtomicBool::default(),
            complain: Throttle::default(),
        };
        workers.changed(&state);
        *workers.state.lock() = state;
        workers
    }

    /// Whether workers may connect.
    pub(super) fn are_welcome(&self) -> bool {
        self.policy != WorkersPolicy::Off
    }

    /// Whether any has ever been connected to this node.
    pub(super) fn had_any(&self) -> bool {
        self.state.lock().registered > 0
    }

    /// The other nodes have said whether workers have been connected to any of them: if so, no client is served without
    /// one from now on, as in PHP.
    pub(super) fn learn(&self, had_any: bool) {
        let mut state = self.state.lock();
        state.needed |= had_any && self.are_welcome();
        state.is_unsure = false;
        self.changed(&state);
    }

    /// A worker has connected; one of the same name is ended.
    pub(super) fn register(self: &Arc<Self>, name: &str, link: &Link) -> Registration {
        let name: Arc<str> = name.into();
        let mut state = self.state.lock();
        state.registered += 1;
        state.needed = true;
        let worker = Worker { link: link.clone(), place: state.registered, clients: 0 };
        if let Some(before) = state.workers.insert(Arc::clone(&name), worker) {
            before.link.end();
        }
        state.untold_bytes = 0;
        for packet in std::mem::take(&mut state.untold) {
            self.send(link, packet);
        }
        tracing::info!(worker = %name, "a worker is connected");
        self.changed(&state);
        Registration { workers: Arc::clone(self), name, link: link.clone() }
    }

    fn leave(&self, name: &str, link: &Link) {
        let mut state = self.state.lock();
        if state.workers.get(name).is_some_and(|worker| worker.link.is(link)) {
            state.workers.remove(name);
            tracing::info!(worker = name, left = state.workers.len(), "a worker is gone");
            self.changed(&state);
        }
    }

    fn changed(&self, state: &State) {
        self.metrics.php_workers.set(i64::try_from(state.workers.len()).unwrap_or(i64::MAX));
        let is_missing = state.is_unsure || state.needed && state.workers.is_empty();
        self.is_missing.store(is_missing, Ordering::Relaxed);
        self.listens.store(state.needed, Ordering::Relaxed);
    }

    /// Tells all workers that this node is there, where networks forget silent connections.
    pub(super) fn ping(&self, lan: Ipv4Addr) {
        if lan == Ipv4Addr::LOCALHOST {
            return;
        }
        for worker in self.state.lock().workers.values() {
            // One that has so much to read knows.
            worker.link.send(packet::ping());
        }
    }

    fn send(&self, link: &Link, packet: Vec<u8>) {
        if !link.send(packet) {
            self.lost("slow_worker");
        }
    }

    fn lost(&self, reason: &'static str) {
        self.metrics.php_events_lost.get_or_create(&Reason { reason }).inc();
        if self.complain.allows() {
            tracing::warn!(reason, "an event for a worker is lost (said at most once a second)");
        }
    }
}

impl State {
    /// The worker of a client; a new one where it has none, or its own is gone.
    fn worker_of(&mut self, route: &mut Route) -> Option<&mut Worker> {
        let is_there = route.as_ref().is_some_and(|name| self.workers.contains_key(name));
        if !is_there {
            let fewest = self.workers.iter().min_by_key(|(_, worker)| (worker.clients, worker.place));
            let name = fewest.map(|(name, _)| Arc::clone(name))?;
            self.workers.get_mut(&name)?.clients += 1;
            *route = Some(name);
        }
        self.workers.get_mut(route.as_ref()?)
    }

    /// A worker has one client less.
    fn ended(&mut self, route: &Route) {
        if let Some(worker) = route.as_ref().and_then(|name| self.workers.get_mut(name)) {
            worker.clients = worker.clients.saturating_sub(1);
        }
    }
}

impl Listener for Workers {
    fn listens(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }

    fn is_missing(&self) -> bool {
        self.is_missing.load(Ordering::Relaxed)
    }

    fn why_missing(&self) -> &'static str {
        if self.state.lock().is_unsure {
            "not known yet whether PHP workers are needed"
        } else {
            "no PHP worker is connected"
        }
    }

    fn describe(&self, head: &[u8], arrival: Arrival) -> Vec<u8> {
        let origin = origin(arrival);
        request::describe(head, origin.client, origin.port)
    }

    fn tell(&self, event: Event<'_>, about: Whom<'_>, route: &mut Route) -> Fate {
        if matches!(event, Event::Lost) {
            self.state.lock().ended(route);
            return Fate::Stays;
        }
        let session = about.session.map(|session| session::to_php(session.as_str())).unwrap_or_default();
        let origin = about.arrival.map_or(Origin::UNKNOWN, origin);
        let (number, flags, body) = match event {
            Event::Connected => (command::ON_CONNECT, SCALAR, &b""[..]),
            Event::ShookHands(request) => (command::ON_WEBSOCKET_CONNECT, 0, request),
            Event::Said(message) => (command::ON_MESSAGE, SCALAR, message),
            Event::Ended | Event::Lost => (command::ON_CLOSE, SCALAR, &b""[..]),
        };
        if HEADER + session.len() + body.len() > MAX_PACKET {
            return Fate::TooBig;
        }
        let packet = packet::event(number, flags, about.id, origin, &session, body);
        let mut state = self.state.lock();
        let Some(worker) = state.worker_of(route) else {
            return match event {
                Event::Ended if state.untold_bytes < MOST_UNTOLD => {
                    state.untold_bytes += packet.len();
                    state.untold.push_back(packet);
                    Fate::Stays
                }
                Event::Ended => {
                    drop(state);
                    self.lost("no_worker");
                    Fate::Stays
                }
                _ => Fate::Refused,
            };
        };
        // Under the lock, or two events of one client could overtake each other where it moves to another worker.
        self.send(&worker.link, packet);
        if matches!(event, Event::Ended) {
            state.ended(route);
        }
        Fate::Stays
    }
}

fn origin(arrival: Arrival) -> Origin {
    let peer = arrival.peer;
    Origin { client: SocketAddr::new(peer.ip().to_canonical(), peer.port()), port: arrival.port }
}
