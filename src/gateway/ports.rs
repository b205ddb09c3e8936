//! Ports, their queues, and which worker polls which.

use tracing::{info, warn};

use crate::dpdk::eal::{self, Eal};
use crate::dpdk::error::DpdkError;
use crate::dpdk::mempool::Mempool;
use crate::dpdk::port::{Port, PortSettings, RxQueue, StartedPort, TxQueue};
use crate::ids::{PortId, PortIndex};
use crate::meta::BURST;
use crate::policy::Policy;
use crate::policy::model::{self, MacAddr};
use crate::policy::queues;
use crate::wire::rss::{EspInput, RSS_KEY, Spreading};
use crate::worker::datapath::Lane;
use crate::worker::reassembly::MOST_HELD;
use crate::worker::remake::MOST_MADE;

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
    /// Queue pairs in use.
    pub queues: u16,
}

/// The policy's device as DPDK's side has it.
pub(super) fn dpdk_device(device: &model::Device) -> eal::Device {
    match device {
        model::Device::Pci(address) => eal::Device::Pci(address.clone()),
        model::Device::Virtual(text) => eal::Device::Virtual(text.clone()),
    }
}

/// The pool that all ports share, large enough that no queue can starve another.
///
/// # Errors
/// [`DpdkError::Pool`] where memory is short.
pub fn create_pool<'e>(eal: &'e Eal, policy: &Policy) -> Result<Mempool<'e>, DpdkError> {
    let queues: u32 = policy.ports.iter().map(buffers_of_port).sum();
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

/// Buffers that a port's queues can hold at one time.
fn buffers_of_port(port: &model::Port) -> u32 {
    let is_af_xdp =
        matches!(&port.device, model::Device::Virtual(name) if name.starts_with("net_af_xdp"));
    let per_queue = if is_af_xdp {
        AF_XDP_RINGS
    } else {
        u32::from(DESCRIPTORS) * 2
    };
    u32::from(port.queues).saturating_mul(per_queue)
}

/// Buffers that drivers keep for good when their ports close: `net_af_xdp` empties neither its fill ring, 2,048 to a
/// queue, nor what it has sent and not yet completed, as many at most. Their memory goes with EAL's.
pub(super) fn kept_by_drivers(ports: &[OpenPort]) -> u32 {
    ports
        .iter()
        .filter(|port| port.driver == "net_af_xdp")
        .map(|port| u32::from(port.queues) * AF_XDP_RINGS)
        .sum()
}

/// Opens, configures and starts every port; `find` says which of DPDK's ports one is.
///
/// # Errors
/// [`DpdkError`]; what was opened is closed again.
pub fn open<'e>(
    eal: &'e Eal,
    policy: &Policy,
    pool: &'e Mempool<'e>,
    find: impl Fn(&model::Port) -> Option<PortId>,
) -> Result<(Vec<OpenPort>, Vec<StartedPort<'e>>), DpdkError> {
    let mut closed = Vec::new();
    for port in &policy.ports {
        let id = find(port).ok_or(DpdkError::NoSuchPort(PortId(u16::MAX)))?;
        let handle = Port::open(eal, id)?;
        let limits = handle.limits()?;
        closed.push((port, handle, limits));
    }
    // Both ports of a pair get as many queue pairs as both can have: a queue of one leads to the same queue of the other.
    let offered: Vec<u16> = closed
        .iter()
        .map(|(port, _, limits)| {
            port.queues
                .min(limits.max_rx_queues)
                .min(limits.max_tx_queues)
                .max(1)
        })
        .collect();
    let mut open = Vec::new();
    let mut started = Vec::new();
    for ((port, mut handle, limits), own) in closed.into_iter().zip(&offered) {
        let queues = offered
            .get(port.pair.index())
            .map_or(*own, |other| *other.min(own));
        let settings = PortSettings {
            name: port.name.clone(),
            mtu: port.mtu,
            rx_queues: queues,
            tx_queues: queues,
            rx_descriptors: DESCRIPTORS,
            tx_descriptors: DESCRIPTORS,
        };
        handle.set_rss_key(&RSS_KEY);
        handle.configure(&settings, pool)?;
        let mac = own_mac(handle.mac()?, open.len());
        let handle = handle.start()?;
        let functions = handle.rss().map(|rss| rss.functions.join(" "));
        info!(
            port = port.name,
            driver = limits.driver,
            mac = %MacAddr(mac),
            queues,
            mtu = port.mtu,
            rss = functions.as_deref().unwrap_or("none"),
            "port"
        );
        open.push(OpenPort {
            name: port.name.clone(),
            device: dpdk_device(&port.device).to_string(),
            driver: limits.driver,
            side: port.side,
            pair: port.pair,
            mac,
            mtu: port.mtu,
            queues,
        });
        started.push(handle);
    }
    Ok((open, started))
}

/// Says where a split tunnel gains nothing for opening, since its SAs come to one queue.
pub(super) fn warn_of_one_queue(policy: &Policy, started: &[StartedPort<'_>]) {
    for split in queues::split_sets(policy) {
        let Some(rss) = started.get(split.port.index()).and_then(StartedPort::rss) else {
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

/// Deals the lanes out to the workers, evenly; queues of one port go to different workers where there are enough.
pub(super) fn lanes<'p>(
    policy: &Policy,
    ports: &[OpenPort],
    started: &'p [StartedPort<'p>],
) -> Vec<Vec<Lane<'p>>> {
    let mut rx: Vec<std::vec::IntoIter<RxQueue<'p>>> = Vec::new();
    let mut tx: Vec<std::vec::IntoIter<TxQueue<'p>>> = Vec::new();
    for port in started {
        let queues = port.queues();
        rx.push(queues.rx.into_iter());
        tx.push(queues.tx.into_iter());
    }
    let mut workers: Vec<Vec<Lane<'p>>> =
        policy.gateway.workers.iter().map(|_| Vec::new()).collect();
    let most = ports.iter().map(|port| port.queues).max().unwrap_or(0);
    for _ in 0..most {
        for (at, port) in ports.iter().enumerate() {
            let Ok(ingress) = u16::try_from(at).map(PortIndex) else {
                continue;
            };
            let receive = rx.get_mut(at).and_then(Iterator::next);
            let transmit = tx.get_mut(port.pair.index()).and_then(Iterator::next);
            let (Some(rx), Some(tx)) = (receive, transmit) else {
                continue;
            };
            let lane = Lane {
                rx,
                tx,
                ingress,
                egress: port.pair,
            };
            let chosen = workers.iter_mut().min_by_key(|lanes| {
                (
                    lanes.len(),
                    lanes
                        .iter()
                        .filter(|other| other.ingress == ingress)
                        .count(),
                )
            });
            if let Some(lanes) = chosen {
                lanes.push(lane);
            }
        }
    }
    workers
}

/// A lane for people.
pub(super) fn lane_name(lane: &Lane<'_>, ports: &[OpenPort]) -> String {
    let name = |index: PortIndex| {
        ports
            .get(index.index())
            .map_or("?", |port| port.name.as_str())
    };
    format!(
        "{} queue {} -> {}",
        name(lane.ingress),
        lane.rx.queue().0,
        name(lane.egress)
    )
}
