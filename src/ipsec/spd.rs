//! The security policy database of the packet path: source and destination to what is done (RFC 4301 section 4.4.1).
//!
//! Tuple space search: policies whose prefixes have the same two lengths share one hash table, and the tables are asked
//! from the most specific down, so the cost depends on how many pairs of lengths there are, not on how many policies.
//! Among equally specific tables the one declared first is asked first. What no policy names is discarded.
//!
//! Before them come ordered rules with full selectors, where there are any ([`super::rules`]); a worker remembers what was
//! decided for a flow ([`super::flow_cache`]). Without such rules a packet pays nothing for them.

use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use crate::ids::{SaIndex, TunnelIndex};
use crate::ipsec::flat::{FlatKey, FlatMap};
use crate::ipsec::flow_cache::FlowCache;
use crate::ipsec::flow_hash::SaGroup;
use crate::ipsec::rules::{Decision, Rules, RulesBuilder, TooManyWays, TrafficBox};
use crate::ipsec::selector::{Address, AddressPair};
use crate::ipsec::traffic::{AnyTraffic, Direction, Traffic};
use crate::meta::PacketKind;

/// What is done with a packet that came in clear on the protected side; and what had to be done with one that came in on
/// the other, by [`Spd::lookup_inbound`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SpdAction {
    /// Sealed with this SA.
    Protect(SaIndex),
    /// Sealed with one SA of these, the same for a flow.
    Spread(SaGroup),
    /// Passed on in clear.
    Bypass,
    /// Discarded: a policy says so.
    Discard,
    /// Discarded: no policy names it.
    #[default]
    NoPolicy,
}

const _: () = assert!(
    size_of::<SpdAction>() == 8 && size_of::<Option<SpdAction>>() == 8,
    "a group must not make entries larger"
);

/// An immutable set of policies, compiled for lookup.
#[derive(Default)]
pub struct Spd {
    v4: Box<[Tuple<u32>]>,
    v6: Box<[Tuple<u128>]>,
    has_bypass: bool,
    /// By slot; nothing where neither rules nor widened SAs are there.
    owners: Box<[Owner]>,
    has_widened: bool,
    ordered: Option<Box<Ordered>>,
}

/// Whose the SAs in a slot are.
#[derive(Clone, Copy, Default)]
struct Owner {
    tunnel: Option<TunnelIndex>,
    /// What it carries is no longer what the SA itself knows.
    is_widened: bool,
}

/// The ordered rules.
struct Ordered {
    /// Names this SPD among all that there were, so that nothing remembered of another is taken for its own; never 0.
    number: u32,
    v4: Rules<u32>,
    v6: Rules<u128>,
}

/// Source and destination prefix, of lengths that are known from elsewhere, to what is done.
type Actions<A> = FxHashMap<(A, A), SpdAction>;

struct Tuple<A> {
    source_mask: A,
    destination_mask: A,
    /// What is to be discarded stands here too, so that no less specific policy is asked.
    actions: FlatMap<(A, A), SpdAction>,
}

/// Collects policies in declared order.
#[derive(Default)]
pub struct SpdBuilder {
    v4: TupleBuilder<u32>,
    v6: TupleBuilder<u128>,
    has_bypass: bool,
    has_rules: bool,
    rules_v4: RulesBuilder<u32>,
    rules_v6: RulesBuilder<u128>,
    owners: Vec<Owner>,
    has_widened: bool,
}

#[derive(Default)]
struct TupleBuilder<A> {
    /// Prefix lengths of source and destination, to the table; with its place in declared order.
    tuples: FxHashMap<(u8, u8), (usize, Actions<A>)>,
}

