//! The demo where no namespaces can be made: two gateways and their traffic in one process, joined by rings.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table};
use simplon::buf::PacketBuf;
use simplon::control::leases::{Leases, declare_fresh};
use simplon::control::report::{DropsReport, drops_report};
use simplon::dpdk::{
    Burst, Eal, EalConfig, Mempool, Port, PortSettings, RxQueue, StartedPort, TxQueue,
    allowed_cores, ring_pair,
};
use simplon::gateway::{Assembly, assemble, ports};
use simplon::generator::{Flow, verify};
use simplon::policy::{Policy, Secrets, Source, parse};
use simplon::worker::run::{self, WorkerSettings};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How long traffic runs.
const SECONDS: u64 = 8;
/// Packets on their way at one time: fewer than any ring holds, so nothing is lost for want of room.
const IN_FLIGHT: u64 = 1536;
/// Lengths of the inner packets, in turn.
const SIZES: [usize; 4] = [64, 576, 1000, 1420];
/// MAC addresses of a gateway's two ports: rings have none, so each gets one by its place in the policy.
const LAN_MAC: &str = "02:73:69:6d:00:00";
const WAN_MAC: &str = "02:73:69:6d:00:01";
/// Whoever is behind a gateway.
const HOST_MAC: &str = "02:00:00:00:00:10";

/// What one end's traffic came to.
#[derive(Default)]
struct Tally {
    sent: AtomicU64,
    arrived: AtomicU64,
    broken: AtomicU64,
}

/// Runs the demo and prints what it sees.
pub(crate) fn ring_demo() -> Result<()> {
    println!(
        "No network namespaces here, so both gateways run in this process, joined by rings:\n"
    );
    println!("  generator A === west (seals) === ESP === east (opens) === generator B, and back\n");
    let dir = tempfile::TempDir::new()?;
    let eal = Eal::init(&EalConfig {
        name: format!("simplon-demo-{}", std::process::id()),
        memory_mib: 256,
        devices: Vec::new(),
    })?;
    let west = policy("west", "1", "2", dir.path())?;
    let east = policy("east", "2", "1", dir.path())?;
    let pool = Mempool::create(&eal, "demo", 16383, 2048, 256)?;
    let lan_a = ring_pair(&eal, "lan_a", 1, 2048)?;
    let wan = ring_pair(&eal, "wan", 1, 2048)?;
    let lan_b = ring_pair(&eal, "lan_b", 1, 2048)?;
    let balanced = {
        let find = |lan, wan| {
            move |port: &simplon::policy::model::Port| {
                Some(if port.name == "lan" { lan } else { wan })
            }
        };
        let (west_ports, west_started) =
            ports::open(&eal, &west, &pool, find(lan_a.ports().1, wan.ports().0))?;
        let (east_ports, east_started) =
            ports::open(&eal, &east, &pool, find(lan_b.ports().1, wan.ports().1))?;
        let host_a = open_host(&eal, lan_a.ports().0, &pool)?;
        let host_b = open_host(&eal, lan_b.ports().0, &pool)?;
        let (west_leases, east_leases) = (Leases::open(&west), Leases::open(&east));
        let west = assemble(
            west,
            west_leases,
            &west_ports,
            &west_started,
            (&pool, eal.tsc_hz()),
        );
        let east = assemble(
            east,
            east_leases,
            &east_ports,
            &east_started,
            (&pool, eal.tsc_hz()),
        );
        traffic(&eal, &pool, [west, east], [&host_a, &host_b])?
    };
    drop((lan_a, wan, lan_b));
    println!(
        "memory pool: {} of {} buffers home",
        pool.size() - pool.in_use(),
        pool.size()
    );
    if pool.in_use() > 0 || !balanced {
        return Err("the demo did not come out even".into());
    }
    Ok(())
}

