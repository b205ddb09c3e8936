//! Publishing to workers, and freeing on the control thread what they have let go.
//!
//! Quiescent-state reclamation: a [`Reader`] says at the top of each round, by [`Reader::enter`], that it holds nothing
//! from before. The [`Writer`] swaps a pointer, notes the generation, and frees the old value once every reader has
//! entered at that generation or later. A round in which nothing changed costs the reader one load. Readers never
//! allocate, never free and never wait.
//!
//! Readers that look at much of what is published ask for it ahead, by [`prefetch`]. And what is in slots lies side by side
//! ([`Cells`]), so that a reader that goes from one to another at random comes over few pages; one bit a slot says that its
//! value is where it nearly always is, and of all slots these fit the nearest cache.
//!
//! This, with the memory that what is in slots and windows lie in ([`pages`], [`ring`]), is the only unsafe code outside `dpdk` and
//! `crypto`.

use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as PlainOrdering};

use crossbeam_queue::SegQueue;
use crossbeam_utils::CachePadded;

use crate::sync::{AtomicPtr, AtomicU64, Ordering, fence};

pub(crate) mod pages;
pub(crate) mod ring;

use pages::Pages;

/// A reader's slot before its first round and after its last: it holds nothing.
const OFFLINE: u64 = u64::MAX;

/// What one writer and its readers share.
struct Domain {
    /// Grows by one with each replaced value.
    generation: CachePadded<AtomicU64>,
    /// For each reader the generation at which it last entered.
    entered: Box<[CachePadded<AtomicU64>]>,
}

/// Makes a writer and `count` readers that belong together.
pub fn domain(count: usize) -> (Writer, Vec<Reader>) {
    let domain = Arc::new(Domain {
        generation: CachePadded::new(AtomicU64::new(1)),
        entered: (0..count)
            .map(|_| CachePadded::new(AtomicU64::new(OFFLINE)))
            .collect(),
    });
    let readers = (0..count)
        .map(|index| Reader {
            domain: Arc::clone(&domain),
            index,
            seen: 0,
        })
        .collect();
    let writer = Writer {
        domain,
        retired: Vec::new(),
    };
    (writer, readers)
}

/// One worker's right to read. Not `Clone`: one slot, one thread.
pub struct Reader {
    domain: Arc<Domain>,
    index: usize,
    seen: u64,
}

/// Proof that its reader is inside a round; what is read lives as long as this borrow.
pub struct Guard<'r> {
    domain: &'r Domain,
    /// Guards stay on the reader's thread.
    _not_send: PhantomData<*const ()>,
}

impl Reader {
    /// Begins a round. Everything read in the round before is let go, which the borrow checker sees to: the guard of
    /// that round borrowed this reader.
    #[inline]
    pub fn enter(&mut self) -> Guard<'_> {
        let generation = self.domain.generation.load(Ordering::Acquire);
        if generation != self.seen {
            self.seen = generation;
            if let Some(entered) = self.domain.entered.get(self.index) {
                entered.store(generation, Ordering::Release);
            }
            // Pairs with the fence in `reclaim`: either the writer sees this slot, or this reader, coming online, sees
            // the pointer the writer put there before.
            fence(Ordering::SeqCst);
        }
        Guard {
            domain: &self.domain,
            _not_send: PhantomData,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(entered) = self.domain.entered.get(self.index) {
            entered.store(OFFLINE, Ordering::Release);
        }
    }
}

/// The control thread's side: replaces values, frees the old ones. One to a domain.
pub struct Writer {
    domain: Arc<Domain>,
    retired: Vec<Retired>,
}

/// A value out of every slot, and the generation from which no reader can find it.
struct Retired {
    generation: u64,
    /// Only ever dropped, which frees the value.
    _value: Box<dyn Send>,
}

