//! What arrives on the protected side, and what keeps it from being sealed.

use simplon::buf::{PacketBuf, TestBuf};
use simplon::drop::{DropReason, Fate, PuntReason};
use simplon::meta::PacketMeta;
use simplon::policy::compile::{Topology, compile};
use simplon::policy::model::{MacAddr, Side};
use simplon::worker::parse::parse_burst;
use simplon::worker::probe::NoProbe;

use super::packets::{ETHER, ether, fix_checksum, forwarded, framed, inner, ip, udp, unbreakable};
use super::rig::{PUNTS, RING, Rig};
use super::sites::hosts;

const SIDE: Side = Side::Protected;

pub(crate) fn run(rig: &mut Rig<'_>) {
    policy(rig);
    hop_limits(rig);
    sizes(rig);
    truncated(rig);
    leases(rig);
    last_number(rig);
    punts_in_order_and_bounded(rig);
    transmit_queue_full(rig);
    chained_is_dropped(rig);
}

fn frame(rig: &Rig<'_>, packet: &[u8]) -> Vec<u8> {
    framed(rig.west.macs[0], packet)
}

fn policy(rig: &mut Rig<'_>) {
    let nowhere: Vec<_> = [
        ("10.1.0.5", "198.51.100.1"),
        ("10.9.0.5", "10.2.0.10"),
        ("10.2.0.10", "10.1.0.5"),
        ("10.1.0.5", "192.0.2.2"),
        ("10.1.0.5", "239.1.2.3"),
        ("fd00:1::5", "fd00:9::5"),
        ("fd00:9::5", "fd00:2::5"),
        ("fe80::1", "fd00:2::5"),
    ]
    .map(|(from, to)| frame(rig, &inner(from, to, 1, 40)))
    .to_vec();
    rig.west
        .refuse(SIDE, &nowhere, DropReason::NoPolicy, "no policy");
    for (from, to) in [("0.0.0.0", "255.255.255.255"), ("fe80::1", "ff02::5")] {
        let frame = frame(rig, &inner(from, to, 1, 40));
        rig.west
            .punt(SIDE, &frame, PuntReason::Multicast, "for all on the link");
    }
    for (tunnel, reason) in [
        ("down", DropReason::SaDown),
        ("lost", DropReason::NoRoute),
        ("silent", DropReason::NoNeighbour),
    ] {
        let (from, to) = hosts(tunnel, false);
        let frames = vec![frame(rig, &inner(&from, &to, 1, 40)); 3];
        rig.west.refuse(SIDE, &frames, reason, tunnel);
    }
    // ESP that arrives for an SA that is not there.
    let number = 7u64.to_be_bytes();
    let mut esp = 0xf0f0_0040u32.to_be_bytes().to_vec();
    esp.extend(&number[4..]);
    esp.extend([5; 60]);
    let stray = framed(rig.east.macs[1], &ip("192.0.2.1", "192.0.2.2", 50, &esp));
    rig.east.refuse(
        Side::Unprotected,
        &[stray],
        DropReason::SaDown,
        "no such SA yet",
    );
    // For the gateway itself.
    for (packet, reason) in [
        (inner("10.1.0.5", "10.1.0.1", 1, 40), PuntReason::Local),
        (ip("10.1.0.5", "10.1.0.1", 1, &[8; 16]), PuntReason::Icmp),
        (
            ip("fd00:1::5", "fd00:1::1", 58, &[128; 16]),
            PuntReason::Icmp,
        ),
        (
            ip("10.1.0.5", "10.1.0.1", 17, &udp(500, 500, &[1; 40])),
            PuntReason::Ike,
        ),
        (
            ip("fd00:1::5", "fd00:2::5", 58, &[135; 24]),
            PuntReason::NeighbourDiscovery,
        ),
    ] {
        let frame = frame(rig, &packet);
        rig.west.punt(SIDE, &frame, reason, "for the gateway");
    }
    let mut bad = frame(rig, &inner("10.1.0.5", "10.2.0.10", 1, 40));
    bad[ETHER + 10] ^= 1;
    rig.west
        .refuse(SIDE, &[bad.clone()], DropReason::BadChecksum, "checksum");
    bad[ETHER + 10] ^= 1;
    bad[0] ^= 1;
    rig.west
        .refuse(SIDE, &[bad], DropReason::NotOurMac, "a group MAC");
}

