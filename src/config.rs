//! Every setting: its default, its check, its words. The only reader of the environment.
//!
//! [`Config::read`] takes the variables as they are, so tests never touch the real environment; it reports all
//! mistakes at once, one line each.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use jiff::tz::TimeZone;
use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::access::{Origins, Proxies, Tokens};
use crate::event::Kinds;
use crate::id::LanAddress;
use crate::message::Protocol;
use crate::trace::Sampler;

/// What every variable's name begins with.
pub const PREFIX: &str = "MOONGATE_";

const ADDRESS: &str = "takes an address and port, such as 0.0.0.0:7272";

/// One line of the settings table.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Name without the prefix.
    pub name: &'static str,
    /// What of its value is never shown.
    pub secret: Secret,
}

/// `OpenTelemetry`'s variables that are read, its own for every program. Others of its are for other programs.
const OTEL: &[&str] = &[
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
];

/// What they say; empty ones are unset.
type Otel = HashMap<&'static str, String>;

/// What of a setting's value is never shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    /// All may be shown.
    Nothing,
    /// The password in a URL.
    Password,
    /// The whole.
    All,
}

macro_rules! settings {
    ($($field:ident $name:literal $($secret:ident)?,)*) => {
        /// The settings that exist.
        pub const SETTINGS: &[Setting] = &[$(Setting { name: $name, secret: settings!(@ $($secret)?) },)*];

        /// The variables as envy reads them: text or nothing.
        #[derive(Default, Deserialize)]
        struct Raw { $($field: Option<String>,)* }

        impl Raw {
            #[cfg(test)]
            fn names() -> Vec<&'static str> { vec![$(stringify!($field)),*] }
        }
    };
    (@ secret) => { Secret::All };
    (@ url) => { Secret::Password };
    (@) => { Secret::Nothing };
}

settings! {
    redis_url "REDIS_URL" url,
    prefix "PREFIX",
    listen "LISTEN",
    text_listen "TEXT_LISTEN",
    frame_listen "FRAME_LISTEN",
    tcp_listen "TCP_LISTEN",
    tls_cert "TLS_CERT",
    tls_key "TLS_KEY",
    api_listen "API_LISTEN",
    api_token "API_TOKEN" secret,
    metrics_open "METRICS_OPEN",
    api_max_body "API_MAX_BODY",
    max_session_size "MAX_SESSION_SIZE",
    max_groups_per_client "MAX_GROUPS_PER_CLIENT",
    node_id "NODE_ID",
    node_ttl "NODE_TTL",
    lan_ip "LAN_IP",
    lan_port "LAN_PORT",
    lan_listen "LAN_LISTEN",
    register_listen "REGISTER_LISTEN",
    register_address "REGISTER_ADDRESS",
    secret_key "SECRET_KEY" secret,
    workers "WORKERS",
    events "EVENTS",
    events_maxlen "EVENTS_MAXLEN",
    webhook_url "WEBHOOK_URL" url,
    webhook_secret "WEBHOOK_SECRET" secret,
    webhook_max_age "WEBHOOK_MAX_AGE",
    webhook_connect_timeout "WEBHOOK_CONNECT_TIMEOUT",
    webhook_connect_fail "WEBHOOK_CONNECT_FAIL",
    init_message "INIT_MESSAGE",
    leave_message "LEAVE_MESSAGE",
    leave_max_group "LEAVE_MAX_GROUP",
    ping_interval "PING_INTERVAL",
    ping_not_response_limit "PING_NOT_RESPONSE_LIMIT",
    ping_data "PING_DATA",
    auth "AUTH",
    jwt_secret "JWT_SECRET" secret,
    jwt_public_key "JWT_PUBLIC_KEY" secret,
    allowed_origins "ALLOWED_ORIGINS",
    trusted_proxies "TRUSTED_PROXIES",
    unauthed_timeout "UNAUTHED_TIMEOUT",
    handshake_timeout "HANDSHAKE_TIMEOUT",
    max_message_size "MAX_MESSAGE_SIZE",
    max_connections "MAX_CONNECTIONS",
    max_connections_per_ip "MAX_CONNECTIONS_PER_IP",
    max_messages_per_second "MAX_MESSAGES_PER_SECOND",
    send_buffer "SEND_BUFFER",
    slow_consumer "SLOW_CONSUMER",
    drain "DRAIN",
    log "LOG",
    log_format "LOG_FORMAT",
}

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where clients connect without WebSocket.
    pub streams: Vec<StreamListener>,
    /// wss on `listen`, when set.
    pub tls: Option<TlsFiles>,
    /// The HTTP API.
    pub api: ApiConfig,
    /// The other nodes; none: this one is alone.
    pub cluster: Option<ClusterConfig>,
    /// First part of every client id.
    pub lan: LanConfig,
    /// The door for PHP.
    pub php: PhpConfig,
    /// Which events are told, and where.
    pub events: EventsConfig,
    /// The application's own address.
    pub webhook: Option<WebhookConfig>,
    /// What clients may do and get.
    pub clients: ClientConfig,
    /// How long a stopping node takes to let its clients go.
    pub drain: Duration,
    /// The log.
    pub log: LogConfig,
    /// Where traces go; none: nowhere.
    pub traces: Option<TracesConfig>,
    /// `TZ`: what `{time}` in templates is written in.
    pub time_zone: TimeZone,
}

/// A listener for clients without WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamListener {
    /// What they speak.
    pub protocol: Protocol,
    /// The setting, with its prefix.
    pub variable: &'static str,
    /// Its value.
    pub listen: SocketAddr,
}

/// Settings of a node among others.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Where Redis is, with the password.
    pub redis_url: SecretString,
    /// First part of every key and channel.
    pub prefix: String,
    /// This process among the nodes; none: a fresh UUID.
    pub node_id: Option<String>,
    /// A node that says nothing for so long is dead.
    pub node_ttl: Duration,
    /// First part of every client id.
    pub lan: LanConfig,
}

/// Settings of a node's LAN address.
#[derive(Debug, Clone, Copy)]
pub struct LanConfig {
    /// None: this machine's address on the way to Redis, or loopback.
    pub ip: Option<Ipv4Addr>,
    /// The port, or the first that is tried.
    pub port: u16,
    /// It does not move to the next free one.
    pub port_is_set: bool,
}

/// Settings of the door for PHP.
#[derive(Debug, Clone)]
pub struct PhpConfig {
    /// Where PHP reaches this node's clients.
    pub lan_listen: LanListen,
    /// Where PHP asks for gateways.
    pub register_listen: RegisterListen,
    /// Registers of PHP at which this node is one more gateway, as `host:port`.
    pub registers: Vec<String>,
    /// `GatewayWorker`'s `secretKey`.
    pub secret_key: Option<SecretString>,
    /// What a client without a worker meets.
    pub workers: WorkersPolicy,
}

/// What a client without a connected PHP worker meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkersPolicy {
    /// It is served until a worker has ever been connected; from then on none is without one.
    Auto,
    /// It is refused.
    Required,
    /// It is served; there are no workers.
    Off,
}

/// Where PHP reaches a node's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LanListen {
    /// Nowhere.
    Off,
    /// At the LAN address where there is a key, else at its port on loopback.
    Lan,
    /// Here, wherever the LAN address is.
    At(SocketAddr),
}

/// Where PHP asks for gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterListen {
    /// Nowhere.
    Off,
    /// Here, unless another node of this machine does so; then from when that one is gone.
    Usual(SocketAddr),
    /// Here.
    At(SocketAddr),
}

impl PhpConfig {
    /// Whether PHP finds nothing here.
    pub fn is_off(&self) -> bool {
        self.lan_listen == LanListen::Off && self.register_listen == RegisterListen::Off && self.registers.is_empty()
    }

    /// Where a node with this LAN address is reached; none when it is not.
    pub fn lan_listen(&self, lan: LanAddress) -> Option<SocketAddr> {
        match self.lan_listen {
            LanListen::Off => None,
            LanListen::At(address) => Some(address),
            // Such an address only tells nodes apart.
            LanListen::Lan if lan.ip.octets()[0] == 0 => None,
            LanListen::Lan => {
                let ip = if self.secret_key.is_some() { lan.ip } else { Ipv4Addr::LOCALHOST };
                Some((ip, lan.port).into())
            }
        }
    }
}

