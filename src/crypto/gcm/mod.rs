//! AES-GCM kernels of our own, by tier, built for ESP bursts.

pub(super) mod aesni;
pub(super) mod avx2;
pub(super) mod avx512;
mod avx512_chunks;
mod avx512_fours;
mod avx512_jobs;
pub(super) mod avx512_lanes;
mod avx512_long;
mod avx512_short;
mod counters;
pub(super) mod key;

use std::ops::RangeInclusive;

use self::aesni::HasAesNi;
use self::avx2::HasAvx2;
use self::avx512::HasAvx512;
use self::key::{Block, GcmKey};
use super::aead::Job;

/// The kernels that a key is for, with the proof that this processor can run them.
#[derive(Clone, Copy)]
enum Kernels {
    AesNi(HasAesNi),
    Avx2(HasAvx2),
    Avx512(HasAvx512),
}

/// Seals or opens packets of one key, whose texts have `lens` bytes, ICV included.
pub(super) fn run<'a, J: Job<'a>>(key: &GcmKey, jobs: &mut [J], lens: RangeInclusive<usize>) {
    match key.kernels {
        Kernels::AesNi(has) => aesni::run(has, key, jobs),
        Kernels::Avx2(has) => avx2::run(has, key, jobs),
        Kernels::Avx512(has) => avx512_jobs::run(has, key, jobs, lens),
    }
}

/// Shuffles the bytes of a block into reverse.
const REVERSED: Block = [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0];

/// Nobody may see what was decrypted from a packet that is not authentic.
#[cold]
#[inline(never)]
fn wipe(text: &mut [u8]) {
    text.fill(0);
}
