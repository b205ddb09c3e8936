//! Short texts under keys that are all different: four packets in step, a packet to a lane.
//!
//! What a key is expanded to lies in five cache lines and more. Where each packet has another key, they come from far, and
//! waiting for them takes longer than AES. So the key itself is all that is read, 16 bytes of it near ([`NearKey`]) and the others
//! of AES-256 on one line: round keys are made while they are used, for four packets at once, the hash key is one more block to
//! encrypt, and of its powers the second is made and no other. Vectors hold the same block of each of the four, so that nothing
//! has to be spread over lanes or summed up from them.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over a constant number of vectors, which the compiler unrolls into registers"
)]

use std::arch::x86_64::*;

use arrayvec::ArrayVec;

use super::REVERSED;
use super::avx512::*;
use super::avx512_fours::{add_products, products};
use super::avx512_jobs::settle;
use super::key::{POLY, load_block};
use crate::crypto::aead::{ICV_LEN, Job, Lane, NearKey};

/// Blocks of the shortest and of the longest text that is for this: shorter ones there are hardly any, and of longer ones
/// the many multiplications by one power cost more than is saved.
const LEAST: usize = 3;
const MOST: usize = 6;

/// Counter blocks without their nonce, the same in each lane: those of J0 and of the blocks of text.
static COUNTERS: Rows<{ MOST + 1 }> = Rows(compute_counters());

/// Constants of the key schedule, in each word.
static ROUND_CONSTANTS: Rows<10> = Rows(compute_round_constants());

/// Word 3 of each lane, rotated, in every word.
static ROTATED: Rows<1> = Rows([repeat([13, 14, 15, 12])]);

/// What a carry out of a block leaves behind: x^128 modulo the polynomial of GHASH, x^127 + x^126 + x^121 + 1.
static CARRY: Rows<1> = Rows([repeat([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xc2])]);

/// Vectors in memory.
#[repr(C, align(64))]
struct Rows<const N: usize>([[u8; 64]; N]);

impl<const N: usize> Rows<N> {
    kernel! {
    fn get(&self, at: usize) -> __m512i {
        // SAFETY: 64 bytes are borrowed, aligned as `Rows` is.
        unsafe { _mm512_load_si512(self.0[at].as_ptr().cast()) }
    }
    }
}

const fn repeat<const N: usize>(bytes: [u8; N]) -> [u8; 64] {
    let mut row = [0; 64];
    let mut at = 0;
    while at < 64 {
        row[at] = bytes[at % N];
        at += 1;
    }
    row
}

#[expect(clippy::cast_possible_truncation, reason = "a few")]
const fn compute_counters() -> [[u8; 64]; MOST + 1] {
    let mut rows = [[0; 64]; MOST + 1];
    let mut at = 0;
    while at <= MOST {
        let mut block = [0; 16];
        block[15] = at as u8 + 1;
        rows[at] = repeat(block);
        at += 1;
    }
    rows
}

const fn compute_round_constants() -> [[u8; 64]; 10] {
    let constants = [1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36];
    let mut rows = [[0; 64]; 10];
    let mut at = 0;
    while at < 10 {
        rows[at] = repeat([constants[at], 0, 0, 0]);
        at += 1;
    }
    rows
}

/// Jobs of one kind go in step: of keys with as many rounds, and texts of as many blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::crypto) struct Kind(u8);

impl Kind {
    /// That of jobs that are not for this.
    pub(in crate::crypto) const NONE: Self = Self(0);
    const TEN: u8 = 1 << 4;
    const FOURTEEN: u8 = 2 << 4;
    /// The bits that have the number of blocks, `LEAST` to `MOST`.
    const BLOCKS: u8 = Self::TEN - 1;

    /// That of a text of `len` bytes, ICV included.
    #[inline]
    pub(in crate::crypto) fn of(key: &NearKey, len: usize) -> Self {
        // As many as there would be with nothing but text, less one: the ICV is one.
        let blocks = len.wrapping_sub(1) / 16;
        let rounds = match key.lane() {
            Lane::None { .. } => return Self::NONE,
            Lane::Ten(_) => Self::TEN,
            Lane::Fourteen(_) => Self::FOURTEEN,
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "where it counts, `MOST` at most"
        )]
        match blocks {
            LEAST..=MOST => Self(rounds | blocks as u8),
            _ => Self::NONE,
        }
    }

    #[inline]
    fn of_job<'a, J: Job<'a>>(job: &J) -> Self {
        Self::of(job.key().near(), job.len())
    }
}

