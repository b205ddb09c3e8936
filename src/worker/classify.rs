//! Stage 4: what a packet is to this gateway: ESP to open, clear text to seal, something for the control side, or
//! nothing at all.

use zerocopy::FromBytes;

use crate::buf::PacketBuf;
use crate::drop::{Aside, DropReason, Fate, PuntReason};
use crate::ipsec::esp_in::address_pair;
use crate::ipsec::selector::AddressPair;
use crate::ipsec::spd::SpdAction;
use crate::ipsec::traffic::Direction;
use crate::meta::{PacketKind, PacketMeta};
use crate::policy::model::Side;
use crate::policy::tables::PortTable;
use crate::wire::ip::protocol;
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::udp::{self, NatPayload, UdpHeader};
use crate::worker::stages::View;

/// ICMPv6 types of neighbour discovery (RFC 4861 section 4).
const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// Classifies every live packet of a burst. On the unprotected side only ESP stays live, with `esp_offset` set, and what
/// policies let pass in clear is `Bypassed`; on the protected side everything that is not for the gateway itself stays live.
pub fn classify_burst<B: PacketBuf>(
    packets: &[B],
    metas: &mut [PacketMeta],
    view: View<'_>,
) -> Sorted {
    let (port, spd) = (view.ingress, &view.tables.spd);
    let mut has_udp = false;
    let has_ended = match port.side {
        Side::Unprotected if spd.has_bypass() => {
            classify_each(packets, metas, |packet: &B, meta| {
                let data = packet.data();
                if is_bypassed(data, meta, view) {
                    meta.fate = Fate::Bypassed;
                    return Ok(());
                }
                has_udp |= classify_unprotected(data, meta, port)?;
                Ok(())
            })
        }
        Side::Unprotected => classify_each(packets, metas, |packet: &B, meta| {
            let data = packet.data();
            if is_plain_esp(data, meta) {
                meta.esp_offset = meta.l4_offset;
                return Ok(());
            }
            has_udp |= classify_unprotected(data, meta, port)?;
            Ok(())
        }),
        Side::Protected => classify_each(packets, metas, |packet: &B, meta| {
            if is_plain_transit(meta, port) {
                return Ok(());
            }
            classify_protected(packet.data(), meta, port)
        }),
    };
    Sorted { has_udp, has_ended }
}

/// What there is among the packets of a burst.
#[derive(Clone, Copy)]
pub struct Sorted {
    /// ESP in UDP.
    pub has_udp: bool,
    /// Packets that go no further.
    pub has_ended: bool,
}

/// Returns whether there are packets that go no further.
fn classify_each<B: PacketBuf>(
    packets: &[B],
    metas: &mut [PacketMeta],
    mut classify: impl FnMut(&B, &mut PacketMeta) -> Result<(), DropReason>,
) -> bool {
    let mut has_ended = false;
    for (packet, meta) in packets.iter().zip(metas.iter_mut()) {
        if meta.is_live()
            && let Err(reason) = classify(packet, meta)
        {
            meta.kill(reason);
        }
        has_ended |= !meta.goes_on();
    }
    has_ended
}

/// ESP straight in IPv4, and no fragment: nothing else need be asked.
#[inline]
fn is_plain_esp(data: &[u8], meta: &PacketMeta) -> bool {
    meta.kind == PacketKind::Ipv4 && meta.protocol == protocol::ESP && !is_v4_fragment(data)
}

/// IPv4 to an address that is none of the gateway's, and no multicast or broadcast.
#[inline]
fn is_plain_transit(meta: &PacketMeta, port: &PortTable) -> bool {
    meta.kind == PacketKind::Ipv4
        && meta.destination < FIRST_MULTICAST
        && !port.local.has_v4(meta.destination)
}

/// 224.0.0.0: from here on no IPv4 address is one station's.
const FIRST_MULTICAST: u32 = 0xe000_0000;