/// Places for the values of slots, side by side, each in use or free.
struct Cells<T> {
    /// Room for `count` cells.
    pages: Pages,
    count: usize,
    /// Whether the cell of a slot's own is in use.
    // INVARIANT: a cell of `own` that is not in use, or that is among the spare ones, holds nothing and is nobody's; any other
    // belongs to a slot or a `Placed`.
    own: Box<[AtomicBool]>,
    /// Other cells that are free.
    spare: SegQueue<usize>,
    _values: PhantomData<T>,
}

// SAFETY: a cell is reached only by who owns it, as if it owned a `Box<T>`.
unsafe impl<T: Send> Send for Cells<T> {}
// SAFETY: likewise.
unsafe impl<T: Send> Sync for Cells<T> {}

impl<T> Cells<T> {
    /// A cell of its own for each of `slots` slots, and some more for values that come while readers hold the one before.
    fn new(slots: usize) -> Arc<Self> {
        const { assert!(align_of::<T>() <= 4096) };
        let count = match size_of::<T>() {
            0 => 0,
            _ => slots.saturating_add(slots / 8).saturating_add(16),
        };
        let spare = SegQueue::new();
        (slots..count).for_each(|at| spare.push(at));
        Arc::new(Self {
            pages: Pages::new(count.saturating_mul(size_of::<T>())),
            count,
            own: (0..slots.min(count))
                .map(|_| AtomicBool::new(false))
                .collect(),
            spare,
            _values: PhantomData,
        })
    }

    fn start(&self) -> *mut T {
        self.pages.start().as_ptr().cast()
    }

    fn cell(&self, at: usize) -> Option<*mut T> {
        (at < self.count).then(|| self.start().wrapping_add(at))
    }

    /// Where slot `slot` has its value but while readers hold the one before.
    fn own_cell(&self, slot: usize) -> Option<*mut T> {
        self.own.get(slot).and_then(|_| self.cell(slot))
    }

    /// Moves the value for a slot into the slot's own cell, or another where that is in use; it stays on the heap where all are.
    /// What it leaves behind is wiped, for it may have been a key.
    fn place(self: &Arc<Self>, slot: usize, value: Box<T>) -> Placed<T> {
        let own = self.own.get(slot);
        let is_free = own.is_some_and(|used| !used.swap(true, PlainOrdering::Acquire));
        let at = if is_free {
            Some(slot)
        } else {
            self.spare.pop()
        };
        let from = Box::into_raw(value);
        let Some(to) = at.and_then(|at| self.cell(at)) else {
            return Placed {
                value: from,
                cells: Arc::clone(self),
            };
        };
        // SAFETY: both are memory of a `T`; the cell is nobody's (INVARIANT), and what stays behind is not used as a `T` again.
        unsafe { ptr::copy_nonoverlapping(from, to, 1) };
        let from = from.cast::<MaybeUninit<T>>();
        // SAFETY: memory that the box owned, of a type that all bytes suit.
        unsafe { zeroize::zeroize_flat_type(from) };
        // SAFETY: from `Box::into_raw`; freed as a type that has nothing to drop.
        drop(unsafe { Box::from_raw(from) });
        Placed {
            value: to,
            cells: Arc::clone(self),
        }
    }

    /// Which cell `value` is in, if any.
    fn index_of(&self, value: *const T) -> Option<usize> {
        let offset = value.addr().checked_sub(self.pages.start().addr().get())?;
        let at = offset.checked_div(size_of::<T>())?;
        (at < self.count).then_some(at)
    }
}

/// A value that is in no slot, in a cell or on the heap. Dropping it frees that.
struct Placed<T> {
    // INVARIANT: owned by this, and in one of `cells` or from `Box::into_raw`.
    value: *mut T,
    cells: Arc<Cells<T>>,
}

// SAFETY: it owns its value, as a box would.
unsafe impl<T: Send> Send for Placed<T> {}

impl<T> Placed<T> {
    /// Leaves it to a slot.
    fn into_raw(self) -> *mut T {
        let this = ManuallyDrop::new(self);
        // SAFETY: read once, for what is not dropped gives it up.
        drop(unsafe { ptr::read(&raw const this.cells) });
        this.value
    }
}

