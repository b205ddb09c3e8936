//! Memory in pages of its own, zeroed, and in large pages where there is much of it: what is read at random all over it costs a
//! lookup of the page each time, and the processor remembers few.

use std::ptr::NonNull;

/// A large page.
const LARGE: usize = 2 << 20;

/// So many bytes, zeroed, from the beginning of a page on; of a large one, where they fill one.
pub(crate) struct Pages {
    // INVARIANT: in the mapping, which nobody else has.
    start: NonNull<u8>,
    /// Only ever dropped.
    _mapping: imp::Mapping,
}

// SAFETY: it is memory, no more; who reaches it through `start` sees to that.
unsafe impl Send for Pages {}
// SAFETY: likewise.
unsafe impl Sync for Pages {}

impl Pages {
    /// `len` bytes, which are not touched.
    pub(crate) fn new(len: usize) -> Self {
        let is_large = len >= LARGE;
        let mapping = imp::Mapping::new(len.saturating_add(if is_large { LARGE } else { 0 }));
        let skip = match is_large {
            true => {
                mapping.start().addr().get().next_multiple_of(LARGE) - mapping.start().addr().get()
            }
            false => 0,
        };
        // SAFETY: less than a large page, by which the mapping is longer.
        let start = unsafe { mapping.start().add(skip) };
        if is_large {
            imp::ask_for_large_pages(start, len / LARGE * LARGE);
        }
        Self {
            start,
            _mapping: mapping,
        }
    }

    /// Where they begin.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

#[cfg(not(miri))]
mod imp {
    use std::alloc::{Layout, handle_alloc_error};
    use std::ptr::{self, NonNull};

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    pub(super) struct Mapping {
        start: NonNull<u8>,
        len: usize,
    }

    impl Mapping {
        pub(super) fn new(len: usize) -> Self {
            let len = len.max(1);
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: new memory, wherever the kernel likes.
            let mapped = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) };
            match mapped.ok().and_then(|start| NonNull::new(start.cast())) {
                Some(start) => Self { start, len },
                // As the allocator says it.
                None => handle_alloc_error(
                    Layout::from_size_align(len, 1).unwrap_or(Layout::new::<u8>()),
                ),
            }
        }

        pub(super) fn start(&self) -> NonNull<u8> {
            self.start
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: mapped above with this length, and nobody has it any more.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        }
    }

    /// A hint: it may be refused.
    pub(super) fn ask_for_large_pages(start: NonNull<u8>, len: usize) {
        // SAFETY: whole pages of a mapping; the advice changes nothing in them.
        let _ = unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxHugepage) };
    }
}

/// Miri has no mappings.
#[cfg(miri)]
mod imp {
    use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
    use std::ptr::NonNull;

    pub(super) struct Mapping {
        start: NonNull<u8>,
        layout: Layout,
    }

    impl Mapping {
        pub(super) fn new(len: usize) -> Self {
            let layout = Layout::from_size_align(len.max(1), 4096).expect("a length of memory");
            // SAFETY: not of length zero.
            match NonNull::new(unsafe { alloc_zeroed(layout) }) {
                Some(start) => Self { start, layout },
                None => handle_alloc_error(layout),
            }
        }

        pub(super) fn start(&self) -> NonNull<u8> {
            self.start
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: allocated above with this layout.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }

    pub(super) fn ask_for_large_pages(_: NonNull<u8>, _: usize) {}
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn pages_are_zeroed_and_ones_own() {
        for len in [1, 4096, LARGE - 1, LARGE, 3 * LARGE + 5] {
            let two = [Pages::new(len), Pages::new(len)];
            for pages in &two {
                let start = pages.start();
                assert!(len < LARGE || start.addr().get().is_multiple_of(LARGE));
                for at in BTreeSet::from([0, len / 2, len - 1]) {
                    let byte = start.as_ptr().wrapping_add(at);
                    // SAFETY: within the length, and nobody else has it.
                    assert_eq!(unsafe { byte.replace(1) }, 0);
                }
            }
        }
    }
}
