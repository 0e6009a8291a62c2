//! The vocabulary, as an application and its clients see it, over the HTTP door. Every test runs in every world: a body
//! stands in the list at the end.
#![deny(dead_code, reason = "a body that is not in the list is no test")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, World, eventually, in_every_world, rounds};

/// A client id that nobody has: of a node that is not there.
const NOBODY: &str = "7f000001ffff00000007";

/// The next message is this text.
async fn hears(client: &mut Client, text: &str) {
    assert_eq!(client.text().await, text);
}

/// The ids of clients, in no order.
fn ids<'a>(clients: impl IntoIterator<Item = &'a Client>) -> BTreeSet<String> {
    clients.into_iter().map(|client| client.id.clone()).collect()
}

/// A list of strings, in no order; none stands twice.
fn set(list: &Value) -> BTreeSet<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    let set: BTreeSet<_> = list.iter().map(|item| item.as_str().unwrap().to_owned()).collect();
    assert_eq!(set.len(), list.len(), "one stands twice: {list:?}");
    set
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// An object's lists, each in no order.
fn sets(object: &Value) -> BTreeMap<String, BTreeSet<String>> {
    object.as_object().unwrap().iter().map(|(key, list)| (key.clone(), set(list))).collect()
}

/// How many nodes a send or close reached.
async fn nodes(node: &World, op: &str, fields: Value) -> usize {
    let result = node.ask(op, fields).await;
    let nodes = result["nodes"].as_u64().unwrap_or_else(|| panic!("{op}: {result}"));
    nodes.try_into().unwrap()
}

/// A command is `invalid_request`, and the refusal names this field.
async fn refuses(node: &World, op: &str, fields: Value, field: &str) {
    let answer = node.call(op, fields.clone()).await;
    assert_eq!(answer["status"], 400, "{op} {fields}: {answer}");
    assert_eq!(answer["code"], "invalid_request", "{op} {fields}: {answer}");
    assert_eq!(answer["field"], field, "{op} {fields}: {answer}");
}

/// Every page of a listing: its items, or an object's keys, in the order in which they came.
async fn all_pages(node: &World, op: &str, fields: &Value, limit: usize) -> Vec<String> {
    let mut items = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let mut fields = fields.clone();
        fields["limit"] = json!(limit);
        if !cursor.is_null() {
            fields["cursor"] = cursor;
        }
        let page = node.ask(op, fields).await;
        let before = items.len();
        match &page["items"] {
            Value::Array(list) => items.extend(list.iter().map(|item| item.as_str().unwrap().to_owned())),
            Value::Object(object) => items.extend(object.keys().cloned()),
            other => panic!("{op}: no page of items, but {other}"),
        }
        assert!(items.len() - before <= limit, "{op}: a page of {} for limit {limit}", items.len() - before);
        cursor = page["cursor"].clone();
        match &cursor {
            Value::Null => return items,
            cursor => assert!(cursor.is_string(), "{op}: {cursor}"),
        }
    }
}

// --- send ----------------------------------------------------------------------------------------------------------

async fn everyone_gets_what_is_sent_to_all(world: World) {
    let node = world.start().await;
    let mut clients = [node.connect().await, node.member("ann", "red").await, node.connect().await];
    assert_eq!(nodes(&node, "sendToAll", json!({"message": "good morning"})).await, node.holding(&clients));
    for client in &mut clients {
        hears(client, "good morning").await;
        client.heard_nothing(&node).await;
    }
}

async fn sending_to_all_can_be_narrowed_to_a_list_of_clients_and_an_empty_list_is_nobody(world: World) {
    let node = world.start().await;
    let (mut a, mut b, mut c) = (node.connect().await, node.connect().await, node.connect().await);
    let listed = json!([a.id, b.id, a.id, NOBODY]);
    let reached = nodes(&node, "sendToAll", json!({"message": "two", "client_ids": listed})).await;
    assert_eq!(reached, node.holding([&a, &b]));
    assert_eq!(nodes(&node, "sendToAll", json!({"message": "none", "client_ids": []})).await, 0);
    assert_eq!(nodes(&node, "sendToAll", json!({"message": "gone", "client_ids": [NOBODY]})).await, 0);
    let answer = node.ask("sendToAll", json!({"message": "x", "client_ids": [], "confirm": true})).await;
    assert_eq!(answer, json!({"nodes": 0, "clients": 0}));
    hears(&mut a, "two").await;
    hears(&mut b, "two").await;
    for client in [&mut a, &mut b, &mut c] {
        client.heard_nothing(&node).await;
    }
}

async fn a_client_gets_what_is_sent_to_it_and_nobody_else_does(world: World) {
    let node = world.start().await;
    let (mut one, mut other) = (node.connect().await, node.connect().await);
    assert_eq!(nodes(&node, "sendToClient", json!({"client_id": one.id, "message": "only you"})).await, 1);
    hears(&mut one, "only you").await;
    // PHP writes hex in either case.
    assert_eq!(nodes(&node, "sendToClient", json!({"client_id": one.id.to_uppercase(), "message": "again"})).await, 1);
    hears(&mut one, "again").await;
    one.heard_nothing(&node).await;
    other.heard_nothing(&node).await;
}

async fn a_bound_uid_gets_what_is_sent_to_it(world: World) {
    let node = world.start().await;
    let (mut phone, mut desk, mut other) =
        (node.member("ann", "g").await, node.member("ann", "g").await, node.member("bob", "g").await);
    let reached = nodes(&node, "sendToUid", json!({"uid": "ann", "message": "hello, ann"})).await;
    assert_eq!(reached, node.holding([&phone, &desk]));
    for client in [&mut phone, &mut desk] {
        hears(client, "hello, ann").await;
        client.heard_nothing(&node).await;
    }
    other.heard_nothing(&node).await;
}

async fn an_array_of_uids_reaches_each_socket_once_and_the_answer_names_who_is_offline(world: World) {
    let node = world.start().await;
    let (mut ann, mut bob, mut eve) =
        (node.member("ann", "g").await, node.member("bob", "g").await, node.member("eve", "g").await);
    let answer =
        node.ask("sendToUid", json!({"uid": ["ann", "bob", "ann", "zoe", 7, "bob"], "message": "array"})).await;
    assert_eq!(answer["nodes"], node.holding([&ann, &bob]), "{answer}");
    assert_eq!(set(&answer["offline"]), names(&["zoe", "7"]));
    for client in [&mut ann, &mut bob] {
        hears(client, "array").await;
        client.heard_nothing(&node).await;
    }
    eve.heard_nothing(&node).await;

    let answer = node.ask("sendToUid", json!({"uid": ["zoe"], "message": "x"})).await;
    assert_eq!(answer, json!({"nodes": 0, "offline": ["zoe"]}));
    let answer = node.ask("sendToUid", json!({"uid": ["ann"], "message": "y"})).await;
    assert_eq!(answer, json!({"nodes": 1, "offline": []}));
    hears(&mut ann, "y").await;
    // One uid is no array: the list is not there.
    assert_eq!(node.ask("sendToUid", json!({"uid": "zoe", "message": "x"})).await, json!({"nodes": 0}));
    assert_eq!(node.ask("sendToUid", json!({"uid": [], "message": "x"})).await, json!({"nodes": 0, "offline": []}));
}

async fn the_members_of_a_group_get_what_is_sent_to_it(world: World) {
    let node = world.start().await;
    let (mut a, mut b, mut c) =
        (node.member("ann", "red").await, node.member("bob", "red").await, node.member("cid", "blue").await);
    let reached = nodes(&node, "sendToGroup", json!({"group": "red", "message": "to red"})).await;
    assert_eq!(reached, node.holding([&a, &b]));
    for client in [&mut a, &mut b] {
        hears(client, "to red").await;
        client.heard_nothing(&node).await;
    }
    c.heard_nothing(&node).await;
}

async fn a_socket_in_several_of_the_groups_gets_the_message_once(world: World) {
    let node = world.start().await;
    let mut everywhere = node.connect().await;
    node.done("joinGroup", json!({"client_id": everywhere.id, "group": ["red", "green", "blue"]})).await;
    let (mut red, mut grey) = (node.member("r", "red").await, node.member("g", "grey").await);
    let groups = json!(["red", "blue", "green", "red", "empty"]);
    let reached = nodes(&node, "sendToGroup", json!({"group": groups, "message": "once"})).await;
    assert_eq!(reached, node.holding([&everywhere, &red]));
    for client in [&mut everywhere, &mut red] {
        hears(client, "once").await;
        client.heard_nothing(&node).await;
    }
    grey.heard_nothing(&node).await;
    assert_eq!(nodes(&node, "sendToGroup", json!({"group": [], "message": "x"})).await, 0);
}

async fn excluded_clients_and_uids_do_not_get_it(world: World) {
    let node = world.start().await;
    let mut ann = [node.member("ann", "red").await, node.member("ann", "blue").await];
    let (mut bob, mut eve) = (node.member("bob", "red").await, node.member("eve", "blue").await);
    let both = json!(["red", "blue"]);

    node.ask("sendToGroup", json!({"group": both, "message": "1", "exclude": [bob.id, NOBODY]})).await;
    node.ask("sendToGroup", json!({"group": both, "message": "2", "exclude_uid": ["ann", "nobody"]})).await;
    node.ask("sendToGroup", json!({"group": "red", "message": "3", "exclude": [bob.id], "exclude_uid": ["ann"]})).await;
    node.ask("sendToAll", json!({"message": "4", "exclude": [eve.id]})).await;
    node.ask("sendToAll", json!({"message": "5", "exclude_uid": ["bob", "eve"]})).await;
    let listed = json!([ann[0].id, bob.id, eve.id]);
    node.ask("sendToAll", json!({"message": "6", "client_ids": listed, "exclude": [bob.id]})).await;
    node.ask("sendToAll", json!({"message": "7", "client_ids": listed, "exclude_uid": ["ann"]})).await;
    node.ask("sendToAll", json!({"message": "8", "exclude": [], "exclude_uid": []})).await;

    let [ann_red, ann_blue] = &mut ann;
    for (client, expected) in [
        (ann_red, &["1", "4", "5", "6", "8"][..]),
        (ann_blue, &["1", "4", "5", "8"]),
        (&mut bob, &["2", "4", "7", "8"]),
        (&mut eve, &["1", "2", "6", "7", "8"]),
    ] {
        for message in expected {
            hears(client, message).await;
        }
        client.heard_nothing(&node).await;
    }
}

async fn nodes_counts_who_holds_the_target_and_does_not_look_at_exclude(world: World) {
    let node = world.start().await;
    let mut only = node.member("ann", "red").await;
    for (op, fields) in [
        ("sendToGroup", json!({"group": "red", "exclude": [only.id]})),
        ("sendToGroup", json!({"group": ["red", "none"], "exclude_uid": ["ann"]})),
        ("sendToAll", json!({"client_ids": [only.id], "exclude": [only.id]})),
    ] {
        let mut fields = fields;
        fields["message"] = json!("x");
        assert_eq!(node.ask(op, fields.clone()).await, json!({"nodes": 1}), "{op} {fields}");
        fields["confirm"] = json!(true);
        assert_eq!(node.ask(op, fields.clone()).await, json!({"nodes": 1, "clients": 0}), "{op} {fields}");
    }
    only.heard_nothing(&node).await;

    let others = [node.member("bob", "red").await, node.member("bob", "red").await];
    for (op, fields, holders) in [
        ("sendToGroup", json!({"group": "red", "exclude": ids(&others)}), node.holding(others.iter().chain([&only]))),
        ("sendToUid", json!({"uid": "bob"}), node.holding(&others)),
        ("sendToUid", json!({"uid": ["bob", "ann"]}), node.holding(others.iter().chain([&only]))),
        ("sendToAll", json!({"exclude_uid": ["ann", "bob"]}), node.holding(others.iter().chain([&only]))),
        ("sendToAll", json!({"client_ids": ids(&others)}), node.holding(&others)),
    ] {
        let mut fields = fields;
        fields["message"] = json!("x");
        assert_eq!(nodes(&node, op, fields.clone()).await, holders, "{op} {fields}");
    }
}

