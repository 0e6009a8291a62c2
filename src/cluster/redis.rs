//! Connections to Redis. Nothing outside this file names the client library.
//!
//! A [`Connection`] is one socket, on Cluster one to each master, and never comes back: when it ends, or does not answer in
//! time, it is over, and a fresh one is made and checked from the start. The library's own reconnecting is not used: it repeats commands, and it says
//! nothing of the server behind the new connection being another one. So no command runs twice unless we repeat it.
//!
//! Replies must not be flat lists of three or four strings whose first may be foreign text: fred 10.1.0 takes one that
//! begins with `message`, `subscribe` and the like for a pub/sub frame. Numbers, single strings, maps, sets, nested
//! lists, and scripts whose first element is a number are safe. [`Command`] names every command that is used.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use fred::bytes_utils::Str;
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{
    ClientInterface as _, ClientLike as _, EventInterface as _, HashesInterface as _, KeysInterface as _,
    PubsubInterface as _, SetsInterface as _,
};
pub(super) use fred::types::Message as Published;
use fred::types::config::{Config, ConnectionConfig, PerformanceConfig, ServerConfig, TcpConfig};
use fred::types::{ClusterHash, ConnectHandle, CustomCommand, RespVersion, Value};
pub(super) use fred::util::redis_keyslot as slot;
use futures_util::future::{BoxFuture, join_all, maybe_done, select_all, try_join_all};
use futures_util::poll;
use parking_lot::RwLock;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout};

use super::sentinel::Sentinels;
use super::slots::{Redirection, Routes, Shards, slot_of};
use crate::metrics::{Metrics, RedisCommand};

/// What Redis may take for an answer; one that takes longer is given up with its connection.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// Messages that the library keeps until they are moved on. The ring is allocated as a whole, several times over.
pub(super) const RING: usize = 8192;

/// The ring of a connection that hears nothing.
pub(super) const NO_RING: usize = 16;

/// Commands that are on their way at once; each costs some kilobytes until it is answered.
const PIPELINE: usize = 500;

/// The oldest Redis that has all that is used, and the oldest for a Cluster.
const OLDEST: (u32, u32) = (6, 2);
const OLDEST_OF_CLUSTER: (u32, u32) = (7, 0);

/// Between two attempts at keys of which some have moved already.
const ON_THE_WAY: Duration = Duration::from_millis(20);

/// Why Redis did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RedisError {
    /// There is no connection, or it ended before the answer: not known to be done.
    #[error("Redis is away: {0}")]
    Away(String),
    /// Redis answered with an error.
    #[error("Redis refused {command}: {error}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Redis' words.
        error: String,
    },
}

impl RedisError {
    /// The server is a replica, be it since a moment ago.
    pub(super) fn is_of_a_replica(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error.contains("READONLY"))
    }

    /// A stream or its group is not there (any more).
    pub(super) fn is_of_no_group(&self) -> bool {
        let words = ["NOGROUP", "UNBLOCKED", "no such key"];
        matches!(self, Self::Refused { error, .. } if words.iter().any(|word| error.contains(word)))
    }

    /// The server itself is not able to take writes now; nothing is wrong with this one.
    pub(super) fn is_server_wide(&self) -> bool {
        let words = [
            "OOM",
            "READONLY",
            "MISCONF",
            "LOADING",
            "MASTERDOWN",
            "NOREPLICAS",
            "BUSY",
            "NOPERM",
            "NOAUTH",
            "TRYAGAIN",
            "CLUSTERDOWN",
        ];
        match self {
            Self::Away(_) => true,
            // Where a script was refused, older servers say so first.
            Self::Refused { error, .. } => words.iter().any(|word| error.contains(word)),
        }
    }
}

/// Why a connection could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConnectError {
    /// Nobody answers (yet).
    #[error("{0}")]
    Away(String),
    /// Somebody answers, but this is not a Redis for us: no use to try again without a change.
    #[error("{0}")]
    Unfit(String),
    /// A replica answers: no use either, but where sentinels name another one in a moment.
    #[error("this is a replica; it takes the primary")]
    Replica,
}

/// One command. Arguments are binary-safe.
#[derive(Debug, Clone)]
pub(super) struct Command {
    name: &'static str,
    args: Vec<Bytes>,
}

macro_rules! commands {
    ($($function:ident $name:literal)*) => {
        /// Every name.
        #[cfg(test)]
        pub(super) const NAMES: &[&str] = &[$($name),*];

        $(
            pub(super) fn $function(key: impl Into<Argument>) -> Self {
                Self { name: $name, args: vec![key.into().0] }
            }
        )*
    };
}

impl Command {
    commands! {
        config "CONFIG" del "UNLINK" eval "EVAL" exists "EXISTS" hdel "HDEL" hget "HGET" hgetall "HGETALL" hlen "HLEN" hscan "HSCAN"
        hset "HSET" client "CLIENT" cluster "CLUSTER" info "INFO" kind "TYPE" publish "PUBLISH" pubsub "PUBSUB" sadd "SADD" scard "SCARD" sentinel "SENTINEL" set "SET" smembers "SMEMBERS"
        spublish "SPUBLISH" srem "SREM" sscan "SSCAN" xadd "XADD" xdel "XDEL" xgroup "XGROUP" xinfo "XINFO" xlen "XLEN" xreadgroup "XREADGROUP"
        zrange "ZRANGE" zrem "ZREM"
    }

    pub(super) fn arg(mut self, arg: impl Into<Argument>) -> Self {
        self.args.push(arg.into().0);
        self
    }

