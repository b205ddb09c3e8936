//! `simplon explain`: what would become of a packet, step by step.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::client::Connection;
use super::{Failure, GatewayArgs, capture, client, print, show};
use crate::control::explain::{Ask, Case, Explanation, Flow, Rise};
use crate::control::protocol::Method;
use crate::policy::{protocol_names, protocol_number};

/// Shown behind the options.
pub(super) const EXAMPLES: &str = "\
Examples:
  simplon explain --local 10.1.0.10 --remote 10.2.0.10 --protocol tcp --remote-port 443
  simplon explain --local 10.1.0.10 --remote 10.2.0.10 --length 1500 --df
  simplon explain --local 10.1.0.10 --remote 10.2.0.10 --inbound --tunnel west-east
  simplon explain --packet wire.pcap --number 7";

/// What to explain: a flow or a packet
#[derive(Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    flow: FlowArgs,
    /// A packet of this capture file, pcap or pcapng, instead of a flow
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "local",
        conflicts_with = "FlowArgs"
    )]
    packet: Option<PathBuf>,
    /// Which one, counted from 1 on; the first without
    #[arg(long, value_name = "N", requires = "packet", conflicts_with = "FlowArgs", value_parser = parse_number)]
    number: Option<usize>,
    /// The port it comes in by; without it the only one that it can be
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
    /// The tunnel that an inbound flow comes out of; without it the one that policies name
    #[arg(
        long,
        value_name = "NAME",
        requires = "inbound",
        conflicts_with = "packet"
    )]
    tunnel: Option<String>,
    /// As JSON, for machines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// A packet in words
#[derive(Args)]
struct FlowArgs {
    /// Address on this side
    #[arg(long, value_name = "ADDR", requires = "remote")]
    local: Option<IpAddr>,
    /// Address on the other side
    #[arg(long, value_name = "ADDR", requires = "local")]
    remote: Option<IpAddr>,
    /// IP protocol, by name or number; TCP where a port is named, and a ping where not
    #[arg(long, value_name = "NAME", value_parser = parse_protocol)]
    protocol: Option<u8>,
    /// Port on this side
    #[arg(long, value_name = "PORT")]
    local_port: Option<u16>,
    /// Port on the other side
    #[arg(long, value_name = "PORT")]
    remote_port: Option<u16>,
    /// Type of ICMP
    #[arg(long, value_name = "N")]
    icmp_type: Option<u8>,
    /// Code of ICMP
    #[arg(long, value_name = "N", requires = "icmp_type")]
    icmp_code: Option<u8>,
    /// Length of the IP packet; as short as it can be without
    #[arg(long, value_name = "BYTES")]
    length: Option<u16>,
    /// Not to be fragmented (IPv4)
    #[arg(long)]
    df: bool,
    /// TTL or hop limit; 64 without
    #[arg(long, value_name = "N")]
    ttl: Option<u8>,
    /// From the other side to this one
    #[arg(long)]
    inbound: bool,
}

/// Asks the gateway and prints what it says. Whatever the verdict, that is success.
pub(super) fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    let packet = match &args.packet {
        Some(path) => Some(capture::read(path, args.number.unwrap_or(1))?),
        None => None,
    };
    let ask = Ask {
        flow: args.flow.flow(),
        packet,
        port: args.port.clone(),
        tunnel: args.tunnel.clone(),
    };
    let socket = client::socket_path(
        args.gateway.socket.as_deref(),
        args.gateway.config.as_deref(),
    )?;
    let result = Connection::open(&socket)?.ask(Method::Explain, &ask)?;
    let text = match args.json {
        true => format!("{result:#}\n"),
        false => render(&show::read(result)?),
    };
    print(text.as_bytes()).map(drop)
}

impl FlowArgs {
    fn flow(&self) -> Option<Flow> {
        Some(Flow {
            local: self.local?,
            remote: self.remote?,
            protocol: self.protocol,
            local_port: self.local_port,
            remote_port: self.remote_port,
            icmp_type: self.icmp_type,
            icmp_code: self.icmp_code,
            length: self.length,
            dont_fragment: self.df,
            ttl: self.ttl,
            inbound: self.inbound,
        })
    }
}

fn parse_protocol(text: &str) -> Result<u8, String> {
    protocol_number(&text.to_lowercase()).ok_or_else(|| {
        let names: Vec<_> = protocol_names().collect();
        format!("a number from 0 to 255, or one of {}", names.join(", "))
    })
}

