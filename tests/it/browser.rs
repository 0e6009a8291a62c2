//! A real browser: headless Chromium, driven over its `DevTools` protocol.
//!
//! One connection serves the whole browser; each tab is a *session* on it. A task owns the socket: it sends what is asked, gives
//! every answer to the one who asked, and keeps what a tab complains about. Every wait has a deadline, and what runs out of time
//! says what it waited for and what the page looked like.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a driver for tests: what fails here fails the test"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc as blocking};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

/// How long a condition in a page may take to come true.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the browser may take to start, and to answer one command: a busy machine is no failure.
const COMMAND: Duration = Duration::from_secs(30);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);
/// How long a killed browser may take to be gone with all its processes.
const BURIAL: Duration = Duration::from_secs(10);
/// A browser is half a dozen processes: more than these at once only make each other late.
/// Waiting for a seat ends because every wait of its holder does.
static SEATS: Semaphore = Semaphore::const_new(2);

/// A running browser with a profile of its own; killed, waited for and wiped when dropped.
pub(crate) struct Browser {
    devtools: DevTools,
    /// Before the profile, which is removed only after the last process that writes to it.
    _process: Process,
    _profile: TempDir,
    _seat: SemaphorePermit<'static>,
}

/// A tab.
pub(crate) struct Page {
    devtools: DevTools,
    session: String,
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let seat = SEATS.acquire().await.unwrap();
        let profile = tempfile::Builder::new().prefix("chromium-").tempdir().unwrap();
        let (process, address) = Process::start(profile.path());
        let address = timeout(COMMAND, address).await.ok().and_then(Result::ok).unwrap_or_else(|| {
            panic!("chromium ended, or was not ready within {COMMAND:?}; it said:\n{}", process.last_words())
        });
        let devtools = DevTools::connect(&address).await;
        Self { devtools, _process: process, _profile: profile, _seat: seat }
    }

    /// A new tab with this address, loaded.
    pub(crate) async fn open(&self, url: &str) -> Page {
        let target =
            self.devtools.call(None, "Target.createTarget", json!({"url": "about:blank"})).await["targetId"].clone();
        let attached =
            self.devtools.call(None, "Target.attachToTarget", json!({"targetId": target, "flatten": true})).await;
        let page =
            Page { devtools: self.devtools.clone(), session: attached["sessionId"].as_str().unwrap().to_owned() };
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            page.command(domain, json!({})).await;
        }
        page.go(url).await;
        page
    }
}

impl Page {
    /// Loads this address in the tab.
    pub(crate) async fn go(&self, url: &str) {
        self.eval("window.left = true").await;
        let gone = self.command("Page.navigate", json!({"url": url})).await;
        assert!(gone["errorText"].is_null(), "{url} does not load: {}", gone["errorText"]);
        self.until("!window.left && document.readyState === 'complete'", "the page is loaded").await;
    }

    /// The value of an expression, awaited if it is a promise. An exception fails the test.
    pub(crate) async fn eval(&self, js: &str) -> Value {
        self.try_eval(js).await.unwrap_or_else(|error| panic!("{error}\nin: {js}"))
    }

    /// The text of an element, as it is in the document.
    pub(crate) async fn text(&self, selector: &str) -> String {
        let text = self.eval(&format!("document.querySelector({}).textContent", json!(selector))).await;
        text.as_str().unwrap().to_owned()
    }

    /// Waits until an expression is true. An exception counts as not yet.
    pub(crate) async fn until(&self, condition: &str, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut last;
        loop {
            last = self.try_eval(&format!("Boolean({condition})")).await;
            if matches!(last, Ok(Value::Bool(true))) {
                return;
            }
            if Instant::now() >= deadline {
                break;
            }
            sleep(LOOK).await;
        }
        let shown = self.try_eval("document.body.innerText").await.unwrap_or_default();
        panic!(
            "waited {PATIENCE:?} in vain until {what}\ncondition: {condition}\nlast: {last:?}\nconsole: {:?}\nthe page shows:\n{}",
            self.console_errors(),
            shown.as_str().unwrap_or_default(),
        );
    }

