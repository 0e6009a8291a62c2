//! The vocabulary: every command and query, the same at every door. No I/O here.
//!
//! [`Command::parse`] turns an operation's name and its fields into a [`Command`]; the structs that it fills are also
//! what `/openapi.json` is made from. A door differs only in where name and fields come from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::id::{ClientId, Group, TaskId, Uid};
use crate::json::{self, Invalid};
use crate::message::{Close, Message};
use crate::session::Session;
use crate::task::{ATTEMPTS, MAX_ATTEMPTS, State, View};

/// The most entries of an array of targets.
pub const MAX_TARGETS: usize = 10_000;
/// The most commands of a batch.
pub const MAX_BATCH: usize = 1000;
/// The largest page.
pub const MAX_PAGE: u16 = 10_000;

macro_rules! vocabulary {
    ($( $group:literal: { $(
        $(#[doc = $doc:literal])*
        $name:literal $(| $alias:literal)* => $variant:ident ($($arg:literal),*) -> $result:ty, $request:literal => $answer:literal;
    )* } )*) => {
        /// One command or query.
        #[derive(Debug, Clone)]
        pub enum Command {
            $( $( $(#[doc = $doc])* $variant($variant), )* )*
        }

        /// The operations, those of a group together.
        pub const OPERATIONS: &[Operation] = &[
            $( $( Operation {
                group: $group,
                name: $name,
                aliases: &[$($alias),*],
                args: &[$($arg),*],
                about: concat!($($doc),*).trim_ascii(),
                one_of: $variant::ONE_OF,
                request: || ($variant::name(), $variant::schema(), { let mut all = Vec::new(); $variant::schemas(&mut all); all }),
                result: <$result>::answer,
                example: ($request, $answer),
            }, )* )*
        ];

        impl Command {
            /// Reads an operation's fields.
            fn read(name: &'static str, fields: &[(Cow<'_, str>, &RawValue)]) -> Result<Self, Invalid> {
                match name {
                    $( $( $name => json::from_fields(fields).map(Self::$variant), )* )*
                    _ => Err(Invalid::request("unknown operation")),
                }
            }

            /// The operation's name; an alias' own is not kept.
            pub fn name(&self) -> &'static str {
                match self {
                    $( $( Self::$variant(_) => $name, )* )*
                }
            }
        }
    };
}

// An example is a request and its result, where client 7f0000010b5400000001 is bound to 42, is in room-1 and has the session
// {"name":"Ann"}, and where the examples before it were carried out: docs/api.md has them to paste, and tests/it/reference.rs
// carries them out.
vocabulary! {
    "Send": {
        /// Sends to everyone, or to the clients listed.
        "sendToAll" => SendToAll("message", "client_ids", "exclude") -> Sent,
            r#"{"message":"back at noon"}"# => r#"{"nodes":1}"#;
        /// Sends to one client.
        "sendToClient" => SendToClient("client_id", "message") -> Sent,
            r#"{"client_id":"7f0000010b5400000001","message":{"type":"mail","unread":3}}"# => r#"{"nodes":1}"#;
        /// Sends to every client bound to the uid. With an array, `offline` lists the uids that nobody holds.
        "sendToUid" => SendToUid("uid", "message") -> Sent,
            r#"{"uid":[42,"eve"],"message":"hello"}"# => r#"{"nodes":1,"offline":["eve"]}"#;
        /// Sends to every member of the group.
        "sendToGroup" => SendToGroup("group", "message", "exclude") -> Sent,
            r#"{"group":"room-1","message":"42 is typing","exclude_uid":[42],"confirm":true}"# => r#"{"nodes":1,"clients":0}"#;
    }
    "Close": {
        /// Ends a client's connection: what is queued, the message, then a close frame.
        "closeClient" => CloseClient("client_id", "message") -> Sent,
            r#"{"client_id":"7f0000010b5400000001","code":4100,"reason":"idle for a day"}"# => r#"{"nodes":1}"#;
        /// Ends the connections of every client bound to the uid, in the same way.
        "closeUid" => CloseUid("uid", "message") -> Sent,
            r#"{"uid":42,"message":"see you"}"# => r#"{"nodes":1}"#;
        /// Ends a client's connection at once.
        "destroyClient" | "destoryClient" => DestroyClient("client_id") -> Sent,
            r#"{"client_id":"7f0000010b5400000001"}"# => r#"{"nodes":1}"#;
    }
    "Bind": {
        /// Binds a client to a uid, in place of the one it had.
        "bindUid" => BindUid("client_id", "uid") -> Done,
            r#"{"client_id":"7f0000010b5400000001","uid":42,"single":true}"# => "true";
        /// Unbinds a client from its uid; with a uid, only if that is the one.
        "unbindUid" => UnbindUid("client_id", "uid") -> Done,
            r#"{"client_id":"7f0000010b5400000001"}"# => "true";
    }
    "Groups": {
        /// Puts a client, or all clients that a uid has now, into a group.
        "joinGroup" => JoinGroup("client_id", "group") -> Done,
            r#"{"uid":42,"group":["room-1","room-2"]}"# => "true";
        /// Takes a client, or all clients that a uid has now, out of a group.
        "leaveGroup" => LeaveGroup("client_id", "group") -> Done,
            r#"{"client_id":"7f0000010b5400000001","group":"room-2"}"# => "true";
        /// Takes all members out of a group.
        "ungroup" => Ungroup("group") -> Done,
            r#"{"group":"room-1"}"# => "true";
    }
    "Sessions": {
        /// Replaces a client's session.
        "setSession" => SetSession("client_id", "session") -> Done,
            r#"{"client_id":"7f0000010b5400000001","session":{"name":"Ann","level":3}}"# => "true";
        /// Merges into a client's session as PHP's `array_replace_recursive`; a null deletes its key.
        "updateSession" => UpdateSession("client_id", "session") -> Done,
            r#"{"client_id":"7f0000010b5400000001","session":{"level":null,"seat":{"row":7}}}"# => "true";
    }
    "Ask about a client or a uid": {
        /// Whether a client is connected.
        "isOnline" => IsOnline("client_id") -> bool,
            r#"{"client_id":"7f0000010b5400000001"}"# => "true";
        /// Whether any client is bound to the uid.
        "isUidOnline" => IsUidOnline("uid") -> bool,
            r#"{"uid":42}"# => "true";
        /// Which of many uids are online.
        "isUidsOnline" => IsUidsOnline("uid") -> BTreeMap<Uid, bool>,
            r#"{"uid":[42,"eve"]}"# => r#"{"42":true,"eve":false}"#;
        /// A client's session: `{}` when none was set, null when it is not connected.
        "getSession" => GetSession("client_id") -> Option<Session>,
            r#"{"client_id":"7f0000010b5400000001"}"# => r#"{"name":"Ann"}"#;
        /// The uid that a client is bound to, or null.
        "getUidByClientId" => GetUidByClientId("client_id") -> Option<Uid>,
            r#"{"client_id":"7f0000010b5400000001"}"# => r#""42""#;
        /// The clients bound to the uid.
        "getClientIdByUid" => GetClientIdByUid("uid") -> Vec<ClientId>,
            r#"{"uid":42}"# => r#"["7f0000010b5400000001"]"#;
        /// The clients bound to each of many uids.
        "batchGetClientIdByUid" => BatchGetClientIdByUid("uid") -> BTreeMap<Uid, Vec<ClientId>>,
            r#"{"uid":[42,"eve"]}"# => r#"{"42":["7f0000010b5400000001"],"eve":[]}"#;
    }
    "Ask about a group": {
        /// The members of a group, or of any of several.
        "getClientIdListByGroup" => GetClientIdListByGroup("group") -> Vec<ClientId>,
            r#"{"group":["room-1","room-9"]}"# => r#"["7f0000010b5400000001"]"#;
        /// How many members a group has, or any of several together.
        "getClientIdCountByGroup" | "getClientCountByGroup" => GetClientIdCountByGroup("group") -> u64,
            r#"{"group":"room-1"}"# => "1";
        /// How many members each of many groups has.
        "batchGetClientIdCountByGroup" => BatchGetClientIdCountByGroup("group") -> BTreeMap<Group, u64>,
            r#"{"group":["room-1","room-9"]}"# => r#"{"room-1":1,"room-9":0}"#;
        /// The sessions of a group's members.
        "getClientSessionsByGroup" | "getClientInfoByGroup" => GetClientSessionsByGroup("group") -> BTreeMap<ClientId, Session>,
            r#"{"group":"room-1"}"# => r#"{"7f0000010b5400000001":{"name":"Ann"}}"#;
        /// The uids in a group, or in any of several.
        "getUidListByGroup" => GetUidListByGroup("group") -> Vec<Uid>,
            r#"{"group":"room-1"}"# => r#"["42"]"#;
        /// How many uids are in a group.
        "getUidCountByGroup" => GetUidCountByGroup("group") -> u64,
            r#"{"group":"room-1"}"# => "1";
    }
    "Ask about everyone": {
        /// All clients.
        "getAllClientIdList" => GetAllClientIdList() -> Vec<ClientId>,
            r#"{"limit":1000}"# => r#"{"items":["7f0000010b5400000001"],"cursor":null}"#;
        /// How many clients are connected.
        "getAllClientIdCount" | "getAllClientCount" => GetAllClientIdCount() -> u64,
            "{}" => "1";
        /// The sessions of all clients.
        "getAllClientSessions" | "getAllClientInfo" => GetAllClientSessions() -> BTreeMap<ClientId, Session>,
            "{}" => r#"{"7f0000010b5400000001":{"name":"Ann"}}"#;
        /// All uids that are online.
        "getAllUidList" => GetAllUidList() -> Vec<Uid>,
            "{}" => r#"["42"]"#;
        /// How many uids are online.
        "getAllUidCount" => GetAllUidCount() -> u64,
            "{}" => "1";
        /// All groups that have members.
        "getAllGroupIdList" => GetAllGroupIdList() -> Vec<Group>,
            "{}" => r#"["room-1"]"#;
        /// The uids in each group.
        "getAllGroupUidList" => GetAllGroupUidList() -> BTreeMap<Group, Vec<Uid>>,
            "{}" => r#"{"room-1":["42"]}"#;
        /// How many uids are in each group.
        "getAllGroupUidCount" => GetAllGroupUidCount() -> BTreeMap<Group, u64>,
            "{}" => r#"{"room-1":1}"#;
        /// The clients in each group.
        "getAllGroupClientIdList" => GetAllGroupClientIdList() -> BTreeMap<Group, Vec<ClientId>>,
            "{}" => r#"{"room-1":["7f0000010b5400000001"]}"#;
        /// How many clients are in each group.
        "getAllGroupClientIdCount" => GetAllGroupClientIdCount() -> BTreeMap<Group, u64>,
            "{}" => r#"{"room-1":1}"#;
    }
    "Tasks": {
        /// Queues a command, or a payload for the webhook: to be carried out at once, later, or whenever a cron says.
        "addTask" => AddTask("command", "delay", "id") -> Added,
            r#"{"command":{"op":"sendToAll","message":"happy new year"},"at":4102444800000,"id":"2100"}"# => r#"{"id":"2100"}"#;
        /// What became of a task; null when none is known by this id.
        "getTask" => GetTask("id") -> Option<View>,
            r#"{"id":"2100"}"# => r#"{"id":"2100","state":"waiting","attempts":0,"next_at":4102444800000,"task":{"command":{"op":"sendToAll","message":"happy new year"},"at":4102444800000,"id":"2100"}}"#;
        /// The tasks in a state, or all: always a page, of 100 unless told.
        "listTasks" => ListTasks("state", "limit", "cursor") -> Vec<View>,
            r#"{"state":"dead"}"# => r#"{"items":[],"cursor":null}"#;
        /// Takes away a task that waits, or a cron; whether there was one. What comes later under this id is not run for 24 h.
        "cancelTask" => CancelTask("id") -> bool,
            r#"{"id":"2100"}"# => "true";
        /// Takes a task off the dead letters and queues it anew; whether there was one.
        "retryTask" => RetryTask("id") -> bool,
            r#"{"id":"2100"}"# => "false";
    }
    "Batch": {
        /// Runs commands in order; neighbouring changes of one client are one step. The answer has `results`: of each its `result` or `error`.
        "batch" => Batch("commands") -> Vec<Value>,
            r#"{"commands":[{"op":"leaveGroup","uid":42,"group":"room-1"},{"op":"joinGroup","uid":42,"group":"room-2"},{"op":"getAllGroupIdList"}]}"# => r#"[{"result":true},{"result":true},{"result":["room-2"]}]"#;
    }
}

/// Schemas by the names they are referred to.
pub type NamedSchemas = Vec<(String, RefOr<Schema>)>;

/// One row of the vocabulary.
#[derive(Debug, Clone)]
pub struct Operation {
    /// What it belongs with.
    pub group: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// Fields in the order of the `?method=` form.
    pub args: &'static [&'static str],
    /// What it does, in a sentence or two.
    pub about: &'static str,
    /// Fields of which exactly one is given.
    pub one_of: &'static [&'static str],
    /// Name and schema of the fields, and the schemas that refers to.
    pub request: fn() -> (Cow<'static, str>, RefOr<Schema>, NamedSchemas),
    /// Schema of the result; it refers to `Sent`, `Added`, `Task`, `Session`, `Uid`, `Group` and `ClientId`.
    pub result: fn() -> RefOr<Schema>,
    /// Fields, and the result that they have.
    pub example: (&'static str, &'static str),
}

