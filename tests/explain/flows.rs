//! Flows in words, where packets come in, and what is told of each.

use simplon::control::explain::{Ask, Captured, Case, Flow, Link, Refused};
use simplon::policy::model::Side;

use super::bed::{Bed, LAN_MAC, WAN_MAC, framed};
use super::random::{Inner, Random, inner};

const POLICIES: &str = r#"
[[policy]]
name = "no-mail"
action = "discard"
local = "any"
remote = "10.2.0.0/16"
protocol = "tcp"
remote_ports = 25
[[bypass]]
name = "near"
local_networks = ["10.1.0.0/16"]
remote_networks = ["172.16.0.0/12"]
"#;

fn flow(local: &str, remote: &str) -> Flow {
    Flow {
        local: local.parse().expect("address"),
        remote: remote.parse().expect("address"),
        protocol: None,
        local_port: None,
        remote_port: None,
        icmp_type: None,
        icmp_code: None,
        length: None,
        dont_fragment: false,
        ttl: None,
        inbound: false,
    }
}

fn ask(flow: Flow) -> Ask {
    Ask {
        flow: Some(flow),
        ..Ask::default()
    }
}

#[track_caller]
fn only(bed: &Bed, ask: &Ask) -> Case {
    let mut cases = bed.ask(ask).expect("explained").cases;
    assert_eq!(cases.len(), 1);
    cases.remove(0)
}

#[track_caller]
fn said(case: &Case, step: &str) -> String {
    let mut steps = case.steps.iter();
    let found = steps.find(|told| told.step == step);
    found
        .unwrap_or_else(|| panic!("no {step} in {case:#?}"))
        .what
        .clone()
}

#[test]
fn every_step_has_its_reason() {
    let bed = Bed::new(POLICIES);
    let case = only(
        &bed,
        &ask(Flow {
            ttl: Some(9),
            ..flow("10.1.0.10", "10.3.0.10")
        }),
    );
    assert_eq!(
        case.packet,
        "ICMP type 8 code 0 10.1.0.10 -> 10.3.0.10, 28 bytes, TTL 9"
    );
    let policy = said(&case, "policy");
    assert_eq!(
        policy,
        "tunnel \"udp\" has it, 10.1.0.0/16 to 10.3.0.0/16; no ordered policy holds it"
    );
    assert_eq!(case.sa.as_ref().expect("an SA").spi, "0x00001018");
    assert!(said(&case, "sa").ends_with("192.0.2.1 -> 192.0.2.2, aes-128-gcm, in UDP"));
    assert_eq!(
        said(&case, "next-hop"),
        "the peer, 192.0.2.2, by port wan, MAC 02:00:00:00:00:07"
    );
    assert!(
        said(&case, "size").starts_with("28 bytes are "),
        "{case:#?}"
    );
    assert_eq!(said(&case, "ttl"), "TTL 9, 8 when it leaves");
    assert_eq!(
        said(&case, "sequence"),
        "1 is the next number (it is not taken)"
    );
    assert_eq!(case.verdict.verdict, "sent");
    let mail = Flow {
        remote_port: Some(25),
        ..flow("10.1.0.10", "10.2.0.10")
    };
    let case = only(&bed, &ask(mail));
    assert_eq!(
        said(&case, "policy"),
        "policy \"no-mail\", number 1 of 1, is the first that holds it: discard"
    );
    assert_eq!(case.verdict.reason.as_deref(), Some("discarded"));
    let fact = case.policy.expect("a policy");
    assert_eq!(
        (fact.kind.as_deref(), fact.name.as_deref()),
        (Some("policy"), Some("no-mail"))
    );
    let case = only(&bed, &ask(flow("10.1.0.10", "172.16.0.9")));
    assert!(said(&case, "policy").starts_with("bypass \"near\" has it"));
    assert_eq!(
        said(&case, "next-hop"),
        "172.16.0.9, via 192.0.2.9 by port wan, MAC 02:00:00:00:00:09"
    );
    assert!(said(&case, "send").ends_with("by port wan, in clear"));
}

