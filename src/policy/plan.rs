//! What tables are made of, kept while a gateway runs: the policy without its keys, and what the kernel has learned.
//!
//! Tables are published whole and share with those before whatever has not changed: what a new set costs is what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::drop::DropReason;
use crate::ids::{NextHopIndex, PortIndex, SaIndex};
use crate::ipsec::flow_hash::mix;
use crate::ipsec::sad::SpiIndex;
use crate::ipsec::spd::Spd;
use crate::policy::compile::{Compiled, Topology, Wanted};
use crate::policy::model::{Policy, Port, Side};
use crate::policy::next_hops::{Member, NextHops};
use crate::policy::routes::{Fib, RouteTarget};
use crate::policy::standing::Beside;
use crate::policy::tables::{LocalAddresses, PortTable, Tables};

/// What the kernel knows behind one port.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Learned {
    /// Stations on the link whose MAC address is known.
    pub neighbours: BTreeMap<IpAddr, [u8; 6]>,
    /// Where prefixes lead. Of several to one prefix those with the lowest metric count, all of them.
    pub routes: BTreeSet<LearnedRoute>,
}

/// A route of the kernel's by one next hop, in the order in which routes to one prefix count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LearnedRoute {
    /// Destination prefix.
    pub to: IpNet,
    /// The lower, the better.
    pub metric: u32,
    /// The router, which is a station on the link; `None` where the destinations are.
    pub via: Option<IpAddr>,
    /// Its share of the flows, beside others to the same prefix.
    pub weight: u16,
}

/// Something that is not as it was in what was learned behind a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Change {
    /// The MAC address of a station: known, another, or known no more.
    Station(IpAddr),
    /// Where a prefix leads.
    Route(IpNet),
}

impl Learned {
    /// Everything in it.
    pub fn all(&self) -> impl Iterator<Item = Change> {
        let stations = self.neighbours.keys().copied().map(Change::Station);
        stations.chain(self.routes.iter().map(|route| Change::Route(route.to)))
    }

    /// The routes to `to`, the best first.
    pub fn routes_to(&self, to: IpNet) -> impl Iterator<Item = &LearnedRoute> {
        let first = LearnedRoute {
            to,
            metric: 0,
            via: None,
            weight: 0,
        };
        self.routes
            .range(first..)
            .take_while(move |route| route.to == to)
    }
}

/// What tables are compiled from, and what they came to last.
pub struct Plan {
    spd: Arc<Spd>,
    spis: Arc<SpiIndex>,
    ports: Vec<PortPlan>,
    hops: NextHops,
    /// By `SaIndex`: the peer's outer address, where it is now.
    peers: Vec<Option<IpAddr>>,
    /// The same the other way round.
    by_peer: BTreeMap<IpAddr, Vec<SaIndex>>,
    /// Where peers are that are not where the policy says.
    moved_to: BTreeMap<SaIndex, IpAddr>,
    /// Peers have been looked up since this was asked for.
    moved: bool,
    admin_prohibited: bool,
}

struct PortPlan {
    index: PortIndex,
    side: Side,
    mac: [u8; 6],
    local: Arc<LocalAddresses>,
    /// The policy's neighbours.
    neighbours: BTreeMap<IpAddr, [u8; 6]>,
    /// What the policy says of prefixes.
    routes: BTreeMap<IpNet, Wanted>,
    fib: Fib,
    sa_hops: Arc<[Result<NextHopIndex, DropReason>]>,
    /// Peers whose next hop has to be looked up again.
    stale: Stale,
}

#[derive(PartialEq, Eq, Debug)]
enum Stale {
    Some(BTreeSet<IpAddr>),
    All,
}