/// No operation has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown operation {0:?}")]
pub struct UnknownOperation(pub String);

/// Why a command could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No such operation.
    #[error(transparent)]
    UnknownOperation(#[from] UnknownOperation),
    /// Its fields are wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl Operation {
    /// The operation of a name or alias.
    pub fn find(name: &str) -> Result<&'static Self, UnknownOperation> {
        let row = OPERATIONS.iter().find(|row| row.name == name || row.aliases.contains(&name));
        row.ok_or_else(|| UnknownOperation(name.chars().take(64).collect()))
    }
}

impl Command {
    /// The command that an operation's name (or alias) and fields say.
    pub fn parse(name: &str, fields: &[(Cow<'_, str>, &RawValue)]) -> Result<Self, ParseError> {
        Ok(Self::read(Operation::find(name)?.name, fields)?)
    }

    /// The command of a JSON object whose field `op` names the operation.
    pub fn parse_object(object: &str) -> Result<Self, ParseError> {
        let mut fields = json::fields(object.as_bytes())?;
        let Some(place) = fields.iter().position(|(key, _)| key == "op") else {
            return Err(Invalid::field("op", "is missing").into());
        };
        let (_, op) = fields.remove(place);
        let name: String = serde_json::from_str(op.get()).map_err(|_| Invalid::field("op", "takes a string"))?;
        Self::parse(&name, &fields)
    }
}

// --- field types ---------------------------------------------------------------------------------------------------

/// A required-when-present field: absent is `None`, but null is read by the type itself, which refuses it.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// One, or an array of at most [`MAX_TARGETS`]; repeated entries count once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Many<T> {
    items: Vec<T>,
    is_array: bool,
}

impl<T> Many<T> {
    /// What was named.
    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// What was named.
    pub fn into_items(self) -> Vec<T> {
        self.items
    }