/// Numbers of kinds.
const KINDS: usize = 3 << 4;

/// Jobs that are sorted together.
const SORTED: usize = 64;

/// Seals or opens packets of any kind.
pub(in crate::crypto) fn run<'a, J: Job<'a>>(jobs: &mut [&mut J]) {
    let Some(first) = jobs.first() else {
        return;
    };
    let kind = Kind::of_job(*first);
    if jobs.iter().all(|job| Kind::of_job(*job) == kind) {
        // SAFETY: they are.
        return unsafe { run_kind(kind, jobs) };
    }
    jobs.chunks_mut(SORTED).for_each(sort);
}

#[inline(never)]
fn sort<'a, J: Job<'a>>(jobs: &mut [&mut J]) {
    let mut kinds: [ArrayVec<&mut J, SORTED>; KINDS] = std::array::from_fn(|_| ArrayVec::new());
    for job in jobs {
        // There is room for all of them in each.
        let _ = kinds[usize::from(Kind::of_job(*job).0)].try_push(job);
    }
    for jobs in &mut kinds {
        if let Some(first) = jobs.first() {
            // SAFETY: so they were sorted.
            unsafe { run_kind(Kind::of_job(*first), jobs) };
        }
    }
}

/// Does jobs of one kind; those that are left over when there are not four by themselves.
///
/// # Safety
/// They are of this kind.
unsafe fn run_kind<'a, J: Job<'a>>(kind: Kind, jobs: &mut [&mut J]) {
    macro_rules! crypt {
        ($rounds:literal, $rows:literal) => {
            // SAFETY: `Lane` has the proof of the features, the keys have these rounds and the texts these blocks.
            unsafe { crypt_all::<J, $rounds, $rows>(jobs) }
        };
    }
    let left = match (kind.0 & !Kind::BLOCKS, kind.0 & Kind::BLOCKS) {
        (Kind::TEN, 3) => crypt!(10, 4),
        (Kind::TEN, 4) => crypt!(10, 5),
        (Kind::TEN, 5) => crypt!(10, 6),
        (Kind::TEN, 6) => crypt!(10, 7),
        (Kind::FOURTEEN, 3) => crypt!(14, 4),
        (Kind::FOURTEEN, 4) => crypt!(14, 5),
        (Kind::FOURTEEN, 5) => crypt!(14, 6),
        (Kind::FOURTEEN, 6) => crypt!(14, 7),
        _ => jobs,
    };
    for job in left {
        let len = job.len();
        job.key().run(std::slice::from_mut(*job), len..=len);
    }
}

kernel! { never inline:
/// Does as many jobs as go in step, and returns the others. `ROWS` is one more than the texts' blocks.
///
/// # Safety
/// All texts have so many blocks, all keys `ROUNDS` rounds.
unsafe fn crypt_all<'j, 'm, 'a, J: Job<'a>, const ROUNDS: usize, const ROWS: usize>(
    jobs: &'j mut [&'m mut J],
) -> &'j mut [&'m mut J] {
    let (fours, left) = jobs.as_chunks_mut::<4>();
    let (pairs, single) = fours.as_chunks_mut::<2>();
    // SAFETY: the caller's promise.
    unsafe { crypt_groups::<J, ROUNDS, ROWS, 2>(pairs) };
    if let [four] = single {
        // SAFETY: the caller's promise.
        unsafe { crypt_groups::<J, ROUNDS, ROWS, 1>(&mut [[four.each_mut().map(|job| &mut **job)]]) };
    }
    left
}
}

kernel! {
/// # Safety
/// As for [`crypt_all`].
unsafe fn crypt_groups<'a, J: Job<'a>, const ROUNDS: usize, const ROWS: usize, const F: usize>(
    groups: &mut [[[&mut J; 4]; F]],
) {
    let Some((mut before, mut rest)) = groups.split_first_mut() else {
        return;
    };
    // SAFETY: the caller's promise.
    let (mut started, _) = unsafe { start::<J, ROUNDS, ROWS, F, false>(before, None) };
    loop {
        let ends = started.ends;
        let mut next = rest.split_first_mut();
        let hash = if let Some((group, _)) = &mut next {
            // SAFETY: as above.
            let (now, hash) = unsafe { start::<J, ROUNDS, ROWS, F, true>(group, Some(&started)) };
            started = now;
            hash
        } else {
            hash_alone(&started)
        };
        end::<J, F>(before, &ends, hash);
        let Some((group, after)) = next else {
            return;
        };
        (before, rest) = (group, after);
    }
}
}

