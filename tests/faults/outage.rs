//! Redis is away for all, for a moment or a minute; or it is there and takes nothing.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Node, eventually};
use crate::proxy::Proxy;
use crate::redis::Redis;
use crate::world::{
    Ear, Expected, all_are_reached_through, all_open, are_ready, end, expected, node, redis_holds, state, sum,
    throughout, within,
};

/// A beat, and a pause between two attempts; and a machine that does much else.
const BACK: Duration = Duration::from_secs(12);

/// How Redis goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outage {
    /// Connections are reset, and new ones, too.
    Refuse,
    /// Nothing comes through, in no direction.
    Stall,
    /// The process is killed; what it had is on its disk.
    Stop,
    /// The process is frozen.
    Pause,
}

impl Outage {
    async fn begin(self, redis: &Redis, proxy: &Proxy) {
        match self {
            Self::Refuse => proxy.refuse(),
            Self::Stall => proxy.stall(),
            Self::Stop => redis.stop(),
            Self::Pause => redis.pause().await,
        }
    }

    async fn finish(self, redis: &Redis, proxy: &Proxy) {
        match self {
            Self::Refuse | Self::Stall => proxy.pass(),
            Self::Stop => redis.start_again().await,
            Self::Pause => redis.resume(),
        }
    }

    /// Whether it is noticed at once.
    fn is_loud(self) -> bool {
        matches!(self, Self::Refuse | Self::Stop)
    }
}

/// A command is refused because Redis is away, and at once.
async fn is_refused_at_once(node: &Node, op: &str, fields: Value) {
    let asked = Instant::now();
    let answer = node.post(op, &fields.to_string()).await;
    let took = asked.elapsed();
    assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some("redis_unavailable")), "{op}");
    assert!(answer.head.contains("retry-after: "), "{op}: {}", answer.head);
    assert!(took < Duration::from_millis(1500), "{op}: refused after {took:?}, and it is known that Redis is away");
}

