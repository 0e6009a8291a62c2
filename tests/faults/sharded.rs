//! Redis Cluster: all that a single Redis does, in slots; and what happens when a master dies, hands over, or slots move.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use socket2::Socket;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::harness::{Node, eventually, soon};
use crate::load::{Load, Publishing, Room};
use crate::port::reserve_a_port;
use crate::redis::{Connection, Redis, Reply};
use crate::tail::Tail;
use crate::world::{
    Ear, Expected, Process, TTL, all_are_reached_through, are_ready, expected, node, run, saw, state, within,
};

/// A master is taken for dead after a second and a half, and its replica voted for in one more; then comes a beat, and a
/// pause between two attempts. And a machine that does much else.
const SWITCHED: Duration = Duration::from_secs(20);

/// A look, a beat, and the comparison; and a machine that does much else.
const SOON: Duration = Duration::from_secs(12);

const SLOTS: u16 = 16_384;

/// Uids of the load of each node: so few that slots of some of them can be moved while they change.
const UIDS: usize = 20;

/// So many at a time: each is six processes, which speak to each other all the time.
static ROOM: Semaphore = Semaphore::const_new(1);

/// Three masters, and a replica of each.
struct Cluster {
    /// First the masters, to begin with, then their replicas.
    servers: Vec<Redis>,
    /// Where they speak to each other.
    _ports: Vec<Socket>,
    _room: SemaphorePermit<'static>,
}

impl Cluster {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(more: &[&str]) -> Self {
        let room = ROOM.acquire().await.unwrap();
        let (mut servers, mut ports) = (Vec::new(), Vec::new());
        for _ in 0..6 {
            let (socket, between) = reserve_a_port().unwrap();
            let port = between.port().to_string();
            let arguments = [
                &["--cluster-enabled", "yes", "--cluster-port", &port, "--cluster-node-timeout", "1500"][..],
                &["--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"],
                more,
            ];
            servers.push(Redis::start_with(&arguments.concat()).await);
            ports.push((socket, port));
        }
        for (number, server) in servers[..3].iter().enumerate() {
            let slots = |number: usize| number * usize::from(SLOTS) / 3;
            let (first, last) = (slots(number).to_string(), (slots(number + 1) - 1).to_string());
            assert_eq!(server.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await, Reply::text("OK"));
            let epoch = (number + 1).to_string();
            assert_eq!(server.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await, Reply::text("OK"));
        }
        for (server, (_, between)) in servers.iter().zip(&ports).skip(1) {
            let address = server.address();
            let meet = ["CLUSTER", "MEET", "127.0.0.1", &address.port().to_string(), between];
            assert_eq!(servers[0].command(&meet).await, Reply::text("OK"));
        }
        let cluster = Self { servers, _ports: ports.into_iter().map(|(socket, _)| socket).collect(), _room: room };
        for (master, replica) in [(0, 3), (1, 4), (2, 5)] {
            let (master, replica) = (&cluster.servers[master], &cluster.servers[replica]);
            let id = master.command(&["CLUSTER", "MYID"]).await.string();
            eventually("a replica knows its master, and becomes its replica", async || {
                replica.command(&["CLUSTER", "REPLICATE", &id]).await == Reply::text("OK")
            })
            .await;
        }
        cluster.is_whole().await;
        cluster
    }

    /// Waits until all know of all slots, and each replica has what its master has.
    async fn is_whole(&self) {
        eventually("the Cluster is whole", async || {
            let running: Vec<&Redis> = self.servers.iter().filter(|server| server.is_running()).collect();
            let are = join_all(running.into_iter().map(async |server| {
                let info = server.command(&["CLUSTER", "INFO"]).await.string();
                let replication = server.command(&["INFO", "replication"]).await.string();
                let is_linked = replication.contains("role:master") || replication.contains("master_link_status:up");
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:6") && is_linked
            }));
            are.await.into_iter().all(|is| is)
        })
        .await;
    }

    /// As `MOONGATE_REDIS_URL` takes it.
    fn url(&self) -> String {
        let [first, second, ..] = &self.servers[..] else { panic!("there are six") };
        format!("redis-cluster://{}?node={}", first.address(), second.address())
    }

    fn at(&self, address: SocketAddr) -> &Redis {
        self.servers.iter().find(|server| server.address() == address).expect("one of these")
    }

    /// The masters that are there now.
    async fn masters(&self) -> Vec<&Redis> {
        let mut masters = Vec::new();
        for server in self.servers.iter().filter(|server| server.is_running()) {
            if server.command(&["ROLE"]).await.list()[0] == Reply::text("master") {
                masters.push(server);
            }
        }
        masters
    }