#[test]
fn what_ends_it_is_told() {
    let bed = Bed::new(POLICIES);
    for (flow, step, reason, words) in [
        (
            flow("10.1.0.10", "10.77.0.1"),
            "policy",
            "no-policy",
            "10.77.0.1 is in none of the remote_networks of tunnel \"plain\"",
        ),
        (
            flow("10.1.0.10", "10.7.0.10"),
            "sa",
            "sa-down",
            "of tunnel \"down\", 192.0.2.1 -> 192.0.2.2 was not started",
        ),
        (
            flow("10.1.0.10", "10.8.0.10"),
            "sequence",
            "sa-expired",
            "lifetime is over",
        ),
        (
            flow("10.1.0.10", "10.9.0.10"),
            "sequence",
            "lease-wait",
            "leased on disk ran out",
        ),
        (
            flow("10.1.0.10", "10.10.0.10"),
            "next-hop",
            "no-route",
            "the peer, 203.0.113.9: port wan has no route there",
        ),
        (
            flow("10.1.0.10", "10.11.0.10"),
            "next-hop",
            "no-neighbour",
            "the MAC address of 192.0.2.77 is not known",
        ),
        (
            Flow {
                ttl: Some(1),
                ..flow("10.1.0.10", "10.2.0.10")
            },
            "ttl",
            "ttl-expired",
            "TTL 1 runs out here",
        ),
        (
            Flow {
                length: Some(1390),
                dont_fragment: true,
                ..flow("10.1.0.10", "10.2.0.10")
            },
            "size",
            "too-big",
            "the link takes 1400; too big, and DF is set: up to 1346 bytes go",
        ),
    ] {
        let case = only(&bed, &ask(flow));
        assert!(said(&case, step).contains(words), "{case:#?}");
        assert_eq!(case.verdict.reason.as_deref(), Some(reason));
        assert_eq!(case.steps.last().map(|last| last.passed), Some(false));
        assert!(case.verdict.next.is_some(), "what to do");
        let counted = case.counters.iter().any(|rise| {
            rise.counter == "dropped" && rise.reason.as_deref() == Some(reason) && rise.packets == 1
        });
        assert!(counted, "{case:#?}");
    }
}

#[test]
fn what_is_cut_is_told_with_its_pieces() {
    let bed = Bed::new(POLICIES);
    let long = |remote| {
        ask(Flow {
            length: Some(1390),
            ..flow("10.1.0.10", remote)
        })
    };
    let before = only(&bed, &long("10.2.0.10"));
    assert_eq!(before.verdict.verdict, "cut");
    assert_eq!(
        (before.verdict.pieces, before.verdict.reason.as_deref()),
        (Some(2), Some("cut-before"))
    );
    assert!(
        said(&before, "size")
            .contains("packets of at most 1346 bytes that are sealed each for itself")
    );
    let counted = |case: &Case| -> Vec<String> {
        let told = case.counters.iter().map(|rise| {
            let reason = rise.reason.as_deref().unwrap_or_default();
            format!("{} {reason} {}", rise.counter, rise.packets)
        });
        told.collect()
    };
    assert_eq!(
        counted(&before),
        ["received  1", "made  2", "sent  2", "aside cut-before 1"]
    );
    let after = only(&bed, &long("10.6.0.10"));
    assert!(
        said(&after, "size").contains("sealed whole, and cut into packets of at most 1400 bytes")
    );
    assert_eq!(
        counted(&after),
        ["received  1", "made  2", "sent  2", "aside cut-after 1"]
    );
}

#[test]
fn first_packets_wait_where_the_port_finds_out_addresses() {
    let bed = Bed::new(POLICIES);
    let mut sources = bed.sources();
    sources.resolves = &[true, true];
    let asked = ask(flow("10.1.0.10", "10.11.0.10"));
    let explained = simplon::control::explain::explain(&asked, sources).expect("explained");
    let case = &explained.cases[0];
    assert_eq!(case.verdict.verdict, "waits");
    assert_eq!(case.verdict.reason.as_deref(), Some("unresolved"));
    assert!(said(case, "next-hop").ends_with("192.0.2.77 is not known; first packets wait for it"));
}

