//! Latencies: a stamp for each packet on its way, and their histogram.

use hdrhistogram::Histogram;

/// Stamps that are kept: more than can be on their way at one time.
const STAMPS: usize = 1 << 16;
/// Digits that a latency keeps.
const DIGITS: u8 = 3;

/// When the packets that are on their way were due.
pub struct Stamps {
    /// Key of the packet, and its time. Two that fall on one place: the later stays, the other has none.
    slots: Box<[(u64, u64)]>,
}

impl Default for Stamps {
    fn default() -> Self {
        Self {
            slots: vec![(u64::MAX, 0); STAMPS].into(),
        }
    }
}

impl Stamps {
    /// Notes when packet `count` of `flow` was due.
    #[inline]
    pub fn put(&mut self, flow: u32, count: u64, time: u64) {
        let (key, slot) = Self::place(flow, count);
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = (key, time);
        }
    }

    /// When it was due, once.
    #[inline]
    pub fn take(&mut self, flow: u32, count: u64) -> Option<u64> {
        let (key, slot) = Self::place(flow, count);
        let slot = self.slots.get_mut(slot)?;
        if slot.0 != key {
            return None;
        }
        slot.0 = u64::MAX;
        Some(slot.1)
    }

    #[inline]
    fn place(flow: u32, count: u64) -> (u64, usize) {
        let key = u64::from(flow) << 40 | count & ((1 << 40) - 1);
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        (key, crate::bits::low_16(hash).into())
    }
}

/// A histogram of times, in nanoseconds, each within a thousandth.
pub struct Latencies(Histogram<u64>);

/// The percentiles that are told, in percent.
pub const PERCENTILES: [f64; 7] = [50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0];

impl Latencies {
    /// An empty one; `None` where memory is short.
    pub fn new() -> Option<Self> {
        Histogram::new(DIGITS).ok().map(Self)
    }

    /// Adds a time.
    pub fn add(&mut self, ns: u64) {
        // It grows as it needs to, so nothing is refused.
        let _ = self.0.record(ns);
    }

    /// Adds another's.
    pub fn merge(&mut self, other: &Self) {
        // Both have the same digits and grow as they need to, so nothing is refused.
        let _ = self.0.add(&other.0);
    }

    /// How many times there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that `percent` of all packets took at most, in nanoseconds.
    pub fn at(&self, percent: f64) -> u64 {
        self.0.value_at_quantile(percent / 100.0)
    }

    /// The least, in nanoseconds.
    pub fn min(&self) -> u64 {
        self.0.min()
    }

    /// The mean, in nanoseconds.
    pub fn mean(&self) -> f64 {
        self.0.mean()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_is_had_once_and_only_by_its_packet() {
        let mut stamps = Stamps::default();
        stamps.put(3, 77, 1234);
        assert_eq!(stamps.take(3, 78), None);
        assert_eq!(stamps.take(4, 77), None);
        assert_eq!(stamps.take(3, 77), Some(1234));
        assert_eq!(stamps.take(3, 77), None);
    }

    #[test]
    fn stamps_of_all_packets_on_their_way_hardly_collide() {
        let mut stamps = Stamps::default();
        for count in 0..64 {
            for flow in 0..32 {
                stamps.put(flow, count, count);
            }
        }
        let had = (0..64)
            .flat_map(|count| (0..32).map(move |flow| (flow, count)))
            .filter(|(flow, count)| stamps.take(*flow, *count) == Some(*count))
            .count();
        assert!(had > 1900, "{had} of 2048");
    }

    #[test]
    fn percentiles_are_those_of_what_was_added() {
        let mut all = Latencies::new().expect("memory");
        let mut half = Latencies::new().expect("memory");
        for ns in 1..=5_000 {
            all.add(ns * 1000);
            half.add((ns + 5_000) * 1000);
        }
        all.merge(&half);
        assert_eq!(all.count(), 10_000);
        for percent in PERCENTILES {
            let wanted = percent * 100_000.0;
            let found = all.at(percent) as f64;
            assert!((found / wanted - 1.0).abs() < 0.002, "p{percent}: {found}");
        }
        assert_eq!(all.min(), 1000);
    }
}
