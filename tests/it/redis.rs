//! A real `redis-server` for one test, and a client of it that knows nothing but the contract: a foreign program.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use socket2::Socket;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixStream};

use crate::harness::{eventually, soon};
use crate::port::reserve_a_port;

/// A `redis-server` on a unix socket and on a loopback port, with a directory of its own; killed, waited for and wiped
/// when dropped. It keeps its addresses whatever happens to the process.
///
/// Start it in a test's own future, or in a task: where the thread that starts it ends, it ends, too.
pub struct Redis {
    child: Mutex<Option<Child>>,
    program: OsString,
    arguments: Vec<String>,
    password: Option<String>,
    /// Of a sentinel: the file that it begins with, and then writes itself.
    file: Option<String>,
    directory: TempDir,
    address: SocketAddr,
    /// Bound to the address and not listening: the port is given to nobody else, also while no process is there.
    _port: Socket,
}

impl Redis {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments, such as `["--requirepass", "secret"]` or `["--appendonly", "yes"]`; they come last and win.
    pub async fn start_with(arguments: &[&str]) -> Self {
        Self::start_program(&program(), arguments, None).await
    }

    /// A sentinel, which is a `redis-server`, too, with these lines in its file.
    pub async fn start_sentinel(lines: &[&str]) -> Self {
        let password = lines.iter().find_map(|line| line.strip_prefix("requirepass "));
        let arguments = password.map_or_else(Vec::new, |password| vec!["--requirepass", password]);
        Self::start_program(&program(), &arguments, Some(lines.join("\n"))).await
    }

    async fn start_program(program: &OsStr, arguments: &[&str], file: Option<String>) -> Self {
        let directory = tempfile::Builder::new().prefix("redis-").tempdir().unwrap();
        let (port, address) = reserve_a_port().unwrap();
        let password = arguments.iter().skip_while(|argument| **argument != "--requirepass").nth(1);
        let redis = Self {
            child: Mutex::new(None),
            program: program.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            password: password.map(|&password| password.to_owned()),
            file,
            directory,
            address,
            _port: port,
        };
        redis.start_again().await;
        redis
    }

    /// Its unix socket, as `MOONGATE_REDIS_URL` takes it.
    pub fn url(&self) -> String {
        // With a password a URL needs a host, which means nothing here.
        let host = self.password.as_ref().map(|password| format!(":{password}@localhost")).unwrap_or_default();
        format!("redis+unix://{host}{}", self.socket().display())
    }

    /// Its port, as `MOONGATE_REDIS_URL` takes it.
    pub fn tcp_url(&self) -> String {
        let password = self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{password}{}", self.address)
    }

    /// Its port, for a proxy or a replica.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    // --- the process ---

