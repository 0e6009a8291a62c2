//! Queued tasks, as a program in any language adds them to the stream, and as they look over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Node, PATIENCE, eventually, soon};
use crate::receiver::Receiver;
use crate::redis::{Redis, Reply};

const HOUR: u64 = 3_600_000;

/// A field of an entry, whatever bytes it is.
type Field<'a> = (&'a [u8], &'a [u8]);

/// A node, or two, with a Redis.
async fn nodes<const N: usize>(redis: &Redis, more: &[(&str, &str)]) -> [Node; N] {
    let url = redis.url();
    let mut settings = [&[("MOONGATE_REDIS_URL", &*url)], more].concat();
    if !more.iter().any(|(name, _)| *name == "MOONGATE_NODE_TTL") {
        settings.push(("MOONGATE_NODE_TTL", "2s"));
    }
    let mut nodes = Vec::new();
    for _ in 0..N {
        nodes.push(Node::start_with(&settings).await.until_ready().await);
    }
    nodes.try_into().unwrap_or_else(|_| panic!("so many"))
}

/// Adds a task as any program would; returns its entry.
async fn add(redis: &Redis, fields: &[(&str, &str)]) -> String {
    let fields = fields.iter().flat_map(|(name, value)| [*name, *value]);
    let command: Vec<&str> = ["XADD", "mg:tasks", "*"].into_iter().chain(fields).collect();
    redis.command(&command).await.string()
}

fn send(uid: &str, message: &str) -> String {
    json!({"op": "sendToUid", "uid": uid, "message": message}).to_string()
}

/// What was answered at a key, once it is.
async fn answer(redis: &Redis, key: &str) -> Value {
    let reply = redis.command(&["BLPOP", key, "10"]).await.list();
    assert_eq!(reply.len(), 2, "no answer at {key}");
    serde_json::from_slice(reply[1].clone().string().as_bytes()).unwrap()
}

