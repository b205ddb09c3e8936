//! Two gateways and two hosts on this machine: watch `simplon` carry traffic through an IPsec tunnel. `make run` runs it.
//!
//! It makes five network namespaces, starts `simplon run` in two of them, sends ping, TCP and UDP from host to host,
//! shows what the gateways count meanwhile, and looks at the wire between them to see that all of it was encrypted.
//! It exits with 0 only if everything worked, and takes everything down again, also on Ctrl-C.

#[cfg(feature = "dpdk")]
#[path = "demo/ring.rs"]
mod ring;
#[path = "../tests/testbed/mod.rs"]
mod testbed;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use clap::Parser;
use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
use serde_json::Value;
use testbed::{
    Capture, Failure, Family, Flow, Gateway, Ping, PortKind, Result, Site, Testbed, Transport,
    TunnelSpec, assert_wire_shows_only_esp, is_balanced, wait_until,
};

const INTRODUCTION: &str = "
  host A ────── gateway west ══════ wire ══════ gateway east ────── host B
  10.1.0.10       192.0.2.1     only ESP here     192.0.2.2       10.2.0.10

Five network namespaces of this machine play two hosts, two gateways and the wire between them. The hosts speak
plain IP. The gateways are two `simplon run` processes: each takes packets from its host, seals them with AES-GCM
and sends them to the other as ESP packets, which opens them again. The kernel forwards nothing.
";

/// Watch two gateways carry traffic through an IPsec tunnel on this machine.
#[derive(Parser)]
struct Arguments {
    /// Let the gateways use AF_XDP sockets instead of AF_PACKET.
    #[arg(long)]
    af_xdp: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match Testbed::available() {
        Ok(()) => namespace_demo(&arguments),
        Err(why) => {
            println!("No demo with real hosts here: {why}.");
            ring_demo()
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("\nThe demo did not work: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The demo where no namespaces can be made.
#[cfg(feature = "dpdk")]
fn ring_demo() -> Result<()> {
    ring::ring_demo().map_err(|why| Failure(why.to_string()))
}

/// The demo where no namespaces can be made, in a build that has no gateway to show.
#[cfg(not(feature = "dpdk"))]
fn ring_demo() -> Result<()> {
    Err(Failure::new(
        "this build has no gateway: it was made without the feature dpdk",
    ))
}

fn namespace_demo(arguments: &Arguments) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let ports = if arguments.af_xdp {
        PortKind::AfXdp { queues: 1 }
    } else {
        PortKind::AfPacket { qpairs: 1 }
    };
    println!("{INTRODUCTION}");
    println!(
        "Making namespaces, keys and policies, and starting the gateways ({}) ...",
        name_of(ports)
    );
    let mut bed = Testbed::new(TunnelSpec {
        ports,
        ..TunnelSpec::default()
    })?;
    let started = Instant::now();
    bed.start_gateways()?;
    println!(
        "Both gateways are up after {:.1} s. tcpdump listens on the wire.\n",
        started.elapsed().as_secs_f64()
    );
    let capture = bed.capture(128)?;

    let results = traffic(&bed, &interrupted)?;
    summarise(&mut bed, &results, capture)?;
    drop(bed);
    println!("\nAll of it worked. Everything made for the demo is gone again.");
    Ok(())
}

fn name_of(ports: PortKind) -> &'static str {
    match ports {
        PortKind::AfPacket { .. } => "AF_PACKET",
        PortKind::AfXdp { .. } => "AF_XDP",
    }
}

/// What the traffic thread tells the one that draws.
enum News {
    /// Something begins.
    Begins(&'static str),
    /// Something is over: its line in the summary, and whether it went well.
    Ended(String, bool),
}

/// Runs all traffic while the table is drawn. Returns the lines for the summary.
fn traffic(bed: &Testbed, interrupted: &AtomicBool) -> Result<Vec<(String, bool)>> {
    let (tell, news) = channel();
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || send_all(bed, &tell));
        let results = watch(bed, &news, interrupted);
        if results.is_err() {
            bed.host_a.end_processes();
            bed.host_b.end_processes();
        }
        drop(news);
        let sent = sender
            .join()
            .map_err(|_| Failure::new("the traffic thread panicked"))?;
        let results = results?;
        sent.map(|()| results)
    })
}

