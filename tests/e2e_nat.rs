//! The west gateway behind a NAT that is the kernel's: tunnels through it, the NAT giving it another port and another
//! address in the middle of a stream, keepalives, IKE beside ESP.
#![cfg(feature = "dpdk")]

mod testbed;

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{
    Encapsulation, Family, Flow, Gateway, Nat, Outside, Ping, Result, Site, Testbed, Throughput,
    Transport, TunnelSpec, WireFrame, assert_balanced, assert_clean_stop, wait_until,
};

fn spec(outer: Family) -> TunnelSpec {
    TunnelSpec {
        outer,
        encapsulation: Encapsulation::Udp,
        host: true,
        static_neighbours: false,
        nat: Some(Nat { keepalive_s: 1 }),
        ..TunnelSpec::default()
    }
}

/// The row of `show sa` of the gateway's only SA in `direction`.
fn sa(gateway: &Gateway, direction: &str) -> Result<Value> {
    let shown = gateway.show("sa")?;
    let rows = shown["sas"].as_array().into_iter().flatten();
    let mut found = rows.filter(|row| row["direction"] == direction).cloned();
    Ok(found.next().unwrap_or_default())
}

/// Where the gateway's SA has its peer, and how often that moved.
fn peer(gateway: &Gateway, direction: &str) -> Result<(SocketAddr, u64)> {
    let sa = sa(gateway, direction)?;
    let address = sa["remote"].as_str().unwrap_or_default().parse();
    let port = sa["udp"]["remote_port"].as_u64();
    let moves = sa["udp"]["moves"].as_u64().unwrap_or_default();
    match (address, port.map(u16::try_from)) {
        (Ok(address), Some(Ok(port))) => Ok((SocketAddr::new(address, port), moves)),
        _ => panic!("{sa:#}"),
    }
}

fn assert_pings(bed: &Testbed) -> Result<()> {
    for from in [Site::West, Site::East] {
        for &family in bed.spec().inner {
            let ping = Ping {
                from,
                family,
                ..Ping::default()
            };
            let received = bed.ping(&ping)?.received;
            let drops = bed.east.show("drops")?;
            assert_eq!(received, ping.count, "{from:?} {family:?}: {drops:#}");
        }
    }
    Ok(())
}

/// UDP datagrams: source, destination, payload.
fn datagrams(frames: &[WireFrame]) -> impl Iterator<Item = (SocketAddr, SocketAddr, &[u8])> {
    frames.iter().filter_map(|frame| {
        let (from, to) = (frame.source?, frame.destination?);
        let (protocol, at) = if from.is_ipv4() { (23, 34) } else { (20, 54) };
        let udp = frame.bytes.get(at..)?;
        let word = |at: usize| {
            udp.get(at..)?
                .first_chunk()
                .copied()
                .map(u16::from_be_bytes)
        };
        let is_udp = frame.bytes.get(protocol) == Some(&17);
        let payload = udp.get(8..usize::from(word(4)?).min(udp.len()))?;
        is_udp.then_some((
            SocketAddr::new(from, word(0)?),
            SocketAddr::new(to, word(2)?),
            payload,
        ))
    })
}

/// One stream, and the NAT giving the west another appearance while it is under way.
fn stream_through(bed: &Testbed, from: Site, then: &[Outside]) -> Result<Throughput> {
    let flow = Flow {
        from,
        family: Family::V4,
        transport: Transport::Tcp,
        seconds: 6,
    };
    let outer = bed.spec().outer;
    // Who hears nothing says nothing, and is not found again until it does: the west does without being asked.
    let _unasked = bed.start_ping(&Ping {
        count: 1000,
        at_once: 1,
        interval: Duration::from_millis(100),
        ..Ping::default()
    })?;
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| bed.stream(&flow));
        for outside in then {
            std::thread::sleep(Duration::from_millis(1500));
            bed.look_outside_like(*outside)?;
            let followed = wait_until(Duration::from_secs(5), || {
                peer(&bed.east, "outbound").is_ok_and(|(at, _)| at == outside.end(outer))
            });
            assert!(followed, "{outside:?}: {:#}", bed.east.show("sa")?);
        }
        stream.join().expect("no panic")
    })
}

