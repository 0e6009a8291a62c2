//! All nodes at once: `GET /nodes`.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Node, eventually, soon};
use crate::redis::Redis;
use crate::world::Process;

/// What each node is listed with.
const FIELDS: [&str; 16] = [
    "age_ms",
    "clients",
    "closed",
    "cpu_ms",
    "deliveries",
    "dropped",
    "groups",
    "lan",
    "memory",
    "messages_in",
    "node",
    "ready",
    "started_at",
    "uids",
    "uptime_ms",
    "version",
];

async fn look(node: &Node) -> Value {
    let answer = node.get("/nodes").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// Looks until it is so, and returns what was seen then.
async fn until(what: &str, node: &Node, is_so: impl Fn(&Value) -> bool) -> Value {
    soon(what, async {
        loop {
            let seen = look(node).await;
            if is_so(&seen) {
                return seen;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
}

fn list(seen: &Value) -> &Vec<Value> {
    seen["nodes"].as_array().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_alone_lists_itself_with_what_it_has_counted() {
    let settings = [("MOONGATE_API_TOKEN", "secret"), ("MOONGATE_DRAIN", "20s")];
    let node = Node::start_with(&settings).await;
    assert_eq!(node.request("GET", "/nodes", &[("Authorization", "Bearer wrong")], b"").await.status, 401);
    let before = look(&node).await;
    assert_eq!((list(&before).len(), &before["redis"]), (1, &Value::Null), "{before}");
    let [mut one, gone] = [node.member("u", "g").await, node.connect().await];
    one.send(Message::text("hello")).await;
    node.ask("sendToGroup", json!({"group": "g", "message": "hi"})).await;
    assert_eq!(one.text().await, "hi");
    gone.close(1000, "").await;
    let seen = until("it has counted", &node, |seen| seen["nodes"][0]["closed"] == 1).await;
    let own = &seen["nodes"][0];
    let names: Vec<&String> = own.as_object().unwrap().keys().collect();
    assert_eq!(names, FIELDS);
    for (field, expected) in [
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("ready", json!("ready")),
        ("age_ms", json!(0)),
        ("clients", json!(1)),
        ("uids", json!(1)),
        ("groups", json!(1)),
        ("messages_in", json!(1)),
        ("deliveries", json!(1)),
        ("dropped", json!(0)),
    ] {
        assert_eq!(own[field], expected, "{field}: {seen}");
    }
    let earlier = &before["nodes"][0];
    assert_eq!([&own["node"], &own["started_at"]], [&earlier["node"], &earlier["started_at"]]);
    assert!(
        own["uptime_ms"].as_u64() > earlier["uptime_ms"].as_u64() && own["memory"].as_u64() > Some(1 << 20),
        "{own}"
    );
    node.stop();
    until("it stops", &node, |seen| seen["nodes"][0]["ready"] == "stopping").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_lists_all_with_their_numbers_and_itself_alone_while_redis_is_away() {
    let redis = Redis::start().await;
    let url = redis.tcp_url();
    let [settings_a, settings_b] =
        ["gate-a", "gate-b"].map(|id| [("MOONGATE_REDIS_URL", &*url), ("MOONGATE_NODE_ID", id)]);
    let a = Node::start_with(&settings_a).await.until_ready().await;
    let b = Node::start_with(&settings_b).await.until_ready().await;
    let mut client = a.member("u", "g").await;
    client.send(Message::text("hello")).await;
    b.ask("sendToUid", json!({"uid": "u", "message": "hi"})).await;
    assert_eq!(client.text().await, "hi");
    for (node, other) in [(&a, 1), (&b, 0)] {
        let what = "it knows of both, and that both are ready";
        let seen = until(what, node, |seen| {
            let numbers = ["clients", "uids", "groups", "messages_in", "deliveries"];
            list(seen).len() == 2
                && list(seen).iter().all(|node| node["ready"] == "ready")
                && numbers.map(|name| seen["nodes"][0][name].as_u64().unwrap()) == [1; 5]
                && numbers.map(|name| seen["nodes"][1][name].as_u64().unwrap()) == [0; 5]
        })
        .await;
        assert_eq!(seen["redis"], json!({"up": true}));
        let ids: Vec<&Value> = list(&seen).iter().map(|node| &node["node"]).collect();
        assert_eq!(ids, ["gate-a", "gate-b"]);
        let other = &seen["nodes"][other];
        assert_eq!(other.as_object().unwrap().keys().collect::<Vec<_>>(), FIELDS);
        assert!(other["age_ms"].as_u64().unwrap() < 10_000, "{seen}");
    }
    redis.stop();
    let seen = until("it knows that Redis is away", &b, |seen| seen["redis"]["up"] == false).await;
    assert_eq!((list(&seen).len(), &seen["nodes"][0]["node"]), (1, &json!("gate-b")), "{seen}");
    until("it says so", &b, |seen| seen["nodes"][0]["ready"] == "ready; Redis is away").await;
    redis.start_again().await;
    until("both are there again", &b, |seen| list(seen).len() == 2 && seen["redis"]["up"] == true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_node_that_died_the_age_of_its_numbers_grows_until_it_is_swept() {
    let redis = Redis::start().await;
    let url = redis.tcp_url();
    let ttl = ("MOONGATE_NODE_TTL", "2s");
    let node = Node::start_with(&[("MOONGATE_REDIS_URL", &*url), ttl]).await.until_ready().await;
    let doomed = Process::ready(&url, &[ttl, ("MOONGATE_NODE_ID", "doomed")]).await;
    let of_doomed = |seen: &Value| list(seen).iter().find(|node| node["node"] == "doomed").cloned();
    until("both are there", &node, |seen| list(seen).len() == 2).await;
    doomed.kill();
    let age = |seen: &Value| of_doomed(seen).map(|doomed| doomed["age_ms"].as_u64().unwrap());
    until("it has said nothing for a while", &node, |seen| age(seen) > Some(1500)).await;
    eventually("it is swept", async || list(&look(&node).await).len() == 1).await;
}
