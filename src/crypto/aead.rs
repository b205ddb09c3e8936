//! The AEAD interface of the packet path: keys, and seal and open over a run of packets.
//!
//! A run is what one burst brings: each packet with its own key, nonce and length. The jobs are done by the kernels of
//! [`super::gcm`] or by [`super::portable`], as the [`super::tier`] of their keys says.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::RangeInclusive;
use std::ptr;

use arrayvec::ArrayVec;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

#[cfg(target_arch = "x86_64")]
use super::gcm;
#[cfg(target_arch = "x86_64")]
use super::gcm::aesni::HasAesNi;
#[cfg(target_arch = "x86_64")]
use super::gcm::avx2::HasAvx2;
#[cfg(target_arch = "x86_64")]
use super::gcm::avx512::HasAvx512;
#[cfg(target_arch = "x86_64")]
use super::gcm::avx512_lanes::{self, Kind};
#[cfg(target_arch = "x86_64")]
use super::gcm::key::GcmKey;
use super::portable::PortableKey;
use super::tier::Tier;
use crate::rcu::prefetch_line;

/// Length of the integrity check value, in bytes (RFC 4106 section 6).
pub const ICV_LEN: usize = 16;
/// Length of the explicit IV in each packet, in bytes (RFC 4106 section 3.1).
pub const IV_LEN: usize = 8;
/// Length of the salt that precedes the IV in the nonce, in bytes (RFC 4106 section 4).
pub const SALT_LEN: usize = 4;
/// Length of the nonce, in bytes.
pub const NONCE_LEN: usize = SALT_LEN + IV_LEN;

/// An AEAD transform of ESP, with a 16-byte ICV (RFC 4106 section 8.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Cipher {
    /// AES-GCM with a 128-bit key.
    Aes128Gcm,
    /// AES-GCM with a 192-bit key.
    Aes192Gcm,
    /// AES-GCM with a 256-bit key.
    Aes256Gcm,
}

impl Cipher {
    /// Every cipher.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes192Gcm, Self::Aes256Gcm];

    /// Length of the AES key, in bytes, without the salt.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes192Gcm => 24,
            Self::Aes256Gcm => 32,
        }
    }

    /// The name in policy files and `simplon show`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes-128-gcm",
            Self::Aes192Gcm => "aes-192-gcm",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }

    /// The cipher called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| cipher.name() == name)
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A key of the wrong length for its cipher.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{cipher} takes {expected} bytes (the key and then a {SALT_LEN}-byte salt), not {found}")]
pub struct KeyLengthError {
    /// The cipher.
    pub cipher: Cipher,
    /// Bytes wanted, key and salt.
    pub expected: usize,
    /// Bytes given.
    pub found: usize,
}

/// Names a key without telling it: a hash of cipher and key. The salt is left out, for a nonce that repeats is one
/// under the same key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyFingerprint([u8; 16]);

impl KeyFingerprint {
    /// The fingerprint with this hash, as read back from where [`Self::as_bytes`] was kept.
    pub fn from_bytes(hash: [u8; 16]) -> Self {
        Self(hash)
    }

    /// The hash itself.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Key and salt of one SA as they were given (RFC 4106 section 8.1). Zeroised when dropped, never printed.
pub struct KeyMaterial {
    cipher: Cipher,
    // INVARIANT: `cipher.key_len()` bytes.
    key: Zeroizing<Vec<u8>>,
    salt: Zeroizing<[u8; SALT_LEN]>,
    fingerprint: KeyFingerprint,
}

impl KeyMaterial {
    /// Takes the AES key followed by the salt, the form in which RFC 4106 section 8.1 has key exchange deliver them.
    ///
    /// # Errors
    /// [`KeyLengthError`] where the length is not the cipher's.
    pub fn new(cipher: Cipher, mut bytes: Zeroizing<Vec<u8>>) -> Result<Self, KeyLengthError> {
        let wrong_length = KeyLengthError {
            cipher,
            expected: cipher.key_len() + SALT_LEN,
            found: bytes.len(),
        };
        if bytes.len() != wrong_length.expected {
            return Err(wrong_length);
        }
        let (_, salt) = bytes.split_last_chunk().ok_or(wrong_length)?;
        let salt = Zeroizing::new(*salt);
        // Within the old allocation, so no copy of the key is left behind.
        for byte in bytes.iter_mut().skip(cipher.key_len()) {
            byte.zeroize();
        }
        bytes.truncate(cipher.key_len());
        Ok(Self {
            cipher,
            fingerprint: fingerprint(cipher, &bytes),
            key: bytes,
            salt,
        })
    }

