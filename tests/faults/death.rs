//! Nodes that die, and one that was only taken for dead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Node, eventually};
use crate::history::{Load, entries, lives};
use crate::proxy::Proxy;
use crate::redis::{Redis, Reply};
use crate::world::{
    Ear, Expected, LEAVE, Process, TTL, all_are_reached_through, all_open, chaos, count, crowd, end, field, haunt,
    mentions, node, nodes, redis_holds, run_of, saw, sum, throughout, traces_of, within,
};

const LEAVING: (&str, &str) = ("MOONGATE_LEAVE_MESSAGE", LEAVE);

/// What the contract gives a sweep of less than 10,000 clients, a beat to look, and a machine that does much else.
const SWEPT: Duration = TTL.saturating_add(Duration::from_secs(7));

/// How often each name was told to have left.
fn told(ear: &Ear) -> BTreeMap<String, usize> {
    let mut told = BTreeMap::new();
    for text in ear.heard() {
        if let Ok(message) = serde_json::from_str::<serde_json::Value>(&text)
            && message["type"] == "close"
        {
            *told.entry(message["uname"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    told
}

/// Each of these once.
fn each_once(names: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    names.into_iter().map(|name| (name, 1)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_killed_node_nothing_is_left_and_its_groups_are_told_once_while_others_go_on() {
    let redis = Redis::start().await;
    let names = ["victim", "second", "third"];
    let [victim, second, third] = names.map(|name| [("MOONGATE_NODE_ID", name), LEAVING]);
    let url = redis.url();
    let victim = Process::ready(&url, &victim).await;
    let (second, third) = (Process::ready(&url, &second).await, Process::ready(&url, &third).await);

    let dying = crowd(&victim, "dying", 200, "room").await;
    let mut living = crowd(&second, "second", 5, "room").await;
    living.extend(crowd(&third, "third", 5, "room").await);
    let observer = Ear::member(&second, "observer", &["dying-group-3"]).await;
    let ids: BTreeSet<String> = dying.iter().map(|ear| ear.id.clone()).collect();
    let uids: Vec<String> = (0..200).map(|number| format!("dying-{number}")).collect();
    let run = run_of(&redis, "victim").await.unwrap();
    let lan = field(&redis, "mg:node:victim", "lan").await.unwrap();
    assert!(lan.starts_with("127.0.0.1:"), "{lan}");
    assert!(!mentions(&redis, &ids).await.is_empty() && traces_of(&redis, "victim", &run).await.len() == 4);

    // Others are served all the time.
    let mut publisher = redis.connection().await;
    let mut numbers = 0..;
    let mut go_on = async || {
        let number = numbers.next().unwrap();
        for uid in ["second-1", "third-1"] {
            assert_eq!(publisher.publish(format!("mg:uid:{uid}"), format!("#{number}")).await, 1);
        }
        let bound = json!({"client_id": living[7].id, "group": format!("new-{number}")});
        second.done("joinGroup", bound.clone()).await;
        second.done("leaveGroup", bound).await;
        number + 1
    };
    go_on().await;

    victim.kill();
    let killed = Instant::now();
    // Who was there is not online from now on; the directory may say so until it is swept.
    for door in [&second, &third] {
        assert_eq!(door.ask("sendToUid", json!({"uid": "dying-7", "message": "x"})).await, json!({"nodes": 0}));
        let sent = door.ask("sendToUid", json!({"uid": uids, "message": "x"})).await;
        assert_eq!((&sent["nodes"], sent["offline"].as_array().unwrap().len()), (&json!(0), 200));
        assert_eq!(door.ask("sendToClient", json!({"client_id": dying[0].id, "message": "x"})).await["nodes"], 0);
    }
    let mut sent = 0;
    let gone = async || mentions(&redis, &ids).await.is_empty() && traces_of(&redis, "victim", &run).await.is_empty();
    while !gone().await {
        assert!(killed.elapsed() < SWEPT, "left: {:?}", mentions(&redis, &ids).await);
        sent = go_on().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(killed.elapsed() > Duration::from_secs(1), "a node that was heard of just now is not dead");
    assert!(field(&redis, "{mg:nodes}:lan", "7f0000010b54").await.as_deref() != Some("victim"));

    let farewells = each_once(uids.iter().cloned());
    eventually("the room is told of all", async || living.iter().all(|ear| told(ear).len() == 200)).await;
    let threes = each_once((0..200).filter(|number| number % 10 == 3).map(|number| format!("dying-{number}")));
    eventually("their own groups are told", async || told(&observer).len() == threes.len()).await;
    assert_eq!(sum(&[&second, &third], "moongate_swept_nodes_total").await, 1.0);
    for door in [&second, &third] {
        let online = door.ask("isUidsOnline", json!({"uid": uids})).await;
        assert!(online.as_object().unwrap().values().all(|online| online == false));
        assert_eq!(door.ask("getClientIdCountByGroup", json!({"group": "room"})).await, 10);
        assert_eq!(door.ask("getAllClientIdCount", json!({})).await, 11);
    }
    // A second pass comes, and says nothing again.
    throughout(TTL + Duration::from_secs(1), "nothing comes back", async || {
        mentions(&redis, &ids).await.is_empty() && traces_of(&redis, "victim", &run).await.is_empty()
    })
    .await;
    for ear in &living {
        assert_eq!(told(ear), farewells);
    }
    assert_eq!(told(&observer), threes);
    for ear in [&living[1], &living[6]] {
        let numbers: Vec<String> = ear.heard().into_iter().filter(|text| text.starts_with('#')).collect();
        assert_eq!(numbers, (0..sent).map(|number| format!("#{number}")).collect::<Vec<_>>());
    }
    assert!(all_open(&living) && observer.is_open());
    all_are_reached_through(&third, &living, "to the living").await;
    assert_eq!(sum(&[&second, &third], "moongate_fenced_total").await, 0.0);
    drop((dying, living, observer));
    end(&redis, vec![], vec![second, third]).await;
}

/// Members of a room and of one of ten groups, as `crowd` has made them.
fn as_crowd<'a>(ears: &'a [Ear], uids: &'a [String], groups: &'a [[&'a str; 2]]) -> Vec<Expected<'a>> {
    let members = ears.iter().zip(uids).zip(groups);
    members.map(|((ear, uid), groups)| Expected::member(ear, uid, groups)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_node_that_is_killed_with_a_thousand_clients_nothing_is_left_in_time_each_close_is_told_under_one_id_and_others_miss_nothing()
 {
    const CLIENTS: usize = 1000;
    // What the contract gives; more beside many other tests.
    let in_time = chaos(SWEPT, TTL + Duration::from_secs(5));
    let redis = Redis::start().await;
    let url = redis.url();
    let names = ["victim", "second", "third"];
    let [victim, second, third] = names.map(|name| [("MOONGATE_NODE_ID", name), ("MOONGATE_EVENTS", "stream")]);
    let victim = Process::ready(&url, &victim).await;
    let (second, third) = (Process::ready(&url, &second).await, Process::ready(&url, &third).await);
    let dying = crowd(&victim, "dying", CLIENTS, "room").await;
    let mut living = crowd(&second, "second", 10, "lobby").await;
    living.extend(crowd(&third, "third", 10, "lobby").await);
    let ids: BTreeSet<String> = dying.iter().map(|ear| ear.id.clone()).collect();
    let run = run_of(&redis, "victim").await.unwrap();

    let mut load = Load::default();
    load.publish(&redis, "redis", "mg:group:lobby").await;
    load.call(&second, "second", "sendToGroup", json!({"group": "lobby"})).await;
    load.call(&third, "third", "sendToGroup", json!({"group": "lobby"})).await;
    within(TTL, "there is something to harm", async || load.count() > 100).await;
    let before = load.count();
    victim.kill();
    let killed = Instant::now();
    // Changes are done all the time, too.
    let mut changes = 0;
    while !(traces_of(&redis, "victim", &run).await.is_empty() && mentions(&redis, &ids).await.is_empty()) {
        assert!(killed.elapsed() < in_time, "left: {:?}", mentions(&redis, &ids).await);
        let group = json!({"client_id": living[changes % 20].id, "group": "meanwhile"});
        second.done("joinGroup", group.clone()).await;
        third.done("leaveGroup", group).await;
        changes += 1;
    }
    let gone = killed.elapsed();
    assert!(gone < in_time, "{gone:?}");
    within(in_time.saturating_sub(gone), "each close is told", async || lives(&entries(&redis).await) == CLIENTS).await;
    let told = killed.elapsed();
    // A second pass comes, and tells nothing new.
    throughout(TTL + Duration::from_secs(1), "each is told once", async || lives(&entries(&redis).await) == CLIENTS)
        .await;
    let closes = entries(&redis).await.into_iter().filter(|entry| entry["event"] == "close");
    assert_eq!(closes.map(|close| close["client_id"].clone()).collect::<BTreeSet<_>>(), ids);
    let meanwhile = load.count() - before;
    load.stop().await;
    load.was_all_heard(&living, &["redis", "second", "third"]).await;
    let uids: Vec<String> = (0..20).map(|n| format!("{}-{}", ["second", "third"][n / 10], n % 10)).collect();
    let groups: Vec<String> = uids.iter().map(|uid| uid.replace('-', "-group-")).collect();
    let groups: Vec<[&str; 2]> = groups.iter().map(|group| ["lobby", &**group]).collect();
    redis_holds(&redis, SWEPT, &as_crowd(&living, &uids, &groups)).await;
    assert!(all_open(&living));
    saw(
        "killed",
        &format!(
            "of {CLIENTS} clients nothing left after {gone:.1?} (lease {TTL:?}), each close told under one id after {told:.1?}; \
             {meanwhile} messages to others meanwhile, none missed; {changes} changes done"
        ),
    );
    drop((dying, living));
    for survivor in [second, third] {
        survivor.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_dead_node_with_very_many_clients_nothing_is_left_either() {
    const CLIENTS: usize = 12_000;
    let redis = Redis::start().await;
    let survivor = node(&redis.url(), &[]).await;
    let run = haunt(&redis, "ghost", CLIENTS).await;
    let start = Instant::now();
    // In a debug build, beside other tests.
    within(Duration::from_secs(30), "it is swept", async || traces_of(&redis, "ghost", &run).await.is_empty()).await;
    let mut left = redis.keys("mg:uid:ghost-*").await;
    for kind in ["group", "client"] {
        left.append(&mut redis.keys(&format!("mg:{kind}:*")).await);
    }
    assert!(left.is_empty(), "{} keys are left, such as {:?}", left.len(), left.first());
    assert!(start.elapsed() > TTL - Duration::from_secs(1), "{:?}", start.elapsed());
    end(&redis, vec![survivor], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_dead_node_whose_clients_had_very_many_groups_nothing_is_left_either() {
    let redis = Redis::start().await;
    let run = haunt(&redis, "ghost", 0).await;
    let mut connection = redis.connection().await;
    for client in 0..250 {
        let names: Vec<Option<String>> =
            (0..500_usize).map(|group| group.checked_sub(1).map(|group| format!("{client}-{group}"))).collect();
        connection
            .send(&[
                "HSET",
                &format!("mg:clients:{run}"),
                &format!("7f0000017777{client:08x}"),
                &json!(names).to_string(),
            ])
            .await;
    }
    for _ in 0..250 {
        connection.reply().await;
    }
    let node = node(&redis.url(), &[]).await;
    within(SWEPT * 3, "its name goes last", async || !nodes(&redis).await.contains("ghost")).await;
    assert_eq!(traces_of(&redis, "ghost", &run).await, BTreeSet::new());
    end(&redis, vec![node], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_takes_longer_than_a_lease_costs_the_sweeper_nothing() {
    const CLIENTS: usize = 3000;
    const LEASE: Duration = Duration::from_secs(2);
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let settings = [LEAVING, ("MOONGATE_NODE_TTL", "2s")];
    let (first, second) =
        (Process::ready(&proxy.url(), &settings).await, Process::ready(&proxy.url(), &settings).await);
    let living = [Ear::member(&first, "one", &["g7"]).await, Ear::member(&second, "two", &["g7"]).await];
    let run = haunt(&redis, "ghost", CLIENTS).await;
    proxy.slow(Duration::from_millis(50));
    let nobody_was_swept = async || {
        assert_eq!(sum(&[&first, &second], "moongate_fenced_total").await, 0.0, "a living node was swept");
    };
    let index = format!("mg:clients:{run}");
    within(Duration::from_secs(10), "it begins", async || {
        redis.command(&["HLEN", &index]).await != Reply::Int(CLIENTS as i64)
    })
    .await;
    let began = Instant::now();
    within(Duration::from_secs(60), "it is swept", async || {
        nobody_was_swept().await;
        traces_of(&redis, "ghost", &run).await.is_empty()
    })
    .await;
    assert!(began.elapsed() > LEASE, "a sweep of {:?} is too fast for this test", began.elapsed());
    // What is said of each takes its time, too: some of it at this pace, and then the rest.
    throughout(LEASE * 2, "nobody was swept", async || {
        nobody_was_swept().await;
        true
    })
    .await;
    proxy.slow(Duration::from_millis(1));
    within(Duration::from_secs(60), "all are told", async || {
        nobody_was_swept().await;
        living.iter().all(|ear| told(ear).len() == CLIENTS / 100)
    })
    .await;
    proxy.pass();
    // So slow a sweeper may lose its claim to the other one; each step may be done twice, and is told once.
    assert!(sum(&[&first, &second], "moongate_swept_nodes_total").await >= 1.0);
    assert!(all_open(&living));
    for ear in &living {
        assert!(told(ear).values().all(|&times| times == 1));
    }
    all_are_reached_through(&first, &living, "hello").await;
    drop(living);
    end(&redis, vec![], vec![first, second]).await;
}

/// Frozen beyond its lease, with these settings of its own; the others sweep it, and it wakes up.
async fn a_frozen_node_wakes_up(settings: &[(&str, &str)], clients: usize) {
    let redis = Redis::start().await;
    let url = redis.url();
    let mut frozen_settings = settings.to_vec();
    frozen_settings.extend([LEAVING, ("MOONGATE_LEAVE_MAX_GROUP", "100000")]);
    let sleeper = Process::ready(&url, &frozen_settings).await;
    let awake = [LEAVING, ("MOONGATE_LEAVE_MAX_GROUP", "100000")];
    let (second, third) = (node(&url, &awake).await, node(&url, &awake).await);
    let sleepers = crowd(&sleeper, "sleeper", clients, "room").await;
    let awake = [Ear::member(&second, "two", &["room"]).await, Ear::member(&third, "three", &["room"]).await];
    let ids: BTreeSet<String> = sleepers.iter().map(|ear| ear.id.clone()).collect();
    let others = [&second, &third];
    let name = nodes(&redis).await.into_iter().collect::<Vec<_>>();
    let before = {
        let mut owner = None;
        for name in name {
            let index = format!("mg:clients:{}", run_of(&redis, &name).await.unwrap());
            if redis.command(&["HEXISTS", &index, &sleepers[0].id]).await == Reply::Int(1) {
                owner = Some(name);
            }
        }
        owner.unwrap()
    };
    let run = run_of(&redis, &before).await.unwrap();

    sleeper.freeze().await;
    within(SWEPT, "it is swept", async || {
        mentions(&redis, &ids).await.is_empty() && traces_of(&redis, &before, &run).await.is_empty()
    })
    .await;
    // A machine that is lost counts as a listener no more.
    assert_eq!(redis.publish("mg:uid:sleeper-1", "x").await, 0);
    assert_eq!(second.ask("sendToUid", json!({"uid": "sleeper-2", "message": "x"})).await, json!({"nodes": 0}));
    assert_eq!(third.ask("sendToClient", json!({"client_id": sleepers[0].id, "message": "x"})).await["nodes"], 0);
    assert!(all_open(&sleepers), "their node says nothing");
    // They come back elsewhere.
    let back = Ear::member(&second, "sleeper-1", &["room"]).await;
    within(Duration::from_secs(30), "the room is told of all", async || {
        awake.iter().all(|ear| told(ear).len() == clients)
    })
    .await;

    sleeper.thaw();
    within(Duration::from_secs(10), "its clients are closed", async || {
        sleepers.iter().all(|ear| ear.closed() == Some(1012))
    })
    .await;
    within(TTL + Duration::from_secs(5), "it goes on as a new node", async || {
        sleeper.get("/readyz?strict=1").await.status == 200
    })
    .await;
    assert_eq!(sleeper.metric("moongate_fenced_total").await, 1.0);
    assert_eq!(nodes(&redis).await.len(), 3);
    // New clients are served by it, and those who came back are online once.
    let fresh = Ear::member(&sleeper, "fresh", &["room"]).await;
    assert_eq!(second.ask("getClientIdByUid", json!({"uid": "fresh"})).await, json!([fresh.id]));
    assert_eq!(sleeper.ask("getClientIdByUid", json!({"uid": "sleeper-1"})).await, json!([back.id]));
    assert_eq!(redis.publish("mg:uid:fresh", "welcome").await, 1);
    eventually("it hears", async || fresh.has_heard("welcome")).await;
    throughout(Duration::from_secs(10), "there is no ghost", async || {
        mentions(&redis, &ids).await.is_empty() && redis.keys(&format!("mg:clients:{run}")).await.is_empty()
    })
    .await;
    assert_eq!(sleeper.ask("getAllClientIdCount", json!({})).await, 4);
    for ear in &awake {
        let twice: Vec<_> = told(ear).into_iter().filter(|(_, times)| *times != 1).collect();
        assert!(twice.is_empty(), "told more than once: {} such as {:?}", twice.len(), twice.first());
        assert_eq!(told(ear).len(), clients);
    }
    assert_eq!(sum(&others, "moongate_fenced_total").await, 0.0);
    assert_eq!(sum(&others, "moongate_swept_nodes_total").await, 1.0);
    assert!(all_open(&awake) && fresh.is_open() && back.is_open());
    drop((sleepers, awake, fresh, back));
    end(&redis, vec![second, third], vec![sleeper]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_that_was_swept_closes_its_clients_and_goes_on_as_a_new_one() {
    a_frozen_node_wakes_up(&[], 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_with_a_name_and_an_address_of_its_own_keeps_both() {
    let named = [("MOONGATE_NODE_ID", "me"), ("MOONGATE_LAN_IP", "127.0.0.1"), ("MOONGATE_LAN_PORT", "4711")];
    a_frozen_node_wakes_up(&named, 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_many_clients_of_a_frozen_node_each_is_told_to_have_left_once() {
    a_frozen_node_wakes_up(&[], 1500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_those_who_came_back_elsewhere_nobody_is_online_twice_when_their_frozen_node_wakes_up() {
    const CLIENTS: usize = 200;
    const SOURCES: [&str; 3] = ["room", "uid", "http"];
    let redis = Redis::start().await;
    let url = redis.url();
    let events = [("MOONGATE_EVENTS", "stream")];
    let sleeper = Process::ready(&url, &events).await;
    let (second, third) = (Process::ready(&url, &events).await, Process::ready(&url, &events).await);
    let sleepers = crowd(&sleeper, "user", CLIENTS, "room").await;
    let ids: BTreeSet<String> = sleepers.iter().map(|ear| ear.id.clone()).collect();
    sleeper.freeze().await;
    within(SWEPT, "it is swept", async || {
        nodes(&redis).await.len() == 2 && mentions(&redis, &ids).await.is_empty() && all_open(&sleepers)
    })
    .await;
    let back = crowd(&second, "user", CLIENTS, "room").await;
    let uids: Vec<String> = (0..CLIENTS).map(|number| format!("user-{number}")).collect();
    let online: serde_json::Map<_, _> =
        uids.iter().zip(&back).map(|(uid, ear)| (uid.clone(), json!([ear.id]))).collect();
    let online = serde_json::Value::Object(online);
    let mut load = Load::default();
    load.publish(&redis, SOURCES[0], "mg:group:room").await;
    load.publish(&redis, SOURCES[1], "mg:uid:user-7").await;
    load.call(&third, SOURCES[2], "sendToUid", json!({"uid": "user-8"})).await;
    within(TTL, "they are spoken to", async || load.count() > 50).await;

    sleeper.thaw();
    let thawed = Instant::now();
    let (mut looks, mut fenced) = (0, None);
    // From the first moment on, and longer than a ghost may stay.
    while thawed.elapsed() < Duration::from_secs(12) {
        if fenced.is_none() && sleepers.iter().all(|ear| ear.closed() == Some(1012)) {
            fenced = Some(thawed.elapsed());
        }
        assert_eq!(mentions(&redis, &ids).await, BTreeSet::new());
        assert_eq!(third.ask("batchGetClientIdByUid", json!({"uid": uids})).await, online);
        assert_eq!(redis.publish("mg:uid:user-9", "only there").await, 1);
        looks += 1;
    }
    let fenced = fenced.expect("the clients of the frozen node are closed with 1012");
    assert_eq!(sleeper.metric("moongate_fenced_total").await, 1.0);
    within(SWEPT, "it is back", async || sleeper.get("/readyz?strict=1").await.status == 200).await;
    load.stop().await;
    load.was_all_heard(&back, &["room"]).await;
    load.was_all_heard(&back[7..8], &["uid"]).await;
    load.was_all_heard(&back[8..9], &["http"]).await;
    let others_hear = |text: &String| SOURCES.iter().any(|source| text.starts_with(source));
    for ear in &sleepers {
        assert!(!ear.heard().iter().any(others_hear), "who was swept hears nothing more: {:?}", ear.heard());
    }
    assert_eq!(lives(&entries(&redis).await), CLIENTS, "each end is told, and told under one id");
    let groups: Vec<String> = (0..CLIENTS).map(|number| format!("user-group-{}", number % 10)).collect();
    let groups: Vec<[&str; 2]> = groups.iter().map(|group| ["room", &**group]).collect();
    redis_holds(&redis, SWEPT, &as_crowd(&back, &uids, &groups)).await;
    saw(
        "frozen",
        &format!(
            "fenced {fenced:.1?} after it woke up; {CLIENTS} who had come back elsewhere were online once in each of {looks} \
             looks over 12 s; their old sockets heard nothing of {} messages",
            load.count()
        ),
    );
    drop((sleepers, back));
    for node in [sleeper, second, third] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_cut_off_and_swept_is_ready_again_when_it_hears_as_a_new_one() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let (survivor, cut_off) = (node(&redis.url(), &[]).await, node(&proxy.url(), &[]).await);
    let mut client = cut_off.member("u", "g").await;
    proxy.refuse();
    within(TTL * 4, "it is swept", async || redis.command(&["ZCARD", "mg:nodes"]).await.int() == 1).await;
    proxy.pass();
    assert_eq!(client.closed().await.0, 1012);
    eventually("it is ready", async || cut_off.ready().await.0 == 200).await;
    let runs = redis.command(&["HVALS", "{mg:nodes}:runs"]).await.names();
    let connections = redis.command(&["CLIENT", "LIST"]).await.string();
    let listen = |run: &String| {
        let name = format!(" name=moongate:{run} ");
        connections.lines().any(|line| line.contains(&name) && line.contains(" psub=1 "))
    };
    assert!(runs.len() == 2 && runs.iter().all(listen), "{runs:?}: {connections}");
    end(&redis, vec![survivor, cut_off], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_single_bind_waits_for_a_frozen_node_others_are_done_and_heard() {
    let redis = Redis::start().await;
    let ttl = [("MOONGATE_NODE_TTL", "15s")];
    let (sleeper, awake) = (Process::ready(&redis.url(), &ttl).await, node(&redis.url(), &ttl).await);
    let old = Ear::member(&sleeper, "u", &["room"]).await;
    let (waits, mut other) = (Ear::member(&awake, "w", &["room"]).await, awake.member("o", "room").await);
    sleeper.freeze().await;
    for (id, uid) in [(&waits.id, "u"), (&other.id, "v")] {
        let bind = json!({"op": "bindUid", "client_id": id, "uid": uid, "single": true});
        redis.publish("mg:cmd", &bind.to_string()).await;
    }
    redis.publish(&format!("mg:client:{}", other.id), "hello").await;
    let heard = tokio::time::timeout(Duration::from_secs(1), other.text()).await;
    assert_eq!(heard.as_deref(), Ok("hello"), "the node of the old client has two seconds to answer");
    within(TTL, "it is bound", async || redis.publish("mg:uid:v", "bound").await == 1).await;
    assert_eq!(other.text().await, "bound");
    sleeper.thaw();
    drop((old, waits, other));
    end(&redis, vec![awake], vec![sleeper]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_of_a_node_that_was_frozen_for_a_moment_is_not_done_long_after_its_answer() {
    let redis = Redis::start().await;
    let ttl = [("MOONGATE_NODE_TTL", "15s")];
    let (sleeper, other) = (Process::ready(&redis.url(), &ttl).await, node(&redis.url(), &ttl).await);
    let ear = Ear::member(&sleeper, "before", &["room"]).await;
    sleeper.freeze().await;
    let start = Instant::now();
    let refused = other.refused("bindUid", json!({"client_id": ear.id, "uid": "late"})).await;
    assert_eq!(refused, (504, "node_unreachable".to_owned()));
    assert!((2..5).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    // Redis' clock goes on while nobody looks at it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    sleeper.thaw();
    within(TTL, "it was dropped", async || {
        sleeper.get("/metrics").await.text().contains("moongate_bus_lost_total{reason=\"late\"} 1\n")
    })
    .await;
    assert_eq!(other.ask("getUidByClientId", json!({"client_id": ear.id})).await, "before");
    assert_eq!(other.ask("isUidOnline", json!({"uid": "late"})).await, false);
    all_are_reached_through(&other, std::slice::from_ref(&ear), "awake").await;
    assert_eq!(sleeper.metric("moongate_bus_deaf_total").await, 0.0, "who was frozen is not deaf");
    assert!(ear.is_open());
    drop(ear);
    end(&redis, vec![other], vec![sleeper]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_lost_right_after_its_start_counts_as_a_listener_no_more_either() {
    let redis = Redis::start().await;
    let second = node(&redis.url(), &[]).await;
    let lost = Process::ready(&redis.url(), &[("MOONGATE_NODE_ID", "lost")]).await;
    let ear = Ear::member(&lost, "u", &[]).await;
    let run = run_of(&redis, "lost").await.unwrap();
    lost.freeze().await;
    assert_eq!(redis.publish("mg:uid:u", "x").await, 1);
    within(SWEPT, "it is swept", async || traces_of(&redis, "lost", &run).await.is_empty()).await;
    assert_eq!(redis.publish("mg:uid:u", "x").await, 0);
    assert_eq!(redis.publish("mg:all", "x").await, 0);
    lost.thaw();
    within(Duration::from_secs(10), "it is back", async || ear.closed() == Some(1012)).await;
    within(Duration::from_secs(10), "it is back", async || lost.get("/readyz?strict=1").await.status == 200).await;
    drop(ear);
    end(&redis, vec![second], vec![lost]).await;
}

/// Three nodes, a dead one with many clients; the one that sweeps after it ends in the middle, in this way.
async fn the_sweeper_ends(how: impl AsyncFnOnce(&Process)) -> (Redis, Vec<Process>, usize) {
    const CLIENTS: usize = 4000;
    let redis = Redis::start().await;
    let url = redis.url();
    let mut processes = Vec::new();
    for name in ["n0", "n1", "n2"] {
        processes.push(Process::ready(&url, &[("MOONGATE_NODE_ID", name), LEAVING]).await);
    }
    let mut ears = Vec::new();
    for (number, process) in processes.iter().enumerate() {
        ears.push(Ear::member(process, &format!("user-{number}"), &["g7"]).await);
    }
    let run = haunt(&redis, "ghost", CLIENTS).await;
    let mut connection = redis.connection().await;
    let (index, claim) = (format!("mg:clients:{run}"), format!("{{mg:nodes}}:sweeper:{run}"));
    let start = Instant::now();
    while count(&mut connection, &["HLEN", &index]).await == CLIENTS as i64 {
        assert!(start.elapsed() < TTL + Duration::from_secs(10), "nobody sweeps");
    }
    let sweeper = connection.command(&["GET", &claim]).await.string();
    let mut place = None;
    for (number, name) in ["n0", "n1", "n2"].iter().enumerate() {
        if run_of(&redis, name).await.as_ref() == Some(&sweeper) {
            place = Some(number);
        }
    }
    let place = place.unwrap();
    how(&processes[place]).await;
    let left = count(&mut connection, &["HLEN", &index]).await;
    assert!(left > 0, "it has swept all: too fast for this test");
    // Its claim ends, then another one sees it dead, too.
    let name = format!("n{place}");
    within(TTL + Duration::from_secs(3 + 5), "both are swept", async || {
        traces_of(&redis, "ghost", &run).await.is_empty() && traces_of(&redis, &name, &sweeper).await.is_empty()
    })
    .await;
    assert_eq!(redis.keys("mg:uid:ghost-*").await, BTreeSet::new());
    assert_eq!(redis.keys("mg:client:*").await.len(), 4, "the two others' clients and their groups");
    assert_eq!(redis.keys(&format!("mg:uid:user-{place}:clients")).await, BTreeSet::new());
    let others: Vec<&Node> =
        processes.iter().enumerate().filter(|(number, _)| *number != place).map(|(_, other)| &**other).collect();
    assert_eq!(sum(&others, "moongate_fenced_total").await, 0.0);
    let ended = ears.remove(place);
    assert!(all_open(&ears));
    let who_ended = format!("user-{place}");
    eventually("its own client is told to have left", async || {
        ears.iter().all(|ear| told(ear).contains_key(&who_ended))
    })
    .await;
    for ear in &ears {
        assert!(told(ear).values().all(|&times| times == 1), "somebody was told twice to have left");
    }
    all_are_reached_through(others[0], &ears, "hello").await;
    drop((ended, ears));
    (redis, processes, place)
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_sweeper_is_killed_another_completes() {
    let (redis, mut processes, place) = the_sweeper_ends(async |sweeper| sweeper.kill()).await;
    processes.remove(place);
    end(&redis, vec![], processes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_sweeper_is_frozen_another_completes_and_it_wakes_up_as_a_new_node() {
    let (redis, processes, place) = the_sweeper_ends(async |sweeper| sweeper.freeze().await).await;
    processes[place].thaw();
    within(TTL + Duration::from_secs(5), "it is back", async || {
        processes[place].get("/readyz?strict=1").await.status == 200
            && processes[place].metric("moongate_fenced_total").await == 1.0
    })
    .await;
    end(&redis, vec![], processes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_two_of_three_die_at_once_the_third_sweeps_after_both() {
    let redis = Redis::start().await;
    let url = redis.url();
    let (first, second) = (Process::ready(&url, &[LEAVING]).await, Process::ready(&url, &[LEAVING]).await);
    let third = node(&url, &[LEAVING]).await;
    let mut dying = crowd(&first, "first", 40, "room").await;
    dying.extend(crowd(&second, "second", 40, "room").await);
    let ear = Ear::member(&third, "third", &["room"]).await;
    first.kill();
    second.kill();
    within(SWEPT, "both are swept", async || {
        nodes(&redis).await.len() == 1 && redis.keys("mg:client:*").await.len() == 2
    })
    .await;
    let names = ["first", "second"].into_iter().flat_map(|name| (0..40).map(move |n| format!("{name}-{n}")));
    let names = each_once(names);
    eventually("all are told", async || told(&ear) == names).await;
    assert_eq!(third.metric("moongate_swept_nodes_total").await, 2.0);
    drop((dying, ear));
    end(&redis, vec![third], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_loss_of_a_whole_cluster_the_next_start_sweeps() {
    let redis = Redis::start().await;
    let url = redis.url();
    let (first, second) = (Process::ready(&url, &[]).await, Process::ready(&url, &[]).await);
    let mut dying = crowd(&first, "first", 10, "room").await;
    dying.extend(crowd(&second, "second", 10, "room").await);
    first.kill();
    second.kill();
    throughout(TTL + Duration::from_secs(1), "nobody is there to sweep", async || nodes(&redis).await.len() == 2).await;
    let next = node(&url, &[]).await;
    within(SWEPT, "both are swept", async || nodes(&redis).await.len() == 1).await;
    assert_eq!(redis.keys("mg:client:*").await, BTreeSet::new());
    assert_eq!(next.ask("getAllClientIdCount", json!({})).await, 0);
    drop(dying);
    end(&redis, vec![next], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_wrong_type_do_not_keep_a_sweep_from_its_end() {
    let redis = Redis::start().await;
    let survivor = node(&redis.url(), &[]).await;
    for (key, command) in [("mg:group:g7:clients", "SET"), ("mg:uid:ghost-3:clients", "SET")] {
        redis.command(&[command, key, "somebody else's"]).await;
    }
    redis.command(&["HSET", "mg:clients:run-of-ghost", "no client id", "no JSON"]).await;
    // The two that are in the way are not added to.
    let mut connection = redis.connection().await;
    for (id, uid, group) in [("7f000001777700000001", "ghost-3", "g7"), ("7f000001777700000002", "ghost-4", "g8")] {
        connection.command(&["HSET", "mg:clients:run-of-ghost", id, &json!([uid, group]).to_string()]).await;
        connection.command(&["HSET", &format!("mg:client:{id}"), "node", "ghost", "uid", uid]).await;
        connection.command(&["SADD", &format!("mg:uid:{uid}:clients"), id]).await;
        connection.command(&["SADD", &format!("mg:group:{group}:clients"), id]).await;
    }
    connection.command(&["HSET", "{mg:nodes}:runs", "ghost", "run-of-ghost"]).await;
    connection.command(&["ZADD", "mg:nodes", "1700000000000", "ghost"]).await;
    within(SWEPT, "it is swept", async || traces_of(&redis, "ghost", "run-of-ghost").await.is_empty()).await;
    assert_eq!(redis.keys("mg:client:*").await, BTreeSet::new());
    assert_eq!(redis.keys("mg:group:*").await.len(), 1);
    redis.command(&["DEL", "mg:group:g7:clients", "mg:uid:ghost-3:clients"]).await;
    end(&redis, vec![survivor], vec![]).await;
}
