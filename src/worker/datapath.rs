//! THE file: one poll of one worker, stage by stage.
//!
//! A worker owns lanes: a receive queue of one port and the transmit queue of the paired port that what enters there
//! leaves by. Each poll takes one burst from each lane to its end. No heap, no lock, no system call, no panic.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use crate::buf::PacketBuf;
use crate::dpdk::burst::{Burst, CAPACITY};
use crate::dpdk::mbuf::Mbuf;
use crate::dpdk::port::{RxQueue, TxQueue};
use crate::drop::{DropReason, Fate};
use crate::ids::{PortIndex, QueueId};
use crate::ipsec::sa_counters::WorkerId;
use crate::ipsec::sad::{Sad, SadView};
use crate::meta::{BURST, PacketMeta};
use crate::policy::model::Side;
use crate::policy::tables::{PortTable, Tables};
use crate::rcu::{Reader, Slots};
use crate::worker::counters::WorkerCounters;
use crate::worker::host::{HostRings, Ports, hand_over, is_for_host};
use crate::worker::probe::{Probe, Stage};
use crate::worker::remake::{MOST_MADE, Remake};
use crate::worker::stages::{View, process_burst};

/// How often a burst is offered to a transmit queue that takes only part of it.
const TX_ATTEMPTS: usize = 8;
/// Bursts that a lane takes of what was made from one burst.
const MADE_BURSTS: usize = MOST_MADE / BURST;
/// The queue of each port that the host side's frames leave by, or come in by: one worker has it.
const FOR_HOST: QueueId = QueueId(0);

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
}

/// One worker.
pub struct Worker<'p> {
    /// Its right to read what is published.
    pub reader: Reader,
    /// What it shares with the control side.
    pub shared: Arc<Shared<'p>>,
    /// Its lanes.
    pub lanes: Vec<Lane<'p>>,
    /// Its counters.
    pub counters: Arc<WorkerCounters>,
    id: WorkerId,
    scratch: Scratch<'p>,
}

/// Room for one burst.
struct Scratch<'p> {
    burst: Burst<'p>,
    dead: Burst<'p>,
    remake: Remake<'p>,
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
            dead: Burst::new(),
            remake,
            metas: [PacketMeta::NEW; BURST],
        };
        Self {
            reader,
            shared,
            lanes,
            counters,
            id: WorkerId::new(),
            scratch,
        }
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
        };
        let mut received = 0usize;
        for lane in &mut self.lanes {
            let count = run_lane(lane, &mut self.scratch, round, probe);
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
struct Round<'g, 'p> {
    tables: &'g Tables,
    sad: SadView<'g>,
    shared: &'g Shared<'p>,
    counters: &'g WorkerCounters,
    id: &'g WorkerId,
}

fn run_lane<'p, P: Probe>(
    lane: &mut Lane<'p>,
    scratch: &mut Scratch<'p>,
    round: Round<'_, 'p>,
    probe: &mut P,
) -> usize {
    let Round {
        tables,
        shared,
        counters,
        ..
    } = round;
    let (Some(ingress), Some(egress)) = (tables.port(lane.ingress), tables.port(lane.egress))
    else {
        return 0;
    };
    let tables = (ingress, egress);
    if lane.tx.queue() == FOR_HOST
        && let Some(frames) = shared.host.to_send.get(lane.egress.index())
        && !frames.is_empty()
    {
        send_for_host(lane, frames, &mut scratch.burst, counters);
    }
    probe.begin();
    let direction = counters.direction(ingress.side);
    let received = match shared.host.to_take.get(lane.ingress.index()) {
        Some(frames) if lane.rx.queue() == FOR_HOST && !frames.is_empty() => {
            let taken = fill_from(frames, &mut scratch.burst);
            direction.made.add(taken as u64);
            taken
        }
        _ => {
            let received = lane.rx.rx_burst(&mut scratch.burst);
            if received > 0 {
                count_rx(lane.ingress, ingress.side, &scratch.burst, counters);
            }
            received
        }
    };
    if received == 0 {
        return 0;
    }
    probe.mark(Stage::Rx);
    carry(lane, scratch, tables, round, probe);
    // What was made of them goes the same way. What that makes again, a path that became narrower meanwhile, ends here.
    for _ in 0..MADE_BURSTS {
        let made = scratch.remake.fill(&mut scratch.burst);
        if made == 0 {
            return received;
        }
        direction.made.add(made as u64);
        carry(lane, scratch, tables, round, probe);
    }
    scratch.remake.give_up(direction);
    received
}

