//! AES-GCM with AES-NI, PCLMULQDQ and SSE4.1: one block a vector.

use std::arch::asm;
use std::arch::x86_64::*;

use super::counters::Counter;
use super::key::{Block, GcmKey};
use super::{Kernels, REVERSED};

/// Functions that use the features of which [`HasAesNi`] is the proof.
macro_rules! kernel {
    (never inline: $($item:tt)*) => {
        #[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
        #[inline(never)]
        $($item)*
    };
    ($($item:tt)*) => {
        #[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
        #[inline]
        $($item)*
    };
}

#[allow(clippy::duplicate_mod, reason = "compiled once for each width")]
#[path = "narrow.rs"]
mod narrow;

pub(in crate::crypto) use narrow::run;

/// Proof that this processor has what the kernels of this module use.
#[derive(Clone, Copy)]
pub(in crate::crypto) struct HasAesNi(());

impl HasAesNi {
    /// The proof, where the processor can give it.
    pub(in crate::crypto) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1");
        has.then_some(Self(()))
    }

    /// Expands `key`: 16, 24 or 32 bytes.
    pub(in crate::crypto) fn expand(self, key: &[u8]) -> GcmKey {
        // SAFETY: this proof includes AES-NI and PCLMULQDQ.
        unsafe { GcmKey::new(Kernels::AesNi(self), key) }
    }
}

/// What the kernels are called with.
type Proof = HasAesNi;
type Vector = __m128i;
const LANES: usize = 1;

kernel! {
fn zero() -> Vector {
    _mm_setzero_si128()
}
}

kernel! {
fn xor(a: Vector, b: Vector) -> Vector {
    _mm_xor_si128(a, b)
}
}

kernel! {
/// One round. In assembly, as is [`multiply`], because the compiler keeps assembly in order: of its own intrinsics it
/// runs one block through all rounds before the next, and then all of GHASH.
fn encrypt_round(mut state: Vector, key: Vector) -> Vector {
    // SAFETY: works on registers only, with an instruction of AES-NI.
    unsafe { asm!("aesenc {}, {}", inout(xmm_reg) state, in(xmm_reg) key, options(nomem, nostack, preserves_flags)) };
    state
}
}

kernel! {
fn encrypt_last_round(state: Vector, key: Vector) -> Vector {
    _mm_aesenclast_si128(state, key)
}
}

kernel! {
/// Products of the halves that `HALVES` names, as `pclmulqdq` has it.
fn multiply<const HALVES: i32>(mut a: Vector, b: Vector) -> Vector {
    // SAFETY: works on registers only, with the instruction of PCLMULQDQ.
    unsafe {
        asm!(
            "pclmulqdq {}, {}, {}",
            inout(xmm_reg) a, in(xmm_reg) b, const HALVES,
            options(nomem, nostack, preserves_flags),
        );
    }
    a
}
}

kernel! {
fn swap_halves(a: Vector) -> Vector {
    _mm_shuffle_epi32::<0b01_00_11_10>(a)
}
}

kernel! {
/// The bytes of each block in reverse.
fn reverse_bytes(a: Vector) -> Vector {
    _mm_shuffle_epi8(a, broadcast(&REVERSED))
}
}

kernel! {
/// `block` in every lane.
fn broadcast_block(block: __m128i) -> Vector {
    block
}
}

kernel! {
/// `half` in every half of a lane.
fn broadcast_half(half: i64) -> Vector {
    _mm_set1_epi64x(half)
}
}

kernel! {
/// `block` in the first lane, and zero beside it.
fn first_lane(block: __m128i) -> Vector {
    block
}
}

kernel! {
/// The first lane of `first`, the others of `a`.
fn with_first_lane(_: Vector, first: Vector) -> Vector {
    first
}
}

kernel! {
fn lane_of_first(a: Vector) -> __m128i {
    a
}
}

kernel! {
fn add_lanes(a: Vector) -> __m128i {
    a
}
}

kernel! {
/// `block` in every lane.
fn broadcast(block: &Block) -> Vector {
    // SAFETY: 16 bytes are borrowed, and the load wants no alignment.
    unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
}
}

kernel! {
/// The powers from `powers[first]` on, one for each lane.
fn load_powers(key: &GcmKey, first: usize) -> Vector {
    // SAFETY: `first` is less than `POWERS`, of which there are that many; the load wants no alignment.
    unsafe { _mm_loadu_si128(key.powers_from(first).cast()) }
}
}

kernel! {
/// The counters of vector `vector`.
fn load_counters<const N: usize>(counters: &[Counter; N], vector: usize) -> Vector {
    // SAFETY: the vector is one of those for which there are counters, each aligned to 16 bytes.
    unsafe { _mm_load_si128(counters.as_ptr().wrapping_add(vector).cast()) }
}
}

kernel! {
fn load(at: *const u8) -> Vector {
    // SAFETY: the block begins in the text, and the ICV's 16 bytes lie behind: all of it is borrowed by the packet.
    unsafe { _mm_loadu_si128(at.cast()) }
}
}

kernel! {
fn store(at: *mut u8, value: Vector) {
    // SAFETY: the block begins in the text, and the ICV's 16 bytes lie behind: all of it is borrowed by the packet.
    unsafe { _mm_storeu_si128(at.cast(), value) }
}
}

kernel! {
/// The first vector: that of J0 has no text.
fn load_first(_: *const u8) -> Vector {
    zero()
}
}

kernel! {
/// Stores what of the first vector is text: nothing.
fn store_first(_: *mut u8, _: Vector) {}
}

kernel! {
/// The last vector, its last block whole.
fn load_last(at: *const u8, _lanes: usize) -> Vector {
    load(at)
}
}

kernel! {
/// Stores the last vector, its last block whole.
fn store_last(at: *mut u8, value: Vector, _lanes: usize) {
    store(at, value);
}
}

kernel! {
/// The first `count` bytes, at least one, and zero behind.
fn keep_bytes(a: Vector, count: usize) -> Vector {
    // SAFETY: `count` is 1 to 16, so that the window lies within 64 bytes.
    let keep = unsafe { _mm_loadu_si128(narrow::KEEP.as_ptr().wrapping_add(32 - count).cast()) };
    _mm_and_si128(a, keep)
}
}
