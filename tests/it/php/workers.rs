//! What workers are told, and what clients meet without them.

use serde_json::json;

use super::{
    BIND_UID, Browser, COUNT, IS_ONLINE, KICK, ON_CLOSE, ON_CONNECT, ON_MESSAGE, ON_WEBSOCKET_CONNECT, PHP, Peer,
    SEND_TO_ONE, SET_SESSION, connection, inner_address, packet,
};
use crate::harness::{Node, eventually, soon};
use crate::redis::Redis;

#[tokio::test(flavor = "multi_thread")]
async fn where_workers_are_required_nobody_is_served_without_one() {
    let node = Node::start_with(&[PHP, &[("MOONGATE_WORKERS", "required")]].concat()).await;
    assert_eq!(node.ready().await.0, 503);
    let refused = tokio_tungstenite::connect_async(node.ws_url("/")).await;
    let Err(tokio_tungstenite::tungstenite::Error::Http(answer)) = refused else { panic!("{refused:?}") };
    assert_eq!(answer.status(), 503);
    let mut worker = Peer::worker(node.php.unwrap(), "App:0").await;
    eventually("the node is ready", async || node.ready().await.0 == 200).await;
    let mut client = node.connect().await;
    assert_eq!(worker.event().await.command, ON_CONNECT);
    assert_eq!(worker.event().await.command, ON_WEBSOCKET_CONNECT);
    drop(worker);
    eventually("the node is not ready", async || node.ready().await.0 == 503).await;
    // It stays as long as it is silent, and is told so when it is not.
    client.send("hello".into()).await;
    assert_eq!(client.closed().await, (1013, "no worker is connected".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn until_the_first_worker_clients_are_served_without_and_from_then_on_not() {
    let redis = Redis::start().await;
    let url = redis.url();
    let settings = [PHP, &[("MOONGATE_REDIS_URL", &url)]].concat();
    let first = Node::start_with(&settings).await.until_ready().await;
    let second = Node::start_with(&settings).await.until_ready().await;
    let mut early = second.connect().await;
    early.send("nobody hears this".into()).await;
    let client = first.connect().await;
    let worker = Peer::worker(inner_address(&client.id), "App:0").await;
    drop(worker);
    // All nodes know, and those that come later too.
    for node in [&first, &second] {
        eventually("no client without a worker", async || node.ready().await.0 == 503).await;
    }
    let third = Node::start_with(&settings).await;
    eventually("it knows, too", async || third.ready().await.1.contains("no PHP worker is connected")).await;
    let without = Node::start_with(&[&settings[..], &[("MOONGATE_WORKERS", "off")]].concat()).await.until_ready().await;
    drop(without.connect().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_does_is_told_in_order_with_its_session_of_then() {
    const MESSAGES: u32 = 1000;
    let node = Node::start_with(&[PHP, &[("MOONGATE_INIT_MESSAGE", "")]].concat()).await;
    let mut worker = Peer::worker(node.php.unwrap(), "App:0").await;
    let mut client = node.connect_quietly("/chat?token=1").await;
    let connected = worker.event().await;
    assert_eq!((connected.command, &connected.session[..]), (ON_CONNECT, &b""[..]));
    let id = connection(&connected.client_id);
    let request = worker.event().await;
    assert_eq!((request.command, &request.client_id), (ON_WEBSOCKET_CONNECT, &connected.client_id));
    let body = String::from_utf8(request.body).unwrap();
    assert!(
        body.starts_with("a:3:{s:3:\"get\";a:1:{s:5:\"token\";i:1;}") || body.contains("s:5:\"token\";s:1:\"1\";"),
        "{body}"
    );
    for number in 0..MESSAGES {
        client.send(format!("message {number}").into()).await;
    }
    for number in 0..MESSAGES {
        let event = worker.event().await;
        assert_eq!((event.command, event.body), (ON_MESSAGE, format!("message {number}").into_bytes()));
    }
    worker.send(&packet(SET_SESSION, id, b"a:1:{s:1:\"n\";i:1;}", b"")).await;
    worker.send(&packet(SEND_TO_ONE, id, b"", b"stored")).await;
    assert_eq!(client.text().await, "stored");
    client.send("and now".into()).await;
    assert_eq!(worker.event().await.session, b"a:1:{s:1:\"n\";i:1;}");
    client.close(1000, "").await;
    let ended = worker.event().await;
    assert_eq!((ended.command, &ended.session[..]), (ON_CLOSE, &b"a:1:{s:1:\"n\";i:1;}"[..]));
    assert_eq!(worker.ask(IS_ONLINE, id, b"").await, "i:0;");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_its_handshake_a_client_is_there_for_php_alone() {
    let node = Node::start_with(&[PHP, &[("MOONGATE_INIT_MESSAGE", "")]].concat()).await;
    let mut worker = Peer::worker(node.php.unwrap(), "App:0").await;
    let mut socket = tokio::net::TcpStream::connect(node.clients).await.unwrap();
    let id = worker.event().await.client_id;
    let asked = json!({"client_id": id});
    worker.send(&packet(BIND_UID, connection(&id), b"u", b"")).await;
    worker.send(&packet(SEND_TO_ONE, connection(&id), b"", b"held back")).await;
    let mut raw = packet(SEND_TO_ONE, connection(&id), b"", b"\x81\x03raw");
    raw[21] = 3;
    worker.send(&raw).await;
    assert_eq!(worker.ask(COUNT, 0, b"").await, "i:1;");
    assert_eq!(worker.ask(IS_ONLINE, connection(&id), b"").await, "i:1;");
    node.ask("sendToAll", json!({"message": "to those who are there"})).await;
    assert_eq!(node.ask("sendToClient", json!({"client_id": id, "message": "not there"})).await, json!({"nodes": 0}));
    assert_eq!(node.ask("isOnline", asked.clone()).await, false);
    assert_eq!(node.ask("getAllClientIdCount", json!({})).await, 0);
    tokio::io::AsyncWriteExt::write_all(&mut socket, Browser::HANDSHAKE.as_bytes()).await.unwrap();
    let mut browser = Browser { id: id.clone(), socket };
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(browser.frame().await, Some((1, b"held back".to_vec())));
    assert_eq!(browser.frame().await, Some((1, b"raw".to_vec())));
    assert_eq!(node.ask("isOnline", asked).await, true);
    assert_eq!(node.ask("getClientIdByUid", json!({"uid": "u"})).await, json!([id]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_client_that_no_worker_was_there_to_hear_of_is_told_to_the_next_one() {
    let node = Node::start_with(PHP).await;
    let mut worker = Peer::worker(node.php.unwrap(), "App:0").await;
    let client = node.connect().await;
    let id = worker.event().await.client_id;
    assert_eq!(worker.event().await.command, ON_WEBSOCKET_CONNECT);
    worker.send(&packet(SET_SESSION, connection(&id), b"a:1:{s:1:\"n\";i:1;}", b"")).await;
    assert_eq!(worker.ask(IS_ONLINE, connection(&id), b"").await, "i:1;");
    drop(worker);
    eventually("the worker is gone", async || node.metric("moongate_php_workers").await == 0.0).await;
    client.close(1000, "").await;
    let mut next = Peer::connect(node.php.unwrap()).await;
    next.send(&packet(super::WORKER_CONNECT, 0, b"", br#"{"worker_key":"App:1","secret_key":""}"#)).await;
    let ended = next.event().await;
    assert_eq!((ended.command, ended.client_id, &ended.session[..]), (ON_CLOSE, id, &b"a:1:{s:1:\"n\";i:1;}"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_does_not_read_loses_events_and_nobody_else_does() {
    let settings = [("MOONGATE_INIT_MESSAGE", ""), ("MOONGATE_MAX_MESSAGE_SIZE", "4MiB")];
    let node = Node::start_with(&[PHP, &settings].concat()).await;
    let mut worker = Peer::worker(node.php.unwrap(), "App:0").await;
    let mut client = node.connect_quietly("/").await;
    let id = worker.event().await.client_id;
    // More than the kernel and the node keep for it.
    let message = "x".repeat(1 << 20);
    soon("the client is not held up", async {
        while node.metric("moongate_php_events_lost_total").await == 0.0 {
            client.send(message.clone().into()).await;
        }
    })
    .await;
    let mut caller = Peer::connect(node.php.unwrap()).await;
    caller.send(&packet(SEND_TO_ONE, connection(&id), b"", b"still here")).await;
    assert_eq!(client.text().await, "still here");
    caller.send(&packet(KICK, connection(&id), b"", b"")).await;
    assert_eq!(client.text().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_may_say_again_who_it_is() {
    let node = Node::start_with(PHP).await;
    let mut worker = Peer::worker(node.php.unwrap(), "App:0").await;
    for name in ["App:0", "App:1"] {
        let body = format!(r#"{{"worker_key":"{name}","secret_key":""}}"#);
        worker.send(&packet(super::WORKER_CONNECT, 0, b"", body.as_bytes())).await;
        assert_eq!(worker.ask(IS_ONLINE, 0, b"").await, "i:0;");
    }
    assert_eq!(node.metric("moongate_php_workers").await, 1.0);
    drop(node.connect().await);
    for expected in [ON_CONNECT, ON_WEBSOCKET_CONNECT, ON_CLOSE] {
        assert_eq!(worker.event().await.command, expected);
    }
}
