//! The message under test: what the publisher writes into each payload and what every receiver checks.
//!
//! A payload is `LT`, the topic (8 hex digits), the sequence number within the topic (8), the time of sending in
//! nanoseconds since the start of the tester (16), then `x` up to the wanted size. Fixed width and plain ASCII: it goes
//! into JSON without escapes, and reading it back costs some tens of nanoseconds.
//!
//! What is smaller than that begins with `L`, the topic (3 digits), the number (5) and the time in microseconds (7), in
//! digits of 6 bits each. The last byte of a binary message is none of a text's: by it a receiver knows which frame it wants.

use crate::Result;

/// Bytes of the fixed part.
pub(crate) const HEADER: usize = 34;
/// The same of a small message, hence the smallest of all.
const SMALL: usize = 16;
/// Ends a binary message; no UTF-8 has it.
const NO_TEXT: u8 = 0xff;

/// What the fixed part says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// The group or uid by number.
    pub(crate) topic: u32,
    /// Counts from 0 within the topic, over all rounds of a run.
    pub(crate) seq: u32,
    /// Nanoseconds since the start of the tester; in runs with a rate, the scheduled and not the actual time.
    pub(crate) sent: u64,
}

impl Header {
    /// Appends a payload of `size` bytes, as [`check_size`] allows them, to `out`.
    pub(crate) fn write(self, out: &mut Vec<u8>, size: usize) {
        let start = out.len();
        if size < HEADER {
            out.push(b'L');
            small(out, u64::from(self.topic), 3);
            small(out, u64::from(self.seq), 5);
            small(out, self.sent / 1000, 7);
            out.resize(start + size.max(SMALL), b'x');
            return;
        }
        out.extend_from_slice(b"LT");
        hex(out, u64::from(self.topic), 8);
        hex(out, u64::from(self.seq), 8);
        hex(out, self.sent, 16);
        out.resize(start + size, b'x');
    }

    /// Reads a payload that must be `size` bytes long; anything else is none of ours.
    pub(crate) fn read(payload: &[u8], size: usize) -> Option<Self> {
        if payload.len() != size {
            return None;
        }
        if size < HEADER {
            let rest = payload.strip_prefix(b"L")?;
            let (topic, rest) = rest.split_at_checked(3)?;
            let (seq, rest) = rest.split_at_checked(5)?;
            let (sent, _) = rest.split_at_checked(7)?;
            let narrow = |digits| u32::try_from(small_number(digits)?).ok();
            return Some(Self { topic: narrow(topic)?, seq: narrow(seq)?, sent: small_number(sent)? * 1000 });
        }
        let rest = payload.strip_prefix(b"LT")?;
        let (topic, rest) = rest.split_at_checked(8)?;
        let (seq, rest) = rest.split_at_checked(8)?;
        let (sent, _) = rest.split_at_checked(16)?;
        Some(Self {
            topic: u32::try_from(number(topic)?).ok()?,
            seq: u32::try_from(number(seq)?).ok()?,
            sent: number(sent)?,
        })
    }
}

/// Makes the last payload in `out` one that is no text.
pub(crate) fn make_binary(out: &mut [u8]) {
    if let Some(last) = out.last_mut() {
        *last = NO_TEXT;
    }
}

/// Whether a payload was made binary.
pub(crate) fn is_binary(payload: &[u8]) -> bool {
    payload.last() == Some(&NO_TEXT)
}

/// Refuses sizes that cannot hold the header or, as JSON in one request, would exceed the gateway's default body limit.
pub(crate) fn check_size(size: usize, per_request: usize) -> Result<()> {
    if size < SMALL {
        return Err(format!("--size {size}: a message has at least {SMALL} bytes (its checks are inside)").into());
    }
    if per_request.saturating_mul(size + 128) > 1024 * 1024 {
        return Err(format!("{per_request} messages of {size} bytes do not fit into one request of 1 MiB").into());
    }
    Ok(())
}

/// Refuses what the few digits of a small message cannot count, and binary messages without room for what makes them so.
pub(crate) fn check_form(size: usize, binary: bool, topics: usize, messages: u64) -> Result<()> {
    // some rounds of them to one topic, and the warm-up
    let (most_topics, most_messages) = (1 << 18, 1 << 26);
    if size < HEADER && (topics > most_topics || messages > most_messages) {
        let most = format!("{most_topics} groups or uids and {most_messages} messages");
        return Err(format!("--size {size}: below {HEADER} bytes at most {most}").into());
    }
    if binary && [SMALL, HEADER].contains(&size) {
        return Err(format!("--size {size}: one byte more for what is binary (its checks need all others)").into());
    }
    Ok(())
}

fn hex(out: &mut Vec<u8>, value: u64, digits: u32) {
    for place in (0..digits).rev() {
        let digit = (value >> (4 * place) & 0xf) as u8;
        out.push(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for &byte in digits {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        value = value << 4 | u64::from(digit);
    }
    Some(value)
}

/// Letters, figures and two more that JSON leaves as they are.
const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";

fn small(out: &mut Vec<u8>, value: u64, digits: u32) {
    let digit = |place| DIGITS.get((value >> (6 * place) & 63) as usize);
    out.extend((0..digits).rev().filter_map(digit));
}

fn small_number(digits: &[u8]) -> Option<u64> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'Z' => Some(byte - b'A' + 10),
        b'a'..=b'z' => Some(byte - b'a' + 36),
        b'-' => Some(62),
        b'_' => Some(63),
        _ => None,
    };
    digits.iter().try_fold(0, |value, byte| Some(value << 6 | u64::from(digit(byte)?)))
}

