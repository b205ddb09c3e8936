//! Two gateways, west and east, each a worker with two lanes over ring ports whose outer ends the test holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use simplon::buf::PacketBuf;
use simplon::control::lifetimes;
use simplon::crypto::aead::{self, Aad, AeadKey, ICV_LEN, SealJob, seal_burst};
use simplon::dpdk::{Burst, Mempool, Queues, RxQueue, TxQueue};
use simplon::drop::{Aside, DropReason, Fate, PuntReason};
use simplon::ids::{PortIndex, SaIndex};
use simplon::ipsec::sad::Sad;
use simplon::ipsec::traffic::Direction;
use simplon::policy::compile::{Topology, compile, endpoint_sets, inbound_sa, outbound_sa};
use simplon::policy::model::{Encapsulation, Lifetime, MacAddr, Side};
use simplon::policy::{Policy, Secrets, Source, parse, render};
use simplon::rcu::{self, Writer};
use simplon::worker::counters::WorkerCounters;
use simplon::worker::datapath::{Lane, Shared, Worker};
use simplon::worker::host::HostRings;
use simplon::worker::probe::NoProbe;
use simplon::worker::remake::Remake;
use simplon::worker::trace::{Filter, Record, Trace};

use super::packets::{ESP, UDP, framed, ip, udp};
use super::sites::{self, Site};

/// For the time that fragments wait: about what processors have.
const TSC_HZ: u64 = 2_000_000_000;
/// Places in the ring to the control side.
pub(crate) const PUNTS: usize = 100;
/// Packets that a ring between two ports takes.
pub(crate) const RING: usize = 255;

/// Packets of one burst that may be followed, those that are made of it included.
const RECORDS: usize = 1024;

/// The test's end of a port.
pub(crate) struct Wire<'p> {
    pub(crate) rx: RxQueue<'p>,
    pub(crate) tx: TxQueue<'p>,
}

impl<'p> Wire<'p> {
    pub(crate) fn new(mut queues: Queues<'p>) -> Self {
        Self {
            rx: queues.rx.pop().expect("one queue"),
            tx: queues.tx.pop().expect("one queue"),
        }
    }

    fn send(&mut self, pool: &Mempool<'p>, frames: &[Vec<u8>]) {
        let mut burst = Burst::new();
        for frame in frames {
            let mut mbuf = pool.alloc().expect("mbuf");
            mbuf.append(frame.len())
                .expect("room")
                .copy_from_slice(frame);
            assert!(burst.push(mbuf).is_ok(), "at most one burst");
        }
        assert_eq!(self.tx.tx_burst(&mut burst), frames.len(), "ring has room");
    }

    pub(crate) fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut burst = Burst::new();
        while self.rx.rx_burst(&mut burst) > 0 {
            frames.extend(burst.iter().map(|packet| packet.data().to_vec()));
            burst.clear();
        }
        frames
    }
}

/// What one direction has counted.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Counts {
    received: u64,
    sent: u64,
    drops: Vec<u64>,
    punts: Vec<u64>,
    asides: u64,
    made: u64,
    held: u64,
}

/// What became of a burst.
#[derive(Default, Debug)]
pub(crate) struct Outcome {
    /// Frames that left by the paired port.
    pub(crate) sent: Vec<Vec<u8>>,
    /// What the control side got.
    pub(crate) punts: Vec<(PuntReason, Vec<u8>)>,
    /// Drops by name of the reason.
    pub(crate) drops: BTreeMap<&'static str, u64>,
    /// Packets that others stand for.
    pub(crate) asides: u64,
}

impl Outcome {
    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason.name()).copied().unwrap_or(0)
    }

    pub(crate) fn all_dropped(&self) -> u64 {
        self.drops.values().sum()
    }
}

/// One gateway.
pub(crate) struct Gateway<'p> {
    pub(crate) site: Site,
    pub(crate) policy: Policy,
    pub(crate) worker: Worker<'p>,
    pub(crate) writer: Writer,
    pub(crate) pool: &'p Mempool<'p>,
    /// By side: protected, unprotected.
    pub(crate) wires: [Wire<'p>; 2],
    pub(crate) macs: [[u8; 6]; 2],
    /// Everything that any burst came to.
    pub(crate) tally: BTreeMap<String, u64>,
    trace: Option<Arc<Trace>>,
    followed: u64,
}

