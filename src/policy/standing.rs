//! What a gateway runs by: a policy whose SA pairs have slots, and beside it the pairs that the policy names no more. From it to
//! the next policy: what stays, comes and goes.
//!
//! A pair stays where its SPIs and keys are equal, whatever its tunnel is called then; everything about it stays with it. What
//! is fixed for its life cannot be changed without other keys, and ports, workers and the like not without a start.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::compile::endpoint_sets;
use super::model::{EndpointSet, Policy, Tunnel};
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
        "tunnel \"{tunnel}\" changes {what} of SAs that stay: give it new SPIs and keys at both ends, so that new SAs take their \
         place"
    )]
    NeedsKeys {
        /// The tunnel.
        tunnel: String,
        /// What.
        what: &'static str,
    },
    /// A key of another SA.
    #[error(
        "tunnel \"{tunnel}\" gives another SA the key of one that runs or is leaving, so that GCM nonces would repeat: give it a key \
         of its own, or leave SPIs and both keys as they are"
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

/// What a gateway runs by.
#[derive(Clone)]
pub struct Standing {
    /// The policy, without its keys.
    policy: Arc<Policy>,
    /// Pairs that it names no more, by slot.
    gone: BTreeMap<SaIndex, Gone>,
    beside: Beside,
    /// Slots there are.
    room: usize,
}

/// What tables have beside their policy while one takes the place of another.
#[derive(Clone, Default)]
pub struct Beside {
    /// Pairs that the policy names no more, and that are kept for what is still on its way.
    pub leaving: Vec<Leaving>,
    /// Of new pairs whose counterparts the peer may not have yet: by whose slot their packets are sealed so long.
    pub sealing: BTreeMap<SaIndex, SaIndex>,
    /// Pairs whose tunnel has other networks than when they were made: policies are asked what they carry.
    pub widened: BTreeSet<SaIndex>,
}

/// An SA pair that no policy names any more.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// Its slot.
    pub slot: SaIndex,
    /// The SPI of its inbound half.
    pub spi: Spi,
    /// Our outer address.
    pub local: std::net::IpAddr,
    /// The peer's, as the policy had it.
    pub remote: std::net::IpAddr,
    /// ESP as it is, or in UDP.
    pub encapsulation: crate::ipsec::outer::Encapsulation,
    /// The tunnel that has its place, where there is one.
    pub tunnel: Option<TunnelIndex>,
}

/// Where a pair stands in the policy that it is of.
#[derive(Clone)]
struct Gone {
    policy: Arc<Policy>,
    tunnel: TunnelIndex,
    set: usize,
}

/// From one policy to the next.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct Step {
    /// Pairs that are to be made, in order.
    pub fresh: Vec<SaIndex>,
    /// Pairs that are leaving from now on.
    pub left: Vec<SaIndex>,
}

/// What one standing has beside its policy and the one before had not, or the reverse.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct Departures {
    /// Pairs that are leaving, nothing is sealed by, and of which that is new; and whether a tunnel has their place.
    pub idle: Vec<(SaIndex, bool)>,
    /// Pairs that are leaving no more: they have left, or are named again.
    pub over: Vec<SaIndex>,
    /// Pairs that others seal for, and did not before.
    pub sealed_for: Vec<SaIndex>,
    /// Pairs that others seal for no more.
    pub by_themselves: Vec<SaIndex>,
}

impl Beside {
    /// Pairs that others take the place of, so that what comes is still opened; nothing comes any more of a tunnel that is gone.
    pub fn replaced(&self) -> impl Iterator<Item = &Leaving> {
        self.leaving.iter().filter(|sa| sa.tunnel.is_some())
    }

    /// The slot of the SA that seals what the pair in `slot` is for.
    pub fn seals_by(&self, slot: SaIndex) -> SaIndex {
        self.sealing.get(&slot).copied().unwrap_or(slot)
    }
}

impl Gone {
    fn tunnel(&self) -> Option<&Tunnel> {
        self.policy.tunnels.get(self.tunnel.index())
    }

    fn set(&self) -> Option<&EndpointSet> {
        self.tunnel()?.endpoints.get(self.set)
    }
}

impl Standing {
    /// A gateway that has just begun to run by `policy`, with `room` slots.
    pub fn new(policy: Arc<Policy>, room: usize) -> Self {
        Self {
            policy,
            gone: BTreeMap::new(),
            beside: Beside::default(),
            room,
        }
    }

