//! What passes in clear by policy, and what does not, beside tunnels: the real stages over buffers of their own.

use std::net::IpAddr;
use std::path::Path;

use simplon::buf::{PacketBuf, TestBuf};
use simplon::drop::{Aside, DropReason, Fate};
use simplon::ids::PortIndex;
use simplon::ipsec::flow_cache::FlowCache;
use simplon::ipsec::sa_counters::WorkerId;
use simplon::ipsec::sad::Sad;
use simplon::meta::{BURST, PacketMeta};
use simplon::policy::compile::{Topology, compile, endpoint_sets, inbound_sa, outbound_sa};
use simplon::policy::model::{MacAddr, Side};
use simplon::policy::tables::Tables;
use simplon::policy::{Secrets, Source, parse};
use simplon::rcu::{Reader, domain};
use simplon::worker::counters::WorkerCounters;
use simplon::worker::probe::NoProbe;
use simplon::worker::stages::{View, process_burst};

#[path = "bypass/ordered.rs"]
mod ordered;

const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The router on either link.
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// The tunnels' peer.
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const LAN_MTU: u16 = 1300;
const WAN_MTU: u16 = 1400;

/// What stands beside the tunnels, as west has it: local, then remote.
const BYPASSES: &[(&str, &str)] = &[
    // Around all tunnels.
    ("10.1.0.0/16", "172.16.0.0/12"),
    // Within the first.
    ("10.1.9.0/24", "172.16.0.128/25"),
    ("10.1.0.0/16", "198.51.100.0/24"),
    ("10.1.0.0/16", "192.0.2.0/24"),
    ("10.1.0.0/16", "224.0.0.0/4"),
    ("169.254.0.0/16", "172.16.0.0/12"),
    ("fd00:1::/64", "fd00:9::/64"),
    ("fe80::/64", "fd00:9::/64"),
];
const DISCARDS: &[(&str, &str)] = &[
    ("10.1.0.66", "172.31.0.0/16"),
    ("10.1.0.0/24", "8.8.8.0/24"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    West,
    East,
}

/// The policy of one end, with so many tunnels: number `n` is from 10.1.0.0/16 to a /24 of 172.16.0.0/12.
fn policy(end: End, tunnels: usize, with_rules: bool) -> String {
    let (us, them) = match end {
        End::West => (1usize, 2usize),
        End::East => (2, 1),
    };
    let [lan, wan, router, peer] = [LAN_MAC, WAN_MAC, ROUTER_MAC, PEER_MAC].map(MacAddr);
    assert_ne!(lan, wan);
    let mut text = format!(
        r#"
gateway = {{ name = "bed", workers = [0], state_dir = "/nowhere", control_socket = "/nowhere/socket", lab_keys = true }}
port = [
  {{ name = "lan", device = "net_null0", side = "protected", pair = "wan", addresses = ["10.{us}.0.1/24", "fd00:{us}::1/64"], mtu = {LAN_MTU} }},
  {{ name = "wan", device = "net_null1", side = "unprotected", pair = "lan", addresses = ["192.0.2.{us}/24", "2001:db8::{us}/64"], mtu = {WAN_MTU} }},
]
neighbour = [
  {{ address = "10.{us}.0.10", mac = "{router}", port = "lan" }},
  {{ address = "fd00:{us}::10", mac = "{router}", port = "lan" }},
  {{ address = "192.0.2.9", mac = "{router}", port = "wan" }},
  {{ address = "192.0.2.{them}", mac = "{peer}", port = "wan" }},
  {{ address = "2001:db8::9", mac = "{router}", port = "wan" }},
]
route = [
  {{ to = "10.1.0.0/16", via = "10.{us}.0.10", port = "lan" }},
  {{ to = "172.16.0.0/12", via = "10.{us}.0.10", port = "lan" }},
  {{ to = "172.16.0.0/12", via = "192.0.2.9", port = "wan" }},
  {{ to = "fd00:9::/64", via = "2001:db8::9", port = "wan" }},
]
"#
    );
    for at in 0..tunnels {
        let far = format!("172.{}.{}.0/24", 16 + at / 256, at % 256);
        let (local, remote) = match end {
            End::West => ("10.1.0.0/16", &*far),
            End::East => (&*far, "10.1.0.0/16"),
        };
        let sa = |from| {
            format!(
                "{{ spi = {}, cipher = \"aes-128-gcm\", key = {{ env = \"K{from}_{at}\" }} }}",
                0x1000 * from + 0x10_0000 + at
            )
        };
        text += &format!(
            "\n[[tunnel]]\nname = \"t{at}\"\nlocal_networks = [\"{local}\"]\nremote_networks = [\"{remote}\"]\n\
             [[tunnel.endpoints]]\nlocal = \"192.0.2.{us}\"\nremote = \"192.0.2.{them}\"\n\
             outbound = {}\ninbound = {}\n",
            sa(us),
            sa(them),
        );
    }
    if with_rules {
        for (kind, rules) in [("bypass", BYPASSES), ("discard", DISCARDS)] {
            for (at, (near, far)) in rules.iter().enumerate() {
                let (local, remote) = match end {
                    End::West => (near, far),
                    End::East => (far, near),
                };
                text += &format!(
                    "\n[[{kind}]]\nname = \"{kind}-{at}\"\nlocal_networks = [\"{local}\"]\nremote_networks = [\"{remote}\"]\n"
                );
            }
        }
    }
    text
}

/// A gateway of one worker.
struct Bed {
    tables: Tables,
    sad: Sad,
    reader: Reader,
    counters: WorkerCounters,
    worker: WorkerId,
    flows: FlowCache,
}

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Outcome {
    /// The frame that was sent.
    Sent(Vec<u8>),
    /// As what it was dropped.
    Dropped(DropReason),
    Punted,
    Aside(Aside),
}

impl Outcome {
    #[track_caller]
    fn sent(self) -> Vec<u8> {
        match self {
            Self::Sent(frame) => frame,
            other => panic!("not sent: {other:?}"),
        }
    }
}

impl Bed {
    fn new(end: End, tunnels: usize, with_rules: bool) -> Self {
        let bed = Self::of(&policy(end, tunnels, with_rules), tunnels);
        assert_eq!(bed.tables.spd.has_bypass(), with_rules);
        bed
    }

    /// One of so many tunnels, by the text of its policy.
    fn of(text: &str, tunnels: usize) -> Self {
        let keys = (1..=2).flat_map(|from| (0..tunnels).map(move |at| (from, at)));
        let key = |(from, at): (usize, usize)| {
            let name = format!("K{from}_{at}");
            (name, format!("{:032x}{at:08x}", from << 32 | at))
        };
        let secrets = Secrets::with_environment(keys.map(key));
        let policy = parse(&Source::new(Path::new("bed.toml"), text), &secrets)
            .unwrap_or_else(|errors| panic!("{errors:#?}"));
        let macs = vec![MacAddr(LAN_MAC), MacAddr(WAN_MAC)];
        let tables = compile(&policy, &Topology { macs });
        let (mut writer, mut readers) = domain(1);
        let sad = Sad::new(&writer, tunnels);
        for (slot, _, tunnel, set) in endpoint_sets(&policy) {
            let outbound = outbound_sa(tunnel, set, 1);
            outbound.seq().extend_lease(u64::MAX);
            let inbound = inbound_sa(tunnel, set, 0);
            for placed in [
                writer
                    .replace(sad.outbound(), slot.index(), Some(Box::new(outbound)))
                    .is_ok(),
                writer
                    .replace(sad.inbound(), slot.index(), Some(Box::new(inbound)))
                    .is_ok(),
            ] {
                assert!(placed);
            }
        }
        Self {
            tables,
            sad,
            reader: readers.pop().expect("one reader"),
            counters: WorkerCounters::new(2),
            worker: WorkerId::new(),
            flows: FlowCache::new(),
        }
    }

    /// Takes IP packets that come in on `side` through, as one burst.
    fn pass(&mut self, side: Side, packets: &[Vec<u8>]) -> Vec<Outcome> {
        assert!(packets.len() <= BURST);
        let (ingress, egress, mac) = match side {
            Side::Protected => (PortIndex(0), PortIndex(1), LAN_MAC),
            Side::Unprotected => (PortIndex(1), PortIndex(0), WAN_MAC),
        };
        let mut buffers: Vec<_> = packets
            .iter()
            .map(|packet| TestBuf::new(&framed(mac, ROUTER_MAC, packet)))
            .collect();
        let mut metas = vec![PacketMeta::NEW; buffers.len()];
        let guard = self.reader.enter();
        let view = View {
            tables: &self.tables,
            sad: self.sad.view(&guard),
            ingress: self.tables.port(ingress).expect("port"),
            egress: self.tables.port(egress).expect("port"),
            worker: &self.worker,
            flows: &self.flows,
        };
        process_burst(&mut buffers, &mut metas, view, &mut NoProbe);
        let counters = self.counters.direction(side);
        counters.received.add(packets.len() as u64);
        counters.add_bypassed(&metas);
        counters.add_fates(&metas);
        let outcome = |(buffer, meta): (&TestBuf, &PacketMeta)| match meta.fate {
            Fate::Live => {
                counters.sent.add(1);
                Outcome::Sent(buffer.data().to_vec())
            }
            Fate::Dropped(reason) => {
                let at = packets.iter().position(|packet| packet == buffer.data());
                assert!(at.is_some() || meta.sa.is_some(), "left as it came");
                Outcome::Dropped(reason)
            }
            Fate::Punted(_) => Outcome::Punted,
            Fate::Aside(reason) => {
                counters.add_aside(reason, 1);
                Outcome::Aside(reason)
            }
            Fate::Bypassed => panic!("neither sent nor dropped"),
        };
        buffers.iter().zip(&metas).map(outcome).collect()
    }

    fn pass_one(&mut self, side: Side, packet: &[u8]) -> Outcome {
        self.pass(side, &[packet.to_vec()]).remove(0)
    }

    /// Received = sent + dropped + punted + taken aside on a side; and how many packets and bytes were bypassed.
    fn assert_balanced(&self, side: Side) -> (u64, u64) {
        let counters = self.counters.direction(side);
        let drops: u64 = counters.drops.iter().map(|drops| drops.get()).sum();
        let punts: u64 = counters.punts.iter().map(|punts| punts.get()).sum();
        let asides: u64 = counters.asides.iter().map(|asides| asides.get()).sum();
        let ended = counters.sent.get() + drops + punts + asides;
        assert_eq!(counters.received.get(), ended);
        (counters.bypassed.get(), counters.bypassed_bytes.get())
    }
}

fn framed(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 {
        [0x08, 0]
    } else {
        [0x86, 0xdd]
    };
    [&to[..], &from, &ether_type, packet].concat()
}

/// An IP packet of `len` bytes in all.
struct Packet<'a> {
    from: &'a str,
    to: &'a str,
    protocol: u8,
    ttl: u8,
    len: usize,
}

