//! The try-it page, seen through a real browser by someone who has just installed the gateway.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "all of this is a test"
)]

use std::path::Path;

use serde_json::{Value, json};

use crate::browser::{Browser, Page};
use crate::harness::Node;
use crate::redis::Redis;

/// A page whose socket is open and whose client id is known.
async fn visit(browser: &Browser, node: &Node) -> Page {
    let page = browser.open(&node.api_url("/")).await;
    connected(&page).await;
    page
}

async fn connected(page: &Page) {
    page.until("document.querySelector('#state').dataset.state === 'open'", "the socket is open").await;
    page.until("document.querySelector('#client-id').textContent !== ''", "the client id is shown").await;
}

/// Waits until a row of the log holds this text.
async fn arrives(page: &Page, kind: &str, body: &str) {
    let row = format!(
        "Array.from(document.querySelectorAll('#log .row[data-kind={kind}] .body')).some(body => body.textContent === {})",
        json!(body)
    );
    page.until(&row, &format!("{kind} {body:?} is in the log")).await;
}

async fn shows(page: &Page, selector: &str, text: &str) {
    let condition = format!("document.querySelector({}).textContent.includes({})", json!(selector), json!(text));
    page.until(&condition, &format!("{selector} shows {text:?}")).await;
}

async fn bind(page: &Page, uid: &str) {
    page.fill("#uid", uid).await;
    page.click("#bind").await;
    shows(page, "#my-uid", uid).await;
}

async fn join(page: &Page, group: &str) {
    page.fill("#group", group).await;
    page.click("#join").await;
    shows(page, "#my-groups", group).await;
}

/// Fills in the form and sends; the target only where one is named.
async fn send(page: &Page, kind: &str, target: Option<&str>, message: &str) {
    page.choose("#target-kind", kind).await;
    if let Some(target) = target {
        page.fill("#target", target).await;
    }
    page.fill("#message", message).await;
    page.click("#send").await;
}

/// How many rows hold this text.
async fn count(page: &Page, body: &str) -> Value {
    let rows = format!(
        "Array.from(document.querySelectorAll('#log .body')).filter(body => body.textContent === {}).length",
        json!(body)
    );
    page.eval(&rows).await
}

