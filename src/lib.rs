//! Moongate: a push gateway. Browsers and devices hold a WebSocket to any of N nodes; an application in any language
//! reaches a uid, a group, one client or everyone. It speaks the vocabulary of PHP's `GatewayWorker`.
//!
//! This page is the map of the house. What users may rely on is said in the README; the API is described by
//! `/openapi.json`, which [`http::document`] makes from the types in [`command`], and by `docs/api.md`, which
//! `tests/it/reference.rs` makes from the same.
//!
//! # The rooms
//!
//! | room | what is in it | it never |
//! | --- | --- | --- |
//! | `main` | command line, settings, log, signals | |
//! | [`ctl`] | the caller's side of the API: one command from the shell, its answer for a script or a reader; whether a node is ready; all nodes, live | runs a node |
//! | [`check`] | whether a node could run with these settings, this machine and this Redis, with advice | changes anything |
//! | [`config`] | every setting, its default, its check; the only reader of the environment | binds a port |
//! | [`server`] | puts the rooms together: bind, run, drain | knows the process |
//! | [`access`] | who may connect: tokens, origins, proxies, how many | does I/O |
//! | [`edge`] | the clients' door: accept loops, handshake, TLS, connections of WebSocket and of `text`, `frame`, `tcp` | carries out a command |
//! | [`http`] | the applications' door: routes, who may ask, errors, the console | touches a client |
//! | [`webhook`] | the application's own address: it is asked who is let in, told what clients do, and may answer with commands | touches a client |
//! | [`tasks`] | the door of queued tasks: takes them, carries them out, says what came of them | answers before Redis has it |
//! | [`outcome`] | what came of a command, in the words of the doors that speak JSON | knows a door |
//! | [`php`] | the door of `GatewayWorker`'s PHP applications: their inner protocol, their values | passes anything on to other nodes: its callers ask each node |
//! | [`gateway`] | the one place where a command is carried out | knows a socket or a door |
//! | [`cluster`] | this node among the others, through Redis: bus, directory, members | touches a client |
//! | [`hub`] | who is on this node: shards with clients, uids, groups, sessions | does I/O but through `client`; knows Redis |
//! | [`client`] | one connection as others hold it: socket, bounded outbox, close | awaits, but for its owner |
//! | [`command`] | the vocabulary: every command, query and answer | does I/O |
//! | [`event`] | what clients do, in the words in which applications hear of it, and the memory in which that waits | does I/O |
//! | [`message`], [`session`], [`task`], [`template`], [`heartbeat`], [`id`], [`json`] | one idea each | do I/O |
//! | [`trace`] | spans, which of them are sampled, and the collector that is told | is waited for |
//! | `fuzz` | what must hold for any bytes from outside, a target for each door; fuzzers and tests feed it | is in a release |
//! | [`metrics`] | what is counted | has a uid, group or client id for a label |
//! | [`vitals`] | how nodes do, in numbers, for people who look at all of them | knows Redis or a door |
//!
//! Arrows go one way: `main → server → doors (edge, http, tasks, php) → gateway → cluster → hub → client → message, id`. Doors do not
//! know each other, and all say the same [`command::Command`] to the same [`gateway::Gateway`]; but [`php`], whose callers
//! ask every node themselves, acts on this node's [`hub`]. Nothing is `static` but
//! scratch buffers of threads: two nodes live in one process, and do in the tests.
//!
//! **The hub is the truth about its clients; Redis is an index of that truth**, written by the node that holds the client,
//! and by whoever sweeps after its death. A node without `REDIS_URL` is the same house without [`cluster`]: an absence,
//! and no second implementation.
//!
//! # Ten flows
//!
//! **A client connects.** [`edge`] accepts; in a task of the connection's own TLS and the request head are read, under
//! one deadline; then the long-lived task is spawned anew, small. The client enters its shard of the [`hub`], and what is
//! sent to it waits. When Redis has it and this node hears what it must hear, `INIT_MESSAGE` goes out first, then the
//! rest: a query on any node finds the id it names. Whatever ends the connection, the client leaves by one way out
//! (`Shard::remove`); when Redis holds it no more (or after 5 s), the close frame is written and the owning task is told
//! what it had; that task says `LEAVE_MESSAGE` to its groups and ends the socket without a reset.
//!
//! **`PUBLISH mg:group:room hello`, from anywhere.** Every node that has members is subscribed, and no other. The bus takes
//! the message off its connection and puts it into the inboxes of the shards that hold the group. A shard takes all that
//! is ready, appends each message, encoded once, to the outboxes of its targets, and flushes every outbox once, in pieces
//! of a thousand sockets: the write is done by the shard's own task, and wakes nobody. Only a client whose socket is full
//! has its own task woken, to drain when there is room. `hub::shard` tells this story, with the reasons and gains.
//!
//! **`POST /api/sendToGroup`.** [`http`] checks the token, reads the fields into a [`command::Command`], and says it to the
//! gateway, which publishes it, in the very bytes a foreign program would, also when all members are here: one path, one
//! order. What a bare payload cannot say travels in an envelope (`cluster::envelope`): of a send that is traced, where.
//!
//! **`bindUid`, for a client of another node.** Its address is in its id. The gateway asks the node on its channel, with a
//! deadline that travels along. There a change is a closure that goes through the same inbox as the messages; the shard
//! notes in its journal what others are to be told; the directory writes what all shards noted in one pipeline, the
//! subscriber follows the index, and when both are confirmed the answer goes back. So whoever sends or asks after the
//! answer, anywhere, sees it. Neighbouring changes of one client in a `batch` are one such closure.
//!
//! **PHP says `bindUid`, then `sendToUid`**, each over a connection of its own, and waits for nothing. One task reads all
//! inner connections in the order in which they became readable, and puts what they say into the shards' inboxes in that
//! order (`php::inner`). What PHP asks is answered behind that, by a task for each connection.
//!
//! **A client says something**, or comes, or goes, and PHP has workers. Its shard tells the listener (`hub::events`), in
//! order with what is done to the client; that picks its worker and queues the event with the session of that moment
//! (`php::workers`). A WebSocket is a client for workers from its TCP connect on, a guest to all others until its handshake
//! is over.
//!
//! **The application hears of it**, in any language. Its shard notes what a client does in its journal, in order with the
//! changes that others are to know. The directory writes both in one pipeline: a uid's set and what is told of it change in
//! one script, so the stream is in the order in which things were. When that stands there, the webhook is told the same, one
//! request at a time for each client. On a node that is alone the shard tells the webhook itself. Whoever may come in it is
//! asked before the handshake is answered.
//!
//! **`XADD mg:tasks * command {…}`, from anywhere.** One node reads the entry, carries the command out as if HTTP had said
//! it, answers at `reply_to`, and takes the entry off the stream (`cluster::tasks`). What has an id, or is due later, gets a
//! record in one script, where it is decided whether it was there before; what is due comes back to the stream as an
//! entry that names its record. What a node has in hand it renews; what nobody renews another node claims.
//!
//! **A node dies.** Its lease is not renewed. A node that was in touch all that time sets the tombstone, has Redis cut the
//! dead node's connections, takes its clients out of everything, and says goodbye for them (`cluster::members`).
//!
//! **The node stops.** Not ready at once; for a fifth of `DRAIN` nothing else happens, as balancers need a moment; then
//! handshakes are refused and clients are closed with 1012, spread over the rest. Tasks are taken no more from the first
//! moment on, and those in hand are finished meanwhile. Then the node leaves the others, then the API ends, then the
//! shards.
//!
//! # What holds everywhere
//!
//! - Every queue has a bound and an answer when full: a client's outbox (`SLOW_CONSUMER`), a console's tail (what is
//!   skipped is counted), a shard's inbox (whoever
//!   brings more waits; a shard never blocks), the bus (what comes is lost, and counted), asks (503), what is said to
//!   single nodes (503 for whoever asked), connections to the API (they wait in the kernel).
//! - Every wait has a deadline, every spawned task is tracked or ends with what it serves.
//! - Nothing per client is allocated or encoded on the way of a message to a WebSocket, but the queue of a client for
//!   which more than a few wait (`tests/allocations`).
//! - Outside input cannot panic: `unwrap`, `expect`, `panic` and indexing are denied outside tests.

mod accept;
pub mod access;
pub mod check;
pub mod client;
pub mod cluster;
pub mod command;
pub mod config;
pub mod ctl;
pub mod edge;
pub mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod gateway;
pub mod heartbeat;
pub mod http;
pub mod hub;
pub mod id;
pub mod json;
pub mod message;
pub mod metrics;
pub mod outcome;
pub mod php;
pub mod server;
pub mod session;
pub mod task;
pub mod tasks;
pub mod template;
mod throttle;
pub mod trace;
pub mod vitals;
pub mod webhook;