impl<T> Drop for Placed<T> {
    fn drop(&mut self) {
        match self.cells.index_of(self.value) {
            Some(at) => {
                // SAFETY: a cell that holds a value, whose owner this is (INVARIANT).
                unsafe { ptr::drop_in_place(self.value) };
                match self.cells.own.get(at) {
                    Some(used) => used.store(false, PlainOrdering::Release),
                    None => self.cells.spare.push(at),
                }
            }
            // SAFETY: from `Box::into_raw` (INVARIANT).
            None => drop(unsafe { Box::from_raw(self.value) }),
        }
    }
}

impl Writer {
    /// Makes `count` empty slots that this writer's readers can read.
    pub fn slots<T: Send + Sync + 'static>(&self, count: usize) -> Slots<T> {
        Slots {
            domain: Arc::clone(&self.domain),
            cells: Cells::new(count),
            in_own: (0..count.div_ceil(WORD))
                .map(|_| AtomicU64::new(0))
                .collect(),
            slots: (0..count)
                .map(|_| AtomicPtr::new(ptr::null_mut()))
                .collect(),
        }
    }

    /// Puts `value` into slot `index` of `slots`, or empties it. One pointer store and one bit, whatever else is there; what
    /// was in the slot is freed by a later [`Self::reclaim`].
    ///
    /// # Errors
    /// Gives `value` back where there is no such slot or the slots belong to another writer.
    pub fn replace<T: Send + Sync + 'static>(
        &mut self,
        slots: &Slots<T>,
        index: usize,
        value: Option<Box<T>>,
    ) -> Result<(), Option<Box<T>>> {
        let Some(slot) = slots.slots.get(index) else {
            return Err(value);
        };
        if !Arc::ptr_eq(&self.domain, &slots.domain) {
            return Err(value);
        }
        let new = value.map_or(ptr::null_mut(), |value| {
            slots.cells.place(index, value).into_raw()
        });
        // Cleared before the pointer changes and set after it, so that no reader finds the old value again once it has seen
        // the new. One that is in between goes by the pointer, and to the old value by a bit that it loaded before, which
        // waits for it as if found by the pointer. A bit is never set while its cell may hold another value: the cell was
        // free, so every reader has entered since it was cleared. That is why all of it comes before the generation.
        let is_in_own = slots.cells.own_cell(index) == Some(new);
        if !is_in_own {
            slots.set_in_own(index, false);
        }
        let old = slot.swap(new, Ordering::AcqRel);
        if is_in_own {
            slots.set_in_own(index, true);
        }
        let generation = self
            .domain
            .generation
            .fetch_add(1, Ordering::AcqRel)
            .wrapping_add(1);
        if !old.is_null() {
            // Every non-null pointer in a slot came from `Placed::into_raw` above, and the swap took it out, so this is its only
            // owner; readers that still borrow it keep it in `retired` until they have moved on.
            let value = Placed {
                value: old,
                cells: Arc::clone(&slots.cells),
            };
            self.retired.push(Retired {
                generation,
                _value: Box::new(value),
            });
        }
        Ok(())
    }

    /// Frees what no reader can hold any more. Returns how many values still wait.
    pub fn reclaim(&mut self) -> usize {
        // Pairs with the fence in `enter`.
        fence(Ordering::SeqCst);
        let oldest = self
            .domain
            .entered
            .iter()
            .map(|entered| entered.load(Ordering::Acquire))
            .min()
            .unwrap_or(OFFLINE);
        self.retired.retain(|retired| retired.generation > oldest);
        self.retired.len()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.reclaim() > 0 {
            // Readers outlive the writer only where a worker did not stop; leaking is the safe answer.
            for retired in self.retired.drain(..) {
                std::mem::forget(retired);
            }
        }
    }
}

/// Bits of a word.
const WORD: usize = 64;

