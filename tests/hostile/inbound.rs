//! What arrives on the unprotected side: bent, cut and misdirected.

use std::collections::BTreeMap;

use simplon::drop::{DropReason, PuntReason};
use simplon::policy::model::Side;

use super::packets::{
    ESP, ETHER, MARKER, UDP, ether, fix, fix_checksum, fix_frame, forwarded, framed, inner, insert,
    ip, udp,
};
use super::rig::Rig;
use super::sites::{KINDS, hosts};

const SIDE: Side = Side::Unprotected;

pub(crate) fn run(rig: &mut Rig<'_>) {
    valid_packets_pass(rig);
    a_burst_of_nothing_but_dead_packets_leaves_none_behind(rig);
    truncated(rig);
    every_bit_flipped(rig);
    runts(rig);
    link_layer(rig);
    ip_headers(rig);
    ipv4_options(rig);
    ipv6_extensions(rig);
    addressed_elsewhere(rig);
    encapsulation(rig);
    clear_text(rig);
}

/// An inner packet of `tunnel` and its ESP packet on the way to east.
fn sealed(rig: &mut Rig<'_>, tunnel: &str, number: u64) -> (Vec<u8>, Vec<u8>) {
    let (source, destination) = hosts(tunnel, number % 2 == 1);
    let packet = inner(&source, &destination, number, 40);
    let frame = rig.seal(std::slice::from_ref(&packet)).remove(0);
    assert!(!frame.windows(16).any(|bytes| bytes == MARKER));
    (packet, frame)
}

fn valid_packets_pass(rig: &mut Rig<'_>) {
    for tunnel in KINDS {
        for number in 0..4 {
            let (packet, mut frame) = sealed(rig, tunnel, number);
            // Ethernet's own padding is no part of the packet.
            frame.extend(vec![0; number as usize * 7]);
            rig.accept(&frame, &forwarded(&packet, 2), tunnel);
        }
    }
}

/// More dead packets than a burst has room for, in bursts that hold nothing else; then some that must not slip out.
fn a_burst_of_nothing_but_dead_packets_leaves_none_behind(rig: &mut Rig<'_>) {
    let mac = rig.east.macs[1];
    let bad = framed(mac, &inner("10.1.0.5", "10.2.0.10", 0, 40));
    for count in [1, 63, 64, 64, 2] {
        let outcome = rig.east.run(SIDE, &vec![bad.clone(); count]);
        assert_eq!(outcome.dropped(DropReason::ClearText), count as u64);
    }
    let arp = ether([0xff; 6], 0x0806, &[0; 28]);
    for _ in 0..3 {
        let outcome = rig.east.run(SIDE, &vec![arp.clone(); 30]);
        assert_eq!(outcome.punts.len(), 30);
    }
}

/// Cut to each length: as it is, and with every length field told the new length. Then the whole one still passes.
fn truncated(rig: &mut Rig<'_>) {
    for tunnel in KINDS {
        let (packet, frame) = sealed(rig, tunnel, 2);
        let header = ETHER + if frame[ETHER] >> 4 == 4 { 20 } else { 40 };
        let udp = if tunnel.starts_with("udp") { 8 } else { 0 };
        // ESP header, IV, trailer, ICV.
        let shortest = header + udp + 8 + 8 + 2 + 16;
        let mut refused = 0;
        for len in 0..frame.len() {
            let cut = &frame[..len];
            let expected = if len < header {
                DropReason::Runt
            } else {
                DropReason::BadLength
            };
            let outcome = rig.east.run(SIDE, &[cut.to_vec()]);
            assert_eq!(
                outcome.dropped(expected),
                1,
                "{tunnel} to {len}: {outcome:?}"
            );
            let mut told = cut.to_vec();
            fix_frame(&mut told);
            let outcome = rig.east.run(SIDE, &[told]);
            refused += 2;
            if udp > 0 && (header..header + 12).contains(&len) && outcome.punts.len() == 1 {
                // Less than a UDP header: not known to be for the NAT traversal port.
                assert!(len < header + 8, "{tunnel} to {len}");
                continue;
            }
            let expected = if len < shortest {
                DropReason::Runt
            } else {
                DropReason::BadIcv
            };
            assert_eq!(
                outcome.dropped(expected),
                1,
                "{tunnel} to {len}, told: {outcome:?}"
            );
        }
        rig.accept(&frame, &forwarded(&packet, 2), tunnel);
        println!("truncated {tunnel}: {refused} cuts");
    }
}

