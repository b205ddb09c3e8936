//! What is measured, as the command line says it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::BenchError;
use crate::crypto::aead::Cipher;
use crate::dpdk::lcore::allowed_cores;
use crate::generator::sizes::SizeMix;
use crate::generator::stream::MAX_FLOWS;
use crate::policy::model::MacAddr;

/// Most SAs: what the addresses that tunnels get are enough for.
pub const MAX_SAS: usize = 65_536;
/// Most workers: a pair of rings has that many queues.
const MAX_WORKERS: usize = 16;

/// What the traffic goes through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Through {
    /// One gateway that seals; one packet in [`SEAL_SAMPLE`] bursts is opened again and checked.
    Seal,
    /// One gateway that opens what was sealed before, off the clock.
    Open,
    /// A gateway that seals and one that opens; every byte is checked.
    Pair,
}

/// Of how many sealed bursts one is opened again, to be checked.
pub const SEAL_SAMPLE: u64 = 16;

impl Through {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seal => "seal",
            Self::Open => "open",
            Self::Pair => "pair",
        }
    }
}

/// IPv4 or IPv6, inside and outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Families {
    /// The inner packets are IPv6.
    pub inner_v6: bool,
    /// The outer ones are.
    pub outer_v6: bool,
}

impl FromStr for Families {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (inner_v6, outer_v6) = match text {
            "4in4" => (false, false),
            "4in6" => (false, true),
            "6in4" => (true, false),
            "6in6" => (true, true),
            _ => return Err("one of 4in4, 4in6, 6in4, 6in6 (inner in outer)".into()),
        };
        Ok(Self { inner_v6, outer_v6 })
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |is_v6| if is_v6 { 6 } else { 4 };
        write!(f, "{}in{}", digit(self.inner_v6), digit(self.outer_v6))
    }
}

/// How fast to send.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Rate {
    /// As fast as everything is taken: nothing is lost for want of room.
    Full,
    /// Packets a second, whatever becomes of them.
    Packets(f64),
    /// A part of what was measured at full speed; with a search for the no-drop rate, a part of that.
    Part(f64),
}

impl FromStr for Rate {
    type Err = String;

    /// `800000`, `800k`, `1.5M`, `80%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str, unit: f64| {
            digits
                .parse::<f64>()
                .ok()
                .map(|number| number * unit)
                .filter(|number| number.is_finite() && *number > 0.0)
        };
        let rate = if let Some(part) = text.strip_suffix('%') {
            number(part, 0.01)
                .filter(|part| *part <= 2.0)
                .map(Self::Part)
        } else if let Some(kilo) = text.strip_suffix(['k', 'K']) {
            number(kilo, 1e3).map(Self::Packets)
        } else if let Some(mega) = text.strip_suffix('M') {
            number(mega, 1e6).map(Self::Packets)
        } else {
            number(text, 1.0).map(Self::Packets)
        };
        rate.ok_or_else(|| {
            "packets a second such as 800k or 1.5M, or up to 200% of the maximum such as 80%".into()
        })
    }
}

/// How one trial ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// After this time.
    Time(Duration),
    /// After so many packets.
    Packets(u64),
}

/// In which order flows have their turns. Each has one in every round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// One after another, so that SAs lie in memory in the order in which they are needed.
    InTurn,
    /// Each far from the one before: no prefetcher of the processor guesses the next SA.
    Scattered,
}

impl Order {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InTurn => "in-turn",
            Self::Scattered => "scattered",
        }
    }
}

/// The traffic.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Lengths of the inner packets.
    pub sizes: SizeMix,
    /// Families, dealt out to the SAs in turn. Not empty.
    pub families: Vec<Families>,
    /// SAs in each direction that the traffic is spread over.
    pub sas: usize,
    /// Flows, at least one for each SA.
    pub flows: usize,
    /// Packets of one flow that are sent in a row.
    pub train: usize,
    /// In which order flows have their turns.
    pub order: Order,
    /// Both ways at a time.
    pub both_ways: bool,
    /// Deal the packets of a flow out to all workers, instead of one worker a flow.
    pub spray: bool,
}

