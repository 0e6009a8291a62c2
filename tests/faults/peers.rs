//! Peers that mean harm, and peers that are lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::harness::{Node, eventually};
use crate::model::Dice;
use crate::peer::{Browser, inner_address};
use crate::port::reserve_a_port;
use crate::proxy::{Direction, Proxy};
use crate::redis::Redis;
use crate::world::{Ear, Process, all_open, chaos, node, saw, within};

fn bytes(dice: &mut Dice, most: usize) -> Vec<u8> {
    let length = dice.roll(most);
    (0..length).map(|_| dice.roll(256) as u8).collect()
}

/// One of these, with some bytes changed, doubled or missing.
fn like(dice: &mut Dice, seeds: &[&[u8]]) -> Vec<u8> {
    let mut bytes = seeds[dice.roll(seeds.len())].to_vec();
    for _ in 0..dice.roll(6) {
        let at = dice.roll(bytes.len() + 1);
        match dice.roll(4) {
            0 if at < bytes.len() => bytes[at] = dice.roll(256) as u8,
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.insert(at, dice.roll(256) as u8),
            _ => bytes.extend_from_within(at..),
        }
    }
    bytes
}

/// What a door is used to hear; of what it makes nothing happens to others.
const REQUESTS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x81\x85\x00\x00\x00\x00hello",
    b"POST /api/sendToUid HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 31\r\n\r\n{\"uid\":\"nobody\",\"message\":\"x\"}\n",
    b"POST /api/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 58\r\n\r\n{\"commands\":[{\"op\":\"isUidOnline\",\"uid\":\"nobody\"},{\"op\":7}]}",
    b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
];
const FRAMES: &[&[u8]] = &[
    b"\x81\x85\x00\x00\x00\x00hello",
    b"\x82\xfe\x00\x80\x00\x00\x00\x00",
    b"\x01\x81\x00\x00\x00\x00a\x00\x81\x00\x00\x00\x00b",
    b"\x89\x80\x00\x00\x00\x00",
    b"\x88\x82\x00\x00\x00\x00\x03\xe8",
    b"\x82\xff\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x00",
];
const STREAMS: &[&[u8]] = &[b"a line\n", b"\x00\x00\x00\x08text", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"];
const REGISTER: &[&[u8]] = &[
    b"{\"event\":\"worker_connect\",\"secret_key\":\"\"}\n",
    b"{\"event\":\"gateway_connect\",\"address\":\"not an address\",\"secret_key\":\"\"}\n",
    b"{\"event\":\"ping\"}\n",
];
/// Asks for a client that is not there, counts, a worker's greeting, and one with the wrong key.
const PACKETS: &[&[u8]] = &[
    b"\x00\x00\x00\x1c\x0b\x7f\x00\x00\x01\x0b\x54\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00",
    b"\x00\x00\x00\x1c\x18\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00",
    b"\x00\x00\x00\x1e\xca\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00{}",
];
const COMMANDS: &[&[u8]] = &[
    br#"{"op":"sendToUid","uid":"nobody","message":{"a":[1,2,{"b":null}]}}"#,
    br#"{"op":"bindUid","client_id":"7f0000010b54ffffffff","uid":"nobody"}"#,
    br#"{"op":"batch","commands":[{"op":"joinGroup","client_id":"7f0000010b54ffffffff","group":["a","b"]}]}"#,
    br#"{"op":"setSession","client_id":"7f0000010b54ffffffff","session":{"a":1e400}}"#,
];

/// Says things to a door, and lets go in one way or another.
async fn say(door: SocketAddr, bytes: &[u8], dice: &mut Dice) {
    let Ok(mut socket) = TcpStream::connect(door).await else { return };
    if socket.write_all(bytes).await.is_ok() && dice.roll(2) == 0 {
        let mut answer = [0; 1024];
        drop(timeout(Duration::from_millis(20), socket.read(&mut answer)).await);
    }
    if dice.roll(4) == 0 {
        // With a reset.
        drop(socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)));
    }
}

