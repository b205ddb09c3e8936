//! From the policy that a gateway has to the one that it is to have: what stays, comes and goes, and which slots SAs have.
//!
//! An SA stays where SPIs and keys of its pair are equal, whatever its tunnel is called then; everything about it stays with
//! it. What is fixed for its life cannot be changed without other keys, and ports, workers and the like not without a start.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::compile::{Leaving, endpoint_sets};
use super::model::{EndpointSet, EntryAction, Policy, Rule, SpdEntry, Tunnel};
use crate::crypto::aead::KeyFingerprint;
use crate::ids::{SaIndex, Spi, TunnelIndex};

/// Why a gateway cannot come to another policy as it runs.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Obstacle {
    /// Something that is settled when a gateway starts.
    #[error(
        "{what} differs, and is settled when the gateway starts: leave it as it is, or stop and start the gateway"
    )]
    NeedsStart {
        /// What.
        what: String,
    },
    /// Something that is settled when an SA is made.
    #[error(
        "tunnel \"{tunnel}\" changes {what} of SAs that stay: give it new SPIs and keys at both ends, so that new SAs take their place"
    )]
    NeedsKeys {
        /// The tunnel.
        tunnel: String,
        /// What.
        what: &'static str,
    },
    /// A key of another SA.
    #[error(
        "tunnel \"{tunnel}\" gives another SA the key of one that runs, so that GCM nonces would repeat: give it a key of its own, or \
         leave SPIs and both keys as they are"
    )]
    KeyInUse {
        /// The tunnel.
        tunnel: String,
    },
    /// An SPI of another SA.
    #[error(
        "tunnel \"{tunnel}\" gives a new SA the inbound SPI {spi} of one that runs or is leaving: choose another SPI, so that both can \
         be told apart while one takes the place of the other"
    )]
    SpiInUse {
        /// The tunnel.
        tunnel: String,
        /// The SPI.
        spi: Spi,
    },
    /// Some SAs of a split tunnel stay.
    #[error(
        "tunnel \"{tunnel}\" is split, and keeps some of its SAs or their order: replace all of them or none"
    )]
    PartOfSplit {
        /// The tunnel.
        tunnel: String,
    },
    /// There is no room.
    #[error(
        "there is room for {room} SA pairs, those that are leaving among them: wait until they have left, or start the gateway anew"
    )]
    NoRoom {
        /// How many pairs there may be.
        room: usize,
    },
}

/// What is different, by name.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Difference {
    /// Tunnels.
    pub tunnels: Names,
    /// Tunnels that go on with other SAs: new SPIs and keys.
    pub rekeyed: Vec<String>,
    /// Ordered policies, bypasses and discards.
    pub policies: Names,
    /// Whether the order of policies is another one.
    pub reordered: bool,
    /// Static neighbours.
    pub neighbours: Names,
    /// Static routes.
    pub routes: Names,
    /// Settings of the gateway that may change as it runs.
    pub settings: Vec<String>,
}

/// Of one kind of thing: what is different.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Names {
    /// New.
    pub added: Vec<String>,
    /// No longer there.
    pub removed: Vec<String>,
    /// There, but not as it was.
    pub changed: Vec<String>,
}

impl Names {
    fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

impl Difference {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether what the kernel's routes and neighbours come on top of is as it was.
    pub fn keeps_routes(&self) -> bool {
        self.neighbours.is_empty() && self.routes.is_empty()
    }
}

impl fmt::Display for Difference {
    /// A line for each thing, with `+`, `-` or `~` before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            ("tunnel", &self.tunnels),
            ("policy", &self.policies),
            ("neighbour", &self.neighbours),
            ("route", &self.routes),
        ];
        for (kind, names) in kinds {
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
            writeln!(f, "~ tunnel {name}: new SAs take the place of its old ones")?;
        }
        if self.reordered {
            writeln!(f, "~ the order of policies")?;
        }
        for setting in &self.settings {
            writeln!(f, "~ {setting}")?;
        }
        Ok(())
    }
}

/// A policy that has been given its slots beside the one that runs.
pub struct Placed {
    /// What is different.
    pub difference: Difference,
    /// Sets whose SAs are to be made.
    pub fresh: BTreeSet<SaIndex>,
    /// SAs that are no longer named, those that were leaving before and still are among them.
    pub leaving: Vec<Leaving>,
    /// SAs that stay and whose tunnel has other networks than when they were made.
    pub widened: BTreeSet<SaIndex>,
}

