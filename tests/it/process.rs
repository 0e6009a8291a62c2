//! The binary as an operator meets it: settings, signals, exit codes and the log of a real process.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::harness::{Answer, Client, PATIENCE, eventually, raw_http, soon};

/// Listens where nobody else does, unless a test says otherwise.
const DEFAULTS: [(&str, &str); 5] = [
    ("MOONGATE_LISTEN", "127.0.0.1:0"),
    ("MOONGATE_API_LISTEN", "127.0.0.1:0"),
    ("MOONGATE_LAN_LISTEN", "off"),
    ("MOONGATE_REGISTER_LISTEN", "off"),
    ("MOONGATE_LOG_FORMAT", "json"),
];

/// The binary, with these settings and nothing else in its environment.
fn command(arguments: &[&str], settings: &[(&str, &str)]) -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_moongate")), arguments, settings)
}

/// A command, with these arguments and settings.
pub(crate) fn clean(mut command: Command, arguments: &[&str], settings: &[(&str, &str)]) -> Command {
    command.args(arguments).env_clear().envs(DEFAULTS).envs(settings.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a stream of a process has said so far.
struct Capture {
    said: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut bytes) {
                heard.lock().extend_from_slice(&bytes[..read]);
            }
        });
        Self { said, reader: Some(reader) }
    }

    fn so_far(&self) -> String {
        String::from_utf8(self.said.lock().clone()).unwrap()
    }

    /// For a process that has ended.
    fn all(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.so_far()
    }
}

/// A process that is killed and waited for when the test ends, however it ends.
struct Running {
    child: Child,
    stdout: Capture,
    stderr: Capture,
}

impl Running {
    fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, stdout: Capture::of(stdout), stderr: Capture::of(stderr) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How a process ended that was to end by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the binary to its end.
pub(crate) fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Ended {
    run_command(command(arguments, settings))
}

pub(crate) fn run_command(command: Command) -> Ended {
    let mut running = Running::spawn(command);
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match running.child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => panic!("still running, and said: {}", running.stderr.so_far()),
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    Ended { code: status.code(), stdout: running.stdout.all(), stderr: running.stderr.all() }
}

/// A node in a process of its own.
pub(crate) struct Process {
    running: Running,
    pub(crate) clients: SocketAddr,
    pub(crate) api: SocketAddr,
    token: Option<String>,
}

impl Process {
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_command(command(&[], settings), settings).await
    }

    /// Started by a shell, after what this line of it does.
    async fn start_after(line: &str, settings: &[(&str, &str)]) -> Self {
        let script = format!("{line}; exec \"$0\"");
        let arguments = ["-c", &script, env!("CARGO_BIN_EXE_moongate")];
        Self::start_command(clean(Command::new("/bin/sh"), &arguments, settings), settings).await
    }

