//! Golden packets: what the real stages seal, scapy's IPsec layer opens, and the reverse; and both make the same bytes.
//!
//! scapy runs in one Python process for each test, `golden/peer.py`, which answers one line of JSON to each line.

#[path = "golden/peer.rs"]
mod peer;
mod rig;

use peer::{InnerSpec, Peer, PeerSa, Transport};
use rig::{End, Family, Keying, Outcome, Rig, Shape, UDP_PORTS, family_mixes, hex};
use simplon::crypto::aead::Cipher;
use simplon::drop::{Aside, DropReason, PuntReason};

/// Inner packets of every padding length, of every transport, the smallest and a large one, with all sorts of DSCP and
/// ECN, DF on and off.
fn inner_packets(shape: &Shape) -> Vec<InnerSpec> {
    let (source, destination) = shape.hosts();
    let spec = |transport, payload_len, tos, hop_limit, df| InnerSpec {
        source,
        destination,
        transport,
        payload_len,
        tos,
        hop_limit,
        df,
    };
    vec![
        spec(Transport::None, 0, 0x00, 64, false),
        spec(Transport::None, 1, 0xb8, 2, true),
        spec(Transport::Udp, 0, 0x01, 255, false),
        spec(Transport::Udp, 1, 0x02, 64, true),
        spec(Transport::Udp, 2, 0x03, 64, false),
        spec(Transport::Udp, 3, 0xfe, 64, true),
        spec(Transport::Udp, 1400, 0x28, 3, true),
        spec(Transport::Tcp, 57, 0x4a, 128, true),
        spec(Transport::Tcp, 1200, 0x89, 64, false),
        spec(Transport::Icmp, 56, 0xff, 64, false),
    ]
}

/// The SA pair's half that carries packets from `from`, as scapy has to have it for number `seq` and inner packet `inner`.
fn peer_sa(shape: &Shape, from: End, seq: u64, inner: &InnerSpec) -> PeerSa {
    let Keying { spi, key } = shape.keying(from);
    let (west, east) = shape.outer.gateways();
    let (source, destination) = if from == End::West {
        (west, east)
    } else {
        (east, west)
    };
    let (west_port, east_port) = UDP_PORTS;
    let ports = if from == End::West {
        (west_port, east_port)
    } else {
        (east_port, west_port)
    };
    PeerSa {
        spi,
        key,
        esn: shape.esn,
        seq,
        source,
        destination,
        // The defaults of a policy: DSCP, ECN and DF are the inner packet's, and DF is set for an inner IPv6 packet.
        tos: inner.tos,
        hop_limit: 64,
        df: inner.df || shape.inner == Family::V6,
        id: u16::try_from(seq & 0xffff).expect("16 bits"),
        udp: shape.udp.then_some(ports),
    }
}

/// Seals inner packets from number `shape.next_seq` on, and holds each against scapy both ways. Returns how many.
#[track_caller]
fn check_sealing(peer: &mut Peer, shape: &Shape) -> usize {
    let mut rig = Rig::new(shape);
    let specs = inner_packets(shape);
    let built: Vec<_> = specs.iter().map(|spec| peer.inner(spec)).collect();
    let arriving: Vec<_> = built.iter().map(|inner| inner.packet.clone()).collect();
    let outcomes = rig.seal(&arriving);
    for (((outcome, spec), inner), seq) in outcomes
        .into_iter()
        .zip(&specs)
        .zip(&built)
        .zip(shape.next_seq..)
    {
        let what = format!("{shape}, number {seq}, {spec:?}");
        let Outcome::Sent(sealed) = outcome else {
            panic!("{what}: {outcome:?}");
        };
        let sa = peer_sa(shape, End::West, seq, spec);
        assert_eq!(
            hex(&sealed),
            hex(&peer.seal(&sa, &inner.forwarded, seq.to_be_bytes())),
            "{what}: bytes"
        );
        assert_eq!(
            peer.open(&sa, &sealed).as_deref(),
            Some(inner.forwarded.as_slice()),
            "{what}: opened"
        );
    }
    assert_eq!(rig.outbound().counters().packets(), specs.len() as u64);
    specs.len()
}

