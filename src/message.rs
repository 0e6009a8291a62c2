//! What is sent to a client, encoded once: payload and WebSocket frame share one buffer.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

/// Opcodes of RFC 6455, section 5.2.
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
/// The FIN bit: the server never fragments.
const FIN: u8 = 0x80;

/// What clients of a listener speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 6455.
    WebSocket,
    /// `GatewayWorker`'s `text`: lines, each ended by a newline.
    Text,
    /// `GatewayWorker`'s `frame`: four bytes of length, big-endian, these four included; then the message.
    Frame,
    /// `GatewayWorker`'s `tcp`: what one read brings is a message.
    Tcp,
}

/// A message ready to be written to any number of sockets: one whole, unmasked WebSocket frame, and what it is on other
/// protocols, made when a shard's first such client gets it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Message {
    /// As it goes to a WebSocket.
    frame: Bytes,
    kind: Kind,
    /// Of most messages there is none.
    streams: OnceLock<Arc<Streams>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Each protocol has its form of it.
    Framed,
    /// Other protocols have no such thing.
    OnlyWebSocket,
    /// These bytes, whatever the protocol.
    Raw,
}

#[derive(Debug, Default)]
struct Streams {
    text: OnceLock<Bytes>,
    frame: OnceLock<Bytes>,
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.frame == other.frame
    }
}

impl Eq for Message {}

impl Message {
    /// A text message.
    pub fn text(payload: &str) -> Self {
        Self::encode(TEXT, payload.as_bytes())
    }

    /// A binary message.
    pub fn binary(payload: &[u8]) -> Self {
        Self::encode(BINARY, payload)
    }

    /// A text message of bytes that need not be UTF-8, as PHP sends them.
    pub fn text_of(payload: &[u8]) -> Self {
        Self::encode(TEXT, payload)
    }

    /// A WebSocket ping without data.
    pub fn ping() -> Self {
        Self::encode(PING, b"").only_websocket()
    }

    /// Bytes that are written as they are; on a WebSocket they are frames already.
    pub fn raw(bytes: &[u8]) -> Self {
        Self { frame: Bytes::copy_from_slice(bytes), kind: Kind::Raw, streams: OnceLock::new() }
    }

    /// The same, for no other protocol than WebSocket.
    #[must_use]
    pub fn only_websocket(self) -> Self {
        Self { kind: Kind::OnlyWebSocket, ..self }
    }

    /// What it was made of.
    pub fn payload(&self) -> Bytes {
        if self.kind == Kind::Raw {
            return self.frame.clone();
        }
        // The length in the second byte says how long the header is.
        let header = match self.frame.get(1) {
            Some(126) => 4,
            Some(127) => 10,
            _ => 2,
        };
        self.frame.slice(header.min(self.frame.len())..)
    }

    /// Whether it is a binary message.
    pub fn is_binary(&self) -> bool {
        self.frame.first() == Some(&(FIN | BINARY))
    }

    /// The bytes as they go to a WebSocket.
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// The bytes as they go to a client. None where its protocol has no such thing, as a WebSocket ping.
    pub fn encoded(&self, protocol: Protocol) -> Option<Cow<'_, Bytes>> {
        match self.kind {
            Kind::Framed if protocol != Protocol::WebSocket => {}
            Kind::OnlyWebSocket if protocol != Protocol::WebSocket => return None,
            _ => return Some(Cow::Borrowed(&self.frame)),
        }
        let payload = self.payload();
        let around = |before: &[u8], after: &[u8]| Bytes::from([before, &payload, after].concat());
        let streams = self.streams.get_or_init(Arc::default);
        // No payload comes near four gigabytes.
        let length = (payload.len() as u32).saturating_add(4).to_be_bytes();
        Some(match protocol {
            Protocol::Text => Cow::Borrowed(streams.text.get_or_init(|| around(b"", b"\n"))),
            Protocol::Frame => Cow::Borrowed(streams.frame.get_or_init(|| around(&length, b""))),
            Protocol::WebSocket | Protocol::Tcp => Cow::Owned(payload),
        })
    }

    fn encode(opcode: u8, payload: &[u8]) -> Self {
        let mut frame = BytesMut::with_capacity(payload.len() + 10);
        frame.put_u8(FIN | opcode);
        // RFC 6455, 5.2: seven bits of length, or 126 and 16 bits, or 127 and 64 bits.
        match payload.len() {
            short @ 0..=125 => frame.put_u8(short as u8),
            middle @ 126..=0xffff => {
                frame.put_u8(126);
                frame.put_u16(middle as u16);
            }
            long => {
                frame.put_u8(127);
                frame.put_u64(long as u64);
            }
        }
        frame.put_slice(payload);
        Self { frame: frame.freeze(), kind: Kind::Framed, streams: OnceLock::new() }
    }
}