impl<A: Address> TupleBuilder<A>
where
    (A, A): FlatKey,
{
    fn add(&mut self, source: (A, u8), destination: (A, u8), action: SpdAction) {
        let declared = self.tuples.len();
        let (_, table) = self
            .tuples
            .entry((source.1, destination.1))
            .or_insert_with(|| (declared, FxHashMap::default()));
        let key = (
            source.0 & A::mask(source.1),
            destination.0 & A::mask(destination.1),
        );
        table.entry(key).or_insert(action);
    }

    fn build(self) -> Box<[Tuple<A>]> {
        let mut tuples: Vec<_> = self.tuples.into_iter().collect();
        tuples.sort_by_key(|((source, destination), (declared, _))| {
            let specific = u16::from(*source).saturating_add(u16::from(*destination));
            (std::cmp::Reverse(specific), *declared)
        });
        let compiled = |((source, destination), (_, actions))| Tuple {
            source_mask: A::mask(source),
            destination_mask: A::mask(destination),
            actions: FlatMap::new(actions),
        };
        tuples.into_iter().map(compiled).collect()
    }
}

impl SpdBuilder {
    /// Adds a policy for what goes from `source` to `destination`. Prefixes of different families name no packet, and
    /// of two equal policies the first stands.
    pub fn add(&mut self, source: &IpNet, destination: &IpNet, action: SpdAction) {
        self.has_bypass |= action == SpdAction::Bypass;
        match (source, destination) {
            (IpNet::V4(source), IpNet::V4(destination)) => self.v4.add(
                (source.addr().to_bits(), source.prefix_len()),
                (destination.addr().to_bits(), destination.prefix_len()),
                action,
            ),
            (IpNet::V6(source), IpNet::V6(destination)) => self.v6.add(
                (source.addr().to_bits(), source.prefix_len()),
                (destination.addr().to_bits(), destination.prefix_len()),
                action,
            ),
            _ => {}
        }
    }

    /// Adds a box of the ordered rule number `order`, IPv4. Rules come in order, and before all prefixes.
    ///
    /// # Errors
    /// [`TooManyWays`]; it is not added.
    pub fn add_rule_v4(
        &mut self,
        order: u32,
        what: &TrafficBox<u32>,
        action: SpdAction,
    ) -> Result<(), TooManyWays> {
        self.has_rules = true;
        self.has_bypass |= action == SpdAction::Bypass;
        self.rules_v4.add(order, what, action)
    }

    /// As [`Self::add_rule_v4`], IPv6.
    ///
    /// # Errors
    /// Likewise.
    pub fn add_rule_v6(
        &mut self,
        order: u32,
        what: &TrafficBox<u128>,
        action: SpdAction,
    ) -> Result<(), TooManyWays> {
        self.has_rules = true;
        self.has_bypass |= action == SpdAction::Bypass;
        self.rules_v6.add(order, what, action)
    }

    /// Says whose the SAs in a slot are: of what is opened, rules are asked whether its tunnel may carry it.
    pub fn set_tunnel(&mut self, slot: SaIndex, tunnel: TunnelIndex) {
        if let Some(owner) = self.owner(slot) {
            owner.tunnel = Some(tunnel);
        }
    }

    /// Says that the tunnel of the SAs in a slot has other networks than they know of: the prefixes are asked what they may carry.
    pub fn set_widened(&mut self, slot: SaIndex) {
        if let Some(owner) = self.owner(slot) {
            owner.is_widened = true;
        }
        self.has_widened = true;
    }

    fn owner(&mut self, slot: SaIndex) -> Option<&mut Owner> {
        let at = slot.index();
        if self.owners.len() <= at {
            self.owners.resize(at.saturating_add(1), Owner::default());
        }
        self.owners.get_mut(at)
    }

    /// What was added, for workers to look up.
    pub fn build(self) -> Spd {
        let ordered = self.has_rules.then(|| Ordered {
            number: new_number(),
            v4: self.rules_v4.build(),
            v6: self.rules_v6.build(),
        });
        let is_asked = self.has_rules || self.has_widened;
        Spd {
            v4: self.v4.build(),
            v6: self.v6.build(),
            has_bypass: self.has_bypass,
            owners: match is_asked {
                true => self.owners.into(),
                false => Box::default(),
            },
            has_widened: self.has_widened,
            ordered: ordered.map(Box::new),
        }
    }
}

/// A number that no SPD of this process had, or not for the last four thousand million.
fn new_number() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1)
}

