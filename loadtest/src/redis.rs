//! Just enough Redis: commands and answers (RESP2), a private server for the run, and what a server says that it used.

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

/// A Redis that answers.
#[derive(Debug)]
pub(crate) struct Redis {
    /// As a gateway takes it.
    pub(crate) url: String,
    /// Where it listens.
    pub(crate) address: Address,
    _process: Option<Process>,
}

impl Redis {
    /// One that runs.
    pub(crate) fn named(url: &str) -> Result<Self> {
        let address = Address::parse(url)?;
        let pong = address.connect().and_then(|mut socket| ask(&mut socket, &["PING"]));
        pong.map_err(|error| format!("{url}: {error}"))?;
        Ok(Self { url: url.to_owned(), address, _process: None })
    }

    /// Starts one of our own on a free port, which keeps nothing, and waits until it answers.
    pub(crate) fn spawn(path: &Path) -> Result<Self> {
        let directory = Process::directory()?;
        let (_reserved, address) = process::reserve_port()?;
        let mut command = Command::new(path);
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--dir"]).arg(directory.path());
        command.args(["--save", "", "--appendonly", "no", "--maxclients", "100000"]);
        let mut process = Process::start("redis-server", &mut command, directory)?;
        let url = format!("redis://{address}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::named(&url) {
                Ok(redis) => return Ok(Self { _process: Some(process), ..redis }),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
            crate::interrupted()?;
            process.check()?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Bytes that it has allocated (`used_memory`).
    pub(crate) fn memory(&self) -> Result<u64> {
        let info = ask(&mut self.address.connect()?, &["INFO", "memory"])?;
        let memory = figure(&String::from_utf8_lossy(&info), "used_memory");
        memory.ok_or_else(|| format!("{}: INFO was not understood", self.url).into())
    }

    /// What it used so far.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let mut socket = self.address.connect()?;
        let sections = ["server", "cpu", "commandstats"].map(|section| ask(&mut socket, &["INFO", section]));
        let info = sections.into_iter().collect::<Result<Vec<_>>>()?.concat();
        Usage::read(&String::from_utf8_lossy(&info))
            .ok_or_else(|| format!("{}: INFO was not understood", self.url).into())
    }
}

/// The value of a line such as `used_memory:1836` of an `INFO`.
fn figure<T: std::str::FromStr>(info: &str, key: &str) -> Option<T> {
    info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok())
}

/// CPU time and commands of a Redis, by its own account: exact to a microsecond, and known of a server elsewhere too.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Of the server, such as `7.0.15`, if it says so.
    pub(crate) version: Option<String>,
    /// All threads of the server.
    pub(crate) cpu: Cpu,
    /// Calls by name, those from inside scripts too; not our own `INFO`.
    pub(crate) calls: BTreeMap<String, u64>,
}

impl Usage {
    fn read(info: &str) -> Option<Self> {
        let seconds = |key: &str| Some(Duration::try_from_secs_f64(figure(info, key)?).ok()?.as_micros() as u64);
        let calls = info.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        });
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        Some(Self {
            version: version.map(|version| version.trim().to_owned()),
            cpu: Cpu { user: seconds("used_cpu_user")?, system: seconds("used_cpu_sys")? },
            calls: calls.filter(|(name, _)| name != "info").collect(),
        })
    }

    /// What was used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let calls = self.calls.iter().map(|(name, count)| {
            let earlier = before.calls.get(name).copied().unwrap_or(0);
            (name.clone(), count.saturating_sub(earlier))
        });
        let calls = calls.filter(|(_, count)| *count > 0).collect();
        Self { version: self.version.clone(), cpu: self.cpu.since(before.cpu), calls }
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
                      cmdstat_publish:calls=10,usec=30,usec_per_call=3.00\r\ncmdstat_ping:calls=1,usec=1\r\n";
        let after = "redis_version:7.0.15\r\nused_cpu_sys:0.25\r\nused_cpu_user:1.500007\r\ncmdstat_ping:calls=1,usec=1\r\n\
                     cmdstat_publish:calls=12,usec=36\r\ncmdstat_info:calls=7,usec=1\r\ncmdstat_client|id:calls=1,usec=1\r\n";
        let used = Usage::read(after).unwrap().since(&Usage::read(before).unwrap());
        assert_eq!((used.cpu, used.version.as_deref()), (Cpu { user: 7, system: 0 }, Some("7.0.15")));
        assert_eq!(used.calls, [("client|id".to_owned(), 1), ("publish".to_owned(), 2)].into());
        assert_eq!(Usage::read("# CPU\r\n"), None);
    }

    #[test]
    fn a_private_one_answers_until_it_is_dropped() {
        let redis = Redis::spawn(Path::new("redis-server")).expect("these tests need redis-server: apt install it");
        let mut socket = redis.address.connect().unwrap();
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
