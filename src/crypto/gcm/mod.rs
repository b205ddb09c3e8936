//! AES-GCM kernels of our own, by tier, built for ESP bursts.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_chunks;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512_jobs;
#[cfg(target_arch = "x86_64")]
pub(super) mod key;
