//! What one SA counts. Any worker may, and for the one that has most to do with it, it costs no atomic operation.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64 as PlainU64, Ordering as PlainOrdering};

use crate::drop::DropReason;
use crate::sync::{AtomicU8, AtomicU64, Ordering, fence};

/// Names a worker to the SAs it owns: those that it was the first to count on.
///
/// What an SA's owner may do without atomic operations, two threads must never do at a time, so no two workers that there are at
/// a time have the same id, an id cannot be copied, and only one thread can hold a reference to it. A worker that comes later
/// may have the id of one that has gone, and then owns what that one did.
///
/// An id has one byte, for it stands in every SA. Workers beyond 255 have none: they own nothing, and are right all the same.
#[derive(Debug)]
pub struct WorkerId(u8, PhantomData<Cell<()>>);

/// The id of those that have none, and the owner of what has none.
const NOBODY: u8 = 0;

/// A bit for each id in use.
struct Ids([PlainU64; 4]);

/// Outside any model: loom's atomics cannot be static.
static IDS: Ids = Ids([const { PlainU64::new(0) }; 4]);

impl Ids {
    fn claim(&self) -> u8 {
        let is_free = |id: &u8| {
            let (word, bit) = self.place(*id);
            // All that the last one with this id did comes before.
            word.fetch_or(bit, PlainOrdering::Acquire) & bit == 0
        };
        (1..=u8::MAX).find(is_free).unwrap_or(NOBODY)
    }

    fn release(&self, id: u8) {
        if id != NOBODY {
            let (word, bit) = self.place(id);
            word.fetch_and(!bit, PlainOrdering::Release);
        }
    }

    fn place(&self, id: u8) -> (&PlainU64, u64) {
        let [first, ..] = &self.0;
        let word = self.0.get(usize::from(id / 64)).unwrap_or(first);
        (word, 1 << (id % 64))
    }
}

impl WorkerId {
    /// An id that nobody has.
    pub fn new() -> Self {
        Self(IDS.claim(), PhantomData)
    }
}

impl Default for WorkerId {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for WorkerId {
    fn drop(&mut self) {
        IDS.release(self.0);
    }
}

/// Bits of the owner's word that have bytes; those above have packets. So that one load and one store count both, on the cache
/// line that a packet touches anyway.
const BYTES: u32 = 40;
/// Packets from which on the owner takes its word to the [`ColdCounters`]: with these of 65,535 bytes there is room for one
/// burst more in either part.
const FULL: u64 = 1 << 22;

const _: () =
    assert!((FULL + 64) * (u16::MAX as u64) < 1 << BYTES && (FULL + 64) < 1 << (64 - BYTES));

/// What is counted seldom.
pub(super) struct ColdCounters {
    /// Odd while the owner takes its word to `spilled`.
    turn: AtomicU64,
    /// Packets and bytes that the owner's word had no room for. It alone writes them.
    spilled: [AtomicU64; 2],
    /// Packets and bytes of all others.
    guests: [AtomicU64; 2],
    drops: Box<[AtomicU64]>,
}

/// Bytes of the counters of drops.
pub(super) const DROPS_SIZE: usize = DropReason::COUNT * size_of::<AtomicU64>();

impl Default for ColdCounters {
    fn default() -> Self {
        let none = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            turn: AtomicU64::new(0),
            spilled: none(),
            guests: none(),
            drops: (0..DropReason::COUNT).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

/// What one SA sealed or opened, and what of it was dropped.
///
/// The first worker that counts here owns `counted`: it alone writes it, by a load and a store. All others add to the cold ones.
#[derive(Clone, Copy)]
pub struct SaCounters<'a> {
    /// Bytes in the low [`BYTES`] bits, packets above.
    pub(super) counted: &'a AtomicU64,
    /// Whose that is.
    pub(super) owner: &'a AtomicU8,
    pub(super) cold: &'a ColdCounters,
}

/// Times that a reader looks again where the owner was just at it: each time the owner has counted millions of packets.
const MOST_LOOKS: usize = 1000;

impl SaCounters<'_> {
    /// Whether the worker owns the SA.
    #[inline]
    pub(super) fn is_owned_by(self, worker: &WorkerId) -> bool {
        // Nobody owns what has no owner yet, so a worker without an id must not.
        self.owner.load(Ordering::Relaxed) == worker.0 && worker.0 != NOBODY
    }

    /// Whether any worker owns the SA.
    pub(super) fn has_owner(self) -> bool {
        self.owner.load(Ordering::Relaxed) != NOBODY
    }

    /// Adds a run of packets, no more than a burst, and their inner bytes.
    #[inline]
    pub fn add(self, worker: &WorkerId, packets: u64, bytes: u64) {
        if !self.is_owned_by(worker) {
            return self.add_as_guest(worker, packets, bytes);
        }
        let counted = self.counted.load(Ordering::Relaxed);
        let counted = counted.wrapping_add(packets << BYTES | bytes);
        if counted >> BYTES >= FULL {
            return self.spill(counted);
        }
        self.counted.store(counted, Ordering::Relaxed);
    }

