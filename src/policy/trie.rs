//! IPv4 destinations to next hops: a trie whose clones share what has not changed since.
//!
//! Four levels, one for each byte. The first is an array of 256 in the trie itself; what is below a place of it lies in
//! blocks behind counted references. A change copies the blocks on its way that another clone holds too, and no others, so
//! that a new generation costs what changed and not what there is.

use std::array;
use std::sync::Arc;

use crate::drop::DropReason;
use crate::ids::NextHopIndex;

/// Places of a block, one for each value of a byte.
const PLACES: usize = 256;

/// A next hop, why there is none, or that the destinations are told apart below; and the length of the prefix that says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Leaf(u32);

impl Leaf {
    /// Set where the rest is the number of a block.
    const DEEPER: u32 = 1 << 31;
    /// Bits of the next hop; those above them are the length.
    const BITS: u32 = 25;
    const MASK: u32 = (1 << Self::BITS) - 1;
    const NO_ROUTE: u32 = Self::MASK;
    const NO_NEIGHBOUR: u32 = Self::MASK - 1;
    /// No prefix.
    pub(super) const NONE: Self = Self(Self::NO_ROUTE);

    /// What a prefix of `len` bits leads to. More next hops than there is room for count as a route without neighbour.
    pub(super) fn new(target: Result<NextHopIndex, DropReason>, len: u8) -> Self {
        let value = match target {
            Ok(NextHopIndex(hop)) => hop.min(Self::NO_NEIGHBOUR),
            Err(DropReason::NoNeighbour) => Self::NO_NEIGHBOUR,
            Err(_) => Self::NO_ROUTE,
        };
        Self(value | u32::from(len) << Self::BITS)
    }

    fn len(self) -> u32 {
        self.0 >> Self::BITS
    }

    #[inline]
    fn deeper(self) -> Option<usize> {
        (self.0 & Self::DEEPER != 0).then_some((self.0 & !Self::DEEPER) as usize)
    }

    #[inline]
    fn target(self) -> Result<NextHopIndex, DropReason> {
        match self.0 & Self::MASK {
            Self::NO_ROUTE => Err(DropReason::NoRoute),
            Self::NO_NEIGHBOUR => Err(DropReason::NoNeighbour),
            hop => Ok(NextHopIndex(hop)),
        }
    }
}

/// Prefixes of up to 32 bits, and of 33, which are stations and come before routes to themselves.
#[derive(Clone)]
pub(super) struct Trie {
    first: [Arc<Second>; PLACES],
}

/// What the second byte tells apart.
#[derive(Clone)]
struct Second {
    leaves: [Leaf; PLACES],
    /// Counts before the leaf.
    below: [Option<Arc<Third>>; PLACES],
}

/// What the third byte tells apart.
#[derive(Clone)]
struct Third {
    leaves: [Leaf; PLACES],
    /// Those that leaves name.
    below: Vec<Arc<[Leaf; PLACES]>>,
}

/// A prefix that is put in or taken out.
#[derive(Clone, Copy)]
struct Change {
    len: u8,
    /// What is to stand in its places.
    leaf: Leaf,
    /// Taken out: only its own places are to change.
    removes: bool,
}

impl Change {
    fn applies_to(self, leaf: Leaf) -> bool {
        let len = u32::from(self.len);
        leaf.len() == len || (!self.removes && leaf.len() < len)
    }

    fn apply(self, leaves: &mut [Leaf]) {
        for leaf in leaves {
            if self.applies_to(*leaf) {
                *leaf = self.leaf;
            }
        }
    }
}

impl Trie {
    pub(super) fn new() -> Self {
        let empty = Arc::new(Second {
            leaves: [Leaf::NONE; PLACES],
            below: [const { None }; PLACES],
        });
        Self {
            first: array::from_fn(|_| Arc::clone(&empty)),
        }
    }

    /// Puts a prefix in, or gives it another target.
    pub(super) fn insert(
        &mut self,
        prefix: u32,
        len: u8,
        target: Result<NextHopIndex, DropReason>,
    ) {
        let change = Change {
            len,
            leaf: Leaf::new(target, len),
            removes: false,
        };
        self.change(prefix, change);
    }

    /// Takes a prefix out; `cover` is the leaf of the longest one that is left around it.
    pub(super) fn remove(&mut self, prefix: u32, len: u8, cover: Leaf) {
        let change = Change {
            len,
            leaf: cover,
            removes: true,
        };
        self.change(prefix, change);
    }

