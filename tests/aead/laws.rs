//! What holds for every message: sealing is what the `aes-gcm` crate does with nonce and AAD built by hand, opening is
//! its inverse, wherever in memory the text is and whatever else is in the burst.

use proptest::prelude::*;
use simplon::crypto::aead::{Aad, Cipher, SealJob, seal_burst};
use simplon::crypto::tier::Tier;

use super::{
    Message, Tiered, check, check_at, check_refused, check_wiped, in_tier, open_at, seal_at,
};

/// Lengths around every boundary a kernel can have: blocks, vectors of four blocks, chunks of sixteen, groups of short
/// packets, and the round numbers of packets.
const EDGES: [usize; 60] = [
    0, 1, 2, 3, 4, 8, 12, 15, 16, 17, 20, 31, 32, 33, 44, 47, 48, 49, 52, 60, 63, 64, 65, 79, 80,
    81, 95, 96, 111, 112, 113, 127, 128, 129, 175, 176, 177, 191, 192, 193, 207, 239, 240, 241,
    255, 256, 257, 287, 304, 319, 320, 383, 496, 511, 512, 513, 767, 768, 1023, 1408,
];

#[test]
fn every_length_seals_as_the_reference_and_opens_again() {
    let mut checked = 0;
    let mut burst = Vec::new();
    for len in (0..=2048).chain(8970..=9030) {
        for cipher in Cipher::ALL {
            burst.push(Message::new(cipher, 0, true, len));
            burst.push(Message::new(cipher, 1, false, len));
        }
        if burst.len() >= 60 {
            checked += burst.len();
            check(&burst);
            burst.clear();
        }
    }
    check(&burst);
    assert_eq!(checked + burst.len(), 6 * (2049 + 61));
}

#[test]
fn every_length_in_a_run_of_one_sa() {
    // 9,728 bytes, ICV included, is where a kernel's tables of counters may end.
    let lengths: Vec<_> = (0..=2048).chain(8970..=9030).chain(9500..=9750).collect();
    for cipher in Cipher::ALL {
        for run in lengths.chunks(8) {
            let message = |&len: &usize| Message::new(cipher, 0, true, len);
            check(&run.iter().map(message).collect::<Vec<_>>());
            // Each by itself too, so that no other length decides what the run prepares.
            for len in run.iter().filter(|len| *len % 16 == 0) {
                check(&[len; 5].map(message));
            }
        }
    }
}

#[test]
fn every_alignment_of_the_text_gives_the_same() {
    for (at, cipher) in Cipher::ALL.into_iter().enumerate() {
        let message = |len| Message::new(cipher, 0, (len + at) % 2 == 0, len);
        let messages: Vec<_> = EDGES.into_iter().map(message).collect();
        for tier in Tier::available() {
            // Neighbours are one byte further each, so that every text meets every alignment and all mixtures of them.
            for alignment in 0..64 {
                check_at(&in_tier(&messages, tier), alignment);
            }
        }
    }
}

#[test]
fn every_number_of_equal_packets_in_a_burst() {
    for len in [0, 16, 45, 48, 64, 100, 112, 176, 180, 300, 576] {
        // Of one SA, and of two that alternate.
        for keys in [1, 2] {
            let messages: Vec<_> = (0..40)
                .map(|at| Message::new(Cipher::Aes128Gcm, at % keys, at % 3 == 0, len))
                .collect();
            for count in 0..=messages.len() {
                check(&messages[..count]);
            }
        }
    }
}

#[test]
fn packets_of_one_sa_with_every_mixture_of_two_lengths() {
    for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Gcm] {
        for short in [20, 48, 64, 128] {
            for long in [0, 63, 150, 190, 600] {
                // Bit n of the pattern says which of the two packet n is.
                for pattern in 0..64_u32 {
                    let len = |at: u64| if pattern >> at & 1 == 0 { short } else { long };
                    let message = |at| Message::new(cipher, 0, true, len(at));
                    check(&(0..6).map(message).collect::<Vec<_>>());
                }
            }
        }
    }
}

