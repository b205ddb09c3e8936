//! Sealing: inner packets become ESP packets in tunnel mode (RFC 4303 section 3.3, RFC 4106).

use std::net::SocketAddr;

use arrayvec::ArrayVec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::{low_16, low_32};
use crate::buf::PacketBuf;
use crate::crypto::aead::{self, Aad, IV_LEN, SealJob};
use crate::drop::DropReason;
use crate::ipsec::sa::{DF, MAX_TEMPLATE, OutboundSa};
use crate::ipsec::sa_counters::WorkerId;
use crate::ipsec::sad::BurstSas;
use crate::ipsec::seq::SeqRun;
use crate::meta::{BURST, PacketKind, PacketMeta};
use crate::wire::esp;
use crate::wire::ip::protocol;
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::udp::UdpHeader;
use crate::wire::{checksum, udp};

/// Gives each live packet a sequence number of its SA in `sas`, those of a run of equal SA taken together. Drops with
/// `SaDown`, `SaExpired`, `SeqExhausted`, `LeaseWait`.
pub fn seq_assign_burst(
    metas: &mut [PacketMeta],
    sas: &BurstSas<'_, OutboundSa>,
    worker: &WorkerId,
) {
    let mut rest = metas;
    for (sa, len) in sas.runs() {
        let Some((run, after)) = std::mem::take(&mut rest).split_at_mut_checked(len) else {
            return;
        };
        rest = after;
        match (sa, run) {
            // With many SAs most runs are of one packet.
            (Some(sa), [meta]) if meta.is_live() => match sa.take_numbers(worker, 1) {
                SeqRun {
                    first, short: None, ..
                } => meta.seq = first,
                SeqRun {
                    short: Some(reason),
                    ..
                } => meta.kill(reason),
            },
            (Some(sa), run) => {
                let wanted = run.iter().filter(|meta| meta.is_live()).count();
                if wanted > 0 {
                    assign(run, sa.take_numbers(worker, wanted as u64));
                }
            }
            (None, run) => kill_live(run, DropReason::SaDown),
        }
    }
    // Nothing was noted for them.
    kill_live(rest, DropReason::SaDown);
}

fn assign(run: &mut [PacketMeta], taken: SeqRun) {
    let mut numbers = (0..taken.count).map(|offset| taken.first.wrapping_add(offset));
    for meta in run.iter_mut().filter(|meta| meta.is_live()) {
        match numbers.next() {
            Some(seq) => meta.seq = seq,
            None => meta.kill(taken.short.unwrap_or(DropReason::SeqExhausted)),
        }
    }
}

pub(super) fn kill_live(metas: &mut [PacketMeta], reason: DropReason) {
    for meta in metas.iter_mut().filter(|meta| meta.is_live()) {
        meta.kill(reason);
    }
}

/// What is to be sealed of one burst: a job for each live packet, in order.
pub type SealJobs<'a> = ArrayVec<SealJob<'a>, BURST>;

/// Puts the headers of its SA before every live packet, a trailer with room for the ICV behind it, and adds to `jobs` what
/// is to be sealed of it.
///
/// On entry `jobs` is empty and a packet is the inner IP packet and nothing else. On return it is outer IP, UDP where
/// wanted, SPI and sequence number, IV, plaintext with padding and trailer, and [`aead::ICV_LEN`] bytes of any content. Drops
/// with `SaDown`, `NoRoom`, `TooBig`, and the sequence number is spent: what has no job is not live, and must not leave.
///
/// This is for the whole burst before any of it is sealed: wide loads over bytes just written stall.
///
/// Returns whether [`fill_udp6_checksum_burst`] has anything to do.
pub fn esp_encapsulate_burst<'a, B: PacketBuf>(
    packets: &'a mut [B],
    metas: &mut [PacketMeta],
    sas: &BurstSas<'a, OutboundSa>,
    jobs: &mut SealJobs<'a>,
) -> bool {
    let mut has_udp6 = false;
    for ((packet, meta), sa) in packets.iter_mut().zip(metas.iter_mut()).zip(sas.iter()) {
        if !meta.is_live() {
            continue;
        }
        let Some(sa) = sa else {
            meta.kill(DropReason::SaDown);
            continue;
        };
        let done = if sa.shape.is_plain() {
            encapsulate_plain(sa, packet, meta, jobs)
        } else {
            has_udp6 |= sa.shape.is_udp6();
            encapsulate(sa, packet, meta, jobs)
        };
        if let Err(reason) = done {
            meta.kill(reason);
        }
    }
    has_udp6
}

