//! Valid frames, mutated at random, reproducibly.

use simplon::policy::model::Side;

pub(crate) use super::chance::Random;
use super::packets::{
    ESP, ETHER, MARKER, UDP, ether, fix_frame, forwarded, framed, inner, ip, udp,
};
use super::rig::Rig;
use super::sites::{KINDS, hosts};

/// Mutated frames in each direction.
const FRAMES: usize = 50_000;
const BURST: usize = 50;

pub(crate) fn run(rig: &mut Rig<'_>) {
    for tunnel in KINDS {
        rig.west.install(tunnel, 1, 0);
        rig.east.install(tunnel, 1, 0);
    }
    let mut random = Random(0x5119_1074);
    unprotected(rig, &mut random);
    protected(rig, &mut random);
}

pub(crate) fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    // Past the MAC addresses, most of the time: what is not for us ends there.
    let from = if random.below(16) == 0 { 0 } else { 12 };
    for _ in 0..=random.below(4) {
        if frame.len() <= from {
            return;
        }
        let at = from + random.below(frame.len() - from);
        // Headers rather than text.
        let at = if random.below(2) == 0 {
            from + (at - from) % 48
        } else {
            at
        };
        let at = at.min(frame.len() - 1);
        match random.below(10) {
            0..=2 => frame[at] ^= 1 << random.below(8),
            3 => frame[at] = random.next() as u8,
            4 => frame[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            5 => frame.truncate(at),
            6 => {
                let bytes: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
                frame.splice(at..at, bytes);
            }
            7 => {
                let end = (at + random.below(20)).min(frame.len());
                frame.drain(at..end);
            }
            8 => {
                let end = (at + random.below(20)).min(frame.len());
                let copy = frame[at..end].to_vec();
                frame.splice(at..at, copy);
            }
            _ => frame.extend(std::iter::repeat_n(0, random.below(60))),
        }
    }
    if random.below(2) == 0 {
        fix_frame(frame);
    }
}

/// Nothing leaves towards the protected side but what west sealed, byte by byte.
fn unprotected(rig: &mut Rig<'_>, random: &mut Random) {
    let mac = rig.east.macs[1];
    let strangers = [
        framed(
            mac,
            &ip("192.0.2.1", "192.0.2.2", UDP, &udp(4500, 4500, &[0; 60])),
        ),
        framed(
            mac,
            &ip("192.0.2.1", "192.0.2.2", UDP, &udp(4500, 4500, &[0xff])),
        ),
        framed(mac, &inner("10.1.0.5", "10.2.0.10", 0, 60)),
        ether([0xff; 6], 0x0806, &[0; 46]),
        framed(mac, &ip("2001:db8::1", "2001:db8::2", ESP, &[0x44; 80])),
    ];
    let (mut passed, mut sealed) = (0, 0u64);
    for _ in 0..FRAMES / BURST {
        let mut frames = Vec::new();
        let mut valid = Vec::new();
        for number in 0..BURST - strangers.len() {
            let (from, to) = hosts(KINDS[number % 4], random.below(2) == 0);
            sealed += 1;
            let packet = inner(&from, &to, sealed, 24 + random.below(100));
            valid.push(forwarded(&packet, 2));
            frames.push(packet);
        }
        let mut frames = rig.seal(&frames);
        frames.extend(strangers.iter().cloned());
        for frame in &mut frames {
            mutate(frame, random);
        }
        let outcome = rig.east.run(Side::Unprotected, &frames);
        passed += outcome.sent.len();
        for sent in &outcome.sent {
            let known = valid.iter().position(|packet| packet[..] == sent[ETHER..]);
            let known = known.unwrap_or_else(|| panic!("forged or altered: {sent:02x?}"));
            valid.swap_remove(known);
        }
    }
    println!("random, unprotected: {passed} of {FRAMES} passed");
    assert!(passed > 0, "some mutations do not matter");
}

/// Nothing leaves towards the unprotected side but ESP between the tunnel's ends, and none of it in clear.
fn protected(rig: &mut Rig<'_>, random: &mut Random) {
    let mac = rig.west.macs[0];
    let mut passed = 0;
    for _ in 0..FRAMES / BURST {
        let frames: Vec<_> = (0..BURST)
            .map(|number| {
                let (from, to) = hosts(KINDS[number % 4], random.below(2) == 0);
                let mut frame = framed(mac, &inner(&from, &to, 0, 24 + random.below(100)));
                mutate(&mut frame, random);
                frame
            })
            .collect();
        let mut outcome = rig.west.run(Side::Protected, &frames);
        passed += outcome.sent.len();
        for sent in &mut outcome.sent {
            assert_is_esp(sent);
            sent[..6].copy_from_slice(&rig.east.macs[1]);
        }
        // East takes what west sealed for authentic, whatever is inside.
        let opened = rig.east.run(Side::Unprotected, &outcome.sent);
        for reason in [
            "bad-icv",
            "no-sa",
            "replayed",
            "selector-mismatch",
            "bad-inner",
            "runt",
        ] {
            assert_eq!(opened.drops.get(reason), None, "{reason}: {opened:?}");
        }
    }
    println!("random, protected: {passed} of {FRAMES} sealed");
    assert!(passed > 0);
}

fn assert_is_esp(frame: &[u8]) {
    let packet = &frame[ETHER..];
    let (protocol, rest) = if packet[0] >> 4 == 4 {
        assert_eq!(packet[12..20], [192, 0, 2, 1, 192, 0, 2, 2]);
        (packet[9], &packet[20..])
    } else {
        assert_eq!((packet[23], packet[39]), (1, 2));
        (packet[6], &packet[40..])
    };
    match protocol {
        ESP => {}
        UDP => assert_eq!(rest[..4], [0x11, 0x94, 0x11, 0x94]),
        other => panic!("protocol {other} left the protected side: {frame:02x?}"),
    }
    assert!(
        !frame.windows(16).any(|bytes| bytes == MARKER),
        "clear text: {frame:02x?}"
    );
}
