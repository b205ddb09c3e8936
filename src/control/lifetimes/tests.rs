use super::*;

const BOTH: [Direction; 2] = [Direction::Outbound, Direction::Inbound];
const SLOT: SaIndex = SaIndex(3);

fn limits(kind: LimitKind, soft: u64, hard: u64) -> Lifetime {
    let limit = Some(Limit { soft, hard });
    let mut lifetime = Lifetime::default();
    match kind {
        LimitKind::Bytes => lifetime.bytes = limit,
        LimitKind::Packets => lifetime.packets = limit,
        LimitKind::Time => lifetime.time_ms = limit,
    }
    lifetime
}

/// A gateway of one SA pair, whose clock and counters stand still.
struct Bench {
    lifetimes: Lifetimes,
    start: Instant,
    age: Duration,
    used: Used,
}

impl Bench {
    fn new(direction: Direction, lifetime: Lifetime) -> Self {
        let mut lifetimes = Lifetimes::default();
        let start = Instant::now();
        lifetimes.install((SLOT, direction), lifetime, start);
        Self {
            lifetimes,
            start,
            age: Duration::ZERO,
            used: Used::default(),
        }
    }

    /// Sets clock or counter.
    fn set(&mut self, kind: LimitKind, amount: u64) {
        match kind {
            LimitKind::Bytes => self.used.bytes = amount,
            LimitKind::Packets => self.used.packets = amount,
            LimitKind::Time => self.age = Duration::from_millis(amount),
        }
    }

    fn check(&mut self) -> Vec<(LimitKind, u64, bool)> {
        let (now, used) = (self.start + self.age, self.used);
        let events = self.lifetimes.check(now, |_, _| Some(used));
        assert!(events.iter().all(|event| event.slot == SLOT));
        events
            .iter()
            .map(|event| (event.kind, event.limit, event.hard))
            .collect()
    }

    fn stage(&self, direction: Direction) -> Stage {
        let life = self.lifetimes.life(SLOT, direction).expect("has limits");
        life.stage()
    }
}

#[test]
fn every_limit_is_told_once_at_its_number_in_both_directions() {
    for direction in BOTH {
        for kind in KINDS {
            let mut bench = Bench::new(direction, limits(kind, 90, 100));
            // What is not limited does not matter.
            for other in KINDS {
                bench.set(other, u64::MAX / 2);
            }
            bench.set(kind, 89);
            assert_eq!(bench.check(), [], "{kind}");
            assert_eq!(bench.stage(direction), Stage::Fresh);
            bench.set(kind, 90);
            assert_eq!(bench.check(), [(kind, 90, false)]);
            assert_eq!(bench.check(), []);
            bench.set(kind, 99);
            assert_eq!(bench.check(), []);
            assert_eq!(bench.stage(direction), Stage::Soft);
            bench.set(kind, 100);
            assert_eq!(bench.check(), [(kind, 100, true)]);
            assert_eq!(bench.check(), []);
            bench.set(kind, 1000);
            assert_eq!(bench.check(), []);
            assert_eq!(bench.stage(direction), Stage::Expired);
        }
    }
}

#[test]
fn soft_is_told_before_hard_where_both_are_passed_between_two_looks() {
    for kind in KINDS {
        let mut bench = Bench::new(Direction::Inbound, limits(kind, 90, 100));
        bench.set(kind, 5000);
        assert_eq!(bench.check(), [(kind, 90, false), (kind, 100, true)]);
        assert_eq!(bench.check(), []);
    }
}

