//! Runs of jobs with one key, for the kernels of [`super::avx512`].
//!
//! A run is cut where short texts and long ones meet. Each piece is a loop of its own that is compiled by itself, so that
//! round keys stay in registers from packet to packet and what long texts keep there is no burden to the short ones.

use std::arch::x86_64::{
    _mm_loadu_si128, _mm_setzero_si128, _mm_storeu_si128, _mm_testz_si128, _mm_xor_si128,
};
use std::mem::MaybeUninit;

use super::avx512::{
    HasAvx512, Hot, Packet, ROWS, begin_run, crypt_long, crypt_short, heat, kernel,
};
use super::key::{GcmKey, Rounds};
use crate::crypto::aead::{ICV_LEN, OpenJob, SealJob};

/// Packets of one key from which on it pays to prepare what they share.
const HOT_RUN: usize = 4;
/// Vectors from which on sealing takes the loop in assembly: shorter texts lose more by its set-up than they gain.
const PIPED_FROM: usize = 13;

/// A job of one direction.
pub(in crate::crypto) trait Job {
    const SEAL: bool;
    /// The packet.
    fn packet(&mut self) -> Packet<'_>;
    /// Its length, ICV included.
    fn len(&self) -> usize;
    /// Sets the verdict.
    fn conclude(&mut self, done: bool);
}

impl Job for SealJob<'_> {
    const SEAL: bool = true;

    #[inline]
    fn packet(&mut self) -> Packet<'_> {
        Packet {
            nonce: &self.nonce,
            aad: self.aad.block(),
            aad_len: self.aad.len(),
            text: self.text,
        }
    }

    #[inline]
    fn len(&self) -> usize {
        self.text.len()
    }

    #[inline]
    fn conclude(&mut self, done: bool) {
        self.sealed = done;
    }
}

impl Job for OpenJob<'_> {
    const SEAL: bool = false;

    #[inline]
    fn packet(&mut self) -> Packet<'_> {
        Packet {
            nonce: &self.nonce,
            aad: self.aad.block(),
            aad_len: self.aad.len(),
            text: self.text,
        }
    }

    #[inline]
    fn len(&self) -> usize {
        self.text.len()
    }

    #[inline]
    fn conclude(&mut self, done: bool) {
        self.authentic = done;
    }
}

/// Which loop a text goes through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// No text at all: there is no room for an ICV.
    Refused,
    /// Up to four vectors.
    Short,
    /// Five vectors and more.
    Long,
    /// So long that the loop in assembly pays, where there is one.
    VeryLong,
    /// Longer than the tables of counters.
    Far,
}

impl Class {
    /// The class of a text of `len` bytes, ICV included: as many bytes as its vectors hold.
    #[inline]
    fn of(len: usize) -> Self {
        if len < ICV_LEN {
            Self::Refused
        } else if len <= 256 {
            Self::Short
        } else if len <= 64 * (PIPED_FROM - 1) {
            Self::Long
        } else if len <= 64 * ROWS {
            Self::VeryLong
        } else {
            Self::Far
        }
    }
}

/// Seals or opens packets of one key.
pub(in crate::crypto) fn run<J: Job>(_: HasAvx512, key: &GcmKey, jobs: &mut [J]) {
    match key.rounds {
        // SAFETY: `HasAvx512` is made only where the processor has every feature that the kernels name.
        Rounds::Ten => unsafe { run_rounds::<J, 10>(key, jobs) },
        // SAFETY: as above.
        Rounds::Twelve => unsafe { run_rounds::<J, 12>(key, jobs) },
        // SAFETY: as above.
        Rounds::Fourteen => unsafe { run_rounds::<J, 14>(key, jobs) },
    }
}

kernel! {
fn run_rounds<J: Job, const ROUNDS: usize>(key: &GcmKey, jobs: &mut [J]) {
    let mut room = MaybeUninit::uninit();
    let mut hot = None;
    if jobs.len() >= HOT_RUN {
        let longest = jobs.iter().map(Job::len).max().unwrap_or_default();
        if Class::of(longest) != Class::Short {
            hot = Some(heat(key, longest, &mut room));
        }
    }
    for piece in jobs.chunk_by_mut(|a, b| Class::of(a.len()) == Class::of(b.len())) {
        let class = piece.first().map_or(Class::Refused, |job| Class::of(job.len()));
        match class {
            Class::Refused => piece.iter_mut().for_each(|job| job.conclude(false)),
            Class::Short => short_run::<J, ROUNDS>(key, piece),
            Class::VeryLong if J::SEAL && hot.is_some() => long_run::<J, ROUNDS, true, true>(key, hot, piece),
            Class::VeryLong if J::SEAL => long_run::<J, ROUNDS, true, false>(key, hot, piece),
            Class::Long | Class::VeryLong if hot.is_some() => long_run::<J, ROUNDS, false, true>(key, hot, piece),
            Class::Long | Class::VeryLong | Class::Far => long_run::<J, ROUNDS, false, false>(key, hot, piece),
        }
    }
}
}

/// One job: `$crypt` does its packet in place and gives the ICV that is right.
macro_rules! one {
    ($job:ident, $J:ident, |$packet:ident| $crypt:expr) => {
        let $packet = &mut $job.packet();
        let at = $packet.text.len() - ICV_LEN;
        let mut received = _mm_setzero_si128();
        if !$J::SEAL {
            // Before any store: one that it overlapped, masked or not, would hold it up.
            // SAFETY: the text ends with the ICV, and the load wants no alignment.
            received = unsafe { _mm_loadu_si128($packet.text.as_ptr().wrapping_add(at).cast()) };
        }
        let icv = $crypt;
        if $J::SEAL {
            // SAFETY: the text ends with room for the ICV, and the store wants no alignment.
            unsafe { _mm_storeu_si128($packet.text.as_mut_ptr().wrapping_add(at).cast(), icv) };
            $job.conclude(true);
        } else {
            let difference = _mm_xor_si128(icv, received);
            let authentic = _mm_testz_si128(difference, difference) == 1;
            if !authentic {
                wipe(&mut $packet.text[..at]);
            }
            $job.conclude(authentic);
        }
    };
}

kernel! { never inline:
fn short_run<J: Job, const ROUNDS: usize>(key: &GcmKey, jobs: &mut [J]) {
    let run = &begin_run::<ROUNDS>(key, None);
    for job in jobs {
        one!(job, J, |packet| if J::SEAL {
            crypt_short::<ROUNDS, true>(run, packet)
        } else {
            crypt_short::<ROUNDS, false>(run, packet)
        });
    }
}
}

kernel! { never inline:
fn long_run<J: Job, const ROUNDS: usize, const PIPED: bool, const CACHED: bool>(
    key: &GcmKey,
    hot: Option<&Hot>,
    jobs: &mut [J],
) {
    let run = &begin_run::<ROUNDS>(key, hot);
    for job in jobs {
        one!(job, J, |packet| if J::SEAL {
            crypt_long::<ROUNDS, true, PIPED, CACHED>(run, packet)
        } else {
            crypt_long::<ROUNDS, false, false, CACHED>(run, packet)
        });
    }
}
}

/// Nobody may see what was decrypted from a packet that is not authentic.
#[cold]
#[inline(never)]
fn wipe(text: &mut [u8]) {
    text.fill(0);
}