    /// Whether it was written as an array.
    pub fn is_array(&self) -> bool {
        self.is_array
    }
}

impl<'de, T: Deserialize<'de> + Ord> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        let is_array = raw.get().starts_with('[');
        let items = if is_array {
            serde_json::from_str::<List<T>>(raw.get()).map(|list| list.0)
        } else {
            serde_json::from_str(raw.get()).map(|one| vec![one])
        };
        Ok(Self { items: items.map_err(|error| de::Error::custom(json::words(&error)))?, is_array })
    }
}

/// An array of at most [`MAX_TARGETS`] different entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<'de, T: Deserialize<'de> + Ord> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Ord> Visitor<'de> for Items<T> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if items.len() == MAX_TARGETS {
                        return Err(de::Error::custom(format_args!("takes at most {MAX_TARGETS} entries")));
                    }
                    items.push(item);
                }
                items.sort_unstable();
                items.dedup();
                Ok(items)
            }
        }
        deserializer.deserialize_seq(Items(std::marker::PhantomData)).map(Self)
    }
}

/// `message`: a string as it is, any other JSON value as its compact text.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        if raw.starts_with('"') {
            return serde_json::from_str(raw).map(Self).map_err(|error| de::Error::custom(json::words(&error)));
        }
        json::compact(raw).map(Self).map_err(de::Error::custom)
    }
}