    /// The policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// What is beside it.
    pub fn beside(&self) -> &Beside {
        &self.beside
    }

    /// Gives the pairs of `new` their slots: those that there are keep theirs.
    ///
    /// # Errors
    /// All that is in the way; the slots of `new` mean nothing then.
    pub fn place(&self, new: &mut Policy) -> Result<(), Vec<Obstacle>> {
        let mut obstacles = unchangeable(new, &self.policy);
        let known = Known::new(self);
        let mut free = Free::new(&known, self.room);
        for tunnel in &mut new.tunnels {
            let lifetime = tunnel.lifetime;
            let sets = tunnel.endpoints.iter_mut().collect::<Vec<_>>();
            let mut sets = sets.into_iter().peekable();
            while let Some(first) = sets.next() {
                let local = first.local;
                let mut of_one_end = vec![first];
                while let Some(next) = sets.next_if(|set| set.local == local) {
                    of_one_end.push(next);
                }
                let placed = known.place(&tunnel.name, lifetime, &mut of_one_end, &mut free);
                obstacles.extend(placed.err());
            }
        }
        obstacles.dedup();
        if obstacles.is_empty() {
            Ok(())
        } else {
            Err(obstacles)
        }
    }

    /// The gateway with `new`, whose pairs have their slots, in place of its policy.
    pub fn follow(&self, new: Arc<Policy>) -> (Self, Step) {
        let slots = |policy: &Policy| -> BTreeSet<SaIndex> {
            endpoint_sets(policy).map(|(slot, ..)| slot).collect()
        };
        let (has, had) = (slots(&new), slots(&self.policy));
        let step = Step {
            fresh: has
                .iter()
                .filter(|slot| !had.contains(slot) && !self.gone.contains_key(slot))
                .copied()
                .collect(),
            left: had.difference(&has).copied().collect(),
        };
        let mut gone = self.gone.clone();
        gone.retain(|slot, _| !has.contains(slot));
        for (at, tunnel) in (0u32..).map(TunnelIndex).zip(&self.policy.tunnels) {
            for (place, set) in tunnel.endpoints.iter().enumerate() {
                if !has.contains(&set.slot) {
                    let policy = Arc::clone(&self.policy);
                    let (tunnel, set_at) = (at, place);
                    gone.insert(
                        set.slot,
                        Gone {
                            policy,
                            tunnel,
                            set: set_at,
                        },
                    );
                }
            }
        }
        let sealing = self.sealing(&new, &step, &has);
        let widened = self.widened(&new);
        let mut standing = Self {
            policy: new,
            gone,
            beside: Beside {
                leaving: Vec::new(),
                sealing,
                widened,
            },
            room: self.room,
        };
        standing.list_leaving();
        (standing, step)
    }

    /// The gateway once the pairs in `moved` seal by themselves, and those in `dropped` have left.
    #[must_use]
    pub fn settle(&self, moved: &[SaIndex], dropped: &[SaIndex]) -> Self {
        let mut standing = self.clone();
        for slot in moved {
            standing.beside.sealing.remove(slot);
        }
        for slot in dropped {
            standing.gone.remove(slot);
        }
        standing.list_leaving();
        standing
    }

    /// Slots of the pairs of the policy.
    pub fn slots(&self) -> impl Iterator<Item = SaIndex> {
        endpoint_sets(&self.policy).map(|(slot, ..)| slot)
    }

    /// Slots of the pairs that it names no more.
    pub fn gone_slots(&self) -> impl Iterator<Item = SaIndex> {
        self.gone.keys().copied()
    }

    /// The pair in `slot`, where the policy names it no more, and the tunnel that it was of.
    pub fn gone(&self, slot: SaIndex) -> Option<(&Tunnel, &EndpointSet)> {
        let gone = self.gone.get(&slot)?;
        gone.tunnel().zip(gone.set())
    }

    /// Slots of pairs that are leaving and that nothing is sealed by.
    pub fn leaving(&self) -> impl Iterator<Item = SaIndex> {
        let sealing: BTreeSet<SaIndex> = self.beside.sealing.values().copied().collect();
        let gone = self.gone.keys().copied();
        gone.filter(move |slot| !sealing.contains(slot))
    }

