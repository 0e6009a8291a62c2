//! A node that is alone in not hearing what Redis says.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Node, eventually};
use crate::history::Load;
use crate::proxy::{Direction, Proxy};
use crate::redis::{Connection, Redis, Reply};
use crate::world::{Ear, TTL, all_are_reached_through, end, node, saw, throughout, within};

/// A node behind a proxy whose subscribing connection is older than the other one, and how many came up to it.
async fn with_an_older_subscriber(redis: &Redis) -> (Proxy, Node, u64) {
    let proxy = Proxy::start(redis.address()).await;
    let node = node(&proxy.url(), &[]).await;
    // One for commands, one that hears, one that waits for tasks.
    eventually("all connections are there", async || proxy.accepted() == 3).await;
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    eventually("there are new ones for commands and for tasks", async || {
        proxy.accepted() == 5 && node.get("/readyz?strict=1").await.status == 200
    })
    .await;
    (proxy, node, 3)
}

async fn connections(redis: &mut Connection, kind: &str) -> usize {
    let list = redis.command(&["CLIENT", "LIST", "TYPE", kind]).await;
    list.string().lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_subscriber_is_noticed_in_three_seconds_repaired_and_counted() {
    let redis = Redis::start().await;
    let (proxy, node, subscriber) = with_an_older_subscriber(&redis).await;
    let other = crate::world::node(&redis.url(), &[]).await;
    let ear = Ear::member(&node, "u", &["g"]).await;
    assert_eq!(node.metric("moongate_bus_gaps_total").await, 0.0);

    proxy.swallow_first(subscriber, Direction::Both);
    let deaf = Instant::now();
    // Redis takes it for a hearer all the same, and does not hear of its end.
    assert_eq!(redis.publish("mg:uid:u", "lost").await, 1);
    within(Duration::from_millis(3500), "it is noticed", async || node.metric("moongate_bus_deaf_total").await == 1.0)
        .await;
    within(Duration::from_secs(1), "it is repaired", async || node.metric("moongate_bus_gaps_total").await == 1.0)
        .await;
    let gap = node.metric("moongate_bus_gap_seconds_total").await;
    let most = deaf.elapsed().as_secs_f64() + 0.8;
    assert!((1.5..most).contains(&gap), "a gap of {gap} seconds, of at most {most}");
    all_are_reached_through(&other, std::slice::from_ref(&ear), "heard again").await;
    for channel in ["mg:uid:u", "mg:group:g", "mg:all"] {
        assert_eq!(redis.publish(channel, channel).await, 1);
        eventually("it arrives", async || ear.has_heard(channel)).await;
    }
    other.done("joinGroup", json!({"client_id": ear.id, "group": "later"})).await;
    assert_eq!(redis.publish("mg:group:later", "later").await, 1);
    eventually("it arrives", async || ear.has_heard("later")).await;
    assert!(!ear.has_heard("lost") && ear.is_open());
    // The others have heard all the time, and this one goes on doing so.
    throughout(Duration::from_secs(3), "it hears", async || node.ready().await.0 == 200).await;
    assert_eq!(node.metric("moongate_bus_deaf_total").await, 1.0);
    assert_eq!(other.metric("moongate_bus_gaps_total").await, 0.0);
    drop(ear);
    end(&redis, vec![node, other], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_tens_of_thousands_of_groups_come_and_go_through_a_slow_redis_the_node_goes_on_hearing() {
    const CLIENTS: usize = 30;
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let node = node(&proxy.url(), &[]).await;
    let witness = Ear::member(&node, "witness", &["room"]).await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let client = node.connect().await;
        let groups: Vec<String> = (0..1000).map(|group| format!("a-group-of-{number}-{group}")).collect();
        node.done("joinGroup", json!({"client_id": client.id, "group": groups})).await;
        clients.push(client);
    }
    assert!(node.metric("moongate_subscriptions_confirmed").await > CLIENTS as f64 * 1000.0);
    // All that is to be said of them takes longer than Redis may take for one answer.
    proxy.slow(Duration::from_millis(300));
    drop(clients);
    let gone = async || node.metric("moongate_subscriptions_confirmed").await < 100.0;
    within(Duration::from_mins(1), "nobody listens to them any more", gone).await;
    proxy.pass();
    assert_eq!(node.metric("moongate_bus_gaps_total").await, 0.0);
    all_are_reached_through(&node, &[witness], "still here").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_node_that_cannot_be_repaired_is_not_ready_until_it_is() {
    let redis = Redis::start().await;
    let (proxy, node, subscriber) = with_an_older_subscriber(&redis).await;
    let ear = Ear::member(&node, "u", &["g"]).await;
    let mut control = redis.connection().await;
    // Nobody new is let in.
    control.command(&["CONFIG", "SET", "maxclients", "1"]).await;
    proxy.swallow_first(subscriber, Direction::FromTarget);
    within(Duration::from_secs(4), "it is not ready", async || node.ready().await.0 == 503).await;
    assert!(node.ready().await.1.contains("deaf"), "{:?}", node.ready().await);
    throughout(Duration::from_secs(2), "it is not ready", async || node.ready().await.0 == 503).await;
    assert_eq!(node.metric("moongate_bus_deaf_total").await, 1.0, "one silence is one");
    assert!(ear.is_open());
    control.command(&["CONFIG", "SET", "maxclients", "10000"]).await;
    within(Duration::from_secs(10), "it is ready", async || node.ready().await.0 == 200).await;
    all_are_reached_through(&node, std::slice::from_ref(&ear), "heard again").await;
    drop(ear);
    end(&redis, vec![node], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_subscriber_is_replaced_at_once_and_the_gap_is_counted() {
    let redis = Redis::start().await;
    let (one, two) = (node(&redis.url(), &[]).await, node(&redis.url(), &[]).await);
    let ears = [Ear::member(&one, "one", &["g"]).await, Ear::member(&two, "two", &["g"]).await];
    for round in 1..=5 {
        assert_eq!(redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await, Reply::Int(2));
        for node in [&one, &two] {
            within(Duration::from_secs(1), "it hears again", async || {
                node.metric("moongate_bus_gaps_total").await >= f64::from(round)
            })
            .await;
        }
        all_are_reached_through(&one, &ears, &format!("round {round}")).await;
        assert_eq!(redis.publish("mg:group:g", format!("group {round}")).await, 2);
        eventually("it arrives", async || ears.iter().all(|ear| ear.has_heard(&format!("group {round}")))).await;
    }
    for node in [&one, &two] {
        let gap = node.metric("moongate_bus_gap_seconds_total").await;
        // Each begins at most at the heartbeat before.
        assert!(gap > 0.0 && gap < 5.0 * 1.5, "{gap}");
        assert_eq!(node.metric("moongate_bus_deaf_total").await, 0.0);
        assert_eq!(node.ready().await.0, 200);
    }
    drop(ears);
    end(&redis, vec![one, two], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_redis_cuts_off_for_what_waits_for_it_is_noticed_repaired_and_counted_and_others_miss_nothing()
 {
    let redis = Redis::start().await;
    let (flooded, other) = (node(&redis.url(), &[]).await, node(&redis.url(), &[]).await);
    let ears = [Ear::member(&flooded, "flooded", &["g"]).await, Ear::member(&other, "other", &["g"]).await];
    let mut control = redis.connection().await;
    control.command(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 512kb 60"]).await;
    // More than the limit before Redis writes any of it.
    let flood = "for _ = 1, 64 do redis.call('PUBLISH', KEYS[1], string.rep('x', 65536)) end";
    let mut load = Load::default();
    load.publish(&redis, "redis", "mg:group:g").await;
    load.call(&other, "http", "sendToGroup", json!({"group": "g"})).await;
    let mut noticed = Vec::new();
    for round in 1..=3 {
        let before = load.count();
        within(TTL, "something is said", async || load.count() > before + 20).await;
        let (gap_before, cut) = (flooded.metric("moongate_bus_gap_seconds_total").await, Instant::now());
        control.command(&["EVAL", flood, "1", "mg:uid:flooded"]).await;
        within(Duration::from_secs(3), "it is noticed, repaired and counted", async || {
            flooded.metric("moongate_bus_gaps_total").await == f64::from(round)
        })
        .await;
        noticed.push(cut.elapsed());
        let gap = flooded.metric("moongate_bus_gap_seconds_total").await - gap_before;
        // It begins at most at the heartbeat before.
        assert!(gap > 0.0 && gap < cut.elapsed().as_secs_f64() + 2.0, "{gap} of {:?}", cut.elapsed());
        all_are_reached_through(&other, &ears, &format!("round {round}")).await;
        assert_eq!(flooded.ready().await.0, 200);
    }
    // Nobody is let in any more: it cannot be repaired.
    control.command(&["CONFIG", "SET", "maxclients", "1"]).await;
    let cut = Instant::now();
    control.command(&["EVAL", flood, "1", "mg:uid:flooded"]).await;
    within(Duration::from_secs(4), "readiness tells", async || flooded.ready().await.0 == 503).await;
    let told = cut.elapsed();
    assert_eq!(other.ready().await.0, 200);
    control.command(&["CONFIG", "SET", "maxclients", "10000"]).await;
    within(Duration::from_secs(10), "it is ready", async || flooded.ready().await.0 == 200).await;
    all_are_reached_through(&other, &ears, "heard again").await;
    load.stop().await;
    load.was_all_heard(&ears[1..], &["redis", "http"]).await;
    // In order and once; what is missed is what was said in one of the gaps.
    let missed: Duration = load.missed(&ears[0], &["redis"]).iter().map(|missed| missed.to - missed.from).sum();
    let (gaps, seconds) =
        (flooded.metric("moongate_bus_gaps_total").await, flooded.metric("moongate_bus_gap_seconds_total").await);
    assert!(gaps == 4.0 && missed.as_secs_f64() <= seconds, "{missed:?} of {gaps} gaps of {seconds} s");
    assert_eq!(other.metric("moongate_bus_gaps_total").await, 0.0);
    let slowest = noticed.iter().max().unwrap();
    saw(
        "subscriber",
        &format!(
            "cut off at its output buffer: repaired and counted in at most {slowest:.1?}; messages said for {missed:.1?} missed, \
             {seconds:.1} s counted; where it could not be repaired, not ready after {told:.1?}"
        ),
    );
    drop(ears);
    end(&redis, vec![flooded, other], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_subscriber_cannot_come_back_is_deaf_and_not_ready() {
    let redis = Redis::start().await;
    let node = node(&redis.url(), &[]).await;
    let ear = Ear::member(&node, "u", &["g"]).await;
    let mut control = redis.connection().await;
    control.command(&["CONFIG", "SET", "maxclients", "1"]).await;
    control.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    within(Duration::from_millis(4000), "it is not ready", async || node.ready().await.0 == 503).await;
    assert!(node.ready().await.1.contains("deaf"), "{:?}", node.ready().await);
    assert_eq!(node.get("/healthz").await.status, 200);
    throughout(TTL, "it is deaf, and keeps its place", async || node.ready().await.0 == 503 && ear.is_open()).await;
    assert_eq!(node.metric("moongate_bus_deaf_total").await, 1.0, "one silence is one");
    assert_eq!(connections(&mut control, "pubsub").await, 0);
    control.command(&["CONFIG", "SET", "maxclients", "10000"]).await;
    within(Duration::from_secs(10), "it is ready", async || node.ready().await.0 == 200).await;
    all_are_reached_through(&node, std::slice::from_ref(&ear), "heard again").await;
    let gap = node.metric("moongate_bus_gap_seconds_total").await;
    assert!(gap > TTL.as_secs_f64(), "{gap}");
    drop(ear);
    end(&redis, vec![node], vec![]).await;
}
