//! Ordered policies: what is read of them, what is said of mistakes, and that what is compiled does what a walk over the list
//! would.

use ipnet::IpNet;
use proptest::prelude::*;
use simplon::control::policies::PoliciesReport;
use simplon::ids::TunnelIndex;
use simplon::ipsec::spd::SpdAction;
use simplon::ipsec::traffic::{AnyTraffic, OPAQUE, Traffic};
use simplon::policy::Policy;
use simplon::policy::compile::{Topology, compile};
use simplon::policy::model::{AddressRange, EntryAction, MacAddr, RuleAction};

use super::{BASE, Site};

fn entry(lines: &str) -> String {
    format!("\n[[policy]]\nname = \"only\"\n{lines}\n")
}

#[track_caller]
fn check(lines: &str, line: &str, parts: &[&str]) {
    let site = Site::new();
    let text = BASE.to_owned() + lines;
    let errors = site.errors(&text);
    let shown = site.render(&errors, &text);
    let [error] = errors.as_slice() else {
        panic!("not one error: {shown}");
    };
    let found = text.lines().nth(error.line() - 1).unwrap();
    assert!(
        found.contains(line),
        "{line:?} is not in {found:?}\n{shown}"
    );
    for part in parts {
        assert!(shown.contains(part), "{part:?} in\n{shown}");
    }
}

#[test]
fn policies_are_read_in_order_with_all_their_selectors() {
    let text = BASE.to_owned()
        + r#"
[[policy]]
name = "web"
action = "protect"
tunnel = "first"
local = ["10.1.0.0/16", "10.7.0.5-10.7.0.9"]
remote = "any"
protocol = ["tcp", 132]
remote_ports = [80, "8000-8080", "opaque"]

[[policy]]
name = "ping"
action = "bypass"
local = "any"
remote = "2001:db8:7::/48"
protocol = "icmpv6"
icmp = ["128", "1/0-4"]
"#;
    let policy = Site::new().parse(&text).ok().unwrap();
    let [web, ping] = policy.entries.as_slice() else {
        panic!("{:?}", policy.entries);
    };
    assert_eq!(web.action, EntryAction::Protect(TunnelIndex(0)));
    assert_eq!(web.local[1], AddressRange::V4((0x0a07_0005, 0x0a07_0009)));
    assert_eq!(web.remote.len(), 2, "both families");
    assert_eq!(web.upper.len(), 6);
    let ports: Vec<_> = web.upper.iter().map(|upper| upper.remote_port).collect();
    assert_eq!(ports[..3], [(80, 80), (8000, 8080), (OPAQUE, OPAQUE)]);
    assert_eq!(web.upper[3].protocol, (132, 132));
    assert_eq!(web.upper[0].local_port, (0, OPAQUE));
    assert_eq!((web.boxes_v4().count(), web.boxes_v6().count()), (12, 0));
    assert_eq!(ping.action, EntryAction::Bypass);
    let types: Vec<_> = ping.upper.iter().map(|upper| upper.local_port).collect();
    assert_eq!(types, [(0x8000, 0x80ff), (0x0100, 0x0104)]);
    assert_eq!((ping.boxes_v4().count(), ping.boxes_v6().count()), (0, 2));
}

#[test]
fn every_mistake_is_told_with_what_to_write() {
    let any = "local = \"any\"\nremote = \"any\"\n";
    let bypass = format!("action = \"bypass\"\n{any}");
    for (lines, line, parts) in [
        (
            format!("action = \"allow\"\n{any}"),
            "action",
            &[
                "\"allow\" is not",
                "\"protect\" or \"bypass\" or \"discard\"",
            ][..],
        ),
        (
            format!("action = \"protect\"\ntunnel = \"frist\"\n{any}"),
            "frist",
            &["no tunnel is called \"frist\"", "did you mean \"first\"?"],
        ),
        (
            format!("action = \"protect\"\n{any}"),
            "[[policy]]",
            &["lacks tunnel"],
        ),
        (
            format!("tunnel = \"first\"\n{bypass}"),
            "tunnel",
            &["a policy that does not protect names no tunnel"],
        ),
        (
            "action = \"bypass\"\nlocal = \"10.1.0.9-10.1.0.5\"\nremote = \"any\"".into(),
            "10.1.0.9",
            &["is no range of addresses", "the lower one first"],
        ),
        (
            "action = \"bypass\"\nlocal = \"10.1.0.0/16\"\nremote = \"fd00::/16\"".into(),
            "[[policy]]",
            &["no family in common"],
        ),
        (
            format!("{bypass}protocol = \"tpc\""),
            "tpc",
            &["did you mean \"tcp\"?"],
        ),
        (
            format!("{bypass}protocol = 256"),
            "256",
            &["not from 0 to 255"],
        ),
        (
            format!("{bypass}remote_ports = 80"),
            "remote_ports",
            &["is for protocols that have ports", "protocol = \"tcp\""],
        ),
        (
            format!("{bypass}protocol = \"udp\"\nlocal_ports = [\"90-80\"]"),
            "90-80",
            &["is no port or range of ports"],
        ),
        (
            format!("{bypass}protocol = \"udp\"\nicmp = 8"),
            "icmp",
            &["is for types and codes of ICMP"],
        ),
        (
            format!("{bypass}protocol = \"icmp\"\nicmp = \"8/x\""),
            "8/x",
            &["is no type and code of ICMP"],
        ),
        (
            format!("{bypass}protocol = []"),
            "protocol",
            &["leave the key out for any"],
        ),
        (
            format!("{bypass}ports = 80"),
            "ports",
            &["has no key \"ports\""],
        ),
    ] {
        check(&entry(&lines), line, parts);
    }
    let twice = format!(
        "{}{}",
        entry(&bypass),
        entry(&bypass).replace("\"only\"", "\"first\"")
    );
    check(
        &twice,
        "name = \"first\"",
        &["a tunnel and a policy are called \"first\""],
    );
}

