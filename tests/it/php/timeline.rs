//! Recorded conversations step by step: the test plays workers, callers and clients, the nodes are the gateways.
//!
//! Where a node does something else on purpose, that is said here: a WebSocket ends with a close frame, the words of
//! refused handshakes are its own, what is not UTF-8 is no name, objects are not sent, and the end of a client that no
//! worker has heard of is told to the next one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use moongate::message::Protocol;
use moongate::php::serialize::{self, Key};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::vectors::{self, Ids};
use super::{CLIENT_CONNECT, IS_ONLINE, Peer, WORKER_CONNECT, packet};
use crate::harness::{Node, eventually, soon};

/// A gateway of the recording.
struct Gateway {
    node: Node,
    inner: SocketAddr,
    /// Where its clients connect.
    clients: SocketAddr,
    is_websocket: bool,
    ids: Ids,
    /// A worker that is not in the recording, where there is one.
    silent: Option<Peer>,
}

impl Gateway {
    async fn start(recorded: &Value, cluster: &Value) -> Self {
        let (protocol, _) = recorded["listen"].as_str().unwrap().split_once("://").unwrap();
        let mut settings = vec![("MOONGATE_LAN_LISTEN", String::new()), ("MOONGATE_INIT_MESSAGE", String::new())];
        settings.push(("MOONGATE_SECRET_KEY", cluster["secret_key"].as_str().unwrap().to_owned()));
        for option in recorded["options"].as_array().unwrap() {
            match option.as_str().unwrap().split_once('=').unwrap() {
                ("ping", seconds) => settings.push(("MOONGATE_PING_INTERVAL", format!("{seconds}s"))),
                ("limit", limit) => settings.push(("MOONGATE_PING_NOT_RESPONSE_LIMIT", limit.to_owned())),
                ("data", hex) => {
                    let data = String::from_utf8(vectors::bytes(&hex.into())).unwrap();
                    settings.push(("MOONGATE_PING_DATA", data));
                }
                other => panic!("{other:?}"),
            }
        }
        let spoken = match protocol {
            "websocket" => None,
            "text" => Some((Protocol::Text, "MOONGATE_TEXT_LISTEN")),
            "frame" => Some((Protocol::Frame, "MOONGATE_FRAME_LISTEN")),
            "tcp" => Some((Protocol::Tcp, "MOONGATE_TCP_LISTEN")),
            other => panic!("{other}"),
        };
        settings.extend(spoken.map(|(_, variable)| (variable, "127.0.0.1:0".to_owned())));
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, &**value)).collect();
        let node = Node::start_with(&settings).await;
        let inner = node.php.unwrap();
        let clients = match spoken {
            None => node.clients,
            Some((protocol, _)) => node.streams.iter().find(|(spoken, _)| *spoken == protocol).unwrap().1,
        };
        let mut gateway = Self { node, inner, clients, is_websocket: spoken.is_none(), ids: Ids::new(), silent: None };
        if cluster["silent_worker"] == true {
            let mut silent = Peer::connect(inner).await;
            let key = cluster["secret_key"].as_str().unwrap();
            let body = serde_json::json!({"worker_key": "Silent:0", "secret_key": key}).to_string();
            silent.send(&packet(WORKER_CONNECT, 0, b"", body.as_bytes())).await;
            assert_eq!(silent.ask(IS_ONLINE, 0, b"").await, "i:0;");
            gateway.silent = Some(silent);
        }
        gateway
    }
}

/// A connection of the recording.
struct Channel {
    gateway: String,
    socket: TcpStream,
    /// What was said and is no whole packet yet.
    said: Vec<u8>,
    /// The questions that are not answered yet.
    questions: VecDeque<(u8, Vec<u8>)>,
    is_worker: bool,
    /// Its handshake was refused, in our own words.
    is_refused: bool,
}

