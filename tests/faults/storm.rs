//! The connections to Redis are killed again and again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::Node;
use crate::history::Load;
use crate::redis::{Connection, Redis, Reply};
use crate::world::{
    Ear, Expected, all_are_reached_through, all_open, are_ready, end, node, redis_holds, saw, sum, within,
};

/// Who speaks meanwhile.
const SOURCES: [&str; 5] = ["room", "all", "uid", "http-room", "http-uid"];

const STORM: Duration = Duration::from_secs(15);

/// Kills every connection but the test's own; returns how many there were.
async fn kill_all(control: &mut Connection) -> u64 {
    let list = control.command(&["CLIENT", "LIST"]).await.string();
    let others = list.lines().filter(|line| !line.contains(" name=test "));
    let ids = others.filter_map(|line| line.split(' ').find_map(|field| field.strip_prefix("id=")));
    let mut killed = 0;
    for id in ids {
        if control.command(&["CLIENT", "KILL", "ID", id]).await == Reply::Int(1) {
            killed += 1;
        }
    }
    killed
}

#[tokio::test(flavor = "multi_thread")]
async fn while_connections_to_redis_are_killed_again_and_again_nothing_comes_twice_or_out_of_order() {
    let redis = Redis::start().await;
    let url = redis.url();
    // Whoever is killed five times a second needs some luck to renew its lease.
    let ttl = [("MOONGATE_NODE_TTL", "15s")];
    let nodes = Arc::new([node(&url, &ttl).await, node(&url, &ttl).await]);
    let mut ears = Vec::new();
    for client in 0..10 {
        ears.push(Ear::member(&nodes[client % 2], &format!("user-{}", client % 4), &["room"]).await);
    }
    let mut load = Load::default();
    load.publish(&redis, SOURCES[0], "mg:group:room").await;
    load.publish(&redis, SOURCES[1], "mg:all").await;
    load.publish(&redis, SOURCES[2], "mg:uid:user-1").await;
    load.call(&nodes[0], SOURCES[3], "sendToGroup", json!({"group": "room"})).await;
    load.call(&nodes[1], SOURCES[4], "sendToUid", json!({"uid": "user-1"})).await;
    let mut control = redis.connection().await;
    control.command(&["CLIENT", "SETNAME", "test"]).await;
    let over = Arc::new(AtomicBool::new(false));
    let kills = Arc::new(AtomicU64::new(0));

    let killer = tokio::spawn({
        let (over, kills) = (Arc::clone(&over), Arc::clone(&kills));
        async move {
            while !over.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(200)).await;
                kills.fetch_add(kill_all(&mut control).await, Ordering::Relaxed);
            }
        }
    });
    // And somebody changes things: each change is done, or not known to be done.
    let changer = tokio::spawn({
        let (over, nodes, id) = (Arc::clone(&over), Arc::clone(&nodes), ears[0].id.clone());
        async move {
            let mut done = 0;
            let mut slowest = Duration::ZERO;
            for number in 0_u64.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let (op, asked) = (["joinGroup", "leaveGroup"][number as usize % 2], Instant::now());
                let fields = json!({"client_id": id, "group": format!("storm-{}", number % 7)});
                let answer = nodes[1].call(op, fields).await;
                slowest = slowest.max(asked.elapsed());
                let code = answer["code"].as_str().unwrap_or("done");
                assert!(["done", "redis_unavailable", "node_unreachable"].contains(&code), "{answer}");
                done += u64::from(code == "done");
            }
            (done, slowest)
        }
    });
    let began = Instant::now();
    while began.elapsed() < STORM {
        assert!(all_open(&ears));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    over.store(true, Ordering::Relaxed);
    killer.await.unwrap();
    load.stop().await;
    let (done, slowest) = changer.await.unwrap();
    assert!(done > 0 && slowest < Duration::from_secs(4), "{done} changes were done; the slowest took {slowest:?}");
    let kills = kills.load(Ordering::Relaxed);
    assert!(kills > 100, "{kills} connections were killed");

    within(Duration::from_secs(10), "both are in touch", async || are_ready(&nodes[..]).await).await;
    within(Duration::from_secs(10), "both hear", async || redis.publish("mg:cmd", "{}").await == 2).await;
    for node in nodes.iter() {
        within(Duration::from_secs(10), "changes are done again", async || {
            let done = json!({"client_id": ears[0].id, "group": "storm-0"});
            node.call("leaveGroup", done).await.get("result").is_some()
        })
        .await;
        all_are_reached_through(node, &ears, "calm").await;
    }
    let all: Vec<&Node> = nodes.iter().collect();
    let (gaps, seconds) =
        (sum(&all, "moongate_bus_gaps_total").await, sum(&all, "moongate_bus_gap_seconds_total").await);
    assert!(gaps >= 20.0 && seconds > 0.0, "{gaps} gaps of {seconds} seconds");
    for metric in ["moongate_swept_nodes_total", "moongate_fenced_total"] {
        assert_eq!(sum(&all, metric).await, 0.0, "{metric}");
    }
    let mut sources_heard = BTreeSet::new();
    for ear in &ears {
        // In order and once; much is missed.
        load.missed(ear, &SOURCES);
        let heard = ear.heard();
        assert!(heard.len() > 50, "{} messages heard of {} said", heard.len(), load.count());
        sources_heard.extend(heard.iter().filter_map(|text| Some(text.rsplit_once(' ')?.0.to_owned())));
    }
    for source in SOURCES {
        assert!(sources_heard.contains(source), "{source} was never heard");
    }
    // What Redis holds is what there is.
    for group in 0..7 {
        nodes[0].done("leaveGroup", json!({"client_id": ears[0].id, "group": format!("storm-{group}")})).await;
    }
    let uids: Vec<String> = (0..10).map(|client| format!("user-{}", client % 4)).collect();
    let clients = ears.iter().zip(&uids).map(|(ear, uid)| Expected::member(ear, uid, &["room"]));
    redis_holds(&redis, Duration::from_secs(10), &clients.collect::<Vec<_>>()).await;
    saw(
        "cut",
        &format!(
            "{kills} connections killed in {STORM:?}, {gaps} gaps of {seconds:.1} s in all; of {} messages nothing twice or out of \
             order; {done} changes, the slowest {slowest:.1?}",
            load.count()
        ),
    );
    drop(ears);
    let nodes = Arc::into_inner(nodes).unwrap();
    end(&redis, nodes.into(), vec![]).await;
}
