//! Which entry of the policy decided: tables have no names.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Sources;
use super::packet::ends;
use crate::ids::{SaIndex, Spi};
use crate::ipsec::spd::SpdAction;
use crate::ipsec::traffic::AnyTraffic;
use crate::policy::Policy;
use crate::policy::compile::endpoint_sets;
use crate::policy::model::{EndpointSet, Rule, RuleAction, SpdEntry, Tunnel};
use crate::policy::tables::Tables;

/// Most entries that are named which hold a packet by half.
const MOST_NEAR: usize = 3;

/// What policies say of a packet, and which one does.
pub(super) struct Decision<'p> {
    pub(super) by: By<'p>,
    pub(super) action: SpdAction,
}

/// An entry of the policy.
#[derive(Clone, Copy)]
pub(super) enum By<'p> {
    /// An ordered policy, and its place among them from 1 on.
    Entry(usize, &'p SpdEntry),
    /// A tunnel's networks: local, then remote.
    Tunnel(&'p Tunnel, IpNet, IpNet),
    /// A bypass or discard, likewise.
    Rule(&'p Rule, IpNet, IpNet),
    /// None.
    Nothing,
}

/// Asks the tables what is done with `traffic`, and the policy that they were compiled from who says so.
pub(super) fn decide<'p>(policy: &'p Policy, tables: &Tables, traffic: AnyTraffic) -> Decision<'p> {
    let (order, action) = tables.spd.search(traffic);
    let entry = order.and_then(|order| {
        let at = usize::try_from(order).ok()?;
        Some(By::Entry(at + 1, policy.entries.get(at)?))
    });
    let by = entry.unwrap_or_else(|| most_specific(policy, traffic, action));
    Decision { by, action }
}

/// The SA pair in a slot, as people know it.
pub(super) struct Pair<'a> {
    pub(super) tunnel: &'a str,
    /// Our outer address.
    pub(super) local: IpAddr,
    /// The peer's.
    pub(super) remote: IpAddr,
    pub(super) outbound: Spi,
    pub(super) inbound: Spi,
    /// How many pairs its packets are spread over.
    pub(super) of: usize,
    /// Others take its place.
    pub(super) is_leaving: bool,
}

impl<'a> Sources<'a> {
    /// The pair in `slot`: the policy's, or one that is on its way out.
    pub(super) fn pair(&self, slot: SaIndex) -> Option<Pair<'a>> {
        let mut sets = endpoint_sets(self.policy);
        let named = sets.find(|(at, ..)| *at == slot);
        let named = named.map(|(.., tunnel, set)| (tunnel, set));
        let (tunnel, set) = match named {
            Some(named) => named,
            None => self.standing?.gone(slot)?,
        };
        let same = |other: &&EndpointSet| other.local == set.local;
        Some(Pair {
            tunnel: &tunnel.name,
            local: set.local,
            remote: set.remote,
            outbound: set.outbound.spi,
            inbound: set.inbound.spi,
            of: tunnel.endpoints.iter().filter(same).count(),
            is_leaving: named.is_none(),
        })
    }
}

/// The slots of a tunnel.
pub(super) fn slots_of<'p>(
    policy: &'p Policy,
    name: &'p str,
) -> impl Iterator<Item = SaIndex> + 'p {
    endpoint_sets(policy)
        .filter(move |(.., tunnel, _)| tunnel.name == name)
        .map(|(slot, ..)| slot)
}

/// As the compiled prefixes have it. No two that overlap are as specific: that was seen when the file was checked.
fn most_specific(policy: &Policy, traffic: AnyTraffic, action: SpdAction) -> By<'_> {
    let (local, remote) = ends(traffic);
    let mut best: Option<(u16, By<'_>)> = None;
    let tunnels = policy.tunnels.iter().flat_map(|tunnel| {
        let pairs = pairs(&tunnel.local_networks, &tunnel.remote_networks);
        pairs.map(move |(local, remote)| (local, remote, By::Tunnel(tunnel, local, remote)))
    });
    let rules = policy.rules.iter().flat_map(|rule| {
        let pairs = pairs(&rule.local_networks, &rule.remote_networks);
        pairs.map(move |(local, remote)| (local, remote, By::Rule(rule, local, remote)))
    });
    for (near, far, by) in tunnels.chain(rules) {
        let length = u16::from(near.prefix_len()) + u16::from(far.prefix_len());
        let is_better = best.is_none_or(|(best, _)| length > best);
        if is_better && near.contains(&local) && far.contains(&remote) {
            best = Some((length, by));
        }
    }
    match (best, action) {
        (Some((_, by)), _) if agrees(by, action) => by,
        // The policy is not the one that the tables are of.
        _ => By::Nothing,
    }
}

