//! One request to `WEBHOOK_URL`: signed, bounded in time and size, its answer read.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, USER_AGENT};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::time::timeout;

use crate::command::Value;
use crate::config::WebhookConfig;
use crate::trace::otlp::SpanKind;
use crate::trace::{Context, Span, TRACEPARENT, TRACESTATE, Tracer};

/// What an answer may take, but for that to `connect`, which has its own setting.
pub const ANSWER: Duration = Duration::from_secs(10);

/// The largest answer; a thousand commands fit.
const MAX_ANSWER: usize = 1 << 20;

/// Calls the application.
pub struct Caller {
    client: Client,
    url: SecretString,
    /// Of the URL, what spans may say.
    host: String,
    port: u64,
    key: Option<hmac::Key>,
    tracer: Tracer,
}

/// It took what it was told, and wants these commands run.
#[derive(Debug, Default)]
pub struct Accepted {
    /// Each as in a batch.
    pub commands: Vec<Value>,
    /// The step of a trace in which it was called, if there is one.
    pub trace: Option<Context>,
}

/// It did not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody is there.
    #[error("out of reach: {0}")]
    Unreachable(String),
    /// Nobody has answered, or not in time; it may have been heard all the same.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// It has answered with this status.
    #[error("the webhook answered {0}")]
    Status(u16),
}

impl Refused {
    /// Whether somebody has answered.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Status(_))
    }

    /// Whether another attempt may go better.
    pub fn may_be_tried_again(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::NoAnswer(_) => true,
            Self::Status(status) => matches!(status, 408 | 429 | 500..),
        }
    }
}

#[derive(Default, Deserialize)]
struct Answer {
    #[serde(default)]
    commands: Vec<Value>,
}

impl Caller {
    /// For the settings' URL.
    pub fn new(config: &WebhookConfig, tracer: Tracer) -> Result<Arc<Self>, reqwest::Error> {
        let client = Client::builder().redirect(Policy::none()).no_proxy().connect_timeout(ANSWER / 2).build()?;
        let key =
            config.secret.as_ref().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes()));
        // It was checked.
        let url = reqwest::Url::parse(config.url.expose_secret()).ok();
        let host = url.as_ref().and_then(reqwest::Url::host_str).unwrap_or_default().to_owned();
        let port = url.and_then(|url| url.port_or_known_default()).unwrap_or_default().into();
        Ok(Arc::new(Self { client, url: config.url.clone(), host, port, key, tracer }))
    }

    /// Posts an event's JSON body.
    pub async fn call(
        &self,
        event: &'static str,
        body: Bytes,
        within: Duration,
        parent: Option<&Context>,
    ) -> Result<Accepted, Refused> {
        let mut span = self.begins(event, parent);
        let answered = timeout(within, self.post(body, span.as_mut())).await;
        let mut answered =
            answered.unwrap_or_else(|_| Err(Refused::NoAnswer(format!("within {} s", within.as_secs_f32()))));
        if let Some(span) = &mut span {
            match &mut answered {
                Ok(accepted) => accepted.trace = Some(span.context().clone()),
                Err(Refused::Status(status)) => span.fail(&status.to_string()),
                Err(Refused::Unreachable(_)) => span.fail("unreachable"),
                Err(Refused::NoAnswer(_)) => span.fail("no_answer"),
            }
        }
        answered
    }

    /// The span of a call; of the URL it says no more than where it leads.
    fn begins(&self, event: &'static str, parent: Option<&Context>) -> Option<Span> {
        let mut span = self.tracer.begin(SpanKind::Client, format_args!("POST"), parent)?;
        span.set("http.request.method", "POST");
        span.set("server.address", self.host.as_str());
        span.set("server.port", self.port);
        span.set("moongate.event", event);
        Some(span)
    }

    async fn post(&self, body: Bytes, span: Option<&mut Span>) -> Result<Accepted, Refused> {
        let mut request = self
            .client
            .post(self.url.expose_secret())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("moongate/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = &self.key {
            request = request.header("Moongate-Signature", sign(key, jiff::Timestamp::now().as_second(), &body));
        }
        if let Some(trace) = span.as_ref().map(|span| span.context()) {
            request = request.header(TRACEPARENT, trace.traceparent());
            if !trace.tracestate().is_empty() {
                request = request.header(TRACESTATE, trace.tracestate());
            }
        }
        let response = request.body(body).send().await.map_err(|error| no_answer(&error))?;
        let status = response.status();
        if let Some(span) = span {
            span.set("http.response.status_code", u64::from(status.as_u16()));
        }
        if !status.is_success() {
            return Err(Refused::Status(status.as_u16()));
        }
        Ok(read(response, status).await)
    }
}

/// It is accepted whatever stands in the answer.
async fn read(mut response: Response, status: StatusCode) -> Accepted {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= MAX_ANSWER => body.extend_from_slice(&chunk),
            Ok(Some(_)) => {
                tracing::warn!(%status, "the webhook's answer is larger than {MAX_ANSWER} bytes: not read");
                return Accepted::default();
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(error = %error.without_url(), "the webhook's answer did not arrive whole");
                return Accepted::default();
            }
        }
    }
    accepted(&body)
}

/// Many receivers answer "ok" or an empty page: only an object can hold commands.
pub(crate) fn accepted(body: &[u8]) -> Accepted {
    if !body.trim_ascii().starts_with(b"{") {
        return Accepted::default();
    }
    match serde_json::from_slice(body) {
        Ok(Answer { commands }) => Accepted { commands, trace: None },
        Err(error) => {
            tracing::warn!(%error, "the webhook's answer cannot be read");
            Accepted::default()
        }
    }
}

/// As Stripe and others do: the time is part of what is signed, so that a receiver can refuse what is repeated late.
fn sign(key: &hmac::Key, time: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{time}.").as_bytes());
    context.update(body);
    let mut signature = format!("t={time},v1=");
    for byte in context.sign().as_ref() {
        // Writing to a string cannot fail.
        write!(signature, "{byte:02x}").ok();
    }
    signature
}

fn no_answer(error: &reqwest::Error) -> Refused {
    // The innermost says most, and knows nothing of the URL, which may hold a password.
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let words = cause.to_string();
    if error.is_connect() { Refused::Unreachable(words) } else { Refused::NoAnswer(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_hmac_sha_256_of_time_dot_body() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        // printf '1763640000.{"a":1}' | openssl dgst -sha256 -hmac secret
        assert_eq!(
            sign(&key, 1_763_640_000, br#"{"a":1}"#),
            "t=1763640000,v1=1f9119796218af5bbae9fc70512ac018fe43dd9e73805e4bc1885ef3a7d16da5"
        );
    }

    #[test]
    fn only_what_may_go_better_is_tried_again() {
        for (status, again) in
            [(400, false), (404, false), (408, true), (410, false), (429, true), (500, true), (503, true)]
        {
            assert_eq!(Refused::Status(status).may_be_tried_again(), again, "{status}");
        }
    }
}
