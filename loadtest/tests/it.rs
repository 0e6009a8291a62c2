//! The load tester's binary against real gateways and a real Redis. Needs `redis-server`.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests may")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The gateway's binary beside ours. `make test` has built it; where only this package is tested, it is built now.
fn moongate() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("moongate");
        if !path.exists() {
            let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--locked", "--package", "moongate", "--profile", profile]);
            assert!(build.status().unwrap().success(), "the gateway was not built");
        }
        path
    })
}

/// Runs the load tester; gives its exit code and its report.
fn loadtest(arguments: &str) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    let output = command.args(arguments.split(' ')).arg("--json").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|_| panic!("no report, but {error}")))
}

/// The same with a gateway that is started for the run.
fn against_moongate(arguments: &str) -> Value {
    let (code, report) = loadtest(&format!("{arguments} --spawn {}", moongate().display()));
    assert_eq!((code, &report["pass"]), (Some(0), &Value::Bool(true)), "{report}");
    report
}

/// How many points each line of the chart with this title has.
fn points(report: &Value, title: &str) -> Vec<usize> {
    let charts = report["charts"].as_array().unwrap();
    let chart = charts.iter().find(|chart| chart["title"] == title).unwrap_or_else(|| panic!("no {title}: {charts:?}"));
    chart["lines"].as_array().unwrap().iter().map(|line| line["points"].as_array().unwrap().len()).collect()
}

