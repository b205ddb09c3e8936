//! Prefixes and the address arithmetic under them, the same for both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address as an integer: `u32` for IPv4, `u128` for IPv6.
pub trait Address: Copy + Eq + Ord + std::hash::Hash + std::ops::BitAnd<Output = Self> {
    /// The mask of a prefix of `len` bits; all ones where `len` is the family's length or more.
    fn mask(len: u8) -> Self;
}

impl Address for u32 {
    fn mask(len: u8) -> Self {
        Self::MAX
            .checked_shr(Self::from(len))
            .map_or(Self::MAX, |host| !host)
    }
}

impl Address for u128 {
    fn mask(len: u8) -> Self {
        Self::MAX
            .checked_shr(u32::from(len))
            .map_or(Self::MAX, |host| !host)
    }
}

/// The addresses of one packet, of the one family they have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressPair {
    /// IPv4 source and destination.
    V4(u32, u32),
    /// IPv6 source and destination.
    V6(u128, u128),
}

impl AddressPair {
    /// From two addresses; `None` where their families differ.
    pub fn new(source: IpAddr, destination: IpAddr) -> Option<Self> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Some(Self::V4(source.to_bits(), destination.to_bits()))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Some(Self::V6(source.to_bits(), destination.to_bits()))
            }
            _ => None,
        }
    }

    /// The destination.
    pub fn destination(self) -> IpAddr {
        match self {
            Self::V4(_, destination) => Ipv4Addr::from_bits(destination).into(),
            Self::V6(_, destination) => Ipv6Addr::from_bits(destination).into(),
        }
    }
}

/// Prefixes of both families, to ask whether an address is in one of them. Meant for the few networks of one tunnel.
#[derive(Clone, Default, Debug)]
pub struct PrefixSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

/// One IPv4 network.
#[derive(Clone, Copy, Debug)]
pub struct V4Net {
    network: u32,
    mask: u32,
}

impl V4Net {
    /// Holds no address.
    const NONE: Self = Self {
        network: 1,
        mask: 0,
    };

    /// Whether `address` is in it.
    #[inline]
    pub fn contains(self, address: u32) -> bool {
        address & self.mask == self.network
    }
}

impl PrefixSet {
    /// The first IPv4 network of the set, or one that holds nothing.
    pub fn first_v4(&self) -> V4Net {
        self.v4
            .first()
            .map_or(V4Net::NONE, |&(network, mask)| V4Net { network, mask })
    }

    /// The set of `networks`.
    pub fn new(networks: &[IpNet]) -> Self {
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for network in networks {
            match network {
                IpNet::V4(net) => {
                    let mask = u32::mask(net.prefix_len());
                    v4.push((net.network().to_bits() & mask, mask));
                }
                IpNet::V6(net) => {
                    let mask = u128::mask(net.prefix_len());
                    v6.push((net.network().to_bits() & mask, mask));
                }
            }
        }
        Self {
            v4: v4.into(),
            v6: v6.into(),
        }
    }

    /// Whether `address` is in one of the prefixes.
    #[inline]
    pub fn contains_v4(&self, address: u32) -> bool {
        self.v4
            .iter()
            .any(|(network, mask)| address & mask == *network)
    }

    /// Whether `address` is in one of the prefixes.
    #[inline]
    pub fn contains_v6(&self, address: u128) -> bool {
        self.v6
            .iter()
            .any(|(network, mask)| address & mask == *network)
    }
}

/// What an SA may carry, seen from this side: inner packets come from `remote` and go to `local` (RFC 4301 section 5.2).
#[derive(Clone, Default, Debug)]
pub struct Selectors {
    /// Networks on this side.
    pub local: PrefixSet,
    /// Networks behind the peer.
    pub remote: PrefixSet,
}

impl Selectors {
    /// Whether an opened packet with these addresses fits.
    #[inline]
    pub fn admit(&self, inner: AddressPair) -> bool {
        match inner {
            AddressPair::V4(source, destination) => {
                self.remote.contains_v4(source) && self.local.contains_v4(destination)
            }
            AddressPair::V6(source, destination) => {
                self.remote.contains_v6(source) && self.local.contains_v6(destination)
            }
        }
    }
}

/// Reads an IPv4 address in wire order.
#[inline]
pub fn v4(bytes: [u8; 4]) -> u32 {
    Ipv4Addr::from(bytes).to_bits()
}

/// Reads an IPv6 address in wire order.
#[inline]
pub fn v6(bytes: [u8; 16]) -> u128 {
    Ipv6Addr::from(bytes).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_reach_from_nothing_to_everything() {
        assert_eq!(
            (u32::mask(0), u32::mask(8), u32::mask(32)),
            (0, 0xff00_0000, u32::MAX)
        );
        assert_eq!((u128::mask(0), u128::mask(128)), (0, u128::MAX));
    }

    #[test]
    fn selectors_admit_from_remote_to_local_only() {
        let nets = |text: &str| vec![text.parse().expect("prefix")];
        let selectors = Selectors {
            local: PrefixSet::new(&nets("10.1.0.0/16")),
            remote: PrefixSet::new(&nets("10.2.0.0/16")),
        };
        let pair = |s: &str, d: &str| {
            AddressPair::new(s.parse().expect("ip"), d.parse().expect("ip")).expect("one family")
        };
        assert!(selectors.admit(pair("10.2.0.1", "10.1.0.1")));
        assert!(!selectors.admit(pair("10.1.0.1", "10.2.0.1")));
        assert!(!selectors.admit(pair("10.3.0.1", "10.1.0.1")));
        assert!(!selectors.admit(pair("fd00::1", "fd00::2")));
    }
}
