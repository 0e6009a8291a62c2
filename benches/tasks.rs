//! What queued tasks cost, end to end: a real Redis, a real node, a program that adds tasks to the stream and hears what
//! comes of them on the channel that they publish to.
//!
//! With `--test` it only shows that it works.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark that cannot run shall stop")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[path = "../tests/it/port.rs"]
mod port;

/// What is ended with the benchmark.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Running {
    fn of(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// What it has used of a processor, s.
    fn processor_time(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

/// A connection to Redis.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(port: u16) -> Self {
        let started = Instant::now();
        loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => return Self(BufReader::new(stream)),
                Err(error) => assert!(started.elapsed() < Duration::from_secs(5), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn encode(out: &mut Vec<u8>, words: &[&str]) {
        write!(out, "*{}\r\n", words.len()).unwrap();
        for word in words {
            write!(out, "${}\r\n{word}\r\n", word.len()).unwrap();
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n") && !line.starts_with('-'), "{line}");
        line
    }

    /// The texts and numbers of a reply, whatever its shape.
    fn reply(&mut self) -> Vec<String> {
        let line = self.line();
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "*" => (0..rest.parse::<i64>().unwrap().max(0)).flat_map(|_| self.reply()).collect(),
            "$" if rest == "-1" => vec![String::new()],
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                vec![String::from_utf8(bytes).unwrap()]
            }
            _ => vec![rest.to_owned()],
        }
    }

    fn call(&mut self, words: &[&str]) -> Vec<String> {
        let mut command = Vec::new();
        Self::encode(&mut command, words);
        self.0.get_mut().write_all(&command).unwrap();
        self.reply()
    }

    /// Adds tasks, five hundred in one go.
    fn add(&mut self, tasks: &[Vec<String>]) {
        for lot in tasks.chunks(500) {
            let mut commands = Vec::new();
            for task in lot {
                let words: Vec<&str> =
                    ["XADD", "mg:tasks", "*"].into_iter().chain(task.iter().map(String::as_str)).collect();
                Self::encode(&mut commands, &words);
            }
            self.0.get_mut().write_all(&commands).unwrap();
            for _ in lot {
                self.reply();
            }
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

fn send(text: &str) -> String {
    format!(r#"{{"op":"sendToUid","uid":"probe","message":"{text}"}}"#)
}

fn main() {
    let only_once = std::env::args().any(|argument| argument == "--test");
    let (_reserved, address) = port::reserve_a_port().unwrap();
    let port = address.port();
    let mut server = Command::new("redis-server");
    server.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
    let redis_server = Running::of(server);
    let mut redis = Redis::connect(port);
    let mut node = Command::new(env!("CARGO_BIN_EXE_moongate"));
    node.env_clear().envs([
        ("MOONGATE_REDIS_URL", format!("redis://127.0.0.1:{port}")),
        ("MOONGATE_LISTEN", "127.0.0.1:0".to_owned()),
        ("MOONGATE_API_LISTEN", "127.0.0.1:0".to_owned()),
        ("MOONGATE_LAN_LISTEN", "off".to_owned()),
        ("MOONGATE_REGISTER_LISTEN", "off".to_owned()),
        ("MOONGATE_LOG", "error".to_owned()),
    ]);
    let node = Running::of(node);
    let mut ear = Redis::connect(port);
    ear.call(&["SUBSCRIBE", "mg:uid:probe"]);
    redis.add(&[vec!["command".to_owned(), send("first")]]);
    ear.reply();

    let with_id = |number: usize| vec!["command".to_owned(), send("x"), "id".to_owned(), format!("task-{number}")];
    let plain = |_| vec!["command".to_owned(), send("x")];
    let count = if only_once { 1000 } else { 100_000 };
    for (what, tasks) in [
        ("without an id", (0..count).map(plain).collect::<Vec<_>>()),
        ("with an id", (0..count).map(with_id).collect()),
    ] {
        let (of_node, of_redis, started) = (node.processor_time(), redis_server.processor_time(), Instant::now());
        std::thread::scope(|scope| {
            scope.spawn(|| redis.add(&tasks));
            for _ in 0..count {
                ear.reply();
            }
        });
        while redis.call(&["XLEN", "mg:tasks"]) != ["0"] {
            std::thread::sleep(Duration::from_millis(1));
        }
        let took = started.elapsed().as_secs_f64();
        let each = |before: f64, after: f64| (after - before) / count as f64 * 1e6;
        println!(
            "{count} tasks {what}: {:.0} a second, {:.1} µs of a processor each in the node, {:.1} µs in Redis",
            count as f64 / took,
            each(of_node, node.processor_time()),
            each(of_redis, redis_server.processor_time()),
        );
    }

    let (count, over) = if only_once { (500, 500) } else { (10_000, 10_000) };
    let begin = unix_ms() + 2000;
    let due = |number: u64| begin + number * over / count;
    let tasks: Vec<Vec<String>> = (0..count)
        .map(|number| {
            vec!["command".to_owned(), send(&due(number).to_string()), "at".to_owned(), due(number).to_string()]
        })
        .collect();
    redis.add(&tasks);
    let of_node = node.processor_time();
    let mut late: Vec<u64> = (0..count)
        .map(|_| {
            let due: u64 = ear.reply()[2].parse().unwrap();
            unix_ms().saturating_sub(due)
        })
        .collect();
    late.sort_unstable();
    let at = |percent: usize| late[(late.len() - 1) * percent / 100];
    println!(
        "{count} delayed tasks over {} s: late by p50 {} ms, p99 {} ms, at most {} ms; {:.0} µs of a processor each in the node",
        over as f64 / 1000.0,
        at(50),
        at(99),
        at(100),
        (node.processor_time() - of_node) / count as f64 * 1e6,
    );
}
