//! Sentinels that make a replica the master: after the master's death, or by hand.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::harness::{Node, eventually, soon};
use crate::load::{Load, Publishing, Room};
use crate::port::reserve_a_port;
use crate::proxy::Proxy;
use crate::redis::{Connection, Redis, Reply};
use crate::world::{
    Ear, Process, TTL, all_are_reached_through, all_open, are_ready, end, node, nodes, redis_holds, run, saw, sum,
    throughout, within,
};

/// Sentinels' own time: a master is down after a second, and voted off in one more or two; where their votes are split, they
/// vote anew after 8 s.
const NAMED: Duration = Duration::from_secs(30);

/// From then on: a beat, and a pause between two attempts. And a machine that does much else.
const SWITCHED: Duration = Duration::from_secs(12);

/// A beat, a pause between two attempts, and the comparison; and a machine that does much else.
const SOON: Duration = Duration::from_secs(12);

/// Until sentinels make a replica of a master that is one no more: they watch it for 8 s, and look every 10 s.
const DEMOTED: Duration = Duration::from_secs(40);

/// What sentinels here call the master.
const SERVICE: &str = "mymaster";

/// A master, a replica of it, and three sentinels that watch them.
struct Guarded {
    /// The master, to begin with, and the replica.
    servers: [Redis; 2],
    sentinels: [Redis; 3],
}

impl Guarded {
    async fn start() -> Self {
        Self::start_with(&[], &[]).await
    }

    /// With more arguments for the servers, and more lines for the sentinels.
    async fn start_with(arguments: &[&str], lines: &[&str]) -> Self {
        let at_once = ["--repl-diskless-sync-delay", "0"];
        let master = Redis::start_with(&[&at_once, arguments].concat()).await;
        let port = master.address().port().to_string();
        let replica = ["--replicaof", "127.0.0.1", &port];
        let replica = Redis::start_with(&[&at_once[..], &replica, arguments].concat()).await;
        eventually("the replica has all", async || {
            replica.command(&["INFO", "replication"]).await.string().contains("master_link_status:up")
        })
        .await;
        let watch = watch(master.address(), 2);
        let lines: Vec<&str> = watch.iter().map(String::as_str).chain(lines.iter().copied()).collect();
        let start = || Redis::start_sentinel(&lines);
        let sentinels = <[Redis; 3]>::from(tokio::join!(start(), start(), start()));
        for sentinel in &sentinels {
            eventually("a sentinel knows the others, and a replica that could take over", async || {
                let fields = sentinel.command(&["SENTINEL", "MASTER", SERVICE]).await.list();
                let has =
                    |name: &str, value: &str| fields.windows(2).any(|pair| pair == [name, value].map(Reply::text));
                let replicas = sentinel.command(&["SENTINEL", "REPLICAS", SERVICE]).await;
                let is_linked = |fields: &[Reply]| {
                    fields.windows(2).any(|pair| pair == ["master-link-status", "ok"].map(Reply::text))
                };
                has("num-other-sentinels", "2") && replicas.list().into_iter().any(|one| is_linked(&one.list()))
            })
            .await;
        }
        Self { servers: [master, replica], sentinels }
    }

    /// As `MOONGATE_REDIS_URL` takes it.
    fn url(&self) -> String {
        sentinel_url(&self.sentinels.each_ref().map(Redis::address))
    }

    /// Where the master is, as a sentinel says.
    async fn master(&self) -> Option<SocketAddr> {
        let running = self.sentinels.iter().find(|sentinel| sentinel.is_running())?;
        let named = running.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]).await;
        let parts: Vec<String> = named.list().into_iter().map(Reply::string).collect();
        parts.join(":").parse().ok()
    }
}

/// The lines by which a sentinel watches a master, and lets another take its place within seconds.
fn watch(master: SocketAddr, quorum: u32) -> Vec<String> {
    vec![
        format!("sentinel monitor {SERVICE} {} {} {quorum}", master.ip(), master.port()),
        format!("sentinel down-after-milliseconds {SERVICE} 1000"),
        format!("sentinel failover-timeout {SERVICE} 4000"),
    ]
}

