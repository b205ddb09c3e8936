//! A port that is a bond of two links: traffic goes on when one of them fails, and when that is back and the other fails.
//!
//! The members are TAP interfaces, whose driver knows whether its link is up; a bridge joins them to the host's veth.
#![cfg(feature = "dpdk")]

mod testbed;

use std::time::Duration;

use testbed::{
    Netns, Ping, READY_TIMEOUT, Result, Site, Testbed, TunnelSpec, assert_balanced,
    assert_clean_stop, wait_until,
};

/// Takes a member's link up or down.
fn set(netns: &Netns, member: &str, state: &str) -> Result<()> {
    netns.run(&["ip", "link", "set", member, state]).map(drop)
}

/// The driver gives a TAP interface the port's MAC address when it is the active one, and a bridge then takes what is for
/// the port for its own.
fn disguise(netns: &Netns) -> Result<()> {
    for (member, mac) in [
        ("dtap0", "02:00:00:00:0d:00"),
        ("dtap1", "02:00:00:00:0d:01"),
    ] {
        netns.run(&["ip", "link", "set", member, "address", mac])?;
    }
    Ok(())
}

/// Both hosts reach each other, tried for twenty seconds: while the driver changes members it changes their MAC addresses too.
fn assert_passes(bed: &Testbed) -> Result<()> {
    let passes = wait_until(Duration::from_secs(20), || {
        let _ = disguise(bed.west.netns());
        [Site::West, Site::East].into_iter().all(|from| {
            let ping = Ping {
                from,
                ..Ping::default()
            };
            let result = bed.ping(&ping);
            result.is_ok_and(|result| result.received == ping.count)
        })
    });
    assert!(passes, "{:#}", bed.west.show("ports")?);
    Ok(())
}

#[test]
fn bond_goes_on_with_the_member_that_has_a_link() -> Result<()> {
    let spec = TunnelSpec {
        host: true,
        static_neighbours: false,
        ..TunnelSpec::default()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    bed.west.stop()?;
    let policy = std::fs::read_to_string(bed.west.policy())?;
    let bonded: Vec<&str> = policy
        .lines()
        .map(|line| match line.starts_with("device = \"net_af_packet0,") {
            true => {
                "device = \"net_bonding0,mode=1\"\nmembers = [\"net_tap0,iface=dtap0\", \"net_tap1,iface=dtap1\"]"
            }
            false => line,
        })
        .collect();
    std::fs::write(bed.west.policy(), bonded.join("\n"))?;
    bed.west.start()?;
    bed.west.wait_ready(READY_TIMEOUT)?;
    let netns = bed.west.netns().clone();
    netns.run(&[
        "sh",
        "-c",
        "
        ip link add brl type bridge stp_state 0 mcast_snooping 0 forward_delay 0
        echo 1 > /proc/sys/net/ipv4/conf/brl/arp_ignore
        for link in brl dtap0 dtap1; do echo 1 > /proc/sys/net/ipv6/conf/$link/disable_ipv6; done
        for link in lan0 dtap0 dtap1; do ip link set $link master brl; done
        ip link set brl up",
    ])?;
    let shown = bed.west.show("ports")?;
    let bond = &shown["ports"][0];
    assert_eq!(
        (&bond["driver"], &bond["link"]),
        (&"net_bonding".into(), &"up".into())
    );
    assert_eq!(bond["members"].as_array().map(Vec::len), Some(2));

    assert_passes(&bed)?;
    set(&netns, "dtap0", "down")?;
    assert_passes(&bed)?;
    let shown = bed.west.show("ports")?;
    assert_eq!(shown["ports"][0]["link"], "up", "one link is enough");
    set(&netns, "dtap0", "up")?;
    set(&netns, "dtap1", "down")?;
    assert_passes(&bed)?;
    set(&netns, "dtap0", "down")?;
    let is_down = wait_until(Duration::from_secs(5), || {
        let shown = bed.west.show("ports").unwrap_or_default();
        shown["ports"][0]["link"] == "down"
    });
    assert!(is_down, "without any link it is down");
    set(&netns, "dtap0", "up")?;
    assert_passes(&bed)?;
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}