fn hop_limits(rig: &mut Rig<'_>) {
    let mut spent = Vec::new();
    for ttl in [0, 1] {
        let mut packet = inner("10.1.0.5", "10.2.0.10", 1, 40);
        packet[8] = ttl;
        fix_checksum(&mut packet);
        spent.push(frame(rig, &packet));
        let mut packet = inner("fd00:1::5", "fd00:2::10", 1, 40);
        packet[7] = ttl;
        spent.push(frame(rig, &packet));
    }
    rig.west.refuse(SIDE, &spent, DropReason::TtlExpired, "TTL");
}

fn sizes(rig: &mut Rig<'_>) {
    // Over IPv4: 20 bytes of header, 16 of ESP and IV, 18 of trailer and ICV, at 1500.
    let (from, to) = hosts("plain4", false);
    for len in [1446, 1500, 1600] {
        let packet = unbreakable(inner(&from, &to, 1, len - 20));
        let big = frame(rig, &packet);
        if len > 1446 {
            rig.west.refuse(SIDE, &[big], DropReason::TooBig, "too big");
        } else {
            let outcome = rig.west.run(SIDE, &[big]);
            assert_eq!(outcome.sent[0].len(), ETHER + 1500);
            let packet = unbreakable(inner(&from, &to, 1, len - 19));
            let big = frame(rig, &packet);
            rig.west
                .refuse(SIDE, &[big], DropReason::TooBig, "one too big");
        }
    }
}

/// Cut frames of a host: none is sealed, unless the IP packet is whole.
fn truncated(rig: &mut Rig<'_>) {
    for v6 in [false, true] {
        let (from, to) = hosts("plain4", v6);
        let whole = frame(rig, &inner(&from, &to, 1, 40));
        let header = ETHER + if v6 { 40 } else { 20 };
        for len in 0..whole.len() {
            let reason = if len < header {
                DropReason::Runt
            } else {
                DropReason::BadLength
            };
            rig.west
                .refuse(SIDE, &[whole[..len].to_vec()], reason, "cut");
        }
    }
}

fn leases(rig: &mut Rig<'_>) {
    rig.west.install_without_lease("plain4");
    rig.east.install("plain4", 1, 0);
    let (from, to) = hosts("plain4", false);
    let packets: Vec<_> = (0..12)
        .map(|number| inner(&from, &to, number, 40))
        .collect();
    let frames: Vec<_> = packets.iter().map(|packet| frame(rig, packet)).collect();
    rig.west
        .refuse(SIDE, &frames, DropReason::LeaseWait, "nothing leased");
    rig.west.extend_lease("plain4", 11);
    let outcome = rig.west.run(SIDE, &frames);
    assert_eq!(outcome.sent.len(), 10, "{outcome:?}");
    assert_eq!(outcome.dropped(DropReason::LeaseWait), 2, "{outcome:?}");
    let mut sealed = outcome.sent;
    rig.west
        .refuse(SIDE, &frames, DropReason::LeaseWait, "lease used up");
    rig.west.extend_lease("plain4", 100);
    let outcome = rig.west.run(SIDE, &frames);
    assert_eq!(outcome.sent.len(), 12, "{outcome:?}");
    sealed.extend(outcome.sent);
    for frame in &mut sealed {
        frame[..6].copy_from_slice(&rig.east.macs[1]);
    }
    let mut numbers: Vec<_> = sealed.iter().map(|frame| frame[42..50].to_vec()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 22, "no IV twice");
    let outcome = rig.east.run(Side::Unprotected, &sealed);
    assert_eq!(outcome.sent.len(), 22, "{outcome:?}");
}

fn last_number(rig: &mut Rig<'_>) {
    let last = u64::from(u32::MAX);
    rig.west.install("short", last - 2, 0);
    rig.east.install("short", 1, last - 10);
    let (from, to) = hosts("short", false);
    let packets: Vec<_> = (0..5).map(|number| inner(&from, &to, number, 40)).collect();
    let frames: Vec<_> = packets.iter().map(|packet| frame(rig, packet)).collect();
    let mut outcome = rig.west.run(SIDE, &frames);
    assert_eq!(outcome.sent.len(), 3, "{outcome:?}");
    assert_eq!(outcome.dropped(DropReason::SeqExhausted), 2, "{outcome:?}");
    for _ in 0..3 {
        rig.west
            .refuse(SIDE, &frames, DropReason::SeqExhausted, "no number left");
    }
    for frame in &mut outcome.sent {
        frame[..6].copy_from_slice(&rig.east.macs[1]);
    }
    let opened = rig.east.run(Side::Unprotected, &outcome.sent);
    for (sent, packet) in opened.sent.iter().zip(&packets) {
        assert_eq!(sent[ETHER..], forwarded(packet, 2));
    }
    assert_eq!(opened.sent.len(), 3);
}

