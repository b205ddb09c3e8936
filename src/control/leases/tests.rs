//! Leases that are extended, and what may happen while a write is on its way to the disk.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::control::keeper::{StartError, Unknown};
use crate::control::state::Starting;
use crate::crypto::aead::{Cipher, KeyMaterial};
use crate::ids::Spi;
use crate::ipsec::outer::{DontFragment, Dscp, EcnMode, Encapsulation, OuterHeader, SizeRules};
use crate::ipsec::replay::BlockRun;
use crate::ipsec::sa::{InboundParams, OutboundParams, SaParams};
use crate::ipsec::selector::Selectors;
use crate::ipsec::seq::LAST_SHORT;
use crate::rcu::domain;

const OUTBOUND: Direction = Direction::Outbound;

fn key(number: usize) -> KeyMaterial {
    let mut bytes = zeroize::Zeroizing::new(vec![7; 20]);
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    KeyMaterial::new(Cipher::Aes128Gcm, bytes).expect("20 bytes")
}

fn params(key: &KeyMaterial) -> SaParams<'_> {
    let address = "192.0.2.1".parse().expect("address");
    SaParams {
        spi: Spi::new(0x1000).expect("not reserved"),
        key,
        esn: false,
        local: address,
        remote: address,
        encapsulation: Encapsulation::None,
    }
}

/// Leases of SAs in slots, over a state in a directory.
struct Rig {
    leases: Leases,
    sad: Sad,
    writer: Writer,
    dir: TempDir,
}

impl Rig {
    fn new(slots: usize) -> Self {
        let dir = TempDir::new().expect("dir");
        drop(StateFile::open_or_create(dir.path()).expect("made"));
        let (writer, _) = domain(0);
        let sad = Sad::new(&writer, slots);
        Self {
            leases: open(dir.path()),
            sad,
            writer,
            dir,
        }
    }

    fn start(&self, number: usize, unknown: Unknown) -> Result<(u64, u64), StartError> {
        let starting = Starting {
            direction: OUTBOUND,
            key: key(number).fingerprint(),
            ahead: 100,
            last: LAST_SHORT,
        };
        let started = self.leases.starter().start(vec![starting], unknown)?;
        let started = started[0].clone().expect("known");
        Ok((started.from, started.until))
    }

    /// Puts an SA into a slot, as it was started.
    fn put(&mut self, slot: usize, number: usize, (from, until): (u64, u64)) {
        let sa = OutboundSa::new(&OutboundParams {
            sa: params(&key(number)),
            next_seq: from,
            sizes: SizeRules::default(),
            outer: OuterHeader {
                hop_limit: 64,
                dscp: Dscp::Copy,
                df: DontFragment::Copy,
                ecn: EcnMode::Normal,
            },
        });
        sa.seq().extend_lease(until);
        self.leases.add_outbound(index(slot), &sa);
        let sa = Some(Box::new(sa));
        assert!(self.writer.replace(self.sad.outbound(), slot, sa).is_ok());
    }

    fn install(&mut self, slot: usize, number: usize) -> (u64, u64) {
        let started = self.start(number, Unknown::Declare).expect("started");
        self.put(slot, number, started);
        started
    }

    fn remove(&mut self, slot: usize) {
        assert!(self.writer.replace(self.sad.outbound(), slot, None).is_ok());
        self.leases.forget(index(slot));
    }

    fn sa(&self, slot: usize) -> &OutboundSa {
        let sa = self.sad.outbound().get_owned(&self.writer, slot);
        sa.expect("an SA")
    }

    fn leased(&self, slot: usize) -> u64 {
        self.sa(slot).seq().leased().expect("not stopped")
    }

    /// Takes every number that is leased. Returns the highest.
    fn use_up(&self, slot: usize) -> u64 {
        let seq = self.sa(slot).seq();
        let run = seq.take(self.leased(slot) - seq.next());
        run.first + run.count - 1
    }

    fn tick(&mut self) {
        self.leases.tick(&self.sad, &self.writer);
    }

    /// Ticks until nothing is on its way, and only what was sent before is taken in.
    fn settle(&mut self) {
        while self.leases.in_flight {
            let keeper = self.leases.state.as_ref().expect("open");
            if let Ok(written) = keeper.written() {
                self.leases.take_in(written, (&self.sad, &self.writer));
            }
        }
    }

