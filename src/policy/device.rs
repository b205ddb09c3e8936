//! What a port is on: a device, a bond's members, and VLAN tags where several ports share one.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::diagnostic::{Fault, Faults, quoted};
use super::file::{At, Key, Span, Table, Value};
use super::model::Device;
use crate::wire::vlan::{VlanId, VlanTags};

pub(super) const DEVICE: Key = Key::new("device", "device = \"0000:3b:00.0\"");
pub(super) const MEMBERS: Key =
    Key::new("members", "members = [\"0000:3b:00.0\", \"0000:3b:00.1\"]");
pub(super) const VLAN: Key = Key::new("vlan", "vlan = 100");
pub(super) const QUEUES: Key = Key::new("queues", "queues = 1");

/// As many devices as DPDK is built for, members of bonds included.
const MAX_DEVICES: usize = 32;
/// Most queue pairs of a device.
pub(super) const MAX_QUEUES: u16 = 64;

/// What one port says of its device.
pub(super) struct Place {
    pub(super) device: Option<At<Device>>,
    /// `None` where nothing is said.
    members: Option<At<Vec<At<Device>>>>,
    /// `None` where they could not be read. Without the key the span is the device's.
    tags: Option<At<VlanTags>>,
    /// `None` where nothing is said.
    queues: Option<At<u16>>,
}

/// What a port is on.
pub(super) struct Placed {
    pub(super) device: Device,
    pub(super) members: Vec<Device>,
    pub(super) tags: VlanTags,
    pub(super) queues: u16,
}

impl Place {
    pub(super) fn read(table: &Table<'_>, faults: &mut Faults<'_>) -> Self {
        let device = table
            .need(&DEVICE, faults)
            .and_then(|value| device(&value, faults));
        let members = table.find(&MEMBERS).and_then(|value| {
            let list = value.list(faults)?;
            if list.is_empty() {
                let help = format!("name what the device bonds: {}", MEMBERS.example);
                faults.add(Fault::new(&value.span, "members names no device").help(help));
            }
            let members = list.iter().filter_map(|value| self::device(value, faults));
            Some(At {
                value: members.collect(),
                span: value.span.clone(),
            })
        });
        let tags = match table.find(&VLAN) {
            Some(value) => tags(&value, faults),
            None => Some(At {
                value: VlanTags::NONE,
                span: device
                    .as_ref()
                    .map_or_else(|| table.span.clone(), |device| device.span.clone()),
            }),
        };
        let queues = table
            .find(&QUEUES)
            .and_then(|value| value.number(1..=MAX_QUEUES, faults));
        Self {
            device,
            members,
            tags,
            queues,
        }
    }
}

/// Checks what ports say of one device against each other, and that no two devices are one.
pub(super) fn check<'p>(places: impl Iterator<Item = &'p Place> + Clone, faults: &mut Faults<'_>) {
    let mut devices: HashMap<&str, Vec<&Place>> = HashMap::new();
    let mut taken = Taken::default();
    for place in places.clone() {
        let Some(device) = &place.device else {
            continue;
        };
        let others = devices.entry(device.value.name()).or_default();
        if others.is_empty() {
            taken.add(device, faults);
        }
        place.check_members(faults);
        place.check_against(others, faults);
        others.push(place);
    }
    // Once for each device, in the file's order.
    for device in places.filter_map(|place| place.device.as_ref()) {
        let Some(of_device) = devices.remove(device.value.name()) else {
            continue;
        };
        let said = of_device.iter().find_map(|place| place.members.as_ref());
        match said {
            Some(members) => {
                let members = members.value.iter();
                members.for_each(|member| taken.add(member, faults));
            }
            None if device.value.is_bond() => {
                let message = format!("{} has no members", device.value.name());
                let help = format!("name what it bonds: {}", MEMBERS.example);
                faults.add(Fault::new(&device.span, message).help(help));
            }
            None => {}
        }
    }
}

/// Devices that something is, by name, and where that is said.
#[derive(Default)]
struct Taken<'p>(HashMap<&'p str, &'p Span>);

impl<'p> Taken<'p> {
    fn add(&mut self, device: &'p At<Device>, faults: &mut Faults<'_>) {
        let name = device.value.name();
        let count = self.0.len();
        match self.0.entry(name) {
            Entry::Occupied(first) => {
                let message = format!("the device {name} is given twice");
                let fault = Fault::new(&device.span, message)
                    .help("a member of a bond belongs to it alone: name another device");
                faults.add(fault.related(first.get(), "the device is first given here"));
            }
            Entry::Vacant(place) => {
                place.insert(&device.span);
                if count == MAX_DEVICES {
                    let message =
                        format!("this is device {}, and DPDK takes {MAX_DEVICES}", count + 1);
                    let fault = Fault::new(&device.span, message);
                    faults.add(fault.help("remove devices, or split the gateway"));
                }
            }
        }
    }
}

