//! The Register: tells PHP where the gateways are. Lines of JSON; see `gateways` for the list.
//!
//! And the other way round: where an application has a Register of PHP, this node announces itself there as one more
//! gateway.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout, timeout_at};
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::sync::CancellationToken;

use super::PATIENCE;
use super::gateways::Gateways;
use crate::accept::{AcceptFailures, UNREAD, keep_alive};
use crate::metrics::{Metrics, Reason};

/// The longest line, bytes.
const MAX_LINE: usize = 16 * 1024;

/// Connections at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;

/// So many of them may not have said yet who they are.
const MOST_STRANGERS: usize = 1024;

/// A Register of PHP that is away is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// And hears from us this often.
const PING: Duration = Duration::from_secs(25);

/// What a line says.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow, default)]
    address: Cow<'a, str>,
    #[serde(borrow, default)]
    secret_key: Cow<'a, str>,
}

/// Who somebody says to be.
enum Said<'a> {
    /// Whoever asks for gateways: a worker or a caller.
    Worker,
    /// A gateway, and where it is.
    Gateway(Cow<'a, str>),
    /// Nobody new.
    Ping,
}

impl<'a> Said<'a> {
    /// None of what is no line of this protocol, or does not say the key.
    fn read(line: &'a str, key: Option<&SecretString>) -> Option<Self> {
        let line: Line<'_> = serde_json::from_str(line.trim_end_matches('\r')).ok()?;
        let is_key = super::is_key(key, &line.secret_key);
        match &*line.event {
            "ping" => Some(Self::Ping),
            "worker_connect" if is_key => Some(Self::Worker),
            "gateway_connect" if is_key && is_address(&line.address) => Some(Self::Gateway(line.address)),
            _ => None,
        }
    }
}

/// Whether a line means something to a Register without a key.
#[cfg(any(test, fuzzing))]
pub(super) fn is_understood(line: &str) -> bool {
    Said::read(line, None).is_some()
}

/// Those that have not said who they are, in order of connecting.
#[derive(Default)]
struct Strangers(Mutex<BTreeMap<u64, CancellationToken>>);

impl Strangers {
    /// One more; the oldest goes where they are too many. It ends when it is cancelled.
    fn add(&self, number: u64) -> CancellationToken {
        let (stranger, mut strangers) = (CancellationToken::new(), self.0.lock());
        strangers.insert(number, stranger.clone());
        if strangers.len() > MOST_STRANGERS
            && let Some((_, oldest)) = strangers.pop_first()
        {
            oldest.cancel();
        }
        stranger
    }

    fn remove(&self, number: u64) {
        self.0.lock().remove(&number);
    }
}

/// Answers whoever connects, for ever.
pub(super) async fn serve(
    listener: TcpListener,
    gateways: Arc<Gateways>,
    key: Option<SecretString>,
    metrics: Arc<Metrics>,
) {
    let (places, strangers) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Arc::<Strangers>::default());
    let (mut connections, mut failures) = (JoinSet::new(), AcceptFailures::default());
    for number in 0.. {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                failures.wait(&error, &metrics).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (gateways, key, metrics) = (Arc::clone(&gateways), key.clone(), Arc::clone(&metrics));
        let strangers = Arc::clone(&strangers);
        connections.spawn(async move {
            let stranger = strangers.add(number);
            let known = || strangers.remove(number);
            let conversed = converse(socket, &gateways, key.as_ref(), stranger, known).await;
            known();
            if !conversed.unwrap_or(true) {
                metrics.php_refused.get_or_create(&Reason { reason: "register" }).inc();
            }
            drop(place);
        });
    }
}

