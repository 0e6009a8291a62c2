//! What the tests here have in common: nodes that can be killed, listeners that write down what they hear, and what a
//! Redis must hold when all is well.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::Deref;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, Node, eventually, soon};
use crate::redis::{Connection, Redis, Reply};

/// Leases here. The shortest that is allowed is two seconds.
pub const TTL: Duration = Duration::from_secs(3);
const NODE_TTL: &str = "3s";

/// What a group is told of a client that has gone.
pub const LEAVE: &str = r#"{"type":"close","uname":"{session.uname}"}"#;

/// The program under test.
pub const MOONGATE: &str = env!("CARGO_BIN_EXE_moongate");

/// How long something is to last: the short time, or the long one in `make chaos`.
pub fn chaos(short: Duration, long: Duration) -> Duration {
    if is_chaos() { long } else { short }
}

/// Whether this is `make chaos`.
pub fn is_chaos() -> bool {
    std::env::var_os("CHAOS").is_some()
}

/// Says what was seen of a fault: for the table of `make chaos`, in the file that `CHAOS_SEEN` names.
pub fn saw(fault: &str, seen: &str) {
    let line = format!("{fault}: {seen}\n");
    eprint!("{line}");
    if let Some(file) = std::env::var_os("CHAOS_SEEN") {
        // In one write, as tests run side by side.
        fs::File::options().create(true).append(true).open(file).unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// Asks again and again until the answer is yes, for as long as it may take.
pub async fn within<F: Future<Output = bool>>(time: Duration, what: &str, mut ask: impl FnMut() -> F) {
    let asked = tokio::time::timeout(time, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    asked.await.unwrap_or_else(|_| panic!("{what}: not within {time:?}"));
}

/// Looks again and again; it must be so each time.
pub async fn throughout<F: Future<Output = bool>>(time: Duration, what: &str, mut ask: impl FnMut() -> F) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert!(ask().await, "{what}: not after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

// --- nodes -----------------------------------------------------------------------------------------------------------

/// A node in this process, ready.
pub async fn node(url: &str, more: &[(&str, &str)]) -> Node {
    unready_node(url, more).await.until_ready().await
}

/// A node in this process that may have to wait for its place.
pub async fn unready_node(url: &str, more: &[(&str, &str)]) -> Node {
    Node::start_with(&settings(url, more)).await
}

/// Whether all of these are ready, and in touch with Redis.
pub async fn are_ready(nodes: &[Node]) -> bool {
    join_all(nodes.iter().map(|node| node.get("/readyz?strict=1"))).await.iter().all(|answer| answer.status == 200)
}

fn settings<'a>(url: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    // It is over as soon as all are gone. Heartbeats are as in production.
    let defaults = [
        ("MOONGATE_REDIS_URL", url),
        ("MOONGATE_NODE_TTL", NODE_TTL),
        ("MOONGATE_DRAIN", "1s"),
        ("MOONGATE_PING_INTERVAL", "25s"),
    ];
    let is_told = |name: &str| more.iter().any(|(other, _)| *other == name);
    defaults.into_iter().filter(|(name, _)| !is_told(name)).chain(more.iter().copied()).collect()
}

/// A node in a process of its own; killed when dropped.
pub struct Process {
    node: Node,
    child: Mutex<Child>,
    directory: TempDir,
}

impl Deref for Process {
    type Target = Node;
    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Process {
    /// It listens, and may have to wait for its place.
    pub async fn start(url: &str, more: &[(&str, &str)]) -> Self {
        Self::start_of(MOONGATE.as_ref(), url, more).await
    }

    async fn start_of(program: &OsStr, url: &str, more: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut child = spawn(program, &[], &settings(url, more), &directory);
        let listening = soon("the node listens", async {
            loop {
                let log = log(&directory);
                assert_eq!(child.try_wait().unwrap(), None, "{log}");
                let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                if let Some(line) = lines.find(|line| line["message"] == "listening") {
                    return line;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let address = |name: &str| listening[name].as_str().unwrap().parse::<SocketAddr>().unwrap();
        let node = Node::elsewhere(address("clients"), address("api"));
        Self { node, child: Mutex::new(child), directory }
    }

    pub async fn ready(url: &str, more: &[(&str, &str)]) -> Self {
        Self::ready_of(MOONGATE.as_ref(), url, more).await
    }

    /// One of another release, by the path of its program.
    pub async fn ready_of(program: &OsStr, url: &str, more: &[(&str, &str)]) -> Self {
        let process = Self::start_of(program, url, more).await;
        process.until_ready(Duration::from_secs(10)).await;
        process
    }

    pub async fn until_ready(&self, time: Duration) {
        within(time, "the node is ready", async || self.node.ready().await.0 == 200).await;
    }

    pub fn log(&self) -> String {
        log(&self.directory)
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.lock().id()
    }

    /// As a crash would.
    pub fn kill(&self) {
        let mut child = self.child.lock();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub async fn freeze(&self) {
        self.signal("STOP");
        let stat = format!("/proc/{}/stat", self.child.lock().id());
        eventually("the node has stopped", async || {
            fs::read_to_string(&stat).unwrap().rsplit_once(") ").unwrap().1.starts_with('T')
        })
        .await;
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.lock().id());
        assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Its exit code, once it has ended.
    pub fn code(&self) -> Option<i32> {
        self.child.lock().try_wait().unwrap().map(|status| status.code().unwrap_or(-1))
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(self) {
        self.signal("TERM");
        within(Duration::from_secs(10), "the node stops", async || self.code().is_some()).await;
        assert_eq!(self.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child.lock();
        // It may have ended by itself.
        drop(child.kill());
        drop(child.wait());
        if std::thread::panicking() {
            let log = fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("a node's last words:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}

fn spawn(program: &OsStr, arguments: &[&str], settings: &[(&str, &str)], directory: &TempDir) -> Child {
    let defaults = [
        ("MOONGATE_LISTEN", "127.0.0.1:0"),
        ("MOONGATE_API_LISTEN", "127.0.0.1:0"),
        ("MOONGATE_LAN_LISTEN", "off"),
        ("MOONGATE_REGISTER_LISTEN", "off"),
        ("MOONGATE_LOG_FORMAT", "json"),
        ("MOONGATE_DRAIN", "1s"),
    ];
    let stderr = fs::File::create(directory.path().join("stderr")).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(defaults).envs(settings.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap()
}

fn log(directory: &TempDir) -> String {
    fs::read_to_string(directory.path().join("stderr")).unwrap()
}

/// Runs the binary, which is to end by itself; returns its exit code and what it said.
pub async fn run(arguments: &[&str], url: &str, more: &[(&str, &str)], time: Duration) -> (i32, String) {
    let directory = tempfile::tempdir().unwrap();
    let child = Mutex::new(Some(spawn(MOONGATE.as_ref(), arguments, &settings(url, more), &directory)));
    let ended = tokio::time::timeout(time, async {
        loop {
            if let Some(status) = child.lock().as_mut().unwrap().try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    if let (Err(_), Some(mut child)) = (&ended, child.lock().take()) {
        drop(child.kill());
        drop(child.wait());
    }
    let said = log(&directory);
    (ended.unwrap_or_else(|_| panic!("still running after {time:?}, and said: {said}")), said)
}

// --- clients ---------------------------------------------------------------------------------------------------------

/// A client that writes down what it hears, and how it ends.
pub struct Ear {
    pub id: String,
    heard: Arc<Mutex<Vec<String>>>,
    end: Arc<Mutex<Option<u16>>>,
    task: AbortHandle,
}

impl Ear {
    pub fn of(client: Client) -> Self {
        let Client { id, mut socket } = client;
        let (heard, end) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None)));
        let (hearing, ending) = (Arc::clone(&heard), Arc::clone(&end));
        let task: JoinHandle<()> = tokio::spawn(async move {
            let mut code = 1006;
            while let Some(Ok(frame)) = socket.next().await {
                match frame {
                    Message::Text(text) => hearing.lock().push(text.as_str().to_owned()),
                    Message::Close(frame) => code = frame.map_or(1005, |frame| frame.code.into()),
                    _ => {}
                }
            }
            *ending.lock() = Some(code);
        });
        Self { id, heard, end, task: task.abort_handle() }
    }

    /// A client of a node, with a uid, groups, and the uid for its name in its session.
    pub async fn member(node: &Node, uid: &str, groups: &[&str]) -> Self {
        let client = node.connect().await;
        let id = &client.id;
        let commands = json!([
            {"op": "bindUid", "client_id": id, "uid": uid},
            {"op": "joinGroup", "client_id": id, "group": groups},
            {"op": "setSession", "client_id": id, "session": {"uname": uid}},
        ]);
        let done = node.call("batch", json!({"commands": commands})).await;
        assert_eq!(done, json!({"results": [{"result": true}, {"result": true}, {"result": true}]}), "{uid}");
        Self::of(client)
    }

    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().clone()
    }

    pub fn has_heard(&self, text: &str) -> bool {
        self.heard.lock().iter().any(|heard| heard == text)
    }

    pub fn is_open(&self) -> bool {
        self.end.lock().is_none()
    }

    /// The code of the close frame that ended it; 1006 when there was none.
    pub fn closed(&self) -> Option<u16> {
        *self.end.lock()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// So many members, `name-0` and on, in a group of all, and one of ten by their last digit.
pub async fn crowd(node: &Node, name: &str, count: usize, room: &str) -> Vec<Ear> {
    let mut crowd = Vec::new();
    for some in (0..count).collect::<Vec<_>>().chunks(25) {
        let members = some.iter().map(|number| async move {
            let (uid, group) = (format!("{name}-{number}"), format!("{name}-group-{}", number % 10));
            Ear::member(node, &uid, &[room, &group]).await
        });
        crowd.extend(join_all(members).await);
    }
    crowd
}

pub fn all_open(ears: &[Ear]) -> bool {
    ears.iter().all(Ear::is_open)
}

/// A message to each of these, sent through a node, arrives.
pub async fn all_are_reached_through(node: &Node, ears: &[Ear], text: &str) {
    for ear in ears {
        assert_eq!(node.ask("sendToClient", json!({"client_id": ear.id, "message": text})).await["nodes"], 1);
    }
    eventually("all have heard it", async || ears.iter().all(|ear| ear.has_heard(text))).await;
}

// --- what stands in Redis --------------------------------------------------------------------------------------------

/// A field of a node's hash, or of an internal one beside `mg:nodes`.
pub async fn field(redis: &Redis, hash: &str, field: &str) -> Option<String> {
    match redis.command(&["HGET", hash, field]).await {
        Reply::Text(text) => Some(String::from_utf8(text.into()).unwrap()),
        _ => None,
    }
}

/// The run of a node that has a name.
pub async fn run_of(redis: &Redis, node_id: &str) -> Option<String> {
    field(redis, "{mg:nodes}:runs", node_id).await
}

/// The names of the nodes.
pub async fn nodes(redis: &Redis) -> BTreeSet<String> {
    redis.command(&["ZRANGE", "mg:nodes", "0", "-1"]).await.names()
}

/// What stands under a node's name, or that of its run.
pub async fn traces_of(redis: &Redis, node_id: &str, run: &str) -> BTreeSet<String> {
    let mut traces = redis.keys(&format!("mg:node:{node_id}")).await;
    traces.append(&mut redis.keys(&format!("mg:clients:{run}")).await);
    if run_of(redis, node_id).await.as_deref() == Some(run) {
        traces.insert("its run".to_owned());
    }
    if nodes(redis).await.contains(node_id) {
        traces.insert("its lease".to_owned());
    }
    traces
}

/// Everything in Redis that names one of these clients.
pub async fn mentions(redis: &Redis, ids: &BTreeSet<String>) -> BTreeSet<String> {
    let mut connection = redis.connection().await;
    let mut found = BTreeSet::new();
    let clients = connection.command(&["KEYS", "mg:client:*"]).await.names();
    found.extend(clients.into_iter().filter(|key| ids.contains(key.split(':').nth(2).unwrap())));
    for (pattern, command) in [("mg:uid:*", "SMEMBERS"), ("mg:group:*", "SMEMBERS"), ("mg:clients:*", "HKEYS")] {
        let keys = connection.command(&["KEYS", pattern]).await.names();
        for key in &keys {
            connection.send(&[command, key]).await;
        }
        for key in keys {
            // A key may be gone by now.
            if !connection.reply().await.names().is_disjoint(ids) {
                found.insert(key);
            }
        }
    }
    found
}

/// All public state of clients in Redis: sets with their members, hashes with their fields but `ip` and `connected_at`.
pub async fn state(redis: &Redis) -> BTreeMap<String, BTreeSet<String>> {
    let mut connection = redis.connection().await;
    let mut keys = Vec::new();
    for pattern in ["mg:uid:*", "mg:group:*", "mg:client:*"] {
        keys.extend(connection.command(&["KEYS", pattern]).await.names());
    }
    for key in &keys {
        connection.send(&["TYPE", key]).await;
    }
    let mut typed = Vec::new();
    for key in keys {
        typed.push((key, connection.reply().await.string()));
    }
    // Some are gone by now.
    typed.retain(|(_, kind)| kind != "none");
    for (key, kind) in &typed {
        connection.send(&[if kind == "set" { "SMEMBERS" } else { "HGETALL" }, key]).await;
    }
    let mut state = BTreeMap::new();
    for (key, kind) in typed {
        let texts: Vec<String> = connection.reply().await.list().into_iter().map(Reply::string).collect();
        let value = if kind == "set" {
            texts.into_iter().collect()
        } else {
            let pairs = texts.chunks(2).filter(|pair| !["ip", "connected_at", "node"].contains(&&*pair[0]));
            pairs.map(|pair| pair.join("=")).collect()
        };
        state.insert(key, value);
    }
    state
}

/// A client as it is to stand in Redis.
pub struct Expected<'a> {
    pub id: &'a str,
    pub uid: Option<&'a str>,
    pub groups: &'a [&'a str],
    pub session: Option<Value>,
}

impl<'a> Expected<'a> {
    /// As [`Ear::member`] has made it.
    pub fn member(ear: &'a Ear, uid: &'a str, groups: &'a [&'a str]) -> Self {
        Self { id: &ear.id, uid: Some(uid), groups, session: Some(json!({"uname": uid})) }
    }
}

/// What `state` is when these are the clients.
pub fn expected(clients: &[Expected<'_>]) -> BTreeMap<String, BTreeSet<String>> {
    let mut state: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut add = |key: String, value: String| state.entry(key).or_default().extend([value]);
    for Expected { id, uid, groups, session } in clients {
        if let Some(uid) = uid {
            add(format!("mg:uid:{uid}:clients"), (*id).to_owned());
            add(format!("mg:client:{id}"), format!("uid={uid}"));
        }
        for group in *groups {
            add(format!("mg:group:{group}:clients"), (*id).to_owned());
            add(format!("mg:client:{id}:groups"), (*group).to_owned());
        }
        if let Some(session) = session {
            add(format!("mg:client:{id}"), format!("session={session}"));
        }
    }
    for Expected { id, .. } in clients {
        state.entry(format!("mg:client:{id}")).or_default();
    }
    state
}

/// Waits until Redis holds these clients and no others.
pub async fn redis_holds(redis: &Redis, time: Duration, clients: &[Expected<'_>]) {
    let expected = expected(clients);
    let last = Mutex::new(BTreeMap::new());
    let same = tokio::time::timeout(time, async {
        loop {
            let state = state(redis).await;
            let same = state == expected;
            *last.lock() = state;
            if same {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    if same.await.is_err() {
        let last = last.into_inner();
        let differs = |one: &BTreeMap<_, _>, other: &BTreeMap<_, _>| -> Vec<_> {
            let differing = one.iter().filter(|(key, value)| other.get(*key) != Some(*value));
            differing.map(|(key, value)| format!("{key}: {value:?}")).collect()
        };
        let (more, missing) = (differs(&last, &expected), differs(&expected, &last));
        panic!(
            "after {time:?} Redis holds {} such as {:?} and not {} such as {:?}",
            more.len(),
            &more[..more.len().min(20)],
            missing.len(),
            &missing[..missing.len().min(20)]
        );
    }
}

/// What a node leaves that died with so many clients: each has a uid of its own, and is one of a hundred groups.
pub async fn haunt(redis: &Redis, node_id: &str, clients: usize) -> String {
    let (run, lan) = (format!("run-of-{node_id}"), "7f0000017777");
    let mut connection = redis.connection().await;
    let mut asked = 0;
    for number in 0..clients {
        let (id, uid, group) = (format!("{lan}{number:08x}"), format!("ghost-{number}"), format!("g{}", number % 100));
        let session = format!(r#"{{"uname":"{uid}"}}"#);
        for command in [
            &["HSET", &format!("mg:clients:{run}"), &id, &json!([uid, group]).to_string()][..],
            &["HSET", &format!("mg:client:{id}"), "node", node_id, "uid", &uid, "session", &session],
            &["SADD", &format!("mg:client:{id}:groups"), &group],
            &["SADD", &format!("mg:uid:{uid}:clients"), &id],
            &["SADD", &format!("mg:group:{group}:clients"), &id],
        ] {
            connection.send(command).await;
            asked += 1;
        }
    }
    for command in [
        &["HSET", "{mg:nodes}:runs", node_id, &run][..],
        &["HSET", "{mg:nodes}:lan", lan, node_id],
        &["HSET", &format!("mg:node:{node_id}"), "lan", "127.0.0.1:30583"],
        // A lease that has ended long ago.
        &["ZADD", "mg:nodes", "1700000000000", node_id],
    ] {
        connection.send(command).await;
        asked += 1;
    }
    for _ in 0..asked {
        assert!(matches!(connection.reply().await, Reply::Int(_)));
    }
    run
}

pub async fn count(connection: &mut Connection, command: &[&str]) -> i64 {
    connection.command(command).await.int()
}

// --- the end ---------------------------------------------------------------------------------------------------------

/// All clients have left, and nothing is left in Redis but tombstones when the nodes have stopped.
pub async fn end(redis: &Redis, nodes: Vec<Node>, processes: Vec<Process>) {
    for node in nodes.iter().chain(processes.iter().map(|process| &process.node)) {
        eventually("all clients have left", async || node.metric("moongate_clients").await == 0.0).await;
    }
    for process in processes {
        process.stop().await;
    }
    for node in nodes {
        node.stop();
        assert_eq!(soon("the node stops", node.stopped()).await, 0);
    }
    let last = Mutex::new(BTreeSet::new());
    let gone = async || {
        let mut keys = redis.keys("*").await;
        keys.remove("{mg:nodes}:swept");
        keys.remove("mg:tasks");
        // A sweeper's claim ends by itself.
        let gone = keys.is_empty();
        *last.lock() = keys;
        gone
    };
    let clean = tokio::time::timeout(Duration::from_secs(4), async {
        while !gone().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let clean = clean.await.is_ok();
    assert!(clean, "left in Redis when the nodes had stopped: {:?}", last.lock());
}

/// The sum of a series over nodes.
pub async fn sum(nodes: &[&Node], metric: &str) -> f64 {
    let mut sum = 0.0;
    for node in nodes {
        sum += node.metric(metric).await;
    }
    sum
}
