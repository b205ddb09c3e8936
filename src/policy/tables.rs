//! What workers look up: immutable, compiled on the control thread, published whole.
//!
//! SAs are not in here; they live in the SAD's slots, so that new tables reset no counter. What does not change with the
//! kernel's routes and neighbours is shared by all tables.

use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::drop::DropReason;
use crate::ids::{NextHopIndex, PortIndex, SaIndex};
use crate::ipsec::flow_hash::{flow_hash, mix};
use crate::ipsec::sad::SpiIndex;
use crate::ipsec::spd::Spd;
use crate::meta::PacketKind;
use crate::policy::model::Side;
use crate::policy::routes::Routes;
use crate::rcu::prefetch;

/// One published set of tables.
pub struct Tables {
    /// What becomes of clear text.
    pub spd: Arc<Spd>,
    /// Inbound SPIs to slots.
    pub spis: Arc<SpiIndex>,
    /// By `PortIndex`.
    pub ports: Box<[PortTable]>,
    /// By `NextHopIndex`.
    pub next_hops: Arc<[NextHop]>,
    /// By [`NextHopIndex::group`].
    pub groups: Arc<[HopGroup]>,
    /// Senders are told where policy discards their packets.
    pub admin_prohibited: bool,
}

/// One port as the packet path sees it.
pub struct PortTable {
    /// Which side it faces.
    pub side: Side,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its own addresses.
    pub local: Arc<LocalAddresses>,
    /// Routes and neighbours behind it.
    pub routes: Routes,
    /// By `SaIndex`: the next hop towards the SA's peer out of this port, or why there is none.
    pub sa_hops: Arc<[SaHop]>,
}

/// The next hop towards the peer of an SA, or why there is none, in four bytes: with many SAs a packet finds it out of the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SaHop(u32);

impl SaHop {
    /// There is no route.
    pub const NO_ROUTE: Self = Self(u32::MAX);
    /// There is no neighbour.
    pub const NO_NEIGHBOUR: Self = Self(u32::MAX - 1);

    /// The next hop.
    ///
    /// # Errors
    /// `NoRoute` or `NoNeighbour`.
    #[inline]
    pub fn get(self) -> Result<NextHopIndex, DropReason> {
        // Far above the number of any next hop.
        match self {
            Self::NO_ROUTE => Err(DropReason::NoRoute),
            Self::NO_NEIGHBOUR => Err(DropReason::NoNeighbour),
            Self(hop) => Ok(NextHopIndex(hop)),
        }
    }
}

impl From<Result<NextHopIndex, DropReason>> for SaHop {
    fn from(found: Result<NextHopIndex, DropReason>) -> Self {
        match found {
            Ok(hop) => Self(hop.0),
            Err(DropReason::NoNeighbour) => Self::NO_NEIGHBOUR,
            Err(_) => Self::NO_ROUTE,
        }
    }
}

/// Addresses that are the gateway's own on one port.
#[derive(Default)]
pub struct LocalAddresses {
    v4: FxHashSet<u32>,
    /// Lowest of them, and how far the highest is from it: what lies outside is asked of no hash table.
    v4_span: Option<(u32, u32)>,
    /// IPv6.
    pub v6: FxHashSet<u128>,
    /// Address and port at which ESP in UDP arrives.
    pub nat_t: FxHashSet<(IpAddr, u16)>,
    /// The addresses of these.
    pub nat_t_addresses: FxHashSet<IpAddr>,
    /// On an unprotected port, our ends of tunnels, whether or not they are addresses of the port.
    pub tunnel_ends: FxHashSet<IpAddr>,
}

/// A neighbour that packets are sent to.
#[derive(Clone, Copy, Debug)]
pub struct NextHop {
    /// Destination and source MAC address: the head of an Ethernet header.
    pub macs: [u8; 12],
    /// The port it is reached by.
    pub port: PortIndex,
    /// Largest IP packet that port sends, in bytes.
    pub mtu: u16,
}

