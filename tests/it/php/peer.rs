//! Callers and workers as PHP is one, from the specification.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Node, soon};

/// The commands' numbers that tests say themselves.
pub const SEND_TO_ONE: u8 = 5;
pub const KICK: u8 = 7;
pub const IS_ONLINE: u8 = 11;
pub const BIND_UID: u8 = 12;
pub const SEND_TO_UID: u8 = 14;
pub const CLIENTS_OF_UID: u8 = 15;
pub const JOIN_GROUP: u8 = 20;
pub const LEAVE_GROUP: u8 = 21;
pub const SEND_TO_GROUP: u8 = 22;
pub const COUNT: u8 = 24;
pub const SELECT: u8 = 25;
pub const WORKER_CONNECT: u8 = 200;
pub const CLIENT_CONNECT: u8 = 202;
pub const GET_SESSION: u8 = 203;
pub const SET_SESSION: u8 = 204;

/// A packet as callers and workers send it.
pub fn packet(command: u8, connection: u32, ext: &[u8], body: &[u8]) -> Vec<u8> {
    let mut packet = ((28 + ext.len() + body.len()) as u32).to_be_bytes().to_vec();
    packet.push(command);
    packet.extend([0; 12]);
    packet.extend(connection.to_be_bytes());
    packet.extend([1, 0, 0]);
    packet.extend((ext.len() as u32).to_be_bytes());
    [&packet[..], ext, body].concat()
}

/// Where PHP finds the node that has handed out a client id.
pub fn inner_address(client_id: &str) -> SocketAddr {
    let number = u64::from_str_radix(&client_id[..12], 16).unwrap();
    SocketAddrV4::new(Ipv4Addr::from_bits((number >> 16) as u32), number as u16).into()
}

/// The part of a client id that its node alone knows.
pub fn connection(client_id: &str) -> u32 {
    u32::from_str_radix(&client_id[12..], 16).unwrap()
}

/// An inner connection.
pub struct Peer(pub TcpStream);

impl Peer {
    pub async fn connect(inner: SocketAddr) -> Self {
        Self(TcpStream::connect(inner).await.unwrap())
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// What the next answer says.
    pub async fn answer(&mut self) -> Vec<u8> {
        let length = soon("an answer", self.0.read_u32()).await.unwrap();
        let mut payload = vec![0; length as usize];
        soon("the rest of an answer", self.0.read_exact(&mut payload)).await.unwrap();
        payload
    }

    pub async fn ask(&mut self, command: u8, connection: u32, ext: &[u8]) -> String {
        self.send(&packet(command, connection, ext, b"")).await;
        String::from_utf8(self.answer().await).unwrap()
    }

    /// Nothing more comes, and the connection has ended.
    pub async fn has_ended(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end, too.
        drop(soon("the end", self.0.read_to_end(&mut rest)).await);
        assert_eq!(rest, b"");
    }
}

impl Peer {
    /// A worker.
    pub async fn worker(inner: SocketAddr, key: &str) -> Self {
        let mut worker = Self::connect(inner).await;
        let body = serde_json::json!({"worker_key": key, "secret_key": ""}).to_string();
        worker.send(&packet(WORKER_CONNECT, 0, b"", body.as_bytes())).await;
        // It is one when what comes behind is answered.
        assert_eq!(worker.ask(IS_ONLINE, 0, b"").await, "i:0;");
        worker
    }

    /// What a worker is told next.
    pub async fn event(&mut self) -> Event {
        let length = soon("an event", self.0.read_u32()).await.unwrap();
        let mut rest = vec![0; length as usize - 4];
        soon("the rest of an event", self.0.read_exact(&mut rest)).await.unwrap();
        let number = |place: usize| u32::from_be_bytes(rest[place..place + 4].try_into().unwrap());
        let ext = number(20) as usize;
        Event {
            command: rest[0],
            client_id: format!("{:08x}{:02x}{:02x}{:08x}", number(1), rest[5], rest[6], number(13)),
            session: rest[24..24 + ext].to_vec(),
            body: rest[24 + ext..].to_vec(),
        }
    }
}

/// What a worker is told.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    pub command: u8,
    pub client_id: String,
    pub session: Vec<u8>,
    pub body: Vec<u8>,
}

pub const ON_CONNECT: u8 = 1;
pub const ON_MESSAGE: u8 = 3;
pub const ON_CLOSE: u8 = 4;
pub const ON_WEBSOCKET_CONNECT: u8 = 205;

/// A WebSocket as bytes: what PHP sends as text need not be text.
pub struct Browser {
    pub id: String,
    pub socket: TcpStream,
}

impl Browser {
    pub const HANDSHAKE: &str = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

    /// One that has been welcomed.
    pub async fn connect(node: &Node) -> Self {
        let socket = TcpStream::connect(node.clients).await.unwrap();
        let mut browser = Self { id: String::new(), socket };
        browser.socket.write_all(Self::HANDSHAKE.as_bytes()).await.unwrap();
        assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
        let (opcode, init) = browser.frame().await.unwrap();
        assert_eq!(opcode, 1);
        let init: serde_json::Value = serde_json::from_slice(&init).unwrap();
        init["client_id"].as_str().unwrap().clone_into(&mut browser.id);
        browser
    }

    /// An HTTP head.
    pub async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("a head", self.socket.read_u8()).await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    /// The next frame's opcode and payload; none at the end.
    pub async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut header = [0; 2];
        soon("a frame", self.socket.read_exact(&mut header)).await.ok()?;
        assert_eq!(header[0] & 0xf0, 0x80, "one unfragmented frame");
        let length = match header[1] {
            126 => usize::from(self.socket.read_u16().await.ok()?),
            127 => self.socket.read_u64().await.ok()? as usize,
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        soon("the rest of a frame", self.socket.read_exact(&mut payload)).await.ok()?;
        Some((header[0] & 0x0f, payload))
    }

    /// It is told, or cut.
    pub async fn has_ended(&mut self) {
        match self.frame().await {
            None | Some((8, _)) => assert_eq!(self.frame().await, None),
            other => panic!("no end, but {other:?}"),
        }
    }
}
