//! One case per rule: the base policy with one thing changed.

use super::{BASE, Site, lines};

/// What is replaced in the base policy, by what, and what is said: the text of the line, and a part of message and help.
pub(super) struct Case {
    change: &'static [(&'static str, &'static str)],
    expected: &'static [(&'static str, &'static str)],
}

pub(super) const fn case(
    change: &'static [(&'static str, &'static str)],
    expected: &'static [(&'static str, &'static str)],
) -> Case {
    Case { change, expected }
}

pub(super) fn check(cases: &[Case]) {
    let site = Site::new();
    for case in cases {
        let mut text = BASE.to_owned();
        for (from, to) in case.change {
            assert!(text.contains(from), "{from:?} is not in the base policy");
            text = text.replacen(from, to, 1);
        }
        let errors = site.errors(&text);
        let shown = site.render(&errors, &text);
        assert_eq!(
            errors.len(),
            case.expected.len(),
            "{:?}\n{shown}",
            case.change
        );
        for (error, (line, part)) in errors.iter().zip(case.expected) {
            let found = text.lines().nth(error.line() - 1).unwrap();
            assert!(
                found.contains(line),
                "{line:?} is not in {found:?}\n{shown}"
            );
            let said = format!("{}\n{}", error.message(), error.help());
            assert!(said.contains(part), "{part:?} in {said:?}");
            assert!(!error.help().is_empty(), "{shown}");
        }
    }
}

#[test]
fn base_policy_is_accepted() {
    let site = Site::new();
    let policy = site.parse(BASE).ok().unwrap();
    assert_eq!(policy.gateway.workers, [1, 2]);
    let [lan, wan] = policy.ports.as_slice() else {
        panic!()
    };
    assert_eq!(
        (lan.queues, lan.pair.0, wan.queues, wan.pair.0, wan.mtu),
        (2, 1, 3, 0, 1500)
    );
    assert_eq!(policy.routes[1].to.to_string(), "10.2.0.0/16");
    let set = &policy.tunnels[0].endpoints[0];
    assert_eq!(
        format!("{:?}", set.encapsulation),
        "Udp { local_port: 4500, remote_port: 4501 }"
    );
    assert_eq!(
        format!("{:?}", set.nat),
        "NatTraversal { keepalive_s: 20, peer_moves: true }"
    );
    assert_eq!(
        format!("{:?}", set.outer),
        "OuterHeader { hop_limit: 32, dscp: Fixed(46), df: Set, ecn: Compatibility }"
    );
    assert_eq!(
        (set.inbound.window, set.inbound.esn, set.outbound.esn),
        (128, false, true)
    );
    assert_eq!(set.outbound.key.salt(), [0xa7; 4]);
    let set = &policy.tunnels[1].endpoints[0];
    assert_eq!((set.inbound.window, set.inbound.spi.get()), (1024, 0x1004));
}

#[test]
fn nat_traversal_is_as_the_policy_has_it() {
    let site = Site::new();
    let with = "udp_remote_port = 4501\nnat_keepalive = 0\npeer_moves = false";
    let text = BASE.replacen("udp_remote_port = 4501", with, 1);
    let policy = site.parse(&text).ok().unwrap();
    let set = &policy.tunnels[0].endpoints[0];
    assert_eq!(
        format!("{:?}", set.nat),
        "NatTraversal { keepalive_s: 0, peer_moves: false }"
    );
}

