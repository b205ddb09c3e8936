//! What was decided for flows lately: one worker's own, so that rules are searched once for a flow and not once for a packet.

use std::cell::Cell;

use crate::ipsec::spd::SpdAction;
use crate::ipsec::traffic::{FlowHash, Traffic};

/// Flows that are remembered of IPv4; a power of two. 32 bytes each, which a second level cache has room for.
const FLOWS_V4: usize = 8192;
/// And of IPv6.
const FLOWS_V6: usize = 4096;

/// Decisions for flows of both families.
pub struct FlowCache {
    v4: Flows<u32>,
    v6: Flows<u128>,
}

/// Each flow has one place, which the last one there has.
pub struct Flows<A> {
    // INVARIANT: a power of two of them.
    places: Box<[Cell<Place<A>>]>,
    /// What of a hash is dropped to make it an index.
    shift: u32,
}

#[derive(Clone, Copy, Default)]
struct Place<A> {
    traffic: Traffic<A>,
    /// Whose decision it is; 0 where it is nobody's.
    spd: u32,
    action: SpdAction,
}

const _: () = assert!(size_of::<Place<u32>>() == 32);

impl FlowCache {
    /// One that remembers nothing yet.
    pub fn new() -> Self {
        Self {
            v4: Flows::new(FLOWS_V4),
            v6: Flows::new(FLOWS_V6),
        }
    }

    /// For IPv4.
    #[inline]
    pub(super) fn v4(&self) -> &Flows<u32> {
        &self.v4
    }

    /// For IPv6.
    #[inline]
    pub(super) fn v6(&self) -> &Flows<u128> {
        &self.v6
    }
}

impl Default for FlowCache {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Copy + Eq + Default> Flows<A>
where
    Traffic<A>: FlowHash,
{
    fn new(places: usize) -> Self {
        let places = places.next_power_of_two();
        Self {
            places: (0..places).map(|_| Cell::default()).collect(),
            shift: u64::BITS.saturating_sub(places.trailing_zeros()),
        }
    }

    /// What the SPD of this number, which is not 0, decides for `traffic`: as it did the last time, or by `decide`.
    #[inline]
    pub(super) fn decide(
        &self,
        spd: u32,
        traffic: Traffic<A>,
        decide: impl FnOnce(&Traffic<A>) -> SpdAction,
    ) -> SpdAction {
        let at = usize::try_from(traffic.flow_hash().wrapping_shr(self.shift)).unwrap_or(0);
        let Some(place) = self.places.get(at) else {
            return decide(&traffic);
        };
        let known = place.get();
        if known.spd == spd && known.traffic == traffic {
            return known.action;
        }
        let action = decide(&traffic);
        place.set(Place {
            traffic,
            spd,
            action,
        });
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_of_one_flow_and_one_spd() {
        let flows = Flows::<u32>::new(16);
        let traffic = |local_port| Traffic {
            local: 1,
            remote: 2,
            local_port,
            remote_port: 80,
            protocol: 6,
        };
        let first = |_: &Traffic<u32>| SpdAction::Bypass;
        assert_eq!(flows.decide(1, traffic(7), first), SpdAction::Bypass);
        let other = |_: &Traffic<u32>| SpdAction::Discard;
        assert_eq!(flows.decide(1, traffic(7), other), SpdAction::Bypass);
        assert_eq!(flows.decide(2, traffic(7), other), SpdAction::Discard);
        // More flows than places: whatever was there before, each gets its own answer, new or remembered.
        let by_port = |traffic: &Traffic<u32>| match traffic.local_port % 2 {
            0 => SpdAction::Bypass,
            _ => SpdAction::Discard,
        };
        for port in (0..1000).chain(0..1000) {
            let traffic = traffic(port);
            assert_eq!(flows.decide(3, traffic, by_port), by_port(&traffic));
        }
    }
}
