//! Whether a packet fits where it goes, and what becomes of it where it does not (RFC 4301 section 8).

use zerocopy::FromBytes;

use crate::buf::PacketBuf;
use crate::drop::{Aside, DropReason};
use crate::ipsec::sa::OutboundSa;
use crate::ipsec::sad::BurstSas;
use crate::meta::{PacketKind, PacketMeta};
use crate::policy::tables::Tables;
use crate::wire::ether;
use crate::wire::ip::protocol;
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6;
use crate::wire::tcp;
use crate::worker::stages::View;

/// DF in the first byte of flags and fragment offset.
const DF: u8 = (ipv4::DONT_FRAGMENT >> 8) as u8;

/// What becomes of a packet that would be larger than `mtu` bytes once it is sealed: true where it is to be sealed as it is
/// and cut then. Where it is false the packet has been taken aside.
///
/// # Errors
/// `TooBig`: the sender has to send smaller ones, and `meta.seq` says how small.
#[cold]
pub(super) fn too_big_to_seal(
    len: usize,
    meta: &mut PacketMeta,
    sa: &OutboundSa,
    mtu: u16,
) -> Result<bool, DropReason> {
    let limit = sa.largest_inner(mtu);
    match meta.kind {
        PacketKind::Ipv4 if meta.ip_flags & DF == 0 => {
            if sa.fragments_after() {
                return Ok(true);
            }
            meta.seq = limit.into();
            meta.take_aside(Aside::CutAndSeal);
            Ok(false)
        }
        // Every link has to take what IPv6 promises its senders, and one that cannot has to cut and put together by itself
        // (RFC 8200 section 5; RFC 2473 section 7.1 for tunnels).
        PacketKind::Ipv6 if len <= usize::from(ipv6::LEAST_MTU) => Ok(true),
        PacketKind::Ipv6 => {
            meta.seq = limit.max(ipv6::LEAST_MTU).into();
            Err(DropReason::TooBig)
        }
        _ => {
            meta.seq = limit.into();
            Err(DropReason::TooBig)
        }
    }
}

/// What becomes of an opened packet that is larger than the `mtu` bytes of the link it leaves by: it goes on where it may
/// be cut.
///
/// # Errors
/// `TooBig`, as in [`too_big_to_seal`].
#[cold]
pub(super) fn too_big_to_forward(
    data: &[u8],
    meta: &mut PacketMeta,
    mtu: u16,
) -> Result<(), DropReason> {
    if meta.kind == PacketKind::Ipv4
        && Ipv4Header::ref_from_prefix(data).is_ok_and(|(header, _)| !header.dont_fragment())
    {
        return Ok(());
    }
    meta.seq = mtu.into();
    Err(DropReason::TooBig)
}

/// Takes aside the frames of live packets that are larger than what they leave by; `sas` has the SA of each that was sealed.
#[cold]
pub(super) fn cut_burst<B: PacketBuf>(
    packets: &[B],
    metas: &mut [PacketMeta],
    tables: &Tables,
    sas: Option<&BurstSas<'_, OutboundSa>>,
) {
    let sas = sas.map(BurstSas::as_slice).unwrap_or_default();
    for (at, (packet, meta)) in packets.iter().zip(metas.iter_mut()).enumerate() {
        if !meta.is_live() {
            continue;
        }
        let link = tables.mtu(meta.next_hop);
        let sa = sas.get(at).copied().flatten();
        let mtu = sa.map_or(link, |sa| sa.outer_mtu(link));
        if packet.data().len() > usize::from(mtu).saturating_add(ether::HEADER_LEN) {
            meta.seq = mtu.into();
            meta.take_aside(Aside::CutAndSend);
        }
    }
}

/// Holds a TCP connection to segments that fit the tunnel, where the packet begins one. `mtu` is that of the outer packet.
#[inline]
pub(super) fn clamp_mss<B: PacketBuf>(
    packet: &mut B,
    meta: &PacketMeta,
    sa: &OutboundSa,
    mtu: u16,
) {
    let at = usize::from(meta.l4_offset);
    if meta.protocol == protocol::TCP && tcp::is_syn(packet.data(), at) && sa.clamps_mss() {
        lower_mss(packet.data_mut(), at, sa.largest_inner(mtu));
    }
}

/// As [`clamp_mss`], for a packet that was opened: what its receiver sends in answer is sealed by the outbound SA of the pair.
#[inline]
pub(super) fn clamp_mss_opened<B: PacketBuf>(packet: &mut B, meta: &PacketMeta, view: View<'_>) {
    // What is known of the packet is of the outer one.
    let data = packet.data();
    let (next_at, l4_at) = match meta.kind {
        PacketKind::Ipv4 => {
            let words = data.first().map_or(0, |first| first & 0x0f);
            (9, usize::from(words) << 2)
        }
        _ => (6, ipv6::HEADER_LEN),
    };
    if data.get(next_at) == Some(&protocol::TCP) && tcp::is_syn(data, l4_at) {
        clamp_answers(packet.data_mut(), l4_at, meta, view);
    }
}

#[inline(never)]
fn clamp_answers(data: &mut [u8], l4_at: usize, meta: &PacketMeta, view: View<'_>) {
    let Some(slot) = meta.sa else { return };
    let (Some(sa), Ok(hop)) = (view.sad.outbound(slot), view.ingress.sa_hop(slot)) else {
        return;
    };
    if sa.clamps_mss() {
        let mtu = sa.outer_mtu(view.tables.mtu(hop));
        lower_mss(data, l4_at, sa.largest_inner(mtu));
    }
}

/// `limit` is the largest IP packet; the segment begins at `l4_at`.
#[inline(never)]
fn lower_mss(data: &mut [u8], l4_at: usize, limit: u16) {
    // RFC 6691 section 2: the fixed headers count, options do not.
    let (limit, headers) = match data.first().map(|first| first >> 4) {
        Some(4) => (limit, ipv4::HEADER_LEN),
        _ => (limit.max(ipv6::LEAST_MTU), ipv6::HEADER_LEN),
    };
    let is_later_fragment = headers == ipv4::HEADER_LEN
        && Ipv4Header::ref_from_prefix(data).is_ok_and(|(header, _)| header.fragment_offset() != 0);
    if is_later_fragment {
        return;
    }
    let size = usize::from(limit).saturating_sub(headers.saturating_add(tcp::HEADER_LEN));
    if let (Some(segment), Ok(size)) = (data.get_mut(l4_at..), u16::try_from(size)) {
        tcp::clamp_mss(segment, size);
    }
}