#[test]
fn keys_of_tables() {
    check(&[
        case(&[("mtu = ", "mut = ")], &[("mut = ", "did you mean mtu?")]),
        case(
            &[("[[route]]", "[[rout]]")],
            &[("[[rout]]", "did you mean route?")],
        ),
        case(
            &[("memory_mib = 256", "colour = 256")],
            &[("colour", "keys of [gateway] are name,")],
        ),
        case(
            &[("state_dir = \"/var/lib/simplon/west\"", "")],
            &[("[gateway]", "lacks state_dir")],
        ),
        case(
            &[("side = \"protected\"", "")],
            &[("[[port]]", "add side = \"protected\"")],
        ),
        case(
            &[("spi = 0x1001", "")],
            &[("[tunnel.endpoints.outbound]", "add spi = 0x1001")],
        ),
        case(
            &[("mtu = 1500", "mtu = \"1500\"")],
            &[("mtu = ", "mtu takes a number, not text")],
        ),
        case(
            &[("workers = [1, 2]", "workers = 1")],
            &[("workers = ", "write workers = [1]")],
        ),
        case(
            &[("\"lan\"", "7")],
            &[("name = 7", "name takes text, not a number")],
        ),
        case(
            &[("esn = false", "esn = 0")],
            &[("esn = 0", "true or false")],
        ),
        case(
            &[("mtu = 1500", "mtu = 1_5x00")],
            &[("mtu = ", "no number")],
        ),
        case(
            &[("mtu = 1500", "mtu = 1500.0")],
            &[("mtu = ", "takes a number")],
        ),
        case(
            &[(
                "cipher = \"aes-128-gcm\"",
                "cipher = \"aes-128-gcm\"\nwindow = 64",
            )],
            &[("window = 64", "write it under inbound")],
        ),
        case(
            &[("[gateway]", "[[gateway]]")],
            &[("[[gateway]]", "a table, not a list")],
        ),
    ]);
}

#[test]
fn single_bracket_headers_are_explained() {
    let site = Site::new();
    let start = BASE.find("[[neighbour]]").unwrap();
    let end = BASE.rfind("[[neighbour]]").unwrap();
    let text = format!(
        "{}[neighbour]{}",
        &BASE[..start],
        &BASE[end + "[[neighbour]]".len()..]
    );
    let errors = site.errors(&text);
    let said: Vec<_> = errors
        .iter()
        .map(|error| (error.line(), error.help()))
        .collect();
    // Without the neighbour on it, the first route leads to a router in its port's subnet.
    assert_eq!(
        said,
        [(27, "write [[neighbour]]")],
        "{}",
        site.render(&errors, &text)
    );
}

#[test]
fn gateway() {
    check(&[
        case(
            &[("name = \"west\"", "name = \"we st\"")],
            &[("we st", "has the character ' '")],
        ),
        case(
            &[("name = \"west\"", "name = \"\"")],
            &[("name = \"\"", "at least one")],
        ),
        case(
            &[("name = \"west\"", "name = \"-west\"")],
            &[("-west", "begin with a letter")],
        ),
        case(
            &[(
                "name = \"west\"",
                "name = \"west-0123456789-0123456789-012345\"",
            )],
            &[("west-", "more than 32 characters")],
        ),
        case(
            &[("workers = [1, 2]", "workers = []")],
            &[("workers = ", "empty")],
        ),
        case(
            &[("workers = [1, 2]", "workers = [1, 2, 1]")],
            &[("workers = ", "core 1 is given twice")],
        ),
        case(
            &[("workers = [1, 2]", "workers = [1024]")],
            &[("workers = ", "from 0 to 1023")],
        ),
        case(
            &[("\"/var/lib", "\"var/lib")],
            &[("state_dir", "begins with /")],
        ),
        case(
            &[(
                "/run/simplon/",
                concat!(
                    "/run/",
                    "0123456789/",
                    "0123456789/0123456789/0123456789/0123456789/",
                    "0123456789/0123456789/0123456789/0123456789/"
                ),
            )],
            &[("control_socket", "at most 107")],
        ),
        case(
            &[("memory_mib = 256", "control_group = \"\"")],
            &[("control_group", "no name of a group")],
        ),
        case(
            &[("memory_mib = 256", "control_group = 7")],
            &[("control_group", "text")],
        ),
        case(
            &[("memory_mib = 256", "memory_mib = 63")],
            &[("memory_mib", "from 64 to 65536")],
        ),
        case(
            &[("memory_mib = 256", "memory_mib = -1")],
            &[("memory_mib", "from 64 to 65536")],
        ),
    ]);
}

