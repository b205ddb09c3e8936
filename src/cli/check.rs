//! `simplon check`.

use std::io::IsTerminal;
use std::path::Path;

use super::Failure;
use crate::policy::difference::Difference;
use crate::policy::model::{Rule, RuleAction};
use crate::policy::{self, Policy, Secrets, queues};
use crate::wire::rss::USUAL_TABLE_LEN;

/// Reads a policy file; a failure holds every mistake in it, ready to print.
pub(super) fn load(file: &Path) -> Result<Policy, Failure> {
    load_text(file).map(|(policy, _)| policy)
}

/// The same, with its text.
pub(super) fn load_text(file: &Path) -> Result<(Policy, String), Failure> {
    policy::load(file, &Secrets::from_process())
        .map_err(|error| Failure(error.render(std::io::stderr().is_terminal())))
}

pub(super) fn check(file: &Path, against: Option<&Path>) -> Result<(), Failure> {
    let policy = load(file)?;
    for warning in queues::check_declared(&policy, USUAL_TABLE_LEN) {
        eprintln!("{}: warning: {warning}", file.display());
    }
    let sas: usize = policy
        .tunnels
        .iter()
        .map(|tunnel| tunnel.endpoints.len() * 2)
        .sum();
    let count = |action| {
        let of_kind = |rule: &&Rule| rule.action == action;
        policy.rules.iter().filter(of_kind).count()
    };
    println!(
        "{}: good: gateway {}; ports: {}, tunnels: {}, SAs: {sas}, policies: {}, bypasses: {}, discards: {}",
        file.display(),
        policy.gateway.name,
        policy.ports.len(),
        policy.tunnels.len(),
        policy.entries.len(),
        count(RuleAction::Bypass),
        count(RuleAction::Discard),
    );
    against.map_or(Ok(()), |other| compare(&policy, other))
}

/// Tells what is different from the policy in `other`. It is no failure to be different.
fn compare(policy: &Policy, other: &Path) -> Result<(), Failure> {
    let difference = Difference::new(policy, &load(other)?);
    if difference.is_empty() {
        println!("no difference");
    } else {
        print!("{difference}");
    }
    Ok(())
}
