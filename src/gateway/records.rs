//! What the control thread keeps of each SA pair beside its slot, and how pairs come into it and leave it.

use std::time::Instant;

use tracing::error;

use super::paths::Paths;
use crate::control::leases::Leases;
use crate::control::lifetimes::Lifetimes;
use crate::control::pairs::ReadyPair;
use crate::control::peers::Peers;
use crate::control::rows::{Rows, SaRow};
use crate::ids::SaIndex;
use crate::ipsec::sad::Sad;
use crate::ipsec::traffic::Direction;
use crate::policy::model::Lifetime;
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
    /// Puts a pair into its slot, as far as it could be started.
    pub(super) fn install(&mut self, pair: ReadyPair, (sad, writer): (&Sad, &mut Writer)) {
        let (slot, now) = (pair.slot, Instant::now());
        match pair.outbound {
            Ok(sa) => {
                self.leases.add_outbound(slot, &sa);
                let _ = writer.replace(sad.outbound(), slot.index(), Some(sa));
                let id = (slot, Direction::Outbound);
                self.lifetimes.install(id, pair.lifetime, now);
            }
            Err(reason) => self.rows.refuse(slot, Direction::Outbound, reason),
        }
        match pair.inbound {
            Ok(sa) => {
                self.leases.add_inbound(slot, &sa);
                let _ = writer.replace(sad.inbound(), slot.index(), Some(sa));
                let id = (slot, Direction::Inbound);
                self.lifetimes.install(id, pair.lifetime, now);
            }
            Err(reason) => self.rows.refuse(slot, Direction::Inbound, reason),
        }
    }

    /// Empties slots whose SAs nobody is led to any more.
    pub(super) fn drop_pairs(&mut self, slots: &[SaIndex], (sad, writer): (&Sad, &mut Writer)) {
        for slot in slots {
            self.paths.remove(*slot, sad, writer);
            let _ = writer.replace(sad.outbound(), slot.index(), None);
            let _ = writer.replace(sad.inbound(), slot.index(), None);
            for direction in [Direction::Outbound, Direction::Inbound] {
                let nothing = Lifetime::default();
                self.lifetimes
                    .install((*slot, direction), nothing, Instant::now());
            }
            self.leases.forget(*slot);
            self.peers.remove(*slot);
        }
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
