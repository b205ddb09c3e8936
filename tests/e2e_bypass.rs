//! Traffic that passes in clear by policy beside a tunnel, what is refused, and what senders are told, on a real wire.
#![cfg(feature = "dpdk")]

mod testbed;

use std::net::IpAddr;

use testbed::{
    Failure, Family, Gateway, Netns, Ping, Result, Site, Testbed, TunnelSpec, WireProtocol,
    assert_balanced, assert_clean_stop, shows_inner_packet,
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A network of the site's that is bypassed, and a host in it.
fn clear_network(site: Site, family: Family) -> String {
    match family {
        // Within the tunnel's networks, of which it is the more specific part.
        Family::V4 => format!("10.{}.200.0/24", site.number()),
        Family::V6 => format!("fd00:{}:0:200::/64", site.number()),
    }
}

fn clear_host(site: Site, family: Family) -> String {
    let network = clear_network(site, family);
    match family {
        Family::V4 => network.replace("0/24", "10"),
        Family::V6 => network.replace("::/64", "::10"),
    }
}

fn table(kind: &str, name: &str, local: &[String], remote: &[String]) -> String {
    format!(
        "\n[[{kind}]]\nname = {name:?}\nlocal_networks = {local:?}\nremote_networks = {remote:?}\n"
    )
}

fn route(to: &str, via: &str, port: &str) -> String {
    format!("\n[[route]]\nto = {to:?}\nvia = {via:?}\nport = {port:?}\n")
}

/// The bypass between the two sites' networks, and how each gateway reaches both.
fn bypassed_pair(site: Site) -> String {
    let mut text = String::new();
    for family in FAMILIES {
        let near = clear_network(site, family);
        let far = clear_network(site.other(), family);
        let host = site.host_address(family).to_string();
        let peer = site.other().wan_address(family).to_string();
        text += &route(&near, &host, "lan");
        text += &route(&far, &peer, "wan");
        // The gateways' own link too, for what they answer on the way.
        let link = match family {
            Family::V4 => "192.0.2.0/24",
            Family::V6 => "2001:db8::/64",
        };
        let name = format!("clear{}", family.ip_option());
        text += &table("bypass", &name, &[near], &[far, link.into()]);
    }
    text
}

/// Gives a host its address in the bypassed network, and its way to the other one.
fn add_clear_host(bed: &Testbed, site: Site) -> Result<()> {
    for family in FAMILIES {
        let ip = |words: &[&str]| {
            let all = [&["ip", family.ip_option()], words].concat();
            bed.host(site).run(&all).map(drop)
        };
        ip(&["address", "add", &clear_host(site, family), "dev", "lo"])?;
        let gateway = site.lan_address(family).to_string();
        let far = clear_network(site.other(), family);
        ip(&["route", "add", &far, "via", &gateway])?;
    }
    Ok(())
}

/// What `ping` says of one echo request or more.
fn ping(from: &Netns, arguments: &[&str]) -> Result<String> {
    let mut command = from.command("ping", "KILL");
    let output = command.args(["-n", "-W", "2"]).args(arguments).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} in\n{said}");
    }
}

fn bypassed(gateway: &Gateway, direction: &str) -> Result<(u64, u64)> {
    let shown = gateway.show("drops")?;
    let of = |what: &str| shown["totals"][direction][what].as_u64();
    of("bypassed")
        .zip(of("bypassed_bytes"))
        .ok_or_else(|| Failure::new(shown.to_string()))
}

#[test]
fn chosen_pair_passes_in_clear_and_the_rest_in_the_tunnel() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        inner_mtu: 1500,
        outer_mtu: 1400,
        more: bypassed_pair,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    add_clear_host(&bed, Site::West)?;
    add_clear_host(&bed, Site::East)?;
    let capture = bed.capture(2000)?;
    for family in FAMILIES {
        let [near, far] = [Site::West, Site::East].map(|site| clear_host(site, family));
        for (from, source, to) in [(&bed.host_a, &near, &far), (&bed.host_b, &far, &near)] {
            let said = ping(
                from,
                &["-c", "5", "-i", "0.2", "-s", "72", "-I", source, to],
            )?;
            assert_says(
                &said,
                &[
                    "5 packets transmitted, 5 received, 0% packet loss",
                    "ttl=62",
                ],
            );
        }
        let tunnel = Ping {
            family,
            ..Ping::default()
        };
        assert_eq!(bed.ping(&tunnel)?.received, tunnel.count);
    }
    assert_wire_shows_both(&capture.frames()?)?;
    // Ten there, ten back, of 100 and 120 bytes.
    for (gateway, direction) in [
        (&bed.west, "outbound"),
        (&bed.west, "inbound"),
        (&bed.east, "outbound"),
        (&bed.east, "inbound"),
    ] {
        assert_eq!(bypassed(gateway, direction)?, (20, 10 * 100 + 10 * 120));
    }
    for family in FAMILIES {
        let [near, far] = [Site::West, Site::East].map(|site| clear_host(site, family));
        let one = |more: &[&str]| {
            ping(
                &bed.host_a,
                &[&["-c", "1", "-I", &near][..], more, &[&far]].concat(),
            )
        };
        // The path as traceroute sees it.
        let gateway = Site::West.lan_address(family).to_string();
        let peer = Site::East.wan_address(family).to_string();
        for (ttl, address) in [("1", &gateway), ("2", &peer)] {
            let expired = match family {
                Family::V4 => "Time to live exceeded",
                Family::V6 => "Hop limit",
            };
            assert_says(&one(&["-t", ttl])?, &[&format!("From {address} "), expired]);
        }
        assert_says(&one(&["-t", "3"])?, &[" 0% packet loss"]);
        // The line's MTU counts, not what a tunnel would leave of it.
        let payload = |packet: u16| (packet - family.ping_overhead()).to_string();
        assert_says(
            &one(&["-M", "do", "-s", &payload(1400)])?,
            &[" 0% packet loss"],
        );
        let told = match family {
            Family::V4 => "Frag needed and DF set (mtu = 1400)",
            Family::V6 => "Packet too big: mtu=1400",
        };
        let said = one(&["-M", "do", "-s", &payload(1401)])?;
        assert_says(&said, &[&format!("From {gateway} "), told]);
    }
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

