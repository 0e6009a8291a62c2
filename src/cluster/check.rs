//! What `moongate check` finds in Redis: whether a node can live there, and what had better be otherwise.
//!
//! It only looks: it writes nothing, and subscribes to nothing, as whoever listens counts as a node. What a hosted Redis,
//! or its user's rights, keep to themselves is not told; the rest is looked at all the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::Instant;

use super::directory::Reader;
use super::keys::Keys;
use super::redis::{self, Address, Command, ConnectError, Connection, Place, RedisError, Reply};
use super::{Clock, Refused, refused_url};
use crate::config::ClusterConfig;
use crate::metrics::Metrics;

/// A round trip that takes longer is felt: a change takes several.
const FAR: Duration = Duration::from_millis(5);

/// Round trips of which the middle one counts.
const TRIPS: usize = 9;

/// A node that has told nothing for so long is dead, or has lost Redis.
const SILENT: Duration = Duration::from_secs(5);

/// What may wait for a subscriber, bytes: `pubsub 128mb 64mb 60` is what the documents advise.
const HARD: u64 = 128 << 20;
const SOFT: u64 = 64 << 20;

/// What `INFO` does not tell, and how it had better be.
const CONFIGURED: [(&str, &str); 3] =
    [("client-output-buffer-limit", "pubsub 128mb 64mb 60"), ("timeout", "0"), ("appendfsync", "everysec")];

/// What is said of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It is as it should be.
    Ok,
    /// A node can live with it, and it had better be otherwise.
    Advice,
    /// A node cannot live with it.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it is.
    pub level: Level,
    /// A setting, of Redis or of this machine, or what else it is about; of an error, our own setting.
    pub about: String,
    /// What was found, and what to do.
    pub words: String,
}

impl Finding {
    /// Something that is as it should be.
    pub fn ok(about: &str, words: impl Into<String>) -> Self {
        Self { level: Level::Ok, about: about.to_owned(), words: words.into() }
    }

    /// Something that had better be otherwise.
    pub fn advice(about: &str, words: impl Into<String>) -> Self {
        Self { level: Level::Advice, about: about.to_owned(), words: words.into() }
    }

    /// Something with which a node cannot run.
    pub fn error(about: &str, words: impl Into<String>) -> Self {
        Self { level: Level::Error, about: about.to_owned(), words: words.into() }
    }
}

/// Connects once, checks what answers, and looks around; returns where Redis was found, in words, and the rest.
pub async fn check(config: &ClusterConfig) -> Result<(String, Vec<Finding>), Refused> {
    let address = Address::read(&config.redis_url).map_err(|error| refused_url(None, &error))?;
    let metrics = Arc::new(Metrics::new());
    let opened = Connection::open(&address, &metrics, redis::NO_RING).await;
    let (connection, _alive) = opened.map_err(|error| refused_url(Some(&address), &error))?;
    let place = match (&address, connection.place()) {
        (Address::Sentinels(sentinels), Some(place)) => {
            format!("Redis answers: {place} is the master {}", sentinels.service())
        }
        (Address::Cluster(_), _) => format!("Redis answers: a Cluster of {} masters", connection.servers()),
        _ => "Redis answers".to_owned(),
    };
    let is_cluster = matches!(address, Address::Cluster(_));
    let keys = Keys::new(&config.prefix, is_cluster);
    let look = Look { address: &address, connection, metrics: &metrics, keys, prefix: &config.prefix };
    match look.around().await {
        Ok(findings) => Ok((place, findings)),
        Err(error) => Err(Refused { variable: "MOONGATE_REDIS_URL", why: error.to_string() }),
    }
}

struct Look<'a> {
    address: &'a Address,
    connection: Connection,
    metrics: &'a Arc<Metrics>,
    keys: Keys,
    prefix: &'a str,
}