async fn a_message_is_sent_as_the_string_it_is_and_other_json_as_its_compact_text(world: World) {
    let node = world.start().await;
    let mut client = node.connect().await;
    for (written, heard) in [
        (r#""plain""#, "plain"),
        (r#""""#, ""),
        (r#""月 \u6708 \ud83c\udf15 \"\\\/\n\u0000""#, "月 月 🌕 \"\\/\n\0"),
        (r#""{\"a\": 1}""#, r#"{"a": 1}"#),
        (r#"{ "b" : [ 1.50 , 2e5 ] , "a b": "c  d" }"#, r#"{"b":[1.50,2e5],"a b":"c  d"}"#),
        ("[]", "[]"),
        ("42", "42"),
        ("0", "0"),
        ("123456789012345678901234567890.10", "123456789012345678901234567890.10"),
        ("true", "true"),
        ("null", "null"),
    ] {
        let body = format!(r#"{{"client_id": "{}", "message": {written}}}"#, client.id);
        let answer = node.post("sendToClient", &body).await;
        assert_eq!(answer.json(), json!({"result": {"nodes": 1}}), "{written}");
        hears(&mut client, heard).await;
    }
    for size in [125, 126, 65_535, 65_536, 900_000] {
        let long = "月".repeat(size / 3) + &"x".repeat(size % 3);
        node.ask("sendToClient", json!({"client_id": client.id, "message": long})).await;
        hears(&mut client, &long).await;
    }
}

async fn binary_arrives_as_a_binary_frame(world: World) {
    let node = world.start().await;
    let mut client = node.member("ann", "red").await;
    let all: Vec<u8> = (0..=255).collect();
    for bytes in [&all[..], b"", b"text in a binary frame", &all.repeat(300)] {
        let binary = BASE64_STANDARD.encode(bytes);
        for (op, target) in [
            ("sendToAll", json!({})),
            ("sendToClient", json!({"client_id": client.id})),
            ("sendToUid", json!({"uid": "ann"})),
            ("sendToGroup", json!({"group": "red"})),
        ] {
            let mut fields = target;
            fields["binary"] = json!(binary);
            node.ask(op, fields).await;
            match client.next().await {
                Some(Message::Binary(heard)) => assert_eq!(heard[..], *bytes, "{op}"),
                other => panic!("{op}: no binary frame, but {other:?}"),
            }
        }
    }
}

async fn a_send_takes_either_a_message_or_binary_and_a_refused_one_reaches_nobody(world: World) {
    let node = world.start().await;
    let mut client = node.member("ann", "red").await;
    for (op, target) in [
        ("sendToAll", json!({})),
        ("sendToClient", json!({"client_id": client.id})),
        ("sendToUid", json!({"uid": "ann"})),
        ("sendToGroup", json!({"group": "red"})),
    ] {
        let with = |payload: Value| {
            let mut fields = target.clone();
            fields.as_object_mut().unwrap().append(&mut payload.as_object().unwrap().clone());
            fields
        };
        assert_eq!(node.refused(op, with(json!({}))).await, (400, "invalid_request".into()), "{op}");
        let both = with(json!({"message": "x", "binary": "eA=="}));
        assert_eq!(node.refused(op, both).await, (400, "invalid_request".into()), "{op}");
        for wrong in [json!("%%%"), json!("eA"), json!("e A=="), json!(5), json!(null), json!(["eA=="])] {
            refuses(&node, op, with(json!({"binary": wrong})), "binary").await;
        }
        refuses(&node, op, with(json!({"message": "x", "confirm": "yes"})), "confirm").await;
    }
    for op in ["closeClient", "closeUid"] {
        let target = if op == "closeUid" { json!({"uid": "ann"}) } else { json!({"client_id": client.id}) };
        let mut both = target;
        both["message"] = json!("x");
        both["binary"] = json!("eA==");
        assert_eq!(node.refused(op, both).await, (400, "invalid_request".into()), "{op}");
    }
    client.heard_nothing(&node).await;
}

async fn a_send_to_nobody_is_heard_by_no_node_and_is_no_error(world: World) {
    let node = world.start().await;
    assert_eq!(nodes(&node, "sendToAll", json!({"message": "x"})).await, 0);
    for (op, fields) in [
        ("sendToClient", json!({"client_id": NOBODY, "message": "x"})),
        ("sendToUid", json!({"uid": "nobody", "message": "x"})),
        ("sendToGroup", json!({"group": "nobody", "message": "x"})),
        ("sendToGroup", json!({"group": ["nobody", "either"], "message": "x", "exclude": [NOBODY]})),
        ("closeClient", json!({"client_id": NOBODY})),
        ("destroyClient", json!({"client_id": NOBODY})),
        ("closeUid", json!({"uid": "nobody"})),
        ("closeUid", json!({"uid": ["nobody", "either"]})),
    ] {
        assert_eq!(node.ask(op, fields.clone()).await, json!({"nodes": 0}), "{op} {fields}");
        if op.starts_with("send") {
            let mut confirmed = fields;
            confirmed["confirm"] = json!(true);
            assert_eq!(node.ask(op, confirmed).await, json!({"nodes": 0, "clients": 0}), "{op}");
        }
    }
}

async fn a_confirmed_send_counts_the_sockets_that_took_it(world: World) {
    let node = world.start().await;
    let mut clients =
        [node.member("ann", "red").await, node.member("ann", "blue").await, node.member("bob", "red").await];
    let first = clients[0].id.clone();
    let [a, b, c] = &clients;
    for (op, fields, count, holders) in [
        ("sendToAll", json!({}), 3, &[a, b, c][..]),
        ("sendToAll", json!({"exclude": [first]}), 2, &[a, b, c]),
        ("sendToAll", json!({"client_ids": [first, NOBODY]}), 1, &[a]),
        ("sendToClient", json!({"client_id": first}), 1, &[a]),
        ("sendToUid", json!({"uid": "ann"}), 2, &[a, b]),
        ("sendToUid", json!({"uid": ["ann", "bob", "zoe"]}), 3, &[a, b, c]),
        ("sendToGroup", json!({"group": "red"}), 2, &[a, c]),
        ("sendToGroup", json!({"group": ["red", "blue"]}), 3, &[a, b, c]),
        ("sendToGroup", json!({"group": ["red", "blue"], "exclude_uid": ["bob"]}), 2, &[a, b, c]),
        ("sendToGroup", json!({"group": "red", "exclude_uid": ["ann", "bob"]}), 0, &[a, c]),
    ] {
        let mut fields = fields;
        fields["message"] = json!("x");
        fields["confirm"] = json!(true);
        let answer = node.ask(op, fields.clone()).await;
        assert_eq!(answer["clients"], count, "{op} {fields}: {answer}");
        assert_eq!(answer["nodes"], node.holding(holders.iter().copied()), "{op} {fields}: {answer}");
        fields["confirm"] = json!(false);
        assert!(node.ask(op, fields).await.get("clients").is_none(), "{op}");
    }
    for client in &mut clients {
        while client.text().await == "x" {
            node.call("sendToClient", json!({"client_id": client.id, "message": "(end)"})).await;
        }
    }
}

async fn an_integer_is_its_decimal_text_and_zero_is_a_name_like_any_other(world: World) {
    let node = world.start().await;
    let mut client = node.connect().await;
    let id = client.id.clone();
    for (bound, same) in [
        (json!(42), json!("42")),
        (json!("42"), json!(42)),
        (json!("0"), json!(0)),
        (json!(0), json!("0")),
        (json!(-7), json!("-7")),
        (json!(u64::MAX), json!("18446744073709551615")),
        (json!(" "), json!(" ")),
        (json!("null"), json!("null")),
        (json!("月亮/*?:{}\u{0}\n\"'"), json!("月亮/*?:{}\u{0}\n\"'")),
        (json!("x".repeat(256)), json!("x".repeat(256))),
        (json!("月".repeat(85)), json!("月".repeat(85))),
    ] {
        node.done("bindUid", json!({"client_id": id, "uid": bound})).await;
        node.done("joinGroup", json!({"client_id": id, "group": bound})).await;
        assert_eq!(nodes(&node, "sendToUid", json!({"uid": same, "message": "uid"})).await, 1, "{same}");
        assert_eq!(nodes(&node, "sendToGroup", json!({"group": [same], "message": "group"})).await, 1, "{same}");
        hears(&mut client, "uid").await;
        hears(&mut client, "group").await;
        let uid = node.ask("getUidByClientId", json!({"client_id": id})).await;
        assert!(uid.is_string(), "{uid}");
        assert_eq!(node.ask("isUidOnline", json!({"uid": uid})).await, true);
        assert_eq!(node.ask("getClientIdByUid", json!({"uid": same})).await, json!([id]));
        assert_eq!(node.ask("getClientIdCountByGroup", json!({"group": same})).await, 1);
        node.done("leaveGroup", json!({"client_id": id, "group": same})).await;
        assert_eq!(node.ask("getAllGroupIdList", json!({})).await, json!([]));
    }
    // One uid, however it is written.
    let answer = node.ask("isUidsOnline", json!({"uid": [42, "42"]})).await;
    assert_eq!(answer, json!({"42": false}));
}

async fn what_is_no_uid_or_group_is_refused_by_name(world: World) {
    let node = world.start().await;
    let mut client = node.connect().await;
    let wrong = [
        json!(null),
        json!(true),
        json!(1.5),
        json!(1.0),
        json!(""),
        json!({}),
        json!("x".repeat(257)),
        json!("月".repeat(86)),
    ];
    for wrong in wrong {
        let id = &client.id;
        for (op, field, fields) in [
            ("bindUid", "uid", json!({"client_id": id, "uid": wrong})),
            ("unbindUid", "uid", json!({"client_id": id, "uid": wrong})),
            ("sendToUid", "uid", json!({"uid": wrong, "message": "x"})),
            ("sendToUid", "uid", json!({"uid": ["ann", wrong], "message": "x"})),
            ("closeUid", "uid", json!({"uid": wrong})),
            ("isUidOnline", "uid", json!({"uid": wrong})),
            ("getClientIdByUid", "uid", json!({"uid": wrong})),
            ("joinGroup", "uid", json!({"uid": wrong, "group": "g"})),
            ("joinGroup", "group", json!({"client_id": id, "group": wrong})),
            ("leaveGroup", "group", json!({"client_id": id, "group": ["g", wrong]})),
            ("sendToGroup", "group", json!({"group": wrong, "message": "x"})),
            ("sendToGroup", "exclude_uid", json!({"group": "g", "message": "x", "exclude_uid": [wrong]})),
            ("sendToAll", "exclude_uid", json!({"message": "x", "exclude_uid": [wrong]})),
            ("ungroup", "group", json!({"group": wrong})),
            ("getClientIdListByGroup", "group", json!({"group": wrong})),
        ] {
            refuses(&node, op, fields, field).await;
        }
    }
    client.heard_nothing(&node).await;
    assert_eq!(node.ask("getAllGroupIdList", json!({})).await, json!([]));
}

async fn arrays_are_taken_where_they_are_promised_and_nowhere_else(world: World) {
    let node = world.start().await;
    let client = node.member("ann", "red").await;
    let id = &client.id;
    for (op, field, fields) in [
        ("bindUid", "uid", json!({"client_id": id, "uid": ["ann"]})),
        ("unbindUid", "uid", json!({"client_id": id, "uid": ["ann"]})),
        ("joinGroup", "uid", json!({"uid": ["ann"], "group": "red"})),
        ("leaveGroup", "uid", json!({"uid": ["ann"], "group": "red"})),
        ("joinGroup", "client_id", json!({"client_id": [id], "group": "red"})),
        ("sendToClient", "client_id", json!({"client_id": [id], "message": "x"})),
        ("ungroup", "group", json!({"group": ["red"]})),
        ("isUidOnline", "uid", json!({"uid": ["ann"]})),
        ("getClientIdByUid", "uid", json!({"uid": ["ann"]})),
        ("getUidCountByGroup", "group", json!({"group": ["red"]})),
        ("getClientSessionsByGroup", "group", json!({"group": ["red"]})),
        ("sendToAll", "exclude", json!({"message": "x", "exclude": id})),
        ("sendToAll", "exclude_uid", json!({"message": "x", "exclude_uid": "ann"})),
        ("sendToAll", "client_ids", json!({"message": "x", "client_ids": id})),
        ("sendToAll", "client_ids", json!({"message": "x", "client_ids": null})),
    ] {
        refuses(&node, op, fields, field).await;
    }
    assert_eq!(node.ask("isUidsOnline", json!({"uid": "ann"})).await, json!({"ann": true}));
    assert_eq!(node.ask("batchGetClientIdByUid", json!({"uid": "ann"})).await, json!({"ann": [id]}));
    assert_eq!(node.ask("batchGetClientIdCountByGroup", json!({"group": "red"})).await, json!({"red": 1}));
}

async fn every_operation_refuses_a_field_it_does_not_know_and_names_it(world: World) {
    let node = world.start().await;
    let mut client = node.member("ann", "red").await;
    let fields =
        json!({"client_id": client.id, "uid": "ann", "group": "red", "message": "x", "session": {}, "commands": []});
    let operations: &[(&str, &[&str])] = &[
        ("sendToAll", &["message"]),
        ("sendToClient", &["client_id", "message"]),
        ("sendToUid", &["uid", "message"]),
        ("sendToGroup", &["group", "message"]),
        ("closeClient", &["client_id"]),
        ("destroyClient", &["client_id"]),
        ("destoryClient", &["client_id"]),
        ("closeUid", &["uid"]),
        ("bindUid", &["client_id", "uid"]),
        ("unbindUid", &["client_id"]),
        ("joinGroup", &["client_id", "group"]),
        ("leaveGroup", &["client_id", "group"]),
        ("ungroup", &["group"]),
        ("setSession", &["client_id", "session"]),
        ("updateSession", &["client_id", "session"]),
        ("batch", &["commands"]),
        ("isOnline", &["client_id"]),
        ("isUidOnline", &["uid"]),
        ("isUidsOnline", &["uid"]),
        ("getSession", &["client_id"]),
        ("getUidByClientId", &["client_id"]),
        ("getClientIdByUid", &["uid"]),
        ("batchGetClientIdByUid", &["uid"]),
        ("getClientIdListByGroup", &["group"]),
        ("getClientIdCountByGroup", &["group"]),
        ("getClientCountByGroup", &["group"]),
        ("batchGetClientIdCountByGroup", &["group"]),
        ("getClientSessionsByGroup", &["group"]),
        ("getClientInfoByGroup", &["group"]),
        ("getUidListByGroup", &["group"]),
        ("getUidCountByGroup", &["group"]),
        ("getAllClientIdList", &[]),
        ("getAllClientIdCount", &[]),
        ("getAllClientCount", &[]),
        ("getAllClientSessions", &[]),
        ("getAllClientInfo", &[]),
        ("getAllUidList", &[]),
        ("getAllUidCount", &[]),
        ("getAllGroupIdList", &[]),
        ("getAllGroupUidList", &[]),
        ("getAllGroupUidCount", &[]),
        ("getAllGroupClientIdList", &[]),
        ("getAllGroupClientIdCount", &[]),
    ];
    for (op, needs) in operations {
        let good: serde_json::Map<_, _> =
            needs.iter().map(|name| ((*name).to_owned(), fields[*name].clone())).collect();
        let mut misspelt = good.clone();
        misspelt.insert("exlude".into(), json!([client.id]));
        refuses(&node, op, misspelt.into(), "exlude").await;
        for missing in *needs {
            let mut fields = good.clone();
            fields.remove(*missing);
            let answer = node.call(op, fields.into()).await;
            assert_eq!(
                (&answer["status"], &answer["code"]),
                (&json!(400), &json!("invalid_request")),
                "{op}: {answer}"
            );
            assert_eq!(answer["field"], *missing, "{op} without {missing}: {answer}");
        }
        for wrong in ["7f", "", "7f0000010b540000000g", "7f0000010b54000000011", "月亮月亮月亮"] {
            if needs.contains(&"client_id") {
                let mut fields = good.clone();
                fields.insert("client_id".into(), json!(wrong));
                refuses(&node, op, fields.into(), "client_id").await;
            }
        }
    }
    client.heard_nothing(&node).await;
}

// --- close ---------------------------------------------------------------------------------------------------------

async fn a_closed_client_sees_4000_closed_and_has_left_when_it_is_answered(world: World) {
    let node = world.start().await;
    let mut client = node.member("ann", "red").await;
    node.done("setSession", json!({"client_id": client.id, "session": {"a": 1}})).await;
    assert_eq!(node.ask("closeClient", json!({"client_id": client.id})).await, json!({"nodes": 1}));

    let id = json!({"client_id": client.id});
    assert_eq!(node.ask("isOnline", id.clone()).await, false);
    assert_eq!(node.ask("getSession", id.clone()).await, json!(null));
    assert_eq!(node.ask("getUidByClientId", id.clone()).await, json!(null));
    assert_eq!(node.ask("isUidOnline", json!({"uid": "ann"})).await, false);
    assert_eq!(node.ask("getClientIdListByGroup", json!({"group": "red"})).await, json!([]));
    assert_eq!(node.ask("getAllClientIdCount", json!({})).await, 0);
    assert_eq!(node.ask("getAllUidList", json!({})).await, json!([]));
    assert_eq!(node.ask("getAllGroupIdList", json!({})).await, json!([]));
    assert_eq!(nodes(&node, "sendToClient", json!({"client_id": client.id, "message": "late"})).await, 0);
    assert_eq!(nodes(&node, "closeClient", id).await, 0);
    assert_eq!(client.closed().await, (4000, "closed".into()));
}

async fn a_close_carries_its_message_its_code_and_its_reason(world: World) {
    let node = world.start().await;
    for (fields, message, close) in [
        (json!({"message": "bye"}), Some("bye"), (4000, "closed")),
        (json!({"message": {"type": "kick"}, "code": 4567}), Some(r#"{"type":"kick"}"#), (4567, "")),
        (json!({"reason": "see you"}), None, (4000, "see you")),
        (json!({"code": 1000, "reason": "再见"}), None, (1000, "再见")),
        (json!({"message": "x", "code": 1013, "reason": ""}), Some("x"), (1013, "")),
    ] {
        for op in ["closeClient", "closeUid"] {
            let mut client = node.member("ann", "red").await;
            let mut fields = fields.clone();
            let (name, value) = if op == "closeUid" { ("uid", "ann") } else { ("client_id", &*client.id) };
            fields[name] = json!(value);
            assert_eq!(nodes(&node, op, fields.clone()).await, 1);
            if let Some(message) = message {
                hears(&mut client, message).await;
            }
            assert_eq!(client.closed().await, (close.0, close.1.to_owned()), "{op} {fields}");
        }
    }
    let mut client = node.connect().await;
    node.ask("closeClient", json!({"client_id": client.id, "binary": "/wA="})).await;
    assert_eq!(client.next().await, Some(Message::binary(vec![0xff, 0])));
    assert_eq!(client.closed().await, (4000, "closed".into()));
}

async fn a_close_takes_only_codes_and_reasons_that_may_travel(world: World) {
    let node = world.start().await;
    let mut client = node.connect().await;
    for code in [
        json!(0),
        json!(999),
        json!(1002),
        json!(1005),
        json!(1006),
        json!(1007),
        json!(1010),
        json!(1014),
        json!(1015),
        json!(2999),
        json!(5000),
        json!(70000),
        json!(-1),
        json!("4000"),
        json!(4000.5),
    ] {
        refuses(&node, "closeClient", json!({"client_id": client.id, "code": code}), "code").await;
        refuses(&node, "closeUid", json!({"uid": "ann", "code": code}), "code").await;
    }
    for reason in [json!("x".repeat(124)), json!("月".repeat(42)), json!(5), json!(["x"])] {
        refuses(&node, "closeClient", json!({"client_id": client.id, "reason": reason}), "reason").await;
    }
    client.heard_nothing(&node).await;
    for code in [1000, 1001, 1008, 1011, 1012, 1013, 3000, 4999] {
        let mut client = node.connect().await;
        let reason = "月".repeat(41);
        node.ask("closeClient", json!({"client_id": client.id, "code": code, "reason": reason})).await;
        assert_eq!(client.closed().await, (code, reason));
    }
}

async fn what_is_queued_arrives_before_the_close_frame(world: World) {
    let node = world.start().await;
    let mut client = node.member("ann", "red").await;
    // More than a socket takes at once, and the client does not read yet.
    let long = "x".repeat(8 * 1024);
    for n in 0..110 {
        let fields = json!({"group": "red", "message": format!("{n} {long}")});
        assert_eq!(nodes(&node, "sendToGroup", fields).await, 1);
    }
    let fields = json!({"client_id": client.id, "message": "the last", "code": 4321, "reason": "done"});
    assert_eq!(nodes(&node, "closeClient", fields).await, 1);
    for n in 0..110 {
        assert!(client.text().await.starts_with(&format!("{n} ")), "message {n}");
    }
    hears(&mut client, "the last").await;
    assert_eq!(client.closed().await, (4321, "done".into()));
}

async fn a_destroyed_client_is_gone_at_once_and_sees_no_close_frame(world: World) {
    let node = world.start().await;
    for op in ["destroyClient", "destoryClient"] {
        let mut client = node.member("ann", "red").await;
        assert_eq!(node.ask(op, json!({"client_id": client.id})).await, json!({"nodes": 1}));
        assert_eq!(node.ask("isOnline", json!({"client_id": client.id})).await, false);
        assert_eq!(node.ask("isUidOnline", json!({"uid": "ann"})).await, false);
        assert_eq!(node.ask("getAllGroupIdList", json!({})).await, json!([]));
        client.cut().await;
        assert_eq!(nodes(&node, op, json!({"client_id": client.id})).await, 0);
    }
}

async fn closing_a_uid_closes_all_its_clients_and_no_others(world: World) {
    let node = world.start().await;
    let mut ann = [node.member("ann", "red").await, node.member("ann", "red").await];
    let (mut bob, mut eve) = (node.member("bob", "red").await, node.member("eve", "red").await);
    let reached = nodes(&node, "closeUid", json!({"uid": "ann", "message": "signed out", "reason": "out"})).await;
    assert_eq!(reached, node.holding(&ann));
    assert_eq!(node.ask("isUidOnline", json!({"uid": "ann"})).await, false);
    for client in &mut ann {
        hears(client, "signed out").await;
        assert_eq!(client.closed().await, (4000, "out".into()));
    }
    bob.heard_nothing(&node).await;

    assert_eq!(nodes(&node, "closeUid", json!({"uid": ["bob", "ann", "bob"], "code": 4100})).await, 1);
    assert_eq!(bob.closed().await.0, 4100);
    eve.heard_nothing(&node).await;
    assert_eq!(node.ask("getAllClientIdList", json!({})).await, json!([eve.id]));
}

async fn a_client_that_leaves_by_itself_leaves_its_uid_and_groups(world: World) {
    let node = world.start().await;
    let (said, lost) = (node.member("ann", "red").await, node.member("bob", "red").await);
    let (said_id, lost_id) = (said.id.clone(), lost.id.clone());
    said.close(1000, "bye").await;
    drop(lost);
    eventually("the group is empty", || async {
        node.ask("getClientIdCountByGroup", json!({"group": "red"})).await == 0
    })
    .await;
    for (id, uid) in [(said_id, "ann"), (lost_id, "bob")] {
        assert_eq!(node.ask("isOnline", json!({"client_id": id})).await, false);
        assert_eq!(node.ask("isUidOnline", json!({"uid": uid})).await, false);
        let gone = node.refused("bindUid", json!({"client_id": id, "uid": uid})).await;
        assert_eq!(gone, (404, "client_not_found".into()));
    }
    assert_eq!(node.ask("getAllClientIdCount", json!({})).await, 0);
}

// --- bind ----------------------------------------------------------------------------------------------------------

async fn binding_again_replaces_the_uid(world: World) {
    let node = world.start().await;
    let mut client = node.connect().await;
    let id = client.id.clone();
    assert_eq!(node.ask("getUidByClientId", json!({"client_id": id})).await, json!(null));
    for uid in ["ann", "bob", "bob"] {
        node.done("bindUid", json!({"client_id": id, "uid": uid})).await;
        assert_eq!(node.ask("getUidByClientId", json!({"client_id": id})).await, uid);
        assert_eq!(node.ask("getAllUidList", json!({})).await, json!([uid]));
    }
    let answer = node.ask("sendToUid", json!({"uid": ["ann", "bob"], "message": "x"})).await;
    assert_eq!(answer, json!({"nodes": 1, "offline": ["ann"]}));
    hears(&mut client, "x").await;
    client.heard_nothing(&node).await;
}

async fn an_unbind_with_a_uid_is_only_of_that_uid(world: World) {
    let node = world.start().await;
    let mut client = node.member("ann", "red").await;
    let id = client.id.clone();
    node.done("unbindUid", json!({"client_id": id, "uid": "bob"})).await;
    assert_eq!(node.ask("getUidByClientId", json!({"client_id": id})).await, "ann");
    node.done("unbindUid", json!({"client_id": id, "uid": "ann"})).await;
    assert_eq!(node.ask("getUidByClientId", json!({"client_id": id})).await, json!(null));
    assert_eq!(node.ask("isUidOnline", json!({"uid": "ann"})).await, false);
    // Unbound already: nothing to do.
    node.done("unbindUid", json!({"client_id": id, "uid": "ann"})).await;
    node.done("unbindUid", json!({"client_id": id})).await;

    node.done("bindUid", json!({"client_id": id, "uid": 42})).await;
    node.done("unbindUid", json!({"client_id": id, "uid": "42"})).await;
    assert_eq!(node.ask("getAllUidCount", json!({})).await, 0);
    node.done("bindUid", json!({"client_id": id, "uid": "ann"})).await;
    node.done("unbindUid", json!({"client_id": id})).await;
    assert_eq!(nodes(&node, "sendToUid", json!({"uid": "ann", "message": "x"})).await, 0);
    // It stays in its groups.
    assert_eq!(node.ask("getClientIdListByGroup", json!({"group": "red"})).await, json!([id]));
    client.heard_nothing(&node).await;
}

async fn a_single_bind_closes_the_uids_other_clients_as_replaced(world: World) {
    let node = world.start().await;
    let mut others =
        [node.member("ann", "red").await, node.member("ann", "red").await, node.member("ann", "red").await];
    let (mut bob, mut new) = (node.member("bob", "red").await, node.connect().await);
    let bind = json!({"client_id": new.id, "uid": "ann", "single": true});
    node.done("bindUid", bind.clone()).await;
    assert_eq!(node.ask("getClientIdByUid", json!({"uid": "ann"})).await, json!([new.id]));
    for client in &mut others {
        assert_eq!(node.ask("isOnline", json!({"client_id": client.id})).await, false);
        assert_eq!(client.closed().await, (4001, "replaced".into()));
    }
    // Once more is no harm to itself.
    node.done("bindUid", bind).await;
    new.heard_nothing(&node).await;
    bob.heard_nothing(&node).await;

    // Without `single` both stay.
    let second = node.member("ann", "red").await;
    node.done("bindUid", json!({"client_id": second.id, "uid": "ann", "single": false})).await;
    assert_eq!(set(&node.ask("getClientIdByUid", json!({"uid": "ann"})).await), ids([&new, &second]));
    refuses(&node, "bindUid", json!({"client_id": new.id, "uid": "ann", "single": 1}), "single").await;
}

async fn of_two_single_binds_at_once_exactly_one_client_stays(world: World) {
    let node = world.start().await;
    let (mut one_caller, mut other_caller) = (node.caller().await, node.caller().await);
    for round in 0..rounds(500) {
        let uid = format!("user {round}");
        let (mut one, mut other) = tokio::join!(node.connect(), node.connect());
        let bind = |client: &Client| json!({"client_id": client.id, "uid": uid, "single": true});
        let (first, second) =
            tokio::join!(one_caller.call("bindUid", bind(&one)), other_caller.call("bindUid", bind(&other)));
        assert_eq!((first, second), (json!({"result": true}), json!({"result": true})), "round {round}");
        let bound = node.ask("getClientIdByUid", json!({"uid": uid})).await;
        let stayed = if bound == json!([one.id]) { &mut one } else { &mut other };
        assert_eq!(bound, json!([stayed.id]), "round {round}");
        stayed.heard_nothing(&node).await;
        let id = stayed.id.clone();
        let replaced = if id == one.id { &mut other } else { &mut one };
        assert_eq!(replaced.closed().await, (4001, "replaced".into()), "round {round}");
    }
}

async fn of_many_single_binds_at_once_exactly_one_client_stays(world: World) {
    let node = world.start().await;
    let mut clients = join_all((0..20).map(|_| node.connect())).await;
    let binds = clients.iter().enumerate().map(|(place, client)| {
        let bind = json!({"client_id": client.id, "uid": "ann", "single": true});
        // In a batch or alone, it is the same command.
        let (op, fields) = if place % 2 == 0 {
            ("bindUid", bind)
        } else {
            let mut command = bind;
            command["op"] = json!("bindUid");
            ("batch", json!({"commands": [command]}))
        };
        node.call(op, fields)
    });
    for answer in join_all(binds).await {
        assert!(answer == json!({"result": true}) || answer == json!({"results": [{"result": true}]}), "{answer}");
    }
    let bound = node.ask("getClientIdByUid", json!({"uid": "ann"})).await;
    assert_eq!(bound.as_array().unwrap().len(), 1, "{bound}");
    assert_eq!(node.ask("getAllClientIdList", json!({})).await, bound);
    for client in &mut clients {
        if json!([client.id]) == bound {
            client.heard_nothing(&node).await;
        } else {
            assert_eq!(client.closed().await, (4001, "replaced".into()));
        }
    }
}

async fn a_change_of_a_client_that_is_not_online_is_client_not_found(world: World) {
    let node = world.start().await;
    let mut left = node.member("ann", "red").await;
    node.ask("destroyClient", json!({"client_id": left.id})).await;
    left.cut().await;
    for id in [&*left.id, NOBODY, "00000000000000000000", "ffffffffffffffffffff"] {
        for (op, fields) in [
            ("bindUid", json!({"client_id": id, "uid": "ann"})),
            ("bindUid", json!({"client_id": id, "uid": "ann", "single": true})),
            ("unbindUid", json!({"client_id": id})),
            ("unbindUid", json!({"client_id": id, "uid": "ann"})),
            ("setSession", json!({"client_id": id, "session": {}})),
            ("updateSession", json!({"client_id": id, "session": {"a": 1}})),
            ("joinGroup", json!({"client_id": id, "group": "red"})),
            ("joinGroup", json!({"client_id": id, "group": []})),
            ("leaveGroup", json!({"client_id": id, "group": ["red"]})),
        ] {
            assert_eq!(node.refused(op, fields.clone()).await, (404, "client_not_found".into()), "{op} {fields}");
        }
        assert_eq!(node.ask("isOnline", json!({"client_id": id})).await, false);
        assert_eq!(node.ask("getSession", json!({"client_id": id})).await, json!(null));
        assert_eq!(node.ask("getUidByClientId", json!({"client_id": id})).await, json!(null));
    }
    assert_eq!(node.ask("getAllUidCount", json!({})).await, 0);
    assert_eq!(node.ask("getAllGroupIdList", json!({})).await, json!([]));
}

async fn a_failed_single_bind_replaces_nobody(world: World) {
    let node = world.start().await;
    let mut bound = node.member("ann", "red").await;
    let fields = json!({"client_id": NOBODY, "uid": "ann", "single": true});
    assert_eq!(node.refused("bindUid", fields).await, (404, "client_not_found".into()));
    bound.heard_nothing(&node).await;
}

async fn what_is_sent_after_a_bind_or_join_was_answered_arrives(world: World) {
    let node = world.start().await;
    let mut client = node.connect().await;
    let (mut changer, mut sender) = (node.caller().await, node.caller().await);
    let done = json!({"result": true});
    let one = json!({"result": {"nodes": 1}});
    for round in 0..rounds(1000) {
        let name = format!("n{}", round % 7);
        assert_eq!(changer.call("bindUid", json!({"client_id": client.id, "uid": name})).await, done);
        assert_eq!(sender.call("sendToUid", json!({"uid": name, "message": format!("uid {round}")})).await, one);
        assert_eq!(changer.call("joinGroup", json!({"client_id": client.id, "group": name})).await, done);
        assert_eq!(sender.call("sendToGroup", json!({"group": name, "message": format!("group {round}")})).await, one);
        assert_eq!(changer.call("leaveGroup", json!({"client_id": client.id, "group": name})).await, done);
        let none = sender.call("sendToGroup", json!({"group": name, "message": "left"})).await;
        assert_eq!(none["result"]["nodes"], 0);
        hears(&mut client, &format!("uid {round}")).await;
        hears(&mut client, &format!("group {round}")).await;
    }
    client.heard_nothing(&node).await;
}

/// While `changes` are made over and over, each a batch and so one step, a stream of messages comes to `target`.
async fn loses_and_doubles_nothing(
    world: World,
    op: &'static str,
    target: Value,
    messages: usize,
    first: Value,
    changes: [Value; 2],
) {
    let node = world.start().await;
    let mut client = node.connect().await;
    let of_client = |command: &Value| {
        let mut command = command.clone();
        command["client_id"] = json!(client.id);
        command
    };
    let first = node.call("batch", json!({"commands": [of_client(&first)]})).await;
    assert_eq!(first, json!({"results": [{"result": true}]}));
    let [there, back] = changes.map(|step| step.as_array().unwrap().iter().map(of_client).collect::<Vec<_>>());
    let cycle = [&there[..], &back].concat();
    let cycles: Vec<&Value> = cycle.iter().cycle().take(cycle.len() * (1000 / cycle.len())).collect();

    let sent = Cell::new(false);
    let changing = async {
        let mut caller = node.caller().await;
        for round in 0.. {
            if sent.get() {
                break;
            }
            // To the other side or back; and now and then there and back, many times in one step.
            let commands = match round % 11 {
                0 => json!(cycles),
                odd if odd % 2 == 1 => json!(there),
                _ => json!(back),
            };
            let answer = caller.call("batch", json!({"commands": commands})).await;
            assert!(answer["results"].as_array().unwrap().iter().all(|item| item["result"] == true), "{answer}");
        }
    };
    let sending = async {
        let mut caller = node.caller().await;
        let command = |n: usize| {
            let mut command = target.clone();
            command["op"] = json!(op);
            command["message"] = json!(n.to_string());
            command
        };
        let numbers: Vec<usize> = (0..messages).collect();
        for some in numbers.chunks(messages / 100) {
            let commands: Vec<Value> = some.iter().map(|n| command(*n)).collect();
            caller.call("batch", json!({"commands": commands})).await;
        }
        sent.set(true);
    };
    let hearing = async {
        for n in 0..messages {
            assert_eq!(client.text().await, n.to_string(), "a message was lost or doubled");
        }
    };
    let ((), (), ()) = tokio::join!(changing, sending, hearing);
    client.heard_nothing(&node).await;
}

async fn leaving_one_group_for_another_in_a_batch_loses_and_doubles_nothing(world: World) {
    let leave = |from: &str, to: &str| json!([{"op": "leaveGroup", "group": from}, {"op": "joinGroup", "group": to}]);
    let first = json!({"op": "joinGroup", "group": "A"});
    let target = json!({"group": ["A", "B"]});
    loses_and_doubles_nothing(world, "sendToGroup", target, rounds(2_000), first, [leave("A", "B"), leave("B", "A")])
        .await;
}

async fn joining_one_group_before_leaving_another_in_a_batch_loses_and_doubles_nothing(world: World) {
    let join = |from: &str, to: &str| json!([{"op": "joinGroup", "group": to}, {"op": "leaveGroup", "group": from}]);
    let first = json!({"op": "joinGroup", "group": "A"});
    let target = json!({"group": ["A", "B"]});
    loses_and_doubles_nothing(world, "sendToGroup", target, rounds(2_000), first, [join("A", "B"), join("B", "A")])
        .await;
}

async fn moving_between_two_of_many_groups_in_a_batch_loses_and_doubles_nothing(world: World) {
    let join = |from: &str, to: &str| json!([{"op": "joinGroup", "group": to}, {"op": "leaveGroup", "group": from}]);
    let first = json!({"op": "joinGroup", "group": "A"});
    // Many names between the two, so that a message that looks for one after the other takes its time.
    let between = (0..3000).map(|n| format!("A{n}"));
    let groups: Vec<String> = ["A".to_owned()].into_iter().chain(between).chain(["B".to_owned()]).collect();
    let target = json!({"group": groups});
    loses_and_doubles_nothing(world, "sendToGroup", target, rounds(1000), first, [join("A", "B"), join("B", "A")])
        .await;
}

async fn binding_a_client_again_to_the_same_uid_loses_and_doubles_nothing(world: World) {
    let bind = json!({"op": "bindUid", "uid": "ann"});
    let again = || json!([bind]);
    loses_and_doubles_nothing(
        world,
        "sendToUid",
        json!({"uid": "ann"}),
        rounds(2_000),
        bind.clone(),
        [again(), again()],
    )
    .await;
}

async fn binding_a_client_to_another_uid_loses_and_doubles_nothing(world: World) {
    let bind = |uid: &str| json!([{"op": "bindUid", "uid": uid}]);
    let first = json!({"op": "bindUid", "uid": "A"});
    loses_and_doubles_nothing(
        world,
        "sendToUid",
        json!({"uid": ["A", "B"]}),
        rounds(2_000),
        first,
        [bind("B"), bind("A")],
    )
    .await;
}

async fn binding_a_client_to_another_of_many_uids_loses_and_doubles_nothing(world: World) {
    let bind = |uid: &str| json!([{"op": "bindUid", "uid": uid}]);
    let first = json!({"op": "bindUid", "uid": "A"});
    let between = (0..3000).map(|n| format!("A{n}"));
    let uids: Vec<String> = ["A".to_owned()].into_iter().chain(between).chain(["B".to_owned()]).collect();
    loses_and_doubles_nothing(world, "sendToUid", json!({"uid": uids}), rounds(1000), first, [bind("B"), bind("A")])
        .await;
}

async fn joining_a_group_again_loses_and_doubles_nothing(world: World) {
    let join = json!({"op": "joinGroup", "group": "A"});
    let again = || json!([join]);
    loses_and_doubles_nothing(
        world,
        "sendToGroup",
        json!({"group": "A"}),
        rounds(2_000),
        join.clone(),
        [again(), again()],
    )
    .await;
}

async fn a_uid_that_is_bound_again_is_online_all_the_time(world: World) {
    let node = world.start().await;
    let client = node.member("ann", "red").await;
    let bind = json!({"op": "bindUid", "client_id": client.id, "uid": "ann"});
    let (binds, asks) = (vec![bind; 1000], vec![json!({"op": "isUidOnline", "uid": "ann"}); 1000]);
    let (mut binder, mut asker) = (node.caller().await, node.caller().await);
    for round in 0..rounds(60) {
        let (_, answer) = tokio::join!(
            binder.call("batch", json!({"commands": binds})),
            asker.call("batch", json!({"commands": asks})),
        );
        let offline = answer["results"].as_array().unwrap().iter().filter(|item| item["result"] != true).count();
        assert_eq!(offline, 0, "round {round}: offline in {offline} answers of 1000");
    }
}

// --- groups --------------------------------------------------------------------------------------------------------

async fn joining_and_leaving_twice_is_as_once(world: World) {
    let node = world.start().await;
    let mut client = node.connect().await;
    let id = client.id.clone();
    for _ in 0..2 {
        node.done("joinGroup", json!({"client_id": id, "group": "red"})).await;
        node.done("joinGroup", json!({"client_id": id, "group": ["red", "blue", "red"]})).await;
        assert_eq!(node.ask("getClientIdCountByGroup", json!({"group": "red"})).await, 1);
    }
    assert_eq!(set(&node.ask("getAllGroupIdList", json!({})).await), names(&["red", "blue"]));
    node.ask("sendToGroup", json!({"group": "red", "message": "once"})).await;
    hears(&mut client, "once").await;
    for _ in 0..2 {
        node.done("leaveGroup", json!({"client_id": id, "group": ["red", "never joined"]})).await;
        assert_eq!(node.ask("getAllGroupIdList", json!({})).await, json!(["blue"]));
    }
    assert_eq!(nodes(&node, "sendToGroup", json!({"group": "red", "message": "left"})).await, 0);
    node.done("joinGroup", json!({"client_id": id, "group": []})).await;
    client.heard_nothing(&node).await;
}

async fn a_uid_joins_and_leaves_with_all_its_clients(world: World) {
    let node = world.start().await;
    let (a, b, other) =
        (node.member("ann", "red").await, node.member("ann", "red").await, node.member("bob", "red").await);
    node.done("joinGroup", json!({"uid": "ann", "group": ["blue", "green"]})).await;
    // Who is bound later was not meant.
    let late = node.member("ann", "red").await;
    for group in ["blue", "green"] {
        assert_eq!(set(&node.ask("getClientIdListByGroup", json!({"group": group})).await), ids([&a, &b]));
    }
    node.done("leaveGroup", json!({"uid": "ann", "group": ["red", "green"]})).await;
    assert_eq!(node.ask("getClientIdListByGroup", json!({"group": "red"})).await, json!([other.id]));
    assert_eq!(node.ask("getClientIdListByGroup", json!({"group": "green"})).await, json!([]));
    assert_eq!(set(&node.ask("getClientIdListByGroup", json!({"group": "blue"})).await), ids([&a, &b]));
    drop(late);

    // Nobody online is no error, and is not remembered.
    node.done("joinGroup", json!({"uid": "zoe", "group": "blue"})).await;
    node.done("leaveGroup", json!({"uid": "zoe", "group": "blue"})).await;
    let zoe = node.connect().await;
    node.done("joinGroup", json!({"uid": "zoe", "group": "blue"})).await;
    node.done("bindUid", json!({"client_id": zoe.id, "uid": "zoe"})).await;
    assert_eq!(set(&node.ask("getClientIdListByGroup", json!({"group": "blue"})).await), ids([&a, &b]));
}

async fn a_group_change_is_of_a_client_or_of_a_uid_and_not_of_both(world: World) {
    let node = world.start().await;
    let client = node.member("ann", "red").await;
    for op in ["joinGroup", "leaveGroup"] {
        let both = json!({"client_id": client.id, "uid": "ann", "group": "red"});
        assert_eq!(node.refused(op, both).await, (400, "invalid_request".into()));
        assert_eq!(node.refused(op, json!({"group": "red"})).await, (400, "invalid_request".into()));
        refuses(&node, op, json!({"client_id": null, "uid": "ann", "group": "red"}), "client_id").await;
        refuses(&node, op, json!({"client_id": client.id, "uid": null, "group": "red"}), "uid").await;
    }
    assert_eq!(node.ask("getClientIdListByGroup", json!({"group": "red"})).await, json!([client.id]));
}

async fn an_ungrouped_group_has_no_members_and_they_keep_their_other_groups(world: World) {
    let node = world.start().await;
    let mut clients = join_all((0..10).map(|n| {
        let node = &node;
        async move {
            let client = node.member(&n.to_string(), "red").await;
            node.done("joinGroup", json!({"client_id": client.id, "group": "blue"})).await;
            client
        }
    }))
    .await;
    node.done("ungroup", json!({"group": "red"})).await;
    assert_eq!(node.ask("getAllGroupClientIdCount", json!({})).await, json!({"blue": 10}));
    assert_eq!(nodes(&node, "sendToGroup", json!({"group": "red", "message": "x"})).await, 0);
    node.ask("sendToGroup", json!({"group": ["red", "blue"], "message": "blue"})).await;
    for client in &mut clients {
        hears(client, "blue").await;
    }
    node.done("ungroup", json!({"group": "red"})).await;
    node.done("joinGroup", json!({"client_id": clients[0].id, "group": "red"})).await;
    assert_eq!(node.ask("getClientIdListByGroup", json!({"group": "red"})).await, json!([clients[0].id]));
}

async fn a_client_is_in_at_most_so_many_groups(world: World) {
    let node = world.start_with(&[("MOONGATE_MAX_GROUPS_PER_CLIENT", "3")]).await;
    let client = node.member("ann", "a").await;
    let id = &client.id;
    let groups = async || set(&node.ask("getAllGroupIdList", json!({})).await);
    node.done("joinGroup", json!({"client_id": id, "group": ["b", "c"]})).await;
    refuses(&node, "joinGroup", json!({"client_id": id, "group": "d"}), "group").await;
    refuses(&node, "joinGroup", json!({"client_id": id, "group": ["a", "d"]}), "group").await;
    refuses(&node, "joinGroup", json!({"uid": "ann", "group": "d"}), "group").await;
    assert_eq!(groups().await, names(&["a", "b", "c"]));
    // Those it is in already count once.
    node.done("joinGroup", json!({"client_id": id, "group": ["c", "a"]})).await;
    node.done("leaveGroup", json!({"client_id": id, "group": "a"})).await;
    node.done("joinGroup", json!({"uid": "ann", "group": "d"})).await;
    assert_eq!(groups().await, names(&["b", "c", "d"]));
    // In a batch the refused one is the only one refused.
    let commands = json!([
        {"op": "leaveGroup", "client_id": id, "group": "b"},
        {"op": "joinGroup", "client_id": id, "group": ["x", "y"]},
        {"op": "joinGroup", "client_id": id, "group": "z"},
    ]);
    let answer = node.call("batch", json!({"commands": commands})).await;
    assert_eq!(answer["results"][0], json!({"result": true}));
    assert_eq!(answer["results"][1]["error"]["code"], "invalid_request", "{answer}");
    assert_eq!(answer["results"][1]["error"]["field"], "group", "{answer}");
    assert_eq!(answer["results"][2], json!({"result": true}));
    assert_eq!(groups().await, names(&["c", "d", "z"]));
}

async fn by_default_a_client_is_in_at_most_a_thousand_groups(world: World) {
    let node = world.start().await;
    let client = node.connect().await;
    let groups: Vec<String> = (0..1001).map(|n| format!("g{n}")).collect();
    refuses(&node, "joinGroup", json!({"client_id": client.id, "group": groups}), "group").await;
    node.done("joinGroup", json!({"client_id": client.id, "group": groups[..1000]})).await;
    refuses(&node, "joinGroup", json!({"client_id": client.id, "group": groups[1000]}), "group").await;
    assert_eq!(node.ask("getAllGroupIdList", json!({})).await.as_array().unwrap().len(), 1000);
}

// --- sessions ------------------------------------------------------------------------------------------------------

async fn a_session_is_an_empty_object_until_it_is_set_and_set_replaces_it(world: World) {
    let node = world.start().await;
    let client = node.connect().await;
    let id = json!({"client_id": client.id});
    let set = async |session: Value| node.done("setSession", json!({"client_id": client.id, "session": session})).await;
    assert_eq!(node.ask("getSession", id.clone()).await, json!({}));
    for session in
        [json!({"a": 1, "b": {"c": [1, 2, {"d": null}]}}), json!({"x": "月\u{0}\"\\"}), json!({}), json!([1, 2])]
    {
        set(session.clone()).await;
        assert_eq!(node.ask("getSession", id.clone()).await, session);
    }
    // PHP's empty array.
    set(json!([])).await;
    assert_eq!(node.ask("getSession", id.clone()).await, json!({}));
    for wrong in [json!(null), json!("x"), json!(5), json!(true)] {
        for op in ["setSession", "updateSession"] {
            refuses(&node, op, json!({"client_id": client.id, "session": wrong}), "session").await;
        }
    }
    node.ask("closeClient", id.clone()).await;
    assert_eq!(node.ask("getSession", id).await, json!(null));
}

async fn a_session_keeps_the_digits_and_the_order_it_was_written_with(world: World) {
    let node = world.start().await;
    let client = node.connect().await;
    let session = r#"{"z":1.50,"big":123456789012345678901234567890,"a":1e3,"e":"\u6708"}"#;
    let body = format!(r#"{{"client_id":"{}","session":{session}}}"#, client.id);
    node.post("setSession", &body).await;
    let answer = node.post("getSession", &json!({"client_id": client.id}).to_string()).await;
    assert_eq!(answer.text(), format!("{{\"result\":{session}}}\n"));
}

async fn an_update_merges_into_the_session_and_a_null_deletes_its_key(world: World) {
    let node = world.start().await;
    let client = node.connect().await;
    let id = &client.id;
    let mut expected = json!({});
    for (update, session) in [
        (json!({"a": 1, "b": {"x": 1, "y": 2}}), json!({"a": 1, "b": {"x": 1, "y": 2}})),
        (json!({"a": 2, "c": [1, 2, 3]}), json!({"a": 2, "b": {"x": 1, "y": 2}, "c": [1, 2, 3]})),
        (
            json!({"b": {"y": 3, "z": 4}, "c": ["one"]}),
            json!({"a": 2, "b": {"x": 1, "y": 3, "z": 4}, "c": ["one", 2, 3]}),
        ),
        (json!({}), json!({"a": 2, "b": {"x": 1, "y": 3, "z": 4}, "c": ["one", 2, 3]})),
        (json!({"b": {"x": null, "nothing": null}, "c": null, "none": null}), json!({"a": 2, "b": {"y": 3, "z": 4}})),
        (json!({"b": "flat", "a": {"deep": {"er": 1, "no": null}}}), json!({"a": {"deep": {"er": 1}}, "b": "flat"})),
        (json!({"a": null, "b": null}), json!({})),
    ] {
        node.done("updateSession", json!({"client_id": id, "session": update})).await;
        expected = session;
        assert_eq!(node.ask("getSession", json!({"client_id": id})).await, expected, "after {update}");
    }
    assert_eq!(expected, json!({}));
    // A null that is set is a null.
    node.done("setSession", json!({"client_id": id, "session": {"a": null}})).await;
    assert_eq!(node.ask("getSession", json!({"client_id": id})).await, json!({"a": null}));
}

async fn updates_at_once_are_all_kept(world: World) {
    let node = world.start().await;
    let client = node.connect().await;
    let updates = (0..100).map(|n| {
        let mut session = json!({"last": n});
        session[format!("key {n}")] = json!(n);
        node.done("updateSession", json!({"client_id": client.id, "session": session}))
    });
    join_all(updates).await;
    let session = node.ask("getSession", json!({"client_id": client.id})).await;
    assert_eq!(session.as_object().unwrap().len(), 101, "{session}");
}

async fn a_session_that_is_too_large_is_refused_and_the_old_one_stays(world: World) {
    let node = world.start_with(&[("MOONGATE_MAX_SESSION_SIZE", "100")]).await;
    let client = node.connect().await;
    let id = &client.id;
    let too_large = (413, "payload_too_large".to_owned());
    // {"k":"…"} is eight bytes around what is in it.
    let fits = json!({"k": "x".repeat(92)});
    node.done("setSession", json!({"client_id": id, "session": fits})).await;
    let session = json!({"k": "y".repeat(93)});
    assert_eq!(node.refused("setSession", json!({"client_id": id, "session": session})).await, too_large);
    assert_eq!(node.refused("updateSession", json!({"client_id": id, "session": {"b": 1}})).await, too_large);
    assert_eq!(node.ask("getSession", json!({"client_id": id})).await, fits);
    node.done("updateSession", json!({"client_id": id, "session": {"k": null, "b": 1}})).await;
    assert_eq!(node.ask("getSession", json!({"client_id": id})).await, json!({"b": 1}));
}

async fn by_default_a_session_holds_64_kib(world: World) {
    let node = world.start().await;
    let client = node.connect().await;
    let session = json!({"k": "x".repeat(64 * 1024 - 8)});
    node.done("setSession", json!({"client_id": client.id, "session": session})).await;
    assert_eq!(node.ask("getSession", json!({"client_id": client.id})).await, session);
    let session = json!({"k": "x".repeat(64 * 1024 - 7)});
    let refused = node.refused("setSession", json!({"client_id": client.id, "session": session})).await;
    assert_eq!(refused, (413, "payload_too_large".into()));
}

async fn no_session_makes_an_answer_that_cannot_be_read(world: World) {
    let node = world.start().await;
    let client = node.member("ann", "red").await;
    // Half of a surrogate pair: no text that any UTF-8 string can hold. Refused, or stored so that it can be read.
    for session in [r#"{"a":"\ud800"}"#, r#"{"\udc00":1}"#, r#"{"a":["\ud83c x"]}"#] {
        for op in ["setSession", "updateSession"] {
            let body = format!(r#"{{"client_id":"{}","session":{session}}}"#, client.id);
            let status = node.post(op, &body).await.status;
            assert!(status == 400 || status == 200, "{op} {session}: {status}");
            for (query, fields) in [
                ("getSession", json!({"client_id": client.id})),
                ("getClientSessionsByGroup", json!({"group": "red"})),
                ("getAllClientSessions", json!({})),
            ] {
                let answer = node.post(query, &fields.to_string()).await;
                let read: Result<Value, _> = serde_json::from_slice(&answer.body);
                assert!(read.is_ok(), "{op} {session} was answered with {status}, now {query}: {}", answer.text());
            }
        }
    }
}

async fn an_update_never_loses_what_it_does_not_name(world: World) {
    let node = world.start().await;
    let client = node.connect().await;
    for stored in [r#"{"\udc00":1,"keep":"me"}"#, r#"{"keep":"me","n":1e400}"#, r#"{"":0,"keep":"me","\u0000":1}"#] {
        let body = format!(r#"{{"client_id":"{}","session":{stored}}}"#, client.id);
        if node.post("setSession", &body).await.status != 200 {
            continue;
        }
        node.done("updateSession", json!({"client_id": client.id, "session": {"new": 1}})).await;
        let text = node.post("getSession", &json!({"client_id": client.id}).to_string()).await.text();
        assert!(text.contains(r#""keep":"me""#) && text.contains(r#""new":1"#), "{stored} became {text}");
    }
}

// --- ask -----------------------------------------------------------------------------------------------------------

async fn every_query_tells_who_is_there(world: World) {
    let node = world.start().await;
    let (a, b, c) =
        (node.member("ann", "red").await, node.member("ann", "red").await, node.member("bob", "blue").await);
    let (d, last) = (node.connect().await, node.connect().await);
    node.done("joinGroup", json!({"client_id": a.id, "group": "blue"})).await;
    node.done("joinGroup", json!({"client_id": d.id, "group": "red"})).await;
    node.done("joinGroup", json!({"client_id": d.id, "group": "grey"})).await;
    node.done("setSession", json!({"client_id": a.id, "session": {"n": 1}})).await;
    let ask = async |op: &str, fields: Value| node.ask(op, fields).await;
    let none = || json!({});

    assert_eq!(ask("isOnline", json!({"client_id": last.id})).await, true);
    assert_eq!(ask("isOnline", json!({"client_id": last.id.to_uppercase()})).await, true);
    assert_eq!(ask("isUidOnline", json!({"uid": "ann"})).await, true);
    assert_eq!(ask("isUidOnline", json!({"uid": "zoe"})).await, false);
    let online = ask("isUidsOnline", json!({"uid": ["ann", "bob", "zoe", 5]})).await;
    assert_eq!(online, json!({"ann": true, "bob": true, "zoe": false, "5": false}));
    assert_eq!(ask("getSession", json!({"client_id": a.id})).await, json!({"n": 1}));
    assert_eq!(ask("getUidByClientId", json!({"client_id": a.id})).await, "ann");
    assert_eq!(ask("getUidByClientId", json!({"client_id": d.id})).await, json!(null));
    assert_eq!(set(&ask("getClientIdByUid", json!({"uid": "ann"})).await), ids([&a, &b]));
    let found = ask("batchGetClientIdByUid", json!({"uid": ["ann", "bob", "zoe"]})).await;
    assert_eq!(
        sets(&found),
        [("ann".into(), ids([&a, &b])), ("bob".into(), ids([&c])), ("zoe".into(), ids([]))].into()
    );

    assert_eq!(set(&ask("getClientIdListByGroup", json!({"group": "red"})).await), ids([&a, &b, &d]));
    let several = json!({"group": ["red", "blue", "red", "none"]});
    assert_eq!(set(&ask("getClientIdListByGroup", several.clone()).await), ids([&a, &b, &c, &d]));
    assert_eq!(set(&ask("getUidListByGroup", json!({"group": "red"})).await), names(&["ann"]));
    assert_eq!(set(&ask("getUidListByGroup", several.clone()).await), names(&["ann", "bob"]));
    assert_eq!(ask("getUidListByGroup", json!({"group": "grey"})).await, json!([]));
    assert_eq!(ask("getUidCountByGroup", json!({"group": "red"})).await, 1);
    assert_eq!(ask("getUidCountByGroup", json!({"group": "blue"})).await, 2);
    for op in ["getClientIdCountByGroup", "getClientCountByGroup"] {
        assert_eq!(ask(op, json!({"group": "red"})).await, 3);
        assert_eq!(ask(op, several.clone()).await, 4);
        assert_eq!(ask(op, json!({"group": []})).await, 0);
    }
    let counts = ask("batchGetClientIdCountByGroup", json!({"group": ["red", "blue", "none", 7]})).await;
    assert_eq!(counts, json!({"red": 3, "blue": 2, "none": 0, "7": 0}));
    for op in ["getClientSessionsByGroup", "getClientInfoByGroup"] {
        let mut expected = json!({});
        for (client, session) in [(&a, json!({"n": 1})), (&b, json!({})), (&d, json!({}))] {
            expected[&client.id] = session;
        }
        assert_eq!(ask(op, json!({"group": "red"})).await, expected);
    }

    assert_eq!(set(&ask("getAllClientIdList", none()).await), ids([&a, &b, &c, &d, &last]));
    for op in ["getAllClientIdCount", "getAllClientCount"] {
        assert_eq!(ask(op, none()).await, 5);
    }
    for op in ["getAllClientSessions", "getAllClientInfo"] {
        let sessions = ask(op, none()).await;
        let found: BTreeSet<_> = sessions.as_object().unwrap().keys().cloned().collect();
        assert_eq!(found, ids([&a, &b, &c, &d, &last]));
        assert_eq!((&sessions[&a.id], &sessions[&last.id]), (&json!({"n": 1}), &json!({})));
    }
    assert_eq!(set(&ask("getAllUidList", none()).await), names(&["ann", "bob"]));
    assert_eq!(ask("getAllUidCount", none()).await, 2);
    assert_eq!(set(&ask("getAllGroupIdList", none()).await), names(&["red", "blue", "grey"]));
    let uids = ask("getAllGroupUidList", none()).await;
    assert_eq!(sets(&uids)["red"], names(&["ann"]));
    assert_eq!(sets(&uids)["blue"], names(&["ann", "bob"]));
    let uid_counts = ask("getAllGroupUidCount", none()).await;
    assert_eq!((&uid_counts["red"], &uid_counts["blue"]), (&json!(1), &json!(2)));
    let clients = sets(&ask("getAllGroupClientIdList", none()).await);
    assert_eq!(
        clients,
        [("red".into(), ids([&a, &b, &d])), ("blue".into(), ids([&a, &c])), ("grey".into(), ids([&d]))].into()
    );
    assert_eq!(ask("getAllGroupClientIdCount", none()).await, json!({"red": 3, "blue": 2, "grey": 1}));
}

async fn what_is_not_there_is_zero_empty_or_null(world: World) {
    let node = world.start().await;
    for (op, fields, nothing) in [
        ("isOnline", json!({"client_id": NOBODY}), json!(false)),
        ("isUidOnline", json!({"uid": "x"}), json!(false)),
        ("isUidsOnline", json!({"uid": ["x", "y"]}), json!({"x": false, "y": false})),
        ("isUidsOnline", json!({"uid": []}), json!({})),
        ("getSession", json!({"client_id": NOBODY}), json!(null)),
        ("getUidByClientId", json!({"client_id": NOBODY}), json!(null)),
        ("getClientIdByUid", json!({"uid": "x"}), json!([])),
        ("batchGetClientIdByUid", json!({"uid": ["x", "y"]}), json!({"x": [], "y": []})),
        ("getClientIdListByGroup", json!({"group": "x"}), json!([])),
        ("getClientIdListByGroup", json!({"group": []}), json!([])),
        ("getClientIdCountByGroup", json!({"group": "x"}), json!(0)),
        ("getClientIdCountByGroup", json!({"group": ["x", "y"]}), json!(0)),
        ("batchGetClientIdCountByGroup", json!({"group": ["x", "y"]}), json!({"x": 0, "y": 0})),
        ("getClientSessionsByGroup", json!({"group": "x"}), json!({})),
        ("getUidListByGroup", json!({"group": "x"}), json!([])),
        ("getUidCountByGroup", json!({"group": "x"}), json!(0)),
        ("getAllClientIdList", json!({}), json!([])),
        ("getAllClientIdCount", json!({}), json!(0)),
        ("getAllClientSessions", json!({}), json!({})),
        ("getAllUidList", json!({}), json!([])),
        ("getAllUidCount", json!({}), json!(0)),
        ("getAllGroupIdList", json!({}), json!([])),
        ("getAllGroupUidList", json!({}), json!({})),
        ("getAllGroupUidCount", json!({}), json!({})),
        ("getAllGroupClientIdList", json!({}), json!({})),
        ("getAllGroupClientIdCount", json!({}), json!({})),
        ("getAllClientIdList", json!({"limit": 5}), json!({"items": [], "cursor": null})),
        ("getAllClientSessions", json!({"limit": 5}), json!({"items": {}, "cursor": null})),
        ("getUidListByGroup", json!({"group": "x", "limit": 5}), json!({"items": [], "cursor": null})),
        ("getAllGroupClientIdList", json!({"limit": 5}), json!({"items": {}, "cursor": null})),
    ] {
        assert_eq!(node.ask(op, fields.clone()).await, nothing, "{op} {fields}");
    }
}

/// Every listing that has pages, with the fields it needs.
fn listings() -> Vec<(&'static str, Value)> {
    vec![
        ("getAllClientIdList", json!({})),
        ("getAllClientSessions", json!({})),
        ("getAllClientInfo", json!({})),
        ("getClientIdListByGroup", json!({"group": "all"})),
        ("getClientIdListByGroup", json!({"group": ["all", "odd", "even"]})),
        ("getClientSessionsByGroup", json!({"group": "all"})),
        ("getClientInfoByGroup", json!({"group": "all"})),
        ("getUidListByGroup", json!({"group": ["all", "odd"]})),
        ("getAllUidList", json!({})),
        ("getAllGroupIdList", json!({})),
        ("getAllGroupUidList", json!({})),
        ("getAllGroupClientIdList", json!({})),
    ]
}

/// Clients, two to a uid, each in a group of its own, in `all`, and in `odd` or `even`.
async fn crowd(node: &World, size: usize) -> Vec<Client> {
    join_all((0..size).map(|n| async move {
        let client = node.member(&format!("uid {}", n / 2), "all").await;
        let groups = [format!("own {n}"), if n % 2 == 0 { "even" } else { "odd" }.to_owned()];
        node.done("joinGroup", json!({"client_id": client.id, "group": groups})).await;
        node.done("setSession", json!({"client_id": client.id, "session": {"n": n}})).await;
        client
    }))
    .await
}

/// What a listing of a crowd holds.
fn expected(op: &str, clients: &[Client]) -> BTreeSet<String> {
    let size = clients.len();
    if op.contains("GroupIdList") || op.starts_with("getAllGroup") {
        let own = (0..size).map(|n| format!("own {n}"));
        own.chain(["all", "odd", "even"].map(str::to_owned)).collect()
    } else if op.contains("UidList") {
        (0..size / 2).map(|n| format!("uid {n}")).collect()
    } else {
        ids(clients)
    }
}

async fn pages_hold_everything_exactly_once(world: World) {
    let node = world.start().await;
    let clients = crowd(&node, 20).await;
    for (op, fields) in listings() {
        let expected = expected(op, &clients);
        for limit in [1, 3, 7, expected.len() - 1, expected.len(), expected.len() + 1, 10_000] {
            let found = all_pages(&node, op, &fields, limit).await;
            assert_eq!(found.len(), expected.len(), "{op} {fields} with limit {limit}: {found:?}");
            assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected, "{op} {fields} with limit {limit}");
        }
    }
    // The pages hold what the whole answer holds.
    for (op, fields) in listings() {
        let whole = node.ask(op, fields.clone()).await;
        let mut paged = fields;
        paged["limit"] = json!(10_000);
        let page = node.ask(op, paged).await;
        assert_eq!(page["cursor"], json!(null), "{op}");
        match whole {
            Value::Array(_) => assert_eq!(set(&page["items"]), set(&whole), "{op}"),
            _ if op.starts_with("getAllGroup") => assert_eq!(sets(&page["items"]), sets(&whole), "{op}"),
            _ => assert_eq!(page["items"], whole, "{op}"),
        }
    }
}

async fn pages_hold_everything_exactly_once_while_clients_come_and_go(world: World) {
    let node = world.start().await;
    let clients = crowd(&node, 12).await;
    let paged = Cell::new(false);
    let coming_and_going = async {
        let mut n = 0;
        while !paged.get() {
            let guest = node.member(&format!("guest {n}"), "all").await;
            node.done("joinGroup", json!({"client_id": guest.id, "group": format!("guests {n}")})).await;
            guest.close(1000, "").await;
            n += 1;
        }
    };
    let paging = async {
        for _ in 0..3 {
            for (op, fields) in listings() {
                let expected = expected(op, &clients);
                let found = all_pages(&node, op, &fields, 2).await;
                let stayed: Vec<_> = found.iter().filter(|item| expected.contains(*item)).collect();
                assert_eq!(stayed.len(), expected.len(), "{op} {fields}: {found:?}");
                let found_set: BTreeSet<_> = found.iter().collect();
                assert_eq!(found_set.len(), found.len(), "{op} {fields}: one twice in {found:?}");
            }
        }
        paged.set(true);
    };
    tokio::join!(coming_and_going, paging);
}

async fn a_page_takes_a_limit_of_1_to_10000_and_a_cursor_of_its_own(world: World) {
    let node = world.start().await;
    let _clients = crowd(&node, 2).await;
    for (op, fields) in listings() {
        for wrong in [json!(0), json!(10_001), json!(-1), json!(1.5), json!("5"), json!([]), json!(u64::MAX)] {
            let mut fields = fields.clone();
            fields["limit"] = wrong;
            refuses(&node, op, fields, "limit").await;
        }
        let mut fields = fields;
        fields["limit"] = json!(5);
        fields["cursor"] = json!(5);
        refuses(&node, op, fields, "cursor").await;
    }
    let answer = node.call("getAllClientIdList", json!({"limit": 5, "cursor": "no cursor of ours"})).await;
    assert_eq!((&answer["status"], &answer["field"]), (&json!(400), &json!("cursor")), "{answer}");
}

async fn an_answer_of_more_than_a_hundred_thousand_items_is_too_large_without_pages(world: World) {
    let node = world.start_with(&[("MOONGATE_MAX_GROUPS_PER_CLIENT", "10000")]).await;
    let mut clients = Vec::new();
    for n in 0..11 {
        let client = node.connect().await;
        let groups: Vec<String> = (0..if n == 10 { 1 } else { 10_000 }).map(|g| format!("{n}-{g}")).collect();
        // A thousand at a time: Redis takes each in time, whatever else this machine does.
        for some in groups.chunks(1000) {
            node.done("joinGroup", json!({"client_id": client.id, "group": some})).await;
        }
        if n == 9 {
            // A hundred thousand is not more.
            assert_eq!(node.ask("getAllGroupIdList", json!({})).await.as_array().unwrap().len(), 100_000);
        }
        clients.push(client);
    }
    for op in ["getAllGroupIdList", "getAllGroupClientIdList", "getAllGroupClientIdCount", "getAllGroupUidCount"] {
        assert_eq!(node.refused(op, json!({})).await, (413, "payload_too_large".into()), "{op}");
    }
    let found = all_pages(&node, "getAllGroupIdList", &json!({}), 10_000).await;
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 100_001);
    assert_eq!(found.len(), 100_001);
}

// --- batch ---------------------------------------------------------------------------------------------------------

async fn a_batch_runs_in_order_and_answers_each_command(world: World) {
    let node = world.start().await;
    let mut client = node.connect().await;
    let id = client.id.clone();
    let commands = json!([
        {"op": "sendToUid", "uid": "ann", "message": "not bound yet"},
        {"op": "bindUid", "client_id": id, "uid": "ann"},
        {"op": "sendToUid", "uid": ["ann", "zoe"], "message": "1"},
        {"op": "joinGroup", "client_id": id, "group": "red"},
        {"op": "setSession", "client_id": id, "session": {"a": 1}},
        {"op": "updateSession", "client_id": id, "session": {"b": 2}},
        {"op": "getSession", "client_id": id},
        {"op": "sendToGroup", "group": "red", "message": "2", "confirm": true},
        {"op": "leaveGroup", "client_id": id, "group": "red"},
        {"op": "sendToGroup", "group": "red", "message": "left"},
        {"op": "getAllClientCount"},
        {"message": "3", "client_id": id, "op": "sendToClient"},
    ]);
    let answer = node.call("batch", json!({"commands": commands})).await;
    let results = json!({"results": [
        {"result": {"nodes": 0}},
        {"result": true},
        {"result": {"nodes": 1, "offline": ["zoe"]}},
        {"result": true},
        {"result": true},
        {"result": true},
        {"result": {"a": 1, "b": 2}},
        {"result": {"nodes": 1, "clients": 1}},
        {"result": true},
        {"result": {"nodes": 0}},
        {"result": 1},
        {"result": {"nodes": 1}},
    ]});
    assert_eq!(answer, results);
    for message in ["1", "2", "3"] {
        hears(&mut client, message).await;
    }
    client.heard_nothing(&node).await;
    assert_eq!(node.call("batch", json!({"commands": []})).await, json!({"results": []}));
}

async fn a_wrong_command_of_a_batch_is_that_items_error_and_the_others_run(world: World) {
    let node = world.start().await;
    let mut client = node.connect().await;
    let id = client.id.clone();
    let send = |message: &str| json!({"op": "sendToClient", "client_id": id, "message": message});
    let items = [
        (send("first"), None),
        (json!({"op": "nope"}), Some((404, "unknown_op", None))),
        (json!({"op": "sendToUid", "message": "x"}), Some((400, "invalid_request", Some("uid")))),
        (
            json!({"op": "sendToGroup", "group": "g", "message": "x", "exlude": []}),
            Some((400, "invalid_request", Some("exlude"))),
        ),
        (json!({"op": "bindUid", "client_id": id, "uid": "ann"}), None),
        (json!({"op": "bindUid", "client_id": NOBODY, "uid": "ann"}), Some((404, "client_not_found", None))),
        (json!({"op": "joinGroup", "client_id": NOBODY, "group": "red"}), Some((404, "client_not_found", None))),
        (json!({"op": "joinGroup", "client_id": id, "group": ""}), Some((400, "invalid_request", Some("group")))),
        (json!({"op": "batch", "commands": [send("nested")]}), Some((400, "invalid_request", None))),
        (json!({"op": "batch", "commands": []}), Some((400, "invalid_request", None))),
        (json!({"message": "x"}), Some((400, "invalid_request", Some("op")))),
        (json!({"op": 5}), Some((400, "invalid_request", Some("op")))),
        (json!("sendToAll"), Some((400, "invalid_request", None))),
        (json!(null), Some((400, "invalid_request", None))),
        (json!([]), Some((400, "invalid_request", None))),
        (send("last"), None),
    ];
    let commands: Vec<_> = items.iter().map(|(command, _)| command).collect();
    let answer = node.call("batch", json!({"commands": commands})).await;
    let results = answer["results"].as_array().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(results.len(), items.len());
    for ((command, expected), result) in items.iter().zip(results) {
        match expected {
            None => assert!(result.get("result").is_some(), "{command}: {result}"),
            Some((status, code, field)) => {
                let error = &result["error"];
                assert_eq!((&error["status"], &error["code"]), (&json!(status), &json!(code)), "{command}: {result}");
                assert!(error["title"].is_string() && error["detail"].is_string(), "{command}: {result}");
                if let Some(field) = field {
                    assert_eq!(error["field"], *field, "{command}: {result}");
                }
            }
        }
    }
    hears(&mut client, "first").await;
    hears(&mut client, "last").await;
    client.heard_nothing(&node).await;
}

async fn a_batch_holds_a_thousand_commands_and_of_a_larger_one_nothing_is_done(world: World) {
    let node = world.start().await;
    let mut client = node.connect().await;
    let commands: Vec<_> =
        (0..1001).map(|n| json!({"op": "sendToClient", "client_id": client.id, "message": n.to_string()})).collect();
    refuses(&node, "batch", json!({"commands": commands}), "commands").await;
    client.heard_nothing(&node).await;
    let answer = node.call("batch", json!({"commands": commands[..1000]})).await;
    assert_eq!(answer["results"].as_array().unwrap().len(), 1000);
    for n in 0..1000 {
        hears(&mut client, &n.to_string()).await;
    }
    for wrong in [json!(null), json!({}), json!("x"), json!(5)] {
        refuses(&node, "batch", json!({"commands": wrong}), "commands").await;
    }
}

async fn changes_of_several_clients_in_one_batch_each_have_their_own_answer(world: World) {
    let node = world.start().await;
    let (mut a, mut b) = (node.connect().await, node.connect().await);
    let commands = json!([
        {"op": "bindUid", "client_id": a.id, "uid": "ann"},
        {"op": "joinGroup", "client_id": a.id, "group": "red"},
        {"op": "bindUid", "client_id": b.id, "uid": "ann", "single": true},
        {"op": "joinGroup", "client_id": b.id, "group": "red"},
        {"op": "joinGroup", "client_id": a.id, "group": "blue"},
        {"op": "getClientIdListByGroup", "group": "red"},
    ]);
    let answer = node.call("batch", json!({"commands": commands})).await;
    assert_eq!(answer["results"][4]["error"]["code"], "client_not_found", "{answer}");
    assert_eq!(answer["results"][5], json!({"result": [b.id]}), "{answer}");
    for place in [0, 1, 2, 3] {
        assert_eq!(answer["results"][place], json!({"result": true}), "{answer}");
    }
    assert_eq!(a.closed().await, (4001, "replaced".into()));
    b.heard_nothing(&node).await;
}

// --- the first and the last message --------------------------------------------------------------------------------

async fn a_leave_message_goes_to_the_groups_of_a_client_whatever_ended_it(world: World) {
    let leave = r#"{"type":"close","uname":"{session.uname}","group":"{group}","uid":"{uid}","id":"{client_id}"}"#;
    let node = world.start_with(&[("MOONGATE_LEAVE_MESSAGE", leave)]).await;
    let (mut red, mut blue, mut grey) =
        (node.member("r", "red").await, node.member("b", "blue").await, node.member("g", "grey").await);
    let uname = "Tom \"T\" \u{6708}\n";
    for way in ["closeClient", "destroyClient", "closeUid", "replaced", "says goodbye", "is lost"] {
        let mut client = node.member("ann", "red").await;
        node.done("joinGroup", json!({"client_id": client.id, "group": ["blue", "grey"]})).await;
        node.done("leaveGroup", json!({"client_id": client.id, "group": "grey"})).await;
        node.done("setSession", json!({"client_id": client.id, "session": {"uname": uname}})).await;
        let id = client.id.clone();
        match way {
            "closeUid" => drop(node.ask(way, json!({"uid": "ann"})).await),
            "replaced" => {
                let next = node.connect().await;
                node.done("bindUid", json!({"client_id": next.id, "uid": "ann", "single": true})).await;
                // In no group, it has nobody to say goodbye to.
                next.close(1000, "").await;
            }
            "says goodbye" => client.close(1000, "bye").await,
            "is lost" => drop(client),
            _ => {
                node.ask(way, json!({"client_id": id})).await;
                if way == "destroyClient" {
                    client.cut().await;
                } else {
                    assert_eq!(client.closed().await, (4000, "closed".into()), "its own leaving is not told to it");
                }
            }
        }
        for (group, member) in [("red", &mut red), ("blue", &mut blue)] {
            let heard: Value = serde_json::from_str(&member.text().await).unwrap();
            let told = json!({"type": "close", "uname": uname, "group": group, "uid": "ann", "id": id});
            assert_eq!(heard, told, "{way}");
            member.heard_nothing(&node).await;
        }
        grey.heard_nothing(&node).await;
    }
}

async fn when_a_leave_message_arrives_no_query_finds_the_client_any_more(world: World) {
    let node = world.start_with(&[("MOONGATE_LEAVE_MESSAGE", "{client_id}")]).await;
    let mut stays = [node.member("s", "red").await, node.member("s", "red").await, node.member("s", "red").await];
    let mut caller = node.caller().await;
    for round in 0..rounds(500) {
        let goes = node.member("ann", "red").await;
        node.done("joinGroup", json!({"client_id": goes.id, "group": "own"})).await;
        let id = goes.id.clone();
        drop(goes);
        hears(&mut stays[round % 3], &id).await;
        let commands = json!([
            {"op": "getClientIdCountByGroup", "group": "red"},
            {"op": "isUidOnline", "uid": "ann"},
            {"op": "getAllGroupIdList"},
            {"op": "getAllUidCount"},
            {"op": "getAllClientIdCount"},
            {"op": "isOnline", "client_id": id},
            {"op": "sendToUid", "uid": ["ann"], "message": "x"},
        ]);
        let left = json!([
            {"result": 3}, {"result": false}, {"result": ["red"]}, {"result": 1}, {"result": 3}, {"result": false},
            {"result": {"nodes": 0, "offline": ["ann"]}},
        ]);
        assert_eq!(caller.call("batch", json!({"commands": commands})).await["results"], left, "round {round}");
        let members = node.ask("getClientIdListByGroup", json!({"group": "red"})).await;
        assert_eq!(set(&members), ids(&stays));
        hears(&mut stays[(round + 1) % 3], &id).await;
        hears(&mut stays[(round + 2) % 3], &id).await;
    }
}

async fn a_leave_message_with_a_missing_field_is_not_sent(world: World) {
    let node = world.start_with(&[("MOONGATE_LEAVE_MESSAGE", "{session.user.name} left {group}")]).await;
    let mut stays = node.member("s", "red").await;
    let mut expected = Vec::new();
    for (session, name) in [
        (None, None),
        (Some(json!({"user": {}})), None),
        (Some(json!({"user": "Tom"})), None),
        (Some(json!({"user": {"name": ["Tom"]}})), None),
        (Some(json!({"user": {"name": null}})), None),
        (Some(json!({"user": {"name": "Tom"}})), Some("Tom")),
        (Some(json!({"user": {"name": 7.5}})), Some("7.5")),
        (Some(json!({"user": {"name": true}})), Some("true")),
        (Some(json!({"user": {"name": ""}})), Some("")),
    ] {
        let mut goes = node.member("ann", "red").await;
        if let Some(session) = &session {
            node.done("setSession", json!({"client_id": goes.id, "session": session})).await;
        }
        node.ask("destroyClient", json!({"client_id": goes.id})).await;
        goes.cut().await;
        match name {
            Some(name) => hears(&mut stays, &format!("{name} left red")).await,
            None => expected.push(session),
        }
    }
    // Whatever was wrongly sent would have come before the last one that was right; and nothing comes behind it.
    assert_eq!(expected.len(), 5);
    stays.heard_nothing(&node).await;
}

async fn a_leave_message_is_not_sent_to_groups_that_are_too_large(world: World) {
    let settings = [("MOONGATE_LEAVE_MESSAGE", "{client_id} left {group}"), ("MOONGATE_LEAVE_MAX_GROUP", "2")];
    let node = world.start_with(&settings).await;
    let mut large = [node.member("a", "large").await, node.member("b", "large").await, node.member("c", "large").await];
    let mut small = node.member("d", "small").await;
    let goes = node.member("ann", "large").await;
    let id = goes.id.clone();
    node.done("joinGroup", json!({"client_id": id, "group": "small"})).await;
    goes.close(1000, "").await;
    hears(&mut small, &format!("{id} left small")).await;
    for client in &mut large {
        client.heard_nothing(&node).await;
    }
}

async fn without_a_leave_message_nobody_is_told(world: World) {
    let node = world.start().await;
    let mut stays = node.member("s", "red").await;
    let mut goes = node.member("ann", "red").await;
    node.ask("closeClient", json!({"client_id": goes.id})).await;
    goes.closed().await;
    stays.heard_nothing(&node).await;
}

async fn the_init_message_is_what_the_setting_says(world: World) {
    let init = r#"{"hello":"{client_id}","at":{timestamp},"time":"{time}","braces":{"kept":"{other}"}}"#;
    let node = world.start_with(&[("MOONGATE_INIT_MESSAGE", init)]).await;
    let mut client = node.connect_quietly("/any/path?with=query").await;
    let heard: Value = serde_json::from_str(&client.text().await).unwrap();
    client.id = heard["hello"].as_str().unwrap().to_owned();
    assert_eq!(node.ask("getAllClientIdList", json!({})).await, json!([client.id]));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(heard["at"].as_u64().unwrap()) <= 10, "{heard}");
    let time = heard["time"].as_str().unwrap();
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00 00:00:00", "{heard}");
    assert_eq!(heard["braces"], json!({"kept": "{other}"}));
    client.heard_nothing(&node).await;
}

async fn an_empty_init_message_is_none(world: World) {
    let node = world.start_with(&[("MOONGATE_INIT_MESSAGE", "")]).await;
    let mut client = node.connect_quietly("/").await;
    eventually("the client is there", || async { node.ask("getAllClientIdCount", json!({})).await == 1 }).await;
    node.ask("getAllClientIdList", json!({})).await[0].as_str().unwrap().clone_into(&mut client.id);
    client.heard_nothing(&node).await;
}

async fn from_the_moment_the_init_message_arrives_every_query_finds_the_client(world: World) {
    let node = world.start().await;
    let mut caller = node.caller().await;
    let mut clients = Vec::new();
    for n in 1..=rounds(1000) {
        let client = node.connect().await;
        let commands = json!([
            {"op": "getAllClientIdCount"},
            {"op": "isOnline", "client_id": client.id},
            {"op": "getSession", "client_id": client.id},
            {"op": "bindUid", "client_id": client.id, "uid": n},
            {"op": "sendToUid", "uid": n, "message": "x", "confirm": true},
        ]);
        let answer = caller.call("batch", json!({"commands": commands})).await;
        let found = json!([
            {"result": n}, {"result": true}, {"result": {}}, {"result": true}, {"result": {"nodes": 1, "clients": 1}},
        ]);
        assert_eq!(answer["results"], found, "client {n}");
        clients.push(client);
    }
    assert_eq!(set(&node.ask("getAllClientIdList", json!({})).await), ids(&clients));
}

// --- order ---------------------------------------------------------------------------------------------------------

async fn messages_of_one_sender_arrive_in_the_order_in_which_they_were_sent(world: World) {
    let messages = rounds(5000);
    let node = world.start().await;
    let mut members = join_all((0..5).map(|_| node.member("ann", "red"))).await;
    let holders = node.holding(&members);
    let sending = async {
        let mut caller = node.caller().await;
        for n in 0..messages {
            if n % 50 == 0 {
                // A sequence of calls is one whether the connection is kept or not.
                caller = node.caller().await;
            }
            let answer = caller.call("sendToGroup", json!({"group": "red", "message": n.to_string()})).await;
            assert_eq!(answer["result"]["nodes"], holders);
        }
    };
    let hearing = join_all(members.iter_mut().map(|member| async move {
        for n in 0..messages {
            assert_eq!(member.text().await, n.to_string());
        }
    }));
    tokio::join!(sending, hearing);
}

async fn many_senders_at_once_each_keep_their_own_order_and_nobody_hears_anything_twice(world: World) {
    const SENDERS: usize = 8;
    const MESSAGES: usize = 250;
    let node = world.start().await;
    let uids: Vec<String> = (0..4).map(|n| format!("u{n}")).collect();
    let mut members = join_all(uids.iter().map(|uid| node.member(uid, "red"))).await;
    let targets = [
        ("sendToAll", json!({})),
        ("sendToGroup", json!({"group": ["red", "none"]})),
        ("sendToUid", json!({"uid": ["u0", "u1", "u2", "u3"]})),
        ("sendToAll", json!({"client_ids": ids(&members)})),
    ];
    let holders = node.holding(&members);
    let (node, targets) = (&node, &targets);
    let sending = join_all((0..SENDERS).map(|sender| async move {
        let (op, fields) = &targets[sender % targets.len()];
        let mut caller = node.caller().await;
        for n in 0..MESSAGES {
            let mut fields = fields.clone();
            fields["message"] = json!([sender, n]);
            assert_eq!(caller.call(op, fields).await["result"]["nodes"], holders);
        }
    }));
    let hearing = join_all(members.iter_mut().map(|member| async move {
        let mut next = [0; SENDERS];
        for _ in 0..SENDERS * MESSAGES {
            let (sender, n): (usize, usize) = serde_json::from_str(&member.text().await).unwrap();
            assert_eq!(n, next[sender], "of sender {sender}");
            next[sender] += 1;
        }
    }));
    tokio::join!(sending, hearing);
}

async fn what_was_sent_before_a_client_left_is_still_received(world: World) {
    let node = world.start().await;
    let mut client = node.member("ann", "red").await;
    let (mut sender, mut changer) = (node.caller().await, node.caller().await);
    let id = client.id.clone();
    for n in 0..rounds(500) {
        let message = n.to_string();
        sender.call("sendToGroup", json!({"group": "red", "message": message})).await;
        changer.call("leaveGroup", json!({"client_id": id, "group": "red"})).await;
        sender.call("sendToGroup", json!({"group": "red", "message": "left"})).await;
        hears(&mut client, &message).await;
        sender.call("sendToUid", json!({"uid": "ann", "message": message})).await;
        changer.call("unbindUid", json!({"client_id": id})).await;
        hears(&mut client, &message).await;
        changer.call("bindUid", json!({"client_id": id, "uid": "ann"})).await;
        changer.call("joinGroup", json!({"client_id": id, "group": "red"})).await;
    }
    client.heard_nothing(&node).await;
}

in_every_world! {
    everyone_gets_what_is_sent_to_all,
    sending_to_all_can_be_narrowed_to_a_list_of_clients_and_an_empty_list_is_nobody,
    a_client_gets_what_is_sent_to_it_and_nobody_else_does,
    a_bound_uid_gets_what_is_sent_to_it,
    an_array_of_uids_reaches_each_socket_once_and_the_answer_names_who_is_offline,
    the_members_of_a_group_get_what_is_sent_to_it,
    a_socket_in_several_of_the_groups_gets_the_message_once,
    excluded_clients_and_uids_do_not_get_it,
    nodes_counts_who_holds_the_target_and_does_not_look_at_exclude,
    a_message_is_sent_as_the_string_it_is_and_other_json_as_its_compact_text,
    binary_arrives_as_a_binary_frame,
    a_send_takes_either_a_message_or_binary_and_a_refused_one_reaches_nobody,
    a_send_to_nobody_is_heard_by_no_node_and_is_no_error,
    a_confirmed_send_counts_the_sockets_that_took_it,
    an_integer_is_its_decimal_text_and_zero_is_a_name_like_any_other,
    what_is_no_uid_or_group_is_refused_by_name,
    arrays_are_taken_where_they_are_promised_and_nowhere_else,
    every_operation_refuses_a_field_it_does_not_know_and_names_it,
    a_closed_client_sees_4000_closed_and_has_left_when_it_is_answered,
    a_close_carries_its_message_its_code_and_its_reason,
    a_close_takes_only_codes_and_reasons_that_may_travel,
    what_is_queued_arrives_before_the_close_frame,
    a_destroyed_client_is_gone_at_once_and_sees_no_close_frame,
    closing_a_uid_closes_all_its_clients_and_no_others,
    a_client_that_leaves_by_itself_leaves_its_uid_and_groups,
    binding_again_replaces_the_uid,
    an_unbind_with_a_uid_is_only_of_that_uid,
    a_single_bind_closes_the_uids_other_clients_as_replaced,
    of_two_single_binds_at_once_exactly_one_client_stays,
    of_many_single_binds_at_once_exactly_one_client_stays,
    a_change_of_a_client_that_is_not_online_is_client_not_found,
    a_failed_single_bind_replaces_nobody,
    what_is_sent_after_a_bind_or_join_was_answered_arrives,
    leaving_one_group_for_another_in_a_batch_loses_and_doubles_nothing,
    joining_one_group_before_leaving_another_in_a_batch_loses_and_doubles_nothing,
    moving_between_two_of_many_groups_in_a_batch_loses_and_doubles_nothing,
    binding_a_client_again_to_the_same_uid_loses_and_doubles_nothing,
    binding_a_client_to_another_uid_loses_and_doubles_nothing,
    binding_a_client_to_another_of_many_uids_loses_and_doubles_nothing,
    joining_a_group_again_loses_and_doubles_nothing,
    a_uid_that_is_bound_again_is_online_all_the_time,
    joining_and_leaving_twice_is_as_once,
    a_uid_joins_and_leaves_with_all_its_clients,
    a_group_change_is_of_a_client_or_of_a_uid_and_not_of_both,
    an_ungrouped_group_has_no_members_and_they_keep_their_other_groups,
    a_client_is_in_at_most_so_many_groups,
    by_default_a_client_is_in_at_most_a_thousand_groups,
    a_session_is_an_empty_object_until_it_is_set_and_set_replaces_it,
    a_session_keeps_the_digits_and_the_order_it_was_written_with,
    an_update_merges_into_the_session_and_a_null_deletes_its_key,
    updates_at_once_are_all_kept,
    a_session_that_is_too_large_is_refused_and_the_old_one_stays,
    by_default_a_session_holds_64_kib,
    no_session_makes_an_answer_that_cannot_be_read,
    an_update_never_loses_what_it_does_not_name,
    every_query_tells_who_is_there,
    what_is_not_there_is_zero_empty_or_null,
    pages_hold_everything_exactly_once,
    pages_hold_everything_exactly_once_while_clients_come_and_go,
    a_page_takes_a_limit_of_1_to_10000_and_a_cursor_of_its_own,
    an_answer_of_more_than_a_hundred_thousand_items_is_too_large_without_pages,
    a_batch_runs_in_order_and_answers_each_command,
    a_wrong_command_of_a_batch_is_that_items_error_and_the_others_run,
    a_batch_holds_a_thousand_commands_and_of_a_larger_one_nothing_is_done,
    changes_of_several_clients_in_one_batch_each_have_their_own_answer,
    a_leave_message_goes_to_the_groups_of_a_client_whatever_ended_it,
    when_a_leave_message_arrives_no_query_finds_the_client_any_more,
    a_leave_message_with_a_missing_field_is_not_sent,
    a_leave_message_is_not_sent_to_groups_that_are_too_large,
    without_a_leave_message_nobody_is_told,
    the_init_message_is_what_the_setting_says,
    an_empty_init_message_is_none,
    from_the_moment_the_init_message_arrives_every_query_finds_the_client,
    messages_of_one_sender_arrive_in_the_order_in_which_they_were_sent,
    many_senders_at_once_each_keep_their_own_order_and_nobody_hears_anything_twice,
    what_was_sent_before_a_client_left_is_still_received,
}
