//! Several nodes through Redis, as a program in any language meets them there: it knows the contract, and speaks to
//! Redis, never to a node. What it publishes, what it may read, what an answer over HTTP means for it, what clients cost
//! Redis, and what becomes of bad input.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, Node, eventually, nothing_is_left, soon};
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
        let settings = [("MOONGATE_REDIS_URL", &*url), ("MOONGATE_PING_INTERVAL", "0s")];
        let a = Node::start_with(&settings).await.until_ready().await;
        let b = Node::start_with(&settings).await.until_ready().await;
        let pair = Self { redis, a, b };
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
        assert_eq!(redis.keys("*").await, BTreeSet::new(), "left in Redis when the nodes had stopped");
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
        let shared = names(&["mg:nodes", "{mg:nodes}:runs", "{mg:nodes}:lan"]);
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

// --- Redis publish: whom a payload reaches --------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn one_publish_reaches_a_uid_a_group_a_client_or_everyone_on_whatever_nodes_they_are() {
    Pair::run(async |pair| {
        let (mut phone, mut desk) = (pair.a.member("ann", "red").await, pair.b.member("ann", "blue").await);
        let (mut bob, mut nobody) = (pair.b.member("bob", "red").await, pair.a.connect().await);
        for (channel, nodes, who) in [
            ("mg:uid:ann".to_owned(), 2, [true, true, false, false]),
            ("mg:uid:bob".to_owned(), 1, [false, false, true, false]),
            ("mg:group:red".to_owned(), 2, [true, false, true, false]),
            ("mg:group:blue".to_owned(), 1, [false, true, false, false]),
            (format!("mg:client:{}", desk.id), 1, [false, true, false, false]),
            (format!("mg:client:{}", nobody.id), 1, [false, false, false, true]),
            ("mg:all".to_owned(), 2, [true, true, true, true]),
            ("mg:uid:nobody".to_owned(), 0, [false; 4]),
            ("mg:group:nobody".to_owned(), 0, [false; 4]),
            ("mg:client:7f000001ffff00000007".to_owned(), 0, [false; 4]),
        ] {
            assert_eq!(pair.publish(&channel, &channel).await, nodes, "{channel}");
            for (client, hears) in [&mut phone, &mut desk, &mut bob, &mut nobody].into_iter().zip(who) {
                if hears {
                    assert_eq!(client.text().await, channel);
                }
                client.heard_nothing(&pair.a).await;
            }
        }
        drop((phone, desk, bob));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_arrives_byte_for_byte_as_text_when_it_is_utf_8_and_else_as_binary() {
    let texts: [&[u8]; 9] = [
        b"",
        b"hello",
        "你好, мир, 🌕".as_bytes(),
        b"\0\0\0",
        "\u{feff}begins with a byte order mark".as_bytes(),
        "\u{10ffff}\u{fffe}\u{200d}e\u{301}".as_bytes(),
        b"line\r\n*1\r\n$4\r\nPING\r\n",
        br#"{"op":"closeClient","client_id":"x"}"#,
        b"\0mg2 is not an envelope",
    ];
    let every_byte: Vec<u8> = (0..=255).collect();
    let binaries: [&[u8]; 6] = [
        b"\xff",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
        "房".as_bytes().split_last().unwrap().1,
        &every_byte,
    ];
    Pair::run(async |pair| {
        let (mut here, mut there) = (pair.a.member("u", "g").await, pair.b.member("u", "g").await);
        for (payload, text) in texts.iter().map(|text| (text, true)).chain(binaries.iter().map(|bytes| (bytes, false)))
        {
            for channel in ["mg:uid:u", "mg:group:g", "mg:all"] {
                assert_eq!(pair.publish(channel, payload).await, 2);
            }
            for client in [&mut here, &mut there] {
                assert_eq!(pair.publish(&format!("mg:client:{}", client.id), payload).await, 1);
                for _ in 0..4 {
                    let heard = client.next().await.unwrap();
                    assert_eq!((heard.is_text(), heard.into_data()), (text, Bytes::copy_from_slice(payload)));
                }
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_of_one_mebibyte_arrives_and_one_byte_more_is_counted_and_does_not() {
    Pair::run(async |pair| {
        let mut client = pair.b.member("u", "g").await;
        let text = "x".repeat(MEBIBYTE);
        let binary = vec![0xff; MEBIBYTE];
        for channel in ["mg:uid:u", "mg:group:g", "mg:all", &format!("mg:client:{}", client.id)] {
            assert_eq!(pair.publish(channel, &text).await, 1);
            assert_eq!(client.next().await, Some(Message::text(text.as_str())));
            assert_eq!(pair.publish(channel, &binary).await, 1);
            assert_eq!(client.next().await, Some(Message::binary(binary.clone())));
            assert_eq!(pair.publish(channel, text.clone() + "x").await, 1);
            client.heard_nothing(&pair.a).await;
        }
        assert_eq!(counted(&pair.b, r#"moongate_bus_lost_total{reason="too_large"}"#).await, 4);
        assert_eq!(counted(&pair.a, LOST).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_begins_like_an_envelope_and_is_none_is_counted_and_not_delivered() {
    Pair::run(async |pair| {
        let mut client = pair.b.member("u", "g").await;
        let garbage: [&[u8]; 7] = [
            b"",
            b"hello",
            &[0, 0, 0, 0],
            &[0, 0, 0, 2, b'{', b'}'],
            &[0, 0, 0, 200, b'{', b'}'],
            &[0xff, 0xff, 0xff, 0xff],
            &envelope(r#"{"do":{"send":7}}"#, b"hello")[4..],
        ];
        let channels = ["mg:uid:u", "mg:group:g", "mg:all", &format!("mg:client:{}", client.id)];
        for channel in channels {
            for rest in garbage {
                assert_eq!(pair.publish(channel, [&MAGIC[..], rest].concat()).await, 1);
            }
        }
        client.heard_nothing(&pair.a).await;
        let lost = channels.len() * garbage.len();
        assert_eq!(counted(&pair.b, r#"moongate_bus_lost_total{reason="garbage"}"#).await, lost as u64);
        // Three of the four bytes are no envelope.
        assert_eq!(pair.publish("mg:uid:u", &MAGIC[..3]).await, 1);
        assert_eq!(client.next().await, Some(frame(&MAGIC[..3])));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bare_payload_cannot_say_arrives_intact_over_http() {
    Pair::run(async |pair| {
        let mut client = pair.b.member("u", "g").await;
        let lookalike = String::from_utf8(MAGIC.to_vec()).unwrap();
        let sealed = envelope(r#"{"do":{"ungroup":{"group":"g"}}}"#, b"");
        for (message, expected) in [
            (json!({"message": lookalike}), Message::text(lookalike.as_str())),
            (json!({"message": format!("{lookalike}and more")}), Message::text(format!("{lookalike}and more"))),
            (json!({"binary": BASE64_STANDARD.encode(&sealed)}), Message::binary(sealed.clone())),
            (json!({"binary": BASE64_STANDARD.encode(MAGIC)}), Message::binary(MAGIC.to_vec())),
            (json!({"binary": BASE64_STANDARD.encode("plain UTF-8")}), Message::binary(&b"plain UTF-8"[..])),
            (json!({"binary": ""}), Message::binary(&b""[..])),
            (json!({"binary": BASE64_STANDARD.encode(b"\xff\0")}), Message::binary(&b"\xff\0"[..])),
        ] {
            for (op, target) in [
                ("sendToUid", json!({"uid": "u"})),
                ("sendToUid", json!({"uid": ["u", "nobody"]})),
                ("sendToGroup", json!({"group": "g"})),
                ("sendToClient", json!({"client_id": client.id})),
                ("sendToAll", json!({})),
            ] {
                for confirm in [false, true] {
                    let mut fields = target.clone();
                    fields.as_object_mut().unwrap().extend(message.as_object().unwrap().clone());
                    if confirm {
                        fields["confirm"] = json!(true);
                    }
                    assert_eq!(pair.a.ask(op, fields.clone()).await["nodes"], 1, "{op} {fields}");
                    assert_eq!(client.next().await.as_ref(), Some(&expected), "{op} {fields}");
                }
            }
        }
        client.heard_nothing(&pair.a).await;
        assert_eq!(pair.lost().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_stand_in_channels_and_keys_as_they_are() {
    let odd = [
        "*",
        "?",
        "[a-z]",
        "u*",
        "u?",
        "u[12]",
        "u1",
        "u2",
        "\\*",
        "a:b",
        "a:b:clients",
        "a",
        ":",
        "a b",
        " ",
        "房间 1",
        "房间",
        "{tag}",
        "line\nbreak",
        "\"quoted\"",
        "mg:all",
        "🌕",
        "0",
        "\u{0}",
    ];
    let long = "名".repeat(85) + "x";
    let odd: Vec<&str> = odd.into_iter().chain([&*long]).collect();
    Pair::run(async |pair| {
        let mut clients = Vec::new();
        for (place, name) in odd.iter().enumerate() {
            clients.push(pair.nodes()[place % 2].member(name, name).await);
        }
        let mut channels = pair.own_channels().await;
        channels.insert("mg:all".to_owned());
        for (name, client) in odd.iter().zip(&mut clients) {
            for kind in ["uid", "group"] {
                let channel = format!("mg:{kind}:{name}");
                assert_eq!(pair.publish(&channel, &channel).await, 1, "{channel:?}");
                assert_eq!(client.text().await, channel);
                let key = format!("{channel}:clients");
                assert_eq!(
                    pair.redis.command(&["SMEMBERS", &key]).await.names(),
                    [client.id.clone()].into(),
                    "{key:?}"
                );
                channels.insert(channel);
            }
            let groups = format!("mg:client:{}:groups", client.id);
            assert_eq!(pair.redis.command(&["SMEMBERS", &groups]).await.names(), names(&[name]));
            assert_eq!(pair.a.ask("getUidByClientId", json!({"client_id": client.id})).await, json!(name));
            assert_eq!(pair.b.ask("getClientIdListByGroup", json!({"group": name})).await, json!([client.id]));
        }
        assert_eq!(pair.redis.pubsub_channels().await, channels);
        // Nobody heard what was for another.
        for client in &mut clients {
            client.heard_nothing(&pair.a).await;
        }
    })
    .await;
}

// --- Redis publish: how many heard ----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_is_answered_with_0_the_moment_the_last_holder_has_left() {
    Pair::run(async |pair| {
        let mut program = pair.redis.connection().await;
        for round in 0..6 {
            for way in ["unbindUid", "bindUid", "leaveGroup", "leaveGroup of a uid", "ungroup", "closeClient"]
                .into_iter()
                .chain(["destroyClient", "closeUid", "single"])
            {
                let (uid, group) = (format!("{way} {round}"), format!("{way} {round}"));
                let (of_uid, of_group) = (format!("mg:uid:{uid}"), format!("mg:group:{group}"));
                assert_eq!((program.publish(&of_uid, "x").await, program.publish(&of_group, "x").await), (0, 0));
                let first = pair.a.member(&uid, &group).await;
                assert_eq!((program.publish(&of_uid, "x").await, program.publish(&of_group, "x").await), (1, 1));
                let second = pair.b.member(&uid, &group).await;
                assert_eq!((program.publish(&of_uid, "x").await, program.publish(&of_group, "x").await), (2, 2));

                // Each client is let go by a node that does not hold it; all are gone at once from both for others.
                let mut left = 2;
                for (client, other) in [(&first, &pair.b), (&second, &pair.a)] {
                    let id = &client.id;
                    let (op, fields) = match way {
                        "bindUid" => ("bindUid", json!({"client_id": id, "uid": format!("not {uid}")})),
                        "leaveGroup" => ("leaveGroup", json!({"client_id": id, "group": group})),
                        "leaveGroup of a uid" => ("leaveGroup", json!({"uid": uid, "group": group})),
                        "ungroup" => ("ungroup", json!({"group": group})),
                        "closeUid" => ("closeUid", json!({"uid": uid})),
                        "single" => ("bindUid", json!({"client_id": id, "uid": uid, "single": true})),
                        op => (op, json!({"client_id": id})),
                    };
                    other.ask(op, fields).await;
                    left -= match way {
                        "leaveGroup of a uid" | "ungroup" | "closeUid" => left,
                        // It stays itself, and the other goes.
                        "single" => i64::from(left == 2),
                        _ => 1,
                    };
                    let of_uid = if way.contains("roup") { None } else { Some((&of_uid, &uid)) };
                    let of_group = if matches!(way, "unbindUid" | "bindUid") { None } else { Some(&of_group) };
                    if let Some((channel, uid)) = of_uid {
                        assert_eq!(program.publish(channel, "x").await, left, "{way}");
                        let sent = other.ask("sendToUid", json!({"uid": [uid], "message": "x"})).await;
                        let offline = if left == 0 { json!([uid]) } else { json!([]) };
                        assert_eq!((&sent["nodes"], &sent["offline"]), (&json!(left), &offline), "{way}");
                    }
                    if let Some(channel) = of_group {
                        assert_eq!(program.publish(channel, "x").await, left, "{way}");
                        let sent = other.ask("sendToGroup", json!({"group": group, "message": "x"})).await;
                        assert_eq!(sent["nodes"], left, "{way}");
                    }
                    if way == "single" {
                        break;
                    }
                }
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_client_that_went_away_is_found_no_more_a_publish_finds_nobody_either() {
    const ROUNDS: usize = 100;
    Pair::run(async |pair| {
        let mut program = pair.redis.connection().await;
        // Others stay: the node goes on with what it has to say to Redis.
        let _others = [pair.a.member("other", "others").await, pair.b.member("other", "others").await];
        let mut heard = Vec::new();
        for round in 0..ROUNDS {
            let (uid, home) = (format!("u{round}"), pair.nodes()[round % 2]);
            let client = home.member(&uid, "g").await;
            drop(client);
            // Online when not empty: what any program may read.
            let key = format!("mg:uid:{uid}:clients");
            soon("it is found no more", async { while program.command(&["EXISTS", &key]).await != Reply::Int(0) {} })
                .await;
            heard.push(program.publish(format!("mg:uid:{uid}"), "x").await);
        }
        let wrong = heard.iter().filter(|nodes| **nodes > 0).count();
        assert_eq!(wrong, 0, "of {ROUNDS} publishes so many were still heard by a node");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uid_that_is_found_online_is_reached() {
    const ROUNDS: usize = 100;
    Pair::run(async |pair| {
        let mut program = pair.redis.connection().await;
        let mut client = pair.b.connect().await;
        let mut caller = pair.a.caller().await;
        let mut missed = 0;
        for round in 0..ROUNDS {
            let uid = format!("u{round}");
            let key = format!("mg:uid:{uid}:clients");
            caller.send("bindUid", json!({"client_id": client.id, "uid": uid})).await;
            soon("it is online", async { while program.command(&["EXISTS", &key]).await != Reply::Int(1) {} }).await;
            missed += usize::from(program.publish(format!("mg:uid:{uid}"), uid.as_str()).await == 0);
            assert_eq!(caller.answer().await.json()["result"], true);
        }
        assert_eq!(missed, 0, "of {ROUNDS} publishes to a uid that was online so many were heard by nobody");
        for round in 0..ROUNDS {
            assert_eq!(client.text().await, format!("u{round}"));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_listen_to_what_they_hold_and_to_nothing_else() {
    Pair::run(async |pair| {
        let at_rest = pair.own_channels().await;
        assert_eq!(at_rest.len(), 4, "{at_rest:?}");
        assert_eq!((pair.redis.pubsub_channels().await, pair.redis.pubsub_numpat().await), (at_rest.clone(), 2));
        let with = |more: &[&str]| &at_rest | &names(more);

        let first = pair.a.connect().await;
        assert_eq!(pair.redis.pubsub_channels().await, with(&["mg:all"]));
        pair.b.done("bindUid", json!({"client_id": first.id, "uid": "ann"})).await;
        pair.b.done("joinGroup", json!({"client_id": first.id, "group": ["red", "blue"]})).await;
        let held = ["mg:all", "mg:uid:ann", "mg:group:red", "mg:group:blue"];
        assert_eq!(pair.redis.pubsub_channels().await, with(&held));
        // The same targets on the other node are the same channels.
        let second = pair.b.member("ann", "red").await;
        assert_eq!(pair.redis.pubsub_channels().await, with(&held));
        pair.a.done("bindUid", json!({"client_id": second.id, "uid": "bob"})).await;
        pair.a.done("leaveGroup", json!({"client_id": first.id, "group": "blue"})).await;
        let held = ["mg:all", "mg:uid:ann", "mg:uid:bob", "mg:group:red"];
        assert_eq!((pair.redis.pubsub_channels().await, pair.redis.pubsub_numpat().await), (with(&held), 2));
        pair.a.done("ungroup", json!({"group": "red"})).await;
        pair.a.done("unbindUid", json!({"client_id": first.id})).await;
        assert_eq!(pair.redis.pubsub_channels().await, with(&["mg:all", "mg:uid:bob"]));
        assert_eq!(pair.publish("mg:all", "x").await, 2);
        pair.b.ask("closeClient", json!({"client_id": first.id})).await;
        assert_eq!(pair.publish("mg:all", "x").await, 1);
        pair.b.ask("closeUid", json!({"uid": "bob"})).await;
        assert_eq!(pair.publish("mg:all", "x").await, 0);
        assert_eq!((pair.redis.pubsub_channels().await, pair.redis.pubsub_numpat().await), (at_rest.clone(), 2));
        for node in pair.nodes() {
            assert_eq!(counted(node, "moongate_subscriptions_confirmed").await, 0);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_connection_publishes_on_a_channel_arrives_in_order_and_once() {
    const MESSAGES: usize = 400;
    Pair::run(async |pair| {
        let mut clients = [pair.a.member("u", "g").await, pair.b.member("u", "g").await, pair.b.member("u", "g").await];
        let mut program = pair.redis.connection().await;
        let each: Vec<String> = clients.iter().map(|client| format!("mg:client:{}", client.id)).collect();
        for number in 0..MESSAGES {
            for channel in ["mg:uid:u", "mg:group:g", "mg:all"].into_iter().chain(each.iter().map(String::as_str)) {
                let kind = channel.split(':').nth(1).unwrap();
                program.send(&["PUBLISH", channel, &format!("{kind} {number}")]).await;
            }
            let message = format!("cmd {number}");
            let command = match number % 3 {
                0 => json!({"op": "sendToUid", "uid": "u", "message": message}),
                1 => json!({"op": "sendToGroup", "group": ["g", "none"], "message": message}),
                _ => {
                    json!({"op": "batch", "commands": [{"op": "sendToAll", "message": message, "exclude_uid": ["x"]}]})
                }
            };
            program.send(&["PUBLISH", "mg:cmd", &command.to_string()]).await;
        }
        for _ in 0..MESSAGES {
            for nodes in [2, 2, 2, 1, 1, 1, 2] {
                assert_eq!(program.reply().await, Reply::Int(nodes));
            }
        }
        for client in &mut clients {
            let mut heard: BTreeMap<String, Vec<usize>> = BTreeMap::new();
            for _ in 0..MESSAGES * 5 {
                let text = client.text().await;
                let (kind, number) = text.split_once(' ').unwrap();
                heard.entry(kind.to_owned()).or_default().push(number.parse().unwrap());
            }
            assert_eq!(heard.len(), 5);
            for (kind, numbers) in heard {
                assert!(numbers.iter().copied().eq(0..MESSAGES), "{kind}: {numbers:?}");
            }
        }
        for client in &mut clients {
            client.heard_nothing(&pair.a).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_listens_to_everything_makes_everyone_look_online_and_breaks_nothing() {
    Pair::run(async |pair| {
        let mut tool = pair.redis.connection().await;
        tool.command(&["PSUBSCRIBE", "mg:*"]).await;
        assert_eq!(pair.publish("mg:uid:nobody", "x").await, 1);

        let (mut ann, bob) = (pair.a.connect().await, pair.b.connect().await);
        for client in [&ann, &bob] {
            pair.b.done("bindUid", json!({"client_id": client.id, "uid": "u"})).await;
        }
        pair.a.done("joinGroup", json!({"uid": "u", "group": "g"})).await;
        assert_eq!(pair.publish("mg:group:g", "hello").await, 3);
        assert_eq!(ann.text().await, "hello");
        let sent = json!({"group": "g", "message": "hello", "confirm": true});
        assert_eq!(pair.a.ask("sendToGroup", sent).await, json!({"nodes": 2, "clients": 2}));
        let sent = json!({"uid": ["u", "nobody"], "message": "hello"});
        assert_eq!(pair.a.ask("sendToUid", sent).await, json!({"nodes": 2, "offline": ["nobody"]}));
        pair.b.done("leaveGroup", json!({"uid": "u", "group": "g"})).await;
        pair.b.done("ungroup", json!({"group": "g"})).await;
        assert_eq!(pair.b.ask("closeUid", json!({"uid": "u"})).await["nodes"], 2);
        assert_eq!((ann.text().await, ann.text().await), ("hello".to_owned(), "hello".to_owned()));
        assert_eq!(ann.closed().await, (4000, "closed".to_owned()));
    })
    .await;
}

// --- mg:cmd ---------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn every_send_can_be_said_on_mg_cmd_and_each_socket_gets_it_once() {
    Pair::run(async |pair| {
        let mut clients = [
            pair.a.member("ann", "red").await,
            pair.b.member("ann", "blue").await,
            pair.a.member("bob", "red").await,
            pair.b.member("eve", "blue").await,
        ];
        let id: Vec<String> = clients.iter().map(|client| client.id.clone()).collect();
        for (mut command, who) in [
            (json!({"op": "sendToAll"}), [true; 4]),
            (json!({"op": "sendToAll", "exclude": [id[0]], "exclude_uid": ["eve"]}), [false, true, true, false]),
            (json!({"op": "sendToAll", "client_ids": [id[0], id[3], id[0]]}), [true, false, false, true]),
            (json!({"op": "sendToAll", "client_ids": []}), [false; 4]),
            (json!({"op": "sendToClient", "client_id": id[1]}), [false, true, false, false]),
            (json!({"op": "sendToClient", "client_id": id[2].to_uppercase()}), [false, false, true, false]),
            (json!({"op": "sendToUid", "uid": "ann"}), [true, true, false, false]),
            (json!({"op": "sendToUid", "uid": ["ann", "eve", "ann", "nobody"]}), [true, true, false, true]),
            (json!({"op": "sendToGroup", "group": "red"}), [true, false, true, false]),
            (json!({"op": "sendToGroup", "group": ["red", "blue"]}), [true; 4]),
            (json!({"op": "sendToGroup", "group": "blue", "exclude": [id[3]]}), [false, true, false, false]),
            (
                json!({"op": "sendToGroup", "group": ["red", "blue"], "exclude_uid": ["ann"]}),
                [false, false, true, true],
            ),
        ] {
            for (message, expected) in [
                (json!({"message": "hello"}), Message::text("hello")),
                (json!({"message": {"a": [1, null]}}), Message::text(r#"{"a":[1,null]}"#)),
                (json!({"binary": "aGk="}), Message::binary(&b"hi"[..])),
            ] {
                for name in ["message", "binary"] {
                    command.as_object_mut().unwrap().remove(name);
                }
                command.as_object_mut().unwrap().extend(message.as_object().unwrap().clone());
                pair.say(command.clone()).await;
                for (client, hears) in clients.iter_mut().zip(who) {
                    if hears {
                        assert_eq!(client.next().await.as_ref(), Some(&expected), "{command}");
                    }
                }
            }
            for client in &mut clients {
                client.heard_nothing(&pair.b).await;
            }
        }
        assert_eq!(pair.lost().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_can_be_said_on_mg_cmd() {
    Pair::run(async |pair| {
        let clients = [pair.a.connect().await, pair.b.connect().await];
        for client in &clients {
            let id = &client.id;
            let becomes = async |op: &str, fields: Value, expected: Value| {
                eventually(&format!("{op} {fields} is {expected}"), async || {
                    pair.a.ask(op, fields.clone()).await == expected && pair.b.ask(op, fields.clone()).await == expected
                })
                .await;
            };
            let of_client = json!({"client_id": id});
            pair.say(json!({"op": "bindUid", "client_id": id, "uid": 42})).await;
            becomes("getUidByClientId", of_client.clone(), json!("42")).await;
            pair.say(json!({"op": "unbindUid", "client_id": id, "uid": "43"})).await;
            pair.say(json!({"op": "joinGroup", "client_id": id, "group": ["red", "blue"]})).await;
            becomes("getClientIdListByGroup", json!({"group": ["red", "blue"]}), json!([id])).await;
            becomes("getUidByClientId", of_client.clone(), json!("42")).await;
            pair.say(json!({"op": "joinGroup", "uid": "42", "group": "green"})).await;
            becomes("getUidListByGroup", json!({"group": "green"}), json!(["42"])).await;
            pair.say(json!({"op": "leaveGroup", "client_id": id, "group": "blue"})).await;
            becomes("getClientIdCountByGroup", json!({"group": "blue"}), json!(0)).await;
            pair.say(json!({"op": "leaveGroup", "uid": "42", "group": ["green"]})).await;
            becomes("getClientIdCountByGroup", json!({"group": "green"}), json!(0)).await;
            pair.say(json!({"op": "setSession", "client_id": id, "session": {"name": "安", "n": {"a": 1}}})).await;
            pair.say(json!({"op": "updateSession", "client_id": id, "session": {"n": {"b": 2}}})).await;
            let session = json!({"name": "安", "n": {"a": 1, "b": 2}});
            becomes("getSession", of_client.clone(), session.clone()).await;
            becomes("getClientSessionsByGroup", json!({"group": "red"}), json!({id: session})).await;
            pair.say(json!({"op": "ungroup", "group": "red"})).await;
            becomes("getClientIdCountByGroup", json!({"group": "red"}), json!(0)).await;
            pair.say(json!({"op": "unbindUid", "client_id": id})).await;
            becomes("getUidByClientId", of_client.clone(), Value::Null).await;
            assert_eq!(pair.redis.keys("mg:group:*").await, BTreeSet::new());
        }
        assert_eq!(pair.lost().await, 0);
    })
    .await;
}

/// It is closed, as another has its uid; what it was sent before may have come still.
async fn is_replaced(client: &mut Client) {
    let mut heard = client.next().await;
    while let Some(Message::Text(_)) = heard {
        heard = client.next().await;
    }
    let Some(Message::Close(Some(close))) = heard else { panic!("no close frame, but {heard:?}") };
    assert_eq!((u16::from(close.code), close.reason.as_str()), (4001, "replaced"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_close_can_be_said_on_mg_cmd() {
    Pair::run(async |pair| {
        for home in pair.nodes() {
            let mut client = home.member("u", "g").await;
            pair.say(json!({"op": "closeClient", "client_id": client.id})).await;
            assert_eq!(client.closed().await, (4000, "closed".to_owned()));
            let mut client = home.member("u", "g").await;
            let (id, close) = (client.id.clone(), json!({"code": 3001, "reason": "再见", "message": "last"}));
            let mut command = json!({"op": "closeClient", "client_id": id});
            command.as_object_mut().unwrap().extend(close.as_object().unwrap().clone());
            pair.say(command).await;
            assert_eq!(client.text().await, "last");
            assert_eq!(client.closed().await, (3001, "再见".to_owned()));
            for op in ["destroyClient", "destoryClient"] {
                let mut client = home.member("u", "g").await;
                pair.say(json!({"op": op, "client_id": client.id})).await;
                client.cut().await;
            }
        }
        // What is closed by uid is closed on both nodes.
        let mut clients = [pair.a.member("u", "g").await, pair.b.member("v", "g").await, pair.b.member("u", "g").await];
        let uids = json!(["u", "v", "nobody"]);
        pair.say(json!({"op": "closeUid", "uid": uids, "binary": "/w==", "code": 4999, "reason": "all"})).await;
        for client in &mut clients {
            assert_eq!(client.next().await, Some(Message::binary(&b"\xff"[..])));
            assert_eq!(client.closed().await, (4999, "all".to_owned()));
        }
        // Whoever sees the close frame finds that the client has left.
        assert_eq!(pair.a.ask("isUidsOnline", json!({"uid": ["u", "v"]})).await, json!({"u": false, "v": false}));
        // The later of two stays.
        let (mut first, mut second) = (pair.a.connect().await, pair.b.connect().await);
        pair.say(json!({"op": "bindUid", "client_id": first.id, "uid": "one"})).await;
        let one = json!({"uid": "one"});
        eventually("it is bound", async || pair.a.ask("isUidOnline", one.clone()).await == json!(true)).await;
        pair.say(json!({"op": "bindUid", "client_id": second.id, "uid": "one", "single": true})).await;
        is_replaced(&mut first).await;
        let key = "mg:uid:one:clients";
        assert_eq!(pair.redis.command(&["SMEMBERS", key]).await.names(), [second.id.clone()].into());
        assert_eq!(pair.publish("mg:uid:one", "only you").await, 1);
        assert_eq!(second.text().await, "only you");
        assert_eq!(pair.lost().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_on_mg_cmd_binds_and_sends_in_one_go() {
    const ROUNDS: usize = 100;
    Pair::run(async |pair| {
        let mut clients = [pair.a.connect().await, pair.b.connect().await, pair.b.connect().await];
        let mut program = pair.redis.connection().await;
        for round in 0..ROUNDS {
            let (uid, group) = (format!("u{round}"), format!("g{round}"));
            let mut commands = Vec::new();
            for client in &clients {
                commands.push(json!({"op": "bindUid", "client_id": client.id, "uid": uid}));
                commands.push(
                    json!({"op": "leaveGroup", "client_id": client.id, "group": format!("g{}", round.max(1) - 1)}),
                );
                commands.push(json!({"op": "joinGroup", "client_id": client.id, "group": group}));
            }
            commands.push(json!({"op": "sendToUid", "uid": uid, "message": format!("uid {round}")}));
            commands.push(json!({"op": "sendToGroup", "group": group, "message": format!("group {round}"),
                "exclude": [clients[1].id]}));
            let batch = json!({"op": "batch", "commands": commands}).to_string();
            assert_eq!(program.publish("mg:cmd", batch).await, 2);
        }
        for (place, client) in clients.iter_mut().enumerate() {
            for round in 0..ROUNDS {
                assert_eq!(client.text().await, format!("uid {round}"));
                if place != 1 {
                    assert_eq!(client.text().await, format!("group {round}"));
                }
            }
            client.heard_nothing(&pair.a).await;
        }
        let last = json!({"group": format!("g{}", ROUNDS - 1)});
        eventually("all is in Redis", async || pair.a.ask("getClientIdCountByGroup", last.clone()).await == json!(3))
            .await;
        assert_eq!(pair.redis.keys("mg:group:*").await.len(), 1);
        assert_eq!(pair.lost().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_on_mg_cmd_has_the_one_stay_that_is_bound_as_the_single_one_at_its_end() {
    const ROUNDS: usize = 30;
    Pair::run(async |pair| {
        for round in 0..ROUNDS {
            let uid = format!("u{round}");
            let (mut first, mut second) = (pair.b.connect().await, pair.b.connect().await);
            let commands = json!([
                {"op": "bindUid", "client_id": first.id, "uid": uid},
                {"op": "bindUid", "client_id": second.id, "uid": uid, "single": true},
                {"op": "sendToUid", "uid": uid, "message": "bound"},
            ]);
            pair.say(json!({"op": "batch", "commands": commands})).await;
            assert_eq!(second.text().await, "bound");
            is_replaced(&mut first).await;
            let key = format!("mg:uid:{uid}:clients");
            assert_eq!(pair.redis.command(&["SMEMBERS", &key]).await.names(), [second.id.clone()].into());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_command_on_mg_cmd_is_counted_and_the_next_one_works() {
    Pair::run(async |pair| {
        let (mut here, mut there) = (pair.a.member("u", "g").await, pair.b.member("u", "g").await);
        let too_many =
            json!({"op": "batch", "commands": vec![json!({"op": "ungroup", "group": "x"}); 1001]}).to_string();
        let bad: [&[u8]; 18] = [
            b"",
            b"hello",
            b"{",
            b"\xff\xfe",
            b"null",
            b"[]",
            b"{}",
            br#"{"op":null}"#,
            br#"{"op":"noSuchThing"}"#,
            br#"{"op":"sendToUid","uid":"u"}"#,
            br#"{"op":"sendToUid","uid":"u","message":"x","binary":"eA=="}"#,
            br#"{"op":"sendToUid","uid":"","message":"x"}"#,
            br#"{"op":"sendToGroup","group":"g","message":"x","exlude":[]}"#,
            br#"{"op":"closeClient","client_id":"7f","code":4000}"#,
            br#"{"op":"getAllClientIdList"}"#,
            br#"{"op":"isUidOnline","uid":"u"}"#,
            too_many.as_bytes(),
            br#"{"op":"batch","commands":7}"#,
        ];
        for (count, bad) in bad.iter().enumerate() {
            let words = String::from_utf8_lossy(bad);
            assert_eq!(pair.publish("mg:cmd", bad).await, 2);
            let next = json!({"op": "sendToUid", "uid": "u", "message": words}).to_string();
            assert_eq!(pair.publish("mg:cmd", next).await, 2);
            for client in [&mut here, &mut there] {
                assert_eq!(client.text().await, words);
            }
            for node in pair.nodes() {
                assert_eq!(counted(node, LOST).await, (count + 1) as u64, "{words}");
            }
        }
        // Of a batch, the good ones are carried out.
        let batch = json!({"op": "batch", "commands": [
            {"op": "sendToGroup", "group": "g", "message": "one"},
            {"op": "nonsense"},
            {"op": "batch", "commands": []},
            {"op": "getAllUidList"},
            7,
            {"op": "sendToGroup", "group": "g", "message": "two"},
        ]});
        pair.say(batch).await;
        for client in [&mut here, &mut there] {
            assert_eq!((client.text().await, client.text().await), ("one".to_owned(), "two".to_owned()));
            client.heard_nothing(&pair.a).await;
        }
        for node in pair.nodes() {
            assert_eq!(counted(node, LOST).await, (bad.len() + 4) as u64);
            assert_eq!(node.ready().await.0, 200);
        }
    })
    .await;
}

// --- the state that any language may read ---------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn the_state_in_redis_is_as_documented_and_there_is_nothing_else() {
    Pair::run(async |pair| {
        assert_eq!(pair.redis.keys("*").await, pair.own_keys().await);
        let before = redis_time(&pair.redis).await;
        let (ann, bob) = (pair.a.connect().await, pair.b.member("bob", "red").await);
        pair.b.done("bindUid", json!({"client_id": ann.id, "uid": "ann"})).await;
        pair.b.done("joinGroup", json!({"client_id": ann.id, "group": ["red", "blue"]})).await;
        pair.b.done("setSession", json!({"client_id": ann.id, "session": {"name": "安", "n": [1, 2.50]}})).await;
        let bare = pair.b.connect().await;
        let after = redis_time(&pair.redis).await;

        let state = pair.state().await;
        let set = |members: &[&Client]| ("set".to_owned(), members.iter().map(|client| client.id.clone()).collect());
        assert_eq!(state["mg:uid:ann:clients"], set(&[&ann]));
        assert_eq!(state["mg:uid:bob:clients"], set(&[&bob]));
        assert_eq!(state["mg:group:red:clients"], set(&[&ann, &bob]));
        assert_eq!(state["mg:group:blue:clients"], set(&[&ann]));
        assert_eq!(state[&format!("mg:client:{}:groups", ann.id)], ("set".to_owned(), names(&["red", "blue"])));
        assert_eq!(state[&format!("mg:client:{}:groups", bob.id)], ("set".to_owned(), names(&["red"])));

        // Which node is whose is told by its address, the first part of its clients' ids.
        let mut node_of = BTreeMap::new();
        for id in pair.node_ids().await {
            let node = fields(pair.redis.command(&["HGETALL", &format!("mg:node:{id}")]).await);
            node_of.insert(hex(&node["lan"]), id);
        }
        for (client, uid, session) in
            [(&ann, Some("ann"), Some(r#"{"name":"安","n":[1,2.50]}"#)), (&bob, Some("bob"), None), (&bare, None, None)]
        {
            let mut hash = fields(pair.redis.command(&["HGETALL", &format!("mg:client:{}", client.id)]).await);
            assert_eq!(hash.remove("node").as_ref(), node_of.get(&client.id[..12]));
            assert_eq!(hash.remove("ip").as_deref(), Some("127.0.0.1"));
            let connected_at: u64 = hash.remove("connected_at").unwrap().parse().unwrap();
            assert!((before..=after).contains(&connected_at), "{before} {connected_at} {after}");
            assert_eq!(hash.remove("uid").as_deref(), uid);
            let session: Option<Value> = session.map(|session| serde_json::from_str(session).unwrap());
            assert_eq!(hash.remove("session").map(|text| serde_json::from_str::<Value>(&text).unwrap()), session);
            assert_eq!(hash, BTreeMap::new());
        }

        // What is internal is in the table, too: one index for each run that has clients.
        let runs = fields(pair.redis.command(&["HGETALL", "{mg:nodes}:runs"]).await);
        for (lan, node) in &node_of {
            let index = &state[&format!("mg:clients:{}", runs[node])];
            let of_node = [&ann, &bob, &bare].into_iter().filter(|client| client.id.starts_with(lan));
            assert_eq!((&*index.0, index.1.len()), ("hash", of_node.count()));
        }
        let mut keys = pair.own_keys().await;
        keys.extend(state.into_keys());
        assert_eq!(keys.len(), 5 + 6 + 3 + 2);
        assert_eq!(pair.redis.keys("*").await, keys);

        // What is unbound, left or gone leaves nothing.
        pair.a.done("unbindUid", json!({"client_id": ann.id})).await;
        pair.b.done("leaveGroup", json!({"client_id": ann.id, "group": ["red", "blue"]})).await;
        pair.a.ask("closeClient", json!({"client_id": bob.id})).await;
        let state: BTreeSet<String> =
            pair.state().await.into_keys().filter(|key| !key.starts_with("mg:clients:")).collect();
        assert_eq!(state, [&ann, &bare].map(|client| format!("mg:client:{}", client.id)).into());
        let hash = fields(pair.redis.command(&["HGETALL", &format!("mg:client:{}", ann.id)]).await);
        assert!(!hash.contains_key("uid"), "{hash:?}");
        pair.a.ask("closeClient", json!({"client_id": ann.id})).await;
        pair.a.ask("destroyClient", json!({"client_id": bare.id})).await;
        assert_eq!(pair.redis.keys("*").await, pair.own_keys().await);
    })
    .await;
}

/// Unix milliseconds, by Redis' own clock.
async fn redis_time(redis: &Redis) -> u64 {
    let time = redis.command(&["TIME"]).await.list();
    let [seconds, micros] = [0, 1].map(|place| time[place].clone().string().parse::<u64>().unwrap());
    seconds * 1000 + micros / 1000
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_lease_ends_by_redis_clock_and_its_hash_tells_who_it_is() {
    Pair::run(async |pair| {
        let mut clients = vec![pair.a.member("u", "g").await, pair.a.member("v", "g").await];
        let ids = pair.node_ids().await;
        assert_eq!(ids.len(), 2);
        for id in &ids {
            assert_eq!(id.len(), 36, "a fresh UUID: {id}");
            let lease =
                async || -> u64 { pair.redis.command(&["ZSCORE", "mg:nodes", id]).await.string().parse().unwrap() };
            let before = redis_time(&pair.redis).await;
            let first = lease().await;
            let after = redis_time(&pair.redis).await;
            // NODE_TTL after it was last renewed, which is done all the time.
            assert!((before + 10_000..=after + 15_000).contains(&first), "{before} {first}");
            eventually("the lease is renewed", async || lease().await > first).await;
        }
        clients.push(pair.b.connect().await);
        let key = format!("mg:node:{}", ids.iter().next().unwrap());
        let known = names(&["lan", "version", "started_at", "clients", "uids", "groups"]);
        assert_eq!(pair.redis.command(&["HKEYS", &key]).await.names(), known);
        let mut hashes = Vec::new();
        for id in &ids {
            hashes.push(fields(pair.redis.command(&["HGETALL", &format!("mg:node:{id}")]).await));
        }
        let lans: BTreeSet<&str> = hashes.iter().map(|hash| &*hash["lan"]).collect();
        assert_eq!(lans, ["127.0.0.1:2900", "127.0.0.1:2901"].into());
        let now = redis_time(&pair.redis).await;
        for hash in &hashes {
            assert_eq!(hash["version"], env!("CARGO_PKG_VERSION"));
            let started_at: u64 = hash["started_at"].parse().unwrap();
            assert!((now - 60_000..=now).contains(&started_at), "{started_at} {now}");
        }
        // The counts follow within seconds.
        eventually("the counts are told", async || {
            let mut counts = BTreeSet::new();
            for id in &ids {
                let hash = fields(pair.redis.command(&["HGETALL", &format!("mg:node:{id}")]).await);
                counts.insert(["clients", "uids", "groups"].map(|count| hash[count].clone()).join(" "));
            }
            counts == names(&["2 2 1", "1 0 0"])
        })
        .await;
    })
    .await;
}

// --- done means done ------------------------------------------------------------------------------------------------

/// Rounds of change and publish: the issue's number.
const ROUNDS: usize = 10_000;

/// So many applications at once, each with its client.
const APPLICATIONS: usize = 4;

/// Again and again: a change at one node of a client on the other, and, as soon as it is answered, a publish.
async fn whatever_is_published_after_an_answer_arrives(op: &str, name: &str, channel: &str) {
    Pair::run(async |pair| {
        let applications = (0..APPLICATIONS).map(async |application| {
            let (asked, home) = if application % 2 == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
            let (mut caller, mut program) = (asked.caller().await, pair.redis.connection().await);
            let mut client = home.connect().await;
            for round in 0..ROUNDS / APPLICATIONS {
                let target = format!("{application}/{round}");
                let answer = caller.call(op, json!({"client_id": client.id, name: target})).await;
                assert_eq!(answer["result"], true, "{answer}");
                assert_eq!(program.publish(format!("{channel}{target}"), &target).await, 1, "round {target}");
                assert_eq!(client.text().await, target);
                if op == "joinGroup" {
                    let left = caller.call("leaveGroup", json!({"client_id": client.id, name: target})).await;
                    assert_eq!(left["result"], true, "{left}");
                    assert_eq!(program.publish(format!("{channel}{target}"), &target).await, 0, "round {target}");
                }
            }
            client.heard_nothing(asked).await;
        });
        join_all(applications).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_published_after_an_answered_bind_arrives() {
    whatever_is_published_after_an_answer_arrives("bindUid", "uid", "mg:uid:").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_published_after_an_answered_join_arrives() {
    whatever_is_published_after_an_answer_arrives("joinGroup", "group", "mg:group:").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_at_one_node_sees_all_that_was_answered_at_the_other() {
    const ROUNDS: usize = 200;
    Pair::run(async |pair| {
        let clients = [pair.a.connect().await, pair.b.connect().await];
        let ids: BTreeSet<&str> = clients.iter().map(|client| &*client.id).collect();
        let (mut a, mut b) = (pair.a.caller().await, pair.b.caller().await);
        for round in 0..ROUNDS {
            let (group, uids) = (format!("g{round}"), [format!("u{round}"), format!("v{round}")]);
            let mut sessions = json!({});
            for (client, uid) in clients.iter().zip(&uids) {
                let (id, session) = (&client.id, json!({"round": round, "uid": uid}));
                for (op, fields) in [
                    ("bindUid", json!({"client_id": id, "uid": uid})),
                    ("joinGroup", json!({"client_id": id, "group": group})),
                    ("setSession", json!({"client_id": id, "session": session})),
                ] {
                    assert_eq!(a.call(op, fields).await["result"], true, "{op}");
                }
                sessions[id] = session;
            }
            let mut ask = async |op: &str, fields: Value| b.call(op, fields).await["result"].take();
            let texts = |list: Value| -> BTreeSet<String> {
                list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
            };
            let in_group = json!({"group": group});
            assert_eq!(ask("getClientSessionsByGroup", in_group.clone()).await, sessions);
            assert_eq!(texts(ask("getUidListByGroup", in_group.clone()).await), uids.clone().into());
            assert_eq!(ask("getUidCountByGroup", in_group.clone()).await, 2);
            let found = texts(ask("getClientIdListByGroup", in_group.clone()).await);
            assert_eq!(found.iter().map(String::as_str).collect::<BTreeSet<_>>(), ids);
            assert_eq!(ask("getClientIdCountByGroup", in_group).await, 2);
            let online = json!({&uids[0]: true, &uids[1]: true});
            assert_eq!(ask("isUidsOnline", json!({"uid": uids})).await, online);
            assert_eq!(texts(ask("getAllUidList", json!({})).await), uids.clone().into());
            assert_eq!(ask("getAllClientSessions", json!({})).await, sessions);
            for (client, uid) in clients.iter().zip(&uids) {
                assert_eq!(ask("getClientIdByUid", json!({"uid": uid})).await, json!([client.id]));
                assert_eq!(ask("getUidByClientId", json!({"client_id": client.id})).await, json!(uid));
                assert_eq!(ask("getSession", json!({"client_id": client.id})).await, sessions[&client.id]);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_welcomed_is_found_by_a_query_at_the_other_node() {
    const ROUNDS: usize = 200;
    Pair::run(async |pair| {
        for round in 0..ROUNDS {
            let (home, other) = if round % 2 == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
            let client = home.connect().await;
            assert_eq!(other.ask("isOnline", json!({"client_id": client.id})).await, json!(true), "round {round}");
            assert!(other.ask("getAllClientSessions", json!({})).await[&client.id].is_object(), "round {round}");
        }
    })
    .await;
}

/// Rounds of two clients that are each to be the only one of a uid: the issue's number.
const SINGLES: usize = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn of_two_clients_that_are_bound_as_the_single_one_at_once_at_two_nodes_exactly_one_stays() {
    Pair::run(async |pair| {
        let mut first_stays = 0;
        let (mut a, mut b, mut program) = (pair.a.caller().await, pair.b.caller().await, pair.redis.connection().await);
        let (mut first, mut second) = (pair.a.connect().await, pair.b.connect().await);
        for round in 0..SINGLES {
            let uid = format!("u{round}");
            let bind = |client: &Client| json!({"client_id": client.id, "uid": uid, "single": true});
            let (of_first, of_second) = (bind(&first), bind(&second));
            if round % 4 > 1 {
                // Each sees the other already, whoever is the later one.
                pair.a.done("bindUid", json!({"client_id": first.id, "uid": uid})).await;
                pair.b.done("bindUid", json!({"client_id": second.id, "uid": uid})).await;
            }
            // Each comes in at the node that does not hold the client, or each at its own.
            let (at_a, at_b) = if round % 2 == 0 { (of_second, of_first) } else { (of_first, of_second) };
            let answers = tokio::join!(a.call("bindUid", at_a), b.call("bindUid", at_b));
            // One that is replaced before its own bind comes in is not there any more.
            let done =
                |answer: &Value| answer["result"] == true || (round % 4 > 1 && answer["code"] == "client_not_found");
            let said = format!("round {round}: {answers:?}");
            assert!(done(&answers.0) && done(&answers.1), "{said}");
            assert!(answers.0["result"] == true || answers.1["result"] == true, "{said}");
            let stays = program.command(&["SMEMBERS", &format!("mg:uid:{uid}:clients")]).await.names();
            assert_eq!(stays.len(), 1, "round {round}: {stays:?}");
            let (stayer, replaced) =
                if stays.contains(&first.id) { (&mut first, &mut second) } else { (&mut second, &mut first) };
            assert!(stays.contains(&stayer.id));
            assert_eq!(replaced.closed().await, (4001, "replaced".to_owned()));
            assert_eq!(program.publish(format!("mg:uid:{uid}"), &uid).await, 1);
            assert_eq!(stayer.text().await, uid);
            if stays.contains(&first.id) {
                first_stays += 1;
                second = pair.b.connect().await;
            } else {
                first = pair.a.connect().await;
            }
        }
        assert!((1..SINGLES).contains(&first_stays), "never at once: {first_stays}");
    })
    .await;
}

// --- what it costs Redis --------------------------------------------------------------------------------------------

/// Every command that Redis is given, as it says so itself (`MONITOR`).
struct Monitor {
    told: Connection,
    program: Connection,
    marks: usize,
}

/// Commands by name and kind of key: how many. Of `SUBSCRIBE` and `UNSUBSCRIBE` each channel counts.
type Commands = BTreeMap<String, usize>;

impl Monitor {
    async fn of(redis: &Redis) -> Self {
        let (mut told, program) = (redis.connection().await, redis.connection().await);
        assert_eq!(told.command(&["MONITOR"]).await, Reply::text("OK"));
        Self { told, program, marks: 0 }
    }

    /// What was done for clients and applications since the last time; not what nodes do for themselves (lease,
    /// heartbeat, looking at each other and after their own index, wondering who hears), and not what scripts call.
    async fn so_far(&mut self) -> Commands {
        self.marks += 1;
        let mark = format!("mark {}", self.marks);
        self.program.command(&["ECHO", &mark]).await;
        let mut commands = Commands::new();
        loop {
            let Reply::Text(line) = self.told.reply().await else { panic!("no line") };
            let line = String::from_utf8_lossy(&line).into_owned();
            let (client, command) = line.split_once("] ").unwrap();
            let words: Vec<&str> = command.split('"').skip(1).step_by(2).collect();
            let name = words[0].to_uppercase();
            if name == "ECHO" && words[1] == mark {
                return commands;
            }
            let key = words.get(if name == "EVAL" { 3 } else { 1 }).copied().unwrap_or_default();
            let of_nodes = key.starts_with("mg:node") || key.starts_with("{mg:nodes}");
            let of_node = command.contains(r#"{\"beat\":"#) || command.contains(r#"{\"node\":"#);
            if client.ends_with(" lua") || of_nodes || of_node || ["PING", "HLEN", "PUBSUB"].contains(&&*name) {
                continue;
            }
            let channels = if name.ends_with("SUBSCRIBE") { &words[1..] } else { &[key] };
            for key in channels {
                let groups = if key.ends_with(":groups") { ":groups" } else { "" };
                // The nodes' own channels have their kind before the colon.
                let words = if key.starts_with("mg.") { 1 } else { 2 };
                let kind: Vec<&str> = key.split(':').take(words).collect();
                *commands.entry(format!("{name} {}{groups}", kind.join(":"))).or_default() += 1;
            }
        }
    }

    /// So many commands were given for what has just been done, no others, and no more.
    async fn sees(&mut self, what: &str, expected: &[(&str, usize)]) {
        let expected: Commands = expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let mut seen = Commands::new();
        let complete = |seen: &Commands| expected.iter().all(|(name, count)| seen.get(name) >= Some(count));
        soon(what, async {
            loop {
                for (name, count) in self.so_far().await {
                    *seen.entry(name).or_default() += count;
                }
                if complete(&seen) {
                    break;
                }
            }
        })
        .await;
        assert_eq!(seen, expected, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_bind_join_and_leave_cost_redis_so_many_commands() {
    Pair::run(async |pair| {
        let mut monitor = Monitor::of(&pair.redis).await;
        let keeper = pair.b.connect().await;
        let connect = [("HSET mg:clients", 1), ("HSET mg:client", 1)];
        monitor.sees("the first client", &[&connect[..], &[("SUBSCRIBE mg:all", 1)]].concat()).await;
        let client = pair.b.connect().await;
        monitor.sees("a further client", &connect).await;

        // A question to its node, and the answer: two messages between nodes, one where the node is asked itself.
        let id = &client.id;
        for (op, fields, expected) in [
            (
                "bindUid",
                json!({"client_id": id, "uid": "u"}),
                &[("HSET mg:clients", 1), ("HSET mg:client", 1), ("SADD mg:uid", 1), ("SUBSCRIBE mg:uid", 1)][..],
            ),
            (
                "bindUid",
                json!({"client_id": id, "uid": "v"}),
                &[
                    ("HSET mg:clients", 1),
                    ("HSET mg:client", 1),
                    ("SREM mg:uid", 1),
                    ("SADD mg:uid", 1),
                    ("UNSUBSCRIBE mg:uid", 1),
                    ("SUBSCRIBE mg:uid", 1),
                ],
            ),
            (
                "bindUid",
                json!({"client_id": id, "uid": "w", "single": true}),
                &[
                    ("HSET mg:clients", 1),
                    ("HSET mg:client", 1),
                    ("SREM mg:uid", 1),
                    ("EVAL mg:uid", 1),
                    ("UNSUBSCRIBE mg:uid", 1),
                    ("SUBSCRIBE mg:uid", 1),
                ],
            ),
            (
                "joinGroup",
                json!({"client_id": id, "group": "g"}),
                &[
                    ("HSET mg:clients", 1),
                    ("SADD mg:client:groups", 1),
                    ("SADD mg:group", 1),
                    ("SUBSCRIBE mg:group", 1),
                ],
            ),
            (
                "joinGroup",
                json!({"client_id": id, "group": ["h", "i", "j"]}),
                &[
                    ("HSET mg:clients", 1),
                    ("SADD mg:client:groups", 1),
                    ("SADD mg:group", 3),
                    ("SUBSCRIBE mg:group", 3),
                ],
            ),
            (
                "leaveGroup",
                json!({"client_id": id, "group": ["h", "i", "j"]}),
                &[
                    ("HSET mg:clients", 1),
                    ("SREM mg:client:groups", 1),
                    ("SREM mg:group", 3),
                    ("UNSUBSCRIBE mg:group", 3),
                ],
            ),
            ("setSession", json!({"client_id": id, "session": {"a": 1}}), &[("HSET mg:client", 1)]),
            ("updateSession", json!({"client_id": id, "session": {"b": 1}}), &[("HSET mg:client", 1)]),
            (
                "unbindUid",
                json!({"client_id": id}),
                &[("HSET mg:clients", 1), ("HDEL mg:client", 1), ("SREM mg:uid", 1), ("UNSUBSCRIBE mg:uid", 1)],
            ),
            (
                "bindUid",
                json!({"client_id": id, "uid": "u"}),
                &[("HSET mg:clients", 1), ("HSET mg:client", 1), ("SADD mg:uid", 1), ("SUBSCRIBE mg:uid", 1)],
            ),
        ] {
            pair.a.done(op, fields.clone()).await;
            monitor.sees(&format!("{op} {fields}"), &[expected, &[("PUBLISH mg.lan", 2)]].concat()).await;
        }
        pair.b.done("setSession", json!({"client_id": id, "session": {"c": 1}})).await;
        monitor.sees("a change at the client's own node", &[("HSET mg:client", 1), ("PUBLISH mg.lan", 1)]).await;

        drop(client);
        let gone = [
            ("SREM mg:uid", 1),
            ("SREM mg:group", 1),
            ("UNLINK mg:client", 1),
            ("HDEL mg:clients", 1),
            ("UNSUBSCRIBE mg:uid", 1),
            ("UNSUBSCRIBE mg:group", 1),
        ];
        monitor.sees("a client that went away", &gone).await;
        let client = pair.b.member("u", "g").await;
        monitor.so_far().await;
        pair.a.ask("closeClient", json!({"client_id": client.id})).await;
        monitor.sees("a client that is closed", &[&gone[..], &[("PUBLISH mg.lan", 2)]].concat()).await;
        drop(keeper);
        let last = [("UNLINK mg:client", 1), ("HDEL mg:clients", 1), ("UNSUBSCRIBE mg:all", 1)];
        monitor.sees("the last client", &last).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clients_at_once_share_their_commands_to_redis() {
    const CLIENTS: usize = 100;
    Pair::run(async |pair| {
        let mut monitor = Monitor::of(&pair.redis).await;
        let count = |seen: &Commands, name: &str| seen.get(name).copied().unwrap_or_default();
        let until = async |clients: usize| {
            eventually("all have come or gone", async || counted(&pair.b, "moongate_clients").await == clients as u64)
                .await;
        };

        // While Redis takes its time the first is on its way; all that come meanwhile are the next lot.
        pair.redis.pause().await;
        let clients = join_all((0..CLIENTS).map(|_| pair.b.connect_quietly("/"))).await;
        until(CLIENTS).await;
        pair.redis.resume();
        let mut clients = clients;
        join_all(clients.iter_mut().map(Client::welcomed)).await;
        let seen = monitor.so_far().await;
        assert_eq!(count(&seen, "HSET mg:client"), CLIENTS);
        assert!((1..=2).contains(&count(&seen, "HSET mg:clients")), "{seen:?}");
        assert_eq!((count(&seen, "SUBSCRIBE mg:all"), seen.len()), (1, 3), "{seen:?}");

        // A hundred binds in one message; each is done as soon as it can be.
        let commands: Vec<Value> =
            clients.iter().map(|client| json!({"op": "bindUid", "client_id": client.id, "uid": "u"})).collect();
        pair.say(json!({"op": "batch", "commands": commands})).await;
        let key = ["SCARD", "mg:uid:u:clients"];
        let bound = async || usize::try_from(pair.redis.command(&key).await.int()).unwrap();
        eventually("all are bound", async || bound().await == CLIENTS).await;
        let seen = monitor.so_far().await;
        assert_eq!(count(&seen, "HSET mg:client"), CLIENTS);
        let lots = count(&seen, "HSET mg:clients");
        assert!(lots <= CLIENTS / 2, "{seen:?}");
        assert_eq!((count(&seen, "SADD mg:uid"), count(&seen, "SUBSCRIBE mg:uid")), (lots, 1), "{seen:?}");

        // One command for all clients of a uid: one step in each shard.
        let shards = std::thread::available_parallelism().unwrap().get();
        pair.a.done("joinGroup", json!({"uid": "u", "group": "g"})).await;
        let seen = monitor.so_far().await;
        assert_eq!(count(&seen, "SADD mg:client:groups"), CLIENTS);
        let lots = count(&seen, "HSET mg:clients");
        assert!((1..=shards).contains(&lots), "{seen:?}");
        assert_eq!((count(&seen, "SADD mg:group"), count(&seen, "SUBSCRIBE mg:group")), (lots, 1), "{seen:?}");
        // Both nodes are asked, and the other one answers.
        assert_eq!((count(&seen, "PUBLISH mg.ask"), count(&seen, "PUBLISH mg.lan"), seen.len()), (1, 1, 6), "{seen:?}");

        pair.redis.pause().await;
        drop(clients);
        until(0).await;
        pair.redis.resume();
        eventually("all have left", async || pair.redis.keys("mg:client*").await.is_empty()).await;
        let seen = monitor.so_far().await;
        assert_eq!(count(&seen, "UNLINK mg:client"), CLIENTS);
        for shared in ["SREM mg:uid", "SREM mg:group", "HDEL mg:clients"] {
            assert!((1..=2).contains(&count(&seen, shared)), "{shared}: {seen:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_costs_one_publish_and_is_heard_once_by_each_node_that_holds_the_target_and_by_no_other() {
    const CLIENTS: usize = 100;
    Pair::run(async |pair| {
        let mut members = join_all((0..CLIENTS).map(|_| pair.b.member("u", "g"))).await;
        let mut monitor = Monitor::of(&pair.redis).await;
        let only_b = [0, 1];
        let mut round = async |here: bool, what: &str, nodes: [u64; 2], kind: &str, expected: &[(&str, usize)]| {
            let id = members[0].id.clone();
            let heard = async || {
                let mut heard = [0; 2];
                for (count, node) in heard.iter_mut().zip(pair.nodes()) {
                    *count = counted(node, &format!(r#"moongate_bus_heard_total{{kind="{kind}"}}"#)).await;
                }
                heard
            };
            monitor.so_far().await;
            let before = heard().await;
            let asked = if here { &pair.b } else { &pair.a };
            let (op, fields) = match what {
                "uid" => ("sendToUid", json!({"uid": "u", "message": what})),
                "group" => ("sendToGroup", json!({"group": "g", "message": what})),
                "all" => ("sendToAll", json!({"message": what})),
                "client" => ("sendToClient", json!({"client_id": id, "message": what})),
                "nobody" => ("sendToUid", json!({"uid": "nobody", "message": what})),
                "with exceptions" => ("sendToGroup", json!({"group": "g", "message": what, "exclude_uid": ["x"]})),
                "confirmed" => ("sendToGroup", json!({"group": "g", "message": what, "confirm": true})),
                "many" => ("sendToUid", json!({"uid": ["u", "nobody"], "message": what})),
                _ => ("publish", Value::Null),
            };
            if op == "publish" {
                assert_eq!(pair.publish("mg:group:g", what).await, 1);
            } else {
                asked.ask(op, fields).await;
            }
            monitor.sees(what, expected).await;
            let reached = match what {
                "client" => 1,
                "nobody" => 0,
                _ => CLIENTS,
            };
            for client in &mut members[..reached] {
                assert_eq!(client.text().await, what);
            }
            let after = heard().await;
            let heard = [after[0] - before[0], after[1] - before[1]];
            // Nodes greet each other where all are asked.
            let greeted = kind == "ask" && heard.iter().zip(nodes).all(|(heard, once)| *heard >= once);
            assert!(heard == nodes || greeted, "{what}: {heard:?}");
        };
        for here in [false, true] {
            round(here, "uid", only_b, "uid", &[("PUBLISH mg:uid", 1)]).await;
            round(here, "group", only_b, "group", &[("PUBLISH mg:group", 1)]).await;
            round(here, "all", only_b, "all", &[("PUBLISH mg:all", 1)]).await;
            round(here, "nobody", [0, 0], "uid", &[("PUBLISH mg:uid", 1)]).await;
            round(here, "with exceptions", only_b, "group", &[("PUBLISH mg:group", 1)]).await;
            // Whether the client is there is asked beside it.
            round(here, "client", only_b, "client", &[("PUBLISH mg:client", 1), ("EXISTS mg:client", 1)]).await;
            // The answer comes back; a node's answer to itself does not go through Redis.
            let answer = if here { &[][..] } else { &[("PUBLISH mg.lan", 1)] };
            round(here, "confirmed", only_b, "group", &[&[("PUBLISH mg:group", 1)], answer].concat()).await;
            // Each node says which of the many it holds: one answer comes from the other node.
            round(here, "many", [1, 1], "ask", &[("PUBLISH mg.ask", 1), ("PUBLISH mg.lan", 1)]).await;
        }
        // A foreign program's own publish is the only command.
        round(false, "published", only_b, "group", &[("PUBLISH mg:group", 1)]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_nothing_cost_redis_nothing() {
    const CLIENTS: usize = 200;
    const BEATS: u64 = 12;
    Pair::run(async |pair| {
        // What Redis is asked in so many beats, by command.
        let growth = async || {
            let evals = |stats: &BTreeMap<String, u64>| stats.get("eval").copied().unwrap_or_default();
            let before = pair.redis.commandstats().await;
            let mut after = soon("beats", async {
                loop {
                    let after = pair.redis.commandstats().await;
                    if evals(&after) >= evals(&before) + BEATS {
                        break after;
                    }
                }
            })
            .await;
            after.remove("info");
            for (name, calls) in &mut after {
                *calls -= before.get(name).copied().unwrap_or_default();
            }
            after
        };
        let alone = growth().await;
        let members = join_all((0..CLIENTS).map(|number| {
            let node = pair.nodes()[number % 2];
            async move { node.member(&format!("u{number}"), &format!("g{}", number % 10)).await }
        }))
        .await;
        let crowded = growth().await;
        for name in alone.keys().chain(crowded.keys()) {
            let [without, with] = [&alone, &crowded].map(|growth| growth.get(name).copied().unwrap_or_default());
            // A beat, or a node's telling of its counts, may be on either side of the end.
            assert!(without.abs_diff(with) < 10, "{name}: {without} without, {with} with {CLIENTS} clients");
        }
        drop(members);
    })
    .await;
}

// --- bad input ------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_any_channel_is_counted_and_harms_nobody() {
    const PIECES: usize = 150;
    // Headers of nothing that there is.
    const HEADERS: [&str; 10] = [
        r#"{"do":{"ungroup":{}}}"#,
        r#"{"do":{"change":{"client_id":"x","changes":[]}}}"#,
        r#"{"do":{"send":{"to":{"uids":[7.5]}}}}"#,
        r#"{"do":[],"until":"x"}"#,
        r#"{"do":{"send":{"to":"all"}},"until":1}"#,
        r#"{"do":"#,
        r#"{"beat":"x"}"#,
        r#"{"node":{"id":7}}"#,
        "7",
        "",
    ];
    Pair::run(async |pair| {
        let (mut bystander, mut target) = (pair.b.member("bystander", "quiet").await, pair.b.member("u", "g").await);
        let (mut random, mut program) = (Random(7), pair.redis.connection().await);
        let (client, lan) = (format!("mg:client:{}", target.id), lan_channel(&target));
        let mut lost = [0, 0];
        for (channel, is_target, nodes) in [
            ("mg:uid:u", true, 1),
            ("mg:group:g", true, 1),
            (&client, true, 1),
            ("mg:all", true, 1),
            ("mg:cmd", false, 2),
            ("mg.ask", false, 2),
            (&lan, false, 1),
        ] {
            let mut messages = Vec::new();
            for piece in 0..PIECES {
                let length = random.next() as usize % 200;
                let bytes = random.bytes(length);
                let payload = match piece % 3 {
                    0 => bytes,
                    // The length of the header may be right; it is no JSON.
                    1 => [&MAGIC[..], &[0, 0, 0], &bytes].concat(),
                    _ => envelope(HEADERS[piece / 3 % HEADERS.len()], &bytes),
                };
                assert_eq!(program.publish(channel, &payload).await, nodes, "{channel}");
                if is_target && piece % 3 == 0 {
                    messages.push(frame(&payload));
                } else {
                    lost[1] += 1;
                    lost[0] += u64::from(nodes == 2);
                }
            }
            // What is no envelope is a message, whatever it says; and nothing else is.
            for message in messages {
                assert_eq!(target.next().await.as_ref(), Some(&message), "{channel}");
                if channel == "mg:all" {
                    assert_eq!(bystander.next().await, Some(message));
                }
            }
            target.heard_nothing(&pair.a).await;
            bystander.heard_nothing(&pair.a).await;
            eventually("all is counted", async || counted(&pair.a, LOST).await == lost[0]).await;
            assert_eq!(counted(&pair.b, LOST).await, lost[1], "{channel}");
        }
        for node in pair.nodes() {
            assert_eq!(node.ready().await.0, 200);
            node.done("bindUid", json!({"client_id": bystander.id, "uid": "well"})).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_meets_a_newer_envelope_says_so_and_is_not_ready_and_serves_its_clients() {
    Pair::run(async |pair| {
        let mut client = pair.a.member("u", "g").await;
        // On a target's channel anybody may speak: it is garbage there, and no news of a newer node.
        for unknown in [r#"{"dance":1}"#, r#"{"do":{"dance":1}}"#] {
            assert_eq!(pair.publish("mg:uid:u", envelope(unknown, b"")).await, 1);
        }
        client.heard_nothing(&pair.b).await;
        assert_eq!((pair.a.ready().await.0, pair.b.ready().await.0), (200, 200));

        assert_eq!(pair.publish(&lan_channel(&client), envelope(r#"{"do":{"dance":1}}"#, b"")).await, 1);
        eventually("the node is not ready", async || pair.a.ready().await.0 == 503).await;
        assert_eq!(pair.b.ready().await.0, 200);
        assert_eq!(pair.publish("mg.ask", envelope(r#"{"dance":1}"#, b"")).await, 2);
        for node in pair.nodes() {
            eventually("no node is ready", async || node.ready().await.0 == 503).await;
            let (_, why) = node.ready().await;
            assert!(why.contains("newer"), "{why}");
            assert!(counted(node, r#"moongate_bus_lost_total{reason="unknown"}"#).await > 0);
        }
        // That is news for the balancer; who comes all the same is served as ever.
        assert_eq!(pair.publish("mg:uid:u", "still here").await, 1);
        assert_eq!(client.text().await, "still here");
        for round in 0..50 {
            let late = pair.b.connect().await;
            assert_eq!(pair.a.ask("isOnline", json!({"client_id": late.id})).await, json!(true), "round {round}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_targets_channel_an_envelope_can_only_be_a_send_to_this_target() {
    Pair::run(async |pair| {
        let (mut ann, mut bob) = (pair.b.member("ann", "red").await, pair.b.member("bob", "blue").await);
        let id = ann.id.clone();
        let change =
            json!({"do": {"change": {"client_id": id, "changes": [{"bind": {"uid": "eve", "single": false}}]}}});
        let forged = [
            change.clone(),
            json!({"do": {"close": {"client_id": id, "code": 4000, "reason": "closed"}}}),
            json!({"do": {"destroy": {"client_id": id}}}),
            json!({"do": {"close_uids": {"uids": ["ann", "bob"], "code": 4000, "reason": "closed"}}}),
            json!({"do": {"replace": {"client_id": id, "uid": "ann"}}}),
            json!({"do": {"join_uid": {"uid": "ann", "groups": ["blue"]}}}),
            json!({"do": {"leave_uid": {"uid": "ann", "groups": ["red"]}}}),
            json!({"do": {"ungroup": {"group": "red"}}}),
        ];
        let before = pair.state().await;
        let channels = ["mg:uid:ann", "mg:group:red", "mg:all", &format!("mg:client:{id}")];
        for channel in channels {
            for header in &forged {
                assert_eq!(pair.publish(channel, envelope(&header.to_string(), b"")).await, 1);
            }
            // And on the commands' channel an envelope is none at all.
            assert_eq!(pair.publish("mg:cmd", envelope(&forged[0].to_string(), b"")).await, 2);
        }
        for client in [&mut ann, &mut bob] {
            client.heard_nothing(&pair.a).await;
        }
        assert_eq!(pair.state().await, before);
        let lost = (channels.len() * (forged.len() + 1)) as u64;
        assert_eq!(counted(&pair.b, r#"moongate_bus_lost_total{reason="garbage"}"#).await, lost);

        // A send goes to whom the channel names, whatever it says itself.
        for target in
            [json!("all"), json!({"uids": ["bob"]}), json!({"clients": [bob.id]}), json!({"groups": ["blue"]})]
        {
            let send = json!({"do": {"send": {"to": target, "binary": true}}}).to_string();
            assert_eq!(pair.publish("mg:uid:ann", envelope(&send, b"hi")).await, 1);
            assert_eq!(ann.next().await, Some(Message::binary(&b"hi"[..])));
        }
        bob.heard_nothing(&pair.a).await;

        // These are envelopes indeed: where nodes speak to each other they work.
        assert_eq!(pair.publish(&lan_channel(&ann), envelope(&change.to_string(), b"")).await, 1);
        let of_ann = json!({"client_id": id});
        eventually("it is bound", async || pair.a.ask("getUidByClientId", of_ann.clone()).await == json!("eve")).await;
        assert_eq!(pair.publish("mg.ask", envelope(&forged[7].to_string(), b"")).await, 2);
        let red = json!({"group": "red"});
        eventually("it has left", async || pair.a.ask("getClientIdCountByGroup", red.clone()).await == json!(0)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_of_30_mib_is_refused_and_the_nodes_go_on() {
    // As much as Redis passes on.
    let arguments = ["--client-output-buffer-limit", "pubsub 256mb 256mb 0"];
    Pair::run_with(&arguments, async |pair| {
        let mut clients = [pair.a.member("u", "g").await, pair.b.member("u", "g").await];
        let huge = vec![b'x'; 30 * MEBIBYTE];
        let sealed = envelope(r#"{"do":{"send":{"to":"all"}}}"#, &huge);
        let command = format!(r#"{{"op":"sendToUid","uid":"u","message":"{}"}}"#, "x".repeat(30 * MEBIBYTE));
        let payloads = [
            ("mg:uid:u", &huge[..]),
            ("mg:group:g", &huge),
            ("mg:all", &sealed),
            ("mg:cmd", command.as_bytes()),
            ("mg.ask", &sealed),
        ];
        for (count, (channel, payload)) in payloads.into_iter().enumerate() {
            assert_eq!(pair.publish(channel, payload).await, 2, "{channel}");
            // What comes behind it arrives.
            assert_eq!(pair.publish("mg:uid:u", channel).await, 2);
            for (client, node) in clients.iter_mut().zip(pair.nodes()) {
                assert_eq!(client.text().await, channel);
                let refused = counted(node, r#"moongate_bus_lost_total{reason="too_large"}"#).await;
                assert_eq!(refused, (count + 1) as u64, "{channel}");
            }
        }
        for (client, node) in clients.iter_mut().zip(pair.nodes()) {
            client.heard_nothing(node).await;
            assert_eq!(counted(node, "moongate_bus_gaps_total").await, 0);
            assert_eq!(node.ready().await.0, 200);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_redis_cuts_off_for_a_payload_of_30_mib_are_back_by_themselves_and_count_the_gap() {
    Pair::run(async |pair| {
        let mut clients = [pair.a.member("u", "g").await, pair.b.member("u", "g").await];
        // Redis makes room for 32 MiB, which is more than it lets wait for a subscriber.
        assert_eq!(pair.publish("mg:group:g", vec![b'x'; 30 * MEBIBYTE]).await, 2);
        for node in pair.nodes() {
            eventually("the gap is counted", async || counted(node, "moongate_bus_gaps_total").await == 1).await;
            assert!(node.metric("moongate_bus_gap_seconds_total").await > 0.0);
            eventually("the node is ready", async || node.ready().await.0 == 200).await;
        }
        assert_eq!(pair.publish("mg:uid:u", "back").await, 2);
        for (client, node) in clients.iter_mut().zip(pair.nodes()) {
            assert_eq!(client.text().await, "back");
            client.heard_nothing(node).await;
            node.done("bindUid", json!({"client_id": client.id, "uid": "v"})).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_a_wrong_type_is_a_typed_error_for_whom_it_concerns_and_harms_nobody_else() {
    Pair::run(async |pair| {
        let (mut other, mut client) = (pair.b.member("other", "others").await, pair.b.connect().await);
        let spoil = async |key: &str| {
            pair.redis.command(&["UNLINK", key]).await;
            assert_eq!(pair.redis.command(&["SET", key, "x"]).await, Reply::text("OK"));
        };
        let unavailable = (503, "redis_unavailable".to_owned());
        let id = client.id.clone();
        for (node, name) in pair.nodes().into_iter().zip(["one", "two"]) {
            let (single, both) = (format!("single {name}"), json!({"uid": [name, "other"]}));
            for key in [format!("uid:{name}"), format!("uid:{single}"), format!("group:{name}")] {
                spoil(&format!("mg:{key}:clients")).await;
            }
            assert_eq!(node.refused("bindUid", json!({"client_id": id, "uid": name})).await, unavailable);
            let fields = json!({"client_id": id, "uid": single, "single": true});
            assert_eq!(node.refused("bindUid", fields).await, unavailable);
            assert_eq!(node.refused("joinGroup", json!({"client_id": id, "group": name})).await, unavailable);
            assert_eq!(node.refused("getClientIdByUid", json!({"uid": name})).await, unavailable);
            assert_eq!(node.refused("isUidsOnline", both).await, unavailable);
            assert_eq!(node.refused("getClientIdListByGroup", json!({"group": name})).await, unavailable);
            // Others, and other names, are as ever.
            node.done("bindUid", json!({"client_id": other.id, "uid": "43"})).await;
            assert_eq!(node.ask("getClientIdByUid", json!({"uid": "43"})).await, json!([other.id]));
            node.done("joinGroup", json!({"client_id": other.id, "group": "fine"})).await;
            assert_eq!(node.ask("isUidsOnline", json!({"uid": ["43", "44"]})).await, json!({"43": true, "44": false}));
            node.done("bindUid", json!({"client_id": other.id, "uid": "other"})).await;
            node.done("leaveGroup", json!({"client_id": other.id, "group": "fine"})).await;
        }
        assert!(counted(&pair.b, "moongate_directory_refused_total").await > 0);
        node_is_well(pair, &mut [&mut other, &mut client]).await;
        drop(std::mem::replace(&mut client, pair.b.connect().await));

        // A client's own keys.
        let id = client.id.clone();
        pair.a.done("joinGroup", json!({"client_id": id, "group": "g"})).await;
        spoil(&format!("mg:client:{id}")).await;
        spoil(&format!("mg:client:{id}:groups")).await;
        assert_eq!(pair.a.refused("setSession", json!({"client_id": id, "session": {"a": 1}})).await, unavailable);
        assert_eq!(pair.a.refused("getSession", json!({"client_id": id})).await, unavailable);
        assert_eq!(pair.a.refused("joinGroup", json!({"client_id": id, "group": "h"})).await, unavailable);
        node_is_well(pair, &mut [&mut other]).await;
        // Whatever stood under its names goes with it.
        drop(client);
        eventually("it has left", async || pair.redis.keys("mg:client:*").await.len() == 2).await;
        let spoilt =
            &pair.redis.keys("mg:*:clients").await - &names(&["mg:uid:other:clients", "mg:group:others:clients"]);
        assert_eq!(spoilt.len(), 6);
        for key in &spoilt {
            assert_eq!(pair.redis.command(&["GET", key]).await, Reply::text("x"), "{key}");
            pair.redis.command(&["UNLINK", key]).await;
        }
        for node in pair.nodes() {
            assert_eq!(node.ready().await.0, 200);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_redis_refuses_spoils_nobody_elses_in_the_same_moment() {
    const ROUNDS: usize = 100;
    Pair::run(async |pair| {
        let (client, other) = (pair.b.connect().await, pair.b.member("other", "others").await);
        let (mut a, mut b) = (pair.a.caller().await, pair.b.caller().await);
        let mut spoilt = 0;
        for round in 0..ROUNDS {
            let (name, group) = (format!("u{round}"), format!("g{round}"));
            pair.redis.command(&["SET", &format!("mg:uid:{name}:clients"), "x"]).await;
            let (refused, done) = tokio::join!(
                a.call("bindUid", json!({"client_id": client.id, "uid": name})),
                b.call("joinGroup", json!({"uid": "other", "group": group})),
            );
            assert_eq!(refused["code"], "redis_unavailable", "{refused}");
            spoilt += usize::from(done["result"] != json!(true));
            let members = pair.a.ask("getClientIdListByGroup", json!({"group": group})).await;
            assert_eq!(members, json!([other.id]), "{round}");
            pair.redis.command(&["UNLINK", &format!("mg:uid:{name}:clients")]).await;
        }
        assert_eq!(spoilt, 0, "of {ROUNDS} joins of another client so many were refused");
    })
    .await;
}

/// Messages arrive, and changes are done.
async fn node_is_well(pair: &Pair, clients: &mut [&mut Client]) {
    for client in clients {
        pair.a.done("joinGroup", json!({"client_id": client.id, "group": "well"})).await;
        assert_eq!(pair.publish("mg:group:well", "well?").await, 1);
        assert_eq!(client.text().await, "well?");
        pair.a.done("leaveGroup", json!({"client_id": client.id, "group": "well"})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_redis_refused_is_not_true_when_it_is_said_again_and_is_done_when_redis_takes_it() {
    Pair::run(async |pair| {
        let mut client = pair.b.connect().await;
        let id = client.id.clone();
        let changes = [
            ("bindUid", json!({"client_id": id, "uid": "42"}), "mg:uid:42"),
            ("joinGroup", json!({"client_id": id, "group": "g"}), "mg:group:g"),
        ];
        for (op, fields, channel) in &changes {
            let key = format!("{channel}:clients");
            pair.redis.command(&["SET", &key, "x"]).await;
            for _ in 0..3 {
                let refused = pair.a.refused(op, fields.clone()).await;
                assert_eq!(refused, (503, "redis_unavailable".to_owned()), "{op}");
            }
            pair.redis.command(&["UNLINK", &key]).await;
            // Changes may be repeated.
            pair.a.done(op, fields.clone()).await;
            assert_eq!(pair.redis.command(&["SMEMBERS", &key]).await.names(), [id.clone()].into(), "{op}");
            assert_eq!(pair.publish(channel, *channel).await, 1);
            assert_eq!(client.text().await, *channel);
        }
        assert_eq!(pair.a.ask("isUidOnline", json!({"uid": "42"})).await, json!(true));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_of_a_client_is_there_again_when_its_change_is_said_again() {
    Pair::run(async |pair| {
        let mut client = pair.b.member("u", "g").await;
        let id = client.id.clone();
        let state = pair.state().await;
        for key in ["mg:uid:u:clients", "mg:group:g:clients", &format!("mg:client:{id}:groups")] {
            assert_eq!(pair.redis.command(&["DEL", key]).await, Reply::Int(1), "{key}");
            // Messages find it all the same: the node knows.
            for channel in ["mg:uid:u", "mg:group:g"] {
                assert_eq!(pair.publish(channel, key).await, 1);
                assert_eq!(client.text().await, key);
            }
            pair.a.done("bindUid", json!({"client_id": id, "uid": "u"})).await;
            pair.a.done("joinGroup", json!({"client_id": id, "group": "g"})).await;
            assert_eq!(pair.state().await, state, "{key}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_key_of_a_wrong_type_stops_changes_with_a_typed_error_until_it_is_mended() {
    Pair::run(async |pair| {
        let mut client = pair.b.member("u", "g").await;
        for key in ["mg:nodes", "{mg:nodes}:runs", "{mg:nodes}:lan", "{mg:nodes}:swept"] {
            let kept = pair.redis.command(&["COPY", key, "kept"]).await;
            pair.redis.command(&["SET", key, "x"]).await;
            // Two beats and more: the nodes have met it.
            let before = pair.redis.commandstats().await["eval"];
            eventually("beats", async || pair.redis.commandstats().await["eval"] >= before + 6).await;
            assert_eq!(pair.publish("mg:uid:u", "still here").await, 1, "{key}");
            assert_eq!(client.text().await, "still here");
            assert_eq!(client.id.len(), 20);
            pair.redis.command(&["UNLINK", key]).await;
            if kept == Reply::Int(1) {
                pair.redis.command(&["RENAME", "kept", key]).await;
            }
            eventually("both nodes have a lease", async || pair.node_ids().await.len() == 2).await;
            for node in pair.nodes() {
                eventually("the node is ready", async || node.ready().await.0 == 200).await;
                node.done("bindUid", json!({"client_id": client.id, "uid": "v"})).await;
                node.done("bindUid", json!({"client_id": client.id, "uid": "u"})).await;
                assert_eq!(counted(node, "moongate_fenced_total").await, 0, "{key}");
            }
        }
        client.heard_nothing(&pair.a).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_under_the_nodes_is_written_again_by_themselves() {
    Pair::run(async |pair| {
        let mut clients =
            [pair.a.member("ann", "red").await, pair.b.member("ann", "red").await, pair.b.connect().await];
        for client in &clients {
            pair.a.done("setSession", json!({"client_id": client.id, "session": {"of": client.id}})).await;
        }
        let state = pair.state().await;
        let both = pair.node_ids().await;
        for way in ["FLUSHALL", "FLUSHDB", "DEL"] {
            if way == "DEL" {
                for key in pair.redis.keys("*").await {
                    pair.redis.command(&["DEL", &key]).await;
                }
            } else {
                assert_eq!(pair.redis.command(&[way]).await, Reply::text("OK"));
            }
            eventually("all is there again", async || pair.state().await == state).await;
            eventually("so are the nodes", async || pair.node_ids().await == both).await;
            assert_eq!(pair.publish("mg:uid:ann", way).await, 2);
            for client in &mut clients[..2] {
                assert_eq!(client.text().await, way);
            }
        }
        // Everything but the leases.
        for client in &mut clients {
            client.heard_nothing(&pair.b).await;
        }
        for node in pair.nodes() {
            assert_eq!(node.ready().await.0, 200);
            assert_eq!(counted(node, "moongate_disconnections_total").await, 0);
            node.done("bindUid", json!({"client_id": clients[2].id, "uid": "bob"})).await;
        }
        eventually("the nodes' hashes are there again", async || pair.redis.keys("mg:node:*").await.len() == 2).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_clients_that_was_deleted_is_there_again_within_seconds() {
    Pair::run(async |pair| {
        let _clients = [pair.a.member("ann", "red").await, pair.b.member("bob", "red").await, pair.b.connect().await];
        let state = pair.state().await;
        // A node's own notes of whom to sweep, and what listings and counts are answered from.
        for index in pair.redis.keys("mg:clients:*").await {
            assert_eq!(pair.redis.command(&["DEL", &index]).await, Reply::Int(1));
        }
        eventually("all is there again", async || pair.state().await == state).await;
        assert_eq!(pair.a.ask("getAllClientIdCount", json!({})).await, json!(3));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_sessions_that_read_like_redis_own_messages_confuse_nobody() {
    const WORDS: [&str; 8] =
        ["subscribe", "message", "pmessage", "smessage", "unsubscribe", "psubscribe", "ssubscribe", "invalidate"];
    Pair::run(async |pair| {
        // A node of such a name is a foreigner to nobody.
        let url = pair.redis.url();
        let third = Node::start_with(&[("MOONGATE_REDIS_URL", &*url), ("MOONGATE_NODE_ID", "message")]).await;
        let third = third.until_ready().await;
        let others = [third.member("x", "y").await, pair.b.member("x", "y").await, pair.a.member("x", "y").await];
        let mut clients = Vec::new();
        for (place, word) in WORDS.iter().enumerate() {
            let client = pair.nodes()[place % 2].connect().await;
            let id = &client.id;
            let bind = json!({"client_id": id, "uid": word, "single": place % 3 == 0});
            pair.a.done("bindUid", bind).await;
            pair.b.done("joinGroup", json!({"client_id": id, "group": [word, "x", "y"]})).await;
            let session = json!({"subscribe": word, "message": ["subscribe", "x", "y"]});
            pair.a.done("setSession", json!({"client_id": id, "session": session})).await;
            clients.push(client);
        }
        for node in [&pair.a, &pair.b, &third] {
            let rounds = WORDS.iter().zip(&clients).map(async |(word, client)| {
                let (id, of_word) = (&client.id, json!({"uid": word}));
                let in_group = json!({"group": word});
                let session = json!({"subscribe": word, "message": ["subscribe", "x", "y"]});
                // Three others beside each, on the same connection to Redis.
                let beside = async {
                    for _ in 0..3 {
                        assert_eq!(node.ask("getClientIdCountByGroup", json!({"group": "y"})).await, json!(11));
                        assert_eq!(node.ask("getSession", json!({"client_id": others[0].id})).await, json!({}));
                        assert_eq!(node.ask("getUidByClientId", json!({"client_id": others[1].id})).await, json!("x"));
                    }
                };
                let poisonous = async {
                    assert_eq!(node.ask("getUidByClientId", json!({"client_id": id})).await, json!(word));
                    assert_eq!(node.ask("getSession", json!({"client_id": id})).await, session);
                    assert_eq!(node.ask("getClientIdByUid", of_word.clone()).await, json!([id]));
                    assert_eq!(node.ask("getUidListByGroup", in_group.clone()).await, json!([word]));
                    assert_eq!(node.ask("getClientSessionsByGroup", in_group.clone()).await, json!({id: session}));
                    assert_eq!(node.ask("getAllUidCount", json!({})).await, json!(WORDS.len() + 1));
                    let groups = node.ask("getAllGroupIdList", json!({})).await;
                    assert_eq!(groups.as_array().unwrap().len(), WORDS.len() + 2);
                };
                tokio::join!(beside, poisonous);
            });
            join_all(rounds).await;
            assert_eq!(counted(node, "moongate_redis_up").await, 1);
        }
        for (word, client) in WORDS.iter().zip(&mut clients) {
            for channel in [format!("mg:uid:{word}"), format!("mg:group:{word}")] {
                assert_eq!(pair.publish(&channel, *word).await, 1);
                assert_eq!(client.text().await, *word);
            }
        }
        // No connection was given up for it.
        for node in [&pair.a, &pair.b, &third] {
            assert_eq!(counted(node, "moongate_bus_gaps_total").await, 0);
            assert_eq!(counted(node, "moongate_directory_retries_total").await, 0);
        }
        drop((others, clients));
        third.stop();
        third.stopped().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_another_database_of_the_same_redis_is_counted_as_foreign_and_both_go_on() {
    let redis = Redis::start().await;
    let urls = [redis.tcp_url(), format!("{}/1", redis.tcp_url())];
    let mut nodes = Vec::new();
    for (url, port) in urls.iter().zip(["2900", "2950"]) {
        let settings = [("MOONGATE_REDIS_URL", &**url), ("MOONGATE_NODE_TTL", "2s"), ("MOONGATE_LAN_PORT", port)];
        nodes.push(Node::start_with(&settings).await.until_ready().await);
    }
    let mut clients = Vec::new();
    for node in &nodes {
        clients.push(node.member("u", "g").await);
    }
    for node in &nodes {
        eventually("the other is noticed", async || counted(node, "moongate_foreign_nodes_total").await > 0).await;
    }
    for (node, client) in nodes.iter().zip(&mut clients) {
        assert_eq!(node.ready().await.0, 200);
        assert_eq!(node.ask("getAllClientIdList", json!({})).await, json!([client.id]));
        node.done("bindUid", json!({"client_id": client.id, "uid": "v"})).await;
        node.ask("sendToClient", json!({"client_id": client.id, "message": "hello"})).await;
        assert_eq!(client.text().await, "hello");
        assert_eq!(counted(node, "moongate_swept_nodes_total").await, 0);
    }
    drop(clients);
    for node in nodes {
        node.stop();
        assert_eq!(node.stopped().await, 0);
    }
    for database in ["0", "1"] {
        let mut program = redis.connection().await;
        program.command(&["SELECT", database]).await;
        assert_eq!(program.command(&["DBSIZE"]).await, Reply::Int(0));
    }
}
