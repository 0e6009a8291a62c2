//! Death and absence: nodes that are killed or frozen, a Redis that goes, forgets, fills up or is another one.
//!
//! Most of these wait for seconds, as leases do, so they are not part of `make test`: `make test-all`, or
//! `cargo test --test faults`. Where the process matters it is a real one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::format_push_string,
    clippy::large_futures,
    clippy::unused_async,
    clippy::float_cmp,
    clippy::option_option,
    unreachable_pub,
    reason = "all of this is a test"
)]

#[path = "../it/harness.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "tests/it uses the rest")]
mod harness;
#[path = "../it/php/peer.rs"]
#[allow(dead_code, reason = "tests/it uses the rest")]
mod peer;
#[path = "../it/port.rs"]
mod port;
#[path = "../it/proxy.rs"]
#[allow(dead_code, reason = "tests/it uses the rest")]
mod proxy;
#[path = "../it/receiver.rs"]
#[allow(dead_code, reason = "tests/it uses the rest")]
mod receiver;
#[path = "../it/redis.rs"]
#[allow(dead_code, reason = "tests/it uses the rest")]
mod redis;
#[path = "../it/tail.rs"]
mod tail;

mod deaf;
mod death;
mod events;
mod history;
mod load;
mod loss;
mod model;
mod moments;
mod names;
mod outage;
mod peers;
mod php;
mod rolling;
mod sentinel;
mod sharded;
mod start;
mod storm;
mod tasks;
mod world;
