//! Short texts, four packets of as many vectors in step.
//!
//! AES keeps one vector port busy and GHASH the other, so GHASH is done between the rounds: to open of the same four
//! packets, and to seal, where it has to wait for AES, of the four before them. Their sums are turned over, a packet to a
//! lane, and share one reduction and the multiplication of their length blocks.

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx512::*;
use super::avx512_jobs::{received, settle};
use super::counters;
use super::key::{Block, GcmKey, POWERS, load_block};
use crate::crypto::aead::{Job, Packet};

/// Most vectors of packets that go in step: with more, registers run out and long texts have few latencies to hide.
pub(super) const MOST_IN_STEP: usize = 3;

/// What is left to do of four packets whose texts are done.
#[derive(Clone, Copy)]
struct Started<const M: usize> {
    /// What GHASH takes, packet by packet.
    hashed: [__m512i; M],
    /// Where the powers of the hash key for each packet's first vector are.
    powers: [*const Block; 4],
    ends: Ends,
}

/// What the ICVs of four packets are made of beside the sums of GHASH.
#[derive(Clone, Copy)]
struct Ends {
    /// The masks of the ICVs.
    masks: [__m128i; 4],
    /// The ICVs that came with packets to open.
    received: [__m128i; 4],
}

/// Sums of GHASH of four packets while they are made.
struct PairSums {
    /// Those of the pair that is being summed.
    pair: [Sums; 2],
    /// Of each pair that is done, what is left when halves of vectors are added up: two lanes to a packet.
    halves: [Sums; 2],
}

kernel! { never inline:
/// Seals or opens texts of `G` vectors each; `M` is `4 * G`.
///
/// # Safety
/// Each text is `G` vectors long.
pub(super) unsafe fn crypt_fours<'a, J: Job<'a>, const ROUNDS: usize, const G: usize, const M: usize>(
    key: &GcmKey,
    fours: &mut [[&mut J; 4]],
) {
    let run = &begin_run::<ROUNDS>(key);
    if J::SEAL {
        // SAFETY: the caller's promise.
        unsafe { seal_fours::<J, ROUNDS, G, M>(run, fours) };
    } else {
        // SAFETY: the caller's promise.
        unsafe { open_fours::<J, ROUNDS, G, M>(run, fours) };
    }
}
}

kernel! {
/// # Safety
/// As for [`crypt_fours`].
unsafe fn open_fours<'a, J: Job<'a>, const ROUNDS: usize, const G: usize, const M: usize>(
    run: &Run<'_>,
    fours: &mut [[&mut J; 4]],
) {
    for four in fours {
        // SAFETY: the caller's promise.
        let (started, sums) = unsafe { start::<J, ROUNDS, G, M, true>(run, four, None) };
        end::<J, ROUNDS, G>(run, four, &started.ends, sums);
    }
}
}

kernel! {
/// # Safety
/// As for [`crypt_fours`].
unsafe fn seal_fours<'a, J: Job<'a>, const ROUNDS: usize, const G: usize, const M: usize>(
    run: &Run<'_>,
    fours: &mut [[&mut J; 4]],
) {
    let Some((mut before, mut rest)) = fours.split_first_mut() else {
        return;
    };
    // SAFETY: the caller's promise.
    let (mut started, _) = unsafe { start::<J, ROUNDS, G, M, false>(run, before, None) };
    loop {
        let ends = started.ends;
        let mut next = rest.split_first_mut();
        let sums = if let Some((four, _)) = &mut next {
            // SAFETY: as above.
            let (now, sums) = unsafe { start::<J, ROUNDS, G, M, true>(run, four, Some(&started)) };
            started = now;
            sums
        } else {
            let mut sums = PairSums::new();
            for m in 0..M {
                hash_vector::<G>(&mut sums, started.hashed[m], started.powers[m / G], m);
            }
            sums
        };
        end::<J, ROUNDS, G>(run, before, &ends, sums);
        let Some((four, after)) = next else {
            return;
        };
        (before, rest) = (four, after);
    }
}
}

