//! AES-GCM over vectors of one block or of two: this file is compiled twice, once below `aesni` and once below `avx2`,
//! which give it [`Vector`] and what can be done with one. Up to eight vectors go through AES together.
//!
//! A packet is seen as vectors that begin 16 bytes *before* its text. The first lane of the first vector is the counter
//! block J0 for AES and the AAD for GHASH, so that neither costs a pass of its own.
//!
//! A text of up to eight vectors is one group: each block times its own power of the hash key. A longer one begins with
//! a group of one to eight vectors and goes on in chunks of eight, each lane a Horner chain of its own, and ends with a
//! full group. What is summed is reduced once a group, and lanes are added up once a packet.
//!
//! There are no masked loads and stores here. A last block that is not full is read and written whole, at most 15 bytes
//! into the ICV behind it, which is written after it: the new one when sealing, the one received when opening.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over a constant number of vectors, which the compiler unrolls into registers"
)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::ptr;

use super::super::counters::{self, Counter};
use super::super::key::{GcmKey, POLY, POWERS, Rounds, load_block, store_block};
use super::super::{REVERSED, wipe};
use super::*;
use crate::crypto::aead::{ICV_LEN, Job, NONCE_LEN, Packet};

/// Bytes of a vector.
const WIDTH: usize = 16 * LANES;
/// Vectors of a full group.
const FULL: usize = 8;
/// Blocks of a full group.
const BLOCKS: usize = FULL * LANES;

/// A window over the middle keeps as many bytes as it has of the first half.
pub(super) static KEEP: [u8; 64] = {
    let mut bytes = [0; 64];
    let mut at = 0;
    while at < 32 {
        bytes[at] = 0xff;
        at += 1;
    }
    bytes
};

const _: () = assert!(
    BLOCKS < POWERS,
    "a full group and the length block have powers"
);

/// Where a packet stands.
#[derive(Clone, Copy)]
struct Cursor {
    /// The vector to come, 16 bytes before the text for the first.
    at: *mut u8,
    /// Number of its first block.
    block: usize,
    /// Nonce and first round key.
    base: Vector,
    /// The AAD, in every lane.
    aad: Vector,
    /// Bytes in the last vector, at least one.
    rest: usize,
}

impl Cursor {
    /// Blocks in the last vector.
    fn lanes(&self) -> usize {
        self.rest.div_ceil(16)
    }
}

/// Sums of products, not reduced.
#[derive(Clone, Copy)]
struct Sums {
    high: Vector,
    middle: Vector,
    low: Vector,
}

/// The same key. The compiler does not know that it is, and so loads what it needs when it needs it: else it would copy
/// the whole key to the stack, ahead of a loop that may run once.
#[inline]
fn in_place(key: &GcmKey) -> &GcmKey {
    let mut at = ptr::from_ref(key);
    #[expect(
        clippy::pointers_in_nomem_asm_block,
        reason = "nothing is read or written"
    )]
    // SAFETY: no instruction, which leaves the pointer as it is.
    unsafe {
        asm!("/* {} */", inout(reg) at, options(nomem, nostack, preserves_flags))
    };
    // SAFETY: the pointer of the reference given, with its lifetime.
    unsafe { &*at }
}

kernel! {
fn no_sums() -> Sums {
    Sums { high: zero(), middle: zero(), low: zero() }
}
}

kernel! {
fn multiply_add(sums: &mut Sums, blocks: Vector, power: Vector) {
    let middle = xor(multiply::<0x01>(blocks, power), multiply::<0x10>(blocks, power));
    sums.high = xor(sums.high, multiply::<0x11>(blocks, power));
    sums.middle = xor(sums.middle, middle);
    sums.low = xor(sums.low, multiply::<0x00>(blocks, power));
}
}

kernel! {
fn reduce(sums: Sums) -> Vector {
    let middle = xor(sums.middle, fold(sums.low));
    xor(sums.high, fold(middle))
}
}

kernel! {
/// `a * x^-64`.
fn fold(a: Vector) -> Vector {
    xor(swap_halves(a), multiply::<0x00>(a, broadcast_half(POLY.cast_signed())))
}
}

kernel! {
/// Counter blocks, the first round key added.
fn start<const G: usize>(cursor: &Cursor) -> [Vector; G] {
    let far;
    let rows: &[Counter; BLOCKS] = match counters::near(cursor.block) {
        Some(near) => near,
        None => {
            far = counters::far(cursor.block);
            &far
        }
    };
    let mut state = [cursor.base; G];
    for i in 0..G {
        state[i] = xor(state[i], load_counters(rows, i));
    }
    state
}
}

