//! Queued tasks: in Redis among other nodes; a node that is alone keeps them in memory, and loses them when it ends.

mod memory;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Failure, Gateway};
use crate::cluster::{Cluster, Hands, Tasks, Unavailable};
use crate::command::{AddTask, Added, Command, Limit, ListTasks, Reply};
use crate::json::Invalid;
use crate::metrics::Metrics;
use crate::task::{Ending, Fields, Taken, Task, When, Work};
use crate::trace::Context;
use memory::Memory;

/// The tasks of a page where that is not said.
const PAGE: Limit = Limit(100);

/// What is counted is looked up this often.
const FACTS: Duration = Duration::from_secs(5);

/// Where tasks are queued.
pub(crate) struct Queue {
    place: Place,
    /// Whether the application can be told anything.
    has_webhook: bool,
    metrics: Arc<Metrics>,
}

enum Place {
    Redis(Arc<Tasks>),
    Memory(Box<Memory>),
}

impl Queue {
    pub(super) fn new(cluster: Option<&Cluster>, has_webhook: bool, metrics: &Arc<Metrics>) -> Self {
        let place = cluster.map_or_else(|| Place::Memory(Box::default()), |cluster| Place::Redis(cluster.tasks()));
        Self { place, has_webhook, metrics: Arc::clone(metrics) }
    }

    async fn add(&self, mut add: AddTask, trace: Option<&Context>) -> Result<String, Failure> {
        let entry = add.entry.take();
        let mut fields = Fields::from(add);
        if let Some(trace) = trace {
            fields.carry(trace);
        }
        let task = Task::read(&fields, None)?;
        if matches!(task.work, Work::Webhook(_)) && !self.has_webhook {
            return Err(Invalid::field("webhook", "needs MOONGATE_WEBHOOK_URL to be set").into());
        }
        if let When::Cron(schedule) = &task.when
            && schedule.next_after(jiff::Timestamp::now().as_millisecond().unsigned_abs()).is_none()
        {
            return Err(Invalid::field("cron", "says a time that never comes again").into());
        }
        match &self.place {
            Place::Redis(tasks) => Ok(tasks.add(fields, &task, entry.as_deref()).await?),
            Place::Memory(memory) => memory.add(fields, task),
        }
    }

    async fn list(&self, list: ListTasks) -> Result<Reply, Failure> {
        let (limit, cursor) = (list.limit.unwrap_or(PAGE).0, list.cursor.as_deref());
        let page = match &self.place {
            Place::Redis(tasks) => tasks.list(list.state, limit, cursor).await?,
            Place::Memory(memory) => memory.list(list.state, limit, cursor),
        };
        let (items, cursor) = page.ok_or_else(|| Invalid::field("cursor", "is not from an answer of this query"))?;
        Ok(Reply::Page { items: Box::new(Reply::Tasks(items)), cursor })
    }

    /// Hands tasks out as they are due, until `stop`.
    pub(crate) async fn run(&self, hands: Hands, stop: CancellationToken) {
        match &self.place {
            Place::Redis(tasks) => tasks.run(hands, stop).await,
            Place::Memory(memory) => drop(stop.run_until_cancelled(memory.run(hands)).await),
        }
    }

    /// Keeps what is in hand from being taken over, and counts, as long as it is asked to.
    pub(crate) async fn tend(&self) {
        match &self.place {
            Place::Redis(tasks) => tasks.tend().await,
            Place::Memory(memory) => loop {
                let counted = memory.count();
                let metrics = &self.metrics;
                let gauges =
                    [&metrics.tasks_waiting, &metrics.tasks_in_hand, &metrics.tasks_delayed, &metrics.tasks_dead];
                for (gauge, count) in gauges.into_iter().zip(counted) {
                    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
                }
                sleep(FACTS).await;
            },
        }
    }

    /// Writes what came of tasks; what is not written is to be said again.
    pub(crate) async fn finish(&self, ended: &[(Taken, Ending)]) -> Result<(), Unavailable> {
        match &self.place {
            Place::Redis(tasks) => tasks.finish(ended).await,
            Place::Memory(memory) => {
                memory.finish(ended);
                let dead = ended.iter().filter(|(_, ending)| matches!(ending, Ending::Dead { .. })).count();
                self.metrics.dead_letters.inc_by(dead as u64);
                Ok(())
            }
        }
    }

    /// Nothing is taken any more.
    pub(crate) async fn leave(&self) {
        if let Place::Redis(tasks) = &self.place {
            tasks.leave().await;
        }
    }
}

impl Gateway {
    /// The queue of tasks.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// A command about tasks; as it was, if it is none.
    pub(super) async fn about_tasks(
        &self,
        command: Command,
        trace: Option<&Context>,
    ) -> Result<Result<Reply, Failure>, Box<Command>> {
        let queue = &self.queue;
        let flag = |done: Result<bool, Unavailable>| Ok(Reply::Flag(done?));
        Ok(match command {
            Command::AddTask(c) => queue.add(c, trace).await.map(|id| Reply::Added(Added { id })),
            Command::CancelTask(c) => match &queue.place {
                Place::Redis(tasks) => flag(tasks.cancel(&c.id, c.entry.as_deref()).await),
                Place::Memory(memory) => memory.cancel(&c.id).map(Reply::Flag),
            },
            Command::RetryTask(c) => match &queue.place {
                Place::Redis(tasks) => flag(tasks.retry(&c.id).await),
                Place::Memory(memory) => flag(Ok(memory.retry(&c.id))),
            },
            Command::GetTask(c) => match &queue.place {
                Place::Redis(tasks) => tasks.get(&c.id).await.map_err(Failure::from),
                Place::Memory(memory) => Ok(memory.get(&c.id)),
            }
            .map(|view| Reply::Task(view.map(Box::new))),
            Command::ListTasks(c) => queue.list(c).await,
            other => return Err(Box::new(other)),
        })
    }
}
