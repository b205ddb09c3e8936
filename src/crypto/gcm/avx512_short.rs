//! Texts of up to four vectors: each block times its own power of the hash key, and one reduction.
//!
//! Four packets of as many vectors go in step, so that the latencies of one hide behind the others. Their sums are turned
//! over, a packet to a lane, and share one reduction and the multiplication of their length blocks.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over a constant number of vectors, which the compiler unrolls into registers"
)]

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx512::*;
use super::counters;
use super::key::{POWERS, load_block};
use crate::crypto::aead::Packet;

/// Most vectors of packets that go in step: with more, registers run out and long texts have few latencies to hide.
pub(super) const MOST_IN_STEP: usize = 3;

kernel! {
/// Seals or opens a text in place, all but the ICV, which it returns as it should be.
///
/// # Safety
/// The text is one to four vectors long.
pub(super) unsafe fn crypt_one<const ROUNDS: usize, const SEAL: bool>(
    run: &Run<'_>,
    packet: &mut Packet<'_>,
) -> __m128i {
    let packets = std::array::from_mut(packet);
    let ([mut sums], [first]) = match Shape::new(packets[0].text.len()).vectors {
        // SAFETY: so many vectors it has.
        1 => unsafe { in_step::<ROUNDS, SEAL, 1, 1, 1>(run, packets) },
        // SAFETY: as above.
        2 => unsafe { in_step::<ROUNDS, SEAL, 1, 2, 2>(run, packets) },
        // SAFETY: as above.
        3 => unsafe { in_step::<ROUNDS, SEAL, 1, 3, 3>(run, packets) },
        // SAFETY: there are no more than four, which the caller promises.
        _ => unsafe { in_step::<ROUNDS, SEAL, 1, 4, 4>(run, packets) },
    };
    multiply_add(&mut sums, length_block(packet), powers_from(run.key, POWERS - 1));
    _mm_xor_si128(hash_of(run, reduce(sums, run.poly)), first)
}
}

