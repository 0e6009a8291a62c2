//! One WebSocket connection: the task that owns its socket.
//!
//! tungstenite parses what the client says; what goes out passes it by (see `client`). One poll looks at both sides.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message as Frame};

use super::connection::{self, CLOSE_TIME, End, Saying};
use super::{ConnectionSettings, Edge, LetIn};
use crate::client::Client;
use crate::gateway::Gateway;
use crate::message::Close;

/// tungstenite's read buffer. It is kept for the whole life of a connection and clients mostly say short things:
/// with the default of 128 KiB an idle connection would need seventy times its memory.
const READ_BUFFER: usize = 512;

/// What a client may say at once before others are looked at.
const READ_BATCH: usize = 64;

/// Takes a client over after its handshake; `ahead` came behind the request.
pub(super) fn spawn(edge: &Arc<Edge>, client: Arc<Client>, is_guest: bool, ahead: &Bytes, let_in: LetIn) {
    let (gateway, ahead) = (Arc::clone(&edge.gateway), ahead.to_vec());
    edge.connections.spawn(own(gateway, client, is_guest, edge.connection, ahead, let_in));
}

/// The life of a client, from the hub's first word of it to the last.
async fn own(
    gateway: Arc<Gateway>,
    client: Arc<Client>,
    is_guest: bool,
    settings: ConnectionSettings,
    ahead: Vec<u8>,
    LetIn { admission, place: _place }: LetIn,
) {
    if !connection::begin(&gateway, &client, is_guest, admission).await {
        return;
    }
    let config = Some(config(settings.max_message_size));
    let stream = WebSocketStream::from_partially_read(Io(Arc::clone(&client)), ahead, Role::Server, config);
    let mut socket = Box::pin(stream).await;

    let mut saying = Saying::new(settings.max_messages_per_second);
    let talk = std::future::poll_fn(|cx| poll_talk(cx, &gateway, &client, settings, &mut socket, &mut saying));
    let end = connection::talk(&client, talk).await;
    let goodbye = matches!(end, End::Peer(_));
    // Boxed, as is all that is awaited only at the ends of a connection's life: the task keeps room for its largest await.
    Box::pin(connection::end(&gateway, &client, end, finish(&client, &mut socket, goodbye))).await;
}

/// How the library reads and writes; messages of so many bytes at the most.
pub(super) fn config(most: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(Some(most))
        .max_frame_size(Some(most))
}

/// Gets the close frame out, waits for the peer's, and ends the socket without a reset. `goodbye`: the peer's close
/// frame has come.
async fn finish(client: &Client, socket: &mut WebSocketStream<Io>, mut goodbye: bool) {
    let mut heard_out = false;
    let handshake = std::future::poll_fn(|cx| {
        for _ in 0..READ_BATCH {
            if heard_out {
                return client.poll_flushed(cx);
            }
            match Pin::new(&mut *socket).poll_next(cx) {
                Poll::Ready(Some(Ok(frame))) => goodbye |= frame.is_close(),
                Poll::Ready(_) => heard_out = true,
                Poll::Pending => {
                    return if client.poll_flushed(cx).is_ready() && client.is_gone() {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    };
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    if client.is_gone() {
        return;
    }
    if timeout(CLOSE_TIME, handshake).await.is_err() {
        client.reset();
        return;
    }
    client.finish_writing();
    if goodbye {
        // Behind its close frame a peer says nothing (RFC 6455, 5.5.1): nothing unread is left to cause a reset.
        return;
    }
    connection::linger(client).await;
}

fn poll_talk(
    cx: &mut Context<'_>,
    gateway: &Gateway,
    client: &Client,
    settings: ConnectionSettings,
    socket: &mut WebSocketStream<Io>,
    saying: &mut Saying,
) -> Poll<End> {
    for _ in 0..READ_BATCH {
        // Each time, as reading may have filled the outbox (pongs), or ended it.
        if let Poll::Ready(end) = connection::poll_ended(cx, client) {
            return Poll::Ready(end);
        }
        if let Some(end) = ready!(saying.poll_said(cx, gateway, client)) {
            return Poll::Ready(end);
        }
        let Some(read) = ready!(Pin::new(&mut *socket).poll_next(cx)) else { return Poll::Ready(End::Lost) };
        match read {
            Ok(Frame::Text(text)) => saying.say(gateway, client, text.into(), false),
            Ok(Frame::Binary(bytes)) => saying.say(gateway, client, bytes, true),
            Ok(Frame::Pong(_)) if settings.pong_counts => client.note_heard(),
            // Each is answered: that is work, too.
            Ok(Frame::Ping(_)) => saying.count(),
            Ok(Frame::Pong(_) | Frame::Frame(_)) => {}
            Ok(Frame::Close(frame)) => {
                let close = frame.map_or(Close::new(1005, ""), |frame| Close {
                    code: frame.code.into(),
                    reason: frame.reason.as_str().to_owned().into(),
                });
                return Poll::Ready(End::Peer(close));
            }
            Err(error) => return Poll::Ready(violation(&error).map_or(End::Lost, End::Violation)),
        }
    }
    // Others shall have their turn; this one comes again.
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// What a peer that broke the protocol is told.
pub(super) fn violation(error: &tungstenite::Error) -> Option<Close> {
    use tungstenite::error::ProtocolError;
    match error {
        tungstenite::Error::Capacity(_) => Some(Close::TOO_BIG),
        tungstenite::Error::Utf8(_) => Some(Close::NOT_UTF8),
        // The ordinary abrupt end.
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        tungstenite::Error::Protocol(_) => Some(Close::PROTOCOL),
        _ => None,
    }
}

/// The client's socket as tungstenite sees it: reads are its own, writes go to the outbox.
struct Io(Arc<Client>);

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(self.0.poll_read(cx, buffer.initialize_unfilled()))?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    /// With a write buffer of 0 tungstenite writes whole frames.
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, frame: &[u8]) -> Poll<io::Result<usize>> {
        self.0.push_control(frame);
        Poll::Ready(Ok(frame.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