/// What names an SA pair.
type Pair = (Spi, KeyFingerprint, Spi, KeyFingerprint);

fn pair(set: &EndpointSet) -> Pair {
    (
        set.outbound.spi,
        set.outbound.key.fingerprint(),
        set.inbound.spi,
        set.inbound.key.fingerprint(),
    )
}

/// Gives the sets of `new` their slots beside those of `old`, which a gateway has, and beside what is `leaving` there, out of
/// `room` slots. Of sets that are new and take the place of one, [`EndpointSet::seals_by`] is the old one's slot.
///
/// # Errors
/// All that is in the way; the slots of `new` mean nothing then.
pub fn place(
    new: &mut Policy,
    old: &Policy,
    leaving: &[Gone],
    room: usize,
) -> Result<Placed, Vec<Obstacle>> {
    let mut obstacles = unchangeable(new, old);
    let known = Known::new(old, leaving);
    let mut fresh = BTreeSet::new();
    let mut widened = BTreeSet::new();
    let mut free = Free::new(&known, room);
    for tunnel in &mut new.tunnels {
        let networks = (
            tunnel.local_networks.clone(),
            tunnel.remote_networks.clone(),
        );
        for sets in tunnel
            .endpoints
            .chunk_by_mut(|one, other| one.local == other.local)
        {
            let standing: Vec<_> = sets.iter().map(|set| known.find(set)).collect();
            if standing.iter().all(Option::is_none) {
                known.check_fresh(&tunnel.name, sets, &mut obstacles);
                let Some(first) = free.take(sets.len()) else {
                    obstacles.push(Obstacle::NoRoom { room });
                    continue;
                };
                for (slot, set) in (first.0..).map(SaIndex).zip(sets.iter_mut()) {
                    (set.slot, set.seals_by) = (slot, slot);
                    fresh.insert(slot);
                }
                known.keep_sealing(&tunnel.name, sets);
                continue;
            }
            if !are_next_to_each_other(&standing) {
                let tunnel = tunnel.name.clone();
                obstacles.push(Obstacle::PartOfSplit { tunnel });
                continue;
            }
            for (set, stands) in sets.iter_mut().zip(standing.into_iter().flatten()) {
                if let Some(what) = fixed(set, stands.set) {
                    let tunnel = tunnel.name.clone();
                    obstacles.push(Obstacle::NeedsKeys { tunnel, what });
                }
                (set.slot, set.seals_by) = (stands.set.slot, stands.seals_by);
                if stands.networks != (&networks.0[..], &networks.1[..]) {
                    widened.insert(set.slot);
                }
            }
        }
    }
    if !obstacles.is_empty() {
        obstacles.dedup();
        return Err(obstacles);
    }
    let names_of: HashMap<&str, u32> = new
        .tunnels
        .iter()
        .zip(0u32..)
        .map(|(tunnel, at)| (tunnel.name.as_str(), at))
        .collect();
    let stays: BTreeSet<SaIndex> = endpoint_sets(new).map(|(slot, ..)| slot).collect();
    let gone = known
        .all()
        .filter(|stands| !stays.contains(&stands.set.slot));
    let leaving = gone
        .map(|stands| Leaving {
            slot: stands.set.slot,
            spi: stands.set.inbound.spi,
            local: stands.set.local,
            remote: stands.set.remote,
            encapsulation: stands.set.encapsulation,
            tunnel: names_of.get(stands.tunnel).copied().map(TunnelIndex),
        })
        .collect();
    Ok(Placed {
        difference: difference(new, old, &fresh),
        fresh,
        leaving,
        widened,
    })
}

/// A tunnel that is no longer in the policy, or is there with other SAs, and whose SAs are leaving.
pub struct Gone {
    /// What it was, without its keys.
    pub tunnel: Tunnel,
}

/// An SA pair that there is.
#[derive(Clone, Copy)]
struct Stands<'a> {
    set: &'a EndpointSet,
    tunnel: &'a str,
    networks: (&'a [IpNet], &'a [IpNet]),
    /// The slot of the SA that seals.
    seals_by: SaIndex,
}

/// The SA pairs that there are.
struct Known<'a> {
    pairs: HashMap<Pair, Stands<'a>>,
    keys: BTreeMap<[u8; 16], ()>,
    spis: BTreeSet<u32>,
    /// By name: of the running policy.
    tunnels: HashMap<&'a str, &'a Tunnel>,
}

