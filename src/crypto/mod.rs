//! Authenticated encryption for ESP. Unsafe code is in the vector kernels of [`gcm`] only; imports `ids`, nothing else.

pub mod aead;
#[cfg(target_arch = "x86_64")]
mod gcm;
mod portable;
pub mod tier;
