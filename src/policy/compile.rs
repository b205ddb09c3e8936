//! Policy to tables and SAs. All allocation for the packet path happens here, on the control thread.

use std::net::IpAddr;

use crate::ids::{NextHopIndex, PortIndex, SaIndex, TunnelIndex};
use crate::ipsec::flow_hash::SaGroup;
use crate::ipsec::outer::Encapsulation;
use crate::ipsec::sa::{InboundParams, InboundSa, OutboundParams, OutboundSa, SaParams};
use crate::ipsec::sad::SpiIndex;
use crate::ipsec::selector::{PrefixSet, Selectors};
use crate::ipsec::spd::{Spd, SpdAction, SpdBuilder};
use crate::policy::model::{EndpointSet, MacAddr, Policy, Side, Tunnel};
use crate::policy::routes::{RouteTarget, Routes};
use crate::policy::tables::{LocalAddresses, NextHop, PortTable, Tables};

/// What compilation has to know of the machine.
pub struct Topology {
    /// MAC address of each port, by `PortIndex`.
    pub macs: Vec<MacAddr>,
}

/// Every endpoint set of `policy`, once for each of its SA pairs, with its tunnel and the slot of the pair: the same in
/// both directions, and those of a split tunnel next to each other.
pub fn endpoint_sets(
    policy: &Policy,
) -> impl Iterator<Item = (SaIndex, TunnelIndex, &Tunnel, &EndpointSet)> {
    let sets = (0u32..).zip(&policy.tunnels).flat_map(|(at, tunnel)| {
        tunnel
            .endpoints
            .iter()
            .map(move |set| (TunnelIndex(at), tunnel, set))
    });
    (0u32..)
        .zip(sets)
        .map(|(slot, (at, tunnel, set))| (SaIndex(slot), at, tunnel, set))
}

/// What the SA that seals for `set` is made of.
pub fn outbound_params(set: &EndpointSet) -> SaParams<'_> {
    SaParams {
        spi: set.outbound.spi,
        key: &set.outbound.key,
        esn: set.outbound.esn,
        local: set.local,
        remote: set.remote,
        encapsulation: set.encapsulation,
    }
}

/// What the SA that opens for `set` is made of.
pub fn inbound_params(set: &EndpointSet) -> SaParams<'_> {
    SaParams {
        spi: set.inbound.spi,
        key: &set.inbound.key,
        esn: set.inbound.esn,
        local: set.local,
        remote: set.remote,
        encapsulation: set.encapsulation,
    }
}

/// The SA that seals for `set`, beginning at `next_seq`, with nothing leased.
pub fn outbound_sa(set: &EndpointSet, next_seq: u64) -> OutboundSa {
    OutboundSa::new(&OutboundParams {
        sa: outbound_params(set),
        next_seq,
        outer: set.outer,
    })
}

/// The SA that opens for `set`, in which every number up to `seen` counts as seen.
pub fn inbound_sa(tunnel: &Tunnel, set: &EndpointSet, seen: u64) -> InboundSa {
    InboundSa::new(InboundParams {
        sa: inbound_params(set),
        window: set.inbound.window,
        seen,
        selectors: Selectors {
            local: PrefixSet::new(&tunnel.local_networks),
            remote: PrefixSet::new(&tunnel.remote_networks),
        },
    })
}

/// Compiles the tables of `policy`.
pub fn compile(policy: &Policy, topology: &Topology) -> Tables {
    let mut next_hops = Vec::new();
    let ports = (0u16..)
        .zip(&policy.ports)
        .map(|(at, _)| compile_port(policy, topology, PortIndex(at), &mut next_hops))
        .collect();
    Tables {
        spd: compile_spd(policy),
        spis: SpiIndex::new(endpoint_sets(policy).map(|(slot, .., set)| (set.inbound.spi, slot))),
        ports,
        next_hops: next_hops.into(),
    }
}

/// Every selector of every tunnel, to the SAs that carry its family: of two endpoint sets the one whose outer family is
/// the inner one, of one that one.
fn compile_spd(policy: &Policy) -> Spd {
    let mut builder = SpdBuilder::default();
    let mut first = 0u32;
    for tunnel in &policy.tunnels {
        for local in &tunnel.local_networks {
            let action = protect(tunnel, local.addr().is_ipv4(), first);
            for remote in &tunnel.remote_networks {
                builder.add(local, remote, action);
            }
        }
        first = first.saturating_add(u32::try_from(tunnel.endpoints.len()).unwrap_or(0));
    }
    builder.build()
}

/// What seals packets of one family in `tunnel`, whose slots begin at `first`.
fn protect(tunnel: &Tunnel, is_v4: bool, first: u32) -> SpdAction {
    let sets = &tunnel.endpoints;
    let at = sets.iter().position(|set| set.local.is_ipv4() == is_v4);
    let at = at.unwrap_or(0);
    let Some(set) = sets.get(at) else {
        return SpdAction::Discard;
    };
    let of_one_set = sets[at..]
        .iter()
        .take_while(|other| other.local == set.local);
    let slot = SaIndex(first.saturating_add(u32::try_from(at).unwrap_or(0)));
    match u8::try_from(of_one_set.count()) {
        Ok(count @ 2..) => SpdAction::Spread(SaGroup::new(slot, count, set.spread_udp_ports)),
        _ => SpdAction::Protect(slot),
    }
}

fn compile_port(
    policy: &Policy,
    topology: &Topology,
    index: PortIndex,
    next_hops: &mut Vec<NextHop>,
) -> PortTable {
    let port = &policy.ports[index.index()];
    let mac = topology.macs.get(index.index()).map_or([0; 6], |mac| mac.0);
    let mut routes = Routes::default();
    for neighbour in policy
        .neighbours
        .iter()
        .filter(|neighbour| neighbour.port == index)
    {
        let hop = NextHopIndex(u32::try_from(next_hops.len()).unwrap_or(u32::MAX));
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&neighbour.mac.0);
        macs[6..].copy_from_slice(&mac);
        next_hops.push(NextHop {
            macs,
            port: index,
            mtu: port.mtu,
        });
        routes.add_neighbour(neighbour.address, hop);
        // A neighbour is on the link, whether or not the port's subnets hold it.
        routes.add_route(&neighbour.address.into(), RouteTarget::Via(hop));
    }
    for address in &port.addresses {
        routes.add_route(&address.trunc(), RouteTarget::OnLink);
    }
    for route in policy.routes.iter().filter(|route| route.port == index) {
        let target = routes
            .lookup(route.via)
            .map_or(RouteTarget::Unresolved, RouteTarget::Via);
        routes.add_route(&route.to, target);
    }
    routes.compile();
    let sa_hops = endpoint_sets(policy)
        .map(|(.., set)| routes.lookup(set.remote))
        .collect();
    PortTable {
        side: port.side,
        mac,
        local: local_addresses(policy, index),
        routes,
        sa_hops,
    }
}

fn local_addresses(policy: &Policy, index: PortIndex) -> LocalAddresses {
    let port = &policy.ports[index.index()];
    let mut local = LocalAddresses::default();
    for address in &port.addresses {
        match address.addr() {
            IpAddr::V4(address) => local.add_v4(address.to_bits()),
            IpAddr::V6(address) => {
                local.v6.insert(address.to_bits());
            }
        }
    }
    if port.side == Side::Unprotected {
        for (.., set) in endpoint_sets(policy) {
            if let Encapsulation::Udp { local_port, .. } = set.encapsulation {
                local.nat_t.insert((set.local, local_port));
            }
        }
    }
    local
}
