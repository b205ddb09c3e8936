//! The `[[bypass]]` and `[[discard]]` tables: policies that need no SA.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::diagnostic::{Fault, Faults, quoted};
use super::entry::EntryDraft;
use super::file::{At, Key, Table};
use super::model::{Rule, RuleAction};
use super::network;
use super::selectors::{Claim, Kind};
use super::tunnel::{self, LOCAL_NETWORKS, Networks, REMOTE_NETWORKS, TunnelDraft};

const BYPASS_NAME: Key = Key::new("name", "name = \"west-clear\"");
const DISCARD_NAME: Key = Key::new("name", "name = \"no-printers\"");

/// One rule as far as it could be read.
pub(super) struct RuleDraft<'a> {
    action: RuleAction,
    name: Option<At<&'a str>>,
    local: Networks,
    remote: Networks,
}

impl RuleDraft<'_> {
    /// What it takes.
    pub(super) fn claim(&self) -> Claim<'_> {
        Claim {
            kind: self.kind(),
            name: self.name.as_ref().map(|name| name.value),
            local: &self.local.list,
            remote: &self.remote.list,
        }
    }

    fn kind(&self) -> Kind {
        match self.action {
            RuleAction::Bypass => Kind::Bypass,
            RuleAction::Discard => Kind::Discard,
        }
    }
}

/// Reads every `[[bypass]]` and every `[[discard]]`, each by itself.
pub(super) fn read<'a>(
    bypasses: &[Table<'a>],
    discards: &[Table<'a>],
    faults: &mut Faults<'_>,
) -> Vec<RuleDraft<'a>> {
    let bypasses = bypasses.iter().map(|table| (table, RuleAction::Bypass));
    let discards = discards.iter().map(|table| (table, RuleAction::Discard));
    let rule = |(table, action): (&Table<'a>, RuleAction)| {
        let name_key = match action {
            RuleAction::Bypass => &BYPASS_NAME,
            RuleAction::Discard => &DISCARD_NAME,
        };
        let keys = [name_key, &LOCAL_NETWORKS, &REMOTE_NETWORKS];
        table.refuse_unknown(&keys, &[], faults);
        let name = table
            .need(name_key, faults)
            .and_then(|value| network::name(&value, faults));
        let local = tunnel::networks(table, &LOCAL_NETWORKS, faults);
        let remote = tunnel::networks(table, &REMOTE_NETWORKS, faults);
        tunnel::check_common_family(&local, &remote, faults);
        RuleDraft {
            action,
            name,
            local,
            remote,
        }
    };
    bypasses.chain(discards).map(rule).collect()
}

/// Complains about policies whose name another policy or a tunnel has. Tunnels are checked against each other elsewhere.
pub(super) fn check_names(
    tunnels: &[TunnelDraft<'_>],
    rules: &[RuleDraft<'_>],
    entries: &[EntryDraft<'_>],
    faults: &mut Faults<'_>,
) {
    let tunnels = tunnels.iter().map(|tunnel| (Kind::Tunnel, &tunnel.name));
    let rules = rules.iter().map(|rule| (rule.kind(), &rule.name));
    let entries = entries.iter().map(|entry| (Kind::Policy, entry.name()));
    let mut names: Vec<_> = tunnels
        .chain(rules)
        .chain(entries)
        .filter_map(|(kind, name)| name.as_ref().map(|name| (kind, name)))
        .collect();
    names.sort_by_key(|(_, name)| name.span.start);
    let mut firsts = HashMap::new();
    for (kind, name) in names {
        let (first_kind, first) = *firsts.entry(name.value).or_insert((kind, name));
        let is_itself = first.span == name.span;
        if is_itself || (kind == Kind::Tunnel && first_kind == Kind::Tunnel) {
            continue;
        }
        let message = match kind == first_kind {
            true => format!("two {} are called {}", kind.plural(), quoted(name.value)),
            false => format!(
                "a {} and a {} are called {}",
                first_kind.word(),
                kind.word(),
                quoted(name.value)
            ),
        };
        let fault =
            Fault::new(&name.span, message).related(&first.span, "the name is first given here");
        faults.add(fault.help("give each tunnel and each policy a name of its own"));
    }
}

/// The checked rules; `None` where something was wrong.
pub(super) fn finish(rules: Vec<RuleDraft<'_>>) -> Option<Vec<Rule>> {
    let complete = |rule: RuleDraft<'_>| {
        Some(Rule {
            name: rule.name?.value.to_owned(),
            action: rule.action,
            local_networks: rule.local.finish()?,
            remote_networks: rule.remote.finish()?,
        })
    };
    rules.into_iter().map(complete).collect()
}
