//! Security associations: what one needs per packet, and what it counts.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering as PlainOrdering};

use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use crate::bits::low_16;
use crate::crypto::aead::{self, Cipher, FarKey, KeyFingerprint, KeyMaterial, KeyRef, NearKey};
use crate::crypto::aead::{ICV_LEN, IV_LEN, SALT_LEN};
use crate::drop::DropReason;
use crate::ids::Spi;
use crate::ipsec::outer::{DontFragment, Encapsulation, Fragmentation, OuterHeader, SizeRules};
use crate::ipsec::peer::{InboundPeer, OutboundPeer};
use crate::ipsec::replay::{Window, first_word, window_size, window_words};
use crate::ipsec::sa_counters::{ColdCounters, DROPS_SIZE, SaCounters, WorkerId};
use crate::ipsec::selector::{AddressPair, Selectors, V4Prefix};
use crate::ipsec::seq::{Seq, SeqAllocator, SeqRun};
use crate::rcu::ring::Ring;
use crate::sync::{AtomicU8, AtomicU64, Ordering};
use crate::wire::esp::EspHeader;
use crate::wire::ip::protocol;
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::Ipv6Header;
use crate::wire::udp::UdpHeader;
use crate::wire::{checksum, esp, ipv4, ipv6, udp};

/// Longest run of headers before the ciphertext, in bytes: IPv6, UDP, ESP, IV.
pub const MAX_TEMPLATE: usize = ipv6::HEADER_LEN + udp::HEADER_LEN + esp::HEADER_LEN + IV_LEN;

/// What every SA is made of.
pub struct SaParams<'a> {
    /// SPI: the peer's outbound, ours inbound.
    pub spi: Spi,
    /// Key and salt.
    pub key: &'a KeyMaterial,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Our outer address.
    pub local: IpAddr,
    /// The peer's outer address, same family.
    pub remote: IpAddr,
    /// ESP as it is, or in UDP.
    pub encapsulation: Encapsulation,
}

/// What makes an outbound SA.
pub struct OutboundParams<'a> {
    /// What it shares with an inbound one.
    pub sa: SaParams<'a>,
    /// First sequence number to use; 1 for a fresh key.
    pub next_seq: u64,
    /// How outer headers are built.
    pub outer: OuterHeader,
    /// What becomes of packets that are too big.
    pub sizes: SizeRules,
}

/// An SA that seals: all that a packet needs of it, in one cache line.
///
/// With many SAs nearly each packet of a burst finds its SA beyond the second level of the cache, and how many lines it has to wait
/// for is most of what it costs. So here is what a short packet in IPv4, ESP and AES-128 needs and no more: what its headers have that
/// others' have not, the key from which round keys and hash key are made on the way, and the numbers and the count of the worker that
/// owns it. The rest lies apart: what longer packets and other headers need, what workers share, what is seldom wanted.
#[repr(C, align(64))]
pub struct OutboundSa {
    /// As in [`Seq`].
    stock: AtomicU64,
    /// As in [`SaCounters`].
    counted: AtomicU64,
    pub(super) far: Box<OutboundFar>,
    /// Outer addresses, where they are IPv4 ones.
    pub(super) source: [u8; 4],
    pub(super) destination: [u8; 4],
    /// SPI, host byte order.
    spi: u32,
    pub(super) salt: Zeroizing<[u8; SALT_LEN]>,
    /// The largest outer packet that the path to the peer takes, in bytes.
    path_mtu: AtomicU16,
    stock_len: AtomicU8,
    owner: AtomicU8,
    pub(super) shape: Shape,
    near_key: NearKey,
}

/// What is apart of an SA that seals.
pub(super) struct OutboundFar {
    key: FarKey,
    seq: SeqAllocator,
    /// Where packets go, in UDP: the template has where they went at first.
    pub(super) peer: Option<OutboundPeer>,
    /// Headers of every packet that are not IPv4 and ESP, complete but for what changes from packet to packet; the end of this.
    pub(super) template: [u8; MAX_TEMPLATE],
    /// Checksum sum over the IPv4 header as it stands in the template, without the destination, which may move; or over the
    /// source address of IPv6's UDP pseudo-header.
    pub(super) sum: u32,
    cold: ColdCounters,
    /// The first of its numbers.
    first_seq: u64,
    identity: SaIdentity,
}