kernel! {
fn round<const G: usize>(key: &GcmKey, number: usize, state: &mut [Vector; G]) {
    let round_key = broadcast(&key.round_keys[number]);
    for i in 0..G {
        state[i] = encrypt_round(state[i], round_key);
    }
}
}

kernel! {
/// `G` vectors through AES, in place. Returns what GHASH takes, and the first vector as AES left it.
/// `FIRST`: the group begins the packet. `LAST`: it ends it.
fn group<const ROUNDS: usize, const SEAL: bool, const G: usize, const FIRST: bool, const LAST: bool>(
    key: &GcmKey,
    cursor: &mut Cursor,
) -> ([Vector; G], Vector) {
    let mut state = start::<G>(cursor);
    for number in 1..ROUNDS {
        round(key, number, &mut state);
    }
    let mut hashed = state;
    let last_key = broadcast(&key.round_keys[ROUNDS]);
    for i in 0..G {
        let at = cursor.at.wrapping_add(WIDTH * i);
        let (first, last) = (FIRST && i == 0, LAST && i == G - 1);
        let data = if first {
            load_first(at)
        } else if last {
            load_last(at, cursor.lanes())
        } else {
            load(at)
        };
        state[i] = encrypt_last_round(state[i], xor(last_key, data));
        if first {
            store_first(at, state[i]);
        } else if last {
            store_last(at, state[i], cursor.lanes());
        } else {
            store(at, state[i]);
        }
        hashed[i] = if SEAL { state[i] } else { data };
        if first {
            hashed[i] = with_first_lane(hashed[i], cursor.aad);
        }
        if last {
            hashed[i] = keep_bytes(hashed[i], cursor.rest);
        }
        hashed[i] = reverse_bytes(hashed[i]);
    }
    cursor.at = cursor.at.wrapping_add(WIDTH * G);
    cursor.block += LANES * G;
    (hashed, state[0])
}
}

kernel! {
/// A Horner step over `G` vectors: every lane times the power that takes it `G` vectors on.
fn step<const G: usize>(key: &GcmKey, blocks: &[Vector; G]) -> Vector {
    let mut sums = no_sums();
    for i in 0..G {
        step_vector(key, &mut sums, blocks[i], G - i);
    }
    reduce(sums)
}
}

kernel! {
/// One vector of a Horner step, `vectors` before where the step ends.
fn step_vector(key: &GcmKey, sums: &mut Sums, blocks: Vector, vectors: usize) {
    let at = POWERS - LANES * vectors;
    multiply_add(sums, blocks, broadcast(&key.powers[at]));
}
}

kernel! {
/// The end of GHASH: `G` vectors of which the last holds `lanes` blocks, and then the length block.
fn finish<const G: usize>(key: &GcmKey, blocks: &[Vector; G], lanes: usize, packet: &Packet<'_>) -> __m128i {
    let aad_bits = (packet.aad.len() as i64) << 3;
    let text_bits = ((packet.text.len() - ICV_LEN) as i64) << 3;
    let mut sums = no_sums();
    let last = POWERS - 1;
    let lengths = first_lane(_mm_set_epi64x(aad_bits, text_bits));
    multiply_add(&mut sums, lengths, load_powers(key, last));
    let first = last - LANES * (G - 1) - lanes;
    for i in 0..G {
        let at = first + LANES * i;
        multiply_add(&mut sums, blocks[i], load_powers(key, at));
    }
    reverse_block(add_lanes(reduce(sums)))
}
}

kernel! {
/// One packet of `G` vectors: its ICV.
fn short<const ROUNDS: usize, const SEAL: bool, const G: usize>(
    key: &GcmKey,
    mut cursor: Cursor,
    packet: &Packet<'_>,
) -> __m128i {
    let (hashed, first) = group::<ROUNDS, SEAL, G, true, true>(key, &mut cursor);
    let sum = finish::<G>(key, &hashed, cursor.lanes(), packet);
    _mm_xor_si128(sum, lane_of_first(first))
}
}

