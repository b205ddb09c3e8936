//! `simplon bench`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::{Failure, log, parse_cipher, print};
use crate::bench;
use crate::bench::config::{
    Config, Cores, Families, Gateways, Goals, Length, Order, Outside, Rate, Through, Traffic,
};
use crate::crypto::aead::Cipher;
use crate::dpdk::allowed_cores;
use crate::generator::sizes::SizeMix;
use crate::policy::model::MacAddr;

/// Flows where nothing else is said.
const FLOWS: usize = 64;

/// Examples below the options.
pub(super) const EXAMPLES: &str = "\
Examples:
  How fast a pair of gateways is on this machine, every byte checked:
    simplon bench
  Sealing alone, with cycles by stage of the packet path:
    simplon bench --through seal --sizes 64 --stages
  Opening alone, packets spread over 1,000 SAs:
    simplon bench --through open --sas 1000
  Two workers, each with an SA of its own, until 10^9 packets have been checked; without --sas 2 they share one:
    simplon bench --workers 2 --sas 2 --packets 1G
  No-drop rate, latency at half of it, and a chart:
    simplon bench --generator-core 0 --cores 1 --ndr --latency --chart bench.svg
  Through gateways elsewhere, out of one interface and in by another:
    simplon bench --port net_af_packet0,iface=a0 --return net_af_packet1,iface=b0 \\
      --gateway-mac 02:00:00:00:00:01 --source 10.1.0.10 --destination 10.2.0.10 --rate 20k

At full speed inside this process nothing may be lost, broken or overtaken within a flow: the command fails if
something is, but for loss and order with --spray. What is broken or comes twice fails it everywhere.";

/// Measure gateways with a generator and checker of our own
#[derive(Args)]
pub(super) struct BenchArgs {
    /// What the traffic goes through
    #[arg(long, value_enum, default_value_t = ThroughArg::Pair, help_heading = "Gateways")]
    through: ThroughArg,
    /// Cipher of every SA
    #[arg(long, value_parser = parse_cipher, default_value = "aes-128-gcm", help_heading = "Gateways")]
    cipher: Cipher,
    /// 32-bit sequence numbers
    #[arg(long, help_heading = "Gateways")]
    no_esn: bool,
    /// Anti-replay window, in packets
    #[arg(
        long,
        value_name = "PACKETS",
        default_value_t = 1024,
        help_heading = "Gateways"
    )]
    window: u32,
    /// Packets that a ring between two ports holds
    #[arg(
        long,
        value_name = "PACKETS",
        default_value_t = 2047,
        help_heading = "Gateways"
    )]
    ring: u32,
    /// Workers of each gateway, on the last cores there are
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "cores",
        help_heading = "Gateways"
    )]
    workers: Option<usize>,
    /// Cores of the workers, one each
    #[arg(
        long,
        value_name = "CORE,...",
        value_delimiter = ',',
        help_heading = "Gateways"
    )]
    cores: Vec<usize>,
    /// Core of generator and checker; without it they take turns with the workers on each of their threads
    #[arg(long, value_name = "CORE", help_heading = "Gateways")]
    generator_core: Option<usize>,
    /// Lengths of inner packets: `imix` (46x7,552x4,1500x1), one such as `576`, or a mix such as `64x3,1420`
    #[arg(long, default_value = "imix", help_heading = "Traffic")]
    sizes: SizeMix,
    /// Inner and outer family of the SAs in turn: 4in4, 4in6, 6in4, 6in6
    #[arg(
        long,
        value_name = "XinY,...",
        value_delimiter = ',',
        default_value = "4in4",
        help_heading = "Traffic"
    )]
    families: Vec<Families>,
    /// SAs in each direction that the traffic is spread over
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Traffic")]
    sas: usize,
    /// Flows in each direction [default: 64, or one for each SA]
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    flows: Option<usize>,
    /// Packets of one flow in a row
    #[arg(
        long,
        value_name = "PACKETS",
        default_value_t = 1,
        help_heading = "Traffic"
    )]
    train: usize,
    /// Which flow has the next turn
    #[arg(long, value_enum, default_value_t = OrderArg::InTurn, help_heading = "Traffic")]
    order: OrderArg,
    /// Traffic both ways at a time
    #[arg(long, help_heading = "Traffic")]
    both_ways: bool,
    /// Deal the bursts of all flows out to all workers in turn, instead of each flow to one
    #[arg(long, help_heading = "Traffic")]
    spray: bool,
    /// Packets a second (800k, 1.5M) by the clock, or a part of the maximum (80%); without it as many as fit
    #[arg(long, help_heading = "Measurement")]
    rate: Option<Rate>,
    /// Seconds of one trial
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds, conflicts_with = "packets", help_heading = "Measurement")]
    duration: Duration,
    /// Packets of one trial, instead of a time: 10M, 1G
    #[arg(long, value_parser = parse_count, help_heading = "Measurement")]
    packets: Option<u64>,
    /// Seconds before each trial that do not count
    #[arg(long, value_name = "SECONDS", default_value = "0.2", value_parser = parse_seconds, help_heading = "Measurement")]
    warmup: Duration,
    /// Trials, for median and spread [default: 5, or 1 with --packets]
    #[arg(long, value_name = "N", help_heading = "Measurement")]
    repeat: Option<usize>,
    /// Search for the rate at which nothing is lost (NDR), and 0.5 % (PDR)
    #[arg(long, help_heading = "Measurement")]
    ndr: bool,
    /// Trials at one rate of the search, of which most decide; 1 is RFC 2544's way
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        help_heading = "Measurement"
    )]
    attempts: u32,
    /// How close the search comes
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = parse_percent, help_heading = "Measurement")]
    width: f64,
    /// Latency at this rate; a part is one of the NDR where that is searched for, else of the maximum
    #[arg(long, value_name = "RATE", num_args = 0..=1, default_missing_value = "50%", help_heading = "Measurement")]
    latency: Option<Rate>,
    /// TSC cycles by stage of the packet path, in a run of its own
    #[arg(long, help_heading = "Measurement")]
    stages: bool,
    /// As JSON, for machines
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write what was found as a chart
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    chart: Option<PathBuf>,
    #[command(flatten)]
    outside: OutsideArgs,
}

