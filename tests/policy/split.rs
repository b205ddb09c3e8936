//! Tunnels that are split into several SAs.

use simplon::ids::{SaIndex, Spi};
use simplon::ipsec::selector::AddressPair;
use simplon::ipsec::spd::SpdAction;
use simplon::meta::PacketKind;
use simplon::policy::compile::{Topology, compile, endpoint_sets, inbound_sa};
use simplon::policy::model::MacAddr;

use super::{BASE, Site};

/// The keying of the first tunnel in the base policy.
const SINGLE: &str = r#"[tunnel.endpoints.outbound]
spi = 0x1001
cipher = "aes-128-gcm"
key = { file = "1.key" }

[tunnel.endpoints.inbound]
spi = 0x1002
cipher = "aes-128-gcm"
key = { env = "KEY_2" }
esn = false
window = 128
"#;

/// The same, split into three.
const SPLIT: &str = r#"[tunnel.endpoints.outbound]
cipher = "aes-128-gcm"
[tunnel.endpoints.inbound]
cipher = "aes-128-gcm"
esn = false
window = 128
[[tunnel.endpoints.sa]]
outbound = { spi = 0x1011, key = { file = "1.key" } }
inbound = { spi = 0x2011, key = { env = "KEY_2" } }
[[tunnel.endpoints.sa]]
outbound = { spi = 0x1012, key = { file = "5.key" } }
inbound = { spi = 0x2012, key = { env = "KEY_6" } }
[[tunnel.endpoints.sa]]
outbound = { spi = 0x1013, key = { file = "7.key" } }
inbound = { spi = 0x2013, key = { env = "KEY_8" } }
"#;

/// The base policy with its first tunnel split, and a change to that.
fn split(from: &str, to: &str) -> String {
    assert!(BASE.contains(SINGLE));
    assert!(SPLIT.contains(from), "{from}");
    BASE.replace(SINGLE, &SPLIT.replacen(from, to, 1))
}

#[test]
fn split_tunnel_has_a_set_for_each_pair_of_sas() {
    let site = Site::new();
    let policy = site.parse(&split("", "")).ok().unwrap();
    let sets = &policy.tunnels[0].endpoints;
    assert_eq!(sets.len(), 3);
    let spis: Vec<_> = sets
        .iter()
        .map(|set| (set.outbound.spi.get(), set.inbound.spi.get()))
        .collect();
    assert_eq!(spis, [(0x1011, 0x2011), (0x1012, 0x2012), (0x1013, 0x2013)]);
    for set in sets {
        assert_eq!(set.local, sets[0].local);
        assert_eq!(set.encapsulation, sets[0].encapsulation);
        assert_eq!(
            (set.outbound.esn, set.inbound.esn, set.inbound.window),
            (true, false, 128)
        );
        assert!(!set.spread_udp_ports);
    }
    let slots: Vec<_> = endpoint_sets(&policy)
        .map(|(slot, tunnel, ..)| (slot.0, tunnel.0))
        .collect();
    assert_eq!(slots, [(0, 0), (1, 0), (2, 0), (3, 1)]);
}

#[test]
fn one_sa_in_the_split_form_is_an_ordinary_tunnel() {
    let site = Site::new();
    let start = SPLIT
        .match_indices("[[tunnel.endpoints.sa]]")
        .nth(1)
        .unwrap()
        .0;
    let policy = site.parse(&split(&SPLIT[start..], "")).ok().unwrap();
    let topology = Topology {
        macs: vec![MacAddr([2; 6]); 2],
    };
    let addresses = AddressPair::new([10, 1, 0, 9].into(), [10, 2, 0, 9].into()).unwrap();
    let action = compile(&policy, &topology).spd.lookup(addresses);
    assert_eq!(action, SpdAction::Protect(SaIndex(0)));
}

/// What is replaced, by what, and for each complaint the text of its line and a part of message and help.
type Change = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

fn check(changes: &[Change]) {
    let site = Site::new();
    for (from, to, expected) in changes {
        let text = split(from, to);
        let errors = site.errors(&text);
        let shown = site.render(&errors, &text);
        assert_eq!(errors.len(), expected.len(), "{from:?} to {to:?}\n{shown}");
        for (error, (line, part)) in errors.iter().zip(*expected) {
            let found = text.lines().nth(error.line() - 1).unwrap();
            assert!(
                found.contains(line),
                "{line:?} is not in {found:?}\n{shown}"
            );
            let said = format!("{}\n{}", error.message(), error.help());
            assert!(said.contains(part), "{part:?} in {said:?}");
        }
    }
}

