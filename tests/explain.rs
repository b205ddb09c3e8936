//! That what `explain` says and what the gateway does are one: whatever the policy and the packet, the counters rise by what it
//! said before; and asking changes nothing. Tables, SAs and stages are the real ones, over buffers of their own.

#[path = "explain/bed.rs"]
mod bed;
#[path = "common/random.rs"]
mod chance;
#[path = "explain/flows.rs"]
mod flows;
#[path = "explain/random.rs"]
mod random;
#[path = "explain/vlans.rs"]
mod vlans;

use std::collections::BTreeMap;

use simplon::control::explain::{Case, Rise};
use simplon::drop::{DropReason, Fate, PuntReason};
use simplon::ipsec::traffic::{AnyTraffic, Direction, Traffic};
use simplon::policy::Policy;
use simplon::policy::model::Side;
use simplon::worker::counters::DirectionCounters;

use bed::{Bed, LAN_MAC, WAN_MAC, framed};
use random::{Random, damage, entries, inner};

/// Policies, and packets that each has to do with.
const POLICIES: usize = 24;
const PACKETS: usize = 400;

/// What becomes of packets, of which each must have been seen.
const CLASSES: &[&str] = &[
    "outbound sent",
    "outbound dropped discarded",
    "outbound dropped no-policy",
    "outbound dropped sa-down",
    "outbound dropped sa-expired",
    "outbound dropped lease-wait",
    "outbound dropped no-route",
    "outbound dropped no-neighbour",
    "outbound dropped too-big",
    "outbound dropped ttl-expired",
    "outbound dropped not-our-mac",
    "outbound dropped runt",
    "outbound dropped bad-length",
    "outbound dropped bad-checksum",
    "outbound dropped unknown-ethertype",
    "outbound dropped unknown-vlan",
    "outbound punted arp",
    "outbound punted local",
    "outbound punted icmp",
    "outbound punted multicast",
    "outbound punted neighbour-discovery",
    "outbound aside cut-before",
    "outbound aside cut-after",
    "inbound sent",
    "inbound dropped clear-text",
    "inbound dropped no-sa",
    "inbound dropped sa-down",
    "inbound dropped sa-expired",
    "inbound dropped encap-mismatch",
    "inbound dropped zero-sequence",
    "inbound dropped replayed",
    "inbound dropped too-old",
    "inbound dropped bad-icv",
    "inbound dropped bad-padding",
    "inbound dropped bad-next-header",
    "inbound dropped bad-inner",
    "inbound dropped dummy",
    "inbound dropped ce-on-not-ect",
    "inbound dropped selector-mismatch",
    "inbound dropped nat-keepalive",
    "inbound dropped no-route",
    "inbound dropped no-neighbour",
    "inbound dropped too-big",
    "inbound dropped ttl-expired",
    "inbound punted ike",
    "inbound punted local",
    "inbound aside cut-after",
    "inbound aside reassembled",
];

/// A frame for the protected port.
fn outbound(random: &mut Random) -> Vec<u8> {
    let mac = match random.below(40) {
        0 => [2, 0, 0, 0, 0, 77],
        1 => [0xff; 6],
        _ => LAN_MAC,
    };
    match random.below(30) {
        0 => [&mac[..], &[2, 0, 0, 0, 0, 9, 8, 6], &[0; 46]].concat(),
        1 => [
            &mac[..],
            &[2, 0, 0, 0, 0, 9, 0x81, 0, 0, 7, 8, 0],
            &[0x45; 60],
        ]
        .concat(),
        2 => (0..=random.below(100)).map(|_| random.byte()).collect(),
        _ => framed(mac, &inner(random, true).bytes()),
    }
}

/// Padding, its length and the next header behind a packet, mostly.
fn with_trailer(mut text: Vec<u8>, random: &mut Random) -> Vec<u8> {
    let next_header = match (random.below(12), text.first().map(|first| first >> 4)) {
        (0, _) => random.pick(&[59, 6, 50]),
        (_, Some(6)) => 41,
        _ => 4,
    };
    let pad = (4 - (text.len() + 2) % 4) % 4;
    text.extend((1..=u8::MAX).take(pad));
    let told = match random.below(30) {
        0 => 200,
        _ => u8::try_from(pad).expect("short"),
    };
    text.extend([told, next_header]);
    text
}