/// The policy of one end: `own` and `other` are the third octet of each side's networks.
fn policy(name: &str, own: &str, other: &str, dir: &Path) -> Result<Policy> {
    // One core each where there are two to choose from.
    let cores = allowed_cores();
    let place = usize::from(name == "east") % cores.len().max(1);
    let core = cores.get(place).copied().unwrap_or(0);
    let text = format!(
        r#"
[gateway]
name = "{name}"
workers = [{core}]
state_dir = "{dir}/{name}"
control_socket = "{dir}/{name}.sock"
lab_keys = true

[[port]]
name = "lan"
device = "net_ring0"
side = "protected"
pair = "wan"
addresses = ["10.{own}.0.1/24"]

[[port]]
name = "wan"
device = "net_ring1"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.{own}/24"]

[[neighbour]]
address = "10.{own}.0.10"
mac = "{HOST_MAC}"
port = "lan"

[[neighbour]]
address = "192.0.2.{other}"
mac = "{WAN_MAC}"
port = "wan"

[[tunnel]]
name = "demo"
local_networks = ["10.{own}.0.0/24"]
remote_networks = ["10.{other}.0.0/24"]

[[tunnel.endpoints]]
local = "192.0.2.{own}"
remote = "192.0.2.{other}"

[tunnel.endpoints.outbound]
spi = 0x100{own}
cipher = "aes-128-gcm"
key = {{ env = "KEY_{own}" }}

[tunnel.endpoints.inbound]
spi = 0x100{other}
cipher = "aes-128-gcm"
key = {{ env = "KEY_{other}" }}
"#,
        dir = dir.display()
    );
    // Keys for this one process and its few seconds.
    let secrets = Secrets::with_environment(
        ["1", "2"].map(|end| (format!("KEY_{end}"), format!("a{end}").repeat(20))),
    );
    let path = dir.join(format!("{name}.toml"));
    let policy = parse(&Source::new(&path, &text), &secrets).map_err(|errors| {
        errors.iter().fold(String::new(), |mut all, error| {
            let _ = writeln!(all, "{error}");
            all
        })
    })?;
    declare_fresh(&policy)?;
    Ok(policy)
}

fn open_host<'e>(
    eal: &'e Eal,
    id: simplon::ids::PortId,
    pool: &Mempool<'e>,
) -> Result<StartedPort<'e>> {
    let mut port = Port::open(eal, id)?;
    let settings = PortSettings {
        name: "host".into(),
        mtu: 1500,
        rx_queues: 1,
        tx_queues: 1,
        rx_descriptors: 512,
        tx_descriptors: 512,
    };
    port.configure(&settings, pool)?;
    Ok(port.start()?)
}

/// Runs both gateways and both generators for a while. Returns whether everything arrived and every packet is counted.
fn traffic<'p>(
    eal: &'p Eal,
    pool: &Mempool<'p>,
    gateways: [Assembly<'p>; 2],
    hosts: [&'p StartedPort<'p>; 2],
) -> Result<bool> {
    let (stop_hosts, stop_gateways) = (AtomicBool::new(false), AtomicBool::new(false));
    let tallies = [Tally::default(), Tally::default()];
    let threads = eal.threads();
    let mut gateways = gateways;
    let mut outcome = Ok(());
    std::thread::scope(|scope| {
        for gateway in &mut gateways {
            for (core, mut worker) in gateway.workers.drain(..) {
                let stop = &stop_gateways;
                scope.spawn(move || {
                    run::run(
                        &mut worker,
                        threads,
                        &WorkerSettings {
                            core,
                            stop,
                            measure_stages: false,
                        },
                    )
                });
            }
        }
        let [queues_a, queues_b] = hosts.map(StartedPort::queues);
        let ends = queues_a
            .rx
            .into_iter()
            .zip(queues_a.tx)
            .chain(queues_b.rx.into_iter().zip(queues_b.tx));
        for (at, (rx, tx)) in ends.enumerate() {
            let (tallies, stop) = (&tallies, &stop_hosts);
            scope.spawn(move || generate(pool, rx, tx, at, tallies, stop));
        }
        outcome = watch(&mut gateways, &tallies);
        stop_hosts.store(true, Ordering::Relaxed);
        // What is on its way arrives before the gateways stop.
        std::thread::sleep(Duration::from_millis(300));
        stop_gateways.store(true, Ordering::Relaxed);
    });
    outcome?;
    let mut even = true;
    for (name, gateway) in ["west", "east"].into_iter().zip(&mut gateways) {
        gateway
            .records
            .leases
            .finish(&gateway.shared.sad, &gateway.writer);
        let totals = report(gateway).totals;
        for (direction, sum) in [("outbound", totals.outbound), ("inbound", totals.inbound)] {
            even &= sum.balance() && sum.dropped == 0;
            println!(
                "{name} {direction}: received {} = sent {} + dropped {} + punted {}",
                sum.received, sum.sent, sum.dropped, sum.punted
            );
        }
    }
    for (name, to, from) in [
        ("A to B", &tallies[1], &tallies[0]),
        ("B to A", &tallies[0], &tallies[1]),
    ] {
        let (sent, arrived, broken) = (load(&from.sent), load(&to.arrived), load(&to.broken));
        even &= sent == arrived && broken == 0;
        println!("{name}: {sent} sent, {arrived} arrived byte for byte, {broken} broken");
    }
    Ok(even)
}

