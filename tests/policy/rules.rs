//! What passes in clear and what is discarded: `[[bypass]]` and `[[discard]]`, beside the base policy's tunnels, which take
//! 10.1.0.0/16 to 10.2.0.0/16 and 10.3.0.0/16, and fd00:1::/64 to fd00:2::/64.

use simplon::ipsec::selector::AddressPair;
use simplon::ipsec::spd::SpdAction;
use simplon::policy::compile::{Topology, compile};
use simplon::policy::model::{MacAddr, RuleAction};

use super::{BASE, Site};

fn rule(kind: &str, name: &str, local: &str, remote: &str) -> String {
    format!(
        "\n[[{kind}]]\nname = \"{name}\"\nlocal_networks = [{local}]\nremote_networks = [{remote}]\n"
    )
}

/// The one error in the base policy with `rules` behind it: the line it is about, and all that it says.
#[track_caller]
fn error(rules: &str) -> (String, String) {
    let site = Site::new();
    let text = BASE.to_owned() + rules;
    let errors = site.errors(&text);
    let shown = site.render(&errors, &text);
    let [error] = errors.as_slice() else {
        panic!("not one error: {shown}");
    };
    assert!(!error.help().is_empty());
    let line = text.lines().nth(error.line() - 1).unwrap();
    let related = error.related().map(|related| {
        let line = text.lines().nth(related.line() - 1).unwrap();
        format!("{}: {line}", related.label())
    });
    let said = [
        error.message(),
        error.help(),
        related.as_deref().unwrap_or_default(),
    ];
    (line.to_owned(), said.join("\n"))
}

#[track_caller]
fn check(rules: &str, line: &str, parts: &[&str]) {
    let (found, said) = error(rules);
    assert!(found.contains(line), "{line:?} is not in {found:?}\n{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} in\n{said}");
    }
}

#[test]
fn rules_are_read_and_compiled_beside_tunnels() {
    let text = BASE.to_owned()
        + &rule("discard", "printers", "\"10.1.7.0/24\"", "\"10.2.7.0/24\"")
        + &rule(
            "bypass",
            "outside",
            "\"10.1.0.0/16\", \"fd00:1::/64\"",
            "\"0.0.0.0/0\", \"2001:db8:9::/48\"",
        );
    let site = Site::new();
    let policy = site.parse(&text).ok().unwrap();
    let [outside, printers] = policy.rules.as_slice() else {
        panic!("{:?}", policy.rules);
    };
    assert_eq!(
        (outside.name.as_str(), outside.action),
        ("outside", RuleAction::Bypass)
    );
    assert_eq!(
        (printers.name.as_str(), printers.action),
        ("printers", RuleAction::Discard)
    );
    assert_eq!(outside.local_networks.len(), 2);
    assert_eq!(outside.remote_networks[0].to_string(), "0.0.0.0/0");
    let macs = vec![MacAddr([2; 6]); 2];
    let tables = compile(&policy, &Topology { macs });
    let ask = |from: &str, to: &str| {
        let [from, to] = [from, to].map(|text| text.parse().unwrap());
        tables.spd.lookup(AddressPair::new(from, to).unwrap())
    };
    assert!(matches!(ask("10.1.0.1", "10.2.0.1"), SpdAction::Protect(_)));
    assert_eq!(ask("10.1.7.1", "10.2.7.1"), SpdAction::Discard);
    assert_eq!(ask("10.1.7.1", "192.0.2.9"), SpdAction::Bypass);
    assert_eq!(ask("fd00:1::1", "2001:db8:9::1"), SpdAction::Bypass);
    assert_eq!(ask("10.9.0.1", "192.0.2.9"), SpdAction::NoPolicy);
    assert!(!tables.admin_prohibited);
}

#[test]
fn policy_without_rules_has_none() {
    let policy = Site::new().parse(BASE).ok().unwrap();
    assert!(policy.rules.is_empty() && !policy.gateway.admin_prohibited);
}

#[test]
fn senders_are_told_of_discarded_packets_where_asked() {
    let with = |value: &str| {
        let line = format!("lab_keys = true\nadmin_prohibited = {value}");
        BASE.replacen("lab_keys = true", &line, 1)
    };
    let site = Site::new();
    let policy = site.parse(&with("true")).ok().unwrap();
    let macs = vec![MacAddr([2; 6]); 2];
    assert!(compile(&policy, &Topology { macs }).admin_prohibited);
    let errors = site.errors(&with("\"yes\""));
    assert_eq!(errors.len(), 1);
    let said = format!("{}\n{}", errors[0].message(), errors[0].help());
    assert!(said.contains("admin_prohibited takes true or false, not text"));
    assert!(said.contains("write admin_prohibited = true"));
}