fn at(side: Side) -> usize {
    match side {
        Side::Protected => 0,
        Side::Unprotected => 1,
    }
}

impl<'p> Gateway<'p> {
    /// A gateway over the inner ends of two ports, with every SA but that of tunnel `down` installed.
    pub(crate) fn new(
        site: Site,
        pool: &'p Mempool<'p>,
        inside: [Queues<'p>; 2],
        macs: [[u8; 6]; 2],
        wires: [Wire<'p>; 2],
    ) -> Self {
        let text = sites::text(site);
        let path = std::path::Path::new("hostile.toml");
        let secrets = Secrets::with_environment(sites::keys());
        let policy = parse(&Source::new(path, &text), &secrets).unwrap_or_else(|errors| {
            let source = Source::new(path, &text);
            panic!("{}", render(&errors, &source, false))
        });
        let [mut lan, mut wan] = inside;
        let mut lane = |side: Side| {
            let (from, to) = match side {
                Side::Protected => (&mut lan, &mut wan),
                Side::Unprotected => (&mut wan, &mut lan),
            };
            Lane {
                rx: from.rx.pop().expect("one queue"),
                tx: to.tx.pop().expect("one queue"),
                ingress: PortIndex(at(side) as u16),
                egress: PortIndex(1 - at(side) as u16),
            }
        };
        let lanes = vec![lane(Side::Protected), lane(Side::Unprotected)];
        let (mut writer, mut readers) = rcu::domain(1);
        let shared = Arc::new(Shared {
            tables: writer.slots(1),
            trace: writer.slots(1),
            sad: Sad::new(&writer, endpoint_sets(&policy).count()),
            host: HostRings::without_host(PUNTS),
        });
        let topology = Topology {
            macs: macs.map(MacAddr).to_vec(),
        };
        let tables = Box::new(compile(&policy, &topology));
        assert!(writer.replace(&shared.tables, 0, Some(tables)).is_ok());
        let reader = readers.pop().expect("one reader");
        let counters = Arc::new(WorkerCounters::new(2));
        let worker = Worker::new(reader, shared, lanes, counters, Remake::new(pool, TSC_HZ));
        let mut gateway = Self {
            site,
            policy,
            worker,
            writer,
            pool,
            wires,
            macs,
            tally: BTreeMap::new(),
            trace: None,
            followed: 0,
        };
        for tunnel in sites::TUNNELS.iter().filter(|tunnel| tunnel.name != "down") {
            if site == Site::West || !tunnel.west_only {
                gateway.install(tunnel.name, 1, 0);
            }
        }
        gateway
    }

    /// Has the worker follow every packet from here on, and holds what it tells of each burst against the counters.
    pub(crate) fn follow(&mut self) {
        let trace = Arc::new(Trace::new(Filter::default(), u32::MAX, RECORDS, 1));
        self.trace = Some(Arc::clone(&trace));
        let slots = &self.worker.shared.trace;
        let published = self.writer.replace(slots, 0, Some(Box::new(trace)));
        assert!(published.is_ok());
    }

    /// Whether packets were followed.
    pub(crate) fn was_followed(&self) -> bool {
        self.followed > 0
    }

    /// The slot of the SAs of `tunnel`.
    pub(crate) fn slot(&self, tunnel: &str) -> SaIndex {
        endpoint_sets(&self.policy)
            .find(|(.., found, _)| found.name == tunnel)
            .map(|(slot, ..)| slot)
            .expect("a tunnel of this site")
    }

    /// Puts fresh SAs into the slot of `tunnel`: the one that seals begins at `next` with a long lease, the one that
    /// opens has seen everything up to `seen`.
    pub(crate) fn install(&mut self, tunnel: &str, next: u64, seen: u64) {
        let slot = self.slot(tunnel);
        let (_, _, tunnel, set) = endpoint_sets(&self.policy).nth(slot.index()).expect("slot");
        let seals = outbound_sa(tunnel, set, next);
        seals.seq().extend_lease(u64::MAX);
        let opens = inbound_sa(tunnel, set, seen);
        let sad = &self.worker.shared.sad;
        let index = slot.index();
        assert!(
            self.writer
                .replace(sad.outbound(), index, Some(Box::new(seals)))
                .is_ok()
        );
        assert!(
            self.writer
                .replace(sad.inbound(), index, Some(Box::new(opens)))
                .is_ok()
        );
    }

    /// As [`Self::install`], for an SA that seals and has no lease.
    pub(crate) fn install_without_lease(&mut self, tunnel: &str) {
        let slot = self.slot(tunnel);
        let (.., tunnel, set) = endpoint_sets(&self.policy).nth(slot.index()).expect("slot");
        let sa = Box::new(outbound_sa(tunnel, set, 1));
        let outbound = self.worker.shared.sad.outbound();
        assert!(
            self.writer
                .replace(outbound, slot.index(), Some(sa))
                .is_ok()
        );
    }

    pub(crate) fn extend_lease(&mut self, tunnel: &str, until: u64) {
        let slot = self.slot(tunnel).index();
        let outbound = self.worker.shared.sad.outbound();
        let sa = outbound.get_owned(&self.writer, slot).expect("installed");
        sa.seq().extend_lease(until);
    }

    /// Stops one of the SAs of `tunnel`.
    pub(crate) fn stop(&self, tunnel: &str, direction: Direction) {
        let sad = &self.worker.shared.sad;
        lifetimes::stop(sad, &self.writer, self.slot(tunnel), direction);
    }

    /// How long the SAs of `tunnel` may be used.
    pub(crate) fn lifetime(&self, tunnel: &str) -> Lifetime {
        let mut tunnels = self.policy.tunnels.iter();
        let found = tunnels.find(|found| found.name == tunnel);
        found.expect("a tunnel of this site").lifetime
    }

    /// How many packets one of the SAs of `tunnel` dropped because it was stopped.
    pub(crate) fn expired_drops(&self, tunnel: &str, direction: Direction) -> u64 {
        let (sad, at) = (&self.worker.shared.sad, self.slot(tunnel).index());
        let counters = match direction {
            Direction::Outbound => {
                let sa = sad.outbound().get_owned(&self.writer, at);
                sa.expect("installed").counters()
            }
            Direction::Inbound => {
                let sa = sad.inbound().get_owned(&self.writer, at);
                sa.expect("installed").counters()
            }
        };
        counters.drops(DropReason::SaExpired)
    }

    /// Takes the next sequence number of the SA that seals for `tunnel`.
    pub(crate) fn take_seq(&mut self, tunnel: &str) -> u64 {
        let slot = self.slot(tunnel).index();
        let outbound = self.worker.shared.sad.outbound();
        let sa = outbound.get_owned(&self.writer, slot).expect("installed");
        let run = sa.seq().take(1);
        assert_eq!(run.count, 1);
        run.first
    }

    /// Seals `text` (payload, padding, trailer) by hand for `tunnel`, in a frame for `mac`.
    pub(crate) fn hand_seal(&self, tunnel: &str, seq: u64, text: &[u8], mac: [u8; 6]) -> Vec<u8> {
        let slot = self.slot(tunnel);
        let (.., set) = endpoint_sets(&self.policy).nth(slot.index()).expect("slot");
        let key = AeadKey::new(&set.outbound.key);
        let spi = set.outbound.spi.get();
        let mut sealed = text.to_vec();
        sealed.extend([0; ICV_LEN]);
        seal_burst(&mut [SealJob {
            key: key.get(),
            nonce: aead::nonce(set.outbound.key.salt(), seq.to_be_bytes()),
            aad: if set.outbound.esn {
                Aad::extended(spi, seq)
            } else {
                Aad::short(spi, seq as u32)
            },
            text: &mut sealed,
            sealed: false,
        }]);
        let mut esp = spi.to_be_bytes().to_vec();
        esp.extend((seq as u32).to_be_bytes());
        esp.extend(seq.to_be_bytes());
        esp.extend(sealed);
        let (local, remote) = (set.local.to_string(), set.remote.to_string());
        let packet = match set.encapsulation {
            Encapsulation::None => ip(&local, &remote, ESP, &esp),
            Encapsulation::Udp { .. } => ip(&local, &remote, UDP, &udp(4500, 4500, &esp)),
        };
        framed(mac, &packet)
    }

    fn counts(&self, side: Side) -> Counts {
        let counters = self.worker.counters.direction(side);
        Counts {
            received: counters.received.get(),
            sent: counters.sent.get(),
            drops: counters.drops.iter().map(|counter| counter.get()).collect(),
            punts: counters.punts.iter().map(|counter| counter.get()).collect(),
            asides: counters.asides.iter().map(|counter| counter.get()).sum(),
            made: counters.made.get(),
            held: counters.held.get(),
        }
    }

    /// Lets a burst come in on `side` without polling.
    pub(crate) fn send_only(&mut self, side: Side, frames: &[Vec<u8>]) {
        self.wires[at(side)].send(self.pool, frames);
    }

    /// How many packets from `side` were ever dropped for `reason`.
    pub(crate) fn drops(&self, side: Side, reason: DropReason) -> u64 {
        self.worker.counters.direction(side).drops[reason.index()].get()
    }

    /// Takes one burst that comes in on `side` to its end, and checks what has to hold whatever is in it.
    pub(crate) fn run(&mut self, side: Side, frames: &[Vec<u8>]) -> Outcome {
        let other = match side {
            Side::Protected => Side::Unprotected,
            Side::Unprotected => Side::Protected,
        };
        let (before, quiet) = (self.counts(side), self.counts(other));
        // What fragments wait with at the other gateway, and nothing else.
        let elsewhere = u64::from(self.pool.in_use()) - self.held();
        self.wires[at(side)].send(self.pool, frames);
        self.read_records(|_| {});
        assert_eq!(self.worker.poll_once(&mut NoProbe), frames.len());
        let after = self.counts(side);
        let mut outcome = Outcome {
            sent: self.wires[at(other)].receive(),
            ..Outcome::default()
        };
        assert!(
            self.wires[at(side)].receive().is_empty(),
            "nothing goes back"
        );
        assert_eq!(self.counts(other), quiet, "the other direction is quiet");
        while let Some(punted) = self.worker.shared.host.punts.pop() {
            assert_eq!(usize::from(punted.port.0), at(side));
            let bytes = punted.mbuf.data().to_vec();
            outcome.punts.push((punted.reason, bytes));
        }
        assert_eq!(
            u64::from(self.pool.in_use()),
            self.held() + elsewhere,
            "every mbuf is home"
        );
        self.compare(&before, &after, frames.len(), &mut outcome);
        if self.trace.is_some() {
            self.compare_records(side, frames, &outcome);
        }
        outcome
    }

    fn read_records(&self, mut read: impl FnMut(&Record)) {
        let Some(trace) = &self.trace else { return };
        while let Some(record) = trace.take() {
            read(&record);
            trace.give_back(record);
        }
    }

    /// Records of a burst tell what the counters and the wires do.
    fn compare_records(&mut self, side: Side, frames: &[Vec<u8>], outcome: &Outcome) {
        let (mut sent, mut punts) = (Vec::new(), 0);
        let (mut drops, mut received) = (BTreeMap::new(), Vec::new());
        let mut cuts = false;
        self.read_records(|record| {
            assert_eq!(record.note.arrival.side, side);
            received.push(record.received.bytes().to_vec());
            match record.note.fate {
                Fate::Live => sent.push(record.left.bytes().to_vec()),
                Fate::Dropped(reason) => *drops.entry(reason.name()).or_default() += 1,
                Fate::Punted(_) => punts += 1,
                Fate::Aside(reason) => cuts |= reason == Aside::CutAndSend,
                Fate::Bypassed => panic!("neither sent nor dropped"),
            }
            assert_eq!(
                record.note.ended.is_none(),
                record.note.fate == Fate::Live,
                "{:?}",
                record.note
            );
        });
        self.followed += received.len() as u64;
        assert_eq!(&received[..frames.len()], frames, "as they came");
        assert_eq!(punts, outcome.punts.len());
        // Fragments that wait are no longer there to be told of, and pieces are sent as they are cut.
        let of_fragments = |reason: &&str| reason.starts_with("fragment-");
        let counted = outcome.drops.iter();
        let counted: BTreeMap<_, _> = counted
            .filter(|(reason, _)| !of_fragments(reason))
            .map(|(reason, count)| (*reason, *count))
            .collect();
        assert_eq!(drops, counted);
        if !cuts {
            assert_eq!(sent, outcome.sent);
        }
        let trace = self.trace.as_ref().expect("followed");
        assert_eq!(trace.missed(), 0);
    }

    /// Fragments that wait for others.
    pub(crate) fn held(&self) -> u64 {
        self.counts(Side::Unprotected).held
    }

    /// Every packet ended in exactly one counter, and in the one that tells what happened.
    fn compare(&mut self, before: &Counts, after: &Counts, frames: usize, outcome: &mut Outcome) {
        let mut ended = after.sent - before.sent;
        let made = after.made - before.made;
        outcome.asides = after.asides - before.asides;
        assert_eq!(after.received - before.received, frames as u64);
        assert_eq!(ended, outcome.sent.len() as u64, "sent is what came out");
        for (reason, (before, after)) in DropReason::ALL
            .iter()
            .zip(before.drops.iter().zip(&after.drops))
        {
            let rise = after - before;
            ended += rise;
            if rise > 0 {
                outcome.drops.insert(reason.name(), rise);
                *self
                    .tally
                    .entry(format!("drop {}", reason.name()))
                    .or_default() += rise;
            }
        }
        for (reason, (before, after)) in PuntReason::ALL
            .iter()
            .zip(before.punts.iter().zip(&after.punts))
        {
            let rise = after - before;
            ended += rise;
            let handed = outcome.punts.iter().filter(|(of, _)| of == reason).count();
            assert_eq!(rise, handed as u64, "punted is what the control side got");
            *self
                .tally
                .entry(format!("punt {}", reason.name()))
                .or_default() += rise;
        }
        assert_eq!(
            ended + outcome.asides + after.held,
            frames as u64 + made + before.held,
            "each packet in one counter: {outcome:?}"
        );
        *self.tally.entry("sent".into()).or_default() += outcome.sent.len() as u64;
    }

    /// Runs frames of which each is to be dropped for `reason`, one by one and then, at most 64, in one burst.
    pub(crate) fn refuse(
        &mut self,
        side: Side,
        frames: &[Vec<u8>],
        reason: DropReason,
        what: &str,
    ) {
        for (number, frame) in frames.iter().enumerate() {
            let outcome = self.run(side, std::slice::from_ref(frame));
            assert_eq!(
                outcome.dropped(reason),
                1,
                "{what}, number {number}: {outcome:?}"
            );
        }
        for frames in frames.chunks(64) {
            let outcome = self.run(side, frames);
            let expected = frames.len() as u64;
            assert_eq!(outcome.dropped(reason), expected, "{what}: {outcome:?}");
        }
    }

    /// Runs a frame that is to be punted for `reason`.
    pub(crate) fn punt(&mut self, side: Side, frame: &[u8], reason: PuntReason, what: &str) {
        let outcome = self.run(side, &[frame.to_vec()]);
        assert_eq!(outcome.punts.len(), 1, "{what}: {outcome:?}");
        assert_eq!(outcome.punts[0].0, reason, "{what}");
    }

    /// Everything that ever came in on a side has ended somewhere.
    pub(crate) fn assert_balanced(&self) {
        for side in [Side::Protected, Side::Unprotected] {
            let counts = self.counts(side);
            let ended = counts.sent + counts.drops.iter().chain(&counts.punts).sum::<u64>();
            let ended = ended + counts.asides + counts.held;
            assert_eq!(counts.received + counts.made, ended, "{side:?}");
        }
    }
}

/// Both gateways.
pub(crate) struct Rig<'p> {
    pub(crate) west: Gateway<'p>,
    pub(crate) east: Gateway<'p>,
}

impl<'p> Rig<'p> {
    /// Has west seal `inner`, which it must, and gives the frames addressed to east.
    pub(crate) fn seal(&mut self, inner: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mac = self.west.macs[0];
        let frames: Vec<_> = inner.iter().map(|packet| framed(mac, packet)).collect();
        let mut outcome = self.west.run(Side::Protected, &frames);
        assert_eq!(outcome.sent.len(), inner.len(), "{:?}", outcome.drops);
        for frame in &mut outcome.sent {
            frame[..6].copy_from_slice(&self.east.macs[1]);
        }
        outcome.sent
    }

    /// Seals `text` by hand with the next number of `tunnel` as west would, in a frame for east.
    pub(crate) fn hand_seal(&mut self, tunnel: &str, text: &[u8]) -> Vec<u8> {
        let seq = self.west.take_seq(tunnel);
        self.west.hand_seal(tunnel, seq, text, self.east.macs[1])
    }

    /// East opens `frame` and forwards exactly `inner`.
    pub(crate) fn accept(&mut self, frame: &[u8], inner: &[u8], what: &str) {
        let outcome = self.east.run(Side::Unprotected, &[frame.to_vec()]);
        assert_eq!(outcome.sent.len(), 1, "{what}: {:?}", outcome.drops);
        assert_eq!(&outcome.sent[0][14..], inner, "{what}");
    }
}
