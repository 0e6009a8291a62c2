//! The gateway under test: nodes and their Redis, started for the run or running already.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum, value_parser};
use rustls::ClientConfig;

use crate::certificate::Certificate;
use crate::http::{self, Api, Caller};
use crate::process::{self, Meter, Process};
use crate::publish::{Kind, Wire};
use crate::redis::{Address, Redis};
use crate::{PATIENCE, Result};

/// Which gateway to test.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// Start this gateway for the run: on free ports, without heartbeats (`MOONGATE_PING_INTERVAL=0s`)
    #[arg(long, value_name = "PATH", conflicts_with_all = ["ws", "api"])]
    spawn: Option<PathBuf>,
    /// One more variable for the started gateway; may be repeated, and wins over ours
    #[arg(long, value_name = "KEY=VALUE", requires = "spawn", conflicts_with_all = ["ws", "api"])]
    env: Vec<String>,
    /// So many nodes of it, joined through Redis; `1,2` runs the same against one node and against two, in turn
    #[arg(long, value_delimiter = ',', value_parser = value_parser!(u8).range(1..=16))]
    #[arg(requires = "spawn", conflicts_with_all = ["ws", "api"])]
    nodes: Vec<u8>,
    /// Their Redis is a Cluster of so many masters, started for the run, and 0 is a single one; `0,3` runs the same with
    /// both, in turn
    #[arg(long, value_delimiter = ',', value_parser = value_parser!(u8).range(0..=16))]
    masters: Vec<u8>,
    /// The started gateway speaks wss, with a certificate made for the run; modes that publish run the same against a
    /// plain one, in turn
    #[arg(long)]
    tls: bool,
    /// A running gateway instead: where clients connect; may be repeated for several nodes
    #[arg(long, value_name = "URL", requires = "api")]
    ws: Vec<String>,
    /// Its HTTP API; once for all nodes, or as often as --ws and in the same order
    #[arg(long, value_name = "URL", requires = "ws")]
    api: Vec<String>,
    /// Bearer token of the API; a started gateway gets it too
    #[arg(long)]
    token: Option<String>,
    /// Process whose CPU and memory count as the server's; may be repeated, and adds to a started gateway
    #[arg(long)]
    pid: Vec<u32>,
    /// Publish through this Redis (`redis://host:port`, `redis+unix:///path`); a started gateway gets it too
    #[arg(long, value_name = "URL", conflicts_with = "redis_spawn")]
    redis: Option<String>,
    /// Start a private Redis (with --masters: Cluster) for the run, and one more for each further gateway; it keeps nothing
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "redis-server")]
    redis_spawn: Option<PathBuf>,
    /// First part of the gateway's channels; a started gateway gets it too
    #[arg(long, default_value = "mg")]
    prefix: String,
    /// How messages are published; by default through Redis if there is one
    #[arg(long, value_enum)]
    door: Option<Door>,
}

/// How messages get to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Door {
    /// `POST /api/…`, one request at a time on each connection
    Http,
    /// `PUBLISH` (on a Cluster `SPUBLISH`), pipelined
    Redis,
    /// `XADD` to the task stream, pipelined; tasks run side by side, so order is told but not asked for
    Tasks,
    /// `GatewayWorker`'s inner protocol, pipelined; of a gateway that was started for the run, and of one node
    Php,
}

impl Door {
    /// For a title.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Redis => "Redis",
            Self::Tasks => "tasks",
            Self::Php => "PHP",
        }
    }
}

/// One of the gateways to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// For the reader.
    pub(crate) name: String,
    /// Whether its clients speak TLS.
    pub(crate) tls: bool,
    /// How many nodes it has.
    pub(crate) nodes: u8,
    /// How many masters the Cluster has that is its Redis; 0 where it is none.
    pub(crate) masters: u8,
}

/// One of its processes.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Where clients connect.
    pub(crate) clients: SocketAddr,
    /// Its HTTP API.
    pub(crate) api: Api,
    /// Where PHP finds it, if that is how messages are published.
    php: Option<SocketAddr>,
}

