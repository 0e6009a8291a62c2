//! Traces: the way of a command through the nodes, for a collector of `OpenTelemetry`'s.
//!
//! A step is a [`Span`]: a request to the API, an attempt of a task, a call of the webhook, and on each node what it
//! delivers. A trace comes from whoever asks (W3C's `traceparent`); whether it is followed, and whether one begins here,
//! the [`Sampler`] says. What is not sampled leaves nothing, and is not carried on. A delivery belongs to the send that it
//! is part of, and begins no trace: what any program publishes costs nothing. Where traces are off, which is usual, no clock
//! is read and nothing is allocated.
//!
//! No uid, group, client id, token or message is ever in a span.
//!
//! `OpenTelemetry`'s own crates (0.33) are not used. They read twenty variables of the environment past [`crate::config`],
//! and pass over what is wrong there; what they drop, and what a collector refuses, is a line in a log and cannot be
//! counted; of an export that failed they do not tell whether to repeat it; and their interfaces change with each release.
//! What is left of them to use, W3C's two headers, a sampler and a request once a second, is this room.

pub mod otlp;

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use otlp::{AnyValue, KeyValue, SpanKind, Status};

/// The names of W3C's headers, and of a task's fields.
pub const TRACEPARENT: &str = "traceparent";
/// See [`TRACEPARENT`].
pub const TRACESTATE: &str = "tracestate";

/// What of a `tracestate` is passed on, bytes: as much as W3C asks for.
const MAX_STATE: usize = 512;

/// The place in a trace at which something is done: W3C Trace Context, level 1. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Words", try_from = "Words")]
pub struct Context(Arc<Place>);

#[derive(Debug, PartialEq, Eq)]
struct Place {
    trace: u128,
    span: u64,
    is_sampled: bool,
    /// What the systems on the way have noted.
    state: String,
}

/// As nodes tell each other.
#[derive(Serialize, Deserialize)]
struct Words {
    traceparent: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    tracestate: String,
}

impl From<Context> for Words {
    fn from(context: Context) -> Self {
        Self { traceparent: context.traceparent(), tracestate: context.tracestate().to_owned() }
    }
}

impl TryFrom<Words> for Context {
    type Error = &'static str;

    fn try_from(words: Words) -> Result<Self, Self::Error> {
        Self::read(&words.traceparent, &words.tracestate).ok_or("is no traceparent")
    }
}

impl Context {
    /// Reads the two headers; none where the first says nothing. What is wrong is as if it were not there, as W3C has it: it
    /// comes from whoever is before the caller, too.
    pub fn read(traceparent: &str, tracestate: &str) -> Option<Self> {
        let mut parts = traceparent.trim().split('-');
        let mut number = |digits| hexadecimal(parts.next()?, digits);
        let (version, trace, span, flags) = (number(2)?, number(32)?, number(16)?, number(2)?);
        // Of later versions more may follow.
        let is_known = if version == 0 { parts.next().is_none() } else { version < 0xff };
        if !is_known || trace == 0 || span == 0 {
            return None;
        }
        let state = tracestate.trim();
        let passes = state.len() <= MAX_STATE && state.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        let state = if passes { state.to_owned() } else { String::new() };
        Some(Self(Arc::new(Place { trace, span: span as u64, is_sampled: flags & 1 == 1, state })))
    }

    /// What a request says of it.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
        let states: Vec<&str> = headers.get_all(TRACESTATE).iter().filter_map(|state| state.to_str().ok()).collect();
        Self::read(parent.to_str().ok()?, &states.join(","))
    }

    /// As the header says it.
    pub fn traceparent(&self) -> String {
        let Place { trace, span, is_sampled, .. } = &*self.0;
        format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(*is_sampled))
    }

    /// As the header says it; empty: there is none.
    pub fn tracestate(&self) -> &str {
        &self.0.state
    }
}

/// A number of so many lower-case digits.
fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let fits = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(text, 16).ok().filter(|_| fits)
}

/// Which traces are followed: one of `OpenTelemetry`'s standard samplers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// What the caller says counts, if it says anything.
    asks_the_caller: bool,
    /// Of 2⁶³ trace ids so many. The same on all nodes, so that a trace is whole.
    share: u64,
}

impl Sampler {
    /// The names that there are.
    pub const NAMES: &str = "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio";

    /// The sampler of this name. `ratio` is for those that take one.
    #[allow(clippy::cast_sign_loss)] // a ratio below zero is none
    pub fn named(name: &str, ratio: f64) -> Option<Self> {
        let (asks_the_caller, root) = name.strip_prefix("parentbased_").map_or((false, name), |root| (true, root));
        let share = match root {
            "always_on" => 1 << 63,
            "always_off" => 0,
            "traceidratio" => (ratio.min(1.0) * (1_u64 << 63) as f64) as u64,
            _ => return None,
        };
        Some(Self { asks_the_caller, share })
    }

