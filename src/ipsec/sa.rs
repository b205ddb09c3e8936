//! Security associations: what one needs per packet, and what it counts.

use std::net::IpAddr;

use crossbeam_utils::CachePadded;
use zerocopy::IntoBytes;

use crate::crypto::aead::{AeadKey, Cipher, KeyFingerprint, KeyMaterial};
use crate::crypto::aead::{ICV_LEN, IV_LEN};
use crate::drop::DropReason;
use crate::ids::Spi;
use crate::ipsec::outer::{Encapsulation, OuterHeader};
use crate::ipsec::replay::ReplayWindow;
use crate::ipsec::selector::Selectors;
use crate::ipsec::seq::SeqAllocator;
use crate::sync::{AtomicU64, Ordering};
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
}

/// An SA that seals.
pub struct OutboundSa {
    pub(super) key: AeadKey,
    pub(super) template: Template,
    pub(super) outer: OuterHeader,
    /// SPI, host byte order.
    pub(super) spi: u32,
    pub(super) esn: bool,
    /// Sequence numbers; any worker takes from here.
    pub seq: SeqAllocator,
    /// What was sealed and what was refused.
    pub counters: SaCounters,
    identity: SaIdentity,
}

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
}

/// An SA that opens.
pub struct InboundSa {
    pub(super) key: AeadKey,
    /// SPI, host byte order.
    pub(super) spi: u32,
    pub(super) esn: bool,
    pub(super) in_udp: bool,
    pub(super) local: IpAddr,
    /// What it may carry.
    pub selectors: Selectors,
    /// The anti-replay window.
    pub window: ReplayWindow,
    /// What was opened and what was refused.
    pub counters: SaCounters,
    identity: SaIdentity,
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
    /// The peer's outer address.
    pub remote: IpAddr,
    /// ESP as it is, or in UDP.
    pub encapsulation: Encapsulation,
    /// Extended sequence numbers.
    pub esn: bool,
}

impl SaParams<'_> {
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

/// Headers of every packet of one outbound SA, complete but for what changes from packet to packet.
pub(super) struct Template {
    pub(super) bytes: [u8; MAX_TEMPLATE],
    /// Bytes in use: outer IP, UDP, ESP, IV.
    pub(super) len: usize,
    /// Length of the outer IP header.
    pub(super) ip_len: usize,
    /// Whether UDP follows it.
    pub(super) in_udp: bool,
    /// Checksum sum over the IPv4 header as it stands in the template, or over IPv6's UDP pseudo-header addresses.
    pub(super) sum: u32,
}

impl OutboundSa {
    /// An SA with nothing leased yet: it seals once `seq` has been given a lease.
    pub fn new(params: &OutboundParams<'_>) -> Self {
        Self {
            key: AeadKey::new(params.sa.key),
            template: Template::new(params),
            outer: params.outer,
            spi: params.sa.spi.get(),
            esn: params.sa.esn,
            seq: SeqAllocator::new(params.next_seq, params.sa.esn),
            counters: SaCounters::default(),
            identity: params.sa.identity(),
        }
    }

    /// What names it to people.
    pub fn identity(&self) -> &SaIdentity {
        &self.identity
    }

    /// Bytes it puts before an inner packet.
    pub fn headroom(&self) -> usize {
        self.template.len
    }

    /// Bytes it puts behind an inner packet of `len` bytes.
    pub fn tailroom(&self, len: usize) -> usize {
        esp::pad_len(len)
            .saturating_add(esp::TRAILER_LEN)
            .saturating_add(ICV_LEN)
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
        Self {
            key: AeadKey::new(params.sa.key),
            spi: params.sa.spi.get(),
            esn: params.sa.esn,
            in_udp: params.sa.encapsulation != Encapsulation::None,
            local: params.sa.local,
            selectors: params.selectors,
            window: ReplayWindow::new(params.window, params.seen),
            counters: SaCounters::default(),
            identity: params.sa.identity(),
        }
    }

    /// What names it to people.
    pub fn identity(&self) -> &SaIdentity {
        &self.identity
    }
}

impl Template {
    fn new(params: &OutboundParams<'_>) -> Self {
        let (in_udp, ports) = match params.sa.encapsulation {
            Encapsulation::None => (false, (0, 0)),
            Encapsulation::Udp {
                local_port,
                remote_port,
            } => (true, (local_port, remote_port)),
        };
        let next = if in_udp { protocol::UDP } else { protocol::ESP };
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
                checksum::add_bytes(0, header.as_bytes())
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
                let addresses = checksum::add_bytes(0, &header.source);
                checksum::add_bytes(addresses, &header.destination)
            }
        };
        let ip_len = headers.len();
        if in_udp {
            let header = UdpHeader {
                source: ports.0.into(),
                destination: ports.1.into(),
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
        for (to, from) in bytes.iter_mut().zip(&headers) {
            *to = *from;
        }
        Self {
            bytes,
            len: headers.len(),
            ip_len,
            in_udp,
            sum,
        }
    }

    /// Whether the outer header is IPv4.
    pub(super) fn is_v4(&self) -> bool {
        self.ip_len == ipv4::HEADER_LEN
    }
}

/// The policy never mixes families within a set, so the mapping of IPv4 is never used.
fn v6_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Counters of one SA. Any worker adds to them, once per run of equal SA.
pub struct SaCounters {
    packets: CachePadded<AtomicU64>,
    bytes: AtomicU64,
    drops: Box<[AtomicU64]>,
}

impl Default for SaCounters {
    fn default() -> Self {
        Self {
            packets: CachePadded::new(AtomicU64::new(0)),
            bytes: AtomicU64::new(0),
            drops: DropReason::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl SaCounters {
    /// Adds a run of packets and their inner bytes.
    #[inline]
    pub fn add(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds a run of drops for one reason.
    #[inline]
    pub fn add_drops(&self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.drops.get(reason.index()) {
            counter.fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// Packets sealed or opened.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Their inner bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Packets of this SA that were dropped for `reason`.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops
            .get(reason.index())
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}
