//! What must hold for any bytes that a client sends, before and after its handshake; see [`crate::fuzz`].

#![allow(clippy::expect_used, clippy::panic)] // here a panic is what is looked for

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::IpAddr;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderValue, ORIGIN, PROXY_AUTHORIZATION};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message as Frame, WebSocket};

use super::handshake::{self, X_FORWARDED_FOR};
use super::stream::Cutter;
use super::websocket;
use crate::access::{Origins, Proxies, Tokens};
use crate::message::{Close, Message, Protocol};

const ORIGIN_LET_IN: &str = "https://chat.example.com";

/// The largest message in these tests.
const MOST: usize = 100;

/// A request, read by the same library with the same limits as a client's. Returns its head, as whoever listens gets it.
pub(crate) fn handshake(bytes: &[u8]) -> Option<Vec<u8>> {
    let head = Cell::new(None);
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        look_at(&request, bytes.len());
        head.set(Some(handshake::head(&request)));
        // It has a `Connection: close`: of several requests the first is looked at, as a client has one.
        std::future::ready(Ok::<_, Infallible>(handshake::refusal(StatusCode::FORBIDDEN, &[], "")))
    });
    let wire = TokioIo::new(tokio::io::join(bytes, tokio::io::sink()));
    // A head that is cut off is an error, as the client's end is.
    drop(handshake::http1().serve_connection(wire, service).now_or_never());
    head.into_inner()
}

fn look_at(request: &Request<Incoming>, length: usize) {
    let headers = request.headers();
    if let Ok(accept) = handshake::accept_key(request.method(), headers) {
        assert_eq!(accept.len(), 28, "{accept:?}");
    }
    let origins: Origins = ORIGIN_LET_IN.parse().expect("an origin");
    if let Some(origin) = headers.get(ORIGIN) {
        let is_ours = origin.as_bytes().to_ascii_lowercase() == ORIGIN_LET_IN.as_bytes();
        assert_eq!(origins.allow(origin.as_bytes()), is_ours);
    }

    let token = handshake::token(request);
    let tokens = Tokens::of_secret(b"a secret that nobody else knows").needed();
    assert!(tokens.grant(token.as_deref()).is_err(), "{token:?} lets somebody in");
    if !headers.contains_key(AUTHORIZATION) {
        assert_ne!(token.as_deref(), Some(""));
    }

    let ip = where_from(headers);
    let described = handshake::described(request, ip);
    let fields = |json: &str| serde_json::from_str::<BTreeMap<String, String>>(json).expect("an object of strings");
    let secret = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE];
    let told = fields(&described.headers);
    assert!(secret.iter().all(|name| !told.contains_key(name.as_str())), "{told:?}");
    assert!(!fields(&described.query).contains_key("token"));
    fields(&described.cookies);
    // A byte that is no text is three, and a control character six.
    let most = 16 * length + 64;
    assert!(described.query.len() + described.cookies.len() + described.headers.len() <= most);
    let head = handshake::head(request);
    assert_eq!(head.windows(2).filter(|two| two == b"\r\n").count(), headers.len() + 1, "a header has become two");
}

/// Where a client comes from, behind a proxy of ours. What proxies of ours add changes nothing, and nothing that stands left
/// of what they know.
fn where_from(headers: &HeaderMap) -> IpAddr {
    let proxies: Proxies = "10.0.0.0/8, fd00::/8".parse().expect("networks");
    let lines: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    let [stranger, ours, next] = ["203.0.113.9", "10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().expect("an address"));
    let from = |peer: IpAddr, lines: &[&[u8]]| proxies.client(peer, lines.iter().copied());
    assert_eq!(from(stranger, &lines), stranger);
    let ip = from(ours, &lines);
    assert_eq!(ip, ip.to_canonical());
    let passed_on = [&lines[..], &[b"10.0.0.1"]].concat();
    assert_eq!(from(next, &passed_on), ip);
    if !["10.0.0.0/8", "fd00::/8"].iter().any(|ours| ours.parse::<ipnet::IpNet>().expect("a network").contains(&ip)) {
        assert_eq!(from(ours, &[&[&b"192.0.2.77"[..]], &lines[..]].concat()), ip, "a stranger's word counts");
    }
    ip
}

/// What comes on a connection of `text`, `frame` or `tcp`: the first byte says which, the second how much one read brings.
pub(crate) fn stream(bytes: &[u8]) {
    let Some((&[which, piece], said)) = bytes.split_first_chunk() else { return };
    let protocol = match which % 3 {
        0 => Protocol::Text,
        1 => Protocol::Frame,
        _ => Protocol::Tcp,
    };
    let (messages, end) = cut(protocol, std::iter::once(said));
    if protocol == Protocol::Tcp {
        return assert_eq!((messages, end), (vec![said.to_vec()], Ok(())));
    }
    assert!(messages.iter().all(|message| message.len() <= MOST));
    let pieces = cut(protocol, said.chunks(usize::from(piece).max(1)));
    assert_eq!(pieces, (messages.clone(), end), "it matters where reads cut it");
    let again: Vec<u8> = messages
        .iter()
        .flat_map(|message| Message::binary(message).encoded(protocol).expect("it has a form here").to_vec())
        .collect();
    assert_eq!(cut(protocol, std::iter::once(&*again)), (messages, Ok(())));
}

fn cut<'a>(protocol: Protocol, reads: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Result<(), Close>) {
    let mut cutter = Cutter { protocol, most: MOST, unfinished: BytesMut::new() };
    let mut messages = Vec::new();
    for read in reads {
        if let Err(close) = cutter.cut(read, |message| messages.push(message.to_vec())) {
            return (messages, Err(close));
        }
        assert!(cutter.unfinished.len() <= MOST + 4, "{} bytes are kept", cutter.unfinished.len());
    }
    (messages, Ok(()))
}

/// What comes on a WebSocket after its handshake: the first byte says how much one read brings.
pub(crate) fn websocket(bytes: &[u8]) {
    let Some((&piece, said)) = bytes.split_first() else { return };
    let whole = converse(said, said.len());
    assert_eq!(converse(said, usize::from(piece).max(1)), whole, "it matters where reads cut it");
}

/// What was understood, and how it ended; what was answered is whole control frames.
fn converse(said: &[u8], piece: usize) -> (Vec<Frame>, Option<Close>) {
    let mut socket =
        WebSocket::from_raw_socket(Peer { said, piece, is_closed: false }, Role::Server, Some(websocket::config(MOST)));
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => {
                assert!(message.len() <= MOST.max(125), "{message:?}");
                messages.push(message);
            }
            Err(error) => return (messages, websocket::violation(&error)),
        }
    }
}

struct Peer<'a> {
    said: &'a [u8],
    piece: usize,
    is_closed: bool,
}

impl Read for Peer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(self.piece);
        self.said.read(buffer.get_mut(..most).unwrap_or_default())
    }
}

impl Write for Peer<'_> {
    /// `Client::push_control` takes each write for one whole frame, and its first byte for what it is.
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        let [first, length, payload @ ..] = frame else { panic!("{frame:?} is no frame") };
        assert!(matches!(first, 0x88 | 0x8a), "{frame:?} is no control frame");
        assert!(*length <= 125 && payload.len() == usize::from(*length), "{frame:?} is not one frame");
        assert!(!self.is_closed, "{frame:?} comes behind a close frame");
        self.is_closed = Close::is_close_frame(frame);
        Ok(frame.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
