//! `simplon check`.

use std::io::IsTerminal;
use std::path::Path;

use super::Failure;
use crate::policy::compile::endpoint_sets;
use crate::policy::difference::place;
use crate::policy::model::{Rule, RuleAction};
use crate::policy::{self, Policy, Secrets, queues};
use crate::wire::rss::USUAL_TABLE_LEN;

/// Reads a policy file; a failure holds every mistake in it, ready to print.
pub(super) fn load(file: &Path) -> Result<Policy, Failure> {
    policy::load(file, &Secrets::from_process())
        .map_err(|error| Failure(error.render(std::io::stderr().is_terminal())))
}

pub(super) fn check(file: &Path, against: Option<&Path>) -> Result<(), Failure> {
    let mut policy = load(file)?;
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
    against.map_or(Ok(()), |other| compare(&mut policy, other))
}

/// Tells what is different from the policy in `other`, and what of it a start takes. It is no failure to be different.
fn compare(policy: &mut Policy, other: &Path) -> Result<(), Failure> {
    let other = load(other)?;
    // There is always room: nothing runs.
    let room = endpoint_sets(policy)
        .count()
        .saturating_add(endpoint_sets(&other).count());
    match place(policy, &other, &[], room) {
        Ok(placed) if placed.difference.is_empty() => println!("no difference"),
        Ok(placed) => print!("{}", placed.difference),
        Err(obstacles) => {
            for obstacle in obstacles {
                println!("! {obstacle}");
            }
        }
    }
    Ok(())
}
