//! What one node does of a command: its own clients' part.
//!
//! A [`Job`] is put into the shards' inboxes in order ([`Gateway::begin`]), and what it returns says when it is done
//! ([`Gateway::finish`]). The node that has no others does just this; among others, jobs travel in envelopes, and each
//! node that hears one does its part.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::change::Change;
use super::{ANSWER_TIME, Failure, Gateway};
use crate::cluster::{Cluster, MAX_PART, MAX_PAYLOAD, Unavailable};
use crate::command::{self, Command};
use crate::hub::{Begun, Delivering, Except, Receipt, Shard, Single, Stopped, Target, TooManyGroups, View};
use crate::id::{ClientId, Group, Uid};
use crate::json::Invalid;
use crate::message::{Close, Message};
use crate::trace::otlp::SpanKind;
use crate::trace::{Context, Span};

/// What is to be done, with the message that belongs to it.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) part: Part,
    /// What is sent, or said before a close.
    pub(super) message: Option<Message>,
}

/// What another node says is no job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAJob {
    /// A newer node's word.
    #[error("{0}")]
    Unknown(String),
    /// Nobody's.
    #[error(transparent)]
    Damaged(#[from] Invalid),
}

/// What is to be done with a node's own clients.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Part {
    Send {
        to: Target,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        except: Option<Arc<Except>>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        binary: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        confirm: bool,
        /// Where it was sent, if that is sampled.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trace: Option<Context>,
    },
    Close {
        client_id: ClientId,
        #[serde(flatten, deserialize_with = "command::read_close")]
        close: Close,
        /// Of the message before it, when there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        binary: Option<bool>,
    },
    Destroy {
        client_id: ClientId,
    },
    CloseUids {
        uids: Vec<Uid>,
        #[serde(flatten, deserialize_with = "command::read_close")]
        close: Close,
        /// Of the message before it, when there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        binary: Option<bool>,
    },
    /// Closes a client with 4001 if it has the uid (still), and was not bound as the single one later.
    Replace {
        client_id: ClientId,
        uid: Uid,
        order: u64,
    },
    Change {
        client_id: ClientId,
        changes: Vec<Change>,
    },
    JoinUid {
        uid: Uid,
        groups: Vec<Group>,
    },
    LeaveUid {
        uid: Uid,
        groups: Vec<Group>,
    },
    Ungroup {
        group: Group,
    },
}

/// What came of a node's part.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Done {
    /// Places in the target's list that have clients here.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) held: BTreeSet<usize>,
    /// Sockets that took the message.
    #[serde(default)]
    pub(super) clients: u64,
    /// Of each change of a client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) changes: Vec<Result<(), Failure>>,
}

impl Part {
    /// The one client that it is about.
    pub(super) fn client_id(&self) -> Option<ClientId> {
        match self {
            Self::Change { client_id, .. }
            | Self::Close { client_id, .. }
            | Self::Destroy { client_id }
            | Self::Replace { client_id, .. } => Some(*client_id),
            _ => None,
        }
    }
}

impl Job {
    /// The clients, on whatever node, that have the uids or the group that this is about.
    pub(super) async fn concerned(&self, cluster: &Cluster) -> Result<Vec<ClientId>, Unavailable> {
        let sets = match &self.part {
            Part::CloseUids { uids, .. } => cluster.clients_of_uids(uids).await?,
            Part::JoinUid { uid, .. } | Part::LeaveUid { uid, .. } => {
                cluster.clients_of_uids(std::slice::from_ref(uid)).await?
            }
            Part::Ungroup { group } => cluster.members(std::slice::from_ref(group)).await?,
            _ => Vec::new(),
        };
        Ok(sets.into_iter().flatten().collect())
    }

