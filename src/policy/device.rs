//! What a port is on: a device, and VLAN tags where several ports share one.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::diagnostic::{Fault, Faults, quoted};
use super::file::{At, Key, Span, Table, Value};
use super::model::Device;
use crate::wire::vlan::{VlanId, VlanTags};

pub(super) const DEVICE: Key = Key::new("device", "device = \"0000:3b:00.0\"");
pub(super) const VLAN: Key = Key::new("vlan", "vlan = 100");
pub(super) const QUEUES: Key = Key::new("queues", "queues = 1");

/// As many devices as DPDK is built for.
const MAX_DEVICES: usize = 32;
/// Most queue pairs of a device.
pub(super) const MAX_QUEUES: u16 = 64;

/// What one port says of its device.
pub(super) struct Place {
    pub(super) device: Option<At<Device>>,
    /// `None` where they could not be read. Without the key the span is the device's.
    tags: Option<At<VlanTags>>,
    /// `None` where nothing is said.
    queues: Option<At<u16>>,
}

/// What a port is on.
pub(super) struct Placed {
    pub(super) device: Device,
    pub(super) tags: VlanTags,
    pub(super) queues: u16,
}

impl Place {
    pub(super) fn read(table: &Table<'_>, faults: &mut Faults<'_>) -> Self {
        let device = table
            .need(&DEVICE, faults)
            .and_then(|value| device(&value, faults));
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
            tags,
            queues,
        }
    }
}

/// Checks what ports say of one device against each other.
pub(super) fn check<'p>(places: impl Iterator<Item = &'p Place>, faults: &mut Faults<'_>) {
    let mut devices: HashMap<&str, Vec<&Place>> = HashMap::new();
    for place in places {
        let Some(device) = &place.device else {
            continue;
        };
        let count = devices.len();
        let others = devices.entry(device_name(&device.value)).or_default();
        if others.is_empty() && count == MAX_DEVICES {
            let message = format!("this is device {}, and DPDK takes {MAX_DEVICES}", count + 1);
            let fault = Fault::new(&device.span, message);
            faults.add(fault.help("remove devices, or split the gateway"));
        }
        place.check_against(others, faults);
        others.push(place);
    }
}

/// What each port is on; `None` where something was wrong. Who says nothing of queues has those of the other ports of the
/// device, or `default`.
pub(super) fn finish<'p>(
    places: impl Iterator<Item = &'p Place> + Clone,
    default: u16,
) -> Option<Vec<Placed>> {
    let said: HashMap<&str, u16> = places
        .clone()
        .filter_map(|place| {
            let name = device_name(&place.device.as_ref()?.value);
            Some((name, place.queues.as_ref()?.value))
        })
        .collect();
    let placed = |place: &Place| {
        let device = &place.device.as_ref()?.value;
        let queues = said.get(device_name(device)).copied();
        Some(Placed {
            device: device.clone(),
            tags: place.tags.as_ref()?.value,
            queues: queues.unwrap_or(default),
        })
    };
    places.map(placed).collect()
}

impl Place {
    /// `others` are on the same device, and were declared before.
    fn check_against(&self, others: &[&Self], faults: &mut Faults<'_>) {
        let Some(device) = &self.device else { return };
        let name = device_name(&device.value);
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
    }
}

/// Two ports are on `device` with the same tags.
fn same_tags(device: &At<Device>, tags: &At<VlanTags>, first: &Span) -> Fault {
    let name = device_name(&device.value);
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

/// What DPDK knows a device by: its address, or its name without arguments.
fn device_name(device: &Device) -> &str {
    match device {
        Device::Pci(address) => address,
        Device::Virtual(text) => text.split(',').next().unwrap_or_default(),
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
