//! What is written to an inner connection, in order, by a task of its own.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::commands::Answer;
use super::packet;

/// Questions of one connection that may wait for their answers; whoever asks more is cut.
const MOST_UNANSWERED: usize = 4096;

/// So long an answer may stay unread.
const UNREAD: Duration = Duration::from_mins(1);

/// Where answers to one connection go.
pub(super) struct Link {
    answers: mpsc::Sender<Answer>,
}

impl Link {
    /// A link over a socket that somebody else reads.
    pub(super) fn new(socket: &mio::net::TcpStream, writers: &mut JoinSet<()>) -> io::Result<Self> {
        let socket = socket2::SockRef::from(socket).try_clone()?;
        socket.set_tcp_user_timeout(Some(UNREAD))?;
        let socket = TcpStream::from_std(socket.into())?;
        let (answers, queue) = mpsc::channel(MOST_UNANSWERED);
        writers.spawn(write(socket, queue));
        Ok(Self { answers })
    }

    /// Has a question answered in its turn; false when too many are waiting, or nobody reads.
    pub(super) fn answer(&self, answer: Answer) -> bool {
        self.answers.try_send(answer).is_ok()
    }
}

async fn write(mut socket: TcpStream, mut answers: mpsc::Receiver<Answer>) {
    while let Some(answer) = answers.recv().await {
        // A stopping node answers no more; a question without an answer is one whose connection ends.
        let Some(answer) = answer.await else { break };
        if socket.write_all(&packet::reply(&answer)).await.is_err() {
            break;
        }
    }
    // For whoever reads it, too.
    drop(socket2::SockRef::from(&socket).shutdown(std::net::Shutdown::Both));
}
