//! Ports, their queues, and which worker polls which.

use tracing::{info, warn};

use super::devices::{Device, Devices};
use crate::dpdk::eal::{self, Eal};
use crate::dpdk::error::DpdkError;
use crate::dpdk::mempool::Mempool;
use crate::dpdk::port::{Limits, Port, PortSettings, RxQueue, StartedPort, TxQueue};
use crate::ids::{PortId, PortIndex, QueueId};
use crate::meta::BURST;
use crate::policy::Policy;
use crate::policy::model::{self, MacAddr};
use crate::policy::queues;
use crate::wire::rss::{EspInput, RSS_KEY, Spreading};
use crate::wire::vlan::VlanTags;
use crate::worker::datapath::Lane;
use crate::worker::reassembly::MOST_HELD;
use crate::worker::remake::MOST_MADE;
use crate::worker::trunk::{Member, Trunk};

/// Descriptors asked for on each queue.
const DESCRIPTORS: u16 = 1024;
/// Buffers in the rings of one `net_af_xdp` queue: fill and completion, 2,048 each whatever is asked for.
const AF_XDP_RINGS: u32 = 2 * 2048;
/// Mbufs that each worker may keep in its mempool cache.
const POOL_CACHE: u32 = 256;
/// Buffers beside those of queues and workers: what the control side may hold.
const SPARE_BUFFERS: u32 = 2048;
/// Room beside the IP packet for an Ethernet header with two VLAN tags and all that ESP adds, which fragments that are put
/// together have before it is taken off.
const FRAME_OVERHEAD: u16 = 14 + 8 + 96;
/// Least room of an mbuf after its headroom: what virtual drivers take for granted.
const MIN_DATA_ROOM: u16 = 2048;

/// What is known of an open port beside its queues.
pub struct OpenPort {
    /// Name in the policy.
    pub name: String,
    /// Device in the policy.
    pub device: String,
    /// Where it is a bond, its members.
    pub members: Vec<String>,
    /// DPDK driver.
    pub driver: String,
    /// Which side it faces.
    pub side: model::Side,
    /// The port that what enters here leaves by.
    pub pair: PortIndex,
    /// MAC address.
    pub mac: [u8; 6],
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Queue pairs in use, of its device.
    pub queues: u16,
    /// VLAN tags of its frames.
    pub tags: VlanTags,
    /// The place of its device among those that were started. Several ports may be on one.
    pub started: usize,
    /// Buffers that the driver of its device keeps for good when it closes; counted once for each device.
    pub(super) kept: u32,
}

/// The device of a port as DPDK's side has it: that of a bond with its members, by DPDK 22.11's name for them.
pub(super) fn dpdk_device(port: &model::Port) -> eal::Device {
    match as_dpdk(&port.device) {
        eal::Device::Virtual(mut text) => {
            for member in &port.members {
                text.push_str(",slave=");
                text.push_str(member.name());
            }
            eal::Device::Virtual(text)
        }
        pci @ eal::Device::Pci(_) => pci,
    }
}

fn as_dpdk(device: &model::Device) -> eal::Device {
    match device {
        model::Device::Pci(address) => eal::Device::Pci(address.clone()),
        model::Device::Virtual(text) => eal::Device::Virtual(text.clone()),
    }
}

/// Everything that EAL has to make a port of, members of bonds before them.
pub(super) fn dpdk_devices(policy: &Policy) -> Vec<eal::Device> {
    let devices = Devices::new(policy);
    let of_device = |device: &Device<'_>| {
        let port = device.first();
        let members = port.members.iter().map(as_dpdk);
        members.chain([dpdk_device(port)]).collect::<Vec<_>>()
    };
    devices.iter().flat_map(of_device).collect()
}

