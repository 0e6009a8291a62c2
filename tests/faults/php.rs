//! What PHP meets when nodes die, or Redis does.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::harness::{Node, soon};
use crate::peer::{IS_ONLINE, ON_CLOSE, Peer, SET_SESSION, WORKER_CONNECT, connection, inner_address, packet};
use crate::redis::Redis;
use crate::world::{Process, TTL, node, throughout, within};

const PHP: &[(&str, &str)] = &[("MOONGATE_LAN_LISTEN", ""), ("MOONGATE_REGISTER_LISTEN", "127.0.0.1:0")];

/// What the node's Register lists.
async fn list(node: &Node) -> Vec<String> {
    let mut socket = BufReader::new(TcpStream::connect(node.register.unwrap()).await.unwrap());
    socket.write_all(b"{\"event\":\"worker_connect\",\"secret_key\":\"\"}\n").await.unwrap();
    let mut line = String::new();
    soon("a list", socket.read_line(&mut line)).await.unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    line["addresses"].as_array().unwrap().iter().map(|address| address.as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_leaves_the_list_and_the_end_of_its_clients_is_told_to_the_survivors_workers() {
    let redis = Redis::start().await;
    a_killed_node_leaves_the_list(&redis.url()).await;
}

/// And the end of its clients is told to the survivor's workers.
pub async fn a_killed_node_leaves_the_list(url: &str) {
    let survivor = node(url, PHP).await;
    let victim = Process::ready(url, PHP).await;
    let client = victim.connect().await;
    let inner = inner_address(&client.id);
    let mut caller = Peer::connect(inner).await;
    caller.send(&packet(SET_SESSION, connection(&client.id), b"a:1:{s:1:\"f\";d:1;}", b"")).await;
    assert_eq!(caller.ask(IS_ONLINE, connection(&client.id), b"").await, "i:1;");
    within(Duration::from_secs(2), "both are listed", async || list(&survivor).await.contains(&inner.to_string()))
        .await;
    let known = async || {
        let session = survivor.ask("getSession", json!({"client_id": client.id})).await;
        session == json!({"f": 1.0})
    };
    within(Duration::from_secs(2), "the session is known to all", known).await;
    let own = list(&survivor).await.into_iter().find(|address| *address != inner.to_string()).unwrap();
    let mut worker = Peer::worker(own.parse().unwrap(), "App:0").await;

    victim.kill();
    // Callers would be stopped by an address where nobody listens.
    within(Duration::from_secs(2), "it is not listed", async || list(&survivor).await == [own.clone()]).await;
    let event = tokio::time::timeout(TTL + Duration::from_secs(7), worker.event()).await.expect("in time");
    assert_eq!((event.command, event.client_id), (ON_CLOSE, client.id.clone()));
    assert_eq!(event.session, b"a:1:{s:1:\"f\";d:1;}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_the_list_stays_and_php_reaches_the_clients_of_every_node() {
    let redis = Redis::start().await;
    let url = redis.url();
    let (first, second) = (node(&url, PHP).await, node(&url, PHP).await);
    let mut clients = [first.connect().await, second.connect().await];
    let mut both = clients.each_ref().map(|client| inner_address(&client.id).to_string());
    both.sort();
    let listed = async |node: &Node| {
        let mut list = list(node).await;
        list.sort();
        list == both
    };
    for node in [&first, &second] {
        within(Duration::from_secs(3), "both are listed", async || listed(node).await).await;
    }
    redis.stop();
    throughout(Duration::from_secs(5), "both are listed", async || listed(&first).await && listed(&second).await).await;
    for client in &mut clients {
        let mut caller = Peer::connect(inner_address(&client.id)).await;
        caller.send(&packet(crate::peer::SEND_TO_ONE, connection(&client.id), b"", b"still")).await;
        assert_eq!(client.text().await, "still");
    }
    redis.restart_empty().await;
    // And it comes back by itself.
    within(Duration::from_secs(10), "all is in Redis again", async || {
        redis.command(&["HLEN", "{mg:nodes}:php"]).await == crate::redis::Reply::Int(2)
    })
    .await;
    throughout(Duration::from_secs(2), "both are listed", async || listed(&first).await && listed(&second).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_elsewhere_hear_every_25_seconds_that_the_node_is_there() {
    let settings = [("MOONGATE_LAN_LISTEN", ""), ("MOONGATE_LAN_IP", "127.0.0.3"), ("MOONGATE_SECRET_KEY", "k")];
    let node = Node::start_with(&settings).await;
    assert_eq!(node.php.unwrap().ip().to_string(), "127.0.0.3");
    let mut worker = Peer::connect(node.php.unwrap()).await;
    worker.send(&packet(WORKER_CONNECT, 0, b"", br#"{"worker_key":"App:0","secret_key":"k"}"#)).await;
    let ping = tokio::time::timeout(Duration::from_secs(30), async {
        use tokio::io::AsyncReadExt as _;
        let mut packet = [0; 28];
        worker.0.read_exact(&mut packet).await.unwrap();
        packet
    });
    // As recorded: nothing but length, number and flag.
    let mut expected = [0; 28];
    (expected[3], expected[4], expected[21]) = (28, 201, 1);
    assert_eq!(ping.await.expect("a ping in time"), expected);
}
