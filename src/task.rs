//! A queued task: what it is, when it is due, what is shown of it. No I/O here.
//!
//! Its [`Fields`] are the same wherever it stands: in the stream, in its record, among the dead letters. [`Task::read`]
//! makes sense of them; `addTask` writes them first and has them read like any others.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::command::{AddTask, Command};
use crate::id::TaskId;
use crate::json::{self, Invalid};
use crate::trace::{Context, TRACEPARENT, TRACESTATE};

/// How often a task is tried that does not say.
pub const ATTEMPTS: u32 = 5;

/// The most that a task may ask for.
pub const MAX_ATTEMPTS: u32 = 1000;

/// The most bytes of all its fields. A message of 1 MiB fits, also in base64.
const MAX_LENGTH: usize = 2 << 20;

/// What is left of an id of 256 bytes for a cron: `@` and the time of a tick follow.
const MAX_CRON_ID: usize = 240;

/// The last ms of the year 9999: what calendars can say.
const LAST_TIME: u64 = 253_402_300_799_999;

/// The shortest wait before another attempt, and the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(10);

/// What a task is made of, in order: names and values as they stand in the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(Bytes, Bytes)>);

impl Fields {
    /// A field's value, if there is one and it is text.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(other, _)| other == name)?;
        std::str::from_utf8(value).ok()
    }

    /// Bytes of all names and values.
    pub fn length(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// As it is kept of what was never a task: the beginning of each value where all is more than a task takes.
    #[must_use]
    pub fn shortened(&self) -> Self {
        if self.length() <= MAX_LENGTH {
            return self.clone();
        }
        let most = MAX_LENGTH / self.0.len().max(1) / 2;
        let cut = |bytes: &Bytes| Bytes::copy_from_slice(bytes.get(..most).unwrap_or(bytes));
        Self(self.0.iter().map(|(name, value)| (cut(name), cut(value))).collect())
    }

    fn push(&mut self, name: &'static str, value: impl Into<Bytes>) {
        self.0.push((Bytes::from_static(name.as_bytes()), value.into()));
    }

    /// As one text, for a record: a list of names and values in JSON, what is no text as `{"$binary": base64}`.
    pub fn write(&self) -> String {
        let mut out = String::from("[");
        for (name, value) in &self.0 {
            out.push_str(if out.len() > 1 { "," } else { "" });
            write_bytes(name, &mut out);
            out.push(',');
            write_bytes(value, &mut out);
        }
        out.push(']');
        out
    }

    /// What [`Fields::write`] has written; what is damaged has no fields.
    pub fn read(text: &str) -> Self {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Part {
            Text(String),
            Binary {
                #[serde(rename = "$binary")]
                base64: String,
            },
        }
        let bytes = |part: &Part| match part {
            Part::Text(text) => Bytes::from(text.clone()),
            Part::Binary { base64 } => BASE64_STANDARD.decode(base64).unwrap_or_default().into(),
        };
        let parts: Vec<Part> = serde_json::from_str(text).unwrap_or_default();
        let pairs = parts.chunks_exact(2).filter_map(|pair| Some((bytes(pair.first()?), bytes(pair.get(1)?))));
        Self(pairs.collect())
    }

    /// As people are shown it: an object, what is JSON as such.
    pub fn shown(&self) -> Shown {
        let mut out = String::from("{");
        for (name, value) in &self.0 {
            out.push_str(if out.len() > 1 { "," } else { "" });
            json::write_string(&String::from_utf8_lossy(name), &mut out);
            out.push(':');
            let is_json = matches!(&**name, b"command" | b"webhook" | b"at" | b"delay" | b"max_attempts");
            let text = std::str::from_utf8(value).ok().filter(|_| is_json);
            match text.and_then(|text| json::borrow_raw(text).ok()).and_then(|raw| json::compact(raw.get()).ok()) {
                Some(json) => out.push_str(&json),
                None => write_bytes(value, &mut out),
            }
        }
        out.push('}');
        Shown(out)
    }

    /// Has the task be a step of a trace. A cron is none: its trace would never end.
    pub fn carry(&mut self, trace: &Context) {
        if self.get("cron").is_some() {
            return;
        }
        self.push(TRACEPARENT, trace.traceparent());
        if !trace.tracestate().is_empty() {
            self.push(TRACESTATE, trace.tracestate().to_owned());
        }
    }

    /// What a cron's tick is made of: the same but for its schedule and its trace, under an id of its own.
    #[must_use]
    pub fn of_tick(&self, at: u64) -> Self {
        let stays =
            |(name, _): &&(Bytes, Bytes)| !matches!(&**name, b"cron" | b"tz" | b"id" | b"traceparent" | b"tracestate");
        let mut fields = Self(self.0.iter().filter(stays).cloned().collect());
        fields.push("id", format!("{}@{at}", self.get("id").unwrap_or_default()));
        fields
    }
}

