//! `moongate ctl`: one command to a node's API from the shell; and what else asks a node: `moongate check --ready`, and
//! `moongate top` in [`top`].
//!
//! To a script it says one line of JSON, as the node wrote it. To a reader at a terminal it says lists, and what is told of
//! several clients, uids, groups or tasks, as a table, and anything else as the same JSON in lines.

pub mod top;

use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_TYPE, USER_AGENT};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use unicode_width::UnicodeWidthStr as _;

use crate::command::OPERATIONS;
use crate::config::CallerConfig;
use crate::json;

/// What asking whether a node is ready may take: whoever asks does so again.
const READY: Duration = Duration::from_secs(2);

/// What connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// What all may take; the API itself answers within a minute.
const ANSWER: Duration = Duration::from_secs(70);

/// Columns, where the terminal does not say how many it has.
const COLUMNS: usize = 80;

/// What the command line asks for.
#[derive(Debug, Clone, clap::Args)]
pub struct Request {
    /// An operation, such as sendToUid.
    #[arg(value_parser = operation)]
    op: String,
    /// Its fields, such as uid=42 message='hello there'.
    #[arg(value_name = "KEY=VALUE")]
    fields: Vec<Field>,
}

/// A field as the command line says it.
///
/// `message` is text as it stands. So are `uid` and `group`, but an array of them is an array: `uid=42` is the uid 42,
/// `uid=[42,"a b"]` are two. Fields that take nothing but a string are text unless they are a string in JSON already.
/// Any other value is JSON when it parses, else text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    name: String,
    /// The value as it was written.
    text: String,
}

/// There is no `=` in it, or nothing before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a field is written as key=value")]
struct NoField;

impl FromStr for Field {
    type Err = NoField;

    fn from_str(argument: &str) -> Result<Self, NoField> {
        let (name, text) = argument.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or(NoField)?;
        Ok(Self { name: name.to_owned(), text: text.to_owned() })
    }
}

fn operation(argument: &str) -> Result<String, &'static str> {
    if argument.contains('=') { Err("the operation comes before its fields") } else { Ok(argument.to_owned()) }
}

impl Field {
    /// Appends `"name":value`.
    fn write(&self, out: &mut String) {
        json::write_string(&self.name, out);
        out.push(':');
        match json::borrow_raw(&self.text) {
            Ok(raw) if self.is_json(raw.get()) => out.push_str(raw.get()),
            _ => json::write_string(&self.text, out),
        }
    }

    fn is_json(&self, valid: &str) -> bool {
        match self.name.as_str() {
            "message" => false,
            "uid" | "group" => valid.starts_with('['),
            // Digits are good base64, a good client id, and a good name.
            "binary" | "client_id" | "cursor" | "id" | "reason" => valid.starts_with('"'),
            _ => true,
        }
    }
}

/// What `--help` says of operations and values.
pub fn help() -> String {
    let mut help = String::from(
        "The node is at MOONGATE_API_LISTEN (127.0.0.1:7273), its token is MOONGATE_API_TOKEN.\n\
         A value is JSON when it parses, but uid, group and message are text; uid and group may be arrays: uid='[1,2]'.\n\
         Exit code 0: done; 1: refused, or no answer; 2: wrong use.\n\n\
         Operations:\n",
    );
    let width = OPERATIONS.iter().map(|operation| operation.name.len()).max().unwrap_or_default();
    for operation in OPERATIONS {
        // Writing to a string cannot fail.
        writeln!(help, "  {:width$} {}", operation.name, operation.about).ok();
    }
    help
}

/// Asks the node, and prints what it answers: the result to stdout, a refusal to stderr.
pub async fn run(request: &Request, config: &CallerConfig) -> ExitCode {
    let answer = match ask(request, config).await {
        Ok(answer) => answer,
        Err(error) => {
            let unsure = if matches!(error, Failed::NoAnswer(..)) { "; not known to be done" } else { "" };
            return failed(&format!("{error}{unsure}"));
        }
    };
    let mut shown = if std::io::stdout().is_terminal() {
        let width = terminal_size::terminal_size().map_or(COLUMNS, |(width, _)| width.0.into());
        let reader = Reader { width, now: Timestamp::now(), time_zone: &config.time_zone };
        reader.show(request, &answer.json)
    } else {
        answer.json
    };
    shown.push('\n');
    match print(&shown) {
        Ok(()) if answer.is_good => ExitCode::SUCCESS,
        Ok(()) | Err(CannotPrint) => ExitCode::FAILURE,
    }
}

