//! Ethernet II headers.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Length of the header in bytes, no VLAN tag.
pub const HEADER_LEN: usize = size_of::<EtherHeader>();

/// An Ethernet II header.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct EtherHeader {
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// Source MAC address.
    pub source: [u8; 6],
    /// EtherType.
    pub ether_type: U16,
}

const _: () = assert!(size_of::<EtherHeader>() == 14);

impl EtherHeader {
    /// Whether the destination is a group address: multicast or broadcast.
    pub fn is_group(&self) -> bool {
        self.destination[0] & 1 == 1
    }
}