/// `binary`: base64 (RFC 4648, with padding) of a binary message.
#[derive(Clone, PartialEq, Eq)]
pub struct Binary(Vec<u8>);

impl<'de> Deserialize<'de> for Binary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        BASE64_STANDARD.decode(&*text).map(Self).map_err(|_| de::Error::custom("takes base64 (RFC 4648, with padding)"))
    }
}

macro_rules! hidden_debug {
    ($($name:ident)*) => { $(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} bytes", self.0.len())
            }
        }
    )* };
}
hidden_debug!(Text Binary);

/// A close code that an application may send: 1000, 1001, 1008, 1011–1013 or 3000–4999.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u16);

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u16::deserialize(deserializer) {
            Ok(code @ (1000 | 1001 | 1008 | 1011..=1013 | 3000..=4999)) => Ok(Self(code)),
            _ => Err(de::Error::custom("takes a close code: 1000, 1001, 1008, 1011 to 1013 or 3000 to 4999")),
        }
    }
}

/// The reason of a close frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(pub String);

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let reason = String::deserialize(deserializer)?;
        if reason.len() > Close::MAX_REASON {
            return Err(de::Error::custom(format_args!("takes at most {} bytes", Close::MAX_REASON)));
        }
        Ok(Self(reason))
    }
}

/// How many items a page holds: 1 to [`MAX_PAGE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub usize);

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u16::deserialize(deserializer) {
            Ok(limit @ 1..=MAX_PAGE) => Ok(Self(limit.into())),
            _ => Err(de::Error::custom(format_args!("takes a number from 1 to {MAX_PAGE}"))),
        }
    }
}

/// A value of any kind, unparsed.
#[derive(Debug, Clone)]
pub struct Value(pub Box<RawValue>);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Self)
    }
}

macro_rules! schema {
    ($($name:ident: $schema:expr;)*) => { $(
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> { $schema.build().into() }
        }
        impl ToSchema for $name {}
    )* };
}
schema! {
    Text: ObjectBuilder::new()
        .schema_type(SchemaType::AnyValue);
    Binary: ObjectBuilder::new()
        .schema_type(Type::String)
        .content_encoding("base64");
    Code: ObjectBuilder::new()
        .schema_type(Type::Integer)
        .default(Some(Close::CLOSED.code.into()));
    Reason: ObjectBuilder::new()
        .schema_type(Type::String);
    Limit: ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(1))
        .maximum(Some(MAX_PAGE));
    Value: ObjectBuilder::new().schema_type(SchemaType::AnyValue);
}

impl<T: ToSchema> PartialSchema for Many<T> {
    fn schema() -> RefOr<Schema> {
        let one = RefOr::Ref(Ref::from_schema_name(T::name()));
        let array = ArrayBuilder::new().items(one.clone()).max_items(Some(MAX_TARGETS));
        Schema::from(OneOfBuilder::new().item(one).item(array).build()).into()
    }
}
impl<T: ToSchema> ToSchema for Many<T> {
    fn name() -> Cow<'static, str> {
        format!("{}s", T::name()).into()
    }
    fn schemas(schemas: &mut NamedSchemas) {
        schemas.push((T::name().into_owned(), T::schema()));
    }
}

impl<T: ToSchema> PartialSchema for List<T> {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new()
            .items(RefOr::Ref(Ref::from_schema_name(T::name())))
            .max_items(Some(MAX_TARGETS))
            .build()
            .into()
    }
}
impl<T: ToSchema> ToSchema for List<T> {
    fn name() -> Cow<'static, str> {
        format!("{}List", T::name()).into()
    }
    fn schemas(schemas: &mut NamedSchemas) {
        schemas.push((T::name().into_owned(), T::schema()));
    }
}

// --- the commands' fields ------------------------------------------------------------------------------------------

/// What a send carries: exactly one of `message` and `binary`.
pub fn payload(message: Option<Text>, binary: Option<Binary>) -> Result<Message, Invalid> {
    optional_payload(message, binary)?.ok_or_else(|| Invalid::field("message", "is missing (or binary in its place)"))
}

