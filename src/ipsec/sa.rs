//! Security associations: what one needs per packet, and what it counts.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use crate::bits::low_8;
use crate::crypto::aead::{AeadKey, Cipher, KeyFingerprint, KeyMaterial};
use crate::crypto::aead::{ICV_LEN, IV_LEN, KEY_SIZE, SALT_LEN};
use crate::drop::DropReason;
use crate::ids::Spi;
use crate::ipsec::outer::{DontFragment, Encapsulation, Fragmentation, OuterHeader, SizeRules};
use crate::ipsec::peer::{InboundPeer, OutboundPeer};
use crate::ipsec::replay::ReplayWindow;
use crate::ipsec::sa_counters::{ColdCounters, HotCounters, SaCounters, WorkerId};
use crate::ipsec::selector::{AddressPair, Selectors, V4Net};
use crate::ipsec::seq::{SeqAllocator, SeqRun};
use crate::wire::esp::EspHeader;
use crate::wire::ip::protocol;
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::Ipv6Header;
use crate::wire::udp::UdpHeader;
use crate::wire::{checksum, esp, ipv4, ipv6, udp};

/// Longest run of headers before the ciphertext, in bytes: IPv6, UDP, ESP, IV.
pub const MAX_TEMPLATE: usize = ipv6::HEADER_LEN + udp::HEADER_LEN + esp::HEADER_LEN + IV_LEN;

/// What a cache line has room for beside the rest of what is read of an SA: more than IPv4, UDP, ESP and IV.
const NEAR_TEMPLATE: usize = 48;

const _: () =
    assert!(ipv4::HEADER_LEN + udp::HEADER_LEN + esp::HEADER_LEN + IV_LEN <= NEAR_TEMPLATE);

/// Where the SPI is in the near template, which ends with ESP header and IV.
const SPI_AT: usize = NEAR_TEMPLATE - IV_LEN - esp::HEADER_LEN;

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

/// Cache lines of an SA that a packet needs, the first ones.
pub(super) const HOT_LINES: usize = 3;

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

/// An SA that seals.
///
/// What a packet needs of it is in its first three cache lines: one that workers only read, one with the numbers and counters,
/// which they write, so that two workers on one SA do not take each other's line away in the middle of a burst, and one with what
/// is near of the key. What is seldom wanted lies apart, so that these lines of many SAs lie side by side: fewer pages lead to
/// them. Headers with IPv6 are longer than the room there is, and lie apart too.
#[repr(C, align(64))]
pub struct OutboundSa {
    /// The key's salt, so that a nonce can be made before the key's own lines are there.
    pub(super) salt: Zeroizing<[u8; SALT_LEN]>,
    /// Checksum sum over the IPv4 header as it stands in the template, or over the source address of IPv6's UDP
    /// pseudo-header. In UDP without the destination, which may move.
    pub(super) sum: u32,
    pub(super) shape: Shape,
    /// The largest outer packet that the path to the peer takes, in bytes.
    path_mtu: AtomicU16,
    /// Headers of every packet, complete but for what changes from packet to packet; the last `shape.len` bytes of it,
    /// where the outer header is IPv4, and otherwise the end of them.
    pub(super) template: [u8; NEAR_TEMPLATE],
    /// Sequence numbers; any worker takes from here.
    pub seq: SeqAllocator,
    hot: HotCounters,
    pub(super) key: AeadKey,
    /// Where packets go, in UDP: the templates have where they went at first.
    pub(super) peer: Option<Box<OutboundPeer>>,
    pub(super) far: Box<OutboundFar>,
}

/// What is seldom wanted of an SA that seals.
pub(super) struct OutboundFar {
    /// As [`OutboundSa::template`], whatever the outer header.
    pub(super) long_template: [u8; MAX_TEMPLATE],
    cold: ColdCounters,
    /// The first of its numbers.
    first_seq: u64,
    identity: SaIdentity,
}

