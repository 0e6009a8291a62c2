//! All tests over real sockets, in one binary: linked once, and run side by side.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::format_push_string,
    clippy::large_futures,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::unused_async,
    clippy::float_cmp,
    clippy::option_option,
    unreachable_pub,
    reason = "all of this is a test"
)]

mod access;
mod acl;
mod browser;
mod check;
mod clients;
mod cluster;
mod commands;
mod conformance;
mod console;
#[cfg(target_os = "linux")]
mod counts;
mod ctl;
mod events;
mod faults;
mod guarantees;
mod harness;
mod http;
mod js;
mod metrics;
mod model;
mod nodes;
mod page;
mod php;
mod port;
mod process;
mod proxy;
mod receiver;
mod redis;
mod reference;
mod streams;
mod tail;
mod tasks;
mod tls;
mod top;
mod traces;
#[path = "../faults/world.rs"]
#[allow(dead_code, reason = "tests/faults uses the rest")]
mod world;