/// Which events are told, and where.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventsConfig {
    /// By webhook.
    pub webhook: Kinds,
    /// On the stream.
    pub stream: Kinds,
    /// The stream is trimmed near so many entries.
    pub max_len: u64,
}

/// Settings of the webhook.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// Where it is; there may be a password in it.
    pub url: SecretString,
    /// What requests are signed with.
    pub secret: Option<SecretString>,
    /// An event that was not taken for so long is dropped.
    pub max_age: Duration,
    /// What the answer to `connect` may take.
    pub connect_timeout: Duration,
    /// Without an answer to `connect` a client is let in.
    pub connect_fails_open: bool,
}

/// Settings of the export of traces.
#[derive(Debug, Clone)]
pub struct TracesConfig {
    /// Where the collector takes them; there may be a password in it.
    pub url: SecretString,
    /// What else it is told with each request, such as a token; no value is shown by `Debug`.
    pub headers: HeaderMap,
    /// What this process is called, and the rest that is to be known of it.
    pub resource: Vec<(String, String)>,
    /// Which traces there are.
    pub sampler: Sampler,
}

/// Certificate chain and key, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Settings of the HTTP API.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Its address.
    pub listen: SocketAddr,
    /// The bearer token.
    pub token: Option<SecretString>,
    /// `/metrics` without the token.
    pub metrics_open: bool,
    /// Largest body, bytes.
    pub max_body: usize,
}

/// What a caller of the API from the shell takes from a node's settings, whatever the others are.
#[derive(Debug, Clone)]
pub struct CallerConfig {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// The bearer token.
    pub token: Option<SecretString>,
    /// `TZ`: what times are shown in; unset or unknown: the machine's own.
    pub time_zone: TimeZone,
}

/// Settings of client connections.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// First message, a template; empty none.
    pub init_message: String,
    /// Message to a departed client's groups, a template; empty none.
    pub leave_message: String,
    /// Larger groups do not get it.
    pub leave_max_group: usize,
    /// Time between two heartbeats; zero off.
    pub ping_interval: Duration,
    /// Unanswered heartbeats after which a client is cut; 0 never.
    pub ping_not_response_limit: u32,
    /// It was set: it counts for clients that nothing is sent to, too.
    pub ping_not_response_limit_is_set: bool,
    /// What a heartbeat sends; empty: a WebSocket ping.
    pub ping_data: String,
    /// Reads connection tokens; none: they mean nothing.
    pub tokens: Option<Tokens>,
    /// Which pages may connect; none: all.
    pub origins: Option<Origins>,
    /// Whose word on where a client comes from is believed.
    pub proxies: Proxies,
    /// A client that is not bound to a uid so long after its handshake is closed.
    pub unauthed_timeout: Option<Duration>,
    /// For TLS and the request head.
    pub handshake_timeout: Duration,
    /// Largest message from a client, bytes.
    pub max_message_size: usize,
    /// Most clients of this node.
    pub max_connections: Option<NonZeroU32>,
    /// Most clients of this node from one address.
    pub max_connections_per_ip: Option<NonZeroU32>,
    /// Most messages of one client in a second.
    pub max_messages_per_second: Option<NonZeroU32>,
    /// Unsent bytes per client.
    pub send_buffer: usize,
    /// What happens beyond.
    pub slow_consumer: SlowConsumer,
    /// Largest session, bytes of JSON.
    pub max_session_size: usize,
    /// Most groups of one client.
    pub max_groups: usize,
}

/// What happens to a client with more unsent bytes than `SEND_BUFFER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowConsumer {
    /// It is closed with 1013.
    Close,
    /// Further messages to it are dropped and counted, as `GatewayWorker` does.
    Drop,
}

/// Settings of the log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// `tracing` filter.
    pub filter: String,
    /// Its form.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogFormat {
    Text,
    Json,
}

/// Everything that is wrong with the settings.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

impl Config {
    /// The settings of this process.
    pub fn from_env() -> Result<Self, ConfigErrors> {
        Self::read(std::env::vars_os())
    }

    /// The settings that these variables say.
    pub fn read(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let mut ours = Vec::new();
        let (mut time_zone, mut otel) = (TimeZone::UTC, Otel::new());
        for (name, value) in variables {
            let Some(name) = name.to_str() else {
                if name.to_string_lossy().starts_with(PREFIX) {
                    errors.push(format!("{}: is not a setting", name.to_string_lossy()));
                }
                continue;
            };
            if name == "TZ" {
                time_zone = read_time_zone(&value, &mut errors);
                continue;
            }
            if let Some(known) = OTEL.iter().find(|known| **known == name) {
                match value.into_string() {
                    Ok(value) if value.is_empty() => {}
                    Ok(value) => drop(otel.insert(known, value)),
                    Err(_) => errors.push(not_utf8(name)),
                }
                continue;
            }
            let Some(short) = name.strip_prefix(PREFIX) else { continue };
            let value = value.into_string();
            if is_service_link(short, value.as_deref().unwrap_or_default()) {
                continue;
            }
            if !SETTINGS.iter().any(|setting| setting.name == short) {
                errors.push(unknown(short));
                continue;
            }
            match value {
                Ok(value) => ours.push((name.to_owned(), value)),
                Err(_) => errors.push(not_utf8(name)),
            }
        }
        // All values are text, so envy has nothing to refuse.
        let raw: Raw = match envy::prefixed(PREFIX).from_iter(ours) {
            Ok(raw) => raw,
            Err(error) => {
                errors.push(format!("{PREFIX}…: {error}"));
                Raw::default()
            }
        };
        let config = Reader { errors: &mut errors }.config(raw, &otel, time_zone);
        if errors.is_empty() {
            Ok(config)
        } else {
            errors.sort();
            Err(ConfigErrors(errors))
        }
    }
}

impl CallerConfig {
    /// The settings of this process.
    pub fn from_env() -> Result<Self, ConfigErrors> {
        Self::read(std::env::vars_os())
    }

    /// The settings that these variables say; mistakes in others are for the node to tell.
    pub fn read(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let (mut listen, mut token, mut time_zone) = (None, None, None);
        for (name, value) in variables {
            let place = match name.to_str() {
                Some("MOONGATE_API_LISTEN") => &mut listen,
                Some("MOONGATE_API_TOKEN") => &mut token,
                Some("TZ") => {
                    let mut unknown = Vec::new();
                    time_zone = Some(read_time_zone(&value, &mut unknown)).filter(|_| unknown.is_empty());
                    continue;
                }
                _ => continue,
            };
            match value.into_string() {
                Ok(value) => *place = Some(value),
                Err(_) => errors.push(not_utf8(&name.to_string_lossy())),
            }
        }
        let (listen, token) = Reader { errors: &mut errors }.api(listen, token);
        if errors.is_empty() {
            Ok(Self { listen, token, time_zone: time_zone.unwrap_or_else(TimeZone::system) })
        } else {
            errors.sort();
            Err(ConfigErrors(errors))
        }
    }
}

