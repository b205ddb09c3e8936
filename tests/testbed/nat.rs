//! A NAT where otherwise the wire is: the kernel of its namespace translates what the west gateway sends.
//!
//! ```text
//! west            NAT             east
//! wan0 ─────── w1     w2 ─────── wan0
//! 192.0.2.1   192.0.2.101   192.0.2.2
//! ```
//!
//! Towards the west it answers for the east's address, so that the west knows nothing of it. The east knows one of its
//! outside addresses, and no port.

use std::net::{IpAddr, SocketAddr};

use super::netns::run;
use super::spec::{Family, Site};
use super::{Result, Testbed};

/// What there is to choose.
#[derive(Clone, Debug)]
pub struct Nat {
    /// Seconds after which the west sends a keepalive.
    pub keepalive_s: u16,
}

/// What the west gateway's ESP looks like outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outside {
    address: u8,
    port: u16,
}

impl Outside {
    /// What it looks like at first.
    pub const FIRST: Self = Self {
        address: 101,
        port: 40_001,
    };
    /// With the same address.
    pub const OTHER_PORT: Self = Self {
        port: 40_002,
        ..Self::FIRST
    };
    /// With none of both the same.
    pub const OTHER_ADDRESS: Self = Self {
        address: 102,
        port: 40_003,
    };

    /// Address and port.
    pub fn end(self, family: Family) -> SocketAddr {
        let address = match family {
            Family::V4 => IpAddr::from([192, 0, 2, self.address]),
            Family::V6 => {
                let last = u16::from(self.address);
                IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])
            }
        };
        SocketAddr::new(address, self.port)
    }
}

impl Nat {
    /// The peer's address as the policy of `site` has it.
    pub(super) fn remote(&self, site: Site, family: Family) -> IpAddr {
        match site {
            Site::West => Site::East.wan_address(family),
            Site::East => Outside::FIRST.end(family).ip(),
        }
    }

    /// What else that policy says of its endpoints.
    pub(super) fn endpoint_lines(&self, site: Site) -> String {
        match site {
            Site::West => format!("nat_keepalive = {}\npeer_moves = false\n", self.keepalive_s),
            Site::East => String::new(),
        }
    }

    /// Makes the wire's namespace a NAT.
    pub(super) fn build(&self, bed: &Testbed) -> Result<()> {
        bed.wire.run(&[
            "sh",
            "-c",
            "cd /proc/sys/net
            echo 1 > ipv4/ip_forward
            echo 1 > ipv4/conf/w1/proxy_arp
            for at in w1 w2; do
                # Neighbours ask from link-local addresses, and are answered from such.
                echo 0 > ipv6/conf/$at/addr_gen_mode
                echo 0 > ipv6/conf/$at/disable_ipv6
                echo 1 > ipv6/conf/$at/forwarding
            done
            echo 1 > ipv6/conf/all/forwarding
            echo 1 > ipv6/conf/w1/proxy_ndp",
        ])?;
        for family in [Family::V4, Family::V6] {
            for (site, end) in [(Site::West, "w1"), (Site::East, "w2")] {
                let address = site.wan_address(family).to_string();
                let ip = |words: &[&str]| {
                    let all = ["ip", "-n", bed.wire.name(), family.ip_option()];
                    run(&[&all[..], words, &["dev", end]].concat()).map(drop)
                };
                ip(&["route", "add", &address])?;
                let mac = site.wan_mac();
                let found = ["neighbour", "replace", &address, "lladdr", &mac];
                ip(&[&found[..], &["nud", "permanent"]].concat())?;
            }
        }
        let east = Site::East.wan_address(Family::V6).to_string();
        let answer_for = ["neighbour", "add", "proxy", &east, "dev", "w1"];
        run(&[&["ip", "-n", bed.wire.name(), "-6"][..], &answer_for].concat())?;
        bed.look_outside_like(Outside::FIRST)
    }
}

impl Testbed {
    /// Has the NAT forget all it knows, and give the west's ESP another address and port from now on.
    ///
    /// # Errors
    /// What `nft`, `conntrack` or `ip` said.
    pub fn look_outside_like(&self, outside: Outside) -> Result<()> {
        // What comes for a port that nothing is behind is dropped: taken for traffic of its own, it would keep that port.
        let rules = format!(
            "flush ruleset
            table inet nat {{
                chain unasked {{
                    type filter hook input priority filter;
                    iifname w2 meta l4proto udp drop
                }}
                chain out {{
                    type nat hook postrouting priority srcnat;
                    oifname w2 udp sport 4500 masquerade to :{}
                    oifname w2 masquerade
                }}
            }}",
            outside.port
        );
        self.wire.run(&["nft", &rules])?;
        for family in [Family::V4, Family::V6] {
            let address = outside.end(family).ip();
            let prefix = format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
            let ip = |words: &[&str]| {
                let all = ["ip", "-n", self.wire.name(), family.ip_option(), "address"];
                run(&[&all[..], words, &["dev", "w2"]].concat())
            };
            ip(&[&["replace", &prefix][..], family.no_dad()].concat())?;
            // The new one is there first, for with the last address an interface loses its routes.
            for other in [Outside::FIRST, Outside::OTHER_ADDRESS] {
                let other = other.end(family).ip();
                if other != address {
                    let _ = ip(&["delete", &other.to_string()]);
                }
            }
        }
        self.wire.run(&["conntrack", "-F"]).map(drop)
    }
}