/// One host: keeps packets on their way and checks what comes back from the other.
fn generate<'p>(
    pool: &Mempool<'p>,
    mut rx: RxQueue<'p>,
    mut tx: TxQueue<'p>,
    end: usize,
    tallies: &[Tally; 2],
    stop: &AtomicBool,
) {
    let (own, other) = (&tallies[end], &tallies[1 - end]);
    let host = |end: usize| IpAddr::from([10, if end == 0 { 1 } else { 2 }, 0, 10]);
    let flow = Flow {
        gateway_mac: parse_mac(LAN_MAC),
        source_mac: parse_mac(HOST_MAC),
        source: host(end),
        destination: host(1 - end),
        source_port: 4000,
    };
    let mut frame = Vec::with_capacity(2048);
    let (mut burst, mut arrived) = (Burst::new(), Burst::new());
    let mut idle_since = Instant::now();
    while !stop.load(Ordering::Relaxed) || idle_since.elapsed() < Duration::from_millis(200) {
        if !stop.load(Ordering::Relaxed) && load(&own.sent) < load(&other.arrived) + IN_FLIGHT {
            send(pool, &mut tx, &mut burst, &flow, &mut frame, own);
        }
        if rx.rx_burst(&mut arrived) > 0 {
            idle_since = Instant::now();
        } else {
            // Two cores, four threads: let the gateways have theirs.
            std::thread::yield_now();
        }
        for packet in arrived.iter() {
            let tally = if verify(packet.data()).is_some() {
                &own.arrived
            } else {
                &own.broken
            };
            tally.fetch_add(1, Ordering::Relaxed);
        }
        arrived.clear();
    }
}

fn send<'p>(
    pool: &Mempool<'p>,
    tx: &mut TxQueue<'p>,
    burst: &mut Burst<'p>,
    flow: &Flow,
    frame: &mut Vec<u8>,
    own: &Tally,
) {
    if burst.is_empty() && !pool.alloc_burst(burst, 32) {
        return;
    }
    for (number, packet) in (load(&own.sent)..).zip(burst.iter_mut()) {
        let turn = usize::try_from(number).unwrap_or(0) % SIZES.len();
        flow.write(number, SIZES[turn], frame);
        let held = packet.data().len();
        packet.trim(held);
        if let Some(data) = packet.append(frame.len()) {
            data.copy_from_slice(frame);
        }
    }
    let sent = tx.tx_burst(burst);
    own.sent.fetch_add(sent as u64, Ordering::Relaxed);
    burst.clear();
}

/// Shows the live table once a second and keeps the leases going.
fn watch(gateways: &mut [Assembly<'_>; 2], tallies: &[Tally; 2]) -> Result<()> {
    let in_place = std::io::stdout().is_terminal();
    let mut before = [0u64; 2];
    let mut lines = 0;
    for second in 1..=SECONDS {
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            for gateway in gateways.iter_mut() {
                gateway
                    .records
                    .leases
                    .tick(&gateway.shared.sad, &gateway.writer);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if in_place && lines > 0 {
            print!("\x1b[{lines}A\x1b[J");
        }
        let text = table(gateways, tallies, &mut before, second);
        lines = text.lines().count();
        println!("{text}");
    }
    Ok(())
}

fn table(
    gateways: &[Assembly<'_>; 2],
    tallies: &[Tally; 2],
    before: &mut [u64; 2],
    second: u64,
) -> String {
    let mut table = Table::new();
    table.set_header([
        "direction",
        "packets/s",
        "inner bit/s",
        "sent",
        "arrived",
        "drops at west",
        "drops at east",
    ]);
    let reports = [report(&gateways[0]), report(&gateways[1])];
    let mean = SIZES.iter().sum::<usize>() as u64 / SIZES.len() as u64;
    for (row, (name, from, to)) in [("A to B", 0, 1), ("B to A", 1, 0)].into_iter().enumerate() {
        let arrived = load(&tallies[to].arrived);
        let rate = arrived - before[row];
        before[row] = arrived;
        let drops = |gateway: usize, direction: &str| {
            let named: Vec<_> = reports[gateway]
                .drops
                .iter()
                .filter(|count| count.direction == direction)
                .map(|count| format!("{} {}", count.count.packets, count.count.reason))
                .collect();
            if named.is_empty() {
                "none".to_owned()
            } else {
                named.join(", ")
            }
        };
        let direction_at = |gateway: usize| {
            if gateway == from {
                "outbound"
            } else {
                "inbound"
            }
        };
        table.add_row([
            name.to_owned(),
            rate.to_string(),
            format!("{:.2} Gbit/s", (rate * mean * 8) as f64 / 1e9),
            load(&tallies[from].sent).to_string(),
            arrived.to_string(),
            drops(0, direction_at(0)),
            drops(1, direction_at(1)),
        ]);
    }
    for column in 1..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\nsecond {second} of {SECONDS}")
}

fn report(gateway: &Assembly<'_>) -> DropsReport {
    let counters: Vec<_> = gateway.views.iter().map(|view| &*view.counters).collect();
    drops_report(&counters)
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn parse_mac(text: &str) -> [u8; 6] {
    let mut bytes = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).unwrap_or(0));
    std::array::from_fn(|_| bytes.next().unwrap_or(0))
}