impl Channel {
    /// As a caller or worker. The connection may have been ended already.
    async fn say(&mut self, bytes: &[u8]) {
        drop(self.socket.write_all(bytes).await);
        self.said.extend(bytes);
        while let Some(length) = self.said.first_chunk().map(|length| u32::from_be_bytes(*length) as usize)
            && (28..=self.said.len()).contains(&length)
        {
            let rest = self.said.split_off(length);
            let packet = std::mem::replace(&mut self.said, rest);
            let ext = u32::from_be_bytes(packet[24..28].try_into().unwrap()) as usize;
            if [10, 11, 15, 16, 23, 24, 25, 26, 28, 203].contains(&packet[4]) {
                self.questions.push_back((packet[4], packet[28..].iter().take(ext).copied().collect()));
            }
        }
    }

    async fn read(&mut self, length: usize, what: &str) -> Vec<u8> {
        let mut bytes = vec![0; length];
        soon(what, self.socket.read_exact(&mut bytes)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        bytes
    }

    async fn packet(&mut self, what: &str) -> Vec<u8> {
        let mut packet = self.read(4, what).await;
        let length = u32::from_be_bytes(packet[..].try_into().unwrap()) as usize;
        packet.extend(self.read(length - 4, what).await);
        packet
    }

    async fn head(&mut self, what: &str) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.read(1, what).await);
        }
        String::from_utf8(head).unwrap()
    }

    /// Nothing more comes but, on a WebSocket, a close frame, which a node waits to be answered.
    async fn has_ended(&mut self, is_websocket: bool, what: &str) {
        let mut rest = Vec::new();
        let is_close = |rest: &[u8]| rest.first() == Some(&0x88) && rest.len() == 2 + usize::from(rest[1]);
        // A reset is an end, too.
        while !(is_websocket && rest.len() >= 2 && is_close(&rest))
            && let Ok(byte) = soon(what, self.socket.read_u8()).await
        {
            rest.push(byte);
        }
        let may_be = is_websocket && (is_close(&rest) || self.is_refused);
        assert!(rest.is_empty() || may_be, "{what}: {}", rest.escape_ascii());
    }
}

/// What an event says, without what depends on ports.
fn event(packet: &[u8], ids: Option<&Ids>) -> String {
    let number = |place: usize| u32::from_be_bytes(packet[place..place + 4].try_into().unwrap());
    let (command, flags, ext) = (packet[4], packet[21], number(24) as usize);
    let connection = ids.map_or(number(17), |ids| vectors::translated(ids, number(17)));
    let (session, body) = packet[28..].split_at(ext);
    let body = if command == 205 { described(body) } else { body.escape_ascii().to_string() };
    format!("{command} of {connection}, flags {flags}, session {}, body {body}", session.escape_ascii())
}

fn described(body: &[u8]) -> String {
    let serialize::Value::Array(parts) = serialize::parse(body).unwrap() else { panic!("no array") };
    let parts = parts.into_iter().map(|(name, part)| match part {
        serialize::Value::Array(mut entries) if name == Key::of(b"server") => {
            entries.retain(|(key, _)| *key != Key::of(b"REMOTE_PORT") && *key != Key::of(b"SERVER_PORT"));
            format!("{entries:?}")
        }
        part => format!("{part:?}"),
    });
    parts.collect::<Vec<_>>().join("; ")
}

struct Replay {
    gateways: BTreeMap<String, Gateway>,
    channels: HashMap<String, Channel>,
}

impl Replay {
    async fn start(cluster: &Value) -> Self {
        let mut gateways = BTreeMap::new();
        for recorded in cluster["gateways"].as_array().unwrap() {
            let gateway = Gateway::start(recorded, cluster).await;
            gateways.insert(recorded["name"].as_str().unwrap().to_owned(), gateway);
        }
        Self { gateways, channels: HashMap::new() }
    }

    /// The gateway that a channel's name tells, or the first.
    fn gateway_of(channel: &str) -> String {
        let named = ["A", "B"].into_iter().find(|name| {
            channel.ends_with(&format!(" at {name}")) || channel.starts_with(&format!("gateway {name}<-"))
        });
        named.unwrap_or("A").to_owned()
    }

