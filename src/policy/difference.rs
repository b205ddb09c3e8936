//! What is different between two policies, by name.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::model::{EndpointSet, EntryAction, Policy, Route, Rule, SpdEntry, Tunnel};
use crate::crypto::aead::KeyFingerprint;
use crate::ids::Spi;

/// What is different in one policy from another.
#[derive(Default, Debug)]
pub struct Difference {
    /// Settings of the gateway.
    settings: Vec<&'static str>,
    ports: Names,
    neighbours: Names,
    routes: Names,
    tunnels: Names,
    /// Tunnels with other SPIs or keys.
    rekeyed: Vec<String>,
    /// Ordered policies, bypasses and discards.
    policies: Names,
    /// The ordered policies that both have are in another order.
    reordered: bool,
}

/// Of one kind of thing: what is different.
#[derive(Default, Debug)]
struct Names {
    added: Vec<String>,
    removed: Vec<String>,
    changed: Vec<String>,
}

impl Names {
    fn all(&self) -> impl Iterator<Item = &str> {
        let all = [&self.added, &self.removed, &self.changed];
        all.into_iter().flatten().map(String::as_str)
    }
}

impl Difference {
    /// What is different in `new` from `old`.
    pub fn new(new: &Policy, old: &Policy) -> Self {
        let mut difference = Self {
            settings: settings(new, old),
            reordered: order(new, old) != order(old, new),
            ..Self::default()
        };
        difference.compare_network(new, old);
        let tunnel_name = |tunnel: &Tunnel| tunnel.name.clone();
        difference.tunnels = names(
            named(&new.tunnels, tunnel_name),
            named(&old.tunnels, tunnel_name),
            |new, old| is_same(new, old),
        );
        let before: BTreeMap<&str, &Tunnel> = old
            .tunnels
            .iter()
            .map(|tunnel| (tunnel.name.as_str(), tunnel))
            .collect();
        let has_other_keys = |tunnel: &&Tunnel| {
            let old = before.get(tunnel.name.as_str());
            old.is_some_and(|old| !keys(tunnel).eq(keys(old)))
        };
        let rekeyed = new.tunnels.iter().filter(has_other_keys);
        difference.rekeyed = rekeyed.map(|tunnel| tunnel.name.clone()).collect();
        difference.policies = names(policies(new), policies(old), |new, old| new == old);
        difference
    }

    fn compare_network(&mut self, new: &Policy, old: &Policy) {
        let route = |route: &Route| format!("{} via {}", route.to, route.via);
        self.ports = changed(&new.ports, &old.ports, |port| port.name.clone());
        self.neighbours = changed(&new.neighbours, &old.neighbours, |hop| {
            hop.address.to_string()
        });
        self.routes = changed(&new.routes, &old.routes, route);
    }

    /// The names of tunnels and policies that are new, gone or not as they were.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let rekeyed = self.rekeyed.iter().map(String::as_str);
        let of_kinds = self.tunnels.all().chain(self.policies.all());
        of_kinds.chain(rekeyed)
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.to_string().is_empty()
    }
}

impl fmt::Display for Difference {
    /// A line for each thing, with `+`, `-` or `~` before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for setting in &self.settings {
            writeln!(f, "~ {setting} of [gateway]")?;
        }
        for (kind, names) in [
            ("port", &self.ports),
            ("neighbour", &self.neighbours),
            ("route", &self.routes),
            ("tunnel", &self.tunnels),
            ("policy", &self.policies),
        ] {
            for (sign, names) in [
                ('+', &names.added),
                ('-', &names.removed),
                ('~', &names.changed),
            ] {
                for name in names {
                    writeln!(f, "{sign} {kind} {name}")?;
                }
            }
        }
        for name in &self.rekeyed {
            writeln!(f, "~ tunnel {name}: other SPIs or keys")?;
        }
        if self.reordered {
            writeln!(f, "~ the order of policies")?;
        }
        Ok(())
    }
}

fn settings(new: &Policy, old: &Policy) -> Vec<&'static str> {
    let (own, was) = (&new.gateway, &old.gateway);
    [
        ("name", own.name != was.name),
        ("workers", own.workers != was.workers),
        ("state_dir", own.state_dir != was.state_dir),
        ("control_socket", own.control_socket != was.control_socket),
        ("control_group", own.control_group != was.control_group),
        ("memory_mib", own.memory_mib != was.memory_mib),
        ("lab_keys", own.lab_keys != was.lab_keys),
        (
            "admin_prohibited",
            own.admin_prohibited != was.admin_prohibited,
        ),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
    .collect()
}

