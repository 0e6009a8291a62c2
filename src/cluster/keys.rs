//! Every key and channel, named in one place.
//!
//! `mg` stands for `MOONGATE_PREFIX`. Every key of a client is written by the node that holds it, and after its death by
//! the one that sweeps; everybody may read.
//!
//! | key | type | holds | lives as long as | slot on Redis Cluster |
//! | --- | --- | --- | --- | --- |
//! | `mg:uid:<uid>:clients` | set | clients bound to the uid | it has any | its own |
//! | `mg:group:<group>:clients` | set | members | it has any | its own |
//! | `mg:client:<client_id>` | hash | `node`, `uid`, `session`, `ip`, `connected_at` | the client | its own |
//! | `mg:client:<client_id>:groups` | set | its groups | it is in any | its own |
//! | `mg:nodes` | sorted set | node id → Redis' time in ms at which its lease ends | it has any | `mg:nodes` |
//! | `mg:node:<node_id>` | hash | the node's numbers at its last heartbeat: see [`crate::vitals`]; `at`: that time by Redis' clock | the node | its own |
//! | `mg:events` | stream | what clients do: see [`crate::event`] | trimmed near `EVENTS_MAXLEN` | its own |
//! | `mg:tasks` | stream | queued tasks, which anybody adds; its group is `moongate`, a consumer each run of a node | ever | `mg:tasks` |
//! | `mg:tasks:dead` | stream | dead letters: a task's fields, `id`, `reason`, `attempts`, `dead_at` | ever; the last 10,000 or so | its own |
//! | `mg:reply:…` | list | the answer to a task that named it | 60 s | its own |
//!
//! Internal; nobody but nodes reads them:
//!
//! | key | type | holds | lives as long as | slot on Redis Cluster |
//! | --- | --- | --- | --- | --- |
//! | `mg:clients:<run>` | hash | client id → `[uid, groups…]` in JSON, for each client of this run of a node: what to sweep | the run has clients | its own |
//! | `{mg:uid:<uid>:clients}:seq`, another tag where the uid has braces | string | µs by Redis' clock when the uid's set changed last, where that is told | 10 minutes | the uid's |
//! | `{mg:nodes}:runs` | hash | node id → its run, a fresh UUID at every start | the node | `mg:nodes` |
//! | `{mg:nodes}:lan` | hash | LAN address → node id | the node | `mg:nodes` |
//! | `{mg:nodes}:php` | hash | `<run> <address>`: that run of a node says that PHP finds a gateway there; `workers`: a PHP worker has been connected | the run; `workers` for ever | `mg:nodes` |
//! | `{mg:nodes}:swept` | sorted set | tombstones: run → Redis' time in ms at which it may be forgotten | a day | `mg:nodes` |
//! | `{mg:nodes}:sweeper:<run>` | string | who is sweeping after that run | 3 s, renewed | `mg:nodes` |
//! | `{mg:tasks}:task:<id>` | hash | a task with an id of its own, one that is due later, or tried again: `fields`, `state`, `attempts`, `base` (those before it was queued), `entry`, `next`, `reason`, `result`, `ended`, `own`, `letter`, `poison` | 24 h after its end, 60 s where the id is not its own; the dead: while they are among the last 10,000 | `mg:tasks` |
//! | `{mg:tasks}:replies:<id>` | list | who else is to be told what came of a task | the task runs | `mg:tasks` |
//! | `{mg:tasks}:cron:<id>` | hash | a cron: `fields`, `next`, `order` (its place in the stream); `order` alone: it was cancelled there | the cron; 24 h | `mg:tasks` |
//! | `{mg:tasks}:due` | sorted set | `t<id>` of a task, `c<id>` of a cron → Redis' time in ms at which it is due | it has any | `mg:tasks` |
//! | `{mg:tasks}:ended` | sorted set | id of a task → Redis' time in ms at which it is forgotten | it has any | `mg:tasks` |
//! | `{mg:tasks}:dead` | sorted set | id of a dead task → Redis' time in ms of its death | it has any | `mg:tasks` |
//!
//! | channel | subscribed by | what is said there |
//! | --- | --- | --- |
//! | `mg:uid:<uid>`, `mg:group:<group>`, `mg:all` | nodes that hold the target | a message to it, or a send in an envelope |
//! | `mg:client:<client_id>` | the node with its address, by a pattern; on Cluster each by its name | the same |
//! | `mg:cmd` | every node | a JSON command, carried out once |
//! | `mg.ask` | every node | an envelope: something that each node does its part of, or whom to watch for a tail |
//! | `mg.lan:<address>` | the node with that LAN address, 12 hex digits | an envelope: changes of its clients, answers, what was seen for its tails, its own heartbeat |
//!
//! On Cluster all of them are sharded channels, each in the slot of its name.
//!
//! Client ids, uids and groups stand in names as they are. The nodes' own channels have a dot, so that a program that
//! listens to `mg:*` neither hears them nor counts as a node.

