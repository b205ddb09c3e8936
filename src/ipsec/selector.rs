//! Prefixes and the address arithmetic under them, the same for both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::bits::low_8;

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

    /// Of a packet that goes the other way.
    pub fn reversed(self) -> Self {
        match self {
            Self::V4(source, destination) => Self::V4(destination, source),
            Self::V6(source, destination) => Self::V6(destination, source),
        }
    }

    /// Whether a router may pass such a packet on: both ends are single stations, and not of one link or host alone (RFC 1812
    /// section 5.3.7, RFC 3927 section 7, RFC 4291 section 2.5).
    pub fn is_routable(self) -> bool {
        let v4 = |address: u32| {
            let [first, second, ..] = address.to_be_bytes();
            !matches!((first, second), (0 | 127 | 224.., _) | (169, 254))
        };
        let v6 = |address: u128| {
            let [first, second, ..] = address.to_be_bytes();
            // The unspecified address and loopback, and IPv4 written as IPv6.
            let is_of_host = matches!(address >> 32, 0 | 0xffff);
            !is_of_host && first != 0xff && (first, second & 0xc0) != (0xfe, 0x80)
        };
        match self {
            Self::V4(source, destination) => v4(source) && v4(destination),
            Self::V6(source, destination) => v6(source) && v6(destination),
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

/// One IPv4 network, in five bytes where it is taken apart.
#[derive(Clone, Copy, Debug)]
pub struct V4Prefix {
    /// The bits that its addresses have in common, and nothing behind them.
    pub prefix: u32,
    /// How many bits follow.
    pub host_bits: u8,
}

impl V4Prefix {
    /// Holds no address: of what is before all bits, none have a one.
    const NONE: Self = Self {
        prefix: 1,
        host_bits: 32,
    };

    /// Whether `address` is in it.
    #[inline]
    pub fn contains(self, address: u32) -> bool {
        u64::from(address).wrapping_shr(u32::from(self.host_bits)) == u64::from(self.prefix)
    }
}

impl PrefixSet {
    /// The first IPv4 network of the set, or one that holds nothing.
    pub fn first_v4(&self) -> V4Prefix {
        self.v4.first().map_or(V4Prefix::NONE, |&(network, mask)| {
            let host_bits = mask.trailing_zeros();
            V4Prefix {
                prefix: network.checked_shr(host_bits).unwrap_or(0),
                host_bits: low_8(host_bits.into()),
            }
        })
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
    fn first_network_holds_what_the_set_does() {
        let addresses = [
            0,
            1,
            0x0a00_0000,
            0x0a01_0203,
            0x0a01_0204,
            0x7fff_ffff,
            1 << 31,
            u32::MAX,
        ];
        for len in 0..=32 {
            for network in addresses {
                let network = Ipv4Addr::from_bits(network);
                let network = ipnet::Ipv4Net::new(network, len).expect("a length");
                let set = PrefixSet::new(&[IpNet::V4(network)]);
                for address in addresses {
                    let holds = set.first_v4().contains(address);
                    assert_eq!(holds, network.contains(&Ipv4Addr::from_bits(address)));
                    assert_eq!(holds, set.contains_v4(address));
                }
            }
        }
        let none = PrefixSet::new(&["fd00::/8".parse().expect("a network")]);
        for address in addresses {
            assert!(!none.first_v4().contains(address));
        }
    }

    #[test]
    fn only_what_lies_between_two_stations_is_routable() {
        let is_routable = |source: &str, destination: &str| {
            let [source, destination] =
                [source, destination].map(|text| text.parse().expect("address"));
            let pair = AddressPair::new(source, destination).expect("one family");
            assert_eq!(pair.is_routable(), pair.reversed().is_routable());
            pair.is_routable()
        };
        for good in ["10.1.0.1", "223.255.255.255", "169.253.0.1", "1.0.0.0"] {
            assert!(is_routable(good, "192.0.2.1"), "{good}");
        }
        for bad in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.5",
            "239.1.1.1",
            "255.255.255.255",
        ] {
            assert!(!is_routable(bad, "192.0.2.1"), "{bad}");
        }
        for good in ["fd00::1", "2001:db8::1", "fec0::1", "64:ff9b::1"] {
            assert!(is_routable(good, "2001:db8::2"), "{good}");
        }
        for bad in [
            "::",
            "::1",
            "::ffff:10.1.0.1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "ff0e::1",
        ] {
            assert!(!is_routable(bad, "2001:db8::2"), "{bad}");
        }
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
