//! Opening: ESP packets in tunnel mode become inner packets (RFC 4303 section 3.4, RFC 4106, RFC 4301 section 5.2).

use std::net::SocketAddr;

use arrayvec::ArrayVec;
use zerocopy::FromBytes;

use crate::bits::low_32;
use crate::buf::PacketBuf;
use crate::crypto::aead::{self, Aad, ICV_LEN, IV_LEN, OpenJob};
use crate::drop::DropReason;
use crate::ids::SaIndex;
use crate::ipsec::esp_out::{kill_live, kill_unless};
use crate::ipsec::flow_cache::FlowCache;
use crate::ipsec::outer::exit_ecn;
use crate::ipsec::peer::InboundPeer;
use crate::ipsec::replay::{BlockRun, Window};
use crate::ipsec::sa::InboundSa;
use crate::ipsec::sad::{BurstSas, SadView, SpiIndex};
use crate::ipsec::selector::{AddressPair, v4, v6};
use crate::ipsec::spd::Spd;
use crate::meta::{BURST, PacketKind, PacketMeta};
use crate::wire::esp::{self, EspHeader};
use crate::wire::ip::protocol;
use crate::wire::ipv4::{Ipv4Header, PlainHeader};
use crate::wire::ipv6::Ipv6Header;
use crate::wire::udp::{self, UdpHeader};

/// Bytes before the ciphertext: ESP header and IV.
const BEFORE: usize = esp::HEADER_LEN + IV_LEN;

/// Finds the SA of every live packet by SPI, and checks that the packet was sent to its address in its encapsulation.
///
/// A packet is a whole outer IP packet whose ESP header is at `esp_offset`. `sas` is empty on entry and holds the SA of
/// each packet on return. Drops with `Runt`, `NoSa`, `SaDown`, `EncapMismatch` or `SaExpired`.
pub fn sad_lookup_burst<'g, B: PacketBuf>(
    packets: &[B],
    metas: &mut [PacketMeta],
    index: &SpiIndex,
    sad: SadView<'g>,
    sas: &mut BurstSas<'g, InboundSa>,
) {
    let places = sas.places(metas.len());
    if index.is_vast() {
        find_sas_ahead(packets, metas, index, sad, places);
    } else {
        for ((packet, meta), place) in packets.iter().zip(metas.iter_mut()).zip(places) {
            if !meta.is_live() {
                continue;
            }
            match find_slot(packet.data(), meta, index) {
                Ok(slot) => {
                    meta.sa = Some(slot);
                    *place = admit(packet.data(), meta, index, sad.inbound(slot));
                }
                Err(reason) => meta.kill(reason),
            }
        }
    }
}

/// As in sealing: with very many SAs each is likely to be out of the cache, and one pass for each step asks for what the next
/// one reads.
fn find_sas_ahead<'g, B: PacketBuf>(
    packets: &[B],
    metas: &mut [PacketMeta],
    index: &SpiIndex,
    sad: SadView<'g>,
    places: &mut [Option<&'g InboundSa>],
) {
    for (packet, meta) in packets.iter().zip(metas.iter()) {
        if let Some(header) = esp_header(packet.data(), meta) {
            index.prefetch(header.spi.get());
        }
    }
    for (packet, meta) in packets.iter().zip(metas.iter_mut()) {
        if !meta.is_live() {
            continue;
        }
        match find_slot(packet.data(), meta, index) {
            Ok(slot) => {
                meta.sa = Some(slot);
                sad.prefetch_inbound(slot);
            }
            Err(reason) => meta.kill(reason),
        }
    }
    for ((packet, meta), place) in packets.iter().zip(metas.iter_mut()).zip(places) {
        if !meta.is_live() {
            continue;
        }
        let sa = meta.sa.and_then(|slot| sad.inbound(slot));
        *place = admit(packet.data(), meta, index, sa);
        if let (Some(header), Some(sa)) = (esp_header(packet.data(), meta), place) {
            sa.window().prefetch(header.seq.get());
        }
    }
}

