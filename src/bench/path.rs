//! The two ends of a path: what sends, and what checks what arrives.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::schedule::Schedule;
use crate::buf::PacketBuf;
use crate::dpdk::burst::{Burst, CAPACITY};
use crate::dpdk::lcore::tsc;
use crate::dpdk::mempool::Mempool;
use crate::dpdk::port::{RxQueue, TxQueue};
use crate::generator::latency::{Latencies, Stamps};
use crate::generator::order::{Arrival, FlowOrder};
use crate::generator::pace::Pacer;
use crate::generator::stream::{Stream, Verdict};
use crate::wire::ether;

/// Bursts that a late sender catches up with at one time.
const MAX_CATCH_UP: usize = 256;

/// A queue to send to, and what is sent there.
pub(super) struct Outlet<'p> {
    pub(super) tx: TxQueue<'p>,
    /// Which of the source's schedules; several outlets share one where flows are sprayed.
    pub(super) schedule: usize,
    /// What the queue had no room for yet.
    waiting: Burst<'p>,
}

impl<'p> Outlet<'p> {
    pub(super) fn new(tx: TxQueue<'p>, schedule: usize) -> Self {
        Self {
            tx,
            schedule,
            waiting: Burst::new(),
        }
    }
}

/// Sends one stream.
pub(super) struct Source<'p> {
    pub(super) pool: &'p Mempool<'p>,
    pub(super) stream: Arc<Stream>,
    pub(super) outlets: Vec<Outlet<'p>>,
    pub(super) schedules: Vec<Schedule>,
    pub(super) turn: usize,
}

/// What a sink holds arrivals against.
pub(super) enum Check {
    /// Every byte of every packet.
    Every(Arc<Stream>),
    /// That they are ESP, and in order within each SPI.
    Esp(FxHashMap<u32, FlowOrder>),
}

/// Checks what arrives.
pub(super) struct Sink<'p> {
    pub(super) rx: Vec<RxQueue<'p>>,
    pub(super) check: Check,
    orders: Vec<FlowOrder>,
    burst: Burst<'p>,
}

impl<'p> Sink<'p> {
    pub(super) fn new(rx: Vec<RxQueue<'p>>, check: Check) -> Self {
        let flows = match &check {
            Check::Every(stream) => stream.flows(),
            Check::Esp(_) => 0,
        };
        Self {
            rx,
            check,
            orders: vec![FlowOrder::default(); flows],
            burst: Burst::new(),
        }
    }
}

/// What one path carried.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Tally {
    /// Packets offered.
    pub(super) sent: u64,
    /// Of them, those that the first queue had no room for.
    pub(super) refused: u64,
    /// Packets that arrived, whole or not.
    pub(super) received: u64,
    /// Inner bytes of those that arrived whole.
    pub(super) bytes: u64,
    /// Packets that were not what was sent.
    pub(super) broken: u64,
    /// Frames that nobody here sent.
    pub(super) foreign: u64,
    /// Packets that came after a later one of their flow.
    pub(super) reordered: u64,
    /// The farthest that one came late, in packets of its flow.
    pub(super) extent: u64,
    /// Packets that came twice.
    pub(super) duplicates: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.refused += other.refused;
        self.received += other.received;
        self.bytes += other.bytes;
        self.broken += other.broken;
        self.foreign += other.foreign;
        self.reordered += other.reordered;
        self.extent = self.extent.max(other.extent);
        self.duplicates += other.duplicates;
    }
}

/// Both ends of one stream, on one thread.
pub(super) struct Path<'p> {
    pub(super) source: Source<'p>,
    pub(super) sink: Sink<'p>,
    pub(super) stamps: Stamps,
    pub(super) tally: Tally,
    pub(super) latencies: Option<Latencies>,
    /// Packets that may be on their way.
    pub(super) window: u64,
    /// Packets that will not arrive any more, as far as the window goes.
    pub(super) given_up: u64,
    pub(super) last_arrival: u64,
    /// Ticks without arrivals after which what is on its way counts as lost, so that others may be sent.
    pub(super) patience: u64,
    pub(super) hz: u64,
}

