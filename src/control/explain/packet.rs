//! Packets in words, and packets made of words.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use zerocopy::IntoBytes;

use super::{Flow, Refused};
use crate::ipsec::traffic::{AnyTraffic, Direction, OPAQUE, Traffic, has_ports, has_type};
use crate::wire::ether::{self, EtherHeader};
use crate::wire::ip::{Ip, protocol};
use crate::wire::ipv4::{self, DONT_FRAGMENT, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::{tcp, udp};

/// The source of frames that are made here: locally administered, and nobody's.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 0];
/// TTL or hop limit of packets that are made here: what most systems begin with.
const TTL: u8 = 64;
/// Type of an echo request, of IPv4 and IPv6.
const ECHO: [u8; 2] = [8, 128];
/// Bytes of an ICMP echo request without data.
const ICMP_LEN: usize = 8;
/// A port that no service has, for the end of a flow that names none.
const SOME_PORT: u16 = 49_152;
/// The port of the other end then.
const SOME_SERVICE: u16 = 443;

/// What selectors see of the checked IP packet `data`, which goes in `direction`.
pub(super) fn traffic(data: &[u8], direction: Direction) -> Option<AnyTraffic> {
    match data.first()? >> 4 {
        4 => Traffic::of_v4(data, direction).map(AnyTraffic::V4),
        6 => Traffic::of_v6(data, direction).map(AnyTraffic::V6),
        _ => None,
    }
}

/// Local and remote address.
pub(super) fn ends(traffic: AnyTraffic) -> (IpAddr, IpAddr) {
    match traffic {
        AnyTraffic::V4(traffic) => (
            IpAddr::from(Ipv4Addr::from_bits(traffic.local)),
            Ipv4Addr::from_bits(traffic.remote).into(),
        ),
        AnyTraffic::V6(traffic) => (
            IpAddr::from(traffic.local.to_be_bytes()),
            traffic.remote.to_be_bytes().into(),
        ),
    }
}

/// The IP packet `data` in one line.
pub(super) fn describe(data: &[u8]) -> String {
    let Ok(packet) = Ip::parse(data) else {
        return format!("{} bytes that are no IP packet", data.len());
    };
    let Some(traffic) = traffic(data, Direction::Outbound) else {
        return format!("an IP packet of {} bytes, malformed", data.len());
    };
    let (from, to) = ends(traffic);
    let (protocol, from_port, to_port) = match traffic {
        AnyTraffic::V4(own) => (own.protocol, own.local_port, own.remote_port),
        AnyTraffic::V6(own) => (own.protocol, own.local_port, own.remote_port),
    };
    let end = |address: IpAddr, port: u32| match u16::try_from(port) {
        Ok(port) if has_ports(protocol) => SocketAddr::new(address, port).to_string(),
        _ => address.to_string(),
    };
    let mut text = name_of(protocol);
    if has_type(protocol) && from_port < OPAQUE {
        let [kind, code] = [from_port >> 8, from_port & 0xff];
        text += &format!(" type {kind} code {code}");
    }
    text += &format!(" {} -> {}", end(from, from_port), end(to, to_port));
    text += &format!(", {} bytes", packet.total_len());
    match packet {
        Ip::V4(header, _) => {
            text += &format!(", TTL {}", header.ttl);
            if header.dont_fragment() {
                text += ", DF";
            }
            if header.is_fragment() {
                text += &format!(", a fragment from byte {}", header.fragment_offset());
            }
        }
        Ip::V6(header) => {
            text += &format!(", hop limit {}", header.hop_limit);
            if header.walk(data).is_ok_and(|walk| walk.fragment) {
                text += ", a fragment";
            }
        }
    }
    text
}

/// TTL or hop limit of the IP packet `data`.
pub(super) fn ttl(data: &[u8]) -> Option<u8> {
    match Ip::parse(data).ok()? {
        Ip::V4(header, _) => Some(header.ttl),
        Ip::V6(header) => Some(header.hop_limit),
    }
}

fn name_of(protocol: u8) -> String {
    match protocol {
        protocol::ICMP => "ICMP".into(),
        protocol::ICMPV6 => "ICMPv6".into(),
        protocol::TCP => "TCP".into(),
        protocol::UDP => "UDP".into(),
        protocol::ESP => "ESP".into(),
        protocol::SCTP => "SCTP".into(),
        number => format!("protocol {number}"),
    }
}

/// The IP packet `packet` in a frame for `mac`.
pub(super) fn in_frame(packet: &[u8], mac: [u8; 6]) -> Vec<u8> {
    let ether_type = match packet.first().map(|first| first >> 4) {
        Some(6) => ether::IPV6,
        _ => ether::IPV4,
    };
    let header = EtherHeader {
        destination: mac,
        source: SENDER,
        ether_type: ether_type.into(),
    };
    [header.as_bytes(), packet].concat()
}

/// An IP packet of `flow`: the first of a connection, where there are such, with nothing but zeros in it.
///
/// # Errors
/// Where what is named does not go together.
pub(super) fn make(flow: &Flow) -> Result<Vec<u8>, Refused> {
    let (from, to) = match flow.inbound {
        false => (flow.local, flow.remote),
        true => (flow.remote, flow.local),
    };
    let is_v4 = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(_), IpAddr::V6(_)) => false,
        _ => return Err(Refused::Families),
    };
    let protocol = protocol_of(flow, is_v4)?;
    let transport = transport(flow, protocol)?;
    let header_len = match is_v4 {
        true => ipv4::HEADER_LEN,
        false => ipv6::HEADER_LEN,
    };
    let least = header_len + transport.len();
    let len = flow.length.map_or(least, usize::from);
    if len < least {
        return Err(Refused::TooShort { len, least });
    }
    let mut packet = match (from, to) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header {
                version_ihl: 0x45,
                tos: 0,
                total_len: u16::try_from(len).unwrap_or(u16::MAX).into(),
                id: 0.into(),
                flags_fragment: if flow.dont_fragment { DONT_FRAGMENT } else { 0 }.into(),
                ttl: flow.ttl.unwrap_or(TTL),
                protocol,
                checksum: 0.into(),
                source: source.octets(),
                destination: destination.octets(),
            };
            header.fill_checksum();
            header.as_bytes().to_vec()
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V6(address) => address.octets(),
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            };
            let header = Ipv6Header {
                version_class_flow: [0x60, 0, 0, 0],
                payload_len: u16::try_from(len - header_len).unwrap_or(u16::MAX).into(),
                next_header: protocol,
                hop_limit: flow.ttl.unwrap_or(TTL),
                source: octets(source),
                destination: octets(destination),
            };
            header.as_bytes().to_vec()
        }
    };
    packet.extend(transport);
    packet.resize(len, 0);
    Ok(packet)
}