    fn finish(&mut self) {
        self.leases.finish(&self.sad, &self.writer);
    }

    /// What is on disk of a key, as a gateway finds it that starts after this one was killed.
    fn on_disk(&self, direction: Direction, number: usize) -> Option<u64> {
        number_in(
            &bytes(self.dir.path()),
            direction,
            key(number).fingerprint(),
        )
    }
}

fn index(slot: usize) -> SaIndex {
    SaIndex(u32::try_from(slot).expect("few"))
}

fn open(dir: &Path) -> Leases {
    let state = StateFile::open(dir).expect("whole");
    Leases::with(Ok(Keeper::start(state).expect("a thread")))
}

fn bytes(dir: &Path) -> Vec<u8> {
    fs::read(dir.join(crate::control::state::FILE_NAME)).expect("read")
}

/// The number of a key in the bytes of a state file, which another process holds.
fn number_in(bytes: &[u8], direction: Direction, key: KeyFingerprint) -> Option<u64> {
    let kind = match direction {
        Direction::Outbound => 1,
        Direction::Inbound => 2,
    };
    let mut records = bytes.get(512..)?.chunks_exact(64);
    let found = records.find(|record| record[..16] == *key.as_bytes() && record[16] == kind)?;
    Some(u64::from_le_bytes(*found[24..].first_chunk()?))
}

#[test]
fn lease_lasts_two_seconds_at_the_present_rate() {
    assert_eq!(ahead(0, Duration::from_millis(20), 1), MIN_AHEAD);
    // 10 million a second.
    assert_eq!(ahead(200_000, Duration::from_millis(20), 1), 20_000_000);
    assert_eq!(ahead(u64::MAX, Duration::from_nanos(1), 1), MAX_AHEAD);
}

#[test]
fn many_leases_are_extended_in_turns() {
    let count = 2 * LOOKS + 10;
    let mut rig = Rig::new(count);
    for slot in 0..count {
        // Not started yet, so as to have one write for all.
        rig.put(slot, slot, (1, 1));
    }
    let keys = (0..count).map(|number| Starting {
        direction: OUTBOUND,
        key: key(number).fingerprint(),
        ahead: first_ahead(count),
        last: LAST_SHORT,
    });
    let started = rig.leases.starter().start(keys.collect(), Unknown::Declare);
    for (slot, started) in started.expect("started").into_iter().enumerate() {
        let until = started.expect("fresh").until;
        assert_eq!(until, 1 + 3 * MIN_AHEAD);
        rig.sa(slot).seq().extend_lease(until);
        // Each uses all it has; one turn after another sees to it.
        assert_eq!(rig.use_up(slot), until - 1);
    }
    for turn in 1..=3 {
        rig.tick();
        rig.settle();
        let is_done = |slot: &usize| rig.leased(*slot) > 1 + 3 * MIN_AHEAD;
        let done = (0..count).filter(is_done).count();
        assert_eq!(done, (turn * LOOKS).min(count));
    }
}

#[test]
fn number_seen_that_could_not_be_written_is_written_later() {
    let mut rig = Rig::new(1);
    let material = key(1);
    let fingerprint = material.fingerprint();
    let starting = Starting {
        direction: Direction::Inbound,
        key: fingerprint,
        ahead: 0,
        last: 0,
    };
    let starter = rig.leases.starter();
    assert!(starter.start(vec![starting], Unknown::Declare).is_ok());
    let sa = InboundSa::new(InboundParams {
        sa: params(&material),
        window: 64,
        seen: 0,
        selectors: Selectors::default(),
        peer_moves: false,
    });
    rig.leases.add_inbound(index(0), &sa);
    assert_ne!(sa.window().commit(BlockRun::new(5)), 0);
    let sa = Some(Box::new(sa));
    assert!(rig.writer.replace(rig.sad.inbound(), 0, sa).is_ok());
    // A batch that failed.
    let batch = Number {
        slot: index(0),
        direction: Direction::Inbound,
        key: fingerprint,
        number: 5,
    };
    let failed = Err(StateError::Lost {
        path: rig.dir.path().to_owned(),
    });
    rig.leases
        .take_in((vec![batch], failed), (&rig.sad, &rig.writer));
    assert_eq!(rig.on_disk(Direction::Inbound, 1), Some(0));
    rig.finish();
    assert_eq!(rig.on_disk(Direction::Inbound, 1), Some(5));
}