#[test]
fn static_keys_need_consent() {
    check(&[
        case(
            &[("lab_keys = true", "")],
            &[("[gateway]", "RFC 8221 section 3")],
        ),
        case(
            &[("lab_keys = true", "lab_keys = false")],
            &[("lab_keys", "write lab_keys = true")],
        ),
        case(
            &[("lab_keys = true", "lab_keys = 1")],
            &[("lab_keys", "true or false")],
        ),
    ]);
}

#[test]
fn ports() {
    check(&[
        case(&[("net_null0", "eth0")], &[("eth0", "PCI address")]),
        case(
            &[("net_null0", "3b:00.0")],
            &[("0000:3b:00.0", "the device 0000:3b:00.0")],
        ),
        case(
            &[("0000:3b:00.0", "net_null0,a=b")],
            &[("net_null0,a=b", "a number of its own")],
        ),
        case(
            &[("mtu = 1500", "mtu = 1279")],
            &[("mtu", "from 1280 to 9000")],
        ),
        case(
            &[("queues = 3", "queues = 65")],
            &[("queues", "from 1 to 64")],
        ),
        case(
            &[("queues = 3", "host = 1")],
            &[("host", "write host = false")],
        ),
        case(
            &[("name = \"lan\"", "name = \"a-port-with-a-name\"")],
            &[
                ("a-port-with-a-name", "write host = false"),
                ("lan", "did you mean \"wan\""),
                ("lan", "did you mean \"wan\""),
                ("lan", "did you mean \"wan\""),
            ],
        ),
        case(
            &[("10.1.0.1/24", "10.1.0.1")],
            &[("10.1.0.1", "write \"10.1.0.1/24\"")],
        ),
        case(
            &[("10.1.0.1/24", "10.1.0.1/33")],
            &[("10.1.0.1", "length from 0 to 32")],
        ),
        case(
            &[("10.1.0.1/24", "10.1.0/24")],
            &[("10.1.0/24", "is no prefix")],
        ),
        case(
            &[("10.1.0.1/24", "224.0.0.1/24")],
            &[("224.0.0.1", "multicast")],
        ),
        case(
            &[("2001:db8::1/64", "10.1.0.1/32")],
            &[("192.0.2.1/24", "given twice")],
        ),
    ]);
}

#[test]
fn pairs_of_ports() {
    const THIRD: &str =
        "device = \"net_null2\"\nside = \"protected\"\npair = \"wan\"\n\n[[neighbour]]";
    check(&[
        case(
            &[("pair = \"wan\"", "pair = \"wam\"")],
            &[("pair = \"wam\"", "did you mean \"wan\"?")],
        ),
        case(
            &[("pair = \"wan\"", "pair = \"lan\"")],
            &[("pair = \"lan\"", "its own pair")],
        ),
        case(
            &[("side = \"unprotected\"", "side = \"protected\"")],
            &[("side = ", "on the same side")],
        ),
        case(
            &[("side = \"protected\"", "side = \"outside\"")],
            &[("outside", "\"protected\" or \"unprotected\"")],
        ),
        case(
            &[
                ("[[neighbour]]", "[[port]]\nname = \"dmz\"\n<third>"),
                ("<third>", THIRD),
            ],
            &[(
                "pair = \"wan\"",
                "the pair of \"dmz\" is \"wan\", but the pair of \"wan\" is \"lan\"",
            )],
        ),
    ]);
}

#[test]
fn duplicate_port_name_is_shown_with_the_first() {
    let site = Site::new();
    let errors = site.errors(&BASE.replace("name = \"wan\"", "name = \"lan\""));
    let first = errors[0].related().unwrap();
    assert_eq!((errors[0].line(), first.line()), (20, 12));
}

