//! Gateways whose ports are told apart by VLAN tags, over ring ports. One process per test file.
//!
//! Each gateway has two devices: on the first the pair `lan`, VLAN 100, and `wan`, VLAN 30 in 200, and the untagged `lan2`,
//! whose pair `wan2` has the second device for itself.
#![cfg(feature = "dpdk")]

mod common;
#[path = "hostile/packets.rs"]
#[allow(dead_code, clippy::cast_possible_truncation)]
mod packets;

use std::path::Path;
use std::sync::Arc;

use simplon::buf::PacketBuf;
use simplon::control::leases::{Leases, declare_fresh};
use simplon::control::report::drops_report;
use simplon::dpdk::{Burst, Eal, Mempool, Port, Queues, StartedPort, ring_pair};
use simplon::drop::{DropReason, Fate, PuntReason};
use simplon::gateway::{Assembly, assemble, ports};
use simplon::ids::PortIndex;
use simplon::policy::model::Side;
use simplon::policy::{Policy, Secrets, Source, parse, render};
use simplon::worker::probe::NoProbe;
use simplon::worker::trace::{Filter, Trace};

use packets::{ESP, OPAQUE, ether, forwarded, inner, ip};

const QUEUES: u16 = 2;
const VLAN_100: &[u8] = &[0x81, 0, 0, 100];
const VLAN_200_30: &[u8] = &[0x88, 0xa8, 0, 200, 0x81, 0, 0, 30];
/// As an AF_PACKET port has it, for the kernel does not say which EtherType the outer tag had.
const VLAN_200_30_PLAIN: &[u8] = &[0x81, 0, 0, 200, 0x81, 0, 0, 30];
const PRIORITY: &[u8] = &[0x81, 0, 0xe0, 0];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0x10];
const LAN: PortIndex = PortIndex(0);
const WAN: PortIndex = PortIndex(1);

fn policy(own: u8, far: u8, dir: &Path) -> Policy {
    let [first, second] = [0, 1].map(mac_of).map(|mac| {
        let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(":")
    });
    let text = format!(
        r#"
[gateway]
name = "vlan{own}"
workers = [0, 1]
state_dir = "{dir}/state{own}"
control_socket = "{dir}/socket{own}"
lab_keys = true

[[port]]
name = "lan"
device = "net_null0"
vlan = 100
side = "protected"
pair = "wan"
addresses = ["10.1{own}.0.1/24"]

[[port]]
name = "wan"
device = "net_null0"
vlan = [200, 30]
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.{own}/24"]

[[port]]
name = "lan2"
device = "net_null0"
side = "protected"
pair = "wan2"
addresses = ["10.2{own}.0.1/24"]

[[port]]
name = "wan2"
device = "net_null1"
side = "unprotected"
pair = "lan2"
addresses = ["198.51.100.{own}/24"]

[[neighbour]]
address = "10.1{own}.0.10"
mac = "02:00:00:00:01:10"
port = "lan"

[[neighbour]]
address = "192.0.2.{far}"
mac = "{first}"
port = "wan"

[[neighbour]]
address = "10.2{own}.0.10"
mac = "02:00:00:00:01:10"
port = "lan2"

[[neighbour]]
address = "198.51.100.{far}"
mac = "{second}"
port = "wan2"
"#,
        dir = dir.display(),
    ) + &tunnel("tagged", (1, "192.0.2"), own, far)
        + &tunnel("plain", (2, "198.51.100"), own, far);
    let key = |number: u8| format!("{number:02x}").repeat(20);
    let secrets = Secrets::with_environment(
        [11, 12, 21, 22].map(|number| (format!("KEY_{number}"), key(number))),
    );
    let source = Source::new(Path::new("vlan.toml"), &text);
    parse(&source, &secrets).unwrap_or_else(|errors| panic!("{}", render(&errors, &source, false)))
}

/// SPI and key of what `own` sends have its number.
fn tunnel(name: &str, (net, outer): (u8, &str), own: u8, far: u8) -> String {
    let sa = |number: u8| {
        format!(
            "spi = 0x10{net}{number}\ncipher = \"aes-128-gcm\"\nkey = {{ env = \"KEY_{net}{number}\" }}\n"
        )
    };
    format!(
        "[[tunnel]]\nname = \"{name}\"\nlocal_networks = [\"10.{net}{own}.0.0/24\"]\n\
         remote_networks = [\"10.{net}{far}.0.0/24\"]\n[[tunnel.endpoints]]\nlocal = \"{outer}.{own}\"\n\
         remote = \"{outer}.{far}\"\n[tunnel.endpoints.outbound]\n{}[tunnel.endpoints.inbound]\n{}\n",
        sa(own),
        sa(far),
    )
}