/// What nearly every SA puts before a packet, in the words in which it is written.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PlainHeaders {
    /// IPv4 up to flags and fragment offset.
    first: [u8; 8],
    /// Its TTL, protocol, checksum and source.
    second: [u8; 8],
    destination: [u8; 4],
    esp: [u8; esp::HEADER_LEN],
    iv: [u8; IV_LEN],
}

const _: () = assert!(PLAIN_LEN == ipv4::HEADER_LEN + esp::HEADER_LEN + IV_LEN);

/// As [`encapsulate`], where the headers are IPv4 and ESP: with lengths that the compiler knows.
#[inline(always)]
fn encapsulate_plain<'a, B: PacketBuf>(
    sa: &'a OutboundSa,
    packet: &'a mut B,
    meta: &PacketMeta,
    jobs: &mut SealJobs<'a>,
) -> Result<(), DropReason> {
    let (next_header, inner_flags) = inner_kind(meta)?;
    let inner_len = packet.data().len();
    let data = packet
        .grow(PLAIN_LEN, sa.tailroom(inner_len))
        .ok_or(DropReason::NoRoom)?;
    let total = u16::try_from(data.len()).map_err(|_| DropReason::TooBig)?;
    let (headers, text) = data
        .split_first_chunk_mut::<PLAIN_LEN>()
        .ok_or(DropReason::NoRoom)?;
    write_trailer(text, inner_len, next_header).ok_or(DropReason::NoRoom)?;
    let seq = meta.seq;
    let headers = PlainHeaders::mut_from_bytes(headers).map_err(|_| DropReason::NoRoom)?;
    let [first, second] = plain_v4(sa, total, meta, inner_flags);
    headers.first = first.to_be_bytes();
    headers.second = second.to_be_bytes();
    headers.destination = sa.destination;
    headers.esp = esp_header(sa, seq);
    // RFC 4106 section 3.1 leaves the IV to the sender; the 64-bit sequence number is unique as it must be.
    headers.iv = seq.to_be_bytes();
    add_job(jobs, sa, seq, text)
}

/// An outer IPv4 header up to its destination, as the two big-endian words that it is.
#[inline(always)]
fn plain_v4(sa: &OutboundSa, total: u16, meta: &PacketMeta, flags: u8) -> [u64; 2] {
    let tos = sa.shape.tos(meta.tos);
    let [destination, source] =
        [sa.destination, sa.source].map(|address| u64::from(u32::from_be_bytes(address)));
    let first = 0x45 << 56
        | u64::from(tos) << 48
        | u64::from(total) << 32
        // Unique for long enough where routers may fragment, and of no meaning where not (RFC 6864 section 4).
        | u64::from(low_16(meta.seq)) << 16
        | u64::from(sa.shape.ip_flags(flags)) << 8;
    let second = u64::from(sa.shape.hop_limit) << 56 | u64::from(protocol::ESP) << 48 | source;
    // Words of any length add up to the same checksum as those of 16 bits (RFC 1071 section 2).
    let sum = (first >> 32)
        .wrapping_add(u64::from(low_32(first)))
        .wrapping_add(second >> 32)
        .wrapping_add(source)
        .wrapping_add(destination);
    let sum = low_32(sum >> 32)
        .wrapping_add(low_32(sum) >> 16)
        .wrapping_add(low_32(sum) & 0xffff);
    [first, second | u64::from(checksum::finish(sum)) << 32]
}

const PLAIN_LEN: usize = size_of::<PlainHeaders>();

#[inline(never)]
fn encapsulate<'a, B: PacketBuf>(
    sa: &'a OutboundSa,
    packet: &'a mut B,
    meta: &PacketMeta,
    jobs: &mut SealJobs<'a>,
) -> Result<(), DropReason> {
    if sa.is_stopped() {
        return Err(DropReason::SaExpired);
    }
    let (next_header, inner_flags) = inner_kind(meta)?;
    let peer = match sa.peer() {
        Some(peer) => Some(peer.cell.get().ok_or(DropReason::SaDown)?),
        None => None,
    };
    let inner_len = packet.data().len();
    let front = sa.headroom();
    let (_, template) = sa
        .far
        .template
        .split_at_checked(MAX_TEMPLATE.wrapping_sub(front))
        .ok_or(DropReason::NoRoom)?;
    let data = packet
        .grow(front, sa.tailroom(inner_len))
        .ok_or(DropReason::NoRoom)?;
    let total = u16::try_from(data.len()).map_err(|_| DropReason::TooBig)?;
    let (headers, text) = data.split_at_mut_checked(front).ok_or(DropReason::NoRoom)?;
    headers.copy_from_slice(template);
    write_trailer(text, inner_len, next_header).ok_or(DropReason::NoRoom)?;
    fill_headers(sa, headers, total, meta, (inner_flags, peer)).ok_or(DropReason::NoRoom)?;
    add_job(jobs, sa, meta.seq, text)
}

