//! `moongate top` as its users meet it: in a script, and at a terminal.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread::JoinHandle;

use serde_json::json;

use crate::harness::{Node, eventually};
use crate::process::{Ended, Process, run};
use crate::redis::Redis;

fn top_at(api: SocketAddr, token: &str) -> Ended {
    run(&["top", "--once"], &[("MOONGATE_API_LISTEN", &api.to_string()), ("MOONGATE_API_TOKEN", token)])
}

/// The cells of a row that do not have spaces in them.
fn row<'a>(ended: &'a Ended, name: &str) -> Vec<&'a str> {
    let mut rows = ended.stdout.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    rows.find(|row| row.first() == Some(&name)).unwrap_or_else(|| panic!("no {name}: {ended:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_look_at_two_nodes_is_a_row_for_each_and_their_sum() {
    let redis = Redis::start().await;
    let url = redis.url();
    let [a, b] = ["gate-a", "gate-b"].map(|id| [("MOONGATE_REDIS_URL", &*url), ("MOONGATE_NODE_ID", id)]);
    let a = Node::start_with(&a).await.until_ready().await;
    let b = Node::start_with(&b).await.until_ready().await;
    let _clients = [a.member("u", "g").await, a.connect().await, b.connect().await];
    eventually("b knows of them", async || {
        let seen = b.get("/nodes").await.json();
        [0, 1].map(|place| seen["nodes"][place]["clients"].clone()) == [2, 1]
    })
    .await;
    let ended = top_at(b.api, "");
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!((lines.len(), lines[0]), (5, "2 nodes, 2 ready, Redis answers"), "{ended:?}");
    assert!(
        lines[1].starts_with("NODE    CLIENTS  UIDS  GROUPS  IN/S  OUT/S  ") && lines[1].ends_with("  UPTIME  READY")
    );
    assert_eq!(row(&ended, "gate-a")[1..4], ["2", "1", "1"]);
    assert_eq!(row(&ended, "gate-b")[1..4], ["1", "0", "0"]);
    assert_eq!(row(&ended, "all")[1], "3");
    assert!(!ended.stdout.contains('\u{1b}'), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_look_at_a_node_that_is_alone_has_its_rates() {
    let node = Process::start(&[("MOONGATE_API_TOKEN", "secret")]).await;
    let _client = node.connect().await;
    let ended = top_at(node.api, "secret");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!((ended.code, lines.len(), lines[0]), (Some(0), 3, "1 node, 1 ready"), "{ended:?}");
    let row: Vec<&str> = lines[2].split_ascii_whitespace().collect();
    assert_eq!((&row[1..6], row.last()), (&["1", "0", "0", "0", "0"][..], Some(&"ready")), "{ended:?}");
    assert!(row[6].ends_with('%') && row[8] == "MiB", "{ended:?}");

    for token in ["", "wrong"] {
        let ended = top_at(node.api, token);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
        assert!(ended.stderr.contains("(unauthorized)") && ended.stderr.lines().count() == 1, "{ended:?}");
    }
}

#[test]
fn where_no_node_answers_it_says_so_and_exits_1() {
    let (address, _) = answers(Vec::new(), |_| {});
    let ended = top_at(address, "");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    assert!(ended.stderr.contains(&address.to_string()) && ended.stderr.lines().count() == 1, "{ended:?}");
}

// --- at a terminal ---------------------------------------------------------------------------------------------------

/// Answers one request after another with these bodies, tells which one it is, and listens no more.
fn answers(bodies: Vec<String>, asked: impl Fn(usize) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        for (number, body) in bodies.into_iter().enumerate() {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut bytes = [0; 1024];
                let read = socket.read(&mut bytes).unwrap();
                assert!(read > 0, "cut off");
                request.extend_from_slice(&bytes[..read]);
            }
            assert!(request.starts_with(b"GET /nodes "));
            asked(number);
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            // Who is ended by a signal reads no answer.
            socket.write_all((head + &body).as_bytes()).ok();
        }
    });
    (address, answering)
}

/// A node of a made-up answer, so many seconds after its start.
fn nodes(seconds: u64) -> String {
    let node = json!({
        "node": "gate-a", "age_ms": 5, "version": "0.1.0", "lan": "127.0.0.1:2900", "started_at": 1, "ready": "ready",
        "clients": 7, "uids": 5, "groups": 1, "messages_in": 10 * seconds, "deliveries": 400 * seconds, "closed": 0,
        "dropped": 0, "memory": 64 << 20, "cpu_ms": 250 * seconds, "uptime_ms": 1000 * seconds,
    });
    json!({"at": 0, "nodes": [node], "redis": null}).to_string()
}

/// A line of a shell, at a terminal with so many columns.
#[cfg(target_os = "linux")]
fn at_a_terminal(address: SocketAddr, columns: u16, line: &str) -> Ended {
    let line = format!("stty cols {columns} rows 20; {line}");
    let settings = [("MOONGATE_API_LISTEN", &*address.to_string()), ("SHELL", "/bin/sh")];
    crate::process::run_command(crate::process::clean(Command::new("script"), &["-qec", &line, "/dev/null"], &settings))
}

/// A screen of its own without a cursor; and back.
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";

#[cfg(target_os = "linux")]
#[test]
fn at_a_terminal_it_draws_in_place_and_leaves_the_screen_as_it_was_when_the_node_ends() {
    let (address, answering) = answers(vec![nodes(100), nodes(102)], |_| {});
    let ended = at_a_terminal(address, 90, &format!("'{}' top", env!("CARGO_BIN_EXE_moongate")));
    answering.join().unwrap();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let drawn = ended.stdout.strip_prefix(ENTER).unwrap_or_else(|| panic!("{ended:?}"));
    let (drawn, rest) = drawn.split_once(LEAVE).unwrap_or_else(|| panic!("{ended:?}"));
    let frames: Vec<&str> = drawn.split("\u{1b}[H").skip(1).collect();
    assert_eq!(frames.len(), 2, "{ended:?}");
    let line = |frame: &str, place: usize| {
        let line = frame.lines().nth(place).unwrap().replace("\u{1b}[K", "").replace("\u{1b}[J", "");
        line.trim_end().to_owned()
    };
    assert_eq!(line(frames[0], 0), "1 node, 1 ready");
    assert_eq!(line(frames[0], 2), "gate-a        7     5       1     -      -    -  64 MiB      1m  ready");
    assert_eq!(line(frames[1], 2), "gate-a        7     5       1    10    400  25%  64 MiB      1m  ready");
    assert!(rest.starts_with(&format!("cannot connect to {address}: ")), "{rest}");
}

#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_ends_it_with_0_and_leaves_the_screen_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let written = file.clone();
    let interrupt = move |number: usize| {
        // It has drawn by then.
        if number == 1 {
            let pid = std::fs::read_to_string(&written).unwrap();
            assert!(Command::new("/bin/sh").args(["-c", &format!("kill -INT {pid}")]).status().unwrap().success());
        }
    };
    let (address, answering) = answers(vec![nodes(100), nodes(101)], interrupt);
    let line = format!("echo $$ >'{}'; exec '{}' top", file.display(), env!("CARGO_BIN_EXE_moongate"));
    let ended = at_a_terminal(address, 90, &line);
    answering.join().unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with(ENTER) && ended.stdout.ends_with(LEAVE), "{ended:?}");
    assert!(ended.stdout.contains("gate-a"), "{ended:?}");
}