/// The control side gets packets in the order they came, between packets with other fates; what it has no room for is
/// the last.
fn punts_in_order_and_bounded(rig: &mut Rig<'_>) {
    let (from, to) = hosts("udp4", false);
    let frames: Vec<_> = (0..60u8)
        .map(|number| match number % 3 {
            0 => ether([0xff; 6], 0x0806, &[number; 28]),
            1 => frame(rig, &inner(&from, &to, u64::from(number), 40)),
            _ => ether([0xff; 6], 0x88cc, &[number; 28]),
        })
        .collect();
    let outcome = rig.west.run(SIDE, &frames);
    assert_eq!((outcome.sent.len(), outcome.all_dropped()), (20, 20));
    let order: Vec<u8> = outcome
        .punts
        .iter()
        .map(|(_, frame)| frame[ETHER])
        .collect();
    assert_eq!(order, (0..60).step_by(3).collect::<Vec<u8>>());

    let arp: Vec<_> = (0..60)
        .map(|number| ether([0xff; 6], 0x0806, &[number; 28]))
        .collect();
    let west = &mut rig.west;
    for burst in 0..3u64 {
        west.send_only(SIDE, &arp);
        assert_eq!(west.worker.poll_once(&mut NoProbe), 60);
        assert_eq!(
            west.drops(SIDE, DropReason::PuntFull),
            (60 * (burst + 1)).saturating_sub(100)
        );
    }
    assert_eq!(
        west.pool.in_use(),
        PUNTS as u32,
        "what waits is all that is out"
    );
    let mut waiting = Vec::new();
    while let Some(punted) = west.worker.shared.host.punts.pop() {
        waiting.push(punted.mbuf.data()[ETHER]);
    }
    let expected: Vec<u8> = (0..60).chain(0..40).collect();
    assert_eq!(waiting, expected, "the first that came");
    assert_eq!(west.pool.in_use(), 0);
    west.assert_balanced();
}

fn transmit_queue_full(rig: &mut Rig<'_>) {
    let (from, to) = hosts("udp4", false);
    let frames: Vec<_> = (0..64)
        .map(|number| frame(rig, &inner(&from, &to, number, 40)))
        .collect();
    let west = &mut rig.west;
    for burst in 1..=5usize {
        west.send_only(SIDE, &frames);
        assert_eq!(west.worker.poll_once(&mut NoProbe), 64);
        let over = (burst * 64).saturating_sub(RING) as u64;
        assert_eq!(west.drops(SIDE, DropReason::TxFull), over);
    }
    assert_eq!(
        west.pool.in_use(),
        RING as u32,
        "what waits is all that is out"
    );
    assert_eq!(west.wires[1].receive().len(), RING);
    assert_eq!(west.pool.in_use(), 0);
    west.assert_balanced();
}

/// A packet in several buffers. Ring ports and safe calls make none, so the stage that refuses it is called by itself.
struct Chained(TestBuf);

impl PacketBuf for Chained {
    fn data(&self) -> &[u8] {
        self.0.data()
    }
    fn data_mut(&mut self) -> &mut [u8] {
        self.0.data_mut()
    }
    fn headroom(&self) -> usize {
        self.0.headroom()
    }
    fn tailroom(&self) -> usize {
        self.0.tailroom()
    }
    fn prepend(&mut self, len: usize) -> Option<&mut [u8]> {
        self.0.prepend(len)
    }
    fn append(&mut self, len: usize) -> Option<&mut [u8]> {
        self.0.append(len)
    }
    fn adj(&mut self, len: usize) -> bool {
        self.0.adj(len)
    }
    fn uncover(&mut self, len: usize) -> bool {
        self.0.uncover(len)
    }
    fn trim(&mut self, len: usize) -> bool {
        self.0.trim(len)
    }
    fn cut(&mut self, front: usize, len: usize) -> bool {
        self.0.cut(front, len)
    }
    fn grow(&mut self, front: usize, back: usize) -> Option<&mut [u8]> {
        self.0.grow(front, back)
    }
    fn is_whole(&self) -> bool {
        false
    }
}

fn chained_is_dropped(rig: &mut Rig<'_>) {
    let topology = Topology {
        macs: rig.west.macs.map(MacAddr).to_vec(),
    };
    let tables = compile(&rig.west.policy, &topology);
    let whole = frame(rig, &inner("10.1.0.5", "10.2.0.10", 1, 40));
    let mut packets = [Chained(TestBuf::new(&whole)), Chained(TestBuf::new(&[]))];
    let mut metas = [PacketMeta::NEW; 2];
    parse_burst(&mut packets, &mut metas, &tables.ports[0]);
    for meta in metas {
        assert_eq!(meta.fate, Fate::Dropped(DropReason::Chained));
    }
}
