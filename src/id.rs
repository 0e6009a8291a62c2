//! Names, parsed once at a door: [`ClientId`], [`Uid`], [`Group`]. Inside the house nothing is a bare string.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{RefOr, schema::KnownFormat, schema::SchemaFormat};

/// Where a node says it can be reached by PHP applications; the first part of every client id it hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LanAddress {
    /// IPv4 address, unique in the cluster together with the port.
    pub ip: Ipv4Addr,
    /// Inner port.
    pub port: u16,
}

/// A text is not a LAN address of 12 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("takes a LAN address of 12 hex digits")]
pub struct NotALanAddress;

impl LanAddress {
    fn number(self) -> u128 {
        u128::from(self.ip.to_bits()) << 16 | u128::from(self.port)
    }
}

impl fmt::Display for LanAddress {
    /// As it stands in client ids: 12 hex digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex::<12>(f, self.number())
    }
}

/// Writes the last digits of a number. Ids are written a dozen times in a client's life, and `{:08x}` takes its time.
fn write_hex<const DIGITS: usize>(f: &mut fmt::Formatter<'_>, number: u128) -> fmt::Result {
    let mut digits = [0; DIGITS];
    for (place, digit) in digits.iter_mut().rev().enumerate() {
        let value = (number >> (4 * place)) as u8 & 0xf;
        *digit = if value < 10 { b'0' + value } else { b'a' + value - 10 };
    }
    f.write_str(std::str::from_utf8(&digits).unwrap_or_default())
}

impl FromStr for LanAddress {
    type Err = NotALanAddress;

    fn from_str(text: &str) -> Result<Self, NotALanAddress> {
        if text.len() != 12 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotALanAddress);
        }
        let number = u64::from_str_radix(text, 16).map_err(|_| NotALanAddress)?;
        Ok(Self { ip: Ipv4Addr::from_bits((number >> 16) as u32), port: number as u16 })
    }
}

impl Serialize for LanAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LanAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The cluster-wide name of one connection: 20 lower-case hex digits, `GatewayWorker`'s form
/// `hex(lan ip, 4 bytes | lan port, 2 bytes | connection id, 4 bytes)`, all big-endian.
/// It lives as long as the connection and is not a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId {
    /// The node that holds the connection.
    pub lan: LanAddress,
    /// The connection on that node; never 0.
    pub connection: u32,
}

impl ClientId {
    /// The id of no client.
    pub const NOBODY: Self = Self { lan: LanAddress { ip: Ipv4Addr::UNSPECIFIED, port: 0 }, connection: 0 };
}

/// A text is not a client id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("takes a client id of 20 hex digits")]
pub struct NotAClientId;

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex::<20>(f, self.lan.number() << 32 | u128::from(self.connection))
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClientId {
    type Err = NotAClientId;

    /// Takes upper-case digits too, as PHP's `pack` does.
    fn from_str(text: &str) -> Result<Self, NotAClientId> {
        if text.len() != 20 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotAClientId);
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| NotAClientId)?;
        let lan = LanAddress { ip: Ipv4Addr::from_bits((number >> 48) as u32), port: (number >> 32) as u16 };
        Ok(Self { lan, connection: number as u32 })
    }
}

impl Serialize for ClientId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClientId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = ClientId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a client id of 20 hex digits")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ClientId, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl utoipa::PartialSchema for ClientId {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[0-9a-fA-F]{20}$"))
            .description(Some("Client id: 20 hex digits."))
            .build()
            .into()
    }
}
impl utoipa::ToSchema for ClientId {}

/// The longest uid or group, in bytes.
pub const MAX_NAME: usize = 256;

/// What is wrong with a uid or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("takes a non-empty string of at most {MAX_NAME} bytes, or an integer")]
pub struct NotAName;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Non-empty UTF-8 of at most [`MAX_NAME`] bytes; an integer is taken as its decimal text. Cheap to clone.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NotAName;
            fn from_str(text: &str) -> Result<Self, NotAName> {
                if text.is_empty() || text.len() > MAX_NAME {
                    return Err(NotAName);
                }
                Ok(Self(text.into()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(NameVisitor)?.parse().map_err(de::Error::custom)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                name_schema(stringify!($name))
            }
        }
        impl utoipa::ToSchema for $name {}
    };
}

name! {
    /// The application's own name for a user; one client has at most one, one uid any number of clients.
    Uid
}
name! {
    /// A group of clients.
    Group
}
name! {
    /// A name of a task.
    TaskId
}

fn name_schema(title: &str) -> RefOr<Schema> {
    let text = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(MAX_NAME));
    let integer = ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::Integer))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)));
    let about = format!("{title}: a string of at most {MAX_NAME} bytes; an integer is its decimal text.");
    Schema::from(OneOfBuilder::new().item(text).item(integer).description(Some(about)).build()).into()
}

/// Reads a string, or an integer as its decimal text; everything else is refused in the user's words.
struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a non-empty string of at most {MAX_NAME} bytes, or an integer")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
        Ok(number.to_string())
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
        Ok(number.to_string())
    }
}

