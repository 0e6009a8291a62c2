//! A node against a model so simple that it is plainly right: random commands, and after them the same answers, and
//! for every client the same messages in the same order.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::harness::{Client, Node, rounds};

const UIDS: [&str; 3] = ["u0", "u1", "u2"];
const GROUPS: [&str; 3] = ["g0", "g1", "g2"];

/// What one client is and has heard, as the contract says.
#[derive(Default)]
struct Expected {
    uid: Option<&'static str>,
    groups: BTreeSet<&'static str>,
    session: BTreeMap<String, u64>,
    heard: Vec<String>,
    closed: Option<u16>,
}

impl Expected {
    fn end(&mut self, code: u16) {
        *self = Self { heard: std::mem::take(&mut self.heard), closed: Some(code), ..Self::default() };
    }
}

/// Numerical Recipes' generator: a seed names a whole run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn some<T: Copy>(&mut self, of: &[T]) -> Vec<T> {
        of.iter().copied().filter(|_| self.roll(2) == 0).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_commands_have_the_effects_of_the_model() {
    let node = Node::start().await;
    for seed in 0..rounds(40) {
        run(&node, seed as u64).await;
    }
}

async fn run(node: &Node, seed: u64) {
    let mut dice = Dice(seed);
    let mut clients: Vec<Client> = Vec::new();
    let mut model: Vec<Expected> = Vec::new();
    for step in 0..60 {
        let text = format!("{seed}.{step}");
        if clients.len() < 3 || dice.roll(12) == 0 {
            clients.push(node.connect().await);
            model.push(Expected::default());
            continue;
        }
        let one = dice.roll(clients.len());
        let (uid, group) = (UIDS[dice.roll(3)], GROUPS[dice.roll(3)]);
        let id = clients[one].id.clone();
        let ids = |of: &[usize]| of.iter().map(|&place| clients[place].id.clone()).collect::<Vec<_>>();
        let everyone: Vec<usize> = (0..clients.len()).collect();
        let online = model[one].closed.is_none();
        let mut expected = if online { json!({"result": true}) } else { json!("client_not_found") };
        let (op, fields) = match dice.roll(15) {
            0 => {
                model
                    .iter_mut()
                    .filter(|client| client.closed.is_none())
                    .for_each(|client| client.heard.push(text.clone()));
                expected = json!(null);
                ("sendToAll", json!({"message": text}))
            }
            1 => {
                if online {
                    model[one].heard.push(text.clone());
                }
                expected = json!({"result": {"nodes": u8::from(online)}});
                ("sendToClient", json!({"client_id": id, "message": text}))
            }
            2 => {
                let uids = dice.some(&UIDS);
                let mut held = BTreeSet::new();
                for client in &mut model {
                    if client.uid.is_some_and(|uid| uids.contains(&uid)) {
                        held.extend(client.uid);
                        client.heard.push(text.clone());
                    }
                }
                let offline: Vec<_> = uids.iter().filter(|uid| !held.contains(*uid)).collect();
                expected = json!({"result": {"nodes": u8::from(!held.is_empty()), "offline": offline}});
                ("sendToUid", json!({"uid": uids, "message": text}))
            }
            3 => {
                let (groups, but, but_uids) = (dice.some(&GROUPS), dice.some(&everyone), dice.some(&UIDS));
                let mut took = 0;
                for (place, client) in model.iter_mut().enumerate() {
                    let named = groups.iter().any(|group| client.groups.contains(group));
                    if named && !but.contains(&place) && !client.uid.is_some_and(|uid| but_uids.contains(&uid)) {
                        client.heard.push(text.clone());
                        took += 1;
                    }
                }
                let held = model.iter().any(|client| groups.iter().any(|group| client.groups.contains(group)));
                expected = json!({"result": {"nodes": u8::from(held), "clients": took}});
                let fields = json!({"group": groups, "message": text, "exclude": ids(&but), "exclude_uid": but_uids, "confirm": true});
                ("sendToGroup", fields)
            }
            4 | 5 => {
                let single = dice.roll(3) == 0;
                if online {
                    model[one].uid = Some(uid);
                    for (place, client) in model.iter_mut().enumerate() {
                        if single && place != one && client.uid == Some(uid) {
                            client.end(4001);
                        }
                    }
                }
                ("bindUid", json!({"client_id": id, "uid": uid, "single": single}))
            }
            6 => {
                if model[one].uid == Some(uid) {
                    model[one].uid = None;
                }
                ("unbindUid", json!({"client_id": id, "uid": uid}))
            }
            7 | 8 => {
                if online {
                    model[one].groups.insert(group);
                }
                ("joinGroup", json!({"client_id": id, "group": group}))
            }
            9 => {
                model[one].groups.remove(group);
                ("leaveGroup", json!({"client_id": id, "group": group}))
            }
            10 => {
                let groups = dice.some(&GROUPS);
                model
                    .iter_mut()
                    .filter(|client| client.uid == Some(uid))
                    .for_each(|client| client.groups.extend(&groups));
                expected = json!({"result": true});
                ("joinGroup", json!({"uid": uid, "group": groups}))
            }
            11 => {
                for client in &mut model {
                    client.groups.remove(group);
                }
                expected = json!({"result": true});
                ("ungroup", json!({"group": group}))
            }
            12 => {
                let key = format!("k{}", dice.roll(3));
                let value = (dice.roll(3) > 0).then_some(step);
                if online {
                    match value {
                        Some(value) => drop(model[one].session.insert(key.clone(), value)),
                        None => drop(model[one].session.remove(&key)),
                    }
                }
                ("updateSession", json!({"client_id": id, "session": {key: value}}))
            }
            13 => {
                if online {
                    model[one].heard.push(text.clone());
                    model[one].end(3000);
                }
                expected = json!({"result": {"nodes": u8::from(online)}});
                ("closeClient", json!({"client_id": id, "message": text, "code": 3000}))
            }
            _ => {
                let held = model.iter().any(|client| client.uid == Some(uid));
                model.iter_mut().filter(|client| client.uid == Some(uid)).for_each(|client| client.end(4000));
                expected = json!({"result": {"nodes": u8::from(held)}});
                ("closeUid", json!({"uid": uid}))
            }
        };
        let answer = node.call(op, fields.clone()).await;
        let answer = if answer["code"].is_string() { answer["code"].clone() } else { answer };
        if !expected.is_null() {
            assert_eq!(answer, expected, "seed {seed}, step {step}: {op} {fields}");
        }
        compare(node, &clients, &model, seed, step).await;
    }
    for (client, expected) in clients.iter_mut().zip(&model) {
        for text in &expected.heard {
            assert_eq!(&client.text().await, text, "seed {seed}");
        }
        match expected.closed {
            Some(code) => assert_eq!(client.closed().await.0, code, "seed {seed}"),
            None => client.heard_nothing(node).await,
        }
        node.call("closeClient", json!({"client_id": client.id})).await;
    }
    assert_eq!(node.ask("getAllClientIdCount", json!({})).await, json!(0), "seed {seed}");
}

