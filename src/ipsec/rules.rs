//! Ordered rules with full selectors: of those that hold a packet, the first decides (RFC 4301 section 4.4.1).
//!
//! A rule is boxes: ranges of both addresses, the protocol and both ports. Boxes are sorted into *partitions*, within each of
//! which any two are told apart by the first of these fields in which they differ: there their ranges have nothing in
//! common. So a partition is a tree of five levels, each an array of ranges in order, and a packet finds the one box that may
//! hold it by five binary searches, however many boxes there are. Boxes that overlap are in different partitions. They are
//! asked in the order of their first rules, until what was found comes before anything the rest could have. How many there
//! may be is bounded ([`MOST_PARTITIONS`]), and so is the cost of a packet. (Yingchareonthawornchai et al., "A Sorted
//! Partitioning Approach to Fast and Scalable Dynamic Packet Classification", 2018, has the idea.)

use std::collections::BTreeMap;

use crate::ipsec::selector::Address;
use crate::ipsec::spd::SpdAction;
use crate::ipsec::traffic::Traffic;

/// Most partitions of one family.
pub const MOST_PARTITIONS: usize = 64;

/// First and last.
pub type Span<T> = (T, T);

/// What one box of a rule holds.
#[derive(Clone, Copy, Debug)]
pub struct TrafficBox<A> {
    /// Addresses on this side.
    pub local: Span<A>,
    /// Addresses on the other side.
    pub remote: Span<A>,
    /// Protocols.
    pub protocol: Span<u8>,
    /// Ports on this side, as [`Traffic`] has them, [`crate::ipsec::traffic::OPAQUE`] included where it is within.
    pub local_port: Span<u32>,
    /// Ports on the other side.
    pub remote_port: Span<u32>,
}

/// Rules that overlap in too many ways.
#[derive(Debug, thiserror::Error)]
#[error("policies overlap in more than {MOST_PARTITIONS} ways, of which each costs every new flow")]
pub struct TooManyWays {
    /// Number of the rule that was one too many.
    pub order: u32,
}

/// The compiled rules of one family.
pub struct Rules<A> {
    /// By the lowest number in each.
    partitions: Box<[Partition<A>]>,
}

struct Partition<A> {
    /// The lowest number of a rule in it.
    first: u32,
    roots: usize,
    remote: Box<[Node<A>]>,
    local: Box<[Node<A>]>,
    protocol: Box<[Node<u32>]>,
    local_port: Box<[Node<u32>]>,
    remote_port: Box<[Node<u32>]>,
    decisions: Box<[Decision]>,
}

/// A range, and which nodes of the next level belong to it; of the last level, which decision.
#[derive(Clone, Copy)]
struct Node<T> {
    span: Span<T>,
    start: u32,
    end: u32,
}

/// What a rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The rule's number.
    pub order: u32,
    /// What it says.
    pub action: SpdAction,
}

impl<A: Address> Rules<A> {
    /// The first rule that holds `traffic`.
    pub fn find(&self, traffic: &Traffic<A>) -> Option<Decision> {
        let mut found: Option<Decision> = None;
        for partition in &self.partitions {
            if found.is_some_and(|found| found.order < partition.first) {
                break;
            }
            if let Some(here) = partition.find(traffic)
                && found.is_none_or(|found| here.order < found.order)
            {
                found = Some(here);
            }
        }
        found
    }
}

impl<A: Address> Partition<A> {
    fn find(&self, traffic: &Traffic<A>) -> Option<Decision> {
        let roots = self.remote.get(..self.roots)?;
        let remote = search(roots, traffic.remote)?;
        let local = search(below(&self.local, remote)?, traffic.local)?;
        let protocol = search(below(&self.protocol, local)?, traffic.protocol.into())?;
        let local_port = search(below(&self.local_port, protocol)?, traffic.local_port)?;
        let nodes = below(&self.remote_port, local_port)?;
        let remote_port = search(nodes, traffic.remote_port)?;
        self.decisions.get(remote_port.start as usize).copied()
    }
}

/// The nodes of a level that belong to a node of the level above.
#[inline]
fn below<'a, T, U>(level: &'a [Node<T>], above: &Node<U>) -> Option<&'a [Node<T>]> {
    level.get(above.start as usize..above.end as usize)
}

/// The node whose range holds `value`; the ranges are in order and have nothing in common.
#[inline]
fn search<T: Copy + Ord>(nodes: &[Node<T>], value: T) -> Option<&Node<T>> {
    let at = nodes.partition_point(|node| node.span.1 < value);
    nodes.get(at).filter(|node| node.span.0 <= value)
}

/// Ranges that are equal or have nothing in common, by their first value, and what is below each.
type Ranges<T, Below> = BTreeMap<T, (T, Below)>;
type Ports = Ranges<u32, Decision>;
type Protocols = Ranges<u32, Ranges<u32, Ports>>;

/// A partition while it is made.
struct Growing<A> {
    first: u32,
    remote: Ranges<A, Ranges<A, Protocols>>,
}