/// A gateway that answers.
#[derive(Debug)]
pub(crate) struct Target {
    /// At least one.
    pub(crate) nodes: Vec<Node>,
    /// Whose certificate the clients trust, when they speak TLS.
    pub(crate) trust: Option<Arc<ClientConfig>>,
    /// What the nodes use.
    pub(crate) meter: Meter,
    prefix: String,
    door: Door,
    processes: Vec<Process>,
    // after the nodes, which say goodbye to it
    /// Theirs.
    pub(crate) redis: Option<Arc<Redis>>,
}

impl TargetArgs {
    /// How messages are published.
    pub(crate) fn door(&self) -> Result<Door> {
        match self.door {
            Some(Door::Php) if self.spawn.is_none() || self.nodes.iter().any(|&nodes| nodes != 1) => {
                Err("--door php: only with --spawn, and of one node, as PHP asks each node itself".into())
            }
            Some(Door::Redis | Door::Tasks) if !self.has_redis() => {
                Err("--door redis, --door tasks: name one, --redis or --redis-spawn".into())
            }
            Some(door) => Ok(door),
            None => Ok(if self.has_redis() { Door::Redis } else { Door::Http }),
        }
    }

    /// What the gateway that is started for the run calls itself.
    pub(crate) fn version(&self) -> Option<String> {
        version(self.spawn.as_deref()?)
    }

    /// Every way to publish that there is, or the one that was named.
    pub(crate) fn doors(&self) -> Result<Vec<Door>> {
        Ok(match (self.door()?, self.door) {
            (Door::Redis, None) => vec![Door::Http, Door::Redis],
            (door, _) => vec![door],
        })
    }

    /// How often a started gateway pings its clients, if it does.
    pub(crate) fn heartbeat(&self) -> Result<Option<Duration>> {
        let mut words = self.env.iter().filter_map(|pair| pair.strip_prefix("MOONGATE_PING_INTERVAL="));
        let interval = words.next_back().map(crate::parse_duration).transpose()?;
        Ok(interval.filter(|interval| !interval.is_zero()))
    }

    fn has_redis(&self) -> bool {
        self.redis.is_some() || self.redis_spawn.is_some()
    }

    /// The gateways to compare, the one that the others are compared with in front; none when none was named.
    pub(crate) fn clusters(&self) -> Result<Vec<Cluster>> {
        if self.spawn.is_none() && self.tls {
            return Err(
                "--tls: only with --spawn, as the gateway has to show the certificate that the tester makes".into()
            );
        }
        if !self.masters.is_empty() && (self.spawn.is_none() || self.redis_spawn.is_none()) {
            return Err("--masters: only with --spawn and --redis-spawn, which start a Cluster for the run".into());
        }
        let counted = |count: u8, what: &str| format!(", {count} {what}{}", if count == 1 { "" } else { "s" });
        let mut clusters = Vec::new();
        // what was not named is not in the name
        for masters in some_or_none(&self.masters) {
            let of_masters = masters.map_or_else(String::new, |masters| match masters {
                0 => ", single Redis".to_owned(),
                masters => counted(masters, "master"),
            });
            for nodes in some_or_none(&self.nodes) {
                let of_nodes = nodes.map_or_else(String::new, |nodes| counted(nodes, "node"));
                let name = format!("gateway{of_nodes}{of_masters}");
                clusters.push(Cluster { name, tls: false, nodes: nodes.unwrap_or(1), masters: masters.unwrap_or(0) });
            }
        }
        if self.spawn.is_none() && self.api.is_empty() {
            clusters.clear();
        }
        if self.tls {
            let [cluster] = &*clusters else {
                return Err("--tls: not with several --nodes or --masters to compare".into());
            };
            let named = |name: &str, tls| Cluster { name: name.to_owned(), tls, ..*cluster };
            clusters = vec![named("gateway plain", false), named("gateway over TLS", true)];
        }
        if clusters.iter().any(|cluster| cluster.nodes > 1) && !self.has_redis() {
            return Err("--nodes: several find each other through Redis, --redis or --redis-spawn".into());
        }
        self.redis.as_deref().map(Address::parse).transpose()?;
        if clusters.len() > 1 && !self.pid.is_empty() {
            return Err("--pid: not where several gateways are compared, as the process would count for each".into());
        }
        if clusters.len() > 1 && self.redis.is_some() {
            return Err(
                "--redis: not where several gateways are compared, as they would hear each other; --redis-spawn".into(),
            );
        }
        Ok(clusters)
    }

