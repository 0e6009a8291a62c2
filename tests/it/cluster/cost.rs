//! What clients and messages cost Redis.

use super::*;

/// Every command that Redis is given, as it says so itself (`MONITOR`).
struct Monitor {
    told: Connection,
    program: Connection,
    marks: usize,
}

/// Commands by name and kind of key: how many. Of `SUBSCRIBE` and `UNSUBSCRIBE` each channel counts.
type Commands = BTreeMap<String, usize>;

impl Monitor {
    async fn of(redis: &Redis) -> Self {
        let (mut told, program) = (redis.connection().await, redis.connection().await);
        assert_eq!(told.command(&["MONITOR"]).await, Reply::text("OK"));
        Self { told, program, marks: 0 }
    }

    /// What was done for clients and applications since the last time; not what nodes do for themselves (lease,
    /// heartbeat, looking at each other and after their own index, wondering who hears, looking for tasks), and not what
    /// scripts call.
    async fn so_far(&mut self) -> Commands {
        self.marks += 1;
        let mark = format!("mark {}", self.marks);
        self.program.command(&["ECHO", &mark]).await;
        let mut commands = Commands::new();
        loop {
            let Reply::Text(line) = self.told.reply().await else { panic!("no line") };
            let line = String::from_utf8_lossy(&line).into_owned();
            let (client, command) = line.split_once("] ").unwrap();
            let words: Vec<&str> = command.split('"').skip(1).step_by(2).collect();
            let name = words[0].to_uppercase();
            if name == "ECHO" && words[1] == mark {
                return commands;
            }
            let key = words.get(if name == "EVAL" { 3 } else { 1 }).copied().unwrap_or_default();
            let of_nodes = key.starts_with("mg:node") || key.starts_with("{mg:nodes}");
            let of_node = command.contains(r#"{\"beat\":"#) || command.contains(r#"{\"node\":"#);
            let of_tasks = key.starts_with("mg:tasks") || name == "XREADGROUP";
            if client.ends_with(" lua")
                || of_tasks
                || of_nodes
                || of_node
                || ["CLIENT", "HLEN", "PUBSUB"].contains(&&*name)
            {
                continue;
            }
            let channels = if name.ends_with("SUBSCRIBE") { &words[1..] } else { &[key] };
            for key in channels {
                let groups = if key.ends_with(":groups") { ":groups" } else { "" };
                // The nodes' own channels have their kind before the colon.
                let words = if key.starts_with("mg.") { 1 } else { 2 };
                let kind: Vec<&str> = key.split(':').take(words).collect();
                *commands.entry(format!("{name} {}{groups}", kind.join(":"))).or_default() += 1;
            }
        }
    }

    /// So many commands were given for what has just been done, no others, and no more.
    async fn sees(&mut self, what: &str, expected: &[(&str, usize)]) {
        let expected: Commands = expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let mut seen = Commands::new();
        let complete = |seen: &Commands| expected.iter().all(|(name, count)| seen.get(name) >= Some(count));
        soon(what, async {
            loop {
                for (name, count) in self.so_far().await {
                    *seen.entry(name).or_default() += count;
                }
                if complete(&seen) {
                    break;
                }
            }
        })
        .await;
        assert_eq!(seen, expected, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_bind_join_and_leave_cost_redis_so_many_commands() {
    Pair::run(async |pair| {
        let mut monitor = Monitor::of(&pair.redis).await;
        let keeper = pair.b.connect().await;
        let connect = [("HSET mg:clients", 1), ("HSET mg:client", 1)];
        monitor.sees("the first client", &[&connect[..], &[("SUBSCRIBE mg:all", 1)]].concat()).await;
        let client = pair.b.connect().await;
        monitor.sees("a further client", &connect).await;

        // A question to its node, and the answer: two messages between nodes, one where the node is asked itself.
        let id = &client.id;
        for (op, fields, expected) in [
            (
                "bindUid",
                json!({"client_id": id, "uid": "u"}),
                &[("HSET mg:clients", 1), ("HSET mg:client", 1), ("SADD mg:uid", 1), ("SUBSCRIBE mg:uid", 1)][..],
            ),
            (
                "bindUid",
                json!({"client_id": id, "uid": "v"}),
                &[
                    ("HSET mg:clients", 1),
                    ("HSET mg:client", 1),
                    ("SREM mg:uid", 1),
                    ("SADD mg:uid", 1),
                    ("UNSUBSCRIBE mg:uid", 1),
                    ("SUBSCRIBE mg:uid", 1),
                ],
            ),
            (
                "bindUid",
                json!({"client_id": id, "uid": "w", "single": true}),
                &[
                    ("HSET mg:clients", 1),
                    ("HSET mg:client", 1),
                    ("SREM mg:uid", 1),
                    ("EVAL mg:uid", 1),
                    ("UNSUBSCRIBE mg:uid", 1),
                    ("SUBSCRIBE mg:uid", 1),
                ],
            ),
            (
                "joinGroup",
                json!({"client_id": id, "group": "g"}),
                &[
                    ("HSET mg:clients", 1),
                    ("SADD mg:client:groups", 1),
                    ("SADD mg:group", 1),
                    ("SUBSCRIBE mg:group", 1),
                ],
            ),
            (
                "joinGroup",
                json!({"client_id": id, "group": ["h", "i", "j"]}),
                &[
                    ("HSET mg:clients", 1),
                    ("SADD mg:client:groups", 1),
                    ("SADD mg:group", 3),
                    ("SUBSCRIBE mg:group", 3),
                ],
            ),
            (
                "leaveGroup",
                json!({"client_id": id, "group": ["h", "i", "j"]}),
                &[
                    ("HSET mg:clients", 1),
                    ("SREM mg:client:groups", 1),
                    ("SREM mg:group", 3),
                    ("UNSUBSCRIBE mg:group", 3),
                ],
            ),
            ("setSession", json!({"client_id": id, "session": {"a": 1}}), &[("HSET mg:client", 1)]),
            ("updateSession", json!({"client_id": id, "session": {"b": 1}}), &[("HSET mg:client", 1)]),
            (
                "unbindUid",
                json!({"client_id": id}),
                &[("HSET mg:clients", 1), ("HDEL mg:client", 1), ("SREM mg:uid", 1), ("UNSUBSCRIBE mg:uid", 1)],
            ),
            (
                "bindUid",
                json!({"client_id": id, "uid": "u"}),
                &[("HSET mg:clients", 1), ("HSET mg:client", 1), ("SADD mg:uid", 1), ("SUBSCRIBE mg:uid", 1)],
            ),
        ] {
            pair.a.done(op, fields.clone()).await;
            monitor.sees(&format!("{op} {fields}"), &[expected, &[("PUBLISH mg.lan", 2)]].concat()).await;
        }
        pair.b.done("setSession", json!({"client_id": id, "session": {"c": 1}})).await;
        monitor.sees("a change at the client's own node", &[("HSET mg:client", 1), ("PUBLISH mg.lan", 1)]).await;

        drop(client);
        let gone = [
            ("SREM mg:uid", 1),
            ("SREM mg:group", 1),
            ("UNLINK mg:client", 1),
            ("HDEL mg:clients", 1),
            ("UNSUBSCRIBE mg:uid", 1),
            ("UNSUBSCRIBE mg:group", 1),
        ];
        monitor.sees("a client that went away", &gone).await;
        let client = pair.b.member("u", "g").await;
        monitor.so_far().await;
        pair.a.ask("closeClient", json!({"client_id": client.id})).await;
        monitor.sees("a client that is closed", &[&gone[..], &[("PUBLISH mg.lan", 2)]].concat()).await;
        drop(keeper);
        let last = [("UNLINK mg:client", 1), ("HDEL mg:clients", 1), ("UNSUBSCRIBE mg:all", 1)];
        monitor.sees("the last client", &last).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clients_at_once_share_their_commands_to_redis() {
    const CLIENTS: usize = 100;
    Pair::run(async |pair| {
        let mut monitor = Monitor::of(&pair.redis).await;
        let count = |seen: &Commands, name: &str| seen.get(name).copied().unwrap_or_default();
        let until = async |clients: usize| {
            eventually("all have come or gone", async || counted(&pair.b, "moongate_clients").await == clients as u64)
                .await;
        };

        // While Redis takes its time the first is on its way; all that come meanwhile are the next lot.
        pair.redis.pause().await;
        let clients = join_all((0..CLIENTS).map(|_| pair.b.connect_quietly("/"))).await;
        until(CLIENTS).await;
        pair.redis.resume();
        let mut clients = clients;
        join_all(clients.iter_mut().map(Client::welcomed)).await;
        let seen = monitor.so_far().await;
        assert_eq!(count(&seen, "HSET mg:client"), CLIENTS);
        assert!((1..=2).contains(&count(&seen, "HSET mg:clients")), "{seen:?}");
        assert_eq!((count(&seen, "SUBSCRIBE mg:all"), seen.len()), (1, 3), "{seen:?}");

        // A hundred binds in one message; each is done as soon as it can be.
        let commands: Vec<Value> =
            clients.iter().map(|client| json!({"op": "bindUid", "client_id": client.id, "uid": "u"})).collect();
        pair.say(json!({"op": "batch", "commands": commands})).await;
        let key = ["SCARD", "mg:uid:u:clients"];
        let bound = async || usize::try_from(pair.redis.command(&key).await.int()).unwrap();
        eventually("all are bound", async || bound().await == CLIENTS).await;
        let seen = monitor.so_far().await;
        assert_eq!(count(&seen, "HSET mg:client"), CLIENTS);
        let lots = count(&seen, "HSET mg:clients");
        assert!(lots <= CLIENTS / 2, "{seen:?}");
        assert_eq!((count(&seen, "SADD mg:uid"), count(&seen, "SUBSCRIBE mg:uid")), (lots, 1), "{seen:?}");

        // Commands to another node than theirs, which asks that one: questions and answers share their messages.
        let change = |client: &Client| json!({"client_id": client.id, "session": {"a": 1}});
        join_all(clients.iter().map(|client| pair.a.done("setSession", change(client)))).await;
        let seen = monitor.so_far().await;
        assert_eq!((count(&seen, "HSET mg:client"), seen.len()), (CLIENTS, 2), "{seen:?}");
        assert!((2..=CLIENTS / 2).contains(&count(&seen, "PUBLISH mg.lan")), "{seen:?}");

        // One command for all clients of a uid: one step in each shard.
        let shards = std::thread::available_parallelism().unwrap().get();
        pair.a.done("joinGroup", json!({"uid": "u", "group": "g"})).await;
        let seen = monitor.so_far().await;
        assert_eq!(count(&seen, "SADD mg:client:groups"), CLIENTS);
        let lots = count(&seen, "HSET mg:clients");
        assert!((1..=shards).contains(&lots), "{seen:?}");
        assert_eq!((count(&seen, "SADD mg:group"), count(&seen, "SUBSCRIBE mg:group")), (lots, 1), "{seen:?}");
        // Both nodes are asked, and the other one answers.
        assert_eq!((count(&seen, "PUBLISH mg.ask"), count(&seen, "PUBLISH mg.lan"), seen.len()), (1, 1, 6), "{seen:?}");

        pair.redis.pause().await;
        drop(clients);
        until(0).await;
        pair.redis.resume();
        eventually("all have left", async || pair.redis.keys("mg:client*").await.is_empty()).await;
        let seen = monitor.so_far().await;
        for shared in ["UNLINK mg:client", "SREM mg:uid", "SREM mg:group", "HDEL mg:clients"] {
            assert!((1..=2).contains(&count(&seen, shared)), "{shared}: {seen:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_costs_one_publish_and_is_heard_once_by_each_node_that_holds_the_target_and_by_no_other() {
    const CLIENTS: usize = 100;
    Pair::run(async |pair| {
        let mut members = join_all((0..CLIENTS).map(|_| pair.b.member("u", "g"))).await;
        let mut monitor = Monitor::of(&pair.redis).await;
        let only_b = [0, 1];
        let mut round = async |here: bool, what: &str, nodes: [u64; 2], kind: &str, expected: &[(&str, usize)]| {
            let id = members[0].id.clone();
            let heard = async || {
                let mut heard = [0; 2];
                for (count, node) in heard.iter_mut().zip(pair.nodes()) {
                    *count = counted(node, &format!(r#"moongate_bus_heard_total{{kind="{kind}"}}"#)).await;
                }
                heard
            };
            monitor.so_far().await;
            let before = heard().await;
            let asked = if here { &pair.b } else { &pair.a };
            let (op, fields) = match what {
                "uid" => ("sendToUid", json!({"uid": "u", "message": what})),
                "group" => ("sendToGroup", json!({"group": "g", "message": what})),
                "all" => ("sendToAll", json!({"message": what})),
                "client" => ("sendToClient", json!({"client_id": id, "message": what})),
                "nobody" => ("sendToUid", json!({"uid": "nobody", "message": what})),
                "with exceptions" => ("sendToGroup", json!({"group": "g", "message": what, "exclude_uid": ["x"]})),
                "confirmed" => ("sendToGroup", json!({"group": "g", "message": what, "confirm": true})),
                "many" => ("sendToUid", json!({"uid": ["u", "nobody"], "message": what})),
                _ => ("publish", Value::Null),
            };
            if op == "publish" {
                assert_eq!(pair.publish("mg:group:g", what).await, 1);
            } else {
                asked.ask(op, fields).await;
            }
            monitor.sees(what, expected).await;
            let reached = match what {
                "client" => 1,
                "nobody" => 0,
                _ => CLIENTS,
            };
            for client in &mut members[..reached] {
                assert_eq!(client.text().await, what);
            }
            let after = heard().await;
            let heard = [after[0] - before[0], after[1] - before[1]];
            // Nodes greet each other where all are asked.
            let greeted = kind == "ask" && heard.iter().zip(nodes).all(|(heard, once)| *heard >= once);
            assert!(heard == nodes || greeted, "{what}: {heard:?}");
        };
        for here in [false, true] {
            round(here, "uid", only_b, "uid", &[("PUBLISH mg:uid", 1)]).await;
            round(here, "group", only_b, "group", &[("PUBLISH mg:group", 1)]).await;
            round(here, "all", only_b, "all", &[("PUBLISH mg:all", 1)]).await;
            round(here, "nobody", [0, 0], "uid", &[("PUBLISH mg:uid", 1)]).await;
            round(here, "with exceptions", only_b, "group", &[("PUBLISH mg:group", 1)]).await;
            // Whether the client is there is asked beside it.
            round(here, "client", only_b, "client", &[("PUBLISH mg:client", 1), ("EXISTS mg:client", 1)]).await;
            // The answer comes back; a node's answer to itself does not go through Redis.
            let answer = if here { &[][..] } else { &[("PUBLISH mg.lan", 1)] };
            round(here, "confirmed", only_b, "group", &[&[("PUBLISH mg:group", 1)], answer].concat()).await;
            // Each node says which of the many it holds: one answer comes from the other node.
            round(here, "many", [1, 1], "ask", &[("PUBLISH mg.ask", 1), ("PUBLISH mg.lan", 1)]).await;
        }
        // A foreign program's own publish is the only command.
        round(false, "published", only_b, "group", &[("PUBLISH mg:group", 1)]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_nothing_cost_redis_nothing() {
    const CLIENTS: usize = 200;
    const BEATS: u64 = 12;
    Pair::run(async |pair| {
        // What Redis is asked in so many beats, by command.
        let growth = async || {
            let evals = |stats: &BTreeMap<String, u64>| stats.get("eval").copied().unwrap_or_default();
            let before = pair.redis.commandstats().await;
            let mut after = soon("beats", async {
                loop {
                    let after = pair.redis.commandstats().await;
                    if evals(&after) >= evals(&before) + BEATS {
                        break after;
                    }
                }
            })
            .await;
            after.remove("info");
            for (name, calls) in &mut after {
                *calls -= before.get(name).copied().unwrap_or_default();
            }
            after
        };
        let alone = growth().await;
        let members = join_all((0..CLIENTS).map(|number| {
            let node = pair.nodes()[number % 2];
            async move { node.member(&format!("u{number}"), &format!("g{}", number % 10)).await }
        }))
        .await;
        let crowded = growth().await;
        for name in alone.keys().chain(crowded.keys()) {
            let [without, with] = [&alone, &crowded].map(|growth| growth.get(name).copied().unwrap_or_default());
            // A beat, or a node's telling of its counts, may be on either side of the end.
            assert!(without.abs_diff(with) < 10, "{name}: {without} without, {with} with {CLIENTS} clients");
        }
        drop(members);
    })
    .await;
}
