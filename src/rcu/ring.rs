//! A value with a ring of words behind it, reached by one pointer that also says how many there are: what has so little room that
//! it cannot hold a slice, and must not read its length from memory.
//!
//! All of them lie side by side in large pieces of memory. Were each an allocation among others, a worker that goes from one to
//! another would come over a page for each.

use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::sync::AtomicU64;

/// Alignment of everything here. What is below it in an address has room for the logarithm of a length.
const LINE: usize = 64;

/// A value and a power of two of words.
pub(crate) struct Ring<H> {
    // INVARIANT: the address of a block that this owns, in which there are an `H` and, `words_at::<H>()` bytes behind its
    // beginning, 2^n words, with n in the low bits.
    tagged: NonNull<u8>,
    _owns: PhantomData<H>,
}

// SAFETY: it owns its value, as a box would; words are atomic.
unsafe impl<H: Send> Send for Ring<H> {}
// SAFETY: likewise.
unsafe impl<H: Sync> Sync for Ring<H> {}

/// Where the words of a block begin.
const fn words_at<H>() -> usize {
    size_of::<H>().next_multiple_of(LINE)
}

/// Bytes of a block.
const fn size<H>(count: usize) -> usize {
    let words = count.saturating_mul(size_of::<AtomicU64>());
    words_at::<H>().saturating_add(words.next_multiple_of(LINE))
}

impl<H> Ring<H> {
    /// `header` and so many words, of which each is what `word` makes of its index. Of a `count` that is no power of two, the next one.
    pub(crate) fn new(header: H, count: usize, word: impl Fn(u64) -> u64) -> Self {
        const { assert!(align_of::<H>() <= LINE) };
        let count = count.max(1).next_power_of_two();
        let block = imp::take(size::<H>(count));
        // SAFETY: a block of this size is nobody else's, and aligned to a line.
        unsafe { block.cast::<H>().write(header) };
        // SAFETY: within the block.
        let words = unsafe { block.add(words_at::<H>()) }.cast::<AtomicU64>();
        for (at, index) in (0..count).zip(0..) {
            // SAFETY: there are so many in the block.
            let place = unsafe { words.add(at) };
            // SAFETY: within the block, which is nobody else's.
            unsafe { place.write(AtomicU64::new(word(index))) };
        }
        let log = count.trailing_zeros() as usize;
        Self {
            tagged: block.map_addr(|address| address | log),
            _owns: PhantomData,
        }
    }

    #[inline]
    fn block(&self) -> NonNull<u8> {
        let address = self.tagged.addr().get();
        // SAFETY: the low bits that were added (INVARIANT).
        unsafe { self.tagged.sub(address % LINE) }
    }

    /// The value. Where it is can be said without looking at it.
    #[inline]
    pub(crate) fn header(&self) -> &H {
        // SAFETY: it is there (INVARIANT), and this owns it.
        unsafe { self.block().cast::<H>().as_ref() }
    }

    /// The words.
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        let count = 1_usize << (self.tagged.addr().get() % LINE);
        // SAFETY: within the block (INVARIANT).
        let words = unsafe { self.block().add(words_at::<H>()) }.cast::<AtomicU64>();
        // SAFETY: so many are there (INVARIANT).
        unsafe { std::slice::from_raw_parts(words.as_ptr(), count) }
    }
}

impl<H> Drop for Ring<H> {
    fn drop(&mut self) {
        let (block, count) = (self.block(), self.words().len());
        #[cfg(loom)]
        for at in 0..count {
            // SAFETY: words of the block, which nobody has any more.
            unsafe {
                block
                    .add(words_at::<H>())
                    .cast::<AtomicU64>()
                    .add(at)
                    .drop_in_place();
            }
        }
        // SAFETY: it is there and owned by this, which ends.
        unsafe { block.cast::<H>().drop_in_place() };
        // SAFETY: a block of this size from `take`, which nobody has any more.
        unsafe { imp::give(block, size::<H>(count)) };
    }
}

#[cfg(not(loom))]
mod imp {
    use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
    use std::ptr::NonNull;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crossbeam_queue::SegQueue;

    use crate::rcu::pages::Pages;

    /// Bytes of the first piece of a size, and of the largest: a large page.
    const LEAST_PIECE: usize = 4096;
    const MOST_PIECE: usize = 2 << 20;

