use super::*;
use crate::wire::ipv4::{DONT_FRAGMENT, MORE_FRAGMENTS};
use zerocopy::IntoBytes;

/// An IPv4 packet with flags and fragment offset, its ports where its transport header is.
fn v4(addresses: (u32, u32), protocol: u8, flags: u16, ports: (u16, u16)) -> Vec<u8> {
    let header = Ipv4Header {
        version_ihl: 0x45,
        tos: 0,
        total_len: 40.into(),
        id: 7.into(),
        flags_fragment: flags.into(),
        ttl: 64,
        protocol,
        checksum: 0.into(),
        source: addresses.0.to_be_bytes(),
        destination: addresses.1.to_be_bytes(),
    };
    let mut packet = header.as_bytes().to_vec();
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    packet.resize(40, 0);
    packet
}

fn v6(last: (u16, u16), label: u32, protocol: u8, ports: (u16, u16)) -> Vec<u8> {
    let address = |last| std::net::Ipv6Addr::from([0xfd00, 1, 0, 0, 0, 0, 0, last]).octets();
    let header = Ipv6Header {
        version_class_flow: (0x6000_0000 | label).to_be_bytes(),
        payload_len: 20.into(),
        next_header: protocol,
        hop_limit: 64,
        source: address(last.0),
        destination: address(last.1),
    };
    let mut packet = header.as_bytes().to_vec();
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    packet.resize(60, 0);
    packet
}

const PAIR: (u32, u32) = (0x0a01_000a, 0x0a02_000a);

fn hash_v4(packet: &[u8], udp_ports: bool) -> u32 {
    flow_hash(packet, PacketKind::Ipv4, udp_ports)
}

fn hash_v6(packet: &[u8], udp_ports: bool) -> u32 {
    flow_hash(packet, PacketKind::Ipv6, udp_ports)
}

#[test]
fn what_changes_within_a_flow_changes_no_hash() {
    let packet = v4(PAIR, protocol::TCP, DONT_FRAGMENT, (1000, 80));
    let mut other = packet.clone();
    other[1] = 0xb8;
    other[3] = 200;
    other[5] = 99;
    other[8] = 3;
    other[24..].fill(9);
    assert_eq!(hash_v4(&packet, false), hash_v4(&other, false));
    let packet = v6((1, 2), 5, protocol::TCP, (1000, 80));
    let mut other = packet.clone();
    // Traffic class, payload length, hop limit, and what follows the ports.
    other[0] = 0x6f;
    other[1] |= 0xf0;
    other[5] = 99;
    other[7] = 3;
    other[44..].fill(9);
    assert_eq!(hash_v6(&packet, false), hash_v6(&other, false));
}

#[test]
fn options_before_the_ports_are_passed() {
    let plain = v4(PAIR, protocol::TCP, DONT_FRAGMENT, (1000, 80));
    let mut long = plain.clone();
    long[0] = 0x46;
    long.splice(20..20, [1, 1, 1, 0]);
    assert_eq!(hash_v4(&plain, false), hash_v4(&long, false));
}

#[test]
fn fragments_go_with_the_whole_packets_of_their_flow() {
    for protocol in [protocol::UDP, protocol::ICMP, protocol::TCP] {
        let whole = v4(PAIR, protocol, 0, (1000, 2000));
        let first = v4(PAIR, protocol, MORE_FRAGMENTS, (1000, 2000));
        // Where the ports would be there is anything.
        let last = v4(PAIR, protocol, 185, (0xdead, 0xbeef));
        let hashes = [whole, first, last].map(|packet| hash_v4(&packet, false));
        assert_eq!(hashes, [hashes[0]; 3], "protocol {protocol}");
    }
    // Linux sets DF on a datagram that fits, and not on the fragments of one that does not.
    let short = v4(PAIR, protocol::UDP, DONT_FRAGMENT, (1000, 2000));
    let part = v4(PAIR, protocol::UDP, MORE_FRAGMENTS, (1000, 2000));
    assert_eq!(hash_v4(&short, false), hash_v4(&part, false));
    let whole = v6((1, 2), 77, protocol::UDP, (1000, 2000));
    let part = v6((1, 2), 77, protocol::FRAGMENT, (0x1100, 1));
    assert_eq!(hash_v6(&whole, false), hash_v6(&part, false));
}