/// The inner packet's protocol number as ESP's next header, and its first byte of flags and fragment offset: for IPv6,
/// which routers never fragment, DF.
#[inline]
fn inner_kind(meta: &PacketMeta) -> Result<(u8, u8), DropReason> {
    match meta.kind {
        PacketKind::Ipv4 => Ok((protocol::IPV4, meta.ip_flags)),
        PacketKind::Ipv6 => Ok((protocol::IPV6, DF)),
        PacketKind::Other => Err(DropReason::BadInner),
    }
}

/// Adds the job where it is made: one that is made elsewhere and moved is loaded while its pieces are still being stored.
#[inline(always)]
fn add_job<'a>(
    jobs: &mut SealJobs<'a>,
    sa: &'a OutboundSa,
    seq: u64,
    text: &'a mut [u8],
) -> Result<(), DropReason> {
    let aad = if sa.shape.esn() {
        Aad::extended(sa.spi(), seq)
    } else {
        Aad::short(sa.spi(), low_32(seq))
    };
    let job = SealJob {
        key: sa.key(),
        nonce: aead::nonce(*sa.salt, seq.to_be_bytes()),
        aad,
        text,
        sealed: false,
    };
    jobs.try_push(job).map_err(|_| DropReason::NoRoom)
}

#[inline]
fn esp_header(sa: &OutboundSa, seq: u64) -> [u8; esp::HEADER_LEN] {
    (u64::from(sa.spi()) << 32 | u64::from(low_32(seq))).to_be_bytes()
}

/// Writes padding, its length and the next header behind the `inner_len` bytes of the inner packet, and as many of the
/// ICV's bytes as make it one store.
#[inline]
fn write_trailer(text: &mut [u8], inner_len: usize, next_header: u8) -> Option<()> {
    //= https://www.rfc-editor.org/rfc/rfc4303#section-2.4
    //# The Padding bytes are initialized with a series of (unsigned, 1-byte)
    //# integer values.
    let pad = esp::pad_len(inner_len) as u64;
    // Without a branch on the length, which is any: at most 3 bytes of padding, so nothing is shifted out.
    let bits = low_32(pad.wrapping_mul(8));
    let padding = 0x03_02_01 & 1u64.wrapping_shl(bits).wrapping_sub(1);
    let after = pad | u64::from(next_header) << 8;
    let (_, trailer) = text.split_at_mut_checked(inner_len)?;
    *trailer.first_chunk_mut()? = (padding | after.wrapping_shl(bits)).to_le_bytes();
    Some(())
}

/// Fills in what changes from packet to packet of an outer IPv4 header. `sum` is over the rest of it.
#[inline]
fn fill_v4(
    sa: &OutboundSa,
    header: &mut Ipv4Header,
    total: u16,
    meta: &PacketMeta,
    (flags, sum): (u8, u32),
) {
    let tos = sa.shape.tos(meta.tos);
    let flags_fragment = u16::from_be_bytes([sa.shape.ip_flags(flags), 0]);
    // Unique for long enough where routers may fragment, and of no meaning where not (RFC 6864 section 4).
    let id = low_16(meta.seq);
    header.tos = tos;
    header.total_len = total.into();
    header.id = id.into();
    header.flags_fragment = flags_fragment.into();
    let sum = sum
        .wrapping_add(u32::from(tos))
        .wrapping_add(u32::from(total))
        .wrapping_add(u32::from(id))
        .wrapping_add(u32::from(flags_fragment));
    header.checksum = checksum::finish(sum).into();
}