/// What each port is on; `None` where something was wrong. What one port says of queues and members holds for all ports of
/// the device; where none does, there are `default` queues.
pub(super) fn finish<'p>(
    places: impl Iterator<Item = &'p Place> + Clone,
    default: u16,
) -> Option<Vec<Placed>> {
    let said = |device: &Device| {
        let name = device.name().to_owned();
        let same = move |place: &&Place| {
            let device = place.device.as_ref();
            device.is_some_and(|device| device.value.name() == name)
        };
        places.clone().filter(same)
    };
    let placed = |place: &Place| {
        let device = &place.device.as_ref()?.value;
        let queues = said(device).find_map(|place| place.queues.as_ref());
        let members = said(device).find_map(|place| place.members.as_ref());
        let members = members.into_iter().flat_map(|members| &members.value);
        Some(Placed {
            device: device.clone(),
            members: members.map(|member| member.value.clone()).collect(),
            tags: place.tags.as_ref()?.value,
            queues: queues.map_or(default, |queues| queues.value),
        })
    };
    places.clone().map(placed).collect()
}

impl Place {
    /// Bonds have members and other devices none.
    fn check_members(&self, faults: &mut Faults<'_>) {
        let Some(device) = &self.device else { return };
        let name = device.value.name();
        let arguments = device.value.text().split(',').skip(1);
        if device.value.is_bond()
            && let Some(argument) = arguments
                .into_iter()
                .find(|text| text.starts_with("slave="))
        {
            let message = format!("{} does not belong in device", quoted(argument));
            let help = format!(
                "name what it bonds in a key of its own: {}",
                MEMBERS.example
            );
            faults.add(Fault::new(&device.span, message).help(help));
        }
        let Some(members) = &self.members else { return };
        let wrong = if !device.value.is_bond() {
            format!("{name} is no bond, and has no members")
        } else if members.value.iter().any(|member| member.value.is_bond()) {
            "a member of a bond is a bond itself".to_owned()
        } else {
            return;
        };
        let help = format!(
            "write device = \"net_bonding0,mode=1\" and devices that are none, {}",
            MEMBERS.example
        );
        faults.add(Fault::new(&members.span, wrong).help(help));
    }

    /// `others` are on the same device, and were declared before.
    fn check_against(&self, others: &[&Self], faults: &mut Faults<'_>) {
        let Some(device) = &self.device else { return };
        let name = device.value.name();
        if let Some(tags) = &self.tags {
            let same = others
                .iter()
                .filter_map(|other| other.tags.as_ref())
                .find(|other| other.value == tags.value);
            if let Some(same) = same {
                faults.add(same_tags(device, tags, &same.span));
                return;
            }
        }
        let first = others.first().and_then(|first| first.device.as_ref());
        if let Some(first) = first.filter(|first| first.value != device.value) {
            let message = format!("{name} is given twice, with different arguments");
            let help = format!("write device = {} for both", quoted(first.value.text()));
            let fault = Fault::new(&device.span, message).help(help);
            faults.add(fault.related(&first.span, "the device is first given here"));
        }
        let said = others.iter().find_map(|other| other.queues.as_ref());
        if let (Some(own), Some(said)) = (&self.queues, said)
            && own.value != said.value
        {
            let message = format!(
                "{} queues of {name}, which has {} by another port",
                own.value, said.value
            );
            let fault = Fault::new(&own.span, message)
                .related(&said.span, "the queues of the device are first given here");
            faults.add(fault.help("the ports of a device share its queues: write queues once"));
        }
        let said = others.iter().find_map(|other| other.members.as_ref());
        if let (Some(own), Some(said)) = (&self.members, said)
            && !own
                .value
                .iter()
                .map(|at| &at.value)
                .eq(said.value.iter().map(|at| &at.value))
        {
            let message = format!("other members of {name} than another port has");
            let fault = Fault::new(&own.span, message)
                .related(&said.span, "its members are first given here");
            faults.add(fault.help("the ports of a device share its members: write members once"));
        }
    }
}

/// Two ports are on `device` with the same tags.
fn same_tags(device: &At<Device>, tags: &At<VlanTags>, first: &Span) -> Fault {
    let name = device.value.name();
    if !tags.value.is_empty() {
        let fault = Fault::new(
            &tags.span,
            format!("two ports have VLAN {} of the device {name}", tags.value),
        );
        return fault
            .related(first, "the VLAN is first given here")
            .help("give each port a VLAN of its own");
    }
    let fault = Fault::new(&tags.span, format!("two ports have the device {name}"));
    let help = match &device.value {
        Device::Pci(_) => {
            "give each port a device of its own, or one of the two a VLAN: vlan = 100"
        }
        Device::Virtual(_) => {
            "give each virtual device a number of its own, before the comma, or one of the two ports a VLAN: vlan = 100"
        }
    };
    fault
        .related(first, "the device is first given here")
        .help(help)
}

/// One VLAN, or an outer and an inner one.
fn tags(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<At<VlanTags>> {
    let mut id = |value: &Value<'_>| {
        let number = value.number(VlanId::MIN..=VlanId::MAX, faults)?;
        VlanId::new(number.value)
    };
    let tags = match value.as_list().as_deref() {
        None => VlanTags::single(id(value)?),
        Some([outer, inner]) => match (id(outer), id(inner)) {
            (Some(outer), Some(inner)) => VlanTags::double(outer, inner),
            _ => return None,
        },
        Some(list) => {
            let message = format!("vlan has {} tags in a list", list.len());
            let help =
                "write one number, vlan = 100, or an outer and an inner one, vlan = [200, 100]";
            faults.add(Fault::new(&value.span, message).help(help));
            return None;
        }
    };
    Some(At {
        value: tags,
        span: value.span.clone(),
    })
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
