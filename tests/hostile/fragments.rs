//! Fragments of outer packets: in any order, lost, overlapping, and a flood of them; and inner packets that are too big.

use std::time::{Duration, Instant};

use simplon::drop::{Aside, DropReason};
use simplon::policy::model::Side;
use simplon::worker::probe::NoProbe;
use simplon::worker::reassembly::MOST_HELD;

use super::packets::{ETHER, fix, fix_checksum, forwarded, framed, inner, insert};
use super::rig::Rig;
use super::sites::{self, KINDS};

const SIDE: Side = Side::Unprotected;

pub(crate) fn run(rig: &mut Rig<'_>) {
    in_any_order(rig);
    lost_and_double(rig);
    overlapping(rig);
    bent(rig);
    flood(rig);
    timeouts(rig);
    too_big(rig);
}

/// A sealed packet, and what is inside as the far host gets it.
fn sealed(rig: &mut Rig<'_>, tunnel: &str, number: u64) -> (Vec<u8>, Vec<u8>) {
    let (from, to) = sites::hosts(tunnel, false);
    let packet = inner(&from, &to, number, 1000);
    let frame = rig.seal(std::slice::from_ref(&packet)).remove(0);
    (frame, forwarded(&packet, 2))
}

/// The fragments of the IP packet in `frame`, `step` bytes of payload in each but the last.
fn pieces(frame: &[u8], step: usize, id: u16) -> Vec<Vec<u8>> {
    let is_v4 = frame[ETHER] >> 4 == 4;
    let headers = ETHER + if is_v4 { 20 } else { 40 };
    let payload = &frame[headers..];
    let count = payload.len().div_ceil(step);
    let cut = |at: usize| {
        let text = &payload[at * step..payload.len().min((at + 1) * step)];
        let more = at + 1 < count;
        let offset = (at * step) as u16;
        let mut piece = [&frame[..headers], text].concat();
        if is_v4 {
            let field = offset >> 3 | if more { 0x2000 } else { 0 };
            piece[ETHER + 4..ETHER + 6].copy_from_slice(&id.to_be_bytes());
            piece[ETHER + 6..ETHER + 8].copy_from_slice(&field.to_be_bytes());
            fix(&mut piece, ETHER);
            piece
        } else {
            let [high, low] = (offset | u16::from(more)).to_be_bytes();
            let [a, b] = id.to_be_bytes();
            insert(&piece, 44, &[0, 0, high, low, 0, 0, a, b])
        }
    };
    (0..count).map(cut).collect()
}

/// East gets `frames`, and out comes `wanted`, `asides` fragments having become part of it.
#[track_caller]
fn comes_out(rig: &mut Rig<'_>, frames: &[Vec<u8>], wanted: &[u8], asides: u64) {
    let outcome = rig.east.run(SIDE, frames);
    assert_eq!(outcome.sent.len(), 1, "{outcome:?}");
    assert_eq!(&outcome.sent[0][ETHER..], wanted);
    assert_eq!(outcome.asides, asides, "{outcome:?}");
}

fn in_any_order(rig: &mut Rig<'_>) {
    for tunnel in KINDS {
        for turn in 0..4 {
            let (frame, inside) = sealed(rig, tunnel, turn);
            let mut all = pieces(&frame, 400, turn as u16);
            assert_eq!(all.len(), 3);
            match turn {
                0 => {}
                1 => all.reverse(),
                2 => all.swap(0, 1),
                _ => all.rotate_right(1),
            }
            comes_out(rig, &all, &inside, 3);
            // One by one, from poll to poll.
            let (frame, inside) = sealed(rig, tunnel, turn);
            let all = pieces(&frame, 400, 9 + turn as u16);
            for piece in &all[..2] {
                assert!(
                    rig.east
                        .run(SIDE, std::slice::from_ref(piece))
                        .sent
                        .is_empty()
                );
            }
            assert_eq!(rig.east.held(), 2);
            comes_out(rig, &all[2..], &inside, 3);
        }
        // One that is all of its packet (RFC 6946), which only IPv6 knows.
        if tunnel.ends_with('6') {
            let (frame, inside) = sealed(rig, tunnel, 7);
            let atomic = insert(&frame, 44, &[0; 8]);
            comes_out(rig, &[atomic], &inside, 1);
        }
    }
}

