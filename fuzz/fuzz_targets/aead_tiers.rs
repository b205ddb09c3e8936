//! Tiers of AES-GCM against each other: a burst that one sealed is what every other seals and opens, and what was
//! changed on the way is refused by all, with nothing of the plaintext left.
//!
//! The input is a list of packets: cipher, key, nonce and AAD length from one byte, then a byte that chooses the
//! tampering and where, two bytes of length. What is left is repeated to make plaintext.
#![no_main]

use std::cell::OnceCell;

use libfuzzer_sys::fuzz_target;
use simplon::crypto::aead::{
    Aad, AeadKey, Cipher, ICV_LEN, KeyMaterial, NONCE_LEN, OpenJob, SALT_LEN, SealJob, open_burst,
    seal_burst,
};
use simplon::crypto::tier::Tier;
use zeroize::Zeroizing;

/// Keys for each cipher.
const KEYS: usize = 3;
/// Most packets of one input.
const PACKETS: usize = 40;
/// Guards around each text.
const GUARD: usize = 80;

/// Expanded for every tier, by tier, cipher and key.
struct Keys(Vec<(Tier, [[AeadKey; KEYS]; 3])>);

impl Keys {
    fn new() -> Self {
        let key = |tier, cipher: Cipher, number: usize| {
            let bytes = vec![0x11 * (number as u8 + 1); cipher.key_len() + SALT_LEN];
            let material = KeyMaterial::new(cipher, Zeroizing::new(bytes)).expect("length");
            AeadKey::for_tier(&material, tier).expect("available")
        };
        let all = Tier::available().map(|tier| {
            let of = |cipher| std::array::from_fn(|number| key(tier, cipher, number));
            (tier, Cipher::ALL.map(of))
        });
        Self(all.collect())
    }
}

thread_local! {
    static KEYS_OF_ALL: OnceCell<Keys> = const { OnceCell::new() };
}

/// One packet as the input describes it.
struct Packet {
    cipher: usize,
    key: usize,
    nonce: [u8; NONCE_LEN],
    aad: Aad,
    /// Where the text begins in its buffer, modulo 64.
    at: usize,
    len: usize,
    /// What to do to it on the way.
    tamper: Option<usize>,
}

fn packets(input: &mut &[u8]) -> Vec<Packet> {
    let mut packets = Vec::new();
    while packets.len() < PACKETS
        && let [what, tamper, high, low, rest @ ..] = *input
    {
        *input = rest;
        let (what, tamper) = (usize::from(*what), usize::from(*tamper));
        let number = packets.len() as u64;
        let mut nonce = [*low; NONCE_LEN];
        nonce[4..].copy_from_slice(&number.to_be_bytes());
        packets.push(Packet {
            cipher: what % 3,
            key: what / 3 % KEYS,
            nonce,
            aad: match what / 9 % 2 {
                0 => Aad::short(0x1001, 7),
                _ => Aad::extended(0x1001, 7 << 32 | number),
            },
            at: what / 18 + 14 * (tamper % 5),
            // Short ones often: two bits say of which magnitude.
            len: match high >> 6 {
                0 | 1 => usize::from(*low),
                2 => usize::from(*low) + 8 * usize::from(high & 0x3f),
                _ => usize::from(*low) << 5 | usize::from(high & 0x1f),
            },
            tamper: (tamper & 3 == 3).then_some(tamper / 4),
        });
    }
    packets
}

/// A text with guards.
struct Text {
    bytes: Vec<u8>,
    at: usize,
    len: usize,
}

impl Text {
    fn new(text: &[u8], at: usize) -> Self {
        let mut bytes = vec![0xa5; GUARD + 128 + text.len() + GUARD];
        let at = GUARD + bytes[GUARD..].as_ptr().align_offset(64) + at % 64;
        bytes[at..at + text.len()].copy_from_slice(text);
        Self {
            bytes,
            at,
            len: text.len(),
        }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.at..self.at + self.len]
    }

    fn take(self) -> Vec<u8> {
        let (before, rest) = self.bytes.split_at(self.at);
        let (text, after) = rest.split_at(self.len);
        assert!([before, after].concat().iter().all(|&byte| byte == 0xa5));
        text.to_vec()
    }
}

