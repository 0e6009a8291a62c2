//! The API door itself: who is let in, how errors look, and that nothing a caller sends can harm the node.

use std::collections::BTreeSet;
use std::time::Instant;

use moongate::outcome::ERRORS;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Answer, Node, eventually, raw_http, soon};

/// A client id that nobody has.
const NOBODY: &str = "7f000001ffff00000007";

const TOKEN: &str = "s3cret-t0ken";

async fn node_with_token() -> Node {
    Node::start_with(&[("MOONGATE_API_TOKEN", TOKEN)]).await
}

/// The answer is a problem (RFC 9457) of this status and code.
fn is_problem(what: &str, answer: &Answer, status: u16, code: &str) -> Value {
    assert_eq!(answer.status, status, "{what}: {} {}", answer.head, answer.text());
    assert!(answer.head.contains("content-type: application/problem+json"), "{what}: {}", answer.head);
    let problem = answer.json();
    assert_eq!(problem["status"], status, "{what}: {problem}");
    assert_eq!(problem["code"], code, "{what}: {problem}");
    assert!(ERRORS.iter().any(|(known, of, _)| (*known, *of) == (code, status)), "{what}: {code} is not listed");
    for words in ["title", "detail"] {
        assert!(problem[words].as_str().is_some_and(|words| !words.is_empty()), "{what}: {problem}");
    }
    problem
}

/// A body is `invalid_request`; the field that the refusal names, if it names one.
async fn refused_field(node: &Node, op: &str, body: &[u8]) -> Option<String> {
    let answer = node.request("POST", &format!("/api/{op}"), &[], body).await;
    let shown = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
    let problem = is_problem(&shown, &answer, 400, "invalid_request");
    problem.get("field").map(|field| field.as_str().unwrap().to_owned())
}

/// Sends bytes, says that there are no more, and reads what comes until the end. Nothing of it may fail the test.
async fn throw(address: std::net::SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    soon("the end of a connection", async {
        if socket.write_all(bytes).await.is_ok() && socket.shutdown().await.is_ok() {
            drop(socket.read_to_end(&mut answer).await);
        }
    })
    .await;
    answer
}

/// The connection is ended by the node.
async fn is_cut(socket: &mut TcpStream) {
    soon("the node cuts the connection", async {
        let mut rest = Vec::new();
        drop(socket.read_to_end(&mut rest).await);
    })
    .await;
}

