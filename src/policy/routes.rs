//! Routes and neighbours of one port, kept up to date prefix by prefix: as the control side has them, and as workers look
//! them up.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::drop::DropReason;
use crate::ids::NextHopIndex;
use crate::policy::prefix_map::{CowMap, PrefixMap};
use crate::policy::trie::{Leaf, Trie};

/// Where a prefix leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RouteTarget {
    /// To the destination itself, on this port's link.
    OnLink,
    /// To a router, or one of several.
    Via(NextHopIndex),
}

impl RouteTarget {
    const ON_LINK: u32 = u32::MAX;

    fn to_number(self) -> u32 {
        match self {
            Self::OnLink => Self::ON_LINK,
            Self::Via(NextHopIndex(hop)) => hop,
        }
    }

    #[inline]
    fn from_number(number: u32) -> Self {
        match number {
            Self::ON_LINK => Self::OnLink,
            hop => Self::Via(NextHopIndex(hop)),
        }
    }

    /// Stations come below, each for itself.
    fn leaf(self) -> Result<NextHopIndex, DropReason> {
        match self {
            Self::OnLink => Err(DropReason::NoNeighbour),
            Self::Via(hop) => Ok(hop),
        }
    }
}

/// Routes and neighbours of one port for lookup. Immutable once published; a clone shares all that does not change after.
#[derive(Clone)]
pub struct Routes {
    v4: Trie,
    /// Longest prefix first, one hash table for each length in use.
    v6: PrefixMap<u128>,
    /// Neighbours, which count where the longest prefix is on the link.
    v6_stations: CowMap<u128>,
}

impl Routes {
    fn new() -> Self {
        Self {
            v4: Trie::new(),
            v6: PrefixMap::default(),
            v6_stations: CowMap::default(),
        }
    }

    /// The next hop towards an IPv4 destination. It may be one that has to be chosen among several, or has no MAC address
    /// yet: [`Tables::mtu`](super::tables::Tables::mtu) is 0 then.
    ///
    /// # Errors
    /// `NoRoute` or `NoNeighbour`.
    #[inline]
    pub fn lookup_v4(&self, destination: u32) -> Result<NextHopIndex, DropReason> {
        self.v4.lookup(destination)
    }

    /// As [`Self::lookup_v4`], of IPv6.
    ///
    /// # Errors
    /// `NoRoute` or `NoNeighbour`.
    #[inline]
    pub fn lookup_v6(&self, destination: u128) -> Result<NextHopIndex, DropReason> {
        let target = self.v6.lookup(destination).ok_or(DropReason::NoRoute)?;
        match RouteTarget::from_number(target) {
            RouteTarget::Via(hop) => Ok(hop),
            RouteTarget::OnLink => self
                .v6_stations
                .get(destination)
                .map(NextHopIndex)
                .ok_or(DropReason::NoNeighbour),
        }
    }

    /// As [`Self::lookup_v4`], of either family.
    ///
    /// # Errors
    /// `NoRoute` or `NoNeighbour`.
    pub fn lookup(&self, destination: IpAddr) -> Result<NextHopIndex, DropReason> {
        match destination {
            IpAddr::V4(address) => self.lookup_v4(address.to_bits()),
            IpAddr::V6(address) => self.lookup_v6(address.to_bits()),
        }
    }
}

/// Routes and stations of one port as the control side keeps them.
pub(super) struct Fib {
    routes: Routes,
    /// The prefixes of `routes.v4`.
    v4: PrefixMap<u32>,
    /// Stations on the link whose MAC address is known.
    stations: BTreeMap<IpAddr, NextHopIndex>,
}

/// Length of a station among prefixes of up to 32 bits: it comes before a route to it that is on the link, and is left out
/// where the longest route to it is not.
const STATION: u8 = 33;

impl Fib {
    pub(super) fn new() -> Self {
        Self {
            routes: Routes::new(),
            v4: PrefixMap::default(),
            stations: BTreeMap::new(),
        }
    }