impl<'p> Path<'p> {
    /// Makes ready for a run: counts from zero.
    pub(super) fn begin(&mut self, latency: bool) {
        self.tally = Tally::default();
        self.given_up = 0;
        self.last_arrival = tsc();
        self.latencies = if latency { Latencies::new() } else { None };
    }

    /// Packets on their way.
    pub(super) fn in_flight(&self) -> u64 {
        self.tally
            .sent
            .saturating_sub(self.tally.refused)
            .saturating_sub(self.tally.received)
            .saturating_sub(self.given_up)
    }

    /// Sends a burst if the window has room for one, `quota` packets at most in the whole run. Returns how many went.
    pub(super) fn send_full(&mut self, quota: u64) -> u64 {
        if self.in_flight() + CAPACITY as u64 > self.window {
            if self.is_stuck() {
                self.given_up += self.in_flight();
            }
            return 0;
        }
        let room = quota.saturating_sub(self.tally.sent);
        let count = room.min(CAPACITY as u64);
        if count == 0 {
            return 0;
        }
        let source = &mut self.source;
        let Some(at) = source.next_outlet() else {
            return 0;
        };
        source.fill(at, usize::try_from(count).unwrap_or(CAPACITY), |_, _| {});
        let outlet = &mut source.outlets[at];
        let sent = outlet.tx.tx_burst(&mut outlet.waiting) as u64;
        self.tally.sent += sent;
        sent
    }

    /// Whether nothing has arrived for long enough.
    fn is_stuck(&self) -> bool {
        tsc().saturating_sub(self.last_arrival) > self.patience
    }

    /// Sends everything that is due, whether the queue takes it or not. Returns how many packets that were.
    pub(super) fn send_due(&mut self, pacer: &mut Pacer, quota: u64) -> u64 {
        let mut offered = 0;
        for _ in 0..MAX_CATCH_UP {
            let due = pacer.due(tsc()).min(quota.saturating_sub(self.tally.sent));
            let count = usize::try_from(due).unwrap_or(CAPACITY).min(CAPACITY);
            if count == 0 {
                break;
            }
            let source = &mut self.source;
            let Some(at) = source.next_outlet() else {
                break;
            };
            let (stamps, stamping) = (&mut self.stamps, self.latencies.is_some());
            let filled = source.fill(at, count, |flow, number| {
                let due = pacer.take();
                if stamping {
                    stamps.put(flow, number, due);
                }
            });
            let outlet = &mut source.outlets[at];
            outlet.tx.tx_burst(&mut outlet.waiting);
            let refused = outlet.waiting.len() as u64;
            outlet.waiting.clear();
            self.tally.sent += filled;
            self.tally.refused += refused;
            offered += filled;
        }
        offered
    }

    /// Takes what has arrived, one burst of each queue, and checks it. Returns how many packets that were.
    pub(super) fn receive(&mut self) -> u64 {
        let mut received = 0;
        for at in 0..self.sink.rx.len() {
            let Sink { rx, burst, .. } = &mut self.sink;
            if rx[at].rx_burst(burst) == 0 {
                continue;
            }
            self.last_arrival = tsc();
            received += burst.len() as u64;
            match &mut self.sink.check {
                Check::Every(_) => self.check_every(),
                Check::Esp(orders) => check_esp(&self.sink.burst, orders, &mut self.tally),
            }
            self.sink.burst.clear();
        }
        received
    }

    fn check_every(&mut self) {
        let Check::Every(stream) = &self.sink.check else {
            return;
        };
        let tally = &mut self.tally;
        for packet in self.sink.burst.iter() {
            let frame = packet.data();
            let number = match stream.check(frame) {
                Verdict::Intact(number) => number,
                Verdict::Foreign => {
                    tally.foreign += 1;
                    continue;
                }
                Verdict::Broken => {
                    tally.received += 1;
                    tally.broken += 1;
                    continue;
                }
            };
            tally.received += 1;
            tally.bytes += (frame.len() - ether::HEADER_LEN) as u64;
            if let Some(order) = self.sink.orders.get_mut(number.flow as usize) {
                note_order(order, number.count, tally);
            }
            if let Some(latencies) = &mut self.latencies
                && let Some(due) = self.stamps.take(number.flow, number.count)
            {
                let ticks = self.last_arrival.saturating_sub(due);
                let ns = u128::from(ticks) * 1_000_000_000 / u128::from(self.hz.max(1));
                latencies.add(u64::try_from(ns).unwrap_or(u64::MAX));
            }
        }
    }
}

