//! Gateways in this process, on rings.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::config::{Config, Through};
use super::line::Tap;
use super::measure;
use super::report::{MemoryReport, Report};
use super::rig::{self, EndQueues, Rig, Way};
use super::site::{self, End, Keys};
use super::{BenchError, line};
use crate::control::leases::{Leases, declare_fresh};
use crate::control::report::drops_report;
use crate::dpdk::eal::{Eal, EalConfig};
use crate::dpdk::mempool::Mempool;
use crate::dpdk::port::{Port, PortSettings, StartedPort};
use crate::dpdk::ring::ring_pair;
use crate::gateway::{Assembly, assemble, ports};
use crate::ids::PortId;
use crate::ipsec::replay::window_words;
use crate::ipsec::sa::{INBOUND_SIZE, OUTBOUND_SIZE};

/// Mbufs that each thread may keep in its cache.
const POOL_CACHE: u32 = 256;
/// Memory for DPDK beside its packets, in MiB.
const BASE_MIB: u32 = 96;

/// How many mbufs are needed: every ring full, what is staged, and caches.
fn pool_size(config: &Config) -> u32 {
    let threads = u32::try_from(config.cores.workers.len() + 1).unwrap_or(64);
    let rings = 8 * threads * config.gateways.ring;
    let staged = 2 * threads * 64 * u32::try_from(line::STAGED).unwrap_or(64);
    let needed = rings + staged + threads * (2 * POOL_CACHE + 512);
    needed.next_power_of_two() - 1
}

/// Measures.
pub(super) fn run(config: &Config, stop: &Arc<AtomicBool>) -> Result<Report, BenchError> {
    let began = Instant::now();
    let dir = state_dir()?;
    let keys = Keys::random(config)?;
    let pool_size = pool_size(config);
    // An mbuf has a header, headroom and what a pool keeps of it beside its data room.
    let room = site::mtu(config).saturating_add(54).max(2048);
    let pool_mib = u64::from(pool_size) * (u64::from(room) + 512) / (1 << 20);
    let eal = Eal::init(&EalConfig {
        name: format!("simplon-bench-{}", std::process::id()),
        memory_mib: BASE_MIB + u32::try_from(pool_mib).unwrap_or(u32::MAX / 2),
        devices: Vec::new(),
    })?;
    let pool = Mempool::create(&eal, "bench", pool_size, room, POOL_CACHE)?;
    let mut report = on_rings(config, stop, &eal, &pool, (&keys, dir.path()))?;
    report.machine.set_up_seconds =
        (began.elapsed().as_secs_f64() - report.machine.measured_seconds).max(0.0);
    report.buffers_missing = pool.in_use();
    Ok(report)
}

/// A directory that goes with the measurement: in memory where the system has one there, so that a slow disk does not
/// hold up leases.
fn state_dir() -> Result<tempfile::TempDir, BenchError> {
    let shm = Path::new("/dev/shm");
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("simplon-bench-");
        builder
    };
    if shm.is_dir()
        && let Ok(dir) = builder().tempdir_in(shm)
    {
        return Ok(dir);
    }
    builder().tempdir().map_err(BenchError::Directory)
}

fn on_rings(
    config: &Config,
    stop: &Arc<AtomicBool>,
    eal: &Eal,
    pool: &Mempool<'_>,
    (keys, dir): (&Keys, &Path),
) -> Result<Report, BenchError> {
    let queues = u16::try_from(config.cores.workers.len()).unwrap_or(u16::MAX);
    let ring = config.gateways.ring;
    let tapped = config.gateways.through != Through::Pair;
    let lan_a = ring_pair(eal, "lan_a", queues, ring)?;
    let wan = ring_pair(eal, "wan", queues, ring)?;
    let wan_b = if tapped {
        Some(ring_pair(eal, "wan_b", queues, ring)?)
    } else {
        None
    };
    let lan_b = ring_pair(eal, "lan_b", queues, ring)?;
    let policies = [
        site::policy(config, End::West, keys, dir)?,
        site::policy(config, End::East, keys, dir)?,
    ];
    for policy in &policies {
        declare_fresh(policy)?;
    }
    let [west, east] = policies;
    let find = |lan: PortId, wan: PortId| {
        move |port: &crate::policy::model::Port| Some(if port.name == "lan" { lan } else { wan })
    };
    let east_wan = wan_b.as_ref().map_or(wan.ports().1, |wan| wan.ports().1);
    let (west_ports, west_started) =
        ports::open(eal, &west, pool, find(lan_a.ports().1, wan.ports().0))?;
    let (east_ports, east_started) =
        ports::open(eal, &east, pool, find(lan_b.ports().1, east_wan))?;
    let host_a = open_plain(config, eal, lan_a.ports().0, pool)?;
    let host_b = open_plain(config, eal, lan_b.ports().0, pool)?;
    let taps = match &wan_b {
        None => None,
        Some(wan_b) => Some((
            open_plain(config, eal, wan.ports().1, pool)?,
            open_plain(config, eal, wan_b.ports().0, pool)?,
        )),
    };
    let (west_leases, east_leases) = (Leases::open(&west), Leases::open(&east));
    let gateways = [
        (
            End::West,
            assemble(
                west,
                west_leases,
                &west_ports,
                &west_started,
                (pool, eal.tsc_hz()),
            ),
        ),
        (
            End::East,
            assemble(
                east,
                east_leases,
                &east_ports,
                &east_started,
                (pool, eal.tsc_hz()),
            ),
        ),
    ];
    let hosts = [queues_of(&host_a), queues_of(&host_b)];
    let taps = taps.as_ref().map_or_else(VecDeque::new, |(rx, tx)| {
        let (rx, tx) = (queues_of(rx).rx, queues_of(tx).tx);
        rx.into_iter()
            .zip(tx)
            .map(|(rx, tx)| Tap::new(rx, tx))
            .collect()
    });
    measured(config, stop, (eal, pool), gateways, hosts, taps)
}