/// The gateways.
#[derive(Clone, Copy, Debug)]
pub struct Gateways {
    /// What the traffic goes through.
    pub through: Through,
    /// Cipher of every SA.
    pub cipher: Cipher,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Anti-replay window, in packets.
    pub window: u32,
    /// Packets that a ring between two ports holds.
    pub ring: u32,
}

/// Threads and cores.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cores {
    /// The core of each worker.
    pub workers: Vec<usize>,
    /// The core of generator and checker; without one they share the workers' threads.
    pub generator: Option<usize>,
}

/// Ports towards a device under test, instead of gateways in this process.
#[derive(Clone, Debug)]
pub struct Outside {
    /// Out of which the traffic goes.
    pub port: String,
    /// In which it comes back.
    pub back: String,
    /// MAC address of the device on the side of `port`.
    pub device_mac: MacAddr,
    /// First source address.
    pub source: IpAddr,
    /// First destination address.
    pub destination: IpAddr,
    /// Routers between: how much the hop limit falls.
    pub hops: u8,
}

/// What is measured beside the maximum.
#[derive(Clone, Debug)]
pub struct Goals {
    /// The rate of the trials.
    pub rate: Rate,
    /// How a trial ends.
    pub length: Length,
    /// Time before each trial that does not count.
    pub warmup: Duration,
    /// Trials of the same, for median and spread.
    pub repeat: usize,
    /// Search for the no-drop rate and for the one at which 0.5 % are lost.
    pub no_drop: bool,
    /// Trials at one rate of the search, of which most decide.
    pub attempts: u32,
    /// How close the search comes, as a part of the rate.
    pub width: f64,
    /// Latency at this rate.
    pub latency: Option<Rate>,
    /// Cycles by stage of the packet path.
    pub stages: bool,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The traffic.
    pub traffic: Traffic,
    /// The gateways.
    pub gateways: Gateways,
    /// Threads and cores.
    pub cores: Cores,
    /// Ports towards a device under test.
    pub outside: Option<Outside>,
    /// What is measured.
    pub goals: Goals,
    /// Where the chart goes.
    pub chart: Option<PathBuf>,
}

impl Config {
    /// Refuses what cannot be measured, and says what could.
    ///
    /// # Errors
    /// [`BenchError::Arguments`].
    pub fn check(&self) -> Result<(), BenchError> {
        self.check_traffic()
            .and_then(|()| self.check_cores())
            .and_then(|()| self.check_goals())
            .and_then(|()| self.check_outside())
            .map_err(BenchError::Arguments)
    }

    fn check_traffic(&self) -> Result<(), String> {
        let traffic = &self.traffic;
        let (sas, flows, kinds) = (traffic.sas, traffic.flows, traffic.families.len());
        if !(1..=MAX_SAS).contains(&sas) {
            return Err(format!("{sas} SAs are not from 1 to {MAX_SAS}"));
        }
        if sas < kinds {
            return Err(format!(
                "an SA has one outer family, so {kinds} kinds of families need as many SAs: say --sas {kinds} or more"
            ));
        }
        if flows < sas {
            return Err(format!(
                "{flows} flows are fewer than the {sas} SAs they are to be spread over: say --flows {sas} or more"
            ));
        }
        if flows > MAX_FLOWS {
            return Err(format!("{flows} flows are more than {MAX_FLOWS}"));
        }
        if traffic.train == 0 {
            return Err("a train has at least one packet: say --train 1 or more".into());
        }
        let window = self.gateways.window;
        if !(window.is_power_of_two() && (64..=65_536).contains(&window)) {
            return Err(format!(
                "a window of {window} packets is no power of two from 64 to 65536"
            ));
        }
        let ring = self.gateways.ring;
        if !(256..=32_768).contains(&ring) {
            return Err(format!("rings of {ring} packets are not from 256 to 32768"));
        }
        Ok(())
    }