    /// A click with the mouse in the middle of an element: it must be enabled and nothing may lie above it.
    pub(crate) async fn click(&self, selector: &str) {
        let element = json!(selector);
        let ready = format!("(e => e && !e.disabled && e.getClientRects().length)(document.querySelector({element}))");
        self.until(&ready, &format!("{selector} can be clicked")).await;
        let place = self
            .eval(&format!(
                "(() => {{
                    const element = document.querySelector({element});
                    element.scrollIntoView({{block: 'center', behavior: 'instant'}});
                    const box = element.getBoundingClientRect();
                    const x = box.left + box.width / 2, y = box.top + box.height / 2;
                    const top = document.elementFromPoint(x, y);
                    if (!element.contains(top)) throw new Error(`${{top?.outerHTML}} lies above {{}}`.replace('{{}}', {element}));
                    return {{x, y}};
                }})()"
            ))
            .await;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": place["x"], "y": place["y"], "button": "left", "clickCount": 1});
            self.command("Input.dispatchMouseEvent", event).await;
        }
    }

    /// Replaces what stands in a field, as by typing.
    pub(crate) async fn fill(&self, selector: &str, text: &str) {
        self.eval(&format!("(e => {{ e.focus(); e.select(); }})(document.querySelector({}))", json!(selector))).await;
        if text.is_empty() {
            self.press("Backspace").await;
        } else {
            self.command("Input.insertText", json!({"text": text})).await;
        }
    }

    /// Chooses an entry of a `<select>` by its value.
    pub(crate) async fn choose(&self, selector: &str, value: &str) {
        let chosen = self
            .eval(&format!(
                "(e => {{ e.value = {}; e.dispatchEvent(new Event('change', {{bubbles: true}})); return e.value; }})(document.querySelector({}))",
                json!(value),
                json!(selector),
            ))
            .await;
        assert_eq!(chosen, value, "{selector} has no entry {value}");
    }

    /// Presses and releases one of the keys `Enter`, `Tab`, `Space`, `Backspace`, `ArrowDown`, a digit or `/`, where the focus is.
    pub(crate) async fn press(&self, key: &str) {
        let (key, code, text) = match key {
            "Enter" => ("Enter", 13, "\r"),
            "Tab" => ("Tab", 9, ""),
            "Space" => (" ", 32, " "),
            "Backspace" => ("Backspace", 8, ""),
            "ArrowDown" => ("ArrowDown", 40, ""),
            "/" => ("/", 191, "/"),
            digit if matches!(digit.as_bytes(), [b'0'..=b'9']) => (digit, u32::from(digit.as_bytes()[0]), digit),
            other => panic!("the driver has no key {other}"),
        };
        let down = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        for kind in [down, "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": if key == " " { "Space" } else { key }, "windowsVirtualKeyCode": code});
            if kind == "keyDown" {
                event["text"] = text.into();
            }
            self.command("Input.dispatchKeyEvent", event).await;
        }
    }

    /// The whole page as a PNG, also what one would have to scroll to.
    pub(crate) async fn screenshot(&self, path: &Path) {
        let size = self.command("Page.getLayoutMetrics", json!({})).await["cssContentSize"].take();
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let params = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let shot = self.command("Page.captureScreenshot", params).await;
        let png = BASE64.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::write(path, png).unwrap();
    }

    /// Uncaught exceptions and what went to `console.error`, in order. An HTTP status of 4xx is none: the page shows it.
    pub(crate) fn console_errors(&self) -> Vec<String> {
        self.devtools.complaints.lock().unwrap().get(&self.session).cloned().unwrap_or_default()
    }

    /// Any command of the protocol, in this tab.
    pub(crate) async fn command(&self, method: &str, params: Value) -> Value {
        self.devtools.call(Some(&self.session), method, params).await
    }

    async fn try_eval(&self, js: &str) -> Result<Value, String> {
        let params = json!({"expression": js, "awaitPromise": true, "returnByValue": true, "userGesture": true});
        let answer = self.devtools.try_call(Some(&self.session), "Runtime.evaluate", params).await?;
        match answer.get("exceptionDetails") {
            Some(details) => Err(exception(details)),
            None => Ok(answer["result"].get("value").cloned().unwrap_or_default()),
        }
    }
}

