//! What a message costs on its way from the hub to real sockets.
//!
//! Time ends when every socket has been written, not when the other sides have read; between two samples they catch up.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run shall stop")]

mod crowd;

use std::io::Read as _;
use std::net::TcpStream as Peer;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crowd::Crowd;
use divan::Bencher;
use divan::counter::ItemsCount;
use moongate::message::Message;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

fn main() {
    divan::main();
}

#[divan::bench(args = [1, 100, 1000], sample_size = 1, sample_count = 200)]
fn one_message(bencher: Bencher, clients: usize) {
    fan_out(bencher, clients, 1);
}

#[divan::bench(args = [1, 100, 1000], sample_size = 1, sample_count = 200)]
fn sixteen_messages(bencher: Bencher, clients: usize) {
    fan_out(bencher, clients, 16);
}

/// As many threads as shards, each with its share of the clients. Nobody reads meanwhile: no other thread wants a processor.
#[divan::bench(args = [1, 2, 4], sample_size = 1, sample_count = 200)]
fn one_message_on_so_many_shards(bencher: Bencher, shards: usize) {
    const CLIENTS: usize = 1000;
    let runtime = Builder::new_multi_thread().worker_threads(shards).enable_all().build().unwrap();
    let (crowd, peers) = Crowd::gather(runtime, shards, CLIENTS);
    let message = message();
    let read_all = || {
        for mut peer in &peers {
            peer.read_exact(&mut vec![0; message.frame().len()]).unwrap();
        }
    };
    crowd.tell(&message, 1);
    bencher.counter(ItemsCount::new(CLIENTS)).with_inputs(read_all).bench_local_values(|()| crowd.tell(&message, 1));
}

fn message() -> Message {
    Message::text(r#"{"type":"say","from":"someone","text":"hello, everyone"}"#)
}

fn fan_out(bencher: Bencher, clients: usize, messages: usize) {
    let shards = std::thread::available_parallelism().map_or(1, usize::from);
    let (crowd, peers) = Crowd::gather(Builder::new_multi_thread().enable_all().build().unwrap(), shards, clients);
    let readers = Readers::start(peers);
    let message = message();
    let bytes = (message.frame().len() * clients * messages) as u64;
    let mut sent = 0;
    bencher
        .counter(ItemsCount::new(clients * messages))
        .with_inputs(|| {
            readers.wait_until_read(sent);
            sent += bytes;
        })
        .bench_local_values(|()| crowd.tell(&message, messages));
    readers.wait_until_read(sent);
    // Its clients end with the hub, and the readers with them.
    drop(crowd);
    readers.thread.join().unwrap();
}

/// The thread that reads what the clients get.
struct Readers {
    read: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Readers {
    fn start(peers: Vec<Peer>) -> Self {
        let read = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let read = Arc::clone(&read);
            move || Builder::new_current_thread().enable_io().build().unwrap().block_on(read_all(peers, &read))
        });
        Self { read, thread }
    }

    fn wait_until_read(&self, bytes: u64) {
        while self.read.load(Ordering::Acquire) < bytes {
            std::thread::yield_now();
        }
    }
}

async fn read_all(peers: Vec<Peer>, read: &Arc<AtomicU64>) {
    let mut readers = JoinSet::new();
    for peer in peers {
        peer.set_nonblocking(true).unwrap();
        let (peer, read) = (TcpStream::from_std(peer).unwrap(), Arc::clone(read));
        readers.spawn(async move {
            loop {
                peer.readable().await.unwrap();
                let mut bytes = [0; 4096];
                match peer.try_read(&mut bytes) {
                    Ok(0) => return,
                    Ok(count) => read.fetch_add(count as u64, Ordering::Release),
                    Err(_) => 0,
                };
            }
        });
    }
    readers.join_all().await;
}