    /// Kills it, as a crash would; what it has on its disk stays there.
    pub fn stop(&self) {
        if let Some(mut child) = self.child.lock().take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Starts it after a `stop`, with what is on its disk: what was last saved, or its append-only file.
    pub async fn start_again(&self) {
        assert!(!self.is_running(), "stop it first");
        fs::create_dir_all(self.data()).unwrap();
        let log = fs::File::create(self.log()).unwrap();
        let mut command = Command::new(&self.program);
        if let Some(lines) = &self.file {
            let file = self.directory.path().join("sentinel.conf");
            if !file.exists() {
                fs::write(&file, lines).unwrap();
            }
            command.arg(file).arg("--sentinel");
        }
        command.args(["--bind", "127.0.0.1", "--port", &self.address.port().to_string()]);
        command.arg("--unixsocket").arg(self.socket()).arg("--dir").arg(self.data());
        command.args(["--save", "", "--appendonly", "no"]).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        end_with_this_thread(&mut command);
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("no redis-server ({}: {error}): run scripts/install-test-tools", self.program.display())
        });
        *self.child.lock() = Some(child);
        eventually("redis-server answers", || async {
            assert!(self.is_running(), "redis-server has ended: {}", fs::read_to_string(self.log()).unwrap());
            // Whatever it answers, but that it has not read its data yet; a replica may say that it is alone.
            let answer = async { self.try_connection().await?.try_command(&["PING"]).await };
            answer.await.is_ok_and(|reply| !matches!(reply, Reply::Error(error) if error.starts_with("LOADING")))
        })
        .await;
    }

    /// Another process with the same data.
    pub async fn restart(&self) {
        self.save().await;
        self.stop();
        self.start_again().await;
    }

    /// Another process without any data.
    pub async fn restart_empty(&self) {
        self.stop();
        fs::remove_dir_all(self.data()).unwrap();
        self.start_again().await;
    }

    /// Writes what it holds now to its disk, for a later start.
    pub async fn save(&self) {
        assert_eq!(self.command(&["SAVE"]).await, Reply::text("OK"));
    }

    /// It does nothing more, and does not end: connections are taken by the kernel, and nobody is answered.
    pub async fn pause(&self) {
        self.signal("STOP");
        eventually("redis-server has stopped", || async { self.state() == Some('T') }).await;
    }

    /// After `pause`: it goes on where it was.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.pid().expect("redis-server runs");
        assert!(Command::new("/bin/sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap().success());
    }

    /// Whether the process is there, be it paused.
    pub fn is_running(&self) -> bool {
        self.child.lock().as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    fn pid(&self) -> Option<u32> {
        self.child.lock().as_ref().map(Child::id)
    }

    /// As the kernel says it: see proc(5).
    fn state(&self) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()?)).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    // --- what is asked now and then, each on a connection of its own ---

    /// A connection that may do everything.
    pub async fn connection(&self) -> Connection {
        soon("a connection to Redis", self.try_connection()).await.unwrap()
    }

    async fn try_connection(&self) -> io::Result<Connection> {
        let mut connection = Connection::over(UnixStream::connect(self.socket()).await?);
        if let Some(password) = &self.password {
            assert_eq!(connection.try_command(&["AUTH", password]).await?, Reply::text("OK"));
        }
        Ok(connection)
    }

    pub async fn command(&self, arguments: &[impl AsRef<[u8]>]) -> Reply {
        self.connection().await.command(arguments).await
    }

    /// How many heard it.
    pub async fn publish(&self, channel: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> i64 {
        self.connection().await.publish(channel, payload).await
    }

    /// The names of the keys that match.
    pub async fn keys(&self, pattern: &str) -> BTreeSet<String> {
        self.command(&["KEYS", pattern]).await.names()
    }

    /// The channels that somebody has subscribed to by name.
    pub async fn pubsub_channels(&self) -> BTreeSet<String> {
        self.command(&["PUBSUB", "CHANNELS"]).await.names()
    }

    /// The number of patterns that somebody has subscribed to.
    pub async fn pubsub_numpat(&self) -> i64 {
        self.command(&["PUBSUB", "NUMPAT"]).await.int()
    }

    /// How often each command has been called since the start or `CONFIG RESETSTAT`, by its name in lower case; also by
    /// scripts, and by the test itself.
    pub async fn commandstats(&self) -> BTreeMap<String, u64> {
        let info = self.command(&["INFO", "commandstats"]).await.string();
        let calls = info.lines().filter_map(|line| {
            let (name, numbers) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), numbers.split_once(',')?.0.parse().ok()?))
        });
        calls.collect()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

