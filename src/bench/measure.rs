//! What is run, in which order, and what it comes to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::BenchError;
use super::config::{Config, Length, Rate, Through};
use super::line::{LineResult, Part};
use super::path::Tally;
use super::report::{
    Bound, Cycles, Drop, GatewayStages, LatencyReport, Machine, Percentile, Report, Scenario,
    SearchReport, SearchTrial, StageCycles, Summary, Trial,
};
use super::rig::{Rig, RunSpec};
use super::site::{End, LAN, WAN};
use crate::control::report::{DirectedCount, drops_report};
use crate::crypto::tier::Tier;
use crate::generator::latency::{Latencies, PERCENTILES};
use crate::generator::search::{self, Goal, Outcome, Settings};
use crate::wire::ether;
use crate::worker::probe::Stage;

/// Part of the packets that may be lost at the partial drop rate.
const PDR: f64 = 0.005;
/// How much of the rate asked for has to be offered for a trial to count, as a part of it.
const OFFERED: f64 = 0.99;
/// Longest time of a run that ends by its packets.
const FOREVER: Duration = Duration::from_secs(7 * 86_400);

/// A rig with all that goes with measuring on it.
struct Bench<'a, 'p> {
    config: &'a Config,
    rig: &'a mut Rig<'p>,
    stop: &'a AtomicBool,
    bar: ProgressBar,
    /// How many packets were treated how, which should be none.
    faults: Vec<(&'static str, u64)>,
}

/// Everything that `config` asks for.
///
/// # Errors
/// [`BenchError`].
pub(super) fn all(
    config: &Config,
    rig: &mut Rig<'_>,
    stop: &AtomicBool,
) -> Result<Report, BenchError> {
    let bar = ProgressBar::new(1000);
    if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} {bar:30} {msg}") {
        bar.set_style(style);
    }
    let began = Instant::now();
    let tsc_hz = rig.eal.tsc_hz();
    let hugepages = rig.eal.uses_hugepages();
    let mut bench = Bench {
        config,
        rig,
        stop,
        bar,
        faults: Vec::new(),
    };
    let mut report = bench.measure()?;
    bench.bar.finish_and_clear();
    report.form = 1;
    report.balanced = true;
    report.faults = bench
        .faults
        .iter()
        .map(|(what, count)| format!("{count} packets {what}"))
        .collect();
    report.scenario = scenario(config);
    report.machine = Machine {
        simplon: env!("CARGO_PKG_VERSION").into(),
        dpdk: crate::dpdk::eal::version(),
        aead: Tier::active().to_string(),
        tsc_hz,
        hugepages,
        set_up_seconds: 0.0,
        measured_seconds: began.elapsed().as_secs_f64(),
    };
    Ok(report)
}

fn scenario(config: &Config) -> Scenario {
    let (traffic, gateways) = (&config.traffic, &config.gateways);
    Scenario {
        through: match config.outside {
            Some(_) => "device".into(),
            None => gateways.through.name().into(),
        },
        sizes: traffic.sizes.to_string(),
        mean_size: traffic.sizes.mean(),
        families: traffic.families.iter().map(ToString::to_string).collect(),
        sas: traffic.sas,
        flows: traffic.flows,
        train: traffic.train,
        order: traffic.order.name().into(),
        both_ways: traffic.both_ways,
        spray: traffic.spray,
        cipher: gateways.cipher.name().into(),
        esn: gateways.esn,
        window: gateways.window,
        ring: gateways.ring,
        worker_cores: config.cores.workers.clone(),
        generator_core: config.cores.generator,
        port: config.outside.as_ref().map(|outside| outside.port.clone()),
        back: config.outside.as_ref().map(|outside| outside.back.clone()),
    }
}

