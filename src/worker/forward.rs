//! Stages 6a and 7: which SA seals a packet, and where a packet goes.

use zerocopy::{FromBytes, IntoBytes};

use crate::buf::PacketBuf;
use crate::drop::{DropReason, Fate};
use crate::ids::{NextHopIndex, SaIndex};
use crate::ipsec::esp_in::address_pair;
use crate::ipsec::sa::OutboundSa;
use crate::ipsec::sad::BurstSas;
use crate::ipsec::selector::AddressPair;
use crate::ipsec::spd::SpdAction;
use crate::ipsec::traffic::Direction;
use crate::meta::{PacketKind, PacketMeta};
use crate::policy::tables::{PortTable, Tables};
use crate::wire::ether::{self, EtherHeader};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::Ipv6Header;
use crate::worker::fit;
use crate::worker::stages::View;

/// Finds the SA for every live packet of the protected side, its next hop, and whether the sealed packet will fit; takes
/// one from the TTL. `sas` is empty on entry and holds the SA of each packet on return. What is to pass in clear is
/// `Bypassed` and has none. Drops with `NoPolicy`, `Discarded`, `SaDown`, `NoRoute`, `NoNeighbour`, `TooBig`, `TtlExpired`,
/// all before a sequence number is spent; takes aside what is to be cut first. Returns whether there are live packets that
/// are to be cut once they are sealed.
pub fn spd_lookup_burst<'g, B: PacketBuf>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    view: View<'g>,
    sas: &mut BurstSas<'g, OutboundSa>,
) -> bool {
    let mut cuts = false;
    if view.tables.spis.is_wide() {
        find_policies_ahead(packets, metas, view, sas, &mut cuts);
    } else {
        let places = sas.places(metas.len());
        each_live(packets, metas, places, |packet, meta, place| {
            let slot = find_policy(packet, meta, view)?;
            meta.sa = Some(slot);
            // Found once: what is done with the packet from here on is done with this SA.
            *place = view.sad.outbound(slot);
            Ok(admit(packet, meta, view, (slot, *place), &mut cuts)?)
        });
    }
    cuts
}

/// With many SAs each is likely to be out of the cache, and so is what leads to it, which was asked for while the packets were
/// parsed. One pass asks for what the next one reads, so that a burst waits once and not once for each packet.
fn find_policies_ahead<'g, B: PacketBuf>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    view: View<'g>,
    sas: &mut BurstSas<'g, OutboundSa>,
    cuts: &mut bool,
) {
    let is_vast = view.tables.spis.is_vast();
    let places = sas.places(metas.len());
    each_live(packets, metas, places, |packet, meta, _| {
        let slot = find_policy(packet, meta, view)?;
        meta.sa = Some(slot);
        view.sad.prefetch_outbound(slot);
        if is_vast {
            view.egress.prefetch_sa_hop(slot);
        }
        Ok(())
    });
    each_live(packets, metas, places, |packet, meta, place| {
        let slot = meta.sa.ok_or(DropReason::SaDown)?;
        *place = view.sad.outbound(slot);
        if is_vast && let Some(sa) = place {
            sa.prefetch_numbers();
        }
        Ok(admit(packet, meta, view, (slot, *place), cuts)?)
    });
}

/// Gives each live packet the fate that `step` has for it where it is to be live no longer.
#[inline(always)]
fn each_live<B, S>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    places: &mut [S],
    mut step: impl FnMut(&mut B, &mut PacketMeta, &mut S) -> Result<(), Fate>,
) {
    for ((packet, meta), place) in packets.iter_mut().zip(metas.iter_mut()).zip(places) {
        if meta.is_live()
            && let Err(fate) = step(packet, meta, place)
        {
            meta.fate = fate;
        }
    }
}

#[inline(always)]
fn find_policy<B: PacketBuf>(
    packet: &B,
    meta: &PacketMeta,
    view: View<'_>,
) -> Result<SaIndex, Fate> {
    let spd = &view.tables.spd;
    if spd.has_rules() {
        let action = spd.decide(view.flows, packet.data(), meta.kind, Direction::Outbound);
        return obey(action, packet.data(), meta);
    }
    // Not one lookup for both families: an answer that comes from two places is put together and taken apart again.
    if meta.kind == PacketKind::Ipv4 {
        return match spd.lookup_v4(meta.source, meta.destination) {
            SpdAction::Protect(slot) => Ok(slot),
            other => obey(other, packet.data(), meta),
        };
    }
    let addresses = address_pair(packet.data(), meta).ok_or(DropReason::Runt)?;
    obey(spd.lookup(addresses), packet.data(), meta)
}

/// The SA that is to seal a packet, or what becomes of it where none is.
#[inline(never)]
fn obey(action: SpdAction, data: &[u8], meta: &PacketMeta) -> Result<SaIndex, Fate> {
    let is_routable = || address_pair(data, meta).is_some_and(AddressPair::is_routable);
    match action {
        SpdAction::Protect(slot) => Ok(slot),
        SpdAction::Spread(group) => Ok(group.slot(data, meta.kind)),
        SpdAction::Bypass if is_routable() => Err(Fate::Bypassed),
        SpdAction::Discard => Err(DropReason::Discarded.into()),
        SpdAction::Bypass | SpdAction::NoPolicy => Err(DropReason::NoPolicy.into()),
    }
}