use std::fmt;

use super::slots;
use crate::hub::Topic;
use crate::id::{ClientId, Group, LanAddress, Uid};

/// The names under one prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
    /// They are on a Cluster, in slots.
    are_sharded: bool,
}

impl Keys {
    pub(super) fn new(prefix: &str, are_sharded: bool) -> Self {
        Self { prefix: prefix.to_owned(), are_sharded }
    }

    /// Whether those of different names may be in different places, which know no common order.
    pub(super) fn are_sharded(&self) -> bool {
        self.are_sharded
    }

    /// In one piece of just its size: several names are made for each change of a client.
    fn name(&self, parts: &[&str]) -> String {
        let parts = || [&*self.prefix, ":"].into_iter().chain(parts.iter().copied());
        let mut name = String::with_capacity(parts().map(str::len).sum());
        name.extend(parts());
        name
    }

    pub(super) fn uid_clients(&self, uid: &Uid) -> String {
        self.name(&["uid:", uid.as_str(), ":clients"])
    }

    pub(super) fn uid_seq(&self, uid: &Uid) -> String {
        slots::beside(&self.uid_clients(uid), "seq")
    }

    pub(super) fn events(&self) -> String {
        self.name(&["events"])
    }

    pub(super) fn group_clients(&self, group: &Group) -> String {
        self.name(&["group:", group.as_str(), ":clients"])
    }

    pub(super) fn client(&self, id: ClientId) -> String {
        self.name(&["client:", &id.to_string()])
    }

    pub(super) fn client_groups(&self, id: ClientId) -> String {
        self.name(&["client:", &id.to_string(), ":groups"])
    }

    pub(super) fn nodes(&self) -> String {
        self.name(&["nodes"])
    }

    pub(super) fn node(&self, node_id: &str) -> String {
        self.name(&["node:", node_id])
    }

    pub(super) fn index(&self, run: &str) -> String {
        self.name(&["clients:", run])
    }

    pub(super) fn runs(&self) -> String {
        self.beside_nodes("runs")
    }

    pub(super) fn lan(&self) -> String {
        self.beside_nodes("lan")
    }

    pub(super) fn php(&self) -> String {
        self.beside_nodes("php")
    }

    pub(super) fn swept(&self) -> String {
        self.beside_nodes("swept")
    }

    pub(super) fn sweeper(&self, run: &str) -> String {
        self.beside_nodes(format_args!("sweeper:{run}"))
    }

    /// The queue. What scripts keep beside it they name after it: see `scripts/task.lua`.
    pub(super) fn tasks(&self) -> String {
        self.name(&["tasks"])
    }

    pub(super) fn dead_letters(&self) -> String {
        self.name(&["tasks:dead"])
    }

    /// What keys begin with at which tasks are answered.
    pub(super) fn replies(&self) -> String {
        self.name(&["reply:"])
    }

    /// A key in the slot of `mg:nodes`, so that one script can look at both.
    fn beside_nodes(&self, rest: impl fmt::Display) -> String {
        format!("{{{}}}:{rest}", self.nodes())
    }