fn lost_and_double(rig: &mut Rig<'_>) {
    for (at, tunnel) in KINDS.into_iter().enumerate() {
        let id = 100 + at as u16;
        let (frame, inside) = sealed(rig, tunnel, 1);
        let all = pieces(&frame, 400, id);
        let twice = [&all[..2], &all[1..]].concat();
        let outcome = rig.east.run(SIDE, &twice);
        assert_eq!(
            outcome.dropped(DropReason::FragmentOverlap),
            1,
            "{outcome:?}"
        );
        assert_eq!(&outcome.sent[0][ETHER..], inside);
        // The packet itself was opened, so its fragments make a replay.
        let outcome = rig.east.run(SIDE, &all);
        assert_eq!(outcome.dropped(DropReason::Replayed), 1, "{outcome:?}");
        assert_eq!(outcome.asides, 3);
        // One lost: the next packet is none the worse for it.
        let (lossy, _) = sealed(rig, tunnel, 2);
        let (frame, inside) = sealed(rig, tunnel, 3);
        let mut both = pieces(&lossy, 400, id + 10);
        both.remove(1);
        both.extend(pieces(&frame, 400, id + 20));
        comes_out(rig, &both, &inside, 3);
    }
    assert_eq!(rig.east.held(), 2 * KINDS.len() as u64);
}

fn overlapping(rig: &mut Rig<'_>) {
    for (at, tunnel) in KINDS.into_iter().enumerate() {
        let (frame, _) = sealed(rig, tunnel, 1);
        let id = 200 + at as u16;
        let wide = pieces(&frame, 400, id);
        let narrow = pieces(&frame, 304, id);
        let frames = [
            wide[0].clone(),
            narrow[1].clone(),
            wide[1].clone(),
            wide[2].clone(),
        ];
        let outcome = rig.east.run(SIDE, &frames);
        assert_eq!(
            outcome.dropped(DropReason::FragmentOverlap),
            4,
            "{outcome:?}"
        );
        assert!(outcome.sent.is_empty());
    }
}

/// Single fragments of every shape: nothing comes out of any.
fn bent(rig: &mut Rig<'_>) {
    for tunnel in KINDS {
        let (frame, _) = sealed(rig, tunnel, 1);
        let fields = [
            0x2000u16, 0x0001, 0x2001, 0x1fff, 0x3fff, 0x6000, 0x0009, 0xfff8,
        ];
        let bent: Vec<Vec<u8>> = fields
            .into_iter()
            .map(|field| {
                if frame[ETHER] >> 4 == 4 {
                    let mut frame = frame.clone();
                    frame[ETHER + 6..ETHER + 8].copy_from_slice(&(field & 0x7fff).to_be_bytes());
                    fix_checksum(&mut frame[ETHER..]);
                    frame
                } else {
                    let [high, low] = field.to_be_bytes();
                    insert(&frame, 44, &[0, 0, high, low, 0, 0, 1, 7])
                }
            })
            .filter(|bent| bent[ETHER] >> 4 == 4 || bent[ETHER + 42..ETHER + 44] != [0, 0])
            .collect();
        for frame in &bent {
            let outcome = rig.east.run(SIDE, std::slice::from_ref(frame));
            assert!(outcome.sent.is_empty(), "{outcome:?}");
        }
        // Two headers too many before the fragment header, or one.
        if tunnel.ends_with('6') {
            let inside = insert(&frame, 44, &[0, 0, 0, 1, 0, 0, 1, 8]);
            let behind = insert(&inside, 60, &[0; 8]);
            rig.east
                .refuse(SIDE, &[behind], DropReason::Fragment, tunnel);
        }
        // To somebody else's address.
        if tunnel == "plain4" {
            let mut piece = pieces(&frame, 400, 77).remove(0);
            piece[ETHER + 19] = 99;
            fix_checksum(&mut piece[ETHER..]);
            rig.east
                .refuse(SIDE, &[piece], DropReason::ClearText, tunnel);
        }
    }
}

/// First fragments from everywhere, and honest packets between them.
fn flood(rig: &mut Rig<'_>) {
    let (frame, _) = sealed(rig, "plain4", 1);
    let all = pieces(&frame, 400, 300);
    let mut number = 0u32;
    let mut evicted = 0;
    for _ in 0..100 {
        let mut frames = Vec::new();
        for _ in 0..30 {
            number += 1;
            for piece in &all[..2] {
                let mut piece = piece.clone();
                piece[ETHER + 12..ETHER + 16]
                    .copy_from_slice(&(0x0b00_0000 + number).to_be_bytes());
                fix_checksum(&mut piece[ETHER..]);
                frames.push(piece);
            }
        }
        let outcome = rig.east.run(SIDE, &frames);
        evicted += outcome.dropped(DropReason::FragmentEvicted);
        assert!(rig.east.held() <= MOST_HELD as u64);
        let (frame, inside) = sealed(rig, "udp4", number.into());
        comes_out(rig, &pieces(&frame, 400, number as u16), &inside, 3);
    }
    assert!(evicted > 4000, "{evicted}");
}