kernel! {
never inline:
/// Seals chunks. `pending` is what GHASH takes of the vectors before them, and on return that of the last chunk.
fn seal_chunks<const ROUNDS: usize>(key: &GcmKey, cursor: &mut Cursor, pending: &mut [Vector; FULL], count: usize) {
    for _ in 0..count {
        let key = in_place(key);
        let mut state = start::<FULL>(cursor);
        let mut sums = no_sums();
        for i in 0..FULL {
            round(key, i + 1, &mut state);
            step_vector(key, &mut sums, pending[i], FULL - i);
        }
        let hash = reduce(sums);
        for number in FULL + 1..ROUNDS {
            round(key, number, &mut state);
        }
        let last_key = broadcast(&key.round_keys[ROUNDS]);
        for i in 0..FULL {
            let at = cursor.at.wrapping_add(WIDTH * i);
            let out = encrypt_last_round(state[i], xor(last_key, load(at)));
            store(at, out);
            pending[i] = reverse_bytes(out);
        }
        pending[0] = xor(pending[0], hash);
        cursor.at = cursor.at.wrapping_add(WIDTH * FULL);
        cursor.block += BLOCKS;
    }
}
}

kernel! {
never inline:
/// Opens chunks. `hash` is the state of GHASH before them, and returned is that behind them.
fn open_chunks<const ROUNDS: usize>(key: &GcmKey, cursor: &mut Cursor, mut hash: Vector, count: usize) -> Vector {
    for _ in 0..count {
        let key = in_place(key);
        let mut state = start::<FULL>(cursor);
        let mut sums = no_sums();
        for i in 0..FULL {
            round(key, i + 1, &mut state);
            let mut block = reverse_bytes(load(cursor.at.wrapping_add(WIDTH * i)));
            if i == 0 {
                block = xor(block, hash);
            }
            step_vector(key, &mut sums, block, FULL - i);
        }
        hash = reduce(sums);
        for number in FULL + 1..ROUNDS {
            round(key, number, &mut state);
        }
        let last_key = broadcast(&key.round_keys[ROUNDS]);
        for i in 0..FULL {
            let at = cursor.at.wrapping_add(WIDTH * i);
            store(at, encrypt_last_round(state[i], xor(last_key, load(at))));
        }
        cursor.at = cursor.at.wrapping_add(WIDTH * FULL);
        cursor.block += BLOCKS;
    }
    hash
}
}

kernel! {
/// One packet of nine vectors and more, of which the first `G` go ahead of the chunks: its ICV.
fn long<const ROUNDS: usize, const SEAL: bool, const G: usize>(
    key: &GcmKey,
    mut cursor: Cursor,
    packet: &Packet<'_>,
    vectors: usize,
) -> __m128i {
    let (hashed, first) = group::<ROUNDS, SEAL, G, true, false>(key, &mut cursor);
    let count = (vectors - G) / FULL - 1;
    let hash = if SEAL && count > 0 {
        // Zero blocks in front add nothing, so that the first group passes for a chunk.
        let mut pending = [zero(); FULL];
        for i in 0..G {
            pending[FULL - G + i] = hashed[i];
        }
        seal_chunks::<ROUNDS>(key, &mut cursor, &mut pending, count);
        step(key, &pending)
    } else if SEAL || count == 0 {
        step(key, &hashed)
    } else {
        open_chunks::<ROUNDS>(key, &mut cursor, step(key, &hashed), count)
    };
    let sum = end::<ROUNDS, SEAL>(key, &mut cursor, packet, hash);
    _mm_xor_si128(sum, lane_of_first(first))
}
}

kernel! {
never inline:
/// The last group of a long packet, and the end of GHASH.
fn end<const ROUNDS: usize, const SEAL: bool>(
    key: &GcmKey,
    cursor: &mut Cursor,
    packet: &Packet<'_>,
    hash: Vector,
) -> __m128i {
    let (mut hashed, _) = group::<ROUNDS, SEAL, FULL, false, true>(key, cursor);
    hashed[0] = xor(hashed[0], hash);
    finish(key, &hashed, cursor.lanes(), packet)
}
}

kernel! {
/// Before the first vector of a packet of `vectors`.
fn begin(key: &GcmKey, packet: &mut Packet<'_>, vectors: usize) -> Cursor {
    let nonce = broadcast_block(nonce_block(packet.nonce));
    Cursor {
        at: packet.text.as_mut_ptr().wrapping_sub(16),
        block: 0,
        base: xor(nonce, broadcast(&key.round_keys[0])),
        aad: broadcast(packet.aad.block()),
        rest: packet.text.len() - WIDTH * (vectors - 1),
    }
}
}

