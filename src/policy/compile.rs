//! Policy to tables and SAs. All allocation for the packet path happens here, on the control thread.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::ids::{PortIndex, SaIndex, TunnelIndex};
use crate::ipsec::flow_hash::SaGroup;
use crate::ipsec::outer::Encapsulation;
use crate::ipsec::rules::TooManyWays;
use crate::ipsec::sa::{InboundParams, InboundSa, OutboundParams, OutboundSa, SaParams};
use crate::ipsec::sad::SpiIndex;
use crate::ipsec::selector::{PrefixSet, Selectors};
use crate::ipsec::spd::{Spd, SpdAction, SpdBuilder};
use crate::policy::model::{
    EndpointSet, EntryAction, MacAddr, Policy, RuleAction, Side, SpdEntry, Tunnel,
};
use crate::policy::plan::Plan;
use crate::policy::standing::Beside;
use crate::policy::tables::{LocalAddresses, Tables};

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
    (0u32..).zip(&policy.tunnels).flat_map(|(at, tunnel)| {
        let sets = tunnel.endpoints.iter();
        sets.map(move |set| (set.slot, TunnelIndex(at), tunnel, set))
    })
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

/// The SA that seals for `set` of `tunnel`, beginning at `next_seq`, with nothing leased.
pub fn outbound_sa(tunnel: &Tunnel, set: &EndpointSet, next_seq: u64) -> OutboundSa {
    let mut sa = OutboundSa::new(&OutboundParams {
        sa: outbound_params(set),
        next_seq,
        outer: set.outer,
        sizes: set.sizes,
    });
    if let Some(limit) = tunnel.lifetime.packets {
        sa.limit_packets(limit.hard);
    }
    sa
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
        peer_moves: set.nat.peer_moves,
    })
}

/// Compiles the tables of `policy`, with nothing learned from the kernel.
pub fn compile(policy: &Policy, topology: &Topology) -> Tables {
    Plan::new(policy, topology).tables()
}

/// What a policy comes to, with nothing of the kernel's in it. Making it is most of the work of coming to another policy, and
/// needs nothing of a running gateway.
#[derive(Default)]
pub struct Compiled {
    pub(super) spd: Arc<Spd>,
    pub(super) spis: Arc<SpiIndex>,
    /// By `PortIndex`.
    pub(super) ports: Vec<Arc<PortPolicy>>,
    /// By `SaIndex`: the peer's outer address.
    pub(super) peers: Vec<Option<IpAddr>>,
    pub(super) admin_prohibited: bool,
}

/// What is different in what one policy came to from what another did, so that who goes from one to the other need look at nothing
/// else.
#[derive(Default)]
pub struct Changes {
    /// By `PortIndex`: stations and prefixes of which the policy says something else.
    pub(super) ports: Vec<(Vec<IpAddr>, Vec<IpNet>)>,
    /// SAs with another peer; `None` where there is no SA any more.
    pub(super) peers: Vec<(SaIndex, Option<IpAddr>)>,
}

impl Changes {
    /// Whether there are other neighbours or routes.
    pub fn is_of_ports(&self) -> bool {
        let is_any =
            |(stations, routes): &(Vec<_>, Vec<_>)| !(stations.is_empty() && routes.is_empty());
        self.ports.iter().any(is_any)
    }

    /// The peers that SAs have now and had not before.
    pub fn new_peers(&self) -> impl Iterator<Item = IpAddr> {
        self.peers.iter().filter_map(|(_, peer)| *peer)
    }
}

/// What a policy says of one port.
#[derive(Default)]
pub(super) struct PortPolicy {
    pub(super) local: Arc<LocalAddresses>,
    pub(super) neighbours: BTreeMap<IpAddr, [u8; 6]>,
    pub(super) routes: BTreeMap<IpNet, Wanted>,
}

/// Where a prefix is to lead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    OnLink,
    /// To these routers, each with its weight, and none twice.
    Via(Vec<(IpAddr, u16)>),
}

