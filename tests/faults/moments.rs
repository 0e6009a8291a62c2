//! Connections to Redis are cut, or nothing comes through them, at random moments while everyone goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use crate::harness::Node;
use crate::history::{Load, Missed, entries, lives};
use crate::model::Dice;
use crate::proxy::Proxy;
use crate::redis::Redis;
use crate::world::{Ear, Expected, all_open, are_ready, is_chaos, node, redis_holds, saw, sum, within};

/// A beat, a pause between two attempts; and a machine that does much else.
const BACK: Duration = Duration::from_secs(12);

#[derive(Debug, Clone, Copy)]
struct Trouble {
    is_cut: bool,
    /// The nodes that it is with.
    nodes: [bool; 2],
    seconds: u64,
}

/// In an order of the seed's.
fn troubles(dice: &mut Dice) -> Vec<Trouble> {
    let (one, other, both) = ([true, false], [false, true], [true, true]);
    let mut troubles = Vec::new();
    for is_cut in [true, false] {
        let who = if is_chaos() {
            vec![(one, 1), (other, 1), (both, 1), (one, 10), (other, 10), (both, 10), (both, 60)]
        } else {
            vec![(one, 1), (both, 1), (other, 6), (both, 10)]
        };
        troubles.extend(who.into_iter().map(|(nodes, seconds)| Trouble { is_cut, nodes, seconds }));
    }
    for place in (1..troubles.len()).rev() {
        troubles.swap(place, dice.roll(place + 1));
    }
    troubles
}

/// What a node has counted of what it could not hear.
#[derive(Clone, Copy)]
struct Counted {
    gaps: f64,
    seconds: f64,
    /// What came all at once when a stall was over, and was too much.
    lost: f64,
}