    /// A command as a job; as it was, if it is a query.
    #[allow(clippy::result_large_err)] // not an error: the query goes on
    pub(super) fn of(command: Command) -> Result<Result<Self, Failure>, Command> {
        let command = match Change::of(command) {
            Ok((client_id, change)) => {
                return Ok(Ok(Self { part: Part::Change { client_id, changes: vec![change] }, message: None }));
            }
            Err(command) => command,
        };
        Ok(match command {
            Command::SendToAll(c) => command::payload(c.message, c.binary).map(|message| {
                let to = c.client_ids.map_or(Target::All, |ids| Target::Clients(ids.0.into()));
                Self::send(to, except(c.exclude, c.exclude_uid), message, c.confirm)
            }),
            Command::SendToClient(c) => command::payload(c.message, c.binary)
                .map(|message| Self::send(Target::Clients([c.client_id].into()), None, message, c.confirm)),
            Command::SendToUid(c) => command::payload(c.message, c.binary)
                .map(|message| Self::send(Target::Uids(c.uid.into_items().into()), None, message, c.confirm)),
            Command::SendToGroup(c) => command::payload(c.message, c.binary).map(|message| {
                let to = Target::Groups(c.group.into_items().into());
                Self::send(to, except(c.exclude, c.exclude_uid), message, c.confirm)
            }),
            Command::CloseClient(c) => command::optional_payload(c.message, c.binary).map(|message| {
                let (close, binary) = (command::close(c.code, c.reason), message.as_ref().map(Message::is_binary));
                Self { part: Part::Close { client_id: c.client_id, close, binary }, message }
            }),
            Command::CloseUid(c) => command::optional_payload(c.message, c.binary).map(|message| {
                let (close, binary) = (command::close(c.code, c.reason), message.as_ref().map(Message::is_binary));
                Self { part: Part::CloseUids { uids: c.uid.into_items(), close, binary }, message }
            }),
            Command::DestroyClient(c) => Ok(Part::Destroy { client_id: c.client_id }.into()),
            Command::JoinGroup(c) => {
                let uid = command::uid_alone(c.client_id, c.uid);
                uid.map(|uid| Part::JoinUid { uid, groups: c.group.into_items() }.into())
            }
            Command::LeaveGroup(c) => {
                let uid = command::uid_alone(c.client_id, c.uid);
                uid.map(|uid| Part::LeaveUid { uid, groups: c.group.into_items() }.into())
            }
            Command::Ungroup(c) => Ok(Part::Ungroup { group: c.group }.into()),
            Command::Batch(_) => Err(Invalid::field("op", "a batch cannot stand in a batch")),
            query => return Err(query),
        }
        .map_err(Failure::from))
    }

    /// The uid that it has a client be the only one of.
    pub(super) fn single_uid(&self) -> Option<&Uid> {
        let Part::Change { changes, .. } = &self.part else { return None };
        changes.iter().find_map(|change| match change {
            Change::Bind { uid, single: true } => Some(uid),
            _ => None,
        })
    }

    /// Takes a further change of the same client into the same step; gives it back if it is none.
    #[allow(clippy::result_large_err)] // not an error: the job goes on
    pub(super) fn join(&mut self, next: Self) -> Result<(), Self> {
        match (&mut self.part, next.part) {
            (Part::Change { client_id, changes }, Part::Change { client_id: same, changes: more })
                if *client_id == same && more.iter().all(|change| change.follows(changes)) =>
            {
                changes.extend(more);
                Ok(())
            }
            (_, part) => Err(Self { part, message: next.message }),
        }
    }

    pub(super) fn send(to: Target, except: Option<Arc<Except>>, message: Message, confirm: bool) -> Self {
        let binary = message.is_binary();
        Self { part: Part::Send { to, except, binary, confirm, trace: None }, message: Some(message) }
    }

    /// The same, as a step of a trace, if there is one and it is a send.
    pub(super) fn of_trace(mut self, trace: Option<&Context>) -> Self {
        if let Part::Send { trace: place, .. } = &mut self.part {
            *place = trace.cloned();
        }
        self
    }

    /// The job as it is said to other nodes: its part in JSON, and the bytes of its message; neither larger than they take.
    pub(super) fn written(&self) -> Result<(Box<RawValue>, Bytes), Failure> {
        // Our own structs of strings and numbers: this cannot fail.
        let part = serde_json::value::to_raw_value(&self.part).unwrap_or_default();
        if part.get().len() > MAX_PART {
            return Err(Failure::TooLarge(format!("without its message, a command takes at most {MAX_PART} bytes")));
        }
        Ok((part, self.payload()?))
    }

    /// The bytes of its message.
    pub(super) fn payload(&self) -> Result<Bytes, Failure> {
        let payload = self.message.as_ref().map(Message::payload).unwrap_or_default();
        if payload.len() > MAX_PAYLOAD {
            return Err(Failure::TooLarge(format!("message: takes at most {MAX_PAYLOAD} bytes")));
        }
        Ok(payload)
    }

    /// A job as it was heard: its part in JSON, and the bytes of its message.
    pub(super) fn read(part: &str, message: &[u8]) -> Result<Self, NotAJob> {
        let part: Part = serde_json::from_str(part).map_err(|error| {
            let words = crate::json::words(&error);
            // serde's own words: it has no other way to tell.
            if words.starts_with("unknown variant") { NotAJob::Unknown(words) } else { Invalid::request(words).into() }
        })?;
        let as_message = |binary: bool| -> Result<Message, Invalid> {
            if binary {
                return Ok(Message::binary(message));
            }
            let text = std::str::from_utf8(message).map_err(|_| Invalid::request("a text message is not UTF-8"))?;
            Ok(Message::text(text))
        };
        let message = match &part {
            Part::Send { binary, .. } => Some(as_message(*binary)?),
            Part::Close { binary, .. } | Part::CloseUids { binary, .. } => binary.map(as_message).transpose()?,
            _ => None,
        };
        Ok(Self { part, message })
    }
}