impl Plan {
    /// The plan of `policy`, with nothing learned from the kernel.
    pub fn new(policy: &Policy, topology: &Topology) -> Self {
        let mac_of =
            |index: PortIndex| topology.macs.get(index.index()).map_or([0; 6], |mac| mac.0);
        let indices = || (0u16..).map(PortIndex).zip(&policy.ports);
        let port = |(index, port): (PortIndex, &Port)| PortPlan {
            index,
            side: port.side,
            mac: mac_of(index),
            local: Arc::default(),
            neighbours: BTreeMap::new(),
            routes: BTreeMap::new(),
            fib: Fib::new(),
            sa_hops: Arc::default(),
            stale: Stale::All,
        };
        let mut plan = Self {
            spd: Arc::default(),
            spis: Arc::default(),
            hops: NextHops::new(
                indices()
                    .map(|(index, port)| (mac_of(index), port.mtu))
                    .collect(),
            ),
            ports: indices().map(port).collect(),
            peers: Vec::new(),
            by_peer: BTreeMap::new(),
            moved_to: BTreeMap::new(),
            moved: false,
            admin_prohibited: false,
        };
        let compiled = Compiled::new(policy, &Beside::default(), topology);
        drop(plan.adopt(compiled, &[]));
        plan
    }

    /// Goes by another policy for the same ports from now on. What was `learned`, by port, stays, and so do peers that have moved.
    /// Returns what it went by before, for others to free: that takes a while.
    pub fn adopt(&mut self, mut compiled: Compiled, learned: &[Learned]) -> Compiled {
        std::mem::swap(&mut self.spd, &mut compiled.spd);
        std::mem::swap(&mut self.spis, &mut compiled.spis);
        self.admin_prohibited = compiled.admin_prohibited;
        std::mem::swap(&mut self.peers, &mut compiled.peers);
        std::mem::swap(&mut self.by_peer, &mut compiled.by_peer);
        let peers = &self.peers;
        self.moved_to
            .retain(|slot, _| peers.get(slot.index()).is_some_and(Option::is_some));
        for (slot, address) in self.moved_to.clone() {
            self.move_peer(slot, address);
        }
        let before = compiled.peers.iter().chain(std::iter::repeat(&None));
        let others = self
            .peers
            .iter()
            .zip(before)
            .filter(|(new, old)| new != old);
        let others: Vec<IpAddr> = others.filter_map(|(new, _)| *new).collect();
        let nothing = Learned::default();
        for (own, policy) in self.ports.iter_mut().zip(&mut compiled.ports) {
            if let Stale::Some(peers) = &mut own.stale {
                peers.extend(others.iter().copied());
            }
            std::mem::swap(&mut own.local, &mut policy.local);
            let stations = differing(&own.neighbours, &policy.neighbours);
            let routes = differing(&own.routes, &policy.routes);
            std::mem::swap(&mut own.neighbours, &mut policy.neighbours);
            std::mem::swap(&mut own.routes, &mut policy.routes);
            let learned = learned.get(own.index.index()).unwrap_or(&nothing);
            for address in stations {
                own.set_station(address, learned, &mut self.hops);
            }
            for to in routes {
                own.set_route(&to, learned, &mut self.hops, &self.by_peer);
            }
        }
        compiled
    }

    /// Takes in one thing that is not as it was in what was `learned` behind `port`. What the policy says wins.
    pub fn learn(&mut self, port: PortIndex, learned: &Learned, change: Change) {
        let Some(own) = self.ports.get_mut(port.index()) else {
            return;
        };
        match change {
            Change::Station(address) => own.set_station(address, learned, &mut self.hops),
            Change::Route(to) => {
                own.set_route(&to, learned, &mut self.hops, &self.by_peer);
            }
        }
    }

    /// Tables with all that was taken in.
    pub fn tables(&mut self) -> Tables {
        let published = self.hops.publish();
        let ports = self.ports.iter_mut().map(|port| {
            self.moved |= port.look_up_peers(&self.hops, self.peers.len(), &self.by_peer);
            PortTable {
                side: port.side,
                mac: port.mac,
                local: Arc::clone(&port.local),
                routes: port.fib.routes(),
                sa_hops: Arc::clone(&port.sa_hops),
            }
        });
        Tables {
            ports: ports.collect(),
            spd: Arc::clone(&self.spd),
            spis: Arc::clone(&self.spis),
            next_hops: published.hops,
            groups: published.groups,
            admin_prohibited: self.admin_prohibited,
        }
    }

