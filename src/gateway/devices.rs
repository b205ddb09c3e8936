//! Which ports are on which device, and which devices their pairs join.

use crate::ids::PortIndex;
use crate::policy::Policy;
use crate::policy::model::Port;

/// The devices of a policy.
pub(super) struct Devices<'p> {
    devices: Vec<Device<'p>>,
    /// By `PortIndex`: the place of its device.
    of_port: Vec<usize>,
}

/// A device and its ports.
pub(super) struct Device<'p> {
    /// In declared order, at least one.
    pub(super) ports: Vec<(PortIndex, &'p Port)>,
    /// Devices with the same number are joined by pairs of ports, straight or by others.
    pub(super) group: usize,
}

impl<'p> Devices<'p> {
    pub(super) fn new(policy: &'p Policy) -> Self {
        let mut devices: Vec<Device<'p>> = Vec::new();
        let mut of_port = Vec::new();
        for (index, port) in (0u16..).map(PortIndex).zip(&policy.ports) {
            let same = |device: &Device<'_>| device.first().device == port.device;
            let at = devices.iter().position(same).unwrap_or(devices.len());
            if at == devices.len() {
                devices.push(Device {
                    ports: Vec::new(),
                    group: at,
                });
            }
            devices[at].ports.push((index, port));
            of_port.push(at);
        }
        for (port, at) in policy.ports.iter().zip(&of_port) {
            let (own, pair) = (
                devices[*at].group,
                devices[of_port[port.pair.index()]].group,
            );
            for device in &mut devices {
                if device.group == pair {
                    device.group = own;
                }
            }
        }
        Self { devices, of_port }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Device<'p>> {
        self.devices.iter()
    }

    /// The place of the device of a port.
    pub(super) fn of_port(&self, port: PortIndex) -> usize {
        self.of_port[port.index()]
    }

    /// The group of the device of a port.
    pub(super) fn group_of(&self, port: PortIndex) -> usize {
        self.devices[self.of_port(port)].group
    }

    /// The numbers of groups, in the order of their first devices.
    pub(super) fn groups(&self) -> Vec<usize> {
        let mut groups: Vec<usize> = Vec::new();
        for device in &self.devices {
            if !groups.contains(&device.group) {
                groups.push(device.group);
            }
        }
        groups
    }

    /// Whether ports of the group are told apart by tags.
    pub(super) fn is_tagged(&self, group: usize) -> bool {
        let of_group = |device: &&Device<'_>| device.group == group;
        let ports =
            |device: &Device<'p>| device.ports.iter().any(|(_, port)| !port.tags.is_empty());
        self.devices.iter().filter(of_group).any(ports)
    }
}

impl<'p> Device<'p> {
    /// The port that was declared first: what holds for the device is the same with all of them.
    pub(super) fn first(&self) -> &'p Port {
        self.ports[0].1
    }

    /// The names of its ports, for messages.
    pub(super) fn names(&self) -> String {
        let names: Vec<&str> = self
            .ports
            .iter()
            .map(|(_, port)| port.name.as_str())
            .collect();
        names.join(", ")
    }

    /// The largest IP packet of any of its ports.
    pub(super) fn ip_mtu(&self) -> u16 {
        let mtus = self.ports.iter().map(|(_, port)| port.mtu);
        mtus.max().unwrap_or(0)
    }

    /// The same with the tags before it: what a device that does not know of tags has to carry.
    pub(super) fn tagged_mtu(&self) -> u16 {
        let mtus = self.ports.iter().map(|(_, port)| {
            let tags = u16::try_from(port.tags.len()).unwrap_or(0);
            port.mtu.saturating_add(tags)
        });
        mtus.max().unwrap_or(0)
    }
}
