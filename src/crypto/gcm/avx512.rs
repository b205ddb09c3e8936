//! AES-GCM with AVX-512, VAES and VPCLMULQDQ: four blocks a vector, four vectors a step.
//!
//! A packet is seen as vectors of 64 bytes that begin 16 bytes *before* its text. The first lane of the first vector is
//! the counter block J0 for AES and the AAD for GHASH, so neither costs a vector of its own, and 48 bytes of text are one
//! vector. Those 16 bytes are masked off in every load and store: nothing outside the text and its ICV is touched.
//!
//! A text of up to four vectors is one group: each block times its own power of the hash key. A longer one begins with a
//! group of one to four vectors and goes on in chunks of four, each lane a Horner chain of its own, and ends with a full
//! group. What is summed is reduced once a group, and the four lanes are added up once a packet.
//!
//! Counter blocks are `base ^ row`: the nonce and the first round key make the base, and a table of constants holds the
//! counters of each vector. That is one XOR in place of an addition, a byte swap and a XOR.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over a constant number of vectors, which the compiler unrolls into registers"
)]

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::Kernels;
use super::avx512_chunks::*;
use super::key::{Block, GcmKey, POLY, POWERS};
use crate::crypto::aead::{ICV_LEN, NONCE_LEN};

/// Proof that this processor has what the kernels of this module use.
#[derive(Clone, Copy)]
pub(in crate::crypto) struct HasAvx512(());

impl HasAvx512 {
    /// The proof, where the processor can give it.
    pub(in crate::crypto) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("bmi2");
        has.then_some(Self(()))
    }

    /// Expands `key`: 16, 24 or 32 bytes.
    pub(in crate::crypto) fn expand(self, key: &[u8]) -> GcmKey {
        // SAFETY: this proof includes AES-NI and PCLMULQDQ.
        unsafe { GcmKey::new(Kernels::Avx512(self), key) }
    }
}

/// One packet for the kernels: text and room for the ICV behind it.
pub(in crate::crypto) struct Packet<'a> {
    pub(super) nonce: &'a [u8; NONCE_LEN],
    pub(super) aad: &'a Block,
    pub(super) aad_len: usize,
    // INVARIANT: at least `ICV_LEN` bytes.
    pub(super) text: &'a mut [u8],
}

/// Vectors whose counters the table holds: texts of 9,712 bytes, longer than any frame. Beyond, they are computed.
pub(super) const ROWS: usize = 152;

#[repr(C, align(64))]
struct Rows([[u8; 64]; ROWS]);

/// Counter blocks without the nonce: lane `l` of row `v` holds counter `4v + l + 1`, J0 being counter 1.
static COUNTERS: Rows = Rows(counter_rows(0));

const fn counter_rows<const N: usize>(first: usize) -> [[u8; 64]; N] {
    let mut rows = [[0; 64]; N];
    let mut at = 0;
    while at < N * 4 {
        #[expect(clippy::cast_possible_truncation, reason = "GCM's counter has 32 bits")]
        let counter = ((first * 4 + at + 1) as u32).to_be_bytes();
        let mut byte = 0;
        while byte < 4 {
            rows[at / 4][at % 4 * 16 + 12 + byte] = counter[byte];
            byte += 1;
        }
        at += 1;
    }
    rows
}

/// Rows that the table does not have.
#[cold]
#[inline(never)]
fn far_rows<const N: usize>(first: usize) -> [[u8; 64]; N] {
    counter_rows(first)
}

/// Functions that use the features of which [`HasAvx512`] is the proof.
macro_rules! kernel {
    (never inline: $($item:tt)*) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,aes,pclmulqdq,sse4.1,bmi2")]
        #[inline(never)]
        $($item)*
    };
    ($($item:tt)*) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,aes,pclmulqdq,sse4.1,bmi2")]
        #[inline]
        $($item)*
    };
}

pub(super) use kernel;