/// Whether a packet is for everyone on the link, and so for the gateway too: it is never forwarded (RFC 5771 section 4,
/// RFC 4291 section 2.7, RFC 919).
fn is_for_all_on_link(addresses: AddressPair) -> bool {
    match addresses {
        AddressPair::V4(_, destination) => {
            destination & 0xffff_ff00 == FIRST_MULTICAST || destination == u32::MAX
        }
        // The scope is in the low half of the second byte: 1 is the interface, 2 the link.
        AddressPair::V6(_, destination) => {
            let [first, second, ..] = destination.to_be_bytes();
            first == 0xff && matches!(second & 0x0f, 1 | 2)
        }
    }
}

/// Whether a packet that came in clear on the unprotected side passes on as it is: it is not for the gateway, and what
/// policies say of such packets, the other way round, is bypass (RFC 4301 section 5.2). ESP between others is clear text like
/// any other.
#[inline(never)]
fn is_bypassed(data: &[u8], meta: &PacketMeta, view: View<'_>) -> bool {
    let (port, spd) = (view.ingress, &view.tables.spd);
    let Some(addresses) = address_pair(data, meta) else {
        return false;
    };
    let may_pass = addresses.is_routable()
        && !is_local(port, addresses)
        && !port.local.tunnel_ends.contains(&addresses.destination())
        && !is_neighbour_discovery(data, meta);
    may_pass
        && SpdAction::Bypass
            == match spd.has_rules() {
                true => spd.decide(view.flows, data, meta.kind, Direction::Inbound),
                false => spd.lookup_inbound(addresses),
            }
}

/// Returns whether it is ESP in UDP.
#[inline(never)]
fn classify_unprotected(
    data: &[u8],
    meta: &mut PacketMeta,
    port: &PortTable,
) -> Result<bool, DropReason> {
    let is_fragment = match meta.kind {
        PacketKind::Ipv4 => is_v4_fragment(data),
        _ => walk_v6(data, meta)?,
    };
    let destination = address_pair(data, meta).ok_or(DropReason::Runt)?;
    if is_fragment && is_for_sa(meta, port, destination) {
        //= https://www.rfc-editor.org/rfc/rfc4303#section-3.4.1
        //# If required, reassembly is performed prior to ESP processing.
        if meta.kind == PacketKind::Ipv6 && usize::from(meta.l4_offset) != FRAGMENTED_V6 {
            return Err(DropReason::Fragment);
        }
        meta.take_aside(Aside::Reassemble);
        return Ok(false);
    }
    if meta.protocol == protocol::ESP {
        if is_fragment {
            return Err(DropReason::ClearText);
        }
        meta.esp_offset = meta.l4_offset;
        return Ok(false);
    }
    if meta.protocol == protocol::UDP
        && !port.local.nat_t.is_empty()
        && is_nat_t(data, meta, port, destination)?
    {
        return Ok(true);
    }
    let reason = reason_to_punt(data, meta, port, destination).ok_or(DropReason::ClearText)?;
    meta.punt(reason);
    Ok(false)
}

#[inline(never)]
fn classify_protected(
    data: &[u8],
    meta: &mut PacketMeta,
    port: &PortTable,
) -> Result<(), DropReason> {
    let destination = address_pair(data, meta).ok_or(DropReason::Runt)?;
    if let Some(reason) = reason_to_punt(data, meta, port, destination) {
        meta.punt(reason);
    }
    Ok(())
}

/// Why a packet is for the gateway itself, where it is.
fn reason_to_punt(
    data: &[u8],
    meta: &PacketMeta,
    port: &PortTable,
    destination: AddressPair,
) -> Option<PuntReason> {
    if is_neighbour_discovery(data, meta) {
        return Some(PuntReason::NeighbourDiscovery);
    }
    if is_for_all_on_link(destination) {
        return Some(PuntReason::Multicast);
    }
    is_local(port, destination).then(|| match meta.protocol {
        protocol::ICMP | protocol::ICMPV6 => PuntReason::Icmp,
        protocol::UDP if destination_port(data, meta) == Some(udp::PORT_IKE) => PuntReason::Ike,
        _ => PuntReason::Local,
    })
}

