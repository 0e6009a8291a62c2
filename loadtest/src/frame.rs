//! WebSocket frames (RFC 6455), as far as a tester needs them: reading what a server sends, writing either side's.

/// Opcode of a text frame.
pub(crate) const TEXT: u8 = 1;
/// Opcode of a binary frame.
pub(crate) const BINARY: u8 = 2;
/// Opcode of a close frame.
pub(crate) const CLOSE: u8 = 8;
/// Opcode of a ping.
pub(crate) const PING: u8 = 9;
/// Opcode of a pong.
pub(crate) const PONG: u8 = 10;

/// One frame at the front of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// Low four bits of the first byte.
    pub(crate) opcode: u8,
    /// As sent; servers do not mask.
    pub(crate) payload: &'a [u8],
    /// What follows the frame in the buffer.
    pub(crate) rest: &'a [u8],
}

/// What is at the front of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Front<'a> {
    /// A whole frame.
    Whole(Frame<'a>),
    /// The beginning of one, or nothing.
    Partial,
    /// Something that a gateway never sends to us: a masked, fragmented or compressed frame.
    Foreign,
}

/// Looks at the front of `buffer` without copying.
pub(crate) fn front(buffer: &[u8]) -> Front<'_> {
    let Some((&[first, second], rest)) = buffer.split_first_chunk() else {
        return Front::Partial;
    };
    if first & 0xf0 != 0x80 || first == 0x80 || second & 0x80 != 0 {
        return Front::Foreign;
    }
    let (length, rest) = match second {
        126 => match rest.split_first_chunk() {
            Some((bytes, rest)) => (u64::from(u16::from_be_bytes(*bytes)), rest),
            None => return Front::Partial,
        },
        127 => match rest.split_first_chunk() {
            Some((bytes, rest)) => (u64::from_be_bytes(*bytes), rest),
            None => return Front::Partial,
        },
        short => (u64::from(short), rest),
    };
    let Ok(length) = usize::try_from(length) else {
        return Front::Foreign;
    };
    match rest.split_at_checked(length) {
        Some((payload, rest)) => Front::Whole(Frame { opcode: first & 0x0f, payload, rest }),
        None => Front::Partial,
    }
}

/// Appends a frame as a server sends it, unmasked.
pub(crate) fn from_server(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    head(out, opcode, payload.len(), 0);
    out.extend_from_slice(payload);
}

/// Appends a frame as a client sends it; its mask is zero, which leaves the payload as it is.
pub(crate) fn from_client(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    head(out, opcode, payload.len(), 0x80);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

fn head(out: &mut Vec<u8>, opcode: u8, length: usize, mask: u8) {
    out.push(0x80 | opcode);
    if length < 126 {
        out.push(mask | length as u8);
    } else if let Ok(length) = u16::try_from(length) {
        out.push(mask | 0x7e);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(mask | 0x7f);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_whole_and_cut() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 200_000] {
            let payload = vec![b'p'; length];
            let mut out = Vec::new();
            from_server(&mut out, TEXT, &payload);
            let end = out.len();
            out.extend_from_slice(b"next");
            let Front::Whole(frame) = front(&out) else { panic!("length {length} was not read") };
            assert_eq!((frame.opcode, frame.payload, frame.rest), (TEXT, &payload[..], &b"next"[..]));
            for cut in (0..end.min(20)).chain([end - 1]) {
                assert_eq!(front(&out[..cut]), Front::Partial, "length {length} cut at {cut}");
            }
        }
    }

    #[test]
    fn foreign_frames() {
        assert_eq!(front(&[0x01, 1, b'a']), Front::Foreign, "first of a fragmented message");
        assert_eq!(front(&[0x80, 1, b'a']), Front::Foreign, "continuation");
        assert_eq!(front(&[0xc1, 1, b'a']), Front::Foreign, "RSV1: compressed");
        let mut out = Vec::new();
        from_client(&mut out, TEXT, b"a");
        assert_eq!(front(&out), Front::Foreign, "masked");
    }

    #[test]
    fn client_frames_are_masked_with_zero() {
        let mut out = Vec::new();
        from_client(&mut out, PONG, b"hi");
        assert_eq!(out, [0x8a, 0x82, 0, 0, 0, 0, b'h', b'i']);
    }
}