/// These sentinels, in this order, as `MOONGATE_REDIS_URL` takes them.
fn sentinel_url(sentinels: &[SocketAddr]) -> String {
    let others: String = sentinels[1..].iter().map(|address| format!("&node={address}")).collect();
    format!("redis-sentinel://{}/?sentinelServiceName={SERVICE}{others}", sentinels[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_name_the_master_and_make_the_replica_one_when_it_is_killed() {
    let guarded = Guarded::start().await;
    let [master, replica] = &guarded.servers;
    master.command(&["SET", "k", "v"]).await;
    for sentinel in &guarded.sentinels {
        let named = sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]).await;
        assert_eq!(named, Reply::List(["127.0.0.1", &master.address().port().to_string()].map(Reply::text).into()));
    }
    assert_eq!(guarded.master().await, Some(master.address()));
    master.stop();
    within(NAMED, "the replica is the master", async || guarded.master().await == Some(replica.address())).await;
    assert_eq!(answer(replica, &["ROLE"]).await.list()[0], Reply::text("master"));
    assert_eq!(answer(replica, &["GET", "k"]).await, Reply::text("v"));
}

// --- the switch ------------------------------------------------------------------------------------------------------

/// What begins the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Switch {
    /// The master is killed.
    Death,
    /// The master is frozen, and does what it was told before when it goes on.
    Freeze,
    /// Somebody wants it so; the old master goes on answering.
    ByHand,
}

/// A question to a server of which Sentinel may just be making another: it cuts everybody off then, and once.
async fn answer(redis: &Redis, question: &[&str]) -> Reply {
    let asked = async { Connection::try_to(redis.address()).await?.try_command(question).await };
    match soon("a reply of Redis", asked).await {
        Ok(reply) => reply,
        Err(_) => redis.command(question).await,
    }
}

/// Whether any node has a connection to this Redis.
async fn is_in_use(redis: &Redis) -> bool {
    answer(redis, &["CLIENT", "LIST"]).await.string().contains("name=moongate:")
}