/// A device under test
#[derive(Args)]
struct OutsideArgs {
    /// Send out of this port, a PCI address or a virtual device such as net_af_packet0,iface=eth1
    #[arg(long, value_name = "DEVICE", requires_all = ["back", "gateway_mac", "source", "destination"], help_heading = "Device under test")]
    port: Option<String>,
    /// Where the traffic comes back
    #[arg(
        long = "return",
        id = "back",
        value_name = "DEVICE",
        requires = "port",
        help_heading = "Device under test"
    )]
    back: Option<String>,
    /// MAC address of the gateway at --port
    #[arg(long, value_name = "MAC", value_parser = parse_mac, requires = "port", help_heading = "Device under test")]
    gateway_mac: Option<MacAddr>,
    /// Source address of the traffic
    #[arg(
        long,
        value_name = "ADDRESS",
        requires = "port",
        help_heading = "Device under test"
    )]
    source: Option<IpAddr>,
    /// Destination address
    #[arg(
        long,
        value_name = "ADDRESS",
        requires = "port",
        help_heading = "Device under test"
    )]
    destination: Option<IpAddr>,
    /// How much the hop limit falls on the way
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=60), help_heading = "Device under test")]
    hops: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ThroughArg {
    /// One gateway that seals; a sixteenth is opened again and checked
    Seal,
    /// One gateway that opens what was sealed before, off the clock; every byte is checked
    Open,
    /// Two, one that seals and one that opens; every byte is checked
    Pair,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OrderArg {
    /// The one after, so that SAs are needed in the order in which they lie in memory
    InTurn,
    /// One far away, which no prefetcher of the processor guesses; each still has one turn a round
    Scattered,
}

pub(super) fn bench(args: BenchArgs) -> Result<(), Failure> {
    let json = args.json;
    let config = config(args);
    log::init_warnings();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))
            .and_then(|_| flag::register(signal, Arc::clone(&stop)))
            .map_err(|error| Failure::new(format_args!("cannot watch signals: {error}")))?;
    }
    let report = bench::run(&config, &stop).map_err(Failure::new)?;
    if json {
        let text = serde_json::to_string_pretty(&report).map_err(Failure::new)?;
        print(format!("{text}\n").as_bytes())?;
    } else {
        print(report.text().as_bytes())?;
    }
    if report.faults.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(report.faults.join("; ")))
    }
}