#[test]
fn first_numbers_are_on_disk_before_there_is_an_sa() {
    let rig = Rig::new(1);
    assert_eq!(rig.start(1, Unknown::Declare).expect("fresh"), (1, 101));
    assert_eq!(rig.on_disk(OUTBOUND, 1), Some(101));
    // A change that was refused after that, and comes again: numbers are skipped and none is used again.
    assert_eq!(rig.start(1, Unknown::Declare).expect("known"), (101, 201));
    assert_eq!(rig.start(1, Unknown::Refuse).expect("known"), (201, 301));
    assert_eq!(rig.on_disk(OUTBOUND, 1), Some(301));
}

#[test]
fn unknown_key_leaves_the_disk_as_it_was() {
    let rig = Rig::new(1);
    rig.start(1, Unknown::Declare).expect("fresh");
    let before = bytes(rig.dir.path());
    let keys = [1, 2].map(|number| Starting {
        direction: OUTBOUND,
        key: key(number).fingerprint(),
        ahead: 100,
        last: LAST_SHORT,
    });
    let refused = rig.leases.starter().start(keys.to_vec(), Unknown::Refuse);
    assert!(matches!(refused, Err(StartError::Unknown(places)) if places == [1]));
    assert!(bytes(rig.dir.path()) == before);
    // At a start of the gateway the others are started all the same.
    let started = rig.leases.starter().start(keys.to_vec(), Unknown::LeaveOut);
    let started = started.expect("one of them");
    assert!(started[0].is_ok() && started[1].is_err());
    assert_eq!(rig.on_disk(OUTBOUND, 2), None);
}

#[test]
fn no_lease_is_extended_before_its_end_is_on_disk() {
    let mut rig = Rig::new(1);
    rig.install(0, 1);
    rig.use_up(0);
    rig.tick();
    // Whether or not it is written by now: nobody was told.
    assert_eq!(rig.leased(0), 101);
    assert!(rig.sa(0).seq().peek().is_err());
    rig.settle();
    assert_eq!(rig.on_disk(OUTBOUND, 1), Some(rig.leased(0)));
    assert!(rig.leased(0) > 101);
}

#[test]
fn lease_of_a_pair_that_left_meanwhile_goes_to_nobody() {
    let mut rig = Rig::new(2);
    rig.install(0, 1);
    let highest = rig.use_up(0);
    rig.tick();
    assert!(rig.leases.in_flight);
    rig.remove(0);
    // Another key in the slot, which is not given what the one before asked for.
    let (_, until) = rig.install(0, 2);
    rig.settle();
    assert_eq!(rig.leased(0), until);
    // The first one comes back, elsewhere: behind all that it used, and behind what it was to be given.
    let on_disk = rig.on_disk(OUTBOUND, 1).expect("recorded");
    let (from, until) = rig.install(1, 1);
    assert!(from > highest && from >= on_disk, "{from}, {highest}");
    assert_eq!(rig.on_disk(OUTBOUND, 1), Some(until));
}

#[test]
fn key_that_comes_back_while_its_last_lease_is_in_flight_uses_no_number_twice() {
    let mut rig = Rig::new(1);
    rig.install(0, 1);
    let highest = rig.use_up(0);
    rig.tick();
    rig.remove(0);
    // The keeper does one after the other: what was asked for of the old SA is written by now, and not taken in yet.
    let (from, until) = rig.install(0, 1);
    assert!(from > highest + MIN_AHEAD, "{from}");
    rig.settle();
    assert_eq!(rig.leased(0), until);
    assert_eq!(rig.on_disk(OUTBOUND, 1), Some(until));
}

#[test]
fn what_waits_for_a_pair_that_left_is_not_written() {
    let mut rig = Rig::new(2);
    rig.install(0, 1);
    rig.use_up(0);
    rig.tick();
    // The second one's has to wait for the first one's.
    rig.install(1, 2);
    rig.leases.look_at_leases(&rig.sad, &rig.writer);
    assert!(rig.leases.waiting.iter().any(|own| own.slot == index(1)));
    rig.remove(1);
    rig.settle();
    rig.tick();
    rig.settle();
    assert_eq!(rig.on_disk(OUTBOUND, 2), Some(101));
}

