//! Outbound sequence numbers: taken by any worker, never twice, never beyond what is leased on disk.
//!
//! A sequence number is also the packet's IV, so one used twice under a key breaks GCM. What makes a number unique is
//! one `fetch_add`; what keeps it unique over restarts is the lease, which the control thread writes ahead.
//!
//! With many SAs a packet would pay for an atomic addition of its own, so the worker that owns an SA may take some numbers
//! ahead, and hands out of that stock while nobody else has taken any. A number that another worker took since would be
//! far ahead of the stock, and the peer's window might leave the stock behind; so then the rest of it is given up.

use crate::bits::low_8;
use crate::drop::DropReason;
use crate::rcu::prefetch;
use crate::sync::{AtomicU8, AtomicU64, Ordering};

/// Last number that an SA with 32-bit numbers may use (RFC 4303 section 3.3.3).
pub const LAST_SHORT: u64 = u32::MAX as u64;
/// Last number that an SA with extended numbers uses here. Short of 2^64 - 1 by more than all workers together can
/// overshoot, so that the counter itself never wraps.
pub const LAST_EXTENDED: u64 = u64::MAX - (1 << 32);

/// The lease of an SA that was stopped: no number is below it, so whoever asks for one finds that out as with any lease that
/// has run out, and the way of those that have numbers left is the same as without lifetimes.
const STOPPED: u64 = 0;

/// What all workers share of the sequence numbers of one outbound SA.
///
/// Whoever takes numbers reads all fields, so they share a cache line; the lease is written a few times a second.
#[repr(align(32))]
pub struct SeqAllocator {
    /// Next number to be taken; may run past `leased` where workers take some at one moment, and what lies beyond is never used.
    next: AtomicU64,
    /// First number that must not be used yet; [`STOPPED`] where none may be used any more.
    leased: AtomicU64,
    /// Last number of this SA: of its kind, or of its lifetime.
    last: u64,
    /// How many numbers the owner took ahead at the last time; it alone writes this.
    ahead: AtomicU8,
    /// Whether a worker ever took numbers that another one owns the SA of: 1, or 0.
    is_shared: AtomicU8,
    /// Whether the last number is one of a lifetime.
    ends_early: bool,
}

/// Most numbers that the owner of an SA takes ahead where others take some too. Runs of so many need no stock.
const MOST_AHEAD: u64 = 32;
/// And where nobody else ever did: once they do, so many are given up at most.
const ALONE_AHEAD: u64 = 128;

/// The sequence numbers of one outbound SA: what workers share, and what the owner has taken and not used, its stock.
///
/// The stock is on the cache line that a packet needs of its SA anyway. All numbers in it are leased.
#[derive(Clone, Copy)]
pub struct Seq<'a> {
    /// The first number in stock. The owner alone writes it.
    pub(super) stock: &'a AtomicU64,
    /// How many numbers are in stock. The owner writes it, by a load and a store, and another worker that takes numbers makes
    /// it 0, so that the owner gives up what is left; where the owner writes at that moment, it may go on with it until that
    /// worker takes some again. The numbers are its own in any case.
    pub(super) len: &'a AtomicU8,
    pub(super) shared: &'a SeqAllocator,
}

/// Consecutive sequence numbers that belong to whoever took them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeqRun {
    /// The first of them.
    pub first: u64,
    /// How many there are; fewer than asked for where `short` says why.
    pub count: u64,
    /// Why the rest was refused.
    pub short: Option<DropReason>,
}

impl SeqAllocator {
    /// Begins at `next` (at least 1) with nothing leased.
    pub fn new(next: u64, esn: bool) -> Self {
        let last = if esn { LAST_EXTENDED } else { LAST_SHORT };
        let next = next.clamp(1, last.saturating_add(1));
        Self {
            next: AtomicU64::new(next),
            leased: AtomicU64::new(next),
            last,
            ahead: AtomicU8::new(0),
            is_shared: AtomicU8::new(0),
            ends_early: false,
        }
    }