/// Ends a packet that is not for `sa` to open. Returns the SA that is to count it: none where the packet is not its own.
#[inline(always)]
fn admit<'g>(
    data: &[u8],
    meta: &mut PacketMeta,
    index: &SpiIndex,
    sa: Option<&'g InboundSa>,
) -> Option<&'g InboundSa> {
    match check_sa(data, meta, index, sa) {
        Ok(()) => sa,
        Err(reason) => {
            meta.kill(reason);
            sa.filter(|_| reason != DropReason::NoSa)
        }
    }
}

/// The ESP header of a packet that is long enough for one.
#[inline]
fn esp_header<'a>(data: &'a [u8], meta: &PacketMeta) -> Option<&'a EspHeader> {
    let payload = data.get(usize::from(meta.esp_offset)..)?;
    EspHeader::ref_from_prefix(payload)
        .ok()
        .map(|(header, _)| header)
}

#[inline]
fn find_slot(data: &[u8], meta: &PacketMeta, index: &SpiIndex) -> Result<SaIndex, DropReason> {
    let payload = data
        .get(usize::from(meta.esp_offset)..)
        .ok_or(DropReason::Runt)?;
    let (header, rest) = EspHeader::ref_from_prefix(payload).map_err(|_| DropReason::Runt)?;
    if rest.len() < IV_LEN + esp::TRAILER_LEN + ICV_LEN {
        return Err(DropReason::Runt);
    }
    index.slot(header.spi.get()).ok_or(DropReason::NoSa)
}

#[inline]
fn check_sa(
    data: &[u8],
    meta: &PacketMeta,
    index: &SpiIndex,
    sa: Option<&InboundSa>,
) -> Result<(), DropReason> {
    let sa = sa.ok_or(DropReason::SaDown)?;
    let header = esp_header(data, meta).ok_or(DropReason::Runt)?;
    let is_to_sole = meta.kind == PacketKind::Ipv4 && index.sole_local() == Some(meta.destination);
    if sa.spi != header.spi.get() || !is_to_sole && !is_to(data, meta.kind, sa) {
        return Err(DropReason::NoSa);
    }
    sa.check_carrier(meta.protocol)
}

/// Whether the outer packet was sent to the SA's address.
#[inline(never)]
fn is_to(data: &[u8], kind: PacketKind, sa: &InboundSa) -> bool {
    match kind {
        PacketKind::Ipv4 => Ipv4Header::ref_from_prefix(data)
            .is_ok_and(|(header, _)| sa.local() == header.destination_addr()),
        PacketKind::Ipv6 => Ipv6Header::ref_from_prefix(data)
            .is_ok_and(|(header, _)| sa.local() == header.destination_addr()),
        PacketKind::Other => false,
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
        let seq = match (sa, esp_header(packet.data(), meta)) {
            (Some(sa), Some(header)) => rebuild(sa, header.seq.get()),
            (None, _) => Err(DropReason::SaDown),
            (_, None) => Err(DropReason::Runt),
        };
        match seq {
            Ok(seq) => meta.seq = seq,
            Err(reason) => meta.kill(reason),
        }
    }
}

#[inline]
fn rebuild(sa: &InboundSa, low: u32) -> Result<u64, DropReason> {
    let seq = if sa.esn {
        sa.window()
            .rebuild(low, sa.window().top())
            .ok_or(DropReason::TooOld)?
    } else {
        u64::from(low)
    };
    sa.window().check(seq)?;
    Ok(seq)
}

/// Verifies and decrypts every live packet in place. Drops with `Runt` or `BadIcv`.
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
        let queued = sa.and_then(|sa| add_job(&mut jobs, sa, packet.data_mut(), meta));
        if queued.is_none() {
            meta.kill(DropReason::Runt);
        }
    }
    aead::open_burst(&mut jobs);
    if !jobs.iter().all(|job| job.authentic) {
        let authentic: ArrayVec<bool, BURST> =
            jobs.iter().map(|job| job.authentic).take(BURST).collect();
        drop(jobs);
        kill_unless(metas, &authentic, DropReason::BadIcv);
    }
}

