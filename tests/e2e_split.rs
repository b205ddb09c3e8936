//! A tunnel that is split into four SAs, between two `simplon run` processes, from file to file: flows are spread over
//! all four, each flow keeps to one, and the other end opens everything. Needs no network and no namespaces.
#![cfg(feature = "dpdk")]

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};
use process::{Gateway, genkey};
use serde_json::Value;
use simplon::generator::{Flow, verify};
use tempfile::TempDir;

const SAS: u8 = 4;
const PACKETS: u64 = 4000;
/// MAC address that `net_pcap` gives its first port, the gateways' `lan`.
const LAN_MAC: [u8; 6] = [0x02, 0x70, 0x63, 0x61, 0x70, 0x00];

fn policy_text(dir: &Path, name: &str, own: u8, other: u8, ports: [&str; 2]) -> String {
    let [lan, wan] = ports;
    let sas: String = (0..SAS)
        .map(|sa| {
            format!(
                "[[tunnel.endpoints.sa]]\n\
                 outbound = {{ spi = 0x{own}00{sa}, key = {{ file = \"{own}-{sa}.key\" }} }}\n\
                 inbound = {{ spi = 0x{other}00{sa}, key = {{ file = \"{other}-{sa}.key\" }} }}\n"
            )
        })
        .collect();
    let dir = dir.display();
    format!(
        r#"
[gateway]
name = "{name}"
workers = [0]
state_dir = "{dir}/state{own}"
control_socket = "{dir}/{own}.sock"
lab_keys = true
[[port]]
host = false
name = "lan"
device = "{lan}"
side = "protected"
pair = "wan"
[[port]]
host = false
name = "wan"
device = "{wan}"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.{own}/24"]
mtu = 9000
[[neighbour]]
address = "10.255.0.1"
mac = "02:00:00:00:00:10"
port = "lan"
[[neighbour]]
address = "fd00:ff::1"
mac = "02:00:00:00:00:10"
port = "lan"
[[neighbour]]
address = "192.0.2.{other}"
mac = "02:70:63:61:70:01"
port = "wan"
[[route]]
to = "10.{own}.0.0/16"
via = "10.255.0.1"
port = "lan"
[[route]]
to = "fd00:{own}::/64"
via = "fd00:ff::1"
port = "lan"
[[tunnel]]
name = "split"
local_networks = ["10.{own}.0.0/16", "fd00:{own}::/64"]
remote_networks = ["10.{other}.0.0/16", "fd00:{other}::/64"]
[[tunnel.endpoints]]
local = "192.0.2.{own}"
remote = "192.0.2.{other}"
spread_udp_ports = true
[tunnel.endpoints.outbound]
cipher = "aes-128-gcm"
[tunnel.endpoints.inbound]
cipher = "aes-128-gcm"
{sas}"#
    )
}

fn start(dir: &Path, own: u8, other: u8, ports: [&str; 2]) -> Gateway {
    let name = format!("split-{}-{own}", std::process::id());
    let text = policy_text(dir, &name, own, other, ports);
    Gateway::start(dir, &own.to_string(), &text)
}

/// Many pairs of hosts, one pair with many ports, and both in IPv6.
fn flows() -> Vec<Flow> {
    let flow = |source: IpAddr, destination: IpAddr, source_port| Flow {
        gateway_mac: LAN_MAC,
        source_mac: [2, 0, 0, 0, 0, 0x10],
        source,
        destination,
        source_port,
    };
    let v4 = |net, host| IpAddr::from([10, net, 0, host]);
    let v6 = |net, host| IpAddr::from([0xfd00, net, 0, 0, 0, 0, 0, host]);
    let mut flows = Vec::new();
    for number in 0..50 {
        flows.push(flow(v4(1, number), v4(2, number / 2), 4000));
        flows.push(flow(v4(1, 200), v4(2, 200), 5000 + u16::from(number)));
        flows.push(flow(v6(1, number.into()), v6(2, 1), 4000));
        flows.push(flow(v6(1, 200), v6(2, 200), 5000 + u16::from(number)));
    }
    flows
}

fn write_frames(path: &Path, flows: &[Flow]) {
    let file = BufWriter::new(File::create(path).expect("file"));
    let mut file = PcapWriter::new(file).expect("header");
    let mut frame = Vec::new();
    for (number, flow) in (0..PACKETS).zip(flows.iter().cycle()) {
        let len = 64 + usize::try_from(number * 7 % 1300).expect("small");
        flow.write(number, len, &mut frame);
        let length = u32::try_from(frame.len()).expect("short");
        file.write_packet(&PcapPacket::new(Duration::ZERO, length, &frame))
            .expect("written");
    }
}

