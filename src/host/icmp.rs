//! The ICMP errors that a router owes to those whose packets end here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode as TimeExceededV4};
use etherparse::icmpv6::{DestUnreachableCode, TimeExceededCode as TimeExceededV6};
use etherparse::{
    Icmpv4Type, Icmpv6Type, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, PacketBuilder,
};
use ipnet::IpNet;

use crate::drop::DropReason;

/// Largest ICMP error, IP header included (RFC 1812 section 4.3.2.3).
const MOST_V4: usize = 576;
/// As large as every IPv6 link takes (RFC 4443 section 2.4 (c)).
const MOST_V6: usize = 1280;
const TTL: u8 = 64;

/// What the gateway sends errors as, on one port.
#[derive(Clone, Copy)]
pub(super) struct Own {
    mac: [u8; 6],
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl Own {
    /// The first address of each family counts.
    pub(super) fn new(mac: [u8; 6], addresses: &[IpNet]) -> Self {
        let all = || addresses.iter().map(IpNet::addr);
        Self {
            mac,
            v4: all().find_map(|address| match address {
                IpAddr::V4(own) => Some(own),
                IpAddr::V6(_) => None,
            }),
            v6: all().find_map(|address| match address {
                IpAddr::V6(own) => Some(own),
                IpAddr::V4(_) => None,
            }),
        }
    }
}

/// The frame with the error for the IP packet `packet`, to the MAC address `to`, or to our own where it is `None`. `limit`
/// counts where the packet was too big. `None` where no error is owed, or the port has no address to send it from.
pub(super) fn error_frame(
    own: &Own,
    packet: &[u8],
    reason: DropReason,
    limit: u16,
    to: Option<[u8; 6]>,
) -> Option<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(own.mac, to.unwrap_or(own.mac));
    let mut frame = Vec::new();
    match packet.first()? >> 4 {
        4 => {
            let (to, kind) = owed_v4(packet, reason, limit)?;
            let quoted = packet.get(..MOST_V4 - 28).unwrap_or(packet);
            let builder = builder.ipv4(own.v4?.octets(), to.octets(), TTL);
            builder.icmpv4(kind).write(&mut frame, quoted).ok()?;
        }
        _ => {
            let (to, kind) = owed_v6(packet, reason, limit)?;
            let quoted = packet.get(..MOST_V6 - 48).unwrap_or(packet);
            let builder = builder.ipv6(own.v6?.octets(), to.octets(), TTL);
            builder.icmpv6(kind).write(&mut frame, quoted).ok()?;
        }
    }
    Some(frame)
}

/// Who is owed which error.
fn owed_v4(packet: &[u8], reason: DropReason, limit: u16) -> Option<(Ipv4Addr, Icmpv4Type)> {
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let (source, destination) = (header.source_addr(), header.destination_addr());
    //= https://www.rfc-editor.org/rfc/rfc1122#section-3.2.2
    //# An ICMP error message MUST NOT be sent as the result of
    //# receiving:
    let is_one_station = !source.is_multicast()
        && !source.is_broadcast()
        && !source.is_unspecified()
        && !source.is_loopback();
    let is_to_one = !destination.is_multicast() && !destination.is_broadcast();
    let kind = packet.get(header.slice().len()).copied();
    // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
    let is_error =
        header.protocol() == IpNumber::ICMP && matches!(kind, Some(3 | 4 | 5 | 11 | 12) | None);
    let is_first = header.fragments_offset().value() == 0;
    if !(is_one_station && is_to_one && is_first) || is_error {
        return None;
    }
    let error = match reason {
        DropReason::TtlExpired => Icmpv4Type::TimeExceeded(TimeExceededV4::TtlExceededInTransit),
        // What may be fragmented is no fault of the sender's.
        DropReason::TooBig if header.dont_fragment() => {
            let needed = DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: limit,
            };
            Icmpv4Type::DestinationUnreachable(needed)
        }
        DropReason::NoRoute => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network),
        DropReason::NoNeighbour => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host),
        // RFC 4301 section 5.1.1, type 3 code 13.
        DropReason::NoPolicy | DropReason::Discarded => {
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FilterProhibited)
        }
        _ => return None,
    };
    Some((source, error))
}

