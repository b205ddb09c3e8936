//! The `[[port]]` tables.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::device::{self, DEVICE, MAX_QUEUES, MEMBERS, Place, Placed, QUEUES, VLAN};
use super::diagnostic::{Fault, Faults, quoted};
use super::file::{At, Key, Span, Table, closest};
use super::model::{Port, Side};
use super::network;
use crate::ids::PortIndex;

const NAME: Key = Key::new("name", "name = \"lan\"");
const SIDE: Key = Key::new("side", "side = \"protected\"");
const PAIR: Key = Key::new("pair", "pair = \"wan\"");
const ADDRESSES: Key = Key::new("addresses", "addresses = [\"192.0.2.1/24\"]");
const MTU: Key = Key::new("mtu", "mtu = 1500");
const HOST: Key = Key::new("host", "host = false");
const KEYS: &[&Key] = &[
    &NAME, &DEVICE, &MEMBERS, &VLAN, &SIDE, &PAIR, &ADDRESSES, &MTU, &QUEUES, &HOST,
];

/// Each worker has counters for every port, and the host side two rings.
const MAX_PORTS: usize = 256;
const DEFAULT_MTU: u16 = 1500;
/// Longest name of an interface in Linux, in bytes.
const MAX_INTERFACE_LEN: usize = 15;

/// One port as far as it could be read.
struct Draft<'a> {
    name: Option<At<&'a str>>,
    place: Place,
    side: Option<At<Side>>,
    pair: Option<At<&'a str>>,
    addresses: Vec<At<IpNet>>,
    mtu: u16,
    host: bool,
}

/// Every port as far as it could be read.
pub(super) struct Ports<'a> {
    drafts: Vec<Draft<'a>>,
    by_name: HashMap<&'a str, PortIndex>,
    pairs: Vec<Option<PortIndex>>,
    /// Of a device of which nothing is said.
    default_queues: u16,
    /// Own addresses and where they stand.
    own: HashMap<IpAddr, Span>,
}

/// Reads every `[[port]]` and checks them against each other.
pub(super) fn read<'a>(tables: &[Table<'a>], workers: usize, faults: &mut Faults<'_>) -> Ports<'a> {
    if let Some(extra) = tables.get(MAX_PORTS) {
        let message = format!(
            "this is port {}, and a gateway takes {MAX_PORTS}",
            MAX_PORTS + 1
        );
        faults.add(Fault::new(&extra.span, message).help("remove ports, or split the gateway"));
    }
    let tables = tables.get(..MAX_PORTS).unwrap_or(tables);
    let drafts: Vec<_> = tables.iter().map(|table| draft(table, faults)).collect();
    let mut ports = Ports {
        by_name: HashMap::new(),
        pairs: Vec::new(),
        default_queues: u16::try_from(workers)
            .unwrap_or(MAX_QUEUES)
            .clamp(1, MAX_QUEUES),
        own: HashMap::new(),
        drafts,
    };
    ports.check_names(faults);
    device::check(ports.drafts.iter().map(|draft| &draft.place), faults);
    ports.check_addresses(faults);
    ports.pairs = ports.resolve_pairs(faults);
    ports.check_mutual(faults);
    ports.check_sides(faults);
    ports
}

