//! The ports' twins in the kernel: what is for the gateway itself is answered by the kernel's stack, whose own traffic
//! leaves by the ports, while the tunnel goes on.
#![cfg(feature = "dpdk")]

mod testbed;

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use testbed::{
    Failure, Family, Gateway, Netns, Ping, READY_TIMEOUT, Result, Site, Testbed, TunnelSpec,
    assert_balanced, assert_clean_stop, wait_until,
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Echo requests to `address`: all answered, and none twice.
fn assert_answers(from: &Netns, address: &str, count: u32) -> Result<()> {
    let count = count.to_string();
    let said = from.run(&["ping", "-n", "-c", &count, "-i", "0.2", "-W", "2", address])?;
    let expected = format!("{count} packets transmitted, {count} received, 0% packet loss");
    if said.contains(&expected) && !said.contains("DUP") {
        return Ok(());
    }
    Err(Failure::new(said))
}

/// What `ip -j link show` says of the twin of `port`.
fn link_of(gateway: &Gateway, port: &str) -> Result<Value> {
    let said = gateway.netns().run(&["ip", "-j", "link", "show", port])?;
    let links: Value = serde_json::from_str(&said).map_err(|why| Failure::new(why.to_string()))?;
    Ok(links[0].clone())
}

fn host_counter(gateway: &Gateway, port: &str, counter: &str) -> Result<u64> {
    let shown = gateway.show("ports")?;
    let ports = shown["ports"].as_array().into_iter().flatten();
    let of_port = ports.filter(|row| row["name"] == port);
    Ok(of_port
        .filter_map(|row| row["host"][counter].as_u64())
        .sum())
}

#[test]
fn kernel_answers_for_the_gateway_and_reaches_out_by_its_ports() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    let west = &bed.west;
    for (port, mac, mtu) in [
        ("lan", Site::West.lan_mac(), bed.spec().inner_mtu),
        ("wan", Site::West.wan_mac(), bed.spec().outer_mtu),
    ] {
        let link = link_of(west, port)?;
        assert_eq!(link["address"], mac.as_str());
        assert_eq!(link["mtu"], mtu);
    }
    for family in FAMILIES {
        let gateway = Site::West.lan_address(family).to_string();
        // The host asks for the gateway's MAC address and gets it.
        bed.host_a
            .run(&["ip", "neighbour", "del", &gateway, "dev", "a0"])?;
        assert_answers(&bed.host_a, &gateway, 5)?;
        let host = Site::West.host_address(family).to_string();
        assert_answers(west.netns(), &host, 5)?;
        let peer = Site::East.wan_address(family).to_string();
        assert_answers(west.netns(), &peer, 5)?;
        let ping = Ping {
            family,
            ..Ping::default()
        };
        assert_eq!(bed.ping(&ping)?.received, ping.count, "through the tunnel");
    }
    assert!(host_counter(west, "lan", "to_host")? > 20);
    assert!(host_counter(west, "lan", "from_host")? > 20);
    assert_eq!(host_counter(west, "lan", "to_host_dropped")?, 0);
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

/// Whether an echo request from host A to `address` is answered, tried for five seconds.
fn is_reached(bed: &Testbed, address: &str) -> bool {
    wait_until(Duration::from_secs(5), || {
        let ping = ["ping", "-n", "-c", "1", "-W", "1", address];
        bed.host_a.run(&ping).is_ok()
    })
}

#[test]
fn neighbours_and_routes_are_the_kernels() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        static_neighbours: false,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    for family in FAMILIES {
        let far = Site::East.host_address(family).to_string();
        assert!(is_reached(&bed, &far), "{:#}", bed.east.show("drops")?);
        let ping = Ping {
            family,
            ..Ping::default()
        };
        assert_eq!(bed.ping(&ping)?.received, ping.count, "once all are found");
    }
    // A network behind a router on the far link, which the kernel alone knows of.
    bed.host_b
        .run(&["ip", "address", "add", "10.2.9.1/32", "dev", "lo"])?;
    let no_route = bed.east.dropped_for("inbound", "no-route")?;
    let ping = ["ping", "-n", "-c", "1", "-W", "1", "10.2.9.1"];
    assert!(bed.host_a.run(&ping).is_err(), "no route yet");
    assert!(bed.east.dropped_for("inbound", "no-route")? > no_route);
    let route = |verb| {
        let to = ["10.2.9.0/24", "via", "10.2.0.10", "dev", "lan"];
        bed.east
            .netns()
            .run(&[&["ip", "route", verb][..], &to].concat())
    };
    route("add")?;
    std::thread::sleep(Duration::from_millis(100));
    assert_answers(&bed.host_a, "10.2.9.1", 3)?;
    route("del")?;
    std::thread::sleep(Duration::from_millis(100));
    assert!(bed.host_a.run(&ping).is_err(), "no route any more");
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

#[test]
fn senders_are_told_of_expired_and_of_too_big_packets() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        inner_mtu: 1500,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    let ping = |arguments: &[&str], far: &str| -> Result<String> {
        let ping = ["ping", "-n", "-c", "1", "-W", "2"];
        let output = bed
            .host_a
            .command(ping[0], "KILL")
            .args(&ping[1..])
            .args(arguments)
            .arg(far)
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for family in FAMILIES {
        let far = Site::East.host_address(family).to_string();
        // The path as traceroute sees it: the near gateway, the far one through the tunnel, the host.
        for (ttl, site) in [("1", Site::West), ("2", Site::East)] {
            let said = ping(&["-t", ttl], &far)?;
            let gateway = site.lan_address(family).to_string();
            assert!(said.contains(&format!("From {gateway} ")), "{said}");
            let told = said.contains("Time to live exceeded") || said.contains("Hop limit");
            assert!(told, "{said}");
        }
        assert!(ping(&["-t", "3"], &far)?.contains(" 0% packet loss"));
        let limit = bed.spec().largest_inner_packet();
        let size = |packet: u16| (packet - family.ping_overhead()).to_string();
        let fits = ping(&["-M", "do", "-s", &size(limit)], &far)?;
        assert!(fits.contains(" 0% packet loss"), "{fits}");
        let said = ping(&["-M", "do", "-s", &size(limit + 1)], &far)?;
        let told = match family {
            Family::V4 => format!("Frag needed and DF set (mtu = {limit})"),
            Family::V6 => format!("Packet too big: mtu={limit}"),
        };
        assert!(said.contains(&told), "{said}");
    }
    assert!(host_counter(&bed.west, "lan", "icmp_errors")? >= 4);
    assert!(host_counter(&bed.east, "lan", "icmp_errors")? >= 2);
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

#[test]
fn tcp_to_the_gateway_and_a_flood_beside_the_tunnel() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    let gateway = Site::West.lan_address(Family::V4).to_string();
    let mut server = bed
        .west
        .netns()
        .command("iperf3", "KILL")
        .args(["-s", "-B", &gateway])
        .stdout(Stdio::null())
        .spawn()?;
    // The server takes a moment to listen, and with -J a client that found nobody still exits with 0.
    let mut report = Value::Null;
    let sent = |report: &Value| report["end"]["sum_sent"]["bytes"].as_u64();
    wait_until(Duration::from_secs(10), || {
        report = bed
            .host_a
            .run(&["iperf3", "-c", &gateway, "-n", "2M", "-J"])
            .ok()
            .and_then(|said| serde_json::from_str(&said).ok())
            .unwrap_or_default();
        sent(&report).is_some()
    });
    let _ = server.kill();
    let _ = server.wait();
    assert!(
        sent(&report).is_some_and(|bytes| bytes >= 2 << 20),
        "{report:#}"
    );

    // More than its kind's limit lets through, and the tunnel goes on.
    let mut flood = bed
        .host_a
        .command("ping", "KILL")
        .args(["-q", "-f", "-l", "400", "-n", "-c", "20000", &gateway])
        .stdout(Stdio::null())
        .spawn()?;
    let limited = wait_until(Duration::from_secs(10), || {
        bed.west
            .dropped_for("outbound", "punt-limit")
            .is_ok_and(|packets| packets > 100)
    });
    let ping = Ping::default();
    let through = bed.ping(&ping);
    let _ = flood.kill();
    let _ = flood.wait();
    assert!(limited, "{:#}", bed.west.show("drops")?);
    assert_eq!(through?.received, ping.count, "through the tunnel");
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

#[test]
fn interface_of_somebody_else_is_left_alone() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    bed.west.stop()?;
    bed.west
        .netns()
        .run(&["ip", "tuntap", "add", "lan", "mode", "tap"])?;
    bed.west.start()?;
    let exit = bed.west.wait_end()?;
    assert!(!exit.status.success());
    assert!(
        exit.stderr.contains("host interface lan"),
        "{}",
        exit.stderr
    );
    assert!(exit.stderr.contains("rename the port"), "{}", exit.stderr);
    let shown = bed
        .west
        .netns()
        .run(&["ip", "-br", "address", "show", "lan"])?;
    assert!(!shown.contains("10.1.0.1"), "{shown}");
    Ok(())
}

#[test]
fn twin_has_a_carrier_while_its_port_has_a_link() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    // The driver of AF_PACKET takes its link for up whatever happens to it; that of TAP looks.
    bed.west.stop()?;
    let policy = std::fs::read_to_string(bed.west.policy())?;
    let of_tap: Vec<&str> = policy
        .lines()
        .map(
            |line| match line.starts_with("device = \"net_af_packet0,") {
                true => "device = \"net_tap0,iface=dtap0\"",
                false => line,
            },
        )
        .collect();
    std::fs::write(bed.west.policy(), of_tap.join("\n"))?;
    bed.west.start()?;
    bed.west.wait_ready(READY_TIMEOUT)?;
    let has_carrier = |wanted: bool| {
        wait_until(Duration::from_secs(5), || {
            link_of(&bed.west, "lan").is_ok_and(|link| {
                let flags = link["flags"].as_array().into_iter().flatten();
                flags.filter(|flag| **flag == "LOWER_UP").count() == usize::from(wanted)
            })
        })
    };
    let set = |state| {
        bed.west
            .netns()
            .run(&["ip", "link", "set", "dtap0", state])
            .map(drop)
    };
    assert!(has_carrier(true), "{:#}", link_of(&bed.west, "lan")?);
    set("down")?;
    assert!(has_carrier(false), "{:#}", link_of(&bed.west, "lan")?);
    set("up")?;
    assert!(has_carrier(true), "{:#}", link_of(&bed.west, "lan")?);
    assert_clean_stop(&mut bed)
}
