//! wss on `LISTEN`: a real process, real certificates, and what may go wrong with both.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, eventually, soon};
use crate::php::peer;
use crate::port::reserve_a_port;
use crate::process::{Process, hears, run};
use crate::redis::{Redis, Reply};
use crate::world;

type TlsClient = Client<TlsStream<TcpStream>>;

/// An authority of the test's own, and a place for the files of a node.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    directory: TempDir,
}

/// What a certificate file and a key file hold.
struct Pem {
    cert: String,
    key: String,
    der: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root, directory: TempDir::new().unwrap() }
    }

    fn issue(&self) -> Pem {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        // OpenSSL, which is in Redis, takes a certificate for its own issuer whose name is that of the issuer.
        params.distinguished_name.push(DnType::CommonName, "localhost");
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pem { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().clone() }
    }

    fn cert_file(&self) -> PathBuf {
        self.directory.path().join("tls.crt")
    }

    fn key_file(&self) -> PathBuf {
        self.directory.path().join("tls.key")
    }

    /// Its own certificate, which trusts all that it issues.
    fn root_file(&self) -> PathBuf {
        let path = self.directory.path().join("ca.crt");
        let pem = BASE64_STANDARD.encode(&self.root);
        std::fs::write(&path, format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n")).unwrap();
        path
    }

    fn write(&self, cert: &str, key: &str) {
        std::fs::write(self.cert_file(), cert).unwrap();
        std::fs::write(self.key_file(), key).unwrap();
    }

    /// A node that shows this certificate.
    async fn node(&self, shown: &Pem, settings: &[(&str, &str)]) -> Process {
        self.write(&shown.cert, &shown.key);
        let (cert, key) = (self.cert_file(), self.key_file());
        let files = [("MOONGATE_TLS_CERT", text(&cert)), ("MOONGATE_TLS_KEY", text(&key))];
        Process::start(&[&files, settings].concat()).await
    }

    /// The settings of a client that trusts this authority, and remembers no earlier connection.
    fn trusting(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    }

    async fn connect(&self, node: &Process) -> TlsClient {
        connect(node, self.trusting(rustls::ALL_VERSIONS)).await
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn shake_hands(node: &Process, config: Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let socket = TcpStream::connect(node.clients).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    soon("a TLS handshake", TlsConnector::from(config).connect(name, socket)).await.unwrap()
}

/// A client that has been welcomed.
async fn connect(node: &Process, config: Arc<ClientConfig>) -> TlsClient {
    let stream = shake_hands(node, config).await;
    let (socket, _) = soon("a handshake", tokio_tungstenite::client_async("wss://localhost/", stream)).await.unwrap();
    let mut client = Client { id: String::new(), socket };
    client.welcomed().await;
    client
}

fn certificate_shown_to(client: &TlsClient) -> CertificateDer<'static> {
    client.socket.get_ref().get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// Text in which no two places of the same distance look alike.
fn long_text(bytes: usize) -> String {
    let mut text: String = (0..).map(|number: u32| format!("{number},")).take(bytes / 2).collect();
    text.truncate(bytes);
    text
}

// --- messages --------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_any_size_arrive_whole_and_in_order_over_tls() {
    let authority = Authority::new();
    let node = authority.node(&authority.issue(), &[("MOONGATE_API_MAX_BODY", "4MiB")]).await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut client = connect(&node, authority.trusting(&[version])).await;
        let spoken = client.socket.get_ref().get_ref().1.protocol_version();
        assert_eq!(spoken, Some(version.version));
        // Nothing is read before all is sent: more than the kernel's buffers and one TLS record hold.
        let messages = [1, 100_000, 900_000].map(long_text);
        for message in &messages {
            node.ask("sendToClient", json!({"client_id": client.id, "message": message})).await;
        }
        for message in &messages {
            let heard = client.text().await;
            assert!(heard == *message, "{} bytes instead of {}", heard.len(), message.len());
        }
        let bytes: Vec<u8> = long_text(900_000).bytes().map(|byte| byte ^ 0x80).collect();
        let binary = json!({"client_id": client.id, "binary": BASE64_STANDARD.encode(&bytes)});
        node.ask("sendToClient", binary).await;
        assert!(client.next().await == Some(Message::binary(bytes)), "the binary message came otherwise");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_late_over_tls_gets_everything_in_order() {
    let authority = Authority::new();
    let node = authority.node(&authority.issue(), &[("MOONGATE_SEND_BUFFER", "64MiB")]).await;
    let mut client = authority.connect(&node).await;
    // More than any kernel buffers: the rest waits in the node, and the client can speak all the same.
    let message = long_text(900_000);
    for number in 0..24 {
        let message = format!("{number}:{message}");
        node.ask("sendToClient", json!({"client_id": client.id, "message": message})).await;
    }
    client.send(Message::Ping("between".into())).await;
    client.send(Message::text("x")).await;
    eventually("the client is heard", async || node.metric("moongate_messages_received_total").await == 1).await;
    for number in 0..24 {
        let heard = client.text().await;
        assert!(heard == format!("{number}:{message}"), "message {number}: {} bytes", heard.len());
    }
    assert_eq!(client.next().await, Some(Message::Pong("between".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_two_thousand_messages_arrives_in_order_over_tls() {
    let authority = Authority::new();
    let node = authority.node(&authority.issue(), &[]).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let client = authority.connect(&node).await;
        node.ask("joinGroup", json!({"client_id": client.id, "group": "all"})).await;
        clients.push(client);
    }
    for half in [0..1000, 1000..2000] {
        let commands: Vec<Value> =
            half.map(|number| json!({"op": "sendToGroup", "group": "all", "message": format!("{number}")})).collect();
        let results = node.ask("batch", json!({"commands": commands})).await;
        assert_eq!(results.as_array().unwrap().len(), 1000);
    }
    for client in &mut clients {
        for number in 0..2000 {
            assert_eq!(client.text().await, number.to_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_speaks_and_pings_over_tls() {
    let authority = Authority::new();
    let node = authority.node(&authority.issue(), &[]).await;
    let mut client = authority.connect(&node).await;
    for message in [Message::text("x"), Message::text(long_text(100_000)), Message::binary(vec![0xff; 900_000])] {
        client.send(message).await;
    }
    eventually("the messages arrive", async || node.metric("moongate_messages_received_total").await == 3).await;
    client.send(Message::Ping("are you there".into())).await;
    assert_eq!(client.next().await, Some(Message::Pong("are you there".into())));
    hears(&node, &mut client, "and still there").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_heartbeat_reaches_a_client_over_tls_and_its_pong_keeps_it() {
    let authority = Authority::new();
    let node = authority.node(&authority.issue(), &[("MOONGATE_PING_INTERVAL", "200ms")]).await;
    let mut client = authority.connect(&node).await;
    for _ in 0..5 {
        // Reading answers it.
        assert!(matches!(client.next().await, Some(Message::Ping(_))));
    }
    assert_eq!(node.ask("isOnline", json!({"client_id": client.id})).await, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn close_codes_travel_over_tls_both_ways() {
    let authority = Authority::new();
    let settings = [("MOONGATE_MAX_MESSAGE_SIZE", "1KiB"), ("MOONGATE_DRAIN", "1s")];
    let mut node = authority.node(&authority.issue(), &settings).await;

    let mut client = authority.connect(&node).await;
    let last = json!({"client_id": client.id, "message": "last words", "code": 4321, "reason": "enough"});
    assert_eq!(node.ask("closeClient", last).await["nodes"], 1);
    assert_eq!(client.text().await, "last words");
    assert_eq!(client.closed().await, (4321, "enough".to_owned()));

    let mut client = authority.connect(&node).await;
    node.ask("bindUid", json!({"client_id": client.id, "uid": 42})).await;
    node.ask("closeUid", json!({"uid": "42"})).await;
    assert_eq!(client.closed().await, (4000, "closed".to_owned()));

    let mut client = authority.connect(&node).await;
    client.send(Message::text("x".repeat(2000))).await;
    assert_eq!(client.closed().await.0, 1009);

    let mut client = authority.connect(&node).await;
    node.ask("destroyClient", json!({"client_id": client.id})).await;
    client.cut().await;

    let client = authority.connect(&node).await;
    client.close(1000, "bye").await;
    eventually("all have left", async || node.ask("getAllClientIdCount", json!({})).await == 0).await;
    let page = node.get("/metrics").await.text();
    assert!(page.contains("moongate_disconnections_total{reason=\"normal\"} 1"), "{page}");

    let mut client = authority.connect(&node).await;
    node.signal("TERM");
    assert_eq!(client.closed().await.0, 1012);
    assert_eq!(node.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_resumes_its_tls_session() {
    let authority = Authority::new();
    let node = authority.node(&authority.issue(), &[]).await;
    let config = authority.trusting(rustls::ALL_VERSIONS);
    for number in 0..3 {
        let mut client = connect(&node, Arc::clone(&config)).await;
        let handshake = client.socket.get_ref().get_ref().1.handshake_kind();
        assert_eq!(handshake == Some(rustls::HandshakeKind::Resumed), number > 0, "{handshake:?}");
        hears(&node, &mut client, "hello").await;
        client.close(1000, "").await;
    }
}

// --- certificates that change ----------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_certificate_is_shown_to_new_clients_and_disturbs_no_old_one() {
    let authority = Authority::new();
    let (first, second) = (authority.issue(), authority.issue());
    let node = authority.node(&first, &[]).await;
    let mut old = authority.connect(&node).await;
    assert_eq!(certificate_shown_to(&old), first.der);

    authority.write(&second.cert, &second.key);
    eventually("the new certificate is shown", async || {
        certificate_shown_to(&authority.connect(&node).await) == second.der
    })
    .await;
    hears(&node, &mut old, "before and after").await;
    old.send(Message::Ping("x".into())).await;
    assert_eq!(old.next().await, Some(Message::Pong("x".into())));
    let mut new = authority.connect(&node).await;
    hears(&node, &mut new, "after").await;
    assert!(node.log().contains("certificate reloaded"), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_kubernetes_replaces_by_a_link_is_shown() {
    let authority = Authority::new();
    let (first, second) = (authority.issue(), authority.issue());
    let directory = authority.directory.path();
    // A mounted Secret: tls.crt -> ..data/tls.crt, ..data -> a directory that is swapped.
    for (version, pem) in [("..1", &first), ("..2", &second)] {
        std::fs::create_dir(directory.join(version)).unwrap();
        std::fs::write(directory.join(version).join("tls.crt"), &pem.cert).unwrap();
        std::fs::write(directory.join(version).join("tls.key"), &pem.key).unwrap();
    }
    std::os::unix::fs::symlink("..1", directory.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/tls.crt", authority.cert_file()).unwrap();
    std::os::unix::fs::symlink("..data/tls.key", authority.key_file()).unwrap();
    let (cert, key) = (authority.cert_file(), authority.key_file());
    let node = Process::start(&[("MOONGATE_TLS_CERT", text(&cert)), ("MOONGATE_TLS_KEY", text(&key))]).await;
    assert_eq!(certificate_shown_to(&authority.connect(&node).await), first.der);

    std::os::unix::fs::symlink("..2", directory.join("..data_new")).unwrap();
    std::fs::rename(directory.join("..data_new"), directory.join("..data")).unwrap();
    eventually("the new certificate is shown", async || {
        certificate_shown_to(&authority.connect(&node).await) == second.der
    })
    .await;
    assert_eq!(node.metric("moongate_tls_reload_errors_total").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_broken_new_files_the_old_certificate_stays_and_the_mistake_is_counted() {
    let authority = Authority::new();
    let (first, second, third) = (authority.issue(), authority.issue(), authority.issue());
    let node = authority.node(&first, &[]).await;
    let mut old = authority.connect(&node).await;
    let mut counted = 0;
    for (cert, key) in
        [("no certificate\n", first.key.as_str()), (&second.cert, "no key\n"), (&second.cert, &third.key)]
    {
        authority.write(cert, key);
        eventually("the mistake is counted", async || node.metric("moongate_tls_reload_errors_total").await > counted)
            .await;
        counted = node.metric("moongate_tls_reload_errors_total").await;
        assert_eq!(certificate_shown_to(&authority.connect(&node).await), first.der);
    }
    std::fs::remove_file(authority.cert_file()).unwrap();
    eventually("the mistake is counted", async || node.metric("moongate_tls_reload_errors_total").await > counted)
        .await;
    assert_eq!(certificate_shown_to(&authority.connect(&node).await), first.der);
    hears(&node, &mut old, "undisturbed").await;
    for variable in ["MOONGATE_TLS_CERT", "MOONGATE_TLS_KEY"] {
        let told = node.log().lines().any(|line| line.contains(r#""level":"WARN""#) && line.contains(variable));
        assert!(told, "{variable} is not in {}", node.log());
    }
    assert!(!node.log().contains("PRIVATE KEY"), "{}", node.log());

    authority.write(&third.cert, &third.key);
    eventually("the repaired certificate is shown", async || {
        certificate_shown_to(&authority.connect(&node).await) == third.der
    })
    .await;
}

#[test]
fn certificate_files_that_cannot_be_used_end_the_start_and_name_the_variable() {
    let authority = Authority::new();
    let (good, other) = (authority.issue(), authority.issue());
    let directory = authority.directory.path();
    let file = |name: &str, content: &str| {
        std::fs::write(directory.join(name), content).unwrap();
        text(&directory.join(name)).to_owned()
    };
    let cert = file("good.crt", &good.cert);
    let key = file("good.key", &good.key);
    let missing = text(&directory.join("missing.pem")).to_owned();
    let words = file("words.pem", "these are only words\n");
    let empty = file("empty.pem", "");
    let cut = file("cut.pem", &good.cert[..good.cert.len() / 2]);
    let other_key = file("other.key", &other.key);
    let folder = text(directory).to_owned();
    for (cert_file, key_file, named) in [
        (&missing, &key, "MOONGATE_TLS_CERT"),
        (&words, &key, "MOONGATE_TLS_CERT"),
        (&empty, &key, "MOONGATE_TLS_CERT"),
        (&cut, &key, "MOONGATE_TLS_CERT"),
        (&folder, &key, "MOONGATE_TLS_CERT"),
        (&key, &key, "MOONGATE_TLS_CERT"),
        (&cert, &missing, "MOONGATE_TLS_KEY"),
        (&cert, &words, "MOONGATE_TLS_KEY"),
        (&cert, &empty, "MOONGATE_TLS_KEY"),
        (&cert, &cert, "MOONGATE_TLS_KEY"),
        (&cert, &other_key, "MOONGATE_TLS_KEY"),
    ] {
        let settings = [("MOONGATE_TLS_CERT", cert_file.as_str()), ("MOONGATE_TLS_KEY", key_file.as_str())];
        let wrong = if named == "MOONGATE_TLS_CERT" { cert_file } else { key_file };
        for (action, code) in [("serve", 2), ("check", 2)] {
            let ended = run(&[action], &settings);
            assert_eq!(ended.code, Some(code), "{action} {settings:?}: {ended:?}");
            assert!(ended.stderr.contains(named) && ended.stderr.contains(wrong), "{action} {settings:?}: {ended:?}");
            assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        }
    }
    let good = [("MOONGATE_TLS_CERT", cert.as_str()), ("MOONGATE_TLS_KEY", key.as_str())];
    assert_eq!(run(&["check"], &good).code, Some(0));
    for (alone, other) in [(good[0], "MOONGATE_TLS_KEY"), (good[1], "MOONGATE_TLS_CERT")] {
        let ended = run(&[], &[alone]);
        assert!(ended.code == Some(2) && ended.stderr.starts_with(&format!("{other}: ")), "{ended:?}");
    }
}

#[test]
fn what_is_wrong_with_the_certificate_is_not_blamed_on_the_key() {
    let authority = Authority::new();
    let garbage = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    authority.write(garbage, &authority.issue().key);
    let (cert, key) = (authority.cert_file(), authority.key_file());
    let ended = run(&["check"], &[("MOONGATE_TLS_CERT", text(&cert)), ("MOONGATE_TLS_KEY", text(&key))]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.starts_with("MOONGATE_TLS_CERT: "), "{ended:?}");
}

// --- bad manners -----------------------------------------------------------------------------------------------------

/// How long it takes until the node ends a connection.
async fn ended_after(mut socket: impl tokio::io::AsyncRead + Unpin) -> Duration {
    let start = Instant::now();
    let mut rest = [0; 256];
    soon("the connection is cut", async { while let Ok(1..) = socket.read(&mut rest).await {} }).await;
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_finish_the_handshake_is_cut_and_harms_nobody() {
    let authority = Authority::new();
    let node = authority.node(&authority.issue(), &[("MOONGATE_HANDSHAKE_TIMEOUT", "300ms")]).await;
    let mut other = authority.connect(&node).await;
    // Says nothing; begins a ClientHello; ends its TLS handshake and says nothing; begins a request head.
    let silent = TcpStream::connect(node.clients).await.unwrap();
    let mut begun = TcpStream::connect(node.clients).await.unwrap();
    begun.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03]).await.unwrap();
    let config = authority.trusting(rustls::ALL_VERSIONS);
    let secured = shake_hands(&node, Arc::clone(&config)).await;
    let mut half = shake_hands(&node, config).await;
    half.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgr").await.unwrap();
    half.flush().await.unwrap();
    let cuts = async {
        tokio::join!(ended_after(silent), ended_after(begun), ended_after(secured), ended_after(half));
    };
    let served = async {
        hears(&node, &mut other, "meanwhile").await;
        let mut new = authority.connect(&node).await;
        hears(&node, &mut new, "meanwhile").await;
        new
    };
    let ((), mut new) = tokio::join!(cuts, served);
    // Those who did finish theirs are not cut when the time is over.
    hears(&node, &mut other, "afterwards").await;
    hears(&node, &mut new, "afterwards").await;
    eventually("all four are counted", async || {
        let page = node.get("/metrics").await.text();
        let refused = page.lines().filter(|line| line.starts_with("moongate_handshakes_refused_total{"));
        refused.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>() == 4
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_handshake_is_not_cut_before_its_time() {
    let authority = Authority::new();
    let node = authority.node(&authority.issue(), &[("MOONGATE_HANDSHAKE_TIMEOUT", "300ms")]).await;
    let start = Instant::now();
    let mut stalled = TcpStream::connect(node.clients).await.unwrap();
    stalled.write_all(&[0x16, 0x03]).await.unwrap();
    ended_after(stalled).await;
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_client_on_the_tls_port_is_cut_and_harms_nobody() {
    let authority = Authority::new();
    let node = authority.node(&authority.issue(), &[("MOONGATE_HANDSHAKE_TIMEOUT", "300ms")]).await;
    let mut other = authority.connect(&node).await;
    for said in [
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".as_bytes(),
        &[0; 5],
        &vec![0xff; 20_000],
    ] {
        let mut plain = TcpStream::connect(node.clients).await.unwrap();
        plain.write_all(said).await.unwrap();
        ended_after(plain).await;
        hears(&node, &mut other, "still there").await;
    }
    assert!(tokio_tungstenite::connect_async(format!("ws://{}/", node.clients)).await.is_err());
    hears(&node, &mut other, "still there").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_or_breaks_tls_leaves_and_harms_nobody() {
    let authority = Authority::new();
    let node = authority.node(&authority.issue(), &[]).await;
    let mut other = authority.connect(&node).await;
    // One is gone without a word; one says what is no TLS record.
    drop(authority.connect(&node).await);
    let broken = authority.connect(&node).await;
    let (mut socket, _session) = broken.socket.into_inner().into_inner();
    socket.write_all(&[0xff; 64]).await.unwrap();
    ended_after(socket).await;
    eventually("both have left", async || node.ask("getAllClientIdCount", json!({})).await == 1).await;
    hears(&node, &mut other, "still there").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn phps_workers_hear_of_a_client_before_its_tls_handshake_and_it_of_them_after() {
    let authority = Authority::new();
    let node = authority.node(&authority.issue(), &[("MOONGATE_LAN_LISTEN", "")]).await;
    let first = authority.connect(&node).await;
    let mut worker = peer::Peer::worker(peer::inner_address(&first.id), "App:0").await;
    let socket = TcpStream::connect(node.clients).await.unwrap();
    let id = worker.event().await.client_id;
    let to_client = |body: &[u8]| peer::packet(peer::SEND_TO_ONE, peer::connection(&id), b"", body);
    worker.send(&to_client(b"early")).await;
    assert_eq!(worker.ask(peer::IS_ONLINE, peer::connection(&id), b"").await, "i:1;");
    let (name, connector) = (ServerName::try_from("localhost").unwrap(), authority.trusting(rustls::ALL_VERSIONS));
    let stream = soon("TLS", TlsConnector::from(connector).connect(name, socket)).await.unwrap();
    let (socket, _) =
        soon("a handshake", tokio_tungstenite::client_async("wss://localhost/?a=b", stream)).await.unwrap();
    let mut client = Client { id: String::new(), socket };
    client.welcomed().await;
    assert_eq!(client.id, id);
    assert_eq!(client.text().await, "early");
    let request = worker.event().await;
    assert_eq!((request.command, request.client_id), (peer::ON_WEBSOCKET_CONNECT, id.clone()));
    client.send(Message::text("over TLS")).await;
    assert_eq!(worker.event().await.body, b"over TLS");
    worker.send(&peer::packet(peer::KICK, peer::connection(&id), b"", b"bye")).await;
    assert_eq!(client.text().await, "bye");
    assert_eq!(client.closed().await.0, 4000);
    assert_eq!(worker.event().await.command, peer::ON_CLOSE);
}

// --- rediss:// ---

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_reached_over_tls_if_it_shows_a_certificate_that_this_machine_trusts() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let issued = authority.issue();
    authority.write(&issued.cert, &issued.key);
    let root = |authority: &Authority| authority.root_file().to_str().unwrap().to_owned();
    let (trusted, foreign) = (root(&authority), root(&stranger));
    let (_reserved, address) = reserve_a_port().unwrap();
    let port = address.port().to_string();
    let (cert, key) = (authority.cert_file(), authority.key_file());
    let [cert, key] = [&cert, &key].map(|path| path.to_str().unwrap());
    let tls = ["--tls-port", &port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no"];
    let redis =
        Redis::start_with(&[&tls[..], &["--tls-ca-cert-file", &trusted, "--requirepass", "secret"]].concat()).await;
    let url = format!("rediss://:secret@localhost:{port}");

    let trusting = [("SSL_CERT_FILE", &*trusted)];
    let (a, b) = (world::Process::ready(&url, &trusting).await, world::Process::ready(&url, &trusting).await);
    let mut client = a.connect().await;
    assert_eq!(b.ask("bindUid", json!({"client_id": client.id, "uid": "u"})).await, true);
    assert_eq!(redis.command(&["PUBLISH", "mg:uid:u", "over TLS"]).await.int(), 1);
    assert_eq!(client.text().await, "over TLS");

    for (ca, word) in
        [(&*foreign, "its certificate is not accepted: "), ("/nowhere.crt", "certificates cannot be read")]
    {
        let checked = run(&["check"], &[("MOONGATE_REDIS_URL", &url), ("SSL_CERT_FILE", ca)]);
        assert!(checked.stderr.contains(word) && !checked.stderr.contains("secret"), "{}", checked.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_and_the_master_that_they_name_are_reached_over_tls() {
    let authority = Authority::new();
    let issued = authority.issue();
    authority.write(&issued.cert, &issued.key);
    let (cert, key, ca) = (authority.cert_file(), authority.key_file(), authority.root_file());
    let [cert, key, ca] = [&cert, &key, &ca].map(|path| path.to_str().unwrap());
    let (_reserved, address) = reserve_a_port().unwrap();
    let port = address.port().to_string();
    let tls = ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no", "--tls-ca-cert-file", ca];
    let redis = Redis::start_with(&[&tls[..], &["--tls-port", &port]].concat()).await;
    let (_reserved, address) = reserve_a_port().unwrap();
    // The certificate is of a name, so the sentinel is to say the name, and no address.
    let mut lines = vec![
        "sentinel resolve-hostnames yes".to_owned(),
        "sentinel announce-hostnames yes".to_owned(),
        format!("sentinel monitor mymaster localhost {port} 1"),
        "tls-replication yes".to_owned(),
        format!("tls-port {}", address.port()),
    ];
    lines.extend(tls.chunks(2).map(|pair| format!("{} {}", pair[0].trim_start_matches('-'), pair[1])));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let _sentinel = Redis::start_sentinel(&lines).await;
    let url = format!("rediss-sentinel://localhost:{}?sentinelServiceName=mymaster", address.port());
    let node = world::Process::ready(&url, &[("SSL_CERT_FILE", ca)]).await;
    let mut client = node.connect().await;
    assert_eq!(node.ask("bindUid", json!({"client_id": client.id, "uid": "u"})).await, true);
    assert_eq!(redis.command(&["PUBLISH", "mg:uid:u", "over TLS"]).await.int(), 1);
    assert_eq!(client.text().await, "over TLS");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_masters_of_a_cluster_are_reached_over_tls() {
    let authority = Authority::new();
    let issued = authority.issue();
    authority.write(&issued.cert, &issued.key);
    let (cert, key, ca) = (authority.cert_file(), authority.key_file(), authority.root_file());
    let [cert, key, ca] = [&cert, &key, &ca].map(|path| path.to_str().unwrap());
    let tls = ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no", "--tls-ca-cert-file", ca];
    // The certificate is of a name, so the Cluster is to say the name, and no address.
    let named = ["--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname"];
    let (mut masters, mut ports) = (Vec::new(), Vec::new());
    for (number, slots) in [("1", ["0", "8191"]), ("2", ["8192", "16383"])] {
        let [clients, between] = [reserve_a_port().unwrap(), reserve_a_port().unwrap()];
        let [port, bus] = [&clients, &between].map(|(_, address)| address.port().to_string());
        let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--tls-cluster", "yes", "--tls-port", &port];
        let master = Redis::start_with(&[&tls[..], &named, &cluster].concat()).await;
        for command in [&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]][..], &["CLUSTER", "SET-CONFIG-EPOCH", number]]
        {
            assert_eq!(master.command(command).await, Reply::text("OK"));
        }
        masters.push(master);
        ports.push((port, bus, clients, between));
    }
    let (port, bus, ..) = &ports[1];
    assert_eq!(masters[0].command(&["CLUSTER", "MEET", "127.0.0.1", port, bus]).await, Reply::text("OK"));
    for master in &masters {
        eventually("it knows the other", async || {
            let info = master.command(&["CLUSTER", "INFO"]).await.string();
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2")
        })
        .await;
    }
    let url = format!("rediss-cluster://localhost:{}", ports[0].0);
    let trusting = [("SSL_CERT_FILE", ca)];
    let (a, b) = (world::Process::ready(&url, &trusting).await, world::Process::ready(&url, &trusting).await);
    let mut client = a.connect().await;
    let mut took = [0, 0];
    for n in 0..8 {
        let uid = format!("u{n}");
        assert_eq!(b.ask("bindUid", json!({"client_id": client.id, "uid": uid})).await, true);
        for (master, took) in masters.iter().zip(&mut took) {
            // The other says where it is.
            if let Reply::Int(nodes) = master.command(&["SPUBLISH", &format!("mg:uid:{uid}"), &uid]).await {
                *took += nodes;
            }
        }
        assert_eq!(client.text().await, uid);
    }
    assert!(took[0] > 0 && took[1] > 0 && took[0] + took[1] == 8, "{took:?}");
}