    /// Takes the key, and leaves what [`Self::forget`] would.
    pub fn take(&mut self) -> Self {
        let mut left = Self {
            key: Zeroizing::new(vec![0; self.key.len()]),
            salt: Zeroizing::new([0; SALT_LEN]),
            ..*self
        };
        left.forget();
        std::mem::replace(self, left)
    }

    /// Forgets the key, and remembers what names it. Noise takes its place: an SA made of it by mistake would have a key that
    /// nobody knows, and not one that everybody does.
    pub fn forget(&mut self) {
        self.key.as_mut_slice().zeroize();
        self.salt.zeroize();
        let noise = getrandom::fill(&mut self.key);
        debug_assert!(noise.is_ok(), "no random numbers");
    }

    /// The cipher the key is for.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// The salt that begins every nonce.
    pub fn salt(&self) -> [u8; SALT_LEN] {
        *self.salt
    }

    /// Names the key without telling it.
    pub fn fingerprint(&self) -> KeyFingerprint {
        self.fingerprint
    }
}

fn fingerprint(cipher: Cipher, key: &[u8]) -> KeyFingerprint {
    let mut hash = Sha256::new();
    hash.update(b"simplon key fingerprint v1");
    hash.update(cipher.name());
    hash.update(key);
    let digest = hash.finalize();
    let mut out = [0; 16];
    out.copy_from_slice(&digest[..16]);
    KeyFingerprint(out)
}

/// What a short text wants of a key among packets of other keys, in the best tier: so little that it fits beside what else is read
/// of an SA. Zeroised when dropped, never printed.
#[repr(C)]
pub struct NearKey {
    /// The key as it was given, the first half of it where it has 256 bits; zero where there is no lane for it.
    first_half: [u8; 16],
    lane: Lane,
}

const _: () = assert!(size_of::<NearKey>() == 17 && align_of::<NearKey>() == 1);

/// Whether a key can be one of four in step, which expand it while they go.
#[derive(Clone, Copy)]
pub(super) enum Lane {
    /// It cannot: it is for other kernels, or of 192 bits.
    None {
        /// Its last round keys lie beyond those of AES-128.
        is_long: bool,
    },
    /// With 128 bits, all of them near.
    #[cfg(target_arch = "x86_64")]
    Ten(HasAvx512),
    /// With 256 bits, the second half of them far.
    #[cfg(target_arch = "x86_64")]
    Fourteen(HasAvx512),
}

/// The rest of a key: in the form that its tier wants, for all texts but short ones among packets of other keys. Zeroised when
/// dropped, never printed.
///
/// Aligned so that what a short text wants of a `GcmKey` lies in five cache lines.
#[repr(C, align(64))]
pub struct FarKey {
    /// The second half of the key as it was given, where it has 256 bits and a lane; otherwise zero.
    second_half: Zeroizing<[u8; 16]>,
    // So that the powers that a short text begins with begin a cache line, and where `prefetch` expects it, so that it need
    // not look.
    _apart: [u8; 16],
    key: ExpandedKey,
}

/// Bytes of what lies apart of a key.
pub const KEY_SIZE: usize = size_of::<FarKey>();

#[cfg(target_arch = "x86_64")]
const _: () = assert!(KEY_SIZE == 576 && align_of::<FarKey>() == 64);

#[expect(
    clippy::large_enum_variant,
    reason = "it lies apart as it is, and most are large"
)]
enum ExpandedKey {
    Portable(Box<PortableKey>),
    /// For one of our own kernels; the key knows which.
    #[cfg(target_arch = "x86_64")]
    Vector(GcmKey),
}

/// Expands `material` for the tier in use.
///
/// # Panics
/// As [`Tier::active`].
pub fn expand(material: &KeyMaterial) -> (NearKey, FarKey) {
    expand_for(material, Tier::active()).expect("the active tier can be run")
}