/// What a run of packets of one key shares, in registers as far as they reach.
#[derive(Clone, Copy)]
pub(super) struct Run<'k> {
    key: &'k GcmKey,
    round_keys: [__m512i; 15],
    swap: __m512i,
    poly: __m512i,
    hot: Option<&'k Hot>,
}

/// What a run of many packets of one key shares in memory.
#[repr(C, align(64))]
pub(super) struct Hot {
    powers: ChunkPowers,
    /// What each row of counters changes in the state after the first round, however the nonce: one byte of the block
    /// goes to one column, so what two rows differ in does not depend on the others. Saves a round.
    // INVARIANT: the first `len` rows are written.
    rows: [MaybeUninit<__m512i>; ROWS],
    len: usize,
}

/// Sums of products, not reduced.
#[derive(Clone, Copy)]
struct Sums {
    high: __m512i,
    low: __m512i,
}

kernel! {
fn broadcast(block: &Block) -> __m512i {
    // SAFETY: 16 bytes are borrowed, and the load wants no alignment.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
}
}

kernel! {
pub(super) fn begin_run<'k, const ROUNDS: usize>(key: &'k GcmKey, hot: Option<&'k Hot>) -> Run<'k> {
    let mut round_keys = [_mm512_setzero_si512(); 15];
    // A range that ends with `ROUNDS` itself would not be unrolled, and the keys would go through memory.
    for at in 0..15 {
        if at <= ROUNDS {
            round_keys[at] = broadcast(&key.round_keys[at]);
        }
    }
    let reversed: Block = [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0];
    Run {
        key,
        round_keys,
        swap: broadcast(&reversed),
        poly: _mm512_set1_epi64(POLY.cast_signed()),
        hot,
    }
}
}

kernel! {
fn load(at: *const u8, mask: __mmask64) -> __m512i {
    // SAFETY: the caller's mask leaves only bytes of the text, which the packet borrows; masked bytes are not read.
    unsafe { _mm512_maskz_loadu_epi8(mask, at.cast()) }
}
}

kernel! {
fn store(at: *mut u8, mask: __mmask64, value: __m512i) {
    // SAFETY: the caller's mask leaves only bytes of the text, which the packet borrows for writing.
    unsafe { _mm512_mask_storeu_epi8(at.cast(), mask, value) }
}
}

/// The powers from `H^(POWERS - first)` on, four in descending order.
macro_rules! powers {
    ($table:expr, $first:expr) => {
        // SAFETY: `first` is at most `POWERS - 1`, and the table has three entries beyond that.
        unsafe { _mm512_loadu_si512($table.as_ptr().wrapping_add($first).cast()) }
    };
}

kernel! {
fn multiply_add(sums: &mut Sums, block: __m512i, power: __m512i, folded: __m512i) {
    let high = _mm512_clmulepi64_epi128::<0x11>(block, power);
    let high2 = _mm512_clmulepi64_epi128::<0x10>(block, folded);
    let low = _mm512_clmulepi64_epi128::<0x01>(block, power);
    let low2 = _mm512_clmulepi64_epi128::<0x00>(block, folded);
    sums.high = _mm512_ternarylogic_epi64::<0x96>(sums.high, high, high2);
    sums.low = _mm512_ternarylogic_epi64::<0x96>(sums.low, low, low2);
}
}

kernel! {
fn reduce(sums: Sums, poly: __m512i) -> __m512i {
    let product = _mm512_clmulepi64_epi128::<0x00>(sums.low, poly);
    let swapped = _mm512_shuffle_epi32::<0b01_00_11_10>(sums.low);
    _mm512_ternarylogic_epi64::<0x96>(sums.high, product, swapped)
}
}

