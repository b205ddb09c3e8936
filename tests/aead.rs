//! The AEAD interface, in every tier that this processor has, against published vectors and against the `aes-gcm` crate
//! used directly.

#[path = "aead/in_step.rs"]
mod in_step;
#[path = "aead/laws.rs"]
mod laws;
#[path = "aead/pages.rs"]
mod pages;
#[path = "aead/refused.rs"]
mod refused;
#[path = "aead/vectors.rs"]
mod vectors;

use std::collections::HashMap;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::aes::Aes192;
use aes_gcm::aes::cipher::consts::U12;
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm};
use simplon::crypto::aead::{
    Aad, AeadKey, Cipher, ICV_LEN, KeyMaterial, KeyRef, NONCE_LEN, OpenJob, SALT_LEN, SealJob,
    open_burst, seal_burst,
};
use simplon::crypto::tier::Tier;
use zeroize::Zeroizing;

/// Bytes that must not be touched on each side of a text: more than the widest vector.
const GUARD: usize = 80;

/// One sealed message, whoever sealed it.
#[derive(Clone)]
struct Message {
    key: Vec<u8>,
    nonce: [u8; NONCE_LEN],
    aad: Vec<u8>,
    plain: Vec<u8>,
    /// Ciphertext and ICV.
    sealed: Vec<u8>,
}

impl Message {
    /// A message of `len` bytes as ESP has it: nonce from salt and IV, AAD of 8 or 12 bytes, all put together here and
    /// sealed by the reference. `key` is the number of a key of `cipher`.
    fn new(cipher: Cipher, key: u64, esn: bool, len: usize) -> Self {
        let seed = (len as u64) << 8 | (cipher.key_len() as u64) << 1 | u64::from(esn);
        let key = noise(
            key << 32 ^ cipher.key_len() as u64 ^ 0x1111,
            cipher.key_len(),
        );
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
        Self {
            key,
            nonce,
            aad,
            plain,
            sealed,
        }
    }

    /// What tells it from others, where a test fails.
    fn label(&self) -> String {
        format!(
            "{} bytes, AAD of {}, key of {}, nonce {:02x?}",
            self.sealed.len().saturating_sub(ICV_LEN),
            self.aad.len(),
            self.key.len(),
            self.nonce
        )
    }

    fn material(&self) -> KeyMaterial {
        let cipher = Cipher::ALL
            .into_iter()
            .find(|cipher| cipher.key_len() == self.key.len())
            .expect("a length of AES keys");
        let mut material = self.key.clone();
        // The salt's only use is to build nonces, which are given whole here.
        material.extend([0; SALT_LEN]);
        KeyMaterial::new(cipher, Zeroizing::new(material)).expect("length")
    }

    fn aead_key(&self, tier: Tier) -> AeadKey {
        AeadKey::for_tier(&self.material(), tier).expect("an available tier")
    }

    fn aad(&self) -> Aad {
        Aad::from_slice(&self.aad).expect("at most a block")
    }

    /// What a caller of `seal_burst` gives: plaintext, and room for the ICV.
    fn unsealed(&self) -> Vec<u8> {
        [self.plain.as_slice(), &[0x77; ICV_LEN]].concat()
    }
}

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

/// One message and the tier that is to seal or open it.
type Tiered<'a> = (&'a Message, Tier);

fn in_tier(messages: &[Message], tier: Tier) -> Vec<Tiered<'_>> {
    messages.iter().map(|message| (message, tier)).collect()
}

/// Expanded keys; messages under one key share one, as packets of one SA do.
struct Keys(HashMap<(Vec<u8>, Tier), AeadKey>);

impl Keys {
    fn new(jobs: &[Tiered<'_>]) -> Self {
        let mut keys = HashMap::new();
        for &(message, tier) in jobs {
            keys.entry((message.key.clone(), tier))
                .or_insert_with(|| message.aead_key(tier));
        }
        Self(keys)
    }

    fn get(&self, (message, tier): Tiered<'_>) -> KeyRef<'_> {
        self.0[&(message.key.clone(), tier)].get()
    }
}

/// A text at a chosen place modulo 64, with guards around it.
struct Guarded {
    bytes: Vec<u8>,
    at: usize,
    len: usize,
}

impl Guarded {
    fn new(text: &[u8], alignment: usize) -> Self {
        let mut bytes = vec![0xa5; GUARD + 128 + text.len() + GUARD];
        let at = GUARD + bytes[GUARD..].as_ptr().align_offset(64) + alignment % 64;
        bytes[at..at + text.len()].copy_from_slice(text);
        Self {
            bytes,
            at,
            len: text.len(),
        }
    }

    fn text_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.at..self.at + self.len]
    }

    /// The text, after a look at all around it.
    #[track_caller]
    fn text(&self, what: &str) -> &[u8] {
        let (before, rest) = self.bytes.split_at(self.at);
        let (text, after) = rest.split_at(self.len);
        let whole = |guard: &[u8]| guard.iter().all(|&byte| byte == 0xa5);
        assert!(whole(before), "{what}: wrote before the text");
        assert!(whole(after), "{what}: wrote behind the text");
        text
    }
}

