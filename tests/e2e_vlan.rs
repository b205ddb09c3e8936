//! Ports told apart by VLAN tags, between real hosts. The west gateway is a router on a stick: the host is in VLAN 100 and the
//! wire in VLAN 30 within 200 of one and the same device. The east gateway has its host in VLAN 7 and the wire untagged.
//!
//! The kernel that tests run on may have no VLAN devices, so hosts cannot tag: a switch of the test's own does.
#![cfg(feature = "dpdk")]

mod testbed;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use testbed::{
    Failure, Family, Flow, Gateway, Netns, Ping, READY_TIMEOUT, Result, Site, Testbed, Transport,
    TunnelSpec, assert_balanced, assert_clean_stop, wait_until,
};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

const VLAN_100: &[u8] = &[0x81, 0, 0, 100];
const VLAN_200_30: &[u8] = &[0x88, 0xa8, 0, 200, 0x81, 0, 0, 30];
const VLAN_7: &[u8] = &[0x81, 0, 0, 7];

/// A TAP interface in a namespace; its frames are ours.
fn tap(netns: &Netns, name: &str, mac: &str) -> Result<SyncDevice> {
    let path = Path::new("/run/netns").join(netns.name());
    let mut bytes = [0; 6];
    for (byte, text) in bytes.iter_mut().zip(mac.split(':')) {
        *byte = u8::from_str_radix(text, 16).expect("hexadecimal");
    }
    let builder = DeviceBuilder::new().name(name).layer(Layer::L2);
    let builder = builder.mac_addr(bytes).mtu(1500);
    // Another thread, so that this one stays where it is.
    let made = std::thread::spawn(move || -> std::io::Result<SyncDevice> {
        let namespace = File::open(path)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let device = builder.build_sync()?;
        rustix::io::ioctl_fionbio(&device, true)?;
        Ok(device)
    });
    let device = made.join().map_err(|_| Failure::new("no thread"))??;
    let quiet = ["ipv6/conf/{}/disable_ipv6", "ipv4/conf/{}/arp_ignore"];
    if name.ends_with("lan0") || name.starts_with("trunk") {
        for setting in quiet {
            let file = format!("/proc/sys/net/{}", setting.replace("{}", name));
            netns.run(&["sh", "-c", &format!("echo 1 > {file}")])?;
        }
    }
    Ok(device)
}

