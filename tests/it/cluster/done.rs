//! What "done" means.

use super::*;

/// So many applications at once, each with its client.
const APPLICATIONS: usize = 4;

/// Again and again: a change at one node of a client on the other, and, as soon as it is answered, a publish.
async fn whatever_is_published_after_an_answer_arrives(op: &str, name: &str, channel: &str) {
    Pair::run(async |pair| {
        let applications = (0..APPLICATIONS).map(async |application| {
            let (asked, home) = if application % 2 == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
            let (mut caller, mut program) = (asked.caller().await, pair.redis.connection().await);
            let mut client = home.connect().await;
            for round in 0..rounds(10_000) / APPLICATIONS {
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
    Pair::run(async |pair| {
        let clients = [pair.a.connect().await, pair.b.connect().await];
        let ids: BTreeSet<&str> = clients.iter().map(|client| &*client.id).collect();
        let (mut a, mut b) = (pair.a.caller().await, pair.b.caller().await);
        for round in 0..rounds(200) {
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
    Pair::run(async |pair| {
        for round in 0..rounds(200) {
            let (home, other) = if round % 2 == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
            let client = home.connect().await;
            assert_eq!(other.ask("isOnline", json!({"client_id": client.id})).await, json!(true), "round {round}");
            assert!(other.ask("getAllClientSessions", json!({})).await[&client.id].is_object(), "round {round}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_clients_that_are_bound_as_the_single_one_at_once_at_two_nodes_exactly_one_stays() {
    Pair::run(async |pair| {
        let (rounds, mut first_stays) = (rounds(1000), 0);
        let (mut a, mut b, mut program) = (pair.a.caller().await, pair.b.caller().await, pair.redis.connection().await);
        let (mut first, mut second) = (pair.a.connect().await, pair.b.connect().await);
        for round in 0..rounds {
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
        assert!((1..rounds).contains(&first_stays), "never at once: {first_stays}");
    })
    .await;
}
