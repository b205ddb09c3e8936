//! Texts of five vectors and more: a group of one to four vectors, chunks of four, each lane a Horner chain of its own,
//! the last of which multiplies each block by its own power. What is summed is reduced once a chunk, and the four lanes
//! are added up once a packet.
//!
//! Of a busy key, what many packets share is made once ([`Hot`]): the state of AES after the first round, as far as it
//! depends on the counter, and the powers that chunks are multiplied by.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over a constant number of vectors, which the compiler unrolls into registers"
)]

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx512::*;
use super::avx512_chunks::*;
use super::counters;
use super::key::{GcmKey, POWERS, load_block};
use crate::crypto::aead::Packet;

/// Rows of [`Hot`]: enough for any frame.
pub(super) const ROWS: usize = 152;

/// What many packets of one key share.
#[repr(C, align(64))]
pub(super) struct Hot {
    powers: ChunkPowers,
    /// What the counters of each vector change in the state after the first round, however the nonce: one byte of the
    /// block goes to one column, so what two rows differ in does not depend on the others. Saves a round.
    // INVARIANT: those for the longest text of the run are written.
    rows: [MaybeUninit<__m512i>; ROWS],
}

kernel! {
/// Prepares a run whose longest text has `longest` bytes, ICV included.
pub(super) fn heat<'h>(key: &GcmKey, longest: usize, room: &'h mut MaybeUninit<Hot>) -> &'h Hot {
    // Two round keys are wanted, and none of the others loaded.
    let run = begin_run::<1>(key);
    let at = room.as_mut_ptr();
    let zero = _mm512_setzero_si512();
    let nothing = _mm512_aesenc_epi128(run.round_keys[0], zero);
    let (rows, _) = counters::first::<{ 4 * ROWS }>().as_chunks();
    for (row, counters) in rows.iter().take(Shape::new(longest).vectors).enumerate() {
        let state = _mm512_aesenc_epi128(_mm512_xor_si512(run.round_keys[0], load_row(counters)), zero);
        let change = _mm512_xor_si512(state, nothing);
        // SAFETY: within the room, which is borrowed for writing.
        let to = unsafe { &raw mut (*at).rows[row] };
        // SAFETY: as above.
        unsafe { to.write(MaybeUninit::new(change)) };
    }
    // SAFETY: as above.
    let to = unsafe { &raw mut (*at).powers };
    let powers = chunk_powers(&run);
    // SAFETY: as above.
    unsafe { to.write(powers) };
    // SAFETY: the powers are written, and rows may be uninitialised.
    unsafe { room.assume_init_ref() }
}
}

kernel! {
fn chunk_powers(run: &Run<'_>) -> ChunkPowers {
    let zero = _mm512_setzero_si512();
    let mut rows = [zero; 8];
    for i in 0..4 {
        let power = broadcast(&run.key.powers[POWERS - 4 * (4 - i)]);
        rows[2 * i] = power;
        rows[2 * i + 1] = fold(zero, power, run.poly);
    }
    ChunkPowers { rows, poly: run.poly }
}
}

/// Where a packet stands.
struct Cursor<'h> {
    /// The vector to come, 16 bytes before the text for the first.
    at: *mut u8,
    /// Its number.
    row: usize,
    /// Rows of counters from the first vector on, or for a hot run what they change in the state after the first round.
    rows: *const u8,
    /// What the rows are added to.
    base: __m512i,
    shape: Shape,
    /// Those of a hot run.
    powers: Option<&'h ChunkPowers>,
}

/// What a text goes through is compiled by itself for three ways: where there is a [`Hot`],
pub(super) const HOT: u8 = 0;
/// where there is none,
pub(super) const COLD: u8 = 1;
/// and where there are not even counters for all of the text.
pub(super) const FAR: u8 = 2;

