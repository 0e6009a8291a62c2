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

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::command;
use crate::config::EventsConfig;
use crate::id::{ClientId, Group, Uid};
use crate::json;
use crate::message::Close;
use crate::metrics::{EventLabel, Metrics, Reason};
use crate::session::Session;
use crate::throttle::Throttle;

/// Bytes of messages that may wait to be told; beyond it nothing more is read from a client that says something.
const MESSAGES: usize = 32 << 20;

/// Bytes of all other events that may wait; what is beyond it is lost.
const OTHERS: usize = 32 << 20;

/// Bytes of events that stand on the stream already and wait for the webhook; what is beyond it is lost to that.
const LATE: usize = 32 << 20;

/// What an event takes beside what was said: about this, for the usual session and groups.
const OVERHEAD: usize = 512;

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

/// The life of a node in which something has happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Its name.
    pub node: String,
    /// This life of it, a UUID.
    pub run: String,
}

/// Which of a client's events it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// In order, from 0.
    Nth(u32),
    /// Told anew at this time, unix ms, as Redis may have lost what it knew.
    Again(u64),
    /// What its end does to its uid: whoever tells it gives it this one.
    LastUnbound,
    /// Its end.
    Close,
}

/// Whom an event is about, and what the client had then.
#[derive(Debug, Clone)]
pub struct About {
    /// Who.
    pub client_id: ClientId,
    /// Where.
    pub origin: Arc<Origin>,
    /// Which of its events.
    pub number: Number,
    /// The session, when it was ever set.
    pub session: Option<Session>,
    /// The groups.
    pub groups: Vec<Group>,
    /// Unix ms.
    pub at: u64,
}

impl About {
    /// What it takes in memory at the most: sessions and names of groups are often shared with others.
    pub fn length(&self) -> usize {
        let session = self.session.as_ref().map_or(0, |session| session.as_str().len());
        session + self.groups.len() * size_of::<Group>()
    }
}

/// How a client has asked to be let in; JSON objects of strings, without tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The query of its URL.
    pub query: String,
    /// Its cookies.
    pub cookies: String,
    /// Its headers, their names in lower case.
    pub headers: String,
    /// Where it comes from.
    pub ip: IpAddr,
}

impl Request {
    /// One that has come without any.
    pub fn bare(ip: IpAddr) -> Self {
        let [query, cookies, headers] = std::array::from_fn(|_| "{}".to_owned());
        Self { query, cookies, headers, ip }
    }
}

/// What has happened, with what belongs to it.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // the table above says it
pub enum What {
    Connect(Arc<Request>),
    Message { data: Bytes, is_binary: bool },
    Bound { first: bool, seq: u64 },
    Unbound { last: bool, seq: u64 },
    Close(Close),
}

impl What {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Connect(_) => Kind::Connect,
            Self::Message { .. } => Kind::Message,
            Self::Bound { .. } => Kind::Bound,
            Self::Unbound { .. } => Kind::Unbound,
            Self::Close(_) => Kind::Close,
        }
    }
}

/// One event.
#[derive(Debug)]
pub struct Event {
    /// Whom it is about.
    pub about: About,
    /// The client's uid; of `bound` and `unbound` the one that it is about.
    pub uid: Option<Uid>,
    /// What has happened.
    pub what: What,
    /// The place that it takes, until it is told.
    pub room: Room,
}