impl Look<'_> {
    async fn around(&self) -> Result<Vec<Finding>, RedisError> {
        let (mut of_servers, mut replicas) = (Vec::new(), Vec::new());
        for server in self.connection.apart() {
            let place = server.place().map_or_else(|| "the primary".to_owned(), |place| place.to_string());
            let (findings, its_replicas) = self.at(&server).await?;
            of_servers.push((place, findings));
            replicas.extend(its_replicas);
        }
        let mut not_looked_at = Vec::new();
        let looks = replicas.iter().map(|place| self.at_replica(place));
        for (place, looked) in replicas.iter().zip(join_all(looks).await) {
            match looked {
                Ok(findings) => of_servers.push((place.to_string(), findings)),
                Err(why) => not_looked_at.push(Finding::advice(
                    "replica",
                    format!(
                        "{place}: not looked at ({why}). After a failover it may be the primary: see that its settings are the same, and its users"
                    ),
                )),
            }
        }
        let mut findings = together(of_servers);
        findings.append(&mut not_looked_at);
        findings.extend(self.types().await?);
        findings.extend(self.nodes().await?);
        Ok(findings)
    }

    /// Looks at a replica as at a primary, as that is what it is after a failover; until then nodes do without it.
    async fn at_replica(&self, place: &Place) -> Result<Vec<Finding>, ConnectError> {
        let Some(server) = self.address.at(place) else { return Ok(Vec::new()) };
        let (connection, _alive) = Connection::connect(&server, self.metrics, redis::NO_RING, redis::ANSWER).await?;
        let (mut findings, _) = self.at(&connection).await.map_err(|error| ConnectError::Away(error.to_string()))?;
        for finding in findings.iter_mut().filter(|finding| finding.level == Level::Error) {
            finding.level = Level::Advice;
        }
        Ok(findings)
    }

    /// Looks at one server; returns also where its replicas are.
    async fn at(&self, server: &Connection) -> Result<(Vec<Finding>, Vec<Place>), RedisError> {
        let info = server.call(Command::info("default")).await?.text().unwrap_or_default();
        let info = Info::read(&info);
        let asks = CONFIGURED.iter().map(|(name, _)| Command::config("GET").arg(*name)).collect();
        let mut settings = Settings { values: HashMap::new(), refusal: None };
        for ((name, _), reply) in CONFIGURED.into_iter().zip(server.pipeline(asks).await?) {
            match reply {
                Ok(reply) => settings.values.extend(reply.pairs().into_iter().map(|(_, value)| (name, value))),
                Err(error) => settings.refusal = Some(error.to_string()),
            }
        }
        let mut findings = vec![info.server(), round_trip(server).await?, info.policy(), info.memory()];
        findings.push(info.persistence(&settings));
        findings.extend(info.last_save());
        findings.extend(settings.buffers());
        findings.extend(settings.timeout());
        findings.extend(settings.not_told());
        findings.push(info.connections());
        findings.extend(self.rights(server).await?);
        Ok((findings, info.replicas()))
    }

    /// Whether this user may do what a node does. Redis tells from 7.0 on, and tries nothing for it.
    async fn rights(&self, server: &Connection) -> Result<Option<Finding>, RedisError> {
        let channels = if self.keys.are_sharded() { CLUSTER } else { CHANNELS };
        let commands = channels.iter().chain(NEEDED).map(|command| command.replace('%', self.prefix));
        let mut reply = match server.call(Command::script(RIGHTS, []).args(commands)).await {
            Ok(reply) => reply.list().into_iter(),
            Err(error @ RedisError::Refused { .. }) => {
                return Ok(Some(Finding::error("MOONGATE_REDIS_URL", format!("nodes work with scripts: {error}"))));
            }
            Err(away) => return Err(away),
        };
        let is_told = reply.next().is_some_and(|told| told.number() == 1);
        let denied: Vec<String> = reply.filter_map(Reply::text).collect();
        Ok(is_told.then(|| rights(&denied)))
    }

    /// Keys of ours that somebody else has made something of.
    async fn types(&self) -> Result<Vec<Finding>, RedisError> {
        let tasks = self.keys.tasks();
        let expected = [
            (self.keys.nodes(), "zset"),
            (self.keys.runs(), "hash"),
            (self.keys.lan(), "hash"),
            (self.keys.php(), "hash"),
            (self.keys.swept(), "zset"),
            (self.keys.events(), "stream"),
            (self.keys.dead_letters(), "stream"),
            (format!("{{{tasks}}}:due"), "zset"),
            (format!("{{{tasks}}}:ended"), "zset"),
            (format!("{{{tasks}}}:dead"), "zset"),
            (tasks, "stream"),
        ];
        let asks = expected.iter().map(|(key, _)| Command::kind(key.as_str())).collect();
        let kinds = self.connection.pipeline(asks).await?;
        let wrong = |((key, wanted), kind): ((String, &str), Result<Reply, RedisError>)| {
            // What may not be asked is told of above.
            let kind = kind.ok()?.text()?;
            let words = format!("{key} is a {kind}, where nodes keep a {wanted}: another program uses this prefix");
            (kind != "none" && kind != wanted).then(|| Finding::error("MOONGATE_PREFIX", words))
        };
        Ok(expected.into_iter().zip(kinds).filter_map(wrong).collect())
    }

    async fn nodes(&self) -> Result<Option<Finding>, RedisError> {
        let (clock, asked) = (Clock::default(), Instant::now());
        // By the clock of the server that has the leases: what nodes tell of themselves bears its time.
        let time = match self.connection.call(Command::script(TIME, [self.keys.nodes()])).await {
            Ok(time) => time.texts().next().and_then(|seconds| seconds.parse::<u64>().ok()).unwrap_or_default(),
            Err(RedisError::Refused { .. }) => return Ok(None),
            Err(away) => return Err(away),
        };
        clock.set(asked, time * 1000);
        let reader = Reader { keys: &self.keys, connection: self.connection.clone() };
        let mut nodes = match reader.vitals(&clock).await {
            Ok(nodes) => nodes,
            // As above.
            Err(RedisError::Refused { .. }) => return Ok(None),
            Err(away) => return Err(away),
        };
        nodes.sort_unstable_by(|a, b| a.node.cmp(&b.node));
        let list = nodes.iter().map(|node| {
            let silent = if Duration::from_millis(node.age_ms) > SILENT {
                format!(", silent for {} s", node.age_ms / 1000)
            } else {
                String::new()
            };
            format!("{} ({}, {}{silent})", node.node, node.vitals.version, node.vitals.lan)
        });
        let list: Vec<String> = list.collect();
        let words = match list.len() {
            0 => format!("none under the prefix {} yet", self.prefix),
            1 => format!("1 under the prefix {}: {}", self.prefix, list.concat()),
            many => format!("{many} under the prefix {}: {}", self.prefix, list.join(", ")),
        };
        Ok(Some(Finding::ok("nodes", words)))
    }
}

