//! What the selectors of a policy see of a packet (RFC 4301 section 4.4.1.1).

use zerocopy::FromBytes;

use crate::bits::low_64;
use crate::ipsec::selector::{Address, v4, v6};
use crate::wire::ip::protocol;
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::Ipv6Header;

/// A port that cannot be seen: of a fragment after the first, or of a protocol that has none. Higher than any port, so that a
/// range may hold it or not.
pub const OPAQUE: u32 = 0x1_0000;

/// Which way packets go, and which half of an SA pair they go by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// From this side, to be sealed or passed in clear: its source is local.
    Outbound,
    /// From the other side, opened or in clear: its source is remote.
    Inbound,
}

impl Direction {
    /// `outbound` or `inbound`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// Addresses, protocol and ports of one packet, as this side has them: the same for both directions of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic<A> {
    /// The address on this side, host byte order.
    pub local: A,
    /// The address on the other side.
    pub remote: A,
    /// The port on this side, or [`OPAQUE`]. Of ICMP, type and code as one number, the type in the high byte.
    pub local_port: u32,
    /// The port on the other side, or [`OPAQUE`]. Of ICMP, as `local_port`.
    pub remote_port: u32,
    /// IP protocol, after extension headers.
    pub protocol: u8,
}

/// Traffic of either family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnyTraffic {
    /// IPv4.
    V4(Traffic<u32>),
    /// IPv6.
    V6(Traffic<u128>),
}

impl<A: Address> Traffic<A> {
    fn new(
        (source, destination): (A, A),
        (protocol, ports): (u8, [u32; 2]),
        direction: Direction,
    ) -> Self {
        let [from, to] = ports;
        let (local, remote, local_port, remote_port) = match direction {
            Direction::Outbound => (source, destination, from, to),
            Direction::Inbound => (destination, source, to, from),
        };
        Self {
            local,
            remote,
            local_port,
            remote_port,
            protocol,
        }
    }
}

impl Traffic<u32> {
    /// What the checked IPv4 packet `data` is, which goes in `direction`; `None` where it is too short.
    #[inline]
    pub fn of_v4(data: &[u8], direction: Direction) -> Option<Self> {
        let (header, _) = Ipv4Header::ref_from_prefix(data).ok()?;
        let ports = match header.fragment_offset() {
            0 => ports(
                data,
                header.protocol,
                usize::from(header.version_ihl & 0x0f) << 2,
            ),
            _ => [OPAQUE; 2],
        };
        let addresses = (v4(header.source), v4(header.destination));
        Some(Self::new(addresses, (header.protocol, ports), direction))
    }
}

impl Traffic<u128> {
    /// As [`Self::of_v4`] for IPv6; `None` where extension headers are malformed, too.
    pub fn of_v6(data: &[u8], direction: Direction) -> Option<Self> {
        let (header, _) = Ipv6Header::ref_from_prefix(data).ok()?;
        let walk = header.walk(data).ok()?;
        let ports = match walk.is_later_fragment {
            false => ports(data, walk.protocol, walk.offset.into()),
            true => [OPAQUE; 2],
        };
        let addresses = (v6(header.source), v6(header.destination));
        Some(Self::new(addresses, (walk.protocol, ports), direction))
    }
}

/// Whether a protocol begins with a source and a destination port.
pub const fn has_ports(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDP_LITE
    )
}

/// Whether a protocol begins with a type and a code.
pub const fn has_type(protocol: u8) -> bool {
    matches!(protocol, protocol::ICMP | protocol::ICMPV6)
}

/// Source and destination port of the transport header at `at`, as the sender has them.
#[inline]
fn ports(data: &[u8], protocol: u8, at: usize) -> [u32; 2] {
    let header = data.get(at..).and_then(|header| header.first_chunk());
    match header {
        Some([a, b, c, d]) if has_ports(protocol) => [
            u16::from_be_bytes([*a, *b]).into(),
            u16::from_be_bytes([*c, *d]).into(),
        ],
        Some([kind, code, ..]) if has_type(protocol) => {
            [u16::from_be_bytes([*kind, *code]).into(); 2]
        }
        _ => [OPAQUE; 2],
    }
}

/// What tells flows apart, mixed into 64 bits the high ones of which depend on all of it.
pub trait FlowHash {
    /// The hash.
    fn flow_hash(&self) -> u64;
}

/// Odd constants without pattern: 2^64 over the golden ratio, and the first digits of the fraction of pi.
const MIX: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0x243f_6a88_85a3_08d3];

impl<A> Traffic<A> {
    /// Ports and protocol in one number.
    #[inline]
    fn rest(&self) -> u64 {
        let ports = u64::from(self.local_port) << 32 | u64::from(self.remote_port);
        ports ^ u64::from(self.protocol) << 20
    }
}

impl FlowHash for Traffic<u32> {
    #[inline]
    fn flow_hash(&self) -> u64 {
        let addresses = u64::from(self.local) << 32 | u64::from(self.remote);
        let mixed = addresses.wrapping_mul(MIX[0]);
        (mixed ^ mixed >> 32 ^ self.rest().wrapping_mul(MIX[1])).wrapping_mul(MIX[0])
    }
}

impl FlowHash for Traffic<u128> {
    #[inline]
    fn flow_hash(&self) -> u64 {
        let fold = |word: u128| {
            let mixed = low_64(word).wrapping_mul(MIX[0]) ^ low_64(word >> 64);
            mixed.wrapping_mul(MIX[1])
        };
        let local = fold(self.local);
        (local ^ local >> 29 ^ fold(self.remote) ^ self.rest().wrapping_mul(MIX[1]))
            .wrapping_mul(MIX[0])
    }
}
