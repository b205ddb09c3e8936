//! One packet in DPDK's memory. The only file that names fields of `rte_mbuf`.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;

use crate::buf::PacketBuf;
use crate::ids::PortId;

use super::sys;

/// One mbuf that nobody else holds. Dropping it gives it back to its pool; many at once are better in a
/// [`super::Burst`].
///
/// A driver may hand over a packet in several mbufs chained: [`Self::is_plain`] says so, and the [`PacketBuf`] methods
/// then see the first of them only.
#[derive(Debug)]
#[repr(transparent)]
pub struct Mbuf<'eal> {
    // INVARIANT: an mbuf that this value alone owns, whose pool lives for `'eal`, and for which
    // `data_off + data_len <= buf_len`, all of it readable and writable. DPDK's allocator and drivers hand them over
    // like that; the methods below keep it.
    mbuf: NonNull<sys::rte_mbuf>,
    _eal: PhantomData<&'eal ()>,
}

// SAFETY: an mbuf is not tied to a thread, and owning the value means owning the mbuf.
unsafe impl Send for Mbuf<'_> {}

impl Mbuf<'_> {
    /// Whether the packet is all in this one mbuf, in memory of its own.
    #[inline]
    pub fn is_plain(&self) -> bool {
        let mbuf = self.fields();
        let elsewhere = sys::RTE_MBUF_F_INDIRECT | sys::RTE_MBUF_F_EXTERNAL;
        mbuf.nb_segs == 1 && mbuf.refcnt == 1 && mbuf.ol_flags & elsewhere == 0
    }

    /// The port that it was received on; of no meaning for one that was not received.
    #[inline]
    pub fn port(&self) -> PortId {
        PortId(self.fields().port)
    }

    /// Priority and number of the VLAN tag that the device took off the frame and put down beside it, where it did.
    #[inline]
    pub fn stripped_vlan(&self) -> Option<u16> {
        let mbuf = self.fields();
        let is_stripped = mbuf.ol_flags & u64::from(sys::RTE_MBUF_F_RX_VLAN_STRIPPED) != 0;
        is_stripped.then_some(mbuf.vlan_tci)
    }

    #[inline]
    fn fields(&self) -> &sys::rte_mbuf {
        // SAFETY: this value owns the mbuf (its invariant), so nobody writes it while `self` is borrowed.
        unsafe { self.mbuf.as_ref() }
    }

    #[inline]
    fn fields_mut(&mut self) -> &mut sys::rte_mbuf {
        // SAFETY: this value owns the mbuf (its invariant), and `self` is borrowed for writing.
        unsafe { self.mbuf.as_mut() }
    }

    /// Where the packet starts.
    #[inline]
    fn start(&self) -> *mut u8 {
        let mbuf = self.fields();
        // SAFETY: `data_off` is at most `buf_len` (the invariant), so this stays within the buffer.
        unsafe { mbuf.buf_addr.cast::<u8>().add(usize::from(mbuf.data_off)) }
    }
}

impl<'eal> Mbuf<'eal> {
    /// # Safety
    /// `mbuf` is an mbuf as the type's invariant has it, and the caller gives it up.
    #[inline]
    pub(super) unsafe fn from_raw(mbuf: NonNull<sys::rte_mbuf>) -> Self {
        Self {
            mbuf,
            _eal: PhantomData,
        }
    }

    /// Gives up ownership without freeing.
    #[inline]
    pub(super) fn into_raw(self) -> *mut sys::rte_mbuf {
        let mbuf = self.mbuf.as_ptr();
        std::mem::forget(self);
        mbuf
    }
}

