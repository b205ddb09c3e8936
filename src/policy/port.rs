//! The `[[port]]` tables.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::diagnostic::{Fault, Faults, quoted};
use super::file::{At, Key, Span, Table, Value, closest};
use super::model::{Device, Port, Side};
use super::network;
use crate::ids::PortIndex;

const NAME: Key = Key::new("name", "name = \"lan\"");
const DEVICE: Key = Key::new("device", "device = \"0000:3b:00.0\"");
const SIDE: Key = Key::new("side", "side = \"protected\"");
const PAIR: Key = Key::new("pair", "pair = \"wan\"");
const ADDRESSES: Key = Key::new("addresses", "addresses = [\"192.0.2.1/24\"]");
const MTU: Key = Key::new("mtu", "mtu = 1500");
const QUEUES: Key = Key::new("queues", "queues = 1");
const HOST: Key = Key::new("host", "host = false");
const KEYS: &[&Key] = &[
    &NAME, &DEVICE, &SIDE, &PAIR, &ADDRESSES, &MTU, &QUEUES, &HOST,
];

/// As many ports as DPDK is built for.
const MAX_PORTS: usize = 32;
const MAX_QUEUES: u16 = 64;
const DEFAULT_MTU: u16 = 1500;
/// Longest name of an interface in Linux, in bytes.
const MAX_INTERFACE_LEN: usize = 15;

/// One port as far as it could be read.
struct Draft<'a> {
    name: Option<At<&'a str>>,
    device: Option<At<Device>>,
    side: Option<At<Side>>,
    pair: Option<At<&'a str>>,
    addresses: Vec<At<IpNet>>,
    mtu: u16,
    queues: u16,
    host: bool,
}

/// Every port as far as it could be read.
pub(super) struct Ports<'a> {
    drafts: Vec<Draft<'a>>,
    by_name: HashMap<&'a str, PortIndex>,
    pairs: Vec<Option<PortIndex>>,
    /// Own addresses and where they stand.
    own: HashMap<IpAddr, Span>,
}

/// Reads every `[[port]]` and checks them against each other.
pub(super) fn read<'a>(tables: &[Table<'a>], workers: usize, faults: &mut Faults<'_>) -> Ports<'a> {
    if let Some(extra) = tables.get(MAX_PORTS) {
        let message = format!("this is port {}, and DPDK takes {MAX_PORTS}", MAX_PORTS + 1);
        faults.add(Fault::new(&extra.span, message).help("remove ports, or split the gateway"));
    }
    let tables = tables.get(..MAX_PORTS).unwrap_or(tables);
    let drafts: Vec<_> = tables
        .iter()
        .map(|table| draft(table, workers, faults))
        .collect();
    let mut ports = Ports {
        by_name: HashMap::new(),
        pairs: Vec::new(),
        own: HashMap::new(),
        drafts,
    };
    ports.check_names(faults);
    ports.check_devices(faults);
    ports.check_addresses(faults);
    ports.pairs = ports.resolve_pairs(faults);
    ports.check_mutual(faults);
    ports.check_sides(faults);
    ports
}

fn draft<'a>(table: &Table<'a>, workers: usize, faults: &mut Faults<'_>) -> Draft<'a> {
    const SIDES: &[(&str, Side)] = &[
        ("protected", Side::Protected),
        ("unprotected", Side::Unprotected),
    ];
    table.refuse_unknown(
        KEYS,
        &[("address", "write addresses = [\"192.0.2.1/24\"]")],
        faults,
    );
    let default_queues = u16::try_from(workers)
        .unwrap_or(MAX_QUEUES)
        .clamp(1, MAX_QUEUES);
    let queues = table
        .find(&QUEUES)
        .and_then(|value| value.number(1..=MAX_QUEUES, faults));
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
        device: table
            .need(&DEVICE, faults)
            .and_then(|value| device(&value, faults)),
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
        queues: queues.map_or(default_queues, |number| number.value),
        host,
    }
}