impl Spd {
    /// Whether any policy lets anything pass in clear: if not, nobody need look for it.
    #[inline]
    pub fn has_bypass(&self) -> bool {
        self.has_bypass
    }

    /// What is done with packets that go the other way: the policy that a packet which came in clear on the unprotected side
    /// has to fit (RFC 4301 section 5.2, the SPD-I).
    pub fn lookup_inbound(&self, addresses: AddressPair) -> SpdAction {
        self.lookup(addresses.reversed())
    }

    /// Asks for what [`Self::lookup`] will read first.
    #[inline]
    pub fn prefetch(&self, addresses: AddressPair) {
        match addresses {
            AddressPair::V4(source, destination) => ask(&self.v4, source, destination),
            AddressPair::V6(source, destination) => ask(&self.v6, source, destination),
        }
    }

    /// What is done with a packet that has these addresses.
    #[inline(always)]
    pub fn lookup(&self, addresses: AddressPair) -> SpdAction {
        match addresses {
            AddressPair::V4(source, destination) => self.lookup_v4(source, destination),
            AddressPair::V6(source, destination) => self.lookup_v6(source, destination),
        }
    }

    /// As [`Self::lookup`], for IPv4.
    #[inline(always)]
    pub fn lookup_v4(&self, source: u32, destination: u32) -> SpdAction {
        find(&self.v4, source, destination)
    }

    /// Whether there are ordered rules, so that [`Self::decide`] is to be asked and not [`Self::lookup`].
    #[inline]
    pub fn has_rules(&self) -> bool {
        self.ordered.is_some()
    }

    /// What is done with the checked IP packet `data`, which goes in `direction` and is in clear: what the first rule that holds
    /// it says, or else the most specific prefixes. Remembered in `flows`.
    #[inline(never)]
    pub fn decide(
        &self,
        flows: &FlowCache,
        data: &[u8],
        kind: PacketKind,
        direction: Direction,
    ) -> SpdAction {
        let number = self.ordered.as_ref().map_or(1, |rules| rules.number);
        let decided = match kind {
            PacketKind::Ipv4 => Traffic::of_v4(data, direction).map(|traffic| {
                let search = |traffic: &_| self.search(AnyTraffic::V4(*traffic)).1;
                flows.v4().decide(number, traffic, search)
            }),
            PacketKind::Ipv6 => Traffic::of_v6(data, direction).map(|traffic| {
                let search = |traffic: &_| self.search(AnyTraffic::V6(*traffic)).1;
                flows.v6().decide(number, traffic, search)
            }),
            PacketKind::Other => None,
        };
        decided.unwrap_or(SpdAction::NoPolicy)
    }

    /// What is done with `traffic`, and the number of the rule that says so, where one does.
    pub fn search(&self, traffic: AnyTraffic) -> (Option<u32>, SpdAction) {
        let ordered = self.ordered.as_ref();
        let (found, addresses) = match traffic {
            AnyTraffic::V4(traffic) => (
                ordered.and_then(|rules| rules.v4.find(&traffic)),
                AddressPair::V4(traffic.local, traffic.remote),
            ),
            AnyTraffic::V6(traffic) => (
                ordered.and_then(|rules| rules.v6.find(&traffic)),
                AddressPair::V6(traffic.local, traffic.remote),
            ),
        };
        match found {
            Some(Decision { order, action }) => (Some(order), action),
            None => (None, self.lookup(addresses)),
        }
    }

    /// Whether the tunnel of the SA in `slot` may carry the opened packet `data`, by the ordered rules: what they say of such
    /// packets the other way is that it does (RFC 4301 section 5.2).
    pub fn admits(&self, flows: &FlowCache, data: &[u8], kind: PacketKind, slot: SaIndex) -> bool {
        self.is_tunnel_of(self.decide(flows, data, kind, Direction::Inbound), slot)
    }

    /// Whether there are SAs whose tunnel has other networks than they know of.
    #[inline]
    pub fn has_widened(&self) -> bool {
        self.has_widened
    }

