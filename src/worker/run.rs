//! A worker's thread: pinned, registered with EAL, polling until told to stop.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::time::{ClockId, clock_gettime};

use crate::dpdk::error::DpdkError;
use crate::dpdk::lcore::{ThreadRegistration, Threads, pin_current_thread, tsc};
use crate::worker::datapath::Worker;
use crate::worker::probe::{CycleProbe, NoProbe, Probe};

/// Polls between two looks at the stop flag and the clock.
const ROUND: usize = 4096;
/// Empty polls in a row after which a stopping worker takes its queues for drained.
const DRAINED: usize = 64;
/// Polls that a stopping worker makes at most, so that it stops under load too.
const DRAIN_POLLS: usize = 4096;

/// How a worker is to run.
pub struct WorkerSettings<'a> {
    /// The core it is pinned to.
    pub core: usize,
    /// Set when it is to drain and stop.
    pub stop: &'a AtomicBool,
    /// Measure cycles by stage.
    pub measure_stages: bool,
}

/// Runs `worker` on the calling thread until it is told to stop, then takes what its queues still hold to its end.
///
/// # Errors
/// [`DpdkError`] where the thread cannot be pinned or registered; nothing has been polled then.
pub fn run(
    worker: &mut Worker<'_>,
    threads: Threads<'_>,
    settings: &WorkerSettings<'_>,
) -> Result<(), DpdkError> {
    pin_current_thread(settings.core)?;
    let _registered = ThreadRegistration::new(threads)?;
    if settings.measure_stages {
        let mut probe = CycleProbe::new(tsc);
        poll_until(worker, settings.stop, &mut probe, |worker, probe| {
            for (counter, cycles) in worker.counters.stages.iter().zip(probe.take()) {
                counter.add(cycles);
            }
        });
    } else {
        poll_until(worker, settings.stop, &mut NoProbe, |_, _| {});
    }
    Ok(())
}

fn poll_until<'p, P: Probe>(
    worker: &mut Worker<'p>,
    stop: &AtomicBool,
    probe: &mut P,
    mut each_round: impl FnMut(&Worker<'p>, &mut P),
) {
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..ROUND {
            worker.poll_once(probe);
        }
        each_round(worker, probe);
        note_cpu_time(worker);
    }
    let mut idle = 0usize;
    for _ in 0..DRAIN_POLLS {
        idle = if worker.poll_once(probe) == 0 {
            idle.saturating_add(1)
        } else {
            0
        };
        if idle >= DRAINED {
            break;
        }
    }
    each_round(worker, probe);
    note_cpu_time(worker);
}

/// Publishes the thread's own run time: a system call, but one in thousands of polls.
fn note_cpu_time(worker: &Worker<'_>) {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let ns = u64::try_from(now.tv_sec)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0));
    let counter = &worker.counters.cpu_ns;
    counter.add(ns.saturating_sub(counter.get()));
}