/// Expands `material` for `tier`; `None` where this processor cannot run it. For tests and benchmarks, which hold tiers side by
/// side: jobs of one burst may have keys of different tiers.
pub fn expand_for(material: &KeyMaterial, tier: Tier) -> Option<(NearKey, FarKey)> {
    let key = match tier {
        Tier::Portable => {
            ExpandedKey::Portable(Box::new(PortableKey::new(material.cipher, &material.key)))
        }
        #[cfg(target_arch = "x86_64")]
        Tier::AesNi => ExpandedKey::Vector(HasAesNi::detect()?.expand(&material.key)),
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => ExpandedKey::Vector(HasAvx2::detect()?.expand(&material.key)),
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512 => ExpandedKey::Vector(HasAvx512::detect()?.expand(&material.key)),
    };
    let lane = match &key {
        ExpandedKey::Portable(_) => Lane::None {
            is_long: material.cipher != Cipher::Aes128Gcm,
        },
        #[cfg(target_arch = "x86_64")]
        ExpandedKey::Vector(key) => key.lane(),
    };
    let mut near = NearKey {
        first_half: [0; 16],
        lane,
    };
    let mut far = FarKey {
        second_half: Zeroizing::new([0; 16]),
        _apart: [0; 16],
        key,
    };
    if !matches!(lane, Lane::None { .. }) {
        let halves = near.first_half.iter_mut().chain(&mut *far.second_half);
        for (to, from) in halves.zip(material.key.iter()) {
            *to = *from;
        }
    }
    Some((near, far))
}

impl NearKey {
    #[inline]
    pub(super) fn lane(&self) -> Lane {
        self.lane
    }

    /// What four in step want of every key.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(super) fn first_half(&self) -> &[u8; 16] {
        &self.first_half
    }

    /// Whether its last round keys lie beyond those of AES-128.
    #[inline]
    fn is_long(&self) -> bool {
        match self.lane {
            Lane::None { is_long } => is_long,
            #[cfg(target_arch = "x86_64")]
            Lane::Ten(_) => false,
            #[cfg(target_arch = "x86_64")]
            Lane::Fourteen(_) => true,
        }
    }

    /// Whether a text of `len` bytes, ICV included, is better done beside those of other keys, where it is not one of many.
    #[inline]
    fn goes_in_step(&self, len: usize) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            Kind::of(self, len) != Kind::NONE
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = len;
            false
        }
    }
}

impl Drop for NearKey {
    fn drop(&mut self) {
        self.first_half.zeroize();
    }
}

impl FarKey {
    /// What four in step want of a key of 256 bits beside what is near.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(super) fn second_half(&self) -> &[u8; 16] {
        &self.second_half
    }
}

/// An expanded key where it lies, which may be at two places: what is far is read only where it is wanted.
#[derive(Clone, Copy)]
pub struct KeyRef<'a> {
    near: &'a NearKey,
    far: &'a FarKey,
}

impl<'a> KeyRef<'a> {
    /// Both of one key. Jobs have one key where `near` is at one place. Two that were not expanded together make texts that
    /// nobody can open, and nothing worse.
    #[inline]
    pub fn new(near: &'a NearKey, far: &'a FarKey) -> Self {
        Self { near, far }
    }

    #[inline]
    pub(super) fn near(self) -> &'a NearKey {
        self.near
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(super) fn far(self) -> &'a FarKey {
        self.far
    }

    #[inline]
    fn is(self, other: &NearKey) -> bool {
        ptr::eq(self.near, other)
    }

    /// Does jobs of this key, whose texts have `lens` bytes, ICV included.
    #[inline]
    pub(super) fn run<J: Job<'a>>(self, jobs: &mut [J], lens: RangeInclusive<usize>) {
        match &self.far.key {
            ExpandedKey::Portable(key) => key.run(jobs),
            #[cfg(target_arch = "x86_64")]
            ExpandedKey::Vector(key) => gcm::run(key, jobs, lens),
        }
    }

    /// Asks for what a text of `text_len` bytes, ICV included, will want of what is far. Changes nothing but time. It may not
    /// look at it: the tiers' keys lie at the same place, and `is_long` is a guess.
    #[inline]
    fn prefetch(self, text_len: usize, is_long: bool) {
        let start = ptr::from_ref(self.far).cast();
        for line in 3..8 {
            prefetch_line(start, line);
        }
        if is_long {
            prefetch_line(start, 8);
        }
        // The AAD, up to five blocks and the lengths take the low powers only.
        if text_len > 96 {
            for line in 0..3 {
                prefetch_line(start, line);
            }
        }
    }

    /// Asks for what four in step will want of what is far: nothing, or one line.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn prefetch_in_step(self) {
        if matches!(self.near.lane, Lane::Fourteen(_)) {
            prefetch_line(ptr::from_ref(self.far).cast(), 0);
        }
    }
}