kernel! {
/// AES over `G` vectors. `data[i]` is XORed in; lane 0 of the packet's first vector comes out as the ICV's mask.
fn encrypt<const ROUNDS: usize, const CACHED: bool, const G: usize>(
    run: &Run<'_>,
    cursor: &Cursor,
    data: &[__m512i; G],
) -> [__m512i; G] {
    let mut state = [cursor.base; G];
    let computed;
    let mut rows = cursor.rows.wrapping_add(64 * cursor.row);
    if !CACHED && cursor.row + G > ROWS {
        computed = far_rows::<G>(cursor.row);
        rows = computed.as_ptr().cast();
    }
    for i in 0..G {
        // SAFETY: there are `G` rows of 64 bytes: in the table, in `Hot`, which has those of the longest text, or computed.
        let counters = unsafe { _mm512_loadu_si512(rows.wrapping_add(64 * i).cast()) };
        state[i] = _mm512_xor_si512(cursor.base, counters);
    }
    for round in 1..ROUNDS {
        for i in 0..G {
            if !(CACHED && round == 1) {
                state[i] = _mm512_aesenc_epi128(state[i], run.round_keys[round]);
            }
        }
    }
    for i in 0..G {
        state[i] = _mm512_aesenclast_epi128(state[i], _mm512_xor_si512(run.round_keys[ROUNDS], data[i]));
    }
    state
}
}

/// Where a packet stands.
struct Cursor {
    /// The vector to come, 16 bytes before the text for the first.
    at: *mut u8,
    /// Its number.
    row: usize,
    /// What tells the vectors apart: rows of counters, or what the first round makes of them.
    rows: *const u8,
    /// Mask of the first vector: all but lane 0, cut to the text.
    first: __mmask64,
    /// Mask of the last vector.
    last: __mmask64,
    base: __m512i,
    aad: __m512i,
}

kernel! {
/// `G` vectors through AES, in place. Returns what GHASH takes, and the first vector as AES left it.
/// `FIRST`: the group begins the packet. `LAST`: it ends it.
fn group<const ROUNDS: usize, const SEAL: bool, const CACHED: bool, const G: usize, const FIRST: bool, const LAST: bool>(
    run: &Run<'_>,
    cursor: &mut Cursor,
) -> ([__m512i; G], __m512i) {
    let mut masks = [!0; G];
    if LAST {
        masks[G - 1] = cursor.last;
    }
    if FIRST {
        masks[0] = cursor.first;
    }
    let mut data = [run.poly; G];
    for i in 0..G {
        data[i] = load(cursor.at.wrapping_add(64 * i), masks[i]);
    }
    let out = encrypt::<ROUNDS, CACHED, G>(run, cursor, &data);
    let mut hashed = if SEAL { out } else { data };
    for i in 0..G {
        store(cursor.at.wrapping_add(64 * i), masks[i], out[i]);
        if FIRST && i == 0 {
            hashed[0] = _mm512_mask_mov_epi8(cursor.aad, masks[0], hashed[0]);
        } else if SEAL && LAST && i == G - 1 {
            hashed[i] = _mm512_maskz_mov_epi8(masks[i], hashed[i]);
        }
        hashed[i] = _mm512_shuffle_epi8(hashed[i], run.swap);
    }
    cursor.at = cursor.at.wrapping_add(64 * G);
    cursor.row += G;
    (hashed, out[0])
}
}

kernel! {
/// A Horner step over `G` vectors: every lane times the power that takes it `G` vectors on.
fn step<const G: usize>(run: &Run<'_>, blocks: &[__m512i; G]) -> __m512i {
    let zero = _mm512_setzero_si512();
    let mut sums = Sums { high: zero, low: zero };
    for i in 0..G {
        let at = POWERS - 4 * (G - i);
        multiply_add(&mut sums, blocks[i], broadcast(&run.key.powers[at]), broadcast(&run.key.folded[at]));
    }
    reduce(sums, run.poly)
}
}

/// The half of the length block that tells the length of the AAD, in bits, for each length in bytes.
static AAD_BITS: [[i64; 2]; 17] = {
    let mut halves = [[0; 2]; 17];
    let mut len = 0;
    while len < 17 {
        halves[len][1] = 8 * len as i64;
        len += 1;
    }
    halves
};

