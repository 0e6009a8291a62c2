//! Nodes in this process, and the clients and applications that talk to them, over real sockets on free ports.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use moongate::config::Config;
use moongate::message::Protocol;
use moongate::server::Server;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

use crate::redis::Redis;

/// What a test waits for happens within this, or the test has failed.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for something that must happen soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {PATIENCE:?}"))
}

/// How often something is tried that only fails now and then: all the times in `make test-all`, a tenth in `make test`.
pub fn rounds(all: usize) -> usize {
    if std::env::var_os("ROUNDS").is_some_and(|rounds| rounds == "all") { all } else { (all / 10).max(1) }
}

/// Asks again and again until the answer is yes.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// What a hundred thousand memberships take to be gone, in a debug build on a busy machine.
const CLEANING: Duration = Duration::from_mins(1);

/// Looks again and again until there is nothing more; not so often that the looking is what takes long.
pub async fn nothing_is_left<F: Future<Output = BTreeSet<String>>>(what: &str, mut look: impl FnMut() -> F) {
    let last = Mutex::new(BTreeSet::new());
    let empty = timeout(CLEANING, async {
        loop {
            let found = look().await;
            if found.is_empty() {
                break;
            }
            *last.lock() = found;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let last = last.into_inner();
    let some: Vec<_> = last.iter().take(20).collect();
    assert!(empty.is_ok(), "{what}: after {CLEANING:?} {} are left, such as {some:?}", last.len());
}

/// A whole node.
pub struct Node {
    pub clients: SocketAddr,
    pub api: SocketAddr,
    /// Where clients connect without WebSocket.
    pub streams: Vec<(Protocol, SocketAddr)>,
    /// Where PHP finds it; among others that is found with Redis.
    pub php: Option<SocketAddr>,
    /// Where PHP asks for gateways, if that was set.
    pub register: Option<SocketAddr>,
    token: Option<String>,
    stop: CancellationToken,
    running: Option<JoinHandle<Result<usize, moongate::server::Ended>>>,
}

impl Node {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// It takes clients and commands at once when it is alone; among others, when it is `ready`.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        let defaults = [
            ("MOONGATE_LISTEN", "127.0.0.1:0"),
            ("MOONGATE_API_LISTEN", "127.0.0.1:0"),
            ("MOONGATE_LAN_LISTEN", "off"),
            ("MOONGATE_REGISTER_LISTEN", "off"),
            ("MOONGATE_DRAIN", "0s"),
            // A busy machine may keep a test from reading for longer than a heartbeat waits.
            ("MOONGATE_PING_INTERVAL", "0s"),
        ];
        let variables =
            defaults.iter().filter(|(name, _)| settings.iter().all(|(other, _)| other != name)).chain(settings);
        let config =
            Config::read(variables.map(|(name, value)| (OsString::from(name), OsString::from(value)))).unwrap();
        let server = Server::bind(config).unwrap();
        let (clients, api, streams) = (server.clients_address(), server.api_address(), server.stream_addresses());
        let (php, register) = (server.php_address(), server.register_address());
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        let token =
            settings.iter().find(|(name, _)| *name == "MOONGATE_API_TOKEN").map(|(_, token)| (*token).to_owned());
        Self { clients, api, streams, php, register, token, stop, running: Some(running) }
    }

    /// A node that runs elsewhere, such as in a process of its own, as its clients and applications know it.
    pub fn elsewhere(clients: SocketAddr, api: SocketAddr) -> Self {
        Self {
            clients,
            api,
            streams: Vec::new(),
            php: None,
            register: None,
            token: None,
            stop: CancellationToken::new(),
            running: None,
        }
    }

    pub fn api_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    pub fn ws_url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.clients)
    }

    /// The status and the text of `/readyz`.
    pub async fn ready(&self) -> (u16, String) {
        let answer = self.get("/readyz").await;
        (answer.status, answer.text())
    }

    /// Waits until it is ready.
    pub async fn until_ready(self) -> Self {
        eventually("the node is ready", async || self.ready().await.0 == 200).await;
        self
    }

    /// A series of `/metrics`, the sum over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text();
        let known = format!("# TYPE {} ", name.strip_suffix("_total").unwrap_or(name));
        assert!(text.contains(&known), "no series {name} in {text}");
        let values = text.lines().filter_map(|line| {
            let labels = line.strip_prefix(name)?.strip_prefix([' ', '{'])?;
            labels.rsplit(' ').next()?.parse::<f64>().ok()
        });
        values.sum()
    }

    /// Begins to stop; `stopped` waits for the end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// How many connections were still there when the node had stopped.
    pub async fn stopped(mut self) -> usize {
        let running = self.running.take().unwrap();
        soon("the node stops", running).await.unwrap().unwrap()
    }

    /// A client that has been welcomed.
    pub async fn connect(&self) -> Client {
        let mut client = self.connect_quietly("/").await;
        client.welcomed().await;
        client
    }

    /// A client on a path, nothing read yet.
    pub async fn connect_quietly(&self, path: &str) -> Client {
        let (socket, _) = soon("a handshake", tokio_tungstenite::connect_async(self.ws_url(path))).await.unwrap();
        Client { id: String::new(), socket }
    }

    /// A client bound to a uid and in a group.
    pub async fn member(&self, uid: &str, group: &str) -> Client {
        let client = self.connect().await;
        self.done("bindUid", json!({"client_id": client.id, "uid": uid})).await;
        self.done("joinGroup", json!({"client_id": client.id, "group": group})).await;
        client
    }

    /// One command; the whole body of the answer, whatever its status.
    pub async fn call(&self, op: &str, fields: Value) -> Value {
        self.post(op, &fields.to_string()).await.json()
    }

    /// A query's or command's result.
    pub async fn ask(&self, op: &str, fields: Value) -> Value {
        let answer = self.call(op, fields.clone()).await;
        answer.get("result").cloned().unwrap_or_else(|| panic!("{op} {fields}: {answer}"))
    }

    /// A change that must be done.
    pub async fn done(&self, op: &str, fields: Value) {
        assert_eq!(self.ask(op, fields).await, json!(true), "{op}");
    }

    /// A command that must be refused: status and code.
    pub async fn refused(&self, op: &str, fields: Value) -> (u64, String) {
        let answer = self.call(op, fields.clone()).await;
        let status = answer["status"].as_u64().unwrap_or_else(|| panic!("{op} {fields}: {answer}"));
        (status, answer["code"].as_str().unwrap().to_owned())
    }

    pub async fn post(&self, op: &str, body: &str) -> Answer {
        self.request("POST", &format!("/api/{op}"), &[], body.as_bytes()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"").await
    }

    /// One HTTP request on a connection of its own. The token is added unless an Authorization is given.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let has = |name: &str| headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !has("Host") {
            head += &format!("Host: {}\r\n", self.api);
        }
        if let (Some(token), false) = (&self.token, has("Authorization")) {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        raw_http(self.api, [head.as_bytes(), b"\r\n", body].concat()).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Sends bytes and reads an HTTP answer to its end.
pub async fn raw_http(address: SocketAddr, request: Vec<u8>) -> Answer {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // A server that refuses a large body answers before it is written.
    let (mut reader, mut writer) = socket.split();
    let mut bytes = Vec::new();
    let write = async { drop(writer.write_all(&request).await) };
    let read = soon("an HTTP answer", async { drop(reader.read_to_end(&mut bytes).await) });
    tokio::join!(write, read);
    Answer::parse(&bytes)
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("an HTTP head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let status = head[9..12].parse().unwrap();
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// A browser or device.
pub struct Client<S = MaybeTlsStream<TcpStream>> {
    pub id: String,
    pub socket: WebSocketStream<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// The first message tells it its id.
    pub async fn welcomed(&mut self) {
        let init: Value = serde_json::from_str(&self.text().await).unwrap();
        assert_eq!(init["type"], "init");
        init["client_id"].as_str().unwrap().clone_into(&mut self.id);
    }

    /// The next frame; none at the end.
    pub async fn next(&mut self) -> Option<Message> {
        soon("a frame", self.socket.next()).await.and_then(Result::ok)
    }

    /// The next message, which must be text.
    pub async fn text(&mut self) -> String {
        match self.next().await {
            Some(Message::Text(text)) => text.as_str().to_owned(),
            other => panic!("no text, but {other:?}"),
        }
    }

    pub async fn send(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// Nothing has come so far, and a message sent now is the next thing that comes: there was nothing before it.
    pub async fn heard_nothing(&mut self, node: &impl Door) {
        let probe = json!({"client_id": self.id, "message": "(probe)"});
        node.door(&probe).call("sendToClient", probe).await;
        assert_eq!(self.text().await, "(probe)");
    }

    /// The close frame's code and reason; what comes before it is an error.
    pub async fn closed(&mut self) -> (u16, String) {
        match self.next().await {
            Some(Message::Close(Some(frame))) => {
                let close = (frame.code.into(), frame.reason.as_str().to_owned());
                while self.next().await.is_some() {}
                close
            }
            other => panic!("no close frame, but {other:?}"),
        }
    }

    /// The connection ends without a close frame.
    pub async fn cut(&mut self) {
        match soon("the end", self.socket.next()).await {
            None | Some(Err(_)) => {}
            Some(Ok(frame)) => panic!("no end, but {frame:?}"),
        }
    }

    pub async fn close(mut self, code: u16, reason: &str) {
        use tokio_tungstenite::tungstenite::protocol::CloseFrame;
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.to_owned().into() };
        self.socket.close(Some(frame)).await.unwrap();
        while self.next().await.is_some() {}
    }
}

/// An application that keeps one HTTP connection to the API.
pub struct Caller {
    socket: tokio::io::BufReader<TcpStream>,
    head: String,
}

impl Node {
    pub async fn caller(&self) -> Caller {
        let socket = tokio::io::BufReader::new(TcpStream::connect(self.api).await.unwrap());
        let token = self.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        Caller { socket, head: format!("Host: {}\r\n{token}", self.api) }
    }
}

impl Caller {
    /// One command, its answer not read yet.
    pub async fn send(&mut self, op: &str, fields: Value) {
        let body = fields.to_string();
        let request = format!("POST /api/{op} HTTP/1.1\r\n{}Content-Length: {}\r\n\r\n{body}", self.head, body.len());
        soon("a request is taken", self.socket.write_all(request.as_bytes())).await.unwrap();
    }

    /// The next answer.
    pub async fn answer(&mut self) -> Answer {
        use tokio::io::AsyncBufReadExt as _;
        soon("an answer on a kept connection", async {
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"\r\n\r\n") {
                assert!(self.socket.read_until(b'\n', &mut bytes).await.unwrap() > 0, "the connection has ended");
            }
            let mut answer = Answer::parse(&bytes);
            let length = answer.head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            answer.body = vec![0; length.parse().unwrap()];
            self.socket.read_exact(&mut answer.body).await.unwrap();
            answer
        })
        .await
    }

    /// One command; the whole body of the answer, whatever its status.
    pub async fn call(&mut self, op: &str, fields: Value) -> Value {
        self.send(op, fields).await;
        self.answer().await.json()
    }
}

/// Where commands go in.
pub trait Door {
    /// The node to give a command with these fields to.
    fn door(&self, fields: &Value) -> &Node;
}

impl Door for Node {
    fn door(&self, _: &Value) -> &Node {
        self
    }
}

/// What stands behind the doors: users can tell no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One node without Redis.
    Standalone,
    /// One node with Redis.
    OneNode,
    /// Two nodes with one Redis.
    TwoNodes,
}

/// One node or several that are one to their users: it has a [`Node`]'s methods, and gives each to one of its nodes.
/// Clients connect to them in turn. So do commands come in, but those for one client mostly at a node that does not
/// hold it. Cheap to clone.
#[derive(Clone)]
pub struct World {
    kind: Kind,
    inside: Arc<OnceLock<Inside>>,
}

struct Inside {
    /// Before their Redis.
    nodes: Vec<Node>,
    redis: Option<Redis>,
    /// Which node each client has connected to.
    homes: Mutex<HashMap<String, usize>>,
    connects: AtomicUsize,
    calls: AtomicUsize,
}

impl World {
    /// Not the default: where that stands in a name all the same, a test fails.
    const PREFIX: &str = "A-world_7";

    /// The keys that may outlive their nodes, with `mg` for the prefix, and a `*` at the end for any ending.
    const STAY: &[&str] = &["mg:tasks"];

    /// Runs a test, and looks then, when all its clients are dropped, whether anything of them is left.
    pub async fn run(kind: Kind, test: impl AsyncFnOnce(Self)) {
        let world = Self { kind, inside: Arc::default() };
        test(world.clone()).await;
        world.finish().await;
    }

    pub async fn start(self) -> Self {
        self.start_with(&[]).await
    }

    /// All nodes with these settings, and ready.
    pub async fn start_with(self, settings: &[(&str, &str)]) -> Self {
        let redis = if self.kind == Kind::Standalone { None } else { Some(Redis::start().await) };
        let url = redis.as_ref().map(Redis::url);
        let mut settings = settings.to_vec();
        if let Some(url) = &url {
            settings.extend([("MOONGATE_REDIS_URL", &**url), ("MOONGATE_PREFIX", Self::PREFIX)]);
        }
        let mut nodes = Vec::new();
        for _ in 0..if self.kind == Kind::TwoNodes { 2 } else { 1 } {
            nodes.push(Node::start_with(&settings).await.until_ready().await);
        }
        let (homes, connects, calls) = <_>::default();
        let inside = Inside { nodes, redis, homes, connects, calls };
        assert!(self.inside.set(inside).is_ok(), "a world starts once");
        self
    }

    fn inside(&self) -> &Inside {
        self.inside.get().expect("the world has been started")
    }

    /// How many nodes hold these clients: what a send to them is answered with.
    pub fn holding<'a>(&self, clients: impl IntoIterator<Item = &'a Client>) -> usize {
        let homes = self.inside().homes.lock();
        clients.into_iter().map(|client| homes[&client.id]).collect::<BTreeSet<_>>().len()
    }

    pub async fn connect(&self) -> Client {
        let (place, node) = self.home();
        let client = node.connect().await;
        self.inside().homes.lock().insert(client.id.clone(), place);
        client
    }

    pub async fn connect_quietly(&self, path: &str) -> Client {
        self.home().1.connect_quietly(path).await
    }

    /// The next client's.
    fn home(&self) -> (usize, &Node) {
        let inside = self.inside();
        let place = inside.connects.fetch_add(1, Ordering::Relaxed) % inside.nodes.len();
        (place, &inside.nodes[place])
    }

    pub async fn member(&self, uid: &str, group: &str) -> Client {
        let client = self.connect().await;
        self.done("bindUid", json!({"client_id": client.id, "uid": uid})).await;
        self.done("joinGroup", json!({"client_id": client.id, "group": group})).await;
        client
    }

    pub async fn call(&self, op: &str, fields: Value) -> Value {
        self.door(&fields).call(op, fields).await
    }

    pub async fn ask(&self, op: &str, fields: Value) -> Value {
        self.door(&fields).ask(op, fields).await
    }

    pub async fn done(&self, op: &str, fields: Value) {
        self.door(&fields).done(op, fields).await;
    }

    pub async fn refused(&self, op: &str, fields: Value) -> (u64, String) {
        self.door(&fields).refused(op, fields).await
    }

    pub async fn post(&self, op: &str, body: &str) -> Answer {
        // What is no JSON names no client.
        self.door(&serde_json::from_str(body).unwrap_or_default()).post(op, body).await
    }

    /// It stays at one node.
    pub async fn caller(&self) -> Caller {
        self.door(&Value::Null).caller().await
    }

    /// The test is over: its clients leave by themselves, then the nodes stop.
    async fn finish(self) {
        let inside = Arc::into_inner(self.inside).expect("the test is over");
        let Inside { nodes, redis, .. } = inside.into_inner().expect("the test has started its world");
        for node in &nodes {
            eventually("all clients have left", async || node.metric("moongate_clients").await == 0.0).await;
        }
        if let Some(redis) = &redis {
            nothing_is_left("traces of clients in Redis", async || {
                let mut traces = redis.pubsub_channels().await;
                traces.retain(|channel| channel.starts_with(&format!("{}:uid:", Self::PREFIX)));
                for kind in ["client", "clients", "uid", "group"] {
                    traces.append(&mut redis.keys(&format!("{}:{kind}:*", Self::PREFIX)).await);
                }
                traces
            })
            .await;
        }
        for node in nodes {
            node.stop();
            assert_eq!(node.stopped().await, 0, "connections when a node had stopped");
        }
        if let Some(redis) = &redis {
            let mut keys = redis.keys("*").await;
            keys.retain(|key| !Self::may_stay(key));
            assert!(keys.is_empty(), "left in Redis when the nodes had stopped: {keys:?}");
        }
    }

    fn may_stay(key: &str) -> bool {
        Self::STAY.iter().any(|stays| {
            let stays = stays.replacen("mg", Self::PREFIX, 1);
            stays.strip_suffix('*').map_or(key == stays, |beginning| key.starts_with(beginning))
        })
    }
}

