//! A packet's way through the stages, step by step and with nothing lasting: for whoever wants to know what would become of it.
//!
//! The stages are the packet path's own, in its order ([`super::stages`]), on a copy of the packet. Left out is what would be
//! noticed afterwards: no sequence number is taken, no window moved, no peer noted, nothing counted on SAs, and nothing sealed,
//! for that would use a number. This is for the control side: it allocates, and a worker never comes here.

use zerocopy::FromBytes;

use crate::buf::{PacketBuf, TestBuf};
use crate::crypto::aead::{ICV_LEN, IV_LEN};
use crate::drop::{Aside, DropReason, Fate, PuntReason};
use crate::ids::SaIndex;
use crate::ipsec::esp_in::{self, address_pair};
use crate::ipsec::esp_out::{SealJobs, esp_encapsulate_burst};
use crate::ipsec::flow_cache::FlowCache;
use crate::ipsec::sa::{InboundSa, OutboundSa};
use crate::ipsec::sa_counters::WorkerId;
use crate::ipsec::sad::{BurstSas, SadView};
use crate::meta::PacketMeta;
use crate::policy::model::Side;
use crate::policy::tables::{PortTable, Tables};
use crate::wire::esp::EspHeader;
use crate::wire::ip::protocol;
use crate::wire::{esp, ether};
use crate::worker::counters::DirectionCounters;
use crate::worker::cut::Cut;
use crate::worker::reassembly::Reassembly;
use crate::worker::stages::View;
use crate::worker::{classify, fit, forward, parse};

/// How often what was made of a packet is taken once more, as in a worker.
const MOST_ROUNDS: usize = 8;

/// Where a packet is rehearsed.
#[derive(Clone, Copy)]
pub struct Scene<'g> {
    /// The published tables.
    pub tables: &'g Tables,
    /// The SAs.
    pub sad: SadView<'g>,
    /// The port it comes in by.
    pub ingress: &'g PortTable,
    /// The port it leaves by.
    pub egress: &'g PortTable,
    /// Whether packets wait for MAC addresses behind `egress`.
    pub waits: bool,
}

/// A step on the way, named by what it finds out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The headers are checked.
    Parse,
    /// What it is to the gateway.
    Classify,
    /// By SPI, the SA that is to open it.
    FindSa,
    /// Its sequence number, and whether it is new.
    Replay,
    /// Whether it is authentic.
    Open,
    /// The packet inside.
    Decapsulate,
    /// Whether its SA may carry it.
    Admit,
    /// Policy, SA, its next hop, size, TTL: everything before a sequence number.
    Protect,
    /// The next sequence number.
    Number,
    /// Headers and trailer of ESP.
    Encapsulate,
    /// Next hop, size, TTL of what is opened or in clear.
    Route,
    /// The Ethernet header, and whether the frame is to be cut.
    Link,
}

/// A packet after a step.
pub struct Moment {
    /// The step.
    pub step: Step,
    /// What is known of it.
    pub meta: PacketMeta,
    /// Its bytes. What was not authentic is still ciphertext, or of no meaning.
    pub packet: Vec<u8>,
}

/// The way of one packet.
pub struct Passage {
    /// After each step that it came to.
    pub moments: Vec<Moment>,
    /// What is known of it at the end.
    pub meta: PacketMeta,
    /// What the gateway made of it, where others stand for it: each taken as if it had been received, or sent as it is and
    /// without moments.
    pub pieces: Vec<Self>,
}

impl Passage {
    /// The packet after `step`, where it came to that.
    pub fn after(&self, step: Step) -> Option<&Moment> {
        self.moments.iter().find(|moment| moment.step == step)
    }

    /// Where it stands at the end.
    pub fn fate(&self) -> Fate {
        self.meta.fate
    }
}

/// Rehearses what comes of `frame`, as the port would receive it. Returns its way, and what a worker's counters of its direction
/// would rise by.
pub fn rehearse(frame: &[u8], scene: Scene<'_>) -> (Passage, DirectionCounters) {
    let rehearsal = Rehearsal::new(scene);
    rehearsal.counters.received.add(1);
    let passage = rehearsal.receive(frame, 0);
    (passage, rehearsal.counters)
}

