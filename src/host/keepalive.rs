//! Keepalives, which keep NATs between two gateways from forgetting them (RFC 3948 section 2.3).

use std::net::SocketAddr;

use etherparse::PacketBuilder;

/// What a keepalive carries, and nothing else.
const PAYLOAD: [u8; 1] = [0xff];

/// The frame of a keepalive between two ends of one family. `macs` are its destination and source MAC address, `hop_limit`
/// is its TTL or hop limit. `None` where the ends are of two.
pub fn keepalive_frame(
    macs: [u8; 12],
    from: SocketAddr,
    to: SocketAddr,
    hop_limit: u8,
) -> Option<Vec<u8>> {
    let (destination, source) = macs.split_first_chunk()?;
    let link = PacketBuilder::ethernet2(*source.first_chunk()?, *destination);
    let mut frame = Vec::new();
    match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            link.ipv4(from.ip().octets(), to.ip().octets(), hop_limit)
                .udp(from.port(), to.port())
                .write(&mut frame, &PAYLOAD)
                .ok()?;
            //= https://www.rfc-editor.org/rfc/rfc3948#section-2.3
            //# the IPv4 UDP Checksum SHOULD be transmitted as a zero value
            let (_, end) = frame.split_last_chunk_mut::<{ 2 + PAYLOAD.len() }>()?;
            *end.first_chunk_mut()? = [0; 2];
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            link.ipv6(from.ip().octets(), to.ip().octets(), hop_limit)
                .udp(from.port(), to.port())
                .write(&mut frame, &PAYLOAD)
                .ok()?;
        }
        _ => return None,
    }
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum;

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    /// Ports and length.
    const UDP: [u8; 6] = [0x11, 0x94, 0x9c, 0x41, 0, 9];

    fn frame(from: &str, to: &str) -> Option<Vec<u8>> {
        let end = |text: &str| text.parse().expect("address and port");
        keepalive_frame(MACS, end(from), end(to), 17)
    }

    #[test]
    fn keepalive_in_ipv4_has_one_byte_and_no_udp_checksum() {
        let frame = frame("192.0.2.1:4500", "198.51.100.7:40001").expect("a frame");
        assert_eq!(frame[..14], [&MACS[..], &[8, 0]].concat());
        let (ip, udp) = frame[14..].split_at(20);
        assert_eq!(
            (ip[0], ip[2..4].to_vec(), ip[8], ip[9]),
            (0x45, vec![0, 29], 17, 17)
        );
        assert_eq!(ip[12..], [192, 0, 2, 1, 198, 51, 100, 7]);
        assert_eq!(checksum::finish(checksum::add_bytes(0, ip)), 0);
        assert_eq!(udp, [&UDP[..], &[0, 0, 0xff]].concat());
    }

    #[test]
    fn keepalive_in_ipv6_has_one_byte_and_a_udp_checksum() {
        let frame = frame("[2001:db8::1]:4500", "[2001:db8::2]:40001").expect("a frame");
        assert_eq!(frame[..14], [&MACS[..], &[0x86, 0xdd]].concat());
        let (ip, udp) = frame[14..].split_at(40);
        assert_eq!((ip[4..6].to_vec(), ip[6], ip[7]), (vec![0, 9], 17, 17));
        assert_eq!((&udp[..6], udp[8..].to_vec()), (&UDP[..], vec![0xff]));
        let pseudo = [&ip[8..], &[0, 0, 0, 9, 0, 0, 0, 17], udp].concat();
        assert_eq!(checksum::finish(checksum::add_bytes(0, &pseudo)), 0);
        assert_ne!(udp[6..8], [0, 0]);
    }

    #[test]
    fn ends_of_two_families_have_no_keepalive() {
        assert_eq!(frame("192.0.2.1:4500", "[2001:db8::2]:4500"), None);
    }
}