    pub(super) fn args<A: Into<Argument>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.into().0));
        self
    }

    /// A script with its keys; arguments follow.
    pub(super) fn script(script: &'static str, keys: impl IntoIterator<Item = String>) -> Self {
        let keys: Vec<String> = keys.into_iter().collect();
        Self::eval(script).arg(keys.len() as u64).args(keys)
    }
}

/// One argument of a command.
pub(super) struct Argument(Bytes);

impl From<String> for Argument {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}
impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}
impl From<Bytes> for Argument {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}
impl From<u64> for Argument {
    fn from(number: u64) -> Self {
        number.to_string().into()
    }
}
impl From<crate::id::ClientId> for Argument {
    fn from(id: crate::id::ClientId) -> Self {
        id.to_string().into()
    }
}

/// What Redis answered.
#[derive(Debug, Clone)]
pub(super) struct Reply(Value);

impl Reply {
    pub(super) fn number(&self) -> u64 {
        self.0.as_u64().unwrap_or_default()
    }

    pub(super) fn text(self) -> Option<String> {
        self.0.into_string()
    }

    pub(super) fn bytes(self) -> Option<Bytes> {
        self.0.into_bytes()
    }

    /// The entries that were read from one stream: ids and fields.
    pub(super) fn entries(self) -> Vec<(String, Vec<(Bytes, Bytes)>)> {
        let Value::Map(streams) = self.0 else { return Vec::new() };
        let Some((_, entries)) = streams.inner().into_iter().next() else { return Vec::new() };
        let entries = Self(entries).list().into_iter().filter_map(|entry| {
            let mut parts = entry.list().into_iter();
            // What was deleted meanwhile has no fields.
            Some((parts.next()?.text()?, parts.next()?.fields()))
        });
        entries.collect()
    }

    /// Names and values in one list.
    pub(super) fn fields(self) -> Vec<(Bytes, Bytes)> {
        let mut parts = self.list().into_iter().map(|part| part.bytes().unwrap_or_default());
        let mut fields = Vec::new();
        while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            fields.push((name, value));
        }
        fields
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.0, Value::Array(_))
    }

    /// Any answer, made of any bytes.
    #[cfg(any(test, fuzzing))]
    pub(super) fn made_of(bytes: &[u8]) -> Self {
        fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
            let (taken, rest) = bytes.split_at(length.min(bytes.len()));
            *bytes = rest;
            taken
        }
        fn value(bytes: &mut &[u8], depth: usize) -> Value {
            let [kind, length] = *take(bytes, 2) else { return Value::Null };
            let length = usize::from(length);
            let deeper = usize::from(depth < 6) * length;
            match kind {
                b'*' => Value::Array((0..deeper.min(bytes.len())).map(|_| value(bytes, depth + 1)).collect()),
                b'%' => {
                    let pairs =
                        (0..deeper.min(bytes.len())).map(|_| (take(bytes, 2).to_vec(), value(bytes, depth + 1)));
                    let pairs: Vec<(fred::types::Key, Value)> =
                        pairs.map(|(key, value)| (key[..].into(), value)).collect();
                    pairs.try_into().map_or(Value::Null, Value::Map)
                }
                b'$' => Value::Bytes(Bytes::copy_from_slice(take(bytes, length))),
                b'+' => Value::String(String::from_utf8_lossy(take(bytes, length)).into_owned().into()),
                b':' => Value::Integer(take(bytes, 8).iter().fold(0, |sum, byte| sum << 8 | i64::from(*byte))),
                b',' => Value::Double(f64::from_bits(
                    take(bytes, 8).iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
                )),
                b'#' => Value::Boolean(length == 1),
                _ => Value::Null,
            }
        }
        let mut rest = bytes;
        Self(value(&mut rest, 0))
    }

    /// A list or set.
    pub(super) fn list(self) -> Vec<Self> {
        match self.0 {
            Value::Array(items) => items.into_iter().map(Self).collect(),
            _ => Vec::new(),
        }
    }

    /// A sorted set's members with their scores, which are whole and not negative.
    pub(super) fn scores(self) -> Vec<(String, u64)> {
        #[allow(clippy::cast_sign_loss)]
        let whole = |score: String| score.parse::<f64>().map_or(0, |score| score as u64);
        self.pairs().into_iter().map(|(member, score)| (member, whole(score))).collect()
    }

    pub(super) fn texts(self) -> impl Iterator<Item = String> {
        self.list().into_iter().filter_map(Self::text)
    }

    /// A map, or a list of keys and values.
    pub(super) fn pairs(self) -> Vec<(String, String)> {
        match self.0 {
            Value::Map(map) => {
                let pairs = map.inner().into_iter();
                pairs.filter_map(|(key, value)| Some((key.into_string()?, value.into_string()?))).collect()
            }
            Value::Array(items) if matches!(items.first(), Some(Value::Array(_))) => {
                let pairs = items.into_iter().map(|pair| Self(pair).texts());
                pairs.filter_map(|mut pair| Some((pair.next()?, pair.next()?))).collect()
            }
            Value::Array(items) => {
                let mut items = items.into_iter();
                let mut pairs = Vec::with_capacity(items.len() / 2);
                while let (Some(key), Some(value)) = (items.next(), items.next()) {
                    pairs.extend(key.into_string().zip(value.into_string()));
                }
                pairs
            }
            _ => Vec::new(),
        }
    }
}

/// Host and port over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// One server, and how to be let in.
#[derive(Clone)]
pub(super) struct Server {
    config: Config,
    /// It is one of a Cluster.
    is_shard: bool,
}

impl Server {
    /// None for a unix socket.
    pub(super) fn place(&self) -> Option<Place> {
        place(&self.config)
    }