kernel! {
/// The length block times the hash key, in lane 0.
fn hash_lengths(key: &GcmKey, aad_len: usize, text_len: usize) -> Sums {
    let load = |block: &Block| {
        // SAFETY: 16 bytes are borrowed, and the load wants no alignment.
        unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
    };
    let (power, folded) = (load(&key.powers[POWERS - 1]), load(&key.folded[POWERS - 1]));
    let aad_bits = AAD_BITS[aad_len.min(16)];
    let aad_bits = _mm_set_epi64x(aad_bits[1], aad_bits[0]);
    let text_bits = _mm_cvtsi64_si128((text_len as i64) << 3);
    let lengths = _mm_or_si128(aad_bits, text_bits);
    let high = _mm_xor_si128(
        _mm_clmulepi64_si128::<0x11>(lengths, power),
        _mm_clmulepi64_si128::<0x10>(lengths, folded),
    );
    let low = _mm_xor_si128(
        _mm_clmulepi64_si128::<0x01>(lengths, power),
        _mm_clmulepi64_si128::<0x00>(lengths, folded),
    );
    Sums { high: _mm512_zextsi128_si512(high), low: _mm512_zextsi128_si512(low) }
}
}

kernel! {
/// The end of GHASH: `G` vectors, and then the length block.
fn finish<const G: usize>(run: &Run<'_>, blocks: &[__m512i; G], packet: &Packet<'_>, shape: Shape) -> __m128i {
    let mut sums = hash_lengths(run.key, packet.aad_len, shape.text_len);
    let first = POWERS - 4 * (G - 1) - shape.lanes() - 1;
    for i in 0..G {
        multiply_add(
            &mut sums,
            blocks[i],
            powers!(run.key.powers, first + 4 * i),
            powers!(run.key.folded, first + 4 * i),
        );
    }
    let lanes = reduce(sums, run.poly);
    let half = _mm256_xor_si256(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64::<1>(lanes));
    let sum = _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
    _mm_shuffle_epi8(sum, _mm512_castsi512_si128(run.swap))
}
}

kernel! {
/// One packet whose text is `G` vectors, lane 0 included.
fn short<const ROUNDS: usize, const SEAL: bool, const G: usize>(
    run: &Run<'_>,
    cursor: &mut Cursor,
    packet: &Packet<'_>,
    shape: Shape,
) -> __m128i {
    let (hashed, first) = group::<ROUNDS, SEAL, false, G, true, true>(run, cursor);
    let sum = finish::<G>(run, &hashed, packet, shape);
    _mm_xor_si128(sum, _mm512_castsi512_si128(first))
}
}

kernel! {
fn chunk_powers(run: &Run<'_>) -> ChunkPowers {
    let key = run.key;
    let at = |power: usize| POWERS - power;
    ChunkPowers {
        rows: [
            broadcast(&key.powers[at(16)]),
            broadcast(&key.folded[at(16)]),
            broadcast(&key.powers[at(12)]),
            broadcast(&key.folded[at(12)]),
            broadcast(&key.powers[at(8)]),
            broadcast(&key.folded[at(8)]),
            broadcast(&key.powers[at(4)]),
            broadcast(&key.folded[at(4)]),
        ],
        poly: run.poly,
    }
}
}

kernel! {
/// `count` chunks. `state` is that of GHASH before them, and the result that after them.
fn chunks<const ROUNDS: usize, const SEAL: bool, const CACHED: bool>(
    run: &Run<'_>,
    cursor: &mut Cursor,
    mut state: __m512i,
    count: usize,
) -> __m512i {
    for _ in 0..count {
        let (mut hashed, _) = group::<ROUNDS, SEAL, CACHED, 4, false, false>(run, cursor);
        hashed[0] = _mm512_xor_si512(hashed[0], state);
        state = step::<4>(run, &hashed);
    }
    state
}
}

