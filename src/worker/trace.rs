//! Following packets through the stages, for `simplon trace`.
//!
//! The control side publishes a [`Trace`] with a filter, a count and all the memory it needs; while there is one, workers take
//! bursts that it may want by a way of their own, which copies packets as they come and as they leave, and notes at which
//! stage each ended. What matches goes to the control side in a record; where none is free the packet is counted as missed and
//! goes on all the same. While nothing is followed, that costs a load a poll and a branch a burst.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use zerocopy::FromBytes;

use crate::bits::low_16;
use crate::buf::PacketBuf;
use crate::drop::{Aside, DropReason, Fate};
use crate::ids::{PortIndex, SaIndex};
use crate::ipsec::traffic::{AnyTraffic, Direction, Traffic};
use crate::meta::{BURST, PacketKind, PacketMeta};
use crate::policy::filter::Selectors;
use crate::policy::model::Side;
use crate::wire::esp::EspHeader;
use crate::wire::ether;
use crate::worker::probe::{Probe, Stage};
use crate::worker::stages::{View, carry_burst, sort_burst};

/// Bytes kept of a packet as it came in, and as many of it as it left: all of one that any port takes, sealed and framed.
pub const ROOM: usize = 9728;

/// Where frames come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The port received them.
    Wire,
    /// The host side made them, or had them wait.
    Host,
    /// The worker made them of others: fragments, packets put together.
    Made,
}

/// Which packets are followed. A part that is `None` or empty lets every packet through.
#[derive(Default)]
pub struct Filter {
    /// Which way they go.
    pub direction: Option<Direction>,
    /// The port they come in by or leave by.
    pub port: Option<PortIndex>,
    /// Addresses, protocol and ports: of the clear packet where there is one, of the outer one where it was not opened.
    pub selectors: Selectors,
    /// The slots of the SAs that seal or open them, in order.
    pub sas: Option<Box<[SaIndex]>>,
    /// The SPI that they come with or get.
    pub spi: Option<u32>,
    /// Only what is dropped.
    pub dropped: bool,
    /// Only what is dropped for one of these.
    pub reasons: Box<[DropReason]>,
}

impl Filter {
    /// Whether a burst may have packets that are meant.
    fn may_match(&self, burst: Arrival) -> bool {
        let direction = burst.direction();
        self.direction.is_none_or(|wanted| wanted == direction)
            && self
                .port
                .is_none_or(|port| port == burst.ingress || port == burst.egress)
    }

    /// Whether a packet is meant, whatever becomes of it.
    fn is_of(&self, note: &Note) -> bool {
        let has_sa = |sas: &[SaIndex]| {
            note.sa
                .is_some_and(|slot| sas.binary_search_by_key(&slot.0, |sa| sa.0).is_ok())
        };
        self.sas.as_deref().is_none_or(has_sa)
            && (self.spi.is_none() || self.spi == note.spi)
            && self.selectors.matches(note.traffic)
    }

    /// Whether what became of a packet is meant.
    fn is_ended(&self, fate: Fate) -> bool {
        match fate {
            Fate::Dropped(reason) => self.reasons.is_empty() || self.reasons.contains(&reason),
            _ => !self.dropped && self.reasons.is_empty(),
        }
    }
}

/// How a burst came to a worker.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The port it came in by.
    pub ingress: PortIndex,
    /// The port it is to leave by.
    pub egress: PortIndex,
    /// The side of `ingress`.
    pub side: Side,
    /// Where its frames come from.
    pub origin: Origin,
    /// The core of the worker.
    pub core: u16,
    /// The worker's clock when it took the burst, in TSC cycles.
    pub tsc: u64,
}

impl Arrival {
    /// Which way its packets go.
    pub fn direction(&self) -> Direction {
        match self.side {
            Side::Protected => Direction::Outbound,
            Side::Unprotected => Direction::Inbound,
        }
    }
}

/// What was found out about a packet on its way.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    /// How it came.
    pub arrival: Arrival,
    /// What became of it; [`Fate::Live`] where it was sent.
    pub fate: Fate,
    /// The stage that decided that; none where it was sent.
    pub ended: Option<Stage>,
    /// What the parser found.
    pub kind: PacketKind,
    /// A policy let it pass in clear.
    pub bypassed: bool,
    /// The SA that sealed or opened it, or should have.
    pub sa: Option<SaIndex>,
    /// The SPI that it came with, or got.
    pub spi: Option<u32>,
    /// Its sequence number.
    pub sequence: Option<u64>,
    /// Where it was too big: the largest IP packet that would have gone, in bytes.
    pub limit: Option<u16>,
    /// The MAC address it went to.
    pub next_hop: Option<[u8; 6]>,
    /// Addresses, protocol and ports: of the clear packet, or of the outer one where it was not opened.
    pub traffic: Option<AnyTraffic>,
    /// Whether [`Record::left`] begins with an Ethernet header, or else with the IP header.
    pub is_framed: bool,
    /// It would not take the VLAN tags of the port it leaves by.
    lacks_room: bool,
}