    /// Whether an SA that is one of those may carry an opened packet with these addresses, by the prefixes; `None` where it is
    /// none of them, and to be asked itself.
    pub fn admits_widened(&self, addresses: AddressPair, slot: SaIndex) -> Option<bool> {
        let owner = self.owners.get(slot.index())?;
        let decided = || self.is_tunnel_of(self.lookup_inbound(addresses), slot);
        owner.is_widened.then(decided)
    }

    /// Whether `action` is to seal with an SA of the tunnel whose SA is in `slot`.
    fn is_tunnel_of(&self, action: SpdAction, slot: SaIndex) -> bool {
        let tunnel_of = |slot: SaIndex| self.owners.get(slot.index())?.tunnel;
        let decided = match action {
            SpdAction::Protect(decided) => Some(decided),
            SpdAction::Spread(group) => Some(group.first()),
            SpdAction::Bypass | SpdAction::Discard | SpdAction::NoPolicy => None,
        };
        let tunnel = decided.and_then(tunnel_of);
        tunnel.is_some() && tunnel == tunnel_of(slot)
    }

    #[inline(never)]
    fn lookup_v6(&self, source: u128, destination: u128) -> SpdAction {
        find(&self.v6, source, destination)
    }
}

#[inline]
fn ask<A: Address>(tuples: &[Tuple<A>], source: A, destination: A)
where
    (A, A): FlatKey,
{
    if let Some(tuple) = tuples.first() {
        tuple.actions.prefetch((
            source & tuple.source_mask,
            destination & tuple.destination_mask,
        ));
    }
}

