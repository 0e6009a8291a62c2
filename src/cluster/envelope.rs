//! What nodes say to each other, and a send that a bare payload cannot say.
//!
//! An envelope is the four bytes `00 6d 67 31`, the length of a header (32 bits, big-endian), the header in JSON, and
//! behind it the bytes of a message, if there is one:
//!
//! ```json
//! {"do": {"send": {…}}, "back": {"to": "7f0000010b54", "id": 17}, "until": 1763645000000}
//! {"answer": 17, "from": "7f0000010b55", "done": {"ok": …}}
//! {"beat": "8f14e45f-…"}            behind it when it was said, by the clock of the node that says and hears it
//! {"node": "node-1"}
//! {"node": "node-1", "tail": {"uid": "42"}, "back": {"to": "7f0000010b54", "id": 18}}
//! {"copy": 18}                      behind it what was seen, a line of JSON
//! ```
//!
//! `do` is a part of a command; its text is that of `gateway::Part`. `back` says where the answer goes; `until`, Redis'
//! time in ms, when it is no use any more. A header may have more fields than these; an unknown kind is a newer node's.
//! So a node that knows no tails, or not this kind, takes a `tail` for what it is, too: another node says its name.
//!
//! Several envelopes to one node in one payload are the four bytes `00 6d 67 2a`, and before each its length (32 bits, big-endian).

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::hub::Tailed;
use crate::id::LanAddress;

/// What an envelope begins with.
pub(super) const MAGIC: [u8; 4] = [0x00, b'm', b'g', b'1'];

/// What several envelopes begin with.
const LOT: [u8; 4] = [0x00, b'm', b'g', b'*'];

/// The largest header; arrays of ten thousand names of 256 bytes, escaped, fit.
const MAX_HEADER: usize = 16 << 20;

/// The largest part of a command, in JSON; the rest of the header is small.
pub const MAX_PART: usize = MAX_HEADER - 1024;

/// The header.
#[derive(Debug)]
pub(super) enum Header {
    /// Do your part of a command.
    Do(Do),
    /// The answer to one.
    Answer(u64, Answer),
    /// A run hears itself.
    Beat(String),
    /// A node says its name: it is there.
    Node(String),
    /// A node says its name, and wants to be told for a while what is seen of somebody.
    Tail(String, Tailed, Back),
    /// It is told.
    Copy(u64),
}

/// The header as it is written: some of these.
#[derive(Default, Serialize, Deserialize)]
struct Fields {
    #[serde(rename = "do", default, skip_serializing_if = "Option::is_none")]
    part: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    back: Option<Back>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    done: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<LanAddress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beat: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tail: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copy: Option<u64>,
}

/// A part of a command, and where its answer goes.
#[derive(Debug)]
pub struct Do {
    /// What to do, in JSON.
    pub part: Box<RawValue>,
    /// Who asks.
    pub back: Option<Back>,
    /// When it is no use any more, Redis' time in ms.
    pub until: Option<u64>,
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Back {
    /// The asking node.
    pub to: LanAddress,
    /// Its name for the question.
    pub id: u64,
}

/// What a node answers.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The node.
    pub from: LanAddress,
    /// What came of its part, in JSON.
    pub done: Box<RawValue>,
}

/// An envelope cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAnEnvelope {
    /// It is cut off, or its header is no JSON.
    #[error("the envelope is damaged")]
    Damaged,
    /// It is of a kind that is not known here.
    #[error("the envelope is of a kind that this version does not know")]
    Unknown,
}

/// Writes an envelope.
pub(super) fn seal(header: Header, message: &[u8]) -> Bytes {
    let fields = match header {
        Header::Do(Do { part, back, until }) => Fields { part: Some(part), back, until, ..Fields::default() },
        Header::Answer(answer, Answer { from, done }) => {
            Fields { answer: Some(answer), from: Some(from), done: Some(done), ..Fields::default() }
        }
        Header::Beat(beat) => Fields { beat: Some(beat), ..Fields::default() },
        Header::Node(node) => Fields { node: Some(node), ..Fields::default() },
        Header::Tail(node, tailed, back) => {
            let tail = serde_json::value::to_raw_value(&tailed).ok();
            Fields { node: Some(node), tail, back: Some(back), ..Fields::default() }
        }
        Header::Copy(copy) => Fields { copy: Some(copy), ..Fields::default() },
    };
    // Our own structs of strings and numbers: this cannot fail.
    let header = serde_json::to_vec(&fields).unwrap_or_default();
    let mut out = BytesMut::with_capacity(MAGIC.len() + 4 + header.len() + message.len());
    out.put_slice(&MAGIC);
    out.put_u32(header.len() as u32);
    out.put_slice(&header);
    out.put_slice(message);
    out.freeze()
}

/// Whether this is an envelope and not a bare payload.
pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Reads an envelope: its header, and the message behind it.
pub(super) fn open(bytes: &Bytes) -> Result<(Header, Bytes), NotAnEnvelope> {
    let length = bytes.get(4..8).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    let length = length.map(|length| length as usize).filter(|&length| length <= MAX_HEADER);
    let length = length.ok_or(NotAnEnvelope::Damaged)?;
    let header = bytes.get(8..8 + length).ok_or(NotAnEnvelope::Damaged)?;
    let fields: Fields = serde_json::from_slice(header).map_err(|_| NotAnEnvelope::Damaged)?;
    let header = match fields {
        Fields { part: Some(part), back, until, .. } => Header::Do(Do { part, back, until }),
        Fields { answer: Some(answer), from: Some(from), done: Some(done), .. } => {
            Header::Answer(answer, Answer { from, done })
        }
        Fields { beat: Some(beat), .. } => Header::Beat(beat),
        Fields { node: Some(node), tail, back, .. } => {
            let tailed = tail.and_then(|tail| serde_json::from_str(tail.get()).ok());
            match (tailed, back) {
                (Some(tailed), Some(back)) => Header::Tail(node, tailed, back),
                _ => Header::Node(node),
            }
        }
        Fields { copy: Some(copy), .. } => Header::Copy(copy),
        _ => return Err(NotAnEnvelope::Unknown),
    };
    Ok((header, bytes.slice(8 + length..)))
}