impl<'a> Packet<'a> {
    fn new(from: &'a str, to: &'a str) -> Self {
        let (protocol, ttl, len) = (17, 64, 100);
        Self {
            from,
            to,
            protocol,
            ttl,
            len,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let [from, to] = [self.from, self.to].map(|text| text.parse().expect("address"));
        let mut packet = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let len = u16::try_from(self.len).expect("short");
                let mut header = vec![0x45, 0];
                header.extend(len.to_be_bytes());
                header.extend([0x12, 0x34, 0x40, 0, self.ttl, self.protocol, 0, 0]);
                header.extend(from.octets());
                header.extend(to.octets());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let len = u16::try_from(self.len - 40).expect("short");
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(len.to_be_bytes());
                header.extend([self.protocol, self.ttl]);
                header.extend(from.octets());
                header.extend(to.octets());
                header
            }
            _ => panic!("two families"),
        };
        packet.extend((packet.len()..self.len).map(|at| at.to_le_bytes()[0]));
        packet
    }
}

/// An IPv4 packet with other flags in the first byte of flags and fragment offset.
fn with_flags(mut packet: Vec<u8>, flags: u8) -> Vec<u8> {
    packet[6] = flags;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The internet checksum, word by word.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded")
}

/// The frame in which `packet` has to leave when it passes in clear: one hop further and otherwise as it was.
fn passed_on(packet: &[u8], from: [u8; 6]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] -= 1;
        packet[10..12].fill(0);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[7] -= 1;
    }
    framed(ROUTER_MAC, from, &packet)
}