    /// The only gateway, for modes that compare none; with `--tls` the one that speaks it.
    pub(crate) fn cluster(&self) -> Result<Option<Cluster>> {
        let clusters = self.clusters()?;
        if !self.tls && clusters.len() > 1 {
            return Err("--nodes, --masters: this mode takes one number".into());
        }
        Ok(clusters.into_iter().next_back())
    }

    /// The only gateway, which can be started once more.
    pub(crate) fn again(&self) -> Result<Cluster> {
        match (&self.spawn, <[Cluster; 1]>::try_from(self.clusters()?), &self.redis) {
            (Some(_), Ok([cluster]), None) => Ok(cluster),
            _ => {
                Err("--slow: only with --spawn, of one gateway, and with a Redis of its own if any, --redis-spawn"
                    .into())
            }
        }
    }

    /// Starts or finds a Redis, if one is wanted; a Cluster, if it is to have `masters`.
    pub(crate) fn redis(&self, masters: u8) -> Result<Option<Arc<Redis>>> {
        let redis = match (&self.redis, &self.redis_spawn) {
            (Some(url), _) => Redis::named(url)?,
            (None, Some(path)) => Redis::spawn(path, masters)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(Arc::new(redis)))
    }

    /// Starts or finds the gateway and waits until every node is ready.
    pub(crate) fn open(&self, cluster: &Cluster) -> Result<Target> {
        let redis = self.redis(cluster.masters)?;
        let certificate = if cluster.tls { Some(Certificate::issue()?) } else { None };
        let trust = certificate.as_ref().map(Certificate::trust).transpose()?;
        let api = |address| Api { address, token: self.token.clone() };
        let (mut nodes, mut processes, mut pids) = (Vec::new(), Vec::new(), self.pid.clone());
        let door = self.door()?;
        // until all listen
        let mut reserved = Vec::new();
        if let Some(path) = &self.spawn {
            for _ in 0..cluster.nodes {
                let mut port = || -> Result<SocketAddr> {
                    let (socket, address) = process::reserve_port()?;
                    reserved.push(socket);
                    Ok(address)
                };
                let php = if door == Door::Php { Some(port()?) } else { None };
                let node = Node { clients: port()?, api: api(port()?), php };
                let process = self.start(path, &node, redis.as_deref(), certificate.as_ref())?;
                pids.push(process.id());
                processes.push(process);
                nodes.push(node);
            }
        } else {
            if self.api.len() > 1 && self.api.len() != self.ws.len() {
                return Err("--api: once, or as often as --ws".into());
            }
            for (ws, url) in self.ws.iter().zip(self.api.iter().cycle()) {
                nodes.push(Node {
                    clients: http::address("ws", ws)?,
                    api: api(http::address("http", url)?),
                    php: None,
                });
            }
        }
        let prefix = self.prefix.clone();
        let mut target = Target { nodes, trust, meter: Meter { pids }, prefix, door, processes, redis };
        target.await_ready()?;
        Ok(target)
    }

