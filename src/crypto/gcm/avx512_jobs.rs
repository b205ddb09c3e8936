//! Runs of jobs with one key, for the kernels of [`super::avx512`].
//!
//! A run is cut where short texts and long ones meet. Each piece is a loop of its own that is compiled by itself, so that
//! round keys stay in registers from packet to packet and what long texts keep there is no burden to the short ones.

use std::arch::x86_64::{__m128i, _mm_setzero_si128, _mm_testz_si128, _mm_xor_si128};
use std::mem::{self, MaybeUninit};

use super::avx512::{HasAvx512, Run, begin_run, kernel};
use super::avx512_long::{COLD, FAR, HOT, Hot, ROWS, crypt_long, heat};
use super::avx512_short::{MOST_IN_STEP, crypt_four, crypt_one};
use super::key::{GcmKey, Rounds, load_block, store_block};
use super::wipe;
use crate::crypto::aead::{ICV_LEN, Job, Packet};

/// Packets of one key from which on it pays to prepare what they share.
const HOT_RUN: usize = 4;

/// Which loop a text goes through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Up to four vectors, or no text at all: no room for an ICV.
    Short,
    /// Five to eight vectors: no chunks between both ends.
    Middle,
    /// Nine vectors and more.
    Long,
    /// Longer than the tables of counters.
    Far,
}

impl Class {
    /// The class of a text of `len` bytes, ICV included: as many bytes as its vectors hold.
    #[inline]
    fn of(len: usize) -> Self {
        if len <= 256 {
            Self::Short
        } else if len <= 512 {
            Self::Middle
        } else if len <= 64 * ROWS {
            Self::Long
        } else {
            Self::Far
        }
    }
}

/// Seals or opens packets of one key, the longest text of which has `longest` bytes, ICV included.
pub(super) fn run<'a, J: Job<'a>>(_: HasAvx512, key: &GcmKey, jobs: &mut [J], longest: usize) {
    match key.rounds {
        // SAFETY: `HasAvx512` is made only where the processor has every feature that the kernels name.
        Rounds::Ten => unsafe { run_rounds::<J, 10>(key, jobs, longest) },
        // SAFETY: as above.
        Rounds::Twelve => unsafe { run_rounds::<J, 12>(key, jobs, longest) },
        // SAFETY: as above.
        Rounds::Fourteen => unsafe { run_rounds::<J, 14>(key, jobs, longest) },
    }
}

kernel! {
fn run_rounds<'a, J: Job<'a>, const ROUNDS: usize>(key: &GcmKey, jobs: &mut [J], longest: usize) {
    if Class::of(longest) == Class::Short {
        return short_run::<J, ROUNDS>(key, jobs);
    }
    let mut room = MaybeUninit::uninit();
    let hot = (jobs.len() >= HOT_RUN).then(|| heat(key, longest, &mut room));
    for piece in jobs.chunk_by_mut(|a, b| Class::of(a.len()) == Class::of(b.len())) {
        let class = piece.first().map_or(Class::Short, |job| Class::of(job.len()));
        match class {
            Class::Short => short_run::<J, ROUNDS>(key, piece),
            // SAFETY: the run is hot up to its longest text, or as far as the first two of these classes go.
            Class::Middle if hot.is_some() => unsafe { long_run::<J, ROUNDS, HOT, false>(key, hot, piece) },
            // SAFETY: as above.
            Class::Long if hot.is_some() => unsafe { long_run::<J, ROUNDS, HOT, true>(key, hot, piece) },
            // SAFETY: as above.
            Class::Middle => unsafe { long_run::<J, ROUNDS, COLD, false>(key, None, piece) },
            // SAFETY: as above.
            Class::Long => unsafe { long_run::<J, ROUNDS, COLD, true>(key, None, piece) },
            // SAFETY: as above.
            Class::Far => unsafe { long_run::<J, ROUNDS, FAR, true>(key, None, piece) },
        }
    }
}
}

kernel! {
fn short_run<'a, J: Job<'a>, const ROUNDS: usize>(key: &GcmKey, jobs: &mut [J]) {
    if jobs.len() < 4 {
        few_short::<J, ROUNDS>(key, jobs);
    } else {
        many_short::<J, ROUNDS>(key, jobs);
    }
}
}

kernel! { never inline:
fn few_short<'a, J: Job<'a>, const ROUNDS: usize>(key: &GcmKey, jobs: &mut [J]) {
    let run = &begin_run::<ROUNDS>(key);
    for job in jobs {
        one_short::<J, ROUNDS>(run, job);
    }
}
}