/// Fills in what changes from packet to packet, whatever the headers are. `peer` is where it goes, in UDP.
fn fill_headers(
    sa: &OutboundSa,
    headers: &mut [u8],
    total: u16,
    meta: &PacketMeta,
    (flags, peer): (u8, Option<SocketAddr>),
) -> Option<()> {
    let (before, iv) = headers.split_last_chunk_mut::<IV_LEN>()?;
    *iv = meta.seq.to_be_bytes();
    let (before, esp) = before.split_last_chunk_mut()?;
    *esp = esp_header(sa, meta.seq);
    let datagram = if sa.shape.is_v4() {
        let (header, datagram) = Ipv4Header::mut_from_prefix(before).ok()?;
        let mut sum = sa.far.sum;
        if let Some(SocketAddr::V4(peer)) = peer {
            header.destination = peer.ip().octets();
            sum = checksum::add_bytes(sum, &header.destination);
        }
        fill_v4(sa, header, total, meta, (flags, sum));
        datagram
    } else {
        let (header, datagram) = Ipv6Header::mut_from_prefix(before).ok()?;
        header.set_traffic_class(sa.shape.tos(meta.tos));
        header.payload_len = total.wrapping_sub(low_16(ipv6::HEADER_LEN as u64)).into();
        if let Some(SocketAddr::V6(peer)) = peer {
            header.destination = peer.ip().octets();
        }
        datagram
    };
    if let Some(peer) = peer {
        let ip_len = low_16((sa.headroom() as u64).wrapping_sub(UDP_AND_ESP_LEN));
        let (header, _) = UdpHeader::mut_from_prefix(datagram).ok()?;
        header.destination = peer.port().into();
        header.len = total.wrapping_sub(ip_len).into();
    }
    Some(())
}

/// Bytes between the outer IP header and the ciphertext, where there is UDP.
const UDP_AND_ESP_LEN: u64 = (udp::HEADER_LEN + esp::HEADER_LEN + IV_LEN) as u64;

/// Seals every job, in place, and drops the live packets whose job could not be: `SealFailed`.
pub fn esp_seal_burst(jobs: &mut SealJobs<'_>, metas: &mut [PacketMeta]) {
    aead::seal_burst(jobs);
    if !jobs.iter().all(|job| job.sealed) {
        let sealed: ArrayVec<bool, BURST> = jobs.iter().map(|job| job.sealed).take(BURST).collect();
        kill_unless(metas, &sealed, DropReason::SealFailed);
    }
}

/// Ends the live packets whose verdict, one for each in order, is not true.
#[cold]
pub(super) fn kill_unless(metas: &mut [PacketMeta], verdicts: &[bool], reason: DropReason) {
    let mut verdicts = verdicts.iter();
    for meta in metas.iter_mut().filter(|meta| meta.is_live()) {
        if verdicts.next() != Some(&true) {
            meta.kill(reason);
        }
    }
}

/// Fills in the UDP checksum of every live packet that has UDP in IPv6, once it is sealed.
pub fn fill_udp6_checksum_burst<B: PacketBuf>(
    packets: &mut [B],
    metas: &[PacketMeta],
    sas: &BurstSas<'_, OutboundSa>,
) {
    for ((packet, meta), sa) in packets.iter_mut().zip(metas).zip(sas.iter()) {
        if let Some(sa) = sa
            && meta.is_live()
            && sa.shape.is_udp6()
        {
            fill_udp6_checksum(sa, packet.data_mut());
        }
    }
}

