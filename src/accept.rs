//! What all listeners share: how they are bound, the size of a request's head, and what happens when `accept` fails.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::time::Instant;

use crate::metrics::Metrics;

/// The cause needs time to go away.
const PAUSE: Duration = Duration::from_millis(50);

/// What goes on failing is said this often.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The largest request head, bytes; beyond it hyper answers 431.
pub(crate) const MAX_HEAD: usize = 16 * 1024;
/// The most header lines of a request; beyond it hyper answers 431.
pub(crate) const MAX_HEADERS: usize = 100;

/// Connections that may wait to be accepted; a whole cluster's clients may come back at once.
const BACKLOG: i32 = 4096;

/// Binds with a backlog fit for many clients; `SO_REUSEADDR`, as a restarted node wants its port back at once. What is
/// accepted has `TCP_NODELAY` from it: else a handshake or a small answer could wait for a delayed acknowledgement.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// So long what is written to a peer may stay unread.
pub(crate) const UNREAD: Duration = Duration::from_mins(1);

/// A peer that has been silent for so long is asked by the kernel whether it is there, as by PHP.
const KEEP_ALIVE: Duration = Duration::from_secs(55);

/// The kernel finds out that a peer is gone, where nobody else does.
pub(crate) fn keep_alive(socket: &SockRef<'_>) -> io::Result<()> {
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(Duration::from_secs(10)).with_retries(3);
    socket.set_tcp_keepalive(&keep_alive)
}

/// The failures of one listener: descriptors or memory ran out. The loop waits a moment and goes on, for ever; it is
/// counted each time, and said now and then.
#[derive(Default)]
pub(crate) struct AcceptFailures {
    said: Option<Instant>,
}

impl AcceptFailures {
    pub(crate) async fn wait(&mut self, error: &io::Error, metrics: &Metrics) {
        tokio::time::sleep(self.note(error, metrics)).await;
    }

    /// The same for a loop that has other things to do; returns when to try again.
    pub(crate) fn note(&mut self, error: &io::Error, metrics: &Metrics) -> Duration {
        metrics.accept_errors.inc();
        if self.said.is_none_or(|said| said.elapsed() > SAY_AGAIN) {
            self.said = Some(Instant::now());
            tracing::warn!(%error, "cannot accept connections");
        }
        PAUSE
    }
}
