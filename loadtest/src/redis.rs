//! Just enough Redis: commands and answers (RESP2), a private server or Cluster for the run, and what a server says that
//! it used.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::process::{self, Cpu, Process};
use crate::{PATIENCE, Result, http, socket};

/// Where a Redis listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// `redis://host:port`
    Tcp(SocketAddr),
    /// `redis+unix:///path`
    Unix(PathBuf),
}

impl Address {
    /// Reads a URL.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        if let Some(path) = url.strip_prefix("redis+unix://") {
            return Ok(Self::Unix(path.into()));
        }
        if !url.starts_with("redis://") || url.contains('@') {
            return Err("--redis: redis://host:port or redis+unix:///path is wanted, and no password".into());
        }
        // databases do not separate channels
        Ok(Self::Tcp(http::address("redis", url.strip_suffix("/0").unwrap_or(url))?))
    }

    /// Opens a connection.
    pub(crate) fn connect(&self) -> Result<Socket> {
        match self {
            Self::Tcp(address) => socket::tcp(*address, None),
            Self::Unix(path) => socket::unix(path),
        }
    }
}

/// How many slots a Cluster has.
const SLOTS: usize = 16_384;

/// The slot of a key or channel: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.
fn slot(name: &str) -> usize {
    // of a name with braces only what is in the first pair counts, if anything is
    let tag = name.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let counts = tag.filter(|tag| !tag.is_empty()).unwrap_or(name);
    // CRC-16/XMODEM
    let step = |crc: u16, _| (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 };
    let crc = counts.bytes().fold(0, |crc: u16, byte| (0..8).fold(crc ^ (u16::from(byte) << 8), step));
    usize::from(crc) % SLOTS
}

/// The servers of a Redis: one, or the masters of a Cluster, each with an equal range of the slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Servers {
    all: Vec<Address>,
    is_cluster: bool,
}

impl Servers {
    /// One that is no Cluster.
    pub(crate) fn single(address: Address) -> Self {
        Self { all: vec![address], is_cluster: false }
    }

    /// The number of the server that has a key or channel.
    pub(crate) fn owner(&self, name: &str) -> usize {
        if self.is_cluster { slot(name) * self.all.len() / SLOTS } else { 0 }
    }

    /// The first slot of the server with this number; those of the last one end before [`SLOTS`].
    fn first_slot(&self, number: usize) -> usize {
        (number * SLOTS).div_ceil(self.all.len().max(1))
    }

    /// Opens a connection to the server with this number.
    pub(crate) fn connect(&self, number: usize) -> Result<Socket> {
        self.all.get(number).ok_or("no such server of Redis")?.connect()
    }

    /// The server with this number, for an error.
    pub(crate) fn name(&self, number: usize) -> String {
        self.all.get(number).map_or_else(String::new, |address| format!("{address:?}"))
    }

    /// The command that publishes: on a Cluster channels are in slots, too.
    pub(crate) fn publish(&self) -> &'static str {
        if self.is_cluster { "SPUBLISH" } else { "PUBLISH" }
    }
}

/// A Redis that answers.
#[derive(Debug)]
pub(crate) struct Redis {
    /// As a gateway takes it.
    pub(crate) url: String,
    /// Where it listens.
    pub(crate) servers: Servers,
    processes: Vec<Process>,
}

impl Redis {
    /// One that runs.
    pub(crate) fn named(url: &str) -> Result<Self> {
        let servers = Servers::single(Address::parse(url)?);
        let redis = Self { url: url.to_owned(), servers, processes: Vec::new() };
        redis.pong()?;
        Ok(redis)
    }

