use zerocopy::IntoBytes;

use super::*;
use crate::buf::TestBuf;
use crate::drop::DropReason;
use crate::worker::cut::Cut;

const LINK: [u8; 14] = [9; 14];
const HZ: u64 = 1_000_000;

fn packet_v4(id: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = Ipv4Header {
        version_ihl: 0x45,
        tos: 0,
        total_len: u16::try_from(20 + payload.len()).expect("short").into(),
        id: id.into(),
        flags_fragment: 0.into(),
        ttl: 9,
        protocol: protocol::ESP,
        checksum: 0.into(),
        source: [10, 0, 0, 1],
        destination: [10, 0, 0, 2],
    };
    header.fill_checksum();
    [header.as_bytes(), payload].concat()
}

fn packet_v6(payload: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        version_class_flow: [0x60, 0, 0, 0],
        payload_len: u16::try_from(payload.len()).expect("short").into(),
        next_header: protocol::ESP,
        hop_limit: 64,
        source: [1; 16],
        destination: [2; 16],
    };
    [header.as_bytes(), payload].concat()
}

fn low(id: u32) -> u16 {
    u16::try_from(id).expect("below 4,000")
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 3).to_le_bytes()[0]).collect()
}

/// The fragments as the parser leaves them: the Ethernet header taken off.
fn fragments(packet: &[u8], limit: usize, id: u32) -> Vec<TestBuf> {
    let cut = Cut::new(packet, limit).expect("can be cut");
    let empty = || TestBuf::with_room(&[], 128, 10_000);
    let mut pieces: Vec<_> = (0..cut.pieces()).map(|_| empty()).collect();
    cut.write(&LINK, id, &mut pieces).expect("room");
    for piece in &mut pieces {
        assert!(piece.adj(14));
    }
    pieces
}

struct Rig {
    table: Reassembly<TestBuf>,
    counters: DirectionCounters,
    given: u64,
    whole: u64,
    now: u64,
}

impl Rig {
    fn new() -> Self {
        Self {
            table: Reassembly::new(HZ),
            counters: DirectionCounters::default(),
            given: 0,
            whole: 0,
            now: 5_000_000,
        }
    }

    fn give(&mut self, pieces: impl IntoIterator<Item = TestBuf>) -> Vec<TestBuf> {
        let mut out = Vec::new();
        for piece in pieces {
            self.given += 1;
            out.extend(self.table.take(piece, self.now, &self.counters));
        }
        self.whole += out.len() as u64;
        self.check();
        out
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.counters.drops[reason.index()].get()
    }

    /// Every fragment is held, dropped for a reason, or part of a packet.
    fn check(&self) {
        let drops: u64 = DropReason::ALL.iter().map(|r| self.dropped(*r)).sum();
        let joined = self.counters.asides[Aside::Reassemble.index()].get();
        let held: usize = self.table.entries.iter().map(|e| e.pieces.len()).sum();
        assert_eq!(held, self.table.held());
        assert!(held <= MOST_HELD);
        let used = self.table.entries.iter().filter(|e| e.key.is_some());
        assert_eq!(used.count(), self.table.used);
        assert_eq!(self.given, drops + joined + held as u64);
    }
}

#[test]
fn fragments_in_any_order_make_the_packet_that_was_cut() {
    for packet in [packet_v4(7, &payload(1900)), packet_v6(&payload(2500))] {
        let pieces = fragments(&packet, 576, 1);
        let orders: [fn(&mut Vec<TestBuf>); 3] =
            [|_| {}, |all| all.reverse(), |all| all.rotate_left(2)];
        for order in orders {
            let mut rig = Rig::new();
            let mut pieces = pieces.clone();
            order(&mut pieces);
            let out = rig.give(pieces);
            assert_eq!(out.len(), 1);
            assert_eq!(out[0].data()[..14], LINK);
            assert_eq!(out[0].data()[14..], packet);
            assert!(rig.table.is_empty());
        }
    }
}

#[test]
fn packets_that_come_between_each_other_are_told_apart() {
    let mut rig = Rig::new();
    let packets: Vec<_> = (0..50)
        .map(|id| packet_v4(id, &payload(1500 + usize::from(id))))
        .collect();
    let mut all: Vec<Vec<TestBuf>> = packets
        .iter()
        .map(|packet| fragments(packet, 600, 0))
        .collect();
    let mut out = Vec::new();
    for turn in 0..3 {
        for pieces in &mut all {
            let piece = pieces[turn].clone();
            out.extend(rig.give([piece]));
        }
    }
    let out: Vec<_> = out
        .iter()
        .map(|packet| packet.data()[14..].to_vec())
        .collect();
    assert_eq!(out, packets);
}

#[test]
fn lost_fragment_costs_its_packet_only_and_times_out() {
    let mut rig = Rig::new();
    let mut pieces = fragments(&packet_v4(1, &payload(1500)), 600, 0);
    let last = pieces.pop().expect("three");
    assert!(rig.give(pieces).is_empty());
    rig.now += HZ - 1;
    for _ in 0..SETS * WAYS / TURN {
        rig.table.expire(rig.now, &rig.counters);
    }
    assert_eq!(rig.table.held(), 2);
    rig.now += 1;
    for _ in 0..SETS * WAYS / TURN {
        rig.table.expire(rig.now, &rig.counters);
    }
    rig.check();
    assert_eq!(rig.dropped(DropReason::FragmentTimeout), 2);
    assert!(rig.table.is_empty());
    assert!(rig.give([last]).is_empty(), "it begins anew, and alone");
    // Also where nobody looked in time.
    rig.now += HZ;
    let out = rig.give(fragments(&packet_v4(1, &payload(1500)), 600, 0));
    assert_eq!(out.len(), 1);
    assert_eq!(rig.dropped(DropReason::FragmentTimeout), 3);
}

