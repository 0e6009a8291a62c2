//! What must hold for any command, and for what nodes make of it for each other; see [`crate::fuzz`].

#![allow(clippy::expect_used)] // here a panic is what is looked for

use super::heard::commands;
use super::part::Job;
use crate::message::{Close, Message};

use super::part::Part;

/// A command or a batch, as it is said on `mg:cmd` and in a task: each of its jobs is the same on another node.
pub(crate) fn command(json: &[u8]) {
    match commands(json) {
        Ok(jobs) => {
            for job in jobs.into_iter().flatten() {
                passed_on(&job);
            }
        }
        // What is refused is refused in few words, whatever was said.
        Err(words) => assert!(words.len() <= 8 * json.len() + 1024, "{} bytes of words", words.len()),
    }
}

/// A node's part of a command, as another one has said it, and the message with it.
pub(crate) fn part(part: &str, message: &[u8]) {
    let Ok(job) = Job::read(part, message) else { return };
    assert!(job.message.as_ref().is_none_or(|taken| taken.payload() == message));
    if let Part::Close { close, .. } | Part::CloseUids { close, .. } = &job.part {
        // RFC 6455, 5.5: a control frame has at most 125 bytes.
        assert!(close.to_message().frame().len() <= 2 + 2 + Close::MAX_REASON, "{close:?}");
    }
    passed_on(&job);
}

fn passed_on(job: &Job) {
    let Ok((part, payload)) = job.written() else { return };
    let again = Job::read(part.get(), &payload).expect("what one node writes another reads");
    assert_eq!(format!("{:?}", again.part), format!("{:?}", job.part));
    assert_eq!(again.message, job.message);
    assert_eq!(again.message.as_ref().map(Message::is_binary), job.message.as_ref().map(Message::is_binary));
}
