//! Outer headers at the tunnel's entry and inner headers at its exit, by tables: RFC 4301 section 5.1.2, RFC 6040, and
//! which packets are too big. Whatever is computed here is computed without simplon's own code.

mod rig;

use std::net::IpAddr;

use rig::{End, Family, Outcome, Rig, Shape, UDP_PORTS, family_mixes, internet_checksum};
use simplon::crypto::aead::Cipher;
use simplon::drop::{Aside, DropReason};
use simplon::policy::model::Side;

/// An inner packet.
#[derive(Clone, Copy)]
struct Inner {
    family: Family,
    tos: u8,
    hop_limit: u8,
    df: bool,
    id: u16,
    /// Length of the whole packet.
    len: usize,
}

impl Inner {
    fn new(family: Family) -> Self {
        Self {
            family,
            tos: 0,
            hop_limit: 64,
            df: false,
            id: 0x1234,
            len: 100,
        }
    }

    /// Its bytes, on the way from the host at `shape`'s end to the other.
    fn bytes(&self, shape: &Shape) -> Vec<u8> {
        let (source, destination) = shape.hosts();
        let addresses = [octets(source), octets(destination)].concat();
        let len = u16::try_from(self.len).expect("short");
        let mut packet = Vec::with_capacity(self.len);
        match self.family {
            Family::V4 => {
                packet.extend([0x45, self.tos]);
                packet.extend(len.to_be_bytes());
                packet.extend(self.id.to_be_bytes());
                packet.extend([if self.df { 0x40 } else { 0 }, 0, self.hop_limit, 253, 0, 0]);
                packet.extend(addresses);
                let sum = internet_checksum(&packet);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            Family::V6 => {
                packet.extend([0x60 | self.tos >> 4, self.tos << 4, 0xbe, 0xef]);
                packet.extend((len - 40).to_be_bytes());
                packet.extend([253, self.hop_limit]);
                packet.extend(addresses);
            }
        }
        packet.extend((packet.len()..self.len).map(|at| at.to_le_bytes()[0]));
        packet
    }
}

fn octets(address: &str) -> Vec<u8> {
    match address.parse().expect("address") {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn tos(packet: &[u8]) -> u8 {
    match packet[0] >> 4 {
        4 => packet[1],
        _ => packet[0] << 4 | packet[1] >> 4,
    }
}

fn set_tos(packet: &mut [u8], tos: u8) {
    if packet[0] >> 4 == 4 {
        packet[1] = tos;
        packet[10..12].fill(0);
        let sum = internet_checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[0] = packet[0] & 0xf0 | tos >> 4;
        packet[1] = packet[1] & 0x0f | tos << 4;
    }
}

fn hop_limit(packet: &[u8]) -> u8 {
    match packet[0] >> 4 {
        4 => packet[8],
        _ => packet[7],
    }
}

/// Fails where an IPv4 header's checksum is wrong.
#[track_caller]
fn assert_checksum(packet: &[u8]) {
    if packet[0] >> 4 == 4 {
        assert_eq!(internet_checksum(&packet[..20]), 0, "header checksum");
    }
}

/// Everything in an outer header that is the same in every packet.
#[track_caller]
fn assert_frame(shape: &Shape, packet: &[u8]) {
    assert_checksum(packet);
    let (local, remote) = shape.gateways();
    let addresses = [octets(local), octets(remote)].concat();
    let protocol = if shape.udp { 17 } else { 50 };
    let len = u16::try_from(packet.len()).expect("short");
    let ip_len = match shape.outer {
        Family::V4 => {
            assert_eq!(packet[0], 0x45);
            assert_eq!(packet[2..4], len.to_be_bytes());
            // The reserved bit, MF and the offset are 0.
            assert_eq!((packet[6] & 0xbf, packet[7]), (0, 0));
            assert_eq!(packet[9], protocol);
            assert_eq!(packet[12..20], addresses);
            20
        }
        Family::V6 => {
            assert_eq!(packet[0] >> 4, 6);
            // No flow label.
            assert_eq!((packet[1] & 0x0f, packet[2], packet[3]), (0, 0, 0));
            assert_eq!(packet[4..6], (len - 40).to_be_bytes());
            assert_eq!(packet[6], protocol);
            assert_eq!(packet[8..40], addresses);
            40
        }
    };
    if shape.udp {
        let udp = &packet[usize::from(ip_len)..];
        assert_eq!(udp[0..2], shape.ports.0.to_be_bytes());
        assert_eq!(udp[2..4], shape.ports.1.to_be_bytes());
        assert_eq!(udp[4..6], (len - ip_len).to_be_bytes());
    }
}

/// Every family mix and encapsulation, the cipher changing along: 8.
fn shapes() -> Vec<Shape> {
    let ciphers = Cipher::ALL.into_iter().cycle();
    family_mixes()
        .flat_map(|(inner, outer)| [false, true].map(|udp| (inner, outer, udp)))
        .zip(ciphers)
        .map(|((inner, outer, udp), cipher)| Shape::new(cipher, inner, outer, udp))
        .collect()
}

fn east(shape: &Shape) -> Shape {
    Shape {
        end: End::East,
        ..shape.clone()
    }
}

/// Seals and demands that it could be.
#[track_caller]
fn sealed(rig: &mut Rig, packet: &[u8]) -> Vec<u8> {
    rig.seal_one(packet).sent()
}

#[test]
fn entry_copies_or_fixes_dscp_and_copies_or_clears_ecn() {
    // Lines of the policy, what stands for the DSCP (or the inner one), whether the ECN field is copied.
    let table = [
        ("", None, true),
        ("dscp = \"copy\"\necn = \"normal\"", None, true),
        ("dscp = \"copy\"\necn = \"compatibility\"", None, false),
        ("dscp = 0", Some(0), true),
        ("dscp = 46\necn = \"normal\"", Some(46), true),
        ("dscp = 63\necn = \"compatibility\"", Some(63), false),
    ];
    for shape in shapes() {
        for (endpoints, dscp, copies_ecn) in table {
            let shape = Shape {
                endpoints,
                ..shape.clone()
            };
            let (mut west, mut peer) = (Rig::new(&shape), Rig::new(&east(&shape)));
            for class in 0..=255u8 {
                let inner = Inner {
                    tos: class,
                    ..Inner::new(shape.inner)
                };
                let outer = sealed(&mut west, &inner.bytes(&shape));
                assert_frame(&shape, &outer);
                let ecn = if copies_ecn { class & 3 } else { 0 };
                let expected = dscp.unwrap_or(class >> 2) << 2 | ecn;
                assert_eq!(
                    tos(&outer),
                    expected,
                    "{shape} {endpoints:?} inner {class:#04x}"
                );
                // The inner header keeps its own.
                let twice = Inner {
                    hop_limit: 62,
                    ..inner
                };
                assert_eq!(peer.open_one(&outer), Outcome::Sent(twice.bytes(&shape)));
            }
        }
    }
}

const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

#[test]
fn exit_combines_ecn_as_figure_4_of_rfc_6040() {
    //= https://www.rfc-editor.org/rfc/rfc6040#section-4.2
    //= type=test
    //# If the inner ECN field is Not-ECT, the decapsulator MUST NOT
    //# propagate any other ECN codepoint onwards.
    let columns = [NOT_ECT, ECT_0, ECT_1, CE];
    let figure = [
        (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
        (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
        (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];
    let mut cells = 0;
    for shape in shapes() {
        let (mut peer, mut west) = (Rig::new(&east(&shape)), Rig::new(&shape));
        for (inner_ecn, row) in figure {
            for (outer_ecn, expected) in columns.into_iter().zip(row) {
                // DSCPs that differ: the outer one stops here.
                let inner = Inner {
                    tos: 0xa8 | inner_ecn,
                    ..Inner::new(shape.inner)
                };
                let mut outer = sealed(&mut peer, &inner.bytes(&east(&shape)));
                set_tos(&mut outer, 0x54 | outer_ecn);
                let outcome = west.open_one(&outer);
                let expected = match expected {
                    Some(ecn) => Outcome::Sent(
                        Inner {
                            tos: 0xa8 | ecn,
                            hop_limit: 62,
                            ..inner
                        }
                        .bytes(&east(&shape)),
                    ),
                    None => Outcome::Dropped(DropReason::CeOnNotEct),
                };
                assert_eq!(
                    outcome, expected,
                    "{shape} {inner_ecn:02b} in {outer_ecn:02b}"
                );
                cells += 1;
            }
        }
        let reason = DropReason::CeOnNotEct;
        let counters = west.counters(Side::Unprotected);
        assert_eq!(counters.drops[reason.index()].get(), 1);
        assert_eq!(
            counters.drops.iter().map(|drops| drops.get()).sum::<u64>(),
            1
        );
        assert_eq!(west.inbound().counters().drops(reason), 1);
        assert_eq!(west.inbound().counters().packets(), 15);
        assert_eq!(west.inbound().counters().bytes(), 1500);
    }
    assert_eq!(cells, 8 * 16);
}

#[test]
fn df_is_copied_set_or_cleared_and_always_set_for_inner_ipv6() {
    // Lines of the policy; the outer bit for an inner IPv4 packet without DF, one with it, and an inner IPv6 packet.
    let table = [
        ("", [false, true, true]),
        ("df = \"copy\"", [false, true, true]),
        ("df = \"set\"", [true, true, true]),
        ("df = \"clear\"", [false, false, false]),
    ];
    for shape in shapes() {
        for (endpoints, [without, with, v6]) in table {
            let shape = Shape {
                endpoints,
                ..shape.clone()
            };
            let (mut west, mut peer) = (Rig::new(&shape), Rig::new(&east(&shape)));
            for df in [false, true] {
                let inner = Inner {
                    df,
                    ..Inner::new(shape.inner)
                };
                let outer = sealed(&mut west, &inner.bytes(&shape));
                assert_frame(&shape, &outer);
                if shape.outer == Family::V4 {
                    let expected = match (shape.inner, df) {
                        (Family::V4, false) => without,
                        (Family::V4, true) => with,
                        (Family::V6, _) => v6,
                    };
                    assert_eq!(outer[6] & 0x40 != 0, expected, "{shape} {endpoints:?} {df}");
                }
                let twice = Inner {
                    hop_limit: 62,
                    ..inner
                };
                assert_eq!(peer.open_one(&outer), Outcome::Sent(twice.bytes(&shape)));
            }
        }
    }
}

#[test]
fn outer_hop_limit_is_the_policys_whatever_the_inner_one_is() {
    let table = [
        ("", 64),
        ("hop_limit = 1", 1),
        ("hop_limit = 32", 32),
        ("hop_limit = 255", 255),
    ];
    for shape in shapes() {
        for (endpoints, expected) in table {
            let shape = Shape {
                endpoints,
                ..shape.clone()
            };
            let mut west = Rig::new(&shape);
            for inner_limit in [2, 64, 255] {
                let inner = Inner {
                    hop_limit: inner_limit,
                    ..Inner::new(shape.inner)
                };
                let outer = sealed(&mut west, &inner.bytes(&shape));
                assert_frame(&shape, &outer);
                assert_eq!(
                    hop_limit(&outer),
                    expected,
                    "{shape} {endpoints:?} {inner_limit}"
                );
            }
        }
    }
}

#[test]
fn inner_hop_limit_that_runs_out_ends_the_packet_before_a_number_is_spent() {
    for shape in shapes() {
        let (mut west, mut peer) = (Rig::new(&shape), Rig::new(&east(&shape)));
        let with = |hop_limit| Inner {
            hop_limit,
            ..Inner::new(shape.inner)
        };
        for gone in [0, 1] {
            assert_eq!(
                west.seal_one(&with(gone).bytes(&shape)),
                Outcome::Dropped(DropReason::TtlExpired)
            );
        }
        assert_eq!(west.outbound().seq().next(), 1);
        assert_eq!(west.outbound().counters().drops(DropReason::TtlExpired), 2);
        // 2 at the entry is 1 inside, which ends at the exit; 3 comes out as 1.
        let outer = sealed(&mut west, &with(2).bytes(&shape));
        assert_eq!(
            peer.open_one(&outer),
            Outcome::Dropped(DropReason::TtlExpired)
        );
        let outer = sealed(&mut west, &with(3).bytes(&shape));
        assert_eq!(peer.open_one(&outer), Outcome::Sent(with(1).bytes(&shape)));
        assert_eq!(west.outbound().seq().next(), 3);
    }
}

#[test]
fn checksums_hold_for_every_identification_outside_and_inside() {
    // All 65,536 values pass through both words that the incremental sums start from, so every carry is met.
    let shape = Shape {
        // The outer identification is the low half of the sequence number.
        next_seq: 0x7_0000_0001,
        seen: 0x7_0000_0000,
        ..Shape::new(Cipher::Aes128Gcm, Family::V4, Family::V4, false)
    };
    let mut peer = Rig::new(&east(&shape));
    let mut west = Rig::new(&shape);
    let ids: Vec<_> = (0..=u16::MAX).collect();
    for ids in ids.chunks(64) {
        let inner = |id, hop_limit| Inner {
            id,
            hop_limit,
            len: 20,
            ..Inner::new(Family::V4)
        };
        let packets: Vec<_> = ids.iter().map(|id| inner(*id, 64).bytes(&shape)).collect();
        let outers: Vec<_> = west.seal(&packets).into_iter().map(Outcome::sent).collect();
        for (outer, id) in outers.iter().zip(ids) {
            assert_frame(&shape, outer);
            assert_eq!(outer[4..6], id.wrapping_add(1).to_be_bytes());
        }
        for (outcome, id) in peer.open(&outers).into_iter().zip(ids) {
            let opened = outcome.sent();
            assert_checksum(&opened);
            assert_eq!(opened, inner(*id, 62).bytes(&shape));
        }
    }
}

/// The sum over a UDP datagram in IPv6 with its pseudo-header (RFC 8200 section 8.1): 0 where its checksum is right.
fn udp6_checksum(packet: &[u8]) -> u16 {
    let (header, datagram) = packet.split_at(40);
    let mut pseudo = header[8..40].to_vec();
    pseudo.extend(u32::try_from(datagram.len()).expect("short").to_be_bytes());
    pseudo.extend([0, 0, 0, 17]);
    pseudo.extend(datagram);
    internet_checksum(&pseudo)
}

#[test]
fn udp_checksum_is_zero_over_ipv4_and_right_over_ipv6() {
    for shape in shapes().into_iter().filter(|shape| shape.udp) {
        let mut west = Rig::new(&shape);
        for len in (40..400).chain([1400, 1401, 8000]) {
            let inner = Inner {
                len,
                ..Inner::new(shape.inner)
            };
            let outer = sealed(&mut west, &inner.bytes(&shape));
            assert_frame(&shape, &outer);
            match shape.outer {
                Family::V4 => assert_eq!(outer[26..28], [0, 0]),
                Family::V6 => {
                    assert_ne!(outer[46..48], [0, 0]);
                    assert_eq!(udp6_checksum(&outer), 0, "{shape} {len}");
                }
            }
        }
    }
}

#[test]
fn udp_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    let mut shape = Shape::new(Cipher::Aes256Gcm, Family::V4, Family::V6, true);
    let packet = Inner::new(Family::V4).bytes(&shape);
    let outer = sealed(&mut Rig::new(&shape), &packet);
    let checksum = u16::from_be_bytes([outer[46], outer[47]]);
    // Ports are summed but not encrypted: with the checksum added to one of them, the sum is all ones.
    let sum = u32::from(UDP_PORTS.1) + u32::from(checksum);
    shape.ports.1 = u16::try_from(sum % 0xffff).expect("reduced");
    let outer = sealed(&mut Rig::new(&shape), &packet);
    assert_frame(&shape, &outer);
    assert_eq!(outer[46..48], [0xff, 0xff]);
    assert_eq!(udp6_checksum(&outer), 0);
}

#[test]
fn packets_are_too_big_from_one_byte_above_the_effective_limit() {
    // The port's MTU; the longest inner packet in IPv4, IPv4 and UDP, IPv6, IPv6 and UDP. By hand: the MTU less outer
    // headers, 8 for SPI and number, 8 for the IV, 16 for the ICV; that down to a multiple of 4, less 2 for the trailer.
    // The cipher and the inner family do not matter.
    let mut table = vec![
        (1499, [1442, 1434, 1422, 1414]),
        (1501, [1446, 1438, 1426, 1418]),
        (1503, [1446, 1438, 1426, 1418]),
        (1504, [1450, 1442, 1430, 1422]),
    ];
    // And what operators are told.
    table.extend(documented_sizes());
    let mut checked = 0;
    for cipher in Cipher::ALL {
        for inner in Family::ALL {
            for (wan_mtu, limits) in table.iter().copied() {
                let columns = Family::ALL
                    .into_iter()
                    .flat_map(|outer| [false, true].map(|udp| (outer, udp)));
                for ((outer, udp), limit) in columns.zip(limits) {
                    let shape = Shape {
                        wan_mtu,
                        ..Shape::new(cipher, inner, outer, udp)
                    };
                    let mut west = Rig::new(&shape);
                    let of = |len| Inner {
                        len,
                        df: true,
                        ..Inner::new(inner)
                    };
                    let outer = sealed(&mut west, &of(limit).bytes(&shape));
                    assert_frame(&shape, &outer);
                    assert!(outer.len() <= usize::from(wan_mtu));
                    assert!(outer.len() + 4 > usize::from(wan_mtu), "{shape} {wan_mtu}");
                    // IPv6 is promised 1,280 bytes, whatever the path takes.
                    let refused = match inner {
                        Family::V6 => (limit + 1).max(1281),
                        Family::V4 => limit + 1,
                    };
                    assert_eq!(
                        west.seal_one(&of(refused).bytes(&shape)),
                        Outcome::Dropped(DropReason::TooBig),
                        "{shape} {wan_mtu}"
                    );
                    assert_eq!(west.outbound().seq().next(), 2, "no number is spent");
                    assert_eq!(west.outbound().counters().drops(DropReason::TooBig), 1);
                    checked += 1;
                }
            }
        }
    }
    assert_eq!(checked, 3 * 2 * table.len() * 4);
}

/// The rows of the table in docs/OPERATIONS.md.
fn documented_sizes() -> Vec<(u16, [usize; 4])> {
    let text = include_str!("../docs/OPERATIONS.md");
    let rows = text
        .lines()
        .skip_while(|line| *line != "| outer packet | IPv4 | IPv4, UDP | IPv6 | IPv6, UDP |")
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let rows: Vec<_> = rows
        .map(|row| {
            let cells = row.trim_matches('|').split('|');
            let cells: Vec<usize> = cells
                .map(|cell| cell.trim().parse().expect("a number"))
                .collect();
            let limits = cells[1..].try_into().expect("four limits");
            (u16::try_from(cells[0]).expect("an MTU"), limits)
        })
        .collect();
    assert!(rows.len() > 5, "the table was found");
    rows
}

#[test]
fn what_may_be_cut_is_taken_aside_or_sealed_as_the_policy_says() {
    let too_big = |family, df, len| Inner {
        len,
        df,
        ..Inner::new(family)
    };
    for (outer, udp) in [(Family::V4, false), (Family::V6, true)] {
        for endpoints in ["", "fragmentation = \"after\"\n", "path_mtu = 1400\n"] {
            let shape = Shape {
                wan_mtu: 1500,
                endpoints,
                ..Shape::new(Cipher::Aes128Gcm, Family::V4, outer, udp)
            };
            let mut west = Rig::new(&shape);
            let wanted = match endpoints {
                "fragmentation = \"after\"\n" => Outcome::Aside(Aside::CutAndSend),
                _ => Outcome::Aside(Aside::CutAndSeal),
            };
            let packet = too_big(Family::V4, false, 1450).bytes(&shape);
            assert_eq!(west.seal_one(&packet), wanted, "{shape} {endpoints}");
            let packet = too_big(Family::V4, true, 1450).bytes(&shape);
            let refused = Outcome::Dropped(DropReason::TooBig);
            assert_eq!(west.seal_one(&packet), refused, "{shape} {endpoints}");
            let narrow = endpoints.starts_with("path_mtu");
            let packet = too_big(Family::V4, true, 1380).bytes(&shape);
            let goes = matches!(west.seal_one(&packet), Outcome::Sent(_));
            assert_eq!(goes, !narrow, "{shape} {endpoints}");
        }
    }
}

/// A TCP segment that begins a connection and can take `mss` bytes, in an IP packet on the way of `inner`.
fn syn(inner: &Inner, shape: &Shape, mss: u16) -> Vec<u8> {
    let mut packet = inner.bytes(shape);
    let (at, headers) = match inner.family {
        Family::V4 => (9, 20),
        Family::V6 => (6, 40),
    };
    packet[at] = 6;
    let segment = &mut packet[headers..];
    segment[12..14].copy_from_slice(&[0x60, 0x02]);
    segment[20..22].copy_from_slice(&[2, 4]);
    segment[22..24].copy_from_slice(&mss.to_be_bytes());
    packet[headers + 16..headers + 18].fill(0);
    let sum = internet_checksum(&packet[headers..]);
    packet[headers + 16..headers + 18].copy_from_slice(&sum.to_be_bytes());
    if inner.family == Family::V4 {
        packet[10..12].fill(0);
        let sum = internet_checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

#[test]
fn tcp_is_held_to_what_fits_in_both_directions_unless_told_not_to() {
    for (inner, outer) in family_mixes() {
        for (endpoints, clamps) in [("", true), ("clamp_mss = false\n", false)] {
            let shape = Shape {
                wan_mtu: 1500,
                endpoints,
                ..Shape::new(Cipher::Aes128Gcm, inner, outer, false)
            };
            let fits = match (inner, outer) {
                (Family::V4, Family::V4) => 1446 - 40,
                (Family::V6, Family::V4) => 1446 - 60,
                (Family::V4, Family::V6) => 1426 - 40,
                (Family::V6, Family::V6) => 1426 - 60,
            };
            let headers = if inner == Family::V4 { 20 } else { 40 };
            let mss_of = |packet: &[u8]| {
                let segment = &packet[headers..];
                assert_eq!(
                    internet_checksum(segment),
                    0,
                    "TCP's checksum, without addresses"
                );
                u16::from_be_bytes([segment[22], segment[23]])
            };
            let mut west = Rig::new(&shape);
            let mut peer = Rig::new(&Shape {
                endpoints: "clamp_mss = false\n",
                ..east(&shape)
            });
            for (mss, wanted) in [(1460, fits), (1000, 1000)] {
                let wanted = if clamps { wanted } else { mss };
                let out = syn(&Inner::new(inner), &shape, mss);
                let Outcome::Sent(inside) = peer.open_one(&sealed(&mut west, &out)) else {
                    panic!("{shape}");
                };
                assert_eq!(mss_of(&inside), wanted, "outbound, {shape}");
                let back = syn(&Inner::new(inner), &east(&shape), mss);
                let Outcome::Sent(inside) = west.open_one(&sealed(&mut peer, &back)) else {
                    panic!("{shape}");
                };
                assert_eq!(mss_of(&inside), wanted, "inbound, {shape}");
            }
        }
    }
}

#[test]
fn opened_packets_are_too_big_from_one_byte_above_the_protected_mtu() {
    for shape in shapes() {
        let shape = Shape {
            lan_mtu: 1500,
            ..shape
        };
        let mut peer = Rig::new(&Shape {
            lan_mtu: 9000,
            ..east(&shape)
        });
        let mut west = Rig::new(&shape);
        let of = |len, hop_limit| {
            let inner = Inner {
                len,
                hop_limit,
                df: true,
                ..Inner::new(shape.inner)
            };
            inner.bytes(&east(&shape))
        };
        let outer = sealed(&mut peer, &of(1500, 64));
        assert_eq!(west.open_one(&outer), Outcome::Sent(of(1500, 62)));
        let outer = sealed(&mut peer, &of(1501, 64));
        assert_eq!(
            west.open_one(&outer),
            Outcome::Dropped(DropReason::TooBig),
            "{shape}"
        );
    }
}
