//! What a measurement shows: for machines as it stands, for people as tables.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use super::config::Order;

/// Everything that was measured.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Report {
    /// Version of this form; it grows when a field changes its meaning.
    pub form: u32,
    /// Where and with what.
    pub machine: Machine,
    /// What was measured.
    pub scenario: Scenario,
    /// Trials of the scenario, at full speed or at the rate asked for.
    pub trials: Vec<Trial>,
    /// Their medians.
    pub summary: Summary,
    /// Part of [`Self::trials`]'s rate that was asked for, in packets a second.
    pub asked_pps: Option<f64>,
    /// No-drop rate and the like.
    pub search: Option<SearchReport>,
    /// Latency at a fixed rate.
    pub latency: Option<LatencyReport>,
    /// Cycles by stage of the packet path.
    pub stages: Vec<GatewayStages>,
    /// What one SA takes.
    pub memory: Option<MemoryReport>,
    /// At both gateways, what was received was sent, dropped or punted.
    pub balanced: bool,
    /// Buffers that did not come back to the pool.
    pub buffers_missing: u32,
    /// What was wrong, if anything: what the command fails for.
    pub faults: Vec<String>,
}

/// Where and with what.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Machine {
    /// simplon's version.
    pub simplon: String,
    /// DPDK's.
    pub dpdk: String,
    /// What seals and opens.
    pub aead: String,
    /// Ticks of the clock that cycles are counted by, a second.
    pub tsc_hz: u64,
    /// Whether DPDK's memory is hugepages.
    pub hugepages: bool,
    /// Seconds until everything stood.
    pub set_up_seconds: f64,
    /// Seconds of all runs together.
    pub measured_seconds: f64,
}

/// What was measured.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Scenario {
    /// `seal`, `open`, `pair`, or `device` for one under test.
    pub through: String,
    /// Lengths of the inner packets.
    pub sizes: String,
    /// Their mean, in bytes.
    pub mean_size: f64,
    /// Inner in outer.
    pub families: Vec<String>,
    /// SAs in each direction.
    pub sas: usize,
    /// Flows in each direction.
    pub flows: usize,
    /// Packets of one flow in a row.
    pub train: usize,
    /// In which order flows have their turns: `in-turn` or `scattered`.
    pub order: String,
    /// Both ways at a time.
    pub both_ways: bool,
    /// Bursts of a flow go to all workers in turn.
    pub spray: bool,
    /// Cipher.
    pub cipher: String,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Anti-replay window, in packets.
    pub window: u32,
    /// Packets that a ring holds.
    pub ring: u32,
    /// Cores of the workers.
    pub worker_cores: Vec<usize>,
    /// Core of generator and checker; none where they share the workers' threads.
    pub generator_core: Option<usize>,
    /// Out of which port traffic went to a device under test.
    pub port: Option<String>,
    /// In which it came back.
    pub back: Option<String>,
}

/// One trial.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Trial {
    /// Seconds while packets were sent; with `open`, of opening alone.
    pub seconds: f64,
    /// Packets offered.
    pub sent: u64,
    /// Packets that came back, whole or not; with `seal`, packets sealed.
    pub received: u64,
    /// Packets that did not.
    pub lost: u64,
    /// Part of the packets that were lost.
    pub loss_ratio: f64,
    /// Of the lost, those that the first queue had no room for.
    pub refused: u64,
    /// Packets of which every byte was compared and right.
    pub checked: u64,
    /// Packets that were not what was sent.
    pub mismatched: u64,
    /// Packets picked to be checked, with `seal`, that did not come.
    pub unchecked: u64,
    /// Frames that nobody here sent.
    pub foreign: u64,
    /// Packets that came after a later one of their flow (RFC 4737).
    pub reordered: u64,
    /// The farthest that one came late, in packets of its flow.
    pub reordered_extent: u64,
    /// Packets that came twice.
    pub duplicates: u64,
    /// Million packets a second that arrived.
    pub mpps: f64,
    /// Their IP packets inside the tunnel, in 10^9 bits a second.
    pub inner_gbps: f64,
    /// The same as Ethernet frames on the unprotected side, without checksum, preamble and gap.
    pub outer_gbps: f64,
    /// TSC cycles per packet.
    pub cycles: Cycles,
    /// Part of the time that the threads really ran.
    pub run_share: f64,
    /// Packets in one call of the measured gateway that had any.
    pub burst: f64,
    /// Part of those calls that are left out of the cycles, since another thread had the core meanwhile.
    pub disturbed: f64,
    /// What gateways dropped.
    pub drops: Vec<Drop>,
}

