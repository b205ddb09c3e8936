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
use crate::policy::compile::{Changes, Compiled, PortPolicy, Topology, Wanted};
use crate::policy::model::{Policy, Port, Side};
use crate::policy::next_hops::{Member, NextHops};
use crate::policy::routes::{Fib, RouteTarget};
use crate::policy::standing::Beside;
use crate::policy::tables::{PortTable, SaHop, Tables};

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
    /// What the policy came to.
    compiled: Arc<Compiled>,
    ports: Vec<PortPlan>,
    hops: NextHops,
    /// By `SaIndex`: the peer's outer address, where it is now.
    peers: Vec<Option<IpAddr>>,
    /// The same the other way round.
    by_peer: BTreeMap<IpAddr, BTreeSet<SaIndex>>,
    /// Where peers are that are not where the policy says.
    moved_to: BTreeMap<SaIndex, IpAddr>,
    /// Peers have been looked up since this was asked for.
    moved: bool,
}

struct PortPlan {
    index: PortIndex,
    side: Side,
    mac: [u8; 6],
    /// What the policy says.
    policy: Arc<PortPolicy>,
    fib: Fib,
    sa_hops: SaHops,
    /// Peers whose next hop has to be looked up again.
    stale: Stale,
    /// SAs of which the same is true.
    stale_slots: BTreeSet<SaIndex>,
}

#[derive(PartialEq, Eq, Debug)]
enum Stale {
    Some(BTreeSet<IpAddr>),
    All,
}

/// By `SaIndex`: the next hop towards the SA's peer. Workers have one copy; the other is brought up to date and takes its place, so
/// that a change costs what is in it and not as much as there are SAs.
#[derive(Default)]
struct SaHops {
    current: Arc<[SaHop]>,
    /// Workers may have it still: then another copy is made.
    other: Arc<[SaHop]>,
    /// Where the other is not as the current one.
    differing: Vec<SaIndex>,
}

impl SaHops {
    fn get(&self, slot: SaIndex) -> SaHop {
        let hop = self.current.get(slot.index()).copied();
        hop.unwrap_or(SaHop::NO_ROUTE)
    }

