//! `simplon trace`: packets followed through the stages of a running gateway, a line each, or as pcapng.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::client::Connection;
use super::pcapng::Capture;
use super::{Failure, GatewayArgs, client, parse_interval, print, show};
use crate::control::protocol::Method;
use crate::control::trace::{
    DEFAULT_COUNT, Packet, Packets, SelectorParams, Start, Started, Step, TrafficReport, Which,
};

/// Pause before asking again where nothing was there.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) const EXAMPLES: &str = "\
Examples:
  What happens to the next ten packets of a host, wherever they come in:
    simplon trace --count 10 --local 10.1.0.10
  What is dropped, and why:
    simplon trace --dropped
  The web traffic of a tunnel, clear and sealed, for Wireshark:
    simplon trace --tunnel west-east --protocol tcp --remote-ports 80,443 --write web.pcapng
  The same as it comes:
    simplon trace --tunnel west-east --write - | wireshark -k -i -

Filters say what [[policy]] says, in the same words, and all that are given must hold. Local is
this gateway's protected side, whichever way a packet goes. They are held against the clear packet:
on the way out as it came in, on the way in as it was opened. What came in sealed and was not opened
has its outer addresses, and its SPI, alone.";

/// Which packets to follow, and where to write them
#[derive(Args)]
pub(super) struct TraceArgs {
    /// Follow so many packets and end
    #[arg(long, value_name = "N", default_value_t = DEFAULT_COUNT, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// End after this time, however many packets there were
    #[arg(long = "for", value_name = "SECONDS", value_parser = parse_interval)]
    time: Option<Duration>,
    /// Write pcapng, clear and sealed form, with what happened as comment; - is standard output
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// One JSON object a packet, for machines
    #[arg(long, conflicts_with = "write")]
    json: bool,
    /// End the trace that is under way, whoever began it, and follow nothing
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Which packets are meant
#[derive(Args)]
#[command(next_help_heading = "Filters")]
struct FilterArgs {
    /// Out of the protected side, or into it
    #[arg(long, value_enum)]
    direction: Option<Direction>,
    /// The port they come in by or leave by
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
    /// The tunnel that carries them
    #[arg(long, value_name = "NAME")]
    tunnel: Option<String>,
    /// The SPI that they come with or get
    #[arg(long)]
    spi: Option<String>,
    /// Address, prefix or range on the local side
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    local: Vec<String>,
    /// Address, prefix or range on the remote side
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    remote: Vec<String>,
    /// Protocol by name or number
    #[arg(long, value_delimiter = ',')]
    protocol: Vec<String>,
    /// Port or range on the local side
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    local_ports: Vec<String>,
    /// Port or range on the remote side
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    remote_ports: Vec<String>,
    /// Type of ICMP, or type/code
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    icmp: Vec<String>,
    /// Only packets that are dropped
    #[arg(long)]
    dropped: bool,
    /// Only packets that are dropped for this reason, as `simplon show drops` names it
    #[arg(long = "reason", value_name = "REASON", value_delimiter = ',')]
    reasons: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// From the protected side
    Outbound,
    /// From the unprotected side
    Inbound,
}

impl TraceArgs {
    fn start(&self) -> Start {
        let filter = &self.filter;
        Start {
            count: Some(self.count),
            direction: filter.direction.map(|direction| {
                match direction {
                    Direction::Outbound => "outbound",
                    Direction::Inbound => "inbound",
                }
                .into()
            }),
            port: filter.port.clone(),
            tunnel: filter.tunnel.clone(),
            spi: filter.spi.clone(),
            dropped: filter.dropped,
            reasons: filter.reasons.clone(),
            selectors: SelectorParams {
                local: list(&filter.local),
                remote: list(&filter.remote),
                protocol: list(&filter.protocol),
                local_ports: list(&filter.local_ports),
                remote_ports: list(&filter.remote_ports),
                icmp: list(&filter.icmp),
            },
        }
    }
}

/// Values of a key of `[[policy]]`, in which numbers are numbers.
fn list(values: &[String]) -> Option<Value> {
    let value = |text: &String| -> Value {
        match text.parse::<u64>() {
            Ok(number) => number.into(),
            Err(_) => text.clone().into(),
        }
    };
    (!values.is_empty()).then(|| values.iter().map(value).collect())
}

/// Ends when all is there, when the time is over, at a signal, or when nobody reads what is printed.
pub(super) fn trace(args: &TraceArgs) -> Result<(), Failure> {
    let socket = client::socket_path(
        args.gateway.socket.as_deref(),
        args.gateway.config.as_deref(),
    )?;
    let mut connection = Connection::open(&socket)?;
    if args.stop {
        return connection
            .ask(Method::TraceStop, &Which::default())
            .map(drop);
    }
    let stop = watch_signals()
        .map_err(|error| Failure::new(format_args!("cannot watch signals: {error}")))?;
    // Before anything is followed, so that a file that cannot be written is no trace.
    let file = args.write.as_deref().map(create).transpose()?;
    let started: Started = show::read(connection.ask(Method::TraceStart, &args.start())?)?;
    let mut output = match file {
        Some(file) => {
            let capture = Capture::new(file, &started.ports);
            Output::Pcapng(Box::new(capture.map_err(|error| failed(args, &error))?))
        }
        None if args.json => Output::Json,
        None => Output::Lines,
    };
    let (followed, missed) = follow(args, &mut connection, started.trace, (&stop, &mut output))?;
    if let Some(path) = &args.write {
        eprintln!("{followed} packets followed, written to {}", path.display());
    }
    if missed > 0 {
        eprintln!(
            "{missed} more were meant and missed: they came faster than they were read. A narrower filter, or a --count of {} and \
             less, misses none",
            started.room
        );
    }
    Ok(())
}

/// Reads until the trace is done; returns how many packets were followed and how many missed.
fn follow(
    args: &TraceArgs,
    connection: &mut Connection<'_>,
    trace: u64,
    (stop, output): (&AtomicBool, &mut Output),
) -> Result<(u64, u64), Failure> {
    let which = Which { trace: Some(trace) };
    let began = Instant::now();
    let mut is_stopped = false;
    let mut followed = 0;
    loop {
        let is_late = args.time.is_some_and(|time| began.elapsed() >= time);
        if !is_stopped && (is_late || stop.load(Ordering::Relaxed)) {
            is_stopped = true;
            connection.ask(Method::TraceStop, &which)?;
        }
        let read: Packets = show::read(connection.ask(Method::TraceRead, &which)?)?;
        for packet in &read.packets {
            followed += 1;
            let written = output.put(followed, packet);
            if !written.map_err(|error| failed(args, &error))? {
                connection.ask(Method::TraceStop, &which)?;
                return Ok((followed, read.missed));
            }
        }
        let is_read = output.flush().map_err(|error| failed(args, &error))?;
        if read.done || !is_read {
            if !read.done {
                connection.ask(Method::TraceStop, &which)?;
            }
            return Ok((followed, read.missed));
        }
        if read.packets.is_empty() {
            std::thread::sleep(PAUSE);
        }
    }
}

/// The first signal ends the trace in order, a second one at once.
fn watch_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// What is in it is for its owner: it is clear text.
fn create(path: &Path) -> Result<Box<dyn Write>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(BufWriter::new(io::stdout())));
    }
    let file: io::Result<File> = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.map(|file| Box::new(BufWriter::new(file)) as Box<dyn Write>)
        .map_err(|error| Failure::new(format_args!("cannot write {}: {error}", path.display())))
}

