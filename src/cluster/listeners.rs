//! Hearing on Redis Cluster: a listener for each master, which hears what is said in the slots of that master.
//!
//! A sharded channel is said and heard where its slot is, and nothing tells a subscriber that a slot has moved. So it is
//! looked every second who has what: a listener whose slots are others now subscribes to what has come to it, a new master
//! gets a listener, and that of a master that is none any more ends. What is said between the move and the look is lost,
//! as where a connection ends; while a master is away, the others are heard.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::bus::{Bus, LOOK, Listener, Share};
use super::redis::{Address, Place};
use super::slots::{Map, Shards, Slots};
use crate::hub::{Hub, Topics};

/// One that runs.
struct Running {
    listener: Listener,
    place: Place,
    slots: watch::Sender<Slots>,
    topics: Arc<Topics>,
    stop: CancellationToken,
}

/// Listens to all masters until `stop`.
pub(super) async fn listen(bus: Arc<Bus>, shards: Arc<Shards>, hub: Arc<Hub>, stop: CancellationToken) {
    let topics = Arc::clone(&hub.others().topics);
    let (found, mut map) = watch::channel(Map::default());
    let mut looking = Box::pin(look(Arc::clone(&bus), Arc::clone(&shards), found));
    let (mut all, mut tasks) = (Vec::<Running>::new(), JoinSet::new());
    let (mut put, mut next) = (Instant::now(), 0);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = &mut looking => break,
            Ok(()) = map.changed() => {
                let map = map.borrow_and_update().clone();
                all.retain(|running| {
                    let stays = map.0.iter().any(|(place, _)| *place == running.place);
                    if !stays {
                        tracing::warn!(redis = %running.place, "no master of the Cluster any more");
                        running.stop.cancel();
                        bus.ends(running.listener);
                    }
                    stays
                });
                for (place, slots) in map.0 {
                    if let Some(running) = all.iter().find(|running| running.place == place) {
                        let send = |now: &mut Slots| {
                            let is_other = *now != slots;
                            now.clone_from(&slots);
                            is_other
                        };
                        if running.slots.send_if_modified(send) {
                            tracing::info!(redis = %place, "slots of the Cluster have moved");
                        }
                        continue;
                    }
                    let Some(server) = shards.at(&place) else { continue };
                    next += 1;
                    bus.begins(next);
                    // What is taken from now on is put in; what was before, it finds in the hub.
                    let (own, slots) = (Arc::new(Topics::from(topics.count())), watch::Sender::new(slots));
                    let share = Share { listener: next, topics: Arc::clone(&own), slots: Some(slots.subscribe()) };
                    let stop = stop.child_token();
                    let listening =
                        Arc::clone(&bus).listen_to(Address::Server(server), share, Arc::clone(&hub), stop.clone());
                    tasks.spawn(listening);
                    all.push(Running { listener: next, place, slots, topics: own, stop });
                }
            }
            () = topics.next() => {
                bus.company(put).await;
                put = Instant::now();
                let (count, changed) = topics.take();
                let changed: Vec<_> = changed.into_iter().map(|topic| (bus.slot_of(&topic), topic)).collect();
                for running in &all {
                    let slots = running.slots.borrow();
                    let own = changed.iter().filter(|(slot, _)| slots.contain(*slot));
                    running.topics.put(count, own.map(|(_, topic)| topic.clone()));
                }
            }
            // Only the ends of those that were told to.
            Some(_) = tasks.join_next() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Looks again and again who has what.
async fn look(bus: Arc<Bus>, shards: Arc<Shards>, found: watch::Sender<Map>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        match bus.map(&shards).await {
            Ok(map) => {
                found.send_if_modified(|known| {
                    let is_other = *known != map;
                    *known = map;
                    is_other
                });
            }
            Err(error) => tracing::debug!(%error, "nobody says who has which slots"),
        }
    }
}