    async fn start_command(command: Command, settings: &[(&str, &str)]) -> Self {
        let mut running = Running::spawn(command);
        let listening = soon("the node listens", async {
            loop {
                if let Some(line) = logged(&running.stderr.so_far(), "listening") {
                    return line;
                }
                let ended = running.child.try_wait().unwrap();
                assert!(ended.is_none(), "{ended:?}: {}", running.stderr.so_far());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        let address = |name: &str| listening[name].as_str().unwrap().parse().unwrap();
        let token = settings.iter().find(|(name, _)| *name == "MOONGATE_API_TOKEN").map(|(_, token)| (*token).into());
        let process = Self { clients: address("clients"), api: address("api"), token, running };
        // Whoever is answered is served: by then signals are minded, too.
        assert_eq!(process.get("/readyz").await.status, 200);
        process
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// What it has written to its log so far.
    pub(crate) fn log(&self) -> String {
        self.running.stderr.so_far()
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.pid());
        assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the end of the process; no code when a signal ended it.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        let status = soon("the process ends", async {
            loop {
                if let Some(status) = self.running.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        status.await.code()
    }

    /// Asks it to stop, waits for it, and returns all it has logged.
    async fn stop(mut self) -> String {
        self.signal("TERM");
        assert_eq!(self.exit_code().await, Some(0), "{}", self.log());
        assert_eq!(self.running.stdout.all(), "");
        self.running.stderr.all()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], "").await
    }

    /// A command's result.
    pub(crate) async fn ask(&self, op: &str, fields: Value) -> Value {
        let answer = self.request("POST", &format!("/api/{op}"), &[], &fields.to_string()).await.json();
        answer.get("result").or(answer.get("results")).cloned().unwrap_or_else(|| panic!("{op} {fields}: {answer}"))
    }

    /// One HTTP request with the token, on a connection of its own.
    async fn request(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let authorization = self.token.iter().map(|token| format!("Authorization: Bearer {token}\r\n"));
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).chain(authorization).collect();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.api);
        let request = format!("{head}Content-Length: {}\r\n{headers}\r\n{body}", body.len());
        raw_http(self.api, request.into_bytes()).await
    }

    /// What a counter stands at.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        metric(&self.get("/metrics").await.text(), name)
    }

    /// A client that has been welcomed.
    pub(crate) async fn connect(&self) -> Client {
        self.try_connect().await.unwrap()
    }

    async fn try_connect(&self) -> Result<Client, tungstenite::Error> {
        try_connect(self.clients).await
    }

    /// Begins to stop, and is known to have begun.
    async fn begin_to_stop(&self, signal: &str) {
        self.signal(signal);
        eventually("the node is not ready", async || self.get("/readyz").await.status == 503).await;
    }
}

async fn try_connect(address: SocketAddr) -> Result<Client, tungstenite::Error> {
    let connect = tokio_tungstenite::connect_async(format!("ws://{address}/"));
    let (socket, _) = soon("a handshake", connect).await?;
    let mut client = Client { id: String::new(), socket };
    client.welcomed().await;
    Ok(client)
}

/// A message to one client is the next thing that it hears.
pub(crate) async fn hears<S: AsyncRead + AsyncWrite + Unpin>(node: &Process, client: &mut Client<S>, message: &str) {
    let sent = node.ask("sendToClient", json!({"client_id": client.id, "message": message})).await;
    assert_eq!(sent["nodes"], 1);
    assert_eq!(client.text().await, message);
}

/// The line of a JSON log with this message.
fn logged(log: &str, message: &str) -> Option<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.into_iter().find(|line| line["message"] == message)
}

fn metric(page: &str, name: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
}

// --- settings --------------------------------------------------------------------------------------------------------

#[test]
fn wrong_settings_are_told_all_at_once_one_line_each_and_exit_2() {
    let wrong = [
        ("MOONGATE_DRAIN", "25", "10s"),
        ("MOONGATE_LAN_LISTEN", "127.0.0.1:0", "10.0.0.5:2900, or off"),
        ("MOONGATE_LISTEN", "everywhere", "0.0.0.0:7272"),
        ("MOONGATE_LOG_FORMAT", "xml", "json"),
        ("MOONGATE_METRICS_OPEN", "perhaps", "true or false"),
        ("MOONGATE_PING_NOT_RESPONSE_LIMIT", "-1", "0 to 1000"),
        ("MOONGATE_REGISTER_ADDRESS", "10.0.0.5:1236,10.0.0.6", "host:port"),
        ("MOONGATE_REGISTER_LISTEN", "1238", "127.0.0.1:1238, or off"),
        ("MOONGATE_SEND_BUFFER", "0", "64KiB"),
        ("MOONGATE_SLOW_CONSUMER", "wait\nand see", "close or drop"),
        ("MOONGATE_WORKERS", "some", "auto, required or off"),
    ];
    let settings = wrong.map(|(name, value, _)| (name, value));
    for arguments in [&[][..], &["serve"], &["check"]] {
        let ended = run(arguments, &settings);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert_eq!(ended.stdout, "");
        let lines: Vec<&str> = ended.stderr.lines().collect();
        assert_eq!(lines.len(), wrong.len(), "{ended:?}");
        for ((name, value, takes), line) in wrong.into_iter().zip(lines) {
            assert!(line.starts_with(&format!("{name}: ")), "{line}");
            assert!(line.contains(&format!("{value:?}")) && line.contains(takes), "{line}");
        }
    }
}