/// Takes the frames of `scratch.burst` to their end.
fn carry<'p, P: Probe>(
    lane: &mut Lane<'p>,
    scratch: &mut Scratch<'p>,
    (ingress, egress): (&PortTable, &PortTable),
    round: Round<'_, 'p>,
    probe: &mut P,
) {
    let Scratch {
        burst,
        dead,
        remake,
        metas,
    } = scratch;
    let counters = round.counters;
    let metas = metas.get_mut(..burst.len()).unwrap_or_default();
    let view = View {
        tables: round.tables,
        sad: round.sad,
        ingress,
        egress,
        worker: round.id,
    };
    process_burst(burst.as_mut_slice(), metas, view, probe);
    if view.tables.spd.has_bypass() {
        counters.direction(ingress.side).add_bypassed(metas);
    }
    debug_assert!(dead.is_empty(), "what has no room there would be sent");
    let all_live = metas.iter().all(PacketMeta::is_live);
    if !all_live {
        burst.sift(|at| metas.get(at).is_some_and(PacketMeta::is_live), dead);
    }
    send(lane, ingress.side, burst, counters);
    probe.mark(Stage::Tx);
    if !all_live {
        let rest = (metas, dead);
        bury(rest, lane, ingress.side, (round, remake));
    }
    probe.mark(Stage::Count);
}

/// Does with the packets that ended what is still to be done with them, in the order they came, frees them and counts their
/// fates. `dead` holds the packets of `metas` that are not live, in order.
fn bury<'p>(
    (metas, dead): (&mut [PacketMeta], &mut Burst<'p>),
    lane: &mut Lane<'p>,
    side: Side,
    (round, remake): (Round<'_, 'p>, &mut Remake<'p>),
) {
    let ports = Ports {
        ingress: lane.ingress,
        egress: lane.egress,
        side,
        admin_prohibited: round.tables.admin_prohibited,
    };
    let counters = round.counters;
    let direction = counters.direction(side);
    if metas
        .iter()
        .any(|meta| is_for_host(meta, ports) || is_aside(meta))
    {
        // So that the last to be taken out are those that came last.
        dead.as_mut_slice().reverse();
        for meta in metas.iter_mut().filter(|meta| !meta.is_live()) {
            let Some(mbuf) = dead.pop() else { break };
            match meta.fate {
                Fate::Aside(reason) => remake.take(mbuf, (reason, meta.seq), direction, |made| {
                    send(lane, side, made, counters);
                }),
                _ => hand_over(mbuf, meta, ports, &round.shared.host),
            }
        }
    }
    dead.clear();
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

/// Offers the burst to the transmit queue until it is taken or the attempts are used up; drops the rest as `TxFull`.
fn send(lane: &mut Lane<'_>, side: Side, burst: &mut Burst<'_>, counters: &WorkerCounters) {
    let (packets, bytes) = (burst.len() as u64, total_bytes(burst));
    for _ in 0..TX_ATTEMPTS {
        if burst.is_empty() {
            break;
        }
        lane.tx.tx_burst(burst);
    }
    // Mostly none, so that the sum is over nothing.
    let (left, left_bytes) = (burst.len() as u64, total_bytes(burst));
    burst.clear();
    let sent = packets.wrapping_sub(left);
    let direction = counters.direction(side);
    direction.sent.add(sent);
    direction.add_drops(DropReason::TxFull, left);
    if let Some(counters) = counters.port(lane.egress) {
        counters.tx_packets.add(sent);
        counters.tx_bytes.add(bytes.wrapping_sub(left_bytes));
    }
}

/// Sends frames of the host's own, a burst at most. What the transmit queue does not take is dropped, as a kernel would.
#[cold]
fn send_for_host<'p>(
    lane: &mut Lane<'p>,
    frames: &ArrayQueue<Mbuf<'p>>,
    burst: &mut Burst<'p>,
    counters: &WorkerCounters,
) {
    let packets = fill_from(frames, burst) as u64;
    for _ in 0..TX_ATTEMPTS {
        if burst.is_empty() {
            break;
        }
        lane.tx.tx_burst(burst);
    }
    let left = burst.len() as u64;
    burst.clear();
    if let Some(counters) = counters.port(lane.egress) {
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
