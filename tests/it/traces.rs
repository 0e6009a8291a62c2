//! Traces, as a collector gets them: which steps there are, whose they are, and what happens when nobody takes them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use moongate::trace::otlp::{KeyValue, Request, SpanKind, Value as Noted};
use prost::Message as _;
use serde_json::{Value, json};

use crate::harness::{Node, eventually};
use crate::process::{Process, run};
use crate::receiver::{Receiver, Told};
use crate::redis::{Redis, Reply};

/// Where the application is in a trace of its own.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// What no collector is to be told.
const NAMES: [&str; 4] = ["alice", "the-red-room", "secret words", "hunter2"];

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

/// A step as the collector has it.
#[derive(Debug, Clone)]
struct Step {
    node: String,
    name: String,
    kind: SpanKind,
    trace: String,
    id: String,
    parent: String,
    state: String,
    noted: BTreeMap<String, String>,
    is_error: bool,
}

fn noted(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let value = |pair: &KeyValue| match pair.value.clone().and_then(|value| value.value) {
        Some(Noted::Text(text)) => text,
        Some(Noted::Number(number)) => number.to_string(),
        None => panic!("{pair:?}"),
    };
    pairs.iter().map(|pair| (pair.key.clone(), value(pair))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// What a collector has taken.
fn steps(collector: &Receiver) -> Vec<Step> {
    let mut steps = Vec::new();
    for told in collector.requests().into_iter().filter(|told| told.status == Some(200)) {
        assert_eq!(told.headers["content-type"], "application/x-protobuf");
        for spans in Request::decode(&*told.body).unwrap().resource_spans {
            let process = noted(&spans.resource.unwrap().attributes);
            for span in spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
                steps.push(Step {
                    node: process["service.instance.id"].clone(),
                    kind: span.kind(),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    state: span.trace_state,
                    noted: noted(&span.attributes),
                    is_error: span.status.is_some_and(|status| status.code == 2),
                });
            }
        }
    }
    steps
}

/// Waits for so many steps of this name, and returns them.
async fn named(collector: &Receiver, name: &str, count: usize) -> Vec<Step> {
    let of_name = || steps(collector).into_iter().filter(|step| step.name == name).collect::<Vec<_>>();
    eventually(&format!("{count} times {name}"), async || of_name().len() >= count).await;
    let steps = of_name();
    assert_eq!(steps.len(), count, "{steps:?}");
    steps
}

async fn only(collector: &Receiver, name: &str) -> Step {
    named(collector, name, 1).await.remove(0)
}

/// A command that is said in a trace.
async fn say(node: &Node, op: &str, fields: Value, traceparent: &str) -> Value {
    let headers = [("traceparent", traceparent), ("tracestate", "congo=t61rcWkgMzE")];
    node.request("POST", &format!("/api/{op}"), &headers, fields.to_string().as_bytes()).await.json()
}

/// So many nodes that have a collector, and maybe a Redis.
async fn nodes<const N: usize>(collector: &Receiver, redis: Option<&Redis>, more: &[(&str, &str)]) -> [Node; N] {
    let (url, redis) = (collector.url(), redis.map(Redis::url));
    let mut settings = vec![("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url.as_str())];
    settings.extend(redis.as_deref().map(|redis| ("MOONGATE_REDIS_URL", redis)));
    settings.extend(more);
    let mut nodes = Vec::new();
    for place in 0..N {
        let name = format!("node-{place}");
        let settings = [&settings[..], &[("MOONGATE_NODE_ID", name.as_str())]].concat();
        nodes.push(Node::start_with(&settings).await.until_ready().await);
    }
    nodes.try_into().unwrap_or_else(|_| panic!("so many"))
}

fn nobody_is_named(collector: &Receiver, ids: &[&str]) {
    for Told { body, .. } in collector.requests() {
        let body = String::from_utf8_lossy(&body).into_owned();
        for name in NAMES.iter().chain(ids) {
            assert!(!body.contains(name), "{name} in {body}");
        }
    }
}

// --- the way of a message --------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_one_trace_from_the_caller_over_the_node_that_is_asked_to_the_one_that_delivers() {
    let (collector, redis) = (Receiver::start().await, Redis::start().await);
    let [a, b] = nodes(&collector, Some(&redis), &[("OTEL_SERVICE_NAME", "push")]).await;
    let mut client = b.member("alice", "the-red-room").await;
    let sent = say(&a, "sendToUid", json!({"uid": "alice", "message": "secret words"}), &parent("01")).await;
    assert_eq!(sent, json!({"result": {"nodes": 1}}));
    assert_eq!(client.text().await, "secret words");

    let request = only(&collector, "POST /api/sendToUid").await;
    assert_eq!((request.trace.as_str(), request.parent.as_str()), (TRACE, CALLER));
    assert_eq!(
        (request.kind, request.node.as_str(), request.state.as_str()),
        (SpanKind::Server, "node-0", "congo=t61rcWkgMzE")
    );
    let expected = [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("http.route", "/api/sendToUid"),
        ("moongate.op", "sendToUid"),
        ("url.path", "/api/sendToUid"),
        ("url.scheme", "http"),
    ];
    assert!(request.noted.iter().map(|(key, value)| (&**key, &**value)).eq(expected), "{request:?}");

    let deliver = only(&collector, "deliver").await;
    assert_eq!((deliver.trace.as_str(), deliver.parent.as_str()), (TRACE, request.id.as_str()));
    assert_eq!(
        (deliver.kind, deliver.node.as_str(), deliver.state.as_str()),
        (SpanKind::Consumer, "node-1", "congo=t61rcWkgMzE")
    );
    let expected = [
        ("messaging.operation.name", "deliver"),
        ("messaging.operation.type", "process"),
        ("messaging.system", "moongate"),
        ("moongate.clients", "1"),
        ("moongate.target", "uid"),
        ("moongate.targets", "1"),
    ];
    assert!(deliver.noted.iter().map(|(key, value)| (&**key, &**value)).eq(expected), "{deliver:?}");
    nobody_is_named(&collector, &[&client.id]);
    assert_eq!(a.metric("moongate_spans_dropped_total").await, 0.0);
    assert_eq!(a.metric("moongate_spans_exported_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_traced_send_is_answered_and_delivered_like_any_other_whatever_its_target() {
    let redis = Redis::start().await;
    for redis in [None, Some(&redis)] {
        let collector = Receiver::start().await;
        let [node] = nodes(&collector, redis, &[]).await;
        let mut client = node.member("alice", "the-red-room").await;
        let id = client.id.clone();
        let sends = [
            ("sendToAll", json!({}), "all", 1),
            ("sendToAll", json!({"exclude_uid": ["bob"]}), "all", 1),
            ("sendToClient", json!({"client_id": id}), "client", 1),
            ("sendToUid", json!({"uid": "alice"}), "uid", 1),
            ("sendToUid", json!({"uid": ["alice", "bob"]}), "uid", 1),
            ("sendToUid", json!({"uid": "bob"}), "uid", 0),
            ("sendToGroup", json!({"group": "the-red-room", "confirm": true}), "group", 1),
            ("sendToGroup", json!({"group": "the-red-room", "exclude": [id]}), "group", 0),
        ];
        let mut expected = Vec::new();
        for (place, (op, mut fields, target, clients)) in sends.into_iter().enumerate() {
            fields["message"] = json!(format!("secret words {place}"));
            let usual = node.call(op, fields.clone()).await;
            let traced = say(&node, op, fields.clone(), &parent("01")).await;
            assert_eq!(traced, usual, "{op} {fields}");
            // Nobody hears of those who are on no node.
            if redis.is_none() || usual["result"]["nodes"] != 0 {
                expected.push((target.to_owned(), clients.to_string()));
            }
            for _ in 0..2 * clients {
                assert_eq!(client.text().await, format!("secret words {place}"));
            }
        }
        client.heard_nothing(&node).await;
        let delivered = named(&collector, "deliver", expected.len()).await;
        let mut delivered: Vec<_> = delivered
            .iter()
            .map(|step| (step.noted["moongate.target"].clone(), step.noted["moongate.clients"].clone()))
            .collect();
        delivered.sort();
        expected.sort();
        assert_eq!(delivered, expected);
        nobody_is_named(&collector, &[&id]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sampled_leaves_no_step_and_travels_as_the_bare_payload() {
    let (collector, redis) = (Receiver::start().await, Redis::start().await);
    let [node] = nodes(&collector, Some(&redis), &[]).await;
    let mut client = node.member("alice", "the-red-room").await;
    let mut listener = redis.connection().await;
    listener.command(&["SUBSCRIBE", "mg:uid:alice"]).await;
    let fields = json!({"uid": "alice", "message": "hello"});
    node.ask("sendToUid", fields.clone()).await;
    for traceparent in [&*parent("00"), &parent("01").to_uppercase(), "", "00-x"] {
        say(&node, "sendToUid", fields.clone(), traceparent).await;
    }
    redis.publish("mg:uid:alice", "hello").await;
    for _ in 0..6 {
        assert_eq!(client.text().await, "hello");
        assert_eq!(listener.reply().await.list()[2], Reply::text("hello"));
    }
    // What is sampled comes in an envelope, with the message behind it.
    say(&node, "sendToUid", fields, &parent("01")).await;
    assert_eq!(client.text().await, "hello");
    let Reply::Text(sealed) = &listener.reply().await.list()[2] else { panic!("no text") };
    assert!(sealed.starts_with(b"\0mg1") && sealed.ends_with(b"hello"));
    // What a node does not know of it, as one of a version before, it passes over.
    let (mut later, known) = (sealed.to_vec(), br#""trace":"#);
    let at = later.windows(known.len()).position(|words| words == known).unwrap();
    later[at..at + known.len()].copy_from_slice(br#""later":"#);
    assert_eq!(redis.publish("mg:uid:alice", later).await, 2);
    assert_eq!(client.text().await, "hello");
    say(&node, "getAllUidCount", json!({}), &parent("01")).await;
    only(&collector, "POST /api/getAllUidCount").await;
    only(&collector, "deliver").await;
    assert_eq!(steps(&collector).len(), 3, "{:?}", steps(&collector));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_and_the_form_of_the_manual_are_in_a_requests_span() {
    let collector = Receiver::start().await;
    let [node] = nodes(&collector, None, &[("MOONGATE_API_TOKEN", "hunter2")]).await;
    let refused =
        say(&node, "bindUid", json!({"client_id": "7f0000010b5400000001", "uid": "alice"}), &parent("01")).await;
    assert_eq!(refused["code"], "client_not_found");
    let step = only(&collector, "POST /api/bindUid").await;
    let [status, error] = ["http.response.status_code", "error.type"].map(|key| step.noted[key].as_str());
    assert_eq!((status, error, step.is_error), ("404", "client_not_found", false));
    let answer = node.request("GET", "/?method=isUidOnline&args[]=alice", &[("traceparent", &parent("01"))], b"").await;
    assert_eq!(answer.json(), json!({"result": false}));
    let step = only(&collector, "GET /").await;
    assert_eq!((step.noted["moongate.op"].as_str(), step.noted["url.path"].as_str()), ("isUidOnline", "/"));
    nobody_is_named(&collector, &["7f0000010b5400000001"]);
}

// --- tasks and the webhook -------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_task_belongs_to_the_trace_in_which_it_was_added_whoever_adds_it_and_whoever_has_it() {
    let (collector, redis) = (Receiver::start().await, Redis::start().await);
    let [a, b] = nodes(&collector, Some(&redis), &[]).await;
    let mut client = b.member("alice", "the-red-room").await;
    let command = json!({"op": "sendToUid", "uid": "alice", "message": "secret words"});
    let (text, traceparent) = (command.to_string(), parent("01"));
    redis
        .command(&[
            "XADD",
            "mg:tasks",
            "*",
            "command",
            &text,
            "traceparent",
            &traceparent,
            "tracestate",
            "a=1",
            "delay",
            "1",
        ])
        .await;
    assert_eq!(client.text().await, "secret words");
    let task = only(&collector, "task sendToUid").await;
    assert_eq!((task.trace.as_str(), task.parent.as_str(), task.state.as_str()), (TRACE, CALLER, "a=1"));
    assert_eq!((task.kind, task.noted["moongate.attempt"].as_str(), task.is_error), (SpanKind::Consumer, "1", false));
    let deliver = only(&collector, "deliver").await;
    assert_eq!((deliver.trace.as_str(), &deliver.parent, deliver.node.as_str()), (TRACE, &task.id, "node-1"));

    say(&a, "addTask", json!({"command": command, "id": "alice's"}), &traceparent).await;
    assert_eq!(client.text().await, "secret words");
    let added = only(&collector, "POST /api/addTask").await;
    assert_eq!(added.parent, CALLER);
    let tasks = named(&collector, "task sendToUid", 2).await;
    let task = tasks.iter().find(|step| step.id != task.id).unwrap();
    assert_eq!((task.trace.as_str(), &task.parent), (TRACE, &added.id));
    assert!(named(&collector, "deliver", 2).await.iter().any(|step| step.parent == task.id));

    // A schedule's runs are none of the trace in which it was set; and without a trace there is none.
    say(&a, "addTask", json!({"command": command, "id": "cron", "cron": "* * * * * *"}), &traceparent).await;
    client.text().await;
    a.ask("addTask", json!({"command": command})).await;
    client.text().await;
    say(&a, "cancelTask", json!({"id": "cron"}), &traceparent).await;
    only(&collector, "POST /api/cancelTask").await;
    named(&collector, "task sendToUid", 2).await;
    nobody_is_named(&collector, &[&client.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_traceparent_that_is_none_harms_no_task() {
    let (collector, redis) = (Receiver::start().await, Redis::start().await);
    let [node] = nodes(&collector, Some(&redis), &[]).await;
    let mut client = node.member("alice", "the-red-room").await;
    let send = json!({"op": "sendToUid", "uid": "alice", "message": "hello"}).to_string();
    for traceparent in ["", "x", &parent("00")] {
        redis.command(&["XADD", "mg:tasks", "*", "command", &send, "traceparent", traceparent]).await;
        assert_eq!(client.text().await, "hello");
    }
    assert_eq!(redis.command(&["XLEN", "mg:tasks:dead"]).await, Reply::Int(0));
    say(&node, "getAllUidCount", json!({}), &parent("01")).await;
    only(&collector, "POST /api/getAllUidCount").await;
    assert_eq!(steps(&collector).len(), 1, "{:?}", steps(&collector));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_is_called_in_the_trace_and_so_is_what_it_answers() {
    let collector = Receiver::start().await;
    let application = Receiver::answering(|event| {
        let say = json!({"op": "sendToUid", "uid": "alice", "message": "secret words"});
        if event["event"] == "task" { (200, json!({"commands": [say]})) } else { (500, json!({})) }
    })
    .await;
    let url = application.url().replace("http://", "http://user:hunter2@");
    let [node] = nodes(&collector, None, &[("MOONGATE_WEBHOOK_URL", &url)]).await;
    let mut client = node.member("alice", "the-red-room").await;
    say(&node, "addTask", json!({"webhook": {"mail": "alice"}}), &parent("01")).await;
    assert_eq!(client.text().await, "secret words");
    let (task, call) = (only(&collector, "task webhook").await, only(&collector, "POST").await);
    assert_eq!((call.trace.as_str(), &call.parent, call.kind), (TRACE, &task.id, SpanKind::Client));
    let told = &application.requests()[0].headers;
    assert_eq!(told["traceparent"], format!("00-{TRACE}-{}-01", call.id));
    assert_eq!(told["tracestate"], "congo=t61rcWkgMzE");
    let expected = [
        ("http.request.method", "POST".to_owned()),
        ("http.response.status_code", "200".to_owned()),
        ("moongate.event", "task".to_owned()),
        ("server.address", "127.0.0.1".to_owned()),
        ("server.port", application.address.port().to_string()),
    ];
    assert_eq!(call.noted, expected.map(|(key, value)| (key.to_owned(), value)).into());
    assert_eq!(only(&collector, "deliver").await.parent, call.id);

    application.answers(|_| (503, json!({})));
    say(&node, "addTask", json!({"webhook": {}, "max_attempts": 1}), &parent("01")).await;
    let calls = named(&collector, "POST", 2).await;
    let failed = calls.iter().find(|step| step.is_error).unwrap();
    assert_eq!(
        (failed.noted["error.type"].as_str(), failed.noted["http.response.status_code"].as_str()),
        ("503", "503")
    );
    assert!(
        named(&collector, "task webhook", 2)
            .await
            .iter()
            .any(|step| step.noted.get("error.type").is_some_and(|kind| kind == "dead"))
    );
    nobody_is_named(&collector, &[&client.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_sampler_that_says_so_traces_begin_here() {
    let (collector, application) = (Receiver::start().await, Receiver::start().await);
    let url = application.url();
    let settings = [
        ("MOONGATE_WEBHOOK_URL", url.as_str()),
        ("MOONGATE_EVENTS", "webhook:bound"),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_on"),
    ];
    let [node] = nodes(&collector, None, &settings).await;
    let client = node.connect().await;
    node.done("bindUid", json!({"client_id": client.id, "uid": "alice"})).await;
    application.events("bound", 1).await;
    let request = only(&collector, "POST /api/bindUid").await;
    assert_eq!(request.parent, "");
    let call = only(&collector, "POST").await;
    assert_eq!((call.parent.as_str(), call.noted["moongate.event"].as_str()), ("", "bound"));
    assert_ne!(call.trace, request.trace);
    assert_eq!(application.requests()[0].headers["traceparent"], format!("00-{}-{}-01", call.trace, call.id));
    // The caller's word still counts.
    say(&node, "isUidOnline", json!({"uid": "alice"}), &parent("00")).await;
    say(&node, "getUidByClientId", json!({"client_id": client.id}), &parent("01")).await;
    assert_eq!(only(&collector, "POST /api/getUidByClientId").await.trace, TRACE);
    assert!(steps(&collector).iter().all(|step| step.name != "POST /api/isUidOnline"));
}

// --- the collector ---------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_for_the_collector_is_told_with_each_request() {
    let collector = Receiver::start().await;
    let settings = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=hunter%32"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.namespace=shop"),
    ];
    let [node] = nodes(&collector, None, &settings).await;
    say(&node, "getAllUidCount", json!({}), &parent("01")).await;
    only(&collector, "POST /api/getAllUidCount").await;
    let told = collector.requests().remove(0);
    assert_eq!(told.headers["x-api-key"], "hunter2");
    let resource = Request::decode(&*told.body).unwrap().resource_spans.remove(0).resource.unwrap();
    let about = noted(&resource.attributes);
    // A node that is alone has no name but the one of its run.
    assert_eq!(about["service.instance.id"].len(), 36);
    let about: Vec<_> =
        about.iter().filter(|(key, _)| *key != "service.instance.id").map(|(key, value)| (&**key, &**value)).collect();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        about,
        [
            ("deployment.environment.name", "test"),
            ("service.name", "moongate"),
            ("service.namespace", "shop"),
            ("service.version", version),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_collector_could_not_take_it_is_told_again_when_it_can() {
    let collector = Receiver::start().await;
    let [node] = nodes(&collector, None, &[]).await;
    collector.answers(|_| (503, json!({})));
    say(&node, "isUidOnline", json!({"uid": "alice"}), &parent("01")).await;
    eventually("it was told", async || !collector.requests().is_empty()).await;
    assert!(steps(&collector).is_empty());
    collector.leave().await;
    say(&node, "isOnline", json!({"client_id": "7f0000010b5400000001"}), &parent("01")).await;
    collector.answers(|_| (200, json!({})));
    collector.come_back().await;
    only(&collector, "POST /api/isUidOnline").await;
    only(&collector, "POST /api/isOnline").await;
    assert_eq!(node.metric("moongate_spans_exported_total").await, 2.0);
    assert_eq!(node.metric("moongate_spans_dropped_total").await, 0.0);
    // What it will never take it is not told again.
    collector.answers(|_| (400, json!({})));
    say(&node, "isUidOnline", json!({"uid": "alice"}), &parent("01")).await;
    eventually("it is counted", async || node.metric("moongate_spans_dropped_total").await == 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_holds_up_nothing_and_what_finds_no_room_is_counted() {
    let collector = Receiver::start().await;
    collector.answers_late(|_| std::future::pending());
    let [node] = nodes(&collector, None, &[]).await;
    let mut client = node.member("alice", "the-red-room").await;
    let batch: Vec<Value> = (0..1000).map(|_| json!({"op": "sendToUid", "uid": "alice", "message": "hello"})).collect();
    for _ in 0..10 {
        let sent = say(&node, "batch", json!({"commands": batch}), &parent("01")).await;
        assert!(sent["results"].as_array().unwrap().iter().all(|item| item["result"]["nodes"] == 1));
        for _ in 0..1000 {
            assert_eq!(client.text().await, "hello");
        }
    }
    assert!(node.metric("moongate_spans_dropped_total").await > 1000.0);
    drop(client);
    let began = Instant::now();
    node.stop();
    node.stopped().await;
    // It waits for 2 s for what is left.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_of_a_node_that_stops_are_told() {
    let (collector, redis) = (Receiver::start().await, Redis::start().await);
    for redis in [None, Some(&redis)] {
        let [node] = nodes(&collector, redis, &[]).await;
        say(&node, "sendToAll", json!({"message": "hello"}), &parent("01")).await;
        node.stop();
        node.stopped().await;
    }
    assert_eq!(steps(&collector).iter().filter(|step| step.name == "POST /api/sendToAll").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_with_the_collector_is_one_line_in_the_log_and_has_no_password_in_it() {
    let collector = Receiver::answering(|_| (503, json!({}))).await;
    let url = collector.url().replace("http://", "http://user:hunter2@");
    let settings = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url.as_str()),
        ("OTEL_TRACES_SAMPLER", "always_on"),
        ("MOONGATE_LOG", "info"),
    ];
    let node = Process::start(&settings).await;
    node.ask("isUidOnline", json!({"uid": "alice"})).await;
    eventually("it was told twice", async || collector.requests().len() >= 2).await;
    let complaints = |log: &str| log.matches("the collector does not take spans").count();
    assert_eq!(complaints(&node.log()), 1, "{}", node.log());
    collector.answers(|_| (200, json!({})));
    only(&collector, "POST /api/isUidOnline").await;
    eventually("that is said, too", async || node.log().contains("takes spans again")).await;
    collector.leave().await;
    node.ask("isUidOnline", json!({"uid": "alice"})).await;
    eventually("it is out of reach", async || complaints(&node.log()) == 2).await;
    assert!(!node.log().contains("hunter2"), "{}", node.log());
}

#[test]
fn a_wrong_setting_of_traces_is_one_line_and_exit_2() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
    for (wrong, line) in [
        (
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318"),
            "OTEL_EXPORTER_OTLP_ENDPOINT: got \"127.0.0.1:4318\", takes the http",
        ),
        (("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), "OTEL_EXPORTER_OTLP_PROTOCOL: got \"grpc\", takes http/protobuf"),
        (("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"), "OTEL_EXPORTER_OTLP_HEADERS: got <hidden>, takes headers"),
        (("OTEL_TRACES_SAMPLER", "sometimes"), "OTEL_TRACES_SAMPLER: got \"sometimes\", takes always_on"),
    ] {
        for arguments in [&[][..], &["check"]] {
            let ended = run(arguments, &[endpoint, wrong]);
            assert_eq!((ended.code, ended.stderr.lines().count()), (Some(2), 1), "{ended:?}");
            assert!(ended.stderr.starts_with(line), "{ended:?}");
        }
    }
    // Where nothing is exported, they are other programs' affair.
    assert_eq!(run(&["check"], &[("OTEL_TRACES_SAMPLER", "sometimes")]).code, Some(0));
    assert_eq!(run(&["check"], &[endpoint, ("OTEL_BSP_SCHEDULE_DELAY", "never")]).code, Some(0));
}