    /// Starts one of our own on free ports, which keeps nothing, and waits until it answers: a single server, or, if
    /// `masters` are more than none, a Cluster of so many, without replicas.
    pub(crate) fn spawn(path: &Path, masters: u8) -> Result<Self> {
        let is_cluster = masters > 0;
        // until all listen
        let mut reserved = Vec::new();
        let mut port = || -> Result<SocketAddr> {
            let (socket, address) = process::reserve_port()?;
            reserved.push(socket);
            Ok(address)
        };
        let (mut processes, mut places) = (Vec::new(), Vec::new());
        for _ in 0..masters.max(1) {
            let directory = Process::directory()?;
            let (address, bus) = (port()?, port()?.port().to_string());
            let mut command = Command::new(path);
            command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--dir"]).arg(directory.path());
            command.args(["--save", "", "--appendonly", "no", "--maxclients", "100000"]);
            if is_cluster {
                command.args(["--cluster-enabled", "yes", "--cluster-port", &bus]);
                // of many some miss each other, and greet anew after this time
                command.args(["--cluster-node-timeout", "1000"]);
            }
            processes.push(Process::start("redis-server", &mut command, directory)?);
            places.push((address, bus));
        }
        let names: Vec<String> = places.iter().map(|(address, _)| address.to_string()).collect();
        let scheme = if is_cluster { "redis-cluster" } else { "redis" };
        let url = format!("{scheme}://{}", names.join("&node=").replacen('&', "?", 1));
        let all = places.iter().map(|(address, _)| Address::Tcp(*address)).collect();
        let mut redis = Self { url, servers: Servers { all, is_cluster }, processes };
        redis.patiently(Self::pong)?;
        if is_cluster {
            redis.join(&places)?;
            redis.patiently(Self::whole)?;
            // Redis' own default: nobody is dead who only has much to do
            let lenient = ["CONFIG", "SET", "cluster-node-timeout", "15000"];
            redis.each(|socket| ask(socket, &lenient).map(drop))?;
        }
        Ok(redis)
    }

    /// Gives each server its slots, and tells the first of the others, from which they then hear of each other. Each place
    /// is an address and the port at which they do.
    fn join(&self, places: &[(SocketAddr, String)]) -> Result<()> {
        for number in 0..places.len() {
            let (first, end) = (self.servers.first_slot(number), self.servers.first_slot(number + 1));
            let (first, last) = (first.to_string(), (end - 1).to_string());
            let mut socket = self.servers.connect(number)?;
            ask(&mut socket, &["CLUSTER", "ADDSLOTSRANGE", &first, &last])?;
            // who has the same one as another has to find that out first
            ask(&mut socket, &["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()])?;
        }
        let mut socket = self.servers.connect(0)?;
        for (address, bus) in places.iter().skip(1) {
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            ask(&mut socket, &["CLUSTER", "MEET", &ip, &port, bus])?;
        }
        Ok(())
    }

    /// Tries until that succeeds.
    fn patiently(&mut self, attempt: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = attempt(self) {
            if Instant::now() > deadline {
                return Err(error);
            }
            crate::interrupted()?;
            self.processes.iter_mut().try_for_each(Process::check)?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Makes sure that every server answers.
    fn pong(&self) -> Result<()> {
        self.each(|socket| ask(socket, &["PING"]).map(drop))
    }

    /// Makes sure that every server of a Cluster knows all of them, and who has which slots.
    fn whole(&self) -> Result<()> {
        self.each(|socket| {
            let info = ask(socket, &["CLUSTER", "INFO"])?;
            let info = String::from_utf8_lossy(&info);
            let (state, known) = (figure::<String>(&info, "cluster_state"), figure(&info, "cluster_known_nodes"));
            if state.as_deref() == Some("ok") && known == Some(self.servers.all.len()) {
                return Ok(());
            }
            Err(format!("the Cluster is not whole: state {state:?}, {known:?} servers known").into())
        })
    }

    /// Does it with a connection to each server.
    fn each(&self, mut action: impl FnMut(&mut Socket) -> Result<()>) -> Result<()> {
        self.servers.all.iter().try_for_each(|address| {
            let done = address.connect().and_then(|mut socket| action(&mut socket));
            done.map_err(|error| format!("Redis, {address:?}: {error}").into())
        })
    }

    /// Bytes that it has allocated (`used_memory`), on all servers.
    pub(crate) fn memory(&self) -> Result<u64> {
        let mut sum = 0;
        self.each(|socket| {
            let info = ask(socket, &["INFO", "memory"])?;
            sum += figure::<u64>(&String::from_utf8_lossy(&info), "used_memory").ok_or(NO_INFO)?;
            Ok(())
        })?;
        Ok(sum)
    }

    /// What it used so far, on all servers.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let mut sum = Usage::default();
        self.each(|socket| {
            let sections = ["server", "cpu", "stats", "commandstats"].map(|section| ask(socket, &["INFO", section]));
            let info = sections.into_iter().collect::<Result<Vec<_>>>()?.concat();
            sum.add(Usage::read(&String::from_utf8_lossy(&info)).ok_or(NO_INFO)?);
            Ok(())
        })?;
        Ok(sum)
    }
}

const NO_INFO: &str = "the answer to INFO was not understood";

/// The value of a line such as `used_memory:1836` of an `INFO`.
fn figure<T: std::str::FromStr>(info: &str, key: &str) -> Option<T> {
    info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok())
}

/// CPU time, commands and traffic of a Redis, by its own account: exact to a microsecond, and known of a server elsewhere
/// too.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Of the servers, such as `7.0.15`, if they say so.
    pub(crate) version: Option<String>,
    /// All threads of each server.
    pub(crate) servers: Vec<Cpu>,
    /// Calls by name, those from inside scripts too; not our own `INFO`.
    pub(crate) calls: BTreeMap<String, u64>,
    /// Bytes from clients and other programs, not from servers of the same Cluster.
    pub(crate) received: u64,
    /// Bytes to them; the answer to our own `INFO`, a few KB, is among them.
    pub(crate) sent: u64,
}

impl Usage {
    /// Reads the answer of one server.
    fn read(info: &str) -> Option<Self> {
        let seconds = |key: &str| Some(Duration::try_from_secs_f64(figure(info, key)?).ok()?.as_micros() as u64);
        let calls = info.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        });
        Some(Self {
            version: figure(info, "redis_version"),
            servers: vec![Cpu { user: seconds("used_cpu_user")?, system: seconds("used_cpu_sys")? }],
            calls: calls.filter(|(name, _)| name != "info").collect(),
            received: figure(info, "total_net_input_bytes")?,
            sent: figure(info, "total_net_output_bytes")?,
        })
    }

    /// Counts one more server.
    fn add(&mut self, other: Self) {
        self.version = self.version.take().or(other.version);
        self.servers.extend(other.servers);
        for (name, calls) in other.calls {
            *self.calls.entry(name).or_default() += calls;
        }
        self.received += other.received;
        self.sent += other.sent;
    }

    /// CPU time of all servers.
    pub(crate) fn cpu(&self) -> Cpu {
        let sum = |sum: Cpu, cpu: &Cpu| Cpu { user: sum.user + cpu.user, system: sum.system + cpu.system };
        self.servers.iter().fold(Cpu::default(), sum)
    }

    /// The busiest server's share of it, where there are several: each has one core, whatever the others do.
    pub(crate) fn busiest(&self) -> Option<f64> {
        let busiest = self.servers.iter().map(|cpu| cpu.total()).max().filter(|_| self.servers.len() > 1)?;
        Some(busiest as f64 / self.cpu().total().max(1) as f64)
    }

    /// What was used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let calls = self.calls.iter().map(|(name, count)| {
            let earlier = before.calls.get(name).copied().unwrap_or(0);
            (name.clone(), count.saturating_sub(earlier))
        });
        Self {
            version: self.version.clone(),
            servers: self.servers.iter().zip(&before.servers).map(|(now, before)| now.since(*before)).collect(),
            calls: calls.filter(|(_, count)| *count > 0).collect(),
            received: self.received.saturating_sub(before.received),
            sent: self.sent.saturating_sub(before.sent),
        }
    }
}