#[test]
fn overlap_ends_the_packet_and_what_is_still_to_come() {
    let packet = packet_v4(3, &payload(1500));
    let wide = fragments(&packet, 600, 0);
    let narrow = fragments(&packet, 420, 0);
    let mut rig = Rig::new();
    rig.give([wide[0].clone(), narrow[1].clone()]);
    assert_eq!(rig.dropped(DropReason::FragmentOverlap), 2);
    assert!(rig.give(wide).is_empty());
    assert_eq!(rig.dropped(DropReason::FragmentOverlap), 5);
}

#[test]
fn exact_duplicate_goes_alone() {
    let packet = packet_v4(3, &payload(1500));
    let pieces = fragments(&packet, 600, 0);
    let mut rig = Rig::new();
    let twice = pieces[..2].iter().chain(&pieces[1..]).cloned();
    assert_eq!(rig.give(twice).len(), 1);
    assert_eq!(rig.dropped(DropReason::FragmentOverlap), 1);
}

#[test]
fn two_ends_and_what_lies_behind_the_end_are_refused() {
    let packet = packet_v4(3, &payload(1500));
    let pieces = fragments(&packet, 600, 0);
    let mut early_end = pieces[1].clone();
    early_end.data_mut()[6] &= !0x20;
    let (header, _) = Ipv4Header::mut_from_prefix(early_end.data_mut()).expect("whole");
    header.fill_checksum();
    for order in [
        [early_end.clone(), pieces[2].clone()],
        [pieces[2].clone(), early_end],
    ] {
        let mut rig = Rig::new();
        rig.give(order);
        assert_eq!(rig.dropped(DropReason::FragmentOverlap), 2);
        assert_eq!(rig.table.held(), 0);
    }
}

#[test]
fn tiny_fragments_and_too_many_are_refused() {
    let mut rig = Rig::new();
    let tiny = fragments(&packet_v4(3, &payload(400)), 20 + 120, 0);
    let count = tiny.len() as u64;
    rig.give(tiny);
    // The last may be short; it waits in vain.
    assert_eq!(rig.dropped(DropReason::FragmentTiny), count - 1);
    let many = fragments(&packet_v4(4, &payload(9 * 200)), 20 + 200, 0);
    assert!(rig.give(many).is_empty());
    assert_eq!(rig.dropped(DropReason::FragmentExcess), 9);
    // Room for the first alone.
    let pieces = fragments(&packet_v4(5, &payload(1500)), 1000, 0);
    let tight = pieces.iter().map(|piece| {
        let mut tight = TestBuf::with_room(&[0; 14], 128, 1200);
        assert!(tight.adj(14));
        let data = tight.append(piece.data().len()).expect("room");
        data.copy_from_slice(piece.data());
        tight
    });
    assert!(rig.give(tight.collect::<Vec<_>>()).is_empty());
    assert_eq!(rig.dropped(DropReason::FragmentExcess), 11);
}

#[test]
fn flood_of_first_fragments_is_bounded_and_honest_packets_get_through() {
    let mut rig = Rig::new();
    let flood = |id: u32, at: usize| {
        let mut piece = fragments(&packet_v4(low(id), &payload(1500)), 600, 0).swap_remove(at);
        let (header, _) = Ipv4Header::mut_from_prefix(piece.data_mut()).expect("whole");
        header.source = (0x0b00_0000 + id).to_be_bytes();
        header.fill_checksum();
        piece
    };
    for id in 0..4000 {
        rig.now += 1;
        // Two of three fragments, so that it is the fragments held that are the limit, too.
        rig.give([flood(id, 0), flood(id, 1)]);
        if id % 100 == 0 {
            let out = rig.give(fragments(&packet_v4(low(id), &payload(1500)), 600, 0));
            assert_eq!(out.len(), 1, "beside the flood");
        }
    }
    assert!(rig.dropped(DropReason::FragmentEvicted) > 2 * (4000 - 1024));
    assert_eq!(rig.whole, 40);
}

#[test]
fn congestion_marked_on_one_fragment_is_marked_on_the_whole() {
    let mark = |tos: u8, piece: &mut TestBuf| {
        let (header, _) = Ipv4Header::mut_from_prefix(piece.data_mut()).expect("whole");
        header.tos = tos;
        header.fill_checksum();
    };
    for (first, other, wanted) in [(2, 3, Some(3)), (2, 2, Some(2)), (0, 3, None), (3, 0, None)] {
        let mut pieces = fragments(&packet_v4(3, &payload(1000)), 600, 0);
        mark(first, &mut pieces[0]);
        mark(other, &mut pieces[1]);
        let mut rig = Rig::new();
        let out = rig.give(pieces);
        assert_eq!(out.first().map(|packet| packet.data()[15]), wanted);
        let refused = rig.dropped(DropReason::CeOnNotEct);
        assert_eq!(refused, if wanted.is_none() { 2 } else { 0 });
    }
}

#[test]
fn other_headers_before_the_fragment_header_are_refused() {
    let mut packet = packet_v6(&payload(600));
    packet[6] = protocol::DESTINATION_OPTIONS;
    let mut rig = Rig::new();
    assert!(rig.give([TestBuf::new(&packet)]).is_empty());
    assert_eq!(rig.dropped(DropReason::Fragment), 1);
}