    fn change(&mut self, prefix: u32, change: Change) {
        let [a, b, c, d] = prefix.to_be_bytes().map(usize::from);
        if change.len <= 8 {
            for second in &mut self.first[a..][..1 << (8 - change.len)] {
                Arc::make_mut(second).change_all(0..PLACES, change);
            }
            return;
        }
        let second = Arc::make_mut(&mut self.first[a]);
        if change.len <= 16 {
            second.change_all(b..b + (1 << (16 - change.len)), change);
            return;
        }
        let leaf = second.leaves[b];
        let third = second.below[b].get_or_insert_with(|| {
            Arc::new(Third {
                leaves: [leaf; PLACES],
                below: Vec::new(),
            })
        });
        let third = Arc::make_mut(third);
        if change.len <= 24 {
            third.change_all(c..c + (1 << (24 - change.len)), change);
        } else {
            third.change_one(c, d, change);
        }
        second.tidy(b);
    }

    /// The next hop towards `destination`: three to five loads, whatever the number of routes.
    ///
    /// # Errors
    /// `NoRoute` or `NoNeighbour`.
    #[inline]
    pub(super) fn lookup(&self, destination: u32) -> Result<NextHopIndex, DropReason> {
        let [a, b, c, d] = destination.to_be_bytes().map(usize::from);
        let second = &self.first[a];
        let Some(third) = &second.below[b] else {
            return second.leaves[b].target();
        };
        let mut leaf = third.leaves[c];
        if let Some(block) = leaf.deeper() {
            leaf = third.below.get(block).map_or(Leaf::NONE, |last| last[d]);
        }
        leaf.target()
    }

    /// How many blocks there are below the first level, those that several places share counted once.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> usize {
        let thirds = || {
            self.first
                .iter()
                .flat_map(|second| second.below.iter().flatten())
        };
        thirds().count() + thirds().map(|third| third.below.len()).sum::<usize>()
    }
}

impl Second {
    /// Changes whole places.
    fn change_all(&mut self, places: std::ops::Range<usize>, change: Change) {
        for at in places {
            match &mut self.below[at] {
                None => change.apply(&mut self.leaves[at..=at]),
                Some(third) => {
                    // A block in which nothing changes need not be copied.
                    if third.has_any(change) {
                        Arc::make_mut(third).change_all(0..PLACES, change);
                        self.tidy(at);
                    }
                }
            }
        }
    }

    /// A block all of whose places say the same by a prefix that is as long as its whole is none.
    fn tidy(&mut self, at: usize) {
        let Some(third) = &self.below[at] else { return };
        if third.below.is_empty()
            && let Some(leaf) = uniform(&third.leaves, 16)
        {
            self.leaves[at] = leaf;
            self.below[at] = None;
        }
    }
}

impl Third {
    fn has_any(&self, change: Change) -> bool {
        let is_hit = |leaf: &Leaf| leaf.deeper().is_none() && change.applies_to(*leaf);
        self.leaves.iter().any(is_hit)
            || self
                .below
                .iter()
                .any(|last| last.iter().any(|leaf| change.applies_to(*leaf)))
    }

    fn change_all(&mut self, places: std::ops::Range<usize>, change: Change) {
        for at in places {
            match self.leaves[at].deeper() {
                None => change.apply(&mut self.leaves[at..=at]),
                Some(block) => {
                    change.apply(&mut Arc::make_mut(&mut self.below[block])[..]);
                    self.tidy(at, block);
                }
            }
        }
    }

    /// Changes places of the last byte.
    fn change_one(&mut self, at: usize, last: usize, change: Change) {
        let block = self.leaves[at].deeper().unwrap_or_else(|| {
            let block = self.below.len();
            self.below.push(Arc::new([self.leaves[at]; PLACES]));
            self.name(at, block);
            block
        });
        let count = 1usize << (32 - change.len.min(32));
        change.apply(&mut Arc::make_mut(&mut self.below[block])[last..][..count]);
        self.tidy(at, block);
    }

    fn name(&mut self, at: usize, block: usize) {
        self.leaves[at] = Leaf(Leaf::DEEPER | u32::try_from(block).expect("256 at most"));
    }

    fn tidy(&mut self, at: usize, block: usize) {
        let Some(leaf) = uniform(&self.below[block], 24) else {
            return;
        };
        self.leaves[at] = leaf;
        self.below.swap_remove(block);
        // The block that was the last has another number now.
        let moved = self.below.len();
        let named = (self.leaves.iter()).position(|leaf| leaf.deeper() == Some(moved));
        if let Some(place) = named.filter(|_| moved != block) {
            self.name(place, block);
        }
    }
}

/// The leaf that all places are, where no prefix longer than `len` says so.
fn uniform(leaves: &[Leaf; PLACES], len: u32) -> Option<Leaf> {
    let first = leaves[0];
    let is_uniform = first.len() <= len && leaves.iter().all(|leaf| *leaf == first);
    is_uniform.then_some(first)
}
