//! One thread of a measurement: generators, gateways' workers and checkers in turn, each in its own bracket of clock
//! readings.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rustix::time::{ClockId, clock_gettime};

use super::config::SEAL_SAMPLE;
use super::path::{Path, Tally};
use super::site::End;
use crate::dpdk::burst::Burst;
use crate::dpdk::error::DpdkError;
use crate::dpdk::lcore::{ThreadRegistration, Threads, pin_current_thread, tsc};
use crate::dpdk::port::{RxQueue, TxQueue};
use crate::generator::pace::Pacer;
use crate::worker::datapath::Worker;
use crate::worker::probe::{CycleProbe, NoProbe, Probe, Stage};

/// Bursts that are sealed ahead before a gateway opens them.
pub(super) const STAGED: usize = 64;
/// Time without arrivals after which a path that still misses packets is done, in seconds.
const DRAIN: f64 = 0.2;

/// What sits between the two gateways where only one of them is measured.
pub(super) struct Tap<'p> {
    pub(super) rx: RxQueue<'p>,
    pub(super) tx: TxQueue<'p>,
    /// Sealed bursts that wait to be opened.
    staged: Vec<Burst<'p>>,
    /// Sealed packets seen.
    sealed: u64,
    bursts: u64,
    /// Of them, those passed on to be opened.
    passed: u64,
}

impl<'p> Tap<'p> {
    pub(super) fn new(rx: RxQueue<'p>, tx: TxQueue<'p>) -> Self {
        Self {
            rx,
            tx,
            staged: Vec::with_capacity(STAGED),
            sealed: 0,
            bursts: 0,
            passed: 0,
        }
    }

    /// Takes a burst: every [`SEAL_SAMPLE`]-th goes on to be opened, the rest has been counted and ends.
    fn sample(&mut self) -> u64 {
        let mut burst = Burst::new();
        let count = self.rx.rx_burst(&mut burst) as u64;
        if count > 0 {
            self.sealed += count;
            self.bursts += 1;
            if self.bursts % SEAL_SAMPLE == 1 {
                self.passed += self.tx.tx_burst(&mut burst) as u64;
            }
        }
        count
    }

    /// Takes a burst and keeps it.
    fn stage(&mut self) {
        let mut burst = Burst::new();
        if self.rx.rx_burst(&mut burst) > 0 {
            self.staged.push(burst);
        }
    }
}

/// What a line does with its taps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// There are none.
    Straight,
    /// They sample.
    Sampled,
    /// They stage: sealing and opening take turns, and the clock runs for opening.
    Staged,
}

/// One thread and what it does.
pub(super) struct Line<'p> {
    pub(super) core: usize,
    pub(super) mode: Mode,
    pub(super) paths: Vec<Path<'p>>,
    pub(super) taps: Vec<Tap<'p>>,
    pub(super) workers: Vec<(End, Worker<'p>)>,
}

impl Line<'_> {
    /// A thread on `core` that does nothing yet.
    pub(super) fn new(core: usize, mode: Mode) -> Self {
        Self {
            core,
            mode,
            paths: Vec::new(),
            taps: Vec::new(),
            workers: Vec::new(),
        }
    }
}

/// One run, for every line of it.
pub(super) struct Run<'r> {
    /// Set when nothing more is to be sent.
    pub(super) stop: &'r AtomicBool,
    /// Paths that still send or wait for packets.
    pub(super) open_paths: &'r AtomicUsize,
    /// Packets received, for the progress.
    pub(super) progress: &'r AtomicU64,
    /// Packets a second on each path, or as many as fit.
    pub(super) rate: Option<f64>,
    /// Packets on each path.
    pub(super) quota: u64,
    /// Measure latency.
    pub(super) latency: bool,
    /// Measure stages.
    pub(super) stages: bool,
    /// Ticks of the clock a second.
    pub(super) hz: u64,
}

/// How many times the usual a call may take before another thread must have had the core meanwhile.
const DISTURBED: u64 = 4;
/// Ticks that a call may take beyond that: far more than an interrupt, far less than another thread's turn.
const GRACE: u64 = 100_000;

/// Clock ticks in one part, of calls that had packets and were not disturbed, and their packets.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Part {
    pub(super) ticks: u64,
    pub(super) packets: u64,
    pub(super) calls: u64,
    /// Calls left out since another thread, or another machine's, had the core meanwhile.
    pub(super) disturbed: u64,
}

impl Part {
    /// Counts a call that began at `since`. Returns the time, and whether the call counts.
    #[inline]
    fn note(&mut self, since: u64, packets: u64) -> (u64, bool) {
        let now = tsc();
        if packets == 0 {
            return (now, true);
        }
        let spent = now.saturating_sub(since);
        let usual = self.ticks / self.packets.max(1) * packets;
        let counts = self.packets == 0 || spent <= DISTURBED * usual + GRACE;
        if counts {
            self.ticks += spent;
            self.packets += packets;
            self.calls += 1;
        } else {
            self.disturbed += 1;
        }
        (now, counts)
    }
}

