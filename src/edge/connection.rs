//! What all connections have in common, whatever their clients speak: how they begin, and the tail that runs whatever ends
//! them: the client leaves the hub, then its close is told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::access::Rate;
use crate::client::{Arrival, Client, LetGo};
use crate::gateway::{Admission, Gateway};
use crate::id::ClientId;
use crate::message::{Close, Protocol};

/// So long we try to get out what is queued and the close frame, and wait for the client's own.
pub(super) const CLOSE_TIME: Duration = Duration::from_secs(5);

/// After the last byte the socket is read to its end for so long; closed with input unread, it would be reset, and the
/// reset would eat the close code.
const LINGER: Duration = Duration::from_secs(1);

/// How a conversation ended.
pub(super) enum End {
    /// The peer's close frame. The answer goes out when the socket is next polled: after the client has left.
    Peer(Close),
    /// We are closing it.
    Ours,
    /// The peer broke the protocol, or does not read: it is told so, where that can be said.
    Violation(Close),
    /// No close frame came, and none can go.
    Lost,
}

/// A client over a socket that has connected to this port. Nobody, to be refused, while this node has no place among the
/// others.
pub(super) fn client(
    gateway: &Gateway,
    protocol: Protocol,
    (socket, peer): (TcpStream, SocketAddr),
    port: u16,
) -> Arc<Client> {
    let id = gateway.next_client_id().unwrap_or(ClientId::NOBODY);
    let connected_at = jiff::Timestamp::now().as_millisecond().unsigned_abs();
    Client::new(id, Arrival { peer, port, connected_at }, protocol, socket, gateway.send_limit())
}

/// The client is there, as a guest until now or not at all; false when this node stops.
pub(super) async fn begin(
    gateway: &Gateway,
    client: &Arc<Client>,
    is_guest: bool,
    admission: Option<Box<Admission>>,
) -> bool {
    let begun = Box::pin(gateway.connected(Arc::clone(client), is_guest, admission)).await.is_ok();
    if !begun {
        client.release();
    }
    begun
}

/// Brings what a client says to whoever listens. What is not taken at once is waited for before more is read.
pub(super) struct Saying {
    /// How much it may say; none: as it likes.
    rate: Option<Box<Rate>>,
    /// What one read has brought beyond that; each with whether it is binary.
    waiting: VecDeque<(Bytes, bool)>,
    taking: Option<BoxFuture<'static, ()>>,
    /// What comes of it when all is said.
    end: Option<Close>,
}

impl Saying {
    pub(super) fn new(per_second: Option<NonZeroU32>) -> Self {
        let rate = per_second.map(|per_second| Box::new(Rate::new(per_second, Instant::now())));
        Self { rate, waiting: VecDeque::new(), taking: None, end: None }
    }

    /// One more of what it may do so many times in a second. Beyond that it is its end, behind what it has said.
    pub(super) fn count(&mut self) {
        if self.rate.as_mut().is_some_and(|rate| !rate.take(Instant::now())) {
            self.end(Close::TOO_MANY);
        }
    }

    pub(super) fn say(&mut self, gateway: &Gateway, client: &Client, message: Bytes, is_binary: bool) {
        self.count();
        if self.end.is_some() {
            return;
        }
        client.note_heard();
        gateway.received();
        if !gateway.hears() {
            return;
        }
        if self.taking.is_some() {
            self.waiting.push_back((message, is_binary));
        } else {
            self.taking = gateway.hub().said(client.id(), message, is_binary);
        }
    }

    /// The client has said something wrong behind all that.
    pub(super) fn end(&mut self, close: Close) {
        self.end = Some(close);
    }

    /// Ready when all is taken; with an end, if that was its last word.
    pub(super) fn poll_said(&mut self, cx: &mut Context<'_>, gateway: &Gateway, client: &Client) -> Poll<Option<End>> {
        loop {
            if let Some(taking) = &mut self.taking {
                let taken = taking.as_mut().poll(cx);
                client.hold_back(taken.is_pending());
                ready!(taken);
                self.taking = None;
            }
            let Some((message, is_binary)) = self.waiting.pop_front() else { break };
            self.taking = gateway.hub().said(client.id(), message, is_binary);
        }
        Poll::Ready(self.end.take().map(End::Violation))
    }
}

/// Has it talk; a panic of ours is its end, too.
pub(super) async fn talk(client: &Client, talk: impl Future<Output = End>) -> End {
    AssertUnwindSafe(talk).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(client_id = %client.id(), "a connection's task panicked");
        client.destroy();
        End::Lost
    })
}

/// Ready when this side ends it.
pub(super) fn poll_ended(cx: &mut Context<'_>, client: &Client) -> Poll<End> {
    ready!(client.poll_ended(cx));
    // Unless the hub has closed it already, which then goes first.
    let slow = client.has_overflowed() && client.is_open();
    Poll::Ready(if slow { End::Violation(Close::SLOW) } else { End::Ours })
}

/// The tail. `finish` gets out what is queued, and ends the socket.
pub(super) async fn end(gateway: &Gateway, client: &Client, end: End, finish: impl Future<Output = ()>) {
    let violation = matches!(end, End::Violation(_));
    let close = match end {
        End::Peer(close) | End::Violation(close) => close,
        End::Ours | End::Lost => client.our_close().unwrap_or(Close::LOST),
    };
    // First it leaves: whoever sees its end finds that the client has left.
    let let_go = gateway.leave(client, close.clone()).await;
    if violation {
        client.close(None, close);
    }
    let told = async {
        // A stopping node's hub answers no more; then nobody listens either.
        if let Ok(LetGo { close, departed }) = let_go.map(|let_go| *let_go) {
            gateway.ended(&close);
            if let Some(departed) = departed {
                gateway.departed(&departed).await;
            }
        }
    };
    // That is told without waiting for a slow peer.
    tokio::join!(told, finish);
    client.release();
}

/// Reads what a peer still says. One that goes on talking is cut all the same.
pub(super) async fn linger(client: &Client) {
    let linger = timeout(LINGER, async {
        let mut rest = [0; 256];
        while let Ok(1..) = std::future::poll_fn(|cx| client.poll_read(cx, &mut rest)).await {}
    });
    drop(linger.await);
}