    /// One that lets in whom this one does.
    pub(super) fn at(&self, place: &Place) -> Self {
        let mut config = self.config.clone();
        config.server = ServerConfig::new_centralized(place.host.as_str(), place.port);
        Self { config, is_shard: self.is_shard }
    }
}

fn place(config: &Config) -> Option<Place> {
    let server = config.server.hosts().into_iter().next()?;
    (!config.server.is_unix_socket()).then(|| Place { host: server.host.to_string(), port: server.port })
}

/// Where Redis is.
#[derive(Clone)]
pub(super) enum Address {
    /// There, always.
    Server(Server),
    /// Where these say.
    Sentinels(Arc<Sentinels>),
    /// In several places, each with a part.
    Cluster(Arc<Shards>),
}

impl Address {
    /// Reads `MOONGATE_REDIS_URL`, which the settings have checked.
    pub(super) fn read(url: &SecretString) -> Result<Self, ConnectError> {
        let mut config = Config::from_url(url.expose_secret()).map_err(|error| {
            // Else its words may hold a part of the URL, and so of a password.
            let is_of_tls = *error.kind() == ErrorKind::Tls;
            let words = || format!("this machine's certificates cannot be read: {}", error.details());
            ConnectError::Unfit(if is_of_tls { words() } else { "the URL cannot be read".to_owned() })
        })?;
        config.version = RespVersion::RESP3;
        config.fail_fast = true;
        // fred 10.1.0 says `HELLO 3 AUTH <user> <password>` as an inline command, and quotes nothing.
        config.username = config.username.map(quoted);
        config.password = config.password.map(quoted);
        if let ServerConfig::Clustered { hosts, .. } = &config.server {
            let seeds = hosts.iter().map(|server| {
                let server = ServerConfig::Centralized { server: server.clone() };
                Server { config: Config { server, database: None, ..config.clone() }, is_shard: true }
            });
            return Ok(Self::Cluster(Arc::new(Shards::new(seeds.collect()))));
        }
        let ServerConfig::Sentinel { mut hosts, service_name, username, password } = config.server.clone() else {
            return Ok(Self::Server(Server { config, is_shard: false }));
        };
        // The library puts the first one last.
        hosts.rotate_right(1);
        let (username, password) = (username.map(quoted), password.map(quoted));
        let sentinels = hosts.into_iter().map(|server| {
            let (username, password) = (username.clone(), password.clone());
            let server = ServerConfig::Centralized { server };
            let config = Config { server, username, password, database: None, ..config.clone() };
            Server { config, is_shard: false }
        });
        let sentinels = sentinels.collect();
        let master = Server { config, is_shard: false };
        Ok(Self::Sentinels(Arc::new(Sentinels::new(service_name, sentinels, master))))
    }

    /// Where the URL says that Redis is.
    pub(super) fn place(&self) -> Option<Place> {
        match self {
            Self::Server(server) => server.place(),
            Self::Sentinels(_) => None,
            Self::Cluster(shards) => shards.place(),
        }
    }

    /// Another server of the same Redis, as a replica is: it lets in whom all let in.
    pub(super) fn at(&self, place: &Place) -> Option<Server> {
        match self {
            Self::Server(server) => Some(server.at(place)),
            Self::Sentinels(sentinels) => Some(sentinels.server(place)),
            Self::Cluster(shards) => shards.at(place),
        }
    }

    /// Returns when Redis is no more where this connection leads, though it may still answer.
    pub(super) async fn left(&self, connection: &Connection) {
        if let Some(routes) = &connection.routes {
            return routes.old.cancelled().await;
        }
        let (Self::Sentinels(sentinels), Some(mut place)) = (self, connection.place()) else {
            return std::future::pending().await;
        };
        for attempt in 0_u32.. {
            let other = sentinels.name_another(&place, &connection.metrics).await;
            // A master that answers is not left for one that does not.
            match Connection::open_to(&other.server, &connection.metrics, NO_RING, ANSWER).await {
                // Another name of the same.
                Ok((opened, _)) if opened.mark.run_id == connection.mark.run_id => place = other.place,
                Ok(_) => return,
                Err(error) => {
                    let error = sentinels.was_wrong(&other, &error);
                    if attempt.is_multiple_of(20) {
                        tracing::warn!(%error, "a sentinel names another master, which is none");
                    }
                }
            }
        }
    }
}

/// A word of an inline command, as Redis reads it (`sdssplitargs`).
fn quoted(word: String) -> String {
    if word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\'') {
        return word;
    }
    let escaped: Vec<String> = word.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
    format!("\"{}\"", escaped.concat())
}

/// Which connection it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// The server process behind it; on Cluster all of them.
    pub(super) run_id: Arc<str>,
    /// Of each server its process, and the connection's number there.
    sockets: Arc<[(Arc<str>, u64)]>,
}

impl Mark {
    /// Whether all servers behind the other connection are behind this one, too.
    pub(super) fn covers(&self, other: &Self) -> bool {
        other.sockets.iter().all(|(run_id, _)| self.sockets.iter().any(|(own, _)| own == run_id))
    }
}

/// One connection, checked.
#[derive(Clone)]
pub(super) struct Connection {
    /// On Cluster one to each master.
    sockets: Arc<[Socket]>,
    /// On Cluster, which command goes to which.
    routes: Option<Arc<Routes>>,
    is_sharded: bool,
    pub(super) mark: Mark,
    metrics: Arc<Metrics>,
}

/// One to one server.
#[derive(Clone)]
struct Socket {
    client: Client,
    run_id: Arc<str>,
}

