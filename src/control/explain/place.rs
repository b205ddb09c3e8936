//! Which port a packet comes in by, where nobody says.

use std::net::IpAddr;

use super::packet::{describe, ends, in_frame, traffic};
use super::{Captured, Link, Refused, Sources};
use crate::buf::{PacketBuf, TestBuf};
use crate::ids::{PortIndex, SaIndex};
use crate::ipsec::spd::SpdAction;
use crate::ipsec::traffic::Direction;
use crate::policy::model::{MacAddr, Port, Side};
use crate::wire::ip::Ip;
use crate::wire::vlan::VlanTags;
use crate::worker::vlan::untag;

/// A frame and the port it comes in by.
pub(super) enum Placed {
    /// Without VLAN tags, as stages see it.
    At(PortIndex, Vec<u8>),
    /// Its tags are those of no port of the device whose first one this is.
    UnknownVlan(PortIndex, VlanTags),
}

impl<'a> Sources<'a> {
    /// The port of a name.
    fn port_named(&self, name: &str) -> Result<PortIndex, Refused> {
        let found = self.policy.ports.iter().position(|port| port.name == name);
        let index = found.and_then(|at| u16::try_from(at).ok()).map(PortIndex);
        index.ok_or_else(|| Refused::NoPort {
            name: name.into(),
            ports: self.names(self.indices()),
        })
    }