/// What is left to do of packets whose texts are done.
#[derive(Clone, Copy)]
struct Started<const ROWS: usize, const F: usize> {
    /// What GHASH takes: the AAD and the blocks of text.
    hashed: [[__m512i; ROWS]; F],
    /// And at last.
    lengths: [Lengths; F],
    /// Its keys.
    power: [__m512i; F],
    ends: Ends<F>,
}

/// What ICVs are made of beside GHASH.
#[derive(Clone, Copy)]
struct Ends<const F: usize> {
    masks: [__m512i; F],
    /// The ICVs that came with packets to open.
    received: [__m512i; F],
}

/// GHASH while it is made.
#[derive(Clone, Copy)]
struct Hash<const F: usize> {
    state: [__m512i; F],
    square: [__m512i; F],
}

kernel! {
/// Four blocks, one to a lane.
///
/// # Safety
/// 16 bytes at each are the caller's to read.
unsafe fn gather(at: [*mut u8; 4]) -> __m512i {
    // SAFETY: the caller's promise; the load wants no alignment.
    lanes(at.map(|at| unsafe { _mm_loadu_si128(at.cast()) }))
}
}

kernel! {
/// Four blocks, one of each lane.
///
/// # Safety
/// 16 bytes at each are the caller's to write.
unsafe fn scatter(at: [*mut u8; 4], blocks: __m512i) {
    let blocks = unlanes(blocks);
    for n in 0..4 {
        // SAFETY: the caller's promise; the store wants no alignment.
        unsafe { _mm_storeu_si128(at[n].cast(), blocks[n]) };
    }
}
}

kernel! {
fn lanes([a, b, c, d]: [__m128i; 4]) -> __m512i {
    let all = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
    _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(all, c), d)
}
}

kernel! {
fn unlanes(all: __m512i) -> [__m128i; 4] {
    [
        _mm512_castsi512_si128(all),
        _mm512_extracti32x4_epi32::<1>(all),
        _mm512_extracti32x4_epi32::<2>(all),
        _mm512_extracti32x4_epi32::<3>(all),
    ]
}
}

kernel! {
/// The next round key but for its constant (FIPS 197 section 5.2): `before` is the one so many words before it, `last` word 3 of
/// the one just before, through the S-box and what else it is to go through, in every word.
fn next_round_key(before: __m512i, last: __m512i) -> __m512i {
    let once = _mm512_xor_si512(before, _mm512_bslli_epi128::<4>(before));
    _mm512_ternarylogic_epi64::<0x96>(once, _mm512_bslli_epi128::<8>(once), last)
}
}

kernel! {
/// The round key of `round`, made of the one before (AES-128), or of the two (AES-256). With four equal columns the row shift of
/// a round changes nothing, so that its end is the S-box.
fn step_key<const ROUNDS: usize>(keys: &mut [__m512i; 2], round: usize) -> __m512i {
    if ROUNDS == 10 {
        let last = _mm512_aesenclast_epi128(_mm512_shuffle_epi8(keys[0], ROTATED.get(0)), ROUND_CONSTANTS.get(round - 1));
        keys[0] = next_round_key(keys[0], last);
        return keys[0];
    }
    if round == 1 {
        return keys[1];
    }
    let (this, other) = (round % 2, 1 - round % 2);
    let last = if this == 0 {
        _mm512_aesenclast_epi128(_mm512_shuffle_epi8(keys[other], ROTATED.get(0)), ROUND_CONSTANTS.get(round / 2 - 1))
    } else {
        _mm512_aesenclast_epi128(_mm512_shuffle_epi32::<0xff>(keys[other]), _mm512_setzero_si512())
    };
    keys[this] = next_round_key(keys[this], last);
    keys[this]
}
}

kernel! {
/// Each block times x, in constant time.
fn double(blocks: __m512i) -> __m512i {
    let between = _mm512_bslli_epi128::<8>(_mm512_srli_epi64::<63>(blocks));
    let shifted = _mm512_or_si512(_mm512_slli_epi64::<1>(blocks), between);
    let carried = _mm512_shuffle_epi32::<0xff>(_mm512_srai_epi32::<31>(blocks));
    // `shifted ^ carried & CARRY`.
    _mm512_ternarylogic_epi64::<0x78>(shifted, carried, CARRY.get(0))
}
}

