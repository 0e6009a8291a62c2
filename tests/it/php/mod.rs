//! The door for PHP: what `GatewayWorker`'s callers and workers put on the wire, and what they get.

mod doors;
mod order;
pub mod peer;
mod register;
mod replay;
mod timeline;
mod vectors;
mod workers;

use peer::*;

/// A node with a door for PHP.
const PHP: &[(&str, &str)] = &[("MOONGATE_LAN_LISTEN", "")];
