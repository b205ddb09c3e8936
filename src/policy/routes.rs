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
    /// To a router whose MAC address is not known; which one, [`Routes::missing`] says.
    Unresolved,
}

/// Routes and neighbours of one port.
#[derive(Default)]
pub struct Routes {
    v4: Table<u32>,
    v6: Table<u128>,
    /// What `v4` came to when [`Self::compile`] was called.
    v4_trie: Option<Trie>,
}

/// IPv4 destinations to next hops, two levels deep or three: an array by the high 16 bits, and where prefixes are longer
/// than that, arrays of 256 by the next 8 and the last 8. One to three loads, whatever the number of routes.
struct Trie {
    top: Box<[Leaf]>,
    blocks: Vec<[Leaf; 256]>,
}

/// A next hop, why there is none, or where the destinations below are told apart.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Leaf(u32);

impl Leaf {
    /// Set where the rest is the number of a block.
    const BLOCK: u32 = 1 << 31;
    const NO_ROUTE: Self = Self(Self::BLOCK - 1);
    const NO_NEIGHBOUR: Self = Self(Self::BLOCK - 2);

    fn new(target: Result<NextHopIndex, DropReason>) -> Self {
        match target {
            // More next hops than there is memory for.
            Ok(NextHopIndex(hop)) => Self(hop.min(Self::NO_NEIGHBOUR.0)),
            Err(DropReason::NoNeighbour) => Self::NO_NEIGHBOUR,
            Err(_) => Self::NO_ROUTE,
        }
    }

    #[inline]
    fn block(self) -> Option<usize> {
        (self.0 & Self::BLOCK != 0).then_some((self.0 & !Self::BLOCK) as usize)
    }

    #[inline]
    fn target(self) -> Result<NextHopIndex, DropReason> {
        match self {
            Self::NO_ROUTE => Err(DropReason::NoRoute),
            Self::NO_NEIGHBOUR => Err(DropReason::NoNeighbour),
            Self(hop) => Ok(NextHopIndex(hop)),
        }
    }
}

impl Trie {
    fn new(table: &Table<u32>) -> Self {
        let mut trie = Self {
            top: vec![Leaf::NO_ROUTE; 1 << 16].into(),
            blocks: Vec::new(),
        };
        // Shortest first, so that a longer one overwrites what it is taken out of.
        for (len, _, prefixes) in table.lengths.iter().rev() {
            for (prefix, target) in prefixes {
                let target = match target {
                    RouteTarget::Via(hop) => Ok(*hop),
                    // Neighbours come below, each for itself.
                    RouteTarget::OnLink | RouteTarget::Unresolved => Err(DropReason::NoNeighbour),
                };
                trie.fill(*prefix, *len, Leaf::new(target));
            }
        }
        for address in table.neighbours.keys() {
            trie.fill(*address, 32, Leaf::new(table.lookup(*address)));
        }
        trie
    }

    fn fill(&mut self, prefix: u32, len: u8, leaf: Leaf) {
        let [a, b, c, d] = prefix.to_be_bytes();
        let top = usize::from(u16::from_be_bytes([a, b]));
        if len <= 16 {
            self.top[top..][..1 << (16 - len)].fill(leaf);
            return;
        }
        let block = block_of(&mut self.top[top], &mut self.blocks);
        if len <= 24 {
            self.blocks[block][usize::from(c)..][..1 << (24 - len)].fill(leaf);
            return;
        }
        let mut below = self.blocks[block][usize::from(c)];
        let last = block_of(&mut below, &mut self.blocks);
        self.blocks[block][usize::from(c)] = below;
        self.blocks[last][usize::from(d)..][..1 << (32 - len)].fill(leaf);
    }

    #[inline]
    fn lookup(&self, destination: u32) -> Result<NextHopIndex, DropReason> {
        let [a, b, c, d] = destination.to_be_bytes();
        let top = usize::from(u16::from_be_bytes([a, b]));
        let mut leaf = self.top.get(top).copied().unwrap_or(Leaf::NO_ROUTE);
        for byte in [c, d] {
            let Some(block) = leaf.block() else { break };
            let block = self.blocks.get(block).ok_or(DropReason::NoRoute)?;
            leaf = block
                .get(usize::from(byte))
                .copied()
                .unwrap_or(Leaf::NO_ROUTE);
        }
        leaf.target()
    }
}

/// The block that `leaf` leads to; where it leads to none, one all of whose places are what `leaf` was.
fn block_of(leaf: &mut Leaf, blocks: &mut Vec<[Leaf; 256]>) -> usize {
    leaf.block().unwrap_or_else(|| {
        let block = blocks.len();
        blocks.push([*leaf; 256]);
        *leaf = Leaf(Leaf::BLOCK | u32::try_from(block).expect("fewer than 2^24 blocks"));
        block
    })
}

struct Table<A> {
    /// Longest prefix first: its mask, and the prefixes of that length.
    lengths: Vec<(u8, A, FxHashMap<A, RouteTarget>)>,
    neighbours: FxHashMap<A, NextHopIndex>,
    /// The routers of prefixes that are unresolved.
    routers: FxHashMap<(A, u8), IpAddr>,
}

