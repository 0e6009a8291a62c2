//! A start without Redis, and with one that will not do.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use crate::harness::soon;
use crate::redis::Redis;
use crate::world::{Ear, Process, all_are_reached_through, end, node, run, throughout, unready_node, within};

/// Longer than any one answer may take.
const TIME: Duration = Duration::from_secs(8);

/// Neither the start nor `check` take this Redis; both say so in one line. Returns those lines.
async fn is_refused(url: &str) -> Vec<String> {
    let mut said = Vec::new();
    for arguments in [&[][..], &["check"]] {
        let (code, log) = run(arguments, url, &[("MOONGATE_LOG_FORMAT", "text")], TIME).await;
        assert_eq!(code, 2, "{arguments:?}: {log}");
        let line = log.lines().find(|line| line.contains("MOONGATE_REDIS_URL: ")).unwrap_or_else(|| panic!("{log}"));
        assert!(!log.contains("hunter2") && !line.contains("takes redis://"), "{log}");
        said.push(line.to_owned());
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_at_the_start_a_node_waits_for_it() {
    let redis = Redis::start().await;
    redis.stop();
    let node = unready_node(&redis.tcp_url(), &[]).await;
    throughout(Duration::from_secs(3), "it is alive, and not ready", async || {
        node.ready().await.0 == 503
            && node.get("/readyz?strict=1").await.status == 503
            && node.get("/healthz").await.status == 200
    })
    .await;
    let refused = soon("a refusal", tokio_tungstenite::connect_async(node.ws_url("/"))).await.unwrap_err();
    let tokio_tungstenite::tungstenite::Error::Http(refused) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    for (op, fields) in [
        ("sendToUid", json!({"uid": "u", "message": "x"})),
        ("getAllClientIdCount", json!({})),
        ("bindUid", json!({"client_id": "7f0000010b5400000001", "uid": "u"})),
    ] {
        assert_eq!(node.refused(op, fields).await, (503, "redis_unavailable".to_owned()), "{op}");
    }
    redis.start_again().await;
    within(Duration::from_secs(5), "it is ready", async || node.ready().await.0 == 200).await;
    let ear = Ear::member(&node, "u", &["g"]).await;
    all_are_reached_through(&node, std::slice::from_ref(&ear), "hello").await;
    drop(ear);
    end(&redis, vec![node], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_waits_for_redis_can_be_stopped() {
    let redis = Redis::start().await;
    redis.stop();
    let process = Process::start(&redis.tcp_url(), &[]).await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_says_nothing_is_waited_for() {
    let redis = Redis::start().await;
    redis.pause().await;
    let node = unready_node(&redis.tcp_url(), &[]).await;
    throughout(Duration::from_secs(5), "it is not ready", async || node.ready().await.0 == 503).await;
    redis.resume();
    within(Duration::from_secs(5), "it is ready", async || node.ready().await.0 == 200).await;
    end(&redis, vec![node], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_lets_nobody_in_for_now_is_waited_for() {
    let redis = Redis::start().await;
    let mut control = redis.connection().await;
    control.command(&["CONFIG", "SET", "maxclients", "1"]).await;
    let process = Process::start(&redis.url(), &[]).await;
    throughout(Duration::from_secs(2), "it waits", async || process.code().is_none()).await;
    assert_eq!(process.ready().await.0, 503);
    control.command(&["CONFIG", "SET", "maxclients", "10000"]).await;
    process.until_ready(Duration::from_secs(5)).await;
    end(&redis, vec![], vec![process]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_ends_the_start_and_is_not_shown() {
    let redis = Redis::start_with(&["--requirepass", "right"]).await;
    let address = redis.address();
    for url in [
        format!("redis://:hunter2@{address}"),
        format!("redis://somebody:hunter2@{address}"),
        format!("redis://{address}"),
    ] {
        is_refused(&url).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_password_is_taken_with_and_without_a_user_and_whatever_is_in_it() {
    for (password, written) in [("right", "right"), ("p@ss w\"or'd\\ é", "p%40ss%20w%22or%27d%5C%20%C3%A9")] {
        let redis = Redis::start_with(&["--requirepass", password]).await;
        for user in ["", "default"] {
            let url = format!("redis://{user}:{written}@{}", redis.address());
            let (code, said) = run(&["check"], &url, &[], TIME).await;
            assert_eq!(code, 0, "{said}");
            let node = node(&url, &[]).await;
            end(&redis, vec![node], vec![]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_ends_the_start() {
    let primary = Redis::start().await;
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &primary.address().port().to_string()]).await;
    for line in is_refused(&replica.tcp_url()).await {
        assert!(line.contains("replica"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_not_taken_for_a_single_redis() {
    let cluster = Redis::start_with(&["--cluster-enabled", "yes"]).await;
    for line in is_refused(&cluster.tcp_url()).await {
        assert!(line.contains("Cluster"), "{line}");
    }
}

/// Answers every `INFO` with this version, and anything else as an old Redis does; `hello`: as one of at least 6.0.
async fn a_redis_of_version(version: &'static str, hello: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut socket = BufReader::new(socket);
                loop {
                    let mut line = String::new();
                    if socket.read_line(&mut line).await.unwrap_or(0) == 0 {
                        return;
                    }
                    let mut command: Vec<String> = Vec::new();
                    let words = line.strip_prefix('*').map_or(0, |words| words.trim().parse().unwrap());
                    if words == 0 {
                        // An inline command.
                        command.extend(line.split_whitespace().map(str::to_uppercase));
                    }
                    for _ in 0..words {
                        let (mut length, mut word) = (String::new(), String::new());
                        socket.read_line(&mut length).await.unwrap();
                        socket.read_line(&mut word).await.unwrap();
                        command.push(word.trim().to_uppercase());
                    }
                    let info = format!("# Server\r\nredis_version:{version}\r\nrole:master\r\nrun_id:x\r\n");
                    let reply = match command[0].as_str() {
                        "INFO" => format!("${}\r\n{info}\r\n", info.len()),
                        "HELLO" if hello => {
                            let fields =
                                ["server", "redis", "version", version, "mode", "standalone", "role", "master"];
                            let fields: String =
                                fields.iter().map(|field| format!("${}\r\n{field}\r\n", field.len())).collect();
                            format!("%6\r\n{fields}$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:7\r\n")
                        }
                        "CLIENT" if command[1] == "ID" => ":7\r\n".to_owned(),
                        "PING" => "+PONG\r\n".to_owned(),
                        "SELECT" | "CLIENT" => "+OK\r\n".to_owned(),
                        unknown => format!("-ERR unknown command `{unknown}`, with args beginning with: \r\n"),
                    };
                    if socket.get_mut().write_all(reply.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_redis_ends_the_start_and_is_named() {
    for (version, hello) in [("6.0.16", true), ("5.0.0", false)] {
        let address = a_redis_of_version(version, hello).await;
        for line in is_refused(&format!("redis://{address}")).await {
            assert!(!hello || line.contains(version), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tries_redis_and_says_what_it_found() {
    let redis = Redis::start().await;
    let (code, said) = run(&["check"], &redis.url(), &[], TIME).await;
    assert_eq!((code, said.as_str()), (0, ""));
    assert!(redis.keys("*").await.is_empty(), "it only looks");
    redis.stop();
    let (code, said) = run(&["check"], &redis.tcp_url(), &[], TIME).await;
    assert!(code == 2 && said.contains("MOONGATE_REDIS_URL"), "{said}");
}
