//! Redis comes back as another one: empty, as it was some time ago, or a replica that was behind. Nodes compare both ways.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Node, eventually};
use crate::proxy::Proxy;
use crate::redis::{Redis, Reply};
use crate::world::{
    Ear, Expected, Process, TTL, all_are_reached_through, all_open, are_ready, chaos, crowd, end, is_chaos, node,
    nodes, redis_holds, saw, sum, throughout, unready_node, within,
};

/// A beat, a pause between two attempts, and the comparison itself; and a machine that does much else.
const SOON: Duration = Duration::from_secs(12);

/// Two nodes with two clients each. While Redis keeps what it has now, much changes; then Redis is as it was.
struct Story {
    nodes: Vec<Node>,
    stays: Ear,
    changes: Ear,
    departs: Option<Ear>,
    comes: Option<Ear>,
}

impl Story {
    async fn begin(url: &str, more: &[(&str, &str)]) -> Self {
        let first = node(url, more).await;
        let second = node(url, &[]).await;
        let stays = Ear::member(&first, "stays", &["room"]).await;
        let changes = Ear::member(&second, "before", &["room", "old"]).await;
        let departs = Some(Ear::member(&first, "departs", &["room", "departed"]).await);
        Self { nodes: vec![first, second], stays, changes, departs, comes: None }
    }

    /// What Redis is to forget.
    async fn go_on(&mut self) {
        let [first, second] = &self.nodes[..] else { unreachable!() };
        let id = &self.changes.id;
        first.done("bindUid", json!({"client_id": id, "uid": "after"})).await;
        first.done("leaveGroup", json!({"client_id": id, "group": "old"})).await;
        first.done("joinGroup", json!({"client_id": id, "group": "new"})).await;
        first.done("setSession", json!({"client_id": id, "session": {"uname": "after"}})).await;
        let departed = self.departs.take().unwrap();
        first.ask("closeClient", json!({"client_id": departed.id})).await;
        self.comes = Some(Ear::member(second, "comes", &["room"]).await);
        self.is_so(None).await;
    }

    /// It is as `go_on` has left it: in Redis, and in the eyes of both nodes.
    async fn is_so(&self, redis: Option<&Redis>) {
        let comes = self.comes.as_ref().unwrap();
        let clients = [
            Expected::member(&self.stays, "stays", &["room"]),
            Expected::member(&self.changes, "after", &["room", "new"]),
            Expected::member(comes, "comes", &["room"]),
        ];
        if let Some(redis) = redis {
            redis_holds(redis, SOON, &clients).await;
        }
        for node in &self.nodes {
            assert_eq!(node.ask("getClientIdCountByGroup", json!({"group": "room"})).await, 3);
            assert_eq!(node.ask("getAllClientIdCount", json!({})).await, 3);
            assert_eq!(node.ask("getClientIdByUid", json!({"uid": "comes"})).await, json!([comes.id]));
            assert_eq!(node.ask("getClientIdByUid", json!({"uid": "after"})).await, json!([self.changes.id]));
            for gone in ["before", "departs"] {
                assert_eq!(node.ask("isUidOnline", json!({"uid": gone})).await, false);
            }
            assert_eq!(node.ask("getSession", json!({"client_id": self.changes.id})).await, json!({"uname": "after"}));
        }
    }