/// The pool that all ports share, large enough that no queue can starve another.
///
/// # Errors
/// [`DpdkError::Pool`] where memory is short.
pub fn create_pool<'e>(eal: &'e Eal, policy: &Policy) -> Result<Mempool<'e>, DpdkError> {
    let devices = Devices::new(policy);
    let first_ports = devices.iter().map(Device::first);
    let queues: u32 = first_ports.map(buffers_of_device).sum();
    let workers = u32::try_from(policy.gateway.workers.len()).unwrap_or(u32::MAX);
    let burst = u32::try_from(BURST).unwrap_or(u32::MAX);
    let made = u32::try_from(MOST_MADE + MOST_HELD).unwrap_or(u32::MAX);
    let per_worker = POOL_CACHE * 2 + burst * 4 + made;
    let needed = queues
        .saturating_add(workers.saturating_mul(per_worker))
        .saturating_add(SPARE_BUFFERS);
    let count = needed
        .checked_next_power_of_two()
        .map_or(needed, |power| power - 1);
    let mtu = policy.ports.iter().map(|port| port.mtu).max().unwrap_or(0);
    let room = mtu.saturating_add(FRAME_OVERHEAD).max(MIN_DATA_ROOM);
    Mempool::create(eal, "packets", count.max(needed), room, POOL_CACHE)
}

/// Buffers that the queues of a port's device can hold at one time, and those of a bond's members.
fn buffers_of_device(port: &model::Port) -> u32 {
    let of_one = |device: &model::Device| {
        if is_af_xdp(device) {
            AF_XDP_RINGS
        } else {
            u32::from(DESCRIPTORS) * 2
        }
    };
    let per_queue: u32 = real_devices(port).map(of_one).sum();
    u32::from(port.queues).saturating_mul(per_queue)
}

/// Buffers that drivers keep for good when a port's device closes: `net_af_xdp` empties neither its fill ring, 2,048 to a
/// queue, nor what it has sent and not yet completed, as many at most. Their memory goes with EAL's.
fn kept_by_drivers(port: &model::Port, queues: u16) -> u32 {
    let of_one = |_| u32::from(queues) * AF_XDP_RINGS;
    real_devices(port)
        .filter(|device| is_af_xdp(device))
        .map(of_one)
        .sum()
}

/// The device of a port, or those that it bonds.
fn real_devices(port: &model::Port) -> impl Iterator<Item = &model::Device> {
    let own = port.members.is_empty().then_some(&port.device);
    own.into_iter().chain(&port.members)
}

fn is_af_xdp(device: &model::Device) -> bool {
    device.name().starts_with("net_af_xdp")
}

/// Opens, configures and starts every device; `find` says which of DPDK's ports that of a port is. Returns the ports, in
/// declared order, and their devices.
///
/// # Errors
/// [`DpdkError`]; what was opened is closed again.
pub fn open<'e>(
    eal: &'e Eal,
    policy: &Policy,
    pool: &'e Mempool<'e>,
    find: impl Fn(&model::Port) -> Option<PortId>,
) -> Result<(Vec<OpenPort>, Vec<StartedPort<'e>>), DpdkError> {
    let devices = Devices::new(policy);
    let mut closed = Vec::new();
    for device in devices.iter() {
        let id = find(device.first()).ok_or(DpdkError::NoSuchPort(PortId(u16::MAX)))?;
        let mut handle = Port::open(eal, id)?;
        for member in &device.first().members {
            let id = eal.port_by_device(&as_dpdk(member));
            handle.add_member(id.ok_or(DpdkError::NoSuchPort(PortId(u16::MAX)))?)?;
        }
        let limits = handle.limits()?;
        closed.push((device, handle, limits));
    }
    // Devices that pairs join get as many queue pairs as all of them can have: a queue of one leads to the same queue of
    // another.
    let offered: Vec<(usize, u16)> = closed
        .iter()
        .map(|(device, _, limits)| {
            let asked = device.first().queues;
            let both = limits.max_rx_queues.min(limits.max_tx_queues);
            (device.group, asked.min(both).max(1))
        })
        .collect();
    let mut open: Vec<Option<OpenPort>> = policy.ports.iter().map(|_| None).collect();
    let mut started = Vec::new();
    for (device, mut handle, limits) in closed {
        let of_group = offered.iter().filter(|(group, _)| *group == device.group);
        let queues = of_group.map(|(_, queues)| *queues).min().unwrap_or(1);
        let settings = PortSettings {
            name: device.names(),
            mtu: mtu_of(device, &limits),
            rx_queues: queues,
            tx_queues: queues,
            rx_descriptors: DESCRIPTORS,
            tx_descriptors: DESCRIPTORS,
        };
        handle.set_rss_key(&RSS_KEY);
        handle.configure(&settings, pool)?;
        let mac = own_mac(handle.mac()?, started.len());
        let handle = handle.start()?;
        let functions = handle.rss().map(|rss| rss.functions.join(" "));
        let rss = functions.as_deref().unwrap_or("none");
        for (at, (index, port)) in device.ports.iter().enumerate() {
            let (driver, vlan, mtu) = (&limits.driver, port.tags, port.mtu);
            info!(port = port.name, driver, %vlan, mac = %MacAddr(mac), queues, mtu, rss, "port");
            open[index.index()] = Some(OpenPort {
                driver: driver.clone(),
                mac,
                queues,
                started: started.len(),
                kept: if at == 0 {
                    kept_by_drivers(port, queues)
                } else {
                    0
                },
                ..OpenPort::declared(port)
            });
        }
        started.push(handle);
    }
    Ok((open.into_iter().flatten().collect(), started))
}