fn parse_number(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "a number from 1 on".into())
}

fn render(explanation: &Explanation) -> String {
    let cases: Vec<_> = explanation.cases.iter().map(render_case).collect();
    cases.join("\n")
}

fn render_case(case: &Case) -> String {
    let mut text = String::new();
    if let Some(assuming) = &case.assuming {
        let _ = writeln!(text, "If {assuming}:");
    }
    let _ = writeln!(
        text,
        "{}, by port {}: {}",
        case.direction, case.port, case.packet
    );
    let longest = case.steps.iter().map(|step| step.step.len()).max();
    let width = longest.unwrap_or(0);
    for step in &case.steps {
        let mark = if step.passed { "ok  " } else { "stop" };
        let _ = writeln!(text, "  {mark}  {:width$}  {}", step.step, step.what);
    }
    let verdict = &case.verdict;
    let mut end = verdict.verdict.clone();
    if let Some(pieces) = verdict.pieces {
        let _ = write!(end, " into {pieces} pieces");
    }
    if let Some(reason) = &verdict.reason {
        let _ = write!(end, ", {reason}");
    }
    let _ = writeln!(text, "{end}: {}", verdict.help);
    if let Some(next) = &verdict.next {
        let _ = writeln!(text, "what to do: {next}");
    }
    let counters: Vec<_> = case.counters.iter().map(rise).collect();
    let _ = writeln!(
        text,
        "counters ({}): {}",
        case.direction,
        counters.join(", ")
    );
    text
}

fn rise(rise: &Rise) -> String {
    let reason = rise
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(" {reason}"));
    format!("{}{reason} +{}", rise.counter, rise.packets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn parse(arguments: &[&str]) -> Result<ExplainArgs, String> {
        let arguments = ["simplon", "explain"].iter().chain(arguments);
        match Cli::try_parse_from(arguments).map(|cli| cli.command) {
            Ok(Command::Explain(args)) => Ok(*args),
            Ok(_) => panic!("another command"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn flow_is_as_the_words_say() {
        let ends = ["--local", "10.1.0.10", "--remote", "10.2.0.10"];
        let with = |more: &[&str]| {
            let all: Vec<_> = ends.iter().chain(more).copied().collect();
            parse(&all).map(|args| args.flow.flow().expect("a flow"))
        };
        let flow = with(&[
            "--protocol",
            "TCP",
            "--remote-port",
            "443",
            "--df",
            "--ttl",
            "9",
        ]);
        let flow = flow.expect("understood");
        assert_eq!(
            (flow.protocol, flow.remote_port, flow.ttl),
            (Some(6), Some(443), Some(9))
        );
        assert!(flow.dont_fragment && !flow.inbound);
        assert_eq!(
            with(&["--protocol", "47"]).expect("understood").protocol,
            Some(47)
        );
        let icmp =
            with(&["--icmp-type", "3", "--icmp-code", "4", "--inbound"]).expect("understood");
        assert_eq!(
            (icmp.icmp_type, icmp.icmp_code, icmp.inbound),
            (Some(3), Some(4), true)
        );
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (arguments, said) in [
            (&[][..], "--packet"),
            (&["--local", "10.1.0.1"], "--remote"),
            (&["--remote", "10.1.0.1"], "--local"),
            (
                &["--packet", "x.pcap", "--local", "10.1.0.1"],
                "cannot be used with",
            ),
            (&["--packet", "x.pcap", "--number", "0"], "from 1 on"),
            (
                &["--packet", "x.pcap", "--tunnel", "t"],
                "cannot be used with",
            ),
            (
                &["--local", "::1", "--remote", "::2", "--protocol", "tpc"],
                "icmp, igmp",
            ),
            (
                &["--local", "::1", "--remote", "::2", "--icmp-code", "1"],
                "--icmp-type",
            ),
            (
                &["--local", "::1", "--remote", "::2", "--number", "2"],
                "cannot be used with",
            ),
            (&["--local", "10.1.0.1/24", "--remote", "::2"], "invalid"),
        ] {
            let error = parse(arguments).err();
            let error = error.unwrap_or_else(|| panic!("{arguments:?} is taken"));
            assert!(error.contains(said), "{arguments:?}: {error}");
        }
    }
}
