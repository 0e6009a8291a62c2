//! The state that any language may read.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_state_in_redis_is_as_documented_and_there_is_nothing_else() {
    Pair::run(async |pair| {
        assert_eq!(pair.redis.keys("*").await, pair.own_keys().await);
        let before = redis_time(&pair.redis).await;
        let (ann, bob) = (pair.a.connect().await, pair.b.member("bob", "red").await);
        pair.b.done("bindUid", json!({"client_id": ann.id, "uid": "ann"})).await;
        pair.b.done("joinGroup", json!({"client_id": ann.id, "group": ["red", "blue"]})).await;
        pair.b.done("setSession", json!({"client_id": ann.id, "session": {"name": "安", "n": [1, 2.50]}})).await;
        let bare = pair.b.connect().await;
        let after = redis_time(&pair.redis).await;

        let state = pair.state().await;
        let set = |members: &[&Client]| ("set".to_owned(), members.iter().map(|client| client.id.clone()).collect());
        assert_eq!(state["mg:uid:ann:clients"], set(&[&ann]));
        assert_eq!(state["mg:uid:bob:clients"], set(&[&bob]));
        assert_eq!(state["mg:group:red:clients"], set(&[&ann, &bob]));
        assert_eq!(state["mg:group:blue:clients"], set(&[&ann]));
        assert_eq!(state[&format!("mg:client:{}:groups", ann.id)], ("set".to_owned(), names(&["red", "blue"])));
        assert_eq!(state[&format!("mg:client:{}:groups", bob.id)], ("set".to_owned(), names(&["red"])));

        // Which node is whose is told by its address, the first part of its clients' ids.
        let mut node_of = BTreeMap::new();
        for id in pair.node_ids().await {
            let node = fields(pair.redis.command(&["HGETALL", &format!("mg:node:{id}")]).await);
            node_of.insert(hex(&node["lan"]), id);
        }
        for (client, uid, session) in
            [(&ann, Some("ann"), Some(r#"{"name":"安","n":[1,2.50]}"#)), (&bob, Some("bob"), None), (&bare, None, None)]
        {
            let mut hash = fields(pair.redis.command(&["HGETALL", &format!("mg:client:{}", client.id)]).await);
            assert_eq!(hash.remove("node").as_ref(), node_of.get(&client.id[..12]));
            assert_eq!(hash.remove("ip").as_deref(), Some("127.0.0.1"));
            let connected_at: u64 = hash.remove("connected_at").unwrap().parse().unwrap();
            assert!((before..=after).contains(&connected_at), "{before} {connected_at} {after}");
            assert_eq!(hash.remove("uid").as_deref(), uid);
            let session: Option<Value> = session.map(|session| serde_json::from_str(session).unwrap());
            assert_eq!(hash.remove("session").map(|text| serde_json::from_str::<Value>(&text).unwrap()), session);
            assert_eq!(hash, BTreeMap::new());
        }

        // What is internal is in the table, too: one index for each run that has clients.
        let runs = fields(pair.redis.command(&["HGETALL", "{mg:nodes}:runs"]).await);
        for (lan, node) in &node_of {
            let index = &state[&format!("mg:clients:{}", runs[node])];
            let of_node = [&ann, &bob, &bare].into_iter().filter(|client| client.id.starts_with(lan));
            assert_eq!((&*index.0, index.1.len()), ("hash", of_node.count()));
        }
        let mut keys = pair.own_keys().await;
        keys.extend(state.into_keys());
        assert_eq!(keys.len(), 6 + 6 + 3 + 2);
        assert_eq!(pair.redis.keys("*").await, keys);

        // What is unbound, left or gone leaves nothing.
        pair.a.done("unbindUid", json!({"client_id": ann.id})).await;
        pair.b.done("leaveGroup", json!({"client_id": ann.id, "group": ["red", "blue"]})).await;
        pair.a.ask("closeClient", json!({"client_id": bob.id})).await;
        let state: BTreeSet<String> =
            pair.state().await.into_keys().filter(|key| !key.starts_with("mg:clients:")).collect();
        assert_eq!(state, [&ann, &bare].map(|client| format!("mg:client:{}", client.id)).into());
        let hash = fields(pair.redis.command(&["HGETALL", &format!("mg:client:{}", ann.id)]).await);
        assert!(!hash.contains_key("uid"), "{hash:?}");
        pair.a.ask("closeClient", json!({"client_id": ann.id})).await;
        pair.a.ask("destroyClient", json!({"client_id": bare.id})).await;
        assert_eq!(pair.redis.keys("*").await, pair.own_keys().await);
    })
    .await;
}

/// Unix milliseconds, by Redis' own clock.
async fn redis_time(redis: &Redis) -> u64 {
    let time = redis.command(&["TIME"]).await.list();
    let [seconds, micros] = [0, 1].map(|place| time[place].clone().string().parse::<u64>().unwrap());
    seconds * 1000 + micros / 1000
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_lease_ends_by_redis_clock_and_its_hash_tells_who_it_is() {
    Pair::run(async |pair| {
        let mut clients = vec![pair.a.member("u", "g").await, pair.a.member("v", "g").await];
        let ids = pair.node_ids().await;
        assert_eq!(ids.len(), 2);
        for id in &ids {
            assert_eq!(id.len(), 36, "a fresh UUID: {id}");
            let lease =
                async || -> u64 { pair.redis.command(&["ZSCORE", "mg:nodes", id]).await.string().parse().unwrap() };
            let before = redis_time(&pair.redis).await;
            let first = lease().await;
            let after = redis_time(&pair.redis).await;
            // NODE_TTL after it was last renewed, which is done all the time.
            assert!((before + 10_000..=after + 15_000).contains(&first), "{before} {first}");
            eventually("the lease is renewed", async || lease().await > first).await;
        }
        clients.push(pair.b.connect().await);
        let key = format!("mg:node:{}", ids.iter().next().unwrap());
        let known = names(&["lan", "version", "started_at", "clients", "uids", "groups"]);
        assert!(known.is_subset(&pair.redis.command(&["HKEYS", &key]).await.names()));
        let mut hashes = Vec::new();
        for id in &ids {
            hashes.push(fields(pair.redis.command(&["HGETALL", &format!("mg:node:{id}")]).await));
        }
        let lans: BTreeSet<&str> = hashes.iter().map(|hash| &*hash["lan"]).collect();
        assert_eq!(lans, ["127.0.0.1:2900", "127.0.0.1:2901"].into());
        let now = redis_time(&pair.redis).await;
        for hash in &hashes {
            assert_eq!(hash["version"], env!("CARGO_PKG_VERSION"));
            let started_at: u64 = hash["started_at"].parse().unwrap();
            assert!((now - 60_000..=now).contains(&started_at), "{started_at} {now}");
        }
        // The counts follow within seconds.
        eventually("the counts are told", async || {
            let mut counts = BTreeSet::new();
            for id in &ids {
                let hash = fields(pair.redis.command(&["HGETALL", &format!("mg:node:{id}")]).await);
                counts.insert(["clients", "uids", "groups"].map(|count| hash[count].clone()).join(" "));
            }
            counts == names(&["2 2 1", "1 0 0"])
        })
        .await;
    })
    .await;
}