/// Bytes of an SA that seals, with all that is apart.
pub const OUTBOUND_SIZE: usize = size_of::<OutboundSa>() + size_of::<OutboundFar>() + DROPS_SIZE;
/// Bytes of an SA that opens, likewise, but for its window and selectors.
pub const INBOUND_SIZE: usize =
    size_of::<InboundSa>() + size_of::<InboundFar>() + size_of::<InboundRest>() + DROPS_SIZE;

#[cfg(not(loom))]
const _: () = assert!(size_of::<OutboundSa>() == 64 && size_of::<InboundSa>() == 64);

/// What the headers of an outbound SA consist of, and what goes from the inner header into the outer one.
pub(super) struct Shape {
    /// Bits as below.
    flags: AtomicU8,
    /// The outer TOS has these bits. Where it has the inner DSCP or ECN, there are none in their place, and a flag.
    tos_set: u8,
    pub(super) hop_limit: u8,
}

/// Extended sequence numbers.
const ESN: u8 = 1;
/// The outer header is IPv4.
const OUTER_V4: u8 = 2;
/// UDP follows the outer IP header.
const IN_UDP: u8 = 4;
/// The maximum segment size of TCP connections is held to what fits.
const CLAMP_MSS: u8 = 8;
/// What may be fragmented is fragmented once it is sealed.
const FRAGMENT_AFTER: u8 = 16;
/// An IPv4 outer header takes DF from an IPv4 inner one.
const KEEP_DF: u8 = 32;
/// It always has DF.
const SET_DF: u8 = 64;
/// The SA was stopped. Not a shape, but whoever asks whether the headers are the usual ones finds this out as well, and packets
/// of other SAs are asked nothing more.
const STOPPED_OUT: u8 = 128;

/// What makes an inbound SA.
pub struct InboundParams<'a> {
    /// What it shares with an outbound one.
    pub sa: SaParams<'a>,
    /// Anti-replay window, in packets.
    pub window: u32,
    /// Sequence numbers up to here count as seen; 0 for a fresh key.
    pub seen: u64,
    /// What it may carry.
    pub selectors: Selectors,
    /// Whether the peer is to be followed where its address or port changes, in UDP.
    pub peer_moves: bool,
}

/// The carrier of an SA that was stopped. No ESP comes in protocol 0, so that whoever compares the two finds that out as with
/// any packet in the wrong encapsulation, and packets of other SAs are asked nothing more.
const STOPPED: u8 = 0;

/// An SA that opens: all that a packet needs of it beside one word of the window, in one cache line, as in [`OutboundSa`].
#[repr(C, align(64))]
pub struct InboundSa {
    /// As in [`Window`].
    top: AtomicU64,
    /// As in [`SaCounters`].
    counted: AtomicU64,
    /// With the words of the anti-replay window.
    far: Ring<InboundFar>,
    /// SPI, host byte order.
    pub(super) spi: u32,
    /// As in [`OutboundSa`].
    pub(super) salt: Zeroizing<[u8; SALT_LEN]>,
    /// The first IPv4 networks of the selectors, nearly always the only ones: remote, then local; as in [`V4Prefix`].
    first_prefixes: [u32; 2],
    /// Size of the window in packets, less one.
    window_less_one: u16,
    first_host_bits: [u8; 2],
    /// The protocol that its packets come in, [`protocol::ESP`] or [`protocol::UDP`]; [`STOPPED`] where it opens none any
    /// more.
    carrier: AtomicU8,
    owner: AtomicU8,
    pub(super) esn: bool,
    near_key: NearKey,
}

/// What is apart of an SA that opens.
struct InboundFar {
    key: FarKey,
    /// As in [`Window`].
    floor: u64,
    cold: ColdCounters,
    rest: Box<InboundRest>,
}

/// What is seldom wanted of it.
struct InboundRest {
    /// What it may carry.
    selectors: Selectors,
    identity: SaIdentity,
    /// Where packets come from, in UDP.
    peer: Option<InboundPeer>,
}

/// What names an SA to people.
#[derive(Clone)]
pub struct SaIdentity {
    /// SPI.
    pub spi: Spi,
    /// Cipher.
    pub cipher: Cipher,
    /// Names the key without telling it.
    pub fingerprint: KeyFingerprint,
    /// Our outer address.
    pub local: IpAddr,
    /// The peer's outer address, in UDP as it was at first.
    pub remote: IpAddr,
    /// ESP as it is, or in UDP.
    pub encapsulation: Encapsulation,
    /// Extended sequence numbers.
    pub esn: bool,
}