/// What follows for each four: written out, for a loop would not be unrolled, and its vectors would lie in memory.
macro_rules! each {
    ($f:ident: $($body:tt)*) => {
        {
            let $f = 0;
            $($body)*
        }
        if F > 1 {
            let $f = F - 1;
            $($body)*
        }
    };
}

kernel! {
/// Does the texts of `F` times four packets, and between the rounds GHASH of those `before`. To `HASH` or not is a constant, as in
/// [`super::avx512_fours`].
///
/// # Safety
/// As for [`crypt_all`].
unsafe fn start<'a, J: Job<'a>, const ROUNDS: usize, const ROWS: usize, const F: usize, const HASH: bool>(
    fours: &mut [[&mut J; 4]; F],
    before: Option<&Started<ROWS, F>>,
) -> (Started<ROWS, F>, [__m512i; F]) {
    let zero = _mm512_setzero_si512();
    let swap = broadcast(&REVERSED);
    let poly = _mm512_set1_epi64(POLY.cast_signed());
    let mut texts = [[std::ptr::null_mut::<u8>(); 4]; F];
    let mut rest = [0_u64; F];
    let mut keys = [[zero; 2]; F];
    let mut state = [[zero; ROWS]; F];
    let mut hash_key = [zero; F];
    let mut started = Started {
        hashed: [[zero; ROWS]; F],
        lengths: [Lengths([0; 8]); F],
        power: [zero; F],
        ends: Ends { masks: [zero; F], received: [zero; F] },
    };
    each! { f:
        let mut nonces = [_mm_setzero_si128(); 4];
        let mut aads = nonces;
        let mut icvs = nonces;
        let mut first = nonces;
        let mut second = nonces;
        for n in 0..4 {
            let key = fours[f][n].key();
            let packet = fours[f][n].packet();
            let len = packet.text.len() - ICV_LEN;
            texts[f][n] = packet.text.as_mut_ptr();
            [started.lengths[f].0[2 * n], started.lengths[f].0[2 * n + 1]] = lengths(&packet);
            rest[f] |= (0xffff_u64 >> (16 * (ROWS - 1) - len)) << (16 * n);
            // SAFETY: the mask leaves the twelve bytes of the nonce.
            nonces[n] = unsafe { _mm_maskz_loadu_epi32(0b0111, packet.nonce.as_ptr().cast()) };
            aads[n] = load_block(packet.aad.block());
            if !J::SEAL {
                // SAFETY: the ICV's 16 bytes follow the text.
                icvs[n] = unsafe { _mm_loadu_si128(texts[f][n].wrapping_add(len).cast()) };
            }
            first[n] = load_block(key.near().first_half());
            if ROUNDS == 14 {
                second[n] = load_block(key.far().second_half());
            }
        }
        keys[f] = [lanes(first), lanes(second)];
        // The hash key is the zero block, encrypted.
        hash_key[f] = keys[f][0];
        started.hashed[f][0] = _mm512_shuffle_epi8(lanes(aads), swap);
        started.ends.received[f] = lanes(icvs);
        let base = _mm512_xor_si512(lanes(nonces), keys[f][0]);
        for r in 0..ROWS {
            state[f][r] = _mm512_xor_si512(base, COUNTERS.get(r));
        }
    }
    let mut hash = Hash { state: [zero; F], square: [zero; F] };
    macro_rules! rounds {
        ($($round:literal)*) => {$(
            if $round < ROUNDS {
                each! { f:
                    let key = step_key::<ROUNDS>(&mut keys[f], $round);
                    for r in 0..ROWS {
                        state[f][r] = encrypt_round(state[f][r], key);
                    }
                    hash_key[f] = encrypt_round(hash_key[f], key);
                    if HASH && let Some(before) = before {
                        hash_step(&mut hash, before, f, $round - 1, poly);
                    }
                }
            }
        )*};
    }
    rounds!(1 2 3 4 5 6 7 8 9 10 11 12 13);
    each! { f:
        let key = step_key::<ROUNDS>(&mut keys[f], ROUNDS);
        hash_key[f] = _mm512_aesenclast_epi128(hash_key[f], key);
        started.power[f] = double(_mm512_shuffle_epi8(hash_key[f], swap));
        started.ends.masks[f] = _mm512_aesenclast_epi128(state[f][0], key);
        for r in 1..ROWS {
            let at = texts[f].map(|text| text.wrapping_add(16 * (r - 1)));
            // SAFETY: each text has a byte of block `r` at least, so the block lies within text and ICV.
            let data = unsafe { gather(at) };
            let done = _mm512_aesenclast_epi128(state[f][r], _mm512_xor_si512(key, data));
            let is_last = r == ROWS - 1;
            // What follows the last block's text is the ICV: to seal, it is stored over later; one received stays as it is.
            let stored = if is_last && !J::SEAL { _mm512_mask_mov_epi8(data, rest[f], done) } else { done };
            // SAFETY: as for the load.
            unsafe { scatter(at, stored) };
            let mut text = if J::SEAL { done } else { data };
            if is_last {
                text = _mm512_maskz_mov_epi8(rest[f], text);
            }
            started.hashed[f][r] = _mm512_shuffle_epi8(text, swap);
        }
    }
    (started, hash.state)
}
}

