//! A thousand changes, a hundred reloads and ten roll-backs under traffic at full rate, on two workers: nothing is lost on a tunnel
//! that nobody named, and nothing on one whose SAs others take the place of.
//!
//! Two gateways and what is behind them in one process, joined by rings. Those behind keep fewer packets on their way than a ring
//! holds, and send as fast as packets arrive, so that what does not arrive was lost by a change and by nothing else.
#![cfg(feature = "dpdk")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use simplon::buf::PacketBuf;
use simplon::control::change::report::{ChangeKind, ChangeSettings, JobReport, JobState};
use simplon::control::change::{Maker, PolicyText};
use simplon::control::events::EventQueue;
use simplon::control::leases::{Leases, declare_fresh};
use simplon::control::report::drops_report;
use simplon::dpdk::{
    Burst, Eal, EalConfig, Mempool, Port, PortSettings, RxQueue, StartedPort, ThreadRegistration,
    Threads, TxQueue, allowed_cores, pin_current_thread, ring_pair,
};
use simplon::gateway::live::{Live, Parts};
use simplon::gateway::{Assembly, assemble, ports};
use simplon::generator::{Flow, verify};
use simplon::ids::{PortId, SaIndex};
use simplon::policy::compile::Topology;
use simplon::policy::edit::Edit;
use simplon::policy::model::MacAddr;
use simplon::policy::{Policy, Secrets, Source, parse};
use simplon::worker::datapath::Worker;
use simplon::worker::probe::NoProbe;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const CHANGES: usize = 1000;
const RELOADS: usize = 100;
const ROLLBACKS: usize = 10;
/// Queues of each port, and workers of each gateway.
const WORKERS: u16 = 2;
/// Packets of one end on their way at one time: fewer than a ring holds.
const IN_FLIGHT: u64 = 1500;
/// Longest that one change may take, with every core polled.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of the tunnel that nobody names, and of the one that gets other keys again and again.
const NETWORKS: [u8; 2] = [1, 2];
const LAN_MAC: [u8; 6] = [0x02, b's', b'i', b'm', 0, 0];
const WAN_MAC: [u8; 6] = [0x02, b's', b'i', b'm', 0, 1];
const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x10];

/// One of the two gateways: 1 is west, 2 is east.
#[derive(Clone, Copy, PartialEq, Eq)]
struct End(u8);

const ENDS: [End; 2] = [End(1), End(2)];

impl End {
    fn other(self) -> u8 {
        3 - self.0
    }
}

/// A tunnel of one end, with its keys and SPIs of the given age: both ends have the same there.
fn tunnel(end: End, name: &str, network: u8, age: usize) -> String {
    let (own, other) = (end.0, end.other());
    let spi = |sealer: u8| {
        0x1_0000 + usize::from(sealer) * 0x100_0000 + usize::from(network) * 0x1_0000 + age
    };
    let sa = |sealer: u8| {
        format!(
            "spi = {}\ncipher = \"aes-128-gcm\"\nkey = {{ env = \"{}\" }}\n",
            spi(sealer),
            variable(sealer, network, age)
        )
    };
    format!(
        "[[tunnel]]\nname = \"{name}\"\nlocal_networks = [\"10.{own}.{network}.0/24\"]\nremote_networks = \
         [\"10.{other}.{network}.0/24\"]\n[[tunnel.endpoints]]\nlocal = \"192.0.2.{own}\"\nremote = \"192.0.2.{other}\"\n\
         [tunnel.endpoints.outbound]\n{}[tunnel.endpoints.inbound]\n{}window = 4096\n",
        sa(own),
        sa(other)
    )
}

fn variable(sealer: u8, network: u8, age: usize) -> String {
    format!("KEY_{sealer}_{network}_{age}")
}

/// Every key that this test comes to.
fn secrets() -> Secrets {
    let mut keys = BTreeMap::new();
    for sealer in [1u8, 2] {
        for network in 1..=3u8 {
            for age in 0..=CHANGES {
                let key = format!("{sealer:02x}{network:02x}{age:08x}{}", "5a".repeat(14));
                keys.insert(variable(sealer, network, age), key);
            }
        }
    }
    Secrets::with_environment(keys)
}

