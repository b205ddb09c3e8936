//! What tables are made of, kept while a gateway runs: the policy without its keys, and what the kernel has learned.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::ids::{NextHopIndex, PortIndex, SaIndex};
use crate::ipsec::sad::SpiIndex;
use crate::ipsec::spd::Spd;
use crate::policy::compile::{Topology, compile_spd, endpoint_sets, local_addresses};
use crate::policy::model::{Policy, Side};
use crate::policy::routes::{RouteTarget, Routes};
use crate::policy::tables::{LocalAddresses, NextHop, PortTable, Tables};

/// What the kernel knows behind one port.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Learned {
    /// Stations on the link whose MAC address is known.
    pub neighbours: BTreeMap<IpAddr, [u8; 6]>,
    /// Where prefixes lead. Of several to one prefix the first counts, which has the lowest metric.
    pub routes: BTreeSet<LearnedRoute>,
}

/// A route of the kernel's, in the order in which routes to one prefix count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LearnedRoute {
    /// Destination prefix.
    pub to: IpNet,
    /// The lower, the better.
    pub metric: u32,
    /// The router, which is a station on the link; `None` where the destinations are.
    pub via: Option<IpAddr>,
}

/// What tables are compiled from.
pub struct Plan {
    spd: Arc<Spd>,
    spis: Arc<SpiIndex>,
    ports: Vec<PortPlan>,
    /// By `SaIndex`: the peer's outer address, where it is now.
    peers: Vec<IpAddr>,
    admin_prohibited: bool,
}

struct PortPlan {
    side: Side,
    mac: [u8; 6],
    mtu: u16,
    local: Arc<LocalAddresses>,
    addresses: Vec<IpNet>,
    neighbours: Vec<(IpAddr, [u8; 6])>,
    routes: Vec<(IpNet, IpAddr)>,
}

impl Plan {
    /// The plan of `policy`.
    pub fn new(policy: &Policy, topology: &Topology) -> Self {
        let ports = (0u16..).zip(&policy.ports).map(|(at, port)| {
            let index = PortIndex(at);
            let neighbours = policy.neighbours.iter().filter(|hop| hop.port == index);
            let routes = policy.routes.iter().filter(|route| route.port == index);
            PortPlan {
                side: port.side,
                mac: topology.macs.get(index.index()).map_or([0; 6], |mac| mac.0),
                mtu: port.mtu,
                local: Arc::new(local_addresses(policy, topology, index)),
                addresses: port.addresses.clone(),
                neighbours: neighbours.map(|hop| (hop.address, hop.mac.0)).collect(),
                routes: routes.map(|route| (route.to, route.via)).collect(),
            }
        });
        Self {
            spd: Arc::new(compile_spd(policy)),
            spis: Arc::new(SpiIndex::new(
                endpoint_sets(policy).map(|(slot, .., set)| (set.inbound.spi, slot)),
            )),
            ports: ports.collect(),
            peers: endpoint_sets(policy).map(|(.., set)| set.remote).collect(),
            admin_prohibited: policy.gateway.admin_prohibited,
        }
    }

    /// The tables, with what the kernel has `learned` behind each port; ports beyond that have learned nothing. What the
    /// policy says wins.
    pub fn tables(&self, learned: &[Learned]) -> Tables {
        let nothing = Learned::default();
        let mut next_hops = Vec::new();
        let ports = (0u16..).zip(&self.ports).map(|(at, port)| {
            let learned = learned.get(usize::from(at)).unwrap_or(&nothing);
            let routes = port.routes(PortIndex(at), learned, &mut next_hops);
            PortTable {
                side: port.side,
                mac: port.mac,
                local: Arc::clone(&port.local),
                sa_hops: self.peers.iter().map(|peer| routes.lookup(*peer)).collect(),
                routes,
            }
        });
        Tables {
            ports: ports.collect(),
            spd: Arc::clone(&self.spd),
            spis: Arc::clone(&self.spis),
            next_hops: next_hops.into(),
            admin_prohibited: self.admin_prohibited,
        }
    }

    /// Notes that the peer of the SA in `slot` is at `address` now. Tables that are compiled from then on lead there.
    pub fn move_peer(&mut self, slot: SaIndex, address: IpAddr) {
        if let Some(peer) = self.peers.get_mut(slot.index()) {
            *peer = address;
        }
    }

    /// The stations that tunnels need and whose MAC address `tables` does not have.
    pub fn missing(&self, tables: &Tables) -> BTreeSet<(PortIndex, IpAddr)> {
        let unprotected = (0u16..).map(PortIndex).zip(&tables.ports);
        unprotected
            .filter(|(_, port)| port.side == Side::Unprotected)
            .flat_map(|(at, port)| {
                let missing = self
                    .peers
                    .iter()
                    .filter_map(|peer| port.routes.missing(*peer));
                missing.map(move |address| (at, address))
            })
            .collect()
    }
}