impl PacketBuf for Mbuf<'_> {
    #[inline]
    fn is_whole(&self) -> bool {
        self.is_plain()
    }

    #[inline]
    fn data(&self) -> &[u8] {
        let len = usize::from(self.fields().data_len);
        // SAFETY: `len` bytes from the start are within the buffer (the invariant), and stay as they are while `self`
        // is borrowed, since this value alone owns the mbuf. They came from mapped memory, so they are initialised.
        unsafe { slice::from_raw_parts(self.start(), len) }
    }

    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        let len = usize::from(self.fields().data_len);
        // SAFETY: as for `data`, and `self` is borrowed for writing.
        unsafe { slice::from_raw_parts_mut(self.start(), len) }
    }

    #[inline]
    fn headroom(&self) -> usize {
        usize::from(self.fields().data_off)
    }

    #[inline]
    fn tailroom(&self) -> usize {
        let mbuf = self.fields();
        let used = usize::from(mbuf.data_off) + usize::from(mbuf.data_len);
        usize::from(mbuf.buf_len).saturating_sub(used)
    }

    #[inline]
    fn prepend(&mut self, len: usize) -> Option<&mut [u8]> {
        let len = u16::try_from(len).ok()?;
        let mbuf = self.fields_mut();
        mbuf.data_off = mbuf.data_off.checked_sub(len)?;
        // No overflow: the sum was at most `buf_len` with the offset, and is now that without.
        mbuf.data_len = mbuf.data_len.wrapping_add(len);
        mbuf.pkt_len = mbuf.pkt_len.wrapping_add(u32::from(len));
        Some(self.data_mut())
    }

    #[inline]
    fn append(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.tailroom() < len {
            return None;
        }
        let len = u16::try_from(len).ok()?;
        let mbuf = self.fields_mut();
        mbuf.data_len = mbuf.data_len.wrapping_add(len);
        mbuf.pkt_len = mbuf.pkt_len.wrapping_add(u32::from(len));
        Some(self.data_mut())
    }

    #[inline]
    fn adj(&mut self, len: usize) -> bool {
        let Ok(len) = u16::try_from(len) else {
            return false;
        };
        let mbuf = self.fields_mut();
        let Some(left) = mbuf.data_len.checked_sub(len) else {
            return false;
        };
        mbuf.data_len = left;
        // No overflow: `data_off + data_len` stays the same.
        mbuf.data_off = mbuf.data_off.wrapping_add(len);
        mbuf.pkt_len = mbuf.pkt_len.wrapping_sub(u32::from(len));
        true
    }

    #[inline]
    fn uncover(&mut self, len: usize) -> bool {
        self.prepend(len).is_some()
    }

    #[inline]
    fn trim(&mut self, len: usize) -> bool {
        let Ok(len) = u16::try_from(len) else {
            return false;
        };
        let mbuf = self.fields_mut();
        let Some(left) = mbuf.data_len.checked_sub(len) else {
            return false;
        };
        mbuf.data_len = left;
        mbuf.pkt_len = mbuf.pkt_len.wrapping_sub(u32::from(len));
        true
    }

    #[inline]
    fn cut(&mut self, front: usize, len: usize) -> bool {
        let (Ok(front), Ok(len)) = (u16::try_from(front), u16::try_from(len)) else {
            return false;
        };
        let mbuf = self.fields_mut();
        let before = mbuf.data_len;
        if u32::from(front) + u32::from(len) > u32::from(before) {
            return false;
        }
        // No overflow: what begins `front` later and is `len` long lies within what was there before.
        mbuf.data_off = mbuf.data_off.wrapping_add(front);
        mbuf.data_len = len;
        mbuf.pkt_len = mbuf
            .pkt_len
            .wrapping_sub(u32::from(before.wrapping_sub(len)));
        true
    }

    #[inline]
    fn grow(&mut self, front: usize, back: usize) -> Option<&mut [u8]> {
        if front > self.headroom() || back > self.tailroom() {
            return None;
        }
        let mbuf = self.fields_mut();
        // No overflow: both were just held against the room there is, and lengths of buffers fit 16 bits.
        #[expect(clippy::cast_possible_truncation)]
        let (front, both) = (front as u16, (front + back) as u16);
        mbuf.data_off = mbuf.data_off.wrapping_sub(front);
        mbuf.data_len = mbuf.data_len.wrapping_add(both);
        mbuf.pkt_len = mbuf.pkt_len.wrapping_add(u32::from(both));
        Some(self.data_mut())
    }
}

impl Drop for Mbuf<'_> {
    fn drop(&mut self) {
        let mut mbuf = self.mbuf.as_ptr();
        // SAFETY: this value owns the mbuf and is going; the pool it goes back to lives for `'eal`.
        unsafe { sys::rte_pktmbuf_free_bulk(&raw mut mbuf, 1) }
    }
}