/// Asks the node whether it is ready, and prints its word.
pub async fn ready(config: &CallerConfig) -> ExitCode {
    match is_ready(config).await {
        Ok((is_ready, word)) => match print(&format!("{}\n", visible(&word))) {
            Ok(()) if is_ready => ExitCode::SUCCESS,
            Ok(()) | Err(CannotPrint) => ExitCode::FAILURE,
        },
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("{}", visible(why));
    ExitCode::FAILURE
}

/// It was said why, where somebody would read it.
struct CannotPrint;

fn print(text: &str) -> Result<(), CannotPrint> {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
        // Whoever reads no further knows.
        if error.kind() != ErrorKind::BrokenPipe {
            eprintln!("cannot print the result: {error}");
        }
        CannotPrint
    })
}

// --- asking ----------------------------------------------------------------------------------------------------------

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    /// The result, or the results of a batch.
    json: String,
    /// No command of a batch was refused.
    is_good: bool,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("cannot ask: {0}")]
    Client(#[source] reqwest::Error),
    #[error("cannot connect to {0}: {1}")]
    NoConnection(SocketAddr, String),
    #[error("no answer from {0}: {1}")]
    NoAnswer(SocketAddr, String),
    #[error("{detail} ({code})")]
    Refused { code: String, detail: String },
    #[error("{detail} ({code}); the node at {address} wants the token that is its MOONGATE_API_TOKEN")]
    Token { address: SocketAddr, code: String, detail: String },
    #[error("{0} answers {1}, and not as a node does")]
    Foreign(SocketAddr, StatusCode),
}

#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: String,
}

async fn ask(request: &Request, config: &CallerConfig) -> Result<Answer, Failed> {
    let caller = Caller::new(config, CONNECT, ANSWER)?;
    let op = utf8_percent_encode(&request.op, NON_ALPHANUMERIC);
    let (status, body) = caller.ask(Method::POST, &format!("/api/{op}"), Some(body(&request.fields))).await?;
    if status.is_success() {
        return read(&body).ok_or(Failed::Foreign(caller.address, status));
    }
    Err(caller.refusal(status, &body))
}

async fn is_ready(config: &CallerConfig) -> Result<(bool, String), Failed> {
    let caller = Caller::new(config, READY, READY)?;
    let (status, body) = caller.ask(Method::GET, "/readyz", None).await?;
    let word = String::from_utf8_lossy(&body).trim_end().to_owned();
    match status {
        StatusCode::OK if word.starts_with("ready") => Ok((true, word)),
        StatusCode::SERVICE_UNAVAILABLE if !word.is_empty() => Ok((false, word)),
        _ => Err(Failed::Foreign(caller.address, status)),
    }
}

/// Whoever asks a node.
struct Caller<'a> {
    client: Client,
    address: SocketAddr,
    token: Option<&'a SecretString>,
}

impl<'a> Caller<'a> {
    /// Asks the node of these settings; connecting, and all together, may take so long.
    fn new(config: &'a CallerConfig, connect: Duration, answer: Duration) -> Result<Self, Failed> {
        // No certificates are looked for: the API speaks no TLS.
        let client = Client::builder()
            .tls_certs_only([])
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(connect)
            .timeout(answer)
            .build()
            .map_err(Failed::Client)?;
        Ok(Self { client, address: reachable(config.listen), token: config.token.as_ref() })
    }

    async fn ask(&self, method: Method, path: &str, json: Option<String>) -> Result<(StatusCode, Bytes), Failed> {
        let no_answer = |error| no_answer(self.address, &error);
        let mut request = self
            .client
            .request(method, format!("http://{}{path}", self.address))
            .header(USER_AGENT, concat!("moongate/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = self.token {
            request = request.bearer_auth(token.expose_secret());
        }
        if let Some(json) = json {
            request = request.header(CONTENT_TYPE, "application/json").body(json);
        }
        let response = request.send().await.map_err(no_answer)?;
        let status = response.status();
        Ok((status, response.bytes().await.map_err(no_answer)?))
    }

    /// What an answer says that is no success.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> Failed {
        let address = self.address;
        match serde_json::from_slice(body) {
            Ok(Problem { code, detail }) if status == StatusCode::UNAUTHORIZED => {
                Failed::Token { address, code, detail }
            }
            Ok(Problem { code, detail }) => Failed::Refused { code, detail },
            Err(_) => Failed::Foreign(address, status),
        }
    }
}