/// Ends when its connection has ended, or on Cluster one of its parts; dropped, it ends it.
pub(super) struct Alive(Vec<AbortOnDrop>);

struct AbortOnDrop(ConnectHandle);

impl Alive {
    /// Connects. The task of the connection is ours from the start: with the library's `init` it would live on, and connect
    /// for nobody, when its caller has stopped waiting.
    async fn begin(client: &Client) -> Result<Self, ConnectError> {
        let mut connected = pin!(client.wait_for_connect());
        // It listens from its first look on, and must before there is something to hear.
        let early = poll!(connected.as_mut());
        let mut alive = AbortOnDrop(client.connect());
        let done = timeout(ANSWER * 2, async {
            tokio::select! {
                biased;
                done = connected, if early.is_pending() => done,
                ended = &mut alive.0 => ended.unwrap_or(Ok(())).and(Err(Error::new(ErrorKind::Canceled, "it was closed"))),
            }
        });
        match done.await {
            Ok(Ok(())) => Ok(Self(vec![alive])),
            Ok(Err(error)) => Err(connect_error(&error)),
            Err(_) => Err(ConnectError::Away("no answer".to_owned())),
        }
    }

    pub(super) async fn ended(&mut self) {
        // How it ended does not matter.
        drop(select_all(self.0.iter_mut().map(|socket| &mut socket.0)).await);
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Connects, and checks that this is a primary Redis, new enough, that lets us in.
    pub(super) async fn open(
        address: &Address,
        metrics: &Arc<Metrics>,
        ring: usize,
    ) -> Result<(Self, Alive), ConnectError> {
        Self::open_with(address, metrics, ring, ANSWER).await
    }

    /// The same, for commands that Redis itself answers so much later.
    pub(super) async fn open_to_wait(
        address: &Address,
        metrics: &Arc<Metrics>,
        wait: Duration,
    ) -> Result<(Self, Alive), ConnectError> {
        Self::open_with(address, metrics, NO_RING, ANSWER + wait).await
    }

    async fn open_with(
        address: &Address,
        metrics: &Arc<Metrics>,
        ring: usize,
        answer: Duration,
    ) -> Result<(Self, Alive), ConnectError> {
        match address {
            Address::Server(server) => Self::open_to(server, metrics, ring, answer).await,
            Address::Sentinels(sentinels) => {
                let master = sentinels.master(metrics).await?;
                let opened = Self::open_to(&master.server, metrics, ring, answer).await;
                opened.map_err(|error| sentinels.was_wrong(&master, &error))
            }
            Address::Cluster(shards) => Self::open_to_all(shards, metrics, ring, answer).await,
        }
    }

    /// Connects to each master of a Cluster.
    async fn open_to_all(
        shards: &Shards,
        metrics: &Arc<Metrics>,
        ring: usize,
        answer: Duration,
    ) -> Result<(Self, Alive), ConnectError> {
        let map = shards.map(metrics).await?;
        let opening =
            map.0.iter().filter_map(|(place, _)| Some((place, shards.at(place)?))).map(|(place, server)| async move {
                Self::open_to(&server, metrics, ring, answer).await.map_err(|error| match error {
                    ConnectError::Unfit(error) => ConnectError::Unfit(format!("{place}: {error}")),
                    error => ConnectError::Away(format!("{place}, a master as the Cluster says: {error}")),
                })
            });
        let opened = try_join_all(opening).await.inspect_err(|_| shards.was_wrong())?;
        let (mut sockets, mut marks, mut alive) = (Vec::new(), Vec::new(), Alive(Vec::new()));
        for (connection, is_alive) in opened {
            marks.extend(connection.mark.sockets.iter().cloned());
            sockets.extend(connection.sockets.iter().cloned());
            alive.0.extend(is_alive.0);
        }
        // Whichever order they are told of in.
        let mut run_ids: Vec<&str> = marks.iter().map(|(run_id, _)| &**run_id).collect();
        run_ids.sort_unstable();
        let mark = Mark { run_id: run_ids.join(" ").into(), sockets: marks.into() };
        let routes = Some(Arc::new(Routes::new(&map)));
        let metrics = Arc::clone(metrics);
        Ok((Self { sockets: sockets.into(), routes, is_sharded: true, mark, metrics }, alive))
    }

    pub(super) async fn open_to(
        server: &Server,
        metrics: &Arc<Metrics>,
        ring: usize,
        answer: Duration,
    ) -> Result<(Self, Alive), ConnectError> {
        let (mut opened, alive) = Self::connect(server, metrics, ring, answer).await?;
        let info = opened.call(Command { name: "INFO", args: Vec::new() }).await;
        let info = info.map_err(|error| match &error {
            RedisError::Refused { error, .. } if !["LOADING", "BUSY"].iter().any(|word| error.starts_with(word)) => {
                ConnectError::Unfit(error.clone())
            }
            error => ConnectError::Away(error.to_string()),
        })?;
        let run_id: Arc<str> = check(&info.text().unwrap_or_default(), server.is_shard)?.into();
        let id = opened.call(Command::client("ID")).await.map_err(|error| ConnectError::Away(error.to_string()))?;
        let named = |socket: &Socket| Socket { client: socket.client.clone(), run_id: Arc::clone(&run_id) };
        opened.sockets = opened.sockets.iter().map(named).collect();
        opened.mark = Mark { sockets: [(Arc::clone(&run_id), id.number())].into(), run_id };
        Ok((opened, alive))
    }

    /// Connects to whatever is there, and checks nothing.
    pub(super) async fn connect(
        server: &Server,
        metrics: &Arc<Metrics>,
        ring: usize,
        answer: Duration,
    ) -> Result<(Self, Alive), ConnectError> {
        let performance = PerformanceConfig {
            default_command_timeout: answer,
            broadcast_channel_capacity: ring,
            ..Default::default()
        };
        let connection = ConnectionConfig {
            connection_timeout: ANSWER,
            internal_command_timeout: ANSWER,
            max_command_attempts: 1,
            max_command_buffer_len: 100_000,
            auto_client_setname: false,
            tcp: TcpConfig { nodelay: Some(true), ..Default::default() },
            ..Default::default()
        };
        let client = Client::new(server.config.clone(), Some(performance), Some(connection), None);
        let alive = Alive::begin(&client).await?;
        let mark = Mark { run_id: "".into(), sockets: [].into() };
        let sockets = [Socket { client, run_id: Arc::clone(&mark.run_id) }].into();
        let metrics = Arc::clone(metrics);
        Ok((Self { sockets, routes: None, is_sharded: server.is_shard, mark, metrics }, alive))
    }

    /// Where it leads, or its first part; none over a unix socket.
    pub(super) fn place(&self) -> Option<Place> {
        self.sockets.first().and_then(Socket::place)
    }

    /// The same connection, to each of its servers by itself.
    pub(super) fn apart(&self) -> Vec<Self> {
        let to_one = |socket: &Socket| Self { sockets: [socket.clone()].into(), routes: None, ..self.clone() };
        self.sockets.iter().map(to_one).collect()
    }

    /// How many servers it leads to.
    pub(super) fn servers(&self) -> usize {
        self.sockets.len()
    }

    fn client(&self) -> Result<&Client, RedisError> {
        // It has at least one.
        let socket = self.sockets.first().ok_or_else(|| RedisError::Away("there is no connection".to_owned()))?;
        Ok(&socket.client)
    }

    /// Whoever sweeps after a run finds its connections by their name.
    pub(super) async fn bear_the_name_of(&self, run: &str) -> Result<(), RedisError> {
        for socket in &*self.sockets {
            self.call_at(socket, Command::client("SETNAME").arg(connection_name(run))).await?;
        }
        Ok(())
    }

    /// Ends the last connection that was used in the place of this one, where Redis does not know yet that it has ended:
    /// nobody hears through it any more, and what of it was not read is not done late.
    pub(super) async fn take_over_from(&self, last: &mut Option<Mark>) -> Result<(), RedisError> {
        for (run_id, id) in last.iter().flat_map(|last| &*last.sockets) {
            if let Some(socket) = self.sockets.iter().find(|socket| socket.run_id == *run_id) {
                self.kill(socket, *id).await?;
            }
        }
        *last = Some(self.mark.clone());
        Ok(())
    }

    /// Ends all connections of a run, on each server.
    pub(super) async fn end_all_of(&self, run: &str) -> Result<(), RedisError> {
        let name = connection_name(run);
        for socket in &*self.sockets {
            let list = self.call_at(socket, Command::client("LIST")).await?.text().unwrap_or_default();
            for line in list.lines() {
                let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
                if let (Some(Ok(id)), true) = (field("id").map(str::parse), field("name") == Some(name.as_str())) {
                    self.kill(socket, id).await?;
                }
            }
        }
        Ok(())
    }

    /// Ends another connection; one that has ended already is fine.
    async fn kill(&self, socket: &Socket, id: u64) -> Result<(), RedisError> {
        match self.call_at(socket, Command::client("KILL").arg("ID").arg(id)).await {
            Err(error @ RedisError::Refused { .. }) => tracing::error!(%error, "cannot end a connection that is over"),
            done => drop(done?),
        }
        Ok(())
    }

    /// Ends the wait of another connection, which is answered as if its time were over.
    pub(super) async fn unblock(&self, connection: &Mark) -> Result<(), RedisError> {
        for (run_id, id) in &*connection.sockets {
            if let Some(socket) = self.sockets.iter().find(|socket| socket.run_id == *run_id) {
                self.call_at(socket, Command::client("UNBLOCK").arg(*id)).await?;
            }
        }
        Ok(())
    }

    /// Says something on a channel.
    pub(super) fn publication(&self, channel: String, payload: Bytes) -> Command {
        let command = if self.is_sharded { Command::spublish(channel) } else { Command::publish(channel) };
        command.arg(payload)
    }

    /// How many connections hear each of these channels by its name.
    pub(super) async fn listeners(&self, channels: Vec<String>) -> Result<Vec<u64>, RedisError> {
        let number = |pair: &[Reply]| pair.get(1).map_or(0, Reply::number);
        if !self.is_sharded {
            let replies = self.call(Command::pubsub("NUMSUB").args(channels)).await?.list();
            return Ok(replies.chunks(2).map(number).collect());
        }
        let asks = channels.into_iter().map(|channel| Command::pubsub("SHARDNUMSUB").arg(channel)).collect();
        let replies: Result<Vec<Reply>, RedisError> = self.pipeline(asks).await?.into_iter().collect();
        Ok(replies?.into_iter().map(|reply| number(&reply.list())).collect())
    }

    /// One command.
    pub(super) async fn call(&self, command: Command) -> Result<Reply, RedisError> {
        let name = command.name;
        self.counted(name, self.start(command)).await
    }

    /// One command to one of the servers.
    async fn call_at(&self, socket: &Socket, command: Command) -> Result<Reply, RedisError> {
        let name = command.name;
        self.counted(name, socket.start(command)).await
    }

    async fn counted(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<Value, Error>>,
    ) -> Result<Reply, RedisError> {
        let started = Instant::now();
        let result = work.await;
        self.metrics.redis_commands.get_or_create(&RedisCommand { command: name }).inc();
        self.metrics.redis_seconds.observe(started.elapsed().as_secs_f64());
        result.map(Reply).map_err(|error| redis_error(name, &error))
    }

    /// Commands in order, some hundreds in one go; one result for each.
    ///
    /// The library's own pipeline writes each command to the socket by itself; commands that are all handed over before
    /// the first answer is waited for leave in one write (a third of the processor time of many small changes).
    pub(super) async fn pipeline(&self, commands: Vec<Command>) -> Result<Vec<Result<Reply, RedisError>>, RedisError> {
        let mut results = Vec::with_capacity(commands.len());
        let mut commands = commands.into_iter().peekable();
        while commands.peek().is_some() {
            let started = Instant::now();
            let (names, mut calls): (Vec<_>, Vec<_>) =
                commands.by_ref().take(PIPELINE).map(|command| (command.name, maybe_done(self.start(command)))).unzip();
            poll_fn(|cx| {
                for call in &mut calls {
                    // Answers that are there already stay in it.
                    let _there: Poll<()> = Pin::new(call).poll(cx);
                }
                Poll::Ready(())
            })
            .await;
            for (call, name) in calls.iter_mut().zip(names) {
                let mut call = Pin::new(call);
                call.as_mut().await;
                let Some(result) = call.take_output() else { continue };
                self.metrics.redis_commands.get_or_create(&RedisCommand { command: name }).inc();
                match result.map_err(|error| redis_error(name, &error)) {
                    Err(away @ RedisError::Away(_)) => return Err(away),
                    result => results.push(result.map(Reply)),
                }
            }
            self.metrics.redis_seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(results)
    }

    /// Commands in steps, each of which is begun when the one before is done. A single server does what it is told in
    /// order, so there all leave in one go; the servers of a Cluster do not wait for each other.
    pub(super) async fn pipeline_in_steps(
        &self,
        steps: Vec<Vec<Command>>,
    ) -> Result<Vec<Result<Reply, RedisError>>, RedisError> {
        if !self.is_sharded {
            return self.pipeline(steps.into_iter().flatten().collect()).await;
        }
        let mut results = Vec::new();
        for step in steps {
            results.extend(self.pipeline(step).await?);
        }
        Ok(results)
    }

    /// A command on its way.
    fn start(&self, command: Command) -> BoxFuture<'_, Result<Value, Error>> {
        match (&self.routes, self.sockets.first()) {
            (None, Some(socket)) => socket.start(command),
            (Some(routes), _) if command.name == "UNLINK" && command.args.len() > 1 => {
                // Each in a slot of its own.
                let each = command.args.into_iter().map(|key| self.follow(routes, Command::del(key)));
                let each = join_all(each.collect::<Vec<_>>());
                Box::pin(async {
                    let mut deleted = 0;
                    for one in each.await {
                        deleted += one?.as_i64().unwrap_or_default();
                    }
                    Ok(Value::Integer(deleted))
                })
            }
            (Some(routes), _) => Box::pin(self.follow(routes, command)),
            (None, None) => Box::pin(async { Err(Error::new(ErrorKind::Canceled, "there is no connection")) }),
        }
    }

    /// A command on its way to whoever has its key, on Cluster.
    async fn follow(&self, routes: &Routes, command: Command) -> Result<Value, Error> {
        let slot = slot_of(command.name, &command.args);
        let (mut asked, until) = (None, Instant::now() + ANSWER);
        loop {
            let owner = slot.map_or(0, |slot| routes.socket_of(slot));
            let number = asked.unwrap_or(owner);
            let Some(socket) = self.sockets.get(number) else {
                return Err(Error::new(ErrorKind::Canceled, "there is no connection"));
            };
            let answered = match asked.take() {
                Some(_) => Box::pin(socket.start_asking(command.clone())).await,
                None => socket.start(command.clone()).await,
            };
            let Err(error) = &answered else { return answered };
            let (place, has_moved) = match Redirection::read(error.details(), socket.place().as_ref()) {
                Some(_) if Instant::now() > until => {
                    return Err(Error::new(ErrorKind::Timeout, "its slot is on the way to another master"));
                }
                Some(Redirection::TryAgain) => {
                    sleep(ON_THE_WAY).await;
                    continue;
                }
                Some(Redirection::Moved(place)) => (place, true),
                Some(Redirection::Ask(place)) => (place, false),
                None => return answered,
            };
            let Some(other) = self.sockets.iter().position(|socket| socket.place().as_ref() == Some(&place)) else {
                routes.old.cancel();
                return Err(Error::new(ErrorKind::Canceled, format!("its slot is at {place} by now")));
            };
            match slot {
                Some(slot) if has_moved => routes.has_moved(slot, other),
                _ => asked = Some(other),
            }
        }
    }

    /// What is published to this connection from now on, in the library's ring; it leads to one server.
    pub(super) fn published(&self) -> Result<broadcast::Receiver<Published>, RedisError> {
        Ok(self.client()?.message_rx())
    }

    /// Hears these channels, once the server has heard of it: see [`Connection::barrier`].
    pub(super) async fn subscribe(&self, channels: Vec<String>) -> Result<(), RedisError> {
        let client = self.client()?;
        if self.is_sharded {
            // The library takes only one at a time.
            let each = channels.into_iter().map(|channel| client.ssubscribe(channel));
            return in_time("SSUBSCRIBE", try_join_all(each.collect::<Vec<_>>())).await.map(drop);
        }
        in_time("SUBSCRIBE", Box::pin(client.subscribe(channels))).await
    }

    /// Hears these channels no more.
    pub(super) async fn unsubscribe(&self, channels: Vec<String>) -> Result<(), RedisError> {
        let client = self.client()?;
        if self.is_sharded {
            let each = channels.into_iter().map(|channel| client.sunsubscribe(channel));
            return in_time("SUNSUBSCRIBE", try_join_all(each.collect::<Vec<_>>())).await.map(drop);
        }
        in_time("UNSUBSCRIBE", Box::pin(client.unsubscribe(channels))).await
    }

    /// Hears every channel that a pattern matches; there is nothing like it for the channels of a Cluster.
    pub(super) async fn subscribe_to_pattern(&self, pattern: String) -> Result<(), RedisError> {
        in_time("PSUBSCRIBE", Box::pin(self.client()?.psubscribe(pattern))).await
    }

    /// Returns when the server has done what was sent before: to how many channels and patterns this connection is
    /// subscribed by then; on Cluster from Redis 7.0.3 on. A subscription that is refused, as by an ACL, shows nowhere else.
    pub(super) async fn barrier(&self) -> Result<Option<(usize, usize)>, RedisError> {
        let info: String = in_time("CLIENT INFO", Box::pin(self.client()?.client_info())).await?;
        let count = |name: &str| {
            let field = info.split_ascii_whitespace().find_map(|field| field.strip_prefix(name));
            field.and_then(|count| count.parse().ok())
        };
        Ok(if self.is_sharded {
            count("ssub=").map(|channels| (channels, 0))
        } else {
            count("sub=").zip(count("psub="))
        })
    }
}

impl Socket {
    fn place(&self) -> Option<Place> {
        place(&self.client.client_config())
    }

