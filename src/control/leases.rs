//! Keeps each SA's sequence numbers on disk ahead of their use: see [`super::state`].
//!
//! The disk is the business of [`super::keeper`]. A lease is extended when the keeper has said that its end is on disk, and not a
//! moment before; what was asked for is never waited for here, but at an orderly stop.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::control::keeper::{ENDED, Keeper, Number, Starter, Written};
use crate::control::state::{StateError, StateFile};
use crate::crypto::aead::KeyFingerprint;
use crate::ids::SaIndex;
use crate::ipsec::replay::Window;
use crate::ipsec::sa::{InboundSa, OutboundSa};
use crate::ipsec::sad::Sad;
use crate::ipsec::traffic::Direction;
use crate::policy::compile::endpoint_sets;
use crate::policy::model::Policy;
use crate::rcu::Writer;

/// Fewest numbers leased ahead: what a burst of traffic may use between two looks of the control thread. A kill skips as
/// many at most, of the 2^32 of an SA without extended numbers.
const MIN_AHEAD: u64 = 1 << 20;
/// Leases, and inbound SAs, looked at in one turn of the control thread, so that a turn costs the same with 60,000 SAs. With more
/// leases each is looked at less often and leased the more ahead.
const LOOKS: usize = 4096;
/// Times [`MIN_AHEAD`] that an SA among many is given at least: more would be too much of 2^32 to skip.
const MAX_STRETCH: u64 = 16;
/// Most numbers leased ahead.
const MAX_AHEAD: u64 = 1 << 30;
/// Time that a lease should last at the present rate.
const AHEAD: Duration = Duration::from_secs(2);
/// How often the numbers seen are put on disk.
const INBOUND_INTERVAL: Duration = Duration::from_secs(1);

/// One outbound SA under lease.
struct Lease {
    key: KeyFingerprint,
    /// The next number when last looked at.
    next: u64,
    /// When that was.
    looked: Instant,
    /// Its extension is to be written, or on its way to the disk.
    asked: bool,
    /// Exhaustion has been told.
    told: bool,
}

/// One inbound SA whose highest number is kept.
struct Mark {
    key: KeyFingerprint,
    saved: u64,
    /// As of a lease.
    asked: bool,
}

/// The leases of all SAs.
pub struct Leases {
    state: Result<Keeper, String>,
    leases: BTreeMap<SaIndex, Lease>,
    marks: BTreeMap<SaIndex, Mark>,
    /// The lease that was looked at last, where there are more behind it; and so of marks.
    looked: Option<SaIndex>,
    looked_mark: Option<SaIndex>,
    /// When it was begun to look at all marks.
    saved: Instant,
    /// What is to be written next.
    waiting: Vec<Number>,
    /// Numbers are on their way to the disk.
    in_flight: bool,
    failing: bool,
}

impl Leases {
    /// Opens the state of the gateway's directory. Where that fails no SA will be started; the rest of the gateway can.
    pub fn open(policy: &Policy) -> Self {
        let state = StateFile::open(&policy.gateway.state_dir).map_err(|error| error.to_string());
        let state = state.and_then(|state| {
            Keeper::start(state).map_err(|error| format!("cannot start a thread: {error}"))
        });
        if let Err(reason) = &state {
            error!("no SA can be started: {reason}");
        }
        Self::with(state)
    }

    fn with(state: Result<Keeper, String>) -> Self {
        Self {
            state,
            leases: BTreeMap::new(),
            marks: BTreeMap::new(),
            looked: None,
            looked_mark: None,
            saved: Instant::now(),
            waiting: Vec::new(),
            in_flight: false,
            failing: false,
        }
    }

    /// Whether there is a state at all; if not, that was told once for all SAs.
    pub fn is_open(&self) -> bool {
        self.state.is_ok()
    }

    /// What has SAs started.
    pub fn starter(&self) -> Starter {
        match &self.state {
            Ok(keeper) => keeper.starter(),
            Err(reason) => Starter::without_state(reason.clone()),
        }
    }

    /// Looks after the lease of an SA that was started, and is on its way into `slot`.
    pub fn add_outbound(&mut self, slot: SaIndex, sa: &OutboundSa) {
        let lease = Lease {
            key: sa.identity().fingerprint,
            next: sa.seq().next(),
            looked: Instant::now(),
            asked: false,
            told: false,
        };
        self.leases.insert(slot, lease);
    }

    /// Keeps the mark of an SA that was started, and is on its way into `slot`.
    pub fn add_inbound(&mut self, slot: SaIndex, sa: &InboundSa) {
        let mark = Mark {
            key: sa.identity().fingerprint,
            saved: sa.window().top(),
            asked: false,
        };
        self.marks.insert(slot, mark);
    }

