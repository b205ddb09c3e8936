//! Every SA pair of the policy in force, as the control side keeps it beside its slot.

use std::collections::BTreeMap;

use crate::ids::SaIndex;
use crate::ipsec::sa::SaIdentity;
use crate::ipsec::traffic::Direction;
use crate::policy::compile::{endpoint_sets, inbound_params, outbound_params};
use crate::policy::model::Policy;

/// An SA pair of the policy.
pub struct SaRow {
    /// Tunnel it belongs to.
    pub tunnel: String,
    /// Its slot.
    pub slot: SaIndex,
    /// Names of the outbound half.
    pub outbound: SaIdentity,
    /// Names of the inbound half.
    pub inbound: SaIdentity,
    /// Why the outbound half was not started.
    pub outbound_refused: Option<String>,
    /// Why the inbound half was not started.
    pub inbound_refused: Option<String>,
}

/// Why halves of pairs were not started.
pub type Refusals = BTreeMap<(SaIndex, Direction), String>;

/// All of them, in the order of the policy.
#[derive(Default)]
pub struct Rows {
    rows: Vec<SaRow>,
    /// By `SaIndex`: where its row is.
    by_slot: Vec<Option<u32>>,
}

impl Rows {
    /// Those of `policy`, none of them refused.
    pub fn new(policy: &Policy) -> Self {
        let row = |(slot, _, tunnel, set): (_, _, &crate::policy::model::Tunnel, _)| SaRow {
            tunnel: tunnel.name.clone(),
            slot,
            outbound: outbound_params(set).identity(),
            inbound: inbound_params(set).identity(),
            outbound_refused: None,
            inbound_refused: None,
        };
        let rows: Vec<SaRow> = endpoint_sets(policy).map(row).collect();
        let mut by_slot = Vec::new();
        for (at, row) in (0u32..).zip(&rows) {
            let slot = row.slot.index();
            if by_slot.len() <= slot {
                by_slot.resize(slot + 1, None);
            }
            by_slot[slot] = Some(at);
        }
        Self { rows, by_slot }
    }

    /// All of them, those of one endpoint set next to each other.
    pub fn as_slice(&self) -> &[SaRow] {
        &self.rows
    }

    /// The pair in `slot`.
    pub fn get(&self, slot: SaIndex) -> Option<&SaRow> {
        let at = self.by_slot.get(slot.index()).copied().flatten()?;
        self.rows.get(at as usize)
    }

    /// Notes why half of the pair in `slot` was not started.
    pub fn refuse(&mut self, slot: SaIndex, direction: Direction, reason: String) {
        let at = self.by_slot.get(slot.index()).copied().flatten();
        if let Some(row) = at.and_then(|at| self.rows.get_mut(at as usize)) {
            match direction {
                Direction::Outbound => row.outbound_refused = Some(reason),
                Direction::Inbound => row.inbound_refused = Some(reason),
            }
        }
    }

    /// What was not started.
    pub fn refusals(&self) -> Refusals {
        let halves = self.rows.iter().flat_map(|row| {
            let outbound = (Direction::Outbound, &row.outbound_refused);
            let inbound = (Direction::Inbound, &row.inbound_refused);
            [outbound, inbound].map(|(direction, reason)| (row.slot, direction, reason))
        });
        let refused = halves
            .filter_map(|(slot, direction, reason)| Some(((slot, direction), reason.clone()?)));
        refused.collect()
    }
}
