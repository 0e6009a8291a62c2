//! The connections to Redis are killed again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::Node;
use crate::redis::{Connection, Redis, Reply};
use crate::world::{Ear, Expected, all_are_reached_through, all_open, end, node, redis_holds, sum, within};

const STORM: Duration = Duration::from_secs(15);

async fn own_id(connection: &mut Connection) -> String {
    connection.command(&["CLIENT", "ID"]).await.int().to_string()
}

/// Kills every connection but these; returns how many there were.
async fn kill_all_but(control: &mut Connection, spared: &[String]) -> u64 {
    let list = control.command(&["CLIENT", "LIST"]).await.string();
    let ids = list.lines().filter_map(|line| line.split(' ').find_map(|field| field.strip_prefix("id=")));
    let mut killed = 0;
    for id in ids.filter(|id| !spared.iter().any(|spared| spared == id)) {
        if control.command(&["CLIENT", "KILL", "ID", id]).await == Reply::Int(1) {
            killed += 1;
        }
    }
    killed
}

/// Of each source, `name number`, the numbers grow.
fn grow(ear: &Ear) -> BTreeMap<String, u64> {
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for text in ear.heard() {
        let Some((source, number)) = text.split_once(' ') else { continue };
        let number: u64 = number.parse().unwrap();
        if let Some(before) = last.insert(source.to_owned(), number) {
            assert!(number > before, "{source}: {number} after {before}");
        }
    }
    last
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
    let (mut control, mut foreign) = (redis.connection().await, redis.connection().await);
    let spared = [own_id(&mut control).await, own_id(&mut foreign).await];
    let over = Arc::new(AtomicBool::new(false));
    let kills = Arc::new(AtomicU64::new(0));

    let killer = tokio::spawn({
        let (over, kills) = (Arc::clone(&over), Arc::clone(&kills));
        async move {
            while !over.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(200)).await;
                kills.fetch_add(kill_all_but(&mut control, &spared).await, Ordering::Relaxed);
            }
        }
    });
    let publisher = tokio::spawn({
        let over = Arc::clone(&over);
        async move {
            let mut number = 0_u64;
            while !over.load(Ordering::Relaxed) {
                for (channel, source) in [("mg:uid:user-1", "uid"), ("mg:group:room", "group"), ("mg:all", "all")] {
                    foreign.publish(channel, format!("foreign-{source} {number}")).await;
                }
                number += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            number
        }
    });
    // Over HTTP: each after the one before was answered, whatever the answer was.
    let callers = [0, 1].map(|place| {
        let (over, nodes) = (Arc::clone(&over), Arc::clone(&nodes));
        tokio::spawn(async move {
            let mut caller = nodes[place].caller().await;
            let (mut number, mut answered) = (0_u64, 0_u64);
            while !over.load(Ordering::Relaxed) {
                for (op, field, target) in [("sendToUid", "uid", "user-1"), ("sendToGroup", "group", "room")] {
                    let message = format!("http-{place}-{op} {number}");
                    let answer = caller.call(op, json!({field: target, "message": message})).await;
                    answered += u64::from(answer.get("result").is_some());
                    assert!(answer.get("result").is_some() || answer["code"] == "redis_unavailable", "{answer}");
                }
                number += 1;
            }
            (number * 2, answered)
        })
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
    let published = publisher.await.unwrap();
    let (done, slowest) = changer.await.unwrap();
    assert!(done > 0 && slowest < Duration::from_secs(4), "{done} changes were done; the slowest took {slowest:?}");
    let mut sent = Vec::new();
    for caller in callers {
        let (asked, answered) = caller.await.unwrap();
        assert!(answered > asked / 10, "{answered} of {asked} sends were answered");
        sent.push((asked, answered));
    }
    let kills = kills.load(Ordering::Relaxed);
    assert!(kills > 100, "{kills} connections were killed");

    within(Duration::from_secs(10), "both are in touch", async || {
        let mut up = true;
        for node in nodes.iter() {
            up &= node.get("/readyz?strict=1").await.status == 200;
        }
        up
    })
    .await;
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
    let mut heard = 0;
    for ear in &ears {
        heard += grow(ear).len();
        let count = ear.heard().len();
        assert!(count > 50, "{count} messages heard of {published} published and {sent:?} sent");
    }
    assert!(heard >= ears.len() * 3, "{heard}");
    // What Redis holds is what there is.
    for group in 0..7 {
        nodes[0].done("leaveGroup", json!({"client_id": ears[0].id, "group": format!("storm-{group}")})).await;
    }
    let uids: Vec<String> = (0..10).map(|client| format!("user-{}", client % 4)).collect();
    let clients = ears.iter().zip(&uids).map(|(ear, uid)| Expected {
        id: &ear.id,
        uid: Some(uid),
        groups: &["room"],
        session: Some(json!({"uname": uid})),
    });
    redis_holds(&redis, Duration::from_secs(10), &clients.collect::<Vec<_>>()).await;
    eprintln!(
        "{kills} kills, {gaps} gaps of {seconds:.1} s in all; {published} published, {sent:?} sent, {done} changes, slowest {slowest:?}"
    );
    drop(ears);
    let nodes = Arc::into_inner(nodes).unwrap();
    end(&redis, nodes.into(), vec![]).await;
}
