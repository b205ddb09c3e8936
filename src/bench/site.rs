//! Two gateways for a measurement: their policies, and the flows between the networks behind them.
//!
//! The policies are text and go through the same parser as an operator's, so what is measured is what runs.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use zeroize::Zeroizing;

use super::BenchError;
use super::config::{Config, Families, Outside};
use crate::generator::stream::Stream;
use crate::generator::{Flow, Macs};
use crate::ids::PortIndex;
use crate::policy::{Policy, Secrets, Source, parse, render};

/// MAC address of whoever is behind a gateway.
pub(super) const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x10];
/// The protected port of each gateway.
pub(super) const LAN: PortIndex = PortIndex(0);
/// The unprotected one.
pub(super) const WAN: PortIndex = PortIndex(1);
/// Room around an inner packet: outer IPv6, UDP, ESP, IV, padding, trailer, ICV.
const OVERHEAD: u16 = 90;
/// Least MTU of the ports.
const MIN_MTU: u16 = 1600;
/// First SPI from west to east.
const SPI_EAST: u32 = 0x0010_0000;
/// First SPI from east to west.
const SPI_WEST: u32 = 0x0020_0000;
/// Source ports of flows begin here.
const FIRST_PORT: u16 = 1024;
/// Flows of one address; then comes the next address.
const PORTS: usize = 60_000;

/// Which end of the tunnels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Seals what goes east.
    West,
    /// Opens it.
    East,
}

impl End {
    pub(super) const BOTH: [Self; 2] = [Self::West, Self::East];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::West => "west",
            Self::East => "east",
        }
    }

    fn digit(self) -> u8 {
        match self {
            Self::West => 1,
            Self::East => 2,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::West => Self::East,
            Self::East => Self::West,
        }
    }
}

/// Largest IP packet on every port.
pub(super) fn mtu(config: &Config) -> u16 {
    config
        .traffic
        .sizes
        .max()
        .saturating_add(OVERHEAD)
        .max(MIN_MTU)
}

/// The families of SA `sa`.
fn families(config: &Config, sa: usize) -> Families {
    let all = &config.traffic.families;
    all.get(sa % all.len().max(1)).copied().unwrap_or(Families {
        inner_v6: false,
        outer_v6: false,
    })
}

/// Address `host` in the network of SA `sa` behind `end`. The west has one network for all, the east one for each SA.
fn inner_address(end: End, is_v6: bool, sa: usize, host: usize) -> IpAddr {
    let sa = u32::try_from(sa).unwrap_or(0);
    let host = u32::try_from(host).unwrap_or(0);
    match (end, is_v6) {
        (End::West, false) => Ipv4Addr::from_bits(0x0a00_0000 + 1 + host).into(),
        (End::East, false) => Ipv4Addr::from_bits(0x0a80_0000 + sa * 16 + 1 + host % 14).into(),
        (End::West, true) => {
            Ipv6Addr::from_bits(0xfd00_000a_u128 << 96 | u128::from(1 + host)).into()
        }
        (End::East, true) => Ipv6Addr::from_bits(
            0xfd00_000b_u128 << 96 | u128::from(sa) << 64 | u128::from(1 + host),
        )
        .into(),
    }
}

/// The network of SA `sa` behind `end`.
fn inner_network(end: End, is_v6: bool, sa: usize) -> String {
    let sa = u32::try_from(sa).unwrap_or(0);
    match (end, is_v6) {
        (End::West, false) => "10.0.0.0/16".into(),
        (End::East, false) => format!("{}/28", Ipv4Addr::from_bits(0x0a80_0000 + sa * 16)),
        (End::West, true) => "fd00:a::/64".into(),
        (End::East, true) => format!(
            "{}/64",
            Ipv6Addr::from_bits(0xfd00_000b_u128 << 96 | u128::from(sa) << 64)
        ),
    }
}

/// The keys of all SAs, each for one direction, by the name of its variable.
pub(super) struct Keys(Vec<(String, Zeroizing<String>)>);

impl Keys {
    /// Random ones.
    pub(super) fn random(config: &Config) -> Result<Self, BenchError> {
        let len = config.gateways.cipher.key_len() + crate::crypto::aead::SALT_LEN;
        let mut keys = Vec::with_capacity(config.traffic.sas * 2);
        for sa in 0..config.traffic.sas {
            for end in End::BOTH {
                let mut bytes = Zeroizing::new(vec![0; len]);
                getrandom::fill(&mut bytes)
                    .map_err(|error| BenchError::Random(error.to_string()))?;
                let mut text = Zeroizing::new(String::with_capacity(len * 2));
                for byte in bytes.iter() {
                    let _ = write!(text, "{byte:02x}");
                }
                keys.push((variable(end, sa), text));
            }
        }
        Ok(Self(keys))
    }

    fn secrets(&self) -> Secrets {
        Secrets::with_environment(
            self.0
                .iter()
                .map(|(name, text)| (name.clone(), (**text).clone())),
        )
    }
}

/// The variable with the key that `end` seals with.
fn variable(end: End, sa: usize) -> String {
    format!("{}_{sa}", end.name().to_uppercase())
}