struct Reader<'a> {
    errors: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn config(mut self, mut raw: Raw, otel: &Otel, time_zone: TimeZone) -> Config {
        let php = self.php(&mut raw);
        let tokens = self.tokens(&mut raw);
        let positive = "takes a size above zero, such as 64KiB or 1MiB";
        let duration = "takes a duration, such as 10s, 500ms or 2m";
        let (api_listen, token) = self.api(raw.api_listen, raw.api_token);
        if token.is_none() && !api_listen.ip().is_loopback() && !self.is_refused("API_TOKEN") {
            self.errors.push(format!(
                "MOONGATE_API_TOKEN: is needed where MOONGATE_API_LISTEN ({api_listen}) is not loopback"
            ));
        }
        let tls = match (filled(raw.tls_cert), filled(raw.tls_key)) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert: cert.into(), key: key.into() }),
            (None, None) => None,
            (Some(_), None) => self.missing("TLS_KEY", "takes a PEM file, as MOONGATE_TLS_CERT is set"),
            (None, Some(_)) => self.missing("TLS_CERT", "takes a PEM file, as MOONGATE_TLS_KEY is set"),
        };
        let takes = redis_url_takes(raw.redis_url.as_deref().unwrap_or_default());
        let redis_url = self.take("REDIS_URL", raw.redis_url, takes, "", redis_url);
        let prefix = self.take("PREFIX", raw.prefix, "takes 1 to 32 of A-Z a-z 0-9 _ -", "mg", prefix);
        let node_id = self.take("NODE_ID", raw.node_id, "takes 1 to 64 of A-Z a-z 0-9 . _ -", "", node_id);
        let node_ttl = self.take("NODE_TTL", raw.node_ttl, "takes a duration from 2s to 1h", "15s", |text| {
            let range = Duration::from_secs(2)..=Duration::from_hours(1);
            parse_duration(text).filter(|ttl| range.contains(ttl))
        });
        let streams: Vec<StreamListener> = [
            (Protocol::Text, "MOONGATE_TEXT_LISTEN", raw.text_listen),
            (Protocol::Frame, "MOONGATE_FRAME_LISTEN", raw.frame_listen),
            (Protocol::Tcp, "MOONGATE_TCP_LISTEN", raw.tcp_listen),
        ]
        .into_iter()
        .filter_map(|(protocol, variable, value)| {
            let optional = |text: &str| if text.is_empty() { Some(None) } else { parse(text).map(Some) };
            let listen = self.take(variable.strip_prefix(PREFIX)?, value, ADDRESS, "", optional)?;
            Some(StreamListener { protocol, variable, listen })
        })
        .collect();
        let most = "takes a number above zero, or off";
        let takes = "takes a duration above zero, such as 10s, or off";
        let unauthed_timeout = self.take("UNAUTHED_TIMEOUT", raw.unauthed_timeout, takes, "off", |text| match text {
            "off" => Some(None),
            time => parse_duration(time).filter(|time| !time.is_zero()).map(Some),
        });
        if let Some(listener) = streams.first().filter(|_| tokens.as_ref().is_some_and(Tokens::is_needed))
            && unauthed_timeout.is_none()
            && !self.is_refused("UNAUTHED_TIMEOUT")
        {
            self.errors.push(format!(
                "MOONGATE_UNAUTHED_TIMEOUT: is needed where MOONGATE_AUTH is required and {} is set, whose clients bring no token",
                listener.variable
            ));
        }
        let ping_not_response_limit_is_set =
            raw.ping_not_response_limit.as_ref().is_some_and(|limit| !limit.is_empty());
        let webhook = self.webhook(
            raw.webhook_url,
            raw.webhook_secret,
            [raw.webhook_max_age, raw.webhook_connect_timeout, raw.webhook_connect_fail],
        );
        let events = self.events(raw.events, raw.events_maxlen, redis_url.is_some(), webhook.is_some());
        let mut lan = LanConfig {
            port_is_set: raw.lan_port.as_ref().is_some_and(|port| !port.is_empty()),
            ip: self.take("LAN_IP", raw.lan_ip, "takes an IPv4 address, or auto", "auto", lan_ip),
            port: self.take("LAN_PORT", raw.lan_port, "takes a port from 1 to 65535", "2900", |text| {
                parse(text).filter(|port| *port > 0)
            }),
        };
        // Where it listens PHP shall find it.
        if let LanListen::At(address) = php.lan_listen {
            if !lan.port_is_set {
                (lan.port, lan.port_is_set) = (address.port(), true);
            }
            if let (None, IpAddr::V4(ip)) = (lan.ip, address.ip())
                && !ip.is_loopback()
                && !ip.is_unspecified()
            {
                lan.ip = Some(ip);
            }
        }
        Config {
            listen: self.take("LISTEN", raw.listen, ADDRESS, "0.0.0.0:7272", parse),
            streams,
            tls,
            api: ApiConfig {
                listen: api_listen,
                token,
                metrics_open: self.take("METRICS_OPEN", raw.metrics_open, "takes true or false", "false", parse),
                max_body: self.take("API_MAX_BODY", raw.api_max_body, positive, "1MiB", positive_size),
            },
            cluster: redis_url.map(|redis_url| ClusterConfig { redis_url, prefix, node_id, node_ttl, lan }),
            lan,
            php,
            events,
            webhook,
            clients: ClientConfig {
                init_message: raw
                    .init_message
                    .unwrap_or_else(|| r#"{"type":"init","client_id":"{client_id}"}"#.to_owned()),
                leave_message: raw.leave_message.unwrap_or_default(),
                leave_max_group: self.take("LEAVE_MAX_GROUP", raw.leave_max_group, "takes a number", "1000", parse),
                ping_interval: self.take("PING_INTERVAL", raw.ping_interval, duration, "25s", parse_duration),
                ping_not_response_limit: self.take(
                    "PING_NOT_RESPONSE_LIMIT",
                    raw.ping_not_response_limit,
                    "takes a number from 0 to 1000",
                    "1",
                    |text| parse(text).filter(|limit| *limit <= 1000),
                ),
                ping_not_response_limit_is_set,
                ping_data: raw.ping_data.unwrap_or_default(),
                tokens,
                origins: self.take(
                    "ALLOWED_ORIGINS",
                    raw.allowed_origins,
                    "takes origins such as https://chat.example.com:8443, with commas between",
                    "",
                    |text| if text.is_empty() { Some(None) } else { parse(text).map(Some) },
                ),
                proxies: self.take(
                    "TRUSTED_PROXIES",
                    raw.trusted_proxies,
                    "takes addresses and networks such as 10.0.0.0/8, with commas between",
                    "",
                    parse,
                ),
                unauthed_timeout,
                handshake_timeout: self.take(
                    "HANDSHAKE_TIMEOUT",
                    raw.handshake_timeout,
                    "takes a duration above zero, such as 10s",
                    "10s",
                    |text| parse_duration(text).filter(|timeout| !timeout.is_zero()),
                ),
                max_message_size: self.take("MAX_MESSAGE_SIZE", raw.max_message_size, positive, "1MiB", positive_size),
                max_connections: self.take("MAX_CONNECTIONS", raw.max_connections, most, "off", parse_most),
                max_connections_per_ip: self.take(
                    "MAX_CONNECTIONS_PER_IP",
                    raw.max_connections_per_ip,
                    most,
                    "off",
                    parse_most,
                ),
                max_messages_per_second: self.take(
                    "MAX_MESSAGES_PER_SECOND",
                    raw.max_messages_per_second,
                    most,
                    "off",
                    parse_most,
                ),
                send_buffer: self.take("SEND_BUFFER", raw.send_buffer, positive, "1MiB", positive_size),
                slow_consumer: self.take("SLOW_CONSUMER", raw.slow_consumer, "takes close or drop", "close", |text| {
                    match text {
                        "close" => Some(SlowConsumer::Close),
                        "drop" => Some(SlowConsumer::Drop),
                        _ => None,
                    }
                }),
                max_session_size: self.take("MAX_SESSION_SIZE", raw.max_session_size, positive, "64KiB", positive_size),
                max_groups: self.take(
                    "MAX_GROUPS_PER_CLIENT",
                    raw.max_groups_per_client,
                    "takes a number",
                    "1000",
                    parse,
                ),
            },
            drain: self.take("DRAIN", raw.drain, duration, "25s", parse_duration),
            log: LogConfig {
                filter: self.take(
                    "LOG",
                    raw.log,
                    "takes a tracing filter, such as info or moongate=debug",
                    "info",
                    |text| tracing_subscriber::EnvFilter::try_new(text).is_ok().then(|| text.to_owned()),
                ),
                format: self.take("LOG_FORMAT", raw.log_format, "takes text or json", "text", |text| match text {
                    "text" => Some(LogFormat::Text),
                    "json" => Some(LogFormat::Json),
                    _ => None,
                }),
            },
            traces: self.traces(otel),
            time_zone,
        }
    }

    /// As <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/> has it, but that a mistake is
    /// told, and that without a sampler the callers say which traces there are.
    fn traces(&mut self, otel: &Otel) -> Option<TracesConfig> {
        let first = |names: &[&'static str]| names.iter().find_map(|name| Some((*name, otel.get(name)?.as_str())));
        let mut wrong = |name: &str, got: &str, takes: &str| self.errors.push(format!("{name}: got {got}, {takes}"));
        let endpoint = first(&["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]);
        let is_disabled = otel.get("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let (name, endpoint) = endpoint.filter(|_| !is_disabled)?;
        match first(&["OTEL_TRACES_EXPORTER"]) {
            None | Some((_, "otlp")) => {}
            Some((_, "none")) => return None,
            Some((name, other)) => wrong(name, &format!("{other:?}"), "takes otlp or none"),
        }
        if !reqwest::Url::parse(endpoint).is_ok_and(|url| ["http", "https"].contains(&url.scheme())) {
            let takes = "takes the http://… or https://… of a collector, such as http://127.0.0.1:4318";
            wrong(name, &format!("{:?}", without_password(endpoint)), takes);
        }
        // What is for all signals has a path for each.
        let is_base = name == "OTEL_EXPORTER_OTLP_ENDPOINT";
        let url = if is_base { format!("{}/v1/traces", endpoint.trim_end_matches('/')) } else { endpoint.to_owned() };
        let protocol = first(&["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
        if let Some((name, protocol)) = protocol.filter(|(_, protocol)| *protocol != "http/protobuf") {
            wrong(name, &format!("{protocol:?}"), "takes http/protobuf, whose port is 4318 where that of grpc is 4317");
        }
        let mut headers = HeaderMap::new();
        if let Some((name, text)) = first(&["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"]) {
            let header = |(name, value): (String, String)| {
                let mut value = HeaderValue::from_str(&value).ok()?;
                value.set_sensitive(true);
                Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
            };
            match pairs(text).and_then(|pairs| pairs.into_iter().map(header).collect::<Option<Vec<_>>>()) {
                Some(pairs) => headers.extend(pairs),
                None => wrong(name, "<hidden>", "takes headers such as x-api-key=secret, with commas between"),
            }
        }
        let mut resource = Vec::new();
        if let Some((name, text)) = first(&["OTEL_RESOURCE_ATTRIBUTES"]) {
            match pairs(text) {
                Some(pairs) => resource = pairs,
                None => wrong(name, &format!("{text:?}"), "takes key=value, or several with commas between"),
            }
        }
        let service = first(&["OTEL_SERVICE_NAME"]).map(|(_, name)| name);
        if service.is_some() || !resource.iter().any(|(key, _)| key == "service.name") {
            resource.retain(|(key, _)| key != "service.name");
            resource.insert(0, ("service.name".to_owned(), service.unwrap_or("moongate").to_owned()));
        }
        let (name, sampler) = first(&["OTEL_TRACES_SAMPLER"]).unwrap_or(("", "parentbased_always_off"));
        let ratio = match first(&["OTEL_TRACES_SAMPLER_ARG"]).filter(|_| sampler.ends_with("traceidratio")) {
            None => 1.0,
            Some((name, text)) => parse(text).filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or_else(|| {
                wrong(name, &format!("{text:?}"), "takes a number from 0 to 1");
                1.0
            }),
        };
        let Some(sampler) = Sampler::named(sampler, ratio) else {
            wrong(name, &format!("{sampler:?}"), &format!("takes {}", Sampler::NAMES));
            return None;
        };
        Some(TracesConfig { url: url.into(), headers, resource, sampler })
    }

    fn api(&mut self, listen: Option<String>, secret: Option<String>) -> (SocketAddr, Option<SecretString>) {
        let listen = self.take("API_LISTEN", listen, ADDRESS, "127.0.0.1:7273", parse);
        (listen, self.take("API_TOKEN", secret, "takes 1 to 256 visible ASCII characters", "", token))
    }

    fn tokens(&mut self, raw: &mut Raw) -> Option<Tokens> {
        let takes = "takes none, optional or required";
        let need = self.take("AUTH", raw.auth.take(), takes, "none", |text| match text {
            "none" => Some(None),
            "optional" => Some(Some(false)),
            "required" => Some(Some(true)),
            _ => None,
        });
        let (secret, public) = (filled(raw.jwt_secret.take()), filled(raw.jwt_public_key.take()));
        let key = match (secret, public) {
            (Some(_), Some(_)) => {
                self.errors
                    .push("MOONGATE_JWT_SECRET: one key is taken, and MOONGATE_JWT_PUBLIC_KEY is another".into());
                return None;
            }
            (Some(secret), None) => Some(Tokens::of_secret(secret.as_bytes())),
            (None, Some(key)) => Some(self.public_key(&key)?),
            (None, None) => None,
        };
        match (need, key) {
            (Some(is_needed), Some(tokens)) => Some(if is_needed { tokens.needed() } else { tokens }),
            (Some(_), None) => {
                self.missing("JWT_SECRET", "takes a secret, or MOONGATE_JWT_PUBLIC_KEY a key, as MOONGATE_AUTH is set")
            }
            (None, Some(_)) if !self.is_refused("AUTH") => {
                self.missing("AUTH", "takes optional or required, as a key for tokens is set")
            }
            (None, _) => None,
        }
    }

    fn public_key(&mut self, text: &str) -> Option<Tokens> {
        let takes = "takes an RSA (2048 to 8192 bits), P-256 or Ed25519 public key in PEM, or the path of one, which begins with / or .";
        let is_path = text.starts_with(['/', '.']);
        let pem = if is_path { std::fs::read_to_string(text) } else { Ok(text.to_owned()) };
        let key = pem.map(|pem| Tokens::of_public_key(&pem));
        let why = match key {
            Ok(Some(tokens)) => return Some(tokens),
            Ok(None) if is_path => format!("what is in {text} is none, {takes}"),
            Ok(None) => format!("got <hidden>, {takes}"),
            Err(error) => format!("{text}: {error}"),
        };
        self.errors.push(format!("MOONGATE_JWT_PUBLIC_KEY: {why}"));
        None
    }

    fn php(&mut self, raw: &mut Raw) -> PhpConfig {
        let takes = "takes 1 to 256 bytes without \\, \" and control characters, which PHP cannot pass on";
        let secret_key = self.take("SECRET_KEY", raw.secret_key.take(), takes, "", secret_key);
        let takes = "takes an address and port, such as 10.0.0.5:2900, or off";
        let lan_listen = self.take("LAN_LISTEN", raw.lan_listen.take(), takes, "", |text| match text {
            "" => Some(LanListen::Lan),
            "off" => Some(LanListen::Off),
            address => parse(address).filter(|address: &SocketAddr| address.port() > 0).map(LanListen::At),
        });
        let takes = "takes an address and port, such as 127.0.0.1:1238, or off";
        let register_listen = self.take("REGISTER_LISTEN", raw.register_listen.take(), takes, "", |text| match text {
            "" => Some(RegisterListen::Usual((Ipv4Addr::LOCALHOST, 1238).into())),
            "off" => Some(RegisterListen::Off),
            address => parse(address).map(RegisterListen::At),
        });
        let takes = "takes host:port, or several with commas between";
        let registers = self.take("REGISTER_ADDRESS", raw.register_address.take(), takes, "", |text| {
            let address = |text: &str| {
                let (host, port) = text.trim().rsplit_once(':')?;
                (!host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| text.trim().to_owned())
            };
            text.split(',').filter(|_| !text.is_empty()).map(address).collect()
        });
        let open = [
            ("LAN_LISTEN", if let LanListen::At(address) = lan_listen { Some(address) } else { None }),
            ("REGISTER_LISTEN", if let RegisterListen::At(address) = register_listen { Some(address) } else { None }),
        ];
        if secret_key.is_none() && !self.is_refused("SECRET_KEY") {
            for (name, address) in open {
                if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
                    self.errors.push(format!(
                        "MOONGATE_SECRET_KEY: is needed where MOONGATE_{name} ({address}) is not loopback"
                    ));
                }
            }
        }
        let workers =
            self.take("WORKERS", raw.workers.take(), "takes auto, required or off", "auto", |text| match text {
                "auto" => Some(WorkersPolicy::Auto),
                "required" => Some(WorkersPolicy::Required),
                "off" => Some(WorkersPolicy::Off),
                _ => None,
            });
        // Where no worker can connect, none is needed.
        let workers = match (lan_listen, workers) {
            (LanListen::Off, WorkersPolicy::Auto) => WorkersPolicy::Off,
            (LanListen::Off, WorkersPolicy::Required) => {
                self.errors
                    .push("MOONGATE_WORKERS: required, but with MOONGATE_LAN_LISTEN off none can connect".into());
                WorkersPolicy::Required
            }
            (_, workers) => workers,
        };
        PhpConfig { lan_listen, register_listen, registers, secret_key, workers }
    }

    fn events(
        &mut self,
        events: Option<String>,
        max_len: Option<String>,
        has_redis: bool,
        has_webhook: bool,
    ) -> EventsConfig {
        let takes =
            "takes webhook and stream, with a comma between, each with all events or some: webhook:close+bound,stream";
        let (webhook, stream) = self.take("EVENTS", events, takes, "", |text| {
            let mut wanted: [Option<Kinds>; 2] = [None; 2];
            for item in text.split(',').map(str::trim).filter(|_| !text.is_empty()) {
                let (name, kinds) = item.split_once(':').map_or((item, None), |(name, kinds)| (name, Some(kinds)));
                let kinds = kinds.map_or(Some(Kinds::ALL), parse)?;
                let place = wanted.get_mut(["webhook", "stream"].iter().position(|known| *known == name)?)?;
                if place.replace(kinds).is_some() {
                    return None;
                }
            }
            let [webhook, stream] = wanted.map(Option::unwrap_or_default);
            Some((webhook, stream))
        });
        if !webhook.is_empty() && !has_webhook && !self.is_refused("WEBHOOK_URL") {
            self.errors.push("MOONGATE_WEBHOOK_URL: is needed where MOONGATE_EVENTS names webhook".to_owned());
        }
        if !stream.is_empty() && !has_redis && !self.is_refused("REDIS_URL") {
            self.errors.push("MOONGATE_REDIS_URL: is needed where MOONGATE_EVENTS names stream".to_owned());
        }
        let takes = "takes a number from 1 to 1000000000";
        let max_len = self.take("EVENTS_MAXLEN", max_len, takes, "100000", |text| {
            parse(text).filter(|entries| (1..=1_000_000_000).contains(entries))
        });
        EventsConfig { webhook, stream, max_len }
    }

    fn webhook(
        &mut self,
        url: Option<String>,
        secret: Option<String>,
        [max_age, connect_timeout, connect_fail]: [Option<String>; 3],
    ) -> Option<WebhookConfig> {
        let above_zero = |text: &str| parse_duration(text).filter(|time| !time.is_zero());
        let takes = "takes a duration above zero, such as 5s or 1h";
        let url = self.take("WEBHOOK_URL", url, "takes http://… or https://…", "", |text| {
            let is_url = || reqwest::Url::parse(text).is_ok_and(|url| ["http", "https"].contains(&url.scheme()));
            if text.is_empty() { Some(None) } else { is_url().then(|| Some(SecretString::from(text.to_owned()))) }
        });
        let secret = self.take("WEBHOOK_SECRET", secret, "takes any text", "", |text| {
            Some(Some(text).filter(|text| !text.is_empty()).map(|text| SecretString::from(text.to_owned())))
        });
        let max_age = self.take("WEBHOOK_MAX_AGE", max_age, takes, "1h", above_zero);
        let connect_timeout = self.take("WEBHOOK_CONNECT_TIMEOUT", connect_timeout, takes, "5s", above_zero);
        let takes = "takes closed or open";
        let connect_fails_open = self.take("WEBHOOK_CONNECT_FAIL", connect_fail, takes, "closed", |text| match text {
            "closed" => Some(false),
            "open" => Some(true),
            _ => None,
        });
        url.map(|url| WebhookConfig { url, secret, max_age, connect_timeout, connect_fails_open })
    }

    fn is_refused(&self, name: &str) -> bool {
        self.errors.iter().any(|line| line.starts_with(&format!("{PREFIX}{name}:")))
    }

    /// One setting. An empty value is as unset. After a mistake the default stands in, so that all mistakes are found.
    #[allow(clippy::panic)] // a default that its own check refuses is a mistake in this file, found by any test
    fn take<T>(
        &mut self,
        name: &'static str,
        raw: Option<String>,
        takes: &str,
        default: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        if let Some(text) = filled(raw) {
            if let Some(value) = parse(&text) {
                return value;
            }
            let secret = SETTINGS.iter().find(|setting| setting.name == name).map(|setting| setting.secret);
            let got = match secret {
                Some(Secret::All) => "<hidden>".to_owned(),
                Some(Secret::Password) => format!("{:?}", without_password(&text)),
                _ => format!("{text:?}"),
            };
            self.errors.push(format!("{PREFIX}{name}: got {got}, {takes}"));
        }
        parse(default).unwrap_or_else(|| panic!("default of {name}"))
    }

    fn missing<T>(&mut self, name: &str, takes: &str) -> Option<T> {
        self.errors.push(format!("{PREFIX}{name}: is not set, {takes}"));
        None
    }
}

fn not_utf8(name: &str) -> String {
    format!("{name}: takes UTF-8 text")
}

fn filled(raw: Option<String>) -> Option<String> {
    raw.filter(|text| !text.is_empty())
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// `key=value`, or several with commas between; what they may not contain is written `%2C`.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let decoded = |text: &str| Some(percent_decode_str(text.trim()).decode_utf8().ok()?.into_owned());
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        Some((decoded(key).filter(|key| !key.is_empty())?, decoded(value)?))
    };
    pairs.map(pair).collect()
}

/// `10s`, `500ms`, `2m`; at most a day, which no setting needs.
fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let milliseconds = match text.get(digits.len()..)? {
        "ms" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        _ => return None,
    };
    (milliseconds <= 86_400_000).then(|| Duration::from_millis(milliseconds))
}

/// A number above zero, or `off`.
#[allow(clippy::option_option)] // off is a value here
fn parse_most(text: &str) -> Option<Option<NonZeroU32>> {
    if text == "off" { Some(None) } else { parse(text).map(Some) }
}

/// `64KiB`, `1MiB`, plain bytes; below 1 GiB, and above zero.
fn positive_size(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: usize = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let unit = match text.get(digits.len()..)? {
        "" | "B" => 1,
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        _ => return None,
    };
    number.checked_mul(unit).filter(|bytes| (1..1 << 30).contains(bytes))
}

#[allow(clippy::option_option)] // unset is a value here
fn token(text: &str) -> Option<Option<SecretString>> {
    match text.len() {
        0 => Some(None),
        1..=256 if text.bytes().all(|byte| byte.is_ascii_graphic()) => Some(Some(text.to_owned().into())),
        _ => None,
    }
}

#[allow(clippy::option_option)] // unset is a value here
fn secret_key(text: &str) -> Option<Option<SecretString>> {
    match text.len() {
        0 => Some(None),
        1..=256 if !text.contains(|c: char| c.is_control() || "\\\"".contains(c)) => Some(Some(text.to_owned().into())),
        _ => None,
    }
}

#[allow(clippy::option_option)] // unset is a value here
fn redis_url(text: &str) -> Option<Option<SecretString>> {
    if text.is_empty() {
        return Some(None);
    }
    if let Some((place, query)) = of_sentinels(text) {
        let fits = names_a_service(query) && are_servers(place, query);
        return fits.then(|| Some(text.to_owned().into()));
    }
    if let Some((place, query)) = of_a_cluster(text) {
        // It has only one database.
        let has_no_database = !place.rsplit_once('@').map_or(place, |(_, place)| place).contains('/');
        return (has_no_database && are_servers(place, query)).then(|| Some(text.to_owned().into()));
    }
    let after = |scheme: &str| {
        let rest = text.strip_prefix(scheme)?;
        // Passwords may contain an @ of their own; a user before them is not needed.
        Some(rest.rsplit_once('@').map_or((rest, false), |(_, place)| (place, true)))
    };
    let fits = match after("redis+unix://") {
        // With a password there is a host, which means nothing.
        Some((place, true)) => place.split_once('/').is_some_and(|(_, path)| !path.is_empty()),
        Some((place, false)) => place.len() > 1 && place.starts_with('/'),
        None => {
            let (place, _) = after("redis://").or_else(|| after("rediss://"))?;
            !place.is_empty() && !place.starts_with(['/', ':'])
        }
    };
    fits.then(|| Some(text.to_owned().into()))
}

fn redis_url_takes(text: &str) -> &'static str {
    match of_sentinels(text) {
        Some((_, query)) if !names_a_service(query) => {
            "takes the master's name among the sentinels, too: redis-sentinel://host:port?sentinelServiceName=name"
        }
        Some(_) => {
            "takes redis-sentinel://host:port?sentinelServiceName=name&node=host:port, with a node= for each sentinel more; names or IPv4 addresses"
        }
        None if of_a_cluster(text).is_some() => {
            "takes redis-cluster://host:port?node=host:port, with a node= for each server more that may be asked; names or IPv4 addresses, no database"
        }
        None => {
            "takes redis://host:port, rediss://host:port, redis+unix:///path/to/socket, redis-sentinel://host:port?sentinelServiceName=name or redis-cluster://host:port"
        }
    }
}

/// Of a URL of a Cluster, what stands before and after the question mark, without the scheme.
fn of_a_cluster(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("redis-cluster://").or_else(|| url.strip_prefix("rediss-cluster://"))?;
    Some(rest.split_once('?').unwrap_or((rest, "")))
}

/// Of a URL of sentinels, what stands before and after the question mark, without the scheme.
fn of_sentinels(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("redis-sentinel://").or_else(|| url.strip_prefix("rediss-sentinel://"))?;
    Some(rest.split_once('?').unwrap_or((rest, "")))
}

fn names_a_service(query: &str) -> bool {
    query.split('&').any(|pair| pair.strip_prefix("sentinelServiceName=").is_some_and(|name| !name.is_empty()))
}

/// Whether the first server, a database and the other servers are written as they should.
fn are_servers(place: &str, query: &str) -> bool {
    let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
    let (first, database) = place.split_once('/').unwrap_or((place, ""));
    let is_host = |host: &str| !host.is_empty() && !host.contains([',', ':']);
    let has_port =
        |place: &str| place.split_once(':').is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok());
    let mut others = query.split('&').filter_map(|pair| pair.strip_prefix("node="));
    (is_host(first) || has_port(first))
        && (database.is_empty() || database.parse::<u8>().is_ok())
        && others.all(has_port)
}