/// A fixed array of values, each of which the writer can replace while readers read.
pub struct Slots<T> {
    domain: Arc<Domain>,
    cells: Arc<Cells<T>>,
    // INVARIANT: each is null or came from `Placed::into_raw`, and is owned by its slot.
    slots: Box<[AtomicPtr<T>]>,
    /// For each slot a bit, lowest first, by which a reader need not load the pointer to know it.
    // INVARIANT: a bit is set only after its slot was given a value in its own cell, and cleared before the generation grows
    // from which on that value may be freed. So a reader that finds it set may borrow from the cell for the rest of its
    // round, whatever the slot holds by then. None is set beyond the last slot, or where there are no cells.
    in_own: Box<[AtomicU64]>,
}

impl<T> Slots<T> {
    /// How many slots there are, empty ones included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What slot `index` holds; `None` where it is empty, does not exist, or the guard is of another domain.
    #[inline]
    pub fn get<'g>(&'g self, guard: &'g Guard<'_>, index: usize) -> Option<&'g T> {
        self.view(guard).get(index)
    }

    /// All slots, to be read during the round of `guard`; none where it is of another domain.
    #[inline]
    pub fn view<'g>(&'g self, guard: &'g Guard<'_>) -> SlotsView<'g, T> {
        self.view_if(ptr::eq(guard.domain, &raw const *self.domain))
    }

    /// The same for the owner of the writer: the thread that alone can free.
    pub fn get_owned<'w>(&'w self, writer: &'w Writer, index: usize) -> Option<&'w T> {
        self.view_owned(writer).get(index)
    }

    /// As [`Self::view`], for the owner of the writer.
    pub fn view_owned<'w>(&'w self, writer: &'w Writer) -> SlotsView<'w, T> {
        self.view_if(Arc::ptr_eq(&writer.domain, &self.domain))
    }

    /// All slots, or none; whoever calls it sees to the view's invariant.
    #[inline]
    fn view_if(&self, is_of_domain: bool) -> SlotsView<'_, T> {
        let (slots, in_own): (&[AtomicPtr<T>], &[AtomicU64]) = match is_of_domain {
            true => (&self.slots, &self.in_own),
            false => (&[], &[]),
        };
        SlotsView {
            in_own,
            cells: self.cells.start(),
            slots,
        }
    }

    /// Says whether the value of slot `index` is in its own cell. Others share the word, and are left as they are.
    fn set_in_own(&self, index: usize, is_in_own: bool) {
        let Some(word) = self.in_own.get(index / WORD) else {
            return;
        };
        let bit = 1 << (index % WORD);
        match is_in_own {
            true => word.fetch_or(bit, Ordering::AcqRel),
            false => word.fetch_and(!bit, Ordering::AcqRel),
        };
    }
}

/// The slots as one reader sees them during one round.
pub struct SlotsView<'g, T> {
    // INVARIANT: of slots of the domain of a guard, or of a writer borrowed, that lives for `'g`; both are empty where the
    // domain is another.
    in_own: &'g [AtomicU64],
    slots: &'g [AtomicPtr<T>],
    /// The first of their cells, where they have any.
    cells: *const T,
}

impl<T> Clone for SlotsView<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SlotsView<'_, T> {}

impl<'g, T> SlotsView<'g, T> {
    /// What slot `index` holds; `None` where it is empty or does not exist.
    #[inline]
    pub fn get(self, index: usize) -> Option<&'g T> {
        let word = self.in_own.get(index / WORD)?.load(Ordering::Acquire);
        if word >> (index % WORD) & 1 != 0 {
            let value = self.cells.wrapping_add(index);
            // SAFETY: the slot's own cell, with a value that is freed only after every reader of this domain has entered a
            // later round (INVARIANT of `in_own`). `'g` is a borrow of a guard, which keeps its reader from that, or of the
            // writer, which alone frees and needs `&mut` for it (INVARIANT).
            return Some(unsafe { &*value });
        }
        let value = self.slots.get(index)?.load(Ordering::Acquire);
        // SAFETY: null, or a value the writer put there by `Placed::into_raw`, which is freed no earlier, and `'g` is what it
        // is above.
        unsafe { value.as_ref() }
    }

    /// Asks for the first `lines` cache lines of what slot `index` nearly always holds.
    #[inline]
    pub fn prefetch(self, index: usize, lines: usize) {
        let cell = self.cells.wrapping_add(index).cast();
        for line in 0..lines {
            prefetch_line(cell, line);
        }
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        for slot in &self.slots {
            let value = slot.load(Ordering::Acquire);
            if !value.is_null() {
                // Owned by its slot (INVARIANT), and `&mut self` says that no reader borrows from it.
                drop(Placed {
                    value,
                    cells: Arc::clone(&self.cells),
                });
            }
        }
    }
}