    /// Who has a key.
    async fn owner(&self, key: &str) -> &Redis {
        for master in self.masters().await {
            match master.command(&["EXISTS", key]).await {
                Reply::Int(_) => return master,
                Reply::Error(error) if error.starts_with("MOVED ") => {
                    let address = error.rsplit(' ').next().unwrap().parse().unwrap();
                    if self.at(address).is_running() {
                        return self.at(address);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("nobody has {key}")
    }

    /// A command about a key, or about a sharded channel.
    async fn command(&self, key: &str, command: &[&str]) -> Reply {
        self.owner(key).await.command(command).await
    }

    /// How many heard it.
    async fn publish(&self, channel: &str, payload: &str) -> i64 {
        self.command(channel, &["SPUBLISH", channel, payload]).await.int()
    }

    async fn keys(&self) -> BTreeSet<String> {
        let mut keys = BTreeSet::new();
        for master in self.masters().await {
            keys.extend(master.keys("*").await);
        }
        keys
    }

    /// Waits until all masters together hold these clients and no others.
    async fn holds(&self, time: Duration, clients: &[Expected<'_>]) {
        let expected = expected(clients);
        let mut last = BTreeMap::new();
        let start = Instant::now();
        while last != expected {
            assert!(start.elapsed() < time, "after {time:?} there is {last:#?} and not {expected:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            last.clear();
            for master in self.masters().await {
                last.extend(state(master).await);
            }
        }
    }

    /// Moves the slot of a key to another master, with all that is in it, as `redis-cli --cluster reshard` does.
    async fn move_slot(&self, key: &str, to: &Redis) {
        let from = self.owner(key).await;
        let slot = from.command(&["CLUSTER", "KEYSLOT", key]).await.int().to_string();
        let id = async |server: &Redis| server.command(&["CLUSTER", "MYID"]).await.string();
        let (source, target) = (id(from).await, id(to).await);
        let ok = Reply::text("OK");
        assert_eq!(to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]).await, ok);
        assert_eq!(from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]).await, ok);
        let port = to.address().port().to_string();
        loop {
            let keys = from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, "10"]).await.list();
            if keys.is_empty() {
                break;
            }
            for key in keys {
                let moved = from.command(&["MIGRATE", "127.0.0.1", &port, &key.string(), "0", "5000"]).await;
                assert!(moved == ok || moved == Reply::text("NOKEY"), "{moved:?}");
            }
        }
        // First whom it comes to, then whom it leaves, then the others.
        for server in [to, from] {
            assert_eq!(server.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]).await, ok);
        }
        for server in self.masters().await {
            assert_eq!(server.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]).await, ok);
        }
    }

    /// All clients have left, and nothing is left when the nodes have stopped.
    async fn end(&self, nodes: Vec<Node>) {
        for node in &nodes {
            eventually("all clients have left", async || node.metric("moongate_clients").await == 0.0).await;
        }
        for node in nodes {
            node.stop();
            assert_eq!(soon("the node stops", node.stopped()).await, 0);
        }
        let mut left = self.keys().await;
        let start = Instant::now();
        loop {
            // The order of a uid's changes stands for ten minutes.
            left.retain(|key| {
                !key.ends_with(":seq") && !["{mg:nodes}:swept", "mg:tasks", "mg:events"].contains(&&**key)
            });
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(4), "left when the nodes had stopped: {left:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            left = self.keys().await;
        }
    }
}

/// Uids, groups and names with braces, which Redis looks for in names to find their slots.
const NAMES: [&str; 6] = ["plain", "{tagged}", "}{", "a{}b", "房间 {1}", "subscribe"];