    /// What is different beside its policy from what was beside `before`.
    pub fn departures_from(&self, before: &Self) -> Departures {
        let not_in = |map: &BTreeMap<SaIndex, SaIndex>, slot: &SaIndex| !map.contains_key(slot);
        let (sealing, sealed) = (&self.beside.sealing, &before.beside.sealing);
        let was_idle: BTreeSet<SaIndex> = before.leaving().collect();
        let idle: BTreeSet<SaIndex> = self.leaving().collect();
        let new = |sa: &&Leaving| idle.contains(&sa.slot) && !was_idle.contains(&sa.slot);
        let new = self.beside.leaving.iter().filter(new);
        let over = before
            .gone
            .keys()
            .filter(|slot| !self.gone.contains_key(slot));
        let others = sealing.keys().filter(|slot| not_in(sealed, slot));
        let own = sealed.keys().filter(|slot| not_in(sealing, slot));
        Departures {
            idle: new.map(|sa| (sa.slot, sa.tunnel.is_some())).collect(),
            over: over.copied().collect(),
            sealed_for: others.copied().collect(),
            by_themselves: own.copied().collect(),
        }
    }

    fn list_leaving(&mut self) {
        let by_name: HashMap<&str, u32> = names(&self.policy);
        let leaving = self.gone.iter().filter_map(|(slot, gone)| {
            let set = gone.set()?;
            let tunnel = gone.tunnel()?.name.as_str();
            Some(Leaving {
                slot: *slot,
                spi: set.inbound.spi,
                local: set.local,
                remote: set.remote,
                encapsulation: set.encapsulation,
                tunnel: by_name.get(tunnel).copied().map(TunnelIndex),
            })
        });
        self.beside.leaving = leaving.collect();
    }

    /// By whom new pairs have their packets sealed: where they take the place of as many of their tunnel's, by those.
    fn sealing(
        &self,
        new: &Policy,
        step: &Step,
        has: &BTreeSet<SaIndex>,
    ) -> BTreeMap<SaIndex, SaIndex> {
        let mut sealing = self.beside.sealing.clone();
        sealing.retain(|slot, _| has.contains(slot));
        if step.fresh.is_empty() {
            return sealing;
        }
        let fresh: HashSet<SaIndex> = step.fresh.iter().copied().collect();
        let by_name = names(&self.policy);
        for tunnel in &new.tunnels {
            let old = by_name.get(tunnel.name.as_str());
            let Some(old) = old.and_then(|at| self.policy.tunnels.get(*at as usize)) else {
                continue;
            };
            for is_v4 in [true, false] {
                let of_family = |tunnel: &'_ Tunnel| -> Vec<SaIndex> {
                    let sets = tunnel.endpoints.iter();
                    let sets = sets.filter(|set| set.local.is_ipv4() == is_v4);
                    sets.map(|set| set.slot).collect()
                };
                let (new, old) = (of_family(tunnel), of_family(old));
                if new.len() == old.len() && new.iter().all(|slot| fresh.contains(slot)) {
                    let by = old.into_iter().map(|slot| self.beside.seals_by(slot));
                    sealing.extend(new.into_iter().zip(by));
                }
            }
        }
        sealing
    }

    /// Pairs whose tunnel has other networks than when they were made.
    fn widened(&self, new: &Policy) -> BTreeSet<SaIndex> {
        let known = Known::new(self);
        let mut widened = BTreeSet::new();
        for (slot, _, tunnel, set) in endpoint_sets(new) {
            let has_others = known.find(set).is_some_and(|stands| {
                (&tunnel.local_networks, &tunnel.remote_networks)
                    != (
                        &stands.tunnel.local_networks,
                        &stands.tunnel.remote_networks,
                    )
            });
            if has_others || self.beside.widened.contains(&slot) {
                widened.insert(slot);
            }
        }
        widened
    }
}

/// Where each tunnel stands, by name.
fn names(policy: &Policy) -> HashMap<&str, u32> {
    let tunnels = policy.tunnels.iter().zip(0u32..);
    tunnels
        .map(|(tunnel, at)| (tunnel.name.as_str(), at))
        .collect()
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

/// An SA pair that there is.
#[derive(Clone, Copy)]
struct Stands<'a> {
    set: &'a EndpointSet,
    tunnel: &'a Tunnel,
}

/// The SA pairs that there are.
struct Known<'a> {
    pairs: HashMap<Pair, Stands<'a>>,
    keys: HashSet<KeyFingerprint>,
    spis: HashSet<Spi>,
}

