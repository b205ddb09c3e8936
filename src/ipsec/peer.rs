//! Where the peer of an SA in UDP is, and where its newest packet came from (RFC 3948, RFC 7296 section 2.23).
//!
//! A NAT gives the peer behind it another address or port whenever it likes. Workers note where an authenticated packet came
//! from that is the newest of its SA; the control thread decides, and replaces the peer of the SA that seals. An SA stays
//! the same SA meanwhile, with its one counter of sequence numbers: nothing is built anew, so no nonce can repeat.
//!
//! Only SAs in UDP have any of this, behind a pointer of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::bits::{low_16, low_32, low_64};
use crate::sync::{AtomicU64, Ordering, fence};

/// A peer as atomics hold it: the address, and the port with the family above it.
type Words = [u64; 3];

/// In the word of the port: the address is IPv4.
const V4: u64 = 1 << 16;

fn to_words(peer: SocketAddr) -> Words {
    let port = u64::from(peer.port());
    match peer.ip() {
        IpAddr::V4(address) => [u64::from(address.to_bits()), 0, port | V4],
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            [low_64(bits), low_64(bits >> 64), port]
        }
    }
}

fn from_words([low, high, port]: Words) -> SocketAddr {
    let address = if port & V4 != 0 {
        Ipv4Addr::from_bits(low_32(low)).into()
    } else {
        Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).into()
    };
    SocketAddr::new(address, low_16(port))
}

/// Whether packets can be sent to `peer`: one station's address that is not on this machine, and a port.
pub fn is_usable(peer: SocketAddr) -> bool {
    let is_station = match peer.ip() {
        IpAddr::V4(address) => !address.is_broadcast() && address.octets()[0] != 0,
        IpAddr::V6(address) => address.to_ipv4_mapped().is_none(),
    };
    let address = peer.ip();
    is_station
        && !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_loopback()
        && peer.port() != 0
}

/// Three words that are written and read one by one.
#[derive(Default)]
struct Copied([AtomicU64; 3]);

impl Copied {
    fn new(words: Words) -> Self {
        Self(words.map(AtomicU64::new))
    }

    fn load(&self) -> Words {
        let [low, high, port] = &self.0;
        [low, high, port].map(|word| word.load(Ordering::Relaxed))
    }

    fn store(&self, words: Words) {
        for (to, word) in self.0.iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
    }
}

/// Where a peer is: replaced by one thread, read whole by any.
///
/// There are two copies, and a reader takes the one in force; the next one is written into the other. So a reader has to
/// look again only where the peer moved while it was looking, and to give up only where it did so each time.
pub struct PeerCell {
    /// How often the peer moved; the lowest bit says which copy is in force.
    moves: AtomicU64,
    copies: [Copied; 2],
}

/// How often a reader looks.
const LOOKS: usize = 4;

impl PeerCell {
    /// A peer that never moved.
    pub fn new(peer: SocketAddr) -> Self {
        Self {
            moves: AtomicU64::new(0),
            copies: [Copied::new(to_words(peer)), Copied::default()],
        }
    }

    fn copy(&self, moves: u64) -> &Copied {
        let [even, odd] = &self.copies;
        if moves & 1 == 0 { even } else { odd }
    }

    /// Where the peer is; `None` where it moved at each look, which takes as many turns of the control thread.
    #[inline]
    pub fn get(&self) -> Option<SocketAddr> {
        for _ in 0..LOOKS {
            let moves = self.moves.load(Ordering::Acquire);
            let words = self.copy(moves).load();
            // Pairs with the fence in `replace`: who read a word of a later peer sees here that there is one.
            fence(Ordering::Acquire);
            if self.moves.load(Ordering::Relaxed) == moves {
                return Some(from_words(words));
            }
        }
        None
    }

    /// Moves the peer. For one thread only.
    pub fn replace(&self, peer: SocketAddr) {
        let moves = self.moves.load(Ordering::Relaxed).wrapping_add(1);
        fence(Ordering::Release);
        self.copy(moves).store(to_words(peer));
        self.moves.store(moves, Ordering::Release);
    }

