//! What networks do to a connection to Redis: a TCP proxy that can be told to do it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::harness::{eventually, soon};
use crate::redis::{Connection, Redis, Reply};

/// Listens on loopback, connects to its target for each who connects, and ends all of it when dropped. What it does is
/// told while it runs; it begins with passing everything on.
pub struct Proxy {
    address: SocketAddr,
    rules: watch::Sender<Rules>,
    accepted: Arc<AtomicU64>,
    accepting: AbortHandle,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToTarget,
    FromTarget,
    Both,
}

impl Direction {
    fn covers(self, way: Self) -> bool {
        self == Self::Both || self == way
    }
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Pass,
    Stall,
    Slow(Duration),
    Refuse,
}

/// Connections are numbered as they come. What is done to old ones is done to all below a number, and stays done.
#[derive(Debug, Clone, Copy)]
struct Rules {
    target: SocketAddr,
    mode: Mode,
    swallowed: (u64, Direction),
    half_closed: (u64, Direction),
    cut: u64,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let none = (0, Direction::Both);
        let (rules, told) =
            watch::channel(Rules { target, mode: Mode::Pass, swallowed: none, half_closed: none, cut: 0 });
        let accepted = Arc::new(AtomicU64::new(0));
        let accepting = tokio::spawn(accept(listener, told, Arc::clone(&accepted))).abort_handle();
        Self { address, rules, accepted, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As `MOONGATE_REDIS_URL` takes it.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// How many connections have come so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Passes everything on, and what was held back first. What vanished stays vanished.
    pub fn pass(&self) {
        self.tell(|rules, _| rules.mode = Mode::Pass);
    }

    /// Holds back whatever comes, on every connection, old or new, until it is to pass.
    pub fn stall(&self) {
        self.tell(|rules, _| rules.mode = Mode::Stall);
    }

    /// Every piece of at most 64 KiB takes so long, each way, and the next one waits for it.
    pub fn slow(&self, delay: Duration) {
        self.tell(|rules, _| rules.mode = Mode::Slow(delay));
    }

    /// The connections that are there become half open: bytes and ends that go this way vanish from now on. New ones pass.
    pub fn swallow(&self, way: Direction) {
        self.tell(|rules, next| rules.swallowed = (next, way));
    }

    /// As `swallow`, of the first so many connections that ever came.
    pub fn swallow_first(&self, connections: u64, way: Direction) {
        self.tell(|rules, _| rules.swallowed = (connections, way));
    }

    /// New connections lead to another target; those that are there stay where they are.
    pub fn lead_to(&self, target: SocketAddr) {
        self.tell(|rules, _| rules.target = target);
    }

    /// On the connections that are there, whoever this way leads to sees an end; the other way goes on. New ones pass.
    pub fn half_close(&self, way: Direction) {
        self.tell(|rules, next| rules.half_closed = (next, way));
    }

    /// Resets the connections that are there. New ones pass.
    pub fn cut(&self) {
        self.tell(|rules, next| (rules.mode, rules.cut) = (Mode::Pass, next));
    }

    /// Resets the connections that are there, and new ones as soon as they come.
    pub fn refuse(&self) {
        self.tell(|rules, next| (rules.mode, rules.cut) = (Mode::Refuse, next));
    }

    fn tell(&self, change: impl FnOnce(&mut Rules, u64)) {
        self.rules.send_modify(|rules| change(rules, self.accepted()));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections belong to it, and end with it.
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, rules: watch::Receiver<Rules>, accepted: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let number = accepted.fetch_add(1, Ordering::SeqCst);
        let Rules { target, mode, .. } = *rules.borrow();
        if matches!(mode, Mode::Refuse) {
            client.set_zero_linger().unwrap();
            continue;
        }
        connections.spawn(connection(client, target, number, rules.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Ends when both ways have, in order; or with a reset of both sockets.
async fn connection(mut client: TcpStream, target: SocketAddr, number: u64, mut rules: watch::Receiver<Rules>) {
    // Whatever ends in no order, here or because the proxy is dropped, is a reset.
    client.set_zero_linger().unwrap();
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    server.set_zero_linger().unwrap();
    for socket in [&client, &server] {
        socket.set_nodelay(true).unwrap();
    }
    let ended = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let there = pass_on(from_client, to_server, Direction::ToTarget, number, rules.clone());
        let back = pass_on(from_server, to_client, Direction::FromTarget, number, rules.clone());
        tokio::select! {
            ended = async { tokio::try_join!(there, back) } => ended.is_ok(),
            _ = rules.wait_for(|rules| rules.cut > number) => false,
        }
    };
    if ended {
        for socket in [&client, &server] {
            socket2::SockRef::from(socket).set_linger(None).unwrap();
        }
    }
}

/// One way of a connection, to its end.
async fn pass_on(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Direction,
    number: u64,
    mut rules: watch::Receiver<Rules>,
) -> io::Result<()> {
    let is = |(before, ways): (u64, Direction)| number < before && ways.covers(way);
    let mut ending = rules.clone();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = ending.wait_for(|rules| is(rules.half_closed)) => Ok(0),
        };
        // What was read waits here. Of a connection that is cut nothing goes on: it is about to be reset.
        let may_go = |rules: &Rules| is(rules.swallowed) || (rules.cut <= number && !matches!(rules.mode, Mode::Stall));
        let Ok(now) = rules.wait_for(may_go).await.map(|rules| *rules) else { return Ok(()) };
        if is(now.swallowed) {
            match read {
                Ok(1..) => continue,
                // Nobody hears of the end either.
                Ok(0) | Err(_) => std::future::pending().await,
            }
        }
        if let Mode::Slow(delay) = now.mode {
            tokio::time::sleep(delay).await;
        }
        match read? {
            read @ 1.. if !is(now.half_closed) => to.write_all(&buffer[..read]).await?,
            _ => return to.shutdown().await,
        }
    }
}

// --- tests of the above ----------------------------------------------------------------------------------------------

/// A Redis, a proxy before it, and a connection through it that works.
async fn behind_a_proxy() -> (Redis, Proxy, Connection) {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let mut connection = Connection::to(proxy.address()).await;
    answers(&mut connection).await;
    (redis, proxy, connection)
}

async fn answers(connection: &mut Connection) {
    assert_eq!(connection.command(&["PING"]).await, Reply::text("PONG"));
}

/// Whether Redis holds this now.
async fn has(redis: &Redis, key: &str) -> bool {
    redis.command(&["EXISTS", key]).await == Reply::Int(1)
}

/// In the time of many round trips, another connection is not answered.
async fn hears_nothing(connection: &mut Connection, redis: &Redis) {
    let mut silent = Box::pin(connection.try_reply());
    assert!(silent.as_mut().now_or_never().is_none());
    for _ in 0..100 {
        redis.command(&["PING"]).await;
    }
    assert!(silent.now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_passes_everything_on_in_both_directions() {
    let (redis, proxy, mut connection) = behind_a_proxy().await;
    assert_eq!(proxy.url(), format!("redis://{}", proxy.address()));
    let large: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    assert_eq!(connection.command(&[b"SET", &b"k"[..], &large]).await, Reply::text("OK"));
    assert_eq!(connection.command(&["GET", "k"]).await, Reply::text(&large));
    assert_eq!(redis.command(&["GET", "k"]).await, Reply::text(&large));
    answers(&mut Connection::to(proxy.address()).await).await;
    assert_eq!(proxy.accepted(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_passed_on() {
    let (redis, _proxy, mut connection) = behind_a_proxy().await;
    // Of Redis:
    connection.command(&["QUIT"]).await;
    let ended = soon("an end", connection.try_reply()).await.unwrap_err();
    assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    // And of the client:
    drop(connection);
    eventually("Redis has no client left but the one that asks", || async {
        redis.command(&["CLIENT", "LIST"]).await.string().lines().count() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stalled_flows_when_it_may_pass() {
    let (redis, proxy, mut old) = behind_a_proxy().await;
    proxy.stall();
    let mut new = Connection::to(proxy.address()).await;
    for (connection, key) in [(&mut old, "old"), (&mut new, "new")] {
        connection.send(&["SET", key, "v"]).await;
        hears_nothing(connection, &redis).await;
        assert!(!has(&redis, key).await);
    }
    proxy.pass();
    for connection in [&mut old, &mut new] {
        assert_eq!(connection.reply().await, Reply::text("OK"));
        answers(connection).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swallowed_connection_is_half_open_and_a_new_one_passes() {
    let (redis, proxy, mut there) = behind_a_proxy().await;
    proxy.swallow(Direction::ToTarget);
    there.send(&["SET", "there", "v"]).await;
    hears_nothing(&mut there, &redis).await;
    assert!(!has(&redis, "there").await);

    let mut back = Connection::to(proxy.address()).await;
    answers(&mut back).await;
    proxy.swallow(Direction::FromTarget);
    back.send(&["SET", "back", "v"]).await;
    hears_nothing(&mut back, &redis).await;
    eventually("the command has arrived", || has(&redis, "back")).await;

    // The end vanishes, too; and it does not come back to life.
    let mut both = Connection::to(proxy.address()).await;
    answers(&mut both).await;
    proxy.swallow(Direction::Both);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    proxy.pass();
    both.send(&["SET", "both", "v"]).await;
    hears_nothing(&mut both, &redis).await;
    assert!(!has(&redis, "both").await);
    answers(&mut Connection::to(proxy.address()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_connections_the_older_can_be_half_open() {
    let (redis, proxy, mut first) = behind_a_proxy().await;
    let mut second = Connection::to(proxy.address()).await;
    answers(&mut second).await;
    proxy.swallow_first(1, Direction::FromTarget);
    first.send(&["PING"]).await;
    hears_nothing(&mut first, &redis).await;
    answers(&mut second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_leads_new_connections_to_another_target() {
    let (_redis, proxy, mut there) = behind_a_proxy().await;
    let other = Redis::start().await;
    proxy.lead_to(other.address());
    let mut new = Connection::to(proxy.address()).await;
    new.command(&["SET", "k", "v"]).await;
    assert!(has(&other, "k").await);
    assert_eq!(there.command(&["EXISTS", "k"]).await, Reply::Int(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_proxy_takes_its_time_each_way() {
    let (_redis, proxy, mut connection) = behind_a_proxy().await;
    proxy.slow(Duration::from_millis(30));
    let asked = Instant::now();
    answers(&mut connection).await;
    assert!(asked.elapsed() >= Duration::from_millis(60), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_reset_and_a_new_one_passes() {
    let (_redis, proxy, mut old) = behind_a_proxy().await;
    proxy.stall();
    old.send(&["PING"]).await;
    proxy.cut();
    let reset = soon("a reset", old.try_reply()).await.unwrap_err();
    assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
    answers(&mut Connection::to(proxy.address()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusing_proxy_ends_every_connection_old_or_new() {
    let (_redis, proxy, mut old) = behind_a_proxy().await;
    proxy.refuse();
    assert!(soon("an end", old.try_reply()).await.is_err());
    // The reset may come before the connection is seen.
    let new = async { TcpStream::connect(proxy.address()).await?.read_u8().await };
    assert_eq!(soon("an end", new).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    proxy.pass();
    answers(&mut Connection::to(proxy.address()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_half_closed_connection_the_other_way_goes_on() {
    let (redis, proxy, mut connection) = behind_a_proxy().await;
    proxy.half_close(Direction::FromTarget);
    let ended = soon("an end", connection.try_reply()).await.unwrap_err();
    assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    // There is no reply to it.
    soon("an end", connection.try_command(&["SET", "k", "v"])).await.unwrap_err();
    eventually("the command has arrived", || has(&redis, "k")).await;
    answers(&mut Connection::to(proxy.address()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_proxy_that_was_dropped() {
    let (_redis, proxy, mut connection) = behind_a_proxy().await;
    let address = proxy.address();
    drop(proxy);
    assert!(soon("an end", connection.try_reply()).await.is_err());
    eventually("nobody listens", || async { TcpStream::connect(address).await.is_err() }).await;
}
