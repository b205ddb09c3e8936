//! Two `simplon run` processes from file to file: what the first seals the second opens, byte for byte, up to packets of
//! 9,000 bytes. Needs no network and no namespaces.
#![cfg(feature = "dpdk")]

mod process;

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};
use process::{Gateway, genkey};
use simplon::generator::{Flow, verify};
use tempfile::TempDir;

/// Packets in each file.
const PACKETS: u64 = 2000;
/// MAC addresses that `net_pcap` gives its first and second port: the gateways' `lan` and `wan`.
const LAN_MAC: [u8; 6] = [0x02, 0x70, 0x63, 0x61, 0x70, 0x00];
const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x10];
/// Longest inner packet of the tunnel: 9,000 outside, less IPv6 header, ESP header, IV, trailer and ICV.
const LIMIT: usize = 9000 - 74;

/// One end of the tunnel, reading from one file and writing to another.
fn start(dir: &Path, own: u8, other: u8, lan: &str, wan: &str) -> Gateway {
    let name = format!("files-{}-{own}", std::process::id());
    let text = policy_text(dir, &name, own, other, lan, wan);
    Gateway::start(dir, &own.to_string(), &text)
}

fn policy_text(dir: &Path, name: &str, own: u8, other: u8, lan: &str, wan: &str) -> String {
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
addresses = ["10.{own}.0.1/24", "fd00:{own}::1/64"]
mtu = 9000
[[port]]
host = false
name = "wan"
device = "{wan}"
side = "unprotected"
pair = "lan"
addresses = ["2001:db8::{own}/64"]
mtu = 9000
[[neighbour]]
address = "10.{own}.0.10"
mac = "02:00:00:00:00:10"
port = "lan"
[[neighbour]]
address = "fd00:{own}::10"
mac = "02:00:00:00:00:10"
port = "lan"
[[neighbour]]
address = "2001:db8::{other}"
mac = "02:70:63:61:70:01"
port = "wan"
[[tunnel]]
name = "files"
local_networks = ["10.{own}.0.0/24", "fd00:{own}::/64"]
remote_networks = ["10.{other}.0.0/24", "fd00:{other}::/64"]
[[tunnel.endpoints]]
local = "2001:db8::{own}"
remote = "2001:db8::{other}"
[tunnel.endpoints.outbound]
spi = 0x100{own}
cipher = "aes-192-gcm"
key = {{ file = "{own}.key" }}
[tunnel.endpoints.inbound]
spi = 0x100{other}
cipher = "aes-192-gcm"
key = {{ file = "{other}.key" }}
"#
    )
}

/// Writes frames of every length up to one byte over the limit, of both families in turn.
fn write_frames(path: &Path) {
    let flow = |source: &str, destination: &str| Flow {
        gateway_mac: LAN_MAC,
        source_mac: HOST_MAC,
        source: source.parse().expect("address"),
        destination: destination.parse().expect("address"),
        source_port: 4000,
    };
    let flows = [
        flow("10.1.0.10", "10.2.0.10"),
        flow("fd00:1::10", "fd00:2::10"),
    ];
    let mut file =
        PcapWriter::new(BufWriter::new(File::create(path).expect("file"))).expect("header");
    let mut frame = Vec::new();
    for number in 0..PACKETS {
        let at = usize::try_from(number).expect("small");
        let len = match number {
            0 => LIMIT,
            1 => LIMIT + 1,
            _ => 64 + at * 4409 % (LIMIT - 63),
        };
        flows[at % 2].write(number, len, &mut frame);
        let length = u32::try_from(frame.len()).expect("short");
        file.write_packet(&PcapPacket::new(Duration::ZERO, length, &frame))
            .expect("written");
    }
}

fn read_frames(path: &Path) -> Vec<Vec<u8>> {
    let mut file =
        PcapReader::new(BufReader::new(File::open(path).expect("file"))).expect("header");
    let mut frames = Vec::new();
    while let Some(packet) = file.next_packet() {
        frames.push(packet.expect("whole").data.into_owned());
    }
    frames
}

#[test]
fn packets_up_to_9000_bytes_pass_from_file_to_file() {
    let dir = TempDir::new().expect("dir");
    let path = |name: &str| dir.path().join(name);
    for end in [1, 2] {
        genkey("aes-192-gcm", &path(&format!("{end}.key")));
    }
    write_frames(&path("in.pcap"));

    let (from, to) = (path("in.pcap"), path("sealed.pcap"));
    let lan = format!("net_pcap0,rx_pcap={},tx_pcap=/dev/null", from.display());
    let mut west = start(
        dir.path(),
        1,
        2,
        &lan,
        &format!("net_pcap1,tx_pcap={}", to.display()),
    );
    let drops = west.wait_received("outbound", PACKETS);
    assert_eq!(drops["drops"][0]["reason"], "too-big", "{drops:#}");
    assert_eq!(
        drops["totals"]["outbound"]["dropped"], 1,
        "one packet is a byte too long"
    );
    west.stop();
    let sealed = read_frames(&to);
    assert_eq!(sealed.len() as u64, PACKETS - 1);
    assert_eq!(sealed.iter().map(Vec::len).max(), Some(9000 + 14));

    let opened = path("out.pcap");
    let wan = format!("net_pcap1,rx_pcap={},tx_pcap=/dev/null", to.display());
    let mut east = start(
        dir.path(),
        2,
        1,
        &format!("net_pcap0,tx_pcap={}", opened.display()),
        &wan,
    );
    let drops = east.wait_received("inbound", PACKETS - 1);
    assert_eq!(drops["totals"]["inbound"]["sent"], PACKETS - 1, "{drops:#}");
    east.stop();
    let numbers: Vec<_> = read_frames(&opened)
        .iter()
        .map(|frame| verify(frame))
        .collect();
    let expected: Vec<_> = (0..PACKETS)
        .filter(|number| *number != 1)
        .map(Some)
        .collect();
    assert_eq!(numbers, expected, "every packet, byte for byte, in order");
}
