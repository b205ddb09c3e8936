//! Whatever was changed on the way is refused, and nothing of the plaintext stays in the packet.

use simplon::crypto::aead::{Cipher, ICV_LEN};
use simplon::crypto::tier::Tier;

use super::{Message, check_refused, check_wiped, in_tier, open_at};

/// Jobs in one call.
const BURST: usize = 64;

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

fn with_sealed(message: &Message, bit: usize) -> Message {
    Message {
        sealed: flipped(&message.sealed, bit),
        ..message.clone()
    }
}

/// `message` with each bit of its AAD and of its nonce flipped in turn.
fn other_headers(message: &Message) -> Vec<Message> {
    let aads = (0..8 * message.aad.len()).map(|bit| Message {
        aad: flipped(&message.aad, bit),
        ..message.clone()
    });
    let nonces = (0..8 * message.nonce.len()).map(|bit| Message {
        nonce: flipped(&message.nonce, bit).try_into().expect("12 bytes"),
        ..message.clone()
    });
    aads.chain(nonces).collect()
}

#[test]
fn any_flipped_bit_of_a_short_message_is_refused() {
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
            let message = Message::new(cipher, 0, esn, len);
            let mut forged = other_headers(&message);
            forged.extend((0..8 * message.sealed.len()).map(|bit| with_sealed(&message, bit)));
            tried += forged.len();
            for burst in forged.chunks(BURST) {
                check_refused(burst);
            }
        }
    }
    // Six texts with ICVs, three AADs of each length, six nonces.
    let bits = 8 * (195 + 6 * 16 + 3 * 8 + 3 * 12 + 6 * 12);
    assert_eq!(tried, 3 * bits);
}

#[test]
fn any_changed_byte_of_a_longer_message_and_any_bit_of_its_icv_is_refused() {
    for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Gcm] {
        for len in [48, 64, 177, 256, 300, 576, 1408, 1600] {
            let message = Message::new(cipher, 0, len % 128 == 0, len);
            let icv = 8 * len..8 * (len + ICV_LEN);
            let bytes = (0..len).map(|byte| 8 * byte + byte % 8);
            let mut forged = other_headers(&message);
            forged.extend(bytes.chain(icv).map(|bit| with_sealed(&message, bit)));
            for burst in forged.chunks(BURST) {
                check_refused(burst);
            }
        }
    }
}

#[test]
fn forged_packets_leave_their_neighbours_authentic() {
    for tier in Tier::available() {
        for len in [16, 48, 64, 128, 200, 576] {
            let genuine = Message::new(Cipher::Aes128Gcm, 0, true, len);
            let forged = with_sealed(&genuine, 8 * len / 2);
            for pattern in 0..256_u32 {
                let is_forged = |at: usize| pattern >> at & 1 == 1;
                let message = |at| if is_forged(at) { &forged } else { &genuine };
                let burst: Vec<_> = (0..8).map(|at| (message(at), tier)).collect();
                for (at, (authentic, text)) in open_at(&burst, 50).into_iter().enumerate() {
                    assert_eq!(
                        authentic,
                        !is_forged(at),
                        "{tier}: {len} bytes, {pattern:b}"
                    );
                    if authentic {
                        assert_eq!(text[..len], genuine.plain, "{tier}: {len} bytes");
                    } else {
                        check_wiped(&forged, tier, &text);
                    }
                }
            }
        }
    }
}

#[test]
fn wrong_key_is_refused() {
    for cipher in Cipher::ALL {
        for len in [0, 48, 64, 576, 1408] {
            let mut message = Message::new(cipher, 0, true, len);
            message.key[3] ^= 0x10;
            check_refused(&[message]);
        }
    }
}

#[test]
fn aad_of_the_other_length_is_refused_though_it_begins_alike() {
    for cipher in Cipher::ALL {
        let long = Message::new(cipher, 0, true, 100);
        let mut cut = long.clone();
        cut.aad.truncate(8);
        let mut zeros = Message::new(cipher, 0, false, 100);
        zeros.aad.extend([0; 4]);
        check_refused(&[cut, zeros]);
    }
}

#[test]
fn swapped_and_shortened_texts_are_refused() {
    for tier in Tier::available() {
        let message = Message::new(Cipher::Aes256Gcm, 0, true, 320);
        let changed = |sealed| Message {
            sealed,
            ..message.clone()
        };
        let mut swapped = message.sealed.clone();
        swapped[..32].rotate_left(16);
        let shorter = [&message.sealed[..304], &message.sealed[320..]].concat();
        let longer = [&message.sealed[..320], &[0; 16], &message.sealed[320..]].concat();
        for forged in [swapped, shorter, longer].map(changed) {
            let results = open_at(&in_tier(std::slice::from_ref(&forged), tier), 0);
            assert!(!results[0].0, "{tier}");
            check_wiped(&forged, tier, &results[0].1);
        }
    }
}