impl<A> Default for Table<A> {
    fn default() -> Self {
        Self {
            lengths: Vec::new(),
            neighbours: FxHashMap::default(),
            routers: FxHashMap::default(),
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

impl<A: Address> Table<A> {
    /// The station whose MAC address is wanting for `destination`: it itself, or a router.
    fn missing(&self, destination: A) -> Option<Missing> {
        let (prefix, len, target) = self.lengths.iter().find_map(|(len, mask, prefixes)| {
            let prefix = destination & *mask;
            prefixes.get(&prefix).map(|target| (prefix, *len, *target))
        })?;
        match target {
            RouteTarget::OnLink if !self.neighbours.contains_key(&destination) => {
                Some(Missing::Destination)
            }
            RouteTarget::Unresolved => self
                .routers
                .get(&(prefix, len))
                .copied()
                .map(Missing::Router),
            _ => None,
        }
    }
}

enum Missing {
    Destination,
    Router(IpAddr),
}

impl Routes {
    /// Whether there is a neighbour of this address.
    pub fn has_neighbour(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.neighbours.contains_key(&address.to_bits()),
            IpAddr::V6(address) => self.v6.neighbours.contains_key(&address.to_bits()),
        }
    }

    /// Adds a route to what is behind the router `via`, whose neighbour should be there already. Of two to one prefix the
    /// first stands.
    pub fn add_route_via(&mut self, to: &IpNet, via: IpAddr) {
        self.add_by(to, via, self.lookup(via).ok());
    }

    /// As [`Self::add_route_via`], where the router is known to be on the link: it is a neighbour, or will be.
    pub fn add_route_by(&mut self, to: &IpNet, via: IpAddr) {
        let hop = match via {
            IpAddr::V4(via) => self.v4.neighbours.get(&via.to_bits()),
            IpAddr::V6(via) => self.v6.neighbours.get(&via.to_bits()),
        };
        self.add_by(to, via, hop.copied());
    }

    fn add_by(&mut self, to: &IpNet, via: IpAddr, hop: Option<NextHopIndex>) {
        let target = hop.map_or(RouteTarget::Unresolved, RouteTarget::Via);
        self.add_route(to, target);
        if target == RouteTarget::Unresolved {
            let len = to.prefix_len();
            match to.network() {
                IpAddr::V4(net) => self.v4.routers.entry((net.to_bits(), len)).or_insert(via),
                IpAddr::V6(net) => self.v6.routers.entry((net.to_bits(), len)).or_insert(via),
            };
        }
    }

    /// The station whose MAC address is wanting for `destination`: it itself, or the router before it. `None` where
    /// nothing is wanting or there is no route. Not for workers: it looks at every length of prefix.
    pub fn missing(&self, destination: IpAddr) -> Option<IpAddr> {
        let missing = match destination {
            IpAddr::V4(address) => self.v4.missing(address.to_bits())?,
            IpAddr::V6(address) => self.v6.missing(address.to_bits())?,
        };
        Some(match missing {
            Missing::Destination => destination,
            Missing::Router(router) => router,
        })
    }

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

    /// Prepares for lookups on the packet path, once all is added.
    pub fn compile(&mut self) {
        self.v4_trie = Some(Trie::new(&self.v4));
    }

    /// The next hop towards an IPv4 destination.
    ///
    /// # Errors
    /// `NoRoute` or `NoNeighbour`.
    #[inline]
    pub fn lookup_v4(&self, destination: u32) -> Result<NextHopIndex, DropReason> {
        match &self.v4_trie {
            Some(trie) => trie.lookup(destination),
            None => self.v4.lookup(destination),
        }
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
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn trie_agrees_with_the_tables(
            routes in prop::collection::vec((any::<u32>(), 0u8..=32, 0u8..3), 0..60),
            neighbours in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            asked in prop::collection::vec((any::<u32>(), any::<prop::sample::Index>(), 0u8..=32), 0..100),
        ) {
            let mut all = Routes::default();
            for (at, (bits, len, kind)) in (0u32..).zip(&routes) {
                let net = ipnet::Ipv4Net::new_assert((*bits).into(), *len).trunc();
                let target = match kind {
                    0 => RouteTarget::OnLink,
                    1 => RouteTarget::Unresolved,
                    _ => RouteTarget::Via(NextHopIndex(at)),
                };
                all.add_route(&net.into(), target);
            }
            let near = |index: &prop::sample::Index, bits: u32, len: u8| {
                if routes.is_empty() { return bits }
                let mask = u32::mask(len);
                index.get(&routes).0 & mask | bits & !mask
            };
            for index in &neighbours {
                let address = near(index, 0x0102_0304, 28);
                all.add_neighbour(IpAddr::V4(address.into()), NextHopIndex(1000));
            }
            let trie = Trie::new(&all.v4);
            for (bits, index, len) in &asked {
                let address = near(index, *bits, *len);
                prop_assert_eq!(trie.lookup(address), all.v4.lookup(address));
            }
            for index in &neighbours {
                let address = near(index, 0x0102_0304, 28);
                prop_assert_eq!(trie.lookup(address), all.v4.lookup(address));
            }
        }
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
