//! The commands over HTTP: `POST /api/<op>` with the fields as JSON, and `/?method=<op>&args[]=…` as in
//! `GatewayWorker`'s manual.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{FromRef, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use crate::command::{Command, Operation, ParseError};
use crate::gateway::Gateway;
use crate::json::{self, Invalid};
use crate::outcome::{Outcome, Problem, line};
use crate::trace::otlp::SpanKind;
use crate::trace::{Context, Span};

/// The place in a trace at which a request was made, where traces are wanted.
pub(super) struct Parent(Option<Context>);

impl<S: Send + Sync> FromRequestParts<S> for Parent
where
    Arc<Gateway>: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(Arc::<Gateway>::from_ref(state).tracer().parent(&parts.headers)))
    }
}

/// `POST /api/<op>`
pub(super) async fn run(
    State(gateway): State<Arc<Gateway>>,
    op: Result<Path<String>, PathRejection>,
    Parent(parent): Parent,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    // The name first: an unknown one is 404 whatever its body is.
    let op = op.map_or_else(|_| String::new(), |Path(op)| op);
    let op = Operation::find(&op).map_err(ParseError::from)?;
    let mut span = gateway.tracer().begin(SpanKind::Server, format_args!("POST /api/{}", op.name), parent.as_ref());
    let answered = async {
        let body = whole(body)?;
        let fields = if body.trim_ascii().is_empty() { Vec::new() } else { json::fields(&body)? };
        answer(gateway, Command::parse(op.name, &fields)?, span.as_ref()).await
    };
    let answered = answered.await;
    if let Some(span) = &mut span {
        describe(span, "POST", &format!("/api/{}", op.name), op.name, &answered);
    }
    answered
}

/// `/?method=<op>&args[]=…`, the arguments in the query or in a form body.
pub(super) async fn run_method(
    gateway: Arc<Gateway>,
    method: &Method,
    query: &str,
    headers: &HeaderMap,
    Parent(parent): Parent,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let body = whole(body)?;
    let is_form = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-www-form-urlencoded"));
    let form = if is_form { &body[..] } else { b"" };
    let (op, fields) = positional(query.as_bytes(), form)?;
    let mut span = gateway.tracer().begin(SpanKind::Server, format_args!("{method} /"), parent.as_ref());
    let answered = async {
        let command = Command::parse(op.name, &json::fields(fields.as_bytes())?)?;
        answer(gateway, command, span.as_ref()).await
    };
    let answered = answered.await;
    if let Some(span) = &mut span {
        describe(span, method.as_str(), "/", op.name, &answered);
    }
    answered
}

/// What a request's span says of it. Its query may have names in it, and stays out.
fn describe(span: &mut Span, method: &str, path: &str, op: &'static str, answered: &Result<Response, Problem>) {
    span.set("http.request.method", method);
    span.set("http.route", path);
    span.set("url.path", path);
    span.set("url.scheme", "http");
    span.set("moongate.op", op);
    let status = answered.as_ref().map_or_else(|problem| problem.status, |response| response.status().as_u16());
    span.set("http.response.status_code", u64::from(status));
    match answered {
        Ok(_) => {}
        // A mistake of whoever asks is none of ours.
        Err(problem) if problem.status < 500 => span.set("error.type", problem.code),
        Err(problem) => span.fail(problem.code),
    }
}

fn whole(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            "the body is larger than MOONGATE_API_MAX_BODY",
        ),
        _ => Invalid::request("the body did not arrive whole").into(),
    })
}

/// What has several steps runs in a task of its own: a caller that hangs up in the middle leaves nothing half done.
async fn answer(gateway: Arc<Gateway>, command: Command, span: Option<&Span>) -> Result<Response, Problem> {
    let trace = span.map(|span| span.context().clone());
    match command {
        Command::Batch(_) => own_task(run_to_end(gateway, command, trace)).await,
        Command::BindUid(ref bind) if bind.single => own_task(run_to_end(gateway, command, trace)).await,
        _ => run_to_end(gateway, command, trace).await,
    }
}

async fn own_task(work: impl Future<Output = Result<Response, Problem>> + Send + 'static) -> Result<Response, Problem> {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Problem::internal()))
}

async fn run_to_end(gateway: Arc<Gateway>, command: Command, trace: Option<Context>) -> Result<Response, Problem> {
    let outcome = Outcome::of(&gateway, command, trace.as_ref()).await?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], line(&outcome)).into_response())
}

