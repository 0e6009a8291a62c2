//! How many events a second a node tells: on the stream, and by a webhook on the same machine; and what each costs it.
//!
//! Clients, the receiver and Redis share the machine's cores with the node, so the rate is a lower bound; the processor time
//! is the node's own.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::unchecked_time_subtraction,
    reason = "a benchmark that cannot run shall stop"
)]

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

#[path = "../tests/it/port.rs"]
mod port;
use port::reserve_a_port;

/// Clients that talk.
const CLIENTS: u64 = 50;

/// Bytes of a message.
const LENGTH: usize = 100;

/// A process that ends with this value.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Processor time so far.
    fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        // In hundredths of a second: proc(5).
        let ticks: u64 = [11, 12].iter().map(|&place: &usize| fields.get(place).unwrap().parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::main]
async fn main() {
    // `cargo bench -- --test` only looks whether it runs.
    let is_test = std::env::args().any(|argument| argument == "--test");
    let (rounds, events) = if is_test { (1, 1_000) } else { (3, 200_000) };
    println!("{:<10}{:>14}{:>22}", "told", "events/s", "node, µs per event");
    for _ in 0..rounds {
        for (told, events) in [("stream", events), ("webhook", events / 5)] {
            let (time, cpu) = round(told, events).await;
            let rate = events as f64 / time.as_secs_f64();
            println!("{told:<10}{rate:>14.0}{:>22.1}", cpu.as_secs_f64() * 1e6 / events as f64);
        }
    }
}

/// How long it takes until all are told, and the node's processor time.
async fn round(told: &str, events: u64) -> (Duration, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let mut redis = Command::new("redis-server");
    redis.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(&socket);
    let _redis = Process::start(&mut redis);
    let (heard, receiver) = receiver().await;
    let [(_clients, clients), (_api, api)] = [reserve_a_port().unwrap(), reserve_a_port().unwrap()];
    let node = Process::start(
        Command::new(env!("CARGO_BIN_EXE_moongate"))
            .env("MOONGATE_REDIS_URL", format!("redis+unix://{}", socket.display()))
            .env("MOONGATE_LISTEN", clients.to_string())
            .env("MOONGATE_API_LISTEN", api.to_string())
            .env("MOONGATE_LAN_LISTEN", "off")
            .env("MOONGATE_REGISTER_LISTEN", "off")
            .env("MOONGATE_EVENTS", format!("{told}:message"))
            .env("MOONGATE_EVENTS_MAXLEN", "10000000")
            .env("MOONGATE_WEBHOOK_URL", format!("http://{receiver}/")),
    );
    let mut talkers = Vec::new();
    while talkers.len() < CLIENTS as usize {
        match tokio_tungstenite::connect_async(format!("ws://{clients}/")).await {
            Ok((socket, _)) => talkers.push(socket),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
    let (began, before) = (Instant::now(), node.cpu());
    let talking: Vec<_> = talkers
        .into_iter()
        .map(|mut talker| {
            tokio::spawn(async move {
                for _ in 0..events / CLIENTS {
                    talker.feed(Message::text("x".repeat(LENGTH))).await.unwrap();
                }
                talker.flush().await.unwrap();
                talker
            })
        })
        .collect();
    let mut redis = connection(&socket).await;
    while (if told == "stream" { length(&mut redis).await } else { heard.load(Ordering::Relaxed) }) < events {
        sleep(Duration::from_millis(5)).await;
    }
    let spent = (began.elapsed(), node.cpu() - before);
    for talker in talking {
        drop(talker.await.unwrap());
    }
    spent
}

async fn connection(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket).await {
            Ok(connection) => return connection,
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Of the stream.
async fn length(redis: &mut UnixStream) -> u64 {
    redis.write_all(b"XLEN mg:events\r\n").await.unwrap();
    let mut reply = [0; 64];
    let read = redis.read(&mut reply).await.unwrap();
    std::str::from_utf8(&reply[1..read]).unwrap().trim().parse().unwrap()
}

/// Accepts all, and counts.
async fn receiver() -> (Arc<AtomicU64>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (heard, address) = (Arc::new(AtomicU64::new(0)), listener.local_addr().unwrap());
    let counter = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            socket.set_nodelay(true).unwrap();
            tokio::spawn(serve(socket, Arc::clone(&counter)));
        }
    });
    (heard, address)
}

async fn serve(socket: TcpStream, heard: Arc<AtomicU64>) {
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let heard = Arc::clone(&heard);
        async move {
            drop(request.into_body().collect().await);
            heard.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }
    });
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await.ok();
}
