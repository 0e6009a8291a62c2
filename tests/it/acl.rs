//! The users of SECURITY.md: what each needs it may do, and nothing beyond.

use serde_json::json;

use crate::harness::{Node, eventually};
use crate::redis::{Connection, Redis, Reply};

/// A Redis with these users, and nobody else but the test.
async fn guarded() -> Redis {
    let redis = Redis::start().await;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SECURITY.md")).unwrap();
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("ACL SETUSER ")).collect();
    assert_eq!(lines.len(), 5);
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(redis.command(&words).await, Reply::text("OK"), "{line}");
    }
    redis
}

async fn as_user(redis: &Redis, user: &str) -> Connection {
    let mut connection = Connection::to(redis.address()).await;
    assert_eq!(connection.command(&["AUTH", user, "a-password"]).await, Reply::text("OK"));
    connection
}

/// It is not the user's to do.
async fn refused(connection: &mut Connection, command: &[&str]) {
    let reply = connection.command(command).await;
    assert!(matches!(&reply, Reply::Error(error) if error.starts_with("NOPERM")), "{command:?}: {reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_user_may_do_what_it_needs_and_nothing_beyond() {
    let redis = guarded().await;
    let url = format!("redis://moongate:a-password@{}", redis.address());
    let settings = [("MOONGATE_REDIS_URL", &*url), ("MOONGATE_EVENTS", "stream")];
    let a = Node::start_with(&settings).await.until_ready().await;
    let b = Node::start_with(&settings).await.until_ready().await;
    let mut client = a.member("u", "g").await;
    for (op, fields) in [
        ("setSession", json!({"client_id": client.id, "session": {"a": 1}})),
        ("bindUid", json!({"client_id": client.id, "uid": "v"})),
        ("bindUid", json!({"client_id": client.id, "uid": "u", "single": true})),
    ] {
        b.done(op, fields).await;
    }
    let task = json!({"command": {"op": "sendToUid", "uid": "u", "message": "later"}, "id": "t"});
    b.ask("addTask", task).await;
    assert_eq!(client.text().await, "later");
    let state = async || b.ask("getTask", json!({"id": "t"})).await["state"].clone();
    eventually("the task is done", async || state().await == "done").await;
    assert!(b.ask("getAllUidList", json!({})).await["items"].to_string().contains('u'));

    let mut sender = as_user(&redis, "sender").await;
    for channel in ["mg:uid:u", "mg:group:g", "mg:all", &format!("mg:client:{}", client.id)] {
        assert_eq!(sender.command(&["PUBLISH", channel, channel]).await, Reply::Int(1));
        assert_eq!(client.text().await, channel);
    }
    for command in [&["PUBLISH", "mg:cmd", "{}"][..], &["PUBLISH", "mg.ask", "x"], &["XADD", "mg:tasks", "*", "a", "b"]]
    {
        refused(&mut sender, command).await;
    }

    let mut commander = as_user(&redis, "commander").await;
    let command = json!({"op": "sendToUid", "uid": "u", "message": "commanded"}).to_string();
    assert_eq!(commander.command(&["PUBLISH", "mg:cmd", &command]).await, Reply::Int(2));
    assert_eq!(client.text().await, "commanded");
    commander.command(&["XADD", "mg:tasks", "*", "command", &command, "reply_to", "mg:reply:1"]).await;
    assert_eq!(client.text().await, "commanded");
    assert!(matches!(commander.command(&["BLPOP", "mg:reply:1", "10"]).await, Reply::List(_)));
    for command in [&["HGETALL", "mg:nodes"][..], &["DEL", "mg:tasks"], &["XADD", "mg:events", "*", "a", "b"]] {
        refused(&mut commander, command).await;
    }

    let mut reader = as_user(&redis, "reader").await;
    assert_eq!(reader.command(&["SCARD", "mg:uid:u:clients"]).await, Reply::Int(1));
    assert_eq!(reader.command(&["HGET", &format!("mg:client:{}", client.id), "uid"]).await, Reply::text("u"));
    for command in
        [&["SADD", "mg:uid:u:clients", "x"][..], &["PUBLISH", "mg:all", "x"], &["HGETALL", "{mg:nodes}:runs"]]
    {
        refused(&mut reader, command).await;
    }

    let mut worker = as_user(&redis, "worker").await;
    assert_eq!(worker.command(&["XGROUP", "CREATE", "mg:events", "app", "0"]).await, Reply::text("OK"));
    let read = worker.command(&["XREADGROUP", "GROUP", "app", "one", "COUNT", "1", "STREAMS", "mg:events", ">"]).await;
    assert!(matches!(read, Reply::List(_)), "{read:?}");
    for command in [&["XADD", "mg:events", "*", "a", "b"][..], &["XDEL", "mg:events", "0-1"], &["XLEN", "mg:tasks"]] {
        refused(&mut worker, command).await;
    }

    // What would harm others, or Redis itself.
    let mut node = as_user(&redis, "moongate").await;
    for command in [&["FLUSHALL"][..], &["CONFIG", "GET", "*"], &["SET", "other", "x"], &["KEYS", "*"], &["SHUTDOWN"]] {
        refused(&mut node, command).await;
    }
    client.close(1000, "").await;
    eventually("nothing is left", async || redis.keys("mg:client:*").await.is_empty()).await;
    let page = a.get("/metrics").await.text() + &b.get("/metrics").await.text();
    for line in page.lines().filter(|line| line.starts_with("moongate_directory_refused_total")) {
        assert!(line.ends_with(" 0"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_not_hear_what_it_must_is_not_ready() {
    let redis = Redis::start().await;
    for (channels, pattern) in [("&mg:*", "&mg.*"), ("&mg:c*", "&mg.*")] {
        let rights = ["~*", "+@all", "resetchannels", channels, pattern];
        let user = [&["ACL", "SETUSER", "half", "on", ">a-password"][..], &rights].concat();
        assert_eq!(redis.command(&user).await, Reply::text("OK"));
        let url = format!("redis://half:a-password@{}", redis.address());
        let node = Node::start_with(&[("MOONGATE_REDIS_URL", &url)]).await;
        let was_refused = async || !redis.command(&["ACL", "LOG"]).await.list().is_empty();
        eventually("it has tried", was_refused).await;
        assert_eq!(redis.command(&["ACL", "LOG", "RESET"]).await, Reply::text("OK"));
        assert_eq!(node.ready().await.0, 503, "{channels}");
        // As soon as it may, it is.
        assert_eq!(redis.command(&["ACL", "SETUSER", "half", "allchannels"]).await, Reply::text("OK"));
        node.until_ready().await;
    }
}
