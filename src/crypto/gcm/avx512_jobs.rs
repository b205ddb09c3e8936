//! Runs of jobs with one key, for the kernels of [`super::avx512`].
//!
//! Each class of texts has a loop of its own that is compiled by itself, so that round keys stay in registers from packet
//! to packet and what long texts keep there is no burden to the short ones. A run of several classes is sorted first.

use std::arch::asm;
use std::arch::x86_64::{__m128i, _mm_setzero_si128, _mm_testz_si128, _mm_xor_si128};
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;

use arrayvec::ArrayVec;

use super::avx512::{HasAvx512, begin_run, kernel};
use super::avx512_fours::{MOST_IN_STEP, crypt_fours};
use super::avx512_long::{COLD, FAR, HOT, Hot, ROWS, crypt_long, heat};
use super::avx512_short::crypt_one;
use super::key::{GcmKey, Rounds, load_block, store_block};
use crate::crypto::aead::{ICV_LEN, Job, Packet};

/// Packets of one key from which on it pays to prepare what they share.
const HOT_RUN: usize = 4;

/// Jobs that are looked at together.
const SORTED: usize = 64;

/// Which loop a text goes through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// No text at all: no room for an ICV.
    Refused,
    /// One vector.
    One,
    Two,
    Three,
    Four,
    /// Five to eight vectors: no chunks between both ends.
    Middle,
    /// Nine vectors and more.
    Long,
    /// Longer than the tables of counters.
    Far,
}

impl Class {
    const ALL: [Self; 8] = [
        Self::Refused,
        Self::One,
        Self::Two,
        Self::Three,
        Self::Four,
        Self::Middle,
        Self::Long,
        Self::Far,
    ];

    /// The class of a text of `len` bytes, ICV included: as many bytes as its vectors hold.
    #[inline]
    fn of(len: usize) -> Self {
        match len.div_ceil(64) {
            _ if len < ICV_LEN => Self::Refused,
            ..=1 => Self::One,
            2 => Self::Two,
            3 => Self::Three,
            4 => Self::Four,
            5..=8 => Self::Middle,
            9..=ROWS => Self::Long,
            _ => Self::Far,
        }
    }
}

/// Seals or opens packets of one key, whose texts have `lens` bytes, ICV included.
pub(super) fn run<'a, J: Job<'a>>(
    _: HasAvx512,
    key: &GcmKey,
    jobs: &mut [J],
    lens: RangeInclusive<usize>,
) {
    match key.rounds {
        // SAFETY: `HasAvx512` is made only where the processor has every feature that the kernels name.
        Rounds::Ten => unsafe { run_rounds::<J, 10>(key, jobs, lens) },
        // SAFETY: as above.
        Rounds::Twelve => unsafe { run_rounds::<J, 12>(key, jobs, lens) },
        // SAFETY: as above.
        Rounds::Fourteen => unsafe { run_rounds::<J, 14>(key, jobs, lens) },
    }
}

kernel! {
fn run_rounds<'a, J: Job<'a>, const ROUNDS: usize>(key: &GcmKey, jobs: &mut [J], lens: RangeInclusive<usize>) {
    if let [job] = jobs {
        let class = Class::of(*lens.end());
        return run_class::<J, ROUNDS>(key, None, &mut [job], class);
    }
    run_many::<J, ROUNDS>(key, jobs, lens);
}
}

kernel! { never inline:
fn run_many<'a, J: Job<'a>, const ROUNDS: usize>(key: &GcmKey, jobs: &mut [J], lens: RangeInclusive<usize>) {
    let (least, most) = (Class::of(*lens.start()), Class::of(*lens.end()));
    let mut room = MaybeUninit::uninit();
    let is_hot = jobs.len() >= HOT_RUN && most as usize > Class::Four as usize;
    let hot = is_hot.then(|| heat(key, *lens.end(), &mut room));
    for jobs in jobs.chunks_mut(SORTED) {
        if least == most {
            // Not collected: what is collected is then copied.
            let mut all = ArrayVec::<&mut J, SORTED>::new();
            for job in jobs {
                let _ = all.try_push(job);
            }
            run_class::<J, ROUNDS>(key, hot, &mut all, most);
        } else {
            sort::<J, ROUNDS>(key, hot, jobs);
        }
    }
}
}

kernel! { never inline:
/// Does up to `SORTED` jobs class by class. `hot` reaches for the longest text of them, or of class `Long`.
fn sort<'a, J: Job<'a>, const ROUNDS: usize>(key: &GcmKey, hot: Option<&Hot>, jobs: &mut [J]) {
    let mut classes: [ArrayVec<&mut J, SORTED>; Class::ALL.len()] = Default::default();
    for job in jobs {
        // There is room for all of them in each.
        let _ = classes[Class::of(job.len()) as usize].try_push(job);
    }
    for (class, jobs) in Class::ALL.into_iter().zip(&mut classes) {
        if !jobs.is_empty() {
            run_class::<J, ROUNDS>(key, hot, jobs, class);
        }
    }
}
}