async fn round_trip(server: &Connection) -> Result<Finding, RedisError> {
    let mut trips = Vec::new();
    for _ in 0..TRIPS {
        let asked = Instant::now();
        server.call(Command::client("ID")).await?;
        trips.push(asked.elapsed());
    }
    trips.sort_unstable();
    let trip = trips.get(TRIPS / 2).copied().unwrap_or_default();
    let words = format!("{:.2} ms", trip.as_secs_f64() * 1000.0);
    Ok(if trip > FAR {
        Finding::advice(
            "round trip",
            format!("{words}: each change takes several of them; Redis belongs near the nodes"),
        )
    } else {
        Finding::ok("round trip", words)
    })
}

/// What was found on all servers is said once, and of other things where they were found.
fn together(of_servers: Vec<(String, Vec<Finding>)>) -> Vec<Finding> {
    let all = of_servers.len();
    let mut found: Vec<(Finding, Vec<String>)> = Vec::new();
    for (place, findings) in of_servers {
        for finding in findings {
            match found.iter_mut().find(|(other, _)| *other == finding) {
                Some((_, places)) => places.push(place.clone()),
                None => found.push((finding, vec![place.clone()])),
            }
        }
    }
    let said = found.into_iter().map(|(finding, places)| {
        let words =
            if places.len() == all { finding.words } else { format!("{}: {}", places.join(", "), finding.words) };
        Finding { words, ..finding }
    });
    said.collect()
}

/// What `INFO` says, by name.
struct Info<'a>(HashMap<&'a str, &'a str>);