#[test]
fn counter_carries_from_byte_to_byte() {
    // The 32-bit counter begins at 2, so its lowest byte wraps after 254 blocks, and the next after 65,534.
    for cipher in Cipher::ALL {
        for len in (4032..=4128).step_by(3) {
            check(&[Message::new(cipher, 0, true, len)]);
        }
        check(&[Message::new(cipher, 0, true, 65_534 * 16 + 777)]);
    }
}

#[test]
fn longest_packets_seal_and_open() {
    for cipher in Cipher::ALL {
        let lengths = [12_288, 16_384, 32_767, 65_519, 65_520, 65_535];
        let message = |len| Message::new(cipher, 0, len % 2 == 0, len);
        check(&lengths.map(message));
    }
}

#[test]
fn text_too_short_for_an_icv_is_refused_and_not_sealed() {
    for len in 0..16 {
        let mut short = Message::new(Cipher::Aes128Gcm, 0, true, 0);
        short.sealed.truncate(len);
        check_refused(&[short]);
        for tier in Tier::available() {
            let key = Message::new(Cipher::Aes128Gcm, 0, true, 0).aead_key(tier);
            let mut text = vec![0x5a; len];
            let mut burst = [SealJob {
                key: key.get(),
                nonce: [0; 12],
                aad: Aad::short(0x1001, 1),
                text: &mut text,
                sealed: true,
            }];
            seal_burst(&mut burst);
            assert!(!burst[0].sealed, "{tier}");
            assert_eq!(text, vec![0x5a; len], "{tier}");
        }
    }
}

/// One job of a mixed burst: cipher, tier, key, ESN, length, and the bit to flip in the sealed text.
type Mixed = (
    prop::sample::Index,
    prop::sample::Index,
    u64,
    bool,
    usize,
    Option<prop::sample::Index>,
);

fn mixed() -> impl Strategy<Value = Mixed> {
    use prop::sample::Index;
    // Mostly short, for that is where several are done at once.
    let len = prop_oneof![4 => 0usize..200, 2 => 200usize..700, 1 => 700usize..3000];
    let flip = prop::option::weighted(0.2, any::<Index>());
    let cipher_and_tier = (any::<Index>(), any::<Index>());
    (cipher_and_tier, 0u64..3, any::<bool>(), len, flip)
        .prop_map(|((cipher, tier), key, esn, len, flip)| (cipher, tier, key, esn, len, flip))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Each job of a burst of mixed tiers, ciphers, keys, lengths and forgeries gets what it must, its neighbours
    /// whatever they are.
    #[test]
    fn jobs_of_one_burst_do_not_disturb_each_other(
        jobs in prop::collection::vec(mixed(), 0..=64),
        alignment in 0usize..64,
    ) {
        let tiers: Vec<_> = Tier::available().collect();
        let mut forged = Vec::new();
        let mut genuine = Vec::new();
        for (cipher, _, key, esn, len, flip) in &jobs {
            let message = Message::new(Cipher::ALL[cipher.index(3)], *key, *esn, *len);
            let mut changed = message.clone();
            if let Some(flip) = flip {
                let bit = flip.index(8 * message.sealed.len());
                changed.sealed[bit / 8] ^= 1 << (bit % 8);
            }
            genuine.push(message);
            forged.push(changed);
        }
        let tier = |at: usize| tiers[jobs[at].1.index(tiers.len())];
        let tiered = |messages| -> Vec<Tiered<'_>> {
            <[Message]>::iter(messages).enumerate().map(|(at, message)| (message, tier(at))).collect()
        };
        for ((message, tier), sealed) in tiered(&genuine).into_iter().zip(seal_at(&tiered(&genuine), alignment)) {
            prop_assert_eq!(sealed, message.sealed.clone(), "{}: sealing {}", tier, message.label());
        }
        let opened = open_at(&tiered(&forged), alignment);
        for (((message, tier), (authentic, text)), job) in tiered(&forged).into_iter().zip(opened).zip(&jobs) {
            prop_assert_eq!(authentic, job.5.is_none(), "{}: opening {}", tier, message.label());
            if authentic {
                prop_assert_eq!(&text[..message.plain.len()], &message.plain, "{}: opening {}", tier, message.label());
            } else {
                check_wiped(message, tier, &text);
            }
        }
    }
}