fn draft<'a>(table: &Table<'a>, faults: &mut Faults<'_>) -> Draft<'a> {
    const SIDES: &[(&str, Side)] = &[
        ("protected", Side::Protected),
        ("unprotected", Side::Unprotected),
    ];
    table.refuse_unknown(
        KEYS,
        &[("address", "write addresses = [\"192.0.2.1/24\"]")],
        faults,
    );
    let mtu = table
        .find(&MTU)
        .and_then(|value| value.number(1280..=9000, faults));
    let addresses = table
        .find(&ADDRESSES)
        .and_then(|value| value.list(faults))
        .unwrap_or_default();
    let host = table
        .find(&HOST)
        .and_then(|value| value.boolean(faults))
        .is_none_or(|host| host.value);
    let name = table
        .need(&NAME, faults)
        .and_then(|value| network::name(&value, faults));
    if let Some(long) = name
        .as_ref()
        .filter(|name| host && name.value.len() > MAX_INTERFACE_LEN)
    {
        let message = format!(
            "{} is too long for the port's interface in the kernel: {} characters, and at most {MAX_INTERFACE_LEN}",
            quoted(long.value),
            long.value.len()
        );
        faults.add(Fault::new(&long.span, message).help("shorten it, or write host = false"));
    }
    Draft {
        name,
        place: Place::read(table, faults),
        side: table
            .need(&SIDE, faults)
            .and_then(|value| network::choice(&value, SIDES, faults)),
        pair: table
            .need(&PAIR, faults)
            .and_then(|value| value.text(faults)),
        addresses: addresses
            .iter()
            .filter_map(|value| network::own_address(value, faults))
            .collect(),
        mtu: mtu.map_or(DEFAULT_MTU, |number| number.value),
        host,
    }
}

impl<'a> Ports<'a> {
    /// The port that a key names.
    pub(super) fn resolve(&self, name: &At<&str>, faults: &mut Faults<'_>) -> Option<PortIndex> {
        let found = self.by_name.get(name.value).copied();
        // Where a port's own name could not be read, or is another's by mistake, this may be it.
        if found.is_none() && self.by_name.len() == self.drafts.len() {
            let names: BTreeSet<_> = self.by_name.keys().copied().collect();
            let help = match closest(name.value, names.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None if names.is_empty() => {
                    format!("add a [[port]] with name = {}", quoted(name.value))
                }
                None => format!(
                    "ports are {}",
                    names.into_iter().collect::<Vec<_>>().join(", ")
                ),
            };
            let message = format!("no port is called {}", quoted(name.value));
            faults.add(Fault::new(&name.span, message).help(help));
        }
        found
    }

    /// Where `address` is declared as one of our own.
    pub(super) fn own_address(&self, address: IpAddr) -> Option<&Span> {
        self.own.get(&address)
    }

    /// The subnets that `port` stands in.
    pub(super) fn subnets(&self, port: PortIndex) -> impl Iterator<Item = IpNet> {
        let draft = self.drafts.get(port.index());
        draft
            .into_iter()
            .flat_map(|draft| &draft.addresses)
            .map(|address| address.value)
    }