/// Hands out connection ids: a keyed permutation of a counter, so that ids are not in sequence and none comes twice
/// in the 2³²−1 connects of one start.
///
/// A balanced Feistel network over two 16-bit halves (Luby and Rackoff, 1988) is a permutation whatever its round
/// function is; the round function is the standard library's keyed `SipHash` under a random key.
pub struct ConnectionIds {
    key: RandomState,
    next: AtomicU32,
}

impl ConnectionIds {
    /// More than the four rounds that theory asks for; an id costs some 100 ns, once per connection.
    const ROUNDS: u8 = 6;

    /// A fresh sequence under a fresh key.
    pub fn new() -> Self {
        Self { key: RandomState::new(), next: AtomicU32::new(0) }
    }

    /// The next id; never 0.
    pub fn next(&self) -> u32 {
        loop {
            let id = self.permute(self.next.fetch_add(1, Ordering::Relaxed));
            if id != 0 {
                return id;
            }
        }
    }

    /// The place of an id in the sequence, by which ids are in the order in which they were handed out.
    pub fn place(&self, id: u32) -> u32 {
        let (mut left, mut right) = ((id >> 16) as u16, id as u16);
        for round in (0..Self::ROUNDS).rev() {
            let mixed = right ^ self.mix(round, left);
            (left, right) = (mixed, left);
        }
        u32::from(left) << 16 | u32::from(right)
    }

    fn permute(&self, counter: u32) -> u32 {
        let (mut left, mut right) = ((counter >> 16) as u16, counter as u16);
        for round in 0..Self::ROUNDS {
            let mixed = left ^ self.mix(round, right);
            (left, right) = (right, mixed);
        }
        u32::from(left) << 16 | u32::from(right)
    }

    fn mix(&self, round: u8, half: u16) -> u16 {
        self.key.hash_one((round, half)) as u16
    }
}

impl Default for ConnectionIds {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn client_ids_have_gatewayworkers_form() {
        for (ip, port, connection, text) in [
            ("127.0.0.1", 2900, 1, "7f0000010b5400000001"),
            ("10.0.0.5", 65535, 4_294_967_295, "0a000005ffffffffffff"),
            ("255.255.255.255", 1, 0, "ffffffff000100000000"),
            ("192.168.1.20", 4000, 305_419_896, "c0a801140fa012345678"),
        ] {
            let id = ClientId { lan: LanAddress { ip: ip.parse().unwrap(), port }, connection };
            assert_eq!(id.to_string(), text);
            assert_eq!(text.parse(), Ok(id));
            assert_eq!(text.to_uppercase().parse(), Ok(id));
        }
    }

    #[test]
    fn connection_ids_are_out_of_sequence_and_never_repeat() {
        let ids = ConnectionIds::new();
        let drawn: Vec<u32> = (0..200_000).map(|_| ids.next()).collect();
        assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), drawn.len());
        assert!(!drawn.contains(&0));
        let neighbours = drawn.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 1000).count();
        assert!(neighbours < 100, "{neighbours} of 200,000 ids are next to the one before");
    }

    #[test]
    fn two_starts_hand_out_different_ids() {
        let (a, b) = (ConnectionIds::new(), ConnectionIds::new());
        assert!((0..100).any(|_| a.next() != b.next()));
    }

    proptest! {
        #[test]
        fn the_permutation_has_no_two_counters_for_one_id(a: u32, b: u32) {
            let ids = ConnectionIds::new();
            prop_assert_eq!(a == b, ids.permute(a) == ids.permute(b));
        }

        #[test]
        fn an_id_knows_its_place_in_the_sequence(counter: u32) {
            let ids = ConnectionIds::new();
            prop_assert_eq!(ids.place(ids.permute(counter)), counter);
        }

        #[test]
        fn any_text_is_a_client_id_or_a_refusal(text in ".{0,24}") {
            if let Ok(id) = text.parse::<ClientId>() {
                prop_assert_eq!(id.to_string(), text.to_lowercase());
            }
        }

        #[test]
        fn names_are_one_to_256_bytes(text in ".{0,300}") {
            prop_assert_eq!(text.parse::<Uid>().is_ok(), !text.is_empty() && text.len() <= MAX_NAME);
        }
    }

    #[test]
    fn an_integer_is_its_decimal_text_and_other_json_is_refused() {
        for (json, uid) in [
            ("42", "42"),
            ("-7", "-7"),
            ("\"42\"", "42"),
            ("\"0\"", "0"),
            ("18446744073709551615", "18446744073709551615"),
        ] {
            assert_eq!(serde_json::from_str::<Uid>(json).unwrap().as_str(), uid);
        }
        for json in ["null", "true", "1.0", "1e3", "\"\"", "[]", "{}", "[[[[1]]]]", "18446744073709551616"] {
            assert!(serde_json::from_str::<Uid>(json).is_err(), "{json}");
        }
    }
}