/// The dead letters' fields.
async fn dead_letters(redis: &Redis) -> Vec<BTreeMap<String, Vec<u8>>> {
    let entries = redis.command(&["XRANGE", "mg:tasks:dead", "-", "+"]).await.list();
    let fields = |entry: Reply| {
        let fields = entry.list()[1].clone().list();
        let bytes = |reply: &Reply| match reply {
            Reply::Text(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        };
        fields.chunks(2).map(|pair| (String::from_utf8_lossy(&bytes(&pair[0])).into_owned(), bytes(&pair[1]))).collect()
    };
    entries.into_iter().map(fields).collect()
}

async fn redis_time(redis: &Redis) -> u64 {
    let time = redis.command(&["TIME"]).await.list();
    let number = |place: usize| time[place].clone().string().parse::<u64>().unwrap();
    number(0) * 1000 + number(1) / 1000
}

async fn state(node: &Node, id: &str) -> Value {
    node.ask("getTask", json!({"id": id})).await["state"].clone()
}

/// Nothing is in the stream, and nothing is in hand.
async fn is_idle(redis: &Redis) -> bool {
    let pending = redis.command(&["XPENDING", "mg:tasks", "moongate"]).await.list();
    redis.command(&["XLEN", "mg:tasks"]).await.int() == 0 && pending[0] == Reply::Int(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_a_program_adds_reaches_the_client_and_leaves_nothing() {
    let redis = Redis::start().await;
    let [node] = nodes(&redis, &[]).await;
    let mut client = node.member("u", "g").await;
    let before = redis.keys("*").await;
    for text in ["one", "two"] {
        add(&redis, &[("command", &send("u", text))]).await;
        assert_eq!(client.text().await, text);
    }
    eventually("nothing is left", async || is_idle(&redis).await).await;
    assert_eq!(redis.keys("*").await, before);
    eventually("it is counted", async || node.metric("moongate_task_attempts_total").await == 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_added_before_there_was_a_node_is_carried_out() {
    let redis = Redis::start().await;
    add(&redis, &[("command", r#"{"op":"getAllUidCount"}"#), ("reply_to", "mg:reply:1")]).await;
    let [_node] = nodes(&redis, &[]).await;
    assert_eq!(answer(&redis, "mg:reply:1").await, json!({"result": 0}));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_answers_a_program_binds_and_then_pushes_with_redis_alone() {
    let redis = Redis::start().await;
    let [a, b] = nodes(&redis, &[]).await;
    for (place, node) in [&a, &b].into_iter().enumerate() {
        let mut client = node.connect().await;
        let uid = format!("u{place}");
        let bind = json!({"op": "bindUid", "client_id": client.id, "uid": uid}).to_string();
        let key = format!("mg:reply:{uid}");
        add(&redis, &[("command", &bind), ("reply_to", &key)]).await;
        assert_eq!(answer(&redis, &key).await, json!({"result": true}));
        assert_eq!(redis.publish(&format!("mg:uid:{uid}"), "hello").await, 1);
        assert_eq!(client.text().await, "hello");

        // It is the very body that HTTP answers.
        for (command, key) in [
            (json!({"op": "isUidOnline", "uid": uid}), "mg:reply:query"),
            (json!({"op": "bindUid", "client_id": "7f0000010b5400000001", "uid": "x"}), "mg:reply:error"),
            (json!({"op": "batch", "commands": [{"op": "isUidOnline", "uid": uid}, {"op": "x"}]}), "mg:reply:batch"),
        ] {
            add(&redis, &[("command", &command.to_string()), ("reply_to", key)]).await;
            let reply = redis.command(&["BLPOP", key, "10"]).await.list()[1].clone().string();
            let mut fields = command.clone();
            let op = fields.as_object_mut().unwrap().remove("op").unwrap();
            assert_eq!(reply, node.post(op.as_str().unwrap(), &fields.to_string()).await.text());
        }
        drop(client);
    }
    // It stands for a minute.
    add(&redis, &[("command", r#"{"op":"getAllUidCount"}"#), ("reply_to", "mg:reply:ttl")]).await;
    eventually("it is answered", async || redis.command(&["LLEN", "mg:reply:ttl"]).await == Reply::Int(1)).await;
    assert!((1..=60).contains(&redis.command(&["TTL", "mg:reply:ttl"]).await.int()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_later_comes_then_and_what_was_due_before_comes_at_once() {
    let redis = Redis::start().await;
    let [node, _other] = nodes(&redis, &[]).await;
    let mut client = node.member("u", "g").await;
    let start = Instant::now();
    let at = redis_time(&redis).await + 3000;
    add(&redis, &[("command", &send("u", "third")), ("at", &at.to_string())]).await;
    add(&redis, &[("command", &send("u", "second")), ("delay", "1000"), ("id", "later")]).await;
    add(&redis, &[("command", &send("u", "first")), ("at", "1")]).await;
    assert_eq!(client.text().await, "first");
    assert!(start.elapsed() < Duration::from_secs(1));
    let shown = node.ask("getTask", json!({"id": "later"})).await;
    assert_eq!((&shown["state"], &shown["attempts"]), (&json!("waiting"), &json!(0)));
    assert!(shown["next_at"].as_u64().unwrap() <= at);
    assert_eq!(client.text().await, "second");
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(client.text().await, "third");
    assert!(start.elapsed() >= Duration::from_millis(2990));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_waits_is_cancelled_one_that_comes_later_is_not_run_and_one_that_is_done_is_done() {
    let redis = Redis::start().await;
    let [node, other] = nodes(&redis, &[]).await;
    let mut client = node.member("u", "g").await;
    add(&redis, &[("command", &send("u", "never")), ("delay", "60000"), ("id", "waits")]).await;
    eventually("it is known", async || state(&other, "waits").await == "waiting").await;
    assert_eq!(node.ask("cancelTask", json!({"id": "waits"})).await, json!(true));
    assert_eq!(node.ask("cancelTask", json!({"id": "waits"})).await, json!(false));
    assert_eq!(other.ask("getTask", json!({"id": "waits"})).await, Value::Null);

    // By a task, before what it cancels.
    let cancel = |id: &str| json!({"op": "cancelTask", "id": id}).to_string();
    add(&redis, &[("command", &cancel("early")), ("reply_to", "mg:reply:c")]).await;
    assert_eq!(answer(&redis, "mg:reply:c").await, json!({"result": false}));
    add(&redis, &[("command", &send("u", "never")), ("id", "early")]).await;
    add(&redis, &[("command", &send("u", "done")), ("id", "done")]).await;
    assert_eq!(client.text().await, "done");
    eventually("it is done", async || state(&node, "done").await == "done").await;
    assert_eq!(other.ask("cancelTask", json!({"id": "done"})).await, json!(false));
    eventually("nothing is left", async || is_idle(&redis).await).await;
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_tasks_with_one_id_one_is_run_and_both_are_answered() {
    let redis = Redis::start().await;
    let [a, b] = nodes(&redis, &[]).await;
    let mut client = a.member("u", "g").await;
    for round in 0..20 {
        let (id, text) = (format!("id{round}"), format!("round {round}"));
        for key in ["mg:reply:1", "mg:reply:2"] {
            add(&redis, &[("command", &send("u", &text)), ("id", &id), ("reply_to", key)]).await;
        }
        b.ask("addTask", json!({"command": {"op": "sendToUid", "uid": "u", "message": text}, "id": id})).await;
        assert_eq!(client.text().await, text);
        for key in ["mg:reply:1", "mg:reply:2"] {
            assert_eq!(answer(&redis, key).await, json!({"result": {"nodes": 1}}));
        }
    }
    // The first waits, so all are answered at its end.
    for key in ["mg:reply:1", "mg:reply:2", "mg:reply:3"] {
        let fields = [("command", &*send("u", "later")), ("id", "later"), ("reply_to", key), ("delay", "300")];
        add(&redis, &fields).await;
    }
    assert_eq!(client.text().await, "later");
    for key in ["mg:reply:1", "mg:reply:2", "mg:reply:3"] {
        assert_eq!(answer(&redis, key).await, json!({"result": {"nodes": 1}}));
    }
    client.heard_nothing(&a).await;
    // It is remembered for a day.
    let until = redis.command(&["ZSCORE", "{mg:tasks}:ended", "later"]).await.string().parse::<f64>().unwrap();
    let day = until - redis_time(&redis).await as f64;
    assert!((86_300_000.0..=86_400_000.0).contains(&day), "{day}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_runs_once_whenever_it_says_however_many_nodes_there_are() {
    let redis = Redis::start().await;
    let [a, b] = nodes(&redis, &[]).await;
    let mut client = a.member("u", "g").await;
    add(&redis, &[("command", &send("u", "old")), ("cron", "* * * * * *"), ("id", "c"), ("max_attempts", "1")]).await;
    assert_eq!(client.text().await, "old");
    // Adding the id again replaces the schedule; one of its ticks may be on its way.
    add(&redis, &[("command", &send("u", "new")), ("cron", "*/1 * * * * *"), ("id", "c"), ("tz", "Asia/Shanghai")])
        .await;
    let start = soon("the new one", async {
        while client.text().await != "new" {}
        Instant::now()
    })
    .await;
    for _ in 0..3 {
        assert_eq!(client.text().await, "new");
    }
    let took = start.elapsed().as_secs_f64();
    assert!((2.0..8.0).contains(&took), "{took}");
    let shown = b.ask("getTask", json!({"id": "c"})).await;
    assert_eq!((&shown["state"], &shown["task"]["tz"]), (&json!("waiting"), &json!("Asia/Shanghai")));
    let ticks = b.ask("listTasks", json!({"state": "done"})).await["items"].as_array().unwrap().clone();
    let ids: BTreeSet<&str> = ticks.iter().map(|tick| tick["id"].as_str().unwrap()).collect();
    assert!(ids.len() == ticks.len() && ids.iter().all(|id| id.starts_with("c@") && id.ends_with("000")), "{ids:?}");

    // Missed times are not made up.
    redis.pause().await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    redis.resume();
    let resumed = redis_time(&redis).await;
    let ticks = async || {
        let ended = redis.command(&["ZRANGE", "{mg:tasks}:ended", "0", "-1"]).await.names();
        ended.iter().filter_map(|id| id.strip_prefix("c@")?.parse::<u64>().ok()).collect::<BTreeSet<_>>()
    };
    eventually("it goes on", async || ticks().await.last().is_some_and(|last| *last > resumed)).await;
    assert_eq!(a.ask("cancelTask", json!({"id": "c"})).await, json!(true));
    assert_eq!(a.ask("cancelTask", json!({"id": "c"})).await, json!(false));
    eventually("nothing is left", async || is_idle(&redis).await).await;
    let ticks = ticks().await;
    let missing = (ticks.last().unwrap() - ticks.first().unwrap()) / 1000 + 1 - ticks.len() as u64;
    assert!(missing >= 1, "{ticks:?}");
    assert_eq!(redis.command(&["ZCARD", "{mg:tasks}:due"]).await, Reply::Int(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_cron_and_its_cancel_the_later_entry_counts_in_whatever_order_they_are_done() {
    let redis = Redis::start().await;
    let early = add(&redis, &[("command", &send("u", "x")), ("cron", "* * * * * *"), ("id", "c")]).await;
    // Somebody else holds the first entry: it is read after the cancel.
    redis.command(&["XGROUP", "CREATE", "mg:tasks", "moongate", "0"]).await;
    redis.command(&["XREADGROUP", "GROUP", "moongate", "gone", "COUNT", "1", "STREAMS", "mg:tasks", ">"]).await;
    let [node] = nodes(&redis, &[]).await;
    let cancel = json!({"op": "cancelTask", "id": "c"}).to_string();
    add(&redis, &[("command", &cancel), ("reply_to", "mg:reply:1")]).await;
    assert_eq!(answer(&redis, "mg:reply:1").await, json!({"result": false}));
    redis.command(&["XCLAIM", "mg:tasks", "moongate", "gone", "0", &early, "IDLE", "100000"]).await;
    let patient = tokio::time::timeout(Duration::from_secs(20), async {
        while !is_idle(&redis).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    patient.await.expect("what somebody else had is taken over");
    assert_eq!(node.ask("getTask", json!({"id": "c"})).await, Value::Null);
    // One that is added later counts.
    add(&redis, &[("command", &send("u", "x")), ("cron", "0 0 1 1 *"), ("id", "c")]).await;
    eventually("it is known", async || state(&node, "c").await == "waiting").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_goes_to_the_dead_letters_as_it_is_and_stops_nobody() {
    let redis = Redis::start().await;
    let [node] = nodes(&redis, &[]).await;
    let mut client = node.member("u", "g").await;
    let (good, large) = (send("u", "good"), vec![b'1'; 3 << 20]);
    let names: Vec<String> = (0..5000).map(|number| format!("field-{number}")).collect();
    let many: Vec<Field<'_>> = names.iter().map(|name| (name.as_bytes(), &b"x"[..])).collect();
    let poison: &[(&[Field<'_>], &str)] = &[
        (&many, "field-0"),
        (&[(b"command", good.as_bytes()), (b"comand", b"x")], "comand"),
        (&[(b"command", good.as_bytes()), (b"webhook", b"{}")], "webhook"),
        (&[(b"id", b"neither")], "command"),
        (&[(b"command", b"{\"op\":")], "command"),
        (&[(b"command", b"\xff\xfe\x00")], "command"),
        (&[(b"command", b"{\"op\":\"nope\"}")], "nope"),
        (&[(b"command", b"{\"op\":\"sendToUid\",\"uid\":null,\"message\":1}")], "uid"),
        (&[(b"command", good.as_bytes()), (b"cron", b"* * * * *")], "id"),
        (&[(b"command", good.as_bytes()), (b"id", b"c"), (b"cron", b"61 * * * *")], "cron"),
        (&[(b"command", good.as_bytes()), (b"delay", b"soon")], "delay"),
        (&[(b"command", good.as_bytes()), (b"max_attempts", b"0")], "max_attempts"),
        (&[(b"command", good.as_bytes()), (b"reply_to", b"mg:client:x")], "reply_to"),
        (&[(b"\xff", b"\xff"), (b"\xff", b"\x00")], "field"),
        (&[(b"webhook", b"{}")], "MOONGATE_WEBHOOK_URL"),
        (&[(b"webhook", &large)], "2097152"),
    ];
    for (fields, _) in poison {
        let mut command: Vec<&[u8]> = vec![b"XADD", b"mg:tasks", b"*"];
        command.extend(fields.iter().flat_map(|(name, value)| [*name, *value]));
        redis.command(&command).await;
        add(&redis, &[("command", &good)]).await;
    }
    for _ in poison {
        assert_eq!(client.text().await, "good");
    }
    eventually("all are there", async || dead_letters(&redis).await.len() == poison.len()).await;
    eventually("nothing is left", async || is_idle(&redis).await).await;
    let letters = dead_letters(&redis).await;
    for (fields, why) in poison {
        let is_it = |letter: &&BTreeMap<String, Vec<u8>>| {
            if *why == "2097152" {
                // Only its beginning is kept.
                return letter.get("webhook").is_some_and(|kept| *kept == large[..1 << 20]);
            }
            let reason = String::from_utf8(letter["reason"].clone()).unwrap();
            let has = |(name, value): &Field<'_>| {
                // A name that is no text, and comes twice, cannot be looked up here.
                *name == b"\xff" || letter.get(std::str::from_utf8(name).unwrap()).is_some_and(|found| found == value)
            };
            reason.contains(why) && fields.iter().all(has)
        };
        let letter = letters.iter().find(is_it).unwrap_or_else(|| panic!("{why}: {letters:?}"));
        assert!(letter["dead_at"].len() == 13 && letter["attempts"] == b"1" && letter.contains_key("id"));
    }
    // It never was a task: its id is free.
    add(&redis, &[("command", &good), ("id", "neither")]).await;
    assert_eq!(client.text().await, "good");
    assert_eq!(node.metric("moongate_dead_letters_total").await, poison.len() as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_fails_is_tried_again_until_it_is_dead_and_can_be_retried() {
    let redis = Redis::start().await;
    let hook = Receiver::answering(|event| {
        let fails = match event["payload"]["fails"].as_u64() {
            Some(times) => event["attempt"].as_u64().unwrap() <= times,
            None => true,
        };
        let commands = json!({"commands": [{"op": "sendToUid", "uid": "u", "message": "told"}]});
        if fails { (500, json!({})) } else { (200, commands) }
    })
    .await;
    let [node, other] = nodes(&redis, &[("MOONGATE_WEBHOOK_URL", &hook.url())]).await;
    let mut client = node.member("u", "g").await;
    let start = Instant::now();
    add(&redis, &[("webhook", r#"{"fails":2}"#), ("id", "heals"), ("reply_to", "mg:reply:h")]).await;
    add(&redis, &[("webhook", r#"{"never":1}"#), ("id", "dies"), ("max_attempts", "1"), ("reply_to", "mg:reply:d")])
        .await;
    assert_eq!(answer(&redis, "mg:reply:d").await["code"], "node_unreachable");
    eventually("it is dead", async || state(&other, "dies").await == "dead").await;
    let dead = node.ask("listTasks", json!({"state": "dead"})).await;
    assert_eq!((&dead["items"][0]["id"], &dead["items"][0]["attempts"]), (&json!("dies"), &json!(1)));
    assert_eq!(dead["items"][0]["reason"], "the webhook answered 500");
    let letters = dead_letters(&redis).await;
    assert_eq!((letters.len(), &*letters[0]["webhook"]), (1, &br#"{"never":1}"#[..]));

    assert_eq!(answer(&redis, "mg:reply:h").await, json!({"result": true}));
    // A second, and then two, give or take a quarter.
    let took = start.elapsed().as_secs_f64();
    assert!(took >= 2.2, "{took}");
    let told: Vec<Value> = hook.told().into_iter().filter(|event| event["id"] == "heals").collect();
    let attempts: Vec<u64> = told.iter().map(|event| event["attempt"].as_u64().unwrap()).collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert!(told[0]["event"] == "task" && told[0]["at"].is_u64() && told[0]["node"].is_string());
    // What it answers is done.
    assert_eq!(client.text().await, "told");
    assert_eq!(other.ask("getTask", json!({"id": "heals"})).await["attempts"], 3);

    assert_eq!(node.ask("retryTask", json!({"id": "heals"})).await, json!(false));
    assert_eq!(other.ask("retryTask", json!({"id": "dies"})).await, json!(true));
    eventually("it is dead again", async || state(&other, "dies").await == "dead").await;
    assert_eq!(dead_letters(&redis).await.len(), 1, "the first letter is taken off");
    assert_eq!(hook.told().iter().filter(|event| event["id"] == "dies").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_task_is_done_when_it_is_retried_and_goes_better() {
    let redis = Redis::start().await;
    let works = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let does = std::sync::Arc::clone(&works);
    let ordering = std::sync::atomic::Ordering::SeqCst;
    let hook =
        Receiver::answering(move |_| if does.load(ordering) { (204, json!({})) } else { (500, json!({})) }).await;
    let [node] = nodes(&redis, &[("MOONGATE_WEBHOOK_URL", &hook.url())]).await;
    let id = node.ask("addTask", json!({"webhook": [1], "max_attempts": 1, "delay": 10})).await["id"].clone();
    let id = id.as_str().unwrap();
    eventually("it is dead", async || state(&node, id).await == "dead").await;
    works.store(true, ordering);
    node.done("retryTask", json!({"id": id})).await;
    eventually("it is done", async || state(&node, id).await == "done").await;
    assert_eq!(hook.told().iter().map(|event| event["attempt"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(dead_letters(&redis).await.len(), 0);
    node.ask("cancelTask", json!({"id": "other"})).await;
    assert_eq!(node.refused("addTask", json!({"webhook": 1, "at": 1, "delay": 1})).await.0, 400);
}

/// Tasks in every state are listed, whole and in pages.
async fn are_listed(node: &Node, hook: &Receiver) {
    for place in 0..7 {
        let (delay, id) = (HOUR + place % 3, format!("waits{place}"));
        node.ask("addTask", json!({"command": {"op": "getAllUidCount"}, "delay": delay, "id": id})).await;
        let id = format!("done{place}");
        node.ask("addTask", json!({"command": {"op": "getAllUidCount"}, "id": id})).await;
        let id = format!("dead{place}");
        let bad = json!({"op": "bindUid", "client_id": "7f0000010b5400000001", "uid": "x"});
        node.ask("addTask", json!({"command": bad, "id": id})).await;
    }
    node.ask("addTask", json!({"command": {"op": "getAllUidCount"}, "cron": "0 0 1 1 *", "id": "cron"})).await;
    node.ask("addTask", json!({"webhook": "slow", "id": "slow"})).await;
    eventually("the slow one is told", async || hook.told().len() == 1).await;
    let listed = async |state: Option<&str>, limit: u64| {
        let (mut ids, mut cursor) = (Vec::new(), Value::Null);
        loop {
            let mut fields = json!({"limit": limit});
            if let Some(state) = state {
                fields["state"] = state.into();
            }
            if !cursor.is_null() {
                fields["cursor"] = cursor;
            }
            let page = node.ask("listTasks", fields).await;
            let items = page["items"].as_array().unwrap();
            assert!(items.len() as u64 <= limit);
            assert!(items.iter().all(|item| state.is_none_or(|state| item["state"] == state)), "{page}");
            ids.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            cursor = page["cursor"].clone();
            if cursor.is_null() {
                return ids;
            }
        }
    };
    let named = |name: &str| (0..7).map(|place| format!("{name}{place}")).collect::<BTreeSet<String>>();
    eventually("all have ended", async || {
        listed(Some("done"), 100).await.len() == 7 && listed(Some("dead"), 100).await.len() == 7
    })
    .await;
    let mut waiting = named("waits");
    waiting.insert("cron".into());
    for limit in [1, 2, 5, 100] {
        for (state, expected) in [
            ("waiting", waiting.clone()),
            ("running", ["slow".to_owned()].into()),
            ("done", named("done")),
            ("dead", named("dead")),
        ] {
            let ids = listed(Some(state), limit).await;
            assert_eq!(ids.iter().cloned().collect::<BTreeSet<_>>(), expected, "{state} by {limit}");
            assert_eq!(ids.len(), expected.len(), "{state} by {limit}");
        }
        assert_eq!(listed(None, limit).await.len(), 7 * 3 + 2);
    }
    let dead = node.ask("getTask", json!({"id": "dead1"})).await;
    assert_eq!(dead["reason"], "no client 7f0000010b5400000001 is connected");
    assert_eq!(dead["task"]["command"]["op"], "bindUid");
    assert_eq!(node.ask("getTask", json!({"id": "nobody"})).await, Value::Null);
    for (op, fields) in [
        ("listTasks", json!({"cursor": "x"})),
        ("listTasks", json!({"state": "lost"})),
        ("listTasks", json!({"limit": 0})),
        ("addTask", json!({})),
        ("addTask", json!({"command": {"op": "sendToAll"}, "reply_to": "mg:reply:x"})),
        ("addTask", json!({"command": {"op": "nope"}})),
        ("addTask", json!({"command": {"op": "getAllUidCount"}, "cron": "0 0 30 2 *", "id": "x"})),
        ("getTask", json!({"id": ""})),
    ] {
        assert_eq!(node.refused(op, fields).await, (400, "invalid_request".into()), "{op}");
    }
    assert_eq!(node.ask("cancelTask", json!({"id": "slow"})).await, json!(false));
    assert_eq!(node.ask("cancelTask", json!({"id": "cron"})).await, json!(true));
    assert_eq!(node.ask("cancelTask", json!({"id": "waits3"})).await, json!(true));
    assert_eq!(listed(Some("waiting"), 100).await.len(), 6);
    node.done("retryTask", json!({"id": "dead3"})).await;
    eventually("it is dead again", async || listed(Some("dead"), 100).await.len() == 7).await;
}

/// It holds its answers back until the test is over.
async fn slow_hook() -> Receiver {
    Receiver::slow(PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_listed_in_all_states_and_in_pages() {
    let (redis, hook) = (Redis::start().await, slow_hook().await);
    let [node, _other] = nodes(&redis, &[("MOONGATE_WEBHOOK_URL", &hook.url())]).await;
    are_listed(&node, &hook).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_redis_does_the_same_over_http() {
    let hook = slow_hook().await;
    let node = Node::start_with(&[("MOONGATE_WEBHOOK_URL", &hook.url())]).await;
    are_listed(&node, &hook).await;

    let mut client = node.member("u", "g").await;
    let say = |text: &str| json!({"op": "sendToUid", "uid": "u", "message": text});
    node.ask("addTask", json!({"command": say("later"), "delay": 300})).await;
    node.ask("addTask", json!({"command": say("now"), "id": "x"})).await;
    node.ask("addTask", json!({"command": say("again"), "id": "x"})).await;
    assert_eq!((client.text().await, client.text().await), ("now".into(), "later".into()));
    assert_eq!(node.ask("cancelTask", json!({"id": "early"})).await, json!(false));
    node.ask("addTask", json!({"command": say("never"), "id": "early"})).await;
    node.ask("addTask", json!({"command": say("tick"), "cron": "* * * * * *", "id": "c"})).await;
    assert_eq!((client.text().await, client.text().await), ("tick".into(), "tick".into()));
    assert_eq!(node.ask("cancelTask", json!({"id": "c"})).await, json!(true));
    let query = "/?method=addTask&args[]=%7B%22op%22:%22getAllUidCount%22%7D&args[]=10&args[]=7";
    let method = node.request("POST", query, &[], b"");
    assert_eq!(method.await.json(), json!({"result": {"id": "7"}}));
    eventually("it is done", async || state(&node, "7").await == "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_webhook_adding_a_task_for_it_is_refused() {
    let node = Node::start().await;
    let refused = node.call("addTask", json!({"webhook": {}})).await;
    assert_eq!((&refused["status"], &refused["field"]), (&json!(400), &json!("webhook")));
    assert!(refused["detail"].as_str().unwrap().contains("MOONGATE_WEBHOOK_URL"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_no_commands_for_everyone() {
    let redis = Redis::start().await;
    let [node] = nodes(&redis, &[]).await;
    let add = json!({"op": "addTask", "command": {"op": "getAllUidCount"}, "id": "x"});
    assert_eq!(redis.publish("mg:cmd", add.to_string()).await, 1);
    eventually("it is counted", async || node.metric("moongate_bus_lost_total").await == 1.0).await;
    assert_eq!(node.ask("getTask", json!({"id": "x"})).await, Value::Null);
    // In a batch over HTTP they are.
    let batch = node.call("batch", json!({"commands": [add, {"op": "cancelTask", "id": "y"}]})).await;
    assert_eq!(batch, json!({"results": [{"result": {"id": "x"}}, {"result": false}]}));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_data_are_lost_new_tasks_are_carried_out_nevertheless() {
    let redis = Redis::start().await;
    let [node, _other] = nodes(&redis, &[]).await;
    let mut client = node.member("u", "g").await;
    for round in 0..3 {
        add(&redis, &[("command", &send("u", "never")), ("delay", "3600000")]).await;
        redis.command(&["FLUSHALL"]).await;
        eventually("the client is known again", async || {
            node.ask("isUidOnline", json!({"uid": "u"})).await == json!(true)
        })
        .await;
        let text = format!("round {round}");
        add(&redis, &[("command", &send("u", &text))]).await;
        assert_eq!(client.text().await, text);
        node.ask("addTask", json!({"command": {"op": "sendToUid", "uid": "u", "message": "http"}})).await;
        assert_eq!(client.text().await, "http");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_of_tasks_is_written_when_redis_is_back() {
    let redis = Redis::start_with(&["--appendonly", "yes"]).await;
    let hook = Receiver::slow(Duration::from_millis(500)).await;
    let [node] = nodes(&redis, &[("MOONGATE_WEBHOOK_URL", &hook.url()), ("MOONGATE_NODE_TTL", "1h")]).await;
    add(&redis, &[("webhook", "1"), ("id", "x")]).await;
    eventually("it is in hand", async || state(&node, "x").await == "running").await;
    redis.stop();
    eventually("it was told", async || hook.told().len() == 1).await;
    redis.start_again().await;
    eventually("it is done", async || node.call("getTask", json!({"id": "x"})).await["result"]["state"] == "done")
        .await;
    assert_eq!(hook.told().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_to_a_connection_that_had_ended_is_found_again() {
    let redis = Redis::start().await;
    let [node] = nodes(&redis, &[("MOONGATE_NODE_TTL", "1h")]).await;
    let mut client = node.member("u", "g").await;
    let run = redis.command(&["HVALS", "{mg:nodes}:runs"]).await.names().pop_first().unwrap();
    // The group is told that the node has it.
    let mut program = redis.connection().await;
    program.command(&["MULTI"]).await;
    program.command(&["XADD", "mg:tasks", "*", "command", &send("u", "found")]).await;
    program.command(&["XREADGROUP", "GROUP", "moongate", &run, "STREAMS", "mg:tasks", ">"]).await;
    assert_eq!(program.command(&["EXEC"]).await.list().len(), 2);
    program.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    assert_eq!(client.text().await, "found");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_long_ago_is_forgotten_and_of_too_many_dead_letters_the_oldest_go() {
    let redis = Redis::start().await;
    let [node] = nodes(&redis, &[]).await;
    let mut client = node.member("u", "g").await;
    for round in ["one", "two"] {
        add(&redis, &[("command", &send("u", round)), ("id", "again")]).await;
        assert_eq!(client.text().await, round);
        eventually("it is done", async || state(&node, "again").await == "done").await;
        // A day later.
        redis.command(&["ZADD", "{mg:tasks}:ended", "1", "again"]).await;
        eventually("it is forgotten", async || state(&node, "again").await.is_null()).await;
    }
    assert_eq!(redis.command(&["EXISTS", "{mg:tasks}:ended", "{mg:tasks}:task:again"]).await, Reply::Int(0));

    let fill = "for n = 1, 10000 do redis.call('ZADD', KEYS[1], n, 'old' .. n) end";
    redis.command(&["EVAL", fill, "1", "{mg:tasks}:dead"]).await;
    add(&redis, &[("command", "x"), ("id", "new")]).await;
    eventually("it is dead", async || state(&node, "new").await == "dead").await;
    assert_eq!(redis.command(&["ZCARD", "{mg:tasks}:dead"]).await, Reply::Int(10_000));
    assert_eq!(redis.command(&["ZSCORE", "{mg:tasks}:dead", "old1"]).await, Reply::Nil);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_finishes_what_it_has_in_hand_and_leaves_the_group() {
    let redis = Redis::start().await;
    let hook = Receiver::slow(Duration::from_millis(700)).await;
    let [node] = nodes(&redis, &[("MOONGATE_WEBHOOK_URL", &hook.url())]).await;
    for place in 0..10 {
        add(&redis, &[("webhook", "1"), ("reply_to", &format!("mg:reply:{place}"))]).await;
    }
    eventually("they are in hand", async || {
        redis.command(&["XPENDING", "mg:tasks", "moongate"]).await.list()[0] == Reply::Int(10)
    })
    .await;
    let start = Instant::now();
    node.stop();
    node.stopped().await;
    assert!(start.elapsed() < PATIENCE);
    assert!(is_idle(&redis).await);
    for place in 0..10 {
        assert_eq!(answer(&redis, &format!("mg:reply:{place}")).await, json!({"result": true}));
    }
    assert_eq!(redis.command(&["XINFO", "CONSUMERS", "mg:tasks", "moongate"]).await.list().len(), 0);
}