impl SaParams<'_> {
    /// Where the peer is, in UDP, as far as is known at first.
    fn peer(&self) -> Option<SocketAddr> {
        match self.encapsulation {
            Encapsulation::None => None,
            Encapsulation::Udp { remote_port, .. } => {
                Some(SocketAddr::new(self.remote, remote_port))
            }
        }
    }

    /// What names the SA to people.
    pub fn identity(&self) -> SaIdentity {
        SaIdentity {
            spi: self.spi,
            cipher: self.key.cipher(),
            fingerprint: self.key.fingerprint(),
            local: self.local,
            remote: self.remote,
            encapsulation: self.encapsulation,
            esn: self.esn,
        }
    }
}

impl Shape {
    fn new(params: &OutboundParams<'_>) -> Self {
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        let (sa, outer) = (&params.sa, &params.outer);
        let flags = flag(sa.esn, ESN)
            | flag(sa.local.is_ipv4(), OUTER_V4)
            | flag(sa.encapsulation != Encapsulation::None, IN_UDP)
            | flag(params.sizes.clamp_mss, CLAMP_MSS)
            | flag(
                params.sizes.fragmentation == Fragmentation::After,
                FRAGMENT_AFTER,
            )
            | flag(outer.df == DontFragment::Copy, KEEP_DF)
            | flag(outer.df == DontFragment::Set, SET_DF);
        let takes = |bits| outer.tos(bits) & bits == bits && outer.tos(0) & bits == 0;
        Self {
            flags: AtomicU8::new(flags),
            tos_set: outer.tos(0) | flag(takes(DSCP), KEEP_DSCP) | flag(takes(ECN), KEEP_ECN),
            hop_limit: outer.hop_limit,
        }
    }

    #[inline]
    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    /// Whether sequence numbers have 64 bits.
    #[inline]
    pub(super) fn esn(&self) -> bool {
        self.has(ESN)
    }

    /// Whether the headers are IPv4 and ESP, and the SA was not stopped.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & (OUTER_V4 | IN_UDP | STOPPED_OUT) == OUTER_V4
    }

    /// Whether the outer header is IPv4.
    #[inline]
    pub(super) fn is_v4(&self) -> bool {
        self.has(OUTER_V4)
    }

    /// Whether the headers are IPv6 and UDP, which wants a checksum.
    #[inline]
    pub(super) fn is_udp6(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & (OUTER_V4 | IN_UDP) == IN_UDP
    }

    /// Bytes of outer IP, UDP, ESP, IV.
    #[inline]
    fn len(&self) -> usize {
        if self.is_plain() {
            return ipv4::HEADER_LEN + esp::HEADER_LEN + IV_LEN;
        }
        self.other_len()
    }

    #[inline(never)]
    fn other_len(&self) -> usize {
        let ip = if self.is_v4() {
            ipv4::HEADER_LEN
        } else {
            ipv6::HEADER_LEN
        };
        let udp = if self.has(IN_UDP) { udp::HEADER_LEN } else { 0 };
        ip.saturating_add(udp)
            .saturating_add(esp::HEADER_LEN)
            .saturating_add(IV_LEN)
    }

    /// The outer TOS or traffic class for an inner one.
    #[inline]
    pub(super) fn tos(&self, inner: u8) -> u8 {
        // All ones where the flag is set, without a branch.
        let if_set = |flag: u8| 0_u8.wrapping_sub(u8::from(self.tos_set & flag != 0));
        let keep = if_set(KEEP_DSCP) & DSCP | if_set(KEEP_ECN) & ECN;
        self.tos_set & DSCP | inner & keep
    }

    /// First byte of flags and fragment offset of an IPv4 outer header. `inner` is that of the inner one, DF set for IPv6,
    /// which routers never fragment.
    #[inline]
    pub(super) fn ip_flags(&self, inner: u8) -> u8 {
        let flags = self.flags.load(Ordering::Relaxed);
        // Each moved to where DF is.
        (inner & flags.wrapping_shl(1) | flags) & DF
    }
}

/// The bits of a TOS.
const DSCP: u8 = 0b1111_1100;
const ECN: u8 = 0b11;
/// The outer DSCP or ECN is the inner one: bits of `tos_set` in the place of ECN, which is never another one.
const KEEP_DSCP: u8 = 1;
const KEEP_ECN: u8 = 2;

