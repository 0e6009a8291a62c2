//! The recorded conversations again, with a node in the place of PHP's gateway: byte for byte where an order or a number
//! is PHP's own choice, by meaning where it is not.

use std::collections::{BTreeMap, HashMap};

use super::timeline;
use super::vectors::{self, Ids};
use super::{
    BIND_UID, Browser, CLIENTS_OF_UID, COUNT, IS_ONLINE, JOIN_GROUP, LEAVE_GROUP, PHP, Peer, SELECT, SEND_TO_ONE,
    SET_SESSION, connection, inner_address, packet,
};
use crate::harness::{Node, eventually};
use crate::redis::Redis;
use serde_json::Value;

// --- one command and what comes of it ---

/// One of the two nodes of a recorded case.
struct Home {
    node: Node,
    inner: std::net::SocketAddr,
    clients: BTreeMap<String, Browser>,
    ids: Ids,
}

impl Home {
    /// As the recording begins.
    async fn prepare(&mut self, state: &Value) {
        let mut setup = Peer::connect(self.inner).await;
        for client in state["clients"].as_array().unwrap() {
            let connected = Browser::connect(&self.node).await;
            let id = connection(&connected.id);
            self.ids.insert(client["connection_id"].as_u64().unwrap() as u32, id);
            if client["groups"].as_array().is_some_and(Vec::is_empty) {
                setup.send(&packet(JOIN_GROUP, id, b"(left)", b"")).await;
                setup.send(&packet(LEAVE_GROUP, id, b"(left)", b"")).await;
            }
            let session = vectors::bytes(&client["session"]);
            if !session.is_empty() {
                setup.send(&packet(SET_SESSION, id, &session, b"")).await;
            }
            self.clients.insert(client["name"].as_str().unwrap().to_owned(), connected);
        }
        for (kind, command) in [("uids", BIND_UID), ("groups", JOIN_GROUP)] {
            for entry in state[kind].as_array().unwrap() {
                let name = entry["id"].as_str().unwrap();
                for member in entry["members"].as_array().unwrap() {
                    let id = self.ids[&(member.as_u64().unwrap() as u32)];
                    setup.send(&packet(command, id, name.as_bytes(), b"")).await;
                }
            }
        }
        setup.ask(IS_ONLINE, 0, b"").await;
    }