kernel! {
/// Does the texts of four packets, and between the rounds GHASH, whose sums it returns: to seal of the four `before`, and
/// to open of these. To `HASH` or not is a constant, so that the function is another where it has nothing to hash: each is
/// called once, and inlined.
///
/// # Safety
/// Each text is `G` vectors long, and each key has `ROUNDS` rounds.
unsafe fn start<'a, J: Job<'a>, const ROUNDS: usize, const G: usize, const M: usize, const HASH: bool>(
    run: &Run<'_>,
    jobs: &mut [&mut J; 4],
    before: Option<&Started<M>>,
) -> (Started<M>, PairSums) {
    let mut packets = jobs.each_mut().map(|job| job.packet());
    let received = packets.each_ref().map(|packet| received::<J>(packet));
    let zero = _mm512_setzero_si512();
    let mut state = [zero; M];
    let mut last = [0; 4];
    let mut powers = [std::ptr::null(); 4];
    for n in 0..4 {
        let packet = &packets[n];
        let shape = Shape::new(opaque(packet.text.len()));
        last[n] = mask_of_last(shape) & if G == 1 { TEXT_OF_FIRST } else { !0 };
        powers[n] = run.key.powers_from(opaque(shape.first_power(G)));
        let base = base(run, packet.nonce);
        let (rows, _) = counters::first::<16>().as_chunks();
        for i in 0..G {
            state[n * G + i] = _mm512_xor_si512(base, load_row(&rows[i]));
        }
    }
    let mut sums = PairSums::new();
    macro_rules! rounds {
        ($($round:literal)*) => {$(
            if $round < ROUNDS {
                for n in 0..4 {
                    for i in 0..G {
                        state[n * G + i] = encrypt_round(state[n * G + i], run.round_keys[$round]);
                    }
                }
                for m in M * ($round - 1) / (ROUNDS - 1)..M * $round / (ROUNDS - 1) {
                    let n = m / G;
                    if !HASH {
                        continue;
                    } else if !J::SEAL {
                        let mask = mask::<G>(m % G, last[n]);
                        // SAFETY: the text has `G` vectors, and the mask leaves bytes of it only, which the packet borrows.
                        let data = unsafe { load(vector_of(&mut packets[n], m % G), mask) };
                        let block = with_aad(&packets[n], m % G, mask, data);
                        hash_vector::<G>(&mut sums, _mm512_shuffle_epi8(block, run.swap), powers[n], m);
                    } else if let Some(before) = before {
                        hash_vector::<G>(&mut sums, before.hashed[m], before.powers[n], m);
                    }
                }
            }
        )*};
    }
    rounds!(1 2 3 4 5 6 7 8 9 10 11 12 13);
    let mut hashed = [zero; M];
    // The text is loaded this late because before there are no registers for it.
    for n in 0..4 {
        let packet = &mut packets[n];
        for i in 0..G {
            let m = n * G + i;
            let mask = mask::<G>(i, last[n]);
            let at = vector_of(packet, i);
            // SAFETY: as above.
            let data = unsafe { load(at, mask) };
            state[m] = _mm512_aesenclast_epi128(state[m], _mm512_xor_si512(run.round_keys[ROUNDS], data));
            // SAFETY: as above.
            unsafe { store(at, mask, state[m]) };
            if J::SEAL {
                hashed[m] = _mm512_shuffle_epi8(with_aad(packet, i, mask, state[m]), run.swap);
            }
        }
    }
    let mut masks = [_mm_setzero_si128(); 4];
    for n in 0..4 {
        masks[n] = _mm512_castsi512_si128(state[n * G]);
    }
    let ends = Ends { masks, received };
    (Started { hashed, powers, ends }, sums)
}
}

/// Where vector `i` of a packet is: the first has a lane before the text.
#[inline]
fn vector_of(packet: &mut Packet<'_>, i: usize) -> *mut u8 {
    packet
        .text
        .as_mut_ptr()
        .wrapping_sub(16)
        .wrapping_add(64 * i)
}

kernel! {
/// What GHASH takes where vector `i` of a packet is `vector`, of which `mask` is text.
fn with_aad(packet: &Packet<'_>, i: usize, mask: __mmask64, vector: __m512i) -> __m512i {
    if i > 0 {
        return _mm512_maskz_mov_epi8(mask, vector);
    }
    _mm512_mask_mov_epi8(_mm512_zextsi128_si512(load_block(packet.aad.block())), mask, vector)
}
}

kernel! {
/// Adds the products of vector `m` to the sums of its packet; to be called for each in order.
fn hash_vector<const G: usize>(all: &mut PairSums, text: __m512i, powers: *const Block, m: usize) {
    let (n, i) = (m / G, m % G);
    // SAFETY: from any power that a text of `G` vectors begins with, the key has 64 bytes for each of them.
    let power = unsafe { _mm512_loadu_si512(powers.wrapping_add(4 * i).cast()) };
    let sums = &mut all.pair[n % 2];
    if i == 0 {
        *sums = products(text, power);
    } else {
        add_products(sums, text, power);
    }
    if m % (2 * G) == 2 * G - 1 {
        let [a, b] = all.pair;
        all.halves[n / 2] = Sums {
            high: add_halves(a.high, b.high),
            middle: add_halves(a.middle, b.middle),
            low: add_halves(a.low, b.low),
        };
    }
}
}