/// A field's value.
enum Value<'a> {
    Text(Cow<'a, str>),
    Json(Cow<'a, str>),
    Number(u64),
    Flag(bool),
}

impl Event {
    /// The same each time it is told, and no other's.
    fn id(&self) -> String {
        let About { client_id, origin, number, .. } = &self.about;
        let run = origin.run.get(..8).unwrap_or(&origin.run);
        match number {
            // A uid that takes the place of another is two events.
            Number::Nth(nth) if matches!(self.what, What::Unbound { .. }) => format!("{client_id}-{run}-{nth}-unbound"),
            Number::Nth(nth) => format!("{client_id}-{run}-{nth}"),
            Number::Again(at) => format!("{client_id}-{run}-again-{at}"),
            Number::LastUnbound => format!("{client_id}-{run}-unbound"),
            Number::Close => format!("{client_id}-{run}-close"),
        }
    }

    fn for_each_field<'a>(&'a self, mut field: impl FnMut(&'static str, Value<'a>)) {
        let About { client_id, origin, session, groups, at, .. } = &self.about;
        field("id", Value::Text(self.id().into()));
        field("event", Value::Text(self.what.kind().name().into()));
        field("client_id", Value::Text(client_id.to_string().into()));
        field("node", Value::Text(origin.node.as_str().into()));
        field("uid", Value::Text(self.uid.as_ref().map_or("", Uid::as_str).into()));
        field("session", Value::Json(session.as_ref().map_or("{}", Session::as_str).into()));
        let groups: Vec<&str> = groups.iter().map(Group::as_str).collect();
        // Strings: this cannot fail.
        field("groups", Value::Json(serde_json::to_string(&groups).unwrap_or_default().into()));
        field("at", Value::Number(*at));
        match &self.what {
            What::Connect(request) => {
                field("query", Value::Json(request.query.as_str().into()));
                field("cookies", Value::Json(request.cookies.as_str().into()));
                field("headers", Value::Json(request.headers.as_str().into()));
                field("ip", Value::Text(request.ip.to_string().into()));
            }
            What::Message { data, is_binary } => match std::str::from_utf8(data) {
                Ok(text) if !is_binary => field("data", Value::Text(text.into())),
                _ => field("binary", Value::Text(BASE64_STANDARD.encode(data).into())),
            },
            What::Bound { first, seq } => {
                field("first", Value::Flag(*first));
                field("seq", Value::Number(*seq));
            }
            What::Unbound { last, seq } => {
                field("last", Value::Flag(*last));
                field("seq", Value::Number(*seq));
            }
            What::Close(close) => {
                field("code", Value::Number(close.code.into()));
                field("reason", Value::Text(close.reason.as_ref().into()));
            }
        }
    }

    /// As a webhook's body.
    pub fn to_json(&self) -> Bytes {
        let mut out = String::from("{");
        self.for_each_field(|name, value| {
            out.push_str(if out.len() > 1 { ",\"" } else { "\"" });
            out.push_str(name);
            out.push_str("\":");
            match value {
                Value::Text(text) => json::write_string(&text, &mut out),
                Value::Json(text) => out.push_str(&text),
                Value::Number(number) => out.push_str(&number.to_string()),
                Value::Flag(flag) => out.push_str(if flag { "true" } else { "false" }),
            }
        });
        out.push('}');
        out.into()
    }

    /// As a stream entry's fields, names and values in turn.
    pub fn to_fields(&self) -> Vec<Bytes> {
        let mut fields = Vec::with_capacity(24);
        self.for_each_field(|name, value| {
            fields.push(Bytes::from_static(name.as_bytes()));
            fields.push(match value {
                Value::Text(text) | Value::Json(text) => Bytes::from(text.into_owned()),
                Value::Number(number) => number.to_string().into(),
                Value::Flag(flag) => Bytes::from_static(if flag { b"true" } else { b"false" }),
            });
        });
        fields
    }
}

/// The place that an event takes in a node's memory; none is taken where there was no more.
#[derive(Debug, Default)]
pub struct Room {
    taken: Option<OwnedSemaphorePermit>,
}

/// What the webhook's own room does, in order for each client.
#[derive(Debug)]
pub enum Errand {
    /// Tell it.
    Tell(Event),
    /// Run the commands that it has answered to `connect`.
    Run(ClientId, Vec<command::Value>),
}

/// Which events are told, where they wait, and how many may.
#[derive(Debug)]
pub struct Events {
    config: EventsConfig,
    origin: RwLock<Arc<Origin>>,
    messages: Arc<Semaphore>,
    others: Arc<Semaphore>,
    late: Arc<Semaphore>,
    /// For the webhook, in order for each client.
    queue: Mutex<VecDeque<Errand>>,
    queued: Notify,
    last_seq: AtomicU64,
    metrics: Arc<Metrics>,
    complain: Throttle,
}