#[inline(always)]
fn find<A: Address>(tuples: &[Tuple<A>], source: A, destination: A) -> SpdAction
where
    (A, A): FlatKey,
{
    for tuple in tuples {
        let key = (
            source & tuple.source_mask,
            destination & tuple.destination_mask,
        );
        if let Some(action) = tuple.actions.get(key) {
            return action;
        }
    }
    SpdAction::NoPolicy
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spd(policies: &[(&str, &str)]) -> Spd {
        let mut builder = SpdBuilder::default();
        for (at, (source, destination)) in policies.iter().enumerate() {
            let sa = SaIndex(u32::try_from(at).expect("few"));
            let net = |text: &str| text.parse().expect("prefix");
            builder.add(&net(source), &net(destination), SpdAction::Protect(sa));
        }
        builder.build()
    }

    fn ask(spd: &Spd, source: &str, destination: &str) -> Option<u32> {
        let addr = |text: &str| text.parse().expect("address");
        match spd.lookup(AddressPair::new(addr(source), addr(destination)).expect("one family")) {
            SpdAction::Protect(sa) => Some(sa.0),
            _ => None,
        }
    }

    #[test]
    fn most_specific_policy_wins_whatever_the_order() {
        let spd = spd(&[
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.0.0/16", "10.2.0.0/16"),
            ("10.1.0.0/16", "10.2.3.4/32"),
        ]);
        assert_eq!(ask(&spd, "10.1.0.1", "10.2.3.4"), Some(2));
        assert_eq!(ask(&spd, "10.1.0.1", "10.2.3.5"), Some(1));
        assert_eq!(ask(&spd, "10.9.0.1", "10.2.3.5"), Some(0));
    }

    #[test]
    fn default_is_discard_and_families_do_not_mix() {
        let spd = spd(&[("0.0.0.0/0", "0.0.0.0/0")]);
        assert_eq!(ask(&spd, "1.2.3.4", "5.6.7.8"), Some(0));
        assert_eq!(ask(&spd, "fd00::1", "fd00::2"), None);
        assert_eq!(ask(&Spd::default(), "1.2.3.4", "5.6.7.8"), None);
    }

    #[test]
    fn most_specific_action_wins_in_both_directions() {
        let mut builder = SpdBuilder::default();
        let net = |text: &str| text.parse().expect("prefix");
        for (source, destination, action) in [
            ("10.0.0.0/8", "0.0.0.0/0", SpdAction::Bypass),
            ("10.1.0.0/16", "10.2.0.0/16", SpdAction::Protect(SaIndex(0))),
            ("10.1.9.0/24", "10.2.9.0/24", SpdAction::Bypass),
            ("10.1.9.8/32", "10.2.9.0/24", SpdAction::Discard),
            ("fd00::/16", "::/0", SpdAction::Bypass),
        ] {
            builder.add(&net(source), &net(destination), action);
        }
        let spd = builder.build();
        assert!(spd.has_bypass());
        for (source, destination, action) in [
            ("10.1.0.1", "10.2.0.1", SpdAction::Protect(SaIndex(0))),
            ("10.1.9.1", "10.2.9.1", SpdAction::Bypass),
            ("10.1.9.8", "10.2.9.1", SpdAction::Discard),
            ("10.1.9.1", "10.2.8.1", SpdAction::Protect(SaIndex(0))),
            ("10.1.0.1", "198.51.100.1", SpdAction::Bypass),
            ("10.2.0.1", "10.1.0.1", SpdAction::Bypass),
            ("192.0.2.1", "10.1.0.1", SpdAction::NoPolicy),
            ("fd00::1", "fe80::1", SpdAction::Bypass),
            ("2001:db8::1", "fd00::1", SpdAction::NoPolicy),
        ] {
            let pair = |from: &str, to: &str| {
                let [from, to] = [from, to].map(|text| text.parse().expect("address"));
                AddressPair::new(from, to).expect("one family")
            };
            assert_eq!(spd.lookup(pair(source, destination)), action);
            assert_eq!(spd.lookup_inbound(pair(destination, source)), action);
        }
    }

    #[test]
    fn only_bypass_is_bypass() {
        let net: IpNet = "10.0.0.0/8".parse().expect("prefix");
        for (action, expected) in [
            (SpdAction::Protect(SaIndex(0)), false),
            (SpdAction::Discard, false),
            (SpdAction::Bypass, true),
        ] {
            let mut builder = SpdBuilder::default();
            builder.add(&net, &net, action);
            assert_eq!(builder.build().has_bypass(), expected);
        }
        assert!(!Spd::default().has_bypass());
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_a_list_walk(
            policies in prop::collection::vec((any::<u32>(), 0u8..=32, any::<u32>(), 0u8..=32), 0..40),
            packets in prop::collection::vec((any::<u32>(), any::<u32>(), any::<prop::sample::Index>(), any::<bool>()), 1..40),
        ) {
            let net = |bits: u32, len| {
                IpNet::from(ipnet::Ipv4Net::new_assert(bits.into(), len)).trunc()
            };
            let list: Vec<(IpNet, IpNet)> = policies.iter().map(|p| (net(p.0, p.1), net(p.2, p.3))).collect();
            let mut builder = SpdBuilder::default();
            for (at, (s, d)) in (0u32..).zip(&list) {
                builder.add(s, d, SpdAction::Protect(SaIndex(at)));
            }
            let spd = builder.build();
            for (mut s, mut d, index, inside) in packets {
                if inside && !policies.is_empty() {
                    let policy = index.get(&policies);
                    s = policy.0 & u32::mask(policy.1) | s & !u32::mask(policy.1);
                    d = policy.2 & u32::mask(policy.3) | d & !u32::mask(policy.3);
                }
                let fits = |n: &IpNet, bits: u32| n.contains(&std::net::IpAddr::V4(bits.into()));
                let best = list.iter().filter(|(ps, pd)| fits(ps, s) && fits(pd, d))
                    .map(|(ps, pd)| u16::from(ps.prefix_len()) + u16::from(pd.prefix_len())).max();
                match spd.lookup(AddressPair::V4(s, d)) {
                    SpdAction::NoPolicy => prop_assert_eq!(best, None),
                    SpdAction::Protect(sa) => {
                        let (ps, pd) = &list[sa.index()];
                        prop_assert!(fits(ps, s) && fits(pd, d));
                        prop_assert_eq!(Some(u16::from(ps.prefix_len()) + u16::from(pd.prefix_len())), best);
                    }
                    other => prop_assert!(false, "nobody added {:?}", other),
                }
            }
        }
    }
}
