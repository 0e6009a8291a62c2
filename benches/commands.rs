//! What the words cost: commands read from JSON, sessions merged, messages put into frames.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run shall stop")]

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use moongate::command::Command;
use moongate::json;
use moongate::message::Message;
use moongate::session::Session;

fn main() {
    divan::main();
}

/// As the HTTP door does it.
fn parse(op: &str, body: &str) -> Command {
    Command::parse(op, &json::fields(body.as_bytes()).unwrap()).unwrap()
}

#[divan::bench]
fn parse_send_to_uid(bencher: Bencher) {
    let body = r#"{"uid":"42","message":"{\"type\":\"notice\",\"text\":\"Your order is on its way\"}"}"#;
    bencher.counter(BytesCount::of_str(body)).bench(|| parse("sendToUid", black_box(body)));
}

#[divan::bench(args = [1, 100])]
fn parse_send_to_group_with_exclude(bencher: Bencher, excluded: usize) {
    let exclude: Vec<String> = (0..excluded).map(|number| format!("\"7f0000010b54{number:08x}\"")).collect();
    let body =
        format!(r#"{{"group":"room 7","message":{{"type":"say","text":"hello"}},"exclude":[{}]}}"#, exclude.join(","));
    bencher.counter(BytesCount::of_str(&body)).bench(|| parse("sendToGroup", black_box(&body)));
}

#[divan::bench]
fn parse_a_batch_of_100_commands(bencher: Bencher) {
    let command = |number| format!(r#"{{"op":"sendToUid","uid":{number},"message":"hello, number {number}"}}"#);
    let body = format!(r#"{{"commands":[{}]}}"#, (0..100).map(command).collect::<Vec<_>>().join(","));
    bencher.counter(BytesCount::of_str(&body)).counter(ItemsCount::new(100_usize)).bench(|| {
        let Command::Batch(batch) = parse("batch", black_box(&body)) else { unreachable!("it is a batch") };
        batch.commands.iter().map(|command| Command::parse_object(command.0.get()).unwrap()).collect::<Vec<_>>()
    });
}

#[divan::bench(args = [4, 64, 1024])]
fn merge_a_session(bencher: Bencher, fields: usize) {
    let field = |number| format!(r#""field{number}":{{"name":"value {number}","list":[1,2,3]}}"#);
    let stored = format!("{{{}}}", (0..fields).map(field).collect::<Vec<_>>().join(","));
    let stored: Session = serde_json::from_str(&stored).unwrap();
    let update: Session = serde_json::from_str(r#"{"field3":{"name":"other"},"field1":null,"new":true}"#).unwrap();
    let bytes = BytesCount::of_str(stored.as_str());
    bencher.counter(bytes).bench(|| black_box(&stored).merge(black_box(&update)));
}

#[divan::bench(args = [16, 1024, 64 * 1024])]
fn encode_a_frame(bencher: Bencher, bytes: usize) {
    let payload = "x".repeat(bytes);
    bencher.counter(BytesCount::new(bytes)).bench(|| Message::text(black_box(&payload)));
}
