//! Queued tasks when nodes die in the middle of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::Node;
use crate::receiver::Receiver;
use crate::redis::{Connection, Redis, Reply};
use crate::world::{Process, TTL, end, node, within};

/// A task of a dead node is taken over within this.
const TAKEN_OVER: Duration = Duration::from_secs(TTL.as_secs() + 30);

async fn xadd(connection: &mut Connection, fields: &[(&str, &str)]) -> String {
    let fields = fields.iter().flat_map(|(name, value)| [*name, *value]);
    let command: Vec<&str> = ["XADD", "mg:tasks", "*"].into_iter().chain(fields).collect();
    connection.command(&command).await.string()
}

/// How often each task was told, by its number, and its attempts.
fn told(hook: &Receiver) -> BTreeMap<u64, Vec<(String, u64)>> {
    let mut told: BTreeMap<u64, Vec<(String, u64)>> = BTreeMap::new();
    for event in hook.told() {
        let attempt = (event["id"].as_str().unwrap().to_owned(), event["attempt"].as_u64().unwrap());
        told.entry(event["payload"].as_u64().unwrap()).or_default().push(attempt);
    }
    told
}

async fn is_idle(redis: &Redis) -> bool {
    let pending = redis.command(&["XPENDING", "mg:tasks", "moongate"]).await.list();
    redis.command(&["XLEN", "mg:tasks"]).await.int() == 0 && pending[0] == Reply::Int(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_node_is_killed_in_the_middle_of_a_thousand_tasks_all_are_run_and_those_with_one_id_once() {
    const TASKS: u64 = 1000;
    let redis = Redis::start().await;
    let hook = Receiver::slow(Duration::from_millis(100)).await;
    let (url, hook_url) = (redis.url(), hook.url());
    let settings = [("MOONGATE_WEBHOOK_URL", &*hook_url)];
    let survivor = node(&url, &settings).await;
    let victim = Process::ready(&url, &settings).await;
    let mut connection = redis.connection().await;
    for number in 0..TASKS {
        // Of those with an id there are two.
        let (payload, id) = (number.to_string(), format!("task-{number}"));
        match number % 3 {
            0 => drop(xadd(&mut connection, &[("webhook", &payload)]).await),
            1 => drop(xadd(&mut connection, &[("webhook", &payload), ("delay", "200")]).await),
            _ => {
                for _ in 0..2 {
                    xadd(&mut connection, &[("webhook", &payload), ("id", &id)]).await;
                }
            }
        }
        if number == TASKS / 2 {
            victim.kill();
        }
    }
    within(TAKEN_OVER, "all are run", async || told(&hook).len() as u64 == TASKS && is_idle(&redis).await).await;
    let told = told(&hook);
    let mut again = 0;
    for (number, attempts) in &told {
        let ids: BTreeSet<&str> = attempts.iter().map(|(id, _)| &**id).collect();
        assert_eq!(ids.len(), 1, "{number}: {attempts:?}");
        // What is repeated says so.
        let counted: Vec<u64> = attempts.iter().map(|(_, attempt)| *attempt).collect();
        assert!(counted.is_sorted_by(|one, other| one < other), "{number}: {attempts:?}");
        again += counted.len() - 1;
    }
    assert!(again > 0, "the node was killed in the middle of some");
    // What it had in hand it has no more, and neither has it a name in the group.
    within(TAKEN_OVER, "it is out of the group", async || {
        redis.command(&["XINFO", "CONSUMERS", "mg:tasks", "moongate"]).await.list().len() == 1
    })
    .await;
    assert_eq!(survivor.metric("moongate_dead_letters_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_nodes_die_again_and_again_is_given_up_and_says_so() {
    let redis = Redis::start().await;
    let hook = Receiver::slow(Duration::from_secs(60)).await;
    let (url, hook_url) = (redis.url(), hook.url());
    let settings = [("MOONGATE_WEBHOOK_URL", &*hook_url)];
    let mut connection = redis.connection().await;
    let victim = Process::ready(&url, &settings).await;
    xadd(&mut connection, &[("webhook", "1"), ("id", "deadly"), ("max_attempts", "1"), ("reply_to", "mg:reply:x")])
        .await;
    within(TTL, "it is told", async || hook.told().len() == 1).await;
    victim.kill();
    let survivor = node(&url, &settings).await;
    let state = async |survivor: &Node| survivor.ask("getTask", json!({"id": "deadly"})).await;
    within(TAKEN_OVER, "it is dead", async || state(&survivor).await["state"] == "dead").await;
    assert!(state(&survivor).await["reason"].as_str().unwrap().contains("died"));
    let reply = connection.command(&["LRANGE", "mg:reply:x", "0", "-1"]).await.list();
    let reply: Value = serde_json::from_str(&reply[0].clone().string()).unwrap();
    assert_eq!(reply["code"], "node_unreachable");
    assert_eq!(hook.told().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_longer_than_a_nodes_life_is_not_taken_over_also_after_an_outage() {
    let redis = Redis::start_with(&["--appendonly", "yes"]).await;
    let hook = Receiver::slow(Duration::from_secs(9)).await;
    let (url, hook_url) = (redis.url(), hook.url());
    let settings = [("MOONGATE_WEBHOOK_URL", &*hook_url), ("MOONGATE_NODE_TTL", "2s")];
    let (a, b) = (node(&url, &settings).await, node(&url, &settings).await);
    let mut connection = redis.connection().await;
    for number in 0..10 {
        xadd(&mut connection, &[("webhook", &number.to_string())]).await;
    }
    within(TTL, "all are told", async || hook.told().len() == 10).await;
    redis.pause().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    redis.resume();
    within(TAKEN_OVER, "all are done", async || is_idle(&redis).await).await;
    assert_eq!(hook.told().len(), 10);
    end(&redis, vec![a, b], vec![]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_for_a_client_whose_node_does_not_answer_is_tried_again() {
    let redis = Redis::start().await;
    let url = redis.url();
    let settings = [("MOONGATE_NODE_TTL", "30s")];
    let (a, b) = (node(&url, &settings).await, Process::ready(&url, &settings).await);
    let client = b.connect().await;
    let bind = json!({"op": "bindUid", "client_id": client.id, "uid": "u"}).to_string();
    b.freeze().await;
    let mut connection = redis.connection().await;
    // It waits for the living one: what the frozen one would be given is nobody's for half a minute.
    a.ask("addTask", json!({"command": serde_json::from_str::<Value>(&bind).unwrap(), "delay": 1500, "id": "x"})).await;
    let shown = async || a.ask("getTask", json!({"id": "x"})).await;
    within(TAKEN_OVER, "it has failed once", async || shown().await["reason"].is_string()).await;
    assert_eq!(shown().await["state"], "waiting");
    b.thaw();
    within(TAKEN_OVER, "it is done", async || shown().await["state"] == "done").await;
    assert!(shown().await["attempts"].as_u64() > Some(1));
    assert_eq!(connection.command(&["SCARD", "mg:uid:u:clients"]).await, Reply::Int(1));
}