/// Ping, TCP both ways, UDP: about twelve seconds.
fn send_all(bed: &Testbed, tell: &Sender<News>) -> Result<()> {
    // The other side hangs up when the demo is interrupted.
    let say = |news| tell.send(news).map_err(|_| Failure::new("interrupted"));
    for (family, words) in [(Family::V4, "ping, IPv4"), (Family::V6, "ping, IPv6")] {
        say(News::Begins(words))?;
        let ping = Ping {
            family,
            count: 25,
            at_once: 20,
            interval: Duration::from_millis(200),
            ..Ping::default()
        };
        let result = bed.ping(&ping)?;
        let lost = ping.count - result.received.min(ping.count);
        say(News::Ended(
            format!(
                "{words}: {} sent, {} answered, {lost} lost",
                ping.count, result.received
            ),
            lost == 0,
        ))?;
    }
    let udp = Transport::Udp {
        rate_bps: 50_000_000,
        datagram_bytes: 1200,
    };
    for (from, family, transport, words) in [
        (
            Site::West,
            Family::V4,
            Transport::Tcp,
            "TCP from A to B, IPv4",
        ),
        (
            Site::East,
            Family::V6,
            Transport::Tcp,
            "TCP from B to A, IPv6",
        ),
        (Site::West, Family::V4, udp, "UDP from A to B, IPv4"),
    ] {
        say(News::Begins(words))?;
        let got = bed.stream(&Flow {
            from,
            family,
            transport,
            seconds: 3,
        })?;
        let rate = bits_per_second(got.bits_per_second);
        let (detail, good) = match transport {
            Transport::Tcp => (
                format!("{} segments sent again", got.retransmits),
                got.bits_per_second > 0.0,
            ),
            Transport::Udp { .. } => (
                format!("{} of {} datagrams lost", got.lost, got.packets),
                got.lost * 20 < got.packets,
            ),
        };
        say(News::Ended(format!("{words}: {rate}, {detail}"), good))?;
    }
    Ok(())
}

/// Draws the table once a second until the traffic is over.
fn watch(
    bed: &Testbed,
    news: &Receiver<News>,
    interrupted: &AtomicBool,
) -> Result<Vec<(String, bool)>> {
    let mut screen = Screen::new();
    let mut rates = Rates::default();
    let mut results = Vec::new();
    let mut next = Instant::now() + screen.period();
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return Err(Failure::new(
                "interrupted; everything made for it is gone again",
            ));
        }
        match news.recv_timeout(Duration::from_millis(50)) {
            Ok(News::Begins(words)) => screen.say(&format!("▸ {words}")),
            Ok(News::Ended(words, good)) => {
                screen.say(&format!(
                    "  {}",
                    words
                        .split_once(": ")
                        .map_or(words.as_str(), |(_, after)| after)
                ));
                results.push((words, good));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                screen.clear();
                return Ok(results);
            }
        }
        if Instant::now() >= next {
            next += screen.period();
            screen.draw(&table(bed, &mut rates)?);
        }
    }
}

/// A table that is drawn over itself on a terminal, and one below the other elsewhere.
struct Screen {
    is_terminal: bool,
    lines: usize,
}

impl Screen {
    fn new() -> Self {
        Self {
            is_terminal: std::io::stdout().is_terminal(),
            lines: 0,
        }
    }

    fn period(&self) -> Duration {
        Duration::from_secs(if self.is_terminal { 1 } else { 2 })
    }

    fn clear(&mut self) {
        if self.lines > 0 {
            print!("\x1b[{}A\x1b[J", self.lines);
            self.lines = 0;
        }
    }

    fn say(&mut self, words: &str) {
        self.clear();
        println!("{words}");
    }

    fn draw(&mut self, table: &str) {
        self.clear();
        println!("{table}");
        let _ = std::io::stdout().flush();
        if self.is_terminal {
            self.lines = table.lines().count();
        }
    }
}

/// Bytes that entered each direction when last looked at, for the rates.
#[derive(Default)]
struct Rates {
    at: Option<Instant>,
    bytes: [u64; 4],
}