/// Who listens everywhere is on loopback, too.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let mut address = listen;
    if listen.ip().is_unspecified() {
        address.set_ip(if listen.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

/// What stands twice is left to the node to refuse.
fn body(fields: &[Field]) -> String {
    let mut body = String::from("{");
    for field in fields {
        body.push_str(if body.len() > 1 { "," } else { "" });
        field.write(&mut body);
    }
    body.push('}');
    body
}

fn read(body: &[u8]) -> Option<Answer> {
    #[derive(Deserialize)]
    struct Item {
        error: Option<serde::de::IgnoredAny>,
    }
    let fields = json::fields(body).ok()?;
    let field = |wanted: &str| fields.iter().find(|(name, _)| name == wanted).map(|(_, raw)| raw.get());
    if let Some(result) = field("result") {
        return Some(Answer { json: result.to_owned(), is_good: true });
    }
    let results = field("results")?;
    let items: Vec<Item> = serde_json::from_str(results).ok()?;
    Some(Answer { json: results.to_owned(), is_good: items.iter().all(|item| item.error.is_none()) })
}

fn no_answer(address: SocketAddr, error: &reqwest::Error) -> Failed {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        words = cause.to_string();
        source = cause.source();
    }
    if error.is_connect() { Failed::NoConnection(address, words) } else { Failed::NoAnswer(address, words) }
}

// --- showing ---------------------------------------------------------------------------------------------------------

/// Who reads a terminal.
struct Reader<'a> {
    /// Columns of the terminal.
    width: usize,
    now: Timestamp,
    time_zone: &'a TimeZone,
}

impl Reader<'_> {
    fn show(&self, request: &Request, json: &str) -> String {
        if request.op == "listTasks"
            && let Ok(page) = serde_json::from_str(json)
        {
            return self.tasks(request, &page);
        }
        listing(request, json).unwrap_or_else(|| indented(json))
    }

    fn tasks(&self, request: &Request, page: &Page) -> String {
        let mut lines = if page.items.is_empty() { vec!["no tasks".to_owned()] } else { self.table(&page.items) };
        lines.extend(page.cursor.as_deref().map(|cursor| next_page(request, cursor)));
        lines.join("\n")
    }

    /// Ids are for the next command, so they are never cut. What there is no room for goes in this order: some of the
    /// reason, then it stands below its row, then some of what is done.
    fn table(&self, tasks: &[Task]) -> Vec<String> {
        let titles = ["ID", "STATE", "ATTEMPTS", "NEXT", "WHAT", "REASON"].map(str::to_owned);
        let rows: Vec<[String; 6]> = std::iter::once(titles).chain(tasks.iter().map(|task| self.row(task))).collect();
        let mut widths = [0; 6];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        let [id, state, attempts, next, mut what, mut reason] = widths;
        let before_what = id + state + attempts + next + 4 * GAP;
        let room = self.width.saturating_sub(before_what + what + GAP);
        let is_below = room < reason.min(LEAST_REASON);
        if is_below {
            what = what.min(self.width.saturating_sub(before_what).max(LEAST_WHAT));
            reason = reason.min(self.width.saturating_sub(GAP));
        } else {
            reason = reason.min(room);
        }
        let mut lines = Vec::new();
        for [id_is, state_is, attempts_are, next_is, what_is, reason_is] in &rows {
            let mut line = String::new();
            let cells = [(id_is, id), (state_is, state), (attempts_are, attempts), (next_is, next), (what_is, what)];
            for (cell, width) in cells {
                line.push_str(&padded(cell, width));
                line.push_str("  ");
            }
            let reason_is = cut(reason_is, reason);
            if !is_below {
                line.push_str(&reason_is);
            } else if !reason_is.is_empty() {
                line.truncate(line.trim_end().len());
                line.push_str("\n  ");
                line.push_str(&reason_is);
            }
            line.truncate(line.trim_end().len());
            lines.push(line);
        }
        lines
    }

    fn row(&self, task: &Task) -> [String; 6] {
        let next = task.next_at.and_then(|at| Timestamp::from_millisecond(at).ok());
        [
            visible(&task.id),
            visible(&task.state),
            task.attempts.to_string(),
            next.map_or_else(|| "-".to_owned(), |next| self.moment(next)),
            visible(task.work.what()),
            visible(task.reason.as_deref().unwrap_or_default()),
        ]
    }

    /// What is less than a day away is told by how far.
    fn moment(&self, at: Timestamp) -> String {
        let seconds = at.as_second() - self.now.as_second();
        if seconds.abs() >= DAY {
            return at.to_zoned(self.time_zone.clone()).strftime("%Y-%m-%d %H:%M").to_string();
        }
        let far = span(seconds.unsigned_abs());
        match seconds {
            0 => "now".to_owned(),
            1.. => format!("in {far}"),
            _ => format!("{far} ago"),
        }
    }
}