fn policy_text(end: End, dir: &Path) -> String {
    let (own, other) = (end.0, end.other());
    let dir = dir.display();
    let mac = |mac: [u8; 6]| MacAddr(mac).to_string();
    let cores = allowed_cores();
    let core = |at: usize| cores.get(at % cores.len().max(1)).copied().unwrap_or(0);
    // Numbers of workers, which go by `pin`.
    let workers: Vec<usize> = (0..usize::from(WORKERS)).map(core).collect();
    let mut text = format!(
        r#"
[gateway]
name = "live{own}"
workers = {workers:?}
state_dir = "{dir}/{own}"
control_socket = "{dir}/{own}.sock"
lab_keys = true

[[port]]
name = "lan"
device = "net_ring0"
side = "protected"
pair = "wan"
addresses = ["10.{own}.0.1/16"]
queues = {WORKERS}

[[port]]
name = "wan"
device = "net_ring1"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.{own}/24"]
queues = {WORKERS}

[[neighbour]]
address = "192.0.2.{other}"
mac = "{}"
port = "wan"
"#,
        mac(WAN_MAC)
    );
    for network in NETWORKS {
        text += &format!(
            "\n[[neighbour]]\naddress = \"10.{own}.{network}.10\"\nmac = \"{}\"\nport = \"lan\"\n",
            mac(HOST_MAC)
        );
    }
    text += &tunnel(end, "steady", 1, 0);
    text += &tunnel(end, "rekeyed", 2, 0);
    text
}

fn read(text: &PolicyText, secrets: &Secrets) -> Policy {
    let source = Source::new(&text.path, &text.text);
    parse(&source, secrets).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

/// A gateway under change.
struct Gateway<'p> {
    assembly: Assembly<'p>,
    live: Live,
    events: EventQueue,
    path: PathBuf,
}

impl Gateway<'_> {
    fn turn(&mut self) {
        let Assembly {
            shared,
            writer,
            records,
            plan,
            ..
        } = &mut self.assembly;
        let mut parts = Parts {
            sad: &shared.sad,
            writer,
            records,
            adopt: &mut |compiled, changes, writer| {
                let before = plan.adopt(compiled, changes, &[]);
                let tables = Box::new(plan.tables());
                assert!(writer.replace(&shared.tables, 0, Some(tables)).is_ok());
                before
            },
            events: &self.events,
        };
        self.live.turn(&mut parts, Instant::now());
        records.leases.tick(&shared.sad, writer);
        writer.reclaim();
        while self.events.next().is_some() {}
    }

    /// Number and packets of the SAs in slot 0, which are those of the tunnel that nobody names.
    fn steady(&self) -> (u32, u64, u64) {
        let (sad, writer) = (&self.assembly.shared.sad, &self.assembly.writer);
        let sa = sad.outbound().get_owned(writer, 0).expect("there");
        let inbound = sad.inbound().get_owned(writer, 0).expect("there");
        let packets = inbound.counters().packets();
        (sa.identity().spi.get(), sa.seq().next(), packets)
    }
}

struct Changes<'g, 'p> {
    gateways: &'g mut [Gateway<'p>; 2],
    made: usize,
}

impl Changes<'_, '_> {
    /// Waits until a job is done, and both gateways have their turns meanwhile.
    fn wait(&mut self, at: usize, report: JobReport) -> JobReport {
        let began = Instant::now();
        loop {
            for gateway in self.gateways.iter_mut() {
                gateway.turn();
            }
            let now = self.gateways[at].live.job(report.job).expect("remembered");
            match now.state {
                JobState::Done => return now,
                JobState::Refused => panic!("{}", now.error.unwrap_or_default()),
                JobState::Running => std::thread::sleep(Duration::from_micros(200)),
            }
            assert!(began.elapsed() < PATIENCE, "{now:?}");
        }
    }

    fn edit(&mut self, at: usize, edit: Edit, settings: ChangeSettings) {
        let report = self.gateways[at].live.edit(edit, settings).expect("taken");
        self.wait(at, report);
        self.made += 1;
    }

    /// Gives the second tunnel new keys, at one end and then at the other, which begins to use them.
    fn rekey(&mut self, age: usize) {
        for at in [age % 2, 1 - age % 2] {
            let is_first = at == age % 2;
            let settings = ChangeSettings {
                outbound_after_s: if is_first { 3600 } else { 0 },
                ..fresh()
            };
            let tables = tunnel(ENDS[at], "rekeyed", 2, age);
            self.edit(at, Edit::Replace(tables), settings);
        }
    }
}