#[test]
fn ports_and_flow_labels_tell_flows_apart_where_they_may() {
    let v4s = |protocol, flags, udp| {
        [1, 2].map(|port| hash_v4(&v4(PAIR, protocol, flags, (port, 80)), udp))
    };
    let differ = |[one, other]: [u32; 2]| one != other;
    assert!(differ(v4s(protocol::TCP, DONT_FRAGMENT, false)));
    assert!(!differ(v4s(protocol::TCP, 0, false)), "routers may cut it");
    assert!(!differ(v4s(protocol::UDP, DONT_FRAGMENT, false)));
    assert!(differ(v4s(protocol::UDP, DONT_FRAGMENT, true)));
    assert!(differ(v4s(protocol::UDP, 0, true)));
    assert!(!differ(v4s(protocol::UDP, MORE_FRAGMENTS, true)));
    let v6s = |protocol, udp| [1, 2].map(|port| hash_v6(&v6((1, 2), 0, protocol, (port, 80)), udp));
    assert!(differ(v6s(protocol::TCP, false)));
    assert!(!differ(v6s(protocol::UDP, false)));
    assert!(differ(v6s(protocol::UDP, true)));
    assert!(differ([1, 2].map(|label| hash_v6(
        &v6((1, 2), label, protocol::UDP, (1, 1)),
        false
    ))));
}

#[test]
fn packets_cut_short_are_hashed_without_a_panic() {
    for packet in [
        v4(PAIR, protocol::TCP, DONT_FRAGMENT, (1000, 80)),
        v6((1, 2), 0, protocol::TCP, (1000, 80)),
    ] {
        for len in 0..packet.len() {
            hash_v4(&packet[..len], true);
            hash_v6(&packet[..len], true);
        }
    }
    assert_eq!(flow_hash(&[], PacketKind::Other, true), 0);
}

/// Chi-squared of how many of `hashes` each of `count` SAs got.
fn chi_squared(packets: impl Iterator<Item = (Vec<u8>, PacketKind)>, count: u8) -> f64 {
    let group = SaGroup::new(SaIndex(100), count, true);
    let mut seen = vec![0u32; usize::from(count)];
    for (packet, kind) in packets {
        let slot = group.slot(&packet, kind).0;
        seen[usize::try_from(slot - 100).expect("one of the group")] += 1;
    }
    let total: u32 = seen.iter().sum();
    let even = f64::from(total) / f64::from(count);
    seen.iter()
        .map(|found| (f64::from(*found) - even).powi(2) / even)
        .sum()
}

/// Flows as they come, not at random: neighbouring hosts, neighbouring ports. With up to 15 degrees of freedom, random
/// choice is above 38 once in a thousand times.
#[test]
fn flows_spread_evenly() {
    let tcp = |source, destination, port| {
        let packet = v4(
            (source, destination),
            protocol::TCP,
            DONT_FRAGMENT,
            (port, 443),
        );
        (packet, PacketKind::Ipv4)
    };
    let hosts = || (0..64).flat_map(|a| (0..64).map(move |b| (0x0a01_0001 + a, 0x0a02_0001 + b)));
    for count in [2, 3, 4, 8, 16] {
        let ports = (0..4096).map(|port| tcp(PAIR.0, PAIR.1, 32_768 + port));
        let even_ports = (0..4096).map(|port| tcp(PAIR.0, PAIR.1, 32_768 + 2 * port));
        let pairs = hosts().map(|(a, b)| (v4((a, b), protocol::UDP, 0, (0, 0)), PacketKind::Ipv4));
        let same = (0..4096).map(|host| tcp(0x0a01_0000 + host, 0x0a02_0000 + host, 1000));
        let six = (0..64).flat_map(|a| (0..64).map(move |b| (a, b)));
        let six = six.map(|ends| (v6(ends, 0, protocol::ICMP, (0, 0)), PacketKind::Ipv6));
        let labels =
            (0..4096).map(|label| (v6((1, 2), label, protocol::ICMP, (0, 0)), PacketKind::Ipv6));
        let found = [
            chi_squared(ports, count),
            chi_squared(even_ports, count),
            chi_squared(pairs, count),
            chi_squared(same, count),
            chi_squared(six, count),
            chi_squared(labels, count),
        ];
        assert!(found.iter().all(|chi| *chi < 38.0), "{count}: {found:.1?}");
    }
}
