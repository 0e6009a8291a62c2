//! Moongate: a push gateway. Browsers and devices hold a WebSocket to it; an application in any language reaches a
//! uid, a group, one client or everyone. It speaks the vocabulary of PHP's `GatewayWorker`.
//!
//! This page is the map of the house. What users may rely on is said in the README; the API is described by
//! `/openapi.json`, which [`http::document`] makes from the types in [`command`].
//!
//! # The rooms
//!
//! | room | what is in it | it never |
//! | --- | --- | --- |
//! | `main` | command line, settings, log, signals | |
//! | [`config`] | every setting, its default, its check; the only reader of the environment | binds a port |
//! | [`server`] | puts the rooms together: bind, run, drain | knows the process |
//! | [`edge`] | the clients' door: accept loop, handshake, TLS, WebSocket connections | carries out a command |
//! | [`http`] | the applications' door: routes, who may ask, errors, the page | touches a client |
//! | [`gateway`] | the one place where a command is carried out | knows a socket or a door |
//! | [`hub`] | who is on this node: shards with clients, uids, groups, sessions | does I/O but through `client` |
//! | [`client`] | one connection as others hold it: socket, bounded outbox, close | awaits, but for its owner |
//! | [`command`] | the vocabulary: every command, query and answer | does I/O |
//! | [`message`], [`session`], [`template`], [`heartbeat`], [`id`], [`json`] | one idea each | do I/O |
//! | [`metrics`] | what is counted | has a uid, group or client id for a label |
//!
//! Arrows go one way: `main → server → doors (edge, http) → gateway → hub → client → message, id`. Doors do not know
//! each other, and all say the same [`command::Command`] to the same [`gateway::Gateway`]. Nothing is `static` but one scratch
//! buffer per thread: two nodes live in one process, and do in the tests.
//!
//! # Four flows
//!
//! **A client connects.** [`edge`] accepts; in a task of the connection's own TLS and the request head are read, under
//! one deadline; then the long-lived task is spawned anew, small. The client enters its shard of the [`hub`], and there
//! gets `INIT_MESSAGE` before anything else can reach it: a query for the id it names finds it. Whatever ends the
//! connection, it leaves by one way out (`Shard::remove`), which tells its owning task what it had; that task says
//! `LEAVE_MESSAGE` to its groups and ends the socket without a reset.
//!
//! **`POST /api/sendToGroup`.** [`http`] checks the token, reads the fields into a [`command::Command`], and says it to
//! the gateway. The message is encoded once, a whole WebSocket frame. The hub's index names the shards that hold the
//! group; each gets the message in its inbox. A shard takes all that is ready, appends each message to the outboxes of
//! its targets, and flushes every outbox once, in pieces of a thousand sockets: the write is done by the shard's own
//! task, and wakes nobody. Only a client whose socket is full has its own task woken, to drain when there is room.
//! `client` and `hub::shard` tell this story with the reasons.
//!
//! **`bindUid`.** A change is a closure that travels through the same inbox as the messages; so a change and the
//! messages around it have one order, and when it is answered, it is done: whoever sends or asks after that sees it.
//! Neighbouring changes of one client in a `batch` are one such closure: no message comes between them.
//!
//! **The node stops.** Not ready at once; for a fifth of `DRAIN` nothing else happens, as balancers need a moment; then
//! handshakes are refused and clients are closed with 1012, spread over the rest; then the API ends, then the shards.
//!
//! # What holds everywhere
//!
//! - Every queue has a bound and an answer when full: a client's outbox (`SLOW_CONSUMER`), a shard's inbox (whoever
//!   brings more waits; a shard never blocks), connections to the API (they wait in the kernel).
//! - Every wait has a deadline, every spawned task is tracked or ends with what it serves.
//! - Nothing per client is allocated or encoded on the way of a message.
//! - Outside input cannot panic: `unwrap`, `expect`, `panic` and indexing are denied outside tests.

mod accept;
pub mod client;
pub mod cluster;
pub mod command;
pub mod config;
pub mod edge;
pub mod gateway;
pub mod heartbeat;
pub mod http;
pub mod hub;
pub mod id;
pub mod json;
pub mod message;
pub mod metrics;
pub mod server;
pub mod session;
pub mod template;
mod throttle;