    fn takes(self, parent: Option<&Context>, trace: u128) -> bool {
        match parent {
            Some(parent) if self.asks_the_caller => parent.0.is_sampled,
            // As its other implementations do: the lower half, which W3C wants to be random.
            _ => (trace as u64 >> 1) < self.share,
        }
    }
}

/// Begins spans; usually none. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inside>>);

struct Inside {
    sampler: Sampler,
    /// Where ended spans go.
    ended: mpsc::Sender<otlp::Span>,
    /// Those for which there was no room.
    dropped: Counter,
}

impl Tracer {
    fn new(sampler: Sampler, ended: mpsc::Sender<otlp::Span>, dropped: Counter) -> Self {
        Self(Some(Arc::new(Inside { sampler, ended, dropped })))
    }

    /// The place in a trace that a request names, where that is of use.
    pub fn parent(&self, headers: &HeaderMap) -> Option<Context> {
        self.0.as_ref().and_then(|_| Context::of(headers))
    }

    /// Begins a span, if it is sampled; it ends when it is dropped. Without a parent it is the first of its trace.
    pub fn begin(&self, kind: SpanKind, name: fmt::Arguments<'_>, parent: Option<&Context>) -> Option<Span> {
        let inside = self.0.as_ref()?;
        if parent.is_none() && inside.sampler.share == 0 {
            return None;
        }
        let trace = parent.map_or_else(|| random().map(u128::from_be_bytes), |parent| Some(parent.0.trace))?;
        if !inside.sampler.takes(parent, trace) {
            return None;
        }
        let span = u64::from_be_bytes(random()?);
        let state = parent.map(|parent| parent.0.state.clone()).unwrap_or_default();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = otlp::Span {
            trace_id: trace.to_be_bytes().to_vec(),
            span_id: span.to_be_bytes().to_vec(),
            trace_state: state.clone(),
            parent_span_id: parent.map(|parent| parent.0.span.to_be_bytes().to_vec()).unwrap_or_default(),
            name: name.to_string(),
            kind: kind.into(),
            start_time_unix_nano: since_1970.as_nanos() as u64,
            flags: 1,
            ..otlp::Span::default()
        };
        let context = Context(Arc::new(Place { trace, span, is_sampled: true, state }));
        Some(Span { inside: Arc::clone(inside), context, began: Instant::now(), record: Box::new(record) })
    }
}

/// Random bytes; none where there are none, and then there is no span.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).ok().map(|()| bytes)
}

/// One step of a trace, which ends when this is dropped.
pub struct Span {
    inside: Arc<Inside>,
    context: Context,
    began: Instant,
    /// Apart, as this is in the futures of commands that have none.
    record: Box<otlp::Span>,
}

impl Span {
    /// What belongs to this step has this for a parent.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Notes something, by a name of `OpenTelemetry`'s semantic conventions, or one that begins with `moongate.`.
    pub fn set(&mut self, key: &'static str, value: impl Into<AnyValue>) {
        self.record.attributes.push(KeyValue::new(key, value));
    }

    /// The step came to nothing: the kind of error, of which there are few.
    pub fn fail(&mut self, error: &str) {
        self.set("error.type", error);
        self.record.status = Some(Status::ERROR);
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let mut record = std::mem::take(&mut *self.record);
        record.end_time_unix_nano = record.start_time_unix_nano + self.began.elapsed().as_nanos() as u64;
        if self.inside.ended.try_send(record).is_err() {
            self.inside.dropped.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn sampler(name: &str, ratio: f64) -> Sampler {
        Sampler::named(name, ratio).unwrap()
    }

    #[test]
    fn a_traceparent_is_read_as_w3c_has_it() {
        let context = Context::read(PARENT, " a=1,b=2 ").unwrap();
        assert_eq!((context.traceparent().as_str(), context.tracestate()), (PARENT, "a=1,b=2"));
        assert!(context.0.is_sampled);
        // A later version may say more, and other flags mean nothing here.
        for (text, is_sampled) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-is-next", true),
        ] {
            assert_eq!(Context::read(text, "").map(|context| context.0.is_sampled), Some(is_sampled), "{text}");
        }
        for text in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        ] {
            assert_eq!(Context::read(text, ""), None, "{text}");
        }
        let long = "x".repeat(MAX_STATE + 1);
        for state in [long.as_str(), "a=\u{e4}", "a=\n1"] {
            assert_eq!(Context::read(PARENT, state).unwrap().tracestate(), "");
        }
    }