/// Opens packets that scapy sealed with the numbers from `first` on. Returns how many.
#[track_caller]
fn check_opening(peer: &mut Peer, shape: &Shape, first: u64) -> usize {
    let mut rig = Rig::new(shape);
    // What comes from the east has its addresses the other way round.
    let (ours, theirs) = shape.hosts();
    let mut specs = inner_packets(shape);
    for spec in &mut specs {
        (spec.source, spec.destination) = (theirs, ours);
    }
    let built: Vec<_> = specs.iter().map(|spec| peer.inner(spec)).collect();
    let mut arriving = Vec::new();
    for ((spec, inner), seq) in specs.iter().zip(&built).zip(first..) {
        let sa = peer_sa(shape, End::East, seq, spec);
        // RFC 4106 leaves the IV to the sender, so a receiver may not expect the sequence number there.
        let iv = (seq ^ 0xa5a5_a5a5_a5a5_a5a5).to_be_bytes();
        arriving.push(peer.seal(&sa, &inner.packet, iv));
    }
    for (((outcome, spec), inner), seq) in rig
        .open(&arriving)
        .into_iter()
        .zip(&specs)
        .zip(&built)
        .zip(first..)
    {
        assert_eq!(
            outcome,
            Outcome::Sent(inner.forwarded.clone()),
            "{shape}, number {seq}, {spec:?}"
        );
    }
    let copies = rig.open(&arriving);
    assert!(
        copies
            .iter()
            .all(|copy| *copy == Outcome::Dropped(DropReason::Replayed)),
        "{shape}: {copies:?}"
    );
    assert_eq!(rig.inbound().counters().packets(), specs.len() as u64);
    specs.len()
}

#[test]
fn sealed_packets_are_scapys_byte_for_byte_and_open_there() {
    let mut peer = Peer::start();
    let shapes = Shape::all();
    let packets: usize = shapes
        .iter()
        .map(|shape| check_sealing(&mut peer, shape))
        .sum();
    assert_eq!((shapes.len(), packets), (48, 480));
}

#[test]
fn packets_sealed_by_scapy_open_byte_for_byte_and_once() {
    let mut peer = Peer::start();
    let shapes = Shape::all();
    let packets: usize = shapes
        .iter()
        .map(|shape| check_opening(&mut peer, shape, 1))
        .sum();
    assert_eq!((shapes.len(), packets), (48, 480));
}

#[test]
fn extended_numbers_pass_multiples_of_2_to_the_32_both_ways() {
    let mut peer = Peer::start();
    let mut packets = 0;
    for shape in Shape::all().into_iter().filter(|shape| shape.esn) {
        // Five numbers before the low half wraps, five after, the one with low half 0 among them.
        for high in [1u64, 0x8000_0000] {
            let first = (high << 32) - 5;
            let shape = Shape {
                next_seq: first,
                seen: first - 1,
                ..shape.clone()
            };
            packets += check_sealing(&mut peer, &shape);
            packets += check_opening(&mut peer, &shape, first);
        }
    }
    assert_eq!(packets, 24 * 2 * 2 * 10);
}

#[test]
fn late_packet_from_before_the_wrap_opens_after_it_and_the_wrong_high_half_never() {
    let mut peer = Peer::start();
    let wrap = 1u64 << 32;
    for cipher in Cipher::ALL {
        let shape = Shape {
            seen: wrap - 100,
            ..Shape::new(cipher, Family::V4, Family::V4, false)
        };
        let mut rig = Rig::new(&shape);
        let (ours, theirs) = shape.hosts();
        let spec = InnerSpec::small(theirs, ours);
        let inner = peer.inner(&spec);
        let mut seal = |seq| {
            let sa = peer_sa(&shape, End::East, seq, &spec);
            peer.seal(&sa, &inner.packet, seq.to_be_bytes())
        };
        let mut expect = |seq, expected: Outcome| {
            assert_eq!(rig.open_one(&seal(seq)), expected, "{cipher}, number {seq}");
        };
        let sent = || Outcome::Sent(inner.forwarded.clone());
        expect(wrap - 50, sent());
        expect(wrap + 50, sent());
        expect(wrap - 40, sent());
        expect(wrap - 40, Outcome::Dropped(DropReason::Replayed));
        expect(wrap, sent());
        expect(wrap, Outcome::Dropped(DropReason::Replayed));
        // The same low halves, sealed with other high halves than the window takes them for.
        expect(60, Outcome::Dropped(DropReason::BadIcv));
        expect(2 * wrap + 60, Outcome::Dropped(DropReason::BadIcv));
        expect(2 * wrap - 30, Outcome::Dropped(DropReason::BadIcv));
        expect(wrap + 60, sent());
        expect(wrap - 30, sent());
    }
}

