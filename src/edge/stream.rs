//! One connection of `GatewayWorker`'s `text`, `frame` or `tcp` protocol: the task that owns its socket.
//!
//! There is no handshake, and no close frame: a connection begins when it is accepted, and what would be said in a close
//! frame is only counted and told.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::time::timeout;

use super::Edge;
use super::connection::{self, CLOSE_TIME, End, Saying};
use crate::access::Place;
use crate::client::Client;
use crate::event::Request;
use crate::gateway::Gateway;
use crate::message::{Close, Protocol};

/// Bytes that one read takes on `tcp`, as in PHP (`TcpConnection::READ_BUFFER_SIZE`): a message there is no larger.
const READ: usize = 87_380;

/// And where they hold many messages: then others have their turn.
const READ_MANY: usize = 4096;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Takes a client over as its socket was accepted.
pub(super) fn spawn(edge: &Arc<Edge>, client: Arc<Client>, place: Option<Box<Place>>) {
    edge.connections.spawn(own(Arc::clone(edge), client, place));
}

/// The life of a client, from the hub's first word of it to the last.
async fn own(edge: Arc<Edge>, client: Arc<Client>, _place: Option<Box<Place>>) {
    let ip = client.arrival().peer.ip().to_canonical();
    let Ok(admission) = Box::pin(edge.admit(&client, || Request::bare(ip), None)).await else {
        // There is no way to say why.
        client.destroy();
        return client.release();
    };
    let (gateway, settings) = (Arc::clone(&edge.gateway), edge.connection);
    drop(edge);
    if !connection::begin(&gateway, &client, false, admission).await {
        return;
    }
    let (protocol, most) = (client.protocol(), settings.max_message_size);
    let mut cutter = Cutter { protocol, most, unfinished: BytesMut::new() };
    let mut saying = Saying::new(settings.max_messages_per_second);
    let talk = std::future::poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| poll_talk(cx, &gateway, &client, &mut cutter, &mut saying, scratch))
    });
    let end = connection::talk(&client, talk).await;
    Box::pin(connection::end(&gateway, &client, end, finish(&client))).await;
}