#[test]
fn a_soak_delivers_all_and_shows_what_is_used_meanwhile() {
    let soak = "soak --redis-spawn --nodes 2 --clients 40 --groups 5 --rate 200 --churn 50 --for 2s --every 200ms";
    let report = against_moongate(soak);
    assert_eq!(report["delivered"], report["expected"]);
    assert!(report["visitors"].as_u64().unwrap() > 10, "{report}");
    assert_eq!((&report["visitors_failed"], &report["listed"]), (&0.into(), &40.into()));
    let samples = report["samples"].as_array().unwrap();
    // 40 messages in each interval, and on a busy machine fewer intervals in the time
    let count = samples.len();
    assert!((5..=10).contains(&count), "{report}");
    assert_eq!(report["published"], 40 * count);
    for sample in samples {
        for figure in ["resident_mib", "redis_mib", "descriptors", "threads", "deliveries_per_second"] {
            assert!(sample[figure].as_f64().unwrap() > 0.0, "{figure}: {sample}");
        }
    }
    assert_eq!(points(&report, "soak: memory"), [count, count]);
    assert_eq!(points(&report, "soak: latency"), [count, count]);
    assert_eq!(points(&report, "soak: deliveries"), [count]);
    assert_eq!(points(&report, "soak: what is open"), [count, count]);
    assert!(report["memory"]["began"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn a_soak_tells_what_the_floor_needs_for_the_same_and_what_redis_did() {
    let soak = "soak --redis-spawn --clients 40 --groups 5 --rate 200 --churn 50 --for 2s --every 200ms --floor";
    let report = against_moongate(soak);
    let floor = &report["floor"];
    assert_eq!((&floor["delivered"], &floor["pass"]), (&floor["expected"], &true.into()), "{report}");
    assert!(floor["visitors"].as_u64().unwrap() > 10 && floor["redis_commands"].as_object().unwrap().is_empty());
    // every message is published, over HTTP as well, but those to who is on this node only
    assert!(report["redis_commands"]["publish"].as_f64().unwrap() > 0.3, "{report}");
}

#[test]
fn a_soak_without_redis_and_visitors() {
    let report = against_moongate("soak --clients 10 --groups 3 --rate 100 --churn 0 --for 500ms --every 100ms");
    assert_eq!((&report["delivered"], &report["visitors"]), (&report["expected"], &0.into()));
    let count = points(&report, "soak: memory")[0];
    assert!((3..=5).contains(&count), "{report}");
    assert_eq!(report["published"], 10 * count);
}

#[test]
fn after_a_storm_everyone_is_back_and_listed_once() {
    let report = against_moongate("storm --redis-spawn --nodes 2 --clients 100 --groups 7 --parallel 16 --repeat 2");
    let storms = report["storms"].as_array().unwrap();
    assert_eq!(storms.len(), 2);
    for storm in storms {
        for figure in ["back", "delivered", "listed"] {
            assert_eq!(storm[figure], 100, "{figure}: {storm}");
        }
        assert_eq!(storm["failed_attempts"], 0, "{storm}");
        assert!(storm["redis_commands"]["sadd"].as_f64().unwrap() > 0.0, "{storm}");
        assert!(storm["resident_peak_mib"].as_f64() >= storm["resident_after_mib"].as_f64(), "{storm}");
    }
    assert_eq!(points(&report, "storm: clients that are back"), [100, 100]);
    assert_eq!(points(&report, "storm: memory of the nodes, resident").len(), 2);
}

#[test]
fn newcomers_get_in_during_a_storm_at_the_gateway_and_at_the_floor() {
    let storm = "storm --redis-spawn --clients 200 --groups 7 --parallel 16 --repeat 2 --newcomers 20 --floor";
    let report = against_moongate(storm);
    let storms = report["storms"].as_array().unwrap();
    let servers: Vec<&str> = storms.iter().map(|storm| storm["server"].as_str().unwrap()).collect();
    assert_eq!(servers, ["gateway", "floor", "gateway", "floor"]);
    for storm in storms {
        assert_eq!((&storm["back"], &storm["delivered"], &storm["listed"]), (&200.into(), &200.into(), &200.into()));
        let newcomers = &storm["newcomers"];
        assert!(newcomers["came"].as_u64().unwrap() > 0 && newcomers["failed"] == 0, "{storm}");
        assert!(newcomers["handshake_ms"]["p99"].as_f64() <= newcomers["bound_ms"]["max"].as_f64(), "{storm}");
    }
}

/// A gateway of the test's own.
struct Gateway {
    child: Child,
    clients: SocketAddr,
    api: SocketAddr,
}

impl Gateway {
    fn start() -> Self {
        let mut command = Command::new(moongate());
        command.env("MOONGATE_LISTEN", "127.0.0.1:0").env("MOONGATE_API_LISTEN", "127.0.0.1:0");
        command.env("MOONGATE_LAN_LISTEN", "off").env("MOONGATE_REGISTER_LISTEN", "off");
        command
            .env("MOONGATE_LOG", "info")
            .env("MOONGATE_LOG_FORMAT", "json")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = String::new();
        let listening = log.find_map(|line| {
            said.push_str(&line);
            let line: Value = serde_json::from_str(&line).ok()?;
            (line["message"] == "listening").then_some(line)
        });
        // what else it says has to go somewhere
        std::thread::spawn(move || log.for_each(drop));
        let listening = listening.unwrap_or_else(|| panic!("the gateway does not listen: {said}"));
        let address = |name: &str| listening[name].as_str().unwrap().parse().unwrap();
        Self { child, clients: address("clients"), api: address("api") }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().unwrap();
    }
}

/// A way to `server` that closes the connections with these numbers at once; ends with the test's process.
fn refusing(server: SocketAddr, refused: std::ops::Range<usize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let carry = |from: TcpStream, to: TcpStream| {
        std::thread::spawn(move || {
            std::io::copy(&mut &from, &mut &to).ok();
            to.shutdown(Shutdown::Both).ok();
        })
    };
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let client = client.unwrap();
            if refused.contains(&number) {
                continue;
            }
            let server = TcpStream::connect(server).unwrap();
            carry(client.try_clone().unwrap(), server.try_clone().unwrap());
            carry(server, client);
        }
    });
    address
}

