//! Redis publish: how many heard it.

use super::*;

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
