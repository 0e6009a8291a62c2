//! The client for browsers, `clients/js`, in a real one.

use std::net::SocketAddr;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::access::{SECRET, token};
use crate::browser::{Browser, Page};
use crate::harness::{Node, eventually};
use crate::port::reserve_a_port;
use crate::process::Process;
use crate::proxy::{Direction, Proxy};
use crate::receiver::Receiver;

const SOURCE: &str = include_str!("../../clients/js/src/moongate.js");
const MODULE: &str = include_str!("../../clients/js/dist/moongate.js");
const CLASSIC: &str = include_str!("../../clients/js/dist/moongate.classic.js");
const BUILD: &str = include_str!("../../clients/js/build.js");
const PACKAGE: &str = include_str!("../../clients/js/package.json");

/// A page of the application. `visit` connects, and keeps what is heard.
const PAGE: &str = "<!doctype html><meta charset=utf-8><title>An application</title>
<script src=/moongate.classic.js></script>
<script type=module>
import { Moongate } from '/moongate.js';
window.Module = Moongate;
</script>
<script>
const told = [];
const heard = name => told.filter(([event]) => event === name).map(([, value]) => value);
function visit(url, options, Kind = Moongate) {
    const gate = new Kind(url, options);
    for (const name of ['init', 'open', 'message', 'json', 'close'])
        gate.on(name, value => told.push([name, value instanceof ArrayBuffer ? [...new Uint8Array(value)] : value]));
    told.length = 0;
    window.gate = gate;
}
// Time runs a thousand times faster. What a handshake may take has to be said in these seconds, too.
const waits = [];
function hurry() {
    const real = window.setTimeout;
    window.setTimeout = (call, time) => {
        if (time !== PATIENCE) waits.push(time);
        return real(call, time / 1000);
    };
}
const PATIENCE = 10_000_000;
</script>";

/// A page, with the browser that shows it, and the server that it came from.
struct Visitor {
    page: Page,
    _browser: Browser,
    site: AbortHandle,
}

impl Visitor {
    async fn come() -> Self {
        let file = |kind: &'static str, text: &'static str| get(move || async move { ([(CONTENT_TYPE, kind)], text) });
        let script = |text| file("text/javascript", text);
        let files = Router::new()
            .route("/", file("text/html", PAGE))
            .route("/moongate.js", script(MODULE))
            .route("/moongate.classic.js", script(CLASSIC))
            .route("/build.js", script(BUILD))
            .route("/source.js", script(SOURCE));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let site = tokio::spawn(async move { axum::serve(listener, files).await.unwrap() }).abort_handle();
        let browser = Browser::start().await;
        let page = browser.open(&format!("http://{address}/")).await;
        Self { page, _browser: browser, site }
    }

    /// Connects with these options, in JavaScript.
    async fn visit(&self, address: SocketAddr, options: &str) {
        self.page.eval(&format!("visit('ws://{address}/', {options})")).await;
    }

    /// Its client id, when it has one.
    async fn welcomed(&self) -> String {
        self.page.until("gate.clientId", "it is told its id").await;
        assert_eq!(self.page.eval("gate.state").await, "open");
        self.page.eval("gate.clientId").await.as_str().unwrap().to_owned()
    }

    /// The same, when it is another one than this.
    async fn welcomed_again(&self, before: &str) -> String {
        let another = format!("gate.clientId && gate.clientId !== {}", json!(before));
        self.page.until(&another, "it is told another id").await;
        self.welcomed().await
    }

    /// What listeners of this name were told.
    async fn heard(&self, name: &str) -> Vec<Value> {
        self.page.eval(&format!("heard({})", json!(name))).await.as_array().unwrap().clone()
    }

    /// The same, when it is so many.
    async fn hears(&self, name: &str, count: usize) -> Vec<Value> {
        let enough = format!("heard({}).length >= {count}", json!(name));
        self.page.until(&enough, &format!("it hears {count} times {name}")).await;
        self.heard(name).await
    }