kernel! {
/// As [`chunks`] for sealing at least one chunk, the first group of which the hash is still to be done being `hashed`.
fn chunks_piped<const ROUNDS: usize, const CACHED: bool, const G: usize>(
    run: &Run<'_>,
    cursor: &mut Cursor,
    hashed: &[__m512i; G],
    count: usize,
) -> __m512i {
    let built;
    let powers = match run.hot {
        Some(hot) => &hot.powers,
        None => {
            built = chunk_powers(run);
            &built
        }
    };
    let chunks = Chunks {
        at: cursor.at,
        rows: cursor.rows.wrapping_add(64 * cursor.row),
        count,
        base: cursor.base,
        swap: run.swap,
        powers,
    };
    cursor.at = cursor.at.wrapping_add(256 * count);
    cursor.row += 4 * count;
    let keys = &run.round_keys;
    // Zero blocks in front add nothing, so that the first group passes for a chunk.
    let mut pending = [_mm512_setzero_si512(); 4];
    for i in 0..G {
        pending[4 - G + i] = hashed[i];
    }
    match (ROUNDS, CACHED) {
        // SAFETY: the chunks lie within the text, which the packet borrows, and there are rows for them.
        (10, false) => unsafe { seal_whole_10(&chunks, keys, &mut pending) },
        // SAFETY: as above.
        (10, true) => unsafe { seal_cached_10(&chunks, keys, &mut pending) },
        // SAFETY: as above.
        (12, false) => unsafe { seal_whole_12(&chunks, keys, &mut pending) },
        // SAFETY: as above.
        (12, true) => unsafe { seal_cached_12(&chunks, keys, &mut pending) },
        // SAFETY: as above.
        (_, false) => unsafe { seal_whole_14(&chunks, keys, &mut pending) },
        // SAFETY: as above.
        (_, true) => unsafe { seal_cached_14(&chunks, keys, &mut pending) },
    }
    step::<4>(run, &pending)
}
}

kernel! {
/// One packet of five vectors and more, of which the first `G` (1 to 4) go ahead of the chunks of four.
fn long<const ROUNDS: usize, const SEAL: bool, const PIPED: bool, const CACHED: bool, const G: usize>(
    run: &Run<'_>,
    cursor: &mut Cursor,
    packet: &Packet<'_>,
    shape: Shape,
) -> __m128i {
    let (hashed, first) = group::<ROUNDS, SEAL, CACHED, G, true, false>(run, cursor);
    let count = (shape.vectors - G) / 4 - 1;
    let state = if PIPED {
        chunks_piped::<ROUNDS, CACHED, G>(run, cursor, &hashed, count)
    } else {
        chunks::<ROUNDS, SEAL, CACHED>(run, cursor, step::<G>(run, &hashed), count)
    };
    let (mut hashed, _) = group::<ROUNDS, SEAL, CACHED, 4, false, true>(run, cursor);
    hashed[0] = _mm512_xor_si512(hashed[0], state);
    let sum = finish::<4>(run, &hashed, packet, shape);
    _mm_xor_si128(sum, _mm512_castsi512_si128(first))
}
}

/// The shape of a text.
#[derive(Clone, Copy)]
struct Shape {
    text_len: usize,
    /// Vectors, lane 0 of the first included.
    vectors: usize,
    /// Bytes of the last vector, 1 to 64.
    rest: usize,
}

impl Shape {
    fn new(packet: &Packet<'_>) -> Self {
        let text_len = packet.text.len() - ICV_LEN;
        let span = text_len + 16;
        let vectors = span.div_ceil(64);
        Self {
            text_len,
            vectors,
            rest: span - 64 * (vectors - 1),
        }
    }

    /// Blocks in the last vector, 1 to 4.
    fn lanes(self) -> usize {
        self.rest.div_ceil(16)
    }
}

kernel! {
fn begin(run: &Run<'_>, packet: &mut Packet<'_>, shape: Shape) -> Cursor {
    #[expect(clippy::cast_possible_truncation, reason = "at most 64")]
    let last = _bzhi_u64(!0, shape.rest as u32);
    let first = if shape.vectors == 1 { last } else { !0 } & !0xffff;
    // SAFETY: the mask leaves the twelve bytes of the nonce.
    let nonce = unsafe { _mm_maskz_loadu_epi32(0b0111, packet.nonce.as_ptr().cast()) };
    // SAFETY: 16 bytes are borrowed.
    let aad = unsafe { _mm_loadu_si128(packet.aad.as_ptr().cast()) };
    Cursor {
        at: packet.text.as_mut_ptr().wrapping_sub(16),
        row: 0,
        first,
        last,
        rows: COUNTERS.0.as_ptr().cast(),
        base: _mm512_xor_si512(_mm512_broadcast_i32x4(nonce), run.round_keys[0]),
        aad: _mm512_zextsi128_si512(aad),
    }
}
}

