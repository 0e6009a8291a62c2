//! Who may connect: tokens, origins, proxies, how many, and how much they may say.

use std::time::Duration;

use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, Response};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::harness::{Client, Node, World, eventually, in_every_world, soon};

pub(crate) const SECRET: &str = "the application's secret, which is long enough";

pub(crate) fn token(claims: &Value) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

/// A client with these headers, nothing read yet; or the answer of who does not let it in.
async fn connect(
    node: &Node,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Client, Box<Response<Option<Vec<u8>>>>> {
    let mut request = node.ws_url(path).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    match soon("a handshake", tokio_tungstenite::connect_async(request)).await {
        Ok((socket, _)) => Ok(Client { id: String::new(), socket }),
        Err(Error::Http(response)) => Err(response),
        Err(error) => panic!("{error}"),
    }
}

/// Status and words of a refusal.
pub(crate) async fn refused(node: &Node, path: &str, headers: &[(&'static str, &str)]) -> (u16, String) {
    let Err(response) = connect(node, path, headers).await else { panic!("{path} {headers:?} was let in") };
    (response.status().as_u16(), String::from_utf8(response.body().clone().unwrap_or_default()).unwrap())
}

// --- tokens ---

in_every_world! {
    a_token_binds_its_client_before_the_first_message,
    who_is_not_bound_in_time_is_closed,
}

async fn a_token_binds_its_client_before_the_first_message(world: World) {
    let init = r#"{"client_id":"{client_id}","uid":"{uid}","name":"{session.name}"}"#;
    let node = world
        .start_with(&[("MOONGATE_AUTH", "optional"), ("MOONGATE_JWT_SECRET", SECRET), ("MOONGATE_INIT_MESSAGE", init)])
        .await;
    let token = token(&json!({"sub": "u", "groups": ["g", "h"], "session": {"name": "Ada"}}));
    let mut client = node.connect_quietly(&format!("/?token={token}")).await;
    let first: Value = serde_json::from_str(&client.text().await).unwrap();
    assert_eq!((&first["uid"], &first["name"]), (&json!("u"), &json!("Ada")));
    // Whoever has it can be found, by any node.
    let id = first["client_id"].as_str().unwrap().to_owned();
    assert_eq!(node.ask("getClientIdByUid", json!({"uid": "u"})).await, json!([id]));
    for group in ["g", "h"] {
        assert_eq!(node.ask("getClientIdListByGroup", json!({"group": group})).await, json!([id]));
    }
    assert_eq!(node.ask("getSession", json!({"client_id": id})).await, json!({"name": "Ada"}));
    node.ask("sendToUid", json!({"uid": "u", "message": "hello"})).await;
    assert_eq!(client.text().await, "hello");
    drop(client);
    eventually("it is gone", async || node.ask("isUidOnline", json!({"uid": "u"})).await == false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_in_the_header_or_in_the_query() {
    let node = Node::start_with(&[("MOONGATE_AUTH", "required"), ("MOONGATE_JWT_SECRET", SECRET)]).await;
    let good = token(&json!({"sub": "u"}));
    let query = format!("/chat?a=b&token={good}");
    let (bearer, small) = (format!("Bearer {good}"), format!("bearer {good}"));
    for (path, headers) in [
        ("/", &[("authorization", &*bearer)][..]),
        ("/", &[("authorization", &small)]),
        (&query, &[]),
        // The header of a proxy that asks for a password is none of ours.
        (&query, &[("authorization", "Basic eDp5")]),
        ("/?token=bad", &[("authorization", &bearer)]),
    ] {
        let mut client = connect(&node, path, headers).await.unwrap_or_else(|refusal| panic!("{refusal:?}"));
        client.welcomed().await;
        assert_eq!(node.ask("getUidByClientId", json!({"client_id": client.id})).await, "u", "{path} {headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_is_401_before_the_upgrade() {
    let settings =
        [("MOONGATE_AUTH", "optional"), ("MOONGATE_JWT_SECRET", SECRET), ("MOONGATE_MAX_GROUPS_PER_CLIENT", "2")];
    let node = Node::start_with(&[&settings[..], &[("MOONGATE_MAX_SESSION_SIZE", "10B")]].concat()).await;
    let mut refusals = 0;
    for (claims, word) in [
        (json!({"sub": "u", "exp": 1}), "expired"),
        (json!({"sub": "u", "nbf": 32_503_680_000_u64}), "not valid yet"),
        (json!({"sub": ""}), "256 bytes"),
        (json!({"groups": ["a", "b", "c"]}), "groups"),
        (json!({"session": {"more": "than ten bytes"}}), "session"),
    ] {
        let (status, words) = refused(&node, &format!("/?token={}", token(&claims)), &[]).await;
        assert!(status == 401 && words.contains(word), "{claims}: {status} {words}");
        refusals += 1;
    }
    for bad in ["x", "a.b.c"] {
        assert_eq!(refused(&node, &format!("/?token={bad}"), &[]).await.0, 401, "{bad}");
        assert_eq!(refused(&node, "/", &[("authorization", &format!("Bearer {bad}"))]).await.0, 401, "{bad}");
        refusals += 2;
    }
    let Err(response) = connect(&node, "/?token=x", &[]).await else { panic!("let in") };
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    let page = node.get("/metrics").await.text();
    let counted = format!("moongate_handshakes_refused_total{{reason=\"token\"}} {}", refusals + 1);
    assert!(page.contains(&counted), "{counted}: {page}");
    // Without one it is let in, and is nobody.
    for path in ["/", "/?token="] {
        let mut client = connect(&node, path, &[]).await.unwrap();
        client.welcomed().await;
        assert_eq!(node.ask("getUidByClientId", json!({"client_id": client.id})).await, Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_token_is_required_nobody_comes_without_a_uid() {
    let node = Node::start_with(&[("MOONGATE_AUTH", "required"), ("MOONGATE_JWT_SECRET", SECRET)]).await;
    assert_eq!(refused(&node, "/", &[]).await.0, 401);
    let (status, words) = refused(&node, &format!("/?token={}", token(&json!({"groups": ["g"]}))), &[]).await;
    assert!(status == 401 && words.contains("sub"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_auth_a_token_means_nothing() {
    let node = Node::start().await;
    let mut client = connect(&node, "/?token=x", &[("authorization", "Bearer y")]).await.unwrap();
    client.welcomed().await;
}

// --- time to be bound ---

async fn who_is_not_bound_in_time_is_closed(world: World) {
    let node = world.start_with(&[("MOONGATE_UNAUTHED_TIMEOUT", "1s")]).await;
    let mut bound = node.connect().await;
    node.done("bindUid", json!({"client_id": bound.id, "uid": "u"})).await;
    let mut unbound = node.connect().await;
    assert_eq!(unbound.closed().await, (1008, "not bound in time".to_owned()));
    // Whose time was over before.
    bound.heard_nothing(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_handshake_has_time_to_be_bound_too() {
    let settings = [
        ("MOONGATE_AUTH", "required"),
        ("MOONGATE_JWT_SECRET", SECRET),
        ("MOONGATE_TEXT_LISTEN", "127.0.0.1:0"),
        ("MOONGATE_UNAUTHED_TIMEOUT", "100ms"),
    ];
    let node = Node::start_with(&settings).await;
    let mut socket = tokio::net::TcpStream::connect(node.streams[0].1).await.unwrap();
    let mut said = Vec::new();
    soon("its end", tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut said)).await.unwrap();
    assert!(said.starts_with(b"{\"type\":\"init\""), "{said:?}");
    assert!(node.get("/metrics").await.text().contains(r#"moongate_disconnections_total{reason="unbound"} 1"#));
}

// --- origins ---

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_allowed_origins_may_connect() {
    let node = Node::start_with(&[("MOONGATE_ALLOWED_ORIGINS", "https://chat.example, http://localhost:8080")]).await;
    for origin in ["https://chat.example", "HTTPS://Chat.Example", "http://localhost:8080"] {
        connect(&node, "/", &[("origin", origin)]).await.unwrap().welcomed().await;
    }
    for origin in ["https://evil.example", "https://chat.example:8443", "http://chat.example", "null", ""] {
        let (status, words) = refused(&node, "/", &[("origin", origin)]).await;
        assert!(status == 403 && words.contains("origin"), "{origin}: {status} {words}");
    }
    // What is no page sends none.
    connect(&node, "/", &[]).await.unwrap().welcomed().await;
    assert!(node.get("/metrics").await.text().contains(r#"moongate_handshakes_refused_total{reason="origin"} 5"#));
}

// --- how many ---

#[tokio::test(flavor = "multi_thread")]
async fn beyond_max_connections_it_is_503_until_one_leaves() {
    let node = Node::start_with(&[("MOONGATE_MAX_CONNECTIONS", "3"), ("MOONGATE_TEXT_LISTEN", "127.0.0.1:0")]).await;
    let (first, _second) = (node.connect().await, node.connect().await);
    let text = tokio::net::TcpStream::connect(node.streams[0].1).await.unwrap();
    eventually("the third is there", async || node.ask("getAllClientIdCount", json!({})).await == 3).await;
    let Err(response) = connect(&node, "/", &[]).await else { panic!("a fourth was let in") };
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &HeaderValue::from_static("1")));
    let mut fourth = tokio::net::TcpStream::connect(node.streams[0].1).await.unwrap();
    let mut said = Vec::new();
    // Without a handshake nothing can be said.
    drop(soon("its end", tokio::io::AsyncReadExt::read_to_end(&mut fourth, &mut said)).await);
    assert!(said.is_empty());
    assert!(node.get("/metrics").await.text().contains(r#"moongate_handshakes_refused_total{reason="connections"} 2"#));
    first.close(1000, "").await;
    drop(text);
    let places = async || connect(&node, "/", &[]).await.is_ok();
    eventually("there is a place", places).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_max_connections_per_ip_it_is_429() {
    let settings = [("MOONGATE_MAX_CONNECTIONS_PER_IP", "2"), ("MOONGATE_TRUSTED_PROXIES", "127.0.0.0/8")];
    let node = Node::start_with(&settings).await;
    let of = |address: &'static str| [("x-forwarded-for", address)];
    let (first, _second) = (
        connect(&node, "/", &of("203.0.113.1")).await.unwrap(),
        // What it says itself of where it comes from stands left of what the proxy says.
        connect(&node, "/", &of("198.51.100.7, 203.0.113.1")).await.unwrap(),
    );
    let (status, words) = refused(&node, "/", &of("203.0.113.1")).await;
    assert!(status == 429 && words.contains("address"), "{status} {words}");
    connect(&node, "/", &of("203.0.113.2")).await.unwrap().welcomed().await;
    assert!(
        node.get("/metrics")
            .await
            .text()
            .contains(r#"moongate_handshakes_refused_total{reason="connections_per_ip"} 1"#)
    );
    first.close(1000, "").await;
    eventually("there is a place", async || connect(&node, "/", &of("203.0.113.1")).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_trusted_proxy_is_not_believed() {
    let node = Node::start_with(&[("MOONGATE_MAX_CONNECTIONS_PER_IP", "1")]).await;
    let _first = connect(&node, "/", &[("x-forwarded-for", "203.0.113.1")]).await.unwrap();
    assert_eq!(refused(&node, "/", &[("x-forwarded-for", "203.0.113.2")]).await.0, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_handshakes_take_no_place() {
    let settings = [("MOONGATE_MAX_CONNECTIONS", "1"), ("MOONGATE_AUTH", "optional"), ("MOONGATE_JWT_SECRET", SECRET)];
    let node = Node::start_with(&settings).await;
    for _ in 0..5 {
        assert_eq!(refused(&node, "/?token=bad", &[]).await.0, 401);
    }
    // One after the other has the only place.
    for _ in 0..5 {
        let mut client = soon("there is a place", async {
            loop {
                if let Ok(client) = connect(&node, "/", &[]).await {
                    break client;
                }
            }
        })
        .await;
        client.welcomed().await;
        client.close(1000, "").await;
    }
}

// --- how much ---

#[tokio::test(flavor = "multi_thread")]
async fn who_says_too_much_is_closed_and_what_it_said_before_is_told() {
    let node = Node::start_with(&[("MOONGATE_MAX_MESSAGES_PER_SECOND", "20")]).await;
    let mut client = node.connect().await;
    let mut quiet = node.connect().await;
    // A burst of what a second brings is fine.
    for _ in 0..20 {
        quiet.send(Message::text("x")).await;
    }
    for _ in 0..1000 {
        // It may be closed meanwhile.
        drop(futures_util::SinkExt::send(&mut client.socket, Message::text("x")).await);
    }
    assert_eq!(client.closed().await, (1008, "too many messages".to_owned()));
    quiet.heard_nothing(&node).await;
    assert!(node.get("/metrics").await.text().contains(r#"moongate_disconnections_total{reason="too_many"} 1"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_count_as_messages() {
    let node = Node::start_with(&[("MOONGATE_MAX_MESSAGES_PER_SECOND", "5")]).await;
    let mut client = node.connect().await;
    for _ in 0..100 {
        drop(futures_util::SinkExt::send(&mut client.socket, Message::Ping(Vec::new().into())).await);
    }
    let close = soon("its end", async {
        loop {
            match client.next().await {
                Some(Message::Pong(_)) => {}
                Some(Message::Close(Some(frame))) => break u16::from(frame.code),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(close.await, 1008);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refused_handshakes_leaves_room_for_good_ones() {
    let node = Node::start_with(&[("MOONGATE_AUTH", "required"), ("MOONGATE_JWT_SECRET", SECRET)]).await;
    let bad = (0..200).map(|_| refused(&node, "/?token=bad", &[]));
    let good = format!("/?token={}", token(&json!({"sub": "u"})));
    let (bad, ()) = tokio::join!(join_all(bad), async {
        let connected = tokio::time::timeout(Duration::from_secs(5), connect(&node, &good, &[])).await;
        connected.expect("in time").unwrap().welcomed().await;
    });
    assert!(bad.iter().all(|(status, _)| *status == 401));
}