kernel! {
/// A step of GHASH: all of it is those from 0 to [`STEPS`]. Blocks are `ROWS` and that of the lengths; two go to every other step,
/// so that between them is time to reduce, and where they are odd the first by itself.
fn hash_step<const ROWS: usize, const F: usize>(hash: &mut Hash<F>, of: &Started<ROWS, F>, f: usize, step: usize, poly: __m512i) {
    if step == 0 {
        hash.square[f] = times(of.power[f], of.power[f], poly);
        if ROWS.is_multiple_of(2) {
            hash.state[f] = times(of.hashed[f][0], of.power[f], poly);
        }
        return;
    }
    let first = step - 1 + (ROWS + 1) % 2;
    if step.is_multiple_of(2) || first >= ROWS {
        return;
    }
    let second = if first + 1 < ROWS { of.hashed[f][(first + 1) % ROWS] } else { of.lengths[f].get() };
    let mut sums = products(second, of.power[f]);
    add_products(&mut sums, _mm512_xor_si512(hash.state[f], of.hashed[f][first % ROWS]), hash.square[f]);
    hash.state[f] = reduce(sums, poly);
}
}

/// Steps of GHASH of the longest texts: one in every round of AES-128.
const STEPS: usize = MOST + 2;

kernel! {
fn hash_alone<const ROWS: usize, const F: usize>(of: &Started<ROWS, F>) -> [__m512i; F] {
    let zero = _mm512_setzero_si512();
    let poly = _mm512_set1_epi64(POLY.cast_signed());
    let mut hash = Hash { state: [zero; F], square: [zero; F] };
    for step in 0..STEPS {
        each! { f:
            hash_step(&mut hash, of, f, step, poly);
        }
    }
    hash.state
}
}

kernel! {
/// Ends packets whose texts are hashed.
fn end<'a, J: Job<'a>, const F: usize>(fours: &mut [[&mut J; 4]; F], ends: &Ends<F>, hash: [__m512i; F]) {
    let swap = broadcast(&REVERSED);
    each! { f:
        let icvs = _mm512_xor_si512(_mm512_shuffle_epi8(hash[f], swap), ends.masks[f]);
        let wrong = _mm512_xor_si512(icvs, ends.received[f]);
        if !J::SEAL && _mm512_test_epi64_mask(wrong, wrong) == 0 {
            // Four at once, which is what nearly always comes.
            fours[f].iter_mut().for_each(|job| job.conclude(true));
        } else {
            let (icvs, received) = (unlanes(icvs), unlanes(ends.received[f]));
            for n in 0..4 {
                settle::<J>(fours[f][n], icvs[n], received[n]);
            }
        }
    }
}
}

/// Length blocks of four packets.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Lengths([i64; 8]);

impl Lengths {
    kernel! {
    fn get(&self) -> __m512i {
        // SAFETY: 64 bytes are borrowed, aligned.
        unsafe { _mm512_load_si512(self.0.as_ptr().cast()) }
    }
    }
}

kernel! {
/// `a * b * x^-128`.
fn times(a: __m512i, b: __m512i, poly: __m512i) -> __m512i {
    let mut sums = no_sums();
    multiply_add(&mut sums, a, b);
    reduce(sums, poly)
}
}