/// The protocol that is named or meant.
fn protocol_of(flow: &Flow, is_v4: bool) -> Result<u8, Refused> {
    let icmp = if is_v4 {
        protocol::ICMP
    } else {
        protocol::ICMPV6
    };
    let names_ports = flow.local_port.is_some() || flow.remote_port.is_some();
    let names_type = flow.icmp_type.is_some() || flow.icmp_code.is_some();
    let protocol = match flow.protocol {
        // Whoever asks for either means the one that there is.
        Some(number) if has_type(number) => icmp,
        Some(number) => number,
        None if names_ports => protocol::TCP,
        None => icmp,
    };
    if names_ports && !has_ports(protocol) {
        return Err(Refused::NoPorts(name_of(protocol)));
    }
    if names_type && !has_type(protocol) {
        return Err(Refused::NoTypes(name_of(protocol)));
    }
    if flow.icmp_code.is_some() && flow.icmp_type.is_none() {
        return Err(Refused::CodeWithoutType);
    }
    if flow.dont_fragment && !is_v4 {
        return Err(Refused::DontFragmentV6);
    }
    Ok(protocol)
}

/// The transport header.
fn transport(flow: &Flow, protocol: u8) -> Result<Vec<u8>, Refused> {
    let (near, far) = (
        flow.local_port.unwrap_or(if flow.inbound {
            SOME_SERVICE
        } else {
            SOME_PORT
        }),
        flow.remote_port.unwrap_or(if flow.inbound {
            SOME_PORT
        } else {
            SOME_SERVICE
        }),
    );
    let (from, to) = if flow.inbound {
        (far, near)
    } else {
        (near, far)
    };
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    Ok(match protocol {
        protocol::TCP => {
            let mut header = ports;
            header.resize(tcp::HEADER_LEN, 0);
            // Five words, SYN.
            (header[12], header[13]) = (5 << 4, 2);
            header
        }
        protocol::UDP => {
            let header_len = udp::HEADER_LEN;
            let ip_len = if flow.local.is_ipv4() {
                ipv4::HEADER_LEN
            } else {
                ipv6::HEADER_LEN
            };
            let len = flow
                .length
                .map_or(header_len, |len| usize::from(len).saturating_sub(ip_len));
            let mut header = ports;
            header.extend(u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
            header.resize(header_len, 0);
            header
        }
        number if has_ports(number) => {
            let mut header = ports;
            header.resize(12, 0);
            header
        }
        number if has_type(number) => {
            let [v4, v6] = ECHO;
            let echo = if number == protocol::ICMP { v4 } else { v6 };
            let mut header = vec![0; ICMP_LEN];
            header[0] = flow.icmp_type.unwrap_or(echo);
            header[1] = flow.icmp_code.unwrap_or(0);
            header
        }
        _ => Vec::new(),
    })
}