/// Seals every message in one call, the texts `alignment`, `alignment + 1`… modulo 64. Returns ciphertexts with ICVs.
fn seal_at(jobs: &[Tiered<'_>], alignment: usize) -> Vec<Vec<u8>> {
    let keys = Keys::new(jobs);
    let mut texts: Vec<_> = jobs
        .iter()
        .enumerate()
        .map(|(at, (message, _))| Guarded::new(&message.unsealed(), alignment + at))
        .collect();
    let mut burst: Vec<_> = jobs
        .iter()
        .zip(&mut texts)
        .enumerate()
        .map(|(at, (&job, text))| SealJob {
            key: keys.get(job),
            nonce: job.0.nonce,
            aad: job.0.aad(),
            text: text.text_mut(),
            // Whatever a caller left there must be overwritten.
            sealed: at % 2 == 0,
        })
        .collect();
    seal_burst(&mut burst);
    for (job, (message, tier)) in burst.iter().zip(jobs) {
        assert!(job.sealed, "{tier}: did not seal {}", message.label());
    }
    texts
        .iter()
        .zip(jobs)
        .map(|(text, (message, tier))| {
            let what = format!("{tier}: sealing {}", message.label());
            text.text(&what).to_vec()
        })
        .collect()
}

/// Opens every message's `sealed` in one call, placed as [`seal_at`] does. Returns verdicts and what then stands in the
/// texts, ICV included.
fn open_at(jobs: &[Tiered<'_>], alignment: usize) -> Vec<(bool, Vec<u8>)> {
    let keys = Keys::new(jobs);
    let mut texts: Vec<_> = jobs
        .iter()
        .enumerate()
        .map(|(at, (message, _))| Guarded::new(&message.sealed, alignment + at))
        .collect();
    let mut burst: Vec<_> = jobs
        .iter()
        .zip(&mut texts)
        .enumerate()
        .map(|(at, (&job, text))| OpenJob {
            key: keys.get(job),
            nonce: job.0.nonce,
            aad: job.0.aad(),
            text: text.text_mut(),
            authentic: at % 2 == 0,
        })
        .collect();
    open_burst(&mut burst);
    let verdicts: Vec<_> = burst.iter().map(|job| job.authentic).collect();
    let texts = texts.iter().zip(jobs).map(|(text, (message, tier))| {
        let what = format!("{tier}: opening {}", message.label());
        text.text(&what).to_vec()
    });
    verdicts.into_iter().zip(texts).collect()
}

/// Holds a burst against what it must give: sealing gives `sealed`, opening gives `plain` and leaves the ICV.
#[track_caller]
fn check_at(jobs: &[Tiered<'_>], alignment: usize) {
    for ((message, tier), sealed) in jobs.iter().zip(seal_at(jobs, alignment)) {
        let first =
            std::iter::zip(&sealed, &message.sealed).position(|(ours, right)| ours != right);
        assert!(
            first.is_none() && sealed.len() == message.sealed.len(),
            "{tier}: sealing {}: byte {first:?} is wrong",
            message.label()
        );
    }
    for ((message, tier), (authentic, text)) in jobs.iter().zip(open_at(jobs, alignment)) {
        let what = format!("{tier}: opening {}", message.label());
        assert!(authentic, "{what}: refused");
        let (plain, icv) = text.split_at(message.plain.len());
        let first = std::iter::zip(plain, &message.plain).position(|(ours, right)| ours != right);
        assert_eq!(first, None, "{what}: a byte is wrong");
        assert_eq!(icv, &message.sealed[message.plain.len()..], "{what}: ICV");
    }
}

/// [`check_at`] in every tier.
#[track_caller]
fn check(messages: &[Message]) {
    for tier in Tier::available() {
        check_at(&in_tier(messages, tier), 0);
    }
}

/// In every tier each of these is refused, and no plaintext is left: see [`check_wiped`].
#[track_caller]
fn check_refused(messages: &[Message]) {
    for tier in Tier::available() {
        let results = open_at(&in_tier(messages, tier), 0);
        for (message, (authentic, text)) in messages.iter().zip(results) {
            assert!(!authentic, "{tier}: accepted {}", message.label());
            check_wiped(message, tier, &text);
        }
    }
}

/// A refused text is as it was or all zero, and its ICV is as it was.
#[track_caller]
fn check_wiped(message: &Message, tier: Tier, text: &[u8]) {
    let len = message.sealed.len().saturating_sub(ICV_LEN);
    let (sealed, icv) = message.sealed.split_at(len);
    assert!(
        text[..len] == *sealed || text[..len].iter().all(|&byte| byte == 0),
        "{tier}: left something in the refused text of {}",
        message.label()
    );
    assert_eq!(&text[len..], icv, "{tier}: ICV of {}", message.label());
}
