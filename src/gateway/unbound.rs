//! Clients that have to be bound to a uid in time (`UNAUTHED_TIMEOUT`), or are closed.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Gateway;
use crate::id::ClientId;
use crate::message::Close;

/// Those that came without a uid, in the order in which their time is over. An entry outlives its client by that time at most.
pub(super) struct Unbound {
    time: Duration,
    waiting: Mutex<VecDeque<(Instant, ClientId)>>,
    came: Notify,
}

impl Unbound {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, waiting: Mutex::default(), came: Notify::new() }
    }

    /// A client is there.
    pub(super) fn watch(&self, id: ClientId) {
        self.waiting.lock().push_back((Instant::now() + self.time, id));
        self.came.notify_one();
    }

    /// Waits for the next whose time is over.
    async fn next(&self) -> ClientId {
        loop {
            let next = self.waiting.lock().front().copied();
            match next {
                Some((due, id)) => {
                    sleep_until(due).await;
                    self.waiting.lock().pop_front();
                    return id;
                }
                None => self.came.notified().await,
            }
        }
    }
}

impl Gateway {
    /// Closes them, for ever; none where that is not asked for.
    pub(crate) async fn close_unbound(&self) {
        let Some(unbound) = &self.unbound else { return };
        loop {
            let id = unbound.next().await;
            let closed = self.hub.begin_at_client(id, move |shard| {
                if shard.view(id).is_some_and(|client| client.uid.is_none()) {
                    shard.close(id, None, &Close::UNBOUND);
                }
            });
            // A hub that has stopped has nobody to close.
            if closed.await.is_err() {
                return;
            }
        }
    }
}