/// One SA, so many that asking ahead is worth while, and so many that it takes a pass for each step.
const TUNNELS: [usize; 3] = [1, 300, 2100];

#[test]
fn mixed_bursts_keep_their_order_and_each_packet_its_fate() {
    for tunnels in TUNNELS {
        let mut west = Bed::new(End::West, tunnels, true);
        let mut east = Bed::new(End::East, tunnels, true);
        let mut in_clear = (0, 0);
        for round in 0..3u8 {
            let sealed = |at: u8| {
                Packet {
                    len: 60 + usize::from(at),
                    ..Packet::new("10.1.0.10", "172.16.0.5")
                }
                .bytes()
            };
            let clear = |at: u8| {
                Packet {
                    len: 60 + usize::from(at),
                    ..Packet::new("10.1.9.5", "172.16.0.200")
                }
                .bytes()
            };
            let nobodys = Packet::new("10.9.0.5", "172.16.0.5").bytes();
            let burst: Vec<_> = (0..64)
                .map(|at| match (at + round) % 5 {
                    0 | 1 => sealed(at),
                    2 | 3 => clear(at),
                    _ => nobodys.clone(),
                })
                .collect();
            let mut on_wire = Vec::new();
            for ((at, packet), outcome) in (0..).zip(&burst).zip(west.pass(Side::Protected, &burst))
            {
                match (at + round) % 5 {
                    0 | 1 => {
                        let frame = outcome.sent();
                        assert_eq!(frame[..6], PEER_MAC);
                        assert_eq!(frame[14 + 9], 50, "ESP");
                        on_wire.push((packet, frame[14..].to_vec()));
                    }
                    2 | 3 => {
                        in_clear.0 += 1;
                        in_clear.1 += packet.len() as u64;
                        assert_eq!(outcome, Outcome::Sent(passed_on(packet, WAN_MAC)));
                    }
                    _ => assert_eq!(outcome, Outcome::Dropped(DropReason::NoPolicy)),
                }
            }
            // Numbers go by order of the packets that are sealed, and none is spent on the others.
            let numbers: Vec<_> = on_wire.iter().map(|(_, esp)| esp[27]).collect();
            assert!(
                numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]),
                "{numbers:?}"
            );
            // East gets them with what came in clear, which it has the same policy for, the other way round.
            let back = Packet::new("10.1.0.10", "172.31.0.5").bytes();
            let mut arriving = Vec::new();
            for (_, esp) in &on_wire {
                arriving.extend([esp.clone(), back.clone()]);
            }
            arriving.truncate(BURST);
            let outcomes = east.pass(Side::Unprotected, &arriving);
            for (at, outcome) in outcomes.into_iter().enumerate() {
                let expected = match at % 2 {
                    0 => {
                        // West has taken one hop already.
                        let inner = passed_on(on_wire[at / 2].0, WAN_MAC);
                        passed_on(&inner[14..], LAN_MAC)
                    }
                    _ => passed_on(&back, LAN_MAC),
                };
                assert_eq!(outcome, Outcome::Sent(expected), "{at}");
            }
        }
        assert_eq!(west.assert_balanced(Side::Protected), in_clear);
        east.assert_balanced(Side::Unprotected);
    }
}