/// The operation, and its fields as a JSON object.
pub(super) fn positional(query: &[u8], form: &[u8]) -> Result<(&'static Operation, String), ParseError> {
    let mut method = None;
    let mut args: BTreeMap<usize, Argument> = BTreeMap::new();
    for (key, value) in form_urlencoded::parse(query).chain(form_urlencoded::parse(form)) {
        if key == "method" {
            method = Some(value);
            continue;
        }
        let unknown =
            || Invalid::field(key.clone().into_owned(), "is not an argument; they are method, args[] and args[n][]");
        let inside = key.strip_prefix("args[").and_then(|rest| rest.strip_suffix(']')).ok_or_else(unknown)?;
        let (place, is_list) = inside.strip_suffix("][").map_or((inside, false), |place| (place, true));
        let place = match place {
            "" if !is_list => args.last_key_value().map_or(0, |(last, _)| last + 1),
            number => number.parse::<u8>().map(usize::from).map_err(|_| unknown())?,
        };
        match (args.get_mut(&place), is_list) {
            (None, false) => drop(args.insert(place, Argument::One(value.into_owned()))),
            (None, true) => drop(args.insert(place, Argument::Many(vec![value.into_owned()]))),
            (Some(Argument::Many(values)), true) => values.push(value.into_owned()),
            (Some(_), _) => return Err(Invalid::field(key.into_owned(), "comes twice").into()),
        }
    }
    let op = Operation::find(&method.ok_or_else(|| Invalid::field("method", "is missing"))?)?;
    let mut fields = String::from("{");
    for (place, argument) in args {
        let Some(name) = op.args.get(place) else {
            return Err(
                Invalid::field("args", format_args!("{} takes at most {} arguments", op.name, op.args.len())).into()
            );
        };
        if let Some(value) = argument.to_json(name) {
            fields.push_str(if fields.len() > 1 { "," } else { "" });
            json::write_string(name, &mut fields);
            fields.push(':');
            fields.push_str(&value);
        }
    }
    fields.push('}');
    Ok((op, fields))
}

/// `args[]=x`, or `args[1][]=x&args[1][]=y`.
enum Argument {
    One(String),
    Many(Vec<String>),
}

impl Argument {
    /// Names and messages are text; of other fields a text that is JSON is that JSON, and an empty one is absent.
    fn to_json(&self, name: &str) -> Option<String> {
        match self {
            Self::One(text) if matches!(name, "uid" | "group" | "message" | "client_id" | "id" | "state") => {
                Some(quoted(text))
            }
            Self::One(text) if text.is_empty() => None,
            Self::One(text) => Some(json::borrow_raw(text).map_or_else(|_| quoted(text), |raw| raw.get().to_owned())),
            Self::Many(texts) => {
                Some(format!("[{}]", texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(",")))
            }
        }
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::new();
    json::write_string(text, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arguments_go_by_position() {
        for (query, op, fields) in [
            ("method=sendToUid&args[]=42&args[]=hello", "sendToUid", r#"{"uid":"42","message":"hello"}"#),
            ("args%5B%5D=42&args%5B%5D=a%26b+c&method=sendToUid", "sendToUid", r#"{"uid":"42","message":"a&b c"}"#),
            (
                "method=sendToGroup&args[0]=g&args[1]={\"a\":1}&args[2][]=x&args[2][]=y",
                "sendToGroup",
                r#"{"group":"g","message":"{\"a\":1}","exclude":["x","y"]}"#,
            ),
            ("method=setSession&args[]=c&args[]={\"n\":1}", "setSession", r#"{"client_id":"c","session":{"n":1}}"#),
            ("method=sendToAll&args[]=m&args[]=", "sendToAll", r#"{"message":"m"}"#),
            ("method=getAllClientCount", "getAllClientIdCount", "{}"),
        ] {
            let (found, json) = positional(query.as_bytes(), b"").unwrap();
            assert_eq!((found.name, json.as_str()), (op, fields), "{query}");
        }
        assert_eq!(positional(b"method=sendToUid", b"args[]=1&args[]=x").unwrap().1, r#"{"uid":"1","message":"x"}"#);
        for query in [
            "args[]=1",
            "method=nope",
            "method=isOnline&args[]=a&args[]=b",
            "method=isOnline&x=1",
            "method=isOnline&args[999]=a",
            "method=isOnline&args=1",
        ] {
            assert!(positional(query.as_bytes(), b"").is_err(), "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_query_is_fields_or_an_error(query in ".{0,60}", args in "(args\\[[0-9\\[\\]]{0,4}=[a-z{}\\[\\]]{0,4}&){0,4}") {
            drop(positional(query.as_bytes(), b""));
            if let Ok((_, fields)) = positional(format!("method=sendToGroup&{args}").as_bytes(), b"") {
                prop_assert!(json::fields(fields.as_bytes()).is_ok(), "{}", fields);
            }
        }
    }
}