kernel! {
/// Counter blocks of `G` vectors, the first round key added: for a hot run, after the first round.
fn start<const WAY: u8, const G: usize>(cursor: &Cursor<'_>) -> [__m512i; G] {
    let computed;
    let mut rows = cursor.rows.wrapping_add(64 * cursor.row);
    if WAY == FAR {
        computed = counters::far::<16>(4 * cursor.row);
        rows = computed.as_ptr().cast();
    }
    let mut state = [cursor.base; G];
    for i in 0..G {
        // SAFETY: there are rows for all vectors of the text, or were computed for four.
        let row = unsafe { _mm512_loadu_si512(rows.wrapping_add(64 * i).cast()) };
        state[i] = _mm512_xor_si512(state[i], row);
    }
    state
}
}

kernel! {
/// `G` vectors through AES, in place. Returns what GHASH takes, and the first vector as AES left it.
/// `FIRST`: the group begins the packet, and the AAD is still to be added to what GHASH takes. `LAST`: it ends it.
fn group<const ROUNDS: usize, const SEAL: bool, const WAY: u8, const G: usize, const FIRST: bool, const LAST: bool>(
    run: &Run<'_>,
    cursor: &mut Cursor<'_>,
) -> ([__m512i; G], __m512i) {
    let mut masks = [!0; G];
    if LAST {
        masks[G - 1] = mask_of_last(cursor.shape);
    }
    if FIRST {
        masks[0] = TEXT_OF_FIRST;
    }
    let mut data = [run.poly; G];
    for i in 0..G {
        // SAFETY: the mask leaves bytes of the text only, which the packet borrows.
        data[i] = unsafe { load(cursor.at.wrapping_add(64 * i), masks[i]) };
    }
    let mut state = start::<WAY, G>(cursor);
    for round in 1..ROUNDS {
        for i in 0..G {
            if !(WAY == HOT && round == 1) {
                state[i] = _mm512_aesenc_epi128(state[i], run.round_keys[round]);
            }
        }
    }
    let mut hashed = data;
    for i in 0..G {
        state[i] = _mm512_aesenclast_epi128(state[i], _mm512_xor_si512(run.round_keys[ROUNDS], data[i]));
        // SAFETY: as for the load.
        unsafe { store(cursor.at.wrapping_add(64 * i), masks[i], state[i]) };
        if SEAL {
            hashed[i] = _mm512_maskz_mov_epi8(masks[i], state[i]);
        }
        hashed[i] = _mm512_shuffle_epi8(hashed[i], run.swap);
    }
    cursor.at = cursor.at.wrapping_add(64 * G);
    cursor.row += G;
    (hashed, state[0])
}
}

kernel! {
/// A Horner step over `G` vectors: every lane times the power that takes it `G` vectors on.
fn step<const G: usize>(run: &Run<'_>, powers: Option<&ChunkPowers>, blocks: &[__m512i; G]) -> __m512i {
    let mut sums = no_sums();
    if let Some(powers) = powers {
        for i in 0..G {
            let row = 8 - 2 * (G - i);
            multiply_add_folded(&mut sums, blocks[i], powers.rows[row], powers.rows[row + 1]);
        }
        return fold(sums.high, sums.middle, run.poly);
    }
    for i in 0..G {
        multiply_add(&mut sums, blocks[i], broadcast(&run.key.powers[POWERS - 4 * (G - i)]));
    }
    reduce(sums, run.poly)
}
}

kernel! {
never inline:
/// `count` chunks of a text of class [`FAR`]. `hash` is that of what is before them, and the result that with them.
fn far_chunks<const ROUNDS: usize, const SEAL: bool>(
    run: &Run<'_>,
    cursor: &mut Cursor<'_>,
    mut hash: __m512i,
    count: usize,
) -> __m512i {
    for _ in 0..count {
        let (mut hashed, _) = group::<ROUNDS, SEAL, FAR, 4, false, false>(run, cursor);
        hashed[0] = _mm512_xor_si512(hashed[0], hash);
        hash = step::<4>(run, None, &hashed);
    }
    hash
}
}