/// Bytes of an SA that seals, with all that is apart but the peer.
pub const OUTBOUND_SIZE: usize = size_of::<OutboundSa>() + size_of::<OutboundFar>() + KEY_SIZE;
/// Bytes of an SA that opens, likewise, but for its window.
pub const INBOUND_SIZE: usize = size_of::<InboundSa>() + size_of::<InboundFar>() + KEY_SIZE;

#[cfg(not(loom))]
const _: () = assert!(std::mem::offset_of!(OutboundSa, seq) == 64);
#[cfg(not(loom))]
const _: () = assert!(std::mem::offset_of!(OutboundSa, key) == 128);
#[cfg(not(loom))]
const _: () = assert!(size_of::<OutboundSa>() == 192 && size_of::<InboundSa>() == 192);

/// What the headers of an outbound SA consist of, and what goes from the inner header into the outer one.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Bytes of outer IP, UDP, ESP, IV.
    pub(super) len: u8,
    /// Outer family and encapsulation, bits as below.
    flags: u8,
    /// The outer TOS is the inner one with these bits kept and those of `tos_set` set.
    tos_keep: u8,
    tos_set: u8,
    /// Bits of the first byte of flags and fragment offset that an IPv4 outer header takes from an IPv4 inner one.
    df_keep: u8,
    /// Those it always has.
    df_set: u8,
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

/// An SA that opens.
///
/// What a packet needs of it beside one word of the window is in its first three cache lines, as in [`OutboundSa`].
#[repr(C, align(64))]
pub struct InboundSa {
    /// SPI, host byte order.
    pub(super) spi: u32,
    pub(super) esn: bool,
    /// The protocol that its packets come in, [`protocol::ESP`] or [`protocol::UDP`]; [`STOPPED`] where it opens none any
    /// more.
    carrier: AtomicU8,
    local_is_v4: bool,
    /// Our outer address; IPv4 in the first four bytes.
    local: [u8; 16],
    /// The first IPv4 networks of `selectors`, nearly always the only ones: remote, then local.
    first_nets: [V4Net; 2],
    hot: HotCounters,
    /// The anti-replay window.
    pub window: ReplayWindow,
    /// As in [`OutboundSa`].
    pub(super) salt: Zeroizing<[u8; SALT_LEN]>,
    pub(super) key: AeadKey,
    /// Where packets come from, in UDP.
    pub(super) peer: Option<Box<InboundPeer>>,
    far: Box<InboundFar>,
}

/// What is seldom wanted of an SA that opens.
struct InboundFar {
    /// What it may carry.
    selectors: Selectors,
    cold: ColdCounters,
    identity: SaIdentity,
}

#[cfg(not(loom))]
const _: () = assert!(std::mem::offset_of!(InboundSa, window) == 64);
#[cfg(not(loom))]
const _: () = assert!(std::mem::offset_of!(InboundSa, key) <= 128);

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

/// The headers of an outbound SA while it is made.
struct Template {
    bytes: [u8; MAX_TEMPLATE],
    sum: u32,
    shape: Shape,
}

impl Shape {
    fn new(params: &OutboundParams<'_>, len: u8) -> Self {
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        let (sa, outer) = (&params.sa, &params.outer);
        let keeps_df = outer.df == DontFragment::Copy;
        Self {
            len,
            flags: flag(sa.esn, ESN)
                | flag(sa.local.is_ipv4(), OUTER_V4)
                | flag(sa.encapsulation != Encapsulation::None, IN_UDP)
                | flag(params.sizes.clamp_mss, CLAMP_MSS)
                | flag(
                    params.sizes.fragmentation == Fragmentation::After,
                    FRAGMENT_AFTER,
                ),
            // A bit that is set outside whatever is inside is one that need not be kept.
            tos_keep: outer.tos(0xff) & !outer.tos(0),
            tos_set: outer.tos(0),
            df_keep: flag(keeps_df, DF),
            df_set: flag(outer.df == DontFragment::Set, DF),
        }
    }

    /// Whether sequence numbers have 64 bits.
    #[inline]
    pub(super) fn esn(self) -> bool {
        self.flags & ESN != 0
    }

