//! What is said to the collector, and how: OTLP over HTTP, in Protocol Buffers.
//!
//! Spans wait in a bounded queue and go out once a second, or when 512 are there. What the collector cannot take now is
//! kept and tried again; meanwhile the queue fills, and what finds no room is dropped and counted. Nobody waits for any of
//! it but the end of the node, for 2 s at most.
//!
//! The messages are those of `opentelemetry/proto/trace/v1`, without the fields that nobody fills here; they are stable.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use reqwest::header::{CONTENT_TYPE, HeaderMap, USER_AGENT};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Tracer;
use crate::config::TracesConfig;
use crate::metrics::{Metrics, Reason};

/// Spans that wait; a few MB.
const QUEUE: usize = 8192;

/// Spans in one request.
const LOT: usize = 512;

/// The first of a lot waits so long for others.
const COMPANY: Duration = Duration::from_secs(1);

/// What the collector may take for an answer, as `OpenTelemetry` has it.
const ANSWER: Duration = Duration::from_secs(10);

/// The largest answer that is read.
const MAX_ANSWER: usize = 64 << 10;

/// The shortest and the longest wait before another attempt.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What trouble with the collector is said of in the log.
const COMPLAINT: Duration = Duration::from_mins(1);

/// What is left at the node's end has so long to go out.
const LAST: Duration = Duration::from_secs(2);

/// `ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// By where they come from.
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

/// Spans of one process.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

/// A process.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

/// Spans by one library.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

/// `InstrumentationScope`.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct Scope {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

/// One step of a trace.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    pub parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub name: String,
    #[prost(enumeration = "SpanKind", tag = "6")]
    pub kind: i32,
    #[prost(fixed64, tag = "7")]
    pub start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    pub status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    pub flags: u32,
}

/// Which side of what a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum SpanKind {
    /// Not said.
    Unspecified = 0,
    /// Of a request: it is answered.
    Server = 2,
    /// Of a request: it is made.
    Client = 3,
    /// Of a message: it is taken.
    Consumer = 5,
}

/// How a step ended.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct Status {
    #[prost(int32, tag = "3")]
    pub code: i32,
}

impl Status {
    /// It came to nothing.
    pub const ERROR: Self = Self { code: 2 };
}

/// Something that is noted.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

impl KeyValue {
    /// A name and its value.
    pub fn new(key: impl Into<String>, value: impl Into<AnyValue>) -> Self {
        Self { key: key.into(), value: Some(value.into()) }
    }
}

/// A text or a number.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    pub value: Option<Value>,
}

/// One of what a value can be.
#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(missing_docs)]
pub enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

impl From<&str> for AnyValue {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for AnyValue {
    fn from(text: String) -> Self {
        Self { value: Some(Value::Text(text)) }
    }
}

impl From<u64> for AnyValue {
    fn from(number: u64) -> Self {
        Self { value: Some(Value::Number(i64::try_from(number).unwrap_or(i64::MAX))) }
    }
}

/// `ExportTraceServiceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// Takes what has ended to the collector.
pub struct Exporter {
    client: Client,
    url: SecretString,
    headers: HeaderMap,
    resource: Vec<KeyValue>,
    ended: mpsc::Receiver<Span>,
    /// What is being said; kept until it is taken or refused.
    lot: Vec<Span>,
    /// When trouble was last said, if there is any.
    complained: Option<Instant>,
    metrics: Arc<Metrics>,
}

impl Exporter {
    /// Where the settings say, and what begins the spans.
    pub fn new(config: &TracesConfig, metrics: &Arc<Metrics>) -> Result<(Tracer, Self), reqwest::Error> {
        let client = Client::builder().redirect(Policy::none()).no_proxy().connect_timeout(ANSWER / 2).build()?;
        let (ended, spans) = mpsc::channel(QUEUE);
        let tracer = Tracer::new(config.sampler, ended, dropped(metrics, "full"));
        let exporter = Self {
            client,
            url: config.url.clone(),
            headers: config.headers.clone(),
            resource: config.resource.iter().map(|(key, value)| KeyValue::new(key, value.as_str())).collect(),
            ended: spans,
            lot: Vec::new(),
            complained: None,
            metrics: Arc::clone(metrics),
        };
        Ok((tracer, exporter))
    }

    /// Exports until `stop`, and then what is left. `node` is this node's name.
    pub async fn run(mut self, node: impl Fn() -> String + Send + Sync, stop: CancellationToken) {
        stop.run_until_cancelled(self.go_on(&node)).await;
        drop(timeout(LAST, self.finish(&node)).await);
        let left = self.lot.len() + self.ended.len();
        dropped(&self.metrics, "stopped").inc_by(left as u64);
    }

    async fn go_on(&mut self, node: &impl Fn() -> String) {
        while self.gather().await {
            let mut wait = WAITS.0;
            while let Err(why) = self.say(&node()).await {
                self.complain(&why);
                sleep(wait).await;
                wait = (wait * 2).min(WAITS.1);
            }
        }
    }

    /// Waits for a lot; false when there is none and comes none.
    async fn gather(&mut self) -> bool {
        if self.ended.recv_many(&mut self.lot, LOT).await == 0 {
            return false;
        }
        let due = Instant::now() + COMPANY;
        while let room @ 1.. = LOT - self.lot.len() {
            match timeout_at(due, self.ended.recv_many(&mut self.lot, room)).await {
                Ok(come) if come > 0 => {}
                _ => break,
            }
        }
        true
    }

