//! What the kernel knows of neighbours and routes on the twins, followed as it changes.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteType,
    RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Event, Group, Netlink};
use crate::ids::PortIndex;
use crate::policy::plan::{Learned, LearnedRoute};

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
    /// Something the kernel said was missed, so that everything has to be asked for.
    is_behind: bool,
    /// By interface, whether it is up.
    up: HashMap<u32, bool>,
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
            events: Netlink::listen(&Group::ALL)?,
            requests: Netlink::new()?,
            ports: twins
                .into_iter()
                .map(|(port, index)| (index, port))
                .collect(),
            learned: vec![Learned::default(); ports],
            is_behind: true,
            up: HashMap::new(),
        };
        if !monitor.ports.is_empty() {
            monitor.learn_anew()?;
        }
        Ok(monitor)
    }

    /// By `PortIndex`.
    pub fn learned(&self) -> &[Learned] {
        &self.learned
    }

    /// Takes in what the kernel has said. Returns whether anything is different now.
    ///
    /// # Errors
    /// Where the kernel could not say what it wanted to and does not answer what there is; what was learned stands then, and
    /// the next call asks again.
    pub fn follow(&mut self) -> io::Result<bool> {
        let mut changed = false;
        for _ in 0..TURN {
            match self.events.next_event() {
                Ok(Some(events)) => {
                    for event in events {
                        changed |= self.apply(event);
                    }
                }
                Ok(None) => break,
                // More was said than there was room for.
                Err(_) => self.is_behind = true,
            }
        }
        if self.is_behind {
            self.learn_anew()?;
            return Ok(true);
        }
        Ok(changed)
    }

    /// Has the kernel find out the MAC address of a station on a port's link: `kept` for as long as the gateway runs, or
    /// until it finds that nobody asks any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resolve(&mut self, port: PortIndex, address: IpAddr, kept: bool) -> io::Result<()> {
        let twin = self.ports.iter().find(|(_, twin)| **twin == port);
        match twin {
            Some((interface, _)) if !self.knows(port, address) => {
                self.requests.resolve(*interface, address, kept)
            }
            _ => Ok(()),
        }
    }

    fn knows(&self, port: PortIndex, address: IpAddr) -> bool {
        let learned = self.learned.get(port.index());
        learned.is_some_and(|learned| learned.neighbours.contains_key(&address))
    }

    /// Asks for everything. What the kernel said before is older and is thrown away, which also has it go on to speak.
    fn learn_anew(&mut self) -> io::Result<()> {
        self.is_behind = true;
        for _ in 0..TURN {
            if let Ok(None) = self.events.next_event() {
                break;
            }
        }
        let neighbours = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let routes = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let mut answers = Vec::new();
        for question in [neighbours, routes] {
            answers.extend(self.requests.dump(question)?);
        }
        self.learned.fill(Learned::default());
        for message in answers {
            self.apply(Event {
                message,
                replaces: false,
            });
        }
        self.is_behind = false;
        Ok(())
    }

    /// Takes one message in; returns whether it was of a twin and said anything new.
    fn apply(&mut self, event: Event) -> bool {
        match event.message {
            RouteNetlinkMessage::NewNeighbour(message) => self.neighbour(&message, true),
            RouteNetlinkMessage::DelNeighbour(message) => self.neighbour(&message, false),
            RouteNetlinkMessage::NewRoute(message) => self.route(&message, true, event.replaces),
            RouteNetlinkMessage::DelRoute(message) => self.route(&message, false, false),
            // Routes that go with a link that is taken down are not named one by one.
            RouteNetlinkMessage::NewLink(message) => {
                let up = message.header.flags.contains(LinkFlags::Up);
                let interface = message.header.index;
                if self.ports.contains_key(&interface) && self.up.insert(interface, up) != Some(up)
                {
                    self.is_behind = true;
                }
                false
            }
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

    fn route(&mut self, message: &RouteMessage, exists: bool, replaces: bool) -> bool {
        let header = &message.header;
        // A cloned one is what the kernel noted of a single destination.
        if header.table != RouteHeader::RT_TABLE_MAIN
            || header.kind != RouteType::Unicast
            || header.flags.contains(RouteFlags::Cloned)
        {
            return false;
        }
        let mut destination = match header.address_family {
            AddressFamily::Inet => IpAddr::from([0; 4]),
            AddressFamily::Inet6 => IpAddr::from([0; 16]),
            _ => return false,
        };
        let (mut metric, mut hops, mut interface) = (0, Vec::new(), None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => match ip(to) {
                    Some(to) => destination = to,
                    None => return false,
                },
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::MultiPath(all) => {
                    let hop = |hop: &RouteNextHop| (hop.interface_index, router(&hop.attributes));
                    hops.extend(all.iter().map(hop));
                }
                _ => {}
            }
        }
        hops.extend(interface.map(|interface| (interface, router(&message.attributes))));
        let Ok(to) = IpNet::new(destination, header.destination_prefix_length) else {
            return false;
        };
        let mut changed = false;
        if replaces {
            for learned in &mut self.learned {
                let before = learned.routes.len();
                learned
                    .routes
                    .retain(|route| (route.to, route.metric) != (to, metric));
                changed |= learned.routes.len() != before;
            }
        }
        for (interface, via) in hops {
            let Some(learned) = self.of_twin(interface) else {
                continue;
            };
            let route = LearnedRoute { to, metric, via };
            changed |= if exists {
                learned.routes.insert(route)
            } else {
                learned.routes.remove(&route)
            };
        }
        changed
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