/// The MAC address that the gateway gives a ring port, by its place.
fn mac_of(device: u8) -> [u8; 6] {
    [2, b's', b'i', b'm', 0, device]
}

/// `frame` with tags in it.
fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// A gateway and the outer ends of its two devices.
struct Site<'p> {
    gateway: Assembly<'p>,
    wires: [Queues<'p>; 2],
    pool: &'p Mempool<'p>,
}

impl Site<'_> {
    /// Lets frames come in by a queue of a device.
    fn send(&mut self, device: usize, queue: usize, frames: &[Vec<u8>]) {
        let mut burst = Burst::new();
        for frame in frames {
            let mut mbuf = self.pool.alloc().expect("mbuf");
            mbuf.append(frame.len())
                .expect("room")
                .copy_from_slice(frame);
            assert!(burst.push(mbuf).is_ok());
        }
        let sent = self.wires[device].tx[queue].tx_burst(&mut burst);
        assert_eq!(sent, frames.len());
    }

    /// Polls each worker once; returns how many frames of `received` each took.
    fn poll(&mut self) -> Vec<usize> {
        let workers = self.gateway.workers.iter_mut();
        workers
            .map(|(_, worker)| worker.poll_once(&mut NoProbe))
            .collect()
    }

    /// What left by a queue of a device.
    fn receive(&mut self, device: usize, queue: usize) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        self.wires[device].rx[queue].rx_burst(&mut burst);
        burst.iter().map(|packet| packet.data().to_vec()).collect()
    }

    fn dropped(&self, side: Side, reason: DropReason) -> u64 {
        let views = self.gateway.views.iter();
        let of_worker = |counters: &simplon::worker::counters::WorkerCounters| {
            counters.direction(side).drops[reason.index()].get()
        };
        views.map(|view| of_worker(&view.counters)).sum()
    }

    /// Has workers follow every packet from here on.
    fn follow(&mut self) -> Arc<Trace> {
        let trace = Arc::new(Trace::new(Filter::default(), 64, 64, 2));
        let Assembly { shared, writer, .. } = &mut self.gateway;
        let published = Some(Box::new(Arc::clone(&trace)));
        assert!(writer.replace(&shared.trace, 0, published).is_ok());
        trace
    }

    fn nothing_more(&mut self) {
        for device in 0..2 {
            for queue in 0..usize::from(QUEUES) {
                assert_eq!(self.receive(device, queue), Vec::<Vec<u8>>::new());
            }
        }
    }
}

#[test]
fn ports_that_share_a_device_are_told_apart_by_tags() {
    let dir = tempfile::tempdir().expect("directory");
    let eal = Eal::init(&common::config("vlan", &[])).expect("EAL starts");
    let pool = Mempool::create(&eal, "pool", 4095, 2048, 32).expect("pool");
    let pairs = ["west0", "west1", "east0", "east1"]
        .map(|name| ring_pair(&eal, name, QUEUES, 256).expect("pair"));
    let outside: Vec<StartedPort<'_>> = pairs
        .iter()
        .map(|pair| {
            let mut port = Port::open(&eal, pair.ports().1).expect("open");
            let settings = common::settings("outside", QUEUES);
            port.configure(&settings, &pool).expect("configure");
            port.start().expect("start")
        })
        .collect();
    let policies = [policy(1, 2, dir.path()), policy(2, 1, dir.path())];
    let opened = [(0, &policies[0]), (2, &policies[1])].map(|(first, policy)| {
        declare_fresh(policy).expect("state");
        let find = |port: &simplon::policy::model::Port| {
            let at = usize::from(port.device.text() == "net_null1");
            Some(pairs[first + at].ports().0)
        };
        ports::open(&eal, policy, &pool, find).expect("ports")
    });
    for (open, started) in &opened {
        assert_eq!(started.len(), 2, "devices");
        let of: Vec<_> = open.iter().map(|port| (port.started, port.mac)).collect();
        let [first, second] = [0, 1].map(mac_of);
        assert_eq!(of, [(0, first), (0, first), (0, first), (1, second)]);
    }
    {
        let mut at = 0;
        let mut outer = outside.iter();
        let [west, east] = policies.map(|policy| {
            let (open, started) = &opened[at];
            at += 1;
            let leases = Leases::open(&policy);
            let mut wire = || outer.next().expect("port").queues();
            Site {
                gateway: assemble(policy, leases, open, started, (&pool, eal.tsc_hz())),
                wires: [wire(), wire()],
                pool: &pool,
            }
        });
        let mut sites = [west, east];
        lanes_of_a_trunk_are_one_workers(&sites[0]);
        for queue in 0..usize::from(QUEUES) {
            through_both_tunnels(&mut sites, queue);
        }
        let [west, east] = &mut sites;
        punts_have_no_tags(west);
        failed_packets_know_their_sender(west);
        frames_of_the_host_get_tags(west, east);
        broken_tags_are_runts(west);
        for site in &mut sites {
            site.nothing_more();
            let views = site.gateway.views.iter();
            let counters: Vec<_> = views.map(|view| &*view.counters).collect();
            let totals = drops_report(&counters).totals;
            assert!(totals.outbound.balance() && totals.inbound.balance());
            site.gateway.shared.host.clear();
        }
    }
    drop((opened, outside, pairs));
    assert_eq!(pool.in_use(), 0);
}

