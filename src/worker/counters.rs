//! Counters of one worker: written by it alone, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use crate::drop::{Aside, DropReason, Fate, PuntReason};
use crate::ids::PortIndex;
use crate::ipsec::sa::{InboundSa, OutboundSa};
use crate::ipsec::sa_counters::{SaCounters, WorkerId};
use crate::ipsec::sad::BurstSas;
use crate::meta::PacketMeta;
use crate::policy::model::Side;
use crate::worker::probe::Stage;

/// A counter with one writer: a load and a store, no atomic addition.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker may call it.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Makes it `n`. Only the owning worker may call it.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a worker did on one port.
#[derive(Default)]
pub struct PortCounters {
    /// Frames received.
    pub rx_packets: Counter,
    /// Their bytes, Ethernet header included.
    pub rx_bytes: Counter,
    /// Frames the driver took that had come in by the pair.
    pub tx_packets: Counter,
    /// Their bytes.
    pub tx_bytes: Counter,
    /// Frames of the host's own that the driver took; none of `tx_packets`.
    pub from_host: Counter,
    /// Those it did not take.
    pub from_host_dropped: Counter,
}

/// What a worker did with what came in on one side.
pub struct DirectionCounters {
    /// Frames received.
    pub received: Counter,
    /// Frames sent.
    pub sent: Counter,
    /// IP packets passed on in clear, as policies say.
    pub bypassed: Counter,
    /// Their bytes.
    pub bypassed_bytes: Counter,
    /// By [`DropReason::index`].
    pub drops: [Counter; DropReason::COUNT],
    /// By [`PuntReason::index`].
    pub punts: [Counter; PuntReason::COUNT],
    /// By [`Aside::index`]: packets that others stand for, which the gateway made of them.
    pub asides: [Counter; Aside::COUNT],
    /// Frames that the gateway made and that went the way of received ones: fragments, packets put together, ICMP errors into
    /// tunnels.
    pub made: Counter,
    /// Fragments that wait for the others of their packet now.
    pub held: Counter,
}

impl Default for DirectionCounters {
    fn default() -> Self {
        Self {
            received: Counter::default(),
            sent: Counter::default(),
            bypassed: Counter::default(),
            bypassed_bytes: Counter::default(),
            drops: std::array::from_fn(|_| Counter::default()),
            punts: std::array::from_fn(|_| Counter::default()),
            asides: std::array::from_fn(|_| Counter::default()),
            made: Counter::default(),
            held: Counter::default(),
        }
    }
}

/// All counters of one worker.
pub struct WorkerCounters {
    ports: Box<[CachePadded<PortCounters>]>,
    outbound: CachePadded<DirectionCounters>,
    inbound: CachePadded<DirectionCounters>,
    /// Polls that brought nothing.
    pub idle_polls: Counter,
    /// Polls that brought packets.
    pub busy_polls: Counter,
    /// TSC cycles by [`Stage`], where the worker was asked to measure.
    pub stages: [Counter; Stage::ALL.len()],
    /// The worker thread's own run time, in nanoseconds, as of its last look.
    pub cpu_ns: Counter,
}

impl WorkerCounters {
    /// All zero, for `ports` ports.
    pub fn new(ports: usize) -> Self {
        Self {
            ports: (0..ports).map(|_| CachePadded::default()).collect(),
            outbound: CachePadded::default(),
            inbound: CachePadded::default(),
            idle_polls: Counter::default(),
            busy_polls: Counter::default(),
            stages: std::array::from_fn(|_| Counter::default()),
            cpu_ns: Counter::default(),
        }
    }

    /// The counters of a port.
    #[inline]
    pub fn port(&self, port: PortIndex) -> Option<&PortCounters> {
        self.ports.get(port.index()).map(|padded| &**padded)
    }

    /// The counters of what came in on `side`: outbound from the protected one, inbound from the other.
    #[inline]
    pub fn direction(&self, side: Side) -> &DirectionCounters {
        match side {
            Side::Protected => &self.outbound,
            Side::Unprotected => &self.inbound,
        }
    }
}

impl DirectionCounters {
    /// Counts the packets that end here, by reason. What is still live is not counted.
    pub fn add_fates(&self, metas: &[PacketMeta]) {
        for meta in metas {
            let counter = match meta.fate {
                // What is made of a packet taken aside, and how that ends, is counted where it is done.
                Fate::Live | Fate::Bypassed | Fate::Aside(_) => None,
                Fate::Dropped(reason) => self.drops.get(reason.index()),
                Fate::Punted(reason) => self.punts.get(reason.index()),
            };
            if let Some(counter) = counter {
                counter.add(1);
            }
        }
    }

    /// Adds packets that others stand for.
    pub fn add_aside(&self, reason: Aside, packets: u64) {
        if let Some(counter) = self.asides.get(reason.index()) {
            counter.add(packets);
        }
    }

    /// Counts the packets that no SA has to do with and that go on: live, or to be cut and sent.
    #[inline(never)]
    pub fn add_bypassed(&self, metas: &[PacketMeta]) {
        let goes_on = |fate| matches!(fate, Fate::Live | Fate::Aside(Aside::CutAndSend));
        let bypassed = metas
            .iter()
            .filter(|meta| goes_on(meta.fate) && meta.sa.is_none());
        let (mut packets, mut bytes) = (0u64, 0u64);
        for meta in bypassed {
            packets = packets.wrapping_add(1);
            bytes = bytes.wrapping_add(u64::from(meta.inner_len));
        }
        self.bypassed.add(packets);
        self.bypassed_bytes.add(bytes);
    }

    /// Adds packets dropped for `reason`.
    pub fn add_drops(&self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.drops.get(reason.index()) {
            counter.add(packets);
        }
    }
}

/// Counts a burst on its SAs, in `sas`: one addition for each run of equal SA and fate.
pub fn count_sa_burst<S: Counted>(metas: &[PacketMeta], sas: &BurstSas<'_, S>, worker: &WorkerId) {
    let mut rest = metas;
    for (sa, len) in sas.runs() {
        let Some((run, after)) = rest.split_at_checked(len) else {
            return;
        };
        rest = after;
        let Some(counters) = sa.map(S::counters) else {
            continue;
        };
        // With many SAs most runs are of one packet.
        if let [meta] = run
            && meta.is_live()
        {
            counters.add(worker, 1, u64::from(meta.inner_len));
            continue;
        }
        let (mut packets, mut bytes) = (0u64, 0u64);
        for meta in run {
            match meta.fate {
                Fate::Live => {
                    packets = packets.wrapping_add(1);
                    bytes = bytes.wrapping_add(u64::from(meta.inner_len));
                }
                Fate::Dropped(reason) => counters.add_drops(reason, 1),
                Fate::Punted(_) | Fate::Aside(_) | Fate::Bypassed => {}
            }
        }
        if packets > 0 {
            counters.add(worker, packets, bytes);
        }
    }
}

/// What has counters of its own: an SA of either direction.
pub trait Counted {
    /// Its counters.
    fn counters(&self) -> SaCounters<'_>;
}

impl Counted for OutboundSa {
    #[inline]
    fn counters(&self) -> SaCounters<'_> {
        self.counters()
    }
}

impl Counted for InboundSa {
    #[inline]
    fn counters(&self) -> SaCounters<'_> {
        self.counters()
    }
}