/// A PCI address, or a virtual device's name with its arguments.
fn device(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<At<Device>> {
    let text = value.text(faults)?;
    let device = match pci_address(text.value) {
        Some(address) => Device::Pci(address),
        None if is_virtual(text.value) => Device::Virtual(text.value.to_owned()),
        None => {
            let message = format!(
                "{} is neither a PCI address nor a virtual device",
                quoted(text.value)
            );
            let help = "write a PCI address, \"0000:3b:00.0\", or a DPDK device with a number, \
                        \"net_af_packet0,iface=eth0\"";
            faults.add(Fault::new(&text.span, message).help(help));
            return None;
        }
    };
    Some(At {
        value: device,
        span: text.span,
    })
}

/// The full form, `0000:3b:00.0`, of a PCI address with or without its domain.
fn pci_address(text: &str) -> Option<String> {
    let hex = |digits: &str, len: usize| {
        let good = digits.len() == len && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        good.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
    };
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, slot) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
    let (domain, bus) = (hex(domain, 4)?, hex(bus, 2)?);
    let slot = hex(slot, 2).filter(|&slot| slot < 32)?;
    let function = hex(function, 1).filter(|&function| function < 8)?;
    Some(format!("{domain:04x}:{bus:02x}:{slot:02x}.{function}"))
}

fn is_virtual(text: &str) -> bool {
    let (name, arguments) = text.split_once(',').unwrap_or((text, ""));
    let good_char = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with("net_")
        && name.ends_with(|c: char| c.is_ascii_digit())
        && name.chars().all(good_char)
        && name.len() <= 63
        && !arguments.chars().any(char::is_control)
}

/// What DPDK knows a device by: its address, or its name without arguments.
fn device_name(device: &Device) -> &str {
    match device {
        Device::Pci(address) => address,
        Device::Virtual(text) => text.split(',').next().unwrap_or_default(),
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

    fn check_devices(&self, faults: &mut Faults<'_>) {
        let mut seen: HashMap<&str, &Span> = HashMap::new();
        for device in self.drafts.iter().filter_map(|draft| draft.device.as_ref()) {
            let name = device_name(&device.value);
            if let Some(first) = seen.get(name) {
                let fault = Fault::new(&device.span, format!("two ports have the device {name}"));
                let help = match &device.value {
                    Device::Pci(_) => "give each port a device of its own",
                    Device::Virtual(_) => {
                        "give each virtual device a number of its own, before the comma"
                    }
                };
                faults.add(
                    fault
                        .related(first, "the device is first given here")
                        .help(help),
                );
            } else {
                seen.insert(name, &device.span);
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
        let checked = |(draft, pair): (Draft<'_>, Option<PortIndex>)| {
            Some(Port {
                name: draft.name?.value.to_owned(),
                device: draft.device?.value,
                side: draft.side?.value,
                pair: pair?,
                addresses: draft
                    .addresses
                    .into_iter()
                    .map(|address| address.value)
                    .collect(),
                mtu: draft.mtu,
                queues: draft.queues,
                host: draft.host,
            })
        };
        self.drafts
            .into_iter()
            .zip(self.pairs)
            .map(checked)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_are_completed() {
        assert_eq!(pci_address("0000:3B:00.0").as_deref(), Some("0000:3b:00.0"));
        assert_eq!(pci_address("3b:1f.7").as_deref(), Some("0000:3b:1f.7"));
        for wrong in [
            "3b:20.0",
            "3b:00.8",
            "3b:00",
            "0000:3b:00.0,x=1",
            "b:00.0",
            "+b:00.0",
        ] {
            assert_eq!(pci_address(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn virtual_devices_have_a_number() {
        assert!(is_virtual("net_af_packet0,iface=lan0"));
        assert!(is_virtual("net_null1"));
        for wrong in ["eth0", "net_tap", "net_tap0\n", "net-tap0", "net_tap0,a\tb"] {
            assert!(!is_virtual(wrong), "{wrong}");
        }
    }
}