/// In both of its places, as [`route`].
#[inline(always)]
fn admit<B: PacketBuf>(
    packet: &mut B,
    meta: &mut PacketMeta,
    view: View<'_>,
    (slot, sa): (SaIndex, Option<&OutboundSa>),
    cuts: &mut bool,
) -> Result<(), DropReason> {
    let sa = sa.ok_or(DropReason::SaDown)?;
    meta.next_hop = view.egress.sa_hop(slot)?;
    let mtu = sa.outer_mtu(view.tables.mtu(meta.next_hop));
    let len = packet.data().len();
    if sa.sealed_len(len) > usize::from(mtu) {
        if !fit::too_big_to_seal(len, meta, sa, mtu)? {
            return Ok(());
        }
        *cuts = true;
    }
    fit::clamp_mss(packet, meta, sa, mtu);
    decrement_ttl(packet.data_mut(), meta.kind)
}

/// Finds the next hop of every live packet that was opened; takes one from the TTL (RFC 4301 section 5.1.2.1 note 2).
/// Drops with `NoRoute`, `NoNeighbour`, `TooBig`, `TtlExpired`. Returns whether there are live packets that are to be cut.
pub fn route_burst<B: PacketBuf>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    view: View<'_>,
) -> bool {
    let mut cuts = false;
    for (packet, meta) in packets.iter_mut().zip(metas.iter_mut()) {
        if !meta.is_live() {
            continue;
        }
        if let Err(reason) = route(packet, meta, view, &mut cuts) {
            meta.kill(reason);
        }
    }
    cuts
}

/// As [`route_burst`] for what passes in clear, which is live from here on.
#[inline(never)]
pub fn route_bypassed_burst<B: PacketBuf>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    view: View<'_>,
) -> bool {
    let mut cuts = false;
    for (packet, meta) in packets.iter_mut().zip(metas.iter_mut()) {
        if meta.fate != Fate::Bypassed {
            continue;
        }
        meta.fate = Fate::Live;
        if let Err(reason) = route(packet, meta, view, &mut cuts) {
            meta.kill(reason);
        }
    }
    cuts
}

/// In both of its places, for it is all that [`route_burst`] does.
#[inline(always)]
fn route<B: PacketBuf>(
    packet: &mut B,
    meta: &mut PacketMeta,
    view: View<'_>,
    cuts: &mut bool,
) -> Result<(), DropReason> {
    // First, for a packet without neighbour waits and goes on without it.
    fit::clamp_mss_opened(packet, meta, view);
    let mtu = find_next_hop(packet, meta, view.tables, view.egress)?;
    if packet.data().len() > usize::from(mtu) {
        fit::too_big_to_forward(packet.data(), meta, mtu)?;
        *cuts = true;
    }
    decrement_ttl(packet.data_mut(), meta.kind)
}

/// Finds the next hop of an opened packet, and returns its MTU. Drops with `NoRoute`, `NoNeighbour`.
#[inline(always)]
fn find_next_hop<B: PacketBuf>(
    packet: &B,
    meta: &mut PacketMeta,
    tables: &Tables,
    egress: &PortTable,
) -> Result<u16, DropReason> {
    meta.next_hop = match address_pair(packet.data(), meta).ok_or(DropReason::Runt)? {
        AddressPair::V4(_, destination) => egress.routes.lookup_v4(destination)?,
        AddressPair::V6(_, destination) => egress.routes.lookup_v6(destination)?,
    };
    let mtu = tables.mtu(meta.next_hop);
    if mtu == 0 {
        meta.next_hop = tables.choose(meta.next_hop, packet.data(), meta.kind)?;
        return Ok(tables.mtu(meta.next_hop));
    }
    Ok(mtu)
}

/// Takes an opened packet that found no neighbour behind `egress` before, and of which `meta` knows what it did then, to an
/// Ethernet frame. What is too big for the link is not cut here.
///
/// # Errors
/// Why it ends here. The packet may be changed then.
pub fn forward_late<B: PacketBuf>(
    packet: &mut B,
    meta: &mut PacketMeta,
    tables: &Tables,
    egress: &PortTable,
) -> Result<(), DropReason> {
    let mtu = find_next_hop(packet, meta, tables, egress)?;
    if packet.data().len() > usize::from(mtu) {
        return Err(DropReason::TooBig);
    }
    decrement_ttl(packet.data_mut(), meta.kind)?;
    put_link_header(packet, meta.next_hop, tables).ok_or(DropReason::NoRoom)
}

#[inline]
fn decrement_ttl(data: &mut [u8], kind: PacketKind) -> Result<(), DropReason> {
    let alive = match kind {
        PacketKind::Ipv4 => {
            Ipv4Header::mut_from_prefix(data).is_ok_and(|(header, _)| header.decrement_ttl())
        }
        PacketKind::Ipv6 => {
            Ipv6Header::mut_from_prefix(data).is_ok_and(|(header, _)| header.decrement_hop_limit())
        }
        PacketKind::Other => false,
    };
    if alive {
        Ok(())
    } else {
        Err(DropReason::TtlExpired)
    }
}

/// Puts an Ethernet header before every live packet. Drops with `NoRoom`.
pub fn link_header_burst<B: PacketBuf>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    tables: &Tables,
) {
    for (packet, meta) in packets.iter_mut().zip(metas.iter_mut()) {
        if meta.is_live() && put_link_header(packet, meta.next_hop, tables).is_none() {
            meta.kill(DropReason::NoRoom);
        }
    }
}

#[inline]
fn put_link_header<B: PacketBuf>(
    packet: &mut B,
    next_hop: NextHopIndex,
    tables: &Tables,
) -> Option<()> {
    let hop = tables.next_hop(next_hop)?;
    let ether_type = match packet.data().first()? >> 4 {
        4 => ether::IPV4,
        _ => ether::IPV6,
    };
    let data = packet.prepend(ether::HEADER_LEN)?;
    let (header, _) = EtherHeader::mut_from_prefix(data).ok()?;
    let (macs, _) = header.as_mut_bytes().split_first_chunk_mut::<12>()?;
    *macs = hop.macs;
    header.ether_type = ether_type.into();
    Some(())
}