impl<'a> Info<'a> {
    fn read(info: &'a str) -> Self {
        Self(info.lines().filter_map(|line| line.trim_end().split_once(':')).collect())
    }

    fn text(&self, name: &str) -> &'a str {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name).parse().ok()
    }

    fn server(&self) -> Finding {
        let version = self.text("redis_version");
        let role = match self.number("connected_slaves").unwrap_or_default() {
            _ if self.text("role") == "slave" => "a replica".to_owned(),
            0 => "a primary with no replica".to_owned(),
            1 => "a primary with 1 replica".to_owned(),
            many => format!("a primary with {many} replicas"),
        };
        let server = match self.text("valkey_version") {
            "" => format!("Redis {version}"),
            valkey => format!("Valkey {valkey}, which is Redis {version} to its users"),
        };
        Finding::ok("server", format!("{server}, {role}"))
    }

    /// Where its replicas are, by what it knows of them: `slave0:ip=10.0.0.5,port=6379,state=online,…`.
    fn replicas(&self) -> Vec<Place> {
        let of = |(name, row): (&&str, &&str)| {
            name.strip_prefix("slave")?.parse::<u32>().ok()?;
            let field = |name: &str| row.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            Some(Place { host: field("ip")?.to_owned(), port: field("port")?.parse().ok()? })
        };
        let mut replicas: Vec<Place> = self.0.iter().filter_map(of).collect();
        replicas.sort_unstable_by(|one, other| (&one.host, one.port).cmp(&(&other.host, other.port)));
        replicas
    }

    fn policy(&self) -> Finding {
        let about = "maxmemory-policy";
        let lost = match self.text("maxmemory_policy") {
            "noeviction" => return Finding::ok(about, "noeviction"),
            "" => return Finding::advice(about, "not told: see that it is noeviction"),
            policy if policy.starts_with("volatile") => {
                "what expires: ids of tasks that are done, and which nodes are dead"
            }
            _ => "who is online, and queued tasks",
        };
        let policy = self.text("maxmemory_policy");
        let words = format!(
            "{policy}: when memory is short, Redis throws away {lost}. CONFIG SET maxmemory-policy noeviction, and that line in redis.conf"
        );
        Finding::advice(about, words)
    }

    fn memory(&self) -> Finding {
        let about = "maxmemory";
        let (Some(used), Some(most)) = (self.number("used_memory"), self.number("maxmemory")) else {
            return Finding::advice(about, "not told: see that it is set, and half of the memory left");
        };
        if most == 0 {
            let words = "not set: Redis grows until the system ends it. Set it, and leave half of the memory for rewriting its file";
            return Finding::advice(about, words);
        }
        let words = format!("{} of {} are in use", size(used), size(most));
        if used / 4 > most / 5 {
            return Finding::advice(about, format!("{words}: when it is full, Redis refuses changes"));
        }
        Finding::ok(about, words)
    }

    fn persistence(&self, settings: &Settings) -> Finding {
        let about = "appendonly";
        match (self.number("aof_enabled"), settings.get("appendfsync")) {
            (Some(1), Some("no")) => Finding::advice(
                about,
                "yes, but appendfsync no: a crash of the machine takes queued tasks of half a minute along. CONFIG SET appendfsync everysec",
            ),
            (Some(1), Some("always")) => {
                Finding::ok(about, "yes, appendfsync always: what was answered survives a crash")
            }
            (Some(1), Some("everysec")) => Finding::ok(about, "yes: what was written a second ago survives a crash"),
            (Some(1), _) => {
                Finding::ok(about, "yes; appendfsync, which says how much a crash takes along, is not told")
            }
            (Some(_), _) => Finding::advice(
                about,
                "no: with Redis' process all queued tasks, crons and events are lost that are in no snapshot (who is online is written again). CONFIG SET appendonly yes, and that line in redis.conf",
            ),
            (None, _) => {
                Finding::advice(about, "not told: see that it is yes, or queued tasks are lost with Redis' process")
            }
        }
    }

    fn last_save(&self) -> Option<Finding> {
        let failed = ["rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status"];
        let failed = failed.into_iter().find(|name| self.text(name) == "err")?;
        Some(Finding::advice(
            "disk",
            format!("{failed} is err: Redis could not save, and may refuse changes until it can"),
        ))
    }

    fn connections(&self) -> Finding {
        let about = "maxclients";
        let (Some(now), Some(most)) = (self.number("connected_clients"), self.number("maxclients")) else {
            return Finding::advice(about, "not told: a node takes four connections, and applications theirs");
        };
        let words = format!("{now} of {most} connections are in use");
        if now > most / 5 * 4 {
            return Finding::advice(about, format!("{words}: a node takes four, and applications theirs"));
        }
        Finding::ok(about, words)
    }
}