/// Publishes to the room, through whom the sentinels name.
async fn publish(sentinels: [SocketAddr; 3], publishing: Arc<Publishing>) {
    let mut number = 0;
    for turn in 0.. {
        if publishing.is_over() {
            return;
        }
        let connected = async {
            let mut sentinel = Connection::try_to(sentinels[turn % 3]).await.ok()?;
            let named = sentinel.try_command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]).await.ok()?;
            let parts: Vec<String> = named.list().into_iter().map(Reply::string).collect();
            Connection::try_to(parts.join(":").parse().ok()?).await.ok()
        };
        match connected.await {
            Some(master) => drop(publishing.go_on(master, "PUBLISH", "redis", &mut number).await),
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Two nodes under load live through a switch, and all is as if nothing had been.
async fn nodes_follow_the_master(switch: Switch) {
    let guarded = Guarded::start().await;
    let [old, new] = &guarded.servers;
    let both = [node(&guarded.url(), &[]).await, node(&guarded.url(), &[]).await];
    let room = Room::open(&both).await;
    let sentinels = guarded.sentinels.each_ref().map(Redis::address);
    let load = Load::begin(&both, &room, usize::MAX, |publishing| publish(sentinels, publishing)).await;
    load.has_said_more().await;

    // What the replica has not got: a little more than any lag.
    let id = &room.ears[0].id;
    new.command(&["CONFIG", "SET", "replica-read-only", "no"]).await;
    let lost =
        ["mg:uid:user-0-0:clients", "mg:uid:user-1-0:clients", &format!("mg:client:{id}"), "mg:group:room:clients"];
    assert_eq!(new.command(&[&["DEL"], &lost[..]].concat()).await, Reply::Int(4));
    let began = Instant::now();
    match switch {
        Switch::Death => old.stop(),
        Switch::Freeze => old.pause().await,
        Switch::ByHand => {
            let wanted = guarded.sentinels[0].command(&["SENTINEL", "FAILOVER", SERVICE]).await;
            assert_eq!(wanted, Reply::text("OK"));
        }
    }
    within(NAMED, "the sentinels name the other one", async || guarded.master().await == Some(new.address())).await;
    let named = began.elapsed();
    let entered = async || nodes(new).await.len() == 2 && are_ready(&both).await && is_in_use(new).await;
    within(SWITCHED, "both nodes are ready on the new master", async || {
        entered().await && answer(new, &["PUBLISH", "mg:cmd", "{}"]).await == Reply::Int(2)
    })
    .await;
    let ready = began.elapsed();
    let seen = format!("{switch:?}: named after {named:.1?}, both ready and hearing after {ready:.1?}");
    if switch == Switch::ByHand {
        // While it still answers as one, which it does for 8 s.
        within(Duration::from_secs(4), "nobody is left at the old master", async || !is_in_use(old).await).await;
    }
    load.has_said_more().await;
    load.end().await;
    assert!(room.is_open(), "sockets stay open");

    room.settle(&both).await;
    redis_holds(new, SOON, &room.settled()).await;
    let mut gaps = Vec::new();
    for node in &both {
        assert_eq!(node.ask("getClientIdCountByGroup", json!({"group": "room"})).await, 8);
        assert!(node.metric("moongate_bus_gaps_total").await >= 1.0, "the gap is counted");
        assert!(node.metric("moongate_directory_compared_total").await >= 1.0, "it has compared");
        gaps.push(node.metric("moongate_bus_gap_seconds_total").await);
    }
    saw("sentinel", &format!("{seen}, gaps of {gaps:.1?} s"));
    room.has_heard_in_order();
    for (place, node) in both.iter().enumerate() {
        all_are_reached_through(node, &room.ears, &format!("after, through {place}")).await;
    }

    // The old one becomes a replica of the new one, and nobody goes there.
    match switch {
        Switch::Death => old.start_again().await,
        Switch::Freeze => old.resume(),
        Switch::ByHand => {}
    }
    let gaps = sum(&both.iter().collect::<Vec<_>>(), "moongate_bus_gaps_total").await;
    eventually("nobody is there", async || !is_in_use(old).await).await;
    within(DEMOTED, "the old master is a replica", async || {
        assert!(!is_in_use(old).await && all_open(&room.ears));
        answer(old, &["ROLE"]).await.list()[0] == Reply::text("slave")
    })
    .await;
    // Nor did it say anything late.
    room.has_heard_in_order();
    throughout(TTL + Duration::from_secs(1), "all goes on", async || {
        let all: Vec<&Node> = both.iter().collect();
        let quiet = sum(&all, "moongate_fenced_total").await + sum(&all, "moongate_swept_nodes_total").await == 0.0;
        quiet && sum(&all, "moongate_bus_gaps_total").await == gaps && all_open(&room.ears) && !is_in_use(old).await
    })
    .await;
    all_are_reached_through(&both[0], &room.ears, "at the end").await;
    drop(room);
    end(new, both.into(), vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_master_dies_under_load_nodes_go_to_the_new_one_and_never_back() {
    nodes_follow_the_master(Switch::Death).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_master_freezes_under_load_nodes_go_to_the_new_one_and_nothing_comes_late_from_the_old_one() {
    nodes_follow_the_master(Switch::Freeze).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_master_is_changed_by_hand_under_load_nodes_go_to_the_new_one_at_once() {
    nodes_follow_the_master(Switch::ByHand).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_again() {
    let guarded = Guarded::start().await;
    let gate = node(&guarded.url(), &[]).await;
    let ear = [Ear::member(&gate, "u", &["g"]).await];
    for round in 0..2 {
        let [from, to] = if round == 0 { [0, 1] } else { [1, 0] };
        let to = &guarded.servers[to];
        within(DEMOTED, "the other one can take over", async || {
            let wanted = guarded.sentinels[2].command(&["SENTINEL", "FAILOVER", SERVICE]).await;
            wanted == Reply::text("OK")
        })
        .await;
        within(DEMOTED, "the node is at the new master", async || is_in_use(to).await).await;
        within(SOON, "it is ready, and hears", async || {
            gate.get("/readyz?strict=1").await.status == 200
                && answer(to, &["PUBLISH", "mg:cmd", "{}"]).await == Reply::Int(1)
        })
        .await;
        all_are_reached_through(&gate, &ear, &format!("round {round}")).await;
        eventually("it has left the old one", async || !is_in_use(&guarded.servers[from]).await).await;
    }
    drop(ear);
    end(&guarded.servers[0], vec![gate], vec![]).await;
}

// --- sentinels that are no help --------------------------------------------------------------------------------------

/// Takes connections and never answers.
async fn a_mute_one() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut taken = Vec::new();
        loop {
            taken.push(listener.accept().await.unwrap());
        }
    });
    (address, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_sentinel_and_one_that_never_answers_hold_up_neither_start_nor_switch() {
    let guarded = Guarded::start().await;
    let [old, new] = &guarded.servers;
    let (mute, _listening) = a_mute_one().await;
    let [dead, second, third] = guarded.sentinels.each_ref().map(Redis::address);
    guarded.sentinels[0].stop();
    let url = sentinel_url(&[dead, mute, second, third]);
    let began = Instant::now();
    let gate = node(&url, &[]).await;
    let ear = [Ear::member(&gate, "u", &["g"]).await];
    let ready = began.elapsed();
    assert!(is_in_use(old).await);

    old.stop();
    let two = async || {
        let named = guarded.sentinels[1].command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]).await;
        named.list().pop() == Some(Reply::text(new.address().port().to_string()))
    };
    within(NAMED, "two sentinels of three are enough", two).await;
    let named = Instant::now();
    within(Duration::from_secs(6), "the node is at the new master", async || {
        is_in_use(new).await && gate.get("/readyz?strict=1").await.status == 200
    })
    .await;
    saw(
        "sentinel",
        &format!(
            "beside a dead and a mute one: ready after {ready:.1?}, at the new master {:.1?} after it was named",
            named.elapsed()
        ),
    );
    within(SOON, "it hears", async || new.publish("mg:uid:u", "hello").await == 1).await;
    all_are_reached_through(&gate, &ear, "through the new one").await;

    // One that answered ceases to: nobody notices.
    let gaps = gate.metric("moongate_bus_gaps_total").await;
    guarded.sentinels[1].pause().await;
    throughout(Duration::from_secs(4), "it is ready", async || gate.get("/readyz?strict=1").await.status == 200).await;
    assert_eq!(gate.metric("moongate_bus_gaps_total").await, gaps);
    guarded.sentinels[1].resume();
    drop(ear);
    end(new, vec![gate], vec![]).await;
}

/// How many connections of this machine lead there.
fn connections_to(address: SocketAddr) -> usize {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", address.port());
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.filter(|fields| fields[2].ends_with(&port) && fields[3] == ESTABLISHED).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_that_answers_when_another_was_asked_keeps_no_connection() {
    let guarded = Guarded::start().await;
    let late = Proxy::start(guarded.sentinels[0].address()).await;
    late.stall();
    let gate = node(&sentinel_url(&[late.address(), guarded.sentinels[1].address()]), &[]).await;
    assert_eq!(late.accepted(), 1);
    late.pass();
    within(SOON, "the late answer is nobody's", async || connections_to(late.address()) == 0).await;
    end(&guarded.servers[0], vec![gate], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_that_is_cut_off_from_the_others_and_names_a_dead_master_is_passed_over() {
    let guarded = Guarded::start().await;
    let (_reserved, nobody) = reserve_a_port().unwrap();
    let [master, replica] = &guarded.servers;
    // It is alone, and would need nine more to change its mind.
    let lines = watch(nobody, 10);
    let stale = Redis::start_sentinel(&lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let url = sentinel_url(&[stale.address(), guarded.sentinels[0].address()]);
    let gate = node(&url, &[]).await;
    assert!(is_in_use(master).await && !is_in_use(replica).await);
    let ear = [Ear::member(&gate, "u", &["g"]).await];
    // Where there is none but the wrong one, a master that answers is not left.
    let asked = async || {
        let info = stale.command(&["INFO", "stats"]).await.string();
        let count = info.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap().to_owned();
        count.parse::<u64>().unwrap()
    };
    let gaps = gate.metric("moongate_bus_gaps_total").await;
    guarded.sentinels[0].pause().await;
    let before = asked().await;
    throughout(Duration::from_secs(6), "it is ready", async || gate.get("/readyz?strict=1").await.status == 200).await;
    // Each question of the test is a connection, too.
    within(SOON, "the wrong one was asked", async || asked().await > before + 3).await;
    assert_eq!(gate.metric("moongate_bus_gaps_total").await, gaps);
    guarded.sentinels[0].resume();
    within(SOON, "it is ready", async || gate.get("/readyz?strict=1").await.status == 200).await;
    within(SOON, "it hears", async || master.publish("mg:uid:u", "hello").await == 1).await;
    all_are_reached_through(&gate, &ear, "still here").await;
    drop(ear);
    end(master, vec![gate], vec![]).await;
}

// --- the start -------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn without_sentinels_at_the_start_a_node_waits_for_them() {
    let guarded = Guarded::start().await;
    for sentinel in &guarded.sentinels {
        sentinel.stop();
    }
    let process = Process::start(&guarded.url(), &[]).await;
    throughout(Duration::from_secs(3), "it is alive, and not ready", async || {
        process.ready().await.0 == 503 && process.get("/healthz").await.status == 200
    })
    .await;
    let said = "no sentinel says where the master mymaster is: ";
    assert!(process.log().contains(said), "{}", process.log());
    guarded.sentinels[1].start_again().await;
    process.until_ready(Duration::from_secs(8)).await;
    end(&guarded.servers[0], vec![], vec![process]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_sentinel_knows_the_masters_name_a_node_says_so_and_goes_on_asking() {
    let guarded = Guarded::start().await;
    let url = guarded.url().replace(SERVICE, "other");
    let process = Process::start(&url, &[]).await;
    eventually("it says so", async || process.log().contains("it knows no master of the name other")).await;
    throughout(Duration::from_secs(2), "it is not ready", async || process.ready().await.0 == 503).await;
    let (code, said) = run(&["check"], &url, &[], Duration::from_secs(8)).await;
    assert_eq!(code, 2);
    assert!(said.starts_with("MOONGATE_REDIS_URL: no sentinel says where the master other is: 127.0.0.1:"), "{said}");
    let port = guarded.servers[0].address().port().to_string();
    for sentinel in &guarded.sentinels {
        let watched = sentinel.command(&["SENTINEL", "MONITOR", "other", "127.0.0.1", &port, "2"]).await;
        assert_eq!(watched, Reply::text("OK"));
    }
    process.until_ready(Duration::from_secs(8)).await;
    end(&guarded.servers[0], vec![], vec![process]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_which_master_it_has_found_what_its_replica_lacks_and_who_is_no_sentinel() {
    let guarded = Guarded::start().await;
    let [master, replica] = guarded.servers.each_ref().map(Redis::address);
    let set = guarded.servers[1].command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    assert_eq!(set, Reply::text("OK"));
    let check = async |url: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moongate"));
        command.arg("check").env_clear().env("MOONGATE_REDIS_URL", url);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, found, said) = check(&guarded.url()).await;
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert!(found.ends_with(&format!(", Redis answers: {master} is the master mymaster\n")), "{found}");
    assert!(found.contains(&format!("{replica}: allkeys-lru: ")), "{found}");

    let (code, _, said) = check(&sentinel_url(&[master])).await;
    assert_eq!(code, Some(2));
    assert!(said.contains(&format!("{master}: this is no sentinel")), "{said}");
    let (code, _, said) = check(&format!("redis://{}", guarded.sentinels[0].address())).await;
    assert_eq!(code, Some(2));
    assert!(said.contains("this is a sentinel"), "{said}");
    guarded.servers[0].pause().await;
    let (code, _, said) = check(&guarded.url()).await;
    guarded.servers[0].resume();
    assert_eq!(code, Some(2));
    assert!(said.contains(&format!("{master}, the master mymaster as 127.0.0.1:")), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_and_masters_have_passwords_of_their_own_and_none_is_shown() {
    let servers = ["--requirepass", "for-servers", "--masterauth", "for-servers"];
    let sentinels = [
        "requirepass p@ss:sen?tinel",
        "sentinel sentinel-pass p@ss:sen?tinel",
        &format!("sentinel auth-pass {SERVICE} for-servers"),
    ];
    let guarded = Guarded::start_with(&servers, &sentinels).await;
    let url = guarded.url();
    let with = |server: &str, sentinel: &str| {
        let url = url.replace("redis-sentinel://", &format!("redis-sentinel://{server}"));
        format!("{url}{sentinel}")
    };
    let right = "&sentinelPassword=p%40ss%3Asen%3Ftinel";
    for sentinel in [right, &format!("{right}&sentinelUsername=default")] {
        let gate = node(&with(":for-servers@", sentinel), &[]).await;
        end(&guarded.servers[0], vec![gate], vec![]).await;
    }
    for (server, sentinel) in
        [(":hunter2@", right), ("", right), (":for-servers@", "&sentinelPassword=hunter2"), (":for-servers@", "")]
    {
        let url = with(server, sentinel);
        for arguments in [&[][..], &["check"]] {
            let (code, said) = run(arguments, &url, &[("MOONGATE_LOG_FORMAT", "text")], Duration::from_secs(8)).await;
            assert_eq!(code, 2, "{said}");
            assert!(said.contains("MOONGATE_REDIS_URL: "), "{said}");
            for secret in ["hunter2", "for-servers", "p@ss", "p%40ss"] {
                assert!(!said.contains(secret), "{said}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_sentinels_a_replica_is_a_reason_to_try_again() {
    let (master, replica) = (Redis::start().await, Redis::start().await);
    let port = master.address().port().to_string();
    assert_eq!(replica.command(&["REPLICAOF", "127.0.0.1", &port]).await, Reply::text("OK"));
    let lines = watch(replica.address(), 10);
    let sentinel = Redis::start_sentinel(&lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let process = Process::start(&sentinel_url(&[sentinel.address()]), &[]).await;
    eventually("it says so", async || process.log().contains("this is a replica")).await;
    throughout(Duration::from_secs(2), "it goes on asking", async || {
        process.code().is_none() && process.ready().await.0 == 503
    })
    .await;
    assert_eq!(replica.command(&["REPLICAOF", "NO", "ONE"]).await, Reply::text("OK"));
    process.until_ready(Duration::from_secs(8)).await;
    end(&replica, vec![], vec![process]).await;
}
