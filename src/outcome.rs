//! What came of a command, in the words of the doors that speak JSON: HTTP, and queued tasks, whose `reply_to` gets the
//! very body that HTTP answers.

use bytes::Bytes;
use hyper::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, Type};

use crate::command::{Command, ParseError, Reply};
use crate::gateway::{BatchFailure, Failure, Gateway};
use crate::json::Invalid;
use crate::trace::Context;

/// JSON with a line's end, so that an answer in a terminal does not run into the prompt.
pub fn line(value: &impl Serialize) -> Bytes {
    // All that is answered are strings, numbers, lists and maps: this cannot fail.
    let mut json = serde_json::to_vec(value).unwrap_or_default();
    json.push(b'\n');
    json.into()
}

/// What a command or a batch answers.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Of a command.
    One {
        /// Its result.
        result: Reply,
    },
    /// Of a batch.
    Many {
        /// One for each of its commands.
        results: Vec<Item>,
    },
}

/// What one command of a batch answers.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Item {
    /// It was carried out.
    Result {
        /// Its result.
        result: Reply,
    },
    /// It was not.
    Error {
        /// Why.
        error: Problem,
    },
}

impl Outcome {
    /// Carries a command out, or a batch, as a step of a trace, if there is one.
    pub async fn of(gateway: &Gateway, command: Command, trace: Option<&Context>) -> Result<Self, Problem> {
        let Command::Batch(batch) = command else {
            return Ok(Self::One { result: gateway.execute(command, trace).await? });
        };
        let results = Box::pin(gateway.batch(batch, trace)).await?;
        let results = results.into_iter().map(|result| match result {
            Ok(result) => Item::Result { result },
            Err(failure) => Item::Error { error: failure.into() },
        });
        Ok(Self::Many { results: results.collect() })
    }

    /// The first of what is not known to be done, and may go better another time.
    pub fn unsure(&self) -> Option<&Problem> {
        let Self::Many { results } = self else { return None };
        results.iter().find_map(|item| match item {
            Item::Error { error } if error.is_unsure() => Some(error),
            _ => None,
        })
    }
}

/// What can go wrong: code, status, and what it means.
pub const ERRORS: &[(&str, u16, &str)] = &[
    (
        "invalid_request",
        400,
        "`field` and `detail` say what is wrong. A field that is not known is refused, so that a misspelt `exlude` does not send to all.",
    ),
    ("unauthorized", 401, "The token is missing or wrong."),
    ("forbidden", 403, "Where no token is set: a foreign `Origin`, or a `Host` that is not loopback."),
    ("unknown_op", 404, "There is no such operation."),
    ("client_not_found", 404, "A change of a client that is not connected."),
    ("not_found", 404, "There is no such path."),
    ("method_not_allowed", 405, "Not with this HTTP method."),
    (
        "payload_too_large",
        413,
        "More than `API_MAX_BODY` or `MAX_SESSION_SIZE`; among several nodes a message of more than 1 MiB; an answer that needs pages.",
    ),
    ("too_many", 429, "Beyond the 16 tails that a node gives its console."),
    ("internal", 500, "A bug of ours; the node's log says more."),
    (
        "redis_unavailable",
        503,
        "Redis is away; `Retry-After` says when to ask again. Not known to be done: a change may be repeated safely, a repeated send may arrive twice.",
    ),
    (
        "node_unreachable",
        504,
        "A node did not answer within 2 s. Not known to be done: a change may be repeated safely, a repeated send may arrive twice.",
    ),
];

fn codes() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("The error's stable name."))
        .enum_values(Some(ERRORS.iter().map(|(code, ..)| *code)))
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// The status in words.
    pub title: &'static str,
    /// HTTP status.
    pub status: u16,
    /// The error's stable name.
    #[schema(schema_with = codes)]
    pub code: &'static str,
    /// What exactly.
    pub detail: String,
    /// The field concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl Problem {
    /// A problem without a field.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { title, status: status.as_u16(), code, detail: detail.into(), field: None }
    }

    /// A handler panicked.
    pub fn internal() -> Self {
        let detail = "this is a bug of the gateway; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// Whether it is not known to be done, and may go better another time.
    pub fn is_unsure(&self) -> bool {
        matches!(self.code, "redis_unavailable" | "node_unreachable")
    }
}

impl From<Invalid> for Problem {
    fn from(error: Invalid) -> Self {
        let detail = error.to_string();
        let field = error.field.map(std::borrow::Cow::into_owned);
        Self { field, ..Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail) }
    }
}

impl From<ParseError> for Problem {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Invalid(error) => error.into(),
            ParseError::UnknownOperation(error) => Self::new(StatusCode::NOT_FOUND, "unknown_op", error.to_string()),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let status = match failure {
            Failure::Invalid(error) => return error.into(),
            Failure::ClientNotFound(_) => StatusCode::NOT_FOUND,
            Failure::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Failure::Unreachable(_) => StatusCode::GATEWAY_TIMEOUT,
            Failure::RedisUnavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, failure.code(), failure.to_string())
    }
}

impl From<BatchFailure> for Problem {
    fn from(failure: BatchFailure) -> Self {
        match failure {
            BatchFailure::Parse(error) => error.into(),
            BatchFailure::Failed(failure) => failure.into(),
        }
    }
}
