//! Who may connect: connection tokens, allowed origins, what proxies are believed, and how many there may be.

mod limits;
mod origins;
mod proxies;
mod token;

pub use limits::{Full, Limits, Place, Rate};
pub use origins::Origins;
pub use proxies::Proxies;
pub use token::{Grant, TokenError, Tokens};

use std::sync::Arc;

/// What is asked of everyone who connects.
#[derive(Debug)]
pub struct Access {
    /// None: tokens mean nothing.
    pub tokens: Option<Tokens>,
    /// None: pages of any origin may connect.
    pub origins: Option<Origins>,
    /// Who is believed where a client comes from.
    pub proxies: Proxies,
    /// How many there may be.
    pub limits: Arc<Limits>,
}
