//! The door for PHP: unmodified `GatewayWorker` applications find here what they know.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `inner` | the inner listener: who is connected, in which order what they say is done |
//! | `workers` | who hears of which client, and what |
//! | `ready` | the order in which sockets have something to say |
//! | `commands` | what each command does, and its answer |
//! | `register` | tells PHP where the gateways are; announces this node at a Register of PHP |
//! | `gateways` | where they are |
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
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gateways;
mod inner;
mod link;
pub mod packet;
mod ready;
mod register;
mod request;
pub mod serialize;
pub mod session;
mod workers;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::config::{LanListen, PhpConfig, RegisterListen};
use crate::gateway::Gateway;
use crate::id::LanAddress;
use commands::Commands;
use gateways::Gateways;
use inner::Inner;
pub use workers::Workers;

/// Whoever connects says who it is within this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether somebody said the right key; with none set, that is the empty one.
fn is_key(key: Option<&SecretString>, said: &str) -> bool {
    let key = key.map_or("", |key| key.expose_secret());
    said.as_bytes().ct_eq(key.as_bytes()).into()
}

/// A list that PHP has read may be as old as this.
const LAST_CALLS: Duration = Duration::from_secs(3);

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

    /// What PHP is told of a node with this LAN address; none where it is not reached under it.
    fn announced(&self, lan: LanAddress) -> Option<String> {
        let bound = self.address()?;
        let is_reached = match self.config.lan_listen {
            // Behind another address that leads here, say.
            LanListen::At(address) => !address.ip().is_loopback() || lan.ip.is_loopback(),
            _ => bound.ip() == lan.ip,
        };
        is_reached.then(|| format!("{}:{}", lan.ip, lan.port))
    }

    /// Nobody serves there any more.
    fn close(&self) {
        *self.bound.lock() = None;
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
        tracing::info!(inner = %address, "listening for PHP");
        *bound = Some(address);
        *self.listeners.bound.lock() = Some(listener);
        self.listeners.changed.notify_one();
        Ok(())
    }
}

/// The door for PHP.
pub struct Door {
    commands: Arc<Commands>,
    gateways: Arc<Gateways>,
    workers: Arc<Workers>,
    config: PhpConfig,
}

impl Door {
    /// A door that is not open yet.
    pub fn new(gateway: Arc<Gateway>, entrance: Arc<Entrance>, workers: Arc<Workers>, config: PhpConfig) -> Self {
        let gateways = Gateways::new(Arc::clone(&gateway), entrance, Arc::clone(&workers));
        Self { commands: Arc::new(Commands::new(gateway)), gateways: Arc::new(gateways), workers, config }
    }

    /// Serves PHP at whatever address the node has. `register`: where an address for it was set.
    pub async fn serve(self: Arc<Self>, inner: Arc<Listeners>, register: Option<tokio::net::TcpListener>) {
        if self.config.is_off() {
            return;
        }
        let mut tasks = JoinSet::new();
        let gateways = Arc::clone(&self.gateways);
        tasks.spawn(async move { gateways.run().await });
        for address in &self.config.registers {
            let key = self.config.secret_key.clone();
            tasks.spawn(register::announce(address.clone(), Arc::clone(&self.gateways), key));
        }
        let door = Arc::clone(&self);
        tasks.spawn(async move {
            let listener = match (register, door.config.register_listen) {
                (Some(listener), _) => listener,
                (None, RegisterListen::Usual(address)) => register::usual(address).await,
                (None, _) => return,
            };
            let metrics = door.commands.gateway.shared_metrics();
            register::serve(listener, Arc::clone(&door.gateways), door.config.secret_key.clone(), metrics).await;
        });
        self.serve_inner(&inner).await;
    }

    async fn serve_inner(&self, listeners: &Listeners) {
        let mut listener = listeners.next().await;
        loop {
            let key = self.config.secret_key.clone();
            match Inner::new(listener, Arc::clone(&self.commands), Arc::clone(&self.workers), key) {
                Ok(inner) => {
                    tokio::select! {
                        () = inner.run() => self.gateways.close(),
                        moved = listeners.next() => {
                            listener = moved;
                            continue;
                        }
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "no door for PHP");
                    self.gateways.close();
                }
            }
            listener = listeners.next().await;
        }
    }

    /// The node leaves: it is not listed any more. Whoever has read the list before still finds it for a while.
    pub async fn leave(&self) {
        self.gateways.leave();
        if self.commands.were_used() {
            tokio::time::sleep(LAST_CALLS).await;
        }
    }
}