kernel! {
/// What the loops in assembly work on: `count` chunks from here on.
fn chunks<'p>(run: &Run<'_>, cursor: &Cursor<'_>, powers: &'p ChunkPowers, count: usize) -> Chunks<'p> {
    Chunks {
        at: cursor.at,
        rows: cursor.rows.wrapping_add(64 * cursor.row),
        count,
        base: cursor.base,
        swap: run.swap,
        powers,
    }
}
}

kernel! {
/// As [`far_chunks`] where there are rows, and at least one chunk.
fn open_chunks<const ROUNDS: usize, const WAY: u8>(
    run: &Run<'_>,
    cursor: &mut Cursor<'_>,
    powers: &ChunkPowers,
    hash: __m512i,
    count: usize,
) -> __m512i {
    let chunks = chunks(run, cursor, powers, count);
    cursor.at = cursor.at.wrapping_add(256 * count);
    cursor.row += 4 * count;
    let keys = &run.round_keys;
    match (ROUNDS, WAY) {
        // SAFETY: the chunks lie within the text, which the packet borrows, and there are rows for them.
        (10, HOT) => unsafe { open_hot_10(&chunks, keys, hash) },
        // SAFETY: as above.
        (10, _) => unsafe { open_10(&chunks, keys, hash) },
        // SAFETY: as above.
        (12, HOT) => unsafe { open_hot_12(&chunks, keys, hash) },
        // SAFETY: as above.
        (12, _) => unsafe { open_12(&chunks, keys, hash) },
        // SAFETY: as above.
        (_, HOT) => unsafe { open_hot_14(&chunks, keys, hash) },
        // SAFETY: as above.
        (_, _) => unsafe { open_14(&chunks, keys, hash) },
    }
}
}

kernel! {
/// Seals all that is left of a text for which there are rows. `first` is what GHASH takes of what is before. Returns what
/// it takes of the last four vectors, with the hash of all before them.
fn seal_rest<const ROUNDS: usize, const WAY: u8, const G: usize>(
    run: &Run<'_>,
    cursor: &Cursor<'_>,
    powers: &ChunkPowers,
    first: &[__m512i; G],
) -> [__m512i; 4] {
    // Zero blocks in front add nothing, so that the first group passes for a chunk.
    let mut pending = [_mm512_setzero_si512(); 4];
    for i in 0..G {
        pending[4 - G + i] = first[i];
    }
    let chunks = chunks(run, cursor, powers, (cursor.shape.vectors - G) / 4);
    let (keys, last) = (&run.round_keys, mask_of_last(cursor.shape));
    match (ROUNDS, WAY) {
        // SAFETY: the chunks lie within the text, which the packet borrows, but for what `last` leaves out of the last; and
        // there are rows for them.
        (10, HOT) => unsafe { seal_hot_10(&chunks, keys, last, &mut pending) },
        // SAFETY: as above.
        (10, _) => unsafe { seal_10(&chunks, keys, last, &mut pending) },
        // SAFETY: as above.
        (12, HOT) => unsafe { seal_hot_12(&chunks, keys, last, &mut pending) },
        // SAFETY: as above.
        (12, _) => unsafe { seal_12(&chunks, keys, last, &mut pending) },
        // SAFETY: as above.
        (_, HOT) => unsafe { seal_hot_14(&chunks, keys, last, &mut pending) },
        // SAFETY: as above.
        (_, _) => unsafe { seal_14(&chunks, keys, last, &mut pending) },
    }
    pending
}
}

kernel! {
/// The end of GHASH: the last four vectors, and the length block.
fn finish(run: &Run<'_>, shape: Shape, last: &[__m512i; 4], packet: &Packet<'_>) -> __m128i {
    let first_power = shape.first_power(4);
    let mut sums = no_sums();
    for i in 0..4 {
        multiply_add(&mut sums, last[i], powers_from(run.key, first_power + 4 * i));
    }
    multiply_add(&mut sums, length_block(packet), powers_from(run.key, POWERS - 1));
    hash_of(run, reduce(sums, run.poly))
}
}

