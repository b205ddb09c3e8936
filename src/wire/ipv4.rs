//! IPv4 headers (RFC 791).

use std::net::Ipv4Addr;

use zerocopy::byteorder::little_endian::{U16 as U16Le, U32, U64};
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::low_16;
use crate::drop::DropReason;
use crate::wire::checksum;

/// Length of a header without options, in bytes.
pub const HEADER_LEN: usize = size_of::<Ipv4Header>();
/// The largest packet that every host takes (RFC 791): a path that claims to take less is not believed.
pub const LEAST_MTU: u16 = 576;
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

/// What the checks of nearly every packet need, in words of the processor's byte order: an Ethernet header with an IPv4
/// header without options behind it. Seven loads, where fields would be twenty.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct PlainFrame {
    /// Destination MAC address, and two bytes of the source's.
    destination_mac: U64,
    _source_mac: U32,
    /// EtherType, then version and header length, TOS, total length, identification.
    first: U64,
    ip: PlainRest,
}

/// An IPv4 header without options as in [`PlainFrame`].
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct PlainHeader {
    /// Version and header length, TOS, total length.
    first: U32,
    identification: U16Le,
    rest: PlainRest,
}

/// What follows the identification.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct PlainRest {
    flags_fragment: U16Le,
    /// TTL, protocol, checksum.
    middle: U32,
    source: U32,
    destination: U32,
}

const _: () = assert!(size_of::<PlainFrame>() == 34);
const _: () = assert!(size_of::<PlainHeader>() == HEADER_LEN);

/// An IPv4 header without options whose checksum is right and whose length is at least its own.
#[derive(Clone, Copy)]
pub struct Plain {
    /// Header and payload, in bytes.
    pub total_len: u16,
    /// DSCP and ECN.
    pub tos: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// First byte of flags and fragment offset.
    pub flags: u8,
    /// Whether it is one fragment of a larger packet.
    pub is_fragment: bool,
    /// Source address, host byte order.
    pub source: u32,
    /// Destination address, host byte order.
    pub destination: u32,
}

impl PlainFrame {
    /// The header, where the frame is for `mac` and all is as it is with nearly every packet. `None` says nothing but that
    /// it is to be looked at in full.
    #[inline]
    pub fn check(&self, mac: u64) -> Option<Plain> {
        let first = self.first.get();
        // EtherType 0x0800, version 4, five words.
        let is_plain = (self.destination_mac.get() ^ mac) & 0xffff_ffff_ffff == 0
            && first & 0x00ff_ffff == 0x0045_0008;
        if !is_plain {
            return None;
        }
        self.ip.check(first >> 16)
    }
}

impl PlainHeader {
    /// The header, where it is one without options.
    #[inline]
    pub fn check(&self) -> Option<Plain> {
        let first = u64::from(self.first.get()) | u64::from(self.identification.get()) << 32;
        if first & 0xff != 0x45 {
            return None;
        }
        self.rest.check(first)
    }
}

/// Whether a sum is a multiple of 2^16 - 1. Odd numbers have inverses modulo 2^64, and only their multiples come to few by it.
#[inline]
fn is_all_ones(sum: u64) -> bool {
    const INVERSE: u64 = 0xfffe_fffe_fffe_ffff;
    const _: () = assert!(INVERSE.wrapping_mul(0xffff) == 1);
    sum.wrapping_mul(INVERSE) <= u64::MAX / 0xffff
}

