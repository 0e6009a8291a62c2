//! What a message costs on its way from the hub to real sockets.
//!
//! Time ends when every socket has been written, not when the other sides have read; between two samples they catch up.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run shall stop")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use divan::Bencher;
use divan::counter::ItemsCount;
use moongate::client::{Arrival, Client, SendLimit};
use moongate::config::{EventsConfig, SlowConsumer};
use moongate::event::{Events, Origin};
use moongate::hub::{Hub, ShardTasks, Target};
use moongate::id::{ClientId, ConnectionIds, Group, LanAddress};
use moongate::message::{Message, Protocol};
use moongate::metrics::Metrics;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

fn main() {
    // Each client takes two descriptors here, and the usual soft limit is 1024.
    rlimit::increase_nofile_limit(4096).unwrap();
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

fn fan_out(bencher: Bencher, clients: usize, messages: usize) {
    let crowd = Crowd::gather(clients);
    let message = Message::text(r#"{"type":"say","from":"someone","text":"hello, everyone"}"#);
    let bytes = (message.frame().len() * clients * messages) as u64;
    let mut sent = 0;
    bencher
        .counter(ItemsCount::new(clients * messages))
        .with_inputs(|| {
            crowd.wait_until_read(sent);
            sent += bytes;
        })
        .bench_local_values(|()| crowd.tell(&message, messages));
    crowd.wait_until_read(sent);
}

/// A hub whose clients are all in one group, and the thread that reads what they get.
struct Crowd {
    runtime: Runtime,
    hub: Option<Hub>,
    _shards: ShardTasks,
    group: Arc<[Group]>,
    read: Arc<AtomicU64>,
    readers: Option<JoinHandle<()>>,
}

impl Crowd {
    fn gather(clients: usize) -> Self {
        let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
        let group: Arc<[Group]> = ["everyone".parse().unwrap()].into();
        let (read, (peers, joining)) = (Arc::new(AtomicU64::new(0)), mpsc::channel(1));
        let readers = std::thread::spawn({
            let read = Arc::clone(&read);
            move || Builder::new_current_thread().enable_io().build().unwrap().block_on(read_all(joining, &read))
        });
        let (hub, shards) = runtime.block_on(async {
            let metrics = Arc::new(Metrics::new());
            let shards = std::thread::available_parallelism().map_or(1, usize::from);
            let events = Arc::new(Events::new(EventsConfig::default(), Origin::default(), Arc::clone(&metrics)));
            let (hub, tasks) = Hub::start(shards, None, &metrics, None, None, &events);
            let limit =
                Arc::new(SendLimit { bytes: 1 << 20, policy: SlowConsumer::Close, dropped: metrics.dropped.clone() });
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let (address, ids) = (listener.local_addr().unwrap(), ConnectionIds::new());
            for _ in 0..clients {
                let peer = std::net::TcpStream::connect(address).unwrap();
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                peers.send(peer).await.unwrap();
                let lan = LanAddress { ip: Ipv4Addr::LOCALHOST, port: 2900 };
                let id = ClientId { lan, connection: ids.next() };
                let arrival = Arrival { peer: (Ipv4Addr::LOCALHOST, 1).into(), port: 0, connected_at: 0 };
                let client = Client::new(id, arrival, Protocol::WebSocket, socket, Arc::clone(&limit));
                client.open(None);
                hub.insert(client, false, None).await.unwrap();
                let joined = Arc::clone(&group);
                let joining = hub.begin_at_client(id, move |shard| shard.join(id, &joined, 1)).await.unwrap();
                assert_eq!(joining.one().await.unwrap(), Ok(true));
            }
            (hub, tasks)
        });
        Self { runtime, hub: Some(hub), _shards: shards, group, read, readers: Some(readers) }
    }

    fn hub(&self) -> &Hub {
        self.hub.as_ref().unwrap()
    }

    /// Returns when every socket has been written.
    fn tell(&self, message: &Message, times: usize) {
        self.runtime.block_on(async {
            for _ in 0..times {
                let to = Target::Groups(Arc::clone(&self.group));
                drop(self.hub().begin_delivery(to, None, message.clone(), false).await.unwrap());
            }
            // What comes with the last messages is answered before their flush, what comes next after it.
            for _ in 0..2 {
                self.hub().at_all(|_| ()).await.unwrap();
            }
        });
    }

    fn wait_until_read(&self, bytes: u64) {
        while self.read.load(Ordering::Acquire) < bytes {
            std::thread::yield_now();
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Its clients end with the hub, and the readers with them.
        drop(self.hub.take());
        self.readers.take().unwrap().join().unwrap();
    }
}

async fn read_all(mut joining: mpsc::Receiver<std::net::TcpStream>, read: &Arc<AtomicU64>) {
    let mut readers = JoinSet::new();
    while let Some(peer) = joining.recv().await {
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