    fn start(
        &self,
        path: &Path,
        node: &Node,
        redis: Option<&Redis>,
        certificate: Option<&Certificate>,
    ) -> Result<Process> {
        let directory = Process::directory()?;
        let mut command = Command::new(path);
        command
            .env("MOONGATE_LISTEN", node.clients.to_string())
            .env("MOONGATE_API_LISTEN", node.api.address.to_string())
            .env("MOONGATE_LAN_LISTEN", node.php.map_or("off".to_owned(), |php| php.to_string()))
            .env("MOONGATE_REGISTER_LISTEN", "off")
            .env("MOONGATE_PING_INTERVAL", "0s")
            .env("MOONGATE_DRAIN", "0s");
        if let Some(redis) = redis {
            command.env("MOONGATE_REDIS_URL", &redis.url).env("MOONGATE_PREFIX", &self.prefix);
        }
        if let Some(certificate) = certificate {
            let (cert, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
            certificate.write(&cert, &key)?;
            command.env("MOONGATE_TLS_CERT", cert).env("MOONGATE_TLS_KEY", key);
        }
        if let Some(token) = &self.token {
            command.env("MOONGATE_API_TOKEN", token);
        }
        for pair in &self.env {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("--env {pair}: KEY=VALUE is wanted"))?;
            command.env(key, value);
        }
        Process::start("the gateway", &mut command, directory)
    }
}

/// Each of the values, or that there is none.
fn some_or_none(values: &[u8]) -> Vec<Option<u8>> {
    if values.is_empty() { vec![None] } else { values.iter().copied().map(Some).collect() }
}

/// What a gateway calls itself, such as `moongate 0.1.0`.
pub(crate) fn version(path: &Path) -> Option<String> {
    let output = Command::new(path).arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !version.is_empty()).then_some(version)
}