impl Events {
    /// Told as the settings say, by this node.
    pub fn new(config: EventsConfig, origin: Origin, metrics: Arc<Metrics>) -> Self {
        Self {
            config,
            origin: RwLock::new(Arc::new(origin)),
            messages: Arc::new(Semaphore::new(MESSAGES)),
            others: Arc::new(Semaphore::new(OTHERS)),
            late: Arc::new(Semaphore::new(LATE)),
            queue: Mutex::default(),
            queued: Notify::new(),
            last_seq: AtomicU64::new(0),
            metrics,
            complain: Throttle::default(),
        }
    }

    /// Whether such events are told anywhere.
    pub fn has(&self, kind: Kind) -> bool {
        self.config.webhook.has(kind) || self.config.stream.has(kind)
    }

    /// Whether any are told on the stream.
    pub fn has_stream(&self) -> bool {
        !self.config.stream.is_empty()
    }

    /// Whether it is told what becomes of uids.
    pub fn has_uids(&self) -> bool {
        self.has(Kind::Bound) || self.has(Kind::Unbound)
    }

    /// Whether such events are told on the stream.
    pub fn is_for_stream(&self, kind: Kind) -> bool {
        self.config.stream.has(kind)
    }

    /// Whether such events are told by webhook.
    pub fn is_for_webhook(&self, kind: Kind) -> bool {
        self.config.webhook.has(kind)
    }

    /// The stream is trimmed near so many entries.
    pub fn max_len(&self) -> u64 {
        self.config.max_len
    }

    /// Where things happen now.
    pub fn origin(&self) -> Arc<Origin> {
        Arc::clone(&self.origin.read())
    }

    /// The node has a name now, or another one.
    pub fn set_origin(&self, origin: Origin) {
        *self.origin.write() = Arc::new(origin);
    }

    /// The place of a message in memory; none as long as there is no more.
    pub fn room_for_message(&self, length: usize) -> Option<Room> {
        let taken = Arc::clone(&self.messages).try_acquire_many_owned(cost(length));
        taken.ok().map(|permit| Room { taken: Some(permit) })
    }

    /// Waits for a message's place.
    pub async fn wait_for_room(&self, length: usize) -> Room {
        // It is never closed.
        Room { taken: Arc::clone(&self.messages).acquire_many_owned(cost(length)).await.ok() }
    }

    /// The place of any other event with so many bytes; none where there is no more, which is counted: it is lost.
    pub fn room(&self, kind: Kind, length: usize) -> Option<Room> {
        let taken = Arc::clone(&self.others).try_acquire_many_owned(cost(length)).ok();
        if taken.is_none() {
            self.lost(kind, "memory");
        }
        taken.map(|permit| Room { taken: Some(permit) })
    }

    /// A message takes so many bytes more, as far as there are any: so there is the less for the next ones.
    pub fn widen(&self, room: &mut Room, length: usize) {
        let length = length.min(self.messages.available_permits()) as u32;
        if let (Some(taken), Ok(more)) = (&mut room.taken, Arc::clone(&self.messages).try_acquire_many_owned(length)) {
            taken.merge(more);
        }
    }

    /// An event is not told.
    pub fn lost(&self, kind: Kind, reason: &'static str) {
        self.metrics.events_lost.get_or_create(&Reason { reason }).inc();
        if self.complain.allows() {
            tracing::warn!(event = kind.name(), reason, "an event is lost (said at most once a second)");
        }
    }

    /// An event was told.
    pub fn told(&self, kind: Kind, to: &'static str) {
        self.metrics.events_told.get_or_create(&EventLabel { event: kind.name(), to }).inc();
    }

    /// An event stands on the stream by now, if it is for that; the webhook is told it. From here on a webhook that is away
    /// takes no place from what is for the stream.
    pub fn tell(&self, mut event: Event) {
        let kind = event.what.kind();
        if self.is_for_stream(kind) {
            self.told(kind, "stream");
            if self.config.webhook.has(kind) && kind != Kind::Connect {
                let length = event.room.taken.take().map_or(OVERHEAD, |taken| taken.num_permits());
                let Ok(taken) = Arc::clone(&self.late).try_acquire_many_owned(length as u32) else {
                    return self.lost(kind, "memory");
                };
                event.room.taken = Some(taken);
            }
        }
        self.tell_webhook(event);
    }