fn tunnel_follows_a_gateway_behind_a_nat(outer: Family) -> Result<()> {
    let Some(mut bed) = Testbed::for_test(spec(outer))? else {
        return Ok(());
    };
    let first = Outside::FIRST.end(outer);
    let unknown = SocketAddr::new(first.ip(), 4500);
    assert_eq!(peer(&bed.east, "outbound")?, (unknown, 0));
    for &family in bed.spec().inner {
        let is_through = wait_until(Duration::from_secs(10), || {
            let far = Site::East.host_address(family).to_string();
            let ping = ["ping", "-n", "-c", "1", "-W", "1", &far];
            bed.host_a.run(&ping).is_ok()
        });
        let drops = (bed.west.show("drops")?, bed.east.show("drops")?);
        assert!(is_through, "{family:?} {drops:#?}");
    }
    for direction in ["outbound", "inbound"] {
        assert_eq!(peer(&bed.east, direction)?, (first, 1), "{direction}");
    }
    assert_pings(&bed)?;

    let capture = bed.capture_at("w2", 128)?;
    for (from, then) in [
        (Site::West, [Outside::OTHER_PORT, Outside::OTHER_ADDRESS]),
        (Site::East, [Outside::FIRST, Outside::OTHER_PORT]),
    ] {
        let stream = stream_through(&bed, from, &then)?;
        assert!(stream.bits_per_second > 1e6, "{from:?}: {stream:?}");
    }
    assert_pings(&bed)?;
    let (frames, _) = capture.end()?;
    let east = SocketAddr::new(Site::East.wan_address(outer), 4500);
    for outside in [Outside::OTHER_ADDRESS, Outside::OTHER_PORT] {
        let outside = outside.end(outer);
        for way in [(outside, east), (east, outside)] {
            let packets = datagrams(&frames)
                .filter(|(from, to, payload)| (*from, *to) == way && payload.len() > 16);
            assert!(packets.count() > 100, "{way:?}");
        }
    }
    // None of what was on its way while the peer moved was taken for another move.
    let last = Outside::OTHER_PORT.end(outer);
    assert_eq!(peer(&bed.east, "outbound")?, (last, 5));
    let at_west = SocketAddr::new(east.ip(), 4500);
    assert_eq!(peer(&bed.west, "outbound")?, (at_west, 0));
    assert!(bed.east.log().contains("peer has moved"));
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

#[test]
fn tunnel_follows_a_gateway_behind_a_nat_of_ipv4() -> Result<()> {
    tunnel_follows_a_gateway_behind_a_nat(Family::V4)
}

#[test]
fn tunnel_follows_a_gateway_behind_a_nat_of_ipv6() -> Result<()> {
    tunnel_follows_a_gateway_behind_a_nat(Family::V6)
}

fn keepalives(gateway: &Gateway) -> Result<u64> {
    let sa = sa(gateway, "outbound")?;
    Ok(sa["udp"]["keepalives"].as_u64().expect("a number"))
}

#[test]
fn keepalives_keep_a_nat_awake_and_tell_the_peer_nothing() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(spec(Family::V4))? else {
        return Ok(());
    };
    let capture = bed.capture_at("w2", 128)?;
    let sent = || keepalives(&bed.west).is_ok_and(|sent| sent >= 3);
    assert!(wait_until(Duration::from_secs(20), sent));
    let swallowed = || {
        let dropped = bed.east.dropped_for("inbound", "nat-keepalive");
        dropped.is_ok_and(|packets| packets >= 3)
    };
    assert!(wait_until(Duration::from_secs(5), swallowed));
    let first = Outside::FIRST.end(Family::V4);
    let known = peer(&bed.east, "outbound")?;
    assert_eq!(known, (SocketAddr::new(first.ip(), 4500), 0));
    let east = SocketAddr::new(Site::East.wan_address(Family::V4), 4500);
    let (frames, _) = capture.end()?;
    let seen = datagrams(&frames).filter(|datagram| *datagram == (first, east, &[0xff]));
    assert!(seen.count() >= 3);
    // Where there are packets, there are no keepalives: as many in the end as in the pauses.
    let busy = Ping {
        count: 40,
        at_once: 1,
        interval: Duration::from_millis(100),
        ..Ping::default()
    };
    // A machine that stands still for a while makes pauses of its own: that is tried again.
    let undisturbed = || -> Result<Option<u64>> {
        let (before, began) = (keepalives(&bed.west)?, Instant::now());
        bed.ping(&busy)?;
        let is_busy = began.elapsed() < Duration::from_secs(8);
        Ok(is_busy.then_some(keepalives(&bed.west)? - before))
    };
    let during = (0..3).find_map(|_| undisturbed().transpose()).transpose()?;
    let during = during.expect("one time in three the pings are not held up");
    assert!(during <= 2, "{during}");
    assert_eq!(keepalives(&bed.east)?, 0, "after 20 seconds");
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

/// A peer of IKE's manners: sends back what it gets, twice.
const ECHO: &str = "
import socket, sys
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind((sys.argv[1], int(sys.argv[2])))
while True:
    data, peer = echo.recvfrom(4096)
    echo.sendto(data + data, peer)
";

/// Sends a datagram until there is an answer, and prints that.
const ASK: &str = "
import socket, sys
here, there, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
asks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asks.bind((here, port))
asks.settimeout(1)
for _ in range(10):
    asks.sendto(bytes.fromhex(sys.argv[4]), (there, port))
    try:
        data, peer = asks.recvfrom(4096)
    except socket.timeout:
        continue
    print(peer[0], peer[1], data.hex())
    break
";

#[test]
fn ike_passes_to_the_host_side_and_back_as_it_is() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(spec(Family::V4))? else {
        return Ok(());
    };
    let (west, east) = (
        Site::West.wan_address(Family::V4).to_string(),
        Site::East.wan_address(Family::V4).to_string(),
    );
    let message = "c0ffee".repeat(40);
    for (port, marker) in [("4500", "00000000"), ("500", "")] {
        let mut echo = bed
            .east
            .netns()
            .command("python3", "KILL")
            .args(["-c", ECHO, &east, port])
            .stdout(Stdio::null())
            .spawn()?;
        let sent = format!("{marker}{message}");
        let asked = bed
            .west
            .netns()
            .run(&["python3", "-c", ASK, &west, &east, port, &sent]);
        let _ = echo.kill();
        let _ = echo.wait();
        assert_eq!(asked?.trim(), format!("{east} {port} {sent}{sent}"));
    }
    let punts = bed.east.show("drops")?;
    let ike = punts["punts"].as_array().into_iter().flatten();
    let ike: u64 = ike
        .filter(|row| row["reason"] == "ike")
        .filter_map(|row| row["packets"].as_u64())
        .sum();
    assert!(ike >= 2, "{punts:#}");
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}