/// Envelopes as one payload: a single one as it is.
pub(super) fn pack<'a>(mut envelopes: impl ExactSizeIterator<Item = &'a Bytes> + Clone) -> Bytes {
    if envelopes.len() == 1 {
        return envelopes.next().cloned().unwrap_or_default();
    }
    let length: usize = envelopes.clone().map(|envelope| 4 + envelope.len()).sum();
    let mut out = BytesMut::with_capacity(LOT.len() + length);
    out.put_slice(&LOT);
    for envelope in envelopes {
        out.put_u32(envelope.len() as u32);
        out.put_slice(envelope);
    }
    out.freeze()
}

/// The envelopes of a payload; itself, if it is no several. What is cut off is left out, and damaged.
pub(super) fn unpack(payload: &Bytes) -> Vec<Bytes> {
    let Some(mut rest) = payload.strip_prefix(&LOT) else { return vec![payload.clone()] };
    let mut envelopes = Vec::new();
    while !rest.is_empty() {
        let split = rest.split_first_chunk().map(|(length, rest)| (u32::from_be_bytes(*length) as usize, rest));
        let Some((envelope, behind)) = split.and_then(|(length, rest)| rest.split_at_checked(length)) else {
            envelopes.push(payload.slice_ref(rest));
            break;
        };
        envelopes.push(payload.slice_ref(envelope));
        rest = behind;
    }
    envelopes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_sealed_is_opened() {
        let back = Back { to: "7f0000010b54".parse().unwrap(), id: 17 };
        let part = RawValue::from_string(r#"{"ungroup":{"group":"g"}}"#.to_owned()).unwrap();
        let sealed = seal(Header::Do(Do { part, back: Some(back), until: Some(5) }), b"hello");
        assert!(is_sealed(&sealed));
        let (header, message) = open(&sealed).unwrap();
        let Header::Do(Do { part, back, until }) = header else { panic!("{header:?}") };
        assert_eq!((part.get(), until, &message[..]), (r#"{"ungroup":{"group":"g"}}"#, Some(5), &b"hello"[..]));
        assert_eq!(back.map(|back| (back.to.to_string(), back.id)), Some(("7f0000010b54".to_owned(), 17)));
        assert!(matches!(open(&seal(Header::Beat("x".to_owned()), b"")), Ok((Header::Beat(_), _))));
    }

    #[test]
    fn several_that_were_packed_are_unpacked_and_one_is_itself() {
        let one = seal(Header::Beat("x".to_owned()), b"");
        let other = seal(Header::Node("n".to_owned()), b"hello");
        assert_eq!(pack([&one].into_iter()), one);
        assert_eq!(unpack(&one), std::slice::from_ref(&one));
        let both = pack([&one, &other].into_iter());
        assert!(!is_sealed(&both));
        assert_eq!(unpack(&both), [one.clone(), other]);
        for cut in LOT.len() + 1..both.len() {
            let envelopes = unpack(&both.slice(..cut));
            let whole = envelopes.iter().filter(|envelope| open(envelope).is_ok()).count();
            assert_eq!(whole, usize::from(cut >= LOT.len() + 4 + one.len()), "cut at {cut}");
        }
    }

    #[test]
    fn a_newer_kind_is_told_from_garbage() {
        let raw = |header: &str| {
            let mut out = MAGIC.to_vec();
            out.extend((header.len() as u32).to_be_bytes());
            out.extend(header.as_bytes());
            Bytes::from(out)
        };
        assert_eq!(open(&raw(r#"{"dance":1}"#)).unwrap_err(), NotAnEnvelope::Unknown);
        for damaged in [raw("{"), raw("7"), Bytes::from_static(&MAGIC), Bytes::from_static(b"\0mg1\xff\xff\xff\xff")] {
            assert_eq!(open(&damaged).unwrap_err(), NotAnEnvelope::Damaged);
        }
        assert!(matches!(open(&raw(r#"{"beat":"x","more":2}"#)), Ok((Header::Beat(_), _))));
        // Whoever wants to tail in a way that is not known here only says its name.
        let tail = |tail: &str| {
            let back = r#"{"to":"7f0000010b54","id":1}"#;
            open(&raw(&format!(r#"{{"node":"n","tail":{tail},"back":{back}}}"#))).unwrap().0
        };
        assert!(matches!(tail(r#"{"uid":"42"}"#), Header::Tail(..)));
        for unknown in [r#"{"session":"x"}"#, "7", r#"{"uid":""}"#] {
            assert!(matches!(tail(unknown), Header::Node(node) if node == "n"), "{unknown}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), magic: bool) {
            let bytes = if magic { [&MAGIC[..], &bytes].concat() } else { bytes };
            drop(open(&bytes.clone().into()));
            drop(unpack(&[&LOT[..], &bytes].concat().into()));
        }
    }
}
