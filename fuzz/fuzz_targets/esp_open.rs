//! ESP packets that are authentic, from a peer that has the key and means no good: whatever was encrypted, and whatever
//! outer header stands around it.
//!
//! The first byte chooses the gateway, the second is the outer TOS, the rest is the plaintext, trailer included.
#![no_main]

#[path = "../../tests/rig/mod.rs"]
mod rig;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use rig::{End, Family, Keying, Outcome, Rig, Shape, internet_checksum};
use simplon::crypto::aead::{
    Aad, AeadKey, Cipher, KeyMaterial, SALT_LEN, SealJob, nonce, seal_burst,
};
use simplon::drop::DropReason;
use zeroize::Zeroizing;

/// A gateway, and what its peer needs to send to it.
struct Victim {
    shape: Shape,
    rig: Rig,
    spi: u32,
    key: AeadKey,
    salt: [u8; SALT_LEN],
    seq: u64,
}

thread_local! {
    static VICTIMS: RefCell<Vec<Victim>> = RefCell::new(victims());
}

fn victims() -> Vec<Victim> {
    let victim = |(cipher, outer, udp)| {
        let shape = Shape::new(cipher, Family::V4, outer, udp);
        let Keying { spi, key } = shape.keying(End::East);
        let key = KeyMaterial::new(cipher, Zeroizing::new(key)).expect("length");
        Victim {
            rig: Rig::new(&shape),
            shape,
            spi,
            key: AeadKey::new(&key),
            salt: key.salt(),
            seq: 0,
        }
    };
    [
        (Cipher::Aes128Gcm, Family::V4, false),
        (Cipher::Aes192Gcm, Family::V4, true),
        (Cipher::Aes256Gcm, Family::V6, false),
        (Cipher::Aes128Gcm, Family::V6, true),
    ]
    .into_iter()
    .map(victim)
    .collect()
}

impl Victim {
    fn packet(&mut self, tos: u8, plain: &[u8]) -> Vec<u8> {
        self.seq += 1;
        let iv = self.seq.to_be_bytes();
        let mut text = [plain, &[0; 16]].concat();
        seal_burst(&mut [SealJob {
            key: self.key.get(),
            nonce: nonce(self.salt, iv),
            aad: Aad::extended(self.spi, self.seq),
            text: &mut text,
            sealed: false,
        }]);
        let low = &iv[4..];
        let mut payload = [&self.spi.to_be_bytes(), low, &iv, &text].concat();
        if self.shape.udp {
            let (local, remote) = self.shape.ports;
            let len = u16::try_from(8 + payload.len()).expect("short");
            let header = [remote, local, len, 0].map(u16::to_be_bytes).concat();
            payload.splice(..0, header);
        }
        self.outer(tos, &payload)
    }

    fn outer(&self, tos: u8, payload: &[u8]) -> Vec<u8> {
        let protocol = if self.shape.udp { 17 } else { 50 };
        let len = u16::try_from(payload.len()).expect("short");
        let mut header = match self.shape.outer {
            Family::V4 => {
                let [high, low] = (len + 20).to_be_bytes();
                let mut header = vec![0x45, tos, high, low, 0, 0, 0, 0, 64, protocol, 0, 0];
                header.extend([192, 0, 2, 2, 192, 0, 2, 1]);
                let sum = internet_checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header
            }
            Family::V6 => {
                let [high, low] = len.to_be_bytes();
                let mut header = vec![0x60 | tos >> 4, tos << 4, 0, 0, high, low, protocol, 64];
                for host in [2, 1] {
                    header.extend([
                        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host,
                    ]);
                }
                header
            }
        };
        header.extend(payload);
        header
    }
}

fuzz_target!(|input: &[u8]| {
    let [choice, tos, plain @ ..] = input else {
        return;
    };
    if plain.len() < 2 || plain.len() > 60_000 {
        return;
    }
    VICTIMS.with_borrow_mut(|victims| {
        let victim = &mut victims[usize::from(choice & 3)];
        let packet = victim.packet(*tos, plain);
        match victim.rig.open_one(&packet) {
            Outcome::Sent(inner) => assert!(inner.len() <= plain.len() - 2),
            Outcome::Dropped(reason) => assert!(
                !matches!(
                    reason,
                    DropReason::BadIcv | DropReason::NoSa | DropReason::Replayed | DropReason::Runt
                ),
                "an authentic packet dropped for {reason:?}"
            ),
            Outcome::Punted(reason) => panic!("an authentic packet punted for {reason:?}"),
            // Too big for the link, and to be cut.
            Outcome::Aside(_) => {}
        }
        let replay = victim.rig.open_one(&packet);
        assert_eq!(replay, Outcome::Dropped(DropReason::Replayed));
    });
});
