//! A checked policy: what a file says once every rule holds.
//!
//! [`super::parse`] is the only way to get a [`Policy`]; nothing downstream checks its invariants again.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::crypto::aead::KeyMaterial;
use crate::ids::{PortIndex, SaIndex, Spi, TunnelIndex};
pub use crate::ipsec::outer::{
    DontFragment, Dscp, EcnMode, Encapsulation, Fragmentation, OuterHeader, SizeRules,
};
use crate::ipsec::rules::{Span, TrafficBox};
use crate::wire::vlan::VlanTags;

/// One gateway: its ports, its static neighbours and routes, its tunnels.
pub struct Policy {
    /// The gateway itself.
    pub gateway: Gateway,
    /// Ports in declared order; [`PortIndex`] is the position. Pairs are mutual and join the two sides.
    pub ports: Vec<Port>,
    /// Static neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Static routes.
    pub routes: Vec<Route>,
    /// Tunnels in declared order; `TunnelIndex` is the position.
    pub tunnels: Vec<Tunnel>,
    /// What passes in clear or is discarded; first all of the one, then all of the other.
    pub rules: Vec<Rule>,
    /// Ordered policies, asked before all of those: the first that holds a packet decides.
    pub entries: Vec<SpdEntry>,
}

impl Policy {
    /// Forgets every key, once SAs have been made of them; what names the keys stays.
    pub fn forget_keys(&mut self) {
        let tunnels = self.tunnels.iter_mut();
        for set in tunnels.flat_map(|tunnel| &mut tunnel.endpoints) {
            set.outbound.key.forget();
            set.inbound.key.forget();
        }
    }
}

/// Settings of the whole gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Name, also DPDK's file prefix: letters, digits, `-` and `_`.
    pub name: String,
    /// Cores of the workers, one each, in order, without repetition.
    pub workers: Vec<usize>,
    /// Where sequence numbers are leased.
    pub state_dir: PathBuf,
    /// Unix socket of the control side.
    pub control_socket: PathBuf,
    /// The group that may use it beside the owner.
    pub control_group: Option<String>,
    /// Memory for DPDK, in MiB.
    pub memory_mib: u32,
    /// The operator accepts static keys with GCM, against RFC 8221 section 3.
    pub lab_keys: bool,
    /// Senders are told by ICMP where policy discards their packets (RFC 4301 section 5.1.1).
    pub admin_prohibited: bool,
}

/// How DPDK finds a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Device {
    /// A PCI address, `0000:3b:00.0`.
    Pci(String),
    /// A virtual device with its arguments, `net_af_packet0,iface=g0`.
    Virtual(String),
}

impl Device {
    /// As DPDK has it.
    pub fn text(&self) -> &str {
        match self {
            Self::Pci(text) | Self::Virtual(text) => text,
        }
    }

    /// What DPDK knows it by: its address, or its name without arguments.
    pub fn name(&self) -> &str {
        match self {
            Self::Pci(address) => address,
            Self::Virtual(text) => text.split(',').next().unwrap_or_default(),
        }
    }

    /// Whether it is a bond, of devices that are its members.
    pub fn is_bond(&self) -> bool {
        self.name().starts_with("net_bonding")
    }
}

/// RFC 4301 section 3.1: clear text lives on the protected side, tunnels on the unprotected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Towards the hosts: clear text.
    Protected,
    /// Towards the peers: tunnels.
    Unprotected,
}

/// One port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Its name in the file.
    pub name: String,
    /// What DPDK opens. Several ports may be on one device, with different tags.
    pub device: Device,
    /// Where the device is a bond, what it bonds: at least one, none of them a bond.
    pub members: Vec<Device>,
    /// VLAN tags of its frames.
    pub tags: VlanTags,
    /// Which side it faces.
    pub side: Side,
    /// The port that what enters here leaves by; on the other side, and its pair is this one.
    pub pair: PortIndex,
    /// Own addresses with the length of the subnet they stand in (`192.0.2.1/24` keeps the host part).
    pub addresses: Vec<IpNet>,
    /// Largest IP packet, in bytes: 1280 to 9000.
    pub mtu: u16,
    /// Queue pairs asked for, 1 to 64; those of its device. The driver may offer fewer.
    pub queues: u16,
    /// Whether it has a twin in the kernel, of its name: at most 15 characters then.
    pub host: bool,
}

/// A 48-bit MAC address in wire order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A static neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The port it is reached by.
    pub port: PortIndex,
}

/// A static route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Destination prefix, host bits zero.
    pub to: IpNet,
    /// Next hop, same family as `to`.
    pub via: IpAddr,
    /// The port it is reached by.
    pub port: PortIndex,
}

/// One tunnel: which traffic, between which gateways.
pub struct Tunnel {
    /// Its name in the file, unique.
    pub name: String,
    /// Protected networks on this side, host bits zero, at least one.
    pub local_networks: Vec<IpNet>,
    /// Protected networks behind the peer, host bits zero, at least one; some family is on both sides.
    pub remote_networks: Vec<IpNet>,
    /// How long each of its SAs, in either direction, may be used.
    pub lifetime: Lifetime,
    /// One endpoint set, or one of each outer family. Where the tunnel is split into several SA pairs, a set is there once
    /// for each of them: next to each other, and alike but for the SAs.
    pub endpoints: Vec<EndpointSet>,
}

/// How long an SA may be used (RFC 4301 section 4.4.2.1), where there is a limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lifetime {
    /// Inner bytes that it seals or opens.
    pub bytes: Option<Limit>,
    /// Packets that it seals or opens.
    pub packets: Option<Limit>,
    /// Milliseconds since it was installed.
    pub time_ms: Option<Limit>,
}

