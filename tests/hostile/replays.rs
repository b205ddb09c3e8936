//! Sequence numbers: copies, stragglers, jumps, and the ends of the number space.

use simplon::drop::DropReason;
use simplon::policy::model::Side;

use super::packets::{ETHER, forwarded, inner, with_trailer};
use super::rig::Rig;
use super::sites::{KINDS, hosts};

const SIDE: Side = Side::Unprotected;

pub(crate) fn run(rig: &mut Rig<'_>) {
    copies(rig);
    too_old(rig);
    zero(rig);
    extended_numbers_cross_32_bits(rig);
    forged_numbers_move_no_window(rig);
    for tunnel in ["plain4", "short"] {
        rig.west.install(tunnel, 1, 0);
        rig.east.install(tunnel, 1, 0);
    }
}

fn packet(tunnel: &str, number: u64) -> Vec<u8> {
    let (source, destination) = hosts(tunnel, false);
    inner(&source, &destination, number, 40)
}

fn copies(rig: &mut Rig<'_>) {
    for tunnel in KINDS {
        let sealed = rig.seal(&[packet(tunnel, 0)]).remove(0);
        let outcome = rig.east.run(SIDE, &vec![sealed.clone(); 64]);
        assert_eq!(outcome.sent.len(), 1, "{tunnel}, in one burst");
        assert_eq!(
            outcome.dropped(DropReason::Replayed),
            63,
            "{tunnel}, in one burst"
        );
        rig.east
            .refuse(SIDE, &[sealed], DropReason::Replayed, "in another burst");

        // Interleaved with others, twice, and backwards.
        let packets: Vec<_> = (0..32).map(|number| packet(tunnel, number)).collect();
        let mut frames = rig.seal(&packets);
        frames.extend(frames.clone().into_iter().rev());
        let outcome = rig.east.run(SIDE, &frames);
        assert_eq!(outcome.sent.len(), 32, "{tunnel}, interleaved");
        assert_eq!(
            outcome.dropped(DropReason::Replayed),
            32,
            "{tunnel}, interleaved"
        );
        for (sent, packet) in outcome.sent.iter().zip(&packets) {
            assert_eq!(sent[ETHER..], forwarded(packet, 2), "first come, in order");
        }
    }
    // Two tunnels in turns: no run is longer than one.
    let mixed: Vec<_> = (0..32)
        .map(|number| packet(KINDS[number as usize % 2], number))
        .collect();
    let mut frames = rig.seal(&mixed);
    frames.extend(frames.clone());
    let outcome = rig.east.run(SIDE, &frames);
    assert_eq!(
        (outcome.sent.len(), outcome.dropped(DropReason::Replayed)),
        (32, 32)
    );
}

fn too_old(rig: &mut Rig<'_>) {
    rig.west.install("short", 1, 0);
    rig.east.install("short", 1, 0);
    let frames: Vec<_> = (0..4)
        .flat_map(|round| {
            let packets: Vec<_> = (0..50).map(|at| packet("short", round * 50 + at)).collect();
            rig.seal(&packets)
        })
        .collect();
    // Number n is at n - 1. With 101 seen, a window of 64 begins at 38.
    let outcome = rig.east.run(SIDE, &frames[100..101]);
    assert_eq!(outcome.sent.len(), 1);
    rig.east.refuse(
        SIDE,
        &frames[..37],
        DropReason::TooOld,
        "left of the window",
    );
    let outcome = rig.east.run(SIDE, &frames[37..100]);
    assert_eq!(outcome.sent.len(), 63, "all of the window: {outcome:?}");
    // The early check lets both through, for the window has not moved yet; the commit does not.
    let burst = [
        frames[199].clone(),
        frames[120].clone(),
        frames[140].clone(),
    ];
    let outcome = rig.east.run(SIDE, &burst);
    assert_eq!(outcome.sent.len(), 2, "{outcome:?}");
    assert_eq!(outcome.dropped(DropReason::TooOld), 1, "{outcome:?}");
    rig.east.refuse(
        SIDE,
        &[frames[100].clone()],
        DropReason::TooOld,
        "seen and left of the window",
    );
}

fn zero(rig: &mut Rig<'_>) {
    for tunnel in ["short", "plain4"] {
        rig.west.install(tunnel, 1, 0);
        rig.east.install(tunnel, 1, 0);
        let text = with_trailer(&packet(tunnel, 0), 4);
        let authentic = rig.west.hand_seal(tunnel, 0, &text, rig.east.macs[1]);
        rig.east
            .refuse(SIDE, &[authentic], DropReason::ZeroSequence, "number 0");
        let sealed = rig.seal(&[packet(tunnel, 1)]).remove(0);
        rig.accept(&sealed, &forwarded(&packet(tunnel, 1), 2), "number 1");
    }
    // With 32-bit numbers a high half is nothing that AAD or window know of: the IV alone differs, so the same low
    // number is the same number.
    let text = with_trailer(&packet("short", 0), 4);
    let wrapped = rig
        .west
        .hand_seal("short", (1 << 32) + 1, &text, rig.east.macs[1]);
    rig.east
        .refuse(SIDE, &[wrapped], DropReason::Replayed, "a wrapped number");
}

fn extended_numbers_cross_32_bits(rig: &mut Rig<'_>) {
    let wrap = 1u64 << 32;
    rig.west.install("plain4", wrap - 20, 0);
    rig.east.install("plain4", 1, wrap - 21);
    let packets: Vec<_> = (0..40).map(|number| packet("plain4", number)).collect();
    let frames = rig.seal(&packets);
    let low = |frame: &[u8]| u32::from_be_bytes(*frame[38..].first_chunk().unwrap());
    assert_eq!((low(&frames[19]), low(&frames[20])), (u32::MAX, 0));
    // The far side of the wrap first, 2^32 itself included, then the near one.
    let outcome = rig.east.run(SIDE, &frames[20..]);
    assert_eq!(outcome.sent.len(), 20, "{outcome:?}");
    let outcome = rig.east.run(SIDE, &frames[..20]);
    assert_eq!(outcome.sent.len(), 20, "{outcome:?}");
    rig.east
        .refuse(SIDE, &frames, DropReason::Replayed, "over the wrap");
    // The same low half in the space before the window is taken for the one after, and is not authentic there.
    let old = rig.west.hand_seal(
        "plain4",
        100,
        &with_trailer(&packets[0], 4),
        rig.east.macs[1],
    );
    rig.east
        .refuse(SIDE, &[old], DropReason::BadIcv, "2^32 too old");
}

/// Forged packets with numbers near and far: whatever becomes of them, the next real one is accepted.
fn forged_numbers_move_no_window(rig: &mut Rig<'_>) {
    rig.west.install("short", 1000, 0);
    rig.east.install("short", 1, 999);
    for number in 0..64u64 {
        let inner = packet("short", number);
        let real = rig.seal(std::slice::from_ref(&inner)).remove(0);
        let forged: Vec<_> = (0..32)
            .map(|bit| {
                let mut frame = real.clone();
                let low = u32::from_be_bytes(*frame[38..].first_chunk().unwrap());
                frame[38..42].copy_from_slice(&(low ^ (1 << bit)).to_be_bytes());
                frame
            })
            .collect();
        let outcome = rig.east.run(SIDE, &forged);
        assert!(outcome.sent.is_empty());
        rig.accept(&real, &forwarded(&inner, 2), "after forgeries");
    }
}
