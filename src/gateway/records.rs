//! What the control thread keeps of each SA pair beside its slot, and how pairs come into it and leave it.

use std::collections::BTreeSet;
use std::time::Instant;

use tracing::error;

use super::paths::Paths;
use crate::control::leases::{Leases, SaStart};
use crate::control::lifetimes::Lifetimes;
use crate::control::peers::Peers;
use crate::control::rows::{Rows, SaRow};
use crate::ids::SaIndex;
use crate::ipsec::sad::Sad;
use crate::ipsec::traffic::Direction;
use crate::policy::compile::{inbound_sa, outbound_sa};
use crate::policy::model::{EndpointSet, Lifetime, Tunnel};
use crate::rcu::Writer;

/// All of it.
pub struct Records {
    /// The SAs' sequence numbers on disk; to be ticked while workers run, and finished after.
    pub leases: Leases,
    /// When the SAs end; to be checked while workers run.
    pub lifetimes: Lifetimes,
    /// Every pair of the policy.
    pub rows: Rows,
    /// Where the peers of tunnels in UDP are.
    pub peers: Peers,
    /// The paths to peers.
    pub(super) paths: Paths,
}

impl Records {
    /// Puts the SAs of `set` of `tunnel` into its slot, as far as their sequence numbers are known.
    pub(super) fn install(
        &mut self,
        tunnel: &Tunnel,
        set: &EndpointSet,
        (sad, writer): (&Sad, &mut Writer),
    ) {
        let (slot, now) = (set.slot, Instant::now());
        match self
            .leases
            .start_outbound(slot, set.outbound.key.fingerprint())
        {
            SaStart::At(next) => {
                let sa = Box::new(outbound_sa(tunnel, set, next));
                let _ = writer.replace(sad.outbound(), slot.index(), Some(sa));
                let id = (slot, Direction::Outbound);
                self.lifetimes.install(id, tunnel.lifetime, now);
            }
            SaStart::Refused(reason) => self.rows.refuse(slot, Direction::Outbound, reason),
        }
        match self
            .leases
            .start_inbound(slot, set.inbound.key.fingerprint())
        {
            SaStart::At(seen) => {
                let sa = Box::new(inbound_sa(tunnel, set, seen));
                let _ = writer.replace(sad.inbound(), slot.index(), Some(sa));
                let id = (slot, Direction::Inbound);
                self.lifetimes.install(id, tunnel.lifetime, now);
            }
            SaStart::Refused(reason) => self.rows.refuse(slot, Direction::Inbound, reason),
        }
    }

    /// Empties slots whose SAs nobody is led to any more.
    pub(super) fn drop_pairs(&mut self, slots: &[SaIndex], (sad, writer): (&Sad, &mut Writer)) {
        if slots.is_empty() {
            return;
        }
        for slot in slots {
            self.paths.remove(*slot, sad, writer);
            let _ = writer.replace(sad.outbound(), slot.index(), None);
            let _ = writer.replace(sad.inbound(), slot.index(), None);
            for direction in [Direction::Outbound, Direction::Inbound] {
                let nothing = Lifetime::default();
                self.lifetimes
                    .install((*slot, direction), nothing, Instant::now());
            }
        }
        let slots: BTreeSet<SaIndex> = slots.iter().copied().collect();
        self.leases.forget(&slots);
        self.peers.remove(&slots);
    }
}

/// Logs what of a pair was not started.
pub(super) fn log_refused(row: &SaRow) {
    let halves = [
        ("outbound", &row.outbound, &row.outbound_refused),
        ("inbound", &row.inbound, &row.inbound_refused),
    ];
    for (direction, identity, refused) in halves {
        if let Some(reason) = refused {
            error!(tunnel = row.tunnel, direction, spi = %identity.spi, "SA is not started: {reason}");
        }
    }
}
