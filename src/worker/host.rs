//! What workers hand to the host side and what they take from it: bounded both ways, and without a system call.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use zerocopy::FromBytes;

use crate::bits::low_16;
use crate::buf::PacketBuf;
use crate::dpdk::mbuf::Mbuf;
use crate::drop::{DropReason, Fate, PuntReason};
use crate::ids::{PortIndex, SaIndex};
use crate::ipsec::esp_in::address_pair;
use crate::meta::PacketMeta;
use crate::policy::model::Side;
use crate::wire::ether::{self, EtherHeader};

/// Punted packets that may wait.
const PUNTS: usize = 1024;
/// Most punted packets of one kind that may come at once.
const MOST_AT_ONCE: i32 = 512;
/// Packets that may wait for an ICMP error.
const FAILED: usize = 256;
/// Destinations whose MAC address workers may want at one time.
const WANTED: usize = 256;
/// Packets that may be on their way to where they wait for a MAC address.
const WAITING: usize = 128;
/// Frames for one port that may wait for the worker that takes them.
const FRAMES: usize = 256;

/// The rings between workers and host side. What a full one has no room for is dropped, by whoever would fill it.
pub struct HostRings<'p> {
    /// To the host: packets that the fast path does not own.
    pub punts: ArrayQueue<Punted<'p>>,
    /// To the host: packets whose sender is owed an ICMP error.
    pub failed: ArrayQueue<Failed<'p>>,
    /// To the host: destinations behind a port to which packets could not go for want of a MAC address.
    pub wanted: ArrayQueue<(PortIndex, IpAddr)>,
    /// To the host: packets that wait until their next hop's MAC address is known.
    pub waiting: ArrayQueue<Waiting<'p>>,
    /// By `PortIndex`: whether the kernel finds out MAC addresses behind the port, so that waiting is of use.
    pub resolves: Box<[bool]>,
    /// How much of that there may be.
    pub limits: PuntLimits,
    /// By `PortIndex`, from the host: frames that are to leave by the port.
    pub to_send: Box<[ArrayQueue<Mbuf<'p>>]>,
    /// By `PortIndex`, from the host: frames to be taken as if the port had received them.
    pub to_take: Box<[ArrayQueue<Mbuf<'p>>]>,
}

impl HostRings<'_> {
    /// Rings for `ports` ports.
    pub fn new(ports: usize) -> Self {
        let frames = || (0..ports).map(|_| ArrayQueue::new(FRAMES)).collect();
        Self {
            punts: ArrayQueue::new(PUNTS),
            failed: ArrayQueue::new(FAILED),
            wanted: ArrayQueue::new(WANTED),
            waiting: ArrayQueue::new(WAITING),
            resolves: vec![false; ports].into(),
            limits: PuntLimits::new(),
            to_send: frames(),
            to_take: frames(),
        }
    }

    /// For workers without a host side: `punts` punted packets may wait, however many of a kind, and nothing else.
    pub fn without_host(punts: usize) -> Self {
        Self {
            punts: ArrayQueue::new(punts),
            limits: PuntLimits::without_host(),
            ..Self::new(0)
        }
    }

    /// Whether there may be one more ICMP error now.
    pub fn may_owe_error(&self) -> bool {
        take_one(&self.limits.errors)
    }

    /// Frees every packet in them.
    pub fn clear(&self) {
        while self.punts.pop().is_some() {}
        while self.failed.pop().is_some() {}
        while self.waiting.pop().is_some() {}
        for frames in self.to_send.iter().chain(&self.to_take) {
            while frames.pop().is_some() {}
        }
    }
}

/// A packet whose next hop has no MAC address yet.
pub struct Waiting<'p> {
    /// Opened: the IP packet, before its TTL was touched. To be sealed: the Ethernet frame as it came in.
    pub mbuf: Mbuf<'p>,
    /// The port it came in by.
    pub ingress: PortIndex,
    /// The port it is to leave by.
    pub egress: PortIndex,
    /// What is known of it.
    pub meta: PacketMeta,
    /// Whether it was opened, and is to leave in clear.
    pub is_opened: bool,
    /// Whom the way is wanted to.
    pub towards: Towards,
}

impl<'p> Waiting<'p> {
    /// What its sender is to be told where nobody has answered for the next hop.
    pub fn into_failed(self) -> Option<Failed<'p>> {
        let mut mbuf = self.mbuf;
        let (port, sender) = if self.is_opened && self.meta.sa.is_some() {
            (self.egress, None)
        } else {
            // Clear text from either side goes back where it came from.
            if self.is_opened && !mbuf.uncover(ether::HEADER_LEN) {
                return None;
            }
            let (header, _) = EtherHeader::ref_from_prefix(mbuf.data()).ok()?;
            let sender = header.source;
            mbuf.adj(ether::HEADER_LEN);
            (self.ingress, Some(sender))
        };
        Some(Failed {
            mbuf,
            reason: DropReason::NoNeighbour,
            port,
            sender,
            limit: 0,
        })
    }
}