#[test]
fn clear_text_from_outside_passes_only_where_its_most_specific_policy_is_a_bypass() {
    let cases: &[(&str, &str, Option<DropReason>)] = &[
        ("172.31.0.5", "10.1.0.10", None),
        ("198.51.100.5", "10.1.0.10", None),
        ("172.16.0.200", "10.1.9.5", None),
        ("fd00:9::5", "fd00:1::10", None),
        // A tunnel's, within the bypass around it.
        ("172.16.0.5", "10.1.0.10", Some(DropReason::ClearText)),
        ("172.16.0.200", "10.1.0.10", Some(DropReason::ClearText)),
        // Discarded by a policy within the bypass, and by one of its own.
        ("172.31.0.5", "10.1.0.66", Some(DropReason::ClearText)),
        ("8.8.8.8", "10.1.0.10", Some(DropReason::ClearText)),
        // The policy's networks the wrong way round, and nobody's.
        ("10.1.0.10", "172.31.0.5", Some(DropReason::ClearText)),
        ("203.0.113.5", "10.1.0.10", Some(DropReason::ClearText)),
        ("fd00:8::5", "fd00:1::10", Some(DropReason::ClearText)),
        // Of one link, or of many stations.
        ("172.31.0.5", "169.254.0.5", Some(DropReason::ClearText)),
        ("224.0.1.5", "10.1.0.10", Some(DropReason::ClearText)),
        ("fd00:9::5", "fe80::10", Some(DropReason::ClearText)),
    ];
    let mut bed = Bed::new(End::West, 1, true);
    let mut without = Bed::new(End::West, 1, false);
    for (from, to, expected) in cases {
        // ESP and its fragments between others are like any other packet.
        for protocol in [6, 17, 50] {
            let packet = Packet {
                protocol,
                ..Packet::new(from, to)
            }
            .bytes();
            let outcome = bed.pass_one(Side::Unprotected, &packet);
            match expected {
                None => assert_eq!(
                    outcome,
                    Outcome::Sent(passed_on(&packet, LAN_MAC)),
                    "{from} {to}"
                ),
                // What is no clear text has no SA.
                Some(_) if protocol == 50 => {
                    assert_eq!(outcome, Outcome::Dropped(DropReason::NoSa))
                }
                Some(reason) => assert_eq!(outcome, Outcome::Dropped(*reason), "{from} {to}"),
            }
            let expected = match protocol {
                50 => DropReason::NoSa,
                _ => DropReason::ClearText,
            };
            let outcome = without.pass_one(Side::Unprotected, &packet);
            assert_eq!(
                outcome,
                Outcome::Dropped(expected),
                "{from} {to} without bypass"
            );
        }
    }
    let passed = 3 * cases
        .iter()
        .filter(|(.., expected)| expected.is_none())
        .count() as u64;
    assert_eq!(
        bed.assert_balanced(Side::Unprotected),
        (passed, passed * 100)
    );
    assert_eq!(without.assert_balanced(Side::Unprotected), (0, 0));
}

