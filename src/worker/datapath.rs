//! THE file: one poll of one worker, stage by stage.
//!
//! A worker owns lanes: a receive queue of one port and the transmit queue of the paired port that what enters there
//! leaves by. Where ports share a device by VLAN tags, it owns trunks of queues instead (`worker/trunk.rs`). Each poll takes one
//! burst from each lane to its end. No heap, no lock, no system call, no panic.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use crate::bits::low_16;
use crate::buf::PacketBuf;
use crate::dpdk::burst::{Burst, CAPACITY};
use crate::dpdk::lcore::tsc;
use crate::dpdk::mbuf::Mbuf;
use crate::dpdk::port::{RxQueue, TxQueue};
use crate::drop::{DropReason, Fate};
use crate::ids::{PortIndex, QueueId};
use crate::ipsec::flow_cache::FlowCache;
use crate::ipsec::sa_counters::WorkerId;
use crate::ipsec::sad::{Sad, SadView};
use crate::meta::{BURST, PacketMeta};
use crate::policy::model::Side;
use crate::policy::tables::{PortTable, Tables};
use crate::rcu::{Reader, Slots};
use crate::wire::vlan::VlanTags;
use crate::worker::counters::WorkerCounters;
use crate::worker::host::{HostRings, Ports, hand_over, is_for_host};
use crate::worker::probe::{Probe, Stage};
use crate::worker::remake::{MOST_MADE, Remake};
use crate::worker::stages::{View, carry_burst, sort_burst};
use crate::worker::trace::{Arrival, Origin, Trace};
use crate::worker::trunk::Trunk;
use crate::worker::vlan::tag;

/// How often a burst is offered to a transmit queue that takes only part of it.
const TX_ATTEMPTS: usize = 8;
/// Bursts that a lane takes of what was made from one burst.
const MADE_BURSTS: usize = MOST_MADE / BURST;
/// The queue of each port that the host side's frames leave by, or come in by: one worker has it.
pub(super) const FOR_HOST: QueueId = QueueId(0);

const _: () = assert!(CAPACITY == BURST);

/// Where one receive queue leads. The type says that nobody else polls or fills these queues.
pub struct Lane<'p> {
    /// Polled.
    pub rx: RxQueue<'p>,
    /// Filled.
    pub tx: TxQueue<'p>,
    /// The port of `rx`.
    pub ingress: PortIndex,
    /// The port of `tx`.
    pub egress: PortIndex,
}

/// What workers share with the control side.
pub struct Shared<'p> {
    /// The published tables, in slot 0.
    pub tables: Slots<Tables>,
    /// The SAs.
    pub sad: Sad,
    /// What goes to the host side and comes from there.
    pub host: HostRings<'p>,
    /// What is followed for `simplon trace`, in slot 0; empty but for then.
    pub trace: Slots<Arc<Trace>>,
}

/// One worker.
pub struct Worker<'p> {
    /// Its right to read what is published.
    pub reader: Reader,
    /// What it shares with the control side.
    pub shared: Arc<Shared<'p>>,
    /// Its lanes.
    pub lanes: Vec<Lane<'p>>,
    /// Its queues of devices whose ports are told apart by VLAN tags.
    pub trunks: Vec<Trunk<'p>>,
    /// Its counters.
    pub counters: Arc<WorkerCounters>,
    id: WorkerId,
    flows: FlowCache,
    scratch: Scratch<'p>,
}

/// Room for one burst.
pub(super) struct Scratch<'p> {
    /// Empty between two bursts.
    pub(super) burst: Burst<'p>,
    remake: Remake<'p>,
    metas: [PacketMeta; BURST],
    ended: Ended<'p>,
    /// The worker's core, for who looks at packets.
    pub(super) core: u16,
}

/// Packets of a burst that go no further, in the order they came, and what is known of each.
struct Ended<'p> {
    burst: Burst<'p>,
    metas: [PacketMeta; BURST],
}