kernel! {
/// Seals or opens the text in place and returns the ICV as it should be. What lies in the ICV's place is spoilt.
fn crypt<const ROUNDS: usize, const SEAL: bool>(key: &GcmKey, packet: &mut Packet<'_>) -> __m128i {
    let key = in_place(key);
    // The block before the text counts, the ICV does not.
    let vectors = packet.text.len().div_ceil(WIDTH);
    if vectors > FULL {
        return crypt_long::<ROUNDS, SEAL>(key, packet, vectors);
    }
    let cursor = begin(key, packet, vectors);
    match vectors {
        1 => short::<ROUNDS, SEAL, 1>(key, cursor, packet),
        2 => short::<ROUNDS, SEAL, 2>(key, cursor, packet),
        3 => short::<ROUNDS, SEAL, 3>(key, cursor, packet),
        4 => short::<ROUNDS, SEAL, 4>(key, cursor, packet),
        5 => short::<ROUNDS, SEAL, 5>(key, cursor, packet),
        6 => short::<ROUNDS, SEAL, 6>(key, cursor, packet),
        7 => short::<ROUNDS, SEAL, 7>(key, cursor, packet),
        _ => short::<ROUNDS, SEAL, 8>(key, cursor, packet),
    }
}
}

kernel! {
never inline:
/// The same for more vectors than a full group has.
fn crypt_long<const ROUNDS: usize, const SEAL: bool>(key: &GcmKey, packet: &mut Packet<'_>, vectors: usize) -> __m128i {
    let cursor = begin(key, packet, vectors);
    match vectors % FULL {
        1 => long::<ROUNDS, SEAL, 1>(key, cursor, packet, vectors),
        2 => long::<ROUNDS, SEAL, 2>(key, cursor, packet, vectors),
        3 => long::<ROUNDS, SEAL, 3>(key, cursor, packet, vectors),
        4 => long::<ROUNDS, SEAL, 4>(key, cursor, packet, vectors),
        5 => long::<ROUNDS, SEAL, 5>(key, cursor, packet, vectors),
        6 => long::<ROUNDS, SEAL, 6>(key, cursor, packet, vectors),
        7 => long::<ROUNDS, SEAL, 7>(key, cursor, packet, vectors),
        _ => long::<ROUNDS, SEAL, 8>(key, cursor, packet, vectors),
    }
}
}

/// Seals or opens packets of one key.
pub(in crate::crypto) fn run<'a, J: Job<'a>>(_: Proof, key: &GcmKey, jobs: &mut [J]) {
    match key.rounds {
        // SAFETY: the proof is made only where the processor has every feature that the kernels name.
        Rounds::Ten => unsafe { run_rounds::<J, 10>(key, jobs) },
        // SAFETY: as above.
        Rounds::Twelve => unsafe { run_rounds::<J, 12>(key, jobs) },
        // SAFETY: as above.
        Rounds::Fourteen => unsafe { run_rounds::<J, 14>(key, jobs) },
    }
}

kernel! {
fn run_rounds<'a, J: Job<'a>, const ROUNDS: usize>(key: &GcmKey, jobs: &mut [J]) {
    for job in jobs {
        let mut packet = job.packet();
        let done = if J::SEAL {
            seal::<ROUNDS>(key, &mut packet)
        } else {
            open::<ROUNDS>(key, &mut packet)
        };
        job.conclude(done);
    }
}
}

kernel! {
fn seal<const ROUNDS: usize>(key: &GcmKey, packet: &mut Packet<'_>) -> bool {
    if packet.text.len() < ICV_LEN {
        return false;
    }
    let icv = crypt::<ROUNDS, true>(key, packet);
    if let Some(place) = packet.text.last_chunk_mut() {
        store_block(place, icv);
    }
    true
}
}

kernel! {
fn open<const ROUNDS: usize>(key: &GcmKey, packet: &mut Packet<'_>) -> bool {
    let Some(received) = packet.text.last_chunk() else {
        return false;
    };
    let received = load_block(received);
    let icv = crypt::<ROUNDS, false>(key, packet);
    let difference = _mm_xor_si128(icv, received);
    let authentic = _mm_testz_si128(difference, difference) == 1;
    if let Some((text, place)) = packet.text.split_last_chunk_mut() {
        store_block(place, received);
        if !authentic {
            wipe(text);
        }
    }
    authentic
}
}

kernel! {
/// The nonce and four zero bytes.
fn nonce_block(nonce: &[u8; NONCE_LEN]) -> __m128i {
    // SAFETY: the first 8 of 12 borrowed bytes, and the load wants no alignment.
    let front = unsafe { _mm_loadl_epi64(nonce.as_ptr().cast()) };
    let [.., a, b, c, d] = *nonce;
    _mm_insert_epi32::<2>(front, i32::from_le_bytes([a, b, c, d]))
}
}

kernel! {
fn reverse_block(block: __m128i) -> __m128i {
    _mm_shuffle_epi8(block, load_block(&REVERSED))
}
}
