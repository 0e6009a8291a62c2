//! The accept loop of `API_LISTEN`. Our own, as a client that says nothing must not be waited for, while an
//! application's pool may keep its connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::accept::{AcceptFailures, MAX_HEAD, MAX_HEADERS, UNREAD};
use crate::metrics::Metrics;

/// Connections served at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;

/// So long a connection may wait for its next request; longer than the usual pools keep theirs (90 to 120 s), so that
/// it is the application that closes, never we while a request is on its way.
const IDLE: Duration = Duration::from_mins(5);

/// Serves until `stop`; what is under way then is answered. Dropped, it ends every connection.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    head_timeout: Duration,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut failures = AcceptFailures::default();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                listener.accept().await.map(|(socket, _)| (socket, place))
            } => accepted,
        };
        let (socket, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                failures.wait(&error, &metrics).await;
                continue;
            }
        };
        // Whoever does not read an answer is cut by the kernel.
        drop(socket2::SockRef::from(&socket).set_tcp_user_timeout(Some(UNREAD)));
        while connections.try_join_next().is_some() {}
        let routes = TowerToHyperService::new(router.clone());
        let stop = stop.clone();
        connections.spawn(async move {
            let turns = Turns::default();
            let stream = HeadDeadline::new(socket, turns.clone(), head_timeout);
            let service = hyper::service::service_fn(|request| {
                turns.next();
                let (answer, turns) = (routes.call(request), turns.clone());
                async move {
                    let answer = answer.await;
                    turns.next();
                    answer
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE)
                .max_buf_size(MAX_HEAD)
                .max_headers(MAX_HEADERS)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let served = tokio::select! {
                served = connection.as_mut() => served,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = served {
                tracing::debug!(%error, "API connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Whose turn it is on a connection: even, the client's to say a request's head; odd, ours to answer.
#[derive(Clone, Default)]
struct Turns(Arc<AtomicU32>);

impl Turns {
    fn next(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A socket whose client must finish a request's head in time once it has begun: the first from the moment it
/// connected, later ones from their first byte. (hyper's own `header_read_timeout` also runs between two
/// requests.) A head whose first bytes were pipelined with the request before is only held to [`IDLE`], like a
/// connection that says nothing more.
struct HeadDeadline {
    socket: TcpStream,
    turns: Turns,
    turn: u32,
    timeout: Duration,
    /// When the head that is being read must be there.
    deadline: Option<Instant>,
    /// Set only while bytes are missing.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl HeadDeadline {
    fn new(socket: TcpStream, turns: Turns, timeout: Duration) -> Self {
        Self { socket, turn: turns.count(), turns, timeout, deadline: Some(Instant::now() + timeout), alarm: None }
    }
}

impl AsyncRead for HeadDeadline {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let turn = this.turns.count();
        if this.turn != turn {
            (this.turn, this.deadline, this.alarm) = (turn, None, None);
        }
        let read = Pin::new(&mut this.socket).poll_read(cx, buffer);
        if turn % 2 == 1 {
            return read;
        }
        if read.is_ready() {
            this.deadline.get_or_insert_with(|| Instant::now() + this.timeout);
            return read;
        }
        let Some(deadline) = this.deadline else { return Poll::Pending };
        let alarm = this.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        ready!(alarm.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for HeadDeadline {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
