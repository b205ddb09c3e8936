//! What must hold of every tunnel, whatever its cipher, families, encapsulation and ports.

use std::net::IpAddr;
use std::time::Duration;

use super::capture::{WireFrame, WireProtocol};
use super::gateway::Gateway;
use super::spec::{Encapsulation, Family, PortKind, Site, TunnelSpec};
use super::traffic::{Flow, Ping, Transport};
use super::{Failure, Result, Testbed, wait_until};

/// Payload sizes around the borders of the padding, of a cipher block, and of what a kernel of a vector unit takes at once.
const SIZES: [u16; 19] = [
    0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 255, 576, 1000,
];

/// Sixteen bytes that `ping -p` repeats through its payload.
const MARKER: [u8; 16] = *b"simplon-in-clear";

/// The whole course: every packet size, fragments, a marker that must not show on the wire, bursts, streams of
/// `stream_seconds` each; and at the end every counter adds up and both gateways stop with exit code 0.
pub fn run_course(spec: TunnelSpec, stream_seconds: u32) -> Result<()> {
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    let capture = bed.capture(2000)?;
    assert_pings_all_sizes(&bed)?;
    assert_marker_and_fragments_arrive(&bed)?;
    let on_wire = assert_wire_shows_only_esp(bed.spec(), &capture.frames()?, Some(&MARKER))?;
    assert_tshark_agrees(&bed, on_wire.iter().sum())?;
    for (site, on_wire) in [Site::West, Site::East].into_iter().zip(on_wire) {
        let sealed = sa_packets(bed.gateway(site), "outbound", site.outbound_spi())?;
        let opened = sa_packets(bed.gateway(site.other()), "inbound", site.outbound_spi())?;
        if (sealed, opened) != (on_wire, on_wire) {
            return Err(Failure(format!(
                "{site:?}: {sealed} sealed, {on_wire} on the wire, {opened} opened\n{}",
                state_of(&bed)
            )));
        }
    }
    let capture = bed.capture(128)?;
    assert_streams(&bed, stream_seconds)?;
    assert_wire_shows_only_esp(bed.spec(), &capture.frames()?, None)?;
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

/// Payloads with a marker, packets that the sender has to fragment, and bursts of a hundred: no answer is missing.
fn assert_marker_and_fragments_arrive(bed: &Testbed) -> Result<()> {
    let pattern = MARKER.map(|byte| format!("{byte:02x}")).concat();
    for &family in bed.spec().inner {
        let marked = Ping {
            family,
            size: 256,
            pattern: Some(pattern.clone()),
            ..Ping::default()
        };
        let fragmented = Ping {
            family,
            size: 4000,
            dont_fragment: false,
            ..Ping::default()
        };
        let burst = Ping {
            family,
            count: 100,
            at_once: 100,
            ..Ping::default()
        };
        // DPDK's AF_PACKET driver has the kernel put IPv4 fragments together (PACKET_FANOUT_FLAG_DEFRAG) and cuts off
        // what is then longer than its frames, so that the gateway never sees a fragment.
        let defragments =
            family == Family::V4 && matches!(bed.spec().ports, PortKind::AfPacket { .. });
        for ping in [marked, fragmented, burst.clone(), burst] {
            if defragments && !ping.dont_fragment {
                continue;
            }
            let result = bed.ping(&ping)?;
            if result.received != ping.count {
                return Err(Failure(format!("{ping:?}: {result:?}\n{}", state_of(bed))));
            }
        }
    }
    Ok(())
}

/// Pings with payloads from nothing up to the tunnel's limit, in every family that it carries: no answer is missing.
pub fn assert_pings_all_sizes(bed: &Testbed) -> Result<()> {
    for &family in bed.spec().inner {
        let largest = bed.spec().largest_inner_packet() - family.ping_overhead();
        for size in SIZES.into_iter().chain([largest - 1, largest]) {
            let from = if size % 2 == 0 {
                Site::West
            } else {
                Site::East
            };
            let ping = Ping {
                from,
                family,
                size,
                ..Ping::default()
            };
            let result = bed.ping(&ping)?;
            if result.received != ping.count {
                return Err(Failure(format!("{ping:?}: {result:?}\n{}", state_of(bed))));
            }
        }
    }
    Ok(())
}

/// The largest inner packet gets through, both ways; one byte more is dropped as `too-big` by the gateway that would
/// have to send it. The tunnel must be narrower than the hosts' MTU: if not, the host itself refuses.
pub fn assert_too_big_stops_at_limit(bed: &Testbed) -> Result<()> {
    let limit = bed.spec().largest_inner_packet();
    assert!(
        limit < bed.spec().inner_mtu,
        "the host would refuse by itself"
    );
    for &family in bed.spec().inner {
        for from in [Site::West, Site::East] {
            let size = limit - family.ping_overhead();
            let fits = Ping {
                from,
                family,
                size,
                ..Ping::default()
            };
            let result = bed.ping(&fits)?;
            if result.received != fits.count {
                return Err(Failure(format!(
                    "at the limit, {fits:?}: {result:?}\n{}",
                    state_of(bed)
                )));
            }
            let before = bed.gateway(from).dropped_for("outbound", "too-big")?;
            let too_big = Ping {
                size: size + 1,
                patience: Duration::from_millis(300),
                ..fits.clone()
            };
            let result = bed.ping(&too_big)?;
            if result.received != 0 {
                return Err(Failure(format!("past the limit, {too_big:?}: {result:?}")));
            }
            let dropped = bed.gateway(from).dropped_for("outbound", "too-big")? - before;
            // Once the host has heard what fits, it refuses the rest by itself.
            if !(1..=u64::from(too_big.count)).contains(&dropped) {
                return Err(Failure(format!(
                    "{too_big:?}: {dropped} dropped as too-big\n{}",
                    state_of(bed)
                )));
            }
        }
    }
    Ok(())
}

/// TCP and UDP streams of `seconds` each, both ways: TCP gets on, and of UDP at a modest rate next to nothing is lost.
pub fn assert_streams(bed: &Testbed, seconds: u32) -> Result<()> {
    let udp = Transport::Udp {
        rate_bps: 10_000_000,
        datagram_bytes: 1200,
    };
    for (number, transport) in [Transport::Tcp, udp].into_iter().enumerate() {
        for from in [Site::West, Site::East] {
            let family = bed.spec().inner[number % bed.spec().inner.len()];
            let flow = Flow {
                from,
                family,
                transport,
                seconds,
            };
            let got = bed.stream(&flow)?;
            eprintln!("{flow:?}: {got:?}");
            let enough = match transport {
                Transport::Tcp => got.bits_per_second > 1e6,
                // Two workers, two hosts and the kernel share two cores here; a ring may overflow while one of them waits.
                Transport::Udp { .. } => got.packets > 500 && got.lost * 100 <= got.packets,
            };
            if !enough {
                return Err(Failure(format!("{flow:?}: {got:?}\n{}", state_of(bed))));
            }
        }
    }
    Ok(())
}

/// Every captured frame is an ESP packet between the gateways, in UDP just where it should be, of an SPI that the
/// policy has, and shows neither the hosts' addresses nor `marker`. Returns how many went in each direction, from the
/// west first.
pub fn assert_wire_shows_only_esp(
    spec: &TunnelSpec,
    frames: &[WireFrame],
    marker: Option<&[u8]>,
) -> Result<[u64; 2]> {
    let mut counts = [0, 0];
    for frame in frames {
        let direction = [Site::West, Site::East].into_iter().position(|site| {
            frame.source == Some(site.wan_address(spec.outer))
                && frame.destination == Some(site.other().wan_address(spec.outer))
                && matches!(frame.protocol, WireProtocol::Esp { in_udp, spi, .. }
                    if spi == site.outbound_spi() && in_udp == (spec.encapsulation == Encapsulation::Udp))
        });
        let Some(direction) = direction else {
            return Err(Failure(format!("not of the tunnel: {frame:02x?}")));
        };
        if shows_inner_packet(frame, marker) {
            return Err(Failure(format!("clear text on the wire: {frame:02x?}")));
        }
        counts[direction] += 1;
    }
    if counts.contains(&0) {
        return Err(Failure(format!(
            "captured from west and from east: {counts:?} frames"
        )));
    }
    Ok(counts)
}

/// Has `tshark` read the last capture: each of its `frames` frames is ESP, in UDP where the tunnel has it, between the
/// gateways, and no address of a host is in any field that it shows.
///
/// # Errors
/// What differs; or that `tshark` is not there (Debian's package `tshark`).
pub fn assert_tshark_agrees(bed: &Testbed, frames: u64) -> Result<()> {
    let fields = [
        "frame.protocols",
        "ip.src",
        "ip.dst",
        "ipv6.src",
        "ipv6.dst",
    ];
    let mut command = std::process::Command::new("tshark");
    command
        .args(["-n", "-T", "fields", "-E", "occurrence=a", "-r"])
        .arg(bed.dir().join("w1.pcap"))
        .args(fields.iter().flat_map(|field| ["-e", field]));
    let output = command
        .output()
        .map_err(|why| Failure(format!("tshark (apt-get install tshark): {why}")))?;
    let spec = bed.spec();
    let ends = [Site::West, Site::East].map(|site| site.wan_address(spec.outer).to_string());
    let text = String::from_utf8_lossy(&output.stdout);
    let mut seen = 0;
    for line in text.lines() {
        let mut columns = line.split('\t');
        let protocols: Vec<_> = columns.next().unwrap_or_default().split(':').collect();
        let addresses: Vec<_> = columns.filter(|column| !column.is_empty()).collect();
        let is_esp = protocols.contains(&"esp")
            && protocols.contains(&"udp") == (spec.encapsulation == Encapsulation::Udp);
        let is_outer = addresses.len() == 2
            && addresses
                .iter()
                .all(|address| ends.contains(&(*address).to_owned()));
        if !is_esp || !is_outer {
            return Err(Failure(format!(
                "tshark sees more than ESP between the gateways: {line}"
            )));
        }
        seen += 1;
    }
    if seen != frames {
        return Err(Failure(format!("tshark sees {seen} frames of {frames}")));
    }
    Ok(())
}

/// Whether a frame holds the hosts' addresses, as they stand side by side in an IP header, or the marker.
pub fn shows_inner_packet(frame: &WireFrame, marker: Option<&[u8]>) -> bool {
    let contains = |needle: &[u8]| {
        frame
            .bytes
            .windows(needle.len())
            .any(|bytes| bytes == needle)
    };
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let pairs = [
        (Site::West, Family::V4),
        (Site::West, Family::V6),
        (Site::East, Family::V4),
        (Site::East, Family::V6),
    ];
    let addresses = pairs.map(|(site, family)| {
        [
            octets(site.host_address(family)),
            octets(site.other().host_address(family)),
        ]
        .concat()
    });
    addresses.iter().any(|pair| contains(pair)) || marker.is_some_and(contains)
}

/// In both gateways and both directions, what was received was sent, dropped or punted. Waits a moment for the
/// counters to come to rest.
pub fn assert_balanced(bed: &Testbed) -> Result<()> {
    for gateway in [&bed.west, &bed.east] {
        let mut shown = serde_json::Value::Null;
        let balanced = wait_until(Duration::from_secs(2), || {
            shown = gateway.show("drops").unwrap_or_default();
            ["outbound", "inbound"]
                .iter()
                .all(|direction| is_balanced(&shown["totals"][*direction]))
        });
        if !balanced {
            return Err(Failure(format!(
                "{}: received is not sent + dropped + punted: {shown}",
                gateway.name()
            )));
        }
    }
    Ok(())
}

/// Whether `received + made = sent + dropped + punted + aside + held` in one direction's totals.
pub fn is_balanced(totals: &serde_json::Value) -> bool {
    let sum = |all: &[&str]| -> Option<u64> { all.iter().map(|what| totals[*what].as_u64()).sum() };
    let came = sum(&["received", "made"]);
    came.is_some() && came == sum(&["sent", "dropped", "punted", "aside", "held"])
}

/// Packets that a gateway's SA of this SPI has sealed or opened.
pub fn sa_packets(gateway: &Gateway, direction: &str, spi: u32) -> Result<u64> {
    let shown = gateway.show("sa")?;
    let mut rows = shown["sas"].as_array().into_iter().flatten();
    let row =
        rows.find(|row| row["direction"] == direction && row["spi"] == format!("{spi:#010x}"));
    row.and_then(|row| row["packets"].as_u64()).ok_or_else(|| {
        Failure(format!(
            "{}: no {direction} SA {spi:#x} with packets: {shown}",
            gateway.name()
        ))
    })
}

/// Both gateways stop when asked, with exit code 0, which also says that no packet buffer was lost.
pub fn assert_clean_stop(bed: &mut Testbed) -> Result<()> {
    for gateway in [&mut bed.west, &mut bed.east] {
        let exit = gateway.stop()?;
        if !exit.status.success() {
            return Err(Failure(format!(
                "{} stopped with {}\n{}",
                gateway.name(),
                exit.status,
                exit.stderr
            )));
        }
    }
    Ok(())
}

/// What both gateways count and say, for a failure.
fn state_of(bed: &Testbed) -> String {
    let of = |gateway: &Gateway| {
        let shown = ["ports", "sa", "drops"]
            .map(|what| format!("{:?}", gateway.show(what).map(|v| v.to_string())));
        format!(
            "{}: {}\n{}",
            gateway.name(),
            shown.join("\n"),
            gateway.log()
        )
    };
    format!("{}\n{}", of(&bed.west), of(&bed.east))
}