impl<'p> Worker<'p> {
    /// A worker that has polled nothing yet. What it makes itself of packets it makes in `remake`.
    pub fn new(
        reader: Reader,
        shared: Arc<Shared<'p>>,
        lanes: Vec<Lane<'p>>,
        counters: Arc<WorkerCounters>,
        remake: Remake<'p>,
    ) -> Self {
        let scratch = Scratch {
            burst: Burst::new(),
            remake,
            metas: [PacketMeta::NEW; BURST],
            ended: Ended {
                burst: Burst::new(),
                metas: [PacketMeta::NEW; BURST],
            },
            core: 0,
        };
        Self {
            reader,
            shared,
            lanes,
            trunks: Vec::new(),
            counters,
            id: WorkerId::new(),
            flows: FlowCache::new(),
            scratch,
        }
    }

    /// Has records of packets that are followed name `core` as the worker's.
    pub fn set_core(&mut self, core: usize) {
        self.scratch.core = low_16(core as u64);
    }

    /// Polls every lane once and takes what came in to its end. Returns how many packets that were.
    pub fn poll_once<P: Probe>(&mut self, probe: &mut P) -> usize {
        let guard = self.reader.enter();
        let Some(tables) = self.shared.tables.get(&guard, 0) else {
            return 0;
        };
        let round = Round {
            tables,
            sad: self.shared.sad.view(&guard),
            shared: &self.shared,
            counters: &self.counters,
            id: &self.id,
            flows: &self.flows,
            trace: self.shared.trace.get(&guard, 0).map(|trace| &**trace),
        };
        let mut received = 0usize;
        for lane in &mut self.lanes {
            let count = run_lane(lane, &mut self.scratch, round, probe);
            received = received.saturating_add(count);
        }
        for trunk in &mut self.trunks {
            let count = trunk.run(&mut self.scratch, round, probe);
            received = received.saturating_add(count);
        }
        let inbound = self.counters.direction(Side::Unprotected);
        self.scratch.remake.expire(inbound);
        let polls = if received == 0 {
            &self.counters.idle_polls
        } else {
            &self.counters.busy_polls
        };
        polls.add(1);
        received
    }
}

/// What holds for one poll of all lanes.
#[derive(Clone, Copy)]
pub(super) struct Round<'g, 'p> {
    pub(super) tables: &'g Tables,
    sad: SadView<'g>,
    shared: &'g Shared<'p>,
    pub(super) counters: &'g WorkerCounters,
    id: &'g WorkerId,
    flows: &'g FlowCache,
    pub(super) trace: Option<&'g Trace>,
}

/// The way of what comes in by one port: where it leaves.
pub(super) struct Way<'w, 'p> {
    /// Filled.
    pub(super) tx: &'w mut TxQueue<'p>,
    /// The port it comes in by.
    pub(super) ingress: PortIndex,
    /// The port of `tx` it leaves by.
    pub(super) egress: PortIndex,
    /// The VLAN tags of that.
    pub(super) tags: VlanTags,
}

fn run_lane<'p, P: Probe>(
    lane: &mut Lane<'p>,
    scratch: &mut Scratch<'p>,
    round: Round<'_, 'p>,
    probe: &mut P,
) -> usize {
    let mut way = Way {
        tx: &mut lane.tx,
        ingress: lane.ingress,
        egress: lane.egress,
        tags: VlanTags::NONE,
    };
    send_for_host(&mut way, scratch, round);
    probe.begin();
    if lane.rx.queue() == FOR_HOST {
        let taken = take_from_host(&mut way, scratch, round, probe);
        if taken > 0 {
            return taken;
        }
    }
    let received = lane.rx.rx_burst(&mut scratch.burst);
    if received > 0 {
        carry_all(&mut way, Origin::Wire, scratch, round, probe);
    }
    received
}

/// Takes what the host side wants taken as if `way.ingress` had received it, a burst at most, to its end; returns how many
/// frames that were.
#[inline]
pub(super) fn take_from_host<'p, P: Probe>(
    way: &mut Way<'_, 'p>,
    scratch: &mut Scratch<'p>,
    round: Round<'_, 'p>,
    probe: &mut P,
) -> usize {
    let taken = match round.shared.host.to_take.get(way.ingress.index()) {
        Some(frames) if !frames.is_empty() => fill_from(frames, &mut scratch.burst),
        _ => 0,
    };
    if taken > 0 {
        carry_all(way, Origin::Host, scratch, round, probe);
    }
    taken
}