impl OpenPort {
    /// As far as the policy says what it is.
    fn declared(port: &model::Port) -> Self {
        Self {
            name: port.name.clone(),
            device: port.device.text().to_owned(),
            members: port
                .members
                .iter()
                .map(|member| member.text().to_owned())
                .collect(),
            driver: String::new(),
            side: port.side,
            pair: port.pair,
            mac: [0; 6],
            mtu: port.mtu,
            queues: 0,
            tags: port.tags,
            started: 0,
            kept: 0,
        }
    }
}

/// What the device is told of the largest packet: with tags where it takes that. Many do not count the first tag, and some,
/// such as `net_af_packet`, take no more than a packet without.
fn mtu_of(device: &Device<'_>, limits: &Limits) -> u16 {
    let (ip, tagged) = (device.ip_mtu(), device.tagged_mtu());
    let mtu = tagged.min(limits.max_mtu).max(ip);
    if mtu < tagged {
        warn!(
            port = device.names(),
            driver = limits.driver,
            "the device takes an MTU of {} at most, without VLAN tags; where it drops the largest frames, lower the ports' mtu",
            limits.max_mtu
        );
    }
    mtu
}

/// Says where a split tunnel gains nothing for opening, since its SAs come to one queue.
pub(super) fn warn_of_one_queue(policy: &Policy, ports: &[OpenPort], started: &[StartedPort<'_>]) {
    for split in queues::split_sets(policy) {
        let device = ports.get(split.port.index()).map(|port| port.started);
        let device = device.and_then(|device| started.get(device));
        let Some(rss) = device.and_then(StartedPort::rss) else {
            continue;
        };
        // Which of the two inputs it is, the driver does not tell.
        let inputs: &[EspInput] = if rss.functions.contains(&"esp") {
            &EspInput::ALL
        } else {
            &[]
        };
        if let Some(spreading) = Spreading::new(&rss.key, &rss.table) {
            for warning in split.check(policy, &spreading, inputs) {
                warn!("{warning}");
            }
        }
    }
}

/// The port's MAC address. A driver that has none (`net_ring`) gets one of our own making, told apart by the port's
/// place in the policy.
fn own_mac(found: [u8; 6], place: usize) -> [u8; 6] {
    if found != [0; 6] {
        return found;
    }
    let [high, low] = u16::try_from(place).unwrap_or(u16::MAX).to_be_bytes();
    [0x02, b's', b'i', b'm', high, low]
}

/// What one worker polls.
#[derive(Default)]
pub(super) struct Share<'p> {
    pub(super) lanes: Vec<Lane<'p>>,
    pub(super) trunks: Vec<Trunk<'p>>,
}