impl<'a> Known<'a> {
    fn new(old: &'a Policy, leaving: &'a [Gone]) -> Self {
        let gone = leaving.iter().map(|gone| (&gone.tunnel, false));
        let running = old.tunnels.iter().map(|tunnel| (tunnel, true));
        let mut known = Self {
            pairs: HashMap::new(),
            keys: BTreeMap::new(),
            spis: BTreeSet::new(),
            tunnels: old
                .tunnels
                .iter()
                .map(|tunnel| (tunnel.name.as_str(), tunnel))
                .collect(),
        };
        for (tunnel, runs) in gone.chain(running) {
            for set in &tunnel.endpoints {
                let stands = Stands {
                    set,
                    tunnel: &tunnel.name,
                    networks: (&tunnel.local_networks, &tunnel.remote_networks),
                    // Once it is back, there is nothing that it takes the place of.
                    seals_by: if runs { set.seals_by } else { set.slot },
                };
                known.pairs.insert(pair(set), stands);
                for key in [&set.outbound.key, &set.inbound.key] {
                    known.keys.insert(*key.fingerprint().as_bytes(), ());
                }
                known.spis.insert(set.inbound.spi.get());
            }
        }
        known
    }

    fn all(&self) -> impl Iterator<Item = &Stands<'a>> {
        self.pairs.values()
    }

    fn find(&self, set: &EndpointSet) -> Option<Stands<'a>> {
        self.pairs.get(&pair(set)).copied()
    }

    /// Complains about new sets that have what one that there is has.
    fn check_fresh(&self, tunnel: &str, sets: &[EndpointSet], obstacles: &mut Vec<Obstacle>) {
        for set in sets {
            let tunnel = || tunnel.to_owned();
            let keys = [&set.outbound.key, &set.inbound.key].map(|key| key.fingerprint());
            if keys
                .iter()
                .any(|key| self.keys.contains_key(key.as_bytes()))
            {
                obstacles.push(Obstacle::KeyInUse { tunnel: tunnel() });
            } else if self.spis.contains(&set.inbound.spi.get()) {
                obstacles.push(Obstacle::SpiInUse {
                    tunnel: tunnel(),
                    spi: set.inbound.spi,
                });
            }
        }
    }

    /// Where new sets take the place of as many of the tunnel's, has those seal until the peer has its counterparts.
    fn keep_sealing(&self, tunnel: &str, sets: &mut [EndpointSet]) {
        let Some(old) = self.tunnels.get(tunnel) else {
            return;
        };
        let is_v4 = sets.first().is_some_and(|set| set.local.is_ipv4());
        let of_family = old
            .endpoints
            .iter()
            .filter(|set| set.local.is_ipv4() == is_v4);
        let slots: Vec<SaIndex> = of_family.map(|set| set.seals_by).collect();
        if slots.len() == sets.len() {
            for (set, slot) in sets.iter_mut().zip(slots) {
                set.seals_by = slot;
            }
        }
    }
}

/// Slots that nobody has.
struct Free {
    taken: Vec<bool>,
    next: usize,
}

impl Free {
    fn new(known: &Known<'_>, room: usize) -> Self {
        let mut taken = vec![false; room];
        for stands in known.all() {
            if let Some(place) = taken.get_mut(stands.set.slot.index()) {
                *place = true;
            }
        }
        Self { taken, next: 0 }
    }

    /// Takes `count` slots next to each other, the lowest there are.
    fn take(&mut self, count: usize) -> Option<SaIndex> {
        let rest = self.taken.get(self.next..)?;
        let windows = rest.windows(count.max(1));
        let at = self.next
            + windows
                .into_iter()
                .position(|run| run.iter().all(|taken| !taken))?;
        for place in self.taken.get_mut(at..at + count)? {
            *place = true;
        }
        // Lower ones are taken, but for gaps that a longer run did not fit into.
        if count == 1 {
            self.next = at + 1;
        }
        u32::try_from(at).ok().map(SaIndex)
    }
}

