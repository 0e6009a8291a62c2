//! A hub whose clients are all in one group, over real sockets.

use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;

use moongate::client::{Arrival, Client, SendLimit};
use moongate::config::{EventsConfig, SlowConsumer};
use moongate::event::{Events, Origin};
use moongate::hub::{Hub, ShardTasks, Target};
use moongate::id::{ClientId, ConnectionIds, Group, LanAddress};
use moongate::message::{Message, Protocol};
use moongate::metrics::Metrics;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// A hub whose clients are all in one group.
pub(crate) struct Crowd {
    runtime: Runtime,
    hub: Hub,
    _shards: ShardTasks,
    group: Arc<[Group]>,
}

impl Crowd {
    /// The hub's clients, and the other ends of their sockets.
    pub(crate) fn gather(runtime: Runtime, shards: usize, clients: usize) -> (Self, Vec<TcpStream>) {
        // Each client takes two descriptors here, and the usual soft limit is 1024.
        rlimit::increase_nofile_limit(2 * clients as u64 + 1024).unwrap();
        let group: Arc<[Group]> = ["everyone".parse().unwrap()].into();
        let mut peers = Vec::with_capacity(clients);
        let (hub, shards) = runtime.block_on(async {
            let metrics = Arc::new(Metrics::new());
            let events = Arc::new(Events::new(EventsConfig::default(), Origin::default(), Arc::clone(&metrics)));
            let (hub, tasks) = Hub::start(shards, None, &metrics, None, None, &events);
            let limit =
                Arc::new(SendLimit { bytes: 1 << 20, policy: SlowConsumer::Close, dropped: metrics.dropped.clone() });
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let (address, ids) = (listener.local_addr().unwrap(), ConnectionIds::new());
            for _ in 0..clients {
                peers.push(TcpStream::connect(address).unwrap());
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
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
        (Self { runtime, hub, _shards: shards, group }, peers)
    }

    /// Sends this to everyone so many times at once. Returns when every socket has been written.
    pub(crate) fn tell(&self, message: &Message, times: usize) {
        self.runtime.block_on(async {
            for time in 1..=times {
                let to = Target::Groups(Arc::clone(&self.group));
                let delivering = self.hub.begin_delivery(to, None, message.clone(), time == times).await.unwrap();
                delivering.done().await.unwrap();
            }
            if times > 1 {
                // The last of several is taken when all outboxes have it, and what comes next has its turn after their flush.
                self.hub.at_all(|_| ()).await.unwrap();
            }
        });
    }
}
