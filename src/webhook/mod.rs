//! The application's own address: what it is told there, and what it answers.
//!
//! **Order.** Events of one client wait in its own line; the first of a line is told, and the next when that is accepted
//! or given up. So one request is under way for each client, and at most 64 in all.
//!
//! **Trouble.** What is answered with 408, 429 or 5xx waits for its next attempt, and its client's others behind it. When
//! nobody answers at all, all lines wait together: one call at a time tries whether somebody is there again. What was not
//! accepted for `WEBHOOK_MAX_AGE` is dropped, and counted. What waits has its place in [`Events`]: clients that go on
//! talking beyond that are not read from.

mod caller;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::TaskTracker;

#[cfg(any(test, fuzzing))]
pub(crate) use caller::accepted;
pub use caller::{ANSWER, Accepted, Caller, Refused};

use crate::config::WebhookConfig;
use crate::event::{About, Consent, Errand, Event, Events, Kind, Number, Request, Room, What};
use crate::gateway::Gateway;
use crate::id::ClientId;
use crate::metrics::{Attempt, Metrics};

/// Requests under way at once.
const MOST_CALLS: usize = 64;

/// Clients for which the application is asked at once; the others wait, within their time.
const MOST_ASKED: usize = 256;

/// The shortest and the longest wait before another attempt.
const WAITS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The same where nobody answers.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// How often it is looked for what is too old.
const LOOK: Duration = Duration::from_secs(5);

/// The webhook of a node.
pub struct Webhook {
    caller: Arc<Caller>,
    config: WebhookConfig,
    events: Arc<Events>,
    asking: Semaphore,
    asked: TaskTracker,
    metrics: Arc<Metrics>,
}

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// The application does not want it: 401 or 403.
    Refused(StatusCode),
    /// It has not said anything of use.
    NoAnswer,
}

impl Webhook {
    /// The application at the settings' URL is told these events.
    pub fn new(caller: Arc<Caller>, config: WebhookConfig, events: Arc<Events>, metrics: Arc<Metrics>) -> Self {
        Self { caller, config, events, asking: Semaphore::new(MOST_ASKED), asked: TaskTracker::new(), metrics }
    }