/// Where the destination stands in an IPv4 header: at its end.
const DESTINATION_V4: usize = ipv4::HEADER_LEN - 4;

/// DF in the first byte of flags and fragment offset.
pub(super) const DF: u8 = (ipv4::DONT_FRAGMENT >> 8) as u8;

// For `Shape::ip_flags`.
const _: () = assert!(KEEP_DF << 1 == DF && SET_DF == DF);

impl OutboundSa {
    /// An SA with nothing leased yet: it seals once it has been given a lease ([`Self::seq`]).
    pub fn new(params: &OutboundParams<'_>) -> Self {
        let seq = SeqAllocator::new(params.next_seq, params.sa.esn);
        let (template, sum) = template(params);
        let (near_key, key) = aead::expand(params.sa.key);
        let mut this = Self {
            stock: AtomicU64::new(0),
            counted: AtomicU64::new(0),
            far: Box::new(OutboundFar {
                key,
                seq,
                peer: params.sa.peer().map(OutboundPeer::new),
                template,
                sum,
                cold: ColdCounters::default(),
                first_seq: 0,
                identity: params.sa.identity(),
            }),
            source: v4_octets(params.sa.local),
            destination: v4_octets(params.sa.remote),
            spi: params.sa.spi.get(),
            salt: Zeroizing::new(params.sa.key.salt()),
            path_mtu: AtomicU16::new(params.sizes.path_mtu),
            stock_len: AtomicU8::new(0),
            owner: AtomicU8::new(0),
            shape: Shape::new(params),
            near_key,
        };
        this.far.first_seq = this.seq().unused();
        this.stock = AtomicU64::new(this.far.first_seq);
        this
    }

    /// Its sequence numbers.
    #[inline]
    pub fn seq(&self) -> Seq<'_> {
        Seq {
            stock: &self.stock,
            len: &self.stock_len,
            shared: &self.far.seq,
        }
    }

    /// Asks for what is apart of it, where a packet that is about to get a number will most likely want it.
    #[inline]
    pub fn prefetch_numbers(&self) {
        self.seq().prefetch_if_empty();
    }

    /// Its key.
    #[inline]
    pub(super) fn key(&self) -> KeyRef<'_> {
        KeyRef::new(&self.near_key, &self.far.key)
    }

    /// What names it to people.
    pub fn identity(&self) -> &SaIdentity {
        &self.far.identity
    }

    /// The peer's outer address, where it is now.
    pub fn remote(&self) -> IpAddr {
        let peer = self.peer().and_then(|peer| peer.cell.get());
        peer.map_or(self.far.identity.remote, |peer| peer.ip())
    }

    /// Where packets go, in UDP.
    pub fn peer(&self) -> Option<&OutboundPeer> {
        self.far.peer.as_ref()
    }

    /// What was sealed and what was refused.
    #[inline]
    pub fn counters(&self) -> SaCounters<'_> {
        SaCounters {
            counted: &self.counted,
            owner: &self.owner,
            cold: &self.far.cold,
        }
    }

    /// Takes up to `count` sequence numbers for `worker`: mostly without an atomic operation where it owns the SA.
    #[inline]
    pub fn take_numbers(&self, worker: &WorkerId, count: u64) -> SeqRun {
        if self.counters().is_owned_by(worker) {
            return self.seq().take_as_owner(count);
        }
        if self.counters().has_owner() {
            self.seq().note_guest();
        }
        self.seq().take(count)
    }

    /// How many sequence numbers it has spent: one for each packet that was sealed, and for each that failed after that.
    pub fn numbers_used(&self) -> u64 {
        self.seq().unused().saturating_sub(self.far.first_seq)
    }

    /// Ends it after so many packets from now on, exactly (RFC 4301 section 4.4.2.1).
    pub fn limit_packets(&mut self, packets: u64) {
        self.far.seq.limit(packets);
    }

    /// Stops it for good: it seals nothing more, but what a worker is about to in this moment.
    pub fn stop(&self) {
        // The one for workers that have numbers, the other for those that ask for some.
        self.shape.flags.fetch_or(STOPPED_OUT, Ordering::Relaxed);
        self.seq().stop();
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.seq().leased().is_none()
    }

    /// SPI, host byte order.
    #[inline]
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// Bytes it puts before an inner packet.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.shape.len()
    }

    /// Bytes it puts behind an inner packet of `len` bytes.
    pub fn tailroom(&self, len: usize) -> usize {
        esp::pad_len(len)
            .saturating_add(esp::TRAILER_LEN)
            .saturating_add(ICV_LEN)
    }

    /// The largest outer packet that may leave by a link that takes `link_mtu` bytes.
    #[inline]
    pub fn outer_mtu(&self, link_mtu: u16) -> u16 {
        link_mtu.min(self.path_mtu.load(PlainOrdering::Relaxed))
    }

    /// The largest outer packet that the path to the peer takes, in bytes, as far as it is known; [`u16::MAX`] where it is not.
    pub fn path_mtu(&self) -> u16 {
        self.path_mtu.load(PlainOrdering::Relaxed)
    }

    /// Takes note of the largest outer packet that the path to the peer takes.
    pub fn set_path_mtu(&self, mtu: u16) {
        self.path_mtu.store(mtu, PlainOrdering::Relaxed);
    }

    /// Whether TCP connections are to be held to segments that fit.
    #[inline]
    pub fn clamps_mss(&self) -> bool {
        self.shape.has(CLAMP_MSS)
    }

    /// Whether inner packets that are too big and may be fragmented are sealed whole, and their outer packets fragmented.
    #[inline]
    pub fn fragments_after(&self) -> bool {
        self.shape.has(FRAGMENT_AFTER)
    }

    /// The largest inner packet whose outer one is no larger than `mtu` bytes; 0 where none is.
    pub fn largest_inner(&self, mtu: u16) -> u16 {
        let fixed = self.headroom().saturating_add(ICV_LEN);
        let room = usize::from(mtu).saturating_sub(fixed);
        // Padding fills up to four bytes (RFC 4303 section 2.4).
        let inner = (room & !3).saturating_sub(esp::TRAILER_LEN);
        u16::try_from(inner).unwrap_or(u16::MAX)
    }

    /// Length of the outer IP packet around an inner one of `len` bytes.
    pub fn sealed_len(&self, len: usize) -> usize {
        len.saturating_add(self.headroom())
            .saturating_add(self.tailroom(len))
    }
}

