//! The security association database: SAs in slots that live on through changes of policy, found by index or by SPI.
//!
//! SAs stand apart from the published tables, so that a new policy resets no counter; installing or replacing one is
//! one pointer store.

use rustc_hash::FxHashMap;

use crate::ids::{SaIndex, Spi};
use crate::ipsec::sa::{InboundSa, OutboundSa};
use crate::rcu::{Guard, Slots, Writer};

/// All SAs of a gateway.
pub struct Sad {
    outbound: Slots<OutboundSa>,
    inbound: Slots<InboundSa>,
}

impl Sad {
    /// Room for `slots` SAs in each direction, all empty.
    pub fn new(writer: &Writer, slots: usize) -> Self {
        Self {
            outbound: writer.slots(slots),
            inbound: writer.slots(slots),
        }
    }

    /// The slots of the SAs that seal.
    pub fn outbound(&self) -> &Slots<OutboundSa> {
        &self.outbound
    }

    /// The slots of the SAs that open.
    pub fn inbound(&self) -> &Slots<InboundSa> {
        &self.inbound
    }

    /// What a worker sees during the round of `guard`.
    #[inline]
    pub fn view<'g>(&'g self, guard: &'g Guard<'g>) -> SadView<'g> {
        SadView { sad: self, guard }
    }
}

/// The SAs as one worker sees them during one round.
#[derive(Clone, Copy)]
pub struct SadView<'g> {
    sad: &'g Sad,
    guard: &'g Guard<'g>,
}

impl<'g> SadView<'g> {
    /// The outbound SA in `slot`.
    #[inline]
    pub fn outbound(&self, slot: SaIndex) -> Option<&'g OutboundSa> {
        self.sad.outbound.get(self.guard, slot.index())
    }

    /// The inbound SA in `slot`.
    #[inline]
    pub fn inbound(&self, slot: SaIndex) -> Option<&'g InboundSa> {
        self.sad.inbound.get(self.guard, slot.index())
    }
}

/// Inbound SPIs that were chosen by hand, to their slots. Immutable, published with the tables.
#[derive(Default)]
pub struct SpiIndex {
    slots: FxHashMap<u32, SaIndex>,
}

impl SpiIndex {
    /// The index of `entries`.
    pub fn new(entries: impl IntoIterator<Item = (Spi, SaIndex)>) -> Self {
        Self {
            slots: entries
                .into_iter()
                .map(|(spi, slot)| (spi.get(), slot))
                .collect(),
        }
    }

    /// The slot of `spi`, in host byte order.
    #[inline]
    pub fn slot(&self, spi: u32) -> Option<SaIndex> {
        self.slots.get(&spi).copied()
    }
}