impl NextHop {
    /// One whose MAC address is not known. Nothing fits its MTU, which is how packets notice.
    pub const UNRESOLVED: Self = Self {
        macs: [0; 12],
        port: PortIndex(0),
        mtu: 0,
    };
}

/// Places that flows fall into where there are several next hops.
pub const BUCKETS: usize = 256;

/// Several next hops of equal cost: [`BUCKETS`] places, each of which is one that can be reached; none where none can.
#[derive(Clone, Default)]
pub struct HopGroup(Arc<[NextHopIndex]>);

impl HopGroup {
    /// With these places.
    pub(super) fn new(buckets: Arc<[NextHopIndex]>) -> Self {
        Self(buckets)
    }

    /// The next hop of a flow that has this hash.
    #[inline]
    pub fn choose(&self, hash: u32) -> Option<NextHopIndex> {
        self.0.get((hash >> 24) as usize).copied()
    }
}

impl LocalAddresses {
    /// Adds an IPv4 address.
    pub fn add_v4(&mut self, address: u32) {
        self.v4.insert(address);
        let (first, span) = self.v4_span.unwrap_or((address, 0));
        let (low, high) = (first.min(address), first.saturating_add(span).max(address));
        self.v4_span = Some((low, high.saturating_sub(low)));
    }

    /// Whether the IPv4 address is the gateway's.
    #[inline]
    pub fn has_v4(&self, address: u32) -> bool {
        self.v4_span
            .is_some_and(|(low, span)| address.wrapping_sub(low) <= span)
            && self.v4.contains(&address)
    }
}

impl Tables {
    /// The port at `index`.
    #[inline]
    pub fn port(&self, index: PortIndex) -> Option<&PortTable> {
        self.ports.get(index.index())
    }

    /// The largest IP packet that may go to the next hop at `index`; 0 where there is none, or it is one of several.
    #[inline]
    pub fn mtu(&self, index: NextHopIndex) -> u16 {
        self.next_hop(index).map_or(0, |hop| hop.mtu)
    }

    /// The next hop of the IP packet `data`, for which a lookup has come to `index`: the one of its flow where there are
    /// several. To be asked where [`Self::mtu`] is 0.
    ///
    /// # Errors
    /// `NoNeighbour` where the MAC addresses of all of them are unknown.
    #[inline(never)]
    pub fn choose(
        &self,
        index: NextHopIndex,
        data: &[u8],
        kind: PacketKind,
    ) -> Result<NextHopIndex, DropReason> {
        let group = index.group().and_then(|at| self.groups.get(at as usize));
        // Mixed once more: what a split tunnel's SAs have in common must not come to one next hop.
        let hash = mix(flow_hash(data, kind, false).into());
        group
            .and_then(|group| group.choose(hash))
            .ok_or(DropReason::NoNeighbour)
    }

    /// The next hop at `index`.
    #[inline]
    pub fn next_hop(&self, index: NextHopIndex) -> Option<&NextHop> {
        self.next_hops.get(index.index())
    }
}

impl PortTable {
    /// The MAC address in the low six bytes of a little-endian word.
    #[inline]
    pub fn mac_word(&self) -> u64 {
        let [a, b, c, d, e, f] = self.mac;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// Asks for what [`Self::sa_hop`] will read.
    #[inline]
    pub fn prefetch_sa_hop(&self, slot: SaIndex) {
        if let Some(hop) = self.sa_hops.get(slot.index()) {
            prefetch(hop);
        }
    }

    /// The next hop towards the peer of the SA in `slot`.
    ///
    /// # Errors
    /// `NoRoute` or `NoNeighbour`.
    #[inline]
    pub fn sa_hop(&self, slot: SaIndex) -> Result<NextHopIndex, DropReason> {
        self.sa_hops
            .get(slot.index())
            .ok_or(DropReason::NoRoute)?
            .get()
    }
}