/// What `CONFIG GET` says, by name; and its refusal, if there was one.
struct Settings {
    values: HashMap<&'static str, String>,
    refusal: Option<String>,
}

impl Settings {
    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// All that could not be asked, in one.
    fn not_told(&self) -> Option<Finding> {
        let untold = CONFIGURED.iter().filter(|(name, _)| self.get(name).is_none());
        let untold: Vec<String> = untold.map(|(name, good)| format!("{name} is {good}")).collect();
        if untold.is_empty() {
            return None;
        }
        let why = self.refusal.as_deref().unwrap_or("Redis has no such setting");
        Some(Finding::advice("CONFIG GET", format!("not told ({why}): see that {}", untold.join(", and "))))
    }

    fn buffers(&self) -> Option<Finding> {
        let (about, good) = CONFIGURED[0];
        let mut words = self.get(about)?.split(' ').skip_while(|word| *word != "pubsub").skip(1);
        let mut number = || words.next()?.parse::<u64>().ok();
        let (hard, soft, seconds) = (number()?, number()?, number()?);
        let found = format!("pubsub {} {} {seconds}", megabytes(hard), megabytes(soft));
        let is_enough = |limit: u64, wanted: u64| limit == 0 || limit >= wanted;
        if is_enough(hard, HARD) && is_enough(soft, SOFT) {
            return Some(Finding::ok(about, found));
        }
        let words = format!(
            "{found}: beyond it Redis cuts off a node for which messages wait, and what is said until it is back is missed. CONFIG SET {about} \"{good}\", and in redis.conf: {about} {good}"
        );
        Some(Finding::advice(about, words))
    }

    fn timeout(&self) -> Option<Finding> {
        match self.get("timeout")? {
            "0" => Some(Finding::ok("timeout", "0")),
            seconds => Some(Finding::advice(
                "timeout",
                format!(
                    "{seconds}: Redis ends what is silent for so many seconds, as applications often are. CONFIG SET timeout 0"
                ),
            )),
        }
    }
}

/// Without these a node works, and says in its log what it could not do.
const DISPENSABLE: [&str; 3] = ["CLIENT KILL", "CLIENT LIST", "CLIENT UNBLOCK"];

fn rights(denied: &[String]) -> Finding {
    let (less, needed): (Vec<&String>, Vec<&String>) =
        denied.iter().partition(|command| DISPENSABLE.iter().any(|less| command.starts_with(less)));
    let list = |commands: &[&String]| {
        let mut list: Vec<String> = commands.iter().take(5).map(|command| format!("'{command}'")).collect();
        if commands.len() > list.len() {
            list.push(format!("and {} more", commands.len() - list.len()));
        }
        list.join(", ")
    };
    let refused = |commands: &[&String], so: &str| {
        format!("Redis does not let this user {}{so}; SECURITY.md says what a node must be allowed", list(commands))
    };
    if !needed.is_empty() {
        return Finding::error("MOONGATE_REDIS_URL", refused(&needed, ""));
    }
    if !less.is_empty() {
        let so = ": connections that are over stay for longer, and a stopping node waits for its reading of tasks";
        return Finding::advice("rights", refused(&less, so));
    }
    Finding::ok("rights", "all that a node does")
}

/// The time of the server that has a key.
const TIME: &str = "return redis.call('TIME')";