/// At most one of `message` and `binary`.
pub fn optional_payload(message: Option<Text>, binary: Option<Binary>) -> Result<Option<Message>, Invalid> {
    match (message, binary) {
        (Some(_), Some(_)) => Err(Invalid::field("binary", "comes in place of message, not beside it")),
        (Some(Text(text)), None) => Ok(Some(Message::text(&text))),
        (None, Some(Binary(bytes))) => Ok(Some(Message::binary(&bytes))),
        (None, None) => Ok(None),
    }
}

/// The close that `code` and `reason` ask for.
pub fn close(code: Option<Code>, reason: Option<Reason>) -> Close {
    let reason = match (code, reason) {
        (_, Some(Reason(reason))) => reason.into(),
        (None, None) => Close::CLOSED.reason,
        (Some(_), None) => "".into(),
    };
    Close { code: code.map_or(Close::CLOSED.code, |Code(code)| code), reason }
}

/// The same as another node says it: what does not fit a close frame goes to no client.
pub(crate) fn read_close<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Close, D::Error> {
    #[derive(serde::Deserialize)]
    struct Fields {
        code: Code,
        reason: Reason,
    }
    let Fields { code, reason } = Fields::deserialize(deserializer)?;
    Ok(close(Some(code), Some(reason)))
}

/// The uid of a group change that is not about one client.
pub fn uid_alone(client_id: Option<ClientId>, uid: Option<Uid>) -> Result<Uid, Invalid> {
    match (client_id, uid) {
        (None, Some(uid)) => Ok(uid),
        (None, None) => Err(Invalid::field("client_id", "is missing (or uid in its place)")),
        (Some(_), _) => Err(Invalid::field("uid", "comes in place of client_id, not beside it")),
    }
}

/// What `max_attempts` takes.
fn attempts() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(1))
        .maximum(Some(MAX_ATTEMPTS))
        .default(Some(ATTEMPTS.into()))
}