    #[test]
    fn two_traceparents_are_none_and_two_tracestates_are_one() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            Context::of(&headers)
        };
        let context = headers(&[(TRACEPARENT, PARENT), (TRACESTATE, "a=1"), (TRACESTATE, "b=2")]).unwrap();
        assert_eq!(context, Context::read(PARENT, "a=1,b=2").unwrap());
        assert_eq!(headers(&[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)]), None);
        assert_eq!(headers(&[(TRACESTATE, "a=1")]), None);
    }

    #[test]
    fn nodes_tell_each_other_the_two_headers() {
        for (state, json) in [("", ""), ("a=1", r#","tracestate":"a=1""#)] {
            let context = Context::read(PARENT, state).unwrap();
            let written = serde_json::to_string(&context).unwrap();
            assert_eq!(written, format!(r#"{{"traceparent":"{PARENT}"{json}}}"#));
            assert_eq!(serde_json::from_str::<Context>(&written).unwrap(), context);
        }
        assert!(serde_json::from_str::<Context>(r#"{"traceparent":"x"}"#).is_err());
    }

    #[test]
    fn samplers_do_what_their_names_say() {
        let sampled = Context::read(PARENT, "").unwrap();
        let unsampled = Context::read(&PARENT.replace("-01", "-00"), "").unwrap();
        for (name, root, of_sampled, of_unsampled) in [
            ("always_on", true, true, true),
            ("always_off", false, false, false),
            ("parentbased_always_on", true, true, false),
            ("parentbased_always_off", false, true, false),
        ] {
            let sampler = sampler(name, 0.5);
            let takes = |parent: Option<&Context>| sampler.takes(parent, 7);
            assert_eq!((takes(None), takes(Some(&sampled)), takes(Some(&unsampled))), (root, of_sampled, of_unsampled));
        }
        assert_eq!(Sampler::named("jaeger_remote", 1.0), None);
        assert_eq!(Sampler::named("parentbased_", 1.0), None);
    }

    #[test]
    fn a_ratio_takes_about_so_many_and_all_nodes_the_same() {
        for ratio in [0.0, 0.1, 0.5, 1.0] {
            let sampler = sampler("parentbased_traceidratio", ratio);
            let takes = |trace: u128| sampler.takes(None, trace);
            let traces: Vec<u128> = (0..10_000).map(|_| u128::from_be_bytes(random().unwrap())).collect();
            let taken = traces.iter().filter(|trace| takes(**trace)).count() as f64 / 10_000.0;
            // Far beyond five standard deviations.
            assert!((taken - ratio).abs() < 0.03, "{taken} of {ratio}");
        }
        assert!(sampler("traceidratio", 1.0).takes(None, u128::MAX));
        assert!(!sampler("traceidratio", 0.0).takes(None, 0));
    }

    #[test]
    fn spans_end_in_the_queue_and_are_counted_where_it_is_full() {
        let (ended, mut spans) = mpsc::channel(1);
        let dropped = Counter::default();
        let tracer = Tracer::new(sampler("parentbased_always_off", 1.0), ended, dropped.clone());
        let parent = Context::read(PARENT, "a=1").unwrap();
        assert!(tracer.begin(SpanKind::Server, format_args!("x"), None).is_none());
        let mut span = tracer.begin(SpanKind::Server, format_args!("POST {}", "/"), Some(&parent)).unwrap();
        span.set("moongate.op", "sendToUid");
        span.fail("redis_unavailable");
        let child = tracer.begin(SpanKind::Consumer, format_args!("deliver"), Some(span.context())).unwrap();
        assert_ne!(child.context(), span.context());
        drop((span, child));
        let span = spans.try_recv().unwrap();
        assert_eq!((span.name.as_str(), span.kind, span.trace_state.as_str()), ("POST /", 2, "a=1"));
        assert_eq!(span.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 1 << 60);
        let attributes = [KeyValue::new("moongate.op", "sendToUid"), KeyValue::new("error.type", "redis_unavailable")];
        assert_eq!((&span.attributes[..], span.status), (&attributes[..], Some(Status::ERROR)));
        assert_eq!(dropped.get(), 1);
        assert!(Tracer::default().begin(SpanKind::Server, format_args!("x"), Some(&parent)).is_none());
    }

    proptest! {
        #[test]
        fn any_header_is_a_context_or_none(parent in "[0-9a-fF-]{0,60}|.{0,60}", state in ".{0,600}") {
            if let Some(context) = Context::read(&parent, &state) {
                prop_assert_eq!(Context::read(&context.traceparent(), context.tracestate()), Some(context));
            }
        }
    }
}
