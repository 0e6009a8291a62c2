//! What must hold for anything that is said on the bus, and for any answer of Redis; see [`crate::fuzz`].

#![allow(clippy::expect_used)] // here a panic is what is looked for

use bytes::Bytes;
use serde_json::value::RawValue;

use super::directory::{Entry, index_value, read_facts, read_uid_change};
use super::envelope::{Do, Header, MAGIC, is_sealed, open, pack, seal, unpack};
use super::keys::Keys;
use super::redis::{Place, Reply};
use super::slots::Map;
use super::tasks;
use crate::event::Kind;

/// A channel's name, a newline, and what was said there. Returns the parts of commands in it, each with its message.
pub(crate) fn heard(bytes: &[u8]) -> Vec<(Box<RawValue>, Bytes)> {
    let (name, said) = lines(bytes);
    let keys = Keys::new("mg", false);
    if let Some(channel) = std::str::from_utf8(name).ok().and_then(|name| keys.parse(name)) {
        assert_eq!(keys.parse(&keys.channel(&channel)), Some(channel));
    }
    let said = Bytes::copy_from_slice(said);
    let envelopes = unpack(&said);
    assert!(envelopes.iter().map(Bytes::len).sum::<usize>() <= said.len());
    // A single one that is not sealed is a bare payload.
    if envelopes.len() != 1 {
        assert_eq!(unpack(&pack(envelopes.iter())), envelopes);
    }
    // Lengths are hard to guess: what is no envelope is taken for a header and a message.
    let (header, message) = lines(&said);
    let length = (header.len() as u32).to_be_bytes();
    let made = Bytes::from([&MAGIC, &length[..], header, message].concat());
    envelopes.into_iter().filter(|envelope| is_sealed(envelope)).chain([made]).filter_map(|one| opened(&one)).collect()
}

fn opened(envelope: &Bytes) -> Option<(Box<RawValue>, Bytes)> {
    let (header, message) = open(envelope).ok()?;
    assert!(message.len() < envelope.len());
    let (words, part) =
        (format!("{header:?}"), if let Header::Do(Do { part, .. }) = &header { Some(part.clone()) } else { None });
    let (again, same) = open(&seal(header, &message)).expect("what was sealed can be opened");
    assert_eq!((format!("{again:?}"), &same), (words, &message));
    Some((part?, message))
}

fn lines(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (line, rest) = bytes.split_at(end);
    (line, rest.get(1..).unwrap_or_default())
}

/// What Redis answers, be it of a key that somebody else has written.
pub(crate) fn reply(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(entry) = Entry::read("7f0000010b5400000001", text)
    {
        let again = Entry::read(&entry.id.to_string(), &index_value(entry.uid.as_ref(), &entry.groups));
        assert_eq!(again, Some(entry));
    }
    let reply = Reply::made_of(bytes);
    reply.number();
    assert!(reply.clone().entries().iter().all(|(_, fields)| fields.len() <= bytes.len()));
    for length in [reply.clone().fields().len(), reply.clone().pairs().len(), reply.clone().scores().len()] {
        assert!(length <= bytes.len());
    }
    if let Some(session) = read_facts(reply.clone()).and_then(|facts| facts.session) {
        serde_json::from_str::<serde_json::Value>(session.as_str()).expect("a session is JSON");
    }
    for kind in [Kind::Bound, Kind::Unbound] {
        read_uid_change(kind, &reply.clone().list());
    }
    tasks::claimed(reply.clone());
    let asked = Place { host: "asked".to_owned(), port: 1 };
    if let Ok((map, _)) = Map::read(reply.clone(), &asked) {
        assert!((0..16_384).all(|slot| map.0.iter().any(|(_, slots)| slots.contain(slot))), "each slot has a master");
    }
    if let Some(view) = tasks::view(reply) {
        serde_json::to_string(&view).expect("a task can be shown");
    }
}