/// Clear text is that of the bypassed pair, one hop from its sender; between the tunnel's hosts all is ESP.
fn assert_wire_shows_both(frames: &[testbed::WireFrame]) -> Result<()> {
    for family in FAMILIES {
        let [near, far] = [Site::West, Site::East]
            .map(|site| clear_host(site, family).parse::<IpAddr>().expect("address"));
        for (from, to) in [(near, far), (far, near)] {
            let of_pair = frames
                .iter()
                .filter(|frame| (frame.source, frame.destination) == (Some(from), Some(to)));
            let (icmp, hops_at, len) = match family {
                Family::V4 => (1, 14 + 8, 114),
                Family::V6 => (58, 14 + 7, 134),
            };
            let mut count = 0;
            for frame in of_pair {
                assert_eq!(frame.protocol, WireProtocol::Other(icmp));
                assert_eq!((frame.bytes[hops_at], frame.length), (63, len));
                count += 1;
            }
            // Requests of the one, answers to the other.
            assert_eq!(count, 10, "{from} to {to}");
        }
    }
    let sealed = |frame: &&testbed::WireFrame| matches!(frame.protocol, WireProtocol::Esp { .. });
    let expected = 2 * 2 * Ping::default().count;
    assert_eq!(frames.iter().filter(sealed).count(), expected as usize);
    match frames.iter().find(|frame| shows_inner_packet(frame, None)) {
        Some(frame) => Err(Failure::new(format!(
            "clear text on the wire: {frame:02x?}"
        ))),
        None => Ok(()),
    }
}

/// What lies outside, in clear: a host on the wire.
const OUTSIDE: &str = "198.51.100.7";

fn bypass_to_outside(site: Site) -> String {
    if site == Site::East {
        return String::new();
    }
    // Around the tunnel's networks.
    let remote = ["198.51.100.0/24", "192.0.2.77", "10.0.0.0/8"].map(String::from);
    table("bypass", "outside", &["10.0.0.0/8".into()], &remote)
        + &route("10.1.200.0/24", "10.1.0.10", "lan")
        + &route("198.51.100.0/24", "192.0.2.77", "wan")
}