/// What both gateways count, by direction.
fn table(bed: &Testbed, rates: &mut Rates) -> Result<String> {
    let mut table = Table::new();
    let line = LineStyle::none().fill('─').junction('─');
    table.load_style(
        TableStyle::new()
            .top_border(line)
            .header_separator(line)
            .bottom_border(line),
    );
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "gateway",
        "direction",
        "received",
        "sent",
        "rate in",
        "dropped",
        "punted",
        "dropped because",
    ]);
    for column in table.column_iter_mut().skip(2).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let now = Instant::now();
    let elapsed = rates
        .at
        .replace(now)
        .map(|before| (now - before).as_secs_f64());
    let mut old_bytes = rates.bytes.iter_mut();
    for gateway in [&bed.west, &bed.east] {
        let (ports, drops) = (gateway.show("ports")?, gateway.show("drops")?);
        for (direction, side, verb) in [
            ("outbound", "protected", "seals"),
            ("inbound", "unprotected", "opens"),
        ] {
            let bytes = received_bytes(&ports, side);
            let before = old_bytes
                .next()
                .map_or(bytes, |old| std::mem::replace(old, bytes));
            let rate = elapsed.map_or(0.0, |seconds| {
                8.0 * bytes.saturating_sub(before) as f64 / seconds
            });
            let count = |what: &str| drops["totals"][direction][what].to_string();
            table.add_row([
                gateway.site().name().to_owned(),
                format!("{direction} ({verb})"),
                count("received"),
                count("sent"),
                bits_per_second(rate),
                count("dropped"),
                count("punted"),
                reasons(&drops, direction),
            ]);
        }
    }
    Ok(table.to_string())
}

fn received_bytes(ports: &Value, side: &str) -> u64 {
    let of_side = ports["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|port| port["side"] == side);
    of_side.filter_map(|port| port["rx_bytes"].as_u64()).sum()
}

fn reasons(drops: &Value, direction: &str) -> String {
    let rows = drops["drops"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|row| row["direction"] == direction);
    let named = rows.map(|row| {
        format!(
            "{} {}",
            row["packets"],
            row["reason"].as_str().unwrap_or("?")
        )
    });
    named.collect::<Vec<_>>().join(", ")
}

fn bits_per_second(rate: f64) -> String {
    if rate >= 1e9 {
        format!("{:.2} Gbit/s", rate / 1e9)
    } else {
        format!("{:.1} Mbit/s", rate / 1e6)
    }
}

/// Says how it went, stops the gateways, and looks at what was on the wire.
fn summarise(bed: &mut Testbed, results: &[(String, bool)], capture: Capture) -> Result<()> {
    let mut checks = results.to_vec();
    wait_until(Duration::from_secs(2), || {
        balance(&bed.west).1 && balance(&bed.east).1
    });
    println!(
        "What the gateways counted:\n{}\n",
        table(bed, &mut Rates::default())?
    );
    checks.push(balance(&bed.west));
    checks.push(balance(&bed.east));
    checks.push(wire_proof(bed.spec(), capture)?);
    for gateway in [&mut bed.west, &mut bed.east] {
        let exit = gateway.stop()?;
        let words = format!(
            "gateway {} drained and stopped, every packet buffer back: {}",
            gateway.site().name(),
            exit.status
        );
        checks.push((words, exit.status.success()));
    }
    println!("Summary:");
    for (words, good) in &checks {
        println!("  {} {words}", if *good { "✓" } else { "✗" });
    }
    match checks.iter().filter(|(_, good)| !good).count() {
        0 => Ok(()),
        failed => Err(Failure(format!(
            "{failed} of {} points failed",
            checks.len()
        ))),
    }
}

/// Whether every frame is accounted for, in both directions of a gateway.
fn balance(gateway: &Gateway) -> (String, bool) {
    let drops = gateway.show("drops").unwrap_or_default();
    let mut good = true;
    let equations = ["outbound", "inbound"].map(|direction| {
        let totals = &drops["totals"][direction];
        good &= is_balanced(totals);
        let count = |what: &str| totals[what].to_string();
        let sum = ["sent", "dropped", "punted"]
            .map(|what| format!("{} {what}", count(what)))
            .join(" + ");
        format!("{direction} {} received = {sum}", count("received"))
    });
    (
        format!(
            "gateway {}: {}",
            gateway.site().name(),
            equations.join("; ")
        ),
        good,
    )
}

/// What tcpdump saw between the gateways.
fn wire_proof(spec: &TunnelSpec, capture: Capture) -> Result<(String, bool)> {
    let (frames, missed) = capture.end()?;
    let unseen = if missed > 0 {
        format!(" ({missed} more went by too fast for tcpdump)")
    } else {
        String::new()
    };
    Ok(match assert_wire_shows_only_esp(spec, &frames, None) {
        Ok(counts) => {
            let total: u64 = counts.iter().sum();
            (
                format!(
                    "on the wire: {total} ESP packets captured{unseen}, 0 with inner addresses, 0 of anything else"
                ),
                true,
            )
        }
        Err(why) => (format!("on the wire: {why}"), false),
    })
}
