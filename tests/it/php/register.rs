//! Where PHP asks for gateways.

use std::collections::HashMap;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{Peer, inner_address, vectors};
use crate::harness::{Node, eventually, soon};
use crate::redis::Redis;

const REGISTER: &[(&str, &str)] = &[("MOONGATE_REGISTER_LISTEN", "127.0.0.1:0")];

/// A connection to a Register.
struct Line(BufReader<TcpStream>);

impl Line {
    async fn connect(node: &Node) -> Self {
        Self(BufReader::new(TcpStream::connect(node.register.unwrap()).await.unwrap()))
    }

    async fn say(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// The next list, whatever form PHP gives it.
    async fn list(&mut self) -> Vec<String> {
        let mut line = String::new();
        soon("a list", self.0.read_line(&mut line)).await.unwrap();
        addresses(&line)
    }

    async fn has_ended(&mut self) {
        let mut rest = String::new();
        drop(soon("the end", self.0.read_to_string(&mut rest)).await);
        assert_eq!(rest, "");
    }
}

fn addresses(line: &str) -> Vec<String> {
    assert!(line.ends_with('\n'), "no line: {line:?}");
    let list: Value = serde_json::from_str(line).unwrap();
    assert_eq!(list["event"], "broadcast_addresses");
    let texts = |value: &Value| value.as_str().unwrap().to_owned();
    match &list["addresses"] {
        Value::Array(addresses) => addresses.iter().map(texts).collect(),
        Value::Object(addresses) => addresses.values().map(texts).collect(),
        other => panic!("{other}"),
    }
}

/// What the node's Register says to a worker now.
async fn list(node: &Node) -> Vec<String> {
    let mut worker = Line::connect(node).await;
    worker.say(r#"{"event":"worker_connect","secret_key":""}"#).await;
    worker.list().await
}

async fn replay(file: &str) {
    let recorded = vectors::load(file);
    let key = recorded["cluster"]["secret_key"].as_str().unwrap();
    let node = Node::start_with(&[REGISTER, &[("MOONGATE_SECRET_KEY", key)]].concat()).await;
    let mut channels: HashMap<&str, Line> = HashMap::new();
    for entry in recorded["timeline"].as_array().unwrap() {
        let (name, kind) = (entry["channel"].as_str().unwrap(), entry["kind"].as_str().unwrap());
        if name.starts_with("gateway ") {
            continue;
        }
        match (entry["from"].as_str().unwrap(), kind) {
            ("register", "line") => {
                let recorded = String::from_utf8(vectors::bytes(entry)).unwrap();
                // Strangers are not answered here.
                if !recorded.starts_with("Bad request") {
                    assert_eq!(channels.get_mut(name).unwrap().list().await, addresses(&recorded), "{file}: {entry}");
                }
            }
            ("register", "tcp_close") => {
                if let Some(mut channel) = channels.remove(name) {
                    channel.has_ended().await;
                }
            }
            (_, "tcp_open") => drop(channels.insert(name, Line::connect(&node).await)),
            (_, "tcp_close") => drop(channels.remove(name)),
            _ => channels.get_mut(name).unwrap().0.write_all(&vectors::bytes(entry)).await.unwrap(),
        }
        if entry.to_string().contains("gateway_connect") || name.contains("gateway") && kind == "tcp_close" {
            // What comes next is recorded after this was done.
            let known = channels.keys().filter(|name| name.contains("gateway")).count();
            eventually("it is known", async || {
                let list = if key.is_empty() { list(&node).await.len() } else { known };
                list <= known
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_as_recorded() {
    for file in vectors::names("register") {
        // There a ping is enough to stay for ever.
        if file != "register/ping.json" {
            Box::pin(replay(&file)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_alone_lists_itself_where_php_finds_it() {
    let node = Node::start_with(&[REGISTER, super::PHP].concat()).await;
    let php = node.php.unwrap();
    assert_eq!(list(&node).await, [php.to_string()]);
    let client = node.connect().await;
    assert_eq!(inner_address(&client.id), php);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_lists_all_nodes_and_phps_gateways_and_says_so_when_that_changes() {
    let redis = Redis::start().await;
    let url = redis.url();
    let settings = [REGISTER, super::PHP, &[("MOONGATE_REDIS_URL", &url)]].concat();
    let first = Node::start_with(&settings).await.until_ready().await;
    let mut worker = Line::connect(&first).await;
    worker.say(r#"{"event":"worker_connect","secret_key":""}"#).await;
    let alone = worker.list().await;
    assert_eq!(alone.len(), 1);

    let second = Node::start_with(&settings).await.until_ready().await;
    let both = worker.list().await;
    assert!(both.len() == 2 && both.contains(&alone[0]), "{both:?}");
    eventually("the second one lists both", async || {
        let sorted = |mut list: Vec<String>| {
            list.sort();
            list
        };
        // Each says its own first.
        sorted(list(&second).await) == sorted(both.clone())
    })
    .await;

    let mut php = Line::connect(&second).await;
    php.say(r#"{"event":"gateway_connect", "address":"10.0.0.9:2900", "secret_key":""}"#).await;
    let three = worker.list().await;
    assert!(three.len() == 3 && three.contains(&"10.0.0.9:2900".to_owned()), "{three:?}");
    drop(php);
    assert_eq!(worker.list().await, both);

    second.stop();
    assert_eq!(worker.list().await, alone);
    assert_eq!(second.stopped().await, 0);
    // What is left is the first one's.
    let left = redis.command(&["HKEYS", "{mg:nodes}:php"]).await.list();
    assert!(left.len() == 1 && left[0].clone().string().ends_with(&format!(" {}", alone[0])), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_say_what_it_is_is_not_kept() {
    let node = Node::start_with(&[REGISTER, &[("MOONGATE_SECRET_KEY", "k")]].concat()).await;
    for line in [
        r#"{"event":"worker_connect","secret_key":"wrong"}"#,
        r#"{"event":"gateway_connect","address":"10.0.0.1:1","secret_key":"wrong"}"#,
        r#"{"event":"gateway_connect","address":"no address","secret_key":"k"}"#,
        r#"{"event":"gateway_connect","address":"10.0.0.1:70000","secret_key":"k"}"#,
        "GET / HTTP/1.1",
        &"x".repeat(20_000),
    ] {
        let mut stranger = Line::connect(&node).await;
        drop(stranger.0.write_all(format!("{line}\n").as_bytes()).await);
        stranger.has_ended().await;
    }
    // PHP's ping alone says nothing.
    let mut stranger = Line::connect(&node).await;
    stranger.say(r#"{"event":"ping"}"#).await;
    let mut byte = [0];
    let read = tokio::time::timeout(std::time::Duration::from_secs(15), stranger.0.read(&mut byte)).await;
    assert_eq!(read.expect("the end in time").unwrap_or(0), 0);
    assert_eq!(node.metric("moongate_php_refused_total").await, 7.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_one_more_gateway_at_a_register_of_php() {
    let php = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = php.local_addr().unwrap().to_string();
    let settings = [super::PHP, &[("MOONGATE_REGISTER_ADDRESS", &address), ("MOONGATE_SECRET_KEY", "k/密")]].concat();
    let node = Node::start_with(&settings).await;
    let inner = node.php.unwrap();
    // And again, when the Register was restarted.
    for _ in 0..2 {
        let (socket, _) = soon("the node announces itself", php.accept()).await.unwrap();
        let mut lines = BufReader::new(socket);
        let mut line = String::new();
        soon("a line", lines.read_line(&mut line)).await.unwrap();
        let expected = format!("{{\"event\":\"gateway_connect\", \"address\":\"{inner}\", \"secret_key\":\"k/密\"}}\n");
        assert_eq!(line, expected);
        line.clear();
        soon("a ping", lines.read_line(&mut line)).await.unwrap();
        assert_eq!(line, "{\"event\":\"ping\"}\n");
    }
    node.stop();
    assert_eq!(node.stopped().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_has_read_before_a_node_stops_is_still_good_for_a_moment() {
    let redis = Redis::start().await;
    let url = redis.url();
    let settings = [REGISTER, super::PHP, &[("MOONGATE_REDIS_URL", &url)]].concat();
    let first = Node::start_with(&settings).await.until_ready().await;
    let second = Node::start_with(&settings).await.until_ready().await;
    let client = second.connect().await;
    let inner = inner_address(&client.id);
    assert_eq!(Peer::connect(inner).await.ask(super::COUNT, 0, b"").await, "i:1;");
    drop(client);
    second.stop();
    eventually("it is not listed any more", async || !list(&first).await.contains(&inner.to_string())).await;
    assert_eq!(Peer::connect(inner).await.ask(super::COUNT, 0, b"").await, "i:0;");
    assert_eq!(second.stopped().await, 0);
    assert!(TcpStream::connect(inner).await.is_err());
}
