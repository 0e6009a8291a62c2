//! Errors as `application/problem+json` (RFC 9457) with a stable `code`.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::command::ParseError;
use crate::gateway::{BatchFailure, Failure};
use crate::json::Invalid;

/// JSON with a line's end, so that an answer in a terminal does not run into the prompt.
pub(super) fn json_line(kind: &'static str, value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).map(|mut json| {
        json.push(b'\n');
        json
    });
    match body {
        Ok(body) => ([(CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response(),
        // Not to be expected: all that is answered are strings, numbers, lists and maps.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// The status in words.
    pub title: &'static str,
    /// HTTP status.
    pub status: u16,
    /// Stable name of the error: `invalid_request`, `unauthorized`, `forbidden`, `unknown_op`, `client_not_found`,
    /// `not_found`, `method_not_allowed`, `payload_too_large`, `redis_unavailable`, `node_unreachable`, `internal`.
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
}

impl Problem {
    /// A handler panicked.
    pub fn internal() -> Self {
        let detail = "this is a bug of the gateway; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_line("application/problem+json", &self);
        *response.status_mut() = status;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
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
