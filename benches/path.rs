//! Cycles per packet and stage of two gateways in one process, west sealing and east opening, over ring ports.
//!
//! No driver and no second process: what is measured is the packet path itself, every stage of it, and `rx` and `tx`
//! are those of a ring. Each burst is timed by itself and the median burst is told, so that others on the machine
//! disturb little. See docs/BENCHMARKING.md.
//!
//! `cargo bench --bench path -- --sas 1,1000 --sizes 64,imix,1420`

// What is cast here is small: lengths, port numbers, halves of words.
#![expect(clippy::cast_possible_truncation)]

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use simplon::buf::PacketBuf;
use simplon::dpdk::{
    Burst, Eal, EalConfig, Mempool, Port, PortSettings, Queues, RxQueue, StartedPort, TxQueue,
    ring_pair, tsc,
};
use simplon::ids::PortIndex;
use simplon::ipsec::sad::Sad;
use simplon::policy::compile::{Topology, compile, endpoint_sets, inbound_sa, outbound_sa};
use simplon::policy::model::{MacAddr, Side};
use simplon::policy::{Secrets, Source, parse, render};
use simplon::rcu::{self, Writer};
use simplon::wire::checksum::{add_bytes, finish};
use simplon::worker::counters::WorkerCounters;
use simplon::worker::datapath::{Lane, Shared, Worker};
use simplon::worker::host::HostRings;
use simplon::worker::probe::{CycleProbe, Stage};
use simplon::worker::remake::Remake;
use simplon::worker::trace::{Filter, Trace};

/// Inner packet lengths and how many of each there are in twelve.
const IMIX: [(usize, usize); 3] = [(46, 7), (552, 4), (1500, 1)];
/// MAC addresses of a site's protected and unprotected port.
const MACS: [[[u8; 6]; 2]; 2] = [
    [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]],
    [[2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 2, 2]],
];

#[derive(Parser)]
struct Args {
    /// Numbers of SAs, each measured by itself.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000])]
    sas: Vec<u32>,
    /// Lengths of inner packets, or `imix`.
    #[arg(long, value_delimiter = ',', default_values_t = ["64".to_owned(), "imix".into(), "1420".into()])]
    sizes: Vec<String>,
    /// Bursts to measure.
    #[arg(long, default_value_t = 4000)]
    bursts: usize,
    /// Packets in a burst, at most 64.
    #[arg(long, default_value_t = 64)]
    burst: usize,
    /// Packets of equal SA that come together.
    #[arg(long, default_value_t = 1)]
    run: u32,
    /// Frames for west itself among each burst, ARP, ICMP and IKE in turn, far beyond what is punted of them; cycles are
    /// told per packet of the tunnel.
    #[arg(long, default_value_t = 0)]
    flood: usize,
    /// Ordered policies beside the tunnels, each of which takes a TCP port out of one tunnel, where packets are UDP: all are
    /// searched for a new flow, and none holds it.
    #[arg(long, default_value_t = 0)]
    policies: u32,
    /// With a trace under way that looks at every packet and wants none.
    #[arg(long)]
    trace: bool,
    /// Given by `cargo bench`; of no meaning.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The inner destination of tunnel `at`.
fn destination(at: u32) -> [u8; 4] {
    (0x0a80_0000 + at).to_be_bytes()
}

/// The policy of `site` (0 west, 1 east) with `tunnels` tunnels and so many ordered policies, east's a mirror of west's.
fn policy(site: usize, tunnels: u32, policies: u32) -> String {
    let (us, them) = (site + 1, 2 - site);
    let mut text = format!(
        r#"[gateway]
name = "path{us}"
workers = [0]
state_dir = "/var/lib/simplon/path{us}"
control_socket = "/run/simplon/path{us}.sock"
lab_keys = true
[[port]]
name = "lan"
device = "net_null0"
side = "protected"
pair = "wan"
addresses = ["10.{us}.0.1/24"]
mtu = 1600
[[port]]
name = "wan"
device = "net_null1"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.{us}/24"]
mtu = 1600
[[neighbour]]
address = "10.{us}.0.10"
mac = "02:00:00:00:00:10"
port = "lan"
[[neighbour]]
address = "192.0.2.{them}"
mac = "02:00:00:00:0{them}:02"
port = "wan"
[[route]]
to = "10.128.0.0/9"
via = "10.{us}.0.10"
port = "lan"
"#
    );
    for at in 0..tunnels {
        let host = std::net::Ipv4Addr::from(destination(at));
        let nets = ["10.1.0.0/16".to_owned(), format!("{host}/32")];
        let keys = [2 * at, 2 * at + 1];
        let (key_out, key_in) = (keys[site], keys[1 - site]);
        let _ = write!(
            text,
            r#"[[tunnel]]
name = "t{at}"
local_networks = ["{}"]
remote_networks = ["{}"]
[[tunnel.endpoints]]
local = "192.0.2.{us}"
remote = "192.0.2.{them}"
[tunnel.endpoints.outbound]
spi = {}
cipher = "aes-128-gcm"
key = {{ env = "K{key_out}" }}
esn = false
[tunnel.endpoints.inbound]
spi = {}
cipher = "aes-128-gcm"
key = {{ env = "K{key_in}" }}
esn = false
"#,
            nets[site],
            nets[1 - site],
            0x1000 + key_out,
            0x1000 + key_in,
        );
    }
    let [near, far] = [["local", "remote"], ["remote", "local"]][site];
    for at in 0..policies {
        let host = std::net::Ipv4Addr::from(destination(at % tunnels));
        let port = at / tunnels % 60_000 + 1;
        let _ = write!(
            text,
            "[[policy]]\nname = \"p{at}\"\naction = \"discard\"\n{near} = \"10.1.0.0/16\"\n{far} = \"{host}\"\n\
             protocol = \"tcp\"\n{far}_ports = {port}\n"
        );
    }
    text
}

fn keys(tunnels: u32) -> impl Iterator<Item = (String, String)> {
    (0..2 * tunnels).map(|at| {
        (
            format!("K{at}"),
            format!("{at:08x}{:032x}", u128::from(at) * 7),
        )
    })
}

/// One gateway's worker, with the lane that is measured.
struct Site<'p> {
    worker: Worker<'p>,
    writer: Writer,
    probe: CycleProbe,
    /// When more could be punted.
    refilled: Instant,
    /// By stage and then over the whole poll, ticks of each burst measured.
    ticks: [Vec<u64>; Stage::ALL.len() + 1],
}