    fn is_quiet(&self) {
        assert_eq!(self.page.console_errors(), Vec::<String>::new());
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.site.abort();
    }
}

/// Lets everybody in, and closes with the code that is the path.
async fn closer() -> (SocketAddr, AbortHandle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut code = 0_u16;
                #[allow(clippy::result_large_err, reason = "as the library has it")]
                let read = |request: &Request, response: Response| {
                    code = request.uri().path().trim_start_matches('/').parse().unwrap();
                    Ok(response)
                };
                let mut socket = tokio_tungstenite::accept_hdr_async(socket, read).await.unwrap();
                let close = CloseFrame { code: code.into(), reason: "because".into() };
                socket.send(Message::Close(Some(close))).await.unwrap();
                while let Some(Ok(_)) = socket.next().await {}
            });
        }
    });
    (address, serving.abort_handle())
}

// --- it comes back ---

#[tokio::test(flavor = "multi_thread")]
async fn a_page_comes_back_after_each_restart_of_its_node_and_is_told_a_new_id() {
    let (_port, address) = reserve_a_port().unwrap();
    let listen = address.to_string();
    let settings = [("MOONGATE_LISTEN", &*listen), ("MOONGATE_DRAIN", "1s")];
    let visitor = Visitor::come().await;
    let mut node = Process::start(&settings).await;
    for kind in ["Moongate", "Module"] {
        let visit = format!("visit('ws://{address}/', {{minDelay: 50, maxDelay: 500}}, {kind})");
        visitor.page.eval(&visit).await;
        let mut id = visitor.welcomed().await;
        for signal in ["TERM", "KILL", "TERM"] {
            node.signal(signal);
            node.exit_code().await;
            visitor.page.until("gate.clientId === null", "it has noticed").await;
            node = Process::start(&settings).await;
            id = visitor.welcomed_again(&id).await;
            let sent = node.ask("sendToClient", json!({"client_id": id, "message": "welcome back"})).await;
            assert_eq!(sent["nodes"], 1);
        }
        assert_eq!(visitor.hears("message", 3).await, ["welcome back"; 3]);
        assert_eq!(visitor.heard("init").await.len(), 4);
        let first = visitor.heard("close").await.remove(0);
        assert_eq!((&first["code"], &first["reason"]), (&json!(1012), &json!("node stops, please reconnect")));
        visitor.page.eval("gate.close()").await;
    }
    visitor.is_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_closed_by_the_application_or_replaced_by_another_login_stays_away() {
    let node = Node::start().await;
    let proxy = Proxy::start(node.clients).await;
    let visitor = Visitor::come().await;
    visitor.page.eval("hurry()").await;
    for (connections, code) in [(1, 4000), (3, 4001)] {
        visitor.visit(proxy.address(), "{timeout: PATIENCE}").await;
        let id = visitor.welcomed().await;
        if code == 4000 {
            node.ask("closeClient", json!({"client_id": id})).await;
        } else {
            node.done("bindUid", json!({"client_id": id, "uid": "ann"})).await;
            let other = node.connect().await;
            node.done("bindUid", json!({"client_id": other.id, "uid": "ann", "single": true})).await;
        }
        let close = visitor.hears("close", 1).await.remove(0);
        assert_eq!((&close["code"], &close["delay"]), (&json!(code), &Value::Null));
        assert_eq!(visitor.page.eval("[gate.state, gate.send('into the night')]").await, json!(["closed", false]));
        // Of an attempt the timer would have been set, and long over when another has come and gone.
        assert_eq!(visitor.page.eval("waits").await, json!([]));
        assert_eq!(proxy.accepted(), connections);
        // It comes when it is told to.
        visitor.page.eval("gate.connect()").await;
        visitor.welcomed_again(&id).await;
        assert_eq!(proxy.accepted(), connections + 1);
        visitor.page.eval("gate.close()").await;
    }
    visitor.is_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_code_says_whether_and_when_a_page_comes_back() {
    let (address, serving) = closer().await;
    let visitor = Visitor::come().await;
    visitor.page.eval("Math.random = () => 0.5").await;
    for (codes, delay) in [
        (&[1000, 4000, 4001][..], Value::Null),
        (&[1002, 1007, 1008, 1009, 1011, 1013], json!(6000)),
        (&[1001, 1012, 3000, 4002, 4321], json!(500)),
    ] {
        for code in codes {
            visitor.page.eval(&format!("visit('ws://{address}/{code}')")).await;
            let close = visitor.hears("close", 1).await.remove(0);
            assert_eq!(close, json!({"code": code, "reason": "because", "attempts": 1, "delay": delay}));
            let state = if delay.is_null() { "closed" } else { "waiting" };
            assert_eq!(visitor.page.eval("gate.state").await, state, "{code}");
            visitor.page.eval("gate.close()").await;
        }
    }
    // The application knows better.
    let retry = "{retry: close => ({4321: null, 4000: 7, 4322: 1e6})[close.code]}";
    for (code, delay) in [(4321, Value::Null), (4000, json!(7)), (4322, json!(1e6)), (1012, json!(500))] {
        visitor.page.eval(&format!("visit('ws://{address}/{code}', {retry})")).await;
        assert_eq!(visitor.hears("close", 1).await[0]["delay"].as_f64(), delay.as_f64(), "{code}");
        visitor.page.eval("gate.close()").await;
    }
    visitor.is_quiet();
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_addresses_each_attempt_takes_the_next_and_a_good_one_is_kept() {
    let node = Node::start().await;
    let (address, serving) = closer().await;
    let visitor = Visitor::come().await;
    let urls =
        json!([format!("ws://{address}/1012"), format!("ws://{address}/1001"), format!("ws://{}/", node.clients)]);
    visitor.page.eval(&format!("hurry(), visit({urls}, {{timeout: PATIENCE}})")).await;
    let id = visitor.welcomed().await;
    let codes: Vec<_> = visitor.heard("close").await.iter().map(|close| close["code"].clone()).collect();
    assert_eq!(codes, [1012, 1001]);
    assert_eq!(visitor.page.eval("gate.url").await, urls[2]);
    // What it ended itself was no fault of the node.
    visitor.page.eval("gate.close(), gate.connect()").await;
    visitor.welcomed_again(&id).await;
    assert_eq!(visitor.page.eval("gate.url").await, urls[2]);
    visitor.page.eval("gate.close()").await;
    visitor.is_quiet();
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_grow_to_a_bound_and_no_two_pages_wait_alike() {
    let (address, serving) = closer().await;
    let visitor = Visitor::come().await;
    visitor.page.eval("chance = Math.random, hurry()").await;
    let mut runs = Vec::new();
    for random in ["() => 0", "() => 1", "chance", "chance"] {
        visitor.page.eval(&format!("Math.random = {random}, waits.length = 0")).await;
        visitor.page.eval(&format!("visit('ws://{address}/1012', {{timeout: PATIENCE}})")).await;
        let closes = visitor.hears("close", 7).await;
        visitor.page.eval("gate.close()").await;
        let told: Vec<_> = closes.iter().take(7).map(|close| close["delay"].as_f64().unwrap()).collect();
        let attempts: Vec<_> = closes.iter().take(7).map(|close| close["attempts"].clone()).collect();
        assert_eq!(attempts, [1, 2, 3, 4, 5, 6, 7]);
        let waited = visitor.page.eval("waits").await;
        let waited: Vec<_> = waited.as_array().unwrap().iter().take(7).map(|wait| wait.as_f64().unwrap()).collect();
        assert_eq!(told, waited);
        runs.push(told);
    }
    assert_eq!(runs[0], [0.0, 1000.0, 2000.0, 4000.0, 8000.0, 15_000.0, 15_000.0]);
    assert_eq!(runs[1], [1000.0, 2000.0, 4000.0, 8000.0, 16_000.0, 30_000.0, 30_000.0]);
    for (place, (one, other)) in runs[2].iter().zip(&runs[3]).enumerate() {
        assert!(one != other && (runs[0][place]..runs[1][place]).contains(one), "{runs:?}");
    }
    visitor.is_quiet();
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_connection_that_held_waits_begin_anew() {
    let node = Node::start().await;
    let visitor = Visitor::come().await;
    visitor.page.eval("now = 1e6, Date.now = () => now, 0").await;
    visitor.visit(node.clients, "{minDelay: 10}").await;
    let mut id = visitor.welcomed().await;
    for held in [9_999, 9_999, 10_000, 0] {
        visitor.page.eval(&format!("now += {held}")).await;
        node.ask("closeClient", json!({"client_id": id, "code": 1012})).await;
        id = visitor.welcomed_again(&id).await;
    }
    let attempts: Vec<_> = visitor.heard("close").await.iter().map(|close| close["attempts"].clone()).collect();
    assert_eq!(attempts, [1, 2, 1, 2]);
    visitor.is_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_nobody_answers_is_given_up() {
    let node = Node::start().await;
    let proxy = Proxy::start(node.clients).await;
    proxy.stall();
    let visitor = Visitor::come().await;
    visitor.visit(proxy.address(), "{timeout: 200, minDelay: 10, maxDelay: 10}").await;
    for close in visitor.hears("close", 2).await {
        assert_eq!((&close["code"], &close["reason"]), (&json!(1006), &json!("timeout")));
    }
    // So is one whose token never comes.
    visitor.page.eval("gate.close()").await;
    visitor.visit(proxy.address(), "{timeout: 50, minDelay: 10, token: () => new Promise(() => {})}").await;
    assert_eq!(visitor.hears("close", 2).await[1]["reason"], "timeout");
    visitor.page.eval("gate.close()").await;

    visitor.visit(proxy.address(), "{timeout: 5000, minDelay: 10, maxDelay: 10}").await;
    proxy.pass();
    visitor.welcomed().await;
    visitor.is_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_knows_from_its_browser_when_to_leave_and_when_to_come() {
    let node = Node::start().await;
    let proxy = Proxy::start(node.clients).await;
    let visitor = Visitor::come().await;
    let network = async |there: bool| {
        let state = json!({"offline": !there, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
        visitor.page.command("Network.overrideNetworkState", state).await;
    };
    // Without a word of the browser's it would wait for hours.
    visitor.page.eval("Math.random = () => 0.5").await;
    visitor.visit(proxy.address(), "{minDelay: 1e8, maxDelay: 1e8}").await;
    let mut id = visitor.welcomed().await;
    for (number, event) in ["online", "pageshow", "visibilitychange"].into_iter().enumerate() {
        network(false).await;
        let close = visitor.hears("close", number + 1).await.remove(number);
        assert_eq!((&close["code"], &close["reason"]), (&json!(1006), &json!("offline")));
        // What ended for want of a network is not counted when there is one again.
        assert_eq!(close["attempts"], 1);
        assert_eq!(visitor.page.eval("gate.state").await, "waiting");
        // It is somewhere else, and back in this page.
        let back = format!("{}.dispatchEvent(new Event('{event}'))", if number == 2 { "document" } else { "self" });
        if event != "online" {
            visitor.page.eval(&back).await;
            id = visitor.welcomed_again(&id).await;
        }
        network(true).await;
        visitor.page.until("navigator.onLine", "there is a network").await;
        if event == "online" {
            id = visitor.welcomed_again(&id).await;
        }
        // Where all is well, they change nothing.
        visitor.page.eval(&back).await;
        assert_eq!(visitor.page.eval("gate.clientId").await, id);
    }
    // And nothing when it is closed.
    visitor.page.eval("gate.close(); for (const name of ['online', 'pageshow']) dispatchEvent(new Event(name))").await;
    assert_eq!(visitor.page.eval("gate.state").await, "closed");
    assert_eq!(proxy.accepted(), 4);
    visitor.is_quiet();
}

/// Browsers keep such a page as it is, with its socket: to the gateway it would look online, and hear nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_its_user_has_left_is_gone_and_comes_again_with_him() {
    let node = Node::start().await;
    let visitor = Visitor::come().await;
    visitor.visit(node.clients, "{minDelay: 1e8, maxDelay: 1e8}").await;
    let id = visitor.welcomed().await;
    let address = visitor.page.eval("location.href + 'source.js'").await;
    visitor.page.go(address.as_str().unwrap()).await;
    eventually("it is gone", async || node.ask("getAllClientIdCount", json!({})).await == 0).await;
    visitor.page.eval("history.back()").await;
    visitor.welcomed_again(&id).await;
    let close = visitor.heard("close").await.remove(0);
    assert_eq!((&close["code"], &close["reason"]), (&json!(1006), &json!("left")));
    visitor.is_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_hears_no_ping_data_any_more_comes_again() {
    let settings = [("MOONGATE_PING_INTERVAL", "100ms"), ("MOONGATE_PING_DATA", "ping?")];
    let node = Node::start_with(&[&settings[..], &[("MOONGATE_PING_NOT_RESPONSE_LIMIT", "0")]].concat()).await;
    let proxy = Proxy::start(node.clients).await;
    let visitor = Visitor::come().await;
    visitor.visit(proxy.address(), "{minDelay: 10, heartbeat: {ping: 'ping?', timeout: 2000}}").await;
    let id = visitor.welcomed().await;
    proxy.swallow(Direction::Both);
    visitor.welcomed_again(&id).await;
    let close = visitor.heard("close").await.remove(0);
    assert_eq!((&close["code"], &close["reason"]), (&json!(1006), &json!("silent")));
    assert_eq!(visitor.heard("message").await, Vec::<Value>::new());
    visitor.is_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_answers_ping_data_outlives_one_that_does_not() {
    let settings = [
        ("MOONGATE_PING_INTERVAL", "100ms"),
        ("MOONGATE_PING_DATA", "ping?"),
        // A busy machine may keep the page from answering for a second or two.
        ("MOONGATE_PING_NOT_RESPONSE_LIMIT", "30"),
    ];
    let node = Node::start_with(&settings).await;
    let visitor = Visitor::come().await;
    visitor.visit(node.clients, "{heartbeat: {ping: 'ping?', pong: 'pong!'}}").await;
    visitor.welcomed().await;
    visitor
        .page
        .eval(&format!(
            "silent = new Moongate('{}', {{retry: () => null}}), silent.on('close', ({{ code }}) => cut = code)",
            node.ws_url("/")
        ))
        .await;
    visitor.page.until("cut === 4002", "the silent one is cut").await;
    assert_eq!((visitor.heard("close").await.len(), visitor.heard("message").await.len()), (0, 0));
    visitor.is_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_a_page_connects_and_comes_back_as_well() {
    let node = Node::start().await;
    let visitor = Visitor::come().await;
    let worker = format!(
        "importScripts(location.origin + '/moongate.classic.js');
        new Moongate('{}', {{minDelay: 10}}).on('init', init => postMessage(init.client_id));",
        node.ws_url("/")
    );
    let script = format!("URL.createObjectURL(new Blob([{}]))", json!(worker));
    visitor.page.eval(&format!("worker = new Worker({script}), worker.onmessage = event => id = event.data, 0")).await;
    visitor.page.until("id", "the worker is told its id").await;
    let id = visitor.page.eval("id").await;
    node.ask("destroyClient", json!({"client_id": id})).await;
    visitor.page.until(&format!("id !== {id}"), "it is told another").await;
    visitor.is_quiet();
}

// --- what is said and heard ---

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_while_away_arrives_in_order_and_no_more_than_may_wait() {
    let application = Receiver::start().await;
    let hook = application.url();
    let node = Node::start_with(&[("MOONGATE_EVENTS", "webhook:message"), ("MOONGATE_WEBHOOK_URL", &hook)]).await;
    let proxy = Proxy::start(node.clients).await;
    proxy.refuse();
    let visitor = Visitor::come().await;
    visitor.visit(proxy.address(), "{queue: 3, minDelay: 100, maxDelay: 100}").await;
    visitor.page.eval("gate.on('open', () => gate.send('hello'))").await;
    let taken = "['one', {two: 2}, [3], 'four', 'five'].map(message => gate.send(message))";
    assert_eq!(visitor.page.eval(taken).await, json!([true, true, true, false, false]));
    proxy.pass();
    let id = visitor.welcomed().await;
    assert_eq!(visitor.page.eval("gate.send('six')").await, true);

    application.events("message", 5).await;

    // What waits when it is closed was somebody else's.
    proxy.refuse();
    visitor.page.until("gate.state === 'waiting'", "the connection is lost").await;
    visitor.page.eval("gate.send('seven'), gate.close(), gate.send('eight'), gate.connect(), gate.send('nine')").await;
    proxy.pass();
    visitor.welcomed_again(&id).await;

    let said = application.events("message", 7).await;
    let said: Vec<_> = said.iter().map(|event| event["data"].as_str().unwrap()).collect();
    assert_eq!(said, ["hello", "one", r#"{"two":2}"#, "[3]", "six", "hello", "nine"]);
    visitor.is_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn text_json_and_bytes_arrive_as_what_they_are() {
    let application = Receiver::start().await;
    let hook = application.url();
    let node = Node::start_with(&[("MOONGATE_EVENTS", "webhook:message"), ("MOONGATE_WEBHOOK_URL", &hook)]).await;
    let visitor = Visitor::come().await;
    visitor.visit(node.clients, "{}").await;
    let id = visitor.welcomed().await;
    for message in [json!("月"), json!({"type": "mail", "unread": 3}), json!("\"init\""), json!({"type": "init"})] {
        node.ask("sendToClient", json!({"client_id": id, "message": message})).await;
    }
    node.ask("sendToClient", json!({"client_id": id, "binary": "AAH/"})).await;
    let messages = visitor.hears("message", 5).await;
    let texts = ["月", r#"{"type":"mail","unread":3}"#, "\"init\"", r#"{"type":"init"}"#];
    assert_eq!(messages, [&texts.map(|text| json!(text))[..], &[json!([0, 1, 255])]].concat());
    let parsed = [json!({"type": "mail", "unread": 3}), json!("init"), json!({"type": "init"})];
    assert_eq!(visitor.heard("json").await, parsed);
    assert_eq!(visitor.heard("init").await, [json!({"type": "init", "client_id": id})]);

    visitor.page.eval("gate.send(new Uint8Array([0, 1, 255])), gate.send(new Uint8Array([2]).buffer)").await;
    let said = application.events("message", 2).await;
    assert_eq!([&said[0]["binary"], &said[1]["binary"]], ["AAH/", "Ag=="]);
    visitor.is_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_anew_for_each_attempt() {
    let node = Node::start_with(&[("MOONGATE_AUTH", "required"), ("MOONGATE_JWT_SECRET", SECRET)]).await;
    let visitor = Visitor::come().await;
    let (ann, bob) = (token(&json!({"sub": "ann"})), token(&json!({"sub": "bob"})));
    visitor.page.eval(&format!("answers = ['bad', null, new Error('no network'), '{ann}', '{bob}']")).await;
    let ask =
        "async () => { const answer = answers.shift(); if (answer instanceof Error) throw answer; return answer; }";
    let address = node.ws_url("/chat?room=1");
    visitor.page.eval(&format!("visit('{address}', {{minDelay: 10, maxDelay: 10, token: {ask}}})")).await;
    let id = visitor.welcomed().await;
    assert_eq!(node.ask("getUidByClientId", json!({"client_id": id})).await, "ann");
    let reasons: Vec<_> = visitor.heard("close").await.iter().map(|close| close["reason"].clone()).collect();
    assert_eq!(reasons, ["", "", "no token"]);
    assert_eq!(visitor.page.eval("heard('close')[2].error.message").await, "no network");

    node.ask("destroyClient", json!({"client_id": id})).await;
    let id = visitor.welcomed_again(&id).await;
    assert_eq!(node.ask("getUidByClientId", json!({"client_id": id})).await, "bob");
    assert_eq!(visitor.page.eval("answers.length").await, 0);
    visitor.page.eval("gate.close()").await;

    // A function may answer at once, and a token may stand there.
    for options in [format!("{{token: () => '{ann}'}}"), format!("{{token: '{ann}'}}")] {
        visitor.visit(node.clients, &options).await;
        let id = visitor.welcomed().await;
        assert_eq!(node.ask("getUidByClientId", json!({"client_id": id})).await, "ann");
    }
    visitor.is_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_comes_too_late_opens_nothing() {
    let node = Node::start().await;
    let proxy = Proxy::start(node.clients).await;
    let visitor = Visitor::come().await;
    visitor.visit(proxy.address(), "{token: () => new Promise(done => answer = done)}").await;
    visitor.page.eval("gate.close(), answer('late'), 0").await;
    visitor.visit(proxy.address(), "{}").await;
    visitor.welcomed().await;
    assert_eq!(proxy.accepted(), 1);
    visitor.is_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_fails_harms_nobody_but_itself() {
    let node = Node::start().await;
    let visitor = Visitor::come().await;
    visitor.page.eval("fail = () => { throw new Error('the application is wrong') }, 0").await;
    let fails =
        "for (const name of ['open', 'init', 'message', 'close']) gate.on(name, fail); gate.off('message', fail)";
    visitor.page.eval(&format!("visit('{}', {{retry: fail, minDelay: 10}}); {fails}", node.ws_url("/"))).await;
    let id = visitor.welcomed().await;
    node.ask("sendToClient", json!({"client_id": id, "message": "text"})).await;
    assert_eq!(visitor.hears("message", 1).await, ["text"]);
    node.ask("closeClient", json!({"client_id": id, "code": 1012})).await;
    visitor.welcomed_again(&id).await;
    // open, init, retry, close, open, init: each is told, as uncaught; what was taken off is not asked.
    eventually("all is told", async || visitor.page.console_errors().len() >= 6).await;
    let complaints = visitor.page.console_errors();
    assert_eq!(complaints.len(), 6, "{complaints:?}");
    assert!(complaints.iter().all(|complaint| complaint.contains("the application is wrong")), "{complaints:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_address_is_told_to_who_wrote_it() {
    let visitor = Visitor::come().await;
    let wrong = "try { new Moongate('ftp:// nowhere'), 'fine' } catch (error) { error.name }";
    assert_eq!(visitor.page.eval(wrong).await, "SyntaxError");
    let wrong = "try { new Moongate('ws://127.0.0.1:1').on('mesage', () => {}), 'fine' } catch (error) { error.name }";
    assert_eq!(visitor.page.eval(wrong).await, "TypeError");
    visitor.is_quiet();
}

// --- what is shipped ---

#[tokio::test(flavor = "multi_thread")]
async fn module_and_classic_script_are_what_the_source_makes_and_under_three_kilobytes() {
    let visitor = Visitor::come().await;
    let version = serde_json::from_str::<Value>(PACKAGE).unwrap()["version"].clone();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let built = format!(
        "(async () => {{
            const {{ build }} = await import('/build.js');
            return build(await (await fetch('/source.js')).text(), {version});
        }})()"
    );
    let built = visitor.page.eval(&built).await;
    assert_eq!(built, json!({"moongate.js": MODULE, "moongate.classic.js": CLASSIC}), "run node clients/js/build.js");
    for file in ["/moongate.js", "/moongate.classic.js"] {
        let zipped = format!(
            "(async () => {{
                const zip = (await fetch('{file}')).body.pipeThrough(new CompressionStream('gzip'));
                return (await new Response(zip).arrayBuffer()).byteLength;
            }})()"
        );
        let bytes = visitor.page.eval(&zipped).await;
        assert!(bytes.as_u64().is_some_and(|bytes| bytes < 3072), "{file}: {bytes} bytes");
    }
    visitor.is_quiet();
}