    /// How often it moved.
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }
}

/// Where the newest packet of an SA came from, if not from its peer.
///
/// Any worker may write it, none waits: one that finds another at it leaves it at that, for the next packet says it again.
#[derive(Default)]
pub struct PeerNote {
    /// [`EMPTY`], [`BUSY`] or [`FULL`].
    state: AtomicU64,
    /// Sequence number of the newest packet that had a say here.
    seq: AtomicU64,
    source: Copied,
}

const EMPTY: u64 = 0;
/// Somebody writes or reads it.
const BUSY: u64 = 1;
const FULL: u64 = 2;

impl PeerNote {
    /// Notes that packet `seq`, which is authentic and the newest of its SA, came from `source`. Whatever is older has no
    /// say any more.
    #[inline]
    pub fn offer(&self, seq: u64, source: SocketAddr) {
        let state = self.state.load(Ordering::Acquire);
        if self.is_newer(seq) && self.enter(state) {
            // Again, now that nobody else writes it.
            let is_newer = self.is_newer(seq);
            if is_newer {
                self.seq.store(seq, Ordering::Relaxed);
                self.source.store(to_words(source));
            }
            self.leave(if is_newer { FULL } else { state });
        }
    }

    /// Takes back what is noted: packet `seq`, authentic and newer, came from the peer where it is known to be.
    #[inline]
    pub fn withdraw(&self, seq: u64) {
        if self.state.load(Ordering::Acquire) == FULL && self.is_newer(seq) && self.enter(FULL) {
            let is_newer = self.is_newer(seq);
            if is_newer {
                self.seq.store(seq, Ordering::Relaxed);
            }
            self.leave(if is_newer { EMPTY } else { FULL });
        }
    }

    /// What is noted; nothing is, afterwards.
    pub fn take(&self) -> Option<SocketAddr> {
        if self.state.load(Ordering::Relaxed) != FULL || !self.enter(FULL) {
            return None;
        }
        let source = from_words(self.source.load());
        self.leave(EMPTY);
        Some(source)
    }

    fn is_newer(&self, seq: u64) -> bool {
        seq > self.seq.load(Ordering::Relaxed)
    }

