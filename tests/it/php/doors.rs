//! Who is let in, and what PHP and other doors see of each other.

use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use super::{
    BIND_UID, Browser, CLIENT_CONNECT, COUNT, GET_SESSION, IS_ONLINE, JOIN_GROUP, KICK, PHP, Peer, SEND_TO_GROUP,
    SET_SESSION, connection, inner_address, packet,
};
use crate::harness::{Node, World, eventually, in_every_world};

in_every_world! {
    a_session_with_php_objects_is_kept_as_it_is,
    what_php_does_is_seen_by_every_other_door,
    what_other_doors_do_is_seen_by_php,
}

async fn what_php_does_is_seen_by_every_other_door(world: World) {
    let world = world.start_with(PHP).await;
    let client = world.connect().await;
    let mut caller = Peer::connect(inner_address(&client.id)).await;
    let id = connection(&client.id);
    caller.send(&packet(BIND_UID, id, "用户".as_bytes(), b"")).await;
    caller.send(&packet(JOIN_GROUP, id, b"room", b"")).await;
    let session =
        "a:6:{s:1:\"n\";i:1;s:1:\"f\";d:1;s:1:\"l\";a:2:{i:0;s:3:\"中\";i:1;N;}i:7;b:1;s:3:\"bin\";s:2:\"\u{0}";
    let session = [session.as_bytes(), b"\xff\";s:1:\"e\";a:0:{}}"].concat();
    caller.send(&packet(SET_SESSION, id, &session, b"")).await;
    eventually("the uid is bound", async || {
        world.ask("getClientIdByUid", json!({"uid": "用户"})).await == json!([client.id])
    })
    .await;
    eventually("it is in the group, with its session", async || {
        let expected = json!({&client.id: {
            "n": 1, "f": 1.0, "l": ["中", null], "7": true, "bin": {"$binary": "AP8="}, "e": [],
        }});
        world.ask("getClientSessionsByGroup", json!({"group": "room"})).await == expected
    })
    .await;
    assert_eq!(caller.ask(COUNT, 0, b"room").await, "i:1;");
    caller.send(&packet(GET_SESSION, id, b"", b"")).await;
    assert_eq!(caller.answer().await, session);
    caller.send(&packet(KICK, id, b"", b"bye")).await;
    eventually("it has left", async || world.ask("isUidOnline", json!({"uid": "用户"})).await == false).await;
    drop(client);
}

async fn a_session_with_php_objects_is_kept_as_it_is(world: World) {
    let world = world.start_with(PHP).await;
    let client = world.connect().await;
    let (id, mut caller) = (connection(&client.id), Peer::connect(inner_address(&client.id)).await);
    let session = r#"a:1:{s:1:"o";O:3:"Foo":1:{s:1:"a";i:1;}}"#;
    caller.send(&packet(SET_SESSION, id, session.as_bytes(), b"")).await;
    assert_eq!(caller.ask(GET_SESSION, id, b"").await, session);
    eventually("other doors see that it is there", async || {
        world.ask("getSession", json!({"client_id": client.id})).await["$php"].is_string()
    })
    .await;
    let update = json!({"client_id": client.id, "session": {"more": 1}});
    assert_eq!(world.refused("updateSession", update).await, (400, "invalid_request".to_owned()));
    assert_eq!(caller.ask(GET_SESSION, id, b"").await, session);
}