    /// Whether the headers are IPv4 and ESP.
    #[inline]
    pub(super) fn is_plain(self) -> bool {
        self.flags & (OUTER_V4 | IN_UDP) == OUTER_V4
    }

    /// Whether the outer header is IPv4.
    #[inline]
    pub(super) fn is_v4(self) -> bool {
        self.flags & OUTER_V4 != 0
    }

    /// Whether the headers are IPv6 and UDP, which wants a checksum.
    #[inline]
    pub(super) fn is_udp6(self) -> bool {
        self.flags & (OUTER_V4 | IN_UDP) == IN_UDP
    }

    /// Whether TCP connections are held to segments that fit.
    #[inline]
    fn clamps_mss(self) -> bool {
        self.flags & CLAMP_MSS != 0
    }

    /// Whether what may be fragmented is sealed first.
    #[inline]
    fn fragments_after(self) -> bool {
        self.flags & FRAGMENT_AFTER != 0
    }

    /// The outer TOS or traffic class for an inner one.
    #[inline]
    pub(super) fn tos(self, inner: u8) -> u8 {
        inner & self.tos_keep | self.tos_set
    }

    /// First byte of flags and fragment offset of an IPv4 outer header. `inner` is that of the inner one, DF set for IPv6,
    /// which routers never fragment.
    #[inline]
    pub(super) fn ip_flags(self, inner: u8) -> u8 {
        inner & self.df_keep | self.df_set
    }
}

/// Where the destination stands in an IPv4 header: at its end.
const DESTINATION_V4: usize = ipv4::HEADER_LEN - 4;

/// DF in the first byte of flags and fragment offset.
pub(super) const DF: u8 = (ipv4::DONT_FRAGMENT >> 8) as u8;

impl OutboundSa {
    /// An SA with nothing leased yet: it seals once `seq` has been given a lease.
    pub fn new(params: &OutboundParams<'_>) -> Self {
        let template = Template::new(params);
        let seq = SeqAllocator::new(params.next_seq, params.sa.esn);
        let mut near = [0; NEAR_TEMPLATE];
        for (to, from) in near.iter_mut().rev().zip(template.bytes.iter().rev()) {
            *to = *from;
        }
        Self {
            template: near,
            hot: HotCounters::default(),
            salt: Zeroizing::new(params.sa.key.salt()),
            sum: template.sum,
            shape: template.shape,
            path_mtu: AtomicU16::new(params.sizes.path_mtu),
            key: AeadKey::new(params.sa.key),
            peer: params
                .sa
                .peer()
                .map(|peer| Box::new(OutboundPeer::new(peer))),
            far: Box::new(OutboundFar {
                long_template: template.bytes,
                cold: ColdCounters::default(),
                first_seq: seq.unused(),
                identity: params.sa.identity(),
            }),
            seq,
        }
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
        self.peer.as_deref()
    }