    /// Lets no more than `packets` numbers be used in all: what a lifetime in packets comes to, exactly.
    pub(super) fn limit(&mut self, packets: u64) {
        let next = self.next.load(Ordering::Relaxed);
        let last = next.saturating_add(packets).saturating_sub(1);
        if last < self.last {
            self.last = last;
            self.ends_early = true;
        }
    }

    /// Takes up to `count` numbers below `leased`, with one atomic addition.
    #[inline]
    fn take(&self, count: u64, leased: u64) -> SeqRun {
        // Looked at before adding, so that no more is added than is leased but for what other workers add at one moment; what is
        // beyond is lost.
        let next = self.next.load(Ordering::Relaxed);
        let wanted = count.min(leased.saturating_sub(next));
        if wanted == 0 {
            return SeqRun {
                first: leased,
                count: 0,
                short: Some(self.shortage(leased)),
            };
        }
        let first = self.next.fetch_add(wanted, Ordering::Relaxed);
        let granted = leased.saturating_sub(first).min(wanted);
        SeqRun {
            first,
            count: granted,
            short: (granted < count).then(|| self.shortage(leased)),
        }
    }

    fn shortage(&self, leased: u64) -> DropReason {
        //= https://www.rfc-editor.org/rfc/rfc4303#section-3.3.3
        //# the sender MUST NOT send a packet on an SA if doing so would cause
        //# the sequence number to cycle.
        if leased == STOPPED || leased > self.last && self.ends_early {
            DropReason::SaExpired
        } else if leased > self.last {
            DropReason::SeqExhausted
        } else {
            DropReason::LeaseWait
        }
    }
}

