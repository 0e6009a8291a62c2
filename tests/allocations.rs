//! How often a node allocates for a message: as often for a thousand receivers as for one, from what Redis has published
//! to what sockets were given.
//!
//! A binary of its own, for its allocator counts. A node's threads are told apart from those of the clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::format_push_string,
    clippy::large_futures,
    clippy::unused_async,
    clippy::float_cmp,
    unreachable_pub,
    reason = "all of this is a test"
)]

#[path = "it/harness.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "tests/it uses the rest")]
mod harness;
#[path = "it/port.rs"]
mod port;
#[path = "it/redis.rs"]
#[allow(dead_code, reason = "tests/it uses the rest")]
mod redis;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use harness::{Client, Node};
use redis::Redis;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

const FEW: usize = 100;
const MANY: usize = 1000;

const TARGETS: [(&str, usize); 3] = [("uid:one", 1), ("group:few", FEW), ("group:many", MANY)];

/// What a node does of its own accord, such as its heartbeat in Redis, allocates too: the round with the fewest
/// allocations is that of the messages alone.
const ROUNDS: usize = 12;

/// What one message takes, whoever gets it.
const MESSAGE: u64 = 7;

/// The queue of one outbox grows three times, to 4, 8 and 16 frames, and is given back when it is empty.
const OUTBOX: u64 = 3;

/// One node with its Redis. All clients are in the group `many`, some in `few`, and one is bound to `one`.
struct World {
    node: Node,
    redis: Redis,
    clients: Vec<Client>,
    allocations: &'static AtomicU64,
}

#[test]
fn a_message_is_as_many_allocations_for_a_thousand_receivers_as_for_one() {
    World::run(async |world| {
        for (target, members) in TARGETS {
            let allocations = world.fewest_allocations(target, members, 1).await;
            assert!(allocations <= MESSAGE, "{allocations} for one message to {target}");
        }
    });
}

#[test]
fn of_messages_that_wait_together_only_the_queue_of_each_client_allocates_and_thrice_at_most() {
    const MESSAGES: u64 = 16;
    World::run(async |world| {
        for (target, members) in TARGETS {
            let allocations = world.fewest_allocations(target, members, MESSAGES).await;
            // They may be delivered in two lots.
            let most = MESSAGES * MESSAGE + members as u64 * OUTBOX + 8;
            assert!(allocations <= most, "{allocations} for {MESSAGES} messages to {target}");
        }
    });
}

impl World {
    fn run(test: impl AsyncFnOnce(&mut Self)) {
        // Each client takes a descriptor here and one in the node.
        rlimit::increase_nofile_limit(8192).unwrap();
        let allocations: &AtomicU64 = Box::leak(Box::default());
        // One thread, so that messages that come together are delivered together.
        let counted = || COUNTED.set(Some(allocations));
        let runtime =
            Builder::new_multi_thread().worker_threads(1).on_thread_start(counted).enable_all().build().unwrap();
        let here = Builder::new_current_thread().enable_all().build().unwrap();
        here.block_on(async {
            let mut world = Self::start(&runtime, allocations).await;
            test(&mut world).await;
            drop(world.clients);
            world.node.stop();
            world.node.stopped().await;
        });
    }

    async fn start(runtime: &Runtime, allocations: &'static AtomicU64) -> Self {
        let redis = Redis::start().await;
        let url = redis.url();
        let node =
            runtime.spawn(async move { Node::start_with(&[("MOONGATE_REDIS_URL", &*url)]).await.until_ready().await });
        let node = node.await.unwrap();
        let mut clients = Vec::new();
        for number in 0..MANY {
            let client = node.connect().await;
            let groups = if number < FEW { &["many", "few"][..] } else { &["many"] };
            node.done("joinGroup", json!({"client_id": client.id, "group": groups})).await;
            clients.push(client);
        }
        node.done("bindUid", json!({"client_id": clients[0].id, "uid": "one"})).await;
        Self { node, redis, clients, allocations }
    }

    /// For so many messages at once, to a target that is the first `members` clients.
    async fn fewest_allocations(&mut self, target: &str, members: usize, messages: u64) -> u64 {
        let mut publisher = self.redis.connection().await;
        let (channel, message) = (format!("mg:{target}"), "m".repeat(128));
        let mut fewest = u64::MAX;
        for _ in 0..ROUNDS {
            let before = self.allocations.load(Ordering::Relaxed);
            for _ in 0..messages {
                publisher.send(&["PUBLISH", &channel, &message]).await;
            }
            for _ in 0..messages {
                assert_eq!(publisher.reply().await.int(), 1);
            }
            for client in &mut self.clients[..members] {
                for _ in 0..messages {
                    assert_eq!(client.text().await, message);
                }
            }
            fewest = fewest.min(self.allocations.load(Ordering::Relaxed) - before);
        }
        fewest
    }
}

/// The system's allocator, which counts on the threads of a node.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static COUNTED: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
}

#[allow(unsafe_code, reason = "an allocator is unsafe by nature; this one passes everything on")]
// SAFETY: all is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn count() {
    if let Some(allocations) = COUNTED.get() {
        allocations.fetch_add(1, Ordering::Relaxed);
    }
}
