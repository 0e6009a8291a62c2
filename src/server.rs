//! Puts the rooms together: bind, run, stop in order. Knows no process: listeners come from the settings, and "stop"
//! is a token, so a test runs two whole nodes side by side.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{Access, Limits};
use crate::cluster::{CannotListen, Cluster, Readiness, Refused, Standing};
use crate::config::{Config, RegisterListen, StreamListener, WebhookConfig};
use crate::edge::tls::{Certificates, TlsError};
use crate::edge::{ConnectionSettings, Edge};
use crate::event::{Events, Origin};
use crate::gateway::Gateway;
use crate::heartbeat::Tick;
use crate::http::{self, Api};
use crate::hub::{Hub, Listener, Others};
use crate::id::LanAddress;
use crate::message::{Close, Message, Protocol};
use crate::metrics::Metrics;
use crate::php::{self, Entrance, Workers};
use crate::tasks::Runner;
use crate::trace::Tracer;
use crate::trace::otlp::Exporter;
use crate::vitals::Monitor;
use crate::webhook::{Caller, Webhook};

/// The first part of a drain, in which balancers notice, is at most this long.
const NOTICE: Duration = Duration::from_secs(5);

/// Clients are closed in steps of this length while draining.
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// What is still under way on the API when everything else has ended has so long.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Redis may take so long to take this node's leave.
const LEAVE: Duration = Duration::from_secs(2);

/// The node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("{variable}: cannot listen on {address}: {source}")]
    Bind {
        /// The setting.
        variable: &'static str,
        /// Its value.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No client can be made that calls the webhook.
    #[error("MOONGATE_WEBHOOK_URL: {0}")]
    Webhook(reqwest::Error),
    /// No client can be made that exports traces.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT: {0}")]
    Traces(reqwest::Error),
}

/// The node cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// A part of it ended that must not end: a bug. What it held is lost; only a new start helps.
    #[error("a shard of the hub ended; the node cannot go on")]
    Broken,
    /// Among the other nodes there is no place for it: a setting has to change.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// A node whose listeners are bound.
pub struct Server {
    config: Config,
    clients: TcpListener,
    api: TcpListener,
    clients_address: SocketAddr,
    api_address: SocketAddr,
    /// Where clients connect without WebSocket.
    streams: Vec<(Protocol, TcpListener, SocketAddr)>,
    /// First part of the client ids of a node that is alone; among others it is found with Redis.
    lan: LanAddress,
    entrance: Arc<Entrance>,
    inner: Arc<php::Listeners>,
    /// Where PHP asks for gateways, if an address for that was set.
    register: Option<(TcpListener, SocketAddr)>,
    certificates: Option<Certificates>,
    /// The application's own address.
    webhook: Option<(Arc<Caller>, WebhookConfig)>,
    tracer: Tracer,
    /// Where traces go, if anywhere.
    exporter: Option<Exporter>,
    metrics: Arc<Metrics>,
}

