//! What RFC 6455 asks of a server, case by case; the numbers are those of the Autobahn test suite. What a client has said is
//! what the application is told.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::clients::{frame, masked, raw_websocket};
use crate::harness::{Node, eventually, soon};
use crate::receiver::Receiver;

const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    masked(FIN | CLOSE, &[&code.to_be_bytes(), reason].concat())
}

/// What a client does and what comes of it.
struct Case {
    name: String,
    /// Each in a write of its own.
    writes: Vec<Vec<u8>>,
    /// What the application is told.
    told: Vec<Value>,
    /// The pongs that it gets.
    pongs: Vec<Vec<u8>>,
    /// How the server ends it, or answers its close; none: with a close frame without a code.
    code: Option<u16>,
}

impl Case {
    /// What is good, and then the client goes.
    fn good(name: impl Into<String>, frames: &[Vec<u8>]) -> Self {
        Self::ending(name, &[frames, &[close(1000, b"")]].concat(), 1000)
    }

    /// What ends the connection.
    fn ending(name: impl Into<String>, frames: &[Vec<u8>], code: u16) -> Self {
        Self { name: name.into(), writes: vec![frames.concat()], told: Vec::new(), pongs: Vec::new(), code: Some(code) }
    }

    fn told(mut self, text: impl Into<String>) -> Self {
        self.told.push(json!({"data": text.into()}));
        self
    }

    fn told_binary(mut self, bytes: &[u8]) -> Self {
        self.told.push(json!({"binary": BASE64_STANDARD.encode(bytes)}));
        self
    }

    fn ponged(mut self, payload: &[u8]) -> Self {
        self.pongs.push(payload.to_vec());
        self
    }

    /// The same in writes of so many bytes.
    fn chopped(mut self, size: usize) -> Self {
        self.name = format!("{}, in pieces of {size}", self.name);
        self.writes = self.writes.concat().chunks(size).map(<[u8]>::to_vec).collect();
        self
    }

    async fn run(self, node: &Node, heard: &Heard) {
        let name = &self.name;
        let mut socket = raw_websocket(node, b"").await;
        let (_, init) = frame(&mut socket).await;
        let init: Value = serde_json::from_slice(&init).unwrap();
        let id = init["client_id"].as_str().unwrap();
        let (mut reader, mut writer) = socket.split();
        let write = async {
            for write in &self.writes {
                // It may have been closed meanwhile.
                drop(writer.write_all(write).await);
                tokio::task::yield_now().await;
            }
        };
        let read = async {
            let mut pongs = Vec::new();
            loop {
                match frame(&mut reader).await {
                    (first, payload) if first == FIN | PONG => pongs.push(payload),
                    (first, payload) if first == FIN | CLOSE => break (pongs, payload),
                    other => panic!("{name}: {other:?}"),
                }
            }
        };
        let ((), (pongs, payload)) = tokio::join!(write, read);
        let code = payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
        assert_eq!(code, self.code, "{name}");
        assert_eq!(pongs, self.pongs, "{name}");
        eventually(&format!("{name}: its end is told"), async || heard.lock().get(id).is_some_and(|(_, ended)| *ended))
            .await;
        assert_eq!(heard.lock()[id].0, self.told, "{name}");
    }
}

/// What each client has said, and whether it has gone.
type Heard = Arc<Mutex<HashMap<String, (Vec<Value>, bool)>>>;

