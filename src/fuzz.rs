//! What must hold for any bytes that come from outside: a target for each door. `scripts/fuzz` has libFuzzer make bytes up;
//! the tests below change what really comes, and always in the same way.
//!
//! What is found here becomes a test where it was wrong.

#![allow(clippy::expect_used, missing_docs)] // here a panic is what is looked for

use std::cell::LazyCell;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::value::RawValue;

use crate::access::Tokens;
use crate::command::Command;
use crate::id::MAX_NAME;
use crate::session::Session;
use crate::task::{Fields, Task, When};
use crate::template::{Filling, Template};
use crate::{cluster, edge, gateway, http, php, webhook};

// --- clients -------------------------------------------------------------------------------------------------------

/// The request of a handshake.
pub fn handshake(bytes: &[u8]) {
    if let Some(head) = edge::fuzz::handshake(bytes) {
        php::fuzz::request(&head);
    }
}

/// A token, and the claims of one that is signed as it should be.
pub fn token(bytes: &[u8]) {
    const SECRET: &[u8] = b"a secret that nobody else knows";
    let tokens = Tokens::of_secret(SECRET);
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(tokens.grant(Some(text)).is_err(), "{text} lets somebody in");
    }
    let Ok(claims) = serde_json::from_slice::<&RawValue>(bytes) else { return };
    let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET)).expect("claims can be signed");
    let Ok(grant) = tokens.grant(Some(&token)) else { return };
    let grant = grant.expect("a token was brought");
    // A claim that nobody here reads may hold a number that is too large to be one.
    let Ok(value) = serde_json::from_str::<serde_json::Value>(claims.get()) else { return };
    let now = Timestamp::now().as_second();
    // Of 30 s leeway, and one for the time between two looks at the clock.
    let time = |name: &str| value.get(name).and_then(serde_json::Value::as_i64);
    assert!(time("exp").is_none_or(|end| end.saturating_add(31) >= now), "it has expired");
    assert!(time("nbf").is_none_or(|begin| begin.saturating_sub(31) <= now), "it is too early");
    assert_eq!(grant.uid.is_some(), value.get("sub").is_some());
    assert!(grant.uid.is_none_or(|uid| (1..=MAX_NAME).contains(&uid.as_str().len())));
    assert!(grant.groups.is_none_or(|groups| groups.0.is_sorted_by(|one, next| one < next)));
    if let Some(session) = grant.session {
        is_session(&session);
    }
}

/// What comes on a connection of `text`, `frame` or `tcp`.
pub fn stream(bytes: &[u8]) {
    edge::fuzz::stream(bytes);
}

/// What comes on a WebSocket after its handshake.
pub fn websocket(bytes: &[u8]) {
    edge::fuzz::websocket(bytes);
}

// --- applications --------------------------------------------------------------------------------------------------

/// A request to the API: a line with what stands in its path or query, and its body.
pub fn api(bytes: &[u8]) {
    let (line, body) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()));
    let body = body.get(1..).unwrap_or_default();
    http::fuzz::form(line, body);
    if let Ok(line) = std::str::from_utf8(line) {
        http::fuzz::host(line);
        http::fuzz::body(line, body);
    }
}

/// A command or a batch in JSON, as on `mg:cmd`; and the answer of a webhook, which may hold some.
pub fn command(bytes: &[u8]) {
    gateway::fuzz::command(bytes);
    for command in webhook::accepted(bytes).commands {
        drop(Command::parse_object(command.0.get()));
        gateway::fuzz::command(command.0.get().as_bytes());
    }
}

/// What is published on a channel: its name, a newline, and a payload.
pub fn bus(bytes: &[u8]) {
    for (part, message) in cluster::fuzz::heard(bytes) {
        gateway::fuzz::part(part.get(), &message);
    }
}

/// An entry of the queue: a line for each field, its name, a space and its value; and the same as it stands in a record.
pub fn task(bytes: &[u8]) {
    let pair = |line: &[u8]| {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b' ').unwrap_or(line.len()));
        (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value.get(1..).unwrap_or_default()))
    };
    let fields = Fields(bytes.split(|byte| *byte == b'\n').map(pair).collect());
    assert_eq!(Fields::read(&fields.write()), fields);
    assert!(fields.shortened().length() <= fields.length());
    serde_json::to_string(&fields.shown()).expect("a task can be shown");
    if let Ok(text) = std::str::from_utf8(bytes) {
        let record = Fields::read(text);
        assert_eq!(Fields::read(&record.write()), record);
    }
    let Ok(task) = Task::read(&fields, Some("mg:reply:")) else { return };
    if let When::Cron(schedule) = &task.when {
        let mut time = 1_800_000_000_000;
        for _ in 0..3 {
            let Some(next) = schedule.next_after(time) else { break };
            assert!(next > time, "{next} is not after {time}");
            time = next;
        }
        let tick = Task::read(&fields.of_tick(time), Some("mg:reply:")).expect("a tick of a cron is a task");
        assert!(matches!(tick.when, When::Now) && tick.id.is_some());
    }
}

/// What Redis answers.
pub fn reply(bytes: &[u8]) {
    cluster::fuzz::reply(bytes);
}

