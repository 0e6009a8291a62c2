//! What applications hear of clients whose node dies, or was only taken for dead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::eventually;
use crate::history::entries;
use crate::receiver::Receiver;
use crate::redis::Redis;
use crate::world::{Ear, Process, TTL, throughout, within};

/// Longer than a sweep takes.
const SWEPT: Duration = TTL.saturating_add(Duration::from_secs(7));

const EVENTS: &str = "stream,webhook:bound+unbound+close";

/// The ids under which each of these clients' events of one name stand on the stream.
async fn ids(redis: &Redis, event: &str, clients: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
    let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in entries(redis).await {
        if entry["event"] == event && clients.contains(&entry["client_id"]) {
            ids.entry(entry["client_id"].clone()).or_default().insert(entry["id"].clone());
        }
    }
    ids
}

fn of_webhook(receiver: &Receiver, event: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for told in receiver.accepted().into_iter().filter(|told| told["event"] == event) {
        let text = |name: &str| told[name].as_str().unwrap().to_owned();
        ids.entry(text("client_id")).or_default().insert(text("id"));
    }
    ids
}

/// Clients with a uid, groups and a session.
async fn crowd(process: &Process, name: &str, count: usize) -> Vec<Ear> {
    let mut ears = Vec::new();
    for number in 0..count {
        let ear = Ear::member(process, &format!("{name}-{number}"), &["room"]).await;
        process.done("setSession", json!({"client_id": ear.id, "session": {"n": number}})).await;
        ears.push(ear);
    }
    ears
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_killed_nodes_clients_is_told_by_a_survivor_under_one_id() {
    let (redis, receiver) = (Redis::start().await, Receiver::start().await);
    let (url, hook) = (redis.url(), receiver.url());
    let settings = |name| [("MOONGATE_NODE_ID", name), ("MOONGATE_EVENTS", EVENTS), ("MOONGATE_WEBHOOK_URL", &*hook)];
    let victim = Process::ready(&url, &settings("victim")).await;
    let survivors = [Process::ready(&url, &settings("second")).await, Process::ready(&url, &settings("third")).await];
    let dying = crowd(&victim, "dying", 200).await;
    let living = crowd(&survivors[0], "living", 3).await;
    let clients: BTreeSet<String> = dying.iter().map(|ear| ear.id.clone()).collect();
    eventually("all are told to be there", async || ids(&redis, "bound", &clients).await.len() == 200).await;

    victim.kill();
    within(SWEPT, "all are told to have left", async || ids(&redis, "close", &clients).await.len() == 200).await;
    within(SWEPT, "by webhook, too", async || of_webhook(&receiver, "close").len() == 200).await;
    // A second pass comes, and tells no other id.
    throughout(TTL + Duration::from_secs(1), "each has one id", async || {
        let (unbound, closes) = (ids(&redis, "unbound", &clients).await, ids(&redis, "close", &clients).await);
        let one_each =
            |ids: &BTreeMap<String, BTreeSet<String>>| ids.len() == 200 && ids.values().all(|ids| ids.len() == 1);
        one_each(&unbound) && one_each(&closes)
    })
    .await;
    assert_eq!(of_webhook(&receiver, "close"), ids(&redis, "close", &clients).await);
    assert_eq!(of_webhook(&receiver, "unbound"), ids(&redis, "unbound", &clients).await);
    let stream = entries(&redis).await;
    for ear in &dying {
        let own: Vec<_> = stream.iter().filter(|entry| entry["client_id"] == ear.id).collect();
        let last: Vec<&str> = own.iter().rev().take(2).map(|entry| &*entry["event"]).collect();
        assert_eq!(last, ["close", "unbound"]);
        let (close, unbound) = (own[own.len() - 1], own[own.len() - 2]);
        assert_eq!((&*close["code"], &*close["reason"], &*close["node"]), ("1006", "node", "victim"));
        assert_eq!((&*close["groups"], &*unbound["last"]), (r#"["room"]"#, "true"));
        assert_eq!(close["uid"], unbound["uid"]);
        assert!(close["uid"].starts_with("dying-") && close["session"].starts_with(r#"{"n":"#), "{close:?}");
        let bound = own.iter().find(|entry| entry["event"] == "bound").unwrap();
        assert!(bound["seq"].parse::<u64>().unwrap() < unbound["seq"].parse::<u64>().unwrap());
    }
    drop((dying, living));
    for survivor in survivors {
        survivor.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_swept_and_wakes_up_tells_nothing_that_was_told() {
    let (redis, receiver) = (Redis::start().await, Receiver::start().await);
    let (url, hook) = (redis.url(), receiver.url());
    let settings = [("MOONGATE_EVENTS", EVENTS), ("MOONGATE_WEBHOOK_URL", &*hook)];
    let sleeper = Process::ready(&url, &settings).await;
    let survivor = Process::ready(&url, &settings).await;
    let mut sleeping = crowd(&sleeper, "sleeping", 20).await;
    let clients: BTreeSet<String> = sleeping.iter().map(|ear| ear.id.clone()).collect();
    sleeper.freeze().await;
    within(SWEPT, "all are told to have left", async || ids(&redis, "close", &clients).await.len() == 20).await;
    // They come again, to the survivor, before the sleeper wakes up.
    let back = crowd(&survivor, "sleeping", 20).await;
    sleeper.thaw();
    within(SWEPT, "their sockets are closed", async || sleeping.iter().all(|ear| ear.closed() == Some(1012))).await;
    sleeper.until_ready(SWEPT).await;
    sleeping.clear();
    let newcomer = Ear::member(&sleeper, "new", &["room"]).await;
    eventually("its webhook goes on", async || {
        receiver.accepted().iter().any(|event| event["event"] == "bound" && event["client_id"] == newcomer.id.as_str())
    })
    .await;
    let closes = ids(&redis, "close", &clients).await;
    assert!(closes.len() == 20 && closes.values().all(|ids| ids.len() == 1), "{closes:?}");
    assert_eq!(of_webhook(&receiver, "close"), closes);
    let told = entries(&redis).await.into_iter().filter(|entry| entry["event"] == "close");
    assert_eq!(told.count(), 20, "told once");
    // Whoever obeys `seq` knows that all are online.
    let mut highest: BTreeMap<String, (u64, Value)> = BTreeMap::new();
    for event in receiver.accepted().into_iter().filter(|event| event["event"] != "close") {
        let (uid, seq) = (event["uid"].as_str().unwrap().to_owned(), event["seq"].as_u64().unwrap());
        if highest.get(&uid).is_none_or(|(before, _)| *before < seq) {
            highest.insert(uid, (seq, event["event"].clone()));
        }
    }
    assert!(highest.len() == 21 && highest.values().all(|(_, event)| event == "bound"), "{highest:?}");
    drop((back, newcomer));
    sleeper.stop().await;
    survivor.stop().await;
}