#[test]
fn short_numbers_end_at_the_last_which_scapy_still_opens() {
    let mut peer = Peer::start();
    for (inner, outer) in family_mixes() {
        let last = u64::from(u32::MAX);
        let shape = Shape {
            esn: false,
            next_seq: last,
            seen: last - 1,
            ..Shape::new(Cipher::Aes128Gcm, inner, outer, false)
        };
        let mut rig = Rig::new(&shape);
        let (ours, theirs) = shape.hosts();
        let spec = InnerSpec::small(ours, theirs);
        let built = peer.inner(&spec);
        let outcomes = rig.seal(&[built.packet.clone(), built.packet.clone()]);
        let sa = peer_sa(&shape, End::West, last, &spec);
        let expected = peer.seal(&sa, &built.forwarded, last.to_be_bytes());
        assert_eq!(
            outcomes,
            [
                Outcome::Sent(expected),
                Outcome::Dropped(DropReason::SeqExhausted)
            ]
        );
        let spec = InnerSpec::small(theirs, ours);
        let built = peer.inner(&spec);
        let sa = peer_sa(&shape, End::East, last, &spec);
        let packet = peer.seal(&sa, &built.packet, last.to_be_bytes());
        assert_eq!(rig.open_one(&packet), Outcome::Sent(built.forwarded));
    }
}

/// A gateway and what scapy has to know to send it packets.
struct Victim {
    shape: Shape,
    rig: Rig,
    peer: Peer,
    spec: InnerSpec,
    inner: Vec<u8>,
    forwarded: Vec<u8>,
    seq: u64,
}

impl Victim {
    fn new(shape: Shape) -> Self {
        let (ours, theirs) = shape.hosts();
        let mut peer = Peer::start();
        let spec = InnerSpec::small(theirs, ours);
        let built = peer.inner(&spec);
        Self {
            rig: Rig::new(&shape),
            shape,
            peer,
            spec,
            inner: built.packet,
            forwarded: built.forwarded,
            seq: 0,
        }
    }

    /// scapy's SA for the next packet.
    fn sa(&mut self) -> PeerSa {
        self.seq += 1;
        peer_sa(&self.shape, End::East, self.seq, &self.spec)
    }

    fn seal(&mut self, sa: &PeerSa) -> Vec<u8> {
        self.peer.seal(sa, &self.inner, sa.seq.to_be_bytes())
    }

    /// A packet that is what it should be but for what `change` does to the SA it is sealed with.
    fn with_sa(&mut self, change: impl FnOnce(&mut PeerSa)) -> Vec<u8> {
        let mut sa = self.sa();
        change(&mut sa);
        self.seal(&sa)
    }

    /// An authentic packet in which this was encrypted.
    fn with_plain(&mut self, plain: &[u8]) -> Vec<u8> {
        let sa = self.sa();
        self.peer.forge(&sa, plain, sa.seq.to_be_bytes())
    }

    /// Sends `packet`, which has the current number and is a forgery: it is dropped for `reason`, and the window has not
    /// moved, so that the true packet of that number still comes through.
    #[track_caller]
    fn refuses_forgery(&mut self, what: &str, packet: &[u8], reason: DropReason) {
        self.lets_not_pass(what, packet, Outcome::Dropped(reason));
    }

    /// As [`Self::refuses_forgery`], whatever becomes of it.
    #[track_caller]
    fn lets_not_pass(&mut self, what: &str, packet: &[u8], wanted: Outcome) {
        assert_eq!(self.rig.open_one(packet), wanted, "{}: {what}", self.shape);
        let sa = peer_sa(&self.shape, End::East, self.seq, &self.spec);
        let honest = self.seal(&sa);
        assert_eq!(
            self.rig.open_one(&honest),
            Outcome::Sent(self.forwarded.clone()),
            "{}: after {what}",
            self.shape
        );
    }

    /// Sends an authentic packet in which `plain` was encrypted, and a copy: the copy is a replay in any case.
    #[track_caller]
    fn meets(&mut self, what: &str, plain: &[u8], expected: Outcome) {
        let packet = self.with_plain(plain);
        let replayed = Outcome::Dropped(DropReason::Replayed);
        assert_eq!(
            self.rig.open(&[packet.clone(), packet]),
            [expected, replayed],
            "{}: {what}",
            self.shape
        );
    }