macro_rules! fields {
    ($( $(#[doc = $doc:literal])* $name:ident $(($one:ident | $other:ident))? { $( $(#[$attribute:meta])* $field:ident: $type:ty, )* } )*) => { $(
        $(#[doc = $doc])*
        #[derive(Debug, Clone, DeriveDeserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $( $(#[$attribute])* #[allow(missing_docs)] pub $field: $type, )* }

        impl $name {
            const ONE_OF: &'static [&'static str] = &[$(stringify!($one), stringify!($other))?];
        }
    )* };
}

/// What each field means, in whichever command it is.
pub const FIELDS: &[(&str, &str)] = &[
    ("client_id", "A connection, by the id that the node gave it: 20 hex digits. The id ends with the connection."),
    (
        "uid",
        "Your own name for a user: at most 256 bytes, and a number is its digits. A client has one at most, a uid any number of clients.",
    ),
    ("group", "A group of clients, by a name like a uid. It is there while it has members."),
    ("message", "What is sent: a string as it is, any other JSON as its compact text."),
    ("binary", "A binary frame in place of `message`: base64 with padding."),
    ("client_ids", "Nobody but these clients; `[]` is nobody at all."),
    ("exclude", "Clients that are left out."),
    ("exclude_uid", "Uids whose clients are left out."),
    ("confirm", "Count the sockets that took the message: `clients` in the answer."),
    ("code", "Of the close frame: 1000, 1001, 1008, 1011 to 1013 or 3000 to 4999."),
    (
        "reason",
        "Of the close frame: at most 123 bytes. Unless told it is empty; where there is no `code` either, `closed`.",
    ),
    ("single", "Close the uid's other clients, with 4001 `replaced`."),
    ("session", "What you keep about a client: an object or an array, of at most `MAX_SESSION_SIZE`."),
    ("command", "Any command, its operation in `op`; a `batch`, too."),
    ("webhook", "In place of `command`: what is POSTed to `WEBHOOK_URL` as event `task`."),
    ("at", "Not before this time, unix ms."),
    ("delay", "Not before so many ms from now."),
    ("cron", "Again and again: 5 fields, or 6 with seconds first. It needs an `id`; the same `id` again replaces it."),
    ("tz", "The time zone of `cron`, such as `Asia/Shanghai`; UTC unless told."),
    ("id", "A task's name: like a uid, of a cron at most 240 bytes. A second task with it is not run within 24 h."),
    ("max_attempts", "How often a task is tried."),
    ("state", "Only the tasks in this state."),
    ("limit", "Answer a page of so many items, and a cursor."),
    ("cursor", "Where to go on: the cursor of the page before."),
    ("commands", "Any commands but `batch`, each with its operation in `op`."),
];

/// One uid or several.
pub type Uids = Many<Uid>;
/// One group or several.
pub type Groups = Many<Group>;
/// Clients listed.
pub type ClientIdList = List<ClientId>;
/// Uids listed.
pub type UidList = List<Uid>;

fields! {
    /// Fields of `sendToAll`; `client_ids: []` is nobody.
    SendToAll (message | binary) {
        #[serde(default, deserialize_with = "present")] message: Option<Text>,
        #[serde(default, deserialize_with = "present")] binary: Option<Binary>,
        #[serde(default, deserialize_with = "present")] client_ids: Option<ClientIdList>,
        #[serde(default, deserialize_with = "present")] exclude: Option<ClientIdList>,
        #[serde(default, deserialize_with = "present")] exclude_uid: Option<UidList>,
        #[serde(default)] confirm: bool,
    }
    /// Fields of `sendToClient`.
    SendToClient (message | binary) {
        client_id: ClientId,
        #[serde(default, deserialize_with = "present")] message: Option<Text>,
        #[serde(default, deserialize_with = "present")] binary: Option<Binary>,
        #[serde(default)] confirm: bool,
    }
    /// Fields of `sendToUid`.
    SendToUid (message | binary) {
        uid: Uids,
        #[serde(default, deserialize_with = "present")] message: Option<Text>,
        #[serde(default, deserialize_with = "present")] binary: Option<Binary>,
        #[serde(default)] confirm: bool,
    }
    /// Fields of `sendToGroup`.
    SendToGroup (message | binary) {
        group: Groups,
        #[serde(default, deserialize_with = "present")] message: Option<Text>,
        #[serde(default, deserialize_with = "present")] binary: Option<Binary>,
        #[serde(default, deserialize_with = "present")] exclude: Option<ClientIdList>,
        #[serde(default, deserialize_with = "present")] exclude_uid: Option<UidList>,
        #[serde(default)] confirm: bool,
    }
    /// Fields of `closeClient`.
    CloseClient {
        client_id: ClientId,
        message: Option<Text>,
        binary: Option<Binary>,
        code: Option<Code>,
        reason: Option<Reason>,
    }
    /// Fields of `destroyClient`.
    DestroyClient { client_id: ClientId, }
    /// Fields of `closeUid`.
    CloseUid {
        uid: Uids,
        message: Option<Text>,
        binary: Option<Binary>,
        code: Option<Code>,
        reason: Option<Reason>,
    }
    /// Fields of `bindUid`; `single: true` closes the uid's other clients with 4001 `replaced`.
    BindUid {
        client_id: ClientId,
        uid: Uid,
        #[serde(default)] single: bool,
    }
    /// Fields of `unbindUid`.
    UnbindUid {
        client_id: ClientId,
        #[serde(default, deserialize_with = "present")] uid: Option<Uid>,
    }
    /// Fields of `joinGroup`: `client_id` or `uid`.
    JoinGroup (client_id | uid) {
        #[serde(default, deserialize_with = "present")] client_id: Option<ClientId>,
        #[serde(default, deserialize_with = "present")] uid: Option<Uid>,
        group: Groups,
    }
    /// Fields of `leaveGroup`: `client_id` or `uid`.
    LeaveGroup (client_id | uid) {
        #[serde(default, deserialize_with = "present")] client_id: Option<ClientId>,
        #[serde(default, deserialize_with = "present")] uid: Option<Uid>,
        group: Groups,
    }
    /// Fields of `ungroup`.
    Ungroup { group: Group, }
    /// Fields of `setSession`.
    SetSession { client_id: ClientId, session: Session, }
    /// Fields of `updateSession`.
    UpdateSession { client_id: ClientId, session: Session, }
    /// Fields of `batch`: at most 1,000 commands, each an object with its operation in `op`.
    Batch { #[schema(value_type = Vec<Object>)] commands: Vec<Value>, }

    /// Fields of `addTask`: `command` or `webhook`.
    AddTask (command | webhook) {
        #[serde(default, deserialize_with = "present")] #[schema(value_type = Option<Object>)] command: Option<Value>,
        #[serde(default, deserialize_with = "present")] webhook: Option<Value>,
        #[serde(default, deserialize_with = "present")] at: Option<u64>,
        #[serde(default, deserialize_with = "present")] delay: Option<u64>,
        #[serde(default, deserialize_with = "present")] cron: Option<String>,
        #[serde(default, deserialize_with = "present")] tz: Option<String>,
        #[serde(default, deserialize_with = "present")] id: Option<TaskId>,
        #[serde(default, deserialize_with = "present")] #[schema(schema_with = attempts)] max_attempts: Option<u64>,
        #[serde(skip)] entry: Option<String>,
    }
    /// Fields of `cancelTask`.
    CancelTask {
        id: TaskId,
        #[serde(skip)] entry: Option<String>,
    }
    /// Fields of `retryTask`.
    RetryTask { id: TaskId, }
    /// Fields of `getTask`.
    GetTask { id: TaskId, }
    /// Fields of `listTasks`.
    ListTasks {
        #[serde(default, deserialize_with = "present")] state: Option<State>,
        #[serde(default, deserialize_with = "present")] limit: Option<Limit>,
        cursor: Option<String>,
    }

    /// Fields of `isOnline`.
    IsOnline { client_id: ClientId, }
    /// Fields of `isUidOnline`.
    IsUidOnline { uid: Uid, }
    /// Fields of `isUidsOnline`.
    IsUidsOnline { uid: Uids, }
    /// Fields of `getSession`.
    GetSession { client_id: ClientId, }
    /// Fields of `getUidByClientId`.
    GetUidByClientId { client_id: ClientId, }
    /// Fields of `getClientIdByUid`.
    GetClientIdByUid { uid: Uid, }
    /// Fields of `batchGetClientIdByUid`.
    BatchGetClientIdByUid { uid: Uids, }
    /// Fields of `getClientIdListByGroup`.
    GetClientIdListByGroup { group: Groups, limit: Option<Limit>, cursor: Option<String>, }
    /// Fields of `getClientIdCountByGroup`.
    GetClientIdCountByGroup { group: Groups, }
    /// Fields of `batchGetClientIdCountByGroup`.
    BatchGetClientIdCountByGroup { group: Groups, }
    /// Fields of `getClientSessionsByGroup`.
    GetClientSessionsByGroup { group: Group, limit: Option<Limit>, cursor: Option<String>, }
    /// Fields of `getUidListByGroup`.
    GetUidListByGroup { group: Groups, limit: Option<Limit>, cursor: Option<String>, }
    /// Fields of `getUidCountByGroup`.
    GetUidCountByGroup { group: Group, }
    /// Fields of `getAllClientIdList`.
    GetAllClientIdList { limit: Option<Limit>, cursor: Option<String>, }
    /// `getAllClientIdCount` takes no fields.
    GetAllClientIdCount { }
    /// Fields of `getAllClientSessions`.
    GetAllClientSessions { limit: Option<Limit>, cursor: Option<String>, }
    /// Fields of `getAllUidList`.
    GetAllUidList { limit: Option<Limit>, cursor: Option<String>, }
    /// `getAllUidCount` takes no fields.
    GetAllUidCount { }
    /// Fields of `getAllGroupIdList`.
    GetAllGroupIdList { limit: Option<Limit>, cursor: Option<String>, }
    /// Fields of `getAllGroupUidList`.
    GetAllGroupUidList { limit: Option<Limit>, cursor: Option<String>, }
    /// `getAllGroupUidCount` takes no fields.
    GetAllGroupUidCount { }
    /// Fields of `getAllGroupClientIdList`.
    GetAllGroupClientIdList { limit: Option<Limit>, cursor: Option<String>, }
    /// `getAllGroupClientIdCount` takes no fields.
    GetAllGroupClientIdCount { }
}

// --- answers -------------------------------------------------------------------------------------------------------

/// The answer to a send or close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Sent {
    /// How many nodes heard, each with somebody there, excluded or not. 0: nobody is online.
    pub nodes: u64,
    /// Of `sendToUid` with an array: the uids that nobody holds, as strings, in no order.
    #[schema(nullable = false, value_type = Option<Vec<String>>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offline: Option<Vec<Uid>>,
    /// With `confirm`: how many sockets took the message.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients: Option<u64>,
}

/// The answer to `addTask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Added {
    /// The id that the task is known by.
    pub id: String,
}