#[test]
fn every_sa_of_a_split_tunnel_is_checked_at_its_own_line() {
    check(&[
        (
            "spi = 0x2012",
            "spi = 0x2011",
            &[("KEY_6", "inbound SPI 0x00002011 is given twice")],
        ),
        (
            "spi = 0x2012",
            "spi = 0x1004",
            &[("spi = 0x1004", "is given twice")],
        ),
        (
            "spi = 0x1013",
            "spi = 0x1011",
            &[(
                "7.key",
                "outbound SPI 0x00001011 to 192.0.2.2 is given twice",
            )],
        ),
        ("spi = 0x1013", "spi = 200", &[("spi = 200", "reserved")]),
        ("spi = 0x1013, ", "", &[("7.key", "lacks spi")]),
        (
            "5.key",
            "1.key",
            &[(
                "0x1012",
                "another SA has this key, so GCM nonces would repeat",
            )],
        ),
        ("KEY_8", "KEY_6", &[("0x2013", "another SA has this key")]),
        (
            "env = \"KEY_8\"",
            "file = \"7.key\"",
            &[("0x2013", "another SA has this key")],
        ),
        ("5.key", "3.key", &[("3.key", "takes 20 bytes")]),
        (
            "5.key",
            "none.key",
            &[("none.key", "there is no such file")],
        ),
        (
            "inbound = { spi = 0x2012, key = { env = \"KEY_6\" } }",
            "",
            &[("[[tunnel.endpoints.sa]]", "lacks inbound")],
        ),
        (
            "inbound = { spi = 0x2012,",
            "inbuond = { spi = 0x2012,",
            &[
                ("[[tunnel.endpoints.sa]]", "lacks inbound"),
                ("inbuond", "did you mean inbound?"),
            ],
        ),
    ]);
}

#[test]
fn what_sas_share_and_what_they_do_not_is_told() {
    check(&[
        (
            "spi = 0x1012,",
            "spi = 0x1012, cipher = \"aes-128-gcm\",",
            &[("0x1012", "the SAs of a split tunnel share it")],
        ),
        (
            "spi = 0x2012,",
            "spi = 0x2012, esn = true,",
            &[("0x2012", "share it")],
        ),
        (
            "spi = 0x2012,",
            "spi = 0x2012, window = 64,",
            &[("0x2012", "share it")],
        ),
        (
            "[tunnel.endpoints.outbound]\n",
            "[tunnel.endpoints.outbound]\nspi = 7000\n",
            &[(
                "spi = 7000",
                "has its own: write it under [[tunnel.endpoints.sa]]",
            )],
        ),
        (
            "[tunnel.endpoints.inbound]\n",
            "[tunnel.endpoints.inbound]\nkey = { file = \"9.key\" }\n",
            &[("9.key", "has its own")],
        ),
        (
            "[tunnel.endpoints.inbound]\n",
            "window = 64\n[tunnel.endpoints.inbound]\n",
            &[("window = 64", "the window is the receiver's")],
        ),
        (
            "[tunnel.endpoints.outbound]\ncipher = \"aes-128-gcm\"\n",
            "",
            &[("[[tunnel.endpoints]]", "lacks outbound")],
        ),
        (
            "cipher = \"aes-128-gcm\"\nesn",
            "esn",
            &[("[tunnel.endpoints.inbound]", "lacks cipher")],
        ),
    ]);
}

#[test]
fn list_of_sas_has_one_to_64() {
    let site = Site::new();
    let start = SPLIT.find("[[tunnel.endpoints.sa]]").unwrap();
    let sas = &SPLIT[start..];
    let empty = split(sas, "").replacen(
        "[tunnel.endpoints.outbound]",
        "sa = []\n[tunnel.endpoints.outbound]",
        1,
    );
    let errors = site.errors(&empty);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].message().contains("sa is empty"));
    let single = split(sas, "").replacen(
        "[tunnel.endpoints.outbound]",
        "spread_udp_ports = true\n[tunnel.endpoints.outbound]",
        1,
    );
    let single = single.replace(
        "[tunnel.endpoints.outbound]\ncipher",
        "[tunnel.endpoints.outbound]\nspi = 0x1001\nkey = { file = \"1.key\" }\ncipher",
    );
    let errors = site.errors(&single.replace(
        "[tunnel.endpoints.inbound]\ncipher",
        "[tunnel.endpoints.inbound]\nspi = 0x1002\nkey = { file = \"2.key\" }\ncipher",
    ));
    assert_eq!(errors.len(), 1, "{}", site.render(&errors, &single));
    assert!(errors[0].message().contains("without SAs to spread over"));
    let many: String = (0..65)
        .map(|number| format!("[[tunnel.endpoints.sa]]\noutbound = {{ spi = {}, key = {{ env = \"OUT\" }} }}\ninbound = {{ spi = {}, key = {{ env = \"IN\" }} }}\n", 0x4000 + number, 0x5000 + number))
        .collect();
    let text = split(sas, &many);
    let errors = site.errors(&text);
    let most = errors
        .iter()
        .find(|error| error.message().contains("at most 64 SAs"))
        .unwrap();
    assert!(
        text.lines()
            .nth(most.line())
            .unwrap()
            .contains(&format!("spi = {}", 0x4000 + 64))
    );
}

