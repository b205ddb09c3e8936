//! Ports that share a device: frames are told apart by their VLAN tags before they come to any.

use std::path::Path;

use simplon::control::explain::{Ask, Captured, Case, Link, Refused, Sources, explain};
use simplon::ipsec::sad::Sad;
use simplon::policy::compile::Topology;
use simplon::policy::model::MacAddr;
use simplon::policy::plan::Plan;
use simplon::policy::{Policy, Secrets, Source, parse, render};
use simplon::rcu::domain;

use super::bed::framed;
use super::random::{Random, inner};

const POLICY: &str = r#"
gateway = { name = "vlans", workers = [0], state_dir = "/nowhere", control_socket = "/nowhere/socket" }
port = [
  { name = "lan1", device = "net_null0", vlan = 11, side = "protected", pair = "wan1" },
  { name = "lan2", device = "net_null0", vlan = 12, side = "protected", pair = "wan2" },
  { name = "wan1", device = "net_null1", vlan = 21, side = "unprotected", pair = "lan1" },
  { name = "wan2", device = "net_null1", vlan = [7, 22], side = "unprotected", pair = "lan2" },
]
"#;
const LANS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const WANS: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn policy() -> Policy {
    let source = Source::new(Path::new("vlans.toml"), POLICY);
    parse(&source, &Secrets::with_environment([]))
        .unwrap_or_else(|errors| panic!("{}", render(&errors, &source, false)))
}

fn told(frame: &[u8], port: Option<&str>) -> Result<Case, Refused> {
    let policy = policy();
    let macs = [LANS, LANS, WANS, WANS].map(MacAddr).to_vec();
    let mut plan = Plan::new(&policy, &Topology { macs });
    let tables = plan.tables();
    let (writer, _) = domain(0);
    let sad = Sad::new(&writer, 0);
    let ask = Ask {
        packet: Some(Captured::new(frame, Link::Ethernet)),
        port: port.map(Into::into),
        ..Ask::default()
    };
    let sources = Sources {
        policy: &policy,
        tables: &tables,
        plan: &plan,
        sad: sad.view_owned(&writer),
        standing: None,
        rows: &[],
        resolves: &[],
    };
    explain(&ask, sources).map(|mut told| told.cases.remove(0))
}

/// An IPv4 packet in a frame with these tags: EtherType and number.
fn tagged(mac: [u8; 6], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut packet = inner(&mut Random(3), true);
    packet.from = "10.1.0.5".parse().expect("address");
    packet.to = "10.2.0.5".parse().expect("address");
    packet.protocol = 17;
    let mut frame = framed(mac, &packet.bytes());
    let tags = tags
        .iter()
        .flat_map(|(kind, number)| [kind.to_be_bytes(), number.to_be_bytes()]);
    frame.splice(12..12, tags.flatten());
    frame
}

#[test]
fn tags_say_which_port_it_is() {
    for (frame, port, reason) in [
        (tagged(LANS, &[(0x8100, 11)]), "lan1", "no-policy"),
        (tagged(LANS, &[(0x8100, 12)]), "lan2", "no-policy"),
        (tagged(WANS, &[(0x8100, 21)]), "wan1", "clear-text"),
        (
            tagged(WANS, &[(0x88a8, 7), (0x8100, 22)]),
            "wan2",
            "clear-text",
        ),
    ] {
        let case = told(&frame, None).expect("explained");
        assert_eq!(
            (case.port.as_str(), case.verdict.reason.as_deref()),
            (port, Some(reason))
        );
    }
    for frame in [tagged(LANS, &[(0x8100, 99)]), tagged(LANS, &[])] {
        let case = told(&frame, None).expect("explained");
        assert_eq!(
            case.verdict.reason.as_deref(),
            Some("unknown-vlan"),
            "{case:#?}"
        );
        assert_eq!(
            (case.port.as_str(), case.direction.as_str()),
            ("lan1", "outbound")
        );
    }
}

#[test]
fn port_that_is_named_has_its_own_tags_or_none_in_the_capture() {
    let bare = told(&tagged(LANS, &[]), Some("lan2")).expect("explained");
    assert_eq!(
        bare.verdict.reason.as_deref(),
        Some("no-policy"),
        "captured without tags"
    );
    let refused = told(&tagged(LANS, &[(0x8100, 11)]), Some("lan2")).expect_err("another port's");
    assert!(
        refused.to_string().contains("those of port \"lan1\""),
        "{refused}"
    );
}