impl Seq<'_> {
    /// Takes up to `count` numbers for the worker that owns the SA: mostly out of its stock, without an atomic addition.
    ///
    /// For one thread only. That two never own an SA is what [`super::sa::OutboundSa::take_numbers`] sees to.
    #[inline]
    pub(super) fn take_as_owner(self, count: u64) -> SeqRun {
        let first = self.stock.load(Ordering::Relaxed);
        let len = u64::from(self.len.load(Ordering::Relaxed));
        if count <= len {
            self.hand_out(first, len, count)
        } else if len == 0 && count >= MOST_AHEAD {
            // The line with the stock is one that other workers on this SA read for each packet: what needs no stock leaves it alone.
            self.shared
                .take(count, self.shared.leased.load(Ordering::Acquire))
        } else {
            self.restock(first, len, count)
        }
    }

    /// Hands out `count` of the `len` numbers from `first` on, and keeps the rest in stock.
    #[inline]
    fn hand_out(self, first: u64, len: u64, count: u64) -> SeqRun {
        self.stock
            .store(first.wrapping_add(count), Ordering::Relaxed);
        self.len
            .store(low_8(len.wrapping_sub(count)), Ordering::Relaxed);
        SeqRun {
            first,
            count,
            short: None,
        }
    }

    /// As [`Self::take_as_owner`], where the `len` numbers in stock from `first` on are too few.
    #[inline(never)]
    fn restock(self, first: u64, len: u64, count: u64) -> SeqRun {
        let shared = self.shared;
        let next = shared.next.load(Ordering::Relaxed);
        let leased = shared.leased.load(Ordering::Acquire);
        // Whether nobody has taken a number since.
        let is_latest = first.wrapping_add(len) == next;
        let len = if is_latest { len } else { 0 };
        // As in `take`.
        if next >= leased {
            let short = Some(shared.shortage(leased));
            let run = self.hand_out(first, len, count.min(len));
            return SeqRun { short, ..run };
        }
        // Where others come, twice as many as the last time, so that what is given up then is no more than was used.
        let ahead = match u64::from(shared.ahead.load(Ordering::Relaxed)) {
            _ if !is_latest => 0,
            _ if shared.is_shared.load(Ordering::Relaxed) == 0 => ALONE_AHEAD,
            last if count < MOST_AHEAD => last.saturating_mul(2).clamp(1, MOST_AHEAD),
            last => last,
        };
        shared.ahead.store(low_8(ahead), Ordering::Relaxed);
        let more = if count < MOST_AHEAD { ahead } else { 0 };
        // All of `count`, as if nothing were in stock: another worker may take some at this moment, and then what is taken here has to
        // be enough by itself.
        let taken = shared.take(count.saturating_add(more), leased);
        let (first, len) = if is_latest && taken.first == next {
            (first, len.saturating_add(taken.count))
        } else {
            (taken.first, taken.count)
        };
        let given = count.min(len);
        // A burst is too small for more to be left.
        let len = len.min(given.saturating_add(u8::MAX.into()));
        let run = self.hand_out(first, len, given);
        SeqRun {
            short: (run.count < count).then(|| shared.shortage(leased)),
            ..run
        }
    }

    /// Takes up to `count` numbers, with one atomic addition.
    #[inline]
    pub fn take(self, count: u64) -> SeqRun {
        let shared = self.shared;
        let run = shared.take(count, shared.leased.load(Ordering::Acquire));
        if run.count > 0 {
            self.give_up_stock();
        }
        run
    }

    /// Notes that a worker takes numbers of an SA that another one owns.
    #[inline]
    pub(super) fn note_guest(self) {
        if self.shared.is_shared.load(Ordering::Relaxed) == 0 {
            self.shared.is_shared.store(1, Ordering::Relaxed);
        }
    }

    /// Asks for what the owner will want when its stock is empty, as it is now and then. Changes nothing but time.
    #[inline]
    pub(super) fn prefetch_if_empty(self) {
        if self.len.load(Ordering::Relaxed) == 0 {
            prefetch(self.shared);
        }
    }

    /// Has the owner take other numbers the next time.
    fn give_up_stock(self) {
        if self.len.load(Ordering::Relaxed) != 0 {
            self.len.store(0, Ordering::Relaxed);
        }
    }

    /// Next number that would be used. While workers take numbers it may be some too high, never too low.
    pub fn next(self) -> u64 {
        let before = self.shared.next.load(Ordering::Acquire);
        let len = u64::from(self.len.load(Ordering::Acquire));
        let stock = self.stock.load(Ordering::Acquire);
        let next = self.shared.next.load(Ordering::Relaxed);
        if before == next && stock.wrapping_add(len) == next {
            stock
        } else {
            next
        }
    }

    /// The number that the next packet would get, were it taken now; it is not.
    ///
    /// # Errors
    /// Why there would be none: as in [`SeqRun::short`].
    pub fn peek(self) -> Result<u64, DropReason> {
        let leased = self.shared.leased.load(Ordering::Acquire);
        let next = self.next();
        if next < leased {
            Ok(next)
        } else {
            Err(self.shared.shortage(leased))
        }
    }

    /// First number that nobody was given: what is beyond the lease was taken and not used.
    pub fn unused(self) -> u64 {
        match self.leased() {
            // The lease is not known any more; what a worker was given in the moment of stopping is below this all the same.
            None => self.next().min(self.last().saturating_add(1)),
            Some(leased) => self.next().min(leased),
        }
    }

    /// First number that must not be used yet; `None` where the SA was stopped.
    pub fn leased(self) -> Option<u64> {
        let leased = self.shared.leased.load(Ordering::Relaxed);
        (leased != STOPPED).then_some(leased)
    }

    /// Last number of this SA.
    pub fn last(self) -> u64 {
        self.shared.last
    }

    /// Whether every number of its kind has been used: the SA needs a new key.
    pub fn is_exhausted(self) -> bool {
        !self.shared.ends_early && self.next() > self.last()
    }

    /// Allows numbers below `until`, which must be on disk by now. Never takes a lease back, and gives none to an SA that was
    /// stopped.
    pub fn extend_lease(self, until: u64) {
        let until = until.min(self.last().saturating_add(1));
        // Nothing is changed where there is nothing to extend.
        let _ = self
            .shared
            .leased
            .fetch_update(Ordering::Release, Ordering::Relaxed, |leased| {
                (leased != STOPPED && leased < until).then_some(until)
            });
    }

    /// Gives out no more numbers. A worker that asks at this very moment may still be given those of one run, and where it is
    /// the owner, go on with its stock: whoever stops an SA for good tells it by another sign too.
    pub(super) fn stop(self) {
        self.shared.leased.store(STOPPED, Ordering::Relaxed);
        self.give_up_stock();
    }
}

