//! The queue in Redis: a stream with one consumer group, each run of a node a consumer.
//!
//! **Reading.** A connection of its own waits for entries, for as many as there are free hands. What has no id of its own
//! and is due at once is handed over as it is: nothing is written of it but, at its end, that it is done. All else gets a
//! record in the one script that begins it (`task_take.lua`): there it is decided whether it was there before.
//!
//! **Later.** What is due later leaves the stream for a sorted set, and comes back as an entry that names its record. Any
//! node moves what is due, by Redis' clock, and sleeps until the next that it knows of. A cron is moved on by whoever
//! sees first that it is due: the script compares the time that was due.
//!
//! **In hand.** An entry belongs to its consumer until it is finished. Nodes renew what they have in hand; what nobody has
//! renewed for a node's life another one claims, and this counts as an attempt. What was delivered to a connection that had
//! ended already, its own node finds again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::redis::{Address, Command, Connection, Mark, RedisError, Reply};
use super::{Backoff, Shared, Unavailable};
use crate::id::TaskId;
use crate::outcome::{Problem, line};
use crate::task::{Ending, Fields, State, Taken, Task, View, When, later};
use crate::throttle::Throttle;

/// The group's name; the scripts know it, too.
const GROUP: &str = "moongate";

/// The field of an entry that names a record. Not a field that somebody may mean to add.
const REFERENCE: &str = "moongate:task";

/// How long a read waits for entries.
const READ: Duration = Duration::from_secs(1);

/// At most so long nobody looks whether something is due.
const LOOK: Duration = Duration::from_secs(1);

/// Looks are at least so far apart, so that what is due at nearly the same time is moved together.
const PAUSE: Duration = Duration::from_millis(5);

/// What is moved in one go.
const MOVED_AT_ONCE: u64 = 1000;

/// A tick that is later is missed.
const LATE: u64 = 30_000;

/// After an outage of Redis nothing is taken over for so long: its owners renew it first.
const GRACE: Duration = Duration::from_secs(10);

/// What is counted in Redis is looked up this often.
const FACTS: Duration = Duration::from_secs(5);

/// Dead letters in the stream.
const DEAD_LETTERS: u64 = 10_000;

/// How long an answer stands, s.
const ANSWER_STANDS: u64 = 60;

/// What is sent to Redis at once, so that others are not kept waiting; the scripts have the same bound.
const MOST_BYTES: usize = 4 << 20;

/// The largest answer that is kept for whoever adds the task again.
const MAX_KEPT_ANSWER: usize = 64 << 10;

macro_rules! script {
    ($name:literal) => {
        concat!(include_str!("scripts/task.lua"), include_str!(concat!("scripts/task_", $name, ".lua")))
    };
}

/// Tasks that a node has in hand at once, and how many more that it has taken over from others.
const HANDS: usize = 256;
const SPARE_HANDS: usize = 64;

/// Where tasks in hand go, and how many there can be.
pub struct Hands {
    /// A permit for each. Who reads holds all that are free while it waits.
    pub free: Arc<Semaphore>,
    /// For those that are taken over.
    spare: Arc<Semaphore>,
    /// There is room for as many as there are permits.
    pub out: mpsc::Sender<(Taken, OwnedSemaphorePermit)>,
}

impl Hands {
    /// All are free; and where what they take comes out.
    pub fn new() -> (Self, mpsc::Receiver<(Taken, OwnedSemaphorePermit)>) {
        let (out, taken) = mpsc::channel(Self::ALL);
        (Self { free: Arc::new(Semaphore::new(HANDS)), spare: Arc::new(Semaphore::new(SPARE_HANDS)), out }, taken)
    }

    /// How many there are.
    pub const ALL: usize = HANDS + SPARE_HANDS;
}

/// What became of what was taken in.
enum Begun {
    Run { attempt: u32, fields: Fields },
    Kept { until: u64 },
    Before { answer: Bytes },
    Gone,
}

/// An entry as it was read.
pub(super) struct Entry {
    id: String,
    deliveries: u32,
    fields: Fields,
}

/// The queue.
pub struct Tasks {
    shared: Arc<Shared>,
    address: Address,
    ttl: Duration,
    /// Entries that this node has in hand, with the run that took them.
    in_hand: Mutex<HashMap<String, String>>,
    /// Held between a claim and its being in hand.
    claiming: tokio::sync::Mutex<()>,
    /// When the next one is due that is known of, by Redis' clock.
    next: AtomicU64,
    sooner: Notify,
    complain: Throttle,
}

impl Tasks {
    pub(super) fn new(shared: Arc<Shared>, address: Address, ttl: Duration) -> Self {
        Self {
            shared,
            address,
            ttl,
            in_hand: Mutex::default(),
            claiming: tokio::sync::Mutex::default(),
            next: AtomicU64::new(u64::MAX),
            sooner: Notify::new(),
            complain: Throttle::default(),
        }
    }

    fn script(&self, script: &'static str) -> Command {
        Command::script(script, [self.shared.keys.tasks()])
    }