impl Bench<'_, '_> {
    fn measure(&mut self) -> Result<Report, BenchError> {
        let goals = &self.config.goals;
        let mut report = Report::default();
        let is_part = |rate: &Rate| matches!(rate, Rate::Part(_));
        let needs_full = goals.rate == Rate::Full
            || is_part(&goals.rate)
            || goals.no_drop
            || goals.latency.as_ref().is_some_and(is_part);
        let mut reference = 0.0;
        if needs_full {
            let trials = self.trials("full speed", None)?;
            reference = Summary::of(&trials).mpps.median * 1e6;
            report.trials = trials;
        }
        if goals.no_drop {
            let search = self.search(reference)?;
            reference = search.ndr.mpps.map_or(reference, |mpps| mpps * 1e6);
            report.search = Some(search);
        }
        let in_pps = |rate: Rate| match rate {
            Rate::Full => None,
            Rate::Packets(pps) => Some(pps),
            Rate::Part(part) => Some(part * reference),
        };
        if let Some(pps) = in_pps(goals.rate) {
            report.trials = self.trials("fixed rate", Some(pps))?;
            report.asked_pps = Some(pps);
        }
        if let Some(pps) = goals.latency.and_then(in_pps) {
            report.latency = Some(self.latency(pps)?);
        }
        if goals.stages {
            report.stages = self.stages(in_pps(goals.rate))?;
        }
        report.summary = Summary::of(&report.trials);
        Ok(report)
    }

    /// All trials at one rate.
    fn trials(&mut self, name: &str, rate: Option<f64>) -> Result<Vec<Trial>, BenchError> {
        let repeat = self.config.goals.repeat;
        let mut trials = Vec::new();
        for at in 1..=repeat {
            let spec = self.spec(rate);
            let (trial, _) = self.trial(&format!("{name}, trial {at} of {repeat}"), spec)?;
            self.judge(&trial, rate);
            trials.push(trial);
        }
        Ok(trials)
    }

    fn spec(&self, rate: Option<f64>) -> RunSpec {
        let (time, packets) = match self.config.goals.length {
            Length::Time(time) => (time, u64::MAX / 2),
            Length::Packets(packets) => (FOREVER, packets),
        };
        RunSpec {
            rate,
            time,
            packets,
            latency: false,
            stages: false,
        }
    }

