//! What clients speak: the accept loops, the handshake, and the connection itself.
//!
//! Slow peers hold up nobody: the loop only accepts; TLS and request head are read in the connection's own task, under
//! one deadline. After the handshake the long-lived task is spawned anew, so that it is no larger than it needs to be.

mod connection;
mod handshake;
mod stream;
pub mod tls;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::AcceptFailures;
use crate::gateway::Gateway;
use crate::message::Protocol;
use crate::metrics::Reason;
use tls::Certificates;

/// A client without WebSocket that has been silent for so long is asked by the kernel whether it is there, as by PHP.
const KEEP_ALIVE: Duration = Duration::from_secs(55);

/// The door for clients.
pub struct Edge {
    /// Where commands and clients go.
    pub gateway: Arc<Gateway>,
    /// wss, when set.
    pub certificates: Option<Arc<Certificates>>,
    /// For TLS and the request head.
    pub handshake_timeout: Duration,
    /// What a connection may do.
    pub connection: ConnectionSettings,
    /// The task of every client's connection.
    pub connections: TaskTracker,
    /// The task of every connection that is none yet; they end with the loop.
    pub handshakes: TaskTracker,
    /// Handshakes are answered with 503 from then on.
    pub refusing: CancellationToken,
    /// The loop ends.
    pub closed: CancellationToken,
}

/// What a connection may do, and what counts as its sign of life.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionSettings {
    /// Largest message from a client, bytes.
    pub max_message_size: usize,
    /// A pong is a sign of life: the heartbeat sends WebSocket pings.
    pub pong_counts: bool,
}

impl Edge {
    /// Accepts until `closed`.
    pub async fn run(self: Arc<Self>, protocol: Protocol, listener: TcpListener) {
        let mut failures = AcceptFailures::default();
        loop {
            let accepted = tokio::select! {
                () = self.closed.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, _)) if protocol != Protocol::WebSocket => self.let_in(protocol, socket),
                Ok((socket, _)) => {
                    let edge = Arc::clone(&self);
                    self.handshakes.spawn(async move {
                        let handshake =
                            tokio::time::timeout(edge.handshake_timeout, Box::pin(edge.shake_hands(socket)));
                        tokio::select! {
                            () = edge.closed.cancelled() => {}
                            shaken = handshake => if shaken.is_err() {
                                edge.refuse("timeout");
                            }
                        }
                    });
                }
                Err(error) => failures.wait(&error, self.gateway.metrics()).await,
            }
        }
        self.handshakes.close();
        self.handshakes.wait().await;
    }

    async fn shake_hands(self: &Arc<Self>, socket: TcpStream) {
        // Before TLS: without it a handshake can wait for a delayed acknowledgement.
        if socket.set_nodelay(true).is_err() {
            return;
        }
        let shaken = match &self.certificates {
            None => self.http_handshake(socket).await.map(|(socket, ahead)| (socket, None, ahead)),
            Some(certificates) => match certificates.accept(socket).await {
                Ok(stream) => self.http_handshake(stream).await.map(|(stream, ahead)| {
                    let (socket, session) = stream.into_inner();
                    (socket, Some(Box::new(session)), ahead)
                }),
                Err(error) => {
                    tracing::debug!(%error, "TLS handshake failed");
                    self.refuse("tls");
                    None
                }
            },
        };
        if let Some((socket, session, ahead)) = shaken {
            websocket::spawn(self, socket, session, &ahead);
        }
    }

    /// Without a handshake there is nothing to say to whoever is not let in.
    fn let_in(self: &Arc<Self>, protocol: Protocol, socket: TcpStream) {
        if self.refusing.is_cancelled() {
            self.refuse("draining");
        } else if !self.gateway.has_place() {
            self.refuse("not_ready");
        } else if socket.set_nodelay(true).is_ok() && keep_alive(&socket).is_ok() {
            stream::spawn(self, protocol, socket);
        }
    }

    fn refuse(&self, reason: &'static str) {
        self.gateway.metrics().refused.get_or_create(&Reason { reason }).inc();
    }
}

/// The kernel finds out that a peer is gone, where no heartbeat does.
fn keep_alive(socket: &TcpStream) -> std::io::Result<()> {
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(Duration::from_secs(10)).with_retries(3);
    SockRef::from(socket).set_tcp_keepalive(&keep_alive)
}