#[inline]
fn note_order(order: &mut FlowOrder, count: u64, tally: &mut Tally) {
    match order.observe(count) {
        Arrival::InOrder => {}
        Arrival::Reordered(extent) => {
            tally.reordered += 1;
            tally.extent = tally.extent.max(extent);
        }
        Arrival::Duplicate => tally.duplicates += 1,
    }
}

/// Counts ESP packets, bare or in UDP, and the order of their sequence numbers.
fn check_esp(burst: &Burst<'_>, orders: &mut FxHashMap<u32, FlowOrder>, tally: &mut Tally) {
    for packet in burst.iter() {
        let frame = packet.data();
        let Some((spi, seq)) = esp_of(frame) else {
            tally.foreign += 1;
            continue;
        };
        tally.received += 1;
        tally.bytes += (frame.len() - ether::HEADER_LEN) as u64;
        note_order(orders.entry(spi).or_default(), seq.into(), tally);
    }
}

/// SPI and sequence number of a frame with ESP in it.
fn esp_of(frame: &[u8]) -> Option<(u32, u32)> {
    let packet = frame.get(ether::HEADER_LEN..)?;
    let (protocol, rest) = match packet.first()? >> 4 {
        4 => (packet.get(9)?, packet.get(20..)?),
        6 => (packet.get(6)?, packet.get(40..)?),
        _ => return None,
    };
    let esp = match protocol {
        50 => rest,
        17 if rest.get(2..4)? == [0x11, 0x94] => rest.get(8..)?,
        _ => return None,
    };
    let word = |at: usize| Some(u32::from_be_bytes(*esp.get(at..)?.first_chunk()?));
    Some((word(0)?, word(4)?))
}

impl Source<'_> {
    /// The outlet that has the next turn.
    fn next_outlet(&mut self) -> Option<usize> {
        let at = self.turn;
        self.turn = if at + 1 >= self.outlets.len() {
            0
        } else {
            at + 1
        };
        (at < self.outlets.len()).then_some(at)
    }

    /// Fills what outlet `at` will send up to `count` packets, and tells `note` of each that is new: flow and count.
    /// Returns how many are new.
    #[inline]
    fn fill(&mut self, at: usize, count: usize, mut note: impl FnMut(u32, u64)) -> u64 {
        let outlet = &mut self.outlets[at];
        let schedule = &mut self.schedules[outlet.schedule];
        let held = outlet.waiting.len();
        let wanted = count.saturating_sub(held);
        if wanted == 0 || !self.pool.alloc_burst(&mut outlet.waiting, wanted) {
            return 0;
        }
        for packet in outlet.waiting.as_mut_slice().iter_mut().skip(held) {
            let (flow, number, size) = schedule.next();
            note(flow, number);
            if let Some(frame) = packet.append(self.stream.frame_len(flow, size)) {
                self.stream.write(flow, number, frame);
            }
        }
        wanted as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn esp_is_told_from_other_frames() {
        let mut frame = vec![0; 14];
        frame.extend_from_slice(&[0x45; 20]);
        frame.extend_from_slice(&[0, 0, 1, 1, 0, 0, 0, 9]);
        frame[14 + 9] = 50;
        assert_eq!(esp_of(&frame), Some((0x101, 9)));
        frame[14 + 9] = 17;
        assert_eq!(esp_of(&frame), None);
        for len in 0..frame.len() {
            frame[14 + 9] = 50;
            assert_eq!(esp_of(&frame[..len]), None);
        }
    }
}
