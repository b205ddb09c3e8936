//! `simplon trace` beside live traffic between two gateways: what Wireshark's tools read of it, and how it ends.
#![cfg(feature = "dpdk")]

mod testbed;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use testbed::{
    Failure, Family, Gateway, Ping, Result, Site, Testbed, TunnelSpec, assert_balanced,
    assert_clean_stop, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// What the gateway logs when a trace begins.
const BEGUN: &str = "packets are followed";

/// What tshark has of one packet block.
#[derive(Debug)]
struct Block {
    interface: String,
    protocols: String,
    comment: String,
    destination: String,
    spi: String,
}

/// Begins a trace and waits until the gateway follows.
fn begin(gateway: &Gateway, arguments: &[&str]) -> Result<Child> {
    let begun = || gateway.log().matches(BEGUN).count();
    let before = begun();
    let mut command = gateway.client(&[&["trace"], arguments].concat())?;
    let mut tracing = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if wait_until(PATIENCE, || begun() > before) {
        return Ok(tracing);
    }
    tracing.kill()?;
    let output = tracing.wait_with_output()?;
    Err(Failure::new(format!("no trace has begun: {output:?}")))
}

/// Waits for the end of a trace, which is to be in order.
fn end(tracing: Child) -> Result<(String, String)> {
    let output = tracing.wait_with_output()?;
    let (said, told) = texts(&output);
    match output.status.success() {
        true => Ok((said, told)),
        false => Err(Failure::new(format!("{}: {told}", output.status))),
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn refused(gateway: &Gateway, arguments: &[&str]) -> Result<String> {
    let output = gateway
        .client(&[&["trace"], arguments].concat())?
        .output()?;
    assert!(!output.status.success(), "{arguments:?}: {output:?}");
    Ok(texts(&output).1)
}

/// What tshark reads of a capture: every packet block, none of which it finds fault with.
fn tshark(file: &Path) -> Result<Vec<Block>> {
    let fields = [
        "frame.interface_name",
        "frame.protocols",
        "frame.comment",
        "ip.dst",
        "esp.spi",
        "_ws.malformed",
    ];
    let output = Command::new("tshark")
        .args(["-n", "-T", "fields", "-r"])
        .arg(file)
        .args(fields.iter().flat_map(|field| ["-e", field]))
        .output()
        .map_err(|why| Failure::new(format!("tshark (apt-get install tshark): {why}")))?;
    let (said, told) = texts(&output);
    assert!(output.status.success(), "{told}");
    let block = |line: &str| {
        let fields: Vec<_> = line.split('\t').map(str::to_owned).collect();
        let [interface, protocols, comment, destination, spi, malformed] =
            <[String; 6]>::try_from(fields).expect("six fields");
        assert_eq!(malformed, "", "{line}");
        Block {
            interface,
            protocols,
            comment,
            destination,
            spi,
        }
    };
    Ok(said.lines().map(block).collect())
}

fn two_pings(bed: &Testbed) -> Result<()> {
    let ping = Ping {
        count: 2,
        at_once: 2,
        ..Ping::default()
    };
    assert_eq!(bed.ping(&ping)?.received, 2);
    Ok(())
}

#[test]
fn trace_shows_packets_clear_and_sealed_with_what_became_of_them() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    both_forms_are_there(&bed)?;
    drops_are_told_with_their_reason(&bed)?;
    filters_tell_packets_apart(&bed)?;
    lines_and_json_say_the_same(&bed)?;
    a_trace_ends_however_its_client_does(&bed)?;
    two_pings(&bed)?;
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

/// Two requests out and two answers in, each as it came and as it left.
fn both_forms_are_there(bed: &Testbed) -> Result<()> {
    let file = bed.dir().join("pings.pcapng");
    let name = file.to_string_lossy();
    let arguments = ["--count", "4", "--protocol", "icmp", "--write", &name];
    let tracing = begin(&bed.west, &arguments)?;
    two_pings(bed)?;
    let (_, told) = end(tracing)?;
    assert!(told.contains("4 packets followed"), "{told}");
    let blocks = tshark(&file)?;
    assert_eq!(blocks.len(), 8, "{blocks:#?}");
    let hosts = [Site::West, Site::East].map(|site| site.host_address(Family::V4).to_string());
    let peers = [Site::West, Site::East].map(|site| site.wan_address(Family::V4).to_string());
    let mut numbers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for pair in blocks.chunks(2) {
        let [came, left] = pair else { continue };
        for block in pair {
            assert!(block.comment.contains("tunnel west-east"), "{block:?}");
        }
        let (clear, sealed, spi, to) = if came.interface == "lan" {
            assert!(
                came.comment.contains("outbound: sent, sealed of "),
                "{came:?}"
            );
            (came, left, "0x00001001", 1)
        } else {
            assert!(
                came.comment.contains("inbound: sent, clear of "),
                "{came:?}"
            );
            (left, came, "0x00001002", 0)
        };
        assert_eq!((&*clear.interface, &*sealed.interface), ("lan", "wan"));
        assert!(
            clear.comment.starts_with("[clear form, as it "),
            "{clear:?}"
        );
        assert!(
            sealed.comment.starts_with("[sealed form, as it "),
            "{sealed:?}"
        );
        assert!(clear.protocols.ends_with("icmp:data"), "{clear:?}");
        assert!(sealed.protocols.ends_with("ip:esp"), "{sealed:?}");
        assert_eq!(
            (&clear.destination, &sealed.destination),
            (&hosts[to], &peers[to])
        );
        assert_eq!(sealed.spi, spi);
        for stage in [
            "parse (IPv4) > classify",
            "aead (",
            "route (02:00:00:00:0",
            "tx (",
        ] {
            assert!(came.comment.contains(stage), "{came:?}");
        }
        let (_, number) = came.comment.split_once("; sequence ").expect("a number");
        let (number, _) = number.split_once(';').expect("more");
        numbers.entry(spi).or_default().push(number.to_owned());
    }
    for (spi, numbers) in numbers {
        assert_eq!(numbers, ["1", "2"], "{spi}");
    }
    Ok(())
}

fn drops_are_told_with_their_reason(bed: &Testbed) -> Result<()> {
    let file = bed.dir().join("drops.pcapng");
    let name = file.to_string_lossy();
    let arguments = ["--dropped", "--count", "1", "--write", &name];
    let tracing = begin(&bed.west, &arguments)?;
    two_pings(bed)?;
    let gateway = Site::West.lan_address(Family::V4).to_string();
    bed.host_a
        .run(&["ip", "route", "add", "10.9.0.0/16", "via", &gateway])?;
    let lost = bed.host_a.run(&["ping", "-c", "1", "-W", "1", "10.9.0.1"]);
    assert!(lost.is_err(), "nobody is there");
    end(tracing)?;
    let blocks = tshark(&file)?;
    assert_eq!(blocks.len(), 1, "{blocks:#?}");
    assert_eq!(blocks[0].destination, "10.9.0.1");
    let comment = "outbound: dropped (no-policy): No policy names it; the default is discard; \
                   parse (IPv4) > classify > policy (no-policy)";
    assert!(blocks[0].comment.contains(comment), "{blocks:?}");
    Ok(())
}

fn filters_tell_packets_apart(bed: &Testbed) -> Result<()> {
    let arguments = [
        "--json",
        "--count",
        "1",
        "--direction",
        "inbound",
        "--tunnel",
        "west-east",
        "--spi",
        "0x1002",
        "--remote",
        "10.2.0.0/16",
        "--icmp",
        "0",
        "--protocol",
        "icmp",
        "--port",
        "wan",
    ];
    let tracing = begin(&bed.west, &arguments)?;
    two_pings(bed)?;
    let (said, _) = end(tracing)?;
    let packet: Value = serde_json::from_str(&said).map_err(|why| Failure::new(why.to_string()))?;
    assert_eq!(packet["direction"], "inbound", "{packet}");
    assert_eq!(packet["traffic"]["icmp"], "0/0", "{packet}");
    for (arguments, part) in [
        (["--tunnel", "north"], "no tunnel is called \"north\""),
        (["--port", "dmz"], "lan, wan"),
        (["--reason", "weather"], "no-policy"),
        (["--protocol", "icpm"], "did you mean \"icmp\"?"),
        (["--local", "10.1.0.0/33"], "10.1.0.0/33"),
        (["--remote-ports", "80"], "write protocol"),
        (["--write", "/nowhere/file"], "cannot write /nowhere/file"),
    ] {
        let told = refused(&bed.west, &arguments)?;
        assert!(told.contains(part), "{arguments:?}: {told}");
    }
    Ok(())
}

fn lines_and_json_say_the_same(bed: &Testbed) -> Result<()> {
    let tracing = begin(&bed.east, &["--count", "4", "--protocol", "icmp"])?;
    two_pings(bed)?;
    let (said, _) = end(tracing)?;
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 4, "{said}");
    let opened = " wan > lan icmp 8/0 10.1.0.10 > 10.2.0.10 ";
    assert_eq!(said.matches(opened).count(), 2, "{said}");
    let sealed = " lan > wan icmp 0/0 10.2.0.10 > 10.1.0.10 98 bytes: sent, sealed of ";
    assert_eq!(said.matches(sealed).count(), 2, "{said}");
    let output = bed
        .east
        .client(&["trace", "--for", "0.2", "--json"])?
        .output()?;
    assert_eq!(texts(&output), (String::new(), String::new()));
    Ok(())
}

fn a_trace_ends_however_its_client_does(bed: &Testbed) -> Result<()> {
    // Ctrl-C, with a capture that is whole.
    let file = bed.dir().join("ended.pcapng");
    let name = file.to_string_lossy();
    let tracing = begin(&bed.west, &["--count", "1000", "--write", &name])?;
    two_pings(bed)?;
    let second = refused(&bed.west, &[])?;
    assert!(
        second.contains("a trace is under way, since 20"),
        "{second}"
    );
    assert!(second.contains("--stop"), "{second}");
    signal(&tracing, Signal::INT);
    let (_, told) = end(tracing)?;
    assert!(told.contains("packets followed"), "{told}");
    assert!(tshark(&file)?.len() >= 8);
    // Piped into something that has seen enough.
    let mut tracing = begin(&bed.west, &["--write", "-"])?;
    drop(tracing.stdout.take());
    two_pings(bed)?;
    end(tracing)?;
    // By somebody else.
    let tracing = begin(&bed.west, &[])?;
    let stopped = bed.west.client(&["trace", "--stop"])?.output()?;
    assert!(stopped.status.success(), "{stopped:?}");
    end(tracing)?;
    let nothing = refused(&bed.west, &["--stop"])?;
    assert!(nothing.contains("no such trace"), "{nothing}");
    // By itself, once its client is gone.
    let mut tracing = begin(&bed.west, &[])?;
    tracing.kill()?;
    tracing.wait()?;
    assert!(refused(&bed.west, &[])?.contains("under way"));
    let is_free = || {
        let output = bed.west.client(&["trace", "--for", "0.1"]);
        let output = output.and_then(|mut command| Ok(command.output()?));
        output.is_ok_and(|output| output.status.success())
    };
    assert!(wait_until(PATIENCE, is_free));
    Ok(())
}

fn signal(tracing: &Child, signal: Signal) {
    let pid = i32::try_from(tracing.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process"), signal).expect("signalled");
}
