//! Counts that do not depend on the machine: how many write system calls the real binary makes for a delivery.
//!
//! `/proc/PID/io` does not count `send(2)`, which is what writing to a socket is, and a client may receive fewer
//! segments than there were writes. So the process is traced, as `strace -c -f` does it, and every writing call of
//! every thread counts: to clients, to the API's callers, and to wake another thread.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::harness::{Client, soon};
use crate::process::Process;

const CLIENTS: usize = 200;

/// A node that says nothing of its own accord, and the members of one group.
async fn node_with_a_group() -> (Process, Vec<Client>) {
    let node = Process::start(&[("MOONGATE_PING_INTERVAL", "0s")]).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(node.connect().await);
    }
    let joins: Vec<Value> =
        clients.iter().map(|client| json!({"op": "joinGroup", "client_id": client.id, "group": "g"})).collect();
    node.ask("batch", json!({"commands": joins})).await;
    assert_eq!(node.ask("getClientIdCountByGroup", json!({"group": "g"})).await, CLIENTS);
    (node, clients)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_finds_nothing_waiting_costs_one_write_per_client() {
    const MESSAGES: usize = 50;
    let (node, mut clients) = node_with_a_group().await;
    let writes = Writes::of(&node).await;
    let before = writes.so_far();
    for number in 0..MESSAGES {
        let message = number.to_string();
        node.ask("sendToGroup", json!({"group": "g", "message": message})).await;
        for client in &mut clients {
            assert_eq!(client.text().await, message);
        }
    }
    let each = (writes.so_far() - before) as f64 / (MESSAGES * CLIENTS) as f64;
    assert!((1.0..=1.1).contains(&each), "{each} writes for a delivery");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_wait_together_leave_in_few_writes() {
    let (node, mut clients) = node_with_a_group().await;
    let writes = Writes::of(&node).await;
    for messages in [16, 64] {
        let before = writes.so_far();
        let commands: Vec<Value> = (0..messages)
            .map(|number| json!({"op": "sendToGroup", "group": "g", "message": number.to_string()}))
            .collect();
        node.ask("batch", json!({"commands": commands})).await;
        for client in &mut clients {
            for number in 0..messages {
                assert_eq!(client.text().await, number.to_string());
            }
        }
        let each = (writes.so_far() - before) as f64 / (messages * CLIENTS) as f64;
        assert!(each <= 0.25, "{each} writes for a delivery, {messages} at once");
    }
}

/// Counts the write system calls of a process until it ends.
struct Writes(Arc<AtomicU64>);

impl Writes {
    const CALLS: [i64; 5] =
        [libc::SYS_write, libc::SYS_writev, libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg];

    /// Counts from now on, in every thread that there is or will be.
    async fn of(process: &Process) -> Self {
        let count = Arc::new(AtomicU64::new(0));
        let (counter, pid) = (Arc::clone(&count), process.pid());
        let (ready, traced) = tokio::sync::oneshot::channel();
        // Only the thread that traces is told about it. It ends when the process has ended.
        std::thread::spawn(move || Self::trace(pid, &counter, ready));
        soon("the process is traced", traced).await.expect("tracing a child is allowed here");
        Self(count)
    }

    fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn trace(process: u32, count: &AtomicU64, ready: tokio::sync::oneshot::Sender<()>) {
        let threads = || {
            let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
            tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse::<i32>().unwrap())
        };
        // A thread that begins meanwhile is in the next look, or its creator is traced already and so is it.
        let mut seized = HashSet::new();
        while let Some(thread) = threads().find(|thread| !seized.contains(thread)) {
            trace::seize(thread);
            seized.insert(thread);
        }
        let mut ready = Some(ready);
        while let Some((thread, stop)) = trace::next_stop() {
            match stop {
                trace::Stop::Call(call) => {
                    if call.is_some_and(|call| Self::CALLS.contains(&call)) {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    trace::resume(thread, 0);
                }
                trace::Stop::Signal(signal) => trace::resume(thread, signal),
                trace::Stop::Event => {
                    trace::resume(thread, 0);
                    seized.remove(&thread);
                    if let Some(ready) = ready.take_if(|_| seized.is_empty()) {
                        ready.send(()).ok();
                    }
                }
                trace::Stop::Ended => {}
            }
        }
    }
}

/// The little of `ptrace(2)` that counting takes.
#[allow(unsafe_code, reason = "there is no other way to ptrace")]
mod trace {
    use std::io;
    use std::ptr::null_mut;

    use libc::{c_long, c_void, pid_t};

    pub(super) enum Stop {
        /// A system call begins, or (no number) ends.
        Call(Option<i64>),
        /// A signal for the thread.
        Signal(i32),
        /// The thread was interrupted, has begun, or has made another.
        Event,
        /// The thread is no more.
        Ended,
    }

    /// Traces a thread and what it creates, and interrupts it.
    pub(super) fn seize(thread: pid_t) {
        let options = (libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE) as usize as *mut c_void;
        // SAFETY: these requests take no memory of ours.
        let done = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, thread, null_mut::<c_void>(), options) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, thread, null_mut::<c_void>(), null_mut::<c_void>()) == 0
        };
        assert!(done, "ptrace: {}", io::Error::last_os_error());
    }

    /// Lets a thread run to its next system call; `signal` is delivered, if any. It may be gone.
    pub(super) fn resume(thread: pid_t, signal: i32) {
        let signal = signal.cast_unsigned() as usize as *mut c_void;
        // SAFETY: this request takes no memory of ours.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread, null_mut::<c_void>(), signal) };
    }

    /// What happened next to a thread that this one traces; none when there is none left.
    pub(super) fn next_stop() -> Option<(pid_t, Stop)> {
        let mut status = 0;
        // Only what this thread traces: other tests wait for their own children.
        let flags = libc::__WALL | libc::__WNOTHREAD;
        // SAFETY: the status is written to a variable of ours.
        let thread = unsafe { libc::waitpid(-1, &raw mut status, flags) };
        if thread < 0 {
            return None;
        }
        let stop = if !libc::WIFSTOPPED(status) {
            Stop::Ended
        } else if libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80 {
            Stop::Call(beginning_call(thread))
        } else if status >> 16 != 0 {
            Stop::Event
        } else {
            Stop::Signal(libc::WSTOPSIG(status))
        };
        Some((thread, stop))
    }

    /// The number of the system call before which the thread has stopped.
    fn beginning_call(thread: pid_t) -> Option<i64> {
        /// `PTRACE_GET_SYSCALL_INFO`; not in libc for every C library.
        const GET_SYSCALL_INFO: i64 = 0x420e;
        /// `PTRACE_SYSCALL_INFO_ENTRY`
        const ENTRY: u8 = 1;
        // struct ptrace_syscall_info: u8 op, padding, u32 arch, two u64 pointers, then for an entry the u64 number.
        let mut info = [0; 88];
        // SAFETY: the kernel writes at most as many bytes as it is told there are.
        let filled: c_long =
            unsafe { libc::ptrace(GET_SYSCALL_INFO as _, thread, info.len() as *mut c_void, info.as_mut_ptr()) };
        let number = i64::from_ne_bytes(info[24..32].try_into().unwrap());
        (filled >= 32 && info[0] == ENTRY).then_some(number)
    }
}
