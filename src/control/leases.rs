//! Keeps each SA's sequence numbers on disk ahead of their use: see [`super::state`].

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::control::state::{StateError, StateFile};
use crate::crypto::aead::KeyFingerprint;
use crate::ids::SaIndex;
use crate::ipsec::replay::ReplayWindow;
use crate::ipsec::sa::OutboundSa;
use crate::ipsec::sad::Sad;
use crate::ipsec::traffic::Direction;
use crate::policy::compile::endpoint_sets;
use crate::policy::model::Policy;
use crate::rcu::Writer;

/// Fewest numbers leased ahead: what a burst of traffic may use between two looks of the control thread. A kill skips as
/// many at most, of the 2^32 of an SA without extended numbers.
const MIN_AHEAD: u64 = 1 << 20;
/// Leases looked at in one turn of the control thread, so that a turn costs the same with 60,000 SAs; those that are new
/// are all looked at, whatever their number. With more leases each is looked at less often and leased the more ahead.
const LOOKS: usize = 4096;
/// Times [`MIN_AHEAD`] that an SA among many is given at least: more would be too much of 2^32 to skip.
const MAX_STRETCH: u64 = 16;
/// Most numbers leased ahead.
const MAX_AHEAD: u64 = 1 << 30;
/// Time that a lease should last at the present rate.
const AHEAD: Duration = Duration::from_secs(2);
/// How often the numbers seen are put on disk.
const INBOUND_INTERVAL: Duration = Duration::from_secs(1);

/// Where an SA begins.
#[derive(Debug)]
pub enum SaStart {
    /// At this number: outbound the next to use, inbound the highest seen.
    At(u64),
    /// Nowhere: it would not be safe.
    Refused(String),
}

/// One outbound SA under lease.
struct Lease {
    slot: SaIndex,
    key: KeyFingerprint,
    /// The next number when last looked at.
    next: u64,
    /// When that was.
    looked: Instant,
    /// Exhaustion has been told.
    told: bool,
}

/// One inbound SA whose highest number is kept.
struct Mark {
    slot: SaIndex,
    key: KeyFingerprint,
    saved: u64,
}

/// The leases of all SAs.
pub struct Leases {
    state: Result<StateFile, String>,
    leases: Vec<Lease>,
    marks: Vec<Mark>,
    /// The lease to be looked at next, and the first that never was.
    cursor: usize,
    fresh: usize,
    saved: Instant,
    failing: bool,
}

impl Leases {
    /// Opens the state of the gateway's directory. Where that fails no SA will be started; the rest of the gateway can.
    pub fn open(policy: &Policy) -> Self {
        let state = StateFile::open(&policy.gateway.state_dir).map_err(|error| {
            error!("no SA can be started: {error}");
            error.to_string()
        });
        let now = Instant::now();
        Self {
            state,
            leases: Vec::new(),
            marks: Vec::new(),
            cursor: 0,
            fresh: 0,
            saved: now,
            failing: false,
        }
    }

    /// Whether there is a state at all; if not, that was told once for all SAs.
    pub fn is_open(&self) -> bool {
        self.state.is_ok()
    }

    /// Where the outbound SA with this key begins, and takes it under lease.
    pub fn start_outbound(&mut self, slot: SaIndex, key: KeyFingerprint) -> SaStart {
        let start = self.number(Direction::Outbound, key);
        if let SaStart::At(next) = start {
            self.leases.push(Lease {
                slot,
                key,
                next,
                looked: Instant::now(),
                told: false,
            });
        }
        start
    }

    /// Where the inbound SA with this key begins, and keeps its mark.
    pub fn start_inbound(&mut self, slot: SaIndex, key: KeyFingerprint) -> SaStart {
        let start = self.number(Direction::Inbound, key);
        if let SaStart::At(saved) = start {
            self.marks.push(Mark { slot, key, saved });
        }
        start
    }

    /// Whether there is a record of this key.
    ///
    /// # Errors
    /// Why no SA can be started at all, where there is no state.
    pub fn knows(&self, direction: Direction, key: KeyFingerprint) -> Result<bool, String> {
        match &self.state {
            Err(reason) => Err(reason.clone()),
            Ok(state) => Ok(state.number(direction, key).is_ok()),
        }
    }

