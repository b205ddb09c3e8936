//! What routers on the way say of our outer packets: which is too big for the path, and what would not be.

use std::net::IpAddr;

use zerocopy::FromBytes;

use crate::wire::esp::{self, EspHeader};
use crate::wire::ether;
use crate::wire::ip::protocol;
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::udp;

/// Somebody's word that an outer packet of ours was too big, not yet believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathReport {
    /// Source of the packet: our outer address, if it is one of ours.
    pub local: IpAddr,
    /// Its destination.
    pub remote: IpAddr,
    /// Its SPI.
    pub spi: u32,
    /// Low 32 bits of its sequence number.
    pub seq: u32,
    /// The largest packet that is not too big, in bytes; never 0.
    pub mtu: u16,
}

/// ICMP destination unreachable, and its code for a packet that had to be fragmented and must not be (RFC 792).
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// ICMPv6 packet too big (RFC 4443 section 3.2).
const PACKET_TOO_BIG: u8 = 2;
/// Length of the ICMP header of both.
const ICMP_HEADER_LEN: usize = 8;
/// Sizes of packets in use, for routers that do not say theirs (RFC 1191 section 7.1).
const PLATEAUS: [u16; 7] = [32_000, 17_914, 8166, 4352, 2002, 1492, 1006];

impl PathReport {
    /// The report in a frame with an ICMP or ICMPv6 message, if it is one. Its checksum, which anyone can make, is not looked
    /// at.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(ether::HEADER_LEN..)?;
        match packet.first()? >> 4 {
            4 => Self::of_v4(packet),
            6 => Self::of_v6(packet),
            _ => None,
        }
    }

    fn of_v4(packet: &[u8]) -> Option<Self> {
        let (header, len) = Ipv4Header::parse(packet).ok()?;
        let message = packet.get(len..usize::from(header.total_len.get()))?;
        let [kind, code, _, _, _, _, high, low, quoted @ ..] = message else {
            return None;
        };
        if header.protocol != protocol::ICMP
            || header.is_fragment()
            || (*kind, *code) != (UNREACHABLE, FRAGMENTATION_NEEDED)
        {
            return None;
        }
        let (inner, _) = Ipv4Header::ref_from_prefix(quoted).ok()?;
        let inner_len = usize::from(inner.version_ihl & 0x0f) << 2;
        if inner.version_ihl >> 4 != 4 || inner_len < ipv4::HEADER_LEN {
            return None;
        }
        let esp = esp_of(inner.protocol, quoted.get(inner_len..)?)?;
        let mtu = match u16::from_be_bytes([*high, *low]) {
            0 => next_plateau(inner.total_len.get()),
            mtu => mtu,
        };
        Some(Self {
            local: inner.source_addr().into(),
            remote: inner.destination_addr().into(),
            spi: esp.spi.get(),
            seq: esp.seq.get(),
            mtu,
        })
    }

    fn of_v6(packet: &[u8]) -> Option<Self> {
        let header = Ipv6Header::parse(packet).ok()?;
        let message = packet.get(ipv6::HEADER_LEN..header.total_len())?;
        let (icmp, quoted) = message.split_first_chunk::<ICMP_HEADER_LEN>()?;
        let [kind, code, _, _, mtu @ ..] = icmp;
        if header.next_header != protocol::ICMPV6 || (*kind, *code) != (PACKET_TOO_BIG, 0) {
            return None;
        }
        let (inner, rest) = Ipv6Header::ref_from_prefix(quoted).ok()?;
        if inner.version_class_flow[0] >> 4 != 6 {
            return None;
        }
        let esp = esp_of(inner.next_header, rest)?;
        let mtu = u16::try_from(u32::from_be_bytes(*mtu)).unwrap_or(u16::MAX);
        Some(Self {
            local: inner.source_addr().into(),
            remote: inner.destination_addr().into(),
            spi: esp.spi.get(),
            seq: esp.seq.get(),
            mtu: mtu.max(1),
        })
    }
}

/// The ESP header at the beginning of a quoted payload, or behind UDP.
fn esp_of(payload_protocol: u8, payload: &[u8]) -> Option<&EspHeader> {
    let payload = match payload_protocol {
        protocol::ESP => payload,
        protocol::UDP => payload.get(udp::HEADER_LEN..)?,
        _ => return None,
    };
    let header = payload.get(..esp::HEADER_LEN)?;
    EspHeader::ref_from_bytes(header).ok()
}

