//! ESP headers and trailers (RFC 4303 section 2).

use zerocopy::byteorder::network_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of SPI and sequence number, in bytes.
pub const HEADER_LEN: usize = size_of::<EspHeader>();
/// Length of pad length and next header, in bytes.
pub const TRAILER_LEN: usize = 2;
/// What payload, padding and trailer are aligned to, in bytes (RFC 4303 section 2.4).
pub const ALIGNMENT: usize = 4;

/// SPI and the low half of the sequence number.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct EspHeader {
    /// Security Parameters Index.
    pub spi: U32,
    /// Low 32 bits of the sequence number.
    pub seq: U32,
}

const _: () = assert!(size_of::<EspHeader>() == 8);

/// Padding bytes that a payload of `len` bytes needs before its trailer: 0 to 3.
pub const fn pad_len(len: usize) -> usize {
    len.wrapping_add(TRAILER_LEN).wrapping_neg() % ALIGNMENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_aligns_payload_and_trailer_to_four() {
        for len in 0..64 {
            let pad = pad_len(len);
            assert!(pad < 4);
            assert_eq!((len + pad + TRAILER_LEN) % 4, 0);
        }
    }
}
