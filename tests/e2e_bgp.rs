//! Routes of a routing daemon: BGP over the twins, whose routes carry what comes out of the tunnel, and the tunnel itself.
#![cfg(feature = "dpdk")]

mod testbed;

use std::time::Duration;

use testbed::{
    Bgp, BgpSpec, Family, Netns, Ping, Result, Site, Testbed, TunnelSpec, assert_balanced,
    assert_clean_stop, run, wait_until,
};

/// Longest time from a cause to its effect: several times what the daemons' timers come to.
const CONVERGED: Duration = Duration::from_secs(30);

fn twins() -> TunnelSpec {
    TunnelSpec {
        host: true,
        ..TunnelSpec::default()
    }
}

/// Whether an echo request from host A to `address` is answered, or is not, as `wanted`; tried until it is so.
fn becomes(bed: &Testbed, address: &str, wanted: bool) -> bool {
    wait_until(CONVERGED, || {
        let ping = ["ping", "-n", "-c", "1", "-W", "1", address];
        bed.host_a.run(&ping).is_ok() == wanted
    })
}

fn set_link(netns: &Netns, interface: &str, state: &str) -> Result<()> {
    run(&["ip", "-n", netns.name(), "link", "set", interface, state]).map(drop)
}

#[test]
fn network_behind_a_router_is_reached_while_the_router_announces_it() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(twins())? else {
        return Ok(());
    };
    // Host B is a router of the east's protected side.
    bed.host_b
        .run(&["ip", "address", "add", "10.2.9.1/24", "dev", "lo"])?;
    let router = Bgp::start(
        &bed.host_b,
        bed.dir(),
        &BgpSpec {
            asn: 65003,
            peers: &[("10.2.0.1", 65002)],
            networks: &["10.2.9.0/24"],
        },
    )?;
    assert!(becomes(&bed, "10.2.9.1", false));
    assert!(bed.east.dropped_for("inbound", "no-route")? > 0);
    let gateway = Bgp::start(
        bed.east.netns(),
        bed.dir(),
        &BgpSpec {
            asn: 65002,
            peers: &[("10.2.0.10", 65003)],
            networks: &[],
        },
    )?;
    let said = || format!("{}\n{}", router.log(), gateway.log());
    assert!(becomes(&bed, "10.2.9.1", true), "{}", said());
    let shown = bed
        .east
        .netns()
        .run(&["ip", "route", "show", "10.2.9.0/24"])?;
    assert!(shown.contains("proto bgp"), "{shown}");
    assert!(shown.contains("nhid"), "by a next hop object: {shown}");
    // Withdrawn, and announced again.
    let no_route = bed.east.dropped_for("inbound", "no-route")?;
    router.announce(65003, "10.2.9.0/24", false)?;
    assert!(becomes(&bed, "10.2.9.1", false), "{}", said());
    assert!(bed.east.dropped_for("inbound", "no-route")? > no_route);
    router.announce(65003, "10.2.9.0/24", true)?;
    assert!(becomes(&bed, "10.2.9.1", true), "{}", said());
    // The router is gone without a word.
    drop(router);
    assert!(becomes(&bed, "10.2.9.1", false), "{}", gateway.log());
    let ping = Ping::default();
    assert_eq!(bed.ping(&ping)?.received, ping.count, "the rest goes on");
    drop(gateway);
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

/// An address of the east gateway's that the west one knows of by BGP alone.
const LOOPBACK: &str = "198.18.0.2";