/// A JSON string, or an object where it is no text.
fn write_bytes(bytes: &[u8], out: &mut String) {
    match std::str::from_utf8(bytes) {
        Ok(text) => json::write_string(text, out),
        Err(_) => {
            out.push_str(r#"{"$binary":""#);
            BASE64_STANDARD.encode_string(bytes, out);
            out.push_str("\"}");
        }
    }
}

/// JSON that is printed as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(String);

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json::borrow_raw(&self.0).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Work {
    /// A command is carried out.
    Command(Box<Command>),
    /// The application is told this payload, in JSON.
    Webhook(Box<RawValue>),
}

/// When it is to be done.
#[derive(Debug, Clone)]
pub enum When {
    /// At once.
    Now,
    /// Not before this time, unix ms.
    At(u64),
    /// So many ms after it was added.
    After(u64),
    /// Whenever the schedule says.
    Cron(Schedule),
}

/// A task that can be carried out.
#[derive(Debug, Clone)]
pub struct Task {
    /// What is to be done.
    pub work: Work,
    /// When.
    pub when: When,
    /// Its own id, if it has one.
    pub id: Option<TaskId>,
    /// How often it is tried.
    pub max_attempts: u32,
    /// The key of the list that is told what came of it.
    pub reply_to: Option<String>,
    /// The place in a trace at which it was added.
    pub trace: Option<Context>,
}

impl Task {
    /// Reads a task's fields. `reply_prefix` is what keys of answers begin with; without one nobody can be answered.
    pub fn read(fields: &Fields, reply_prefix: Option<&str>) -> Result<Self, Invalid> {
        if fields.length() > MAX_LENGTH {
            return Err(Invalid::request(format_args!("a task takes at most {MAX_LENGTH} bytes")));
        }
        let (mut command, mut webhook, mut at, mut delay, mut cron) = (None, None, None, None, None);
        let (mut tz, mut id, mut max_attempts, mut reply_to) = (None, None, None, None);
        let (mut traceparent, mut tracestate) = (None, None);
        for (name, value) in &fields.0 {
            let text = || std::str::from_utf8(value).map_err(|_| "is not UTF-8".to_owned());
            let known = |place: &mut Option<String>, field: &'static str| {
                let text = text().map_err(|detail| Invalid::field(field, detail))?;
                match place.replace(text.to_owned()) {
                    Some(_) => Err(Invalid::field(field, "comes twice")),
                    None => Ok(()),
                }
            };
            match &**name {
                b"command" => known(&mut command, "command")?,
                b"webhook" => known(&mut webhook, "webhook")?,
                b"at" => known(&mut at, "at")?,
                b"delay" => known(&mut delay, "delay")?,
                b"cron" => known(&mut cron, "cron")?,
                b"tz" => known(&mut tz, "tz")?,
                b"id" => known(&mut id, "id")?,
                b"max_attempts" => known(&mut max_attempts, "max_attempts")?,
                b"reply_to" if reply_prefix.is_some() => known(&mut reply_to, "reply_to")?,
                b"traceparent" => known(&mut traceparent, TRACEPARENT)?,
                b"tracestate" => known(&mut tracestate, TRACESTATE)?,
                other => {
                    let name: String = String::from_utf8_lossy(other).chars().take(64).collect();
                    return Err(Invalid::field(name, "is not a field of a task"));
                }
            }
        }
        let work = match (command, webhook) {
            (Some(command), None) => {
                let command = Command::parse_object(&command).map_err(|error| Invalid::field("command", error))?;
                Work::Command(Box::new(command))
            }
            (None, Some(payload)) => {
                let payload = json::check_readable(&payload).and_then(|()| {
                    json::compact(&payload).map_err(Invalid::request).and_then(|json| {
                        RawValue::from_string(json).map_err(|error| Invalid::request(json::words(&error)))
                    })
                });
                Work::Webhook(payload.map_err(|error| Invalid::field("webhook", error.detail))?)
            }
            (None, None) => return Err(Invalid::field("command", "is missing (or webhook in its place)")),
            (Some(_), Some(_)) => return Err(Invalid::field("webhook", "comes in place of command, not beside it")),
        };
        let id = id.map(|id: String| id.parse::<TaskId>().map_err(|error| Invalid::field("id", error))).transpose()?;
        // Each of its ticks has an id made of it.
        if cron.is_some() && id.as_ref().is_some_and(|id| id.as_str().len() > MAX_CRON_ID) {
            return Err(Invalid::field("id", format_args!("takes at most {MAX_CRON_ID} bytes where there is a cron")));
        }
        let when = match (at, delay, cron) {
            (None, None, None) => When::Now,
            (Some(at), None, None) => When::At(time("at", &at)?),
            (None, Some(delay), None) => When::After(time("delay", &delay)?),
            (None, None, Some(_)) if id.is_none() => return Err(Invalid::field("id", "is missing: a cron needs one")),
            (None, None, Some(cron)) => When::Cron(Schedule::read(&cron, tz.as_deref())?),
            (Some(_), Some(_), _) => return Err(Invalid::field("delay", "comes in place of at, not beside it")),
            (_, _, Some(_)) => return Err(Invalid::field("cron", "does not go with at or delay")),
        };
        if tz.is_some() && !matches!(when, When::Cron(_)) {
            return Err(Invalid::field("tz", "goes with cron"));
        }
        let max_attempts = match max_attempts.map(|text| text.parse()) {
            None => ATTEMPTS,
            Some(Ok(attempts @ 1..=MAX_ATTEMPTS)) => attempts,
            Some(_) => {
                let takes = format_args!("takes a number from 1 to {MAX_ATTEMPTS}");
                return Err(Invalid::field("max_attempts", takes));
            }
        };
        if let (Some(key), Some(prefix)) = (&reply_to, reply_prefix)
            && !(key.starts_with(prefix) && key.len() > prefix.len())
        {
            return Err(Invalid::field("reply_to", format_args!("takes a key that begins with {prefix}")));
        }
        let trace = traceparent.and_then(|parent| Context::read(&parent, &tracestate.unwrap_or_default()));
        Ok(Self { work, when, id, max_attempts, reply_to, trace })
    }
}

