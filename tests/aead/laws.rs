//! What holds for every message: sealing is what the `aes-gcm` crate does with nonce and AAD built by hand, opening is
//! its inverse, whatever was changed is refused, and jobs of one burst do not meet.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::aes::Aes192;
use aes_gcm::aes::cipher::consts::U12;
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm};
use proptest::prelude::*;
use simplon::crypto::aead::{Aad, Cipher, SealJob, seal_burst};

use super::{Message, check, check_refused, open, seal};

/// Seals by the crate alone: no type of ours is in between.
fn reference(key: &[u8], nonce: &[u8; 12], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let payload = Payload { msg: plain, aad };
    let nonce = nonce.into();
    match key.len() {
        16 => Aes128Gcm::new_from_slice(key)
            .expect("16 bytes")
            .encrypt(nonce, payload),
        24 => AesGcm::<Aes192, U12>::new_from_slice(key)
            .expect("24 bytes")
            .encrypt(nonce, payload),
        _ => Aes256Gcm::new_from_slice(key)
            .expect("32 bytes")
            .encrypt(nonce, payload),
    }
    .expect("short enough")
}

/// SplitMix64: bytes without a pattern, the same every time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    std::iter::repeat_with(|| next().to_le_bytes())
        .flatten()
        .take(len)
        .collect()
}

/// A message of `len` bytes as ESP has it: nonce from salt and IV, AAD of 8 or 12 bytes, all put together here.
fn message(cipher: Cipher, esn: bool, len: usize) -> Message {
    let seed = (len as u64) << 8 | (cipher.key_len() as u64) << 1 | u64::from(esn);
    let key = noise(seed ^ 0x1111, cipher.key_len());
    let seq = 0x0000_0007_ffff_ff00_u64 + len as u64;
    let mut nonce = [0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 0, 0, 0, 0, 0];
    nonce[4..].copy_from_slice(&seq.to_be_bytes());
    let mut aad = vec![0x00, 0x00, 0x10, 0x01];
    if esn {
        aad.extend(seq.to_be_bytes());
    } else {
        aad.extend(&seq.to_be_bytes()[4..]);
    }
    let plain = noise(seed, len);
    let sealed = reference(&key, &nonce, &aad, &plain);
    Message {
        key,
        nonce,
        aad,
        plain,
        sealed,
    }
}

#[test]
fn every_length_seals_as_the_reference_and_opens_again() {
    let lengths = (0..=2048).chain(8970..=9030);
    let mut checked = 0;
    let mut burst = Vec::new();
    for len in lengths {
        for cipher in Cipher::ALL {
            burst.push(message(cipher, len % 2 == 0, len));
        }
        if burst.len() >= 60 {
            checked += burst.len();
            check(&burst);
            burst.clear();
        }
    }
    check(&burst);
    assert_eq!(checked + burst.len(), 3 * (2049 + 61));
}

/// Every message that differs from `message` in one bit of sealed text, AAD or nonce.
fn one_bit_off(message: &Message) -> Vec<Message> {
    let mut all = Vec::new();
    let flipped = |bytes: &[u8], bit: usize| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    };
    for bit in 0..8 * message.sealed.len() {
        all.push(Message {
            sealed: flipped(&message.sealed, bit),
            ..message.clone()
        });
    }
    for bit in 0..8 * message.aad.len() {
        all.push(Message {
            aad: flipped(&message.aad, bit),
            ..message.clone()
        });
    }
    for bit in 0..8 * message.nonce.len() {
        let nonce = flipped(&message.nonce, bit).try_into().expect("12 bytes");
        all.push(Message {
            nonce,
            ..message.clone()
        });
    }
    all
}

#[test]
fn any_flipped_bit_is_refused_and_the_text_left_as_it_was() {
    let mut tried = 0;
    for cipher in Cipher::ALL {
        for (esn, len) in [
            (false, 0),
            (true, 1),
            (false, 15),
            (true, 16),
            (true, 33),
            (false, 130),
        ] {
            let message = message(cipher, esn, len);
            let forged = one_bit_off(&message);
            tried += forged.len();
            for burst in forged.chunks(64) {
                check_refused(burst);
            }
        }
    }
    // Six texts with ICVs, three AADs of each length, six nonces.
    let bits = 8 * (195 + 6 * 16 + 3 * 8 + 3 * 12 + 6 * 12);
    assert_eq!(tried, 3 * bits);
}

#[test]
fn aad_of_the_other_length_is_refused_though_it_begins_alike() {
    for cipher in Cipher::ALL {
        let long = message(cipher, true, 100);
        let mut cut = long.clone();
        cut.aad.truncate(8);
        let mut zeros = message(cipher, false, 100);
        zeros.aad.extend([0; 4]);
        check_refused(&[cut, zeros]);
    }
}

#[test]
fn text_too_short_for_an_icv_is_refused_and_not_sealed() {
    for len in 0..16 {
        let mut short = message(Cipher::Aes128Gcm, true, 0);
        short.sealed.truncate(len);
        check_refused(&[short]);

        let key = message(Cipher::Aes128Gcm, true, 0).aead_key();
        let mut text = vec![0x5a; len];
        seal_burst(&mut [SealJob {
            key: &key,
            nonce: [0; 12],
            aad: Aad::short(0x1001, 1),
            text: &mut text,
            sealed: false,
        }]);
        assert_eq!(text, vec![0x5a; len]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A burst in which some jobs are forged gives to each job what it gets alone.
    #[test]
    fn jobs_of_one_burst_do_not_disturb_each_other(
        jobs in prop::collection::vec((0usize..3, any::<bool>(), 0usize..300, prop::option::of(any::<prop::sample::Index>())), 0..=64),
    ) {
        let mut messages = Vec::new();
        for (cipher, esn, len, flip) in &jobs {
            let mut message = message(Cipher::ALL[*cipher], *esn, *len);
            if let Some(flip) = flip {
                let bit = flip.index(8 * message.sealed.len());
                message.sealed[bit / 8] ^= 1 << (bit % 8);
            }
            messages.push(message);
        }
        let together = open(&messages);
        for ((message, (authentic, text)), (.., flip)) in messages.iter().zip(&together).zip(&jobs) {
            prop_assert_eq!(*authentic, flip.is_none());
            if *authentic {
                prop_assert_eq!(&text[..message.plain.len()], &message.plain);
            } else {
                prop_assert_eq!(text, &message.sealed);
            }
            prop_assert_eq!(&open(std::slice::from_ref(message))[0], &(*authentic, text.clone()));
        }
        for (message, sealed) in messages.iter().zip(seal(&messages)) {
            prop_assert_eq!(sealed, reference(&message.key, &message.nonce, &message.aad, &message.plain));
        }
    }
}