    /// Declares keys of which there is no record as fresh: they have never sealed a packet. One sync for all.
    ///
    /// # Errors
    /// Why that cannot be put on disk.
    pub fn declare(&mut self, keys: &[(Direction, KeyFingerprint)]) -> Result<(), String> {
        match &mut self.state {
            Err(reason) => Err(reason.clone()),
            Ok(state) => state
                .add_fresh(keys)
                .map(drop)
                .map_err(|error| error.to_string()),
        }
    }

    /// Forgets SAs that are no more in their slots. What is on disk of them stays: the end of a lease, beyond every number that
    /// they can have used.
    pub fn forget(&mut self, slots: &BTreeSet<SaIndex>) {
        let is_looked_at = self.leases.iter().take(self.fresh);
        self.fresh = is_looked_at
            .filter(|lease| !slots.contains(&lease.slot))
            .count();
        self.leases.retain(|lease| !slots.contains(&lease.slot));
        self.marks.retain(|mark| !slots.contains(&mark.slot));
        self.cursor = 0;
    }

    fn number(&self, direction: Direction, key: KeyFingerprint) -> SaStart {
        match &self.state {
            Err(reason) => SaStart::Refused(reason.clone()),
            Ok(state) => match state.number(direction, key) {
                Ok(number) => SaStart::At(number),
                Err(error) => SaStart::Refused(error.to_string()),
            },
        }
    }

    /// Extends every lease that has to be, marks what was seen, one sync for all. Call it many times a second.
    pub fn tick(&mut self, sad: &Sad, writer: &Writer) {
        let now = Instant::now();
        let count = self.leases.len();
        let fresh = std::mem::replace(&mut self.fresh, count);
        let first = if self.cursor < fresh { self.cursor } else { 0 };
        let after = (first + LOOKS).min(fresh);
        self.cursor = after;
        let stretch = (count.div_ceil(LOOKS) as u64).clamp(1, MAX_STRETCH);
        let mut extended = Vec::new();
        for at in (first..after).chain(fresh..count) {
            let Some(lease) = self.leases.get_mut(at) else {
                continue;
            };
            let elapsed = now.duration_since(std::mem::replace(&mut lease.looked, now));
            let Some(sa) = leased_sa(lease, sad, writer) else {
                continue;
            };
            let next = sa.seq.next();
            // What was stopped needs no more numbers.
            let Some(leased) = sa.seq.leased() else {
                continue;
            };
            if sa.seq.is_exhausted() && !lease.told {
                lease.told = true;
                error!(spi = %sa.identity().spi, "SA has used its last sequence number and stopped: give both ends a new key");
            }
            let ahead = ahead(next.saturating_sub(lease.next), elapsed, stretch);
            lease.next = next;
            if leased <= sa.seq.last() && leased.saturating_sub(next) < ahead / 2 + 1 {
                let until = next
                    .max(leased)
                    .saturating_add(ahead)
                    .min(sa.seq.last().saturating_add(1));
                extended.push((at, until));
            }
        }
        let mut numbers: Vec<_> = extended
            .iter()
            .filter_map(|(at, until)| {
                Some((Direction::Outbound, self.leases.get(*at)?.key, *until))
            })
            .collect();
        if self.saved.elapsed() >= INBOUND_INTERVAL {
            self.saved = Instant::now();
            numbers.extend(self.seen(sad, writer, ReplayWindow::top));
        }
        if numbers.is_empty() || !self.commit(&numbers) {
            return;
        }
        self.mark_saved(&numbers);
        for (at, until) in extended {
            let sa = self
                .leases
                .get(at)
                .and_then(|lease| leased_sa(lease, sad, writer));
            if let Some(sa) = sa {
                sa.seq.extend_lease(until);
            }
        }
    }

