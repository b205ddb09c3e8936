//! Checks the traffic selectors of policies against each other: of tunnels, and of what passes in clear or is discarded.
//!
//! A policy's selectors are the pairs of its local and remote networks of one family. Two prefixes are disjoint, equal,
//! or one contains the other, so two selectors of different policies relate in one of these ways:
//!
//! - some packet of the one is never a packet of the other on either side: disjoint, fine;
//! - both networks of one are inside (or equal to) those of the other: nested, fine, the more specific wins;
//! - both networks are equal: duplicate, refused;
//! - local is inside while remote is strictly around, or the other way: they cross, and for packets in both neither
//!   is the more specific. Refused.
//!
//! Comparing every two selectors would take minutes for 10,000 policies. Instead, selectors are sorted into classes by
//! their two prefix lengths, of which real files have a handful. Between two classes, crossing is equality of cut
//! prefixes: with local lengths `a > b` and remote lengths `c < d`, a selector of class (a, c) crosses one of class
//! (b, d) exactly if its local network cut to `b` bits is the other's, and the other's remote network cut to `c` bits
//! is its. So one side goes into a hash table and the other looks itself up: for n selectors in k classes that is
//! n·k steps, not n².
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::diagnostic::{Fault, Faults, quoted};
use super::file::{At, Span};

/// So that lists on both sides of many policies cannot multiply without bound.
const MAX_SELECTORS: usize = 1 << 20;

/// Family, length of the local and of the remote prefix.
type Class = (bool, u8, u8);

/// What one policy takes: every pair of these networks.
pub(super) struct Claim<'a> {
    pub(super) kind: Kind,
    pub(super) name: Option<&'a str>,
    pub(super) local: &'a [At<IpNet>],
    pub(super) remote: &'a [At<IpNet>],
}

/// What a policy is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tunnel,
    Bypass,
    Discard,
    /// An ordered one, which makes no claim.
    Policy,
}

impl Kind {
    /// What it is called.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Bypass => "bypass",
            Self::Discard => "discard",
            Self::Policy => "policy",
        }
    }

    /// What two of them are called.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnels",
            Self::Bypass => "bypasses",
            Self::Discard => "discards",
            Self::Policy => "policies",
        }
    }
}

/// A local and a remote network of one policy.
#[derive(Clone, Copy)]
struct Selector<'a> {
    /// Which claim's.
    owner: usize,
    local: &'a At<IpNet>,
    remote: &'a At<IpNet>,
}

impl Selector<'_> {
    fn networks(&self) -> (IpNet, IpNet) {
        (self.local.value, self.remote.value)
    }

    fn class(&self) -> Class {
        let (local, remote) = (self.local.value, self.remote.value);
        (
            local.addr().is_ipv4(),
            local.prefix_len(),
            remote.prefix_len(),
        )
    }
}

/// Complains about selectors of different policies that are the same or cross.
pub(super) fn check(claims: &[Claim<'_>], faults: &mut Faults<'_>) {
    let total: usize = claims
        .iter()
        .map(|claim| claim.local.len() * claim.remote.len())
        .sum();
    if total > MAX_SELECTORS {
        let last = claims.iter().rev().find_map(|claim| claim.remote.first());
        let message =
            format!("the policies have {total} pairs of networks, and {MAX_SELECTORS} is the most");
        let span = last.map_or(0..0, |net| net.span.clone());
        faults.add(Fault::new(&span, message).help("write fewer, larger networks"));
        return;
    }
    let mut classes: BTreeMap<Class, Vec<Selector<'_>>> = BTreeMap::new();
    for (index, claim) in claims.iter().enumerate() {
        for local in claim.local {
            let ipv4 = local.value.addr().is_ipv4();
            let remotes = claim.remote.iter();
            for remote in remotes.filter(|remote| remote.value.addr().is_ipv4() == ipv4) {
                let selector = Selector {
                    owner: index,
                    local,
                    remote,
                };
                classes.entry(selector.class()).or_default().push(selector);
            }
        }
    }
    let mut pairs = Pairs {
        claims,
        seen: HashSet::new(),
        faults,
    };
    for class in classes.values() {
        pairs.find_duplicates(class);
    }
    for (narrow, inner) in &classes {
        for (wide, outer) in &classes {
            if narrow.0 == wide.0 && narrow.1 > wide.1 && narrow.2 < wide.2 {
                pairs.find_crossing((narrow, inner), (wide, outer));
            }
        }
    }
}

/// Complains once for every two policies.
struct Pairs<'p, 'a, 'f> {
    claims: &'p [Claim<'a>],
    seen: HashSet<(usize, usize)>,
    faults: &'p mut Faults<'f>,
}