    /// All goes on as before, and nobody was let go.
    async fn goes_on(self, redis: &Redis, compared: f64) {
        within(SOON, "both are in touch", async || are_ready(&self.nodes).await).await;
        self.is_so(Some(redis)).await;
        within(Duration::from_secs(2), "all hear", async || {
            redis.publish("mg:cmd", "{}").await == i64::try_from(self.nodes.len()).unwrap()
        })
        .await;
        let Self { nodes, stays, changes, comes, .. } = self;
        let ears = [stays, changes, comes.unwrap()];
        for (number, node) in nodes.iter().enumerate() {
            all_are_reached_through(node, &ears, &format!("through {number}")).await;
            assert!(node.metric("moongate_directory_compared_total").await >= compared, "it has compared");
        }
        for (uid, ear) in ["stays", "after", "comes"].iter().zip(&ears) {
            assert_eq!(redis.publish(format!("mg:uid:{uid}"), "by uid").await, 1);
            eventually("it is heard", async || ear.has_heard("by uid")).await;
        }
        throughout(TTL + Duration::from_secs(1), "nobody is swept", async || {
            let nodes: Vec<&Node> = nodes.iter().collect();
            sum(&nodes, "moongate_fenced_total").await == 0.0 && all_open(&ears)
        })
        .await;
        drop(ears);
        end(redis, nodes, vec![]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_restarted_empty_has_all_again() {
    let redis = Redis::start().await;
    let mut story = Story::begin(&redis.url(), &[]).await;
    story.go_on().await;
    redis.restart_empty().await;
    story.goes_on(&redis, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_emptied_under_us_has_all_again() {
    let redis = Redis::start().await;
    let mut story = Story::begin(&redis.url(), &[]).await;
    story.go_on().await;
    for round in 1..=3 {
        assert_eq!(redis.command(&["FLUSHALL"]).await, Reply::text("OK"));
        story.is_so_again(&redis).await;
        for node in &story.nodes {
            assert!(node.metric("moongate_directory_compared_total").await >= f64::from(round));
        }
    }
    story.goes_on(&redis, 3.0).await;
}

impl Story {
    async fn is_so_again(&self, redis: &Redis) {
        // The public facts of the nodes come back, too.
        within(SOON, "the nodes are back", async || {
            nodes(redis).await.len() == 2 && redis.keys("mg:node:*").await.len() == 2
        })
        .await;
        self.is_so(Some(redis)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_with_an_old_snapshot_loses_who_departed_and_gets_who_came() {
    let redis = Redis::start().await;
    let mut story = Story::begin(&redis.url(), &[]).await;
    redis.save().await;
    story.go_on().await;
    redis.stop();
    redis.start_again().await;
    story.goes_on(&redis, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_from_before_a_node_was_started_again_costs_no_client() {
    for named in [&[][..], &[("MOONGATE_NODE_ID", "gate-7")]] {
        let redis = Redis::start().await;
        // An earlier run of the first node: its name, if it has one, and its address are in the snapshot.
        let earlier = node(&redis.url(), named).await;
        let long_gone = Ear::member(&earlier, "long gone", &["room"]).await;
        redis.save().await;
        drop(long_gone);
        end(&redis, vec![earlier], vec![]).await;

        let mut story = Story::begin(&redis.url(), named).await;
        story.go_on().await;
        redis.stop();
        redis.start_again().await;
        // Whoever is not there any more is dead, and swept as such.
        let ids = [&story.stays.id, &story.changes.id].map(Clone::clone);
        throughout(TTL + Duration::from_secs(4), "sockets stay open", async || {
            story.stays.is_open() && story.changes.is_open()
        })
        .await;
        assert_eq!(ids[0], story.stays.id);
        story.goes_on(&redis, 1.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lagging_replica_that_takes_over_loses_who_departed_and_gets_who_came() {
    let primary = Redis::start().await;
    let port = primary.address().port().to_string();
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    let proxy = Proxy::start(primary.address()).await;
    let mut story = Story::begin(&proxy.url(), &[]).await;
    eventually("the replica has all so far", async || {
        replica.command(&["EXISTS", "mg:uid:departs:clients"]).await == Reply::Int(1)
            && replica.command(&["SISMEMBER", "mg:group:departed:clients", &story.departs.as_ref().unwrap().id]).await
                == Reply::Int(1)
    })
    .await;
    // From here on it hears nothing; nodes are elsewhere.
    assert_eq!(replica.command(&["REPLICAOF", "NO", "ONE"]).await, Reply::text("OK"));
    story.go_on().await;
    assert_eq!(replica.command(&["EXISTS", "mg:uid:after:clients"]).await, Reply::Int(0), "it is behind");
    primary.stop();
    proxy.lead_to(replica.address());
    story.goes_on(&replica, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_primary_is_made_a_replica_under_us_nodes_go_to_the_new_one() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    let proxy = Proxy::start(old.address()).await;
    let mut story = Story::begin(&proxy.url(), &[]).await;
    story.go_on().await;
    proxy.lead_to(new.address());
    // As a failover by hand does it: nobody's connection ends.
    let port = new.address().port().to_string();
    assert_eq!(old.command(&["REPLICAOF", "127.0.0.1", &port]).await, Reply::text("OK"));
    within(SOON, "both nodes are at the new one", async || nodes(&new).await.len() == 2).await;
    story.goes_on(&new, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_deleted_under_us_come_back_with_the_next_comparison() {
    let redis = Redis::start().await;
    let mut story = Story::begin(&redis.url(), &[]).await;
    story.go_on().await;
    // Somebody tidies up: the leases are gone, and with them what is known of the clients.
    redis.command(&["DEL", "mg:nodes", "mg:uid:after:clients", "mg:group:room:clients"]).await;
    story.goes_on(&redis, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_while_redis_has_lost_its_data_takes_nobodys_place() {
    let redis = Redis::start().await;
    let mut story = Story::begin(&redis.url(), &[]).await;
    story.go_on().await;
    let third = unready_node(&redis.url(), &[]).await.until_ready().await;
    assert_eq!(redis.command(&["FLUSHALL"]).await, Reply::text("OK"));
    within(SOON, "all three are back", async || nodes(&redis).await.len() == 3).await;
    story.nodes.push(third);
    story.goes_on(&redis, 0.0).await;
}

/// How Redis loses what it had.
#[derive(Debug, Clone, Copy)]
enum Loss {
    RestartedEmpty,
    Flushed,
    OldSnapshot,
    EmptyReplica,
    LaggingReplica,
}

/// Members of a room, and of what they joined later.
struct Member {
    ear: Ear,
    uid: String,
    groups: Vec<String>,
}

/// Some go, as many come, and some others change; each is done when this returns. `when` is in all their names.
async fn some_go_some_come_and_some_change(nodes: &[Process; 2], members: &mut Vec<Member>, when: &str) {
    let some = members.len() / 50;
    members.drain(..some);
    for number in 0..some {
        let uid = format!("{when}-{number}");
        let ear = Ear::member(&nodes[number % 2], &uid, &["room"]).await;
        members.push(Member { ear, uid, groups: vec!["room".to_owned()] });
    }
    for member in members.iter_mut().take(some) {
        let group = format!("{when}-{}", member.uid.len() % 7);
        nodes[0].done("joinGroup", json!({"client_id": member.ear.id, "group": group})).await;
        member.groups.push(group);
    }
    within(SOON, "who went has left", async || {
        sum(&[&nodes[0], &nodes[1]], "moongate_clients").await == members.len() as f64
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn however_redis_loses_its_data_nodes_with_thousands_of_clients_have_it_complete_in_time() {
    use Loss::{EmptyReplica, Flushed, LaggingReplica, OldSnapshot, RestartedEmpty};
    // In five seconds for each begun 20,000 clients, and these are fewer; more beside many other tests.
    let (clients, in_time) = if is_chaos() { (5000, Duration::from_secs(5)) } else { (1000, SOON) };
    let replica_of = async |redis: &Redis| {
        let port = redis.address().port().to_string();
        Redis::start_with(&["--replicaof", "127.0.0.1", &port]).await
    };
    let mut redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let nodes = [Process::ready(&proxy.url(), &[]).await, Process::ready(&proxy.url(), &[]).await];
    let mut members = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        let name = format!("user-{number}");
        for (ear, place) in crowd(node, &name, clients / 2, "room").await.into_iter().zip(0..) {
            let groups = vec!["room".to_owned(), format!("{name}-group-{}", place % 10)];
            members.push(Member { ear, uid: format!("{name}-{place}"), groups });
        }
    }
    for loss in [RestartedEmpty, Flushed, OldSnapshot, EmptyReplica, LaggingReplica] {
        let when = format!("{loss:?}");
        let mut successor = None;
        match loss {
            RestartedEmpty | Flushed => {}
            OldSnapshot => redis.save().await,
            EmptyReplica => successor = Some(Redis::start().await),
            LaggingReplica => {
                let replica = replica_of(&redis).await;
                let size = redis.command(&["DBSIZE"]).await;
                within(SOON, "it has all so far", async || replica.command(&["DBSIZE"]).await == size).await;
                // From here on it hears nothing; nodes are elsewhere.
                assert_eq!(replica.command(&["REPLICAOF", "NO", "ONE"]).await, Reply::text("OK"));
                successor = Some(replica);
            }
        }
        let began = Instant::now();
        some_go_some_come_and_some_change(&nodes, &mut members, &when).await;
        let age = match loss {
            OldSnapshot => chaos(Duration::from_secs(1), Duration::from_mins(1)),
            _ => Duration::from_secs(1),
        };
        tokio::time::sleep_until((began + age).into()).await;
        let before = [compared(&nodes[0]).await, compared(&nodes[1]).await];

        match (loss, successor) {
            (RestartedEmpty, _) => redis.restart_empty().await,
            (OldSnapshot, _) => {
                redis.stop();
                redis.start_again().await;
            }
            (_, Some(successor)) => {
                let came = format!("mg:uid:{when}-0:clients");
                assert_eq!(successor.command(&["EXISTS", &came]).await, Reply::Int(0), "it is behind");
                redis.stop();
                proxy.lead_to(successor.address());
                redis = successor;
            }
            _ => assert_eq!(redis.command(&["FLUSHALL"]).await, Reply::text("OK")),
        }
        let there = Instant::now();
        within(in_time, "both have compared", async || {
            compared(&nodes[0]).await > before[0] && compared(&nodes[1]).await > before[1]
        })
        .await;
        let both_compared = there.elapsed();
        let groups: Vec<Vec<&str>> =
            members.iter().map(|member| member.groups.iter().map(String::as_str).collect()).collect();
        let expected: Vec<Expected<'_>> = members
            .iter()
            .zip(&groups)
            .map(|(member, groups)| Expected::member(&member.ear, &member.uid, groups))
            .collect();
        // Quick to ask; then what takes longer to compare than it took to write.
        let room = Reply::Int(members.len() as i64);
        within(in_time.saturating_sub(both_compared), "all are in the room again", async || {
            redis.command(&["SCARD", "mg:group:room:clients"]).await == room
        })
        .await;
        let complete = there.elapsed();
        redis_holds(&redis, SOON, &expected).await;
        // Sends work, and each target is subscribed to.
        assert_eq!(nodes[0].ask("sendToGroup", json!({"group": "room", "message": when})).await["nodes"], 2);
        let mut connection = redis.connection().await;
        for Member { uid, .. } in &members {
            connection.send(&["PUBLISH", &format!("mg:uid:{uid}"), &format!("{when} by uid")]).await;
        }
        for Member { uid, .. } in &members {
            assert_eq!(connection.reply().await, Reply::Int(1), "{uid} is subscribed to");
        }
        let text = format!("{when} by uid");
        eventually("all hear", async || {
            members.iter().all(|member| member.ear.has_heard(&when) && member.ear.has_heard(&text))
        })
        .await;
        assert!(members.iter().all(|member| member.ear.is_open()));
        let seen = format!(
            "{clients} clients, {loss:?}: both have compared after {both_compared:.1?}, the room is complete after {complete:.1?}"
        );
        saw("lost", &seen);
    }
    for metric in ["moongate_fenced_total", "moongate_swept_nodes_total"] {
        assert_eq!(sum(&[&nodes[0], &nodes[1]], metric).await, 0.0, "{metric}");
    }
    drop(members);
    end(&redis, vec![], nodes.into()).await;
}

async fn compared(node: &Node) -> f64 {
    node.metric("moongate_directory_compared_total").await
}
