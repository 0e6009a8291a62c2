//! All tests over real sockets, in one binary: linked once, and run side by side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod browser;
mod clients;
mod harness;
mod page;