#[test]
fn neighbours() {
    check(&[
        case(
            &[("02:00:00:00:01:10", "02-00-00-00-01-10")],
            &[("mac", "write \"02:00:00:00:01:10\"")],
        ),
        case(
            &[("02:00:00:00:01:10", "02:00:00:00:01")],
            &[("mac", "six bytes")],
        ),
        case(
            &[("02:00:00:00:01:10", "01:00:00:00:01:10")],
            &[("mac", "group address")],
        ),
        case(
            &[("02:00:00:00:01:10", "00:00:00:00:00:00")],
            &[("mac", "no station has it")],
        ),
        case(
            &[("\"203.0.113.7\"", "\"10.1.0.10\"")],
            &[
                ("10.1.0.10", "given twice"),
                (
                    "via = \"203.0.113.7\"",
                    "add a [[neighbour]] with address = \"203.0.113.7\"",
                ),
            ],
        ),
        case(
            &[("\"10.1.0.10\"", "\"192.0.2.1\"")],
            &[("192.0.2.1", "own address")],
        ),
        case(
            &[("\"10.1.0.10\"", "\"10.1.0.10/24\"")],
            &[("10.1.0.10/24", "write the address alone")],
        ),
        case(
            &[("port = \"lan\"", "port = \"lann\"")],
            &[("lann", "did you mean \"lan\"?")],
        ),
    ]);
}

#[test]
fn routes() {
    check(&[
        case(
            &[("10.1.64.0/18", "10.1.65.0/18")],
            &[("to = ", "write \"10.1.64.0/18\"")],
        ),
        case(
            &[("via = \"10.1.0.10\"", "via = \"fd00:1::2\"")],
            &[("via", "is IPv6, but 10.1.64.0/18 is IPv4")],
        ),
        case(
            &[("via = \"10.1.0.10\"", "via = \"10.9.0.10\"")],
            &[("via", "in no subnet of port \"lan\"")],
        ),
        case(
            &[("via = \"10.1.0.10\"", "via = \"10.1.0.1\"")],
            &[("via", "own address")],
        ),
        case(
            &[(
                "via = \"10.1.0.10\"\nport = \"lan\"",
                "via = \"10.1.0.10\"\nport = \"dmz\"",
            )],
            &[("dmz", "no port is called \"dmz\"")],
        ),
        case(
            &[
                ("10.1.64.0/18", "10.2.0.0/16"),
                (
                    "via = \"10.1.0.10\"\nport = \"lan\"",
                    "via = \"203.0.113.7\"\nport = \"wan\"",
                ),
            ],
            &[("10.2.0.0/16", "two routes to 10.2.0.0/16")],
        ),
    ]);
}

#[test]
fn networks_of_tunnels() {
    check(&[
        case(
            &[("\"10.2.0.0/16\", \"fd00", "\"10.2.3.0/16\", \"fd00")],
            &[("10.2.3.0", "write \"10.2.0.0/16\"")],
        ),
        case(
            &[("[\"10.3.0.0/16\"]", "[]")],
            &[("[]", "remote_networks is empty")],
        ),
        case(
            &[("[\"10.3.0.0/16\"]", "[\"fd00:3::/64\"]")],
            &[("fd00:3::/64", "give an IPv4 network on both sides")],
        ),
        case(
            &[("[\"10.3.0.0/16\"]", "[\"10.3.0.0/16\", \"10.3.1.0/24\"]")],
            &[("10.3.1.0/24", "inside 10.3.0.0/16")],
        ),
        case(
            &[("[\"10.3.0.0/16\"]", "[\"10.3.0.0/16\", \"10.3.0.0/16\"]")],
            &[("10.3.0.0/16", "given twice")],
        ),
        case(
            &[("[\"10.3.0.0/16\"]", "[\"10.2.0.0/16\"]")],
            &[("10.2.0.0/16", "duplicate")],
        ),
        case(&[("[\"10.3.0.0/16\"]", "[\"10.2.0.0/17\"]")], &[]),
        case(&[("[\"10.3.0.0/16\"]", "[\"10.2.0.1\"]")], &[]),
        case(
            &[
                (
                    "local_networks = [\"10.1.0.0/16\"]",
                    "local_networks = [\"10.0.0.0/8\"]",
                ),
                ("10.3.0.0/16", "10.2.1.0/24"),
            ],
            &[("10.2.1.0/24", "ambiguous overlap")],
        ),
        case(
            &[("name = \"second\"", "name = \"first\"")],
            &[("first", "two tunnels are called")],
        ),
    ]);
}