/// A URL as it may be shown.
fn without_password(url: &str) -> String {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    if query.to_ascii_lowercase().contains("pass") {
        // It may contain whatever else separates the parts.
        return url
            .split_once("://")
            .map_or_else(|| "<hidden>".to_owned(), |(scheme, _)| format!("{scheme}://<hidden>"));
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return if url.contains('@') { "<hidden>".to_owned() } else { url.to_owned() };
    };
    // Passwords may contain an @ of their own.
    match rest.rsplit_once('@') {
        Some((_, place)) => format!("{scheme}://<hidden>@{place}"),
        None => url.to_owned(),
    }
}

fn prefix(text: &str) -> Option<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    ((1..=32).contains(&text.len()) && text.bytes().all(fits)).then(|| text.to_owned())
}

#[allow(clippy::option_option)] // unset is a value here
fn node_id(text: &str) -> Option<Option<String>> {
    match text.len() {
        0 => Some(None),
        1..=64 if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) => {
            Some(Some(text.to_owned()))
        }
        _ => None,
    }
}

#[allow(clippy::option_option)] // auto is a value here
fn lan_ip(text: &str) -> Option<Option<Ipv4Addr>> {
    if text == "auto" { Some(None) } else { parse(text).map(Some) }
}

/// A name, a file or a POSIX rule, as the C library takes them.
fn read_time_zone(value: &OsString, errors: &mut Vec<String>) -> TimeZone {
    let text = value.to_str().map_or("?", |text| text.trim_start_matches(':'));
    let zone = match text {
        "" => Some(TimeZone::UTC),
        path if path.starts_with('/') => std::fs::read(path).ok().and_then(|file| TimeZone::tzif(path, &file).ok()),
        name => TimeZone::get(name).or_else(|_| TimeZone::posix(name)).ok(),
    };
    zone.unwrap_or_else(|| {
        errors.push(format!("TZ: got {}, takes a time zone such as Asia/Shanghai", value.display()));
        TimeZone::UTC
    })
}