/// Takes the frames of `scratch.burst` and what is made of them to their end.
#[inline]
pub(super) fn carry_all<'p, P: Probe>(
    way: &mut Way<'_, 'p>,
    origin: Origin,
    scratch: &mut Scratch<'p>,
    round: Round<'_, 'p>,
    probe: &mut P,
) {
    let (tables, counters) = (round.tables, round.counters);
    let (Some(ingress), Some(egress)) = (tables.port(way.ingress), tables.port(way.egress)) else {
        scratch.burst.clear();
        return;
    };
    let tables = (ingress, egress);
    let direction = counters.direction(ingress.side);
    match origin {
        Origin::Wire => count_rx(way.ingress, ingress.side, &scratch.burst, counters),
        Origin::Host | Origin::Made => direction.made.add(scratch.burst.len() as u64),
    }
    probe.mark(Stage::Rx);
    carry(way, (origin, scratch), tables, round, probe);
    // What was made of them goes the same way. What that makes again, a path that became narrower meanwhile, ends here.
    for _ in 0..MADE_BURSTS {
        let made = scratch.remake.fill(&mut scratch.burst);
        if made == 0 {
            return;
        }
        direction.made.add(made as u64);
        carry(way, (Origin::Made, scratch), tables, round, probe);
    }
    scratch.remake.give_up(direction);
}

/// Takes the frames of `scratch.burst` to their end.
fn carry<'p, P: Probe>(
    way: &mut Way<'_, 'p>,
    (origin, scratch): (Origin, &mut Scratch<'p>),
    (ingress, egress): (&PortTable, &PortTable),
    round: Round<'_, 'p>,
    probe: &mut P,
) {
    let view = View {
        tables: round.tables,
        sad: round.sad,
        ingress,
        egress,
        worker: round.id,
        flows: round.flows,
    };
    if let Some(trace) = round.trace
        && carry_traced(way, (origin, scratch), (trace, view), round, probe)
    {
        return;
    }
    let Scratch {
        burst,
        remake,
        metas,
        ended,
        ..
    } = scratch;
    let counters = round.counters;
    let metas = metas.get_mut(..burst.len()).unwrap_or_default();
    let sorted = sort_burst(burst.as_mut_slice(), metas, view, probe);
    let mut left = metas.len();
    if sorted.has_ended {
        // Out of the way of the others, each stage of which would have to tell them apart; a flood is mostly these.
        left = ended.take_from(burst, metas);
        bury(ended, way, ingress.side, (round, remake));
        probe.mark(Stage::Count);
        if left == 0 {
            return;
        }
    }
    let metas = metas.get_mut(..left).unwrap_or_default();
    carry_burst(burst.as_mut_slice(), metas, sorted, view, probe);
    if view.tables.spd.has_bypass() {
        counters.direction(ingress.side).add_bypassed(metas);
    }
    let all_live = metas.iter().all(PacketMeta::is_live);
    if !all_live {
        ended.take_from(burst, metas);
    }
    send(way, ingress.side, burst, counters);
    probe.mark(Stage::Tx);
    if !all_live {
        bury(ended, way, ingress.side, (round, remake));
    }
    probe.mark(Stage::Count);
}