#[test]
fn inbound_flow_is_told_twice() {
    let bed = Bed::new(POLICIES);
    let inbound = |local: &str, remote: &str, tunnel: Option<&str>| Ask {
        flow: Some(Flow {
            inbound: true,
            ..flow(local, remote)
        }),
        tunnel: tunnel.map(Into::into),
        ..Ask::default()
    };
    let cases = bed
        .ask(&inbound("10.1.0.10", "10.2.0.10", None))
        .expect("explained")
        .cases;
    let [opened, clear] = &cases[..] else {
        panic!("{cases:#?}")
    };
    assert_eq!(
        opened.assuming.as_deref(),
        Some("it comes out of tunnel \"plain\"")
    );
    assert_eq!(
        opened.packet,
        "ICMP type 8 code 0 10.2.0.10 -> 10.1.0.10, 28 bytes, TTL 64"
    );
    assert_eq!(opened.verdict.verdict, "sent");
    assert_eq!(
        opened.next_hop.as_ref().and_then(|hop| hop.mac.as_deref()),
        Some("02:00:00:00:00:10")
    );
    assert_eq!(clear.assuming.as_deref(), Some("it comes in clear"));
    assert_eq!(clear.verdict.reason.as_deref(), Some("clear-text"));
    assert!(said(clear, "classify").contains("tunnel \"plain\" has it"));
    // Out of another tunnel than policies say.
    let cases = bed
        .ask(&inbound("10.1.0.10", "10.2.0.10", Some("udp")))
        .expect("explained")
        .cases;
    assert_eq!(
        cases[0].verdict.reason.as_deref(),
        Some("selector-mismatch")
    );
    assert!(said(&cases[0], "policy").contains("but it came out of tunnel \"udp\""));
    let cases = bed
        .ask(&inbound("10.1.0.10", "10.7.0.10", None))
        .expect("explained")
        .cases;
    assert_eq!(cases[0].verdict.reason.as_deref(), Some("sa-down"));
    // No tunnel's: in clear alone.
    let case = only(&bed, &inbound("10.1.0.10", "172.16.0.9", None));
    assert_eq!(case.verdict.verdict, "sent");
}

#[test]
fn sealed_packet_is_opened_and_nothing_inside_is_told_unless_it_is_authentic() {
    let bed = Bed::new(POLICIES);
    let mut random = Random(7);
    let inner = Inner {
        from: "10.2.0.123".parse().expect("address"),
        to: "10.1.0.10".parse().expect("address"),
        protocol: 17,
        ttl: 64,
        flags: 0,
        ..inner(&mut random, false)
    };
    let mut plain = inner.bytes();
    let pad = (4 - (plain.len() + 2) % 4) % 4;
    plain.extend((1..=u8::MAX).take(pad));
    plain.extend([u8::try_from(pad).expect("short"), 4]);
    let mut sealed = bed.seal("plain", 5001, &plain, 0);
    let frame = framed(WAN_MAC, &sealed.bytes());
    let case = bed.explain(Side::Unprotected, &frame);
    assert!(
        case.inner
            .as_deref()
            .is_some_and(|inner| inner.contains("10.2.0.123"))
    );
    assert_eq!(case.sa.as_ref().and_then(|sa| sa.sequence), Some(5001));
    assert!(said(&case, "replay").contains("the highest seen is 5000, the window 1024 packets"));
    // Once it has passed, it is a copy; and what it would be if it were not is told as well.
    let mut bed = bed;
    bed.pass(Side::Unprotected, &frame);
    let ask = Ask {
        packet: Some(Captured::new(&frame, Link::Ethernet)),
        ..Ask::default()
    };
    let cases = bed.ask(&ask).expect("explained").cases;
    assert_eq!(cases[0].verdict.reason.as_deref(), Some("replayed"));
    assert_eq!(cases[0].inner, None);
    let again = &cases[1];
    assert_eq!(
        again.assuming.as_deref(),
        Some("its sequence number is new")
    );
    assert_eq!(again.inner, case.inner);
    assert_eq!(again.verdict, case.verdict);
    let last = sealed.payload.len() - 1;
    sealed.payload[last] ^= 1;
    sealed.payload[7] += 1;
    let case = bed.explain(Side::Unprotected, &framed(WAN_MAC, &sealed.bytes()));
    assert_eq!(case.verdict.reason.as_deref(), Some("bad-icv"));
    let told = serde_json::to_string(&case).expect("JSON");
    assert!(!told.contains("10.2.0.123"), "{told}");
    // An SPI of a tunnel, at another address of ours; and one that nobody has.
    sealed.to = "192.0.2.50".parse().expect("address");
    let case = bed.explain(Side::Unprotected, &framed(WAN_MAC, &sealed.bytes()));
    let why = "the SPI is that of tunnel \"plain\", whose packets are for 192.0.2.1; this one is for 192.0.2.50";
    assert_eq!(said(&case, "sa"), why);
    sealed.payload[0] ^= 0x80;
    let case = bed.explain(Side::Unprotected, &framed(WAN_MAC, &sealed.bytes()));
    assert!(said(&case, "sa").starts_with("no inbound SA has SPI 0x8"));
}