fn time(field: &'static str, text: &str) -> Result<u64, Invalid> {
    let takes = || Invalid::field(field, format_args!("takes milliseconds, a whole number up to {LAST_TIME}"));
    text.parse().ok().filter(|time| *time <= LAST_TIME).ok_or_else(takes)
}

/// When something that comes after that time is due, at the latest when calendars end.
pub fn later(time: u64, delay: u64) -> u64 {
    time.saturating_add(delay).min(LAST_TIME)
}

impl From<AddTask> for Fields {
    fn from(add: AddTask) -> Self {
        let mut fields = Self::default();
        let compact = |json: &RawValue| json::compact(json.get()).unwrap_or_else(|_| json.get().to_owned());
        if let Some(command) = add.command {
            fields.push("command", compact(&command.0));
        }
        if let Some(payload) = add.webhook {
            fields.push("webhook", compact(&payload.0));
        }
        for (name, number) in [("at", add.at), ("delay", add.delay), ("max_attempts", add.max_attempts)] {
            if let Some(number) = number {
                fields.push(name, number.to_string());
            }
        }
        let id = add.id.map(|id| id.as_str().to_owned());
        for (name, text) in [("cron", add.cron), ("tz", add.tz), ("id", id)] {
            if let Some(text) = text {
                fields.push(name, text);
            }
        }
        fields
    }
}

/// When a cron runs.
#[derive(Clone)]
pub struct Schedule {
    cron: Box<Cron>,
    time_zone: TimeZone,
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cron.as_str())
    }
}

impl Schedule {
    /// Five fields, or six with seconds first; UTC where no time zone is named.
    pub fn read(cron: &str, time_zone: Option<&str>) -> Result<Self, Invalid> {
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(cron).map_err(|error| {
            Invalid::field("cron", format_args!("takes 5 fields, or 6 with seconds first: {error}"))
        })?;
        let time_zone = match time_zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name)
                .map_err(|_| Invalid::field("tz", "takes the name of a time zone, such as Europe/Berlin"))?,
        };
        let schedule = Self { cron: Box::new(cron), time_zone };
        // The thirtieth of February never comes; what comes at all comes within eight years.
        match schedule.next_after(0) {
            Some(_) => Ok(schedule),
            None => Err(Invalid::field("cron", "says a time that never comes")),
        }
    }

    /// The first time after this one, both unix ms.
    pub fn next_after(&self, time: u64) -> Option<u64> {
        let time = Timestamp::from_millisecond(i64::try_from(time).ok()?).ok()?.to_zoned(self.time_zone.clone());
        let next = self.cron.find_next_occurrence(&time, false).ok()?.timestamp().as_millisecond();
        u64::try_from(next).ok().filter(|next| *next <= LAST_TIME)
    }
}

