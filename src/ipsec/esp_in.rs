//! Opening: ESP packets in tunnel mode become inner packets (RFC 4303 section 3.4, RFC 4106, RFC 4301 section 5.2).

use std::net::IpAddr;

use arrayvec::ArrayVec;
use zerocopy::FromBytes;

use crate::bits::low_32;
use crate::buf::PacketBuf;
use crate::crypto::aead::{self, Aad, ICV_LEN, IV_LEN, OpenJob};
use crate::drop::DropReason;
use crate::ipsec::outer::exit_ecn;
use crate::ipsec::replay::BlockRun;
use crate::ipsec::sa::InboundSa;
use crate::ipsec::sad::{BurstSas, SadView, SpiIndex};
use crate::ipsec::selector::{AddressPair, v4, v6};
use crate::meta::{BURST, PacketKind, PacketMeta};
use crate::wire::esp::{self, EspHeader};
use crate::wire::ip::{Ip, protocol};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::Ipv6Header;

/// Bytes before the ciphertext: ESP header and IV.
const BEFORE: usize = esp::HEADER_LEN + IV_LEN;

/// Finds the SA of every live packet by SPI, and checks that the packet was sent to its address in its encapsulation.
///
/// A packet is a whole outer IP packet whose ESP header is at `esp_offset`. `sas` is empty on entry and holds the SA of
/// each packet on return. Drops with `Runt`, `NoSa`, `SaDown` or `EncapMismatch`.
pub fn sad_lookup_burst<'g, B: PacketBuf>(
    packets: &[B],
    metas: &mut [PacketMeta],
    index: &SpiIndex,
    sad: SadView<'g>,
    sas: &mut BurstSas<'g, InboundSa>,
) {
    for (packet, meta) in packets.iter().zip(metas.iter_mut()) {
        let mut found = None;
        if meta.is_live() {
            match find_sa(packet.data(), meta, index, sad) {
                Ok(sa) => found = Some(sa),
                Err(reason) => meta.kill(reason),
            }
        }
        sas.push(found, 1);
    }
}

fn find_sa<'g>(
    data: &[u8],
    meta: &mut PacketMeta,
    index: &SpiIndex,
    sad: SadView<'g>,
) -> Result<&'g InboundSa, DropReason> {
    let payload = data
        .get(usize::from(meta.esp_offset)..)
        .ok_or(DropReason::Runt)?;
    let (header, rest) = EspHeader::ref_from_prefix(payload).map_err(|_| DropReason::Runt)?;
    if rest.len() < IV_LEN + esp::TRAILER_LEN + ICV_LEN {
        return Err(DropReason::Runt);
    }
    let slot = index.slot(header.spi.get()).ok_or(DropReason::NoSa)?;
    let sa = sad.inbound(slot).ok_or(DropReason::SaDown)?;
    if sa.spi != header.spi.get() || !is_to(data, meta.kind, sa.local) {
        return Err(DropReason::NoSa);
    }
    meta.sa = Some(slot);
    if sa.in_udp != (meta.protocol == protocol::UDP) {
        return Err(DropReason::EncapMismatch);
    }
    Ok(sa)
}

/// Whether the outer packet was sent to `local`.
fn is_to(data: &[u8], kind: PacketKind, local: IpAddr) -> bool {
    match (kind, local) {
        (PacketKind::Ipv4, IpAddr::V4(local)) => Ipv4Header::ref_from_prefix(data)
            .is_ok_and(|(header, _)| header.destination == local.octets()),
        (PacketKind::Ipv6, IpAddr::V6(local)) => Ipv6Header::ref_from_prefix(data)
            .is_ok_and(|(header, _)| header.destination == local.octets()),
        _ => false,
    }
}

/// Rebuilds the 64-bit sequence number of every live packet and drops early what the window cannot accept:
/// `ZeroSequence`, `TooOld`, `Replayed`. Moves no window.
pub fn replay_check_burst<B: PacketBuf>(
    packets: &[B],
    metas: &mut [PacketMeta],
    sas: &BurstSas<'_, InboundSa>,
) {
    for ((packet, meta), sa) in packets.iter().zip(metas.iter_mut()).zip(sas.iter()) {
        if !meta.is_live() {
            continue;
        }
        let Some(sa) = sa else {
            meta.kill(DropReason::SaDown);
            continue;
        };
        match rebuild(sa, packet.data(), meta.esp_offset) {
            Ok(seq) => meta.seq = seq,
            Err(reason) => meta.kill(reason),
        }
    }
}

fn rebuild(sa: &InboundSa, data: &[u8], esp_offset: u16) -> Result<u64, DropReason> {
    let payload = data.get(usize::from(esp_offset)..).unwrap_or_default();
    let (header, _) = EspHeader::ref_from_prefix(payload).map_err(|_| DropReason::Runt)?;
    let low = header.seq.get();
    let seq = if sa.esn {
        sa.window
            .rebuild(low, sa.window.top())
            .ok_or(DropReason::TooOld)?
    } else {
        u64::from(low)
    };
    sa.window.check(seq)?;
    Ok(seq)
}