#[test]
fn compiled_split_tunnel_spreads_outbound_and_checks_inbound_on_every_sa() {
    let site = Site::new();
    let policy = site.parse(&split("", "")).ok().unwrap();
    let topology = Topology {
        macs: vec![MacAddr([2; 6]); 2],
    };
    let tables = compile(&policy, &topology);
    for (slot, spi) in [(0, 0x2011), (1, 0x2012), (2, 0x2013), (3, 0x1004)] {
        assert_eq!(
            tables.spis.slot(Spi::new(spi).unwrap().get()),
            Some(SaIndex(slot))
        );
    }
    let pair = |source: [u8; 4], destination: [u8; 4]| {
        AddressPair::new(source.into(), destination.into()).unwrap()
    };
    let SpdAction::Spread(group) = tables.spd.lookup(pair([10, 1, 0, 9], [10, 2, 0, 9])) else {
        panic!("the first tunnel is split");
    };
    let mut seen = [0; 3];
    for host in 0..=255 {
        let mut packet = [0; 20];
        packet[0] = 0x45;
        packet[12..].copy_from_slice(&[10, 1, 0, host, 10, 2, 0, 1]);
        seen[group.slot(&packet, PacketKind::Ipv4).index()] += 1;
    }
    assert!(
        seen.iter().all(|count| (50..130).contains(count)),
        "{seen:?}"
    );
    let second = tables.spd.lookup(pair([10, 1, 0, 9], [10, 3, 0, 9]));
    assert_eq!(second, SpdAction::Protect(SaIndex(3)));
    let inner =
        AddressPair::new("fd00:1::9".parse().unwrap(), "fd00:2::9".parse().unwrap()).unwrap();
    assert_eq!(tables.spd.lookup(inner), SpdAction::Spread(group));
    for (slot, _, tunnel, set) in endpoint_sets(&policy).take(3) {
        let sa = inbound_sa(tunnel, set, 0);
        assert!(sa.admits(pair([10, 2, 0, 9], [10, 1, 0, 9])), "{slot:?}");
        assert!(!sa.admits(pair([10, 3, 0, 9], [10, 1, 0, 9])), "{slot:?}");
        assert_eq!(sa.window().size(), 128);
    }
}

#[test]
fn families_of_a_split_tunnel_keep_to_their_own_sets() {
    let site = Site::new();
    let six = r#"[[tunnel.endpoints]]
local = "fd00:9::1"
remote = "fd00:9::2"
spread_udp_ports = true
outbound = { cipher = "aes-128-gcm" }
inbound = { cipher = "aes-128-gcm" }
[[tunnel.endpoints.sa]]
outbound = { spi = 0x3011, key = { file = "9.key" } }
inbound = { spi = 0x3012, key = { env = "KEY_10" } }
"#;
    let text = split("", "").replacen(
        "[[tunnel]]\nname = \"second\"",
        &format!("{six}\n[[tunnel]]\nname = \"second\""),
        1,
    );
    let policy = site.parse(&text).ok().unwrap();
    assert_eq!(policy.tunnels[0].endpoints.len(), 4);
    let topology = Topology {
        macs: vec![MacAddr([2; 6]); 2],
    };
    let spd = compile(&policy, &topology).spd;
    let inner =
        AddressPair::new("fd00:1::9".parse().unwrap(), "fd00:2::9".parse().unwrap()).unwrap();
    assert_eq!(spd.lookup(inner), SpdAction::Protect(SaIndex(3)));
    let inner = AddressPair::new([10, 1, 0, 9].into(), [10, 2, 0, 9].into()).unwrap();
    assert!(matches!(spd.lookup(inner), SpdAction::Spread(_)));
    let last = AddressPair::new([10, 1, 0, 9].into(), [10, 3, 0, 9].into()).unwrap();
    assert_eq!(spd.lookup(last), SpdAction::Protect(SaIndex(4)));
}