kernel! {
/// As [`crypt_one`] for four texts.
///
/// # Safety
/// Each of them is `vectors` vectors long, and that is [`MOST_IN_STEP`] at most.
pub(super) unsafe fn crypt_four<const ROUNDS: usize, const SEAL: bool>(
    run: &Run<'_>,
    packets: &mut [Packet<'_>; 4],
    vectors: usize,
) -> [__m128i; 4] {
    let (sums, [a, b, c, d]) = match vectors {
        // SAFETY: so many vectors each has, which the caller promises.
        1 => unsafe { in_step::<ROUNDS, SEAL, 4, 1, 4>(run, packets) },
        // SAFETY: as above.
        2 => unsafe { in_step::<ROUNDS, SEAL, 4, 2, 8>(run, packets) },
        // SAFETY: as above, and there are no more than three.
        _ => unsafe { in_step::<ROUNDS, SEAL, 4, 3, 12>(run, packets) },
    };
    let mut all = Sums {
        high: sum_lanes([sums[0].high, sums[1].high, sums[2].high, sums[3].high]),
        middle: sum_lanes([sums[0].middle, sums[1].middle, sums[2].middle, sums[3].middle]),
        low: sum_lanes([sums[0].low, sums[1].low, sums[2].low, sums[3].low]),
    };
    let [[e, f], [g, h], [i, j], [k, l]] = packets.each_ref().map(lengths);
    let lengths = _mm512_set_epi64(l, k, j, i, h, g, f, e);
    multiply_add(&mut all, lengths, broadcast(&run.key.powers[POWERS - 1]));
    let hash = _mm512_shuffle_epi8(reduce(all, run.poly), run.swap);
    [
        _mm_xor_si128(_mm512_castsi512_si128(hash), a),
        _mm_xor_si128(_mm512_extracti32x4_epi32::<1>(hash), b),
        _mm_xor_si128(_mm512_extracti32x4_epi32::<2>(hash), c),
        _mm_xor_si128(_mm512_extracti32x4_epi32::<3>(hash), d),
    ]
}
}

kernel! {
/// The sum of the lanes of each vector, one to a lane.
fn sum_lanes([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let halves = |a, b| {
        _mm512_xor_si512(_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0xee>(a, b))
    };
    let (ab, cd) = (halves(a, b), halves(c, d));
    _mm512_xor_si512(_mm512_shuffle_i64x2::<0x88>(ab, cd), _mm512_shuffle_i64x2::<0xdd>(ab, cd))
}
}

kernel! {
/// `N` packets, one or four, of `G` vectors each; `M` is `N * G`. Returns the sums of GHASH but for the length block, and
/// the masks of the ICVs.
///
/// # Safety
/// Each text is `G` vectors long.
unsafe fn in_step<const ROUNDS: usize, const SEAL: bool, const N: usize, const G: usize, const M: usize>(
    run: &Run<'_>,
    packets: &mut [Packet<'_>; N],
) -> ([Sums; N], [__m128i; N]) {
    let mut state = [run.poly; M];
    let mut data = [run.poly; M];
    let mut last = [0; N];
    let mut powers = [0; N];
    for n in 0..N {
        let packet = &mut packets[n];
        let shape = Shape::new(opaque(packet.text.len()));
        last[n] = mask_of_last(shape) & if G == 1 { TEXT_OF_FIRST } else { !0 };
        powers[n] = opaque(shape.first_power(G));
        let base = base(run, packet.nonce);
        let (rows, _) = counters::first::<16>().as_chunks();
        for i in 0..G {
            let at = packet.text.as_ptr().wrapping_sub(16).wrapping_add(64 * i);
            // SAFETY: the text has `G` vectors, and the mask leaves bytes of it only, which the packet borrows.
            data[n * G + i] = unsafe { load(at, mask::<G>(i, last[n])) };
            state[n * G + i] = _mm512_xor_si512(base, load_row(&rows[i]));
        }
    }
    for round in 1..ROUNDS {
        for m in 0..M {
            state[m] = if N == 1 {
                _mm512_aesenc_epi128(state[m], run.round_keys[round])
            } else {
                encrypt_round(state[m], run.round_keys[round])
            };
        }
    }
    for m in 0..M {
        let data = _mm512_xor_si512(run.round_keys[ROUNDS], data[m]);
        state[m] = _mm512_aesenclast_epi128(state[m], data);
    }
    let mut sums = [no_sums(); N];
    for n in 0..N {
        let packet = &mut packets[n];
        let aad = _mm512_zextsi128_si512(load_block(packet.aad.block()));
        for i in 0..G {
            let (out, mask) = (state[n * G + i], mask::<G>(i, last[n]));
            let at = packet.text.as_mut_ptr().wrapping_sub(16).wrapping_add(64 * i);
            // SAFETY: as for the load.
            unsafe { store(at, mask, out) };
            let mut hashed = if SEAL { out } else { data[n * G + i] };
            if i == 0 {
                hashed = _mm512_mask_mov_epi8(aad, mask, hashed);
            } else if SEAL && i == G - 1 {
                hashed = _mm512_maskz_mov_epi8(mask, hashed);
            }
            let hashed = _mm512_shuffle_epi8(hashed, run.swap);
            multiply_add(&mut sums[n], hashed, powers_from(run.key, powers[n] + 4 * i));
        }
    }
    let mut first = [_mm_setzero_si128(); N];
    for n in 0..N {
        first[n] = _mm512_castsi512_si128(state[n * G]);
    }
    (sums, first)
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

/// Which bytes of vector `i` of `G` are text.
#[inline]
fn mask<const G: usize>(i: usize, last: __mmask64) -> __mmask64 {
    if i == G - 1 {
        last
    } else if i == 0 {
        TEXT_OF_FIRST
    } else {
        !0
    }
}