/// Two nodes live through an outage, and are as if nothing had been.
async fn nodes_live_through(outage: Outage, length: Duration) {
    let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "no"]).await;
    let proxy = Proxy::start(redis.address()).await;
    let nodes = [node(&proxy.url(), &[]).await, node(&proxy.url(), &[]).await];
    let mut ears = Vec::new();
    let mut leaving = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        for client in 0..5 {
            ears.push(Ear::member(node, &format!("user-{number}-{client}"), &["room", &format!("g{client}")]).await);
        }
        leaving.push(Ear::member(node, &format!("leaving-{number}"), &["room"]).await);
    }
    let known_groups = json!({"group": "room"});
    assert_eq!(nodes[0].ask("getClientIdCountByGroup", known_groups.clone()).await, 12);

    let began = Instant::now();
    outage.begin(&redis, &proxy).await;
    if outage.is_loud() || length > Duration::from_secs(5) {
        // It is known after the time that an answer may take, and a beat.
        let noticed = Duration::from_secs(if outage.is_loud() { 2 } else { 5 });
        for node in &nodes {
            within(noticed, "it is noticed", async || node.get("/readyz?strict=1").await.status == 503).await;
            assert_eq!(node.ready().await.0, 200, "an outage for all empties no Service");
        }
        let (here, there) = (&ears[0].id, &ears[5].id);
        for (op, fields) in [
            ("bindUid", json!({"client_id": here, "uid": "x"})),
            ("joinGroup", json!({"client_id": there, "group": "x"})),
            ("joinGroup", json!({"uid": "user-0-0", "group": "x"})),
            ("setSession", json!({"client_id": there, "session": {}})),
            ("sendToClient", json!({"client_id": here, "message": "x"})),
            ("sendToUid", json!({"uid": "user-0-0", "message": "x"})),
            ("sendToUid", json!({"uid": ["user-0-0", "y"], "message": "x"})),
            ("sendToGroup", json!({"group": "room", "message": "x"})),
            ("sendToAll", json!({"message": "x", "confirm": true})),
            ("closeClient", json!({"client_id": here})),
            ("isOnline", json!({"client_id": here})),
            ("isUidOnline", json!({"uid": "user-0-0"})),
            ("getSession", json!({"client_id": there})),
            ("getClientSessionsByGroup", known_groups.clone()),
            ("getAllClientIdCount", json!({})),
        ] {
            is_refused_at_once(&nodes[0], op, fields).await;
        }
    }
    // New clients are let in at once, and some go.
    let mut newcomers = Vec::new();
    for node in &nodes {
        let asked = Instant::now();
        newcomers.push(Ear::of(node.connect().await));
        let patience = if outage.is_loud() { 1500 } else { 3500 };
        assert!(asked.elapsed() < Duration::from_millis(patience), "INIT_MESSAGE after {:?}", asked.elapsed());
    }
    let left: Vec<String> = leaving.iter().map(|ear| ear.id.clone()).collect();
    drop(leaving);
    while began.elapsed() < length {
        assert!(all_open(&ears) && all_open(&newcomers), "sockets stay open");
        for node in &nodes {
            assert_eq!(node.ready().await.0, 200, "after {:?}", began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    outage.finish(&redis, &proxy).await;

    within(BACK, "both are in touch", async || are_ready(&nodes).await).await;
    // And hear: whoever is in touch does not wait long for that.
    within(Duration::from_secs(2), "both hear", async || redis.publish("mg:cmd", "{}").await == 2).await;
    let heard_nothing = began.elapsed();
    let uids: Vec<String> = (0..10).map(|n| format!("user-{}-{}", n / 5, n % 5)).collect();
    let groups: Vec<[String; 2]> = (0..10).map(|n| ["room".to_owned(), format!("g{}", n % 5)]).collect();
    let groups: Vec<Vec<&str>> = groups.iter().map(|groups| groups.iter().map(String::as_str).collect()).collect();
    let old = ears.iter().zip(&uids).zip(&groups).map(|((ear, uid), groups)| Expected::member(ear, uid, groups));
    let new = newcomers.iter().map(|ear| Expected { id: &ear.id, uid: None, groups: &[], session: None });
    redis_holds(&redis, BACK, &old.chain(new).collect::<Vec<_>>()).await;
    for node in &nodes {
        for newcomer in &newcomers {
            assert_eq!(node.ask("isOnline", json!({"client_id": newcomer.id})).await, true);
        }
        for left in &left {
            assert_eq!(node.ask("isOnline", json!({"client_id": left})).await, false);
        }
        assert_eq!(node.ask("getClientIdCountByGroup", known_groups.clone()).await, 10);
        let sessions = node.ask("getClientSessionsByGroup", known_groups.clone()).await;
        assert_eq!(sessions[&ears[7].id], json!({"uname": "user-1-2"}));
    }
    // Done means done again, both ways.
    for (place, node) in nodes.iter().enumerate() {
        let newcomer = &newcomers[1 - place];
        node.done("bindUid", json!({"client_id": newcomer.id, "uid": format!("new-{place}")})).await;
        assert_eq!(redis.publish(format!("mg:uid:new-{place}"), "bound").await, 1);
        eventually("it arrives", async || newcomer.has_heard("bound")).await;
        all_are_reached_through(node, &ears, &format!("after, through {place}")).await;
        node.ask("sendToGroup", json!({"group": "room", "message": format!("to the room {place}")})).await;
    }
    eventually("the room hears", async || ears.iter().all(|ear| ear.has_heard("to the room 1"))).await;
    for ear in &ears {
        let heard = ear.heard();
        assert_eq!(heard.iter().filter(|text| text.starts_with("to the room")).count(), 2, "{heard:?}");
    }
    let both: Vec<&Node> = nodes.iter().collect();
    for metric in ["moongate_swept_nodes_total", "moongate_fenced_total", "moongate_bus_deaf_total"] {
        assert_eq!(sum(&both, metric).await, 0.0, "{metric}");
    }
    if outage.is_loud() {
        for node in &nodes {
            let (gaps, seconds) =
                (node.metric("moongate_bus_gaps_total").await, node.metric("moongate_bus_gap_seconds_total").await);
            // It begins at most at the heartbeat before.
            let (from, to) = (length.as_secs_f64(), heard_nothing.as_secs_f64() + 2.5);
            assert!(gaps >= 1.0 && (from..to).contains(&seconds), "{gaps} gaps, {seconds} seconds");
        }
    }
    assert!(all_open(&ears) && all_open(&newcomers));
    drop((ears, newcomers));
    end(&redis, nodes.into(), vec![]).await;
}

macro_rules! outages {
    ($($test:ident $outage:ident $seconds:literal)*) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            nodes_live_through(Outage::$outage, Duration::from_secs($seconds)).await;
        }
    )* };
}
outages! {
    redis_refuses_for_a_second Refuse 1
    redis_refuses_for_ten_seconds Refuse 10
    redis_refuses_for_a_minute Refuse 60
    redis_is_stalled_for_a_second Stall 1
    redis_is_stalled_for_ten_seconds Stall 10
    redis_is_stalled_for_a_minute Stall 60
    redis_is_restarted_with_its_data_after_a_second Stop 1
    redis_is_restarted_with_its_data_after_ten_seconds Stop 10
    redis_is_restarted_with_its_data_after_a_minute Stop 60
    redis_is_frozen_for_a_second Pause 1
    redis_is_frozen_for_ten_seconds Pause 10
}