#[test]
fn own_traffic_is_not_bypassed() {
    let mut bed = Bed::new(End::West, 1, true);
    // To the port's own address, which lies in no policy's networks, as to its multicast groups, and ESP of no SA.
    let punted = [
        Packet::new("172.31.0.5", "192.0.2.1").bytes(),
        Packet::new("172.31.0.5", "224.0.0.5").bytes(),
        Packet::new("fd00:9::5", "ff02::5").bytes(),
    ];
    for packet in punted {
        assert_eq!(bed.pass_one(Side::Unprotected, &packet), Outcome::Punted);
    }
    let solicitation = Packet {
        protocol: 58,
        ..Packet::new("fd00:9::5", "fd00:1::10")
    };
    let mut solicitation = solicitation.bytes();
    solicitation[40] = 135;
    assert_eq!(
        bed.pass_one(Side::Unprotected, &solicitation),
        Outcome::Punted
    );
    let esp = Packet {
        protocol: 50,
        ..Packet::new("172.31.0.5", "192.0.2.1")
    }
    .bytes();
    assert_eq!(
        bed.pass_one(Side::Unprotected, &esp),
        Outcome::Dropped(DropReason::NoSa)
    );
    // What is put together here goes through no policy before.
    assert_eq!(
        bed.pass_one(Side::Unprotected, &with_flags(esp, 0x20)),
        Outcome::Aside(Aside::Reassemble)
    );
    assert_eq!(bed.assert_balanced(Side::Unprotected), (0, 0));
}