/// A switch with one port that carries tagged frames and others of one VLAN each.
struct Switch {
    trunk: Arc<SyncDevice>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    fn new(trunk: SyncDevice, access: Vec<(&'static [u8], SyncDevice)>) -> Self {
        let (trunk, stop) = (Arc::new(trunk), Arc::new(AtomicBool::new(false)));
        let (own, stopped) = (Arc::clone(&trunk), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                carry(&own, &access);
                let mut all: Vec<PollFd<'_>> = access
                    .iter()
                    .map(|(_, tap)| PollFd::new(tap, PollFlags::IN))
                    .collect();
                all.push(PollFd::new(&*own, PollFlags::IN));
                let pause = Timespec {
                    tv_sec: 0,
                    tv_nsec: 20_000_000,
                };
                let _ = poll(&mut all, Some(&pause));
            }
        });
        Self {
            trunk,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Carries what is there, to and from the port that carries tagged frames.
fn carry(trunk: &SyncDevice, access: &[(&'static [u8], SyncDevice)]) {
    let mut frame = [0; 4096];
    for (tags, tap) in access {
        for _ in 0..64 {
            let Ok(len) = tap.recv(&mut frame) else { break };
            let tagged = [&frame[..12], tags, &frame[12..len]].concat();
            let _ = trunk.send(&tagged);
        }
    }
    for _ in 0..64 {
        let Ok(len) = trunk.recv(&mut frame) else {
            break;
        };
        // Exactly these tags: another EtherType or number is another VLAN's.
        let port = access
            .iter()
            .find(|(tags, _)| frame[12..len].starts_with(tags));
        if let Some((tags, tap)) = port {
            let plain = [&frame[..12], &frame[12 + tags.len()..len]].concat();
            let _ = tap.send(&plain);
        }
    }
}

/// Puts a host on a TAP interface in the place of its veth, with the addresses and routes it had.
fn replant_host(bed: &Testbed, site: Site, interface: &str) -> Result<SyncDevice> {
    let host = bed.host(site);
    host.run(&["ip", "link", "del", interface])?;
    let device = tap(host, interface, &site.host_mac())?;
    let mtu = bed.spec().inner_mtu.to_string();
    host.run(&["ip", "link", "set", interface, "mtu", &mtu])?;
    for (family, length) in [(Family::V4, 24), (Family::V6, 64)] {
        let address = format!("{}/{length}", site.host_address(family));
        let far = site.other().network(family);
        let gateway = site.lan_address(family).to_string();
        let option = family.ip_option();
        host.run(&["ip", option, "address", "add", &address, "dev", interface])?;
        host.run(&["ip", option, "route", "add", &far, "via", &gateway])?;
    }
    Ok(device)
}

/// Rewrites the policy of a gateway line by line.
fn rewrite(gateway: &Gateway, line: impl Fn(&str) -> Option<String>) -> Result<()> {
    let text = std::fs::read_to_string(gateway.policy())?;
    let lines = text.lines();
    let new: Vec<String> = lines
        .map(|old| line(old).unwrap_or_else(|| old.to_owned()))
        .collect();
    Ok(std::fs::write(gateway.policy(), new.join("\n"))?)
}

fn plant(bed: &mut Testbed) -> Result<[Switch; 2]> {
    bed.west.stop()?;
    bed.east.stop()?;
    let stick = "device = \"net_af_packet0,iface=trunk0,framecnt=4096\"";
    rewrite(&bed.west, |line| {
        if !line.starts_with("device = ") {
            return None;
        }
        let vlan = if line.contains("lan0") {
            "100"
        } else {
            "[200, 30]"
        };
        Some(format!("{stick}\nvlan = {vlan}"))
    })?;
    rewrite(&bed.east, |line| {
        let is_lan = line.starts_with("device = ") && line.contains("lan0");
        is_lan.then(|| format!("{line}\nvlan = 7"))
    })?;
    let a0 = replant_host(bed, Site::West, "a0")?;
    let b0 = replant_host(bed, Site::East, "b0")?;
    bed.wire.run(&["ip", "link", "del", "w1"])?;
    let w1 = tap(&bed.wire, "w1", "02:00:00:00:0f:01")?;
    bed.wire
        .run(&["ip", "link", "set", "w1", "master", "br0"])?;
    let west = tap(bed.west.netns(), "trunk0", &Site::West.lan_mac())?;
    let east = tap(bed.east.netns(), "lan0", &Site::East.lan_mac())?;
    let switches = [
        Switch::new(west, vec![(VLAN_100, a0), (VLAN_200_30, w1)]),
        Switch::new(east, vec![(VLAN_7, b0)]),
    ];
    bed.west.start()?;
    bed.east.start()?;
    bed.west.wait_ready(READY_TIMEOUT)?;
    bed.east.wait_ready(READY_TIMEOUT)?;
    Ok(switches)
}

/// What `ping` from host A to `address` says.
fn said(bed: &Testbed, arguments: &[&str], address: &str) -> Result<String> {
    let ping = ["-n", "-c", "1", "-W", "2"];
    let mut command = bed.host_a.command("ping", "KILL");
    let output = command.args(ping).args(arguments).arg(address).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn is_reached(bed: &Testbed, address: &str) -> bool {
    wait_until(Duration::from_secs(10), || {
        said(bed, &[], address).is_ok_and(|said| said.contains(" 0% packet loss"))
    })
}

#[test]
fn tagged_and_double_tagged_ports_carry_a_tunnel_and_their_twins() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        static_neighbours: false,
        inner_mtu: 1500,
        outer_mtu: 1492,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    let [west, _east] = plant(&mut bed)?;
    for family in [Family::V4, Family::V6] {
        // Neighbours are found through the twins, whose frames get tags.
        let far = Site::East.host_address(family).to_string();
        assert!(is_reached(&bed, &far), "{:#}", bed.west.show("drops")?);
        for from in [Site::West, Site::East] {
            let ping = Ping {
                family,
                from,
                ..Ping::default()
            };
            assert_eq!(bed.ping(&ping)?.received, ping.count, "{family:?}");
        }
        let gateway = Site::West.lan_address(family).to_string();
        assert!(is_reached(&bed, &gateway), "the gateway itself");
        // ICMP errors go back to where the packet came from.
        for (ttl, site) in [("1", Site::West), ("2", Site::East)] {
            let said = said(&bed, &["-t", ttl], &far)?;
            let gateway = site.lan_address(family).to_string();
            assert!(said.contains(&format!("From {gateway} ")), "{said}");
        }
        if family == Family::V4 {
            // Too big for the tunnel, and cut by the gateway.
            let cut = said(&bed, &["-M", "dont", "-s", "1472"], &far)?;
            assert!(cut.contains(" 0% packet loss"), "{cut}");
        }
        let limit = bed.spec().largest_inner_packet();
        let size = |packet: u16| (packet - family.ping_overhead()).to_string();
        let fits = said(&bed, &["-M", "do", "-s", &size(limit)], &far)?;
        assert!(fits.contains(" 0% packet loss"), "{fits}");
        let refused = said(&bed, &["-M", "do", "-s", &size(limit + 1)], &far)?;
        assert!(refused.contains(&limit.to_string()), "{refused}");
    }
    let flow = Flow {
        from: Site::West,
        family: Family::V4,
        transport: Transport::Tcp,
        seconds: 2,
    };
    assert!(bed.stream(&flow)?.bits_per_second > 0.0);

    let unknown = bed.west.dropped_for("outbound", "unknown-vlan")?;
    let mut stray = [0xff; 60];
    stray[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    for tags in [&[0x81, 0, 0x03, 0xe7][..], &[0x08, 0x00][..]] {
        stray[12..12 + tags.len()].copy_from_slice(tags);
        west.trunk.send(&stray)?;
    }
    let counted = wait_until(Duration::from_secs(5), || {
        let now = bed.west.dropped_for("outbound", "unknown-vlan");
        now.is_ok_and(|now| now >= unknown + 2)
    });
    assert!(counted, "{:#}", bed.west.show("drops")?);

    let shown = bed.west.show("ports")?;
    for (port, vlan) in [(0, "[100]"), (1, "[200,30]")] {
        let row = &shown["ports"][port];
        assert_eq!(row["vlan"].to_string(), vlan);
        assert!(row["rx_packets"].as_u64() > Some(10) && row["tx_packets"].as_u64() > Some(10));
        assert_eq!(row["mac"], Site::West.lan_mac().as_str());
    }
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}