fn fresh() -> ChangeSettings {
    ChangeSettings {
        fresh_keys: true,
        grace_s: 1,
        ..ChangeSettings::default()
    }
}

const POLICY: &str = "[[policy]]\nname = \"quiet\"\naction = \"discard\"\nlocal = \"any\"\nremote = \"any\"\nprotocol = \"tcp\"\n";

/// All changes. Returns how often keys changed.
fn change_everything(changes: &mut Changes<'_, '_>) -> usize {
    let mut age = 0;
    while changes.made < CHANGES {
        let at = changes.made % 2;
        age += 1;
        let comes = tunnel(ENDS[at], "comes-and-goes", 3, age);
        changes.edit(at, Edit::Add(comes), fresh());
        changes.rekey(age);
        changes.edit(at, Edit::Remove(vec!["comes-and-goes".into()]), fresh());
        changes.edit(at, Edit::Add(POLICY.into()), fresh());
        changes.edit(at, Edit::Remove(vec!["quiet".into()]), fresh());
    }
    for reload in 0..RELOADS {
        let at = reload % 2;
        let gateway = &mut changes.gateways[at];
        let mut text = gateway.live.text(Instant::now()).text;
        match text.find(POLICY) {
            Some(found) => text.truncate(found),
            None => text += &format!("\n{POLICY}"),
        }
        std::fs::write(&gateway.path, text).expect("written");
        let path = gateway.path.clone();
        let report = gateway.live.load(path, ChangeKind::Load, fresh());
        let report = changes.wait(at, report.expect("taken"));
        assert_eq!(report.difference.len(), 1, "{report:?}");
    }
    for rollback in 0..ROLLBACKS {
        let at = rollback % 2;
        let settings = ChangeSettings {
            confirm_s: Some(3600),
            ..fresh()
        };
        age += 1;
        let tables = tunnel(ENDS[at], "rekeyed", 2, age);
        changes.edit(at, Edit::Replace(tables), settings);
        let report = changes.gateways[at].live.roll_back().expect("pending");
        changes.wait(at, report);
    }
    age
}

/// What those behind one gateway have sent to and got from those behind the other, by network.
#[derive(Default)]
struct Tally {
    sent: [AtomicU64; 2],
    arrived: [AtomicU64; 2],
    broken: AtomicU64,
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn total(counters: &[AtomicU64; 2]) -> u64 {
    counters.iter().map(load).sum()
}

/// Those behind one gateway, at one queue of its protected port.
struct Hosts<'p> {
    end: usize,
    rx: RxQueue<'p>,
    tx: TxQueue<'p>,
    burst: Burst<'p>,
    frame: Vec<u8>,
    turn: usize,
}

impl<'p> Hosts<'p> {
    /// Sends, if so much is not on its way.
    fn send(&mut self, pool: &Mempool<'p>, tallies: &[Tally; 2]) {
        let (own, other) = (&tallies[self.end], &tallies[1 - self.end]);
        if total(&own.sent) >= total(&other.arrived) + IN_FLIGHT {
            return;
        }
        self.turn = self.turn.wrapping_add(1);
        let network = self.turn % NETWORKS.len();
        let host = |end: usize| IpAddr::from([10, ENDS[end].0, NETWORKS[network], 10]);
        let flow = Flow {
            gateway_mac: LAN_MAC,
            source_mac: HOST_MAC,
            source: host(self.end),
            destination: host(1 - self.end),
            source_port: 4000,
        };
        if !pool.alloc_burst(&mut self.burst, 32) {
            return;
        }
        for (number, packet) in (0u64..).zip(self.burst.iter_mut()) {
            flow.write(number, 200, &mut self.frame);
            let held = packet.data().len();
            packet.trim(held);
            let data = packet.append(self.frame.len()).expect("room");
            data.copy_from_slice(&self.frame);
        }
        let sent = self.tx.tx_burst(&mut self.burst);
        own.sent[network].fetch_add(sent as u64, Ordering::Relaxed);
        self.burst.clear();
    }