impl InboundSa {
    /// An SA whose window stands behind `params.seen`.
    pub fn new(params: InboundParams<'_>) -> Self {
        let (near_key, key) = aead::expand(params.sa.key);
        let size = window_size(params.window);
        let words = window_words(size);
        let first = [
            params.selectors.remote.first_v4(),
            params.selectors.local.first_v4(),
        ];
        let far = InboundFar {
            key,
            floor: params.seen,
            cold: ColdCounters::default(),
            rest: Box::new(InboundRest {
                selectors: params.selectors,
                identity: params.sa.identity(),
                peer: params
                    .sa
                    .peer()
                    .map(|peer| InboundPeer::new(peer, params.peer_moves)),
            }),
        };
        Self {
            top: AtomicU64::new(params.seen),
            counted: AtomicU64::new(0),
            far: Ring::new(far, words, |index| first_word(params.seen, index, words)),
            spi: params.sa.spi.get(),
            salt: Zeroizing::new(params.sa.key.salt()),
            first_prefixes: first.map(|net| net.prefix),
            window_less_one: low_16(u64::from(size).wrapping_sub(1)),
            first_host_bits: first.map(|net| net.host_bits),
            carrier: AtomicU8::new(match params.sa.encapsulation {
                Encapsulation::None => protocol::ESP,
                Encapsulation::Udp { .. } => protocol::UDP,
            }),
            owner: AtomicU8::new(0),
            esn: params.sa.esn,
            near_key,
        }
    }