/// TSC cycles per packet, each part by its own packets: clock readings around every call that had packets, but for
/// calls that took so long that another thread had the core meanwhile.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default)]
pub struct Cycles {
    /// Making and sending packets.
    pub generate: f64,
    /// The gateway that seals, rings included.
    pub seal: f64,
    /// The gateway that opens.
    pub open: f64,
    /// Receiving and checking.
    pub check: f64,
    /// Run time of all threads together (`CLOCK_THREAD_CPUTIME_ID`) over the packets that arrived: with idle polls and
    /// all the rest.
    pub threads: f64,
}

/// Packets that a gateway dropped.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Drop {
    /// Which gateway.
    pub gateway: String,
    /// Outbound or inbound.
    pub direction: String,
    /// Why.
    pub reason: String,
    /// How many.
    pub packets: u64,
}

/// Median and spread.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default)]
pub struct Spread {
    /// The middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

/// Medians over all trials.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Million packets a second.
    pub mpps: Spread,
    /// 10^9 bits a second inside.
    pub inner_gbps: Spread,
    /// 10^9 bits a second outside.
    pub outer_gbps: Spread,
    /// Cycles of making a packet.
    pub generate: Spread,
    /// Of sealing it.
    pub seal: Spread,
    /// Of opening it.
    pub open: Spread,
    /// Of checking it.
    pub check: Spread,
    /// Of all threads.
    pub threads: Spread,
}

/// What the search for the no-drop rate found.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct SearchReport {
    /// No packet lost.
    pub ndr: Bound,
    /// At most 0.5 % lost.
    pub pdr: Bound,
    /// Every trial.
    pub trials: Vec<SearchTrial>,
}

/// A rate between two that were tried.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default)]
pub struct Bound {
    /// Million packets a second that hold; none where not even the least did.
    pub mpps: Option<f64>,
    /// Million packets a second that do not; none where all did.
    pub fails_at_mpps: Option<f64>,
}

/// One trial of the search.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
pub struct SearchTrial {
    /// Million packets a second offered.
    pub mpps: f64,
    /// Packets offered.
    pub sent: u64,
    /// Packets lost.
    pub lost: u64,
}

/// Latency from when a packet was due to when it was taken out of the last queue.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct LatencyReport {
    /// Million packets a second offered.
    pub mpps: f64,
    /// Packets with a time.
    pub samples: u64,
    /// Packets lost meanwhile.
    pub lost: u64,
    /// The least, in nanoseconds.
    pub min_ns: u64,
    /// The mean, in nanoseconds.
    pub mean_ns: f64,
    /// Percentiles.
    pub percentiles: Vec<Percentile>,
}

/// The time that so many packets took at most.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
pub struct Percentile {
    /// In percent; 100 is the longest.
    pub percent: f64,
    /// In nanoseconds.
    pub ns: u64,
}

/// Cycles by stage of one gateway.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct GatewayStages {
    /// `seal` or `open`.
    pub gateway: String,
    /// Packets that went through.
    pub packets: u64,
    /// TSC cycles per packet by stage, in order.
    pub stages: Vec<StageCycles>,
}

/// One stage.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct StageCycles {
    /// Its name.
    pub stage: String,
    /// TSC cycles per packet.
    pub cycles: f64,
}

/// What one SA takes of memory, in bytes.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default)]
pub struct MemoryReport {
    /// To seal: key schedule, headers, number, counters.
    pub outbound_bytes: usize,
    /// To open: key schedule, window, selectors, counters.
    pub inbound_bytes: usize,
}

impl Spread {
    /// Of `values`; all zero where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.get(middle) {
            None => 0.0,
            Some(upper) if values.len().is_multiple_of(2) => f64::midpoint(
                values
                    .get(middle.saturating_sub(1))
                    .copied()
                    .unwrap_or(*upper),
                *upper,
            ),
            Some(only) => *only,
        };
        Self {
            median,
            least: values.first().copied().unwrap_or(0.0),
            most: values.last().copied().unwrap_or(0.0),
        }
    }
}