#[test]
fn policies_that_overlap_in_too_many_ways_are_refused_before_they_run() {
    let mut text = String::new();
    for at in 0..100 {
        text += &entry(&format!(
            "action = \"discard\"\nlocal = \"any\"\nremote = \"10.0.0.{at}-10.0.0.{}\"",
            255 - at
        ))
        .replace("\"only\"", &format!("\"p{at}\""));
    }
    check(
        &text,
        "[[policy]]",
        &["with policy \"p64\"", "overlap in more than 64 ways"],
    );
}

/// Few addresses, so that policies meet: 10.1.0.0/28 and around.
fn address() -> impl Strategy<Value = u32> {
    (0..16u32).prop_map(|low| 0x0a01_0000 + low)
}

fn addresses() -> impl Strategy<Value = String> {
    let text = |bits: u32| std::net::Ipv4Addr::from_bits(bits).to_string();
    prop_oneof![
        Just("any".to_owned()),
        address().prop_map(text),
        (address(), address()).prop_map(move |(a, b)| format!(
            "{}-{}",
            text(a.min(b)),
            text(a.max(b))
        )),
        (address(), 24..=32u8).prop_map(|(bits, len)| {
            let net = ipnet::Ipv4Net::new_assert(bits.into(), len).trunc();
            net.to_string()
        }),
    ]
}

fn upper() -> impl Strategy<Value = String> {
    let ports = || {
        prop_oneof![
            Just(String::new()),
            (0..6u16).prop_map(|port| port.to_string()),
            (0..6u16, 0..6u16).prop_map(|(a, b)| format!("\"{}-{}\"", a.min(b), a.max(b))),
            Just("\"opaque\"".to_owned()),
        ]
    };
    let with = |key: &str, value: String| match value.as_str() {
        "" => String::new(),
        _ => format!("{key} = {value}\n"),
    };
    prop_oneof![
        Just(String::new()),
        Just("protocol = 47\n".to_owned()),
        (0..4u8, 0..3u8).prop_map(|(kind, code)| {
            format!(
                "protocol = \"icmp\"\nicmp = [\"{kind}\", \"{}/{code}\"]\n",
                kind + 1
            )
        }),
        (ports(), ports()).prop_map(move |(local, remote)| {
            let (local, remote) = (with("local_ports", local), with("remote_ports", remote));
            format!("protocol = [\"tcp\", \"udp\"]\n{local}{remote}")
        }),
    ]
}

fn entries() -> impl Strategy<Value = String> {
    let action = prop_oneof![
        Just("action = \"bypass\"\n"),
        Just("action = \"discard\"\n"),
        Just("action = \"protect\"\ntunnel = \"first\"\n"),
        Just("action = \"protect\"\ntunnel = \"second\"\n"),
    ];
    let one =
        (action, addresses(), addresses(), upper()).prop_map(|(action, local, remote, upper)| {
            format!("{action}local = \"{local}\"\nremote = \"{remote}\"\n{upper}")
        });
    prop::collection::vec(one, 0..12).prop_map(|entries| {
        let named = |(at, lines): (usize, String)| format!("[[policy]]\nname = \"p{at}\"\n{lines}");
        entries.into_iter().enumerate().map(named).collect()
    })
}

prop_compose! {
    fn traffic()(
        local in address(),
        remote in address(),
        far in any::<bool>(),
        protocol in prop_oneof![Just(1u8), Just(6), Just(17), Just(47)],
        ports in [0..6u16, 0..6u16],
        kind in 0..6u8,
        code in 0..4u8,
        is_fragment in prop::bool::weighted(0.2),
    ) -> Traffic<u32> {
        // The base policy's tunnels lead to 10.2.0.0/16 and 10.3.0.0/16.
        let remote = if far { remote + 0x0001_0000 } else { remote };
        let [local_port, remote_port] = match protocol {
            6 | 17 if !is_fragment => ports.map(u32::from),
            1 if !is_fragment => [u32::from(kind) << 8 | u32::from(code); 2],
            _ => [OPAQUE; 2],
        };
        Traffic { local, remote, local_port, remote_port, protocol }
    }
}