    /// Memory for blocks of one size. It stays with the process: as much as there ever was in use.
    struct Pool {
        /// Bytes of a block; 0 where it is nobody's pool yet.
        size: AtomicUsize,
        free: SegQueue<Block>,
        /// Bytes there are.
        bytes: AtomicUsize,
    }

    struct Block(NonNull<u8>);

    // SAFETY: memory that nobody has.
    unsafe impl Send for Block {}

    /// Windows have a dozen sizes.
    static POOLS: [Pool; 32] = [const {
        Pool {
            size: AtomicUsize::new(0),
            free: SegQueue::new(),
            bytes: AtomicUsize::new(0),
        }
    }; 32];

    /// That for blocks of `size` bytes, always the same; none where all pools are for other sizes, as they are from then on.
    fn pool_of(size: usize) -> Option<&'static Pool> {
        let order = Ordering::Relaxed;
        let is_for = |pool: &&Pool| {
            let had = pool.size.compare_exchange(0, size, order, order);
            had.map_or_else(|other| other == size, |_| true)
        };
        POOLS.iter().find(is_for)
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, super::LINE).unwrap_or(Layout::new::<u64>())
    }

    /// A block of `size` bytes, which is a number of lines and not 0, aligned to a line.
    pub(super) fn take(size: usize) -> NonNull<u8> {
        let Some(pool) = pool_of(size) else {
            // SAFETY: not of size 0.
            let block = unsafe { alloc(layout(size)) };
            return NonNull::new(block).unwrap_or_else(|| handle_alloc_error(layout(size)));
        };
        if let Some(Block(block)) = pool.free.pop() {
            return block;
        }
        // As much again as there is. Two threads that find none at a time make a piece each, and both are used.
        let there_are = pool.bytes.load(Ordering::Relaxed);
        let piece = there_are.clamp(LEAST_PIECE, MOST_PIECE).max(size);
        let pages = Pages::new(piece);
        let start = pages.start();
        std::mem::forget(pages);
        pool.bytes.fetch_add(piece, Ordering::Relaxed);
        for at in 1..piece / size {
            // SAFETY: within the piece.
            pool.free.push(Block(unsafe { start.add(at * size) }));
        }
        start
    }

    /// Gives a block back.
    ///
    /// # Safety
    /// It is from [`take`] with this size, and nobody has it any more.
    pub(super) unsafe fn give(block: NonNull<u8>, size: usize) {
        match pool_of(size) {
            Some(pool) => pool.free.push(Block(block)),
            // SAFETY: the caller's promise; without a pool it was allocated so.
            None => unsafe { dealloc(block.as_ptr(), layout(size)) },
        }
    }
}

/// Loom's atomics must not outlive a model, and are larger.
#[cfg(loom)]
mod imp {
    use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
    use std::ptr::NonNull;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, super::LINE).expect("a few lines")
    }

    pub(super) fn take(size: usize) -> NonNull<u8> {
        // SAFETY: not of size 0.
        let block = unsafe { alloc(layout(size)) };
        NonNull::new(block).unwrap_or_else(|| handle_alloc_error(layout(size)))
    }

    /// # Safety
    /// As for the other.
    pub(super) unsafe fn give(block: NonNull<u8>, size: usize) {
        // SAFETY: the caller's promise.
        unsafe { dealloc(block.as_ptr(), layout(size)) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::Ordering;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    #[test]
    fn rings_share_no_line_and_are_new_each_time() {
        for round in 0..3_u64 {
            let drops = Arc::new(());
            let rings: Vec<_> = [4, 4, 64, 4096, 64, 1]
                .repeat(40)
                .into_iter()
                .map(|count| Ring::new((round, Arc::clone(&drops)), count, |at| at + round))
                .collect();
            let mut lines = BTreeSet::new();
            for ring in &rings {
                assert_eq!(ring.header().0, round);
                for (word, at) in ring.words().iter().zip(0..) {
                    assert_eq!(word.swap(99, Ordering::Relaxed), at + round);
                }
                let header = std::ptr::from_ref(ring.header()).addr();
                let words = ring.words().as_ptr_range();
                assert!(words.start.addr() > header && words.start.addr().is_multiple_of(LINE));
                for line in header / LINE..words.end.addr().div_ceil(LINE) {
                    assert!(lines.insert(line), "a line of two rings");
                }
            }
            assert_eq!(Arc::strong_count(&drops), 241);
            drop(rings);
            assert_eq!(Arc::strong_count(&drops), 1);
        }
    }
}
