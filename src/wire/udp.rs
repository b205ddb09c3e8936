//! UDP headers (RFC 768) and what shares port 4500 (RFC 3948).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = size_of::<UdpHeader>();
/// Port of IKE.
pub const PORT_IKE: u16 = 500;
/// Port of IKE and ESP behind a NAT.
pub const PORT_NAT_T: u16 = 4500;

/// A UDP header.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct UdpHeader {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
    /// Header and payload, in bytes.
    pub len: U16,
    /// Checksum, 0 for none.
    pub checksum: U16,
}

const _: () = assert!(size_of::<UdpHeader>() == 8);

/// What a UDP payload on the NAT traversal port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NatPayload {
    /// ESP: it begins with an SPI, which is not 0.
    Esp,
    /// IKE: it begins with the non-ESP marker, four bytes of 0.
    Ike,
    /// A keepalive: one byte, 0xff.
    Keepalive,
    /// Too short for any of them.
    Other,
}

impl NatPayload {
    /// Tells the payload's kind (RFC 3948 section 2).
    pub fn of(payload: &[u8]) -> Self {
        match payload {
            [0xff] => Self::Keepalive,
            [0, 0, 0, 0, ..] => Self::Ike,
            [_, _, _, _, ..] => Self::Esp,
            _ => Self::Other,
        }
    }
}