#[inline(always)]
fn add_job<'a>(
    jobs: &mut ArrayVec<OpenJob<'a>, BURST>,
    sa: &'a InboundSa,
    data: &'a mut [u8],
    meta: &PacketMeta,
) -> Option<()> {
    let payload = data.get_mut(usize::from(meta.esp_offset)..)?;
    let (head, text) = payload.split_at_mut_checked(BEFORE)?;
    let iv: [u8; IV_LEN] = *head.last_chunk()?;
    let aad = if sa.esn {
        Aad::extended(sa.spi, meta.seq)
    } else {
        Aad::short(sa.spi, low_32(meta.seq))
    };
    let job = OpenJob {
        key: sa.key(),
        nonce: aead::nonce(*sa.salt, iv),
        aad,
        text,
        authentic: false,
    };
    jobs.try_push(job).ok()
}

/// Commits the live packets, which are verified, to their windows: one compare-and-swap for each run of packets of one SA
/// and block. Two copies of a packet may share a burst; the second is dropped here, `Replayed` or `TooOld`.
pub fn window_commit_burst(metas: &mut [PacketMeta], sas: &BurstSas<'_, InboundSa>) {
    let mut rest = metas;
    for (sa, len) in sas.runs() {
        let Some((run, after)) = std::mem::take(&mut rest).split_at_mut_checked(len) else {
            return;
        };
        rest = after;
        match (sa, run) {
            // With many SAs most runs are of one packet.
            (Some(sa), [meta]) if meta.is_live() => {
                if sa.window().commit(BlockRun::new(meta.seq)) == 0 {
                    meta.kill(refusal(sa.window(), meta.seq));
                }
            }
            (Some(sa), run) => commit_run(run, sa.window()),
            // Nothing that was opened is without its SA.
            (None, run) => kill_live(run, DropReason::SaDown),
        }
    }
    kill_live(rest, DropReason::SaDown);
}

/// Commits packets of one SA, block by block.
#[inline]
fn commit_run(mut rest: &mut [PacketMeta], window: Window<'_>) {
    // Each turn takes at least one packet off the front.
    while let Some(first) = rest.iter().position(PacketMeta::is_live) {
        let (_, tail) = std::mem::take(&mut rest).split_at_mut(first);
        let Some(head) = tail.first() else { return };
        let mut run = BlockRun::new(head.seq);
        let more = tail
            .iter()
            .skip(1)
            .take_while(|meta| !meta.is_live() || run.push(meta.seq))
            .count();
        let (members, after) = tail.split_at_mut(more.saturating_add(1).min(tail.len()));
        rest = after;
        let accepted = window.commit(run);
        if accepted == run.bits {
            continue;
        }
        for meta in members.iter_mut().filter(|meta| meta.is_live()) {
            if accepted & BlockRun::bit(meta.seq) == 0 {
                meta.kill(refusal(window, meta.seq));
            }
        }
    }
}

/// Why a window did not take a number: now that it has moved, it says so.
#[cold]
fn refusal(window: Window<'_>, seq: u64) -> DropReason {
    window.check(seq).err().unwrap_or(DropReason::Replayed)
}

/// Notes where the peers of SAs in UDP are, by the live packets, whose numbers are committed: the newest of an SA counts.
///
/// On entry a packet is still a whole outer IP packet. This is for bursts that have UDP in them; others need not come here.
pub fn note_peers_burst<B: PacketBuf>(
    packets: &[B],
    metas: &[PacketMeta],
    sas: &BurstSas<'_, InboundSa>,
) {
    for ((packet, meta), sa) in packets.iter().zip(metas).zip(sas.iter()) {
        //= https://www.rfc-editor.org/rfc/rfc7296#section-2.23
        //# Also, dynamic address update should only be done in
        //# response to a new packet; otherwise, an attacker can revert the
        //# addresses with old replayed packets.
        if let Some(sa) = sa
            && let Some(peer) = sa.peer()
            && peer.is_followed()
            && meta.is_live()
            && meta.seq >= sa.window().top()
        {
            note_peer(packet.data(), meta, peer);
        }
    }
}

fn note_peer(data: &[u8], meta: &PacketMeta, peer: &InboundPeer) {
    if let Some(source) = udp_source(data, meta) {
        peer.saw(meta.seq, source);
    }
}