    /// Notes what should not be. Loss is a fault only where nothing was sent that there was no room for.
    fn judge(&mut self, trial: &Trial, rate: Option<f64>) {
        let mut fault = |count: u64, what: &'static str| {
            if count == 0 {
                return;
            }
            match self.faults.iter_mut().find(|(known, _)| *known == what) {
                Some((_, sum)) => *sum += count,
                None => self.faults.push((what, count)),
            }
        };
        fault(trial.mismatched, "were not what was sent");
        fault(trial.duplicates, "came twice");
        fault(trial.unchecked, "that were to be checked did not come");
        if self.config.outside.is_none() {
            fault(trial.foreign, "were sent by nobody here");
            let spread = self.config.traffic.spray;
            if rate.is_none() && !spread {
                fault(trial.lost, "were lost at full speed, where nothing may be");
                fault(trial.reordered, "overtook others of their flow");
            }
        }
    }

    /// One run after its warm-up.
    fn trial(&mut self, name: &str, spec: RunSpec) -> Result<(Trial, Vec<LineResult>), BenchError> {
        let warmup = self.config.goals.warmup;
        if !warmup.is_zero() {
            let warm = RunSpec {
                time: warmup,
                packets: u64::MAX / 2,
                latency: false,
                stages: false,
                ..spec
            };
            self.run(&format!("{name}: warm-up"), warm)?;
        }
        let before = Counts::of(self.rig);
        let results = self.run(name, spec)?;
        let after = Counts::of(self.rig);
        let trial = self.sum_up(&results, &before, &after);
        if trial.received == 0 {
            return Err(silence(&trial));
        }
        Ok((trial, results))
    }

    fn run(&mut self, name: &str, spec: RunSpec) -> Result<Vec<LineResult>, BenchError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted);
        }
        let bar = &self.bar;
        bar.reset();
        let (mut then, mut before, mut rate) = (Duration::ZERO, 0, 0.0);
        let results = self.rig.run(spec, self.stop, |arrived, elapsed| {
            let part = (elapsed.as_secs_f64() / spec.time.as_secs_f64())
                .max(arrived as f64 / spec.packets as f64);
            let thousandths = (0..1000u64).find(|at| *at as f64 / 1000.0 >= part);
            bar.set_position(thousandths.unwrap_or(1000));
            let span = elapsed.saturating_sub(then);
            if span >= Duration::from_millis(500) {
                rate = arrived.saturating_sub(before) as f64 / span.as_secs_f64();
                (then, before) = (elapsed, arrived);
            }
            bar.set_message(format!("{name}: {arrived} packets, {:.2} Mpps", rate / 1e6));
        })?;
        if self.stop.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted);
        }
        Ok(results)
    }

    fn sum_up(&self, results: &[LineResult], before: &Counts, after: &Counts) -> Trial {
        let hz = self.rig.eal.tsc_hz() as f64;
        let (mut all, mut arrived) = (Tally::default(), Tally::default());
        let (mut sealed, mut passed) = ([0; 2], 0);
        let (mut cpu_ns, mut span, mut seconds) = (0.0, 0.0, 0.0);
        for result in results {
            all.add(&result.tally);
            arrived.add(&result.arrived);
            sealed[0] += result.sealed[0];
            sealed[1] += result.sealed[1];
            passed += result.passed;
            cpu_ns += result.cpu_ns as f64;
            span += result.span as f64 / hz;
            if result.generate.calls > 0 {
                seconds = f64::max(seconds, result.wall as f64 / hz);
            }
        }
        let sampled =
            self.config.outside.is_none() && self.config.gateways.through == Through::Seal;
        let (received, by_then) = if sampled {
            (sealed[1], sealed[0])
        } else {
            (all.received, arrived.received)
        };
        let pps = by_then as f64 / seconds.max(1e-9);
        let lost = all.sent.saturating_sub(received);
        let (inner, outer) = self.mean_bytes(&all, before, after);
        let gateway = match self.config.gateways.through {
            Through::Open => End::East,
            _ => End::West,
        };
        let total = |pick: fn(&LineResult) -> Part| sum_parts(results, pick);
        let measured = total(match gateway {
            End::West => |result| result.gateways[0],
            End::East => |result| result.gateways[1],
        });
        Trial {
            seconds,
            sent: all.sent,
            received,
            lost,
            loss_ratio: lost as f64 / all.sent.max(1) as f64,
            refused: all.refused,
            checked: if self.checks() {
                all.received - all.broken
            } else {
                0
            },
            mismatched: all.broken,
            unchecked: if sampled {
                passed.saturating_sub(all.received)
            } else {
                0
            },
            foreign: all.foreign,
            reordered: all.reordered,
            reordered_extent: all.extent,
            duplicates: all.duplicates,
            mpps: pps / 1e6,
            inner_gbps: pps * inner * 8.0 / 1e9,
            outer_gbps: pps * outer * 8.0 / 1e9,
            cycles: self.cycles(results, by_then, hz),
            run_share: cpu_ns / 1e9 / span.max(1e-9),
            burst: measured.packets as f64 / measured.calls.max(1) as f64,
            disturbed: measured.disturbed as f64
                / (measured.calls + measured.disturbed).max(1) as f64,
            drops: after.drops_since(before),
        }
    }

    /// Whether arrivals are compared byte by byte.
    fn checks(&self) -> bool {
        self.config.outside.is_none() || self.config.gateways.through == Through::Pair
    }

    fn cycles(&self, results: &[LineResult], arrived: u64, hz: f64) -> Cycles {
        let per_packet = |pick: fn(&LineResult) -> Part| {
            let part = sum_parts(results, pick);
            part.ticks as f64 / part.packets.max(1) as f64
        };
        let cpu: f64 = results.iter().map(|result| result.cpu_ns as f64).sum();
        let (seal, open) = match (self.config.outside.is_some(), self.config.gateways.through) {
            (true, _) => (false, false),
            (_, Through::Seal) => (true, false),
            (_, Through::Open) => (false, true),
            (_, Through::Pair) => (true, true),
        };
        let only_if = |wanted: bool, cycles: f64| if wanted { cycles } else { 0.0 };
        Cycles {
            generate: per_packet(|result| result.generate),
            seal: only_if(seal, per_packet(|result| result.gateways[0])),
            open: only_if(open, per_packet(|result| result.gateways[1])),
            check: per_packet(|result| result.check),
            threads: cpu / 1e9 * hz / arrived.max(1) as f64,
        }
    }

    /// Mean bytes of a packet: the inner IP packet, and the outer Ethernet frame.
    fn mean_bytes(&self, tally: &Tally, before: &Counts, after: &Counts) -> (f64, f64) {
        let mean = |bytes: u64, packets: u64| bytes as f64 / packets.max(1) as f64;
        match &self.config.outside {
            Some(_) if self.checks() => (mean(tally.bytes, tally.received - tally.broken), 0.0),
            Some(_) => {
                let outer = mean(tally.bytes, tally.received) + ether::HEADER_LEN as f64;
                (self.config.traffic.sizes.mean(), outer)
            }
            None => {
                let inner = mean(after.lan.1 - before.lan.1, after.lan.0 - before.lan.0);
                let outer = mean(after.wan.1 - before.wan.1, after.wan.0 - before.wan.0);
                (inner - ether::HEADER_LEN as f64, outer)
            }
        }
    }

    fn search(&mut self, full: f64) -> Result<SearchReport, BenchError> {
        let goals = [Goal { loss_ratio: 0.0 }, Goal { loss_ratio: PDR }];
        let settings = Settings {
            least: full / 100.0,
            most: full * 1.1,
            width: self.config.goals.width,
            attempts: self.config.goals.attempts,
        };
        let mut count = 0;
        let (found, steps) = search::search(&goals, settings, |rate| {
            count += 1;
            let name = format!("no-drop rate, trial {count} at {:.3} Mpps", rate / 1e6);
            let spec = RunSpec {
                time: self.search_time(),
                packets: u64::MAX / 2,
                ..self.spec(Some(rate))
            };
            let (trial, _) = self.trial(&name, spec)?;
            self.judge(&trial, Some(rate));
            // What could not even be offered is not held.
            let wanted = rate * trial.seconds * OFFERED;
            let short = floor(wanted).saturating_sub(trial.sent);
            Ok::<_, BenchError>(Outcome {
                sent: trial.sent + short,
                lost: trial.lost + short,
            })
        })?;
        let bound = |at: usize| {
            let mpps = |rate: Option<f64>| rate.map(|rate| rate / 1e6);
            found.get(at).map_or_else(Bound::default, |found| Bound {
                mpps: mpps(found.rate),
                fails_at_mpps: mpps(found.fails_at),
            })
        };
        Ok(SearchReport {
            ndr: bound(0),
            pdr: bound(1),
            trials: steps
                .iter()
                .map(|step| SearchTrial {
                    mpps: step.rate / 1e6,
                    sent: step.outcome.sent,
                    lost: step.outcome.lost,
                })
                .collect(),
        })
    }

    /// Time of one trial of a search; the usual one where trials end by their packets.
    fn search_time(&self) -> Duration {
        match self.config.goals.length {
            Length::Time(time) => time,
            Length::Packets(_) => Duration::from_secs(1),
        }
    }

    fn latency(&mut self, pps: f64) -> Result<LatencyReport, BenchError> {
        let spec = RunSpec {
            latency: true,
            time: self.search_time(),
            packets: u64::MAX / 2,
            ..self.spec(Some(pps))
        };
        let (trial, _) = self.trial(&format!("latency at {:.3} Mpps", pps / 1e6), spec)?;
        self.judge(&trial, Some(pps));
        let mut all: Option<Latencies> = None;
        for path in self.rig.lines.iter_mut().flat_map(|line| &mut line.paths) {
            match (&mut all, path.latencies.take()) {
                (Some(all), Some(own)) => all.merge(&own),
                (None, own) => all = own,
                _ => {}
            }
        }
        let Some(all) = all.filter(|all| all.count() > 0) else {
            return Ok(LatencyReport::default());
        };
        let percentile = |percent| Percentile {
            percent,
            ns: all.at(percent),
        };
        Ok(LatencyReport {
            mpps: pps / 1e6,
            samples: all.count(),
            lost: trial.lost,
            min_ns: all.min(),
            mean_ns: all.mean(),
            percentiles: PERCENTILES.map(percentile).into(),
        })
    }

    fn stages(&mut self, rate: Option<f64>) -> Result<Vec<GatewayStages>, BenchError> {
        let spec = RunSpec {
            stages: true,
            ..self.spec(rate)
        };
        let (trial, results) = self.trial("cycles by stage", spec)?;
        self.judge(&trial, rate);
        let shown: &[(usize, &str)] = match self.config.gateways.through {
            Through::Seal => &[(0, "seal")],
            Through::Open => &[(1, "open")],
            Through::Pair => &[(0, "seal"), (1, "open")],
        };
        let stages = shown.iter().map(|(at, name)| {
            let packets: u64 = results
                .iter()
                .map(|result| result.gateways[*at].packets)
                .sum();
            let cycles = |stage: Stage| {
                let sum: f64 = results
                    .iter()
                    .map(|result| result.stages[*at][stage as usize] as f64)
                    .sum();
                StageCycles {
                    stage: stage.name().into(),
                    cycles: sum / packets.max(1) as f64,
                }
            };
            GatewayStages {
                gateway: (*name).into(),
                packets,
                stages: Stage::ALL.map(cycles).into(),
            }
        });
        Ok(stages.collect())
    }
}