impl<'p> Site<'p> {
    fn new(
        site: usize,
        (tunnels, policies): (u32, u32),
        (rx, tx): (RxQueue<'p>, TxQueue<'p>),
        remake: Remake<'p>,
    ) -> Self {
        let text = policy(site, tunnels, policies);
        let start = Instant::now();
        let source = Source::new(Path::new("path.toml"), &text);
        let policy = parse(&source, &Secrets::with_environment(keys(tunnels)))
            .unwrap_or_else(|errors| panic!("{}", render(&errors, &source, false)));
        let parsed = start.elapsed();
        let (mut writer, mut readers) = rcu::domain(1);
        let shared = Arc::new(Shared {
            tables: writer.slots(1),
            trace: writer.slots(1),
            sad: Sad::new(&writer, endpoint_sets(&policy).count()),
            host: HostRings::new(2),
        });
        let macs = MACS[site].map(MacAddr).to_vec();
        let tables = Box::new(compile(&policy, &Topology { macs }));
        assert!(writer.replace(&shared.tables, 0, Some(tables)).is_ok());
        for (slot, _, tunnel, set) in endpoint_sets(&policy) {
            let seals = outbound_sa(tunnel, set, 1);
            seals.seq().extend_lease(u64::MAX);
            let opens = inbound_sa(tunnel, set, 0);
            let done = writer.replace(shared.sad.outbound(), slot.index(), Some(Box::new(seals)));
            assert!(done.is_ok());
            let done = writer.replace(shared.sad.inbound(), slot.index(), Some(Box::new(opens)));
            assert!(done.is_ok());
        }
        eprintln!(
            "{tunnels} tunnels: policy read in {parsed:.2?}, SAs in {:.2?}",
            start.elapsed() - parsed
        );
        let (ingress, egress) = (PortIndex(site as u16), PortIndex(1 - site as u16));
        let lanes = vec![Lane {
            rx,
            tx,
            ingress,
            egress,
        }];
        let reader = readers.pop().expect("one reader");
        Self {
            worker: Worker::new(
                reader,
                shared,
                lanes,
                Arc::new(WorkerCounters::new(2)),
                remake,
            ),
            writer,
            probe: CycleProbe::new(tsc),
            refilled: Instant::now(),
            ticks: Default::default(),
        }
    }

    /// Has the worker look at every packet, and follow none.
    fn trace(&mut self) {
        let filter = Filter {
            spi: Some(0),
            ..Filter::default()
        };
        let trace = Some(Box::new(Arc::new(Trace::new(filter, u32::MAX, 1, 1))));
        let slots = &self.worker.shared.trace;
        assert!(self.writer.replace(slots, 0, trace).is_ok());
    }