impl Target {
    fn await_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for node in &self.nodes {
            while let Err(why) = node.api.ready() {
                crate::interrupted()?;
                self.processes.iter_mut().try_for_each(Process::check)?;
                if Instant::now() > deadline {
                    let address = node.api.address;
                    return Err(format!("http://{address}/readyz: not ready within {PATIENCE:?}: {why}").into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// A connection to the API of each node.
    pub(crate) fn callers(&self) -> Result<Vec<Caller>> {
        self.nodes.iter().map(|node| Caller::new(&node.api)).collect()
    }

    /// How many clients it lists, on all nodes.
    pub(crate) fn listed(&self) -> Result<u64> {
        self.callers()?.into_iter().next().map_or(Ok(0), |mut node| node.clients())
    }

    /// How many it lists beside `others`, given time to forget who left until they are no more than `clients`.
    pub(crate) fn settled(&self, others: u64, clients: u64) -> Result<u64> {
        let end = Instant::now() + PATIENCE;
        loop {
            let listed = self.listed()?.saturating_sub(others);
            if listed <= clients || Instant::now() > end {
                return Ok(listed);
            }
            crate::interrupted()?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How to publish to it; over HTTP always by the first node.
    pub(crate) fn wire(&self, kind: Kind) -> Result<Wire> {
        self.wire_through(self.door, kind)
    }

    /// How to publish to it through this door, which must be there.
    pub(crate) fn wire_through(&self, door: Door, kind: Kind) -> Result<Wire> {
        match (door, &self.redis, &*self.nodes) {
            (Door::Php, _, [Node { php: Some(php), .. }, ..]) => Ok(Wire::Php(*php, kind)),
            (Door::Tasks, Some(redis), _) => Ok(Wire::Tasks(redis.servers.clone(), self.prefix.clone(), kind)),
            (Door::Redis, Some(redis), _) => Ok(Wire::Redis(redis.servers.clone(), self.prefix.clone(), kind)),
            (_, _, [node, ..]) => Ok(Wire::Http(node.api.clone(), kind)),
            _ => Err("--ws: at least one node is needed".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        target: TargetArgs,
    }

    fn args(line: &str) -> TargetArgs {
        Line::parse_from(format!("loadtest {line}").split(' ')).target
    }

    fn names(line: &str) -> Vec<String> {
        args(line).clusters().unwrap().into_iter().map(|cluster| cluster.name).collect()
    }

    #[test]
    fn gateways_to_compare() {
        assert_eq!(names("--prefix x"), [""; 0]);
        assert_eq!(names("--spawn moongate --pid 7"), ["gateway"]);
        assert_eq!(names("--ws 127.0.0.1:1 --ws 127.0.0.1:2 --api 127.0.0.1:3"), ["gateway"]);
        assert_eq!(names("--spawn moongate --nodes 2 --redis redis://127.0.0.1:1 --pid 7"), ["gateway, 2 nodes"]);
        let two = ["gateway, 1 node", "gateway, 2 nodes"];
        assert_eq!(names("--spawn moongate --nodes 1,2 --redis-spawn"), two);
        assert_eq!(names("--spawn moongate --tls"), ["gateway plain", "gateway over TLS"]);
        assert!(args("--spawn moongate --tls").cluster().unwrap().unwrap().tls);
        assert!(args("--spawn moongate --nodes 1,2 --redis-spawn").cluster().is_err());
        let masters = ["gateway, single Redis", "gateway, 1 master", "gateway, 3 masters"];
        assert_eq!(names("--spawn moongate --masters 0,1,3 --redis-spawn"), masters);
        let both = ["gateway, 1 node, 1 master", "gateway, 2 nodes, 1 master"]
            .into_iter()
            .chain(["gateway, 1 node, 3 masters", "gateway, 2 nodes, 3 masters"]);
        assert_eq!(names("--spawn moongate --nodes 1,2 --masters 1,3 --redis-spawn"), both.collect::<Vec<_>>());
        let three = args("--spawn moongate --nodes 2 --masters 3 --redis-spawn").cluster().unwrap().unwrap();
        assert_eq!((three.nodes, three.masters), (2, 3));
    }

    #[test]
    fn what_is_for_a_started_gateway_is_refused_for_a_running_one() {
        for flag in ["--nodes 2", "--env A=b", "--spawn moongate"] {
            let line = format!("loadtest --ws 127.0.0.1:1 --api 127.0.0.1:2 --redis redis://127.0.0.1:3 {flag}");
            let Err(error) = Line::try_parse_from(line.split(' ')) else { panic!("{flag} was taken") };
            assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict, "{flag}");
        }
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        for (line, flag) in [
            ("--tls", "--tls: "),
            ("--ws 127.0.0.1:1 --api 127.0.0.1:2 --pid 7 --tls", "--tls: "),
            ("--spawn moongate --nodes 1,2 --redis-spawn --tls", "--tls: "),
            ("--spawn moongate --masters 0,3 --redis-spawn --tls", "--tls: "),
            ("--spawn moongate --masters 0,3 --redis-spawn --pid 7", "--pid: "),
            ("--spawn moongate --pid 7 --tls", "--pid: "),
            ("--spawn moongate --nodes 1,2 --redis-spawn --pid 7", "--pid: "),
            ("--spawn moongate --nodes 2", "--nodes: "),
            ("--spawn moongate --masters 3", "--masters: "),
            ("--spawn moongate --redis redis://127.0.0.1:1 --masters 3", "--masters: "),
            ("--redis-spawn --ws 127.0.0.1:1 --api 127.0.0.1:2 --masters 3", "--masters: "),
            ("--spawn moongate --nodes 1,2 --redis redis://127.0.0.1:1", "--redis: "),
        ] {
            let error = args(line).clusters().unwrap_err().to_string();
            assert!(error.starts_with(flag), "{line}: {error}");
        }
    }

    #[test]
    fn doors() {
        assert_eq!(args("--spawn moongate").door().unwrap(), Door::Http);
        assert_eq!(args("--redis-spawn --spawn moongate").door().unwrap(), Door::Redis);
        assert_eq!(args("--redis redis://127.0.0.1:1 --door http").door().unwrap(), Door::Http);
        assert!(args("--spawn moongate --door redis").door().is_err());
        assert!(args("--spawn moongate --door tasks").door().is_err());
        assert_eq!(args("--spawn moongate --redis-spawn --door tasks").doors().unwrap(), [Door::Tasks]);
        assert_eq!(args("--spawn moongate --redis-spawn").doors().unwrap(), [Door::Http, Door::Redis]);
        assert_eq!(args("--spawn moongate").doors().unwrap(), [Door::Http]);
        assert_eq!(args("--spawn moongate --door php").door().unwrap(), Door::Php);
        for line in ["--spawn moongate --nodes 2 --redis-spawn", "--ws 127.0.0.1:1 --api 127.0.0.1:2"] {
            assert!(args(&format!("{line} --door php")).door().is_err());
        }
    }
}
