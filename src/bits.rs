//! Cutting numbers down where that is what is meant.
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "taking the low bits is what these are for"
)]

/// The low 8 bits.
#[inline]
pub(crate) const fn low_8(value: u64) -> u8 {
    value as u8
}

/// The low 16 bits.
#[inline]
pub(crate) const fn low_16(value: u64) -> u16 {
    value as u16
}

/// The low 32 bits.
#[inline]
pub(crate) const fn low_32(value: u64) -> u32 {
    value as u32
}

/// The low 64 bits.
#[inline]
pub(crate) const fn low_64(value: u128) -> u64 {
    value as u64
}
