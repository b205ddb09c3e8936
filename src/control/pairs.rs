//! SA pairs that are ready for their slots: their records and first leases are on disk.

use crate::control::keeper::{StartError, Starter, Unknown};
use crate::control::leases::first_ahead;
use crate::control::state::{Started, Starting};
use crate::ids::SaIndex;
use crate::ipsec::sa::{InboundSa, OutboundSa};
use crate::ipsec::seq::{LAST_EXTENDED, LAST_SHORT};
use crate::ipsec::traffic::Direction;
use crate::policy::compile::{inbound_sa, outbound_sa};
use crate::policy::model::{EndpointSet, Lifetime, Tunnel};

/// A pair, and how long it may be used.
pub struct ReadyPair {
    /// The slot that it is for.
    pub slot: SaIndex,
    /// The lifetime of either half.
    pub lifetime: Lifetime,
    /// The half that seals, which may use what is leased; or why it must not be started.
    pub outbound: Result<Box<OutboundSa>, String>,
    /// The half that opens, likewise.
    pub inbound: Result<Box<InboundSa>, String>,
}

/// Makes the SAs of each of `sets`, among `count` pairs in all.
///
/// # Errors
/// As of [`Starter::start`]; the places of unknown keys are twice those of their sets, and one more of inbound halves.
pub fn make_ready(
    sets: &[(&Tunnel, &EndpointSet)],
    starter: &Starter,
    (unknown, count): (Unknown, usize),
) -> Result<Vec<ReadyPair>, StartError> {
    if sets.is_empty() {
        return Ok(Vec::new());
    }
    let keys = sets.iter().flat_map(|(tunnel, set)| {
        let packets = tunnel.lifetime.packets.map_or(u64::MAX, |limit| limit.hard);
        let outbound = Starting {
            direction: Direction::Outbound,
            key: set.outbound.key.fingerprint(),
            ahead: first_ahead(count).min(packets),
            last: match set.outbound.esn {
                true => LAST_EXTENDED,
                false => LAST_SHORT,
            },
        };
        let inbound = Starting {
            direction: Direction::Inbound,
            key: set.inbound.key.fingerprint(),
            ..outbound
        };
        [outbound, inbound]
    });
    let mut started = starter.start(keys.collect(), unknown)?.into_iter();
    let mut ready = Vec::with_capacity(sets.len());
    for (tunnel, set) in sets {
        // There is an answer for each key.
        let (Some(of_outbound), Some(of_inbound)) = (started.next(), started.next()) else {
            break;
        };
        ready.push(ReadyPair {
            slot: set.slot,
            lifetime: tunnel.lifetime,
            outbound: of_outbound.map(|started| Box::new(outbound(tunnel, set, started))),
            inbound: of_inbound.map(|started| Box::new(inbound_sa(tunnel, set, started.from))),
        });
    }
    Ok(ready)
}

fn outbound(tunnel: &Tunnel, set: &EndpointSet, started: Started) -> OutboundSa {
    let sa = outbound_sa(tunnel, set, started.from);
    sa.seq().extend_lease(started.until);
    sa
}
