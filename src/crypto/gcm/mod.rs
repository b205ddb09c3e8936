//! AES-GCM kernels of our own, by tier, built for ESP bursts.

pub(super) mod aesni;
pub(super) mod avx2;
pub(super) mod avx512;
mod avx512_chunks;
mod avx512_jobs;
mod counters;
pub(super) mod key;

use self::aesni::HasAesNi;
use self::avx2::HasAvx2;
use self::avx512::HasAvx512;
use self::key::GcmKey;
use super::aead::{OpenJob, SealJob};

/// The kernels that a key is for, with the proof that this processor can run them.
#[derive(Clone, Copy)]
enum Kernels {
    AesNi(HasAesNi),
    Avx2(HasAvx2),
    Avx512(HasAvx512),
}

/// Seals packets of one key.
pub(super) fn seal_run(key: &GcmKey, jobs: &mut [SealJob<'_>]) {
    match key.kernels {
        Kernels::AesNi(has) => aesni::seal_run(has, key, jobs),
        Kernels::Avx2(has) => avx2::seal_run(has, key, jobs),
        Kernels::Avx512(has) => avx512_jobs::run(has, key, jobs),
    }
}

/// Opens packets of one key.
pub(super) fn open_run(key: &GcmKey, jobs: &mut [OpenJob<'_>]) {
    match key.kernels {
        Kernels::AesNi(has) => aesni::open_run(has, key, jobs),
        Kernels::Avx2(has) => avx2::open_run(has, key, jobs),
        Kernels::Avx512(has) => avx512_jobs::run(has, key, jobs),
    }
}