impl Pairs<'_, '_, '_> {
    fn find_duplicates(&mut self, class: &[Selector<'_>]) {
        let mut firsts: HashMap<(IpNet, IpNet), Selector<'_>> = HashMap::new();
        for selector in class {
            let key = (selector.local.value, selector.remote.value);
            let first = *firsts.entry(key).or_insert(*selector);
            if self.is_new(first, *selector) {
                let [one, two] = in_order(first, *selector).map(|of| self.kind(of));
                let [first_name, second_name] = in_order(first, *selector).map(|of| self.name(of));
                let (local, remote) = key;
                let (both, of_what) = match one == two {
                    true => (
                        format!("{} {first_name} and {second_name}", one.plural()),
                        one.plural(),
                    ),
                    false => (
                        format!(
                            "{} {first_name} and {} {second_name}",
                            one.word(),
                            two.word()
                        ),
                        "policies",
                    ),
                };
                let message = format!("{both} both take {local} to {remote}: duplicate");
                let help = format!("remove the network from one of the two {of_what}");
                self.complain(first, *selector, message, &help);
            }
        }
    }

    /// `inner` has the longer local prefix and the shorter remote one. Looks up either side in a table of the other,
    /// for a table keeps one selector of many with equal keys, and each that crosses something must be told of.
    fn find_crossing(
        &mut self,
        inner: (&Class, &[Selector<'_>]),
        outer: (&Class, &[Selector<'_>]),
    ) {
        let ((_, _, remote_len), inner) = inner;
        let ((_, local_len, _), outer) = outer;
        let inner_key = |selector: &Selector<'_>| {
            let (local, remote) = (selector.local.value, selector.remote.value);
            (cut(local, *local_len), remote.addr())
        };
        let outer_key = |selector: &Selector<'_>| {
            let (local, remote) = (selector.local.value, selector.remote.value);
            (local.addr(), cut(remote, *remote_len))
        };
        let by_key: HashMap<_, _> = outer
            .iter()
            .rev()
            .map(|selector| (outer_key(selector), *selector))
            .collect();
        for selector in inner {
            if let Some(crossing) = by_key.get(&inner_key(selector)) {
                self.complain_crossing(*selector, *crossing);
            }
        }
        let by_key: HashMap<_, _> = inner
            .iter()
            .rev()
            .map(|selector| (inner_key(selector), *selector))
            .collect();
        for selector in outer {
            if let Some(crossing) = by_key.get(&outer_key(selector)) {
                self.complain_crossing(*crossing, *selector);
            }
        }
    }

    fn complain_crossing(&mut self, inner: Selector<'_>, outer: Selector<'_>) {
        if !self.is_new(inner, outer) {
            return;
        }
        let [one, two] =
            [inner, outer].map(|of| format!("{} {}", self.kind(of).word(), self.name(of)));
        let ((local_1, remote_1), (local_2, remote_2)) = (inner.networks(), outer.networks());
        // The packets in both: the smaller network of either side.
        let both = format!("{local_1} to {remote_2}");
        let message = format!(
            "ambiguous overlap: {one} takes {local_1} to {remote_1} and {two} takes {local_2} to {remote_2}, and for \
             {both} neither is the more specific"
        );
        let help =
            "narrow one of the two until they are apart, or widen one until it contains the other";
        self.complain(inner, outer, message, help);
    }

    /// Whether these are two policies about which nothing was said yet.
    fn is_new(&mut self, one: Selector<'_>, two: Selector<'_>) -> bool {
        let pair = (one.owner.min(two.owner), one.owner.max(two.owner));
        pair.0 != pair.1 && self.seen.insert(pair)
    }

    fn name(&self, selector: Selector<'_>) -> String {
        let claim = self.claims.get(selector.owner);
        quoted(claim.and_then(|claim| claim.name).unwrap_or_default())
    }

    fn kind(&self, selector: Selector<'_>) -> Kind {
        let claim = self.claims.get(selector.owner);
        claim.map_or(Kind::Tunnel, |claim| claim.kind)
    }

    fn complain(&mut self, one: Selector<'_>, two: Selector<'_>, message: String, help: &str) {
        let [earlier, later] = in_order(one, two);
        let place: &Span = &later.remote.span;
        let label = format!("the earlier {}", self.kind(earlier).word());
        let fault = Fault::new(place, message).related(&earlier.remote.span, label);
        self.faults.add(fault.help(help));
    }
}

/// As they stand in the file.
fn in_order<'s>(one: Selector<'s>, two: Selector<'s>) -> [Selector<'s>; 2] {
    if one.remote.span.start <= two.remote.span.start {
        [one, two]
    } else {
        [two, one]
    }
}

/// The first address of `net` cut to `len` bits, which are no more than it has.
fn cut(net: IpNet, len: u8) -> IpAddr {
    IpNet::new(net.addr(), len).map_or(net.addr(), |cut| cut.network())
}
