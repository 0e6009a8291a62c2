//! Bad input.

use super::*;

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
        assert_eq!(program.command(&["KEYS", "*"]).await.names(), names(&["mg:tasks"]));
    }
}