// SAFETY: the slots own `T`s that other threads drop (`T: Send`) and read by reference (`T: Sync`).
unsafe impl<T: Send + Sync> Send for Slots<T> {}
// SAFETY: shared access hands out `&T` only (`T: Sync`); replacing needs the one `Writer` by `&mut`.
unsafe impl<T: Send + Sync> Sync for Slots<T> {}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the first cache line of `value`: changes nothing but time. The packet path waits so for many lines at once
/// instead of for one after another.
#[inline(always)]
pub(crate) fn prefetch<T: ?Sized>(value: &T) {
    prefetch_line(ptr::from_ref(value).cast(), 0);
}

/// Asks for the cache line `at` lines behind `start`, whatever is there.
#[inline(always)]
pub(crate) fn prefetch_line(start: *const u8, at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

        let address = start.wrapping_add(at.wrapping_mul(LINE)).cast();
        // SAFETY: a prefetch is a hint that reads nothing and faults at no address; every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (start, at);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    struct Counted(Arc<AtomicUsize>, u32);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn value_is_freed_only_after_every_reader_moved_on() {
        let drops = Arc::new(AtomicUsize::new(0));
        let (mut writer, mut readers) = domain(2);
        let slots = writer.slots(1);
        let value = |n| Some(Box::new(Counted(Arc::clone(&drops), n)));
        assert!(writer.replace(&slots, 0, value(1)).is_ok());
        let mut second = readers.pop().expect("two readers");
        let mut first = readers.pop().expect("two readers");
        let guard = first.enter();
        second.enter();
        assert_eq!(slots.get(&guard, 0).map(|v| v.1), Some(1));
        assert!(writer.replace(&slots, 0, value(2)).is_ok());
        assert_eq!(writer.reclaim(), 1);
        second.enter();
        assert_eq!((writer.reclaim(), drops.load(Ordering::SeqCst)), (1, 0));
        let guard = first.enter();
        assert_eq!(slots.get(&guard, 0).map(|v| v.1), Some(2));
        assert_eq!((writer.reclaim(), drops.load(Ordering::SeqCst)), (0, 1));
        drop(slots);
        assert_eq!(drops.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn values_beyond_all_cells_are_freed_once_too() {
        let drops = Arc::new(AtomicUsize::new(0));
        let (mut writer, mut readers) = domain(1);
        let slots = writer.slots(2);
        let value = |n| Some(Box::new(Counted(Arc::clone(&drops), n)));
        let is_own = |slots: &Slots<Counted>, writer: &Writer, at| {
            let value = slots.get_owned(writer, at).map(ptr::from_ref);
            value == slots.cells.cell(at).map(<*mut Counted>::cast_const)
        };
        let has_bit = |slots: &Slots<Counted>, at: usize| {
            slots.in_own[at / WORD].load(Ordering::SeqCst) >> (at % WORD) & 1 == 1
        };
        readers[0].enter();
        // Nothing of it can be freed, so that there are more than cells.
        for n in 0..100 {
            for at in 0..2 {
                assert!(writer.replace(&slots, at, value(n)).is_ok());
                assert_eq!(is_own(&slots, &writer, at), n == 0);
                assert_eq!(has_bit(&slots, at), n == 0);
                assert_eq!(slots.get_owned(&writer, at).map(|v| v.1), Some(n));
            }
        }
        assert_eq!((writer.reclaim(), drops.load(Ordering::SeqCst)), (198, 0));
        readers[0].enter();
        assert_eq!((writer.reclaim(), drops.load(Ordering::SeqCst)), (0, 198));
        assert!(writer.replace(&slots, 1, value(100)).is_ok());
        assert!(is_own(&slots, &writer, 1), "it is free again");
        assert!(has_bit(&slots, 1) && !has_bit(&slots, 0));
        // What is in slots goes with them; what a reader may still hold is never freed by a writer that goes before it.
        drop(slots);
        drop(writer);
        assert_eq!(
            drops.load(Ordering::SeqCst),
            200,
            "one waits for its reader"
        );
    }

    #[test]
    fn every_slot_holds_what_it_was_given_last() {
        const SLOTS: usize = 2 * WORD + 3;
        let (mut writer, mut readers) = domain(1);
        let slots = writer.slots(SLOTS);
        let units = writer.slots::<()>(SLOTS);
        let mut holds = [None; SLOTS];
        for step in 0..20 * SLOTS {
            let index = step * 61 % SLOTS;
            let value = (step % 5 != 0).then_some(step);
            assert!(writer.replace(&slots, index, value.map(Box::new)).is_ok());
            let unit = value.map(|_| Box::new(()));
            assert!(writer.replace(&units, index, unit).is_ok());
            holds[index] = value;
            if step % 7 == 0 {
                readers[0].enter();
                writer.reclaim();
            }
            let guard = readers[0].enter();
            let (view, units) = (slots.view(&guard), units.view(&guard));
            for (index, value) in holds.iter().enumerate() {
                assert_eq!(view.get(index), value.as_ref());
                assert_eq!(units.get(index).is_some(), value.is_some());
            }
            for beyond in [SLOTS, 3 * WORD - 1, 3 * WORD, usize::MAX] {
                assert_eq!(view.get(beyond), None);
            }
        }
    }

    #[test]
    fn stopped_reader_holds_nothing_back() {
        let drops = Arc::new(AtomicUsize::new(0));
        let (mut writer, mut readers) = domain(1);
        let slots = writer.slots(1);
        assert!(
            writer
                .replace(&slots, 0, Some(Box::new(Counted(Arc::clone(&drops), 1))))
                .is_ok()
        );
        readers[0].enter();
        assert!(writer.replace(&slots, 0, None).is_ok());
        assert_eq!(writer.reclaim(), 1);
        readers.clear();
        assert_eq!((writer.reclaim(), drops.load(Ordering::SeqCst)), (0, 1));
    }

    #[test]
    fn guard_of_another_domain_reads_nothing() {
        let (mut writer, _readers) = domain(1);
        let (mut other, mut others) = domain(1);
        let slots = writer.slots(1);
        assert!(writer.replace(&slots, 0, Some(Box::new(7))).is_ok());
        assert_eq!(slots.get(&others[0].enter(), 0), None);
        assert_eq!(slots.view(&others[0].enter()).get(0), None);
        assert_eq!(slots.view_owned(&other).get(0), None);
        assert_eq!(slots.view_owned(&writer).get(0), Some(&7));
        assert!(other.replace(&slots, 0, Some(Box::new(8))).is_err());
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::cell::UnsafeCell;

    /// Of which loom notices that it is read before it is whole, or freed while it may still be read: it reports whatever
    /// the atomics here do not order. Readers hold on to it beyond its value's end, so that they live to be told.
    struct Cell(UnsafeCell<()>);

    // SAFETY: nothing is ever read or written through the cell; loom alone keeps track of who would have.
    unsafe impl Sync for Cell {}

    struct Canary(Arc<Cell>, u32);

    impl Canary {
        fn new() -> Box<Self> {
            Self::numbered(0)
        }

        fn numbered(number: u32) -> Box<Self> {
            let cell = Cell(UnsafeCell::new(()));
            cell.0.with_mut(|_| ());
            Box::new(Self(Arc::new(cell), number))
        }
    }

    impl Drop for Canary {
        fn drop(&mut self) {
            self.0.0.with_mut(|_| ());
        }
    }

    /// A reader makes `rounds` rounds and stops, while the writer replaces the value `values` times, reclaiming each
    /// time.
    fn race(rounds: usize, values: usize) {
        let (mut writer, mut readers) = domain(1);
        let slots = Arc::new(writer.slots(1));
        assert!(writer.replace(&slots, 0, Some(Canary::new())).is_ok());
        let mut reader = readers.pop().expect("one reader");
        let theirs = Arc::clone(&slots);
        let worker = loom::thread::spawn(move || {
            for _ in 0..rounds {
                let guard = reader.enter();
                if let Some(canary) = theirs.get(&guard, 0) {
                    let cell = Arc::clone(&canary.0);
                    cell.0.with(|_| ());
                    loom::thread::yield_now();
                    cell.0.with(|_| ());
                }
            }
        });
        for _ in 0..values {
            assert!(writer.replace(&slots, 0, Some(Canary::new())).is_ok());
            writer.reclaim();
        }
        worker.join().expect("worker");
        assert_eq!(writer.reclaim(), 0);
    }

    /// A reader makes two rounds, while the writer gives a slot the second of two values in another cell than its own, the
    /// third in its own again if the first could be freed, and then empties it. Its neighbour, of the same word, changes too.
    /// Returns whether the third was in the slot's own cell.
    fn race_for_own_cell() -> bool {
        const LAST: u32 = 3;
        let (mut writer, mut readers) = domain(1);
        let slots = Arc::new(writer.slots(2));
        // Nothing that the model has to try out.
        let is_free = || !slots.cells.own[1].load(PlainOrdering::Relaxed);
        assert!(is_free());
        assert!(writer.replace(&slots, 1, Some(Canary::numbered(1))).is_ok());
        assert!(!is_free());
        let mut reader = readers.pop().expect("one reader");
        let theirs = Arc::clone(&slots);
        let worker = loom::thread::spawn(move || {
            let mut newest = 0;
            for _ in 0..2 {
                let guard = reader.enter();
                let canary = theirs.get(&guard, 1);
                let number = canary.map_or(LAST + 1, |canary| canary.1);
                assert!(number >= newest, "{number} after {newest}");
                newest = number;
                if let Some(canary) = canary {
                    let cell = Arc::clone(&canary.0);
                    cell.0.with(|_| ());
                    loom::thread::yield_now();
                    cell.0.with(|_| ());
                }
            }
        });
        assert!(writer.replace(&slots, 1, Some(Canary::numbered(2))).is_ok());
        writer.reclaim();
        let is_own_again = is_free();
        assert!(
            writer
                .replace(&slots, 1, Some(Canary::numbered(LAST)))
                .is_ok()
        );
        assert!(writer.replace(&slots, 0, Some(Canary::new())).is_ok());
        assert!(writer.replace(&slots, 1, None).is_ok());
        writer.reclaim();
        worker.join().expect("worker");
        assert_eq!(writer.reclaim(), 0);
        is_own_again
    }

    #[test]
    fn reader_never_sees_a_freed_value() {
        loom::model(|| race(2, 1));
    }

    #[test]
    fn reader_never_sees_a_freed_value_among_several() {
        loom::model(|| race(2, 2));
    }

    #[test]
    fn reader_never_sees_what_a_cell_held_before() {
        let reused = Arc::new(AtomicBool::new(false));
        let noted = Arc::clone(&reused);
        // All orders would take minutes.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            if race_for_own_cell() {
                noted.store(true, PlainOrdering::Relaxed);
            }
        });
        assert!(
            reused.load(PlainOrdering::Relaxed),
            "no order of events that is of interest"
        );
    }
}