/// Sends a command and waits for its one answer: the bytes of a text, or the whole as it came.
pub(crate) fn ask(socket: &mut Socket, words: &[&str]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    command(&mut out, &bytes);
    socket.write_all(&out)?;
    let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = socket.read(&mut buffer)?;
        if count == 0 {
            return Err("Redis closed the connection".into());
        }
        input.extend_from_slice(buffer.get(..count).unwrap_or_default());
        match front(&input)? {
            None => {}
            Some((Value::Error(words), _)) => return Err(words.into()),
            Some((Value::Text(text), _)) => return Ok(text.to_owned()),
            Some(_) => return Ok(input),
        }
    }
}

/// Appends a command.
pub(crate) fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    let number = |letter: char, value: usize, out: &mut Vec<u8>| write!(out, "{letter}{value}\r\n").ok();
    number('*', words.len(), out);
    for word in words {
        number('$', word.len(), out);
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// An answer, or what a subscriber hears.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A text of either kind, `+` or `$`.
    Text(&'a [u8]),
    /// What went wrong.
    Error(String),
    /// A number.
    Integer(i64),
    /// Nothing.
    Nil,
    /// Several.
    Array(Vec<Value<'a>>),
}

/// The value at the front of `input` and what follows it, `None` while it is incomplete.
pub(crate) fn front(input: &[u8]) -> Result<Option<(Value<'_>, &[u8])>> {
    let Some(end) = input.windows(2).position(|bytes| bytes == b"\r\n") else {
        return Ok(None);
    };
    let (line, rest) = input.split_at_checked(end).unwrap_or_default();
    let mut rest = rest.get(2..).unwrap_or_default();
    let foreign = || format!("no answer of a Redis: {}", String::from_utf8_lossy(line));
    let (&kind, line) = line.split_first().ok_or_else(foreign)?;
    let number = || -> Result<i64> { Ok(std::str::from_utf8(line)?.parse().map_err(|_| foreign())?) };
    let value = match kind {
        b'+' => Value::Text(line),
        b'-' => Value::Error(String::from_utf8_lossy(line).into_owned()),
        b':' => Value::Integer(number()?),
        b'$' | b'*' => match (kind, usize::try_from(number()?)) {
            (_, Err(_)) => Value::Nil,
            (b'$', Ok(length)) => {
                let Some((text, after)) = rest.split_at_checked(length).filter(|(_, after)| after.len() >= 2) else {
                    return Ok(None);
                };
                rest = after.get(2..).unwrap_or_default();
                Value::Text(text)
            }
            (_, Ok(count)) => {
                let mut values = Vec::new();
                for _ in 0..count {
                    let Some((value, after)) = front(rest)? else {
                        return Ok(None);
                    };
                    rest = after;
                    values.push(value);
                }
                Value::Array(values)
            }
        },
        _ => return Err(foreign().into()),
    };
    Ok(Some((value, rest)))
}

/// The payload of what a subscriber hears at the front of `input` and what follows it, `None` while it is incomplete.
pub(crate) fn message(input: &[u8]) -> Result<Option<(&[u8], &[u8])>> {
    let Some((value, rest)) = front(input)? else {
        return Ok(None);
    };
    match &value {
        Value::Array(heard) if let [_, _, Value::Text(payload)] = &**heard => Ok(Some((*payload, rest))),
        other => Err(format!("not what a subscriber hears: {other:?}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_texts() {
        let mut out = Vec::new();
        command(&mut out, &[b"PUBLISH", b"mg:uid:7", b"\xff\r\n"]);
        assert_eq!(out, b"*3\r\n$7\r\nPUBLISH\r\n$8\r\nmg:uid:7\r\n$3\r\n\xff\r\n\r\n");
    }

    #[test]
    fn answers_whole_and_cut() {
        let values: [(&[u8], Value<'_>); 8] = [
            (b":12\r\n", Value::Integer(12)),
            (b"+PONG\r\n", Value::Text(b"PONG")),
            (b"$0\r\n\r\n", Value::Text(b"")),
            (b"$4\r\na\r\nb\r\n", Value::Text(b"a\r\nb")),
            (b"$-1\r\n", Value::Nil),
            (b"*-1\r\n", Value::Nil),
            (b"-ERR no\r\n", Value::Error("ERR no".to_owned())),
            (
                b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n:1\r\n",
                Value::Array(vec![Value::Text(b"message"), Value::Text(b"c"), Value::Integer(1)]),
            ),
        ];
        for (input, value) in values {
            for cut in 0..input.len() {
                assert_eq!(front(&input[..cut]).unwrap(), None, "{value:?} cut at {cut}");
            }
            let more = [input, b":1\r\n"].concat();
            assert_eq!(front(&more).unwrap(), Some((value, &b":1\r\n"[..])));
        }
        for foreign in [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"\r\n", b":x\r\n", b"$x\r\n"] {
            assert!(front(foreign).is_err());
        }
    }

    #[test]
    fn addresses() {
        let tcp = Address::Tcp("127.0.0.1:6379".parse().unwrap());
        assert_eq!(Address::parse("redis://127.0.0.1:6379/0").unwrap(), tcp);
        assert_eq!(Address::parse("redis+unix:///run/r.sock").unwrap(), Address::Unix("/run/r.sock".into()));
        for refused in [
            "127.0.0.1:6379",
            "rediss://127.0.0.1:6379",
            "redis://:secret@127.0.0.1:6379",
            "redis://127.0.0.1",
            "redis://127.0.0.1:6379/1",
        ] {
            assert!(Address::parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn usage_is_read() {
        let before = "# CPU\r\nused_cpu_sys:0.250000\r\nused_cpu_user:1.5\r\nused_cpu_sys_children:9\r\n\
                      total_net_input_bytes:1000\r\ntotal_net_output_bytes:300\r\n\
                      cmdstat_publish:calls=10,usec=30,usec_per_call=3.00\r\ncmdstat_ping:calls=1,usec=1\r\n";
        let after = "redis_version:7.0.15\r\nused_cpu_sys:0.25\r\nused_cpu_user:1.500007\r\ncmdstat_ping:calls=1,usec=1\r\n\
                     total_net_input_bytes:1500\r\ntotal_net_output_bytes:320\r\n\
                     cmdstat_publish:calls=12,usec=36\r\ncmdstat_info:calls=7,usec=1\r\ncmdstat_client|id:calls=1,usec=1\r\n";
        let used = Usage::read(after).unwrap().since(&Usage::read(before).unwrap());
        assert_eq!((used.cpu(), used.version.as_deref()), (Cpu { user: 7, system: 0 }, Some("7.0.15")));
        assert_eq!((used.received, used.sent, used.busiest()), (500, 20, None));
        assert_eq!(used.calls, [("client|id".to_owned(), 1), ("publish".to_owned(), 2)].into());
        assert_eq!(Usage::read("# CPU\r\n"), None);
    }

    #[test]
    fn servers_are_summed_and_the_busiest_told() {
        let server = |user, calls| Usage {
            version: Some("7.0.15".to_owned()),
            servers: vec![Cpu { user, system: 10 }],
            calls: [("spublish".to_owned(), calls)].into(),
            received: 100,
            sent: 1,
        };
        let mut before = server(0, 1);
        before.add(server(5, 2));
        let mut after = server(20, 4);
        after.add(server(65, 8));
        let used = after.since(&before);
        assert_eq!((used.cpu(), used.busiest()), (Cpu { user: 80, system: 0 }, Some(0.75)));
        assert_eq!(used.calls, [("spublish".to_owned(), 9)].into());
        assert_eq!((after.received, after.sent), (200, 2));
    }

    #[test]
    fn names_are_in_the_slots_of_the_specification() {
        // its own examples
        assert_eq!(slot("123456789"), 0x31c3);
        assert_eq!(slot("{user1000}.following"), slot("user1000"));
        for whole in ["foo{}{bar}", "foo{bar", "foo}bar{"] {
            assert_ne!(slot(whole), slot("bar"), "{whole}");
        }
        assert_eq!(slot("foo{{bar}}zap"), slot("{bar"));
        assert_eq!(slot("foo{bar}{zap}"), slot("bar"));
    }

    #[test]
    fn every_slot_has_one_owner_and_ranges_are_equal() {
        for masters in 1..=16 {
            let address = Address::Unix(PathBuf::new());
            let servers = Servers { all: vec![address; masters], is_cluster: true };
            let mut seen = 0;
            for number in 0..masters {
                let (first, end) = (servers.first_slot(number), servers.first_slot(number + 1));
                assert!(end - first >= SLOTS / masters, "{number} of {masters}");
                assert!((first..end).all(|slot| slot * masters / SLOTS == number), "{number} of {masters}");
                assert_eq!(first, seen);
                seen = end;
            }
            assert_eq!(seen, SLOTS);
        }
    }

    #[test]
    fn a_private_cluster_has_every_name_where_it_is_looked_for() {
        let redis = Redis::spawn(Path::new("redis-server"), 3).expect("these tests need redis-server: apt install it");
        assert_eq!(redis.url.matches(['?', '&']).collect::<String>(), "?&", "{}", redis.url);
        let names =
            (0..100).map(|number| format!("mg:uid:u{number}")).chain(["{mg:tasks}:x", "a{}b"].map(str::to_owned));
        let mut asked = [0; 3];
        for name in names {
            let owner = redis.servers.owner(&name);
            let mut socket = redis.servers.connect(owner).unwrap();
            assert_eq!(ask(&mut socket, &["SPUBLISH", &name, "nobody hears"]).unwrap(), b":0\r\n", "{name}");
            asked[owner] += 1;
        }
        assert!(asked.iter().all(|asked| *asked > 20), "{asked:?}");
        assert_eq!(redis.usage().unwrap().calls.get("spublish"), Some(&102));
        assert!(redis.memory().unwrap() > 3_000_000);
    }

    #[test]
    fn a_private_one_answers_until_it_is_dropped() {
        let redis = Redis::spawn(Path::new("redis-server"), 0).expect("these tests need redis-server: apt install it");
        let mut socket = redis.servers.connect(0).unwrap();
        assert_eq!(ask(&mut socket, &["CONFIG", "GET", "save"]).unwrap(), b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n");
        let before = redis.usage().unwrap();
        assert!(ask(&mut socket, &["PUBLISH"]).unwrap_err().to_string().contains("wrong number of arguments"));
        assert_eq!(ask(&mut socket, &["PUBLISH", "nobody", "hears"]).unwrap(), b":0\r\n");
        assert_eq!(redis.usage().unwrap().since(&before).calls.get("publish"), Some(&1));
        assert!(Redis::named("redis+unix:///nowhere").is_err());
        let url = redis.url.clone();
        drop(redis);
        assert!(Redis::named(&url).is_err());
    }
}
