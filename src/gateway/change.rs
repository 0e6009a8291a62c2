//! Changes of one client, and batches: neighbouring changes of one client are one step on the shard that holds it.

use std::borrow::Cow;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::part::{Job, Part};
use super::{ASK_TIME, Failure, Gateway, Limits};
use crate::access::Grant;
use crate::command::{Batch, Command, MAX_BATCH, ParseError, Reply, Value};
use crate::hub::{Shard, Single};
use crate::id::{ClientId, Group, Uid};
use crate::json::Invalid;
use crate::session::Session;
use crate::trace::Context;

/// What a whole batch may take.
const BATCH_TIME: Duration = Duration::from_secs(30);

/// A change of one client.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Change {
    Bind { uid: Uid, single: bool },
    Unbind { only: Option<Uid> },
    Join(Vec<Group>),
    Leave(Vec<Group>),
    SetSession(Session),
    UpdateSession(Session),
}

impl Change {
    /// What a token gives.
    pub(super) fn granted(grant: Grant) -> Vec<Self> {
        let Grant { uid, groups, session } = grant;
        let bind = uid.map(|uid| Self::Bind { uid, single: false });
        let join = groups.map(|groups| Self::Join(groups.0));
        [session.map(Self::SetSession), bind, join].into_iter().flatten().collect()
    }

    /// A command as a change of one client; as it was, if it is none.
    #[allow(clippy::result_large_err)] // not an error: the command goes on
    pub(super) fn of(command: Command) -> Result<(ClientId, Self), Command> {
        Ok(match command {
            Command::BindUid(c) => (c.client_id, Self::Bind { uid: c.uid, single: c.single }),
            Command::UnbindUid(c) => (c.client_id, Self::Unbind { only: c.uid }),
            Command::SetSession(c) => (c.client_id, Self::SetSession(c.session)),
            Command::UpdateSession(c) => (c.client_id, Self::UpdateSession(c.session)),
            Command::JoinGroup(c) => match (c.client_id, &c.uid) {
                (Some(client_id), None) => (client_id, Self::Join(c.group.into_items())),
                _ => return Err(Command::JoinGroup(c)),
            },
            Command::LeaveGroup(c) => match (c.client_id, &c.uid) {
                (Some(client_id), None) => (client_id, Self::Leave(c.group.into_items())),
                _ => return Err(Command::LeaveGroup(c)),
            },
            other => return Err(other),
        })
    }

    /// Whether it has a client be the only one of a uid.
    pub(super) fn is_single(&self) -> bool {
        matches!(self, Self::Bind { single: true, .. })
    }

    /// Whether it can be in one step with those before it: a uid that is to be single is taken and cleared of others
    /// before the next one is.
    pub(super) fn follows(&self, before: &[Self]) -> bool {
        let binds = matches!(self, Self::Bind { .. } | Self::Unbind { .. });
        !binds || !before.iter().any(Self::is_single)
    }

    pub(super) fn apply(&self, shard: &mut Shard, id: ClientId, limits: Limits) -> Result<(), Failure> {
        let found = match self {
            Self::Bind { uid, single } => shard.bind(id, uid, *single),
            Self::Unbind { only } => shard.unbind(id, only.as_ref()),
            Self::Join(groups) => shard.join(id, groups, limits.groups)?,
            Self::Leave(groups) => shard.leave(id, groups),
            Self::SetSession(session) => {
                let changed = shard.change_session(id, |_| limits.check(session).map(|()| Some(session.clone())));
                changed.transpose()?.is_some()
            }
            Self::UpdateSession(update) => {
                // Before the merge, whose work grows with it.
                limits.check(update)?;
                let changed = shard.change_session(id, |stored| {
                    if stored.is_some_and(Session::is_opaque) {
                        return Err(
                            Invalid::field("session", "holds PHP objects: setSession alone can replace it").into()
                        );
                    }
                    let merged = stored.cloned().unwrap_or_default().merge(update);
                    limits.check(&merged).map(|()| Some(merged))
                });
                changed.transpose()?.is_some()
            }
        };
        if found { Ok(()) } else { Err(Failure::ClientNotFound(id)) }
    }
}