/// A probe that forgets a call that was disturbed.
trait Settle: Probe {
    /// The call is over; `counts` says whether it is to.
    fn settle(&mut self, counts: bool);
}

impl Settle for NoProbe {
    #[inline(always)]
    fn settle(&mut self, _counts: bool) {}
}

/// Cycles by stage of the calls that count.
struct StageProbe {
    probe: CycleProbe,
    sum: [u64; Stage::ALL.len()],
}

impl StageProbe {
    fn new() -> Self {
        Self {
            probe: CycleProbe::new(tsc),
            sum: [0; Stage::ALL.len()],
        }
    }
}

impl Probe for StageProbe {
    #[inline]
    fn begin(&mut self) {
        self.probe.begin();
    }

    #[inline]
    fn mark(&mut self, stage: Stage) {
        self.probe.mark(stage);
    }
}

impl Settle for StageProbe {
    fn settle(&mut self, counts: bool) {
        let cycles = self.probe.take();
        if counts {
            for (sum, cycles) in self.sum.iter_mut().zip(cycles) {
                *sum += cycles;
            }
        }
    }
}

/// What one line saw from its first packet until nothing more was sent.
#[derive(Default)]
pub(super) struct LineResult {
    pub(super) generate: Part,
    pub(super) check: Part,
    pub(super) tap: Part,
    /// By [`End`].
    pub(super) gateways: [Part; 2],
    pub(super) stages: [[u64; Stage::ALL.len()]; 2],
    /// Clock ticks that count.
    pub(super) wall: u64,
    /// Clock ticks over which run time was taken.
    pub(super) span: u64,
    /// The thread's own run time in that.
    pub(super) cpu_ns: u64,
    /// What had arrived by then: that over `wall` is the rate.
    pub(super) arrived: Tally,
    /// Packets sealed, where taps count them, by then and in the end.
    pub(super) sealed: [u64; 2],
    /// Sealed packets that were passed on to be opened.
    pub(super) passed: u64,
    /// What all its paths carried in the end.
    pub(super) tally: Tally,
}

/// The calling thread's own run time, in nanoseconds.
fn cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// Runs `line` on the calling thread.
///
/// # Errors
/// [`DpdkError`] where the thread cannot be pinned or registered.
pub(super) fn run(
    line: &mut Line<'_>,
    threads: Threads<'_>,
    run: &Run<'_>,
) -> Result<LineResult, DpdkError> {
    pin_current_thread(line.core)?;
    let _registered = ThreadRegistration::new(threads)?;
    if run.stages {
        let mut probes = [StageProbe::new(), StageProbe::new()];
        let mut result = drive(line, run, &mut probes);
        result.stages = probes.map(|probe| probe.sum);
        Ok(result)
    } else {
        Ok(drive(line, run, &mut [NoProbe, NoProbe]))
    }
}

fn drive<P: Settle>(line: &mut Line<'_>, run: &Run<'_>, probes: &mut [P; 2]) -> LineResult {
    for path in &mut line.paths {
        path.begin(run.latency);
    }
    for tap in &mut line.taps {
        (tap.sealed, tap.passed) = (0, 0);
    }
    let mut pacers: Vec<Option<Pacer>> = line
        .paths
        .iter()
        .map(|_| run.rate.map(|rate| Pacer::new(tsc(), run.hz, rate)))
        .collect();
    let mut result = LineResult::default();
    let (start, cpu_start) = (tsc(), cpu_ns());
    let mut sent_all = false;
    while !run.stop.load(Ordering::Relaxed) && !sent_all {
        if line.mode == Mode::Staged {
            staged_round(line, run, &mut result, probes);
        } else {
            let now = send(line, run, &mut pacers, &mut result);
            carry(line, now, &mut result, probes);
        }
        let received = line.paths.iter().map(|path| path.tally.received).sum();
        run.progress.store(received, Ordering::Relaxed);
        sent_all = if line.paths.is_empty() {
            run.open_paths.load(Ordering::Relaxed) == 0
        } else {
            line.paths.iter().all(|path| path.tally.sent >= run.quota)
        };
    }
    result.span = tsc().saturating_sub(start);
    if line.mode != Mode::Staged {
        result.wall = result.span;
    }
    result.cpu_ns = cpu_ns().saturating_sub(cpu_start);
    for path in &line.paths {
        result.arrived.add(&path.tally);
    }
    result.sealed[0] = line.taps.iter().map(|tap| tap.sealed).sum();
    drain(line, run, &mut result, probes);
    for path in &line.paths {
        result.tally.add(&path.tally);
    }
    result.sealed[1] = line.taps.iter().map(|tap| tap.sealed).sum();
    result.passed = line.taps.iter().map(|tap| tap.passed).sum();
    result
}