    fn indices(&self) -> impl Iterator<Item = PortIndex> + use<'a> {
        (0u16..).map(PortIndex).take(self.policy.ports.len())
    }

    /// What the policy says of a port.
    pub(super) fn port(&self, index: PortIndex) -> Option<&'a Port> {
        self.policy.ports.get(index.index())
    }

    /// The MTU of a port.
    pub(super) fn mtu(&self, name: &str) -> Option<u16> {
        let mut ports = self.policy.ports.iter();
        ports.find(|port| port.name == name).map(|port| port.mtu)
    }

    fn on(&self, side: Side) -> Vec<PortIndex> {
        self.indices()
            .filter(|index| self.port(*index).is_some_and(|port| port.side == side))
            .collect()
    }

    fn names(&self, indices: impl IntoIterator<Item = PortIndex>) -> String {
        let ports = indices.into_iter().filter_map(|index| self.port(index));
        ports
            .map(|port| port.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The port of `side` that is named, the only one there is, or the only one that `fits` says something for; the first
    /// that tells one from the others counts.
    fn choose(
        &self,
        side: Side,
        named: Option<&str>,
        fits: &[&dyn Fn(PortIndex) -> bool],
    ) -> Result<PortIndex, Refused> {
        if let Some(name) = named {
            let index = self.port_named(name)?;
            return match self.port(index) {
                Some(port) if port.side == side => Ok(index),
                _ if side == Side::Protected => Err(Refused::WrongSide {
                    name: name.into(),
                    is: "unprotected",
                    hint: "outbound packets come in by a protected port; what comes in here is explained with --inbound",
                }),
                _ => Err(Refused::WrongSide {
                    name: name.into(),
                    is: "protected",
                    hint: "inbound packets come in by an unprotected port",
                }),
            };
        }
        let all = self.on(side);
        if let [only] = all[..] {
            return Ok(only);
        }
        for fits in fits {
            let fitting: Vec<_> = all.iter().copied().filter(|index| fits(*index)).collect();
            if let [only] = fitting[..] {
                return Ok(only);
            }
        }
        Err(Refused::WhichPort(self.names(all)))
    }

    /// The protected port that packets of `local` come in by.
    pub(super) fn port_of_local(
        &self,
        local: IpAddr,
        named: Option<&str>,
    ) -> Result<PortIndex, Refused> {
        let is_near = |index: PortIndex| self.is_in_subnet(index, local);
        let is_behind = |index: PortIndex| {
            let port = self.tables.port(index);
            // Without a MAC address it is there all the same.
            port.is_some_and(|port| {
                port.routes.lookup(local) != Err(crate::drop::DropReason::NoRoute)
            })
        };
        self.choose(Side::Protected, named, &[&is_near, &is_behind])
    }

    /// The unprotected port that packets for `local` come in by: out of the tunnel of the SA in `slot`, where there is one.
    pub(super) fn port_of_remote(
        &self,
        (local, slot): (IpAddr, Option<SaIndex>),
        named: Option<&str>,
    ) -> Result<PortIndex, Refused> {
        let pair = slot.and_then(|slot| self.pair(slot));
        let has_end = |index: PortIndex| {
            let own = self.port(index).map(|port| &port.addresses);
            pair.as_ref()
                .zip(own)
                .is_some_and(|(pair, own)| own.iter().any(|own| own.addr() == pair.local))
        };
        let leads_to_peer = |index: PortIndex| {
            let hop = self.tables.port(index).zip(slot);
            hop.is_some_and(|(port, slot)| port.sa_hop(slot).is_ok())
        };
        let is_before = |index: PortIndex| {
            let pair = self.port(index).map(|port| port.pair);
            pair.is_some_and(|pair| self.is_in_subnet(pair, local))
        };
        self.choose(
            Side::Unprotected,
            named,
            &[&has_end, &leads_to_peer, &is_before],
        )
    }

    fn is_in_subnet(&self, index: PortIndex, address: IpAddr) -> bool {
        let port = self.port(index);
        port.is_some_and(|port| port.addresses.iter().any(|net| net.contains(&address)))
    }

    /// Where a captured packet comes in.
    pub(super) fn place(
        &self,
        captured: &Captured,
        named: Option<&str>,
    ) -> Result<Placed, Refused> {
        let bytes = captured.bytes()?;
        match captured.link {
            Link::Ethernet => self.place_frame(bytes, named),
            Link::Ip => {
                let index = match named {
                    Some(name) => self.port_named(name)?,
                    None => self.port_of_packet(&bytes)?,
                };
                let mac = self.tables.port(index).map_or([0; 6], |port| port.mac);
                Ok(Placed::At(index, in_frame(&bytes, mac)))
            }
        }
    }

    fn place_frame(&self, bytes: Vec<u8>, named: Option<&str>) -> Result<Placed, Refused> {
        // What is too short for tags has none, and is a runt to whichever port it comes by.
        let tags = VlanTags::read(&bytes, None).map_or(VlanTags::NONE, |(tags, _)| tags);
        let index = match named {
            Some(name) => self.port_named(name)?,
            None => match self.port_by_mac(&bytes, tags)? {
                Ok(index) => index,
                Err(first) => return Ok(Placed::UnknownVlan(first, tags)),
            },
        };
        // Captured where the tags were off already.
        let is_bare = tags.is_empty();
        if !self.is_shared(index) {
            return Ok(Placed::At(index, bytes));
        }
        if is_bare || self.port(index).is_some_and(|port| port.tags == tags) {
            let mut frame = TestBuf::new(&bytes);
            let _ = untag(&mut frame, None);
            return Ok(Placed::At(index, frame.data().to_vec()));
        }
        let first = self.on_device_of(index).next().unwrap_or(index);
        match self
            .on_device_of(index)
            .find(|other| self.has_tags(*other, tags))
        {
            Some(other) => Err(Refused::TagsOf {
                tags: tags.to_string(),
                port: self.names([other]),
            }),
            None => Ok(Placed::UnknownVlan(first, tags)),
        }
    }

    /// By destination MAC and tags; the first port of the device, where its tags are those of none.
    fn port_by_mac(
        &self,
        frame: &[u8],
        tags: VlanTags,
    ) -> Result<Result<PortIndex, PortIndex>, Refused> {
        let mac_at = |at: usize| frame.get(at..)?.first_chunk::<6>().copied();
        let (Some(destination), Some(source)) = (mac_at(0), mac_at(6)) else {
            return Err(Refused::NoFrame(frame.len()));
        };
        let with_mac = |mac: [u8; 6]| {
            let is_of = move |index: &PortIndex| {
                self.tables.port(*index).is_some_and(|port| port.mac == mac)
            };
            self.indices().filter(is_of).collect::<Vec<_>>()
        };
        let is_group = destination[0] & 1 != 0;
        let candidates = match is_group {
            true => self.indices().collect(),
            false => with_mac(destination),
        };
        let fitting: Vec<_> = candidates
            .iter()
            .copied()
            .filter(|index| !self.is_shared(*index) || self.has_tags(*index, tags))
            .collect();
        match (fitting[..].as_ref(), candidates.first()) {
            ([only], _) => Ok(Ok(*only)),
            ([], Some(first)) if !is_group => {
                Ok(Err(self.on_device_of(*first).next().unwrap_or(*first)))
            }
            ([], _) => Err(Refused::NobodysMac {
                mac: MacAddr(destination).to_string(),
                ports: self.macs(),
                sent: match &with_mac(source)[..] {
                    [] => String::new(),
                    senders => format!(
                        ". It was sent by port {}: capture what the gateway receives, or explain the packet that it was made of",
                        self.names(senders.iter().copied())
                    ),
                },
            }),
            _ => Err(Refused::WhichPort(self.names(fitting))),
        }
    }

    fn macs(&self) -> String {
        let told = self.indices().filter_map(|index| {
            let mac = MacAddr(self.tables.port(index)?.mac);
            Some(format!("{} {mac}", self.port(index)?.name))
        });
        told.collect::<Vec<_>>().join(", ")
    }

    fn on_device_of(&self, index: PortIndex) -> impl Iterator<Item = PortIndex> + '_ {
        let device = self.port(index).map(|port| &port.device);
        self.indices()
            .filter(move |other| self.port(*other).map(|port| &port.device) == device)
    }

    /// Whether frames are told apart by tags before they come to a port.
    fn is_shared(&self, index: PortIndex) -> bool {
        self.on_device_of(index)
            .any(|other| other != index || !self.has_tags(other, VlanTags::NONE))
    }

    fn has_tags(&self, index: PortIndex, tags: VlanTags) -> bool {
        self.port(index).is_some_and(|port| port.tags == tags)
    }

    /// The port of an IP packet without a frame, by its addresses.
    fn port_of_packet(&self, packet: &[u8]) -> Result<PortIndex, Refused> {
        let unknown = || Refused::WhichPort(self.names(self.indices()));
        let Ok(parsed) = Ip::parse(packet) else {
            return Err(unknown());
        };
        let (source, destination) = (parsed.source(), parsed.destination());
        let is_own = |index: PortIndex| {
            let port = self.port(index);
            port.is_some_and(|port| port.addresses.iter().any(|own| own.addr() == destination))
        };
        let is_end = |index: PortIndex| {
            let port = self.tables.port(index);
            port.is_some_and(|port| port.local.tunnel_ends.contains(&destination))
        };
        for fits in [&is_own as &dyn Fn(PortIndex) -> bool, &is_end] {
            let fitting: Vec<_> = self.indices().filter(|index| fits(*index)).collect();
            if let [only] = fitting[..] {
                return Ok(only);
            }
        }
        let says = |direction| {
            let traffic = traffic(packet, direction)?;
            let (_, action) = self.tables.spd.search(traffic);
            (action != SpdAction::NoPolicy).then_some(ends(traffic))
        };
        if says(Direction::Outbound).is_some() {
            return self.port_of_local(source, None);
        }
        if says(Direction::Inbound).is_some() {
            return self.port_of_remote((destination, None), None);
        }
        Err(unknown())
    }

    /// The IP packet of a frame in one line, or the frame.
    pub(super) fn describe_frame(frame: &[u8]) -> String {
        match frame.get(12..).and_then(|rest| rest.split_first_chunk()) {
            Some(([8, 0] | [0x86, 0xdd], packet)) => describe(packet),
            Some(([8, 6], _)) => "ARP".into(),
            Some((kind, _)) => format!(
                "a frame of {} bytes, EtherType {:#06x}",
                frame.len(),
                u16::from_be_bytes(*kind)
            ),
            None => format!("a frame of {} bytes", frame.len()),
        }
    }
}
