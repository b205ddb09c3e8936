//! What is authentic and still must not pass: a peer that errs, or is not to be trusted with all of the network.

use simplon::drop::DropReason;
use simplon::policy::model::Side;

use super::packets::{ETHER, fix_checksum, forwarded, inner, ip, unbreakable, with_trailer};
use super::rig::Rig;
use super::sites::KINDS;

const SIDE: Side = Side::Unprotected;
const FROM: &str = "10.1.0.5";
const TO: &str = "10.2.0.10";

pub(crate) fn run(rig: &mut Rig<'_>) {
    padding(rig);
    next_headers(rig);
    malformed(rig);
    selectors(rig);
    congestion(rig);
    forwarding(rig);
}

/// Seals each text for `plain4` by hand and expects it to be dropped for `reason`; each only once, for a number that
/// was accepted is spent even if its packet is not.
fn refuse(rig: &mut Rig<'_>, texts: &[Vec<u8>], reason: DropReason, what: &str) {
    for (number, text) in texts.iter().enumerate() {
        let frame = rig.hand_seal("plain4", text);
        let outcome = rig.east.run(SIDE, std::slice::from_ref(&frame));
        assert_eq!(
            outcome.dropped(reason),
            1,
            "{what}, number {number}: {outcome:?}"
        );
        let outcome = rig.east.run(SIDE, &[frame]);
        assert_eq!(
            outcome.dropped(DropReason::Replayed),
            1,
            "{what}: {outcome:?}"
        );
    }
    let frames: Vec<_> = texts
        .iter()
        .take(64)
        .map(|text| rig.hand_seal("plain4", text))
        .collect();
    let outcome = rig.east.run(SIDE, &frames);
    assert_eq!(
        outcome.dropped(reason),
        frames.len() as u64,
        "{what}: {outcome:?}"
    );
}

fn padding(rig: &mut Rig<'_>) {
    let packet = inner(FROM, TO, 1, 40);
    let with = |padding: &[u8], pad_len: u8| {
        let mut text = packet.clone();
        text.extend(padding);
        text.extend([pad_len, 4]);
        text
    };
    let ramp: Vec<u8> = (1..=255).collect();
    let mut bad = vec![
        with(&[0, 0], 2),
        with(&[1, 3], 2),
        with(&[2, 1], 2),
        with(&[9], 1),
        with(&[], 255),
        // One more than the whole text.
        with(&[], packet.len() as u8 + 1),
        // Said to begin within the packet.
        with(&[1, 2], 3),
        vec![1, 4],
        vec![255, 4],
    ];
    for wrong in [0, 100, 254] {
        let mut ramp = ramp.clone();
        ramp[wrong] ^= 0x80;
        bad.push(with(&ramp, 255));
    }
    refuse(rig, &bad, DropReason::BadPadding, "padding");
    // Any right padding passes, and bytes for traffic flow confidentiality (RFC 4303 section 2.7) are cut off.
    for pad in [0usize, 1, 2, 7, 255] {
        let frame = rig.hand_seal("plain4", &with(&ramp[..pad], pad as u8));
        rig.accept(&frame, &forwarded(&packet, 1), "right padding");
    }
    let mut padded = packet.clone();
    padded.extend([0xee; 300]);
    let frame = rig.hand_seal("plain4", &with_trailer(&padded, 4));
    rig.accept(
        &frame,
        &forwarded(&packet, 1),
        "traffic flow confidentiality",
    );
}

fn next_headers(rig: &mut Rig<'_>) {
    let packet = inner(FROM, TO, 1, 40);
    let others: Vec<_> = (0..=255u8)
        .filter(|next| ![4, 41, 59].contains(next))
        .map(|next| with_trailer(&packet, next))
        .collect();
    refuse(rig, &others, DropReason::BadNextHeader, "next header");
    let dummies: Vec<_> = [&[][..], &[0xff; 3], &packet, &[0; 200]]
        .into_iter()
        .map(|text| with_trailer(text, 59))
        .collect();
    refuse(rig, &dummies, DropReason::Dummy, "dummy");
}

fn malformed(rig: &mut Rig<'_>) {
    let packet = inner(FROM, TO, 1, 40);
    let packet6 = inner("fd00:1::5", "fd00:2::10", 1, 40);
    let bend = |at: usize, value: u8| {
        let mut packet = packet.clone();
        packet[at] = value;
        fix_checksum(&mut packet);
        with_trailer(&packet, 4)
    };
    let mut bad = vec![
        // The other version than the next header says.
        with_trailer(&packet, 41),
        with_trailer(&packet6, 4),
        // Versions and header lengths that are none.
        bend(0, 0x55),
        bend(0, 0x05),
        bend(0, 0x44),
        bend(0, 0x40),
        // Longer than what is there; shorter than its header.
        bend(2, 0xff),
        bend(3, packet.len() as u8 + 1),
        bend(3, 19),
        bend(3, 0),
    ];
    bad.extend((0..packet.len()).map(|len| with_trailer(&packet[..len], 4)));
    bad.extend((0..packet6.len()).map(|len| with_trailer(&packet6[..len], 41)));
    bad.extend((0..16).map(|bit| {
        let mut packet = packet.clone();
        packet[10 + bit / 8] ^= 1 << (bit % 8);
        with_trailer(&packet, 4)
    }));
    let mut long = packet6.clone();
    long[5] += 1;
    bad.push(with_trailer(&long, 41));
    refuse(rig, &bad, DropReason::BadInner, "inner packet");
}