/// Sends on every path. Returns the time after that.
fn send(
    line: &mut Line<'_>,
    run: &Run<'_>,
    pacers: &mut [Option<Pacer>],
    result: &mut LineResult,
) -> u64 {
    let mut now = tsc();
    for (path, pacer) in line.paths.iter_mut().zip(pacers) {
        let sent = match pacer {
            None => path.send_full(run.quota),
            Some(pacer) => path.send_due(pacer, run.quota),
        };
        (now, _) = result.generate.note(now, sent);
    }
    now
}

/// Polls once. Returns the time after that.
#[inline]
fn poll<P: Settle>(worker: &mut Worker<'_>, probe: &mut P, part: &mut Part, now: u64) -> u64 {
    let count = worker.poll_once(probe) as u64;
    let (now, counts) = part.note(now, count);
    probe.settle(counts);
    now
}

/// Gives every part but the generators one turn.
fn carry<P: Settle>(
    line: &mut Line<'_>,
    mut now: u64,
    result: &mut LineResult,
    probes: &mut [P; 2],
) {
    for (end, worker) in &mut line.workers {
        if *end == End::East {
            for tap in &mut line.taps {
                let count = tap.sample();
                (now, _) = result.tap.note(now, count);
            }
        }
        let end = *end as usize;
        now = poll(worker, &mut probes[end], &mut result.gateways[end], now);
    }
    for path in &mut line.paths {
        let received = path.receive();
        (now, _) = result.check.note(now, received);
        if line.mode == Mode::Sampled {
            // What the taps took is as good as received; only a part of it comes as far as here.
            let sealed: u64 = line.taps.iter().map(|tap| tap.sealed).sum();
            path.given_up = sealed.saturating_sub(path.tally.received);
            path.last_arrival = now;
        }
    }
}

/// Seals [`STAGED`] bursts, then opens them; the clock runs for the second half.
fn staged_round<P: Settle>(
    line: &mut Line<'_>,
    run: &Run<'_>,
    result: &mut LineResult,
    probes: &mut [P; 2],
) {
    let mut now = tsc();
    for _ in 0..STAGED {
        for path in &mut line.paths {
            // All that is staged is on its way.
            path.given_up = path.tally.sent - path.tally.received;
            let sent = path.send_full(run.quota);
            (now, _) = result.generate.note(now, sent);
        }
        for (_, worker) in line.workers.iter_mut().filter(|(end, _)| *end == End::West) {
            now = poll(worker, &mut probes[0], &mut result.gateways[0], now);
        }
        for tap in &mut line.taps {
            tap.stage();
        }
    }
    let began = tsc();
    let mut now = began;
    let staged: Vec<_> = line
        .taps
        .iter_mut()
        .map(|tap| std::mem::take(&mut tap.staged))
        .collect();
    for (at, bursts) in staged.into_iter().enumerate() {
        for mut burst in bursts {
            let count = burst.len() as u64;
            line.taps[at].tx.tx_burst(&mut burst);
            (now, _) = result.tap.note(now, count);
            for (_, worker) in line.workers.iter_mut().filter(|(end, _)| *end == End::East) {
                now = poll(worker, &mut probes[1], &mut result.gateways[1], now);
            }
            for path in &mut line.paths {
                let received = path.receive();
                (now, _) = result.check.note(now, received);
            }
        }
    }
    result.wall += tsc().saturating_sub(began);
}

/// Goes on without sending until every path has what it waits for, or has waited long enough.
fn drain<P: Settle>(
    line: &mut Line<'_>,
    run: &Run<'_>,
    result: &mut LineResult,
    probes: &mut [P; 2],
) {
    let began = tsc();
    let mut open: Vec<bool> = line.paths.iter().map(|_| true).collect();
    loop {
        let now = tsc();
        if line.mode != Mode::Staged {
            carry(line, now, result, probes);
        }
        for (path, open) in line.paths.iter().zip(&mut open) {
            let quiet = now.saturating_sub(path.last_arrival.max(began)) as f64;
            let missing = path.tally.sent - path.tally.refused > path.tally.received;
            let settled = line.mode == Mode::Sampled && now - began > run.hz / 50;
            let waits = missing && !settled && quiet < DRAIN * run.hz as f64;
            if *open && (!waits || line.mode == Mode::Staged) {
                *open = false;
                run.open_paths.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if run.open_paths.load(Ordering::Relaxed) == 0 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_in_which_another_thread_had_the_core_does_not_count() {
        let mut part = Part::default();
        let ago = |ticks: u64| tsc().saturating_sub(ticks);
        for _ in 0..100 {
            assert!(part.note(ago(6_400), 64).1);
        }
        assert!(part.note(ago(12_800), 64).1, "twice as slow is slow");
        let (_, counts) = part.note(ago(20_000_000), 64);
        assert!(!counts, "and this was no call alone");
        assert_eq!(
            (part.packets, part.calls, part.disturbed),
            (101 * 64, 101, 1)
        );
        assert!(part.note(ago(20_000_000), 0).1);
        assert_eq!(part.calls, 101, "a call without packets is no call");
    }
}
