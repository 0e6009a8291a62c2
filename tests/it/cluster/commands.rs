//! `mg:cmd`.

use super::*;

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