    async fn open(&mut self, channel: &str, is_client: bool) {
        let name = Self::gateway_of(channel);
        let gateway = self.gateways.get_mut(&name).unwrap();
        let socket = TcpStream::connect(if is_client { gateway.clients } else { gateway.inner }).await.unwrap();
        if is_client && let Some(silent) = &mut gateway.silent {
            // It learns the id of whoever connects.
            let port = socket.local_addr().unwrap().port();
            loop {
                let mut worker = vec![0; 4];
                soon("the silent worker hears of it", silent.0.read_exact(&mut worker)).await.unwrap();
                let mut rest = vec![0; u32::from_be_bytes(worker[..].try_into().unwrap()) as usize - 4];
                silent.0.read_exact(&mut rest).await.unwrap();
                worker.extend(rest);
                if worker[4] == 1 && worker[15..17] == port.to_be_bytes() {
                    let id = u32::from_be_bytes(worker[17..21].try_into().unwrap());
                    gateway.ids.insert(gateway.ids.len() as u32 + 1, id);
                    break;
                }
            }
        }
        let channel_of = Channel {
            gateway: name,
            socket,
            said: Vec::new(),
            questions: VecDeque::new(),
            is_worker: false,
            is_refused: false,
        };
        self.channels.insert(channel.to_owned(), channel_of);
    }

