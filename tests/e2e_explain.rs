//! `simplon explain` against running gateways: what it says of a packet, and what `show` says once a real one has passed.
#![cfg(feature = "dpdk")]

mod testbed;

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use serde_json::Value;
use testbed::{
    Family, Gateway, Ping, Result, Site, Testbed, TunnelSpec, WireProtocol, assert_balanced,
    assert_clean_stop, sa_packets, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Echo requests of west end where they are to be sealed, over IPv4; over IPv6 they go by the tunnel's networks.
fn ordered(site: Site) -> String {
    let (west, east) = match site {
        Site::West => ("local", "remote"),
        Site::East => ("remote", "local"),
    };
    let v4 = Site::West.network(Family::V4);
    format!(
        "\n[[policy]]\nname = \"no-echo\"\naction = \"discard\"\n{west} = \"{v4}\"\n{east} = \"any\"\nprotocol = \"icmp\"\nicmp = \"8/0\"\n"
    )
}

fn simplon(gateway: &Gateway, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simplon"))
        .args(arguments)
        .arg("--socket")
        .arg(gateway.socket())
        .output()
        .expect("simplon runs")
}

/// The only case of an explanation, which is a success whatever becomes of the packet.
fn explain(gateway: &Gateway, arguments: &[&str]) -> Value {
    let all = [&["explain", "--json"], arguments].concat();
    let output = simplon(gateway, &all);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    told["cases"][0].take()
}

/// Explains packet `number` of a capture.
fn explain_packet(gateway: &Gateway, file: &Path, number: usize) -> Value {
    let (file, number) = (file.to_str().expect("UTF-8"), number.to_string());
    explain(gateway, &["--packet", file, "--number", &number])
}

fn between(from: Site, family: Family) -> [String; 4] {
    let [local, remote] = [from, from.other()].map(|site| site.host_address(family).to_string());
    ["--local".into(), local, "--remote".into(), remote]
}

/// Explains an echo request of `len` bytes in all from `from`.
fn explain_ping(bed: &Testbed, from: Site, family: Family, len: u16) -> Value {
    let (ends, len) = (between(from, family), len.to_string());
    let mut arguments: Vec<_> = ends.iter().map(String::as_str).collect();
    arguments.extend(["--length", &len]);
    explain(bed.gateway(from), &arguments)
}

#[track_caller]
fn assert_verdict(case: &Value, verdict: &str, reason: Option<&str>) {
    assert_eq!(case["verdict"]["verdict"], verdict, "{case:#}");
    assert_eq!(case["verdict"]["reason"].as_str(), reason, "{case:#}");
}

#[test]
fn flows_are_explained_and_pings_do_as_was_said() -> Result<()> {
    let spec = TunnelSpec {
        outer_mtu: 1400,
        more: ordered,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    let west = &bed.west;
    let ping = |family| Ping {
        family,
        ..Ping::default()
    };
    let sealed = || sa_packets(west, "outbound", Site::West.outbound_spi());
    // Discarded, by name.
    let case = explain_ping(&bed, Site::West, Family::V4, 84);
    assert_verdict(&case, "dropped", Some("discarded"));
    assert_eq!(case["policy"]["name"], "no-echo");
    assert_eq!(
        west.dropped_for("outbound", "discarded")?,
        0,
        "asking is not counted"
    );
    assert_eq!(bed.ping(&ping(Family::V4))?.received, 0);
    assert_eq!(
        west.dropped_for("outbound", "discarded")?,
        u64::from(ping(Family::V4).count)
    );
    // Sealed, with the numbers that it says.
    let before = sealed()?;
    let case = explain_ping(&bed, Site::West, Family::V6, 104);
    assert_verdict(&case, "sent", None);
    assert_eq!(case["sa"]["tunnel"], "west-east");
    assert_eq!(case["sa"]["sequence"], before + 1, "{case:#}");
    assert_eq!(sealed()?, before, "no number is taken");
    assert_eq!(
        bed.ping(&ping(Family::V6))?.received,
        ping(Family::V6).count
    );
    assert!(wait_until(PATIENCE, || sealed().is_ok_and(|now| now >= before + 3)));
    // Too big by one byte, and what would fit is what the test bed knows to fit.
    let limit = bed.spec().largest_inner_packet();
    let fits = explain_ping(&bed, Site::West, Family::V6, limit);
    assert_verdict(&fits, "sent", None);
    assert_eq!(fits["mtu"]["largest_inner"], limit);
    let case = explain_ping(&bed, Site::West, Family::V6, limit + 1);
    assert_verdict(&case, "dropped", Some("too-big"));
    let too_big = Ping {
        size: limit + 1 - Family::V6.ping_overhead(),
        patience: Duration::from_millis(300),
        ..ping(Family::V6)
    };
    let before = west.dropped_for("outbound", "too-big")?;
    bed.ping(&too_big)?;
    assert!(west.dropped_for("outbound", "too-big")? > before);
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

/// How often packets of `reason` were punted.
fn punted_for(gateway: &Gateway, direction: &str, reason: &str) -> Result<u64> {
    let shown = gateway.show("drops")?;
    let rows = shown["punts"].as_array().into_iter().flatten();
    Ok(rows
        .filter(|row| row["direction"] == direction && row["reason"] == reason)
        .filter_map(|row| row["packets"].as_u64())
        .sum())
}

/// Sends a frame to the east gateway, as the wire would.
fn inject(bed: &Testbed, frame: &[u8]) {
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let program = "import socket, sys\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\ns.bind(('w2', 0))\ns.send(bytes.fromhex(sys.argv[1]))\n";
    let mut command = bed.wire.command("/usr/bin/python3", "KILL");
    let output = command
        .args(["-c", program, &hex])
        .output()
        .expect("python3 runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Writes one frame into a capture of its own.
fn write_capture(path: &Path, frame: &[u8]) {
    let file = File::create(path).expect("made");
    let mut writer = PcapWriter::with_header(file, PcapHeader::default()).expect("header");
    let len = u32::try_from(frame.len()).expect("short");
    let packet = PcapPacket::new(Duration::ZERO, len, frame);
    writer.write_packet(&packet).expect("written");
}

#[test]
fn captured_packets_are_explained_and_end_as_was_said() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    let capture = bed.capture_at("w2", 2000)?;
    let ping = Ping {
        family: Family::V4,
        ..Ping::default()
    };
    assert_eq!(bed.ping(&ping)?.received, ping.count);
    let frames = capture.frames()?;
    let spi_of = |protocol| match protocol {
        WireProtocol::Esp { spi, .. } => Some(spi),
        _ => None,
    };
    let at = frames
        .iter()
        .position(|frame| spi_of(frame.protocol) == Some(Site::West.outbound_spi()));
    let at = at.expect("west sealed something");
    let east = &bed.east;
    let file = bed.dir().join("w2.pcap");
    // As it was: east has opened it already, and opens it for the explanation.
    let case = explain_packet(east, &file, at + 1);
    assert_verdict(&case, "dropped", Some("replayed"));
    let dropped = |reason| east.dropped_for("inbound", reason);
    assert_eq!(dropped("replayed")?, 0);
    inject(&bed, &frames[at].bytes);
    assert!(wait_until(PATIENCE, || dropped("replayed").is_ok_and(|now| now == 1)));
    // A number that nobody used, and an SPI that nobody has.
    for (byte, reason) in [(14 + 20 + 5, "bad-icv"), (14 + 20 + 1, "no-sa")] {
        let mut frame = frames[at].bytes.clone();
        frame[byte] ^= 0x01;
        let path = bed.dir().join("changed.pcap");
        write_capture(&path, &frame);
        let case = explain_packet(east, &path, 1);
        assert_verdict(&case, "dropped", Some(reason));
        let before = dropped(reason)?;
        inject(&bed, &frame);
        assert!(wait_until(PATIENCE, || dropped(reason)
            .is_ok_and(|now| now == before + 1)));
    }
    // A host that is not there: the first packet waits, out of the tunnel as well.
    let nobody = "10.2.0.77";
    let host_a = Site::West.host_address(Family::V4).to_string();
    let case = explain(east, &["--local", nobody, "--remote", &host_a, "--inbound"]);
    assert_verdict(&case, "waits", Some("unresolved"));
    let before = punted_for(east, "inbound", "unresolved")?;
    let mut real = bed.host_a.command("ping", "KILL");
    real.args(["-n", "-c", "1", "-W", "1", nobody]);
    assert!(!real.output()?.status.success(), "nobody answers");
    assert!(punted_for(east, "inbound", "unresolved")? > before);
    assert_refused(east, &file, (frames.len(), at + 1));
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

/// What cannot be explained is a failure that says what to do.
fn assert_refused(gateway: &Gateway, file: &Path, (packets, replayed): (usize, usize)) {
    let file = file.to_str().expect("UTF-8");
    let beyond = (packets + 1).to_string();
    let flow = ["--local", "10.2.0.10", "--remote", "10.1.0.10"];
    for (arguments, words) in [
        (
            [&flow[..], &["--port", "wan"]].concat(),
            "explained with --inbound",
        ),
        (
            [&flow[..], &["--port", "eth0"]].concat(),
            "there are: lan, wan",
        ),
        (
            [&flow[..], &["--inbound", "--tunnel", "north"]].concat(),
            "there are: west-east",
        ),
        (
            vec!["--packet", file, "--number", &beyond],
            "and none of number",
        ),
    ] {
        let output = simplon(gateway, &[&["explain"], &arguments[..]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    }
    // For people.
    let output = simplon(
        gateway,
        &[
            "explain",
            "--packet",
            file,
            "--number",
            &replayed.to_string(),
        ],
    );
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(said.contains("stop  replay"), "{said}");
    assert!(
        said.contains("counters (inbound): received +1, dropped replayed +1"),
        "{said}"
    );
    let output = simplon(gateway, &[&["explain"], &flow[..]].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("ok    policy"), "{said}");
    assert!(said.contains("sent: It leaves by port wan."), "{said}");
}
