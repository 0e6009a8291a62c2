//! What clients speak: the accept loops, the handshake, and the connection itself.
//!
//! Slow peers hold up nobody: the loop only accepts; TLS and request head are read in the connection's own task, under
//! one deadline. After the handshake the long-lived task is spawned anew, so that it is no larger than it needs to be.

mod connection;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod handshake;
mod stream;
pub mod tls;
mod websocket;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::{AcceptFailures, keep_alive};
use crate::access::{Access, Full, Grant, Place};
use crate::client::{Client, Handshaking};
use crate::event::{Kind, Request};
use crate::gateway::{Admission, Gateway};
use crate::id::ClientId;
use crate::message::{Close, Protocol};
use crate::metrics::Reason;
use crate::webhook::{NotAdmitted, Webhook};
use tls::Certificates;

/// The door for clients.
pub struct Edge {
    /// Where commands and clients go.
    pub gateway: Arc<Gateway>,
    /// The application, which may be asked who is let in.
    pub webhook: Option<Arc<Webhook>>,
    /// wss, when set.
    pub certificates: Option<Arc<Certificates>>,
    /// Who may connect.
    pub access: Access,
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
    /// Most messages in a second.
    pub max_messages_per_second: Option<NonZeroU32>,
}

/// A client that is let in, and its place.
struct LetIn {
    /// None where there is nothing to know.
    admission: Option<Box<Admission>>,
    /// None where places are not counted. To be kept as long as the client is there.
    place: Option<Box<Place>>,
}

impl Edge {
    /// Accepts until `closed`.
    pub async fn run(self: Arc<Self>, protocol: Protocol, listener: TcpListener) {
        let mut failures = AcceptFailures::default();
        let port = listener.local_addr().map_or(0, |address| address.port());
        loop {
            let accepted = tokio::select! {
                () = self.closed.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(arrived) if protocol != Protocol::WebSocket => self.let_in(protocol, arrived, port),
                Ok(arrived) => {
                    let edge = Arc::clone(&self);
                    self.handshakes.spawn(async move { Box::pin(edge.shake_hands(arrived, port)).await });
                }
                Err(error) => failures.wait(&error, self.gateway.metrics()).await,
            }
        }
        self.handshakes.close();
        self.handshakes.wait().await;
    }

    /// From a connection to a client, or to an end in time.
    async fn shake_hands(self: &Arc<Self>, arrived: (TcpStream, SocketAddr), port: u16) {
        let client = connection::client(&self.gateway, Protocol::WebSocket, arrived, port);
        let is_refused =
            client.id() == ClientId::NOBODY || self.gateway.lacks_listener() || self.refusing.is_cancelled();
        let is_guest = self.gateway.listens() && !is_refused;
        if is_guest && self.gateway.hub().insert(Arc::clone(&client), true, None).await.is_err() {
            return;
        }
        let handshake = tokio::time::timeout(self.handshake_timeout, self.handshake(&client, is_guest));
        let shaken = tokio::select! {
            () = self.closed.cancelled() => None,
            // Whoever listens may end it at once.
            () = std::future::poll_fn(|cx| client.poll_cut(cx)) => None,
            shaken = handshake => shaken.unwrap_or_else(|_| {
                self.refuse("timeout");
                None
            }),
        };
        if let Some((ahead, let_in)) = shaken {
            websocket::spawn(self, client, is_guest, &ahead, let_in);
            return;
        }
        if is_guest {
            // A hub that has stopped has no guests.
            self.gateway.hub().ended(client.id(), Close::LOST).await.ok();
        }
        client.release();
    }

    /// TLS and the request; what came behind it, when the connection is a WebSocket now.
    async fn handshake(self: &Arc<Self>, client: &Arc<Client>, is_guest: bool) -> Option<(Bytes, LetIn)> {
        let socket = Handshaking(Arc::clone(client));
        let Some(certificates) = &self.certificates else {
            let (_, ahead, let_in) = self.http_handshake(client, is_guest, socket).await?;
            return Some((ahead, let_in));
        };
        match certificates.accept(socket).await {
            Ok(stream) => {
                let (stream, ahead, let_in) = self.http_handshake(client, is_guest, stream).await?;
                client.speak_tls(stream.into_inner().1);
                Some((ahead, let_in))
            }
            Err(error) => {
                tracing::debug!(%error, "TLS handshake failed");
                self.refuse("tls");
                None
            }
        }
    }

    /// Without a handshake there is nothing to say to whoever is not let in.
    fn let_in(self: &Arc<Self>, protocol: Protocol, arrived: (TcpStream, SocketAddr), port: u16) {
        if self.refusing.is_cancelled() {
            self.refuse("draining");
        } else if !self.gateway.has_place() {
            self.refuse("not_ready");
        } else if self.gateway.lacks_listener() {
            self.refuse("no_worker");
        } else if let Ok(place) = self.place(arrived.1.ip())
            && keep_alive(&SockRef::from(&arrived.0)).is_ok()
        {
            let client = connection::client(&self.gateway, protocol, arrived, port);
            if client.id() == ClientId::NOBODY {
                self.refuse("not_ready");
            } else {
                stream::spawn(self, client, place);
            }
        }
    }

    /// A place for one more client from this address.
    fn place(&self, ip: IpAddr) -> Result<Option<Box<Place>>, Full> {
        let place = self.access.limits.take(ip).inspect_err(|full| {
            self.refuse(match full {
                Full::ForAll => "connections",
                Full::ForAddress => "connections_per_ip",
            });
        });
        place.map(|place| place.map(Box::new))
    }

    /// Has a client let in, by the application if that is to be asked; none where there is nothing to know.
    async fn admit(
        &self,
        client: &Client,
        request: impl FnOnce() -> Request,
        grant: Option<Grant>,
    ) -> Result<Option<Box<Admission>>, NotAdmitted> {
        let mut admission = Admission { grant, ..Admission::default() };
        let events = self.gateway.hub().events();
        if events.has(Kind::Connect) {
            let request = Arc::new(request());
            if let Some(webhook) = self.webhook.as_ref().filter(|_| events.is_for_webhook(Kind::Connect)) {
                let consent = webhook.ask(client.id(), Arc::clone(&request)).await;
                admission.consent = Some(consent.inspect_err(|_| self.refuse("webhook"))?);
            }
            admission.request = Some(request);
        } else if admission.grant.is_none() {
            return Ok(None);
        }
        Ok(Some(Box::new(admission)))
    }

    fn refuse(&self, reason: &'static str) {
        self.gateway.metrics().refused.get_or_create(&Reason { reason }).inc();
    }
}