/// Each bit of a valid packet, flipped in a fresh one each. What still passes, passes unaltered.
fn every_bit_flipped(rig: &mut Rig<'_>) {
    for tunnel in KINDS {
        let (source, destination) = hosts(tunnel, false);
        let (_, frame) = sealed(rig, tunnel, 2);
        let bits: Vec<usize> = (0..frame.len() * 8).collect();
        let mut fates: BTreeMap<String, u64> = BTreeMap::new();
        for group in bits.chunks(64) {
            let packets: Vec<_> = group
                .iter()
                .map(|bit| inner(&source, &destination, *bit as u64, 40))
                .collect();
            let frames = rig.seal(&packets);
            assert_eq!(frames[0].len(), frame.len());
            for ((bit, packet), mut frame) in group.iter().zip(&packets).zip(frames) {
                frame[bit / 8] ^= 1 << (bit % 8);
                let outcome = rig.east.run(SIDE, std::slice::from_ref(&frame));
                if let Some(sent) = outcome.sent.first() {
                    assert_eq!(sent[ETHER..], forwarded(packet, 2), "{tunnel}, bit {bit}");
                    assert!(
                        is_unprotected_by_design(&frame, tunnel, bit / 8),
                        "{tunnel}, bit {bit}"
                    );
                    // It did pass, and does so once.
                    frame[bit / 8] ^= 1 << (bit % 8);
                    let again = rig.east.run(SIDE, std::slice::from_ref(&frame));
                    assert_eq!(again.dropped(DropReason::Replayed), 1);
                }
                if let Some((reason, _)) = outcome.punts.first() {
                    *fates.entry(format!("punt {}", reason.name())).or_default() += 1;
                }
                for reason in outcome.drops.keys() {
                    *fates.entry((*reason).into()).or_default() += 1;
                }
                *fates.entry("sent".into()).or_default() += outcome.sent.len() as u64;
                assert_region(tunnel, frame.len(), bit / 8, &outcome.drops);
            }
        }
        println!("flipped {tunnel}, {} bits: {fates:?}", bits.len());
    }
}

/// Whether neither ICV nor IPv4 checksum covers the byte: source MAC, mutable fields of IPv6, UDP source port and
/// checksum.
fn is_unprotected_by_design(frame: &[u8], tunnel: &str, byte: usize) -> bool {
    let v6 = tunnel.ends_with('6');
    let l4 = ETHER + if v6 { 40 } else { 20 };
    let outer = (6..12).contains(&byte)
        || v6 && ((14..18).contains(&byte) || byte == 21 || (22..38).contains(&byte));
    let datagram = tunnel.starts_with("udp")
        && ((l4..l4 + 2).contains(&byte) || (l4 + 6..l4 + 8).contains(&byte));
    assert!(byte < frame.len());
    outer || datagram
}

/// Where one flipped bit can have but one effect, it has that.
fn assert_region(tunnel: &str, len: usize, byte: usize, drops: &BTreeMap<&'static str, u64>) {
    let esp = ETHER
        + if tunnel.ends_with('6') { 40 } else { 20 }
        + if tunnel.starts_with("udp") { 8 } else { 0 };
    let expected = match byte {
        0..6 => DropReason::NotOurMac,
        12..14 => DropReason::UnknownEtherType,
        _ if (esp..esp + 4).contains(&byte) => DropReason::NoSa,
        _ if (esp + 8..len).contains(&byte) => DropReason::BadIcv,
        _ => return,
    };
    assert_eq!(
        drops.get(expected.name()),
        Some(&1),
        "{tunnel}, byte {byte}: {drops:?}"
    );
}

fn runts(rig: &mut Rig<'_>) {
    let mac = rig.east.macs[1];
    for len in 0..=60 {
        for fill in [0x00, 0xff, 0x45, 0x60] {
            for ether_type in [0x0800, 0x86dd] {
                let mut frame = ether(mac, ether_type, &[fill; 60]);
                frame.truncate(len);
                let outcome = rig.east.run(SIDE, &[frame]);
                assert_eq!(outcome.all_dropped(), 1, "{len} of {fill}: {outcome:?}");
                if len < ETHER + 20 {
                    assert_eq!(
                        outcome.dropped(DropReason::Runt),
                        1,
                        "{len} of {fill}: {outcome:?}"
                    );
                }
            }
        }
    }
}

