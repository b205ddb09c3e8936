//! DPDK's own telemetry client asks two gateways on one machine, each by its name. Needs no network and no namespaces.
#![cfg(feature = "dpdk")]

mod process;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pcap_file::pcap::{PcapPacket, PcapWriter};
use process::{Gateway, simplon};
use serde_json::Value;
use tempfile::TempDir;

/// What Debian's `dpdk-dev` installs.
const CLIENT: &str = "/usr/bin/dpdk-telemetry.py";

fn policy_text(dir: &Path, name: &str, lan: &str) -> String {
    let dir = dir.display();
    format!(
        r#"
[gateway]
name = "{name}"
workers = [0]
state_dir = "{dir}/{name}.state"
control_socket = "{dir}/{name}.sock"
[[port]]
host = false
name = "lan"
device = "{lan}"
side = "protected"
pair = "wan"
queues = 2
[[port]]
host = false
name = "wan"
device = "net_null1,no-rx=1"
side = "unprotected"
pair = "lan"
queues = 2
"#
    )
}

/// What the client says to each command, by the command's name.
fn ask<const N: usize>(prefix: &str, commands: [&str; N]) -> [Value; N] {
    let mut client = Command::new("/usr/bin/python3")
        .args([CLIENT, "-f", prefix])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("dpdk-telemetry.py, of the package dpdk-dev");
    let mut input = client.stdin.take().expect("a pipe");
    for command in commands {
        writeln!(input, "{command}").expect("written");
    }
    drop(input);
    let output = client.wait_with_output().expect("ended");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut answers = text.lines();
    commands.map(|command| {
        let answer = answers.next().unwrap_or_default();
        let answer: Value =
            serde_json::from_str(answer).unwrap_or_else(|why| panic!("{command}: {why}: {text}"));
        let name = command.split(',').next().unwrap_or_default();
        answer[name].clone()
    })
}

/// `frames` frames that no policy names.
fn write_frames(path: &Path, frames: usize) {
    let mut file = PcapWriter::new(File::create(path).expect("file")).expect("header");
    for _ in 0..frames {
        let frame = [0xee; 64];
        let packet = PcapPacket::new(Duration::ZERO, 64, &frame);
        file.write_packet(&packet).expect("written");
    }
}

#[test]
fn dpdk_telemetry_reads_the_ports_of_two_gateways() {
    let dir = TempDir::new().expect("dir");
    let capture = dir.path().join("in.pcap");
    write_frames(&capture, 100);
    let names = ["a", "b"].map(|end| format!("telemetry-{}-{end}", std::process::id()));
    let devices = [
        format!("net_pcap0,rx_pcap={},tx_pcap=/dev/null", capture.display()),
        "net_null0,no-rx=1".to_owned(),
    ];
    let [mut first, mut second] = [0, 1].map(|at| {
        let text = policy_text(dir.path(), &names[at], &devices[at]);
        Gateway::start(dir.path(), &names[at], &text)
    });
    first.wait_received("outbound", 100);
    let ports = second.wait("ports", |ports| ports["ports"].is_array());
    assert_eq!(
        ports["ports"][0]["rss"]["functions"],
        serde_json::json!(["ip", "tcp", "udp"])
    );
    assert_eq!(
        ports["ports"][0]["rss"]["table"].as_array().map(Vec::len),
        Some(128)
    );

    let commands = ["/ethdev/list", "/ethdev/stats,0", "/ethdev/info,0"];
    let [list, stats, info] = ask(&names[0], commands);
    assert_eq!(list, serde_json::json!([0, 1]));
    assert_eq!(stats["ipackets"], 100, "{stats}");
    assert_eq!(info["name"], "net_pcap0", "{info}");
    let [list, stats, info] = ask(&names[1], commands);
    assert_eq!(list, serde_json::json!([0, 1]));
    assert_eq!(stats["ipackets"], 0, "{stats}");
    assert_eq!(info["name"], "net_null0", "{info}");
    let socket = |name: &str| {
        Path::new("/var/run/dpdk")
            .join(name)
            .join("dpdk_telemetry.v2")
    };
    assert!(names.iter().all(|name| socket(name).exists()));

    // Key and table of the running port, from which SPIs are chosen.
    let policy = dir.path().join(format!("{}.toml", names[1]));
    let spis = simplon(&["spi", "--port", "lan"], &policy)
        .output()
        .expect("simplon");
    let spis = String::from_utf8_lossy(&spis.stdout).into_owned();
    let queues: Vec<_> = spis
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(queues, ["0", "1"], "{spis}");

    first.stop();
    let [list] = ask(&names[1], ["/ethdev/list"]);
    assert_eq!(
        list,
        serde_json::json!([0, 1]),
        "the other one still answers"
    );
    second.stop();
    assert!(
        !names.iter().any(|name| socket(name).exists()),
        "no socket is left behind"
    );
}
