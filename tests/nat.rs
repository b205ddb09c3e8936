//! ESP in UDP through NATs (RFC 3948): what packets tell of where a peer is, where packets go once it has moved, and what
//! shares the port. The real stages, and headers that are read without simplon's own code.

mod rig;

use std::net::{IpAddr, SocketAddr};

use rig::{End, Family, Outcome, Rig, Shape, UDP_PORTS, internet_checksum};
use simplon::crypto::aead::Cipher;
use simplon::drop::{DropReason, PuntReason};

const FAMILIES: [Family; 2] = Family::ALL;

fn west(outer: Family) -> Shape {
    Shape::new(Cipher::Aes128Gcm, Family::V4, outer, true)
}

fn east(outer: Family) -> Shape {
    Shape {
        end: End::East,
        ..west(outer)
    }
}

/// An inner packet from west's host to east's.
fn inner() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 60, 0, 1, 0, 0, 64, 253, 0, 0];
    packet.extend([10, 1, 0, 10, 10, 2, 0, 10]);
    let sum = internet_checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.resize(60, 0xa5);
    packet
}

fn peer(text: &str) -> SocketAddr {
    text.parse().expect("address and port")
}

/// Somewhere that is not where the peer is.
fn elsewhere(outer: Family) -> [SocketAddr; 2] {
    match outer {
        Family::V4 => ["198.51.100.7:40001", "192.0.2.1:4567"].map(peer),
        Family::V6 => ["[2001:db8:1::7]:40001", "[2001:db8::1]:4567"].map(peer),
    }
}

/// The packet as a NAT passes it on: from `source`.
fn from(packet: &[u8], source: SocketAddr) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let at = match source.ip() {
        IpAddr::V4(address) => {
            packet[12..16].copy_from_slice(&address.octets());
            packet[10..12].fill(0);
            let sum = internet_checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            20
        }
        IpAddr::V6(address) => {
            packet[8..24].copy_from_slice(&address.octets());
            40
        }
    };
    packet[at..at + 2].copy_from_slice(&source.port().to_be_bytes());
    packet
}

/// Two gateways, and `count` packets that west sealed for east.
fn sealed(outer: Family, count: usize) -> (Rig, Vec<Vec<u8>>) {
    let mut west = Rig::new(&west(outer));
    let packets = (0..count).map(|_| west.seal_one(&inner()).sent()).collect();
    (Rig::new(&east(outer)), packets)
}

fn noted(rig: &Rig) -> Option<SocketAddr> {
    rig.inbound().peer().expect("in UDP").note.take()
}

#[test]
fn authentic_newest_packet_tells_where_the_peer_is() {
    for outer in FAMILIES {
        let (mut east, packets) = sealed(outer, 4);
        east.open_one(&packets[0]).sent();
        assert_eq!(noted(&east), None, "from where it is expected");
        for (packet, place) in packets[1..3].iter().zip(elsewhere(outer)) {
            east.open_one(&from(packet, place)).sent();
            assert_eq!(noted(&east), Some(place));
            assert_eq!(noted(&east), None, "told once");
        }
        // What was last known is still open to it.
        east.open_one(&packets[3]).sent();
        assert_eq!(noted(&east), None);
    }
}

#[test]
fn forged_packet_tells_nothing() {
    for outer in FAMILIES {
        let (mut east, packets) = sealed(outer, 1);
        let [place, _] = elsewhere(outer);
        let len = packets[0].len();
        let first = outer.header_len() + 8;
        for at in [first + 4, first + 8, first + 20, len - 1] {
            let mut forged = from(&packets[0], place);
            forged[at] ^= 1;
            let outcome = east.open_one(&forged);
            assert_eq!(outcome, Outcome::Dropped(DropReason::BadIcv), "{at}");
            assert_eq!(noted(&east), None, "{at}");
        }
        east.open_one(&packets[0]).sent();
    }
}

#[test]
fn replayed_or_overtaken_packet_tells_nothing() {
    for outer in FAMILIES {
        let (mut east, packets) = sealed(outer, 3);
        let [place, _] = elsewhere(outer);
        east.open_one(&packets[0]).sent();
        east.open_one(&packets[2]).sent();
        for packet in [&packets[0], &packets[2]] {
            let outcome = east.open_one(&from(packet, place));
            assert_eq!(outcome, Outcome::Dropped(DropReason::Replayed));
            assert_eq!(noted(&east), None);
        }
        // New, but not the newest: it may have been held back.
        east.open_one(&from(&packets[1], place)).sent();
        assert_eq!(noted(&east), None);
    }
}

#[test]
fn of_a_burst_the_newest_packet_counts() {
    for outer in FAMILIES {
        let [one, two] = elsewhere(outer);
        let (mut east, packets) = sealed(outer, 4);
        // In any order, and with a copy of the newest from elsewhere.
        let burst = [
            from(&packets[0], one),
            from(&packets[3], two),
            from(&packets[3], one),
            from(&packets[1], one),
            packets[2].clone(),
        ];
        let sent = |outcome: &&Outcome| matches!(outcome, Outcome::Sent(_));
        assert_eq!(east.open(&burst).iter().filter(sent).count(), 4);
        assert_eq!(noted(&east), Some(two));
        // Where the newest comes from where the peer is known to be, it has not moved.
        let (mut east, packets) = sealed(outer, 3);
        east.open_one(&from(&packets[0], one)).sent();
        east.open(&[from(&packets[1], one), packets[2].clone()]);
        assert_eq!(noted(&east), None);
    }
}

