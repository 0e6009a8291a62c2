//! Delivers so many messages and ends, to be counted under valgrind: see `scripts/count-instructions`.
//!
//! Everything runs on one thread, so that every run does the same. The other ends read when all is over: what they do
//! is in no difference of two runs.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run shall stop")]

mod crowd;

use std::io::Read as _;
use std::time::Duration;

use crowd::Crowd;
use moongate::message::Message;
use tokio::runtime::Builder;

/// Shards, clients, rounds, messages at once in each, bytes of a message.
const SMALL: [usize; 5] = [4, 16, 2, 16, 128];

fn main() {
    // `cargo bench` adds flags.
    let mut given = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let [shards, clients, rounds, at_once, bytes] =
        SMALL.map(|small| given.next().map_or(small, |number| number.parse().unwrap()));
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (crowd, peers) = Crowd::gather(runtime, shards, clients);
    let message = Message::text(&"m".repeat(bytes));
    for _ in 0..rounds {
        crowd.tell(&message, at_once);
    }
    // All has come, and nobody has been waited for.
    let mut expected = vec![0; message.frame().len() * rounds * at_once];
    for mut peer in peers {
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        peer.read_exact(&mut expected).unwrap();
    }
}