    fn poll(&mut self, packets: usize) {
        let start = tsc();
        assert_eq!(self.worker.poll_once(&mut self.probe), packets);
        let whole = tsc().wrapping_sub(start);
        let stages = self.probe.take().into_iter().chain([whole]);
        for (ticks, sample) in self.ticks.iter_mut().zip(stages) {
            ticks.push(sample);
        }
    }

    /// Medians over the bursts since the last time, per packet: each stage, then the whole poll.
    fn medians(&mut self, packets: usize) -> Vec<f64> {
        self.writer.reclaim();
        let median = |ticks: &mut Vec<u64>| {
            let mut ticks = std::mem::take(ticks);
            ticks.sort_unstable();
            ticks[ticks.len() / 2] as f64 / packets as f64
        };
        self.ticks.iter_mut().map(median).collect()
    }

    /// As the host thread does.
    fn take_punts(&mut self) {
        let host = &self.worker.shared.host;
        let passed = self.refilled.elapsed();
        if passed.as_millis() >= 10 {
            host.limits.refill(passed);
            self.refilled = Instant::now();
        }
        while host.punts.pop().is_some() {}
    }

    fn assert_all_sent(&self, side: Side) {
        let counters = self.worker.counters.direction(side);
        assert_eq!(counters.received.get(), counters.sent.get(), "{side:?}");
    }
}

/// A frame for west with an inner packet of `len` bytes for tunnel `at`.
fn write_frame(frame: &mut [u8], at: u32, len: usize) {
    frame[..6].copy_from_slice(&MACS[0][0]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x10]);
    frame[12..14].copy_from_slice(&[8, 0]);
    let mut header = [
        0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 10, 0, 0, 0, 0,
    ];
    header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    header[16..].copy_from_slice(&destination(at));
    let sum = finish(add_bytes(0, &header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame[14..34].copy_from_slice(&header);
}

/// A frame for west itself: ARP, ICMP or IKE.
fn write_flood(packet: &mut impl PacketBuf, at: usize) {
    let frame = packet.append(74).expect("room");
    frame.fill(0);
    frame[..6].copy_from_slice(&MACS[0][0]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x10]);
    let protocol = match at % 3 {
        0 => {
            frame[12..14].copy_from_slice(&[8, 6]);
            return;
        }
        1 => 1,
        _ => 17,
    };
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = [
        0x45, 0, 0, 60, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 1, 0, 10, 10, 1, 0, 1,
    ];
    frame[14..34].copy_from_slice(&ip);
    let sum = finish(add_bytes(0, &ip));
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    // ICMP echo request, or port 500.
    let message = if protocol == 1 {
        [8, 0, 0, 0]
    } else {
        [1, 0xf4, 1, 0xf4]
    };
    frame[34..38].copy_from_slice(&message);
}

/// Lengths of inner packets, in turn.
fn lengths(size: &str) -> Vec<usize> {
    if size != "imix" {
        return vec![size.parse().expect("a length or `imix`")];
    }
    let mut all: Vec<_> = IMIX
        .iter()
        .flat_map(|(len, count)| std::iter::repeat_n(*len, *count))
        .collect();
    // Spread: 7 and 12 have no common divisor.
    (0..12)
        .map(|at| all[at * 7 % 12])
        .collect::<Vec<_>>()
        .clone_into(&mut all);
    all
}

struct Ends<'p> {
    pool: &'p Mempool<'p>,
    inject: TxQueue<'p>,
    collect: RxQueue<'p>,
}

impl Ends<'_> {
    /// Sends bursts through both gateways: `warm_up` unmeasured, then `args.bursts` measured.
    fn run(&mut self, args: &Args, sas: u32, size: &str, sites: &mut [Site<'_>; 2]) {
        let lengths = lengths(size);
        let warm_up = 200 + (3 * sas as usize) / args.burst;
        let mut sent = 0u32;
        let mut random = 1u64;
        let mut tunnel = 0;
        for burst_no in 0..warm_up + args.bursts {
            if burst_no == warm_up {
                for site in &mut *sites {
                    site.medians(1);
                }
            }
            let mut burst = Burst::new();
            let total = args.burst + args.flood;
            assert!(self.pool.alloc_burst(&mut burst, total));
            for (at, packet) in burst.as_mut_slice().iter_mut().enumerate() {
                // Evenly among the others.
                if at * args.flood / total != (at + 1) * args.flood / total {
                    write_flood(packet, at);
                    continue;
                }
                if sent.is_multiple_of(args.run) {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    tunnel = (((random >> 32) * u64::from(sas)) >> 32) as u32;
                }
                let len = lengths[sent as usize % lengths.len()];
                write_frame(packet.append(14 + len).expect("room"), tunnel, len);
                sent += 1;
            }
            assert_eq!(self.inject.tx_burst(&mut burst), total);
            for (site, packets) in sites.iter_mut().zip([total, args.burst]) {
                site.poll(packets);
            }
            sites[0].take_punts();
            assert_eq!(self.collect.rx_burst(&mut burst), args.burst);
            burst.clear();
        }
        if args.flood == 0 {
            sites[0].assert_all_sent(Side::Protected);
        }
        sites[1].assert_all_sent(Side::Unprotected);
    }
}