// --- what a single Redis does, too -----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn every_target_is_reached_from_every_door_and_every_question_answered() {
    let cluster = Cluster::start().await;
    let both = [node(&cluster.url(), &[]).await, node(&cluster.url(), &[]).await];
    let mut ears = Vec::new();
    for (place, node) in both.iter().enumerate() {
        for name in NAMES {
            ears.push(Ear::member(node, &format!("{name}-{place}"), &["room", name]).await);
        }
    }
    let mut clients = Vec::new();
    let uids: Vec<String> = (0..2).flat_map(|place| NAMES.map(|name| format!("{name}-{place}"))).collect();
    let groups: Vec<[&str; 2]> = NAMES.iter().chain(&NAMES).map(|name| ["room", *name]).collect();
    for ((ear, uid), groups) in ears.iter().zip(&uids).zip(&groups) {
        clients.push(Expected::member(ear, uid, groups));
    }
    cluster.holds(SOON, &clients).await;

    // From any node, and from programs that know no node.
    for (place, node) in both.iter().enumerate() {
        for (ear, uid) in ears.iter().zip(&uids) {
            let to_uid = format!("uid {uid} {place}");
            assert_eq!(node.ask("sendToUid", json!({"uid": uid, "message": to_uid})).await["nodes"], 1, "{uid}");
            eventually("it is heard", async || ear.has_heard(&to_uid)).await;
        }
        let all = format!("all {place}");
        assert_eq!(node.ask("sendToAll", json!({"message": all})).await["nodes"], 2);
        for name in NAMES {
            let message = format!("{name} {place}");
            let sent = json!({"group": name, "message": message, "confirm": true});
            assert_eq!(node.ask("sendToGroup", sent).await, json!({"nodes": 2, "clients": 2}), "{name}");
        }
        let confirmed = json!({"uid": uids, "message": "each", "confirm": true});
        assert_eq!(node.ask("sendToUid", confirmed).await["clients"], 12);
        eventually("all have heard it", async || ears.iter().all(|ear| ear.has_heard(&all))).await;
        all_are_reached_through(node, &ears, &format!("each by its id {place}")).await;
    }
    for (ear, uid) in ears.iter().zip(&uids) {
        assert_eq!(cluster.publish(&format!("mg:uid:{uid}"), "from Redis to a uid").await, 1, "{uid}");
        assert_eq!(cluster.publish(&format!("mg:client:{}", ear.id), "from Redis to a client").await, 1);
    }
    assert_eq!(cluster.publish("mg:group:room", "from Redis to a group").await, 2);
    assert_eq!(cluster.publish("mg:all", "from Redis to all").await, 2);
    assert_eq!(cluster.publish("mg:uid:nobody", "x").await, 0);
    // What is said in the old way reaches nobody.
    assert_eq!(cluster.owner("mg:all").await.publish("mg:all", "unheard").await, 0);
    let command = json!({"op": "sendToGroup", "group": "room", "message": "by mg:cmd", "exclude_uid": [uids[0]]});
    assert_eq!(cluster.publish("mg:cmd", &command.to_string()).await, 2);
    eventually("all but one have heard it", async || ears[1..].iter().all(|ear| ear.has_heard("by mg:cmd"))).await;
    for text in ["from Redis to a uid", "from Redis to a client", "from Redis to a group", "from Redis to all"] {
        eventually("all have heard it", async || ears.iter().all(|ear| ear.has_heard(text))).await;
    }
    assert!(!ears[0].has_heard("by mg:cmd"));
    assert!(ears.iter().all(|ear| !ear.has_heard("unheard")));

    for node in &both {
        let sorted = |mut list: Value| {
            list.as_array_mut().unwrap().sort_by_key(Value::to_string);
            list
        };
        let ids: Value = ears.iter().map(|ear| json!(ear.id)).collect();
        assert_eq!(sorted(node.ask("getAllClientIdList", json!({})).await), sorted(ids));
        assert_eq!(sorted(node.ask("getAllUidList", json!({})).await), sorted(json!(uids)));
        assert_eq!(node.ask("getUidCountByGroup", json!({"group": "room"})).await, 12);
        assert_eq!(
            node.ask("isUidsOnline", json!({"uid": ["plain-0", "no"]})).await,
            json!({"plain-0": true, "no": false})
        );
        assert_eq!(node.ask("getSession", json!({"client_id": ears[7].id})).await, json!({"uname": uids[7]}));
        let counts = node.ask("getAllGroupClientIdCount", json!({})).await;
        assert_eq!((counts["room"].clone(), counts["}{"].clone()), (json!(12), json!(2)));
    }

    // The later one of two stays, whichever node each is at.
    let (first, second) = (both[0].connect().await, both[1].connect().await);
    let (one, other) = (Ear::of(first), Ear::of(second));
    both[0].done("bindUid", json!({"client_id": one.id, "uid": "{single}", "single": true})).await;
    both[0].done("bindUid", json!({"client_id": other.id, "uid": "{single}", "single": true})).await;
    eventually("the first one is closed", async || one.closed() == Some(4001)).await;
    assert!(other.is_open());
    both[1].done("unbindUid", json!({"client_id": other.id})).await;
    assert_eq!(both[0].ask("isUidOnline", json!({"uid": "{single}"})).await, false);
    drop(other);

    // Changes and their undoing leave nothing.
    both[1].done("ungroup", json!({"group": "room"})).await;
    assert_eq!(both[0].ask("getClientIdCountByGroup", json!({"group": "room"})).await, 0);
    assert_eq!(both[0].ask("closeUid", json!({"uid": uids[0]})).await["nodes"], 1);
    eventually("it is closed", async || ears[0].closed() == Some(4000)).await;
    assert_eq!(both[1].ask("isOnline", json!({"client_id": ears[0].id})).await, false);
    drop(ears);
    cluster.end(both.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_run_once_and_answer_and_what_fails_is_a_dead_letter() {
    let cluster = Cluster::start().await;
    let both = vec![node(&cluster.url(), &[]).await, node(&cluster.url(), &[]).await];
    let ear = Ear::member(&both[0], "somebody", &["room"]).await;
    let send = |text: &str| json!({"op": "sendToUid", "uid": "somebody", "message": text}).to_string();
    for number in 0..20 {
        cluster.command("mg:tasks", &["XADD", "mg:tasks", "*", "command", &send(&format!("task {number}"))]).await;
    }
    let later = ["XADD", "mg:tasks", "*", "command", &send("later"), "delay", "300", "id", "one"];
    cluster.command("mg:tasks", &later).await;
    cluster.command("mg:tasks", &later).await;
    let asked =
        ["XADD", "mg:tasks", "*", "command", r#"{"op":"isUidOnline","uid":"somebody"}"#, "reply_to", "mg:reply:1"];
    cluster.command("mg:tasks", &asked).await;
    cluster.command("mg:tasks", &["XADD", "mg:tasks", "*", "command", r#"{"op":"nothing"}"#]).await;
    eventually("all have run", async || (0..20).all(|number| ear.has_heard(&format!("task {number}")))).await;
    eventually("that one, too", async || ear.has_heard("later")).await;
    eventually("it is answered", async || {
        let answer = cluster.command("mg:reply:1", &["LRANGE", "mg:reply:1", "0", "-1"]).await;
        answer.list().into_iter().map(Reply::string).any(|answer| answer.trim_end() == r#"{"result":true}"#)
    })
    .await;
    eventually("the dead letter is there", async || {
        cluster.command("mg:tasks:dead", &["XLEN", "mg:tasks:dead"]).await == Reply::Int(1)
    })
    .await;
    let added =
        both[1].ask("addTask", json!({"command": {"op": "sendToUid", "uid": "somebody", "message": "by HTTP"}})).await;
    assert!(added["id"].is_string(), "{added}");
    eventually("it has run", async || ear.has_heard("by HTTP")).await;
    let heard = ear.heard();
    assert_eq!(heard.iter().collect::<BTreeSet<_>>().len(), heard.len(), "nothing twice: {heard:?}");
    drop(ear);
    for node in &both {
        node.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_on_the_stream_in_order_for_each_client() {
    let cluster = Cluster::start().await;
    let events = ("MOONGATE_EVENTS", "stream");
    let both = vec![node(&cluster.url(), &[events]).await, node(&cluster.url(), &[events]).await];
    let mut ids = Vec::new();
    for (place, node) in both.iter().enumerate() {
        for number in 0..5 {
            let ear = Ear::member(node, "same", &["room"]).await;
            node.done("bindUid", json!({"client_id": ear.id, "uid": format!("own-{place}-{number}")})).await;
            ids.push(ear.id.clone());
        }
    }
    let told = async || {
        let entries = cluster.command("mg:events", &["XRANGE", "mg:events", "-", "+"]).await.list();
        let fields = entries.into_iter().map(|entry| {
            let fields: Vec<String> = entry.list().remove(1).list().into_iter().map(Reply::string).collect();
            fields.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect::<BTreeMap<_, _>>()
        });
        fields.collect::<Vec<_>>()
    };
    eventually("all are told", async || {
        let told = told().await;
        told.iter().filter(|event| event["event"] == "close").count() == 10
    })
    .await;
    let told = told().await;
    for id in &ids {
        let of_it = told.iter().filter(|event| event["client_id"] == *id);
        let names: Vec<&str> = of_it.map(|event| event["event"].as_str()).collect();
        assert_eq!(names, ["connect", "bound", "unbound", "bound", "unbound", "close"], "{id}");
    }
    // Whoever keeps the highest `seq` of a uid knows that nobody has it.
    let of_uid = told.iter().filter(|event| event["uid"] == "same" && event.contains_key("seq"));
    let newest = of_uid.max_by_key(|event| event["seq"].parse::<u64>().unwrap()).unwrap();
    assert_eq!((newest["event"].as_str(), newest["last"].as_str()), ("unbound", "true"));
    cluster.end(both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_is_swept_in_every_slot_and_its_clients_are_told() {
    let cluster = Cluster::start().await;
    let events = ("MOONGATE_EVENTS", "stream");
    let survivor = node(&cluster.url(), &[events]).await;
    let dying = Process::ready(&cluster.url(), &[events]).await;
    let stays = Ear::member(&survivor, "stays", &["room"]).await;
    let mut lost = Vec::new();
    for number in 0..50 {
        lost.push(Ear::member(&dying, &format!("lost-{number}"), &["room", &format!("own-{number}")]).await);
    }
    dying.kill();
    let died = Instant::now();
    cluster.holds(TTL + SOON, &[Expected::member(&stays, "stays", &["room"])]).await;
    saw("node killed on a Cluster", &format!("nothing left after {:.1?} (lease {TTL:?})", died.elapsed()));
    let closes = async || {
        let entries = cluster.command("mg:events", &["XRANGE", "mg:events", "-", "+"]).await.list();
        let mut closed = BTreeMap::<String, usize>::new();
        for entry in entries {
            let fields: Vec<String> = entry.list().remove(1).list().into_iter().map(Reply::string).collect();
            let field = |name: &str| fields.chunks(2).find(|pair| pair[0] == name).map(|pair| pair[1].clone());
            if field("event").as_deref() == Some("close") {
                *closed.entry(field("id").unwrap()).or_default() += 1;
            }
        }
        closed
    };
    eventually("each end is told", async || closes().await.len() == lost.len()).await;
    assert_eq!(survivor.ask("getClientIdCountByGroup", json!({"group": "room"})).await, 1);
    assert_eq!(cluster.publish("mg:uid:lost-0", "x").await, 0);
    drop((stays, lost));
    cluster.end(vec![survivor]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn php_finds_the_nodes_and_a_killed_one_leaves_its_list() {
    let cluster = Cluster::start().await;
    crate::php::a_killed_node_leaves_the_list(&cluster.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_of_the_wrong_kind_is_refused_in_words_and_check_says_what_it_found() {
    let cluster = Cluster::start().await;
    let single = Redis::start().await;
    let address = cluster.servers[1].address();
    let replica = cluster.servers[4].address();
    let dead = reserve_a_port().unwrap();
    for (url, code, words) in [
        (format!("redis://{address}"), 2, "this is a Redis Cluster; its URL begins with redis-cluster://"),
        (format!("redis-cluster://{}", single.address()), 2, "this is no Redis Cluster; its URL begins with redis://"),
        // Any of them will do, also where the first one is away.
        (format!("redis-cluster://{replica}"), 0, ""),
        (format!("redis-cluster://{}?node={address}", dead.1), 0, ""),
        (format!("redis-cluster://{}", dead.1), 2, "MOONGATE_REDIS_URL"),
    ] {
        let (ended, said) = run(&["check"], &url, &[], Duration::from_secs(20)).await;
        assert_eq!(ended, code, "{url}: {said}");
        assert!(said.contains(words), "{url}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_once_what_is_so_on_all_servers_and_names_those_that_differ_replicas_too() {
    let cluster = Cluster::start().await;
    for (server, policy) in [(1, "allkeys-lru"), (5, "volatile-lru")] {
        let set = cluster.servers[server].command(&["CONFIG", "SET", "maxmemory-policy", policy]).await;
        assert_eq!(set, Reply::text("OK"));
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_moongate"));
    command.arg("check").env_clear().env("MOONGATE_REDIS_URL", cluster.url());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{said}");
    let count = |word: &str| said.lines().filter(|line| line.contains(word)).count();
    for (word, lines) in [("  rights  ", 1), ("  timeout  ", 1), ("  maxmemory-policy  ", 3), ("  nodes  ", 1)] {
        assert_eq!(count(word), lines, "{word}: {said}");
    }
    assert_eq!(count(&format!("{}: allkeys-lru: ", cluster.servers[1].address())), 1, "{said}");
    assert_eq!(count(&format!("{}: volatile-lru: ", cluster.servers[5].address())), 1, "{said}");
    assert!(said.ends_with(", Redis answers: a Cluster of 3 masters\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_how_long_nodes_are_silent_by_the_clock_of_the_master_that_has_the_leases() {
    let cluster = Cluster::start().await;
    let masters = &cluster.servers[..3];
    for owner in 0..masters.len() {
        let mut prefix = String::new();
        for number in 0_u32.. {
            prefix = format!("p{number}");
            let slot = masters[0].command(&["CLUSTER", "KEYSLOT", &format!("{prefix}:nodes")]).await.int();
            if usize::try_from(slot).unwrap() * 3 / usize::from(SLOTS) == owner {
                break;
            }
        }
        for master in masters {
            assert_eq!(master.command(&["CONFIG", "RESETSTAT"]).await, Reply::text("OK"));
        }
        let more = [("MOONGATE_PREFIX", &*prefix)];
        let (code, said) = run(&["check"], &cluster.url(), &more, Duration::from_secs(20)).await;
        assert_eq!((code, said.as_str()), (0, ""));
        for (number, master) in masters.iter().enumerate() {
            let counts = master.command(&["INFO", "commandstats"]).await.string();
            assert_eq!(counts.contains("cmdstat_time:"), number == owner, "{number}, of {owner}: {counts}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_and_a_password_are_for_all_servers_and_shown_nowhere() {
    let cluster = Cluster::start_with(&["--requirepass", "hunter2", "--masterauth", "hunter2"]).await;
    let url = cluster.url().replace("redis-cluster://", "redis-cluster://:hunter2@");
    let node = Process::ready(&url, &[("MOONGATE_LOG", "debug")]).await;
    let ear = Ear::member(&node, "somebody", &["room"]).await;
    assert_eq!(cluster.publish("mg:uid:somebody", "hello").await, 1);
    eventually("it is heard", async || ear.has_heard("hello")).await;
    assert!(!node.log().contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_wants_to_hear_is_counted_as_what_is_confirmed_and_that_is_less_while_nobody_may_listen() {
    let cluster = Cluster::start().await;
    let node = node(&cluster.url(), &[]).await;
    let mut ears = vec![Ear::member(&node, "somebody", &["room", "other"]).await];
    for _ in 0..20 {
        ears.push(Ear::of(node.connect().await));
    }
    let (wanted, confirmed) = ("moongate_subscriptions_wanted", "moongate_subscriptions_confirmed");
    let counted = async || (node.metric(wanted).await, node.metric(confirmed).await);
    // Everyone, the uid, its groups, and each client.
    let all = (25.0, 25.0);
    eventually("all is confirmed", async || counted().await.1 == all.1).await;
    assert_eq!(counted().await, all);

    let mut controls = Vec::new();
    for master in &cluster.servers[..3] {
        controls.push(master.connection().await);
    }
    for control in &mut controls {
        control.command(&["CONFIG", "SET", "maxclients", "1"]).await;
        control.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    }
    // As `deploy/alerts.yml` has it.
    within(SOON, "it is seen", async || {
        let (wanted, confirmed) = counted().await;
        confirmed < 0.9 * wanted && node.metric("moongate_redis_up").await == 1.0
    })
    .await;
    assert_eq!(node.metric(wanted).await, all.0);
    for control in &mut controls {
        control.command(&["CONFIG", "SET", "maxclients", "10000"]).await;
    }
    within(SOON, "all is confirmed again", async || counted().await == all).await;
    drop(ears);
    eventually("nothing is wanted", async || counted().await == (0.0, 0.0)).await;
    cluster.end(vec![node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_users_of_security_md_may_do_on_a_cluster_what_they_need() {
    let cluster = Cluster::start().await;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SECURITY.md")).unwrap();
    // What libraries for a Cluster ask: of everyone but nodes, in the words of the page.
    let besides = "+cluster|slots +cluster|shards +command";
    assert!(page.contains(&format!("`{besides}`")));
    for line in page.lines().filter(|line| line.starts_with("ACL SETUSER ")) {
        let line = match line.split(' ').nth(2) {
            Some("moongate") => line.to_owned(),
            _ => format!("{} {besides}", line.replace("+publish", "+spublish")),
        };
        for server in &cluster.servers {
            assert_eq!(server.command(&line.split(' ').collect::<Vec<_>>()).await, Reply::text("OK"), "{line}");
        }
    }
    let url = cluster.url().replace("redis-cluster://", "redis-cluster://moongate:a-password@");
    let settings = [("MOONGATE_EVENTS", "stream")];
    let both = [node(&url, &settings).await, node(&url, &settings).await];
    let ear = Ear::member(&both[0], "{somebody}", &["room"]).await;
    both[1].done("bindUid", json!({"client_id": ear.id, "uid": "}else{", "single": true})).await;
    assert_eq!(both[1].ask("sendToUid", json!({"uid": "}else{", "message": "hello"})).await["nodes"], 1);
    let task = json!({"command": {"op": "sendToGroup", "group": "room", "message": "later"}, "id": "t", "delay": 50});
    both[1].ask("addTask", task).await;
    eventually("both are heard", async || ear.has_heard("hello") && ear.has_heard("later")).await;

    let command = json!({"op": "sendToGroup", "group": "room", "message": "commanded"}).to_string();
    for (user, key, words) in [
        ("sender", "mg:group:room", &["SPUBLISH", "mg:group:room", "sent"][..]),
        ("commander", "mg:cmd", &["SPUBLISH", "mg:cmd", &command]),
        ("commander", "mg:tasks", &["XADD", "mg:tasks", "*", "command", &command]),
        ("reader", "mg:group:room:clients", &["SMEMBERS", "mg:group:room:clients"]),
        ("worker", "mg:events", &["XRANGE", "mg:events", "-", "+"]),
    ] {
        let mut connection = Connection::to(cluster.owner(key).await.address()).await;
        assert_eq!(connection.command(&["AUTH", user, "a-password"]).await, Reply::text("OK"));
        for words in [&["CLUSTER", "SLOTS"][..], &["CLUSTER", "SHARDS"], &["COMMAND"], words] {
            let reply = connection.command(words).await;
            assert!(!matches!(reply, Reply::Error(_)), "{user}: {words:?}: {reply:?}");
        }
    }
    eventually("both are heard", async || ear.has_heard("sent") && ear.has_heard("commanded")).await;
    for node in &both {
        assert_eq!(node.metric("moongate_directory_refused_total").await, 0.0);
        node.stop();
    }
}

// --- faults ----------------------------------------------------------------------------------------------------------

/// Publishes to the room, at whoever has its slot.
async fn publish(servers: Vec<SocketAddr>, publishing: Arc<Publishing>) {
    let (mut number, mut at) = (0, servers[0]);
    for turn in 1.. {
        if publishing.is_over() {
            return;
        }
        let next = servers[turn % servers.len()];
        at = match tokio::time::timeout(Duration::from_secs(1), Connection::try_to(at)).await {
            Ok(Ok(master)) => {
                let moved = publishing.go_on(master, "SPUBLISH", &format!("redis-{turn}"), &mut number).await;
                moved.unwrap_or(next)
            }
            Ok(Err(_)) | Err(_) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                next
            }
        };
    }
}

/// Somebody whose channel is at a master to which nothing happens, and who hears all that is said there meanwhile.
struct Elsewhere {
    ear: Ear,
    uid: String,
    stop: Arc<AtomicBool>,
    saying: tokio::task::JoinHandle<u64>,
}

impl Elsewhere {
    async fn begin(cluster: &Cluster, node: &Node, not: &Redis) -> Self {
        // The fault that moves slots moves them to the master behind that one: so it is the one before.
        let place = cluster.servers.iter().position(|server| server.address() == not.address()).unwrap();
        let at = cluster.servers[(place + 2) % 3].address();
        let mut uid = String::new();
        for number in 0.. {
            uid = format!("elsewhere-{number}");
            if cluster.owner(&format!("mg:uid:{uid}")).await.address() == at {
                break;
            }
        }
        let ear = Ear::member(node, &uid, &[]).await;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, channel) = (Arc::clone(&stop), format!("mg:uid:{uid}"));
        let saying = tokio::spawn(async move {
            let (mut master, mut number) = (Connection::to(at).await, 0);
            while !stopped.load(Ordering::Relaxed) {
                let heard = master.command(&["SPUBLISH", &channel, &number.to_string()]).await;
                assert_eq!(heard, Reply::Int(1), "of message {number}");
                number += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            number
        });
        Self { ear, uid, stop, saying }
    }

    async fn end(self) -> (Ear, String) {
        self.stop.store(true, Ordering::Relaxed);
        let said = self.saying.await.unwrap();
        assert!(said > 20, "{said}");
        let all: Vec<String> = (0..said).map(|number| number.to_string()).collect();
        eventually("it has heard the last one", async || self.ear.heard().last() == all.last()).await;
        assert!(self.ear.heard() == all, "each once, and in order, of {said}: {:?}", self.ear.heard());
        (self.ear, self.uid)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A master is killed, and its replica takes over.
    Death,
    /// A replica takes over as somebody wants it; the old master becomes its replica.
    ByHand,
    /// Slots go to another master, with what is in them.
    Moves,
}

/// Two nodes under load live through it, and all is as if nothing had been.
async fn nodes_live_through(fault: Fault) {
    let cluster = Cluster::start().await;
    let both = [node(&cluster.url(), &[]).await, node(&cluster.url(), &[]).await];
    let room = Room::open(&both).await;
    let old = cluster.owner("mg:group:room").await;
    let elsewhere = Elsewhere::begin(&cluster, &both[0], old).await;
    let servers = cluster.servers.iter().map(Redis::address).collect();
    let load = Load::begin(&both, &room, UIDS, |publishing| publish(servers, publishing)).await;
    load.has_said_more().await;

    let began = Instant::now();
    let place = cluster.servers.iter().position(|server| server.address() == old.address()).unwrap();
    match fault {
        Fault::Death => old.stop(),
        Fault::ByHand => {
            let failover = cluster.servers[place + 3].command(&["CLUSTER", "FAILOVER"]).await;
            assert_eq!(failover, Reply::text("OK"));
        }
        Fault::Moves => {
            let to = &cluster.servers[(place + 1) % 3];
            for key in [
                "mg:group:room",
                "mg:uid:user-0-0:clients",
                "mg:group:room:clients",
                "mg:nodes",
                "mg:tasks",
                "mg:all",
                "mg:cmd",
            ] {
                if cluster.owner(key).await.address() != to.address() {
                    cluster.move_slot(key, to).await;
                }
            }
            for number in 0..UIDS {
                let key = format!("mg:uid:load-0-{number}:clients");
                if cluster.owner(&key).await.address() != to.address() {
                    cluster.move_slot(&key, to).await;
                }
            }
        }
    }
    if fault != Fault::Moves {
        let new = &cluster.servers[place + 3];
        within(SWITCHED, "its replica is the master", async || {
            new.command(&["ROLE"]).await.list()[0] == Reply::text("master")
        })
        .await;
    }
    let switched = began.elapsed();
    within(SWITCHED, "both nodes are ready, and hear", async || {
        are_ready(&both).await
            && cluster.publish("mg:cmd", "{}").await == 2
            && cluster.publish("mg:group:room", "x").await == 2
    })
    .await;
    saw(
        "cluster",
        &format!("{fault:?}: done after {switched:.1?}, both ready and hearing after {:.1?}", began.elapsed()),
    );
    load.has_said_more().await;
    for speaker in ["http-0 ", "http-1 "] {
        let said = async || room.ears[0].heard().iter().filter(|text| text.starts_with(speaker)).count();
        eventually("the callers go on", async || said().await > 20).await;
    }
    load.end().await;
    let elsewhere = elsewhere.end().await;
    assert!(room.is_open(), "sockets stay open");

    room.settle(&both).await;
    let mut clients = room.settled();
    let (ear, uid) = &elsewhere;
    clients.push(Expected::member(ear, uid, &[]));
    cluster.holds(SOON, &clients).await;
    room.has_heard_in_order();
    for (place, node) in both.iter().enumerate() {
        all_are_reached_through(node, &room.ears, &format!("after, through {place}")).await;
        for uid in &room.uids {
            assert_eq!(node.ask("sendToUid", json!({"uid": uid, "message": "to its uid"})).await["nodes"], 1, "{uid}");
        }
    }
    for (ear, uid) in room.ears.iter().zip(&room.uids) {
        assert_eq!(cluster.publish(&format!("mg:uid:{uid}"), "from Redis").await, 1, "{uid}");
        eventually("it is heard", async || ear.has_heard("from Redis")).await;
    }
    drop((room, elsewhere));
    cluster.end(both.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_live_through_the_death_of_a_master() {
    nodes_live_through(Fault::Death).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_follow_a_replica_that_takes_over_by_hand() {
    nodes_live_through(Fault::ByHand).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_follow_slots_that_move_to_another_master() {
    nodes_live_through(Fault::Moves).await;
}

// --- a live tail -----------------------------------------------------------------------------------------------------

/// What is said to somebody through a node is shown. It is said again until it is: the first moments may be missing, and
/// those of a fault.
async fn is_shown(tail: &mut Tail, node: &Node, op: &str, target: &Value, when: &str) {
    let shown = async {
        for number in 0.. {
            let text = format!("{op}, {when}, {number}");
            let mut fields = target.clone();
            fields["message"] = json!(text);
            node.call(op, fields).await;
            let seen = async {
                loop {
                    let seen = tail.seen().await;
                    if seen["text"] == text {
                        return seen;
                    }
                }
            };
            if let Ok(seen) = tokio::time::timeout(Duration::from_millis(500), seen).await {
                assert_eq!((&seen["kind"], &seen["clients"]), (&json!("message"), &json!(1)), "{seen}");
                return;
            }
        }
    };
    tokio::time::timeout(SOON, shown).await.unwrap_or_else(|_| panic!("{op}, {when}: not shown within {SOON:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_shows_what_a_client_of_another_node_hears_and_again_when_a_master_has_died() {
    let cluster = Cluster::start().await;
    let both = [node(&cluster.url(), &[]).await, node(&cluster.url(), &[]).await];
    let ear = Ear::member(&both[1], "somebody", &["room"]).await;
    let mut tails = [
        (Tail::of(&both[0], "uid=somebody").await, "sendToUid", json!({"uid": "somebody"})),
        (Tail::of(&both[0], "group=room").await, "sendToGroup", json!({"group": "room"})),
    ];
    for (tail, op, target) in &mut tails {
        is_shown(tail, &both[0], op, target, "at first").await;
    }

    // Where all nodes are asked to watch.
    let old = cluster.owner("mg.ask").await;
    let place = cluster.servers.iter().position(|server| server.address() == old.address()).unwrap();
    let new = &cluster.servers[place + 3];
    old.stop();
    within(SWITCHED, "its replica is the master", async || {
        new.command(&["ROLE"]).await.list()[0] == Reply::text("master")
    })
    .await;
    within(SWITCHED, "both nodes are ready", async || are_ready(&both).await).await;
    for (tail, op, target) in &mut tails {
        is_shown(tail, &both[0], op, target, "of those who watch still").await;
        let asked = async { while tail.next().await != json!({"kind": "tailing", "nodes": 2}) {} };
        tokio::time::timeout(SWITCHED, asked).await.expect("both are asked again");
        is_shown(tail, &both[0], op, target, "of those who were asked again").await;
    }
    assert!(ear.is_open());
    drop((ear, tails));
    cluster.end(both.into()).await;
}
