//! What a browser or device meets: handshake, heartbeat, frames, close codes, limits.

use std::time::{Duration, Instant};

use futures_util::SinkExt as _;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, Node, eventually, raw_http, soon};

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";

/// A WebSocket by hand: the socket behind the handshake, and what was already read behind it.
pub(crate) async fn raw_websocket(node: &Node, behind: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(node.clients).await.unwrap();
    let request = format!("GET /any/path?x=1 HTTP/1.1\r\nHost: x\r\n{UPGRADE}{KEY}\r\n");
    socket.write_all(&[request.as_bytes(), behind].concat()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the handshake's answer", socket.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    socket
}

/// One server frame: first byte and payload.
pub(crate) async fn frame(socket: &mut (impl AsyncRead + Unpin)) -> (u8, Vec<u8>) {
    soon("a frame", async {
        let first = socket.read_u8().await.unwrap();
        let length = match socket.read_u8().await.unwrap() {
            126 => usize::from(socket.read_u16().await.unwrap()),
            127 => usize::try_from(socket.read_u64().await.unwrap()).unwrap(),
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        socket.read_exact(&mut payload).await.unwrap();
        (first, payload)
    })
    .await
}

/// A masked client frame, its length as short as it can be said.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | short as u8),
        middle @ 126..0x1_0000 => {
            frame.push(0xfe);
            frame.extend((middle as u16).to_be_bytes());
        }
        long => {
            frame.push(0xff);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    let mask = [1, 2, 3, 4];
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// What the server says to bytes that break the protocol: the close code, or none when it just ended the connection.
async fn close_code_for(node: &Node, bytes: &[u8]) -> Option<u16> {
    let mut socket = raw_websocket(node, b"").await;
    frame(&mut socket).await;
    socket.write_all(bytes).await.unwrap();
    let (first, payload) = frame(&mut socket).await;
    assert_eq!(first, 0x88, "{payload:?}");
    let mut rest = Vec::new();
    soon("the end", socket.read_to_end(&mut rest)).await.unwrap();
    payload.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_welcomed_on_any_path_with_its_id() {
    let node = Node::start().await;
    for path in ["/", "/ws", "/a/b?token=x", "/%ff"] {
        let mut client = node.connect_quietly(path).await;
        let init: serde_json::Value = serde_json::from_str(&client.text().await).unwrap();
        let id = init["client_id"].as_str().unwrap();
        assert_eq!((id.len(), &id[..12]), (20, "7f0000010b54"), "{id}");
        assert_eq!(node.ask("isOnline", json!({"client_id": id})).await, json!(true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_websocket_handshake_is_told_why() {
    let node = Node::start().await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 426),
        (format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{UPGRADE}{KEY}\r\n"), 405),
        (format!("GET / HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nHost: x\r\n{}{KEY}\r\n", UPGRADE.replace("13", "8")), 426),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(20_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(20_000)), 431),
        ("nonsense\r\n\r\n".to_owned(), 400),
    ] {
        let answer = raw_http(node.clients, request.clone().into_bytes()).await;
        let words: String = request.chars().take(60).collect();
        assert!(answer.status == status || (status == 431 && answer.status == 414), "{words}: {}", answer.status);
    }
    node.connect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_shake_hands_in_time_is_cut() {
    let node = Node::start_with(&[("MOONGATE_HANDSHAKE_TIMEOUT", "200ms")]).await;
    for start in ["", "GET / HTTP/1.1\r\nHo"] {
        let mut socket = TcpStream::connect(node.clients).await.unwrap();
        socket.write_all(start.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        soon("the cut", socket.read_to_end(&mut rest)).await.ok();
    }
    node.connect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_sent_right_behind_the_handshake_are_not_lost() {
    let node = Node::start_with(&[("MOONGATE_INIT_MESSAGE", "")]).await;
    let mut socket = raw_websocket(&node, &[masked(0x81, b"hello"), masked(0x89, b"early")].concat()).await;
    assert_eq!(frame(&mut socket).await, (0x8a, b"early".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn text_and_binary_stay_apart() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    node.ask("sendToClient", json!({"client_id": client.id, "message": "你好"})).await;
    node.ask("sendToClient", json!({"client_id": client.id, "binary": "//8A"})).await;
    assert_eq!(client.next().await, Some(Message::text("你好")));
    assert_eq!(client.next().await, Some(Message::binary(vec![0xff, 0xff, 0x00])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_is_answered_between_messages_and_between_fragments() {
    let node = Node::start().await;
    let mut socket = raw_websocket(&node, b"").await;
    frame(&mut socket).await;
    let fragments =
        [masked(0x01, b"first "), masked(0x89, b"p1"), masked(0x00, b"more"), masked(0x80, b"."), masked(0x89, b"p2")];
    socket.write_all(&fragments.concat()).await.unwrap();
    // Of pongs that are due at once only the last one must come (RFC 6455, 5.5.3).
    let (first, payload) = frame(&mut socket).await;
    assert_eq!(first, 0x8a);
    if payload == b"p1" {
        assert_eq!(frame(&mut socket).await, (0x8a, b"p2".to_vec()));
    } else {
        assert_eq!(payload, b"p2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_breaks_the_protocol_is_told_with_a_close_code() {
    let node = Node::start_with(&[("MOONGATE_MAX_MESSAGE_SIZE", "200B")]).await;
    let too_big = [0x81, 0xfe, 0x01, 0x80, 1, 2, 3, 4];
    let fragments = [masked(0x01, &[b'x'; 120]), masked(0x80, &[b'x'; 120])].concat();
    for (what, bytes, code) in [
        ("reserved bit", masked(0xc1, b"x"), 1002),
        ("unmasked", vec![0x81, 0x01, b'x'], 1002),
        ("bad opcode", masked(0x83, b"x"), 1002),
        ("fragmented ping", masked(0x09, b"x"), 1002),
        ("continuation of nothing", masked(0x80, b"x"), 1002),
        ("long ping", [vec![0x89, 0xfe, 0x00, 0x80, 1, 2, 3, 4], vec![0; 128]].concat(), 1002),
        ("not UTF-8", masked(0x81, &[0xff, 0xfe]), 1007),
        ("too big", too_big.to_vec(), 1009),
        ("too big in fragments", fragments, 1009),
        ("a length of 2^63", vec![0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4], 1009),
    ] {
        assert_eq!(close_code_for(&node, &bytes).await, Some(code), "{what}");
    }
    eventually("all have left", async || node.ask("getAllClientIdCount", json!({})).await == json!(0)).await;
    node.connect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_close_is_answered_and_it_leaves_everything() {
    let node = Node::start().await;
    let client = node.member("u", "g").await;
    client.close(3001, "bye").await;
    eventually("the client has left", async || node.ask("isUidOnline", json!({"uid": "u"})).await == json!(false))
        .await;
    assert_eq!(node.ask("getAllGroupIdList", json!({})).await, json!([]));
    assert_eq!(node.ask("getAllClientIdCount", json!({})).await, json!(0));

    // The answer repeats the code, as RFC 6455 (5.5.1) has it, and then the server ends the connection.
    assert_eq!(close_code_for(&node, &masked(0x88, &[0x0b, 0xb9])).await, Some(3001));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_just_ends_leaves_everything_too() {
    let node = Node::start().await;
    let fin = node.member("fin", "g").await;
    let reset = node.member("reset", "g").await;
    drop(fin);
    let tokio_tungstenite::MaybeTlsStream::Plain(socket) = reset.socket.get_ref() else { panic!() };
    socket.set_zero_linger().unwrap();
    drop(reset);
    eventually("both have left", async || node.ask("getAllGroupIdList", json!({})).await == json!([])).await;
    assert_eq!(node.ask("isUidsOnline", json!({"uid": ["fin", "reset"]})).await, json!({"fin": false, "reset": false}));
}

/// Ticks every 100 ms: a silent client is cut after 300 to 400 ms.
const QUICK_HEARTBEAT: (&str, &str) = ("MOONGATE_PING_INTERVAL", "200ms");

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_client_is_pinged_and_then_closed_as_idle() {
    let node = Node::start_with(&[QUICK_HEARTBEAT]).await;
    let mut socket = raw_websocket(&node, b"").await;
    frame(&mut socket).await;
    assert_eq!(frame(&mut socket).await, (0x89, vec![]));
    let (first, payload) = frame(&mut socket).await;
    assert_eq!((first, &payload[..]), (0x88, &[&4002_u16.to_be_bytes()[..], b"idle"].concat()[..]));
    assert_eq!(node.ask("getAllClientIdCount", json!({})).await, json!(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn pongs_keep_a_client_alive_when_pings_are_websocket_pings() {
    let node = Node::start_with(&[QUICK_HEARTBEAT]).await;
    let mut client = node.connect().await;
    // tungstenite answers each ping by itself as long as it is polled.
    for _ in 0..5 {
        assert!(matches!(client.next().await, Some(Message::Ping(_))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_ping_data_only_messages_keep_a_client_alive() {
    let node = Node::start_with(&[QUICK_HEARTBEAT, ("MOONGATE_PING_DATA", "{\"type\":\"ping\"}")]).await;
    let mut talker = node.connect().await;
    for _ in 0..5 {
        assert_eq!(talker.text().await, "{\"type\":\"ping\"}");
        talker.send(Message::text("{\"type\":\"pong\"}")).await;
    }
    let mut ponger = node.connect().await;
    assert_eq!(ponger.text().await, "{\"type\":\"ping\"}");
    ponger.send(Message::Pong(vec![].into())).await;
    assert_eq!(ponger.closed().await, (4002, "idle".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_an_unfinished_message_are_no_sign_of_life() {
    let node = Node::start_with(&[QUICK_HEARTBEAT]).await;
    let mut socket = raw_websocket(&node, b"").await;
    frame(&mut socket).await;
    let (mut reader, mut writer) = socket.split();
    let dribble = async {
        writer.write_all(&[0x81, 0xfe, 0x04, 0x00, 1, 2, 3, 4]).await.unwrap();
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let cut = async {
        let mut all = Vec::new();
        drop(soon("the cut", reader.read_to_end(&mut all)).await);
        assert!(all.windows(4).any(|window| window == b"idle"), "{all:?}");
    };
    tokio::join!(dribble, cut);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_heartbeat_a_silent_client_stays() {
    let node = Node::start_with(&[("MOONGATE_PING_INTERVAL", "0s")]).await;
    let mut client = node.connect().await;
    let pinged = Node::start_with(&[QUICK_HEARTBEAT]).await;
    let mut other = raw_websocket(&pinged, b"").await;
    // Long enough for the other node to cut its own.
    while frame(&mut other).await.0 != 0x88 {}
    client.heard_nothing(&node).await;
}

/// A client that reads nothing while it is sent more than the kernel takes, and how many messages were taken for it.
async fn stuff(node: &Node, uid: &str, messages: usize) -> (Client, u64) {
    let client = node.member(uid, "stuffed").await;
    let message = "x".repeat(500_000);
    let mut taken = 0;
    for _ in 0..messages {
        let sent = node.ask("sendToUid", json!({"uid": uid, "message": message, "confirm": true})).await;
        taken += sent["clients"].as_u64().unwrap();
    }
    (client, taken)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_consumer_is_closed_with_1013_and_harms_nobody() {
    let node = Node::start_with(&[("MOONGATE_SEND_BUFFER", "1MiB")]).await;
    let mut quick = node.member("quick", "g").await;
    let (mut slow, _) = stuff(&node, "slow", 40).await;
    assert_eq!(node.ask("isUidOnline", json!({"uid": "slow"})).await, json!(false));
    node.ask("sendToUid", json!({"uid": "quick", "message": "still here"})).await;
    assert_eq!(quick.text().await, "still here");
    // It gets whole messages in order, then the close frame.
    loop {
        match slow.next().await {
            Some(Message::Text(text)) => assert_eq!(text.len(), 500_000),
            Some(Message::Close(Some(frame))) => {
                assert_eq!(u16::from(frame.code), 1013);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_consumer_that_never_reads_is_cut_after_five_seconds() {
    let node = Node::start_with(&[("MOONGATE_SEND_BUFFER", "64KiB")]).await;
    let start = Instant::now();
    let (slow, _) = stuff(&node, "slow", 40).await;
    let tokio_tungstenite::MaybeTlsStream::Plain(socket) = slow.socket.get_ref() else { panic!() };
    // The server's reset is seen by a socket that does not read.
    soon("the reset", async {
        loop {
            if let Some(error) = socket.take_error().unwrap() {
                break assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(start.elapsed() >= Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_drop_policy_a_slow_consumer_stays_and_hears_again_later() {
    let node = Node::start_with(&[("MOONGATE_SEND_BUFFER", "1MiB"), ("MOONGATE_SLOW_CONSUMER", "drop")]).await;
    let (mut slow, taken) = stuff(&node, "slow", 40).await;
    let page = node.get("/metrics").await.text();
    let dropped = page.lines().find_map(|line| line.strip_prefix("moongate_deliveries_dropped_total ")).unwrap();
    assert_eq!(dropped.parse::<u64>().unwrap(), 40 - taken);
    assert!(taken < 40);
    // Whatever was taken arrives whole; then there is room again.
    let mut whole = 0;
    soon("room", async {
        loop {
            let sent = node.ask("sendToUid", json!({"uid": "slow", "message": "again", "confirm": true})).await;
            if sent["clients"] == json!(1) {
                break;
            }
            assert_eq!(slow.text().await.len(), 500_000);
            whole += 1;
        }
    })
    .await;
    loop {
        let text = slow.text().await;
        if text == "again" {
            break;
        }
        assert_eq!(text.len(), 500_000);
        whole += 1;
    }
    assert_eq!(whole, taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_larger_than_the_send_buffer_is_taken_when_nothing_waits() {
    let node = Node::start_with(&[("MOONGATE_SEND_BUFFER", "1KiB")]).await;
    let mut client = node.connect().await;
    let message = "x".repeat(900_000);
    let sent = node.ask("sendToClient", json!({"client_id": client.id, "message": message, "confirm": true})).await;
    assert_eq!(sent, json!({"nodes": 1, "clients": 1}));
    assert_eq!(client.text().await.len(), 900_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_from_a_client_that_does_not_read_is_bounded() {
    let node = Node::start_with(&[("MOONGATE_SEND_BUFFER", "64KiB")]).await;
    let mut client = node.connect().await;
    let ping = Message::Ping(vec![0; 125].into());
    let flood = async { while client.socket.send(ping.clone()).await.is_ok() {} };
    // Its pongs overflow its outbox: it is a slow consumer like any other.
    tokio::select! {
        () = soon("the cut", flood) => {}
        () = eventually("it has left", async || node.ask("getAllClientIdCount", json!({})).await == json!(0)) => {}
    }
    eventually("it has left", async || node.ask("getAllClientIdCount", json!({})).await == json!(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_clients_port_harms_nobody() {
    let node = Node::start().await;
    let mut good = node.member("u", "g").await;
    let mut seed = 42_u64;
    for _ in 0..200 {
        let mut socket = TcpStream::connect(node.clients).await.unwrap();
        let garbage: Vec<u8> = (0..300)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) as u8
            })
            .collect();
        let after_handshake = seed & 1 == 0;
        if after_handshake {
            socket = raw_websocket(&node, &garbage).await;
        } else {
            socket.write_all(&garbage).await.unwrap();
        }
        drop(socket);
    }
    node.ask("sendToGroup", json!({"group": "g", "message": "fine"})).await;
    assert_eq!(good.text().await, "fine");
    eventually("the others have left", async || node.ask("getAllClientIdCount", json!({})).await == json!(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_have_left_nothing_is_left() {
    let node = Node::start().await;
    let mut clients = Vec::new();
    for number in 0..50 {
        clients.push(node.member(&format!("u{}", number % 7), &format!("g{}", number % 5)).await);
    }
    node.ask("closeUid", json!({"uid": "u0"})).await;
    node.ask("ungroup", json!({"group": "g1"})).await;
    drop(clients);
    for op in ["getAllClientIdList", "getAllUidList", "getAllGroupIdList"] {
        eventually(op, async || node.ask(op, json!({})).await == json!([])).await;
    }
    node.stop();
    assert_eq!(node.stopped().await, 0);
}