impl Note {
    fn new(arrival: Arrival) -> Self {
        Self {
            arrival,
            fate: Fate::Live,
            ended: None,
            kind: PacketKind::Other,
            bypassed: false,
            sa: None,
            spi: None,
            sequence: None,
            limit: None,
            next_hop: None,
            traffic: None,
            is_framed: false,
            lacks_room: false,
        }
    }

    /// Whether the packet was still on its way when `stage` ended. `stage` is one that packets of its direction go through.
    fn passed(&self, stage: Stage) -> bool {
        self.ended.is_none_or(|ended| {
            let order = order(self.arrival.direction());
            let place = |wanted| order.iter().position(|stage| *stage == wanted);
            place(ended) > place(stage)
        })
    }

    /// Whether there is a sealed packet where clear text came in, or a clear one where ESP did, or what passes in clear is
    /// ready to leave: what [`Record::left`] holds.
    fn has_left(&self) -> bool {
        match (self.bypassed, self.arrival.direction()) {
            (true, _) => self.passed(Stage::Route),
            (false, Direction::Outbound) => self.passed(Stage::Aead),
            (false, Direction::Inbound) => self.passed(Stage::Header),
        }
    }
}

/// The stages that packets of a direction go through, in order. What passes in clear is let through by those of ESP.
pub const fn order(direction: Direction) -> &'static [Stage] {
    match direction {
        Direction::Outbound => &[
            Stage::Rx,
            Stage::Parse,
            Stage::Classify,
            Stage::Policy,
            Stage::Sequence,
            Stage::Header,
            Stage::Aead,
            Stage::Route,
            Stage::Count,
            Stage::Tx,
        ],
        Direction::Inbound => &[
            Stage::Rx,
            Stage::Parse,
            Stage::Classify,
            Stage::SaLookup,
            Stage::Sequence,
            Stage::Aead,
            Stage::Header,
            Stage::Policy,
            Stage::Route,
            Stage::Count,
            Stage::Tx,
        ],
    }
}

/// Bytes of a packet.
pub struct Form {
    bytes: Box<[u8]>,
    kept: usize,
    /// How long the packet was, in bytes; 0 where there was none.
    pub len: usize,
}

impl Form {
    fn new() -> Self {
        Self {
            // Not 0, which the system would give memory for only once it is written: by a worker.
            bytes: vec![0xa5; ROOM].into(),
            kept: 0,
            len: 0,
        }
    }

    fn clear(&mut self) {
        self.kept = 0;
        self.len = 0;
    }

    fn set(&mut self, data: &[u8]) {
        self.len = data.len();
        self.kept = data.len().min(self.bytes.len());
        let (to, from) = (self.bytes.get_mut(..self.kept), data.get(..self.kept));
        if let (Some(to), Some(from)) = (to, from) {
            to.copy_from_slice(from);
        }
    }

    /// Its first [`ROOM`] bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.kept).unwrap_or_default()
    }
}

/// One packet that was followed.
pub struct Record {
    /// What was found out about it.
    pub note: Note,
    /// The frame that came in.
    pub received: Form,
    /// What became of it: sealed, opened, or as it left in clear; empty where it did not come to that.
    pub left: Form,
}

impl Record {
    fn new() -> Self {
        Self {
            note: Note::new(Arrival {
                ingress: PortIndex(0),
                egress: PortIndex(0),
                side: Side::Protected,
                origin: Origin::Wire,
                core: 0,
                tsc: 0,
            }),
            received: Form::new(),
            left: Form::new(),
        }
    }

    fn begin(&mut self, arrival: Arrival, frame: &[u8]) {
        self.note = Note::new(arrival);
        self.received.set(frame);
        self.left.clear();
    }
}

/// Room for the packets of one burst, all of which are looked at.
pub struct Scratch {
    records: Vec<Record>,
    /// Packets of the present burst.
    len: usize,
}

/// What is followed now, and what was. Published to workers; made, and freed, by the control side.
pub struct Trace {
    filter: Filter,
    /// Packets that are yet to be followed; 0 and less where there are no more.
    left: AtomicI64,
    missed: AtomicU64,
    free: ArrayQueue<Box<Record>>,
    full: ArrayQueue<Box<Record>>,
    scratches: ArrayQueue<Box<Scratch>>,
}