/// An expanded key by itself, ready for packets. Zeroised when dropped, never printed.
pub struct AeadKey {
    near: NearKey,
    far: Box<FarKey>,
}

impl AeadKey {
    /// As [`expand`].
    ///
    /// # Panics
    /// As there.
    pub fn new(material: &KeyMaterial) -> Self {
        Self::from(expand(material))
    }

    /// As [`expand_for`].
    pub fn for_tier(material: &KeyMaterial, tier: Tier) -> Option<Self> {
        expand_for(material, tier).map(Self::from)
    }

    /// What jobs take.
    #[inline]
    pub fn get(&self) -> KeyRef<'_> {
        KeyRef::new(&self.near, &self.far)
    }
}

impl From<(NearKey, FarKey)> for AeadKey {
    fn from((near, far): (NearKey, FarKey)) -> Self {
        Self {
            near,
            far: Box::new(far),
        }
    }
}

/// The nonce under a key with this salt: salt, then explicit IV (RFC 4106 section 4).
#[inline]
pub fn nonce(salt: [u8; SALT_LEN], iv: [u8; IV_LEN]) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    let (head, tail) = nonce.split_at_mut(SALT_LEN);
    head.copy_from_slice(&salt);
    tail.copy_from_slice(&iv);
    nonce
}

/// Additional authenticated data of one ESP packet (RFC 4106 section 5): SPI, then 32 or 64 bits of sequence number.
#[derive(Clone, Copy)]
pub struct Aad {
    // INVARIANT: zero from `len` on, so that the whole is the one block that GHASH takes it as.
    bytes: [u8; Self::MAX_LEN],
    // INVARIANT: at most `MAX_LEN`.
    len: u8,
}

impl Aad {
    /// Most bytes it can hold: one block of GHASH. ESP needs 12 of them; published vectors like to fill the block.
    pub const MAX_LEN: usize = 16;

    /// SPI and 32-bit sequence number.
    #[inline]
    pub fn short(spi: u32, seq: u32) -> Self {
        // One word, written once: what is stored in pieces and then copied as a whole waits for the pieces.
        let mut bytes = [0; Self::MAX_LEN];
        let both = u64::from(spi) << 32 | u64::from(seq);
        bytes[..8].copy_from_slice(&both.to_be_bytes());
        Self { bytes, len: 8 }
    }

    /// SPI and 64-bit extended sequence number, high half first.
    #[inline]
    pub fn extended(spi: u32, seq: u64) -> Self {
        let all = u128::from(spi) << 96 | u128::from(seq) << 32;
        Self {
            bytes: all.to_be_bytes(),
            len: 12,
        }
    }

    /// These bytes, which no packet has: for test vectors. `None` where they are more than [`Self::MAX_LEN`].
    pub fn from_slice(aad: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::MAX_LEN];
        bytes.get_mut(..aad.len())?.copy_from_slice(aad);
        let len = u8::try_from(aad.len()).ok()?;
        Some(Self { bytes, len })
    }

    /// The bytes, and then zeros: the one block that GHASH takes.
    pub(super) fn block(&self) -> &[u8; Self::MAX_LEN] {
        &self.bytes
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// The bytes: 8 or 12 in a packet.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// One packet to seal.
pub struct SealJob<'a> {
    /// The key.
    pub key: KeyRef<'a>,
    /// The nonce; never twice under one key.
    pub nonce: [u8; NONCE_LEN],
    /// What is authenticated beside the text.
    pub aad: Aad,
    /// On entry plaintext, then [`ICV_LEN`] bytes of any content; on return ciphertext, then the ICV, where `sealed`.
    pub text: &'a mut [u8],
    /// Set by [`seal_burst`]: the text is sealed. Where it is not, it may be clear and must not be sent.
    pub sealed: bool,
}

