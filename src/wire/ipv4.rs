//! IPv4 headers (RFC 791).

use std::net::Ipv4Addr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::drop::DropReason;
use crate::wire::checksum;

/// Length of a header without options, in bytes.
pub const HEADER_LEN: usize = size_of::<Ipv4Header>();
/// The DF flag in [`Ipv4Header::flags_fragment`].
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The MF flag in [`Ipv4Header::flags_fragment`].
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset in [`Ipv4Header::flags_fragment`].
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// The fixed part of an IPv4 header.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv4Header {
    /// Version in the high half, header length in 32-bit words in the low.
    pub version_ihl: u8,
    /// DSCP in the high six bits, ECN in the low two.
    pub tos: u8,
    /// Header and payload, in bytes.
    pub total_len: U16,
    /// Identification.
    pub id: U16,
    /// Flags and fragment offset.
    pub flags_fragment: U16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: U16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

const _: () = assert!(size_of::<Ipv4Header>() == 20);

impl Ipv4Header {
    /// Views and checks the IPv4 packet that begins `data`: version, header length, total length, checksum.
    /// Returns the fixed part and the length of the whole header in bytes.
    ///
    /// # Errors
    /// `Runt`, `BadVersion`, `BadLength` or `BadChecksum`.
    pub fn parse(data: &[u8]) -> Result<(&Self, usize), DropReason> {
        let (header, _) = Self::ref_from_prefix(data).map_err(|_| DropReason::Runt)?;
        let header_len = usize::from(header.version_ihl & 0x0f) << 2;
        if header.version_ihl >> 4 != 4 || header_len < HEADER_LEN {
            return Err(DropReason::BadVersion);
        }
        let total_len = usize::from(header.total_len.get());
        if total_len < header_len || total_len > data.len() {
            return Err(DropReason::BadLength);
        }
        let bytes = data.get(..header_len).ok_or(DropReason::BadLength)?;
        if checksum::finish(checksum::add_bytes(0, bytes)) != 0 {
            return Err(DropReason::BadChecksum);
        }
        Ok((header, header_len))
    }

    /// Whether this is one fragment of a larger packet.
    pub fn is_fragment(&self) -> bool {
        self.flags_fragment.get() & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    /// Whether routers must not fragment it.
    pub fn dont_fragment(&self) -> bool {
        self.flags_fragment.get() & DONT_FRAGMENT != 0
    }

    /// Source address.
    pub fn source_addr(&self) -> Ipv4Addr {
        self.source.into()
    }

    /// Destination address.
    pub fn destination_addr(&self) -> Ipv4Addr {
        self.destination.into()
    }

    /// Takes one from the TTL and mends the checksum; false, and nothing changed, where it would reach 0.
    pub fn decrement_ttl(&mut self) -> bool {
        if self.ttl <= 1 {
            return false;
        }
        let old = u16::from_be_bytes([self.ttl, self.protocol]);
        self.ttl = self.ttl.saturating_sub(1);
        let new = u16::from_be_bytes([self.ttl, self.protocol]);
        self.checksum = checksum::update(self.checksum.get(), old, new).into();
        true
    }

    /// Replaces the ECN field and mends the checksum.
    pub fn set_ecn(&mut self, ecn: u8) {
        let old = u16::from_be_bytes([self.version_ihl, self.tos]);
        self.tos = self.tos & !0b11 | ecn & 0b11;
        let new = u16::from_be_bytes([self.version_ihl, self.tos]);
        self.checksum = checksum::update(self.checksum.get(), old, new).into();
    }

    /// Computes the checksum of a header without options.
    pub fn fill_checksum(&mut self) {
        self.checksum = 0.into();
        self.checksum = checksum::finish(checksum::add_bytes(0, self.as_bytes())).into();
    }
}
