//! Which sockets have something to read, in the order in which it came.
//!
//! That is the order of the kernel's own list for an epoll descriptor; a runtime's is not seen, and wakes tasks that
//! may overtake each other. So there is an epoll of our own (`mio`), and tokio only says when its list is not empty.

use std::io;
use std::time::Duration;

use mio::event::Source;
use mio::{Events, Interest, Poll, Token};
use tokio::io::unix::AsyncFd;

/// What is taken from the list at once.
const MOST: usize = 1024;

/// The list. A socket is in it again when more has come than was there when it was last read to the end.
pub(super) struct Ready {
    poll: AsyncFd<Poll>,
    events: Events,
}

impl Ready {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: mio's `Poll` owns its descriptor: open until it is dropped, and the same one all the time; it is
        // dropped by the `AsyncFd`, after this has let go of the descriptor.
        #[allow(unsafe_code)]
        let poll = unsafe { AsyncFd::register_with_interest(Poll::new()?, tokio::io::Interest::READABLE) }?;
        Ok(Self { poll, events: Events::with_capacity(MOST) })
    }

    /// Takes a socket in. If it has something to read, it stands behind all that had before it.
    pub(super) fn add(&self, socket: &mut impl Source, token: Token) -> io::Result<()> {
        self.poll.get_ref().registry().register(socket, token, Interest::READABLE)
    }

    /// Lets a socket go; needed where another descriptor keeps it open.
    pub(super) fn remove(&self, socket: &mut impl Source) {
        // It fails only for one that is not in.
        drop(self.poll.get_ref().registry().deregister(socket));
    }

    /// Takes those that there are.
    pub(super) fn now(&mut self) -> io::Result<Vec<Token>> {
        take(self.poll.get_mut(), &mut self.events)
    }

    /// Waits until there are some, and takes them.
    pub(super) async fn next(&mut self) -> io::Result<Vec<Token>> {
        loop {
            let mut ready = self.poll.readable_mut().await?;
            let tokens = take(ready.get_inner_mut(), &mut self.events)?;
            if !tokens.is_empty() {
                return Ok(tokens);
            }
            ready.clear_ready();
        }
    }
}

fn take(poll: &mut Poll, events: &mut Events) -> io::Result<Vec<Token>> {
    loop {
        match poll.poll(events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(events.iter().map(mio::event::Event::token).collect()),
        }
    }
}