#[test]
fn who_is_refused_in_a_storm_tries_again() {
    let gateway = Gateway::start();
    let door = refusing(gateway.clients, 20..25);
    let storm = "storm --clients 20 --groups 2 --parallel 4 --repeat 1";
    let (code, report) = loadtest(&format!("{storm} --ws {door} --api {} --pid {}", gateway.api, gateway.child.id()));
    let storm = &report["storms"][0];
    assert_eq!((code, &storm["back"], &storm["listed"]), (Some(0), &20.into(), &20.into()), "{report}");
    assert_eq!(storm["failed_attempts"], 5, "{storm}");
    assert!(storm["first_failure"].as_str().unwrap().contains("while Greeting was awaited"), "{storm}");
}

#[test]
fn a_soak_whose_gateway_dies_says_what_it_has_found_up_to_then() {
    let mut gateway = Gateway::start();
    let (clients, api, id) = (gateway.clients, gateway.api, gateway.child.id());
    let soak = format!(
        "soak --clients 20 --groups 2 --rate 100 --churn 20 --for 60s --every 100ms --ws {clients} --api {api}"
    );
    let running = std::thread::spawn(move || loadtest(&format!("{soak} --pid {id}")));
    // those that stay, and some visitors
    let visited = || {
        let mut stream = TcpStream::connect(api).ok()?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.lines().find_map(|line| line.strip_prefix("moongate_connections_total ")?.parse::<u64>().ok())
    };
    while visited().unwrap_or(0) < 30 {
        assert!(!running.is_finished(), "{:?}", running.join());
    }
    gateway.child.kill().unwrap();
    let (code, report) = running.join().unwrap();
    assert_eq!((code, &report["pass"]), (Some(1), &false.into()), "{report}");
    assert!(report["ended_early"].is_string() && report["visitors"].as_u64().unwrap() >= 10, "{report}");
}

#[test]
fn tasks_arrive_once_in_whatever_order() {
    for mode in ["fanout --groups 2 --messages 200 --backlog 4", "unicast --messages 200 --inflight 32"] {
        let report = against_moongate(&format!("{mode} --clients 20 --redis-spawn --door tasks --warmup 0"));
        let round = &report["servers"][0]["rounds"][0];
        assert_eq!((&round["delivered"], &round["ratio_delivered"]), (&round["expected"], &1.0.into()), "{round}");
        assert_eq!((&round["ordered"], &round["duplicates"]), (&false.into(), &0.into()), "{round}");
        assert_eq!(round["redis_commands"]["xadd"], 1.0, "{round}");
    }
}

#[test]
fn a_message_reaches_each_client_in_a_group_of_its_own() {
    for door in ["", " --redis-spawn --nodes 2", " --door php"] {
        let report =
            against_moongate(&format!("fanout --clients 20 --groups 3 --apart --messages 30 --warmup 0{door}"));
        let round = &report["servers"][0]["rounds"][0];
        // 10 messages to 7 of them, 10 to 7 others, 10 to the other 6
        assert_eq!((&round["delivered"], &round["misdelivered"]), (&200.into(), &0.into()), "{door}: {round}");
    }
}

#[test]
fn on_a_cluster_of_masters_all_is_delivered_once_and_in_order_and_redis_is_summed() {
    for mode in ["fanout --groups 6 --window 8", "unicast --inflight 64"] {
        let line = format!("{mode} --clients 60 --messages 600 --redis-spawn --masters 0,3 --nodes 2 --rounds 1");
        let report = against_moongate(&line);
        let [single, sharded] = report["servers"].as_array().unwrap().as_slice() else { panic!("{report}") };
        let names = (single["name"].as_str(), sharded["name"].as_str());
        assert_eq!(names, (Some("gateway, 2 nodes, single Redis"), Some("gateway, 2 nodes, 3 masters")));
        for (server, publish) in [(single, "publish"), (sharded, "spublish")] {
            let round = &server["rounds"][0];
            assert_eq!((&round["delivered"], &round["order_violations"]), (&round["expected"], &0.into()), "{round}");
            // and what nodes say to each other
            let published = round["redis_commands"][publish].as_f64().unwrap();
            assert!((1.0..1.5).contains(&published), "{round}");
            // 128 of each message, and its channel
            let [received, sent] = ["redis_received_bytes", "redis_sent_bytes"].map(|bytes| round[bytes].as_f64());
            assert!(received > Some(128.0) && sent > Some(128.0), "{round}");
            assert!(round["messages_per_second"].as_f64() > Some(0.0), "{round}");
            assert!(server["redis_memory_per_client"].is_f64(), "{server}");
        }
        assert!(single["rounds"][0]["redis_busiest_share"].is_null(), "{single}");
        let share = sharded["rounds"][0]["redis_busiest_share"].as_f64();
        assert!(share > Some(1.0 / 3.0) && share < Some(1.0), "{sharded}");
    }
}

