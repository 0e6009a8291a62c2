//! Clients that speak `GatewayWorker`'s `text`, `frame` or `tcp`, over sockets of their own: the same gateway for them.

use std::time::Duration;

use moongate::message::Protocol::{self, Frame, Tcp, Text};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Node, eventually, soon};
use crate::redis::Redis;

const LISTENERS: [(&str, &str); 3] = [
    ("MOONGATE_TEXT_LISTEN", "127.0.0.1:0"),
    ("MOONGATE_FRAME_LISTEN", "127.0.0.1:0"),
    ("MOONGATE_TCP_LISTEN", "127.0.0.1:0"),
];

const PROTOCOLS: [Protocol; 3] = [Text, Frame, Tcp];

async fn node(more: &[(&str, &str)]) -> Node {
    Node::start_with(&[&LISTENERS, more].concat()).await
}

/// A client that knows its protocol from its specification.
struct Peer {
    socket: TcpStream,
    protocol: Protocol,
    id: String,
}

impl Peer {
    async fn connect_quietly(node: &Node, protocol: Protocol) -> Self {
        let (_, address) = node.streams.iter().find(|(spoken, _)| *spoken == protocol).unwrap();
        Self { socket: TcpStream::connect(address).await.unwrap(), protocol, id: String::new() }
    }

    /// It has heard who it is.
    async fn connect(node: &Node, protocol: Protocol) -> Self {
        let mut peer = Self::connect_quietly(node, protocol).await;
        // On tcp nothing says where a message ends; this one is always as long.
        let length = r#"{"type":"init","client_id":"7f0000010b5400000001"}"#.len();
        let init: Value = serde_json::from_slice(&peer.hears(length).await).unwrap();
        assert_eq!(init["type"], "init");
        Self { id: init["client_id"].as_str().unwrap().to_owned(), ..peer }
    }