fn link_layer(rig: &mut Rig<'_>) {
    let mac = rig.east.macs[1];
    let (packet, frame) = sealed(rig, "plain4", 2);
    let to = |mac: [u8; 6]| {
        let mut frame = frame.clone();
        frame[..6].copy_from_slice(&mac);
        frame
    };
    let group = [
        to([0xff; 6]),
        to([1, 0, 0x5e, 0, 0, 1]),
        to([0x33, 0x33, 0, 0, 0, 1]),
    ];
    rig.east.refuse(
        SIDE,
        &group,
        DropReason::NotOurMac,
        "unicast IP to a group MAC",
    );
    let other = to([2, 0, 0, 0, 0, 0x99]);
    rig.east
        .refuse(SIDE, &[other], DropReason::NotOurMac, "not our MAC");
    let (_, frame6) = sealed(rig, "plain6", 2);
    let mut group6 = frame6;
    group6[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    rig.east.refuse(
        SIDE,
        &[group6],
        DropReason::NotOurMac,
        "unicast IPv6 to a group MAC",
    );
    let types = [ether(mac, 0x88cc, &[0; 50]), ether(mac, 46, &[0; 46])];
    rig.east
        .refuse(SIDE, &types, DropReason::UnknownEtherType, "LLDP, 802.3");
    let tagged = |frame: &[u8], tags: &[u8]| [&frame[..12], tags, &frame[12..]].concat();
    let vlans = [
        tagged(&frame, &[0x81, 0, 0, 5]),
        tagged(&frame, &[0x88, 0xa8, 0, 5]),
        tagged(&frame, &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 0]),
    ];
    rig.east
        .refuse(SIDE, &vlans, DropReason::UnknownVlan, "VLANs of no port");
    let cut = tagged(&frame, &[0x81, 0, 0, 0])[..17].to_vec();
    rig.east
        .refuse(SIDE, &[cut], DropReason::Runt, "a tag cut short");
    let another = rig.seal(std::slice::from_ref(&packet)).remove(0);
    let with_priority = tagged(&another, &[0x81, 0, 0xe0, 0]);
    rig.accept(&with_priority, &forwarded(&packet, 2), "a priority tag");
    let mut swapped = frame.clone();
    swapped[12..14].copy_from_slice(&[0x86, 0xdd]);
    let outcome = rig.east.run(SIDE, &[swapped]);
    assert_eq!(outcome.dropped(DropReason::BadVersion), 1, "{outcome:?}");
    for mac in [mac, [0xff; 6]] {
        rig.east
            .punt(SIDE, &ether(mac, 0x0806, &[0; 46]), PuntReason::Arp, "ARP");
        rig.east
            .punt(SIDE, &ether(mac, 0x0806, &[]), PuntReason::Arp, "empty ARP");
    }
    rig.accept(&frame, &forwarded(&packet, 2), "untouched");
}

