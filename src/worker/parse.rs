//! Stage 3: Ethernet and IP headers.

use zerocopy::FromBytes;

use crate::bits::low_16;
use crate::buf::PacketBuf;
use crate::drop::{DropReason, PuntReason};
use crate::ipsec::selector::v4;
use crate::meta::{PacketKind, PacketMeta};
use crate::policy::tables::PortTable;
use crate::wire::ether::{self, EtherHeader};
use crate::wire::ipv4::{self, Ipv4Header, PlainFrame};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::vlan::VlanTags;
use crate::worker::vlan::untag;

/// Parses every packet of a burst.
///
/// On entry a packet is an Ethernet frame. A live packet is on return the IP packet, cut to its own length, its headers
/// checked and summed up in its metadata.
pub fn parse_burst<B: PacketBuf>(packets: &mut [B], metas: &mut [PacketMeta], port: &PortTable) {
    parse_burst_and(packets, metas, port, |_| {});
}

/// As [`parse_burst`]. Of each packet that is what nearly all are, `look_ahead` is told, so that it can ask for what will be looked
/// up: it comes while the others are parsed.
#[inline]
pub fn parse_burst_and<B: PacketBuf>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    port: &PortTable,
    look_ahead: impl Fn(&PacketMeta),
) {
    let mac = port.mac_word();
    for (packet, meta) in packets.iter_mut().zip(metas.iter_mut()) {
        if let Some(plain) = parse_plain(packet, mac) {
            *meta = plain;
            look_ahead(meta);
            continue;
        }
        *meta = PacketMeta::NEW;
        let outcome = match parse(packet, meta, port) {
            Err(DropReason::UnknownEtherType) => parse_tagged(packet, meta, port),
            outcome => outcome,
        };
        if let Err(reason) = outcome {
            meta.kill(reason);
        }
    }
}

/// What nearly every packet is: for our MAC address, IPv4 without options. `None` leaves the packet as it was, and
/// [`parse`] says what it is.
#[inline]
fn parse_plain<B: PacketBuf>(packet: &mut B, mac: u64) -> Option<PacketMeta> {
    if !packet.is_whole() {
        return None;
    }
    let (frame, _) = PlainFrame::ref_from_prefix(packet.data()).ok()?;
    let plain = frame.check(mac)?;
    if !packet.cut(ether::HEADER_LEN, usize::from(plain.total_len)) {
        return None;
    }
    Some(PacketMeta {
        kind: PacketKind::Ipv4,
        protocol: plain.protocol,
        tos: plain.tos,
        ip_flags: plain.flags,
        source: plain.source,
        destination: plain.destination,
        l4_offset: low_16(ipv4::HEADER_LEN as u64),
        inner_len: plain.total_len,
        ..PacketMeta::NEW
    })
}

#[inline(never)]
fn parse<B: PacketBuf>(
    packet: &mut B,
    meta: &mut PacketMeta,
    port: &PortTable,
) -> Result<(), DropReason> {
    if !packet.is_whole() {
        return Err(DropReason::Chained);
    }
    let (header, ip) = EtherHeader::ref_from_prefix(packet.data()).map_err(|_| DropReason::Runt)?;
    let is_group = header.is_group();
    if !is_group && header.destination != port.mac {
        return Err(DropReason::NotOurMac);
    }
    let total_len = match header.ether_type.get() {
        ether::IPV4 => parse_v4(ip, meta, is_group)?,
        ether::IPV6 => parse_v6(ip, meta, is_group)?,
        ether::ARP => {
            meta.punt(PuntReason::Arp);
            return Ok(());
        }
        _ => return Err(DropReason::UnknownEtherType),
    };
    // Ethernet pads short frames; what follows the IP packet is not part of it.
    if !packet.cut(ether::HEADER_LEN, total_len) {
        return Err(DropReason::Runt);
    }
    meta.inner_len = u16::try_from(total_len).map_err(|_| DropReason::BadLength)?;
    Ok(())
}

/// A frame with a tag of number 0 has a priority and is in no VLAN (IEEE 802.1Q clause 9.6).
#[cold]
fn parse_tagged<B: PacketBuf>(
    packet: &mut B,
    meta: &mut PacketMeta,
    port: &PortTable,
) -> Result<(), DropReason> {
    match untag(packet, None)? {
        VlanTags::NONE => parse(packet, meta, port),
        _ => Err(DropReason::UnknownVlan),
    }
}

fn parse_v4(data: &[u8], meta: &mut PacketMeta, is_group: bool) -> Result<usize, DropReason> {
    let (header, header_len) = Ipv4Header::parse(data)?;
    // RFC 1812 section 5.3.4: no unicast packet is forwarded that came in a link layer broadcast.
    if is_group && header.destination[0] < 224 {
        return Err(DropReason::NotOurMac);
    }
    meta.kind = PacketKind::Ipv4;
    meta.protocol = header.protocol;
    meta.tos = header.tos;
    let [flags, _] = header.flags_fragment.get().to_be_bytes();
    meta.ip_flags = flags;
    meta.source = v4(header.source);
    meta.destination = v4(header.destination);
    // The header is at most 60 bytes long.
    meta.l4_offset = low_16(header_len as u64);
    Ok(usize::from(header.total_len.get()))
}

fn parse_v6(data: &[u8], meta: &mut PacketMeta, is_group: bool) -> Result<usize, DropReason> {
    let header = Ipv6Header::parse(data)?;
    if is_group && header.destination[0] != 0xff {
        return Err(DropReason::NotOurMac);
    }
    meta.kind = PacketKind::Ipv6;
    meta.protocol = header.next_header;
    meta.tos = header.traffic_class();
    meta.l4_offset = low_16(ipv6::HEADER_LEN as u64);
    Ok(header.total_len())
}