/// The policy of one end, its state under `dir`.
pub(super) fn policy(
    config: &Config,
    end: End,
    keys: &Keys,
    dir: &Path,
) -> Result<Policy, BenchError> {
    let mut text = head(config, end, dir);
    for sa in 0..config.traffic.sas {
        tunnel(config, end, sa, &mut text);
    }
    let path = dir.join(format!("{}.toml", end.name()));
    let source = Source::new(&path, &text);
    parse(&source, &keys.secrets()).map_err(|errors| {
        BenchError::Policy(render(errors.get(..1).unwrap_or_default(), &source, false))
    })
}

fn head(config: &Config, end: End, dir: &Path) -> String {
    let (own, peer) = (end.digit(), end.other().digit());
    // The threads are the bench's: these numbers only say how many workers there are.
    let workers: Vec<usize> = (0..config.cores.workers.len()).collect();
    let queues = workers.len();
    let mtu = mtu(config);
    let (name, dir) = (end.name(), dir.display());
    let host = "02:00:00:00:00:10";
    let (network_v4, network_v6) = match end {
        End::West => ("10.0.0.0/16", "fd00:a::/32"),
        End::East => ("10.128.0.0/9", "fd00:b::/32"),
    };
    format!(
        r#"
[gateway]
name = "{name}"
workers = {workers:?}
state_dir = "{dir}/{name}"
control_socket = "{dir}/{name}.sock"
lab_keys = true
[[port]]
name = "lan"
device = "net_ring0"
side = "protected"
pair = "wan"
addresses = ["172.16.{own}.1/24", "fd00:{own}::1/64"]
mtu = {mtu}
queues = {queues}
[[port]]
name = "wan"
device = "net_ring1"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.{own}/24", "2001:db8::{own}/64"]
mtu = {mtu}
queues = {queues}
[[neighbour]]
address = "172.16.{own}.10"
mac = "{host}"
port = "lan"
[[neighbour]]
address = "fd00:{own}::10"
mac = "{host}"
port = "lan"
[[neighbour]]
address = "192.0.2.{peer}"
mac = "02:73:69:6d:00:01"
port = "wan"
[[neighbour]]
address = "2001:db8::{peer}"
mac = "02:73:69:6d:00:01"
port = "wan"
[[route]]
to = "{network_v4}"
via = "172.16.{own}.10"
port = "lan"
[[route]]
to = "{network_v6}"
via = "fd00:{own}::10"
port = "lan"
"#
    )
}

fn tunnel(config: &Config, end: End, sa: usize, text: &mut String) {
    let families = families(config, sa);
    let other = end.other();
    let outer = |end: End| {
        if families.outer_v6 {
            format!("2001:db8::{}", end.digit())
        } else {
            format!("192.0.2.{}", end.digit())
        }
    };
    let network = |end| inner_network(end, families.inner_v6, sa);
    // The west has one network for all tunnels, the east one for each.
    let keying = |sealer: End| {
        let first = match sealer {
            End::West => SPI_EAST,
            End::East => SPI_WEST,
        };
        format!(
            "spi = {}\ncipher = \"{}\"\nkey = {{ env = \"{}\" }}\nesn = {}\n",
            first as usize + sa,
            config.gateways.cipher,
            variable(sealer, sa),
            config.gateways.esn
        )
    };
    let _ = write!(
        text,
        "[[tunnel]]\nname = \"t{sa}\"\nlocal_networks = [\"{}\"]\nremote_networks = [\"{}\"]\n\
         [[tunnel.endpoints]]\nlocal = \"{}\"\nremote = \"{}\"\n\
         [tunnel.endpoints.outbound]\n{}\
         [tunnel.endpoints.inbound]\n{}window = {}\n",
        network(end),
        network(other),
        outer(end),
        outer(other),
        keying(end),
        keying(other),
        config.gateways.window
    );
}

/// The flows from the networks behind `from` to those behind the other end, as they are sent and as they arrive.
pub(super) fn stream(config: &Config, from: End) -> Stream {
    let flows = (0..config.traffic.flows).map(|at| {
        let sa = at % config.traffic.sas;
        let families = families(config, sa);
        let port = FIRST_PORT.saturating_add(crate::bits::low_16((at % PORTS) as u64));
        let address = |end| inner_address(end, families.inner_v6, sa, at / PORTS);
        let sent = Flow {
            gateway_mac: ring_mac(0),
            source_mac: HOST_MAC,
            source: address(from),
            destination: address(from.other()),
            source_port: port,
        };
        let arrives = Macs {
            destination: HOST_MAC,
            source: ring_mac(0),
        };
        (sent, arrives)
    });
    Stream::new(from.digit(), 2, flows)
}

/// The flows towards a device under test, out of a port with the MAC address `own`. Nobody knows what MAC addresses
/// they will arrive with.
pub(super) fn outside_stream(config: &Config, outside: &Outside, own: [u8; 6]) -> Stream {
    let flows = (0..config.traffic.flows).map(|at| {
        let flow = Flow {
            gateway_mac: outside.device_mac.0,
            source_mac: own,
            source: outside.source,
            destination: outside.destination,
            source_port: FIRST_PORT.saturating_add(crate::bits::low_16((at % PORTS) as u64)),
        };
        (flow, flow.macs())
    });
    Stream::new(1, outside.hops, flows).with_any_mac()
}

/// The MAC address that a gateway gives a ring port by its place in the policy.
fn ring_mac(place: u8) -> [u8; 6] {
    [0x02, b's', b'i', b'm', 0, place]
}