impl Gateway {
    /// Has a client be the only one of its uid. Boxed, as a job that finishes waits for others to finish.
    pub(super) fn replace_others<'a>(
        &'a self,
        client_id: ClientId,
        uid: &'a Uid,
        single: Single,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            // Among other nodes Redis has said who they are when it took this one.
            let Single { order, others } = match self.cluster {
                // It has not: the client has gone or has another uid by now, or all was written anew after a loss of data.
                Some(_) if single.order == 0 => {
                    let named = uid.clone();
                    let has_it =
                        move |shard: &mut Shard| shard.view(client_id).is_some_and(|client| client.uid == Some(&named));
                    if self.hub.begin_at_client(client_id, has_it).await?.one().await? {
                        return Err(Failure::RedisUnavailable("Redis lost data in the middle".to_owned()));
                    }
                    return Ok(());
                }
                Some(_) => single,
                None => Single { order: u64::MAX, others: self.clients_of_uid(uid).await? },
            };
            let mut replaced = FuturesUnordered::new();
            for other in others.into_iter().filter(|other| *other != client_id) {
                let job = Job::from(Part::Replace { client_id: other, uid: uid.clone(), order });
                replaced.push(self.at_its_node(other, job, deadline));
            }
            let mut result = Ok(());
            while let Some(done) = replaced.next().await {
                result = result.and(done.map(drop));
            }
            result
        })
    }

    /// Runs commands in order; one result for each.
    pub async fn batch(
        &self,
        batch: Batch,
        trace: Option<&Context>,
    ) -> Result<Vec<Result<Reply, BatchFailure>>, Failure> {
        if batch.commands.len() > MAX_BATCH {
            return Err(Invalid::field("commands", format_args!("takes at most {MAX_BATCH} commands")).into());
        }
        let deadline = Instant::now() + BATCH_TIME;
        let mut results = Vec::with_capacity(batch.commands.len());
        let mut step = None;
        for value in &batch.commands {
            let command = match Command::parse_object(value.0.get()) {
                Ok(command) => (command.name(), Change::of(command)),
                Err(error) => {
                    self.finish_step(&mut step, deadline, &mut results).await;
                    results.push(Err(error.into()));
                    continue;
                }
            };
            match command {
                (op, Ok((client, change))) => {
                    if step.as_ref().is_some_and(|step: &Step| step.client != client || !change.follows(&step.changes))
                    {
                        self.finish_step(&mut step, deadline, &mut results).await;
                    }
                    let step = step.get_or_insert_with(|| Step { client, ops: Vec::new(), changes: Vec::new() });
                    step.ops.push(op);
                    step.changes.push(change);
                }
                (_, Err(command)) => {
                    self.finish_step(&mut step, deadline, &mut results).await;
                    let result = in_time(deadline, self.execute(command, trace)).await;
                    results.push(result.unwrap_or(Err(OUT_OF_TIME)).map_err(BatchFailure::Failed));
                }
            }
        }
        self.finish_step(&mut step, deadline, &mut results).await;
        self.count("batch", &Ok(()));
        Ok(results)
    }

    /// Runs the commands of an answer: there is nobody who waits for what comes of them.
    pub(crate) async fn run_answered(&self, commands: &[Value], trace: Option<&Context>) {
        if commands.is_empty() {
            return;
        }
        match Box::pin(self.batch(Batch { commands: commands.to_vec() }, trace)).await {
            Ok(results) => {
                for (place, failure) in
                    results.iter().enumerate().filter_map(|(place, result)| Some((place, result.as_ref().err()?)))
                {
                    tracing::warn!(place, %failure, "a command that the webhook has answered was not carried out");
                }
            }
            Err(failure) => tracing::warn!(%failure, "the commands that the webhook has answered were not carried out"),
        }
    }

    async fn finish_step(
        &self,
        step: &mut Option<Step>,
        deadline: Instant,
        results: &mut Vec<Result<Reply, BatchFailure>>,
    ) {
        let Some(Step { client, ops, changes }) = step.take() else { return };
        let done = in_time(deadline, self.change(client, changes)).await;
        let done = done.unwrap_or_else(|| vec![Err(OUT_OF_TIME); ops.len()]);
        for (op, result) in ops.into_iter().zip(done) {
            self.count(op, &result);
            results.push(result.map(|()| Reply::DONE).map_err(BatchFailure::Failed));
        }
    }

    /// Changes one client in one step: no message comes between. One result for each change.
    pub(super) async fn change(&self, client_id: ClientId, changes: Vec<Change>) -> Vec<Result<(), Failure>> {
        let count = changes.len();
        let job = Job::from(Part::Change { client_id, changes });
        match self.at_its_node(client_id, job, Instant::now() + ASK_TIME).await {
            // No such node: no such client.
            Ok(None) => vec![Err(Failure::ClientNotFound(client_id)); count],
            Ok(Some(done)) => done.changes,
            Err(failure) => vec![Err(failure); count],
        }
    }
}

/// Does not even begin when the time is over.
async fn in_time<T>(deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
    if Instant::now() >= deadline {
        return None;
    }
    timeout_at(deadline, work).await.ok()
}

/// Changes of one client in a batch that are waiting to be one step.
struct Step {
    client: ClientId,
    /// Their names, to be counted under.
    ops: Vec<&'static str>,
    changes: Vec<Change>,
}

const OUT_OF_TIME: Failure = Failure::Unreachable(Cow::Borrowed("the batch ran out of time"));

/// Why one command of a batch was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchFailure {
    /// It could not be read.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// It was not carried out.
    #[error(transparent)]
    Failed(#[from] Failure),
}