fn program() -> OsString {
    std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// The second net: where a test is killed and nothing is dropped, the kernel ends what it started.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "std knows no other way to say something between fork and exec")]
fn end_with_this_thread(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    // SAFETY: between fork and exec there is one system call, which takes no memory of ours.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_this_thread(_: &mut Command) {}

/// What Redis answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Int(i64),
    /// Also what Redis calls a simple string.
    Text(Bytes),
    List(Vec<Reply>),
    Nil,
    Error(String),
}

impl Reply {
    pub fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Text(Bytes::copy_from_slice(text.as_ref()))
    }

    pub fn int(self) -> i64 {
        match self {
            Self::Int(number) => number,
            other => panic!("no integer, but {other:?}"),
        }
    }

    pub fn string(self) -> String {
        match self {
            Self::Text(text) => String::from_utf8(text.into()).unwrap(),
            other => panic!("no text, but {other:?}"),
        }
    }

    pub fn list(self) -> Vec<Reply> {
        match self {
            Self::List(list) => list,
            other => panic!("no list, but {other:?}"),
        }
    }

    /// A list of texts, in no order.
    pub fn names(self) -> BTreeSet<String> {
        self.list().into_iter().map(Self::string).collect()
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// One connection to Redis, speaking RESP2, the protocol of <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
pub struct Connection {
    socket: BufReader<Box<dyn Stream>>,
    unsent: Vec<u8>,
}

impl Connection {
    /// So much of a flood is written at once.
    const PIECE: usize = 64 * 1024;

    fn over(socket: impl Stream + 'static) -> Self {
        Self { socket: BufReader::new(Box::new(socket)), unsent: Vec::new() }
    }

    /// A connection to an address, such as a proxy's; nothing said yet.
    pub async fn to(address: SocketAddr) -> Self {
        soon("a connection to Redis", Self::try_to(address)).await.unwrap()
    }

    /// As `to`, where nobody may listen.
    pub async fn try_to(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::over(TcpStream::connect(address).await?))
    }

    /// One command and its reply.
    pub async fn command(&mut self, arguments: &[impl AsRef<[u8]>]) -> Reply {
        soon("a reply of Redis", self.try_command(arguments)).await.unwrap()
    }

    /// How many heard it.
    pub async fn publish(&mut self, channel: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> i64 {
        self.command(&[&b"PUBLISH"[..], channel.as_ref(), payload.as_ref()]).await.int()
    }

    /// One command of a pipeline. It leaves with the next `reply`, or when many wait.
    pub async fn send(&mut self, arguments: &[impl AsRef<[u8]>]) {
        self.append(arguments);
        if self.unsent.len() >= Self::PIECE {
            soon("Redis takes commands", self.flush()).await.unwrap();
        }
    }

    /// The next reply, or the next message of a channel that was subscribed to.
    pub async fn reply(&mut self) -> Reply {
        soon("a reply of Redis", self.try_reply()).await.unwrap()
    }

    /// As `command`, where the connection may be broken or the wait is the test's own.
    pub async fn try_command(&mut self, arguments: &[impl AsRef<[u8]>]) -> io::Result<Reply> {
        self.append(arguments);
        self.try_reply().await
    }

    /// As `reply`, where the connection may be broken or the wait is the test's own.
    pub async fn try_reply(&mut self) -> io::Result<Reply> {
        self.flush().await?;
        self.read().await
    }

    fn append(&mut self, arguments: &[impl AsRef<[u8]>]) {
        self.unsent.extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
        for argument in arguments {
            let argument = argument.as_ref();
            self.unsent.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            self.unsent.extend_from_slice(argument);
            self.unsent.extend_from_slice(b"\r\n");
        }
    }

    /// Redis reads on while its replies wait in its memory: a flood cannot lock up.
    async fn flush(&mut self) -> io::Result<()> {
        let unsent = std::mem::take(&mut self.unsent);
        self.socket.write_all(&unsent).await
    }

    async fn read(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        self.socket.read_line(&mut line).await?;
        let Some(line) = line.strip_suffix("\r\n") else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let (kind, rest) = line.split_at(1);
        Ok(match kind {
            "+" => Reply::text(rest),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Int(rest.parse().unwrap()),
            "$" | "*" if rest == "-1" => Reply::Nil,
            "$" => {
                let mut text = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.socket.read_exact(&mut text).await?;
                text.truncate(text.len() - 2);
                Reply::Text(text.into())
            }
            "*" => {
                let mut list = Vec::new();
                for _ in 0..rest.parse().unwrap() {
                    list.push(Box::pin(self.read()).await?);
                }
                Reply::List(list)
            }
            _ => panic!("no RESP2: {line}"),
        })
    }
}

// --- tests of the above ----------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_answers_on_its_socket_and_on_its_port() {
    let redis = Redis::start().await;
    assert_eq!(redis.command(&["SET", "k", "v"]).await, Reply::text("OK"));
    assert_eq!(Connection::to(redis.address()).await.command(&["GET", "k"]).await, Reply::text("v"));
    let socket = redis.url().strip_prefix("redis+unix://").unwrap().to_owned();
    assert!(Path::new(&socket).is_absolute() && Path::new(&socket).exists(), "{socket}");
    assert_eq!(redis.tcp_url(), format!("redis://{}", redis.address()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_program_understands_every_kind_of_reply() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    let script = "return {1, 'two', false, {}, {redis.status_reply('OK'), redis.error_reply('NO thanks')}, -6}";
    let reply = connection.command(&["EVAL", script, "0"]).await;
    let nested = Reply::List(vec![Reply::text("OK"), Reply::Error("NO thanks".into())]);
    let expected = vec![Reply::Int(1), Reply::text("two"), Reply::Nil, Reply::List(vec![]), nested, Reply::Int(-6)];
    assert_eq!(reply.list(), expected);
    assert_eq!(connection.command(&["BLPOP", "none", "0.001"]).await, Reply::Nil);
    let Reply::Error(error) = connection.command(&["NOPE"]).await else { panic!("no error") };
    assert!(error.starts_with("ERR unknown command"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_arrives_byte_for_byte() {
    let redis = Redis::start().await;
    let mut listener = redis.connection().await;
    let mut publisher = redis.connection().await;
    let channel: Vec<u8> = (0..=255).collect();
    let subscribed = listener.command(&[&b"SUBSCRIBE"[..], &channel]).await;
    assert_eq!(subscribed, Reply::List(vec![Reply::text("subscribe"), Reply::text(&channel), Reply::Int(1)]));
    for payload in [&b""[..], b"\r\n$5\r\nhello\r\n", &channel, &channel.repeat(1000)] {
        assert_eq!(publisher.publish(&channel, payload).await, 1);
        let heard = vec![Reply::text("message"), Reply::text(&channel), Reply::text(payload)];
        assert_eq!(listener.reply().await.list(), heard);
    }
    assert_eq!(publisher.publish("another", "x").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_answered_command_by_command() {
    const MESSAGES: usize = 100_000;
    let redis = Redis::start().await;
    let (mut listener, mut publisher) = (redis.connection().await, redis.connection().await);
    listener.command(&["SUBSCRIBE", "flood"]).await;
    let publishing = async {
        for n in 0..MESSAGES {
            publisher.send(&["PUBLISH", "flood", &n.to_string()]).await;
        }
        for _ in 0..MESSAGES {
            assert_eq!(publisher.reply().await, Reply::Int(1));
        }
    };
    let hearing = async {
        for n in 0..MESSAGES {
            assert_eq!(listener.reply().await.list()[2], Reply::text(n.to_string()));
        }
    };
    tokio::join!(publishing, hearing);
    assert_eq!(redis.commandstats().await["publish"], MESSAGES as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_tells_its_keys_its_channels_and_what_it_was_asked() {
    let redis = Redis::start().await;
    for key in ["mg:a", "mg:b", "other"] {
        redis.command(&["SADD", key, "member"]).await;
    }
    assert_eq!(redis.keys("mg:*").await, ["mg:a".to_owned(), "mg:b".to_owned()].into());
    assert_eq!((redis.pubsub_channels().await, redis.pubsub_numpat().await), (BTreeSet::new(), 0));
    let mut listener = redis.connection().await;
    listener.command(&["SUBSCRIBE", "red"]).await;
    listener.command(&["PSUBSCRIBE", "blue*"]).await;
    assert_eq!((redis.pubsub_channels().await, redis.pubsub_numpat().await), (["red".to_owned()].into(), 1));
    assert_eq!(redis.publish("red", "x").await, 1);
    assert_eq!(redis.publish("blue sky", "x").await, 1);

    redis.command(&["EVAL", "return redis.call('SADD', 'mg:c', 'member')", "0"]).await;
    let calls = redis.commandstats().await;
    assert_eq!((calls["sadd"], calls["eval"], calls["publish"], calls.get("get")), (4, 1, 2, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_redis_is_another_process_at_the_same_addresses_with_what_it_had() {
    let redis = Redis::start().await;
    let run_id = async || {
        let info = redis.command(&["INFO", "server"]).await.string();
        info.lines().find_map(|line| line.strip_prefix("run_id:").map(str::to_owned)).unwrap()
    };
    let first = run_id().await;
    redis.command(&["SET", "k", "old"]).await;
    let mut connection = Connection::to(redis.address()).await;
    connection.command(&["PING"]).await;
    redis.restart().await;
    assert!(soon("an end", connection.try_command(&["PING"])).await.is_err());
    assert_ne!(run_id().await, first);
    assert_eq!(redis.command(&["GET", "k"]).await, Reply::text("old"));
    assert_eq!(Connection::to(redis.address()).await.command(&["GET", "k"]).await, Reply::text("old"));

    // A crash: what came after it was saved is gone.
    redis.command(&["SET", "k", "new"]).await;
    redis.stop();
    assert!(!redis.is_running());
    redis.start_again().await;
    assert_eq!(redis.command(&["GET", "k"]).await, Reply::text("old"));

    redis.restart_empty().await;
    assert_eq!(redis.keys("*").await, BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_of_a_stopped_redis_is_given_to_nobody_else() {
    let redis = Redis::start().await;
    redis.stop();
    let refused = TcpStream::connect(redis.address()).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    // All that the kernel gives away, or as many of them as make it a fair try.
    let others: Vec<_> = (0..500).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    assert!(others.iter().all(|other| other.local_addr().unwrap() != redis.address()));
    redis.start_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_redis_says_nothing_until_it_is_resumed() {
    let redis = Redis::start().await;
    let mut connection = redis.connection().await;
    redis.pause().await;
    let mut answer = Box::pin(connection.command(&["PING"]));
    // The kernel takes connections and commands in its place.
    let mut late = Connection::to(redis.address()).await;
    late.send(&["PING"]).await;
    assert_eq!(answer.as_mut().now_or_never(), None);
    assert!(redis.is_running());
    redis.resume();
    assert_eq!(answer.await, Reply::text("PONG"));
    assert_eq!(late.reply().await, Reply::text("PONG"));
    // And a paused one can be stopped.
    redis.pause().await;
    redis.restart_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_arguments_win_over_the_usual_ones() {
    let redis = Redis::start_with(&["--requirepass", "secret", "--appendonly", "yes"]).await;
    let refused = Connection::to(redis.address()).await.command(&["SET", "k", "v"]).await;
    assert_eq!(refused, Reply::Error("NOAUTH Authentication required.".into()));
    assert!(redis.url().starts_with("redis+unix://:secret@localhost/"), "{}", redis.url());
    assert_eq!(redis.tcp_url(), format!("redis://:secret@{}", redis.address()));
    // What was answered is in the append-only file: a crash loses nothing.
    redis.command(&["SET", "k", "v"]).await;
    redis.stop();
    redis.start_again().await;
    assert_eq!(redis.command(&["GET", "k"]).await, Reply::text("v"));
    redis.restart_empty().await;
    assert_eq!(redis.command(&["GET", "k"]).await, Reply::Nil);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_can_be_the_replica_of_another() {
    let primary = Redis::start().await;
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &primary.address().port().to_string()]).await;
    assert_eq!(replica.command(&["ROLE"]).await.list()[0], Reply::text("slave"));
    let Reply::Error(error) = replica.command(&["SET", "k", "v"]).await else { panic!("a replica that is written to") };
    assert!(error.starts_with("READONLY"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_redis_that_was_dropped() {
    let redis = Redis::start().await;
    let (process, directory) = (format!("/proc/{}", redis.pid().unwrap()), redis.directory.path().to_owned());
    assert!(Path::new(&process).exists() && directory.exists());
    drop(redis);
    assert!(!Path::new(&process).exists() && !directory.exists());
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_ends_with_the_thread_that_started_it() {
    let thread = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Redis::start())
    });
    let redis = thread.join().unwrap();
    eventually("redis-server has ended", || async { !redis.is_running() }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[should_panic(
    expected = "no redis-server (no-such-server: No such file or directory (os error 2)): run scripts/install-"
)]
async fn where_there_is_no_redis_server_a_line_says_how_to_install_it() {
    Redis::start_program(OsStr::new("no-such-server"), &[], None).await;
}