    /// Takes `counted`, of which not all is in the owner's word yet, to the cold counters.
    #[cold]
    fn spill(self, counted: u64) {
        let turn = self.cold.turn.load(Ordering::Relaxed);
        self.cold
            .turn
            .store(turn.wrapping_add(1), Ordering::Relaxed);
        // A reader that sees anything of what follows sees that it is under way.
        fence(Ordering::Release);
        for (spilled, more) in self.cold.spilled.iter().zip(split(counted)) {
            let sum = spilled.load(Ordering::Relaxed).wrapping_add(more);
            spilled.store(sum, Ordering::Relaxed);
        }
        self.counted.store(0, Ordering::Relaxed);
        self.cold
            .turn
            .store(turn.wrapping_add(2), Ordering::Release);
    }

    #[cold]
    fn add_as_guest(self, worker: &WorkerId, packets: u64, bytes: u64) {
        let claimed = worker.0 != NOBODY
            && self
                .owner
                .compare_exchange(NOBODY, worker.0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if claimed {
            return self.add(worker, packets, bytes);
        }
        for (sum, more) in self.cold.guests.iter().zip([packets, bytes]) {
            sum.fetch_add(more, Ordering::Relaxed);
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
        let [packets, _] = self.both();
        packets
    }

    /// Their inner bytes.
    pub fn bytes(self) -> u64 {
        let [_, bytes] = self.both();
        bytes
    }

    /// Packets and their inner bytes.
    fn both(self) -> [u64; 2] {
        let mut both = [0; 2];
        for _ in 0..MOST_LOOKS {
            let turn = self.cold.turn.load(Ordering::Acquire);
            both = split(self.counted.load(Ordering::Relaxed));
            for (sum, spilled) in both.iter_mut().zip(&self.cold.spilled) {
                *sum = sum.wrapping_add(spilled.load(Ordering::Relaxed));
            }
            fence(Ordering::Acquire);
            if turn.is_multiple_of(2) && self.cold.turn.load(Ordering::Relaxed) == turn {
                break;
            }
        }
        for (sum, guests) in both.iter_mut().zip(&self.cold.guests) {
            *sum = sum.wrapping_add(guests.load(Ordering::Relaxed));
        }
        both
    }

    /// Packets of this SA that were dropped for `reason`.
    pub fn drops(self, reason: DropReason) -> u64 {
        self.cold
            .drops
            .get(reason.index())
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

/// Packets and bytes of the owner's word.
#[inline]
fn split(counted: u64) -> [u64; 2] {
    [counted >> BYTES, counted & ((1 << BYTES) - 1)]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Rig {
        counted: AtomicU64,
        owner: AtomicU8,
        cold: ColdCounters,
    }

    impl Rig {
        fn get(&self) -> SaCounters<'_> {
            SaCounters {
                counted: &self.counted,
                owner: &self.owner,
                cold: &self.cold,
            }
        }
    }

    #[test]
    fn owner_and_guests_add_up() {
        let rig = Rig::default();
        let workers = [WorkerId::new(), WorkerId::new(), WorkerId::new()];
        std::thread::scope(|scope| {
            for worker in workers {
                let counters = rig.get();
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        counters.add(&worker, 3, 100);
                    }
                });
            }
        });
        let counters = rig.get();
        assert_eq!((counters.packets(), counters.bytes()), (90_000, 3_000_000));
        let [owned, _] = split(rig.counted.load(Ordering::Relaxed));
        assert!(owned <= 30_000, "one owner");
    }

    #[test]
    fn owner_counts_on_when_its_word_is_full_and_a_reader_never_sees_less() {
        let rig = Rig::default();
        let counters = rig.get();
        let (rounds, packets, bytes) = (400_000, 64, 64 * 65_535);
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let worker = WorkerId::new();
                (0..rounds).for_each(|_| counters.add(&worker, packets, bytes));
            });
            let mut before = [0; 2];
            while !writer.is_finished() {
                let now = counters.both();
                assert!(
                    now[0] >= before[0] && now[1] == now[0] * 65_535,
                    "{before:?} {now:?}"
                );
                before = now;
            }
        });
        assert_eq!(counters.both(), [rounds * packets, rounds * bytes]);
        assert!(
            counters.cold.turn.load(Ordering::Relaxed) > 2,
            "more than once"
        );
    }

    #[test]
    fn ids_are_ones_own_and_come_back() {
        let ids = Ids(std::array::from_fn(|_| PlainU64::new(0)));
        let claimed: Vec<_> = (0..300).map(|_| ids.claim()).collect();
        let expected = (1..=u8::MAX).chain([NOBODY; 45]);
        assert!(claimed.iter().copied().eq(expected));
        ids.release(NOBODY);
        assert_eq!(ids.claim(), NOBODY);
        ids.release(77);
        assert_eq!((ids.claim(), ids.claim()), (77, NOBODY));
    }

    #[test]
    fn worker_without_an_id_owns_nothing_and_counts_all_the_same() {
        let (rig, nobody) = (Rig::default(), WorkerId(NOBODY, PhantomData));
        rig.get().add(&nobody, 1, 10);
        assert!(!rig.get().is_owned_by(&nobody));
        assert_eq!(rig.get().both(), [1, 10]);
    }
}