/// The answer of a change, which is true or an error.
struct Done;

/// What an operation's result looks like.
trait Answer {
    fn answer() -> RefOr<Schema>;
}

macro_rules! answers {
    ($($type:ty: $schema:expr;)*) => { $( impl Answer for $type { fn answer() -> RefOr<Schema> { $schema.into() } } )* };
}
answers! {
    Done: ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([true])).build();
    bool: ObjectBuilder::new().schema_type(Type::Boolean).build();
    u64: ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).build();
    Value: ObjectBuilder::new().schema_type(SchemaType::AnyValue).build();
    Sent: Ref::from_schema_name("Sent");
    Added: Ref::from_schema_name("Added");
    View: Ref::from_schema_name("Task");
    Session: Ref::from_schema_name("Session");
    Uid: Ref::from_schema_name("Uid");
    Group: Ref::from_schema_name("Group");
    ClientId: Ref::from_schema_name("ClientId");
}

impl<T: Answer> Answer for Option<T> {
    fn answer() -> RefOr<Schema> {
        Schema::from(OneOfBuilder::new().item(T::answer()).item(ObjectBuilder::new().schema_type(Type::Null)).build())
            .into()
    }
}

impl<T: Answer> Answer for Vec<T> {
    fn answer() -> RefOr<Schema> {
        ArrayBuilder::new().items(T::answer()).build().into()
    }
}

impl<K: ToSchema, T: Answer> Answer for BTreeMap<K, T> {
    fn answer() -> RefOr<Schema> {
        let key = ObjectBuilder::new().schema_type(Type::String).title(Some(K::name()));
        ObjectBuilder::new().property_names(Some(key)).additional_properties(Some(T::answer())).build().into()
    }
}

/// What a command answers; printed as the `result` of the API's answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Reply {
    Sent(Sent),
    Added(Added),
    Task(Option<Box<View>>),
    Tasks(Vec<View>),
    Flag(bool),
    Count(u64),
    Session(Option<Session>),
    Uid(Option<Uid>),
    ClientIds(Vec<ClientId>),
    Uids(Vec<Uid>),
    Groups(Vec<Group>),
    Sessions(BTreeMap<ClientId, Session>),
    UidFlags(BTreeMap<Uid, bool>),
    UidClients(BTreeMap<Uid, Vec<ClientId>>),
    GroupCounts(BTreeMap<Group, u64>),
    GroupUids(BTreeMap<Group, Vec<Uid>>),
    GroupClients(BTreeMap<Group, Vec<ClientId>>),
    /// `cursor` continues the listing; null at its end.
    Page {
        items: Box<Reply>,
        cursor: Option<String>,
    },
}

