//! Ports, gateways, generators and checkers, joined and dealt out to threads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::BenchError;
use super::config::{Config, Through};
use super::line::{self, Line, LineResult, Mode, Run, Tap};
use super::path::{Check, Outlet, Path, Sink, Source};
use super::schedule::{Schedule, Share};
use super::site::{End, LAN, WAN};
use crate::dpdk::eal::Eal;
use crate::dpdk::mempool::Mempool;
use crate::dpdk::port::{RxQueue, TxQueue};
use crate::gateway::Assembly;
use crate::generator::latency::Stamps;
use crate::generator::stream::Stream;
use crate::worker::datapath::Worker;

/// Pause between two looks at leases and progress.
const TICK: Duration = Duration::from_millis(5);

/// Everything, ready to run.
pub(super) struct Rig<'p> {
    pub(super) lines: Vec<Line<'p>>,
    pub(super) gateways: Vec<(End, Assembly<'p>)>,
    pub(super) eal: &'p Eal,
}

/// Both queues of one end of a path, for each worker.
pub(super) struct EndQueues<'p> {
    pub(super) rx: VecDeque<RxQueue<'p>>,
    pub(super) tx: VecDeque<TxQueue<'p>>,
}

/// One direction before it is dealt out: where it starts, where it ends, and its stream.
pub(super) struct Way<'p> {
    pub(super) tx: VecDeque<TxQueue<'p>>,
    pub(super) rx: VecDeque<RxQueue<'p>>,
    pub(super) stream: Arc<Stream>,
    /// Arrivals are ESP, not what the stream sent.
    pub(super) esp: bool,
}

/// What one run is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunSpec {
    /// Packets a second over all paths; as many as fit where there is none.
    pub(super) rate: Option<f64>,
    /// When it ends, at the latest.
    pub(super) time: Duration,
    /// Packets over all paths.
    pub(super) packets: u64,
    pub(super) latency: bool,
    pub(super) stages: bool,
}

/// Deals ways, taps and workers out to threads: one for each worker with all that belongs to it, or workers for
/// themselves and one thread for the rest.
pub(super) fn deal<'p>(
    config: &Config,
    pool: &'p Mempool<'p>,
    hz: u64,
    mut ways: Vec<Way<'p>>,
    mut taps: VecDeque<Tap<'p>>,
    workers: Vec<(End, Vec<Worker<'p>>)>,
) -> Vec<Line<'p>> {
    let cores = &config.cores.workers;
    let mode = match (taps.is_empty(), config.gateways.through) {
        (false, Through::Seal) => Mode::Sampled,
        (false, Through::Open) => Mode::Staged,
        _ => Mode::Straight,
    };
    let mut lines: Vec<Line<'p>> = cores.iter().map(|core| Line::new(*core, mode)).collect();
    let mut rest = Line::new(config.cores.generator.unwrap_or(0), mode);
    let split = config.cores.generator.is_some();
    for (end, workers) in workers {
        // The second gateway is part of the check where only the first is measured.
        let to_rest = split && mode == Mode::Sampled && end == End::East;
        for worker in workers {
            let at = place(end, &worker);
            let line = if to_rest {
                Some(&mut rest)
            } else {
                lines.get_mut(at)
            };
            if let Some(line) = line {
                line.workers.push((end, worker));
            }
        }
    }
    if split {
        for way in ways {
            let share = Share::all(way.stream.flows());
            rest.paths.push(path(config, pool, hz, way, share));
        }
        rest.taps.extend(taps);
        lines.retain(|line| !line.workers.is_empty());
        lines.push(rest);
        return lines;
    }
    let count = lines.len();
    for (at, line) in lines.iter_mut().enumerate() {
        for way in &mut ways {
            let own = Way {
                tx: way.tx.pop_front().into_iter().collect(),
                rx: way.rx.pop_front().into_iter().collect(),
                stream: Arc::clone(&way.stream),
                esp: way.esp,
            };
            let share = Share::all(way.stream.flows()).part(at, count);
            line.paths.push(path(config, pool, hz, own, share));
        }
        line.taps.extend(taps.pop_front());
    }
    lines
}

/// The line that a worker belongs to: the one whose packets go through the worker's queue from west to east.
fn place(end: End, worker: &Worker<'_>) -> usize {
    let ingress = match end {
        End::West => LAN,
        End::East => WAN,
    };
    worker
        .lanes
        .iter()
        .find(|lane| lane.ingress == ingress)
        .map_or(0, |lane| lane.rx.queue().index())
}