kernel! {
/// Does jobs of one class. `hot` reaches for the longest text of them, or of class `Long`.
fn run_class<'a, J: Job<'a>, const ROUNDS: usize>(key: &GcmKey, hot: Option<&Hot>, jobs: &mut [&mut J], class: Class) {
    match class {
        Class::Refused => jobs.iter_mut().for_each(|job| job.conclude(false)),
        Class::One | Class::Two | Class::Three | Class::Four => {
            let vectors = class as usize;
            let fours = if vectors <= MOST_IN_STEP { jobs.len() & !3 } else { 0 };
            let (fours, others) = jobs.split_at_mut(fours);
            if !fours.is_empty() {
                // SAFETY: the class is what the texts have vectors, and there are no more than go in step.
                unsafe { fours_short::<J, ROUNDS>(key, fours, vectors) };
            }
            if !others.is_empty() {
                // SAFETY: the class.
                unsafe { few_short::<J, ROUNDS>(key, others) };
            }
        }
        // SAFETY: the caller's promise, and the class.
        Class::Middle if hot.is_some() => unsafe { long_run::<J, ROUNDS, HOT, false>(key, hot, jobs) },
        // SAFETY: as above.
        Class::Long if hot.is_some() => unsafe { long_run::<J, ROUNDS, HOT, true>(key, hot, jobs) },
        // SAFETY: as above.
        Class::Middle => unsafe { long_run::<J, ROUNDS, COLD, false>(key, None, jobs) },
        // SAFETY: as above.
        Class::Long => unsafe { long_run::<J, ROUNDS, COLD, true>(key, None, jobs) },
        // SAFETY: as above.
        Class::Far => unsafe { long_run::<J, ROUNDS, FAR, true>(key, None, jobs) },
    }
}
}

kernel! { never inline:
/// Short texts, one by one.
///
/// # Safety
/// As for [`crypt_one`].
unsafe fn few_short<'a, J: Job<'a>, const ROUNDS: usize>(key: &GcmKey, jobs: &mut [&mut J]) {
    let run = &begin_run::<ROUNDS>(key);
    for job in jobs {
        let mut packet = job.packet();
        let received = received::<J>(&packet);
        let icv = if J::SEAL {
            // SAFETY: the caller's promise.
            unsafe { crypt_one::<ROUNDS, true>(run, &mut packet) }
        } else {
            // SAFETY: the caller's promise.
            unsafe { crypt_one::<ROUNDS, false>(run, &mut packet) }
        };
        settle::<J>(job, icv, received);
    }
}
}

/// Texts of `vectors` vectors, four at a time; what is left over when there are not four is not for this.
///
/// # Safety
/// As for [`crypt_fours`].
unsafe fn fours_short<'a, J: Job<'a>, const ROUNDS: usize>(
    key: &GcmKey,
    jobs: &mut [&mut J],
    vectors: usize,
) {
    let (fours, _) = jobs.as_chunks_mut();
    match vectors {
        // SAFETY: so many vectors each text has, which the caller promises.
        1 => unsafe { crypt_fours::<J, ROUNDS, 1, 4>(key, fours) },
        // SAFETY: as above.
        2 => unsafe { crypt_fours::<J, ROUNDS, 2, 8>(key, fours) },
        // SAFETY: as above, and there are no more than three.
        _ => unsafe { crypt_fours::<J, ROUNDS, 3, 12>(key, fours) },
    }
}

kernel! { never inline:
/// Texts of five vectors and more.
///
/// # Safety
/// As for [`crypt_long`].
unsafe fn long_run<'a, J: Job<'a>, const ROUNDS: usize, const WAY: u8, const CHUNKED: bool>(
    key: &GcmKey,
    hot: Option<&Hot>,
    jobs: &mut [&mut J],
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
        settle::<J>(job, icv, received);
    }
}
}

kernel! {
/// The ICV that came with a packet to open. To be called before any store: one that it overlapped, masked or not, would
/// hold it up.
pub(super) fn received<'a, J: Job<'a>>(packet: &Packet<'_>) -> __m128i {
    match packet.text.last_chunk() {
        Some(icv) if !J::SEAL => load_block(icv),
        _ => _mm_setzero_si128(),
    }
}
}

kernel! {
/// Ends a job whose text is done: writes the ICV, or holds it against the one received.
pub(super) fn settle<'a, J: Job<'a>>(job: &mut J, icv: __m128i, received: __m128i) {
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

/// Nobody may see what was decrypted from a packet that is not authentic. An instruction, not a call: for one that is
/// hardly ever made, all vector registers would be in memory around it.
#[inline(always)]
fn wipe(text: &mut [u8]) {
    // SAFETY: writes the bytes that are borrowed; the direction flag is clear.
    unsafe {
        asm!(
            "rep stosb",
            inout("rcx") text.len() => _,
            inout("rdi") text.as_mut_ptr() => _,
            in("al") 0_u8,
            options(nostack, preserves_flags),
        );
    }
}