    /// Puts on disk what was really used, so that an orderly stop skips no numbers. Call it when every worker has stopped.
    pub fn finish(&mut self, sad: &Sad, writer: &Writer) {
        let mut numbers: Vec<_> = self
            .leases
            .iter()
            .filter_map(|lease| {
                let sa = leased_sa(lease, sad, writer)?;
                Some((Direction::Outbound, lease.key, sa.seq.unused()))
            })
            .collect();
        numbers.extend(self.seen(sad, writer, ReplayWindow::highest));
        if self.commit(&numbers) && !numbers.is_empty() {
            self.mark_saved(&numbers);
            info!(sas = numbers.len(), "sequence numbers saved");
        }
    }

    /// The highest numbers seen, as `highest` says, that are not on disk.
    fn seen(
        &self,
        sad: &Sad,
        writer: &Writer,
        highest: impl Fn(&ReplayWindow) -> u64,
    ) -> Vec<(Direction, KeyFingerprint, u64)> {
        let unsaved = |mark: &Mark| {
            let sa = sad.inbound().get_owned(writer, mark.slot.index())?;
            let top = highest(&sa.window);
            let is_ours = sa.identity().fingerprint == mark.key;
            (is_ours && top != mark.saved).then_some((Direction::Inbound, mark.key, top))
        };
        self.marks.iter().filter_map(unsaved).collect()
    }

    /// Notes what of `numbers` is on disk now.
    fn mark_saved(&mut self, numbers: &[(Direction, KeyFingerprint, u64)]) {
        let seen: HashMap<_, _> = numbers
            .iter()
            .filter(|(direction, ..)| *direction == Direction::Inbound)
            .map(|(_, key, top)| (*key, *top))
            .collect();
        if seen.is_empty() {
            return;
        }
        for mark in &mut self.marks {
            if let Some(top) = seen.get(&mark.key) {
                mark.saved = *top;
            }
        }
    }

    fn commit(&mut self, numbers: &[(Direction, KeyFingerprint, u64)]) -> bool {
        let done = match &mut self.state {
            Err(_) => return false,
            Ok(state) => state.commit(numbers),
        };
        match done {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    warn!("sequence numbers can be written to disk again");
                }
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    error!(
                        "sequence numbers cannot be written to disk, SAs stop at the end of their lease: {error}"
                    );
                }
                false
            }
        }
    }
}

