//! Sealing: inner packets become ESP packets in tunnel mode (RFC 4303 section 3.3, RFC 4106).

use arrayvec::ArrayVec;
use zerocopy::FromBytes;

use crate::bits::{low_8, low_16, low_32};
use crate::buf::PacketBuf;
use crate::crypto::aead::{self, Aad, ICV_LEN, IV_LEN, SealJob};
use crate::drop::DropReason;
use crate::ipsec::sa::OutboundSa;
use crate::ipsec::sad::{BurstSas, SadView};
use crate::meta::{BURST, PacketKind, PacketMeta};
use crate::wire::esp::{self, EspHeader};
use crate::wire::ip::protocol;
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::udp::UdpHeader;
use crate::wire::{checksum, udp};

/// Gives each live packet a sequence number of its SA, one atomic addition for each run of equal SA. `sas` is empty on
/// entry and holds the SA of each packet on return.
pub fn seq_assign_burst<'g>(
    metas: &mut [PacketMeta],
    sad: SadView<'g>,
    sas: &mut BurstSas<'g, OutboundSa>,
) {
    for run in metas.chunk_by_mut(|a, b| a.sa == b.sa) {
        let slot = run.first().and_then(|meta| meta.sa);
        let wanted = run.iter().filter(|meta| meta.is_live()).count();
        let sa = slot
            .filter(|_| wanted > 0)
            .and_then(|slot| sad.outbound(slot));
        sas.push(sa, run.len());
        let Some(sa) = sa else {
            for meta in run.iter_mut().filter(|meta| meta.is_live()) {
                meta.kill(DropReason::SaDown);
            }
            continue;
        };
        let taken = sa.seq.take(wanted as u64);
        let mut numbers = (0..taken.count).map(|offset| taken.first.wrapping_add(offset));
        for meta in run.iter_mut().filter(|meta| meta.is_live()) {
            match numbers.next() {
                Some(seq) => meta.seq = seq,
                None => meta.kill(taken.short.unwrap_or(DropReason::SeqExhausted)),
            }
        }
    }
}

/// Seals every live packet with its SA and sequence number, in place.
///
/// On entry `sas` is what [`seq_assign_burst`] made of the same burst, and a packet is the inner IP packet and nothing
/// else. On return it is outer IP, UDP where wanted, SPI and sequence number, IV, ciphertext, ICV. A packet that could
/// not be sealed is dropped, `SaDown`, `NoRoom` or `SealFailed`, and its sequence number is spent.
pub fn esp_seal_burst<B: PacketBuf>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    sas: &BurstSas<'_, OutboundSa>,
) {
    // Headers and trailers of the whole burst first, text in a second pass: wide loads over bytes just written stall.
    for ((packet, meta), sa) in packets.iter_mut().zip(metas.iter_mut()).zip(sas.iter()) {
        if !meta.is_live() {
            continue;
        }
        let done = match sa {
            Some(sa) => encapsulate(sa, packet, meta.kind, meta.seq),
            None => Err(DropReason::SaDown),
        };
        if let Err(reason) = done {
            meta.kill(reason);
        }
    }
    let mut jobs: ArrayVec<SealJob<'_>, BURST> = ArrayVec::new();
    for ((packet, meta), sa) in packets.iter_mut().zip(metas.iter_mut()).zip(sas.iter()) {
        if !meta.is_live() {
            continue;
        }
        // What cannot be sealed must not leave: no job, no packet.
        let queued = sa
            .and_then(|sa| seal_job(sa, packet.data_mut(), meta.seq))
            .is_some_and(|job| jobs.try_push(job).is_ok());
        if !queued {
            meta.kill(DropReason::NoRoom);
        }
    }
    aead::seal_burst(&mut jobs);
    // One job for each live packet, in order.
    let verdicts: ArrayVec<bool, BURST> = jobs.iter().map(|job| job.sealed).take(BURST).collect();
    drop(jobs);
    let mut verdicts = verdicts.into_iter();
    for meta in metas.iter_mut().filter(|meta| meta.is_live()) {
        if verdicts.next() != Some(true) {
            meta.kill(DropReason::SealFailed);
        }
    }
    for ((packet, meta), sa) in packets.iter_mut().zip(metas.iter()).zip(sas.iter()) {
        if let Some(sa) = sa
            && meta.is_live()
            && sa.template.in_udp
            && !sa.template.is_v4()
        {
            fill_udp6_checksum(sa, packet.data_mut());
        }
    }
}