    /// A command on its way. What the library knows by name may share a write with others, what it does not is written by
    /// itself. The futures are boxed, as each is five kilobytes.
    fn start(&self, command: Command) -> BoxFuture<'_, Result<Value, Error>> {
        let Command { name, args } = command;
        let client = &self.client;
        let mut rest = args.into_iter();
        let mut key = || rest.next().unwrap_or_default();
        match name {
            "EXISTS" => Box::pin(client.exists(key())),
            "HDEL" => Box::pin(client.hdel(key(), rest.collect::<Vec<_>>())),
            "HGET" => Box::pin(client.hget(key(), key())),
            "HGETALL" => Box::pin(client.hgetall(key())),
            "HLEN" => Box::pin(client.hlen(key())),
            "HSET" => {
                let key = key();
                let rest: Vec<Bytes> = rest.collect();
                let fields =
                    rest.chunks_exact(2).filter_map(|pair| Some((pair.first()?.clone(), pair.get(1)?.clone())));
                Box::pin(client.hset(key, fields.collect::<Vec<_>>()))
            }
            "PUBLISH" => {
                // Made of a string.
                let channel = Str::from_inner(key()).unwrap_or_default();
                Box::pin(client.publish(channel, key()))
            }
            "SPUBLISH" => {
                let channel = Str::from_inner(key()).unwrap_or_default();
                Box::pin(client.spublish(channel, key()))
            }
            "SADD" => Box::pin(client.sadd(key(), rest.collect::<Vec<_>>())),
            "SCARD" => Box::pin(client.scard(key())),
            "SMEMBERS" => Box::pin(client.smembers(key())),
            "SREM" => Box::pin(client.srem(key(), rest.collect::<Vec<_>>())),
            "UNLINK" => Box::pin(client.unlink(rest.collect::<Vec<_>>())),
            _ => Box::pin(client.custom(custom(name), rest.collect::<Vec<_>>())),
        }
    }