impl PlainRest {
    /// `first` is the header's first six bytes.
    #[inline]
    fn check(&self, first: u64) -> Option<Plain> {
        let middle = self.middle.get();
        // 2^16 is 1 modulo 2^16 - 1, so the sum of the 16-bit words is that of any longer words, in either byte order, and
        // it is all ones, or 0 modulo 2^16 - 1, where the checksum is right (RFC 1071 section 2).
        let flags_fragment = self.flags_fragment.get();
        let (source, destination) = (self.source.get(), self.destination.get());
        let sum = first
            .wrapping_add(u64::from(flags_fragment))
            .wrapping_add(u64::from(middle))
            .wrapping_add(u64::from(source))
            .wrapping_add(u64::from(destination));
        let total_len = low_16(first >> 16).swap_bytes();
        if !is_all_ones(sum) || usize::from(total_len) < HEADER_LEN {
            return None;
        }
        let [_, tos, ..] = first.to_le_bytes();
        let [_, protocol, ..] = middle.to_le_bytes();
        let flags_fragment = flags_fragment.swap_bytes();
        let [flags, _] = flags_fragment.to_be_bytes();
        Some(Plain {
            total_len,
            tos,
            protocol,
            flags,
            is_fragment: flags_fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0,
            source: source.swap_bytes(),
            destination: destination.swap_bytes(),
        })
    }
}

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

    /// Where in the larger packet this fragment's payload begins, in bytes; 0 for the first, and for a whole packet.
    pub fn fragment_offset(&self) -> u16 {
        (self.flags_fragment.get() & FRAGMENT_OFFSET) << 3
    }

    /// Whether more fragments follow.
    pub fn more_fragments(&self) -> bool {
        self.flags_fragment.get() & MORE_FRAGMENTS != 0
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
    #[inline]
    pub fn decrement_ttl(&mut self) -> bool {
        if self.ttl <= 1 {
            return false;
        }
        // RFC 1624 section 3 where a byte became one less: one is added at the same place of the checksum, end around, and
        // of the two zeros a checksum may be it is the one that a sum of not all zeros has. Byte order is of no matter
        // (RFC 1071 section 2), so it is done in the processor's, with both in one word.
        let PlainHeader { rest, .. } = zerocopy::transmute_mut!(self);
        let middle = rest.middle.get();
        let last = 0xfffe << 16;
        rest.middle = match middle.checked_sub(last) {
            None => middle.wrapping_add((1 << 16) - 1),
            Some(around) => around.wrapping_sub(1),
        }
        .into();
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(bytes: [u8; HEADER_LEN]) -> Ipv4Header {
        let (mut header, _) = Ipv4Header::read_from_prefix(&bytes).expect("whole");
        header.version_ihl = 0x45;
        header.fill_checksum();
        header
    }

    proptest! {
        #[test]
        fn ttl_taken_down_leaves_the_checksum_that_summing_up_gives(bytes: [u8; HEADER_LEN]) {
            let mut counted = header(bytes);
            let ttl = counted.ttl;
            prop_assert_eq!(counted.decrement_ttl(), ttl > 1);
            let mut summed = counted;
            summed.fill_checksum();
            prop_assert_eq!(counted.checksum, summed.checksum);
        }

        #[test]
        fn plain_header_is_what_parse_says(
            bytes: [u8; HEADER_LEN],
            damage in prop::option::of((0..HEADER_LEN, 1..=255u8)),
        ) {
            let mut wire = [0; HEADER_LEN];
            wire.copy_from_slice(header(bytes).as_bytes());
            if let Some((at, bits)) = damage {
                wire[at] ^= bits;
            }
            let mut packet = wire.to_vec();
            packet.resize(0x1_0000, 0);
            let (plain, _) = PlainHeader::ref_from_prefix(&wire).expect("whole");
            let parsed = Ipv4Header::parse(&packet);
            match plain.check() {
                Some(plain) => {
                    let (header, len) = parsed.expect("plain is good");
                    prop_assert_eq!(len, HEADER_LEN);
                    prop_assert_eq!(plain.total_len, header.total_len.get());
                    prop_assert_eq!((plain.tos, plain.protocol), (header.tos, header.protocol));
                    prop_assert_eq!(plain.is_fragment, header.is_fragment());
                    prop_assert_eq!(plain.flags & 0x40 != 0, header.dont_fragment());
                    prop_assert_eq!(plain.source.to_be_bytes(), header.source);
                    prop_assert_eq!(plain.destination.to_be_bytes(), header.destination);
                }
                None => prop_assert!(parsed.is_err() || wire[0] != 0x45),
            }
        }
    }
}
