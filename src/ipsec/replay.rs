//! The anti-replay window (RFC 4303 section 3.4.3), lock-free: any worker may commit to it.
//!
//! The window is a ring of 64-bit words. Each word stands for one block of 32 sequence numbers: the high half says
//! which block (its *lap* round the ring), the low half which of its numbers were seen. So a late packet, a duplicate
//! and a jump ahead are each one compare-and-swap on one word, and a run of consecutive packets costs one for up to 32
//! of them. A number is accepted at most once whatever the interleaving, for a word only gains bits or moves to a later
//! lap; the loom model below says so.

use crate::bits::low_32;
use crate::drop::DropReason;
use crate::rcu::prefetch;
use crate::sync::{AtomicU64, Ordering};

/// Smallest window, in packets.
pub const MIN_WINDOW: u32 = 64;
/// Largest window, in packets.
pub const MAX_WINDOW: u32 = 65_536;
/// Sequence numbers in one word.
const BLOCK: u64 = 32;
/// Compare-and-swap attempts before giving up on a word: each failure means another worker changed it, and 64 workers
/// can do so 32 times each before every bit is set.
const MAX_ATTEMPTS: usize = 4096;

/// An anti-replay window over 64-bit sequence numbers, wherever its parts are: of an SA the top and the size lie on its one cache
/// line, and the words apart.
#[derive(Clone, Copy)]
pub struct Window<'a> {
    /// Highest number seen, or for a moment a lower one that another worker saw at the same time: it is written by a load
    /// and a store. Only the left edge follows from it. A number counts once in any case, for its word says so.
    pub(super) top: &'a AtomicU64,
    /// A power of two of words, enough for the window and the block at its right edge.
    pub(super) words: &'a [AtomicU64],
    /// Window size in packets.
    pub(super) size: u64,
    /// Numbers up to here count as seen: the state saved when the gateway stopped. The words say so, and this says why.
    pub(super) floor: &'a u64,
}

/// A window by itself.
pub struct ReplayWindow {
    top: AtomicU64,
    words: Box<[AtomicU64]>,
    size: u64,
    floor: u64,
}

/// Packets of one block that are to be committed together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRun {
    /// The block.
    pub block: u64,
    /// Its numbers, one bit each.
    pub bits: u32,
    /// Highest of them.
    pub highest: u64,
}

impl BlockRun {
    /// A run of one number.
    pub fn new(seq: u64) -> Self {
        Self {
            block: seq / BLOCK,
            bits: Self::bit(seq),
            highest: seq,
        }
    }

    /// The bit of `seq` in its block.
    pub fn bit(seq: u64) -> u32 {
        1 << (seq % BLOCK)
    }

    /// Takes `seq` into the run; false where it belongs to another block or is in it already.
    pub fn push(&mut self, seq: u64) -> bool {
        let bit = Self::bit(seq);
        let fits = seq / BLOCK == self.block && self.bits & bit == 0;
        if fits {
            self.bits |= bit;
            self.highest = self.highest.max(seq);
        }
        fits
    }
}

/// The size that a window of `size` packets has: from 64 to 65,536.
pub(super) fn window_size(size: u32) -> u32 {
    size.clamp(MIN_WINDOW, MAX_WINDOW)
}

/// How many words a window of `size` packets has: for as many blocks as it can touch.
pub(crate) fn window_words(size: u32) -> usize {
    let blocks = u64::from(size.saturating_sub(1))
        .div_ceil(BLOCK)
        .saturating_add(1);
    // Some thousands at most.
    usize::try_from(blocks.next_power_of_two()).unwrap_or(1)
}

/// What the word at `index` of `words` is at first, where all numbers up to `floor` count as seen.
pub(super) fn first_word(floor: u64, index: u64, words: usize) -> u64 {
    let words = words as u64;
    let shift = words.trailing_zeros();
    let last = floor / BLOCK;
    // The latest block of this word that is not beyond the floor's.
    let behind = last.wrapping_sub(index) & words.wrapping_sub(1);
    match last.checked_sub(behind) {
        Some(block) => {
            let seen = if behind == 0 {
                u32::MAX >> (floor % BLOCK).abs_diff(BLOCK - 1)
            } else {
                u32::MAX
            };
            u64::from(low_32(block >> shift)) << 32 | u64::from(seen)
        }
        // There is none: nothing of the first lap was seen.
        None => 0,
    }
}