    /// The connection for commands, while this node has a place among the others.
    fn link(&self) -> Option<Connection> {
        let is_member = *self.shared.member.borrow();
        self.shared.link.get().ok().filter(|_| is_member)
    }

    fn now(&self) -> u64 {
        self.shared.clock.now().unwrap_or_default()
    }

    /// Something is due at this time; 0 is what is in the stream already.
    fn is_due_at(&self, time: u64) {
        if time > 0 && self.next.fetch_min(time, Ordering::Relaxed) > time {
            self.sooner.notify_one();
        }
    }

    // --- what is asked ---

    /// Takes a new task in; it is known by its id from now on. Returns that.
    pub async fn add(&self, fields: Fields, task: &Task, entry: Option<&str>) -> Result<String, Unavailable> {
        let id = task.id.as_ref().map_or_else(|| uuid::Uuid::new_v4().to_string(), |id| id.as_str().to_owned());
        let item = self.item(&Entry { id: String::new(), deliveries: 0, fields }, task, &id, entry);
        for begun in self.take_in(vec![item]).await? {
            if let Begun::Kept { until } = begun {
                self.is_due_at(until);
            }
        }
        Ok(id)
    }

    /// Takes a task that waits away, and a cron; true when there was one. `entry` is where in the stream that was said.
    pub async fn cancel(&self, id: &TaskId, entry: Option<&str>) -> Result<bool, Unavailable> {
        let cancel = self.script(script!("cancel")).arg(id.as_str()).arg(entry.unwrap_or_default());
        Ok(self.shared.link.get()?.call(cancel).await?.number() > 0)
    }

    /// Takes a task off the dead letters, and queues it.
    pub async fn retry(&self, id: &TaskId) -> Result<bool, Unavailable> {
        let connection = self.shared.link.get()?;
        let mut reply = connection.call(self.script(script!("retry")).arg(id.as_str())).await?.list().into_iter();
        if reply.next().is_none_or(|done| done.number() == 0) {
            return Ok(false);
        }
        if let Some(letter) = reply.next().and_then(Reply::text).filter(|letter| !letter.is_empty()) {
            // The task is queued, whatever becomes of this.
            drop(connection.call(Command::xdel(self.shared.keys.dead_letters()).arg(letter)).await);
        }
        Ok(true)
    }

    /// What is known of a task.
    pub async fn get(&self, id: &TaskId) -> Result<Option<View>, Unavailable> {
        let reply = self.shared.link.get()?.call(self.script(script!("get")).arg(id.as_str())).await?.list();
        Ok(reply.into_iter().nth(1).and_then(view))
    }