    /// Asks, once, whether a client is let in. It is asked to the end, also where nobody waits for it any more.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        client_id: ClientId,
        request: Arc<Request>,
    ) -> Result<Consent, NotAdmitted> {
        let webhook = Arc::clone(self);
        let asked = self.asked.spawn(async move { webhook.ask_to_the_end(client_id, request).await });
        asked.await.unwrap_or(Err(NotAdmitted::NoAnswer))
    }

    async fn ask_to_the_end(&self, client_id: ClientId, request: Arc<Request>) -> Result<Consent, NotAdmitted> {
        let within = self.config.connect_timeout;
        // It is never closed.
        let Ok(_turn) = timeout(within, self.asking.acquire()).await else { return Err(NotAdmitted::NoAnswer) };
        let at = jiff::Timestamp::now().as_millisecond().unsigned_abs();
        let origin = self.events.origin();
        let about = About { client_id, origin, number: Number::Nth(0), session: None, groups: Vec::new(), at };
        let (room, what) = (Room::default(), What::Connect(request));
        let body = Event { about: about.clone(), uid: None, what, room }.to_json();
        let consent = |commands| Consent::new(Arc::clone(&self.events), about, commands);
        let commands = match self.call(body, within).await {
            Ok(Accepted { commands }) => commands,
            Err(Refused::Status(status @ (401 | 403))) => {
                return Err(NotAdmitted::Refused(StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN)));
            }
            Err(_) if self.config.connect_fails_open => Vec::new(),
            Err(refused) => {
                // It may have been heard, and be taken for a client that is there: then it hears of its end.
                if matches!(refused, Refused::NoAnswer(_)) {
                    drop(consent(Vec::new()));
                }
                return Err(NotAdmitted::NoAnswer);
            }
        };
        self.events.told(Kind::Connect, "webhook");
        Ok(consent(commands))
    }

    async fn call(&self, body: bytes::Bytes, within: Duration) -> Result<Accepted, Refused> {
        let started = Instant::now();
        self.metrics.webhook_in_flight.inc();
        let result = self.caller.call(body, within).await;
        self.metrics.webhook_in_flight.dec();
        self.metrics.webhook_seconds.observe(started.elapsed().as_secs_f64());
        let outcome = match &result {
            Ok(_) => "ok",
            Err(Refused::Unreachable(_) | Refused::NoAnswer(_)) => "no_answer",
            // Its word on whoever connects; nothing is wrong with that.
            Err(Refused::Status(401 | 403)) => "refused",
            Err(Refused::Status(400..500)) => "4xx",
            Err(Refused::Status(500..)) => "5xx",
            Err(Refused::Status(_)) => "other",
        };
        self.metrics.webhook_requests.get_or_create(&Attempt { outcome }).inc();
        result
    }

    /// Tells what is to be told; when nothing more comes, what is left, until the time that `last` says.
    pub(crate) async fn run(self: Arc<Self>, gateway: Arc<Gateway>, mut last: oneshot::Receiver<Instant>) {
        let mut teller = Teller {
            webhook: Arc::clone(&self),
            gateway,
            lines: HashMap::new(),
            ready: VecDeque::new(),
            later: BTreeSet::new(),
            calls: JoinSet::new(),
            pause: None,
        };
        let mut look = tokio::time::interval(LOOK);
        let (mut deadline, mut nobody_asks) = (None, false);
        loop {
            let next = teller.next_attempt();
            tokio::select! {
                biased;
                Some(called) = teller.calls.join_next() => match called {
                    Ok((client, result)) => teller.called(client, result),
                    Err(error) => tracing::error!(%error, "a call of the webhook broke"),
                },
                errands = self.events.errands() => errands.into_iter().for_each(|errand| teller.take(errand)),
                last = &mut last, if deadline.is_none() => {
                    deadline = Some(last.unwrap_or_else(|_| Instant::now()));
                    self.asked.close();
                }
                () = self.asked.wait(), if deadline.is_some() && !nobody_asks => nobody_asks = true,
                () = until(deadline) => return teller.give_up(),
                () = until(next) => {}
                _ = look.tick() => teller.drop_old(),
            }
            if nobody_asks && teller.lines.is_empty() {
                return;
            }
            teller.call_next();
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What one client's errands wait in.
#[derive(Default)]
struct Line {
    items: VecDeque<Item>,
    /// The first is under way.
    is_busy: bool,
}

struct Item {
    errand: Errand,
    since: Instant,
    attempts: u32,
}

/// The lines, and whose turn it is. One task owns it.
struct Teller {
    webhook: Arc<Webhook>,
    gateway: Arc<Gateway>,
    /// None is empty.
    lines: HashMap<ClientId, Line>,
    /// Those whose first can be told.
    ready: VecDeque<ClientId>,
    /// Those whose first waits for another attempt.
    later: BTreeSet<(Instant, ClientId)>,
    calls: JoinSet<(ClientId, Result<(), Refused>)>,
    /// Nobody has answered: until when all wait, and for how long.
    pause: Option<(Instant, Duration)>,
}

impl Teller {
    fn take(&mut self, errand: Errand) {
        let client = match &errand {
            Errand::Tell(event) => event.about.client_id,
            Errand::Run(client, _) => *client,
        };
        let line = self.lines.entry(client).or_default();
        let (is_first, is_call) = (line.items.is_empty(), matches!(errand, Errand::Tell(_)));
        line.items.push_back(Item { errand, since: Instant::now(), attempts: 0 });
        match (is_first, is_call) {
            (true, true) => self.ready.push_back(client),
            // It needs nobody's answer.
            (true, false) => self.call(client),
            _ => {}
        }
    }

    /// When something can be told that cannot now.
    fn next_attempt(&self) -> Option<Instant> {
        let paused = self.pause.map(|(until, _)| until).filter(|_| self.calls.is_empty() && !self.ready.is_empty());
        let later = self.later.first().map(|(at, _)| *at);
        paused.into_iter().chain(later).min()
    }

    fn call_next(&mut self) {
        let now = Instant::now();
        while let Some((_, client)) = self.later.first().copied().filter(|(at, _)| *at <= now) {
            self.later.pop_first();
            self.ready.push_back(client);
        }
        let most = match self.pause {
            None => MOST_CALLS,
            Some((until, _)) => usize::from(until <= now),
        };
        while self.calls.len() < most
            && let Some(client) = self.ready.pop_front()
        {
            self.call(client);
        }
    }

    /// Does the first of a client's line, if there is one that is not under way.
    fn call(&mut self, client: ClientId) {
        let Some(line) = self.lines.get_mut(&client).filter(|line| !line.is_busy) else { return };
        let Some(item) = line.items.front_mut() else { return };
        line.is_busy = true;
        let (webhook, gateway) = (Arc::clone(&self.webhook), Arc::clone(&self.gateway));
        match &mut item.errand {
            Errand::Tell(event) => {
                let body = event.to_json();
                self.calls.spawn(async move {
                    let called = webhook.call(body, ANSWER).await;
                    if let Ok(Accepted { commands }) = &called {
                        gateway.run_answered(commands).await;
                    }
                    (client, called.map(drop))
                });
            }
            Errand::Run(_, commands) => {
                let commands = std::mem::take(commands);
                self.calls.spawn(async move {
                    gateway.run_answered(&commands).await;
                    (client, Ok(()))
                });
            }
        }
    }

    /// The first of a client's line was done, or not.
    fn called(&mut self, client: ClientId, result: Result<(), Refused>) {
        let now = Instant::now();
        let Some(line) = self.lines.get_mut(&client) else { return };
        line.is_busy = false;
        let Some(item) = line.items.front_mut() else { return };
        item.attempts += 1;
        let (kind, attempts) = (item.kind(), item.attempts);
        let is_old = item.since.elapsed() >= self.webhook.config.max_age;
        self.pause = match (&result, self.pause) {
            (_, pause) if kind.is_none() => pause,
            // Of several calls that nobody has answered, the first one counts.
            (Err(refused), Some((until, pause))) if !refused.is_answer() && until > now => Some((until, pause)),
            (Err(refused), before) if !refused.is_answer() => {
                if before.is_none() {
                    tracing::warn!(%refused, "the webhook is out of reach; trying on");
                }
                let pause = before.map_or(PAUSES.0, |(_, pause)| (pause * 2).min(PAUSES.1));
                Some((now + pause, pause))
            }
            (_, before) => {
                if before.is_some() {
                    tracing::info!("the webhook answers again");
                }
                None
            }
        };
        match result {
            Err(refused) if refused.may_be_tried_again() && !is_old => {
                let most = if refused.is_answer() { WAITS.1 } else { PAUSES.1 };
                let wait = (WAITS.0 * (1 << attempts.min(10).saturating_sub(1))).min(most);
                self.later.insert((now + jittered(wait), client));
                return;
            }
            Err(refused) => {
                tracing::debug!(%refused, "an event was not accepted");
                if let Some(kind) = kind {
                    self.webhook.events.lost(kind, if is_old { "too_old" } else { "refused" });
                }
            }
            Ok(()) => {
                if let Some(kind) = kind {
                    self.webhook.events.told(kind, "webhook");
                }
            }
        }
        line.items.pop_front();
        if line.items.is_empty() {
            self.lines.remove(&client);
        } else {
            self.ready.push_back(client);
        }
    }

    /// What has waited for too long is told no more, also where its turn never came.
    fn drop_old(&mut self) {
        let (max_age, events) = (self.webhook.config.max_age, &self.webhook.events);
        self.lines.retain(|_, line| {
            while !line.is_busy
                && let Some(item) = line.items.pop_front_if(|item| item.since.elapsed() >= max_age)
            {
                if let Some(kind) = item.kind() {
                    events.lost(kind, "too_old");
                }
            }
            !line.items.is_empty()
        });
    }

    /// Nobody is told of what is left.
    fn give_up(&mut self) {
        for kind in self.lines.values().flat_map(|line| &line.items).filter_map(Item::kind) {
            self.webhook.events.lost(kind, "stopped");
        }
    }
}

impl Item {
    /// Of the event, if it is one.
    fn kind(&self) -> Option<Kind> {
        match &self.errand {
            Errand::Tell(event) => Some(event.what.kind()),
            Errand::Run(..) => None,
        }
    }
}

/// A quarter more or less, so that what failed together is not tried together.
fn jittered(wait: Duration) -> Duration {
    // A few random bits are enough, and a UUID has them.
    let random = uuid::Uuid::new_v4().as_u128() as u32 % 50;
    wait * (75 + random) / 100
}