/// Puts headers before and a trailer with room for the ICV behind the inner packet.
fn encapsulate<B: PacketBuf>(
    sa: &OutboundSa,
    packet: &mut B,
    kind: PacketKind,
    seq: u64,
) -> Result<(), DropReason> {
    let inner_len = packet.data().len();
    let tail = sa.tailroom(inner_len);
    if packet.headroom() < sa.template.len || packet.tailroom() < tail {
        return Err(DropReason::NoRoom);
    }
    let inner = Inner::of(packet.data(), kind).ok_or(DropReason::BadInner)?;
    let pad = esp::pad_len(inner_len);
    let data = packet.append(tail).ok_or(DropReason::NoRoom)?;
    let trailer = data.get_mut(inner_len..).unwrap_or_default();
    write_trailer(trailer, pad, inner.protocol);
    let data = packet.prepend(sa.template.len).ok_or(DropReason::NoRoom)?;
    write_headers(sa, data, seq, &inner)
}

/// What the outer header takes from the inner one.
struct Inner {
    tos: u8,
    /// `None` for IPv6.
    df: Option<bool>,
    /// Protocol number of the inner packet in ESP's next header.
    protocol: u8,
}

impl Inner {
    fn of(data: &[u8], kind: PacketKind) -> Option<Self> {
        match kind {
            PacketKind::Ipv4 => {
                let (header, _) = Ipv4Header::ref_from_prefix(data).ok()?;
                Some(Self {
                    tos: header.tos,
                    df: Some(header.dont_fragment()),
                    protocol: protocol::IPV4,
                })
            }
            PacketKind::Ipv6 => {
                let (header, _) = Ipv6Header::ref_from_prefix(data).ok()?;
                Some(Self {
                    tos: header.traffic_class(),
                    df: None,
                    protocol: protocol::IPV6,
                })
            }
            PacketKind::Other => None,
        }
    }
}

fn write_trailer(trailer: &mut [u8], pad: usize, next_header: u8) {
    //= https://www.rfc-editor.org/rfc/rfc4303#section-2.4
    //# The Padding bytes are initialized with a series of (unsigned, 1-byte)
    //# integer values.
    let mut bytes = trailer.iter_mut();
    for (value, byte) in (1u8..).zip(bytes.by_ref().take(pad)) {
        *byte = value;
    }
    for (value, byte) in [low_8(pad), next_header].into_iter().zip(bytes) {
        *byte = value;
    }
}

fn write_headers(
    sa: &OutboundSa,
    data: &mut [u8],
    seq: u64,
    inner: &Inner,
) -> Result<(), DropReason> {
    let template = &sa.template;
    let total = u16::try_from(data.len()).map_err(|_| DropReason::TooBig)?;
    let headers = data.get_mut(..template.len).ok_or(DropReason::NoRoom)?;
    let source = template
        .bytes
        .get(..template.len)
        .ok_or(DropReason::NoRoom)?;
    headers.copy_from_slice(source);
    let tos = sa.outer.tos(inner.tos);
    let rest = if template.is_v4() {
        let (header, rest) =
            Ipv4Header::mut_from_prefix(headers).map_err(|_| DropReason::NoRoom)?;
        header.tos = tos;
        header.total_len = total.into();
        // Unique for long enough where routers may fragment, and of no meaning where not (RFC 6864 section 4).
        header.id = low_16(seq).into();
        if sa.outer.dont_fragment(inner.df) {
            header.flags_fragment = ipv4::DONT_FRAGMENT.into();
        }
        let sum = [
            u16::from(tos),
            total,
            header.id.get(),
            header.flags_fragment.get(),
        ]
        .into_iter()
        .fold(template.sum, |sum, word| sum.wrapping_add(u32::from(word)));
        header.checksum = checksum::finish(sum).into();
        rest
    } else {
        let (header, rest) =
            Ipv6Header::mut_from_prefix(headers).map_err(|_| DropReason::NoRoom)?;
        header.set_traffic_class(tos);
        header.payload_len = total.wrapping_sub(low_16(ipv6::HEADER_LEN as u64)).into();
        rest
    };
    let rest = if template.in_udp {
        let (header, rest) = UdpHeader::mut_from_prefix(rest).map_err(|_| DropReason::NoRoom)?;
        header.len = total.wrapping_sub(low_16(template.ip_len as u64)).into();
        rest
    } else {
        rest
    };
    let (header, iv) = EspHeader::mut_from_prefix(rest).map_err(|_| DropReason::NoRoom)?;
    header.seq = low_32(seq).into();
    // RFC 4106 section 3.1 leaves the IV to the sender; the 64-bit sequence number is unique as it must be.
    let (iv, _) = iv
        .split_first_chunk_mut::<IV_LEN>()
        .ok_or(DropReason::NoRoom)?;
    *iv = seq.to_be_bytes();
    Ok(())
}

