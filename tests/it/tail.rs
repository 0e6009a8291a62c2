//! A live tail, as the console has it.

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;

use crate::harness::{Node, soon};

/// A tail as a program reads it.
pub struct Tail(Lines<BufReader<TcpStream>>);

impl Tail {
    /// Its first line is how many nodes watch.
    pub async fn of(node: &Node, query: &str) -> Self {
        let mut tail = Self::begin(node, query).await;
        let first = tail.next().await;
        assert_eq!(first["kind"], "tailing", "{first}");
        tail
    }

    pub async fn begin(node: &Node, query: &str) -> Self {
        let mut socket = TcpStream::connect(node.api).await.unwrap();
        let head = format!("GET /console/tail?{query} HTTP/1.1\r\nHost: {}\r\n\r\n", node.api);
        socket.write_all(head.as_bytes()).await.unwrap();
        Self(BufReader::new(socket).lines())
    }

    /// The next line of any kind; none at the end.
    pub async fn line(&mut self) -> Option<String> {
        soon("a line of the tail", self.0.next_line()).await.ok().flatten()
    }

    /// The next event, but for what is said every few seconds.
    pub async fn next(&mut self) -> Value {
        loop {
            let line = self.line().await.expect("the tail goes on");
            if let Some(event) = line.strip_prefix("data: ") {
                return serde_json::from_str(event).unwrap();
            }
        }
    }

    /// The next thing that was seen.
    pub async fn seen(&mut self) -> Value {
        loop {
            let event = self.next().await;
            if event["kind"] != "tailing" {
                return event;
            }
        }
    }
}
