//! Nodes that are replaced one after the other, as a rolling update does it, while everyone goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

use crate::history::entries;
use crate::model::Dice;
use crate::port::reserve_a_port;
use crate::receiver::Receiver;
use crate::redis::Redis;
use crate::world::{MOONGATE, Process, saw, within};

const CLIENTS: usize = 100;

/// The program of an earlier release, to go from and back to: see `scripts/try-update`.
const BEFORE: &str = "MOONGATE_BEFORE";
const DRAIN: &str = "3s";

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    /// Ids of all that were welcomed.
    ids: BTreeSet<String>,
    /// From a close to the next welcome.
    away: Vec<Duration>,
    closes: BTreeMap<u16, usize>,
    /// Who is bound at present, by name.
    bound: BTreeSet<String>,
    /// Who has heard what.
    heard: BTreeSet<(String, String)>,
}

/// A page that connects again whenever it is closed, to one node or the other, and binds itself as the application would.
async fn page(name: String, nodes: [(SocketAddr, SocketAddr); 2], seen: Arc<Mutex<Seen>>, over: Arc<AtomicBool>) {
    let mut dice = Dice(name.bytes().map(u64::from).sum());
    let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build().unwrap();
    let mut left: Option<Instant> = None;
    while !over.load(Ordering::Relaxed) {
        let (clients, _) = nodes[dice.roll(2)];
        // One that is not there, or stops, refuses: the next try may meet the other.
        let Ok((mut socket, _)) = tokio_tungstenite::connect_async(format!("ws://{clients}/")).await else {
            sleep(Duration::from_millis(10 + dice.roll(40) as u64)).await;
            continue;
        };
        let Some(Ok(Message::Text(init))) = socket.next().await else { continue };
        let init: Value = serde_json::from_str(init.as_str()).unwrap();
        let id = init["client_id"].as_str().unwrap().to_owned();
        {
            let mut seen = seen.lock();
            seen.ids.insert(id.clone());
            seen.away.extend(left.map(|left| left.elapsed()));
        }
        // Any node will do, and one that is not there is no answer.
        let bind = json!({"commands": [
            {"op": "bindUid", "client_id": id, "uid": name},
            {"op": "joinGroup", "client_id": id, "group": "room"},
        ]});
        let mut is_bound = false;
        let code = loop {
            if !is_bound {
                let (_, api) = nodes[dice.roll(2)];
                let asked = http.post(format!("http://{api}/api/batch")).body(bind.to_string()).send().await;
                let answer = if let Ok(asked) = asked { asked.text().await.unwrap_or_default() } else { String::new() };
                let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
                is_bound = answer["results"][1]["result"] == true;
                if is_bound {
                    seen.lock().bound.insert(name.clone());
                }
            }
            let wait = if is_bound { Duration::from_millis(100) } else { Duration::from_millis(10) };
            match tokio::time::timeout(wait, socket.next()).await {
                Ok(Some(Ok(Message::Close(frame)))) => break frame.map_or(1005, |frame| frame.code.into()),
                Ok(Some(Ok(Message::Text(text)))) => {
                    seen.lock().heard.insert((name.clone(), text.as_str().to_owned()));
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(_)) | None) => break 1006,
                Err(_) if over.load(Ordering::Relaxed) => break 1000,
                Err(_) => {}
            }
        };
        drop(socket);
        left = Some(Instant::now());
        let mut seen = seen.lock();
        seen.bound.remove(&name);
        *seen.closes.entry(code).or_default() += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_replaced_one_by_one_and_everyone_is_back_at_once_and_no_task_or_event_is_lost() {
    let redis = Redis::start().await;
    let receiver = Receiver::start().await;
    let ports: Vec<_> = (0..4).map(|_| reserve_a_port().unwrap()).collect();
    let nodes = [(ports[0].1, ports[1].1), (ports[2].1, ports[3].1)];
    let (url, hook) = (redis.url(), receiver.url());
    let before = std::env::var_os(BEFORE).unwrap_or_else(|| MOONGATE.into());
    let start = async |(clients, api): (SocketAddr, SocketAddr), program: &OsStr| {
        let (clients, api) = (clients.to_string(), api.to_string());
        let settings = [
            ("MOONGATE_LISTEN", &*clients),
            ("MOONGATE_API_LISTEN", &*api),
            ("MOONGATE_DRAIN", DRAIN),
            ("MOONGATE_EVENTS", "stream"),
            ("MOONGATE_WEBHOOK_URL", &*hook),
        ];
        Process::ready_of(program, &url, &settings).await
    };
    let mut running = [Some(start(nodes[0], &before).await), Some(start(nodes[1], &before).await)];
    let (seen, over) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
    let mut pages = JoinSet::new();
    for number in 0..CLIENTS {
        pages.spawn(page(format!("page-{number}"), nodes, Arc::clone(&seen), Arc::clone(&over)));
    }
    let all_are_bound = async || seen.lock().bound.len() == CLIENTS;
    within(Duration::from_secs(20), "all are there", all_are_bound).await;
    // Tasks, all the time.
    let tasks = tokio::spawn({
        let over = Arc::clone(&over);
        let mut redis = redis.connection().await;
        async move {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                let payload = json!({"number": number}).to_string();
                let id = format!("t{number}");
                redis.command(&["XADD", "mg:tasks", "*", "webhook", &payload, "id", &id]).await;
                number += 1;
                sleep(Duration::from_millis(10)).await;
            }
            number
        }
    });
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for (round, program) in [MOONGATE.as_ref(), &*before].into_iter().enumerate() {
        for place in 0..2 {
            running[place].take().unwrap().stop().await;
            running[place] = Some(start(nodes[place], program).await);
            within(Duration::from_secs(10), &format!("all are back in round {round}"), all_are_bound).await;
            // From Redis, and from the node of the other version.
            let (published, sent) = (format!("published {round} {place}"), format!("sent {round} {place}"));
            assert!(redis.publish("mg:group:room", &published).await > 0);
            let send = json!({"group": "room", "message": sent}).to_string();
            let other = format!("http://{}/api/sendToGroup", nodes[1 - place].1);
            assert_eq!(http.post(other).body(send).send().await.unwrap().status(), 200);
            for text in [published, sent] {
                let who = format!("all hear {text:?}");
                let heard = async || seen.lock().heard.iter().filter(|(_, heard)| *heard == text).count() == CLIENTS;
                within(Duration::from_secs(5), &who, heard).await;
            }
        }
    }
    over.store(true, Ordering::Relaxed);
    let tasks = tasks.await.unwrap();
    while let Some(ended) = pages.join_next().await {
        ended.unwrap();
    }
    let (ids, mut away, closes) = {
        let seen = seen.lock();
        (seen.ids.clone(), seen.away.clone(), seen.closes.clone())
    };
    away.sort_unstable();
    let (median, longest) = (away[away.len() / 2], away[away.len() - 1]);
    // Each was told to come back, and was back within the drain.
    assert_eq!(closes.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from([1000, 1012]));
    assert!(longest < Duration::from_secs(3), "{longest:?}");

    let done = || -> BTreeSet<u64> {
        let numbers = receiver.accepted().into_iter().filter_map(|event| event["payload"]["number"].as_u64());
        numbers.collect()
    };
    within(Duration::from_secs(40), "every task is done", async || done().len() == tasks).await;
    // Of each client the stream has a beginning and an end.
    let told = async |name: &str| -> BTreeMap<String, usize> {
        let mut told = BTreeMap::new();
        for entry in entries(&redis).await.iter().filter(|entry| entry["event"] == name) {
            *told.entry(entry["client_id"].clone()).or_default() += 1;
        }
        told
    };
    let all_once: BTreeMap<String, usize> = ids.iter().map(|id| (id.clone(), 1)).collect();
    within(Duration::from_secs(10), "every end is told", async || told("close").await.len() == ids.len()).await;
    assert_eq!((told("connect").await, told("close").await), (all_once.clone(), all_once));
    within(Duration::from_secs(10), "nobody is left", async || redis.keys("mg:client:*").await.is_empty()).await;
    saw(
        "rolling",
        &format!(
            "{} connections of {CLIENTS} pages while each of two nodes was replaced twice: away for {median:.1?}, at most \
             {longest:.1?} of a drain of {DRAIN}; of {tasks} tasks and their connects and closes none lost",
            ids.len()
        ),
    );
}