#[test]
fn a_misspelt_setting_is_told_with_the_nearest_name_and_never_its_value() {
    let ended = run(&[], &[("MOONGATE_API_TOKN", "hunter2"), ("MOONGATE_NOTHING_LIKE_A_SETTING_AT_ALL", "hunter3")]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{ended:?}");
    assert!(lines[0].starts_with("MOONGATE_API_TOKN: ") && lines[0].contains("MOONGATE_API_TOKEN"), "{ended:?}");
    assert!(lines[1].starts_with("MOONGATE_NOTHING_LIKE_A_SETTING_AT_ALL: "), "{ended:?}");
    assert!(!ended.stderr.contains("hunter"), "{ended:?}");
}

#[test]
fn a_secret_that_is_wrong_is_not_shown() {
    for token in ["correct horse", "hörse", &"horse".repeat(52)] {
        let ended = run(&[], &[("MOONGATE_API_TOKEN", token)]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.starts_with("MOONGATE_API_TOKEN: got <hidden>, takes "), "{ended:?}");
        assert!(!ended.stderr.contains("rse") && ended.stderr.lines().count() == 1, "{ended:?}");
    }
}

#[test]
fn beyond_loopback_php_needs_a_key_and_a_wrong_one_is_not_shown() {
    for open in [("MOONGATE_LAN_LISTEN", "0.0.0.0:2900"), ("MOONGATE_REGISTER_LISTEN", "0.0.0.0:1238")] {
        let ended = run(&["check"], &[open]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        let expected = format!("MOONGATE_SECRET_KEY: is needed where {} ({}) is not loopback\n", open.0, open.1);
        assert_eq!(ended.stderr, expected);
        assert_eq!(run(&["check"], &[open, ("MOONGATE_SECRET_KEY", "密/k")]).code, Some(0));
        let ended = run(&["check"], &[open, ("MOONGATE_SECRET_KEY", "hunter\"2")]);
        assert!(ended.stderr.starts_with("MOONGATE_SECRET_KEY: got <hidden>, takes 1 to 256 bytes"), "{ended:?}");
        assert_eq!((ended.code, ended.stderr.lines().count()), (Some(2), 1), "{ended:?}");
    }
}

#[test]
fn workers_cannot_be_required_where_none_can_connect() {
    let ended = run(&["check"], &[("MOONGATE_WORKERS", "required"), ("MOONGATE_LAN_LISTEN", "off")]);
    assert!(ended.code == Some(2) && ended.stderr.starts_with("MOONGATE_WORKERS: required, but with"), "{ended:?}");
}

#[test]
fn where_php_cannot_be_let_in_the_start_ends_and_names_the_setting() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, port) = (taken.local_addr().unwrap().to_string(), taken.local_addr().unwrap().port().to_string());
    for (name, value) in
        [("MOONGATE_LAN_LISTEN", &address), ("MOONGATE_REGISTER_LISTEN", &address), ("MOONGATE_LAN_PORT", &port)]
    {
        let listens = if name == "MOONGATE_LAN_PORT" { "" } else { "off" };
        let ended = run(&[], &[("MOONGATE_LAN_LISTEN", listens), (name, value)]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(&format!("{name}: cannot listen on {address}")), "{name}: {ended:?}");
    }
}

#[test]
fn a_value_that_is_not_utf_8_is_told_by_name() {
    let garbage = OsString::from_vec(b"caf\xe9".to_vec());
    for name in ["MOONGATE_INIT_MESSAGE", "MOONGATE_API_TOKEN"] {
        let mut check = command(&["check"], &[]);
        check.env(name, &garbage).env("SOMEBODY_ELSES", &garbage).env(OsStr::new("TZ"), "UTC");
        let ended = run_command(check);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.starts_with(&format!("{name}: ")), "{ended:?}");
        assert!(ended.stderr.lines().count() == 1 && !ended.stderr.contains("caf"), "{ended:?}");
    }
    let mut check = command(&["check"], &[]);
    check.env("SOMEBODY_ELSES", &garbage);
    assert_eq!(run_command(check).code, Some(0));
}