    /// Forgets the SAs that are no more in `slot`. What is on disk of them stays: the end of a lease, beyond every number that
    /// they can have used.
    pub fn forget(&mut self, slot: SaIndex) {
        self.leases.remove(&slot);
        self.marks.remove(&slot);
        // It may have another SA when this is written.
        self.waiting.retain(|own| own.slot != slot);
    }

    /// Takes in what is on disk by now, and sees to it that every lease that has to be is extended, and what was seen written: one
    /// sync for all. Waits for nothing. Call it many times a second.
    pub fn tick(&mut self, sad: &Sad, writer: &Writer) {
        while let Ok(keeper) = &self.state {
            match keeper.written() {
                Ok(written) => self.take_in(written, (sad, writer)),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    error!("{ENDED}; SAs stop at the end of their lease; please report this");
                    self.state = Err(ENDED.into());
                }
            }
        }
        self.look_at_leases(sad, writer);
        self.look_at_marks(sad, writer);
        if self.in_flight || self.waiting.is_empty() {
            return;
        }
        if let Ok(keeper) = &self.state {
            keeper.raise(std::mem::take(&mut self.waiting));
            self.in_flight = true;
        }
    }

    /// Looks at some leases, and asks for more of those that are used up by half.
    fn look_at_leases(&mut self, sad: &Sad, writer: &Writer) {
        let now = Instant::now();
        let stretch = stretch(self.leases.len());
        let mut looks = 0;
        for (slot, lease) in self.leases.range_mut(behind(self.looked)).take(LOOKS) {
            looks += 1;
            self.looked = Some(*slot);
            let elapsed = now.duration_since(std::mem::replace(&mut lease.looked, now));
            let Some(sa) = sa_of(*slot, lease.key, sad, writer) else {
                continue;
            };
            let next = sa.seq().next();
            // What was stopped needs no more numbers.
            let Some(leased) = sa.seq().leased() else {
                continue;
            };
            if sa.seq().is_exhausted() && !lease.told {
                lease.told = true;
                error!(spi = %sa.identity().spi, "SA has used its last sequence number and stopped: give both ends a new key");
            }
            let ahead = ahead(next.saturating_sub(lease.next), elapsed, stretch);
            lease.next = next;
            let is_short = leased <= sa.seq().last() && leased.saturating_sub(next) < ahead / 2 + 1;
            if is_short && !lease.asked {
                lease.asked = true;
                let until = next.max(leased).saturating_add(ahead);
                self.waiting.push(Number {
                    slot: *slot,
                    direction: Direction::Outbound,
                    key: lease.key,
                    number: until.min(sa.seq().last().saturating_add(1)),
                });
            }
        }
        if looks < LOOKS {
            self.looked = None;
        }
    }

    /// Looks at some of the numbers seen, and at all of them about once a second.
    fn look_at_marks(&mut self, sad: &Sad, writer: &Writer) {
        if self.looked_mark.is_none() {
            if self.saved.elapsed() < INBOUND_INTERVAL {
                return;
            }
            self.saved = Instant::now();
        }
        let mut looks = 0;
        for (slot, mark) in self.marks.range_mut(behind(self.looked_mark)).take(LOOKS) {
            looks += 1;
            self.looked_mark = Some(*slot);
            if mark.asked {
                continue;
            }
            let seen = unsaved(*slot, mark, (sad, writer), |window| window.top());
            mark.asked = seen.is_some();
            self.waiting.extend(seen);
        }
        if looks < LOOKS {
            self.looked_mark = None;
        }
    }

    /// Goes by what is on disk now.
    fn take_in(&mut self, (numbers, done): Written, (sad, writer): (&Sad, &Writer)) {
        self.in_flight = false;
        let is_done = self.tell(done);
        for own in &numbers {
            // The slot may have come to be empty since, or to hold another SA.
            match own.direction {
                Direction::Outbound => {
                    let lease = self.leases.get_mut(&own.slot);
                    let Some(lease) = lease.filter(|lease| lease.key == own.key) else {
                        continue;
                    };
                    lease.asked = false;
                    if is_done && let Some(sa) = sa_of(own.slot, own.key, sad, writer) {
                        sa.seq().extend_lease(own.number);
                    }
                }
                Direction::Inbound => {
                    let mark = self.marks.get_mut(&own.slot);
                    let Some(mark) = mark.filter(|mark| mark.key == own.key) else {
                        continue;
                    };
                    mark.asked = false;
                    if is_done {
                        mark.saved = own.number;
                    }
                }
            }
        }
    }

    /// Puts on disk what was really used, so that an orderly stop skips no numbers. Call it when every worker has stopped.
    pub fn finish(&mut self, sad: &Sad, writer: &Writer) {
        // What is on its way is written first, and extends nothing any more: else numbers that were taken beyond a lease, and not
        // used, would count as used.
        self.waiting.clear();
        if std::mem::take(&mut self.in_flight)
            && let Ok(keeper) = &self.state
            && let Some((_, done)) = keeper.wait()
        {
            self.tell(done);
        }
        let outbound = self.leases.iter().filter_map(|(slot, lease)| {
            let sa = sa_of(*slot, lease.key, sad, writer)?;
            let number = sa.seq().unused();
            // Where none is left, nothing is skipped by what is on disk. That may be far beyond the last: of a key that had
            // extended numbers once, and may have them again.
            (number <= sa.seq().last()).then_some(Number {
                slot: *slot,
                direction: Direction::Outbound,
                key: lease.key,
                number,
            })
        });
        let unsaved = |(slot, mark): (&SaIndex, &Mark)| {
            unsaved(*slot, mark, (sad, writer), |window| window.highest())
        };
        let inbound = self.marks.iter().filter_map(unsaved);
        let numbers: Vec<Number> = outbound.chain(inbound).collect();
        let Ok(keeper) = &self.state else {
            return;
        };
        if numbers.is_empty() {
            return;
        }
        let sas = numbers.len();
        keeper.settle(numbers);
        let Some((numbers, done)) = keeper.wait() else {
            return;
        };
        if self.tell(done) {
            for own in numbers {
                if own.direction == Direction::Inbound
                    && let Some(mark) = self.marks.get_mut(&own.slot)
                {
                    mark.saved = own.number;
                }
            }
            info!(sas, "sequence numbers saved");
        }
    }

    /// Says once that numbers cannot be written, and once that they can be again. Returns whether they were.
    fn tell(&mut self, done: Result<(), StateError>) -> bool {
        let was_failing = std::mem::replace(&mut self.failing, done.is_err());
        match done {
            Ok(()) if was_failing => warn!("sequence numbers can be written to disk again"),
            Err(error) if !was_failing => {
                error!(
                    "sequence numbers cannot be written to disk, SAs stop at the end of their lease: {error}"
                );
            }
            _ => {}
        }
        !self.failing
    }
}

