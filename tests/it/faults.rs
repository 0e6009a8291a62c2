//! Nodes and Redis that fail, as far as it is quick to see; `tests/faults` has what takes longer.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite;

use crate::harness::{Client, Node, PATIENCE, eventually, soon};
use crate::proxy::{Direction, Proxy};
use crate::redis::{Redis, Reply};
use crate::world::{Process, end, node, run, unready_node};

async fn is_in_touch(node: &Node) -> bool {
    node.get("/readyz?strict=1").await.status == 200
}

/// A message through a node is the next thing that a client hears.
async fn hears(node: &Node, client: &mut Client, message: &str) {
    assert_eq!(node.ask("sendToClient", json!({"client_id": client.id, "message": message})).await["nodes"], 1);
    assert_eq!(client.text().await, message);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_sockets_stay_open_and_clients_are_let_in_and_all_is_told_when_it_is_back() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let (here, there) = (node(&proxy.url(), &[]).await, node(&proxy.url(), &[]).await);
    let (mut stays, leaves) = (here.member("stays", "room").await, here.member("leaves", "room").await);
    proxy.refuse();
    for node in [&here, &there] {
        eventually("it is noticed", async || !is_in_touch(node).await).await;
        assert_eq!(node.ready().await.0, 200, "an outage for all empties no Service");
    }
    let away = Instant::now();
    for (op, fields) in [
        ("bindUid", json!({"client_id": stays.id, "uid": "x"})),
        ("sendToUid", json!({"uid": "stays", "message": "x"})),
        ("isUidOnline", json!({"uid": "stays"})),
    ] {
        let refused = there.post(op, &fields.to_string()).await;
        assert_eq!((refused.status, refused.json()["code"].clone()), (503, json!("redis_unavailable")), "{op}");
        assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    }
    let mut comes = here.connect().await;
    assert!(away.elapsed() < Duration::from_secs(1), "{:?}", away.elapsed());
    let left = leaves.id.clone();
    drop(leaves);
    proxy.pass();
    for (id, is_there) in [(&stays.id, true), (&comes.id, true), (&left, false)] {
        eventually("the others know", async || {
            there.call("isOnline", json!({"client_id": id})).await["result"] == is_there
        })
        .await;
    }
    eventually("all hear", async || redis.publish("mg:cmd", "{}").await == 2).await;
    there.done("bindUid", json!({"client_id": comes.id, "uid": "came"})).await;
    assert_eq!(redis.publish("mg:uid:came", "hello").await, 1);
    assert_eq!(comes.text().await, "hello");
    hears(&there, &mut stays, "still here").await;
    drop((stays, comes));
    end(&redis, vec![here, there], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_concerns_a_node_that_cannot_be_reached_is_not_called_done() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let (here, cut_off) = (node(&redis.url(), &[]).await, node(&proxy.url(), &[]).await);
    let (near, far) = (here.member("near", "near room").await, cut_off.member("far", "far room").await);
    proxy.refuse();
    for (op, fields) in [
        ("closeUid", json!({"uid": ["near", "far"]})),
        ("joinGroup", json!({"uid": "far", "group": "x"})),
        ("leaveGroup", json!({"uid": "far", "group": "far room"})),
        ("ungroup", json!({"group": "far room"})),
    ] {
        assert_eq!(here.refused(op, fields).await, (504, "node_unreachable".to_owned()), "{op}");
    }
    here.done("joinGroup", json!({"uid": "nobody", "group": "x"})).await;
    here.done("ungroup", json!({"group": "near room"})).await;
    proxy.pass();
    eventually("it is reached", async || here.call("closeUid", json!({"uid": "far"})).await["result"]["nodes"] == 1)
        .await;
    drop((near, far));
    end(&redis, vec![here, cut_off], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_takes_its_time_counts() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let (here, slow) = (node(&redis.url(), &[]).await, node(&proxy.url(), &[]).await);
    let mut client = slow.member("u", "g").await;
    proxy.slow(Duration::from_millis(150));
    for (op, fields) in [
        ("sendToClient", json!({"client_id": client.id, "message": "x", "confirm": true})),
        ("sendToGroup", json!({"group": "g", "message": "x", "confirm": true})),
    ] {
        assert_eq!(here.ask(op, fields).await, json!({"nodes": 1, "clients": 1}), "{op}");
        assert_eq!(client.text().await, "x");
    }
    proxy.pass();
    drop(client);
    end(&redis, vec![here, slow], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_emptied_has_all_again() {
    let redis = Redis::start().await;
    let (here, there) = (node(&redis.url(), &[]).await, node(&redis.url(), &[]).await);
    let mut client = here.member("u", "g").await;
    here.done("setSession", json!({"client_id": client.id, "session": {"a": 1}})).await;
    redis.command(&["FLUSHALL"]).await;
    eventually("it is written again", async || {
        there.call("getClientSessionsByGroup", json!({"group": "g"})).await["result"] == json!({&*client.id: {"a": 1}})
    })
    .await;
    eventually("the other one, too", async || {
        redis.command(&["ZCARD", "mg:nodes"]).await == Reply::Int(2) && is_in_touch(&there).await
    })
    .await;
    assert_eq!(there.ask("getClientIdByUid", json!({"uid": "u"})).await, json!([client.id]));
    hears(&there, &mut client, "hello").await;
    drop(client);
    end(&redis, vec![here, there], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_is_swept_and_its_groups_are_told() {
    let redis = Redis::start().await;
    let settings = [("MOONGATE_NODE_TTL", "2s"), ("MOONGATE_LEAVE_MESSAGE", r#"{"left":"{session.name}"}"#)];
    let survivor = node(&redis.url(), &settings).await;
    let mut ear = survivor.member("ear", "room").await;
    let victim = Process::ready(&redis.url(), &settings).await;
    let client = victim.member("u", "room").await;
    victim.done("setSession", json!({"client_id": client.id, "session": {"name": "Ann"}})).await;
    assert_eq!(redis.publish("mg:uid:u", "x").await, 1);
    victim.kill();
    assert_eq!(redis.publish("mg:uid:u", "x").await, 0);
    let sent = survivor.ask("sendToUid", json!({"uid": ["u", "ear"], "message": "to both"})).await;
    assert_eq!(sent, json!({"nodes": 1, "offline": ["u"]}));
    assert_eq!(ear.text().await, "to both");
    assert_eq!(serde_json::from_str::<Value>(&ear.text().await).unwrap(), json!({"left": "Ann"}));
    assert_eq!(survivor.ask("isUidOnline", json!({"uid": "u"})).await, false);
    assert_eq!(survivor.ask("getClientIdCountByGroup", json!({"group": "room"})).await, 1);
    eventually("its name goes last", async || redis.command(&["ZCARD", "mg:nodes"]).await == Reply::Int(1)).await;
    ear.heard_nothing(&survivor).await;
    drop((client, ear));
    end(&redis, vec![survivor], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_hear_its_own_heartbeat_subscribes_anew_and_counts_the_gap() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let node = node(&proxy.url(), &[]).await;
    let mut client = node.member("u", "g").await;
    // Let the connection for commands be the younger one.
    let subscriber = proxy.accepted();
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    eventually("commands go on", async || proxy.accepted() > subscriber && is_in_touch(&node).await).await;
    proxy.swallow_first(subscriber, Direction::Both);
    assert_eq!(redis.publish("mg:uid:u", "lost").await, 1);
    eventually("it hears again", async || node.metric("moongate_bus_gaps_total").await == 1.0).await;
    assert_eq!(node.metric("moongate_bus_deaf_total").await, 1.0);
    let gap = node.metric("moongate_bus_gap_seconds_total").await;
    assert!((1.0..4.0).contains(&gap), "{gap}");
    assert_eq!(redis.publish("mg:all", "once").await, 1, "nobody hears through the old one");
    assert_eq!(client.text().await, "once");
    hears(&node, &mut client, "heard").await;
    drop(client);
    end(&redis, vec![node], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_at_the_start_a_node_waits_for_it() {
    let redis = Redis::start().await;
    redis.stop();
    let node = unready_node(&redis.tcp_url(), &[]).await;
    eventually("it serves", async || node.get("/healthz").await.status == 200).await;
    assert_eq!((node.ready().await.0, node.get("/readyz?strict=1").await.status), (503, 503));
    let refused = soon("a refusal", tokio_tungstenite::connect_async(node.ws_url("/"))).await;
    let Err(tungstenite::Error::Http(refused)) = refused else { panic!("{refused:?}") };
    assert!(refused.status() == 503 && refused.headers().contains_key("retry-after"), "{refused:?}");
    assert_eq!(node.refused("getAllClientIdCount", json!({})).await, (503, "redis_unavailable".to_owned()));
    redis.start_again().await;
    let node = node.until_ready().await;
    let mut client = node.connect().await;
    hears(&node, &mut client, "hello").await;
    drop(client);
    end(&redis, vec![node], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_will_not_do_ends_the_start_and_its_password_is_not_shown() {
    let guarded = Redis::start_with(&["--requirepass", "right"]).await;
    let primary = Redis::start().await;
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &primary.address().port().to_string()]).await;
    let cluster = Redis::start_with(&["--cluster-enabled", "yes"]).await;
    let wrong = format!("redis://:hunter2@{}", guarded.address());
    let unfit = [(wrong, "WRONGPASS"), (replica.tcp_url(), "replica"), (cluster.tcp_url(), "Cluster")];
    for (url, why) in &unfit {
        for arguments in [&[][..], &["check"]] {
            let (code, said) = run(arguments, url, &[("MOONGATE_LOG_FORMAT", "text")], PATIENCE).await;
            let line = said.lines().find(|line| line.contains("MOONGATE_REDIS_URL: ")).unwrap_or_default();
            assert!(code == 2 && line.contains(why) && !said.contains("hunter2"), "{said}");
        }
    }
    assert_eq!(run(&["check"], &guarded.tcp_url(), &[], PATIENCE).await, (0, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_of_a_living_name_exits_2() {
    let redis = Redis::start().await;
    let name = [("MOONGATE_NODE_ID", "gate-7"), ("MOONGATE_NODE_TTL", "2s")];
    let first = node(&redis.url(), &name).await;
    let started = Instant::now();
    let (code, said) = run(&[], &redis.url(), &name, PATIENCE).await;
    assert!(code == 2 && said.contains("MOONGATE_NODE_ID: "), "{said}");
    assert!(started.elapsed() >= Duration::from_secs(2), "it waited for {:?} only", started.elapsed());
    let mut client = first.connect().await;
    hears(&first, &mut client, "not disturbed").await;
    drop(client);
    end(&redis, vec![first], vec![]).await;
}