async fn what_other_doors_do_is_seen_by_php(world: World) {
    let world = world.start_with(PHP).await;
    let mut client = world.member("u", "room").await;
    let session = r#"{"name":"Tom","tags":["a","b"],"n":1,"f":1.5,"0":{"deep":null},"big":18446744073709551616}"#;
    let set = world.post("setSession", &format!(r#"{{"client_id":"{}","session":{session}}}"#, client.id)).await;
    assert_eq!(set.status, 200);
    let mut caller = Peer::connect(inner_address(&client.id)).await;
    let id = connection(&client.id);
    let expected = "a:6:{s:4:\"name\";s:3:\"Tom\";s:4:\"tags\";a:2:{i:0;s:1:\"a\";i:1;s:1:\"b\";}s:1:\"n\";i:1;\
        s:1:\"f\";d:1.5;i:0;a:1:{s:4:\"deep\";N;}s:3:\"big\";d:1.8446744073709552E+19;}";
    assert_eq!(caller.ask(GET_SESSION, id, b"").await, expected);
    assert_eq!(caller.ask(COUNT, 0, b"room").await, "i:1;");
    caller.send(&packet(SEND_TO_GROUP, 0, br#"{"group":["room"],"exclude":null}"#, b"from PHP")).await;
    assert_eq!(client.text().await, "from PHP");
    world.done("leaveGroup", json!({"client_id": client.id, "group": "room"})).await;
    assert_eq!(caller.ask(COUNT, 0, b"room").await, "i:0;");
    world.ask("closeClient", json!({"client_id": client.id})).await;
    assert_eq!(client.closed().await.0, 4000);
    assert_eq!(caller.ask(IS_ONLINE, id, b"").await, "i:0;");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_key_nobody_is_answered() {
    let node = Node::start_with(&[PHP, &[("MOONGATE_SECRET_KEY", "s3cret/密")]].concat()).await;
    let browser = Browser::connect(&node).await;
    let (inner, id) = (inner_address(&browser.id), connection(&browser.id));
    let question = packet(IS_ONLINE, id, b"", b"");
    let key = |key: &str| packet(CLIENT_CONNECT, 0, b"", format!(r#"{{"secret_key":"{key}"}}"#).as_bytes());
    for stranger in [
        question.clone(),
        [key("s3cret"), question.clone()].concat(),
        [key(""), question.clone()].concat(),
        [packet(CLIENT_CONNECT, 0, b"", b"s3cret/"), question.clone()].concat(),
        packet(CLIENT_CONNECT, 0, b"", &"x".repeat(100_000).into_bytes()),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
    ] {
        let mut peer = Peer::connect(inner).await;
        // It may be refused before it has said all.
        drop(peer.0.write_all(&stranger).await);
        peer.has_ended().await;
    }
    // PHP escapes what it says, and says the key before each command.
    let known = [key(r"s3cret\/\u5bc6"), question].concat();
    let mut peer = Peer::connect(inner).await;
    for _ in 0..3 {
        peer.send(&known).await;
        assert_eq!(peer.answer().await, b"i:1;");
    }
    peer.send(&key("wrong")).await;
    peer.has_ended().await;
    assert_eq!(node.metric("moongate_php_refused_total").await, 7.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_counted_and_harms_nobody() {
    let settings = [("MOONGATE_MAX_SESSION_SIZE", "64"), ("MOONGATE_MAX_GROUPS_PER_CLIENT", "1")];
    let node = Node::start_with(&[PHP, &settings].concat()).await;
    let browser = Browser::connect(&node).await;
    let (id, mut peer) = (connection(&browser.id), Peer::connect(inner_address(&browser.id)).await);
    peer.send(&packet(BIND_UID, id, b"\xff\xfe", b"")).await;
    peer.send(&packet(JOIN_GROUP, id, &[b'x'; 257], b"")).await;
    peer.send(&packet(JOIN_GROUP, id, b"one", b"")).await;
    peer.send(&packet(JOIN_GROUP, id, b"two", b"")).await;
    peer.send(&packet(SET_SESSION, id, &[b'x'; 100], b"")).await;
    // Nothing, written as it is.
    let mut nothing = packet(5, id, b"", b"");
    nothing[21] = 3;
    peer.send(&nothing).await;
    let mut not_a_scalar = packet(5, id, b"", br#"O:3:"Foo":0:{}"#);
    not_a_scalar[21] = 0;
    peer.send(&not_a_scalar).await;
    assert_eq!(peer.ask(COUNT, 0, b"one").await, "i:1;");
    assert_eq!(peer.ask(COUNT, 0, b"two").await, "i:0;");
    assert_eq!(peer.ask(GET_SESSION, id, b"").await, "a:0:{}");
    let metrics = node.get("/metrics").await.text();
    for (reason, count) in [("name", 2), ("too_many_groups", 1), ("session", 1), ("message", 2)] {
        let series = format!("moongate_php_ignored_total{{reason=\"{reason}\"}} {count}\n");
        assert!(metrics.contains(&series), "{series} in {metrics}");
    }
}