fn read_frames(path: &Path) -> Vec<Vec<u8>> {
    let file = BufReader::new(File::open(path).expect("file"));
    let mut file = PcapReader::new(file).expect("header");
    let mut frames = Vec::new();
    while let Some(packet) = file.next_packet() {
        frames.push(packet.expect("whole").data.into_owned());
    }
    frames
}

/// SPI behind Ethernet and IPv4 header.
fn spi(frame: &[u8]) -> u32 {
    assert_eq!(frame[23], 50, "ESP");
    u32::from_be_bytes(frame[34..38].try_into().expect("four bytes"))
}

/// Packets of each SA in one direction, as `show sa` lists them.
fn shown(sas: &Value, direction: &str) -> BTreeMap<u32, u64> {
    let list = sas["sas"].as_array().into_iter().flatten();
    list.filter(|sa| sa["direction"] == direction && sa["tunnel"] == "split")
        .map(|sa| {
            let spi = sa["spi"].as_str().expect("text").trim_start_matches("0x");
            let spi = u32::from_str_radix(spi, 16).expect("hexadecimal");
            (spi, sa["packets"].as_u64().expect("a number"))
        })
        .collect()
}

#[test]
fn flows_of_a_split_tunnel_keep_to_one_of_its_four_sas() {
    let dir = TempDir::new().expect("dir");
    let path = |name: &str| dir.path().join(name);
    for end in [1, 2] {
        for sa in 0..SAS {
            genkey("aes-128-gcm", &path(&format!("{end}-{sa}.key")));
        }
    }
    let flows = flows();
    write_frames(&path("in.pcap"), &flows);

    let (from, to) = (path("in.pcap"), path("sealed.pcap"));
    let lan = format!("net_pcap0,rx_pcap={},tx_pcap=/dev/null", from.display());
    let wan = format!("net_pcap1,tx_pcap={}", to.display());
    let mut west = start(dir.path(), 1, 2, [&lan, &wan]);
    let drops = west.wait_received("outbound", PACKETS);
    assert_eq!(drops["totals"]["outbound"]["sent"], PACKETS, "{drops:#}");
    let sas = west.show("sa");
    west.stop();

    let spis: Vec<u32> = read_frames(&to).iter().map(|frame| spi(frame)).collect();
    assert_eq!(spis.len() as u64, PACKETS);
    let mut sealed = BTreeMap::new();
    for spi in &spis {
        *sealed.entry(*spi).or_insert(0u64) += 1;
    }
    assert_eq!(
        sealed.keys().copied().collect::<Vec<_>>(),
        [0x1000, 0x1001, 0x1002, 0x1003]
    );
    assert!(
        sealed.values().all(|count| (500..1500).contains(count)),
        "{sealed:?}"
    );
    assert_eq!(shown(&sas, "outbound"), sealed);
    for flow in 0..flows.len() {
        // One queue and one worker: sealed packets are in the order of the clear ones.
        let own: BTreeSet<_> = spis.iter().skip(flow).step_by(flows.len()).collect();
        assert_eq!(own.len(), 1, "{:?}: {own:x?}", flows[flow]);
    }

    let opened = path("out.pcap");
    let lan = format!("net_pcap0,tx_pcap={}", opened.display());
    let wan = format!("net_pcap1,rx_pcap={},tx_pcap=/dev/null", to.display());
    let mut east = start(dir.path(), 2, 1, [&lan, &wan]);
    let drops = east.wait_received("inbound", PACKETS);
    assert_eq!(drops["totals"]["inbound"]["sent"], PACKETS, "{drops:#}");
    let sas = east.show("sa");
    assert_eq!(shown(&sas, "inbound"), sealed);
    assert!(
        shown(&sas, "outbound")
            .into_iter()
            .eq([0x2000, 0x2001, 0x2002, 0x2003].map(|spi| (spi, 0)))
    );
    east.stop();
    let numbers: Vec<_> = read_frames(&opened)
        .iter()
        .map(|frame| verify(frame))
        .collect();
    let expected: Vec<_> = (0..PACKETS).map(Some).collect();
    assert_eq!(numbers, expected, "every packet, byte for byte, in order");
}