    pub(super) fn channel(&self, channel: &Channel) -> String {
        match channel {
            Channel::Topic(Topic::All) => self.name(&["all"]),
            Channel::Topic(Topic::Uid(uid)) => self.name(&["uid:", uid.as_str()]),
            Channel::Topic(Topic::Group(group)) => self.name(&["group:", group.as_str()]),
            Channel::Topic(Topic::Client(id)) => self.name(&["client:", &id.to_string()]),
            Channel::Command => self.name(&["cmd"]),
            Channel::Ask => format!("{}.ask", self.prefix),
            Channel::Node(lan) => format!("{}.lan:{lan}", self.prefix),
        }
    }

    /// The one pattern of a node: `mg:client:` and any client id that it may have handed out, and nothing else.
    pub(super) fn client_pattern(&self, lan: LanAddress) -> String {
        self.name(&["client:", &lan.to_string(), &"[0-9a-f]".repeat(8)])
    }

    /// The channel of a name; none when it is not one of ours.
    pub(super) fn parse(&self, name: &str) -> Option<Channel> {
        let rest = name.strip_prefix(self.prefix.as_str())?;
        if let Some(own) = rest.strip_prefix('.') {
            return match own.strip_prefix("lan:") {
                Some(lan) => Some(Channel::Node(lan.parse().ok()?)),
                None => (own == "ask").then_some(Channel::Ask),
            };
        }
        let rest = rest.strip_prefix(':')?;
        let (kind, name) = rest.split_once(':').unwrap_or((rest, ""));
        Some(match kind {
            "uid" => Channel::Topic(Topic::Uid(name.parse().ok()?)),
            "group" => Channel::Topic(Topic::Group(name.parse().ok()?)),
            "client" => Channel::Topic(Topic::Client(name.parse().ok()?)),
            "all" => Channel::Topic(Topic::All),
            "cmd" => Channel::Command,
            _ => return None,
        })
    }
}

/// Where something is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// To everyone who holds it.
    Topic(Topic),
    /// A command from anywhere, to all nodes.
    Command,
    /// From a node to all nodes.
    Ask,
    /// To the node with this address.
    Node(LanAddress),
}

impl Channel {
    /// Its kind, for metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Topic(Topic::All) => "all",
            Self::Topic(Topic::Uid(_)) => "uid",
            Self::Topic(Topic::Group(_)) => "group",
            Self::Topic(Topic::Client(_)) => "client",
            Self::Command => "cmd",
            Self::Ask => "ask",
            Self::Node(_) => "node",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_is_read_back_from_its_name() {
        let keys = Keys::new("mg", false);
        let id: ClientId = "7f0000010b54a3c1e07f".parse().unwrap();
        for (channel, name) in [
            (Channel::Topic(Topic::Uid("a:b:clients".parse().unwrap())), "mg:uid:a:b:clients"),
            (Channel::Topic(Topic::Group("房间 1".parse().unwrap())), "mg:group:房间 1"),
            (Channel::Topic(Topic::All), "mg:all"),
            (Channel::Topic(Topic::Client(id)), "mg:client:7f0000010b54a3c1e07f"),
            (Channel::Command, "mg:cmd"),
            (Channel::Ask, "mg.ask"),
            (Channel::Node(id.lan), "mg.lan:7f0000010b54"),
        ] {
            assert_eq!(keys.channel(&channel), name);
            assert_eq!(keys.parse(name), Some(channel));
        }
        for name in [
            "mg",
            "mg:",
            "mg:uid:",
            "mgx:all",
            "other:all",
            "mg:client:7f",
            "mg.lan:7f",
            "mg:ask",
            "mg.",
            "mg:nodes",
            "",
        ] {
            assert_eq!(keys.parse(name), None, "{name}");
        }
    }

    #[test]
    fn what_one_script_looks_at_is_in_one_slot() {
        let keys = Keys::new("mg", false);
        for key in [keys.runs(), keys.lan(), keys.php(), keys.swept(), keys.sweeper("x")] {
            assert!(key.starts_with("{mg:nodes}:"), "{key}");
        }
    }
}