    /// The anti-replay window.
    #[inline]
    pub fn window(&self) -> Window<'_> {
        Window {
            top: &self.top,
            words: self.far.words(),
            size: u64::from(self.window_less_one).wrapping_add(1),
            floor: &self.far.header().floor,
        }
    }

    /// Its key.
    #[inline]
    pub(super) fn key(&self) -> KeyRef<'_> {
        KeyRef::new(&self.near_key, &self.far.header().key)
    }

    /// Where packets come from, in UDP.
    pub fn peer(&self) -> Option<&InboundPeer> {
        self.far.header().rest.peer.as_ref()
    }

    /// What was opened and what was refused.
    #[inline]
    pub fn counters(&self) -> SaCounters<'_> {
        SaCounters {
            counted: &self.counted,
            owner: &self.owner,
            cold: &self.far.header().cold,
        }
    }

    /// Whether a packet that came in this protocol is its own to open.
    ///
    /// # Errors
    /// `SaExpired` where it was stopped, `EncapMismatch` where it is in UDP and the packet not, or the reverse.
    #[inline]
    pub(super) fn check_carrier(&self, protocol: u8) -> Result<(), DropReason> {
        match self.carrier.load(Ordering::Relaxed) {
            carrier if carrier == protocol => Ok(()),
            STOPPED => Err(DropReason::SaExpired),
            _ => Err(DropReason::EncapMismatch),
        }
    }

    /// Stops it for good: it opens nothing more, but what a worker is about to in this moment.
    pub fn stop(&self) {
        self.carrier.store(STOPPED, Ordering::Relaxed);
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.carrier.load(Ordering::Relaxed) == STOPPED
    }

    /// Whether an opened packet with these addresses is one that it may carry (RFC 4301 section 5.2).
    #[inline]
    pub fn admits(&self, inner: AddressPair) -> bool {
        if let AddressPair::V4(source, destination) = inner {
            let ([remote, local], [remote_bits, local_bits]) =
                (self.first_prefixes, self.first_host_bits);
            let holds =
                |prefix, host_bits, address| V4Prefix { prefix, host_bits }.contains(address);
            if holds(remote, remote_bits, source) && holds(local, local_bits, destination) {
                return true;
            }
        }
        self.far.header().rest.selectors.admit(inner)
    }

    /// Our outer address.
    pub fn local(&self) -> IpAddr {
        self.identity().local
    }

    /// What names it to people.
    pub fn identity(&self) -> &SaIdentity {
        &self.far.header().rest.identity
    }
}

/// The headers of an SA's packets, at the end of the room there is, and the sum of those of them that do not change, as
/// [`OutboundFar::sum`] has it.
fn template(params: &OutboundParams<'_>) -> ([u8; MAX_TEMPLATE], u32) {
    let ports = match params.sa.encapsulation {
        Encapsulation::None => None,
        Encapsulation::Udp {
            local_port,
            remote_port,
        } => Some((local_port, remote_port)),
    };
    let next = if ports.is_some() {
        protocol::UDP
    } else {
        protocol::ESP
    };
    let mut headers = Vec::with_capacity(MAX_TEMPLATE);
    let sum = match (params.sa.local, params.sa.remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            let header = Ipv4Header {
                version_ihl: 0x45,
                tos: 0,
                total_len: 0.into(),
                id: 0.into(),
                flags_fragment: 0.into(),
                ttl: params.outer.hop_limit,
                protocol: next,
                checksum: 0.into(),
                source: local.octets(),
                destination: remote.octets(),
            };
            headers.extend_from_slice(header.as_bytes());
            let (fixed, _) = header.as_bytes().split_at(DESTINATION_V4);
            checksum::add_bytes(0, fixed)
        }
        (local, remote) => {
            let header = Ipv6Header {
                version_class_flow: [0x60, 0, 0, 0],
                payload_len: 0.into(),
                next_header: next,
                hop_limit: params.outer.hop_limit,
                source: v6_octets(local),
                destination: v6_octets(remote),
            };
            headers.extend_from_slice(header.as_bytes());
            checksum::add_bytes(0, &header.source)
        }
    };
    if let Some((source, destination)) = ports {
        let header = UdpHeader {
            source: source.into(),
            destination: destination.into(),
            len: 0.into(),
            checksum: 0.into(),
        };
        headers.extend_from_slice(header.as_bytes());
    }
    let header = EspHeader {
        spi: params.sa.spi.get().into(),
        seq: 0.into(),
    };
    headers.extend_from_slice(header.as_bytes());
    headers.extend_from_slice(&[0; IV_LEN]);
    let mut bytes = [0; MAX_TEMPLATE];
    for (to, from) in bytes.iter_mut().rev().zip(headers.iter().rev()) {
        *to = *from;
    }
    (bytes, sum)
}

fn v4_octets(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => [0; 4],
    }
}

/// The policy never mixes families within a set, so the mapping of IPv4 is never used.
fn v6_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(all(test, not(loom)))]
#[path = "sa/tests.rs"]
mod tests;
