//! An expanded AES-GCM key as the vector kernels want it: AES round keys and powers of the hash key.
//!
//! GHASH is done in the bit order of POLYVAL (RFC 8452 appendix A): blocks are byte-reversed, the hash key is
//! multiplied by x once, and a product is `a * b * x^-128` modulo `x^128 + x^127 + x^126 + x^121 + 1`. Of a block
//! `M = M1 * x^64 + M0` and a power `H = H1 * x^64 + H0` there are four products:
//!
//! ```text
//! M * H * x^-128 = M1*H1 + (M1*H0 + M0*H1) * x^-64 + M0*H0 * x^-128
//! ```
//!
//! so any number of blocks is summed in three accumulators, high, middle and low, and two more multiplications reduce
//! the sum to `high + (middle + low * x^-64) * x^-64`: `x^-64` is `x^64 + x^63 + x^62 + x^57`, hence
//! `a * x^-64 = swap(a) + a0 * 0xc2 << 56`.
//!
//! Where many blocks are multiplied by one power, `D = H * x^-64` is made once, and `M0*D1` goes to the high sum and
//! `M0*D0` to the middle one: the same number of products, and nothing in the low sum.

use std::arch::x86_64::{
    __m128i, _mm_aesenc_si128, _mm_aesenclast_si128, _mm_clmulepi64_si128, _mm_cvtsi128_si32,
    _mm_loadu_si128, _mm_set_epi64x, _mm_set1_epi32, _mm_setzero_si128, _mm_shuffle_epi32,
    _mm_storeu_si128, _mm_xor_si128,
};
use std::ptr;

use zeroize::Zeroize;

use super::Kernels;
use crate::crypto::aead::Lane;

/// One AES block.
pub(super) type Block = [u8; 16];

/// Highest power of the hash key: sixteen blocks of a step and the length block.
pub(super) const POWERS: usize = 17;
/// Round keys of AES-256; the shorter keys use fewer.
const MAX_ROUND_KEYS: usize = 15;
/// The reduction's constant, x^63 + x^62 + x^57.
pub(super) const POLY: u64 = 0xc2 << 56;

/// Round keys and powers of the hash key, of one SA. Zeroised when dropped.
///
/// Low powers, what the key is, and round keys lie side by side: in this order a text of up to 80 bytes wants 304 bytes of
/// an AES-128 key.
#[repr(C, align(16))]
pub(in crate::crypto) struct GcmKey {
    /// H^17 down to H^1, each 16 bytes. Loads of several powers may begin at the last, and what they read of the fields
    /// that follow is multiplied by zero.
    pub(super) powers: [Block; POWERS],
    /// How many round keys count, less one. Its spare values also tell this key from one of the portable tier.
    pub(super) rounds: Rounds,
    /// Those that expanded it.
    pub(super) kernels: Kernels,
    _initialised: [u8; 14],
    /// Round keys in order of use.
    pub(super) round_keys: [Block; MAX_ROUND_KEYS],
}

/// Rounds of AES.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Rounds {
    /// 128-bit keys.
    Ten = 10,
    /// 192-bit keys.
    Twelve = 12,
    /// 256-bit keys.
    Fourteen = 14,
}

const _: () = assert!(size_of::<GcmKey>() == 528);

impl GcmKey {
    /// What its kernels have for short texts of many keys.
    pub(in crate::crypto) fn lane(&self) -> Lane {
        match (self.kernels, self.rounds) {
            (Kernels::Avx512(has), Rounds::Ten) => Lane::Ten(has),
            (Kernels::Avx512(has), Rounds::Fourteen) => Lane::Fourteen(has),
            (_, rounds) => Lane::None {
                is_long: rounds != Rounds::Ten,
            },
        }
    }

    /// Where the powers from `powers[first]` on are, as far as the key reaches.
    #[inline]
    pub(super) fn powers_from(&self, first: usize) -> *const Block {
        ptr::from_ref(self).cast::<Block>().wrapping_add(first)
    }

    /// The addresses of what the AAD, five blocks of text and their lengths want of an AES-128 key.
    #[cfg(test)]
    pub(in crate::crypto) fn wanted_by_five_blocks(&self) -> std::ops::Range<usize> {
        self.powers[POWERS - 7..].as_ptr().addr()..self.round_keys[11..].as_ptr().addr()
    }

    /// Expands `key`, 16, 24 or 32 bytes, for `kernels`.
    #[target_feature(enable = "aes,pclmulqdq,sse2")]
    pub(super) fn new(kernels: Kernels, key: &[u8]) -> Self {
        let mut this = Self {
            powers: [[0; 16]; POWERS],
            rounds: match key.len() {
                16 => Rounds::Ten,
                24 => Rounds::Twelve,
                _ => Rounds::Fourteen,
            },
            kernels,
            _initialised: [0; 14],
            round_keys: [[0; 16]; MAX_ROUND_KEYS],
        };
        this.expand_rounds(key);
        this.expand_powers();
        this
    }