fn settings() -> PortSettings {
    PortSettings {
        name: "ring".into(),
        mtu: 1600,
        rx_queues: 1,
        tx_queues: 1,
        rx_descriptors: 256,
        tx_descriptors: 256,
    }
}

fn only(mut queues: Queues<'_>) -> (RxQueue<'_>, TxQueue<'_>) {
    (queues.rx.pop().expect("one"), queues.tx.pop().expect("one"))
}

fn main() {
    let args = Args::parse();
    assert!((1..=64).contains(&args.burst) && args.run > 0 && !args.sas.contains(&0));
    let eal = Eal::init(&EalConfig {
        name: format!("simplon_path_{}", std::process::id()),
        devices: Vec::new(),
        memory_mib: 64,
    })
    .expect("EAL starts");
    let pool = Mempool::create(&eal, "pool", 4095, 2048, 256).expect("pool");
    let pairs: Vec<_> = ["lan1", "wan", "lan2"]
        .into_iter()
        .map(|name| ring_pair(&eal, name, 1, 255).expect("pair"))
        .collect();
    let ports: Vec<StartedPort<'_>> = pairs
        .iter()
        .flat_map(|pair| [pair.ports().0, pair.ports().1])
        .map(|id| {
            let mut port = Port::open(&eal, id).expect("open");
            port.configure(&settings(), &pool).expect("configure");
            port.start().expect("start")
        })
        .collect();
    // Our end of west's protected port, that port, the unprotected ones, east's protected port, our end of it.
    let mut queues = ports.iter().map(|port| only(port.queues()));
    let mut next = || queues.next().expect("six ports");
    let (ours, lan1, wan1, wan2, lan2, ours2) = (next(), next(), next(), next(), next(), next());
    let mut ends = Ends {
        pool: &pool,
        inject: ours.1,
        collect: ours2.0,
    };
    let mut lanes = [(lan1.0, wan1.1), (wan2.0, lan2.1)].map(Some);
    let mut columns: Vec<(String, [Vec<f64>; 2])> = Vec::new();
    for sas in args.sas.iter().copied() {
        let mut sites = [0, 1].map(|site| {
            let (rx, tx) = lanes[site].take().expect("given back");
            Site::new(
                site,
                (sas, args.policies),
                (rx, tx),
                Remake::new(&pool, eal.tsc_hz()),
            )
        });
        if args.trace {
            sites.iter_mut().for_each(Site::trace);
        }
        for size in &args.sizes {
            ends.run(&args, sas, size, &mut sites);
            let medians = [0, 1].map(|site| sites[site].medians(args.burst));
            columns.push((format!("{size} B, {sas} SA"), medians));
        }
        for (lane, site) in lanes.iter_mut().zip(sites) {
            let given_back = site.worker.lanes.into_iter().next().expect("its lane");
            *lane = Some((given_back.rx, given_back.tx));
        }
    }
    print(&columns);
    assert_eq!(pool.in_use(), 0, "every mbuf is home");
}

/// Prints the table of `columns`, rows by direction and stage.
fn print(columns: &[(String, [Vec<f64>; 2])]) {
    let heads: Vec<_> = columns.iter().map(|(head, _)| head.as_str()).collect();
    println!("| | {} |", heads.join(" | "));
    println!("|---|{}", "---:|".repeat(heads.len()));
    let stages: Vec<_> = Stage::ALL.iter().map(|stage| stage.name()).collect();
    for (at, direction) in ["seal", "open"].into_iter().enumerate() {
        for (row, stage) in stages.iter().chain(&["**all**"]).enumerate() {
            let cells: Vec<_> = columns
                .iter()
                .map(|(_, medians)| format!("{:.1}", medians[at][row]))
                .collect();
            println!("| {direction}: {stage} | {} |", cells.join(" | "));
        }
    }
}