#[test]
fn every_mode_runs_on_a_cluster() {
    let cluster = "--redis-spawn --masters 2";
    against_moongate(&format!("fanout --clients 20 --groups 3 --apart --messages 30 {cluster}"));
    against_moongate(&format!("unicast --clients 20 --messages 200 --door tasks {cluster}"));
    against_moongate(&format!("churn --cycles 50 --groups 5 --parallel 4 {cluster}"));
    against_moongate(&format!("storm --clients 20 --groups 5 --parallel 4 --repeat 1 {cluster}"));
    against_moongate(&format!("soak --clients 20 --groups 5 --churn 20 --for 1s --every 200ms {cluster}"));
    let idle = against_moongate(&format!("idle --clients 40 --groups 5 --seconds 0 --settle 0 {cluster}"));
    assert!(idle["servers"][0]["redis_memory_per_connection"].is_f64(), "{idle}");
}

#[test]
fn bare_redis_is_not_compared_with_a_cluster() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    let line = "unicast --spawn nothing --redis-spawn --masters 3 --raw-redis";
    let output = command.args(line.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && error.contains("--raw-redis: not with --masters"), "{error}");
}

#[test]
fn idle_shows_memory_over_connections() {
    let report = against_moongate("idle --clients 60 --groups 5 --seconds 0 --settle 0");
    assert_eq!(points(&report, "idle: memory"), [21]);
    let last = &report["charts"][0]["lines"][0]["points"][20];
    assert_eq!(last[0], 60.0, "{report}");
}

#[test]
fn beside_idle_connections_stand_those_of_the_floor_which_pings_as_often() {
    let idle = "idle --clients 60 --groups 5 --seconds 4 --settle 0 --floor --env MOONGATE_PING_INTERVAL=1s";
    let report = against_moongate(idle);
    assert_eq!(points(&report, "idle: memory"), [21, 21]);
    let servers = report["servers"].as_array().unwrap();
    assert_eq!((&servers[0]["name"], &servers[1]["name"]), (&"gateway".into(), &"floor".into()));
    for server in servers {
        assert_eq!((&server["delivered"], &server["closed"]), (&60.into(), &0.into()), "{server}");
        assert!((120..=300).contains(&server["pings"].as_u64().unwrap()), "{server}");
    }
}

#[test]
fn slow_members_are_not_waited_for() {
    // more than the kernel and the gateway keep for one
    let slow = "--slow 2 --env MOONGATE_SEND_BUFFER=64KiB --env MOONGATE_SLOW_CONSUMER=drop";
    let report =
        against_moongate(&format!("fanout --clients 20 {slow} --size 65536 --messages 200 --warmup 0 --rounds 1"));
    let [gateway, slow] = report["servers"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!(slow["name"], "gateway, beside 2 slow");
    for server in [gateway, slow] {
        assert_eq!(server["rounds"][0]["delivered"], 4000, "{server}");
        assert!(server["rounds"][0]["resident_mib"].as_f64().unwrap() > 1.0, "{server}");
    }
    let ratios = report["ratios"].as_array().unwrap();
    let is_told =
        |figure: &str| ratios.iter().any(|ratio| ratio["figure"] == figure && ratio["server"] == slow["name"]);
    assert!(is_told("cpu") && is_told("latency p99"), "{report}");
}