    /// The same, of a key that this server is about to have.
    async fn start_asking(&self, command: Command) -> Result<Value, Error> {
        let together = self.client.pipeline();
        let _queued: Value = Box::pin(together.custom(custom("ASKING"), Vec::<Bytes>::new())).await?;
        let _queued: Value = Box::pin(together.custom(custom(command.name), command.args)).await?;
        together.try_all().await.pop().unwrap_or_else(|| Err(Error::new(ErrorKind::Canceled, "it was not answered")))
    }
}

async fn in_time<T>(command: &'static str, work: impl Future<Output = Result<T, Error>>) -> Result<T, RedisError> {
    match timeout(ANSWER, work).await {
        Ok(done) => done.map_err(|error| redis_error(command, &error)),
        Err(_) => Err(RedisError::Away("no answer".to_owned())),
    }
}

/// Where something was published.
pub(super) fn channel(published: &Published) -> &str {
    &published.channel
}

/// What was published.
pub(super) fn payload(published: Published) -> Option<Bytes> {
    published.value.into_bytes()
}

/// The name of a run's connections.
pub(super) fn connection_name(run: &str) -> String {
    format!("moongate:{run}")
}

fn custom(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, ClusterHash::FirstKey, false)
}

/// The library writes errors of the operating system as Rust does; their message is for people.
fn words(error: &Error) -> String {
    let details = error.details();
    if details.starts_with("Decode Error") {
        return "what answers there is no Redis".to_owned();
    }
    if let Some((_, why)) = details.split_once("error: InvalidCertificate(") {
        return format!("its certificate is not accepted: {}", why.trim_end_matches([' ', '}', ')']));
    }
    let message = ["message: \"", "error: \""].iter().find_map(|before| details.split_once(before)?.1.split_once('"'));
    message.map_or(details, |(message, _)| message).to_owned()
}