#[test]
fn port_of_a_captured_packet_is_found() {
    let bed = Bed::new(POLICIES);
    let packet = |from: &str, to: &str| {
        Inner {
            from: from.parse().expect("address"),
            to: to.parse().expect("address"),
            flags: 0,
            ..inner(&mut Random(1), true)
        }
        .bytes()
    };
    let captured = |bytes: &[u8], link| Ask {
        packet: Some(Captured::new(bytes, link)),
        ..Ask::default()
    };
    let out = packet("10.1.0.10", "10.2.0.10");
    let back = packet("10.2.0.10", "10.1.0.10");
    for (asked, port) in [
        (captured(&framed(LAN_MAC, &out), Link::Ethernet), "lan"),
        (captured(&framed(WAN_MAC, &out), Link::Ethernet), "wan"),
        (captured(&out, Link::Ip), "lan"),
        (captured(&back, Link::Ip), "wan"),
        (captured(&packet("192.0.2.2", "192.0.2.1"), Link::Ip), "wan"),
    ] {
        assert_eq!(only(&bed, &asked).port, port);
    }
    // Of one that the gateway itself has sent there is nothing to explain.
    let mut sent = framed([2, 0, 0, 0, 0, 7], &out);
    sent[6..12].copy_from_slice(&WAN_MAC);
    let refused = bed
        .ask(&captured(&sent, Link::Ethernet))
        .expect_err("nobody's")
        .to_string();
    assert!(
        refused.contains("lan 02:00:00:00:00:01, wan 02:00:00:00:00:02"),
        "{refused}"
    );
    assert!(refused.contains("It was sent by port wan"), "{refused}");
    let group = captured(&framed([0xff; 6], &out), Link::Ethernet);
    assert_eq!(bed.ask(&group), Err(Refused::WhichPort("lan, wan".into())));
    assert_eq!(
        only(
            &bed,
            &Ask {
                port: Some("lan".into()),
                ..group
            }
        )
        .verdict
        .reason
        .as_deref(),
        Some("not-our-mac")
    );
}

#[test]
fn what_is_not_clear_is_refused_with_what_to_say() {
    let bed = Bed::new(POLICIES);
    let one = || flow("10.1.0.10", "10.2.0.10");
    let packet = || Some(Captured::new(&[1; 60], Link::Ethernet));
    for (asked, words) in [
        (Ask::default(), "either a flow or a packet"),
        (
            Ask {
                packet: packet(),
                ..ask(one())
            },
            "either a flow or a packet",
        ),
        (
            Ask {
                port: Some("wan1".into()),
                ..ask(one())
            },
            "no port is called \"wan1\"; there are: lan, wan",
        ),
        (
            Ask {
                port: Some("wan".into()),
                ..ask(one())
            },
            "what comes in here is explained with --inbound",
        ),
        (
            Ask {
                port: Some("lan".into()),
                ..ask(Flow {
                    inbound: true,
                    ..one()
                })
            },
            "inbound packets come in by an unprotected port",
        ),
        (
            Ask {
                tunnel: Some("plain".into()),
                ..ask(one())
            },
            "for inbound flows only",
        ),
        (
            Ask {
                tunnel: Some("plane".into()),
                ..ask(Flow {
                    inbound: true,
                    ..one()
                })
            },
            "no tunnel is called \"plane\"; there are: plain, udp",
        ),
        (ask(flow("10.1.0.10", "fd00:2::1")), "of one family"),
        (
            ask(Flow {
                length: Some(20),
                ..one()
            }),
            "20 bytes are too short: with these headers a packet has at least 28",
        ),
        (
            ask(Flow {
                protocol: Some(47),
                local_port: Some(1),
                ..one()
            }),
            "protocol 47 has no ports",
        ),
        (
            ask(Flow {
                protocol: Some(6),
                icmp_type: Some(1),
                ..one()
            }),
            "TCP has no types and codes",
        ),
        (
            ask(Flow {
                dont_fragment: true,
                ..flow("fd00:1::10", "fd00:2::10")
            }),
            "IPv6 has no DF",
        ),
        (
            Ask {
                packet: Some(Captured {
                    hex: "4g".into(),
                    link: Link::Ip,
                }),
                ..Ask::default()
            },
            "hexadecimal digits",
        ),
        (
            Ask {
                packet: Some(Captured {
                    hex: "453".into(),
                    link: Link::Ip,
                }),
                ..Ask::default()
            },
            "even number",
        ),
        (
            Ask {
                packet: Some(Captured {
                    hex: "4".repeat(200_000),
                    link: Link::Ip,
                }),
                ..Ask::default()
            },
            "more than any packet has",
        ),
    ] {
        let refused = bed.ask(&asked).expect_err("refused").to_string();
        assert!(refused.contains(words), "{refused}");
    }
}
