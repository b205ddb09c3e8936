//! Ports that share a device, told apart by VLAN tags.

use super::checks::{case, check};
use super::{BASE, Site};

/// The second port on the device of the first, with these lines more.
fn on_one_device(first: &str, second: &str) -> String {
    BASE.replace("\"net_null0\"", &format!("\"net_null0\"\n{first}"))
        .replace("\"0000:3b:00.0\"", &format!("\"net_null0\"\n{second}"))
}

#[test]
fn vlan_is_a_number_or_two() {
    check(&[
        case(
            &[("mtu = 1500", "vlan = 0")],
            &[("vlan = 0", "from 1 to 4094")],
        ),
        case(
            &[("mtu = 1500", "vlan = 4095")],
            &[("vlan = 4095", "from 1 to 4094")],
        ),
        case(
            &[("mtu = 1500", "vlan = \"100\"")],
            &[("vlan = ", "vlan takes a number, not text")],
        ),
        case(
            &[("mtu = 1500", "vlan = [100]")],
            &[("vlan = ", "vlan has 1 tags in a list")],
        ),
        case(
            &[("mtu = 1500", "vlan = [1, 2, 3]")],
            &[("vlan = ", "an outer and an inner one, vlan = [200, 100]")],
        ),
        case(
            &[("mtu = 1500", "vlan = [0, 4095]")],
            &[("vlan = ", "vlan is 0"), ("vlan = ", "vlan is 4095")],
        ),
        case(
            &[("mtu = 1500", "vlans = 5")],
            &[("vlans = 5", "did you mean vlan?")],
        ),
    ]);
}

#[test]
fn ports_on_one_device_need_tags_of_their_own() {
    let site = Site::new();
    for (first, second, tags) in [
        ("vlan = 100", "vlan = 200", ["100", "200"]),
        ("vlan = 100", "", ["100", "untagged"]),
        ("vlan = [200, 100]", "vlan = 100", ["200.100", "100"]),
        (
            "vlan = [200, 100]",
            "vlan = [100, 200]",
            ["200.100", "100.200"],
        ),
    ] {
        let text = on_one_device(first, second);
        let policy = site.parse(&text).unwrap_or_else(|errors| {
            panic!("{}", site.render(&errors, &text));
        });
        let found: Vec<_> = policy
            .ports
            .iter()
            .map(|port| port.tags.to_string())
            .collect();
        assert_eq!(found, tags);
        let queues: Vec<_> = policy.ports.iter().map(|port| port.queues).collect();
        assert_eq!(queues, [3, 3], "said of one port, they are the device's");
    }
    for (tags, message) in [
        ("", "two ports have the device net_null0"),
        ("vlan = 7", "two ports have VLAN 7 of the device net_null0"),
        (
            "vlan = [9, 7]",
            "two ports have VLAN 9.7 of the device net_null0",
        ),
    ] {
        let text = on_one_device(tags, tags);
        let errors = site.errors(&text);
        let [error] = errors.as_slice() else {
            panic!("{}", site.render(&errors, &text));
        };
        assert_eq!(error.message(), message);
        let first = error.related().expect("the first port");
        assert!(first.line() < error.line());
    }
}

#[test]
fn what_ports_say_of_one_device_agrees() {
    let site = Site::new();
    let only_error = |text: &str| {
        let errors = site.errors(text);
        let [error] = errors.as_slice() else {
            panic!("{}", site.render(&errors, text));
        };
        let related = error.related().expect("the first port").line();
        (error.message().to_owned(), error.help().to_owned(), related)
    };
    let text = on_one_device("vlan = 100\nqueues = 2", "vlan = 200");
    let (message, help, first) = only_error(&text);
    assert_eq!(
        message,
        "3 queues of net_null0, which has 2 by another port"
    );
    assert!(help.contains("write queues once"), "{help}");
    assert!(
        text.lines()
            .nth(first - 1)
            .is_some_and(|line| line == "queues = 2")
    );
    let text = on_one_device("", "vlan = 200").replacen("net_null0\"", "net_null0,size=60\"", 1);
    let (message, help, _) = only_error(&text);
    assert_eq!(
        message,
        "net_null0 is given twice, with different arguments"
    );
    assert!(help.contains("device = \"net_null0,size=60\""), "{help}");
}