/// Asks what the model knows.
async fn compare(node: &Node, clients: &[Client], model: &[Expected], seed: u64, step: u64) {
    let online = || clients.iter().zip(model).filter(|(_, expected)| expected.closed.is_none());
    let mut sessions = BTreeMap::new();
    let (mut by_group, mut uids_by_group) = (BTreeMap::<_, BTreeSet<_>>::new(), BTreeMap::<_, BTreeSet<_>>::new());
    let mut by_uid: BTreeMap<_, BTreeSet<_>> = UIDS.iter().map(|uid| (*uid, BTreeSet::new())).collect();
    for (client, expected) in online() {
        sessions.insert(&client.id, &expected.session);
        for group in &expected.groups {
            by_group.entry(*group).or_default().insert(&client.id);
            uids_by_group.entry(*group).or_default().extend(expected.uid);
        }
        if let Some(uid) = expected.uid {
            by_uid.entry(uid).or_default().insert(&client.id);
        }
    }
    let uids: Vec<_> = by_uid.iter().filter(|(_, clients)| !clients.is_empty()).map(|(uid, _)| uid).collect();
    for (op, fields, expected) in [
        ("getAllClientSessions", json!({}), json!(sessions)),
        ("getAllGroupClientIdList", json!({}), json!(by_group)),
        ("getAllGroupUidList", json!({}), json!(uids_by_group)),
        ("batchGetClientIdByUid", json!({"uid": UIDS}), json!(by_uid)),
        ("getAllUidList", json!({}), json!(uids)),
        ("getAllClientIdCount", json!({}), json!(sessions.len())),
    ] {
        let answer = node.ask(op, fields).await;
        assert_eq!(sorted(answer), sorted(expected), "seed {seed}, step {step}: {op}");
    }
}

/// Lists of answers are in no order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(mut items) => {
            items.sort_by_key(ToString::to_string);
            Value::Array(items)
        }
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, sorted(value))).collect(),
        other => other,
    }
}
