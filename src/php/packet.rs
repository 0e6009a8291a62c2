//! The packets of the inner protocol: a header of 28 bytes, ext data, a body.
//!
//! All numbers are big-endian. Callers and workers send commands in this form; workers get events in it. What answers a
//! question has no header: see [`reply`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::id::ClientId;

/// Bytes before ext data and body.
pub const HEADER: usize = 28;

/// The largest packet; PHP's end closes the connection beyond it, in both directions.
pub const MAX_PACKET: usize = 10_485_760;

/// Bit 0 of the flags: the body is the bytes of a scalar, and not `serialize()` output.
pub const SCALAR: u8 = 1;

/// Bit 1 of the flags: the body is written to the client's socket as it is.
pub const RAW: u8 = 2;

/// The commands' numbers.
#[allow(missing_docs)] // their names say it
pub mod command {
    pub const ON_CONNECT: u8 = 1;
    pub const ON_MESSAGE: u8 = 3;
    pub const ON_CLOSE: u8 = 4;
    pub const SEND_TO_ONE: u8 = 5;
    pub const SEND_TO_ALL: u8 = 6;
    pub const KICK: u8 = 7;
    pub const DESTROY: u8 = 8;
    pub const UPDATE_SESSION: u8 = 9;
    pub const GET_ALL_CLIENT_SESSIONS: u8 = 10;
    pub const IS_ONLINE: u8 = 11;
    pub const BIND_UID: u8 = 12;
    pub const UNBIND_UID: u8 = 13;
    pub const SEND_TO_UID: u8 = 14;
    pub const GET_CLIENT_ID_BY_UID: u8 = 15;
    pub const BATCH_GET_CLIENT_ID_BY_UID: u8 = 16;
    pub const JOIN_GROUP: u8 = 20;
    pub const LEAVE_GROUP: u8 = 21;
    pub const SEND_TO_GROUP: u8 = 22;
    pub const GET_CLIENT_SESSIONS_BY_GROUP: u8 = 23;
    pub const GET_CLIENT_COUNT_BY_GROUP: u8 = 24;
    pub const SELECT: u8 = 25;
    pub const GET_GROUP_ID_LIST: u8 = 26;
    pub const UNGROUP: u8 = 27;
    pub const BATCH_GET_CLIENT_COUNT_BY_GROUP: u8 = 28;
    pub const WORKER_CONNECT: u8 = 200;
    pub const PING: u8 = 201;
    pub const GATEWAY_CLIENT_CONNECT: u8 = 202;
    pub const GET_SESSION_BY_CLIENT_ID: u8 = 203;
    pub const SET_SESSION: u8 = 204;
    pub const ON_WEBSOCKET_CONNECT: u8 = 205;
}

/// A packet, borrowed. Of the header only what commands use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// One of [`command`].
    pub command: u8,
    /// The client it is about; 0: none.
    pub connection: u32,
    /// [`SCALAR`], [`RAW`].
    pub flags: u8,
    /// Names, JSON or a session, as the command has it.
    pub ext: &'a [u8],
    /// A message, or what a handshake says.
    pub body: &'a [u8],
}

/// What came is no packet: its length cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {0} bytes: takes {HEADER} to {MAX_PACKET}")]
pub struct NotAPacket(u32);

