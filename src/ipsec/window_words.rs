//! The words of anti-replay windows, side by side in large pieces of memory. Were each window an allocation among others, a worker
//! that goes from SA to SA would come over a page for each.

#[cfg(not(loom))]
use std::collections::BTreeMap;
use std::ops::Deref;
#[cfg(not(loom))]
use std::sync::{Mutex, PoisonError};

#[cfg(not(loom))]
use zerocopy::FromZeros;

#[cfg(not(loom))]
use crate::rcu::ask_for_huge_pages;
use crate::sync::AtomicU64;
#[cfg(not(loom))]
use crate::sync::Ordering;

/// The words of one window.
#[cfg(not(loom))]
pub(super) struct WindowWords(&'static [AtomicU64]);

/// The words of one window: loom's atomics must not outlive a model.
#[cfg(loom)]
pub(super) struct WindowWords(Box<[AtomicU64]>);

impl Deref for WindowWords {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        &self.0
    }
}

#[cfg(loom)]
impl WindowWords {
    /// `count` words of this value.
    pub(super) fn new(count: usize, value: u64) -> Self {
        Self((0..count).map(|_| AtomicU64::new(value)).collect())
    }
}

#[cfg(not(loom))]
impl WindowWords {
    /// `count` words of this value.
    pub(super) fn new(count: usize, value: u64) -> Self {
        let words = POOL
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(count);
        for word in words {
            word.store(value, Ordering::Relaxed);
        }
        Self(words)
    }
}

#[cfg(not(loom))]
impl Drop for WindowWords {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        pool.returned.entry(self.0.len()).or_default().push(self.0);
    }
}

/// Words of a piece: room for several of the largest pages.
#[cfg(not(loom))]
const PIECE: usize = 1 << 20;

/// Words of a cache line.
#[cfg(not(loom))]
const LINE: usize = 8;

/// Memory for words. It stays with the process: as much as there ever was in use.
#[cfg(not(loom))]
static POOL: Mutex<Pool> = Mutex::new(Pool {
    rest: &[],
    returned: BTreeMap::new(),
});

#[cfg(not(loom))]
struct Pool {
    /// What of the last piece was never used.
    rest: &'static [AtomicU64],
    /// What windows gave back, by their number of words.
    returned: BTreeMap<usize, Vec<&'static [AtomicU64]>>,
}

#[cfg(not(loom))]
impl Pool {
    fn take(&mut self, count: usize) -> &'static [AtomicU64] {
        let returned = self.returned.get_mut(&count);
        if let Some(words) = returned.and_then(Vec::pop) {
            return words;
        }
        // Whole lines, so that windows of two SAs share none.
        let room = count.next_multiple_of(LINE);
        if self.rest.len() < room {
            self.rest = new_piece(room.max(PIECE));
        }
        let (words, rest) = self.rest.split_at(room);
        self.rest = rest;
        words.get(..count).unwrap_or(words)
    }
}

/// Zeroed words from the beginning of a cache line on; their memory is not touched yet.
#[cfg(not(loom))]
fn new_piece(words: usize) -> &'static [AtomicU64] {
    let piece = match <[AtomicU64]>::new_box_zeroed_with_elems(words.saturating_add(LINE)) {
        Ok(piece) => Box::leak(piece),
        // As the allocator itself says it.
        Err(_) => std::alloc::handle_alloc_error(std::alloc::Layout::new::<[AtomicU64; PIECE]>()),
    };
    ask_for_huge_pages(piece);
    let skip = (0..LINE).find(|at| is_at_line(piece, *at)).unwrap_or(0);
    piece.get(skip..).unwrap_or_default()
}

#[cfg(not(loom))]
fn is_at_line(piece: &[AtomicU64], at: usize) -> bool {
    let word = piece.get(at).map(|word| std::ptr::from_ref(word).addr());
    word.is_some_and(|address| address % (LINE * size_of::<AtomicU64>()) == 0)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn windows_share_no_line_and_are_new_each_time() {
        let line = |words: &WindowWords, at: usize| std::ptr::from_ref(&words[at]).addr() / 64;
        for round in 0..3_u64 {
            let windows: Vec<_> = [4, 4, 64, 4096, 64, 4]
                .map(|count| WindowWords::new(count, round))
                .into();
            let mut lines = std::collections::BTreeSet::new();
            for words in &windows {
                assert!(
                    words
                        .iter()
                        .all(|word| word.load(Ordering::Relaxed) == round)
                );
                words
                    .iter()
                    .for_each(|word| word.store(99, Ordering::Relaxed));
                for at in line(words, 0)..=line(words, words.len() - 1) {
                    assert!(lines.insert(at), "a line of two windows");
                }
            }
        }
    }
}
