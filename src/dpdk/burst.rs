//! Up to 64 packets on their way together.

use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::slice;

use super::mbuf::Mbuf;
use super::sys;

/// Most packets that a burst holds.
pub const CAPACITY: usize = 64;

/// An array of mbufs, in order, all owned. Dropping it gives them back to their pools, in bulk.
#[derive(Debug)]
pub struct Burst<'eal> {
    // INVARIANT: `len <= CAPACITY`, and `slots[..len]` are mbufs as `Mbuf` has them, owned by this burst alone.
    slots: [*mut sys::rte_mbuf; CAPACITY],
    len: usize,
    _eal: PhantomData<&'eal ()>,
}

// SAFETY: a burst is an array of `Mbuf`, which is `Send`.
unsafe impl Send for Burst<'_> {}

impl<'eal> Burst<'eal> {
    /// An empty burst.
    #[inline]
    pub const fn new() -> Self {
        Self {
            slots: [ptr::null_mut(); CAPACITY],
            len: 0,
            _eal: PhantomData,
        }
    }

    /// How many packets it holds.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there is no room for another.
    #[inline]
    pub const fn is_full(&self) -> bool {
        self.len >= CAPACITY
    }

    /// The packets, in order.
    #[inline]
    pub fn as_slice(&self) -> &[Mbuf<'eal>] {
        // SAFETY: `slots[..len]` are owned mbufs (the invariant), `Mbuf` is transparent over a non-null pointer to one,
        // and the borrow of `self` covers them.
        unsafe { slice::from_raw_parts(self.slots.as_ptr().cast(), self.len) }
    }

    /// The packets, in order, to change.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [Mbuf<'eal>] {
        // SAFETY: as for `as_slice`, and `self` is borrowed for writing. What the caller can put in a slot is an `Mbuf`.
        unsafe { slice::from_raw_parts_mut(self.slots.as_mut_ptr().cast(), self.len) }
    }

    /// The packets, in order.
    #[inline]
    pub fn iter(&self) -> slice::Iter<'_, Mbuf<'eal>> {
        self.as_slice().iter()
    }

    /// The packets, in order, to change.
    #[inline]
    pub fn iter_mut(&mut self) -> slice::IterMut<'_, Mbuf<'eal>> {
        self.as_mut_slice().iter_mut()
    }

    /// Adds `mbuf` at the end.
    ///
    /// # Errors
    /// `mbuf` itself, where the burst is full.
    #[inline]
    pub fn push(&mut self, mbuf: Mbuf<'eal>) -> Result<(), Mbuf<'eal>> {
        match self.slots.get_mut(self.len) {
            Some(slot) => {
                *slot = mbuf.into_raw();
                self.len += 1;
                Ok(())
            }
            None => Err(mbuf),
        }
    }

    /// Takes the last packet out.
    #[inline]
    pub fn pop(&mut self) -> Option<Mbuf<'eal>> {
        let last = self.len.checked_sub(1)?;
        let mbuf = NonNull::new(*self.slots.get(last)?)?;
        self.len = last;
        // SAFETY: the slot held an owned mbuf (the invariant) and is no longer within `len`.
        Some(unsafe { Mbuf::from_raw(mbuf) })
    }

    /// Gives all packets back to their pools.
    #[inline]
    pub fn clear(&mut self) {
        // At most `CAPACITY`.
        #[expect(clippy::cast_possible_truncation)]
        let len = self.len as u32;
        self.len = 0;
        if len != 0 {
            // SAFETY: the first `len` slots were owned mbufs (the invariant) and are out of the burst by now; their pools
            // live for `'eal`.
            unsafe { sys::rte_pktmbuf_free_bulk(self.slots.as_mut_ptr(), len) }
        }
    }

    /// Moves the packets for whose index `keep` is false to the end of `rest`; both stay in order. Returns how many
    /// went. `keep` is called once for each, in order.
    ///
    /// Give it a `rest` with room, best an empty one. What does not fit there stays here, as if kept.
    #[inline]
    pub fn sift(&mut self, mut keep: impl FnMut(usize) -> bool, rest: &mut Self) -> usize {
        // Nothing is owned while `keep` runs: if it panics, packets leak, and none is freed twice.
        let len = std::mem::take(&mut self.len);
        let before = rest.len;
        let mut moved_to = std::mem::take(&mut rest.len);
        let mut kept = 0;
        for index in 0..len.min(CAPACITY) {
            let keeps = keep(index);
            let Some(mbuf) = self.slots.get(index).copied() else {
                break;
            };
            match rest.slots.get_mut(moved_to) {
                Some(slot) if !keeps => {
                    *slot = mbuf;
                    moved_to += 1;
                }
                _ => {
                    if let Some(slot) = self.slots.get_mut(kept) {
                        *slot = mbuf;
                        kept += 1;
                    }
                }
            }
        }
        self.len = kept;
        rest.len = moved_to;
        moved_to.wrapping_sub(before)
    }

    /// The slots that hold nothing.
    #[inline]
    pub(super) fn spare_mut(&mut self) -> &mut [*mut sys::rte_mbuf] {
        self.slots.get_mut(self.len..).unwrap_or_default()
    }

    /// Takes the first `count` spare slots into the burst.
    ///
    /// # Safety
    /// They hold mbufs as [`Mbuf`]'s invariant has them, which the caller gives up.
    #[inline]
    pub(super) unsafe fn grow(&mut self, count: usize) {
        debug_assert!(self.len + count <= CAPACITY);
        self.len = self.len.wrapping_add(count).min(CAPACITY);
    }

    /// The slots that hold packets, for a call that takes a prefix of them over; follow with [`Self::forget_front`].
    #[inline]
    pub(super) fn held_mut(&mut self) -> &mut [*mut sys::rte_mbuf] {
        self.slots.get_mut(..self.len).unwrap_or_default()
    }

    /// Gives up ownership of the first `count` packets without freeing them; the rest moves up.
    #[inline]
    pub(super) fn forget_front(&mut self, count: usize) {
        let held = self.held_mut();
        let left = held.len().saturating_sub(count);
        if left != 0 {
            held.copy_within(count.., 0);
        }
        self.len = left;
    }
}

impl Default for Burst<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Burst<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

impl<'burst, 'eal> IntoIterator for &'burst Burst<'eal> {
    type Item = &'burst Mbuf<'eal>;
    type IntoIter = slice::Iter<'burst, Mbuf<'eal>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'burst, 'eal> IntoIterator for &'burst mut Burst<'eal> {
    type Item = &'burst mut Mbuf<'eal>;
    type IntoIter = slice::IterMut<'burst, Mbuf<'eal>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