impl From<Part> for Job {
    fn from(part: Part) -> Self {
        Self { part, message: None }
    }
}

fn except(clients: Option<command::List<ClientId>>, uids: Option<command::List<Uid>>) -> Option<Arc<Except>> {
    let except = Except {
        clients: clients.map(|list| list.0).unwrap_or_default(),
        uids: uids.map(|list| list.0).unwrap_or_default(),
    };
    (!except.clients.is_empty() || !except.uids.is_empty()).then(|| Arc::new(except))
}

/// A job that is in the shards' inboxes.
pub(super) enum Started {
    Delivering(Delivering, Option<Span>),
    /// Whether the target is here.
    Closing(Begun<(bool, Receipt)>),
    /// When it is known whether the client is the later one.
    Replacing {
        client_id: ClientId,
        uid: Uid,
        order: u64,
        begun: Begun<Receipt>,
    },
    /// Every shard's part of it.
    Parts(Begun<(Result<(), TooManyGroups>, Receipt)>),
    Changing {
        client_id: ClientId,
        /// Place and uid of the change that has the client be the only one of it.
        single: Option<(usize, Uid)>,
        begun: Begun<(Vec<Result<(), Failure>>, Receipt)>,
    },
}

impl Gateway {
    /// Puts a job into the shards' inboxes; waits only for room.
    pub(super) async fn begin(&self, job: Job) -> Result<Started, Stopped> {
        let Job { part, message } = job;
        Ok(match part {
            Part::Send { to, except, confirm, trace, .. } => {
                let message = message.unwrap_or_else(|| Message::text(""));
                let span = trace.and_then(|trace| self.delivers(&to, &trace));
                // It says how many took it.
                let confirm = confirm || span.is_some();
                Started::Delivering(self.hub.begin_delivery(to, except, message, confirm).await?, span)
            }
            Part::Close { client_id, close, .. } => Started::Closing(
                self.hub
                    .begin_at_client(client_id, move |shard| {
                        (shard.close(client_id, message.as_ref(), &close), shard.receipt([client_id]))
                    })
                    .await?,
            ),
            Part::Destroy { client_id } => Started::Closing(
                self.hub
                    .begin_at_client(client_id, move |shard| (shard.destroy(client_id), shard.receipt([client_id])))
                    .await?,
            ),
            Part::Replace { client_id, uid, order } => {
                // Whether it is the later one it may not know yet.
                let begun = self.hub.begin_at_client(client_id, move |shard| shard.receipt([client_id])).await?;
                Started::Replacing { client_id, uid, order, begun }
            }
            Part::CloseUids { uids, close, .. } => {
                let named = uids.clone();
                let begun = self.hub.begin_at_uids(&uids, move |shard| {
                    let about = named.iter().flat_map(|uid| of_uid(shard, uid)).collect::<Vec<_>>();
                    let closed = named.iter().filter(|uid| shard.close_uid(uid, message.as_ref(), &close)).count();
                    (closed > 0, shard.receipt(about))
                });
                Started::Closing(begun.await?)
            }
            Part::Change { client_id, changes } => {
                let single = changes.iter().enumerate().find_map(|(place, change)| match change {
                    Change::Bind { uid, single: true } => Some((place, uid.clone())),
                    _ => None,
                });
                let limits = self.limits;
                let begun = self.hub.begin_at_client(client_id, move |shard| {
                    let results = changes.iter().map(|change| change.apply(shard, client_id, limits)).collect();
                    (results, shard.receipt([client_id]))
                });
                Started::Changing { client_id, single, begun: begun.await? }
            }
            Part::JoinUid { uid, groups } => {
                let (named, most) = (uid.clone(), self.limits.groups);
                let begun = self.hub.begin_at_uids(std::slice::from_ref(&uid), move |shard| {
                    let about = of_uid(shard, &named);
                    (shard.join_uid(&named, &groups, most), shard.receipt(about))
                });
                Started::Parts(begun.await?)
            }
            Part::LeaveUid { uid, groups } => {
                let named = uid.clone();
                let begun = self.hub.begin_at_uids(std::slice::from_ref(&uid), move |shard| {
                    let about = of_uid(shard, &named);
                    shard.leave_uid(&named, &groups);
                    (Ok(()), shard.receipt(about))
                });
                Started::Parts(begun.await?)
            }
            Part::Ungroup { group } => {
                let named = group.clone();
                let begun = self.hub.begin_at_groups(std::slice::from_ref(&group), move |shard| {
                    let about: Vec<ClientId> = shard.of_group(&named).map(|client| client.id).collect();
                    shard.ungroup(&named);
                    (Ok(()), shard.receipt(about))
                });
                Started::Parts(begun.await?)
            }
        })
    }