/// As [`rehearse`], as if the sequence number of a sealed packet had never been received: for one that was captured, and that
/// has passed already.
pub fn rehearse_as_new(frame: &[u8], scene: Scene<'_>) -> (Passage, DirectionCounters) {
    let rehearsal = Rehearsal {
        as_new: true,
        ..Rehearsal::new(scene)
    };
    rehearsal.counters.received.add(1);
    let passage = rehearsal.receive(frame, 0);
    (passage, rehearsal.counters)
}

/// As [`rehearse`], of the IP packet `inner` as if the SA in `slot` had just opened it.
pub fn rehearse_opened(
    inner: &[u8],
    slot: SaIndex,
    scene: Scene<'_>,
) -> (Passage, DirectionCounters) {
    let rehearsal = Rehearsal::new(scene);
    rehearsal.counters.received.add(1);
    let mut play = Play::new(&opened(inner), &rehearsal);
    let mut sas = BurstSas::default();
    play.metas[0].sa = Some(slot);
    let sa = scene.sad.inbound(slot);
    if let Some(place) = sas.places(1).first_mut() {
        *place = sa;
    }
    match sa {
        None => play.metas[0].kill(DropReason::SaDown),
        Some(sa) if sa.is_stopped() => play.metas[0].kill(DropReason::SaExpired),
        Some(_) => {}
    }
    play.note(Step::FindSa);
    play.take_out(&sas);
    let passage = play.end(0);
    (passage, rehearsal.counters)
}

/// What is between the ESP header and the ICV when it was opened, those included.
fn opened(inner: &[u8]) -> Vec<u8> {
    let next_header = match inner.first().map(|first| first >> 4) {
        Some(4) => protocol::IPV4,
        _ => protocol::IPV6,
    };
    let mut bytes = vec![0; esp::HEADER_LEN.saturating_add(IV_LEN)];
    bytes.extend_from_slice(inner);
    let padding = esp::pad_len(inner.len());
    bytes.extend((1..=u8::MAX).take(padding));
    bytes.push(u8::try_from(padding).unwrap_or(0));
    bytes.push(next_header);
    bytes.extend([0; ICV_LEN]);
    bytes
}

/// What one rehearsal goes by.
struct Rehearsal<'g> {
    scene: Scene<'g>,
    /// Every sequence number is taken for a new one.
    as_new: bool,
    worker: WorkerId,
    flows: FlowCache,
    counters: DirectionCounters,
}

impl<'g> Rehearsal<'g> {
    fn new(scene: Scene<'g>) -> Self {
        Self {
            scene,
            as_new: false,
            worker: WorkerId::new(),
            flows: FlowCache::new(),
            counters: DirectionCounters::default(),
        }
    }

    fn view(&self) -> View<'_> {
        View {
            tables: self.scene.tables,
            sad: self.scene.sad,
            ingress: self.scene.ingress,
            egress: self.scene.egress,
            worker: &self.worker,
            flows: &self.flows,
        }
    }

    fn receive(&self, frame: &[u8], round: usize) -> Passage {
        let view = self.view();
        let mut play = Play::new(frame, self);
        parse::parse_burst(&mut play.packets, &mut play.metas, view.ingress);
        play.note(Step::Parse);
        classify::classify_burst(&play.packets, &mut play.metas, view);
        play.note(Step::Classify);
        if play.metas[0].goes_on() {
            match view.ingress.side {
                Side::Unprotected => play.open(),
                Side::Protected => play.seal(),
            }
            if view.tables.spd.has_bypass() {
                self.counters.add_bypassed(&play.metas);
            }
        }
        play.end(round)
    }
}

/// One packet on its way: a burst of one.
struct Play<'r, 'g> {
    rehearsal: &'r Rehearsal<'g>,
    packets: [TestBuf; 1],
    metas: [PacketMeta; 1],
    moments: Vec<Moment>,
}

impl<'r, 'g> Play<'r, 'g> {
    fn new(bytes: &[u8], rehearsal: &'r Rehearsal<'g>) -> Self {
        Self {
            rehearsal,
            packets: [TestBuf::new(bytes)],
            metas: [PacketMeta::NEW],
            moments: Vec::new(),
        }
    }

    fn note(&mut self, step: Step) {
        self.moments.push(Moment {
            step,
            meta: self.metas[0],
            packet: self.packets[0].data().to_vec(),
        });
    }