    /// An event is for the webhook, if it wants it. In order for each client.
    /// `connect` is asked, and not told.
    pub fn tell_webhook(&self, event: Event) {
        let kind = event.what.kind();
        if self.config.webhook.has(kind) && kind != Kind::Connect {
            self.send(Errand::Tell(event));
        }
    }

    /// The webhook is sent on an errand.
    pub(crate) fn send(&self, errand: Errand) {
        self.queue.lock().push_back(errand);
        self.queued.notify_one();
    }

    /// Takes what is for the webhook; waits until there is something.
    pub(crate) async fn errands(&self) -> VecDeque<Errand> {
        loop {
            let queued = std::mem::take(&mut *self.queue.lock());
            if !queued.is_empty() {
                return queued;
            }
            self.queued.notified().await;
        }
    }

    /// Microseconds by this node's clock, each call more than the last: what Redis says among other nodes.
    pub(crate) fn next_seq(&self) -> u64 {
        let now = jiff::Timestamp::now().as_microsecond().unsigned_abs();
        let next = |last: u64| now.max(last + 1);
        let last = self.last_seq.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(next(last)));
        last.map_or(now, next)
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        let taken = |most: usize, room: &Semaphore| most.saturating_sub(room.available_permits());
        taken(MESSAGES, &self.messages) + taken(OTHERS, &self.others) + taken(LATE, &self.late)
    }
}

/// The application lets a client in. Whatever becomes of that client now, the application will hear of its end.
pub(crate) struct Consent {
    events: Arc<Events>,
    about: Option<About>,
    commands: Vec<command::Value>,
}

impl Consent {
    /// For the client that this is about; with what is to be done when it is there.
    pub(crate) fn new(events: Arc<Events>, about: About, commands: Vec<command::Value>) -> Self {
        Self { events, about: Some(about), commands }
    }

    /// The client is there: what the application wants done is done, and the hub tells of its end.
    pub(crate) fn used(mut self) {
        let commands = std::mem::take(&mut self.commands);
        if let Some(about) = self.about.take().filter(|_| !commands.is_empty()) {
            self.events.send(Errand::Run(about.client_id, commands));
        }
    }
}

impl Drop for Consent {
    fn drop(&mut self) {
        if let (Some(about), Some(room)) = (self.about.take(), self.events.room(Kind::Close, 0)) {
            let about = About { number: Number::Close, ..about };
            self.events.tell_webhook(Event { about, uid: None, what: What::Close(Close::LOST), room });
        }
    }
}