fn selectors(rig: &mut Rig<'_>) {
    let bad: Vec<_> = [
        ("10.9.0.5", TO),
        (FROM, "10.1.0.10"),
        (TO, FROM),
        // What another tunnel may carry.
        (FROM, "10.3.0.10"),
        (FROM, "192.0.2.2"),
        ("0.0.0.0", "255.255.255.255"),
        ("127.0.0.1", "127.0.0.1"),
        (FROM, "224.0.0.1"),
    ]
    .into_iter()
    .map(|(from, to)| with_trailer(&inner(from, to, 1, 40), 4))
    .chain(
        [
            ("fd00:1::5", "fd00:1::5"),
            ("fd00:9::5", "fd00:2::10"),
            ("::1", "::1"),
            ("fe80::1", "ff02::1"),
        ]
        .into_iter()
        .map(|(from, to)| with_trailer(&inner(from, to, 1, 40), 41)),
    )
    .collect();
    refuse(rig, &bad, DropReason::SelectorMismatch, "selectors");
    // Each SA carries what is its own, not what another may.
    for tunnel in &KINDS[1..] {
        let frame = rig.hand_seal(tunnel, &with_trailer(&inner(FROM, TO, 1, 40), 4));
        let outcome = rig.east.run(SIDE, &[frame]);
        assert_eq!(
            outcome.dropped(DropReason::SelectorMismatch),
            1,
            "{tunnel}: {outcome:?}"
        );
    }
}

fn congestion(rig: &mut Rig<'_>) {
    for (inner_ecn, outer_ecn, expected) in [
        (0b00u8, 0b01u8, Some(0b00u8)),
        (0b00, 0b10, Some(0b00)),
        (0b00, 0b11, None),
        (0b10, 0b11, Some(0b11)),
        (0b01, 0b11, Some(0b11)),
        (0b10, 0b01, Some(0b01)),
        (0b11, 0b00, Some(0b11)),
    ] {
        for (tunnel, from, to) in [("plain4", FROM, TO), ("plain6", "fd00:1::5", "fd00:4::10")] {
            let v6 = tunnel == "plain6";
            let mark = |packet: &mut [u8], ecn: u8| {
                if v6 {
                    packet[1] = packet[1] & 0x0f | ecn << 4;
                } else {
                    packet[1] = ecn;
                    fix_checksum(packet);
                }
            };
            let mut packet = inner(from, to, 1, 40);
            mark(&mut packet, inner_ecn);
            let mut frame = rig.hand_seal(tunnel, &with_trailer(&packet, if v6 { 41 } else { 4 }));
            mark(&mut frame[ETHER..], outer_ecn);
            match expected {
                Some(ecn) => {
                    mark(&mut packet, ecn);
                    rig.accept(&frame, &forwarded(&packet, 1), "congestion");
                }
                None => {
                    let outcome = rig.east.run(SIDE, &[frame]);
                    assert_eq!(
                        outcome.dropped(DropReason::CeOnNotEct),
                        1,
                        "{tunnel}: {outcome:?}"
                    );
                }
            }
        }
    }
}

fn forwarding(rig: &mut Rig<'_>) {
    let nowhere = with_trailer(&inner(FROM, "172.16.2.9", 1, 40), 4);
    refuse(rig, &[nowhere], DropReason::NoRoute, "no route");
    let unknown = with_trailer(&inner(FROM, "10.2.0.77", 1, 40), 4);
    let unknown6 = with_trailer(&inner("fd00:1::5", "fd00:2::77", 1, 40), 41);
    refuse(
        rig,
        &[unknown, unknown6],
        DropReason::NoNeighbour,
        "no neighbour",
    );
    let big = with_trailer(&unbreakable(inner(FROM, TO, 1, 1281 - 20)), 4);
    let big6 = with_trailer(&inner("fd00:1::5", "fd00:2::10", 1, 1281 - 40), 41);
    refuse(rig, &[big, big6], DropReason::TooBig, "too big");
    let fits = inner(FROM, TO, 1, 1280 - 20);
    let frame = rig.hand_seal("plain4", &with_trailer(&fits, 4));
    rig.accept(&frame, &forwarded(&fits, 1), "just fits");
    let mut spent = Vec::new();
    for ttl in [0, 1] {
        let mut packet = inner(FROM, TO, 1, 40);
        packet[8] = ttl;
        fix_checksum(&mut packet);
        spent.push(with_trailer(&packet, 4));
        let mut packet = inner("fd00:1::5", "fd00:2::10", 1, 40);
        packet[7] = ttl;
        spent.push(with_trailer(&packet, 41));
    }
    refuse(rig, &spent, DropReason::TtlExpired, "TTL");
    // A fragment of the inner traffic is no fragment of ESP, and passes.
    let mut fragment = ip(FROM, TO, 17, &[7; 64]);
    fragment[6] = 0x20;
    fix_checksum(&mut fragment);
    let frame = rig.hand_seal("plain4", &with_trailer(&fragment, 4));
    rig.accept(&frame, &forwarded(&fragment, 1), "inner fragment");
}