kernel! {
/// Seals or opens a text of `Class::Short` in place, all but the ICV, which it returns as it should be.
pub(super) fn crypt_short<const ROUNDS: usize, const SEAL: bool>(run: &Run<'_>, packet: &mut Packet<'_>) -> __m128i {
    let shape = Shape::new(packet);
    let cursor = &mut begin(run, packet, shape);
    match shape.vectors {
        1 => short::<ROUNDS, SEAL, 1>(run, cursor, packet, shape),
        2 => short::<ROUNDS, SEAL, 2>(run, cursor, packet, shape),
        3 => short::<ROUNDS, SEAL, 3>(run, cursor, packet, shape),
        _ => short::<ROUNDS, SEAL, 4>(run, cursor, packet, shape),
    }
}
}

kernel! {
/// As [`crypt_short`] for a text of five vectors and more. `CACHED`: the run is hot, and its rows reach for this text.
pub(super) fn crypt_long<const ROUNDS: usize, const SEAL: bool, const PIPED: bool, const CACHED: bool>(
    run: &Run<'_>,
    packet: &mut Packet<'_>,
) -> __m128i {
    let shape = Shape::new(packet);
    let cursor = &mut begin(run, packet, shape);
    if let (true, Some(hot)) = (CACHED, run.hot) {
        cursor.base = _mm512_aesenc_epi128(cursor.base, run.round_keys[1]);
        cursor.rows = hot.rows.as_ptr().cast();
    }
    match shape.vectors & 3 {
        1 => long::<ROUNDS, SEAL, PIPED, CACHED, 1>(run, cursor, packet, shape),
        2 => long::<ROUNDS, SEAL, PIPED, CACHED, 2>(run, cursor, packet, shape),
        3 => long::<ROUNDS, SEAL, PIPED, CACHED, 3>(run, cursor, packet, shape),
        _ => long::<ROUNDS, SEAL, PIPED, CACHED, 4>(run, cursor, packet, shape),
    }
}
}

kernel! {
/// Prepares a run whose longest text has `longest` bytes, ICV included.
pub(super) fn heat<'h>(key: &GcmKey, longest: usize, room: &'h mut MaybeUninit<Hot>) -> &'h Hot {
    let run = begin_run::<10>(key, None);
    let len = longest.div_ceil(64).min(ROWS);
    let at = room.as_mut_ptr();
    let zero = _mm512_setzero_si512();
    let nothing = _mm512_aesenc_epi128(run.round_keys[0], zero);
    for row in 0..len {
        // SAFETY: `row` is below `ROWS`.
        let counters = unsafe { _mm512_load_si512(COUNTERS.0.as_ptr().wrapping_add(row).cast()) };
        let state = _mm512_aesenc_epi128(_mm512_xor_si512(run.round_keys[0], counters), zero);
        let change = _mm512_xor_si512(state, nothing);
        // SAFETY: within the room, which is borrowed for writing.
        let to = unsafe { &raw mut (*at).rows[row] };
        // SAFETY: as above.
        unsafe { to.write(MaybeUninit::new(change)) };
    }
    // SAFETY: as above.
    let to = unsafe { &raw mut (*at).len };
    // SAFETY: as above.
    unsafe { to.write(len) };
    // SAFETY: as above.
    let to = unsafe { &raw mut (*at).powers };
    let powers = chunk_powers(&run);
    // SAFETY: as above.
    unsafe { to.write(powers) };
    // SAFETY: powers and length are written, and rows may be uninitialised.
    unsafe { room.assume_init_ref() }
}
}
