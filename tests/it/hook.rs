//! The application at the other end of the webhook: it writes down what it is told, and answers as the test wants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

type Answer = dyn Fn(&Value) -> (u16, String) + Send + Sync;

pub struct Hook {
    address: SocketAddr,
    told: Arc<Mutex<Vec<Value>>>,
    task: AbortHandle,
}

impl Hook {
    /// Answers with a status and a body.
    pub async fn start(answer: impl Fn(&Value) -> (u16, String) + Send + Sync + 'static) -> Self {
        Self::start_slow(Duration::ZERO, answer).await
    }

    /// Takes its time before it answers.
    pub async fn start_slow(time: Duration, answer: impl Fn(&Value) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, told) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (writing, answer): (_, Arc<Answer>) = (Arc::clone(&told), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(serve(socket, time, Arc::clone(&writing), Arc::clone(&answer)));
            }
        });
        Self { address, told, task: task.abort_handle() }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// What it was told so far.
    pub fn told(&self) -> Vec<Value> {
        self.told.lock().clone()
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: TcpStream, time: Duration, told: Arc<Mutex<Vec<Value>>>, answer: Arc<Answer>) {
    let mut socket = BufReader::new(socket);
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if socket.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        if socket.read_exact(&mut body).await.is_err() {
            return;
        }
        let event: Value = serde_json::from_slice(&body).unwrap();
        let (status, body) = answer(&event);
        told.lock().push(event);
        tokio::time::sleep(time).await;
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if socket.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