/// As [`owed_v4`].
fn owed_v6(packet: &[u8], reason: DropReason, limit: u16) -> Option<(Ipv6Addr, Icmpv6Type)> {
    let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
    let (source, destination) = (header.source_addr(), header.destination_addr());
    let is_one_station =
        !source.is_multicast() && !source.is_unspecified() && !source.is_loopback();
    // Errors have types below 128 (RFC 4443 section 2.1), and a redirect is 137.
    let kind = packet.get(header.slice().len()).copied();
    let is_error = header.next_header() == IpNumber::IPV6_ICMP
        && kind.is_none_or(|kind| kind < 128 || kind == 137);
    if !is_one_station || is_error {
        return None;
    }
    let error = match reason {
        DropReason::TtlExpired if !destination.is_multicast() => {
            Icmpv6Type::TimeExceeded(TimeExceededV6::HopLimitExceeded)
        }
        // Owed for multicast too, so that path MTU discovery works there (RFC 4443 section 2.4 (e.3)).
        DropReason::TooBig => Icmpv6Type::PacketTooBig { mtu: limit.into() },
        DropReason::NoRoute if !destination.is_multicast() => {
            Icmpv6Type::DestinationUnreachable(DestUnreachableCode::NoRoute)
        }
        DropReason::NoNeighbour if !destination.is_multicast() => {
            Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address)
        }
        // RFC 4301 section 5.1.1, type 1 code 1.
        DropReason::NoPolicy | DropReason::Discarded if !destination.is_multicast() => {
            Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Prohibited)
        }
        _ => return None,
    };
    Some((source, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    fn own() -> Own {
        let addresses = ["10.1.0.1/24", "fd00:1::1/64"].map(|text| text.parse().expect("prefix"));
        Own::new([2; 6], &addresses)
    }

    fn packet_v4(source: [u8; 4], destination: [u8; 4], may_fragment: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4(source, destination, 1).udp(7, 7);
        builder.write(&mut bytes, &[0x55; 1000]).expect("a packet");
        if may_fragment {
            bytes[6] &= !0x40;
        }
        bytes
    }

    const SENDER: [u8; 4] = [10, 1, 0, 10];
    const FAR: [u8; 4] = [10, 2, 0, 10];

    #[test]
    fn too_big_names_the_limit_and_quotes_the_packet() {
        let packet = packet_v4(SENDER, FAR, false);
        let frame = error_frame(&own(), &packet, DropReason::TooBig, 1446, Some([9; 6]));
        let frame = frame.expect("an error");
        assert_eq!(frame[..12], [9, 9, 9, 9, 9, 9, 2, 2, 2, 2, 2, 2]);
        assert_eq!(frame.len(), 14 + MOST_V4);
        let sliced = SlicedPacket::from_ethernet(&frame).expect("a frame");
        let Some(NetSlice::Ipv4(ip)) = sliced.net else {
            panic!("not IPv4");
        };
        assert_eq!(ip.header().destination(), SENDER);
        assert_eq!(ip.header().source(), [10, 1, 0, 1]);
        let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else {
            panic!("not ICMP");
        };
        let wanted = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1446 };
        assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(wanted));
        assert_eq!(icmp.payload(), &packet[..MOST_V4 - 28]);
        assert!(icmp.header().checksum == icmp.icmp_type().calc_checksum(icmp.payload()));
    }

    #[test]
    fn nobody_is_owed_an_error_for_an_error_a_fragment_or_what_was_sent_to_many() {
        let refused = |packet: &[u8], reason| error_frame(&own(), packet, reason, 1400, None);
        let good = packet_v4(SENDER, FAR, false);
        assert!(refused(&good, DropReason::TtlExpired).is_some());
        let mut later = good.clone();
        later[7] = 9;
        assert!(refused(&later, DropReason::TtlExpired).is_none());
        let many = packet_v4(SENDER, [224, 0, 0, 5], false);
        assert!(refused(&many, DropReason::TtlExpired).is_none());
        let from_nobody = packet_v4([0; 4], FAR, false);
        assert!(refused(&from_nobody, DropReason::TtlExpired).is_none());
        let may_fragment = packet_v4(SENDER, FAR, true);
        assert!(refused(&may_fragment, DropReason::TooBig).is_none());
        let error = refused(&good, DropReason::TtlExpired).expect("an error");
        assert!(refused(&error[14..], DropReason::TtlExpired).is_none());
        assert!(refused(&good, DropReason::BadIcv).is_none());
        for cut in 0..28 {
            let _ = refused(&good[..cut], DropReason::TtlExpired);
        }
    }

    /// Type and code of the error for a packet of either family that ended for `reason`.
    fn codes(reason: DropReason) -> [Option<(u8, u8)>; 2] {
        let mut v6 = Vec::new();
        let builder = PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 9).udp(7, 7);
        builder.write(&mut v6, &[0x55; 100]).expect("a packet");
        let code = |packet: &[u8], at: usize| {
            let frame = error_frame(&own(), packet, reason, 0, None)?;
            Some((frame[14 + at], frame[14 + at + 1]))
        };
        [code(&packet_v4(SENDER, FAR, false), 20), code(&v6, 40)]
    }

    #[test]
    fn errors_have_the_types_and_codes_of_their_reasons() {
        // RFC 792, RFC 1812 section 5.2.7.1, RFC 4443 sections 3.1 and 3.3.
        for (reason, expected) in [
            (DropReason::TtlExpired, [(11, 0), (3, 0)]),
            (DropReason::NoRoute, [(3, 0), (1, 0)]),
            (DropReason::NoNeighbour, [(3, 1), (1, 3)]),
            (DropReason::NoPolicy, [(3, 13), (1, 1)]),
            (DropReason::Discarded, [(3, 13), (1, 1)]),
        ] {
            assert_eq!(codes(reason), expected.map(Some), "{reason:?}");
        }
        for reason in [DropReason::ClearText, DropReason::BadIcv] {
            assert_eq!(codes(reason), [None; 2], "{reason:?}");
        }
    }

    #[test]
    fn ipv6_is_told_its_limit() {
        let mut packet = Vec::new();
        let (source, destination) = ([0xfd; 16], [0xfc; 16]);
        PacketBuilder::ipv6(source, destination, 1)
            .udp(7, 7)
            .write(&mut packet, &[0x55; 1400])
            .expect("a packet");
        let frame = error_frame(&own(), &packet, DropReason::TooBig, 1426, None);
        let frame = frame.expect("an error");
        assert_eq!(frame.len(), 14 + MOST_V6);
        let sliced = SlicedPacket::from_ethernet(&frame).expect("a frame");
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else {
            panic!("not ICMPv6");
        };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1426 });
        assert!(error_frame(&own(), &frame[14..], DropReason::TtlExpired, 0, None).is_none());
    }
}