    /// Checks what arrives.
    fn receive(&mut self, tallies: &[Tally; 2]) {
        let own = &tallies[self.end];
        self.rx.rx_burst(&mut self.burst);
        for packet in self.burst.iter() {
            // The inner destination's third octet.
            let octet = packet.data().get(14 + 18).copied().unwrap_or(0);
            let network = usize::from(octet).wrapping_sub(1);
            match own.arrived.get(network) {
                Some(arrived) if verify(packet.data()).is_some() => arrived,
                _ => &own.broken,
            }
            .fetch_add(1, Ordering::Relaxed);
        }
        self.burst.clear();
    }
}

/// A worker of each gateway and those behind both, on one core: so that none waits for another that does not run.
struct Line<'p> {
    core: usize,
    workers: Vec<Worker<'p>>,
    hosts: Vec<Hosts<'p>>,
}

impl<'p> Line<'p> {
    fn run(
        &mut self,
        threads: Threads<'_>,
        pool: &Mempool<'p>,
        tallies: &[Tally; 2],
        [stop_hosts, stop]: [&AtomicBool; 2],
    ) {
        pin_current_thread(self.core).expect("pinned");
        let _registered = ThreadRegistration::new(threads).expect("registered");
        while !stop.load(Ordering::Relaxed) {
            for hosts in &mut self.hosts {
                if !stop_hosts.load(Ordering::Relaxed) {
                    hosts.send(pool, tallies);
                }
                hosts.receive(tallies);
            }
            for worker in &mut self.workers {
                worker.poll_once(&mut NoProbe);
            }
        }
    }
}

fn open_host<'e>(eal: &'e Eal, id: PortId, pool: &Mempool<'e>) -> Result<StartedPort<'e>> {
    let mut port = Port::open(eal, id)?;
    let settings = PortSettings {
        name: "host".into(),
        mtu: 1500,
        rx_queues: WORKERS,
        tx_queues: WORKERS,
        rx_descriptors: 512,
        tx_descriptors: 512,
    };
    port.configure(&settings, pool)?;
    Ok(port.start()?)
}

/// One end's gateway, over its two ports.
fn gateway<'p>(
    text: PolicyText,
    (opened, started): (&[ports::OpenPort], &'p [StartedPort<'p>]),
    (pool, hz): (&'p Mempool<'p>, u64),
) -> Result<Gateway<'p>> {
    let policy = read(&text, &secrets());
    let leases = Leases::open(&policy);
    let assembly = assemble(policy, leases, opened, started, (pool, hz));
    let topology = Topology {
        macs: opened.iter().map(|port| MacAddr(port.mac)).collect(),
    };
    let path = text.path.clone();
    let in_force = assembly.in_force(text);
    let starter = assembly.records.leases.starter();
    Ok(Gateway {
        assembly,
        live: Live::new(in_force, Maker::start(secrets(), topology, starter)?),
        events: EventQueue::default(),
        path,
    })
}

#[test]
fn nothing_is_lost_by_changes_that_do_not_name_it_nor_by_new_keys() -> Result<()> {
    let dir = tempfile::TempDir::new()?;
    let eal = Eal::init(&EalConfig {
        name: format!("simplon-live-{}", std::process::id()),
        memory_mib: 128,
        devices: Vec::new(),
    })?;
    let texts = ENDS.map(|end| PolicyText {
        path: dir.path().join(format!("{}.toml", end.0)),
        text: policy_text(end, dir.path()),
    });
    let [west, east] = texts.each_ref().map(|text| read(text, &secrets()));
    for policy in [&west, &east] {
        declare_fresh(policy)?;
    }
    let pool = Mempool::create(&eal, "live", 16383, 2048, 256)?;
    let lan_a = ring_pair(&eal, "lan_a", WORKERS, 2048)?;
    let wan = ring_pair(&eal, "wan", WORKERS, 2048)?;
    let lan_b = ring_pair(&eal, "lan_b", WORKERS, 2048)?;
    {
        let find = |lan: PortId, wan: PortId| {
            move |port: &simplon::policy::model::Port| {
                Some(if port.name == "lan" { lan } else { wan })
            }
        };
        let at = |lan, wan| find(lan, wan);
        let (west_ports, west_started) =
            ports::open(&eal, &west, &pool, at(lan_a.ports().1, wan.ports().0))?;
        let (east_ports, east_started) =
            ports::open(&eal, &east, &pool, at(lan_b.ports().1, wan.ports().1))?;
        let hosts = [
            open_host(&eal, lan_a.ports().0, &pool)?,
            open_host(&eal, lan_b.ports().0, &pool)?,
        ];
        let [west_text, east_text] = texts;
        let room = (&pool, eal.tsc_hz());
        let gateways = [
            gateway(west_text, (&west_ports, &west_started), room)?,
            gateway(east_text, (&east_ports, &east_started), room)?,
        ];
        run_all(&eal, &pool, gateways, &hosts);
    }
    drop((lan_a, wan, lan_b));
    assert_eq!(pool.in_use(), 0, "buffers are missing");
    Ok(())
}