kernel! {
/// One packet, of which the first `G` vectors (1 to 4) go ahead of the chunks.
fn long<const ROUNDS: usize, const SEAL: bool, const WAY: u8, const CHUNKED: bool, const G: usize>(
    run: &Run<'_>,
    cursor: &mut Cursor<'_>,
    packet: &Packet<'_>,
) -> __m128i {
    let (mut first, mask) = group::<ROUNDS, SEAL, WAY, G, true, false>(run, cursor);
    let mask = _mm512_castsi512_si128(mask);
    let aad = _mm_shuffle_epi8(load_block(packet.aad.block()), _mm512_castsi512_si128(run.swap));
    first[0] = _mm512_xor_si512(first[0], _mm512_zextsi128_si512(aad));
    let count = (cursor.shape.vectors - G) / 4 - 1;
    if WAY == FAR || !CHUNKED {
        let mut hash = step(run, cursor.powers, &first);
        if WAY == FAR {
            hash = far_chunks::<ROUNDS, SEAL>(run, cursor, hash, count);
        }
        return _mm_xor_si128(end::<ROUNDS, SEAL, WAY>(run, cursor, hash, packet), mask);
    }
    let made;
    let powers = match cursor.powers {
        Some(powers) => powers,
        None => {
            made = chunk_powers(run);
            &made
        }
    };
    if SEAL {
        let last = seal_rest::<ROUNDS, WAY, G>(run, cursor, powers, &first);
        return _mm_xor_si128(finish(run, cursor.shape, &last, packet), mask);
    }
    let hash = open_chunks::<ROUNDS, WAY>(run, cursor, powers, step(run, Some(powers), &first), count);
    _mm_xor_si128(end::<ROUNDS, SEAL, WAY>(run, cursor, hash, packet), mask)
}
}

kernel! {
/// The last four vectors, and the end of GHASH, where `hash` is that of all before.
fn end<const ROUNDS: usize, const SEAL: bool, const WAY: u8>(
    run: &Run<'_>,
    cursor: &mut Cursor<'_>,
    hash: __m512i,
    packet: &Packet<'_>,
) -> __m128i {
    let (mut last, _) = group::<ROUNDS, SEAL, WAY, 4, false, true>(run, cursor);
    last[0] = _mm512_xor_si512(last[0], hash);
    finish(run, cursor.shape, &last, packet)
}
}

kernel! {
/// Seals or opens a text of five vectors and more in place, all but the ICV, which it returns as it should be.
///
/// # Safety
/// `WAY` is [`HOT`] only where `hot` is there, and its rows reach for this text; and it is [`FAR`] for every text of more
/// than [`ROWS`] vectors. `CHUNKED` is said of a text of nine vectors and more, and of no other.
pub(super) unsafe fn crypt_long<const ROUNDS: usize, const SEAL: bool, const WAY: u8, const CHUNKED: bool>(
    run: &Run<'_>,
    hot: Option<&Hot>,
    packet: &mut Packet<'_>,
) -> __m128i {
    let shape = Shape::new(packet.text.len());
    let mut cursor = Cursor {
        at: packet.text.as_mut_ptr().wrapping_sub(16),
        row: 0,
        rows: counters::first::<{ 4 * ROWS }>().as_ptr().cast(),
        base: base(run, packet.nonce),
        shape,
        powers: None,
    };
    if WAY == HOT {
        // SAFETY: the caller's promise.
        let hot = unsafe { hot.unwrap_unchecked() };
        cursor.base = _mm512_aesenc_epi128(cursor.base, run.round_keys[1]);
        cursor.rows = hot.rows.as_ptr().cast();
        cursor.powers = Some(&hot.powers);
    }
    let cursor = &mut cursor;
    match shape.vectors & 3 {
        1 => long::<ROUNDS, SEAL, WAY, CHUNKED, 1>(run, cursor, packet),
        2 => long::<ROUNDS, SEAL, WAY, CHUNKED, 2>(run, cursor, packet),
        3 => long::<ROUNDS, SEAL, WAY, CHUNKED, 3>(run, cursor, packet),
        _ => long::<ROUNDS, SEAL, WAY, CHUNKED, 4>(run, cursor, packet),
    }
}
}
