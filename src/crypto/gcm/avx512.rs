//! AES-GCM with AVX-512, VAES and VPCLMULQDQ: four blocks a vector. What short texts and long ones share.
//!
//! A packet is seen as vectors of 64 bytes that begin 16 bytes *before* its text. The first lane of the first vector is
//! the counter block J0 for AES and the AAD for GHASH, so neither costs a vector of its own, and 48 bytes of text are one
//! vector. Those 16 bytes are masked off in every load and store: nothing outside the text and its ICV is touched.
//!
//! Texts of up to four vectors ([`super::avx512_short`]) multiply each block by its own power of the hash key, and four
//! packets go in step where there are four alike. Longer ones ([`super::avx512_long`]) go in chunks of four vectors.
//!
//! Counter blocks are `base ^ row`: the nonce and the first round key make the base, and a table of constants holds the
//! counters of each vector. That is one XOR in place of an addition, a byte swap and a XOR.

use std::arch::asm;
use std::arch::x86_64::*;

use super::counters::Counter;
use super::key::{Block, GcmKey, POLY, POWERS, load_block};
use super::{Kernels, REVERSED};
use crate::crypto::aead::{ICV_LEN, NONCE_LEN, Packet};

/// Proof that this processor has what the kernels of this module use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::crypto) struct HasAvx512(());

impl HasAvx512 {
    /// The proof, where the processor can give it.
    pub(in crate::crypto) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("bmi2");
        has.then_some(Self(()))
    }

    /// Expands `key`: 16, 24 or 32 bytes.
    pub(in crate::crypto) fn expand(self, key: &[u8]) -> GcmKey {
        // SAFETY: this proof includes AES-NI and PCLMULQDQ.
        unsafe { GcmKey::new(Kernels::Avx512(self), key) }
    }
}

/// Functions that use the features of which [`HasAvx512`] is the proof.
macro_rules! kernel {
    (never inline: $($item:tt)*) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,aes,pclmulqdq,sse4.1,bmi2")]
        #[inline(never)]
        $($item)*
    };
    ($($item:tt)*) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,aes,pclmulqdq,sse4.1,bmi2")]
        #[inline]
        $($item)*
    };
}

pub(super) use kernel;

/// What packets of one key share, in registers as far as they reach.
#[derive(Clone, Copy)]
pub(super) struct Run<'k> {
    pub(super) key: &'k GcmKey,
    pub(super) round_keys: [__m512i; 15],
    pub(super) swap: __m512i,
    pub(super) poly: __m512i,
}

/// Sums of products, not reduced.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) high: __m512i,
    pub(super) middle: __m512i,
    pub(super) low: __m512i,
}

kernel! {
/// `block` in every lane.
pub(super) fn broadcast(block: &Block) -> __m512i {
    _mm512_broadcast_i32x4(load_block(block))
}
}

kernel! {
pub(super) fn begin_run<const ROUNDS: usize>(key: &GcmKey) -> Run<'_> {
    let mut round_keys = [_mm512_setzero_si512(); 15];
    // A range that ends with `ROUNDS` itself would not be unrolled, and the keys would go through memory.
    for (at, round_key) in round_keys.iter_mut().enumerate() {
        if at <= ROUNDS {
            *round_key = broadcast(&key.round_keys[at]);
        }
    }
    Run {
        key,
        round_keys,
        swap: broadcast(&REVERSED),
        poly: _mm512_set1_epi64(POLY.cast_signed()),
    }
}
}

kernel! {
/// The bytes of `mask` at `at`, and zero for the others.
///
/// # Safety
/// Those bytes are the caller's to read.
pub(super) unsafe fn load(at: *const u8, mask: __mmask64) -> __m512i {
    // SAFETY: what is masked off is not read, and the rest is the caller's.
    unsafe { _mm512_maskz_loadu_epi8(mask, at.cast()) }
}
}

kernel! {
/// Stores the bytes of `mask`.
///
/// # Safety
/// Those bytes are the caller's to write.
pub(super) unsafe fn store(at: *mut u8, mask: __mmask64, value: __m512i) {
    // SAFETY: what is masked off is not written, and the rest is the caller's.
    unsafe { _mm512_mask_storeu_epi8(at.cast(), mask, value) }
}
}

kernel! {
/// One round. In assembly, because the compiler keeps assembly in order: of its own intrinsics it may run one block
/// through all rounds before the next.
pub(super) fn encrypt_round(mut state: __m512i, key: __m512i) -> __m512i {
    // SAFETY: works on registers only, with an instruction of VAES.
    unsafe { asm!("vaesenc {0}, {0}, {1}", inout(zmm_reg) state, in(zmm_reg) key, options(nomem, nostack, preserves_flags)) };
    state
}
}

kernel! {
pub(super) fn no_sums() -> Sums {
    let zero = _mm512_setzero_si512();
    Sums { high: zero, middle: zero, low: zero }
}
}

kernel! {
pub(super) fn multiply_add(sums: &mut Sums, blocks: __m512i, power: __m512i) {
    let middle = _mm512_clmulepi64_epi128::<0x01>(blocks, power);
    let middle2 = _mm512_clmulepi64_epi128::<0x10>(blocks, power);
    sums.high = _mm512_xor_si512(sums.high, _mm512_clmulepi64_epi128::<0x11>(blocks, power));
    sums.middle = _mm512_ternarylogic_epi64::<0x96>(sums.middle, middle, middle2);
    sums.low = _mm512_xor_si512(sums.low, _mm512_clmulepi64_epi128::<0x00>(blocks, power));
}
}