/// Opens every live packet in place: verifies and decrypts, moves the window, checks padding, takes the headers off,
/// combines the ECN fields.
///
/// On entry a packet is a whole outer IP packet cut to its length; on return it is the inner IP packet, cut to its own
/// length (RFC 4303 section 2.7 lets traffic flow padding follow it). Drops with `BadIcv`, `Replayed`, `TooOld`,
/// `BadPadding`, `BadNextHeader`, `Dummy`, `BadInner`, `CeOnNotEct`.
pub fn esp_open_burst<B: PacketBuf>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    sas: &BurstSas<'_, InboundSa>,
) {
    let mut jobs: ArrayVec<OpenJob<'_>, BURST> = ArrayVec::new();
    for ((packet, meta), sa) in packets.iter_mut().zip(metas.iter_mut()).zip(sas.iter()) {
        if !meta.is_live() {
            continue;
        }
        let queued = sa
            .and_then(|sa| open_job(sa, packet.data_mut(), meta))
            .is_some_and(|job| jobs.try_push(job).is_ok());
        if !queued {
            meta.kill(DropReason::Runt);
        }
    }
    aead::open_burst(&mut jobs);
    // One job for each live packet, in order.
    let verdicts: ArrayVec<bool, BURST> =
        jobs.iter().map(|job| job.authentic).take(BURST).collect();
    drop(jobs);
    let mut verdicts = verdicts.into_iter();
    for meta in metas.iter_mut().filter(|meta| meta.is_live()) {
        if verdicts.next() != Some(true) {
            meta.kill(DropReason::BadIcv);
        }
    }
    window_commit_burst(metas, sas);
    for (packet, meta) in packets.iter_mut().zip(metas.iter_mut()) {
        if !meta.is_live() {
            continue;
        }
        if let Err(reason) = decapsulate(packet, meta) {
            meta.kill(reason);
        }
    }
}

fn open_job<'a>(sa: &'a InboundSa, data: &'a mut [u8], meta: &PacketMeta) -> Option<OpenJob<'a>> {
    let payload = data.get_mut(usize::from(meta.esp_offset)..)?;
    let (head, text) = payload.split_at_mut_checked(BEFORE)?;
    let iv: [u8; IV_LEN] = *head.last_chunk()?;
    let aad = if sa.esn {
        Aad::extended(sa.spi, meta.seq)
    } else {
        Aad::short(sa.spi, low_32(meta.seq))
    };
    Some(OpenJob {
        key: &sa.key,
        nonce: sa.key.nonce(iv),
        aad,
        text,
        authentic: false,
    })
}

/// Commits the verified packets to their windows: one compare-and-swap for each run of packets of one SA and block.
/// Two copies of a packet may share a burst; the second is dropped here.
fn window_commit_burst(metas: &mut [PacketMeta], sas: &BurstSas<'_, InboundSa>) {
    let (mut rest, mut sas) = (metas, sas.as_slice());
    // Each turn takes at least one packet off the front.
    while let Some(first) = rest.iter().position(PacketMeta::is_live) {
        let (_, tail) = std::mem::take(&mut rest).split_at_mut(first);
        sas = sas.get(first..).unwrap_or_default();
        let Some(head) = tail.first() else { return };
        let Some(sa) = sas.first().copied().flatten() else {
            // Nothing that was opened is without its SA.
            for meta in tail.iter_mut().filter(|meta| meta.is_live()) {
                meta.kill(DropReason::SaDown);
            }
            return;
        };
        let mut run = BlockRun::new(head.seq);
        let mut len = 1usize;
        for (meta, other) in tail.iter().zip(sas).skip(1) {
            let is_same = other.is_some_and(|other| std::ptr::eq(other, sa));
            if meta.is_live() && (!is_same || !run.push(meta.seq)) {
                break;
            }
            len = len.saturating_add(1);
        }
        let (members, after) = tail.split_at_mut(len.min(tail.len()));
        rest = after;
        sas = sas.get(len..).unwrap_or_default();
        let accepted = sa.window.commit(run);
        for meta in members.iter_mut().filter(|meta| meta.is_live()) {
            if accepted & BlockRun::bit(meta.seq) == 0 {
                // The window says which of the two it was, now that it has moved.
                meta.kill(
                    sa.window
                        .check(meta.seq)
                        .err()
                        .unwrap_or(DropReason::Replayed),
                );
            }
        }
    }
}