/// Has the tunnel of west end at [`LOOPBACK`], which east has too.
fn move_peer(bed: &mut Testbed) -> Result<()> {
    let own = Site::East.wan_address(Family::V4).to_string();
    bed.west.stop()?;
    bed.east.stop()?;
    let policy = std::fs::read_to_string(bed.west.policy())?;
    let moved = policy.replace(
        &format!("remote = \"{own}\""),
        &format!("remote = \"{LOOPBACK}\""),
    );
    assert_ne!(policy, moved);
    std::fs::write(bed.west.policy(), moved)?;
    let policy = std::fs::read_to_string(bed.east.policy())?;
    let moved = policy
        .replace(
            &format!("local = \"{own}\""),
            &format!("local = \"{LOOPBACK}\""),
        )
        .replace(
            &format!("addresses = [\"{own}/24\""),
            &format!("addresses = [\"{own}/24\", \"{LOOPBACK}/32\""),
        );
    assert!(moved.contains(&format!("{LOOPBACK}/32")), "{policy}");
    std::fs::write(bed.east.policy(), moved)?;
    bed.start_gateways()
}

#[test]
fn tunnel_follows_its_peer_from_one_path_to_another() -> Result<()> {
    let spec = twins();
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    move_peer(&mut bed)?;
    // Two routers on the wire, each with a BGP session to west and a way to east.
    let routers = [("192.0.2.11", 65011), ("192.0.2.12", 65012)];
    let mut speakers = Vec::new();
    for (address, asn) in routers {
        let router = bed.extra_namespace(&format!("r{asn}"))?;
        let link = format!("r{asn}");
        run(&[
            "ip",
            "link",
            "add",
            &link,
            "netns",
            bed.wire.name(),
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            router.name(),
        ])?;
        run(&[
            "ip",
            "-n",
            bed.wire.name(),
            "link",
            "set",
            &link,
            "master",
            "br0",
            "up",
        ])?;
        set_link(&router, "eth0", "up")?;
        router.run(&[
            "ip",
            "address",
            "add",
            &format!("{address}/24"),
            "dev",
            "eth0",
        ])?;
        router.run(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; for f in all eth0; do echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/$f/send_redirects; done"])?;
        router.run(&[
            "ip",
            "route",
            "add",
            &format!("{LOOPBACK}/32"),
            "via",
            "192.0.2.2",
        ])?;
        let network = format!("{LOOPBACK}/32");
        let spec = BgpSpec {
            asn,
            peers: &[("192.0.2.1", 65001)],
            networks: &[&network],
        };
        speakers.push((router.clone(), Bgp::start(&router, bed.dir(), &spec)?));
    }
    let far = Site::East.host_address(Family::V4).to_string();
    assert!(becomes(&bed, &far, false));
    let west = Bgp::start(
        bed.west.netns(),
        bed.dir(),
        &BgpSpec {
            asn: 65001,
            peers: &routers,
            networks: &[],
        },
    )?;
    let state = || {
        let routes = bed.west.netns().run(&["ip", "route"]).unwrap_or_default();
        format!("{routes}\n{}\n{:?}", west.log(), bed.west.show("drops"))
    };
    assert!(becomes(&bed, &far, true), "{}", state());
    let both = || {
        let routes = bed.west.netns().run(&["ip", "route", "show", LOOPBACK]);
        let routes = routes.unwrap_or_default();
        routers.iter().all(|(address, _)| routes.contains(address))
    };
    assert!(wait_until(CONVERGED, both), "{}", state());
    // Whichever of the two it goes by: with one gone it goes by the other.
    for (router, _) in &speakers {
        set_link(router, "eth0", "down")?;
        assert!(wait_until(CONVERGED, || !both()), "{}", state());
        assert!(becomes(&bed, &far, true), "{}", state());
        set_link(router, "eth0", "up")?;
        let network = format!("{LOOPBACK}/32");
        router.run(&["ip", "route", "replace", &network, "via", "192.0.2.2"])?;
        assert!(wait_until(CONVERGED, both), "{}", state());
    }
    // Nobody announces it any more.
    let no_route = bed.west.dropped_for("outbound", "no-route")?;
    for ((_, asn), (_, speaker)) in routers.iter().zip(&speakers) {
        speaker.announce(*asn, &format!("{LOOPBACK}/32"), false)?;
    }
    assert!(becomes(&bed, &far, false), "{}", state());
    assert!(
        bed.west.dropped_for("outbound", "no-route")? > no_route,
        "{}",
        state()
    );
    drop((speakers, west));
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}
