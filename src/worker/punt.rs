//! What workers hand to the control side and what they send for it: bounded both ways, and without a system call.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

use crate::dpdk::burst::Burst;
use crate::dpdk::mbuf::Mbuf;
use crate::drop::{DropReason, Fate, PuntReason};
use crate::ids::PortIndex;
use crate::meta::PacketMeta;
use crate::wire::ether;

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
}

/// Packets a second that may be punted for `reason`, by all workers together.
pub const fn punt_rate(reason: PuntReason) -> u32 {
    match reason {
        PuntReason::Arp | PuntReason::NeighbourDiscovery | PuntReason::Icmp => 1000,
        PuntReason::Ike => 2000,
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
        };
        limits.refill(Self::BURST);
        limits
    }

    /// Buckets that nothing will empty.
    pub fn unlimited() -> Self {
        Self {
            credits: [const { AtomicI32::new(i32::MAX) }; PuntReason::COUNT],
        }
    }

    /// Takes one packet's worth; false where the bucket is empty.
    #[inline]
    fn take(&self, reason: PuntReason) -> bool {
        // Read first, so that a flood goes on about a line that nobody writes.
        self.credits.get(reason.index()).is_some_and(|credits| {
            credits.load(Ordering::Relaxed) > 0 && credits.fetch_sub(1, Ordering::Relaxed) > 0
        })
    }

    /// Adds what `passed` is worth, up to full buckets. For one thread only. A fraction of a packet is lost, so it should be
    /// called every few milliseconds and no more often.
    pub fn refill(&self, passed: Duration) {
        for (credits, reason) in self.credits.iter().zip(PuntReason::ALL) {
            let worth = |time: Duration| {
                let packets = time.as_millis().saturating_mul(punt_rate(*reason).into()) / 1000;
                i32::try_from(packets).unwrap_or(i32::MAX)
            };
            // Workers may have gone below zero together, but no further than there are workers.
            let left = credits.load(Ordering::Relaxed).max(0);
            let full = worth(Self::BURST);
            credits.store(
                left.saturating_add(worth(passed)).min(full),
                Ordering::Relaxed,
            );
        }
    }
}

impl Default for PuntLimits {
    fn default() -> Self {
        Self::new()
    }
}

/// Hands punted packets to the control side, in the order they came. `dead` holds the packets of `metas` that are not
/// live, in order; what is left in it afterwards is to be freed. What is beyond its kind's limit is dropped as `PuntLimit`,
/// and what the ring has no room for as `PuntFull`.
pub(super) fn punt_burst<'p>(
    metas: &mut [PacketMeta],
    dead: &mut Burst<'p>,
    port: PortIndex,
    punts: &ArrayQueue<Punted<'p>>,
    limits: &PuntLimits,
) {
    if !metas
        .iter()
        .any(|meta| matches!(meta.fate, Fate::Punted(_)))
    {
        return;
    }
    // So that the last to be taken out are those that came last.
    dead.as_mut_slice().reverse();
    for meta in metas.iter_mut().filter(|meta| !meta.is_live()) {
        let Some(mut mbuf) = dead.pop() else { return };
        let Fate::Punted(reason) = meta.fate else {
            continue;
        };
        if !limits.take(reason) {
            meta.kill(DropReason::PuntLimit);
            continue;
        }
        // All but ARP has lost its Ethernet header to the parser.
        if reason != PuntReason::Arp && !mbuf.uncover(ether::HEADER_LEN) {
            meta.kill(DropReason::NoRoom);
            continue;
        }
        if punts.push(Punted { mbuf, reason, port }).is_err() {
            meta.kill(DropReason::PuntFull);
        }
    }
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
        assert!(limits.take(PuntReason::Ike), "another kind has its own");
    }
}