    fn check_cores(&self) -> Result<(), String> {
        let Cores { workers, generator } = &self.cores;
        let allowed = allowed_cores();
        if workers.is_empty() || workers.len() > MAX_WORKERS {
            return Err(format!(
                "{} workers are not from 1 to {MAX_WORKERS}",
                workers.len()
            ));
        }
        if let Some(core) = workers
            .iter()
            .chain(generator)
            .find(|core| !allowed.contains(core))
        {
            return Err(format!(
                "core {core} is not one that this process may use: {allowed:?}"
            ));
        }
        let twice = |core: &&usize| workers.iter().filter(|other| other == core).count() > 1;
        if let Some(core) = workers.iter().find(twice) {
            return Err(format!(
                "core {core} is given twice: give each worker one of its own"
            ));
        }
        if self.traffic.spray && generator.is_none() {
            return Err(
                "--spray deals one generator's bursts out to all workers, so that needs a thread of its own: \
                 say --generator-core CORE"
                    .into(),
            );
        }
        if self.traffic.flows < workers.len() {
            return Err(format!(
                "{} flows are too few for {} workers: say --flows {} or more",
                self.traffic.flows,
                workers.len(),
                workers.len()
            ));
        }
        Ok(())
    }

    fn check_goals(&self) -> Result<(), String> {
        let goals = &self.goals;
        let through = self.gateways.through;
        if goals.repeat == 0 {
            return Err("no trial is no measurement: say --repeat 1 or more".into());
        }
        if goals.attempts.is_multiple_of(2) || goals.attempts > 9 {
            return Err("--attempts takes an odd number up to 9, of which most decide".into());
        }
        if !(0.001..=0.2).contains(&goals.width) {
            return Err("--width takes 0.1% to 20%".into());
        }
        if matches!(goals.length, Length::Packets(0)) {
            return Err("--packets takes at least 1".into());
        }
        if matches!(goals.length, Length::Time(time) if time < Duration::from_millis(10)) {
            return Err("--duration takes at least 0.01 seconds".into());
        }
        let paced = goals.no_drop || goals.latency.is_some() || goals.rate != Rate::Full;
        if through == Through::Open && (paced || self.cores.generator.is_some()) {
            return Err(
                "--through open seals off the clock, so it cannot hold a rate nor have a generator of its own: \
                 leave out --rate, --ndr, --latency and --generator-core, or say --through pair"
                    .into(),
            );
        }
        if through != Through::Pair && goals.latency.is_some() {
            return Err("--latency needs packets that arrive: say --through pair".into());
        }
        if through != Through::Pair && self.traffic.both_ways {
            return Err("--both-ways needs two gateways: say --through pair".into());
        }
        Ok(())
    }

    fn check_outside(&self) -> Result<(), String> {
        let Some(outside) = &self.outside else {
            return Ok(());
        };
        if outside.source.is_ipv4() != outside.destination.is_ipv4() {
            return Err("--source and --destination are of two families".into());
        }
        if self.gateways.through == Through::Open {
            return Err("a device under test is measured --through seal (what comes back is ESP, and is counted) \
                 or --through pair (what comes back is what was sent, and is checked)"
                .into());
        }
        let inside_only = self.goals.stages
            || self.traffic.both_ways
            || self.traffic.spray
            || self.cores.workers.len() > 1
            || self.cores.generator.is_some()
            || self.traffic.sas > 1;
        if inside_only {
            return Err("--stages, --both-ways, --spray, --sas, --generator-core and several workers are about \
                 gateways in this process: leave them out with --port"
                .into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_understood_or_refused() {
        assert_eq!("800k".parse(), Ok(Rate::Packets(800_000.0)));
        assert_eq!("1.5M".parse(), Ok(Rate::Packets(1_500_000.0)));
        assert_eq!("12".parse(), Ok(Rate::Packets(12.0)));
        assert_eq!("80%".parse(), Ok(Rate::Part(0.8)));
        for bad in ["", "fast", "-1", "0", "0%", "201%", "nan", "inf", "1e999"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn families_read_as_they_are_written() {
        for name in ["4in4", "4in6", "6in4", "6in6"] {
            assert_eq!(
                name.parse::<Families>().map(|f| f.to_string()),
                Ok(name.into())
            );
        }
        assert!("5in4".parse::<Families>().is_err());
    }
}
