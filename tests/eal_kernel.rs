//! Ports on kernel interfaces and files, in a network namespace made for it. One process per test file.
#![cfg(feature = "dpdk")]

mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use simplon::buf::PacketBuf;
use simplon::dpdk::{Burst, Device, DpdkError, Eal, Mempool, Port, Queues, RxQueue, TxQueue};

/// A namespace with a veth pair `g0`, `g1`, for as long as it lives.
struct Namespace(String);

impl Namespace {
    /// Makes it and moves the calling thread there.
    fn enter() -> Self {
        let name = format!("simplon-dpdk-{}", std::process::id());
        ip(&["netns", "add", &name]);
        let namespace = Self(name);
        let path = Path::new("/var/run/netns").join(&namespace.0);
        let file = File::open(path).expect("namespace");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
        ip(&["link", "add", "g0", "type", "veth", "peer", "name", "g1"]);
        ip(&["link", "set", "g0", "up"]);
        ip(&["link", "set", "g1", "up"]);
        namespace
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]);
    }
}

fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).status();
    assert!(
        done.is_ok_and(|status| status.success()),
        "ip {arguments:?}"
    );
}

/// What `net_af_xdp` keeps from its set-up on, in mbufs.
const XDP_FILL: u32 = 2048;

#[test]
fn kernel_and_file_ports_give_mbufs_back_but_for_af_xdp() {
    let _namespace = Namespace::enter();
    let dir = tempfile::tempdir().expect("directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let capture = path("in.pcap");
    std::fs::write(&capture, capture_of(100)).expect("capture");
    let devices = [
        "net_af_xdp0,iface=g0".to_owned(),
        "net_af_packet0,iface=g1".to_owned(),
        format!(
            "net_pcap0,rx_pcap={capture},infinite_rx=1,tx_pcap={}",
            path("out0.pcap")
        ),
        format!("net_pcap1,rx_pcap={capture},tx_pcap={}", path("out1.pcap")),
    ]
    .map(Device::Virtual);
    let mut config = common::config("kernel", &devices);
    config.memory_mib = 192;
    let eal = Eal::init(&config).expect("EAL starts");
    let pools = ["xdp", "packet", "pcap0", "pcap1"]
        .map(|name| Mempool::create(&eal, name, 8191, 3072, 0).expect("pool"));
    let ports: Vec<_> = devices
        .iter()
        .zip(&pools)
        .map(|(device, pool)| {
            let id = eal.port_by_device(device).expect("port");
            let mut port = Port::open(&eal, id).expect("open");
            let on_kernel = device.to_string().contains("iface=");
            if on_kernel {
                refuses_an_mtu_out_of_range(&mut port, pool);
            }
            let settings = common::settings("port", 1);
            let configured = port.configure(&settings, pool).expect("configure");
            assert!(configured.promiscuous, "{device}");
            assert_eq!(
                configured.mtu_set,
                !device.to_string().contains("pcap"),
                "{device}"
            );
            port.start().expect("start")
        })
        .collect();
    assert_eq!(promiscuity("g1"), 1);
    {
        let mut queues: Vec<_> = ports.iter().map(|port| port.queues()).collect();
        let [xdp, packet, endless, file] = queues.as_mut_slice() else {
            panic!("four ports")
        };
        all_mbufs_can_be_sent(xdp, packet, &pools);
        assert_eq!(loop_back(endless), 64 * 64);
        assert_eq!(loop_back(file), 100);
        leave_some_on_their_way(xdp, &pools[0]);
        leave_some_on_their_way(packet, &pools[1]);
    }
    drop(ports);
    let [xdp, rest @ ..] = &pools;
    for (pool, device) in rest.iter().zip(&devices[1..]) {
        assert_eq!(pool.in_use(), 0, "{device}");
    }
    // The driver does not give these back. If it ever does, the documentation of `Port::configure` is out of date.
    assert!(xdp.in_use() >= XDP_FILL, "{}", xdp.in_use());
    assert!(xdp.in_use() <= XDP_FILL + 512, "{}", xdp.in_use());
    assert_eq!(promiscuity("g1"), 0, "the kernel's interface is as it was");
}

/// More than one of `net_af_packet`'s frames holds, and than `net_af_xdp` takes.
fn refuses_an_mtu_out_of_range<'eal>(port: &mut Port<'eal>, pool: &Mempool<'eal>) {
    let mut settings = common::settings("wide", 1);
    settings.mtu = 9000;
    let error = port.configure(&settings, pool).expect_err("refused");
    assert!(matches!(error, DpdkError::Mtu { mtu: 9000, .. }), "{error}");
}

/// More than the pool holds, so that each of its mbufs is sent and received into.
fn all_mbufs_can_be_sent(xdp: &mut Queues<'_>, packet: &mut Queues<'_>, pools: &[Mempool<'_>]) {
    for _ in 0..300 {
        send(&mut packet.tx[0], &pools[1], 32);
        receive(&mut xdp.rx[0], 32);
    }
    // Its own mbufs go out in place, others are copied.
    for pool in &pools[..2] {
        for _ in 0..300 {
            send(&mut xdp.tx[0], pool, 32);
            receive(&mut packet.rx[0], 32);
        }
    }
}

fn send(queue: &mut TxQueue<'_>, pool: &Mempool<'_>, count: usize) {
    let mut burst = Burst::new();
    assert!(pool.alloc_burst(&mut burst, count));
    for packet in &mut burst {
        packet.append(100).expect("room").fill(0x55);
    }
    assert_eq!(queue.tx_burst(&mut burst), count);
}

fn receive(queue: &mut RxQueue<'_>, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut received = 0;
    while received < count {
        assert!(Instant::now() < deadline, "{received} of {count} came");
        let mut burst = Burst::new();
        queue.rx_burst(&mut burst);
        // The kernel may send a word of its own.
        received += burst
            .iter()
            .filter(|packet| packet.data() == [0x55; 100])
            .count();
    }
}

/// Sends out what comes in, for 64 polls; returns how many came.
fn loop_back(queues: &mut Queues<'_>) -> usize {
    let mut burst = Burst::new();
    let mut received = 0;
    for _ in 0..64 {
        received += queues.rx[0].rx_burst(&mut burst);
        queues.tx[0].tx_burst(&mut burst);
        assert!(burst.is_empty());
    }
    received
}

fn leave_some_on_their_way(queues: &mut Queues<'_>, pool: &Mempool<'_>) {
    for _ in 0..4 {
        send(&mut queues.tx[0], pool, 32);
    }
}

fn promiscuity(interface: &str) -> u32 {
    let output = Command::new("ip")
        .args(["-d", "link", "show", interface])
        .output()
        .expect("ip");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "promiscuity");
    words
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("promiscuity")
}

/// A capture file of `count` frames of 100 bytes.
fn capture_of(count: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut put = |words: &[u32]| {
        words
            .iter()
            .for_each(|word| file.extend(word.to_le_bytes()))
    };
    put(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 0xffff, 1]);
    for _ in 0..count {
        put(&[0, 0, 100, 100]);
        put(&[0x0202_0202; 25]);
    }
    file
}