/// The SA that `lease` is for; none where its slot has come to hold another key's.
fn leased_sa<'w>(lease: &Lease, sad: &'w Sad, writer: &'w Writer) -> Option<&'w OutboundSa> {
    sad.outbound()
        .get_owned(writer, lease.slot.index())
        .filter(|sa| sa.identity().fingerprint == lease.key)
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
mod tests {
    use super::*;
    use crate::crypto::aead::{Cipher, KeyMaterial};
    use crate::ids::Spi;
    use crate::ipsec::outer::{DontFragment, Dscp, EcnMode, Encapsulation, OuterHeader, SizeRules};
    use crate::ipsec::replay::BlockRun;
    use crate::ipsec::sa::{InboundParams, InboundSa, OutboundParams, SaParams};
    use crate::ipsec::selector::Selectors;
    use crate::rcu::domain;

    #[test]
    fn lease_lasts_two_seconds_at_the_present_rate() {
        assert_eq!(ahead(0, Duration::from_millis(20), 1), MIN_AHEAD);
        // 10 million a second.
        assert_eq!(ahead(200_000, Duration::from_millis(20), 1), 20_000_000);
        assert_eq!(ahead(u64::MAX, Duration::from_nanos(1), 1), MAX_AHEAD);
    }

    #[test]
    fn many_leases_are_all_extended_at_once_and_then_in_turns() {
        let count = 2 * LOOKS + 10;
        let keys: Vec<_> = (0..count)
            .map(|at| {
                let mut bytes = zeroize::Zeroizing::new(vec![7; 20]);
                bytes[..8].copy_from_slice(&(at as u64).to_le_bytes());
                KeyMaterial::new(Cipher::Aes128Gcm, bytes).expect("20 bytes")
            })
            .collect();
        let dir = tempfile::TempDir::new().expect("dir");
        let mut state = StateFile::open_or_create(dir.path()).expect("made");
        let fresh: Vec<_> = keys
            .iter()
            .map(|key| (Direction::Outbound, key.fingerprint()))
            .collect();
        state.add_fresh(&fresh).expect("added");
        let (mut writer, _readers) = domain(0);
        let sad = Sad::new(&writer, count);
        let now = Instant::now();
        let mut leases = Leases {
            state: Ok(state),
            leases: Vec::new(),
            marks: Vec::new(),
            cursor: 0,
            fresh: 0,
            saved: now,
            failing: false,
        };
        let address = "192.0.2.1".parse().expect("address");
        for (at, key) in keys.iter().enumerate() {
            let slot = SaIndex(u32::try_from(at).expect("few"));
            let start = leases.start_outbound(slot, key.fingerprint());
            assert!(matches!(start, SaStart::At(1)), "{start:?}");
            let sa = OutboundSa::new(&OutboundParams {
                sa: SaParams {
                    spi: Spi::new(0x1000).expect("not reserved"),
                    key,
                    esn: false,
                    local: address,
                    remote: address,
                    encapsulation: Encapsulation::None,
                },
                next_seq: 1,
                sizes: SizeRules::default(),
                outer: OuterHeader {
                    hop_limit: 64,
                    dscp: Dscp::Copy,
                    df: DontFragment::Copy,
                    ecn: EcnMode::Normal,
                },
            });
            assert!(
                writer
                    .replace(sad.outbound(), at, Some(Box::new(sa)))
                    .is_ok()
            );
        }
        let leased = |at| {
            let sa = sad.outbound().get_owned(&writer, at).expect("SA");
            (sa.seq.leased().expect("not stopped"), sa)
        };
        leases.tick(&sad, &writer);
        assert!((0..count).all(|at| leased(at).0 == 1 + 3 * MIN_AHEAD));
        // Each uses all it has; one turn after another sees to it.
        for at in 0..count {
            let (until, sa) = leased(at);
            assert_eq!(sa.seq.take(until).count, until - 1);
        }
        for turn in 1..=3 {
            leases.tick(&sad, &writer);
            let done = (0..count)
                .filter(|at| leased(*at).0 > 1 + 3 * MIN_AHEAD)
                .count();
            assert_eq!(done, (turn * LOOKS).min(count));
        }
    }

    #[test]
    fn number_seen_that_could_not_be_written_is_written_later() {
        let bytes = zeroize::Zeroizing::new(vec![7; 20]);
        let key = KeyMaterial::new(Cipher::Aes128Gcm, bytes).expect("20 bytes");
        let fingerprint = key.fingerprint();
        let dir = tempfile::TempDir::new().expect("dir");
        let mut state = StateFile::open_or_create(dir.path()).expect("made");
        state
            .add_fresh(&[(Direction::Inbound, fingerprint)])
            .expect("added");
        let address = "192.0.2.1".parse().expect("address");
        let sa = InboundSa::new(InboundParams {
            sa: SaParams {
                spi: Spi::new(0x1000).expect("not reserved"),
                key: &key,
                esn: true,
                local: address,
                remote: address,
                encapsulation: Encapsulation::None,
            },
            window: 64,
            seen: 0,
            selectors: Selectors::default(),
            peer_moves: false,
        });
        assert_ne!(sa.window.commit(BlockRun::new(5)), 0);
        let (mut writer, _readers) = domain(0);
        let sad = Sad::new(&writer, 1);
        assert!(writer.replace(sad.inbound(), 0, Some(Box::new(sa))).is_ok());
        let now = Instant::now();
        let mut leases = Leases {
            state: Err("the disk is away".into()),
            leases: Vec::new(),
            marks: Vec::new(),
            cursor: 0,
            fresh: 0,
            saved: now,
            failing: false,
        };
        leases.marks.push(Mark {
            slot: SaIndex(0),
            key: fingerprint,
            saved: 0,
        });
        leases.finish(&sad, &writer);
        leases.state = Ok(state);
        leases.finish(&sad, &writer);
        let start = leases.number(Direction::Inbound, fingerprint);
        assert!(matches!(start, SaStart::At(5)), "{start:?}");
    }
}