/// One packet to open.
pub struct OpenJob<'a> {
    /// The key.
    pub key: KeyRef<'a>,
    /// The nonce.
    pub nonce: [u8; NONCE_LEN],
    /// What is authenticated beside the text.
    pub aad: Aad,
    /// On entry ciphertext, then the ICV; on return plaintext where `authentic`, and otherwise as it was or all zero.
    /// The ICV stays.
    pub text: &'a mut [u8],
    /// Set by [`open_burst`]: the ICV was right.
    pub authentic: bool,
}

/// One packet as the tiers see it.
pub(super) struct Packet<'a> {
    pub(super) nonce: &'a [u8; NONCE_LEN],
    pub(super) aad: &'a Aad,
    /// The text, and room for the ICV or the one received.
    pub(super) text: &'a mut [u8],
}

/// A job of either direction as the tiers see it.
pub(super) trait Job<'a> {
    /// Whether it is one to seal.
    const SEAL: bool;

    fn key(&self) -> KeyRef<'a>;

    /// Length of the text, ICV included.
    fn len(&self) -> usize;

    fn packet(&mut self) -> Packet<'_>;

    /// Sets the verdict.
    fn conclude(&mut self, done: bool);
}

macro_rules! job {
    ($job:ident, SEAL: $seal:literal, $verdict:ident) => {
        impl<'a> Job<'a> for $job<'a> {
            const SEAL: bool = $seal;

            #[inline]
            fn key(&self) -> KeyRef<'a> {
                self.key
            }

            #[inline]
            fn len(&self) -> usize {
                self.text.len()
            }

            #[inline]
            fn packet(&mut self) -> Packet<'_> {
                Packet {
                    nonce: &self.nonce,
                    aad: &self.aad,
                    text: self.text,
                }
            }

            #[inline]
            fn conclude(&mut self, done: bool) {
                self.$verdict = done;
            }
        }
    };
}

job!(SealJob, SEAL: true, sealed);
job!(OpenJob, SEAL: false, authentic);

/// Seals every job in place and sets its verdict. A text shorter than an ICV is left as it was, not sealed.
pub fn seal_burst(jobs: &mut [SealJob<'_>]) {
    do_burst(jobs);
}

/// Opens every job in place and sets its verdict. The ICV is compared in constant time. A tier may decrypt before it
/// knows; then it wipes what it decrypted if the ICV is wrong, before it returns.
pub fn open_burst(jobs: &mut [OpenJob<'_>]) {
    do_burst(jobs);
}

/// How many jobs ahead a key is asked for.
const AHEAD: usize = 6;

/// Jobs of one key from which on they go by themselves, whatever their texts.
const RUN: usize = 4;

#[inline]
fn do_burst<'a, J: Job<'a>>(jobs: &mut [J]) {
    let rest = do_runs::<J, true>(jobs);
    #[cfg(target_arch = "x86_64")]
    rest.chunks_mut(SET).for_each(do_scattered);
    #[cfg(not(target_arch = "x86_64"))]
    debug_assert!(rest.is_empty(), "nothing goes in step");
}

/// Does jobs run by run of equal key, and asks for the keys that later jobs want. Where it `STOPS`, returns the jobs from the first
/// on that better goes in step with others.
#[inline]
fn do_runs<'j, 'a, J: Job<'a>, const STOPS: bool>(jobs: &'j mut [J]) -> &'j mut [J] {
    let mut rest = jobs;
    let mut asked = 0;
    while let Some(first) = rest.first() {
        let key = first.key();
        // One pass for all of it, and one that ends early: it reads each length where a compiler that makes vectors of the
        // lengths of many jobs would wait until all that was just written of them is in the cache.
        let (mut len, mut shortest, mut longest) = (0, usize::MAX, 0);
        while let Some(job) = rest.get(len)
            && job.key().is(key.near)
        {
            shortest = job.len().min(shortest);
            longest = job.len().max(longest);
            len += 1;
        }
        if STOPS && len < RUN && key.near.goes_in_step(shortest) && key.near.goes_in_step(longest) {
            break;
        }
        // A long run leaves time for the key behind it; short ones want those of some jobs ahead.
        let ahead = if len < AHEAD { AHEAD } else { len };
        for job in rest.iter().take(ahead + 1).skip(asked.max(len)) {
            // The keys of one gateway are mostly of one cipher.
            job.key().prefetch(job.len(), key.near.is_long());
        }
        // Counted from where the rest begins.
        asked = (ahead + 1).saturating_sub(len);
        let (run, after) = std::mem::take(&mut rest).split_at_mut(len);
        key.run(run, shortest..=longest);
        rest = after;
    }
    rest
}

