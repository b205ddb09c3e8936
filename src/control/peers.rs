//! Peers of tunnels in UDP: followed where they move, kept reachable through their NATs (RFC 3948, RFC 7296 section 2.23).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Bound, Range};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::ids::{SaIndex, TunnelIndex};
use crate::ipsec::outer::Encapsulation;
use crate::ipsec::peer::is_usable;
use crate::ipsec::sa::OutboundSa;
use crate::ipsec::sad::Sad;
use crate::policy::compile::endpoint_sets;
use crate::policy::model::{EndpointSet, Policy, Tunnel};
use crate::rcu::Writer;

/// SAs looked at in one turn of the control thread, so that a turn costs the same with 60,000 of them.
const LOOKS: u32 = 4096;
/// Time between two looks at whether anything was sent: by so much a keepalive may be late.
const SENT_INTERVAL: Duration = Duration::from_millis(500);
/// Least time between two messages about one peer.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The peers of all endpoint sets in UDP.
#[derive(Default)]
pub struct Peers {
    /// By the first slot of each.
    sets: BTreeMap<SaIndex, PeerOfSet>,
    /// The set that was looked at last, where there are more behind it.
    looked: Option<SaIndex>,
}

/// What the SAs of one endpoint set share: both ends, and so one entry in every NAT between them.
struct PeerOfSet {
    tunnel: String,
    slots: Range<u32>,
    path: Path,
    /// `None` for no keepalives.
    keepalive: Option<Duration>,
    /// Packets sent when last looked at, when that was, and when there were fewer.
    sent: u64,
    looked: Instant,
    sent_at: Instant,
    /// When a move was last told, and how many were not since.
    told: Option<Instant>,
    untold: u64,
}

/// Between which ends an endpoint set's packets travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// One of its SAs, all of which take one way.
    pub slot: SaIndex,
    /// Our outer address and UDP port.
    pub local: SocketAddr,
    /// The peer's, where it is now.
    pub peer: SocketAddr,
    /// Outer TTL or hop limit.
    pub hop_limit: u8,
}

/// An SA whose peer has another address now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// The SA.
    pub slot: SaIndex,
    /// The address that the peer had.
    pub from: IpAddr,
    /// The address that it has.
    pub to: IpAddr,
}

impl Peers {
    /// The peers of `policy`, where it says they are.
    pub fn new(policy: &Policy, now: Instant) -> Self {
        Self::of(endpoint_sets(policy), now)
    }

    /// The peers of some endpoint sets, in the order of their policy.
    pub fn of<'s>(
        endpoint_sets: impl Iterator<Item = (SaIndex, TunnelIndex, &'s Tunnel, &'s EndpointSet)>,
        now: Instant,
    ) -> Self {
        let mut sets: Vec<PeerOfSet> = Vec::new();
        let mut of_last = None;
        for (slot, tunnel, of, set) in endpoint_sets {
            // The SAs of a split tunnel are next to each other.
            let is_of_last = of_last.replace((tunnel, set.local)) == Some((tunnel, set.local));
            let Some(path) = path(slot, set) else {
                continue;
            };
            match sets.last_mut() {
                Some(last) if is_of_last => last.slots.end = slot.0.saturating_add(1),
                _ => sets.push(PeerOfSet {
                    tunnel: of.name.clone(),
                    slots: slot.0..slot.0.saturating_add(1),
                    path,
                    keepalive: match set.nat.keepalive_s {
                        0 => None,
                        seconds => Some(Duration::from_secs(seconds.into())),
                    },
                    sent: 0,
                    looked: now,
                    sent_at: now,
                    told: None,
                    untold: 0,
                }),
            }
        }
        let sets = sets.into_iter().map(|set| (SaIndex(set.slots.start), set));
        Self {
            sets: sets.collect(),
            looked: None,
        }
    }

    /// Takes in others.
    pub fn add(&mut self, others: Self) {
        self.sets.extend(others.sets);
    }

    /// Looks no more after the SAs that are next to the one that was in `slot`, and is there no more.
    pub fn remove(&mut self, slot: SaIndex) {
        let first = self.sets.range(..=slot).next_back();
        if let Some((first, _)) = first.filter(|(_, set)| set.slots.contains(&slot.0)) {
            let first = *first;
            self.sets.remove(&first);
        }
    }

    /// Looks at some of the peers: has the SAs of those that moved send to where they are now, and has `send` send a
    /// keepalive to those to whom nothing else went, which says whether it could. Call it many times a second.
    ///
    /// Returns those of the SAs whose peer has another address now.
    pub fn tick(
        &mut self,
        sad: &Sad,
        writer: &Writer,
        now: Instant,
        mut send: impl FnMut(&Path) -> bool,
    ) -> Vec<Moved> {
        let mut moved = Vec::new();
        let mut looks = LOOKS;
        let behind = self.looked.take().map_or(Bound::Unbounded, Bound::Excluded);
        for (first, set) in self.sets.range_mut((behind, Bound::Unbounded)) {
            if let Some(peer) = set.noted(sad, writer) {
                let (from, to) = (set.path.peer.ip(), peer.ip());
                if from != to {
                    moved.extend(set.slots().map(|slot| Moved { slot, from, to }));
                }
                set.adopt(peer, sad, writer, now);
            }
            set.keep_alive(sad, writer, now, &mut send);
            looks = looks.saturating_sub(set.slots.end.saturating_sub(set.slots.start));
            if looks == 0 {
                self.looked = Some(*first);
                break;
            }
        }
        moved
    }
}

