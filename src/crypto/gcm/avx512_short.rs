//! Texts of up to four vectors: each block times its own power of the hash key, and one reduction.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over a constant number of vectors, which the compiler unrolls into registers"
)]

use std::arch::x86_64::*;

use super::avx512::*;
use super::counters;
use super::key::{POWERS, load_block};
use crate::crypto::aead::Packet;

kernel! {
/// Seals or opens a text in place, all but the ICV, which it returns as it should be.
///
/// # Safety
/// The text is one to four vectors long.
pub(super) unsafe fn crypt_one<const ROUNDS: usize, const SEAL: bool>(
    run: &Run<'_>,
    packet: &mut Packet<'_>,
) -> __m128i {
    let (mut sums, first) = match Shape::new(packet.text.len()).vectors {
        // SAFETY: so many vectors it has.
        1 => unsafe { crypt_vectors::<ROUNDS, SEAL, 1>(run, packet) },
        // SAFETY: as above.
        2 => unsafe { crypt_vectors::<ROUNDS, SEAL, 2>(run, packet) },
        // SAFETY: as above.
        3 => unsafe { crypt_vectors::<ROUNDS, SEAL, 3>(run, packet) },
        // SAFETY: there are no more than four, which the caller promises.
        _ => unsafe { crypt_vectors::<ROUNDS, SEAL, 4>(run, packet) },
    };
    multiply_add(&mut sums, length_block(packet), powers_from(run.key, POWERS - 1));
    _mm_xor_si128(hash_of(run, reduce(sums, run.poly)), first)
}
}

kernel! {
/// A text of `G` vectors. Returns the sums of GHASH but for the length block, and the mask of the ICV.
///
/// # Safety
/// So long it is.
unsafe fn crypt_vectors<const ROUNDS: usize, const SEAL: bool, const G: usize>(
    run: &Run<'_>,
    packet: &mut Packet<'_>,
) -> (Sums, __m128i) {
    let mut state = [run.poly; G];
    let mut data = [run.poly; G];
    let shape = Shape::new(packet.text.len());
    let last = mask_of_last(shape) & if G == 1 { TEXT_OF_FIRST } else { !0 };
    let powers = shape.first_power(G);
    let base = base(run, packet.nonce);
    let (rows, _) = counters::first::<16>().as_chunks();
    for i in 0..G {
        let at = packet.text.as_ptr().wrapping_sub(16).wrapping_add(64 * i);
        // SAFETY: the text has `G` vectors, and the mask leaves bytes of it only, which the packet borrows.
        data[i] = unsafe { load(at, mask::<G>(i, last)) };
        state[i] = _mm512_xor_si512(base, load_row(&rows[i]));
    }
    for round in 1..ROUNDS {
        for i in 0..G {
            state[i] = _mm512_aesenc_epi128(state[i], run.round_keys[round]);
        }
    }
    let mut sums = no_sums();
    let aad = _mm512_zextsi128_si512(load_block(packet.aad.block()));
    for i in 0..G {
        let mask = mask::<G>(i, last);
        state[i] = _mm512_aesenclast_epi128(state[i], _mm512_xor_si512(run.round_keys[ROUNDS], data[i]));
        let at = packet.text.as_mut_ptr().wrapping_sub(16).wrapping_add(64 * i);
        // SAFETY: as for the load.
        unsafe { store(at, mask, state[i]) };
        let mut hashed = if SEAL { state[i] } else { data[i] };
        if i == 0 {
            hashed = _mm512_mask_mov_epi8(aad, mask, hashed);
        } else if SEAL && i == G - 1 {
            hashed = _mm512_maskz_mov_epi8(mask, hashed);
        }
        let hashed = _mm512_shuffle_epi8(hashed, run.swap);
        multiply_add(&mut sums, hashed, powers_from(run.key, powers + 4 * i));
    }
    (sums, _mm512_castsi512_si128(state[0]))
}
}