#[test]
fn clear_text_from_the_wire_is_refused_but_for_what_is_bypassed() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        static_neighbours: false,
        inner_mtu: 1300,
        more: bypass_to_outside,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    bed.host_a
        .run(&["ip", "address", "add", "10.1.200.10", "dev", "lo"])?;
    bed.host_a
        .run(&["ip", "route", "add", "198.51.100.0/24", "via", "10.1.0.1"])?;
    let wire = &bed.wire;
    wire.run(&["ip", "address", "add", "192.0.2.77/24", "dev", "br0"])?;
    for address in [OUTSIDE, "203.0.113.7", "10.2.0.99"] {
        wire.run(&["ip", "address", "add", address, "dev", "lo"])?;
    }
    wire.run(&["ip", "route", "add", "10.1.0.0/16", "via", "192.0.2.1"])?;
    // First packets wait for nobody's MAC address, and the kernel finds it out.
    let is_reached = |from: &Netns, source: &str, to: &str| {
        testbed::wait_until(std::time::Duration::from_secs(10), || {
            ping(from, &["-c", "1", "-I", source, to])
                .is_ok_and(|said| said.contains(" 0% packet loss"))
        })
    };
    assert!(
        is_reached(&bed.host_a, "10.1.200.10", OUTSIDE),
        "{:#}",
        bed.west.show("drops")?
    );
    let from_outside =
        |more: &[&str]| ping(wire, &[&["-c", "1", "-I", OUTSIDE][..], more].concat());
    assert_says(
        &from_outside(&["10.1.200.10"])?,
        &[" 0% packet loss", "ttl=63"],
    );
    // Errors come back in clear, from the port's own address.
    let told = |arguments: &[&str], what: &str| -> Result<()> {
        let said = from_outside(arguments)?;
        assert_says(&said, &["From 192.0.2.1 ", what]);
        Ok(())
    };
    told(&["-t", "1", "10.1.200.10"], "Time to live exceeded")?;
    told(
        &["-M", "do", "-s", "1273", "10.1.200.10"],
        "Frag needed and DF set (mtu = 1300)",
    )?;
    told(&["10.1.201.9"], "Destination Net Unreachable")?;
    // What no policy names, and what a tunnel has: dropped without a word.
    for (source, to) in [
        ("203.0.113.7", "10.1.200.10"),
        ("10.2.0.99", "10.1.200.10"),
        ("10.2.0.99", "10.1.0.10"),
    ] {
        let before = bed.west.dropped_for("inbound", "clear-text")?;
        let (passed, _) = bypassed(&bed.west, "inbound")?;
        let said = ping(wire, &["-c", "3", "-i", "0.2", "-W", "1", "-I", source, to])?;
        assert_says(&said, &["3 packets transmitted, 0 received"]);
        assert!(!said.contains("From "), "{said}");
        let refused = bed.west.dropped_for("inbound", "clear-text")? - before;
        assert_eq!(
            (refused, bypassed(&bed.west, "inbound")?.0),
            (3, passed),
            "{source} {to}"
        );
    }
    assert!(bed.west.dropped_for("inbound", "no-route")? >= 1);
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

fn told_policy(site: Site) -> String {
    let local = [site.network(Family::V4)];
    let remote = ["10.77.0.0/16".to_owned()];
    let discarded = [format!("10.{}.66.0/24", site.other().number())];
    table("discard", "no-printers", &local, &discarded)
        + &table("bypass", "no-way", &local, &remote)
        + &table(
            "bypass",
            "no-way-6",
            &[site.network(Family::V6)],
            &["fd00:77::/64".into()],
        )
}

#[test]
fn senders_are_told_what_is_prohibited_and_what_cannot_be_reached() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        admin_prohibited: true,
        more: told_policy,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    for (host, number) in [(&bed.host_a, 1), (&bed.host_b, 2)] {
        for (far, gateway) in [
            ("10.0.0.0/8", format!("10.{number}.0.1")),
            ("fd00::/16", format!("fd00:{number}::1")),
        ] {
            host.run(&["ip", "route", "add", far, "via", &gateway])?;
        }
    }
    for (to, from, what, direction, reason) in [
        (
            "10.9.9.9",
            "10.1.0.1",
            "Packet filtered",
            "outbound",
            "no-policy",
        ),
        (
            "fd00:9::9",
            "fd00:1::1",
            "Administratively prohibited",
            "outbound",
            "no-policy",
        ),
        (
            "10.2.66.1",
            "10.1.0.1",
            "Packet filtered",
            "outbound",
            "discarded",
        ),
        (
            "10.77.0.1",
            "10.1.0.1",
            "Destination Net Unreachable",
            "outbound",
            "no-route",
        ),
        (
            "fd00:77::1",
            "fd00:1::1",
            "No route",
            "outbound",
            "no-route",
        ),
        // Out of the tunnel, and the answer back through it.
        (
            "10.2.5.1",
            "10.2.0.1",
            "Destination Net Unreachable",
            "inbound",
            "no-route",
        ),
    ] {
        let gateway = if direction == "outbound" {
            &bed.west
        } else {
            &bed.east
        };
        let before = gateway.dropped_for(direction, reason)?;
        let said = ping(&bed.host_a, &["-c", "1", to])?;
        assert_says(&said, &[&format!("From {from} "), what]);
        assert!(gateway.dropped_for(direction, reason)? > before, "{to}");
    }
    // Unless asked, nobody is told what policy discards.
    let policy = std::fs::read_to_string(bed.east.policy())?;
    let silent = policy.replace("admin_prohibited = true", "");
    assert_ne!(silent, policy);
    bed.east.stop()?;
    std::fs::write(bed.east.policy(), silent)?;
    bed.east.start()?;
    bed.east.wait_ready(testbed::READY_TIMEOUT)?;
    let before = bed.east.dropped_for("outbound", "no-policy")?;
    let said = ping(&bed.host_b, &["-c", "1", "-W", "1", "10.9.9.9"])?;
    assert!(!said.contains("From "), "{said}");
    assert!(bed.east.dropped_for("outbound", "no-policy")? > before);
    assert_says(
        &ping(&bed.host_b, &["-c", "1", "10.77.0.1"])?,
        &["Destination Net Unreachable"],
    );
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}