    /// What is left, each lot once.
    async fn finish(&mut self, node: &impl Fn() -> String) {
        self.ended.close();
        loop {
            while self.lot.len() < LOT
                && let Ok(span) = self.ended.try_recv()
            {
                self.lot.push(span);
            }
            if self.lot.is_empty() || self.say(&node()).await.is_err() {
                return;
            }
        }
    }

    /// Says a lot. An error is why it is to be said again.
    async fn say(&mut self, node: &str) -> Result<(), String> {
        let body = request(node, &self.resource, &self.lot);
        let request = self
            .client
            .post(self.url.expose_secret())
            .headers(self.headers.clone())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(USER_AGENT, concat!("moongate/", env!("CARGO_PKG_VERSION")))
            .timeout(ANSWER)
            .body(body);
        let response = request.send().await.map_err(|error| cause(&error))?;
        let status = response.status();
        if matches!(status.as_u16(), 429 | 502 | 503 | 504) {
            return Err(format!("it answered {status}"));
        }
        let spans = std::mem::take(&mut self.lot).len() as u64;
        let (refused, why) = if status.is_success() { rejected(response).await } else { (spans, status_words(status)) };
        let refused = refused.min(spans);
        self.metrics.spans_exported.inc_by(spans - refused);
        if refused > 0 {
            dropped(&self.metrics, "refused").inc_by(refused);
            self.complain(&why);
        } else if self.complained.take().is_some() {
            tracing::info!("the collector of traces takes spans again");
        }
        Ok(())
    }

    fn complain(&mut self, why: &str) {
        if self.complained.is_none_or(|last| last.elapsed() >= COMPLAINT) {
            self.complained = Some(Instant::now());
            tracing::warn!(%why, "the collector does not take spans: traces have gaps (said once a minute)");
        }
    }
}

fn dropped(metrics: &Metrics, reason: &'static str) -> Counter {
    metrics.spans_dropped.get_or_create_owned(&Reason { reason })
}

/// Spans as the collector takes them.
fn request(node: &str, resource: &[KeyValue], spans: &[Span]) -> Vec<u8> {
    let own = [KeyValue::new("service.version", env!("CARGO_PKG_VERSION")), KeyValue::new("service.instance.id", node)];
    // What is set counts.
    let own = own.into_iter().filter(|own| resource.iter().all(|set| set.key != own.key));
    let resource = Resource { attributes: resource.iter().cloned().chain(own).collect() };
    let scope = Scope { name: "moongate".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans: spans.to_vec() }];
    Request { resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans }] }.encode_to_vec()
}

/// How many spans it took the request but not for, and why.
async fn rejected(mut response: Response) -> (u64, String) {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await
        && body.len() + chunk.len() <= MAX_ANSWER
    {
        body.extend_from_slice(&chunk);
    }
    // Some answer with nothing, or with JSON: it took them all the same.
    let partial = Answer::decode(&*body).ok().and_then(|answer| answer.partial_success).unwrap_or_default();
    (u64::try_from(partial.rejected_spans).unwrap_or_default(), partial.error_message)
}

fn status_words(status: StatusCode) -> String {
    format!("it answered {status}; OTEL_EXPORTER_OTLP_ENDPOINT takes a collector of OTLP over HTTP")
}

/// The innermost says most, and knows nothing of the URL, which may hold a password.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} s", ANSWER.as_secs());
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the crate `opentelemetry-proto` 0.33 has written them.
    const REQUEST: &str = "0ad3010a1c0a1a0a0c736572766963652e6e616d65120a0a086d6f6f6e6761746512b2010a110a086d6f6f6e676174651205302e312e30129c010a100102030405060708090a0b0c0d0e0f10120801020304050607081a03613d3122080b0c0d0e0f1011122a13504f5354202f6170692f73656e64546f5569643002390180ab5f3cb57918410280ab5f3cb579184a1a0a0b6d6f6f6e676174652e6f70120b0a0973656e64546f5569644a200a19687474702e726573706f6e73652e7374617475735f636f6465120318f7037a021802850101000000";
    const ANSWER: &str = "0a0b08031207746f6f206f6c64";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn messages_are_those_of_opentelemetry() {
        let span = Span {
            trace_id: (1..=16).collect(),
            span_id: (1..=8).collect(),
            trace_state: "a=1".to_owned(),
            parent_span_id: (11..=18).collect(),
            name: "POST /api/sendToUid".to_owned(),
            kind: SpanKind::Server.into(),
            start_time_unix_nano: 1_763_640_000_000_000_001,
            end_time_unix_nano: 1_763_640_000_000_000_002,
            attributes: vec![
                KeyValue::new("moongate.op", "sendToUid"),
                KeyValue::new("http.response.status_code", 503_u64),
            ],
            status: Some(Status::ERROR),
            flags: 1,
        };
        let scope = Scope { name: "moongate".to_owned(), version: "0.1.0".to_owned() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans: vec![span] }];
        let resource = Resource { attributes: vec![KeyValue::new("service.name", "moongate")] };
        let request = Request { resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans }] };
        assert_eq!(request.encode_to_vec(), bytes(REQUEST));
        let partial = PartialSuccess { rejected_spans: 3, error_message: "too old".to_owned() };
        assert_eq!(Answer::decode(&*bytes(ANSWER)).unwrap().partial_success, Some(partial));
    }
}