/// One message is taken whatever its size when nothing waits.
fn cost(length: usize) -> u32 {
    (length + OVERHEAD).min(MESSAGES) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: What) -> Event {
        let about = About {
            client_id: "7f0000010b54a3c1e07f".parse().unwrap(),
            origin: Arc::new(Origin { node: "node-1".to_owned(), run: "8f14e45f-ceea-467f-a9f8".to_owned() }),
            number: Number::Nth(3),
            session: Some(serde_json::from_str(r#"{"name": "a\"b"}"#).unwrap()),
            groups: vec!["房间 1".parse().unwrap()],
            at: 1_763_640_000_000,
        };
        Event { about, uid: Some("42".parse().unwrap()), what, room: Room::default() }
    }

    fn both(event: &Event) -> (serde_json::Value, Vec<(String, String)>) {
        let fields: Vec<String> =
            event.to_fields().into_iter().map(|field| String::from_utf8(field.to_vec()).unwrap()).collect();
        let pairs = fields.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        (serde_json::from_slice(&event.to_json()).unwrap(), pairs)
    }

    #[test]
    fn a_webhooks_body_and_a_stream_entry_have_the_same_fields() {
        let request = Request {
            query: r#"{"room":"1"}"#.to_owned(),
            cookies: "{}".to_owned(),
            headers: r#"{"origin":"http://x"}"#.to_owned(),
            ip: IpAddr::from([127, 0, 0, 1]),
        };
        for (what, expected) in [
            (
                What::Connect(Arc::new(request)),
                r#""query":{"room":"1"},"cookies":{},"headers":{"origin":"http://x"},"ip":"127.0.0.1""#,
            ),
            (What::Message { data: "hi\n".into(), is_binary: false }, r#""data":"hi\n""#),
            (What::Message { data: Bytes::from_static(b"hi"), is_binary: true }, r#""binary":"aGk=""#),
            (What::Message { data: Bytes::from_static(&[255, 0]), is_binary: false }, r#""binary":"/wA=""#),
            (What::Bound { first: true, seq: 5 }, r#""first":true,"seq":5"#),
            (What::Unbound { last: false, seq: 6 }, r#""last":false,"seq":6"#),
            (What::Close(Close::new(1000, "bye")), r#""code":1000,"reason":"bye""#),
        ] {
            let event = event(what);
            let (json, fields) = both(&event);
            let text = format!(
                r#"{{"id":"{}","event":"{}","client_id":"7f0000010b54a3c1e07f","node":"node-1","uid":"42","session":{{"name":"a\"b"}},"groups":["房间 1"],"at":1763640000000,{expected}}}"#,
                event.id(),
                event.what.kind().name()
            );
            assert_eq!(json, serde_json::from_str::<serde_json::Value>(&text).unwrap());
            assert_eq!(fields.len(), json.as_object().unwrap().len());
            for (name, value) in fields {
                let of_json = &json[&name];
                assert_eq!(of_json.as_str().map_or_else(|| of_json.to_string(), str::to_owned), value, "{name}");
            }
        }
    }

    #[test]
    fn what_is_beyond_the_memory_waits_or_is_lost_and_counted() {
        let config = EventsConfig { webhook: Kinds::ALL, stream: Kinds::default(), max_len: 1 };
        let metrics = Arc::new(Metrics::new());
        let events = Events::new(config, Origin::default(), Arc::clone(&metrics));
        let whole = events.room_for_message(100 << 20).unwrap();
        assert!(events.room_for_message(1).is_none());
        let closes: Vec<Room> = std::iter::from_fn(|| events.room(Kind::Close, 0)).collect();
        assert_eq!(closes.len(), OTHERS / OVERHEAD);
        assert_eq!(metrics.events_lost.get_or_create(&Reason { reason: "memory" }).get(), 1);
        assert_eq!(events.waiting(), MESSAGES + OTHERS);
        drop((whole, closes));
        assert!(events.room_for_message(1).is_some() && events.room(Kind::Close, 0).is_some());
    }

    #[test]
    fn a_webhook_that_is_away_takes_no_place_from_the_stream() {
        let config = EventsConfig { webhook: Kinds::ALL, stream: Kinds::ALL, max_len: 1 };
        let metrics = Arc::new(Metrics::new());
        let events = Events::new(config, Origin::default(), Arc::clone(&metrics));
        let lost = || metrics.events_lost.get_or_create(&Reason { reason: "memory" }).get();
        for _ in 0..3 * OTHERS / OVERHEAD {
            let room = events.room(Kind::Close, 0).expect("there is room for what is for the stream");
            events.tell(Event { room, ..event(What::Close(Close::LOST)) });
        }
        assert_eq!(lost(), (3 * OTHERS - LATE) as u64 / OVERHEAD as u64);
        let label = EventLabel { event: "close", to: "stream" };
        assert_eq!(metrics.events_told.get_or_create(&label).get(), (3 * OTHERS / OVERHEAD) as u64);
        assert_eq!(events.waiting(), LATE);
    }

    #[test]
    fn seq_grows_whatever_the_clock_does() {
        let config = EventsConfig { webhook: Kinds::ALL, stream: Kinds::default(), max_len: 1 };
        let events = Events::new(config, Origin::default(), Arc::default());
        let seqs: Vec<u64> = (0..10_000).map(|_| events.next_seq()).collect();
        assert!(seqs.is_sorted_by(|one, next| one < next));
    }
}