/// A frame for the unprotected port: mostly what peers send, well or badly sealed.
fn inbound(bed: &Bed, random: &mut Random) -> Vec<u8> {
    let sealed = match random.below(8) {
        0 => return framed(WAN_MAC, &inner(random, false).bytes()),
        1 => {
            let mut packet = inner(random, false);
            packet.to = "192.0.2.1".parse().expect("address");
            packet.from = "192.0.2.2".parse().expect("address");
            packet.protocol = random.pick(&[17, 17, 50, 1, 6]);
            if packet.protocol == 17 && packet.payload.len() > 12 {
                let len = u16::try_from(packet.payload.len())
                    .expect("short")
                    .to_be_bytes();
                packet.payload[2..4]
                    .copy_from_slice(&random.pick(&[4500u16, 500, 53]).to_be_bytes());
                packet.payload[4..6].copy_from_slice(&len);
                packet.payload[8..12].copy_from_slice(&random.pick(&[[0; 4], [0, 0, 0x20, 8]]));
                if random.below(6) == 0 {
                    packet.payload.truncate(9);
                    packet.payload[4..6].copy_from_slice(&[0, 9]);
                    packet.payload[8] = 0xff;
                }
            }
            return framed(WAN_MAC, &packet.bytes());
        }
        _ => {
            let name = random.pick(&[
                "plain", "plain", "plain", "udp", "udp", "six", "split", "after", "down",
                "expired", "short",
            ]);
            let seen = bed.seen(name);
            let seq = match random.below(10) {
                0 => seen,
                1 => seen - 40,
                2 => seen.saturating_sub(3000),
                3 if name == "short" => 0,
                _ => seen + 1 + random.below(3) as u64,
            };
            let mut packet = inner(random, false);
            if random.below(4) > 0 {
                // Mostly what this tunnel may carry.
                let far = [
                    "plain", "udp", "six", "split", "after", "down", "expired", "lease", "lost",
                    "silent", "short",
                ];
                let at = 2 + far
                    .iter()
                    .position(|other| *other == name)
                    .expect("a tunnel");
                if packet.from.is_ipv4() {
                    packet.from = format!("10.{at}.0.10").parse().expect("address");
                }
            }
            let mut text = packet.bytes();
            if random.below(12) == 0 {
                damage(&mut text, random);
            }
            let text = with_trailer(text, random);
            bed.seal(name, seq, &text, random.pick(&[0, 0, 0, 3]))
        }
    };
    let mut sealed = sealed;
    match random.below(14) {
        0 => {
            let last = sealed.payload.len() - 1;
            sealed.payload[last] ^= 1;
        }
        1 if sealed.protocol == 50 => sealed.payload[2] ^= 0x40,
        2 if sealed.to.is_ipv4() => sealed.to = "192.0.2.50".parse().expect("address"),
        // In UDP what ought to be without, and the other way round.
        3 if sealed.protocol == 17 => {
            sealed.payload.drain(..8);
            sealed.protocol = 50;
        }
        4 if sealed.protocol == 50 => {
            let len = u16::try_from(8 + sealed.payload.len())
                .expect("short")
                .to_be_bytes();
            let header = [0x11, 0x94, 0x11, 0x94, len[0], len[1], 0, 0];
            sealed.payload.splice(0..0, header);
            sealed.protocol = 17;
        }
        5 => sealed.flags = 0x2000,
        6 => sealed.payload.truncate(random.below(40)),
        _ => {}
    }
    framed(WAN_MAC, &sealed.bytes())
}

/// What a direction's counters say, as explanations have it.
fn rises(counters: &DirectionCounters) -> Vec<Rise> {
    let rise = |counter: &str, reason: Option<&str>, packets| Rise {
        counter: counter.into(),
        reason: reason.map(Into::into),
        packets,
    };
    let mut all = vec![
        rise("received", None, counters.received.get()),
        rise("sent", None, counters.sent.get()),
        rise("bypassed", None, counters.bypassed.get()),
    ];
    for (reason, counter) in DropReason::ALL.iter().zip(&counters.drops) {
        all.push(rise("dropped", Some(reason.name()), counter.get()));
    }
    for (reason, counter) in PuntReason::ALL.iter().zip(&counters.punts) {
        all.push(rise("punted", Some(reason.name()), counter.get()));
    }
    all.retain(|rise| rise.packets > 0);
    all
}

