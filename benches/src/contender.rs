//! Everyone who takes part: simplon's tiers, and other libraries, each sealing and opening a burst in its own manner.
//!
//! A packet's key, nonce, AAD and place are brought into the form in which a contender takes them before its time
//! begins; nothing that depends on the text or the nonce is done before.

use std::hint::black_box;

use aes_gcm::{AeadInOut, Aes128Gcm, Aes256Gcm, KeyInit};
use simplon::crypto::aead::{
    Aad, AeadKey, Cipher, ICV_LEN, KeyMaterial, OpenJob, SALT_LEN, SealJob, open_burst, seal_burst,
};
use simplon::crypto::tier::Tier;
use zeroize::Zeroizing;

use crate::burst::{Arena, BURST, Packet, key_bytes};
use crate::clock;
use crate::intel::Intel;

/// Bytes of an SA beside its key: each contender's keys lie in memory this far apart at least.
pub const SA_BYTES: usize = 512;

/// Seals and opens bursts, and says how many TSC cycles that took and whether each packet was done, or authentic.
pub trait Contender {
    /// The name in tables.
    fn name(&self) -> String;
    /// Seals in place, the ICV behind the text.
    fn seal(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool);
    /// Opens in place.
    fn open(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool);
}

/// Which contenders take part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// Every tier and every library.
    All,
    /// The active tier and Intel's library.
    Pair,
}

/// The contenders, simplon's best tier first and Intel's library second.
pub fn all(field: Field, cipher: Cipher, keys: usize) -> Vec<Box<dyn Contender>> {
    let mut tiers: Vec<_> = Tier::available().collect();
    tiers.reverse();
    if field == Field::Pair {
        tiers = vec![Tier::active()];
    }
    let mut all: Vec<Box<dyn Contender>> = Vec::new();
    for tier in tiers {
        all.push(Box::new(Simplon::new(tier, cipher, keys)));
        if all.len() == 1
            && let Some(intel) = Intel::new(cipher, keys)
        {
            all.push(Box::new(intel));
        }
    }
    if field == Field::All {
        let material: Vec<_> = (0..keys).map(|index| key_bytes(cipher, index)).collect();
        all.push(Box::new(Ring::new(cipher, &material)));
        all.push(Box::new(AwsLc::new(cipher, &material)));
        match cipher {
            Cipher::Aes128Gcm => all.push(Box::new(RustCrypto::<Aes128Gcm>::new(&material))),
            _ => all.push(Box::new(RustCrypto::<Aes256Gcm>::new(&material))),
        }
    }
    all
}

/// A key as a gateway keeps it: in the memory of an SA, which is its own.
struct Sa<K> {
    key: K,
    _rest: [u8; SA_BYTES],
}

/// Each SA is allocated by itself, as in the gateway.
type Keys<K> = Vec<Box<Sa<K>>>;

fn boxed<K>(keys: impl Iterator<Item = K>) -> Keys<K> {
    let sa = |key| {
        Box::new(Sa {
            key,
            _rest: [0; SA_BYTES],
        })
    };
    keys.map(sa).collect()
}

/// One of our tiers, through the interface that the gateway uses.
struct Simplon {
    tier: Tier,
    keys: Keys<AeadKey>,
}

impl Simplon {
    fn new(tier: Tier, cipher: Cipher, keys: usize) -> Self {
        let key = |index| {
            let mut bytes = key_bytes(cipher, index);
            bytes.extend([0; SALT_LEN]);
            let material = KeyMaterial::new(cipher, Zeroizing::new(bytes)).expect("its length");
            AeadKey::for_tier(&material, tier).expect("an available tier")
        };
        Self {
            tier,
            keys: boxed((0..keys).map(key)),
        }
    }
}

fn aad(packet: &Packet) -> Aad {
    Aad::from_slice(&packet.aad).expect("8 bytes")
}

impl Contender for Simplon {
    fn name(&self) -> String {
        format!("simplon {}", self.tier)
    }

    fn seal(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool) {
        let mut jobs: Vec<_> = arena
            .texts(packets)
            .zip(packets)
            .map(|(text, packet)| SealJob {
                key: self.keys[packet.key].key.get(),
                nonce: packet.nonce,
                aad: aad(packet),
                text,
                sealed: false,
            })
            .collect();
        let cycles = clock::time(|| seal_burst(black_box(&mut jobs)));
        (cycles, jobs.iter().all(|job| job.sealed))
    }

    fn open(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool) {
        let mut jobs: Vec<_> = arena
            .texts(packets)
            .zip(packets)
            .map(|(text, packet)| OpenJob {
                key: self.keys[packet.key].key.get(),
                nonce: packet.nonce,
                aad: aad(packet),
                text,
                authentic: false,
            })
            .collect();
        let cycles = clock::time(|| open_burst(black_box(&mut jobs)));
        (cycles, jobs.iter().all(|job| job.authentic))
    }
}

/// One packet as a library takes it whose keys are `K`.
struct Job<'a, K> {
    key: &'a K,
    nonce: [u8; 12],
    aad: [u8; 8],
    text: &'a mut [u8],
    done: bool,
}