// Both are assembly, so that they stay between the rounds.

kernel! {
pub(super) fn products(text: __m512i, power: __m512i) -> Sums {
    let (high, middle, low);
    // SAFETY: works on registers only, with an instruction of VPCLMULQDQ and one of AVX-512.
    unsafe {
        asm!(
            "vpclmulqdq {middle}, {text}, {power}, 0x01",
            "vpclmulqdq {low}, {text}, {power}, 0x10",
            "vpxorq {middle}, {middle}, {low}",
            "vpclmulqdq {high}, {text}, {power}, 0x11",
            "vpclmulqdq {low}, {text}, {power}, 0x00",
            text = in(zmm_reg) text,
            power = in(zmm_reg) power,
            high = out(zmm_reg) high,
            middle = out(zmm_reg) middle,
            low = out(zmm_reg) low,
            options(nomem, nostack, preserves_flags),
        );
    }
    Sums { high, middle, low }
}
}

kernel! {
pub(super) fn add_products(sums: &mut Sums, text: __m512i, power: __m512i) {
    let (one, other): (__m512i, __m512i);
    // SAFETY: as above.
    unsafe {
        asm!(
            "vpclmulqdq {one}, {text}, {power}, 0x01",
            "vpclmulqdq {other}, {text}, {power}, 0x10",
            "vpternlogq {middle}, {one}, {other}, 0x96",
            "vpclmulqdq {one}, {text}, {power}, 0x11",
            "vpclmulqdq {other}, {text}, {power}, 0x00",
            "vpxorq {high}, {high}, {one}",
            "vpxorq {low}, {low}, {other}",
            one = out(zmm_reg) one,
            other = out(zmm_reg) other,
            text = in(zmm_reg) text,
            power = in(zmm_reg) power,
            high = inout(zmm_reg) sums.high,
            middle = inout(zmm_reg) sums.middle,
            low = inout(zmm_reg) sums.low,
            options(nomem, nostack, preserves_flags),
        );
    }
    // Without a type they would have no register to be.
    let _: (__m512i, __m512i) = (one, other);
}
}

kernel! {
/// Ends four packets of whose texts these are the sums. Of `ROUNDS` and `G` it makes no use, but so each caller has one of
/// its own, which is inlined: in a call all registers would go through memory.
fn end<'a, J: Job<'a>, const ROUNDS: usize, const G: usize>(
    run: &Run<'_>,
    four: &mut [&mut J; 4],
    ends: &Ends,
    sums: PairSums,
) {
    let [a, b] = sums.halves;
    let mut all = Sums {
        high: add_quarters(a.high, b.high),
        middle: add_quarters(a.middle, b.middle),
        low: add_quarters(a.low, b.low),
    };
    let [[e, f], [g, h], [i, j], [k, l]] = four.each_mut().map(|job| lengths(&job.packet()));
    let lengths = _mm512_set_epi64(l, k, j, i, h, g, f, e);
    multiply_add(&mut all, lengths, broadcast(&run.key.powers[POWERS - 1]));
    let hash = _mm512_shuffle_epi8(reduce(all, run.poly), run.swap);
    let hashes = [
        _mm512_castsi512_si128(hash),
        _mm512_extracti32x4_epi32::<1>(hash),
        _mm512_extracti32x4_epi32::<2>(hash),
        _mm512_extracti32x4_epi32::<3>(hash),
    ];
    for n in 0..4 {
        settle::<J>(four[n], _mm_xor_si128(hashes[n], ends.masks[n]), ends.received[n]);
    }
}
}

kernel! {
/// The halves of each vector added up, two lanes to a vector.
fn add_halves(a: __m512i, b: __m512i) -> __m512i {
    _mm512_xor_si512(_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0xee>(a, b))
}
}

kernel! {
/// Of two results of [`add_halves`] both lanes of each vector added up, one lane to a vector.
fn add_quarters(a: __m512i, b: __m512i) -> __m512i {
    _mm512_xor_si512(_mm512_shuffle_i64x2::<0x88>(a, b), _mm512_shuffle_i64x2::<0xdd>(a, b))
}
}

impl PairSums {
    kernel! {
    fn new() -> Self {
        Self { pair: [no_sums(); 2], halves: [no_sums(); 2] }
    }
    }
}

/// The same number. The compiler does not know that it is, and so does not put what follows of it for four packets into
/// a vector, to take it out again one by one.
#[inline(always)]
fn opaque(mut number: usize) -> usize {
    // SAFETY: no instruction.
    unsafe { asm!("/* {} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) };
    number
}