    /// As `open_burst` of the stages.
    fn open(&mut self) {
        let view = self.rehearsal.view();
        let mut sas = BurstSas::default();
        let spis = &view.tables.spis;
        if self.metas[0].is_live() {
            esp_in::sad_lookup_burst(&self.packets, &mut self.metas, spis, view.sad, &mut sas);
            self.note(Step::FindSa);
        }
        if self.metas[0].is_live() {
            esp_in::replay_check_burst(&self.packets, &mut self.metas, &sas);
            self.renew(&sas);
            self.note(Step::Replay);
        }
        if self.metas[0].is_live() {
            esp_in::esp_open_burst(&mut self.packets, &mut self.metas, &sas);
            self.note(Step::Open);
        }
        // Here a worker moves the window, which of one packet says what the check said, and notes the peer.
        self.take_out(&sas);
    }

    /// Takes a number that was refused for a new one, where all are.
    fn renew(&mut self, sas: &BurstSas<'_, InboundSa>) {
        let refused = Fate::Dropped(DropReason::Replayed) == self.metas[0].fate
            || Fate::Dropped(DropReason::TooOld) == self.metas[0].fate;
        let sa = sas.as_slice().first().copied().flatten();
        let header = self.packets[0]
            .data()
            .get(usize::from(self.metas[0].esp_offset)..)
            .and_then(|payload| EspHeader::ref_from_prefix(payload).ok());
        if let (true, Some(sa), Some((header, _))) = (refused && self.rehearsal.as_new, sa, header)
        {
            let low = header.seq.get();
            let seq = match sa.identity().esn {
                true => sa.window().rebuild(low, sa.window().top()),
                false => Some(low.into()),
            };
            if let Some(seq) = seq {
                self.metas[0].seq = seq;
                self.metas[0].fate = Fate::Live;
            }
        }
    }

    /// What follows once the SA has opened it, or where it passes in clear.
    fn take_out(&mut self, sas: &BurstSas<'_, InboundSa>) {
        let view = self.rehearsal.view();
        if self.metas[0].is_live() {
            esp_in::esp_decapsulate_burst(&mut self.packets, &mut self.metas);
            self.note(Step::Decapsulate);
        }
        if self.metas[0].is_live() {
            let policies = (&*view.tables.spd, view.flows);
            esp_in::spd_check_inbound_burst(&self.packets, &mut self.metas, sas, policies);
            self.note(Step::Admit);
        }
        let mut cuts = false;
        if self.metas[0].is_live() {
            cuts = forward::route_burst(&mut self.packets, &mut self.metas, view);
            self.note(Step::Route);
        }
        self.leave(cuts, None);
    }

    /// As `seal_burst` of the stages.
    fn seal(&mut self) {
        let view = self.rehearsal.view();
        let mut sas = BurstSas::default();
        let (packets, metas) = (&mut self.packets, &mut self.metas);
        let cuts = forward::spd_lookup_burst(packets, metas, view, &mut sas);
        self.note(Step::Protect);
        if self.metas[0].is_live() {
            let sa = sas.as_slice().first().copied().flatten();
            match sa.ok_or(DropReason::SaDown).and_then(|sa| sa.seq().peek()) {
                Ok(seq) => self.metas[0].seq = seq,
                Err(reason) => self.metas[0].kill(reason),
            }
            self.note(Step::Number);
        }
        if self.metas[0].is_live() {
            let mut jobs = SealJobs::new();
            esp_encapsulate_burst(&mut self.packets, &mut self.metas, &sas, &mut jobs);
            // Not sealed: the number is not ours.
            drop(jobs);
            self.note(Step::Encapsulate);
        }
        self.leave(cuts, Some(&sas));
    }

    /// What is the same in both directions. What passes in clear is routed here.
    fn leave(&mut self, mut cuts: bool, sas: Option<&BurstSas<'_, OutboundSa>>) {
        let view = self.rehearsal.view();
        if self.metas[0].fate == Fate::Bypassed {
            cuts |= forward::route_bypassed_burst(&mut self.packets, &mut self.metas, view);
            self.note(Step::Route);
        }
        if !self.metas[0].is_live() {
            return;
        }
        forward::link_header_burst(&mut self.packets, &mut self.metas, view.tables);
        if cuts {
            fit::cut_burst(&self.packets, &mut self.metas, view.tables, sas);
        }
        self.note(Step::Link);
    }