fn seal_job<'a>(sa: &'a OutboundSa, data: &'a mut [u8], seq: u64) -> Option<SealJob<'a>> {
    let text = data.get_mut(sa.template.len..)?;
    if text.len() < ICV_LEN {
        return None;
    }
    let aad = if sa.esn {
        Aad::extended(sa.spi, seq)
    } else {
        Aad::short(sa.spi, low_32(seq))
    };
    Some(SealJob {
        key: &sa.key,
        nonce: sa.key.nonce(seq.to_be_bytes()),
        aad,
        text,
        sealed: false,
    })
}

/// IPv6 receivers drop UDP without a checksum (RFC 8200 section 8.1), so here it is computed, over the ciphertext.
fn fill_udp6_checksum(sa: &OutboundSa, data: &mut [u8]) {
    let Some(datagram) = data.get_mut(ipv6::HEADER_LEN..) else {
        return;
    };
    let len = low_32(datagram.len() as u64);
    let sum = sa
        .template
        .sum
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

const _: () = assert!(udp::HEADER_LEN + ipv6::HEADER_LEN + esp::HEADER_LEN + IV_LEN <= 128);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::buf::TestBuf;
    use crate::crypto::aead::{AeadKey, Cipher, KeyMaterial, OpenJob, open_burst};
    use crate::drop::Fate;
    use crate::ids::{SaIndex, Spi};
    use crate::ipsec::outer::{DontFragment, Dscp, EcnMode, Encapsulation, OuterHeader};
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
            outer: OuterHeader {
                hop_limit: 64,
                dscp: Dscp::Copy,
                df: DontFragment::Copy,
                ecn: EcnMode::Normal,
            },
        });
        sa.seq.extend_lease(u64::MAX);
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
        seq_assign_burst(&mut metas, view, &mut sas);
        assert!(writer.replace(sad.outbound(), 0, sa(2, 1)).is_ok());
        esp_seal_burst(&mut packets, &mut metas, &sas);
        let old = AeadKey::new(&key(1));
        for (packet, seq) in packets.iter_mut().zip(700u64..) {
            let data = packet.data_mut();
            assert_eq!(data[20..24], 0x1001u32.to_be_bytes(), "SPI of the old one");
            assert_eq!(data[28..36], seq.to_be_bytes(), "number of the old one");
            let mut jobs = [OpenJob {
                key: &old,
                nonce: old.nonce(seq.to_be_bytes()),
                aad: Aad::extended(0x1001, seq),
                text: &mut data[36..],
                authentic: false,
            }];
            open_burst(&mut jobs);
            assert!(jobs[0].authentic, "key of the old one");
        }
    }

    #[test]
    fn packets_that_no_sa_was_found_for_do_not_stay_live() {
        let (mut packets, mut metas) = burst();
        esp_seal_burst(&mut packets, &mut metas, &BurstSas::default());
        for meta in metas {
            assert_eq!(meta.fate, Fate::Dropped(DropReason::SaDown));
        }
    }
}
