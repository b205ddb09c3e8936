//! Queues of devices whose ports are told apart by VLAN tags.
//!
//! Such a port has no queue of its own, and what it receives may leave by a device that other ports share. So one worker has
//! the queues of one number of all devices that pairs of ports join: what comes in is sorted by its tags into a burst for
//! each port, which from there on is like one of a lane.

use rustc_hash::FxHashMap;

use crate::dpdk::burst::Burst;
use crate::dpdk::lcore::tsc;
use crate::dpdk::port::{RxQueue, TxQueue};
use crate::drop::DropReason;
use crate::ids::{PortIndex, QueueId};
use crate::meta::BURST;
use crate::wire::vlan::VlanTags;
use crate::worker::counters::WorkerCounters;
use crate::worker::datapath::{
    FOR_HOST, Round, Scratch, Way, carry_all, send_for_host, take_from_host,
};
use crate::worker::probe::Probe;
use crate::worker::trace::{Arrival, Origin};
use crate::worker::vlan::{tag, untag};

/// The queues of one number of devices that pairs of ports join.
pub struct Trunk<'p> {
    links: Vec<Link<'p>>,
    ports: Vec<TrunkPort>,
    received: Burst<'p>,
}

/// The queue pair of one device.
struct Link<'p> {
    rx: RxQueue<'p>,
    tx: TxQueue<'p>,
    /// The device's ports, by their places in [`Trunk::ports`].
    ports: FxHashMap<VlanTags, u16>,
    /// The one that was declared first: what is for none counts as received on its side.
    first: PortIndex,
}

/// A port, and where what it receives leaves.
struct TrunkPort {
    ingress: PortIndex,
    egress: PortIndex,
    /// Those of `egress`.
    tags: VlanTags,
    /// The place of the device of `egress` in [`Trunk::links`].
    link: usize,
}

/// A port of a device, for [`Trunk::new`].
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// The port.
    pub port: PortIndex,
    /// The tags of its frames.
    pub tags: VlanTags,
    /// The port that what enters here leaves by, on one of the trunk's devices too.
    pub pair: PortIndex,
}

impl<'p> Trunk<'p> {
    /// Joins the queue pairs of devices, each with the device's ports in declared order, at least one.
    pub fn new(devices: Vec<(RxQueue<'p>, TxQueue<'p>, Vec<Member>)>) -> Self {
        let places: FxHashMap<PortIndex, (usize, VlanTags)> = (0..)
            .zip(&devices)
            .flat_map(|(link, (.., members))| {
                members
                    .iter()
                    .map(move |member| (member.port, (link, member.tags)))
            })
            .collect();
        let mut trunk = Self {
            links: Vec::new(),
            ports: Vec::new(),
            received: Burst::new(),
        };
        for (rx, tx, members) in devices {
            let mut by_tags = FxHashMap::default();
            for member in &members {
                let place = places.get(&member.pair).copied();
                let (Some((link, tags)), Ok(at)) = (place, u16::try_from(trunk.ports.len())) else {
                    continue;
                };
                by_tags.insert(member.tags, at);
                trunk.ports.push(TrunkPort {
                    ingress: member.port,
                    egress: member.pair,
                    tags,
                    link,
                });
            }
            trunk.links.push(Link {
                rx,
                tx,
                ports: by_tags,
                first: members.first().map_or(PortIndex(0), |first| first.port),
            });
        }
        trunk
    }

    /// The number of its queues.
    pub fn queue(&self) -> QueueId {
        self.links.first().map_or(FOR_HOST, |link| link.rx.queue())
    }

    /// How many receive queues it has.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Its ports, each with the one that what enters there leaves by.
    pub fn ways(&self) -> impl Iterator<Item = (PortIndex, PortIndex)> {
        self.ports.iter().map(|port| (port.ingress, port.egress))
    }