/// Whom a packet that waits is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Towards {
    /// A station, or what is behind a router.
    Station(IpAddr),
    /// The peer of the SA in this slot.
    Peer(SaIndex),
}

/// A packet that ended here and whose sender is owed an ICMP error.
pub struct Failed<'p> {
    /// The IP packet: as it was received in clear, or as it was opened.
    pub mbuf: Mbuf<'p>,
    /// One of those for which an error is owed.
    pub reason: DropReason,
    /// The port it came in by; where it was opened, the protected port it would have left by.
    pub port: PortIndex,
    /// The MAC address it came from; `None` where it was opened.
    pub sender: Option<[u8; 6]>,
    /// Where `TooBig`, the largest IP packet that would have gone, in bytes.
    pub limit: u16,
}

/// A packet on its way to the control side.
pub struct Punted<'p> {
    /// The Ethernet frame as it came in, cut to the length of the IP packet in it where there is one.
    pub mbuf: Mbuf<'p>,
    /// Why it goes there.
    pub reason: PuntReason,
    /// The port it came in by.
    pub port: PortIndex,
}

/// How much of each kind may still be punted: a bucket for each [`PuntReason`], which workers empty and the control side
/// fills again, so that a flood of one kind takes neither the others' room nor the time of who answers them.
pub struct PuntLimits {
    credits: [AtomicI32; PuntReason::COUNT],
    /// For ICMP errors.
    errors: AtomicI32,
}

/// ICMP errors a second that workers may ask for together (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4).
pub const ERROR_RATE: u32 = 1000;

/// Packets a second that may be punted for `reason`, by all workers together.
pub const fn punt_rate(reason: PuntReason) -> u32 {
    match reason {
        PuntReason::Arp
        | PuntReason::NeighbourDiscovery
        | PuntReason::Icmp
        | PuntReason::Multicast => 1000,
        PuntReason::Ike | PuntReason::Unresolved => 2000,
        PuntReason::Local => 20_000,
    }
}

impl PuntLimits {
    /// Longest time whose packets may come at once.
    const BURST: Duration = Duration::from_millis(250);

    /// Full buckets.
    pub fn new() -> Self {
        let limits = Self {
            credits: [const { AtomicI32::new(0) }; PuntReason::COUNT],
            errors: AtomicI32::new(0),
        };
        limits.refill(Self::BURST);
        limits
    }

    /// Buckets that nothing will empty; but none for errors, which nobody would write.
    fn without_host() -> Self {
        Self {
            credits: [const { AtomicI32::new(i32::MAX) }; PuntReason::COUNT],
            errors: AtomicI32::new(0),
        }
    }

    /// Takes one packet's worth; false where the bucket is empty.
    #[inline]
    fn take(&self, reason: PuntReason) -> bool {
        self.credits.get(reason.index()).is_some_and(take_one)
    }

    /// Whether nothing more of a kind is punted for now.
    #[inline]
    pub(super) fn is_spent(&self, reason: PuntReason) -> bool {
        let credits = self.credits.get(reason.index());
        credits.is_none_or(|credits| credits.load(Ordering::Relaxed) <= 0)
    }

    /// Adds what `passed` is worth, up to full buckets. For one thread only. A fraction of a packet is lost, so it should be
    /// called every few milliseconds and no more often.
    pub fn refill(&self, passed: Duration) {
        let kinds = self.credits.iter().zip(PuntReason::ALL);
        let rates = kinds.map(|(credits, reason)| (credits, punt_rate(*reason)));
        for (credits, rate) in rates.chain([(&self.errors, ERROR_RATE)]) {
            let worth = |time: Duration| {
                let packets = time.as_millis().saturating_mul(rate.into()) / 1000;
                i32::try_from(packets).unwrap_or(i32::MAX)
            };
            // Workers may have gone below zero together, but no further than there are workers.
            let left = credits.load(Ordering::Relaxed).max(0);
            // No kind may fill the ring alone.
            let full = worth(Self::BURST).min(MOST_AT_ONCE);
            credits.store(
                left.saturating_add(worth(passed)).min(full),
                Ordering::Relaxed,
            );
        }
    }
}

/// Read first, so that a flood goes on about a line that nobody writes.
#[inline]
fn take_one(credits: &AtomicI32) -> bool {
    credits.load(Ordering::Relaxed) > 0 && credits.fetch_sub(1, Ordering::Relaxed) > 0
}

impl Default for PuntLimits {
    fn default() -> Self {
        Self::new()
    }
}

/// The ports of a burst.
#[derive(Clone, Copy)]
pub(super) struct Ports {
    pub(super) ingress: PortIndex,
    pub(super) egress: PortIndex,
    /// The side of `ingress`.
    pub(super) side: Side,
    /// Senders are told where policy discards their packets.
    pub(super) admin_prohibited: bool,
}

