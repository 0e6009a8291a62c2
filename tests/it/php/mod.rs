//! The door for PHP: what `GatewayWorker`'s callers and workers put on the wire, and what they get.

mod doors;
mod order;
mod peer;
mod register;
mod replay;
mod timeline;
mod vectors;
mod workers;

pub use peer::*;

/// A node with a door for PHP.
const PHP: &[(&str, &str)] = &[("MOONGATE_LAN_LISTEN", "")];
