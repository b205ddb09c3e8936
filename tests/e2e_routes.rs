//! Routes and neighbours of the kernel's as operators change them under traffic.
#![cfg(feature = "dpdk")]

mod testbed;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Child;
use std::time::Duration;

use testbed::{
    Family, Ping, Result, Site, Testbed, TunnelSpec, assert_balanced, assert_clean_stop, wait_until,
};

/// Destinations behind the routers.
const FLOWS: u8 = 48;

fn twins() -> TunnelSpec {
    TunnelSpec {
        host: true,
        ..TunnelSpec::default()
    }
}

/// What is on host B's interface, as `tcpdump` tells it.
struct Overheard {
    tcpdump: Child,
    path: std::path::PathBuf,
}

impl Overheard {
    fn start(bed: &Testbed) -> Result<Self> {
        let path = bed.dir().join("overheard.txt");
        let said = bed.dir().join("overheard.log");
        let tcpdump = bed
            .host_b
            .command("tcpdump", "KILL")
            .args(["-i", "b0", "-e", "-n", "-l", "-Z", "root", "icmp or icmp6"])
            .stdout(std::fs::File::create(&path)?)
            .stderr(std::fs::File::create(&said)?)
            .spawn()?;
        let overheard = Self { tcpdump, path };
        let listens =
            || std::fs::read_to_string(&said).is_ok_and(|said| said.contains("listening"));
        assert!(wait_until(Duration::from_secs(10), listens), "tcpdump");
        Ok(overheard)
    }

    /// By destination address in the IP header, the MAC addresses that echo requests went to.
    fn requests(&self) -> BTreeMap<String, BTreeSet<String>> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in text.lines().filter(|line| line.contains("echo request")) {
            let words: Vec<_> = line.split_whitespace().collect();
            let after = |mark: &str, at: usize| {
                let marks = words.iter().enumerate().filter(|(_, word)| **word == mark);
                let (place, _) = marks.into_iter().nth(at)?;
                words.get(place + 1)
            };
            if let (Some(mac), Some(address)) = (after(">", 0), after(">", 1)) {
                let trim = |word: &str| word.trim_end_matches([',', ':']).to_owned();
                found.entry(trim(address)).or_default().insert(trim(mac));
            }
        }
        found
    }
}

