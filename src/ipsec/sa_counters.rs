//! What one SA counts. Any worker may, and for the one that has most to do with it, it costs no atomic operation.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64 as PlainU64, Ordering as PlainOrdering};

use crate::drop::DropReason;
use crate::sync::{AtomicU64, Ordering};

/// Names a worker to the SAs it owns: those that it was the first to count on.
///
/// What an SA's owner may do without atomic operations, two threads must never do at a time, so no two workers of a process
/// have the same id, an id cannot be copied, and only one thread can hold a reference to it.
#[derive(Debug)]
pub struct WorkerId(u64, PhantomData<Cell<()>>);

impl WorkerId {
    /// An id that nobody has.
    pub fn new() -> Self {
        // Outside any model: loom's atomics cannot be static.
        static NEXT: PlainU64 = PlainU64::new(1);
        Self(NEXT.fetch_add(1, PlainOrdering::Relaxed), PhantomData)
    }
}

impl Default for WorkerId {
    fn default() -> Self {
        Self::new()
    }
}

/// Packets and bytes, on a cache line that a packet touches anyway.
///
/// The first worker that counts here owns the two: it alone writes them, by a load and a store. All others add to the
/// [`ColdCounters`].
#[derive(Default)]
pub(super) struct HotCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    /// The owner's id, 0 for none yet.
    owner: AtomicU64,
}

impl HotCounters {
    /// Whether the worker owns the SA.
    #[inline]
    pub(super) fn is_owned_by(&self, worker: &WorkerId) -> bool {
        self.owner.load(Ordering::Relaxed) == worker.0
    }
}

/// What is counted seldom.
pub(super) struct ColdCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    drops: [AtomicU64; DropReason::COUNT],
}

impl Default for ColdCounters {
    fn default() -> Self {
        Self {
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// What one SA sealed or opened, and what of it was dropped.
#[derive(Clone, Copy)]
pub struct SaCounters<'a> {
    pub(super) hot: &'a HotCounters,
    pub(super) cold: &'a ColdCounters,
}

impl SaCounters<'_> {
    /// Adds a run of packets and their inner bytes.
    #[inline]
    pub fn add(self, worker: &WorkerId, packets: u64, bytes: u64) {
        if self.hot.is_owned_by(worker) {
            add_alone(&self.hot.packets, packets);
            add_alone(&self.hot.bytes, bytes);
        } else {
            self.add_as_guest(worker, packets, bytes);
        }
    }

    #[cold]
    fn add_as_guest(self, worker: &WorkerId, packets: u64, bytes: u64) {
        let owner = &self.hot.owner;
        if owner
            .compare_exchange(0, worker.0, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            self.add(worker, packets, bytes);
        } else {
            self.cold.packets.fetch_add(packets, Ordering::Relaxed);
            self.cold.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Adds a run of drops for one reason.
    pub fn add_drops(self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.cold.drops.get(reason.index()) {
            counter.fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// Packets sealed or opened.
    pub fn packets(self) -> u64 {
        let owned = self.hot.packets.load(Ordering::Relaxed);
        owned.wrapping_add(self.cold.packets.load(Ordering::Relaxed))
    }

    /// Their inner bytes.
    pub fn bytes(self) -> u64 {
        let owned = self.hot.bytes.load(Ordering::Relaxed);
        owned.wrapping_add(self.cold.bytes.load(Ordering::Relaxed))
    }

    /// Packets of this SA that were dropped for `reason`.
    pub fn drops(self, reason: DropReason) -> u64 {
        self.cold
            .drops
            .get(reason.index())
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

/// Adds to a counter that nobody else writes.
#[inline]
fn add_alone(counter: &AtomicU64, n: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn owner_and_guests_add_up() {
        let (hot, cold) = (HotCounters::default(), ColdCounters::default());
        let counters = SaCounters {
            hot: &hot,
            cold: &cold,
        };
        let workers = [WorkerId::new(), WorkerId::new(), WorkerId::new()];
        std::thread::scope(|scope| {
            for worker in workers {
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        counters.add(&worker, 3, 100);
                    }
                });
            }
        });
        assert_eq!((counters.packets(), counters.bytes()), (90_000, 3_000_000));
        assert!(hot.packets.load(Ordering::Relaxed) <= 30_000, "one owner");
    }
}
