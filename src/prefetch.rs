//! Asking for a cache line before it is needed.
//!
//! A prefetch changes nothing but time: no address can make it fault. It is here, and safe to call, so that the packet
//! path, where nothing is unsafe, can wait for many lines at once instead of for one after another.

/// Asks for the first cache line of `value`.
#[inline(always)]
pub(crate) fn prefetch<T: ?Sized>(value: &T) {
    line(std::ptr::from_ref(value).cast(), 0);
}

/// Asks for the first `lines` cache lines of `value`, no more than it has.
#[inline(always)]
pub(crate) fn prefetch_lines<T>(value: &T, lines: usize) {
    let most = size_of::<T>().div_ceil(LINE);
    for at in 0..lines.min(most) {
        line(std::ptr::from_ref(value).cast(), at);
    }
}

const LINE: usize = 64;

#[inline(always)]
fn line(start: *const u8, at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        let address = start.wrapping_add(at.wrapping_mul(LINE)).cast();
        // SAFETY: a prefetch is a hint that reads nothing and faults at no address; every x86-64 processor has it.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (start, at);
    }
}
