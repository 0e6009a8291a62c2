//! The application's own address: what it is told there, and what it answers.

mod caller;

pub use caller::{ANSWER, Accepted, Caller, Refused};