/// Variables that Kubernetes adds for a Service whose name begins with `moongate`.
fn is_service_link(name: &str, value: &str) -> bool {
    let port_of = |protocol: &str| {
        name.split("_PORT_").skip(1).chain(name.strip_prefix("PORT_")).any(|rest| {
            let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            digits.len() < rest.len() && digits.starts_with(protocol)
        })
    };
    let ends = |suffix: &str| name.ends_with(suffix) || suffix.strip_prefix('_') == Some(name);
    let is_service_port = name.contains("_SERVICE_PORT") || name.starts_with("SERVICE_PORT");
    let is_port_url = ends("_PORT") && (value.starts_with("tcp://") || value.starts_with("udp://"));
    ends("_SERVICE_HOST") || is_service_port || port_of("_TCP") || port_of("_UDP") || is_port_url
}

fn unknown(name: &str) -> String {
    let nearest = SETTINGS.iter().map(|setting| (strsim::damerau_levenshtein(name, setting.name), setting.name)).min();
    let hint = match nearest {
        Some((distance, near)) if distance <= 1 + near.len() / 3 => format!("; the nearest is {PREFIX}{near}"),
        _ => String::new(),
    };
    format!("{PREFIX}{name}: is not a setting{hint}")
}

impl ApiConfig {
    /// Whether this is the token, compared in constant time.
    pub fn is_token(&self, offered: &str) -> bool {
        use subtle::ConstantTimeEq as _;
        self.token.as_ref().is_some_and(|token| token.expose_secret().as_bytes().ct_eq(offered.as_bytes()).into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        Config::read(variables).map_err(|errors| errors.0)
    }

    #[test]
    fn every_setting_has_a_field_of_its_name() {
        let names: Vec<String> = SETTINGS.iter().map(|setting| setting.name.to_lowercase()).collect();
        assert_eq!(names, Raw::names());
    }

    #[test]
    fn without_variables_the_defaults_hold() {
        let config = read(&[("PATH", "/bin"), ("MOONGATE_LISTEN", ""), ("MOONGATE_API_TOKEN", "")]).unwrap();
        assert_eq!(config.listen.to_string(), "0.0.0.0:7272");
        assert_eq!(config.api.listen.to_string(), "127.0.0.1:7273");
        assert_eq!(config.clients.ping_interval, Duration::from_secs(25));
        assert_eq!(config.clients.init_message, r#"{"type":"init","client_id":"{client_id}"}"#);
        assert_eq!(config.clients.send_buffer, 1 << 20);
        assert!(config.api.token.is_none());
    }

    #[test]
    fn an_empty_init_message_is_none_and_not_the_default() {
        assert_eq!(read(&[("MOONGATE_INIT_MESSAGE", "")]).unwrap().clients.init_message, "");
    }

    #[test]
    fn all_mistakes_are_told_at_once_each_with_its_name() {
        let errors = read(&[
            ("MOONGATE_LISTEN", "7272"),
            ("MOONGATE_SEND_BUFER", "1MiB"),
            ("MOONGATE_API_TOKEN", "two words"),
            ("MOONGATE_PING_INTERVAL", "25"),
            ("MOONGATE_TLS_CERT", "cert.pem"),
            ("MOONGATE_WHATEVER_THIS_IS_MEANT_TO_BE", "secret"),
            ("MOONGATE_SLOW_CONSUMER", "wait"),
        ])
        .unwrap_err();
        assert_eq!(
            errors,
            [
                r"MOONGATE_API_TOKEN: got <hidden>, takes 1 to 256 visible ASCII characters",
                r#"MOONGATE_LISTEN: got "7272", takes an address and port, such as 0.0.0.0:7272"#,
                r#"MOONGATE_PING_INTERVAL: got "25", takes a duration, such as 10s, 500ms or 2m"#,
                r"MOONGATE_SEND_BUFER: is not a setting; the nearest is MOONGATE_SEND_BUFFER",
                r#"MOONGATE_SLOW_CONSUMER: got "wait", takes close or drop"#,
                r"MOONGATE_TLS_KEY: is not set, takes a PEM file, as MOONGATE_TLS_CERT is set",
                r"MOONGATE_WHATEVER_THIS_IS_MEANT_TO_BE: is not a setting",
            ]
        );
    }

    #[test]
    fn tokens_need_one_key_and_a_key_is_for_tokens() {
        let pem = rcgen::KeyPair::generate().unwrap();
        let (public, private) = (pem.public_key_pem(), pem.serialize_pem());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &public).unwrap();
        let path = file.path().to_str().unwrap();
        for key in
            [("MOONGATE_JWT_SECRET", "s"), ("MOONGATE_JWT_PUBLIC_KEY", &public), ("MOONGATE_JWT_PUBLIC_KEY", path)]
        {
            for (auth, is_needed) in [("optional", false), ("required", true)] {
                let config = read(&[("MOONGATE_AUTH", auth), key]).unwrap();
                assert_eq!(config.clients.tokens.unwrap().is_needed(), is_needed);
            }
        }
        assert!(read(&[("MOONGATE_AUTH", "none")]).unwrap().clients.tokens.is_none());
        for (settings, words) in [
            (&[("MOONGATE_AUTH", "yes")][..], r#"MOONGATE_AUTH: got "yes", takes none, optional or required"#),
            (&[("MOONGATE_AUTH", "required")], "MOONGATE_JWT_SECRET: is not set"),
            (&[("MOONGATE_JWT_SECRET", "s")], "MOONGATE_AUTH: is not set"),
            (&[("MOONGATE_AUTH", "none"), ("MOONGATE_JWT_PUBLIC_KEY", &public)], "MOONGATE_AUTH: is not set"),
            (
                &[("MOONGATE_AUTH", "required"), ("MOONGATE_JWT_SECRET", "s"), ("MOONGATE_JWT_PUBLIC_KEY", &public)],
                "MOONGATE_JWT_SECRET: one key is taken",
            ),
            (
                &[("MOONGATE_AUTH", "required"), ("MOONGATE_JWT_PUBLIC_KEY", &private)],
                "MOONGATE_JWT_PUBLIC_KEY: got <hidden>, takes an RSA (2048 to 8192 bits), P-256 or Ed25519 public key",
            ),
            (
                &[("MOONGATE_AUTH", "required"), ("MOONGATE_JWT_PUBLIC_KEY", "./nowhere.pem")],
                "MOONGATE_JWT_PUBLIC_KEY: ./nowhere.pem: No such file",
            ),
            (
                &[("MOONGATE_AUTH", "required"), ("MOONGATE_JWT_SECRET", "s"), ("MOONGATE_TCP_LISTEN", "127.0.0.1:0")],
                "MOONGATE_UNAUTHED_TIMEOUT: is needed",
            ),
        ] {
            let errors = read(settings).unwrap_err();
            assert!(errors.len() == 1 && errors[0].starts_with(words), "{words}: {errors:?}");
        }
    }

    #[test]
    fn limits_are_numbers_above_zero_or_off() {
        let clients =
            read(&[("MOONGATE_MAX_CONNECTIONS", "5"), ("MOONGATE_MAX_CONNECTIONS_PER_IP", "off")]).unwrap().clients;
        assert_eq!((clients.max_connections, clients.max_connections_per_ip), (NonZeroU32::new(5), None));
        for (name, value, takes) in [
            ("MAX_CONNECTIONS", "0", "takes a number above zero, or off"),
            ("MAX_CONNECTIONS_PER_IP", "many", "takes a number above zero, or off"),
            ("MAX_MESSAGES_PER_SECOND", "-1", "takes a number above zero, or off"),
            ("UNAUTHED_TIMEOUT", "0s", "takes a duration above zero"),
            ("ALLOWED_ORIGINS", "chat.example", "takes origins such as"),
            ("TRUSTED_PROXIES", "proxy", "takes addresses and networks"),
        ] {
            let errors = read(&[(&format!("MOONGATE_{name}"), value)]).unwrap_err();
            assert!(errors[0].starts_with(&format!("MOONGATE_{name}: got {value:?}, {takes}")), "{errors:?}");
        }
    }

    #[test]
    fn beyond_loopback_the_api_needs_a_token() {
        let errors = read(&[("MOONGATE_API_LISTEN", "0.0.0.0:7273")]).unwrap_err();
        assert!(errors[0].starts_with("MOONGATE_API_TOKEN: is needed"), "{errors:?}");
        assert!(read(&[("MOONGATE_API_LISTEN", "0.0.0.0:7273"), ("MOONGATE_API_TOKEN", "t")]).is_ok());
    }

    #[test]
    fn secrets_are_in_no_debug_output() {
        let config = read(&[("MOONGATE_API_TOKEN", "hunter2hunter2")]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("http://user:hunter2@host", "http://<hidden>@host"),
            ("redis-cluster://:hunter2@a@host:x", "redis-cluster://<hidden>@host:x"),
            ("host:6379", "host:6379"),
            (":hunter2@host", "<hidden>"),
            ("redis-sentinel://host:1?sentinelPassword=hunter2", "redis-sentinel://<hidden>"),
            ("redis-sentinel://:hunter2@host?sentinelPassword=hun?ter2@x&x=hunter2", "redis-sentinel://<hidden>"),
        ] {
            let errors = read(&[("MOONGATE_REDIS_URL", url)]).unwrap_err();
            assert!(errors[0].starts_with(&format!("MOONGATE_REDIS_URL: got {shown:?}, takes ")), "{errors:?}");
            assert!(!errors[0].contains("hunter2"), "{errors:?}");
        }
        assert!(read(&[("MOONGATE_REDIS_URL", "redis://:hunter2@host:1")]).is_ok());
        let config = read(&[("MOONGATE_REDIS_URL", "redis://user:hunter2@host:1/0")]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(config.cluster.unwrap().prefix, "mg");
    }

    #[test]
    fn a_url_of_sentinels_names_the_master_and_each_sentinel() {
        for url in [
            "redis-sentinel://host?sentinelServiceName=mymaster",
            "redis-sentinel://host:26379/?sentinelServiceName=mymaster",
            "rediss-sentinel://user:hunter2@host:1/3?sentinelServiceName=m&node=b:2&node=c:3&sentinelPassword=hunter2",
        ] {
            let config = read(&[("MOONGATE_REDIS_URL", url)]).unwrap();
            assert_eq!(config.cluster.unwrap().redis_url.expose_secret(), url);
        }
        let name =
            "takes the master's name among the sentinels, too: redis-sentinel://host:port?sentinelServiceName=name";
        let places = "takes redis-sentinel://host:port?sentinelServiceName=name&node=host:port, with a node= for ";
        for (url, takes) in [
            ("redis-sentinel://host:26379", name),
            ("redis-sentinel://host:26379/mymaster", name),
            ("rediss-sentinel://host?sentinelServiceName=&node=b:1", name),
            ("redis-sentinel://?sentinelServiceName=m", places),
            ("redis-sentinel://:26379?sentinelServiceName=m", places),
            ("redis-sentinel://a:1,b:2?sentinelServiceName=m", places),
            ("redis-sentinel://a,b?sentinelServiceName=m", places),
            ("redis-sentinel://a:port?sentinelServiceName=m", places),
            ("redis-sentinel://a:1/x?sentinelServiceName=m", places),
            ("redis-sentinel://a:1?sentinelServiceName=m&node=b", places),
            ("redis-sentinel://a:1?sentinelServiceName=m&node=b:2&node=", places),
        ] {
            let errors = read(&[("MOONGATE_REDIS_URL", url)]).unwrap_err();
            assert!(errors[0].starts_with(&format!("MOONGATE_REDIS_URL: got {url:?}, {takes}")), "{errors:?}");
        }
    }

    #[test]
    fn a_url_of_a_cluster_names_one_of_its_servers_or_more_and_no_database() {
        for url in [
            "redis-cluster://host",
            "redis-cluster://host:7000",
            "rediss-cluster://user:hunt@er2@host:1?node=b:2&node=c:3",
        ] {
            assert!(read(&[("MOONGATE_REDIS_URL", url)]).is_ok(), "{url}");
        }
        let takes = "takes redis-cluster://host:port?node=host:port, with a node= for each server more";
        for url in [
            "redis-cluster://",
            "redis-cluster://:7000",
            "redis-cluster://host:port",
            "redis-cluster://host:1/0",
            "redis-cluster://a:1,b:2",
            "redis-cluster://host:1?node=b",
        ] {
            let errors = read(&[("MOONGATE_REDIS_URL", url)]).unwrap_err();
            assert!(errors[0].starts_with(&format!("MOONGATE_REDIS_URL: got {url:?}, {takes}")), "{errors:?}");
        }
    }

    #[test]
    fn events_name_where_they_are_told_and_what_that_needs() {
        let events = |text: &str| {
            read(&[
                ("MOONGATE_EVENTS", text),
                ("MOONGATE_REDIS_URL", "redis://host:1"),
                ("MOONGATE_WEBHOOK_URL", "http://app/hook"),
            ])
            .map(|config| (format!("{:?}", config.events.webhook), format!("{:?}", config.events.stream)))
        };
        let all = "{Connect, Message, Bound, Unbound, Close}".to_owned();
        assert_eq!(events(""), Ok(("{}".to_owned(), "{}".to_owned())));
        assert_eq!(events("stream"), Ok(("{}".to_owned(), all.clone())));
        assert_eq!(events("webhook:close+bound, stream"), Ok(("{Bound, Close}".to_owned(), all)));
        for wrong in ["webhok", "webhook:", "webhook:closed", "stream,stream", ","] {
            assert!(events(wrong).unwrap_err()[0].starts_with("MOONGATE_EVENTS: got"), "{wrong}");
        }
        assert_eq!(
            read(&[("MOONGATE_EVENTS", "webhook,stream")]).unwrap_err(),
            [
                "MOONGATE_REDIS_URL: is needed where MOONGATE_EVENTS names stream",
                "MOONGATE_WEBHOOK_URL: is needed where MOONGATE_EVENTS names webhook",
            ]
        );
        let config =
            read(&[("MOONGATE_WEBHOOK_URL", "http://:hunter2@app/"), ("MOONGATE_WEBHOOK_SECRET", "hunter2")]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn kubernetes_service_links_are_no_settings() {
        read(&[
            ("MOONGATE_SERVICE_HOST", "10.0.0.1"),
            ("MOONGATE_SERVICE_PORT", "7272"),
            ("MOONGATE_SERVICE_PORT_WS", "7272"),
            ("MOONGATE_PORT", "tcp://10.0.0.1:7272"),
            ("MOONGATE_PORT_7272_TCP", "tcp://10.0.0.1:7272"),
            ("MOONGATE_PORT_7272_TCP_ADDR", "10.0.0.1"),
            ("MOONGATE_PORT_53_UDP_PROTO", "udp"),
            ("MOONGATE_LAN_PORT", "tcp://10.0.0.1:2900"),
            ("MOONGATE_API_SERVICE_HOST", "10.0.0.2"),
            ("MOONGATE_API_PORT_7273_TCP_PORT", "7273"),
        ])
        .unwrap();
        assert!(read(&[("MOONGATE_PORT", "7272")]).is_err());
    }

    #[test]
    fn a_caller_of_the_api_needs_no_other_setting_to_be_right() {
        let read = |variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
            CallerConfig::read(variables).map_err(|errors| errors.0)
        };
        let wrong = [("MOONGATE_LISTEN", "7272"), ("MOONGATE_NOTHING", "x"), ("TZ", "Nowhere/At_All")];
        let config = read(&wrong).unwrap();
        assert_eq!((config.listen.to_string().as_str(), config.token.is_none()), ("127.0.0.1:7273", true));
        let config =
            read(&[("MOONGATE_API_LISTEN", "[::]:1"), ("MOONGATE_API_TOKEN", "hunter2"), ("TZ", "Asia/Shanghai")]);
        let config = config.unwrap();
        assert_eq!((config.listen.port(), config.token.is_some()), (1, true));
        assert_eq!(config.time_zone.iana_name(), Some("Asia/Shanghai"));
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(
            read(&[("MOONGATE_API_LISTEN", "7273"), ("MOONGATE_API_TOKEN", "two words")]).unwrap_err(),
            [
                "MOONGATE_API_LISTEN: got \"7273\", takes an address and port, such as 0.0.0.0:7272",
                "MOONGATE_API_TOKEN: got <hidden>, takes 1 to 256 visible ASCII characters",
            ]
        );
    }

    #[test]
    fn traces_are_set_as_for_every_program_with_opentelemetry() {
        let traces =
            |more: &[(&str, &str)]| read(&[&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/")], more].concat());
        assert!(
            read(&[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "jaeger_remote")]).unwrap().traces.is_none()
        );
        for (name, value) in [("OTEL_SDK_DISABLED", "True"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert!(traces(&[(name, value)]).unwrap().traces.is_none(), "{name}");
        }
        let usual = traces(&[("OTEL_SDK_DISABLED", "false"), ("OTEL_BSP_MAX_QUEUE_SIZE", "many")]).unwrap();
        let usual = usual.traces.unwrap();
        assert_eq!(usual.url.expose_secret(), "http://c:4318/v1/traces");
        assert_eq!(usual.resource, [("service.name".to_owned(), "moongate".to_owned())]);
        assert_eq!(Some(usual.sampler), Sampler::named("parentbased_always_off", 1.0));

        let config = traces(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://:hunter2@c/otlp"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20hunter2, x-tenant = 7 ,"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=push,k8s.pod.name=a%2Cb"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ]);
        let config = config.unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        let config = config.traces.unwrap();
        assert_eq!(config.url.expose_secret(), "https://:hunter2@c/otlp");
        assert_eq!(
            (&config.headers["authorization"], &config.headers["x-tenant"]),
            (&HeaderValue::from_static("Basic hunter2"), &HeaderValue::from_static("7"),)
        );
        let resource = [("service.name", "push"), ("k8s.pod.name", "a,b")];
        assert_eq!(config.resource, resource.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert_eq!(Some(config.sampler), Sampler::named("traceidratio", 0.25));
        let named =
            traces(&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=push"), ("OTEL_SERVICE_NAME", "mine")]).unwrap();
        assert_eq!(named.traces.unwrap().resource, [("service.name".to_owned(), "mine".to_owned())]);
    }

    #[test]
    fn what_is_wrong_with_traces_is_told_in_a_line_each() {
        for (name, value, words) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4318", "got \"c:4318\", takes the http://… or https://… of a collector"),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "grpc://:hunter2@c",
                "got \"grpc://<hidden>@c\", takes the http://…",
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "got \"grpc\", takes http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2", "got <hidden>, takes headers"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=hunter2", "got <hidden>, takes headers"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%0A", "got <hidden>, takes headers"),
            ("OTEL_RESOURCE_ATTRIBUTES", "push", "got \"push\", takes key=value"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=%ff", "got \"a=%ff\", takes key=value"),
            ("OTEL_TRACES_EXPORTER", "zipkin", "got \"zipkin\", takes otlp or none"),
            ("OTEL_TRACES_SAMPLER", "sometimes", "got \"sometimes\", takes always_on, always_off"),
        ] {
            let errors = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"), (name, value)]).unwrap_err();
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].starts_with(&format!("{name}: {words}")), "{errors:?}");
        }
        let ratio = |text| {
            [
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
                ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", text),
            ]
        };
        for text in ["1.1", "-0.1", "NaN", "half"] {
            assert_eq!(
                read(&ratio(text)).unwrap_err(),
                [format!("OTEL_TRACES_SAMPLER_ARG: got {text:?}, takes a number from 0 to 1")]
            );
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_value_that_is_not_utf_8_is_named() {
        use std::os::unix::ffi::OsStringExt as _;
        let value = OsString::from_vec(vec![0xff]);
        let errors = Config::read([("MOONGATE_LOG".into(), value.clone()), ("OTHER".into(), value)]).unwrap_err();
        assert_eq!(errors.0, ["MOONGATE_LOG: takes UTF-8 text"]);
    }

    #[test]
    fn durations_and_sizes_are_read_with_their_units() {
        for (text, milliseconds) in [("10s", 10_000), ("500ms", 500), ("2m", 120_000), ("0s", 0), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1.5s", "10 s", "+1s", "99999999999999999999s", "25h", "1d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        for (text, bytes) in [("64KiB", 65_536), ("1MiB", 1 << 20), ("512", 512), ("512B", 512)] {
            assert_eq!(positive_size(text), Some(bytes), "{text}");
        }
        for text in ["", "0", "0MiB", "1KB", "1mib", "1024MiB", "-1", "1 MiB", "99999999999999999999"] {
            assert_eq!(positive_size(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn garbage_in_any_setting_is_one_line_and_not_a_panic(which in 0..SETTINGS.len(), value in ".{0,40}") {
            let name = format!("{PREFIX}{}", SETTINGS[which].name);
            if let Err(lines) = read(&[(&name, &value)]) {
                prop_assert!(lines.iter().all(|line| line.starts_with(PREFIX)));
            }
        }

        #[test]
        fn any_name_is_a_setting_a_service_link_or_a_line(name in "[A-Z_0-9]{0,30}") {
            drop(read(&[(&format!("{PREFIX}{name}"), "x")]));
        }
    }
}
