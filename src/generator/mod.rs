//! Packets for demonstrations, tests and measurements: UDP over IPv4 or IPv6 in Ethernet, each with a number and a
//! payload that tells whether it arrived as it was sent. [`Flow`] is simple; [`stream`] is fast; the rest decides what to
//! send when, and what it means that it arrived.
#![forbid(unsafe_code)]

pub mod latency;
pub mod order;
pub mod pace;
pub mod search;
pub mod sizes;
pub mod stream;

use std::net::IpAddr;

use zerocopy::{FromBytes, IntoBytes};

use crate::bits::{low_8, low_16};
use crate::wire::ether::{self, EtherHeader};
use crate::wire::ip::protocol;
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::udp::{self, UdpHeader};

/// Bytes of the number at the head of each payload.
const NUMBER_LEN: usize = 8;
/// Hop limit of what is generated.
const HOP_LIMIT: u8 = 64;

/// One stream of UDP packets.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Destination MAC address: the gateway's.
    pub gateway_mac: [u8; 6],
    /// Source MAC address.
    pub source_mac: [u8; 6],
    /// Source address.
    pub source: IpAddr,
    /// Destination address, same family.
    pub destination: IpAddr,
    /// Source port, which tells flows apart.
    pub source_port: u16,
}

/// The MAC addresses of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Macs {
    /// Whom it goes to.
    pub destination: [u8; 6],
    /// Whom it comes from.
    pub source: [u8; 6],
}

impl Flow {
    /// The MAC addresses that it is sent with.
    pub const fn macs(&self) -> Macs {
        Macs {
            destination: self.gateway_mac,
            source: self.source_mac,
        }
    }

    /// Least length of an IP packet of this flow, in bytes.
    pub fn min_len(&self) -> usize {
        let ip = if self.source.is_ipv4() {
            ipv4::HEADER_LEN
        } else {
            ipv6::HEADER_LEN
        };
        ip + udp::HEADER_LEN + NUMBER_LEN
    }

    /// Writes the frame with `number` and an IP packet of `len` bytes (at least [`Self::min_len`]) into `frame`.
    pub fn write(&self, number: u64, len: usize, frame: &mut Vec<u8>) {
        let len = len.max(self.min_len());
        frame.clear();
        let ether_type = if self.source.is_ipv4() {
            ether::IPV4
        } else {
            ether::IPV6
        };
        let header = EtherHeader {
            destination: self.gateway_mac,
            source: self.source_mac,
            ether_type: ether_type.into(),
        };
        frame.extend_from_slice(header.as_bytes());
        let ip_len = self.write_ip(len, frame);
        let udp = UdpHeader {
            source: self.source_port.into(),
            // The discard service (RFC 863).
            destination: 9.into(),
            len: u16::try_from(len - ip_len).unwrap_or(u16::MAX).into(),
            checksum: 0.into(),
        };
        frame.extend_from_slice(udp.as_bytes());
        frame.extend_from_slice(&number.to_be_bytes());
        let rest = ether::HEADER_LEN + len - frame.len();
        frame.extend((0..rest).map(|at| pattern(number, at)));
    }

    fn write_ip(&self, len: usize, frame: &mut Vec<u8>) -> usize {
        let total = u16::try_from(len).unwrap_or(u16::MAX);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header {
                    version_ihl: 0x45,
                    tos: 0,
                    total_len: total.into(),
                    id: 0.into(),
                    flags_fragment: ipv4::DONT_FRAGMENT.into(),
                    ttl: HOP_LIMIT,
                    protocol: protocol::UDP,
                    checksum: 0.into(),
                    source: source.octets(),
                    destination: destination.octets(),
                };
                header.fill_checksum();
                frame.extend_from_slice(header.as_bytes());
                ipv4::HEADER_LEN
            }
            (source, destination) => {
                let header = Ipv6Header {
                    version_class_flow: [0x60, 0, 0, 0],
                    payload_len: total.saturating_sub(low_16(ipv6::HEADER_LEN as u64)).into(),
                    next_header: protocol::UDP,
                    hop_limit: HOP_LIMIT,
                    source: octets_v6(source),
                    destination: octets_v6(destination),
                };
                frame.extend_from_slice(header.as_bytes());
                ipv6::HEADER_LEN
            }
        }
    }
}

/// An address as IPv6 writes it.
const fn octets_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
    }
}

/// The number of a frame that a [`Flow`] wrote, if it arrived as it was sent but for MAC addresses and hop limit.
pub fn verify(frame: &[u8]) -> Option<u64> {
    let (_, packet) = EtherHeader::ref_from_prefix(frame).ok()?;
    let (offset, total) = match packet.first()? >> 4 {
        4 => Ipv4Header::parse(packet)
            .ok()
            .map(|(header, len)| (len, usize::from(header.total_len.get())))?,
        _ => Ipv6Header::parse(packet)
            .ok()
            .map(|header| (ipv6::HEADER_LEN, header.total_len()))?,
    };
    let datagram = packet.get(offset..total)?;
    let payload = datagram.get(udp::HEADER_LEN..)?;
    let (number, rest) = payload.split_first_chunk::<NUMBER_LEN>()?;
    let number = u64::from_be_bytes(*number);
    let intact = rest
        .iter()
        .enumerate()
        .all(|(at, byte)| *byte == pattern(number, at));
    intact.then_some(number)
}

/// A byte that depends on the packet and its place in it.
fn pattern(number: u64, at: usize) -> u8 {
    // Odd weights: a change of one byte of the number always changes the sum.
    let mixed = (1u8..)
        .step_by(2)
        .zip(number.to_be_bytes())
        .fold(0u8, |sum, (weight, byte)| {
            sum.wrapping_add(byte.wrapping_mul(weight))
        });
    mixed.wrapping_add(low_8(at.wrapping_mul(7) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source: &str, destination: &str) -> Flow {
        Flow {
            gateway_mac: [2; 6],
            source_mac: [4; 6],
            source: source.parse().expect("address"),
            destination: destination.parse().expect("address"),
            source_port: 1000,
        }
    }

    #[test]
    fn frames_have_the_length_asked_for_and_verify() {
        for flow in [flow("10.1.0.1", "10.2.0.1"), flow("fd00::1", "fd00::2")] {
            for len in [0, 64, 65, 576, 1420] {
                let mut frame = Vec::new();
                flow.write(77, len, &mut frame);
                assert_eq!(frame.len(), ether::HEADER_LEN + len.max(flow.min_len()));
                assert_eq!(verify(&frame), Some(77));
            }
        }
    }

    #[test]
    fn changed_byte_of_number_or_payload_is_noticed() {
        let mut frame = Vec::new();
        flow("10.1.0.1", "10.2.0.1").write(77, 100, &mut frame);
        for at in ether::HEADER_LEN + 28..frame.len() {
            frame[at] ^= 1;
            assert_eq!(verify(&frame), None, "byte {at}");
            frame[at] ^= 1;
        }
    }
}
