//! What the kernel knows of neighbours and routes on the twins, followed as it changes.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};

use super::netlink::{Groups, Netlink};
use crate::ids::PortIndex;
use crate::policy::plan::Learned;

/// Messages taken from the kernel before it is something else's turn.
const TURN: usize = 4096;

/// Follows neighbours and routes of the twins.
pub struct Monitor {
    /// Where the kernel says what changes.
    events: Netlink,
    /// Where it is asked.
    requests: Netlink,
    /// By interface, the port whose twin it is.
    ports: HashMap<u32, PortIndex>,
    learned: Vec<Learned>,
}

impl Monitor {
    /// Follows the interfaces `twins`, of `ports` ports in all, and learns what is there already.
    ///
    /// # Errors
    /// Where the kernel refuses a socket or an answer.
    pub(super) fn new(
        ports: usize,
        twins: impl IntoIterator<Item = (PortIndex, u32)>,
    ) -> io::Result<Self> {
        let mut monitor = Self {
            // First, so that nothing changes unseen between the two.
            events: Netlink::listen(&[Groups::Neighbours, Groups::RoutesV4, Groups::RoutesV6])?,
            requests: Netlink::new()?,
            ports: twins
                .into_iter()
                .map(|(port, index)| (index, port))
                .collect(),
            learned: vec![Learned::default(); ports],
        };
        monitor.learn_anew()?;
        Ok(monitor)
    }

    /// By `PortIndex`.
    pub fn learned(&self) -> &[Learned] {
        &self.learned
    }

    /// Takes in what the kernel has said. Returns whether anything is different now.
    ///
    /// # Errors
    /// Where the kernel could not say what it wanted to and does not answer what there is; what was learned stands then.
    pub fn follow(&mut self) -> io::Result<bool> {
        let mut changed = false;
        for _ in 0..TURN {
            match self.events.next_event() {
                Ok(Some(messages)) => {
                    for message in messages {
                        changed |= self.apply(message);
                    }
                }
                Ok(None) => break,
                // More was said than there was room for.
                Err(_) => {
                    self.learn_anew()?;
                    return Ok(true);
                }
            }
        }
        Ok(changed)
    }

    /// Has the kernel find out the MAC address of a station on a port's link: `kept` for as long as the gateway runs, or
    /// until it finds that nobody asks any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resolve(&self, port: PortIndex, address: IpAddr, kept: bool) -> io::Result<()> {
        let twin = self.ports.iter().find(|(_, twin)| **twin == port);
        match twin {
            Some((interface, _)) => self.requests.resolve(*interface, address, kept),
            None => Ok(()),
        }
    }

    fn learn_anew(&mut self) -> io::Result<()> {
        self.learned.fill(Learned::default());
        let neighbours = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let routes = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        for question in [neighbours, routes] {
            for answer in self.requests.dump(question)? {
                self.apply(answer);
            }
        }
        Ok(())
    }

    /// Takes one message in; returns whether it was of a twin and said anything new.
    fn apply(&mut self, message: RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewNeighbour(message) => self.neighbour(&message, true),
            RouteNetlinkMessage::DelNeighbour(message) => self.neighbour(&message, false),
            RouteNetlinkMessage::NewRoute(message) => self.route(&message, true),
            RouteNetlinkMessage::DelRoute(message) => self.route(&message, false),
            _ => false,
        }
    }

    fn of_twin(&mut self, interface: u32) -> Option<&mut Learned> {
        let port = self.ports.get(&interface)?;
        self.learned.get_mut(port.index())
    }

    fn neighbour(&mut self, message: &NeighbourMessage, exists: bool) -> bool {
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
        let (Some(address), Some(learned)) = (address, self.of_twin(message.header.ifindex)) else {
            return false;
        };
        match mac.filter(|_| exists && known && !address.is_multicast()) {
            Some(mac) => learned.neighbours.insert(address, mac) != Some(mac),
            None => learned.neighbours.remove(&address).is_some(),
        }
    }

    fn route(&mut self, message: &RouteMessage, exists: bool) -> bool {
        if message.header.table != RouteHeader::RT_TABLE_MAIN
            || message.header.kind != RouteType::Unicast
        {
            return false;
        }
        let mut destination = match message.header.address_family {
            netlink_packet_route::AddressFamily::Inet => IpAddr::from([0; 4]),
            netlink_packet_route::AddressFamily::Inet6 => IpAddr::from([0; 16]),
            _ => return false,
        };
        let (mut metric, mut hops) = (0, Vec::new());
        let (mut interface, mut gateway) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => match ip(to) {
                    Some(to) => destination = to,
                    None => return false,
                },
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::Gateway(router) => gateway = ip(router),
                RouteAttribute::MultiPath(all) => {
                    hops.extend(all.iter().map(|hop| {
                        let router = hop.attributes.iter().find_map(|attribute| match attribute {
                            RouteAttribute::Gateway(router) => ip(router),
                            _ => None,
                        });
                        (hop.interface_index, router)
                    }));
                }
                _ => {}
            }
        }
        hops.extend(interface.map(|interface| (interface, gateway)));
        let Ok(to) = IpNet::new(destination, message.header.destination_prefix_length) else {
            return false;
        };
        let mut changed = false;
        for (interface, router) in hops {
            let Some(learned) = self.of_twin(interface) else {
                continue;
            };
            changed |= if exists {
                learned.routes.insert((to, metric), router) != Some(router)
            } else {
                learned.routes.remove(&(to, metric)).is_some()
            };
        }
        changed
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