/// What was said of one packet is what comes of it.
fn compare(
    case: &Case,
    fate: Fate,
    counters: &DirectionCounters,
    seen: &mut BTreeMap<String, usize>,
) {
    let class = match fate {
        Fate::Aside(reason) => {
            // What is made of it is up to the worker: `tests/hostile` has one.
            format!("aside {}", reason.name())
        }
        _ => {
            assert_eq!(case.counters, rises(counters), "{case:#?}");
            let reason = case.verdict.reason.as_deref().unwrap_or_default();
            format!("{} {reason}", case.verdict.verdict)
        }
    };
    match fate {
        Fate::Dropped(reason) => {
            assert_eq!(case.verdict.verdict, "dropped");
            assert_eq!(case.verdict.reason.as_deref(), Some(reason.name()));
            assert_eq!(case.verdict.help, reason.help());
            let last = case.steps.last().expect("a step");
            assert!(!last.passed, "{case:#?}");
        }
        Fate::Live => {
            assert_eq!(case.verdict.verdict, "sent");
            assert!(case.steps.iter().all(|step| step.passed), "{case:#?}");
        }
        Fate::Punted(reason) => {
            assert_eq!(case.verdict.verdict, "punted");
            assert_eq!(case.verdict.reason.as_deref(), Some(reason.name()));
        }
        Fate::Aside(_) | Fate::Bypassed => assert_ne!(case.verdict.verdict, "punted"),
    }
    *seen
        .entry(format!("{} {}", case.direction, class.trim_end()))
        .or_default() += 1;
}

/// The first ordered policy that holds the packet is the one that is named, as a reader of the file would find it.
fn assert_named(policy: &Policy, case: &Case, frame: &[u8]) {
    let Some(fact) = &case.policy else { return };
    if case.direction != "outbound" {
        return;
    }
    let (packet, is_v4) = (&frame[14..], frame[12] == 8);
    let traffic = match is_v4 {
        true => Traffic::of_v4(packet, Direction::Outbound).map(AnyTraffic::V4),
        false => Traffic::of_v6(packet, Direction::Outbound).map(AnyTraffic::V6),
    };
    let within = |(first, last): (u32, u32), port| (first..=last).contains(&port);
    let first = policy.entries.iter().find(|entry| match traffic {
        Some(AnyTraffic::V4(own)) => entry.boxes_v4().any(|what| {
            (what.local.0..=what.local.1).contains(&own.local)
                && (what.remote.0..=what.remote.1).contains(&own.remote)
                && (what.protocol.0..=what.protocol.1).contains(&own.protocol)
                && within(what.local_port, own.local_port)
                && within(what.remote_port, own.remote_port)
        }),
        Some(AnyTraffic::V6(own)) => entry.boxes_v6().any(|what| {
            (what.local.0..=what.local.1).contains(&own.local)
                && (what.remote.0..=what.remote.1).contains(&own.remote)
                && (what.protocol.0..=what.protocol.1).contains(&own.protocol)
                && within(what.local_port, own.local_port)
                && within(what.remote_port, own.remote_port)
        }),
        None => false,
    });
    match first {
        Some(entry) => assert_eq!(fact.name.as_deref(), Some(entry.name.as_str()), "{case:#?}"),
        None => assert_ne!(fact.kind.as_deref(), Some("policy"), "{case:#?}"),
    }
    assert_eq!(fact.name.is_none(), fact.action == "none", "{case:#?}");
}

#[test]
fn what_is_said_of_a_packet_is_what_the_counters_show_then() {
    let mut random = Random(0x5119_1074);
    let mut seen = BTreeMap::new();
    for number in 0..POLICIES {
        let mut bed = Bed::new(&entries(&mut random));
        for packet in 0..PACKETS {
            let (side, mut frame) = match random.below(2) {
                0 => (Side::Protected, outbound(&mut random)),
                _ => (Side::Unprotected, inbound(&bed, &mut random)),
            };
            if random.below(12) == 0 {
                damage(&mut frame, &mut random);
            }
            let before = bed.state();
            let case = bed.explain(side, &frame);
            assert_eq!(
                bed.state(),
                before,
                "asking changes nothing: policy {number}, packet {packet}"
            );
            let (fate, counters) = bed.pass(side, &frame);
            compare(&case, fate, &counters, &mut seen);
            assert_named(&bed.policy, &case, &frame);
        }
    }
    println!("{seen:#?}");
    for class in CLASSES {
        assert!(seen.contains_key(*class), "no packet was {class}");
    }
}