/// How long to wait after so many attempts: a second, doubling up to ten minutes, give or take a quarter.
pub fn wait_after(attempts: u32) -> Duration {
    let wait = FIRST_WAIT.saturating_mul(1 << attempts.saturating_sub(1).min(20)).min(LONGEST_WAIT);
    // A few random bits are enough, and a UUID has them.
    wait * (75 + uuid::Uuid::new_v4().as_u128() as u32 % 51) / 100
}

/// A task in hand.
#[derive(Debug)]
pub struct Taken {
    /// The id it is known by.
    pub id: String,
    /// Which attempt this is; the first is 1.
    pub attempt: u32,
    /// What it is made of.
    pub fields: Fields,
    /// What that says.
    pub task: Task,
    /// Whether there is a record of it under its id.
    pub has_record: bool,
    /// Its entry in the stream.
    pub entry: String,
}

/// What came of an attempt.
#[derive(Debug)]
pub enum Ending {
    /// It is done, with this for an answer.
    Done(Bytes),
    /// It is not, and not tried again.
    Dead {
        /// Why.
        reason: String,
        /// Its answer.
        answer: Bytes,
    },
    /// It is tried again.
    Again {
        /// Why.
        reason: String,
        /// When.
        after: Duration,
    },
}

impl Ending {
    /// Bytes that are to be written of it.
    pub fn length(&self) -> usize {
        match self {
            Self::Done(answer) => answer.len(),
            Self::Dead { reason, answer } => reason.len() + answer.len(),
            Self::Again { reason, .. } => reason.len(),
        }
    }
}

/// What becomes of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is not tried yet, or not again.
    Waiting,
    /// A node has it in hand.
    Running,
    /// It was carried out.
    Done,
    /// It was given up, and is among the dead letters.
    Dead,
}