fn lanes_of_a_trunk_are_one_workers(site: &Site<'_>) {
    for (view, queue) in site.gateway.views.iter().zip(0..) {
        let expected = [
            ("lan", "wan"),
            ("wan", "lan"),
            ("lan2", "wan2"),
            ("wan2", "lan2"),
        ];
        let expected = expected.map(|(from, to)| format!("{from} queue {queue} -> {to}"));
        assert_eq!(view.lanes, expected);
    }
}

/// Clear packets of four kinds in one burst, as they come to the first device of west: VLAN 100, untagged, of a priority, and
/// of a VLAN that nobody has. And on through east.
fn through_both_tunnels([west, east]: &mut [Site<'_>; 2], queue: usize) {
    let packet = |net: u8, number: usize| {
        let (source, destination) = (format!("10.{net}1.0.10"), format!("10.{net}2.0.10"));
        inner(&source, &destination, number as u64, 100)
    };
    let frames: Vec<Vec<u8>> = (0..64)
        .map(|number| {
            let (net, tags) = match number % 4 {
                0 => (1, VLAN_100),
                1 => (2, &[][..]),
                2 => (2, PRIORITY),
                _ => (1, &[0x81, 0, 0x03, 0xe7][..]),
            };
            let mut frame = ether(mac_of(0), 0x0800, &packet(net, number));
            frame[6..12].copy_from_slice(&HOST_MAC);
            tagged(&frame, tags)
        })
        .collect();
    let unknown = west.dropped(Side::Protected, DropReason::UnknownVlan);
    let trace = (queue == 1).then(|| west.follow());
    west.send(0, queue, &frames);
    let mut polled = vec![0; 2];
    polled[queue] = 64;
    assert_eq!(west.poll(), polled, "queue {queue} is worker {queue}'s");
    let now = west.dropped(Side::Protected, DropReason::UnknownVlan);
    assert_eq!(now - unknown, 16);
    if let Some(trace) = trace {
        tells_of_each_vlan(&trace, &frames);
    }

    let (stick, plain) = (west.receive(0, queue), west.receive(1, queue));
    assert_eq!((stick.len(), plain.len()), (16, 32));
    west.nothing_more();
    for frame in &stick {
        assert_eq!(&frame[12..20], VLAN_200_30);
        assert_eq!(
            (&frame[..6], &frame[6..12]),
            (&mac_of(0)[..], &mac_of(0)[..])
        );
        assert_eq!((&frame[20..22], frame[31]), (&[0x08, 0][..], ESP));
    }
    for frame in &plain {
        assert_eq!((&frame[12..14], frame[23]), (&[0x08, 0][..], ESP));
    }
    // Half of them as AF_PACKET has them.
    let stick: Vec<_> = (0..)
        .zip(&stick)
        .map(|(at, frame)| match at % 2 {
            0 => frame.clone(),
            _ => [&frame[..12], VLAN_200_30_PLAIN, &frame[20..]].concat(),
        })
        .collect();
    east.send(0, queue, &stick);
    east.send(1, queue, &plain);
    let mut polled = vec![0; 2];
    polled[queue] = 48;
    assert_eq!(east.poll(), polled);
    let opened = east.receive(0, queue);
    east.nothing_more();
    let expected = |kind: fn(usize) -> bool, net: u8, tags: &[u8]| -> Vec<Vec<u8>> {
        let numbers = (0..64).filter(|number| kind(number % 4));
        let frame = |number| {
            let mut frame = ether(HOST_MAC, 0x0800, &forwarded(&packet(net, number), 2));
            frame[6..12].copy_from_slice(&mac_of(0));
            tagged(&frame, tags)
        };
        numbers.map(frame).collect()
    };
    let (tagged, untagged): (Vec<_>, Vec<_>) = opened
        .into_iter()
        .partition(|frame| frame[12..14] == [0x81, 0]);
    assert_eq!(tagged, expected(|kind| kind == 0, 1, VLAN_100));
    // Of the untagged port's both kinds, each in its order.
    assert_eq!(untagged, expected(|kind| matches!(kind, 1 | 2), 2, &[]));
}

/// What is of a port is told as the port sees it, without tags; what is of none as it came.
fn tells_of_each_vlan(trace: &Trace, frames: &[Vec<u8>]) {
    let records: Vec<_> = std::iter::from_fn(|| trace.take()).collect();
    assert_eq!((records.len(), trace.missed()), (64, 0));
    assert!(trace.is_over());
    let (unknown, sent): (Vec<_>, Vec<_>) = records
        .iter()
        .partition(|record| record.note.fate == Fate::Dropped(DropReason::UnknownVlan));
    assert_eq!(unknown.len(), 16);
    for (record, frame) in unknown.iter().zip(frames.iter().skip(3).step_by(4)) {
        assert_eq!(record.received.bytes(), frame);
    }
    for record in sent {
        assert_eq!(record.note.fate, Fate::Live);
        assert_eq!(record.note.arrival.core, 1);
        for bytes in [record.received.bytes(), record.left.bytes()] {
            assert_eq!(bytes[12..14], [0x08, 0]);
        }
    }
}

fn punts_have_no_tags(site: &mut Site<'_>) {
    let arp = ether([0xff; 6], 0x0806, &[0; 28]);
    let echo = ip("192.0.2.2", "192.0.2.1", 1, &[8, 0, 0, 0, 0, 1, 0, 1]);
    let echo = ether(mac_of(0), 0x0800, &echo);
    site.send(0, 0, &[tagged(&arp, VLAN_100), tagged(&echo, VLAN_200_30)]);
    assert_eq!(site.poll(), [2, 0]);
    for (port, reason, frame) in [(LAN, PuntReason::Arp, &arp), (WAN, PuntReason::Icmp, &echo)] {
        let punted = site.gateway.shared.host.punts.pop().expect("punted");
        assert_eq!((punted.port, punted.reason), (port, reason));
        assert_eq!(punted.mbuf.data(), frame.as_slice());
    }
}

fn failed_packets_know_their_sender(site: &mut Site<'_>) {
    let mut packet = ip("10.11.0.10", "10.12.0.10", OPAQUE, &[7; 40]);
    packet[8] = 1;
    packets::fix_checksum(&mut packet);
    let mut frame = ether(mac_of(0), 0x0800, &packet);
    frame[6..12].copy_from_slice(&HOST_MAC);
    site.send(0, 0, &[tagged(&frame, VLAN_100)]);
    assert_eq!(site.poll(), [1, 0]);
    let failed = site
        .gateway
        .shared
        .host
        .failed
        .pop()
        .expect("an error is owed");
    assert_eq!(failed.reason, DropReason::TtlExpired);
    assert_eq!((failed.port, failed.sender), (LAN, Some(HOST_MAC)));
    assert_eq!(failed.mbuf.data()[16..20], [10, 12, 0, 10]);
}

/// What the kernel sends on a port's twin gets the port's tags, and what is to be taken as received goes on into the tunnel.
fn frames_of_the_host_get_tags(west: &mut Site<'_>, east: &mut Site<'_>) {
    let frame = ether(
        mac_of(0),
        0x0800,
        &ip("192.0.2.1", "192.0.2.2", OPAQUE, &[1; 40]),
    );
    let mbuf = |frame: &[u8]| {
        let mut mbuf = west.pool.alloc().expect("mbuf");
        mbuf.append(frame.len())
            .expect("room")
            .copy_from_slice(frame);
        mbuf
    };
    let rings = &west.gateway.shared.host;
    assert!(rings.to_send[WAN.index()].push(mbuf(&frame)).is_ok());
    let packet = inner("10.11.0.10", "10.12.0.10", 99, 50);
    let taken = ether(mac_of(0), 0x0800, &packet);
    assert!(rings.to_take[LAN.index()].push(mbuf(&taken)).is_ok());
    assert_eq!(west.poll(), [1, 0]);
    let sent = west.receive(0, 0);
    assert_eq!(sent.len(), 2);
    assert!(sent.contains(&tagged(&frame, VLAN_200_30)));
    let esp: Vec<_> = sent.into_iter().filter(|frame| frame[31] == ESP).collect();
    east.send(0, 0, &esp);
    assert_eq!(east.poll(), [1, 0]);
    let opened = east.receive(0, 0);
    assert_eq!(opened.len(), 1);
    assert_eq!(opened[0][18..], forwarded(&packet, 2));
}

fn broken_tags_are_runts(site: &mut Site<'_>) {
    let frame = tagged(&ether(mac_of(0), 0x0800, &[]), VLAN_200_30);
    let cut: Vec<_> = (14..22).map(|len| frame[..len].to_vec()).collect();
    let runts = site.dropped(Side::Protected, DropReason::Runt);
    site.send(0, 1, &cut);
    assert_eq!(site.poll(), [0, 8]);
    let now = site.dropped(Side::Protected, DropReason::Runt);
    assert_eq!(now - runts, 8, "not even one of them is whole");
}
