//! Pools of mbufs.

use std::ffi::CString;
use std::marker::PhantomData;
use std::ptr::NonNull;

use super::burst::Burst;
use super::eal::Eal;
use super::error::{DpdkError, Errno};
use super::mbuf::Mbuf;
use super::sys;

/// A pool of mbufs of one size.
///
/// Its memory is given back by `rte_eal_cleanup`, when the [`Eal`] is dropped, and not before: a driver or a thread may
/// still hold its mbufs, and nothing could tell.
#[derive(Debug)]
pub struct Mempool<'eal> {
    // INVARIANT: a pool of mbufs made by `gw_packed_pool_create` and never freed by itself, so good for all of `'eal`.
    pool: NonNull<sys::rte_mempool>,
    count: u32,
    data_room: u16,
    _eal: PhantomData<&'eal ()>,
}

// SAFETY: the pool is not tied to the thread that made it, and outlives `'eal`.
unsafe impl Send for Mempool<'_> {}
// SAFETY: taking from and giving to a pool is safe on any number of threads: the common ring is the multi-producer,
// multi-consumer one (DPDK's default), and a cache belongs to an lcore id, which EAL gives to one thread at a time.
unsafe impl Sync for Mempool<'_> {}

impl<'eal> Mempool<'eal> {
    /// The longest name.
    pub const NAME_MAX: usize = 24;

    /// Makes a pool of `count` mbufs, each with the usual headroom of 128 bytes and at least `data_room` bytes after it.
    ///
    /// `cache` mbufs at most (0 to 512) are kept back for each registered thread, so a pool needs that many more than
    /// are in use at once. `count` is best a power of two less one. A queue of `net_af_xdp` takes 2,048 for itself.
    ///
    /// # Errors
    /// [`DpdkError::BadName`]; [`DpdkError::Pool`] where memory is short, the name is taken (`EEXIST`), or the cache is
    /// too large for `count` (`EINVAL`).
    pub fn create(
        _eal: &'eal Eal,
        name: &str,
        count: u32,
        data_room: u16,
        cache: u32,
    ) -> Result<Self, DpdkError> {
        let c_name = checked_name(name, Self::NAME_MAX)?;
        let room = u32::from(data_room).next_multiple_of(64) + sys::RTE_PKTMBUF_HEADROOM;
        let room = u16::try_from(room).unwrap_or(u16::MAX);
        // SAFETY: EAL runs, as the borrow says, on this thread. The name is a C string and is copied.
        let pool = unsafe { sys::gw_packed_pool_create(c_name.as_ptr(), count, cache, room) };
        let pool = NonNull::new(pool).ok_or_else(|| DpdkError::Pool {
            count,
            data_room: room,
            mib: (u64::from(count) * (u64::from(room) + 256)).div_ceil(1 << 20),
            errno: Errno::last(),
        })?;
        Ok(Self {
            pool,
            count,
            data_room: room.saturating_sub(HEADROOM),
            _eal: PhantomData,
        })
    }

    /// How many mbufs the pool has.
    pub fn size(&self) -> u32 {
        self.count
    }

    /// Bytes that an mbuf has after its headroom.
    pub fn data_room(&self) -> u16 {
        self.data_room
    }

    /// How many mbufs are out: with drivers, in rings, in bursts. Those in the threads' caches are not. Exact when
    /// nobody takes or gives at the same time.
    pub fn in_use(&self) -> u32 {
        // SAFETY: the pool lives for `'eal`; the count reads what other threads may be changing, and is then inexact.
        unsafe { sys::rte_mempool_in_use_count(self.pool.as_ptr()) }
    }

    /// One empty mbuf; `None` where the pool has none left.
    pub fn alloc(&self) -> Option<Mbuf<'eal>> {
        let mut burst = Burst::new();
        if self.alloc_burst(&mut burst, 1) {
            burst.pop()
        } else {
            None
        }
    }

    /// Adds `count` empty mbufs to `burst`: all, or none and false, where the pool or the burst is short of room.
    #[inline]
    pub fn alloc_burst(&self, burst: &mut Burst<'eal>, count: usize) -> bool {
        let spare = burst.spare_mut();
        let Some(slots) = spare.get_mut(..count) else {
            return false;
        };
        // `count` is at most the burst's capacity.
        #[expect(clippy::cast_possible_truncation)]
        let wanted = slots.len() as u32;
        // SAFETY: the pool lives for `'eal`. `slots` has room for `wanted` pointers; on 0 each is an mbuf that is ours.
        let refused =
            unsafe { sys::gw_pktmbuf_alloc_bulk(self.pool.as_ptr(), slots.as_mut_ptr(), wanted) };
        if refused != 0 {
            return false;
        }
        // SAFETY: the first `count` spare slots now hold mbufs that nobody else owns, of a pool that lives for `'eal`.
        unsafe { burst.grow(count) };
        true
    }

    /// Whether all mbufs are in one piece of memory.
    pub(super) fn is_one_piece(&self) -> bool {
        // SAFETY: the pool lives for `'eal`, and the number does not change once it is made.
        unsafe { sys::gw_mempool_chunks(self.pool.as_ptr()) == 1 }
    }

    pub(super) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.pool.as_ptr()
    }
}

#[expect(clippy::cast_possible_truncation)]
const HEADROOM: u16 = sys::RTE_PKTMBUF_HEADROOM as u16;

/// `name` as a C string, if DPDK can use it as a name.
pub(super) fn checked_name(name: &str, max: usize) -> Result<CString, DpdkError> {
    let fits = (1..=max).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    let refused = || DpdkError::BadName {
        name: name.into(),
        max,
    };
    if !fits {
        return Err(refused());
    }
    CString::new(name).map_err(|_| refused())
}
