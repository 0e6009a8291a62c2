//! Two processes that want to be the same node, and one that comes back after a crash.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::eventually;
use crate::proxy::Proxy;
use crate::redis::Redis;
use crate::world::{
    Ear, Process, TTL, all_are_reached_through, crowd, end, field, haunt, node, nodes, run, run_of, within,
};

/// It waits for as long as a dead one may look alive, and no longer.
const WAITS: Duration = TTL.saturating_add(Duration::from_secs(5));

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_of_a_living_name_waits_and_then_exits_2() {
    let redis = Redis::start().await;
    let first = node(&redis.url(), &[("MOONGATE_NODE_ID", "gate-7")]).await;
    let ear = Ear::member(&first, "u", &["g"]).await;
    let start = Instant::now();
    let (code, said) = run(&[], &redis.url(), &[("MOONGATE_NODE_ID", "gate-7")], WAITS).await;
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("MOONGATE_NODE_ID") && said.contains("gate-7"), "{said}");
    assert!(start.elapsed() >= TTL, "it waited for {:?} only", start.elapsed());
    // The other one has not noticed.
    all_are_reached_through(&first, std::slice::from_ref(&ear), "still here").await;
    assert_eq!(nodes(&redis).await.len(), 1);
    assert_eq!(first.metric("moongate_fenced_total").await, 0.0);
    drop(ear);
    end(&redis, vec![first], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_of_a_living_address_exits_2_and_names_both() {
    let redis = Redis::start().await;
    let address = [("MOONGATE_LAN_IP", "127.0.0.1"), ("MOONGATE_LAN_PORT", "4000")];
    let of = |name| [address[0], address[1], ("MOONGATE_NODE_ID", name)];
    let first = node(&redis.url(), &of("gate-7")).await;
    let ear = Ear::member(&first, "u", &["g"]).await;
    let (code, said) = run(&[], &redis.url(), &of("gate-8"), WAITS).await;
    assert_eq!(code, 2, "{said}");
    for word in ["MOONGATE_LAN_PORT", "127.0.0.1:4000", "gate-7", "gate-8"] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    all_are_reached_through(&first, std::slice::from_ref(&ear), "still here").await;
    assert_eq!(nodes(&redis).await.len(), 1);
    drop(ear);
    end(&redis, vec![first], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_was_not_set_moves_to_the_next_free_one() {
    let redis = Redis::start().await;
    let ip = ("MOONGATE_LAN_IP", "127.0.0.1");
    let first = node(&redis.url(), &[ip, ("MOONGATE_NODE_ID", "a"), ("MOONGATE_LAN_PORT", "2901")]).await;
    let second = node(&redis.url(), &[ip, ("MOONGATE_NODE_ID", "b")]).await;
    let third = node(&redis.url(), &[ip, ("MOONGATE_NODE_ID", "c")]).await;
    for (name, port) in [("a", 2901), ("b", 2900), ("c", 2902)] {
        let lan = field(&redis, &format!("mg:node:{name}"), "lan").await;
        assert_eq!(lan, Some(format!("127.0.0.1:{port}")));
    }
    let ears = [
        Ear::member(&first, "one", &["g"]).await,
        Ear::member(&second, "two", &["g"]).await,
        Ear::member(&third, "three", &["g"]).await,
    ];
    for (ear, lan) in ears.iter().zip(["7f0000010b55", "7f0000010b54", "7f0000010b56"]) {
        assert!(ear.id.starts_with(lan), "{}", ear.id);
    }
    all_are_reached_through(&second, &ears, "hello").await;
    drop(ears);
    end(&redis, vec![first, second, third], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_node_is_started_again_with_its_name_and_address_when_it_was_swept() {
    let redis = Redis::start().await;
    let named = [("MOONGATE_NODE_ID", "gate-7"), ("MOONGATE_LAN_IP", "127.0.0.1"), ("MOONGATE_LAN_PORT", "4000")];
    for with_a_survivor in [true, false] {
        let survivor = if with_a_survivor { Some(node(&redis.url(), &[]).await) } else { None };
        let crashing = Process::ready(&redis.url(), &named).await;
        let before = crowd(&crashing, "user", 50, "room").await;
        let old = run_of(&redis, "gate-7").await.unwrap();
        crashing.kill();
        let killed = Instant::now();
        let again = Process::start(&redis.url(), &named).await;
        // It is there, and waits.
        eventually("it says why it is not ready", async || again.ready().await.0 == 503).await;
        assert_eq!(again.get("/healthz").await.status, 200);
        assert!(tokio_tungstenite::connect_async(again.ws_url("/")).await.is_err(), "there is no place for clients");
        within(WAITS, "it serves", async || again.ready().await.0 == 200).await;
        assert!(killed.elapsed() > TTL - Duration::from_secs(1), "{:?}: nobody can tell so early", killed.elapsed());
        assert_ne!(run_of(&redis, "gate-7").await.unwrap(), old);
        assert!(redis.keys(&format!("mg:clients:{old}")).await.is_empty());
        assert!(redis.keys("mg:client:*").await.is_empty() && redis.keys("mg:uid:*").await.is_empty());
        let ear = Ear::member(&again, "user-1", &["room"]).await;
        assert!(ear.id.starts_with("7f0000010fa0"), "{}", ear.id);
        let door = survivor.as_ref().unwrap_or(&again);
        assert_eq!(door.ask("getClientIdByUid", json!({"uid": "user-1"})).await, json!([ear.id]));
        all_are_reached_through(door, std::slice::from_ref(&ear), "again").await;
        drop((before, ear));
        end(&redis, survivor.into_iter().collect(), vec![again]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_node_with_many_clients_may_start_again_however_long_the_sweep_takes() {
    let redis = Redis::start().await;
    // A sweep of several seconds.
    let proxy = Proxy::start(redis.address()).await;
    let old = haunt(&redis, "gate-7", 3000).await;
    proxy.slow(Duration::from_millis(60));
    let again = Process::start(&proxy.url(), &[("MOONGATE_NODE_ID", "gate-7")]).await;
    within(Duration::from_secs(30), "it serves", async || {
        assert_eq!(again.code(), None, "{}", again.log());
        again.ready().await.0 == 200
    })
    .await;
    assert!(redis.keys(&format!("mg:clients:{old}")).await.is_empty());
    assert!(redis.keys("mg:client:*").await.is_empty() && redis.keys("mg:uid:*").await.is_empty());
    proxy.pass();
    end(&redis, vec![], vec![again]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_node_that_stops_no_lease_is_left_however_slow_redis_is() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let mut stopping = Vec::new();
    for _ in 0..20 {
        stopping.push(node(&proxy.url(), &[]).await);
    }
    // Leaving and renewing take so long that they meet.
    proxy.slow(Duration::from_millis(60));
    for node in &stopping {
        node.stop();
        tokio::time::sleep(Duration::from_millis(35)).await;
    }
    for node in stopping {
        assert_eq!(node.stopped().await, 0);
    }
    assert_eq!(redis.keys("*").await, ["mg:tasks".to_owned()].into());
}