    /// Notes that the peer of the SA in `slot` is at `address` now. Tables that are compiled from then on lead there.
    pub fn move_peer(&mut self, slot: SaIndex, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(slot.index()).and_then(Option::as_mut) else {
            return;
        };
        let before = std::mem::replace(peer, address);
        self.moved_to.insert(slot, address);
        if let Some(slots) = self.by_peer.get_mut(&before) {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                self.by_peer.remove(&before);
            }
        }
        self.by_peer.entry(address).or_default().push(slot);
        for port in &mut self.ports {
            if let Stale::Some(peers) = &mut port.stale {
                peers.insert(address);
            }
        }
    }

    /// Whether peers may have other next hops than when this was last asked.
    pub fn has_moved_peers(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// The outer address of the peer of the SAs in `slot`.
    pub fn peer(&self, slot: SaIndex) -> Option<IpAddr> {
        self.peers.get(slot.index()).copied().flatten()
    }

    /// The neighbours that the policy names on a port, by address.
    pub fn neighbours_of_policy(
        &self,
        port: PortIndex,
    ) -> impl Iterator<Item = (&IpAddr, &[u8; 6])> {
        let port = self.ports.get(port.index());
        port.into_iter().flat_map(|port| &port.neighbours)
    }

    /// The address of the next hop at `index` of the tables.
    pub fn next_hop_address(&self, index: NextHopIndex) -> Option<IpAddr> {
        self.hops.address(index).map(|(address, _)| address)
    }

    /// Whether packets for `destination` can leave by `port`, with all that was taken in.
    pub fn is_reachable(&self, port: PortIndex, destination: IpAddr) -> bool {
        let found = self
            .ports
            .get(port.index())
            .map(|port| port.fib.lookup(destination));
        found.is_some_and(|hop| hop.is_ok_and(|hop| self.hops.choose(hop, 0).is_some()))
    }

    /// The routers that share a prefix with others, and whose MAC address is not known: no packet asks for them while one
    /// of the others can be reached.
    pub fn left_out(&self) -> BTreeSet<(PortIndex, IpAddr)> {
        self.hops.left_out()
    }

    /// The stations that tunnels need and whose MAC address is not known.
    pub fn needed(&self) -> BTreeSet<(PortIndex, IpAddr)> {
        let unprotected = self.ports.iter().filter(|port| port.is_unprotected());
        unprotected
            .flat_map(|port| {
                let of_peer = |peer: &IpAddr| port.missing(*peer, &self.hops);
                let missing = self.by_peer.keys().flat_map(of_peer);
                missing.map(|address| (port.index, address))
            })
            .collect()
    }

    /// The stations behind `port` whose MAC address is wanting for `destination`: it itself, or the routers before it.
    /// None where nothing is wanting or there is no route.
    pub fn missing(&self, port: PortIndex, destination: IpAddr) -> Vec<IpAddr> {
        let port = self.ports.get(port.index());
        port.map_or_else(Vec::new, |port| port.missing(destination, &self.hops))
    }
}

impl PortPlan {
    fn is_unprotected(&self) -> bool {
        self.side == Side::Unprotected
    }

    fn mac_of(&self, address: IpAddr, learned: &Learned) -> Option<[u8; 6]> {
        let of_policy = self.neighbours.get(&address);
        of_policy
            .or_else(|| learned.neighbours.get(&address))
            .copied()
    }

    fn set_station(&mut self, address: IpAddr, learned: &Learned, hops: &mut NextHops) {
        let mac = self.mac_of(address, learned);
        let turned = hops.set_mac(self.index, address, mac);
        let is_there = self.fib.has_station(address);
        if mac.is_some() && !is_there {
            let hop = hops.station(self.index, address, mac);
            self.fib.set_station(address, Some(hop));
        }
        if mac.is_none()
            && let Some(hop) = self.fib.set_station(address, None)
        {
            hops.release(hop);
        }
        if turned || is_there != mac.is_some() {
            self.stale = Stale::All;
        }
    }

    fn set_route(
        &mut self,
        to: &IpNet,
        learned: &Learned,
        hops: &mut NextHops,
        by_peer: &BTreeMap<IpAddr, Vec<SaIndex>>,
    ) {
        let wanted = self.routes.get(to).cloned().or_else(|| best(learned, *to));
        let target = wanted.map(|wanted| self.target(wanted, learned, hops));
        if let Some(RouteTarget::Via(old)) = self.fib.set_route(to, target) {
            hops.release(old);
        }
        if let Stale::Some(peers) = &mut self.stale {
            let inside = by_peer.range(to.network()..=to.broadcast());
            peers.extend(inside.map(|(peer, _)| *peer));
        }
    }