/// Returns whether it can be told, 1 or 0, and those of the commands in ARGV that this user may not give.
const RIGHTS: &str = "
local denied = {redis.acl_check_cmd and 1 or 0}
if redis.acl_check_cmd then
    for _, command in ipairs(ARGV) do
        local words = {}
        for word in string.gmatch(command, '[^ ]+') do
            words[#words + 1] = word
        end
        local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
        if not (known and allowed) then
            denied[#denied + 1] = command
        end
    end
end
return denied";

/// What nodes do with channels, of each kind; `%` is the prefix.
const CHANNELS: &[&str] = &[
    "PUBLISH %:all x",
    "PUBLISH %.ask x",
    "SUBSCRIBE %:all",
    "SUBSCRIBE %.ask",
    "PSUBSCRIBE %:client:x*",
    "PUBSUB NUMSUB %:all",
    "UNSUBSCRIBE %:all",
];

/// The same on a Cluster, and what else there is.
const CLUSTER: &[&str] = &[
    "SPUBLISH %:all x",
    "SPUBLISH %.ask x",
    "SSUBSCRIBE %:all",
    "SSUBSCRIBE %.ask",
    "PUBSUB SHARDNUMSUB %:all",
    "SUNSUBSCRIBE %:all",
    "CLUSTER SLOTS",
    "ASKING",
];

/// Every other command that nodes and their scripts give, once, and first each kind of key.
const NEEDED: &[&str] = &[
    "HSET %:client:x f v",
    "HSET {%:nodes}:runs f v",
    "CLIENT ID",
    "CLIENT INFO",
    "CLIENT KILL ID 1",
    "CLIENT LIST",
    "CLIENT SETNAME x",
    "CLIENT UNBLOCK 1",
    "DEL %:client:x",
    "EXISTS %:client:x",
    "EXPIRE {%:tasks}:x 1",
    "GET {%:uid:x:clients}:seq",
    "HDEL %:client:x f",
    "HEXISTS {%:tasks}:x f",
    "HGET %:client:x f",
    "HGETALL %:client:x",
    "HKEYS {%:nodes}:php",
    "HLEN %:clients:x",
    "HMGET {%:tasks}:x f",
    "HSCAN %:clients:x 0",
    "INFO",
    "LLEN {%:tasks}:x",
    "LRANGE {%:tasks}:x 0 1",
    "PEXPIRE {%:nodes}:swept 1",
    "RPUSH %:reply:x x",
    "SADD %:uid:x:clients x",
    "SCARD %:uid:x:clients",
    "SET {%:nodes}:sweeper:x x",
    "SMEMBERS %:uid:x:clients",
    "SREM %:uid:x:clients x",
    "SSCAN %:uid:x:clients 0",
    "TIME",
    "UNLINK %:client:x",
    "XACK %:tasks g 0-1",
    "XADD %:events * f v",
    "XCLAIM %:tasks g c 1 0-1",
    "XDEL %:tasks 0-1",
    "XGROUP CREATE %:tasks g 0",
    "XGROUP DELCONSUMER %:tasks g c",
    "XINFO CONSUMERS %:tasks g",
    "XINFO GROUPS %:tasks",
    "XINFO STREAM %:tasks",
    "XLEN %:tasks",
    "XPENDING %:tasks g",
    "XRANGE %:tasks - +",
    "XREADGROUP GROUP g c STREAMS %:tasks >",
    "ZADD %:nodes 1 x",
    "ZCARD {%:tasks}:due",
    "ZRANGE %:nodes 0 1",
    "ZRANGEBYSCORE {%:tasks}:due 0 1",
    "ZREM %:nodes x",
    "ZREMRANGEBYSCORE {%:nodes}:swept 0 1",
    "ZSCORE %:nodes x",
];

/// As Redis' settings write it.
fn megabytes(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) && bytes > 0 { format!("{}mb", bytes >> 20) } else { bytes.to_string() }
}

fn size(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\n\r\n# Clients\r\nconnected_clients:3\r\nmaxclients:10000\r\n\
        # Memory\r\nused_memory:1048576\r\nmaxmemory:536870912\r\nmaxmemory_policy:noeviction\r\n\
        # Persistence\r\nrdb_last_bgsave_status:ok\r\naof_enabled:1\r\naof_last_write_status:ok\r\n\
        # Replication\r\nrole:master\r\nconnected_slaves:1\r\n";

    fn settings(values: &[(&'static str, &str)]) -> Settings {
        let values = values.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Settings { values, refusal: None }
    }

    /// A Redis that says this in place of that.
    fn with(replaced: &str, by: &str) -> String {
        assert!(INFO.contains(replaced), "{replaced}");
        INFO.replace(replaced, by)
    }

    #[test]
    fn a_redis_as_the_documents_have_it_is_good_in_everything() {
        let info = Info::read(INFO);
        let settings = settings(&[
            ("client-output-buffer-limit", "normal 0 0 0 slave 268435456 67108864 60 pubsub 134217728 67108864 60"),
            ("timeout", "0"),
            ("appendfsync", "everysec"),
        ]);
        let findings = [
            Some(info.server()),
            Some(info.policy()),
            Some(info.memory()),
            Some(info.persistence(&settings)),
            Some(info.connections()),
            settings.buffers(),
            settings.timeout(),
        ];
        let words: Vec<String> = findings
            .into_iter()
            .map(|finding| {
                let finding = finding.unwrap();
                assert_eq!(finding.level, Level::Ok, "{finding:?}");
                finding.words
            })
            .collect();
        assert_eq!(
            words,
            [
                "Redis 7.0.15, a primary with 1 replica",
                "noeviction",
                "1.0 MiB of 512.0 MiB are in use",
                "yes: what was written a second ago survives a crash",
                "3 of 10000 connections are in use",
                "pubsub 128mb 64mb 60",
                "0",
            ]
        );
        assert_eq!((info.last_save(), settings.not_told(), rights(&[]).level), (None, None, Level::Ok));
    }

    #[test]
    fn what_had_better_be_otherwise_is_told_with_what_to_do() {
        for (policy, lost) in [("allkeys-lru", "who is online, and queued tasks"), ("volatile-ttl", "ids of tasks")] {
            let Finding { level, words, .. } = Info::read(&with("noeviction", policy)).policy();
            assert_eq!(level, Level::Advice);
            assert!(words.starts_with(policy) && words.contains(lost) && words.contains("CONFIG SET"), "{words}");
        }
        for (replaced, by, word) in [
            ("maxmemory:536870912", "maxmemory:0", "not set"),
            ("used_memory:1048576", "used_memory:500000000", "refuses changes"),
        ] {
            let Finding { level, words, .. } = Info::read(&with(replaced, by)).memory();
            assert!(level == Level::Advice && words.contains(word), "{words}");
        }
        let lazy = settings(&[("appendfsync", "no")]);
        for (info, word) in
            [(with("aof_enabled:1", "aof_enabled:0"), "in no snapshot"), (INFO.to_owned(), "appendfsync no")]
        {
            let Finding { level, words, .. } = Info::read(&info).persistence(&lazy);
            assert!(level == Level::Advice && words.contains(word), "{words}");
        }
        let (unsaved, crowded) = (with("bgsave_status:ok", "bgsave_status:err"), with("clients:3", "clients:9000"));
        let found = [Info::read(&unsaved).last_save(), Some(Info::read(&crowded).connections())];
        assert_eq!(found.map(|found| found.unwrap().level), [Level::Advice; 2]);
        let usual = settings(&[("client-output-buffer-limit", "normal 0 0 0 slave 0 0 0 pubsub 33554432 8388608 60")]);
        let words = usual.buffers().unwrap().words;
        assert!(words.starts_with("pubsub 32mb 8mb 60: ") && words.contains("pubsub 128mb 64mb 60"), "{words}");
        assert_eq!(settings(&[("timeout", "300")]).timeout().unwrap().level, Level::Advice);
        let unlimited = settings(&[("client-output-buffer-limit", "pubsub 0 0 0")]);
        assert_eq!(unlimited.buffers().unwrap().level, Level::Ok);
    }

    #[test]
    fn what_redis_keeps_to_itself_is_said_to_be_not_told_and_never_guessed() {
        let hosted = Settings { values: HashMap::new(), refusal: Some("NOPERM".to_owned()) };
        assert_eq!((hosted.buffers(), hosted.timeout()), (None, None));
        let Finding { level, words, .. } = hosted.not_told().unwrap();
        assert_eq!(
            (level, &*words),
            (
                Level::Advice,
                "not told (NOPERM): see that client-output-buffer-limit is pubsub 128mb 64mb 60, and timeout is 0, and appendfsync is everysec"
            )
        );
        let words = Info::read(INFO).persistence(&hosted).words;
        assert!(words.starts_with("yes; ") && words.ends_with("is not told"), "{words}");
        let nothing = Info::read("redis_version:7.0.15\r\n");
        for finding in [nothing.policy(), nothing.memory(), nothing.persistence(&hosted), nothing.connections()] {
            assert!(finding.level == Level::Advice && finding.words.starts_with("not told"), "{finding:?}");
        }
    }

    #[test]
    fn replicas_are_where_their_primary_says() {
        let rows = "role:master\r\nslave1:ip=fd00::5,port=6380,state=online,offset=1,lag=0\r\n\
            slave0:ip=10.0.0.5,port=6379,state=wait_bgsave\r\nslave_expires_tracked_keys:0\r\nslave2:strange\r\n";
        let places: Vec<String> = Info::read(rows).replicas().iter().map(Place::to_string).collect();
        assert_eq!(places, ["10.0.0.5:6379", "[fd00::5]:6380"]);
        assert_eq!(Info::read(INFO).replicas(), []);
        let words = Info::read("redis_version:7.0.15\r\nrole:slave\r\nconnected_slaves:0\r\n").server().words;
        assert_eq!(words, "Redis 7.0.15, a replica");
    }

    #[test]
    fn what_is_so_on_all_servers_is_said_once() {
        let [aof, no_aof] = [Finding::ok("appendonly", "yes"), Finding::advice("appendonly", "no")];
        let version = Finding::ok("server", "Redis 7.0.15");
        let of = |place: &str, aof: &Finding| (place.to_owned(), vec![version.clone(), aof.clone()]);
        let found = together(vec![of("a:1", &aof), of("b:1", &no_aof), of("c:1", &aof)]);
        assert_eq!(
            found,
            [version, Finding::ok("appendonly", "a:1, c:1: yes"), Finding::advice("appendonly", "b:1: no")]
        );
    }

    #[test]
    fn a_right_that_a_node_needs_is_an_error_and_one_that_it_can_do_without_is_advice() {
        let [kill, add] = ["CLIENT KILL ID 1", "XADD mg:events * f v"].map(str::to_owned);
        assert_eq!(rights(std::slice::from_ref(&kill)).level, Level::Advice);
        let both = rights(&[kill, add.clone()]);
        assert!(both.level == Level::Error && both.words.contains("'XADD mg:events * f v';"), "{}", both.words);
        let many = rights(&vec![add; 7]);
        assert!(many.words.contains("and 2 more"), "{}", many.words);
    }

    #[test]
    fn every_command_that_is_given_is_asked_about() {
        let scripts = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cluster/scripts")).unwrap();
        let mut given: Vec<String> = Command::NAMES.iter().map(|name| (*name).to_owned()).collect();
        for script in scripts {
            let script = std::fs::read_to_string(script.unwrap().path()).unwrap();
            for call in
                script.split("redis.").filter_map(|call| call.strip_prefix("call(").or(call.strip_prefix("pcall(")))
            {
                given.extend(call.strip_prefix('\'').and_then(|call| Some(call.split_once('\'')?.0.to_owned())));
            }
        }
        // How it asks itself, what only this asks, and what sentinels are asked.
        given.retain(|name| !["EVAL", "CONFIG", "TYPE", "SENTINEL"].contains(&name.as_str()));
        for name in given {
            let mut asked = NEEDED.iter().chain(CHANNELS).chain(CLUSTER);
            assert!(asked.any(|command| command.split(' ').next() == Some(&name)), "{name}");
        }
    }
}