/// Resident memory of a process, MiB.
fn resident(id: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_every_door_harms_nobody() {
    let length = chaos(Duration::from_secs(12), Duration::from_mins(1));
    let redis = Redis::start().await;
    let (_reserved, register) = reserve_a_port().unwrap();
    let settings = [
        ("MOONGATE_LAN_LISTEN", ""),
        ("MOONGATE_REGISTER_LISTEN", &*register.to_string()),
        ("MOONGATE_TEXT_LISTEN", "127.0.0.1:0"),
        ("MOONGATE_FRAME_LISTEN", "127.0.0.1:0"),
        ("MOONGATE_TCP_LISTEN", "127.0.0.1:0"),
        ("MOONGATE_WORKERS", "off"),
        ("MOONGATE_EVENTS", "stream"),
        ("MOONGATE_LOG", "info"),
    ];
    let node = Arc::new(Process::ready(&redis.url(), &settings).await);
    let good = Ear::member(&node, "good", &["room"]).await;
    let lines: Vec<Value> = node.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let streams = lines.iter().filter(|line| line["message"] == "listening" && !line["protocol"].is_null());
    let streams: Vec<SocketAddr> = streams.map(|line| line["clients"].as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(streams.len(), 3);
    let inner = inner_address(&good.id);
    let over = Arc::new(AtomicBool::new(false));
    let said = Arc::new(AtomicU64::new(0));
    let mut harm = JoinSet::new();

    let doors: Vec<(SocketAddr, &'static [&'static [u8]])> = [(node.clients, REQUESTS), (node.api, REQUESTS)]
        .into_iter()
        .chain(streams.iter().map(|door| (*door, STREAMS)))
        .chain([(register, REGISTER), (inner, PACKETS)])
        .collect();
    for (number, (door, seeds)) in doors.into_iter().enumerate() {
        let (over, said) = (Arc::clone(&over), Arc::clone(&said));
        harm.spawn(async move {
            let mut dice = Dice(number as u64);
            while !over.load(Ordering::Relaxed) {
                let garbage = if dice.roll(3) == 0 { bytes(&mut dice, 3000) } else { like(&mut dice, seeds) };
                say(door, &garbage, &mut dice).await;
                said.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(2)).await;
            }
        });
    }
    // Behind a good handshake.
    harm.spawn({
        let (over, said, node) = (Arc::clone(&over), Arc::clone(&said), Arc::clone(&node));
        async move {
            let mut dice = Dice(7);
            while !over.load(Ordering::Relaxed) {
                let mut browser = Browser::connect(&node).await;
                for _ in 0..dice.roll(20) {
                    let garbage = if dice.roll(3) == 0 { bytes(&mut dice, 300) } else { like(&mut dice, FRAMES) };
                    // It may be closed by now.
                    drop(browser.socket.write_all(&garbage).await);
                }
                said.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    // In Redis: whatever is subscribed to but what the good client hears, and the stream of tasks.
    harm.spawn({
        let (over, said) = (Arc::clone(&over), Arc::clone(&said));
        let mut redis = redis.connection().await;
        async move {
            let mut dice = Dice(8);
            while !over.load(Ordering::Relaxed) {
                let channels = redis.command(&["PUBSUB", "CHANNELS"]).await.names();
                let spared = ["mg:uid:good", "mg:group:room", "mg:all"];
                let known = ["mg:uid:nobody", "mg:client:7f0000010b54ffffffff", "mg:nonsense", "mg:client:x"];
                let channels = channels.iter().map(String::as_str).filter(|name| !spared.contains(name)).chain(known);
                for channel in channels.collect::<Vec<_>>() {
                    let garbage = if dice.roll(2) == 0 { bytes(&mut dice, 2000) } else { like(&mut dice, COMMANDS) };
                    redis.publish(channel, garbage).await;
                }
                let command = String::from_utf8_lossy(&like(&mut dice, COMMANDS)).into_owned();
                let garbage = String::from_utf8_lossy(&bytes(&mut dice, 50)).into_owned();
                let names = ["command", "webhook", "at", "cron", "delay", "id", "payload", "reply_to", &garbage];
                let (name, other) = (names[dice.roll(names.len())], names[dice.roll(names.len())]);
                redis.command(&["XADD", "mg:tasks", "*", name, &command, other, &garbage]).await;
                said.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(5)).await;
            }
        }
    });

    let began = Instant::now();
    let mut foreign = redis.connection().await;
    let (mut number, mut slowest, mut middle) = (0_u64, Duration::ZERO, None);
    while began.elapsed() < length {
        let asked = Instant::now();
        node.ask("sendToUid", json!({"uid": "good", "message": format!("http {number}")})).await;
        foreign.publish("mg:group:room", format!("redis {number}")).await;
        slowest = slowest.max(asked.elapsed());
        number += 1;
        if began.elapsed() > length / 2 && middle.is_none() {
            middle = Some(resident(node.id()));
        }
        sleep(Duration::from_millis(20)).await;
    }
    over.store(true, Ordering::Relaxed);
    while let Some(ended) = harm.join_next().await {
        ended.unwrap();
    }
    for source in ["http", "redis"] {
        let all: Vec<String> = (0..number).map(|number| format!("{source} {number}")).collect();
        let of = |heard: Vec<String>| heard.into_iter().filter(|text| text.starts_with(source)).collect::<Vec<_>>();
        eventually(&format!("all by {source} have come"), async || of(good.heard()) == all).await;
    }
    assert!(good.is_open() && node.code().is_none());
    let alone = async || node.ask("getAllClientIdCount", json!({})).await == 1;
    within(Duration::from_secs(20), "nobody else is left", alone).await;
    let log = node.log();
    assert!(!log.contains("panicked"), "{log}");
    let (lines, said) = (log.lines().count(), said.load(Ordering::Relaxed));
    let (middle, end) = (middle.unwrap(), resident(node.id()));
    assert!(said > 1000, "{said}");
    assert!(end < middle + 20.0, "{middle} MiB in the middle, {end} at the end");
    let per_second = lines as f64 / length.as_secs_f64();
    assert!(per_second < 20.0, "{lines} lines of log: {}", log.lines().rev().take(40).collect::<Vec<_>>().join("\n"));
    saw(
        "garbage",
        &format!(
            "{said} pieces of garbage in {length:?}, meanwhile {number} messages each way, none missed, the slowest after \
             {slowest:.1?}; {middle:.0} MiB in the middle, {end:.0} at the end; {lines} lines of log, no panic"
        ),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_peers_are_gone_within_the_heartbeat_window() {
    let redis = Redis::start().await;
    let settings = [("MOONGATE_PING_INTERVAL", "2s"), ("MOONGATE_LEAVE_MESSAGE", crate::world::LEAVE)];
    let (near, far) = (node(&redis.url(), &settings).await, node(&redis.url(), &settings).await);
    let witness = Ear::member(&far, "witness", &["room"]).await;
    let proxy = Proxy::start(near.clients).await;
    let behind = Node::elsewhere(proxy.address(), near.api);
    let mut lost = Vec::new();
    for number in 0..50 {
        lost.push(Ear::member(&behind, &format!("lost-{number}"), &["room"]).await);
    }
    assert!(all_open(&lost));
    // No bytes and no end come any more: as when a train enters a tunnel.
    proxy.swallow(Direction::Both);
    let began = Instant::now();
    // Between limit + 0.5 and limit + 1 intervals, behind the last sign of life.
    let alone = async || far.ask("getAllClientIdCount", json!({})).await == 1;
    within(Duration::from_secs(5), "all are gone", alone).await;
    let gone = began.elapsed();
    for number in 0..50 {
        let told = format!(r#"{{"type":"close","uname":"lost-{number}"}}"#);
        eventually("their leaving is told", async || witness.has_heard(&told)).await;
    }
    assert!(near.get("/metrics").await.text().contains(r#"moongate_disconnections_total{reason="idle"} 50"#));
    saw("half-open", &format!("50 peers were gone after {gone:.1?} (interval 2 s, limit 1), their leaving was told"));
}