/// Errors that Redis answers begin with a code in capitals; all others are the library's, about the connection.
fn redis_error(command: &'static str, error: &Error) -> RedisError {
    let code = error.details().split([' ', ':']).next().unwrap_or_default();
    if code.len() > 1 && code.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return RedisError::Refused { command, error: error.details().to_owned() };
    }
    RedisError::Away(words(error))
}

fn connect_error(error: &Error) -> ConnectError {
    let details = words(error);
    match error.kind() {
        _ if details.starts_with("ERR max number of clients") => ConnectError::Away(details),
        ErrorKind::Auth | ErrorKind::Config | ErrorKind::Url | ErrorKind::InvalidArgument => {
            ConnectError::Unfit(details)
        }
        _ if details.starts_with("NOAUTH") => ConnectError::Unfit("Redis asks for a password".to_owned()),
        _ if ["WRONGPASS", "NOPERM"].iter().any(|word| details.starts_with(word)) => ConnectError::Unfit(details),
        // A password where none is asked for, a command that an old server does not know.
        _ if details.starts_with("ERR") => ConnectError::Unfit(details),
        _ => ConnectError::Away(details),
    }
}

/// Reads `INFO` of a single Redis, or of a server of a Cluster: returns the `run_id`.
fn check(info: &str, is_shard: bool) -> Result<String, ConnectError> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    // The second name is Valkey's.
    if field("redis_mode").or(field("server_mode")) == Some("sentinel") {
        return Err(ConnectError::Unfit(
            "this is a sentinel; a URL of sentinels begins with redis-sentinel://".to_owned(),
        ));
    }
    let version = field("redis_version").unwrap_or("unknown");
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let (major, minor) = if is_shard { OLDEST_OF_CLUSTER } else { OLDEST };
    if (parts.next().unwrap_or_default(), parts.next().unwrap_or_default()) < (major, minor) {
        return Err(ConnectError::Unfit(format!("this is Redis {version}; it takes Redis {major}.{minor} or newer")));
    }
    match (field("cluster_enabled") == Some("1"), is_shard) {
        (true, false) => {
            let words = "this is a Redis Cluster; its URL begins with redis-cluster://";
            return Err(ConnectError::Unfit(words.to_owned()));
        }
        (false, true) => {
            let words = "this is no Redis Cluster; its URL begins with redis://";
            return Err(ConnectError::Unfit(words.to_owned()));
        }
        _ => {}
    }
    if field("role").is_some_and(|role| role != "master") {
        return Err(ConnectError::Replica);
    }
    if field("loading") == Some("1") {
        return Err(ConnectError::Away("Redis is loading its data".to_owned()));
    }
    Ok(field("run_id").unwrap_or_default().to_owned())
}

