//! What the stages of the packet path know of a packet beside its bytes.
#![forbid(unsafe_code)]

use crate::drop::{Aside, DropReason, Fate, PuntReason};
use crate::ids::{NextHopIndex, SaIndex};

/// Most packets that one poll returns, and so the size of every per-burst array.
pub const BURST: usize = 64;

/// Per-packet state that travels with a burst, in an array beside the packets.
#[derive(Clone, Copy, Debug)]
pub struct PacketMeta {
    /// Inbound: the sequence number rebuilt to 64 bits. Outbound: the one assigned. Of a packet that ended as `TooBig`, or
    /// was taken aside to be cut: the largest IP packet that would have gone, in bytes.
    pub seq: u64,
    /// The SA that seals or opens it, once a lookup has found one; none of what passes in clear.
    pub sa: Option<SaIndex>,
    /// Where it goes next, once routed.
    pub next_hop: NextHopIndex,
    /// Where it stands.
    pub fate: Fate,
    /// Offset of the ESP header from the start of the IP packet, in bytes; inbound only.
    pub esp_offset: u16,
    /// Length of the inner IP packet, in bytes.
    pub inner_len: u16,
    /// Offset of the transport header from the start of the IP packet, in bytes as received.
    pub l4_offset: u16,
    /// Addresses of the IPv4 header, host byte order: of the packet as received, and of the inner one once it was opened.
    /// Of no meaning for IPv6.
    pub source: u32,
    /// As `source`.
    pub destination: u32,
    /// TOS or traffic class of the packet as received: outbound the inner header's, inbound the outer one's.
    pub tos: u8,
    /// First byte of flags and fragment offset of the IPv4 header as received.
    pub ip_flags: u8,
    /// IP protocol after the headers and extension headers that were walked, as received.
    pub protocol: u8,
    /// What the parser found.
    pub kind: PacketKind,
}

/// The shape of a parsed packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketKind {
    /// Not an IP packet.
    Other,
    /// IPv4, headers checked.
    Ipv4,
    /// IPv6, headers checked.
    Ipv6,
}

const _: () = assert!(size_of::<PacketMeta>() <= 40);

impl PacketMeta {
    /// A live packet of which nothing is known.
    pub const NEW: Self = Self {
        seq: 0,
        sa: None,
        next_hop: NextHopIndex(0),
        fate: Fate::Live,
        esp_offset: 0,
        inner_len: 0,
        l4_offset: 0,
        source: 0,
        destination: 0,
        tos: 0,
        ip_flags: 0,
        protocol: 0,
        kind: PacketKind::Other,
    };

    /// Whether the packet is still on its way.
    #[inline]
    pub fn is_live(&self) -> bool {
        self.fate == Fate::Live
    }

    /// Whether the packet is still on its way, sealed, opened or in clear.
    #[inline]
    pub fn goes_on(&self) -> bool {
        matches!(self.fate, Fate::Live | Fate::Bypassed)
    }

    /// Ends the packet for `reason`.
    pub fn kill(&mut self, reason: DropReason) {
        self.fate = Fate::Dropped(reason);
    }

    /// Takes the packet aside for `reason`.
    pub fn take_aside(&mut self, reason: Aside) {
        self.fate = Fate::Aside(reason);
    }

    /// Ends the packet on this path by handing it to the control side for `reason`.
    pub fn punt(&mut self, reason: PuntReason) {
        self.fate = Fate::Punted(reason);
    }
}

impl Default for PacketMeta {
    fn default() -> Self {
        Self::NEW
    }
}