/// The way of the packets of `set`, where they are in UDP.
fn path(slot: SaIndex, set: &EndpointSet) -> Option<Path> {
    match set.encapsulation {
        Encapsulation::None => None,
        Encapsulation::Udp {
            local_port,
            remote_port,
        } => Some(Path {
            slot,
            local: SocketAddr::new(set.local, local_port),
            peer: SocketAddr::new(set.remote, remote_port),
            hop_limit: set.outer.hop_limit,
        }),
    }
}

impl PeerOfSet {
    fn slots(&self) -> impl Iterator<Item = SaIndex> + use<> {
        self.slots.clone().map(SaIndex)
    }

    /// Those of its SAs that seal, as far as there are any.
    fn outbound<'w>(
        &self,
        sad: &'w Sad,
        writer: &'w Writer,
    ) -> impl Iterator<Item = &'w OutboundSa> + use<'w> {
        self.slots()
            .filter_map(|slot| sad.outbound().get_owned(writer, slot.index()))
    }

    /// Where workers saw the peer of one of the SAs, if that is elsewhere.
    fn noted(&self, sad: &Sad, writer: &Writer) -> Option<SocketAddr> {
        let notes = self.slots().filter_map(|slot| {
            let sa = sad.inbound().get_owned(writer, slot.index())?;
            sa.peer()?.note.take()
        });
        let is_elsewhere = |peer: &SocketAddr| {
            let path = &self.path;
            *peer != path.peer && is_usable(*peer) && peer.ip() != path.local.ip()
        };
        // Every note is taken, whichever counts.
        notes.filter(is_elsewhere).last()
    }

    /// From now on the peer is at `peer`.
    fn adopt(&mut self, peer: SocketAddr, sad: &Sad, writer: &Writer, now: Instant) {
        //= https://www.rfc-editor.org/rfc/rfc7296#section-2.23
        //# SHOULD send all packets (including
        //# retransmission packets) to the IP address and port in the validated
        //# packet, and SHOULD store this as the new address and port combination
        //# for the SA (that is, they SHOULD dynamically update the address).
        for sa in self.outbound(sad, writer).filter_map(OutboundSa::peer) {
            sa.cell.replace(peer);
        }
        for slot in self.slots() {
            let sa = sad.inbound().get_owned(writer, slot.index());
            if let Some(sa) = sa.and_then(|sa| sa.peer()) {
                sa.cell.replace(peer);
            }
        }
        let from = std::mem::replace(&mut self.path.peer, peer);
        let is_told = |at: Instant| now.duration_since(at) < LOG_INTERVAL;
        if self.told.is_some_and(is_told) {
            self.untold += 1;
            return;
        }
        self.told = Some(now);
        match std::mem::take(&mut self.untold) {
            0 => info!(tunnel = self.tunnel, %from, to = %peer, "peer has moved"),
            more => {
                warn!(tunnel = self.tunnel, %from, to = %peer, more, "peer has moved, and more often meanwhile");
            }
        }
    }

    /// Has `send` send a keepalive where nothing was sent for so long.
    fn keep_alive(
        &mut self,
        sad: &Sad,
        writer: &Writer,
        now: Instant,
        send: &mut impl FnMut(&Path) -> bool,
    ) {
        let Some(keepalive) = self.keepalive else {
            return;
        };
        if now.duration_since(self.looked) < SENT_INTERVAL {
            return;
        }
        self.looked = now;
        let mut first = None;
        let mut sent = 0u64;
        for sa in self.outbound(sad, writer) {
            sent = sent.wrapping_add(sa.counters().packets());
            first = first.or(sa.peer());
        }
        if std::mem::replace(&mut self.sent, sent) != sent {
            self.sent_at = now;
        }
        //= https://www.rfc-editor.org/rfc/rfc3948#section-4
        //# if no other packet to the peer has been sent in M
        //# seconds.
        if let Some(sa) = first
            && now.duration_since(self.sent_at) >= keepalive
            && send(&self.path)
        {
            self.sent_at = now;
            sa.count_keepalive();
        }
    }
}

#[cfg(test)]
#[path = "peers/tests.rs"]
mod tests;