#[cfg(test)]
/// Numbers without an SA.
struct Alone {
    stock: AtomicU64,
    len: AtomicU8,
    shared: SeqAllocator,
}

#[cfg(test)]
impl Alone {
    fn new(next: u64, esn: bool) -> Self {
        let shared = SeqAllocator::new(next, esn);
        Self {
            stock: AtomicU64::new(shared.next.load(Ordering::Relaxed)),
            len: AtomicU8::new(0),
            shared,
        }
    }

    fn seq(&self) -> Seq<'_> {
        Seq {
            stock: &self.stock,
            len: &self.len,
            shared: &self.shared,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_number_is_one_and_nothing_goes_beyond_the_lease() {
        let alone = Alone::new(0, false);
        let seq = alone.seq();
        assert_eq!(seq.take(1).short, Some(DropReason::LeaseWait));
        seq.extend_lease(11);
        assert_eq!(
            seq.take(8),
            SeqRun {
                first: 1,
                count: 8,
                short: None
            }
        );
        assert_eq!(
            seq.take(8),
            SeqRun {
                first: 9,
                count: 2,
                short: Some(DropReason::LeaseWait)
            }
        );
        seq.extend_lease(100);
        assert_eq!(seq.take(1).first, 11);
    }

    #[test]
    fn peek_says_what_is_taken_next_and_takes_nothing() {
        for as_owner in [false, true] {
            let alone = Alone::new(1, true);
            let seq = alone.seq();
            seq.extend_lease(40);
            for _ in 0..60 {
                let said = [seq.peek(), seq.peek()];
                let run = match as_owner {
                    true => seq.take_as_owner(1),
                    false => seq.take(1),
                };
                let taken = run.short.map_or(Ok(run.first), Err);
                assert_eq!(said, [taken; 2]);
            }
        }
    }

    #[test]
    fn stopped_allocator_gives_nothing_whatever_is_leased() {
        let alone = Alone::new(1, true);
        let seq = alone.seq();
        seq.extend_lease(100);
        // The owner has some in stock.
        assert_eq!(
            (seq.take_as_owner(1).count, seq.take_as_owner(1).count),
            (1, 1)
        );
        assert_eq!(seq.unused(), 3);
        seq.stop();
        seq.extend_lease(200);
        assert_eq!(seq.leased(), None);
        for run in [seq.take_as_owner(1), seq.take_as_owner(40), seq.take(1)] {
            assert_eq!((run.count, run.short), (0, Some(DropReason::SaExpired)));
        }
        assert!(!seq.is_exhausted());
        assert!(seq.unused() >= 3, "what is saved is never too low");
    }

    #[test]
    fn lifetime_in_packets_is_exact_and_no_exhaustion() {
        for esn in [true, false] {
            let mut alone = Alone::new(7, esn);
            alone.shared.limit(5);
            let seq = alone.seq();
            seq.extend_lease(u64::MAX);
            assert_eq!(seq.take_as_owner(1).count, 1);
            let run = seq.take_as_owner(64);
            assert_eq!((run.count, run.short), (4, Some(DropReason::SaExpired)));
            assert_eq!(seq.take(1).short, Some(DropReason::SaExpired));
            assert_eq!((seq.unused(), seq.is_exhausted()), (12, false));
        }
        // One that ends where numbers of the other kind would.
        let mut alone = Alone::new(1, true);
        alone.shared.limit(LAST_SHORT);
        alone.seq().extend_lease(u64::MAX);
        assert_eq!(alone.seq().take(LAST_SHORT).short, None);
        assert_eq!(alone.seq().take(1).short, Some(DropReason::SaExpired));
        // One that its kind does not reach is none.
        let mut alone = Alone::new(LAST_SHORT, false);
        alone.shared.limit(5);
        let seq = alone.seq();
        seq.extend_lease(u64::MAX);
        assert_eq!(seq.take(2).short, Some(DropReason::SeqExhausted));
    }

    #[test]
    fn short_numbers_stop_at_the_last_and_say_so() {
        let alone = Alone::new(LAST_SHORT - 1, false);
        let seq = alone.seq();
        seq.extend_lease(u64::MAX);
        assert_eq!(
            seq.take(2),
            SeqRun {
                first: LAST_SHORT - 1,
                count: 2,
                short: None
            }
        );
        assert_eq!(
            seq.take(1),
            SeqRun {
                first: LAST_SHORT + 1,
                count: 0,
                short: Some(DropReason::SeqExhausted)
            }
        );
        assert!(seq.is_exhausted());
        assert_eq!(seq.next(), LAST_SHORT + 1);
    }

    #[test]
    fn extended_numbers_pass_32_bits() {
        let alone = Alone::new(LAST_SHORT, true);
        let seq = alone.seq();
        seq.extend_lease(LAST_SHORT + 10);
        assert_eq!(
            seq.take(3),
            SeqRun {
                first: LAST_SHORT,
                count: 3,
                short: None
            }
        );
    }

    fn numbers(runs: &[SeqRun]) -> Vec<u64> {
        let each = |run: &SeqRun| run.first..run.first + run.count;
        runs.iter().flat_map(each).collect()
    }

    #[test]
    fn owner_alone_uses_every_number_in_order() {
        let alone = Alone::new(1, true);
        let seq = alone.seq();
        seq.extend_lease(u64::MAX);
        let counts = [1, 1, 1, 5, 64, 1, 40, 2].into_iter().cycle().take(200);
        let runs: Vec<_> = counts.map(|count| seq.take_as_owner(count)).collect();
        let taken = numbers(&runs);
        assert_eq!(taken, (1..=taken.len() as u64).collect::<Vec<_>>());
        assert_eq!(
            seq.next(),
            taken.len() as u64 + 1,
            "as if none were in stock"
        );
        assert!(alone.len.load(Ordering::Relaxed) > 0, "and some are");
    }

    #[test]
    fn owner_gives_up_its_stock_when_another_worker_took_numbers() {
        let alone = Alone::new(1, true);
        let seq = alone.seq();
        seq.extend_lease(u64::MAX);
        let owned: Vec<_> = (0..100).map(|_| seq.take_as_owner(1)).collect();
        let used = numbers(&owned).len() as u64;
        let guest = seq.take(1).first;
        assert!(guest > used && guest - used - 1 <= ALONE_AHEAD);
        assert_eq!(seq.take_as_owner(1).first, guest + 1, "behind the guest's");
        assert_eq!(seq.next(), guest + 2);
    }

    #[test]
    fn owner_waits_at_the_lease_and_loses_no_number_to_it() {
        let alone = Alone::new(1, true);
        let seq = alone.seq();
        seq.extend_lease(11);
        assert_eq!(
            numbers(&[seq.take_as_owner(7), seq.take_as_owner(1)]),
            [1, 2, 3, 4, 5, 6, 7, 8]
        );
        let short = seq.take_as_owner(5);
        assert_eq!(
            (short.first, short.count, short.short),
            (9, 2, Some(DropReason::LeaseWait))
        );
        assert_eq!(seq.take_as_owner(1).short, Some(DropReason::LeaseWait));
        seq.extend_lease(100);
        assert_eq!(seq.take_as_owner(3).first, 11);
    }

    #[test]
    fn owner_stops_at_the_last_number() {
        let alone = Alone::new(LAST_SHORT - 3, false);
        let seq = alone.seq();
        seq.extend_lease(u64::MAX);
        let runs: Vec<_> = (0..8).map(|_| seq.take_as_owner(1)).collect();
        assert_eq!(
            numbers(&runs),
            (LAST_SHORT - 3..=LAST_SHORT).collect::<Vec<_>>()
        );
        assert_eq!(runs[7].short, Some(DropReason::SeqExhausted));
        assert!(seq.is_exhausted());
    }

    proptest! {
        #[test]
        fn no_number_is_used_twice_whoever_takes(
            steps in prop::collection::vec((any::<bool>(), 1u64..=64, 0u64..40), 1..300),
        ) {
            let alone = Alone::new(1, true);
            let seq = alone.seq();
            let (mut runs, mut leased) = (Vec::new(), 1);
            for (is_owner, count, more) in steps {
                leased += more;
                seq.extend_lease(leased);
                let run = if is_owner { seq.take_as_owner(count) } else { seq.take(count) };
                prop_assert!(run.count <= count && run.first + run.count <= leased.max(run.first));
                prop_assert_eq!(run.short.is_some(), run.count < count);
                prop_assert!(run.count == 0 || seq.next() >= run.first + run.count);
                runs.push(run);
            }
            let taken = numbers(&runs);
            let mut once = taken.clone();
            once.sort_unstable();
            once.dedup();
            prop_assert_eq!(once.len(), taken.len());
        }
    }

    #[test]
    fn a_lease_is_never_taken_back() {
        let alone = Alone::new(1, true);
        let seq = alone.seq();
        seq.extend_lease(100);
        seq.extend_lease(50);
        assert_eq!(seq.leased(), Some(100));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn owner_with_a_stock_never_shares_a_number_with_another_worker() {
        loom::model(|| {
            let alone = Arc::new(Alone::new(1, true));
            let seq = alone.seq();
            // Enough for both beside what the owner takes ahead.
            seq.extend_lease(1000);
            let theirs = Arc::clone(&alone);
            let other = loom::thread::spawn(move || [theirs.seq().take(1), theirs.seq().take(1)]);
            let mine = [1, 1, 1].map(|count| seq.take_as_owner(count));
            let theirs = other.join().expect("worker");
            let mut all: Vec<u64> = mine
                .iter()
                .chain(&theirs)
                .flat_map(|run| run.first..run.first + run.count)
                .collect();
            assert_eq!(all.len(), 5);
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 5);
            assert!(all.iter().all(|number| *number < seq.next()));
        });
    }

    #[test]
    fn owner_whose_stock_is_too_small_is_given_all_it_wants_whoever_comes() {
        loom::model(|| {
            let alone = Arc::new(Alone::new(1, true));
            alone.seq().extend_lease(1000);
            let theirs = Arc::clone(&alone);
            let other = loom::thread::spawn(move || theirs.seq().take(1));
            let mine = [1, 200].map(|count| alone.seq().take_as_owner(count));
            let theirs = other.join().expect("worker");
            let mut all: Vec<u64> = mine
                .iter()
                .chain([&theirs])
                .inspect(|run| assert_eq!(run.short, None))
                .flat_map(|run| run.first..run.first + run.count)
                .collect();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 202);
        });
    }

    #[test]
    fn two_workers_never_share_a_number_nor_pass_the_lease() {
        loom::model(|| {
            let alone = Arc::new(Alone::new(1, true));
            let seq = alone.seq();
            seq.extend_lease(4);
            let theirs = Arc::clone(&alone);
            let other = loom::thread::spawn(move || theirs.seq().take(2));
            let mine = seq.take(2);
            seq.extend_lease(20);
            let late = seq.take(1);
            let other = other.join().expect("worker");
            let mut all: Vec<u64> = [mine, other, late]
                .iter()
                .flat_map(|run| run.first..run.first + run.count)
                .collect();
            let taken = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), taken);
            assert!(mine.first + mine.count <= 4);
        });
    }
}
