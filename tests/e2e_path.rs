//! A plain Linux router between the gateways, whose second link takes smaller packets: nothing hangs, and each error
//! carries the number that fits.
#![cfg(feature = "dpdk")]

mod testbed;

use std::time::Duration;

use serde_json::Value;
use testbed::{
    Encapsulation, Failure, Family, Flow, Gateway, Result, Site, Testbed, Transport, TunnelSpec,
    assert_balanced, assert_clean_stop, wait_until,
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// What the link between router and east gateway takes.
const NARROW: u16 = 1300;

/// Two gateways with a router between them, and nobody who was told a MAC address.
fn routed(narrow: u16) -> TunnelSpec {
    TunnelSpec {
        host: true,
        static_neighbours: false,
        router: Some(narrow),
        ..TunnelSpec::default()
    }
}

/// What `show tunnels` says of the one tunnel.
fn tunnel(gateway: &Gateway) -> Result<Value> {
    Ok(gateway.show("tunnels")?["tunnels"][0].clone())
}

fn drops(gateway: &Gateway, what: &str, reason: &str) -> Result<u64> {
    let shown = gateway.show("drops")?;
    let rows = shown[what].as_array().into_iter().flatten();
    let of_reason = rows.filter(|row| row["reason"] == reason);
    Ok(of_reason.filter_map(|row| row["packets"].as_u64()).sum())
}

/// What `ping` prints of one request of `size` bytes as an IP packet from host A to host B.
fn ping_once(bed: &Testbed, family: Family, size: u16, dont_fragment: bool) -> Result<String> {
    let mut ping = bed.host_a.command("ping", "KILL");
    let payload = (size - family.ping_overhead()).to_string();
    let far = Site::East.host_address(family).to_string();
    let rule = if dont_fragment { "do" } else { "dont" };
    ping.args(["-n", "-c", "1", "-W", "2", "-M", rule, "-s", &payload, &far]);
    let output = ping.output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether an Ethernet frame holds a fragment.
fn is_fragment(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x00] => u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff != 0,
        _ => frame[20] == 44,
    }
}

fn is_answered(said: &str) -> bool {
    said.contains(" 0% packet loss")
}

/// Until both gateways know the router, and the hosts their gateways.
fn wait_for_neighbours(bed: &Testbed) -> Result<()> {
    for family in FAMILIES {
        let mut said = String::new();
        let answered = wait_until(Duration::from_secs(10), || {
            said = ping_once(bed, family, 100, true).unwrap_or_default();
            is_answered(&said)
        });
        if !answered {
            return Err(Failure::new(said));
        }
    }
    Ok(())
}

fn tcp(bed: &Testbed, from: Site, family: Family) -> Result<()> {
    let flow = Flow {
        from,
        family,
        transport: Transport::Tcp,
        seconds: 1,
    };
    let through = bed.stream(&flow)?;
    // Some segments have to get through at all; a black hole lets none of full size.
    assert!(through.bits_per_second > 1e6, "{flow:?}: {through:?}");
    Ok(())
}

#[test]
fn routers_between_gateways_are_routers_and_nothing_is_static() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(routed(1500))? else {
        return Ok(());
    };
    wait_for_neighbours(&bed)?;
    for family in FAMILIES {
        // The path as traceroute sees it: the near gateway, the far one through the tunnel, the host.
        for (ttl, site) in [("1", Site::West), ("2", Site::East)] {
            let far = Site::East.host_address(family).to_string();
            let ping = ["ping", "-n", "-c", "1", "-W", "2", "-t", ttl, &far];
            let (program, arguments) = ping.split_first().expect("ping");
            let output = bed
                .host_a
                .command(program, "KILL")
                .args(arguments)
                .output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                said.contains(&format!("From {} ", site.lan_address(family))),
                "{said}"
            );
        }
        for from in [Site::West, Site::East] {
            tcp(&bed, from, family)?;
        }
    }
    let said = bed.wire.run(&["ip", "-4", "neigh", "show"])?;
    assert!(
        said.contains(&Site::West.wan_mac()) && said.contains(&Site::East.wan_mac()),
        "{said}"
    );
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