/// The whole part; 0 for what is less.
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
fn floor(value: f64) -> u64 {
    value.max(0.0) as u64
}

fn sum_parts(results: &[LineResult], pick: fn(&LineResult) -> Part) -> Part {
    results
        .iter()
        .map(pick)
        .fold(Part::default(), |sum, part| Part {
            ticks: sum.ticks + part.ticks,
            packets: sum.packets + part.packets,
            calls: sum.calls + part.calls,
            disturbed: sum.disturbed + part.disturbed,
        })
}

fn silence(trial: &Trial) -> BenchError {
    let reasons: Vec<String> = trial
        .drops
        .iter()
        .map(|drop| format!("{} {} {}", drop.packets, drop.gateway, drop.reason))
        .collect();
    BenchError::Silence(match (trial.sent, reasons.is_empty()) {
        (0, _) => "nothing could be sent: see that the port's link is up and takes packets".into(),
        (sent, true) => format!(
            "of {sent} packets sent none came back: see that the device forwards them to the second port, \
             and what it counts (`simplon show drops`)"
        ),
        (sent, false) => format!(
            "of {sent} packets sent none came back; dropped: {}",
            reasons.join(", ")
        ),
    })
}

/// What the gateways' counters say at one time.
struct Counts {
    drops: Vec<(End, DirectedCount)>,
    /// Frames and bytes that came in by the protected ports.
    lan: (u64, u64),
    /// Frames and bytes that went out by the unprotected ones.
    wan: (u64, u64),
}

