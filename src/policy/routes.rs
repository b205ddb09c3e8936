//! Routes and neighbours of one port, compiled for lookup: longest prefix first, one hash table for each length in use.

use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use crate::drop::DropReason;
use crate::ids::NextHopIndex;
use crate::ipsec::selector::Address;

/// Where a prefix leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteTarget {
    /// To the destination itself, on this port's link.
    OnLink,
    /// To a router.
    Via(NextHopIndex),
    /// To a router whose MAC address is not known.
    Unresolved,
}

/// Routes and neighbours of one port.
#[derive(Default)]
pub struct Routes {
    v4: Table<u32>,
    v6: Table<u128>,
}

struct Table<A> {
    /// Longest prefix first: its mask, and the prefixes of that length.
    lengths: Vec<(u8, A, FxHashMap<A, RouteTarget>)>,
    neighbours: FxHashMap<A, NextHopIndex>,
}

impl<A> Default for Table<A> {
    fn default() -> Self {
        Self {
            lengths: Vec::new(),
            neighbours: FxHashMap::default(),
        }
    }
}

impl<A: Address> Table<A> {
    fn add(&mut self, prefix: A, len: u8, target: RouteTarget) {
        let mask = A::mask(len);
        let at = self.lengths.partition_point(|(other, ..)| *other > len);
        if self.lengths.get(at).is_none_or(|(other, ..)| *other != len) {
            self.lengths.insert(at, (len, mask, FxHashMap::default()));
        }
        if let Some((.., prefixes)) = self.lengths.get_mut(at) {
            prefixes.entry(prefix & mask).or_insert(target);
        }
    }

    #[inline]
    fn lookup(&self, destination: A) -> Result<NextHopIndex, DropReason> {
        let target = self
            .lengths
            .iter()
            .find_map(|(_, mask, prefixes)| prefixes.get(&(destination & *mask)).copied())
            .ok_or(DropReason::NoRoute)?;
        match target {
            RouteTarget::Via(hop) => Ok(hop),
            RouteTarget::OnLink => self
                .neighbours
                .get(&destination)
                .copied()
                .ok_or(DropReason::NoNeighbour),
            RouteTarget::Unresolved => Err(DropReason::NoNeighbour),
        }
    }
}

impl Routes {
    /// Adds a neighbour on this port's link.
    pub fn add_neighbour(&mut self, address: IpAddr, hop: NextHopIndex) {
        match address {
            IpAddr::V4(address) => self.v4.neighbours.insert(address.to_bits(), hop),
            IpAddr::V6(address) => self.v6.neighbours.insert(address.to_bits(), hop),
        };
    }

    /// Adds a route; of two to one prefix the first stands.
    pub fn add_route(&mut self, to: &IpNet, target: RouteTarget) {
        match to {
            IpNet::V4(net) => self.v4.add(net.addr().to_bits(), net.prefix_len(), target),
            IpNet::V6(net) => self.v6.add(net.addr().to_bits(), net.prefix_len(), target),
        }
    }

    /// The next hop towards an IPv4 destination.
    ///
    /// # Errors
    /// `NoRoute` or `NoNeighbour`.
    #[inline]
    pub fn lookup_v4(&self, destination: u32) -> Result<NextHopIndex, DropReason> {
        self.v4.lookup(destination)
    }

    /// The next hop towards an IPv6 destination.
    ///
    /// # Errors
    /// `NoRoute` or `NoNeighbour`.
    #[inline]
    pub fn lookup_v6(&self, destination: u128) -> Result<NextHopIndex, DropReason> {
        self.v6.lookup(destination)
    }

    /// The next hop towards `destination`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_prefix_wins_and_unknown_neighbours_are_told_apart_from_missing_routes() {
        let net = |text: &str| text.parse::<IpNet>().expect("prefix");
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        let mut routes = Routes::default();
        routes.add_route(&net("10.0.0.0/8"), RouteTarget::Via(NextHopIndex(1)));
        routes.add_route(&net("10.1.0.0/16"), RouteTarget::OnLink);
        routes.add_route(&net("10.1.2.0/24"), RouteTarget::Unresolved);
        routes.add_neighbour(ip("10.1.0.9"), NextHopIndex(2));
        assert_eq!(routes.lookup(ip("10.9.9.9")), Ok(NextHopIndex(1)));
        assert_eq!(routes.lookup(ip("10.1.0.9")), Ok(NextHopIndex(2)));
        assert_eq!(routes.lookup(ip("10.1.0.8")), Err(DropReason::NoNeighbour));
        assert_eq!(routes.lookup(ip("10.1.2.9")), Err(DropReason::NoNeighbour));
        assert_eq!(routes.lookup(ip("192.0.2.1")), Err(DropReason::NoRoute));
        assert_eq!(routes.lookup(ip("fd00::1")), Err(DropReason::NoRoute));
    }

    #[test]
    fn default_route_catches_the_rest() {
        let mut routes = Routes::default();
        routes.add_route(
            &"::/0".parse().expect("prefix"),
            RouteTarget::Via(NextHopIndex(7)),
        );
        assert_eq!(
            routes.lookup("fd00::1".parse().expect("address")),
            Ok(NextHopIndex(7))
        );
    }
}
