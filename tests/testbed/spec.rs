//! What a tunnel is to be, and the policy files and keys that say so to the gateways.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Failure, Nat, Result, router};

/// SPI of what the west gateway sends.
const WEST_TO_EAST_SPI: u32 = 0x1001;
/// SPI of what the east gateway sends.
const EAST_TO_WEST_SPI: u32 = 0x1002;

/// One of the two ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Site {
    /// Host A and its gateway.
    West,
    /// Host B and its gateway.
    East,
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What seals the packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cipher {
    name: &'static str,
    /// Bytes of key and salt.
    key_length: usize,
}

impl Cipher {
    /// AES-GCM with a key of 128 bits.
    pub const AES_128_GCM: Self = Self {
        name: "aes-128-gcm",
        key_length: 20,
    };
    /// AES-GCM with a key of 192 bits.
    pub const AES_192_GCM: Self = Self {
        name: "aes-192-gcm",
        key_length: 28,
    };
    /// AES-GCM with a key of 256 bits.
    pub const AES_256_GCM: Self = Self {
        name: "aes-256-gcm",
        key_length: 36,
    };
}

/// What stands between the outer IP header and ESP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encapsulation {
    /// Nothing: IP protocol 50.
    None,
    /// UDP, port 4500 on both sides.
    Udp,
}

/// Which of DPDK's drivers for Linux interfaces the gateways use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// `net_af_packet` with this many queue pairs.
    AfPacket {
        /// Queue pairs of each port.
        qpairs: u16,
    },
    /// `net_af_xdp` with this many queues: 1 on veth.
    AfXdp {
        /// Queues of each port.
        queues: u16,
    },
}

/// A tunnel between the two sites, and how the gateways that hold it are set up.
#[derive(Clone, Debug)]
pub struct TunnelSpec {
    /// Cipher of both directions.
    pub cipher: Cipher,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Address family between the gateways.
    pub outer: Family,
    /// Address families that the tunnel carries.
    pub inner: &'static [Family],
    /// What stands before ESP.
    pub encapsulation: Encapsulation,
    /// Anti-replay window in packets.
    pub window: u32,
    /// Workers of each gateway: 1 or 2.
    pub workers: usize,
    /// DPDK's driver.
    pub ports: PortKind,
    /// Largest IP packet between host and gateway, in bytes.
    pub inner_mtu: u16,
    /// Largest IP packet between the gateways, in bytes. DPDK's AF_PACKET driver takes 1,500 at most.
    pub outer_mtu: u16,
    /// Whether the gateways' ports have twins in the kernel.
    pub host: bool,
    /// Whether policies and hosts name their neighbours; if not, all of them have to find each other.
    pub static_neighbours: bool,
    /// A router between the gateways instead of a bridge; the link between it and the east gateway takes IP packets of this
    /// size, in bytes.
    pub router: Option<u16>,
    /// When what is too big is fragmented: `before` or `after`.
    pub fragmentation: &'static str,
    /// Whether TCP is held to segments that fit.
    pub clamp_mss: bool,
    /// Whether hosts are told of packets that policy discards.
    pub admin_prohibited: bool,
    /// More lines of each site's tunnel.
    pub lifetime: &'static str,
    /// More tables of each site's policy.
    pub more: fn(Site) -> String,
    /// Whether the west gateway is behind a NAT instead; for gateways with twins that find their neighbours themselves.
    pub nat: Option<Nat>,
}

impl Default for TunnelSpec {
    /// One worker a gateway on AF_PACKET; AES-128-GCM with ESN, both families over IPv4, and an outer MTU that every
    /// inner packet fits into.
    fn default() -> Self {
        Self {
            cipher: Cipher::AES_128_GCM,
            esn: true,
            outer: Family::V4,
            inner: &[Family::V4, Family::V6],
            encapsulation: Encapsulation::None,
            window: 1024,
            workers: 1,
            ports: PortKind::AfPacket { qpairs: 1 },
            inner_mtu: 1400,
            outer_mtu: 1500,
            host: false,
            static_neighbours: true,
            router: None,
            fragmentation: "before",
            clamp_mss: true,
            admin_prohibited: false,
            lifetime: "",
            more: |_| String::new(),
            nat: None,
        }
    }
}

impl TunnelSpec {
    /// The largest IP packet on the link of a site's gateway towards the other one, in bytes.
    pub fn outer_mtu_of(&self, site: Site) -> u16 {
        match self.router {
            Some(mtu) if site == Site::East => mtu,
            _ => self.outer_mtu,
        }
    }