/// Runs `work` on each packet of a burst and times all of it.
#[inline(always)]
fn each<K>(
    keys: &[Box<Sa<K>>],
    packets: &[Packet; BURST],
    arena: &mut Arena,
    work: impl Fn(&K, [u8; 12], &[u8; 8], &mut [u8]) -> bool,
) -> (u64, bool) {
    let mut jobs: Vec<_> = arena
        .texts(packets)
        .zip(packets)
        .map(|(text, packet)| Job {
            key: &keys[packet.key].key,
            nonce: packet.nonce,
            aad: packet.aad,
            text,
            done: false,
        })
        .collect();
    let cycles = clock::time(|| {
        for job in black_box(&mut jobs) {
            job.done = work(job.key, job.nonce, &job.aad, job.text);
        }
    });
    (cycles, jobs.iter().all(|job| job.done))
}

/// The `ring` crate.
struct Ring(Keys<ring::aead::LessSafeKey>);

impl Ring {
    fn new(cipher: Cipher, material: &[Vec<u8>]) -> Self {
        use ring::aead::{AES_128_GCM, AES_256_GCM, LessSafeKey, UnboundKey};
        let algorithm = match cipher {
            Cipher::Aes128Gcm => &AES_128_GCM,
            _ => &AES_256_GCM,
        };
        let key = |key: &Vec<u8>| {
            LessSafeKey::new(UnboundKey::new(algorithm, key).expect("the key's length"))
        };
        Self(boxed(material.iter().map(key)))
    }
}

impl Contender for Ring {
    fn name(&self) -> String {
        "ring".into()
    }

    fn seal(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool) {
        use ring::aead::{Aad, Nonce};
        each(&self.0, packets, arena, |key, nonce, aad, text| {
            let (plain, icv) = text.split_at_mut(text.len() - ICV_LEN);
            let nonce = Nonce::assume_unique_for_key(nonce);
            key.seal_in_place_separate_tag(nonce, Aad::from(aad), plain)
                .map(|tag| icv.copy_from_slice(tag.as_ref()))
                .is_ok()
        })
    }

    fn open(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool) {
        use ring::aead::{Aad, Nonce};
        each(&self.0, packets, arena, |key, nonce, aad, text| {
            let nonce = Nonce::assume_unique_for_key(nonce);
            key.open_in_place(nonce, Aad::from(aad), text).is_ok()
        })
    }
}

/// The `aws-lc-rs` crate.
struct AwsLc(Keys<aws_lc_rs::aead::LessSafeKey>);

impl AwsLc {
    fn new(cipher: Cipher, material: &[Vec<u8>]) -> Self {
        use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, LessSafeKey, UnboundKey};
        let algorithm = match cipher {
            Cipher::Aes128Gcm => &AES_128_GCM,
            _ => &AES_256_GCM,
        };
        let key = |key: &Vec<u8>| {
            LessSafeKey::new(UnboundKey::new(algorithm, key).expect("the key's length"))
        };
        Self(boxed(material.iter().map(key)))
    }
}

impl Contender for AwsLc {
    fn name(&self) -> String {
        "aws-lc-rs".into()
    }

    fn seal(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool) {
        use aws_lc_rs::aead::{Aad, Nonce};
        each(&self.0, packets, arena, |key, nonce, aad, text| {
            let (plain, icv) = text.split_at_mut(text.len() - ICV_LEN);
            let nonce = Nonce::assume_unique_for_key(nonce);
            key.seal_in_place_separate_tag(nonce, Aad::from(aad), plain)
                .map(|tag| icv.copy_from_slice(tag.as_ref()))
                .is_ok()
        })
    }

    fn open(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool) {
        use aws_lc_rs::aead::{Aad, Nonce};
        each(&self.0, packets, arena, |key, nonce, aad, text| {
            let nonce = Nonce::assume_unique_for_key(nonce);
            key.open_in_place(nonce, Aad::from(aad), text).is_ok()
        })
    }
}

/// The `aes-gcm` crate, called as its own documentation does.
struct RustCrypto<A>(Keys<A>);

impl<A: KeyInit> RustCrypto<A> {
    fn new(material: &[Vec<u8>]) -> Self {
        let key = |key: &Vec<u8>| A::new_from_slice(key).expect("the key's length");
        Self(boxed(material.iter().map(key)))
    }
}

impl<A> Contender for RustCrypto<A>
where
    A: AeadInOut<NonceSize = aes_gcm::aes::cipher::consts::U12>,
    A: aes_gcm::aead::AeadCore<TagSize = aes_gcm::aes::cipher::consts::U16>,
{
    fn name(&self) -> String {
        "aes-gcm".into()
    }

    fn seal(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool) {
        each(&self.0, packets, arena, |key, nonce, aad, text| {
            let (plain, icv) = text.split_at_mut(text.len() - ICV_LEN);
            key.encrypt_inout_detached(&nonce.into(), aad, plain.into())
                .map(|tag| icv.copy_from_slice(&tag))
                .is_ok()
        })
    }

    fn open(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool) {
        each(&self.0, packets, arena, |key, nonce, aad, text| {
            let (cipher, icv) = text.split_at_mut(text.len() - ICV_LEN);
            let icv: &[u8; ICV_LEN] = icv.first_chunk().expect("16 bytes");
            key.decrypt_inout_detached(&nonce.into(), aad, cipher.into(), icv.into())
                .is_ok()
        })
    }
}