/// A line to paste.
fn next_page(request: &Request, cursor: &str) -> String {
    let mut more = format!("\nThere are more: moongate ctl {}", request.op);
    let others = request.fields.iter().filter(|field| field.name != "cursor");
    let others = others.map(|field| (field.name.as_str(), field.text.as_str()));
    for (name, value) in others.chain([("cursor", cursor)]) {
        more.push(' ');
        more.push_str(&quoted(&format!("{name}={value}")));
    }
    more
}

/// What questions answer about many, a row for each, in order; none for what is not about many.
fn listing(request: &Request, json: &str) -> Option<String> {
    let op = request.op.as_str();
    let about_many = op.starts_with("get") || op.starts_with("batchGet") || op == "isUidsOnline";
    // A session's fields are the application's, and a task is one.
    if !about_many || matches!(op, "getSession" | "getTask") {
        return None;
    }
    let is_page = request.fields.iter().any(|field| field.name == "limit");
    let (page, items);
    let (json, cursor) = if is_page {
        page = json::fields(json.as_bytes()).ok()?;
        let field = |wanted: &str| page.iter().find(|(name, _)| name == wanted).map(|(_, raw)| raw.get());
        items = field("items")?;
        (items, serde_json::from_str::<Option<String>>(field("cursor")?).ok()?)
    } else {
        (json, None)
    };
    let mut rows: Vec<(String, String)> = if json.starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(json).ok()?;
        items.into_iter().map(|item| (cell(item.get()), String::new())).collect()
    } else if json.starts_with('{') {
        let items = json::fields(json.as_bytes()).ok()?;
        items.into_iter().map(|(name, value)| (visible(&name), cell(value.get()))).collect()
    } else {
        return None;
    };
    rows.sort_unstable();
    let width = rows.iter().map(|(name, _)| name.width()).max().unwrap_or_default();
    let row = |(name, value): &(String, String)| format!("{}  {value}", padded(name, width)).trim_end().to_owned();
    let mut lines: Vec<String> = rows.iter().map(row).collect();
    if lines.is_empty() {
        lines.push("none".to_owned());
    }
    lines.extend(cursor.map(|cursor| next_page(request, &cursor)));
    Some(lines.join("\n"))
}

/// A text as it is, several in one line, anything else as JSON.
fn cell(json: &str) -> String {
    if let Ok(text) = serde_json::from_str::<String>(json) {
        return visible(&text);
    }
    match serde_json::from_str::<Vec<String>>(json) {
        Ok(texts) if texts.is_empty() => "-".to_owned(),
        Ok(texts) => visible(&texts.join(" ")),
        Err(_) => visible(json),
    }
}

/// Seconds.
const DAY: i64 = 24 * 60 * 60;

/// Between two columns.
const GAP: usize = 2;

/// A reason of fewer columns says nothing.
const LEAST_REASON: usize = 16;

/// `webhook`.
const LEAST_WHAT: usize = 7;

#[derive(Deserialize)]
struct Page {
    items: Vec<Task>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct Task {
    id: String,
    state: String,
    attempts: u64,
    /// Unix milliseconds.
    next_at: Option<i64>,
    reason: Option<String>,
    #[serde(rename = "task")]
    work: Work,
}

/// What a task does: a command, or else a webhook.
#[derive(Deserialize)]
struct Work {
    command: Option<Value>,
}

impl Work {
    fn what(&self) -> &str {
        match &self.command {
            Some(command) => command.get("op").and_then(Value::as_str).unwrap_or("-"),
            None => "webhook",
        }
    }
}

/// A length of time in few letters.
fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, ..) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// Without what a terminal would act upon; the end of a line is a space.
pub(crate) fn visible(text: &str) -> String {
    let show = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(show).collect()
}

