//! What clients do, as applications hear of it: on the stream `mg:events`, and by webhook.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::access::refused;
use crate::harness::{Client, Node, eventually, soon};
use crate::receiver::Receiver;
use crate::redis::{Redis, Reply};

/// The entries of `mg:events`, oldest first, each with its fields in order.
async fn stream(redis: &Redis) -> Vec<Vec<(String, String)>> {
    let entries = redis.command(&["XRANGE", "mg:events", "-", "+"]).await.list();
    let fields = entries.into_iter().map(|entry| entry.list().remove(1).list());
    fields
        .map(|fields| fields.chunks(2).map(|pair| (pair[0].clone().string(), pair[1].clone().string())).collect())
        .collect()
}

/// An entry as the webhook's body would say it.
fn as_json(entry: &[(String, String)]) -> Value {
    const JSON: [&str; 9] = ["session", "groups", "at", "query", "cookies", "headers", "first", "last", "seq"];
    let value = |name: &str, text: &str| {
        if JSON.contains(&name) || name == "code" { serde_json::from_str(text).unwrap() } else { json!(text) }
    };
    entry.iter().map(|(name, text)| (name.clone(), value(name, text))).collect::<serde_json::Map<_, _>>().into()
}

/// Waits until the stream has so many entries, and returns them.
async fn entries(redis: &Redis, count: usize) -> Vec<Value> {
    eventually("all events stand on the stream", async || stream(redis).await.len() >= count).await;
    stream(redis).await.iter().map(|entry| as_json(entry)).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

/// What is in an event beside what all have.
fn rest(event: &Value) -> Value {
    let mut fields = event.as_object().unwrap().clone();
    for common in ["id", "event", "client_id", "node", "at", "seq"] {
        fields.remove(common);
    }
    fields.into()
}

/// One life of a client, with all that can happen to it.
async fn a_life(node: &Node) -> Client {
    let mut request = node.ws_url("/chat?room=1&token=secret&name=a%20b").into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("Cookie", "sid=x%20y; token=t".parse().unwrap());
    headers.insert("Authorization", "Bearer secret".parse().unwrap());
    headers.insert("User-Agent", "test/1".parse().unwrap());
    let (socket, _) = soon("a handshake", tokio_tungstenite::connect_async(request)).await.unwrap();
    let mut client = Client { id: String::new(), socket };
    client.welcomed().await;
    client.send(Message::text("hello 世界")).await;
    client.send(Message::binary(vec![0, 255, b'x'])).await;
    // Its answer comes behind what was said before.
    client.heard_nothing(node).await;
    eventually("it was heard", async || node.metric("moongate_messages_received_total").await >= 2.0).await;
    node.done("bindUid", json!({"client_id": client.id, "uid": "42"})).await;
    node.done("joinGroup", json!({"client_id": client.id, "group": "room"})).await;
    node.done("setSession", json!({"client_id": client.id, "session": {"name": "a", "n": 1}})).await;
    node.done("bindUid", json!({"client_id": client.id, "uid": "43"})).await;
    node.done("unbindUid", json!({"client_id": client.id})).await;
    node.done("bindUid", json!({"client_id": client.id, "uid": 42})).await;
    client
}

/// What is told of that life.
fn check_a_life(events: &[Value], id: &str) {
    assert_eq!(
        names(events),
        ["connect", "message", "message", "bound", "unbound", "bound", "unbound", "bound", "unbound", "close"]
    );
    let empty = json!({"uid": "", "session": {}, "groups": []});
    let with = |base: &Value, more: Value| {
        let mut fields = base.as_object().unwrap().clone();
        fields.extend(more.as_object().unwrap().clone());
        Value::from(fields)
    };
    let mut connect = rest(&events[0]);
    let headers = connect.as_object_mut().unwrap().remove("headers").unwrap();
    assert_eq!(headers["user-agent"], "test/1");
    assert_eq!((headers.get("authorization"), headers.get("cookie")), (None, None));
    let came =
        json!({"query": {"room": "1", "name": "a b"}, "cookies": {"sid": "x y", "token": "t"}, "ip": "127.0.0.1"});
    assert_eq!(connect, with(&empty, came));
    assert_eq!(rest(&events[1]), with(&empty, json!({"data": "hello 世界"})));
    let binary = BASE64_STANDARD.encode([0, 255, b'x']);
    assert_eq!(rest(&events[2]), with(&empty, json!({"binary": binary})));
    assert_eq!(rest(&events[3]), json!({"uid": "42", "session": {}, "groups": [], "first": true}));
    let later = json!({"session": {"name": "a", "n": 1}, "groups": ["room"]});
    assert_eq!(rest(&events[4]), with(&later, json!({"uid": "42", "last": true})));
    assert_eq!(rest(&events[5]), with(&later, json!({"uid": "43", "first": true})));
    assert_eq!(rest(&events[6]), with(&later, json!({"uid": "43", "last": true})));
    assert_eq!(rest(&events[7]), with(&later, json!({"uid": "42", "first": true})));
    assert_eq!(rest(&events[8]), with(&later, json!({"uid": "42", "last": true})));
    assert_eq!(rest(&events[9]), with(&later, json!({"uid": "42", "code": 1000, "reason": "bye"})));
    let seqs: Vec<u64> = [3, 4, 7, 8].iter().map(|&place| events[place]["seq"].as_u64().unwrap()).collect();
    assert!(seqs.is_sorted_by(|one, next| one < next), "{seqs:?}");
    assert!(events.iter().all(|event| event["client_id"] == id && event["node"] == events[0]["node"]));
    let mut ids: Vec<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), events.len(), "each has an id of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_and_the_webhook_tell_a_clients_life_in_order_and_in_the_same_words() {
    let (redis, receiver) = (Redis::start().await, Receiver::start().await);
    let (redis_url, hook) = (redis.url(), receiver.url());
    let settings =
        [("MOONGATE_REDIS_URL", &*redis_url), ("MOONGATE_EVENTS", "stream,webhook"), ("MOONGATE_WEBHOOK_URL", &*hook)];
    let a = Node::start_with(&settings).await.until_ready().await;
    let b = Node::start_with(&settings).await.until_ready().await;
    let client = a_life(&a).await;
    let id = client.id.clone();
    client.close(1000, "bye").await;
    let events = entries(&redis, 10).await;
    check_a_life(&events, &id);
    let nodes = redis.command(&["ZRANGE", "mg:nodes", "0", "-1"]).await.names();
    assert!(nodes.contains(events[0]["node"].as_str().unwrap()), "it names its node");
    eventually("the webhook has heard it all", async || receiver.accepted().len() == 10).await;
    let mut told = receiver.accepted();
    // It was asked before the client was there.
    told[0]["at"].clone_from(&events[0]["at"]);
    assert_eq!(told, events);
    // A client of the other node is another client.
    b.connect().await.close(1000, "").await;
    assert_ne!(entries(&redis, 12).await[10]["node"], events[0]["node"]);
    assert_eq!(a.metric("moongate_events_total").await, 20.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_alone_tells_the_same_by_webhook() {
    let receiver = Receiver::start().await;
    let hook = receiver.url();
    let node = Node::start_with(&[("MOONGATE_EVENTS", "webhook"), ("MOONGATE_WEBHOOK_URL", &hook)]).await;
    let client = a_life(&node).await;
    let id = client.id.clone();
    client.close(1000, "bye").await;
    eventually("the webhook has heard it all", async || receiver.accepted().len() == 10).await;
    check_a_life(&receiver.accepted(), &id);
    // Of two clients of one uid the first and the last count.
    let (one, two) = (node.member("7", "g").await, node.member("7", "g").await);
    one.close(1000, "").await;
    two.close(1000, "").await;
    // What concerns two clients may be told in any order; `seq` says which it had.
    let of_the_two = async |event: &str, end: &str| {
        let mut told = receiver.events(event, 5).await.split_off(3);
        told.sort_by_key(|event| event["seq"].as_u64());
        told.iter().map(|event| event[end].clone()).collect::<Vec<_>>()
    };
    assert_eq!(of_the_two("bound", "first").await, [json!(true), json!(false)]);
    assert_eq!(of_the_two("unbound", "last").await, [json!(false), json!(true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_events_that_are_named_are_told() {
    let (redis, receiver) = (Redis::start().await, Receiver::start().await);
    let (redis_url, hook) = (redis.url(), receiver.url());
    let events = "webhook:close+bound,stream:message+unbound";
    let settings = [("MOONGATE_REDIS_URL", &*redis_url), ("MOONGATE_EVENTS", events), ("MOONGATE_WEBHOOK_URL", &*hook)];
    let node = Node::start_with(&settings).await.until_ready().await;
    a_life(&node).await.close(1000, "bye").await;
    assert_eq!(names(&entries(&redis, 5).await), ["message", "message", "unbound", "unbound", "unbound"]);
    receiver.events("close", 1).await;
    assert_eq!(names(&receiver.accepted()), ["bound", "bound", "bound", "close"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_signed_over_its_time_and_the_very_bytes_of_its_body() {
    let receiver = Receiver::start().await;
    let hook = receiver.url();
    let settings = [
        ("MOONGATE_EVENTS", "webhook:message"),
        ("MOONGATE_WEBHOOK_URL", &*hook),
        ("MOONGATE_WEBHOOK_SECRET", "a secret"),
    ];
    let node = Node::start_with(&settings).await;
    node.connect().await.send(Message::text("x")).await;
    receiver.events("message", 1).await;
    let told = receiver.requests().remove(0);
    assert_eq!(told.headers["content-type"], "application/json");
    let signature = &told.headers["moongate-signature"];
    let (time, digest) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let age = jiff::Timestamp::now().as_second() - time.parse::<i64>().unwrap();
    assert!((0..10).contains(&age), "{signature}");
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"a secret");
    let signed = [time.as_bytes(), b".", &told.body].concat();
    let digest: Vec<u8> =
        (0..digest.len()).step_by(2).map(|at| u8::from_str_radix(&digest[at..at + 2], 16).unwrap()).collect();
    aws_lc_rs::hmac::verify(&key, &signed, &digest).expect("the signature is right");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_webhook_decides_who_is_let_in_and_its_commands_run_once_the_client_is_there() {
    let (redis, receiver) = (Redis::start().await, Receiver::start().await);
    let (redis_url, hook) = (redis.url(), receiver.url());
    let settings = [
        ("MOONGATE_REDIS_URL", &*redis_url),
        ("MOONGATE_EVENTS", "webhook,stream:connect"),
        ("MOONGATE_WEBHOOK_URL", &*hook),
        ("MOONGATE_WEBHOOK_CONNECT_TIMEOUT", "500ms"),
        ("MOONGATE_TEXT_LISTEN", "127.0.0.1:0"),
    ];
    let node = Node::start_with(&settings).await.until_ready().await;
    receiver.answers(|event| {
        let id = &event["client_id"];
        let commands = json!([
            {"op": "bindUid", "client_id": id, "uid": "7"},
            {"op": "nonsense"},
            {"op": "sendToClient", "client_id": id, "message": "hi"},
        ]);
        if event["event"] == "connect" { (200, json!({"commands": commands})) } else { (200, json!("ok")) }
    });
    let mut client = node.connect().await;
    assert_eq!(client.text().await, "hi");
    assert_eq!(node.ask("getUidByClientId", json!({"client_id": client.id})).await, "7");
    let is_told = async || receiver.accepted().iter().any(|event| event["event"] == "bound");
    eventually("that it is bound is told", is_told).await;
    for status in [401, 403] {
        receiver.answers(move |_| (status, json!({})));
        assert_eq!(refused(&node, "/", &[]).await.0, status);
    }
    let page = node.get("/metrics").await.text();
    assert!(page.contains("moongate_webhook_requests_total{outcome=\"refused\"} 2\n"), "no failure of its own: {page}");
    for status in [400, 404, 500, 503] {
        receiver.answers(move |_| (status, json!({})));
        assert_eq!(refused(&node, "/", &[]).await.0, 503, "{status}");
    }
    receiver.answers_late(|_| std::future::pending());
    assert_eq!(refused(&node, "/", &[]).await.0, 503, "silence");
    receiver.leave().await;
    assert_eq!(refused(&node, "/", &[]).await.0, 503, "nobody there");
    // Without a handshake there is no status, but no way in either.
    let mut text = tokio::net::TcpStream::connect(node.streams[0].1).await.unwrap();
    let mut rest = [0; 100];
    let read = tokio::io::AsyncReadExt::read(&mut text, &mut rest);
    assert!(matches!(soon("the end", read).await, Ok(0) | Err(_)));
    assert_eq!(names(&entries(&redis, 1).await), ["connect"], "who was not let in was never there");
    assert_eq!(node.metric("moongate_clients").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_let_in_without_an_answer_where_the_settings_say_so() {
    let receiver = Receiver::start().await;
    let hook = receiver.url();
    let settings = [
        ("MOONGATE_EVENTS", "webhook"),
        ("MOONGATE_WEBHOOK_URL", &*hook),
        ("MOONGATE_WEBHOOK_CONNECT_TIMEOUT", "300ms"),
        ("MOONGATE_WEBHOOK_CONNECT_FAIL", "open"),
    ];
    let node = Node::start_with(&settings).await;
    receiver.answers(|_| (403, json!({})));
    assert_eq!(refused(&node, "/", &[]).await.0, 403, "an answer counts");
    receiver.leave().await;
    node.connect().await.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_let_in_and_never_came_is_told_to_have_left() {
    use tokio::io::AsyncWriteExt as _;
    let receiver = Receiver::start().await;
    let hook = receiver.url();
    let node = Node::start_with(&[("MOONGATE_EVENTS", "webhook"), ("MOONGATE_WEBHOOK_URL", &hook)]).await;
    let (asked, gone) = (tokio::sync::Notify::new(), std::sync::Arc::new(tokio::sync::Notify::new()));
    let (asked, wait) = (std::sync::Arc::new(asked), std::sync::Arc::clone(&gone));
    let is_asked = std::sync::Arc::clone(&asked);
    receiver.answers_late(move |event| {
        let (asked, gone) = (std::sync::Arc::clone(&is_asked), std::sync::Arc::clone(&wait));
        async move {
            if event["event"] == "connect" {
                asked.notify_one();
                gone.notified().await;
            }
            (200, json!({}))
        }
    });
    let mut socket = tokio::net::TcpStream::connect(node.clients).await.unwrap();
    let head = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    soon("it is asked", asked.notified()).await;
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    gone.notify_one();
    let close = receiver.events("close", 1).await.remove(0);
    assert_eq!(close["client_id"], receiver.accepted()[0]["client_id"]);
    assert_eq!((&close["code"], &close["reason"]), (&json!(1006), &json!("lost")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_message_may_carry_commands() {
    let (redis, receiver) = (Redis::start().await, Receiver::start().await);
    let (redis_url, hook) = (redis.url(), receiver.url());
    let settings =
        [("MOONGATE_REDIS_URL", &*redis_url), ("MOONGATE_EVENTS", "webhook:message"), ("MOONGATE_WEBHOOK_URL", &*hook)];
    let node = Node::start_with(&settings).await.until_ready().await;
    receiver.answers(|event| {
        let echo = json!({"op": "sendToClient", "client_id": event["client_id"], "message": event["data"]});
        (200, json!({"commands": [echo]}))
    });
    let mut client = node.connect().await;
    for number in 0..20 {
        client.send(Message::text(format!("m{number}"))).await;
    }
    for number in 0..20 {
        assert_eq!(client.text().await, format!("m{number}"), "in order: the next is told when this one is done");
    }
}

/// Counts of `moongate_events_lost_total` by reason.
async fn lost(node: &Node, reason: &str) -> u64 {
    let page = node.get("/metrics").await.text();
    let line =
        page.lines().find(|line| line.starts_with(&format!("moongate_events_lost_total{{reason=\"{reason}\"}}")));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_go_better_is_tried_again_in_order_and_what_will_not_is_dropped_and_counted() {
    let receiver = Receiver::start().await;
    let hook = receiver.url();
    let node = Node::start_with(&[("MOONGATE_EVENTS", "webhook:message"), ("MOONGATE_WEBHOOK_URL", &hook)]).await;
    let attempts = parking_lot::Mutex::new(HashMap::<String, usize>::new());
    receiver.answers(move |event| {
        let mut attempts = attempts.lock();
        let attempt = attempts.entry(event["data"].as_str().unwrap().to_owned()).or_default();
        *attempt += 1;
        let status = match (event["data"].as_str().unwrap(), *attempt) {
            ("bad", _) => 404,
            ("busy", 1) => 503,
            ("slow down", 1) => 429,
            _ => 200,
        };
        (status, json!({}))
    });
    let (mut one, mut other) = (node.connect().await, node.connect().await);
    for text in ["busy", "then", "bad", "slow down", "last"] {
        one.send(Message::text(text)).await;
    }
    other.send(Message::text("not held up")).await;
    eventually("all are told", async || receiver.accepted().len() == 5).await;
    let accepted: Vec<(Value, Value)> =
        receiver.accepted().iter().map(|event| (event["client_id"].clone(), event["data"].clone())).collect();
    let of_one: Vec<&Value> = accepted.iter().filter(|(id, _)| *id == one.id).map(|(_, data)| data).collect();
    assert_eq!(of_one, ["busy", "then", "slow down", "last"]);
    assert_eq!(accepted[0].1, "not held up", "another client's events do not wait for it");
    let ids = |data: &str| -> Vec<Value> {
        let told = receiver.told().into_iter().filter(|event| event["data"] == data);
        told.map(|event| event["id"].clone()).collect()
    };
    assert_eq!(ids("busy").len(), 2);
    assert_eq!(ids("busy")[0], ids("busy")[1], "told twice, the id is the same");
    assert_eq!(ids("bad").len(), 1);
    assert_eq!(lost(&node, "refused").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_receiver_is_away_sockets_stay_and_when_it_is_back_all_arrives() {
    let (redis, receiver) = (Redis::start().await, Receiver::start().await);
    let (redis_url, hook) = (redis.url(), receiver.url());
    let settings = [
        ("MOONGATE_REDIS_URL", &*redis_url),
        ("MOONGATE_EVENTS", "webhook:message+bound+unbound+close"),
        ("MOONGATE_WEBHOOK_URL", &*hook),
    ];
    let node = Node::start_with(&settings).await.until_ready().await;
    receiver.leave().await;
    let mut clients = Vec::new();
    for number in 0..20 {
        let mut client = node.member(&format!("u{number}"), "room").await;
        for message in 0..10 {
            client.send(Message::text(message.to_string())).await;
        }
        clients.push(client);
    }
    eventually("all were heard", async || node.metric("moongate_messages_received_total").await == 200.0).await;
    eventually("it was tried", async || node.metric("moongate_webhook_requests_total").await > 2.0).await;
    node.ask("sendToGroup", json!({"group": "room", "message": "still here"})).await;
    for client in &mut clients {
        assert_eq!(client.text().await, "still here");
    }
    clients.pop().unwrap().close(1000, "").await;
    receiver.come_back().await;
    eventually("all has arrived", async || receiver.accepted().len() == 20 + 200 + 2).await;
    let mut by_client: HashMap<String, Vec<String>> = HashMap::new();
    for event in receiver.accepted() {
        let what = event["data"].as_str().or(event["event"].as_str()).unwrap().to_owned();
        by_client.entry(event["client_id"].as_str().unwrap().to_owned()).or_default().push(what);
    }
    let all: Vec<String> =
        std::iter::once("bound".to_owned()).chain((0..10).map(|number| number.to_string())).collect();
    for client in &clients {
        assert_eq!(by_client[&client.id], all, "in order for each client");
    }
    assert!(receiver.most_at_once() <= 64, "a bounded number is under way");
    assert_eq!(lost(&node, "memory").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_talk_on_while_nobody_takes_events_are_not_read_from_and_lose_nothing() {
    const SAID: usize = 120;
    let receiver = Receiver::start().await;
    let hook = receiver.url();
    let settings = [
        ("MOONGATE_EVENTS", "webhook:message+close"),
        ("MOONGATE_WEBHOOK_URL", &*hook),
        ("MOONGATE_PING_INTERVAL", "300ms"),
    ];
    let node = Node::start_with(&settings).await;
    receiver.leave().await;
    let client = node.connect().await;
    let gone = node.connect().await;
    // Each is half a mebibyte: 60 MB, and the node keeps 32.
    let (mut sink, mut source) = futures_util::StreamExt::split(client.socket);
    let saying = tokio::spawn(async move {
        for number in 0..SAID {
            sink.send(Message::text(format!("{number:06}").repeat(87_381))).await.unwrap();
        }
        sink
    });
    eventually("the memory is full", async || node.metric("moongate_events_waiting_bytes").await > 33e6).await;
    let heard = node.metric("moongate_messages_received_total").await;
    // Somebody else who cannot be heard now hangs up.
    let mut gone = gone;
    let hangs = tokio::spawn(async move {
        gone.send(Message::text("x".repeat(600_000))).await;
        drop(gone);
    });
    soon("it hangs up", hangs).await.unwrap();
    eventually("the heartbeat finds out", async || node.metric("moongate_clients").await == 1.0).await;
    assert!(node.metric("moongate_events_waiting_bytes").await < 67e6, "the memory is bounded");
    assert!(heard < 80.0, "the rest is not read: {heard}");
    node.connect().await.heard_nothing(&node).await;
    receiver.come_back().await;
    let drain = tokio::spawn(async move { while futures_util::StreamExt::next(&mut source).await.is_some() {} });
    let _sink = tokio::time::timeout(Duration::from_mins(1), saying).await.expect("it is read again").unwrap();
    let of_client = || -> Vec<String> {
        let accepted = receiver.accepted().into_iter().filter(|event| event["client_id"] == client.id.as_str());
        accepted.map(|event| event["data"].as_str().unwrap()[..6].to_owned()).collect()
    };
    let wait = async {
        while of_client().len() < SAID {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait).await.expect("all is told");
    assert_eq!(of_client(), (0..SAID).map(|number| format!("{number:06}")).collect::<Vec<_>>());
    assert_eq!(lost(&node, "memory").await, 0);
    drain.abort();
}

/// Whether each uid is online, as somebody knows it who obeys `seq`.
fn online(events: &[Value]) -> BTreeMap<String, bool> {
    let mut highest: BTreeMap<String, (u64, bool)> = BTreeMap::new();
    for event in events {
        let state = match event["event"].as_str().unwrap() {
            "bound" => true,
            "unbound" => event["last"] == false,
            _ => continue,
        };
        let seq = event["seq"].as_u64().unwrap();
        let known = highest.entry(event["uid"].as_str().unwrap().to_owned()).or_insert((0, false));
        if seq > known.0 {
            *known = (seq, state);
        }
    }
    highest.into_iter().map(|(uid, (_, online))| (uid, online)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_obeys_seq_knows_who_is_online_though_webhooks_of_two_nodes_cross() {
    let (redis, receiver) = (Redis::start().await, Receiver::start().await);
    let (redis_url, hook) = (redis.url(), receiver.url());
    let settings = [
        ("MOONGATE_REDIS_URL", &*redis_url),
        ("MOONGATE_EVENTS", "webhook:bound+unbound,stream:bound+unbound"),
        ("MOONGATE_WEBHOOK_URL", &*hook),
    ];
    let a = Node::start_with(&settings).await.until_ready().await;
    let b = Node::start_with(&settings).await.until_ready().await;
    // Some are answered late, so that later ones of the other node overtake them.
    let turn = std::sync::atomic::AtomicUsize::new(0);
    receiver.answers_late(move |_| {
        let turn = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move {
            tokio::time::sleep(Duration::from_millis([0, 40, 3, 90][turn % 4])).await;
            (200, json!({}))
        }
    });
    let work = |uid: usize| {
        let (a, b) = (&a, &b);
        async move {
            let uid = format!("u{uid}");
            for round in 0..10 {
                // It moves from one node to the other, sometimes with both there, sometimes with neither.
                let (from, to) = if round % 2 == 0 { (a, b) } else { (b, a) };
                let old = from.member(&uid, "g").await;
                if round % 3 == 0 {
                    old.close(1000, "").await;
                    to.member(&uid, "g").await.close(1000, "").await;
                } else {
                    let new = to.member(&uid, "g").await;
                    let (one, two) = (old.close(1000, ""), new.close(1000, ""));
                    tokio::join!(one, two);
                }
            }
            // An odd one stays.
            if uid.ends_with(['1', '3', '5', '7', '9']) { Some(a.member(&uid, "g").await) } else { None }
        }
    };
    let stay = futures_util::future::join_all((0..10).map(work)).await;
    let expected: BTreeMap<String, bool> = (0..10).map(|uid| (format!("u{uid}"), uid % 2 == 1)).collect();
    let changes = 10 * 10 * 2 * 2 + 5;
    eventually("all is told", async || receiver.accepted().len() == changes).await;
    let told = receiver.accepted();
    assert_eq!(online(&told), expected);
    assert!(
        told.windows(2)
            .any(|pair| pair[0]["uid"] == pair[1]["uid"] && pair[0]["seq"].as_u64() > pair[1]["seq"].as_u64()),
        "some have crossed"
    );
    // At every moment, and not only at the end: the stream is in the order of seq.
    let stream = entries(&redis, changes).await;
    let mut last: HashMap<&str, u64> = HashMap::new();
    let mut clients: HashMap<&str, i64> = HashMap::new();
    for event in &stream {
        let (uid, seq) = (event["uid"].as_str().unwrap(), event["seq"].as_u64().unwrap());
        assert!(last.insert(uid, seq).is_none_or(|before| before < seq), "growing for each uid");
        let count = clients.entry(uid).or_default();
        if event["event"] == "bound" {
            *count += 1;
            assert_eq!(event["first"], *count == 1, "{event}");
        } else {
            *count -= 1;
            assert_eq!(event["last"], *count == 0, "{event}");
        }
    }
    drop(stay);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_the_stream_is_in_order_for_each_client() {
    const CLIENTS: usize = 40;
    const SAID: usize = 100;
    let redis = Redis::start().await;
    let url = redis.url();
    let settings = [("MOONGATE_REDIS_URL", &*url), ("MOONGATE_EVENTS", "stream")];
    let node = Node::start_with(&settings).await.until_ready().await;
    let lives = (0..CLIENTS).map(|number| {
        let node = &node;
        async move {
            let mut client = node.connect().await;
            let (id, uid) = (client.id.clone(), format!("u{}", number % 7));
            let talk = async {
                for said in 0..SAID {
                    client.socket.feed(Message::text(said.to_string())).await.unwrap();
                }
                client.socket.flush().await.unwrap();
            };
            let change = async {
                for round in 0..10 {
                    node.done("bindUid", json!({"client_id": id, "uid": format!("{uid}-{round}")})).await;
                    node.done("joinGroup", json!({"client_id": id, "group": format!("g{round}")})).await;
                }
            };
            tokio::join!(talk, change);
            client.close(1000, "").await;
        }
    });
    futures_util::future::join_all(lives).await;
    // connect, messages, ten binds with nine rebinds between, and the end of uid and client.
    let events = entries(&redis, CLIENTS * (1 + SAID + 10 + 9 + 2)).await;
    let mut by_client: HashMap<&str, Vec<&Value>> = HashMap::new();
    for event in &events {
        by_client.entry(event["client_id"].as_str().unwrap()).or_default().push(event);
    }
    assert_eq!(by_client.len(), CLIENTS);
    for events in by_client.values() {
        assert_eq!((&events[0]["event"], &events[events.len() - 1]["event"]), (&json!("connect"), &json!("close")));
        let said: Vec<String> = events
            .iter()
            .filter(|event| event["event"] == "message")
            .map(|event| event["data"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(said, (0..SAID).map(|number| number.to_string()).collect::<Vec<_>>());
        // What each event says of the uid is what the ones before it have made of it.
        let mut uid = "";
        for event in &events[1..] {
            match event["event"].as_str().unwrap() {
                "bound" => uid = event["uid"].as_str().unwrap(),
                "unbound" => {
                    assert_eq!(event["uid"], uid);
                    uid = "";
                }
                "message" => assert_eq!(event["uid"], uid, "{event}"),
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_events_wait_and_then_stand_there_in_order() {
    let redis = Redis::start_with(&["--appendonly", "yes"]).await;
    let url = redis.url();
    let settings = [("MOONGATE_REDIS_URL", &*url), ("MOONGATE_EVENTS", "stream")];
    let node = Node::start_with(&settings).await.until_ready().await;
    let mut client = node.member("42", "room").await;
    entries(&redis, 2).await;
    redis.stop();
    eventually("the node has noticed", async || node.metric("moongate_redis_up").await == 0.0).await;
    for number in 0..50 {
        client.send(Message::text(number.to_string())).await;
    }
    let mut other = node.connect().await;
    other.send(Message::text("from another")).await;
    eventually("all were heard", async || node.metric("moongate_messages_received_total").await == 51.0).await;
    client.close(1000, "").await;
    redis.start_again().await;
    let events = entries(&redis, 2 + 50 + 2 + 2).await;
    let of = |id: &str| -> Vec<String> {
        let own = events.iter().filter(|event| event["client_id"] == id);
        own.map(|event| event["data"].as_str().or(event["event"].as_str()).unwrap().to_owned()).collect()
    };
    let first = events[0]["client_id"].as_str().unwrap();
    let mut expected = vec!["connect".to_owned(), "bound".to_owned()];
    expected.extend((0..50).map(|number| number.to_string()));
    expected.extend(["unbound".to_owned(), "close".to_owned()]);
    assert_eq!(of(first), expected);
    assert_eq!(of(&other.id), ["connect", "from another"]);
    assert_eq!(lost(&node, "memory").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_redis_has_lost_all_who_is_still_there_is_told_again_with_a_newer_seq() {
    let redis = Redis::start().await;
    let url = redis.url();
    let settings = [("MOONGATE_REDIS_URL", &*url), ("MOONGATE_EVENTS", "stream:bound+unbound")];
    let a = Node::start_with(&settings).await.until_ready().await;
    let b = Node::start_with(&settings).await.until_ready().await;
    let (one, two) = (a.member("u", "g").await, b.member("u", "g").await);
    let before = entries(&redis, 2).await;
    redis.command(&["FLUSHALL"]).await;
    let again = entries(&redis, 2).await;
    assert_eq!(names(&again), ["bound", "bound"]);
    let ids = |events: &[Value]| -> std::collections::BTreeSet<String> {
        events.iter().map(|event| event["client_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&again), ids(&before));
    assert!(again.iter().all(|event| event["seq"].as_u64() > before[1]["seq"].as_u64()));
    assert!(again.iter().all(|event| before.iter().all(|earlier| earlier["id"] != event["id"])));
    one.close(1000, "").await;
    let all = entries(&redis, 3).await;
    assert_eq!((&all[2]["event"], &all[2]["last"]), (&json!("unbound"), &json!(false)));
    // A restart that loses nothing tells nothing.
    let other = a.member("v", "g").await;
    assert_eq!(entries(&redis, 4).await.len(), 4);
    redis.save().await;
    redis.stop();
    redis.start_again().await;
    eventually("all was compared", async || a.metric("moongate_directory_compared_total").await >= 2.0).await;
    eventually("all was compared", async || b.metric("moongate_directory_compared_total").await >= 2.0).await;
    other.close(1000, "").await;
    assert_eq!(names(&entries(&redis, 5).await), ["bound", "bound", "unbound", "bound", "unbound"]);
    drop(two);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_is_trimmed_and_the_lag_of_each_group_is_told() {
    let redis = Redis::start().await;
    let url = redis.url();
    let settings =
        [("MOONGATE_REDIS_URL", &*url), ("MOONGATE_EVENTS", "stream:message"), ("MOONGATE_EVENTS_MAXLEN", "1000")];
    let node = Node::start_with(&settings).await.until_ready().await;
    assert_eq!(redis.command(&["XGROUP", "CREATE", "mg:events", "app", "0", "MKSTREAM"]).await, Reply::text("OK"));
    let mut client = node.connect().await;
    for number in 0..5000 {
        client.socket.feed(Message::text(number.to_string())).await.unwrap();
    }
    client.socket.flush().await.unwrap();
    let last =
        || async { stream(&redis).await.last().is_some_and(|entry| entry.contains(&("data".into(), "4999".into()))) };
    eventually("all were told", last).await;
    let length = redis.command(&["XLEN", "mg:events"]).await.int();
    assert!((1000..=1200).contains(&length), "{length}");
    eventually("the lag is told", async || {
        node.get("/metrics").await.text().lines().any(|line| {
            let lag = line.strip_prefix("moongate_events_lag{group=\"app\"} ");
            lag.is_some_and(|lag| lag.parse::<i64>().unwrap() > 900)
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_tells_of_its_clients_before_it_ends() {
    let (redis, receiver) = (Redis::start().await, Receiver::start().await);
    let (redis_url, hook) = (redis.url(), receiver.url());
    let settings = [
        ("MOONGATE_REDIS_URL", &*redis_url),
        ("MOONGATE_EVENTS", "stream:close,webhook:close+unbound"),
        ("MOONGATE_WEBHOOK_URL", &*hook),
        ("MOONGATE_DRAIN", "2s"),
    ];
    let node = Node::start_with(&settings).await.until_ready().await;
    let mut clients = Vec::new();
    for number in 0..10 {
        clients.push(node.member(&number.to_string(), "g").await);
    }
    node.stop();
    let closing = clients.iter_mut().map(async |client| client.closed().await.0);
    assert_eq!(futures_util::future::join_all(closing).await, [1012; 10]);
    node.stopped().await;
    let closes = entries(&redis, 10).await;
    assert!(closes.iter().all(|close| close["code"] == 1012 && close["groups"] == json!(["g"])));
    assert_eq!(receiver.accepted().len(), 20);
}