impl Reply {
    /// A change that is done.
    pub const DONE: Self = Self::Flag(true);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn invalid(object: &str) -> (Option<String>, String) {
        match Command::parse_object(object) {
            Err(ParseError::Invalid(Invalid { field, detail })) => (field.map(Cow::into_owned), detail),
            other => panic!("{object}: {other:?}"),
        }
    }

    #[test]
    fn names_aliases_and_unknown_operations() {
        assert!(matches!(
            Command::parse_object(r#"{"op":"destoryClient","client_id":"7f0000010b5400000001"}"#),
            Ok(Command::DestroyClient(_))
        ));
        assert!(matches!(
            Command::parse_object(r#"{"client_id":"7F0000010B5400000001","op":"isOnline"}"#),
            Ok(Command::IsOnline(_))
        ));
        assert_eq!(Command::parse_object(r#"{"op":"nope"}"#).unwrap_err(), UnknownOperation("nope".into()).into());
        let mut names: Vec<_> = OPERATIONS.iter().flat_map(|row| row.aliases.iter().chain([&row.name])).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "a name stands twice");
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (object, field) in [
            (r#"{"op":"sendToGroup","group":"g","message":"x","exlude":[]}"#, "exlude"),
            (r#"{"op":"sendToGroup","message":"x"}"#, "group"),
            (r#"{"op":"sendToUid","uid":null,"message":"x"}"#, "uid"),
            (r#"{"op":"sendToUid","uid":1.5,"message":"x"}"#, "uid"),
            (r#"{"op":"sendToUid","uid":["a",true],"message":"x"}"#, "uid"),
            (r#"{"op":"sendToUid","uid":"","message":"x"}"#, "uid"),
            (r#"{"op":"bindUid","client_id":"7f0000010b5400000001","uid":["a"]}"#, "uid"),
            (r#"{"op":"isOnline","client_id":"7f"}"#, "client_id"),
            (r#"{"op":"sendToAll","message":"x","exclude":null}"#, "exclude"),
            (r#"{"op":"sendToAll","binary":"%%%"}"#, "binary"),
            (r#"{"op":"sendToAll","message":"\ud800"}"#, "message"),
            (r#"{"op":"closeClient","client_id":"7f0000010b5400000001","code":1005}"#, "code"),
            (r#"{"op":"setSession","client_id":"7f0000010b5400000001","session":"x"}"#, "session"),
            (r#"{"op":"getAllUidList","limit":0}"#, "limit"),
            (r#"{"op":"getAllUidList","limit":10001}"#, "limit"),
            (r#"{"op":"sendToUid","uid":"a","uid":"b","message":"x"}"#, "uid"),
            (r#"{"uid":"a"}"#, "op"),
        ] {
            assert_eq!(invalid(object).0.as_deref(), Some(field), "{object}: {}", invalid(object).1);
        }
        let many = format!(r#"{{"op":"sendToUid","uid":[{}1],"message":"x"}}"#, "1,".repeat(MAX_TARGETS));
        assert_eq!(invalid(&many).0.as_deref(), Some("uid"));
        let deep = format!(r#"{{"op":"sendToAll","message":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(invalid(&deep).0.as_deref(), Some("message"));
    }

    #[test]
    fn a_message_is_a_string_or_the_text_of_any_json() {
        for (json, text) in [
            (r#""hi \u4f60\n""#, "hi 你\n"),
            (r#"{"b": 1, "a" : [1.0, 2e5]}"#, r#"{"b":1,"a":[1.0,2e5]}"#),
            ("42", "42"),
            ("null", "null"),
        ] {
            let Ok(Command::SendToAll(command)) =
                Command::parse_object(&format!(r#"{{"op":"sendToAll","message":{json}}}"#))
            else {
                panic!("{json}");
            };
            assert_eq!(payload(command.message, command.binary).unwrap(), Message::text(text));
        }
        assert!(payload(None, None).is_err());
        assert!(payload(Some(Text("x".into())), Some(Binary(vec![]))).is_err());
        assert_eq!(payload(None, Some(Binary(vec![255]))).unwrap(), Message::binary(&[255]));
    }

    proptest! {
        #[test]
        fn garbage_is_a_typed_error_and_not_a_panic(text in ".{0,200}") {
            drop(Command::parse_object(&text));
        }

        #[test]
        fn garbage_in_any_field_of_any_operation_is_a_typed_error(
            row in prop::sample::select(OPERATIONS),
            values in prop::collection::vec(prop::sample::select(vec!["null", "1", "-1", "1e99", "\"\"", "\"7f0000010b5400000001\"", "[]", "[1,[2]]", "{}", "{\"a\":[{}]}", "true"]), 3),
        ) {
            let fields: Vec<String> = row.args.iter().zip(&values).map(|(key, value)| format!("\"{key}\":{value}")).collect();
            drop(Command::parse_object(&format!("{{\"op\":\"{}\"{}{}}}", row.name, if fields.is_empty() { "" } else { "," }, fields.join(","))));
        }
    }
}
