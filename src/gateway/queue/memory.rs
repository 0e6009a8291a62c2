//! The queue of a node that is alone.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::cluster::Hands;
use crate::gateway::Failure;
use crate::id::TaskId;
use crate::task::{Ending, Fields, Schedule, State, Taken, Task, View, When, later};

/// The most tasks, those that have ended and are remembered among them.
const MOST: usize = 100_000;

/// What has an id of its own is remembered for so long after its end, ms.
const DAY: u64 = 86_400_000;
/// And what has none.
const MINUTE: u64 = 60_000;

/// The most dead tasks.
const MOST_DEAD: usize = 10_000;

/// A tick that is later is missed.
const LATE: u64 = 30_000;

/// A look at the clock is at most so long ago.
const LOOK: Duration = Duration::from_secs(1);

/// The tasks of this process.
#[derive(Default)]
pub(super) struct Memory {
    inside: Mutex<Inside>,
    changed: Notify,
}

#[derive(Default)]
struct Inside {
    tasks: HashMap<String, Record>,
    crons: HashMap<String, Cron>,
    /// When what is due: tasks and crons, which are told apart by the flag.
    due: BTreeSet<(u64, bool, String)>,
    ready: VecDeque<String>,
    /// What was cancelled, or was so before it came.
    cancelled: HashSet<String>,
    /// When what is forgotten.
    ended: BTreeSet<(u64, String)>,
    /// When what died.
    dead: BTreeSet<(u64, String)>,
}

struct Record {
    fields: Fields,
    task: Task,
    own: bool,
    phase: Phase,
    attempts: u32,
    reason: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting(u64),
    Ready,
    Running,
    Done(u64),
    Dead(u64),
}

struct Cron {
    schedule: Schedule,
    fields: Fields,
    next: u64,
}

fn now() -> u64 {
    jiff::Timestamp::now().as_millisecond().unsigned_abs()
}

impl Memory {
    /// Takes a new task in.
    pub(super) fn add(&self, fields: Fields, task: Task) -> Result<String, Failure> {
        let (now, mut inside) = (now(), self.inside.lock());
        inside.forget_old(now);
        if inside.is_full() {
            return Err(Failure::TooLarge(format!("a node without Redis keeps at most {MOST} tasks")));
        }
        let own = task.id.is_some();
        let id = task.id.as_ref().map_or_else(|| uuid::Uuid::new_v4().to_string(), |id| id.as_str().to_owned());
        if let When::Cron(schedule) = task.when {
            inside.take_cron(&id);
            // It was looked at before.
            let Some(next) = schedule.next_after(now) else { return Ok(id) };
            inside.due.insert((next, true, id.clone()));
            inside.crons.insert(id.clone(), Cron { schedule, fields, next });
        } else if !inside.is_known(&id, now) {
            let at = match task.when {
                When::At(at) => at,
                When::After(delay) => later(now, delay),
                When::Now | When::Cron(_) => now,
            };
            let record = Record { fields, task, own, phase: Phase::Ready, attempts: 0, reason: None };
            inside.tasks.insert(id.clone(), record);
            inside.queue(&id, at, now);
        }
        drop(inside);
        self.changed.notify_one();
        Ok(id)
    }

    pub(super) fn cancel(&self, id: &TaskId) -> Result<bool, Failure> {
        let (id, now, mut inside) = (id.as_str(), now(), self.inside.lock());
        inside.forget_old(now);
        let had_cron = inside.take_cron(id);
        match inside.tasks.get(id).map(|record| record.phase) {
            Some(Phase::Waiting(_) | Phase::Ready) => {
                inside.forget(id);
                inside.mark_cancelled(id, now);
                Ok(true)
            }
            None if !had_cron && !inside.cancelled.contains(id) => {
                if inside.is_full() {
                    return Err(Failure::TooLarge(format!("a node without Redis keeps at most {MOST} tasks")));
                }
                // What comes later is not run.
                inside.mark_cancelled(id, now);
                Ok(false)
            }
            _ => Ok(had_cron),
        }
    }

    pub(super) fn retry(&self, id: &TaskId) -> bool {
        let (id, now, mut inside) = (id.as_str(), now(), self.inside.lock());
        let Some(Phase::Dead(at)) = inside.tasks.get(id).map(|record| record.phase) else { return false };
        if !inside.dead.remove(&(at, id.to_owned())) {
            return false;
        }
        if let Some(record) = inside.tasks.get_mut(id) {
            (record.attempts, record.reason) = (0, None);
        }
        inside.queue(id, now, now);
        drop(inside);
        self.changed.notify_one();
        true
    }