impl ReplayWindow {
    /// A window of `size` packets (clamped to 64 to 65,536) in which every number up to `floor` counts as seen.
    pub fn new(size: u32, floor: u64) -> Self {
        let size = window_size(size);
        let words = window_words(size);
        Self {
            top: AtomicU64::new(floor),
            words: (0..words as u64)
                .map(|index| AtomicU64::new(first_word(floor, index, words)))
                .collect(),
            size: u64::from(size),
            floor,
        }
    }

    /// What is done with it.
    pub fn get(&self) -> Window<'_> {
        Window {
            top: &self.top,
            words: &self.words,
            size: self.size,
            floor: &self.floor,
        }
    }
}

impl Window<'_> {
    /// Window size, in packets.
    pub fn size(self) -> u64 {
        self.size
    }

    /// Highest number seen; for a moment it may be one that is lower by what workers commit at one moment.
    #[inline]
    pub fn top(self) -> u64 {
        self.top.load(Ordering::Relaxed)
    }

    /// Highest number seen, exactly: for when no worker commits any more. Reads the whole window.
    pub fn highest(self) -> u64 {
        let top = self.top();
        let lap_of_top = (top / BLOCK) >> self.laps_shift();
        let numbers = self.words.iter().zip(0u64..).filter_map(|(word, index)| {
            let word = word.load(Ordering::Relaxed);
            let highest_bit = low_32(word).checked_ilog2()?;
            // A word's lap is never far from the top's.
            let ahead = lap_of(word).wrapping_sub(low_32(lap_of_top)).cast_signed();
            let lap = lap_of_top.checked_add_signed(i64::from(ahead))?;
            let block = lap << self.laps_shift() | index;
            Some(
                block
                    .wrapping_mul(BLOCK)
                    .wrapping_add(u64::from(highest_bit)),
            )
        });
        numbers.fold(top, u64::max)
    }

    /// The 64-bit number whose low half is `low`, the one nearest the window (RFC 4303 appendix A2.2); `None` where it
    /// would lie before the first.
    pub fn rebuild(self, low: u32, top: u64) -> Option<u64> {
        let top_low = top & 0xffff_ffff;
        let low = u64::from(low);
        let high = top >> 32;
        let edge = top_low.wrapping_sub(self.size.wrapping_sub(1)) & 0xffff_ffff;
        let high = if top_low >= self.size.wrapping_sub(1) {
            // The window lies within one subspace.
            if low >= edge {
                high
            } else {
                high.checked_add(1)?
            }
        } else if low >= edge {
            // The window reaches back into the subspace before, and so does the number.
            high.checked_sub(1)?
        } else {
            high
        };
        (high < 1 << 32).then_some(high << 32 | low)
    }

    /// Whether `seq` could still be accepted, to save the work of opening what cannot. Changes nothing.
    ///
    /// # Errors
    /// `ZeroSequence`, `TooOld` or `Replayed`.
    #[inline]
    pub fn check(self, seq: u64) -> Result<(), DropReason> {
        self.check_edge(seq, self.top())?;
        let block = seq / BLOCK;
        let word = self.word(block).load(Ordering::Relaxed);
        let ahead = self.lap(block).wrapping_sub(lap_of(word));
        if ahead == 0 && low_32(word) & BlockRun::bit(seq) != 0 {
            return Err(self.why_seen(seq));
        }
        if is_behind(ahead) {
            return Err(DropReason::TooOld);
        }
        Ok(())
    }

    /// Commits a run whose packets have all been verified. Returns the bits that were accepted: new, and not left of
    /// the window. Call it only after the ICV check.
    pub fn commit(self, run: BlockRun) -> u32 {
        //= https://www.rfc-editor.org/rfc/rfc4303#section-3.4.3
        //# The receive window is updated only if the integrity verification succeeds.
        let top = self.top();
        // Numbers up to the left edge are none of the window's; how many of the block those are decides which bits count.
        let edge = top.saturating_sub(self.size);
        let outside = edge
            .saturating_add(1)
            .saturating_sub(run.block.wrapping_mul(BLOCK));
        let inside = u32::try_from(outside)
            .ok()
            .and_then(|outside| u32::MAX.checked_shl(outside))
            .unwrap_or(0);
        let bits = run.bits & inside;
        if bits == 0 {
            return 0;
        }
        let accepted = self.commit_word(run.block, bits);
        // An atomic maximum would cost as much as the window itself, and the words alone say what was seen.
        if accepted != 0 && run.highest > self.top() {
            self.top.store(run.highest, Ordering::Relaxed);
        }
        accepted
    }

    fn commit_word(self, block: u64, bits: u32) -> u32 {
        let lap = self.lap(block);
        let slot = self.word(block);
        let mut word = slot.load(Ordering::Relaxed);
        for _ in 0..MAX_ATTEMPTS {
            let ahead = lap.wrapping_sub(lap_of(word));
            let seen = match ahead {
                0 => low_32(word),
                _ if is_behind(ahead) => return 0,
                _ => 0,
            };
            let fresh = bits & !seen;
            if fresh == 0 {
                return 0;
            }
            let new = u64::from(lap) << 32 | u64::from(seen | fresh);
            match slot.compare_exchange_weak(word, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return fresh,
                Err(now) => word = now,
            }
        }
        0
    }

    #[inline]
    fn check_edge(self, seq: u64, top: u64) -> Result<(), DropReason> {
        if seq == 0 {
            return Err(DropReason::ZeroSequence);
        }
        if seq <= top.saturating_sub(self.size) {
            return Err(DropReason::TooOld);
        }
        Ok(())
    }

    #[cold]
    fn why_seen(self, seq: u64) -> DropReason {
        if seq <= *self.floor {
            DropReason::TooOld
        } else {
            DropReason::Replayed
        }
    }

    /// Asks for the word of the number whose low half is `low`.
    #[inline]
    pub fn prefetch(self, low: u32) {
        prefetch(self.word(u64::from(low) / BLOCK));
    }

    #[inline]
    fn laps_shift(self) -> u32 {
        self.words.len().trailing_zeros()
    }

    #[inline]
    fn word(&self, block: u64) -> &AtomicU64 {
        // The mask keeps the index below the power-of-two length, so the fallback is never taken.
        let index = block & (self.words.len() as u64).wrapping_sub(1);
        usize::try_from(index)
            .ok()
            .and_then(|index| self.words.get(index))
            .unwrap_or(self.top)
    }

    /// Which turn round the ring `block` belongs to; 32 bits of it tell laps apart for 2^38 packets and more.
    fn lap(self, block: u64) -> u32 {
        low_32(block >> self.laps_shift())
    }
}