#[test]
fn late_write_never_takes_a_lease_back() {
    let mut rig = Rig::new(1);
    rig.install(0, 1);
    let (_, until) = rig.start(1, Unknown::Refuse).expect("known");
    let stale = Number {
        slot: index(0),
        direction: OUTBOUND,
        key: key(1).fingerprint(),
        number: 150,
    };
    assert!(stale.number < until);
    if let Ok(keeper) = &rig.leases.state {
        keeper.raise(vec![stale]);
    }
    rig.leases.in_flight = true;
    rig.settle();
    assert_eq!(rig.on_disk(OUTBOUND, 1), Some(until));
}

#[test]
fn stop_while_a_write_is_in_flight_leaves_what_was_used() {
    let mut rig = Rig::new(2);
    rig.install(0, 1);
    rig.install(1, 2);
    let highest = rig.use_up(0);
    rig.tick();
    assert!(rig.leases.in_flight);
    // Started for a change that is not taken up any more.
    let (_, never) = rig.start(3, Unknown::Declare).expect("fresh");
    rig.finish();
    assert_eq!(rig.on_disk(OUTBOUND, 1), Some(highest + 1));
    assert_eq!(rig.on_disk(OUTBOUND, 2), Some(1), "nothing was used");
    assert_eq!(rig.on_disk(OUTBOUND, 3), Some(never));
    // The file is free at once for the next gateway, whoever has a starter still.
    let starter = rig.leases.starter();
    rig.leases = Leases::with(Err("stopped".into()));
    let state = StateFile::open(rig.dir.path()).expect("closed, and whole");
    let number = state.number(OUTBOUND, key(1).fingerprint());
    assert_eq!(number.expect("known"), highest + 1);
    let late = starter.start(Vec::new(), Unknown::Declare);
    assert!(matches!(late, Err(StartError::NoState(_))));
}

#[test]
fn disk_that_is_full_starts_nothing_and_extends_nothing() {
    let mut rig = Rig::new(1);
    let (_, until) = rig.install(0, 1);
    rig.use_up(0);
    let batch = Number {
        slot: index(0),
        direction: OUTBOUND,
        key: key(1).fingerprint(),
        number: until + 1000,
    };
    let failed = Err(StateError::Io {
        path: rig.dir.path().to_owned(),
        error: std::io::Error::other("full"),
    });
    rig.leases
        .take_in((vec![batch], failed), (&rig.sad, &rig.writer));
    assert_eq!(rig.leased(0), until);
    // It is asked for again.
    rig.tick();
    rig.settle();
    assert!(rig.leased(0) > until);
}

#[test]
fn stop_takes_nothing_back_of_a_key_that_once_had_extended_numbers() {
    let mut rig = Rig::new(1);
    rig.start(1, Unknown::Declare).expect("fresh");
    let used = Number {
        slot: index(0),
        direction: OUTBOUND,
        key: key(1).fingerprint(),
        number: LAST_SHORT + 1000,
    };
    if let Ok(keeper) = &rig.leases.state {
        keeper.raise(vec![used]);
    }
    rig.leases.in_flight = true;
    rig.settle();
    // Its numbers are short ones now, of which none is left.
    let started = rig.start(1, Unknown::Refuse).expect("known");
    assert_eq!(started, (used.number, used.number));
    rig.put(0, 1, started);
    assert!(rig.sa(0).seq().peek().is_err());
    rig.finish();
    assert_eq!(rig.on_disk(OUTBOUND, 1), Some(used.number));
}

#[test]
fn end_of_the_thread_that_writes_is_waited_for_by_nobody() {
    let mut rig = Rig::new(1);
    let (_, until) = rig.install(0, 1);
    let starter = rig.leases.starter();
    let highest = rig.use_up(0);
    if let Ok(keeper) = &mut rig.leases.state {
        // As if it had panicked.
        keeper.end();
    }
    let none = starter.start(Vec::new(), Unknown::Declare);
    assert!(matches!(none, Err(StartError::NoState(reason)) if reason == ENDED));
    rig.tick();
    assert!(!rig.leases.is_open());
    assert!(rig.start(2, Unknown::Declare).is_err());
    rig.tick();
    rig.finish();
    // What is on disk holds for what was used, and nothing more is.
    assert_eq!((rig.leased(0), highest), (until, until - 1));
    assert_eq!(rig.on_disk(OUTBOUND, 1), Some(until));
}
