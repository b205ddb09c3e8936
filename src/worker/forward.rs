//! Stages 6a and 7: which SA seals a packet, and where a packet goes.

use zerocopy::{FromBytes, IntoBytes};

use crate::buf::PacketBuf;
use crate::drop::DropReason;
use crate::ids::NextHopIndex;
use crate::ipsec::esp_in::address_pair;
use crate::ipsec::sad::SadView;
use crate::ipsec::selector::AddressPair;
use crate::ipsec::spd::SpdAction;
use crate::meta::{PacketKind, PacketMeta};
use crate::policy::tables::{PortTable, Tables};
use crate::wire::ether::{self, EtherHeader};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::Ipv6Header;

/// Finds the SA for every live packet of the protected side, its next hop, and whether the sealed packet will fit; takes
/// one from the TTL. Drops with `NoPolicy`, `SaDown`, `NoRoute`, `NoNeighbour`, `TooBig`, `TtlExpired`, all before a
/// sequence number is spent.
pub fn spd_lookup_burst<B: PacketBuf>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    tables: &Tables,
    egress: &PortTable,
    sad: SadView<'_>,
) {
    for (packet, meta) in packets.iter_mut().zip(metas.iter_mut()) {
        if !meta.is_live() {
            continue;
        }
        if let Err(reason) = find_policy(packet, meta, tables, egress, sad) {
            meta.kill(reason);
        }
    }
}

fn find_policy<B: PacketBuf>(
    packet: &mut B,
    meta: &mut PacketMeta,
    tables: &Tables,
    egress: &PortTable,
    sad: SadView<'_>,
) -> Result<(), DropReason> {
    let addresses = address_pair(packet.data(), meta.kind).ok_or(DropReason::Runt)?;
    let slot = match tables.spd.lookup(addresses) {
        SpdAction::Protect(slot) => slot,
        SpdAction::Spread(group) => group.slot(packet.data(), meta.kind),
        SpdAction::Discard => return Err(DropReason::NoPolicy),
    };
    meta.sa = Some(slot);
    let sa = sad.outbound(slot).ok_or(DropReason::SaDown)?;
    meta.next_hop = egress.sa_hop(slot)?;
    let mtu = tables.next_hop(meta.next_hop).map_or(0, |hop| hop.mtu);
    if sa.sealed_len(packet.data().len()) > usize::from(mtu) {
        return Err(DropReason::TooBig);
    }
    decrement_ttl(packet.data_mut(), meta.kind)
}

/// Finds the next hop of every live packet that was opened; takes one from the TTL (RFC 4301 section 5.1.2.1 note 2).
/// Drops with `NoRoute`, `NoNeighbour`, `TooBig`, `TtlExpired`.
pub fn route_burst<B: PacketBuf>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    tables: &Tables,
    egress: &PortTable,
) {
    for (packet, meta) in packets.iter_mut().zip(metas.iter_mut()) {
        if !meta.is_live() {
            continue;
        }
        if let Err(reason) = route(packet, meta, tables, egress) {
            meta.kill(reason);
        }
    }
}

fn route<B: PacketBuf>(
    packet: &mut B,
    meta: &mut PacketMeta,
    tables: &Tables,
    egress: &PortTable,
) -> Result<(), DropReason> {
    meta.next_hop = match address_pair(packet.data(), meta.kind).ok_or(DropReason::Runt)? {
        AddressPair::V4(_, destination) => egress.routes.lookup_v4(destination)?,
        AddressPair::V6(_, destination) => egress.routes.lookup_v6(destination)?,
    };
    let mtu = tables.next_hop(meta.next_hop).map_or(0, |hop| hop.mtu);
    if packet.data().len() > usize::from(mtu) {
        return Err(DropReason::TooBig);
    }
    decrement_ttl(packet.data_mut(), meta.kind)
}

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