/// Where a packet that is ESP in UDP came from.
fn udp_source(data: &[u8], meta: &PacketMeta) -> Option<SocketAddr> {
    let address = match meta.kind {
        PacketKind::Ipv4 => Ipv4Header::ref_from_prefix(data)
            .ok()?
            .0
            .source_addr()
            .into(),
        PacketKind::Ipv6 => Ipv6Header::ref_from_prefix(data)
            .ok()?
            .0
            .source_addr()
            .into(),
        PacketKind::Other => return None,
    };
    let before = usize::from(meta.esp_offset).checked_sub(udp::HEADER_LEN)?;
    let (header, _) = UdpHeader::ref_from_prefix(data.get(before..)?).ok()?;
    Some(SocketAddr::new(address, header.source.get()))
}

/// Takes everything off every live packet that is not the inner one: checks trailer and padding, takes the headers off,
/// combines the ECN fields.
///
/// On entry a packet is what [`esp_open_burst`] made of a whole outer IP packet cut to its length; on return it is the
/// inner IP packet, cut to its own length (RFC 4303 section 2.7 lets traffic flow padding follow it). Drops with
/// `BadPadding`, `BadNextHeader`, `Dummy`, `BadInner`, `CeOnNotEct`.
pub fn esp_decapsulate_burst<B: PacketBuf>(packets: &mut [B], metas: &mut [PacketMeta]) {
    for (packet, meta) in packets.iter_mut().zip(metas.iter_mut()) {
        if meta.is_live()
            && let Err(reason) = decapsulate(packet, meta)
        {
            meta.kill(reason);
        }
    }
}

#[inline]
fn decapsulate<B: PacketBuf>(packet: &mut B, meta: &mut PacketMeta) -> Result<(), DropReason> {
    let data = packet.data();
    let start = usize::from(meta.esp_offset).saturating_add(BEFORE);
    let text = data
        .get(start..)
        .and_then(|text| text.split_last_chunk::<ICV_LEN>());
    let (plain, _) = text.ok_or(DropReason::Runt)?;
    let (next_header, payload_len) = check_trailer(plain)?;
    let payload = plain.get(..payload_len).ok_or(DropReason::BadPadding)?;
    let inner = match next_header {
        protocol::IPV4 => Inner::of_v4(payload)?,
        protocol::IPV6 => Inner::of_v6(payload)?,
        //= https://www.rfc-editor.org/rfc/rfc4303#section-2.6
        //# Dummy packets are discarded without prejudice.
        protocol::NO_NEXT_HEADER => return Err(DropReason::Dummy),
        _ => return Err(DropReason::BadNextHeader),
    };
    let inner_ecn = inner.tos & 0b11;
    let ecn = exit_ecn(inner_ecn, meta.tos).ok_or(DropReason::CeOnNotEct)?;
    meta.kind = inner.kind;
    meta.inner_len = inner.total_len;
    (meta.source, meta.destination) = inner.v4;
    if !packet.cut(start, usize::from(inner.total_len)) {
        return Err(DropReason::BadInner);
    }
    if ecn != inner_ecn {
        set_ecn(packet.data_mut(), inner.kind, ecn);
    }
    Ok(())
}

/// What has to be known of a checked inner packet.
struct Inner {
    kind: PacketKind,
    total_len: u16,
    tos: u8,
    /// Source and destination of IPv4.
    v4: (u32, u32),
}

impl Inner {
    #[inline]
    fn of_v4(payload: &[u8]) -> Result<Self, DropReason> {
        let plain = PlainHeader::ref_from_prefix(payload)
            .ok()
            .and_then(|(header, _)| header.check());
        match plain {
            Some(plain) if usize::from(plain.total_len) <= payload.len() => Ok(Self {
                kind: PacketKind::Ipv4,
                total_len: plain.total_len,
                tos: plain.tos,
                v4: (plain.source, plain.destination),
            }),
            _ => Self::of_v4_with_options(payload),
        }
    }