impl Server {
    /// Binds the listeners and reads the certificate.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        let certificates = config.tls.as_ref().map(Certificates::load).transpose()?;
        let (clients, clients_address) = listen("MOONGATE_LISTEN", config.listen)?;
        let (api, api_address) = listen("MOONGATE_API_LISTEN", config.api.listen)?;
        let mut streams = Vec::new();
        for StreamListener { protocol, variable, listen: address } in &config.streams {
            let (listener, bound) = listen(variable, *address)?;
            streams.push((*protocol, listener, bound));
        }
        let (entrance, inner) = Entrance::new(config.php.clone());
        let mut lan = LanAddress { ip: config.lan.ip.unwrap_or(Ipv4Addr::LOCALHOST), port: config.lan.port };
        if config.cluster.is_none() {
            open_alone(&entrance, &mut lan, config.lan.port_is_set)?;
        }
        let register = match config.php.register_listen {
            RegisterListen::At(address) => Some(listen("MOONGATE_REGISTER_LISTEN", address)?),
            _ => None,
        };
        let entrance = Arc::new(entrance);
        let metrics = Arc::new(Metrics::new());
        let traces = config.traces.as_ref().map(|settings| Exporter::new(settings, &metrics)).transpose();
        let (tracer, exporter) = traces.map_err(StartError::Traces)?.unzip();
        let tracer = tracer.unwrap_or_default();
        let webhook = config.webhook.clone();
        let webhook = webhook.map(|settings| Ok((Caller::new(&settings, tracer.clone())?, settings))).transpose();
        let webhook = webhook.map_err(StartError::Webhook)?;
        Ok(Self {
            config,
            clients,
            api,
            clients_address,
            api_address,
            streams,
            lan,
            entrance,
            inner,
            register,
            certificates,
            webhook,
            tracer,
            exporter,
            metrics,
        })
    }

    /// Where clients connect.
    pub fn clients_address(&self) -> SocketAddr {
        self.clients_address
    }

    /// Where clients connect without WebSocket, and what they speak.
    pub fn stream_addresses(&self) -> Vec<(Protocol, SocketAddr)> {
        self.streams.iter().map(|(protocol, _, address)| (*protocol, *address)).collect()
    }

    /// Where PHP finds this node; none as long as nothing is bound, as for a node among others before it has found Redis.
    pub fn php_address(&self) -> Option<SocketAddr> {
        self.entrance.address()
    }

    /// Where PHP asks for gateways, if an address for that was set.
    pub fn register_address(&self) -> Option<SocketAddr> {
        self.register.as_ref().map(|(_, address)| *address)
    }

    /// Where the API is.
    pub fn api_address(&self) -> SocketAddr {
        self.api_address
    }

    /// Runs until `stop`, then drains. Returns how many clients were still there when `DRAIN` was over.
    pub async fn run(self, stop: CancellationToken) -> Result<usize, Ended> {
        let Self {
            config,
            clients,
            api,
            clients_address,
            streams,
            lan,
            entrance,
            inner,
            register,
            certificates,
            webhook,
            tracer,
            exporter,
            metrics,
            ..
        } = self;
        let ping = match config.clients.ping_data.as_str() {
            "" => Message::ping(),
            data => Message::text(data),
        };
        let for_streams = !config.clients.ping_data.is_empty() || config.clients.ping_not_response_limit_is_set;
        let limit = config.clients.ping_not_response_limit;
        let tick = Tick::new(config.clients.ping_interval, limit, Some(ping), for_streams);
        let shards = std::thread::available_parallelism().map_or(1, NonZero::get);
        let others = config.cluster.is_some().then(Others::default);
        let is_unsure = config.cluster.is_some() && !config.php.is_off();
        let workers = Arc::new(Workers::new(config.php.workers, is_unsure, Arc::clone(&metrics)));
        let listener: Arc<dyn Listener> = Arc::<Workers>::clone(&workers);
        // Among others the node has a name of its own.
        let run = uuid::Uuid::new_v4().to_string();
        let events = Events::new(config.events, Origin { node: run.clone(), run }, Arc::clone(&metrics));
        let events = Arc::new(events);
        let (hub, mut shard_tasks) = Hub::start(shards, tick.as_ref(), &metrics, others, Some(&listener), &events);
        let hub = Arc::new(hub);
        let opening = Arc::clone(&entrance);
        let open_lan = Box::new(move |lan| {
            opening.open(lan).map_err(|error| {
                let refused = Refused { variable: error.variable, why: error.to_string() };
                if error.is_port_taken() { CannotListen::PortTaken(refused) } else { CannotListen::Never(refused) }
            })
        });
        let (asked, stopping) = (Arc::clone(&listener), stop.clone());
        let standing: Standing = Arc::new(move |among_others| match among_others {
            _ if stopping.is_cancelled() => Readiness::Not("stopping"),
            Readiness::Ready | Readiness::WithoutRedis if asked.is_missing() => Readiness::Not(asked.why_missing()),
            readiness => readiness,
        });
        let monitor = Arc::new(Monitor::new(&hub, &metrics));
        let cluster = config.cluster.as_ref();
        let cluster = cluster.map(|config| Cluster::start(config, &hub, &metrics, &monitor, &standing, open_lan));
        let cluster = cluster.transpose()?;
        let (cluster, (heard, mut cluster_tasks)) = match cluster {
            Some((cluster, heard, tasks)) => (Some(cluster), (Some(heard), Some(tasks))),
            None => (None, (None, None)),
        };
        let caller = webhook.as_ref().map(|(caller, _)| Arc::clone(caller));
        let gateway = Gateway::new(
            hub,
            cluster,
            lan,
            listener,
            &config.clients,
            &config.time_zone,
            caller.is_some(),
            Arc::clone(&metrics),
            monitor,
            standing,
            tracer,
        );
        let gateway = Arc::new(gateway);

        let (mut exporting, last_spans) = (JoinSet::new(), CancellationToken::new());
        if let Some(exporter) = exporter {
            let named = Arc::clone(&events);
            let node = move || named.origin().node.clone();
            exporting.spawn(exporter.run(node, last_spans.clone()));
        }

        let (refusing, closed) = (CancellationToken::new(), CancellationToken::new());
        let (connections, mut services) = (TaskTracker::new(), JoinSet::new());
        let (tell_until, until) = oneshot::channel();
        let mut telling = JoinSet::new();
        let webhook = webhook.filter(|_| !config.events.webhook.is_empty()).map(|(caller, settings)| {
            let webhook = Arc::new(Webhook::new(caller, settings, Arc::clone(&events), Arc::clone(&metrics)));
            telling.spawn(Arc::clone(&webhook).run(Arc::clone(&gateway), until));
            webhook
        });
        let mut ears = JoinSet::new();
        if let Some(heard) = heard {
            ears.spawn(Arc::clone(&gateway).hear(heard.inbox));
            ears.spawn(Arc::clone(&gateway).mourn(heard.departed));
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(Runner::new(Arc::clone(&gateway), caller).run(stop.clone()));
        let tls = certificates.is_some();
        let certificates = certificates.map(|certificates| {
            let certificates = Arc::new(certificates);
            let (watched, metrics, closed) = (Arc::clone(&certificates), Arc::clone(&metrics), closed.clone());
            services.spawn(async move { watched.watch(&metrics, closed).await });
            certificates
        });
        let edge = Edge {
            gateway: Arc::clone(&gateway),
            webhook,
            certificates,
            access: Access {
                tokens: config.clients.tokens.clone(),
                origins: config.clients.origins.clone(),
                proxies: config.clients.proxies.clone(),
                limits: Limits::new(config.clients.max_connections, config.clients.max_connections_per_ip),
            },
            handshake_timeout: config.clients.handshake_timeout,
            connection: ConnectionSettings {
                max_message_size: config.clients.max_message_size,
                pong_counts: config.clients.ping_data.is_empty(),
                max_messages_per_second: config.clients.max_messages_per_second,
            },
            connections: connections.clone(),
            handshakes: TaskTracker::new(),
            refusing: refusing.clone(),
            closed: closed.clone(),
        };
        let edge = Arc::new(edge);
        services.spawn(Arc::clone(&edge).run(Protocol::WebSocket, clients));
        for (protocol, listener, _) in streams {
            services.spawn(Arc::clone(&edge).run(protocol, listener));
        }
        // The loops have it, and end with it.
        drop(edge);
        let (closing, at_end) = (Arc::clone(&gateway), closed.clone());
        services.spawn(async move {
            at_end.run_until_cancelled(closing.close_unbound()).await;
        });
        let (telling_tails, at_end) = (Arc::clone(&gateway), closed.clone());
        services.spawn(async move {
            at_end.run_until_cancelled(telling_tails.tell_tails()).await;
        });
        let php = Arc::new(php::Door::new(Arc::clone(&gateway), entrance, workers, config.php.clone()));
        let (serving, at_end) = (Arc::clone(&php), closed.clone());
        services.spawn(async move {
            let register = register.map(|(listener, _)| listener);
            at_end.run_until_cancelled(serving.serve(inner, register)).await;
        });
        let router = Api {
            gateway: Arc::clone(&gateway),
            config: config.api.clone(),
            ending: closed.clone(),
            clients_tls: tls,
            clients_port: clients_address.port(),
        }
        .router();
        services.spawn(http::serve(
            api,
            router,
            config.clients.handshake_timeout,
            Arc::clone(&metrics),
            closed.clone(),
        ));
        tracing::info!(shards, alone = config.cluster.is_none(), "serving");

        let out_of_cluster = async {
            match &mut cluster_tasks {
                Some(tasks) => tasks.any_ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // First, as the runner of tasks ends with it.
            biased;
            () = stop.cancelled() => {}
            () = shard_tasks.any_ended() => return Err(Ended::Broken),
            Some(_) = ears.join_next() => return Err(Ended::Broken),
            Some(_) = tasks.join_next() => return Err(Ended::Broken),
            Some(_) = telling.join_next() => return Err(Ended::Broken),
            refused = out_of_cluster => return Err(refused.map_or(Ended::Broken, Into::into)),
        }
        let drained = Instant::now() + config.drain;
        let in_hand = async {
            // What is not finished in time is taken over by others.
            let finished = timeout(config.drain.max(LEAVE), async { while tasks.join_next().await.is_some() {} });
            if finished.await.is_err() {
                tracing::warn!("queued tasks are still in hand: they are left to others");
            }
        };
        let (left, ()) = tokio::join!(drain(&gateway, &connections, &refusing, config.drain), in_hand);
        tasks.shutdown().await;
        let leave = async {
            if let Some(tasks) = cluster_tasks {
                tasks.leave(LEAVE).await;
            }
        };
        tokio::join!(php.leave(), leave);
        // Where nobody is told, nobody listens.
        tell_until.send(drained.max(Instant::now() + LAST_ANSWERS)).ok();
        while telling.join_next().await.is_some() {}
        closed.cancel();
        // Whoever does not read an answer, or finish a request, is not waited for: what is left is dropped.
        drop(timeout(LAST_ANSWERS, async { while services.join_next().await.is_some() {} }).await);
        // The spans of all that have ended by now; it takes its time, and no more.
        last_spans.cancel();
        while exporting.join_next().await.is_some() {}
        Ok(left)
    }
}

/// Opens the door for PHP of a node that is alone, if need be at another port.
fn open_alone(entrance: &Entrance, lan: &mut LanAddress, port_is_set: bool) -> Result<(), StartError> {
    loop {
        match entrance.open(*lan) {
            Ok(()) => return Ok(()),
            Err(error) if error.is_port_taken() && !port_is_set && lan.port < u16::MAX => lan.port += 1,
            Err(php::NotOpen { variable, address, source }) => {
                return Err(StartError::Bind { variable, address, source });
            }
        }
    }
}

fn listen(variable: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bind = || {
        let listener = TcpListener::from_std(crate::accept::listen(address)?)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind().map_err(|source| StartError::Bind { variable, address, source })
}

/// Lets the clients go: for the first fifth nobody is closed, as balancers need a moment to notice; then handshakes are
/// refused and clients are closed with 1012, spread over the rest. Returns how many are left.
async fn drain(gateway: &Gateway, connections: &TaskTracker, refusing: &CancellationToken, time: Duration) -> usize {
    let start = Instant::now();
    let deadline = start + time;
    tracing::info!(clients = gateway.hub().clients(), seconds = time.as_secs_f32(), "draining");
    sleep_until(start + (time / 5).min(NOTICE)).await;
    refusing.cancel();
    // The last fifth is for close frames to be answered.
    let closing = Instant::now();
    let period = deadline.saturating_duration_since(closing) * 4 / 5;
    let (clients, mut closed) = (gateway.hub().clients(), 0);
    loop {
        let (passed, all) = (closing.elapsed().as_millis() as usize, period.as_millis() as usize);
        let due = if passed < all { (clients * passed).div_ceil(all) } else { usize::MAX };
        if due > closed {
            // A hub that answers no more has no clients.
            closed += gateway.hub().close_some(due - closed, &Close::DRAIN).await.unwrap_or_default();
        }
        if connections.is_empty() || Instant::now() >= deadline {
            break;
        }
        sleep(DRAIN_STEP).await;
    }
    connections.close();
    // Close frames under way have until the deadline, and a moment where there is none.
    drop(timeout_at(deadline.max(Instant::now() + DRAIN_STEP), connections.wait()).await);
    let left = connections.len();
    if left == 0 {
        tracing::info!("drained");
    } else {
        tracing::warn!(connections = left, "drain time is over");
    }
    left
}