fn timeouts(rig: &mut Rig<'_>) {
    assert!(rig.east.held() > 0);
    let before = rig.east.drops(SIDE, DropReason::FragmentTimeout);
    let held = rig.east.held();
    let started = Instant::now();
    while rig.east.held() > 0 && started.elapsed() < Duration::from_secs(20) {
        rig.east.worker.poll_once(&mut NoProbe);
    }
    assert_eq!(rig.east.held(), 0);
    let timed_out = rig.east.drops(SIDE, DropReason::FragmentTimeout) - before;
    assert_eq!(timed_out, held);
    assert_eq!(rig.east.pool.in_use(), 0);
}

/// Inner packets that do not fit: cut where they may be, otherwise refused with the size that fits.
fn too_big(rig: &mut Rig<'_>) {
    let mac = rig.west.macs[0];
    for (tunnel, limit) in [
        ("plain4", 1446),
        ("udp4", 1438),
        ("plain6", 1426),
        ("udp6", 1418),
    ] {
        let (from, to) = sites::hosts(tunnel, false);
        let mut packet = inner(&from, &to, 1, limit - 20);
        let frame = framed(mac, &packet);
        assert_eq!(rig.west.run(Side::Protected, &[frame]).sent.len(), 1);
        packet.extend([0; 9]);
        fix(&mut packet, 0);
        let outcome = rig.west.run(Side::Protected, &[framed(mac, &packet)]);
        assert_eq!((outcome.sent.len(), outcome.asides), (2, 1), "{outcome:?}");
        assert!(outcome.sent.iter().all(|frame| frame.len() <= ETHER + 1500));
        // The far host puts them together.
        let mut together = Vec::new();
        for mut frame in outcome.sent {
            frame[..6].copy_from_slice(&rig.east.macs[1]);
            let outcome = rig.east.run(SIDE, &[frame]);
            // East's link to the host is narrower still.
            for piece in outcome.sent {
                let piece = &piece[ETHER..];
                assert!(piece.len() <= 1280);
                let offset = usize::from(u16::from_be_bytes([piece[6], piece[7]]) & 0x1fff) * 8;
                assert_eq!(offset, together.len());
                together.extend_from_slice(&piece[20..]);
            }
        }
        assert_eq!(together, packet[20..]);
        packet[6] = 0x40;
        fix_checksum(&mut packet);
        rig.west.refuse(
            Side::Protected,
            &[framed(mac, &packet)],
            DropReason::TooBig,
            tunnel,
        );
        let (from, to) = sites::hosts(tunnel, true);
        let large = inner(&from, &to, 1, limit - 40 + 1);
        rig.west.refuse(
            Side::Protected,
            &[framed(mac, &large)],
            DropReason::TooBig,
            tunnel,
        );
    }
    narrow_path(rig);
    let of = |aside: Aside| {
        rig.west.worker.counters.direction(Side::Protected).asides[aside.index()].get()
    };
    assert!(of(Aside::CutAndSeal) >= 4);
    assert!(of(Aside::CutAndSend) >= 4);
}

/// A path that takes less than IPv6's least, once sealed: what IPv6 promises its senders gets through all the same.
fn narrow_path(rig: &mut Rig<'_>) {
    let mac = rig.west.macs[0];
    for tunnel in KINDS {
        let slot = rig.west.slot(tunnel).index();
        let outbound = rig.west.worker.shared.sad.outbound();
        let sa = outbound
            .get_owned(&rig.west.writer, slot)
            .expect("installed");
        sa.set_path_mtu(1280);
        let (from, to) = sites::hosts(tunnel, true);
        let packet = inner(&from, &to, 1, 1280 - 40);
        let outcome = rig.west.run(Side::Protected, &[framed(mac, &packet)]);
        assert_eq!((outcome.sent.len(), outcome.asides), (2, 1), "{outcome:?}");
        let mut frames = outcome.sent;
        for frame in &mut frames {
            assert!(frame.len() <= ETHER + 1280);
            frame[..6].copy_from_slice(&rig.east.macs[1]);
        }
        comes_out(rig, &frames, &forwarded(&packet, 2), 2);
        let large = inner(&from, &to, 1, 1281 - 40);
        rig.west.refuse(
            Side::Protected,
            &[framed(mac, &large)],
            DropReason::TooBig,
            tunnel,
        );
    }
}