    /// ESP's next header for the inner packet.
    fn next_header(&self) -> u8 {
        match self.shape.inner {
            Family::V4 => 4,
            Family::V6 => 41,
        }
    }
}

/// `payload`, `padding`, pad length and next header.
fn plain(payload: &[u8], padding: &[u8], next_header: u8) -> Vec<u8> {
    let pad_len = u8::try_from(padding.len()).expect("short");
    [payload, padding, &[pad_len, next_header]].concat()
}

/// A shape of every family mix and encapsulation, the cipher changing along.
fn victims() -> impl Iterator<Item = Victim> {
    let ciphers = Cipher::ALL.into_iter().cycle();
    family_mixes()
        .flat_map(|(inner, outer)| [false, true].map(|udp| (inner, outer, udp)))
        .zip(ciphers)
        .map(|((inner, outer, udp), cipher)| Victim::new(Shape::new(cipher, inner, outer, udp)))
}

#[test]
fn forgeries_by_scapy_are_dropped_and_move_no_window() {
    for mut victim in victims() {
        for at in [1, 16, 17, 20] {
            let mut packet = victim.with_sa(|_| ());
            let at = packet.len() - at;
            packet[at] ^= 0x40;
            victim.refuses_forgery("a bit flipped", &packet, DropReason::BadIcv);
        }
        let packet = victim.with_sa(|sa| sa.key[0] ^= 1);
        victim.refuses_forgery("another key", &packet, DropReason::BadIcv);
        let packet = victim.with_sa(|sa| *sa.key.last_mut().expect("salt") ^= 1);
        victim.refuses_forgery("another salt", &packet, DropReason::BadIcv);
        let packet = victim.with_sa(|sa| sa.seq += 1 << 32);
        victim.refuses_forgery("another high half", &packet, DropReason::BadIcv);
        let packet = victim.with_sa(|sa| sa.esn = false);
        victim.refuses_forgery("no extended number", &packet, DropReason::BadIcv);
        let packet = victim.with_sa(|sa| sa.spi += 1);
        victim.refuses_forgery("an unknown SPI", &packet, DropReason::NoSa);
        let packet = victim.with_sa(|sa| sa.spi = victim_outbound_spi());
        victim.refuses_forgery("the outbound SPI", &packet, DropReason::NoSa);
        let packet = victim.with_sa(|sa| sa.seq = 0);
        victim.refuses_forgery("number 0", &packet, DropReason::ZeroSequence);
    }
}

/// Anyone on the path reads it off the packets we send; it opens nothing.
fn victim_outbound_spi() -> u32 {
    let shape = Shape::new(Cipher::Aes128Gcm, Family::V4, Family::V4, false);
    shape.keying(End::West).spi
}

#[test]
fn malformed_but_authentic_packets_by_scapy_are_dropped_for_their_reason() {
    use DropReason::{BadInner, BadNextHeader, BadPadding, Dummy, SelectorMismatch};
    for mut victim in victims() {
        let inner = victim.inner.clone();
        let inner = inner.as_slice();
        let next = victim.next_header();
        let other = if next == 4 { 41 } else { 4 };
        let mut meets = |what, plain: &[u8], reason| {
            victim.meets(what, plain, Outcome::Dropped(reason));
        };
        meets("padding of zeros", &plain(inner, &[0, 0], next), BadPadding);
        meets("padding 1, 3", &plain(inner, &[1, 3], next), BadPadding);
        meets("padding 2, 1", &plain(inner, &[2, 1], next), BadPadding);
        let mut too_long = plain(inner, &[1, 2], next);
        let at = too_long.len() - 2;
        too_long[at] = 255;
        meets("more padding than bytes", &too_long, BadPadding);
        meets("nothing but a trailer of too much", &[1, next], BadPadding);
        meets("a dummy", &plain(inner, &[1, 2], 59), Dummy);
        meets("an empty dummy", &plain(&[], &[1, 2], 59), Dummy);
        meets(
            "TCP in transport mode",
            &plain(inner, &[], 6),
            BadNextHeader,
        );
        meets("next header 0", &plain(inner, &[], 0), BadNextHeader);
        meets(
            "the other family's next header",
            &plain(inner, &[], other),
            BadInner,
        );
        meets("no inner packet", &plain(&[], &[1, 2], next), BadInner);
        let half = &inner[..inner.len() - 1];
        meets(
            "a truncated inner packet",
            &plain(half, &[], next),
            BadInner,
        );
        meets(
            "a truncated header",
            &plain(&inner[..12], &[], next),
            BadInner,
        );
        let mut version = inner.to_vec();
        version[0] = 0x75;
        meets("inner version 7", &plain(&version, &[], next), BadInner);
        if next == 4 {
            let mut checksum = inner.to_vec();
            checksum[10] ^= 1;
            meets(
                "a wrong inner checksum",
                &plain(&checksum, &[], next),
                BadInner,
            );
        }
        let (ours, theirs) = victim.shape.hosts();
        for (source, destination) in [(ours, theirs), (theirs, theirs), (ours, ours)] {
            let spec = InnerSpec::small(source, destination);
            let stranger = victim.peer.inner(&spec).packet;
            let plain = plain(&stranger, &[], next);
            victim.meets(
                "inner addresses of others",
                &plain,
                Outcome::Dropped(SelectorMismatch),
            );
        }
    }
}

