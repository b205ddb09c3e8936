//! Two policies side by side: what is different, by name.

use simplon::policy::Policy;
use simplon::policy::difference::Difference;

use super::{BASE, Site};

#[track_caller]
fn read(text: &str) -> Policy {
    let site = Site::new();
    match site.parse(text) {
        Ok(policy) => policy,
        Err(errors) => panic!("{}", site.render(&errors, text)),
    }
}

#[track_caller]
fn check(new: &str, old: &str, told: &str) {
    let difference = Difference::new(&read(new), &read(old));
    assert_eq!(difference.to_string(), told);
    assert_eq!(difference.is_empty(), told.is_empty());
}

#[test]
fn policy_is_as_itself_whatever_the_order_of_its_tunnels() {
    check(BASE, BASE, "");
    let (head, tunnels) = BASE.split_at(BASE.find("[[tunnel]]").unwrap());
    let (first, second) = tunnels.split_at(tunnels.rfind("[[tunnel]]").unwrap());
    check(&format!("{head}{second}\n{first}"), BASE, "");
    check(
        &BASE.replace("\"second\"", "\"renamed\""),
        BASE,
        "+ tunnel renamed\n- tunnel second\n",
    );
}

#[test]
fn other_keys_are_told_apart_from_other_changes() {
    let rekeyed = BASE.replace("\"1.key\"", "\"5.key\"");
    check(&rekeyed, BASE, "~ tunnel first: other SPIs or keys\n");
    let other_spi = BASE.replace("spi = 0x1004", "spi = 0x2004");
    check(&other_spi, BASE, "~ tunnel second: other SPIs or keys\n");
    for (was, is, tunnel) in [
        ("dscp = 46", "dscp = 45", "first"),
        ("window = 128", "window = 256", "first"),
        ("udp_remote_port = 4501", "udp_remote_port = 4502", "first"),
        ("\"10.3.0.0/16\"", "\"10.4.0.0/16\"", "second"),
        (
            "name = \"first\"",
            "name = \"first\"\nlifetime_packets = 9",
            "first",
        ),
    ] {
        let new = BASE.replace(was, is);
        check(&new, BASE, &format!("~ tunnel {tunnel}\n"));
    }
}

#[test]
fn policies_routes_neighbours_and_settings_are_told_by_name() {
    let policy = |name: &str, port: u16| {
        format!(
            "\n[[policy]]\nname = \"{name}\"\naction = \"bypass\"\nlocal = \"any\"\nremote = \"any\"\nprotocol = \"tcp\"\n\
             remote_ports = {port}\n"
        )
    };
    let old = BASE.to_owned() + &policy("a", 1) + &policy("b", 2) + &policy("c", 3);
    let new = BASE
        .replace("02:00:00:00:01:10", "02:00:00:00:01:11")
        .replace("to = \"10.1.64.0/18\"", "to = \"10.1.128.0/18\"")
        .replace("workers = [1, 2]", "workers = [1]")
        .replace("mtu = 1500", "mtu = 1400");
    let new = new + &policy("b", 2) + &policy("a", 4) + &policy("d", 3);
    check(
        &new,
        &old,
        "~ workers of [gateway]\n~ port lan\n~ neighbour 10.1.0.10\n+ route 10.1.128.0/18 via 10.1.0.10\n\
         - route 10.1.64.0/18 via 10.1.0.10\n+ policy d\n- policy c\n~ policy a\n~ the order of policies\n",
    );
}