impl<'a> Known<'a> {
    fn new(standing: &'a Standing) -> Self {
        let gone = standing.gone.values();
        let gone = gone.filter_map(|gone| gone.tunnel().zip(gone.set()));
        let running = endpoint_sets(&standing.policy).map(|(_, _, tunnel, set)| (tunnel, set));
        let mut known = Self {
            pairs: HashMap::new(),
            keys: HashSet::new(),
            spis: HashSet::new(),
        };
        for (tunnel, set) in gone.chain(running) {
            known.pairs.insert(pair(set), Stands { set, tunnel });
            known.keys.insert(set.outbound.key.fingerprint());
            known.keys.insert(set.inbound.key.fingerprint());
            known.spis.insert(set.inbound.spi);
        }
        known
    }

    fn find(&self, set: &EndpointSet) -> Option<Stands<'a>> {
        self.pairs.get(&pair(set)).copied()
    }

    /// Gives the pairs between one pair of ends their slots.
    fn place(
        &self,
        tunnel: &str,
        lifetime: super::model::Lifetime,
        sets: &mut [&mut EndpointSet],
        free: &mut Free,
    ) -> Result<(), Obstacle> {
        let standing: Vec<_> = sets.iter().map(|set| self.find(set)).collect();
        let tunnel = || tunnel.to_owned();
        if standing.iter().all(Option::is_none) {
            self.check_fresh(tunnel, sets)?;
            let first = free.take(sets.len())?;
            for (slot, set) in (first.0..).map(SaIndex).zip(sets) {
                set.slot = slot;
            }
            return Ok(());
        }
        if !are_next_to_each_other(&standing) {
            return Err(Obstacle::PartOfSplit { tunnel: tunnel() });
        }
        for (set, stands) in sets.iter_mut().zip(standing.into_iter().flatten()) {
            if let Some(what) = fixed(set, lifetime, stands) {
                let tunnel = tunnel();
                return Err(Obstacle::NeedsKeys { tunnel, what });
            }
            set.slot = stands.set.slot;
        }
        Ok(())
    }

    /// Complains about new pairs that have what one that there is has.
    fn check_fresh(
        &self,
        tunnel: impl Fn() -> String,
        sets: &[&mut EndpointSet],
    ) -> Result<(), Obstacle> {
        for set in sets {
            let keys = [&set.outbound.key, &set.inbound.key];
            if keys
                .iter()
                .any(|key| self.keys.contains(&key.fingerprint()))
            {
                return Err(Obstacle::KeyInUse { tunnel: tunnel() });
            }
            let spi = set.inbound.spi;
            if self.spis.contains(&spi) {
                let tunnel = tunnel();
                return Err(Obstacle::SpiInUse { tunnel, spi });
            }
        }
        Ok(())
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
        for stands in known.pairs.values() {
            if let Some(place) = taken.get_mut(stands.set.slot.index()) {
                *place = true;
            }
        }
        Self { taken, next: 0 }
    }

    /// Takes `count` slots next to each other, the lowest there are.
    fn take(&mut self, count: usize) -> Result<SaIndex, Obstacle> {
        let room = self.taken.len();
        let rest = self.taken.get(self.next..).unwrap_or_default();
        let found = rest
            .windows(count.max(1))
            .position(|run| run.iter().all(|taken| !taken));
        let at = self.next + found.ok_or(Obstacle::NoRoom { room })?;
        for place in self.taken.iter_mut().skip(at).take(count) {
            *place = true;
        }
        // Lower ones are taken, but for gaps that a longer run did not fit into.
        if count == 1 {
            self.next = at + 1;
        }
        let slot = u32::try_from(at).map_err(|_| Obstacle::NoRoom { room })?;
        Ok(SaIndex(slot))
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
fn fixed(
    new: &EndpointSet,
    lifetime: super::model::Lifetime,
    stands: Stands<'_>,
) -> Option<&'static str> {
    let old = stands.set;
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
        ("the lifetime", lifetime != stands.tunnel.lifetime),
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
    let differing = settings.into_iter().filter(|(_, differs)| *differs);
    let needs_start = |what: String| Obstacle::NeedsStart { what };
    let mut obstacles: Vec<Obstacle> = differing
        .map(|(key, _)| needs_start(format!("{key} of [gateway]")))
        .collect();
    if new.ports.len() != old.ports.len() {
        obstacles.push(needs_start("the number of ports".to_owned()));
    } else {
        let ports = new.ports.iter().zip(&old.ports);
        let differing = ports.filter(|(new, old)| new != old);
        obstacles.extend(differing.map(|(port, _)| needs_start(format!("port \"{}\"", port.name))));
    }
    obstacles
}
