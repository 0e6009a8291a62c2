//! The door of queued tasks: takes them off the queue, carries them out side by side, and says what came of them.
//!
//! A task is tried again where what it did is not known to be done, and when the application does not take what it is
//! told; everything else that goes wrong is final. What came of tasks is written in lots, by one task, and said again until
//! it is written: as long as it is not, its hand is not free.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::cluster::Hands;
use crate::command::{Command, Reply};
use crate::gateway::Gateway;
use crate::metrics::Attempt;
use crate::outcome::{Outcome, Problem, line};
use crate::task::{Ending, Taken, Work, wait_after};
use crate::trace::otlp::SpanKind;
use crate::trace::{Context, Span};
use crate::webhook::{ANSWER, Caller};

/// What is not written is said again this often.
const SAY_AGAIN: Duration = Duration::from_millis(200);

/// A task that has ended, and the hand that it had.
type Ended = (Taken, Ending, OwnedSemaphorePermit);

/// Carries out queued tasks.
pub struct Runner {
    gateway: Arc<Gateway>,
    caller: Option<Arc<Caller>>,
}

/// What the application is told.
#[derive(Serialize)]
struct Told<'a> {
    id: &'a str,
    event: &'static str,
    node: &'a str,
    at: u64,
    payload: &'a RawValue,
    attempt: u32,
}

impl Runner {
    /// Tasks are carried out by this gateway, or the application is called.
    pub fn new(gateway: Arc<Gateway>, caller: Option<Arc<Caller>>) -> Arc<Self> {
        Arc::new(Self { gateway, caller })
    }