fn texts(packets: &[Packet], contents: &[Vec<u8>]) -> Vec<Text> {
    let text = |(packet, content): (&Packet, &Vec<u8>)| Text::new(content, packet.at);
    packets.iter().zip(contents).map(text).collect()
}

fn seal(keys: &[[AeadKey; KEYS]; 3], packets: &[Packet], plain: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut texts = texts(packets, plain);
    let jobs = packets
        .iter()
        .zip(&mut texts)
        .map(|(packet, text)| SealJob {
            key: keys[packet.cipher][packet.key].get(),
            nonce: packet.nonce,
            aad: packet.aad,
            text: text.get(),
            sealed: false,
        });
    let mut jobs: Vec<_> = jobs.collect();
    seal_burst(&mut jobs);
    assert!(jobs.iter().all(|job| job.sealed));
    texts.into_iter().map(Text::take).collect()
}

fn open(
    keys: &[[AeadKey; KEYS]; 3],
    packets: &[Packet],
    sealed: &[Vec<u8>],
) -> Vec<(bool, Vec<u8>)> {
    let mut texts = texts(packets, sealed);
    let jobs = packets
        .iter()
        .zip(&mut texts)
        .map(|(packet, text)| OpenJob {
            key: keys[packet.cipher][packet.key].get(),
            nonce: packet.nonce,
            aad: packet.aad,
            text: text.get(),
            authentic: true,
        });
    let mut jobs: Vec<_> = jobs.collect();
    open_burst(&mut jobs);
    let verdicts: Vec<_> = jobs.iter().map(|job| job.authentic).collect();
    let texts = texts.into_iter().map(Text::take);
    verdicts.into_iter().zip(texts).collect()
}

/// Opens what was tampered with, and looks at each verdict and each text.
fn check_open(
    (tier, keys): &(Tier, [[AeadKey; KEYS]; 3]),
    packets: &[Packet],
    plain: &[Vec<u8>],
    sealed: &[Vec<u8>],
) {
    let opened = open(keys, packets, sealed);
    for (((packet, plain), sealed), (authentic, text)) in
        packets.iter().zip(plain).zip(sealed).zip(opened)
    {
        assert_eq!(authentic, packet.tamper.is_none(), "{tier}: {}", packet.len);
        let (body, icv) = text.split_at(packet.len);
        assert_eq!(icv, &sealed[packet.len..], "{tier}: {}", packet.len);
        if authentic {
            assert_eq!(body, &plain[..packet.len], "{tier}: {}", packet.len);
        } else {
            let wiped = body.iter().all(|&byte| byte == 0) || *body == sealed[..packet.len];
            assert!(wiped, "{tier}: {}", packet.len);
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    let packets = packets(&mut rest);
    let filling = if rest.is_empty() { input } else { rest };
    let plain: Vec<Vec<u8>> = packets
        .iter()
        .map(|packet| {
            let bytes = filling.iter().copied().cycle();
            bytes.take(packet.len).chain([0x77; ICV_LEN]).collect()
        })
        .collect();
    KEYS_OF_ALL.with(|keys| {
        let tiers = &keys.get_or_init(Keys::new).0;
        let mut sealed = seal(&tiers[0].1, &packets, &plain);
        for (tier, keys) in &tiers[1..] {
            assert_eq!(
                seal(keys, &packets, &plain),
                sealed,
                "{tier} seals differently"
            );
        }
        for (packet, text) in packets.iter().zip(&mut sealed) {
            if let Some(tamper) = packet.tamper {
                let bit = tamper * 8 * text.len() / 64 + tamper % 8;
                let byte = bit / 8 % text.len();
                text[byte] ^= 1 << (bit % 8);
            }
        }
        for tier in tiers {
            check_open(tier, &packets, &plain, &sealed);
        }
    });
});
