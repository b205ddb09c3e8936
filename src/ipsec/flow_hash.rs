//! Which SA of a split tunnel seals a packet.
//!
//! Packets of one flow must not overtake each other, and on two SAs, which may be opened on two cores of the peer's, they
//! would. So the choice depends only on what is the same in every packet of a flow, fragments included. A fragment after
//! the first has no ports, hence ports count only where a flow has no fragments:
//!
//! - TCP over IPv4 with DF set: whoever sets it sends segments that fit (RFC 1191), and no router cuts them;
//! - TCP over IPv6 directly after the fixed header: TCP sends segments that fit (RFC 8201), and routers never cut;
//! - UDP only where the operator says so: a UDP sender cuts a datagram that is too long, and sends a short one whole.
//!
//! Other packets are told apart by addresses, and over IPv6 by the flow label too, which every fragment has and which is
//! made for this (RFC 6437, RFC 6438).

use zerocopy::FromBytes;

use crate::bits::{low_32, low_64};
use crate::ids::SaIndex;
use crate::meta::PacketKind;
use crate::wire::ip::protocol;
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::{self, Ipv6Header};

/// The SAs of a split tunnel: slots next to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SaGroup {
    first: SaIndex,
    count: u8,
    udp_ports: bool,
}

impl SaGroup {
    /// The `count` slots from `first` on. With `udp_ports`, UDP flows are told apart by ports too.
    pub fn new(first: SaIndex, count: u8, udp_ports: bool) -> Self {
        Self {
            first,
            count,
            udp_ports,
        }
    }

    /// The first of the slots.
    pub fn first(self) -> SaIndex {
        self.first
    }

    /// The slot of the SA for the IP packet `data`, whose header has been checked.
    #[inline]
    pub fn slot(self, data: &[u8], kind: PacketKind) -> SaIndex {
        let hash = u64::from(flow_hash(data, kind, self.udp_ports));
        // A number below `count`, which has eight bits: the sum stays one of the group's slots.
        let offset = low_32(hash.wrapping_mul(u64::from(self.count)) >> 32);
        SaIndex(self.first.0.wrapping_add(offset))
    }
}

/// The flow label in the first four bytes of an IPv6 header.
const FLOW_LABEL: u32 = 0x000f_ffff;
/// Odd constants without pattern: the first digits of the fraction of pi.
const SALT: [u64; 4] = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7345,
    0xa409_3822_299f_31d1,
    0x082e_fa98_ec4e_6c89,
];

/// A number that the packets of a flow have in common, evenly spread over all 32 bits. The same in every process.
#[inline]
pub fn flow_hash(data: &[u8], kind: PacketKind, udp_ports: bool) -> u32 {
    let (addresses, rest) = match kind {
        PacketKind::Ipv4 => of_v4(data, udp_ports),
        PacketKind::Ipv6 => of_v6(data, udp_ports),
        PacketKind::Other => return 0,
    };
    let hash = fold(addresses ^ SALT[0], rest ^ SALT[1]);
    low_32(fold(hash, SALT[2]) >> 32)
}

/// A number of 32 bits that looks nothing like `value` and is the same in every process.
pub const fn mix(value: u64) -> u32 {
    low_32(fold(value ^ SALT[3], SALT[1]) >> 32)
}

/// The addresses, and what else tells a flow.
#[inline]
fn of_v4(data: &[u8], udp_ports: bool) -> (u64, u64) {
    let Ok((header, _)) = Ipv4Header::ref_from_prefix(data) else {
        return (0, 0);
    };
    let [source, destination] =
        [header.source, header.destination].map(|bytes| u64::from(u32::from_be_bytes(bytes)));
    let has_ports = match header.protocol {
        protocol::TCP => header.dont_fragment() && !header.is_fragment(),
        protocol::UDP => udp_ports && !header.is_fragment(),
        _ => false,
    };
    let rest = if has_ports {
        ports(
            data,
            header.protocol,
            usize::from(header.version_ihl & 0x0f) << 2,
        )
    } else {
        0
    };
    (source << 32 | destination, rest)
}

#[inline]
fn of_v6(data: &[u8], udp_ports: bool) -> (u64, u64) {
    let Ok((header, _)) = Ipv6Header::ref_from_prefix(data) else {
        return (0, 0);
    };
    let [s0, s1] = halves(header.source);
    let [d0, d1] = halves(header.destination);
    let addresses = fold(s0 ^ SALT[0], d1 ^ SALT[1]) ^ fold(s1 ^ SALT[2], d0 ^ SALT[3]);
    let has_ports = match header.next_header {
        protocol::TCP => true,
        protocol::UDP => udp_ports,
        _ => false,
    };
    let rest = if has_ports {
        ports(data, header.next_header, ipv6::HEADER_LEN)
    } else {
        u64::from(u32::from_be_bytes(header.version_class_flow) & FLOW_LABEL)
    };
    (addresses, rest)
}

/// Protocol and ports, which no flow label is equal to.
#[inline]
fn ports(data: &[u8], protocol: u8, offset: usize) -> u64 {
    let ports = data
        .get(offset..)
        .and_then(|transport| transport.first_chunk::<4>());
    let ports = ports.map_or(0, |bytes| u32::from_be_bytes(*bytes));
    u64::from(protocol) << 32 | u64::from(ports)
}

#[inline]
fn halves(address: [u8; 16]) -> [u64; 2] {
    let bits = u128::from_be_bytes(address);
    [high_64(bits), low_64(bits)]
}

/// The product of both, its halves folded into one.
#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    high_64(product) ^ low_64(product)
}

#[inline]
const fn high_64(value: u128) -> u64 {
    low_64(value >> 64)
}

#[cfg(test)]
mod tests;