    /// Whether the note is the caller's until it leaves.
    fn enter(&self, state: u64) -> bool {
        state != BUSY
            && self
                .state
                .compare_exchange(state, BUSY, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    fn leave(&self, state: u64) {
        self.state.store(state, Ordering::Release);
    }
}

/// The peer of an SA that seals.
pub struct OutboundPeer {
    /// Where packets go.
    pub cell: PeerCell,
    /// Keepalives sent there.
    keepalives: AtomicU64,
}

impl OutboundPeer {
    /// A peer that never moved.
    pub fn new(peer: SocketAddr) -> Self {
        Self {
            cell: PeerCell::new(peer),
            keepalives: AtomicU64::new(0),
        }
    }

    /// Counts a keepalive.
    pub fn count_keepalive(&self) {
        self.keepalives.fetch_add(1, Ordering::Relaxed);
    }

    /// Keepalives sent.
    pub fn keepalives(&self) -> u64 {
        self.keepalives.load(Ordering::Relaxed)
    }
}

/// The peer of an SA that opens.
pub struct InboundPeer {
    /// Where packets are expected from. Those from elsewhere are opened all the same.
    pub cell: PeerCell,
    /// Where the newest came from, if from elsewhere; none is ever noted where the peer is not to be followed.
    pub note: PeerNote,
    is_followed: bool,
}

impl InboundPeer {
    /// A peer that never moved, and whether it may.
    pub fn new(peer: SocketAddr, is_followed: bool) -> Self {
        Self {
            cell: PeerCell::new(peer),
            note: PeerNote::default(),
            is_followed,
        }
    }

    /// Whether it is to be followed where it moves.
    #[inline]
    pub fn is_followed(&self) -> bool {
        self.is_followed
    }

    /// Takes in that packet `seq`, which is authentic and the newest of its SA, came from `source`.
    #[inline]
    pub fn saw(&self, seq: u64, source: SocketAddr) {
        if self.cell.get() == Some(source) {
            self.note.withdraw(seq);
        } else {
            self.note.offer(seq, source);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(text: &str) -> SocketAddr {
        text.parse().expect("address and port")
    }

    proptest! {
        #[test]
        fn words_hold_any_peer(address: IpAddr, port: u16) {
            let peer = SocketAddr::new(address, port);
            prop_assert_eq!(from_words(to_words(peer)), peer);
        }
    }

    #[test]
    fn peer_that_moves_is_where_it_moved_last() {
        let places = ["192.0.2.1:4500", "[2001:db8::1]:4500", "192.0.2.1:4501"].map(peer);
        let cell = PeerCell::new(places[0]);
        for (moves, place) in (1..).zip(&places[1..]) {
            cell.replace(*place);
            assert_eq!((cell.get(), cell.moves()), (Some(*place), moves));
        }
    }

    #[test]
    fn newest_packet_has_the_last_say() {
        let (known, elsewhere, third) = (
            peer("192.0.2.1:4500"),
            peer("192.0.2.1:40000"),
            peer("198.51.100.1:4500"),
        );
        let inbound = InboundPeer::new(known, true);
        inbound.saw(5, elsewhere);
        inbound.saw(4, third);
        inbound.saw(4, known);
        assert_eq!(inbound.note.take(), Some(elsewhere));
        assert_eq!(inbound.note.take(), None, "taken once");
        inbound.saw(5, third);
        assert_eq!(inbound.note.take(), None, "no newer than what was taken");
        inbound.saw(6, elsewhere);
        inbound.saw(7, third);
        assert_eq!(inbound.note.take(), Some(third));
        inbound.saw(8, elsewhere);
        inbound.saw(9, known);
        assert_eq!(inbound.note.take(), None, "it is where it was");
    }

    #[test]
    fn packets_go_to_stations_only() {
        for usable in ["192.0.2.1:1", "[2001:db8::1]:4500", "[fe80::1]:4500"] {
            assert!(is_usable(peer(usable)), "{usable}");
        }
        let unusable = [
            "192.0.2.1:0",
            "0.0.0.0:4500",
            "0.1.2.3:4500",
            "127.0.0.1:4500",
            "224.0.0.1:4500",
            "255.255.255.255:4500",
            "[::]:4500",
            "[::1]:4500",
            "[ff02::1]:4500",
            "[::ffff:192.0.2.1]:4500",
        ];
        for unusable in unusable {
            assert!(!is_usable(peer(unusable)), "{unusable}");
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use std::sync::Arc;

    fn at(port: u16) -> SocketAddr {
        let address = Ipv6Addr::from_bits(u128::from(port) << 64 | u128::from(port));
        SocketAddr::new(address.into(), port)
    }

    #[test]
    fn reader_sees_no_peer_made_of_two() {
        loom::model(|| {
            let cell = Arc::new(PeerCell::new(at(1)));
            let theirs = Arc::clone(&cell);
            let writer = loom::thread::spawn(move || {
                theirs.replace(at(2));
                theirs.replace(at(3));
            });
            let seen = cell.get();
            assert!(seen.is_none_or(|peer| (1..=3).any(|port| peer == at(port))));
            writer.join().expect("writer");
            assert_eq!(cell.get(), Some(at(3)));
        });
    }

    #[test]
    fn note_is_one_packets_and_no_older_one_replaces_it() {
        loom::model(|| {
            let note = Arc::new(PeerNote::default());
            let theirs = Arc::clone(&note);
            let worker = loom::thread::spawn(move || theirs.offer(1, at(1)));
            note.offer(2, at(2));
            let first = note.take();
            worker.join().expect("worker");
            let second = note.take();
            assert!(first.is_none_or(|peer| peer == at(1) || peer == at(2)));
            if first == Some(at(2)) {
                assert_eq!(second, None);
            }
            assert!(second.is_none_or(|peer| peer == at(1) || peer == at(2)));
        });
    }
}