    /// The name of `port`.
    pub(super) fn name(&self, port: PortIndex) -> &'a str {
        let name = self
            .drafts
            .get(port.index())
            .and_then(|draft| draft.name.as_ref());
        name.map_or("", |name| name.value)
    }

    fn check_names(&mut self, faults: &mut Faults<'_>) {
        for (index, draft) in (0..).map(PortIndex).zip(&self.drafts) {
            let Some(name) = &draft.name else { continue };
            match self.by_name.get(name.value) {
                None => {
                    self.by_name.insert(name.value, index);
                }
                Some(first) => {
                    let fault = Fault::new(
                        &name.span,
                        format!("two ports are called {}", quoted(name.value)),
                    )
                    .help("give each port a name of its own");
                    let first = self
                        .drafts
                        .get(first.index())
                        .and_then(|draft| draft.name.as_ref());
                    faults.add(match first {
                        Some(first) => fault.related(&first.span, "the name is first given here"),
                        None => fault,
                    });
                }
            }
        }
    }

    fn check_addresses(&mut self, faults: &mut Faults<'_>) {
        for address in self.drafts.iter().flat_map(|draft| &draft.addresses) {
            let ip = address.value.addr();
            if let Some(first) = self.own.get(&ip) {
                let fault = Fault::new(&address.span, format!("the address {ip} is given twice"));
                faults.add(
                    fault
                        .related(first, "it is first given here")
                        .help("remove one of the two"),
                );
            } else {
                self.own.insert(ip, address.span.clone());
            }
        }
    }

    fn resolve_pairs(&self, faults: &mut Faults<'_>) -> Vec<Option<PortIndex>> {
        let mut pairs = Vec::new();
        for (index, draft) in (0..).map(PortIndex).zip(&self.drafts) {
            let pair = draft
                .pair
                .as_ref()
                .and_then(|pair| self.resolve(pair, faults));
            pairs.push(pair);
            if let Some(written) = draft.pair.as_ref().filter(|_| pair == Some(index)) {
                let fault = Fault::new(
                    &written.span,
                    format!("port {} is its own pair", quoted(written.value)),
                );
                faults.add(fault.help("name the port on the other side that its packets leave by"));
            }
        }
        pairs
    }

    fn check_mutual(&self, faults: &mut Faults<'_>) {
        let pair_of = |port: PortIndex| self.pairs.get(port.index()).copied().flatten();
        for (index, draft) in (0..).map(PortIndex).zip(&self.drafts) {
            let Some(pair) = pair_of(index).filter(|pair| *pair != index) else {
                continue;
            };
            // Of a pair that is wrong by itself something was said already.
            let Some(back) = pair_of(pair).filter(|back| *back != index && *back != pair) else {
                continue;
            };
            let written = |port: PortIndex| {
                self.drafts
                    .get(port.index())
                    .and_then(|draft| draft.pair.as_ref())
            };
            let (Some(own), Some(other)) = (&draft.pair, written(pair)) else {
                continue;
            };
            let [name, pair, back] = [index, pair, back].map(|port| quoted(self.name(port)));
            let message = format!("the pair of {name} is {pair}, but the pair of {pair} is {back}");
            let fault =
                Fault::new(&own.span, message).related(&other.span, "the other pair is given here");
            faults.add(fault.help("pairs are mutual: each of the two ports names the other"));
        }
    }

    fn check_sides(&self, faults: &mut Faults<'_>) {
        for (index, draft) in (0..).map(PortIndex).zip(&self.drafts) {
            let pair = self.pairs.get(index.index()).copied().flatten();
            // Both ports have the same to say; the later one says it.
            let earlier = pair
                .filter(|pair| *pair < index)
                .and_then(|pair| self.drafts.get(pair.index()));
            let Some(earlier) = earlier else { continue };
            let (Some(side), Some(other)) = (&draft.side, &earlier.side) else {
                continue;
            };
            if side.value == other.value {
                let names = [&draft.name, &earlier.name]
                    .map(|name| name.as_ref().map_or("", |name| name.value));
                let [own, pair] = names.map(quoted);
                let fault = Fault::new(
                    &side.span,
                    format!("{own} and its pair {pair} are on the same side"),
                );
                let help = "one port of a pair is \"protected\", the other \"unprotected\"";
                faults.add(
                    fault
                        .related(&other.span, "the side of its pair")
                        .help(help),
                );
            }
        }
    }

    /// The checked ports; `None` where something was wrong.
    pub(super) fn finish(self) -> Option<Vec<Port>> {
        let places = self.drafts.iter().map(|draft| &draft.place);
        let placed = device::finish(places, self.default_queues)?;
        let checked = |((draft, place), pair): ((Draft<'_>, Placed), Option<PortIndex>)| {
            Some(Port {
                name: draft.name?.value.to_owned(),
                device: place.device,
                members: place.members,
                tags: place.tags,
                side: draft.side?.value,
                pair: pair?,
                addresses: draft
                    .addresses
                    .into_iter()
                    .map(|address| address.value)
                    .collect(),
                mtu: draft.mtu,
                queues: place.queues,
                host: draft.host,
            })
        };
        self.drafts
            .into_iter()
            .zip(placed)
            .zip(self.pairs)
            .map(checked)
            .collect()
    }
}