/// What is done, as a reader of the file would find it out: one policy after the other, and then the most specific prefixes.
#[derive(PartialEq, Eq, Debug)]
enum Done {
    By(TunnelIndex),
    Bypass,
    Discard,
    Nothing,
}

fn walk(policy: &Policy, traffic: &Traffic<u32>) -> Done {
    let holds = |ranges: &[AddressRange], address: u32| {
        ranges.iter().any(|range| match range {
            AddressRange::V4((first, last)) => (*first..=*last).contains(&address),
            AddressRange::V6(_) => false,
        })
    };
    for entry in &policy.entries {
        let fits = holds(&entry.local, traffic.local)
            && holds(&entry.remote, traffic.remote)
            && entry.upper.iter().any(|upper| {
                (upper.protocol.0..=upper.protocol.1).contains(&traffic.protocol)
                    && (upper.local_port.0..=upper.local_port.1).contains(&traffic.local_port)
                    && (upper.remote_port.0..=upper.remote_port.1).contains(&traffic.remote_port)
            });
        if fits {
            return match entry.action {
                EntryAction::Protect(tunnel) => Done::By(tunnel),
                EntryAction::Bypass => Done::Bypass,
                EntryAction::Discard => Done::Discard,
            };
        }
    }
    let mut best = (None, Done::Nothing);
    let mut see = |locals: &[IpNet], remotes: &[IpNet], done: &dyn Fn() -> Done| {
        for local in locals {
            for remote in remotes {
                let [here, there] =
                    [traffic.local, traffic.remote].map(std::net::Ipv4Addr::from_bits);
                let long = Some(u16::from(local.prefix_len()) + u16::from(remote.prefix_len()));
                if local.contains(&std::net::IpAddr::V4(here))
                    && remote.contains(&std::net::IpAddr::V4(there))
                    && long > best.0
                {
                    best = (long, done());
                }
            }
        }
    };
    for (at, tunnel) in (0u32..).zip(&policy.tunnels) {
        see(&tunnel.local_networks, &tunnel.remote_networks, &|| {
            Done::By(TunnelIndex(at))
        });
    }
    for rule in &policy.rules {
        see(
            &rule.local_networks,
            &rule.remote_networks,
            &|| match rule.action {
                RuleAction::Bypass => Done::Bypass,
                RuleAction::Discard => Done::Discard,
            },
        );
    }
    best.1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn compiled_policies_agree_with_a_walk_over_the_list(
        entries in entries(),
        packets in prop::collection::vec(traffic(), 1..80),
    ) {
        let text = BASE.to_owned()
            + "\n[[bypass]]\nname = \"near\"\nlocal_networks = [\"10.1.0.0/29\"]\nremote_networks = [\"10.1.0.8/29\"]\n"
            + &entries;
        let site = Site::new();
        let policy = match site.parse(&text) {
            Ok(policy) => policy,
            Err(errors) => return Err(TestCaseError::fail(site.render(&errors, &text))),
        };
        let macs = vec![MacAddr([2; 6]); 2];
        let tables = compile(&policy, &Topology { macs });
        let slots: Vec<TunnelIndex> = (0u32..)
            .zip(&policy.tunnels)
            .flat_map(|(at, tunnel)| vec![TunnelIndex(at); tunnel.endpoints.len()])
            .collect();
        for traffic in packets {
            let (_, action) = tables.spd.search(AnyTraffic::V4(traffic));
            let done = match action {
                SpdAction::Protect(slot) => Done::By(slots[slot.index()]),
                SpdAction::Spread(group) => Done::By(slots[group.first().index()]),
                SpdAction::Bypass => Done::Bypass,
                SpdAction::Discard => Done::Discard,
                SpdAction::NoPolicy => Done::Nothing,
            };
            prop_assert_eq!(done, walk(&policy, &traffic), "{:?}\n{}", traffic, entries);
        }
    }
}

#[test]
fn policies_are_shown_in_the_order_in_which_they_are_asked() {
    let site = Site::new();
    let ordered = "action = \"protect\"\ntunnel = \"first\"\nlocal = \"10.1.0.5-10.1.0.9\"\nremote = \"10.2.0.0/16\"\n\
                   protocol = [\"tcp\", \"udp\"]\nremote_ports = 53";
    let text = BASE.to_owned() + &entry(ordered);
    let Ok(policy) = site.parse(&text) else {
        panic!("{}", site.render(&site.errors(&text), &text));
    };
    let shown = PoliciesReport::new(&policy).policies;
    let first = shown.first().unwrap();
    assert!(first.ordered && first.tunnel.as_deref() == Some("first"));
    assert_eq!(first.local, ["10.1.0.5-10.1.0.9"]);
    assert_eq!(first.traffic, ["tcp remote 53", "udp remote 53"]);
    let names: Vec<_> = shown.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["only", "first", "second"]);
}
