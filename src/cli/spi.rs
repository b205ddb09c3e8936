//! `simplon spi`: inbound SPIs for a split tunnel, chosen so that a NIC leads each to its own queue.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Failure, client, print};
use crate::control::protocol::Method;
use crate::control::report::{PortsReport, RssReport};
use crate::ids::{QueueId, Spi};
use crate::wire::rss::{EspInput, Spreading, USUAL_TABLE_LEN};

/// SPIs that are tried for each that is wanted: more than enough for 64 queues and both inputs.
const TRIES: u32 = 1 << 20;

/// What SPIs are for
#[derive(Args)]
pub(super) struct SpiArgs {
    /// Receive queues of the port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64), required_unless_present = "port")]
    queues: Option<u16>,
    /// How many SPIs; without it one for each queue
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    count: Option<u16>,
    /// Our outer address, where the packets go
    #[arg(long, value_name = "ADDRESS", requires = "remote")]
    local: Option<IpAddr>,
    /// The peer's outer address, where they come from
    #[arg(long, value_name = "ADDRESS", requires = "local")]
    remote: Option<IpAddr>,
    /// What the NIC hashes; without it both, so that it does not matter, where the addresses are given
    #[arg(long, value_enum)]
    input: Option<Input>,
    /// Length of the NIC's redirection table; does not matter where the number of queues is a power of two
    #[arg(long, value_name = "ENTRIES", default_value_t = USUAL_TABLE_LEN)]
    table_len: u16,
    /// Ask the running gateway for the key and the redirection table of this port
    #[arg(long, value_name = "NAME", conflicts_with_all = ["queues", "table_len"])]
    port: Option<String>,
    /// The gateway's policy file, to find its control socket
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "socket",
        requires = "port"
    )]
    config: Option<PathBuf>,
    /// The gateway's control socket
    #[arg(long, value_name = "PATH", requires = "port")]
    socket: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Input {
    /// The SPI alone
    Spi,
    /// Source and destination address and SPI
    AddressesSpi,
    /// SPIs that are good for either
    Both,
}

pub(super) fn spi(args: &SpiArgs) -> Result<(), Failure> {
    let spreading = match &args.port {
        Some(port) => of_port(args, port)?,
        None => Spreading::usual(args.queues.unwrap_or(1), args.table_len)
            .ok_or_else(|| Failure::new("the length of a redirection table is a power of two"))?,
    };
    let ends = args.local.zip(args.remote);
    if ends.is_some_and(|(local, remote)| local.is_ipv4() != remote.is_ipv4()) {
        return Err(Failure::new(
            "--local and --remote are of different families",
        ));
    }
    let inputs: &[EspInput] = match (args.input, ends) {
        (Some(Input::AddressesSpi), Some(_)) => &[EspInput::AddressesSpi],
        (None | Some(Input::Both), Some(_)) => &EspInput::ALL,
        (None | Some(Input::Spi), _) => &[EspInput::Spi],
        (Some(_), None) => {
            return Err(Failure::new(
                "where addresses are hashed, --local and --remote say which",
            ));
        }
    };
    if args.input.is_none() && ends.is_none() {
        eprintln!(
            "good where the NIC hashes the SPI alone; with --local and --remote, also where it hashes the addresses"
        );
    }
    let queues = u16::try_from(spreading.queues()).unwrap_or(u16::MAX);
    let mut start = [0; 4];
    getrandom::fill(&mut start)
        .map_err(|error| Failure::new(format_args!("no random numbers: {error}")))?;
    let mut candidates = Candidates(u32::from_ne_bytes(start));
    let mut text = String::from("spi         queue\n");
    for number in 0..args.count.unwrap_or(queues) {
        let wanted = QueueId(number % queues.max(1));
        let found = candidates.find(|spi| {
            // Without the addresses, only the SPI is hashed.
            let (local, remote) = ends.unwrap_or(([0; 4].into(), [0; 4].into()));
            let queue = |input: &EspInput| spreading.esp_queue(*input, remote, local, spi);
            inputs.iter().map(queue).all(|queue| queue == wanted)
        });
        let spi = found
            .ok_or_else(|| Failure::new(format_args!("no SPI comes to queue {}", wanted.0)))?;
        text += &format!("{spi}  {:>5}\n", wanted.0);
    }
    print(text.as_bytes()).map(drop)
}

/// SPIs one after another, each tried once.
struct Candidates(u32);

impl Candidates {
    fn find(&mut self, is_good: impl Fn(Spi) -> bool) -> Option<Spi> {
        for _ in 0..TRIES {
            self.0 = self.0.wrapping_add(1);
            if let Ok(spi) = Spi::new(self.0)
                && is_good(spi)
            {
                return Some(spi);
            }
        }
        None
    }
}

/// What the running gateway says of its port.
fn of_port(args: &SpiArgs, name: &str) -> Result<Spreading, Failure> {
    let socket = client::socket_path(args.socket.as_deref(), args.config.as_deref())?;
    let report: PortsReport = super::show::read(client::ask(&socket, Method::ShowPorts)?)?;
    let port = report.ports.iter().find(|port| port.name == name);
    let port = port.ok_or_else(|| Failure::new(format_args!("no port is called \"{name}\"")))?;
    let rss = port.rss.as_ref().and_then(RssReport::spreading);
    rss.ok_or_else(|| {
        Failure::new(format_args!(
            "the driver of port \"{name}\", {}, spreads nothing over queues, or does not tell how",
            port.driver
        ))
    })
}