kernel! {
/// As [`multiply_add`], where the power times x^-64 is there: nothing goes to the low sum.
pub(super) fn multiply_add_folded(sums: &mut Sums, blocks: __m512i, power: __m512i, folded: __m512i) {
    let high = _mm512_clmulepi64_epi128::<0x11>(blocks, power);
    let high2 = _mm512_clmulepi64_epi128::<0x10>(blocks, folded);
    let middle = _mm512_clmulepi64_epi128::<0x01>(blocks, power);
    let middle2 = _mm512_clmulepi64_epi128::<0x00>(blocks, folded);
    sums.high = _mm512_ternarylogic_epi64::<0x96>(sums.high, high, high2);
    sums.middle = _mm512_ternarylogic_epi64::<0x96>(sums.middle, middle, middle2);
}
}

kernel! {
/// `onto + a * x^-64`.
pub(super) fn fold(onto: __m512i, a: __m512i, poly: __m512i) -> __m512i {
    let product = _mm512_clmulepi64_epi128::<0x00>(a, poly);
    let swapped = _mm512_shuffle_epi32::<0b01_00_11_10>(a);
    _mm512_ternarylogic_epi64::<0x96>(onto, product, swapped)
}
}

kernel! {
pub(super) fn reduce(sums: Sums, poly: __m512i) -> __m512i {
    fold(sums.high, fold(sums.middle, sums.low, poly), poly)
}
}

kernel! {
/// The powers for a vector whose first block takes `powers[first]`.
pub(super) fn powers_from(key: &GcmKey, first: usize) -> __m512i {
    debug_assert!(first < POWERS);
    // SAFETY: from any power on, the key has 64 bytes.
    unsafe { _mm512_loadu_si512(key.powers_from(first).cast()) }
}
}

kernel! {
/// The nonce and four zero bytes, in every lane, and the first round key: what counters are added to.
pub(super) fn base(run: &Run<'_>, nonce: &[u8; NONCE_LEN]) -> __m512i {
    // SAFETY: the mask leaves the twelve bytes of the nonce.
    let nonce = unsafe { _mm_maskz_loadu_epi32(0b0111, nonce.as_ptr().cast()) };
    _mm512_xor_si512(_mm512_broadcast_i32x4(nonce), run.round_keys[0])
}
}

/// All of a packet's first vector but the lane before the text.
pub(super) const TEXT_OF_FIRST: __mmask64 = !0xffff;

/// Which bytes of vector `i` of `G` are text, where `last` are those of the last.
#[inline]
pub(super) fn mask<const G: usize>(i: usize, last: __mmask64) -> __mmask64 {
    if i == G - 1 {
        last
    } else if i == 0 {
        TEXT_OF_FIRST
    } else {
        !0
    }
}

/// The shape of a text.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Vectors, lane 0 of the first included.
    pub(super) vectors: usize,
    /// Bytes of the last vector, 1 to 64.
    rest: usize,
}

impl Shape {
    /// That of a text of `len` bytes, ICV included: as many as its vectors hold, because of lane 0.
    #[inline]
    pub(super) fn new(len: usize) -> Self {
        let vectors = len.div_ceil(64);
        Self {
            vectors,
            rest: len - 64 * (vectors - 1),
        }
    }

    /// Where in the table the powers of a packet's first vector begin, when `vectors` are left.
    #[inline]
    pub(super) fn first_power(self, vectors: usize) -> usize {
        POWERS - 1 - 4 * (vectors - 1) - self.rest.div_ceil(16)
    }
}

kernel! {
/// The bytes of the last vector.
pub(super) fn mask_of_last(shape: Shape) -> __mmask64 {
    #[expect(clippy::cast_possible_truncation, reason = "at most 64")]
    _bzhi_u64(!0, shape.rest as u32)
}
}

/// Bits of text and of AAD.
#[inline]
pub(super) fn lengths(packet: &Packet<'_>) -> [i64; 2] {
    let bits = |bytes: usize| (bytes as u64).wrapping_mul(8).cast_signed();
    [bits(packet.text.len() - ICV_LEN), bits(packet.aad.len())]
}

kernel! {
/// The length block of a packet (NIST SP 800-38D section 7.1), in the first lane.
pub(super) fn length_block(packet: &Packet<'_>) -> __m512i {
    let [text_bits, aad_bits] = lengths(packet);
    _mm512_zextsi128_si512(_mm_set_epi64x(aad_bits, text_bits))
}
}

kernel! {
/// The sum of the lanes of GHASH's state, as bytes.
pub(super) fn hash_of(run: &Run<'_>, lanes: __m512i) -> __m128i {
    let half = _mm256_xor_si256(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64::<1>(lanes));
    let sum = _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
    _mm_shuffle_epi8(sum, _mm512_castsi512_si128(run.swap))
}
}

kernel! {
/// The counters of one vector.
pub(super) fn load_row(row: &[Counter; 4]) -> __m512i {
    // SAFETY: 64 bytes are borrowed, and the load wants no alignment.
    unsafe { _mm512_loadu_si512(row.as_ptr().cast()) }
}
}