/// What `span` finds among ranges: nothing in common with any, the same as one, or neither.
fn room<T: Copy + Ord, B>(ranges: &Ranges<T, B>, span: Span<T>) -> Option<Option<&B>> {
    let before = ranges.range(..=span.1).next_back();
    match before {
        Some((first, (last, below))) if (*first, *last) == span => Some(Some(below)),
        Some((_, (last, _))) if *last >= span.0 => None,
        _ => Some(None),
    }
}

impl<A: Address> Growing<A> {
    /// Whether a box has its place here, told from all others.
    fn takes(&self, what: &TrafficBox<A>) -> bool {
        let protocol = wide(what.protocol);
        let Some(remote) = room(&self.remote, what.remote) else {
            return false;
        };
        let Some(local) = remote.map_or(Some(None), |below| room(below, what.local)) else {
            return false;
        };
        let Some(protocols) = local.map_or(Some(None), |below| room(below, protocol)) else {
            return false;
        };
        let ports = protocols.map_or(Some(None), |below| room(below, what.local_port));
        let Some(ports) = ports else {
            return false;
        };
        ports.is_none_or(|below| room(below, what.remote_port).is_some())
    }

    /// Gives it its place. Where one with the same ranges has it, that one stands: it came before.
    fn put(&mut self, what: &TrafficBox<A>, decision: Decision) {
        fn down<T: Ord, B: Default>(ranges: &mut Ranges<T, B>, span: Span<T>) -> &mut B {
            let (_, below) = ranges
                .entry(span.0)
                .or_insert_with(|| (span.1, B::default()));
            below
        }
        let local = down(&mut self.remote, what.remote);
        let protocols = down(local, what.local);
        let ports = down(protocols, wide(what.protocol));
        let remote_ports = down(ports, what.local_port);
        remote_ports
            .entry(what.remote_port.0)
            .or_insert((what.remote_port.1, decision));
        self.first = self.first.min(decision.order);
    }

    /// Level by level into arrays.
    fn finish(self) -> Partition<A> {
        let (remote, below) = flatten(vec![self.remote]);
        let (local, below) = flatten(below);
        let (protocol, below) = flatten(below);
        let (local_port, below) = flatten(below);
        let mut decisions = Vec::new();
        let mut remote_port = Vec::new();
        for (first, (last, decision)) in below.into_iter().flatten() {
            remote_port.push(Node {
                span: (first, last),
                start: small(decisions.len()),
                end: small(decisions.len()),
            });
            decisions.push(decision);
        }
        Partition {
            first: self.first,
            roots: remote.len(),
            remote,
            local,
            protocol,
            local_port,
            remote_port: remote_port.into(),
            decisions: decisions.into(),
        }
    }
}

/// The nodes of one level, and the ranges of the next.
type Level<T, U, B> = (Box<[Node<T>]>, Vec<Ranges<U, B>>);

/// Takes the ranges of one level apart.
fn flatten<T: Ord, U, B>(level: Vec<Ranges<T, Ranges<U, B>>>) -> Level<T, U, B> {
    let mut nodes = Vec::new();
    let mut next = Vec::new();
    let mut start = 0usize;
    for (first, (last, below)) in level.into_iter().flatten() {
        let end = start.saturating_add(below.len());
        nodes.push(Node {
            span: (first, last),
            start: small(start),
            end: small(end),
        });
        start = end;
        next.push(below);
    }
    (nodes.into(), next)
}

/// More nodes than that nobody has memory for.
fn small(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn wide(span: Span<u8>) -> Span<u32> {
    (span.0.into(), span.1.into())
}

/// Compiles [`Rules`].
pub struct RulesBuilder<A> {
    partitions: Vec<Growing<A>>,
}

impl<A> Default for RulesBuilder<A> {
    fn default() -> Self {
        Self {
            partitions: Vec::new(),
        }
    }
}

impl<A: Address> RulesBuilder<A> {
    /// Adds a box of rule `order`. Rules come in order.
    ///
    /// # Errors
    /// [`TooManyWays`]; it is not added.
    pub fn add(
        &mut self,
        order: u32,
        what: &TrafficBox<A>,
        action: SpdAction,
    ) -> Result<(), TooManyWays> {
        let decision = Decision { order, action };
        if let Some(partition) = self.partitions.iter_mut().find(|some| some.takes(what)) {
            partition.put(what, decision);
            return Ok(());
        }
        if self.partitions.len() >= MOST_PARTITIONS {
            return Err(TooManyWays { order });
        }
        let mut partition = Growing {
            first: order,
            remote: BTreeMap::new(),
        };
        partition.put(what, decision);
        self.partitions.push(partition);
        Ok(())
    }

    /// The rules.
    pub fn build(self) -> Rules<A> {
        let mut partitions: Vec<_> = self.partitions.into_iter().map(Growing::finish).collect();
        partitions.sort_by_key(|partition| partition.first);
        Rules {
            partitions: partitions.into(),
        }
    }
}

#[cfg(test)]
mod tests;