#[test]
fn bonds_have_members_and_other_devices_none() {
    const BOND: &str = "net_bonding0,mode=1\"\nmembers = [\"net_tap0\", \"0000:3b:00.1\"]\n#\"";
    let site = Site::new();
    let text = BASE.replace("net_null0", BOND);
    let policy = site.parse(&text).unwrap_or_else(|errors| {
        panic!("{}", site.render(&errors, &text));
    });
    let members: Vec<_> = policy.ports[0]
        .members
        .iter()
        .map(|device| device.name())
        .collect();
    assert_eq!(members, ["net_tap0", "0000:3b:00.1"]);
    assert!(policy.ports[1].members.is_empty());
    check(&[
        case(
            &[("net_null0", "net_bonding0,mode=1")],
            &[("net_bonding0", "net_bonding0 has no members")],
        ),
        case(
            &[("mtu = 1500", "members = [\"net_tap0\"]")],
            &[("members", "net_null0 is no bond")],
        ),
        case(
            &[("net_null0", "net_bonding0\"\nmembers = []\n#\"")],
            &[("members", "members names no device")],
        ),
        case(
            &[(
                "net_null0",
                "net_bonding0\"\nmembers = [\"net_bonding1\"]\n#\"",
            )],
            &[("members", "a member of a bond is a bond itself")],
        ),
        case(
            &[(
                "net_null0",
                "net_bonding0,slave=net_tap0\"\nmembers = [\"net_tap0\"]\n#\"",
            )],
            &[("slave=", "in a key of its own: members = ")],
        ),
        case(
            &[("net_null0", "net_bonding0\"\nmembers = [\"eth0\"]\n#\"")],
            &[("eth0", "neither a PCI address nor a virtual device")],
        ),
        case(
            &[("net_null0", "net_bonding0\"\nmembers = [\"3b:00.0\"]\n#\"")],
            &[("3b:00.0", "the device 0000:3b:00.0 is given twice")],
        ),
        case(
            &[(
                "net_null0",
                "net_bonding0\"\nmembers = [\"net_tap0\", \"net_tap0,iface=a\"]\n#\"",
            )],
            &[("members", "belongs to it alone")],
        ),
    ]);
}

#[test]
fn ports_of_one_bond_share_its_members() {
    let site = Site::new();
    let bond = |members: &str| format!("\"net_bonding0\"\n{members}\n");
    let both = |first: &str, second: &str| {
        BASE.replace("\"net_null0\"", &(bond(first) + "vlan = 1"))
            .replace("\"0000:3b:00.0\"", &(bond(second) + "vlan = 2"))
    };
    let members = "members = [\"net_tap0\"]";
    for text in [both(members, ""), both("", members), both(members, members)] {
        let policy = site.parse(&text).unwrap_or_else(|errors| {
            panic!("{}", site.render(&errors, &text));
        });
        assert!(policy.ports.iter().all(|port| port.members.len() == 1));
    }
    let errors = site.errors(&both(members, "members = [\"net_tap1\"]"));
    assert_eq!(errors.len(), 1);
    assert_eq!(
        errors[0].message(),
        "other members of net_bonding0 than another port has"
    );
    assert!(errors[0].related().is_some());
}

#[test]
fn dpdk_takes_so_many_devices() {
    let site = Site::new();
    let members: Vec<_> = (0..31)
        .map(|number| format!("\"net_tap{number}\""))
        .collect();
    let bond = |count: usize| {
        let members = members[..count].join(", ");
        BASE.replace(
            "\"net_null0\"",
            &format!("\"net_bonding0\"\nmembers = [{members}]"),
        )
    };
    assert!(site.errors(&bond(30)).is_empty());
    let errors = site.errors(&bond(31));
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].message(), "this is device 33, and DPDK takes 32");
}
