//! Moongate.
pub mod client;
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
