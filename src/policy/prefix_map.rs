//! Maps by address and by prefix whose clones share what has not changed since.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::ipsec::selector::Address;

/// Most entries that a shard has on average before there are more shards.
const SHARD: usize = 256;
/// How many times as many there are then, as a power of two.
const GROWTH: u32 = 3;

/// Addresses to numbers, in shards behind counted references: a change copies its shard, where another clone holds it too.
pub(super) struct CowMap<A> {
    shards: Box<[Arc<FxHashMap<A, u32>>]>,
    /// There are two to the power of this many.
    bits: u32,
    len: usize,
}

impl<A: Clone> Clone for CowMap<A> {
    fn clone(&self) -> Self {
        Self {
            shards: self.shards.clone(),
            bits: self.bits,
            len: self.len,
        }
    }
}

impl<A> Default for CowMap<A> {
    fn default() -> Self {
        Self {
            shards: Box::new([Arc::default()]),
            bits: 0,
            len: 0,
        }
    }
}

impl<A: Address + Into<u128>> CowMap<A> {
    #[inline]
    fn shard(&self, key: A) -> usize {
        let key: u128 = key.into();
        let folded = crate::bits::low_64(key ^ key >> 64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // In two steps, for a shift by all 64 bits is none.
        (folded >> 1 >> (63 - self.bits)) as usize
    }

    #[inline]
    pub(super) fn get(&self, key: A) -> Option<u32> {
        self.shards.get(self.shard(key))?.get(&key).copied()
    }

    pub(super) fn insert(&mut self, key: A, value: u32) -> Option<u32> {
        if self.len >= SHARD << self.bits && self.bits + GROWTH < 24 {
            self.grow();
        }
        let shard = self.shard(key);
        let old = Arc::make_mut(&mut self.shards[shard]).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    pub(super) fn remove(&mut self, key: A) -> Option<u32> {
        let shard = self.shard(key);
        let old = Arc::make_mut(&mut self.shards[shard]).remove(&key);
        self.len -= usize::from(old.is_some());
        old
    }

    fn grow(&mut self) {
        let bits = self.bits + GROWTH;
        let mut wider = Self {
            shards: (0..1usize << bits).map(|_| Arc::default()).collect(),
            bits,
            len: self.len,
        };
        for (key, value) in self.shards.iter().flat_map(|shard| shard.iter()) {
            let shard = wider.shard(*key);
            Arc::make_mut(&mut wider.shards[shard]).insert(*key, *value);
        }
        *self = wider;
    }
}

/// Prefixes to numbers, a map for each length in use; the longest first.
pub(super) struct PrefixMap<A> {
    lengths: Vec<(u8, A, CowMap<A>)>,
}

impl<A: Clone> Clone for PrefixMap<A> {
    fn clone(&self) -> Self {
        Self {
            lengths: self.lengths.clone(),
        }
    }
}

impl<A> Default for PrefixMap<A> {
    fn default() -> Self {
        Self {
            lengths: Vec::new(),
        }
    }
}

impl<A: Address + Into<u128>> PrefixMap<A> {
    /// Puts `prefix` in, whose bits after the first `len` are zero. Returns what stood there.
    pub(super) fn insert(&mut self, prefix: A, len: u8, value: u32) -> Option<u32> {
        let at = self.lengths.partition_point(|(other, ..)| *other > len);
        if self.lengths.get(at).is_none_or(|(other, ..)| *other != len) {
            self.lengths
                .insert(at, (len, A::mask(len), CowMap::default()));
        }
        self.lengths[at].2.insert(prefix, value)
    }

    /// Takes `prefix` out. Returns what stood there.
    pub(super) fn remove(&mut self, prefix: A, len: u8) -> Option<u32> {
        let at = self.lengths.iter().position(|(other, ..)| *other == len)?;
        let prefixes = &mut self.lengths[at].2;
        let old = prefixes.remove(prefix);
        // Lookups ask every length there is.
        if prefixes.len == 0 {
            self.lengths.remove(at);
        }
        old
    }

    /// What the longest prefix around `address` says.
    #[inline]
    pub(super) fn lookup(&self, address: A) -> Option<u32> {
        let find = |(_, mask, prefixes): &(u8, A, CowMap<A>)| prefixes.get(address & *mask);
        self.lengths.iter().find_map(find)
    }

    /// What the longest prefix of at most `most` bits around `address` says, and its length.
    pub(super) fn lookup_up_to(&self, address: A, most: u8) -> Option<(u8, u32)> {
        let shorter = self.lengths.iter().filter(|(len, ..)| *len <= most);
        let mut found = shorter.filter_map(|(len, mask, prefixes)| {
            prefixes.get(address & *mask).map(|value| (*len, value))
        });
        found.next()
    }
}
