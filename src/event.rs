//! What clients do, as applications are told: on a Redis stream and by webhook, in the same words.
//!
//! | field | of | what it is |
//! | --- | --- | --- |
//! | `id` | all | told twice, an event has the same |
//! | `event` | all | `connect`, `message`, `bound`, `unbound`, `close` |
//! | `client_id`, `node` | all | who, and where |
//! | `uid` | all | the client's; empty when it is not bound. Of `bound` and `unbound` the one that it is about |
//! | `session`, `groups` | all | the client's, as they were then: an object, an array |
//! | `at` | all | unix ms, by the node's clock |
//! | `query`, `cookies`, `headers`, `ip` | `connect` | of the request, without tokens; objects |
//! | `data` or `binary` | `message` | text, or base64 |
//! | `first` / `last`, `seq` | `bound` / `unbound` | the uid came online / went offline; µs, growing per uid |
//! | `code`, `reason` | `close` | as in the close frame |
//!
//! In a stream entry objects and arrays are JSON text, and booleans `true` or `false`.

use std::fmt;
use std::str::FromStr;

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A client is there.
    Connect,
    /// It has said something.
    Message,
    /// It is bound to a uid.
    Bound,
    /// It is so no more.
    Unbound,
    /// It has left.
    Close,
}

impl Kind {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Connect, Self::Message, Self::Bound, Self::Unbound, Self::Close];

    /// The value of `event`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Message => "message",
            Self::Bound => "bound",
            Self::Unbound => "unbound",
            Self::Close => "close",
        }
    }
}

/// Some kinds of events.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Kinds(u8);

impl Kinds {
    /// All kinds.
    pub const ALL: Self = Self(0b1_1111);

    /// Whether this kind is among them.
    pub fn has(self, kind: Kind) -> bool {
        self.0 >> kind as u8 & 1 == 1
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// These and those.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Kind::ALL.into_iter().filter(|kind| self.has(*kind))).finish()
    }
}

/// A name is none of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("takes connect, message, bound, unbound or close, with + between several")]
pub struct NotAKind;

impl FromStr for Kinds {
    type Err = NotAKind;

    /// Reads `close+bound`.
    fn from_str(text: &str) -> Result<Self, NotAKind> {
        text.split('+').try_fold(Self::default(), |kinds, name| {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name.trim()).ok_or(NotAKind)?;
            Ok(kinds.and(Self(1 << kind as u8)))
        })
    }
}
