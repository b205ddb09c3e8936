//! Frames of strangers, on either side of a gateway with ESP and of one with ESP in UDP: parse, classify, and as far as
//! they get.
//!
//! The first byte chooses gateway and side, the rest is the frame.
#![no_main]

#[path = "../../tests/rig/mod.rs"]
mod rig;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use rig::{Family, Outcome, Rig, Shape};
use simplon::crypto::aead::Cipher;
use simplon::policy::model::Side;

const MTU: u16 = 1500;

thread_local! {
    static RIGS: RefCell<Vec<Rig>> = RefCell::new(rigs());
}

fn rigs() -> Vec<Rig> {
    let rig = |(outer, udp)| {
        Rig::new(&Shape {
            lan_mtu: MTU,
            wan_mtu: MTU,
            ..Shape::new(Cipher::Aes128Gcm, Family::V4, outer, udp)
        })
    };
    Family::ALL
        .into_iter()
        .flat_map(|outer| [false, true].map(|udp| (outer, udp)))
        .map(rig)
        .collect()
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, frame)) = input.split_first() else {
        return;
    };
    let side = if choice & 1 == 0 {
        Side::Protected
    } else {
        Side::Unprotected
    };
    RIGS.with_borrow_mut(|rigs| {
        let rig = &mut rigs[usize::from(choice >> 1 & 3)];
        // Its neighbours in the burst are the same frame, and one cut short.
        let cut = frame[..frame.len() / 2].to_vec();
        let frames = [frame.to_vec(), cut, frame.to_vec()];
        for outcome in rig.pass_frames(side, &frames) {
            if let Outcome::Sent(sent) = outcome {
                assert!(sent.len() <= 14 + usize::from(MTU));
            }
        }
    });
});