impl PortPlan {
    fn routes(&self, index: PortIndex, learned: &Learned, next_hops: &mut Vec<NextHop>) -> Routes {
        let mut routes = Routes::default();
        let mut add_hop = |mac: &[u8; 6]| {
            let hop = NextHopIndex(u32::try_from(next_hops.len()).unwrap_or(u32::MAX));
            let mut macs = [0; 12];
            macs[..6].copy_from_slice(mac);
            macs[6..].copy_from_slice(&self.mac);
            next_hops.push(NextHop {
                macs,
                port: index,
                mtu: self.mtu,
            });
            hop
        };
        for (address, mac) in &self.neighbours {
            let hop = add_hop(mac);
            routes.add_neighbour(*address, hop);
            // A neighbour is on the link, whether or not the port's subnets hold it.
            routes.add_route(&(*address).into(), RouteTarget::Via(hop));
        }
        for (address, mac) in &learned.neighbours {
            if !routes.has_neighbour(*address) {
                routes.add_neighbour(*address, add_hop(mac));
            }
        }
        for address in &self.addresses {
            routes.add_route(&address.trunc(), RouteTarget::OnLink);
        }
        for (to, via) in &self.routes {
            routes.add_route_via(to, *via);
        }
        for route in &learned.routes {
            match route.via {
                // The kernel's routers are on the link, whatever routes there are.
                Some(via) => routes.add_route_by(&route.to, via),
                None => routes.add_route(&route.to, RouteTarget::OnLink),
            }
        }
        routes.compile();
        routes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drop::DropReason;

    fn plan() -> PortPlan {
        PortPlan {
            side: Side::Unprotected,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            local: Arc::default(),
            addresses: vec!["192.0.2.1/24".parse().expect("prefix")],
            neighbours: vec![(ip("192.0.2.9"), [9; 6])],
            routes: vec![(net("10.0.0.0/8"), ip("192.0.2.9"))],
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("prefix")
    }

    fn to(prefix: &str, metric: u32, via: Option<IpAddr>) -> LearnedRoute {
        LearnedRoute {
            to: net(prefix),
            metric,
            via,
        }
    }

    #[test]
    fn routers_are_on_the_link_whatever_the_order_of_routes() {
        let mut learned = Learned::default();
        let router = ip("fe80::7");
        learned.neighbours.insert(router, [7; 6]);
        learned.routes.insert(to("::/0", 1024, Some(router)));
        learned.routes.insert(to("fe80::/64", 256, None));
        let mut hops = Vec::new();
        let routes = plan().routes(PortIndex(0), &learned, &mut hops);
        let NextHopIndex(hop) = routes.lookup(ip("2001:db8::9")).expect("a next hop");
        assert_eq!(hops[hop as usize].macs[0], 7);
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn what_the_policy_says_wins_over_what_was_learned() {
        let mut learned = Learned::default();
        for (address, mac) in [("192.0.2.9", [7; 6]), ("192.0.2.8", [8; 6])] {
            learned.neighbours.insert(ip(address), mac);
        }
        let router = Some(ip("192.0.2.8"));
        learned.routes.insert(to("10.0.0.0/8", 0, router));
        learned.routes.insert(to("10.1.0.0/16", 0, router));
        let mut hops = Vec::new();
        let routes = plan().routes(PortIndex(0), &learned, &mut hops);
        let mac_of = |address| {
            let NextHopIndex(hop) = routes.lookup(ip(address)).expect("a next hop");
            hops[hop as usize].macs[0]
        };
        assert_eq!(mac_of("192.0.2.9"), 9);
        assert_eq!(mac_of("192.0.2.8"), 8);
        assert_eq!(mac_of("10.2.0.1"), 9);
        assert_eq!(
            mac_of("10.1.0.1"),
            8,
            "the longer prefix, of whichever origin"
        );
    }

    #[test]
    fn of_two_learned_routes_the_lower_metric_counts() {
        let mut learned = Learned::default();
        for (metric, last) in [(20, 7), (10, 8)] {
            let router = IpAddr::from([192, 0, 2, last]);
            learned.neighbours.insert(router, [last; 6]);
            learned
                .routes
                .insert(to("198.51.100.0/24", metric, Some(router)));
        }
        let mut hops = Vec::new();
        let routes = plan().routes(PortIndex(0), &learned, &mut hops);
        let NextHopIndex(hop) = routes.lookup(ip("198.51.100.1")).expect("a next hop");
        assert_eq!(hops[hop as usize].macs[0], 8);
    }

    #[test]
    fn missing_is_the_station_or_the_router_before_it() {
        let mut learned = Learned::default();
        let router = Some(ip("192.0.2.7"));
        learned.routes.insert(to("198.51.100.0/24", 0, router));
        let routes = plan().routes(PortIndex(0), &learned, &mut Vec::new());
        assert_eq!(routes.missing(ip("192.0.2.5")), Some(ip("192.0.2.5")));
        assert_eq!(routes.missing(ip("198.51.100.1")), router);
        assert_eq!(routes.missing(ip("192.0.2.9")), None, "it is known");
        assert_eq!(routes.missing(ip("203.0.113.1")), None, "no route");
        assert_eq!(
            routes.lookup(ip("198.51.100.1")),
            Err(DropReason::NoNeighbour)
        );
    }
}