impl Counted {
    async fn by(node: &Node) -> Self {
        let metrics = node.get("/metrics").await.text();
        let lost = ["overload", "lagged"].map(|reason| {
            let series = format!("moongate_bus_lost_total{{reason=\"{reason}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&series)).map_or(0.0, |count| count.parse().unwrap())
        });
        Self {
            gaps: node.metric("moongate_bus_gaps_total").await,
            seconds: node.metric("moongate_bus_gap_seconds_total").await,
            lost: lost.iter().sum(),
        }
    }

    fn since(self, before: Self) -> Self {
        let Self { gaps, seconds, lost } = self;
        Self { gaps: gaps - before.gaps, seconds: seconds - before.seconds, lost: lost - before.lost }
    }
}

/// How long messages were missed, whoever missed them.
fn length(missed: &[Missed]) -> Duration {
    let mut missed = missed.to_vec();
    missed.sort_unstable_by_key(|missed| missed.from);
    let (mut length, mut end) = (Duration::ZERO, None);
    for Missed { from, to, .. } in missed {
        let from = end.map_or(from, |end| from.max(end));
        length += to.saturating_duration_since(from);
        end = end.max(Some(to));
    }
    length
}

/// Clients that come, bind themselves and go again, one after the other; returns who came, and who was bound.
async fn come_and_go(nodes: Arc<[Node; 2]>, over: Arc<AtomicBool>) -> (usize, BTreeSet<String>) {
    let (mut came, mut bound) = (0, BTreeSet::new());
    while !over.load(Ordering::Relaxed) {
        let client = nodes[came % 2].connect().await;
        // Any node will do.
        let bind = json!({"client_id": client.id, "uid": format!("guest-{}", came % 5)});
        let answer = nodes[came / 2 % 2].call("bindUid", bind).await;
        let code = answer["code"].as_str().unwrap_or("done");
        assert!(["done", "redis_unavailable", "node_unreachable"].contains(&code), "{answer}");
        if code == "done" {
            bound.insert(client.id.clone());
        }
        came += 1;
        drop(client);
        sleep(Duration::from_millis(20)).await;
    }
    (came, bound)
}

/// Lets a client join and leave groups; returns what must hold at the end. What is not known to be done is repeated.
async fn change(nodes: Arc<[Node; 2]>, id: String, over: Arc<AtomicBool>) -> (usize, BTreeSet<String>) {
    let (mut changes, mut groups, mut dice) = (0, BTreeSet::new(), Dice(5));
    while !over.load(Ordering::Relaxed) {
        let (group, joins) = (format!("some-{}", dice.roll(7)), dice.roll(2) == 0);
        let fields = json!({"client_id": id, "group": group});
        let op = if joins { "joinGroup" } else { "leaveGroup" };
        // Both may be away for a minute.
        let asked = Instant::now();
        while nodes[dice.roll(2)].call(op, fields.clone()).await["result"] != true {
            assert!(asked.elapsed() < Duration::from_mins(2), "{op} is never done");
            sleep(Duration::from_millis(50)).await;
        }
        if joins {
            groups.insert(group);
        } else {
            groups.remove(&group);
        }
        changes += 1;
        sleep(Duration::from_millis(20)).await;
    }
    (changes, groups)
}

#[tokio::test(flavor = "multi_thread")]
async fn when_connections_to_redis_are_cut_or_stalled_at_random_moments_only_what_is_in_a_counted_gap_is_missed_and_nothing_comes_twice()
 {
    const SOURCES: [&str; 4] = ["room", "all", "one", "other"];
    let redis = Redis::start().await;
    let proxies = [Proxy::start(redis.address()).await, Proxy::start(redis.address()).await];
    // One of them alone may be away for ten seconds.
    let settings = [("MOONGATE_NODE_TTL", "20s"), ("MOONGATE_EVENTS", "stream")];
    let nodes = Arc::new([node(&proxies[0].url(), &settings).await, node(&proxies[1].url(), &settings).await]);
    let mut ears = [Vec::new(), Vec::new()];
    for (place, ears) in ears.iter_mut().enumerate() {
        for number in 0..5 {
            ears.push(Ear::member(&nodes[place], &format!("user-{place}-{number}"), &["room"]).await);
        }
    }
    let over = Arc::new(AtomicBool::new(false));
    let mut load = Load::default();
    load.publish(&redis, SOURCES[0], "mg:group:room").await;
    load.publish(&redis, SOURCES[1], "mg:all").await;
    load.call(&nodes[0], SOURCES[2], "sendToGroup", json!({"group": "room"})).await;
    load.call(&nodes[1], SOURCES[3], "sendToAll", json!({})).await;
    let guests = tokio::spawn(come_and_go(Arc::clone(&nodes), Arc::clone(&over)));
    let changer = tokio::spawn(change(Arc::clone(&nodes), ears[0][0].id.clone(), Arc::clone(&over)));

    // From when to when messages may be missed at each node, and what it counted meanwhile.
    let mut windows = Vec::new();
    let mut calm_since = Instant::now();
    let mut dice = Dice(1);
    for (number, trouble) in troubles(&mut dice).into_iter().enumerate() {
        sleep(Duration::from_millis(1000 + dice.roll(2000) as u64)).await;
        let before = [Counted::by(&nodes[0]).await, Counted::by(&nodes[1]).await];
        let began = Instant::now();
        let with = proxies.iter().zip(trouble.nodes).filter_map(|(proxy, is_with)| is_with.then_some(proxy));
        for proxy in with.clone() {
            if trouble.is_cut {
                proxy.refuse();
            } else {
                proxy.stall();
            }
        }
        while began.elapsed() < Duration::from_secs(trouble.seconds) {
            assert!(ears.iter().all(|ears| all_open(ears)), "sockets stay open");
            sleep(Duration::from_millis(50)).await;
        }
        for proxy in with {
            proxy.pass();
        }
        let calm = format!("calm {number}");
        within(BACK, &format!("all hear again after {trouble:?}"), async || {
            let heard = redis.publish("mg:all", &calm).await;
            heard == 2 && ears.iter().flatten().all(|ear| ear.has_heard(&calm))
        })
        .await;
        within(BACK, "both are in touch", async || are_ready(&nodes[..]).await).await;
        let after = [Counted::by(&nodes[0]).await, Counted::by(&nodes[1]).await];
        let counted = [after[0].since(before[0]), after[1].since(before[1])];
        // From the calm before it: what was missed earlier is another trouble's, and a gap is counted from the last heartbeat.
        let now = Instant::now();
        windows.push((trouble, (mem::replace(&mut calm_since, now), now), counted));
    }
    over.store(true, Ordering::Relaxed);
    load.stop().await;
    let (came, bound) = guests.await.unwrap();
    let (changes, groups) = changer.await.unwrap();

    let (mut all_gaps, mut all_seconds, mut all_lost, mut all_missed) = (0.0, 0.0, 0.0, Duration::ZERO);
    for (place, ears) in ears.iter().enumerate() {
        // Whatever was said before this has come, or does not come any more.
        within(BACK, "it is quiet", async || {
            redis.publish("mg:all", "quiet").await == 2 && ears.iter().all(|ear| ear.has_heard("quiet"))
        })
        .await;
        let missed: Vec<Vec<Missed>> = ears.iter().map(|ear| load.missed(ear, &SOURCES)).collect();
        let mut explained = 0;
        for (trouble, (from, to), counted) in &windows {
            let Counted { gaps, seconds, lost } = counted[place];
            let is_here = |missed: &&Missed| missed.from >= *from && missed.to <= *to;
            let most = missed.iter().map(|missed| missed.iter().filter(is_here).map(|missed| missed.count).sum());
            let most: usize = most.max().unwrap();
            let here: Vec<Missed> = missed.iter().flatten().filter(is_here).copied().collect();
            explained += here.len();
            let length = length(&here);
            assert!(
                most as f64 <= lost || (gaps >= 1.0 && length.as_secs_f64() <= seconds),
                "messages said for {length:?}, {most} for one client, were missed at node {place} in {trouble:?}: \
                 {gaps} gaps of {seconds} s, {lost} lost"
            );
            assert!(
                seconds <= (*to - *from).as_secs_f64() && (trouble.nodes[place] || gaps == 0.0),
                "{gaps} gaps of {seconds} s at node {place} in {trouble:?}"
            );
            all_lost += lost;
            all_gaps += gaps;
            all_seconds += seconds;
            all_missed += length;
        }
        assert_eq!(explained, missed.iter().flatten().count(), "what was missed was said in one of the troubles");
    }
    // The others are as they were, and each that came has left; what clients did is told, all of it and in order.
    let uids: Vec<String> = (0..10).map(|number| format!("user-{}-{}", number / 5, number % 5)).collect();
    let mut all_groups = vec![BTreeSet::from(["room".to_owned()]); 10];
    all_groups[0].extend(groups);
    let all_groups: Vec<Vec<&str>> =
        all_groups.iter().map(|groups| groups.iter().map(String::as_str).collect()).collect();
    let clients = ears.iter().flatten().zip(&uids).zip(&all_groups);
    let clients = clients.map(|((ear, uid), groups)| Expected::member(ear, uid, groups));
    redis_holds(&redis, BACK, &clients.collect::<Vec<_>>()).await;
    within(BACK, "all events are told", async || lives(&entries(&redis).await) == came).await;
    let entries = entries(&redis).await;
    let told: BTreeMap<&str, usize> = entries.iter().fold(BTreeMap::new(), |mut told, entry| {
        *told.entry(&*entry["event"]).or_default() += 1;
        told
    });
    let told_bound = entries.iter().filter(|entry| entry["event"] == "bound").map(|entry| entry["client_id"].clone());
    assert!(told_bound.collect::<BTreeSet<_>>().is_superset(&bound), "who was bound is told to be");
    let both = [&nodes[0], &nodes[1]];
    for metric in ["moongate_swept_nodes_total", "moongate_fenced_total"] {
        assert_eq!(sum(&both, metric).await, 0.0, "{metric}");
    }
    for node in both {
        assert_eq!(node.metric("moongate_events_lost_total").await, 0.0, "no event is lost");
    }
    saw(
        "cut",
        &format!(
            "{} cuts and stalls of 1 to {} s under load: {} messages; those said in {all_missed:.1?} were missed, in {all_gaps} \
             counted gaps of {all_seconds:.1} s, {all_lost} counted as too many at once, and no others; {came} clients came and went, {changes} changes, events {told:?}",
            windows.len(),
            windows.iter().map(|(trouble, ..)| trouble.seconds).max().unwrap(),
            load.count(),
        ),
    );
    // What was told stays in Redis; of the clients nothing does.
    drop(ears);
    within(BACK, "nobody is left", async || redis.keys("mg:client*").await.is_empty()).await;
    for node in Arc::into_inner(nodes).unwrap() {
        node.stop();
        assert_eq!(node.stopped().await, 0);
    }
}
