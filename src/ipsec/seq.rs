//! Outbound sequence numbers: taken by any worker, never twice, never beyond what is leased on disk.
//!
//! A sequence number is also the packet's IV, so one used twice under a key breaks GCM. What makes a number unique is
//! one `fetch_add`; what keeps it unique over restarts is the lease, which the control thread writes ahead.

use crate::drop::DropReason;
use crate::sync::{AtomicU64, Ordering};

/// Last number that an SA with 32-bit numbers may use (RFC 4303 section 3.3.3).
pub const LAST_SHORT: u64 = u32::MAX as u64;
/// Last number that an SA with extended numbers uses here. Short of 2^64 - 1 by more than all workers together can
/// overshoot, so that the counter itself never wraps.
pub const LAST_EXTENDED: u64 = u64::MAX - (1 << 32);

/// Hands out the sequence numbers of one outbound SA.
///
/// Whoever takes numbers reads all three fields, so they share a cache line; the lease is written a few times a second.
pub struct SeqAllocator {
    /// Next number to be taken; may run past `leased`, and what lies beyond is never used.
    next: AtomicU64,
    /// First number that must not be used yet.
    leased: AtomicU64,
    /// Last number of this SA.
    last: u64,
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
        }
    }

    /// Takes up to `count` numbers, with one atomic addition.
    #[inline]
    pub fn take(&self, count: u64) -> SeqRun {
        let leased = self.leased.load(Ordering::Acquire);
        // Looked at before adding, so that an exhausted SA overshoots by no more than what workers add at one moment.
        if self.next.load(Ordering::Relaxed) >= leased {
            return SeqRun {
                first: leased,
                count: 0,
                short: Some(self.shortage(leased)),
            };
        }
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let granted = leased.saturating_sub(first).min(count);
        SeqRun {
            first,
            count: granted,
            short: (granted < count).then(|| self.shortage(leased)),
        }
    }

    /// Next number that would be taken.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// First number that must not be used yet.
    pub fn leased(&self) -> u64 {
        self.leased.load(Ordering::Relaxed)
    }

    /// Last number of this SA.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Whether every number has been used: the SA needs a new key.
    pub fn is_exhausted(&self) -> bool {
        self.next() > self.last
    }

    /// Allows numbers below `until`, which must be on disk by now. Never takes a lease back.
    pub fn extend_lease(&self, until: u64) {
        let until = until.min(self.last.saturating_add(1));
        self.leased.fetch_max(until, Ordering::Release);
    }

    fn shortage(&self, leased: u64) -> DropReason {
        //= https://www.rfc-editor.org/rfc/rfc4303#section-3.3.3
        //# the sender MUST NOT send a packet on an SA if doing so would cause
        //# the sequence number to cycle.
        if leased > self.last {
            DropReason::SeqExhausted
        } else {
            DropReason::LeaseWait
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn first_number_is_one_and_nothing_goes_beyond_the_lease() {
        let seq = SeqAllocator::new(0, false);
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
        // 11 to 16 were taken beyond the lease and are lost, not used.
        assert_eq!(seq.take(1).first, 17);
    }

    #[test]
    fn short_numbers_stop_at_the_last_and_say_so() {
        let seq = SeqAllocator::new(LAST_SHORT - 1, false);
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
        let seq = SeqAllocator::new(LAST_SHORT, true);
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

    #[test]
    fn a_lease_is_never_taken_back() {
        let seq = SeqAllocator::new(1, true);
        seq.extend_lease(100);
        seq.extend_lease(50);
        assert_eq!(seq.leased(), 100);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn two_workers_never_share_a_number_nor_pass_the_lease() {
        loom::model(|| {
            let seq = Arc::new(SeqAllocator::new(1, true));
            seq.extend_lease(4);
            let theirs = Arc::clone(&seq);
            let other = loom::thread::spawn(move || theirs.take(2));
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
