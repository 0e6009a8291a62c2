//! The console: what it asks beside the commands, and its views through a real browser.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "all of this is a test"
)]

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::browser::{Browser, Page};
use crate::harness::{Node, eventually, soon};
use crate::redis::Redis;
use crate::tail::Tail;

const HOSTILE: &str = "<img src=x onerror=\"window.owned = true\">/%2F?#&\"' 月";

/// Two nodes and their Redis, all of this machine.
async fn two_nodes() -> (Redis, Node, Node) {
    let redis = Redis::start().await;
    let url = redis.url();
    let node = |id| [("MOONGATE_REDIS_URL", &*url), ("MOONGATE_NODE_ID", id)].to_vec();
    let a = Node::start_with(&node("node-a")).await.until_ready().await;
    let b = Node::start_with(&node("node-b")).await.until_ready().await;
    (redis, a, b)
}

fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

// --- what it asks ---

/// All pages of a listing by size, as name and clients.
async fn by_size(node: &Node, path: &str, limit: usize) -> Vec<(String, u64)> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = node.get(&format!("{path}?limit={limit}&cursor={cursor}")).await.json();
        let items = page["items"].as_array().unwrap_or_else(|| panic!("{page}"));
        assert!(items.len() <= limit && page["complete"] == true, "{page}");
        all.extend(
            items.iter().map(|item| (item["name"].as_str().unwrap().to_owned(), item["clients"].as_u64().unwrap())),
        );
        assert!(all.len() as u64 <= page["total"].as_u64().unwrap(), "{page}");
        match page["cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return all,
        }
    }
}

