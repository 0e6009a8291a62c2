//! `moongate check` as an operator meets it, beside a real Redis; and `moongate check --ready`.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::harness::{Node, eventually, soon};
use crate::process::{Ended, Process, run};
use crate::redis::{Redis, Reply};
use crate::world;

fn check(url: &str) -> Ended {
    run(&["check"], &[("MOONGATE_REDIS_URL", url)])
}

/// What it says of one thing: `ok` or `advice`, and the words.
#[track_caller]
fn said<'a>(ended: &'a Ended, about: &str) -> (&'a str, &'a str) {
    let rows = ended.stdout.lines().filter_map(|line| {
        let (level, rest) = line.split_once("  ")?;
        let (named, words) = rest.trim_start().split_once("  ")?;
        Some((named, (level.trim_end(), words.trim_start())))
    });
    let mut rows = rows.filter(|(named, _)| *named == about);
    rows.next().unwrap_or_else(|| panic!("nothing of {about}: {ended:?}")).1
}

/// A user of this Redis with these rights; its URL.
async fn user(redis: &Redis, rights: &[&str]) -> String {
    let words = [&["ACL", "SETUSER", "moongate", "reset", "on", ">a-password"][..], rights].concat();
    assert_eq!(redis.command(&words).await, Reply::text("OK"));
    format!("redis://moongate:a-password@{}", redis.address())
}

