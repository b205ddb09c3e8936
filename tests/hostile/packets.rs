//! Frames, built and bent by hand.

use simplon::wire::checksum::{add_bytes, finish};

pub(crate) const ETHER: usize = 14;
pub(crate) const ESP: u8 = 50;
pub(crate) const UDP: u8 = 17;
/// A protocol that nothing here looks into.
pub(crate) const OPAQUE: u8 = 253;
/// Stands in every inner packet, and in no packet on the unprotected side.
pub(crate) const MARKER: [u8; 16] = *b"plaintext-marker";

pub(crate) fn ether(mac: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = mac.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IP packet in a frame of its own EtherType.
pub(crate) fn framed(mac: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    ether(mac, ether_type, packet)
}

/// A checked IP packet of the addresses' family.
pub(crate) fn ip(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = if source.contains(':') {
        let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        packet.extend(address(source));
        packet.extend(address(destination));
        packet
    } else {
        let address = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
        let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
        packet.extend(address(source));
        packet.extend(address(destination));
        packet
    };
    packet.extend(payload);
    fix(&mut packet, 0);
    packet
}

/// An inner packet that says which one it is, `len` bytes of payload, at least 24.
pub(crate) fn inner(source: &str, destination: &str, number: u64, len: usize) -> Vec<u8> {
    let mut payload = MARKER.to_vec();
    payload.extend(number.to_be_bytes());
    payload.extend((payload.len()..len).map(|at| at as u8));
    ip(source, destination, OPAQUE, &payload)
}

/// `packet`, which is IPv4, not to be fragmented.
pub(crate) fn unbreakable(mut packet: Vec<u8>) -> Vec<u8> {
    packet[6] |= 0x40;
    fix_checksum(&mut packet);
    packet
}

pub(crate) fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    let len = u16::try_from(8 + payload.len()).unwrap();
    for field in [source, destination, len, 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend(payload);
    datagram
}

/// Makes the IP header at `at` tell the length that follows it, and right its checksum. Leaves alone what is too short.
pub(crate) fn fix(bytes: &mut [u8], at: usize) {
    let packet = &mut bytes[at..];
    let Ok(len) = u16::try_from(packet.len()) else {
        return;
    };
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => {
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            fix_checksum(packet);
        }
        Some(6) if packet.len() >= 40 => {
            packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        }
        _ => {}
    }
}

/// Rights the checksum of the IPv4 header that begins `packet`.
pub(crate) fn fix_checksum(packet: &mut [u8]) {
    let header_len = (usize::from(packet[0] & 15) * 4).clamp(20, packet.len());
    packet[10..12].copy_from_slice(&[0, 0]);
    let sum = finish(add_bytes(0, &packet[..header_len]));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// As [`fix`] for a frame, and for the UDP header that follows a plain IP header.
pub(crate) fn fix_frame(frame: &mut [u8]) {
    let Some(first) = frame.get(ETHER) else {
        return;
    };
    let l4 = ETHER + if first >> 4 == 4 { 20 } else { 40 };
    let is_udp = frame.get(if first >> 4 == 4 { 23 } else { 20 }) == Some(&UDP);
    if is_udp && frame.len() >= l4 + 8 {
        let len = u16::try_from(frame.len() - l4).unwrap();
        frame[l4 + 4..l4 + 6].copy_from_slice(&len.to_be_bytes());
    }
    fix(frame, ETHER);
}

/// What `inner` looks like after `hops` routers.
pub(crate) fn forwarded(inner: &[u8], hops: u8) -> Vec<u8> {
    let mut packet = inner.to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] -= hops;
        fix_checksum(&mut packet);
    } else {
        packet[7] -= hops;
    }
    packet
}

/// `inner` with ESP padding, pad length and next header behind it.
pub(crate) fn with_trailer(inner: &[u8], next_header: u8) -> Vec<u8> {
    let mut text = inner.to_vec();
    let pad = (4 - (text.len() + 2) % 4) % 4;
    text.extend((1..=pad).map(|value| value as u8));
    text.extend([pad as u8, next_header]);
    text
}

/// Puts `extension` between the fixed header and the payload of the packet in `frame`, IPv4 or IPv6, and makes lengths,
/// header length and checksum right. The first byte of an IPv6 extension becomes the next header that was there.
pub(crate) fn insert(frame: &[u8], kind: u8, extension: &[u8]) -> Vec<u8> {
    let mut out = frame.to_vec();
    if frame[ETHER] >> 4 == 4 {
        out.splice(ETHER + 20..ETHER + 20, extension.iter().copied());
        out[ETHER] += u8::try_from(extension.len() / 4).unwrap();
    } else {
        let mut extension = extension.to_vec();
        if let Some(next) = extension.first_mut() {
            *next = out[ETHER + 6];
        }
        out[ETHER + 6] = kind;
        out.splice(ETHER + 40..ETHER + 40, extension);
    }
    fix(&mut out, ETHER);
    out
}