impl Door for World {
    fn door(&self, fields: &Value) -> &Node {
        let inside = self.inside();
        let call = inside.calls.fetch_add(1, Ordering::Relaxed);
        // A batch is for whom its first command is for.
        let client = [&fields["client_id"], &fields["commands"][0]["client_id"]].into_iter().find_map(Value::as_str);
        let home = client.and_then(|id| inside.homes.lock().get(&id.to_lowercase()).copied());
        let place = match home {
            Some(home) if call % 4 == 3 => home,
            Some(home) => home + 1,
            None => call,
        };
        &inside.nodes[place % inside.nodes.len()]
    }
}

/// Makes of each body, an `async fn(World)`, a test in every [`Kind`] of world. A body that is missing in the list is dead
/// code, which is denied where this is used.
macro_rules! in_every_world {
    ($($test:ident,)*) => {
        crate::harness::in_every_world! { @ standalone Standalone $($test)* }
        crate::harness::in_every_world! { @ one_node OneNode $($test)* }
        crate::harness::in_every_world! { @ two_nodes TwoNodes $($test)* }
    };
    (@ $module:ident $kind:ident $($test:ident)*) => {
        mod $module {
            use crate::harness::{Kind, World};
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    World::run(Kind::$kind, super::$test).await;
                }
            )*
        }
    };
}
pub(crate) use in_every_world;

#[tokio::test(flavor = "multi_thread")]
async fn in_a_world_of_two_nodes_a_clients_commands_mostly_come_in_where_it_is_not() {
    World::run(Kind::TwoNodes, async |world| {
        let world = world.start().await;
        let clients = [world.connect().await, world.connect().await, world.connect().await, world.connect().await];
        assert_eq!((world.holding(&clients), world.holding(&clients[..1]), world.holding([])), (2, 1, 0));
        for (place, client) in clients.iter().enumerate() {
            let fields = json!({"commands": [{"op": "getSession", "client_id": client.id.to_uppercase()}]});
            let elsewhere = (0..100).filter(|_| world.door(&fields).api != world.inside().nodes[place % 2].api);
            assert_eq!(elsewhere.count(), 75);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = r#"left in Redis when the nodes had stopped: {"somebody's"}"#)]
async fn a_key_that_is_left_in_redis_fails_the_test() {
    World::run(Kind::OneNode, async |world| {
        let world = world.start().await;
        world.inside().redis.as_ref().unwrap().command(&["SET", "somebody's", "x"]).await;
    })
    .await;
}