/// IPv6 receivers drop UDP without a checksum (RFC 8200 section 8.1), so here it is computed, over the ciphertext.
fn fill_udp6_checksum(sa: &OutboundSa, data: &mut [u8]) {
    let Ok((header, datagram)) = Ipv6Header::mut_from_prefix(data) else {
        return;
    };
    let len = low_32(datagram.len() as u64);
    // As it stands there: the peer may have moved since.
    let sum = checksum::add_bytes(sa.far.sum, &header.destination)
        .wrapping_add(len)
        .wrapping_add(u32::from(protocol::UDP));
    let value = match checksum::finish(checksum::add_bytes(sum, datagram)) {
        0 => 0xffff,
        value => value,
    };
    if let Ok((header, _)) = UdpHeader::mut_from_prefix(datagram) {
        header.checksum = value.into();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::buf::TestBuf;
    use crate::crypto::aead::{AeadKey, Cipher, KeyMaterial, OpenJob, open_burst};
    use crate::drop::Fate;
    use crate::ids::{SaIndex, Spi};
    use crate::ipsec::outer::{DontFragment, Dscp, EcnMode, Encapsulation, OuterHeader, SizeRules};
    use crate::ipsec::sa::{OutboundParams, SaParams};
    use crate::ipsec::sad::Sad;
    use crate::rcu::domain;

    fn key(fill: u8) -> KeyMaterial {
        KeyMaterial::new(Cipher::Aes128Gcm, zeroize::Zeroizing::new(vec![fill; 20]))
            .expect("20 bytes")
    }

    fn sa(fill: u8, next_seq: u64) -> Option<Box<OutboundSa>> {
        let sa = OutboundSa::new(&OutboundParams {
            sa: SaParams {
                spi: Spi::new(0x1000 + u32::from(fill)).expect("not reserved"),
                key: &key(fill),
                esn: true,
                local: "192.0.2.1".parse().expect("address"),
                remote: "192.0.2.2".parse().expect("address"),
                encapsulation: Encapsulation::None,
            },
            next_seq,
            sizes: SizeRules::default(),
            outer: OuterHeader {
                hop_limit: 64,
                dscp: Dscp::Copy,
                df: DontFragment::Copy,
                ecn: EcnMode::Normal,
            },
        });
        sa.seq().extend_lease(u64::MAX);
        Some(Box::new(sa))
    }

    fn burst() -> ([TestBuf; 2], [PacketMeta; 2]) {
        let mut inner = vec![0u8; 40];
        inner[0] = 0x45;
        let meta = PacketMeta {
            sa: Some(SaIndex(0)),
            kind: PacketKind::Ipv4,
            ..PacketMeta::NEW
        };
        ([TestBuf::new(&inner), TestBuf::new(&inner)], [meta; 2])
    }

    #[test]
    fn sa_replaced_between_stages_gives_no_number_to_the_new_key() {
        let (mut writer, mut readers) = domain(1);
        let sad = Sad::new(&writer, 1);
        assert!(writer.replace(sad.outbound(), 0, sa(1, 700)).is_ok());
        let guard = readers[0].enter();
        let view = sad.view(&guard);
        let (mut packets, mut metas) = burst();
        let mut sas = BurstSas::default();
        for (place, meta) in sas.places(2).iter_mut().zip(metas) {
            *place = meta.sa.and_then(|slot| view.outbound(slot));
        }
        seq_assign_burst(&mut metas, &sas, &WorkerId::new());
        assert!(writer.replace(sad.outbound(), 0, sa(2, 1)).is_ok());
        let mut jobs = SealJobs::new();
        esp_encapsulate_burst(&mut packets, &mut metas, &sas, &mut jobs);
        esp_seal_burst(&mut jobs, &mut metas);
        drop(jobs);
        let old = AeadKey::new(&key(1));
        for (packet, seq) in packets.iter_mut().zip(700u64..) {
            let data = packet.data_mut();
            assert_eq!(data[20..24], 0x1001u32.to_be_bytes(), "SPI of the old one");
            assert_eq!(data[28..36], seq.to_be_bytes(), "number of the old one");
            let mut jobs = [OpenJob {
                key: old.get(),
                nonce: aead::nonce(key(1).salt(), seq.to_be_bytes()),
                aad: Aad::extended(0x1001, seq),
                text: &mut data[36..],
                authentic: false,
            }];
            open_burst(&mut jobs);
            assert!(jobs[0].authentic, "key of the old one");
        }
    }

    #[test]
    fn stopped_sa_seals_nothing_though_packets_have_numbers_and_its_owner_a_stock() {
        let sa = sa(1, 1).expect("an SA");
        let (mut packets, metas) = burst();
        let (mut with_numbers, mut without) = (metas, metas);
        let mut sas = BurstSas::default();
        sas.places(2).fill(Some(&*sa));
        let worker = WorkerId::new();
        // It counts first, so that it owns the SA.
        sa.counters().add(&worker, 1, 40);
        seq_assign_burst(&mut with_numbers, &sas, &worker);
        assert!(with_numbers.iter().all(PacketMeta::is_live));
        sa.stop();
        let mut jobs = SealJobs::new();
        esp_encapsulate_burst(&mut packets, &mut with_numbers, &sas, &mut jobs);
        assert!(jobs.is_empty());
        seq_assign_burst(&mut without, &sas, &worker);
        for meta in with_numbers.into_iter().chain(without) {
            assert_eq!(meta.fate, Fate::Dropped(DropReason::SaExpired));
        }
    }

    #[test]
    fn packets_that_no_sa_was_found_for_do_not_stay_live() {
        let (mut packets, metas) = burst();
        type Stage = fn(&mut [TestBuf], &mut [PacketMeta], &BurstSas<'_, OutboundSa>);
        let stages: [Stage; 2] = [
            |_, metas, sas| seq_assign_burst(metas, sas, &WorkerId::new()),
            |packets, metas, _| {
                let mut jobs = SealJobs::new();
                esp_encapsulate_burst(packets, metas, &BurstSas::default(), &mut jobs);
                assert!(jobs.is_empty());
            },
        ];
        for stage in stages {
            let mut metas = metas;
            stage(&mut packets, &mut metas, &BurstSas::default());
            for meta in metas {
                assert_eq!(meta.fate, Fate::Dropped(DropReason::SaDown));
            }
        }
    }
}
