//! From the text of a policy file to a checked [`Policy`], or to everything that is wrong with it.
#![forbid(unsafe_code)]

use std::path::Path;

use super::diagnostic::{Fault, Faults, PolicyError, Source};
use super::file::{self, Key, Table};
use super::keying::KeySource;
use super::model::Policy;
use super::progress::{Phase, Progress};
use super::rule::RuleDraft;
use super::secret::Secrets;
use super::tunnel::TunnelDraft;
use super::{entry, gateway, port, route, rule, selectors, tunnel};

const GATEWAY: Key = Key::new(
    "gateway",
    "a table [gateway] with name, workers, state_dir and control_socket",
);
const PORT: Key = Key::new("port", "two tables [[port]], one for each side");
const NEIGHBOUR: Key = Key::new("neighbour", "a table [[neighbour]]");
const ROUTE: Key = Key::new("route", "a table [[route]]");
const TUNNEL: Key = Key::new("tunnel", "a table [[tunnel]]");
const BYPASS: Key = Key::new("bypass", "a table [[bypass]]");
const DISCARD: Key = Key::new("discard", "a table [[discard]]");
const POLICY: Key = Key::new("policy", "a table [[policy]]");
const KEYS: &[&Key] = &[
    &GATEWAY, &PORT, &NEIGHBOUR, &ROUTE, &TUNNEL, &BYPASS, &DISCARD, &POLICY,
];

/// Checks a policy file, reads the keys it names, and gives the policy.
///
/// # Errors
/// Everything that is wrong, in the order of the file; never empty.
pub fn parse(source: &Source<'_>, secrets: &Secrets) -> Result<Policy, Vec<PolicyError>> {
    parse_watched(source, secrets, &Progress::default())
}

/// As [`parse`], and tells how far it is.
///
/// # Errors
/// As [`parse`].
pub fn parse_watched(
    source: &Source<'_>,
    secrets: &Secrets,
    progress: &Progress,
) -> Result<Policy, Vec<PolicyError>> {
    let mut faults = Faults::new(*source);
    progress.begin(Phase::Reading, 0);
    let policy = read(source, (secrets, progress), &mut faults);
    match policy {
        Some(policy) if faults.is_empty() => Ok(policy),
        _ => Err(faults.finish()),
    }
}

fn read(
    source: &Source<'_>,
    (secrets, progress): (&Secrets, &Progress),
    faults: &mut Faults<'_>,
) -> Option<Policy> {
    let document = file::parse_toml(source.text(), faults);
    let root = Table::new("the file", 0..0, document.get_ref());
    root.refuse_unknown(KEYS, &[], faults);
    let gateway = root
        .need(&GATEWAY, faults)
        .and_then(|value| value.table("[gateway]", faults));
    let gateway = gateway::read(gateway.as_ref(), faults);
    let ports = root
        .need(&PORT, faults)
        .map(|value| value.tables("[[port]]", faults));
    let ports = port::read(&ports.unwrap_or_default(), gateway.workers, faults);
    let tables = |key, title, faults: &mut Faults<'_>| {
        let value = root.find(key);
        value
            .map(|value| value.tables(title, faults))
            .unwrap_or_default()
    };
    let neighbours =
        route::read_neighbours(&tables(&NEIGHBOUR, "[[neighbour]]", faults), &ports, faults);
    let routes = route::read_routes(
        &tables(&ROUTE, "[[route]]", faults),
        &ports,
        &neighbours,
        faults,
    );
    let key_source = KeySource {
        directory: source.path().parent().unwrap_or(Path::new("")),
        secrets,
        progress,
    };
    let tunnels = tables(&TUNNEL, "[[tunnel]]", faults);
    progress.begin(Phase::Checking, tunnels.len());
    let tunnels = tunnel::read(&tunnels, &key_source, faults);
    tunnel::check_unique(&tunnels, faults);
    tunnel::check_lab_keys(&tunnels, &gateway.lab_keys, faults);
    let bypasses = tables(&BYPASS, "[[bypass]]", faults);
    let discards = tables(&DISCARD, "[[discard]]", faults);
    let rules = rule::read(&bypasses, &discards, faults);
    let entries = entry::read(&tables(&POLICY, "[[policy]]", faults), &tunnels, faults);
    rule::check_names(&tunnels, &rules, &entries, faults);
    check_selectors(&tunnels, &rules, faults);
    let finished = || {
        Some(Policy {
            gateway: gateway.gateway?,
            ports: ports.finish()?,
            neighbours: neighbours.neighbours?,
            routes: routes?,
            tunnels: tunnel::finish(tunnels)?,
            rules: rule::finish(rules)?,
            entries: entry::finish(entries, faults)?,
        })
    };
    let policy = finished();
    if policy.is_none() && faults.is_empty() {
        // Each getter that gives nothing has said why, so this is not reached. If it is, refuse the file all the same.
        faults.add(Fault::new(
            &(0..0),
            "this file was refused without a reason, which is a mistake in simplon",
        ));
    }
    policy
}

fn check_selectors(tunnels: &[TunnelDraft<'_>], rules: &[RuleDraft<'_>], faults: &mut Faults<'_>) {
    let of_tunnels = tunnels.iter().map(TunnelDraft::claim);
    let of_rules = rules.iter().map(RuleDraft::claim);
    let claims: Vec<_> = of_tunnels.chain(of_rules).collect();
    selectors::check(&claims, faults);
}