    /// The span of a delivery; it names nobody.
    fn delivers(&self, to: &Target, trace: &Context) -> Option<Span> {
        let mut span = self.tracer.begin(SpanKind::Consumer, format_args!("deliver"), Some(trace))?;
        let (target, count) = match to {
            Target::All => ("all", 1),
            Target::Clients(ids) => ("client", ids.len()),
            Target::Uids(uids) => ("uid", uids.len()),
            Target::Groups(groups) => ("group", groups.len()),
        };
        span.set("messaging.system", "moongate");
        span.set("messaging.operation.name", "deliver");
        span.set("messaging.operation.type", "process");
        span.set("moongate.target", target);
        span.set("moongate.targets", count as u64);
        Some(span)
    }

    /// Waits until a job is done: applied, in Redis, and subscribed to.
    pub(super) async fn finish(&self, started: Started, deadline: Instant) -> Result<Done, Failure> {
        let mut done = Done::default();
        match started {
            Started::Delivering(delivering, span) => {
                let delivered = delivering.done().await?;
                if let Some(mut span) = span {
                    span.set("moongate.clients", delivered.clients);
                }
                done.held = delivered.held;
                done.clients = delivered.clients;
            }
            Started::Closing(begun) => {
                for (held, receipt) in begun.all().await? {
                    if held {
                        done.held.insert(0);
                    }
                    told(receipt, deadline).await?;
                }
            }
            Started::Replacing { client_id, uid, order, begun } => {
                told(begun.one().await?, deadline).await?;
                let replacing = self.hub.begin_at_client(client_id, move |shard| {
                    let earlier = |client: View<'_>| client.uid == Some(&uid) && client.order < order;
                    let is_earlier = shard.view(client_id).is_some_and(earlier);
                    (is_earlier && shard.close(client_id, None, &Close::REPLACED), shard.receipt([client_id]))
                });
                let (held, receipt) = replacing.await?.one().await?;
                if held {
                    done.held.insert(0);
                }
                told(receipt, deadline).await?;
            }
            Started::Parts(begun) => {
                let mut results = Vec::new();
                for (result, receipt) in begun.all().await? {
                    results.push(result);
                    told(receipt, deadline).await?;
                }
                results.into_iter().collect::<Result<(), TooManyGroups>>()?;
            }
            Started::Changing { client_id, single, begun } => {
                let (results, receipt) = begun.one().await?;
                done.changes = results;
                let single_of_uid = match told(receipt, deadline).await {
                    Ok(single) => single,
                    Err(failure) => {
                        done.changes.iter_mut().filter(|result| result.is_ok()).for_each(|result| {
                            *result = Err(failure.clone());
                        });
                        return Ok(done);
                    }
                };
                if let Some((place, uid)) = single
                    && let Some(result) = done.changes.get_mut(place).filter(|result| result.is_ok())
                {
                    *result = self.replace_others(client_id, &uid, single_of_uid, deadline).await;
                }
            }
        }
        Ok(done)
    }
}

impl Gateway {
    /// Waits until Redis knows who of this node's clients has this uid by now.
    pub(super) async fn has_told_who_is_bound(&self, uid: &Uid) -> Result<(), Stopped> {
        let (named, deadline) = (uid.clone(), Instant::now() + ANSWER_TIME);
        for receipt in self.hub.at_all(move |shard| shard.receipt(of_uid(shard, &named))).await? {
            // Where it cannot be told, this one will not be told either.
            told(receipt, deadline).await.ok();
        }
        Ok(())
    }
}

fn of_uid(shard: &Shard, uid: &Uid) -> Vec<ClientId> {
    shard.of_uid(uid).map(|client| client.id).collect()
}

/// Waits until others know.
async fn told(receipt: Receipt, deadline: Instant) -> Result<Single, Failure> {
    match timeout_at(deadline, receipt.wait()).await {
        Ok(Some(Ok(single))) => Ok(single),
        Ok(Some(Err(refused))) => Err(Failure::RedisUnavailable(refused)),
        Ok(None) => Err(Failure::Unreachable("this node was taken for dead, or stops".into())),
        Err(_) => Err(Failure::RedisUnavailable("Redis did not take it in time".to_owned())),
    }
}
