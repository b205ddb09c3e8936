//! What IPv4 and IPv6 share: protocol numbers, and one summary of either header.

use std::net::IpAddr;

use crate::drop::DropReason;
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::Ipv6Header;

/// IP protocol numbers (IANA).
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in a tunnel.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// IPv6 in a tunnel.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ESP.
    pub const ESP: u8 = 50;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// No next header; in ESP, a dummy packet (RFC 4303 section 2.6).
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

/// A checked IP packet, of either family.
#[derive(Clone, Copy)]
pub enum Ip<'a> {
    /// IPv4: the fixed header, and the length of the whole header in bytes.
    V4(&'a Ipv4Header, usize),
    /// IPv6: the fixed header.
    V6(&'a Ipv6Header),
}

impl<'a> Ip<'a> {
    /// Views and checks the IP packet that begins `data`, by its own version field.
    ///
    /// # Errors
    /// As [`Ipv4Header::parse`] and [`Ipv6Header::parse`]; `BadVersion` where it is neither 4 nor 6.
    pub fn parse(data: &'a [u8]) -> Result<Self, DropReason> {
        match data.first().map(|byte| byte >> 4) {
            Some(4) => Ipv4Header::parse(data).map(|(header, len)| Self::V4(header, len)),
            Some(6) => Ipv6Header::parse(data).map(Self::V6),
            Some(_) => Err(DropReason::BadVersion),
            None => Err(DropReason::Runt),
        }
    }

    /// Length of the packet by its own account, in bytes; not more than the bytes at hand.
    pub fn total_len(&self) -> usize {
        match self {
            Self::V4(header, _) => usize::from(header.total_len.get()),
            Self::V6(header) => header.total_len(),
        }
    }

    /// TOS or traffic class.
    pub fn tos(&self) -> u8 {
        match self {
            Self::V4(header, _) => header.tos,
            Self::V6(header) => header.traffic_class(),
        }
    }

    /// Source address.
    pub fn source(&self) -> IpAddr {
        match self {
            Self::V4(header, _) => header.source_addr().into(),
            Self::V6(header) => header.source_addr().into(),
        }
    }

    /// Destination address.
    pub fn destination(&self) -> IpAddr {
        match self {
            Self::V4(header, _) => header.destination_addr().into(),
            Self::V6(header) => header.destination_addr().into(),
        }
    }
}
