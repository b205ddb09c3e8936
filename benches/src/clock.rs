//! The time stamp counter, and the thread that reads it.

use std::arch::x86_64::{__rdtscp, _mm_lfence, _mm_mfence, _rdtsc};
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// TSC cycles that `work` takes, the reading of the counter included; see [`overhead`].
///
/// Stores of before have left the store buffer when it begins, and `work` is at its end when it stops.
#[inline(always)]
pub fn time(work: impl FnOnce()) -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, the fences are SSE2, and RDTSCP came before AES-NI did.
    unsafe {
        let mut aux = 0;
        _mm_mfence();
        _mm_lfence();
        let start = _rdtsc();
        _mm_lfence();
        work();
        let end = __rdtscp(&mut aux);
        _mm_lfence();
        end.saturating_sub(start)
    }
}

/// What [`time`] counts for no work at all: the median of many.
pub fn overhead() -> u64 {
    let mut spans: Vec<_> = (0..10_001).map(|_| time(|| ())).collect();
    spans.sort_unstable();
    spans[spans.len() / 2]
}

/// Keeps this thread on `cpu`, or on the last that it may use. Returns which.
///
/// # Errors
/// Where the kernel refuses.
pub fn pin(cpu: Option<usize>) -> rustix::io::Result<usize> {
    let allowed = sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| allowed.is_set(cpu));
    let cpu = cpu.or(last).unwrap_or(0);
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one)?;
    Ok(cpu)
}

/// TSC cycles a second, against the system's clock over 50 ms.
pub fn tsc_hz() -> f64 {
    let (begin, start) = (Instant::now(), tsc());
    while begin.elapsed().as_millis() < 50 {
        std::hint::spin_loop();
    }
    let cycles = tsc().wrapping_sub(start);
    cycles as f64 / begin.elapsed().as_secs_f64()
}

/// Core cycles in one TSC cycle: from a chain of additions, each of which takes one core cycle. The best of many short
/// tries, since whatever else runs only slows it.
pub fn core_cycles_per_tsc_cycle() -> f64 {
    const STEPS: u64 = 20_000;
    let least = (0..40).map(|_| time(|| chain(STEPS / 100))).min();
    let cycles = least.unwrap_or(1).saturating_sub(overhead()).max(1);
    STEPS as f64 / cycles as f64
}

/// `rounds` times a hundred dependent additions.
pub fn chain(rounds: u64) {
    // SAFETY: adds to and counts down registers of its own.
    unsafe {
        std::arch::asm!(
            "2:",
            ".rept 100",
            "add {sum}, {one}",
            ".endr",
            "dec {rounds}",
            "jnz 2b",
            sum = inout(reg) 0_u64 => _,
            one = in(reg) 1_u64,
            rounds = inout(reg) rounds => _,
            options(nomem, nostack),
        );
    }
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC.
    unsafe { _rdtsc() }
}