    fn target(&self, wanted: Wanted, learned: &Learned, hops: &mut NextHops) -> RouteTarget {
        let Wanted::Via(routers) = wanted else {
            return RouteTarget::OnLink;
        };
        let mut members = routers.into_iter().map(|(router, weight)| Member {
            hop: hops.station(self.index, router, self.mac_of(router, learned)),
            weight,
        });
        RouteTarget::Via(match (members.next(), members.next()) {
            (Some(only), None) => only.hop,
            (first, second) => {
                let all: Vec<_> = first.into_iter().chain(second).chain(members).collect();
                hops.group(all)
            }
        })
    }

    /// The next hop towards each peer, chosen once where there are several, so that an SA's packets stay in order.
    /// Returns whether any was looked up.
    fn look_up_peers(
        &mut self,
        hops: &NextHops,
        slots: usize,
        by_peer: &BTreeMap<IpAddr, Vec<SaIndex>>,
    ) -> bool {
        let stale = std::mem::replace(&mut self.stale, Stale::Some(BTreeSet::new()));
        if !self.is_unprotected() || stale == Stale::Some(BTreeSet::new()) {
            return false;
        }
        let mut found = self.sa_hops.to_vec();
        found.resize(slots, Err(DropReason::NoRoute));
        let stale: Vec<(&IpAddr, &Vec<SaIndex>)> = match &stale {
            Stale::All => by_peer.iter().collect(),
            Stale::Some(some) => some
                .iter()
                .filter_map(|peer| by_peer.get_key_value(peer))
                .collect(),
        };
        for (peer, slots) in stale {
            let hop = self.fib.lookup(*peer);
            for slot in slots {
                let chosen = |hop| {
                    let chosen = hops.choose(hop, mix(slot.0.into()));
                    chosen.ok_or(DropReason::NoNeighbour)
                };
                if let Some(place) = found.get_mut(slot.index()) {
                    *place = hop.and_then(chosen);
                }
            }
        }
        if found[..] != self.sa_hops[..] {
            self.sa_hops = found.into();
        }
        true
    }

    fn missing(&self, destination: IpAddr, hops: &NextHops) -> Vec<IpAddr> {
        match self.fib.target(destination) {
            None => Vec::new(),
            Some(RouteTarget::OnLink) => {
                let is_known = self.fib.has_station(destination);
                if is_known {
                    Vec::new()
                } else {
                    vec![destination]
                }
            }
            Some(RouteTarget::Via(hop)) => {
                let routers = hops.members(hop).into_iter();
                let routers = routers.filter_map(|hop| hops.address(hop));
                let wanting: BTreeSet<_> = routers
                    .filter_map(|(address, is_known)| (!is_known).then_some(address))
                    .collect();
                wanting.into_iter().collect()
            }
        }
    }
}

/// What one of them has and the other not, or otherwise.
fn differing<K: Ord + Copy, V: PartialEq>(one: &BTreeMap<K, V>, other: &BTreeMap<K, V>) -> Vec<K> {
    let not_in = |map: &BTreeMap<K, V>, (key, value): (&K, &V)| map.get(key) != Some(value);
    let of_one = one.iter().filter(|entry| not_in(other, *entry));
    let of_other = other.iter().filter(|entry| !one.contains_key(entry.0));
    of_one.chain(of_other).map(|(key, _)| *key).collect()
}

/// Where the best of the kernel's routes to `to` lead.
fn best(learned: &Learned, to: IpNet) -> Option<Wanted> {
    let mut routes = learned.routes_to(to).peekable();
    let metric = routes.peek()?.metric;
    let mut routers: Vec<(IpAddr, u16)> = Vec::new();
    for route in routes.take_while(|route| route.metric == metric) {
        match route.via {
            // The kernel's routers are on the link, whatever routes there are.
            Some(via) if routers.iter().all(|(other, _)| *other != via) => {
                routers.push((via, route.weight));
            }
            Some(_) => {}
            None => return Some(Wanted::OnLink),
        }
    }
    Some(Wanted::Via(routers))
}

#[cfg(test)]
mod tests;