/// As [`carry`], and follows the packets that are meant. Returns false, with nothing done, where the trace does not want any.
///
/// What ends early stays among the others, which comes to the same (see [`super::stages::process_burst`]), so that the packets
/// of the burst are those of the records all the way.
#[cold]
#[inline(never)]
fn carry_traced<'p, P: Probe>(
    way: &mut Way<'_, 'p>,
    (origin, scratch): (Origin, &mut Scratch<'p>),
    (trace, view): (&Trace, View<'_>),
    round: Round<'_, 'p>,
    probe: &mut P,
) -> bool {
    let side = view.ingress.side;
    let arrival = Arrival {
        ingress: way.ingress,
        egress: way.egress,
        side,
        origin,
        core: scratch.core,
        tsc: tsc(),
    };
    let Scratch {
        burst,
        remake,
        metas,
        ended,
        ..
    } = scratch;
    let metas = metas.get_mut(..burst.len()).unwrap_or_default();
    let packets = (burst.as_mut_slice(), &mut *metas);
    let Some(followed) = trace.follow_burst(arrival, packets, (view, way.tags.len()), probe) else {
        return false;
    };
    if view.tables.spd.has_bypass() {
        round.counters.direction(side).add_bypassed(metas);
    }
    ended.take_from(burst, metas);
    let sent = send(way, side, burst, round.counters);
    probe.mark(Stage::Tx);
    let count = ended.burst.len();
    bury(ended, way, side, (round, remake));
    let fates = ended.metas.get(..count).unwrap_or_default();
    trace.finish(followed, sent, fates);
    probe.mark(Stage::Count);
    true
}

impl<'p> Ended<'p> {
    /// Moves the packets that have ended out of `burst`, and what is known of them out of `metas`; returns how many are left
    /// there. All stay in order. It is empty before.
    #[inline(never)]
    fn take_from(&mut self, burst: &mut Burst<'p>, metas: &mut [PacketMeta]) -> usize {
        debug_assert!(self.burst.is_empty(), "what has no room here would be sent");
        let (mut left, mut taken) = (0usize, 0usize);
        let stays = |at: usize| {
            let Some(meta) = metas.get(at).copied() else {
                return false;
            };
            let stays = meta.goes_on();
            let (place, count) = if stays {
                (metas.get_mut(left), &mut left)
            } else {
                (self.metas.get_mut(taken), &mut taken)
            };
            if let Some(place) = place {
                *place = meta;
                *count = count.saturating_add(1);
            }
            stays
        };
        burst.sift(stays, &mut self.burst);
        left
    }
}

/// Does with the packets that ended what is still to be done with them, in the order they came, frees them and counts their
/// fates.
fn bury<'p>(
    ended: &mut Ended<'p>,
    way: &mut Way<'_, 'p>,
    side: Side,
    (round, remake): (Round<'_, 'p>, &mut Remake<'p>),
) {
    let ports = Ports {
        ingress: way.ingress,
        egress: way.egress,
        side,
        admin_prohibited: round.tables.admin_prohibited,
    };
    let (counters, rings) = (round.counters, &round.shared.host);
    let direction = counters.direction(side);
    let packets = &mut ended.burst;
    let metas = ended.metas.get_mut(..packets.len()).unwrap_or_default();
    let mut is_wanted = false;
    for meta in metas.iter_mut() {
        // Here and not one by one below: of a flood nothing else is looked at.
        if let Fate::Punted(reason) = meta.fate
            && rings.limits.is_spent(reason)
        {
            meta.kill(DropReason::PuntLimit);
        }
        is_wanted |= is_for_host(meta, ports) || is_aside(meta);
    }
    if is_wanted {
        // So that the last to be taken out are those that came last.
        packets.as_mut_slice().reverse();
        for meta in metas.iter_mut() {
            let Some(mbuf) = packets.pop() else { break };
            match meta.fate {
                Fate::Aside(reason) => {
                    let send = |made: &mut Burst<'p>| {
                        send(way, side, made, counters);
                    };
                    let taken = remake.take(mbuf, (reason, meta.seq), direction, send);
                    if let Err(reason) = taken {
                        meta.kill(reason);
                    }
                }
                _ => hand_over(mbuf, meta, ports, rings),
            }
        }
    }
    packets.clear();
    direction.add_fates(metas);
}

fn is_aside(meta: &PacketMeta) -> bool {
    matches!(meta.fate, Fate::Aside(_))
}

fn count_rx(port: PortIndex, side: Side, burst: &Burst<'_>, counters: &WorkerCounters) {
    counters.direction(side).received.add(burst.len() as u64);
    if let Some(counters) = counters.port(port) {
        counters.rx_packets.add(burst.len() as u64);
        counters.rx_bytes.add(total_bytes(burst));
    }
}

