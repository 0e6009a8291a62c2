//! One node in this process, and the clients and applications that talk to it, over real sockets on free ports.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use moongate::config::Config;
use moongate::server::Server;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

/// What a test waits for happens within this, or the test has failed.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for something that must happen soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {PATIENCE:?}"))
}

/// Asks again and again until the answer is yes.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A whole node.
pub struct Node {
    pub clients: SocketAddr,
    pub api: SocketAddr,
    token: Option<String>,
    stop: CancellationToken,
    running: Option<JoinHandle<Result<usize, moongate::server::Broken>>>,
}

impl Node {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        let defaults =
            [("MOONGATE_LISTEN", "127.0.0.1:0"), ("MOONGATE_API_LISTEN", "127.0.0.1:0"), ("MOONGATE_DRAIN", "0s")];
        let variables =
            defaults.iter().filter(|(name, _)| settings.iter().all(|(other, _)| other != name)).chain(settings);
        let config =
            Config::read(variables.map(|(name, value)| (OsString::from(name), OsString::from(value)))).unwrap();
        let server = Server::bind(config).unwrap();
        let (clients, api) = (server.clients_address(), server.api_address());
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        let token =
            settings.iter().find(|(name, _)| *name == "MOONGATE_API_TOKEN").map(|(_, token)| (*token).to_owned());
        Self { clients, api, token, stop, running: Some(running) }
    }

    pub fn api_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    pub fn ws_url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.clients)
    }

    /// Begins to stop; `stopped` waits for the end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// How many connections were still there when the node had stopped.
    pub async fn stopped(mut self) -> usize {
        let running = self.running.take().unwrap();
        soon("the node stops", running).await.unwrap().unwrap()
    }

    /// A client that has been welcomed.
    pub async fn connect(&self) -> Client {
        let mut client = self.connect_quietly("/").await;
        client.welcomed().await;
        client
    }

    /// A client on a path, nothing read yet.
    pub async fn connect_quietly(&self, path: &str) -> Client {
        let (socket, _) = soon("a handshake", tokio_tungstenite::connect_async(self.ws_url(path))).await.unwrap();
        Client { id: String::new(), socket }
    }

    /// A client bound to a uid and in a group.
    pub async fn member(&self, uid: &str, group: &str) -> Client {
        let client = self.connect().await;
        self.done("bindUid", json!({"client_id": client.id, "uid": uid})).await;
        self.done("joinGroup", json!({"client_id": client.id, "group": group})).await;
        client
    }

    /// One command; the whole body of the answer, whatever its status.
    pub async fn call(&self, op: &str, fields: Value) -> Value {
        self.post(op, &fields.to_string()).await.json()
    }

    /// A query's or command's result.
    pub async fn ask(&self, op: &str, fields: Value) -> Value {
        let answer = self.call(op, fields.clone()).await;
        answer.get("result").cloned().unwrap_or_else(|| panic!("{op} {fields}: {answer}"))
    }

    /// A change that must be done.
    pub async fn done(&self, op: &str, fields: Value) {
        assert_eq!(self.ask(op, fields).await, json!(true), "{op}");
    }

    /// A command that must be refused: status and code.
    pub async fn refused(&self, op: &str, fields: Value) -> (u64, String) {
        let answer = self.call(op, fields.clone()).await;
        let status = answer["status"].as_u64().unwrap_or_else(|| panic!("{op} {fields}: {answer}"));
        (status, answer["code"].as_str().unwrap().to_owned())
    }

    pub async fn post(&self, op: &str, body: &str) -> Answer {
        self.request("POST", &format!("/api/{op}"), &[], body.as_bytes()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"").await
    }

    /// One HTTP request on a connection of its own. The token is added unless an Authorization is given.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let has = |name: &str| headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !has("Host") {
            head += &format!("Host: {}\r\n", self.api);
        }
        if let (Some(token), false) = (&self.token, has("Authorization")) {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        raw_http(self.api, [head.as_bytes(), b"\r\n", body].concat()).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Sends bytes and reads an HTTP answer to its end.
pub async fn raw_http(address: SocketAddr, request: Vec<u8>) -> Answer {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // A server that refuses a large body answers before it is written.
    let (mut reader, mut writer) = socket.split();
    let mut bytes = Vec::new();
    let write = async { drop(writer.write_all(&request).await) };
    let read = soon("an HTTP answer", async { drop(reader.read_to_end(&mut bytes).await) });
    tokio::join!(write, read);
    Answer::parse(&bytes)
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("an HTTP head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let status = head[9..12].parse().unwrap();
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// A browser or device.
pub struct Client<S = MaybeTlsStream<TcpStream>> {
    pub id: String,
    pub socket: WebSocketStream<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// The first message tells it its id.
    pub async fn welcomed(&mut self) {
        let init: Value = serde_json::from_str(&self.text().await).unwrap();
        assert_eq!(init["type"], "init");
        init["client_id"].as_str().unwrap().clone_into(&mut self.id);
    }

    /// The next frame; none at the end.
    pub async fn next(&mut self) -> Option<Message> {
        soon("a frame", self.socket.next()).await.and_then(Result::ok)
    }

    /// The next message, which must be text.
    pub async fn text(&mut self) -> String {
        match self.next().await {
            Some(Message::Text(text)) => text.as_str().to_owned(),
            other => panic!("no text, but {other:?}"),
        }
    }

    pub async fn send(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// Nothing has come so far, and a message sent now is the next thing that comes: there was nothing before it.
    pub async fn heard_nothing(&mut self, node: &Node) {
        node.call("sendToClient", json!({"client_id": self.id, "message": "(probe)"})).await;
        assert_eq!(self.text().await, "(probe)");
    }

    /// The close frame's code and reason; what comes before it is an error.
    pub async fn closed(&mut self) -> (u16, String) {
        match self.next().await {
            Some(Message::Close(Some(frame))) => {
                let close = (frame.code.into(), frame.reason.as_str().to_owned());
                while self.next().await.is_some() {}
                close
            }
            other => panic!("no close frame, but {other:?}"),
        }
    }

    /// The connection ends without a close frame.
    pub async fn cut(&mut self) {
        match soon("the end", self.socket.next()).await {
            None | Some(Err(_)) => {}
            Some(Ok(frame)) => panic!("no end, but {frame:?}"),
        }
    }

    pub async fn close(mut self, code: u16, reason: &str) {
        use tokio_tungstenite::tungstenite::protocol::CloseFrame;
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.to_owned().into() };
        self.socket.close(Some(frame)).await.unwrap();
        while self.next().await.is_some() {}
    }
}

/// An application that keeps one HTTP connection to the API.
pub struct Caller {
    socket: tokio::io::BufReader<TcpStream>,
    head: String,
}

impl Node {
    pub async fn caller(&self) -> Caller {
        let socket = tokio::io::BufReader::new(TcpStream::connect(self.api).await.unwrap());
        let token = self.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        Caller { socket, head: format!("Host: {}\r\n{token}", self.api) }
    }
}

impl Caller {
    /// One command, its answer not read yet.
    pub async fn send(&mut self, op: &str, fields: Value) {
        let body = fields.to_string();
        let request = format!("POST /api/{op} HTTP/1.1\r\n{}Content-Length: {}\r\n\r\n{body}", self.head, body.len());
        soon("a request is taken", self.socket.write_all(request.as_bytes())).await.unwrap();
    }

    /// The next answer.
    pub async fn answer(&mut self) -> Answer {
        use tokio::io::AsyncBufReadExt as _;
        soon("an answer on a kept connection", async {
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"\r\n\r\n") {
                assert!(self.socket.read_until(b'\n', &mut bytes).await.unwrap() > 0, "the connection has ended");
            }
            let mut answer = Answer::parse(&bytes);
            let length = answer.head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            answer.body = vec![0; length.parse().unwrap()];
            self.socket.read_exact(&mut answer.body).await.unwrap();
            answer
        })
        .await
    }

    /// One command; the whole body of the answer, whatever its status.
    pub async fn call(&mut self, op: &str, fields: Value) -> Value {
        self.send(op, fields).await;
        self.answer().await.json()
    }
}