impl Compiled {
    /// Compiles `policy` with what is `beside` it.
    pub fn new(policy: &Policy, beside: &Beside, topology: &Topology) -> Self {
        let sets = endpoint_sets(policy).map(|(slot, .., set)| (slot, set.remote));
        let mut peers = Vec::new();
        for (slot, peer) in sets.chain(beside.leaving.iter().map(|sa| (sa.slot, sa.remote))) {
            if peers.len() <= slot.index() {
                peers.resize(slot.index() + 1, None);
            }
            peers[slot.index()] = Some(peer);
        }
        let spis = endpoint_sets(policy).map(|(slot, .., set)| (set.inbound.spi, slot, set.local));
        let spis = spis.chain(beside.replaced().map(|sa| (sa.spi, sa.slot, sa.local)));
        let ports = (0u16..).map(PortIndex).take(policy.ports.len());
        Self {
            spd: Arc::new(compile_spd(policy, beside)),
            spis: Arc::new(SpiIndex::new(spis)),
            ports: ports
                .map(|index| Arc::new(PortPolicy::new(policy, beside, topology, index)))
                .collect(),
            peers,
            admin_prohibited: policy.gateway.admin_prohibited,
        }
    }

    /// What is different in it from what there was before.
    pub fn changes_from(&self, before: &Self) -> Changes {
        let nothing = Arc::<PortPolicy>::default();
        let ports = self.ports.iter().enumerate().map(|(at, own)| {
            let was = before.ports.get(at).unwrap_or(&nothing);
            (
                differing(&own.neighbours, &was.neighbours),
                differing(&own.routes, &was.routes),
            )
        });
        let slots = (0u32..).take(self.peers.len().max(before.peers.len()));
        let of =
            |compiled: &Self, slot: SaIndex| compiled.peers.get(slot.index()).copied().flatten();
        let peers = slots.map(SaIndex).filter_map(|slot| {
            let peer = of(self, slot);
            (peer != of(before, slot)).then_some((slot, peer))
        });
        Changes {
            ports: ports.collect(),
            peers: peers.collect(),
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

impl PortPolicy {
    fn new(policy: &Policy, beside: &Beside, topology: &Topology, index: PortIndex) -> Self {
        let mut own = Self {
            local: Arc::new(local_addresses(policy, beside, topology, index)),
            neighbours: BTreeMap::new(),
            routes: BTreeMap::new(),
        };
        for hop in policy.neighbours.iter().filter(|hop| hop.port == index) {
            own.neighbours.insert(hop.address, hop.mac.0);
            // A neighbour is on the link, whether or not the port's subnets hold it.
            let via = Wanted::Via(vec![(hop.address, 1)]);
            own.routes.insert(hop.address.into(), via);
        }
        for address in &policy.ports[index.index()].addresses {
            let subnet = own.routes.entry(address.trunc());
            subnet.or_insert(Wanted::OnLink);
        }
        let mut of_policy: BTreeMap<IpNet, Vec<(IpAddr, u16)>> = BTreeMap::new();
        for route in policy.routes.iter().filter(|route| route.port == index) {
            of_policy.entry(route.to).or_default().push((route.via, 1));
        }
        for (to, routers) in of_policy {
            own.routes.entry(to).or_insert(Wanted::Via(routers));
        }
        own
    }
}

/// Every selector of every tunnel, to the SAs that carry its family: of two endpoint sets the one whose outer family is
/// the inner one, of one that one. Those of the policies that need no SA. And before all of them the ordered ones.
fn compile_spd(policy: &Policy, beside: &Beside) -> Spd {
    let mut builder = SpdBuilder::default();
    for (slot, tunnel, ..) in endpoint_sets(policy) {
        builder.set_tunnel(slot, tunnel);
    }
    for sa in &beside.leaving {
        if let Some(tunnel) = sa.tunnel {
            builder.set_tunnel(sa.slot, tunnel);
        }
    }
    for slot in &beside.widened {
        builder.set_widened(*slot);
    }
    let protect = |tunnel: &Tunnel, is_v4| protect(tunnel, is_v4, beside);
    for (order, entry) in (0u32..).zip(&policy.entries) {
        // That there is room was seen when the file was checked.
        let _ = add_entry(&mut builder, order, entry, |is_v4| match entry.action {
            EntryAction::Bypass => SpdAction::Bypass,
            EntryAction::Discard => SpdAction::Discard,
            EntryAction::Protect(tunnel) => {
                let found = policy.tunnels.get(tunnel.index());
                found.map_or(SpdAction::Discard, |tunnel| protect(tunnel, is_v4))
            }
        });
    }
    for tunnel in &policy.tunnels {
        for local in &tunnel.local_networks {
            let action = protect(tunnel, local.addr().is_ipv4());
            for remote in &tunnel.remote_networks {
                builder.add(local, remote, action);
            }
        }
    }
    for rule in &policy.rules {
        let action = match rule.action {
            RuleAction::Bypass => SpdAction::Bypass,
            RuleAction::Discard => SpdAction::Discard,
        };
        for local in &rule.local_networks {
            for remote in &rule.remote_networks {
                builder.add(local, remote, action);
            }
        }
    }
    builder.build()
}

/// Adds all that an ordered policy holds; `action` is by whether the inner packet is IPv4.
///
/// # Errors
/// [`TooManyWays`]; some of it may have been added.
pub(super) fn add_entry(
    builder: &mut SpdBuilder,
    order: u32,
    entry: &SpdEntry,
    action: impl Fn(bool) -> SpdAction,
) -> Result<(), TooManyWays> {
    for what in entry.boxes_v4() {
        builder.add_rule_v4(order, &what, action(true))?;
    }
    for what in entry.boxes_v6() {
        builder.add_rule_v6(order, &what, action(false))?;
    }
    Ok(())
}

/// What seals packets of one family in `tunnel`.
fn protect(tunnel: &Tunnel, is_v4: bool, beside: &Beside) -> SpdAction {
    let sets = &tunnel.endpoints;
    let at = sets.iter().position(|set| set.local.is_ipv4() == is_v4);
    let at = at.unwrap_or(0);
    let Some(set) = sets.get(at) else {
        return SpdAction::Discard;
    };
    let of_one_set = sets[at..]
        .iter()
        .take_while(|other| other.local == set.local);
    let slot = beside.seals_by(set.slot);
    match u8::try_from(of_one_set.count()) {
        Ok(count @ 2..) => SpdAction::Spread(SaGroup::new(slot, count, set.spread_udp_ports)),
        _ => SpdAction::Protect(slot),
    }
}

fn local_addresses(
    policy: &Policy,
    beside: &Beside,
    topology: &Topology,
    index: PortIndex,
) -> LocalAddresses {
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
    let mac = topology.macs.get(index.index()).map(|mac| mac.0);
    if let Some(own) = mac.and_then(|mac| link_local(mac, &port.addresses)) {
        local.v6.insert(own.to_bits());
    }
    if port.side == Side::Unprotected {
        let sets = endpoint_sets(policy).map(|(.., set)| (set.local, set.encapsulation));
        let replaced = beside.replaced();
        let replaced = replaced.map(|sa| (sa.local, sa.encapsulation));
        for (own, encapsulation) in sets.chain(replaced) {
            local.tunnel_ends.insert(own);
            if let Encapsulation::Udp { local_port, .. } = encapsulation {
                local.nat_t.insert((own, local_port));
                local.nat_t_addresses.insert(own);
            }
        }
    }
    local
}

/// The link-local address of a port that has IPv6 and was given none (RFC 4291 appendix A): the one that a kernel makes by
/// itself, unless it was told to make none.
pub fn link_local(mac: [u8; 6], addresses: &[IpNet]) -> Option<Ipv6Addr> {
    let all = || {
        addresses.iter().filter_map(|address| match address.addr() {
            IpAddr::V6(own) => Some(own),
            IpAddr::V4(_) => None,
        })
    };
    all().next()?;
    if all().any(|own| own.is_unicast_link_local()) {
        return None;
    }
    let [a, b, c, d, e, f] = mac;
    let own = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    Some(Ipv6Addr::from(own))
}