/// Whether the packet is ESP in UDP for one of our SAs; sets `esp_offset` where it is. What shares the port with it is
/// punted or dropped.
fn is_nat_t(
    data: &[u8],
    meta: &mut PacketMeta,
    port: &PortTable,
    destination: AddressPair,
) -> Result<bool, DropReason> {
    let Some(number) = destination_port(data, meta) else {
        return Ok(false);
    };
    if !port
        .local
        .nat_t
        .contains(&(destination.destination(), number))
    {
        return Ok(false);
    }
    let esp = usize::from(meta.l4_offset).saturating_add(udp::HEADER_LEN);
    let (header, _) = data
        .get(usize::from(meta.l4_offset)..)
        .and_then(|datagram| UdpHeader::ref_from_prefix(datagram).ok())
        .ok_or(DropReason::Runt)?;
    let len = usize::from(header.len.get());
    // The ICV is looked for at the end of the packet, so the datagram has to end there too.
    if len != data.len().saturating_sub(usize::from(meta.l4_offset)) {
        return Err(DropReason::BadLength);
    }
    match NatPayload::of(data.get(esp..).unwrap_or_default()) {
        NatPayload::Esp => {
            meta.esp_offset = u16::try_from(esp).map_err(|_| DropReason::BadLength)?;
        }
        NatPayload::Ike => meta.punt(PuntReason::Ike),
        NatPayload::Keepalive => return Err(DropReason::NatKeepalive),
        NatPayload::Other => return Err(DropReason::Runt),
    }
    Ok(true)
}

/// Where the payload of an IPv6 fragment begins that has no other extension header.
const FRAGMENTED_V6: usize = ipv6::HEADER_LEN + ipv6::FRAGMENT_HEADER_LEN;

/// Whether a fragment may be one of a packet that an SA is to open: ESP to us, or UDP, whose ports are in the first fragment
/// only, to an address where ESP in UDP arrives. What else is fragmented and ours the kernel puts together.
fn is_for_sa(meta: &PacketMeta, port: &PortTable, destination: AddressPair) -> bool {
    match meta.protocol {
        protocol::ESP => is_local(port, destination),
        protocol::UDP => port
            .local
            .nat_t_addresses
            .contains(&destination.destination()),
        _ => false,
    }
}

#[inline]
fn is_v4_fragment(data: &[u8]) -> bool {
    Ipv4Header::ref_from_prefix(data).is_ok_and(|(header, _)| header.is_fragment())
}

/// Walks the extension headers. Returns whether the packet is a fragment.
fn walk_v6(data: &[u8], meta: &mut PacketMeta) -> Result<bool, DropReason> {
    let (header, _) = Ipv6Header::ref_from_prefix(data).map_err(|_| DropReason::Runt)?;
    let walk = header.walk(data)?;
    meta.protocol = walk.protocol;
    meta.l4_offset = walk.offset;
    Ok(walk.fragment)
}

fn is_local(port: &PortTable, addresses: AddressPair) -> bool {
    match addresses {
        AddressPair::V4(_, destination) => port.local.has_v4(destination),
        AddressPair::V6(_, destination) => port.local.v6.contains(&destination),
    }
}

fn is_neighbour_discovery(data: &[u8], meta: &PacketMeta) -> bool {
    meta.kind == PacketKind::Ipv6
        && meta.protocol == protocol::ICMPV6
        && data
            .get(usize::from(meta.l4_offset))
            .is_some_and(|kind| NEIGHBOUR_DISCOVERY.contains(kind))
}

fn destination_port(data: &[u8], meta: &PacketMeta) -> Option<u16> {
    let datagram = data.get(usize::from(meta.l4_offset)..)?;
    let (header, _) = UdpHeader::ref_from_prefix(datagram).ok()?;
    Some(header.destination.get())
}