impl Summary {
    /// Of `trials`.
    pub fn of(trials: &[Trial]) -> Self {
        let spread = |pick: fn(&Trial) -> f64| Spread::of(trials.iter().map(pick));
        Self {
            mpps: spread(|trial| trial.mpps),
            inner_gbps: spread(|trial| trial.inner_gbps),
            outer_gbps: spread(|trial| trial.outer_gbps),
            generate: spread(|trial| trial.cycles.generate),
            seal: spread(|trial| trial.cycles.seal),
            open: spread(|trial| trial.cycles.open),
            check: spread(|trial| trial.cycles.check),
            threads: spread(|trial| trial.cycles.threads),
        }
    }
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = self.head();
        self.trials_text(&mut text);
        if let Some(search) = &self.search {
            search_text(search, &mut text);
        }
        if let Some(latency) = &self.latency {
            latency_text(latency, &mut text);
        }
        self.stages_text(&mut text);
        if let Some(memory) = self.memory {
            let _ = writeln!(
                text,
                "\nState of an SA: {} bytes to seal, {} bytes to open (window of {}); SAs each way: {}.",
                memory.outbound_bytes,
                memory.inbound_bytes,
                self.scenario.window,
                self.scenario.sas
            );
        }
        for fault in &self.faults {
            let _ = writeln!(text, "\nFAILED: {fault}");
        }
        text
    }

    fn head(&self) -> String {
        let scenario = &self.scenario;
        let place = match (&scenario.port, &scenario.back) {
            (Some(port), Some(back)) => format!("{port} to {back}"),
            _ => format!(
                "{}, SAs: {}, {}{}, window {}",
                scenario.through,
                scenario.sas,
                scenario.cipher,
                if scenario.esn { " with ESN" } else { "" },
                scenario.window
            ),
        };
        let cores = match scenario.generator_core {
            None => format!(
                "workers, generator and checker on cores {:?}",
                scenario.worker_cores
            ),
            Some(core) => format!(
                "workers on cores {:?}, generator and checker on {core}",
                scenario.worker_cores
            ),
        };
        format!(
            "{place}; sizes {} (mean {:.1}), {}, {} flows{}{}{}\n{cores}; TSC {:.0} MHz, AES-GCM {}, {}\n\n",
            scenario.sizes,
            scenario.mean_size,
            scenario.families.join(" "),
            scenario.flows,
            if scenario.order == Order::Scattered.name() {
                ", scattered"
            } else {
                ""
            },
            if scenario.both_ways {
                ", both ways"
            } else {
                ""
            },
            if scenario.spray { ", sprayed" } else { "" },
            self.machine.tsc_hz as f64 / 1e6,
            self.machine.aead,
            if self.machine.hugepages {
                "hugepages"
            } else {
                "no hugepages"
            },
        )
    }

    fn trials_text(&self, text: &mut String) {
        let summary = &self.summary;
        let mut table = table(&["", "median", "least", "most"]);
        let mut row = |name: &str, spread: Spread, digits: usize| {
            if spread.most > 0.0 {
                let cell = |value: f64| format!("{value:.digits$}");
                table.add_row([
                    name.to_owned(),
                    cell(spread.median),
                    cell(spread.least),
                    cell(spread.most),
                ]);
            }
        };
        row("Mpps", summary.mpps, 3);
        row("inner Gbit/s", summary.inner_gbps, 3);
        row("outer Gbit/s", summary.outer_gbps, 3);
        row("cycles per packet: generate", summary.generate, 0);
        row("cycles per packet: seal", summary.seal, 0);
        row("cycles per packet: open", summary.open, 0);
        row("cycles per packet: check", summary.check, 0);
        row("cycles per packet: all threads", summary.threads, 0);
        let _ = writeln!(text, "{table}");
        let sum = |pick: fn(&Trial) -> u64| self.trials.iter().map(pick).sum::<u64>();
        let extent = self.trials.iter().map(|trial| trial.reordered_extent).max();
        let _ = writeln!(
            text,
            "trials: {}; {} sent = {} back + {} lost; {} checked, {} mismatched, {} reordered (by {} at most), {} twice",
            self.trials.len(),
            sum(|trial| trial.sent),
            sum(|trial| trial.received),
            sum(|trial| trial.lost),
            sum(|trial| trial.checked),
            sum(|trial| trial.mismatched),
            sum(|trial| trial.reordered),
            extent.unwrap_or(0),
            sum(|trial| trial.duplicates),
        );
        if sum(|trial| trial.refused) > 0 {
            let _ = writeln!(
                text,
                "{} of the lost found the first queue full",
                sum(|trial| trial.refused)
            );
        }
        let mut drops: Vec<(String, u64)> = Vec::new();
        for drop in self.trials.iter().flat_map(|trial| &trial.drops) {
            let name = format!("{} {}: {}", drop.gateway, drop.direction, drop.reason);
            match drops.iter_mut().find(|(known, _)| *known == name) {
                Some((_, packets)) => *packets += drop.packets,
                None => drops.push((name, drop.packets)),
            }
        }
        for (name, packets) in drops {
            let _ = writeln!(text, "dropped at {name} {packets}");
        }
        for (what, cycles) in [("sealing", summary.seal), ("opening", summary.open)] {
            if cycles.median > 0.0 {
                let _ = writeln!(
                    text,
                    "A core that does nothing but {what} would pass {:.2} Mpps (TSC over cycles, computed).",
                    self.machine.tsc_hz as f64 / cycles.median / 1e6
                );
            }
        }
    }

    fn stages_text(&self, text: &mut String) {
        for gateway in &self.stages {
            let sum: f64 = gateway.stages.iter().map(|stage| stage.cycles).sum();
            let most = gateway
                .stages
                .iter()
                .map(|stage| stage.cycles)
                .fold(1.0, f64::max);
            let _ = writeln!(
                text,
                "\nTSC cycles per packet by stage, {}, {} packets:",
                gateway.gateway, gateway.packets
            );
            for stage in &gateway.stages {
                let bar = "█".repeat(bar_len(stage.cycles / most));
                let _ = writeln!(text, "  {:<10}{:>8.1}  {bar}", stage.stage, stage.cycles);
            }
            let _ = writeln!(text, "  {:<10}{sum:>8.1}", "all");
        }
    }
}