fn lap_of(word: u64) -> u32 {
    low_32(word >> 32)
}

/// Whether a lap that is `ahead` of the word's, modulo 2^32, is really behind it.
fn is_behind(ahead: u32) -> bool {
    ahead >= 1 << 31
}

#[cfg(all(test, not(loom)))]
#[path = "replay/tests.rs"]
mod tests;

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use std::sync::Arc;

    /// Two workers commit `left` and `right`; returns how often each of `numbers` was accepted.
    fn race(left: &'static [u64], right: &'static [u64], numbers: &[u64]) -> Vec<usize> {
        let window = Arc::new(ReplayWindow::new(64, 0));
        let work = |window: Arc<ReplayWindow>, seqs: &'static [u64]| {
            let mut accepted = Vec::new();
            for &seq in seqs {
                if window.get().commit(BlockRun::new(seq)) != 0 {
                    accepted.push(seq);
                }
            }
            accepted
        };
        let theirs = Arc::clone(&window);
        let other = loom::thread::spawn(move || work(theirs, right));
        let mut all = work(window, left);
        all.extend(other.join().expect("worker"));
        let count = |n: &u64| all.iter().filter(|seq| *seq == n).count();
        numbers.iter().map(count).collect()
    }

    #[test]
    fn two_workers_accept_a_duplicate_exactly_once() {
        loom::model(|| assert_eq!(race(&[5], &[5], &[5]), [1]));
    }

    #[test]
    fn two_workers_in_one_block_lose_nothing() {
        loom::model(|| assert_eq!(race(&[5, 7], &[6, 7], &[5, 6, 7]), [1, 1, 1]));
    }

    #[test]
    fn jump_ahead_races_a_duplicate_of_the_number_it_overtakes() {
        // 133 shares its word with 5 one lap later (64 packets: 4 words of 32). 5 may lose to it, but never doubles.
        loom::model(|| {
            let counts = race(&[5, 133], &[5], &[5, 133]);
            assert_eq!(counts, [1, 1]);
        });
    }

    #[test]
    fn late_packet_racing_a_jump_is_taken_at_most_once() {
        loom::model(|| {
            let counts = race(&[133], &[5, 5], &[5, 133]);
            assert!(counts[0] <= 1);
            assert_eq!(counts[1], 1);
        });
    }
}