/// At most so many columns of it.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    // Marks have no width of their own.
    let mut out: String = text.chars().take(4 * width).collect();
    while out.width() >= width && out.pop().is_some() {}
    out.push('…');
    out
}

/// Exactly so many columns: `{:width$}` counts characters.
fn padded(text: &str, width: usize) -> String {
    let mut out = cut(text, width);
    out.push_str(&" ".repeat(width.saturating_sub(out.width())));
    out
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"=_-.,:/+@%".contains(&byte);
    if word.bytes().all(plain) { word.to_owned() } else { format!("'{}'", visible(word).replace('\'', r"'\''")) }
}

/// Valid JSON in lines, its numbers and the order of its fields as they are.
fn indented(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut chars = json.chars().peekable();
    let line = |depth: usize, out: &mut String| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    while let Some(c) = chars.next() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            if c.is_control() {
                // A terminal would act upon it; what JSON lets stand bare is below U+0100.
                write!(out, "\\u{:04x}", u32::from(c)).ok();
            } else {
                out.push(c);
            }
            continue;
        }
        match c {
            '[' | '{' => {
                out.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(end) = chars.next_if(|c| matches!(c, ']' | '}')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(depth, &mut out);
                }
            }
            ']' | '}' => {
                depth = depth.saturating_sub(1);
                line(depth, &mut out);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(depth, &mut out);
            }
            ':' => out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => {
                in_string = c == '"';
                out.push(c);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn request(op: &str, fields: &[&str]) -> Request {
        Request { op: op.to_owned(), fields: fields.iter().map(|field| field.parse().unwrap()).collect() }
    }

    fn shown(width: usize, fields: &[&str], page: &Value) -> String {
        let now = "2026-11-20T12:00:00Z".parse().unwrap();
        let reader = Reader { width, now, time_zone: &TimeZone::get("Asia/Shanghai").unwrap() };
        reader.show(&request("listTasks", fields), &page.to_string())
    }

    fn page() -> Value {
        let at = "2026-11-20T12:00:00Z".parse::<Timestamp>().unwrap().as_millisecond();
        json!({"cursor": null, "items": [
            {"id": "nightly", "state": "waiting", "attempts": 0, "next_at": at + 7_500_000, "task": {"command": {"op": "sendToAll", "message": "x"}, "cron": "0 3 * * *"}},
            {"id": "1763640000000-0", "state": "dead", "attempts": 5, "next_at": null, "reason": "the webhook answered 500", "task": {"webhook": null}},
            {"id": "b", "state": "dead", "attempts": 5, "reason": "the webhook answered 500", "task": {"webhook": {"mail": 1}}},
            {"id": "订单", "state": "running", "attempts": 12, "next_at": at - 3000, "task": {"command": {"op": "batch", "commands": []}}},
            {"id": "c", "state": "waiting", "attempts": 1, "next_at": at + 172_800_000, "reason": "Redis is away", "task": {"command": {"op": "sendToUid"}}},
        ]})
    }

    #[test]
    fn names_and_messages_are_text_and_other_values_json_when_they_parse() {
        for (argument, json) in [
            ("uid=42", r#""uid":"42""#),
            ("uid=007", r#""uid":"007""#),
            ("uid=null", r#""uid":"null""#),
            (r#"uid=["a", 7]"#, r#""uid":["a", 7]"#),
            ("uid=[a", r#""uid":"[a""#),
            (r#"uid="42""#, r#""uid":"\"42\"""#),
            ("group=[vip]", r#""group":"[vip]""#),
            ("group=true", r#""group":"true""#),
            (r#"message={"a":1}"#, r#""message":"{\"a\":1}""#),
            ("message=[1]", r#""message":"[1]""#),
            ("message=a=b", r#""message":"a=b""#),
            ("message=", r#""message":"""#),
            ("client_id=12345678901234567890", r#""client_id":"12345678901234567890""#),
            ("client_id=\"7f\"", r#""client_id":"7f""#),
            ("binary=1234", r#""binary":"1234""#),
            ("id=7", r#""id":"7""#),
            ("limit=10", r#""limit":10"#),
            ("confirm=true", r#""confirm":true"#),
            (r#"session={"n":12345678901234567890123}"#, r#""session":{"n":12345678901234567890123}"#),
            ("exclude_uid=[1,2]", r#""exclude_uid":[1,2]"#),
            ("state=dead", r#""state":"dead""#),
            ("limit= ", r#""limit":" ""#),
        ] {
            let mut out = String::new();
            argument.parse::<Field>().unwrap().write(&mut out);
            assert_eq!(out, json, "{argument}");
        }
        for argument in ["", "uid", "=42", "="] {
            assert_eq!(argument.parse::<Field>(), Err(NoField), "{argument}");
        }
        assert_eq!(body(&request("x", &["uid=1", "limit=2"]).fields), r#"{"uid":"1","limit":2}"#);
        assert_eq!(body(&[]), "{}");
    }

    #[test]
    fn a_node_that_listens_everywhere_is_asked_on_loopback() {
        for (listen, address) in [
            ("0.0.0.0:7273", "127.0.0.1:7273"),
            ("[::]:7273", "[::1]:7273"),
            ("10.0.0.5:1", "10.0.0.5:1"),
            ("127.0.0.2:1", "127.0.0.2:1"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), address);
        }
    }

    #[test]
    fn a_result_is_taken_out_as_it_stands() {
        for (body, json, is_good) in [
            ("{\"result\":null}\n", "null", true),
            (
                r#"{"result":{"n":1e400,"a":12345678901234567890123}}"#,
                r#"{"n":1e400,"a":12345678901234567890123}"#,
                true,
            ),
            (r#"{"results":[]}"#, "[]", true),
            (r#"{"results":[{"result":null},{"result":true}]}"#, r#"[{"result":null},{"result":true}]"#, true),
            (r#"{"results":[{"result":1},{"error":{"code":"x"}}]}"#, r#"[{"result":1},{"error":{"code":"x"}}]"#, false),
        ] {
            assert_eq!(read(body.as_bytes()), Some(Answer { json: json.to_owned(), is_good }), "{body}");
        }
        for foreign in ["", "ok", "[]", "{}", r#"{"results":1}"#] {
            assert_eq!(read(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn tasks_are_a_table() {
        let expected = "\
ID               STATE    ATTEMPTS  NEXT              WHAT       REASON
nightly          waiting  0         in 2h05m          sendToAll
1763640000000-0  dead     5         -                 webhook    the webhook answered 500
b                dead     5         -                 webhook    the webhook answered 500
订单             running  12        3s ago            batch
c                waiting  1         2026-11-22 20:00  sendToUid  Redis is away";
        assert_eq!(shown(89, &[], &page()), expected);
        let narrower = shown(85, &[], &page());
        assert_eq!(narrower, expected.replace("the webhook answered 500", "the webhook answere…"));
        assert_eq!(shown(80, &[], &json!({"items": [], "cursor": null})), "no tasks");
    }

    #[test]
    fn a_reason_without_room_stands_below_and_ids_are_whole() {
        let expected = "\
ID               STATE    ATTEMPTS  NEXT              WHAT
  REASON
nightly          waiting  0         in 2h05m          sendToA…
1763640000000-0  dead     5         -                 webhook
  the webhook answered 500
b                dead     5         -                 webhook
  the webhook answered 500
订单             running  12        3s ago            batch
c                waiting  1         2026-11-22 20:00  sendToU…
  Redis is away";
        assert_eq!(shown(62, &[], &page()), expected);
        // Even where nothing fits.
        assert!(shown(10, &[], &page()).contains("\n1763640000000-0 "));
    }

    #[test]
    fn the_next_page_is_a_line_to_paste() {
        let page = |cursor: &str| json!({"items": [], "cursor": cursor});
        for (fields, cursor, line) in [
            (&[][..], "a1", "moongate ctl listTasks cursor=a1"),
            (&["state=dead", "cursor=a0", "limit=5"], "a1", "moongate ctl listTasks state=dead limit=5 cursor=a1"),
            (&["state=a b"], "it's", r"moongate ctl listTasks 'state=a b' 'cursor=it'\''s'"),
        ] {
            let shown = shown(80, fields, &page(cursor));
            assert_eq!(shown.lines().last().unwrap().strip_prefix("There are more: "), Some(line));
        }
    }

    #[test]
    fn what_is_told_of_many_is_a_row_for_each() {
        for (op, fields, json, expected) in [
            ("isUidsOnline", &[][..], r#"{"b":false,"a":true}"#, "a  true\nb  false"),
            ("getAllUidList", &[], r#"["eve","42","a\nb"]"#, "42\na b\neve"),
            ("getAllUidList", &[], "[]", "none"),
            ("getUidListByGroup", &["limit=2"], r#"{"items":[],"cursor":null}"#, "none"),
            ("batchGetClientIdByUid", &[], r#"{"订单":["7f","80"],"eve":[]}"#, "eve   -\n订单  7f 80"),
            ("getAllGroupUidCount", &[], r#"{"items":1,"cursor":2}"#, "cursor  2\nitems   1"),
            (
                "getAllClientSessions",
                &["limit=1", "cursor=a"],
                r#"{"items":{"7f":{"n":12345678901234567890123,"s":"\u001b"}},"cursor":"b"}"#,
                "7f  {\"n\":12345678901234567890123,\"s\":\"\\u001b\"}\n\nThere are more: moongate ctl getAllClientSessions limit=1 cursor=b",
            ),
        ] {
            let now = "2026-11-20T12:00:00Z".parse().unwrap();
            let reader = Reader { width: 80, now, time_zone: &TimeZone::UTC };
            assert_eq!(reader.show(&request(op, fields), json), expected, "{op}");
        }
        for (op, json) in [("getSession", r#"{"a":1}"#), ("sendToUid", r#"{"nodes":1}"#), ("getAllUidCount", "7")] {
            assert_eq!(listing(&request(op, &[]), json), None, "{op}");
        }
    }

    #[test]
    fn what_is_no_page_of_tasks_is_json() {
        assert_eq!(
            shown(80, &[], &json!({"items": [{"id": 1}]})),
            "{\n  \"items\": [\n    {\n      \"id\": 1\n    }\n  ]\n}"
        );
        let batch = indented(r#"{ "a":[ ],"b":{"c":"x, [\"y\":\\"},"n":1.50,"d":[true,null] }"#);
        assert_eq!(
            batch,
            "{\n  \"a\": [],\n  \"b\": {\n    \"c\": \"x, [\\\"y\\\":\\\\\"\n  },\n  \"n\": 1.50,\n  \"d\": [\n    true,\n    null\n  ]\n}"
        );
    }

    #[test]
    fn a_terminal_is_told_nothing_to_act_upon() {
        let task = json!({"id": "\u{1b}[2J", "state": "dead", "attempts": 1, "reason": "a\nb\u{9b}31m", "task": {}});
        let table = shown(80, &[], &json!({"items": [task], "cursor": "\u{1b}"}));
        assert!(!table.contains(['\u{1b}', '\u{9b}']) && table.contains("a b\u{fffd}31m"), "{table}");
        assert_eq!(indented("\"\u{9b}\u{7f}é\""), r#""\u009b\u007fé""#);
    }

    proptest! {
        #[test]
        fn any_table_fits_where_its_ids_do(
            width in 70_usize..120,
            tasks in prop::collection::vec(("[a-z语]{0,6}", "\\PC{0,60}", any::<Option<i64>>()), 1..5),
        ) {
            let items: Vec<Value> = tasks.iter().map(|(id, reason, at)| {
                json!({"id": id, "state": "waiting", "attempts": 3, "next_at": at, "reason": reason, "task": {"webhook": 1}})
            }).collect();
            for line in shown(width, &[], &json!({"items": items, "cursor": null})).lines() {
                prop_assert!(line.width() <= width, "{}: {}", width, line);
            }
        }

        #[test]
        fn lines_of_json_are_the_same_json(text in "[\\[\\]{}\",:0-9a-z\\\\ ]{0,40}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                prop_assert_eq!(serde_json::from_str::<Value>(&indented(&text)).unwrap(), value);
            }
        }

        #[test]
        fn any_argument_makes_a_body_or_is_wrong_use(argument in "(uid|group|message|id|limit)?=?\\PC{0,20}") {
            if let Ok(field) = argument.parse::<Field>() {
                prop_assert!(json::fields(body(&[field]).as_bytes()).is_ok());
            }
        }
    }
}
