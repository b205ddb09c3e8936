//! A plain Linux router instead of the bridge between the gateways: a subnet of two addresses on each side of it.

use std::net::IpAddr;

use super::spec::{Family, Site};
use super::{Result, Testbed, run};

/// The router's address towards a site.
pub fn address(site: Site, family: Family) -> IpAddr {
    let last = match site {
        Site::West => 0,
        Site::East => 3,
    };
    match family {
        Family::V4 => IpAddr::from([192, 0, 2, last]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)]),
    }
}

/// What stands behind the slash of a gateway's outer address where there is a router.
pub fn prefix_len(family: Family) -> u8 {
    match family {
        Family::V4 => 31,
        Family::V6 => 127,
    }
}

/// The routes of a gateway to the other one.
pub(super) fn routes_text(site: Site) -> String {
    let route = |family| {
        format!(
            "\n[[route]]\nto = \"{}\"\nvia = \"{}\"\nport = \"wan\"\n",
            site.other().wan_address(family),
            address(site, family),
        )
    };
    [Family::V4, Family::V6].map(route).concat()
}

/// Makes the wire a router.
pub(super) fn build(bed: &Testbed) -> Result<()> {
    for (site, interface) in [(Site::West, "w1"), (Site::East, "w2")] {
        let script = format!(
            "echo 0 > /proc/sys/net/ipv6/conf/{interface}/disable_ipv6; echo 0 > /proc/sys/net/ipv4/conf/{interface}/rp_filter"
        );
        bed.wire.run(&["sh", "-c", &script])?;
        // The kernel asks for no neighbour of what it forwards without one.
        let ip = ["ip", "-n", bed.wire.name(), "address", "add", "fe80::1/64"];
        run(&[&ip[..], &["dev", interface, "nodad"]].concat())?;
        for family in [Family::V4, Family::V6] {
            let prefix = format!("{}/{}", address(site, family), prefix_len(family));
            let ip = ["ip", "-n", bed.wire.name(), "address", "add", &prefix];
            let nodad: &[&str] = if family == Family::V6 {
                &["nodad"]
            } else {
                &[]
            };
            run(&[&ip[..], &["dev", interface], nodad].concat())?;
        }
    }
    let forward =
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    bed.wire.run(&["sh", "-c", forward]).map(drop)
}