/// Numbers to be leased at first to each of `count` SAs.
pub fn first_ahead(count: usize) -> u64 {
    MIN_AHEAD * stretch(count)
}

/// Times [`MIN_AHEAD`] that each of so many SAs is given, for the time until it is looked at again.
fn stretch(count: usize) -> u64 {
    (count.div_ceil(LOOKS) as u64).clamp(1, MAX_STRETCH)
}

/// Slots behind one that was looked at; all of them, if none was.
fn behind(looked: Option<SaIndex>) -> (Bound<SaIndex>, Bound<SaIndex>) {
    (
        looked.map_or(Bound::Unbounded, Bound::Excluded),
        Bound::Unbounded,
    )
}

/// The outbound SA in `slot`; none where that has come to hold another key's.
fn sa_of<'w>(
    slot: SaIndex,
    key: KeyFingerprint,
    sad: &'w Sad,
    writer: &'w Writer,
) -> Option<&'w OutboundSa> {
    sad.outbound()
        .get_owned(writer, slot.index())
        .filter(|sa| sa.identity().fingerprint == key)
}

/// The highest number seen, as `highest` says, where it is not on disk.
fn unsaved(
    slot: SaIndex,
    mark: &Mark,
    (sad, writer): (&Sad, &Writer),
    highest: impl Fn(Window<'_>) -> u64,
) -> Option<Number> {
    let sa = sad.inbound().get_owned(writer, slot.index())?;
    let top = highest(sa.window());
    let is_ours = sa.identity().fingerprint == mark.key;
    (is_ours && top != mark.saved).then_some(Number {
        slot,
        direction: Direction::Inbound,
        key: mark.key,
        number: top,
    })
}

/// How far ahead to lease for an SA that used `used` numbers in `elapsed`, at least `stretch` times [`MIN_AHEAD`].
fn ahead(used: u64, elapsed: Duration, stretch: u64) -> u64 {
    let elapsed_us = u64::try_from(elapsed.as_micros())
        .unwrap_or(u64::MAX)
        .max(1);
    let ahead_us = u64::try_from(AHEAD.as_micros()).unwrap_or(u64::MAX);
    (used.saturating_mul(ahead_us) / elapsed_us).clamp(MIN_AHEAD * stretch, MAX_AHEAD)
}

/// Declares every key of `policy` that has no record yet as fresh. Returns how many records were made; one SA has one.
///
/// # Errors
/// [`StateError`] where the state cannot be opened, made or written.
pub fn declare_fresh(policy: &Policy) -> Result<usize, StateError> {
    let mut state = StateFile::open_or_create(&policy.gateway.state_dir)?;
    let keys: Vec<_> = endpoint_sets(policy)
        .flat_map(|(.., set)| {
            [
                (Direction::Outbound, set.outbound.key.fingerprint()),
                (Direction::Inbound, set.inbound.key.fingerprint()),
            ]
        })
        .collect();
    state.add_fresh(&keys)
}

#[cfg(test)]
#[path = "leases/tests.rs"]
mod tests;