/// Whether all stand, in slots that follow each other.
fn are_next_to_each_other(standing: &[Option<Stands<'_>>]) -> bool {
    standing.iter().all(Option::is_some)
        && standing.windows(2).all(|two| match two {
            [Some(one), Some(other)] => one.set.slot.0 + 1 == other.set.slot.0,
            _ => false,
        })
}

/// What differs between two sets of the same SAs and is settled when those are made.
fn fixed(new: &EndpointSet, old: &EndpointSet) -> Option<&'static str> {
    [
        (
            "local or remote",
            (new.local, new.remote) != (old.local, old.remote),
        ),
        (
            "encapsulation or UDP ports",
            new.encapsulation != old.encapsulation,
        ),
        ("nat_keepalive or peer_moves", new.nat != old.nat),
        ("hop_limit, dscp, df or ecn", new.outer != old.outer),
        (
            "fragmentation, clamp_mss or path_mtu",
            new.sizes != old.sizes,
        ),
        (
            "spread_udp_ports",
            new.spread_udp_ports != old.spread_udp_ports,
        ),
        (
            "esn or window",
            (new.outbound.esn, new.inbound.esn, new.inbound.window)
                != (old.outbound.esn, old.inbound.esn, old.inbound.window),
        ),
    ]
    .into_iter()
    .find_map(|(what, differs)| differs.then_some(what))
}

/// What of the gateway differs that cannot while it runs.
fn unchangeable(new: &Policy, old: &Policy) -> Vec<Obstacle> {
    let (own, was) = (&new.gateway, &old.gateway);
    let settings = [
        ("name", own.name != was.name),
        ("workers", own.workers != was.workers),
        ("state_dir", own.state_dir != was.state_dir),
        ("control_socket", own.control_socket != was.control_socket),
        ("memory_mib", own.memory_mib != was.memory_mib),
        ("control_group", own.control_group != was.control_group),
    ];
    let mut obstacles: Vec<Obstacle> = settings
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| Obstacle::NeedsStart {
            what: format!("{key} of [gateway]"),
        })
        .collect();
    if new.ports.len() != old.ports.len() {
        let what = "the number of ports".to_owned();
        obstacles.push(Obstacle::NeedsStart { what });
    } else {
        let differing = new
            .ports
            .iter()
            .zip(&old.ports)
            .filter(|(new, old)| new != old);
        obstacles.extend(differing.map(|(port, _)| Obstacle::NeedsStart {
            what: format!("port \"{}\"", port.name),
        }));
    }
    obstacles
}

fn difference(new: &Policy, old: &Policy, fresh: &BTreeSet<SaIndex>) -> Difference {
    let is_fresh = |tunnel: &Tunnel| tunnel.endpoints.iter().any(|set| fresh.contains(&set.slot));
    let tunnels = names(
        new.tunnels
            .iter()
            .map(|tunnel| (tunnel.name.clone(), tunnel)),
        old.tunnels
            .iter()
            .map(|tunnel| (tunnel.name.clone(), tunnel)),
        |new, old| {
            new.local_networks == old.local_networks
                && new.remote_networks == old.remote_networks
                && new.lifetime == old.lifetime
                && new.endpoints.len() == old.endpoints.len()
        },
    );
    let rekeyed = new.tunnels.iter().filter(|tunnel| is_fresh(tunnel));
    let rekeyed = rekeyed
        .map(|tunnel| tunnel.name.clone())
        .filter(|name| !tunnels.added.contains(name))
        .collect();
    Difference {
        tunnels,
        rekeyed,
        policies: names(
            policies(new),
            policies(old),
            |new: &Kind<'_>, old: &Kind<'_>| new == old,
        ),
        reordered: order(new, old) != order(old, new),
        neighbours: names(
            new.neighbours
                .iter()
                .map(|hop| (hop.address.to_string(), hop)),
            old.neighbours
                .iter()
                .map(|hop| (hop.address.to_string(), hop)),
            |new, old| new == old,
        ),
        routes: names(
            new.routes
                .iter()
                .map(|route| (format!("{} via {}", route.to, route.via), route)),
            old.routes
                .iter()
                .map(|route| (format!("{} via {}", route.to, route.via), route)),
            |new, old| new == old,
        ),
        settings: [
            ("lab_keys", new.gateway.lab_keys != old.gateway.lab_keys),
            (
                "admin_prohibited",
                new.gateway.admin_prohibited != old.gateway.admin_prohibited,
            ),
        ]
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key.to_owned())
        .collect(),
    }
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
    let rules = policy
        .rules
        .iter()
        .map(|rule| (rule.name.clone(), Kind::Rule(rule)));
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
    let others: BTreeSet<&str> = other
        .entries
        .iter()
        .map(|entry| entry.name.as_str())
        .collect();
    let names = policy.entries.iter().map(|entry| entry.name.as_str());
    names.filter(|name| others.contains(name)).collect()
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
