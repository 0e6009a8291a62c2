//! The door for PHP: unmodified `GatewayWorker` applications find here what they know.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `inner` | the inner listener: who is connected, in which order what they say is done |
//! | `workers` | who hears of which client, and what |
//! | `ready` | the order in which sockets have something to say |
//! | `commands` | what each command does, and its answer |
//! | `link` | what is written to an inner connection |
//! | `packet` | packets of the inner protocol |
//! | `ext` | JSON in packets |
//! | `serialize` | PHP's `serialize()` |
//! | `request` | what workers learn of a WebSocket handshake |
//! | `session` | a PHP session as JSON, and back |
//!
//! PHP's end asks every node itself, and puts the answers together; so what is done here is done with this node's clients
//! alone, and nothing is passed on.

mod commands;
mod ext;
mod inner;
mod link;
pub mod packet;
mod ready;
mod request;
pub mod serialize;
pub mod session;
mod workers;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::{LanListen, PhpConfig};
use crate::gateway::Gateway;
use crate::id::LanAddress;
use commands::Commands;
use inner::Inner;
pub use workers::Workers;

/// Where the inner listener is bound: it moves with the LAN address.
pub struct Entrance {
    config: PhpConfig,
    bound: Mutex<Option<SocketAddr>>,
    listeners: Arc<Listeners>,
}

/// Inner listeners as they are bound: the last one counts.
#[derive(Default)]
pub struct Listeners {
    bound: Mutex<Option<TcpListener>>,
    changed: Notify,
}

impl Listeners {
    async fn next(&self) -> TcpListener {
        loop {
            let bound = self.bound.lock().take();
            match bound {
                Some(listener) => return listener,
                None => self.changed.notified().await,
            }
        }
    }
}

/// Nothing can listen there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct NotOpen {
    /// The setting that says where.
    pub variable: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    pub source: io::Error,
}

impl NotOpen {
    /// Whether it may be possible at another port of the LAN address.
    pub fn is_port_taken(&self) -> bool {
        self.variable == "MOONGATE_LAN_PORT" && self.source.kind() == io::ErrorKind::AddrInUse
    }
}

impl Entrance {
    /// An entrance that is not open yet, and what comes of it.
    pub fn new(config: PhpConfig) -> (Self, Arc<Listeners>) {
        let listeners = Arc::<Listeners>::default();
        (Self { config, bound: Mutex::default(), listeners: Arc::clone(&listeners) }, listeners)
    }

    /// Where it is.
    pub fn address(&self) -> Option<SocketAddr> {
        *self.bound.lock()
    }

    /// Listens for a node of this LAN address, as the settings say; does nothing where it does so already.
    pub fn open(&self, lan: LanAddress) -> Result<(), NotOpen> {
        let Some(address) = self.config.lan_listen(lan) else { return Ok(()) };
        let mut bound = self.bound.lock();
        if *bound == Some(address) {
            return Ok(());
        }
        let variable = match self.config.lan_listen {
            LanListen::At(_) => "MOONGATE_LAN_LISTEN",
            _ => "MOONGATE_LAN_PORT",
        };
        let listener = crate::accept::listen(address);
        let listener = listener.map_err(|source| NotOpen { variable, address, source })?;
        tracing::info!(php = %address, "listening");
        *bound = Some(address);
        *self.listeners.bound.lock() = Some(listener);
        self.listeners.changed.notify_one();
        Ok(())
    }
}

/// Serves PHP at whatever address the node has, until the node stops.
pub async fn serve(listeners: Arc<Listeners>, gateway: Arc<Gateway>, workers: Arc<Workers>, config: PhpConfig) {
    let commands = Arc::new(Commands::new(gateway));
    let mut listener = listeners.next().await;
    loop {
        let inner = match Inner::new(listener, Arc::clone(&commands), Arc::clone(&workers), config.secret_key.clone()) {
            Ok(inner) => inner,
            Err(error) => {
                tracing::error!(%error, "no door for PHP");
                return;
            }
        };
        tokio::select! {
            () = inner.run() => return,
            moved = listeners.next() => listener = moved,
        }
    }
}
