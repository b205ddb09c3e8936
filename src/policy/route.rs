//! The `[[neighbour]]` and `[[route]]` tables.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::diagnostic::{Fault, Faults, quoted};
use super::file::{At, Key, Span, Table};
use super::model::{MacAddr, Neighbour, Route};
use super::network;
use super::port::Ports;
use crate::ids::PortIndex;

const ADDRESS: Key = Key::new("address", "address = \"192.0.2.2\"");
const MAC: Key = Key::new("mac", "mac = \"02:00:00:00:00:02\"");
const NEIGHBOUR_PORT: Key = Key::new("port", "port = \"wan\"");
const NEIGHBOUR_KEYS: &[&Key] = &[&ADDRESS, &MAC, &NEIGHBOUR_PORT];

const TO: Key = Key::new("to", "to = \"10.2.0.0/16\"");
const VIA: Key = Key::new("via", "via = \"192.0.2.2\"");
const ROUTE_PORT: Key = Key::new("port", "port = \"wan\"");
const ROUTE_KEYS: &[&Key] = &[&TO, &VIA, &ROUTE_PORT];

/// Every neighbour as far as it could be read.
pub(super) struct Neighbours {
    /// `None` where something is wrong with one.
    pub(super) neighbours: Option<Vec<Neighbour>>,
    known: HashSet<(PortIndex, IpAddr)>,
}

/// Reads every `[[neighbour]]`.
pub(super) fn read_neighbours(
    tables: &[Table<'_>],
    ports: &Ports<'_>,
    faults: &mut Faults<'_>,
) -> Neighbours {
    let mut seen: HashMap<(IpAddr, Option<PortIndex>), Span> = HashMap::new();
    let mut known = HashSet::new();
    let read = |table| neighbour(table, ports, faults);
    let drafts: Vec<_> = tables.iter().map(read).collect();
    for (address, _, port) in &drafts {
        let Some(address) = address else { continue };
        let ip = address.value;
        known.extend(port.map(|port| (port, ip)));
        // A link-local address may be in use on every link.
        let scope = port.filter(|_| network::is_link_local(ip));
        if let Some(first) = seen.get(&(ip, scope)) {
            let fault = Fault::new(&address.span, format!("the neighbour {ip} is given twice"));
            faults.add(
                fault
                    .related(first, "it is first given here")
                    .help("remove one of the two"),
            );
        } else {
            seen.insert((ip, scope), address.span.clone());
        }
        if let Some(own) = ports.own_address(ip) {
            let fault = Fault::new(&address.span, format!("{ip} is this gateway's own address"));
            let help = "write the address of another station on this link";
            faults.add(fault.related(own, "it is given to a port here").help(help));
        }
    }
    let complete =
        |(address, mac, port): (Option<At<IpAddr>>, Option<At<MacAddr>>, Option<PortIndex>)| {
            Some(Neighbour {
                address: address?.value,
                mac: mac?.value,
                port: port?,
            })
        };
    Neighbours {
        neighbours: drafts.into_iter().map(complete).collect(),
        known,
    }
}

fn neighbour(
    table: &Table<'_>,
    ports: &Ports<'_>,
    faults: &mut Faults<'_>,
) -> (Option<At<IpAddr>>, Option<At<MacAddr>>, Option<PortIndex>) {
    table.refuse_unknown(NEIGHBOUR_KEYS, &[], faults);
    let address = table
        .need(&ADDRESS, faults)
        .and_then(|value| network::address(&value, faults));
    let mac = table
        .need(&MAC, faults)
        .and_then(|value| network::mac(&value, faults));
    let name = table
        .need(&NEIGHBOUR_PORT, faults)
        .and_then(|value| value.text(faults));
    (
        address,
        mac,
        name.and_then(|name| ports.resolve(&name, faults)),
    )
}

/// Reads every `[[route]]`; `None` where something is wrong with one.
pub(super) fn read_routes(
    tables: &[Table<'_>],
    ports: &Ports<'_>,
    neighbours: &Neighbours,
    faults: &mut Faults<'_>,
) -> Option<Vec<Route>> {
    let mut seen: HashMap<(PortIndex, IpNet, IpAddr), Span> = HashMap::new();
    let mut routes = Some(Vec::new());
    for table in tables {
        let Some((to, route)) = route(table, ports, neighbours, faults) else {
            routes = None;
            continue;
        };
        if let Some(first) = seen.get(&(route.port, route.to, route.via)) {
            let port = quoted(ports.name(route.port));
            let message = format!(
                "port {port} has two routes to {} by {}",
                route.to, route.via
            );
            let fault = Fault::new(&to, message);
            faults.add(
                fault
                    .related(first, "the first is here")
                    .help("remove one of the two"),
            );
        } else {
            seen.insert((route.port, route.to, route.via), to);
        }
        if let Some(routes) = &mut routes {
            routes.push(route);
        }
    }
    routes
}

/// The route and where its destination stands.
fn route(
    table: &Table<'_>,
    ports: &Ports<'_>,
    neighbours: &Neighbours,
    faults: &mut Faults<'_>,
) -> Option<(Span, Route)> {
    table.refuse_unknown(ROUTE_KEYS, &[], faults);
    let to = table
        .need(&TO, faults)
        .and_then(|value| network::network(&value, faults));
    let via = table
        .need(&VIA, faults)
        .and_then(|value| network::address(&value, faults));
    let name = table
        .need(&ROUTE_PORT, faults)
        .and_then(|value| value.text(faults));
    let port = name.as_ref().and_then(|name| ports.resolve(name, faults));
    if let (Some(to), Some(via)) = (&to, &via)
        && to.value.addr().is_ipv4() != via.value.is_ipv4()
    {
        let (wanted, found) = (network::family(to.value.addr()), network::family(via.value));
        let fault = Fault::new(
            &via.span,
            format!("{} is {found}, but {} is {wanted}", via.value, to.value),
        );
        faults.add(
            fault
                .related(&to.span, "the destination")
                .help(format!("write the next hop's {wanted} address")),
        );
        return None;
    }
    if let (Some(via), Some(port)) = (&via, port) {
        check_next_hop(via, port, ports, neighbours, faults);
    }
    let (to, via, port) = (to?, via?, port?);
    let route = Route {
        to: to.value,
        via: via.value,
        port,
    };
    Some((to.span, route))
}

fn check_next_hop(
    via: &At<IpAddr>,
    port: PortIndex,
    ports: &Ports<'_>,
    neighbours: &Neighbours,
    faults: &mut Faults<'_>,
) {
    let ip = via.value;
    if let Some(own) = ports.own_address(ip) {
        let fault = Fault::new(&via.span, format!("{ip} is this gateway's own address"));
        let help = "write the address of the next router on this link";
        faults.add(fault.related(own, "it is given to a port here").help(help));
        return;
    }
    let reachable =
        neighbours.known.contains(&(port, ip)) || ports.subnets(port).any(|net| net.contains(&ip));
    if !reachable && neighbours.neighbours.is_some() {
        let name = quoted(ports.name(port));
        let message = format!("{ip} is in no subnet of port {name} and is none of its neighbours");
        let help = format!(
            "write an address in a subnet of that port, or add a [[neighbour]] with address = \"{ip}\""
        );
        faults.add(Fault::new(&via.span, message).help(help));
    }
}