/// One limit of a lifetime: what is told when it is near, and what ends the SA. Both at least 1, `soft` never more than `hard`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// From here on the SA ought to be replaced.
    pub soft: u64,
    /// From here on it is not used.
    pub hard: u64,
}

/// What is done with chosen traffic that no tunnel carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Its name in the file, which no tunnel and no other rule has.
    pub name: String,
    /// What is done.
    pub action: RuleAction,
    /// Networks on this side, as a tunnel has them.
    pub local_networks: Vec<IpNet>,
    /// Networks on the other side, likewise.
    pub remote_networks: Vec<IpNet>,
}

/// What a policy does that needs no SA (RFC 4301 section 4.4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RuleAction {
    /// Passes on in clear, both ways.
    Bypass,
    /// Discards.
    Discard,
}

/// One ordered policy with full selectors (RFC 4301 section 4.4.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpdEntry {
    /// Its name in the file, which no tunnel and no other policy has.
    pub name: String,
    /// What is done.
    pub action: EntryAction,
    /// Addresses on this side.
    pub local: Vec<AddressRange>,
    /// Addresses on the other side; of some family on both.
    pub remote: Vec<AddressRange>,
    /// Protocols and ports.
    pub upper: Vec<UpperRange>,
}

/// What an ordered policy does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryAction {
    /// Has a tunnel carry it.
    Protect(TunnelIndex),
    /// Passes it on in clear, both ways.
    Bypass,
    /// Discards it.
    Discard,
}

/// First and last address, host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressRange {
    /// IPv4.
    V4(Span<u32>),
    /// IPv6.
    V6(Span<u128>),
}

/// Protocols, and ports of them or types and codes, as [`crate::ipsec::traffic::Traffic`] has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UpperRange {
    /// First and last protocol.
    pub protocol: Span<u8>,
    /// Ports on this side.
    pub local_port: Span<u32>,
    /// Ports on the other side.
    pub remote_port: Span<u32>,
}

impl SpdEntry {
    /// What it holds of IPv4.
    pub fn boxes_v4(&self) -> impl Iterator<Item = TrafficBox<u32>> {
        self.boxes(|range| match range {
            AddressRange::V4(span) => Some(span),
            AddressRange::V6(_) => None,
        })
    }

    /// What it holds of IPv6.
    pub fn boxes_v6(&self) -> impl Iterator<Item = TrafficBox<u128>> {
        self.boxes(|range| match range {
            AddressRange::V6(span) => Some(span),
            AddressRange::V4(_) => None,
        })
    }

    fn boxes<A: Copy>(
        &self,
        of_family: impl Fn(AddressRange) -> Option<Span<A>> + Copy,
    ) -> impl Iterator<Item = TrafficBox<A>> {
        let spans = move |ranges: &[AddressRange]| -> Vec<Span<A>> {
            ranges.iter().copied().filter_map(of_family).collect()
        };
        let remotes = spans(&self.remote);
        spans(&self.local).into_iter().flat_map(move |local| {
            remotes.clone().into_iter().flat_map(move |remote| {
                self.upper.iter().map(move |upper| TrafficBox {
                    local,
                    remote,
                    protocol: upper.protocol,
                    local_port: upper.local_port,
                    remote_port: upper.remote_port,
                })
            })
        })
    }
}

/// The two tunnel endpoints in one address family, and an SA pair between them.
pub struct EndpointSet {
    /// The slot of its SA pair, the same in both directions; those of a split tunnel are next to each other. In a file that was
    /// just read, its place among all.
    pub slot: SaIndex,
    /// Our outer address.
    pub local: IpAddr,
    /// The peer's outer address, same family.
    pub remote: IpAddr,
    /// ESP as it is, or in UDP.
    pub encapsulation: Encapsulation,
    /// What comes with UDP.
    pub nat: NatTraversal,
    /// How outer headers are built.
    pub outer: OuterHeader,
    /// What becomes of packets that are too big.
    pub sizes: SizeRules,
    /// In a split tunnel, UDP flows are told apart by ports too: no inner UDP is fragmented.
    pub spread_udp_ports: bool,
    /// The SA we seal with.
    pub outbound: OutboundKeying,
    /// The SA we open with.
    pub inbound: InboundKeying,
}

impl EndpointSet {
    /// Takes it with its keys, and leaves what forgot them.
    pub fn take(&mut self) -> Self {
        Self {
            outbound: OutboundKeying {
                key: self.outbound.key.take(),
                ..self.outbound
            },
            inbound: InboundKeying {
                key: self.inbound.key.take(),
                ..self.inbound
            },
            ..*self
        }
    }
}

/// What comes with ESP in UDP (RFC 3948); of no meaning without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NatTraversal {
    /// Time without a packet to the peer after which it is sent a keepalive, in seconds: 0 for never, at most 3600.
    pub keepalive_s: u16,
    /// Where authentic packets begin to come from another address or port, ours go there.
    pub peer_moves: bool,
}

/// Keying of the SA we seal with.
pub struct OutboundKeying {
    /// The peer's SPI.
    pub spi: Spi,
    /// Cipher, key and salt.
    pub key: KeyMaterial,
    /// Extended sequence numbers.
    pub esn: bool,
}

/// Keying of the SA we open with.
pub struct InboundKeying {
    /// Our SPI.
    pub spi: Spi,
    /// Cipher, key and salt.
    pub key: KeyMaterial,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Anti-replay window in packets: a power of two from 64 to 65,536.
    pub window: u32,
}