kernel! { never inline:
fn many_short<'a, J: Job<'a>, const ROUNDS: usize>(key: &GcmKey, jobs: &mut [J]) {
    let run = &begin_run::<ROUNDS>(key);
    let mut rest = jobs;
    while let Some(first) = rest.first() {
        let vectors = first.len().div_ceil(64);
        let together = if are_four_alike(rest, vectors) {
            4
        } else {
            let alone = |job: &&J| job.len() > 64 * MOST_IN_STEP;
            rest.iter().take_while(alone).count().max(1)
        };
        let (now, after) = mem::take(&mut rest).split_at_mut(together);
        rest = after;
        if vectors <= MOST_IN_STEP && let [a, b, c, d] = now {
            four_short::<J, ROUNDS>(run, [a, b, c, d], vectors);
        } else {
            few_short::<J, ROUNDS>(key, now);
        }
    }
}
}

kernel! {
fn four_short<'a, J: Job<'a>, const ROUNDS: usize>(run: &Run<'_>, mut jobs: [&mut J; 4], vectors: usize) {
    let mut packets = jobs.each_mut().map(|job| job.packet());
    let received = packets.each_ref().map(|packet| received::<J>(packet));
    let icvs = if J::SEAL {
        crypt_four::<ROUNDS, true>(run, &mut packets, vectors)
    } else {
        crypt_four::<ROUNDS, false>(run, &mut packets, vectors)
    };
    for ((job, icv), received) in jobs.into_iter().zip(icvs).zip(received) {
        settle(job, icv, received);
    }
}
}

kernel! {
fn one_short<'a, J: Job<'a>, const ROUNDS: usize>(run: &Run<'_>, job: &mut J) {
    if job.len() < ICV_LEN {
        return job.conclude(false);
    }
    let mut packet = job.packet();
    let received = received::<J>(&packet);
    let icv = if J::SEAL {
        crypt_one::<ROUNDS, true>(run, &mut packet)
    } else {
        crypt_one::<ROUNDS, false>(run, &mut packet)
    };
    settle(job, icv, received);
}
}

/// Whether the first four jobs have texts of `vectors` vectors, and go in step.
#[inline]
fn are_four_alike<'a, J: Job<'a>>(jobs: &[J], vectors: usize) -> bool {
    let fits = |job: &J| job.len() >= ICV_LEN && job.len().div_ceil(64) == vectors;
    vectors <= MOST_IN_STEP
        && matches!(jobs, [a, b, c, d, ..] if fits(a) && fits(b) && fits(c) && fits(d))
}

kernel! { never inline:
/// Texts of five vectors and more.
///
/// # Safety
/// As for [`crypt_long`].
unsafe fn long_run<'a, J: Job<'a>, const ROUNDS: usize, const WAY: u8, const CHUNKED: bool>(
    key: &GcmKey,
    hot: Option<&Hot>,
    jobs: &mut [J],
) {
    let run = &begin_run::<ROUNDS>(key);
    for job in jobs {
        let mut packet = job.packet();
        let received = received::<J>(&packet);
        let icv = if J::SEAL {
            // SAFETY: the caller's promise.
            unsafe { crypt_long::<ROUNDS, true, WAY, CHUNKED>(run, hot, &mut packet) }
        } else {
            // SAFETY: the caller's promise.
            unsafe { crypt_long::<ROUNDS, false, WAY, CHUNKED>(run, hot, &mut packet) }
        };
        settle(job, icv, received);
    }
}
}

kernel! {
/// The ICV that came with a packet to open. To be called before any store: one that it overlapped, masked or not, would
/// hold it up.
fn received<'a, J: Job<'a>>(packet: &Packet<'_>) -> __m128i {
    match packet.text.last_chunk() {
        Some(icv) if !J::SEAL => load_block(icv),
        _ => _mm_setzero_si128(),
    }
}
}

kernel! {
/// Ends a job whose text is done: writes the ICV, or holds it against the one received.
fn settle<'a, J: Job<'a>>(job: &mut J, icv: __m128i, received: __m128i) {
    if J::SEAL {
        if let Some(place) = job.packet().text.last_chunk_mut() {
            store_block(place, icv);
        }
        return job.conclude(true);
    }
    let difference = _mm_xor_si128(icv, received);
    let authentic = _mm_testz_si128(difference, difference) == 1;
    if !authentic && let Some((text, _)) = job.packet().text.split_last_chunk_mut::<ICV_LEN>() {
        wipe(text);
    }
    job.conclude(authentic);
}
}
