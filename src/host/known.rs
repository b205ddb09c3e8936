//! Neighbours, routes and next hop objects as the kernel's messages make them.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop,
    RouteNextHopFlags, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Event, Message};
use super::next_hop::Object;
use crate::ids::PortIndex;
use crate::policy::plan::{Change, Learned, LearnedRoute};

/// Objects in one another; groups hold no groups.
const MOST_DEEP: usize = 2;

/// What the kernel knows on the twins.
#[derive(Default)]
pub(super) struct Known {
    /// By interface, the port whose twin it is.
    ports: HashMap<u32, PortIndex>,
    learned: Vec<Learned>,
    objects: HashMap<u32, Object>,
    /// Objects that routes were seen to use.
    used: HashSet<u32>,
}

/// Changes, in the order in which they came.
type Changes = VecDeque<(PortIndex, Change)>;

/// One next hop of a route: its interface, its router, its weight.
type Hop = (u32, Option<IpAddr>, u16);

impl Known {
    pub(super) fn new(ports: usize, twins: HashMap<u32, PortIndex>) -> Self {
        Self {
            ports: twins,
            learned: vec![Learned::default(); ports],
            ..Self::default()
        }
    }

    /// The same interfaces, and nothing known of them.
    pub(super) fn emptied(&self) -> Self {
        Self::new(self.learned.len(), self.ports.clone())
    }

    pub(super) fn learned(&self) -> &[Learned] {
        &self.learned
    }

    pub(super) fn has_twins(&self) -> bool {
        !self.ports.is_empty()
    }

    pub(super) fn is_twin(&self, interface: u32) -> bool {
        self.ports.contains_key(&interface)
    }

    pub(super) fn twin_of(&self, port: PortIndex) -> Option<u32> {
        let twin = self.ports.iter().find(|(_, twin)| **twin == port);
        twin.map(|(interface, _)| *interface)
    }

    pub(super) fn has_neighbour(&self, port: PortIndex, address: IpAddr) -> bool {
        let learned = self.learned.get(port.index());
        learned.is_some_and(|learned| learned.neighbours.contains_key(&address))
    }

    /// Notes what is not as it was in `before`.
    pub(super) fn differences(&self, before: &Self, changes: &mut Changes) {
        for ((port, now), before) in (0u16..)
            .map(PortIndex)
            .zip(&self.learned)
            .zip(&before.learned)
        {
            let stations = now.neighbours.keys().chain(before.neighbours.keys());
            let differ =
                |address: &&IpAddr| now.neighbours.get(*address) != before.neighbours.get(*address);
            let stations: BTreeSet<IpAddr> = stations.filter(differ).copied().collect();
            changes.extend(stations.into_iter().map(|own| (port, Change::Station(own))));
            let mut last = None;
            for route in now.routes.symmetric_difference(&before.routes) {
                if last.replace(route.to) != Some(route.to) {
                    changes.push_back((port, Change::Route(route.to)));
                }
            }
        }
    }

    /// Takes one message in and notes what is different then. Returns whether it says that there is more than it says.
    pub(super) fn apply(&mut self, event: Event, changes: &mut Changes) -> bool {
        let message = match event.message {
            Message::Route(message) => message,
            Message::NextHop(id, object) => return self.set_object(id, object),
        };
        match *message {
            RouteNetlinkMessage::NewNeighbour(message) => self.neighbour(&message, true, changes),
            RouteNetlinkMessage::DelNeighbour(message) => self.neighbour(&message, false, changes),
            RouteNetlinkMessage::NewRoute(message) => {
                self.route(&message, true, event.replaces, changes);
            }
            RouteNetlinkMessage::DelRoute(message) => self.route(&message, false, false, changes),
            _ => {}
        }
        false
    }

    /// Routes that use an object are not told again by every kernel, nor do they all end by name with it.
    fn set_object(&mut self, id: u32, object: Option<Object>) -> bool {
        let before = match object.clone() {
            Some(object) => self.objects.insert(id, object),
            None => self.objects.remove(&id),
        };
        before != object && self.used.contains(&id)
    }

