//! What must hold for any bytes that come through the door; fuzzers and the tests below feed it.

#![allow(clippy::expect_used, clippy::panic, missing_docs)] // here a panic is what is looked for

use super::ext::Json;
use super::packet::{HEADER, Packet};
use super::{commands, register, request, serialize, session};

/// What is said on an inner connection.
pub fn inner(mut bytes: &[u8]) {
    while let Ok(Some((packet, length))) = Packet::split(bytes) {
        assert_eq!(HEADER + packet.ext.len() + packet.body.len(), length);
        if let Some(json) = Json::read(packet.ext) {
            let keys = json.keys().count();
            assert!(
                json.values().count() <= keys && json.get("group").is_none_or(|group| group.entries().len() < length)
            );
        }
        self::serialize(packet.ext);
        self::serialize(packet.body);
        if let Some(merged) = commands::merged(packet.ext, packet.body) {
            serialize::parse(&merged).expect("what is merged is a value");
        }
        bytes = bytes.get(length..).unwrap_or_default();
    }
}

/// What is said to the Register.
pub fn register(bytes: &[u8]) {
    for line in String::from_utf8_lossy(bytes).lines() {
        register::is_understood(line);
    }
}

/// A PHP value, as a session or a message.
pub fn serialize(bytes: &[u8]) {
    if let Ok(value) = serialize::parse(bytes) {
        let mut written = Vec::new();
        value.write(&mut written);
        let again = serialize::parse(&written).expect("what is written can be read");
        let mut rewritten = Vec::new();
        again.write(&mut rewritten);
        assert_eq!(written, rewritten);
        if let Some(json) = serialize::message_json(&value) {
            serde_json::from_str::<serde::de::IgnoredAny>(&json).expect("a message is JSON");
        }
    }
    if !bytes.is_empty() {
        assert_eq!(session::to_php(&session::to_json(bytes)), bytes);
    }
}

/// JSON that other doors have stored, as PHP's session.
pub fn json(bytes: &[u8]) {
    if let Ok(session) = serde_json::from_slice::<crate::session::Session>(bytes) {
        let php = session::to_php(session.as_str());
        assert_eq!(session::to_php(&session::to_json(&php)), php);
    }
}

/// The head of a handshake.
pub fn request(bytes: &[u8]) {
    let nowhere = (std::net::Ipv4Addr::LOCALHOST, 1).into();
    serialize::parse(&request::describe(bytes, nowhere, 7272)).expect("what workers are told is a value");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that are the same in every run (Steele, Lea, Flood: `SplitMix`, 2014).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
        }
    }

    /// All byte strings of the recorded conversations in a folder.
    fn recorded(folder: &str) -> Vec<Vec<u8>> {
        fn collect(value: &serde_json::Value, found: &mut Vec<Vec<u8>>) {
            if let Some(hex) = value["hex"].as_str() {
                let byte = |place| u8::from_str_radix(&hex[place..place + 2], 16).unwrap();
                found.push((0..hex.len()).step_by(2).map(byte).collect());
            }
            match value {
                serde_json::Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
                serde_json::Value::Object(fields) => fields.values().for_each(|field| collect(field, found)),
                _ => {}
            }
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/gatewayworker/").to_owned() + folder;
        let mut files: Vec<_> = std::fs::read_dir(path).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        let mut found = Vec::new();
        for file in files {
            collect(&serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap(), &mut found);
        }
        found
    }

    /// Feeds what was recorded, and what becomes of it when bytes are lost, doubled or changed.
    fn feed(folders: &[&str], target: fn(&[u8])) {
        let seeds: Vec<Vec<u8>> = folders.iter().flat_map(|folder| recorded(folder)).collect();
        assert!(seeds.len() > 20, "{folders:?}");
        for seed in &seeds {
            target(seed);
        }
        let mut numbers = Numbers(7);
        for _ in 0..20_000 {
            let mut bytes = seeds[numbers.below(seeds.len())].clone();
            for _ in 0..=numbers.below(4) {
                let (place, other) = (numbers.below(bytes.len()), numbers.below(bytes.len()));
                match numbers.below(5) {
                    _ if bytes.is_empty() => bytes.push(numbers.below(256) as u8),
                    0 => bytes[place] = numbers.below(256) as u8,
                    1 => bytes[place] ^= 1 << numbers.below(8),
                    2 => drop(bytes.drain(place.min(other)..place.max(other))),
                    3 => bytes.extend_from_within(place.min(other)..place.max(other)),
                    _ => bytes.extend_from_slice(&seeds[numbers.below(seeds.len())]),
                }
            }
            target(&bytes);
        }
    }

    #[test]
    fn no_inner_packet_does_harm() {
        feed(&["inner", "client_api", "events"], inner);
    }

    #[test]
    fn no_line_to_the_register_does_harm() {
        feed(&["register"], register);
    }

    #[test]
    fn no_php_value_does_harm() {
        feed(&["codec"], serialize);
    }

    #[test]
    fn no_request_does_harm() {
        feed(&["websocket", "codec"], request);
    }

    #[test]
    fn no_json_does_harm() {
        feed(&["inner", "codec"], json);
    }
}
