//! What clients do, told to whoever listens: by the shard that holds a client, so in order for each of them, and in order
//! with what is done to it.

use std::sync::Arc;

use crate::client::Arrival;
use crate::id::ClientId;
use crate::session::Session;

/// What a client has done.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// It has connected; with WebSocket, its handshake is still to come.
    Connected,
    /// Its handshake has come, and is not answered yet: what [`Listener::describe`] made of the request.
    ShookHands(&'a [u8]),
    /// It has said something.
    Said(&'a [u8]),
    /// It has ended, and is in no list any more.
    Ended,
    /// The same, but others tell of it.
    Lost,
}

/// Whom an event is about, as it was then; for [`Event::Ended`], as it was before.
#[derive(Debug, Clone, Copy)]
pub struct Whom<'a> {
    /// The client.
    pub id: ClientId,
    /// Where it came from; not known of a dead node's.
    pub arrival: Option<Arrival>,
    /// Its session, when it was ever set.
    pub session: Option<&'a Session>,
}

/// Which of several listeners hears of a client; none yet at its first event. The listener's own word.
pub type Route = Option<Arc<str>>;

/// What becomes of a client whose event was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Stays,
    /// There is nobody to tell, and without that no client is served.
    Refused,
    /// What it has said is more than can be told.
    TooBig,
}

/// Listens to what clients do. It is told by the shards' own tasks: it takes note, and waits for nothing.
pub trait Listener: Send + Sync {
    /// Whether it is to be told anything.
    fn listens(&self) -> bool;

    /// Whether there is nobody to be told, and no client served without.
    fn is_missing(&self) -> bool;

    /// The same in words, for those who wait for it.
    fn why_missing(&self) -> &'static str;

    /// What it wants to be told of a request with this head.
    fn describe(&self, head: &[u8], arrival: Arrival) -> Vec<u8>;

    /// Takes note of an event.
    fn tell(&self, event: Event<'_>, about: Whom<'_>, route: &mut Route) -> Fate;
}
