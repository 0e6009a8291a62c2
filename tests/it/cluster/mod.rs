//! Several nodes through Redis, as a program in any language meets them there: it knows the contract, and speaks to
//! Redis, never to a node. What it publishes, what it may read, what an answer over HTTP means for it, what clients cost
//! Redis, and what becomes of bad input.

mod bad_input;
mod commands;
mod cost;
mod done;
mod heard_by;
mod publish;
mod state;

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, Node, eventually, nothing_is_left, rounds, soon};
use crate::redis::{Connection, Redis, Reply};

/// What the nodes' own envelope begins with.
const MAGIC: [u8; 4] = [0x00, b'm', b'g', b'1'];

/// The largest payload.
const MEBIBYTE: usize = 1 << 20;

/// What a node heard and could make nothing of; by reason.
const LOST: &str = "moongate_bus_lost_total";

/// Two nodes and their Redis, with the prefix that the contract writes.
struct Pair {
    redis: Redis,
    a: Node,
    b: Node,
}

impl Pair {
    async fn run(test: impl AsyncFnOnce(&Self)) {
        Self::run_with(&[], test).await;
    }

    /// Runs a test with more arguments for Redis, and looks then, when all its clients are dropped, whether anything of
    /// them is left.
    async fn run_with(arguments: &[&str], test: impl AsyncFnOnce(&Self)) {
        let redis = Redis::start_with(arguments).await;
        let url = redis.url();
        // Nothing comes of its own accord.
        let settings = [("MOONGATE_REDIS_URL", &*url)];
        let a = Node::start_with(&settings).await.until_ready().await;
        let b = Node::start_with(&settings).await.until_ready().await;
        let pair = Self { redis, a, b };
        eventually("the queue is there", async || pair.redis.keys("mg:tasks").await.len() == 1).await;
        test(&pair).await;
        pair.finish().await;
    }

    async fn finish(self) {
        for node in self.nodes() {
            eventually("all clients have left", async || counted(node, "moongate_clients").await == 0).await;
        }
        nothing_is_left("traces of clients in Redis", async || {
            let mut traces = &self.redis.keys("*").await - &self.own_keys().await;
            traces.append(&mut (&self.redis.pubsub_channels().await - &self.own_channels().await));
            traces
        })
        .await;
        let Self { redis, a, b } = self;
        for node in [a, b] {
            node.stop();
            assert_eq!(node.stopped().await, 0, "connections when a node had stopped");
        }
        let left = &redis.keys("*").await - &names(&["mg:tasks"]);
        assert_eq!(left, BTreeSet::new(), "left in Redis when the nodes had stopped");
    }

    fn nodes(&self) -> [&Node; 2] {
        [&self.a, &self.b]
    }

    /// The node ids in `mg:nodes`.
    async fn node_ids(&self) -> BTreeSet<String> {
        self.redis.command(&["ZRANGE", "mg:nodes", "0", "-1"]).await.names()
    }

    /// The keys of the nodes themselves: there are no others when nobody is connected.
    async fn own_keys(&self) -> BTreeSet<String> {
        let nodes = self.node_ids().await;
        let shared = names(&["mg:nodes", "{mg:nodes}:runs", "{mg:nodes}:lan", "mg:tasks"]);
        shared.into_iter().chain(nodes.iter().map(|id| format!("mg:node:{id}"))).collect()
    }

    /// The channels that nodes hear whoever is connected.
    async fn own_channels(&self) -> BTreeSet<String> {
        let mut channels = names(&["mg:cmd", "mg.ask"]);
        for id in self.node_ids().await {
            let lan = self.redis.command(&["HGET", &format!("mg:node:{id}"), "lan"]).await.string();
            channels.insert(format!("mg.lan:{}", hex(&lan)));
        }
        channels
    }

    async fn publish(&self, channel: &str, payload: impl AsRef<[u8]>) -> i64 {
        self.redis.publish(channel, payload).await
    }

    /// A command on `mg:cmd`: both nodes hear it.
    async fn say(&self, command: Value) {
        assert_eq!(self.publish("mg:cmd", command.to_string()).await, 2, "nodes on mg:cmd");
    }

    /// What nodes heard and could make nothing of.
    async fn lost(&self) -> u64 {
        counted(&self.a, LOST).await + counted(&self.b, LOST).await
    }

    /// What nodes have written of clients: each key with its type and content.
    async fn state(&self) -> BTreeMap<String, (String, BTreeSet<String>)> {
        let mut connection = self.redis.connection().await;
        let mut state = BTreeMap::new();
        for kind in ["uid", "group", "client", "clients"] {
            for key in self.redis.keys(&format!("mg:{kind}:*")).await {
                let kind = connection.command(&["TYPE", &key]).await.string();
                let content = match &*kind {
                    "set" => connection.command(&["SMEMBERS", &key]).await.names(),
                    "hash" => fields(connection.command(&["HGETALL", &key]).await)
                        .into_iter()
                        .map(|(name, value)| format!("{name}={value}"))
                        .collect(),
                    // It was here just now.
                    _ => continue,
                };
                state.insert(key, (kind, content));
            }
        }
        state
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A LAN address as it stands in client ids.
fn hex(lan: &str) -> String {
    let address: std::net::SocketAddrV4 = lan.parse().unwrap();
    format!("{:08x}{:04x}", address.ip().to_bits(), address.port())
}

/// The channel of the node that holds this client.
fn lan_channel(client: &Client) -> String {
    format!("mg.lan:{}", &client.id[..12])
}

/// A hash of Redis.
fn fields(hash: Reply) -> BTreeMap<String, String> {
    let texts: Vec<String> = hash.list().into_iter().map(Reply::string).collect();
    texts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

/// A series of `/metrics`, with its labels or the sum over them; 0 as long as nothing was counted under them.
async fn counted(node: &Node, name: &str) -> u64 {
    // They are not on the page as long as nothing was counted.
    const LABELLED: [&str; 3] = [LOST, "moongate_bus_heard_total", "moongate_disconnections_total"];
    let page = node.get("/metrics").await.text();
    let known = format!("# TYPE {} ", name.strip_suffix("_total").unwrap_or(name));
    assert!(page.contains(&known) || LABELLED.iter().any(|known| name.starts_with(known)), "no series {name}");
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
    });
    values.sum()
}

/// An envelope as nodes write it: the magic bytes, the length of the header, the header, and a message.
fn envelope(header: &str, message: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &u32::try_from(header.len()).unwrap().to_be_bytes(), header.as_bytes(), message].concat()
}

/// Seeded, so that what fails fails again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// The frame as which these bytes arrive.
fn frame(payload: &[u8]) -> Message {
    std::str::from_utf8(payload).map_or_else(|_| Message::binary(Bytes::copy_from_slice(payload)), Message::text)
}