impl<'a> Packet<'a> {
    /// The packet at the beginning of `bytes`, and its length; none while bytes are missing.
    pub fn split(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, NotAPacket> {
        let Some(length) = bytes.first_chunk().copied().map(u32::from_be_bytes) else { return Ok(None) };
        if !(HEADER..=MAX_PACKET).contains(&(length as usize)) {
            return Err(NotAPacket(length));
        }
        let Some(packet) = bytes.get(..length as usize) else { return Ok(None) };
        Ok(Self::read(packet).map(|packet| (packet, length as usize)))
    }

    fn read(packet: &'a [u8]) -> Option<Self> {
        let (header, rest) = packet.split_first_chunk::<HEADER>()?;
        let number = |place: usize| header.get(place..).and_then(|bytes| bytes.first_chunk().copied());
        let ext_length = u32::from_be_bytes(number(24)?) as usize;
        // One that claims more than there is gets what there is, as in PHP.
        let (ext, body) = rest.split_at_checked(ext_length).unwrap_or((rest, &[]));
        let [command, flags] = [*header.get(4)?, *header.get(21)?];
        Some(Self { command, connection: u32::from_be_bytes(number(17)?), flags, ext, body })
    }
}

/// What an event says of the client it is about, beside its id.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// Where the client is.
    pub client: SocketAddr,
    /// The port it has connected to.
    pub port: u16,
}

impl Origin {
    /// Nowhere that is known.
    pub const UNKNOWN: Self = Self { client: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), port: 0 };
}

/// An event as a worker gets it.
pub fn event(command: u8, flags: u8, id: ClientId, origin: Origin, session: &[u8], body: &[u8]) -> Vec<u8> {
    let length = HEADER + session.len() + body.len();
    let ip = match origin.client.ip().to_canonical() {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    let mut packet = Vec::with_capacity(length);
    packet.extend((length as u32).to_be_bytes());
    packet.push(command);
    packet.extend(id.lan.ip.octets());
    packet.extend(id.lan.port.to_be_bytes());
    packet.extend(ip);
    packet.extend(origin.client.port().to_be_bytes());
    packet.extend(id.connection.to_be_bytes());
    packet.push(flags);
    packet.extend(origin.port.to_be_bytes());
    packet.extend((session.len() as u32).to_be_bytes());
    packet.extend(session);
    packet.extend(body);
    packet
}

/// The packet that says nothing but that this end is there: about nobody, from nowhere.
pub fn ping() -> Vec<u8> {
    event(command::PING, SCALAR, ClientId::NOBODY, Origin::UNKNOWN, b"", b"")
}

/// An answer: four bytes of length, these not included, then `serialize()` output.
pub fn reply(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_packet_is_cut_where_its_length_says() {
        let packet = event(
            command::ON_MESSAGE,
            SCALAR,
            "7f0000010b5400000007".parse().unwrap(),
            Origin { client: "10.1.2.3:4567".parse().unwrap(), port: 7272 },
            b"session",
            b"hello",
        );
        assert_eq!(
            packet[..HEADER],
            *b"\0\0\0\x28\x03\x7f\0\0\x01\x0b\x54\x0a\x01\x02\x03\x11\xd7\0\0\0\x07\x01\x1c\x68\0\0\0\x07"
        );
        let two = [&packet[..], &ping()].concat();
        let (first, length) = Packet::split(&two).unwrap().unwrap();
        assert_eq!((first.command, first.connection, first.ext, first.body), (3, 7, &b"session"[..], &b"hello"[..]));
        let (second, rest) = Packet::split(&two[length..]).unwrap().unwrap();
        assert_eq!((second.command, second.flags, rest), (command::PING, SCALAR, HEADER));
        for missing in 0..packet.len() {
            assert_eq!(Packet::split(&packet[..missing]), Ok(None));
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_its_bytes_are_there() {
        for length in [0, 1, 27, 10_485_761, u32::MAX] {
            assert_eq!(Packet::split(&length.to_be_bytes()), Err(NotAPacket(length)));
        }
        assert_eq!(Packet::split(&10_485_760_u32.to_be_bytes()), Ok(None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_packets_or_a_refusal(bytes in prop::collection::vec(any::<u8>(), 0..100), length in 0..120_u32) {
            let packet = [&length.to_be_bytes()[..], &bytes].concat();
            if let Ok(Some((packet, taken))) = Packet::split(&packet) {
                prop_assert_eq!(taken, length as usize);
                prop_assert_eq!(packet.ext.len() + packet.body.len() + HEADER, taken);
            }
        }
    }
}