/// Whether two tunnels are the same but for SPIs and keys.
fn is_same(new: &Tunnel, old: &Tunnel) -> bool {
    let of_tunnel = |tunnel: &Tunnel| {
        (
            tunnel.local_networks.clone(),
            tunnel.remote_networks.clone(),
            tunnel.lifetime,
        )
    };
    let of_set = |set: &EndpointSet| {
        (
            (set.local, set.remote, set.encapsulation, set.nat),
            (set.outer, set.sizes, set.spread_udp_ports),
            (set.outbound.key.cipher(), set.outbound.esn),
            (
                set.inbound.key.cipher(),
                set.inbound.esn,
                set.inbound.window,
            ),
        )
    };
    of_tunnel(new) == of_tunnel(old)
        && new
            .endpoints
            .iter()
            .map(of_set)
            .eq(old.endpoints.iter().map(of_set))
}

/// What names the SAs of a tunnel.
fn keys(tunnel: &Tunnel) -> impl Iterator<Item = [(Spi, KeyFingerprint); 2]> {
    tunnel.endpoints.iter().map(|set| {
        [
            (set.outbound.spi, set.outbound.key.fingerprint()),
            (set.inbound.spi, set.inbound.key.fingerprint()),
        ]
    })
}

/// A policy without SAs of its own.
enum Kind<'a> {
    Rule(&'a Rule),
    /// With the name of its tunnel, for tunnels may have other places.
    Entry(&'a SpdEntry, Option<&'a str>),
}

impl PartialEq for Kind<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Rule(one), Self::Rule(other)) => one == other,
            (Self::Entry(one, tunnel), Self::Entry(other, others)) => {
                let kind = |entry: &SpdEntry| std::mem::discriminant(&entry.action);
                tunnel == others
                    && kind(one) == kind(other)
                    && (&one.local, &one.remote, &one.upper)
                        == (&other.local, &other.remote, &other.upper)
            }
            _ => false,
        }
    }
}

fn policies(policy: &Policy) -> impl Iterator<Item = (String, Kind<'_>)> {
    let rules = policy.rules.iter();
    let rules = rules.map(|rule| (rule.name.clone(), Kind::Rule(rule)));
    let entries = policy.entries.iter().map(|entry| {
        let tunnel = match entry.action {
            EntryAction::Protect(at) => policy.tunnels.get(at.index()),
            EntryAction::Bypass | EntryAction::Discard => None,
        };
        let tunnel = tunnel.map(|tunnel| tunnel.name.as_str());
        (entry.name.clone(), Kind::Entry(entry, tunnel))
    });
    rules.chain(entries)
}

/// The ordered policies of `policy` that `other` has too, in their order.
fn order<'a>(policy: &'a Policy, other: &Policy) -> Vec<&'a str> {
    let of_other = other.entries.iter().map(|entry| entry.name.as_str());
    let others: BTreeSet<&str> = of_other.collect();
    let names = policy.entries.iter().map(|entry| entry.name.as_str());
    names.filter(|name| others.contains(name)).collect()
}

/// Things with their names.
fn named<T>(list: &[T], name: fn(&T) -> String) -> impl Iterator<Item = (String, &T)> {
    list.iter().map(move |one| (name(one), one))
}

/// What is different between lists of things that say by themselves whether they are the same.
fn changed<T: PartialEq>(new: &[T], old: &[T], name: fn(&T) -> String) -> Names {
    names(named(new, name), named(old, name), |new, old| new == old)
}

fn names<T>(
    new: impl Iterator<Item = (String, T)>,
    old: impl Iterator<Item = (String, T)>,
    is_same: impl Fn(&T, &T) -> bool,
) -> Names {
    let mut old: BTreeMap<String, T> = old.collect();
    let mut names = Names::default();
    for (name, new) in new {
        match old.remove(&name) {
            None => names.added.push(name),
            Some(old) if is_same(&new, &old) => {}
            Some(_) => names.changed.push(name),
        }
    }
    names.removed = old.into_keys().collect();
    names
}