    /// The largest inner packet that gets through, in bytes: what the host's MTU lets out, or what is left of the
    /// outer MTU once the headers, the IV, the shortest padding to four bytes (RFC 4303 section 2.4) and the ICV are off.
    pub fn largest_inner_packet(&self) -> u16 {
        let outer_header = match self.outer {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        let udp = match self.encapsulation {
            Encapsulation::None => 0,
            Encapsulation::Udp => 8,
        };
        let (esp_header, iv, icv, trailer) = (8, 8, 16, 2);
        let room = self.outer_mtu_of(Site::East).min(self.outer_mtu)
            - outer_header
            - udp
            - esp_header
            - iv
            - icv;
        self.inner_mtu.min(room / 4 * 4 - trailer)
    }
}

impl PortKind {
    /// Queues of each port.
    pub fn queues(self) -> u16 {
        match self {
            Self::AfPacket { qpairs } => qpairs,
            Self::AfXdp { queues } => queues,
        }
    }

    /// What the policy says of a port. AF_PACKET's ring gets room for the time that a worker may have to wait for its core;
    /// with the driver's 512 frames TCP loses thousands of packets there.
    fn device(self, number: usize, interface: &str) -> String {
        match self {
            Self::AfPacket { qpairs } => {
                format!("net_af_packet{number},iface={interface},qpairs={qpairs},framecnt=4096")
            }
            Self::AfXdp { queues } => {
                format!("net_af_xdp{number},iface={interface},start_queue=0,queue_count={queues}")
            }
        }
    }
}

impl Family {
    /// `-4` or `-6`.
    pub fn ip_option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// What makes an address usable at once.
    pub fn no_dad(self) -> &'static [&'static str] {
        match self {
            Self::V4 => &[],
            Self::V6 => &["nodad"],
        }
    }

    /// Bytes of an IP header and an ICMP echo header.
    pub fn ping_overhead(self) -> u16 {
        match self {
            Self::V4 => 28,
            Self::V6 => 48,
        }
    }
}

impl Site {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::West => Self::East,
            Self::East => Self::West,
        }
    }

    /// 1 or 2, as it stands in the addresses.
    pub fn number(self) -> u8 {
        match self {
            Self::West => 1,
            Self::East => 2,
        }
    }

    /// `west` or `east`.
    pub fn name(self) -> &'static str {
        match self {
            Self::West => "west",
            Self::East => "east",
        }
    }

    /// SPI of what this site's gateway sends.
    pub fn outbound_spi(self) -> u32 {
        match self {
            Self::West => WEST_TO_EAST_SPI,
            Self::East => EAST_TO_WEST_SPI,
        }
    }

    /// The protected network, as a prefix.
    pub fn network(self, family: Family) -> String {
        match family {
            Family::V4 => format!("10.{}.0.0/16", self.number()),
            Family::V6 => format!("fd00:{}::/64", self.number()),
        }
    }

    /// The host's address.
    pub fn host_address(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::from([10, self.number(), 0, 10]),
            Family::V6 => IpAddr::from([0xfd00, u16::from(self.number()), 0, 0, 0, 0, 0, 0x10]),
        }
    }

    /// The gateway's address towards the host.
    pub fn lan_address(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::from([10, self.number(), 0, 1]),
            Family::V6 => IpAddr::from([0xfd00, u16::from(self.number()), 0, 0, 0, 0, 0, 1]),
        }
    }

    /// The gateway's address towards the other gateway.
    pub fn wan_address(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::from([192, 0, 2, self.number()]),
            Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(self.number())]),
        }
    }

    /// The host's MAC address.
    pub fn host_mac(self) -> String {
        format!("02:00:00:00:0a:{:02x}", self.number())
    }

    /// The gateway's MAC address towards the host.
    pub fn lan_mac(self) -> String {
        format!("02:00:00:00:0b:{:02x}", self.number())
    }

    /// The gateway's MAC address towards the other gateway.
    pub fn wan_mac(self) -> String {
        format!("02:00:00:00:0c:{:02x}", self.number())
    }
}

/// The key files of the two directions.
pub(super) struct KeyFiles {
    west_to_east: PathBuf,
    east_to_west: PathBuf,
}

/// Writes a fresh key for each direction.
pub(super) fn write_keys(dir: &Path, spec: &TunnelSpec) -> Result<KeyFiles> {
    let write = |name: &str| -> Result<PathBuf> {
        let mut bytes = vec![0; spec.cipher.key_length];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let mut text = String::new();
        for byte in bytes {
            write!(text, "{byte:02x}").map_err(|why| Failure(why.to_string()))?;
        }
        let path = dir.join(name);
        let mut file = fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        writeln!(file, "{text}")?;
        Ok(path)
    };
    Ok(KeyFiles {
        west_to_east: write("west-to-east.key")?,
        east_to_west: write("east-to-west.key")?,
    })
}

/// Where a gateway keeps what it writes.
pub(super) struct Places<'a> {
    pub(super) name: &'a str,
    pub(super) state_dir: &'a Path,
    pub(super) socket: &'a Path,
}

