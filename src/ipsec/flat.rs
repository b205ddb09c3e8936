//! A hash table that is built once and then only read: open addressing in one array, so that a key costs one cache line,
//! which can be asked for ahead.

use crate::rcu::prefetch;

/// What can be looked up.
pub trait FlatKey: Copy + Eq + Default {
    /// Mixes the key into 64 bits, the high ones of which depend on all of it.
    fn hash(self) -> u64;
}

/// An odd constant without pattern: 2^64 over the golden ratio.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

impl FlatKey for u32 {
    #[inline]
    fn hash(self) -> u64 {
        u64::from(self).wrapping_mul(MIX)
    }
}

impl FlatKey for (u32, u32) {
    #[inline]
    fn hash(self) -> u64 {
        let both = u64::from(self.0) << 32 | u64::from(self.1);
        (both ^ both >> 32).wrapping_mul(MIX)
    }
}

impl FlatKey for (u128, u128) {
    #[inline]
    fn hash(self) -> u64 {
        let fold = |word: u128| {
            let [a, b, c, d, e, f, g, h, rest @ ..] = word.to_le_bytes();
            let low = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            (low.wrapping_mul(MIX) ^ u64::from_le_bytes(rest)).wrapping_mul(MIX)
        };
        let source = fold(self.0);
        (source ^ source >> 29 ^ fold(self.1)).wrapping_mul(MIX)
    }
}

#[derive(Clone, Copy)]
struct Entry<K, V> {
    key: K,
    /// `None` where the place is free.
    value: Option<V>,
}

/// Keys to values, of which at most every second place is taken.
pub struct FlatMap<K, V> {
    // INVARIANT: a power of two of them, at least two.
    entries: Box<[Entry<K, V>]>,
    /// What of a hash is dropped to make it an index.
    shift: u32,
    len: usize,
}

impl<K: FlatKey, V: Copy> FlatMap<K, V> {
    /// The table of `pairs`; of two with equal keys the first stands.
    pub fn new(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let pairs: Vec<_> = pairs.into_iter().collect();
        let places = pairs.len().saturating_mul(2).max(2).next_power_of_two();
        let free = Entry {
            key: K::default(),
            value: None,
        };
        let mut map = Self {
            entries: vec![free; places].into(),
            shift: u64::BITS.saturating_sub(places.trailing_zeros()),
            len: 0,
        };
        for (key, value) in pairs {
            map.add(key, value);
        }
        map
    }

    fn add(&mut self, key: K, value: V) {
        let start = self.home(key);
        for offset in 0..self.entries.len() {
            let at = start.wrapping_add(offset) & self.mask();
            match self.entries.get_mut(at) {
                Some(entry) if entry.value.is_some() && entry.key != key => {}
                Some(entry) if entry.value.is_some() => return,
                Some(entry) => {
                    *entry = Entry {
                        key,
                        value: Some(value),
                    };
                    self.len = self.len.saturating_add(1);
                    return;
                }
                None => return,
            }
        }
    }

    /// The value of `key`.
    #[inline(always)]
    pub fn get(&self, key: K) -> Option<V> {
        let home = self.home(key);
        let entry = self.entries.get(home)?;
        if entry.key == key {
            // Where nobody is at home, no key is anywhere.
            return entry.value;
        }
        entry.value?;
        self.get_beyond(home, key)
    }

    /// As [`Self::get`], when another key is at home.
    #[inline(never)]
    fn get_beyond(&self, home: usize, key: K) -> Option<V> {
        for offset in 1..self.entries.len() {
            let entry = self.entries.get(home.wrapping_add(offset) & self.mask())?;
            let value = entry.value?;
            if entry.key == key {
                return Some(value);
            }
        }
        None
    }

    /// Asks for the cache line in which `key` is, if it is anywhere.
    #[inline]
    pub fn prefetch(&self, key: K) {
        if let Some(entry) = self.entries.get(self.home(key)) {
            prefetch(entry);
        }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn home(&self, key: K) -> usize {
        // Below the number of entries, by the shift.
        usize::try_from(key.hash().wrapping_shr(self.shift)).unwrap_or(0)
    }

    #[inline]
    fn mask(&self) -> usize {
        self.entries.len().wrapping_sub(1)
    }
}

impl<K: FlatKey, V: Copy> Default for FlatMap<K, V> {
    fn default() -> Self {
        Self::new([])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn flat_map_agrees_with_a_hash_map(
            pairs in prop::collection::vec((0u32..300, any::<u32>()), 0..400),
            asked in prop::collection::vec(0u32..300, 0..200),
        ) {
            let flat = FlatMap::new(pairs.iter().copied());
            let wide = FlatMap::new(pairs.iter().map(|(key, value)| ((u128::from(*key) << 64, 1u128), *value)));
            let mut map = HashMap::new();
            for (key, value) in pairs {
                map.entry(key).or_insert(value);
            }
            prop_assert_eq!(flat.len(), map.len());
            for key in asked {
                prop_assert_eq!(flat.get(key), map.get(&key).copied());
                prop_assert_eq!(wide.get((u128::from(key) << 64, 1)), map.get(&key).copied());
            }
        }
    }
}