/// A task as `getTask` and `listTasks` show it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = Task)]
pub struct View {
    /// The id it is known by.
    pub id: String,
    /// What became of it.
    pub state: State,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is due, unix ms; null where that is now, or over.
    #[schema(required = true)]
    pub next_at: Option<u64>,
    /// Why the last attempt failed.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its fields.
    #[schema(value_type = Object)]
    pub task: Shown,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        Fields(
            pairs.iter().map(|(name, value)| (Bytes::from((*name).to_owned()), (*value).to_owned().into())).collect(),
        )
    }

    fn read(pairs: &[(&str, &str)]) -> Result<Task, Invalid> {
        Task::read(&fields(pairs), Some("mg:reply:"))
    }

    const SEND: (&str, &str) = ("command", r#"{"op":"sendToAll","message":"x"}"#);

    #[test]
    fn what_is_wrong_with_a_task_is_said_of_the_field() {
        for (pairs, field) in [
            (&[][..], "command"),
            (&[SEND, ("webhook", "1")], "webhook"),
            (&[("command", "{")], "command"),
            (&[("command", r#"{"op":"nope"}"#)], "command"),
            (&[("webhook", "{1}")], "webhook"),
            (&[("webhook", r#""\ud800""#)], "webhook"),
            (&[SEND, SEND], "command"),
            (&[SEND, ("task", "x")], "task"),
            (&[SEND, ("at", "-1")], "at"),
            (&[SEND, ("at", "999999999999999")], "at"),
            (&[SEND, ("delay", "1.5")], "delay"),
            (&[SEND, ("at", "1"), ("delay", "1")], "delay"),
            (&[SEND, ("id", "x"), ("delay", "1"), ("cron", "* * * * *")], "cron"),
            (&[SEND, ("cron", "* * * * *")], "id"),
            (&[SEND, ("id", "x"), ("cron", "* * *")], "cron"),
            (&[SEND, ("id", "x"), ("cron", "* * * * * * 2030")], "cron"),
            (&[SEND, ("id", "x"), ("cron", "0 0 30 2 *")], "cron"),
            (&[SEND, ("id", "x"), ("cron", "* * * * *"), ("tz", "Mars")], "tz"),
            (&[SEND, ("tz", "UTC")], "tz"),
            (&[SEND, ("id", "")], "id"),
            (&[SEND, ("max_attempts", "0")], "max_attempts"),
            (&[SEND, ("max_attempts", "1001")], "max_attempts"),
            (&[SEND, ("reply_to", "mg:reply:")], "reply_to"),
            (&[SEND, ("reply_to", "mg:uid:1:clients")], "reply_to"),
        ] {
            assert_eq!(read(pairs).unwrap_err().field.as_deref(), Some(field), "{pairs:?}");
        }
        let task = read(&[SEND, ("reply_to", "mg:reply:1"), ("id", "42"), ("delay", "10")]).unwrap();
        assert!(matches!(task.when, When::After(10)));
        assert_eq!((task.max_attempts, task.id.unwrap().as_str()), (5, "42"));
        assert!(Task::read(&fields(&[SEND, ("reply_to", "mg:reply:1")]), None).is_err());
        assert!(
            matches!(read(&[("webhook", "null")]).unwrap().work, Work::Webhook(payload) if payload.get() == "null")
        );
    }

    fn next(cron: &str, time_zone: &str, after: &str) -> String {
        let after: Timestamp = after.parse().unwrap();
        let after = u64::try_from(after.as_millisecond()).unwrap();
        let next = Schedule::read(cron, Some(time_zone)).unwrap().next_after(after).unwrap();
        Timestamp::from_millisecond(next.try_into().unwrap()).unwrap().to_string()
    }

    #[test]
    fn a_cron_says_its_next_time_in_its_time_zone_also_when_clocks_change() {
        for (cron, time_zone, after, expected) in [
            ("*/5 * * * *", "UTC", "2026-11-20T10:00:00Z", "2026-11-20T10:05:00Z"),
            ("*/5 * * * * *", "UTC", "2026-11-20T10:00:00.001Z", "2026-11-20T10:00:05Z"),
            ("0 9 * * MON", "Asia/Shanghai", "2026-11-20T10:00:00Z", "2026-11-23T01:00:00Z"),
            // 02:30 does not come on that day.
            ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"),
            // It comes twice on that day, and counts once.
            ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
            ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
            ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ] {
            assert_eq!(next(cron, time_zone, after), expected, "{cron} {time_zone} {after}");
        }
    }

    #[test]
    fn waits_double_from_a_second_to_ten_minutes() {
        for (attempts, wait) in [(1, 1.0), (2, 2.0), (5, 16.0), (11, 600.0), (1000, 600.0)] {
            for _ in 0..20 {
                let waits = wait_after(attempts).as_secs_f64();
                assert!((wait * 0.75..=wait * 1.25).contains(&waits), "{attempts}: {waits}");
            }
        }
    }

    #[test]
    fn a_task_is_shown_as_an_object_with_its_json() {
        let mut shown = fields(&[("command", r#"{ "op": "x" }"#), ("at", "12"), ("id", "7"), ("webhook", "{")]);
        shown.0.push((Bytes::from_static(b"\xff"), Bytes::from_static(b"\xff")));
        let json = serde_json::to_string(&shown.shown()).unwrap();
        assert_eq!(json, r#"{"command":{"op":"x"},"at":12,"id":"7","webhook":"{","�":{"$binary":"/w=="}}"#);
        let tick = fields(&[SEND, ("cron", "* * * * *"), ("tz", "UTC"), ("id", "x"), ("max_attempts", "2")]).of_tick(7);
        assert_eq!(tick, fields(&[SEND, ("max_attempts", "2"), ("id", "x@7")]));
    }

    proptest! {
        #[test]
        fn fields_are_read_back_as_they_were_and_never_panic(
            pairs in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..8), prop::collection::vec(any::<u8>(), 0..8)), 0..5),
        ) {
            let fields = Fields(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect());
            prop_assert_eq!(Fields::read(&fields.write()), fields.clone());
            prop_assert!(serde_json::to_string(&fields.shown()).is_ok());
            drop(Task::read(&fields, Some("mg:reply:")));
        }

        #[test]
        fn garbage_in_a_cron_is_an_error_and_not_a_panic(cron in "[0-9*/,LW#?A-Z@ -]{0,20}", time_zone in ".{0,10}") {
            drop(Schedule::read(&cron, Some(&time_zone)));
            if let Ok(schedule) = Schedule::read(&cron, None) {
                prop_assert!(schedule.next_after(1_800_000_000_000).is_none_or(|next| next > 1_800_000_000_000));
            }
        }
    }
}