fn ip_headers(rig: &mut Rig<'_>) {
    let (packet, frame) = sealed(rig, "plain4", 2);
    let bend = |at: usize, value: u8, fix: bool| {
        let mut frame = frame.clone();
        frame[ETHER + at] = value;
        if fix {
            fix_checksum(&mut frame[ETHER..]);
        }
        frame
    };
    let checksums: Vec<_> = (0..16)
        .map(|bit| {
            let mut frame = frame.clone();
            frame[ETHER + 10 + bit / 8] ^= 1 << (bit % 8);
            frame
        })
        .collect();
    rig.east
        .refuse(SIDE, &checksums, DropReason::BadChecksum, "checksum");
    let versions: Vec<_> = (0..16u8)
        .filter(|version| *version != 4)
        .map(|version| bend(0, version << 4 | 5, true))
        .chain((0..5u8).map(|ihl| bend(0, 0x40 | ihl, true)))
        .collect();
    rig.east
        .refuse(SIDE, &versions, DropReason::BadVersion, "version and IHL");
    let total = frame.len() - ETHER;
    for lie in (0..20).chain([total + 1, total + 100, 0xffff]) {
        let mut frame = frame.clone();
        frame[ETHER + 2..ETHER + 4].copy_from_slice(&(lie as u16).to_be_bytes());
        fix_checksum(&mut frame[ETHER..]);
        rig.east
            .refuse(SIDE, &[frame], DropReason::BadLength, "total length");
    }
    for lie in 20..total {
        let mut frame = frame.clone();
        frame[ETHER + 2..ETHER + 4].copy_from_slice(&(lie as u16).to_be_bytes());
        fix_checksum(&mut frame[ETHER..]);
        let expected = if lie < 20 + 34 {
            DropReason::Runt
        } else {
            DropReason::BadIcv
        };
        rig.east
            .refuse(SIDE, &[frame], expected, "total length cuts the packet");
    }
    // The outer TTL is spent where the tunnel ends.
    let spent = bend(8, 0, true);
    rig.accept(&spent, &forwarded(&packet, 2), "outer TTL 0");

    let (_, frame6) = sealed(rig, "plain6", 2);
    let versions: Vec<_> = (0..16u8)
        .filter(|version| *version != 6)
        .map(|version| {
            let mut frame = frame6.clone();
            frame[ETHER] = version << 4;
            frame
        })
        .collect();
    rig.east
        .refuse(SIDE, &versions, DropReason::BadVersion, "version");
    let payload = frame6.len() - ETHER - 40;
    for lie in [payload + 1, 0xffff] {
        let mut frame = frame6.clone();
        frame[ETHER + 4..ETHER + 6].copy_from_slice(&(lie as u16).to_be_bytes());
        rig.east
            .refuse(SIDE, &[frame], DropReason::BadLength, "payload length");
    }
    for lie in 0..payload {
        let mut frame = frame6.clone();
        frame[ETHER + 4..ETHER + 6].copy_from_slice(&(lie as u16).to_be_bytes());
        let expected = if lie < 34 {
            DropReason::Runt
        } else {
            DropReason::BadIcv
        };
        rig.east
            .refuse(SIDE, &[frame], expected, "payload length cuts the packet");
    }
}

fn ipv4_options(rig: &mut Rig<'_>) {
    for tunnel in ["plain4", "udp4"] {
        for words in 1..=10usize {
            let (packet, frame) = sealed(rig, tunnel, 2);
            let mut options = vec![1; words * 4];
            if words % 2 == 0 {
                // Record route, as long as there is room, then the end of the list.
                let len = words * 4 - 1;
                options[..3].copy_from_slice(&[7, len as u8, 4]);
                options[words * 4 - 1] = 0;
            }
            let with = insert(&frame, 0, &options);
            rig.accept(&with, &forwarded(&packet, 2), "options");
        }
        // A header that is longer than the packet.
        let (_, frame) = sealed(rig, tunnel, 2);
        let mut short = frame[..ETHER + 40].to_vec();
        short[ETHER] = 0x4f;
        fix(&mut short, ETHER);
        rig.east
            .refuse(SIDE, &[short], DropReason::BadLength, "IHL past the end");
    }
}

fn ipv6_extensions(rig: &mut Rig<'_>) {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const OPTIONS: u8 = 60;
    let padding = [0, 0, 1, 4, 0, 0, 0, 0];
    let long = {
        let mut long = vec![0, 31, 1, 253];
        long.resize(256, 0);
        long
    };
    for tunnel in ["plain6", "udp6"] {
        for kind in [HOP_BY_HOP, OPTIONS, ROUTING] {
            let (packet, frame) = sealed(rig, tunnel, 2);
            let mut extension = padding;
            if kind == ROUTING {
                // No segments left.
                extension = [0; 8];
            }
            rig.accept(
                &insert(&frame, kind, &extension),
                &forwarded(&packet, 2),
                "one header",
            );
            let (packet, frame) = sealed(rig, tunnel, 2);
            if kind != ROUTING {
                rig.accept(
                    &insert(&frame, kind, &long),
                    &forwarded(&packet, 2),
                    "a long one",
                );
            }
        }
        let (packet, frame) = sealed(rig, tunnel, 2);
        let mut chain = frame.clone();
        for _ in 0..8 {
            chain = insert(&chain, OPTIONS, &padding);
        }
        let too_long = insert(&chain, HOP_BY_HOP, &padding);
        rig.east
            .refuse(SIDE, &[too_long], DropReason::BadExtension, "nine headers");
        rig.accept(&chain, &forwarded(&packet, 2), "eight headers");

        let (_, frame) = sealed(rig, tunnel, 2);
        let mut bad = Vec::new();
        for kind in [HOP_BY_HOP, OPTIONS, ROUTING] {
            // Past the end of the packet.
            let mut over = insert(&frame, kind, &padding);
            over[ETHER + 41] = 200;
            bad.push(over);
            // Cut off in the middle.
            for keep in 0..8 {
                let mut cut = insert(&frame, kind, &padding);
                cut.truncate(ETHER + 40 + keep);
                fix(&mut cut, ETHER);
                bad.push(cut);
            }
        }
        // A routing header of each type that has stations left.
        for (kind, left) in [(0, 1), (2, 1), (3, 1), (4, 255), (253, 7)] {
            bad.push(insert(&frame, ROUTING, &[0, 0, kind, left, 0, 0, 0, 0]));
        }
        // A fragment header, cut off.
        for keep in 0..8 {
            let mut cut = insert(&frame, 44, &[0; 8]);
            cut.truncate(ETHER + 40 + keep);
            fix(&mut cut, ETHER);
            bad.push(cut);
        }
        rig.east
            .refuse(SIDE, &bad, DropReason::BadExtension, tunnel);
    }
}