/// Offers the burst to the transmit queue until it is taken or the attempts are used up; drops the rest as `TxFull`. Returns
/// how many were taken.
fn send(
    way: &mut Way<'_, '_>,
    side: Side,
    burst: &mut Burst<'_>,
    counters: &WorkerCounters,
) -> usize {
    let direction = counters.direction(side);
    if !way.tags.is_empty() {
        direction.add_drops(DropReason::NoRoom, tag_burst(burst, way.tags));
    }
    let (packets, bytes) = (burst.len() as u64, total_bytes(burst));
    for _ in 0..TX_ATTEMPTS {
        if burst.is_empty() {
            break;
        }
        way.tx.tx_burst(burst);
    }
    // Mostly none, so that the sum is over nothing.
    let (left, left_bytes) = (burst.len() as u64, total_bytes(burst));
    burst.clear();
    let sent = packets.wrapping_sub(left);
    direction.sent.add(sent);
    direction.add_drops(DropReason::TxFull, left);
    if let Some(counters) = counters.port(way.egress) {
        let tags = sent.wrapping_mul(way.tags.len() as u64);
        let bytes = bytes.wrapping_sub(left_bytes).wrapping_sub(tags);
        counters.tx_packets.add(sent);
        counters.tx_bytes.add(bytes);
    }
    usize::try_from(sent).unwrap_or(usize::MAX)
}

/// Puts `tags` into the frames of a burst; returns how many had no room for them and are gone.
#[inline(never)]
fn tag_burst(burst: &mut Burst<'_>, tags: VlanTags) -> u64 {
    let mut rest = Burst::new();
    let mut tagged = [true; BURST];
    for (packet, tagged) in burst.iter_mut().zip(&mut tagged) {
        *tagged = tag(packet, tags);
    }
    if tagged.iter().all(|tagged| *tagged) {
        return 0;
    }
    burst.sift(|at| tagged.get(at).is_some_and(|tagged| *tagged), &mut rest) as u64
}

/// Sends what the host side wants sent by `way.egress`, where its first queue is filled here.
#[inline]
pub(super) fn send_for_host<'p>(
    way: &mut Way<'_, 'p>,
    scratch: &mut Scratch<'p>,
    round: Round<'_, 'p>,
) {
    if way.tx.queue() == FOR_HOST
        && let Some(frames) = round.shared.host.to_send.get(way.egress.index())
        && !frames.is_empty()
    {
        send_frames(way, frames, &mut scratch.burst, round.counters);
    }
}

/// Sends frames of the host's own, a burst at most. What the transmit queue does not take is dropped, as a kernel would.
#[cold]
fn send_frames<'p>(
    way: &mut Way<'_, 'p>,
    frames: &ArrayQueue<Mbuf<'p>>,
    burst: &mut Burst<'p>,
    counters: &WorkerCounters,
) {
    let packets = fill_from(frames, burst) as u64;
    let mut left = 0;
    if !way.tags.is_empty() {
        left = tag_burst(burst, way.tags);
    }
    for _ in 0..TX_ATTEMPTS {
        if burst.is_empty() {
            break;
        }
        way.tx.tx_burst(burst);
    }
    left = left.saturating_add(burst.len() as u64);
    burst.clear();
    if let Some(counters) = counters.port(way.egress) {
        counters.from_host.add(packets.wrapping_sub(left));
        counters.from_host_dropped.add(left);
    }
}

/// Fills an empty burst with frames of a ring, and returns how many there were.
fn fill_from<'p>(frames: &ArrayQueue<Mbuf<'p>>, burst: &mut Burst<'p>) -> usize {
    while !burst.is_full()
        && let Some(frame) = frames.pop()
    {
        // There is room.
        let _ = burst.push(frame);
    }
    burst.len()
}

fn total_bytes(burst: &Burst<'_>) -> u64 {
    burst.iter().map(|packet| packet.data().len() as u64).sum()
}
