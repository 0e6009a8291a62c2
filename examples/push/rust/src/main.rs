// Bind, push, queue, and see who is online: cargo run -- <client_id>

use redis::TypedCommands;
use serde_json::{Value, json};
use std::{env, error::Error, time::Duration};
use uuid::Uuid;

fn main() -> Result<(), Box<dyn Error>> {
    let client = env::args().nth(1).ok_or("a client id is missing")?;
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:7279".into());
    let mut redis = redis::Client::open(url)?.get_connection_with_timeout(Duration::from_secs(5))?;
    redis.set_read_timeout(Some(Duration::from_secs(20)))?;

    // Bind with certainty: by a queued task, and wait for its answer. After a bindUid that is only published, on
    // mg:cmd, the next PUBLISH, on another channel, may come first, and finds nobody.
    let bind = json!({"op": "batch", "commands": [
        {"op": "bindUid", "client_id": client, "uid": 42},
        {"op": "joinGroup", "client_id": client, "group": "room-1"},
        {"op": "setSession", "client_id": client, "session": {"name": "Ann"}},
    ]});
    let reply_to = format!("mg:reply:{}", Uuid::new_v4());
    redis.xadd("mg:tasks", "*", &[("command", &bind.to_string()), ("reply_to", &reply_to)])?;
    let [_, reply] = redis.blpop(&reply_to, 10.0)?.ok_or("no node has answered; the task stays in the queue")?;
    let answer: Value = serde_json::from_str(&reply)?;
    let bound = answer["results"].as_array().is_some_and(|results| results.iter().all(|done| done["result"] == true));
    if !bound {
        return Err(format!("not bound: {answer}").into());
    }
    println!("bound");

    // To the uid: on how many nodes it is. 0 is nobody: store the message, or send a mail.
    let mail = json!({"type": "mail", "unread": 3});
    println!("nodes {}", redis.publish("mg:uid:42", mail.to_string())?);

    // To the group, but not to the uid that is typing. To all of it is a plain PUBLISH on mg:group:room-1.
    let message = json!({"type": "typing", "uid": 42});
    let typing = json!({"op": "sendToGroup", "group": "room-1", "message": message, "exclude_uid": [42]});
    redis.publish("mg:cmd", typing.to_string())?;

    // In two seconds, whatever has become of this program by then.
    let later = json!({"op": "sendToUid", "uid": 42, "message": "later"});
    redis.xadd("mg:tasks", "*", &[("command", later.to_string().as_str()), ("delay", "2000")])?;

    // Who is online: plain sets and hashes, to read and never to write.
    println!("online {}", Vec::from_iter(redis.smembers("mg:uid:42:clients")?).join(" "));
    println!("room-1 {}", Vec::from_iter(redis.smembers("mg:group:room-1:clients")?).join(" "));
    let session = redis.hget(format!("mg:client:{client}"), "session")?;
    println!("session {}", session.unwrap_or_default());
    Ok(())
}