/// A line with a session, one with an update of it, and one with a place in it.
pub fn session(bytes: &[u8]) {
    let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
    let mut session = || serde_json::from_slice::<Session>(lines.next()?).ok();
    let Some(base) = session() else { return };
    is_session(&base);
    let update = session().unwrap_or_default();
    let merged = base.merge(&update);
    is_session(&merged);
    assert_eq!(merged.merge(&update), merged, "an update that is repeated changes something");
    let Some(path) = lines.next().and_then(|path| std::str::from_utf8(path).ok()) else { return };
    let client_id = "7f0000010b5400000001".parse().expect("an id");
    let zone = LazyCell::new(|| TimeZone::UTC);
    let said = |text: &str| {
        let template = Template::new(text, &zone)?;
        template.render(Filling { client_id, uid: None, group: None, session: Some(&merged) }, false).ok()
    };
    if let Some(value) = merged.scalar(path)
        // `{session.}` names no field, and stays as it is.
        && !path.is_empty()
        && !path.contains('}')
    {
        let json = said(&format!("\"{{session.{path}}}\"")).expect("what is there is said");
        assert_eq!(serde_json::from_str::<String>(&json).expect("it is escaped"), value);
    }
    said(path);
}

fn is_session(session: &Session) {
    let again: Session = serde_json::from_str(session.as_str()).expect("a session is JSON");
    assert_eq!(again, *session);
}

// --- PHP -----------------------------------------------------------------------------------------------------------

/// What is said on an inner connection.
pub fn inner(bytes: &[u8]) {
    php::fuzz::inner(bytes);
}

/// What is said to the Register.
pub fn register(bytes: &[u8]) {
    php::fuzz::register(bytes);
}

/// A PHP value.
pub fn serialize(bytes: &[u8]) {
    php::fuzz::serialize(bytes);
}

/// A session of other doors as PHP's.
pub fn json(bytes: &[u8]) {
    php::fuzz::json(bytes);
}

/// The head of a handshake, as workers are told of it.
pub fn request(bytes: &[u8]) {
    php::fuzz::request(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::model::Dice;

    fn files(folder: &str) -> Vec<Vec<u8>> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/").to_owned() + folder;
        let mut files: Vec<_> = std::fs::read_dir(path).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
    }

    /// All byte strings of the recorded conversations in a folder.
    fn recorded(folder: &str) -> Vec<Vec<u8>> {
        fn collect(value: &serde_json::Value, found: &mut Vec<Vec<u8>>) {
            if let Some(hex) = value["hex"].as_str() {
                let byte = |place| u8::from_str_radix(&hex[place..place + 2], 16).unwrap();
                found.push((0..hex.len()).step_by(2).map(byte).collect());
            }
            match value {
                serde_json::Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
                serde_json::Value::Object(fields) => fields.values().for_each(|field| collect(field, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        for file in files(&format!("tests/vectors/gatewayworker/{folder}")) {
            collect(&serde_json::from_slice(&file).unwrap(), &mut found);
        }
        found
    }

    /// Feeds what was recorded, and what becomes of it when bytes are lost, doubled or changed.
    fn feed_recorded(folders: &[&str], target: fn(&[u8])) {
        let seeds: Vec<Vec<u8>> = folders.iter().flat_map(|folder| recorded(folder)).collect();
        assert!(seeds.len() > 20, "{folders:?}");
        feed(&seeds, 20_000, target);
    }

    /// The same with the seeds that the fuzzer begins with.
    fn feed_corpus(name: &str, runs: usize, target: fn(&[u8])) {
        let seeds = files(&format!("fuzz/corpus/{name}"));
        assert!(seeds.len() > 4, "{name}");
        feed(&seeds, runs, target);
    }

    fn feed(seeds: &[Vec<u8>], runs: usize, target: fn(&[u8])) {
        for seed in seeds {
            target(seed);
        }
        let mut dice = Dice(7);
        for _ in 0..runs {
            let mut bytes = seeds[dice.roll(seeds.len())].clone();
            for _ in 0..=dice.roll(4) {
                let (place, other) = (dice.roll(bytes.len().max(1)), dice.roll(bytes.len().max(1)));
                match dice.roll(5) {
                    _ if bytes.is_empty() => bytes.push(dice.roll(256) as u8),
                    0 => bytes[place] = dice.roll(256) as u8,
                    1 => bytes[place] ^= 1 << dice.roll(8),
                    2 => drop(bytes.drain(place.min(other)..place.max(other))),
                    3 => bytes.extend_from_within(place.min(other)..place.max(other)),
                    _ => bytes.extend_from_slice(&seeds[dice.roll(seeds.len())]),
                }
            }
            target(&bytes);
        }
    }

    #[test]
    fn no_handshake_does_harm() {
        feed_corpus("handshake", 1000, handshake);
    }

    #[test]
    fn no_token_does_harm() {
        feed_corpus("token", 5000, token);
    }

    #[test]
    fn no_stream_does_harm() {
        feed_corpus("stream", 10_000, stream);
    }

    #[test]
    fn no_websocket_does_harm() {
        feed_corpus("websocket", 10_000, websocket);
    }

    #[test]
    fn no_request_to_the_api_does_harm() {
        feed_corpus("api", 10_000, api);
    }

    #[test]
    fn no_command_does_harm() {
        feed_corpus("command", 10_000, command);
    }

    #[test]
    fn nothing_on_the_bus_does_harm() {
        feed_corpus("bus", 10_000, bus);
    }

    #[test]
    fn no_task_does_harm() {
        feed_corpus("task", 5000, task);
    }

    #[test]
    fn no_answer_of_redis_does_harm() {
        feed_corpus("reply", 20_000, reply);
    }

    #[test]
    fn no_session_does_harm() {
        feed_corpus("session", 10_000, session);
    }

    #[test]
    fn no_inner_packet_does_harm() {
        feed_recorded(&["inner", "client_api", "events"], inner);
    }

    #[test]
    fn no_line_to_the_register_does_harm() {
        feed_recorded(&["register"], register);
    }

    #[test]
    fn no_php_value_does_harm() {
        feed_recorded(&["codec"], serialize);
    }

    #[test]
    fn no_request_does_harm() {
        feed_recorded(&["websocket", "codec"], request);
    }

    #[test]
    fn no_json_does_harm() {
        feed_recorded(&["inner", "codec"], json);
    }
}