/// One connection. False when it was ended, as what it said was wrong or came too late.
async fn converse(
    mut socket: TcpStream,
    gateways: &Arc<Gateways>,
    key: Option<&SecretString>,
    stranger: CancellationToken,
    known: impl Fn(),
) -> io::Result<bool> {
    keep_alive(&SockRef::from(&socket))?;
    SockRef::from(&socket).set_tcp_user_timeout(Some(UNREAD))?;
    let (reader, mut writer) = socket.split();
    let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(MAX_LINE));
    let deadline = Instant::now() + PATIENCE;
    let place = gateways.place();
    let (mut lists, mut is_known) = (None, false);
    loop {
        let line = tokio::select! {
            biased;
            list = next(&mut lists) => {
                let list = match list {
                    Some(list) => list,
                    None => gateways.line().await,
                };
                writer.write_all(list.as_bytes()).await?;
                continue;
            }
            () = stranger.cancelled(), if !is_known => return Ok(false),
            line = async {
                if is_known { Ok(lines.next().await) } else { timeout_at(deadline, lines.next()).await }
            } => line,
        };
        let line = match line {
            Ok(Some(Ok(line))) => line,
            Ok(None) => return Ok(true),
            Err(_) | Ok(Some(Err(_))) => return Ok(false),
        };
        match Said::read(&line, key) {
            Some(Said::Ping) => {}
            Some(Said::Worker) => {
                is_known = true;
                known();
                lists.get_or_insert_with(|| gateways.lines());
                writer.write_all(gateways.line().await.as_bytes()).await?;
            }
            Some(Said::Gateway(address)) => {
                is_known = true;
                known();
                place.register(&address);
            }
            None => return Ok(false),
        }
    }
}

/// The next list; none when so many were missed that the last one is to be looked up.
async fn next(lists: &mut Option<broadcast::Receiver<Arc<str>>>) -> Option<Arc<str>> {
    match lists {
        Some(lists) => match lists.recv().await {
            Ok(list) => Some(list),
            Err(broadcast::error::RecvError::Lagged(_)) => None,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Whether something may be told to others as a gateway's address: a host and a port.
fn is_address(text: &str) -> bool {
    text.len() <= 64
        && text.rsplit_once(':').is_some_and(|(host, port)| {
            let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
            !host.is_empty() && host.bytes().all(is_host) && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

/// Announces this node at a Register of PHP, for ever.
pub(super) async fn announce(register: String, gateways: Arc<Gateways>, key: Option<SecretString>) {
    let mut is_said = false;
    loop {
        let since = Instant::now();
        let why = match be_announced(&register, &gateways, key.as_ref()).await {
            Ok(()) if since.elapsed() > PATIENCE => {
                is_said = false;
                None
            }
            // So it does with a wrong key, without a word.
            Ok(()) => gateways.own().map(|_| "it ended the connection: is SECRET_KEY its secretKey?".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why
            && !std::mem::replace(&mut is_said, true)
        {
            tracing::warn!(register, why, "not announced at the Register of PHP; trying again");
        }
        sleep(AGAIN).await;
    }
}

/// Stays announced until the connection ends, or this node is elsewhere.
async fn be_announced(register: &str, gateways: &Gateways, key: Option<&SecretString>) -> io::Result<()> {
    let Some(address) = gateways.own() else { return Ok(()) };
    let mut socket = timeout(PATIENCE, TcpStream::connect(register)).await??;
    // The key is said as PHP says it: as it is.
    let key = key.map_or("", |key| key.expose_secret());
    let line = format!("{{\"event\":\"gateway_connect\", \"address\":\"{address}\", \"secret_key\":\"{key}\"}}\n");
    socket.write_all(line.as_bytes()).await?;
    tracing::debug!(register, address, "announcing at the Register of PHP");
    let (mut pings, mut looks, mut rest) = (interval(PING), interval(AGAIN), [0; 1024]);
    loop {
        tokio::select! {
            read = socket.read(&mut rest) => if read? == 0 {
                return Ok(());
            },
            _ = pings.tick() => socket.write_all(b"{\"event\":\"ping\"}\n").await?,
            _ = looks.tick() => if gateways.own().as_ref() != Some(&address) {
                return Ok(());
            },
        }
    }
}

/// Listens where no address was set: on the usual one, as soon as no other node of this machine has it.
pub(super) async fn usual(address: SocketAddr) -> TcpListener {
    let mut is_taken = false;
    loop {
        match crate::accept::listen(address).and_then(TcpListener::from_std) {
            Ok(listener) => {
                tracing::info!(register = %address, "listening for PHP");
                return listener;
            }
            Err(error) => {
                if !std::mem::replace(&mut is_taken, true) {
                    tracing::info!(register = %address, %error, "no Register here as long as another one of this machine has its address");
                }
            }
        }
        sleep(AGAIN).await;
    }
}