    async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        soon("bytes", self.socket.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// The next message, of so many bytes.
    async fn hears(&mut self, length: usize) -> Vec<u8> {
        if self.protocol == Frame {
            assert_eq!(self.read(4).await, (length as u32 + 4).to_be_bytes());
        }
        let message = self.read(length).await;
        if self.protocol == Text {
            assert_eq!(self.read(1).await, b"\n");
        }
        message
    }

    async fn says(&mut self, message: &[u8]) {
        let bytes = match self.protocol {
            Text => [message, b"\r\n"].concat(),
            Frame => [&(message.len() as u32 + 4).to_be_bytes()[..], message].concat(),
            _ => message.to_vec(),
        };
        self.socket.write_all(&bytes).await.unwrap();
    }

    /// Nothing more comes, and the end is one in order.
    async fn has_ended(&mut self) {
        let mut rest = Vec::new();
        soon("the end", self.socket.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "", "{:?}", self.protocol);
    }
}

async fn counted(node: &Node, series: &str) -> bool {
    node.get("/metrics").await.text().contains(&format!("{series} 1\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_reached_by_every_command_beside_websockets() {
    let node = node(&[]).await;
    let mut browser = node.member("u", "g").await;
    for protocol in PROTOCOLS {
        let mut peer = Peer::connect(&node, protocol).await;
        node.done("bindUid", json!({"client_id": peer.id, "uid": "u"})).await;
        node.done("joinGroup", json!({"client_id": peer.id, "group": "g"})).await;
        for (op, mut fields) in [
            ("sendToUid", json!({"uid": "u"})),
            ("sendToGroup", json!({"group": "g"})),
            ("sendToAll", json!({})),
            ("sendToClient", json!({"client_id": peer.id})),
        ] {
            fields["message"] = json!(op);
            assert_eq!(node.ask(op, fields).await, json!({"nodes": 1}));
            assert_eq!(peer.hears(op.len()).await, op.as_bytes(), "{protocol:?}");
            if op != "sendToClient" {
                assert_eq!(browser.text().await, op);
            }
        }
        // What is no text arrives byte for byte.
        let binary = json!({"client_id": peer.id, "binary": "AP/+Cg=="});
        assert_eq!(node.ask("sendToClient", binary).await, json!({"nodes": 1}));
        assert_eq!(peer.hears(4).await, [0, 0xff, 0xfe, b'\n']);
        let last = json!({"client_id": peer.id, "message": "bye", "code": 3000});
        assert_eq!(node.ask("closeClient", last).await, json!({"nodes": 1}));
        assert_eq!(peer.hears(3).await, b"bye");
        peer.has_ended().await;
        assert_eq!(node.ask("getAllClientIdCount", json!({})).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_reached_through_redis_from_another_node() {
    let redis = Redis::start().await;
    let url = redis.url();
    let settings = [("MOONGATE_REDIS_URL", &*url)];
    let (here, there) = (node(&settings).await.until_ready().await, node(&settings).await.until_ready().await);
    for protocol in PROTOCOLS {
        let mut peer = Peer::connect(&here, protocol).await;
        there.done("bindUid", json!({"client_id": peer.id, "uid": "u"})).await;
        assert_eq!(redis.publish("mg:uid:u", "hello").await, 1);
        assert_eq!(peer.hears(5).await, b"hello");
        // Its end without a word is enough.
        drop(peer);
        eventually("it has left", async || there.ask("isUidOnline", json!({"uid": "u"})).await == false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_of_theirs_is_counted_wherever_reads_cut_it() {
    let node = node(&[]).await;
    let mut received = 0.0;
    for (protocol, pieces) in [
        (Text, &[&b"one\ntw"[..], b"o\r\nthree\n"][..]),
        (Frame, &[&[0, 0, 0, 7, b'o', b'n'], &[b'e', 0, 0], &[0, 4, 0, 0, 0, 5, b'x']]),
        (Tcp, &[b"one"]),
    ] {
        let mut peer = Peer::connect(&node, protocol).await;
        for piece in pieces {
            peer.socket.write_all(piece).await.unwrap();
        }
        received += if protocol == Tcp { 1.0 } else { 3.0 };
        eventually("all are received", async || node.metric("moongate_messages_received_total").await == received)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_or_no_frame_ends_the_connection_and_is_counted() {
    for (protocol, said, reason) in [
        (Text, &[b'x'; 101][..], "too_big"),
        (Frame, &[0, 0, 0, 105, b'x'], "too_big"),
        (Frame, &[0, 0, 0, 3], "protocol"),
        (Frame, &[0, 0, 0, 0], "protocol"),
    ] {
        let node = node(&[("MOONGATE_MAX_MESSAGE_SIZE", "100")]).await;
        let mut peer = Peer::connect(&node, protocol).await;
        peer.says(&[]).await;
        peer.socket.write_all(said).await.unwrap();
        peer.has_ended().await;
        let series = format!("moongate_disconnections_total{{reason=\"{reason}\"}}");
        eventually("it is counted", async || counted(&node, &series).await).await;
        assert_eq!(node.ask("getAllClientIdCount", json!({})).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_one_is_left_alone_unless_it_is_sent_something_or_the_limit_was_set() {
    let interval = ("MOONGATE_PING_INTERVAL", "200ms");
    let left_alone = node(&[interval]).await;
    let mut silent = Vec::new();
    for protocol in PROTOCOLS {
        silent.push(Peer::connect(&left_alone, protocol).await);
    }
    for more in [("MOONGATE_PING_DATA", "ping"), ("MOONGATE_PING_NOT_RESPONSE_LIMIT", "1")] {
        let node = node(&[interval, more]).await;
        for protocol in PROTOCOLS {
            let mut peer = Peer::connect(&node, protocol).await;
            if more.1 == "ping" {
                for _ in 0..3 {
                    assert_eq!(peer.hears(4).await, b"ping");
                    peer.says(b"pong").await;
                }
                assert_eq!(peer.hears(4).await, b"ping");
            }
            peer.has_ended().await;
        }
        let series = "moongate_disconnections_total{reason=\"idle\"} 3\n";
        eventually("they are counted", async || node.get("/metrics").await.text().contains(series)).await;
    }
    // That took longer than a silent WebSocket has; to these nothing was said.
    for peer in &mut silent {
        assert_eq!(left_alone.ask("sendToClient", json!({"client_id": peer.id, "message": "x"})).await["nodes"], 1);
        assert_eq!(peer.hears(1).await, b"x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_read_is_ended_and_harms_nobody() {
    let node = node(&[("MOONGATE_SEND_BUFFER", "64KiB")]).await;
    for protocol in PROTOCOLS {
        let slow = Peer::connect(&node, protocol).await;
        node.done("joinGroup", json!({"client_id": slow.id, "group": "slow"})).await;
        let message = "x".repeat(256 * 1024);
        soon("the slow one is given up", async {
            while node.ask("sendToGroup", json!({"group": "slow", "message": message})).await["nodes"] == 1 {}
        })
        .await;
        let mut quick = Peer::connect(&node, protocol).await;
        assert_eq!(node.ask("sendToClient", json!({"client_id": quick.id, "message": "y"})).await["nodes"], 1);
        assert_eq!(quick.hears(1).await, b"y");
        drop((slow, quick));
    }
    let series = "moongate_disconnections_total{reason=\"slow\"} 3\n";
    eventually("they are counted", async || node.get("/metrics").await.text().contains(series)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_ends_them_and_lets_nobody_in() {
    let node = node(&[("MOONGATE_DRAIN", "2s")]).await;
    let mut peers = Vec::new();
    for protocol in PROTOCOLS {
        peers.push(Peer::connect(&node, protocol).await);
    }
    node.stop();
    eventually("it is not ready", async || node.ready().await.0 == 503).await;
    let mut late = soon("an end", async {
        loop {
            // Until balancers have noticed, it still serves.
            let mut late = Peer::connect_quietly(&node, Text).await;
            if late.socket.read(&mut [0; 64]).await.is_ok_and(|read| read == 0) {
                break late;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    late.has_ended().await;
    // Whoever has read the end closes, as clients do: a node waits a second for those who do not.
    drop(late);
    for mut peer in peers {
        peer.has_ended().await;
    }
    assert_eq!(node.stopped().await, 0);
}