/// Of 40 columns.
fn bar_len(part: f64) -> usize {
    (0..40u8)
        .filter(|column| f64::from(*column) + 0.5 < part * 40.0)
        .count()
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.set_header(head);
    for column in 1..head.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn search_text(search: &SearchReport, text: &mut String) {
    let mut table = table(&["", "holds, Mpps", "fails at, Mpps"]);
    for (name, bound) in [
        ("NDR (no loss)", search.ndr),
        ("PDR (0.5 % loss)", search.pdr),
    ] {
        let cell =
            |value: Option<f64>| value.map_or_else(|| "none".into(), |mpps| format!("{mpps:.3}"));
        table.add_row([name.to_owned(), cell(bound.mpps), cell(bound.fails_at_mpps)]);
    }
    let _ = writeln!(
        text,
        "\n{table}\n{} trials of the search",
        search.trials.len()
    );
}

fn latency_text(latency: &LatencyReport, text: &mut String) {
    let mut table = table(&["latency", "µs"]);
    let micros = |ns: f64| format!("{:.1}", ns / 1000.0);
    table.add_row(["least".to_owned(), micros(latency.min_ns as f64)]);
    for each in &latency.percentiles {
        let name = if each.percent >= 100.0 {
            "most".to_owned()
        } else {
            format!("p{}", each.percent)
        };
        table.add_row([name, micros(each.ns as f64)]);
    }
    let _ = writeln!(
        text,
        "\n{table}\nat {:.3} Mpps offered by the clock, {} packets timed, {} lost",
        latency.mpps, latency.samples, latency.lost
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_of_the_middle_and_the_ends() {
        let spread = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!((spread.least, spread.median, spread.most), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of([4.0, 1.0]).median, 2.5);
        assert_eq!(Spread::of([]).median, 0.0);
    }

    #[test]
    fn report_for_people_tells_what_failed() {
        let report = Report {
            trials: vec![Trial {
                sent: 10,
                received: 9,
                lost: 1,
                ..Trial::default()
            }],
            faults: vec!["1 packet is missing".into()],
            ..Report::default()
        };
        let text = report.text();
        assert!(text.contains("10 sent = 9 back + 1 lost"), "{text}");
        assert!(text.contains("FAILED: 1 packet is missing"), "{text}");
    }

    #[test]
    fn bars_are_as_long_as_their_part() {
        assert_eq!((bar_len(0.0), bar_len(0.5), bar_len(1.0)), (0, 20, 40));
    }
}