    /// What was sealed and what was refused.
    #[inline]
    pub fn counters(&self) -> SaCounters<'_> {
        SaCounters {
            hot: &self.hot,
            cold: &self.far.cold,
        }
    }

    /// Takes up to `count` sequence numbers for `worker`: mostly without an atomic operation where it owns the SA.
    #[inline]
    pub fn take_numbers(&self, worker: &WorkerId, count: u64) -> SeqRun {
        if self.hot.is_owned_by(worker) {
            self.seq.take_as_owner(count)
        } else {
            self.seq.take(count)
        }
    }

    /// How many sequence numbers it has spent: one for each packet that was sealed, and for each that failed after that.
    pub fn numbers_used(&self) -> u64 {
        self.seq.unused().saturating_sub(self.far.first_seq)
    }

    /// Ends it after so many packets from now on, exactly (RFC 4301 section 4.4.2.1).
    pub fn limit_packets(&mut self, packets: u64) {
        self.seq.limit(packets);
    }

    /// Stops it for good: it seals nothing more, but what a worker is about to in this moment.
    pub fn stop(&self) {
        self.seq.stop();
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.seq.leased().is_none()
    }

    /// SPI, host byte order, as the template has it.
    #[inline]
    pub fn spi(&self) -> u32 {
        let (_, esp) = self.template.split_at(SPI_AT);
        esp.first_chunk().map_or(0, |spi| u32::from_be_bytes(*spi))
    }

    /// Bytes it puts before an inner packet.
    #[inline]
    pub fn headroom(&self) -> usize {
        usize::from(self.shape.len)
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
        link_mtu.min(self.path_mtu.load(Ordering::Relaxed))
    }

    /// The largest outer packet that the path to the peer takes, in bytes, as far as it is known; [`u16::MAX`] where it is not.
    pub fn path_mtu(&self) -> u16 {
        self.path_mtu.load(Ordering::Relaxed)
    }

    /// Takes note of the largest outer packet that the path to the peer takes.
    pub fn set_path_mtu(&self, mtu: u16) {
        self.path_mtu.store(mtu, Ordering::Relaxed);
    }

    /// Whether TCP connections are to be held to segments that fit.
    #[inline]
    pub fn clamps_mss(&self) -> bool {
        self.shape.clamps_mss()
    }

    /// Whether inner packets that are too big and may be fragmented are sealed whole, and their outer packets fragmented.
    #[inline]
    pub fn fragments_after(&self) -> bool {
        self.shape.fragments_after()
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
        let mut local = [0; 16];
        match params.sa.local {
            IpAddr::V4(address) => {
                let (first, _) = local.split_at_mut(4);
                first.copy_from_slice(&address.octets());
            }
            IpAddr::V6(address) => local = address.octets(),
        }
        Self {
            spi: params.sa.spi.get(),
            esn: params.sa.esn,
            carrier: AtomicU8::new(match params.sa.encapsulation {
                Encapsulation::None => protocol::ESP,
                Encapsulation::Udp { .. } => protocol::UDP,
            }),
            local_is_v4: params.sa.local.is_ipv4(),
            local,
            first_nets: [
                params.selectors.remote.first_v4(),
                params.selectors.local.first_v4(),
            ],
            hot: HotCounters::default(),
            window: ReplayWindow::new(params.window, params.seen),
            salt: Zeroizing::new(params.sa.key.salt()),
            key: AeadKey::new(params.sa.key),
            peer: params
                .sa
                .peer()
                .map(|peer| Box::new(InboundPeer::new(peer, params.peer_moves))),
            far: Box::new(InboundFar {
                selectors: params.selectors,
                cold: ColdCounters::default(),
                identity: params.sa.identity(),
            }),
        }
    }

    /// Where packets come from, in UDP.
    pub fn peer(&self) -> Option<&InboundPeer> {
        self.peer.as_deref()
    }

    /// What was opened and what was refused.
    #[inline]
    pub fn counters(&self) -> SaCounters<'_> {
        SaCounters {
            hot: &self.hot,
            cold: &self.far.cold,
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
            let [remote, local] = self.first_nets;
            if remote.contains(source) && local.contains(destination) {
                return true;
            }
        }
        self.far.selectors.admit(inner)
    }

    /// Whether our outer address is this IPv4 address.
    #[inline]
    pub(super) fn is_at_v4(&self, address: [u8; 4]) -> bool {
        self.local_is_v4 && self.local.first_chunk() == Some(&address)
    }

    /// Whether our outer address is this IPv6 address.
    #[inline]
    pub(super) fn is_at_v6(&self, address: [u8; 16]) -> bool {
        !self.local_is_v4 && self.local == address
    }

    /// What names it to people.
    pub fn identity(&self) -> &SaIdentity {
        &self.far.identity
    }
}

impl Template {
    fn new(params: &OutboundParams<'_>) -> Self {
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
                let (fixed, destination) = header.as_bytes().split_at(DESTINATION_V4);
                let sum = checksum::add_bytes(0, fixed);
                match ports {
                    Some(_) => sum,
                    None => checksum::add_bytes(sum, destination),
                }
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
        Self {
            bytes,
            sum,
            shape: Shape::new(params, low_8(headers.len())),
        }
    }
}

/// The policy never mixes families within a set, so the mapping of IPv4 is never used.
fn v6_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