impl Counts {
    fn of(rig: &Rig<'_>) -> Self {
        let mut counts = Self {
            drops: Vec::new(),
            lan: (0, 0),
            wan: (0, 0),
        };
        for (end, gateway) in &rig.gateways {
            let counters: Vec<_> = gateway.views.iter().map(|view| &*view.counters).collect();
            let report = drops_report(&counters);
            counts
                .drops
                .extend(report.drops.into_iter().map(|drop| (*end, drop)));
            for counters in counters {
                if let Some(port) = counters.port(LAN) {
                    counts.lan.0 += port.rx_packets.get();
                    counts.lan.1 += port.rx_bytes.get();
                }
                if let Some(port) = counters.port(WAN) {
                    counts.wan.0 += port.tx_packets.get();
                    counts.wan.1 += port.tx_bytes.get();
                }
            }
        }
        counts
    }

    fn drops_since(&self, before: &Self) -> Vec<Drop> {
        let earlier = |end: End, drop: &DirectedCount| {
            before
                .drops
                .iter()
                .find(|(other, known)| {
                    *other == end
                        && known.direction == drop.direction
                        && known.count.reason == drop.count.reason
                })
                .map_or(0, |(_, known)| known.count.packets)
        };
        self.drops
            .iter()
            .map(|(end, drop)| Drop {
                gateway: end.name().into(),
                direction: drop.direction.clone(),
                reason: drop.count.reason.clone(),
                packets: drop.count.packets.saturating_sub(earlier(*end, drop)),
            })
            .filter(|drop| drop.packets > 0)
            .collect()
    }
}
