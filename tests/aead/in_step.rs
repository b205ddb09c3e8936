//! Bursts in which every packet has another key: short texts of them may go in step, whatever their keys, and nothing of one may
//! show in another.

use simplon::crypto::aead::{Cipher, ICV_LEN};
use simplon::crypto::tier::Tier;

use super::{Message, check, check_wiped, in_tier, open_at};

/// Texts around all that goes in step.
const LENGTHS: std::ops::RangeInclusive<usize> = 28..=100;

/// As many as go in step twice, once more by fours, and some that are left over.
const PACKETS: u64 = 8 + 8 + 4 + 3;

#[test]
fn short_texts_of_every_length_under_as_many_keys() {
    for cipher in Cipher::ALL {
        for len in LENGTHS {
            let message = |key| Message::new(cipher, key, key % 2 == 0, len);
            check(&(0..PACKETS).map(message).collect::<Vec<_>>());
        }
    }
}

#[test]
fn short_texts_of_all_lengths_and_ciphers_at_once() {
    let messages: Vec<_> = LENGTHS
        .flat_map(|len| Cipher::ALL.map(|cipher| (len, cipher)))
        .zip(0_u64..)
        // Neighbours are of different kinds, and in another order each time.
        .map(|((len, cipher), key)| (key.wrapping_mul(7919) % 1009, len, cipher, key))
        .collect();
    for turn in 0..7 {
        let mut messages = messages.clone();
        messages.sort_by_key(|(order, ..)| order.wrapping_mul(2 * turn + 1) % 1009);
        let message = |&(_, len, cipher, key): &_| Message::new(cipher, key, key % 3 == 0, len);
        for burst in messages.chunks(64) {
            check(&burst.iter().map(message).collect::<Vec<_>>());
        }
    }
}

#[test]
fn runs_of_every_length_between_packets_of_other_keys() {
    for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Gcm] {
        // Bits of the pattern say where the next key begins.
        for pattern in 0..1_u64 << 10 {
            let lens = [40, 64, 64, 64, 1000, 64, 64, 300, 64, 52, 64];
            let message = |(at, len): (usize, usize)| {
                let key = (pattern & ((1 << at) - 1)).count_ones();
                Message::new(cipher, key.into(), true, len)
            };
            check(
                &lens
                    .into_iter()
                    .enumerate()
                    .map(message)
                    .collect::<Vec<_>>(),
            );
        }
    }
}

#[test]
fn forged_packet_is_refused_at_any_place_and_its_neighbours_are_not() {
    for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Gcm] {
        for len in [33, 48, 64, 70, 96] {
            let message = |key| Message::new(cipher, key, true, len);
            let genuine: Vec<_> = (0..PACKETS).map(message).collect();
            for place in 0..genuine.len() {
                for bit in (0..8 * (len + ICV_LEN)).step_by(37) {
                    let mut messages = genuine.clone();
                    messages[place].sealed[bit / 8] ^= 1 << (bit % 8);
                    for tier in Tier::available() {
                        let results = open_at(&in_tier(&messages, tier), place);
                        for (at, (authentic, text)) in results.into_iter().enumerate() {
                            assert_eq!(authentic, at != place, "{tier}: packet {at} of {place}");
                            match authentic {
                                true => assert_eq!(text[..len], messages[at].plain, "{tier}"),
                                false => check_wiped(&messages[at], tier, &text),
                            }
                        }
                    }
                }
            }
        }
    }
}
