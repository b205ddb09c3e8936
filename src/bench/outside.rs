//! Real ports towards a device under test.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::BenchError;
use super::config::{Config, Outside, Through};
use super::measure;
use super::report::Report;
use super::rig::{self, Rig, Way};
use super::site;
use crate::dpdk::eal::{Device, Eal, EalConfig};
use crate::dpdk::mempool::Mempool;
use crate::dpdk::port::{Port, PortSettings, StartedPort};

/// Mbufs: what two ports' rings hold, and what is on its way.
const POOL_SIZE: u32 = 16_383;
/// Memory for DPDK, in MiB.
const MEMORY_MIB: u32 = 256;

/// The device behind a name of the command line.
fn device(text: &str) -> Device {
    if text.starts_with("net_") {
        Device::Virtual(text.into())
    } else {
        Device::Pci(text.into())
    }
}

/// Measures.
pub(super) fn run(
    config: &Config,
    outside: &Outside,
    stop: &Arc<AtomicBool>,
) -> Result<Report, BenchError> {
    let devices = [device(&outside.port), device(&outside.back)];
    let eal = Eal::init(&EalConfig {
        name: format!("simplon-bench-{}", std::process::id()),
        memory_mib: MEMORY_MIB,
        devices: devices.to_vec(),
    })?;
    let room = config.traffic.sizes.max().saturating_add(200).max(2048);
    let pool = Mempool::create(&eal, "bench", POOL_SIZE, room, 256)?;
    let [there, back] = devices.map(|device| open(config, &eal, &device, &pool));
    let (there, back) = (there?, back?);
    let mut report = {
        let way = Way {
            tx: there.queues().tx.into(),
            rx: back.queues().rx.into(),
            stream: Arc::new(site::outside_stream(config, outside, there.mac()?)),
            esp: config.gateways.through == Through::Seal,
        };
        let lines = rig::deal(
            config,
            &pool,
            eal.tsc_hz(),
            vec![way],
            std::collections::VecDeque::new(),
            Vec::new(),
        );
        let mut rig = Rig {
            lines,
            gateways: Vec::new(),
            eal: &eal,
        };
        measure::all(config, &mut rig, stop)?
    };
    drop((there, back));
    report.buffers_missing = pool.in_use();
    Ok(report)
}

fn open<'e>(
    config: &Config,
    eal: &'e Eal,
    device: &Device,
    pool: &Mempool<'e>,
) -> Result<StartedPort<'e>, BenchError> {
    let id = eal
        .port_by_device(device)
        .ok_or_else(|| BenchError::Arguments(format!("DPDK has no port for `{device}`")))?;
    let mut port = Port::open(eal, id)?;
    let limits = port.limits()?;
    let wanted = config.traffic.sizes.max().max(1500);
    let settings = PortSettings {
        name: device.to_string(),
        mtu: wanted.min(limits.max_mtu),
        rx_queues: 1,
        tx_queues: 1,
        rx_descriptors: 1024,
        tx_descriptors: 1024,
    };
    port.configure(&settings, pool)?;
    Ok(port.start()?)
}
