//! AES-GCM with AVX2, VAES and VPCLMULQDQ: two blocks a vector.

use std::arch::asm;
use std::arch::x86_64::*;

use super::counters::Counter;
use super::key::{Block, GcmKey};
use super::{Kernels, REVERSED};

/// Functions that use the features of which [`HasAvx2`] is the proof.
macro_rules! kernel {
    (never inline: $($item:tt)*) => {
        #[target_feature(enable = "avx2,vaes,vpclmulqdq,aes,pclmulqdq")]
        #[inline(never)]
        $($item)*
    };
    ($($item:tt)*) => {
        #[target_feature(enable = "avx2,vaes,vpclmulqdq,aes,pclmulqdq")]
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
pub(in crate::crypto) struct HasAvx2(());

impl HasAvx2 {
    /// The proof, where the processor can give it.
    pub(in crate::crypto) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq");
        has.then_some(Self(()))
    }

    /// Expands `key`: 16, 24 or 32 bytes.
    pub(in crate::crypto) fn expand(self, key: &[u8]) -> GcmKey {
        // SAFETY: this proof includes AES-NI and PCLMULQDQ.
        unsafe { GcmKey::new(Kernels::Avx2(self), key) }
    }
}

/// What the kernels are called with.
type Proof = HasAvx2;
type Vector = __m256i;
const LANES: usize = 2;

kernel! {
fn zero() -> Vector {
    _mm256_setzero_si256()
}
}

kernel! {
fn xor(a: Vector, b: Vector) -> Vector {
    _mm256_xor_si256(a, b)
}
}

kernel! {
/// One round. In assembly, as is [`multiply`], because the compiler keeps assembly in order: of its own intrinsics it
/// runs one block through all rounds before the next, and then all of GHASH.
fn encrypt_round(mut state: Vector, key: Vector) -> Vector {
    // SAFETY: works on registers only, with an instruction of VAES.
    unsafe { asm!("vaesenc {0}, {0}, {1}", inout(ymm_reg) state, in(ymm_reg) key, options(nomem, nostack, preserves_flags)) };
    state
}
}

kernel! {
fn encrypt_last_round(state: Vector, key: Vector) -> Vector {
    _mm256_aesenclast_epi128(state, key)
}
}

kernel! {
/// Products of the halves that `HALVES` names, as `pclmulqdq` has it.
fn multiply<const HALVES: i32>(a: Vector, b: Vector) -> Vector {
    let product;
    // SAFETY: works on registers only, with the instruction of VPCLMULQDQ.
    unsafe {
        asm!(
            "vpclmulqdq {}, {}, {}, {}",
            lateout(ymm_reg) product, in(ymm_reg) a, in(ymm_reg) b, const HALVES,
            options(nomem, nostack, preserves_flags),
        );
    }
    product
}
}

kernel! {
fn swap_halves(a: Vector) -> Vector {
    _mm256_shuffle_epi32::<0b01_00_11_10>(a)
}
}

kernel! {
/// The bytes of each block in reverse.
fn reverse_bytes(a: Vector) -> Vector {
    _mm256_shuffle_epi8(a, broadcast(&REVERSED))
}
}

kernel! {
/// `block` in every lane.
fn broadcast_block(block: __m128i) -> Vector {
    _mm256_broadcastsi128_si256(block)
}
}

kernel! {
/// `half` in every half of a lane.
fn broadcast_half(half: i64) -> Vector {
    _mm256_set1_epi64x(half)
}
}

kernel! {
/// `block` in the first lane, and zero beside it.
fn first_lane(block: __m128i) -> Vector {
    _mm256_zextsi128_si256(block)
}
}

kernel! {
/// The first lane of `first`, the others of `a`.
fn with_first_lane(a: Vector, first: Vector) -> Vector {
    _mm256_blend_epi32::<0b0000_1111>(a, first)
}
}

kernel! {
fn lane_of_first(a: Vector) -> __m128i {
    _mm256_castsi256_si128(a)
}
}

kernel! {
fn add_lanes(a: Vector) -> __m128i {
    _mm_xor_si128(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a))
}
}

kernel! {
/// `block` in every lane.
fn broadcast(block: &Block) -> Vector {
    // SAFETY: 16 bytes are borrowed, and the load wants no alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
}
}

kernel! {
/// The powers from `powers[first]` on, one for each lane.
fn load_powers(key: &GcmKey, first: usize) -> Vector {
    // SAFETY: `first` is less than `POWERS`, beyond which the key goes on; the load wants no alignment.
    unsafe { _mm256_loadu_si256(key.powers_from(first).cast()) }
}
}

kernel! {
/// The counters of vector `vector`.
fn load_counters<const N: usize>(counters: &[Counter; N], vector: usize) -> Vector {
    // SAFETY: the vector is one of those for which there are counters; the load wants no alignment.
    unsafe { _mm256_loadu_si256(counters.as_ptr().wrapping_add(LANES * vector).cast()) }
}
}

kernel! {
fn load(at: *const u8) -> Vector {
    // SAFETY: the second block begins in the text, and the ICV's 16 bytes lie behind: the packet borrows all of it.
    unsafe { _mm256_loadu_si256(at.cast()) }
}
}

kernel! {
fn store(at: *mut u8, value: Vector) {
    // SAFETY: the second block begins in the text, and the ICV's 16 bytes lie behind: the packet borrows all of it.
    unsafe { _mm256_storeu_si256(at.cast(), value) }
}
}

kernel! {
fn load_half(at: *const u8) -> __m128i {
    // SAFETY: the block begins in the text or with the ICV, whose 16 bytes lie behind: the packet borrows all of it.
    unsafe { _mm_loadu_si128(at.cast()) }
}
}

kernel! {
fn store_half(at: *mut u8, value: __m128i) {
    // SAFETY: the block begins in the text or with the ICV, whose 16 bytes lie behind: the packet borrows all of it.
    unsafe { _mm_storeu_si128(at.cast(), value) }
}
}

kernel! {
/// The first vector: beside J0, the first block of text.
fn load_first(at: *const u8) -> Vector {
    _mm256_inserti128_si256::<1>(zero(), load_half(at.wrapping_add(16)))
}
}

kernel! {
/// Stores what of the first vector is text: the second lane.
fn store_first(at: *mut u8, value: Vector) {
    store_half(at.wrapping_add(16), _mm256_extracti128_si256::<1>(value));
}
}

kernel! {
/// The last vector, of one block or of two, the last of them whole.
fn load_last(at: *const u8, lanes: usize) -> Vector {
    if lanes == LANES {
        load(at)
    } else {
        first_lane(load_half(at))
    }
}
}

kernel! {
/// Stores the last vector, of one block or of two, the last of them whole.
fn store_last(at: *mut u8, value: Vector, lanes: usize) {
    if lanes == LANES {
        store(at, value);
    } else {
        store_half(at, lane_of_first(value));
    }
}
}

kernel! {
/// The first `count` bytes, at least one, and zero behind.
fn keep_bytes(a: Vector, count: usize) -> Vector {
    // SAFETY: `count` is 1 to 32, so that the window lies within 64 bytes.
    let keep = unsafe { _mm256_loadu_si256(narrow::KEEP.as_ptr().wrapping_add(32 - count).cast()) };
    _mm256_and_si256(a, keep)
}
}
