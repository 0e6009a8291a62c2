//! What must hold for any bytes that come through the door for PHP; see [`crate::fuzz`].

#![allow(clippy::expect_used)] // here a panic is what is looked for

use super::ext::Json;
use super::packet::{HEADER, Packet};
use super::{commands, register, request, serialize, session};

/// What is said on an inner connection.
pub(crate) fn inner(mut bytes: &[u8]) {
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
pub(crate) fn register(bytes: &[u8]) {
    for line in String::from_utf8_lossy(bytes).lines() {
        register::is_understood(line);
    }
}

/// A PHP value, as a session or a message.
pub(crate) fn serialize(bytes: &[u8]) {
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
pub(crate) fn json(bytes: &[u8]) {
    if let Ok(session) = serde_json::from_slice::<crate::session::Session>(bytes) {
        let php = session::to_php(session.as_str());
        assert_eq!(session::to_php(&session::to_json(&php)), php);
    }
}

/// The head of a handshake.
pub(crate) fn request(bytes: &[u8]) {
    let nowhere = (std::net::Ipv4Addr::LOCALHOST, 1).into();
    serialize::parse(&request::describe(bytes, nowhere, 7272)).expect("what workers are told is a value");
}