async fn names_are_listed_by_size(nodes: &[&Node]) {
    let mut clients = Vec::new();
    for n in 0..6 {
        let node = nodes[n % nodes.len()];
        let client = node.connect().await;
        node.done("bindUid", json!({"client_id": client.id, "uid": if n < 4 { "many" } else { HOSTILE }})).await;
        for group in 0..=n {
            node.done("joinGroup", json!({"client_id": client.id, "group": format!("g{group}")})).await;
        }
        clients.push(client);
    }
    let groups: Vec<_> = (0..6).map(|n| (format!("g{n}"), 6 - n)).collect();
    for node in nodes {
        for limit in [1, 4, 1000] {
            assert_eq!(by_size(node, "/console/groups", limit).await, groups);
            let uids = [("many".to_owned(), 4), (HOSTILE.to_owned(), 2)];
            assert_eq!(by_size(node, "/console/uids", limit).await, uids);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_alone_lists_uids_and_groups_by_size() {
    let node = Node::start().await;
    names_are_listed_by_size(&[&node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_lists_uids_and_groups_of_all_nodes_by_size() {
    let (_redis, a, b) = two_nodes().await;
    names_are_listed_by_size(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_about_a_client_is_told_by_any_node() {
    let (_redis, a, b) = two_nodes().await;
    let alone = Node::start_with(&[("MOONGATE_LAN_PORT", "2999")]).await;
    for (here, asked, name) in [(&a, &b, Some("node-a")), (&alone, &alone, None)] {
        let client = here.member("alice", "room").await;
        here.done("setSession", json!({"client_id": client.id, "session": {"name": "Alice"}})).await;
        let plain = here.connect().await;
        let gone = "7f0000010b5400000007";
        let path = format!("/console/clients?client_id={},{gone},{}", client.id, plain.id);
        let found = asked.get(&path).await.json()["clients"].clone();
        assert_eq!(found.as_array().unwrap().len(), 2, "{found}");
        let [alice, other] = [&found[0], &found[1]];
        assert_eq!(
            (&alice["client_id"], &alice["uid"], &alice["groups"], &alice["session"], &alice["ip"]),
            (&json!(client.id), &json!("alice"), &json!(["room"]), &json!({"name": "Alice"}), &json!("127.0.0.1"))
        );
        assert!(alice["connected_at"].as_u64() > Some(1_700_000_000_000), "{alice}");
        assert_eq!(name.map(|name| alice["node"] == name), name.map(|_| true), "{alice}");
        assert_eq!(
            (&other["client_id"], &other["uid"], &other["groups"], &other["session"]),
            (&json!(plain.id), &Value::Null, &json!([]), &Value::Null)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_console_asks_needs_the_token_and_is_checked() {
    let node = Node::start_with(&[("MOONGATE_API_TOKEN", "s3cret")]).await;
    for path in
        ["/console/clients?client_id=7f0000010b5400000007", "/console/groups", "/console/uids", "/console/tail?uid=1"]
    {
        let answer = node.request("GET", path, &[("Authorization", "Bearer wrong")], b"").await;
        assert_eq!((answer.status, &answer.json()["code"]), (401, &json!("unauthorized")), "{path}");
        let answer = node.request("POST", path, &[], b"").await;
        assert_eq!(answer.status, 405, "{path}");
    }
    let described = node.get("/openapi.json").await.json();
    for path in ["/nodes", "/console/clients", "/console/groups", "/console/uids", "/console/tail"] {
        assert!(described["paths"][path]["get"]["responses"]["200"].is_object(), "{path} is not described");
    }
    let long = "x".repeat(257);
    let ids = vec!["7f0000010b5400000007"; 51].join(",");
    for (path, field) in [
        ("/console/groups?limit=0", Some("limit")),
        ("/console/groups?limit=1001", Some("limit")),
        ("/console/uids?cursor=x", Some("cursor")),
        ("/console/uids?limit=1&limit=2", Some("limit")),
        ("/console/uids?page=1", Some("page")),
        ("/console/clients", Some("client_id")),
        ("/console/clients?client_id=7f", Some("client_id")),
        (&format!("/console/clients?client_id={ids}"), Some("client_id")),
        ("/console/tail", None),
        ("/console/tail?uid=1&group=2", None),
        ("/console/tail?client_id=7f", Some("client_id")),
        (&format!("/console/tail?group={long}"), Some("group")),
        ("/console/tail?all=1", Some("all")),
    ] {
        let answer = node.get(path).await;
        let problem = answer.json();
        assert_eq!((answer.status, &problem["code"]), (400, &json!("invalid_request")), "{path}: {problem}");
        assert_eq!(problem["field"].as_str(), field, "{path}: {problem}");
    }
}

// --- a live tail ---

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_of_a_uid_shows_what_reaches_its_clients_on_another_node_and_what_they_do() {
    let (redis, a, b) = two_nodes().await;
    let mut tail = Tail::begin(&a, "uid=alice").await;
    assert_eq!(tail.next().await, json!({"kind": "tailing", "nodes": 2}));

    let mut client = b.connect().await;
    let id = client.id.clone();
    a.done("bindUid", json!({"client_id": id, "uid": "alice"})).await;
    let bound = tail.seen().await;
    assert!(bound["at"].as_u64() > Some(1_700_000_000_000), "{bound}");
    assert_eq!(
        (&bound["kind"], &bound["node"], &bound["client_id"], &bound["uid"]),
        (&json!("bound"), &json!("node-b"), &json!(id), &json!("alice"))
    );
    a.done("joinGroup", json!({"client_id": id, "group": "room"})).await;
    let joined = tail.seen().await;
    assert_eq!((&joined["kind"], &joined["group"]), (&json!("joined"), &json!("room")));

    // However it is sent, and whatever it names.
    for (op, fields, text) in [
        ("sendToUid", json!({"uid": "alice"}), "to the uid"),
        ("sendToUid", json!({"uid": ["nobody", "alice"]}), "to several"),
        ("sendToGroup", json!({"group": "room"}), "to its group"),
        ("sendToClient", json!({"client_id": id}), "to the client"),
        ("sendToAll", json!({}), "to all"),
    ] {
        let mut fields = fields;
        fields["message"] = json!(text);
        a.ask(op, fields).await;
        let seen = tail.seen().await;
        let expected = (json!("message"), json!(text), json!(1), json!(text.len()), json!("node-b"));
        assert_eq!(
            (&seen["kind"], &seen["text"], &seen["clients"], &seen["length"], &seen["node"]),
            (&expected.0, &expected.1, &expected.2, &expected.3, &expected.4),
            "{seen}"
        );
    }
    assert_eq!(redis.publish("mg:uid:alice", "from Redis").await, 1);
    assert_eq!(tail.seen().await["text"], "from Redis");
    // Not what is kept from it.
    b.ask("sendToAll", json!({"message": "not for alice", "exclude_uid": ["alice"]})).await;
    b.ask("sendToUid", json!({"uid": "alice", "binary": "AAH/"})).await;
    let binary = tail.seen().await;
    assert_eq!((&binary["binary"], &binary["length"]), (&json!("AAH/"), &json!(3)), "{binary}");

    client.send(Message::text("a word")).await;
    let said = tail.seen().await;
    assert_eq!((&said["kind"], &said["text"], &said["client_id"]), (&json!("said"), &json!("a word"), &json!(id)));
    a.done("leaveGroup", json!({"client_id": id, "group": "room"})).await;
    assert_eq!(tail.seen().await["kind"], "left");
    a.ask("closeClient", json!({"client_id": id, "code": 4321, "reason": "enough"})).await;
    let closed = tail.seen().await;
    assert_eq!(
        (&closed["kind"], &closed["code"], &closed["reason"]),
        (&json!("close"), &json!(4321), &json!("enough"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_tailed_does_not_look_online_by_it() {
    let (redis, a, b) = two_nodes().await;
    let _tail = Tail::of(&a, "uid=nobody").await;
    let _group = Tail::of(&b, "group=empty").await;
    for node in [&a, &b] {
        assert_eq!(node.ask("isUidOnline", json!({"uid": "nobody"})).await, false);
        assert_eq!(node.ask("sendToUid", json!({"uid": "nobody", "message": "x"})).await["nodes"], 0);
        assert_eq!(node.ready().await.0, 200);
    }
    for channel in ["mg:uid:nobody", "mg:group:empty", "mg:all"] {
        assert_eq!(redis.publish(channel, "x").await, 0, "{channel}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_a_group_is_shown_once_for_each_node_with_its_sockets() {
    let (_redis, a, b) = two_nodes().await;
    let mut members = Vec::new();
    for (node, count) in [(&a, 5), (&b, 3)] {
        for _ in 0..count {
            members.push(node.member("someone", "room").await);
        }
    }
    let mut tail = Tail::of(&b, &format!("group={}", encoded("room"))).await;
    a.ask("sendToGroup", json!({"group": "room", "message": "hello", "exclude": [members[0].id]})).await;
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let message = tail.seen().await;
        assert_eq!(message["text"], "hello");
        seen.insert((message["node"].as_str().unwrap().to_owned(), message["clients"].as_u64().unwrap()));
    }
    assert_eq!(seen, [("node-a".to_owned(), 4), ("node-b".to_owned(), 3)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_flood_so_many_are_shown_and_the_rest_is_counted_and_of_a_long_message_its_beginning() {
    let node = Node::start().await;
    let client = node.connect().await;
    let mut tail = Tail::of(&node, &format!("client_id={}", client.id)).await;
    let long = "月".repeat(10_000);
    node.ask("sendToClient", json!({"client_id": client.id, "message": long})).await;
    let seen = tail.seen().await;
    assert_eq!(seen["length"], 30_000);
    assert_eq!(seen["text"].as_str().unwrap(), "月".repeat(4096 / 3));

    let commands: Vec<_> =
        (0..500).map(|n| json!({"op": "sendToClient", "client_id": client.id, "message": n})).collect();
    let (mut sent, mut shown, mut skipped) = (0, 0, 0);
    // A slow machine may need more than one to send more than is shown in a second.
    while skipped == 0 && sent < 5000 {
        node.call("batch", json!({"commands": commands})).await;
        sent += 500;
        while shown + skipped < sent {
            let seen = tail.seen().await;
            match seen["kind"].as_str() {
                Some("message") => shown += 1,
                _ => skipped += seen["count"].as_u64().unwrap_or_else(|| panic!("{seen}")),
            }
        }
    }
    assert!(shown + skipped == sent && skipped > 0, "of {sent} {shown} were shown, {skipped} skipped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_so_many_tails_and_no_more_and_none_when_it_stops() {
    let node = Node::start().await;
    let mut tails = Vec::new();
    for _ in 0..16 {
        tails.push(Tail::of(&node, "uid=1").await);
    }
    let answer = node.get("/console/tail?uid=1").await;
    assert_eq!((answer.status, &answer.json()["code"]), (429, &json!("too_many")));
    // Who hangs up makes room, again and again.
    tails.truncate(15);
    for _ in 0..2 {
        eventually("there is room", async || {
            let mut tail = Tail::begin(&node, "uid=1").await;
            tail.line().await.unwrap().contains("200")
        })
        .await;
    }
    node.stop();
    for mut tail in tails {
        while tail.line().await.is_some() {}
    }
}

// --- its views ---

async fn open(browser: &Browser, node: &Node, hash: &str) -> Page {
    browser.open(&node.api_url(&format!("/{hash}"))).await
}

async fn shows(page: &Page, selector: &str, text: &str) {
    let condition = format!("document.querySelector({}).textContent.includes({})", json!(selector), json!(text));
    page.until(&condition, &format!("{selector} shows {text:?}")).await;
}

async fn visit(page: &Page, hash: &str) {
    page.eval(&format!("location.hash = {}", json!(hash))).await;
}

/// The text of every cell of a table, row by row.
async fn cells(page: &Page, place: &str) -> Vec<Vec<String>> {
    let js = format!(
        "Array.from(document.querySelectorAll('{place} tbody tr'), row => Array.from(row.cells, cell => cell.textContent))"
    );
    serde_json::from_value(page.eval(&js).await).unwrap()
}

async fn is_unharmed(page: &Page) {
    assert_eq!(page.eval("document.querySelectorAll('main img, main script').length").await, 0);
    assert_eq!(page.eval("typeof window.owned").await, "undefined");
    assert_eq!(page.console_errors(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_lead_to_every_view_in_both_languages() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = open(&browser, &node, "#/nodes").await;
    for words in [
        ["Try it", "Nodes", "Clients", "Uids", "Groups", "Tasks", "Live tail"],
        ["试一试", "节点", "客户端", "uid", "分组", "任务", "实时跟踪"],
    ] {
        for (place, (view, word)) in
            ["try", "nodes", "clients", "uids", "groups", "tasks", "tail"].iter().zip(words).enumerate()
        {
            page.press(&(place + 1).to_string()).await;
            let current = "document.querySelectorAll('#tabs [aria-current=page]')";
            page.until(
                &format!("location.hash === '#/{view}' && {current}.length === 1 && {current}[0].hash === '#/{view}'"),
                &format!("the view {view} is there"),
            )
            .await;
            shows(&page, "#tabs [aria-current]", word).await;
            let open = page.eval("document.querySelectorAll('main > :not([hidden])').length").await;
            assert_eq!(open, 1, "one view at a time");
        }
        page.click("#language").await;
        page.eval("document.activeElement.blur()").await;
    }
    // In a field a digit is a digit.
    page.press("/").await;
    assert_eq!(page.eval("document.activeElement.id").await, "find");
    page.press("3").await;
    assert_eq!(page.eval("document.querySelector('#find').value").await, "3");
    assert_eq!(page.eval("location.hash").await, "#/tail");
    is_unharmed(&page).await;
}

async fn clients_uids_and_groups_are_found(browser: &Browser, here: &Node, there: &Node) {
    let client = there.member(HOSTILE, HOSTILE).await;
    let id = client.id.clone();
    there.done("setSession", json!({"client_id": id, "session": {"name": HOSTILE}})).await;
    let second = here.connect().await;
    here.done("bindUid", json!({"client_id": second.id, "uid": HOSTILE})).await;
    let page = open(browser, here, "#/uids").await;
    shows(&page, "#list", HOSTILE).await;
    assert_eq!(cells(&page, "#list").await, [[HOSTILE, "2"]]);

    // From the uid to its clients, to one of them, to its group.
    page.click("#list tbody a").await;
    shows(&page, "#one", &id).await;
    assert_eq!(cells(&page, "#one").await.len(), 2);
    page.fill("#push-message", "to the uid").await;
    page.press("Enter").await;
    page.until("document.querySelector('#push-said').textContent.includes('200')", "it is sent").await;
    visit(&page, &format!("#/clients/{id}")).await;
    shows(&page, "#one .sheet", "127.0.0.1").await;
    shows(&page, "#one .sheet pre", "onerror").await;
    page.click("#one .chips a").await;
    shows(&page, "#title-one", HOSTILE).await;
    page.until("document.querySelectorAll('#one tbody tr').length === 1", "the group has one member").await;
    page.press("5").await;
    page.until("document.querySelector('#list tbody td:nth-child(2)')?.textContent === '1'", "the group is listed")
        .await;
    assert_eq!(cells(&page, "#list").await, [[HOSTILE, "1"]]);
    page.press("3").await;
    shows(&page, "#list", &id).await;
    assert_eq!(cells(&page, "#list").await.len(), 2);

    // Finding: by a name that is both, by one that is neither, and by an id.
    for (text, place) in
        [(HOSTILE, "#list tbody tr + tr"), ("nobody", "#list .empty"), (&*id, "#view-one:not([hidden]) #title-one")]
    {
        page.press("/").await;
        page.fill("#find", text).await;
        page.press("Enter").await;
        page.until(&format!("document.querySelector('{place}')"), place).await;
        shows(&page, place, text).await;
        page.eval("document.activeElement.blur()").await;
    }
    for mut client in [client, second] {
        assert_eq!(client.text().await, "to the uid");
    }
    is_unharmed(&page).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_alone_shows_its_clients_uids_and_groups() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    clients_uids_and_groups_are_found(&browser, &node, &node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_said_to_be_offline_while_redis_is_away() {
    let (redis, a, _b) = two_nodes().await;
    let browser = Browser::start().await;
    let page = open(&browser, &a, "").await;
    redis.stop();
    page.press("/").await;
    page.fill("#find", "somebody").await;
    page.press("Enter").await;
    shows(&page, "#list-said", "redis_unavailable").await;
    assert_eq!(page.eval("document.querySelector('#list .empty')").await, json!(null));
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_shows_the_clients_uids_and_groups_of_all() {
    let (_redis, a, b) = two_nodes().await;
    let browser = Browser::start().await;
    clients_uids_and_groups_are_found(&browser, &a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_comes_in_pages_forth_and_back_by_keyboard() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let client = node.connect().await;
    let groups: Vec<_> = (0..120).map(|n| format!("g{n:03}")).collect();
    node.done("joinGroup", json!({"client_id": client.id, "group": groups})).await;
    let page = open(&browser, &node, "#/groups").await;
    let first = |name: &str| format!("document.querySelector('#list tbody a')?.textContent === '{name}'");
    page.until(&first("g000"), "the first page").await;
    shows(&page, "#list-count", "120").await;
    for name in ["g050", "g100"] {
        page.click("#list-next").await;
        page.until(&first(name), "the next page").await;
    }
    assert_eq!(page.eval("document.querySelector('#list-next').disabled").await, true);
    page.click("#list-before").await;
    page.until(&first("g050"), "the page before").await;
    // Down from row to row.
    page.eval("document.querySelector('#list tbody a').focus()").await;
    page.press("ArrowDown").await;
    page.press("ArrowDown").await;
    page.press("Enter").await;
    shows(&page, "#title-one", "g052").await;
    is_unharmed(&page).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_shown_and_tried_again_and_what_waits_is_cancelled() {
    let (_redis, a, b) = two_nodes().await;
    let browser = Browser::start().await;
    let mut client = a.connect().await;
    let gone = format!("{}ffffffff", &client.id[..12]);
    let command = json!({"op": "bindUid", "client_id": gone, "uid": HOSTILE});
    a.ask("addTask", json!({"command": command, "id": HOSTILE})).await;
    a.ask("addTask", json!({"command": {"op": "sendToAll", "message": "late"}, "delay": 3_600_000, "id": "later"}))
        .await;
    eventually("the task is dead", async || a.ask("getTask", json!({"id": HOSTILE})).await["state"] == "dead").await;

    let page = open(&browser, &b, "#/tasks/dead").await;
    shows(&page, "#list tbody", HOSTILE).await;
    shows(&page, "#list .reason", &gone).await;
    assert_eq!(cells(&page, "#list").await.len(), 1);
    page.click("#list tbody button").await;
    shows(&page, "#list-said", "queued anew").await;
    eventually("it was tried again", async || a.ask("getTask", json!({"id": HOSTILE})).await["state"] == "dead").await;

    visit(&page, "#/tasks/waiting").await;
    shows(&page, "#list tbody", "later").await;
    page.click("#list summary").await;
    shows(&page, "#list details[open] pre", "sendToAll").await;
    page.click("#list tbody button").await;
    shows(&page, "#list-said", "is cancelled").await;
    page.until("document.querySelector('#list .empty')", "nothing waits").await;
    client.heard_nothing(&a).await;
    is_unharmed(&page).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_shows_what_another_node_delivers_while_other_views_are_looked_at() {
    let (_redis, a, b) = two_nodes().await;
    let browser = Browser::start().await;
    let mut client = b.member(HOSTILE, "room").await;
    let page = open(&browser, &a, "#/tail").await;
    page.fill("#tail-name", HOSTILE).await;
    page.press("Enter").await;
    shows(&page, "#tail-state", "2 nodes watch").await;
    a.ask("sendToUid", json!({"uid": HOSTILE, "message": HOSTILE})).await;
    let row = |kind: &str, text: &str| {
        format!(
            "Array.from(document.querySelectorAll('#tail-log .row[data-kind={kind}] .body')).some(body => body.textContent.includes({}))",
            json!(text)
        )
    };
    page.until(&row("message", HOSTILE), "the message is shown").await;
    shows(&page, "#tail-log .more", "node-b").await;

    page.eval("document.activeElement.blur()").await;
    page.press("2").await;
    page.until("document.querySelector('#tabs .running')", "it goes on").await;
    client.send(Message::text("a word")).await;
    a.ask("sendToGroup", json!({"group": "room", "binary": "3q2+7w=="})).await;
    page.press("7").await;
    page.until(&row("said", "a word"), "what the client said is shown").await;
    page.until(&row("message", "de ad be ef"), "bytes are shown").await;
    page.click("#language").await;
    shows(&page, "#tail-state", "2 个节点正在跟踪").await;
    shows(&page, "#tail-log .row[data-kind=said] .kind", "上行").await;
    page.click("#tail-stop").await;
    shows(&page, "#tail-state", "已停止").await;
    assert_eq!(client.text().await, HOSTILE);
    is_unharmed(&page).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_asks_for_the_token_and_shows_what_it_is_for_when_it_has_it() {
    let node = Node::start_with(&[("MOONGATE_API_TOKEN", "s3cret")]).await;
    let browser = Browser::start().await;
    let client = node.member("42", "room").await;
    let page = open(&browser, &node, "#/clients").await;
    shows(&page, "#list-said", "401").await;
    page.until("document.querySelector('#token').ariaInvalid === 'true'", "the token field is marked").await;
    page.fill("#token", "s3cret").await;
    shows(&page, "#list", &client.id).await;
    assert_eq!(page.eval("localStorage.length + document.cookie.length").await, 0);
    page.eval("document.activeElement.blur()").await;
    page.press("7").await;
    page.until("!document.querySelector('#view-tail').hidden", "the view is there").await;
    page.fill("#tail-name", "42").await;
    page.press("Enter").await;
    shows(&page, "#tail-state", "one node watches").await;
    page.fill("#token", "wrong").await;
    page.click("#tail-stop").await;
    page.click("#tail-start").await;
    shows(&page, "#tail-said", "401").await;
    shows(&page, "#tail-state", "stopped").await;

    // Where there is none, none is asked for.
    let open_node = Node::start_with(&[("MOONGATE_LAN_PORT", "2999")]).await;
    let other = open(&browser, &open_node, "#/clients").await;
    shows(&other, "#list", "Nobody is connected").await;
    assert_eq!(other.eval("document.querySelector('#secret').hidden").await, true);
    is_unharmed(&page).await;
    is_unharmed(&other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_the_console_makes_nobody_a_client_before_it_is_tried() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = open(&browser, &node, "#/clients").await;
    shows(&page, "#list", "Nobody is connected").await;
    assert_eq!(node.ask("getAllClientIdCount", json!({})).await, 0);
    page.press("1").await;
    page.until("document.querySelector('#state').dataset.state === 'open'", "it is a client").await;
    page.eval("document.activeElement.blur()").await;
    page.press("3").await;
    page.until("document.querySelectorAll('#list tbody tr').length === 1", "and it is listed").await;
    is_unharmed(&page).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_are_shown_with_their_load_as_it_moves() {
    let (_redis, a, b) = two_nodes().await;
    let browser = Browser::start().await;
    let mut client = b.connect().await;
    let page = open(&browser, &a, "#/nodes").await;
    page.until("document.querySelectorAll('#nodes tbody tr').length === 2", "both nodes are listed").await;
    let rows = cells(&page, "#nodes").await;
    assert_eq!((&*rows[0][0], &*rows[1][0]), ("node-a", "node-b"));
    assert_eq!((&*rows[0][1], &*rows[1][1]), ("ready", "ready"));
    let moves = "document.querySelector('#charts polyline') && [0, 1].every(place => parseFloat(document.querySelectorAll('#charts figcaption')[place].lastChild.textContent) > 0)";
    soon("what is said and sent is seen as it moves", async {
        while page.eval(&format!("Boolean({moves})")).await != true {
            client.send(Message::text("x")).await;
            a.ask("sendToAll", json!({"message": "y"})).await;
        }
    })
    .await;
    shows(&page, "#nodes tbody tr:nth-child(2) td:nth-child(3)", "1").await;
    shows(&page, "#redis", "Redis answers").await;
    is_unharmed(&page).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_view_fits_a_desk_and_a_phone_by_day_and_by_night() {
    let (_redis, a, b) = two_nodes().await;
    let browser = Browser::start().await;
    let client = b.member("a-long-uid-of-somebody@example.com", &"long-group-name-".repeat(6)).await;
    b.done("setSession", json!({"client_id": client.id, "session": {"name": "w".repeat(200)}})).await;
    let command = json!({"op": "bindUid", "client_id": format!("{}ffffffff", &client.id[..12]), "uid": "x"});
    a.ask("addTask", json!({"command": command, "id": "t".repeat(100)})).await;
    let page = open(&browser, &a, "#/tail/uid/a-long-uid-of-somebody%40example.com").await;
    shows(&page, "#tail-state", "2 nodes watch").await;
    a.ask("sendToAll", json!({"message": "w".repeat(300)})).await;
    page.until("document.querySelectorAll('#tail-log .row').length === 1", "a message is shown").await;

    let album = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let one = format!("#/clients/{}", client.id);
    let views = [
        ("nodes", "#/nodes", "#nodes td"),
        ("clients", "#/clients", "#list td"),
        ("client", &*one, "#one dd"),
        ("uid", "#/uids/a-long-uid-of-somebody%40example.com", "#one td"),
        ("groups", "#/groups", "#list td"),
        ("tasks", "#/tasks", "#list td"),
        ("tail", "#/tail", "#tail-log .row"),
    ];
    for (device, width, height) in [("desk", 1280, 900), ("phone", 360, 740)] {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        page.command("Emulation.setDeviceMetricsOverride", metrics).await;
        for (scheme, language) in [("light", "en"), ("dark", "zh-CN")] {
            let media = json!([{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]);
            page.command("Emulation.setEmulatedMedia", json!({"features": media})).await;
            if page.eval("document.documentElement.lang").await != language {
                page.click("#language").await;
            }
            let ground = page.eval("getComputedStyle(document.documentElement).backgroundColor").await;
            assert_eq!(ground, if scheme == "dark" { "rgb(12, 16, 29)" } else { "rgb(244, 245, 249)" });
            for (view, hash, shown) in views {
                visit(&page, hash).await;
                page.until(&format!("document.querySelector('{shown}')?.getClientRects().length"), view).await;
                let overflow =
                    page.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth").await;
                assert_eq!(overflow, 0, "the page is too wide: {view} {device} {language}");
                page.eval("scrollTo(0, 0)").await;
                page.screenshot(&album.join(format!("console-{view}-{device}-{scheme}-{language}.png"))).await;
            }
        }
    }
    is_unharmed(&page).await;
}
