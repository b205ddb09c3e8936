//! What workers look up: immutable, compiled on the control thread, published whole.
//!
//! SAs are not in here; they live in the SAD's slots, so that new tables reset no counter.

use std::net::IpAddr;

use rustc_hash::FxHashSet;

use crate::drop::DropReason;
use crate::ids::{NextHopIndex, PortIndex, SaIndex};
use crate::ipsec::sad::SpiIndex;
use crate::ipsec::spd::Spd;
use crate::policy::model::Side;
use crate::policy::routes::Routes;

/// One published set of tables.
pub struct Tables {
    /// What becomes of clear text.
    pub spd: Spd,
    /// Inbound SPIs to slots.
    pub spis: SpiIndex,
    /// By `PortIndex`.
    pub ports: Box<[PortTable]>,
    /// By `NextHopIndex`.
    pub next_hops: Box<[NextHop]>,
}

/// One port as the packet path sees it.
pub struct PortTable {
    /// Which side it faces.
    pub side: Side,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its own addresses.
    pub local: LocalAddresses,
    /// Routes and neighbours behind it.
    pub routes: Routes,
    /// By `SaIndex`: the next hop towards the SA's peer out of this port, or why there is none.
    pub sa_hops: Box<[Result<NextHopIndex, DropReason>]>,
}

/// Addresses that are the gateway's own on one port.
#[derive(Default)]
pub struct LocalAddresses {
    /// IPv4.
    pub v4: FxHashSet<u32>,
    /// IPv6.
    pub v6: FxHashSet<u128>,
    /// Address and port at which ESP in UDP arrives.
    pub nat_t: FxHashSet<(IpAddr, u16)>,
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

impl Tables {
    /// The port at `index`.
    #[inline]
    pub fn port(&self, index: PortIndex) -> Option<&PortTable> {
        self.ports.get(index.index())
    }

    /// The next hop at `index`.
    #[inline]
    pub fn next_hop(&self, index: NextHopIndex) -> Option<&NextHop> {
        self.next_hops.get(index.index())
    }
}

impl PortTable {
    /// The next hop towards the peer of the SA in `slot`.
    ///
    /// # Errors
    /// `NoRoute` or `NoNeighbour`.
    #[inline]
    pub fn sa_hop(&self, slot: SaIndex) -> Result<NextHopIndex, DropReason> {
        self.sa_hops
            .get(slot.index())
            .copied()
            .unwrap_or(Err(DropReason::NoRoute))
    }
}