    /// The key schedule (FIPS 197 section 5.2).
    #[target_feature(enable = "aes,sse2")]
    fn expand_rounds(&mut self, key: &[u8]) {
        let words = self.round_keys.as_flattened_mut();
        words[..key.len()].copy_from_slice(key);
        let (mut round_constant, step) = (1u8, key.len());
        for at in (step..16 * (self.rounds as usize + 1)).step_by(4) {
            let mut word = [words[at - 4], words[at - 3], words[at - 2], words[at - 1]];
            if at % step == 0 {
                word.rotate_left(1);
                word = sub_word(word);
                word[0] ^= round_constant;
                // Ten constants at most: only the last of AES-128's passes 0x80.
                round_constant =
                    (round_constant << 1) ^ if round_constant & 0x80 != 0 { 0x1b } else { 0 };
            } else if step == 32 && at % step == 16 {
                word = sub_word(word);
            }
            for (offset, byte) in word.iter().enumerate() {
                words[at + offset] = words[at + offset - step] ^ byte;
            }
            word.zeroize();
        }
    }

    #[target_feature(enable = "aes,pclmulqdq,sse2")]
    fn expand_powers(&mut self) {
        let mut hash_key = self.encrypt_zero();
        hash_key.reverse();
        let first = double(hash_key);
        hash_key.zeroize();
        let mut power = first;
        for at in (0..POWERS).rev() {
            store_block(&mut self.powers[at], power);
            power = multiply(power, first);
        }
    }

    /// The hash key: the zero block, encrypted.
    #[target_feature(enable = "aes,sse2")]
    fn encrypt_zero(&self) -> Block {
        let mut state = load_block(&self.round_keys[0]);
        for key in &self.round_keys[1..self.rounds as usize] {
            state = _mm_aesenc_si128(state, load_block(key));
        }
        let mut out = [0; 16];
        store_block(
            &mut out,
            _mm_aesenclast_si128(state, load_block(&self.round_keys[self.rounds as usize])),
        );
        out
    }
}

impl Drop for GcmKey {
    fn drop(&mut self) {
        self.powers.zeroize();
        self.round_keys.zeroize();
    }
}

/// The S-box on four bytes, in constant time: with four equal columns the row shift of a round changes nothing.
#[target_feature(enable = "aes,sse2")]
fn sub_word(word: [u8; 4]) -> [u8; 4] {
    let state = _mm_set1_epi32(i32::from_le_bytes(word));
    _mm_cvtsi128_si32(_mm_aesenclast_si128(state, _mm_setzero_si128())).to_le_bytes()
}

/// `block * x`, in constant time; `block` is little-endian.
#[target_feature(enable = "sse2")]
fn double(block: Block) -> __m128i {
    let value = u128::from_le_bytes(block);
    let carry = 0u128.wrapping_sub(value >> 127);
    let reduced = value << 1 ^ carry & (u128::from(POLY) << 64 | 1);
    load_block(&reduced.to_le_bytes())
}

/// `a * x^-64`.
#[target_feature(enable = "pclmulqdq,sse2")]
fn fold(a: __m128i) -> __m128i {
    let poly = _mm_set_epi64x(0, POLY.cast_signed());
    let swapped = _mm_shuffle_epi32::<0b01_00_11_10>(a);
    _mm_xor_si128(swapped, _mm_clmulepi64_si128::<0x00>(a, poly))
}

/// `a * b * x^-128`.
#[target_feature(enable = "pclmulqdq,sse2")]
fn multiply(a: __m128i, b: __m128i) -> __m128i {
    let middle = _mm_xor_si128(
        _mm_clmulepi64_si128::<0x01>(a, b),
        _mm_clmulepi64_si128::<0x10>(a, b),
    );
    let middle = _mm_xor_si128(middle, fold(_mm_clmulepi64_si128::<0x00>(a, b)));
    _mm_xor_si128(_mm_clmulepi64_si128::<0x11>(a, b), fold(middle))
}

/// Loads a block.
#[target_feature(enable = "sse2")]
#[inline]
pub(super) fn load_block(block: &Block) -> __m128i {
    // SAFETY: 16 bytes are borrowed, and the load wants no alignment.
    unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
}

/// Stores a block.
#[target_feature(enable = "sse2")]
#[inline]
pub(super) fn store_block(block: &mut Block, value: __m128i) {
    // SAFETY: 16 bytes are borrowed for writing, and the store wants no alignment.
    unsafe { _mm_storeu_si128(block.as_mut_ptr().cast(), value) }
}