/// What SECURITY.md gives to nodes.
fn rights_of_a_node() -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SECURITY.md")).unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix("ACL SETUSER moongate on >a-password "));
    line.unwrap().split(' ').map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_redis_as_it_is_installed_it_says_what_had_better_be_otherwise_and_that_a_node_can_run() {
    let redis = Redis::start().await;
    let ended = check(&redis.url());
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    for (about, level, words) in [
        ("server", "ok", "Redis "),
        ("round trip", "", ""),
        ("maxmemory-policy", "ok", "noeviction"),
        ("maxmemory", "advice", "not set"),
        ("appendonly", "advice", "no: "),
        ("client-output-buffer-limit", "advice", "pubsub 32mb 8mb 60: "),
        ("timeout", "ok", "0"),
        ("maxclients", "ok", ""),
        ("nodes", "ok", "none under the prefix mg yet"),
        ("open files", "", ""),
    ] {
        let found = said(&ended, about);
        assert!(found.0.starts_with(level) && found.1.starts_with(words), "{about}: {found:?}");
    }
    let last = ended.stdout.lines().last().unwrap();
    assert!(last.starts_with("settings are good: clients on ") && last.ends_with(", Redis answers"), "{ended:?}");
    assert!(!ended.stdout.contains('\u{1b}'), "{ended:?}");
    assert!(redis.keys("*").await.is_empty() && redis.pubsub_channels().await.is_empty(), "it only looks");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_redis_as_the_documents_have_it_it_advises_nothing() {
    let settings = [
        ["--appendonly", "yes"],
        ["--maxmemory-policy", "noeviction"],
        ["--maxmemory", "512mb"],
        ["--client-output-buffer-limit", "pubsub 128mb 64mb 60"],
    ];
    let redis = Redis::start_with(&settings.concat()).await;
    let ended = check(&redis.url());
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    for about in ["maxmemory-policy", "maxmemory", "appendonly", "client-output-buffer-limit", "timeout", "maxclients"]
    {
        assert_eq!(said(&ended, about).0, "ok", "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_throws_away_who_is_online_is_told_of_and_is_no_reason_not_to_start() {
    let redis = Redis::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let ended = check(&redis.url());
    let (level, words) = said(&ended, "maxmemory-policy");
    assert_eq!((ended.code, level), (Some(0), "advice"), "{ended:?}");
    for word in ["allkeys-lru: ", "who is online", "CONFIG SET maxmemory-policy noeviction"] {
        assert!(words.contains(word), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_looked_at_as_what_it_is_after_a_failover() {
    let primary = Redis::start_with(&["--maxmemory-policy", "noeviction"]).await;
    let port = primary.address().port().to_string();
    let of = ["--replicaof", "127.0.0.1", &port, "--maxmemory-policy"];
    let replica = Redis::start_with(&[&of[..], &["allkeys-lru"]].concat()).await;
    // One that nobody reaches where it says that it is.
    let _lost = Redis::start_with(&[&of[..], &["noeviction", "--replica-announce-port", "1"]].concat()).await;
    eventually("both are there", async || {
        primary.command(&["INFO", "replication"]).await.string().contains("connected_slaves:2")
    })
    .await;
    let lines = |ended: &Ended, words: String| ended.stdout.lines().filter(|line| line.contains(&words)).count();
    for url in [primary.url(), primary.tcp_url()] {
        let ended = check(&url);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
        assert_eq!(
            lines(&ended, format!("advice  maxmemory-policy            {}: allkeys-lru: ", replica.address())),
            1,
            "{ended:?}"
        );
        // What is so on both is said once.
        assert_eq!(said(&ended, "timeout"), ("ok", "0"), "{ended:?}");
        let (level, words) = said(&ended, "replica");
        assert!(level == "advice" && words.starts_with("127.0.0.1:1: not looked at (Connection refused)"), "{words}");
    }
    // Redis passes no users on to its replicas.
    let ended = check(&user(&primary, &["~*", "allchannels", "+@all"]).await);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(lines(&ended, format!("{}: not looked at (WRONGPASS ", replica.address())), 1, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_may_not_ask_is_not_told_and_the_rest_is() {
    let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "no", "--timeout", "300"]).await;
    let rights = rights_of_a_node();
    let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
    let ended = check(&user(&redis, &rights).await);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let (level, words) = said(&ended, "CONFIG GET");
    assert!(level == "advice" && words.starts_with("not told (Redis refused CONFIG: NOPERM"), "{words}");
    for name in ["client-output-buffer-limit", "timeout", "appendfsync"] {
        assert!(words.contains(name), "{words}");
    }
    assert!(!ended.stdout.contains("survives"), "that is not known: {ended:?}");
    for about in ["maxmemory-policy", "maxmemory", "appendonly", "nodes"] {
        said(&ended, about);
    }
    // What a node needs is what the page gives it.
    assert_eq!(said(&ended, "rights"), ("ok", "all that a node does"));
    assert!(!ended.stdout.contains("a-password"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_the_rights_of_a_node_is_told_what_is_missing() {
    let redis = Redis::start().await;
    for (rights, missing) in [
        (&["~mg:*", "~{mg:*", "&mg:*", "+@all"][..], "'PUBLISH mg.ask x'"),
        (&["~mg:*", "allchannels", "+@all"], "'HSET {mg:nodes}:runs f v'"),
        (&["~*", "allchannels", "+@all", "-xadd"], "'XADD mg:events * f v';"),
        (&["~*", "allchannels", "+@all", "-eval"], "EVAL"),
    ] {
        let ended = check(&user(&redis, rights).await);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        let line = ended.stderr.lines().next().unwrap();
        assert!(line.starts_with("MOONGATE_REDIS_URL: ") && line.contains(missing), "{ended:?}");
        assert!(ended.stderr.lines().count() == 1 && !ended.stdout.contains("settings are good"), "{ended:?}");
    }
    let ended = check(&user(&redis, &["~*", "allchannels", "+@all", "-client|kill"]).await);
    let (level, words) = said(&ended, "rights");
    assert!(ended.code == Some(0) && level == "advice" && words.contains("'CLIENT KILL ID 1'"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_that_another_program_uses_is_told() {
    let redis = Redis::start().await;
    redis.command(&["SET", "mg:nodes", "mine"]).await;
    let ended = check(&redis.url());
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.starts_with("MOONGATE_PREFIX: mg:nodes is a string, "), "{ended:?}");
    let other = run(&["check"], &[("MOONGATE_REDIS_URL", &redis.url()), ("MOONGATE_PREFIX", "other")]);
    assert_eq!(other.code, Some(0), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_that_are_there_are_named_also_in_json() {
    let redis = Redis::start().await;
    let url = redis.url();
    let mut nodes = Vec::new();
    for id in ["gate-a", "gate-b"] {
        let settings = [("MOONGATE_REDIS_URL", &*url), ("MOONGATE_NODE_ID", id)];
        nodes.push(Node::start_with(&settings).await.until_ready().await);
    }
    let ended = run(&["check", "--json"], &[("MOONGATE_REDIS_URL", &url), ("MOONGATE_MAX_CONNECTIONS", "4000000000")]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let found: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(found["good"], true);
    let findings = found["findings"].as_array().unwrap();
    let of = |about: &str| findings.iter().find(|finding| finding["about"] == about).unwrap();
    let words = of("nodes")["words"].as_str().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!("2 under the prefix mg: gate-a ({version}, 127.0.0.1:");
    assert!(words.starts_with(&expected) && words.contains(&format!("), gate-b ({version}, 127.0.0.1:")), "{words}");
    let files = of("open files");
    assert!(
        files["level"] == "advice" && files["words"].as_str().unwrap().contains("MAX_CONNECTIONS=4000000000"),
        "{files}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_told_in_json_also_why_a_node_cannot_run() {
    let replica = {
        let primary = Redis::start().await;
        Redis::start_with(&["--replicaof", "127.0.0.1", &primary.address().port().to_string()]).await
    };
    let redis = Redis::start().await;
    let (refused, url) = (replica.tcp_url(), redis.url());
    let certificate = [("MOONGATE_TLS_CERT", "/nowhere.pem"), ("MOONGATE_TLS_KEY", "/nowhere.pem")];
    for (settings, named) in [
        (&[("MOONGATE_REDIS_URL", "redis://127.0.0.1:1")][..], &["MOONGATE_REDIS_URL"][..]),
        (&[("MOONGATE_REDIS_URL", &*refused)], &["MOONGATE_REDIS_URL"]),
        (&certificate, &["MOONGATE_TLS_CERT"]),
        // The one mistake does not hide the other.
        (
            &[certificate[0], certificate[1], ("MOONGATE_REDIS_URL", &*refused)],
            &["MOONGATE_TLS_CERT", "MOONGATE_REDIS_URL"],
        ),
        (&[("MOONGATE_LISTEN", "nowhere"), ("MOONGATE_DRAIN", "soon")], &["MOONGATE_DRAIN", "MOONGATE_LISTEN"]),
        (&[("MOONGATE_REDIS_URL", &*url), ("MOONGATE_LISTENN", "x")], &["MOONGATE_LISTENN"]),
    ] {
        let ended = run(&["check", "--json"], settings);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(2), ""), "{ended:?}");
        let found: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(found["good"], false, "{found}");
        let errors: Vec<&Value> =
            found["findings"].as_array().unwrap().iter().filter(|finding| finding["level"] == "error").collect();
        let about: Vec<&str> = errors.iter().map(|finding| finding["about"].as_str().unwrap()).collect();
        assert_eq!(about, named, "{found}");
        // The same words as for people.
        let ended = run(&["check"], settings);
        let lines = errors
            .iter()
            .map(|finding| format!("{}: {}", finding["about"].as_str().unwrap(), finding["words"].as_str().unwrap()));
        let lines: Vec<String> = lines.collect();
        assert_eq!(
            (ended.code, ended.stderr.lines().collect::<Vec<_>>()),
            (Some(2), lines.iter().map(|line| &**line).collect())
        );
    }
}

#[test]
fn what_the_documents_have_one_type_in_containers_is_there() {
    let file = |name: &str| std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    // Arguments come after it; what Kubernetes runs is called by its whole path.
    assert!(file("Dockerfile").ends_with("ENTRYPOINT [\"/moongate\"]\n"));
    assert!(file("docker-compose.yml").contains("\nservices:\n  node-1: "));
    assert!(file("k8s/base/deployment.yaml").contains("\nkind: Deployment\nmetadata:\n  name: moongate\n"));
    for page in ["docs/operating.md", "docs/operating.zh-CN.md"] {
        let page = file(page);
        for line in ["\ndocker compose run --rm node-1 check\n", "\nkubectl exec deploy/moongate -- /moongate check\n"]
        {
            assert_eq!(page.matches(line).count(), 1, "{line}");
        }
    }
}

// --- --ready ---------------------------------------------------------------------------------------------------------

fn is_ready(api: SocketAddr) -> Ended {
    // The node's other settings are its own affair.
    run(&["check", "--ready"], &[("MOONGATE_API_LISTEN", &api.to_string()), ("MOONGATE_LISTEN", "nowhere")])
}

fn outcome(ended: &Ended) -> (Option<i32>, &str, &str) {
    (ended.code, ended.stdout.as_str(), ended.stderr.as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_asked_whether_it_is_ready_from_its_start_to_its_end() {
    let redis = Redis::start().await;
    redis.stop();
    let node = world::Process::start(&redis.tcp_url(), &[("MOONGATE_DRAIN", "20s")]).await;
    let starting = is_ready(node.api);
    assert_eq!(outcome(&starting), (Some(1), "no place among the nodes yet: the log says why\n", ""));
    redis.start_again().await;
    eventually("it is ready", async || outcome(&is_ready(node.api)) == (Some(0), "ready\n", "")).await;
    redis.stop();
    let without = (Some(0), "ready; Redis is away\n", "");
    eventually("that Redis is away is no fault of it", async || outcome(&is_ready(node.api)) == without).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_drains_is_not_ready_and_one_that_listens_everywhere_is_asked_on_loopback_without_its_token() {
    let settings = [("MOONGATE_API_LISTEN", "0.0.0.0:0"), ("MOONGATE_API_TOKEN", "secret"), ("MOONGATE_DRAIN", "20s")];
    let node = Process::start(&settings).await;
    let _client = node.connect().await;
    assert_eq!(outcome(&is_ready(node.api)), (Some(0), "ready\n", ""));
    node.signal("TERM");
    eventually("it drains", async || outcome(&is_ready(node.api)) == (Some(1), "stopping\n", "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_node_answers_within_two_seconds_none_is_ready() {
    // Bound and not listening: nobody else gets the port.
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    held.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let nobody = held.local_addr().unwrap().as_socket().unwrap();
    let ended = is_ready(nobody);
    assert!(ended.code == Some(1) && ended.stderr.starts_with(&format!("cannot connect to {nobody}: ")), "{ended:?}");

    // The kernel connects, and nobody says anything.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, started) = (silent.local_addr().unwrap(), Instant::now());
    let ended = is_ready(address);
    assert!(ended.code == Some(1) && ended.stderr.starts_with(&format!("no answer from {address}: ")), "{ended:?}");
    assert!(started.elapsed().as_secs() < 6, "{:?}", started.elapsed());

    let stranger = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = stranger.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut socket, _) = stranger.accept().await.unwrap();
        socket.read_buf(&mut Vec::new()).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    });
    let ended = is_ready(address);
    soon("it was asked", answering).await.unwrap();
    assert_eq!(outcome(&ended), (Some(1), "", &*format!("{address} answers 200 OK, and not as a node does\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_image_asks_for_its_health_is_there() {
    let image = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Dockerfile")).unwrap();
    let line = image.lines().find(|line| line.starts_with("HEALTHCHECK ")).unwrap();
    let words: Vec<String> = serde_json::from_str(line.split_once(" CMD ").unwrap().1).unwrap();
    // There is no shell in it.
    assert_eq!(words[0], "/moongate");
    let words: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    let node = Process::start(&[]).await;
    let ended = run(&words, &[("MOONGATE_API_LISTEN", &node.api.to_string())]);
    assert_eq!(outcome(&ended), (Some(0), "ready\n", ""));
}