    async fn step(&mut self, entry: &Value, what: &str) {
        let (name, kind) = (entry["channel"].as_str().unwrap(), entry["kind"].as_str().unwrap());
        let from = entry["from"].as_str().unwrap();
        let is_client = name.starts_with("client ") || from == "client";
        if from != "gateway" && kind == "tcp_open" {
            self.open(name, is_client).await;
            return;
        }
        let Some(channel) = self.channels.get_mut(name) else { return };
        let gateway = self.gateways.get_mut(&channel.gateway).unwrap();
        match (from, kind) {
            ("gateway", "tcp_close") => {
                channel.has_ended(is_client && gateway.is_websocket, what).await;
                self.channels.remove(name);
            }
            ("gateway", "packet") => {
                let (recorded, mut packet) = (vectors::bytes(entry), channel.packet(what).await);
                if what.contains("worker_goes_away") && packet[4] == 4 && recorded[4] != 4 {
                    packet = channel.packet(what).await;
                }
                let id = |packet: &[u8]| u32::from_be_bytes(packet[17..21].try_into().unwrap());
                if recorded[4] == 1 {
                    gateway.ids.insert(id(&recorded), id(&packet));
                }
                assert_eq!(event(&packet, None), event(&recorded, Some(&gateway.ids)), "{what}");
            }
            ("gateway", "reply") => {
                let (command, ext) = channel.questions.pop_front().unwrap();
                let mut expected = vectors::meaning(command, &vectors::bytes(entry)[4..], Some(&gateway.ids));
                if command == 15 && std::str::from_utf8(&ext).is_err() {
                    "[]".clone_into(&mut expected);
                }
                let length = u32::from_be_bytes(channel.read(4, what).await.try_into().unwrap());
                let answer = channel.read(length as usize, what).await;
                assert_eq!(vectors::meaning(command, &answer, None), expected, "{what}");
            }
            ("gateway", "handshake") => {
                let status = |head: &str| head.get(9..12).map(str::to_owned);
                let (head, recorded) = (channel.head(what).await, String::from_utf8(vectors::bytes(entry)).unwrap());
                assert_eq!(status(&head), status(&recorded), "{what}");
            }
            ("gateway", "frame") if vectors::bytes(entry)[0] == 0x88 => {
                let head = channel.read(2, what).await;
                assert_eq!(head[0], 0x88, "{what}");
                channel.read(head[1].into(), what).await;
            }
            ("gateway", _) if vectors::bytes(entry).starts_with(b"HTTP/1.1 ") => {
                // PHP looks at less of a request, and lets some in that are refused here.
                assert_eq!(channel.head(what).await.get(9..10), Some("4"), "{what}");
                channel.is_refused = true;
            }
            ("gateway", _) if channel.is_refused => {}
            ("gateway", _) if entry.to_string().contains("__PHP_Incomplete_Class_Name") => {}
            ("gateway", _) => {
                let expected = vectors::bytes(entry);
                let bytes = channel.read(expected.len(), what).await;
                assert_eq!(bytes.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{what}");
            }
            (_, "tcp_close") => {
                if entry["note"] == "RST" {
                    socket2::SockRef::from(&channel.socket).set_linger(Some(Duration::ZERO)).unwrap();
                }
                let is_worker = channel.is_worker;
                let before = gateway.node.metric("moongate_php_workers").await;
                self.channels.remove(name);
                if is_worker {
                    let node = &gateway.node;
                    eventually("the worker is gone", async || node.metric("moongate_php_workers").await < before).await;
                }
            }
            (_, "packet") => {
                let recorded = vectors::bytes(entry);
                channel.is_worker |= recorded[4] == WORKER_CONNECT;
                channel.say(&vectors::packet(&recorded, &gateway.ids)).await;
                if recorded[4] == WORKER_CONNECT {
                    // What follows is recorded after this was done.
                    eventually("the worker is known", async || gateway.node.metric("moongate_php_workers").await > 0.0)
                        .await;
                }
            }
            (_, "bytes") if !is_client => {
                let mut bytes = vectors::bytes(entry);
                // Whole packets among them ask for clients.
                let mut place = 0;
                while let Some(length) = bytes.get(place..place + 4) {
                    let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
                    let Some(whole) = bytes.get(place..place + length).filter(|_| length >= 28) else { break };
                    let translated = vectors::packet(whole, &gateway.ids);
                    bytes[place..place + length].copy_from_slice(&translated);
                    place += length;
                }
                channel.say(&bytes).await;
            }
            // It may have been cut already.
            _ => drop(channel.socket.write_all(&vectors::bytes(entry)).await),
        }
    }

    /// Everything that was said to the nodes so far is done.
    async fn settle(&self, key: &Value) {
        for gateway in self.gateways.values() {
            let mut peer = Peer::connect(gateway.inner).await;
            let body = serde_json::json!({ "secret_key": key }).to_string();
            peer.send(&packet(CLIENT_CONNECT, 0, b"", body.as_bytes())).await;
            assert_eq!(peer.ask(IS_ONLINE, 0, b"").await, "i:0;");
        }
    }

    /// Nobody was told more than was recorded.
    async fn finish(mut self, name: &str) {
        for (what, channel) in &mut self.channels {
            if channel.is_worker {
                let gateway = &self.gateways[&channel.gateway];
                let id = gateway.ids.values().next().copied().unwrap_or(0);
                channel.socket.write_all(&packet(IS_ONLINE, id, b"", b"")).await.unwrap();
                let answer = channel.read(8, what).await;
                assert!(answer.starts_with(&[0, 0, 0, 4, b'i', b':']), "{name}: {what}: {}", answer.escape_ascii());
            }
        }
    }
}

pub async fn replay(file: &str) {
    let recorded = vectors::load(file);
    let mut replay = Replay::start(&recorded["cluster"]).await;
    let (mut last, began) = (0, tokio::time::Instant::now());
    for (place, entry) in recorded["timeline"].as_array().unwrap().iter().enumerate() {
        let channel = entry["channel"].as_str().unwrap();
        if channel.starts_with("register<-") {
            continue;
        }
        let time = entry["t_ms"].as_u64().unwrap();
        // Here time is what is recorded.
        if file.contains("heartbeat") && entry["from"] == "client" {
            tokio::time::sleep_until(began + Duration::from_millis(time)).await;
        }
        // As the recording's README says: what is so much later comes when all before it is done.
        if time >= std::mem::replace(&mut last, time) + 40 {
            replay.settle(&recorded["cluster"]["secret_key"]).await;
        }
        let what = format!("{file}, entry {place} at {} ms, {channel}, {}", entry["t_ms"], entry["kind"]);
        replay.step(entry, &what).await;
    }
    replay.finish(file).await;
}