#[test]
fn narrow_path_is_found_out_and_told_with_the_right_number() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(routed(NARROW))? else {
        return Ok(());
    };
    wait_for_neighbours(&bed)?;
    let limit = bed.spec().largest_inner_packet();
    assert_eq!(limit, 1246);
    assert_eq!(
        tunnel(&bed.west)?["mtu"],
        1446,
        "nobody has said anything yet"
    );
    assert_eq!(
        tunnel(&bed.east)?["mtu"],
        limit,
        "its own link is the narrow one"
    );
    // The first is lost where the path narrows, and the router says so to the gateway.
    assert!(!is_answered(&ping_once(&bed, Family::V4, 1400, true)?));
    let learned = wait_until(Duration::from_secs(5), || {
        tunnel(&bed.west).is_ok_and(|tunnel| tunnel["path_mtu"] == NARROW)
    });
    let shown = tunnel(&bed.west)?;
    assert!(learned, "{shown:#}");
    assert_eq!(shown["mtu"], limit);
    assert_eq!(shown["mss_v4"], limit - 40);
    assert_eq!(shown["mss_v6"], 1220);
    let said = ping_once(&bed, Family::V4, limit + 1, true)?;
    assert!(
        said.contains(&format!("mtu = {limit}")) || said.contains(&format!("mtu={limit}")),
        "{said}"
    );
    assert!(is_answered(&ping_once(&bed, Family::V4, limit, true)?));
    // IPv6 is promised 1280 bytes, which the gateway carries in two outer fragments.
    let said = ping_once(&bed, Family::V6, 1281, true)?;
    assert!(
        said.contains("mtu=1280") || said.contains("mtu = 1280"),
        "{said}"
    );
    assert!(is_answered(&ping_once(&bed, Family::V6, 1280, true)?));
    assert!(drops(&bed.west, "asides", "cut-after")? >= 1);
    // What may be fragmented is, before it is sealed.
    assert!(is_answered(&ping_once(&bed, Family::V4, 1400, false)?));
    assert!(drops(&bed.west, "asides", "cut-before")? >= 1);
    assert!(drops(&bed.east, "asides", "cut-before")? >= 1, "the answer");
    for family in FAMILIES {
        for from in [Site::West, Site::East] {
            tcp(&bed, from, family)?;
        }
    }
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

#[test]
fn unclamped_tcp_finds_the_narrow_path_by_its_errors() -> Result<()> {
    let spec = TunnelSpec {
        clamp_mss: false,
        ..routed(NARROW)
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    wait_for_neighbours(&bed)?;
    for family in FAMILIES {
        for from in [Site::West, Site::East] {
            tcp(&bed, from, family)?;
        }
    }
    assert_eq!(tunnel(&bed.west)?["path_mtu"], NARROW);
    assert!(
        drops(&bed.west, "drops", "too-big")? > 0,
        "senders were told"
    );
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

#[test]
fn clamped_tcp_sends_nothing_that_is_too_big() -> Result<()> {
    // The gateways' own links are the narrow ones, so that both know from the start.
    let spec = TunnelSpec {
        outer_mtu: NARROW,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    for family in FAMILIES {
        for from in [Site::West, Site::East] {
            tcp(&bed, from, family)?;
        }
    }
    for gateway in [&bed.west, &bed.east] {
        assert_eq!(drops(gateway, "drops", "too-big")?, 0);
    }
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

#[test]
fn fragments_after_sealing_are_put_together_before_opening() -> Result<()> {
    for (outer, encapsulation) in [
        (Family::V4, Encapsulation::None),
        (Family::V6, Encapsulation::Udp),
    ] {
        let spec = TunnelSpec {
            outer,
            encapsulation,
            fragmentation: "after",
            ..routed(NARROW)
        };
        let Some(mut bed) = Testbed::for_test(spec)? else {
            return Ok(());
        };
        wait_for_neighbours(&bed)?;
        let _ = ping_once(&bed, Family::V6, 1400, true)?;
        assert!(wait_until(Duration::from_secs(5), || {
            tunnel(&bed.west).is_ok_and(|tunnel| tunnel["path_mtu"] == NARROW)
        }));
        let capture = bed.capture(128)?;
        for _ in 0..3 {
            assert!(is_answered(&ping_once(&bed, Family::V4, 1400, false)?));
        }
        let frames = capture.frames()?;
        let fragments = frames.iter().filter(|frame| is_fragment(&frame.bytes));
        assert_eq!(fragments.count(), 12, "two of each request and answer");
        let most = frames.iter().map(|frame| frame.length).max();
        assert!(most.is_some_and(|most| most <= u32::from(NARROW) + 14));
        for gateway in [&bed.west, &bed.east] {
            let shown = gateway.show("drops")?;
            assert!(drops(gateway, "asides", "cut-after")? >= 3, "{shown:#}");
            assert_eq!(drops(gateway, "asides", "cut-before")?, 0);
            // DPDK's AF_PACKET driver has the kernel put IPv4 together.
            if outer == Family::V6 {
                assert!(drops(gateway, "asides", "reassembled")? >= 6, "{shown:#}");
            }
        }
        assert_balanced(&bed)?;
        assert_clean_stop(&mut bed)?;
    }
    Ok(())
}