#[test]
fn soft_limits_are_told_each_and_an_sa_expires_once() {
    //= https://www.rfc-editor.org/rfc/rfc4301#section-4.4.2.1
    //= type=test
    //# A compliant implementation MUST support both types of lifetimes, and
    //# MUST support a simultaneous use of both.
    let limit = Some(Limit {
        soft: 10,
        hard: 100,
    });
    let lifetime = Lifetime {
        bytes: limit,
        packets: limit,
        time_ms: limit,
    };
    let mut bench = Bench::new(Direction::Outbound, lifetime);
    bench.set(LimitKind::Time, 10);
    assert_eq!(bench.check(), [(LimitKind::Time, 10, false)]);
    bench.set(LimitKind::Bytes, 10);
    assert_eq!(bench.check(), [(LimitKind::Bytes, 10, false)]);
    bench.set(LimitKind::Packets, 100);
    let expected = [
        (LimitKind::Packets, 10, false),
        (LimitKind::Packets, 100, true),
    ];
    assert_eq!(bench.check(), expected);
    bench.set(LimitKind::Bytes, 100);
    bench.set(LimitKind::Time, 100);
    assert_eq!(bench.check(), []);
    // Its age is that at which it ended.
    let life = bench
        .lifetimes
        .life(SLOT, Direction::Outbound)
        .expect("kept");
    let later = bench.start + Duration::from_secs(3600);
    let age = life.limits(bench.used, later).last().map(|(.., used)| used);
    assert_eq!(age, Some(10));
}

#[test]
fn directions_and_slots_are_apart_and_a_new_sa_begins_anew() {
    let mut lifetimes = Lifetimes::default();
    let start = Instant::now();
    let lifetime = limits(LimitKind::Packets, 90, 100);
    for slot in [SaIndex(0), SaIndex(1)] {
        for direction in BOTH {
            lifetimes.install((slot, direction), lifetime, start);
        }
    }
    let one = (SaIndex(1), Direction::Inbound);
    let read = |slot, direction| {
        // One slot has come to be empty.
        let packets = if (slot, direction) == one { 100 } else { 0 };
        (slot != SaIndex(0)).then_some(Used { bytes: 0, packets })
    };
    let events = lifetimes.check(start, read);
    assert!(
        events
            .iter()
            .all(|event| (event.slot, event.direction) == one)
    );
    assert_eq!(events.len(), 2);
    assert_eq!(lifetimes.check(start, read), []);
    lifetimes.install(one, lifetime, start);
    assert_eq!(lifetimes.check(start, read).len(), 2);
    lifetimes.install(one, Lifetime::default(), start);
    assert_eq!(lifetimes.check(start, read), []);
    assert!(lifetimes.life(one.0, one.1).is_none());
}

#[test]
fn time_counts_from_when_an_sa_was_installed() {
    let mut lifetimes = Lifetimes::default();
    let start = Instant::now();
    let after = |ms| start + Duration::from_millis(ms);
    let lifetime = limits(LimitKind::Time, 900, 1000);
    for (slot, installed) in [(SaIndex(0), 0), (SaIndex(1), 500)] {
        lifetimes.install((slot, Direction::Outbound), lifetime, after(installed));
    }
    let mut at = |ms| {
        let events = lifetimes.check(after(ms), |_, _| Some(Used::default()));
        events
            .iter()
            .map(|event| (event.slot.0, event.hard))
            .collect::<Vec<_>>()
    };
    assert_eq!(at(899), []);
    assert_eq!(at(1000), [(0, false), (0, true)]);
    assert_eq!(at(1400), [(1, false)]);
    assert_eq!(at(1499), []);
    assert_eq!(at(1500), [(1, true)]);
}

#[test]
fn many_sas_are_looked_at_in_turns() {
    let mut lifetimes = Lifetimes::default();
    let start = Instant::now();
    let count = u32::try_from(2 * LOOKS + 10).expect("few");
    let lifetime = limits(LimitKind::Packets, 1, 1);
    for slot in 0..count {
        lifetimes.install((SaIndex(slot), Direction::Inbound), lifetime, start);
    }
    let mut turn = || {
        let used = Used {
            bytes: 0,
            packets: 1,
        };
        lifetimes.check(start, |_, _| Some(used)).len() / 2
    };
    assert_eq!([turn(), turn(), turn()], [LOOKS, LOOKS, 10]);
    assert_eq!(turn(), 0);
}

#[test]
fn amounts_are_shown_as_people_write_them() {
    assert_eq!(LimitKind::Bytes.show(500_000_000_000), "500.0 GB");
    assert_eq!(LimitKind::Packets.show(1000), "1000");
    assert_eq!(LimitKind::Time.show(1500), "1s 500ms");
    assert_eq!(LimitKind::Time.show(29_100_123), "8h 5m");
}