#[test]
fn peer_that_may_not_move_is_not_followed() {
    for outer in FAMILIES {
        let (_, packets) = sealed(outer, 1);
        let mut east = Rig::new(&Shape {
            endpoints: "peer_moves = false",
            ..east(outer)
        });
        let [place, _] = elsewhere(outer);
        east.open_one(&from(&packets[0], place)).sent();
        assert_eq!(noted(&east), None);
    }
}

#[test]
fn packets_go_where_the_peer_moved_under_the_numbers_that_follow() {
    for outer in FAMILIES {
        let mut west = Rig::new(&west(outer));
        let mut east = Rig::new(&east(outer));
        let ip_len = outer.header_len();
        let first = [peer("192.0.2.2:4501"), peer("[2001:db8::2]:4501")][ip_len / 40];
        let places = [&[first][..], &elsewhere(outer)].concat();
        for (number, place) in (1u64..).zip(places) {
            if number > 1 {
                west.outbound().peer().expect("in UDP").cell.replace(place);
            }
            let packet = west.seal_one(&inner()).sent();
            let destination = match place.ip() {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            assert_eq!(packet[ip_len - destination.len()..ip_len], destination);
            let (ip, udp) = packet.split_at(ip_len);
            assert_eq!(udp[..2], UDP_PORTS.0.to_be_bytes());
            assert_eq!(udp[2..4], place.port().to_be_bytes());
            match outer {
                Family::V4 => {
                    assert_eq!(internet_checksum(ip), 0);
                    assert_eq!(udp[6..8], [0, 0]);
                }
                Family::V6 => {
                    let len = u16::try_from(udp.len()).expect("short").to_be_bytes();
                    let pseudo = [&ip[8..40], &[0, 0], &len, &[0, 0, 0, 17], udp].concat();
                    assert_eq!(internet_checksum(&pseudo), 0);
                    assert_ne!(udp[6..8], [0, 0]);
                }
            }
            assert_eq!(udp[16..24], number.to_be_bytes(), "its IV");
            // Back through the NAT to where east is.
            let mut packet = packet;
            let (_, at) = outer.gateways();
            match (at.parse(), outer) {
                (Ok(IpAddr::V4(address)), _) => {
                    packet[16..20].copy_from_slice(&address.octets());
                    packet[10..12].fill(0);
                    let sum = internet_checksum(&packet[..20]);
                    packet[10..12].copy_from_slice(&sum.to_be_bytes());
                }
                (Ok(IpAddr::V6(address)), _) => {
                    packet[24..40].copy_from_slice(&address.octets());
                }
                (Err(why), _) => panic!("{why}"),
            }
            packet[ip_len + 2..ip_len + 4].copy_from_slice(&UDP_PORTS.1.to_be_bytes());
            east.open_one(&packet).sent();
        }
        assert_eq!(west.outbound().peer().expect("in UDP").cell.moves(), 2);
    }
}

#[test]
fn received_udp_checksum_is_of_no_account() {
    //= https://www.rfc-editor.org/rfc/rfc3948#section-2.1
    //= type=test
    //# receivers MUST NOT depend on the UDP checksum being a zero
    //# value.
    for outer in FAMILIES {
        let (mut east, packets) = sealed(outer, 3);
        let at = outer.header_len() + 6;
        for (packet, checksum) in packets.iter().zip([0u16, 0x1234, 0xffff]) {
            let mut packet = packet.clone();
            packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
            assert_eq!(east.open_one(&packet).sent(), forwarded());
        }
    }
}

/// [`inner`] behind both gateways.
fn forwarded() -> Vec<u8> {
    let mut packet = inner();
    packet[8] -= 2;
    packet[10..12].fill(0);
    let sum = internet_checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn keepalives_end_here_and_tell_nothing_and_ike_goes_to_the_host_side() {
    for outer in FAMILIES {
        let (mut east, packets) = sealed(outer, 1);
        let [place, _] = elsewhere(outer);
        let datagram = |payload: &[u8]| {
            let ip_len = outer.header_len();
            let mut packet = packets[0][..ip_len + 8].to_vec();
            packet.extend(payload);
            let udp_len = u16::try_from(8 + payload.len()).expect("short");
            packet[ip_len + 4..ip_len + 6].copy_from_slice(&udp_len.to_be_bytes());
            match outer {
                Family::V4 => packet[2..4].copy_from_slice(&(udp_len + 20).to_be_bytes()),
                Family::V6 => packet[4..6].copy_from_slice(&udp_len.to_be_bytes()),
            }
            from(&packet, place)
        };
        let outcome = east.open_one(&datagram(&[0xff]));
        assert_eq!(outcome, Outcome::Dropped(DropReason::NatKeepalive));
        let ike = [&[0; 4][..], &[7; 28]].concat();
        let outcome = east.open_one(&datagram(&ike));
        assert_eq!(outcome, Outcome::Punted(PuntReason::Ike));
        assert_eq!(noted(&east), None);
        east.open_one(&packets[0]).sent();
    }
}