    /// Polls each receive queue once and takes what came in to its end. Returns how many frames that were.
    pub(super) fn run<P: Probe>(
        &mut self,
        scratch: &mut Scratch<'p>,
        round: Round<'_, 'p>,
        probe: &mut P,
    ) -> usize {
        let mut received = 0usize;
        if self.queue() == FOR_HOST {
            for at in 0..self.ports.len() {
                let Some(mut way) = way(&self.ports, &mut self.links, at) else {
                    continue;
                };
                send_for_host(&mut way, scratch, round);
                probe.begin();
                let taken = take_from_host(&mut way, scratch, round, probe);
                received = received.saturating_add(taken);
            }
        }
        for at in 0..self.links.len() {
            received = received.saturating_add(self.run_link(at, scratch, round, probe));
        }
        received
    }

    fn run_link<P: Probe>(
        &mut self,
        at: usize,
        scratch: &mut Scratch<'p>,
        round: Round<'_, 'p>,
        probe: &mut P,
    ) -> usize {
        let Some(link) = self.links.get_mut(at) else {
            return 0;
        };
        probe.begin();
        let count = link.rx.rx_burst(&mut self.received);
        if count == 0 {
            return 0;
        }
        let first = link.first;
        let mut targets = link.sort(&mut self.received, round.trace.is_some());
        // Each turn takes at least one frame out.
        for _ in 0..BURST {
            let [target, ..] = targets;
            if self.received.is_empty() {
                break;
            }
            take_out(&mut self.received, &mut targets, &mut scratch.burst);
            let way = target.map(|at| way(&self.ports, &mut self.links, at.into()));
            match way {
                Ok(Some(mut way)) => carry_all(&mut way, Origin::Wire, scratch, round, probe),
                Ok(None) => scratch.burst.clear(),
                Err(reason) => refuse(first, reason, scratch, round),
            }
            probe.begin();
        }
        count
    }
}

/// What a received frame is for: a place in [`Trunk::ports`], or nothing.
type Target = Result<u16, DropReason>;

impl Link<'_> {
    /// Takes the tags off the frames of a burst and says what each is for. What is for none gets them back where it is
    /// looked at.
    fn sort(&self, received: &mut Burst<'_>, is_traced: bool) -> [Target; BURST] {
        let mut targets = [Err(DropReason::UnknownVlan); BURST];
        for (packet, target) in received.iter_mut().zip(&mut targets) {
            let stripped = packet.stripped_vlan();
            *target = untag(packet, stripped).and_then(|tags| {
                let port = self.ports.get(&tags).copied();
                if is_traced && port.is_none() {
                    tag(packet, tags);
                }
                port.ok_or(DropReason::UnknownVlan)
            });
        }
        targets
    }
}

/// Moves what is for the first target from `received` to `burst`, which is empty; both stay in order, and `targets` is of
/// what stays.
fn take_out<'p>(received: &mut Burst<'p>, targets: &mut [Target; BURST], burst: &mut Burst<'p>) {
    let [first, ..] = *targets;
    let mut left = 0usize;
    let stays = |at: usize| {
        let target = targets.get(at).copied().unwrap_or(first);
        let stays = target != first;
        if stays && let Some(place) = targets.get_mut(left) {
            *place = target;
            left = left.saturating_add(1);
        }
        stays
    };
    received.sift(stays, burst);
}

fn way<'w, 'p>(ports: &[TrunkPort], links: &'w mut [Link<'p>], at: usize) -> Option<Way<'w, 'p>> {
    let port = ports.get(at)?;
    let link = links.get_mut(port.link)?;
    Some(Way {
        tx: &mut link.tx,
        ingress: port.ingress,
        egress: port.egress,
        tags: port.tags,
    })
}

/// Drops frames that are for no port.
#[cold]
fn refuse(first: PortIndex, reason: DropReason, scratch: &mut Scratch<'_>, round: Round<'_, '_>) {
    let core = scratch.core;
    let burst = &mut scratch.burst;
    let counters: &WorkerCounters = round.counters;
    if let Some(port) = round.tables.port(first) {
        if let Some(trace) = round.trace {
            let arrival = Arrival {
                ingress: first,
                egress: first,
                side: port.side,
                origin: Origin::Wire,
                core,
                tsc: tsc(),
            };
            trace.refuse_burst(arrival, burst.as_slice(), reason);
        }
        let direction = counters.direction(port.side);
        direction.received.add(burst.len() as u64);
        direction.add_drops(reason, burst.len() as u64);
    }
    burst.clear();
}