/// Why a connection ended, as its close frame said (ours or theirs) or, with 1006, how it ended without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Close {
    /// WebSocket close code; 1005 for a close frame without one, 1006 where there was no frame.
    pub code: u16,
    /// At most 123 bytes.
    pub reason: Cow<'static, str>,
}

impl Close {
    /// The longest reason that fits a close frame, in bytes.
    pub const MAX_REASON: usize = 123;

    /// `closeClient`, `closeUid`.
    pub const CLOSED: Self = Self::new(4000, "closed");
    /// `bindUid` with `single: true` gave the uid to another client.
    pub const REPLACED: Self = Self::new(4001, "replaced");
    /// The heartbeat heard nothing.
    pub const IDLE: Self = Self::new(4002, "idle");
    /// This node stops.
    pub const DRAIN: Self = Self::new(1012, "node stops, please reconnect");
    /// This node was cut off and taken for dead, and goes on as a new one.
    pub const FENCED: Self = Self::new(1012, "node was cut off, please reconnect");
    /// More unsent bytes than `SEND_BUFFER`.
    pub const SLOW: Self = Self::new(1013, "slow consumer");
    /// No PHP worker is connected, and without one no client is served.
    pub const NO_WORKER: Self = Self::new(1013, "no worker is connected");
    /// `UNAUTHED_TIMEOUT` is over.
    pub const UNBOUND: Self = Self::new(1008, "not bound in time");
    /// `MAX_MESSAGES_PER_SECOND`.
    pub const TOO_MANY: Self = Self::new(1008, "too many messages");
    /// RFC 6455 violated.
    pub const PROTOCOL: Self = Self::new(1002, "protocol error");
    /// A text message is not UTF-8.
    pub const NOT_UTF8: Self = Self::new(1007, "text is not UTF-8");
    /// More than `MAX_MESSAGE_SIZE`.
    pub const TOO_BIG: Self = Self::new(1009, "message too big");
    /// The socket ended without a close frame.
    pub const LOST: Self = Self::new(1006, "lost");
    /// Its node died.
    pub const NODE: Self = Self::new(1006, "node");
    /// `destroyClient`: at once, no frame.
    pub const DESTROYED: Self = Self::new(1006, "destroyed");

    /// A close of our own.
    pub const fn new(code: u16, reason: &'static str) -> Self {
        Self { code, reason: Cow::Borrowed(reason) }
    }

    /// The close frame to send; a code that must not travel (1005, 1006: RFC 6455, 7.4.1) gives an empty one.
    pub fn to_message(&self) -> Message {
        let mut payload = Vec::with_capacity(2 + self.reason.len());
        if !matches!(self.code, 1005 | 1006) {
            payload.put_u16(self.code);
            payload.put_slice(self.reason.as_bytes());
        }
        Message::encode(CLOSE, &payload)
    }

    /// Whether bytes written by the WebSocket library are a close frame.
    pub(crate) fn is_close_frame(frame: &[u8]) -> bool {
        frame.first().is_some_and(|first| first & 0x0f == CLOSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_headers_follow_rfc_6455() {
        for (length, header) in [
            (0, vec![0x81, 0]),
            (125, vec![0x81, 125]),
            (126, vec![0x81, 126, 0, 126]),
            (65_535, vec![0x81, 126, 0xff, 0xff]),
            (65_536, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let frame = Message::text(&"x".repeat(length)).frame().clone();
            assert_eq!(&frame[..header.len()], &header[..]);
            assert_eq!(frame.len(), header.len() + length);
            assert_eq!(Message::text(&"x".repeat(length)).payload().len(), length);
        }
        assert_eq!(Message::binary(&[0xff]).frame()[..], [0x82, 1, 0xff]);
        assert_eq!(Message::ping().frame()[..], [0x89, 0]);
        assert_eq!(Close::new(1000, "bye").to_message().frame()[..], [0x88, 5, 0x03, 0xe8, b'b', b'y', b'e']);
        assert_eq!(Close::LOST.to_message().frame()[..], [0x88, 0]);
    }
}