#[test]
fn clear_text_from_inside_is_routed_as_a_router_does() {
    let mut bed = Bed::new(End::West, 1, true);
    let mut check = |packet: Packet<'_>, expected: Option<DropReason>| {
        let bytes = packet.bytes();
        let outcome = bed.pass_one(Side::Protected, &bytes);
        let expected = match expected {
            None => Outcome::Sent(passed_on(&bytes, WAN_MAC)),
            Some(reason) => Outcome::Dropped(reason),
        };
        assert_eq!(outcome, expected, "{} {}", packet.from, packet.to);
    };
    let to_far = || Packet::new("10.1.0.10", "172.31.0.5");
    check(to_far(), None);
    check(Packet::new("10.1.9.5", "172.16.0.200"), None);
    check(Packet::new("fd00:1::10", "fd00:9::5"), None);
    // The next hop's MTU, without anything for ESP.
    check(
        Packet {
            len: WAN_MTU.into(),
            ..to_far()
        },
        None,
    );
    check(
        Packet {
            len: usize::from(WAN_MTU) + 1,
            ..to_far()
        },
        Some(DropReason::TooBig),
    );
    check(Packet { ttl: 2, ..to_far() }, None);
    check(Packet { ttl: 1, ..to_far() }, Some(DropReason::TtlExpired));
    check(
        Packet {
            ttl: 1,
            ..Packet::new("fd00:1::10", "fd00:9::5")
        },
        Some(DropReason::TtlExpired),
    );
    check(
        Packet::new("10.1.0.10", "198.51.100.5"),
        Some(DropReason::NoRoute),
    );
    check(
        Packet::new("10.1.0.10", "192.0.2.50"),
        Some(DropReason::NoNeighbour),
    );
    check(
        Packet::new("10.1.0.66", "172.31.0.5"),
        Some(DropReason::Discarded),
    );
    check(
        Packet::new("10.1.0.10", "8.8.8.8"),
        Some(DropReason::Discarded),
    );
    check(
        Packet::new("10.1.0.10", "8.8.4.4"),
        Some(DropReason::NoPolicy),
    );
    check(
        Packet::new("10.9.0.5", "172.31.0.5"),
        Some(DropReason::NoPolicy),
    );
    // No router passes these on, whatever the policy says.
    check(
        Packet::new("10.1.0.10", "239.1.1.1"),
        Some(DropReason::NoPolicy),
    );
    check(
        Packet::new("169.254.0.5", "172.31.0.5"),
        Some(DropReason::NoPolicy),
    );
    check(
        Packet::new("fe80::5", "fd00:9::5"),
        Some(DropReason::NoPolicy),
    );
    // Fragments of its own are as good as any packet; what may be cut is cut.
    let fragment = with_flags(to_far().bytes(), 0x20);
    let passed = Outcome::Sent(passed_on(&fragment, WAN_MAC));
    assert_eq!(bed.pass_one(Side::Protected, &fragment), passed);
    let long = Packet {
        len: usize::from(WAN_MTU) + 1,
        ..to_far()
    };
    let cut = bed.pass_one(Side::Protected, &with_flags(long.bytes(), 0));
    assert_eq!(cut, Outcome::Aside(Aside::CutAndSend));
    let (packets, bytes) = bed.assert_balanced(Side::Protected);
    assert_eq!((packets, bytes), (7, 5 * 100 + 2 * u64::from(WAN_MTU) + 1));
    // And in the other direction.
    let from_far = |len| {
        Packet {
            len,
            ..Packet::new("172.31.0.5", "10.1.0.10")
        }
        .bytes()
    };
    let fits = from_far(LAN_MTU.into());
    let passed = Outcome::Sent(passed_on(&fits, LAN_MAC));
    assert_eq!(bed.pass_one(Side::Unprotected, &fits), passed);
    let too_big = bed.pass_one(Side::Unprotected, &from_far(usize::from(LAN_MTU) + 1));
    assert_eq!(too_big, Outcome::Dropped(DropReason::TooBig));
    assert_eq!(bed.assert_balanced(Side::Unprotected), (1, LAN_MTU.into()));
}