    /// As they are now, for workers.
    pub(super) fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// Where the longest prefix around `destination` leads.
    pub(super) fn target(&self, destination: IpAddr) -> Option<RouteTarget> {
        let number = match destination {
            IpAddr::V4(address) => self.v4.lookup(address.to_bits()),
            IpAddr::V6(address) => self.routes.v6.lookup(address.to_bits()),
        };
        number.map(RouteTarget::from_number)
    }

    /// As [`Routes::lookup`].
    pub(super) fn lookup(&self, destination: IpAddr) -> Result<NextHopIndex, DropReason> {
        self.routes.lookup(destination)
    }

    /// Whether the station's MAC address is known.
    pub(super) fn has_station(&self, address: IpAddr) -> bool {
        self.stations.contains_key(&address)
    }

    /// Has a prefix lead to `target`, or takes it out. Returns where it led.
    pub(super) fn set_route(
        &mut self,
        to: &IpNet,
        target: Option<RouteTarget>,
    ) -> Option<RouteTarget> {
        let len = to.prefix_len();
        let old = match to {
            IpNet::V4(net) => {
                let prefix = net.network().to_bits();
                self.set_route_v4(prefix, len, target)
            }
            IpNet::V6(net) => {
                let prefix = net.network().to_bits();
                match target {
                    Some(target) => self.routes.v6.insert(prefix, len, target.to_number()),
                    None => self.routes.v6.remove(prefix, len),
                }
            }
        };
        old.map(RouteTarget::from_number)
    }

    fn set_route_v4(&mut self, prefix: u32, len: u8, target: Option<RouteTarget>) -> Option<u32> {
        let old = match target {
            Some(target) => {
                self.routes.v4.insert(prefix, len, target.leaf());
                self.v4.insert(prefix, len, target.to_number())
            }
            None => {
                let old = self.v4.remove(prefix, len);
                let cover = self.cover(prefix, len);
                self.routes.v4.remove(prefix, len, cover);
                old
            }
        };
        // Whether they are on the link may be another question now.
        let last = prefix | u32::MAX.checked_shr(len.into()).unwrap_or(0);
        let around = IpAddr::V4(prefix.into())..=IpAddr::V4(last.into());
        let stations = self.stations.range(around);
        let inside: Vec<_> = stations
            .map(|(address, hop)| (*address, Some(*hop)))
            .collect();
        for (address, hop) in inside {
            self.place_station(address, hop);
        }
        old
    }

    /// What the longest prefix of at most `most` bits says of a place.
    fn cover(&self, address: u32, most: u8) -> Leaf {
        match self.v4.lookup_up_to(address, most) {
            Some((len, number)) => Leaf::new(RouteTarget::from_number(number).leaf(), len),
            None => Leaf::NONE,
        }
    }

    /// Puts a station in, gives it another next hop, or takes it out. Returns the one it had.
    pub(super) fn set_station(
        &mut self,
        address: IpAddr,
        hop: Option<NextHopIndex>,
    ) -> Option<NextHopIndex> {
        let old = match hop {
            Some(hop) => self.stations.insert(address, hop),
            None => self.stations.remove(&address),
        };
        self.place_station(address, hop);
        old
    }

    fn place_station(&mut self, address: IpAddr, hop: Option<NextHopIndex>) {
        match address {
            IpAddr::V4(address) => {
                let bits = address.to_bits();
                let is_on_link = self.target(address.into()) == Some(RouteTarget::OnLink);
                match hop.filter(|_| is_on_link) {
                    Some(hop) => self.routes.v4.insert(bits, STATION, Ok(hop)),
                    None => {
                        let cover = self.cover(bits, 32);
                        self.routes.v4.remove(bits, STATION, cover);
                    }
                }
            }
            IpAddr::V6(address) => {
                let stations = &mut self.routes.v6_stations;
                match hop {
                    Some(NextHopIndex(hop)) => stations.insert(address.to_bits(), hop),
                    None => stations.remove(address.to_bits()),
                };
            }
        }
    }

    #[cfg(test)]
    pub(super) fn blocks(&self) -> usize {
        self.routes.v4.blocks()
    }
}
