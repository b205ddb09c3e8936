//! Ordered policies with full selectors, asked before prefixes, and of what was opened too.

use super::*;

/// As west has them; east has local and remote, and the ports on both sides, the other way round.
const ORDERED: &[(&str, &[(&str, &str)])] = &[
    (
        "discard",
        &[("protocol", "\"tcp\""), ("REMOTE_PORTS", "25")],
    ),
    (
        "bypass",
        &[
            ("protocol", "\"tcp\""),
            ("REMOTE_PORTS", "[22, \"8000-8999\"]"),
        ],
    ),
    (
        "protect",
        &[("protocol", "\"icmp\""), ("icmp", "[\"8\", \"0/0\"]")],
    ),
    ("discard", &[("protocol", "\"icmp\"")]),
    ("discard", &[("REMOTE", "\"172.16.0.128-172.16.0.255\"")]),
];

/// What stands behind the policy of one end.
fn ordered(end: End) -> String {
    let mut text = String::new();
    for (at, (action, keys)) in ORDERED.iter().enumerate() {
        let (near, far) = match end {
            End::West => ("local", "remote"),
            End::East => ("remote", "local"),
        };
        text += &format!(
            "\n[[policy]]\nname = \"p{at}\"\naction = \"{action}\"\n{near} = \"10.1.0.0/16\"\n"
        );
        if *action == "protect" {
            text += "tunnel = \"t0\"\n";
        }
        let mut is_said = false;
        for (key, value) in *keys {
            let key = match *key {
                "REMOTE" => {
                    is_said = true;
                    far.to_owned()
                }
                "REMOTE_PORTS" => format!("{far}_ports"),
                other => other.to_owned(),
            };
            text += &format!("{key} = {value}\n");
        }
        if !is_said {
            text += &format!("{far} = \"any\"\n");
        }
    }
    text
}

fn bed(end: End, with_policies: bool) -> Bed {
    let mut text = policy(end, 1, false);
    if with_policies {
        text += &ordered(end);
    }
    Bed::of(&text, 1)
}

/// Between a host of west's and one of the tunnel's far side, with these first bytes of transport header.
fn inner(to: &str, protocol: u8, head: [u8; 4]) -> Vec<u8> {
    let mut packet = Packet {
        protocol,
        ..Packet::new("10.1.0.10", to)
    }
    .bytes();
    packet[20..24].copy_from_slice(&head);
    packet
}

fn tcp(to: &str, from_port: u16, to_port: u16) -> Vec<u8> {
    let [a, b] = from_port.to_be_bytes();
    let [c, d] = to_port.to_be_bytes();
    inner(to, 6, [a, b, c, d])
}

/// A host of the far side answers.
fn reversed(mut packet: Vec<u8>) -> Vec<u8> {
    let (source, destination) = packet[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    if packet[9] == 6 {
        let (from, to) = packet[20..24].split_at_mut(2);
        from.swap_with_slice(to);
    }
    packet
}

const FAR: &str = "172.16.0.5";

#[test]
fn first_policy_that_holds_a_packet_decides() {
    let mut west = bed(End::West, true);
    let mut fate = |packet: Vec<u8>| west.pass(Side::Protected, &[packet]).remove(0);
    let discarded = Outcome::Dropped(DropReason::Discarded);
    // Each twice: found, and remembered.
    for _ in 0..2 {
        assert_eq!(fate(tcp(FAR, 1024, 25)), discarded);
        let ssh = tcp(FAR, 1024, 22);
        assert_eq!(fate(ssh.clone()), Outcome::Sent(passed_on(&ssh, WAN_MAC)));
        let high = tcp("172.16.0.200", 1024, 8500);
        assert_eq!(fate(high.clone()), Outcome::Sent(passed_on(&high, WAN_MAC)));
        for is_sealed in [
            inner(FAR, 1, [8, 0, 0, 0]),
            inner(FAR, 1, [8, 7, 0, 0]),
            inner(FAR, 1, [0, 0, 0, 0]),
            tcp(FAR, 25, 1024),
            tcp(FAR, 1024, 9000),
            tcp(FAR, 1024, 80),
        ] {
            assert_eq!(fate(is_sealed).sent()[14 + 9], 50);
        }
        assert_eq!(fate(inner(FAR, 1, [0, 1, 0, 0])), discarded, "another code");
        assert_eq!(
            fate(inner(FAR, 1, [13, 0, 0, 0])),
            discarded,
            "another type"
        );
        assert_eq!(fate(tcp("172.16.0.200", 1024, 80)), discarded);
        let nobodys = Packet::new("10.9.0.5", FAR).bytes();
        assert_eq!(fate(nobodys), Outcome::Dropped(DropReason::NoPolicy));
        // The middle of a packet has no ports that a policy could see.
        let mut middle = tcp(FAR, 1024, 25);
        middle[7] = 9;
        let middle = with_flags(middle, 0);
        assert_eq!(fate(middle).sent()[14 + 9], 50);
    }
}

#[test]
fn opened_packets_are_held_to_the_same_policies() {
    let packets = [
        (tcp(FAR, 1024, 80), true),
        (inner(FAR, 1, [8, 0, 0, 0]), true),
        // To be discarded, to pass in clear, and to be discarded.
        (tcp(FAR, 1024, 25), false),
        (tcp(FAR, 1024, 22), false),
        (inner(FAR, 1, [13, 0, 0, 0]), false),
    ];
    // A peer that has other policies, and seals what it should not.
    let mut west = bed(End::West, false);
    let mut east = bed(End::East, true);
    for (packet, fits) in packets {
        let sealed = west.pass(Side::Protected, &[packet]).remove(0).sent();
        let outcome = east
            .pass(Side::Unprotected, &[sealed[14..].to_vec()])
            .remove(0);
        match fits {
            true => assert!(matches!(outcome, Outcome::Sent(_)), "{outcome:?}"),
            false => assert_eq!(outcome, Outcome::Dropped(DropReason::SelectorMismatch)),
        }
    }
}

#[test]
fn clear_text_comes_in_as_policies_say() {
    let mut west = bed(End::West, true);
    let mut fate = |packet: Vec<u8>| west.pass(Side::Unprotected, &[packet]).remove(0);
    let answer = reversed(tcp(FAR, 1024, 22));
    assert_eq!(
        fate(answer.clone()),
        Outcome::Sent(passed_on(&answer, LAN_MAC))
    );
    for other in [
        tcp(FAR, 1024, 80),
        tcp(FAR, 22, 1024),
        inner(FAR, 1, [8, 0, 0, 0]),
    ] {
        assert_eq!(
            fate(reversed(other)),
            Outcome::Dropped(DropReason::ClearText)
        );
    }
    west.assert_balanced(Side::Unprotected);
}