    /// Takes in what is different.
    fn set(&mut self, mut changes: Vec<(SaIndex, SaHop)>) {
        changes.retain(|(slot, hop)| self.get(*slot) != *hop);
        let Some(last) = changes.iter().map(|(slot, _)| slot.index()).max() else {
            return;
        };
        let len = self.current.len();
        let wanted = len.max((last + 1).next_power_of_two());
        let put = |hops: &mut [SaHop]| {
            for (slot, hop) in &changes {
                if let Some(place) = hops.get_mut(slot.index()) {
                    *place = *hop;
                }
            }
        };
        match Arc::get_mut(&mut self.other) {
            Some(other) if other.len() == wanted => {
                for slot in &self.differing {
                    if let Some(place) = other.get_mut(slot.index()) {
                        *place = self.current[slot.index()];
                    }
                }
                put(other);
                std::mem::swap(&mut self.current, &mut self.other);
            }
            _ => {
                let mut hops = self.current.to_vec();
                hops.resize(wanted, SaHop::NO_ROUTE);
                let grown = (wanted != len).then(|| Arc::from(&hops[..]));
                put(&mut hops);
                let before = std::mem::replace(&mut self.current, hops.into());
                self.other = grown.unwrap_or(before);
            }
        }
        self.differing = changes.into_iter().map(|(slot, _)| slot).collect();
    }
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
            policy: Arc::default(),
            fib: Fib::new(),
            sa_hops: SaHops::default(),
            stale: Stale::All,
            stale_slots: BTreeSet::new(),
        };
        let mut plan = Self {
            compiled: Arc::default(),
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
        };
        let compiled = Compiled::new(policy, &Beside::default(), topology);
        let changes = compiled.changes_from(&plan.compiled);
        drop(plan.adopt(Arc::new(compiled), &changes, &[]));
        plan
    }

    /// What the policy that it goes by came to.
    pub fn compiled(&self) -> &Arc<Compiled> {
        &self.compiled
    }

    /// Goes by another policy for the same ports from now on, which came to `compiled`, with these changes from what the one before
    /// came to. What was `learned`, by port, stays, and so do peers that have moved. Returns what it went by before, for others to
    /// free: that takes a while.
    pub fn adopt(
        &mut self,
        compiled: Arc<Compiled>,
        changes: &Changes,
        learned: &[Learned],
    ) -> Arc<Compiled> {
        for (slot, peer) in &changes.peers {
            self.moved_to.remove(slot);
            self.set_peer(*slot, *peer);
        }
        let nothing = (Vec::new(), Vec::new());
        let nothing_learned = Learned::default();
        for own in &mut self.ports {
            let at = own.index.index();
            if let Some(policy) = compiled.ports.get(at) {
                own.policy = Arc::clone(policy);
            }
            own.stale_slots
                .extend(changes.peers.iter().map(|(slot, _)| *slot));
            let (stations, routes) = changes.ports.get(at).unwrap_or(&nothing);
            let learned = learned.get(at).unwrap_or(&nothing_learned);
            for address in stations {
                own.set_station(*address, learned, &mut self.hops);
            }
            for to in routes {
                own.set_route(to, learned, &mut self.hops, &self.by_peer);
            }
        }
        std::mem::replace(&mut self.compiled, compiled)
    }

    /// Notes where the peer of the SA in `slot` is.
    fn set_peer(&mut self, slot: SaIndex, peer: Option<IpAddr>) {
        if self.peers.len() <= slot.index() {
            self.peers.resize(slot.index() + 1, None);
        }
        let before = std::mem::replace(&mut self.peers[slot.index()], peer);
        if let Some(before) = before
            && let Some(slots) = self.by_peer.get_mut(&before)
        {
            slots.remove(&slot);
            if slots.is_empty() {
                self.by_peer.remove(&before);
            }
        }
        if let Some(peer) = peer {
            self.by_peer.entry(peer).or_default().insert(slot);
        }
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
            self.moved |= port.look_up_peers(&self.hops, &self.peers, &self.by_peer);
            PortTable {
                side: port.side,
                mac: port.mac,
                local: Arc::clone(&port.policy.local),
                routes: port.fib.routes(),
                sa_hops: Arc::clone(&port.sa_hops.current),
            }
        });
        Tables {
            ports: ports.collect(),
            spd: Arc::clone(&self.compiled.spd),
            spis: Arc::clone(&self.compiled.spis),
            next_hops: published.hops,
            groups: published.groups,
            admin_prohibited: self.compiled.admin_prohibited,
        }
    }

    /// Notes that the peer of the SA in `slot` is at `address` now. Tables that are compiled from then on lead there.
    pub fn move_peer(&mut self, slot: SaIndex, address: IpAddr) {
        if self.peer(slot).is_none() {
            return;
        }
        self.set_peer(slot, Some(address));
        self.moved_to.insert(slot, address);
        for port in &mut self.ports {
            port.stale_slots.insert(slot);
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
        port.into_iter().flat_map(|port| &port.policy.neighbours)
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
        self.needed_for(self.by_peer.keys().copied())
    }

    /// Those of them that are needed for some of the peers.
    pub fn needed_for(&self, peers: impl Iterator<Item = IpAddr>) -> BTreeSet<(PortIndex, IpAddr)> {
        let of_peer = |peer: IpAddr| {
            let unprotected = self.ports.iter().filter(|port| port.is_unprotected());
            unprotected.flat_map(move |port| {
                let missing = port.missing(peer, &self.hops).into_iter();
                missing.map(|address| (port.index, address))
            })
        };
        peers.flat_map(of_peer).collect()
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
        let of_policy = self.policy.neighbours.get(&address);
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
        by_peer: &BTreeMap<IpAddr, BTreeSet<SaIndex>>,
    ) {
        let wanted = self
            .policy
            .routes
            .get(to)
            .cloned()
            .or_else(|| best(learned, *to));
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
        peers: &[Option<IpAddr>],
        by_peer: &BTreeMap<IpAddr, BTreeSet<SaIndex>>,
    ) -> bool {
        let stale = std::mem::replace(&mut self.stale, Stale::Some(BTreeSet::new()));
        let stale_slots = std::mem::take(&mut self.stale_slots);
        let is_nothing = stale_slots.is_empty() && stale == Stale::Some(BTreeSet::new());
        if !self.is_unprotected() || is_nothing {
            return false;
        }
        let stale: Vec<(&IpAddr, &BTreeSet<SaIndex>)> = match &stale {
            Stale::All => by_peer.iter().collect(),
            Stale::Some(some) => some
                .iter()
                .filter_map(|peer| by_peer.get_key_value(peer))
                .collect(),
        };
        let chosen = |hop: Result<NextHopIndex, DropReason>, slot: SaIndex| {
            let chosen = |hop| {
                let chosen = hops.choose(hop, mix(slot.0.into()));
                chosen.ok_or(DropReason::NoNeighbour)
            };
            SaHop::from(hop.and_then(chosen))
        };
        let mut found: Vec<(SaIndex, SaHop)> = Vec::new();
        for slot in stale_slots {
            let peer = peers.get(slot.index()).copied().flatten();
            let hop = peer.map_or(Err(DropReason::NoRoute), |peer| self.fib.lookup(peer));
            found.push((slot, chosen(hop, slot)));
        }
        for (peer, slots) in stale {
            let hop = self.fib.lookup(*peer);
            found.extend(slots.iter().map(|slot| (*slot, chosen(hop, *slot))));
        }
        self.sa_hops.set(found);
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