impl Ports {
    /// Whether the sender of a packet that ended for `reason` is owed an ICMP error.
    #[inline]
    fn owe_error(self, reason: DropReason) -> bool {
        match reason {
            DropReason::TtlExpired | DropReason::TooBig | DropReason::NoRoute => true,
            DropReason::NoPolicy | DropReason::Discarded => self.admin_prohibited,
            _ => false,
        }
    }
}

/// Hands a packet that ended on the packet path to the host side, as far as the host side has to do with it. What is punted
/// beyond its kind's limit is dropped as `PuntLimit`, and what the ring has no room for as `PuntFull`.
pub(super) fn hand_over<'p>(
    mbuf: Mbuf<'p>,
    meta: &mut PacketMeta,
    ports: Ports,
    rings: &HostRings<'p>,
) {
    match meta.fate {
        Fate::Punted(reason) => {
            if let Err(reason) = punt(mbuf, reason, ports.ingress, rings) {
                meta.kill(reason);
            }
        }
        Fate::Dropped(reason) if ports.owe_error(reason) => {
            fail(mbuf, meta, reason, ports, rings);
        }
        Fate::Dropped(DropReason::NoNeighbour) => wait(mbuf, meta, ports, rings),
        _ => {}
    }
}

/// Whether [`hand_over`] has anything to do with it.
pub(super) fn is_for_host(meta: &PacketMeta, ports: Ports) -> bool {
    match meta.fate {
        Fate::Punted(_) | Fate::Dropped(DropReason::NoNeighbour) => true,
        Fate::Dropped(reason) => ports.owe_error(reason),
        _ => false,
    }
}

fn punt<'p>(
    mut mbuf: Mbuf<'p>,
    reason: PuntReason,
    port: PortIndex,
    rings: &HostRings<'p>,
) -> Result<(), DropReason> {
    if !rings.limits.take(reason) {
        return Err(DropReason::PuntLimit);
    }
    // All but ARP has lost its Ethernet header to the parser.
    if reason != PuntReason::Arp && !mbuf.uncover(ether::HEADER_LEN) {
        return Err(DropReason::NoRoom);
    }
    rings
        .punts
        .push(Punted { mbuf, reason, port })
        .map_err(|_| DropReason::PuntFull)
}

/// Asks for the MAC address that is wanting, and has the packet wait for it. Where it may not, it stays dropped.
fn wait<'p>(mut mbuf: Mbuf<'p>, meta: &mut PacketMeta, ports: Ports, rings: &HostRings<'p>) {
    let is_opened = ports.side == Side::Unprotected;
    let towards = match meta.sa {
        // What tunnels want is asked for without this.
        Some(slot) if !is_opened => Towards::Peer(slot),
        _ => {
            let Some(addresses) = address_pair(mbuf.data(), meta) else {
                return;
            };
            let destination = addresses.destination();
            let _ = rings.wanted.push((ports.egress, destination));
            Towards::Station(destination)
        }
    };
    let is_found_out = rings.resolves.get(ports.egress.index()).copied();
    if is_found_out != Some(true) || !rings.limits.take(PuntReason::Unresolved) {
        return;
    }
    // It comes back as it came.
    if !is_opened && !mbuf.uncover(ether::HEADER_LEN) {
        return;
    }
    let waiting = Waiting {
        mbuf,
        ingress: ports.ingress,
        egress: ports.egress,
        meta: *meta,
        is_opened,
        towards,
    };
    if rings.waiting.push(waiting).is_ok() {
        meta.punt(PuntReason::Unresolved);
    }
}

/// What there is no room or no credit for gets no error, which senders have to live with.
fn fail<'p>(
    mut mbuf: Mbuf<'p>,
    meta: &PacketMeta,
    reason: DropReason,
    ports: Ports,
    rings: &HostRings<'p>,
) {
    if !take_one(&rings.limits.errors) {
        return;
    }
    let (port, sender) = if ports.side == Side::Unprotected && meta.sa.is_some() {
        (ports.egress, None)
    } else {
        if !mbuf.uncover(ether::HEADER_LEN) {
            return;
        }
        let header = EtherHeader::ref_from_prefix(mbuf.data());
        let Ok(sender) = header.map(|(header, _)| header.source) else {
            return;
        };
        mbuf.adj(ether::HEADER_LEN);
        (ports.ingress, Some(sender))
    };
    let limit = low_16(meta.seq);
    let _ = rings.failed.push(Failed {
        mbuf,
        reason,
        port,
        sender,
        limit,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_let_a_burst_through_and_then_the_rate() {
        let limits = PuntLimits::new();
        let taken = |limits: &PuntLimits| {
            (0..100_000)
                .take_while(|_| limits.take(PuntReason::Arp))
                .count()
        };
        assert_eq!(taken(&limits), 250);
        limits.refill(Duration::from_millis(10));
        assert_eq!(taken(&limits), 10);
        limits.refill(Duration::from_secs(10));
        assert_eq!(taken(&limits), 250);
        assert!(limits.is_spent(PuntReason::Arp));
        assert!(!limits.is_spent(PuntReason::Ike));
        assert!(limits.take(PuntReason::Ike), "another kind has its own");
    }
}