    /// Takes tasks until `stop`, finishes those in hand, and leaves the queue.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (hands, mut taken) = Hands::new();
        let (ended, endings) = mpsc::channel::<Ended>(Hands::ALL);
        let queue = self.gateway.queue();
        let taking = queue.run(hands, stop);
        let working = async {
            let mut work = JoinSet::new();
            loop {
                let next = tokio::select! {
                    next = taken.recv() => next,
                    Some(_) = work.join_next(), if !work.is_empty() => continue,
                };
                let Some((task, permit)) = next else { break };
                let (runner, ended) = (Arc::clone(&self), ended.clone());
                work.spawn(async move {
                    let attempt = AssertUnwindSafe(Box::pin(runner.carry_out(&task))).catch_unwind();
                    let ending = attempt.await.unwrap_or_else(|_| dead(Problem::internal()));
                    // There is room for as many as there are hands.
                    ended.send((task, ending, permit)).await.ok();
                });
            }
            while work.join_next().await.is_some() {}
            drop(ended);
        };
        let finishing = async { tokio::join!(taking, working, self.write(endings)) };
        tokio::select! {
            _ = finishing => {}
            () = queue.tend() => {}
        }
        queue.leave().await;
    }

    /// Writes what came of tasks.
    async fn write(&self, mut endings: mpsc::Receiver<Ended>) {
        loop {
            let mut lot = Vec::new();
            if endings.recv_many(&mut lot, Hands::ALL).await == 0 {
                return;
            }
            let (ended, permits): (Vec<_>, Vec<_>) =
                lot.into_iter().map(|(taken, ending, permit)| ((taken, ending), permit)).unzip();
            while let Err(error) = Box::pin(self.gateway.queue().finish(&ended)).await {
                tracing::debug!(%error, "what came of tasks is not written yet");
                sleep(SAY_AGAIN).await;
            }
            drop(permits);
        }
    }

    /// One attempt.
    async fn carry_out(&self, taken: &Taken) -> Ending {
        let started = Instant::now();
        let mut span = self.begins(taken);
        let trace = span.as_ref().map(Span::context);
        let ending = if taken.attempt > taken.task.max_attempts {
            dead(Problem::from(crate::gateway::Failure::Unreachable("the nodes that had it in hand died".into())))
        } else {
            match &taken.task.work {
                Work::Command(command) => self.command(taken, command, trace).await,
                Work::Webhook(payload) => self.webhook(taken, payload, trace).await,
            }
        };
        let outcome = match &ending {
            Ending::Done(_) => "done",
            Ending::Dead { reason, .. } => {
                tracing::warn!(task = taken.id, attempt = taken.attempt, reason, "a task is given up");
                "dead"
            }
            Ending::Again { reason, .. } => {
                tracing::debug!(task = taken.id, attempt = taken.attempt, reason, "a task is tried again later");
                "again"
            }
        };
        // The reason may name a client, and stays out.
        if let Some(span) = span.as_mut().filter(|_| outcome != "done") {
            span.fail(outcome);
        }
        let metrics = self.gateway.metrics();
        metrics.task_attempts.get_or_create(&Attempt { outcome }).inc();
        metrics.task_seconds.observe(started.elapsed().as_secs_f64());
        ending
    }

    /// The span of an attempt; it does not say the task's id, which may be somebody's.
    fn begins(&self, taken: &Taken) -> Option<Span> {
        let op = match &taken.task.work {
            Work::Command(command) => command.name(),
            Work::Webhook(_) => "webhook",
        };
        let tracer = self.gateway.tracer();
        let mut span = tracer.begin(SpanKind::Consumer, format_args!("task {op}"), taken.task.trace.as_ref())?;
        span.set("messaging.system", "moongate");
        span.set("messaging.operation.name", "task");
        span.set("messaging.operation.type", "process");
        span.set("moongate.op", op);
        span.set("moongate.attempt", u64::from(taken.attempt));
        Some(span)
    }

    async fn command(&self, taken: &Taken, command: &Command, trace: Option<&Context>) -> Ending {
        let mut command = command.clone();
        // Of what is said of one id, what stands later in the stream counts, whichever node does it first.
        match &mut command {
            Command::AddTask(add) => add.entry = Some(taken.entry.clone()),
            Command::CancelTask(cancel) => cancel.entry = Some(taken.entry.clone()),
            _ => {}
        }
        match Outcome::of(&self.gateway, command, trace).await {
            Ok(outcome) => match outcome.unsure() {
                Some(problem) => failed(taken, problem.detail.clone(), line(&outcome)),
                None => Ending::Done(line(&outcome)),
            },
            Err(problem) if problem.is_unsure() => failed(taken, problem.detail.clone(), line(&problem)),
            Err(problem) => dead(problem),
        }
    }

    async fn webhook(&self, taken: &Taken, payload: &RawValue, trace: Option<&Context>) -> Ending {
        let Some(caller) = &self.caller else {
            let detail = "needs MOONGATE_WEBHOOK_URL to be set";
            return dead(Problem::from(crate::json::Invalid::field("webhook", detail)));
        };
        let told = Told {
            id: &taken.id,
            event: "task",
            node: &self.gateway.hub().events().origin().node,
            at: jiff::Timestamp::now().as_millisecond().unsigned_abs(),
            payload,
            attempt: taken.attempt,
        };
        match caller.call(told.event, line(&told), ANSWER, trace).await {
            Ok(accepted) => {
                self.gateway.run_answered(&accepted.commands, accepted.trace.as_ref()).await;
                Ending::Done(line(&Outcome::One { result: Reply::DONE }))
            }
            Err(refused) => {
                let problem = Problem::from(crate::gateway::Failure::Unreachable(refused.to_string().into()));
                failed(taken, problem.detail.clone(), line(&problem))
            }
        }
    }
}

/// It may go better another time, if there is one.
fn failed(taken: &Taken, reason: String, answer: Bytes) -> Ending {
    if taken.attempt < taken.task.max_attempts {
        Ending::Again { reason, after: wait_after(taken.attempt) }
    } else {
        Ending::Dead { reason, answer }
    }
}

fn dead(problem: Problem) -> Ending {
    let answer = line(&problem);
    Ending::Dead { reason: problem.detail, answer }
}