    fn neighbour(&mut self, message: &NeighbourMessage, exists: bool, changes: &mut Changes) {
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(own)) => {
                    address = Some(IpAddr::V4(*own));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(own)) => {
                    address = Some(IpAddr::V6(*own));
                }
                NeighbourAttribute::LinkLayerAddress(own) => mac = own.first_chunk().copied(),
                _ => {}
            }
        }
        let known = !matches!(
            message.header.state,
            NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
        );
        let port = self.ports.get(&message.header.ifindex).copied();
        let (Some(address), Some(port)) = (address, port) else {
            return;
        };
        let Some(learned) = self.learned.get_mut(port.index()) else {
            return;
        };
        let changed = match mac.filter(|_| exists && known && !address.is_multicast()) {
            Some(mac) => learned.neighbours.insert(address, mac) != Some(mac),
            None => learned.neighbours.remove(&address).is_some(),
        };
        changes.extend(changed.then_some((port, Change::Station(address))));
    }

    fn route(
        &mut self,
        message: &RouteMessage,
        exists: bool,
        replaces: bool,
        changes: &mut Changes,
    ) {
        let header = &message.header;
        // A cloned one is what the kernel noted of a single destination.
        if header.table != RouteHeader::RT_TABLE_MAIN || header.flags.contains(RouteFlags::Cloned) {
            return;
        }
        let Some(said) = SaidRoute::read(message) else {
            return;
        };
        let hops = self.hops(&said);
        let is_unicast = header.kind == RouteType::Unicast;
        if replaces || (!exists && is_unicast && hops.is_empty()) {
            self.remove_all(said.to, said.metric, changes);
        }
        if !is_unicast {
            return;
        }
        for (interface, via, weight) in hops {
            let Some(port) = self.ports.get(&interface).copied() else {
                continue;
            };
            let Some(learned) = self.learned.get_mut(port.index()) else {
                continue;
            };
            let route = LearnedRoute {
                to: said.to,
                metric: said.metric,
                via,
                weight,
            };
            let changed = if exists {
                set(learned, route)
            } else {
                take(
                    learned,
                    |other| (other.metric, other.via) == (route.metric, via),
                    said.to,
                )
            };
            changes.extend(changed.then_some((port, Change::Route(said.to))));
        }
    }

    fn remove_all(&mut self, to: IpNet, metric: u32, changes: &mut Changes) {
        for (port, learned) in (0u16..).map(PortIndex).zip(&mut self.learned) {
            if take(learned, |other| other.metric == metric, to) {
                changes.push_back((port, Change::Route(to)));
            }
        }
    }

    /// Where a route leads: as it says, or as the object does that it names.
    fn hops(&mut self, said: &SaidRoute) -> Vec<Hop> {
        let Some(id) = said.object else {
            return said.hops.clone();
        };
        self.used.insert(id);
        if !said.hops.is_empty() {
            return said.hops.clone();
        }
        let mut hops = Vec::new();
        self.expand(id, 1, MOST_DEEP, &mut hops);
        hops
    }

    fn expand(&mut self, id: u32, weight: u16, deep: usize, hops: &mut Vec<Hop>) {
        match self.objects.get(&id).cloned() {
            Some(Object::Hop { interface, via }) => hops.push((interface, via, weight)),
            Some(Object::Group(members)) if deep > 0 => {
                for (member, weight) in members {
                    self.used.insert(member);
                    self.expand(member, weight, deep - 1, hops);
                }
            }
            _ => {}
        }
    }
}

/// Puts a route in, instead of one that differs in its weight alone. Returns whether anything is different.
fn set(learned: &mut Learned, route: LearnedRoute) -> bool {
    if learned.routes.contains(&route) {
        return false;
    }
    let is_same = |other: &LearnedRoute| (other.metric, other.via) == (route.metric, route.via);
    take(learned, is_same, route.to);
    learned.routes.insert(route)
}

/// Takes out the routes to `to` that are meant. Returns whether there was one.
fn take(learned: &mut Learned, is_meant: impl Fn(&LearnedRoute) -> bool, to: IpNet) -> bool {
    let meant: Vec<_> = learned
        .routes_to(to)
        .filter(|route| is_meant(route))
        .copied()
        .collect();
    meant.iter().for_each(|route| {
        learned.routes.remove(route);
    });
    !meant.is_empty()
}

/// What a message says of a route.
struct SaidRoute {
    to: IpNet,
    metric: u32,
    /// The next hop object that it uses.
    object: Option<u32>,
    hops: Vec<Hop>,
}

impl SaidRoute {
    fn read(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let mut destination = match header.address_family {
            AddressFamily::Inet => IpAddr::from([0; 4]),
            AddressFamily::Inet6 => IpAddr::from([0; 16]),
            _ => return None,
        };
        let (mut metric, mut hops, mut interface, mut object) = (0, Vec::new(), None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => destination = ip(to)?,
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::NhId(id) => object = Some(*id),
                RouteAttribute::MultiPath(all) => {
                    let alive = |hop: &&RouteNextHop| !hop.flags.contains(RouteNextHopFlags::Dead);
                    let hop = |hop: &RouteNextHop| {
                        let weight = u16::from(hop.hops) + 1;
                        (hop.interface_index, router(&hop.attributes), weight)
                    };
                    hops.extend(all.iter().filter(alive).map(hop));
                }
                _ => {}
            }
        }
        hops.extend(interface.map(|interface| (interface, router(&message.attributes), 1)));
        Some(Self {
            to: IpNet::new(destination, header.destination_prefix_length).ok()?,
            metric,
            object,
            hops,
        })
    }
}

/// The router of a route, or of one next hop of several.
fn router(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(router) => ip(router),
        RouteAttribute::Via(RouteVia::Inet(router)) => Some(IpAddr::V4(*router)),
        RouteAttribute::Via(RouteVia::Inet6(router)) => Some(IpAddr::V6(*router)),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