    /// What its clients are, by the name of each.
    async fn state(&self) -> BTreeMap<u32, String> {
        let mut peer = Peer::connect(self.inner).await;
        peer.send(&packet(SELECT, 0, br#"{"fields":["uid","groups","session"]}"#, b"")).await;
        let answer = peer.answer().await;
        let moongate::php::serialize::Value::Array(entries) = moongate::php::serialize::parse(&answer).unwrap() else {
            panic!("{}", answer.escape_ascii())
        };
        let state = entries.iter().map(|(id, client)| {
            let moongate::php::serialize::Key::Int(id) = id else { panic!("{id:?}") };
            (*id as u32, format!("{client:?}"))
        });
        state.collect()
    }
}

/// What the state of a node is to be, written as PHP would answer it.
fn expected_state(state: &Value, ids: &Ids) -> BTreeMap<u32, String> {
    let quoted = |text: &[u8]| [format!("s:{}:\"", text.len()).as_bytes(), text, b"\";"].concat();
    let key = |name: &str| match name.parse::<i64>() {
        Ok(number) if number.to_string() == name => format!("i:{number};").into_bytes(),
        _ => quoted(name.as_bytes()),
    };
    let clients = state["clients"].as_array().unwrap().iter().map(|client| {
        let uid = client["uid"].as_str().map_or(b"N;".to_vec(), |uid| quoted(uid.as_bytes()));
        let groups = client["groups"].as_array().map_or(b"N;".to_vec(), |groups| {
            let entry =
                |group: &Value| [key(group.as_str().unwrap()), quoted(group.as_str().unwrap().as_bytes())].concat();
            let entries: Vec<u8> = groups.iter().flat_map(entry).collect();
            [format!("a:{}:{{", groups.len()).as_bytes(), &entries, b"}"].concat()
        });
        let session = quoted(&vectors::bytes(&client["session"]));
        let all =
            [b"a:3:{", &quoted(b"uid")[..], &uid, &quoted(b"groups"), &groups, &quoted(b"session"), &session, b"}"]
                .concat();
        let value = moongate::php::serialize::parse(&all).unwrap();
        (vectors::translated(ids, client["connection_id"].as_u64().unwrap() as u32), format!("{value:?}"))
    });
    clients.collect()
}

async fn replay_cases(file: &str, redis: Option<&Redis>) {
    let url = redis.map(Redis::url);
    let settings: Vec<(&str, &str)> =
        PHP.iter().copied().chain(url.as_deref().map(|url| ("MOONGATE_REDIS_URL", url))).collect();
    let mut homes = HashMap::new();
    for name in ["A", "B"] {
        let node = Node::start_with(&settings).await.until_ready().await;
        let client = node.connect().await;
        let inner = inner_address(&client.id);
        drop(client);
        homes.insert(name, Home { node, inner, clients: BTreeMap::new(), ids: Ids::new() });
    }
    for case in vectors::load(file)["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        for home in homes.values_mut() {
            let node = &home.node;
            eventually("the clients before have left", async || {
                Peer::connect(home.inner).await.ask(COUNT, 0, b"").await == "i:0;"
                    && node.metric("moongate_clients").await == 0.0
            })
            .await;
        }
        for state in case["state_before"].as_array().unwrap() {
            homes.get_mut(state["name"].as_str().unwrap()).unwrap().prepare(state).await;
        }
        for exchange in case["exchanges"].as_array().unwrap() {
            let Some(home) = exchange["to"].as_str().unwrap().strip_prefix("gateway ").map(|name| &homes[name]) else {
                continue;
            };
            let mut caller = Peer::connect(home.inner).await;
            let packets: Vec<Vec<u8>> = exchange["packets"].as_array().unwrap().iter().map(vectors::bytes).collect();
            for recorded in &packets {
                caller.send(&vectors::packet(recorded, &home.ids)).await;
            }
            let questions = packets.iter().filter(|packet| packet[4] != 202);
            for (reply, question) in exchange["replies"].as_array().into_iter().flatten().zip(questions) {
                let expected = vectors::meaning(question[4], &vectors::bytes(reply)[4..], Some(&home.ids));
                let answer = caller.answer().await;
                assert_eq!(vectors::meaning(question[4], &answer, None), expected, "{name}");
            }
        }
        let deliveries: HashMap<&str, &Value> = case["deliveries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|delivery| (delivery["client"].as_str().unwrap(), delivery))
            .collect();
        for home in homes.values_mut() {
            let mut caller = Peer::connect(home.inner).await;
            for (client, socket) in &mut home.clients {
                let delivery = deliveries.get(&**client);
                for frame in delivery.into_iter().flat_map(|delivery| delivery["frames"].as_array().unwrap()) {
                    let expected = (frame["opcode"].as_u64().unwrap() as u8, vectors::bytes(&frame["payload"]));
                    assert_eq!(socket.frame().await, Some(expected), "{name}: {client}");
                }
                if delivery.is_some_and(|delivery| delivery["tcp_closed"] == true) {
                    socket.has_ended().await;
                } else {
                    caller.send(&packet(SEND_TO_ONE, connection(&socket.id), b"", b"(probe)")).await;
                    assert_eq!(socket.frame().await, Some((1, b"(probe)".to_vec())), "{name}: {client}");
                }
            }
        }
        let after = if case["state_after"] == "unchanged" { &case["state_before"] } else { &case["state_after"] };
        for state in after.as_array().unwrap() {
            let home = &homes[state["name"].as_str().unwrap()];
            assert_eq!(home.state().await, expected_state(state, &home.ids), "{name}");
            let mut peer = Peer::connect(home.inner).await;
            for uid in state["uids"].as_array().unwrap() {
                let ids = uid["members"].as_array().unwrap().iter().map(|id| home.ids[&(id.as_u64().unwrap() as u32)]);
                let mut expected: Vec<u32> = ids.collect();
                expected.sort_unstable();
                peer.send(&packet(CLIENTS_OF_UID, 0, uid["id"].as_str().unwrap().as_bytes(), b"")).await;
                let found = vectors::meaning(CLIENTS_OF_UID, &peer.answer().await, None);
                assert_eq!(found, format!("{expected:?}"), "{name}");
            }
        }
        for home in homes.values_mut() {
            (home.clients, home.ids) = (BTreeMap::new(), Ids::new());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_of_phps_client_has_the_recorded_effect_on_nodes_that_are_alone() {
    for file in vectors::names("client_api") {
        Box::pin(replay_cases(&file, None)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_of_phps_client_has_the_recorded_effect_on_nodes_of_a_cluster() {
    let redis = Redis::start().await;
    for file in vectors::names("client_api") {
        Box::pin(replay_cases(&file, Some(&redis))).await;
    }
}

/// Each recorded conversation is a test of its own.
macro_rules! conversations {
    ($($folder:ident { $($name:ident)* })*) => {$(
        mod $folder {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    Box::pin(super::timeline::replay(concat!(stringify!($folder), "/", stringify!($name), ".json"))).await;
                }
            )*

            #[test]
            fn all_are_replayed() {
                let mut replayed = vec![$(concat!(stringify!($folder), "/", stringify!($name), ".json")),*];
                replayed.extend(super::LEFT_OUT);
                for name in super::vectors::names(stringify!($folder)) {
                    assert!(replayed.contains(&&*name), "{name}");
                }
            }
        }
    )*};
}

/// What a node does otherwise; the tests beside these say how.
const LEFT_OUT: &[&str] = &[
    "events/keepalive_pings.json",
    "inner/crash_serialized_bool.json",
    "inner/crash_serialized_int.json",
    "inner/crash_serialized_unparseable.json",
    "inner/raw_before_handshake.json",
    "websocket/ping_between_fragments.json",
    "events/no_worker.json",
];

conversations! {
    inner {
        authentication
        authentication_with_key
        framing
        kick_and_destroy
        malformed_packets
        select
        sending
        sessions
        uid_and_group_rules
        worker_key_conflict
    }
    events {
        broadcast
        client_close_frame
        client_leaves_before_handshake
        client_tcp_fin
        client_tcp_reset
        group_chat_across_nodes
        heartbeat_limit_1
        heartbeat_no_limit
        message_array
        message_binary
        message_fragmented
        message_text
        messages_pipelined
        onconnect_close
        onconnect_destroy
        onconnect_send
        onconnect_session
        onwebsocketconnect_refuse
        ping_pong_close
        protocol_frame
        protocol_tcp
        protocol_text
        routing_two_workers
        routing_worker_returns
        secret_key
        server_close_with_message
        server_close_without_message
        server_destroy
        session
        session_changed_outside
        session_update_api
        worker_connect
        worker_connect_two_processes
        worker_goes_away
        worker_queries
        ws_connect
        ws_connect_query_cookie_headers
    }
    websocket {
        framing_errors
        handshake
        refused_handshakes
    }
}