fn failed(args: &TraceArgs, error: &io::Error) -> Failure {
    let path = args
        .write
        .as_deref()
        .unwrap_or(Path::new("standard output"));
    Failure::new(format_args!("cannot write {}: {error}", path.display()))
}

/// Where packets go.
enum Output {
    Lines,
    Json,
    Pcapng(Box<Capture<Box<dyn Write>>>),
}

impl Output {
    /// Writes a packet. Returns whether anybody reads it still.
    fn put(&mut self, number: u64, packet: &Packet) -> io::Result<bool> {
        let text = match self {
            Self::Pcapng(capture) => return is_read(capture.put(packet, &comment(number, packet))),
            Self::Lines => human(packet),
            Self::Json => serde_json::to_string(packet)?,
        };
        print(format!("{text}\n").as_bytes()).map_err(|Failure(message)| io::Error::other(message))
    }

    fn flush(&mut self) -> io::Result<bool> {
        match self {
            Self::Pcapng(capture) => is_read(capture.flush()),
            Self::Lines | Self::Json => Ok(true),
        }
    }
}

fn is_read(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

/// One packet on one line.
fn human(packet: &Packet) -> String {
    let time = packet
        .at
        .split_once('T')
        .map_or(&*packet.at, |(_, time)| time);
    // Microseconds are enough for people.
    let time = time.get(..15).unwrap_or(time);
    format!(
        "{time} {} > {} {} {} bytes: {}; {}",
        packet.port_in,
        packet.port_out,
        flow(packet),
        packet.received.length,
        outcome(packet),
        path(&packet.steps),
    )
}

/// What happened to a packet, for who sees it among others.
fn comment(number: u64, packet: &Packet) -> String {
    let mut text = format!(
        "simplon packet {number} {}: {}; {}; {} > {}, {}",
        packet.direction,
        outcome(packet),
        path(&packet.steps),
        packet.port_in,
        packet.port_out,
        flow(packet),
    );
    if let Some(tunnel) = &packet.tunnel {
        text += &format!("; tunnel {tunnel}");
    }
    if let Some(spi) = &packet.spi {
        text += &format!("; SPI {spi}");
    }
    if let Some(sequence) = packet.sequence {
        text += &format!("; sequence {sequence}");
    }
    text + &format!("; worker on core {}", packet.worker)
}

/// Who sends to whom.
fn flow(packet: &Packet) -> String {
    let origin = match &*packet.origin {
        "wire" => "",
        "host" => ", from the host side",
        _ => ", made by the gateway",
    };
    let Some(traffic) = &packet.traffic else {
        return format!("no IP{origin}");
    };
    let TrafficReport {
        local,
        remote,
        protocol,
        ..
    } = traffic;
    let end = |address: &std::net::IpAddr, port: Option<u16>| match port {
        Some(port) => std::net::SocketAddr::new(*address, port).to_string(),
        None => address.to_string(),
    };
    let (local, remote) = (
        end(local, traffic.local_port),
        end(remote, traffic.remote_port),
    );
    let (from, to) = if packet.direction == "outbound" {
        (local, remote)
    } else {
        (remote, local)
    };
    let kind = traffic.icmp.as_ref();
    let kind = kind.map_or_else(String::new, |kind| format!(" {kind}"));
    format!("{protocol}{kind} {from} > {to}{origin}")
}

/// What became of it.
fn outcome(packet: &Packet) -> String {
    let mut text = packet.verdict.clone();
    if let Some(reason) = &packet.reason {
        text += &format!(" ({reason})");
    }
    match (&*packet.verdict, &packet.left) {
        ("sent", Some(left)) => text += &format!(", {} of {} bytes", left.form, left.length),
        ("bypassed", Some(left)) => text += &format!(", {} bytes", left.length),
        _ => {}
    }
    if let Some(limit) = packet.limit {
        text += &format!(", {limit} bytes would have gone");
    }
    if let Some(help) = &packet.help {
        text += &format!(": {}", help.trim_end_matches('.'));
    }
    text
}

/// The stages it went through.
fn path(steps: &[Step]) -> String {
    let step = |step: &Step| match &step.found {
        Some(found) => format!("{} ({found})", step.stage),
        None => step.stage.clone(),
    };
    steps.iter().map(step).collect::<Vec<_>>().join(" > ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::trace::FormReport;

    fn form(form: &str, length: usize) -> FormReport {
        FormReport {
            form: form.into(),
            link: "ethernet".into(),
            length,
            bytes: String::new(),
        }
    }

    fn packet() -> Packet {
        let step = |stage: &str, found: &str| Step {
            stage: stage.into(),
            found: Some(found.into()),
        };
        Packet {
            at: "2026-01-02T03:04:05.678901234Z".into(),
            worker: 1,
            direction: "inbound".into(),
            origin: "wire".into(),
            port_in: "wan".into(),
            port_out: "lan".into(),
            traffic: Some(TrafficReport {
                local: [10, 1, 0, 10].into(),
                remote: [10, 2, 0, 10].into(),
                protocol: "udp".into(),
                local_port: Some(53),
                remote_port: Some(4000),
                icmp: None,
            }),
            tunnel: Some("west-east".into()),
            spi: Some("0x00001002".into()),
            sequence: Some(7),
            limit: None,
            next_hop: None,
            verdict: "sent".into(),
            reason: None,
            help: None,
            steps: vec![step("parse", "IPv4"), step("tx", "lan")],
            received: form("sealed", 154),
            left: Some(form("clear", 98)),
        }
    }

    #[test]
    fn a_packet_is_one_line_from_sender_to_receiver() {
        assert_eq!(
            human(&packet()),
            "03:04:05.678901 wan > lan udp 10.2.0.10:4000 > 10.1.0.10:53 154 bytes: sent, clear of 98 bytes; parse (IPv4) > tx (lan)"
        );
    }

    #[test]
    fn a_comment_says_what_became_of_the_packet_and_why() {
        let dropped = Packet {
            verdict: "dropped".into(),
            reason: Some("replayed".into()),
            help: Some("This sequence number was received before.".into()),
            left: None,
            traffic: None,
            ..packet()
        };
        assert_eq!(
            comment(3, &dropped),
            "simplon packet 3 inbound: dropped (replayed): This sequence number was received before; parse (IPv4) > tx (lan); \
             wan > lan, no IP; tunnel west-east; SPI 0x00001002; sequence 7; worker on core 1"
        );
    }

    #[test]
    fn numbers_among_values_are_numbers() {
        let values = ["80".to_owned(), "1000-2000".into()];
        assert_eq!(list(&values), Some(serde_json::json!([80, "1000-2000"])));
        assert_eq!(list(&[]), None);
    }
}
