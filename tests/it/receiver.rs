//! The application's end of webhooks: a real HTTP server on a free port that keeps what it was told, answers as the test
//! wants, and can be away for a while.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use socket2::Socket;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::harness::eventually;
use crate::port::reserve_a_port;

/// What it says to an event: status and body; after as long as it takes.
type Answer = Box<dyn Fn(Value) -> futures_util::future::BoxFuture<'static, (u16, Value)> + Send + Sync>;

struct State {
    told: Mutex<Vec<Told>>,
    answer: Mutex<Arc<Answer>>,
    at_once: Mutex<(usize, usize)>,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Told {
    pub headers: BTreeMap<String, String>,
    pub body: Bytes,
    pub event: Value,
    /// What it was answered, when it was.
    pub status: Option<u16>,
}

pub struct Receiver {
    pub address: SocketAddr,
    state: Arc<State>,
    serving: Mutex<Option<JoinHandle<()>>>,
    /// While it is away nobody else takes its port.
    _port: Socket,
}

impl Receiver {
    /// It accepts everything.
    pub async fn start() -> Self {
        let (port, address) = reserve_a_port().unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let accept: Answer = Box::new(|_| Box::pin(async { (200, json!({})) }));
        let state = State { told: Mutex::default(), answer: Mutex::new(Arc::new(accept)), at_once: Mutex::default() };
        let receiver = Self { address, state: Arc::new(state), serving: Mutex::new(None), _port: port };
        receiver.serve(listener);
        receiver
    }

    /// It answers so.
    pub async fn answering(answer: impl Fn(&Value) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let receiver = Self::start().await;
        receiver.answers(answer);
        receiver
    }

    /// It accepts everything, and takes its time for it.
    pub async fn slow(time: Duration) -> Self {
        let receiver = Self::start().await;
        receiver.answers_late(move |_| async move {
            tokio::time::sleep(time).await;
            (200, json!({}))
        });
        receiver
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// From now on it answers so.
    pub fn answers(&self, answer: impl Fn(&Value) -> (u16, Value) + Send + Sync + 'static) {
        self.answers_late(move |event| {
            let answer = answer(&event);
            async { answer }
        });
    }

    /// The same, when the future is done.
    pub fn answers_late<F>(&self, answer: impl Fn(Value) -> F + Send + Sync + 'static)
    where
        F: Future<Output = (u16, Value)> + Send + 'static,
    {
        *self.state.answer.lock() = Arc::new(Box::new(move |event| Box::pin(answer(event))));
    }

    /// Nobody is there: connections end, and none is taken.
    pub async fn leave(&self) {
        let serving = self.serving.lock().take();
        if let Some(serving) = serving {
            serving.abort();
            serving.await.ok();
        }
    }

    /// It is there again, at the same address.
    pub async fn come_back(&self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    fn serve(&self, listener: TcpListener) {
        let state = Arc::clone(&self.state);
        *self.serving.lock() = Some(tokio::spawn(async move {
            // They end with this task.
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                connections.spawn(async move {
                    let service = hyper::service::service_fn(|request| hear(request, Arc::clone(&state)));
                    let http = hyper::server::conn::http1::Builder::new();
                    http.serve_connection(TokioIo::new(socket), service).await.ok();
                });
            }
        }));
    }

    /// What it was told and has accepted.
    pub fn accepted(&self) -> Vec<Value> {
        let told = self.state.told.lock();
        let accepted = told.iter().filter(|told| told.status.is_some_and(|status| status < 300));
        accepted.map(|told| told.event.clone()).collect()
    }

    /// All that it was told, also what it did not accept.
    pub fn told(&self) -> Vec<Value> {
        self.state.told.lock().iter().map(|told| told.event.clone()).collect()
    }

    /// The requests that it was told in.
    pub fn requests(&self) -> Vec<Told> {
        self.state.told.lock().clone()
    }

    /// How many requests were under way at once, at the most.
    pub fn most_at_once(&self) -> usize {
        self.state.at_once.lock().1
    }

    /// Waits until it has accepted so many events of this name, and returns them.
    pub async fn events(&self, name: &str, count: usize) -> Vec<Value> {
        let of_name = || self.accepted().into_iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
        eventually(&format!("{count} times {name}"), async || of_name().len() >= count).await;
        of_name()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.lock().take() {
            serving.abort();
        }
    }
}

async fn hear(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Full<Bytes>>, Infallible> {
    {
        let mut at_once = state.at_once.lock();
        at_once.0 += 1;
        at_once.1 = at_once.1.max(at_once.0);
    }
    assert_eq!(request.uri().path(), "/hook");
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let event: Value = serde_json::from_slice(&body).unwrap_or_default();
    let answer = Arc::clone(&state.answer.lock());
    let place = {
        let mut told = state.told.lock();
        told.push(Told { headers, body, event: event.clone(), status: None });
        told.len() - 1
    };
    let (status, answer) = answer(event).await;
    state.told.lock()[place].status = Some(status);
    state.at_once.lock().0 -= 1;
    let mut response = Response::new(Full::from(answer.to_string()));
    *response.status_mut() = status.try_into().unwrap();
    Ok(response)
}