/// The connection for commands, while there is one. `members` makes it, and takes it away as soon as it has ended.
#[derive(Default)]
pub(super) struct Link {
    current: RwLock<Option<Connection>>,
}

impl Link {
    pub(super) fn set(&self, connection: Option<Connection>) {
        *self.current.write() = connection;
    }

    pub(super) fn get(&self) -> Result<Connection, RedisError> {
        self.current.read().clone().ok_or_else(|| RedisError::Away("there is no connection".to_owned()))
    }

    pub(super) fn is_up(&self) -> bool {
        self.current.read().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_redis_answers_is_a_refusal() {
        for (details, refused) in [
            ("WRONGTYPE Operation against a key holding the wrong kind of value", true),
            ("OOM command not allowed when used memory > 'maxmemory'.", true),
            ("ERR unknown command", true),
            ("channel closed", false),
            ("Client is not initialized.", false),
            ("Request timed out.", false),
            ("", false),
        ] {
            let error = redis_error("SADD", &Error::new(ErrorKind::Unknown, details));
            assert_eq!(matches!(error, RedisError::Refused { .. }), refused, "{details}");
        }
    }

    #[test]
    fn only_a_primary_that_is_new_enough_will_do() {
        let info = |version: &str, role: &str, rest: &str| {
            check(&format!("# Server\r\nredis_version:{version}\r\nrun_id:abc\r\nrole:{role}\r\n{rest}"), false)
        };
        assert_eq!(info("7.0.15", "master", "cluster_enabled:0\r\n"), Ok("abc".to_owned()));
        assert_eq!(info("6.2.0", "master", ""), Ok("abc".to_owned()));
        for (version, role, rest) in [
            ("6.0.16", "master", ""),
            ("5.0.7", "master", ""),
            ("7.0.15", "master", "cluster_enabled:1\r\n"),
            ("7.0.15", "master", "redis_mode:sentinel\r\n"),
            ("7.2.4", "master", "server_mode:sentinel\r\n"),
        ] {
            assert!(matches!(info(version, role, rest), Err(ConnectError::Unfit(_))), "{version} {role} {rest}");
        }
        assert_eq!(info("7.0.15", "slave", ""), Err(ConnectError::Replica));
        assert!(matches!(info("7.0.15", "master", "loading:1\r\n"), Err(ConnectError::Away(_))));
        assert!(matches!(check("", false), Err(ConnectError::Unfit(_))));
        let of_a_cluster = |version: &str, enabled: u8| {
            check(&format!("redis_version:{version}\r\nrun_id:abc\r\ncluster_enabled:{enabled}\r\n"), true)
        };
        assert_eq!(of_a_cluster("7.0.0", 1), Ok("abc".to_owned()));
        assert!(matches!(of_a_cluster("7.0.0", 0), Err(ConnectError::Unfit(_))));
        assert!(matches!(of_a_cluster("6.2.0", 1), Err(ConnectError::Unfit(_))));
    }
}
