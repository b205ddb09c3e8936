//! Which receive queues the inbound SAs of split tunnels come to. A tunnel is split so that several cores can open what
//! comes in; where RSS leads all its SAs to one queue, that gains nothing, and nobody would notice.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;

use super::model::{Encapsulation, EndpointSet, Policy, Port, Side, Tunnel};
use crate::ids::PortIndex;
use crate::wire::rss::{EspInput, Spreading};

/// The SA pairs between the two ends of a split tunnel.
#[derive(Clone, Copy)]
pub struct Split<'p> {
    /// The tunnel.
    pub tunnel: &'p Tunnel,
    /// Its SA pairs in one outer family, at least two.
    pub sets: &'p [EndpointSet],
    /// The port that the peer's packets come in by.
    pub port: PortIndex,
}

/// A split tunnel whose inbound SAs all come to one queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OneQueue {
    tunnel: String,
    port: String,
    cause: Cause,
}

/// Why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    /// What NICs see of them is one flow of UDP.
    Udp,
    /// The SPIs are not well chosen for a port that hashes this.
    Spis(EspInput),
    /// The port does not look at SPIs.
    NotEsp,
}

/// Every endpoint set of `policy` that has several SA pairs, as far as it is clear by which port its packets come in: the
/// one with its local address, or the only unprotected one.
pub fn split_sets(policy: &Policy) -> impl Iterator<Item = Split<'_>> {
    let of_one_set = |one: &EndpointSet, other: &EndpointSet| one.local == other.local;
    policy.tunnels.iter().flat_map(move |tunnel| {
        let sets = tunnel.endpoints.chunk_by(of_one_set);
        sets.filter(|sets| sets.len() > 1).filter_map(|sets| {
            let port = port_of(policy, sets.first()?)?;
            Some(Split { tunnel, sets, port })
        })
    })
}

fn port_of(policy: &Policy, set: &EndpointSet) -> Option<PortIndex> {
    let unprotected = || {
        let indexed = (0u16..).map(PortIndex).zip(&policy.ports);
        indexed.filter(|(_, port)| port.side == Side::Unprotected)
    };
    let has_address = |port: &Port| port.addresses.iter().any(|net| net.addr() == set.local);
    let found = unprotected().find(|(_, port)| has_address(port));
    let only = || unprotected().next().filter(|_| unprotected().count() == 1);
    found.or_else(only).map(|(index, _)| index)
}

impl Split<'_> {
    /// What is wrong if the port spreads what it receives by `spreading`, looking at `inputs` of ESP packets; nothing where
    /// the SAs come to more than one queue, or the port has only one.
    pub fn check(
        &self,
        policy: &Policy,
        spreading: &Spreading,
        inputs: &[EspInput],
    ) -> Vec<OneQueue> {
        let one_queue = |cause| OneQueue {
            tunnel: self.tunnel.name.clone(),
            port: policy
                .ports
                .get(self.port.index())
                .map_or_else(String::new, |port| port.name.clone()),
            cause,
        };
        if spreading.queues() < 2 {
            return Vec::new();
        }
        if self
            .sets
            .iter()
            .any(|set| matches!(set.encapsulation, Encapsulation::Udp { .. }))
        {
            return vec![one_queue(Cause::Udp)];
        }
        if inputs.is_empty() {
            return vec![one_queue(Cause::NotEsp)];
        }
        let is_one_queue = |input: &&EspInput| {
            let queue = |set: &EndpointSet| {
                spreading.esp_queue(**input, set.remote, set.local, set.inbound.spi)
            };
            self.sets.iter().map(queue).collect::<BTreeSet<_>>().len() == 1
        };
        let crowded = inputs.iter().filter(is_one_queue);
        crowded
            .map(|input| one_queue(Cause::Spis(*input)))
            .collect()
    }
}

/// What is wrong if every port gets the queues that it asks for, and the usual table.
pub fn check_declared(policy: &Policy, table_len: u16) -> Vec<OneQueue> {
    let check = |split: Split<'_>| {
        let queues = policy.ports.get(split.port.index())?.queues;
        let spreading = Spreading::usual(queues, table_len)?;
        Some(split.check(policy, &spreading, &EspInput::ALL))
    };
    split_sets(policy).filter_map(check).flatten().collect()
}

impl fmt::Display for OneQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tunnel,
            port,
            cause,
        } = self;
        write!(
            f,
            "all inbound SAs of tunnel \"{tunnel}\" come to one queue of port \"{port}\""
        )?;
        match cause {
            Cause::Udp => f.write_str(": in UDP, a NIC sees one flow, whatever the SPIs"),
            Cause::Spis(input) => write!(
                f,
                " where its NIC hashes {}: choose SPIs with `simplon spi`",
                input.describe()
            ),
            Cause::NotEsp => f.write_str(": its driver does not spread ESP by SPI"),
        }
    }
}

#[cfg(test)]
mod tests;