impl Drop for Overheard {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// The `at`th destination of a network that only the east gateway's kernel knows of.
fn destination(family: Family, at: u8) -> String {
    match family {
        Family::V4 => format!("10.2.9.{at}"),
        Family::V6 => format!("fd00:2::9:{at:x}"),
    }
}

/// Sends three echo requests to each destination; nobody answers.
fn send_flows(bed: &Testbed, family: Family) -> Result<()> {
    let all: Vec<_> = (1..=FLOWS).map(|at| destination(family, at)).collect();
    let script = format!(
        "for to in {}; do ping {} -n -q -c 3 -i 0.01 -W 0.1 $to > /dev/null & done; wait",
        all.join(" "),
        family.ip_option()
    );
    bed.host_a.run(&["sh", "-c", &script]).map(drop)
}

#[test]
fn flows_are_spread_over_next_hops_and_stay_on_theirs() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(twins())? else {
        return Ok(());
    };
    let macs = ["02:00:00:00:0d:01", "02:00:00:00:0d:02"];
    for family in [Family::V4, Family::V6] {
        let (to, routers) = match family {
            Family::V4 => ("10.2.9.0/24", ["10.2.0.21", "10.2.0.22"]),
            Family::V6 => ("fd00:2::9:0/112", ["fd00:2::21", "fd00:2::22"]),
        };
        let ip = |words: &[&str]| {
            let all = [&["ip", family.ip_option()], words].concat();
            bed.east.netns().run(&all).map(drop)
        };
        let neighbour = |router, mac| {
            ip(&[
                "neigh",
                "replace",
                router,
                "lladdr",
                mac,
                "dev",
                "lan",
                "nud",
                "permanent",
            ])
        };
        for (router, mac) in routers.into_iter().zip(macs) {
            neighbour(router, mac)?;
        }
        match family {
            Family::V4 => ip(&[
                "route", "add", to, "nexthop", "via", routers[0], "dev", "lan", "nexthop", "via",
                routers[1], "dev", "lan",
            ])?,
            // One by one, as IPv6 may.
            Family::V6 => {
                ip(&["route", "add", to, "via", routers[0], "dev", "lan"])?;
                ip(&["route", "append", to, "via", routers[1], "dev", "lan"])?;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
        let overheard = Overheard::start(&bed)?;
        send_flows(&bed, family)?;
        let all_there = || overheard.requests().len() == usize::from(FLOWS);
        assert!(
            wait_until(Duration::from_secs(5), all_there),
            "{:?}",
            overheard.requests()
        );
        let flows = overheard.requests();
        assert!(
            flows.values().all(|used| used.len() == 1),
            "a flow left its path: {flows:?}"
        );
        for mac in macs {
            let share = flows.values().filter(|used| used.contains(mac)).count();
            assert!(
                share >= usize::from(FLOWS / 8),
                "{mac} has {share} flows: {flows:?}"
            );
        }
        drop(overheard);
        // One that is not known is left out, and asked for.
        ip(&["neigh", "del", routers[0], "dev", "lan"])?;
        std::thread::sleep(Duration::from_millis(100));
        let overheard = Overheard::start(&bed)?;
        send_flows(&bed, family)?;
        let all_there = || overheard.requests().len() == usize::from(FLOWS);
        assert!(
            wait_until(Duration::from_secs(5), all_there),
            "{:?}",
            overheard.requests()
        );
        let flows = overheard.requests();
        let only = BTreeSet::from([macs[1].to_owned()]);
        assert!(flows.values().all(|used| *used == only), "{flows:?}");
        let is_asked_for = wait_until(Duration::from_secs(5), || {
            let show = ["ip", "neigh", "show", "to", routers[0], "dev", "lan"];
            bed.east
                .netns()
                .run(&show)
                .is_ok_and(|said| !said.trim().is_empty())
        });
        assert!(is_asked_for, "{} is not asked for", routers[0]);
    }
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

#[test]
fn next_hop_objects_are_followed() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(twins())? else {
        return Ok(());
    };
    let east = bed.east.netns().clone();
    let ip = |line: &str| {
        let words: Vec<_> = ["ip"].into_iter().chain(line.split(' ')).collect();
        east.run(&words).map(drop)
    };
    // As an operator has it who wants routes to be told without what their objects stand for.
    let set = |value| {
        let file = "/proc/sys/net/ipv4/nexthop_compat_mode";
        east.run(&["sh", "-c", &format!("echo {value} > {file}")])
    };
    bed.host_b
        .run(&["ip", "address", "add", "10.2.9.1/32", "dev", "lo"])?;
    let reached = |wanted: bool| {
        wait_until(Duration::from_secs(5), || {
            let ping = ["ping", "-n", "-c", "1", "-W", "1", "10.2.9.1"];
            bed.host_a.run(&ping).is_ok() == wanted
        })
    };
    for compat_mode in [1, 0] {
        set(compat_mode)?;
        ip("nexthop add id 5 via 10.2.0.10 dev lan")?;
        ip("nexthop add id 6 via 10.2.0.77 dev lan")?;
        ip("nexthop add id 7 group 5")?;
        ip("route add 10.2.9.0/24 nhid 7")?;
        assert!(reached(true), "by the object, mode {compat_mode}");
        // Nothing is said of the route itself.
        ip("nexthop replace id 7 group 6")?;
        assert!(
            reached(false),
            "the object leads elsewhere, mode {compat_mode}"
        );
        ip("nexthop replace id 7 group 5")?;
        assert!(reached(true), "and back, mode {compat_mode}");
        ip("nexthop del id 5")?;
        assert!(reached(false), "the object is gone, mode {compat_mode}");
        ip("nexthop flush")?;
    }
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

#[test]
fn a_storm_of_routes_is_taken_in_while_the_gateway_answers() -> Result<()> {
    const ROUTES: u32 = 100_000;
    let Some(mut bed) = Testbed::for_test(twins())? else {
        return Ok(());
    };
    let batch = |verb: &str, last: bool| -> String {
        let all = (0..ROUTES).map(|at| {
            let to = std::net::Ipv4Addr::from(0x6400_0000 + at * 256);
            format!("route {verb} {to}/24 via 192.0.2.2 dev wan\n")
        });
        let own = format!("route {verb} 10.2.9.0/24 via 10.2.0.10 dev lan\n");
        all.chain(last.then_some(own)).collect()
    };
    bed.host_b
        .run(&["ip", "address", "add", "10.2.9.1/32", "dev", "lo"])?;
    let reached = |wanted: bool, seconds| {
        wait_until(Duration::from_secs(seconds), || {
            let ping = ["ping", "-n", "-c", "1", "-W", "1", "10.2.9.1"];
            bed.host_a.run(&ping).is_ok() == wanted
        })
    };
    assert!(reached(false, 1), "no route yet");
    for (verb, there) in [("add", true), ("del", false)] {
        let path = bed.dir().join(verb);
        std::fs::write(&path, batch(verb, true))?;
        let path = path.to_string_lossy();
        let mut storm = bed
            .east
            .netns()
            .command("ip", "KILL")
            .args(["-batch", &path])
            .spawn()?;
        let mut answers = 0;
        while storm.try_wait()?.is_none() {
            bed.east.show("drops")?;
            answers += 1;
        }
        assert!(storm.wait()?.success() && answers > 0);
        // The last of them is there when all before it are.
        assert!(reached(there, 30), "{verb}: {:#}", bed.east.show("drops")?);
        let ping = Ping::default();
        assert_eq!(bed.ping(&ping)?.received, ping.count, "the tunnel goes on");
    }
    // The peer's own route is among them.
    let peer = Site::West.wan_address(Family::V4).to_string();
    bed.east.netns().run(&["ip", "route", "get", &peer])?;
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

/// What `show ports` counts for a port of the east gateway.
fn host_counter(bed: &Testbed, port: &str, counter: &str) -> Result<u64> {
    let shown = bed.east.show("ports")?;
    let ports = shown["ports"].as_array().into_iter().flatten();
    let of_port = ports.filter(|row| row["name"] == port);
    Ok(of_port
        .filter_map(|row| row["host"][counter].as_u64())
        .sum())
}

fn family_of(address: &str) -> Family {
    if address.contains(':') {
        Family::V6
    } else {
        Family::V4
    }
}

#[test]
fn first_packets_wait_for_their_neighbour() -> Result<()> {
    let spec = TunnelSpec {
        static_neighbours: false,
        ..twins()
    };
    let Some(mut bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    for family in [Family::V4, Family::V6] {
        for round in 0..4 {
            let far = Site::East.host_address(family).to_string();
            let peer = Site::West.wan_address(Family::V4).to_string();
            if round > 0 {
                // The station, and then the peer too, is found out once more.
                let _ = bed
                    .east
                    .netns()
                    .run(&["ip", "neigh", "del", &far, "dev", "lan"]);
                if round > 1 {
                    let _ = bed
                        .east
                        .netns()
                        .run(&["ip", "neigh", "del", &peer, "dev", "wan"]);
                }
            }
            let first = ["ping", "-n", "-c", "1", "-W", "3", &far];
            bed.host_a.run(&first)?;
        }
    }
    assert!(
        host_counter(&bed, "lan", "waited")? > 0,
        "{:#}",
        bed.east.show("ports")?
    );
    // Nobody answers there, and the sender hears of it from the gateway that asked.
    for (nobody, told) in [
        ("10.2.0.99", "Destination Host Unreachable"),
        ("fd00:2::99", "Destination unreachable: Address unreachable"),
    ] {
        let mut ping = bed.host_a.command("ping", "KILL");
        ping.args(["-n", "-c", "1", "-W", "5", nobody]);
        let output = ping.output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let gateway = Site::East.lan_address(family_of(nobody)).to_string();
        assert!(
            said.contains(told) && said.contains(&format!("From {gateway}")),
            "{said}"
        );
    }
    // Nobody is there: what waits is bounded, and ends.
    let nobody = [
        "ping",
        "-n",
        "-c",
        "40",
        "-i",
        "0.01",
        "-W",
        "1",
        "10.2.0.99",
    ];
    assert!(bed.host_a.run(&nobody).is_err());
    let all_ended = wait_until(Duration::from_secs(5), || {
        let waited = host_counter(&bed, "lan", "waited_dropped");
        let refused = bed.east.dropped_for("inbound", "no-neighbour");
        waited.unwrap_or(0) + refused.unwrap_or(0) >= 40
    });
    assert!(
        all_ended,
        "{:#}\n{:#}",
        bed.east.show("ports")?,
        bed.east.show("drops")?
    );
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}