fn addressed_elsewhere(rig: &mut Rig<'_>) {
    let mac = rig.east.macs[1];
    for tunnel in KINDS {
        let (packet, frame) = sealed(rig, tunnel, 2);
        let v6 = tunnel.ends_with('6');
        let esp = ETHER + if v6 { 40 } else { 20 } + if tunnel.starts_with("udp") { 8 } else { 0 };
        let mut unknown = Vec::new();
        for spi in [1u32, 255, 256, 0x1234_5678, u32::MAX] {
            let mut frame = frame.clone();
            frame[esp..esp + 4].copy_from_slice(&spi.to_be_bytes());
            unknown.push(frame);
        }
        rig.east
            .refuse(SIDE, &unknown, DropReason::NoSa, "unknown and reserved SPI");
        let mut zero = frame.clone();
        zero[esp..esp + 4].copy_from_slice(&[0; 4]);
        if tunnel.starts_with("udp") {
            rig.east
                .punt(SIDE, &zero, PuntReason::Ike, "non-ESP marker");
        } else {
            rig.east.refuse(SIDE, &[zero], DropReason::NoSa, "SPI 0");
        }
        // Another destination; in UDP it is then not even for us.
        let mut elsewhere = frame.clone();
        *elsewhere.get_mut(ETHER + if v6 { 39 } else { 19 }).unwrap() ^= 0x40;
        fix(&mut elsewhere, ETHER);
        let expected = if tunnel.starts_with("udp") {
            DropReason::ClearText
        } else {
            DropReason::NoSa
        };
        rig.east
            .refuse(SIDE, &[elsewhere], expected, "another destination");
        // The SA's packet under the other family's header.
        let payload = &frame[esp..];
        let (from, to) = if v6 {
            ("192.0.2.1", "192.0.2.2")
        } else {
            ("2001:db8::1", "2001:db8::2")
        };
        let other = match tunnel.starts_with("udp") {
            true => ip(from, to, UDP, &udp(4500, 4500, payload)),
            false => ip(from, to, ESP, payload),
        };
        rig.east.refuse(
            SIDE,
            &[framed(mac, &other)],
            DropReason::NoSa,
            "the other family",
        );
        rig.accept(&frame, &forwarded(&packet, 2), tunnel);
    }
}