    /// A page of tasks, and the cursor behind it; none when the cursor is not one of ours.
    pub async fn list(
        &self,
        state: Option<State>,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Option<(Vec<View>, Option<String>)>, Unavailable> {
        let sections = match state {
            Some(State::Waiting) => "ds",
            Some(State::Running) => "r",
            Some(State::Done) => "e",
            Some(State::Dead) => "x",
            None => "dsrex",
        };
        let mut parts = ["", "", ""];
        if let Some(cursor) = cursor {
            let read = || {
                let (section, rest) = cursor.split_once(':')?;
                let (score, member) = rest.split_once(':')?;
                let is_score = score.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') && !score.is_empty();
                (section.len() == 1 && sections.contains(section) && is_score).then_some([section, score, member])
            };
            let Some(read) = read() else { return Ok(None) };
            parts = read;
        }
        let list = self.script(script!("list")).arg(limit as u64).arg(sections).args(parts);
        let mut reply = self.shared.link.get()?.call(list).await?.list().into_iter().skip(1);
        let mut text = || reply.next().and_then(Reply::text).unwrap_or_default();
        let (section, score, member) = (text(), text(), text());
        let cursor = (!section.is_empty()).then(|| format!("{section}:{score}:{member}"));
        Ok(Some((reply.filter_map(view).collect(), cursor)))
    }

    // --- taking ---

    /// Reads the stream, moves what is due into it and takes over what others have left, until `stop`.
    pub async fn run(&self, hands: Hands, stop: CancellationToken) {
        tokio::join!(
            Box::pin(self.read(&hands, &stop)),
            stop.run_until_cancelled(Box::pin(self.move_due())),
            stop.run_until_cancelled(Box::pin(self.adopt(&hands))),
        );
    }

    /// Reads, on one connection after another.
    async fn read(&self, hands: &Hands, stop: &CancellationToken) {
        let (mut backoff, mut last, mut most) = (Backoff::up_to(Duration::from_secs(2)), None, HANDS);
        while !stop.is_cancelled() {
            match self.read_on_one_connection(hands, stop, &mut backoff, &mut last, &mut most).await {
                Ok(()) => {}
                Err(error) => {
                    // Large ones may have taken too long to come.
                    most = (most / 4).max(1);
                    if self.link().is_some() && backoff.attempts() > 2 && self.complain.allows() {
                        tracing::warn!(%error, "cannot read tasks; trying again");
                    }
                    stop.run_until_cancelled(self.pause(&mut backoff)).await;
                }
            }
        }
    }

    /// Waits before the next connection; no longer when there is a new one for commands.
    async fn pause(&self, backoff: &mut Backoff) {
        let mark = || self.link().map(|link| link.mark);
        let (before, until) = (mark(), Instant::now() + backoff.next());
        while Instant::now() < until {
            sleep(PAUSE * 4).await;
            let now = mark();
            if now.is_some() && now != before {
                return backoff.begin();
            }
        }
    }

    async fn read_on_one_connection(
        &self,
        hands: &Hands,
        stop: &CancellationToken,
        backoff: &mut Backoff,
        last: &mut Option<Mark>,
        most: &mut usize,
    ) -> Result<(), String> {
        let mut member = self.shared.member.subscribe();
        // The sender is here.
        let is_member = stop.run_until_cancelled(member.wait_for(|member| *member)).await.is_some();
        let Some(link) = self.link().filter(|_| is_member) else {
            stop.run_until_cancelled(self.pause(backoff)).await;
            return Ok(());
        };
        let identity = self.shared.identity();
        let words = |error: RedisError| error.to_string();
        let opened =
            stop.run_until_cancelled(Connection::open_to_wait(&self.address, &self.shared.metrics, READ)).await;
        let Some(opened) = opened else { return Ok(()) };
        let (connection, mut alive) = opened.map_err(|error| error.to_string())?;
        connection.bear_the_name_of(&identity.run).await.map_err(words)?;
        // What it had not read yet would be delivered to nobody.
        connection.take_over_from(last).await.map_err(words)?;
        self.make_group(&link).await.map_err(words)?;
        let Some(permits) = stop.run_until_cancelled(free_hands(&hands.free, *most)).await else { return Ok(()) };
        self.recover(&link, &identity.run, permits, hands).await.map_err(words)?;
        let is_ours = || {
            let is_here = self.link().is_some_and(|link| link.mark.run_id == connection.mark.run_id);
            is_here && self.shared.identity() == identity
        };
        while !stop.is_cancelled() && is_ours() {
            let Some(permits) = stop.run_until_cancelled(free_hands(&hands.free, *most)).await else { return Ok(()) };
            let read = Command::xreadgroup("GROUP")
                .arg(GROUP)
                .arg(identity.run.as_str())
                .arg("COUNT")
                .arg(permits.num_permits() as u64)
                .arg("BLOCK")
                .arg(READ.as_millis() as u64)
                .arg("STREAMS")
                .arg(self.shared.keys.tasks())
                .arg(">");
            let mut reading = Box::pin(connection.call(read));
            let answered = tokio::select! {
                answered = &mut reading => answered,
                () = alive.ended() => return Err("the connection was closed".to_owned()),
                () = stop.cancelled() => {
                    // What is delivered now would be nobody's.
                    drop(link.unblock(&connection.mark).await);
                    reading.await
                }
            };
            match answered {
                Ok(reply) => {
                    backoff.begin();
                    *most = (*most * 2).min(HANDS);
                    let entries = reply.entries().into_iter();
                    let entries = entries.map(|(id, fields)| Entry { id, deliveries: 1, fields: Fields(fields) });
                    self.begin(entries.collect(), &identity.run, permits, hands).await;
                }
                Err(error) if error.is_of_no_group() => {
                    stop.run_until_cancelled(sleep(backoff.next())).await;
                    self.make_group(&link).await.map_err(words)?;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        if stop.is_cancelled() { Ok(()) } else { Err("this node, or its Redis, is another one by now".to_owned()) }
    }

    /// From the first entry on: what was added before there was a node is not lost.
    async fn make_group(&self, connection: &Connection) -> Result<(), RedisError> {
        let make = Command::xgroup("CREATE").arg(self.shared.keys.tasks()).arg(GROUP).arg("0").arg("MKSTREAM");
        match connection.call(make).await {
            Err(RedisError::Refused { error, .. }) if error.starts_with("BUSYGROUP") => Ok(()),
            made => made.map(drop),
        }
    }

    /// Takes over what its owner has not renewed for too long.
    async fn adopt(&self, hands: &Hands) {
        let mut turns = interval((self.ttl / 3).clamp(Duration::from_millis(500), FACTS));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since: Option<(Mark, Instant)> = None;
        loop {
            turns.tick().await;
            let Some(connection) = self.link() else {
                since = None;
                continue;
            };
            match &since {
                Some((mark, at)) if *mark == connection.mark => {
                    if at.elapsed() < GRACE {
                        continue;
                    }
                }
                _ => {
                    since = Some((connection.mark.clone(), Instant::now()));
                    continue;
                }
            }
            let spare = hands.spare.available_permits() as u32;
            let Ok(permits) = Arc::clone(&hands.spare).try_acquire_many_owned(spare) else { continue };
            let run = self.shared.identity().run.clone();
            let adopt = self
                .script(script!("adopt"))
                .arg(run.as_str())
                .arg(self.ttl.as_millis() as u64)
                .arg(permits.num_permits() as u64)
                .arg((self.ttl + GRACE).as_millis() as u64);
            let _claiming = self.claiming.lock().await;
            let entries = match connection.call(adopt).await {
                Ok(reply) => claimed(reply),
                Err(error) => {
                    if !error.is_of_no_group() {
                        tracing::debug!(%error, "cannot look after the tasks of others");
                    }
                    continue;
                }
            };
            // What this node has in hand it has, however slow Redis was.
            let is_in_hand = |entry: &Entry| self.in_hand.lock().contains_key(&entry.id);
            let entries: Vec<Entry> = entries.into_iter().filter(|entry| !is_in_hand(entry)).collect();
            if !entries.is_empty() {
                tracing::info!(tasks = entries.len(), "taking over tasks that their node has not renewed");
                self.begin(entries, &run, permits, hands).await;
            }
        }
    }

    /// What the last connection did not bring any more.
    async fn recover(
        &self,
        connection: &Connection,
        run: &str,
        permits: OwnedSemaphorePermit,
        hands: &Hands,
    ) -> Result<(), RedisError> {
        let _claiming = self.claiming.lock().await;
        let in_hand: Vec<String> = self.in_hand.lock().keys().cloned().collect();
        let recover = self.script(script!("recover")).arg(run).arg(permits.num_permits() as u64).args(in_hand);
        let entries = claimed(connection.call(recover).await?);
        self.begin(entries, run, permits, hands).await;
        Ok(())
    }

    /// Begins what was read, or keeps it for later; what makes no sense is a dead letter.
    /// `run` has them in hand.
    async fn begin(&self, entries: Vec<Entry>, run: &str, mut permits: OwnedSemaphorePermit, hands: &Hands) {
        if entries.is_empty() {
            return;
        }
        self.in_hand.lock().extend(entries.iter().map(|entry| (entry.id.clone(), run.to_owned())));
        let prefix = self.shared.keys.replies();
        let (mut asked, mut items, mut poison) = (Vec::new(), Vec::new(), Vec::new());
        let mut hand_over = |taken: Taken| {
            if let Some(permit) = permits.split(1) {
                // There is room for as many as there are permits; without anybody to take it, others will.
                hands.out.try_send((taken, permit)).ok();
            }
        };
        for entry in entries {
            if let [(name, id)] = &*entry.fields.0
                && name == REFERENCE
            {
                let id = String::from_utf8_lossy(id).into_owned();
                items.push([
                    "ref".into(),
                    entry.id.clone().into(),
                    entry.deliveries.to_string().into(),
                    id.clone().into(),
                    Bytes::new(),
                    Bytes::new(),
                    Bytes::new(),
                    Bytes::new(),
                    Bytes::new(),
                ]);
                asked.push((entry, id, None));
                continue;
            }
            let task = match Task::read(&entry.fields, Some(&prefix)) {
                Ok(task) => task,
                Err(error) => {
                    poison.push((entry, error.to_string()));
                    continue;
                }
            };
            let is_now = match task.when {
                When::Now => true,
                When::At(at) => at <= self.now(),
                When::After(delay) => later(time_of(&entry.id), delay) <= self.now(),
                When::Cron(_) => false,
            };
            if is_now && task.id.is_none() {
                hand_over(Taken {
                    id: entry.id.clone(),
                    attempt: entry.deliveries,
                    fields: entry.fields,
                    task,
                    has_record: false,
                    entry: entry.id,
                });
                continue;
            }
            let id = task.id.as_ref().map_or_else(|| entry.id.clone(), |id| id.as_str().to_owned());
            items.push(self.item(&entry, &task, &id, None));
            asked.push((entry, id, Some(task)));
        }
        let begun = self.take_all_in(items).await;
        for ((entry, id, task), begun) in asked.into_iter().zip(begun) {
            match begun {
                Begun::Run { attempt, fields } => {
                    let read = task.map_or_else(|| Task::read(&fields, Some(&prefix)), Ok);
                    match read {
                        Ok(task) => hand_over(Taken { id, attempt, fields, task, has_record: true, entry: entry.id }),
                        Err(error) => {
                            let letter = Letter { id, attempt, reason: error.to_string(), fields, has_record: true };
                            self.bury_alone(entry.id, letter, Problem::from(error)).await;
                        }
                    }
                    continue;
                }
                Begun::Kept { until } => self.is_due_at(until),
                Begun::Before { answer } => {
                    if let (Some(key), false) = (task.and_then(|task| task.reply_to), answer.is_empty()) {
                        self.insist(|| self.answer(vec![(key.clone(), answer.clone())])).await;
                    }
                }
                Begun::Gone => {}
            }
            self.in_hand.lock().remove(&entry.id);
        }
        for (entry, reason) in poison {
            let id = entry.fields.get("id").and_then(|id| id.parse::<TaskId>().ok());
            let id = id.map_or_else(|| entry.id.clone(), |id| id.as_str().to_owned());
            if self.complain.allows() {
                tracing::warn!(
                    entry = entry.id,
                    reason,
                    "a task makes no sense: see the dead letters (said at most once a second)"
                );
            }
            let reply_to = entry.fields.get("reply_to").filter(|key| key.starts_with(&prefix)).map(str::to_owned);
            let problem = Problem::from(crate::json::Invalid::request(&reason));
            if let Some(key) = reply_to {
                let answer = line(&problem);
                self.insist(|| self.answer(vec![(key.clone(), answer.clone())])).await;
            }
            let fields = entry.fields.shortened();
            let letter = Letter { id, attempt: entry.deliveries, reason, fields, has_record: false };
            self.bury_alone(entry.id, letter, problem).await;
        }
    }

    /// Does it until Redis has done it; none when that refuses this alone.
    async fn insist<T, F: Future<Output = Result<T, RedisError>>>(&self, work: impl Fn() -> F) -> Option<T> {
        let mut backoff = Backoff::up_to(Duration::from_secs(2));
        loop {
            match Box::pin(work()).await {
                Ok(done) => return Some(done),
                Err(error) if !error.is_server_wide() => {
                    tracing::error!(%error, "Redis refuses what became of tasks");
                    return None;
                }
                Err(error) if backoff.attempts() > 2 && self.complain.allows() => {
                    tracing::warn!(%error, "Redis does not take what became of tasks; trying again");
                }
                Err(_) => {}
            }
            sleep(backoff.next()).await;
        }
    }

    /// Takes them in together; where that is refused, each for itself: what is wrong with one stops no others.
    async fn take_all_in(&self, items: Vec<[Bytes; 9]>) -> Vec<Begun> {
        let mut all = Vec::with_capacity(items.len());
        for items in in_lots(&items, |item| item.iter().map(Bytes::len).sum()) {
            if let Some(begun) = self.insist(|| self.take_in(items.to_vec())).await {
                all.extend(begun);
                continue;
            }
            for item in items {
                let one = self.insist(|| self.take_in(vec![item.clone()])).await;
                all.push(one.and_then(|mut one| one.pop()).unwrap_or(Begun::Gone));
            }
        }
        all
    }

    /// The nine arguments of a new task.
    fn item(&self, entry: &Entry, task: &Task, id: &str, place: Option<&str>) -> [Bytes; 9] {
        let (what, when) = match &task.when {
            When::Now => ("add", String::new()),
            When::At(at) => ("add", at.to_string()),
            // What has no entry counts from when Redis takes it.
            When::After(delay) if entry.id.is_empty() => ("add", format!("+{delay}")),
            When::After(delay) => ("add", later(time_of(&entry.id), *delay).to_string()),
            When::Cron(schedule) => {
                let next = schedule.next_after(self.now().max(time_of(&entry.id)));
                ("cron", next.map_or_else(String::new, |next| next.to_string()))
            }
        };
        let place = place.unwrap_or(&entry.id).to_owned();
        [
            what.into(),
            entry.id.clone().into(),
            entry.deliveries.to_string().into(),
            id.to_owned().into(),
            if task.id.is_some() { "1" } else { "0" }.into(),
            entry.fields.write().into(),
            when.into(),
            task.reply_to.clone().unwrap_or_default().into(),
            place.into(),
        ]
    }

    async fn take_in(&self, items: Vec<[Bytes; 9]>) -> Result<Vec<Begun>, RedisError> {
        let take = self.script(script!("take")).args(items.into_iter().flatten());
        let reply = self.shared.link.get()?.call(take).await?.list();
        let begun = reply.into_iter().skip(1).map(|answer| {
            let mut parts = answer.list().into_iter();
            match (parts.next().map_or(0, |what| what.number()), parts.next()) {
                (1, Some(attempt)) => Begun::Run {
                    attempt: attempt.number() as u32,
                    fields: Fields::read(&parts.next().and_then(Reply::text).unwrap_or_default()),
                },
                (2, Some(until)) => Begun::Kept { until: until.number() },
                (3, Some(answer)) => Begun::Before { answer: answer.bytes().unwrap_or_default() },
                _ => Begun::Gone,
            }
        });
        Ok(begun.collect())
    }

    // --- what is due ---

    /// Moves what is due into the stream.
    async fn move_due(&self) {
        loop {
            self.next.store(u64::MAX, Ordering::Relaxed);
            let mut is_more = false;
            if let Some(connection) = self.link() {
                match self.move_some(&connection).await {
                    Ok(more) => is_more = more,
                    Err(error) => tracing::debug!(%error, "cannot look for tasks that are due"),
                }
            }
            sleep(PAUSE).await;
            let looked = Instant::now();
            loop {
                let next = Duration::from_millis(self.next.load(Ordering::Relaxed).saturating_sub(self.now()));
                let wait = next.min(LOOK.saturating_sub(looked.elapsed()));
                if is_more || wait.is_zero() {
                    break;
                }
                tokio::select! {
                    () = sleep(wait) => {}
                    () = self.sooner.notified() => {}
                }
            }
        }
    }

    async fn move_some(&self, connection: &Connection) -> Result<bool, RedisError> {
        let mut reply = connection.call(self.script(script!("due")).arg(MOVED_AT_ONCE)).await?.list().into_iter();
        let mut number = || reply.next().map_or(0, |number| number.number());
        let (is_more, now, next) = (number() > 0, number(), number());
        // It is -1 where there is none, which is no number for us.
        if next > 0 {
            self.is_due_at(next);
        }
        for cron in reply {
            let mut parts = cron.list().into_iter().map(|part| part.text().unwrap_or_default());
            let (id, at, fields) = (parts.next(), parts.next(), parts.next());
            let (Some(id), Some(Ok(at)), Some(fields)) = (id, at.map(|at| at.parse::<f64>()), fields) else { continue };
            #[allow(clippy::cast_sign_loss)] // a time, which is whole and not negative
            self.tick(connection, &id, at as u64, now, &Fields::read(&fields)).await?;
        }
        Ok(is_more)
    }

    /// A cron is due.
    async fn tick(
        &self,
        connection: &Connection,
        id: &str,
        at: u64,
        now: u64,
        fields: &Fields,
    ) -> Result<(), RedisError> {
        // It was read when it was added; what cannot be read now is taken away.
        let schedule = match Task::read(fields, Some(&self.shared.keys.replies())) {
            Ok(Task { when: When::Cron(schedule), .. }) => Some(schedule),
            _ => None,
        };
        let next_after = |time| schedule.as_ref().and_then(|schedule| schedule.next_after(time));
        let is_missed = next_after(at).is_none_or(|following| following <= now) || now.saturating_sub(at) > LATE;
        let next = next_after(now);
        let tick = if is_missed { String::new() } else { fields.of_tick(at).write() };
        let script = self
            .script(script!("tick"))
            .arg(id)
            .arg(at)
            .arg(next.map_or_else(String::new, |next| next.to_string()))
            .arg(tick);
        connection.call(script).await?;
        if let Some(next) = next {
            self.is_due_at(next);
        }
        Ok(())
    }

    // --- finishing ---

    /// Writes what came of tasks, answers those who asked, and takes their entries off the stream. What Redis refuses of one
    /// does not stop others; it stays in the stream.
    pub async fn finish(&self, ended: &[(Taken, Ending)]) -> Result<(), Unavailable> {
        // What was written before the connection ended is not written again.
        let is_left = |(taken, _): &&(Taken, Ending)| self.in_hand.lock().contains_key(&taken.entry);
        let ended: Vec<&(Taken, Ending)> = ended.iter().filter(is_left).collect();
        for ended in in_lots(&ended, |(taken, ending)| taken.fields.length() + ending.length()) {
            self.finish_lot(ended).await?;
        }
        Ok(())
    }

    async fn finish_lot(&self, ended: &[&(Taken, Ending)]) -> Result<(), Unavailable> {
        match (self.finish_together(ended).await, ended) {
            (Err(error), _) if error.is_server_wide() => return Err(error.into()),
            (Err(error), [(taken, _)]) => {
                tracing::error!(%error, task = taken.id, "what came of a task cannot be written");
                self.in_hand.lock().remove(&taken.entry);
            }
            (Err(_), _) => {
                for one in ended {
                    Box::pin(self.finish_lot(std::slice::from_ref(one))).await?;
                }
            }
            (Ok(()), _) => {}
        }
        Ok(())
    }

    async fn finish_together(&self, ended: &[&(Taken, Ending)]) -> Result<(), RedisError> {
        let connection = self.shared.link.get()?;
        let answers = ended.iter().filter_map(|(taken, ending)| {
            let answer = match ending {
                Ending::Done(answer) | Ending::Dead { answer, .. } => answer.clone(),
                Ending::Again { .. } => return None,
            };
            Some((taken.task.reply_to.clone()?, answer))
        });
        self.answer(answers.collect()).await?;
        let mut letters = Vec::new();
        for (taken, ending) in ended {
            let letter = match ending {
                Ending::Dead { reason, .. } => {
                    self.bury(&connection, &taken.id, &taken.fields, taken.attempt, reason).await?
                }
                _ => String::new(),
            };
            letters.push(letter);
        }
        let is_plain = |(taken, ending): &&&(Taken, Ending)| !taken.has_record && matches!(ending, Ending::Done(_));
        let plain: Vec<&str> = ended.iter().filter(is_plain).map(|(taken, _)| &*taken.entry).collect();
        let mut finish = self.script(script!("finish")).arg(plain.len() as u64).args(plain.iter().copied());
        let mut others = Vec::new();
        for ((taken, ending), letter) in ended.iter().zip(letters).filter(|(ended, _)| !is_plain(ended)) {
            finish = finish.args(finished(taken.attempt, &taken.entry, &taken.id, &taken.fields, ending, &letter));
            others.push((ending, letter));
            if let Ending::Again { after, .. } = ending {
                self.is_due_at(self.now() + after.as_millis() as u64);
            }
        }
        let reply = connection.call(finish).await?.list();
        self.finished_as(&connection, reply, &others).await;
        let mut in_hand = self.in_hand.lock();
        for (taken, _) in ended {
            in_hand.remove(&taken.entry);
        }
        Ok(())
    }

    /// What was not accepted, as another node has finished it, has no dead letter; whoever else asked is answered.
    async fn finished_as(&self, connection: &Connection, reply: Vec<Reply>, ended: &[(&Ending, String)]) {
        let mut besides = Vec::new();
        for (answer, (ending, letter)) in reply.into_iter().skip(1).zip(ended) {
            let mut parts = answer.list().into_iter();
            let is_accepted = parts.next().is_some_and(|accepted| accepted.number() > 0);
            match ending {
                Ending::Done(answer) | Ending::Dead { answer, .. } if is_accepted => {
                    besides.extend(parts.filter_map(Reply::text).map(|key| (key, answer.clone())));
                }
                _ => {}
            }
            if is_accepted && !letter.is_empty() {
                self.shared.metrics.dead_letters.inc();
            } else if !letter.is_empty() {
                drop(connection.call(Command::xdel(self.shared.keys.dead_letters()).arg(letter.as_str())).await);
            }
        }
        if let Err(error) = self.answer(besides).await {
            tracing::debug!(%error, "whoever added a task again is not answered");
        }
    }

    /// Answers those who asked for it.
    async fn answer(&self, answers: Vec<(String, Bytes)>) -> Result<(), RedisError> {
        if answers.is_empty() {
            return Ok(());
        }
        let script = include_str!("scripts/task_reply.lua");
        let answers =
            answers.into_iter().map(|(key, answer)| Command::script(script, [key]).arg(answer).arg(ANSWER_STANDS));
        for answered in self.shared.link.get()?.pipeline(answers.collect()).await? {
            // Something else may stand at that key.
            if let Err(error) = answered {
                if error.is_server_wide() {
                    return Err(error);
                }
                tracing::debug!(%error, "a task cannot be answered");
            }
        }
        Ok(())
    }

    /// Adds a dead letter; returns its entry.
    async fn bury(
        &self,
        connection: &Connection,
        id: &str,
        fields: &Fields,
        attempts: u32,
        reason: &str,
    ) -> Result<String, RedisError> {
        // Not by a script, which takes no more than some thousand fields.
        let mut bury = Command::xadd(self.shared.keys.dead_letters()).arg("MAXLEN").arg("~").arg(DEAD_LETTERS).arg("*");
        for (name, value) in &fields.0 {
            bury = bury.arg(name.clone()).arg(value.clone());
        }
        if !fields.0.iter().any(|(name, _)| name == "id") {
            bury = bury.arg("id").arg(id);
        }
        bury = bury.arg("reason").arg(reason).arg("attempts").arg(u64::from(attempts)).arg("dead_at").arg(self.now());
        Ok(connection.call(bury).await?.text().unwrap_or_default())
    }

    /// Makes a dead letter of what cannot even be tried.
    async fn bury_alone(&self, entry: String, letter: Letter, problem: Problem) {
        let ending = Ending::Dead { reason: letter.reason.clone(), answer: line(&problem) };
        let done = || async {
            let connection = self.shared.link.get()?;
            let buried = self.bury(&connection, &letter.id, &letter.fields, letter.attempt, &letter.reason).await?;
            let mut arguments = finished(letter.attempt, &entry, &letter.id, &letter.fields, &ending, &buried);
            if let (Some(outcome), false) = (arguments.get_mut(2), letter.has_record) {
                *outcome = Bytes::from_static(b"poison");
            }
            let finish = self.script(script!("finish")).arg(0).args(arguments);
            let reply = connection.call(finish).await?.list();
            self.finished_as(&connection, reply, &[(&ending, buried)]).await;
            Ok::<(), RedisError>(())
        };
        self.insist(done).await;
        self.in_hand.lock().remove(&entry);
    }

    // --- looking after ---

    /// Renews what is in hand, and counts, as long as it is asked to.
    pub async fn tend(&self) {
        let mut turns = interval((self.ttl / 4).min(FACTS));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_facts = None::<Instant>;
        loop {
            turns.tick().await;
            let Some(connection) = self.link() else { continue };
            let mut by_run: HashMap<String, Vec<String>> = HashMap::new();
            for (entry, run) in &*self.in_hand.lock() {
                by_run.entry(run.clone()).or_default().push(entry.clone());
            }
            for (run, entries) in by_run {
                let renew = self.script(script!("renew")).arg(run).args(entries);
                if let Err(error) = connection.call(renew).await {
                    tracing::debug!(%error, "cannot renew the tasks in hand");
                }
            }
            if last_facts.is_none_or(|at| at.elapsed() >= FACTS) {
                last_facts = Some(Instant::now());
                let Ok(facts) = connection.call(self.script(script!("facts"))).await else { continue };
                let facts: Vec<u64> = facts.list().iter().map(Reply::number).collect();
                let metrics = &self.shared.metrics;
                let gauges =
                    [&metrics.tasks_waiting, &metrics.tasks_in_hand, &metrics.tasks_delayed, &metrics.tasks_dead];
                for (gauge, fact) in gauges.into_iter().zip(&facts) {
                    gauge.set(i64::try_from(*fact).unwrap_or(i64::MAX));
                }
                metrics.tasks_oldest.set(facts.get(4).map_or(0.0, |age| *age as f64 / 1000.0));
            }
        }
    }

    /// Takes this node out of the group, where it has nothing in hand.
    pub async fn leave(&self) {
        let run = self.shared.identity().run.clone();
        let Some(connection) = self.link() else { return };
        match connection.call(self.script(script!("leave")).arg(run)).await {
            Ok(left) if left.number() > 0 => {}
            Ok(_) => tracing::warn!("tasks are left in hand: another node takes them over"),
            Err(error) => tracing::debug!(%error, "cannot leave the tasks"),
        }
    }

    /// What keys begin with at which tasks are answered.
    pub fn reply_prefix(&self) -> String {
        self.shared.keys.replies()
    }
}

/// What is given up without an attempt.
struct Letter {
    id: String,
    attempt: u32,
    reason: String,
    fields: Fields,
    has_record: bool,
}

/// The eight arguments of what has ended.
fn finished(attempt: u32, entry: &str, id: &str, fields: &Fields, ending: &Ending, letter: &str) -> [Bytes; 8] {
    let kept = |answer: &Bytes| {
        if answer.len() <= MAX_KEPT_ANSWER {
            return answer.clone();
        }
        let detail = format!("the answer has more than {MAX_KEPT_ANSWER} bytes, and was not kept");
        line(&Problem::new(hyper::StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail))
    };
    let (outcome, reason, answer, more) = match ending {
        Ending::Done(answer) => ("done", String::new(), kept(answer), String::new()),
        Ending::Dead { reason, answer } => ("dead", reason.clone(), kept(answer), letter.to_owned()),
        Ending::Again { reason, after } => ("again", reason.clone(), Bytes::new(), after.as_millis().to_string()),
    };
    [
        entry.to_owned().into(),
        id.to_owned().into(),
        outcome.into(),
        attempt.to_string().into(),
        reason.into(),
        answer,
        fields.write().into(),
        more.into(),
    ]
}

/// Entries with how often they were delivered.
pub(super) fn claimed(reply: Reply) -> Vec<Entry> {
    let entries = reply.list().into_iter().skip(1).filter_map(|entry| {
        let mut parts = entry.list().into_iter();
        let (id, deliveries) = (parts.next()?.text()?, parts.next()?.number());
        Some(Entry { id, deliveries: deliveries as u32, fields: Fields(parts.next()?.fields()) })
    });
    entries.collect()
}

/// Waits for a free hand, and takes all that are free, but no more than `most`.
async fn free_hands(free: &Arc<Semaphore>, most: usize) -> OwnedSemaphorePermit {
    // It is never closed.
    let Ok(mut permits) = Arc::clone(free).acquire_owned().await else { return std::future::pending().await };
    let more = free.available_permits().min(most.saturating_sub(1));
    if let Ok(more) = Arc::clone(free).try_acquire_many_owned(more as u32) {
        permits.merge(more);
    }
    permits
}

/// Parts that can be sent at once; what is larger alone is alone.
fn in_lots<T>(items: &[T], length: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut lots, mut rest) = (Vec::new(), items);
    while !rest.is_empty() {
        let mut sum = 0;
        let fits = rest.iter().take_while(|item| {
            sum += length(item);
            sum <= MOST_BYTES
        });
        let (lot, others) = rest.split_at(fits.count().max(1));
        lots.push(lot);
        rest = others;
    }
    lots
}

/// The time in an entry's id, unix ms.
fn time_of(entry: &str) -> u64 {
    entry.split('-').next().and_then(|time| time.parse().ok()).unwrap_or_default()
}

/// What a script shows of a task.
pub(super) fn view(reply: Reply) -> Option<View> {
    let mut parts = reply.list().into_iter();
    let id = parts.next()?.text()?;
    let state = match parts.next()?.text()?.as_str() {
        "running" => State::Running,
        "done" => State::Done,
        "dead" => State::Dead,
        _ => State::Waiting,
    };
    let attempts = parts.next()?.number() as u32;
    let next_at = parts.next()?.text().and_then(|next| next.parse().ok());
    let reason = parts.next()?.text().filter(|reason| !reason.is_empty());
    let fields = parts.next()?;
    let fields =
        if fields.is_list() { Fields(fields.fields()) } else { Fields::read(&fields.text().unwrap_or_default()) };
    Some(View { id, state, attempts, next_at, reason, task: fields.shown() })
}
