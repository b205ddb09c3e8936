//! The words of anti-replay windows, side by side in large pieces of memory. Were each window an allocation among others, a worker
//! that goes from SA to SA would come over a page for each.

use std::ops::Deref;

use crate::sync::AtomicU64;

/// The words of one window.
pub(super) struct WindowWords(imp::Words);

impl WindowWords {
    /// `count` words of this value. A power of two.
    pub(super) fn new(count: usize, value: u64) -> Self {
        Self(imp::Words::new(count, value))
    }
}

impl Deref for WindowWords {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        self.0.get()
    }
}

#[cfg(not(loom))]
mod imp {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crossbeam_queue::SegQueue;

    use crate::rcu::pages::zeros;
    use crate::sync::AtomicU64;

    /// Words of a cache line, the least that windows are apart.
    const LINE: usize = 8;
    /// Words of the first piece of a size, and of the largest: a large page.
    const LEAST_PIECE: usize = 4096 / 8;
    const MOST_PIECE: usize = (2 << 20) / 8;

    /// Memory for windows of one size. It stays with the process: as much as there ever was in use.
    struct Pool {
        free: SegQueue<&'static [AtomicU64]>,
        /// Words there are.
        words: AtomicUsize,
    }

    /// By the logarithm of their words.
    static POOLS: [Pool; 16] = [const {
        Pool {
            free: SegQueue::new(),
            words: AtomicUsize::new(0),
        }
    }; 16];

    pub(super) struct Words(&'static [AtomicU64]);

    impl Words {
        #[inline]
        pub(super) fn get(&self) -> &[AtomicU64] {
            self.0
        }

        pub(super) fn new(count: usize, value: u64) -> Self {
            let words = pool_of(count).take(count);
            for word in words {
                word.store(value, Ordering::Relaxed);
            }
            Self(words)
        }
    }

    impl Drop for Words {
        fn drop(&mut self) {
            pool_of(self.0.len()).free.push(self.0);
        }
    }

    fn pool_of(count: usize) -> &'static Pool {
        let [first, ..] = &POOLS;
        POOLS.get(count.trailing_zeros() as usize).unwrap_or(first)
    }

    impl Pool {
        fn take(&self, count: usize) -> &'static [AtomicU64] {
            if let Some(words) = self.free.pop() {
                return words;
            }
            let room = count.next_multiple_of(LINE);
            // As much again as there is. Two threads that find none at a time make a piece each, and both are used.
            let there_are = self.words.load(Ordering::Relaxed);
            let piece = zeros(there_are.clamp(LEAST_PIECE, MOST_PIECE).max(room));
            self.words.fetch_add(piece.len(), Ordering::Relaxed);
            let mut windows = piece
                .chunks_exact(room)
                .filter_map(|window| window.get(..count));
            let first = windows.next().unwrap_or_default();
            windows.for_each(|window| self.free.push(window));
            first
        }
    }
}

/// Loom's atomics must not outlive a model.
#[cfg(loom)]
mod imp {
    use crate::sync::AtomicU64;

    pub(super) struct Words(Box<[AtomicU64]>);

    impl Words {
        pub(super) fn get(&self) -> &[AtomicU64] {
            &self.0
        }

        pub(super) fn new(count: usize, value: u64) -> Self {
            Self((0..count).map(|_| AtomicU64::new(value)).collect())
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::Ordering;

    #[test]
    fn windows_share_no_line_and_are_new_each_time() {
        let line = |words: &WindowWords, at: usize| std::ptr::from_ref(&words[at]).addr() / 64;
        for round in 0..3_u64 {
            let windows: Vec<_> = [4, 4, 64, 4096, 64, 4]
                .repeat(40)
                .into_iter()
                .map(|count| WindowWords::new(count, round))
                .collect();
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
