//! The policies of the two gateways: one mirrors the other.

use std::fmt::Write;

/// Which gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Site {
    West,
    East,
}

/// One tunnel with one endpoint set, as west sees it.
pub(crate) struct TunnelSpec {
    pub(crate) name: &'static str,
    pub(crate) west: &'static [&'static str],
    pub(crate) east: &'static [&'static str],
    west_outer: &'static str,
    east_outer: &'static str,
    udp: bool,
    esn: bool,
    window: u32,
    /// SPI from west to east; the way back is the next one.
    pub(crate) spi: u32,
    pub(crate) west_only: bool,
    /// Lines for `[[tunnel]]`.
    lifetime: &'static str,
}

const V4: (&str, &str) = ("192.0.2.1", "192.0.2.2");
const V6: (&str, &str) = ("2001:db8::1", "2001:db8::2");

const fn tunnel(
    name: &'static str,
    east: &'static [&'static str],
    outer: (&'static str, &'static str),
    udp: bool,
    spi: u32,
) -> TunnelSpec {
    TunnelSpec {
        name,
        west: &["10.1.0.0/16", "fd00:1::/64"],
        east,
        west_outer: outer.0,
        east_outer: outer.1,
        udp,
        esn: true,
        window: 1024,
        spi,
        west_only: false,
        lifetime: "",
    }
}

/// The four kinds of encapsulation, by the tunnels that have them.
pub(crate) const KINDS: [&str; 4] = ["plain4", "udp4", "plain6", "udp6"];

pub(crate) const TUNNELS: &[TunnelSpec] = &[
    tunnel(
        "plain4",
        &["10.2.0.0/16", "172.16.2.0/24", "fd00:2::/64"],
        V4,
        false,
        0x1111_0002,
    ),
    tunnel(
        "udp4",
        &["10.3.0.0/16", "fd00:3::/64"],
        V4,
        true,
        0x2222_0004,
    ),
    tunnel(
        "plain6",
        &["10.4.0.0/16", "fd00:4::/64"],
        V6,
        false,
        0x4444_0008,
    ),
    tunnel(
        "udp6",
        &["10.5.0.0/16", "fd00:5::/64"],
        V6,
        true,
        0x8888_0010,
    ),
    TunnelSpec {
        esn: false,
        window: 64,
        ..tunnel("short", &["10.6.0.0/16"], V4, false, 0x0f0f_0020)
    },
    tunnel("down", &["10.7.0.0/16"], V4, false, 0xf0f0_0040),
    TunnelSpec {
        west_only: true,
        ..tunnel(
            "lost",
            &["10.8.0.0/16"],
            ("192.0.2.1", "203.0.113.9"),
            false,
            0x3c3c_0080,
        )
    },
    TunnelSpec {
        west_only: true,
        ..tunnel(
            "silent",
            &["10.9.0.0/16"],
            ("192.0.2.1", "192.0.2.77"),
            false,
            0xc3c3_0100,
        )
    },
    TunnelSpec {
        lifetime: "lifetime_packets = 10",
        ..tunnel("brief", &["10.10.0.0/16"], V4, false, 0x5a5a_0200)
    },
];

/// Source and destination of inner packets of a tunnel, in one family.
pub(crate) fn hosts(tunnel: &str, v6: bool) -> (String, String) {
    let at = TUNNELS.iter().position(|spec| spec.name == tunnel).unwrap() + 2;
    if v6 {
        ("fd00:1::5".into(), format!("fd00:{at}::10"))
    } else {
        ("10.1.0.5".into(), format!("10.{at}.0.10"))
    }
}

/// What variables the policies' keys are in.
pub(crate) fn keys() -> Vec<(String, String)> {
    (0..2 * TUNNELS.len())
        .map(|at| {
            let len = [20, 28, 36][at / 2 % 3];
            let key: String = (0..len)
                .map(|byte| format!("{:02x}", (at * 37 + byte * 11 + 5) % 256))
                .collect();
            (format!("KEY_{at}"), key)
        })
        .collect()
}

/// The policy of one gateway.
pub(crate) fn text(site: Site) -> String {
    let (us, them) = match site {
        Site::West => (1, 2),
        Site::East => (2, 1),
    };
    // East's protected port takes less than what fits the tunnel.
    let mtu = if site == Site::West { 1500 } else { 1280 };
    let mut text = format!(
        r#"[gateway]
name = "hostile"
workers = [0]
state_dir = "/var/lib/simplon/hostile"
control_socket = "/run/simplon/hostile.sock"
lab_keys = true

[[port]]
name = "lan"
device = "net_null0"
side = "protected"
pair = "wan"
addresses = ["10.{us}.0.1/24", "fd00:{us}::1/64"]
mtu = {mtu}

[[port]]
name = "wan"
device = "net_null1"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.{us}/24", "2001:db8::{us}/64"]
mtu = 1500
"#
    );
    for (address, port) in [
        (format!("10.{us}.0.10"), "lan"),
        (format!("fd00:{us}::10"), "lan"),
        (format!("192.0.2.{them}"), "wan"),
        (format!("2001:db8::{them}"), "wan"),
    ] {
        let table = format!(
            "\n[[neighbour]]\naddress = \"{address}\"\nmac = \"02:00:00:00:00:0{them}\"\nport = \"{port}\"\n"
        );
        text.push_str(&table);
    }
    // Of east's networks the first is on the link, others are behind a router, and 172.16.2.0/24 is nowhere.
    for at in (3..=7).chain([10]) {
        for (to, via) in [
            (format!("10.{at}.0.0/16"), format!("10.{us}.0.10")),
            (format!("fd00:{at}::/64"), format!("fd00:{us}::10")),
        ] {
            let table = format!("\n[[route]]\nto = \"{to}\"\nvia = \"{via}\"\nport = \"lan\"\n");
            text.push_str(&table);
        }
    }
    for (at, spec) in TUNNELS.iter().enumerate() {
        if site == Site::West || !spec.west_only {
            write_tunnel(&mut text, site, at, spec);
        }
    }
    text
}

fn write_tunnel(text: &mut String, site: Site, at: usize, spec: &TunnelSpec) {
    let cipher = ["aes-128-gcm", "aes-192-gcm", "aes-256-gcm"][at % 3];
    let there = (spec.spi, 2 * at);
    let back = (spec.spi + 1, 2 * at + 1);
    let (nets, outer, out, into) = match site {
        Site::West => (
            (spec.west, spec.east),
            (spec.west_outer, spec.east_outer),
            there,
            back,
        ),
        Site::East => (
            (spec.east, spec.west),
            (spec.east_outer, spec.west_outer),
            back,
            there,
        ),
    };
    let encapsulation = if spec.udp { "udp" } else { "none" };
    let (name, lifetime, esn, window) = (spec.name, spec.lifetime, spec.esn, spec.window);
    write!(
        text,
        r#"
[[tunnel]]
name = "{name}"
local_networks = {:?}
remote_networks = {:?}
{lifetime}

[[tunnel.endpoints]]
local = "{}"
remote = "{}"
encapsulation = "{encapsulation}"

[tunnel.endpoints.outbound]
spi = {}
cipher = "{cipher}"
key = {{ env = "KEY_{}" }}
esn = {esn}

[tunnel.endpoints.inbound]
spi = {}
cipher = "{cipher}"
key = {{ env = "KEY_{}" }}
esn = {esn}
window = {window}
"#,
        nets.0, nets.1, outer.0, outer.1, out.0, out.1, into.0, into.1
    )
    .unwrap();
}