impl Share<'_> {
    /// How many queues it polls, and how many of them `is_alike` picks.
    fn load(&self, is_alike: impl Fn(&Lane<'_>) -> bool) -> (usize, usize) {
        let of_trunks: usize = self.trunks.iter().map(Trunk::len).sum();
        let alike = self.lanes.iter().filter(|lane| is_alike(lane)).count();
        (self.lanes.len() + of_trunks, alike)
    }

    /// Its lanes and the ways of its trunks, for people.
    pub(super) fn names(&self, ports: &[OpenPort]) -> Vec<String> {
        let name = |index: PortIndex| {
            ports
                .get(index.index())
                .map_or("?", |port| port.name.as_str())
        };
        let way = |from: PortIndex, queue: QueueId, to: PortIndex| {
            format!("{} queue {} -> {}", name(from), queue.0, name(to))
        };
        let lanes = self.lanes.iter();
        let lanes = lanes.map(|lane| way(lane.ingress, lane.rx.queue(), lane.egress));
        let trunks = self.trunks.iter().flat_map(|trunk| {
            let ways = trunk.ways();
            ways.map(move |(from, to)| way(from, trunk.queue(), to))
        });
        lanes.chain(trunks).collect()
    }
}

/// Queues of one device, of which each is handed out once.
struct Queues<'p> {
    rx: std::vec::IntoIter<RxQueue<'p>>,
    tx: std::vec::IntoIter<TxQueue<'p>>,
}

/// Deals lanes and trunks out to the workers, evenly; queues of one port go to different workers where there are enough.
pub(super) fn shares<'p>(
    policy: &Policy,
    ports: &[OpenPort],
    started: &'p [StartedPort<'p>],
) -> Vec<Share<'p>> {
    let devices = Devices::new(policy);
    let mut queues: Vec<Queues<'p>> = started
        .iter()
        .map(|port| {
            let queues = port.queues();
            Queues {
                rx: queues.rx.into_iter(),
                tx: queues.tx.into_iter(),
            }
        })
        .collect();
    let mut shares: Vec<Share<'p>> = Vec::new();
    shares.resize_with(policy.gateway.workers.len(), Share::default);
    let most = ports.iter().map(|port| port.queues).max().unwrap_or(0);
    for _ in 0..most {
        for (ingress, port) in (0u16..).map(PortIndex).zip(ports) {
            let group = devices.group_of(ingress);
            if devices.is_tagged(group) {
                continue;
            }
            let egress = devices.of_port(port.pair);
            let receive = queues[devices.of_port(ingress)].rx.next();
            let transmit = queues[egress].tx.next();
            let (Some(rx), Some(tx)) = (receive, transmit) else {
                continue;
            };
            let lane = Lane {
                rx,
                tx,
                ingress,
                egress: port.pair,
            };
            let alike = |share: &Share<'_>| share.load(|other| other.ingress == ingress);
            if let Some(share) = shares.iter_mut().min_by_key(|share| alike(share)) {
                share.lanes.push(lane);
            }
        }
        for group in devices.groups() {
            if let Some(trunk) = next_trunk(&devices, group, &mut queues)
                && let Some(share) = shares.iter_mut().min_by_key(|share| share.load(|_| false))
            {
                share.trunks.push(trunk);
            }
        }
    }
    shares
}

/// The next queues of all devices of a group whose ports are told apart by tags.
fn next_trunk<'p>(
    devices: &Devices<'_>,
    group: usize,
    queues: &mut [Queues<'p>],
) -> Option<Trunk<'p>> {
    if !devices.is_tagged(group) {
        return None;
    }
    let of_group = devices
        .iter()
        .zip(queues)
        .filter(|(device, _)| device.group == group);
    let link = |(device, queues): (&Device<'_>, &mut Queues<'p>)| {
        let member = |(port, settings): &(PortIndex, &model::Port)| Member {
            port: *port,
            tags: settings.tags,
            pair: settings.pair,
        };
        let members = device.ports.iter().map(member).collect();
        Some((queues.rx.next()?, queues.tx.next()?, members))
    };
    let links: Option<Vec<_>> = of_group.map(link).collect();
    links.map(Trunk::new)
}
