//! Counts that do not depend on the machine: how many system calls the real binary makes for a delivery, and how many
//! bytes that is on the wire. What Redis is asked is counted in `cluster::cost`, what is allocated in `tests/allocations`.
//!
//! `/proc/PID/io` does not count `send(2)`, which is what writing to a socket is, and a client may receive fewer
//! segments than there were writes. So the process is traced, as `strace -c -f` does it, and every writing call of
//! every thread counts: to clients, to the API's callers, and to wake another thread. So does every `futex(2)`, with which
//! threads wait for a lock or for work, and are woken.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Client, soon};
use crate::process::Process;

/// A node that says nothing of its own accord, and the members of one group.
async fn node_with_a_group(members: usize) -> (Process, Vec<Client>) {
    let node = Process::start(&[("MOONGATE_PING_INTERVAL", "0s")]).await;
    let mut clients = Vec::new();
    for _ in 0..members {
        clients.push(node.connect().await);
    }
    let joins: Vec<Value> =
        clients.iter().map(|client| json!({"op": "joinGroup", "client_id": client.id, "group": "g"})).collect();
    node.ask("batch", json!({"commands": joins})).await;
    assert_eq!(node.ask("getClientIdCountByGroup", json!({"group": "g"})).await, members);
    (node, clients)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_finds_nothing_waiting_costs_one_write_per_client_and_wakes_no_thread_for_any_of_them() {
    const MESSAGES: usize = 20;
    let shards = std::thread::available_parallelism().unwrap().get() as f64;
    for members in [100, 1000] {
        let (node, mut clients) = node_with_a_group(members).await;
        let calls = Calls::of(&node).await;
        let before = calls.so_far();
        for number in 0..MESSAGES {
            let message = number.to_string();
            node.ask("sendToGroup", json!({"group": "g", "message": message})).await;
            for client in &mut clients {
                assert_eq!(client.text().await, message);
            }
        }
        let [writes, futexes] = calls.since(before).map(|calls| calls as f64 / MESSAGES as f64);
        let each = writes / members as f64;
        assert!((1.0..=1.1).contains(&each), "{each} writes for a delivery to {members}");
        // A shard may have to be woken, however many clients it holds.
        assert!(futexes <= 4.0 * shards, "{futexes} futex calls for a message to {members}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_wait_together_leave_in_few_writes() {
    const MEMBERS: usize = 200;
    let (node, mut clients) = node_with_a_group(MEMBERS).await;
    let calls = Calls::of(&node).await;
    for messages in [16, 64] {
        let before = calls.so_far();
        let commands: Vec<Value> = (0..messages)
            .map(|number| json!({"op": "sendToGroup", "group": "g", "message": number.to_string()}))
            .collect();
        node.ask("batch", json!({"commands": commands})).await;
        for client in &mut clients {
            for number in 0..messages {
                assert_eq!(client.text().await, number.to_string());
            }
        }
        let [writes, _] = calls.since(before);
        let each = writes as f64 / (messages * MEMBERS) as f64;
        assert!(each <= 0.25, "{each} writes for a delivery, {messages} at once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_its_payload_and_two_four_or_ten_bytes_on_the_wire() {
    let node = Process::start(&[("MOONGATE_PING_INTERVAL", "0s")]).await;
    let mut socket = TcpStream::connect(node.clients).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the answer to a handshake", socket.read_u8()).await.unwrap());
    }
    // The longest message of the node's own, INIT_MESSAGE, is a short one.
    assert_eq!(soon("a frame", socket.read_u8()).await.unwrap(), 0x81);
    let mut init = vec![0; socket.read_u8().await.unwrap().into()];
    socket.read_exact(&mut init).await.unwrap();
    let id = serde_json::from_slice::<Value>(&init).unwrap()["client_id"].clone();

    for (length, header) in [
        (1, &[1][..]),
        (125, &[125]),
        (126, &[126, 0, 126]),
        (65_535, &[126, 0xff, 0xff]),
        (65_536, &[127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let payload = "x".repeat(length);
        let binary = BASE64_STANDARD.encode(&payload);
        for (opcode, fields) in
            [(0x81, json!({"client_id": id, "message": payload})), (0x82, json!({"client_id": id, "binary": binary}))]
        {
            node.ask("sendToClient", fields).await;
            let mut frame = vec![0; 1 + header.len() + length];
            soon("a frame", socket.read_exact(&mut frame)).await.unwrap();
            assert!(frame == [&[opcode], header, payload.as_bytes()].concat(), "{length} bytes, opcode {opcode:x}");
        }
    }
    // And nothing came behind the last of them: the next thing is the end.
    node.ask("closeClient", json!({"client_id": id})).await;
    let mut rest = [0; 10];
    soon("the close frame", socket.read_exact(&mut rest)).await.unwrap();
    assert_eq!(rest, *b"\x88\x08\x0f\xa0closed");
}

/// Counts the system calls of a process that write, and those that wait for other threads or wake them, until it ends.
struct Calls(Arc<[AtomicU64; 2]>);

impl Calls {
    const COUNTED: [&[i64]; 2] = [
        &[libc::SYS_write, libc::SYS_writev, libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg],
        &[libc::SYS_futex],
    ];

    /// Counts from now on, in every thread that there is or will be.
    async fn of(process: &Process) -> Self {
        let counts: Arc<[AtomicU64; 2]> = Arc::default();
        let (counters, pid) = (Arc::clone(&counts), process.pid());
        let (ready, traced) = tokio::sync::oneshot::channel();
        // Only the thread that traces is told about it. It ends when the process has ended.
        std::thread::spawn(move || Self::trace(pid, &counters, ready));
        soon("the process is traced", traced).await.expect("tracing a child is allowed here");
        Self(counts)
    }

    fn so_far(&self) -> [u64; 2] {
        self.0.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    fn since(&self, before: [u64; 2]) -> [u64; 2] {
        let now = self.so_far();
        [now[0] - before[0], now[1] - before[1]]
    }

    fn trace(process: u32, counts: &[AtomicU64; 2], ready: tokio::sync::oneshot::Sender<()>) {
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
                    for (calls, count) in Self::COUNTED.iter().zip(counts) {
                        if call.is_some_and(|call| calls.contains(&call)) {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
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
