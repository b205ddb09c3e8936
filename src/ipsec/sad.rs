//! The security association database: SAs in slots that live on through changes of policy, found by index or by SPI.
//!
//! SAs stand apart from the published tables, so that a new policy resets no counter; installing or replacing one is
//! one pointer store.

use std::net::IpAddr;
use std::num::NonZeroU32;

use crate::ids::{SaIndex, Spi};
use crate::ipsec::flat::FlatMap;
use crate::ipsec::sa::{InboundSa, OutboundSa};
use crate::meta::BURST;
use crate::rcu::{Guard, Slots, SlotsView, Writer};

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
        SadView {
            outbound: self.outbound.view(guard),
            inbound: self.inbound.view(guard),
        }
    }

    /// What the owner of the writer sees.
    pub fn view_owned<'w>(&'w self, writer: &'w Writer) -> SadView<'w> {
        SadView {
            outbound: self.outbound.view_owned(writer),
            inbound: self.inbound.view_owned(writer),
        }
    }
}

/// The SAs as one worker sees them during one round, or the control side.
#[derive(Clone, Copy)]
pub struct SadView<'g> {
    outbound: SlotsView<'g, OutboundSa>,
    inbound: SlotsView<'g, InboundSa>,
}

impl<'g> SadView<'g> {
    /// The outbound SA in `slot`.
    #[inline]
    pub fn outbound(&self, slot: SaIndex) -> Option<&'g OutboundSa> {
        self.outbound.get(slot.index())
    }

    /// The inbound SA in `slot`.
    #[inline]
    pub fn inbound(&self, slot: SaIndex) -> Option<&'g InboundSa> {
        self.inbound.get(slot.index())
    }

    /// Asks for what a packet needs of the outbound SA in `slot`, where it most likely is.
    #[inline]
    pub fn prefetch_outbound(&self, slot: SaIndex) {
        self.outbound.prefetch(slot.index(), 1);
    }

    /// As [`Self::prefetch_outbound`], for the inbound SA in `slot`.
    #[inline]
    pub fn prefetch_inbound(&self, slot: SaIndex) {
        self.inbound.prefetch(slot.index(), 1);
    }
}

/// The SA of each packet of a burst, as it was found once.
///
/// A slot may be given another SA at any moment. A number of the old one under the new one's key would be used twice in
/// the end, and a packet that the old one verified must not move the new one's window; so whatever is done with a packet
/// is done with the one SA that is held here.
pub struct BurstSas<'g, S> {
    // INVARIANT: none from `len` on.
    sas: [Option<&'g S>; BURST],
    len: usize,
}

impl<S> Default for BurstSas<'_, S> {
    fn default() -> Self {
        Self {
            sas: [None; BURST],
            len: 0,
        }
    }
}

impl<'g, S> BurstSas<'g, S> {
    /// Where the SAs of `packets` packets are to be noted, in order; none at first.
    #[inline]
    pub fn places(&mut self, packets: usize) -> &mut [Option<&'g S>] {
        self.len = packets.min(BURST);
        self.sas.get_mut(..self.len).unwrap_or_default()
    }

    /// One for each packet that was noted.
    #[inline]
    pub fn as_slice(&self) -> &[Option<&'g S>] {
        self.sas.get(..self.len).unwrap_or_default()
    }

    /// One for each packet of any burst: a packet that nothing was noted for has none, and is dropped.
    #[inline]
    pub(super) fn iter(&self) -> impl Iterator<Item = Option<&'g S>> {
        self.sas.iter().copied()
    }

    /// Runs of packets with the same SA, and how long they are.
    #[inline]
    pub(crate) fn runs(&self) -> impl Iterator<Item = (Option<&'g S>, usize)> {
        self.as_slice()
            .chunk_by(|a, b| is_same(*a, *b))
            .map(|run| (run.first().copied().flatten(), run.len()))
    }
}

/// Whether two packets have one SA, or neither has any.
#[inline]
pub(super) fn is_same<S>(a: Option<&S>, b: Option<&S>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => std::ptr::eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// SAs in a table from which on a burst may find each of its SAs out of the cache, so that asking ahead is worth its
/// instructions.
pub const WIDE: usize = 256;
/// SAs from which on what leads to them is likely to be out of the cache too.
pub const VAST: usize = 2048;

/// Inbound SPIs that were chosen by hand, to their slots. Immutable, published with the tables.
#[derive(Default)]
pub struct SpiIndex {
    /// Slots and one, so that a free place of the table needs no room of its own.
    slots: FlatMap<u32, NonZeroU32>,
    sole_local: Option<u32>,
}

impl SpiIndex {
    /// The index of SAs by their SPIs, each with our outer address.
    pub fn new(entries: impl IntoIterator<Item = (Spi, SaIndex, IpAddr)>) -> Self {
        let entries: Vec<_> = entries.into_iter().collect();
        let sole_local = match entries.first() {
            Some((.., IpAddr::V4(first))) => entries
                .iter()
                .all(|(.., local)| local == first)
                .then_some(first.to_bits()),
            _ => None,
        };
        let held = |(spi, slot, _): (Spi, SaIndex, IpAddr)| {
            // No SAD has so many slots that the last is left out.
            Some((spi.get(), NonZeroU32::MIN.checked_add(slot.0)?))
        };
        Self {
            slots: FlatMap::new(entries.into_iter().filter_map(held)),
            sole_local,
        }
    }

    /// Our outer address where all SAs have the same one, of IPv4: then a packet that was sent there was sent to its SA's, and the
    /// SA need not be asked.
    #[inline]
    pub fn sole_local(&self) -> Option<u32> {
        self.sole_local
    }

    /// The slot of `spi`, in host byte order.
    #[inline]
    pub fn slot(&self, spi: u32) -> Option<SaIndex> {
        let held = self.slots.get(spi)?;
        Some(SaIndex(held.get().wrapping_sub(1)))
    }

    /// Asks for what [`Self::slot`] will read.
    #[inline]
    pub fn prefetch(&self, spi: u32) {
        self.slots.prefetch(spi);
    }

    /// Whether there are so many SAs that asking ahead for what leads to them is worth while.
    #[inline]
    pub fn is_vast(&self) -> bool {
        self.slots.len() >= VAST
    }

    /// Whether there are so many SAs that asking ahead is worth while.
    #[inline]
    pub fn is_wide(&self) -> bool {
        self.slots.len() >= WIDE
    }
}