impl Trace {
    /// Follows the next `count` packets that `filter` means. At most `records` of them may wait to be read, and `workers`
    /// workers are at work.
    pub fn new(filter: Filter, count: u32, records: usize, workers: usize) -> Self {
        let (records, workers) = (records.max(1), workers.max(1));
        let trace = Self {
            filter,
            left: AtomicI64::new(count.into()),
            missed: AtomicU64::new(0),
            free: ArrayQueue::new(records),
            full: ArrayQueue::new(records),
            scratches: ArrayQueue::new(workers),
        };
        for _ in 0..records {
            // There is room, here and below.
            let _ = trace.free.push(Box::new(Record::new()));
        }
        for _ in 0..workers {
            let records = (0..BURST).map(|_| Record::new()).collect();
            let _ = trace.scratches.push(Box::new(Scratch { records, len: 0 }));
        }
        trace
    }

    /// Takes the oldest record that waits; to be given back.
    pub fn take(&self) -> Option<Box<Record>> {
        self.full.pop()
    }

    /// Gives a record back that was read.
    pub fn give_back(&self, record: Box<Record>) {
        let _ = self.free.push(record);
    }

    /// Follows no more packets.
    pub fn stop(&self) {
        self.left.store(0, Ordering::Release);
    }

    /// How many packets are yet to be followed.
    pub fn left(&self) -> u32 {
        u32::try_from(self.left.load(Ordering::Acquire).max(0)).unwrap_or(u32::MAX)
    }

    /// Packets that the filter meant and for which no record was free.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Whether nothing will follow what waits now: what was asked for is there, or it was stopped, and no worker has a burst
    /// in work that it began before.
    pub fn is_over(&self) -> bool {
        // In this order: who is still to put a record there holds a scratch from before `left` became 0.
        self.left() == 0 && self.scratches.is_full()
    }