/// One line for each worker that both gateways have.
fn lines<'p>(gateways: &mut [Gateway<'p>; 2], hosts: &'p [StartedPort<'p>; 2]) -> Vec<Line<'p>> {
    let cores = allowed_cores();
    let mut lines: Vec<Line<'_>> = (0..usize::from(WORKERS))
        .map(|at| Line {
            core: cores[at % cores.len()],
            workers: Vec::new(),
            hosts: Vec::new(),
        })
        .collect();
    for gateway in gateways {
        let workers = gateway.assembly.workers.drain(..);
        for (line, (_, worker)) in lines.iter_mut().zip(workers) {
            line.workers.push(worker);
        }
    }
    for (end, port) in hosts.iter().enumerate() {
        let queues = port.queues();
        let ends = queues.rx.into_iter().zip(queues.tx);
        for (line, (rx, tx)) in lines.iter_mut().zip(ends) {
            line.hosts.push(Hosts {
                end,
                rx,
                tx,
                burst: Burst::new(),
                frame: Vec::with_capacity(2048),
                turn: 0,
            });
        }
    }
    lines
}

fn run_all<'p>(
    eal: &'p Eal,
    pool: &Mempool<'p>,
    mut gateways: [Gateway<'p>; 2],
    hosts: &'p [StartedPort<'p>; 2],
) {
    let (stop_hosts, stop_workers) = (AtomicBool::new(false), AtomicBool::new(false));
    let tallies = [Tally::default(), Tally::default()];
    let threads = eal.threads();
    let before = gateways.each_ref().map(Gateway::steady);
    let mut lines = lines(&mut gateways, hosts);
    let ages = std::thread::scope(|scope| {
        for line in &mut lines {
            let (tallies, stops) = (&tallies, [&stop_hosts, &stop_workers]);
            scope.spawn(move || line.run(threads, pool, tallies, stops));
        }
        let mut changes = Changes {
            gateways: &mut gateways,
            made: 0,
        };
        // Workers are told to stop whatever happens here, or nobody would hear of it.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            change_everything(&mut changes)
        }));
        stop_hosts.store(true, Ordering::Relaxed);
        let began = Instant::now();
        let is_there =
            || (0..2).all(|end| total(&tallies[end].sent) == total(&tallies[1 - end].arrived));
        while !is_there() && began.elapsed() < Duration::from_secs(5) {
            for gateway in &mut gateways {
                gateway.turn();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        stop_workers.store(true, Ordering::Relaxed);
        outcome
    });
    let ages = ages.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    for (gateway, before) in gateways.iter().zip(before) {
        let counters: Vec<_> = gateway
            .assembly
            .views
            .iter()
            .map(|view| &*view.counters)
            .collect();
        let report = drops_report(&counters);
        assert!(report.drops.is_empty(), "{:?}", report.drops);
        assert!(report.totals.outbound.balance() && report.totals.inbound.balance());
        // The same SA from the beginning to the end: its numbers and counters went on.
        let after = gateway.steady();
        assert_eq!(after.0, before.0);
        assert!(after.1 > before.1 && after.2 > before.2, "{after:?}");
        assert_eq!(
            gateway
                .assembly
                .records
                .rows
                .get(SaIndex(0))
                .expect("row")
                .tunnel,
            "steady"
        );
    }
    for end in 0..2 {
        let (sent, arrived) = (&tallies[end].sent, &tallies[1 - end].arrived);
        for (network, name) in ["steady", "rekeyed"].into_iter().enumerate() {
            let (sent, arrived) = (load(&sent[network]), load(&arrived[network]));
            println!(
                "{name}, from end {end}: {sent} sent, {arrived} arrived, {ages} changes of keys"
            );
            assert_eq!(sent, arrived, "{name}");
            assert!(sent > 10_000, "{name}: {sent}");
        }
        assert_eq!(load(&tallies[end].broken), 0);
    }
}