fn next_plateau(len: u16) -> u16 {
    PLATEAUS
        .into_iter()
        .find(|plateau| *plateau < len)
        .unwrap_or(ipv4::LEAST_MTU)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::icmpv4::DestUnreachableHeader;
    use etherparse::{Icmpv4Type, Icmpv6Type, IpNumber, PacketBuilder};

    const US: [u8; 4] = [192, 0, 2, 1];
    const PEER: [u8; 4] = [192, 0, 2, 2];

    /// One of our packets, cut to what a router quotes of it.
    fn quoted_v4(number: IpNumber, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4(US, PEER, 64);
        let text = [payload, &[0x55; 1400][..]].concat();
        builder.write(&mut bytes, number, &text).expect("a packet");
        bytes.truncate(20 + payload.len());
        bytes
    }

    fn too_big_v4(mtu: u16, quoted: &[u8]) -> Vec<u8> {
        let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([203, 0, 113, 1], US, 60)
            .icmpv4(Icmpv4Type::DestinationUnreachable(needed))
            .write(&mut frame, quoted)
            .expect("a frame");
        frame
    }

    const ESP: [u8; 8] = [0, 0, 0x10, 1, 0, 0, 0, 9];

    #[test]
    fn eight_quoted_bytes_are_enough_for_plain_esp() {
        let frame = too_big_v4(1300, &quoted_v4(IpNumber(50), &ESP));
        let report = PathReport::of(&frame).expect("a report");
        let wanted = PathReport {
            local: US.into(),
            remote: PEER.into(),
            spi: 0x1001,
            seq: 9,
            mtu: 1300,
        };
        assert_eq!(report, wanted);
        for len in 0..frame.len() {
            assert_eq!(PathReport::of(&frame[..len]), None, "cut to {len}");
        }
    }

    #[test]
    fn esp_in_udp_has_to_be_quoted_beyond_the_ports() {
        let ports = [0x11, 0x94, 0x11, 0x94, 5, 0x80, 0, 0];
        let with_esp = quoted_v4(IpNumber(17), &[ports, ESP].concat());
        let report = PathReport::of(&too_big_v4(1300, &with_esp));
        assert_eq!(
            report.map(|report| (report.spi, report.seq)),
            Some((0x1001, 9))
        );
        assert_eq!(
            PathReport::of(&too_big_v4(1300, &quoted_v4(IpNumber(17), &ports))),
            None
        );
        assert_eq!(
            PathReport::of(&too_big_v4(1300, &quoted_v4(IpNumber(6), &ESP))),
            None
        );
    }

    #[test]
    fn router_that_says_no_size_means_the_next_smaller_one_in_use() {
        let frame = too_big_v4(0, &quoted_v4(IpNumber(50), &ESP));
        // The quoted header still has the packet's own length, 1,428.
        assert_eq!(PathReport::of(&frame).map(|report| report.mtu), Some(1006));
        assert_eq!(next_plateau(600), ipv4::LEAST_MTU);
    }

    #[test]
    fn ipv6_packet_too_big_is_read_and_other_messages_are_not() {
        let mut quoted = Vec::new();
        let text = [&ESP[..], &[0x55; 1000]].concat();
        PacketBuilder::ipv6([1; 16], [2; 16], 64)
            .write(&mut quoted, IpNumber(50), &text)
            .expect("a packet");
        let frame = |kind| {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2([1; 6], [2; 6])
                .ipv6([3; 16], [1; 16], 60)
                .icmpv6(kind)
                .write(&mut frame, &quoted)
                .expect("a frame");
            frame
        };
        let report = PathReport::of(&frame(Icmpv6Type::PacketTooBig { mtu: 1300 }));
        let report = report.expect("a report");
        assert_eq!((report.spi, report.seq, report.mtu), (0x1001, 9, 1300));
        assert_eq!(report.local, IpAddr::from([1; 16]));
        let huge = PathReport::of(&frame(Icmpv6Type::PacketTooBig { mtu: 1 << 20 }));
        assert_eq!(huge.map(|report| report.mtu), Some(u16::MAX));
        let other =
            Icmpv6Type::TimeExceeded(etherparse::icmpv6::TimeExceededCode::HopLimitExceeded);
        assert_eq!(PathReport::of(&frame(other)), None);
    }
}