    pub(super) fn get(&self, id: &TaskId) -> Option<View> {
        let (id, inside) = (id.as_str(), self.inside.lock());
        let task = inside.tasks.get(id);
        let has_ended = task.is_none_or(|task| matches!(task.phase, Phase::Done(_) | Phase::Dead(_)));
        match inside.crons.get(id) {
            Some(cron) if has_ended => Some(cron.view(id)),
            _ => task.map(|task| task.view(id)),
        }
    }

    /// A page, and the cursor behind it; none when the cursor is not one of ours.
    pub(super) fn list(
        &self,
        state: Option<State>,
        limit: usize,
        cursor: Option<&str>,
    ) -> Option<(Vec<View>, Option<String>)> {
        let after = match cursor {
            None => None,
            Some(cursor) => {
                let (section, rest) = cursor.split_once(':')?;
                let (time, id) = rest.split_once(':')?;
                Some((section.parse::<u8>().ok()?, time.parse::<u64>().ok()?, id))
            }
        };
        let inside = self.inside.lock();
        let crons = inside.crons.iter().map(|(id, cron)| ((0, cron.next, &**id), State::Waiting, true));
        let tasks = inside.tasks.iter().map(|(id, task)| {
            let (section, time, state) = match task.phase {
                Phase::Waiting(at) => (0, at, State::Waiting),
                Phase::Ready => (1, 0, State::Waiting),
                Phase::Running => (2, 0, State::Running),
                Phase::Done(at) => (3, at, State::Done),
                Phase::Dead(at) => (4, at, State::Dead),
            };
            ((section, time, &**id), state, false)
        });
        let is_meant = |(place, is, _): &((u8, u64, &str), State, bool)| {
            after.is_none_or(|after| *place > after) && state.is_none_or(|state| state == *is)
        };
        let mut found: Vec<_> = crons.chain(tasks).filter(is_meant).collect();
        found.sort_unstable_by_key(|(place, _, is_cron)| (*place, *is_cron));
        // A cron and a task of one id and time stay together.
        let is_more = found.len() > limit;
        found.truncate(limit);
        let last = found.last().map(|((section, time, id), ..)| format!("{section}:{time}:{id}"));
        let views = found.into_iter().filter_map(|((_, _, id), _, is_cron)| {
            if is_cron {
                inside.crons.get(id).map(|cron| cron.view(id))
            } else {
                inside.tasks.get(id).map(|task| task.view(id))
            }
        });
        Some((views.collect(), last.filter(|_| is_more)))
    }

    /// How many wait, are in hand, are due later, are dead.
    pub(super) fn count(&self) -> [usize; 4] {
        let inside = self.inside.lock();
        let in_hand = inside.tasks.values().filter(|task| task.phase == Phase::Running).count();
        [inside.ready.len(), in_hand, inside.due.len(), inside.dead.len()]
    }

    /// Hands tasks out as they are due.
    pub(super) async fn run(&self, hands: Hands) {
        loop {
            // It is never closed.
            let Ok(permit) = Arc::clone(&hands.free).acquire_owned().await else { return };
            let taken = loop {
                let next = {
                    let mut inside = self.inside.lock();
                    let now = now();
                    inside.move_due(now);
                    if let Some(taken) = inside.take() {
                        break taken;
                    }
                    inside.due.first().map_or(LOOK, |(at, ..)| Duration::from_millis(at.saturating_sub(now)).min(LOOK))
                };
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep(next) => {}
                }
            };
            // There is room for as many as there are permits.
            hands.out.try_send((taken, permit)).ok();
        }
    }

    pub(super) fn finish(&self, ended: &[(Taken, Ending)]) {
        let (now, mut inside) = (now(), self.inside.lock());
        for (taken, ending) in ended {
            let id = &taken.id;
            let Some(record) = inside.tasks.get_mut(id) else { continue };
            match ending {
                Ending::Done(_) => {
                    record.reason = None;
                    let forgotten = now + if record.own { DAY } else { MINUTE };
                    record.phase = Phase::Done(forgotten);
                    inside.ended.insert((forgotten, id.clone()));
                }
                Ending::Dead { reason, .. } => {
                    (record.reason, record.phase) = (Some(reason.clone()), Phase::Dead(now));
                    inside.dead.insert((now, id.clone()));
                    if inside.dead.len() > MOST_DEAD
                        && let Some((died, oldest)) = inside.dead.pop_first()
                    {
                        // What has an id of its own is still not run twice.
                        inside.ended.insert((died + DAY, oldest));
                    }
                }
                Ending::Again { reason, after } => {
                    record.reason = Some(reason.clone());
                    inside.queue(id, now + after.as_millis() as u64, now);
                }
            }
        }
        drop(inside);
        self.changed.notify_one();
    }
}