fn poll_talk(
    cx: &mut Context<'_>,
    gateway: &Gateway,
    client: &Client,
    cutter: &mut Cutter,
    saying: &mut Saying,
    scratch: &mut [u8],
) -> Poll<End> {
    if let Poll::Ready(end) = connection::poll_ended(cx, client) {
        return Poll::Ready(end);
    }
    if let Some(end) = ready!(saying.poll_said(cx, gateway, client)) {
        return Poll::Ready(end);
    }
    let most = if client.protocol() == Protocol::Tcp { READ } else { READ_MANY };
    let read = scratch.get_mut(..most).unwrap_or_default();
    let Ok(length @ 1..) = ready!(client.poll_read(cx, read)) else { return Poll::Ready(End::Lost) };
    let said = cutter.cut(read.get(..length).unwrap_or_default(), |message| {
        saying.say(gateway, client, Bytes::copy_from_slice(message), false);
    });
    if let Err(close) = said {
        saying.end(close);
    }
    // Others shall have their turn; this one comes again.
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Gets out what is queued, and ends the socket without a reset.
async fn finish(client: &Client) {
    if client.is_gone() {
        return;
    }
    if timeout(CLOSE_TIME, std::future::poll_fn(|cx| client.poll_flushed(cx))).await.is_err() {
        client.reset();
        return;
    }
    client.finish_writing();
    connection::linger(client).await;
}

/// Cuts what a client says into messages.
pub(super) struct Cutter {
    pub(super) protocol: Protocol,
    /// The largest message, bytes.
    pub(super) most: usize,
    /// The beginning of a message whose end has not come.
    pub(super) unfinished: BytesMut,
}

impl Cutter {
    /// Takes what one read brought, and yields each message that it completes.
    pub(super) fn cut(&mut self, mut read: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), Close> {
        match self.protocol {
            Protocol::WebSocket | Protocol::Tcp => each(read),
            Protocol::Text => {
                while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
                    let (line, rest) = read.split_at(end);
                    self.unfinished.extend_from_slice(line);
                    self.is_small_line()?;
                    let trailing = self.unfinished.iter().rev().take_while(|byte| **byte == b'\r').count();
                    self.unfinished.truncate(self.unfinished.len() - trailing);
                    each(&std::mem::take(&mut self.unfinished));
                    read = rest.get(1..).unwrap_or_default();
                }
                self.unfinished.extend_from_slice(read);
                self.is_small_line()?;
            }
            Protocol::Frame => {
                self.unfinished.extend_from_slice(read);
                let mut cut = false;
                while let Some(length) = self.unfinished.first_chunk::<4>() {
                    let length = u32::from_be_bytes(*length) as usize;
                    let Some(payload) = length.checked_sub(4) else { return Err(Close::PROTOCOL) };
                    self.is_small(payload)?;
                    if self.unfinished.len() < length {
                        break;
                    }
                    let mut frame = self.unfinished.split_to(length);
                    frame.advance(4);
                    each(&frame);
                    cut = true;
                }
                if cut {
                    // The rest is small, and shall not keep the memory of what was before it.
                    self.unfinished = BytesMut::from(&*self.unfinished);
                }
            }
        }
        Ok(())
    }

    /// The last byte may belong to the line's end. Only one: where more do, it must not matter whether the newline has come.
    fn is_small_line(&self) -> Result<(), Close> {
        self.is_small(self.unfinished.len() - usize::from(self.unfinished.ends_with(b"\r")))
    }

    fn is_small(&self, length: usize) -> Result<(), Close> {
        if length > self.most { Err(Close::TOO_BIG) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(protocol: Protocol, reads: &[&[u8]]) -> (Vec<Vec<u8>>, Result<(), Close>) {
        let mut cutter = Cutter { protocol, most: 16, unfinished: BytesMut::new() };
        let mut messages = Vec::new();
        for read in reads {
            if let Err(close) = cutter.cut(read, |message| messages.push(message.to_vec())) {
                return (messages, Err(close));
            }
        }
        (messages, Ok(()))
    }

    #[test]
    fn lines_lose_their_ends_and_nothing_else() {
        let (lines, end) = cut(Protocol::Text, &[b"a\r\n b \n\n\r\r\nunfini", b"shed\nx\ry\n"]);
        let expected: [&[u8]; 6] = [b"a", b" b ", b"", b"", b"unfinished", b"x\ry"];
        assert_eq!((lines, end), (expected.map(<[u8]>::to_vec).to_vec(), Ok(())));
    }

    #[test]
    fn what_is_too_big_or_no_frame_ends_it() {
        assert_eq!(cut(Protocol::Text, &[b"0123456789abcdef\n"]).0.len(), 1);
        assert_eq!(cut(Protocol::Text, &[b"0123456789abcdef\r", b"\n"]).0.len(), 1);
        // Of what ends a line one byte is no part of the message; more count, wherever reads cut it.
        for reads in [&[&b"0123456789abcdef\r\r\n"[..]][..], &[b"0123456789abcdef\r\r", b"\n"]] {
            assert_eq!(cut(Protocol::Text, reads), (vec![], Err(Close::TOO_BIG)));
        }
        assert_eq!(cut(Protocol::Text, &[b"ok\n0123456789abcdefg"]), (vec![b"ok".to_vec()], Err(Close::TOO_BIG)));
        assert_eq!(cut(Protocol::Frame, &[&[0, 0, 0, 4, 0, 0, 0, 5, b'x']]).0, [&b""[..], b"x"]);
        assert_eq!(cut(Protocol::Frame, &[&21_u32.to_be_bytes()]).1, Err(Close::TOO_BIG));
        for length in 0..4_u32 {
            assert_eq!(cut(Protocol::Frame, &[&length.to_be_bytes()]).1, Err(Close::PROTOCOL));
        }
        assert_eq!(cut(Protocol::Tcp, &[&[7; 100]]).0, [[7; 100].to_vec()]);
    }

    proptest! {
        #[test]
        fn wherever_reads_cut_it_the_messages_are_the_same(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..=16), 0..20),
            piece in 1..40_usize,
        ) {
            for protocol in [Protocol::Text, Protocol::Frame] {
                let messages: Vec<Vec<u8>> = messages
                    .iter()
                    .map(|message| match protocol {
                        Protocol::Text => message.iter().copied().filter(|byte| !b"\r\n".contains(byte)).collect(),
                        _ => message.clone(),
                    })
                    .collect();
                let sent: Vec<u8> = messages
                    .iter()
                    .flat_map(|message| crate::message::Message::binary(message).encoded(protocol).unwrap().to_vec())
                    .collect();
                let reads: Vec<&[u8]> = sent.chunks(piece).collect();
                prop_assert_eq!(cut(protocol, &reads), (messages, Ok(())));
            }
        }
    }
}