#[test]
fn crossing_names_both_tunnels_and_nesting_is_accepted() {
    let site = Site::new();
    let errors = site.errors(include_str!("../policies/crossing.toml"));
    assert_eq!(lines(&errors), [36, 47, 47]);
    let [first, second, third] = errors.as_slice() else {
        panic!()
    };
    assert!(
        first
            .message()
            .contains("\"narrow-to-wide\" takes 10.1.0.0/16 to 172.16.0.0/16"),
        "{first}"
    );
    assert!(
        first
            .message()
            .contains("\"wide-to-narrow\" takes 10.0.0.0/8 to 172.16.1.0/24"),
        "{first}"
    );
    assert_eq!(first.related().unwrap().line(), 25);
    let said = format!("{second}{third}");
    assert!(
        said.contains("duplicate") && said.contains("ambiguous overlap"),
        "{said}"
    );
}

#[test]
fn endpoints() {
    check(&[
        case(
            &[("remote = \"192.0.2.2\"", "remote = \"192.0.2.1\"")],
            &[("remote", "both ends are 192.0.2.1")],
        ),
        case(
            &[("remote = \"192.0.2.2\"", "remote = \"2001:db8::2\"")],
            &[("remote", "local is IPv4, but remote is IPv6")],
        ),
        case(
            &[("remote = \"192.0.2.2\"", "remote = \"0.0.0.0\"")],
            &[("remote", "unspecified")],
        ),
        case(
            &[("remote = \"192.0.2.2\"", "remote = \"239.1.1.1\"")],
            &[("remote", "multicast")],
        ),
        case(
            &[("remote = \"192.0.2.2\"", "remote = \"255.255.255.255\"")],
            &[("remote", "broadcast")],
        ),
        case(
            &[("remote = \"192.0.2.2\"", "remote = \"127.0.0.1\"")],
            &[("remote", "loopback")],
        ),
        case(
            &[("remote = \"192.0.2.2\"", "remote = \"::ffff:192.0.2.2\"")],
            &[("remote", "write \"192.0.2.2\"")],
        ),
        case(
            &[("remote = \"192.0.2.2\"", "remote = \"east\"")],
            &[("remote", "no IP address")],
        ),
        case(
            &[("encapsulation = \"udp\"", "encapsulation = \"upd\"")],
            &[("upd", "did you mean \"udp\"?")],
        ),
        case(
            &[("encapsulation = \"udp\"", "")],
            &[("udp_remote_port", "without UDP encapsulation")],
        ),
        case(
            &[("udp_remote_port = 4501", "udp_remote_port = 0")],
            &[("udp_remote_port", "from 1 to 65535")],
        ),
        case(
            &[("udp_remote_port = 4501", "nat_keepalive = 3601")],
            &[("nat_keepalive", "from 0 to 3600")],
        ),
        case(
            &[("udp_remote_port = 4501", "peer_moves = \"yes\"")],
            &[("peer_moves", "true or false")],
        ),
        case(
            &[
                ("encapsulation = \"udp\"", "nat_keepalive = 20"),
                ("udp_remote_port = 4501", "peer_moves = true"),
            ],
            &[
                ("nat_keepalive", "nat_keepalive without UDP encapsulation"),
                ("peer_moves", "write encapsulation = \"udp\", or remove it"),
            ],
        ),
        case(
            &[("hop_limit = 32", "hop_limit = 0")],
            &[("hop_limit", "from 1 to 255")],
        ),
        case(&[("dscp = 46", "dscp = 64")], &[("dscp", "from 0 to 63")]),
        case(
            &[("dscp = 46", "dscp = \"ef\"")],
            &[("dscp", "write \"copy\"")],
        ),
        case(&[("df = \"set\"", "df = true")], &[("df", "takes text")]),
        case(
            &[("df = \"set\"", "df = \"on\"")],
            &[("df", "\"copy\" or \"set\" or \"clear\"")],
        ),
        case(
            &[("df = \"set\"", "clamp_mss = 1")],
            &[("clamp_mss", "true or false")],
        ),
        case(
            &[("df = \"set\"", "fragmentation = \"never\"")],
            &[("fragmentation", "\"before\" or \"after\"")],
        ),
        case(
            &[("df = \"set\"", "path_mtu = 500")],
            &[("path_mtu", "from 576 to 9000")],
        ),
        case(
            &[("ecn = \"compatibility\"", "ecn = \"compat\"")],
            &[("ecn", "\"normal\" or \"compatibility\"")],
        ),
    ]);
}

