//! All tests over real sockets, in one binary: linked once, and run side by side.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::format_push_string,
    clippy::large_futures,
    clippy::unused_async,
    unreachable_pub,
    reason = "all of this is a test"
)]

mod browser;
mod clients;
mod cluster;
mod commands;
#[cfg(target_os = "linux")]
mod counts;
mod harness;
mod http;
mod model;
mod page;
mod process;
mod proxy;
mod redis;
mod tls;