fn measured<'p>(
    config: &Config,
    stop: &Arc<AtomicBool>,
    (eal, pool): (&'p Eal, &'p Mempool<'p>),
    mut gateways: [(End, Assembly<'p>); 2],
    [host_a, host_b]: [EndQueues<'p>; 2],
    taps: VecDeque<Tap<'p>>,
) -> Result<Report, BenchError> {
    for (_, gateway) in &gateways {
        refuse_dead_sas(gateway)?;
    }
    let workers = gateways
        .iter_mut()
        .map(|(end, gateway)| {
            let workers = gateway
                .workers
                .drain(..)
                .map(|(_, worker)| worker)
                .collect();
            (*end, workers)
        })
        .collect();
    let mut ways = vec![Way {
        tx: host_a.tx,
        rx: host_b.rx,
        stream: Arc::new(site::stream(config, End::West)),
        esp: false,
    }];
    if config.traffic.both_ways {
        ways.push(Way {
            tx: host_b.tx,
            rx: host_a.rx,
            stream: Arc::new(site::stream(config, End::East)),
            esp: false,
        });
    }
    let lines = rig::deal(config, pool, eal.tsc_hz(), ways, taps, workers);
    let mut rig = Rig {
        lines,
        gateways: gateways.into(),
        eal,
    };
    let mut report = measure::all(config, &mut rig, stop)?;
    report.memory = Some(memory(config));
    for (end, gateway) in &mut rig.gateways {
        gateway
            .records
            .leases
            .finish(&gateway.shared.sad, &gateway.writer);
        let counters: Vec<_> = gateway.views.iter().map(|view| &*view.counters).collect();
        let totals = drops_report(&counters).totals;
        report.balanced &= totals.inbound.balance() && totals.outbound.balance();
        let _ = end;
    }
    Ok(report)
}

/// An SA that was not started would look like a slow gateway.
fn refuse_dead_sas(gateway: &Assembly<'_>) -> Result<(), BenchError> {
    let refused = gateway.records.rows.as_slice().iter().find_map(|row| {
        row.outbound_refused
            .as_ref()
            .or(row.inbound_refused.as_ref())
    });
    match refused {
        None => Ok(()),
        Some(reason) => Err(BenchError::Arguments(format!(
            "an SA is not started: {reason}"
        ))),
    }
}

fn queues_of<'p>(port: &'p StartedPort<'p>) -> EndQueues<'p> {
    let queues = port.queues();
    EndQueues {
        rx: queues.rx.into(),
        tx: queues.tx.into(),
    }
}

/// A port that the bench itself polls.
fn open_plain<'e>(
    config: &Config,
    eal: &'e Eal,
    id: PortId,
    pool: &Mempool<'e>,
) -> Result<StartedPort<'e>, BenchError> {
    let mut port = Port::open(eal, id)?;
    let queues = u16::try_from(config.cores.workers.len()).unwrap_or(u16::MAX);
    let settings = PortSettings {
        name: "bench".into(),
        mtu: site::mtu(config),
        rx_queues: queues,
        tx_queues: queues,
        rx_descriptors: 1024,
        tx_descriptors: 1024,
    };
    port.configure(&settings, pool)?;
    Ok(port.start()?)
}

/// What one SA takes.
fn memory(config: &Config) -> MemoryReport {
    let words = window_words(config.gateways.window);
    MemoryReport {
        outbound_bytes: OUTBOUND_SIZE,
        inbound_bytes: INBOUND_SIZE + words * size_of::<u64>(),
    }
}
