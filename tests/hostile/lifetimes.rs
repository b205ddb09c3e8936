//! SAs at the end of their lifetime: whatever comes, nothing is sealed or opened with them, and all others go on.

use std::time::Instant;

use simplon::control::lifetimes::{Lifetimes, LimitKind, used};
use simplon::drop::DropReason;
use simplon::ipsec::traffic::Direction;
use simplon::policy::model::Side;

use super::packets::{forwarded, framed, inner};
use super::rig::Rig;
use super::sites::{KINDS, hosts};

/// The tunnel whose SAs may be used for ten packets.
const BRIEF: &str = "brief";

pub(crate) fn run(rig: &mut Rig<'_>) {
    for (at, tunnel) in KINDS.into_iter().enumerate() {
        let other = KINDS[(at + 1) % KINDS.len()];
        stopped_sas_pass_nothing_and_others_go_on(rig, tunnel, other);
    }
    packets_are_counted_out_in_both_directions(rig);
}

/// Inner packets of a tunnel.
fn packets(tunnel: &str, numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    let (from, to) = hosts(tunnel, false);
    numbers
        .map(|number| inner(&from, &to, number, 40))
        .collect()
}

fn frames(rig: &Rig<'_>, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mac = rig.west.macs[0];
    packets.iter().map(|packet| framed(mac, packet)).collect()
}

fn stopped_sas_pass_nothing_and_others_go_on(rig: &mut Rig<'_>, tunnel: &str, other: &str) {
    for gateway in [&mut rig.west, &mut rig.east] {
        gateway.install(tunnel, 1, 0);
        gateway.install(other, 1, 0);
    }
    let inner_packets = packets(tunnel, 0..6);
    let sealed = rig.seal(&inner_packets);
    let of_other = rig.seal(&packets(other, 0..2));
    let before = rig.east.run(Side::Unprotected, &sealed[..2]);
    assert_eq!(before.sent.len(), 2, "{tunnel}: {before:?}");

    rig.east.stop(tunnel, Direction::Inbound);
    // Also what was seen before, or is damaged: nobody asks any more.
    let mut late = sealed.clone();
    *late[5].last_mut().expect("a frame") ^= 1;
    rig.east
        .refuse(Side::Unprotected, &late, DropReason::SaExpired, tunnel);
    let mixed = [late[2].clone(), of_other[0].clone(), late[3].clone()];
    let outcome = rig.east.run(Side::Unprotected, &mixed);
    assert_eq!(outcome.sent.len(), 1, "{other}: {outcome:?}");
    assert_eq!(outcome.dropped(DropReason::SaExpired), 2, "{outcome:?}");
    let counted = |rig: &Rig<'_>, tunnel| rig.east.expired_drops(tunnel, Direction::Inbound);
    assert_eq!((counted(rig, tunnel), counted(rig, other)), (14, 0));

    // Each direction by itself: what this end seals still leaves, and west opens it.
    let (_, far) = hosts(tunnel, false);
    let answer = framed(rig.east.macs[0], &inner(&far, "10.1.0.10", 1, 40));
    let mut outcome = rig.east.run(Side::Protected, &[answer]);
    assert_eq!(outcome.sent.len(), 1, "{tunnel}: {outcome:?}");
    outcome.sent[0][..6].copy_from_slice(&rig.west.macs[1]);
    let outcome = rig.west.run(Side::Unprotected, &outcome.sent);
    assert_eq!(outcome.sent.len(), 1, "{tunnel}: {outcome:?}");

    rig.west.stop(tunnel, Direction::Outbound);
    rig.west.extend_lease(tunnel, u64::MAX);
    let clear = frames(rig, &inner_packets);
    rig.west
        .refuse(Side::Protected, &clear, DropReason::SaExpired, tunnel);
    let of_other = frames(rig, &packets(other, 0..1)).remove(0);
    let mixed = [clear[0].clone(), of_other, clear[1].clone()];
    let outcome = rig.west.run(Side::Protected, &mixed);
    assert_eq!(outcome.sent.len(), 1, "{other}: {outcome:?}");
    assert_eq!(outcome.dropped(DropReason::SaExpired), 2, "{outcome:?}");
    let counted = |rig: &Rig<'_>, tunnel| rig.west.expired_drops(tunnel, Direction::Outbound);
    assert_eq!((counted(rig, tunnel), counted(rig, other)), (14, 0));

    // A new SA in the same slot is another.
    for gateway in [&mut rig.west, &mut rig.east] {
        gateway.install(tunnel, 1, 0);
    }
    let sealed = rig.seal(&inner_packets);
    rig.accept(&sealed[0], &forwarded(&inner_packets[0], 2), tunnel);
}

/// Outbound the limit holds to the packet, inbound from the next look on.
fn packets_are_counted_out_in_both_directions(rig: &mut Rig<'_>) {
    rig.west.install(BRIEF, 1, 0);
    rig.east.install(BRIEF, 1, 0);
    let clear = frames(rig, &packets(BRIEF, 0..13));
    let mut outcome = rig.west.run(Side::Protected, &clear);
    assert_eq!(outcome.sent.len(), 10, "{outcome:?}");
    assert_eq!(outcome.dropped(DropReason::SaExpired), 3, "{outcome:?}");
    rig.west
        .refuse(Side::Protected, &clear, DropReason::SaExpired, BRIEF);
    for frame in &mut outcome.sent {
        frame[..6].copy_from_slice(&rig.east.macs[1]);
    }

    let opened = rig.east.run(Side::Unprotected, &outcome.sent);
    assert_eq!(opened.sent.len(), 10, "{opened:?}");
    for (gateway, direction) in [
        (&rig.west, Direction::Outbound),
        (&rig.east, Direction::Inbound),
    ] {
        let (slot, start) = (gateway.slot(BRIEF), Instant::now());
        let mut lifetimes = Lifetimes::default();
        lifetimes.install((slot, direction), gateway.lifetime(BRIEF), start);
        let sad = &gateway.worker.shared.sad;
        let read = |slot, direction| used(sad, &gateway.writer, slot, direction);
        let events = lifetimes.check(start, read);
        let told: Vec<_> = events
            .iter()
            .map(|event| (event.direction, event.kind, event.limit, event.hard))
            .collect();
        let expected = [(9, false), (10, true)]
            .map(|(limit, hard)| (direction, LimitKind::Packets, limit, hard));
        assert_eq!(told, expected);
        gateway.stop(BRIEF, direction);
        assert_eq!(lifetimes.check(start, read), []);
    }
    // What a peer that goes on sends.
    rig.west.install(BRIEF, 11, 0);
    let more = rig.seal(&packets(BRIEF, 0..10));
    rig.east
        .refuse(Side::Unprotected, &more, DropReason::SaExpired, BRIEF);
}