fn encapsulation(rig: &mut Rig<'_>) {
    let mac = rig.east.macs[1];
    for (tunnel, from, to) in [
        ("plain4", "192.0.2.1", "192.0.2.2"),
        ("udp4", "192.0.2.1", "192.0.2.2"),
        ("plain6", "2001:db8::1", "2001:db8::2"),
        ("udp6", "2001:db8::1", "2001:db8::2"),
    ] {
        let header = ETHER + if from.contains(':') { 40 } else { 20 };
        let (packet, frame) = sealed(rig, tunnel, 2);
        let other = match tunnel.strip_prefix("udp") {
            Some(_) => ip(from, to, ESP, &frame[header + 8..]),
            None => ip(from, to, UDP, &udp(4500, 4500, &frame[header..])),
        };
        let other = framed(mac, &other);
        rig.east.refuse(
            SIDE,
            &[other],
            DropReason::EncapMismatch,
            "the other encapsulation",
        );
        rig.accept(&frame, &forwarded(&packet, 2), tunnel);

        let datagram = |payload: &[u8]| framed(mac, &ip(from, to, UDP, &udp(4500, 4500, payload)));
        rig.east.refuse(
            SIDE,
            &[datagram(&[0xff])],
            DropReason::NatKeepalive,
            "keepalive",
        );
        rig.east
            .punt(SIDE, &datagram(&[0; 4]), PuntReason::Ike, "bare marker");
        rig.east
            .punt(SIDE, &datagram(&[0; 100]), PuntReason::Ike, "IKE");
        let short: Vec<_> = [
            &[][..],
            &[0],
            &[0xfe],
            &[0xff, 0xff],
            &[0; 3],
            &[9; 4],
            &[9; 33],
        ]
        .into_iter()
        .map(datagram)
        .collect();
        rig.east
            .refuse(SIDE, &short, DropReason::Runt, "short datagram");
        let mut lies = Vec::new();
        for lie in [0u16, 7, 8, 60, 0xffff] {
            let mut frame = datagram(&[9; 80]);
            frame[header + 4..header + 6].copy_from_slice(&lie.to_be_bytes());
            lies.push(frame);
        }
        rig.east
            .refuse(SIDE, &lies, DropReason::BadLength, "UDP length");
        // Less than a UDP header, for our address: the control side's.
        let stub = framed(mac, &ip(from, to, UDP, &[0x11, 0x94, 0x11, 0x94, 0, 8, 0]));
        rig.east
            .punt(SIDE, &stub, PuntReason::Local, "seven bytes of UDP");
        let ike = framed(mac, &ip(from, to, UDP, &udp(500, 500, &[1; 40])));
        rig.east
            .punt(SIDE, &ike, PuntReason::Ike, "IKE on its own port");
    }
}

fn clear_text(rig: &mut Rig<'_>) {
    let mac = rig.east.macs[1];
    let mut clear = vec![
        framed(mac, &inner("10.1.0.5", "10.2.0.10", 1, 40)),
        framed(mac, &inner("fd00:1::5", "fd00:2::10", 1, 40)),
        framed(mac, &ip("10.1.0.5", "10.2.0.10", 1, &[8; 16])),
        framed(
            mac,
            &ip("10.1.0.5", "10.2.0.10", UDP, &udp(4500, 4500, &[9; 60])),
        ),
        // AH, and ESP's neighbours.
        framed(mac, &ip("192.0.2.1", "192.0.2.3", 51, &[0; 40])),
        framed(mac, &ip("2001:db8::1", "2001:db8::3", 59, &[0; 40])),
    ];
    // Multicast that is for more than the link.
    let group =
        |last: u8, to: &str| framed([1, 0, 0x5e, 0, 0, last], &inner("192.0.2.1", to, 1, 40));
    clear.push(group(5, "224.1.0.5"));
    rig.east
        .refuse(SIDE, &clear, DropReason::ClearText, "clear text");
    let on_link = group(5, "224.0.0.5");
    rig.east
        .punt(SIDE, &on_link, PuntReason::Multicast, "OSPF's group");
    let local = framed(mac, &inner("192.0.2.1", "192.0.2.2", 1, 40));
    rig.east
        .punt(SIDE, &local, PuntReason::Local, "for the gateway");
    let icmp = framed(mac, &ip("192.0.2.1", "192.0.2.2", 1, &[8; 16]));
    rig.east
        .punt(SIDE, &icmp, PuntReason::Icmp, "ICMP for the gateway");
    let icmp = framed(mac, &ip("2001:db8::1", "2001:db8::2", 58, &[128; 16]));
    rig.east
        .punt(SIDE, &icmp, PuntReason::Icmp, "ICMPv6 for the gateway");
    for kind in 133..=137 {
        let mut to = [0x33, 0x33, 0, 0, 0, 1];
        let packet = ip("fe80::1", "ff02::1", 58, &[kind; 24]);
        let frame = framed(to, &packet);
        rig.east
            .punt(SIDE, &frame, PuntReason::NeighbourDiscovery, "ND");
        to = mac;
        let frame = framed(to, &packet);
        rig.east
            .punt(SIDE, &frame, PuntReason::NeighbourDiscovery, "ND");
    }
}