    /// As [`super::stages::process_burst`], for a burst that the trace may want packets of: with what is to be handed to
    /// [`Self::finish`] once it is known what became of them. `None`, and nothing done, where it wants none.
    ///
    /// Packets that go on are to get `tags` bytes of VLAN tags.
    pub fn follow_burst<B: PacketBuf, P: Probe>(
        &self,
        arrival: Arrival,
        (packets, metas): (&mut [B], &mut [PacketMeta]),
        (view, tags): (View<'_>, usize),
        probe: &mut P,
    ) -> Option<Box<Scratch>> {
        let mut scratch = self.begin(arrival, packets)?;
        let mut probe = NotingProbe {
            inner: probe,
            scratch: &mut scratch,
        };
        let sorted = sort_burst(packets, metas, view, &mut probe);
        note_sorted(probe.scratch, packets, metas);
        carry_burst(packets, metas, sorted, view, &mut probe);
        note_carried(&mut scratch, (packets, metas), view, tags);
        Some(scratch)
    }

    /// Room for a burst, where it may have packets that are to be followed.
    fn begin<B: PacketBuf>(&self, arrival: Arrival, packets: &[B]) -> Option<Box<Scratch>> {
        if !self.filter.may_match(arrival) {
            return None;
        }
        let mut scratch = self.scratches.pop()?;
        // After it was taken, as `is_over` has it.
        if self.left() == 0 {
            let _ = self.scratches.push(scratch);
            return None;
        }
        scratch.len = packets.len().min(scratch.records.len());
        for (record, packet) in scratch.records.iter_mut().zip(packets) {
            record.begin(arrival, packet.data());
        }
        Some(scratch)
    }

    /// Notes what became of the packets of a burst in the end, hands on those that are meant, and takes its room back. `sent`
    /// of those that went on were sent, the first of those that had room for their tags; `ended` are the others, in order.
    pub fn finish(&self, mut scratch: Box<Scratch>, sent: usize, ended: &[PacketMeta]) {
        let mut ended = ended.iter();
        let mut left_to_send = sent;
        for record in scratch.held() {
            let note = &mut record.note;
            if note.fate != Fate::Live {
                if let Some(meta) = ended.next() {
                    note.fate = meta.fate;
                }
            } else if note.lacks_room {
                note.end(DropReason::NoRoom, Stage::Tx);
            } else if left_to_send == 0 {
                note.end(DropReason::TxFull, Stage::Tx);
            } else {
                left_to_send = left_to_send.saturating_sub(1);
            }
            self.offer(record);
        }
        let _ = self.scratches.push(scratch);
    }

    /// Hands on frames that were dropped for `reason` before any stage.
    #[cold]
    pub fn refuse_burst<B: PacketBuf>(&self, arrival: Arrival, packets: &[B], reason: DropReason) {
        let Some(mut scratch) = self.begin(arrival, packets) else {
            return;
        };
        for record in scratch.held() {
            record.note.end(reason, Stage::Rx);
            self.offer(record);
        }
        let _ = self.scratches.push(scratch);
    }

    /// Exchanges a record for a free one and has the control side read it, where the packet is meant.
    fn offer(&self, record: &mut Record) {
        let is_meant = self.filter.is_of(&record.note) && self.filter.is_ended(record.note.fate);
        if !is_meant || self.left() == 0 {
            return;
        }
        let Some(mut free) = self.free.pop() else {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if self.left.fetch_sub(1, Ordering::AcqRel) <= 0 {
            let _ = self.free.push(free);
            return;
        }
        std::mem::swap(record, &mut *free);
        // There is room for all there are.
        let _ = self.full.push(free);
    }
}

impl Note {
    fn end(&mut self, reason: DropReason, stage: Stage) {
        self.fate = Fate::Dropped(reason);
        self.ended = Some(stage);
    }
}

impl Scratch {
    /// The records of the present burst.
    fn held(&mut self) -> impl Iterator<Item = &mut Record> {
        self.records.iter_mut().take(self.len)
    }
}

/// Notes what sorted packets are. On entry they are as [`sort_burst`] leaves them.
fn note_sorted<B: PacketBuf>(scratch: &mut Scratch, packets: &[B], metas: &[PacketMeta]) {
    for ((record, packet), meta) in scratch.held().zip(packets).zip(metas) {
        let note = &mut record.note;
        note.kind = meta.kind;
        // What the parser refused may still have its Ethernet header on.
        if note.ended == Some(Stage::Parse) {
            continue;
        }
        let data = packet.data();
        note.traffic = traffic_of(data, meta.kind, note.arrival.direction());
        if note.arrival.side == Side::Unprotected && meta.esp_offset > 0 {
            let header = data.get(usize::from(meta.esp_offset)..);
            let header = header.and_then(|data| EspHeader::ref_from_prefix(data).ok());
            note.spi = header.map(|(header, _)| header.spi.get());
        }
    }
}

/// Notes how far carried packets came. On entry they are as [`carry_burst`] leaves them; those that go on
/// are to get `tags` bytes of VLAN tags.
fn note_carried<B: PacketBuf>(
    scratch: &mut Scratch,
    (packets, metas): (&[B], &[PacketMeta]),
    view: View<'_>,
    tags: usize,
) {
    for ((record, packet), meta) in scratch.held().zip(packets).zip(metas) {
        let Record { note, left, .. } = record;
        note.fate = meta.fate;
        note.sa = meta.sa;
        note.lacks_room = packet.headroom() < tags;
        if matches!(
            meta.fate,
            Fate::Dropped(DropReason::TooBig) | Fate::Aside(Aside::CutAndSeal | Aside::CutAndSend)
        ) {
            note.limit = Some(low_16(meta.seq));
        }
        if note.arrival.side == Side::Protected
            && let Some(sa) = meta.sa.and_then(|slot| view.sad.outbound(slot))
        {
            note.spi = Some(sa.spi());
        }
        if note.passed(Stage::Route)
            && let Some(hop) = view.tables.next_hop(meta.next_hop)
        {
            note.next_hop = hop.macs.first_chunk().copied();
        }
        if note.has_left() {
            let data = packet.data();
            left.set(data);
            note.is_framed = note.passed(Stage::Route);
            if note.arrival.side == Side::Unprotected && !note.bypassed {
                let at = if note.is_framed { ether::HEADER_LEN } else { 0 };
                let inner = data.get(at..).unwrap_or_default();
                note.traffic = traffic_of(inner, meta.kind, Direction::Inbound);
            }
        }
    }
}

/// Addresses, protocol and ports of an IP packet.
fn traffic_of(data: &[u8], kind: PacketKind, direction: Direction) -> Option<AnyTraffic> {
    match kind {
        PacketKind::Ipv4 => Traffic::of_v4(data, direction).map(AnyTraffic::V4),
        PacketKind::Ipv6 => Traffic::of_v6(data, direction).map(AnyTraffic::V6),
        PacketKind::Other => None,
    }
}

/// Notes at which stage each packet ends, and has another probe measure.
struct NotingProbe<'t, P> {
    inner: &'t mut P,
    scratch: &'t mut Scratch,
}

impl<P: Probe> Probe for NotingProbe<'_, P> {
    fn begin(&mut self) {
        self.inner.begin();
    }

    fn mark(&mut self, stage: Stage) {
        self.inner.mark(stage);
    }

    fn passed(&mut self, stage: Stage, metas: &[PacketMeta]) {
        for (record, meta) in self.scratch.held().zip(metas) {
            let note = &mut record.note;
            if note.ended.is_some() {
                continue;
            }
            if !meta.goes_on() {
                note.ended = Some(stage);
            }
            note.bypassed |= meta.fate == Fate::Bypassed;
            if stage == Stage::Sequence && meta.is_live() {
                note.sequence = Some(meta.seq);
            }
        }
        self.inner.mark(stage);
    }
}