#[test]
fn keys_of_rules() {
    for kind in ["bypass", "discard"] {
        let whole = rule(kind, "x", "\"10.8.0.0/16\"", "\"10.9.0.0/16\"");
        let header = format!("[[{kind}]]");
        for (from, to, line, said) in [
            ("name = \"x\"", "", &*header, "lacks name"),
            (
                "local_networks = [\"10.8.0.0/16\"]",
                "",
                &*header,
                "add local_networks = [",
            ),
            (
                "remote_networks",
                "remote_network",
                "remote_network ",
                "did you mean remote_networks?",
            ),
            ("\"x\"", "\"x y\"", "x y", "has the character ' '"),
            (
                "[\"10.8.0.0/16\"]",
                "[]",
                "local_networks",
                "local_networks is empty",
            ),
            (
                "10.8.0.0/16",
                "10.8.0.1/16",
                "10.8.0.1/16",
                "has bits set after its first 16",
            ),
            (
                "10.8.0.0/16",
                "fd00:8::/64",
                "remote_networks",
                "give an IPv6 network on both sides",
            ),
            (
                "name = \"x\"",
                "name = \"x\"\nport = 53",
                "port = 53",
                "keys of [[",
            ),
        ] {
            let text = whole.replacen(from, to, 1);
            if to == "remote_network" {
                // Both that it is unknown and that the right one is missing.
                let site = Site::new();
                let errors = site.errors(&(BASE.to_owned() + &text));
                assert_eq!(errors.len(), 2);
                assert!(errors.iter().any(|error| error.help().contains(said)));
                continue;
            }
            check(&text, line, &[said]);
        }
        let single = whole.replacen(&header, &format!("[{kind}]"), 1);
        check(
            &single,
            &format!("[{kind}]"),
            &[&format!("write [[{kind}]]")],
        );
    }
    check(
        "\n[[bypas]]\nname = \"x\"\n",
        "bypas",
        &["did you mean bypass?"],
    );
}

#[test]
fn names_are_given_once_among_all_policies() {
    let rules = |kinds: [&str; 2], names: [&str; 2]| {
        rule(kinds[0], names[0], "\"10.8.0.0/16\"", "\"10.9.0.0/16\"")
            + &rule(kinds[1], names[1], "\"10.8.0.0/16\"", "\"10.10.0.0/16\"")
    };
    let first = "the name is first given here: name = \"x\"";
    let help = "give each tunnel and each policy a name of its own";
    for (kinds, said) in [
        (["bypass"; 2], "two bypasses are called \"x\""),
        (["discard"; 2], "two discards are called \"x\""),
        (
            ["discard", "bypass"],
            "a discard and a bypass are called \"x\"",
        ),
    ] {
        check(
            &rules(kinds, ["x"; 2]),
            "name = \"x\"",
            &[said, first, help],
        );
    }
    check(
        &rules(["bypass"; 2], ["x", "first"]),
        "name = \"first\"",
        &["a tunnel and a bypass are called \"first\"", help],
    );
}

#[test]
fn same_selectors_of_any_two_policies_are_refused_with_both_lines() {
    check(
        &rule("bypass", "x", "\"10.1.0.0/16\"", "\"10.2.0.0/16\""),
        "remote_networks = [\"10.2.0.0/16\"]",
        &[
            "tunnel \"first\" and bypass \"x\" both take 10.1.0.0/16 to 10.2.0.0/16: duplicate",
            "remove the network from one of the two policies",
            "the earlier tunnel: remote_networks = [\"10.2.0.0/16\", \"fd00:2::/64\"]",
        ],
    );
    let two = |first, second| {
        rule(first, "x", "\"10.8.0.0/16\"", "\"10.9.0.0/16\"")
            + &rule(second, "y", "\"10.8.0.0/16\"", "\"10.9.0.0/16\"")
    };
    for (first, second, said) in [
        ("bypass", "bypass", "bypasses \"x\" and \"y\" both take"),
        ("discard", "discard", "discards \"x\" and \"y\" both take"),
        (
            "discard",
            "bypass",
            "discard \"x\" and bypass \"y\" both take",
        ),
    ] {
        let earlier = format!("the earlier {first}: remote_networks");
        check(&two(first, second), "10.9.0.0/16", &[said, &earlier]);
    }
}

#[test]
fn crossing_selectors_of_any_two_policies_are_refused_with_both_lines() {
    check(
        &rule("bypass", "x", "\"10.0.0.0/8\"", "\"10.2.5.0/24\""),
        "remote_networks = [\"10.2.5.0/24\"]",
        &[
            "ambiguous overlap: ",
            "bypass \"x\" takes 10.0.0.0/8 to 10.2.5.0/24",
            "tunnel \"first\" takes 10.1.0.0/16 to 10.2.0.0/16",
            "for 10.1.0.0/16 to 10.2.5.0/24 neither is the more specific",
            "the earlier tunnel: remote_networks",
        ],
    );
    check(
        &(rule("bypass", "x", "\"10.8.0.0/16\"", "\"10.9.0.0/24\"")
            + &rule("discard", "y", "\"10.8.1.0/24\"", "\"10.9.0.0/16\"")),
        "remote_networks = [\"10.9.0.0/16\"]",
        &[
            "discard \"y\" takes 10.8.1.0/24 to 10.9.0.0/16",
            "bypass \"x\" takes 10.8.0.0/16 to 10.9.0.0/24",
            "the earlier bypass: remote_networks",
        ],
    );
    // Nested either way is fine, whatever the two are.
    let nested = rule("bypass", "wide", "\"0.0.0.0/0\"", "\"0.0.0.0/0\"")
        + &rule("discard", "inside", "\"10.1.5.0/24\"", "\"10.2.5.0/24\"")
        + &rule("bypass", "deeper", "\"10.1.5.9\"", "\"10.2.5.0/24\"");
    assert!(Site::new().parse(&(BASE.to_owned() + &nested)).is_ok());
}