/// The policy file of one gateway.
pub(super) fn policy_text(
    site: Site,
    spec: &TunnelSpec,
    keys: &KeyFiles,
    places: &Places<'_>,
) -> String {
    let both =
        |of: &dyn Fn(Family) -> String| format!("[{:?}, {:?}]", of(Family::V4), of(Family::V6));
    let with_length =
        |address: IpAddr| format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 });
    let wan_address = |family| match spec.router {
        Some(_) => format!(
            "{}/{}",
            site.wan_address(family),
            router::prefix_len(family)
        ),
        None => with_length(site.wan_address(family)),
    };
    let families = |of: &dyn Fn(Family) -> String| {
        format!(
            "{:?}",
            spec.inner.iter().map(|f| of(*f)).collect::<Vec<_>>()
        )
    };
    let mut text = format!(
        "[gateway]\nname = {:?}\nworkers = {:?}\nstate_dir = {:?}\ncontrol_socket = {:?}\nmemory_mib = 256\nlab_keys = true\nadmin_prohibited = {}\n",
        places.name,
        worker_cores(site, spec.workers),
        places.state_dir,
        places.socket,
        spec.admin_prohibited,
    );
    text += &format!(
        "\n[[port]]\nname = \"lan\"\ndevice = {:?}\nside = \"protected\"\npair = \"wan\"\naddresses = {}\nmtu = {}\nqueues = {}\nhost = {}\n",
        spec.ports.device(0, "lan0"),
        both(&|family| with_length(site.lan_address(family))),
        spec.inner_mtu,
        spec.ports.queues(),
        spec.host,
    );
    text += &format!(
        "\n[[port]]\nname = \"wan\"\ndevice = {:?}\nside = \"unprotected\"\npair = \"lan\"\naddresses = {}\nmtu = {}\nqueues = {}\nhost = {}\n",
        spec.ports.device(1, "wan0"),
        both(&wan_address),
        spec.outer_mtu_of(site),
        spec.ports.queues(),
        spec.host,
    );
    if spec.router.is_some() {
        text += &router::routes_text(site);
    }
    for family in [Family::V4, Family::V6] {
        let host = (site.host_address(family), site.host_mac(), "lan");
        let peer = (
            site.other().wan_address(family),
            site.other().wan_mac(),
            "wan",
        );
        for (address, mac, port) in [host, peer] {
            if !spec.static_neighbours {
                continue;
            }
            text += &format!(
                "\n[[neighbour]]\naddress = \"{address}\"\nmac = {mac:?}\nport = {port:?}\n"
            );
        }
    }
    text += &format!(
        "\n[[tunnel]]\nname = \"west-east\"\nlocal_networks = {}\nremote_networks = {}\n",
        families(&|family| site.network(family)),
        families(&|family| site.other().network(family)),
    );
    text += spec.lifetime;
    text += &endpoints_text(site, spec, keys);
    text += &(spec.more)(site);
    text
}

fn endpoints_text(site: Site, spec: &TunnelSpec, keys: &KeyFiles) -> String {
    let encapsulation = match spec.encapsulation {
        Encapsulation::None => "none",
        Encapsulation::Udp => "udp",
    };
    let (outbound_key, inbound_key) = match site {
        Site::West => (&keys.west_to_east, &keys.east_to_west),
        Site::East => (&keys.east_to_west, &keys.west_to_east),
    };
    let sa = |spi: u32, key: &Path| {
        format!(
            "spi = {spi:#x}\ncipher = {:?}\nkey = {{ file = {key:?} }}\nesn = {}\n",
            spec.cipher.name, spec.esn
        )
    };
    let (remote, of_nat) = match &spec.nat {
        Some(nat) => (nat.remote(site, spec.outer), nat.endpoint_lines(site)),
        None => (site.other().wan_address(spec.outer), String::new()),
    };
    format!(
        "\n[[tunnel.endpoints]]\nlocal = \"{}\"\nremote = \"{}\"\nencapsulation = {encapsulation:?}\nfragmentation = {:?}\nclamp_mss = {}\n{of_nat}\
         \n[tunnel.endpoints.outbound]\n{}\n[tunnel.endpoints.inbound]\n{}window = {}\n",
        site.wan_address(spec.outer),
        remote,
        spec.fragmentation,
        spec.clamp_mss,
        sa(site.outbound_spi(), outbound_key),
        sa(site.other().outbound_spi(), inbound_key),
        spec.window,
    )
}

/// The cores of a gateway's workers, out of those that this process may use. With one worker each, the two gateways
/// keep out of each other's way where the machine has two cores.
fn worker_cores(site: Site, workers: usize) -> Vec<usize> {
    let allowed: Vec<usize> = rustix::thread::sched_getaffinity(None)
        .map(|set| {
            (0..rustix::thread::CpuSet::MAX_CPU)
                .filter(|core| set.is_set(*core))
                .collect()
        })
        .unwrap_or_default();
    let first = usize::from(site.number()) - 1;
    (0..workers)
        .filter_map(|at| allowed.get((first + at) % allowed.len().max(1)).copied())
        .collect()
}
