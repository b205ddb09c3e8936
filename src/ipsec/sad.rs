//! The security association database: SAs in slots that live on through changes of policy, found by index or by SPI.
//!
//! SAs stand apart from the published tables, so that a new policy resets no counter; installing or replacing one is
//! one pointer store.

use arrayvec::ArrayVec;
use rustc_hash::FxHashMap;

use crate::ids::{SaIndex, Spi};
use crate::ipsec::sa::{InboundSa, OutboundSa};
use crate::meta::BURST;
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

/// The SA of each packet of a burst, as it was found once.
///
/// A slot may be given another SA at any moment. A number of the old one under the new one's key would be used twice in
/// the end, and a packet that the old one verified must not move the new one's window; so whatever is done with a packet
/// is done with the one SA that is held here.
pub struct BurstSas<'g, S>(ArrayVec<Option<&'g S>, BURST>);

impl<S> Default for BurstSas<'_, S> {
    fn default() -> Self {
        Self(ArrayVec::new())
    }
}

impl<'g, S> BurstSas<'g, S> {
    /// Notes the SA of the next `packets` packets.
    pub(super) fn push(&mut self, sa: Option<&'g S>, packets: usize) {
        let room = self.0.remaining_capacity();
        self.0.extend(std::iter::repeat_n(sa, packets.min(room)));
    }

    /// One for each packet that was noted.
    pub(super) fn as_slice(&self) -> &[Option<&'g S>] {
        &self.0
    }

    /// Never ends: a packet that nothing was found for has none, and is dropped.
    pub(super) fn iter(&self) -> impl Iterator<Item = Option<&'g S>> {
        self.0.iter().copied().chain(std::iter::repeat(None))
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