/// How a message relates to those that a receiver saw before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The one after the highest before: right.
    Next,
    /// Higher than everything before, with others missing in between: a gap, which late ones may fill yet.
    Ahead,
    /// Seen for the first time, but after a higher one: an order violation.
    Late,
    /// Seen before.
    Duplicate,
}

/// A receiver's memory of sequence numbers: the highest and, as bits, the 64 up to it. What arrives more than 64 late
/// counts as late, also if it is a duplicate; both are faults.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    /// One above the highest seen.
    next: u32,
    /// Bit `i` is set when `next - 1 - i` was seen.
    bits: u64,
}

impl Seen {
    /// Notes `seq` and says what it was.
    pub(crate) fn note(&mut self, seq: u32) -> Arrival {
        if seq >= self.next {
            let shift = seq - self.next + 1;
            self.bits = self.bits.checked_shl(shift).unwrap_or(0) | 1;
            self.next = seq.saturating_add(1);
            return if shift == 1 { Arrival::Next } else { Arrival::Ahead };
        }
        let Some(bit) = 1u64.checked_shl(self.next - 1 - seq) else {
            return Arrival::Late;
        };
        if self.bits & bit != 0 {
            return Arrival::Duplicate;
        }
        self.bits |= bit;
        Arrival::Late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote() {
        let header = Header { topic: 99, seq: u32::MAX, sent: 0x0123_4567_89ab_cdef };
        let mut out = b"before".to_vec();
        header.write(&mut out, 128);
        assert_eq!(out.len(), 6 + 128);
        assert_eq!(Header::read(&out[6..], 128), Some(header));
        assert!(out[6 + HEADER..].iter().all(|&byte| byte == b'x'));
    }

    #[test]
    fn refuses_what_is_not_ours() {
        let mut out = Vec::new();
        Header { topic: 1, seq: 2, sent: 3 }.write(&mut out, 64);
        assert_eq!(Header::read(&out[..63], 64), None, "truncated");
        assert_eq!(Header::read(&out, 65), None, "another size");
        out[5] = b'G';
        assert_eq!(Header::read(&out, 64), None, "not a digit");
        assert_eq!(Header::read(b"{\"type\":\"init\"}", 15), None);
        assert_eq!(Header::read(b"", 0), None);
    }

    #[test]
    fn tells_late_from_duplicate() {
        let mut seen = Seen::default();
        assert_eq!(seen.note(0), Arrival::Next);
        assert_eq!(seen.note(0), Arrival::Duplicate);
        assert_eq!(seen.note(3), Arrival::Ahead, "a gap is no violation yet");
        assert_eq!(seen.note(2), Arrival::Late);
        assert_eq!(seen.note(2), Arrival::Duplicate);
        assert_eq!(seen.note(1), Arrival::Late);
        assert_eq!(seen.note(3), Arrival::Duplicate);
        assert_eq!(seen.note(4), Arrival::Next);
    }

    #[test]
    fn forgets_after_sixty_four() {
        let mut seen = Seen::default();
        for seq in 0..200 {
            assert_eq!(seen.note(seq), Arrival::Next);
        }
        assert_eq!(seen.note(136), Arrival::Duplicate, "63 below the highest is still known");
        assert_eq!(seen.note(135), Arrival::Late);
        assert_eq!(seen.note(10_000), Arrival::Ahead);
        assert_eq!(seen.note(9_999), Arrival::Late);
    }

    #[test]
    fn small_messages_say_the_same_to_the_microsecond() {
        for (topic, seq, sent) in [(0, 0, 0), (99, 1234, 5_000), ((1 << 18) - 1, (1 << 30) - 1, 4_398_046_511_103_000)]
        {
            for size in SMALL..HEADER {
                let (header, mut out) = (Header { topic, seq, sent }, Vec::new());
                Header { sent: sent + 999, ..header }.write(&mut out, size);
                assert!(
                    out.len() == size && out.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
                );
                assert_eq!(Header::read(&out, size), Some(header));
                assert_eq!(Header::read(&out, size + 1), None, "another size");
                out[5] = b'"';
                assert_eq!(Header::read(&out, size), None, "not a digit");
            }
        }
    }

    #[test]
    fn a_binary_message_is_no_text() {
        for size in [SMALL + 1, 128] {
            let (header, mut out) = (Header { topic: 1, seq: 2, sent: 3000 }, Vec::new());
            header.write(&mut out, size);
            assert!(!is_binary(&out));
            make_binary(&mut out);
            assert!(is_binary(&out) && std::str::from_utf8(&out).is_err());
            assert_eq!(Header::read(&out, size), Some(header));
        }
    }

    #[test]
    fn what_a_message_cannot_hold_is_refused() {
        let check = |size, binary, topics, messages| check_form(size, binary, topics, messages).is_ok();
        assert!(check(16, false, 10_000, 1_000_000) && check(34, false, 1 << 20, 1 << 40) && check(35, true, 1, 1));
        assert!(!check(33, false, 1 << 20, 1) && !check(16, false, 1, 1 << 40));
        assert!(!check(16, true, 1, 1) && !check(34, true, 1, 1));
    }

    #[test]
    fn sizes() {
        assert!(check_size(15, 1).is_err());
        assert!(check_size(16, 1).is_ok());
        assert!(check_size(128, 1000).is_ok());
        assert!(check_size(1024 * 1024, 1).is_err());
    }
}