/// Runs all cases, some at a time.
async fn all(cases: Vec<Case>) {
    let receiver = Receiver::start().await;
    let heard = Heard::default();
    let hears = Arc::clone(&heard);
    receiver.answers(move |event| {
        let mut heard = hears.lock();
        let (said, ended) = heard.entry(event["client_id"].as_str().unwrap().to_owned()).or_default();
        match event["event"].as_str().unwrap() {
            "message" => said.push(match event.get("binary") {
                Some(binary) => json!({"binary": binary}),
                None => json!({"data": event["data"]}),
            }),
            _ => *ended = true,
        }
        (200, json!({}))
    });
    let hook = receiver.url();
    let settings = [
        ("MOONGATE_EVENTS", "webhook:message+close"),
        ("MOONGATE_WEBHOOK_URL", &*hook),
        ("MOONGATE_MAX_MESSAGE_SIZE", "1MiB"),
    ];
    let node = Node::start_with(&settings).await;
    let running = cases.into_iter().map(|case| case.run(&node, &heard));
    soon("all cases", futures_util::stream::iter(running).buffer_unordered(16).collect::<()>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_all_sizes_1() {
    let mut cases = Vec::new();
    for size in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 200_000] {
        let text = "*".repeat(size);
        let case =
            |opcode| Case::good(format!("1: {size} bytes, opcode {opcode}"), &[masked(FIN | opcode, text.as_bytes())]);
        cases.push(case(TEXT).told(text.clone()));
        cases.push(case(BINARY).told_binary(text.as_bytes()));
        cases.push(case(TEXT).told(text.clone()).chopped(997));
        cases.push(case(BINARY).told_binary(text.as_bytes()).chopped(997));
    }
    all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_and_pongs_2() {
    let ping = |payload: &[u8]| masked(FIN | PING, payload);
    let mut cases = Vec::new();
    for payload in [&b""[..], b"Hello, world!", &[0x00, 0xff, 0xfe, 0xfd, 0x00], &[b'*'; 125]] {
        let case = || Case::good(format!("2.1-4: ping of {}", payload.len()), &[ping(payload)]).ponged(payload);
        cases.push(case());
        cases.push(case().chopped(1));
    }
    cases.push(Case::ending("2.5: a ping of 126", &[ping(&[b'*'; 126])], 1002));
    let pong = |payload: &[u8]| masked(FIN | PONG, payload);
    cases.push(Case::good("2.7-8: pongs that nobody asked for", &[pong(b""), pong(b"unsolicited")]));
    cases.push(Case::good("2.9: and a ping behind", &[pong(b"unsolicited"), ping(b"p")]).ponged(b"p"));
    let pings: Vec<_> = (0..10_u8).map(|number| ping(&[number])).collect();
    for size in [usize::MAX, 1] {
        let case = Case::good("2.10-11: ten pings", &pings).chopped(size);
        cases.push((0..10_u8).fold(case, |case, number| case.ponged(&[number])));
    }
    all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_bits_and_opcodes_3_4() {
    let (hello, ping) = (masked(FIN | TEXT, b"hello"), masked(FIN | PING, b""));
    let mut cases = Vec::new();
    for bits in 1..8_u8 {
        for opcode in [TEXT, BINARY, PING, CLOSE] {
            let bad = masked(FIN | bits << 4 | opcode, b"");
            let case = |size| {
                Case::ending(format!("3: bits {bits}, opcode {opcode}"), &[hello.clone(), bad.clone()], 1002)
                    .told("hello")
                    .chopped(size)
            };
            cases.extend([case(usize::MAX), case(1)]);
        }
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15_u8] {
        for payload in [&b""[..], b"reserved"] {
            let frames = [hello.clone(), masked(FIN | opcode, payload), ping.clone()];
            let case = |size| Case::ending(format!("4: opcode {opcode}"), &frames, 1002).told("hello").chopped(size);
            cases.extend([case(usize::MAX), case(1)]);
        }
    }
    all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_5() {
    let (first, next, last) = (
        |payload: &[u8]| masked(TEXT, payload),
        |payload: &[u8]| masked(CONTINUATION, payload),
        |payload: &[u8]| masked(FIN | CONTINUATION, payload),
    );
    let ping = masked(FIN | PING, b"ping");
    let mut cases = Vec::new();
    for (name, frames) in [
        ("5.1: a ping in fragments", vec![masked(PING, b"a"), last(b"b")]),
        ("5.2: a pong in fragments", vec![masked(PONG, b"a"), last(b"b")]),
        ("5.9: the end of nothing", vec![last(b"x"), masked(FIN | TEXT, b"y")]),
        ("5.12: a middle of nothing", vec![next(b"x"), masked(FIN | TEXT, b"y")]),
        ("5.18: a second beginning", vec![first(b"a"), masked(FIN | TEXT, b"b")]),
        ("5.18: of another kind", vec![first(b"a"), masked(FIN | BINARY, b"b")]),
        ("a close in fragments", vec![masked(CLOSE, &[3]), last(&[232])]),
    ] {
        cases.push(Case::ending(name, &frames, 1002));
        cases.push(Case::ending(name, &frames, 1002).chopped(1));
    }
    let behind = [first(b"a"), last(b"b"), next(b"c")];
    cases.push(Case::ending("5.15: a middle behind the end", &behind, 1002).told("ab"));
    let good = [
        ("5.3-5: two fragments", vec![first(b"fragment1"), last(b"fragment2")]),
        ("5.6-8: a ping between", vec![first(b"fragment1"), ping.clone(), last(b"fragment2")]),
        (
            "5.19-20: many",
            vec![
                first(b"f"),
                next(b"rag"),
                ping.clone(),
                next(b""),
                next(b"ment1"),
                ping.clone(),
                next(b""),
                last(b"fragment2"),
            ],
        ),
        ("empty ones", vec![first(b""), next(b""), next(b"fragment1fragment2"), last(b"")]),
    ];
    for (name, frames) in good {
        for size in [usize::MAX, 1, 7] {
            let pings = frames.iter().filter(|frame| **frame == ping).count();
            let case = Case::good(name, &frames).told("fragment1fragment2").chopped(size);
            cases.push((0..pings).fold(case, |case, _| case.ponged(b"ping")));
        }
    }
    // 9.3 and 9.4: a large message in fragments of one size.
    for size in [64, 1024, 65_536] {
        let payload = vec![0xfe; 1 << 20];
        let mut frames: Vec<Vec<u8>> = payload.chunks(size).map(|part| masked(CONTINUATION, part)).collect();
        frames[0][0] = BINARY;
        frames.last_mut().unwrap()[0] |= FIN;
        cases.push(Case::good(format!("9.4: 1 MiB in fragments of {size}"), &frames).told_binary(&payload));
    }
    all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_utf_8_6() {
    let good: &[&[u8]] = &[
        "Hello-µ@ßöäüàá-UTF-8!!".as_bytes(),
        "κόσμε".as_bytes(),
        "你好，世界".as_bytes(),
        "👋".as_bytes(),
        // 6.7 to 6.9: the first and the last of each length; and around the surrogates.
        b"\x00",
        b"\x7f",
        b"\xc2\x80",
        b"\xdf\xbf",
        b"\xe0\xa0\x80",
        b"\xef\xbf\xbf",
        b"\xf0\x90\x80\x80",
        b"\xf4\x8f\xbf\xbf",
        b"\xed\x9f\xbf",
        b"\xee\x80\x80",
        b"\xef\xbf\xbd",
        // 6.22: no characters, but code points.
        b"\xef\xbf\xbe",
        b"\xf0\x9f\xbf\xbf",
    ];
    let bad: &[&[u8]] = &[
        // 6.3: a surrogate in the middle of what is good.
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        // 6.10 and 6.8: beyond the last code point; of five and six bytes.
        b"\xf4\x90\x80\x80",
        b"\xf7\xbf\xbf\xbf",
        b"\xf8\x88\x80\x80\x80",
        b"\xfc\x84\x80\x80\x80\x80",
        // 6.11 to 6.14: alone, cut off, impossible.
        b"\x80",
        b"\xbf",
        b"\x80\xbf\x80",
        b"\xc0",
        b"\xdf",
        b"\xe0\x80",
        b"\xef\xbf",
        b"\xf0\x90\x80",
        b"\xfe",
        b"\xff",
        b"\xfe\xfe\xff\xff",
        // 6.16 to 6.18: longer than need be.
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xc1\xbf",
        b"\xe0\x9f\xbf",
        b"\xc0\x80",
        // 6.20 and 6.21: halves of UTF-16, alone and in pairs.
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xed\xa0\x80\xed\xb0\x80",
    ];
    // Whole, and each byte in a fragment of its own.
    let whole = |bytes: &[u8]| vec![masked(FIN | TEXT, bytes)];
    let in_fragments = |bytes: &[u8]| {
        let mut frames: Vec<Vec<u8>> = bytes.chunks(1).map(|byte| masked(CONTINUATION, byte)).collect();
        frames[0][0] = TEXT;
        frames.last_mut().unwrap()[0] |= FIN;
        frames
    };
    let mut cases = Vec::new();
    for bytes in good {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        cases.push(Case::good(format!("6: {bytes:x?}"), &whole(bytes)).told(text.clone()));
        cases.push(Case::good(format!("6: {bytes:x?} in fragments"), &in_fragments(bytes)).told(text.clone()));
        cases.push(Case::good(format!("6: {bytes:x?}"), &whole(bytes)).told(text).chopped(1));
    }
    for bytes in bad {
        cases.push(Case::ending(format!("6: {bytes:x?}"), &whole(bytes), 1007));
        cases.push(Case::ending(format!("6: {bytes:x?} in fragments"), &in_fragments(bytes), 1007));
        cases.push(Case::good(format!("6: {bytes:x?} as bytes"), &[masked(FIN | BINARY, bytes)]).told_binary(bytes));
    }
    all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closes_7() {
    let text = masked(FIN | TEXT, b"Hello World!");
    let bye = close(1000, b"");
    let mut cases = vec![
        Case::good("7.1.1: a message before it", std::slice::from_ref(&text)).told("Hello World!"),
        Case::ending("7.1.2: twice", &[bye.clone(), bye.clone()], 1000),
        Case::ending("7.1.3: a ping behind it", &[bye.clone(), masked(FIN | PING, b"")], 1000),
        Case::ending("7.1.4: a message behind it", &[bye.clone(), text.clone()], 1000),
        Case::ending(
            "7.1.5: between fragments",
            &[masked(TEXT, b"a"), bye.clone(), masked(FIN | CONTINUATION, b"b")],
            1000,
        ),
        Case::ending(
            "7.1.6: behind a large one",
            &[masked(FIN | TEXT, &[b'*'; 262_144]), text.clone(), bye.clone()],
            1000,
        )
        .told("*".repeat(262_144))
        .told("Hello World!"),
        Case { code: None, ..Case::ending("7.3.1: empty", &[masked(FIN | CLOSE, b"")], 1000) },
        Case::ending("7.3.2: of one byte", &[masked(FIN | CLOSE, b"a")], 1002),
        Case::ending("7.3.4: with a reason", &[close(1000, b"Hello World!")], 1000),
        Case::ending("7.3.5: the longest", &[close(1000, &[b'*'; 123])], 1000),
        Case::ending("7.3.6: and one more", &[close(1000, &[b'*'; 124])], 1002),
    ];
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999] {
        cases.push(Case::ending(format!("7.7: {code}"), &[close(code, b"")], code));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        cases.push(Case::ending(format!("7.9: {code}"), &[close(code, b"")], 1002));
    }
    all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_may_send() {
    // RFC 6455, 5.1 and 5.2.
    let masked_as = |length: &[u8]| [&[FIN | TEXT], length, &[0, 0, 0, 0]].concat();
    all(vec![
        Case::ending("unmasked", &[vec![FIN | TEXT, 1, b'x']], 1002),
        Case::ending("unmasked ping", &[vec![FIN | PING, 0]], 1002),
        Case::ending("2^63 bytes", &[masked_as(&[0xff, 0x80, 0, 0, 0, 0, 0, 0, 0])], 1009),
        Case::ending("1 MiB and one more", &[masked_as(&[0xff, 0, 0, 0, 0, 0, 0x10, 0, 1])], 1009),
    ])
    .await;
}