    /// What a worker does with what ended.
    fn end(mut self, round: usize) -> Passage {
        let counters = &self.rehearsal.counters;
        let mut pieces = Vec::new();
        match self.metas[0].fate {
            Fate::Live => counters.sent.add(1),
            Fate::Aside(Aside::CutAndSeal) => match self.cut_and_take(round) {
                Ok(made) => pieces = made,
                Err(reason) => self.metas[0].kill(reason),
            },
            Fate::Aside(Aside::CutAndSend) => match self.cut_and_send() {
                Ok(made) => pieces = made,
                Err(reason) => self.metas[0].kill(reason),
            },
            Fate::Aside(Aside::Reassemble) => pieces = self.hold(round),
            Fate::Dropped(DropReason::NoNeighbour) if self.waits() => {
                self.metas[0].punt(PuntReason::Unresolved);
            }
            _ => {}
        }
        counters.add_fates(&self.metas);
        Passage {
            moments: self.moments,
            meta: self.metas[0],
            pieces,
        }
    }

    /// Whether it waits for a MAC address: as in `worker/host.rs`.
    fn waits(&self) -> bool {
        let Scene { ingress, waits, .. } = self.rehearsal.scene;
        let is_sealed = ingress.side == Side::Protected && self.metas[0].sa.is_some();
        waits && (is_sealed || address_pair(self.packets[0].data(), &self.metas[0]).is_some())
    }

    fn cut_and_take(&mut self, round: usize) -> Result<Vec<Passage>, DropReason> {
        if !self.packets[0].uncover(ether::HEADER_LEN) {
            return Err(DropReason::NoBuffer);
        }
        let pieces = self.cut()?;
        let counters = &self.rehearsal.counters;
        counters.add_aside(Aside::CutAndSeal, 1);
        counters.made.add(pieces.len() as u64);
        if round >= MOST_ROUNDS {
            counters.add_drops(DropReason::NoBuffer, pieces.len() as u64);
            return Ok(Vec::new());
        }
        let take = |piece: &TestBuf| {
            let next = round.saturating_add(1);
            self.rehearsal.receive(piece.data(), next)
        };
        Ok(pieces.iter().map(take).collect())
    }

    fn cut_and_send(&mut self) -> Result<Vec<Passage>, DropReason> {
        let pieces = self.cut()?;
        let counters = &self.rehearsal.counters;
        counters.add_aside(Aside::CutAndSend, 1);
        counters.made.add(pieces.len() as u64);
        counters.sent.add(pieces.len() as u64);
        let sent = |_: &TestBuf| Passage {
            moments: Vec::new(),
            meta: PacketMeta {
                fate: Fate::Live,
                ..self.metas[0]
            },
            pieces: Vec::new(),
        };
        Ok(pieces.iter().map(sent).collect())
    }

    /// The frame in fragments of as much as goes.
    fn cut(&self) -> Result<Vec<TestBuf>, DropReason> {
        let frame = self.packets[0].data();
        let (link, packet) = frame.split_first_chunk().ok_or(DropReason::Runt)?;
        let cut = usize::try_from(self.metas[0].seq)
            .ok()
            .and_then(|limit| Cut::new(packet, limit))
            .ok_or(DropReason::TooBig)?;
        let empty = || TestBuf::with_room(&[], TestBuf::HEADROOM, frame.len());
        let mut pieces: Vec<_> = std::iter::repeat_with(empty).take(cut.pieces()).collect();
        cut.write(link, 0, &mut pieces).ok_or(DropReason::NoRoom)?;
        Ok(pieces)
    }

    /// As if no other fragment of its packet was there. One that needs no others is taken once more.
    fn hold(&mut self, round: usize) -> Vec<Passage> {
        let counters = &self.rehearsal.counters;
        // Of its own: what is refused is counted with all else.
        let own = DirectionCounters::default();
        let mut reassembly = Reassembly::new(u64::MAX);
        if let Some(whole) = reassembly.take(self.packets[0].clone(), 0, &own)
            && round < MOST_ROUNDS
        {
            counters.add_aside(Aside::Reassemble, 1);
            counters.made.add(1);
            let next = round.saturating_add(1);
            return vec![self.rehearsal.receive(whole.data(), next)];
        }
        let mut reasons = DropReason::ALL.iter().zip(&own.drops);
        match reasons.find(|(_, counter)| counter.get() > 0) {
            Some((reason, _)) => self.metas[0].kill(*reason),
            None => counters.held.set(reassembly.held() as u64),
        }
        Vec::new()
    }
}