// --- problems ------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_a_problem_with_its_code() {
    let node = Node::start_with(&[("MOONGATE_API_MAX_BODY", "1KiB")]).await;
    let own = format!("http://{}", node.api);
    let large = format!(r#"{{"message":"{}"}}"#, "x".repeat(1024));
    let (foreign, rebound) = ([("Origin", "https://evil.example")], [("Host", "evil.example:7273")]);
    for (method, path, headers, body, status, code) in [
        ("POST", "/api/sendToUid", &[][..], r#"{"message":"x"}"#, 400, "invalid_request"),
        ("POST", "/api/sendToUid", &[], "not JSON", 400, "invalid_request"),
        ("POST", "/api/sendToUid", &[], "", 400, "invalid_request"),
        ("POST", "/api/nope", &[], "{}", 404, "unknown_op"),
        ("POST", "/api/nope", &[], "not JSON", 404, "unknown_op"),
        ("POST", "/api/sendtouid", &[], "{}", 404, "unknown_op"),
        ("POST", "/api/%F0%9F%8C%95", &[], "{}", 404, "unknown_op"),
        ("POST", "/api/unbindUid", &[], r#"{"client_id":"7f000001ffff00000007"}"#, 404, "client_not_found"),
        ("POST", "/api/sendToAll", &[], &large, 413, "payload_too_large"),
        ("POST", "/api/sendToAll", &foreign, r#"{"message":"x"}"#, 403, "forbidden"),
        ("POST", "/api/sendToAll", &rebound, r#"{"message":"x"}"#, 403, "forbidden"),
        ("GET", "/api/getAllUidCount", &[], "", 405, "method_not_allowed"),
        ("PUT", "/api/sendToAll", &[], r#"{"message":"x"}"#, 405, "method_not_allowed"),
        ("DELETE", "/", &[], "", 405, "method_not_allowed"),
        ("POST", "/metrics", &[], "", 405, "method_not_allowed"),
        ("GET", "/nowhere", &[], "", 404, "not_found"),
        ("POST", "/api", &[], "{}", 404, "not_found"),
        ("POST", "/api/", &[], "{}", 404, "not_found"),
        ("POST", "/api/sendToAll/", &[], r#"{"message":"x"}"#, 404, "not_found"),
    ] {
        let answer = node.request(method, path, headers, body.as_bytes()).await;
        is_problem(&format!("{method} {path} {headers:?}"), &answer, status, code);
    }
    let answer = node.request("POST", "/api/getAllUidCount", &[("Origin", &own)], b"").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"result": 0})));
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_request_names_the_field() {
    let node = Node::start().await;
    let mut client = node.member("ann", "red").await;
    for (op, fields, field) in [
        ("sendToGroup", json!({"group": "red", "message": "x", "exlude": [client.id]}), "exlude"),
        ("sendToGroup", json!({"message": "x"}), "group"),
        ("sendToUid", json!({"uid": null, "message": "x"}), "uid"),
        ("sendToAll", json!({"message": "x", "exclude": ["7f"]}), "exclude"),
        ("sendToAll", json!({"message": "x", "exclude": null}), "exclude"),
        ("sendToAll", json!({"binary": "?"}), "binary"),
        ("closeClient", json!({"client_id": client.id, "code": 1005}), "code"),
        ("setSession", json!({"client_id": client.id, "session": "x"}), "session"),
        ("getAllUidList", json!({"limit": 0}), "limit"),
        ("isOnline", json!({"client_id": "x"}), "client_id"),
        ("isOnline", json!({"": 1}), ""),
        ("isOnline", json!({"client_id": client.id, "月": 1}), "月"),
    ] {
        let problem = is_problem(op, &node.post(op, &fields.to_string()).await, 400, "invalid_request");
        assert_eq!(problem["field"], field, "{op} {fields}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(field), "{op} {fields}: {problem}");
    }
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_refused_however_it_is_sent() {
    let node = Node::start_with(&[("MOONGATE_API_MAX_BODY", "64KiB")]).await;
    let mut client = node.connect().await;
    let body = |size: usize| {
        let around = r#"{"message":""}"#.len();
        format!(r#"{{"message":"{}"}}"#, "x".repeat(size - around)).into_bytes()
    };
    let fits = body(64 * 1024);
    assert_eq!(node.request("POST", "/api/sendToAll", &[], &fits).await.status, 200);
    assert_eq!(client.text().await.len(), 64 * 1024 - 14);
    for size in [64 * 1024 + 1, 200_000, 5_000_000] {
        for path in ["/api/sendToAll", "/?method=sendToAll"] {
            let answer = node.request("POST", path, &[], &body(size)).await;
            is_problem(path, &answer, 413, "payload_too_large");
        }
    }
    // Without a Content-Length it is told when it comes.
    for (size, status) in [(64 * 1024, 200), (64 * 1024 + 1, 413), (300_000, 413)] {
        let head = format!(
            "POST /api/sendToAll HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
            node.api
        );
        let mut request = head.into_bytes();
        for chunk in body(size).chunks(1000) {
            request.extend(format!("{:x}\r\n", chunk.len()).bytes());
            request.extend(chunk);
            request.extend(b"\r\n");
        }
        request.extend(b"0\r\n\r\n");
        assert_eq!(raw_http(node.api, request).await.status, status, "{size} bytes in chunks");
    }
    client.text().await;
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_to_be_asked_for_the_body_is_asked_for_it() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let mut socket = TcpStream::connect(node.api).await.unwrap();
    let body = json!({"message": "x".repeat(5000)}).to_string();
    let head = format!(
        "POST /api/sendToAll HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        node.api,
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut asked = [0; 25];
    soon("the interim answer", socket.read_exact(&mut asked)).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("the answer", socket.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("{\"result\":{\"nodes\":1}}\n"), "{answer}");
    assert_eq!(client.text().await.len(), 5000);
}

// --- who is let in -------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_needed_everywhere_but_for_health_and_the_bare_page() {
    let node = node_with_token().await;
    let without: &[_] = &[("Authorization", "")];
    for (method, path) in [
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("POST", "/api/getAllUidCount"),
        ("GET", "/api/getAllUidCount"),
        ("POST", "/api/nope"),
        ("POST", "/api/batch"),
        ("GET", "/nowhere"),
        ("GET", "/?method=getAllUidCount"),
        ("HEAD", "/?method=getAllUidCount"),
        ("POST", "/?method=getAllUidCount"),
        ("GET", "/?x=1&method=getAllUidCount"),
        ("GET", "/?m%65thod=getAllUidCount"),
        ("POST", "/"),
        ("GET", "//healthz"),
        ("GET", "/healthz/"),
        ("GET", "/healthz/../metrics"),
        ("PUT", "/"),
    ] {
        let answer = node.request(method, path, without, b"").await;
        let what = format!("{method} {path}");
        assert!(answer.head.contains("www-authenticate: bearer"), "{what}: {}", answer.head);
        if method == "HEAD" {
            assert_eq!(answer.status, 401, "{what}");
        } else {
            is_problem(&what, &answer, 401, "unauthorized");
        }
    }
    for path in ["/healthz", "/readyz", "/", "/?lang=zh"] {
        assert_eq!(node.request("GET", path, without, b"").await.status, 200, "{path}");
    }
    let page = node.request("GET", "/", without, b"").await;
    assert!(page.head.contains("content-type: text/html"), "{}", page.head);
    assert!(!page.text().contains(TOKEN));

    for path in ["/metrics", "/openapi.json", "/?method=getAllUidCount"] {
        assert_eq!(node.get(path).await.status, 200, "{path}");
    }
    assert_eq!(node.ask("getAllUidCount", json!({})).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_token_itself_opens() {
    let node = node_with_token().await;
    for (header, status) in [
        ("Bearer s3cret-t0ken", 200),
        ("bearer s3cret-t0ken", 200),
        ("BEARER   s3cret-t0ken", 200),
        // Of the same length, and longer and shorter ones.
        ("Bearer s3cret-t0keN", 401),
        ("Bearer S3cret-t0ken", 401),
        ("Bearer s3cret-t0ke", 401),
        ("Bearer s3cret-t0kenn", 401),
        ("Bearer ", 401),
        ("Bearer", 401),
        ("s3cret-t0ken", 401),
        ("Basic s3cret-t0ken", 401),
        ("Basic OnMzY3JldC10MGtlbg==", 401),
        ("Bearer s3cret-t0ken, Bearer x", 401),
        ("Bearer \u{fffd}", 401),
    ] {
        let answer = node.request("POST", "/api/getAllUidCount", &[("Authorization", header)], b"").await;
        assert_eq!(answer.status, status, "{header}");
        if status == 401 {
            is_problem(header, &answer, 401, "unauthorized");
            assert!(answer.head.contains("www-authenticate: bearer"), "{header}: {}", answer.head);
        }
    }
    // It is not taken from the query, where logs would keep it.
    for path in ["/metrics?token=s3cret-t0ken", "/metrics?api_token=s3cret-t0ken", "/metrics?access_token=s3cret-t0ken"]
    {
        assert_eq!(node.request("GET", path, &[("Authorization", "")], b"").await.status, 401, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_for_who_has_no_token() {
    let node = node_with_token().await;
    let mut client = node.connect().await;
    let without: &[_] = &[("Authorization", "Bearer wrong")];
    let send = json!({"message": "x"}).to_string();
    node.request("POST", "/api/sendToAll", without, send.as_bytes()).await;
    for method in ["GET", "POST", "HEAD", "PUT"] {
        node.request(method, "/?method=sendToAll&args[]=x", without, b"").await;
    }
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    node.request("POST", "/", &[without[0], form], b"method=sendToAll&args[]=x").await;
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_any_host_and_origin_may_ask() {
    let node = node_with_token().await;
    let headers = [("Host", "push.example.com"), ("Origin", "https://console.example.com")];
    assert_eq!(node.request("POST", "/api/getAllUidCount", &headers, b"").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_metrics_need_no_token_and_nothing_else_is_opened() {
    let settings = [("MOONGATE_API_TOKEN", TOKEN), ("MOONGATE_METRICS_OPEN", "true")];
    let node = Node::start_with(&settings).await;
    let without: &[_] = &[("Authorization", "")];
    let answer = node.request("GET", "/metrics", without, b"").await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("moongate_clients 0"), "{}", answer.text());
    for path in ["/openapi.json", "/metrics/", "/metrics/../openapi.json", "/?method=getAllUidCount"] {
        assert_eq!(node.request("GET", path, without, b"").await.status, 401, "{path}");
    }
    assert_eq!(node.request("POST", "/api/getAllUidCount", without, b"").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_only_programs_of_this_machine_are_answered() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let port = node.api.port();
    let own = |name: &str| (format!("{name}:{port}"), format!("http://{name}:{port}"));
    let send = json!({"message": "x"}).to_string();
    for name in ["localhost", "127.0.0.1", "[::1]", "LOCALHOST", "127.1.2.3"] {
        let (host, origin) = own(name);
        for headers in [&[("Host", &*host)][..], &[("Host", &host), ("Origin", &origin)]] {
            assert_eq!(node.request("GET", "/", headers, b"").await.status, 200, "{headers:?}");
            assert_eq!(node.request("POST", "/api/getAllUidCount", headers, b"").await.status, 200, "{headers:?}");
        }
    }
    let (host, origin) = own("127.0.0.1");
    let same_host_other_port = format!("http://127.0.0.1:{}", port.wrapping_add(1));
    let other_scheme = origin.replace("http", "https");
    for headers in [
        &[("Host", "evil.example")][..],
        &[("Host", "localhost.evil.example:7273")],
        &[("Host", "10.0.0.1:7273")],
        &[("Host", "")],
        &[("Host", "[::2]")],
        &[("Host", "evil.example"), ("Origin", "http://evil.example")],
        &[("Host", &host), ("Origin", "https://evil.example")],
        &[("Host", &host), ("Origin", "null")],
        &[("Host", &host), ("Origin", "")],
        &[("Host", &host), ("Origin", &same_host_other_port)],
        &[("Host", &host), ("Origin", &other_scheme)],
        &[("Host", &host), ("Origin", "http://localhost.evil.example")],
    ] {
        for (method, path) in [
            ("POST", "/api/sendToAll"),
            ("POST", "/?method=sendToAll&args[]=x"),
            ("GET", "/?method=sendToAll&args[]=x"),
            ("GET", "/"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
        ] {
            let answer = node.request(method, path, headers, send.as_bytes()).await;
            is_problem(&format!("{method} {path} {headers:?}"), &answer, 403, "forbidden");
        }
    }
    // A page elsewhere is also not told by CORS that it may read.
    let preflight = [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")];
    let answer = node.request("OPTIONS", "/api/sendToAll", &preflight, b"").await;
    assert!(!answer.head.contains("access-control-allow"), "{}", answer.head);
    // Nor is a request without a Host.
    let request = b"POST /api/sendToAll HTTP/1.0\r\nContent-Length: 15\r\n\r\n{\"message\":\"x\"}".to_vec();
    assert_eq!(raw_http(node.api, request).await.status, 403);
    client.heard_nothing(&node).await;
}

// --- GatewayWorker's push form -------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn the_push_form_takes_its_arguments_by_position() {
    let node = node_with_token().await;
    let mut client = node.member("42", "red").await;
    let mut other = node.member("43", "red").await;
    let (id, other_id) = (client.id.clone(), other.id.clone());
    for (query, result, message) in [
        ("method=sendToUid&args[]=42&args[]=hello".to_owned(), json!({"nodes": 1}), Some("hello")),
        ("args%5B%5D=42&args%5B%5D=a%26b+c%20%E6%9C%88&method=sendToUid".into(), json!({"nodes": 1}), Some("a&b c 月")),
        ("method=sendToUid&args[1]=back&args[0]=42".into(), json!({"nodes": 1}), Some("back")),
        (format!("method=sendToClient&args[]={id}&args[]=%7B%22a%22:%201%7D"), json!({"nodes": 1}), Some("{\"a\": 1}")),
        (format!("method=sendToClient&args[]={id}&args[]=5"), json!({"nodes": 1}), Some("5")),
        (
            "method=sendToUid&args[0][]=42&args[0][]=77&args[1]=many".into(),
            json!({"nodes": 1, "offline": ["77"]}),
            Some("many"),
        ),
        (format!("method=sendToGroup&args[]=red&args[]=but&args[2][]={other_id}"), json!({"nodes": 1}), Some("but")),
        (format!("method=sendToAll&args[]=one&args[1][]={id}"), json!({"nodes": 1}), Some("one")),
        ("method=getUidByClientId&args[]=".to_owned() + &id, json!("42"), None),
        (format!("method=setSession&args[]={id}&args[]=%7B%22n%22:1%7D"), json!(true), None),
        (format!("method=getSession&args[]={id}"), json!({"n": 1}), None),
        ("method=getAllClientCount".into(), json!(2), None),
        ("method=getClientCountByGroup&args[]=red".into(), json!(2), None),
    ] {
        let answer = node.get(&format!("/?{query}")).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"result": result})), "{query}");
        if let Some(message) = message {
            assert_eq!(client.text().await, message, "{query}");
        }
    }
    client.heard_nothing(&node).await;
    other.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_push_form_can_come_as_a_form() {
    let node = Node::start().await;
    let mut client = node.member("42", "red").await;
    let form = [("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")];
    for (path, body) in [
        ("/", "method=sendToUid&args[]=42&args[]=1"),
        ("/?method=sendToUid", "args[]=42&args[]=1"),
        ("/?method=sendToUid&args[]=42", "args[]=1"),
        ("/?method=sendToUid&args[]=42&args[]=1", ""),
    ] {
        let answer = node.request("POST", path, &form, body.as_bytes()).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"result": {"nodes": 1}})), "{path} {body}");
        assert_eq!(client.text().await, "1");
    }
    let uids: Vec<String> = (0..10_000).map(|n| format!("args[0][]={n}")).collect();
    let body = format!("method=isUidsOnline&{}", uids.join("&"));
    let answer = node.request("POST", "/", &form, body.as_bytes()).await.json();
    assert_eq!((answer["result"].as_object().unwrap().len(), &answer["result"]["42"]), (10_000, &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_the_push_form_takes_post_only() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let path = "/?method=sendToAll&args[]=x";
    is_problem("GET", &node.get(path).await, 405, "method_not_allowed");
    assert_eq!(node.request("POST", path, &[], b"").await.json(), json!({"result": {"nodes": 1}}));
    assert_eq!(client.text().await, "x");
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_a_head_request_does_nothing() {
    // A page anywhere may have a browser send a HEAD, and then there is no Origin that would tell.
    let node = Node::start().await;
    let mut client = node.connect().await;
    let answer = node.request("HEAD", "/?method=sendToAll&args[]=x", &[], b"").await;
    client.heard_nothing(&node).await;
    assert_eq!(answer.status, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_push_form_does_not_understand_it_refuses() {
    let node = Node::start().await;
    let mut client = node.member("42", "red").await;
    let id = client.id.clone();
    let mut taken = Vec::new();
    for (query, status, code) in [
        ("args[]=42".to_owned(), 400, "invalid_request"),
        ("method=".into(), 404, "unknown_op"),
        ("method=nope&args[]=42".into(), 404, "unknown_op"),
        ("method=sendToUid&args[]=42".into(), 400, "invalid_request"),
        ("method=sendToUid&args[]=42&args[]=x&args[]=more".into(), 400, "invalid_request"),
        ("method=sendToUid&args[]=&args[]=x".into(), 400, "invalid_request"),
        ("method=sendToUid&args[]=42&args[]=x&exlude=1".into(), 400, "invalid_request"),
        ("method=sendToUid&arg[]=42&args[]=x".into(), 400, "invalid_request"),
        ("method=sendToUid&args=42".into(), 400, "invalid_request"),
        ("method=sendToUid&args[0]=42&args[999]=x".into(), 400, "invalid_request"),
        ("method=sendToUid&args[x]=42&args[]=x".into(), 400, "invalid_request"),
        ("method=sendToUid&args[-1]=42&args[]=x".into(), 400, "invalid_request"),
        // Whom it shall not reach is not understood: then it must not reach them.
        (format!("method=sendToGroup&args[]=red&args[]=x&args[]={id}"), 400, "invalid_request"),
        (format!("method=sendToGroup&args[]=red&args[]=x&args[2]x={id}"), 400, "invalid_request"),
        (format!("method=sendToGroup&args[]=red&args[]=x&args[2][={id}"), 400, "invalid_request"),
        (format!("method=sendToGroup&args[]=red&args[]=x&args[2]]={id}"), 400, "invalid_request"),
        (format!("method=sendToGroup&args[]=red&args[]=x&args[][]={id}"), 400, "invalid_request"),
        ("method=sendToUid&args[]=42&args[]=%FF%FE&args[]=x".into(), 400, "invalid_request"),
    ] {
        let answer = node.request("POST", &format!("/?{query}"), &[], b"").await;
        if answer.status == status {
            is_problem(&query, &answer, status, code);
        } else {
            taken.push(query);
        }
    }
    assert!(taken.is_empty(), "these were not refused: {taken:#?}");
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_argument_that_comes_as_one_value_and_as_an_array_is_not_dropped() {
    let node = Node::start().await;
    let mut client = node.member("42", "red").await;
    // Refused, or the array: but it must not reach whom it excludes.
    let path = format!("/?method=sendToGroup&args[]=red&args[]=x&args[2]=&args[2][]={}", client.id);
    let answer = node.request("POST", &path, &[], b"").await;
    assert!([200, 400].contains(&answer.status), "{}", answer.text());
    client.heard_nothing(&node).await;
}

// --- what describes itself -----------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn the_description_lists_every_operation() {
    let node = Node::start().await;
    let answer = node.get("/openapi.json").await;
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    let document = answer.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{}", document["openapi"]);
    let text = document.to_string();
    let described: BTreeSet<&str> =
        document["paths"].as_object().unwrap().keys().filter_map(|path| path.strip_prefix("/api/")).collect();
    for op in [
        "sendToAll",
        "sendToClient",
        "sendToUid",
        "sendToGroup",
        "closeClient",
        "destroyClient",
        "closeUid",
        "bindUid",
        "unbindUid",
        "joinGroup",
        "leaveGroup",
        "ungroup",
        "setSession",
        "updateSession",
        "batch",
        "isOnline",
        "isUidOnline",
        "isUidsOnline",
        "getSession",
        "getUidByClientId",
        "getClientIdByUid",
        "batchGetClientIdByUid",
        "getClientIdListByGroup",
        "getClientIdCountByGroup",
        "batchGetClientIdCountByGroup",
        "getClientSessionsByGroup",
        "getUidListByGroup",
        "getUidCountByGroup",
        "getAllClientIdList",
        "getAllClientIdCount",
        "getAllClientSessions",
        "getAllUidList",
        "getAllUidCount",
        "getAllGroupIdList",
        "getAllGroupUidList",
        "getAllGroupUidCount",
        "getAllGroupClientIdList",
        "getAllGroupClientIdCount",
    ] {
        assert!(described.contains(op), "{op} is not described");
        let operation = &document["paths"][format!("/api/{op}")]["post"];
        assert!(operation["summary"].is_string() && operation["responses"]["200"].is_object(), "{op}: {operation}");
    }
    // And what is described is there.
    for op in described {
        let answer = node.post(op, r#"{"no such field": 1}"#).await;
        is_problem(op, &answer, 400, "invalid_request");
    }
    for alias in
        ["getClientCountByGroup", "getAllClientCount", "getAllClientInfo", "getClientInfoByGroup", "destoryClient"]
    {
        assert!(text.contains(alias), "{alias} is not told");
    }
}

/// The value of a series, with its labels as they are written; 0 where it does not exist yet.
fn series(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_count_what_happened() {
    let node = Node::start().await;
    let mut clients =
        [node.member("ann", "red").await, node.member("ann", "blue").await, node.member("bob", "red").await];
    clients[0].send(Message::text("hello")).await;
    clients[0].send(Message::binary(vec![1])).await;
    node.ask("sendToAll", json!({"message": "to three"})).await;
    node.ask("sendToUid", json!({"uid": "ann", "message": "to two"})).await;
    node.ask("sendToGroup", json!({"group": "nobody", "message": "to none"})).await;
    node.refused("bindUid", json!({"client_id": NOBODY, "uid": "x"})).await;
    node.ask("closeClient", json!({"client_id": clients[2].id})).await;
    node.ask("destroyClient", json!({"client_id": clients[1].id})).await;
    throw(node.clients, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;

    let expected = [
        ("moongate_clients", 1.0),
        ("moongate_uids", 1.0),
        ("moongate_groups", 1.0),
        ("moongate_connections_total", 3.0),
        ("moongate_messages_received_total", 2.0),
        ("moongate_deliveries_total", 5.0),
        ("moongate_deliveries_dropped_total", 0.0),
        (r#"moongate_disconnections_total{reason="closed"}"#, 1.0),
        (r#"moongate_disconnections_total{reason="destroyed"}"#, 1.0),
        (r#"moongate_handshakes_refused_total{reason="not_websocket"}"#, 1.0),
        (r#"moongate_commands_total{op="sendToAll",outcome="ok"}"#, 1.0),
        (r#"moongate_commands_total{op="sendToGroup",outcome="ok"}"#, 1.0),
        (r#"moongate_commands_total{op="bindUid",outcome="ok"}"#, 3.0),
        (r#"moongate_commands_total{op="bindUid",outcome="client_not_found"}"#, 1.0),
        (r#"moongate_commands_total{op="closeClient",outcome="ok"}"#, 1.0),
    ];
    let page = std::sync::Mutex::new(String::new());
    eventually("everything is counted", || async {
        *page.lock().unwrap() = node.get("/metrics").await.text();
        let page = page.lock().unwrap();
        expected.iter().all(|(name, value)| series(&page, name) >= *value)
    })
    .await;
    let page = page.into_inner().unwrap();
    for (name, value) in expected {
        assert_eq!(series(&page, name).to_bits(), value.to_bits(), "{name} in\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_count_a_command_in_a_batch_as_one_that_is_alone() {
    let node = Node::start().await;
    let client = node.connect().await;
    let commands = json!([
        {"op": "bindUid", "client_id": client.id, "uid": "ann"},
        {"op": "joinGroup", "client_id": client.id, "group": "red"},
        {"op": "joinGroup", "client_id": NOBODY, "group": "red"},
        {"op": "sendToUid", "uid": "ann", "message": "x"},
    ]);
    node.call("batch", json!({"commands": commands})).await;
    let page = node.get("/metrics").await.text();
    for (op, outcome) in
        [("sendToUid", "ok"), ("bindUid", "ok"), ("joinGroup", "ok"), ("joinGroup", "client_not_found")]
    {
        let name = format!("moongate_commands_total{{op=\"{op}\",outcome=\"{outcome}\"}}");
        assert_eq!(series(&page, &name).to_bits(), 1f64.to_bits(), "{name} in\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_are_well_formed_and_name_nobody() {
    let node = Node::start().await;
    let mut client = node.member("uid-of-somebody", "group-of-somebody").await;
    node.done("setSession", json!({"client_id": client.id, "session": {"k": "session-of-somebody"}})).await;
    node.ask("sendToUid", json!({"uid": "uid-of-somebody", "message": "message-to-somebody"})).await;
    node.post("operation-of-somebody", "{}").await;
    node.get("/path-of-somebody").await;
    client.text().await;
    let answer = node.get("/metrics").await;
    assert!(answer.head.contains("content-type: application/openmetrics-text"), "{}", answer.head);
    let page = answer.text();
    assert!(!page.contains("somebody") && !page.contains(&client.id), "{page}");
    assert!(page.ends_with("# EOF\n"), "{page}");
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("moongate_") && value.parse::<f64>().is_ok(), "{line}");
    }
}

// --- what must not harm --------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_proper_json_object_is_refused() {
    let node = Node::start().await;
    let mut client = node.member("ann", "red").await;
    for body in [
        &b"x"[..],
        b"[]",
        b"[1]",
        b"\"sendToAll\"",
        b"null",
        b"5",
        b"{",
        b"{\"message\":\"x\"",
        b"{\"message\":\"x\"}}",
        b"{\"message\":\"x\"} {}",
        b"{\"message\":\"x\",}",
        b"{'message':'x'}",
        b"{message:\"x\"}",
        b"{\"message\":NaN}",
        b"{\"message\":Infinity}",
        b"{\"message\":01}",
        b"{\"message\":+1}",
        b"{\"message\":.5}",
        b"{\"message\":\"a\nb\"}",
        b"{\"message\":\"\\x\"}",
        b"{\"message\":\"x\" \"y\"}",
        b"\xef\xbb\xbf{\"message\":\"x\"}",
        b"\x00{\"message\":\"x\"}",
        b"{\"message\":\"x\"}\x00",
        // Not UTF-8.
        b"{\"message\":\"\xff\"}",
        b"{\"message\":\"\xc3\x28\"}",
        b"{\"message\":\"\xed\xa0\x80\"}",
        b"{\"message\":\"\xf4\x90\x80\x80\"}",
        b"{\"\xff\":\"x\"}",
        b"\xff\xfe{\x00",
        // Half of a surrogate pair.
        b"{\"message\":\"\\ud800\"}",
        b"{\"message\":\"\\udc00\\ud800\"}",
        b"{\"message\":\"x\",\"\\ud800\":1}",
        b"{\"message\":\"x\",\"exclude_uid\":[\"\\ud800\"]}",
        // Twice the same.
        b"{\"message\":\"x\",\"message\":\"y\"}",
        b"{\"message\":\"x\",\"\\u006dessage\":\"y\"}",
    ] {
        refused_field(&node, "sendToAll", body).await;
    }
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_nesting_is_refused_wherever_it_stands() {
    let node = Node::start().await;
    let mut client = node.member("ann", "red").await;
    let id = client.id.clone();
    let lists = "[".repeat(100_000) + &"]".repeat(100_000);
    let objects = r#"{"a":"#.repeat(100_000) + "1" + &"}".repeat(100_000);
    let open = "[".repeat(100_000);
    for deep in [lists, objects, open] {
        for (op, body) in [
            ("sendToAll", deep.clone()),
            ("sendToAll", format!(r#"{{"message":{deep}}}"#)),
            ("sendToAll", format!(r#"{{"message":"x","exclude":{deep}}}"#)),
            ("sendToAll", format!(r#"{{"message":"x","client_ids":{deep}}}"#)),
            ("sendToAll", format!(r#"{{"message":"x","confirm":{deep}}}"#)),
            ("sendToAll", format!(r#"{{"message":"x","unknown":{deep}}}"#)),
            ("sendToAll", format!(r#"{{"binary":{deep}}}"#)),
            ("sendToUid", format!(r#"{{"message":"x","uid":{deep}}}"#)),
            ("sendToGroup", format!(r#"{{"message":"x","group":["red",{deep}]}}"#)),
            ("setSession", format!(r#"{{"client_id":"{id}","session":{deep}}}"#)),
            ("updateSession", format!(r#"{{"client_id":"{id}","session":{{"a":{deep}}}}}"#)),
            ("getSession", format!(r#"{{"client_id":{deep}}}"#)),
            ("getAllUidList", format!(r#"{{"limit":{deep}}}"#)),
            ("closeClient", format!(r#"{{"client_id":"{id}","message":{deep}}}"#)),
            ("batch", format!(r#"{{"commands":{{"a":{deep}}}}}"#)),
        ] {
            refused_field(&node, op, body.as_bytes()).await;
        }
    }
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let body = format!(r#"{{"commands":[{deep},{{"op":"sendToAll","message":{deep}}},{{"op":{deep}}}]}}"#);
    let answer = node.post("batch", &body).await.json();
    for item in answer["results"].as_array().unwrap() {
        assert_eq!(item["error"]["code"], "invalid_request", "{item}");
    }
    // What people write is far below the bound.
    let fine = "[".repeat(100) + &"]".repeat(100);
    node.post("sendToAll", &format!(r#"{{"message":{fine}}}"#)).await;
    assert_eq!(client.text().await, fine);
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_are_too_large_are_refused_and_in_a_message_they_are_text() {
    let node = Node::start().await;
    let mut client = node.member("ann", "red").await;
    let id = client.id.clone();
    let digits = "9".repeat(100_000);
    for (op, body, field) in [
        ("sendToUid", r#"{"uid":1e999,"message":"x"}"#.to_owned(), "uid"),
        ("sendToUid", format!(r#"{{"uid":{digits},"message":"x"}}"#), "uid"),
        ("sendToGroup", r#"{"group":[-1e999],"message":"x"}"#.to_owned(), "group"),
        ("getAllUidList", format!(r#"{{"limit":{digits}}}"#), "limit"),
        ("getAllUidList", r#"{"limit":65537}"#.to_owned(), "limit"),
        ("getAllUidList", r#"{"limit":4294967297}"#.to_owned(), "limit"),
        ("closeClient", format!(r#"{{"client_id":"{id}","code":69536}}"#), "code"),
        ("closeClient", format!(r#"{{"client_id":"{id}","code":{digits}}}"#), "code"),
    ] {
        assert_eq!(refused_field(&node, op, body.as_bytes()).await.as_deref(), Some(field), "{op}");
    }
    for number in ["1e999", "-0", "1E+2", &digits] {
        node.post("sendToAll", &format!(r#"{{"message":{number}}}"#)).await;
        assert_eq!(client.text().await, number);
    }
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_surrogate_pair_is_refused_by_name() {
    let node = Node::start().await;
    let mut client = node.member("ann", "red").await;
    let id = client.id.clone();
    let half = r#""\ud800""#;
    for (op, body, field) in [
        ("sendToAll", format!(r#"{{"message":{half}}}"#), "message"),
        ("sendToUid", format!(r#"{{"uid":{half},"message":"x"}}"#), "uid"),
        ("sendToUid", format!(r#"{{"uid":["ann",{half}],"message":"x"}}"#), "uid"),
        ("joinGroup", format!(r#"{{"client_id":"{id}","group":{half}}}"#), "group"),
        ("closeClient", format!(r#"{{"client_id":"{id}","reason":{half}}}"#), "reason"),
        ("setSession", format!(r#"{{"client_id":"{id}","session":{{"a":{half}}}}}"#), "session"),
        ("setSession", format!(r#"{{"client_id":"{id}","session":{{{half}:1}}}}"#), "session"),
        ("updateSession", format!(r#"{{"client_id":"{id}","session":{{"a":[{half}]}}}}"#), "session"),
        ("getAllUidList", format!(r#"{{"limit":5,"cursor":{half}}}"#), "cursor"),
    ] {
        assert_eq!(refused_field(&node, op, body.as_bytes()).await.as_deref(), Some(field), "{op} {body}");
    }
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_array_has_ten_thousand_entries_at_the_most() {
    let node = Node::start().await;
    let mut client = node.member("7", "7").await;
    let id = client.id.clone();
    let names = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
    let ids = |count: usize| vec![id.clone(); count];

    let answer = node.ask("sendToUid", json!({"uid": names(10_000), "message": "1"})).await;
    assert_eq!((&answer["nodes"], answer["offline"].as_array().unwrap().len()), (&json!(1), 9999));
    node.ask("sendToGroup", json!({"group": names(10_000), "message": "2"})).await;
    node.ask("sendToAll", json!({"client_ids": ids(10_000), "message": "3"})).await;
    node.ask("sendToAll", json!({"exclude": ids(10_000), "message": "-"})).await;
    node.ask("sendToAll", json!({"exclude_uid": names(10_000), "message": "-"})).await;
    assert_eq!(node.ask("isUidsOnline", json!({"uid": names(10_000)})).await.as_object().unwrap().len(), 10_000);
    assert_eq!(node.ask("getClientIdCountByGroup", json!({"group": names(10_000)})).await, 1);
    for message in ["1", "2", "3"] {
        assert_eq!(client.text().await, message);
    }
    for (op, field, fields) in [
        ("sendToUid", "uid", json!({"uid": names(10_001), "message": "x"})),
        ("sendToUid", "uid", json!({"uid": vec!["7"; 10_001], "message": "x"})),
        ("closeUid", "uid", json!({"uid": names(10_001)})),
        ("isUidsOnline", "uid", json!({"uid": names(10_001)})),
        ("batchGetClientIdByUid", "uid", json!({"uid": names(10_001)})),
        ("sendToGroup", "group", json!({"group": names(10_001), "message": "x"})),
        ("sendToGroup", "exclude", json!({"group": "7", "message": "x", "exclude": ids(10_001)})),
        ("sendToGroup", "exclude_uid", json!({"group": "7", "message": "x", "exclude_uid": names(10_001)})),
        ("sendToAll", "client_ids", json!({"message": "x", "client_ids": ids(10_001)})),
        ("joinGroup", "group", json!({"client_id": id, "group": names(10_001)})),
        ("leaveGroup", "group", json!({"client_id": id, "group": names(10_001)})),
        ("getClientIdListByGroup", "group", json!({"group": names(10_001)})),
        ("getUidListByGroup", "group", json!({"group": names(10_001)})),
        ("getClientIdCountByGroup", "group", json!({"group": names(10_001)})),
        ("batchGetClientIdCountByGroup", "group", json!({"group": names(10_001)})),
    ] {
        let refused = refused_field(&node, op, fields.to_string().as_bytes()).await;
        assert_eq!(refused.as_deref(), Some(field), "{op}");
    }
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_head_of_more_than_16_kib_is_431() {
    let node = Node::start().await;
    for (address, port) in [(node.api, "api"), (node.clients, "clients")] {
        for _ in 0..10 {
            let long = "x".repeat(17 * 1024);
            let lines = format!("X: {}\r\n", "y".repeat(300)).repeat(60);
            for head in [
                format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nX: {long}\r\n\r\n"),
                format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n{lines}\r\n"),
                format!("GET /healthz?{long} HTTP/1.1\r\nHost: {address}\r\n\r\n"),
            ] {
                let answer = throw(address, head.as_bytes()).await;
                let status = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
                assert_eq!(status, "HTTP/1.1 431", "{port}: {}…", &head[..60]);
            }
        }
    }
    let long = "x".repeat(15 * 1024);
    assert_eq!(node.request("GET", "/healthz", &[("X-Long", &long)], b"").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_finish_a_request_head_in_time_is_cut() {
    let node = Node::start_with(&[("MOONGATE_HANDSHAKE_TIMEOUT", "300ms")]).await;
    for begun in ["", "P", "POST /api/sendToAll HTTP/1.1\r\nHost: ", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"] {
        let mut socket = TcpStream::connect(node.api).await.unwrap();
        let start = Instant::now();
        socket.write_all(begun.as_bytes()).await.unwrap();
        is_cut(&mut socket).await;
        assert!(start.elapsed().as_millis() >= 250, "{begun:?} was cut after {:?}", start.elapsed());
    }
    assert_eq!(node.get("/healthz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_a_request_head_byte_by_byte_is_cut_too() {
    let node = Node::start_with(&[("MOONGATE_HANDSHAKE_TIMEOUT", "300ms")]).await;
    let mut socket = TcpStream::connect(node.api).await.unwrap();
    soon("the node cuts the connection", async {
        let mut answer = [0; 1024];
        // Every read that brings nothing within 20 ms is followed by one more byte.
        for byte in b"GET /healthz HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'x')) {
            if socket.write_all(&[*byte]).await.is_err() {
                return;
            }
            let read = tokio::time::timeout(std::time::Duration::from_millis(20), socket.read(&mut answer)).await;
            if matches!(read, Ok(Ok(0) | Err(_))) {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_head_of_a_later_request_has_its_time_too() {
    let node = Node::start_with(&[("MOONGATE_HANDSHAKE_TIMEOUT", "300ms")]).await;
    let whole = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", node.api);
    let half = "GET /healthz HTTP/1.1\r\nHost";
    let mut socket = TcpStream::connect(node.api).await.unwrap();
    let mut answer = [0; 1024];
    socket.write_all(whole.as_bytes()).await.unwrap();
    let read = soon("an answer", socket.read(&mut answer)).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
    socket.write_all(half.as_bytes()).await.unwrap();
    is_cut(&mut socket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_kept_connection_is_not_cut_by_the_time_for_a_head() {
    let node = Node::start_with(&[("MOONGATE_HANDSHAKE_TIMEOUT", "100ms")]).await;
    let mut caller = node.caller().await;
    assert_eq!(caller.call("getAllClientCount", json!({})).await, json!({"result": 0}));
    // Somebody who never says anything is cut meanwhile, more than once.
    for _ in 0..3 {
        is_cut(&mut TcpStream::connect(node.api).await.unwrap()).await;
    }
    assert_eq!(caller.call("getAllClientCount", json!({})).await, json!({"result": 0}));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_api_port_harms_nobody() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let host = node.api;
    let mut nasties: Vec<Vec<u8>> = [
        "\r\n\r\n\r\n\r\n".to_owned(),
        "GET".into(),
        "GET / HTTP/9.9\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost : x\r\n\r\n".into(),
        "GET / HTTP/1.1\nHost: x\n\n".into(),
        "GET http://[::1 HTTP/1.1\r\n\r\n".into(),
        "\u{0}\u{1}\u{2}".into(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\u{0}\u{0}\u{0}\u{4}\u{0}\u{0}\u{0}\u{0}\u{0}".into(),
        format!("POST /api/sendToAll HTTP/1.1\r\nHost: {host}\r\nContent-Length: -1\r\n\r\n"),
        format!("POST /api/sendToAll HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999999999999999\r\n\r\n"),
        format!("POST /api/sendToAll HTTP/1.1\r\nHost: {host}\r\nContent-Length: 18446744073709551615\r\n\r\n{{}}"),
        format!("POST /api/sendToAll HTTP/1.1\r\nHost: {host}\r\nContent-Length: 50\r\n\r\n{{\"message\":\"cut off\"}}"),
        format!("POST /api/sendToAll HTTP/1.1\r\nHost: {host}\r\nContent-Length: 15\r\nContent-Length: 3\r\n\r\n{{\"message\":\"x\"}}"),
        format!("POST /api/sendToAll HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{{\"message\":\"x\"}}\r\n0\r\n\r\n"),
        format!("POST /api/sendToAll HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n"),
        format!("POST /api/sendToAll HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{{\"message\":\"x\"}}\r\n"),
        format!("POST /api/sendToAll HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: gzip\r\n\r\n{{\"message\":\"x\"}}"),
        format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("POST /api/%ff%fe HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        format!("POST /?method=%ff HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        format!("POST /api/%00 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        format!("GET /{} HTTP/1.1\r\nHost: {host}\r\n\r\n", "../".repeat(3000)),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect();
    // What a browser says that takes the port for https.
    nasties.push([&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 500]].concat());
    // And whatever: xorshift (Marsaglia, 2003), the same in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..100 {
        let length = usize::try_from(random() % 3000).unwrap();
        nasties.push((0..length).map(|_| random().to_le_bytes()[0]).collect());
    }
    // A good request with a few bytes wrong.
    let good = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}");
    for _ in 0..200 {
        let mut bytes = good.clone().into_bytes();
        for _ in 0..=random() % 4 {
            let place = usize::try_from(random()).unwrap() % bytes.len();
            bytes[place] = random().to_le_bytes()[0];
        }
        nasties.push(bytes);
    }
    for some in nasties.chunks(20) {
        futures_util::future::join_all(some.iter().map(|bytes| throw(host, bytes))).await;
        assert_eq!(node.get("/healthz").await.status, 200);
    }
    client.heard_nothing(&node).await;
    assert_eq!(node.ask("getAllClientCount", json!({})).await, 1);
}

// --- keep-alive ----------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_carried_out_and_answered_in_order() {
    let node = node_with_token().await;
    let mut client = node.member("ann", "red").await;
    let mut caller = node.caller().await;
    for n in 0..300 {
        caller.send("sendToUid", json!({"uid": ["ann", n], "message": n.to_string()})).await;
    }
    for n in 0..300 {
        let answer = caller.answer().await.json();
        assert_eq!(answer, json!({"result": {"nodes": 1, "offline": [n.to_string()]}}));
        assert_eq!(client.text().await, n.to_string());
    }
    client.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_does_not_end_the_connection() {
    let node = Node::start().await;
    let mut caller = node.caller().await;
    for (op, fields, status) in [
        ("sendToUid", json!({"message": "x"}), 400),
        ("nope", json!({}), 404),
        ("bindUid", json!({"client_id": NOBODY, "uid": "x"}), 404),
        ("sendToUid", json!([]), 400),
    ] {
        caller.send(op, fields).await;
        let answer = caller.answer().await;
        assert_eq!(answer.status, status, "{op}: {}", answer.text());
        assert_eq!(caller.call("getAllClientCount", json!({})).await, json!({"result": 0}), "after {op}");
    }
}