fn is_quiet(page: &Page) {
    assert_eq!(page.console_errors(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_connects_binds_joins_and_sees_what_is_pushed() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;
    let id = page.text("#client-id").await;
    arrives(&page, "text", &format!(r#"{{"type":"init","client_id":"{id}"}}"#)).await;

    bind(&page, "alice").await;
    join(&page, "room 7").await;

    // The target follows what was bound and joined.
    for (kind, message) in
        [("uid", "to my uid"), ("group", "to my group"), ("client", "to this client"), ("all", "to everyone")]
    {
        send(&page, kind, None, message).await;
        arrives(&page, "text", message).await;
        shows(&page, "#answer", r#"{"result":{"nodes":1"#).await;
    }
    send(&page, "uid", Some("nobody"), "into the night").await;
    shows(&page, "#answer", r#"{"result":{"nodes":0"#).await;

    node.call("sendToUid", json!({"uid": "alice", "message": "from outside"})).await;
    arrives(&page, "text", "from outside").await;
    node.call("sendToGroup", json!({"group": "room 7", "message": {"n": 1}})).await;
    arrives(&page, "text", r#"{"n":1}"#).await;

    assert_eq!(count(&page, "into the night").await, 0);
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_of_one_node_sees_what_is_pushed_through_another_and_through_redis() {
    let redis = Redis::start().await;
    let url = redis.url();
    let settings = [("MOONGATE_REDIS_URL", &*url)];
    let here = Node::start_with(&settings).await.until_ready().await;
    let there = Node::start_with(&settings).await.until_ready().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &here).await;
    bind(&page, "alice").await;
    join(&page, "room 7").await;
    assert_eq!(there.ask("sendToUid", json!({"uid": "alice", "message": "from the other node"})).await["nodes"], 1);
    arrives(&page, "text", "from the other node").await;
    assert_eq!(redis.publish("mg:group:room 7", "from Redis").await, 1);
    arrives(&page, "text", "from Redis").await;
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_left_a_group_no_longer_hears_it() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;
    join(&page, "lobby").await;
    node.call("sendToGroup", json!({"group": "lobby", "message": "one"})).await;
    arrives(&page, "text", "one").await;

    page.click("#leave").await;
    page.until("document.querySelector('#my-groups').textContent === ''", "the group is no longer shown").await;
    node.call("sendToGroup", json!({"group": "lobby", "message": "two"})).await;
    node.call("sendToClient", json!({"client_id": page.text("#client-id").await, "message": "three"})).await;
    arrives(&page, "text", "three").await;
    assert_eq!(count(&page, "two").await, 0);
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_are_two_clients() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let here = visit(&browser, &node).await;
    let there = visit(&browser, &node).await;
    assert_ne!(here.text("#client-id").await, there.text("#client-id").await);
    bind(&here, "ann").await;
    bind(&there, "bob").await;

    send(&here, "uid", Some("bob"), "hello, bob").await;
    arrives(&there, "text", "hello, bob").await;
    send(&there, "all", None, "hello, all").await;
    arrives(&here, "text", "hello, all").await;
    arrives(&there, "text", "hello, all").await;
    assert_eq!(count(&here, "hello, bob").await, 0);
    is_quiet(&here);
    is_quiet(&there);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_input_shows_what_the_gateway_says_about_it() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;

    let refused = node.call("sendToUid", json!({"uid": "", "message": "x"})).await;
    let detail = refused["detail"].as_str().expect("a problem has a detail");
    send(&page, "uid", Some(""), "x").await;
    shows(&page, "#answer", "400").await;
    shows(&page, "#answer", "invalid_request").await;
    shows(&page, "#answer", detail).await;

    page.fill("#uid", "").await;
    page.click("#bind").await;
    shows(&page, "#bind-answer", "invalid_request").await;
    page.fill("#group", "").await;
    page.click("#join").await;
    shows(&page, "#group-answer", "invalid_request").await;

    // And the next one is right again.
    bind(&page, "ok").await;
    send(&page, "uid", Some("ok"), "y").await;
    arrives(&page, "text", "y").await;
    page.until("!document.querySelector('#answer').textContent.includes('invalid_request')", "the old answer is gone")
        .await;
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_shown_as_bytes() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;
    let id = page.text("#client-id").await;
    node.call("sendToClient", json!({"client_id": id, "binary": "AAH/3q2+7w=="})).await;
    arrives(&page, "binary", "00 01 ff de ad be ef").await;
    shows(&page, "#log .row[data-kind=binary] .size", "7 B").await;
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn markup_in_a_message_is_only_text() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;
    let markup = "<img src=x onerror=\"window.owned = true\"><script>window.owned = true</script><b>bold</b>";
    bind(&page, markup).await;
    join(&page, markup).await;
    node.call("sendToAll", json!({"message": markup})).await;
    arrives(&page, "text", markup).await;
    send(&page, "uid", Some(markup), "to a strange name").await;
    arrives(&page, "text", "to a strange name").await;
    page.fill("#message", markup).await;
    shows(&page, "#curl", "onerror").await;

    let inserted = "document.querySelectorAll('main img, main script, main b').length";
    assert_eq!(page.eval(inserted).await, 0);
    assert_eq!(page.eval("typeof window.owned").await, "undefined");
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_asked_for_sent_and_kept_in_the_tab_only() {
    let node = Node::start_with(&[("MOONGATE_API_TOKEN", "it's-secret")]).await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;

    page.fill("#uid", "carol").await;
    page.click("#bind").await;
    shows(&page, "#bind-answer", "401").await;
    page.until("document.querySelector('#token').ariaInvalid === 'true'", "the token field is marked").await;

    page.fill("#token", "it's-secret").await;
    bind(&page, "carol").await;
    send(&page, "uid", Some("carol"), "let in").await;
    arrives(&page, "text", "let in").await;

    // The screen does not show it, what is copied holds it, quoted for a shell.
    shows(&page, "#curl", "-H 'Authorization: Bearer ").await;
    assert!(!page.text("main").await.contains("secret"));
    page.eval("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve(); }, 0").await;
    page.click("#copy").await;
    page.until("window.copied", "the command is copied").await;
    let copied = page.eval("window.copied").await;
    assert!(copied.as_str().unwrap().contains(r"-H 'Authorization: Bearer it'\''s-secret'"), "{copied}");

    // A reload keeps it; another tab does not know it.
    page.go(&node.api_url("/")).await;
    connected(&page).await;
    bind(&page, "carol").await;
    let other = visit(&browser, &node).await;
    assert_eq!(other.eval("document.querySelector('#token').value").await, "");
    assert_eq!(page.eval("localStorage.length + document.cookie.length").await, 0);
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_client_sees_code_and_reason_and_comes_back_as_a_new_one() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;
    let before = page.text("#client-id").await;
    bind(&page, "dave").await;

    node.call("closeClient", json!({"client_id": before, "code": 4321, "reason": "see you, 再见"})).await;
    arrives(&page, "close", "4321 see you, 再见").await;
    page.until("document.querySelector('#state').dataset.state === 'closed'", "the state says so").await;
    shows(&page, "#state", "4321 see you, 再见").await;
    assert_eq!(page.text("#client-id").await, "");
    assert_eq!(page.text("#my-uid").await, "");
    assert_eq!(page.eval("document.querySelector('#bind').disabled").await, true);

    page.click("#reconnect").await;
    connected(&page).await;
    let after = page.text("#client-id").await;
    assert_ne!(before, after);
    node.call("sendToClient", json!({"client_id": after, "message": "welcome back"})).await;
    arrives(&page, "text", "welcome back").await;

    // Reconnecting while connected ends the old connection and keeps the new one.
    page.click("#reconnect").await;
    page.until(
        &format!("!['', {}].includes(document.querySelector('#client-id').textContent)", json!(after)),
        "a third id",
    )
    .await;
    arrives(&page, "close", "1000").await;
    page.until("document.querySelector('#state').dataset.state === 'open'", "still open").await;
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_without_a_gateway_is_told_and_another_one_can_be_tried() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;
    for address in ["ws://127.0.0.1:1/", "not an address"] {
        page.fill("#ws-url", address).await;
        page.click("#reconnect").await;
        page.until("document.querySelector('#state').dataset.state === 'closed'", "the state says so").await;
    }
    page.fill("#ws-url", &node.ws_url("/any/path?x=1")).await;
    page.press("Enter").await;
    connected(&page).await;
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_speaks_english_and_chinese() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;
    assert_eq!(page.text("#send").await, "Send");
    bind(&page, "erin").await;

    page.click("#language").await;
    assert_eq!(page.text("#send").await, "发送");
    assert_eq!(page.text("#state").await, "已连接");
    assert_eq!(page.eval("document.documentElement.lang").await, "zh-CN");
    // What was already said is said again in the new language.
    shows(&page, "#bind-answer", "现在").await;
    shows(&page, "#log .row[data-kind=open] .kind", "已连接").await;

    page.click("#language").await;
    assert_eq!(page.text("#send").await, "Send");
    shows(&page, "#bind-answer", "now arrives here").await;

    // A Chinese browser is greeted in Chinese.
    let other = browser.open("about:blank").await;
    other.command("Emulation.setUserAgentOverride", json!({"userAgent": "test", "acceptLanguage": "zh-CN,zh"})).await;
    other.go(&node.api_url("/")).await;
    connected(&other).await;
    assert_eq!(other.text("#send").await, "发送");
    is_quiet(&page);
    is_quiet(&other);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_holds_the_newest_five_hundred_rows_newest_first() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;
    let commands: Vec<_> = (1..=620).map(|n| json!({"op": "sendToAll", "message": format!("row {n}")})).collect();
    node.call("batch", json!({"commands": commands})).await;
    arrives(&page, "text", "row 620").await;
    assert_eq!(page.eval("document.querySelectorAll('#log .row').length").await, 500);
    let bodies = page.eval("Array.from(document.querySelectorAll('#log .body'), body => body.textContent)").await;
    let newest_first: Vec<_> = (121..=620).rev().map(|n| json!(format!("row {n}"))).collect();
    assert_eq!(bodies, Value::Array(newest_first));

    let long = "月".repeat(100_000);
    node.call("sendToAll", json!({"message": long})).await;
    shows(&page, "#log .row:first-child .size", "293.0 KiB").await;
    assert!(page.text("#log .row:first-child .body").await.chars().count() < 10_000);

    page.click("#clear").await;
    assert_eq!(page.eval("document.querySelectorAll('#log .row').length").await, 0);
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keyboard_is_enough() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;
    page.fill("#uid", "fay").await;
    page.press("Enter").await;
    shows(&page, "#my-uid", "fay").await;
    page.fill("#group", "keys").await;
    page.press("Enter").await;
    shows(&page, "#my-groups", "keys").await;
    // From the group's field: join, leave.
    page.press("Tab").await;
    page.press("Tab").await;
    page.press("Space").await;
    page.until("document.querySelector('#my-groups').textContent === ''", "the group is left").await;
    page.fill("#message", "typed").await;
    page.press("Enter").await;
    arrives(&page, "text", "typed").await;
    assert_eq!(page.eval("document.activeElement.id").await, "message");
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shown_does_what_the_form_does() {
    let node = Node::start_with(&[("MOONGATE_API_TOKEN", "t0k'en")]).await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;
    page.fill("#token", "t0k'en").await;
    bind(&page, "o'neil $HOME").await;
    page.eval("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve(); }, 0").await;
    let message = "it's `date` \"$HOME\" \\ !! %s\nsecond line 月\u{202e}\u{9b}";
    send(&page, "uid", None, message).await;
    arrives(&page, "text", message).await;

    page.click("#copy").await;
    page.until("window.copied", "the command is copied").await;
    let line = page.eval("window.copied").await;
    let line = line.as_str().unwrap();
    assert!(!line.contains(['\u{202e}', '\u{9b}']), "{line:?}");
    // A shell takes it apart into the words that were meant.
    let words = tokio::process::Command::new("sh")
        .args(["-c", &line.replacen("curl", "printf '%s\\0'", 1)])
        .output()
        .await
        .unwrap();
    let words = String::from_utf8(words.stdout).unwrap();
    let words: Vec<_> = words.split_terminator('\0').collect();
    assert_eq!(
        words[..6],
        [
            &node.api_url("/api/sendToUid"),
            "-H",
            "Authorization: Bearer t0k'en",
            "-H",
            "Content-Type: application/json",
            "-d"
        ],
    );
    let body: Value = serde_json::from_str(words[6]).unwrap();
    assert_eq!(body, json!({"uid": "o'neil $HOME", "message": message}));
    is_quiet(&page);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_a_desk_a_phone_day_and_night() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = visit(&browser, &node).await;
    bind(&page, "42").await;
    join(&page, "room-1").await;
    send(&page, "group", None, "The moon is up 🌕").await;
    arrives(&page, "text", "The moon is up 🌕").await;
    node.call("sendToAll", json!({"message": {"type": "price", "item": "moon cake", "cents": 1280}})).await;
    node.call("sendToAll", json!({"binary": "3q2+7wABAgMEBQYHCAkKCw=="})).await;
    arrives(&page, "binary", "de ad be ef 00 01 02 03 04 05 06 07 08 09 0a 0b").await;
    node.call("sendToAll", json!({"message": "w".repeat(300)})).await;
    arrives(&page, "text", &"w".repeat(300)).await;

    // The pictures are for people: they lie with what the build leaves behind.
    let album = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (view, width, height) in [("desk", 1280, 900), ("tablet", 800, 1100), ("phone", 375, 812)] {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        page.command("Emulation.setDeviceMetricsOverride", metrics).await;
        for scheme in ["light", "dark"] {
            let media = json!([{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]);
            page.command("Emulation.setEmulatedMedia", json!({"features": media})).await;
            for language in ["en", "zh"] {
                let overflow =
                    page.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth").await;
                assert_eq!(overflow, 0, "the page is too wide: {view} {scheme} {language}");
                page.eval("scrollTo(0, 0)").await;
                page.screenshot(&album.join(format!("page-{view}-{scheme}-{language}.png"))).await;
                page.click("#language").await;
            }
        }
    }
    is_quiet(&page);
}