fn pairs(locals: &[IpNet], remotes: &[IpNet]) -> impl Iterator<Item = (IpNet, IpNet)> {
    locals
        .iter()
        .flat_map(move |local| remotes.iter().map(move |remote| (*local, *remote)))
}

fn agrees(by: By<'_>, action: SpdAction) -> bool {
    match (by, action) {
        // Of one that is yet to take another's place, that one seals.
        (By::Tunnel(..), SpdAction::Protect(_) | SpdAction::Spread(_)) => true,
        (By::Rule(rule, ..), SpdAction::Bypass) => rule.action == RuleAction::Bypass,
        (By::Rule(rule, ..), SpdAction::Discard) => rule.action == RuleAction::Discard,
        _ => false,
    }
}

impl Decision<'_> {
    /// The tunnel that is to carry it.
    pub(super) fn slot(&self) -> Option<SaIndex> {
        match self.action {
            SpdAction::Protect(slot) => Some(slot),
            SpdAction::Spread(group) => Some(group.first()),
            SpdAction::Bypass | SpdAction::Discard | SpdAction::NoPolicy => None,
        }
    }

    /// `tunnel`, `bypass`, `discard` or `policy`, and the name.
    pub(super) fn entry(&self) -> Option<(&'static str, &str)> {
        match self.by {
            By::Entry(_, entry) => Some(("policy", &entry.name)),
            By::Tunnel(tunnel, ..) => Some(("tunnel", &tunnel.name)),
            By::Rule(rule, ..) => Some(match rule.action {
                RuleAction::Bypass => ("bypass", &rule.name),
                RuleAction::Discard => ("discard", &rule.name),
            }),
            By::Nothing => None,
        }
    }

    /// `protect`, `bypass`, `discard` or `none`.
    pub(super) fn action(&self) -> &'static str {
        match self.action {
            SpdAction::Protect(_) | SpdAction::Spread(_) => "protect",
            SpdAction::Bypass => "bypass",
            SpdAction::Discard => "discard",
            SpdAction::NoPolicy => "none",
        }
    }

    /// Who says what, in words.
    pub(super) fn tell(&self, sources: &Sources<'_>, traffic: AnyTraffic) -> String {
        let policy = sources.policy;
        let carried_by = || {
            let pair = self.slot().and_then(|slot| sources.pair(slot));
            pair.map_or_else(String::new, |pair| {
                format!(" by tunnel \"{}\"", pair.tunnel)
            })
        };
        let none_before = match policy.entries.len() {
            0 => "",
            _ => "; no ordered policy holds it",
        };
        match self.by {
            By::Entry(place, entry) => format!(
                "policy \"{}\", number {place} of {}, is the first that holds it: {}{}",
                entry.name,
                policy.entries.len(),
                self.action(),
                carried_by()
            ),
            By::Tunnel(tunnel, local, remote) => format!(
                "tunnel \"{}\" has it, {local} to {remote}{none_before}",
                tunnel.name
            ),
            By::Rule(rule, local, remote) => format!(
                "{} \"{}\" has it, {local} to {remote}{none_before}",
                self.action(),
                rule.name
            ),
            By::Nothing => match self.action {
                SpdAction::NoPolicy => format!("no policy names it{}", near(policy, traffic)),
                _ => format!("the policy says {}{}", self.action(), carried_by()),
            },
        }
    }
}

/// Tunnels that hold one end and not the other, which is what is mostly wrong.
fn near(policy: &Policy, traffic: AnyTraffic) -> String {
    let (local, remote) = ends(traffic);
    let holds =
        |networks: &[IpNet], address: IpAddr| networks.iter().any(|net| net.contains(&address));
    let mut told = Vec::new();
    for tunnel in &policy.tunnels {
        let has_local = holds(&tunnel.local_networks, local);
        let has_remote = holds(&tunnel.remote_networks, remote);
        let lacks = match (has_local, has_remote) {
            (true, false) => format!("{remote} is in none of the remote_networks"),
            (false, true) => format!("{local} is in none of the local_networks"),
            _ => continue,
        };
        told.push(format!("{lacks} of tunnel \"{}\"", tunnel.name));
        if told.len() == MOST_NEAR {
            break;
        }
    }
    match told.is_empty() {
        true => String::new(),
        false => format!(": {}", told.join(", ")),
    }
}