#[test]
fn what_kubernetes_adds_for_a_service_is_no_setting() {
    let links = [
        ("MOONGATE_SERVICE_HOST", "10.0.0.1"),
        ("MOONGATE_SERVICE_PORT", "7272"),
        ("MOONGATE_SERVICE_PORT_CLIENTS", "7272"),
        ("MOONGATE_PORT", "tcp://10.0.0.1:7272"),
        ("MOONGATE_PORT_7272_TCP", "tcp://10.0.0.1:7272"),
        ("MOONGATE_PORT_7272_TCP_ADDR", "10.0.0.1"),
        ("MOONGATE_PORT_7272_TCP_PORT", "7272"),
        ("MOONGATE_PORT_7272_TCP_PROTO", "tcp"),
        ("MOONGATE_API_PORT_53_UDP_PROTO", "udp"),
        ("MOONGATE_API_SERVICE_HOST", "10.0.0.2"),
        // A Service named `moongate-lan`.
        ("MOONGATE_LAN_PORT", "tcp://10.0.0.3:2900"),
        ("MOONGATE_LAN_SERVICE_PORT", "2900"),
        ("MOONGATE_LAN_PORT_2900_TCP", "tcp://10.0.0.3:2900"),
    ];
    let ended = run(&["check"], &links);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for (name, value) in [("MOONGATE_PORT", "7272"), ("MOONGATE_LAN_PORT", "http://10.0.0.3:2900")] {
        assert_eq!(run(&["check"], &[(name, value)]).code, Some(2), "{name}");
    }
}

#[test]
fn check_looks_at_the_settings_and_takes_no_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let good = run(&["check"], &[("MOONGATE_LISTEN", &address), ("MOONGATE_API_TOKEN", "hunter2hunter2")]);
    assert_eq!(good.code, Some(0), "{good:?}");
    assert!(good.stdout.contains(&address) && good.stderr.is_empty(), "{good:?}");
    assert!(!good.stdout.contains("hunter2"), "{good:?}");
    assert_eq!(run(&["check"], &[("MOONGATE_LISTEN", "nowhere")]).code, Some(2));
}

#[test]
fn help_and_version_are_told_whatever_the_settings_are() {
    let wrong = [("MOONGATE_LISTEN", "nowhere")];
    let help = run(&["--help"], &wrong);
    assert_eq!(help.code, Some(0), "{help:?}");
    for word in ["serve", "check", "MOONGATE_"] {
        assert!(help.stdout.contains(word), "{word} is not in {help:?}");
    }
    let version = run(&["--version"], &wrong);
    assert_eq!((version.code, version.stdout.trim()), (Some(0), concat!("moongate ", env!("CARGO_PKG_VERSION"))));
    let typo = run(&["chek"], &[]);
    assert!(typo.code == Some(2) && typo.stderr.contains("check"), "{typo:?}");
}

#[test]
fn an_address_in_use_ends_the_start_and_names_the_variable() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for name in ["MOONGATE_LISTEN", "MOONGATE_API_LISTEN"] {
        for format in ["text", "json"] {
            let ended = run(&[], &[(name, &address), ("MOONGATE_LOG_FORMAT", format)]);
            assert_eq!(ended.code, Some(1), "{ended:?}");
            assert!(ended.stderr.contains(&format!("{name}: ")) && ended.stderr.contains(&address), "{ended:?}");
            assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        }
    }
}