/// A path over the queues of `way`, with the flows of `share`.
fn path<'p>(
    config: &Config,
    pool: &'p Mempool<'p>,
    hz: u64,
    way: Way<'p>,
    share: Share,
) -> Path<'p> {
    let sizes: Arc<[u16]> = config.traffic.sizes.round().into();
    let queues = way.tx.len();
    let (groups, spray) = match config.traffic.spray {
        true => (1, true),
        false => (queues.max(1), false),
    };
    let schedules = (0..groups)
        .map(|group| {
            Schedule::new(
                share.part(group, groups),
                Arc::clone(&sizes),
                (config.traffic.train, config.traffic.order),
            )
        })
        .collect();
    let outlets = way
        .tx
        .into_iter()
        .enumerate()
        .map(|(at, tx)| Outlet::new(tx, if spray { 0 } else { at }))
        .collect();
    let check = if way.esp {
        Check::Esp(rustc_hash::FxHashMap::default())
    } else {
        Check::Every(Arc::clone(&way.stream))
    };
    Path {
        source: Source {
            pool,
            stream: way.stream,
            outlets,
            schedules,
            turn: 0,
        },
        sink: Sink::new(way.rx.into_iter().collect(), check),
        stamps: Stamps::default(),
        tally: super::path::Tally::default(),
        latencies: None,
        window: u64::from(config.gateways.ring / 2),
        given_up: 0,
        last_arrival: 0,
        // Inside, a thread may lose its core for a while, and nothing is lost for that. A device may lose packets, and
        // is then not to be waited for.
        patience: match config.outside {
            None => hz / 2,
            Some(_) => hz / 10,
        },
        hz,
    }
}

impl Rig<'_> {
    /// How many paths there are.
    fn paths(&self) -> usize {
        self.lines.iter().map(|line| line.paths.len()).sum()
    }

    /// Runs every line once, and keeps leases going meanwhile; `progress` is told how many packets have arrived.
    ///
    /// # Errors
    /// [`BenchError`] where a thread cannot be started, pinned or registered.
    pub(super) fn run(
        &mut self,
        spec: RunSpec,
        stop: &AtomicBool,
        mut progress: impl FnMut(u64, Duration),
    ) -> Result<Vec<LineResult>, BenchError> {
        let paths = self.paths().max(1);
        let open_paths = AtomicUsize::new(paths);
        let counts: Vec<AtomicU64> = self.lines.iter().map(|_| AtomicU64::new(0)).collect();
        let ended = AtomicBool::new(false);
        let (threads, hz) = (self.eal.threads(), self.eal.tsc_hz());
        let gateways = &mut self.gateways;
        let lines = &mut self.lines;
        tick(gateways);
        std::thread::scope(|scope| {
            let mut handles = Vec::new();
            for (line, count) in lines.iter_mut().zip(&counts) {
                let run = Run {
                    stop: &ended,
                    open_paths: &open_paths,
                    progress: count,
                    rate: spec.rate.map(|rate| rate / paths as f64),
                    quota: spec.packets.div_ceil(paths as u64),
                    latency: spec.latency,
                    stages: spec.stages,
                    hz,
                };
                let (ended, open_paths) = (&ended, &open_paths);
                let body = move || {
                    let own = line.paths.len();
                    line::run(line, threads, &run).inspect_err(|_| {
                        // The others must not wait for what this line would have carried.
                        ended.store(true, Ordering::Relaxed);
                        open_paths.fetch_sub(own, Ordering::Relaxed);
                    })
                };
                handles.push(
                    std::thread::Builder::new()
                        .name(format!("bench-{}", handles.len()))
                        .spawn_scoped(scope, body),
                );
            }
            let began = Instant::now();
            while open_paths.load(Ordering::Relaxed) > 0
                && handles.iter().flatten().any(|handle| !handle.is_finished())
            {
                if began.elapsed() >= spec.time || stop.load(Ordering::Relaxed) {
                    ended.store(true, Ordering::Relaxed);
                }
                let arrived = counts
                    .iter()
                    .map(|count| count.load(Ordering::Relaxed))
                    .sum();
                progress(arrived, began.elapsed());
                tick(gateways);
                std::thread::sleep(TICK);
            }
            ended.store(true, Ordering::Relaxed);
            handles
                .into_iter()
                .map(|handle| match handle.map_err(BenchError::Thread)?.join() {
                    Ok(result) => Ok(result?),
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        })
    }
}

/// What a gateway's control thread does while its workers run.
fn tick(gateways: &mut [(End, Assembly<'_>)]) {
    for (_, gateway) in gateways {
        gateway
            .records
            .leases
            .tick(&gateway.shared.sad, &gateway.writer);
        gateway.writer.reclaim();
        gateway.shared.host.clear();
    }
}