fn config(args: BenchArgs) -> Config {
    let cores = match args.workers {
        None if !args.cores.is_empty() => args.cores,
        workers => last_cores(workers.unwrap_or(1), args.generator_core),
    };
    let flows = args.flows.unwrap_or_else(|| args.sas.max(FLOWS));
    Config {
        traffic: Traffic {
            sizes: args.sizes,
            families: args.families,
            sas: args.sas,
            flows,
            train: args.train,
            order: match args.order {
                OrderArg::InTurn => Order::InTurn,
                OrderArg::Scattered => Order::Scattered,
            },
            both_ways: args.both_ways,
            spray: args.spray,
        },
        gateways: Gateways {
            through: match args.through {
                ThroughArg::Seal => Through::Seal,
                ThroughArg::Open => Through::Open,
                ThroughArg::Pair => Through::Pair,
            },
            cipher: args.cipher,
            esn: !args.no_esn,
            window: args.window,
            ring: args.ring,
        },
        cores: Cores {
            workers: cores,
            generator: args.generator_core,
        },
        goals: Goals {
            rate: args.rate.unwrap_or(Rate::Full),
            length: args
                .packets
                .map_or(Length::Time(args.duration), Length::Packets),
            warmup: args.warmup,
            repeat: args
                .repeat
                .unwrap_or(if args.packets.is_some() { 1 } else { 5 }),
            no_drop: args.ndr,
            attempts: args.attempts,
            width: args.width,
            latency: args.latency,
            stages: args.stages,
        },
        outside: outside(args.outside),
        chart: args.chart,
    }
}

/// clap has seen that all or none are there.
fn outside(args: OutsideArgs) -> Option<Outside> {
    let unset = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    Some(Outside {
        port: args.port?,
        back: args.back?,
        device_mac: args.gateway_mac?,
        source: args.source.unwrap_or(unset),
        destination: args.destination.unwrap_or(unset),
        hops: args.hops,
    })
}

/// The last `count` cores that this process may use, the generator's left out where there are enough without it.
fn last_cores(count: usize, generator: Option<usize>) -> Vec<usize> {
    let all = allowed_cores();
    let others: Vec<usize> = all
        .iter()
        .copied()
        .filter(|core| Some(*core) != generator)
        .collect();
    let from = if others.len() >= count { others } else { all };
    // Too many workers are refused later, with all the cores there are in the message.
    let missing = count.saturating_sub(from.len());
    let mut cores: Vec<usize> = from.into_iter().rev().take(count).rev().collect();
    let next = cores.last().map_or(0, |last| last + 1);
    cores.extend((next..).take(missing));
    cores
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| (0.0..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "seconds, up to 86400".into())
}

fn parse_percent(text: &str) -> Result<f64, String> {
    text.trim_end_matches('%')
        .parse::<f64>()
        .map(|percent| percent / 100.0)
        .map_err(|_| "a percentage such as 1%".into())
}

/// `1000`, `10k`, `10M`, `1G`.
fn parse_count(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1_000),
        Some((at, 'M')) => (&text[..at], 1_000_000),
        Some((at, 'G')) => (&text[..at], 1_000_000_000),
        _ => (text, 1),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(unit))
        .filter(|count| *count <= 1 << 40)
        .ok_or_else(|| "a number of packets such as 5000, 10M or 1G, up to 2^40".into())
}

fn parse_mac(text: &str) -> Result<MacAddr, String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| {
            (part.len() == 2)
                .then(|| u8::from_str_radix(part, 16).ok())
                .flatten()
        })
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map(MacAddr)
        .ok_or_else(|| "a MAC address such as 02:00:00:00:00:01".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_understood_or_refused() {
        assert_eq!(parse_count("5000"), Ok(5000));
        assert_eq!(parse_count("10M"), Ok(10_000_000));
        assert_eq!(parse_count("1G"), Ok(1_000_000_000));
        for bad in ["", "M", "-1", "1.5M", "99999G", "1é"] {
            assert!(parse_count(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mac_addresses_are_understood_or_refused() {
        assert_eq!(
            parse_mac("02:00:00:00:00:Fe"),
            Ok(MacAddr([2, 0, 0, 0, 0, 254]))
        );
        for bad in [
            "",
            "02:00",
            "02:00:00:00:00:0",
            "02:00:00:00:00:00:00",
            "02-00-00-00-00-00",
        ] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn workers_leave_the_generator_its_core() {
        let all = allowed_cores();
        if let [first, .., last] = all.as_slice() {
            assert_eq!(last_cores(1, None), [*last]);
            assert_ne!(last_cores(1, Some(*last)), [*last]);
            assert_eq!(last_cores(all.len(), Some(*first)), all);
        }
        assert_eq!(last_cores(all.len() + 2, None).len(), all.len() + 2);
    }
}