/// Takes everything off that is not the inner packet.
fn decapsulate<B: PacketBuf>(packet: &mut B, meta: &mut PacketMeta) -> Result<(), DropReason> {
    let data = packet.data();
    let start = usize::from(meta.esp_offset).saturating_add(BEFORE);
    let text = data
        .get(start..)
        .and_then(|text| text.split_last_chunk::<ICV_LEN>());
    let (plain, _) = text.ok_or(DropReason::Runt)?;
    let (next_header, payload_len) = check_trailer(plain)?;
    match next_header {
        protocol::IPV4 => meta.kind = PacketKind::Ipv4,
        protocol::IPV6 => meta.kind = PacketKind::Ipv6,
        //= https://www.rfc-editor.org/rfc/rfc4303#section-2.6
        //# Dummy packets are discarded without prejudice.
        protocol::NO_NEXT_HEADER => return Err(DropReason::Dummy),
        _ => return Err(DropReason::BadNextHeader),
    }
    let after = plain
        .len()
        .saturating_sub(payload_len)
        .saturating_add(ICV_LEN);
    if !packet.adj(start) || !packet.trim(after) {
        return Err(DropReason::Runt);
    }
    check_inner(packet, meta)
}

/// Checks the ESP trailer at the end of the decrypted text. Returns next header and payload length.
fn check_trailer(plain: &[u8]) -> Result<(u8, usize), DropReason> {
    let (text, [pad_len, next_header]) = plain
        .split_last_chunk::<{ esp::TRAILER_LEN }>()
        .ok_or(DropReason::BadPadding)?;
    let payload_len = text
        .len()
        .checked_sub(usize::from(*pad_len))
        .ok_or(DropReason::BadPadding)?;
    let padding = text.get(payload_len..).unwrap_or_default();
    //= https://www.rfc-editor.org/rfc/rfc4303#section-2.4
    //# When this padding scheme is employed, the receiver SHOULD inspect the
    //# Padding field.
    if (1..=u8::MAX)
        .zip(padding)
        .any(|(expected, found)| expected != *found)
    {
        return Err(DropReason::BadPadding);
    }
    Ok((*next_header, payload_len))
}

/// Checks the inner packet, cuts it to its length, and gives it the ECN field it leaves with.
fn check_inner<B: PacketBuf>(packet: &mut B, meta: &mut PacketMeta) -> Result<(), DropReason> {
    let ip = Ip::parse(packet.data()).map_err(|_| DropReason::BadInner)?;
    let kind = match ip {
        Ip::V4(..) => PacketKind::Ipv4,
        Ip::V6(_) => PacketKind::Ipv6,
    };
    if kind != meta.kind {
        return Err(DropReason::BadInner);
    }
    let (len, inner_ecn) = (ip.total_len(), ip.tos() & 0b11);
    let ecn = exit_ecn(inner_ecn, meta.outer_tos).ok_or(DropReason::CeOnNotEct)?;
    let surplus = packet.data().len().saturating_sub(len);
    if !packet.trim(surplus) {
        return Err(DropReason::BadInner);
    }
    meta.inner_len = u16::try_from(len).map_err(|_| DropReason::BadInner)?;
    if ecn != inner_ecn {
        set_ecn(packet.data_mut(), kind, ecn);
    }
    Ok(())
}

fn set_ecn(data: &mut [u8], kind: PacketKind, ecn: u8) {
    match kind {
        PacketKind::Ipv4 => {
            if let Ok((header, _)) = Ipv4Header::mut_from_prefix(data) {
                header.set_ecn(ecn);
            }
        }
        PacketKind::Ipv6 => {
            if let Ok((header, _)) = Ipv6Header::mut_from_prefix(data) {
                let class = header.traffic_class() & !0b11 | ecn;
                header.set_traffic_class(class);
            }
        }
        PacketKind::Other => {}
    }
}

/// Drops every live packet whose inner addresses its SA may not carry: `SelectorMismatch` (RFC 4301 section 5.2).
pub fn spd_check_inbound_burst<B: PacketBuf>(
    packets: &[B],
    metas: &mut [PacketMeta],
    sas: &BurstSas<'_, InboundSa>,
) {
    for ((packet, meta), sa) in packets.iter().zip(metas.iter_mut()).zip(sas.iter()) {
        if !meta.is_live() {
            continue;
        }
        let fits = sa
            .zip(address_pair(packet.data(), meta.kind))
            .is_some_and(|(sa, addresses)| sa.selectors.admit(addresses));
        if !fits {
            meta.kill(DropReason::SelectorMismatch);
        }
    }
}

/// Source and destination of a checked IP packet.
#[inline]
pub fn address_pair(data: &[u8], kind: PacketKind) -> Option<AddressPair> {
    match kind {
        PacketKind::Ipv4 => {
            let (header, _) = Ipv4Header::ref_from_prefix(data).ok()?;
            Some(AddressPair::V4(v4(header.source), v4(header.destination)))
        }
        PacketKind::Ipv6 => {
            let (header, _) = Ipv6Header::ref_from_prefix(data).ok()?;
            Some(AddressPair::V6(v6(header.source), v6(header.destination)))
        }
        PacketKind::Other => None,
    }
}