/// With the shortest leases that are allowed, and a client each.
async fn three_nodes(url: &str) -> (Vec<Node>, Vec<Ear>) {
    let (mut nodes, mut ears) = (Vec::new(), Vec::new());
    for number in 0..3 {
        nodes.push(node(url, &[("MOONGATE_NODE_TTL", "2s")]).await);
        ears.push(Ear::member(&nodes[number], &format!("user-{number}"), &["room"]).await);
    }
    (nodes, ears)
}

#[tokio::test(flavor = "multi_thread")]
async fn however_short_leases_are_and_however_long_redis_is_away_nobody_is_swept() {
    // Each node comes back in its own time: the pauses between attempts are drawn.
    let clusters = (0..5).map(|cluster| async move {
        let redis = Redis::start().await;
        let proxy = Proxy::start(redis.address()).await;
        let (nodes, ears) = three_nodes(&proxy.url()).await;
        for length in [1000, 1300, 1600, 1900, 5500, 6000, 6500, 7000] {
            proxy.refuse();
            throughout(Duration::from_millis(length + cluster * 50), "sockets stay open", async || all_open(&ears))
                .await;
            proxy.pass();
            within(BACK, "all are in touch", async || are_ready(&nodes).await).await;
            // Whoever is taken for dead is so within a lease from now.
            let all: Vec<&Node> = nodes.iter().collect();
            throughout(Duration::from_millis(2500), "sockets stay open", async || all_open(&ears)).await;
            for metric in ["moongate_swept_nodes_total", "moongate_fenced_total"] {
                assert_eq!(sum(&all, metric).await, 0.0, "{metric} after {length} ms without Redis");
            }
        }
        drop(ears);
        end(&redis, nodes, vec![]).await;
    });
    join_all(clusters).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_to_redis_later_than_others_has_a_whole_lease_for_it() {
    let clusters = (0..3).map(|_| async {
        let redis = Redis::start().await;
        let (first, later) = (Proxy::start(redis.address()).await, Proxy::start(redis.address()).await);
        let (mut nodes, mut ears) = (Vec::new(), Vec::new());
        for (place, proxy) in [&first, &later].into_iter().enumerate() {
            nodes.push(node(&proxy.url(), &[("MOONGATE_NODE_TTL", "2s")]).await);
            ears.push(Ear::member(&nodes[place], &format!("user-{place}"), &["room"]).await);
        }
        for _ in 0..6 {
            first.refuse();
            later.refuse();
            throughout(Duration::from_millis(1000), "sockets stay open", async || all_open(&ears)).await;
            first.pass();
            // Since its lease was renewed, more than a lease has passed by now or will have before it is back.
            throughout(Duration::from_millis(700), "sockets stay open", async || all_open(&ears)).await;
            later.pass();
            within(BACK, "all are in touch", async || are_ready(&nodes).await).await;
            let all: Vec<&Node> = nodes.iter().collect();
            assert_eq!(sum(&all, "moongate_fenced_total").await, 0.0, "was there in time, and was fenced");
            // Beats go on, and each sees the other renew.
            throughout(Duration::from_millis(1500), "sockets stay open", async || all_open(&ears)).await;
        }
        drop(ears);
        end(&redis, nodes, vec![]).await;
    });
    join_all(clusters).await;
}

/// Longer than leases last nobody can renew its own, and then all can.
async fn nobody_is_swept_after(begin: &[&str], finish: &[&str]) {
    let redis = Redis::start().await;
    let (nodes, ears) = three_nodes(&redis.url()).await;
    let all: Vec<&Node> = nodes.iter().collect();
    for _ in 0..4 {
        redis.command(begin).await;
        throughout(Duration::from_secs(4), "sockets stay open", async || all_open(&ears)).await;
        redis.command(finish).await;
        throughout(Duration::from_secs(2), "nobody is swept", async || {
            sum(&all, "moongate_swept_nodes_total").await + sum(&all, "moongate_fenced_total").await == 0.0
        })
        .await;
        assert!(all_open(&ears));
    }
    all_are_reached_through(&nodes[2], &ears, "room again").await;
    drop(ears);
    end(&redis, nodes, vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_swept_when_a_full_redis_has_room_again() {
    nobody_is_swept_after(&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_swept_when_a_redis_that_takes_no_writes_without_replicas_takes_them_again() {
    let (begin, finish) =
        (["CONFIG", "SET", "min-replicas-to-write", "1"], ["CONFIG", "SET", "min-replicas-to-write", "0"]);
    nobody_is_swept_after(&begin, &finish).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_refuses_changes_and_all_that_is_pending_is_written_when_there_is_room_again() {
    let redis = Redis::start().await;
    let (nodes, ears) = three_nodes(&redis.url()).await;
    for round in 0..2 {
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
        let full = Instant::now();
        let mut newcomers = Vec::new();
        // Longer than leases last.
        while full.elapsed() < Duration::from_secs(5) {
            for (place, node) in nodes.iter().enumerate() {
                let asked = Instant::now();
                let change = json!({"client_id": ears[(place + 1) % 3].id, "group": format!("round-{round}")});
                let (status, code) = node.refused("joinGroup", change).await;
                assert_eq!((status, code.as_str()), (503, "redis_unavailable"));
                assert!(asked.elapsed() < Duration::from_secs(3), "refused after {:?}", asked.elapsed());
            }
            // What writes nothing goes on.
            let sent = nodes[0].ask("sendToUid", json!({"uid": "user-1", "message": format!("full {round}")})).await;
            assert_eq!(sent["nodes"], 1);
            assert_eq!(nodes[1].ask("getClientIdCountByGroup", json!({"group": "room"})).await, 3);
            newcomers.push(Ear::of(nodes[0].connect().await));
        }
        eventually("it is heard", async || ears[1].has_heard(&format!("full {round}"))).await;
        assert!(all_open(&ears) && all_open(&newcomers));
        redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
        // Leases come first. What was asked for meanwhile may have been done; all that is pending is written.
        let room = format!("round-{round}");
        for (place, node) in nodes.iter().enumerate() {
            let change = json!({"client_id": ears[(place + 1) % 3].id, "group": room});
            within(Duration::from_secs(3), "changes are done again", async || {
                node.call("joinGroup", change.clone()).await["result"] == true
            })
            .await;
        }
        assert_eq!(nodes[2].ask("getClientIdCountByGroup", json!({"group": room})).await, 3);
        for newcomer in &newcomers {
            assert_eq!(nodes[2].ask("isOnline", json!({"client_id": newcomer.id})).await, true);
        }
        all_are_reached_through(&nodes[2], &ears, &format!("room again {round}")).await;
        drop(newcomers);
        eventually("they are gone", async || redis.keys("mg:client:*").await.len() == 6).await;
    }
    let rooms = ["room", "round-0", "round-1"];
    let uids = ["user-0", "user-1", "user-2"];
    let clients: Vec<Expected<'_>> =
        ears.iter().zip(uids).map(|(ear, uid)| Expected::member(ear, uid, &rooms)).collect();
    assert_eq!(state(&redis).await, expected(&clients));
    assert!(all_open(&ears));
    drop(ears);
    end(&redis, nodes, vec![]).await;
}