/// Endpoint sets between the two tunnels of the base policy, with free SPIs and keys.
fn with_sets(sets: &[(&str, &str, u32)]) -> String {
    let sets: String = sets
        .iter()
        .map(|(local, remote, number)| {
            format!(
                "[[tunnel.endpoints]]\nlocal = \"{local}\"\nremote = \"{remote}\"\n\
                 outbound = {{ spi = {}, cipher = \"aes-128-gcm\", key.file = \"{}.key\" }}\n\
                 inbound = {{ spi = {}, cipher = \"aes-128-gcm\", key.file = \"{}.key\" }}\n",
                1000 + number,
                number,
                2000 + number,
                number + 1,
            )
        })
        .collect();
    BASE.replace(
        "[[tunnel]]\nname = \"second\"",
        &format!("{sets}\n[[tunnel]]\nname = \"second\""),
    )
}

#[test]
fn endpoint_sets() {
    let site = Site::new();
    assert!(
        site.parse(&with_sets(&[("fd00:9::1", "fd00:9::2", 5)]))
            .is_ok()
    );
    let errors = site.errors(&with_sets(&[("192.0.2.1", "192.0.2.9", 5)]));
    assert_eq!(errors.len(), 1);
    assert!(errors[0].message().contains("both endpoint sets are IPv4"));
    let errors = site.errors(&with_sets(&[
        ("fd00:9::1", "fd00:9::2", 5),
        ("fd00:9::1", "fd00:9::3", 7),
    ]));
    assert_eq!(errors.len(), 1);
    assert!(errors[0].message().contains("at most two"));
}

#[test]
fn security_associations() {
    check(&[
        case(&[("spi = 0x1001", "spi = 0")], &[("spi = 0", "reserved")]),
        case(
            &[("spi = 0x1001", "spi = 0xff")],
            &[("spi = 0xff", "SPI 255 is reserved")],
        ),
        case(
            &[("spi = 0x1001", "spi = 0x1_0000_0000")],
            &[("spi = 0x1_", "32 bits")],
        ),
        case(
            &[("spi = 0x1001", "spi = -300")],
            &[("spi = -300", "32 bits")],
        ),
        case(
            &[(
                "spi = 0x1001",
                "spi = 99999999999999999999999999999999999999999999",
            )],
            &[("spi = 9", "too large")],
        ),
        case(
            &[("spi = 0x1004", "spi = 4098")],
            &[("spi = 4098", "inbound SPI 0x00001002 is given twice")],
        ),
        case(
            &[
                ("spi = 0x1003", "spi = 0x1001"),
                ("\"2001:db8::2\"", "\"192.0.2.2\""),
                ("local = \"2001:db8::1\"", "local = \"192.0.2.1\""),
            ],
            &[("spi = 0x1001", "outbound SPI 0x00001001 to 192.0.2.2")],
        ),
        case(&[("spi = 0x1003", "spi = 0x1001")], &[]),
        case(
            &[("aes-128-gcm", "aes-128-gmc")],
            &[("aes-128-gmc", "did you mean \"aes-128-gcm\"?")],
        ),
        case(
            &[("aes-128-gcm", "des")],
            &[("des", "aes-128-gcm, aes-192-gcm, aes-256-gcm")],
        ),
        case(
            &[("window = 128", "window = 1000")],
            &[("window", "write window = 1024")],
        ),
        case(
            &[("window = 128", "window = 32")],
            &[("window", "write window = 64")],
        ),
        case(
            &[("window = 128", "window = 131072")],
            &[("window", "write window = 65536")],
        ),
        case(&[("window = 128", "window = 0x100")], &[]),
    ]);
}