#[test]
fn why_a_node_could_not_start_is_told_whatever_the_log_filter_is() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for filter in ["error", "moongate::hub=debug"] {
        let ended = run(&[], &[("MOONGATE_LISTEN", &address), ("MOONGATE_LOG", filter)]);
        assert_eq!(ended.code, Some(1), "{filter}: {ended:?}");
        assert!(ended.stderr.contains("MOONGATE_LISTEN: "), "{filter}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_the_api_starts_with_a_token_only() {
    for open in ["0.0.0.0:0", "[::]:0"] {
        for arguments in [&[][..], &["check"]] {
            let ended = run(arguments, &[("MOONGATE_API_LISTEN", open)]);
            assert_eq!(ended.code, Some(2), "{ended:?}");
            assert!(ended.stderr.starts_with("MOONGATE_API_TOKEN: "), "{ended:?}");
            assert!(ended.stderr.contains("MOONGATE_API_LISTEN") && ended.stderr.lines().count() == 1, "{ended:?}");
        }
    }
    let node = Process::start(&[("MOONGATE_API_LISTEN", "0.0.0.0:0"), ("MOONGATE_API_TOKEN", "t0k3n")]).await;
    assert_eq!(node.ask("getAllClientIdCount", json!({})).await, 0);
}

#[test]
fn a_missing_token_is_told_beside_other_mistakes() {
    let ended = run(
        &["check"],
        &[("MOONGATE_API_LISTEN", "0.0.0.0:0"), ("MOONGATE_API_MAX_BODDY", "2MiB"), ("MOONGATE_API_MAX_BODY", "0")],
    );
    let told: Vec<&str> = ended.stderr.lines().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(told, ["MOONGATE_API_MAX_BODDY", "MOONGATE_API_MAX_BODY", "MOONGATE_API_TOKEN"], "{ended:?}");
}

// --- the log ---------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_json_log_is_one_object_per_line() {
    let node = Process::start(&[("MOONGATE_LOG", "debug"), ("MOONGATE_DRAIN", "0s")]).await;
    let client = node.connect().await;
    raw_http(node.clients, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()).await;
    // Not HTTP at all.
    raw_bytes(node.clients, b"\x00\x01\x02\r\n\r\n").await;
    raw_bytes(node.api, b"\x00\x01\x02\r\n\r\n").await;
    client.close(1000, "line\nbreak").await;
    let log = node.stop().await;
    assert!(log.lines().count() >= 3, "{log}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "message", "target"] {
            assert!(line[field].is_string(), "no {field} in {line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_for_tokens_that_can_be_guessed_is_warned_of() {
    for (length, is_warned_of) in [(31, true), (32, false)] {
        let secret = "s".repeat(length);
        let node = Process::start(&[("MOONGATE_AUTH", "optional"), ("MOONGATE_JWT_SECRET", &secret)]).await;
        let log = node.stop().await;
        assert_eq!(log.contains("MOONGATE_JWT_SECRET is shorter than 32 bytes"), is_warned_of, "{length}: {log}");
        assert!(!log.contains(&secret), "{log}");
    }
}

#[test]
fn a_text_log_that_is_no_terminal_has_no_escape_codes() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = run(&[], &[("MOONGATE_LISTEN", &address), ("MOONGATE_LOG_FORMAT", "text")]);
    assert!(!ended.stderr.contains('\x1b'), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_in_no_line_of_the_log_and_in_no_answer_even_at_trace() {
    const TOKEN: &str = "hunter2-hunter2-hunter2";
    for log in ["trace", "trace,hyper=trace,tungstenite=trace,tokio_tungstenite=trace"] {
        let node = Process::start(&[
            ("MOONGATE_API_TOKEN", TOKEN),
            ("MOONGATE_LOG", log),
            ("MOONGATE_DRAIN", "0s"),
            ("MOONGATE_LOG_FORMAT", "json"),
        ])
        .await;
        let mut client = node.connect().await;
        node.ask("sendToAll", json!({"message": "hello"})).await;
        assert_eq!(client.text().await, "hello");
        let mut answers = Vec::new();
        for (method, path, header, body) in [
            ("GET", "/", "X: y", ""),
            ("GET", "/metrics", "X: y", ""),
            ("GET", "/openapi.json", "X: y", ""),
            ("GET", "/nowhere", "X: y", ""),
            ("DELETE", "/api/sendToAll", "X: y", ""),
            ("POST", "/api/nothing", "X: y", "{}"),
            ("POST", "/api/sendToAll", "X: y", "{"),
            ("POST", "/api/sendToAll", "X: y", r#"{"token":1}"#),
            ("GET", "/?method=sendToAll&args[]=again", "X: y", ""),
            ("GET", "/metrics", "Broken header", ""),
        ] {
            let answer = node.request(method, path, &[header], body).await;
            answers.push(format!("{}\n{}", answer.head, answer.text()));
        }
        // The right token under the wrong scheme, and cut short.
        for authorization in [format!("Basic {TOKEN}"), TOKEN.to_owned(), format!("Bearer {TOKEN} ")] {
            let request =
                format!("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {authorization}");
            let answer = raw_http(node.api, format!("{request}\r\n\r\n").into_bytes()).await;
            answers.push(format!("{}\n{}", answer.head, answer.text()));
            raw_bytes(node.api, format!("{request}\r\n").as_bytes()).await;
            raw_bytes(node.clients, format!("{request}\r\n\r\n").as_bytes()).await;
        }
        let log = node.stop().await;
        assert!(log.contains(r#""level":"DEBUG""#) || log.contains(r#""level":"TRACE""#), "{log}");
        for text in answers.iter().chain([&log]) {
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_not_in_the_log_at_info() {
    let node = Process::start(&[("MOONGATE_DRAIN", "0s"), ("MOONGATE_LEAVE_MESSAGE", "(private) left")]).await;
    let mut client = node.connect().await;
    let member = json!({"client_id": client.id, "group": "(private) group"});
    node.ask("joinGroup", member).await;
    node.ask("setSession", json!({"client_id": client.id, "session": {"name": "(private) name"}})).await;
    node.ask("sendToGroup", json!({"group": "(private) group", "message": "(private) down"})).await;
    assert_eq!(client.text().await, "(private) down");
    client.send(Message::text("(private) up")).await;
    eventually("the message has arrived", async || node.metric("moongate_messages_received_total").await == 1).await;
    assert_eq!(node.request("POST", "/api/sendToAll", &[], r#"{"mesage":"(private)"}"#).await.status, 400);
    client.close(4321, "(private) reason").await;
    let log = node.stop().await;
    assert!(logged(&log, "listening").is_some() && !log.contains("private"), "{log}");
}

/// Sends bytes, says nothing more, and waits for the end.
async fn raw_bytes(address: SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    // The node may have ended it already.
    drop(socket.shutdown().await);
    let mut rest = Vec::new();
    soon("the end of a connection", async { drop(socket.read_to_end(&mut rest).await) }).await;
}

// --- signals ---------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_serves_all_for_the_first_fifth_and_then_refuses_and_closes() {
    let mut node = Process::start(&[("MOONGATE_DRAIN", "10s")]).await;
    let mut early = node.connect().await;
    let signalled = Instant::now();
    node.begin_to_stop("TERM").await;

    assert_eq!(node.get("/healthz").await.status, 200);
    let mut late = node.connect().await;
    assert_eq!(node.ask("sendToAll", json!({"message": "still here", "confirm": true})).await["clients"], 2);
    assert_eq!(early.text().await, "still here");
    assert_eq!(late.text().await, "still here");
    assert!(signalled.elapsed() < Duration::from_secs(2), "too slow to say anything about the first fifth");

    // Of the two one is closed before the other, and meanwhile the node cannot be done.
    let (left, close) = tokio::select! {
        close = early.closed() => (&mut late, close),
        close = late.closed() => (&mut early, close),
    };
    assert_eq!(close.0, 1012);
    assert!(signalled.elapsed() >= Duration::from_secs(2), "closed in the first fifth");
    match node.try_connect().await {
        Err(tungstenite::Error::Http(refusal)) => {
            assert_eq!(refusal.status(), 503);
            assert!(refusal.headers()["retry-after"].to_str().unwrap().parse::<u32>().is_ok());
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a handshake was served"),
    }
    assert_eq!(node.get("/readyz").await.status, 503);
    assert_eq!(node.get("/healthz").await.status, 200);
    assert_eq!(node.ask("getAllClientIdList", json!({})).await, json!([left.id]));
    hears(&node, left, "the last of them").await;
    assert_eq!(left.closed().await.0, 1012);

    assert_eq!(node.exit_code().await, Some(0));
    assert!(signalled.elapsed() < Duration::from_secs(8), "all were gone, and it waited on: {:?}", signalled.elapsed());
}

/// When each of 40 clients was closed, after a signal that gives them so long.
async fn closes_of_forty(drain: &str) -> Vec<Duration> {
    let mut node = Process::start(&[("MOONGATE_DRAIN", drain)]).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(node.connect().await);
    }
    let start = Instant::now();
    node.signal("TERM");
    let mut closing: JoinSet<Duration> = clients
        .into_iter()
        .map(|mut client| async move {
            let Some(Message::Close(Some(frame))) = client.next().await else { panic!("no close frame") };
            let after = start.elapsed();
            assert_eq!(u16::from(frame.code), 1012);
            while client.next().await.is_some() {}
            after
        })
        .collect();
    let mut closes = Vec::new();
    while let Some(close) = closing.join_next().await {
        closes.push(close.unwrap());
    }
    assert_eq!(node.exit_code().await, Some(0));
    closes.sort();
    closes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_ends_does_not_hold_up_the_end() {
    let mut node = Process::start(&[("MOONGATE_DRAIN", "0s")]).await;
    let mut half = TcpStream::connect(node.api).await.unwrap();
    let head = "POST /api/sendToAll HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
    half.write_all(head.as_bytes()).await.unwrap();
    // The server has taken it up when it answers on a connection that came later.
    eventually("the API answers", async || node.get("/healthz").await.status == 200).await;
    node.signal("TERM");
    let start = Instant::now();
    assert_eq!(node.exit_code().await, Some(0));
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_closed_one_after_the_other_and_not_at_once() {
    let closes = closes_of_forty("2s").await;
    assert!(closes[0] >= Duration::from_millis(400), "closed in the first fifth: {closes:?}");
    assert!(closes[39] < Duration::from_millis(2500), "closed after the end: {closes:?}");
    assert!(closes[39] >= closes[0] + Duration::from_millis(500), "all at once: {closes:?}");
    for (first, close) in closes.iter().enumerate() {
        let together = closes[first..].iter().filter(|other| **other < *close + Duration::from_millis(100)).count();
        assert!(together <= 20, "{together} within 100 ms of {close:?}: {closes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_longer_drain_clients_are_spread_wider() {
    // The rest is 4.8 s; half of it is a generous reading of "spread over the rest".
    let closes = closes_of_forty("6s").await;
    assert!(closes[39] >= closes[0] + Duration::from_millis(2400), "spread over less than half: {closes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_ends_well_before_its_drain_time_when_all_are_gone() {
    for signal in ["TERM", "INT"] {
        let mut node = Process::start(&[("MOONGATE_DRAIN", "5s")]).await;
        let (mut one, mut other) = (node.connect().await, node.connect().await);
        let start = Instant::now();
        node.begin_to_stop(signal).await;
        let (first, second) = tokio::join!(one.closed(), other.closed());
        assert_eq!((first.0, second.0), (1012, 1012));
        assert!(start.elapsed() >= Duration::from_secs(1), "{signal}: closed in the first fifth");
        assert_eq!(node.exit_code().await, Some(0), "{signal}");
        assert!(start.elapsed() < Duration::from_secs(4), "{signal}: {:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_exits_1_at_once() {
    for signal in ["TERM", "INT"] {
        let mut node = Process::start(&[("MOONGATE_DRAIN", "1m")]).await;
        let mut client = node.connect().await;
        node.begin_to_stop("TERM").await;
        let second = Instant::now();
        node.signal(signal);
        assert_eq!(node.exit_code().await, Some(1), "{signal}");
        assert!(second.elapsed() < Duration::from_secs(2), "{signal}: {:?}", second.elapsed());
        client.cut().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_drain_time_clients_are_closed_and_the_node_ends_at_once() {
    let mut node = Process::start(&[("MOONGATE_DRAIN", "0s")]).await;
    let mut client = node.connect().await;
    let mut silent = node.connect().await;
    // An API connection that is kept alive and says nothing.
    let _idle = kept_alive(node.api).await;
    let start = Instant::now();
    node.signal("TERM");
    assert_eq!(client.closed().await.0, 1012);
    assert_eq!(node.exit_code().await, Some(0));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(silent.closed().await.0, 1012);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_answers_its_close_frame_is_not_waited_for_beyond_the_drain_time() {
    let mut node = Process::start(&[("MOONGATE_DRAIN", "1s")]).await;
    let _silent = node.connect().await;
    let start = Instant::now();
    node.signal("TERM");
    assert_eq!(node.exit_code().await, Some(0));
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_is_not_waited_for_beyond_the_drain_time() {
    let mut node = Process::start(&[("MOONGATE_DRAIN", "1s"), ("MOONGATE_SEND_BUFFER", "64MiB")]).await;
    let _deaf = node.connect().await;
    let message = "x".repeat(900_000);
    for _ in 0..16 {
        node.ask("sendToAll", json!({"message": message})).await;
    }
    let start = Instant::now();
    node.signal("TERM");
    assert_eq!(node.exit_code().await, Some(0));
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_never_became_a_client_does_not_hold_up_the_end() {
    let mut node = Process::start(&[("MOONGATE_DRAIN", "8s"), ("MOONGATE_HANDSHAKE_TIMEOUT", "1m")]).await;
    // As a browser opens ahead of need, and a balancer keeps.
    let _silent = TcpStream::connect(node.clients).await.unwrap();
    let mut client = node.connect().await;
    let start = Instant::now();
    node.signal("TERM");
    assert_eq!(client.closed().await.0, 1012);
    assert_eq!(node.exit_code().await, Some(0));
    assert!(start.elapsed() < Duration::from_secs(6), "all clients were gone: {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_the_same_ports_are_free_at_once() {
    let mut node = Process::start(&[]).await;
    let mut client = node.connect().await;
    node.signal("KILL");
    assert_eq!(node.exit_code().await, None);
    client.cut().await;
    let (clients, api) = (node.clients.to_string(), node.api.to_string());
    let again = Process::start(&[("MOONGATE_LISTEN", &clients), ("MOONGATE_API_LISTEN", &api)]).await;
    assert_eq!(again.clients, node.clients);
    let client = again.connect().await;
    assert_eq!(again.ask("getAllClientIdList", json!({})).await, json!([client.id]));
}

// --- scarcity --------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_ran_out_of_descriptors_takes_clients_again_when_others_leave() {
    const CLIENTS: usize = 80;
    let node = Process::start_after("ulimit -n 64", &[]).await;
    let mut api = kept_alive(node.api).await;
    let (welcomed, leave) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let mut visits: JoinSet<()> = (0..CLIENTS)
        .map(|_| {
            let (welcomed, leave, address) = (Arc::clone(&welcomed), leave.clone(), node.clients);
            async move {
                let client = try_connect(address).await.unwrap();
                welcomed.fetch_add(1, Ordering::Relaxed);
                leave.cancelled().await;
                client.close(1000, "").await;
            }
        })
        .collect();
    soon("accepting fails", async {
        while metric(&get_again(&mut api, "/metrics").await, "moongate_accept_errors_total") == 0 {}
    })
    .await;
    let held = welcomed.load(Ordering::Relaxed);
    assert!(held < CLIENTS, "{held} clients on 64 descriptors");
    leave.cancel();
    while let Some(visit) = visits.join_next().await {
        visit.unwrap();
    }
    assert_eq!(welcomed.load(Ordering::Relaxed), CLIENTS);
    eventually("all have left", async || node.ask("getAllClientIdCount", json!({})).await == 0).await;
    assert_eq!(node.get("/readyz").await.status, 200);
}

/// An API connection on which one request has been answered.
async fn kept_alive(address: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    assert_eq!(get_again(&mut socket, "/healthz").await, "ok\n");
    socket
}

/// A request on a connection that stays open; the body of the answer.
async fn get_again(socket: &mut TcpStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon("an answer", async {
        loop {
            assert_ne!(socket.read_buf(&mut answer).await.unwrap(), 0, "closed after {answer:?}");
            let text = String::from_utf8_lossy(&answer);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if body.len() == length.parse::<usize>().unwrap() {
                return body.to_owned();
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_on_after_many_connections_that_came_to_nothing() {
    let node = Process::start(&[]).await;
    for _ in 0..200 {
        drop(TcpStream::connect(node.clients).await.unwrap());
        drop(TcpStream::connect(node.api).await.unwrap());
    }
    let client = node.connect().await;
    assert_eq!(node.ask("getAllClientIdList", json!({})).await, json!([client.id]));
}