/// The browser's main process. Its other processes hold its stderr: when that ends, all are gone.
struct Process {
    child: Child,
    gone: blocking::Receiver<()>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Process {
    fn start(profile: &Path) -> (Self, oneshot::Receiver<String>) {
        let program = std::env::var_os("CHROMIUM").unwrap_or_else(|| "chromium".into());
        let mut child = Command::new(&program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--disable-breakpad",
                "--no-first-run",
                "--no-default-browser-check",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                // Whatever a browser likes to look up at home, it finds nobody there.
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
                "--no-proxy-server",
                "--lang=en-US",
                "--window-size=1280,900",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("no browser ({}: {error}): apt-get install chromium, or name one in CHROMIUM", program.display())
            });

        let said = Arc::new(Mutex::new(Vec::new()));
        let (tell, address) = oneshot::channel();
        let (alive, gone) = blocking::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = Arc::clone(&said);
        thread::spawn(move || {
            let _alive: blocking::Sender<()> = alive;
            let mut tell = Some(tell);
            for line in lines.map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("DevTools listening on ") {
                    tell.take().map(|tell| tell.send(address.to_owned()));
                }
                let mut kept = kept.lock().unwrap();
                if kept.len() < 100 {
                    kept.push(line);
                }
            }
        });
        (Self { child, gone, said }, address)
    }

    fn last_words(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where it is already gone.
        self.child.kill().ok();
        let deadline = Instant::now() + BURIAL;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        self.gone.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    }
}

/// The connection to the browser.
#[derive(Clone)]
struct DevTools {
    asks: mpsc::Sender<Ask>,
    complaints: Arc<Mutex<HashMap<String, Vec<String>>>>,
    next: Arc<AtomicU64>,
}

struct Ask {
    id: u64,
    command: Value,
    answer: oneshot::Sender<Result<Value, String>>,
}

impl DevTools {
    async fn connect(address: &str) -> Self {
        // A screenshot comes as one message.
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let (socket, _) = timeout(COMMAND, connect_async_with_config(address, Some(config), true))
            .await
            .expect("DevTools answers in time")
            .expect("DevTools takes the connection");
        let (asks, asked) = mpsc::channel(16);
        let complaints = Arc::default();
        tokio::spawn(serve(socket, asked, Arc::clone(&complaints)));
        Self { asks, complaints, next: Arc::default() }
    }

    async fn call(&self, session: Option<&str>, method: &str, params: Value) -> Value {
        self.try_call(session, method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    async fn try_call(&self, session: Option<&str>, method: &str, params: Value) -> Result<Value, String> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut command = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        let (answer, answered) = oneshot::channel();
        let round = async {
            self.asks.send(Ask { id, command, answer }).await.ok();
            answered.await.unwrap_or_else(|_| Err("the browser is gone".to_owned()))
        };
        timeout(COMMAND, round).await.unwrap_or_else(|_| Err(format!("no answer within {COMMAND:?}")))
    }
}

/// Owns the socket until either side ends; whoever still waits for an answer then learns it from the dropped sender.
async fn serve(
    mut socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    mut asked: mpsc::Receiver<Ask>,
    complaints: Arc<Mutex<HashMap<String, Vec<String>>>>,
) {
    let mut waiting = HashMap::new();
    loop {
        tokio::select! {
            ask = asked.recv() => {
                let Some(Ask { id, command, answer }) = ask else { return };
                waiting.insert(id, answer);
                if socket.send(Message::text(command.to_string())).await.is_err() {
                    return;
                }
            }
            message = socket.next() => {
                let Some(Ok(message)) = message else { return };
                let Message::Text(text) = message else { continue };
                let mut said: Value = serde_json::from_str(&text).expect("DevTools speaks JSON");
                if let Some(id) = said["id"].as_u64() {
                    let Some(answer) = waiting.remove(&id) else { continue };
                    let outcome = match said.get("error") {
                        Some(error) => Err(error["message"].as_str().unwrap_or("an error without a message").to_owned()),
                        None => Ok(said["result"].take()),
                    };
                    // Nobody there: the ask ran out of time.
                    answer.send(outcome).ok();
                } else if let Some(complaint) = complaint(&said) {
                    let session = said["sessionId"].as_str().unwrap_or_default().to_owned();
                    complaints.lock().unwrap().entry(session).or_default().push(complaint);
                }
            }
        }
    }
}

/// What an event says that a page should not have caused.
fn complaint(event: &Value) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(exception(&params["exceptionDetails"])),
        "Runtime.consoleAPICalled" if params["type"] == "error" || params["type"] == "assert" => {
            let words = params["args"].as_array()?.iter();
            let words: Vec<_> = words
                .map(|word| word["description"].as_str().map_or_else(|| word["value"].to_string(), str::to_owned))
                .collect();
            Some(words.join(" "))
        }
        "Log.entryAdded" if params["entry"]["level"] == "error" && params["entry"]["source"] != "network" => {
            Some(params["entry"]["text"].to_string())
        }
        _ => None,
    }
}

fn exception(details: &Value) -> String {
    let description = details["exception"]["description"].as_str().or_else(|| details["text"].as_str());
    description.unwrap_or("an exception without a description").to_owned()
}