impl Inside {
    fn is_full(&self) -> bool {
        self.tasks.len() + self.cancelled.len() + self.crons.len() >= MOST
    }

    /// Whether a second one with this id is not to be run; a task that has died long ago makes room.
    fn is_known(&mut self, id: &str, now: u64) -> bool {
        match self.tasks.get(id).map(|record| record.phase) {
            Some(Phase::Dead(at)) if at + DAY <= now => {
                self.forget(id);
                false
            }
            Some(_) => true,
            None => self.cancelled.contains(id),
        }
    }

    fn mark_cancelled(&mut self, id: &str, now: u64) {
        self.cancelled.insert(id.to_owned());
        self.ended.insert((now + DAY, id.to_owned()));
    }

    /// Puts a task where it waits.
    fn queue(&mut self, id: &str, at: u64, now: u64) {
        let Some(record) = self.tasks.get_mut(id) else { return };
        if at > now {
            record.phase = Phase::Waiting(at);
            self.due.insert((at, false, id.to_owned()));
        } else {
            record.phase = Phase::Ready;
            self.ready.push_back(id.to_owned());
        }
    }

    fn take_cron(&mut self, id: &str) -> bool {
        let Some(cron) = self.crons.remove(id) else { return false };
        self.due.remove(&(cron.next, true, id.to_owned()));
        true
    }

    fn forget(&mut self, id: &str) {
        self.cancelled.remove(id);
        match self.tasks.remove(id).map(|record| record.phase) {
            Some(Phase::Waiting(at)) => drop(self.due.remove(&(at, false, id.to_owned()))),
            Some(Phase::Dead(at)) => drop(self.dead.remove(&(at, id.to_owned()))),
            _ => {}
        }
    }

    fn forget_old(&mut self, now: u64) {
        while self.ended.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, id)) = self.ended.pop_first() {
                self.forget(&id);
            }
        }
    }

    fn move_due(&mut self, now: u64) {
        self.forget_old(now);
        while self.due.first().is_some_and(|(at, ..)| *at <= now) {
            let Some((at, is_cron, id)) = self.due.pop_first() else { return };
            if !is_cron {
                self.queue(&id, at, now);
                continue;
            }
            let Some(cron) = self.crons.get_mut(&id) else { continue };
            let is_missed = cron.schedule.next_after(at).is_none_or(|following| following <= now) || now - at > LATE;
            let fields = cron.fields.of_tick(at);
            match cron.schedule.next_after(now) {
                Some(next) => {
                    cron.next = next;
                    self.due.insert((next, true, id.clone()));
                }
                None => drop(self.crons.remove(&id)),
            }
            let tick = format!("{id}@{at}");
            if let (Ok(task), false) = (Task::read(&fields, None), is_missed || self.tasks.contains_key(&tick)) {
                let record = Record { fields, task, own: false, phase: Phase::Ready, attempts: 0, reason: None };
                self.tasks.insert(tick.clone(), record);
                self.ready.push_back(tick);
            }
        }
    }

    fn take(&mut self) -> Option<Taken> {
        loop {
            let id = self.ready.pop_front()?;
            // What was cancelled is not there any more.
            let Some(record) = self.tasks.get_mut(&id).filter(|record| record.phase == Phase::Ready) else { continue };
            record.phase = Phase::Running;
            record.attempts += 1;
            return Some(Taken {
                attempt: record.attempts,
                fields: record.fields.clone(),
                task: record.task.clone(),
                has_record: true,
                entry: id.clone(),
                id,
            });
        }
    }
}

impl Record {
    fn view(&self, id: &str) -> View {
        let (state, next_at) = match self.phase {
            Phase::Waiting(at) => (State::Waiting, Some(at)),
            Phase::Ready => (State::Waiting, None),
            Phase::Running => (State::Running, None),
            Phase::Done(_) => (State::Done, None),
            Phase::Dead(_) => (State::Dead, None),
        };
        let (reason, task) = (self.reason.clone(), self.fields.shown());
        View { id: id.to_owned(), state, attempts: self.attempts, next_at, reason, task }
    }
}

impl Cron {
    fn view(&self, id: &str) -> View {
        let (next_at, task) = (Some(self.next), self.fields.shown());
        View { id: id.to_owned(), state: State::Waiting, attempts: 0, next_at, reason: None, task }
    }
}