    #[inline(never)]
    fn of_v4_with_options(payload: &[u8]) -> Result<Self, DropReason> {
        let (header, _) = Ipv4Header::parse(payload).map_err(|_| DropReason::BadInner)?;
        Ok(Self {
            kind: PacketKind::Ipv4,
            total_len: header.total_len.get(),
            tos: header.tos,
            v4: (v4(header.source), v4(header.destination)),
        })
    }

    fn of_v6(payload: &[u8]) -> Result<Self, DropReason> {
        let header = Ipv6Header::parse(payload).map_err(|_| DropReason::BadInner)?;
        Ok(Self {
            kind: PacketKind::Ipv6,
            total_len: u16::try_from(header.total_len()).map_err(|_| DropReason::BadInner)?,
            tos: header.traffic_class(),
            v4: (0, 0),
        })
    }
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
    let is_right = match (text.last_chunk::<4>(), *pad_len) {
        // What a sender that only aligns writes: the last bytes of one word.
        (Some(last), 0..=3) => {
            let bits = u32::from(*pad_len).wrapping_mul(8);
            let found = u64::from(u32::from_le_bytes(*last)).wrapping_shl(bits) >> 32;
            let expected = 0x03_02_01 & 1u64.wrapping_shl(bits).wrapping_sub(1);
            found == expected
        }
        _ => (1..=u8::MAX).zip(padding).all(|(a, b)| a == *b),
    };
    if !is_right {
        return Err(DropReason::BadPadding);
    }
    Ok((*next_header, payload_len))
}

#[cold]
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
    (spd, flows): (&Spd, &FlowCache),
) {
    if spd.has_rules() {
        check_by_rules(packets, metas, spd, flows);
        return;
    }
    if spd.has_widened() {
        check_widened(packets, metas, sas, spd);
        return;
    }
    for ((packet, meta), sa) in packets.iter().zip(metas.iter_mut()).zip(sas.iter()) {
        if !meta.is_live() {
            continue;
        }
        let fits = sa
            .zip(address_pair(packet.data(), meta))
            .is_some_and(|(sa, addresses)| sa.admits(addresses));
        if !fits {
            meta.kill(DropReason::SelectorMismatch);
        }
    }
}

/// As [`spd_check_inbound_burst`], where rules say what a tunnel carries.
#[inline(never)]
fn check_by_rules<B: PacketBuf>(
    packets: &[B],
    metas: &mut [PacketMeta],
    spd: &Spd,
    flows: &FlowCache,
) {
    for (packet, meta) in packets.iter().zip(metas.iter_mut()) {
        if !meta.is_live() {
            continue;
        }
        let slot = meta.sa;
        if !slot.is_some_and(|slot| spd.admits(flows, packet.data(), meta.kind, slot)) {
            meta.kill(DropReason::SelectorMismatch);
        }
    }
}

/// As [`spd_check_inbound_burst`], where some tunnels have other networks than their SAs know of.
#[inline(never)]
fn check_widened<B: PacketBuf>(
    packets: &[B],
    metas: &mut [PacketMeta],
    sas: &BurstSas<'_, InboundSa>,
    spd: &Spd,
) {
    for ((packet, meta), sa) in packets.iter().zip(metas.iter_mut()).zip(sas.iter()) {
        if !meta.is_live() {
            continue;
        }
        let fits = match (sa, meta.sa, address_pair(packet.data(), meta)) {
            (Some(sa), Some(slot), Some(addresses)) => spd
                .admits_widened(addresses, slot)
                .unwrap_or_else(|| sa.admits(addresses)),
            _ => false,
        };
        if !fits {
            meta.kill(DropReason::SelectorMismatch);
        }
    }
}

/// Source and destination of a checked IP packet.
#[inline]
pub fn address_pair(data: &[u8], meta: &PacketMeta) -> Option<AddressPair> {
    match meta.kind {
        PacketKind::Ipv4 => Some(AddressPair::V4(meta.source, meta.destination)),
        PacketKind::Ipv6 => {
            let (header, _) = Ipv6Header::ref_from_prefix(data).ok()?;
            Some(AddressPair::V6(v6(header.source), v6(header.destination)))
        }
        PacketKind::Other => None,
    }
}