/// Jobs that are looked at together where keys change from packet to packet.
#[cfg(target_arch = "x86_64")]
const SET: usize = 64;

/// Does up to [`SET`] jobs whose keys change from packet to packet: short texts in step, and what is between them run by run.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn do_scattered<'a, J: Job<'a>>(jobs: &mut [J]) {
    let mut in_step = which_go_in_step(jobs);
    let is_long = jobs.first().is_some_and(|job| job.key().near.is_long());
    let mut aside = ArrayVec::<&mut J, SET>::new();
    let mut rest = jobs;
    loop {
        let count = (in_step.trailing_ones() as usize).min(rest.len());
        let (scattered, after) = rest.split_at_mut(count);
        aside.extend(scattered);
        in_step = behind(in_step, count);
        if after.is_empty() {
            break;
        }
        let count = (in_step.trailing_zeros() as usize).min(after.len());
        let (runs, after) = after.split_at_mut(count);
        in_step = behind(in_step, count);
        let mut others = !in_step;
        for _ in 0..AHEAD {
            let next = others.trailing_zeros() as usize;
            let Some(job) = after.get(next) else {
                break;
            };
            job.key().prefetch(job.len(), is_long);
            others &= others.wrapping_sub(1);
        }
        do_runs::<J, false>(runs);
        rest = after;
    }
    avx512_lanes::run(&mut aside);
}

/// Which of up to [`SET`] jobs go in step: short texts that are few of one key. Asks for what they will want that is far.
#[cfg(target_arch = "x86_64")]
#[inline]
fn which_go_in_step<'a, J: Job<'a>>(jobs: &[J]) -> u64 {
    let (mut can, mut repeats) = (0, 0);
    let mut before = ptr::null::<NearKey>();
    for job in jobs.iter().rev() {
        let key = job.key();
        let goes = key.near.goes_in_step(job.len());
        if goes {
            key.prefetch_in_step();
        }
        can = can << 1 | u64::from(goes);
        repeats = repeats << 1 | u64::from(ptr::eq(key.near, before));
        before = key.near;
    }
    // One that three equal ones follow, and those three.
    let leads = repeats & repeats >> 1 & repeats >> 2;
    can & !(leads | leads << 1 | leads << 2 | leads << 3)
}

/// The bits behind the first `count`.
#[cfg(target_arch = "x86_64")]
#[inline]
fn behind(bits: u64, count: usize) -> u64 {
    u32::try_from(count)
        .ok()
        .and_then(|count| bits.checked_shr(count))
        .unwrap_or(0)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn what_a_short_text_wants_of_a_key_lies_where_it_is_asked_for() {
        let material = KeyMaterial::new(Cipher::Aes128Gcm, Zeroizing::new(vec![7; 20]));
        let material = material.expect("key and salt");
        for tier in Tier::available() {
            let (_, far) = expand_for(&material, tier).expect("an available tier");
            if let ExpandedKey::Vector(expanded) = &far.key {
                let line = |at: usize| (at - ptr::from_ref(&far).addr()) / 64;
                let wanted = expanded.wanted_by_five_blocks();
                assert_eq!((line(wanted.start), line(wanted.end - 1)), (3, 7));
            }
            let second = far.second_half.as_ptr().addr();
            assert_eq!(second, ptr::from_ref(&far).addr());
        }
    }
}
