//! Authenticated encryption for ESP. Unsafe code will live in the vector kernels only; imports `ids`, nothing else.

pub mod aead;
mod gcm;
mod portable;
pub mod tier;