#[test]
fn flow_padding_and_long_esp_padding_are_taken_off() {
    for mut victim in victims() {
        let inner = victim.inner.clone();
        let next = victim.next_header();
        let all: Vec<u8> = (1..=255).collect();
        for len in [1, 3, 255] {
            let sent = Outcome::Sent(victim.forwarded.clone());
            victim.meets("long padding", &plain(&inner, &all[..len], next), sent);
        }
        for len in [1usize, 7, 100, 1000] {
            // RFC 4303 section 2.7: traffic flow confidentiality padding follows the inner packet, whose length tells.
            let mut padded = inner.clone();
            padded.extend((0..len).map(|at| (at * 31).to_le_bytes()[0]));
            let sent = Outcome::Sent(victim.forwarded.clone());
            victim.meets("flow padding", &plain(&padded, &[1, 2], next), sent);
        }
    }
}

#[test]
fn packets_outside_the_tunnel_never_reach_the_key() {
    for mut victim in victims() {
        let udp = victim.shape.udp;
        let packet = victim.with_sa(|sa| sa.udp = (!udp).then_some((UDP_PORTS.1, UDP_PORTS.0)));
        let expected = if udp {
            Outcome::Dropped(DropReason::EncapMismatch)
        } else {
            // No SA here takes UDP, so this is a datagram for the gateway like any other.
            Outcome::Punted(PuntReason::Local)
        };
        assert_eq!(victim.rig.open_one(&packet), expected, "{}", victim.shape);

        let elsewhere = match victim.shape.outer {
            Family::V4 => "192.0.2.77",
            Family::V6 => "2001:db8::77",
        };
        let packet = victim.with_sa(|sa| sa.destination = elsewhere);
        let reason = if udp {
            DropReason::ClearText
        } else {
            DropReason::NoSa
        };
        assert_eq!(victim.rig.open_one(&packet), Outcome::Dropped(reason));

        let headers = victim.shape.outer.header_len() + if udp { 8 } else { 0 };
        for len in [headers + 8, headers + 16, headers + 8 + 8 + 2 + 15] {
            let packet = victim.with_sa(|_| ());
            let packet = cut(&packet[..len], victim.shape.outer, udp);
            victim.refuses_forgery("cut short", &packet, DropReason::Runt);
        }
        if victim.shape.outer == Family::V4 {
            for flags in [0x20, 0x01] {
                let mut packet = victim.with_sa(|_| ());
                packet[6] = flags;
                packet[10..12].fill(0);
                let sum = rig::internet_checksum(&packet[..20]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
                let wanted = Outcome::Aside(Aside::Reassemble);
                victim.lets_not_pass("a fragment", &packet, wanted);
            }
        }
    }
}

/// The beginning of a packet, with lengths and checksum that say so.
fn cut(packet: &[u8], outer: Family, udp: bool) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let len = u16::try_from(packet.len()).expect("short");
    match outer {
        Family::V4 => {
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[10..12].fill(0);
            let sum = rig::internet_checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Family::V6 => packet[4..6].copy_from_slice(&(len - 40).to_be_bytes()),
    }
    if udp {
        let at = outer.header_len();
        let header = u16::try_from(at).expect("short");
        packet[at + 4..at + 6].copy_from_slice(&(len - header).to_be_bytes());
    }
    packet
}
